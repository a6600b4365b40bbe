"""Metrics of stored logits: by other libraries, by hand, and what must not change them."""

import dataclasses
import functools
import inspect
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from cnnlab import docstrings, metrics, spec
from cnnlab.errors import InputError
from cnnlab.posthoc import metrics as posthoc
from cnnlab.posthoc.metrics import METRICS, SHOWN, Shown

EPS32 = 2.0**-23  # one ulp of float32, relative
INF = math.inf
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "posthoc.json").read_text())
SUPPLIES = (
    "validation_logits",
    "validation_labels",
    "class_counts",
    "train_losses",
    "wrong_labels",
    "ood_logits",
)
KIND = spec.Kind(
    "metric of logits",
    "--metric",
    "metric(logits, labels, ...) -> float",
    "cnnlab.posthoc.metrics:METRICS",
    positional=2,
    supplies=SUPPLIES,
)
OF_TRAINING = ("noise_auroc", "memorised")
OF_LOGITS = [name for name in METRICS if name not in OF_TRAINING]
every_metric = pytest.mark.parametrize("name", METRICS)


def example(count=200, classes=7, seed=0):
    """Logits of one decimal, many of them twice, and labels: ties of every kind."""
    rng = np.random.default_rng(seed)
    logits = np.round(2 * rng.standard_normal((count, classes)), 1)
    logits[count // 2 :] = logits[: count - count // 2]
    return logits, rng.integers(0, classes, count)


@functools.cache
def supply():
    """What a run supplies, for 7 classes: many, between and few images."""
    rng = np.random.default_rng(9)
    validation_logits, validation_labels = example(50, 7, seed=1)
    return {
        "validation_logits": validation_logits,
        "validation_labels": validation_labels,
        "class_counts": np.array([500, 101, 100, 60, 20, 19, 1]),
        "train_losses": np.round(rng.exponential(1, 80), 1),
        "wrong_labels": rng.random(80) < 0.3,
        "ood_logits": np.round(rng.standard_normal((60, 7)), 1),
    }


def measured(text, logits, labels, **changed):
    return spec.find(KIND, text).call(logits, labels, **{**supply(), **changed})


# Values


@pytest.mark.parametrize("text", GOLDEN["values"])
def test_other_libraries(text):
    """The same definitions in float64: sums of 200 terms, whose rounding is 200 ulps at most."""
    given = {name: np.array(GOLDEN[name]) for name in ("logits", "labels", "ood_logits")}
    found = measured(text, **given)
    assert type(found) is float
    np.testing.assert_allclose(found, GOLDEN["values"][text], rtol=1e-12)


def test_other_libraries_on_wrong_labels():
    given = {name: np.array(GOLDEN[name]) for name in ("train_losses", "wrong_labels")}
    found = measured("noise_auroc", *example(), **given)
    np.testing.assert_allclose(found, GOLDEN["noise_auroc"], rtol=1e-12)


def test_every_metric_has_a_golden_value():
    """The three shots are accuracies on some of the classes; top5 agrees with METRICS; what is
    memorised is a share.
    """
    golden = {spec.parse(text).name for text in GOLDEN["values"]} | {"noise_auroc"}
    assert METRICS.keys() - golden == {
        "top5", "many_accuracy", "medium_accuracy", "few_accuracy", "memorised",
    }  # fmt: skip


@pytest.mark.parametrize("decimals", [0, 1, 8])  # 0: ties of logits within an image
@pytest.mark.parametrize("classes", [3, 10])
def test_the_metrics_of_a_run_agree(classes, decimals):
    """Those are sums in float32: logits of size 8 with a relative error of an ulp, added 9 deep."""
    rng = np.random.default_rng(classes)
    logits = np.round(2 * rng.standard_normal((500, classes)), decimals).astype(np.float32)
    labels = rng.integers(0, classes, 500).astype(np.int32)
    sums = jax.jit(metrics.sums)(
        jnp.asarray(logits), jnp.asarray(labels), np.zeros(500, np.float32), np.ones(500, bool)
    )
    summary = metrics.summarise([sums])
    for name in metrics.METRICS:
        tolerance = 0 if name in ("accuracy", "top5") else 32 * EPS32
        np.testing.assert_allclose(
            METRICS[name](logits, labels), summary[name], rtol=tolerance, atol=tolerance
        )


def logits_of(*probabilities):
    return np.log(probabilities)


# Five images of two classes: confidences .9 .9 .8 .6 .6, hits 1 0 1 1 0.
FIVE = logits_of([0.9, 0.1], [0.1, 0.9], [0.2, 0.8], [0.6, 0.4], [0.4, 0.6])
LABELS = np.array([0, 0, 1, 0, 0])


@pytest.mark.parametrize(("text", "wanted"), [
    ("accuracy", 3 / 5),
    ("nll", -math.log(0.9 * 0.1 * 0.8 * 0.6 * 0.4) / 5),
    ("brier", 2 * (0.01 + 0.81 + 0.04 + 0.16 + 0.36) / 5),
    ("top5", 1.0),
    # every confidence is above .5; up to .75: 1 hit for 1.2; above: 2 for 2.6
    ("ece,bins=2", abs(3 - 3.8) / 5),
    ("ece,bins=4", (abs(1 - 1.2) + abs(2 - 2.6)) / 5),
    ("ece,bins=1", abs(3 - 3.8) / 5),
    # .6 .6 .8 and .9 .9
    ("ece_equal_mass,bins=2", (abs(2 - 2.0) + abs(1 - 1.8)) / 5),
    # .6 .6, .8 .9, .9: of the images with .9 each is half a hit
    ("ece_equal_mass,bins=3", (0.2 + abs(1.5 - 1.7) + abs(0.5 - 0.9)) / 5),
    ("ece_equal_mass,bins=5", (0.1 + 0.1 + 0.2 + 0.4 + 0.4) / 5),
    ("ece_equal_mass,bins=99", (0.1 + 0.1 + 0.2 + 0.4 + 0.4) / 5),
    # class 0 has probabilities .1 .2 .4 for 1 0 1, then .6 .9 for 1 1; class 1 the reverse
    ("ece_classwise,bins=2", (abs(2 - 0.7) + abs(2 - 1.5)) / 5),
    # mean errors .5 .5 0 .5 .5 in order
    ("aurc", (0.5 + 0.5 + 1 / 3 + 1.5 / 4 + 2 / 5) / 5),
    # class 0: 2 of 4, class 1: 1 of 1
    ("balanced_error", 1 - (0.5 + 1) / 2),
])  # fmt: skip
def test_hand_values(text, wanted):
    np.testing.assert_allclose(measured(text, FIVE, LABELS), wanted, rtol=1e-12)


def test_bins_hold_their_upper_edge():
    logits = logits_of([0.5, 0.5], [0.75, 0.25])
    assert measured("ece,bins=2", logits, np.array([0, 1])) == pytest.approx(0.5 / 2 + 0.75 / 2)
    # (.25, .5] and (.5, .75]; one bin of both would have 1 hit for 1.25
    assert measured("ece,bins=4", logits, np.array([0, 1])) == pytest.approx(0.5 / 2 + 0.75 / 2)
    assert measured("ece,bins=1", logits, np.array([0, 1])) == pytest.approx(0.25 / 2)


def test_a_probability_of_zero_is_in_the_first_bin():
    logits = np.array([[0.0, -INF], [0.0, -INF]])
    assert measured("ece_classwise", logits, np.array([0, 0])) == 0
    assert measured("ece_classwise", logits, np.array([0, 1])) == pytest.approx(1 / 2)
    assert measured("nll", logits, np.array([0, 1])) == INF


def test_a_perfect_network_has_no_error():
    logits = 1e4 * np.eye(7)[np.arange(70) % 7]
    labels = np.arange(70) % 7
    best = {"accuracy": 1, "nll": 0, "brier": 0, "top5": 1, "ece": 0, "ece_equal_mass": 0,
            "ece_classwise": 0, "aurc": 0, "balanced_error": 0, "many_accuracy": 1,
            "medium_accuracy": 1, "few_accuracy": 1}  # fmt: skip
    found = {name: measured(name, logits, labels) for name in best}
    assert found == best
    assert all(math.copysign(1, value) == 1 for value in found.values())  # no -0.0


def test_ties_go_to_the_first_class():
    logits = np.zeros((8, 8))
    assert [measured(name, logits, np.arange(8), class_counts=np.ones(8)) for name in (
        "accuracy", "top5", "balanced_error", "few_accuracy",
    )] == [1 / 8, 5 / 8, 7 / 8, 1 / 8]  # fmt: skip


def test_aurc_is_the_mean_over_orders_of_ties():
    logits = logits_of(*[[0.9, 0.1]] * 2, *[[0.7, 0.3]] * 4)
    labels = np.array([0, 1, 0, 1, 1, 1])
    areas = []
    for first, second in itertools.product(
        itertools.permutations(labels[:2]), itertools.permutations(labels[2:])
    ):
        risks = np.cumsum([*first, *second]) / np.arange(1, 7)
        areas.append(risks.mean())
    np.testing.assert_allclose(measured("aurc", logits, labels), np.mean(areas), rtol=1e-12)


def test_aurc_of_the_best_and_the_worst_order():
    """Half of 10 images are wrong: they come last, or first."""
    confidences = np.linspace(0.6, 0.9, 10)
    logits = logits_of(*np.stack([confidences, 1 - confidences], 1))
    ranks = np.arange(1, 11)
    wrong_last = np.array([1] * 5 + [0] * 5)  # labels; the most confident image is the last
    np.testing.assert_allclose(
        measured("aurc", logits, wrong_last), np.mean(np.maximum(ranks - 5, 0) / ranks), rtol=1e-12
    )
    np.testing.assert_allclose(
        measured("aurc", logits, 1 - wrong_last), np.mean(np.minimum(ranks, 5) / ranks), rtol=1e-12
    )


def test_shots_are_the_accuracies_of_their_classes():
    """Counts 500 101 | 100 60 20 | 19 1: the limits belong to the middle."""
    logits, labels = example()
    hits = logits.argmax(1) == labels
    for name, classes in (("many", [0, 1]), ("medium", [2, 3, 4]), ("few", [5, 6])):
        found = measured(f"{name}_accuracy", logits, labels)
        assert found == np.mean(hits[np.isin(labels, classes)])
    assert measured("many_accuracy,many=60", logits, labels) == np.mean(hits[labels < 3])
    assert measured("few_accuracy,few=101", logits, labels) == np.mean(hits[labels > 1])
    middle = measured("medium_accuracy,many=60,few=60", logits, labels)
    assert middle == np.mean(hits[labels == 3])


def test_shots_without_images_are_nan():
    logits, labels = example()
    for name in ("many", "medium"):
        assert math.isnan(measured(f"{name}_accuracy", logits, labels, class_counts=np.ones(7)))
    assert math.isnan(measured("few_accuracy", logits, labels, class_counts=np.full(7, 20)))
    # classes that are few in training, none of which is tested
    assert math.isnan(measured("few_accuracy", logits, np.zeros(200, int)))


def test_balanced_error_leaves_out_classes_without_images():
    logits, _ = example()
    labels = np.where(np.arange(200) < 150, 0, 3)
    hits = logits.argmax(1) == labels
    wanted = 1 - (hits[:150].mean() + hits[150:].mean()) / 2
    np.testing.assert_allclose(measured("balanced_error", logits, labels), wanted, rtol=1e-12)


# Detection


def pairs(positive, negative):
    return np.mean([(p > n) + (p == n) / 2 for p in positive for n in negative])


def test_auroc_counts_pairs():
    rng = np.random.default_rng(0)
    positive = rng.integers(2, 12, 40).astype(float)
    negative = rng.integers(0, 10, 30).astype(float)
    wanted = pairs(positive, negative)
    np.testing.assert_allclose(posthoc.auroc(positive, negative), wanted, rtol=1e-12)
    np.testing.assert_allclose(posthoc.auroc(-positive, -negative), 1 - wanted, rtol=1e-12)
    np.testing.assert_allclose(posthoc.auroc(negative, positive), 1 - wanted, rtol=1e-12)
    assert posthoc.auroc(np.exp(positive), np.exp(negative)) == posthoc.auroc(positive, negative)
    assert posthoc.auroc(np.ones(3), np.ones(5)) == 0.5
    assert posthoc.auroc(np.array([INF]), np.array([-INF, 1.0])) == 1


def test_average_precision_by_thresholds():
    rng = np.random.default_rng(1)
    positive = rng.integers(2, 12, 40).astype(float)
    negative = rng.integers(0, 10, 30).astype(float)
    recall = 0
    wanted = 0
    for threshold in range(12, -1, -1):
        true = np.sum(positive >= threshold)
        false = np.sum(negative >= threshold)
        if true + false:
            wanted += (true / 40 - recall) * true / (true + false)
            recall = true / 40
    np.testing.assert_allclose(posthoc.average_precision(positive, negative), wanted, rtol=1e-12)
    assert posthoc.average_precision(np.ones(3), np.ones(5)) == 3 / 8
    assert posthoc.average_precision(positive, np.array([])) == 1


def test_out_of_distribution_by_hand():
    """Twenty test images with max logits 1 to 20: 19 of them reach 2."""
    logits = np.arange(1.0, 21.0)[:, None] * [1, 0]
    labels = np.zeros(20, int)

    def of(name, maxima):
        outside = np.array(maxima)[:, None] * [1, 0]
        return measured(f"{name},score=max_logit", logits, labels, ood_logits=outside)

    assert of("ood_fpr95", [0.5, 1.0, 1.9, 2.0, 3.0]) == 2 / 5
    assert of("ood_fpr95", [0.5]) == 0
    assert of("ood_auroc", [0.5]) == 1
    assert of("ood_auroc", [1.0]) == pytest.approx(19.5 / 20, rel=1e-12)
    assert of("ood_aupr", [0.5, 0.25]) == 1
    assert of("ood_aupr", [25.0]) == pytest.approx(1 / 21, rel=1e-12)


@pytest.mark.parametrize("count", range(1, 45))
def test_as_few_test_images_as_95_percent(count):
    """The first threshold whose rate of true positives reaches 0.95, as scikit-learn's curve."""
    logits = np.arange(1.0, count + 1)[:, None] * [1, 0]
    rates = np.arange(1, count + 1) / count
    num_accepted = 1 + int(np.argmax(rates >= 0.95))
    threshold = count + 1 - num_accepted
    outside = np.array([threshold - 0.5, threshold, threshold + 0.5])[:, None] * [1, 0]
    found = posthoc.ood_fpr95(logits, np.zeros(count, int), score="max_logit", ood_logits=outside)
    assert found == 2 / 3


@pytest.mark.parametrize("score", posthoc.SCORES)
def test_the_same_images_are_not_told_apart(score):
    logits, labels = example()
    found = measured(f"ood_auroc,score={score}", logits, labels, ood_logits=logits)
    assert found == 0.5


def test_the_scores_differ():
    logits, labels = example()
    for name in ("ood_auroc", "ood_aupr", "ood_fpr95"):
        found = {measured(f"{name},score={score}", logits, labels) for score in posthoc.SCORES}
        assert len(found) == 3
        assert measured(name, logits, labels) in found


def test_wrong_labels_by_their_losses():
    losses = np.array([0.1, 0.2, 0.2, 3.0])
    wrong = np.array([False, False, True, True])
    found = measured("noise_auroc", *example(), train_losses=losses, wrong_labels=wrong)
    assert found == 3.5 / 4
    for labels in (np.zeros(4, bool), np.ones(4, bool)):
        given = {"train_losses": losses, "wrong_labels": labels}
        assert math.isnan(measured("noise_auroc", *example(), **given))


def test_what_is_memorised_is_a_share_of_the_wrong_labels():
    half = math.log(2)
    losses = np.array([0.1, 3.0, np.nextafter(half, 0), half, 0.1, 3.0])
    wrong = np.array([False, False, True, True, True, True])
    given = {"train_losses": losses, "wrong_labels": wrong}
    assert measured("memorised", *example(), **given) == 0.5
    none = {"train_losses": losses, "wrong_labels": np.zeros(6, bool)}
    assert math.isnan(measured("memorised", *example(), **none))


# What must not change them, and what must


@every_metric
def test_the_order_of_the_images_has_no_effect(name):
    """Half of the images have the logits of another one, with another label."""
    logits, labels = example()
    wanted = measured(name, logits, labels)
    rng = np.random.default_rng(3)
    for _ in range(5):
        order = rng.permutation(200)
        outside = rng.permutation(60)
        trained = rng.permutation(80)
        found = measured(
            name,
            logits[order],
            labels[order],
            ood_logits=supply()["ood_logits"][outside],
            train_losses=supply()["train_losses"][trained],
            wrong_labels=supply()["wrong_labels"][trained],
        )
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


@every_metric
def test_every_image_twice_changes_nothing(name):
    """But for the area under the risk-coverage curve and bins of whole images."""
    logits, labels = example()
    wanted = measured(name, logits, labels)
    found = measured(name, np.repeat(logits, 2, 0), np.repeat(labels, 2))
    if name == "ood_aupr":
        assert 0 < found < wanted  # there are fewer positives for each negative
        return
    tolerance = {"aurc": 0.01, "ece_equal_mass": 0.02}.get(name, 1e-12)
    np.testing.assert_allclose(found, wanted, rtol=tolerance)


@pytest.mark.parametrize("name", OF_LOGITS)
def test_a_number_added_to_all_logits_changes_nothing(name):
    """Where the score is a function of the probabilities; 64 costs their logits six bits."""
    logits, labels = example()
    moved = measured(name, logits + 64, labels, ood_logits=supply()["ood_logits"] + 64)
    np.testing.assert_allclose(moved, measured(name, logits, labels), rtol=1e-11)


@every_metric
def test_inputs_are_left_alone_and_may_be_lists(name):
    logits, labels = example()
    before = logits.copy()
    as_lists = {key: value.tolist() for key, value in supply().items()}
    found = measured(name, logits.tolist(), labels.tolist(), **as_lists)
    assert found == measured(name, logits, labels)
    np.testing.assert_array_equal(logits, before)


@every_metric
def test_an_impossible_class_is_no_class(name):
    """A logit of -inf, in a last class that no image has, adds nothing."""
    logits, labels = example()
    outside = supply()["ood_logits"]
    impossible = {
        "logits": np.pad(logits, ((0, 0), (0, 1)), constant_values=-INF),
        "ood_logits": np.pad(outside, ((0, 0), (0, 1)), constant_values=-INF),
        "class_counts": np.append(supply()["class_counts"], 0),
    }
    found = measured(name, labels=labels, **impossible)
    wanted = measured(name, logits, labels)
    if name == "ece_classwise":  # a mean over one class more
        wanted *= 7 / 8
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize("broken", [math.nan, INF])
@pytest.mark.parametrize("name", OF_LOGITS)
def test_a_diverged_network_has_no_metrics(name, broken):
    logits, labels = example()
    logits[17, 2] = broken
    assert math.isnan(measured(name, logits, labels))


@pytest.mark.parametrize("name", OF_LOGITS)
def test_a_row_without_a_possible_class(name):
    logits, labels = example()
    logits[17] = -INF
    assert math.isnan(measured(name, logits, labels))


@pytest.mark.parametrize("score", posthoc.SCORES)
@pytest.mark.parametrize("name", ["ood_auroc", "ood_aupr", "ood_fpr95"])
def test_out_of_distribution_logits_that_are_nan(name, score):
    outside = supply()["ood_logits"].copy()
    outside[3, 0] = math.nan
    assert math.isnan(measured(f"{name},score={score}", *example(), ood_logits=outside))


@pytest.mark.parametrize("name", OF_TRAINING)
def test_wrong_labels_need_no_logits_but_losses(name):
    logits, labels = example()
    assert measured(name, logits * math.nan, labels) == measured(name, logits, labels)
    losses = supply()["train_losses"].copy()
    losses[5] = math.nan
    assert math.isnan(measured(name, logits, labels, train_losses=losses))


# Refusals


@pytest.mark.parametrize("name", OF_LOGITS)
@pytest.mark.parametrize(("changed", "message"), [
    ({"labels": np.full(200, 7)}, r"class ids must lie in \[0, 7\), got 7"),
    ({"labels": np.full(200, -1)}, r"class ids must lie in \[0, 7\), got -1"),
    ({"labels": np.zeros(199, int)}, r"labels must have the shape \(200,\) of images, got \(199,"),
    ({"labels": np.zeros(200)}, "labels must be integer class ids, got float64"),
    ({"logits": np.zeros(7)}, r"logits must be float\[N, K\], got the shape \(7,\)"),
    ({"logits": np.zeros((0, 7)), "labels": np.zeros(0, int)}, "there are no images"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(name, changed, message):
    logits, labels = example()
    with pytest.raises(InputError, match=message):
        measured(name, **{"logits": logits, "labels": labels, **changed})


@pytest.mark.parametrize(("text", "changed", "message"), [
    ("few_accuracy", {"class_counts": np.ones(6)}, "class_counts must be 7 numbers"),
    ("many_accuracy", {"class_counts": np.full(7, -1)}, "class_counts must be finite and at least"),
    ("medium_accuracy,many=10", {}, "few must be at most many, got few=20 and many=10"),
    ("ood_aupr", {"ood_logits": np.zeros((0, 7))}, r"ood_logits must be float\[M, 7\]"),
    ("ood_fpr95", {"ood_logits": np.zeros((3, 6))}, r"ood_logits must be float\[M, 7\]"),
    ("ood_auroc,score=max_logits", {}, "unknown score 'max_logits': did you mean 'max_logit'"),
    ("noise_auroc", {"wrong_labels": np.ones(3, bool)}, "one number per training image"),
    ("memorised", {"wrong_labels": np.ones(3, bool)}, "one number per training image"),
])  # fmt: skip
def test_what_a_metric_asks_for_must_fit(text, changed, message):
    with pytest.raises(InputError, match=message):
        measured(text, *example(), **changed)


# As parts


def test_a_metric_is_found_by_its_spec():
    part = spec.find(KIND, "ece_equal_mass,bins=10")
    logits, labels = example()
    assert part.keywords == {"bins": 10}
    assert part.call(logits, labels, **supply()) == METRICS["ece_equal_mass"](
        logits, labels, bins=10
    )
    assert str(spec.find(KIND, "ece_equal_mass,bins=15").canonical()) == "ece_equal_mass"
    for name in METRICS:
        assert name in spec.listing(KIND)


@pytest.mark.parametrize(("text", "message"), [
    ("ece,bins=0", r"bins must lie in \[1, inf\)"),
    ("ece_equal_mass,bins=0", r"bins must lie in \[1, inf\)"),
    ("ece_classwise,bins=-3", r"bins must lie in \[1, inf\)"),
    ("ece,bins=2.5", "bins must be a whole number"),
    ("many_accuracy,many=-1", r"many must lie in \[0, inf\)"),
    ("medium_accuracy,few=-1", r"few must lie in \[0, inf\)"),
    ("few_accuracy,many=5", "has no hyperparameter 'many'"),
    ("few_accuracy,class_counts=[1,2]", "class_counts comes from the run"),
    ("ood_auroc,score=3", "score must be a word"),
    ("eec", "did you mean 'ece'"),
])  # fmt: skip
def test_hyperparameters_have_ranges(text, message):
    with pytest.raises(InputError, match=message):
        spec.find(KIND, text)


@every_metric
def test_a_metric_is_described(name):
    function = METRICS[name]
    assert function.__name__ == name
    about = docstrings.entry(function)
    parameters = inspect.signature(function).parameters
    assert about.summary.endswith(".") and len(about.summary) < 100
    assert about.formula
    assert [*about.arguments] == [*parameters]
    part = spec.find(KIND, name)
    for key, parameter in part.hyperparameters().items():
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert key == "score" or docstrings.limits(about.arguments[key])
    assert set(parameters) - {"logits", "labels", *part.hyperparameters()} <= set(SUPPLIES)


@every_metric
def test_a_metric_says_how_it_is_shown(name):
    record = spec.find(KIND, name).mark(SHOWN)
    assert isinstance(record, Shown) and record.label
    bound = spec.find(KIND, name).bind(**supply())
    assert spec.Part(KIND, name, bound, {}).mark(SHOWN) is record
    if name in metrics.METRICS:
        of_run = metrics.METRICS[name]
        shared = {f.name for f in dataclasses.fields(Shown)} - {"label"}
        assert {key: getattr(record, key) for key in shared} == {
            key: getattr(of_run, key) for key in shared
        }
        assert record.label == (of_run.label or name)


def margin(logits, labels):
    """Somebody's metric, without a mark."""
    del labels
    ordered = np.sort(logits, 1)
    return float(np.mean(ordered[:, -1] - ordered[:, -2]))


def test_a_metric_of_your_own():
    part = spec.Part(KIND, "margin", margin, {})
    default = Shown(part.name)
    assert part.mark(SHOWN, default) == Shown("margin", False, 1.0, "", None, 4)
    assert part.call(np.array([[1.0, 3.0]]), np.array([0]), **supply()) == 2

    @posthoc.shown(Shown("margin", larger_is_better=True))
    def marked(logits, labels):
        return margin(logits, labels)

    assert spec.Part(KIND, "marked", marked, {}).mark(SHOWN, default).larger_is_better


def test_confidences_are_the_softmax_of_float64():
    """Not of the logits' own type: in float16 none of these would be right to 1e-3."""
    logits, labels = example()
    half = logits.astype(np.float16)
    wanted = -np.mean(np.log(softmax(half.astype(np.float64), 1)[np.arange(200), labels]))
    np.testing.assert_allclose(measured("nll", half, labels), wanted, rtol=1e-12)


@pytest.mark.slow
def test_no_jax():
    code = (
        "import sys, cnnlab.posthoc.metrics, cnnlab.posthoc.transforms; print('jax' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.stdout, run.returncode) == ("False\n", 0), run.stderr
