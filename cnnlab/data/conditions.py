"""What is done to a training set on purpose: wrong labels, a long tail, fewer images. Pure functions of a seed.

The draws of a seed are nested: whatever is wrong at a rate of 0.2 is wrong in the same way at 0.4, and a half of the
images holds the quarter.
"""

from __future__ import annotations

import numpy as np

# Classes that are taken for others: those of CIFAR-10 and MNIST of Patrini et al., 2017, arXiv 1609.03683.
TAKEN_FOR = {
    "cifar10": {9: 1, 2: 0, 4: 7, 3: 5, 5: 3},  # truck car, bird plane, deer horse, cat dog, dog cat
    "mnist": {7: 1, 2: 7, 5: 6, 6: 5, 3: 8},
}


def taken_for(dataset: str, num_classes: int) -> np.ndarray:
    """The class that each is taken for, int32[K]; itself where it is always told apart.

    Other data sets than CIFAR-10 and MNIST have no such pairs: there each class is taken for the next, the last for
    the first (pair flipping; Han et al., 2018, arXiv 1804.06872).
    """
    pairs = TAKEN_FOR.get(dataset)
    if pairs is None:
        return (np.arange(num_classes, dtype=np.int32) + 1) % num_classes
    return np.array([pairs.get(k, k) for k in range(num_classes)], np.int32)


def symmetric_noise(labels: np.ndarray, rate: float, num_classes: int, seed: int) -> np.ndarray:
    """Labels of which each is wrong with probability `rate`, any other class being as likely.

    Args:
      labels: int32[N], of a whole split: an image's draw does not depend on which others are used.
      rate: in [0, 1).
      num_classes: K.
      seed: of the draw.

    Returns:
      int32[N].
    """
    shift = np.random.default_rng([seed, 0x5E11]).integers(1, num_classes, len(labels), dtype=np.int32)
    return np.where(_mistaken(len(labels), rate, seed), (labels + shift) % num_classes, labels)


def asymmetric_noise(labels: np.ndarray, rate: float, other: np.ndarray, seed: int) -> np.ndarray:
    """Labels of which each is, with probability `rate`, that of the class it is taken for (`taken_for`).

    Args as for `symmetric_noise`; the same images are mistaken, where their class is one that can be.
    """
    return np.where(_mistaken(len(labels), rate, seed), other[labels], labels)


def _mistaken(count: int, rate: float, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, 0xE44]).random(count) < rate


def class_counts(counts: np.ndarray, fraction: float, long_tail: float) -> np.ndarray:
    """How many images of each class are kept.

    Args:
      counts: int[K], how many there are.
      fraction: of each class, in (0, 1].
      long_tail: factor between the first class and the last; class k then keeps factor^(-k / (K - 1)) of the smallest
        class's images (Cui et al., 2019, arXiv 1901.05555), and no more than it has.

    Returns:
      int[K], at least one of each class that there is.
    """
    kept = counts * fraction
    if long_tail > 1:
        places = np.arange(len(counts)) / max(len(counts) - 1, 1)
        kept = np.floor(np.min(kept[counts > 0]) * long_tail**-places + 1e-9)  # 12,406 images of CIFAR-10 at 100
    return np.minimum(counts, np.maximum(1, np.round(kept))).astype(int)


def subset(labels: np.ndarray, positions: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """Positions of as many images of each class as `counts` says, drawn by the seed.

    Args:
      labels: int[N], the right ones.
      positions: int[n], ascending: what is chosen from.
      counts: int[K], at most as many as there are.
      seed: of the draw; the numbers of images do not depend on it.

    Returns:
      int[sum(counts)], ascending.
    """
    drawn = np.random.default_rng([seed, 0x5B5E]).permutation(positions)
    return np.sort(np.concatenate([drawn[labels[drawn] == k][:n] for k, n in enumerate(counts)]))
