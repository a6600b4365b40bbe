"""Matrix products in the forms that are fast on a CPU, summed in single precision.

XLA has a quick kernel there for a product of two matrices as they lie in memory, or with the second
transposed, but not with the first transposed, which is what the gradient by a kernel is: 109 and 31
GFLOP/s for [2048, 288] x [288, 64]. Of bfloat16 the kernel is twice as fast, if the result is
float32: 211 (one core of an AMD Zen 4).

`Dense` is flax's layer with these products.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax.typing import DTypeLike


def sum_dtype(dtype: DTypeLike) -> np.dtype:
    """Return the type that products of a type are summed in: float32, or that type if wider."""
    return jnp.dtype(jnp.float32) if jnp.dtype(dtype).itemsize < 4 else jnp.dtype(dtype)


def contract(x: jax.Array, matrix: jax.Array, axis: int = 0) -> jax.Array:
    """Multiply along the last axis of x, float[..., C], and `axis` of a matrix of float[C, D] or
    float[D, C].

    Returns:
      float[..., D], of the type that products are summed in.
    """
    dimensions = ((x.ndim - 1,), (axis,)), ((), ())
    return lax.dot_general(x, matrix, dimensions, preferred_element_type=sum_dtype(x.dtype))


def promote_operands(
    *operands: jax.Array | None, dtype: Any = None, inexact: bool = True
) -> list[Any]:
    """Convert a layer's inputs and kernel to the type that it computes in, and its bias to the one
    that products are summed in; for `nn.Dense(promote_dtype=...)`.
    """
    *factors, bias = operands
    factors = promote_dtype(*factors, dtype=dtype, inexact=inexact)
    return [*factors, None if bias is None else bias.astype(sum_dtype(factors[0].dtype))]


def dense_product(x: jax.Array, kernel: jax.Array, *dimensions: Any, **options: Any) -> jax.Array:
    """Multiply float[..., C] by float[C, D]; for `nn.Dense(dot_general=...)`.

    Returns:
      float[..., D], of the type that products are summed in.
    """
    del dimensions, options  # flax gives those of this product, and its default precision
    return product(x, kernel)


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiply float[..., C] by float[C, D]. In half precision it has no forward-mode derivative.

    Returns:
      float[..., D], of the type that products are summed in.
    """
    multiply = _product_in_half if jnp.dtype(x.dtype).itemsize < 4 else _product
    return multiply(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_jvp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return contract(x, kernel)


@_product.defjvp
def _(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> Any:
    x, kernel = primals
    dx, dkernel = tangents
    # Backward, this is the product of x transposed and the cotangent, both as they lie.
    by_kernel = lax.dot_general(_transposed(x), dkernel, (((0,), (0,)), ((), ())))
    return _product(x, kernel), contract(dx, kernel) + by_kernel


@jax.custom_vjp
def _product_in_half(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return contract(x, kernel)


def _backward_in_half(
    operands: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = operands
    dy = cotangent.astype(x.dtype)
    by_kernel = contract(_transposed(x), dy)
    return contract(dy, kernel, 1).astype(x.dtype), by_kernel.astype(kernel.dtype)


_product_in_half.defvjp(lambda x, kernel: (contract(x, kernel), (x, kernel)), _backward_in_half)


def _transposed(x: jax.Array) -> jax.Array:
    """Transpose a matrix; on a CPU, in memory."""
    return lax.platform_dependent(x, cpu=transposed_in_memory, default=jnp.transpose)


def transposed_in_memory(x: jax.Array) -> jax.Array:
    """Transpose a matrix; without the barrier XLA would multiply by it as it lies."""
    return lax.optimization_barrier(x.T)


def summed_outer(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Sum x dy over rows, on a CPU: float[..., C], float[..., D] -> float[C, D]."""
    x, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return contract(transposed_in_memory(x), dy)


Dense = functools.partial(nn.Dense, dot_general=dense_product, promote_dtype=promote_operands)
