"""MNIST 3.0.1: the same order, labels and pixels as TFDS's own builder, without TensorFlow.

The official builder imports TensorFlow to unpack the files and to encode arrays as PNG. Here the
standard library unpacks and TFDS encodes PIL images itself. The examples keep their integer keys,
whose hash is the order on disk. Fashion-MNIST's builder is this one with another location.

Source: LeCun, Cortes and Burges, MNIST handwritten digit database, 2010,
http://yann.lecun.com/exdb/mnist
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets.public_api as tfds
from PIL import Image

from cnnlab.errors import InputError

LARGEST = 60_000  # examples: nothing longer is unpacked, whatever the header claims

CITATION = """\
@article{lecun2010mnist,
  title={MNIST handwritten digit database},
  author={LeCun, Yann and Cortes, Corinna and Burges, CJ},
  journal={ATT Labs [Online]. Available: http://yann.lecun.com/exdb/mnist},
  volume={2},
  year={2010}
}
"""


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """MNIST. Not registered with TFDS: both builders of this name may live in one process."""

    VERSION = tfds.core.Version("3.0.1")

    url = "https://storage.googleapis.com/cvdf-datasets/mnist/"

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="The MNIST database of handwritten digits.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://yann.lecun.com/exdb/mnist/",
            citation=CITATION,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict]]]:
        names = {
            "train_images": "train-images-idx3-ubyte.gz",
            "train_labels": "train-labels-idx1-ubyte.gz",
            "test_images": "t10k-images-idx3-ubyte.gz",
            "test_labels": "t10k-labels-idx1-ubyte.gz",
        }
        # One after the other: without a network the first failure ends it, with no thread left
        # behind that still tries.
        paths = {key: dl_manager.download(self.url + name) for key, name in names.items()}
        return {
            split: self._generate_examples(paths[f"{split}_images"], paths[f"{split}_labels"])
            for split in ("train", "test")
        }

    def _generate_examples(
        self, images_path: str | os.PathLike, labels_path: str | os.PathLike
    ) -> Iterator[tuple[int, dict]]:
        images = read_idx(images_path, (28, 28))  # uint8[N, 28, 28]
        labels = read_idx(labels_path, ())  # uint8[N]
        if len(images) != len(labels):
            raise InputError(
                f"{images_path} has {len(images)} images, {labels_path} {len(labels)} labels; "
                f"{_AGAIN}."
            )
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": Image.fromarray(image), "label": int(label)}


def read_idx(path: str | os.PathLike, shape: tuple[int, ...]) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes.

    Args:
      path: the .gz file.
      shape: shape of one example that the header must state.

    Returns:
      uint8[N, *shape].

    Raises:
      InputError: the file is damaged, or holds something else than its header or `shape` says.
    """
    rank = 1 + len(shape)
    try:
        with gzip.open(path) as file:
            header = struct.unpack(f">{1 + rank}i", file.read(4 * (1 + rank)))
            if header[0] != 0x800 + rank or header[2:] != shape or not 0 < header[1] <= LARGEST:
                raise InputError(
                    f"{path}: the header {header} is not that of N examples of shape {shape}; "
                    f"{_AGAIN}."
                )
            size = header[1] * math.prod(shape)
            content = file.read(size + 1)  # one byte more shows a file longer than its header says
    except (EOFError, zlib.error, struct.error, OSError) as error:
        raise InputError(f"{path}: not a whole .gz file ({error}); {_AGAIN}.") from error
    if len(content) != size:
        got = "more" if len(content) > size else len(content)
        raise InputError(f"{path}: wanted {size} bytes, got {got}; {_AGAIN}.")
    return np.frombuffer(content, np.uint8).reshape(header[1], *shape)


_AGAIN = "delete the file and download it again"
