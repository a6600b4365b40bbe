"""Convolution in the formulation that is fast on the platform at hand.

`nn.Conv` takes the function that convolves as an argument. `Convolution(formulation)` is that
function, so the layer, its parameters' names and shapes, and so its checkpoints are flax's own in
every formulation:

- native: lax.conv_general_dilated, for GPU and TPU, whose compilers have kernels for it and its
  gradients.
- blocked: for CPU (`blocked`, `winograd`). Values and gradients are those of native to rounding.

`devices.Layout.formulation` chooses between them by the devices' platform.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax

from cnnlab.models import blocked, strided
from cnnlab.models.blocked import NHWC
from cnnlab.models.pooling import check, max_pooling
from cnnlab.models.products import promote_operands, sum_dtype
from cnnlab.models.winograd import Pads
from cnnlab.softmax import as_float

FEWEST_CHANNELS = 16  # of a convolution with a stride that is worth its own products


@dataclass(frozen=True)
class Convolution:
    """The function for `nn.Conv(..., conv_general_dilated=...)`, with the max pooling that follows
    if there is one; its method `promote` is for `nn.Conv(..., promote_dtype=...)`.

    The layer's bias is then added to what pooling leaves: the same numbers, as maxima commute with
    adding a constant.

    Attributes:
      formulation: native, blocked, or deterministic, which is native but for the pooling. Blocked
        covers two-dimensional kernels of any size under any padding without dilation or groups;
        anything else is native. It returns float32 of half precision, so that a layer does, and
        has no forward-mode derivative (jax.jvp), and under jax.shard_map no gradient with
        check_vma.
      max_pool: side and stride of the pooling windows; 1 for none.

    Raises:
      ValueError: another formulation.
    """

    formulation: str = "native"
    max_pool: int = 1

    def __post_init__(self) -> None:
        check(self.formulation)

    def pooled(self, side: int) -> Convolution:
        """Return the same convolution, followed by max pooling."""
        return Convolution(self.formulation, side)

    def promote(
        self, *operands: jax.Array | None, dtype: Any = None, inexact: bool = True
    ) -> list[Any]:
        """Convert a layer's inputs, kernel and bias to the type that it computes in; for
        `nn.Conv(promote_dtype=...)`.

        Blocked, half precision is for what the convolution multiplies; it returns, and adds the
        bias, in single precision, in which it computes all where half gains nothing.
        """
        if self.formulation != "blocked":
            return promote_dtype(*operands, dtype=dtype, inexact=inexact)
        kernel = operands[1]
        if dtype and kernel is not None and not blocked.is_faster_in_half(kernel):
            dtype = sum_dtype(dtype)
        return promote_operands(*operands, dtype=dtype, inexact=inexact)

    def kept(self, x: jax.Array) -> jax.Array:
        """Return x float[B, ...], and let the compiler keep it in memory: XLA for CPU computes sums
        again wherever they are read, and so those of all residual blocks before.
        """
        return blocked.kept(x) if self.formulation == "blocked" and x.size else x

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
        if self.formulation == "blocked" and _is_plain(lhs, rhs, **options):
            strides = tuple(window_strides)
            if isinstance(padding, str):
                padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
            (top, bottom), (left, right) = padding
            pads = (int(top), int(bottom)), (int(left), int(right))
            if self._has_output(lhs, rhs, pads):
                if rhs.shape[:2] == (1, 1) and pads == ((0, 0), (0, 0)):
                    y = blocked.pointwise(lhs, rhs, strides)
                    return max_pooling(y, self.max_pool, self.formulation)
                if strides == (1, 1):
                    return blocked.conv_pool(lhs, rhs, pads, self.max_pool)
                if lhs.shape[3] >= FEWEST_CHANNELS:
                    y = cast(jax.Array, strided.convolve(lhs, rhs, strides, pads))
                    return max_pooling(y, self.max_pool, self.formulation)
        is_real = lhs.dtype == rhs.dtype and jnp.issubdtype(lhs.dtype, jnp.floating)
        if self.formulation == "blocked" and is_real:
            lhs, rhs = as_float(lhs), as_float(rhs)
        y = lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
        return max_pooling(y, self.max_pool, self.formulation)

    def _has_output(self, lhs: jax.Array, rhs: jax.Array, pads: Pads) -> bool:
        """Return whether anything goes into the convolution, and comes out at stride 1 and of the
        pooling then.
        """
        sides = (lhs.shape[i + 1] + sum(pads[i]) - rhs.shape[i] + 1 for i in (0, 1))
        return lhs.size > 0 and rhs.size > 0 and min(sides) >= self.max_pool


def _is_plain(
    x: jax.Array,
    kernel: jax.Array,
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: object = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    **kinds: object,
) -> bool:
    """Return whether a convolution is one of images NHWC in real numbers of one type, without
    dilation or groups.
    """
    # The other arguments are a precision and a type of the result.
    if x.ndim != 4 or any(kind is not None for kind in kinds.values()):
        return False
    if x.dtype != kernel.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        return False
    ones = (
        *(lhs_dilation or ()),
        *(rhs_dilation or ()),
        feature_group_count,
        batch_group_count,
    )
    expected = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), NHWC)
    return dimension_numbers in (NHWC, expected) and all(n == 1 for n in ones)


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
