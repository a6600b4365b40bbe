"""Losses made of losses: hand values, what passes through, and that they stay losses."""

import inspect
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnlab import losses, spec
from cnnlab.errors import InputError
from cnnlab.losses import (
    class_balanced,
    class_weights,
    cross_entropy,
    effective_number,
    focal,
    label_smoothing,
    mean_squared_error,
    multiclass_hinge,
    temperature,
    weighted_sum,
    with_z_loss,
)
from cnnlab.parts import KINDS

EPS = 2.0**-23  # one ulp of float32, relative
LOG = np.log(np.array([0.7, 0.2, 0.1], np.float32))
IDS = np.array([0, 2, 1, 1], np.int32)


def example():
    rng = np.random.default_rng(0)
    return rng.standard_normal((4, 3)).astype(np.float32), rng.dirichlet(np.ones(3), 4).astype(
        np.float32
    )


MADE = {
    "smoothed": label_smoothing(cross_entropy, 0.1),
    "off_target": label_smoothing(mean_squared_error, 0.3, "off_target"),
    "softened": temperature(cross_entropy, 2.0),
    "weighted": class_weights(cross_entropy, [1.0, 2.0, 3.0]),
    "balanced": class_balanced(mean_squared_error, [100, 10, 1], beta=0.99),
    "pulled": with_z_loss(cross_entropy, 0.5),
    "summed": weighted_sum({cross_entropy: 1.0, multiclass_hinge: -0.5}),
    "all": with_z_loss(
        class_weights(label_smoothing(temperature(focal, 2.0), 0.1), [1.0, 2.0, 3.0]), 1e-2
    ),
}
every = pytest.mark.parametrize("made", MADE.values(), ids=MADE)


@pytest.mark.parametrize(
    ("convention", "label", "given"),
    [
        ("uniform", 0, [0.8, 0.1, 0.1]),  # 0.3 / 3 for everyone
        ("off_target", 0, [0.7, 0.15, 0.15]),  # 0.3 / 2 for the others
        ("uniform", [0.5, 0.5, 0.0], [0.45, 0.45, 0.1]),
        ("off_target", [0.5, 0.5, 0.0], [0.425, 0.425, 0.15]),  # 0.7 q + 0.3 (1 - q) / 2
    ],
)
def test_label_smoothing(convention, label, given):
    smoothed = label_smoothing(cross_entropy, 0.3, convention)
    labels = label if isinstance(label, int) else np.array(label, np.float32)
    np.testing.assert_allclose(
        smoothed(LOG, labels), -np.dot(given, np.log([0.7, 0.2, 0.1])), rtol=8 * EPS
    )


@pytest.mark.parametrize("convention", ["uniform", "off_target"])
def test_label_smoothing_of_nothing_and_of_everything(convention):
    z, soft = example()
    for labels in (IDS, soft):
        np.testing.assert_allclose(
            label_smoothing(cross_entropy, 0.0, convention)(z, labels),
            cross_entropy(z, labels),
            rtol=8 * EPS,
        )
    # alpha = (K - 1) / K, off target, and alpha = 1, uniform, leave nothing of the label
    flat = label_smoothing(
        mean_squared_error, 1.0 if convention == "uniform" else 2 / 3, convention
    )
    wanted = mean_squared_error(z, np.full((4, 3), 1 / 3, np.float32))
    np.testing.assert_allclose(flat(z, IDS), wanted, rtol=8 * EPS)


def test_temperature():
    z, soft = example()
    for labels in (IDS, soft):
        np.testing.assert_array_equal(
            temperature(cross_entropy, 4.0)(z, labels), cross_entropy(z / 4, labels)
        )


def test_class_weights():
    weighted = class_weights(cross_entropy, np.array([1, 5, 10]))
    np.testing.assert_allclose(weighted(LOG, 2), 10 * math.log(10), rtol=4 * EPS)
    q = np.array([0.5, 0.25, 0.25], np.float32)
    wanted = -np.dot([0.5, 1.25, 2.5], np.log([0.7, 0.2, 0.1]))  # sum_k q_k w_k L(z, k)
    np.testing.assert_allclose(weighted(LOG, q), wanted, rtol=8 * EPS)
    # also for losses that are defined on distributions themselves: a weight belongs to a class
    np.testing.assert_allclose(
        class_weights(mean_squared_error, [2, 1, 1])(LOG, q),
        0.5 * 2 * 0.14 + 0.25 * (1.14 + 1.34),
        rtol=16 * EPS,
    )


