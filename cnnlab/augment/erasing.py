"""Parts of an image that are removed."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cnnlab.augment.boxes import check_size
from cnnlab.augment.pipeline import Batch


def cutout(keys: jax.Array, batch: Batch, size: int = 8) -> Batch:
    """Set a square to zero (the mean, once normalised); its centre lies anywhere in the image.

    Args:
      size: in [1, inf), side of the square in pixels.

    Raises:
      ValueError: size as large as the image.

    Source: DeVries & Taylor, 2017, https://arxiv.org/abs/1708.04552
    """
    images = batch["image"]
    _, height, width, _ = images.shape
    check_size("size", size, images)

    def cut(key: jax.Array, image: jax.Array) -> jax.Array:
        row_key, column_key = jax.random.split(key)
        top = jax.random.randint(row_key, (), 0, height) - size // 2
        left = jax.random.randint(column_key, (), 0, width) - size // 2
        row = jnp.arange(height)[:, None]
        column = jnp.arange(width)[None, :]
        hole = (row >= top) & (row < top + size) & (column >= left) & (column < left + size)
        return jnp.where(hole[..., None], jnp.zeros_like(image), image)

    return batch | {"image": jax.vmap(cut)(keys, images)}
