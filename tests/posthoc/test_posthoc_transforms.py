"""Transforms of stored logits: the temperature by other means and by hand, logit adjustment."""

import inspect
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from cnnlab import docstrings, spec
from cnnlab.errors import InputError
from cnnlab.posthoc.metrics import balanced_error, nll
from cnnlab.posthoc.transforms import TRANSFORMS, fit_temperature, logit_adjustment, temperature

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "posthoc.json").read_text())
EPS = 2.0**-52  # one ulp of float64, relative
INF = math.inf
SUPPLIES = ("validation_logits", "validation_labels", "class_counts")
KIND = spec.Kind(
    "transform of logits",
    "--transform",
    "transform(logits, ...) -> float64[N, K]",
    "cnnlab.posthoc.transforms:TRANSFORMS",
    positional=1,
    supplies=SUPPLIES,
)
every_transform = pytest.mark.parametrize("name", TRANSFORMS)


def example(count=300, classes=6, seed=0, sharpness=3.0):
    """Labels drawn from a softmax, and its logits times `sharpness`: the best temperature, but for
    chance.
    """
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((count, classes))
    labels = np.array([rng.choice(classes, p=p) for p in softmax(logits, 1)])
    return sharpness * logits, labels


def supply():
    logits, labels = example(seed=1)
    return {
        "validation_logits": logits,
        "validation_labels": labels,
        "class_counts": np.array([500, 100, 100, 40, 20, 1]),
    }


def transformed(text, logits, **changed):
    return spec.find(KIND, text).call(logits, **{**supply(), **changed})


# Temperature


def test_the_temperature_of_a_minimum_in_60_digits():
    """The root is where the slope, a mean of terms of size 10, vanishes within their rounding."""
    logits = np.array(GOLDEN["logits"])
    labels = np.array(GOLDEN["labels"])
    np.testing.assert_allclose(fit_temperature(logits, labels), GOLDEN["temperature"], rtol=1e-12)


def test_two_classes_by_hand():
    """Images with the same margin m, a share s of them right: m / T = log(s / (1 - s))."""
    for margin in (0.01, 1.0, 30.0):
        logits = np.array([[margin, 0.0]] * 10)
        labels = np.array([0] * 8 + [1] * 2)
        np.testing.assert_allclose(
            fit_temperature(logits, labels), margin / math.log(4), rtol=64 * EPS
        )


def test_the_temperature_that_the_labels_were_drawn_with():
    """20,000 labels: the error of log T has a deviation of about 1 / sqrt(20,000) = 0.007."""
    logits, labels = example(20_000)
    assert fit_temperature(logits, labels) == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("seed", range(10))
def test_temperature_never_raises_the_validation_nll(seed):
    logits, labels = example(60, 4, seed, sharpness=10.0 ** (seed / 3 - 1))
    given = {"validation_logits": logits, "validation_labels": labels}
    scaled = temperature(logits, **given)
    found = nll(scaled, labels)
    for other in (0.01, 0.5, 0.99, 1.0, 1.01, 2.0, 100.0):
        assert found <= nll(scaled / other, labels) * (1 + 8 * EPS)
    assert found <= nll(logits, labels) * (1 + 8 * EPS)
    np.testing.assert_array_equal(scaled.argmax(1), logits.argmax(1))


@pytest.mark.parametrize("factor", [1 / 64, 0.1, 3.0, 64.0])
def test_scaled_logits_have_a_scaled_temperature(factor):
    logits, labels = example()
    found = fit_temperature(factor * logits, labels)
    np.testing.assert_allclose(found, factor * fit_temperature(logits, labels), rtol=1e-12)
    np.testing.assert_allclose(
        temperature(factor * logits, validation_logits=factor * logits, validation_labels=labels),
        logits / fit_temperature(logits, labels),
        rtol=1e-12,
    )


def test_temperature_ignores_order_and_offsets():
    logits, labels = example()
    wanted = fit_temperature(logits, labels)
    rng = np.random.default_rng(2)
    order = rng.permutation(300)
    np.testing.assert_allclose(fit_temperature(logits[order], labels[order]), wanted, rtol=1e-12)
    offsets = rng.integers(-8, 8, (300, 1))
    np.testing.assert_allclose(fit_temperature(logits + offsets, labels), wanted, rtol=1e-12)


def test_ends_of_the_range():
    labels = np.arange(5)
    right = np.eye(5)[labels]
    assert fit_temperature(right, labels) == 1e-3  # all right: the lower the better
    assert fit_temperature(1e4 * right, labels) == 1e-3  # where probabilities are 0 and 1
    assert fit_temperature(-right, labels) == 1e3  # all wrong
    assert fit_temperature(1e4 * np.roll(right, 1, 1), labels) == 1e3
    assert fit_temperature(np.zeros((5, 5)), labels) == 1e3  # nothing to scale
    four_of_five = np.array([[1.0, 0.0]] * 5)
    mistaken = np.array([0, 0, 0, 0, 1])
    for size, wanted in ((1e-4, 1e-3), (1e4, 1e3)):  # the best is beyond
        assert fit_temperature(size * four_of_five, mistaken) == wanted
    for size in (2e-3, 1e3):  # the best is near an end
        np.testing.assert_allclose(
            fit_temperature(size * four_of_five, mistaken), size / math.log(4), rtol=64 * EPS
        )


@pytest.mark.parametrize("broken", [math.nan, INF, -INF])
def test_logits_that_are_not_finite_have_no_temperature(broken):
    logits, labels = example()
    logits[4, 1] = broken
    assert math.isnan(fit_temperature(logits, labels))
    scaled = transformed("temperature", example()[0], validation_logits=logits)
    assert scaled.shape == logits.shape and np.all(np.isnan(scaled))


