"""Dropout that agrees however devices share the batch, and the sizes that convolutions give."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnlab.parallel import example_keys


class Dropout(nn.Module):
    """Zero each unit with probability `rate`, scale the rest by 1 / (1 - rate).

    flax's own layer draws one mask for the array it sees, so under pmap each device would draw the same one; here each
    example's mask comes from its place in the global batch.

    Source: Srivastava et al., 2014, "Dropout", JMLR 15.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, axis_name: str | None = None) -> jax.Array:
        """x: float[B, ...] -> float[B, ...]; the identity unless `train`."""
        if not train or self.rate == 0:
            return x
        keys = example_keys(self.make_rng("dropout"), x.shape[0], axis_name)
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))(keys)
        return jnp.where(kept, x / (1 - self.rate), jnp.zeros_like(x))


def conv_output_size(size: int, kernel: int, padding: int = 0, stride: int = 1) -> int:
    """Side of a convolution's or pooling's output: floor((W - K + 2 P) / S) + 1.

    Args:
      size: W, side of the input in pixels.
      kernel: K, side of the kernel.
      padding: P, pixels added on each side.
      stride: S, pixels from one output to the next.

    Returns:
      The side of the output.

    Raises:
      ValueError: a size that is not positive, or a kernel larger than the padded input.

    Source: Dumoulin & Visin, 2016, "A guide to convolution arithmetic for deep learning", arXiv 1603.07285.

    >>> conv_output_size(32, kernel=3, padding=1), conv_output_size(32, kernel=2, stride=2)
    (32, 16)
    """
    if min(size, kernel, stride) < 1 or padding < 0:
        raise ValueError(
            f"sizes must be positive, padding not negative: got W={size} K={kernel} P={padding} S={stride}"
        )
    if kernel > size + 2 * padding:
        raise ValueError(f"a kernel of {kernel} does not fit into {size} pixels with padding {padding}")
    return (size - kernel + 2 * padding) // stride + 1
