"""Convolutions that are fast on a CPU, with the max pooling that follows.

XLA has a quick kernel for a convolution of NHWC with HWIO there and for little else. At stride 1
both gradients are written as such a convolution, or all three by Winograd's filtering where there
are channels enough, and a few images at a time go through them, so that what a block makes stays in
the core's cache. Of bfloat16 only products are quick (`products`): what is multiplied is rounded
to it, and the rest computed in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from cnnlab.models import winograd
from cnnlab.models.blocks import BLOCK, as_bits, map_blocks, of_bits, scan_blocks, small_block
from cnnlab.models.pooling import largest, to_winners
from cnnlab.models.products import contract, product, sum_dtype
from cnnlab.models.winograd import Pads
from cnnlab.softmax import as_float
from cnnlab.types import PyTree

# Fewer than these, and XLA's convolution is slow.
FEW_CHANNELS = 4
# From so many on both sides half precision pays, and with 32 on one side Winograd's filtering.
ENOUGH_CHANNELS = 24
NHWC = ("NHWC", "HWIO", "NHWC")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv_pool(x: jax.Array, kernel: jax.Array, pads: Pads, side: int) -> jax.Array:
    """Convolve images at stride 1, then take the maximum of each window of side x side pixels.

    Args:
      x: float[B, H, W, C].
      kernel: float[h, w, C, D].
      pads: zeros before and after the rows, and the columns; negative ones cut.
      side: of the windows; 1 for no pooling.

    Returns:
      float[B, H', W', D], of the type that products are summed in.
    """
    return _forward(x, kernel, pads, side)[0]


def pointwise(x: jax.Array, kernel: jax.Array, strides: Sequence[int]) -> jax.Array:
    """Convolve images float[B, H, W, C] with a kernel float[1, 1, C, D], as one product."""
    rows, columns = strides
    return product(x[:, ::rows, ::columns], kernel[0, 0])


@jax.custom_vjp
def kept(x: jax.Array) -> jax.Array:
    """Copy images float[B, ...], a few at a time."""
    return map_blocks(lax.optimization_barrier, BLOCK, x)


kept.defvjp(lambda x: (kept(x), None), lambda _, cotangent: (kept(cotangent),))


def _forward(x, kernel, pads, side):
    if side == 1:
        return _convolve(x, kernel, pads), (x, kernel, ())
    convolve = _convolver(kernel, pads)
    y, winners = map_blocks(lambda block: largest(convolve(block), side), BLOCK, x)
    return y, (x, kernel, winners)


def _backward(pads, side, residuals, cotangent):
    x, kernel, winners = residuals
    h, w = kernel.shape[:2]
    (top, bottom), (left, right) = pads
    turned = kernel[::-1, ::-1]
    turned_pads = (h - 1 - top, h - 1 - bottom), (w - 1 - left, w - 1 - right)
    if side == 1:
        dx = _convolve(cotangent, turned, turned_pads, axis=3, dtype=x.dtype)
        return dx, _kernel_gradient(x, cotangent, kernel, pads)
    convolve = _convolver(turned, turned_pads, axis=3)
    sides = x.shape[1] + top + bottom - h + 1, x.shape[2] + left + right - w + 1
    sums = _KernelSums(kernel, pads)

    def block(total, x, winners, cotangent):
        dz = to_winners(winners, cotangent, side, sides)
        return _add(total, sums.products(x, dz)), convolve(dz).astype(x.dtype)

    total, dx = scan_blocks(block, sums.zeros, BLOCK, x, winners, cotangent)
    return dx, sums.gradient(total)


conv_pool.defvjp(_forward, _backward)


def _convolver(kernel: jax.Array, pads: Pads, axis: int = 2) -> Callable[[jax.Array], jax.Array]:
    """Choose how to convolve images float[B, H, W, C] with a kernel float[h, w, C, D]; `axis` is
    that of the images' channels, 2 or 3.

    Measured on a core of an AMD Zen 5, in GFLOP/s of the direct convolution: 3x3x32x32 246
    (Winograd 249), 3x3x32x64 229 (300), 3x3x64x64 213 (351), 3x3x256x256 228 (471). On a Zen 4,
    jax 0.10.2 and 0.12.0: 3x3x32x32 96 (124) and 79 (137); 3x3x24x64 89 (114) and 83 (110); in
    bfloat16 3x3x64x64 102 (244) and 93 (258).
    """
    if _is_winograd(kernel):  # products take either side of a matrix; XLA is slow to transpose it
        return functools.partial(winograd.convolve, winograd.transformed(kernel), axis - 2, pads)
    if axis == 3:
        kernel = kernel.swapaxes(2, 3)
    convolve = _two_columns if kernel.shape[2] < FEW_CHANNELS else _direct
    return functools.partial(convolve, kernel, pads)


def _is_winograd(kernel: jax.Array, fewest: int = ENOUGH_CHANNELS) -> bool:
    """Return whether Winograd's filtering covers a kernel and has channels enough, `fewest` on one
    side and 32 on the other. In bfloat16 it is off by 1.7 times as much as the direct convolution;
    its sums could leave float16's range.
    """
    channels = kernel.shape[2:]
    enough = min(channels) >= fewest and max(channels) >= 32
    return kernel.shape[:2] == (3, 3) and enough and kernel.dtype != jnp.float16


def is_faster_in_half(kernel: jax.Array) -> bool:
    """Return whether a convolution with a kernel float[h, w, C, D] is faster in bfloat16.

    Measured as in `_convolver`, on a Zen 4, in milliseconds for 64 images, float32 and bfloat16:
    32x32 pixels, 3 channels to 32, 2.2 and 1.7; 16 to 16, 4.4 and 4.7; 16x16, 32 to 64, 4.0 and
    2.9; 8x8, 64 to 64, 1.8 and 1.2.
    """
    channels = kernel.shape[-2:]
    return channels[0] < FEW_CHANNELS or min(channels) >= ENOUGH_CHANNELS


def _convolve(
    x: jax.Array, kernel: jax.Array, pads: Pads, axis: int = 2, dtype: DTypeLike | None = None
) -> jax.Array:
    """Convolve all images, and convert the result to `dtype`; in blocks, if each makes as much as
    Winograd's filtering does, or must be converted.
    """
    convolve = _convolver(kernel, pads, axis)
    dtype = dtype or sum_dtype(x.dtype)
    if not _is_winograd(kernel) and x.dtype == dtype:
        return convolve(x)
    return map_blocks(lambda block: convolve(block).astype(dtype), small_block(x), x)


def _kernel_gradient(x: jax.Array, dz: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """Compute the gradient by the kernel, float[h, w, C, D], in blocks."""
    sums = _KernelSums(kernel, pads)
    small = sums.is_winograd or _is_crossed(x)
    size = small_block(x) if small else BLOCK
    return sums.gradient(_sum_over_blocks(sums.products, sums.zeros, x, dz, size))


def _sum_over_blocks(
    products: Callable[[jax.Array, jax.Array], PyTree],
    zeros: PyTree,
    x: jax.Array,
    dz: jax.Array,
    size: int,
) -> PyTree:
    """Add `products` of each block of images and cotangents to `zeros`."""

    def block(total, x, dz):
        return _add(total, products(x, dz)), ()

    return scan_blocks(block, zeros, size, x, dz)[0]


def _add(total: PyTree, products: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, products)


@dataclass(frozen=True)
class _KernelSums:
    """Sums over blocks, of which the gradient by a kernel is made."""

    kernel: jax.Array
    pads: Pads

    @property
    def is_winograd(self) -> bool:
        """Measured as in `_convolver`: 64 channels 151 (direct 166), 128 225 (163), 256 263
        (157).
        """
        return _is_winograd(self.kernel, fewest=64) and self.kernel.dtype != jnp.bfloat16

    @property
    def zeros(self) -> PyTree:
        dtype = sum_dtype(self.kernel.dtype)
        if self.is_winograd:
            return [[jnp.zeros(self.kernel.shape[2:], dtype)] * 4] * 4
        return jnp.zeros(self.kernel.shape, dtype)

    def products(self, x: jax.Array, dz: jax.Array) -> PyTree:
        """Compute those of a block: images float[b, H, W, C], cotangent float[b, H', W', D]."""
        products = winograd.kernel_products if self.is_winograd else _direct_products
        return products(x, dz.astype(x.dtype), self.pads)

    def gradient(self, total: PyTree) -> jax.Array:
        """Compute the gradient float[h, w, C, D] of the sums."""
        gradient = winograd.kernel_gradient(total) if self.is_winograd else total
        return gradient.astype(self.kernel.dtype)


def _is_crossed(x: jax.Array) -> bool:
    """Return whether the gradient by the kernel is worth `_crossed_products`.

    Measured as in `_convolver`: 16 channels of 16 103 (as a convolution 72), 24 of 64 145 (122), 32
    of 32 122 (138). Of bfloat16 on a Zen 4: 64 channels of 64 140, 256 of 256 190 (Winograd 160).
    """
    channels = x.shape[-1]
    return channels >= 8 and (channels < 32 or x.dtype == jnp.bfloat16)


def _crossed_products(x: jax.Array, dz: jax.Array, pads: Pads) -> jax.Array:
    """Sum (what the kernel saw) x dz over images and pixels, as one product of x, shifted by each
    column of the kernel, and dz, shifted by each row: [B, H, W, C], [B, H', W', D] -> [h, w, C, D].
    """
    _, height, width, features = dz.shape
    (top, bottom), (left, right) = pads
    h = x.shape[1] + top + bottom - height + 1
    w = x.shape[2] + left + right - width + 1
    x, dz = as_bits(x), as_bits(dz)
    batch, rows, _, channels = x.shape
    none = (0, 0, 0)
    zero = jnp.zeros((), x.dtype)
    shifts = h - 1 - top, h - 1 - bottom, 0
    dz = lax.pad(dz, zero, (none, shifts, none, none))  # negative ones cut
    cotangents = jnp.concatenate([dz[:, h - 1 - row :][:, :rows] for row in range(h)], -1)
    planes = lax.optimization_barrier(x.reshape(-1, channels).T)
    planes = planes.reshape(channels, batch, rows, -1)
    planes = lax.pad(planes, zero, (none, none, none, (left, right, 0)))
    seen = jnp.concatenate([planes[..., column : column + width] for column in range(w)])
    seen, cotangents = lax.optimization_barrier(
        (seen.reshape(w * channels, -1), cotangents.reshape(-1, h * features))
    )
    products = contract(of_bits(seen), of_bits(cotangents))
    return products.reshape(w, channels, h, features).transpose(2, 0, 1, 3)


def _direct(kernel: jax.Array, pads: Pads, x: jax.Array) -> jax.Array:
    """Convolve images so that each place of the kernel makes as many columns as fill its vectors.

    The kernel of the second column is that of the first, moved by one column, and so on.
    """
    x, kernel = as_float(x), as_float(kernel)
    w, channels, features = kernel.shape[1:]
    rows, (left, right) = pads
    columns = _columns(channels, features)
    width = x.shape[2] + left + right - w + 1
    moved = [
        jnp.pad(kernel, ((0, 0), (column, columns - 1 - column), (0, 0), (0, 0)))
        for column in range(columns)
    ]
    y = lax.conv_general_dilated(
        x,
        jnp.concatenate(moved, -1),
        (1, columns),
        (rows, (left, right + -width % columns)),
        dimension_numbers=NHWC,
    )
    return y.reshape(*y.shape[:2], -1, features)[:, :, :width]


def _two_columns(kernel: jax.Array, pads: Pads, x: jax.Array) -> jax.Array:
    """Convolve images of few channels: one product of all that two columns of outputs see.

    The kernel of the second column is that of the first, moved by one column.
    """
    h, w, channels, features = kernel.shape
    (top, bottom), (left, right) = pads
    height, width = x.shape[1] + top + bottom - h + 1, x.shape[2] + left + right - w + 1
    pairs = -(-width // 2)
    pairs_seen = -(-(w + 1) // 2)  # of columns of the image
    x = as_bits(x)
    columns = left, 2 * (pairs + pairs_seen - 1) - x.shape[2] - left, 0
    edges = [(0, 0, 0), (top, bottom, 0), columns, (0, 0, 0)]  # negative ones cut
    x = lax.pad(x, jnp.zeros((), x.dtype), edges)
    x = x.reshape(*x.shape[:2], -1, 2 * channels)
    seen = [
        x[:, row : row + height, pair : pair + pairs]
        for row in range(h)
        for pair in range(pairs_seen)
    ]
    seen = lax.optimization_barrier(jnp.concatenate(seen, -1))
    moved = [
        jnp.pad(kernel, ((0, 0), (column, 2 * pairs_seen - w - column), (0, 0), (0, 0)))
        for column in (0, 1)
    ]
    matrix = jnp.concatenate(moved, -1).reshape(-1, 2 * features)
    y = contract(of_bits(seen), matrix)
    return y.reshape(*y.shape[:2], -1, features)[:, :, :width]


def _columns(channels: int, features: int) -> int:
    """Choose how many columns of outputs `_direct` makes at once.

    Measured as in `_convolver`, with 1, 2, 4 and 8 columns: 3x3x16x16 102, 173, 110, 67; 3x3x8x8
    36, 63, 104, 67; 3x3x24x24 158, 142, 108, 62; 3x3x32x16 192, 173, 112, 60; 3x3x16x2 12, 20, 28,
    32.
    """
    enough = 32 if channels < 32 else 1
    return min(8, max(1, enough // features))


def _direct_products(x: jax.Array, dz: jax.Array, pads: Pads) -> jax.Array:
    """Sum (what the kernel saw) x dz over images and pixels: [B, H, W, C], [B, H', W', D] ->
    [h, w, C, D].
    """
    if _is_crossed(x):
        return _crossed_products(x, dz, pads)
    x, dz = as_float(x), as_float(dz)
    planes = x.transpose(3, 0, 1, 2)
    if len(planes) >= 8:
        # As a convolution: x's channels are its images, the images its channels, and dz is its
        # kernel.
        planes, kernel = lax.optimization_barrier(
            (planes.transpose(0, 2, 3, 1), jnp.stack(list(dz), 2))
        )
        products = lax.conv_general_dilated(planes, kernel, (1, 1), pads, dimension_numbers=NHWC)
        return products.transpose(1, 2, 0, 3)
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
