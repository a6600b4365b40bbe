"""The airbench network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cnnlab.models.cnn import CPU_IMAGES
from cnnlab.models.convolution import NHWC, Convolution
from cnnlab.models.heads import HEADS
from cnnlab.models.layers import ACTIVATIONS, BatchNorm, named
from cnnlab.models.products import Dense
from cnnlab.softmax import as_float


class AirNet(nn.Module):
    """The airbench network: whitened 2x2 patches, three groups of two convolutions, maxima, a small
    head.

    The whitening kernel is fitted to the images that `init` is given and is not trained; it lies
    among the batch statistics. With the defaults on 32x32x3 the network has 1,971,352 parameters
    that are.

    Source: Jordan, 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498; with
    Muon, github.com/KellerJordan/cifar10-airbench, airbench94_muon.py. There the head is x W / D
    with W of deviation 1 and a rate r; here it is x V with V of deviation 1 / D and the rate r /
    D^2, which takes the same steps.

    Args:
      widths: in [1, 100000], channels of each group of two convolutions.
      whiten: fit the first layer to the patches of 5,000 training images and fix it, or train it as
        the others.
      activation: relu, gelu, silu or tanh.
      head: linear or cosine.
    """

    num_classes: int = 10
    widths: Sequence[int] = (64, 256, 256)
    whiten: bool = True
    activation: str = "gelu"
    dtype: DTypeLike | None = None
    head: str = "linear"
    conv: Convolution = Convolution()
    axis_name: str | None = None

    init_images = 5_000
    cpu_images = CPU_IMAGES

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Compute the logits: float[B, H, W, C] -> float32[B, K]."""
        plain, pooled = (self.conv.pooled(side) for side in (1, 2))
        activation = named("activation", self.activation, ACTIVATIONS)
        channels = 8 * x.shape[-1]
        if self.whiten:
            kernel = self.variable("batch_stats", "whitening", lambda: whitening(x)).value
            bias = self.param(
                "whitening_bias", uniform, (channels,), jnp.float32, 1 / math.sqrt(4 * x.shape[-1])
            )
            images, kernel, bias = plain.promote(x, kernel, bias, dtype=self.dtype)
            x = plain(images, kernel, (1, 1), "VALID", dimension_numbers=NHWC) + bias.reshape(
                1, 1, 1, -1
            )
        else:
            x = nn.Conv(
                channels,
                (2, 2),
                padding="VALID",
                dtype=self.dtype,
                conv_general_dilated=plain,
                promote_dtype=plain.promote,
            )(x)
        x = activation(x)  # [B, H - 1, W - 1, 8 C]
        for width in self.widths:  # [B, h, w, c] -> [B, h // 2, w // 2, width]
            for convolve in (pooled, plain):
                x = nn.Conv(
                    width,
                    (3, 3),
                    padding=1,
                    use_bias=False,
                    dtype=self.dtype,
                    kernel_init=first_filters_pass_on,
                    conv_general_dilated=convolve,
                    promote_dtype=convolve.promote,
                )(x)
                x = BatchNorm(
                    momentum=0.6,
                    epsilon=1e-12,
                    use_scale=False,
                    axis_name=self.axis_name,
                )(x, train=train)
                x = activation(x)
        x = jnp.max(x, (1, 2))
        if self.head == "linear":
            return as_float(
                Dense(self.num_classes, use_bias=False, dtype=self.dtype, kernel_init=small_head)(x)
            )
        return named("head", self.head, HEADS)(self.num_classes, dtype=self.dtype)(x)


def whitening(images: jax.Array, eps: float = 5e-4) -> jax.Array:
    """Compute a 2x2 kernel whose responses to the images' patches are uncorrelated and of equal
    size, each with both signs.

    Args:
      images: float[N, H, W, C], normalised.
      eps: added to the variances before dividing by their root.

    Returns:
      float32[2, 2, C, 8 C]: eigenvectors of the patches' second moments over their roots,
      ascending; then negated.

    Source: tysam-code/hlb-CIFAR10; Jordan, 2024, arXiv 2404.00498.
    """
    views = [
        images[:, i : images.shape[1] - 1 + i, j : images.shape[2] - 1 + j]
        for i in (0, 1)
        for j in (0, 1)
    ]
    patches = as_float(jnp.concatenate(views, -1))  # [N, H - 1, W - 1, 4 C]
    patches = patches.reshape(-1, patches.shape[-1])
    moments = jnp.matmul(patches.T, patches, precision="highest") / max(len(patches), 1)
    variances, vectors = jnp.linalg.eigh(moments)
    kernel = (vectors / jnp.sqrt(variances + eps)[None]).reshape(2, 2, images.shape[-1], -1)
    return jnp.concatenate([kernel, -kernel], -1)


def uniform(key: jax.Array, shape: Sequence[int], dtype: DTypeLike, bound: float) -> jax.Array:
    """Draw uniform initial values between -bound and bound, as torch.nn.Conv2d does with a bound
    of 1 / sqrt(fan-in).
    """
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def first_filters_pass_on(
    key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Draw initial filters [h, w, I, O]: the i-th of the first I passes on channel i, the others
    are uniform.

    Source: torch.nn.init.dirac_ over the default of torch.nn.Conv2d, as in airbench.
    """
    h, w, inputs, outputs = shape
    kernel = uniform(key, shape, dtype, 1 / math.sqrt(h * w * inputs))
    passing = (
        jnp.zeros((h, w, inputs, inputs), dtype)
        .at[h // 2, w // 2]
        .set(jnp.eye(inputs, dtype=dtype))
    )
    return jnp.concatenate([passing, kernel[..., inputs:]], -1)[..., :outputs]


def small_head(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Draw initial weights [D, K]: uniform, with a standard deviation of exactly 1 / D."""
    kernel = uniform(key, shape, dtype, 1.0)
    return kernel / (shape[0] * jnp.std(kernel, ddof=1))
