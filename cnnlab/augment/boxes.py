"""Sizes and boxes that operations of several files draw or check."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

TRIES = 10


class Boxes(NamedTuple):
    """Boxes within images, in pixels: int32[B] each, or int32[] of a single box.

    Attributes:
      top, left: of the first pixel.
      height, width: at least 1 where a draw fits.
    """

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


def random_boxes(
    keys: jax.Array,
    shape: tuple[int, int],
    scale: Sequence[float],
    ratio: Sequence[float],
    fallback: tuple[int, int],
) -> Boxes:
    """Draw a box for each key: its share of the area is uniform, its width over its height is
    log-uniform, its place is uniform.

    The first of ten draws that fits into the image counts. They are drawn at once.

    Args:
      keys: key[B].
      shape: (H, W) of the images.
      scale: the least and the greatest share of the area.
      ratio: the least and the greatest width over height.
      fallback: (height, width) of a box in the middle for keys whose draws do not fit.
    """

    def draw(key: jax.Array) -> Boxes:
        # All that is random at once: each call of jax.random takes a second to compile.
        uniform = jax.random.uniform(key, (2 * TRIES + 2,), jnp.float32)
        area = shape[0] * shape[1] * (scale[0] + (scale[1] - scale[0]) * uniform[:TRIES])
        low, high = (math.log(bound) for bound in ratio)
        aspect = jnp.exp(low + (high - low) * uniform[TRIES : 2 * TRIES])
        heights = jnp.round(jnp.sqrt(area / aspect))
        widths = jnp.round(jnp.sqrt(area * aspect))
        fits = (heights >= 1) & (heights <= shape[0]) & (widths >= 1) & (widths <= shape[1])
        first = jnp.argmax(fits)
        height = jnp.where(fits[first], heights[first], fallback[0])
        width = jnp.where(fits[first], widths[first], fallback[1])
        top_share = jnp.where(fits[first], uniform[-2], 0.5)
        left_share = jnp.where(fits[first], uniform[-1], 0.5)
        box = Boxes(
            top=jnp.floor(top_share * (shape[0] - height + 1)),
            left=jnp.floor(left_share * (shape[1] - width + 1)),
            height=height,
            width=width,
        )
        return jax.tree.map(lambda value: value.astype(jnp.int32), box)

    return jax.vmap(draw)(keys)


def inside(boxes: Boxes, shape: tuple[int, int]) -> jax.Array:
    """Mark the pixels of images of (H, W) that lie in their boxes: bool[B, H, W]."""
    row = jnp.arange(shape[0])[None, :]
    column = jnp.arange(shape[1])[None, :]
    top, left, height, width = (values[:, None] for values in boxes)
    rows = (row >= top) & (row < top + height)
    columns = (column >= left) & (column < left + width)
    return rows[:, :, None] & columns[:, None, :]


def check_size(name: str, pixels: int, images: jax.Array) -> None:
    """Raise ValueError for a size in pixels that is not smaller than the images."""
    side = min(images.shape[1:3])
    if pixels >= side:
        raise ValueError(f"{name} must be smaller than the image, {side} pixels, got {pixels}")


def check_bounds(name: str, bounds: Sequence[float]) -> None:
    """Raise ValueError for what is not the least and the greatest value of a range."""
    if len(bounds) != 2 or bounds[0] > bounds[1]:
        raise ValueError(
            f"{name} must be the least and the greatest value, got {[float(b) for b in bounds]}"
        )
