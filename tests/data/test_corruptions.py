"""Wrong labels, long tails and fewer images: shares that are exact or known, draws that depend on
the seed only.
"""

import dataclasses

import numpy as np
import pytest

from cnnlab.data import catalogue, corruptions, dataset
from cnnlab.errors import InputError

K = 10
N = 20_000
LABELS = np.random.default_rng(0).permutation(np.arange(N, dtype=np.int32) % K)


def changed(before, after):
    """The fields that are not the very same objects."""
    names = [field.name for field in dataclasses.fields(before)]
    return [name for name in names if getattr(before, name) is not getattr(after, name)]


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 0.8])
def test_symmetric_noise(rate):
    noisy = corruptions.symmetric_noise(LABELS, rate, K, seed=3)
    assert noisy.dtype == np.int32 and noisy.min() >= 0 and noisy.max() < K
    wrong = noisy != LABELS
    assert abs(wrong.mean() - rate) <= 4 * np.sqrt(rate * (1 - rate) / N)  # four standard errors
    if rate:
        confusion = np.zeros((K, K))
        np.add.at(confusion, (LABELS, noisy), 1)
        off = confusion[~np.eye(K, dtype=bool)]
        expected = N * rate / (K * (K - 1))
        assert abs(off - expected).max() < 5 * np.sqrt(expected)  # every other class alike


def test_noise_is_nested_and_depends_on_the_seed_only():
    draws = {rate: corruptions.symmetric_noise(LABELS, rate, K, seed=7) for rate in (0.2, 0.4)}
    wrong = draws[0.2] != LABELS
    np.testing.assert_array_equal(draws[0.4][wrong], draws[0.2][wrong])
    np.testing.assert_array_equal(corruptions.symmetric_noise(LABELS, 0.4, K, seed=7), draws[0.4])
    other = corruptions.symmetric_noise(LABELS, 0.4, K, seed=8)
    # Independent of the other seed's
    assert 0.4 < np.mean((other != LABELS)[draws[0.4] != LABELS]) + 0.03 < 0.46


def test_asymmetric_noise_takes_the_classes_of_cifar10_for_their_likes():
    names = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    other = corruptions.taken_for(catalogue.TAKEN_FOR["cifar10"], K)
    pairs = {names[k]: names[j] for k, j in enumerate(other) if k != j}
    assert pairs == {
        "truck": "automobile",
        "bird": "airplane",
        "deer": "horse",
        "cat": "dog",
        "dog": "cat",
    }
    noisy = corruptions.asymmetric_noise(LABELS, 0.4, other, seed=1)
    for k, j in enumerate(other):
        of_class = noisy[k == LABELS]
        assert set(of_class) <= {k, j}
        if k != j:
            assert abs(np.mean(of_class == j) - 0.4) < 4 * np.sqrt(0.24 / len(of_class))
    np.testing.assert_array_equal(corruptions.taken_for({}, 3), [1, 2, 0])


def test_long_tail_is_exponential():
    counts = corruptions.class_counts(np.full(10, 5000), 1.0, 100.0)
    assert counts[0] == 5000 and counts[-1] == 50 and list(counts) == sorted(counts, reverse=True)
    np.testing.assert_allclose(counts[1:] / counts[:-1], 100 ** (-1 / 9), rtol=0.01)
    assert counts.sum() == 12406  # CIFAR-10-LT(100) of Cui et al.
    np.testing.assert_array_equal(
        corruptions.class_counts(np.full(10, 5000), 1.0, 1.0), np.full(10, 5000)
    )


def test_fraction_keeps_it_of_every_class():
    np.testing.assert_array_equal(
        corruptions.class_counts(np.array([100, 50, 3]), 0.1, 1.0), [10, 5, 1]
    )
    both = corruptions.class_counts(np.full(4, 1000), 0.5, 8.0)
    np.testing.assert_array_equal(both, [500, 250, 125, 62])


