"""Optimizers and schedules. Whatever Optax has is used from there; here is what masks weight decay, and Muon.

An optimizer is `(learning_rate, **hyperparameters) -> optax.GradientTransformation`, a schedule `(peak, total_steps,
**hyperparameters) -> optax.Schedule`. A schedule without the parameter `total_steps` does not depend on the length of
the run, which can then be extended.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from cnnlab.errors import InputError

QUINTIC = (3.4445, -4.7750, 2.0315)  # of Muon's Newton-Schulz iteration: steepest at zero, not convergent at one


def _kernels(params: Any) -> Any:
    """Which parameters weight decay touches: kernels, not biases or normalisation."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _decayed(tx: optax.GradientTransformation, weight_decay: float) -> optax.GradientTransformation:
    """The optimizer of the gradient plus `weight_decay` times the kernels."""
    if not weight_decay:
        return tx
    return optax.chain(optax.add_decayed_weights(weight_decay, mask=_kernels), tx)


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

    Source: Loshchilov & Hutter, 2019, "Decoupled weight decay regularization", https://arxiv.org/abs/1711.05101
    """
    return optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=_kernels)


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.9,
    nesterov: bool | None = None,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Gradient descent with momentum, and L2 regularisation of the kernels. It wants rates about 0.05.

    Args:
      learning_rate: a number or a schedule.
      momentum: in [0, 1), the decay of the running sum of gradients.
      nesterov: Nesterov's form of momentum; none: with momentum.
      weight_decay: in [0, inf), times each kernel is added to its gradient.

    Raises:
      ValueError: nesterov without momentum.

    Source: Sutskever et al., 2013, "On the importance of initialization and momentum in deep learning", ICML.
    """
    if nesterov is not None and not momentum:
        raise ValueError("nesterov is a form of momentum, which is 0")
    use_nesterov = momentum > 0 and nesterov is not False
    return _decayed(optax.sgd(learning_rate, momentum or None, nesterov=use_nesterov), weight_decay)


