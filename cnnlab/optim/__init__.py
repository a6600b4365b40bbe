"""Optimizers and schedules. Whatever Optax has is used from there; here is what masks weight decay,
and Muon.

An optimizer is `(learning_rate, **hyperparameters) -> optax.GradientTransformation`, a schedule
`(peak, total_steps, **hyperparameters) -> optax.Schedule`. A schedule without the parameter
`total_steps` does not depend on the length of the run, which can then be extended.
"""

from cnnlab.optim.catalogue import OPTIMIZERS
from cnnlab.optim.muon import muon, orthogonalised
from cnnlab.optim.optimizers import adam, adamw, sgd
from cnnlab.optim.schedules import SCHEDULES, constant, cosine, linear, one_cycle, restarts, steps

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "adam",
    "adamw",
    "constant",
    "cosine",
    "linear",
    "muon",
    "one_cycle",
    "orthogonalised",
    "restarts",
    "sgd",
    "steps",
]
