"""Some classes of a data set in place of all: chosen in both splits, and numbered anew."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cnnlab.data import cache
from cnnlab.data.dataset import Arrays, Dataset, Example, Examples, Split, class_numbers
from cnnlab.errors import InputError, unknown

READ_AT_ONCE = 8192  # labels per read


@dataclass(frozen=True)
class OfClasses:
    """The records of some classes, their labels numbered anew.

    Attributes:
      records: of all classes.
      positions: int64[n], ascending: where those of the chosen classes are.
      numbers: int32[K], the new number of each class, -1 for one that is not chosen.
    """

    records: Examples
    positions: np.ndarray
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def __getitems__(self, positions: Sequence[int]) -> list[Example]:
        examples = self.records.__getitems__(self._places(positions))
        return [
            {"image": example["image"], "label": int(self.numbers[example["label"]])}
            for example in examples
        ]

    def class_numbers(self, positions: Sequence[int]) -> list[int]:
        """Read labels alone."""
        return self.numbers[class_numbers(self.records, self._places(positions))].tolist()

    def _places(self, positions: Sequence[int]) -> list[int]:
        return self.positions[np.asarray(positions, np.int64)].tolist()


def labels(split: Split) -> np.ndarray:
    """Read the labels of all images of a split, int32[N]: once, then from the cache.

    Raises:
      InputError: a record that cannot be read, or a label that is no class.
    """

    def compute() -> dict[str, np.ndarray]:
        starts = range(0, len(split), READ_AT_ONCE)
        parts = [
            split.read_labels(range(start, min(start + READ_AT_ONCE, len(split))))
            for start in starts
        ]
        return {"labels": np.concatenate([np.zeros(0, np.int32), *parts])}

    if isinstance(split.records, Arrays):
        return compute()["labels"]
    return cache.arrays(f"{split.fingerprint[:24]}-labels1", compute)["labels"]


def keep(dataset: Dataset, classes: Sequence[int | str]) -> Dataset:
    """Keep some classes of a data set that was opened, in both splits.

    Args:
      dataset: opened; its labels are not filled in yet.
      classes: numbers or names, at least two; the first becomes class 0.

    Returns:
      The data set of these classes. Of `taken_for` those pairs are left that are among them.

    Raises:
      InputError: a class that there is not, one twice or fewer than two; a split without images of
        them; a label that cannot be read.
    """
    chosen = _numbers(dataset, classes)
    new = {k: i for i, k in enumerate(chosen)}
    pairs = {new[k]: new[j] for k, j in dataset.taken_for.items() if k in new and j in new}
    if dataset.taken_for and not pairs:
        pairs = {0: 0}  # no pairs at all would mean that each is taken for the next
    return dataclasses.replace(
        dataset,
        train=_of_classes(dataset.train, chosen),
        test=_of_classes(dataset.test, chosen),
        class_names=tuple(dataset.class_names[k] for k in chosen),
        taken_for=pairs,
        superclasses=tuple(dataset.superclasses[k] for k in chosen if dataset.superclasses),
    )


def _numbers(dataset: Dataset, classes: Sequence[int | str]) -> list[int]:
    """Return the numbers of classes that are written as numbers or names."""
    if isinstance(classes, str) or not isinstance(classes, Sequence) or len(classes) < 2:
        raise InputError(
            f"the classes to keep of {dataset.name} are a list of at least two, as in "
            f"subset,classes=[0,1]; got {classes}"
        )
    numbers: dict[int | str, int] = {name: k for k, name in enumerate(dataset.class_names)}
    if all(name.isdecimal() for name in dataset.class_names):  # a number is a name then
        numbers |= {int(name): k for k, name in enumerate(dataset.class_names)}
    else:
        numbers |= {k: k for k in range(dataset.num_classes)}
    for name in classes:
        if name not in numbers or isinstance(name, bool):
            raise unknown(f"class of {dataset.name}", str(name), dataset.class_names)
    chosen = [numbers[name] for name in classes]
    if len(set(chosen)) < len(chosen):
        raise InputError(f"the classes to keep of {dataset.name} are written once each")
    return chosen


def _of_classes(split: Split, chosen: Sequence[int]) -> Split:
    """Keep some classes of a split, numbered in this order."""
    numbers = np.full(split.num_classes, -1, np.int32)
    numbers[chosen] = np.arange(len(chosen))
    renumbered = numbers[labels(split)]
    positions = np.flatnonzero(renumbered >= 0)
    if len(split) and not len(positions):
        raise InputError(f"{split.name} holds no image of the classes to keep")
    records = split.records
    if isinstance(records, Arrays):  # in memory: read without a detour
        kept: Examples = Arrays(records.images[positions], renumbered[positions])
    else:
        kept = OfClasses(records, positions, numbers)
    identity = f"{split.fingerprint} classes {list(chosen)}"
    return dataclasses.replace(
        split,
        records=kept,
        fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
        num_classes=len(chosen),
    )
