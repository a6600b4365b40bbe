"""Muon: momentum whose update of each filter bank is made orthogonal."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from cnnlab.errors import InputError
from cnnlab.optim.optimizers import is_zero
from cnnlab.optim.schedules import linear
from cnnlab.types import PyTree

# Of Muon's Newton-Schulz iteration: steepest at zero, not convergent at one.
QUINTIC = (3.4445, -4.7750, 2.0315)


def muon(  # noqa: PLR0913 (hyperparameters)
    learning_rate: optax.ScalarOrSchedule,
    schedule: Callable[[float], optax.Schedule] = optax.constant_schedule,
    steps_per_epoch: int = 1,
    dtype: DTypeLike = jnp.float32,
    head_rate: float = 0.02,
    bias_rate: float = 0.02,
    whitening_epochs: float | None = None,
    filter_momentum: float = 0.6,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Muon on the convolution kernels, SGD on all other parameters. It wants rates about 0.24.

    A kernel is first scaled to the Frobenius norm sqrt(O), then takes a step along its momentum,
    orthogonalised. That is not optax.contrib.muon, which averages its momentum with a correction
    for its start, leaves the kernels' norm alone and hands the rest to AdamW.

    Args:
      learning_rate: a number or a schedule, of the kernels.
      schedule: peak -> schedule, of the other rates.
      steps_per_epoch: the unit of whitening_epochs.
      dtype: of Muon's products.
      head_rate: in (0, inf), peak rate of dense kernels.
      bias_rate: in (0, inf), peak rate of biases.
      whitening_epochs: in [0, inf), epochs over which airnet's first bias is trained, at a rate
        that falls to zero; none: 3, where there is such a bias.
      filter_momentum: in [0, 1), of Muon, in Nesterov's form.
      momentum: in [0, 1), of SGD.
      nesterov: Nesterov's form of SGD's momentum.
      weight_decay: in [0, inf), the share of head and biases that a step at the peak rate takes
        away, before momentum.

    Raises:
      InputError: (from `init`) parameters without a convolution kernel, or whitening_epochs without
        a whitening bias.

    Source: Jordan et al., 2024, "Muon: an optimizer for hidden layers",
    https://kellerjordan.github.io/posts/muon; its use here with norms and SGD,
    https://github.com/KellerJordan/cifar10-airbench
    """
    early = round((3.0 if whitening_epochs is None else whitening_epochs) * steps_per_epoch)
    falling = linear(bias_rate, early) if early else optax.constant_schedule(0.0)
    rest = {
        "head": (head_rate, schedule(head_rate)),
        "biases": (bias_rate, schedule(bias_rate)),
        "whitening_bias": (bias_rate, falling),
    }

    def sgd(peak: float, rate: optax.Schedule) -> optax.GradientTransformation:
        without = is_zero(momentum)
        descent = optax.sgd(rate, None if without else momentum, nesterov and not without)
        if is_zero(weight_decay):
            return descent
        return optax.chain(optax.add_decayed_weights(weight_decay / peak), descent)

    filters = optax.chain(
        optax.trace(filter_momentum, nesterov=True),
        optax.stateless(
            lambda updates, params: jax.tree.map(lambda g: _orthogonal_filter(g, dtype), updates)
        ),
        optax.scale_by_learning_rate(learning_rate),
        optax.stateless(lambda updates, params: jax.tree.map(_from_unit_norm, updates, params)),
    )
    groups: dict[Hashable, optax.GradientTransformation] = {
        "filters": filters,
        **{name: sgd(*rates) for name, rates in rest.items()},
    }
    tx = optax.partition(groups, group)

    def init(params: optax.Params) -> optax.OptState:
        there = set(jax.tree.leaves(group(params)))
        if "filters" not in there:
            raise InputError(
                "optimizer muon is for convolution kernels, and the model has none; choose another"
            )
        if whitening_epochs is not None and "whitening_bias" not in there:
            raise InputError(
                "optimizer muon: whitening_epochs has no effect on a model without a whitening "
                "layer"
            )
        return tx.init(params)

    return optax.GradientTransformationExtraArgs(init, tx.update)


def group(params: PyTree) -> PyTree:
    """Assign each parameter to its group in `muon`: filters (four axes), head (other kernels),
    biases, whitening_bias.
    """

    def group_of(path: jax.tree_util.KeyPath, p: jax.Array) -> str:
        if path[-1].key == "whitening_bias":
            return "whitening_bias"
        return "filters" if p.ndim == 4 else "head" if p.ndim > 1 else "biases"

    return jax.tree_util.tree_map_with_path(group_of, params)


def orthogonalised(matrix: jax.Array, steps: int = 3, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Orthogonalise a matrix: bring its singular values to about one by Muon's quintic
    Newton-Schulz iteration.

    Args:
      matrix: float[n, m].
      steps: of the iteration. Three leave the values between 0.1 and 1.2 for most gradients, and
        that is enough.
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


def _orthogonal_filter(gradient: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Orthogonalise a gradient [h, w, I, O] as a matrix [h w I, O]."""
    return orthogonalised(gradient.reshape(-1, gradient.shape[-1]), dtype=dtype).reshape(
        gradient.shape
    )


def _from_unit_norm(update: jax.Array, filters: jax.Array) -> jax.Array:
    """Add to an update the change that scales the filters to the norm sqrt(O), from where they
    step; the root mean square of the filters' norms is one there.
    """
    return update + filters * (
        jnp.sqrt(filters.shape[-1]).astype(filters.dtype) / jnp.linalg.norm(filters) - 1
    )
