"""experiments/lessons/sigmoid_vs_softmax.py, against float64 and by hand."""

from itertools import islice

import jax.numpy as jnp
import numpy as np
import pytest
from lesson_example import lesson

from cnnlab.lesson import Claim
from cnnlab.losses import binary_cross_entropy, cross_entropy
from cnnlab.softmax import predict, sigmoid, softmax

NAMES = {2: ("low", "high"), 3: ("low", "middle", "high")}


@pytest.fixture
def script():
    return lesson("sigmoid_vs_softmax")


@pytest.fixture(scope="module")
def sets():
    return lesson("sigmoid_vs_softmax").data(np.random.default_rng(1))


def untrained(script):
    """Which of the claims hold that need no training: the first three parts."""
    return [claim.holds for claim in islice(script.teach(None), 3)]


def verdict(script, need, x, labels):
    """The claim that compares both ways of training."""
    *panels, claim = script.compare("These", need, x, labels, NAMES[labels.shape[1]])
    assert len(panels) == 2 and isinstance(claim, Claim)
    return claim


@pytest.mark.slow
def test_claims_that_need_no_training(script):
    assert untrained(script) == [True] * 3


def test_labels_that_may_hold_together_need_sigmoids(script, sets):
    x, labels, _ = sets
    assert verdict(script, "sigmoids", x, labels).holds
    assert not verdict(script, "softmax", x, labels).holds


@pytest.mark.slow
def test_exclusive_classes_need_softmax(script, sets):
    x, _, classes = sets
    assert verdict(script, "softmax", x, classes).holds
    assert not verdict(script, "sigmoids", x, classes).holds


def test_sigmoid_is_softmax_of_two_in_float64():
    z = np.linspace(-20, 20, 4001)
    exact = 1 / (1 + np.exp(-z))
    for ours in (
        sigmoid(z),
        softmax(np.stack([z, 0 * z], -1))[:, 0],
        softmax(np.stack([z + 5, 0 * z + 5], -1))[:, 0],
    ):
        # z is rounded to float32 by up to 2^-20, which the slope of 1/4 makes 2^-22
        np.testing.assert_allclose(ours, exact, rtol=0, atol=2**-21)


def test_data(sets):
    x, labels, classes = sets
    assert x.shape == (600,) and labels.shape == (600, 2) and classes.shape == (600, 3)
    np.testing.assert_array_equal(classes.sum(1), 1)
    assert {tuple(row) for row in labels} == {(0, 0), (1, 0), (1, 1)}  # none, one, both
    clear = np.abs(np.abs(x) - 1) > 1  # five standard deviations of the noise
    np.testing.assert_array_equal(labels[clear], np.stack([x > -1, x > 1], 1)[clear])
    np.testing.assert_array_equal(classes.argmax(1)[clear], np.digitize(x, [-1, 1])[clear])


def test_all_right_by_hand(script):
    labels = np.array([[1, 0], [1, 1], [0, 0]])
    assert script.all_right(np.array([[0.9, 0.2], [0.8, 0.7], [0.1, 0.3]]), labels) == 1
    # both pass below 0.4, one in [0.4, 0.6), none above: one row of the three is right each time
    assert script.all_right(np.array([[0.6, 0.4]] * 3), labels) == pytest.approx(1 / 3)


def test_training_has_come_to_the_least_loss(script, sets):
    x, labels, classes = sets
    features = np.stack([x, np.ones_like(x)], 1)
    for head, loss, q in (
        (sigmoid, binary_cross_entropy, labels),
        (softmax, cross_entropy, classes),
    ):
        p = script.fit(head, loss, x, q)(x)
        assert p.shape == q.shape
        # Of either loss, in the slopes and offsets
        gradient = features.T @ np.float64(p - q) / len(x)
        assert np.abs(gradient).max() < 1e-3
        start = features.T @ np.float64(head(np.zeros(q.shape)) - q) / len(x)
        assert np.abs(start).max() > 0.1


def test_sigmoids_of_the_middle_class_by_hand(script, sets):
    """No slope helps: the sigmoid of the middle is its share of the inputs, everywhere."""
    x, _, classes = sets
    middle = script.fit(sigmoid, binary_cross_entropy, x, classes)(np.float32([-3, 0, 3]))[:, 1]
    np.testing.assert_allclose(middle, classes[:, 1].mean(), atol=0.05)


def test_argmax_is_flat_in_small_steps_too():
    z = np.random.default_rng(0).normal(0, 3, (1000, 5)).astype(np.float32)
    gap = np.diff(np.sort(z, 1)[:, -2:])
    np.testing.assert_array_equal(predict(z), predict(z + 0.4 * gap * np.sign(np.sin(1e3 * z))))


def test_training_too_short_is_found_out(script, sets, monkeypatch):
    x, labels, classes = sets
    fit = script.fit
    monkeypatch.setattr(script, "fit", lambda *args: fit(*args, steps=0))
    assert not verdict(script, "sigmoids", x, labels).holds
    assert not verdict(script, "softmax", x, classes).holds


def test_a_softmax_that_is_none_is_found_out(script, sets, monkeypatch):
    monkeypatch.setattr(script, "softmax", lambda z: sigmoid(z))
    monkeypatch.setattr(script, "cross_entropy", binary_cross_entropy)
    # The sigmoid of z still is the first of the two
    assert untrained(script) == [
        True,
        False,
        True,
    ]
    x, _, classes = sets
    assert not verdict(script, "softmax", x, classes).holds


def test_sigmoids_that_are_none_are_found_out(script, sets, monkeypatch):
    monkeypatch.setattr(script, "sigmoid", lambda z: softmax(z))
    monkeypatch.setattr(script, "binary_cross_entropy", cross_entropy)
    assert untrained(script) == [False, False, True]
    x, labels, _ = sets
    assert not verdict(script, "sigmoids", x, labels).holds


def test_a_sigmoid_that_is_off_by_a_little_is_found_out(script, monkeypatch):
    monkeypatch.setattr(script, "sigmoid", lambda z: sigmoid(z * 1.000001))
    assert untrained(script) == [False, True, True]


def test_another_decision_is_found_out(script, monkeypatch):
    monkeypatch.setattr(script, "predict", lambda z: jnp.argmax(jnp.abs(z), -1))
    assert untrained(script) == [True, True, False]
