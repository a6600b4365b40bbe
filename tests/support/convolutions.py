"""Convolutions and their gradients by definition, in numpy's float64, with bounds of rounding.

Bounds are those of Higham, "Accuracy and stability of numerical algorithms", 2002, lemma 3.1: what
takes n roundings one after another is off by at most n u / (1 - n u) of what the same sums give of
magnitudes, u half of eps.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

# Of Winograd's filtering, as cnnlab/models/winograd.py documents them
B_T = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], float)
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
A_T = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], float)


class Direct(NamedTuple):
    """A convolution of images [B, H, W, C] with a kernel [h, w, C, D]."""

    pads: tuple[tuple[int, int], tuple[int, int]]
    strides: tuple[int, int] = (1, 1)

    def value(self, x, kernel):
        return np.einsum("bijcmn,mncd->bijd", self._seen(x, kernel.shape), kernel, optimize=True)

    def by_kernel(self, x, dy, shape):
        """The gradient by a kernel of this shape, of the sum of value * dy."""
        return np.einsum("bijcmn,bijd->mncd", self._seen(x, shape), dy, optimize=True)

    def by_images(self, dy, kernel, shape):
        """The gradient by images of this shape."""
        (top, bottom), (left, right) = self.pads
        # Room for what negative padding cuts
        room = [max(0, -pad) for pad in (top, bottom, left, right)]
        height, width = shape[1] + top + bottom, shape[2] + left + right
        padded = np.zeros((shape[0], height + sum(room[:2]), width + sum(room[2:]), shape[3]))
        seen = padded[:, room[0] : room[0] + height, room[2] : room[2] + width]
        for i, j in np.ndindex(kernel.shape[:2]):
            rows = slice(i, i + self.strides[0] * (dy.shape[1] - 1) + 1, self.strides[0])
            columns = slice(j, j + self.strides[1] * (dy.shape[2] - 1) + 1, self.strides[1])
            seen[:, rows, columns] += dy @ kernel[i, j].T
        first = max(0, top), max(0, left)
        return padded[:, first[0] : first[0] + shape[1], first[1] : first[1] + shape[2]]

    def bounds(self, x, kernel, dy, dtype):
        """Bounds of a value and both gradients: each is a sum of products, in any order.

        In half precision the gradients are rounded to it, and dy before it is multiplied.
        """
        x, kernel, dy = np.abs(x), np.abs(kernel), np.abs(dy)
        terms = np.prod(kernel.shape[:3]), np.prod(kernel.shape[:2]) * kernel.shape[3]
        return (
            rounding(terms[0], dtype) * self.value(x, kernel),
            rounding(terms[1], dtype, halves=2) * self.by_images(dy, kernel, x.shape),
            rounding(dy[..., 0].size, dtype, halves=2) * self.by_kernel(x, dy, kernel.shape),
        )

    def _seen(self, x, kernel_shape):
        """What the kernel sees: [B, H', W', C, h, w]."""
        windows = np.lib.stride_tricks.sliding_window_view(
            padded(x, self.pads), kernel_shape[:2], (1, 2)
        )
        return windows[:, :: self.strides[0], :: self.strides[1]]


class Winograd(NamedTuple):
    """A convolution at stride 1 with a kernel [3, 3, C, D], by the documented matrices."""

    pads: tuple[tuple[int, int], tuple[int, int]]
    absolute: bool = False

    def value(self, x, kernel):
        kernel = self._both_sides(G, np.moveaxis(kernel, (0, 1), (2, 3)))
        tiles = self._both_sides(A_T, np.einsum("bhwcmn,cdmn->bhwdmn", self._tiles(x), kernel))
        y = np.moveaxis(tiles, 3, 5)  # [B, h, w, 2, 2, D]
        y = np.moveaxis(y, 3, 2).reshape(len(x), 2 * y.shape[1], 2 * y.shape[2], -1)
        height, width = (x.shape[i + 1] + sum(self.pads[i]) - 2 for i in (0, 1))
        return y[:, :height, :width]

    def by_kernel(self, x, dy, shape):
        del shape
        (_, height, width, _) = dy.shape
        dy = np.pad(dy, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        dy = np.lib.stride_tricks.sliding_window_view(dy, (2, 2), (1, 2))[:, ::2, ::2]
        products = np.einsum("bhwcmn,bhwdmn->cdmn", self._tiles(x), self._both_sides(A_T.T, dy))
        return np.moveaxis(self._both_sides(G.T, products), (2, 3), (0, 1))

    def by_images(self, dy, kernel, shape):
        del shape
        pads = tuple((2 - before, 2 - after) for before, after in self.pads)
        return Winograd(pads, self.absolute).value(dy, kernel[::-1, ::-1].swapaxes(2, 3))

    def bounds(self, x, kernel, dy, dtype, kernel_too=True):
        """Bounds of a value and both gradients.

        Of a value: B^T d B takes 2 roundings, G g G^T 4, their product 1, the sum over C channels C
        - 1, A^T m A 4. Of the gradient by the kernel: 2, A dy A^T 2, product 1, the sum over n
        tiles n - 1, G^T p G 4; or that of the direct sum, unless `kernel_too`. In half precision
        B^T d B and G g G^T are rounded to it, and the gradient by x.
        """
        sizes = Winograd(self.pads, absolute=True)
        magnitudes = np.abs(x), np.abs(kernel), np.abs(dy)
        x, kernel, dy = magnitudes
        tiles = len(dy) * -(-dy.shape[1] // 2) * -(-dy.shape[2] // 2)
        return (
            rounding(10 + kernel.shape[2], dtype, halves=2) * sizes.value(x, kernel),
            rounding(10 + kernel.shape[3], dtype, halves=3) * sizes.by_images(dy, kernel, x.shape),
            rounding(8 + tiles, dtype) * sizes.by_kernel(x, dy, kernel.shape)
            if kernel_too
            else Direct(self.pads).bounds(*magnitudes, dtype)[2],
        )

    def _both_sides(self, matrix, tiles):
        matrix = np.abs(matrix) if self.absolute else matrix
        return matrix @ tiles @ matrix.T

    def _tiles(self, x):
        """B^T d B of all tiles: [B, h, w, C, 4, 4]."""
        odd = [(x.shape[i + 1] + sum(self.pads[i])) % 2 for i in (0, 1)]
        pads = [(self.pads[i][0], self.pads[i][1] + odd[i]) for i in (0, 1)]
        tiles = np.lib.stride_tricks.sliding_window_view(padded(x, pads), (4, 4), (1, 2))
        return self._both_sides(B_T, tiles[:, ::2, ::2])


def padded(x, pads):
    """Images with zeros around; negative padding cuts."""
    x = np.pad(x, ((0, 0), *((max(0, a), max(0, b)) for a, b in pads), (0, 0)))
    (top, bottom), (left, right) = (
        (max(0, -before), size - max(0, -after))
        for (before, after), size in zip(pads, x.shape[1:3], strict=True)
    )
    return x[:, top:bottom, left:right]


def rounding(count, dtype, halves=0):
    """The relative bound of `count` roundings; in half precision, of `halves` to that and `count`
    to single.
    """
    is_half = jnp.finfo(dtype).bits == 16
    units = float(count) * float(jnp.finfo("float32" if is_half else dtype).eps) / 2
    if is_half:
        units += halves * float(jnp.finfo(dtype).eps) / 2
    return units / (1 - units)


def assert_within(ours, wanted, bound, dtype, name=""):
    """Every element is off by at most its bound; float64's own rounding of the oracle is as
    small.
    """
    assert ours.shape == wanted.shape and ours.dtype == dtype, (name, ours.shape, ours.dtype)
    bound = 2 * bound if dtype == "float64" else bound
    excess = np.abs(np.asarray(ours, np.float64) - wanted) - bound
    assert np.all(excess <= 0), (name, float(excess.max()))


def drawn(shape, dtype="float64", seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)
