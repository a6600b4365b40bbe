"""Metrics against plain loops in float64, and by hand."""

import json
import math
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnlab import metrics

EPS = 2.0**-23  # one ulp of float32, relative
MEANS = ["loss", "nll", "brier", "ece", "accuracy", "top5"]
compiled = jax.jit(metrics.sums)


def summary(logits, labels, loss=None, mask=None):
    count = len(labels)
    loss = np.zeros(count, np.float32) if loss is None else loss
    mask = np.ones(count, bool) if mask is None else mask
    return metrics.summarise(
        [compiled(jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.int32), loss, mask)]
    )


def example(count, classes, seed=0):
    rng = np.random.default_rng(seed)
    logits = (2 * rng.standard_normal((count, classes))).astype(np.float32)
    return logits, rng.integers(0, classes, count), rng.uniform(0, 3, count).astype(np.float32)


def by_hand(logits, labels, losses):
    """The same from the definitions, example by example."""
    classes = logits.shape[1]
    n = len(labels)
    confusion = [[0] * classes for _ in range(classes)]
    nll = brier = top5 = 0.0
    bins = [[0, 0.0, 0] for _ in range(15)]
    for z, label in zip(logits.astype(np.float64).tolist(), labels.tolist(), strict=True):
        total = math.fsum(math.exp(v) for v in z)
        p = [math.exp(v) / total for v in z]
        ranking = sorted(range(classes), key=lambda k: (-z[k], k))
        confusion[label][ranking[0]] += 1
        nll -= math.log(p[label])
        brier += sum((p[k] - (k == label)) ** 2 for k in range(classes))
        top5 += label in ranking[:5]
        own = next(b for b in range(15) if b / 15 < max(p) <= (b + 1) / 15)
        bins[own] = [bins[own][0] + 1, bins[own][1] + max(p), bins[own][2] + (ranking[0] == label)]
    return {
        "count": n,
        "loss": math.fsum(losses.tolist()) / n,
        "accuracy": sum(confusion[k][k] for k in range(classes)) / n,
        "top5": top5 / n,
        "nll": nll / n,
        "brier": brier / n,
        "ece": sum(m / n * abs(hits / m - conf / m) for m, conf, hits in bins if m),
        "per_class_accuracy": [
            row[k] / sum(row) if sum(row) else None for k, row in enumerate(confusion)
        ],
        "confusion": confusion,
    }


def same(got, wanted):
    assert got["count"] == wanted["count"] and got["confusion"] == wanted["confusion"]
    assert got["per_class_accuracy"] == pytest.approx(wanted["per_class_accuracy"], rel=1e-12)
    # A float32 sum of n terms is off by less than n/2 ulp of itself; each term by a few.
    for name in MEANS:
        assert got[name] == pytest.approx(
            wanted[name], rel=0.5 * got["count"] * EPS, abs=8 * EPS
        ), name


@pytest.mark.parametrize("classes", [3, 10])
def test_against_loops(classes):
    logits, labels, losses = example(200, classes)
    same(summary(logits, labels, losses), by_hand(logits, labels, losses))


def test_the_mask_hides_padding():
    logits, labels, losses = example(40, 10, seed=1)
    mask = np.arange(40) % 3 != 0
    poisoned_logits = logits.copy()
    poisoned_losses = losses.copy()
    poisoned_logits[~mask], poisoned_losses[~mask] = np.nan, np.nan
    wanted = by_hand(logits[mask], labels[mask], losses[mask])
    same(summary(logits, labels, losses, mask), wanted)
    same(summary(poisoned_logits, labels, poisoned_losses, mask), wanted)


def test_batches_add_up():
    logits, labels, losses = example(60, 10, seed=2)
    whole = summary(logits, labels, losses)
    mask = np.ones(20, bool)
    parts = [slice(k, k + 20) for k in (0, 20, 40)]
    split = metrics.summarise(compiled(logits[at], labels[at], losses[at], mask) for at in parts)
    same(split, whole)


def test_ece_by_hand():
    # Two classes. Confidence 0.75 (bin 12 of 15): four examples, three right: no gap. Confidence
    # 0.9 (bin 14): four examples, one right: gap 0.65, on half of the examples.
    logits = np.log([[0.75, 0.25]] * 4 + [[0.9, 0.1]] * 4)
    result = summary(logits, [0, 0, 0, 1, 0, 1, 1, 1])
    assert result["ece"] == pytest.approx(0.325, abs=8 * EPS)
    assert result["accuracy"] == 0.5


