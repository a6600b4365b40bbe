"""A prepared TFDS data set as arrays, read without TensorFlow.

`open_dataset` finds or prepares it, `Split.read` decodes any images of it, `summary` and `decoded`
go through all of a split once and keep what they found in a cache.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from cnnlab import files
from cnnlab.data import builders, cache, image
from cnnlab.data.dataset import Arrays, Batch, Dataset, Example, Split, readable
from cnnlab.errors import InputError, unknown

# Goes through the reads of a pass, and shows how far it is: `iter`, or what `Console.track` gives.
Progress: TypeAlias = Callable[[Sequence[int]], Iterator[int]]

# Images per read in a pass over a split: batched reads take 0.4 of the time of single ones.
READ_AT_ONCE = 512

# What TFDS does not say of its sets. Colour images whose mirror image is another class, or none
# (starts of names):
NOT_TO_MIRROR = ("svhn", "colored_mnist", "omniglot", "cmaterdb")
# Classes that are taken for others: those of CIFAR-10 and MNIST of Patrini et al., 2017, arXiv
# 1609.03683. In CIFAR-10: truck for car, bird for plane, deer for horse, cat for dog, dog for cat.
TAKEN_FOR = {
    "cifar10": {9: 1, 2: 0, 4: 7, 3: 5, 5: 3},
    "mnist": {7: 1, 2: 7, 5: 6, 6: 5, 3: 8},
}


@dataclass(frozen=True)
class Records:
    """The records of a split. TFDS, half a second to import, opens them at the first read: a cached
    start reads none.

    Attributes:
      folder: of the prepared data set.
      which: train or test.
      count: of its records.
    """

    folder: Path
    which: str
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, positions: Sequence[int]) -> list[Example]:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.proto import tf_example_generated_pb2

        records = self._opened.__getitems__(positions)
        features = self._opened.dataset_info.features
        if not isinstance(features["image"], tfds.features.Image):  # a tensor, say
            skipped = {
                key: tfds.decode.SkipDecoding() for key in features if key not in ("image", "label")
            }
            return [
                features.deserialize_example_np(record, decoders=skipped or None)
                for record in records
            ]
        proto: Any = tf_example_generated_pb2  # protobuf makes its classes at import
        examples = [proto.Example.FromString(record).features.feature for record in records]
        channels = 1 if features["image"].shape[-1] == 1 else 3
        return [
            {
                "image": image.decode(example["image"].bytes_list.value[0], channels),
                "label": example["label"].int64_list.value[0],
            }
            for example in examples
        ]

    @functools.cached_property
    def _opened(self) -> Any:
        return _open(self.folder, self.which)


@dataclass(frozen=True)
class Summary:
    """What is known of every image of a split without holding them.

    Attributes:
      labels: int32[N].
      sums, squares: int64[N, C], exact sums over pixels of values and of their squares.
      pixels: pixels per image and channel.
    """

    labels: np.ndarray
    sums: np.ndarray
    squares: np.ndarray
    pixels: int

    def mean_std(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute the mean and standard deviation per channel over the images at `positions`.

        Both are float64[C] in 0..255.
        """
        n = len(positions) * self.pixels
        mean = self.sums[positions].sum(0) / n
        variance = self.squares[positions].sum(0) / n - mean**2
        # A constant channel must not divide by zero
        return mean, np.sqrt(np.maximum(variance, 1.0))

    def digest(self) -> str:
        """Hash labels and per-image sums with SHA-256.

        Another data set under the same name is thus noticed.
        """
        parts = [
            np.ascontiguousarray(array).tobytes()
            for array in (self.labels, self.sums, self.squares)
        ]
        return hashlib.sha256(b"".join(parts)).hexdigest()


