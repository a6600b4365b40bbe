"""experiments/lessons/softmax_2d.py, against float64 and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from lesson_example import claims, lesson

from cnnlab.losses import cross_entropy
from cnnlab.softmax import predict, softmax


@pytest.fixture
def script():
    return lesson("softmax_2d")


@pytest.fixture(scope="module")
def trained():
    """x, classes and the W that they train, as float64."""
    script = lesson("softmax_2d")
    classes = np.repeat(np.arange(5), 40)
    noise = np.random.default_rng(7).normal(0, 0.8, (200, 2))
    x = (script.CENTRES[classes] + noise).astype(np.float32)
    return x, classes, np.float64(script.fit(x, classes))


def holding(script):
    return [claim.holds for claim in claims(script)]


@pytest.mark.slow
def test_every_claim_holds(script):
    assert holding(script) == [True] * 3


def test_scores_by_hand(script):
    W = np.array([[1, 0, 2], [0, 1, -1], [5, 6, 7]])
    np.testing.assert_array_equal(script.scores(W, np.array([[3, 4]])), [[8, 10, 9]])


def test_training_has_nearly_come_to_the_least_loss(trained):
    x, classes, W = trained
    z = x @ W[:2] + W[2]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    gradient = np.c_[x, np.ones(200)].T @ (p - np.eye(5)[classes]) / 200
    assert np.abs(gradient).max() < 1e-2
    assert np.mean(z.argmax(1) == classes) > 0.98


def test_the_weight_vectors_sum_to_zero(trained):
    """As in exact arithmetic; 2000 steps round five entries below 8, by 2^-22 each."""
    assert np.abs(trained[2].sum(1)).max() < 2000 * 5 * 2**-22


def test_adding_a_vector_to_all_changes_nothing(trained):
    x, _, W = trained
    moved = W + np.array([[3], [-2], [1]])
    p, q = (softmax(x @ V[:2] + V[2]) for V in (W, moved))
    np.testing.assert_allclose(p, q, rtol=0, atol=1e-5)


def test_regions_are_convex_and_borders_at_right_angles(script, trained):
    W = trained[2]
    rng = np.random.default_rng(3)
    a, b = rng.uniform(-6, 6, (2, 4000, 2))

    def of(x):
        return np.asarray(predict(softmax(script.scores(W, x))))

    together = of(a) == of(b)
    assert together.sum() > 500
    np.testing.assert_array_equal(of((a + b) / 2)[together], of(a)[together])

    start = a[~together]
    stop = b[~together]
    for _ in range(30):  # towards a change of the decision
        middle = (start + stop) / 2
        same = (of(middle) == of(a[~together]))[:, None]
        start, stop = np.where(same, middle, start), np.where(same, stop, middle)
    pairs = np.sort(np.argsort(script.scores(W, start), 1)[:, -2:], 1)
    for i, j in {tuple(pair) for pair in pairs}:
        border = start[np.all(pairs == (i, j), 1)]
        along = border - border[0]
        across = (W[:2, i] - W[:2, j]) / np.linalg.norm(W[:2, i] - W[:2, j])
        assert np.abs(along @ across).max() < 1e-4


def test_answers(script):
    assert script.answer(cross_entropy, 4) == "class ids must lie in [0, 4), got 4"
    assert script.answer(cross_entropy, 5) == str(np.full(4, np.log(5), np.float32).round(2))


def test_training_too_short_is_found_out(script, monkeypatch):
    fit = script.fit
    monkeypatch.setattr(script, "fit", lambda x, classes: fit(x, classes, steps=2))
    # Whatever the weights, regions are where a score is largest
    assert holding(script) == [
        True,
        False,
        True,
    ]


def test_decisions_that_are_not_the_largest_score_are_found_out(script, monkeypatch):
    monkeypatch.setattr(script, "softmax", lambda z: softmax(z * np.array([1, 1, 1, 1, 0.9])))
    assert holding(script) == [False, True, True]


def test_borders_elsewhere_are_found_out(script, monkeypatch):
    """Decisions by cells of a chequered plane, but the largest score's on 99 % of the points."""
    monkeypatch.setattr(script, "predict", lambda p: jnp.where(p[..., 0] > 0.9, 1, predict(p)))
    assert not holding(script)[0]


def test_a_loss_that_bears_any_label_is_found_out(script, monkeypatch):
    monkeypatch.setattr(
        script, "cross_entropy", lambda z, y: cross_entropy(z, jnp.minimum(y, z.shape[-1] - 1))
    )
    assert holding(script) == [True, True, False]
