"""Convolutions that are fast on a CPU, with the max pooling that follows.

XLA has a quick kernel for a convolution of NHWC with HWIO there and for little else. At stride 1
both gradients are written as such a convolution, or all three by Winograd's filtering where there
are channels enough, and a few images at a time go through them, so that what a block makes stays in
the core's cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnnlab.models import winograd
from cnnlab.models.pooling import largest, to_winners
from cnnlab.models.winograd import Pads
from cnnlab.types import PyTree

# Images in a block: at 8 the first convolution of the seed network makes 1 MB, the second-level
# cache of a core. Measured on the whole step (AMD Zen 5): 4 images give 0.97 of the speed of 8, 16
# images 0.94.
BLOCK = 8
# Pixels of a block where each makes several times as many values.
PIXELS = 2048
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
      float[B, H', W', D].
    """
    return _forward(x, kernel, pads, side)[0]


def pointwise(x: jax.Array, kernel: jax.Array, strides: Sequence[int]) -> jax.Array:
    """Convolve images float[B, H, W, C] with a kernel float[1, 1, C, D], as one product."""
    rows, columns = strides
    return jnp.tensordot(x[:, ::rows, ::columns], kernel[0, 0], 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def strided(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads) -> jax.Array:
    """Convolve images float[B, H, W, C] with a kernel float[h, w, C, D], as lax does.

    Only the gradient by the kernel is written otherwise: as a product for each of its places. On a
    core of an AMD Zen 5 it takes 9.4 ms in place of 16.6 for 32 images, 32x32x64 to 16x16x128.
    """
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NHWC)


def _strided_forward(x, kernel, strides, pads):
    return strided(x, kernel, strides, pads), (x, kernel)


def _strided_backward(strides, pads, residuals, cotangent):
    x, kernel = residuals

    def convolve(x):
        return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NHWC)

    def products(x, dy):
        return _strided_products(x, dy, kernel.shape, strides, pads)

    (dx,) = jax.linear_transpose(convolve, x)(cotangent)
    zeros = jnp.zeros(kernel.shape, _accumulated_in(kernel))
    total = _sum_over_blocks(products, zeros, x, cotangent, BLOCK)
    return dx, total.astype(kernel.dtype)


strided.defvjp(_strided_forward, _strided_backward)


def kept(x: jax.Array) -> jax.Array:
    """Copy images float[B, ...], a few at a time."""
    return _joined(lax.map(lax.optimization_barrier, _blocks(x, BLOCK)), len(x))


def _forward(x, kernel, pads, side):
    if side == 1:
        return _convolve(x, kernel, pads), (x, kernel, ())
    convolve = _convolver(kernel, pads)
    y, winners = lax.map(lambda block: largest(convolve(block), side), _blocks(x, BLOCK))
    return _joined(y, len(x)), (x, kernel, winners)


def _backward(pads, side, residuals, cotangent):
    x, kernel, winners = residuals
    h, w = kernel.shape[:2]
    (top, bottom), (left, right) = pads
    turned = kernel[::-1, ::-1]
    turned_pads = (h - 1 - top, h - 1 - bottom), (w - 1 - left, w - 1 - right)
    if side == 1:
        dx = _convolve(cotangent, turned, turned_pads, axis=3)
        return dx, _kernel_gradient(x, cotangent, kernel, pads)
    convolve = _convolver(turned, turned_pads, axis=3)
    sides = x.shape[1] + top + bottom - h + 1, x.shape[2] + left + right - w + 1
    sums = _KernelSums(kernel, pads)

    def block(total, part):
        x, winners, cotangent = part
        dz = to_winners(winners, cotangent, side, sides)
        return _add(total, sums.products(x, dz)), convolve(dz)

    parts = _blocks(x, BLOCK), winners, _blocks(cotangent, BLOCK)
    total, dx = lax.scan(block, sums.zeros, parts)
    return _joined(dx, len(x)), sums.gradient(total)


conv_pool.defvjp(_forward, _backward)


