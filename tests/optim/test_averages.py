"""Averages of the weights: their shares at hand points, and the averages that they make."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnlab import optim, parts
from cnnlab.config import Recipe
from cnnlab.errors import InputError
from cnnlab.training.step import _averaged

EPS = 2.0**-23  # one ulp of float32, relative


def shares(average, steps):
    """The weight of each step, in [0, 1]: float64[steps]."""
    return np.asarray(jax.vmap(average)(jnp.arange(steps, dtype=jnp.int32)), np.float64)


def in_average(weights):
    """The share that each step has in the average after the last, by the recurrence itself."""
    kept = np.cumprod((1 - weights)[::-1])[::-1]
    return weights * np.append(kept[1:], 1.0)


@pytest.mark.parametrize(
    ("decay", "points"),
    [
        (0.9, {0: 1.0, 1: 0.9, 9: 0.5, 81: 0.1, 82: 0.1, 1000: 0.1}),
        (0.999, {0: 1.0, 9: 0.5, 891: 0.01, 8991: 0.001, 10**6: 0.001}),
    ],
)
def test_the_share_of_a_step_in_an_exponential_average(decay, points):
    weight = optim.ema(decay)
    for step, wanted in points.items():
        found = weight(jnp.int32(step))
        assert found.dtype == jnp.float32 and found.shape == ()
        np.testing.assert_allclose(found, wanted, rtol=2 * EPS)


def test_an_exponential_average_forgets_early_weights_and_then_decays():
    steps = 400
    share = in_average(shares(optim.ema(0.999), steps))
    np.testing.assert_allclose(share.sum(), 1, rtol=1e-6)  # nothing is left of the initial ones
    # Shamir and Zhang's weights: proportional to (t + 1) (t + 2) ... (t + 8)
    powers = np.prod([np.arange(steps) + i for i in range(1, 9)], axis=0, dtype=np.float64)
    np.testing.assert_allclose(share, powers / powers.sum(), rtol=1e-4, atol=1e-12)
    np.testing.assert_allclose(share[: steps // 2].sum(), 2.0**-9, rtol=0.1)
    late = in_average(shares(optim.ema(0.5), 60))
    np.testing.assert_allclose(late[-20:], 0.5 ** np.arange(20, 0, -1), rtol=1e-5)


@pytest.mark.parametrize(
    ("epochs", "start", "ends"),
    [
        (8, 0.75, [6, 7, 8]),
        (10, 0.75, [8, 9, 10]),
        (10, 0.7, [7, 8, 9, 10]),
        (25, 0.28, [*range(7, 26)]),  # 0.28 * 25 is more than 7 in floats
        (3, 0.0, [1, 2, 3]),
        (2, 0.5, [1, 2]),
    ],
)
@pytest.mark.parametrize("steps_per_epoch", [1, 3])
def test_stochastic_weight_averaging_is_the_mean_of_the_ends_of_epochs(
    epochs, start, ends, steps_per_epoch
):
    steps = epochs * steps_per_epoch
    share = in_average(shares(optim.swa(steps, steps_per_epoch, start), steps))
    wanted = np.zeros(steps)
    wanted[np.array(ends) * steps_per_epoch - 1] = 1 / len(ends)
    np.testing.assert_allclose(share, wanted, atol=len(ends) * EPS)


def test_before_its_start_the_average_is_the_current_weights_to_the_bit():
    weight = optim.swa(12, 3, 0.75)
    rng = np.random.default_rng(0)
    values = rng.standard_normal((12, 5)).astype(np.float32)
    average = {"params": jnp.asarray(1e6 * rng.standard_normal(5), jnp.float32)}
    for step, value in enumerate(values):
        before = average
        average = _averaged(average, {"params": jnp.asarray(value)}, weight(jnp.int32(step)))
        if step < 9:
            np.testing.assert_array_equal(average["params"], value)
        elif step < 11:
            np.testing.assert_array_equal(average["params"], before["params"])
    wanted = (values[8].astype(np.float64) + values[11]) / 2
    np.testing.assert_allclose(average["params"], wanted, rtol=0, atol=4 * EPS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("swa,start=0.95", "start must leave at least two epochs' ends to average; 0.95 of 10 lea"),
        ("swa,start=1", "start must lie in [0, 1), got 1"),
        ("ema,decay=1", "decay must lie in (0, 1), got 1"),
        ("ema,decay=0", "decay must lie in (0, 1), got 0"),
        ("ema,total_steps=3", "average ema has no hyperparameter 'total_steps'"),
        ("swa,total_steps=3", "total_steps comes from the run"),
        ("emma", "unknown average 'emma': did you mean 'ema'"),
    ],
)
def test_what_cannot_be_averaged(text, words):
    with pytest.raises(InputError) as error:
        parts.resolve(Recipe.of(average=text)).build_average(100, 10)
    assert words in str(error.value) and len(str(error.value).splitlines()) == 1


def test_none_is_no_average():
    resolved = parts.resolve(Recipe())
    assert resolved.average is None and resolved.build_average(10, 1) is None
    assert resolved.specs(parts.Part.resolved)["average"] == "none"
    averaged = parts.resolve(Recipe.of(average="ema,decay=0.9"))
    assert averaged.specs(parts.Part.canonical)["average"] == "ema,decay=0.9"
    assert str(parts.resolve(Recipe.of(average="ema")).average.resolved()) == "ema,decay=0.999"


def test_the_length_of_a_run_matters_to_the_averages_that_ask_for_it():
    recipe = Recipe.of(schedule="constant")
    assert parts.resolve(recipe.replace(average="ema")).extendable
    assert not parts.resolve(recipe.replace(average="swa")).extendable
