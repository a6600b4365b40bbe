"""CIFAR-10 3.0.2: the same ids, order, labels and pixels as TFDS's own builder, without TensorFlow.

The official builder imports TensorFlow twice: to unpack the archive and to encode arrays as PNG.
Here the standard library unpacks and TFDS encodes PIL images itself. The examples keep their
integer keys, whose hash is the order on disk. CIFAR-100's builder is this one with another layout.

Source: Krizhevsky, Learning multiple layers of features from tiny images, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets.public_api as tfds
from PIL import Image

from cnnlab.errors import InputError

PIXELS = 3 * 32 * 32  # bytes of an image: the red, green and blue planes

CITATION = """\
@TECHREPORT{Krizhevsky09learningmultiple,
    author = {Alex Krizhevsky},
    title = {Learning multiple layers of features from tiny images},
    institution = {},
    year = {2009}
}
"""


@dataclass(frozen=True)
class Layout:
    """What a binary CIFAR archive holds.

    Attributes:
      splits: split -> the members with its examples, in order.
      names: label -> the member with its class names, one per line. An example is a byte for each
        label, in this order, then its pixels.
      most_examples: of a member: nothing longer is read, whatever the archive claims.
    """

    splits: Mapping[str, tuple[str, ...]]
    names: Mapping[str, str]
    most_examples: int

    @property
    def example_size(self) -> int:
        """Bytes of an example."""
        return len(self.names) + PIXELS


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-10. Not registered with TFDS: both builders of this name may live in one process."""

    VERSION = tfds.core.Version("3.0.2")

    url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    layout = Layout(
        splits={
            "train": tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
            "test": ("cifar-10-batches-bin/test_batch.bin",),
        },
        names={"label": "cifar-10-batches-bin/batches.meta.txt"},
        most_examples=10_000,
    )

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
        members = read_archive(dl_manager.download(self.url), self.layout)
        features: Any = self.info.features
        for label, member in self.layout.names.items():
            features[label].names = class_names(
                members[member], member, features[label].num_classes
            )
        return {
            split: self._generate_examples(f"{split}_", [members[name] for name in names])
            for split, names in self.layout.splits.items()
        }

    def _generate_examples(self, prefix: str, batches: list[bytes]) -> Iterator[tuple[int, dict]]:
        labels = tuple(self.layout.names)
        index = 0
        for batch in batches:
            records = np.frombuffer(batch, np.uint8).reshape(-1, self.layout.example_size)
            for record in records:
                classes, pixels = np.split(record, [len(labels)])
                image = np.ascontiguousarray(pixels.reshape(3, 32, 32).transpose(1, 2, 0))
                yield (
                    index,
                    {
                        "id": f"{prefix}{index:05d}",
                        "image": Image.fromarray(image),
                        **dict(zip(labels, classes.tolist(), strict=True)),
                    },
                )
                index += 1


def read_archive(path: str | os.PathLike, layout: Layout) -> dict[str, bytes]:
    """Read the members of an archive that make up the data set.

    They are read in memory: no name from the archive ever becomes a path.

    Args:
      path: the .tar.gz.
      layout: what it holds.

    Returns:
      Member name -> content, for the names in `layout`. All other members are skipped.

    Raises:
      InputError: the archive is damaged, or a member is missing, not a plain file, or of a wrong
        size.
    """
    examples = {name for names in layout.splits.values() for name in names}
    wanted = examples | {*layout.names.values()}
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                if member.name not in wanted:
                    continue
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.name in members:
                    raise InputError(f"{path}: {member.name} is not one plain file; {_AGAIN}.")
                if not _is_size(member.size, layout, member.name in examples):
                    raise InputError(
                        f"{path}: {member.name} has {member.size} bytes, not those of 1 to "
                        f"{layout.most_examples} examples of {layout.example_size}; {_AGAIN}."
                    )
                members[member.name] = archive.extractfile(member).read()  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise InputError(f"{path}: not a whole .tar.gz archive ({error}); {_AGAIN}.") from error
    if missing := wanted - members.keys():
        raise InputError(f"{path}: {', '.join(sorted(missing))} missing; {_AGAIN}.")
    return members


def _is_size(size: int, layout: Layout, of_examples: bool) -> bool:
    """Return whether a member may have so many bytes, one of examples or of class names."""
    if size > layout.most_examples * layout.example_size:
        return False
    return not of_examples or (size > 0 and size % layout.example_size == 0)


def class_names(text: bytes, member: str, num_classes: int) -> list[str]:
    """Parse class names, one per line.

    Args:
      text: of the member.
      member: its name, for the message.
      num_classes: K.

    Raises:
      InputError: other than K names.

    >>> class_names(b"plane\\ntruck\\n\\n", "names.txt", 2)
    ['plane', 'truck']
    """
    names = [name for name in text.decode("utf-8", "replace").split("\n") if name]
    if len(names) != num_classes:
        raise InputError(f"{member}: wanted {num_classes} class names, got {len(names)}; {_AGAIN}.")
    return names


_AGAIN = "delete the file and download it again"
