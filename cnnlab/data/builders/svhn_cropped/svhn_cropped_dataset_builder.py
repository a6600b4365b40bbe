"""svhn_cropped 3.1.0 (Street View House Numbers, cropped digits): the same ids, order, labels and
pixels as TFDS's own builder, without TensorFlow.

The official builder imports TensorFlow to open files and to encode arrays as PNG. Here SciPy opens
the files and TFDS encodes PIL images itself. The examples keep their integer keys, whose hash is
the order on disk. The published files were not at hand: that they are equal was tried on small
files of the same form (tests/golden/builders.py), and the checksums are TFDS's.

A split is in memory as a whole while it is read, for `extra` 1.6 GB of pixels; with what TFDS
sorts in memory, preparing 531,131 made-up images took 3.0 GB at most.

Source: Netzer, Wang, Coates, Bissacco, Wu and Ng, Reading digits in natural images with
unsupervised feature learning, 2011, http://ufldl.stanford.edu/housenumbers/
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import scipy.io
import tensorflow_datasets.public_api as tfds
from PIL import Image

from cnnlab.errors import InputError, one_line

SPLITS = ("train", "test", "extra")
LARGEST = 531_131  # examples, those of `extra`: nothing longer is read, whatever the header claims

CITATION = '''\
"""Street View House Numbers (SVHN) Dataset, cropped version."""

@article{Netzer2011,
author = {Netzer, Yuval and Wang, Tao and Coates, Adam and Bissacco, Alessandro and Wu, Bo and Ng, \
Andrew Y},
booktitle = {Advances in Neural Information Processing Systems ({NIPS})},
title = {Reading Digits in Natural Images with Unsupervised Feature Learning},
year = {2011}
}'''


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """SVHN. Not registered with TFDS: both builders of this name may live in one process."""

    VERSION = tfds.core.Version("3.1.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "3.1.0": "New split API (https://tensorflow.org/datasets/splits)"
    }

    url = "http://ufldl.stanford.edu/housenumbers/"

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "The Street View House Numbers (SVHN) Dataset is an image digit recognition\n"
                "dataset of over 600,000 digit images coming from real world data. Images are\n"
                "cropped to 32x32."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(32, 32, 3)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                    "id": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://ufldl.stanford.edu/housenumbers/",
            citation=CITATION,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict]]]:
        # One after the other: without a network the first failure ends it.
        paths = {split: dl_manager.download(f"{self.url}{split}_32x32.mat") for split in SPLITS}
        return {split: self._generate_examples(f"{split}_", path) for split, path in paths.items()}

    def _generate_examples(
        self, prefix: str, path: str | os.PathLike
    ) -> Iterator[tuple[int, dict]]:
        images, labels = read_mat(path)
        for index, label in enumerate(labels):
            image = np.ascontiguousarray(images[..., index])
            yield (
                index,
                {
                    "image": Image.fromarray(image),
                    "label": int(label) % 10,  # the digit 0 is stored as 10
                    "id": f"{prefix}{index:06d}",
                },
            )


def read_mat(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Read the images `X` and the labels `y` of a MATLAB file.

    Returns:
      uint8[32, 32, 3, N] and an array [N] of whole numbers in [1, 10].

    Raises:
      InputError: the file is damaged, or holds something else.
    """
    path = os.fspath(path)
    shapes = _read(scipy.io.whosmat, path)
    sizes = {name: shape for name, shape, _ in shapes if name in ("X", "y")}
    count = sizes.get("X", (0,))[-1]
    if sizes != {"X": (32, 32, 3, count), "y": (count, 1)} or not 0 < count <= LARGEST:
        raise InputError(
            f"{path}: it holds {sizes}, not X (32, 32, 3, N) and y (N, 1) with N up to {LARGEST}; "
            f"{_AGAIN}."
        )
    content = _read(scipy.io.loadmat, path, variable_names=("X", "y"))
    images, labels = content["X"], content["y"][:, 0]
    if images.dtype != np.uint8 or not np.isin(labels, range(1, 11)).all():
        raise InputError(
            f"{path}: {images.dtype} images with labels {labels.min()} to {labels.max()}, not "
            f"uint8 with 1 to 10; {_AGAIN}."
        )
    return images, labels


def _read(function: Callable[..., Any], path: str, **options: Any) -> Any:
    """Call a reader of SciPy; what it raises for damaged bytes is whatever they lead it to."""
    try:
        return function(path, appendmat=False, **options)
    except MemoryError:
        raise
    except Exception as error:
        raise InputError(
            f"{path}: not a whole MATLAB file ({one_line(error)}); {_AGAIN}."
        ) from error


_AGAIN = "delete the file and download it again"
