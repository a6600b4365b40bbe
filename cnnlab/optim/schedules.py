"""Learning rates over the steps of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike


def constant(
    peak: float | jax.Array, steps_per_epoch: int = 1, warmup: float = 0.0
) -> optax.Schedule:
    """The same rate at every step after the warm-up.

    Args:
      peak: the largest rate.
      steps_per_epoch: the unit of epochs.
      warmup: in [0, inf), epochs of linear warm-up from zero.
    """
    return _warmed(optax.constant_schedule(peak), peak, round(warmup * steps_per_epoch))


def cosine(
    peak: float | jax.Array, total_steps: int, steps_per_epoch: int = 1, warmup: float = 0.0
) -> optax.Schedule:
    """Half a cosine from the peak to zero at the last step.

    Args:
      peak: the largest rate.
      total_steps: of the run, warm-up included.
      steps_per_epoch: the unit of epochs.
      warmup: in [0, inf), epochs of linear warm-up from zero.

    Raises:
      ValueError: a warm-up longer than the run.

    Source: Loshchilov & Hutter, 2017, "SGDR", https://arxiv.org/abs/1608.03983
    """
    early = _warmup_steps(warmup, steps_per_epoch, total_steps)
    return _warmed(optax.cosine_decay_schedule(peak, max(total_steps - early, 1)), peak, early)


def linear(
    peak: float | jax.Array, total_steps: int, steps_per_epoch: int = 1, warmup: float = 0.0
) -> optax.Schedule:
    """A straight line from the peak to zero at the last step; with a warm-up, a triangle.

    Args:
      peak: the largest rate.
      total_steps: of the run, warm-up included.
      steps_per_epoch: the unit of epochs.
      warmup: in [0, inf), epochs of linear warm-up from zero.

    Raises:
      ValueError: a warm-up longer than the run.
    """
    early = _warmup_steps(warmup, steps_per_epoch, total_steps)
    return _warmed(optax.linear_schedule(peak, 0.0, max(total_steps - early, 1)), peak, early)


def steps(
    peak: float | jax.Array,
    at: Sequence[float],
    factor: float = 0.1,
    steps_per_epoch: int = 1,
    warmup: float = 0.0,
    warmup_share: float | None = None,
) -> optax.Schedule:
    """A staircase: the rate is multiplied by a factor at each of some epochs.

    Args:
      peak: the largest rate.
      at: in (0, inf), the epochs, such as [80,120].
      factor: in (0, inf), what the rate is multiplied by at each.
      steps_per_epoch: the unit of epochs.
      warmup: in [0, inf), epochs of linear warm-up from zero.
      warmup_share: in (0, 1], share of the peak at which the rate stays during the warm-up; none:
        it rises from zero.

    Raises:
      ValueError: no epoch, or a share without warm-up.
    """
    if not len(at):
        raise ValueError("at must name at least one epoch")
    if warmup_share is not None and not warmup:
        raise ValueError("warmup_share is the rate of a warm-up, which is 0 epochs")
    early = round(warmup * steps_per_epoch)
    drops: dict[int, float] = {}
    for epoch in at:  # several may fall into one step
        step = round(epoch * steps_per_epoch) - early
        drops[step] = drops.get(step, 1.0) * factor
    after = optax.piecewise_constant_schedule(peak, drops)
    if warmup_share is None:
        return _warmed(after, peak, early)
    return optax.join_schedules([optax.constant_schedule(warmup_share * peak), after], [early])


def one_cycle(
    peak: float | jax.Array,
    total_steps: int,
    rise: float = 0.3,
    start_divisor: float = 25.0,
    end_divisor: float = 1e4,
) -> optax.Schedule:
    """One cycle: up to the peak along half a cosine, then down along another to almost nothing at
    the last step.

    Args:
      peak: the largest rate.
      total_steps: of the run.
      rise: in (0, 1), the share of the run that goes up.
      start_divisor: in [1, inf), the first rate is peak / start_divisor.
      end_divisor: in [1, inf), the last rate is the first / end_divisor.

    Source: Smith & Topin, 2018, "Super-convergence", https://arxiv.org/abs/1708.07120; the half
    cosines as in PyTorch.
    """
    up = max(round(rise * total_steps), 1)
    first = peak / start_divisor
    down = max(total_steps - up, 1)
    return optax.join_schedules(
        [_between(first, peak, up), _between(peak, first / end_divisor, down)],
        [up],
    )


def restarts(
    peak: float | jax.Array, period: float, growth: float = 1.0, steps_per_epoch: int = 1
) -> optax.Schedule:
    """Half a cosine from the peak to zero, again and again.

    Args:
      peak: the largest rate.
      period: in (0, 1000000], epochs of the first.
      growth: in [1, inf), how many times longer than the one before each is.
      steps_per_epoch: the unit of epochs.

    Source: Loshchilov & Hutter, 2017, "SGDR", https://arxiv.org/abs/1608.03983
    """
    lengths = [max(round(period * steps_per_epoch), 1)]
    starts = [0]
    while growth > 1 and starts[-1] < 2**31:
        starts.append(starts[-1] + lengths[-1])
        # Not from the last: rounded, it may not grow
        lengths.append(round(lengths[0] * growth ** len(lengths)))
    begins, spans = np.array(starts, np.float32), np.array(lengths, np.float32)

    def rate(step: ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        if growth == 1:
            share = (step % lengths[0]) / lengths[0]
        else:
            place = jnp.searchsorted(begins, jnp.float32(step), side="right") - 1
            share = (step - jnp.asarray(begins)[place]) / jnp.asarray(spans)[place]
        return peak * 0.5 * (1 + jnp.cos(jnp.pi * share))

    return rate


def _between(first: float | jax.Array, last: float | jax.Array, steps: int) -> optax.Schedule:
    """Build a schedule along half a cosine from one rate to another."""
    return lambda step: (
        last + (first - last) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(step / steps, 0, 1)))
    )


def _warmup_steps(warmup: float, steps_per_epoch: int, total_steps: int) -> int:
    early = round(warmup * steps_per_epoch)
    if early > total_steps:
        raise ValueError(
            f"warmup must be at most the run, {total_steps / steps_per_epoch:g} epochs, got "
            f"{warmup:g}"
        )
    return early


def _warmed(after: optax.Schedule, peak: float | jax.Array, steps: int) -> optax.Schedule:
    """Put a linear warm-up from zero before a schedule, which then starts from its beginning."""
    return (
        optax.join_schedules([optax.linear_schedule(0.0, peak, steps), after], [steps])
        if steps
        else after
    )


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    f.__name__: f for f in (cosine, linear, constant, steps, one_cycle, restarts)
}
