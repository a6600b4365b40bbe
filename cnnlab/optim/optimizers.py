"""Optimizers of Optax whose weight decay touches kernels only, unless it is asked to touch all."""

from __future__ import annotations

import jax
import optax
from jax.core import Tracer

from cnnlab.types import PyTree


def _kernels(params: PyTree) -> PyTree:
    """Mark the parameters that weight decay touches: kernels, not biases or normalisation."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def is_zero(value: float | jax.Array) -> bool:
    """Return whether a hyperparameter turns something off; one that is traced does not."""
    return not isinstance(value, Tracer) and bool(value == 0)


def _decayed(
    tx: optax.GradientTransformation, weight_decay: float, decay_all: bool = False
) -> optax.GradientTransformation:
    """Wrap an optimizer so that it gets the gradient plus `weight_decay` times the kernels, or
    times all parameters.
    """
    if is_zero(weight_decay):
        return tx
    mask = None if decay_all else _kernels
    return optax.chain(optax.add_decayed_weights(weight_decay, mask=mask), tx)


def adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Adam, with L2 regularisation of the kernels.

    Args:
      learning_rate: a number or a schedule.
      b1: in [0, 1), decay of the mean of gradients.
      b2: in [0, 1), decay of the mean of their squares.
      eps: in (0, inf), added to the root of the latter.
      weight_decay: in [0, inf), times each kernel is added to its gradient.

    Source: Kingma & Ba, 2015, "Adam", https://arxiv.org/abs/1412.6980
    """
    return _decayed(optax.adam(learning_rate, b1, b2, eps), weight_decay)


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay, on kernels only; `optax.adamw` decays every parameter.

    Args:
      learning_rate: a number or a schedule.
      b1: in [0, 1), decay of the mean of gradients.
      b2: in [0, 1), decay of the mean of their squares.
      eps: in (0, inf), added to the root of the latter.
      weight_decay: in [0, inf), times the learning rate is what a kernel loses in a step.

    Source: Loshchilov & Hutter, 2019, "Decoupled weight decay regularization",
    https://arxiv.org/abs/1711.05101
    """
    return optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=_kernels)


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    nesterov: bool | None = None,
    weight_decay: float = 0.0,
    decay_all: bool = False,
) -> optax.GradientTransformation:
    """Gradient descent with momentum, and L2 regularisation of the kernels. It wants rates about
    0.05.

    Args:
      learning_rate: a number or a schedule.
      momentum: in [0, 1), the decay of the running sum of gradients.
      nesterov: Nesterov's form of momentum; none: with momentum.
      weight_decay: in [0, inf), times each kernel is added to its gradient.
      decay_all: weight decay of biases and of the scales of batch norm too, as in PyTorch.

    Raises:
      ValueError: nesterov without momentum, or decay_all without weight decay.

    Source: Sutskever et al., 2013, "On the importance of initialization and momentum in deep
    learning", ICML.
    """
    if nesterov is not None and is_zero(momentum):
        raise ValueError("nesterov is a form of momentum, which is 0")
    if decay_all and is_zero(weight_decay):
        raise ValueError("decay_all is a form of weight_decay, which is 0")
    without = is_zero(momentum)
    use_nesterov = not without and nesterov is not False
    descent = optax.sgd(learning_rate, None if without else momentum, nesterov=use_nesterov)
    return _decayed(descent, weight_decay, decay_all)
