"""Schedules and Optax chains."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

QUINTIC = (3.4445, -4.7750, 2.0315)  # of Muon's Newton-Schulz iteration: steepest at zero, not convergent at one


def schedule(name: str, peak: float, total_steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """The learning rate of each step: linear from 0 to `peak` over the warm-up, then constant, cosine or linear to 0.

    Args:
      name: cosine, linear (with a warm-up: a triangle) or constant.
      peak: the largest rate.
      total_steps: steps in all, warm-up included; at that step cosine and linear reach 0.
      warmup_steps: steps of warm-up.

    Source: cosine, Loshchilov & Hutter, 2017, arXiv 1608.03983.
    """
    rest = max(total_steps - warmup_steps, 1)
    if name == "constant":
        after = optax.constant_schedule(peak)
    elif name == "linear":
        after = optax.linear_schedule(peak, 0.0, rest)
    else:
        after = optax.cosine_decay_schedule(peak, rest)
    if not warmup_steps:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), after], [warmup_steps])


def _kernels(params) -> object:
    """Which parameters weight decay touches: kernels, not biases or normalisation."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def optimizer(
    name: str,
    rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """An Optax chain: clip the gradient's global norm, decay, then adam, adamw or sgd.

    Args:
      name: adam, adamw or sgd.
      rate: learning rate or schedule.
      momentum, nesterov: of sgd.
      weight_decay: on kernels; decoupled for adamw (Loshchilov & Hutter, 2019), added to the gradient otherwise.
      clip_norm: None for no clipping.
    """
    chain = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    if weight_decay and name != "adamw":
        chain.append(optax.add_decayed_weights(weight_decay, mask=_kernels))
    if name == "adam":
        chain.append(optax.adam(rate))
    elif name == "adamw":
        chain.append(optax.adamw(rate, weight_decay=weight_decay, mask=_kernels))
    else:
        chain.append(optax.sgd(rate, momentum=momentum or None, nesterov=nesterov and momentum > 0))
    return optax.chain(*chain)


def muon(
    rates: Mapping[str, tuple[float, optax.Schedule]],
    *,
    filter_momentum: float = 0.6,
    momentum: float = 0.85,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    dtype: Any = jnp.float32,
) -> optax.GradientTransformation:
    """Muon on the filters, SGD on all other parameters, which `group` sorts.

    A filter is first scaled to the Frobenius norm sqrt(O), then takes a step along its momentum, orthogonalised. That
    is not optax.contrib.muon, which averages its momentum with a correction for its start, leaves the filters' norm
    alone and hands the rest to AdamW.

    Args:
      rates: for each of filters, head, biases and whitening_bias: the peak, and the learning rate of each step.
      filter_momentum: of Muon, in Nesterov's form.
      momentum, nesterov: of SGD.
      weight_decay: the share of head and biases that a step at the peak rate takes away, before momentum.
      clip_norm: of the gradient's global norm; None for no clipping.
      dtype: of Muon's products.

    Source: Jordan et al., 2024, "Muon: an optimizer for hidden layers", kellerjordan.github.io/posts/muon; its use here
    with norms and SGD, github.com/KellerJordan/cifar10-airbench.
    """

    def sgd(name: str) -> optax.GradientTransformation:
        peak, rate = rates[name]
        descent = optax.sgd(rate, momentum=momentum or None, nesterov=nesterov and momentum > 0)
        return optax.chain(optax.add_decayed_weights(weight_decay / peak), descent) if weight_decay else descent

    filters = optax.chain(
        optax.trace(filter_momentum, nesterov=True),
        optax.stateless(lambda updates, params: jax.tree.map(lambda g: _orthogonal_filter(g, dtype), updates)),
        optax.scale_by_learning_rate(rates["filters"][1]),
        optax.stateless(lambda updates, params: jax.tree.map(_from_unit_norm, updates, params)),
    )
    groups: dict[Hashable, Any] = {name: filters if name == "filters" else sgd(name) for name in rates}
    steps = optax.partition(groups, group)
    return steps if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), steps)


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
