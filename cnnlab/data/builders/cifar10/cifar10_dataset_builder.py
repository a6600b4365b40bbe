"""CIFAR-10 3.0.2: the same ids, order, labels and pixels as TFDS's own builder, without TensorFlow.

The official builder imports TensorFlow twice: to unpack the archive and to encode arrays as PNG.
Here the standard library unpacks and TFDS encodes PIL images itself. The examples keep their
integer keys, whose hash is the order on disk.

Source: Krizhevsky, Learning multiple layers of features from tiny images, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets.public_api as tfds
from PIL import Image

from cnnlab.errors import InputError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
TRAIN = tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6))
TEST = ("cifar-10-batches-bin/test_batch.bin",)
NAMES = "cifar-10-batches-bin/batches.meta.txt"
RECORD = 1 + 3 * 32 * 32  # bytes: one label, then the red, green and blue planes
# Bytes of a full batch: nothing longer is read, whatever the archive claims
LARGEST = 10_000 * RECORD

CITATION = """\
@TECHREPORT{Krizhevsky09learningmultiple,
    author = {Alex Krizhevsky},
    title = {Learning multiple layers of features from tiny images},
    institution = {},
    year = {2009}
}
"""


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-10. Not registered with TFDS: both builders of this name may live in one process."""

    VERSION = tfds.core.Version("3.0.2")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "The CIFAR-10 dataset consists of 60000 32x32 colour images in 10 classes, with "
                "6000 images per class. There are 50000 training images and 10000 test images."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(32, 32, 3)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            citation=CITATION,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict]]]:
        members = read_archive(dl_manager.download(URL))
        features: Any = self.info.features
        features["label"].names = class_names(members[NAMES])
        return {
            "train": self._generate_examples("train_", [members[name] for name in TRAIN]),
            "test": self._generate_examples("test_", [members[name] for name in TEST]),
        }

    def _generate_examples(self, prefix: str, batches: list[bytes]) -> Iterator[tuple[int, dict]]:
        index = 0
        for batch in batches:
            records = np.frombuffer(batch, np.uint8).reshape(-1, RECORD)
            for record in records:
                pixels = record[1:].reshape(3, 32, 32).transpose(1, 2, 0)
                image = Image.fromarray(np.ascontiguousarray(pixels))
                yield index, {"id": f"{prefix}{index:05d}", "image": image, "label": int(record[0])}
                index += 1


def read_archive(path: str | os.PathLike) -> dict[str, bytes]:
    """Read the seven members that make up CIFAR-10.

    They are read in memory: no name from the archive ever becomes a path.

    Args:
      path: cifar-10-binary.tar.gz.

    Returns:
      Member name -> content, for the names in TRAIN, TEST and NAMES. All other members are
      skipped.

    Raises:
      InputError: the archive is damaged, or a member is missing, not a plain file, or of a wrong
        size.
    """
    wanted = {*TRAIN, *TEST, NAMES}
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                if member.name not in wanted:
                    continue
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.name in members:
                    raise InputError(f"{path}: {member.name} is not one plain file; {_AGAIN}.")
                if member.size > LARGEST or (
                    member.name != NAMES and (member.size % RECORD or not member.size)
                ):
                    raise InputError(
                        f"{path}: {member.name} has {member.size} bytes, not 10000 x {RECORD}; "
                        f"{_AGAIN}."
                    )
                members[member.name] = archive.extractfile(member).read()  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise InputError(f"{path}: not a whole .tar.gz archive ({error}); {_AGAIN}.") from error
    if missing := wanted - members.keys():
        raise InputError(f"{path}: {', '.join(sorted(missing))} missing; {_AGAIN}.")
    return members


def class_names(text: bytes) -> list[str]:
    """Parse the ten class names, one per line.

    >>> class_names("\\n".join([*"abcdefghi", "truck", "", ""]).encode())[-1]
    'truck'
    """
    names = [name for name in text.decode("utf-8", "replace").split("\n") if name]
    if len(names) != 10:
        raise InputError(f"{NAMES}: wanted 10 class names, got {len(names)}; {_AGAIN}.")
    return names


_AGAIN = "delete the file and download it again"
