"""Derivatives with respect to labels that are distributions, in float64: at 0, at 1 and between.

Nearly every loss is linear or quadratic in the distribution, so differences of three points are
exact but for rounding. The Bregman divergence of bi_tempered is not: its slope is log_t1 q - log_t1
p, from the paper.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_losses import ON_COSINES, K, bound, jit

from cnnlab import losses
from cnnlab.losses import (
    class_balanced,
    class_weights,
    cross_entropy,
    focal,
    label_smoothing,
    temperature,
    weighted_sum,
    with_z_loss,
)
from cnnlab.softmax import log_softmax, tempered_softmax

STEP = 1e-3
QUICK = {
    "cross_entropy",
    "binary_cross_entropy",
    "multiclass_hinge",
    "mean_squared_error",
    "weighted",
}
DISTRIBUTIONS = np.array(
    [
        [1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0],
        [0.3, 0.7, 0, 0, 0],
        [0.1, 0.2, 0.3, 0.25, 0.15],
    ]
)
TRANSFORMED = {
    "smoothed": label_smoothing(cross_entropy, 0.1),
    "off_target": label_smoothing(focal, 0.3, "off_target"),
    "softened": temperature(cross_entropy, 2.0),
    "weighted": class_weights(cross_entropy, [1.0, 2.0, 3.0, 4.0, 5.0]),
    "balanced": class_balanced(focal, [100, 10, 1, 5, 3], beta=0.99),
    "pulled": with_z_loss(cross_entropy, 0.5),
    "summed": weighted_sum({cross_entropy: 1.0, focal: -0.5}),
}
POLYNOMIAL = {name: bound(name) for name in losses.LOSSES if name != "bi_tempered"} | TRANSFORMED


@partial(jit, static_argnums=0)
def slopes(loss, z, q):
    """float64[N, K] each -> value, dL/dz, dL/dq, d2L/dz dq by both orders."""
    ways = (loss, jax.grad(loss), jax.grad(loss, 1), jax.jacfwd(jax.grad(loss), 1),
            jax.jacrev(jax.grad(loss, 1)))  # fmt: skip
    return jax.vmap(lambda z, q: [f(z, q) for f in ways])(z, q)


def difference(values, step):
    """At 0, from the values at 0, at a step along each class, and at two: exact for squares."""
    start, once, twice = values[:, :1], values[:, 1 : K + 1], values[:, K + 1 :]
    return (4 * once - 3 * start - twice) / (2 * step)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in POLYNOMIAL]
)
def test_differences(name):
    """Of values, dL/dq; of dL/dz, the mixed derivative, that a learned label needs."""
    z = 2 * np.random.default_rng(0).standard_normal(K)
    if name in ON_COSINES:
        z = np.tanh(z)
    # Away from the border: up at 0, down at 1
    step = np.where(DISTRIBUTIONS < 0.5, STEP, -STEP)
    moved = step[:, :, None] * np.eye(K)
    q = DISTRIBUTIONS[:, None] + np.concatenate([0 * moved[:, :1], moved, 2 * moved], 1)
    with jax.enable_x64():
        value, by_z, by_q, mixed, turned = (
            np.asarray(x).reshape(*q.shape[:2], *x.shape[1:])
            for x in slopes(POLYNOMIAL[name], np.tile(z, (q[..., 0].size, 1)), q.reshape(-1, K))
        )
    # Rounding: an ulp of the value (up to 1e2, with a factor of 64 on cosines) over the step
    atol = 1e3 * 2.0**-52 / STEP * (64 if name in ON_COSINES else 1)
    np.testing.assert_allclose(by_q[:, 0], difference(value, step), rtol=0, atol=atol)
    wanted = np.swapaxes(difference(by_z, step[..., None]), 1, 2)
    np.testing.assert_allclose(mixed[:, 0], wanted, rtol=0, atol=atol)
    np.testing.assert_allclose(np.swapaxes(turned, 2, 3), mixed, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("t1", "t2"),
    [
        (0.8, 1.2),
        pytest.param(0.5, 2.0, marks=pytest.mark.slow),
        pytest.param(0.0, 0.7, marks=pytest.mark.slow),
    ],
)
def test_bi_tempered(t1, t2):
    z = np.array([2.0, -1.0, 0.5, 0.0, 1.5])
    loss = partial(losses.bi_tempered, t1=t1, t2=t2)
    with jax.enable_x64():
        p = np.asarray(tempered_softmax(z, t2))
        _, _, by_q, mixed, turned = slopes(loss, np.tile(z, (4, 1)), DISTRIBUTIONS)
        # d/dz of -log_t1 p_k
        wanted = jax.jacfwd(lambda z: -(tempered_softmax(z, t2) ** (1 - t1)) / (1 - t1))(z)
    slope = (DISTRIBUTIONS ** (1 - t1) - p ** (1 - t1)) / (1 - t1)
    np.testing.assert_allclose(by_q, slope, rtol=0, atol=1e-13)
    for cross in (np.swapaxes(mixed, 1, 2), turned):
        np.testing.assert_allclose(cross, np.tile(wanted, (4, 1, 1)), rtol=0, atol=1e-13)


def test_an_infinite_slope_is_a_large_number():
    """Where a class is impossible, and where log 0 is the slope: no NaN comes of it."""
    z = jnp.array([0.0, -np.inf, 1.0])
    q = jnp.array([0.0, 0.0, 1.0])
    value, (by_z, by_q) = jax.value_and_grad(cross_entropy, (0, 1))(z, q)
    p = np.exp([0, 1]) / np.sum(np.exp([0, 1]))
    np.testing.assert_allclose(value, -np.log(p[1]), rtol=1e-6)
    np.testing.assert_allclose(by_z, [p[0], 0, p[1] - 1], rtol=1e-6)
    np.testing.assert_allclose(by_q[jnp.array([0, 2])], -np.log(p), rtol=1e-6)
    assert 1e18 < by_q[1] < np.inf
    kullback_leibler = partial(losses.bi_tempered, t1=1.0, t2=1.0)
    by_q = jax.grad(kullback_leibler, 1)(jnp.zeros(3), q)
    assert np.all((by_q[:2] < -1e18) & np.isfinite(by_q[:2]))
    assert np.isfinite(jax.jvp(kullback_leibler, (jnp.zeros(3), q), (jnp.ones(3), jnp.zeros(3)))[1])


def test_a_label_can_be_learned():
    """Gradient descent on q = softmax(w) from a one-hot start finds argmin_k -log p_k."""
    z = jnp.array([0.0, 2.0, 1.0])
    np.testing.assert_allclose(
        jax.grad(cross_entropy, 1)(z, jnp.array([1.0, 0.0, 0.0])), -log_softmax(z), rtol=1e-6
    )
