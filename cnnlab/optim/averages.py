"""Averages of the weights over the steps of a run: which share each step has in them.

An average is `(...) -> (step int32[]) -> weight float32[] in [0, 1]`. After each step

    average <- (1 - weight) average + weight variables

from the initial variables on; at the end of an epoch the batch statistics are estimated for the
averaged parameters. `step` is the number of the step just taken, from 0, as a schedule counts. An
average without the parameter `total_steps` does not depend on the length of the run, which can then
be extended.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

Average: TypeAlias = Callable[[jax.Array], jax.Array]  # (step int32[]) -> weight float32[]

WARMUP_POWER = 8  # Shamir and Zhang's eta; TensorFlow's warm-up has it too, a step later


def ema(decay: float = 0.999) -> Average:
    """An exponential moving average of the weights, which looks back further as the run grows.

        weight_t = max(1 - decay, 9 / (9 + t)), t = 0, 1, ...

    While the second is larger, the first half of the steps taken has a share of about 2^-9 in the
    average: early weights are forgotten in short runs too.

    Args:
      decay: in (0, 1), what is kept at each step; 1 / (1 - decay) steps is how far back it looks.

    Source: Polyak & Juditsky, 1992, "Acceleration of stochastic approximation by averaging", SIAM
    J. Control Optim. 30; the warm-up: Shamir & Zhang, 2013, "Stochastic gradient descent for
    non-smooth optimization", https://arxiv.org/abs/1212.1824
    """
    power = WARMUP_POWER + 1

    def weight(step: jax.Array) -> jax.Array:
        growing = power / (power + step.astype(jnp.float32))
        return jnp.maximum(jnp.float32(1 - decay), growing)

    return weight


def swa(total_steps: int, steps_per_epoch: int, start: float = 0.75) -> Average:
    """Stochastic weight averaging: the mean of the weights at the ends of the last epochs.

    Until then the average is the current weights, but for its batch statistics, which are estimated
    anew. Use it with a learning rate that stays high (--schedule constant): weights that hardly
    move leave nothing to average.

    Args:
      total_steps: of the run.
      steps_per_epoch: the unit of epochs.
      start: in [0, 1), the share of the run after which an epoch's end counts.

    Raises:
      ValueError: fewer than two epochs end from there on.

    Source: Izmailov et al., 2018, "Averaging weights leads to wider optima and better
    generalization", https://arxiv.org/abs/1803.05407
    """
    epochs = total_steps // steps_per_epoch
    # Rounded, as 0.7 * 10 is a little more than 7.
    first = max(math.ceil(round(start * epochs, 6)), 1)
    if first >= epochs:
        raise ValueError(
            f"start must leave at least two epochs' ends to average; {start} of {epochs} leaves "
            f"{epochs - first + 1}"
        )

    def weight(step: jax.Array) -> jax.Array:
        taken = step + 1
        epoch = taken // steps_per_epoch
        at_end = taken % steps_per_epoch == 0
        share = 1 / jnp.maximum(epoch - first + 1, 1).astype(jnp.float32)
        following = epoch < first  # the current weights
        return jnp.where(following, 1.0, jnp.where(at_end, share, 0.0)).astype(jnp.float32)

    return weight


AVERAGES: dict[str, Callable[..., Average]] = {f.__name__: f for f in (ema, swa)}
