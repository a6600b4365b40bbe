"""Relatives of softmax that give unlikely classes a probability of zero."""

from __future__ import annotations

import jax
import numpy as np
from jax.typing import ArrayLike

from cnnlab.softmax.tempered import tempered_softmax


def sparsemax(
    logits: ArrayLike,
    *,
    axis: int = -1,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """The distribution nearest to the logits: piecewise linear, with exact zeros.

        p = argmin over distributions of ||p - z||^2 = max(0, z - c),  c such that sum_i p_i = 1

    Args:
      logits, axis, temperature, where: as in `softmax`.

    Returns:
      float32[..., K], in [0, 1], summing to 1 over `axis`; NaN where no class is possible.

    Raises:
      ValueError: temperature is a number and not positive.

    Source: Martins & Astudillo, 2016, "From softmax to sparsemax", https://arxiv.org/abs/1602.02068

    >>> print(sparsemax([1.0, 0.5, -1.0]))
    [0.75 0.25 0.  ]
    """
    return tempered_softmax(logits, 0.0, axis=axis, temperature=temperature, where=where)


def entmax15(
    logits: ArrayLike,
    *,
    axis: int = -1,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Halfway between softmax and sparsemax: smooth, with exact zeros. entmax with alpha = 1.5.

        p_i = max(0, z_i / 2 - c)^2,  c such that sum_i p_i = 1

    Args:
      logits, axis, temperature, where: as in `softmax`.

    Returns:
      float32[..., K], in [0, 1], summing to 1 over `axis`; NaN where no class is possible.

    Raises:
      ValueError: temperature is a number and not positive.

    Source: Peters, Niculae & Martins, 2019, "Sparse sequence-to-sequence models",
    https://arxiv.org/abs/1905.05702

    >>> [f"{p:.4f}" for p in entmax15([1.0, 0.0, -3.0])]
    ['0.8307', '0.1693', '0.0000']
    """
    return tempered_softmax(logits, 0.5, axis=axis, temperature=temperature, where=where)


def entmax(
    logits: ArrayLike,
    alpha: ArrayLike = 1.5,
    *,
    axis: int = -1,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """The family from softmax (alpha = 1) over entmax15 (1.5) to sparsemax (2) and beyond; sparser
    as alpha grows.

        p_i = max(0, (alpha - 1) z_i - c)^(1 / (alpha - 1)),  c such that sum_i p_i = 1

    Args:
      logits, axis, temperature, where: as in `softmax`.
      alpha: in [1, 10]; differentiable, so it may be learned. An array must broadcast against
        float[...], the batch.

    Returns:
      float32[..., K], in [0, 1], summing to 1 over `axis`; NaN where no class is possible.

    Raises:
      ValueError: temperature is a number and not positive, or alpha one outside its range.

    Source: Peters, Niculae & Martins, 2019, https://arxiv.org/abs/1905.05702; the derivative in
    alpha: Correia et al., 2019, "Adaptively sparse transformers", https://arxiv.org/abs/1909.00015

    >>> [f"{p:.4f}" for p in entmax([1.0, 0.0, -3.0], 1.2)]
    ['0.7657', '0.2342', '0.0001']
    """
    if isinstance(alpha, (int, float, np.number)):
        if not 1 <= alpha <= 10:
            raise ValueError(f"alpha must lie in [1, 10], got {alpha}")
        return tempered_softmax(
            logits, 2.0 - float(alpha), axis=axis, temperature=temperature, where=where
        )
    return tempered_softmax(logits, 2 - alpha, axis=axis, temperature=temperature, where=where)