def _blocks(x: jax.Array, size: int) -> jax.Array:
    """Split [B, ...] into [blocks, images of a block, ...], padded with zeros."""
    size = min(size, len(x))
    x = jnp.pad(x, [(0, -len(x) % size)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(-1, size, *x.shape[1:])


def _joined(blocks: jax.Array, batch: int) -> jax.Array:
    return blocks.reshape(-1, *blocks.shape[2:])[:batch]


def _convolver(kernel: jax.Array, pads: Pads, axis: int = 2) -> Callable[[jax.Array], jax.Array]:
    """Choose how to convolve images float[B, H, W, C] with a kernel float[h, w, C, D]; `axis` is
    that of the images' channels, 2 or 3.

    Measured on a core of an AMD Zen 5, in GFLOP/s of the direct convolution: 3x3x32x32 246
    (Winograd 249), 3x3x32x64 229 (300), 3x3x64x64 213 (351), 3x3x256x256 228 (471).
    """
    if _is_winograd(kernel):  # products take either side of a matrix; XLA is slow to transpose it
        return functools.partial(winograd.convolve, winograd.transformed(kernel), axis - 2, pads)
    if axis == 3:
        kernel = kernel.swapaxes(2, 3)
    return functools.partial(_direct, kernel, pads)


def _is_winograd(kernel: jax.Array, fewest: int = 32) -> bool:
    """Return whether Winograd's filtering covers a kernel and has channels enough, `fewest` on one
    side and 64 on the other. Half precision would lose digits.
    """
    channels = kernel.shape[2:]
    enough = min(channels) >= fewest and max(channels) >= 64
    return kernel.shape[:2] == (3, 3) and enough and kernel.dtype.itemsize >= 4


def _convolve(x: jax.Array, kernel: jax.Array, pads: Pads, axis: int = 2) -> jax.Array:
    """Convolve all images; in blocks, if each makes as much as Winograd's filtering does."""
    convolve = _convolver(kernel, pads, axis)
    if not _is_winograd(kernel):
        return convolve(x)
    return _joined(lax.map(convolve, _blocks(x, _small_block(x))), len(x))


def _small_block(x: jax.Array) -> int:
    return max(1, PIXELS // (x.shape[1] * x.shape[2]))


def _kernel_gradient(x: jax.Array, dz: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """Compute the gradient by the kernel, float[h, w, C, D], in blocks."""
    sums = _KernelSums(kernel, pads)
    small = sums.is_winograd or _is_crossed(x.shape[-1])
    size = _small_block(x) if small else BLOCK
    return sums.gradient(_sum_over_blocks(sums.products, sums.zeros, x, dz, size))


def _sum_over_blocks(
    products: Callable[[jax.Array, jax.Array], PyTree],
    zeros: PyTree,
    x: jax.Array,
    dz: jax.Array,
    size: int,
) -> PyTree:
    """Add `products` of each block of images and cotangents to `zeros`."""

    def block(total, part):
        return _add(total, products(*part)), None

    return lax.scan(block, zeros, (_blocks(x, size), _blocks(dz, size)))[0]


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
        return _is_winograd(self.kernel, fewest=64)

    @property
    def zeros(self) -> PyTree:
        dtype = _accumulated_in(self.kernel)
        if self.is_winograd:
            return [[jnp.zeros(self.kernel.shape[2:], dtype)] * 4] * 4
        return jnp.zeros(self.kernel.shape, dtype)

    def products(self, x: jax.Array, dz: jax.Array) -> PyTree:
        """Compute those of a block: images float[b, H, W, C], cotangent float[b, H', W', D]."""
        products = winograd.kernel_products if self.is_winograd else _direct_products
        return products(x, dz, self.pads)

    def gradient(self, total: PyTree) -> jax.Array:
        """Compute the gradient float[h, w, C, D] of the sums."""
        gradient = winograd.kernel_gradient(total) if self.is_winograd else total
        return gradient.astype(self.kernel.dtype)


def _strided_products(
    x: jax.Array, dy: jax.Array, kernel_shape: tuple[int, ...], strides: tuple[int, int], pads: Pads
) -> jax.Array:
    """Sum (what the kernel saw) x dy over images and pixels: [B, H, W, C], [B, H', W', D] ->
    [h, w, C, D].
    """
    h, w, channels, features = kernel_shape
    edges = [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)]  # negative ones cut
    x = lax.pad(x, jnp.zeros((), x.dtype), edges)
    rows, columns = (
        [slice(start, start + stride * (size - 1) + 1, stride) for start in range(side)]
        for side, stride, size in zip((h, w), strides, dy.shape[1:3], strict=True)
    )
    dy = dy.reshape(-1, features)
    seen = [x[:, row, column].reshape(-1, channels) for row in rows for column in columns]
    return jnp.stack([places.T @ dy for places in seen]).reshape(kernel_shape)


def _is_crossed(channels: int) -> bool:
    """Measured as in `_convolver`: 16 channels of 16 103 (as a convolution 72), 24 of 64 145 (122),
    32 of 32 122 (138).
    """
    return 8 <= channels < 32


def _crossed_products(x: jax.Array, dz: jax.Array, pads: Pads) -> jax.Array:
    """Sum (what the kernel saw) x dz over images and pixels, as one product of x, shifted by each
    column of the kernel, and dz, shifted by each row: [B, H, W, C], [B, H', W', D] -> [h, w, C, D].
    """
    _, height, width, features = dz.shape
    (top, bottom), (left, right) = pads
    h = x.shape[1] + top + bottom - height + 1
    w = x.shape[2] + left + right - width + 1
    none = (0, 0, 0)
    zero = jnp.zeros((), x.dtype)
    x = lax.pad(x, zero, (none, none, (left, right, 0), none))  # negative ones cut
    dz = lax.pad(dz, zero, (none, (h - 1 - top, h - 1 - bottom, 0), none, none))
    rows = x.shape[1]
    seen = jnp.concatenate([x[:, :, column : column + width] for column in range(w)], -1)
    shifted = [dz[:, h - 1 - row : h - 1 - row + rows] for row in range(h)]
    cotangents = jnp.concatenate(shifted, -1)
    seen, cotangents = lax.optimization_barrier((seen, cotangents))
    products = seen.reshape(-1, seen.shape[-1]).T @ cotangents.reshape(-1, h * features)
    return products.reshape(w, -1, h, features).transpose(2, 0, 1, 3)


def _accumulated_in(kernel: jax.Array) -> np.dtype:
    """Return the type that gradients are summed in: half precision would lose those of blocks."""
    return kernel.dtype if kernel.dtype.itemsize >= 4 else np.dtype(np.float32)


def _direct(kernel: jax.Array, pads: Pads, x: jax.Array) -> jax.Array:
    """Convolve images so that each place of the kernel makes as many columns as fill its vectors.

    The kernel of the second column is that of the first, moved by one column, and so on.
    """
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


def _columns(channels: int, features: int) -> int:
    """Choose how many columns of outputs `_direct` makes at once.

    Measured as in `_convolver`, with 1, 2, 4 and 8 columns: 3x3x16x16 102, 173, 110, 67; 3x3x8x8
    36, 63, 104, 67; 3x3x24x24 158, 142, 108, 62; 3x3x32x16 192, 173, 112, 60; 3x3x3x16 23, 25, 110,
    60; 3x3x3x32 33, 164, 112, 63; 3x3x3x64 194, 154, 100, 65; 3x3x16x2 12, 20, 28, 32.
    """
    enough = 64 if channels < 4 else 32 if channels < 32 else 1
    return min(8, max(1, enough // features))


def _direct_products(x: jax.Array, dz: jax.Array, pads: Pads) -> jax.Array:
    """Sum (what the kernel saw) x dz over images and pixels: [B, H, W, C], [B, H', W', D] ->
    [h, w, C, D].
    """
    if _is_crossed(x.shape[-1]):
        return _crossed_products(x, dz, pads)
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
