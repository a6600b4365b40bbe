"""The contract of a loss, held by every public one, against formulas in float64: values, gradients, edges, labels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnlab import losses

EPS = 2.0**-23  # one ulp of float32, relative
INF = np.inf


def probabilities(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross_entropy(z, q):
    z = z - z.max(-1, keepdims=True)
    return -np.sum(q * (z - np.log(np.exp(z).sum(-1, keepdims=True))), -1)


def cross_entropy_gradient(z, q):
    return probabilities(z) * q.sum(-1, keepdims=True) - q


def squared(z, q):
    return np.sum((probabilities(z) - q) ** 2, -1)


def squared_gradient(z, q):
    p = probabilities(z)
    return 2 * p * (p - q - np.sum(p * (p - q), -1, keepdims=True))


# loss -> its value and gradient for float64 logits and distributions
ORACLES = {
    losses.cross_entropy: (cross_entropy, cross_entropy_gradient),
    losses.mean_squared_error: (squared, squared_gradient),
}
every_loss = pytest.mark.parametrize("loss", ORACLES, ids=lambda loss: loss.__name__)


def example(batch=(6,), classes=5, seed=0):
    """float32 logits, ids, soft labels."""
    rng = np.random.default_rng([seed, *batch])
    soft = rng.dirichlet(np.ones(classes), batch).astype(np.float32)
    return (3 * rng.standard_normal((*batch, classes))).astype(np.float32), rng.integers(0, classes, batch), soft


@partial(jax.jit, static_argnums=0)
def value_and_slope(loss, logits, labels):
    """Losses, and the gradient of their sum."""
    value, pull = jax.vjp(lambda z: loss(z, labels), logits)
    return value, pull(jnp.ones_like(value))[0]


@partial(jax.jit, static_argnums=0)
def derivatives(loss, logits, labels):
    """Of one example: value, gradient (reverse and forward), Hessian."""
    return [f(logits, labels) for f in (loss, jax.grad(loss), jax.jacfwd(loss), jax.hessian(loss))]


def test_every_public_loss_has_an_oracle():
    assert {loss.__name__ for loss in ORACLES} == set(losses.__all__)


@pytest.mark.parametrize(
    ("loss", "probs", "label", "value"),
    [
        (losses.cross_entropy, [0.7, 0.2, 0.1], 0, 0.35667494393873245),
        (losses.cross_entropy, [0.7, 0.2, 0.1], 2, 2.302585092994046),
        (losses.cross_entropy, [0.25] * 4, 3, 1.3862943611198906),
        (losses.cross_entropy, [0.5, 0.25, 0.25], [0.5, 0.25, 0.25], 1.0397207708399179),  # 1.5 bits
        (losses.mean_squared_error, [0.7, 0.2, 0.1], 0, 0.14),  # .3² + .2² + .1²
        (losses.mean_squared_error, [0.7, 0.2, 0.1], 2, 1.34),  # .7² + .2² + .9²
        (losses.mean_squared_error, [0.25] * 4, 1, 0.75),
        (losses.mean_squared_error, [0.5, 0.5], [0.25, 0.75], 0.125),
    ],
)
def test_hand_values(loss, probs, label, value):
    # p = exp(log p) / sum: the logits' rounding (half an ulp of 2.3 at most) and four roundings more
    got = loss(jnp.log(jnp.array(probs)), jnp.array(label))
    assert got.dtype == jnp.float32 and got.shape == ()
    np.testing.assert_allclose(got, value, rtol=4 * EPS, atol=2 * EPS)
    with jax.enable_x64():
        got = loss(jnp.log(jnp.array(probs)), jnp.array(label))
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(np.asarray(got), value, rtol=0, atol=1e-15)


@every_loss
@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("kind", ["ids", "one-hot", "soft"])
def test_value_and_gradient(loss, batch, kind):
    logits, ids, soft = example(batch)
    one_hot = np.eye(5, dtype=np.float32)[ids]
    labels, q = {"ids": (ids, one_hot), "one-hot": (one_hot, one_hot), "soft": (soft, soft)}[kind]
    value, gradient = ORACLES[loss]
    z, q = logits.astype(np.float64), q.astype(np.float64)
    got, slope = value_and_slope(loss, logits, labels)
    assert got.shape == batch and got.dtype == jnp.float32
    # logits reach 9: the spread (18) and five classes bound the relative error of each probability, see test_softmax
    np.testing.assert_allclose(got, value(z, q), rtol=24 * EPS, atol=4 * EPS)
    np.testing.assert_allclose(slope, gradient(z, q), atol=24 * EPS)
    np.testing.assert_allclose(np.sum(slope, -1), np.zeros(batch), atol=8 * EPS)  # shifting the logits changes nothing


@every_loss
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_logits_accumulate_in_float32(loss, dtype):
    rng = np.random.default_rng(3)
    logits, ids = jnp.asarray(4 * rng.standard_normal((32, 100)), dtype), rng.integers(0, 100, 32)
    z, value = np.asarray(logits, np.float64), ORACLES[loss][0]
    got, slope = value_and_slope(loss, logits, ids)
    assert got.dtype == jnp.float32 and slope.dtype == logits.dtype
    np.testing.assert_allclose(got, value(z, np.eye(100)[ids]), rtol=32 * EPS, atol=8 * EPS)


@every_loss
@pytest.mark.parametrize("logits", [[1e4, -1e4, 0.0], [1.0, -INF, 2.0], [1e4, -INF, -1e4], [0.0, -INF, -INF]])
def test_extreme_logits(loss, logits):
    z, value, gradient = jnp.array(logits), *ORACLES[loss]
    exact = np.where(np.isinf(logits), -1e300, logits)  # finite for the oracle, and far below any exponential's reach
    for label in np.flatnonzero(np.isfinite(logits)):
        q = np.eye(3)[label]
        for labels in (label, jnp.asarray(q, jnp.float32)):
            got, slope, forward, hessian = derivatives(loss, z, labels)
            np.testing.assert_allclose(got, value(exact, q), rtol=4 * EPS, atol=EPS)
            np.testing.assert_allclose(slope, gradient(exact, q), atol=4 * EPS)
            np.testing.assert_allclose(forward, gradient(exact, q), atol=4 * EPS)
            assert np.all(np.isfinite(hessian)) and np.all(np.asarray(hessian)[:, np.isinf(logits)] == 0)
            assert np.all(np.asarray(slope)[np.isinf(logits)] == 0)


def test_an_impossible_true_class():
    z = jnp.array([1.0, -INF, 2.0])
    assert losses.cross_entropy(z, 1) == INF
    p = probabilities(np.array([1.0, 2.0]))
    np.testing.assert_allclose(losses.mean_squared_error(z, 1), np.sum(p**2) + 1, rtol=4 * EPS)
    assert np.all(np.isfinite(jax.grad(losses.cross_entropy)(z, 1)))


@every_loss
def test_transforms(loss):
    logits, ids, soft = example((6,))
    value, gradient = ORACLES[loss]
    for labels, q in ((ids, np.eye(5)[ids]), (soft, soft.astype(np.float64))):
        z = logits.astype(np.float64)
        wanted, slope = value(z, q), gradient(z, q)
        for way in (jax.jit(loss), jax.vmap(loss), jax.jit(jax.vmap(loss))):
            np.testing.assert_allclose(way(logits, labels), wanted, rtol=24 * EPS, atol=4 * EPS)
        _, reverse, forward, hessian = jax.vmap(partial(derivatives, loss))(logits, labels)
        np.testing.assert_allclose(reverse, slope, atol=24 * EPS)
        np.testing.assert_allclose(forward, slope, atol=24 * EPS)
        # central differences of the float64 gradient: their own error is below 1e-9
        shifts = 1e-5 * np.eye(5)
        second = np.stack([(gradient(z + s, q) - gradient(z - s, q)) / 2e-5 for s in shifts], -1)
        np.testing.assert_allclose(hessian, second, atol=24 * EPS)


@every_loss
@pytest.mark.parametrize("label", [-1, 5, -100, 300, 2**31 - 1, -(2**31), 2**32 + 1])
def test_a_label_out_of_range_is_an_error_where_it_can_be_seen(loss, label):
    logits, ids, _ = example((6,))
    ids[2] = label
    for where in (logits, jnp.array(logits)):
        with pytest.raises(ValueError, match=rf"class ids must lie in \[0, 5\), got {label}$"):
            loss(where, ids)
    if -(2**31) <= label < 2**31:
        with pytest.raises(ValueError, match="class ids must lie in"):
            jax.grad(loss)(logits[2], jnp.array(label))


@every_loss
@pytest.mark.parametrize("label", [-1, 5, -100, 300, 2**31 - 1, -(2**31)])
def test_a_label_out_of_range_is_nan_under_transforms(loss, label):
    logits, ids, _ = example((6,))
    ids = ids.astype(np.int32)
    good, ids[2] = np.arange(6) != 2, label
    summed = lambda z, y: jnp.sum(loss(z, y))
    for values in (jax.jit(loss)(logits, ids), jax.vmap(loss)(logits, ids)):
        assert np.array_equal(np.isfinite(values), good)
    for slope in (jax.jit(jax.grad(summed))(logits, ids), jax.vmap(jax.grad(loss))(logits, ids)):
        assert np.array_equal(np.all(np.isfinite(slope), -1), good)
        assert np.all(np.isnan(slope[2]))


@every_loss
def test_wide_and_narrow_label_types(loss):
    logits, ids, _ = example((6,))
    wanted = np.asarray(loss(logits, ids))
    for dtype in (np.uint8, np.int8, np.int16, np.uint32, np.int64):
        np.testing.assert_array_equal(loss(logits, ids.astype(dtype)), wanted)
    np.testing.assert_array_equal(loss(logits, ids.tolist()), wanted)
    assert np.isnan(jax.jit(loss)(np.zeros(300, np.float32), np.int8(-1)))  # not class 255
    assert np.isnan(jax.jit(loss)(np.zeros(300, np.float32), np.uint32(2**32 - 1)))
    with jax.enable_x64():  # where int64 reaches jit as it is: 2**32 + 1 is not class 1
        assert np.isnan(np.asarray(jax.jit(loss)(jnp.zeros(3), jnp.array(2**32 + 1))))


@every_loss
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            np.eye(5, dtype=np.int32)[:2],
            r"one-hot labels must be float \(labels.astype\(float\)\), or take their argmax",
        ),
        (np.array([[0], [1]]), r"drop the last axis \(labels\[..., 0\]\)"),
        (np.array([True, False]), "labels must be integer class ids or float distributions, got bool"),
        (np.eye(5, dtype=bool)[:2], "labels must be integer class ids or float distributions, got bool"),
        (np.array([0.0, 1.0], np.float32), "class ids must be integers"),
        (np.zeros((2, 4), np.float32), r"must have the logits' shape \(2, 5\), got \(2, 4\)"),
        (np.array([0, 1, 2]), r"must have the logits' batch shape \(2,\), got \(3,\)"),
        (np.array(0), r"must have the logits' batch shape \(2,\), got \(\)"),
    ],
)
def test_labels_that_do_not_fit(loss, transform, labels, message):
    with pytest.raises(ValueError, match=message):
        transform(loss)(jnp.zeros((2, 5)), labels)


@every_loss
def test_logits_need_classes(loss):
    with pytest.raises(ValueError, match="got a scalar"):
        loss(jnp.array(1.0), 0)


@every_loss
def test_empty_batch(loss):
    for labels in (jnp.zeros(0, jnp.int32), jnp.zeros((0, 5))):
        assert loss(jnp.zeros((0, 5)), labels).shape == (0,)
        assert jax.grad(lambda z, y=labels: jnp.sum(loss(z, y)))(jnp.zeros((0, 5))).shape == (0, 5)


def test_cross_entropy_is_convex_and_smooth():
    logits, ids, _ = example((20,), seed=1)
    hessians = jax.vmap(partial(derivatives, losses.cross_entropy))(logits, ids)[3]
    eigenvalues = np.linalg.eigvalsh(np.asarray(hessians, np.float64))
    assert eigenvalues.min() > -8 * EPS and eigenvalues.max() <= 0.5 + 8 * EPS  # 1/2: Blondel et al. 2020


def test_ranges():
    logits, ids, _ = example((200,), seed=2)
    logits = 30 * logits
    assert np.all(np.asarray(jax.jit(losses.cross_entropy)(logits, ids)) >= 0)
    brier = np.asarray(jax.jit(losses.mean_squared_error)(logits, ids))
    assert np.all((brier >= 0) & (brier <= 2)) and brier.max() > 1.9
