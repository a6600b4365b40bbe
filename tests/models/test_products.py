"""Products: values, and derivatives of every order and mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnlab import models
from cnnlab.models.products import product

EPS = np.finfo(np.float32).eps


def operands(dtype, rows=7, channels=5, features=3):
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, rows, channels))
    return x.astype(dtype), jax.random.normal(keys[1], (channels, features)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_and_gradients_are_those_of_the_operands_in_double_precision(dtype):
    """Off by at most n eps of the sum of the magnitudes of n terms, with eps of float32. In half
    precision the cotangent and the gradients are rounded to it, each off by eps / 2 of that type.
    """
    x, kernel = operands(dtype)
    y, pullback = jax.vjp(product, x, kernel)
    dy = jax.random.normal(jax.random.key(1), y.shape)
    assert y.dtype == dy.dtype == jnp.float32
    eps = EPS if dtype == "float32" else float(jnp.finfo(dtype).eps)
    results = y, *pullback(dy)
    double = [np.asarray(array, np.float64) for array in (x, kernel, dy)]
    magnitudes = exact(*map(np.abs, double))
    for got, wanted, magnitude in zip(results, exact(*double), magnitudes, strict=True):
        rounding = 0 if got is y else eps
        bound = (2 * 7 * EPS + rounding) * magnitude
        assert np.all(np.abs(np.asarray(got, np.float64) - wanted) <= bound)


def exact(x, kernel, dy):
    return x @ kernel, dy @ kernel.T, np.einsum("brc,brd->cd", x, dy)


def test_derivatives_of_every_mode_and_order():
    """As of the product that JAX knows; forward mode, Hessians by either, and a seed axis."""
    x, kernel = operands("float32", rows=2)

    def of(multiply):
        def value(kernel, x):
            return jnp.sum(jnp.tanh(multiply(x, kernel)) ** 2)

        tangents = jnp.cos(kernel), jnp.sin(x)
        return (
            jax.jvp(value, (kernel, x), tangents)[1],
            jax.hessian(value, (0, 1))(kernel, x),
            jax.jacrev(jax.jacrev(value, 1))(kernel, x),
            jax.vmap(jax.grad(value), (0, None))(jnp.stack([kernel, -kernel]), x),
        )

    for got, wanted in zip(
        jax.tree.leaves(of(product)), jax.tree.leaves(of(jnp.matmul)), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=100 * EPS)


@pytest.mark.parametrize(
    "model", [models.SoftmaxRegression(), models.MLP(hidden=[5]), models.CNN(widths=[4])]
)
def test_networks_have_forward_mode_derivatives_in_single_precision(model):
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = model.init(jax.random.key(1), x)

    def value(x):
        return jnp.sum(jax.nn.log_softmax(model.apply(variables, x))[:, 0])

    tangent = jnp.cos(x)
    _, forward = jax.jvp(value, (x,), (tangent,))
    reverse = jnp.sum(jax.grad(value)(x) * tangent)
    np.testing.assert_allclose(forward, reverse, rtol=1e-4, atol=1e-5)
