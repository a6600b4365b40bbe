"""The optimizers by name."""

from __future__ import annotations

from collections.abc import Callable

from cnnlab.optim.muon import muon
from cnnlab.optim.optimizers import adam, adamw, sgd

OPTIMIZERS: dict[str, Callable] = {f.__name__: f for f in (adam, adamw, sgd, muon)}