def test_subsets_are_nested_exact_and_drawn_by_the_seed():
    pool = np.flatnonzero(np.random.default_rng(1).random(N) < 0.9)
    small, large = np.full(K, 20), np.full(K, 50)
    chosen = corruptions.subset(LABELS, pool, small, seed=5)
    assert list(chosen) == sorted(set(chosen)) and set(chosen) <= set(pool)
    np.testing.assert_array_equal(np.bincount(LABELS[chosen], minlength=K), small)
    assert set(chosen) <= set(corruptions.subset(LABELS, pool, large, seed=5))
    assert len(set(chosen) & set(corruptions.subset(LABELS, pool, small, seed=6))) < 20


def a_dataset(**fields):
    """Ten classes, a few images of which are held out."""
    images = np.zeros((N, 2, 2, 3), np.uint8)
    made = dataset.from_arrays(
        "made", {"train": (images, LABELS), "test": (images[:K], LABELS[:K])}
    )
    own = np.flatnonzero(np.random.default_rng(1).random(N) < 0.9)
    return dataclasses.replace(made, labels=LABELS, targets=LABELS, positions=own, **fields)


def test_label_noise_changes_the_targets_alone():
    before = a_dataset()
    after = corruptions.label_noise(before, 3, 0.4)
    np.testing.assert_array_equal(after.targets, corruptions.symmetric_noise(LABELS, 0.4, K, 3))
    assert changed(before, after) == ["targets"]
    np.testing.assert_array_equal(after.class_counts(), before.class_counts())


def test_asymmetric_label_noise_follows_the_data_set():
    plain = corruptions.label_noise(a_dataset(), 3, 0.4, "asymmetric")
    assert set(np.unique((plain.targets - LABELS) % K)) == {0, 1}
    paired = corruptions.label_noise(a_dataset(taken_for={2: 5}), 3, 0.4, kind="asymmetric")
    wrong = paired.targets != LABELS
    assert set(LABELS[wrong]) == {2} and set(paired.targets[wrong]) == {5}
    # The same images err
    np.testing.assert_array_equal(wrong, (plain.targets != LABELS) & (LABELS == 2))
    with pytest.raises(
        InputError, match="unknown kind of label noise 'symetric': did you mean 'symmetric'"
    ):
        corruptions.label_noise(a_dataset(), 3, 0.4, "symetric")


@pytest.mark.parametrize(
    ("corrupt", "arguments", "wanted"),
    [("long_tail", {"factor": 8.0}, (1.0, 8.0)), ("fraction", {"share": 0.5}, (0.5, 1.0))],
)
def test_thinning_chooses_among_what_there_is(corrupt, arguments, wanted):
    before = a_dataset()
    after = corruptions.CORRUPTIONS[corrupt](before, 5, **arguments)
    counts = corruptions.class_counts(before.class_counts(), *wanted)
    np.testing.assert_array_equal(after.class_counts(), counts)
    np.testing.assert_array_equal(
        after.positions, corruptions.subset(LABELS, before.positions, counts, 5)
    )
    assert changed(before, after) == ["positions"]
    other = corruptions.CORRUPTIONS[corrupt](before, 6, **arguments)
    np.testing.assert_array_equal(other.class_counts(), counts)
    assert set(other.positions) != set(after.positions)


def test_corruptions_follow_one_another():
    """A tail is cut by the right labels, whatever labels are wrong."""
    before = a_dataset()
    noisy_first = corruptions.long_tail(corruptions.label_noise(before, 1, 0.4), 1, 4.0)
    noisy_last = corruptions.label_noise(corruptions.long_tail(before, 1, 4.0), 1, 0.4)
    np.testing.assert_array_equal(noisy_first.positions, noisy_last.positions)
    np.testing.assert_array_equal(noisy_first.targets, noisy_last.targets)
    twice = corruptions.fraction(corruptions.long_tail(before, 1, 4.0), 1, 0.5)
    np.testing.assert_array_equal(
        twice.class_counts(),
        corruptions.class_counts(corruptions.long_tail(before, 1, 4.0).class_counts(), 0.5, 1.0),
    )
