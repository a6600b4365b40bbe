"""The records of a prepared split: serialised tf.train.Examples in array_record or TFRecord files,
of which one feature is an image and one its label.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cnnlab.data import image
from cnnlab.data.dataset import Example
from cnnlab.data.tfrecord import TFRecords

FORMATS = ("array_record", "tfrecord")


class Serialised(Protocol):
    """Records as they are stored."""

    def __len__(self) -> int: ...

    def __getitems__(self, positions: Sequence[int], /) -> Sequence[bytes]: ...


@dataclass(frozen=True)
class Shards:
    """The files of a split. They are opened at the first read: a cached start reads none.

    Attributes:
      file_format: one of FORMATS.
      paths: of the files, or URLs.
      states: a text for each that changes when the file does.
      lengths: how many records each holds.
    """

    file_format: str
    paths: tuple[str, ...]
    states: tuple[str, ...]
    lengths: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.lengths)

    def __getitems__(self, positions: Sequence[int]) -> Sequence[bytes]:
        return self._opened.__getitems__(positions) if len(positions) else []

    @functools.cached_property
    def _opened(self) -> Serialised:
        if self.file_format == "tfrecord":
            opened: Serialised = TFRecords(self.paths, self.states)
        else:
            from array_record.python.array_record_data_source import ArrayRecordDataSource

            opened = ArrayRecordDataSource(list(self.paths))
        if len(opened) != len(self):
            raise OSError(f"{len(opened)} records where {len(self)} are promised")
        return opened

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_opened"}


@dataclass(frozen=True)
class Fields:
    """Which features of an example are the image and its label, and how they are stored.

    Attributes:
      image, label: names of the features, nested ones as a/b.
      channels: 1 or 3, of an image that is an encoded file; 0 for an array of numbers.
      tensor: the array's description in features.json, as JSON; "" for a file.
      classes: of labels that are texts, in order; empty for numbers.
      label_tensor: as `tensor`, of a label that is stored encoded; "" for a plain one.
    """

    image: str
    label: str
    channels: int
    tensor: str = ""
    classes: tuple[str, ...] = ()
    label_tensor: str = ""

    def parse(self, record: bytes) -> Example:
        """Parse a serialised tf.train.Example.

        Raises:
          OSError: a label that is a text, but none of the classes.
        """
        example = parsed(record)
        if self.channels:
            pixels = image.decode(example[self.image].bytes_list.value[0], self.channels)
        else:
            pixels = self._array(self.image, record)
            pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        return {"image": pixels, "label": self.number_of(self._label(example, record))}

    def stored_label(self, record: bytes) -> int | str:
        """Return the label of a serialised tf.train.Example as it is stored: a number or a text."""
        return self._label(parsed(record), record)

    def _label(self, example: Any, record: bytes) -> int | str:
        if self.label_tensor:
            return self._array(self.label, record).reshape(-1)[0].item()
        feature = example[self.label]
        if feature.HasField("bytes_list"):
            return feature.bytes_list.value[0].decode()
        return feature.int64_list.value[0]

    def _array(self, name: str, record: bytes) -> np.ndarray:
        """Read a feature that is an array as TFDS does."""
        return np.asarray(self._tensors.deserialize_example_np(record)[name])

    def number_of(self, label: int | str) -> int:
        """Return the class of a label as it is stored.

        Raises:
          OSError: it is a text, but none of the classes.
        """
        if isinstance(label, int):
            return label
        if label not in self._numbers:
            raise OSError(f"label '{label}' is none of the {len(self.classes)} classes")
        return self._numbers[label]

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    @functools.cached_property
    def _tensors(self) -> Any:
        import tensorflow_datasets as tfds

        texts = {self.image: self.tensor, self.label: self.label_tensor}
        described = {
            name: tfds.features.FeatureConnector.from_json(json.loads(text))
            for name, text in texts.items()
            if text
        }
        return tfds.features.FeaturesDict(described)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name[0] != "_"}


def parsed(record: bytes) -> Any:
    """Parse a serialised tf.train.Example to a mapping from a feature's name to its values."""
    from tensorflow_datasets.proto import tf_example_generated_pb2

    proto: Any = tf_example_generated_pb2  # protobuf makes its classes at import
    return proto.Example.FromString(record).features.feature


@dataclass(frozen=True)
class Records:
    """Images and labels of a split's files, as `Split` reads them."""

    shards: Shards
    fields: Fields

    def __len__(self) -> int:
        return len(self.shards)

    def __getitems__(self, positions: Sequence[int]) -> list[Example]:
        return [self.fields.parse(record) for record in self.shards.__getitems__(positions)]

    def labels(self, positions: Sequence[int]) -> list[int | str]:
        """Read labels as they are stored, without decoding the images."""
        return [self.fields.stored_label(r) for r in self.shards.__getitems__(positions)]

    def class_numbers(self, positions: Sequence[int]) -> list[int]:
        """Read labels without decoding the images."""
        return [self.fields.number_of(label) for label in self.labels(positions)]


@dataclass(frozen=True)
class Chosen:
    """Some records of a split.

    Attributes:
      records: of all.
      positions: int64[n], ascending.
    """

    records: Records
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def __getitems__(self, positions: Sequence[int]) -> list[Example]:
        return self.records.__getitems__(self._places(positions))

    def class_numbers(self, positions: Sequence[int]) -> list[int]:
        """Read labels without decoding the images."""
        return self.records.class_numbers(self._places(positions))

    def _places(self, positions: Sequence[int]) -> list[int]:
        return self.positions[np.asarray(positions, np.int64)].tolist()
