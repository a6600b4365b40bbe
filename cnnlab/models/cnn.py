"""The seed network: convolutions, pooling, then dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from cnnlab.models.convolution import Convolution
from cnnlab.models.dense import MLP
from cnnlab.models.layers import ACTIVATIONS, INCREASING, _Norm, named
from cnnlab.models.pooling import average_pooling, max_pooling

CPU_IMAGES = 32  # the fewest images of a convolutional network that are worth a CPU device


class CNN(nn.Module):
    """The seed network: (conv 3x3, activation, pool 2) for each width, then the dense layers of an
    MLP.

    With the defaults on 32x32x3 it has 545,098 parameters.

    Args:
      widths: in [1, 100000], channels of each convolution, at least one.
      hidden: in [1, 1000000], units of each hidden dense layer.
      batch_norm: batch normalisation after each convolution and hidden dense layer.
      dropout: in [0, 1), share of hidden dense units dropped in training.
      pool: max or average.
      activation: relu, gelu, silu or tanh.
      head: linear or cosine.
    """

    num_classes: int = 10
    widths: Sequence[int] = (32, 64)
    hidden: Sequence[int] = (128,)
    batch_norm: bool = False
    dropout: float = 0.0
    pool: str = "max"
    activation: str = "relu"
    dtype: DTypeLike | None = None
    head: str = "linear"
    conv: Convolution = Convolution()
    axis_name: str | None = None

    cpu_images = CPU_IMAGES

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Compute the logits: float[B, H, W, C] -> float32[B, K]."""
        if not self.widths:
            raise ValueError("widths must name at least one convolution")
        pools = {
            "max": partial(max_pooling, formulation=self.conv.formulation),
            "average": average_pooling,
        }
        pool = named("pool", self.pool, pools)
        activation = named("activation", self.activation, ACTIVATIONS)
        pool_first = self.pool == "max" and not self.batch_norm and self.activation in INCREASING
        convolve = self.conv.pooled(2 if pool_first else 1)
        for width in self.widths:  # [B, h, w, c] -> [B, h/2, w/2, width]
            bias = not self.batch_norm
            x = nn.Conv(
                width,
                (3, 3),
                padding=1,
                use_bias=bias,
                dtype=self.dtype,
                conv_general_dilated=convolve,
                promote_dtype=convolve.promote,
            )(x)
            x = _Norm(self.batch_norm, self.axis_name)(x, train=train)
            x = activation(x)
            x = x if pool_first else pool(x, 2)
        # Without hidden layers the options are those of the convolutions alone.
        hidden: Any = ((), False, self.dropout)
        if self.hidden:
            hidden = (self.hidden, self.batch_norm, self.dropout, self.activation)
        dense = MLP(
            self.num_classes, *hidden, dtype=self.dtype, head=self.head, axis_name=self.axis_name
        )
        return dense(x, train=train)
