"""The optimizers by name."""

from __future__ import annotations

from collections.abc import Callable

import optax

from cnnlab.optim.muon import muon
from cnnlab.optim.optimizers import adam, adamw, sgd

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    f.__name__: f for f in (adam, adamw, sgd, muon)
}