def test_gaps_of_one_bin_cancel_and_those_of_two_do_not():
    one_bin = summary(np.log([[0.61, 0.39], [0.65, 0.35]]), [0, 1])  # both in (9/15, 10/15]
    assert one_bin["ece"] == pytest.approx(abs(1 - 0.61 - 0.65) / 2, abs=8 * EPS)
    two_bins = summary(np.log([[0.61, 0.39], [0.75, 0.25]]), [0, 1])
    assert two_bins["ece"] == pytest.approx((0.39 + 0.75) / 2, abs=8 * EPS)
    lowest = np.log([[0.05] * 20, [0.1] + [0.9 / 19] * 19])  # the first bin and the second
    assert summary(lowest, [0, 1])["ece"] == pytest.approx((0.95 + 0.1) / 2, abs=8 * EPS)


def test_rows_are_true_classes():
    result = summary(np.eye(3)[[1, 1, 2]], [0, 0, 2])  # class 0 taken for class 1, twice
    assert result["confusion"] == [[0, 2, 0], [0, 0, 0], [0, 0, 1]]
    assert result["per_class_accuracy"] == [0.0, None, 1.0]


def test_a_perfect_predictor():
    labels = np.arange(20) % 10
    result = summary(1e4 * np.eye(10)[labels], labels)
    assert result["confusion"] == (2 * np.eye(10, dtype=int)).tolist()
    assert result["per_class_accuracy"] == [1.0] * 10
    assert {name: result[name] for name in MEANS} == {
        n: float(n in ("accuracy", "top5")) for n in MEANS
    }


def test_a_constant_predictor():
    # All logits equal: class 0 is predicted, classes 0 to 4 are the top five, confidence 1/10 is
    # accuracy.
    result = summary(np.zeros((30, 10)), np.arange(30) % 10)
    assert (result["accuracy"], result["top5"], result["count"]) == (0.1, 0.5, 30)
    assert result["nll"] == pytest.approx(math.log(10), rel=16 * EPS)
    assert result["brier"] == pytest.approx(0.9, rel=16 * EPS)
    assert result["ece"] == pytest.approx(0, abs=16 * EPS)
    assert [row[0] for row in result["confusion"]] == [3] * 10


def test_top5_of_ranks():
    logits = np.arange(10.0, 0, -1)[None].repeat(10, 0)  # the rank of class k is k
    for label in range(10):
        assert summary(logits, [label] * 10)["top5"] == float(label < 5)


def test_nan_logits_are_no_hit():
    result = summary(np.full((2, 10), np.nan), [3, 4])
    assert result["top5"] == 0 and result["accuracy"] == 0 and math.isnan(result["nll"])


def test_sums_keep_their_types():
    logits, labels, losses = example(8, 4)
    arguments = logits, labels.astype(np.int32), losses, np.ones(8, bool)
    got = jax.eval_shape(metrics.sums, *arguments)
    wanted = {"count": "int32", "accuracy": "int32", "top5": "int32", "confusion": "int32"}
    assert {name: str(value.dtype) for name, value in got.items()} == {
        k: wanted.get(k, "float32") for k in got
    }
    assert got["confusion"].shape == (4, 4) and got["ece"].shape == (3, 15)


def count_of_class_0(logits, labels, mask):
    return jnp.sum((labels == 0) & mask, dtype=jnp.int32)


def test_own_metrics_are_summed_and_finished_with_the_others():
    own = (
        metrics.Metric("zeros", count_of_class_0),
        metrics.Metric(
            "odds", count_of_class_0, lambda total, count: float(total / (count - total))
        ),
    )
    labels = jnp.asarray([0, 0, 1, 0], jnp.int32)
    mask = np.array([True, True, True, False])
    part = metrics.sums(jnp.zeros((4, 2)), labels, jnp.zeros(4), mask, own)
    result = metrics.summarise([part, part], own)
    assert (result["zeros"], result["odds"], result["count"]) == (pytest.approx(2 / 3), 2.0, 6)
    assert list(metrics.numbers(result)) == ["loss", *metrics.METRICS, "zeros", "odds"]
    assert metrics.describe(result).endswith("zeros 0.6667  odds 2.0000  (6 images)")


def test_the_calibration_is_what_the_ece_is_of():
    result = summary(np.log([[0.75, 0.25]] * 4), [0, 0, 0, 1])
    assert np.shape(result["calibration"]) == (3, 15)
    count, confidence, hits = np.array(result["calibration"])
    assert (count[11], hits[11], count.sum()) == (4, 3, 4) and confidence[11] == pytest.approx(
        3, rel=8 * EPS
    )


