"""Convolution and pooling in the formulation that is fast on the platform at hand; dropout; sizes.

`nn.Conv` takes the function that convolves as an argument. `Convolution(formulation)` is that
function, so the layer, its parameters' names and shapes, and so its checkpoints are flax's own in
every formulation:

- native: lax.conv_general_dilated, for GPU and TPU, whose compilers have kernels for it and its
  gradients.
- blocked: for CPU, where XLA has a quick kernel for a convolution of NHWC with HWIO and for nothing
  else nearby. Both gradients are written as such a convolution, and a few images at a time go
  through it with their pooling, so that what a block makes stays in the core's cache. Values and
  gradients are those of native to rounding.

`devices.Layout.formulation` chooses between them by the devices' platform.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# Images in a block: at 8 the first convolution of the seed network makes 1 MB, the second-level
# cache of a core. Measured on the whole step (AMD Zen 5): 4 images give 0.97 of the speed of 8, 16
# images 0.94.
BLOCK = 8
NHWC = ("NHWC", "HWIO", "NHWC")
FORMULATIONS = ("native", "blocked")
Pads = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Convolution:
    """The function for `nn.Conv(..., conv_general_dilated=...)`, with the max pooling that follows
    if there is one.

    The layer's bias is then added to what pooling leaves: the same numbers, as maxima commute with
    adding a constant.

    Attributes:
      formulation: native or blocked. Blocked covers two-dimensional kernels of any size under any
        padding, at stride 1 without dilation or groups; anything else falls back to native. It has
        no forward-mode derivative (jax.jvp).
      max_pool: side and stride of the pooling windows; 1 for none.

    Raises:
      ValueError: another formulation.
    """

    formulation: str = "native"
    max_pool: int = 1

    def __post_init__(self) -> None:
        _check(self.formulation)

    def pooled(self, side: int) -> Convolution:
        """Return the same convolution, followed by max pooling."""
        return Convolution(self.formulation, side)

    def __call__(
        self,
        lhs: jax.Array,
        rhs: jax.Array,
        window_strides: Sequence[int],
        padding: str | Sequence[tuple[int, int]],
        **options: Any,
    ) -> jax.Array:
        """Convolve images float[B, H, W, C] with a kernel float[h, w, C, D], as
        lax.conv_general_dilated does, and apply max pooling: float[B, H', W', D].
        """
        if self.formulation == "native" or not _covered(lhs, window_strides, **options):
            convolved = lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
            return max_pooling(convolved, self.max_pool, self.formulation)
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], (1, 1), padding)
        rows, columns = (tuple(map(int, pad)) for pad in padding)
        size = [
            n + sum(pad) - k + 1
            for n, pad, k in zip(lhs.shape[1:], (rows, columns), rhs.shape, strict=False)
        ]
        if len(lhs) == 0 or min(size) < self.max_pool:  # nothing comes out: no blocks to go through
            convolved = lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
            return max_pooling(convolved, self.max_pool, self.formulation)
        return _conv_pool(lhs, rhs, (rows, columns), self.max_pool)


def max_pooling(x: jax.Array, side: int, formulation: str) -> jax.Array:
    """Take the maximum of each window of side x side pixels. Windows do not overlap; rows and
    columns that fill no window are dropped.

    Of equal pixels the first in the window gets the gradient, in both formulations.

    Args:
      x: float[B, H, W, C].
      side: of the windows; 1 gives x.
      formulation: native or blocked.

    Raises:
      ValueError: another formulation.
    """
    _check(formulation)
    if side == 1:
        return x
    if formulation == "native":
        return nn.max_pool(x, (side, side), (side, side))
    return _max_pool(x, side, x.shape[1:3])


def average_pooling(x: jax.Array, side: int) -> jax.Array:
    """Take the mean of each window of side x side pixels. Windows do not overlap; rows and columns
    that fill no window are dropped.

    x: float[B, H, W, C] -> float[B, H // side, W // side, C].
    """
    return jnp.mean(_windows(x, side), (2, 4))


def _check(formulation: str) -> None:
    if formulation not in FORMULATIONS:
        raise ValueError(f"formulation must be one of {FORMULATIONS}, got {formulation!r}")


def _covered(
    x: jax.Array,
    strides: Sequence[int],
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: object = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    **kinds: object,
) -> bool:
    """Return whether the blocked formulation covers this convolution."""
    # The other arguments are a precision and a type of the result.
    if x.ndim != 4 or any(kind is not None for kind in kinds.values()):
        return False
    spatial = (
        *strides,
        *(lhs_dilation or ()),
        *(rhs_dilation or ()),
        feature_group_count,
        batch_group_count,
    )
    expected = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), NHWC)
    return dimension_numbers in (NHWC, expected) and all(n == 1 for n in spatial)


def _conv(x: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    # XLA's kernel takes four times as long on three channels as on four (jax 0.10)
    missing = max(0, 4 - x.shape[-1])
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing)))
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, missing), (0, 0)))
    return lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=NHWC)


def _blocks(x: jax.Array) -> jax.Array:
    """Split [B, ...] into [blocks, images of a block, ...], padded with zeros."""
    size = min(BLOCK, len(x))
    x = jnp.pad(x, [(0, -len(x) % size)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(-1, size, *x.shape[1:])


def _joined(blocks: jax.Array, batch: int) -> jax.Array:
    return blocks.reshape(-1, *blocks.shape[2:])[:batch]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_pool(x: jax.Array, kernel: jax.Array, pads: Pads, side: int) -> jax.Array:
    return _conv_pool_forward(x, kernel, pads, side)[0]


def _conv_pool_forward(x, kernel, pads, side):
    if side == 1:
        return _conv(x, kernel, pads), (x, kernel, ())
    largest, winners = lax.map(lambda block: _largest(_conv(block, kernel, pads), side), _blocks(x))
    return _joined(largest, len(x)), (x, kernel, winners)


def _conv_pool_backward(pads, side, residuals, cotangent):
    x, kernel, winners = residuals
    convolved = [x.shape[i + 1] + sum(pads[i]) - kernel.shape[i] + 1 for i in (0, 1)]
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    rows, columns = (
        (kernel.shape[i] - 1 - pads[i][0], kernel.shape[i] - 1 - pads[i][1]) for i in (0, 1)
    )

    def block(kernel_gradient, part):
        x, winners, cotangent = part
        dz = cotangent if side == 1 else _to_winners(winners, cotangent, side, convolved)
        gradient = _kernel_gradient(x, dz, pads).astype(kernel_gradient.dtype)
        return kernel_gradient + gradient, _conv(dz, turned, (rows, columns))

    parts = _blocks(x), winners, _blocks(cotangent)
    # Half precision would lose blocks' gradients
    wide = kernel.dtype if kernel.dtype.itemsize >= 4 else jnp.float32
    kernel_gradient, dx = lax.scan(block, jnp.zeros(kernel.shape, wide), parts)
    return _joined(dx, len(x)), kernel_gradient.astype(kernel.dtype)


_conv_pool.defvjp(_conv_pool_forward, _conv_pool_backward)


def _kernel_gradient(x: jax.Array, dz: jax.Array, pads: Pads) -> jax.Array:
    """Sum (what the kernel saw) x dz over images and pixels: [B, H, W, C], [B, H', W', D] ->
    [h, w, C, D].
    """
    planes = x.transpose(3, 0, 1, 2)
    if len(planes) >= 8:
        # As a convolution: x's channels are its images, the images its channels, and dz is its
        # kernel.
        planes, kernel = lax.optimization_barrier(
            (planes.transpose(0, 2, 3, 1), jnp.stack(list(dz), 2))
        )
        return _conv(planes, kernel, pads).transpose(1, 2, 0, 3)
    # Few channels make too few rows for that: one product of all that each place of the kernel saw.
    edges = [(0, 0, 0), (0, 0, 0), *((*pad, 0) for pad in pads)]  # negative ones cut
    planes = lax.pad(lax.optimization_barrier(planes), jnp.zeros((), planes.dtype), edges)
    _, height, width, depth = dz.shape
    h, w = planes.shape[2] - height + 1, planes.shape[3] - width + 1
    seen = jnp.stack(
        [planes[:, :, i : i + height, j : j + width] for i in range(h) for j in range(w)]
    )
    seen = lax.optimization_barrier(seen.reshape(h * w * len(planes), -1))
    return (seen @ dz.reshape(-1, depth)).reshape(h, w, len(planes), depth)


def _windows(x: jax.Array, side: int) -> jax.Array:
    """Split [B, H, W, C] into windows: [B, H // side, side, W // side, side, C]."""
    height, width = x.shape[1] // side, x.shape[2] // side
    x = x[:, : height * side, : width * side]
    return x.reshape(len(x), height, side, width, side, x.shape[3])


def _largest(x: jax.Array, side: int) -> tuple[jax.Array, jax.Array]:
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


def _to_winners(
    winners: jax.Array, cotangent: jax.Array, side: int, size: Sequence[int]
) -> jax.Array:
    """Backpropagate through `_largest`: the cotangent at the winners, zero elsewhere; [b, h, w, C]
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
    return _largest(x, side)[0]


_max_pool.defvjp(
    lambda x, side, size: _largest(x, side),
    lambda side, size, winners, cotangent: (_to_winners(winners, cotangent, side, size),),
)


def conv_output_size(size: int, kernel: int, padding: int = 0, stride: int = 1) -> int:
    """Compute the side of a convolution's or pooling's output: floor((W - K + 2 P) / S) + 1.

    Args:
      size: W, side of the input in pixels.
      kernel: K, side of the kernel.
      padding: P, pixels added on each side.
      stride: S, pixels from one output to the next.

    Returns:
      The side of the output.

    Raises:
      ValueError: a size that is not positive, or a kernel larger than the padded input.

    Source: Dumoulin & Visin, 2016, "A guide to convolution arithmetic for deep learning", arXiv
    1603.07285.

    >>> conv_output_size(32, kernel=3, padding=1), conv_output_size(32, kernel=2, stride=2)
    (32, 16)
    """
    if min(size, kernel, stride) < 1 or padding < 0:
        raise ValueError(
            f"sizes must be positive, padding not negative: got W={size} K={kernel} P={padding} "
            f"S={stride}"
        )
    if kernel > size + 2 * padding:
        raise ValueError(
            f"a kernel of {kernel} does not fit into {size} pixels with padding {padding}"
        )
    return (size - kernel + 2 * padding) // stride + 1
