"""Wrong labels, long tails and fewer images: shares that are exact or known, draws that depend on the seed only."""

import numpy as np
import pytest

from cnnlab.data import conditions

K, N = 10, 20_000
LABELS = np.random.default_rng(0).permutation(np.arange(N, dtype=np.int32) % K)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 0.8])
def test_symmetric_noise(rate):
    noisy = conditions.symmetric_noise(LABELS, rate, K, seed=3)
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
    draws = {rate: conditions.symmetric_noise(LABELS, rate, K, seed=7) for rate in (0.2, 0.4)}
    wrong = draws[0.2] != LABELS
    np.testing.assert_array_equal(draws[0.4][wrong], draws[0.2][wrong])
    np.testing.assert_array_equal(conditions.symmetric_noise(LABELS, 0.4, K, seed=7), draws[0.4])
    other = conditions.symmetric_noise(LABELS, 0.4, K, seed=8)
    assert 0.4 < np.mean((other != LABELS)[draws[0.4] != LABELS]) + 0.03 < 0.46  # independent of the other seed's


def test_asymmetric_noise_takes_the_classes_of_cifar10_for_their_likes():
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    other = conditions.taken_for("cifar10", K)
    pairs = {names[k]: names[j] for k, j in enumerate(other) if k != j}
    assert pairs == {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}
    noisy = conditions.asymmetric_noise(LABELS, 0.4, other, seed=1)
    for k, j in enumerate(other):
        of_class = noisy[k == LABELS]
        assert set(of_class) <= {k, j}
        if k != j:
            assert abs(np.mean(of_class == j) - 0.4) < 4 * np.sqrt(0.24 / len(of_class))
    np.testing.assert_array_equal(conditions.taken_for("tiny", 3), [1, 2, 0])


def test_long_tail_is_exponential():
    counts = conditions.class_counts(np.full(10, 5000), 1.0, 100.0)
    assert counts[0] == 5000 and counts[-1] == 50 and list(counts) == sorted(counts, reverse=True)
    np.testing.assert_allclose(counts[1:] / counts[:-1], 100 ** (-1 / 9), rtol=0.01)
    assert counts.sum() == 12406  # CIFAR-10-LT(100) of Cui et al.
    np.testing.assert_array_equal(conditions.class_counts(np.full(10, 5000), 1.0, 1.0), np.full(10, 5000))


def test_fraction_keeps_it_of_every_class():
    np.testing.assert_array_equal(conditions.class_counts(np.array([100, 50, 3]), 0.1, 1.0), [10, 5, 1])
    both = conditions.class_counts(np.full(4, 1000), 0.5, 8.0)
    np.testing.assert_array_equal(both, [500, 250, 125, 62])


def test_subsets_are_nested_exact_and_drawn_by_the_seed():
    pool = np.flatnonzero(np.random.default_rng(1).random(N) < 0.9)
    small, large = np.full(K, 20), np.full(K, 50)
    chosen = conditions.subset(LABELS, pool, small, seed=5)
    assert list(chosen) == sorted(set(chosen)) and set(chosen) <= set(pool)
    np.testing.assert_array_equal(np.bincount(LABELS[chosen], minlength=K), small)
    assert set(chosen) <= set(conditions.subset(LABELS, pool, large, seed=5))
    assert len(set(chosen) & set(conditions.subset(LABELS, pool, small, seed=6))) < 20
