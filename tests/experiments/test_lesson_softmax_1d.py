"""Softmax in one dimension: the lesson's claims against hand values, and that broken softmaxes are
found out.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from lesson_example import claims, lesson

from cnnlab.softmax import softmax

HAND = [2, 1, 0.1]


@pytest.fixture
def script():
    return lesson("softmax_1d")


def holding(script):
    return {claim.statement.split(":")[0]: claim.holds for claim in claims(script)}


def test_every_claim_holds(script):
    found = claims(script)
    assert len(found) == 8 and all(claim.holds for claim in found)


@pytest.mark.parametrize(
    ("broken", "lost"),
    [
        (lambda z, **k: softmax(-jnp.asarray(z), **k), "Positive, sums to one, order kept"),
        (lambda z, **k: 1.001 * softmax(z, **k), "Positive, sums to one, order kept"),
        (lambda z, **k: jnp.tanh(softmax(z, **k)), "Differences become ratios"),
        (lambda z, **k: softmax(1e-3 * jnp.asarray(z) ** 2, **k), "The same when all scores grow "
                                                                  "by 100"),
        (lambda z, **k: softmax(3 * z, **k), "The gap of probabilities is at most half that of the "
                                             "scores"),
        (lambda z, **k: softmax(z), "Cold it is argmax, hot uniform"),
        (lambda z, **k: jnp.exp(jnp.asarray(z)) / jnp.exp(jnp.asarray(z)).sum(-1, keepdims=True),
         "Without subtracting the maximum it overflows"),
    ],
)  # fmt: skip
def test_a_broken_softmax_is_found_out(script, monkeypatch, broken, lost):
    monkeypatch.setattr(script, "softmax", broken)
    assert not holding(script)[lost]


def test_tables_by_hand(script):
    first, second = [part for part in script.teach(None) if type(part).__name__ == "Table"]
    assert first.rows == [
        ("2.0", "7.389", "0.659"),
        ("1.0", "2.718", "0.242"),
        ("0.1", "1.105", "0.099"),
    ]
    for x, *scores, largest in second.rows:
        hand = [-2 * float(x), 0.5 * float(x) + 1, 1.5 * float(x) - 1]
        assert [float(score) for score in scores] == hand and hand[int(largest)] == max(hand)


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [("float32", 3.4028235e38), ("bfloat16", 3.3895314e38), ("float16", 65504)],
)
def test_overflow_is_where_the_exponential_leaves_the_type(script, dtype, largest):
    assert script.overflow(dtype) == np.floor(np.log(largest)) + 1
