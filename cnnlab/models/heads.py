"""What networks end in, by name."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike

from cnnlab.models.products import Dense, product
from cnnlab.softmax import as_float


class CosineHead(nn.Module):
    """Logits that are cosines, in [-1, 1]: of the angle between the features and each class's
    weight vector.

    Losses that carry the mark `head = "cosine"` are made for it; they bring the scale.
    """

    num_classes: int = 10
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute the cosines: float[B, D] -> float32[B, K]; features of length 0 give 0."""
        kernel = self.param(
            "kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.num_classes), jnp.float32
        )

        def unit(v, axis):
            return v * jax.lax.rsqrt(jnp.maximum(jnp.sum(v**2, axis, keepdims=True), 1e-12))

        features, weights = promote_dtype(unit(as_float(x), -1), unit(kernel, 0), dtype=self.dtype)
        return as_float(product(features, weights))


HEADS: dict[str, Callable[..., nn.Module]] = {"linear": Dense, "cosine": CosineHead}
