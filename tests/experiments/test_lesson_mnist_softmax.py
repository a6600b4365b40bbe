"""experiments/lessons/mnist_softmax.py, on 28x28 images of ten bars in noise, as MNIST is a
download.
"""

import fcntl
from dataclasses import replace

import jax
import numpy as np
import pytest
from lesson_example import claims, lesson
from small_data import write_dataset

pytestmark = pytest.mark.slow

module = lesson("mnist_softmax")
A, B = np.array([3.0, 0.0]), np.array([1.0, 0.0])


def bars(count, seed):
    """Noise with a bar whose height tells the class, one of twenty in fog: uint8[N, 28, 28, 1] and
    labels.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count).astype(np.int32)
    images = rng.integers(0, 100, (count, 28, 28, 1))
    for image, label in zip(images, labels, strict=True):
        image[4 + 2 * label : 6 + 2 * label] += 100
    images[::20] = rng.integers(54, 60, images[::20].shape)  # near the mean, where the bias decides
    return images.astype(np.uint8), labels


@pytest.fixture(scope="module")
def flags(own_folders):
    root = own_folders / "tfds"
    root.mkdir(exist_ok=True)
    with (own_folders / "bars.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "bars").is_dir():
            write_dataset(
                root, "bars", {"train": bars(1500, 0), "test": bars(1000, 1)}, 10, (28, 28, 1)
            )
    return module.Flags(dataset="bars", epochs=20)


def taught(flags):
    with jax.numpy_dtype_promotion("standard"):  # optax.adamw mixes types
        return claims(module, flags)


def test_distances_by_hand():
    x = np.array([[3.0, 4.0], [1.0, 1.0]])
    w = np.array([[0.0, 3.0], [0.0, 0.0]])  # the columns (0, 0) and (3, 0)
    np.testing.assert_allclose(
        module.distances(x, w), [[5, 4], [np.sqrt(2), np.sqrt(5)]], rtol=1e-15
    )


def test_agreement_by_hand():
    x = np.array([[1.0, 0.0], [4.0, 0.0]])
    w = np.stack([A, B], 1)
    # (3, 0) has the larger product with both; (1, 0) is nearer to the first of them.
    assert module.agreement(x, w, 0) == 0.5
    assert module.agreement(x, w, -np.array([9, 1]) / 2) == 1
    x = np.array([[0.6, 0.4]])  # nearer to (1, 0) than to (0, 1)
    assert module.agreement(x, np.eye(2), 0) == 1
    assert module.agreement(x, np.eye(2), np.array([0, 0.3])) == 0
    assert module.agreement(x, np.eye(2), np.array([7, 7])) == 1  # the same for all is none


def test_counterexample_by_hand():
    np.testing.assert_array_equal(module.counterexample(A, B), [1, 0])
    np.testing.assert_array_equal(module.counterexample(B, A), [1, 0])


def test_counterexample_of_any_two():
    rng = np.random.default_rng(0)
    for short in rng.normal(size=(20, 5)):
        long = rng.normal(size=5)
        long *= np.linalg.norm(short) * rng.uniform(1.01, 5) / np.linalg.norm(long)
        x = module.counterexample(short, long)
        gap = (long @ long - short @ short) / 4
        np.testing.assert_allclose(long @ x - short @ x, gap)
        np.testing.assert_allclose(np.sum((x - long) ** 2) - np.sum((x - short) ** 2), 2 * gap)


def test_every_claim_holds(flags, monkeypatch):
    cases = []
    whole = module.agreement

    def agreement(x, w, b):
        cases.append((x, w, b))
        return whole(x, w, b)

    monkeypatch.setattr(module, "agreement", agreement)
    found = taught(flags)
    assert len(found) == 5
    assert [claim.statement for claim in found if not claim.holds] == []
    (x, w, b), (pixels, raw_w, raw_b) = cases[:2]
    # The same network
    np.testing.assert_allclose(pixels @ raw_w + raw_b, x @ w + b, rtol=0, atol=1e-11)
    assert pixels.min() == 0 and pixels.max() <= 1
    assert len(x) == 1000 and abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.02


def test_too_short_a_training_does_not_reach_92_percent(flags):
    first = taught(replace(flags, epochs=1))[0]
    assert "92 %" in first.statement and not first.holds


def broken_claims(flags, monkeypatch, name, function):
    monkeypatch.setattr(module, name, function)
    return [not claim.holds for claim in taught(flags)]


def test_claims_fail_where_nearest_means_largest_dot_product(flags, monkeypatch):
    assert broken_claims(flags, monkeypatch, "distances", lambda x, w: -x @ w)[3:] == [True, True]


def test_claim_fails_where_the_counterexample_is_none(flags, monkeypatch):
    def wrong(a, b):
        return a if a @ a > b @ b else b

    assert broken_claims(flags, monkeypatch, "counterexample", wrong)[3]


def test_claims_fail_where_the_nearest_always_wins(flags, monkeypatch):
    assert broken_claims(flags, monkeypatch, "agreement", lambda x, w, b: 1.0)[1:4] == [True] * 3
