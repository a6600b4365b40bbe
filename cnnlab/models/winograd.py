"""Winograd's minimal filtering: a 3x3 convolution by tiles of 2x2 outputs, with 16 products in
place of 36.

For a tile d [4, 4] of the input, a kernel g [3, 3] and an output y [2, 2]

    y = A^T ((G g G^T) * (B^T d B)) A

                [1  0 -1  0]        [ 1    0    0 ]
    B^T =       [0  1  1  0]    G = [1/2  1/2  1/2]    A^T = [1  1  1  0]
                [0 -1  1  0]        [1/2 -1/2  1/2]          [0  1 -1 -1]
                [0  1  0 -1]        [ 0    0    1 ]

where * is element by element; over channels it is a matrix product for each of the 16 elements.
The gradient by the kernel is G^T ((B^T d B) * (A dy A^T)) G, summed over tiles and images.

Source: Winograd, 1980, "Arithmetic complexity of computations"; Lavin & Gray, 2016, "Fast
algorithms for convolutional neural networks", arXiv 1509.09308.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from cnnlab.models.products import contract
from cnnlab.softmax import as_float

Pads: TypeAlias = tuple[tuple[int, int], tuple[int, int]]
# An array for each element [row][column] of a tile: float[B, h, w, C] of all tiles, float[C, D].
Elements: TypeAlias = list[list[jax.Array]]


def transformed(kernel: jax.Array) -> Elements:
    """Compute G g G^T: float[3, 3, C, D] -> 4x4 float[C, D]."""
    elements = _transform(_kernel_terms, [list(row) for row in as_float(kernel)])
    return [[element.astype(kernel.dtype) for element in row] for row in elements]


def convolve(kernel: Elements, axis: int, pads: Pads, x: jax.Array) -> jax.Array:
    """Convolve images with a 3x3 kernel, at stride 1.

    Args:
      kernel: transformed.
      axis: of its elements that the channels of the images are; 0 or 1.
      pads: zeros before and after the rows, and the columns; negative ones cut.
      x: float[B, H, W, C].

    Returns:
      float[B, H', W', D].
    """
    height, width = (x.shape[i + 1] + sum(pads[i]) - 2 for i in (0, 1))
    tiles = _transform(_input_terms, _tiles(as_float(x), pads, height, width))
    products = [
        [
            contract(tile.astype(element.dtype), element, axis)
            for tile, element in zip(*rows, strict=True)
        ]
        for rows in zip(tiles, kernel, strict=True)
    ]
    rows = [jnp.stack(row, 3) for row in _transform(_output_terms, products)]
    y = jnp.stack(rows, 2)  # [B, h, 2, w, 2, D]
    y = y.reshape(len(x), 2 * y.shape[1], 2 * y.shape[3], y.shape[5])
    return y[:, :height, :width]


def kernel_products(x: jax.Array, dy: jax.Array, pads: Pads) -> Elements:
    """Compute (B^T d B) * (A dy A^T), summed over tiles and images.

    Args:
      x: float[B, H, W, C].
      dy: float[B, H', W', D], cotangent of the convolution.
      pads: of the convolution.

    Returns:
      4x4 float[C, D], for `kernel_gradient`; those of several batches are summed before.
    """
    _, height, width, _ = dy.shape
    tiles = _transform(_input_terms, _tiles(x, pads, height, width))
    dy = jnp.pad(dy, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    cotangents = _transform(_cotangent_terms, [[dy[:, i::2, j::2] for j in (0, 1)] for i in (0, 1)])
    return [
        [_flat(tile).T @ _flat(cotangent) for tile, cotangent in zip(*rows, strict=True)]
        for rows in zip(tiles, cotangents, strict=True)
    ]


def kernel_gradient(products: Elements) -> jax.Array:
    """Compute G^T p G: 4x4 float[C, D] -> float[3, 3, C, D]."""
    return jnp.stack([jnp.stack(row) for row in _transform(_gradient_terms, products)])


def _flat(x: jax.Array) -> jax.Array:
    """[B, h, w, C] -> [B h w, C]."""
    return x.reshape(-1, x.shape[-1])


def _tiles(x: jax.Array, pads: Pads, height: int, width: int) -> Elements:
    """Cut padded images into overlapping tiles for `height` x `width` outputs: 4x4 float[B, h, w,
    C].
    """
    (top, bottom), (left, right) = pads
    rows = top, bottom + height % 2, 0
    columns = left, right + width % 2, 0
    edges = [(0, 0, 0), rows, columns, (0, 0, 0)]  # negative ones cut
    x = lax.pad(x, jnp.zeros((), x.dtype), edges)
    ends = x.shape[1] - 2, x.shape[2] - 2
    return [[x[:, i : ends[0] + i : 2, j : ends[1] + j : 2] for j in range(4)] for i in range(4)]


def _transform(
    terms: Callable[[Sequence[jax.Array]], list[jax.Array]], elements: Sequence[Sequence[jax.Array]]
) -> Elements:
    """Apply `terms`, which multiplies a vector by a matrix, to the columns and then to the rows."""
    columns = [terms(column) for column in zip(*elements, strict=True)]
    return [terms(row) for row in zip(*columns, strict=True)]


def _input_terms(d: Sequence[jax.Array]) -> list[jax.Array]:
    """B^T d."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _kernel_terms(g: Sequence[jax.Array]) -> list[jax.Array]:
    """G g."""
    outer, middle = (g[0] + g[2]) / 2, g[1] / 2
    return [g[0], outer + middle, outer - middle, g[2]]


def _output_terms(m: Sequence[jax.Array]) -> list[jax.Array]:
    """A^T m."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _cotangent_terms(dy: Sequence[jax.Array]) -> list[jax.Array]:
    """A dy."""
    return [dy[0], dy[0] + dy[1], dy[0] - dy[1], -dy[1]]


def _gradient_terms(p: Sequence[jax.Array]) -> list[jax.Array]:
    """G^T p."""
    total, difference = (p[1] + p[2]) / 2, (p[1] - p[2]) / 2
    return [p[0] + total, difference, total + p[3]]