def test_traced_counts_weigh_as_known_ones():
    counts = np.array([5000, 50, 1])
    logits, labels = np.array([[1.0, 2.0, 0.5]] * 3), np.arange(3)
    for beta in (0.0, 0.9999):
        traced = jax.jit(lambda n, b=beta: class_balanced(mean_squared_error, n, b)(logits, labels))
        known = class_balanced(mean_squared_error, counts, beta)(logits, labels)
        # float32: some roundings of numbers that add up without cancelling
        np.testing.assert_allclose(traced(counts), known, rtol=1e-5)
    with pytest.raises(ValueError, match="positive and finite"):
        jax.jit(lambda n: effective_number(n))(np.ones((2, 2)))


def test_effective_number():
    np.testing.assert_array_equal(effective_number([3, 700, 1], beta=0.0), np.ones(3))
    # (1 - .5) / (1 - .5^n): 1, 2/3, 4/7, of mean 47/63
    np.testing.assert_allclose(
        effective_number([1, 2, 3], 0.5), np.array([63, 42, 36]) / 47, rtol=1e-14
    )
    weights = effective_number([5000, 500, 50, 5])
    assert np.all(np.diff(weights) > 0) and abs(weights.sum() - 4) < 1e-12
    rare = effective_number([1000, 10], beta=1 - 1e-12)  # towards 1 / n
    np.testing.assert_allclose(rare, np.array([0.002, 0.2]) / 0.101, rtol=1e-8)


def test_class_balanced():
    # The weights of [1, 2, 3] images at beta = 1/2 are 63/47, 42/47 and 36/47
    # (test_effective_number).
    balanced = class_balanced(cross_entropy, [1, 2, 3], beta=0.5)
    np.testing.assert_allclose(balanced(LOG, 2), 36 / 47 * math.log(10), rtol=4 * EPS)
    q = np.array([0.5, 0.25, 0.25], np.float32)
    wanted = -np.dot([0.5 * 63 / 47, 0.25 * 42 / 47, 0.25 * 36 / 47], np.log([0.7, 0.2, 0.1]))
    np.testing.assert_allclose(balanced(LOG, q), wanted, rtol=8 * EPS)
    z, soft = example()
    counts = np.array([5000, 50, 5])
    for labels in (IDS, soft):  # of whichever loss, with the paper's beta by default
        by_hand = class_weights(focal, effective_number(counts, 0.9999))(z, labels, gamma=0.5)
        np.testing.assert_array_equal(class_balanced(focal, counts)(z, labels, gamma=0.5), by_hand)
        equal = class_balanced(cross_entropy, [7, 7, 7])(z, labels)
        np.testing.assert_allclose(equal, cross_entropy(z, labels), rtol=8 * EPS)


def test_class_balanced_sees_the_counts_of_the_run():
    part = spec.find(KINDS["transform"], "class_balanced,beta=0.5")
    assert part.asks("class_counts") and part.requires("class_counts")
    made = part.call(cross_entropy, class_counts=np.array([1, 2, 3]))
    np.testing.assert_array_equal(
        made(LOG, 2), class_balanced(cross_entropy, [1, 2, 3], 0.5)(LOG, 2)
    )
    written = spec.find(KINDS["transform"], "class_balanced,beta=0.5,class_counts=[3,2,1]")
    made = written.call(cross_entropy, class_counts=np.array([1, 2, 3]))
    np.testing.assert_array_equal(
        made(LOG, 2), class_balanced(cross_entropy, [3, 2, 1], 0.5)(LOG, 2)
    )


def test_with_z_loss():
    pulled = with_z_loss(cross_entropy, 0.25)
    z = LOG + 2  # log sum exp z = 2
    np.testing.assert_allclose(pulled(z, 0), 1 - math.log(0.7), rtol=4 * EPS)
    slope = jax.grad(pulled)(z, 0)
    # Cross-entropy's is 0, the pull's 2 · 0.25 · 2
    np.testing.assert_allclose(np.sum(slope), 1.0, rtol=8 * EPS)


def test_weighted_sum():
    both = weighted_sum({cross_entropy: 2.0, mean_squared_error: -1.0})
    np.testing.assert_allclose(both(LOG, 0), -2 * math.log(0.7) - 0.14, rtol=8 * EPS)


def test_compositions_are_what_they_say():
    z, soft = example()
    for labels in (IDS, soft):
        q = np.eye(3, dtype=np.float32)[labels] if labels is IDS else labels
        each = jnp.stack([focal(z / 2, np.full(4, k), gamma=0.5) for k in range(3)], -1)
        smooth = np.asarray(each) @ np.float32(0.9 * np.eye(3) + 0.1 / 3)
        wanted = smooth @ np.diag([1, 2, 3]) * q  # each class its weight, then the label chooses
        wanted = wanted.sum(-1) + 1e-2 * np.log(np.sum(np.exp(z), -1)) ** 2
        np.testing.assert_allclose(MADE["all"](z, labels, gamma=0.5), wanted, rtol=16 * EPS)


