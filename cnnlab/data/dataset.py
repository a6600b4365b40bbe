"""A data set: its splits, what its classes are called, and what is known of them; from TFDS or from
arrays.

A data set is a part: `(**hyperparameters) -> Dataset`, or a function that returns arrays, {"train":
(images uint8[N, H, W, C], labels int[N]), "test": (images, labels), "class_names": [...]}. It may
ask for `data_dir`, `image_size`, `image_key`, `label_key`, `test_split` and `test_fraction`, and
for `test_only`: true where it is only tested on, and needs no images to train on.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from cnnlab.data import order
from cnnlab.data.image import fit
from cnnlab.errors import InputError, first_line

Batch = dict[str, np.ndarray]  # as `Split.read` and `feed` make it
# What arrays may come with.
DESCRIBED = ("class_names", "mirror", "taken_for", "superclasses")
UNNAMED = 1000  # classes without names that any number of images may have


class Example(TypedDict):
    """An image uint8[h, w, c] and the number of its class."""

    image: np.ndarray
    label: int


class Examples(Protocol):
    """What a split reads its images from."""

    def __len__(self) -> int: ...

    def __getitems__(self, positions: Sequence[int], /) -> list[Example]: ...


@runtime_checkable
class Labelled(Protocol):
    """Examples whose labels can be read without the images."""

    def class_numbers(self, positions: Sequence[int], /) -> Sequence[int]: ...


def class_numbers(records: Examples, positions: Sequence[int]) -> list[int]:
    """Read labels, without the images where that is possible."""
    if isinstance(records, Labelled):
        return list(records.class_numbers(positions))
    return [int(example["label"]) for example in records.__getitems__(positions)]


@dataclass(frozen=True)
class Split:
    """One split of a prepared data set.

    Attributes:
      records: lists of records by `__getitems__`; picklable, so that reader processes can have
        them.
      fingerprint: SHA-256 of what identifies the files, for the cache; empty: nothing is cached.
      image_shape: (H, W, C) of every image once read.
      num_classes: K; labels are checked to lie in [0, K).
      name: data set, version and split, for messages.
    """

    records: Examples
    fingerprint: str
    image_shape: tuple[int, int, int]
    num_classes: int
    name: str

    def __len__(self) -> int:
        return len(self.records)

    def read(self, positions: Sequence[int] | np.ndarray) -> Batch:
        """Read and decode images.

        Args:
          positions: int[B], each in [0, len).

        Returns:
          {"image": uint8[B, H, W, C], "label": int32[B]}.

        Raises:
          InputError: a record that cannot be read, or a label outside [0, K).
        """
        places = [int(p) for p in positions]
        try:
            examples = self.records.__getitems__(places)
        except Exception:
            for place in places:  # say which
                with readable(f"{self.name}, image {place}"):
                    self.records.__getitems__([place])
            raise
        label = self._checked([example["label"] for example in examples])
        images = np.empty((len(examples), *self.image_shape), np.uint8)
        for i, example in enumerate(examples):
            images[i] = fit(example["image"], self.image_shape)
        return {"image": images, "label": label}

    def read_labels(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read labels, int32[B]; without the images where that is possible.

        Args:
          positions: int[B], each in [0, len).

        Raises:
          InputError: as `read`.
        """
        with readable(self.name):
            found = class_numbers(self.records, [int(p) for p in positions])
        return self._checked(found)

    def _checked(self, numbers: Sequence[int]) -> np.ndarray:
        label = np.array(numbers, np.int64)
        if len(label) and not (label.min() >= 0 and label.max() < self.num_classes):
            raise InputError(
                f"{self.name}: labels must lie in [0, {self.num_classes}), got "
                f"{label.min()}..{label.max()}"
            )
        return label.astype(np.int32)


