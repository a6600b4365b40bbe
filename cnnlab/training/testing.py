"""The sets that a network is tested on besides the test split of its own data set.

A further test set needs no images to train on. It has the classes and the image shape of the run's
data set: that is checked, and every image is read, before anything is trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from cnnlab.config import Recipe, flag
from cnnlab.console import Console
from cnnlab.data import contents
from cnnlab.data import dataset as datasets
from cnnlab.data.classes import keep
from cnnlab.data.dataset import Dataset, Split
from cnnlab.data.distortions import distorted
from cnnlab.data.facts import DataFacts
from cnnlab.errors import InputError
from cnnlab.parts import DATA_SETTINGS, OBJECT, FurtherSet, Parts, further_sets
from cnnlab.spec import Part


def open_sets(
    parts: Parts, recipe: Recipe, data_dir: str | None, dataset: Dataset
) -> dict[str, Split]:
    """Open the further test sets of a run; their images are not read yet.

    Args:
      parts: of the run.
      recipe: of it.
      data_dir: TFDS data directory; None for the default.
      dataset: that the run is trained on.

    Returns:
      Their splits by the names of the sets.

    Raises:
      InputError: one of them is not there, or has other classes or images.
    """
    class_names = dataset.class_names
    return {
        test_set.name: _open_set(test_set, parts, recipe, data_dir, dataset, class_names)
        for test_set in parts.test_sets
    }


def open_ood(
    names: Sequence[str], parts: Parts, recipe: Recipe, data_dir: str | None, dataset: Dataset
) -> dict[str, Split]:
    """Open sets whose images are of none of the run's classes, whatever their own are; arguments
    and errors as for `open_sets`, but for the sets' names as they were written.
    """
    return {
        ood_set.name: _open_set(ood_set, parts, recipe, data_dir, dataset, None)
        for ood_set in further_sets(names)
    }


def _open_set(
    test_set: FurtherSet,
    parts: Parts,
    recipe: Recipe,
    data_dir: str | None,
    dataset: Dataset,
    class_names: Sequence[str] | None,
) -> Split:
    tested = dataset
    if not test_set.is_of(parts.dataset):
        shape = dataset.train.image_shape
        tested = open_other(test_set, parts, recipe, data_dir, class_names, shape)
    return distorted(tested.test, test_set.distortions)


def open_other(
    test_set: FurtherSet,
    parts: Parts,
    recipe: Recipe,
    data_dir: str | None,
    class_names: Sequence[str] | None,
    image_shape: Sequence[int],
) -> Dataset:
    """Open the data set of a further test set, without its distortions, for testing only.

    Args:
      test_set: of another data set than the run's.
      parts: of the run.
      recipe: of it, whose image size holds for test sets that take one.
      data_dir: TFDS data directory; None for the default.
      class_names: of the run; None: the set's own classes, whatever they are.
      image_shape: (H, W, C) of the run.

    Returns:
      The data set, under the run's names of the classes.

    Raises:
      InputError: it is not there, or has other classes or images.
    """
    part = test_set.dataset
    assert part is not None, "the run's own data set is open already"
    try:
        opened = _opened(test_set.name, part, parts, recipe, data_dir, class_names)
        _check_shape(part, opened, image_shape)
        if class_names is None:
            return opened
        opened = _of_classes(opened, class_names, bool(parts.selections))
    except InputError as error:
        raise InputError(f"test set {test_set.name}: {_as_hyperparameters(str(error))}") from error
    return dataclasses.replace(opened, class_names=tuple(class_names))


def _opened(
    name: str,
    part: Part,
    parts: Parts,
    recipe: Recipe,
    data_dir: str | None,
    class_names: Sequence[str] | None,
) -> Dataset:
    opened = part.call(data_dir=data_dir, test_only=True, image_size=recipe.image_size)
    if isinstance(opened, Mapping):
        alike = OBJECT == part.name == parts.dataset.name and "test" not in opened
        fraction = recipe.test_fraction if alike else None
        arrays = {"class_names": _numbers(class_names), **opened}
        return datasets.from_arrays(name, arrays, recipe.image_size, fraction, test_only=True)
    if not isinstance(opened, Dataset):
        raise InputError(
            f"data set '{part}' must return a Dataset or a dict of arrays, got "
            f"{type(opened).__name__}"
        )
    return opened


def _numbers(class_names: Sequence[str] | None) -> list[str] | None:
    """Return the numbers that labels without names may be: they may lack the run's last classes,
    and must not exceed them.
    """
    if class_names is None:
        return None
    highest = max(map(int, class_names)) if _are_numbers(class_names) else len(class_names) - 1
    return [str(number) for number in range(highest + 1)]


def _check_shape(part: Part, opened: Dataset, image_shape: Sequence[int]) -> None:
    """Raise InputError where a data set has images of another shape than a run."""
    shape, wanted = tuple(opened.test.image_shape), tuple(image_shape)
    if shape != wanted:
        height, width, channels = wanted
        scalable = height == width and channels == shape[-1] and "image_size" in part.parameters
        advice = f"; {part},image_size={height} scales them" if scalable else ""
        raise InputError(f"it has images of {shape}, the run is trained on {wanted}{advice}")


def _of_classes(opened: Dataset, class_names: Sequence[str], has_selections: bool) -> Dataset:
    """Choose and number the classes of a data set as a run does: by their names, or by their
    numbers where one of the two has no names.

    Raises:
      InputError: it lacks a class, or has others; or it has no names, and the run some of the
        classes only.
    """
    names = opened.class_names
    if names == tuple(class_names):
        return opened
    if len(names) != len(class_names) and not has_selections:
        raise InputError(f"it has {len(names)} classes, the run is trained on {len(class_names)}")
    if _are_numbers(names) == _are_numbers(class_names):
        if missing := [name for name in class_names if name not in names]:
            raise InputError(
                f"it has other classes: the run is trained on '{missing[0]}', which is none of "
                f"{', '.join(names)}"
            )
        return keep(opened, list(class_names))
    if has_selections:
        raise InputError(
            "it has no names of classes, and the run is trained on some of them only: give it "
            "class_names"
        )
    return opened


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isdecimal() for name in names)


def _as_hyperparameters(text: str) -> str:
    """Name the settings of a data set as hyperparameters: the flags are for the run's own."""
    for name in DATA_SETTINGS:
        text = text.replace(flag(name), name)
    return text


def digests(splits: Mapping[str, Split], console: Console) -> dict[str, str]:
    """Read every image of test sets, and hash the pixels and labels of each set with SHA-256.

    Raises:
      InputError: an image that cannot be decoded or distorted, or a label that is none.
    """
    return {
        name: contents.summary(split, console.track(f"decoding {split.name}", "reads")).digest()
        for name, split in splits.items()
    }


def check_recorded(name: str, split: Split, facts: DataFacts, console: Console) -> None:
    """Refuse a test set that held other images when the run was tested on it.

    Raises:
      InputError: it did.
    """
    if name in facts.test_sets and digests({name: split}, console) != {name: facts.test_sets[name]}:
        raise InputError(f"test set {name} is not the one that the run was tested on")
