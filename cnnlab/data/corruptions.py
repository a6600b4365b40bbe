"""What is done to a training set on purpose: wrong labels, rare classes, fewer images. Pure
functions of a seed.

A corruption is `(dataset, seed, **hyperparameters) -> dataset`: it returns the data set with other
`targets` or `positions` (`dataset.Dataset`), by `dataclasses.replace`. How many images are left
must not depend on the seed. The draws of a seed are nested: whatever is wrong at a rate of 0.2 is
wrong in the same way at 0.4, and a half of the images holds the quarter. It may ask for `data_dir`.

One that is marked `at_opening` changes the data set itself, test images too: it is called once,
when that is opened, with 0 in place of a seed and before the labels are filled in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from cnnlab.data import human_labels
from cnnlab.data.classes import keep
from cnnlab.data.dataset import Dataset
from cnnlab.errors import InputError, unknown

KINDS = ("symmetric", "asymmetric")
AT_OPENING = "at_opening"  # the attribute that `at_opening` sets
C = TypeVar("C", bound=Callable)


def at_opening(corruption: C) -> C:
    """Mark a corruption, your own too, as a change of the data set itself: it acts on both splits
    when the data set is opened, before those that are drawn by a seed.

    >>> at_opening(lambda dataset, seed: dataset).at_opening
    True
    """
    vars(corruption)[AT_OPENING] = True
    return corruption


@at_opening
def subset(dataset: Dataset, seed: int, classes: Sequence[int | str]) -> Dataset:
    """Keep some classes, of the test images too, numbered from 0 in the order in which they are
    written; stands before what is drawn by a seed.

    Args:
      classes: numbers or names, at least two, such as [3,5] or [cat,dog].

    Raises:
      InputError: a class that there is not, one twice, or fewer than two.
    """
    del seed
    return keep(dataset, classes)


def label_noise(dataset: Dataset, seed: int, rate: float, kind: str = "symmetric") -> Dataset:
    """Make a share of the training labels wrong; those of validation and test stay right.

    Args:
      rate: in (0, 1), share of the labels of classes that err.
      kind: symmetric (any other class is as likely) or asymmetric (a class like it, a cat for a
        dog).

    Raises:
      InputError: another kind, one class only, or no class that is like another.

    Source: Patrini et al., 2017, "Making deep neural networks robust to label noise",
    https://arxiv.org/abs/1609.03683
    """
    if kind not in KINDS:
        raise unknown("kind of label noise", str(kind), KINDS)
    if dataset.num_classes < 2:
        raise InputError(f"{dataset.name} has one class: no label of it can be wrong")
    if kind == "symmetric":
        targets = symmetric_noise(dataset.targets, rate, dataset.num_classes, seed)
    else:
        other = taken_for(dataset.taken_for, dataset.num_classes)
        if np.array_equal(other, np.arange(len(other))):
            raise InputError(
                f"no class of {dataset.name} is known to be taken for another of them: leave "
                "kind=asymmetric out"
            )
        targets = asymmetric_noise(dataset.targets, rate, other, seed)
    return dataclasses.replace(dataset, targets=targets)


def superclass_noise(dataset: Dataset, seed: int, rate: float) -> Dataset:
    """Take a share of the training labels for the next class of their superclass, the last for the
    first; the images are those of label_noise at this rate.

    Args:
      rate: in (0, 1), share of the labels of classes that have another in their superclass.

    Raises:
      InputError: the superclasses of the data set are not known.

    Source: Patrini et al., 2017, "Making deep neural networks robust to label noise",
    https://arxiv.org/abs/1609.03683
    """
    if len(dataset.superclasses) != dataset.num_classes:
        raise InputError(
            f"superclass_noise needs the superclass of each class, and those of {dataset.name} are "
            "not known; label_noise takes any data set"
        )
    other = next_of_superclass(dataset.superclasses)
    return dataclasses.replace(
        dataset, targets=asymmetric_noise(dataset.targets, rate, other, seed)
    )


def human_noise(
    dataset: Dataset, seed: int, kind: str | None = None, data_dir: str | None = None
) -> Dataset:
    """Take the training labels that people gave to CIFAR-10 or CIFAR-100; they are the same under
    every seed. Their file is downloaded, or placed in downloads/manual of the data folder.

    Args:
      kind: worse, aggregate, random1, random2 or random3 of cifar10, which err in 9 to 40 % of the
        images and have no default; noisy of cifar100, which may be left out.

    Raises:
      InputError: another data set or kind, no file, or labels that are wrong already.

    Source: Wei et al., 2022, "Learning with noisy labels revisited: a study using real-world human
    annotations", https://arxiv.org/abs/2110.12088
    """
    del seed
    if not np.array_equal(dataset.targets, dataset.labels):
        raise InputError("human_noise replaces all labels: what makes some wrong before it is lost")
    targets = human_labels.read(dataset.name, kind, dataset.labels, data_dir)
    return dataclasses.replace(dataset, targets=targets)


def long_tail(dataset: Dataset, seed: int, factor: float) -> Dataset:
    """Keep fewer and fewer images of each class, exponentially from the first class to the last.

    Args:
      factor: in (1, inf), how many times more images the first class keeps than the last.

    Source: Cui et al., 2019, https://arxiv.org/abs/1901.05555
    """
    return _thinned(dataset, seed, class_counts(dataset.class_counts(), 1.0, factor))


def fraction(dataset: Dataset, seed: int, share: float) -> Dataset:
    """Keep a share of the training images of each class.

    Args:
      share: in (0, 1).
    """
    return _thinned(dataset, seed, class_counts(dataset.class_counts(), share, 1.0))


def step_imbalance(dataset: Dataset, seed: int, factor: float, share: float = 0.5) -> Dataset:
    """Keep all images of the first classes, and fewer of each of the last.

    Args:
      factor: in (1, inf), by which the images of the last classes are divided.
      share: in (0, 1), of the classes, rounded up: so many lose images, the first never.

    Source: Buda et al., 2018, "A systematic study of the class imbalance problem in convolutional
    neural networks", https://arxiv.org/abs/1710.05381
    """
    return _thinned(dataset, seed, step_counts(dataset.class_counts(), factor, share))


def _thinned(dataset: Dataset, seed: int, counts: np.ndarray) -> Dataset:
    return dataclasses.replace(
        dataset, positions=choose(dataset.labels, dataset.positions, counts, seed)
    )


CORRUPTIONS: dict[str, Callable[..., Dataset]] = {
    f.__name__: f
    for f in (
        label_noise,
        superclass_noise,
        human_noise,
        long_tail,
        step_imbalance,
        fraction,
        subset,
    )
}


def taken_for(pairs: Mapping[int, int], num_classes: int) -> np.ndarray:
    """Return the class that each class is taken for, int32[K]; itself where it is never mistaken.

    Without pairs each class is taken for the next, the last for the first (pair flipping; Han et
    al., 2018, arXiv 1804.06872).
    """
    if not pairs:
        return (np.arange(num_classes, dtype=np.int32) + 1) % num_classes
    return np.array([pairs.get(k, k) for k in range(num_classes)], np.int32)


def next_of_superclass(superclasses: Sequence[int]) -> np.ndarray:
    """Return the next class in the superclass of each class, the first after the last: int32[K].

    >>> next_of_superclass([7, 1, 7, 7])
    array([2, 1, 3, 0], dtype=int32)
    """
    members: dict[int, list[int]] = {}
    for k, superclass in enumerate(superclasses):
        members.setdefault(superclass, []).append(k)
    other = np.zeros(len(superclasses), np.int32)
    for classes in members.values():
        other[classes] = np.roll(classes, -1)
    return other


def symmetric_noise(labels: np.ndarray, rate: float, num_classes: int, seed: int) -> np.ndarray:
    """Make each label wrong with probability `rate`, any other class being equally likely.

    Args:
      labels: int32[N], of a whole split: an image's draw does not depend on which others are used.
      rate: in [0, 1).
      num_classes: K.
      seed: of the draw.

    Returns:
      int32[N].
    """
    shift = np.random.default_rng([seed, 0x5E11]).integers(
        1, num_classes, len(labels), dtype=np.int32
    )
    return np.where(_mistaken(len(labels), rate, seed), (labels + shift) % num_classes, labels)


def asymmetric_noise(labels: np.ndarray, rate: float, other: np.ndarray, seed: int) -> np.ndarray:
    """Replace each label, with probability `rate`, by the class it is taken for (`taken_for`).

    Args as for `symmetric_noise`; the same images are mistaken, where their class is one that can
    be.
    """
    return np.where(_mistaken(len(labels), rate, seed), other[labels], labels)


def _mistaken(count: int, rate: float, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, 0xE44]).random(count) < rate


def class_counts(counts: np.ndarray, fraction: float, long_tail: float) -> np.ndarray:
    """Compute how many images of each class are kept.

    Args:
      counts: int[K], how many there are.
      fraction: of each class, in (0, 1].
      long_tail: factor between the first class and the last; class k then keeps factor^(-k / (K -
        1)) of the smallest class's images (Cui et al., 2019, arXiv 1901.05555), and no more than it
        has.

    Returns:
      int[K], at least one of each class that there is.
    """
    kept = counts * fraction
    if long_tail > 1:
        places = np.arange(len(counts)) / max(len(counts) - 1, 1)
        # 12,406 images of CIFAR-10 at 100
        kept = np.floor(np.min(kept[counts > 0]) * long_tail**-places + 1e-9)
    return np.minimum(counts, np.maximum(1, np.round(kept))).astype(int)


def step_counts(counts: np.ndarray, factor: float, share: float) -> np.ndarray:
    """Compute how many images of each class are kept when the last classes lose some.

    Args:
      counts: int[K], how many there are.
      factor: by which those of the last classes are divided, rounding down.
      share: of the classes that lose images, rounded up, but never all.

    Returns:
      int[K], at least one of each class that there is.
    """
    first = max(1, int((1 - share) * len(counts) + 1e-9))
    # 25,250 images of CIFAR-10 at 100, as of Cao et al., 2019, arXiv 1906.07413
    divided = np.maximum(1, np.floor(counts / factor + 1e-9))
    is_last = np.arange(len(counts)) >= first
    return np.minimum(counts, np.where(is_last, divided, counts)).astype(int)


def choose(labels: np.ndarray, positions: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """Choose positions of as many images of each class as `counts` says, drawn by the seed.

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
