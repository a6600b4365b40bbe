"""Flax linen modules: uint8 images, normalised to float[B, H, W, C], become logits float32[B, K].

A model is `(num_classes, **hyperparameters) -> nn.Module`, whose `__call__(images, *, train)` gives logits
float32[B, K]. It may ask for what the run supplies, by the name of a field: `dtype`, the type of the computation (None:
that of inputs and parameters; parameters and logits stay float32); `head`, linear or cosine, as the loss wants it;
`conv`, for `nn.Conv(conv_general_dilated=...)`, which is quick on the devices at hand; `axis_name`, the mesh axis that
shares the batch in training, for batch norm and dropout. Two attributes of its class say more: `init_images`, how many
training images `init` sees (else one of zeros), and `cpu_images`, the fewest images that are worth a CPU device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from cnnlab.errors import unknown
from cnnlab.layers import NHWC, Convolution, Dropout, average_pooling, conv_output_size, max_pooling
from cnnlab.softmax import as_float

__all__ = [
    "ACTIVATIONS",
    "CNN",
    "HEADS",
    "MLP",
    "MODELS",
    "AirNet",
    "CosineHead",
    "SoftmaxRegression",
    "conv_output_size",
]

ACTIVATIONS: dict[str, Callable] = {
    "relu": nn.relu,
    "gelu": partial(nn.gelu, approximate=False),
    "silu": nn.silu,
    "tanh": nn.tanh,
}
INCREASING = ("relu", "tanh")  # maxima commute with these, so pooling may come first and leave them a quarter
CPU_IMAGES = 32  # the fewest images of a convolutional network that are worth a CPU device
DENSE_CPU_IMAGES = 2**31  # a dense network's step is over before two of them have agreed (mlp: 0.73 of one's speed)


def _named(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    if name not in table:
        raise unknown(kind, str(name), table)
    return table[name]


class CosineHead(nn.Module):
    """Logits that are cosines, in [-1, 1]: of the angle between the features and each class's weight vector.

    Losses that carry the mark `head = "cosine"` are made for it; they bring the scale.
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
    """One weight vector per class: logits = x W + b over the flattened image.

    Args:
      head: linear or cosine.
    """

    num_classes: int = 10
    dtype: Any = None
    head: str = "linear"

    cpu_images = DENSE_CPU_IMAGES

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x: float[B, H, W, C] -> float32[B, K]."""
        del train
        head = _named("head", self.head, HEADS)
        return as_float(head(self.num_classes, dtype=self.dtype)(x.reshape(x.shape[0], -1)))


class _Norm(nn.Module):
    """Batch norm over the global batch, or nothing."""

    enabled: bool
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if not self.enabled:
            return x
        return nn.BatchNorm(
            use_running_average=not train, momentum=0.9, dtype=self.dtype, axis_name=self.axis_name if train else None
        )(x)


class MLP(nn.Module):
    """Dense layers over the flattened image.

    Args:
      hidden: in [1, inf), units of each hidden layer.
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
    dtype: Any = None
    head: str = "linear"
    axis_name: str | None = None

    cpu_images = DENSE_CPU_IMAGES

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x: float[B, ...] -> float32[B, K]."""
        x = x.reshape(x.shape[0], -1)
        activation = _named("activation", self.activation, ACTIVATIONS)
        if not self.hidden and (self.activation != "relu" or self.dropout or self.batch_norm):
            raise ValueError("hidden=[] leaves no layer for an activation, dropout or batch_norm")
        for units in self.hidden:
            # A bias in front of batch norm has no effect but rounding noise for a gradient.
            x = nn.Dense(units, use_bias=not self.batch_norm, dtype=self.dtype)(x)
            x = _Norm(self.batch_norm, self.dtype, self.axis_name)(x, train=train)
            x = activation(x)
            x = Dropout(self.dropout, self.axis_name)(x, train=train)
        return _named("head", self.head, HEADS)(self.num_classes)(as_float(x))


class CNN(nn.Module):
    """The seed network: (conv 3x3, activation, pool 2) for each width, then the dense layers of an MLP.

    With the defaults on 32x32x3 it has 545,098 parameters.

    Args:
      widths: in [1, inf), channels of each convolution, at least one.
      hidden: in [1, inf), units of each hidden dense layer.
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
    dtype: Any = None
    head: str = "linear"
    conv: Convolution = Convolution()
    axis_name: str | None = None

    cpu_images = CPU_IMAGES

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x: float[B, H, W, C] -> float32[B, K]."""
        if not self.widths:
            raise ValueError("widths must name at least one convolution")
        pools = {"max": partial(max_pooling, formulation=self.conv.formulation), "average": average_pooling}
        pool, activation = _named("pool", self.pool, pools), _named("activation", self.activation, ACTIVATIONS)
        pool_first = self.pool == "max" and not self.batch_norm and self.activation in INCREASING
        convolve = self.conv.pooled(2 if pool_first else 1)
        for width in self.widths:  # [B, h, w, c] -> [B, h/2, w/2, width]
            bias = not self.batch_norm
            x = nn.Conv(width, (3, 3), padding=1, use_bias=bias, dtype=self.dtype, conv_general_dilated=convolve)(x)
            x = _Norm(self.batch_norm, self.dtype, self.axis_name)(x, train=train)
            x = activation(x)
            x = x if pool_first else pool(x, 2)
        hidden: Any = ((), False, self.dropout)  # without hidden layers the options are those of the convolutions alone
        if self.hidden:
            hidden = (self.hidden, self.batch_norm, self.dropout, self.activation)
        dense = MLP(self.num_classes, *hidden, dtype=self.dtype, head=self.head, axis_name=self.axis_name)
        return dense(x, train=train)


class AirNet(nn.Module):
    """The airbench network: whitened 2x2 patches, three groups of two convolutions, maxima, a small head.

    The whitening kernel is fitted to the images that `init` is given and is not trained; it lies among the batch
    statistics. With the defaults on 32x32x3 the network has 1,971,352 parameters that are.

    Source: Jordan, 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498; with Muon,
    github.com/KellerJordan/cifar10-airbench, airbench94_muon.py. There the head is x W / D with W of deviation 1 and a
    rate r; here it is x V with V of deviation 1 / D and the rate r / D^2, which takes the same steps.

    Args:
      widths: in [1, inf), channels of each group of two convolutions.
      whiten: fit the first layer to the patches of 5,000 training images and fix it, or train it as the others.
      activation: relu, gelu, silu or tanh.
      head: linear or cosine.
    """

    num_classes: int = 10
    widths: Sequence[int] = (64, 256, 256)
    whiten: bool = True
    activation: str = "gelu"
    dtype: Any = None
    head: str = "linear"
    conv: Convolution = Convolution()
    axis_name: str | None = None

    init_images = 5_000
    cpu_images = CPU_IMAGES

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x: float[B, H, W, C] -> float32[B, K]."""
        plain, pooled = (self.conv.pooled(side) for side in (1, 2))
        activation, channels = _named("activation", self.activation, ACTIVATIONS), 8 * x.shape[-1]
        if self.whiten:
            kernel = self.variable("batch_stats", "whitening", lambda: whitening(x)).value
            bias = self.param("whitening_bias", uniform, (channels,), jnp.float32, 1 / math.sqrt(4 * x.shape[-1]))
            images, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
            x = plain(images, kernel, (1, 1), "VALID", dimension_numbers=NHWC) + bias.reshape(1, 1, 1, -1)
        else:
            x = nn.Conv(channels, (2, 2), padding="VALID", dtype=self.dtype, conv_general_dilated=plain)(x)
        x = activation(x)  # [B, H - 1, W - 1, 8 C]
        for width in self.widths:  # [B, h, w, c] -> [B, h // 2, w // 2, width]
            for convolve in (pooled, plain):
                x = nn.Conv(
                    width, (3, 3), padding=1, use_bias=False, dtype=self.dtype, kernel_init=first_filters_pass_on,
                    conv_general_dilated=convolve,
                )(x)  # fmt: skip
                x = nn.BatchNorm(
                    use_running_average=not train, momentum=0.6, epsilon=1e-12, use_scale=False, dtype=self.dtype,
                    axis_name=self.axis_name if train else None,
                )(x)  # fmt: skip
                x = activation(x)
        x = jnp.max(x, (1, 2))
        if self.head == "linear":
            return as_float(nn.Dense(self.num_classes, use_bias=False, dtype=self.dtype, kernel_init=small_head)(x))
        return _named("head", self.head, HEADS)(self.num_classes, dtype=self.dtype)(x)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": CNN,
    "mlp": MLP,
    "softmax_regression": SoftmaxRegression,
    "airnet": AirNet,
}