def test_describe():
    result = summary(np.zeros((4, 2)), [0, 1, 0, 1])
    assert (
        metrics.describe(result)
        == "accuracy 0.5000  NLL 0.6931  Brier 0.5000  ECE 0.0000  (4 images)"
    )


def test_a_data_set_of_many_classes_is_added_up_without_keeping_its_batches():
    """A batch's confusion matrix of 1000 classes is 4 MB."""
    alive = []

    def batches():
        rng = np.random.default_rng(0)
        for _ in range(20):
            part = {
                "count": np.int32(5),
                "loss": np.float32(1.0),
                "confusion": np.zeros((300, 300), np.int32),
                "ece": np.ones((3, 15), np.float32),
                **dict.fromkeys(("accuracy", "nll", "brier", "top5"), np.float32(1.0)),
            }
            part["confusion"][rng.integers(300), rng.integers(300)] = 5
            alive.append(weakref.ref(part["confusion"]))
            yield part
            del part
            assert sum(matrix() is not None for matrix in alive) <= 1

    result = metrics.summarise(batches())
    assert result["count"] == metrics.confusion_matrix(result).sum() == 100


def test_several_seeds_are_summarised_as_each_of_them_alone():
    logits, labels, losses = example(40, 4)
    other, _, _ = example(40, 4, seed=1)
    mask = np.ones(20, bool)
    batches = [
        [compiled(z[half], labels[half], losses[half], mask) for half in (slice(20), slice(20, 40))]
        for z in (logits, other)
    ]
    both = [jax.tree.map(lambda *x: np.stack(x), *parts) for parts in zip(*batches, strict=True)]
    assert metrics.summarise_seeds(both) == [metrics.summarise(parts) for parts in batches]


@pytest.mark.parametrize("classes", [1, 3, 100, 101, 1000])
def test_a_confusion_matrix_is_read_as_it_was_written(classes):
    rng = np.random.default_rng(classes)
    matrix = rng.integers(0, 10**6, (classes, classes)) * (rng.random((classes, classes)) < 0.02)
    stored = json.loads(json.dumps(metrics.written_confusion(matrix)))
    found = metrics.confusion_matrix({"confusion": stored})
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, matrix)


def test_a_confusion_matrix_of_many_classes_is_written_small():
    """As many images as ImageNet has to test on, a quarter of them mistaken, each its own way; the
    file has two such tests where weights are averaged.
    """
    rng = np.random.default_rng(0)
    true = np.repeat(np.arange(1000), 50)
    predicted = np.where(rng.random(50_000) < 0.75, true, rng.integers(0, 1000, 50_000))
    matrix = np.zeros((1000, 1000), int)
    np.add.at(matrix, (true, predicted), 1)
    rows = metrics.written_confusion(matrix)
    assert rows[3].split()[0].count(":") == 1
    assert len(json.dumps(rows, indent=2)) < 150_000
    few = metrics.written_confusion(matrix[:100, :100])
    assert few == matrix[:100, :100].tolist() and len(json.dumps(few)) < 40_000


def test_the_largest_confusions_by_hand():
    matrix = np.array([[90, 4, 0, 6], [0, 5, 4, 1], [0, 0, 0, 0], [4, 0, 6, 0]])
    found = metrics.largest_confusions(matrix, 4)
    assert [(m.true, m.predicted, m.count, m.share) for m in found] == [
        (3, 2, 6, 0.6),  # of equal counts the larger share first
        (0, 3, 6, 0.06),
        (1, 2, 4, 0.4),
        (3, 0, 4, 0.4),
    ]
    assert metrics.largest_confusions(np.eye(3, dtype=int)) == []
    named = metrics.named_confusions({"confusion": matrix.tolist()}, ["cat", "dog", "owl", "bee"])
    assert named[0] == {"true": "bee", "predicted": "owl", "count": 6, "share": 0.6}
    assert len(named) == 6


@pytest.mark.parametrize("num_classes", [metrics.WRITTEN_OUT, metrics.WRITTEN_OUT + 1])
def test_confusions_of_many_classes_are_left_out(num_classes):
    confusion = metrics.written_confusion(np.eye(num_classes))
    result = {"accuracy": 1.0, "confusion": confusion}
    kept = metrics.without_large_confusion(result)
    assert kept == (result if num_classes == metrics.WRITTEN_OUT else {"accuracy": 1.0})
