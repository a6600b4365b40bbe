"""Fenchel-Young losses of the sparse relatives of softmax: they reach exactly 0, with a margin."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from cnnlab.losses import _labels
from cnnlab.losses.entropy import cross_entropy
from cnnlab.softmax import entmax


def sparsemax_loss(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    """The Fenchel-Young loss of sparsemax: a smooth hinge, 0 once z_y leads every other logit by 1.

        L(z, y) = p . z - z_y + (1 - sum_k p_k^2) / 2,  p = sparsemax(z)

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions: sum_k q_k L(z, k).

    Returns:
      float32[...], at least 0; NaN for an id outside [0, K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, or a visible id outside [0, K).

    Source: Martins & Astudillo, 2016, "From softmax to sparsemax", https://arxiv.org/abs/1602.02068

    >>> print(f"{sparsemax_loss([1.0, 0.5, -1.0], 0):.4f}")  # p = 3/4, 1/4, 0
    0.0625
    """
    return entmax_loss(logits, labels, alpha=2.0)


def entmax_loss(logits: ArrayLike, labels: ArrayLike, alpha: float = 1.5) -> jax.Array:
    """The Fenchel-Young loss of entmax: from cross-entropy (alpha = 1) to the sparsemax loss (2)
    and beyond.

        L(z, y) = p . z - z_y + (1 - sum_k p_k^alpha) / (alpha (alpha - 1)),  p = entmax(z, alpha)

    Its gradient is p - e_y; it is 0 once z_y leads every other logit by 1 / (alpha - 1).

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions: sum_k q_k L(z, k).
      alpha: in [1, 10].

    Returns:
      float32[...], at least 0; NaN for an id outside [0, K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, a visible id outside [0, K), or alpha outside
        its range.

    Source: Peters, Niculae & Martins, 2019, https://arxiv.org/abs/1905.05702; Blondel, Martins &
    Niculae, 2020, "Learning with Fenchel-Young losses", https://arxiv.org/abs/1901.02324

    >>> print(f"{entmax_loss([0.0, 0.0], 0):.4f}")  # (1 - 2 (1/2)^1.5) / 0.75
    0.3905
    """
    alpha = _labels.in_range("alpha", alpha, "[1, 10]")
    if isinstance(alpha, float) and alpha == 1:
        return cross_entropy(logits, labels)
    logits, labels = _labels.check(logits, labels)
    # The conjugate moves with the logits, so their maximum can be taken off: no digits are lost to
    # its size.
    z = logits - lax.stop_gradient(jnp.max(logits, -1, keepdims=True))
    conjugate = _fixed_conjugate if isinstance(alpha, float) else _free_conjugate
    if _labels.is_ids(labels):
        z_y = _labels.pick(z, labels)
        return _labels.poison(conjugate(z, alpha) - z_y, labels, z.shape[-1])
    mass = jnp.sum(labels, -1)
    return mass * conjugate(z, alpha) - jnp.sum(labels * _labels.bounded(z, labels), -1)


# The conjugate is max over distributions p of p . z + H(p), H the Tsallis entropy. Where the
# maximum is attained p has no first-order effect (Danskin): only the explicit z and alpha remain in
# its slope, and the terms of the size of z that autodiff would cancel against each other never
# appear.
@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _fixed_conjugate(z: jax.Array, alpha: float) -> jax.Array:
    return _attained(entmax(z, alpha), z, alpha)


@_fixed_conjugate.defjvp
def _(alpha, primals, tangents):
    (z,), (dz,) = primals, tangents
    p = entmax(primals[0], alpha)
    return _attained(p, z, alpha), jnp.sum(p * dz, -1)


@jax.custom_jvp
def _free_conjugate(z: jax.Array, alpha: jax.Array) -> jax.Array:
    return _attained(entmax(z, alpha), z, alpha)


@_free_conjugate.defjvp
def _(primals, tangents):
    z, alpha = primals
    dz, dalpha = tangents
    p = entmax(z, alpha)
    value, by_alpha = jax.jvp(
        lambda alpha: _attained(lax.stop_gradient(p), z, alpha), (alpha,), (dalpha,)
    )
    return value, jnp.sum(p * dz, -1) + by_alpha


def _attained(p: jax.Array, z: jax.Array, alpha: float | jax.Array) -> jax.Array:
    """Compute p . z + sum_k (p_k - p_k^alpha) / (alpha (alpha - 1))."""
    limits = jnp.finfo(z.dtype)
    if isinstance(alpha, float) and alpha in (1.5, 2.0):  # by products
        root = jnp.sqrt(jnp.maximum(p, limits.tiny)) if alpha == 1.5 else p
        entropy = p * (1 - root) / (alpha * (alpha - 1))
        return jnp.sum(p * jnp.maximum(z, limits.min) + entropy, -1)
    log_p = jnp.log(jnp.where(p > 0, p, 1))
    a = alpha - 1
    tempered = jnp.where(a == 0, log_p, jnp.expm1(a * log_p) / jnp.where(a == 0, 1, a))
    entropy = -p * tempered / alpha
    return jnp.sum(jnp.where(p == 0, 0, p * jnp.where(p == 0, 0, z) + entropy), -1)
