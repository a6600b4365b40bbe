"""Pooling over square windows."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# deterministic: without select-and-scatter, of which XLA has only an unordered sum on GPUs.
FORMULATIONS = ("native", "blocked", "deterministic")


def max_pooling(
    x: jax.Array, side: int, formulation: str, stride: int | None = None, padding: int = 0
) -> jax.Array:
    """Take the maximum of each window of side x side pixels. Rows and columns that fill no window
    are dropped.

    Of equal pixels the first in the window gets the gradient, in all formulations.

    Args:
      x: float[B, H, W, C].
      side: of the windows; 1 gives x.
      formulation: native, blocked or deterministic.
      stride: of the windows; None: side, so that they do not overlap.
      padding: pixels of -inf at each border.

    Raises:
      ValueError: another formulation.
    """
    check(formulation)
    if side == 1:
        return x
    overlapping = stride not in (None, side) or padding > 0
    if overlapping and formulation == "deterministic":
        return _largest_of_slices(x, side, stride or side, padding)
    if overlapping or formulation == "native":
        strides = (stride or side,) * 2
        pads = ((padding, padding),) * 2
        # flax takes pairs too; its default makes pyright expect a str
        return nn.max_pool(x, (side, side), strides, pads)  # pyright: ignore[reportArgumentType]
    return _max_pool(x, side, x.shape[1:3])


def _largest_of_slices(x: jax.Array, side: int, stride: int, padding: int) -> jax.Array:
    """Take the maximum over windows that may overlap, pixel by pixel of the windows."""
    border = (padding, padding)
    x = jnp.pad(x, ((0, 0), border, border, (0, 0)), constant_values=-jnp.inf)
    height, width = (((size - side) // stride + 1) * stride for size in x.shape[1:3])
    largest = jnp.asarray(-jnp.inf, x.dtype)
    for row in range(side):
        for column in range(side):
            pixels = x[:, row : row + height : stride, column : column + width : stride]
            larger = (pixels > largest) | jnp.isnan(pixels)
            largest = jnp.where(larger, pixels, largest)
    return largest


def average_pooling(x: jax.Array, side: int) -> jax.Array:
    """Take the mean of each window of side x side pixels. Windows do not overlap; rows and columns
    that fill no window are dropped.

    x: float[B, H, W, C] -> float[B, H // side, W // side, C].
    """
    return jnp.mean(_windows(x, side), (2, 4))


def check(formulation: str) -> None:
    if formulation not in FORMULATIONS:
        raise ValueError(f"formulation must be one of {FORMULATIONS}, got {formulation!r}")


def _windows(x: jax.Array, side: int) -> jax.Array:
    """Split [B, H, W, C] into windows: [B, H // side, side, W // side, side, C]."""
    height, width = x.shape[1] // side, x.shape[2] // side
    x = x[:, : height * side, : width * side]
    return x.reshape(len(x), height, side, width, side, x.shape[3])


def largest(x: jax.Array, side: int) -> tuple[jax.Array, jax.Array]:
    """Find the largest pixel of each window and its index in the window, counted by rows; of equal
    pixels, the first.
    """
    windows = _windows(x, side)
    code = jnp.uint8 if side <= 16 else jnp.int32
    largest = windows[:, :, 0, :, 0]
    winners = code(0)
    for pixel in range(1, side * side):
        candidate = windows[:, :, pixel // side, :, pixel % side]
        winners = jnp.where(candidate > largest, code(pixel), winners)
        largest = jnp.maximum(largest, candidate)
    return largest, winners


def to_winners(
    winners: jax.Array, cotangent: jax.Array, side: int, size: Sequence[int]
) -> jax.Array:
    """Backpropagate through `largest`: the cotangent at the winners, zero elsewhere; [b, h, w, C]
    -> [b, *size, C].
    """
    batch, height, width, channels = cotangent.shape
    pixel = jnp.arange(side * side, dtype=winners.dtype).reshape(1, 1, side, 1, side, 1)
    spread = jnp.where(winners[:, :, None, :, None] == pixel, cotangent[:, :, None, :, None], 0)
    # Behind a barrier: XLA would fuse the reshape in and lose its inner loop over channels.
    spread = lax.optimization_barrier(spread).reshape(batch, height * side, width * side, channels)
    return jnp.pad(
        spread, ((0, 0), (0, size[0] - height * side), (0, size[1] - width * side), (0, 0))
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_pool(x: jax.Array, side: int, size: tuple[int, int]) -> jax.Array:
    del size
    return largest(x, side)[0]


_max_pool.defvjp(
    lambda x, side, size: largest(x, side),
    lambda side, size, winners, cotangent: (to_winners(winners, cotangent, side, size),),
)
