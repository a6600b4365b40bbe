"""Parts of an image that are removed."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cnnlab.augment.boxes import check_bounds, check_size, inside, random_boxes
from cnnlab.augment.pipeline import Batch
from cnnlab.errors import unknown

FILLS = ("zeros", "noise")


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


def random_erasing(
    keys: jax.Array,
    batch: Batch,
    p: float = 0.5,
    scale: Sequence[float] = (0.02, 0.4),
    ratio: Sequence[float] = (0.3, 1 / 0.3),
    fill: str = "zeros",
) -> Batch:
    """Set a box of random size, shape and place to zero (the mean, once normalised) or to noise.

    Its share of the area is uniform, its width over its height log-uniform. An image stays as it
    is where none of ten draws fits.

    Args:
      p: in (0, 1], share of the images that lose a box.
      scale: in (0, 1], the least and the greatest share of the area.
      ratio: in (0, inf), the least and the greatest width over height.
      fill: zeros, or noise (normal, of the deviation of the data set's pixels).

    Raises:
      ValueError: scale or ratio that is not two numbers in ascending order, or another fill.

    Source: Zhong et al., 2017, "Random erasing data augmentation", https://arxiv.org/abs/1708.04896
    """
    check_bounds("scale", scale)
    check_bounds("ratio", ratio)
    if fill not in FILLS:
        raise unknown("fill", str(fill), FILLS)
    images = batch["image"]
    coin_keys, box_keys, noise_keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys).T
    chosen = jax.vmap(lambda key: jax.random.bernoulli(key, p))(coin_keys)
    height, width, channels = images.shape[1:]
    boxes = random_boxes(box_keys, (height, width), scale, ratio, fallback=(0, 0))
    hole = inside(boxes, (height, width)) & chosen[:, None, None]
    filling = jnp.zeros_like(images)
    if fill == "noise":
        shape = (height, width, channels)
        filling = jax.vmap(lambda key: jax.random.normal(key, shape, images.dtype))(noise_keys)
    return batch | {"image": jnp.where(hole[..., None], filling, images)}