def data_root(data_dir: str | None) -> Path:
    """Resolve the TFDS data directory: as given, else $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Raises:
      InputError: a directory was named and is not there.
    """
    if data_dir is None:
        return files.expanded(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    root = files.expanded(data_dir).resolve()
    if not root.is_dir():
        raise InputError(
            f"--data-dir {data_dir} is not a directory; make it first, or leave the flag out"
        )
    return root


def prepared(name: str) -> Callable[..., Dataset]:
    """Return the data set of a name as a part: (data_dir, image_size, mirror) -> Dataset."""
    return functools.partial(open_dataset, name)


def open_dataset(
    name: str,
    data_dir: str | None = None,
    image_size: int | None = None,
    mirror: bool | None = None,
) -> Dataset:
    """Open a data set of TFDS, after preparing it if it is one of ours.

    Args:
      name: shapes10, cifar10, mnist, or the name of any image-classification set prepared as
        array_record.
      data_dir: TFDS data directory; None for the default.
      image_size: side of the images in pixels; None keeps the features' own, which must then be
        fixed.
      mirror: whether a mirrored image is of the same class; none: for colour images that are not
        digits or letters.

    Returns:
      The data set; nothing is read but its description.

    Raises:
      InputError: no such data set, not in array_record, no image and label, sizes that vary, no
        network.
    """
    root = data_root(data_dir)
    folder = builders.prepare(name, root) if name in builders.OWN else _prepared(name, root)
    with readable(name):
        identity = _identity(folder)
    key = hashlib.sha256(identity.encode()).hexdigest()
    facts = cache.arrays(f"{key[:24]}-facts1", lambda: _facts(name, folder))
    height, width, channels = facts["image_shape"].tolist()
    if image_size is not None:
        height = width = image_size
    if height < 0 or width < 0:
        raise InputError(f"the images of {name} differ in size; choose one with --image-size")
    shape = (height, width, channels if channels in (1, 3) else 3)
    version = str(facts["version"])
    classes = tuple(facts["class_names"].tolist())

    def split(which: str) -> Split:
        read_as = f"{identity} {which} {shape} decoder {image.DECODER_VERSION}"
        fingerprint = hashlib.sha256(read_as.encode()).hexdigest()
        records = Records(folder.absolute(), which, int(facts[which]))
        return Split(records, fingerprint, shape, len(classes), f"{name} {version} {which}")

    if mirror is None:
        mirror = shape[2] == 3 and not name.startswith(NOT_TO_MIRROR)
    return Dataset(
        name,
        version,
        split("train"),
        split("test"),
        classes,
        mirror=mirror,
        taken_for=TAKEN_FOR.get(name, {}),
    )


def shapes10(data_dir: str | None = None, image_size: int | None = None) -> Dataset:
    """Ten drawn shapes in any place, size and colour: 10,000 and 2,000 images of 32x32x3, made on
    the spot.
    """
    return open_dataset("shapes10", data_dir, image_size)


def cifar10(data_dir: str | None = None, image_size: int | None = None) -> Dataset:
    """Ten kinds of animals and vehicles: 50,000 and 10,000 images of 32x32x3, downloaded through
    TFDS.

    Source: Krizhevsky, 2009, "Learning multiple layers of features from tiny images".
    """
    return open_dataset("cifar10", data_dir, image_size)


def mnist(data_dir: str | None = None, image_size: int | None = None) -> Dataset:
    """Handwritten digits: 60,000 and 10,000 images of 28x28x1, downloaded through TFDS.

    Source: LeCun, Cortes & Burges, 1998, "The MNIST database of handwritten digits".
    """
    return open_dataset("mnist", data_dir, image_size)


DATASETS: dict[str, Callable[..., Dataset]] = {f.__name__: f for f in (shapes10, cifar10, mnist)}


def _facts(name: str, folder: Path) -> dict[str, np.ndarray]:
    """Read what TFDS knows of a data set, and check that it is usable and its files can be opened.

    Returns:
      version: str[]; image_shape: int64[3], -1 for sides that vary; class_names: str[K]; train,
        test: int64[], images.
    """
    import tensorflow_datasets as tfds

    info: Any
    with readable(name):
        info = tfds.builder_from_directory(folder).info
    features = info.features or {}
    label = features["label"] if {"image", "label"} <= set(features) else None
    if not isinstance(label, tfds.features.ClassLabel) or label.num_classes is None:
        raise InputError(
            f"{name} is no image-classification set: its features are not 'image' and a class "
            "'label'"
        )
    if missing := {"train", "test"} - set(info.splits):
        raise InputError(
            f"{name} has no split {sorted(missing)}, only {sorted(info.splits)}; train and test "
            "are needed"
        )
    if np.dtype(features["image"].np_dtype) != np.uint8:
        raise InputError(
            f"the images of {name} are {features['image'].np_dtype}; only uint8 ones can be read"
        )
    counts = {}
    for which in ("train", "test"):
        counts[which] = count = info.splits[which].num_examples
        # TFDS opens nothing before it reads; the test is read last, and must not fail then.
        if count:
            with readable(f"{name} {which}"):
                Records(folder, which, count).__getitems__([0, count - 1])
    shape = [-1 if side is None else side for side in features["image"].shape]
    return {
        "version": np.array(str(info.version)),
        "image_shape": np.array(shape),
        "class_names": np.array(label.names),
        **{which: np.array(count) for which, count in counts.items()},
    }


def _open(folder: Path, which: str) -> Any:
    """Open TFDS's data source of a split.

    Its records are as they are stored: serialised tf.train.Example.
    """
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(folder)
    promised = builder.info.splits[which].num_examples
    records = builder.as_data_source(
        which, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    if len(records) != promised:
        raise OSError(f"{len(records)} records where {promised} are promised")
    return records


def _prepared(name: str, root: Path) -> Path:
    """Find the newest version folder of a data set that is prepared under `root`."""
    candidates = (
        sorted(root.glob(f"{name}/**/dataset_info.json")) if name.replace("_", "").isalnum() else []
    )
    if not candidates:
        there = (
            sorted(p.name for p in root.glob("*") if any(p.glob("*/dataset_info.json")))
            if root.is_dir()
            else []
        )
        raise unknown("data set", name, dict.fromkeys([*builders.OWN, *there]))
    with_records = [p.parent for p in candidates if any(p.parent.glob("*.array_record*"))]
    if not with_records:
        raise InputError(
            f"{name} stands in {root} in another file format; prepare it as array_record, with "
            f"tfds.builder('{name}', file_format='array_record', "
            "data_dir=...).download_and_prepare()"
        )

    def version(p):
        return tuple(int(n) if n.isdigit() else -1 for n in p.name.split("."))

    return max(with_records, key=version)


def _identity(folder: Path) -> str:
    """Describe what changes when the files of a data set do.

    That is their names, sizes and times, and the description.
    """
    files = sorted(p for p in folder.iterdir() if p.is_file())
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return f"{stats} {(folder / 'dataset_info.json').read_text()}"


def summary(split: Split, progress: Progress = iter) -> Summary:
    """Collect labels and pixel sums of every image: one pass over the split, then from the cache.

    Arrays in memory are not cached.

    Args:
      split: what to go through.
      progress: wraps the sequence of reads, to show how far it is.
    """

    def compute() -> dict[str, np.ndarray]:
        return _concatenate(_sums(part) for part in _passes(split, progress))

    arrays = (
        compute()
        if isinstance(split.records, Arrays)
        else cache.arrays(f"{split.fingerprint[:24]}-summary", compute)
    )
    return Summary(
        arrays["labels"],
        arrays["sums"],
        arrays["squares"],
        split.image_shape[0] * split.image_shape[1],
    )


def decoded(split: Split, progress: Progress = iter) -> tuple[np.ndarray, Summary]:
    """Decode all images of a split, uint8[N, H, W, C], and its summary: once, then from the cache.

    Arrays in memory that have the split's shape are returned as they are.
    """

    def compute() -> dict[str, np.ndarray]:
        return _concatenate(
            {"images": part["image"], **_sums(part)} for part in _passes(split, progress)
        )

    if isinstance(split.records, Arrays) and split.records.fit(split.image_shape):
        return split.records.images, summary(split, progress)
    arrays = cache.arrays(f"{split.fingerprint[:24]}-images", compute)
    pixels = split.image_shape[0] * split.image_shape[1]
    return arrays["images"], Summary(arrays["labels"], arrays["sums"], arrays["squares"], pixels)


def _passes(split: Split, progress: Progress) -> Iterator[Batch]:
    for start in progress(range(0, len(split), READ_AT_ONCE)):
        yield split.read(range(start, min(start + READ_AT_ONCE, len(split))))


def _sums(part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    images = part["image"].astype(np.int64)
    return {"labels": part["label"], "sums": images.sum((1, 2)), "squares": (images**2).sum((1, 2))}


def _concatenate(parts: Iterator[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    collected = list(parts)
    return {name: np.concatenate([part[name] for part in collected]) for name in collected[0]}
