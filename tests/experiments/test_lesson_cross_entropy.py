"""experiments/lessons/cross_entropy.py, against numbers worked out by hand."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from lesson_example import claims, lesson

from cnnlab.losses import cross_entropy, mean_squared_error

NATS, TABLE, SHARES, SURE = range(4)  # the claims, in order


@pytest.fixture
def script():
    return lesson("cross_entropy")


def holding(script):
    return [claim.holds for claim in claims(script)]


@pytest.mark.slow
def test_every_claim_holds(script):
    assert holding(script) == [True] * 4


@pytest.mark.parametrize("network, true", [("FIRST", (0.9, 0.9, 0.4)), ("SECOND", (0.6, 0.7, 0.1))])
def test_the_table_from_the_true_classes_alone(script, network, true):
    p = getattr(script, network)
    np.testing.assert_allclose(p.sum(1), 1, rtol=0, atol=2**-23)
    np.testing.assert_allclose(script.of_true(p), true, rtol=1e-7)
    wrong = sum(one < 0.5 for one in true)
    miss = sum((1 - one) ** 2 for one in true) / 3
    nats = -sum(map(math.log, true)) / 3
    np.testing.assert_allclose(script.measure(p), [wrong, 2 * miss, miss, nats], rtol=1e-6)


def test_the_figures_of_the_notes(script):
    np.testing.assert_array_equal(script.measure(script.FIRST).round(2), [1, 0.25, 0.13, 0.38])
    np.testing.assert_array_equal(script.measure(script.SECOND).round(2), [1, 0.71, 0.35, 1.06])


def test_cross_entropy_in_bits_is_found_out(script, monkeypatch):
    monkeypatch.setattr(script, "cross_entropy", lambda z, y: cross_entropy(z, y) / math.log(2))
    held = holding(script)
    assert not (held[NATS] or held[TABLE] or held[SURE])


def test_the_mean_over_the_classes_is_found_out(script, monkeypatch):
    monkeypatch.setattr(
        script, "mean_squared_error", lambda z, y: mean_squared_error(z, y) / z.shape[-1]
    )
    held = holding(script)
    assert not (held[TABLE] or held[SHARES])


def test_the_squared_error_of_the_true_class_alone_is_found_out(script, monkeypatch):
    monkeypatch.setattr(
        script, "mean_squared_error", lambda z, y: (1 - jnp.exp(-cross_entropy(z, y))) ** 2
    )
    held = holding(script)
    assert not (held[TABLE] or held[SHARES])


def test_a_cross_entropy_that_sees_the_wrong_classes_is_found_out(script, monkeypatch):
    monkeypatch.setattr(
        script, "cross_entropy", lambda z, y: cross_entropy(z, y) + 0.01 * jnp.exp(jnp.max(z, -1))
    )
    assert not holding(script)[SHARES]


def test_a_cross_entropy_with_a_limit_is_found_out(script, monkeypatch):
    monkeypatch.setattr(
        script, "cross_entropy", lambda z, y: jnp.minimum(cross_entropy(z, y), 20.0)
    )
    assert holding(script) == [True, True, True, False]


def test_other_predictions_are_found_out(script, monkeypatch):
    monkeypatch.setattr(script, "predict", lambda z: jnp.argmin(z, -1))
    assert holding(script) == [True, False, True, True]