@dataclass(frozen=True)
class Dataset:
    """A data set: its splits, and what is known of its classes.

    Attributes:
      name, version: of the set.
      train, test: its splits; train is empty where it was opened for testing only.
      class_names: of its K classes.
      mirror: whether a mirrored image is of the same class.
      taken_for: class -> the class that it is taken for where labels err; for no class: the next
        one.
      superclasses: the number of each class's superclass; empty where that is not known.
      labels: int32[N], the right ones of the training split. These three are filled in before
        corruptions change them.
      targets: int32[N], the labels as they are taught.
      positions: int64[n], ascending: which images of the training split are trained on.
    """

    name: str
    version: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    mirror: bool = True
    taken_for: Mapping[int, int] = field(default_factory=dict)
    superclasses: tuple[int, ...] = ()
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    targets: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    positions: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def class_counts(self) -> np.ndarray:
        """Count the images of each class that are trained on, by their right labels: int64[K]."""
        return np.bincount(self.labels[self.positions], minlength=self.num_classes)


@dataclass(frozen=True)
class Arrays:
    """Images and labels in memory, read like the records of a file.

    Attributes:
      images: uint8[N, H, W, C].
      labels: int32[N].
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, positions: Sequence[int]) -> list[Example]:
        return [{"image": self.images[p], "label": self.labels[p]} for p in positions]

    def class_numbers(self, positions: Sequence[int]) -> list[int]:
        """Return labels."""
        return self.labels[np.asarray(positions, np.int64)].tolist()

    def fit(self, image_shape: tuple[int, ...]) -> bool:
        """Return whether the images have this shape as they are."""
        return self.images.shape[1:] == tuple(image_shape)


def without_images(split: Split) -> Split:
    """Return a split of the same shape and classes that has no images: train of a data set that was
    opened for testing only.
    """
    nothing = Arrays(np.zeros((0, *split.image_shape), np.uint8), np.zeros(0, np.int32))
    return replace(split, records=nothing, fingerprint="")


def from_arrays(
    name: str,
    arrays: Mapping[str, Any],
    image_size: int | None = None,
    test_fraction: float | None = None,
    test_only: bool = False,
) -> Dataset:
    """Build a data set from arrays.

    Args:
      name: for messages and folders.
      arrays: train and test, each (images uint8[N, H, W] or [N, H, W, C] with 1 or 3 channels,
        labels int[N]); class_names, else the numbers of the classes; mirror, taken_for and
        superclasses as in `Dataset`.
      image_size: side to which the images are scaled; None keeps theirs.
      test_fraction: share of train to test on, where there is no test; stratified by class, always
        the same images.
      test_only: use only test; train need not be there.

    Raises:
      InputError: whatever in them does not fit.
    """
    arrays = arrays if test_fraction is None else _divided(name, arrays, test_fraction)
    wanted = ("test",) if test_only else ("train", "test")
    if missing := {*wanted} - set(arrays):
        raise InputError(
            f"data set {name} has no {' and no '.join(sorted(missing))}; it has {sorted(arrays)}"
            + ("; --test-fraction 0.1 tests on a tenth of train" if missing == {"test"} else "")
        )
    if strange := set(arrays) - {"train", "test", *DESCRIBED}:
        raise InputError(
            f"data set {name}: {sorted(strange)} is not used; it takes train, test, "
            f"{', '.join(DESCRIBED[:-1])} and {DESCRIBED[-1]}"
        )
    splits = {which: _checked(f"{name} {which}", arrays[which]) for which in wanted}
    names = _class_names(name, arrays.get("class_names"), list(splits.values()))
    shapes = {split.images.shape[1:] for split in splits.values()}
    if len(shapes) > 1:
        raise InputError(
            f"data set {name}: images to train on and to test have different shapes, "
            f"{sorted(shapes)}"
        )
    height, width, channels = shapes.pop()
    shape = (image_size or height, image_size or width, channels)

    def split(which: str) -> Split:
        records = splits[which]
        parts = [
            np.ascontiguousarray(a).view(np.uint8).data for a in (records.images, records.labels)
        ]
        digest = hashlib.sha256(f"{shape} {records.images.shape}".encode())
        for part in parts:
            digest.update(part)
        return Split(records, digest.hexdigest(), shape, len(names), f"{name} {which}")

    mirror = arrays.get("mirror", channels == 3)
    taken_for = arrays.get("taken_for", {})
    if np.ndim(mirror) or not isinstance(taken_for, Mapping):
        raise InputError(
            f"data set {name}: mirror is true or false, taken_for {{class: the class that it is "
            f"taken for}}; got {mirror} and {taken_for}"
        )
    test = split("test")
    return Dataset(
        name,
        "",
        without_images(test) if test_only else split("train"),
        test,
        names,
        mirror=bool(mirror),
        taken_for=taken_for,
        superclasses=_superclasses(name, arrays.get("superclasses", ()), len(names)),
    )


def _class_names(name: str, names: ArrayLike | None, splits: Sequence[Arrays]) -> tuple[str, ...]:
    """Return the names of the classes: as they are given, else the numbers up to the highest."""
    if names is None:
        highest = max(int(split.labels.max(initial=0)) for split in splits)
        check_highest(name, highest, sum(map(len, splits)))
        return tuple(map(str, range(highest + 1)))
    array = np.asarray(names)
    if array.ndim != 1:
        raise InputError(f"data set {name}: class_names must be a list of names, got {names}")
    texts = array.astype(str).tolist()
    if twice := [text for text, count in Counter(texts).items() if count > 1]:
        raise InputError(f"data set {name}: two classes have the name '{min(twice)}'")
    return tuple(texts)


def check_highest(name: str, highest: int, num_images: int) -> None:
    """Refuse numbers of classes without names that cannot be counted from 0: a single wrong label
    would make a billion classes.

    Raises:
      InputError: they go far beyond the number of images.
    """
    if highest >= max(num_images, UNNAMED):
        raise InputError(
            f"data set {name}: the labels of its {num_images:,} images go up to {highest}; they "
            "must number the classes from 0"
        )


def _superclasses(name: str, numbers: ArrayLike, num_classes: int) -> tuple[int, ...]:
    """Check the superclass of each class."""
    array = np.asarray(numbers)
    if not array.size:
        return ()
    if array.shape != (num_classes,) or not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"data set {name}: superclasses must be int[{num_classes}], one for each class, got "
            f"{array.dtype}{list(array.shape)}"
        )
    return tuple(array.tolist())


def _divided(name: str, arrays: Mapping[str, Any], test_fraction: float) -> dict[str, Any]:
    """Take the test images from those to train on."""
    if "test" in arrays or "train" not in arrays:
        raise InputError(f"data set {name}: --test-fraction is for data with train and no test")
    train = _checked(f"{name} train", arrays["train"])
    kept, held_out = order.split(train.labels, test_fraction, order.TEST_SEED)
    check_fraction(name, test_fraction, kept, held_out)
    pairs = {"train": kept, "test": held_out}
    return {**arrays, **{k: (train.images[v], train.labels[v]) for k, v in pairs.items()}}


def check_fraction(name: str, fraction: float, kept: np.ndarray, held_out: np.ndarray) -> None:
    """Raise InputError where a share that is held out leaves nothing to train or to test on."""
    if not len(held_out):
        raise InputError(f"--test-fraction {fraction} of {name} holds out no image")
    if not len(kept):
        raise InputError(f"--test-fraction {fraction} of {name} leaves no image to train on")


def _checked(name: str, pair: Iterable[ArrayLike]) -> Arrays:
    try:
        images, labels = (np.asarray(array) for array in pair)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"data set {name} must be (images, labels), got {type(pair).__name__}"
        ) from error
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise InputError(
            f"data set {name}: images must be uint8[N, H, W, C] of 1 or 3 channels, got "
            f"{images.dtype}{list(images.shape)}"
        )
    if not len(images):
        raise InputError(f"data set {name} has no images")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"data set {name}: labels must be int[{len(images)}], one for each image, got "
            f"{labels.dtype}{list(labels.shape)}"
        )
    numbers = labels.astype(np.int32)
    if (numbers != labels).any():
        raise InputError(
            f"data set {name}: labels must number the classes from 0, got {labels.min()}.."
            f"{labels.max()}"
        )
    return Arrays(images, numbers)


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn any error while reading with array_record, PIL or TFDS into an InputError of one line.

    The libraries raise anything, KeyError included.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{name} cannot be read ({first_line(error)}); if its files are damaged, prepare the "
            "data set again"
        ) from error
