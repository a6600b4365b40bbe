"""Flax linen modules: uint8 images, normalised to float[B, H, W, C], become logits float32[B, K].

`dtype` is the type of the computation (None: that of inputs and parameters); parameters and logits stay float32.
`formulation` is how layers.py convolves and pools; it changes no parameter, and values by rounding only.
`axis_name` is the axis over devices inside a step that each of them runs, for batch norm and dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from cnnlab.layers import Dropout, average_pooling, conv_output_size, convolution, max_pooling
from cnnlab.softmax import as_float

__all__ = ["ACTIVATIONS", "CNN", "MLP", "CosineHead", "SoftmaxRegression", "conv_output_size"]

ACTIVATIONS: dict[str, Callable] = {"relu": nn.relu, "gelu": nn.gelu, "silu": nn.silu, "tanh": nn.tanh}
INCREASING = ("relu", "tanh")  # maxima commute with these, so pooling may come first and leave them a quarter


class CosineHead(nn.Module):
    """Logits that are cosines, in [-1, 1]: of the angle between the features and each class's weight vector.

    The losses on cosines (cosine_softmax, cosface, arcface, ldam) are made for it; they bring the scale.
    """

    num_classes: int = 10
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: float[B, D] -> float32[B, K]; features of length 0 give 0."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.num_classes), jnp.float32)
        unit = lambda v, axis: v * jax.lax.rsqrt(jnp.maximum(jnp.sum(v**2, axis, keepdims=True), 1e-12))
        features, weights = promote_dtype(unit(as_float(x), -1), unit(kernel, 0), dtype=self.dtype)
        return as_float(features @ weights)


HEADS: dict[str, Callable] = {"linear": nn.Dense, "cosine": CosineHead}


class SoftmaxRegression(nn.Module):
    """One weight vector per class: logits = x W + b over the flattened image."""

    num_classes: int = 10
    dtype: Any = None
    head: str = "linear"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, axis_name: str | None = None) -> jax.Array:
        """x: float[B, H, W, C] -> float32[B, K]."""
        del train, axis_name
        return as_float(HEADS[self.head](self.num_classes, dtype=self.dtype)(x.reshape(x.shape[0], -1)))


class _Norm(nn.Module):
    """Batch norm over the global batch, or nothing."""

    enabled: bool
    dtype: Any

    @nn.compact
    def __call__(self, x, *, train, axis_name):
        if not self.enabled:
            return x
        return nn.BatchNorm(
            use_running_average=not train, momentum=0.9, dtype=self.dtype, axis_name=axis_name if train else None
        )(x)


class MLP(nn.Module):
    """Dense layers over the flattened image."""

    num_classes: int = 10
    hidden: Sequence[int] = (128,)
    batch_norm: bool = False
    dropout: float = 0.0
    activation: str = "relu"
    dtype: Any = None
    head: str = "linear"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, axis_name: str | None = None) -> jax.Array:
        """x: float[B, ...] -> float32[B, K]."""
        x = x.reshape(x.shape[0], -1)
        for units in self.hidden:
            # A bias in front of batch norm has no effect but rounding noise for a gradient.
            x = nn.Dense(units, use_bias=not self.batch_norm, dtype=self.dtype)(x)
            x = _Norm(self.batch_norm, self.dtype)(x, train=train, axis_name=axis_name)
            x = ACTIVATIONS[self.activation](x)
            x = Dropout(self.dropout)(x, train=train, axis_name=axis_name)
        return HEADS[self.head](self.num_classes)(as_float(x))


class CNN(nn.Module):
    """The seed network: (conv 3x3, activation, pool 2) for each width, then the dense layers of an MLP.

    With the defaults on 32x32x3 it has 545,098 parameters.
    """

    num_classes: int = 10
    widths: Sequence[int] = (32, 64)
    hidden: Sequence[int] = (128,)
    batch_norm: bool = False
    dropout: float = 0.0
    pool: str = "max"
    activation: str = "relu"
    dtype: Any = None
    head: str = "linear"
    formulation: str = "native"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, axis_name: str | None = None) -> jax.Array:
        """x: float[B, H, W, C] -> float32[B, K]."""
        pool = {"max": partial(max_pooling, formulation=self.formulation), "average": average_pooling}[self.pool]
        pool_first = self.pool == "max" and not self.batch_norm and self.activation in INCREASING
        convolve = convolution(self.formulation, max_pool=2 if pool_first else 1)
        for width in self.widths:  # [B, h, w, c] -> [B, h/2, w/2, width]
            bias = not self.batch_norm
            x = nn.Conv(width, (3, 3), padding=1, use_bias=bias, dtype=self.dtype, conv_general_dilated=convolve)(x)
            x = _Norm(self.batch_norm, self.dtype)(x, train=train, axis_name=axis_name)
            x = ACTIVATIONS[self.activation](x)
            x = x if pool_first else pool(x, 2)
        dense = MLP(
            self.num_classes, self.hidden, self.batch_norm, self.dropout, self.activation, self.dtype, self.head
        )
        return dense(x, train=train, axis_name=axis_name)


def count_parameters(params: Any) -> int:
    """Numbers in a pytree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def model_dtype(compute_dtype: str) -> Any:
    """The `dtype` of a module for a --compute-dtype: bfloat16, or None, the type of the parameters."""
    return jnp.bfloat16 if compute_dtype == "bfloat16" else None
