"""The 8-layer network of the papers on noisy labels."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from cnnlab.models.cnn import CPU_IMAGES
from cnnlab.models.convolution import Convolution
from cnnlab.models.heads import HEADS
from cnnlab.models.layers import BatchNorm, named
from cnnlab.models.pooling import max_pooling
from cnnlab.models.products import Dense
from cnnlab.softmax import as_float


class CNN8(nn.Module):
    """The 8-layer network of the papers on noisy labels: two convolutions 3x3 and maxima per stage,
    then two dense layers.

    Batch norm and relu follow every layer but the last; kernels start from He et al.'s truncated
    normal distribution (fan-in). A bias in front of batch norm has no effect, so there is none;
    with them the original has 1,032 parameters more.

    Source: Wang et al., 2019, "Symmetric cross entropy for robust learning with noisy labels",
    arXiv 1908.06112; Ma et al., 2020, "Normalized loss functions for deep learning with noisy
    labels", arXiv 2006.13554.

    Args:
      widths: in [1, 100000], channels of each stage.
      hidden: in [1, 1000000], units of the first dense layer.
      head: linear or cosine.
    """

    num_classes: int = 10
    widths: Sequence[int] = (64, 128, 196)
    hidden: int = 256
    dtype: DTypeLike | None = None
    head: str = "linear"
    conv: Convolution = Convolution()
    axis_name: str | None = None

    cpu_images = CPU_IMAGES

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Compute the logits: float[B, H, W, C] -> float32[B, K]; H and W of 8 pixels or more."""
        smallest = 2 ** len(self.widths)
        if min(x.shape[1:3]) < smallest:
            raise ValueError(f"images must have {smallest} x {smallest} pixels or more")

        def norm_relu(x: jax.Array) -> jax.Array:
            norm = BatchNorm(axis_name=self.axis_name)
            return nn.relu(norm(x, train=train))

        he_normal = nn.initializers.he_normal()
        for width in self.widths:  # [B, h, w, c] -> [B, h // 2, w // 2, width]
            for _ in range(2):
                x = nn.Conv(
                    width,
                    (3, 3),
                    padding=1,
                    use_bias=False,
                    dtype=self.dtype,
                    kernel_init=he_normal,
                    conv_general_dilated=self.conv,
                    promote_dtype=self.conv.promote,
                )(x)
                x = norm_relu(x)
            x = max_pooling(x, 2, self.conv.formulation)
        x = x.reshape(x.shape[0], -1)
        x = Dense(self.hidden, use_bias=False, dtype=self.dtype, kernel_init=he_normal)(x)
        x = norm_relu(x)
        return named("head", self.head, HEADS)(self.num_classes)(as_float(x))