def test_hyperparameters_pass_through():
    z, _ = example()
    wraps = [
        lambda f: label_smoothing(f, 0.0),
        lambda f: temperature(f, 1.0),
        lambda f: class_weights(f, np.ones(3)),
    ]
    wraps += [lambda f: class_balanced(f, [2, 2, 2])]
    for wrap in (*wraps, lambda f: with_z_loss(f, 0.0)):
        np.testing.assert_allclose(
            wrap(focal)(z, IDS, gamma=0.5), focal(z, IDS, gamma=0.5), rtol=8 * EPS
        )
        with pytest.raises(TypeError, match="gama"):
            wrap(focal)(z, IDS, gama=0.5)


@partial(jax.jit, static_argnums=0)
def whole(loss, logits, labels):
    value, pull = jax.vjp(lambda z: loss(z, labels), logits)
    return value, pull(jnp.ones_like(value))[0]


@every
def test_they_are_losses(made):
    """jit, vmap and grad; float32 out; a label outside [0, K) is an error, and under jit NaN for
    itself alone.
    """
    z, soft = example()
    for labels in (IDS, soft):
        value, slope = whole(made, z, labels)
        assert value.shape == (4,) and value.dtype == jnp.float32
        assert np.all(np.isfinite(value)) and np.all(np.isfinite(slope))
    value, slope = whole(made, z, IDS)
    each = jax.jit(jax.vmap(jax.value_and_grad(made)))(z, IDS)
    np.testing.assert_allclose(each[0], value, rtol=16 * EPS, atol=EPS)
    np.testing.assert_allclose(each[1], slope, rtol=16 * EPS, atol=4 * EPS)
    assert (
        jax.eval_shape(made, jnp.zeros((2, 3), jnp.bfloat16), np.zeros(2, np.int32)).dtype
        == jnp.float32
    )
    for label in (-1, 3):
        with pytest.raises(ValueError, match=rf"class ids must lie in \[0, 3\), got {label}$"):
            made(z, np.array([0, label, 1, 1]))
        bad_value, bad_slope = whole(made, z, np.array([0, label, 1, 1], np.int32))
        good_value, good_slope = whole(made, z, np.array([0, 0, 1, 1], np.int32))
        for bad, good in ((bad_value, good_value), (bad_slope, good_slope)):
            assert np.all(np.isnan(bad[1]))
            np.testing.assert_array_equal(np.delete(bad, 1, 0), np.delete(good, 1, 0))


def test_they_name_logits_and_labels_first():
    """So that the command line's specifications, which look at signatures, take them for losses."""
    for name, made in MADE.items():
        assert [*inspect.signature(made).parameters][:2] == ["logits", "labels"], name
    assert not set(losses.TRANSFORMS) & set(losses.LOSSES)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: label_smoothing(cross_entropy, 1.1), r"alpha must lie in \[0, 1\], got 1.1"),
        (lambda: label_smoothing(cross_entropy, -0.1), r"alpha must lie in \[0, 1\], got -0.1"),
        (
            lambda: label_smoothing(cross_entropy, 0.1, "off_targt"),
            "smoothing convention 'off_targt': did you mean 'off_t",
        ),
        (lambda: temperature(cross_entropy, 0), r"t must lie in \(0, inf\), got 0"),
        (
            lambda: with_z_loss(cross_entropy, -1e-4),
            r"coefficient must lie in \[0, inf\), got -0.0001",
        ),
        (lambda: weighted_sum({}), "at least one loss"),
        (
            lambda: weighted_sum({cross_entropy: math.nan}),
            r"weight must lie in \(-inf, inf\), got nan",
        ),
        (
            lambda: class_weights(cross_entropy, [1, 2])(LOG, 0),
            "weights must be one number for each of the 3 classes",
        ),
        (
            lambda: class_weights(cross_entropy, [1, -2, 3])(LOG, 0),
            "weights must all be positive and finite",
        ),
        (
            lambda: effective_number([1, 0]),
            r"class_counts must all be positive and finite, got \[1, 0\]",
        ),
        (lambda: effective_number([[1, 2]]), "class_counts must all be positive and finite"),
        (lambda: effective_number([1, 2], 1.0), r"beta must lie in \[0, 1\), got 1.0"),
        (
            lambda: class_balanced(cross_entropy, [1, 0]),
            r"class_counts must all be positive and finite, got \[1, 0\]",
        ),
        (lambda: class_balanced(cross_entropy, [1, 2], 1.0), r"beta must lie in \[0, 1\), got 1.0"),
        (
            lambda: class_balanced(cross_entropy, [1, 2])(LOG, 0),
            "weights must be one number for each of the 3 classes",
        ),
    ],
)
def test_what_cannot_be(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert isinstance(caught.value, InputError) == ("convention" in message)