def whitening(images: jax.Array, eps: float = 5e-4) -> jax.Array:
    """A 2x2 kernel whose responses to the images' patches are uncorrelated and of one size, each with both signs.

    Args:
      images: float[N, H, W, C], normalised.
      eps: added to the variances before their root is divided by.

    Returns:
      float32[2, 2, C, 8 C]: eigenvectors of the patches' second moments over their roots, ascending; then negated.

    Source: tysam-code/hlb-CIFAR10; Jordan, 2024, arXiv 2404.00498.
    """
    views = [images[:, i : images.shape[1] - 1 + i, j : images.shape[2] - 1 + j] for i in (0, 1) for j in (0, 1)]
    patches = as_float(jnp.concatenate(views, -1))  # [N, H - 1, W - 1, 4 C]
    patches = patches.reshape(-1, patches.shape[-1])
    moments = jnp.matmul(patches.T, patches, precision="highest") / max(len(patches), 1)
    variances, vectors = jnp.linalg.eigh(moments)
    kernel = (vectors / jnp.sqrt(variances + eps)[None]).reshape(2, 2, images.shape[-1], -1)
    return jnp.concatenate([kernel, -kernel], -1)


def uniform(key: jax.Array, shape: Sequence[int], dtype: Any, bound: float) -> jax.Array:
    """Initial values between -bound and bound; with 1 / sqrt(fan-in), torch.nn.Conv2d's."""
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def first_filters_pass_on(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Initial filters [h, w, I, O]: the i-th of the first I hands on channel i, the others are uniform.

    Source: torch.nn.init.dirac_ over the default of torch.nn.Conv2d, as in airbench.
    """
    h, w, inputs, outputs = shape
    kernel = uniform(key, shape, dtype, 1 / math.sqrt(h * w * inputs))
    passing = jnp.zeros((h, w, inputs, inputs), dtype).at[h // 2, w // 2].set(jnp.eye(inputs, dtype=dtype))
    return jnp.concatenate([passing, kernel[..., inputs:]], -1)[..., :outputs]


def small_head(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Initial weights [D, K]: uniform, of standard deviation exactly 1 / D."""
    kernel = uniform(key, shape, dtype, 1.0)
    return kernel / (shape[0] * jnp.std(kernel, ddof=1))


def count_parameters(params: Any) -> int:
    """Numbers in a pytree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def model_dtype(compute_dtype: str) -> Any:
    """The `dtype` of a module for a --compute-dtype: bfloat16, float16, or None, the type of the parameters."""
    return None if compute_dtype == "float32" else jnp.dtype(compute_dtype)