def muon(
    learning_rate: optax.ScalarOrSchedule,
    schedule: Callable[[Any], optax.Schedule] = optax.constant_schedule,
    steps_per_epoch: int = 1,
    dtype: Any = jnp.float32,
    head_rate: float = 0.02,
    bias_rate: float = 0.02,
    whitening_epochs: float | None = None,
    filter_momentum: float = 0.6,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Muon on the convolution kernels, SGD on all other parameters. It wants rates about 0.24.

    A kernel is first scaled to the Frobenius norm sqrt(O), then takes a step along its momentum, orthogonalised. That
    is not optax.contrib.muon, which averages its momentum with a correction for its start, leaves the kernels' norm
    alone and hands the rest to AdamW.

    Args:
      learning_rate: a number or a schedule, of the kernels.
      schedule: peak -> schedule, of the other rates.
      steps_per_epoch: the unit of whitening_epochs.
      dtype: of Muon's products.
      head_rate: in (0, inf), peak rate of dense kernels.
      bias_rate: in (0, inf), peak rate of biases.
      whitening_epochs: in [0, inf), epochs over which airnet's first bias is trained, at a rate that falls to zero;
        none: 3, where there is such a bias.
      filter_momentum: in [0, 1), of Muon, in Nesterov's form.
      momentum: in [0, 1), of SGD.
      nesterov: Nesterov's form of SGD's momentum.
      weight_decay: in [0, inf), the share of head and biases that a step at the peak rate takes away, before momentum.

    Raises:
      InputError: (from `init`) parameters without a convolution kernel, or whitening_epochs without a whitening bias.

    Source: Jordan et al., 2024, "Muon: an optimizer for hidden layers", https://kellerjordan.github.io/posts/muon; its
    use here with norms and SGD, https://github.com/KellerJordan/cifar10-airbench
    """
    early = round((3.0 if whitening_epochs is None else whitening_epochs) * steps_per_epoch)
    falling = linear(bias_rate, early) if early else optax.constant_schedule(0.0)
    rest = {
        "head": (head_rate, schedule(head_rate)),
        "biases": (bias_rate, schedule(bias_rate)),
        "whitening_bias": (bias_rate, falling),
    }

    def sgd(peak: float, rate: optax.Schedule) -> optax.GradientTransformation:
        descent = optax.sgd(rate, momentum=momentum or None, nesterov=nesterov and momentum > 0)
        return optax.chain(optax.add_decayed_weights(weight_decay / peak), descent) if weight_decay else descent

    filters = optax.chain(
        optax.trace(filter_momentum, nesterov=True),
        optax.stateless(lambda updates, params: jax.tree.map(lambda g: _orthogonal_filter(g, dtype), updates)),
        optax.scale_by_learning_rate(learning_rate),
        optax.stateless(lambda updates, params: jax.tree.map(_from_unit_norm, updates, params)),
    )
    groups: dict[Hashable, Any] = {"filters": filters, **{name: sgd(*rates) for name, rates in rest.items()}}
    tx = optax.partition(groups, group)

    def init(params: Any) -> Any:
        there = set(jax.tree.leaves(group(params)))
        if "filters" not in there:
            raise InputError("optimizer muon is for convolution kernels, and the model has none; choose another")
        if whitening_epochs is not None and "whitening_bias" not in there:
            raise InputError("optimizer muon: whitening_epochs has no effect on a model without a whitening layer")
        return tx.init(params)

    return optax.GradientTransformationExtraArgs(init, tx.update)


def group(params: Any) -> Any:
    """The group of each parameter in `muon`: filters (four axes), head (other kernels), biases, whitening_bias."""

    def one(path: Any, p: jax.Array) -> str:
        if path[-1].key == "whitening_bias":
            return "whitening_bias"
        return "filters" if p.ndim == 4 else "head" if p.ndim > 1 else "biases"

    return jax.tree_util.tree_map_with_path(one, params)


def orthogonalised(matrix: jax.Array, steps: int = 3, dtype: Any = jnp.float32) -> jax.Array:
    """The matrix with its singular values drawn to about one: a quintic Newton-Schulz iteration, Muon's.

    Args:
      matrix: float[n, m].
      steps: of the iteration. Three leave the values between 0.1 and 1.2 for most gradients, and that is enough.
      dtype: of the products.

    Returns:
      float[n, m], of the matrix's type.

    Source: Jordan et al., 2024, kellerjordan.github.io/posts/muon.
    """
    a, b, c = QUINTIC
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = (x / (jnp.linalg.norm(x) + 1e-7)).astype(dtype)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.T).astype(matrix.dtype)


def _orthogonal_filter(gradient: jax.Array, dtype: Any) -> jax.Array:
    """[h, w, I, O], orthogonalised as a matrix [h w I, O]."""
    return orthogonalised(gradient.reshape(-1, gradient.shape[-1]), dtype=dtype).reshape(gradient.shape)


def _from_unit_norm(update: jax.Array, filters: jax.Array) -> jax.Array:
    """What takes filters to their step from the norm sqrt(O): a root-mean-square filter of norm one."""
    return update + filters * (jnp.sqrt(filters.shape[-1]).astype(filters.dtype) / jnp.linalg.norm(filters) - 1)


def constant(peak: Any, steps_per_epoch: int = 1, warmup: float = 0.0) -> optax.Schedule:
    """The same rate at every step after the warm-up.

    Args:
      peak: the largest rate.
      steps_per_epoch: the unit of epochs.
      warmup: in [0, inf), epochs of linear warm-up from zero.
    """
    return _warmed(optax.constant_schedule(peak), peak, round(warmup * steps_per_epoch))


def cosine(peak: Any, total_steps: int, steps_per_epoch: int = 1, warmup: float = 0.0) -> optax.Schedule:
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


def linear(peak: Any, total_steps: int, steps_per_epoch: int = 1, warmup: float = 0.0) -> optax.Schedule:
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
    peak: Any, at: Sequence[float], factor: float = 0.1, steps_per_epoch: int = 1, warmup: float = 0.0
) -> optax.Schedule:
    """A staircase: the rate is multiplied by a factor at each of some epochs.

    Args:
      peak: the largest rate.
      at: in (0, inf), the epochs, such as [80,120].
      factor: in (0, inf), what the rate is multiplied by at each.
      steps_per_epoch: the unit of epochs.
      warmup: in [0, inf), epochs of linear warm-up from zero.

    Raises:
      ValueError: no epoch.
    """
    if not len(at):
        raise ValueError("at must name at least one epoch")
    early = round(warmup * steps_per_epoch)
    drops: dict[int, float] = {}
    for epoch in at:  # several may fall into one step
        step = round(epoch * steps_per_epoch) - early
        drops[step] = drops.get(step, 1.0) * factor
    return _warmed(optax.piecewise_constant_schedule(peak, drops), peak, early)


def one_cycle(
    peak: Any, total_steps: int, rise: float = 0.3, start_divisor: float = 25.0, end_divisor: float = 1e4
) -> optax.Schedule:
    """One cycle: up to the peak along half a cosine, then down along another to almost nothing at the last step.

    Args:
      peak: the largest rate.
      total_steps: of the run.
      rise: in (0, 1), the share of the run that goes up.
      start_divisor: in [1, inf), the first rate is peak / start_divisor.
      end_divisor: in [1, inf), the last rate is the first / end_divisor.

    Source: Smith & Topin, 2018, "Super-convergence", https://arxiv.org/abs/1708.07120; the half cosines as in PyTorch.
    """
    up, first = max(round(rise * total_steps), 1), peak / start_divisor
    down = max(total_steps - up, 1)
    return optax.join_schedules(
        [_between(first, peak, up), _between(peak, first / end_divisor, down)],
        [up],
    )


def restarts(peak: Any, period: float, growth: float = 1.0, steps_per_epoch: int = 1) -> optax.Schedule:
    """Half a cosine from the peak to zero, again and again.

    Args:
      peak: the largest rate.
      period: in (0, inf), epochs of the first.
      growth: in [1, inf), how many times longer than the one before each is.
      steps_per_epoch: the unit of epochs.

    Source: Loshchilov & Hutter, 2017, "SGDR", https://arxiv.org/abs/1608.03983
    """
    lengths, starts = [max(round(period * steps_per_epoch), 1)], [0]
    while growth > 1 and starts[-1] < 2**31:
        starts.append(starts[-1] + lengths[-1])
        lengths.append(round(lengths[0] * growth ** len(lengths)))  # not from the last: rounded, it may not grow
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


def _between(first: Any, last: Any, steps: int) -> optax.Schedule:
    """Half a cosine from one rate to another."""
    return lambda step: last + (first - last) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(step / steps, 0, 1)))


def _warmup_steps(warmup: float, steps_per_epoch: int, total_steps: int) -> int:
    early = round(warmup * steps_per_epoch)
    if early > total_steps:
        raise ValueError(f"warmup must be at most the run, {total_steps / steps_per_epoch:g} epochs, got {warmup:g}")
    return early


def _warmed(after: optax.Schedule, peak: Any, steps: int) -> optax.Schedule:
    """A linear warm-up from zero, and then a schedule from its beginning."""
    return optax.join_schedules([optax.linear_schedule(0.0, peak, steps), after], [steps]) if steps else after


OPTIMIZERS: dict[str, Callable] = {f.__name__: f for f in (adam, adamw, sgd, muon)}
SCHEDULES: dict[str, Callable] = {f.__name__: f for f in (cosine, linear, constant, steps, one_cycle, restarts)}
