"""Optimizers, schedules and averages of the weights. Whatever Optax has is used from there; here is
what masks weight decay, and Muon.

An optimizer is `(learning_rate, **hyperparameters) -> optax.GradientTransformation`, a schedule
`(peak, total_steps, **hyperparameters) -> optax.Schedule`, an average
`(total_steps, **hyperparameters) -> (step) -> weight`. A schedule or an average without the
parameter `total_steps` does not depend on the length of the run, which can then be extended.
"""

from cnnlab.optim.averages import AVERAGES, Average, ema, swa
from cnnlab.optim.catalogue import OPTIMIZERS
from cnnlab.optim.muon import muon, orthogonalised
from cnnlab.optim.optimizers import adam, adamw, sgd
from cnnlab.optim.schedules import SCHEDULES, constant, cosine, linear, one_cycle, restarts, steps

__all__ = [
    "AVERAGES",
    "OPTIMIZERS",
    "SCHEDULES",
    "Average",
    "adam",
    "adamw",
    "constant",
    "cosine",
    "ema",
    "linear",
    "muon",
    "one_cycle",
    "orthogonalised",
    "restarts",
    "sgd",
    "steps",
    "swa",
]
