"""Networks of dense layers."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from cnnlab.models.heads import HEADS
from cnnlab.models.layers import ACTIVATIONS, Dropout, _Norm, named
from cnnlab.models.products import Dense
from cnnlab.softmax import as_float

# A dense network's step is over before two of them have agreed (mlp: 0.73 of one's speed)
DENSE_CPU_IMAGES = 2**31


class SoftmaxRegression(nn.Module):
    """One weight vector per class: logits = x W + b over the flattened image.

    Args:
      head: linear or cosine.
    """

    num_classes: int = 10
    dtype: DTypeLike | None = None
    head: str = "linear"

    cpu_images = DENSE_CPU_IMAGES

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Compute the logits: float[B, H, W, C] -> float32[B, K]."""
        del train
        head = named("head", self.head, HEADS)
        return as_float(head(self.num_classes, dtype=self.dtype)(x.reshape(x.shape[0], -1)))


class MLP(nn.Module):
    """Dense layers over the flattened image.

    Args:
      hidden: in [1, 1000000], units of each hidden layer.
      batch_norm: batch normalisation after each hidden layer.
      dropout: in [0, 1), share of hidden units dropped in training.
      activation: relu, gelu, silu or tanh.
      head: linear or cosine.
    """

    num_classes: int = 10
    hidden: Sequence[int] = (128,)
    batch_norm: bool = False
    dropout: float = 0.0
    activation: str = "relu"
    dtype: DTypeLike | None = None
    head: str = "linear"
    axis_name: str | None = None

    cpu_images = DENSE_CPU_IMAGES

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Compute the logits: float[B, ...] -> float32[B, K]."""
        x = x.reshape(x.shape[0], -1)
        activation = named("activation", self.activation, ACTIVATIONS)
        if not self.hidden and (self.activation != "relu" or self.dropout or self.batch_norm):
            raise ValueError("hidden=[] leaves no layer for an activation, dropout or batch_norm")
        for units in self.hidden:
            # A bias in front of batch norm has no effect but rounding noise for a gradient.
            x = Dense(units, use_bias=not self.batch_norm, dtype=self.dtype)(x)
            x = _Norm(self.batch_norm, self.axis_name)(x, train=train)
            x = activation(x)
            x = Dropout(self.dropout, self.axis_name)(x, train=train)
        return named("head", self.head, HEADS)(self.num_classes)(as_float(x))