def test_no_validation_images():
    empty = {"validation_logits": np.zeros((0, 6)), "validation_labels": np.zeros(0, int)}
    with pytest.raises(InputError, match="on validation images, and there are none: train with a"):
        transformed("temperature", example()[0], **empty)
    with pytest.raises(ValueError, match="there are no images"):
        fit_temperature(np.zeros((0, 6)), np.zeros(0, int))


@pytest.mark.parametrize(("changed", "message"), [
    ({"validation_labels": np.full(300, 6)}, r"class ids must lie in \[0, 6\), got 6"),
    ({"validation_labels": np.zeros(9, int)}, "labels must have the shape"),
    ({"validation_logits": np.zeros((300, 5))}, "must have the 6 classes of logits, got 5"),
    ({"validation_logits": np.zeros(300)}, r"validation_logits must be float\[N, K\]"),
])  # fmt: skip
def test_a_validation_split_that_does_not_fit(changed, message):
    with pytest.raises(InputError, match=message):
        transformed("temperature", example()[0], **changed)


# Logit adjustment


def test_adjustment_by_hand():
    adjusted = logit_adjustment(np.zeros((2, 2)), class_counts=[3, 1])
    np.testing.assert_allclose(adjusted, [[-math.log(0.75), -math.log(0.25)]] * 2, rtol=4 * EPS)
    half = logit_adjustment(np.ones((1, 2)), tau=0.5, class_counts=[3, 1])
    np.testing.assert_allclose(
        half, [[1 - 0.5 * math.log(0.75), 1 - 0.5 * math.log(0.25)]], rtol=4 * EPS
    )


def test_adjustment_divides_by_the_prior():
    """Logits of p(x | k) n_k give, adjusted, p(x | k) for equally frequent classes."""
    rng = np.random.default_rng(0)
    likelihood = rng.uniform(0.1, 1, (20, 6))
    counts = supply()["class_counts"]
    adjusted = transformed("logit_adjustment", np.log(likelihood * counts))
    np.testing.assert_allclose(
        softmax(adjusted, 1), likelihood / likelihood.sum(1, keepdims=True), rtol=1e-12
    )


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 3.0])
def test_equal_counts_change_no_probability(tau):
    logits, _ = example()
    adjusted = logit_adjustment(logits, tau=tau, class_counts=np.full(6, 50))
    np.testing.assert_allclose(softmax(adjusted, 1), softmax(logits, 1), rtol=1e-12)


def test_tau_of_zero_changes_nothing():
    logits, _ = example()
    np.testing.assert_array_equal(transformed("logit_adjustment,tau=0", logits), logits)


def test_only_the_shares_of_the_counts_matter():
    logits, _ = example()
    counts = supply()["class_counts"]
    np.testing.assert_allclose(
        transformed("logit_adjustment", logits, class_counts=10 * counts),
        transformed("logit_adjustment", logits),
        rtol=1e-12,
    )


def test_adjustment_lowers_the_balanced_error():
    """Of a posterior with a prior of counts, on images with labels from it."""
    rng = np.random.default_rng(0)
    counts = np.array([900, 90, 10])
    labels = rng.choice(3, 4000, p=counts / 1000)
    means = 2 * np.eye(3)
    points = means[labels] + rng.standard_normal((4000, 3))
    logits = points @ means.T + np.log(counts)
    adjusted = logit_adjustment(logits, class_counts=counts)
    assert balanced_error(adjusted, labels) < balanced_error(logits, labels) - 0.05


@pytest.mark.parametrize(("counts", "message"), [
    ([5, 5, 5, 0, 5, 0], "class 3 has no training images"),
    ([5, 5], "class_counts must be 6 numbers, one per class"),
    ([5, 5, 5, -1, 5, 5], "class_counts must be finite and at least 0"),
    ([5, 5, 5, math.nan, 5, 5], "class_counts must be finite and at least 0"),
])  # fmt: skip
def test_counts_that_have_no_logarithm(counts, message):
    with pytest.raises(InputError, match=message):
        transformed("logit_adjustment", example()[0], class_counts=counts)


# As parts


@every_transform
def test_a_transform_returns_float64_and_changes_nothing(name):
    logits = example()[0].astype(np.float32)
    before = logits.copy()
    result = transformed(name, logits)
    assert (result.dtype, result.shape) == (np.float64, logits.shape)
    np.testing.assert_array_equal(logits, before)
    np.testing.assert_array_equal(transformed(name, logits.tolist()), result)


@every_transform
def test_each_image_is_transformed_by_itself(name):
    logits, _ = example()
    np.testing.assert_array_equal(transformed(name, logits[7:9]), transformed(name, logits)[7:9])
    assert transformed(name, np.zeros((0, 6))).shape == (0, 6)


@every_transform
def test_a_nan_stays_where_it_is(name):
    logits, _ = example()
    logits[3, 2] = math.nan
    result = transformed(name, logits)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(logits))


@every_transform
def test_a_transform_is_described(name):
    function = TRANSFORMS[name]
    assert function.__name__ == name and name in spec.listing(KIND)
    about = docstrings.entry(function)
    assert about.summary.endswith(".") and about.formula and about.source
    assert [*about.arguments] == [*inspect.signature(function).parameters]


@pytest.mark.parametrize(("text", "message"), [
    ("logit_adjustment,tau=-1", r"tau must lie in \[0, inf\)"),
    ("logit_adjustment,tau=inf", r"tau must lie in \[0, inf\)"),
    ("temperature,validation_logits=[1]", "validation_logits comes from the run"),
    ("temperatur", "did you mean 'temperature'"),
])  # fmt: skip
def test_hyperparameters_have_ranges(text, message):
    with pytest.raises(InputError, match=message):
        spec.find(KIND, text)
