"""Losses: `loss(logits, labels, **hyperparameters) -> float32[...]`, one value per example; the caller reduces.

`logits` are float[..., K] of any float type and batch rank; `labels` are int[...] class ids or float[..., K] target
distributions, told apart by their type. A label outside [0, K) never gets another class's loss: ValueError where its
value can be seen, NaN under jit. jit, vmap, grad, jacfwd and hessian all work.
"""

from cnnlab.losses.entropy import cross_entropy
from cnnlab.losses.squared import mean_squared_error

__all__ = ["cross_entropy", "mean_squared_error"]
