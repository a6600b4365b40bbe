"""cnnlab's data sets, and those of TFDS, by name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from cnnlab import files
from cnnlab.data import builders, prepared, storage
from cnnlab.data.dataset import Dataset
from cnnlab.data.pictures import folder
from cnnlab.data.prepared import NAME, Choice
from cnnlab.data.storage import Folder
from cnnlab.errors import InputError, one_line, unknown

# What TFDS does not say of its sets. Colour images whose mirror image is another class, or none
# (starts of names):
NOT_TO_MIRROR = ("svhn", "colored_mnist", "omniglot", "cmaterdb")
# Grey images whose mirror image is of the same class; those of other names may be digits, letters
# or X-rays:
TO_MIRROR = ("fashion_mnist",)
# Classes that are taken for others: those of CIFAR-10 and MNIST of Patrini et al., 2017, arXiv
# 1609.03683. In CIFAR-10: truck for car, bird for plane, deer for horse, cat for dog, dog for cat.
TAKEN_FOR = {
    "cifar10": {9: 1, 2: 0, 4: 7, 3: 5, 5: 3},
    "mnist": {7: 1, 2: 7, 5: 6, 6: 5, 3: 8},
}
# Superclasses of the fine classes of CIFAR-100, both in the order of their names: the first, apple,
# is of 4, fruit and vegetables.
SUPERCLASSES = {
    "cifar100": (
        *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11),
        *(6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5),
        *(5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17),
        *(10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13),
        *(16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
    ),
}


# What Keras calls the arrays of its data sets.
KERAS = {
    "x_train": "train_images",
    "y_train": "train_labels",
    "x_test": "test_images",
    "y_test": "test_labels",
}


def named(name: str) -> Callable[..., Dataset]:
    """Return the data set of a TFDS name as a part."""
    return functools.partial(open_dataset, name)


def open_dataset(  # noqa: PLR0913 (hyperparameters)
    name: str,
    data_dir: str | None = None,
    image_size: int | None = None,
    mirror: bool | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    test_split: str | None = None,
    test_fraction: float | None = None,
    test_only: bool = False,
) -> Dataset:
    """Open a data set of TFDS, after preparing it if it is one of ours.

    Args:
      name: NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION (1.*.* is any that begins with 1)
        of an image-classification set, prepared as array_record or TFRecord; ours are prepared
        where they are missing.
      data_dir: TFDS data directory, or a URL of one; None for the default.
      image_size: side of the images in pixels; None keeps the features' own, which must then be
        fixed.
      mirror: whether a mirrored image is of the same class; none: for colour images that are not
        digits or letters, and for fashion_mnist.
      image_key: feature that is the image; none: image, or the only one.
      label_key: feature that is its class, a ClassLabel, a whole number or a text; none: label, or
        the only ClassLabel.
      test_split: split to test on; none: test.
      test_fraction: in (0, 1), share of the training split to test on, where there is no test
        split; stratified, always the same images.
      test_only: it is only tested on, and needs no split train.

    Returns:
      The data set; nothing is read but its description.

    Raises:
      InputError: no such data set, another file format, no image and label, sizes that vary, no
        network.
    """
    root = storage.data_root(data_dir)
    folder = _own(name, root) or prepared.find(name, root)
    if folder is None and root.is_remote and name in builders.OWN:
        raise InputError(f"{name} is not in {root}; prepare it on a disk and copy it there")
    if folder is None:
        raise unknown("data set", name, dict.fromkeys([*builders.OWN, *prepared.names(root)]))
    choice = Choice(image_key, label_key, test_split, test_fraction)
    opened = prepared.open_folder(name, folder, image_size, choice, test_only)
    base = name.partition(":")[0].partition("/")[0]
    if mirror is None:
        mirror = may_be_mirrored(base, opened.train.image_shape[2])
    return Dataset(
        name,
        opened.facts.version,
        opened.train,
        opened.test,
        opened.facts.class_names,
        mirror=mirror,
        taken_for=TAKEN_FOR.get(base, {}),
        superclasses=superclasses_of(base, len(opened.facts.class_names)),
    )


def superclasses_of(name: str, num_classes: int) -> tuple[int, ...]:
    """Return the superclass of each class of a data set of TFDS; none where that is not known, or
    its label is another than the fine one.
    """
    known = SUPERCLASSES.get(name, ())
    return known if len(known) == num_classes else ()


def may_be_mirrored(name: str, channels: int) -> bool:
    """Return whether the images of a data set of TFDS keep their class when mirrored: where they
    are colour images and not digits or letters, or clothes.
    """
    return name in TO_MIRROR or (channels == 3 and not name.startswith(NOT_TO_MIRROR))


def _own(name: str, root: Folder) -> Folder | None:
    """Prepare one of cnnlab's data sets on this machine; None where the name is of another set, or
    of another version.
    """
    match = NAME.fullmatch(name)
    if match is None or match["name"] not in builders.OWN or match["config"] or root.is_remote:
        return None
    base = match["name"]
    if not prepared.is_version(builders.VERSIONS[base], match["version"]):
        return None
    return Folder.at(builders.prepare(base, root.path))


def shapes10(data_dir: str | None = None, image_size: int | None = None) -> Dataset:
    """Ten drawn shapes in any place, size and colour: 10,000 and 2,000 images of 32x32x3, made on
    the spot.

    Args:
      image_size: side to which they are scaled; none: 32.
    """
    return open_dataset("shapes10", data_dir, image_size)


def cifar10(data_dir: str | None = None, image_size: int | None = None) -> Dataset:
    """Ten kinds of animals and vehicles: 50,000 and 10,000 images of 32x32x3, downloaded through
    TFDS.

    Args:
      image_size: side to which they are scaled; none: 32.

    Source: Krizhevsky, 2009, "Learning multiple layers of features from tiny images".
    """
    return open_dataset("cifar10", data_dir, image_size)


def cifar100(
    data_dir: str | None = None, image_size: int | None = None, label_key: str | None = None
) -> Dataset:
    """A hundred kinds of animals, plants and things: 50,000 and 10,000 images of 32x32x3,
    downloaded through TFDS.

    Args:
      image_size: side to which they are scaled; none: 32.
      label_key: coarse_label for their 20 superclasses; none: label, the class.

    Source: Krizhevsky, 2009, "Learning multiple layers of features from tiny images".
    """
    return open_dataset("cifar100", data_dir, image_size, label_key=label_key)


def mnist(data_dir: str | None = None, image_size: int | None = None) -> Dataset:
    """Handwritten digits: 60,000 and 10,000 images of 28x28x1, downloaded through TFDS.

    Args:
      image_size: side to which they are scaled; none: 28.

    Source: LeCun, Cortes & Burges, 1998, "The MNIST database of handwritten digits".
    """
    return open_dataset("mnist", data_dir, image_size)


def fashion_mnist(data_dir: str | None = None, image_size: int | None = None) -> Dataset:
    """Ten kinds of clothes: 60,000 and 10,000 images of 28x28x1, downloaded through TFDS.

    Args:
      image_size: side to which they are scaled; none: 28.

    Source: Xiao, Rasul & Vollgraf, 2017, "Fashion-MNIST: a novel image dataset for benchmarking
    machine learning algorithms", arXiv 1708.07747.
    """
    return open_dataset("fashion_mnist", data_dir, image_size)


def svhn_cropped(data_dir: str | None = None, image_size: int | None = None) -> Dataset:
    """Digits of house numbers in photographs: 73,257 and 26,032 images of 32x32x3, downloaded
    through TFDS, with 531,131 more that nothing is trained on (1.6 GB in all).

    Args:
      image_size: side to which they are scaled; none: 32.

    Source: Netzer et al., 2011, "Reading digits in natural images with unsupervised feature
    learning".
    """
    return open_dataset("svhn_cropped", data_dir, image_size)


def npz(path: Path) -> dict[str, Any]:
    """Arrays in a file of NumPy: train_images and train_labels, test_images and test_labels (or
    x_train, y_train, x_test, y_test, as Keras names them), and class_names if there are any.

    Args:
      path: of the file. Images are uint8[N, H, W] or [N, H, W, C] with 1 or 3 channels, labels
        int[N] or [N, 1].

    Raises:
      InputError: no such file, or other arrays in it.
    """
    path = files.expanded(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = [str(name) for name in file.files]
            arrays: dict[str, np.ndarray] = {KERAS.get(name, name): file[name] for name in stored}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} cannot be read as an .npz file ({one_line(error)})") from error
    except TypeError as error:  # a single array is no context manager
        raise InputError(f"{path} is an .npy file, of one array; write an .npz file") from error
    if len(arrays) < len(stored):
        raise InputError(f"{path} holds the same arrays twice under two names: {', '.join(stored)}")
    splits = {}
    for split in ("train", "test"):
        if {f"{split}_images", f"{split}_labels"} <= arrays.keys():
            images, labels = arrays.pop(f"{split}_images"), arrays.pop(f"{split}_labels")
            splits[split] = images, labels[:, 0] if labels.shape[1:] == (1,) else labels
    if not splits:
        raise InputError(
            f"{path} holds no train_images and train_labels, only {', '.join(arrays) or 'nothing'}"
        )
    return {**splits, **arrays}


DATASETS: dict[str, Callable[..., Dataset | dict[str, Any]]] = {
    f.__name__: f
    for f in (shapes10, cifar10, cifar100, mnist, fashion_mnist, svhn_cropped, folder, npz)
}
