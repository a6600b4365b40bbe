"""Where in the image what is seen: mirroring, shifting, scaling."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from cnnlab.augment.boxes import Boxes, check_bounds, check_size, random_boxes
from cnnlab.augment.pipeline import Batch
from cnnlab.errors import unknown

PADDINGS = {"zeros": "constant", "reflect": "reflect"}


def flip(keys: jax.Array, batch: Batch) -> Batch:
    """Mirror each image left-right with probability 1/2."""
    return batch | {"image": _mirrored(batch["image"], jax.vmap(jax.random.bernoulli)(keys))}


def alternating_flip(keys: jax.Array, batch: Batch, run_key: jax.Array) -> Batch:
    """Mirror each image left-right in every other epoch; a coin decides for its first.

    No two epochs in a row show the same half of what there is to see.

    Args:
      run_key: of the coins, by the image's index.

    Source: Jordan, 2024, https://arxiv.org/abs/2404.00498
    """
    del keys
    coins = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(run_key, i)))(batch["index"])
    return batch | {"image": _mirrored(batch["image"], coins ^ (batch["epoch"] % 2 == 1))}


def crop(keys: jax.Array, batch: Batch, padding: int = 4, mode: str = "zeros") -> Batch:
    """Shift each image by up to so many pixels in each direction.

    Args:
      padding: in [1, inf), pixels.
      mode: zeros (the mean, once normalised) or reflect (mirrored at the edge pixels, themselves
        not repeated), what moves in.

    Raises:
      ValueError: padding as large as the image, or another mode.

    Source: Lee et al., 2015, "Deeply-supervised nets", https://arxiv.org/abs/1409.5185
    """
    images = batch["image"]
    _, height, width, channels = images.shape
    check_size("padding", padding, images)
    padded = pad_edges(images, padding, mode)
    corners = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * padding + 1))(keys)

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        return lax.dynamic_slice(
            image, (corner[0], corner[1], jnp.zeros_like(corner[0])), (height, width, channels)
        )

    return batch | {"image": jax.vmap(cut)(padded, corners)}


def random_resized_crop(
    keys: jax.Array,
    batch: Batch,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
) -> Batch:
    """Cut out a box of random size, shape and place, and scale it to the size of the image.

    Its share of the area is uniform, its width over its height log-uniform. Where none of ten draws
    fits into the image, the box is the largest in the middle whose shape is within `ratio`.
    Interpolation is bilinear, between pixels of the box. A box is never larger than the result, so
    there is nothing for an antialiasing filter to remove.

    Args:
      scale: in (0, 1], the least and the greatest share of the area.
      ratio: in (0, inf), the least and the greatest width over height.

    Raises:
      ValueError: scale or ratio that is not two numbers in ascending order.

    Source: Szegedy et al., 2015, "Going deeper with convolutions", https://arxiv.org/abs/1409.4842
    """
    check_bounds("scale", scale)
    check_bounds("ratio", ratio)
    images = batch["image"]
    height, width = images.shape[1:3]
    shape = min(max(width / height, ratio[0]), ratio[1])
    fallback = min(height, round(width / shape)), min(width, round(height * shape))
    boxes = random_boxes(keys, (height, width), scale, ratio, fallback)
    return batch | {"image": resized(images, boxes)}


def resized(images: jax.Array, boxes: Boxes) -> jax.Array:
    """Scale a box of each image, float[B, H, W, C], to the size of the image: bilinear, pixels as
    squares around their centres, the edge pixels of the box continued outwards.
    """
    rows = _interpolation(boxes.top, boxes.height, images.shape[1], images.dtype)
    columns = _interpolation(boxes.left, boxes.width, images.shape[2], images.dtype)
    tall = jnp.einsum("bih,bhwc->biwc", rows, images, precision=lax.Precision.HIGHEST)
    return jnp.einsum("bjw,biwc->bijc", columns, tall, precision=lax.Precision.HIGHEST)


def _interpolation(first: jax.Array, count: jax.Array, length: int, dtype: DTypeLike) -> jax.Array:
    """Compute the weights of the old pixels in the new ones along a side: float[B, new, old]."""
    old = jnp.arange(length, dtype=jnp.float32)
    first = first[:, None].astype(jnp.float32)
    count = count[:, None].astype(jnp.float32)
    centres = (old[None, :] + 0.5) * count / length - 0.5
    places = first + jnp.clip(centres, 0, count - 1)
    distance = jnp.abs(places[:, :, None] - old[None, None, :])
    return jnp.maximum(1 - distance, 0).astype(dtype)


def _mirrored(images: jax.Array, chosen: jax.Array) -> jax.Array:
    return jnp.where(chosen[:, None, None, None], images[:, :, ::-1], images)


def pad_edges(images: jax.Array, padding: int, mode: str) -> jax.Array:
    if mode not in PADDINGS:
        raise unknown("mode", str(mode), PADDINGS)
    edges = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return jnp.pad(images, edges, mode=PADDINGS[mode])
