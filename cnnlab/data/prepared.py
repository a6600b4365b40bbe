"""Data sets that TFDS prepared, as array_record or TFRecord, opened by their TFDS names.

TFDS itself, half a second to import, describes a data set once; the cache keeps what it said.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cnnlab import verified
from cnnlab.data import cache, image, order
from cnnlab.data.dataset import (
    Split,
    check_fraction,
    check_highest,
    readable,
    without_images,
)
from cnnlab.data.records import FORMATS, Chosen, Fields, Records, Shards
from cnnlab.data.storage import Folder
from cnnlab.errors import InputError, unknown

NUMBER = r"(\d+|\*)"  # of a version; * for any
NAME = re.compile(
    rf"(?P<name>\w[\w-]*)(/(?P<config>[\w.+-]+))?(:(?P<version>{NUMBER}\.{NUMBER}\.{NUMBER}))?"
)
VERSION = re.compile(r"\d+\.\d+\.\d+")
DESCRIPTION = "dataset_info.json"
REPORT = "pictures.json"  # of which files a folder of pictures was prepared: no part of the data
READ_AT_ONCE = 8192  # labels per read


@dataclass(frozen=True)
class Choice:
    """What is read of a data set, where that is not what its names suggest.

    Attributes:
      image, label: names of the features.
      test_split: tested on.
      test_fraction: share of the training split that is tested on.
    """

    image: str | None = None
    label: str | None = None
    test_split: str | None = None
    test_fraction: float | None = None


@dataclass(frozen=True)
class Facts:
    """What TFDS and a look at the files say of a data set.

    Attributes:
      version: of it.
      file_format: of its files, one of FORMATS.
      fields: which features of its records are read.
      image_shape: (H, W, C), -1 for a side that varies.
      class_names: of its K classes.
      files: split -> the names of its files and how many records each holds.
      test: the split that is tested on; train where a share of it is.
    """

    version: str
    file_format: str
    fields: Fields
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    files: dict[str, dict[str, int]]
    test: str

    def to_json(self) -> str:
        """Convert the facts to a text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Facts:
        """Build the facts from what `to_json` returned."""
        values = json.loads(text)
        fields = values["fields"]
        values["fields"] = Fields(**fields | {"classes": tuple(fields["classes"])})
        values |= {name: tuple(values[name]) for name in ("image_shape", "class_names")}
        return cls(**values)


def find(name: str, root: Folder) -> Folder | None:
    """Find the folder of a data set among those that are prepared; None where it is not.

    Args:
      name: NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION, as in TFDS. Without a version
        the newest; * in a version is any number.
      root: data directory.

    Raises:
      InputError: another config or version is prepared, or several configs and none is named.
    """
    match = NAME.fullmatch(name)
    if match is None:
        return None
    base, config, version = match["name"], match["config"], match["version"]
    configs = _versions(root / base)
    if not configs:
        return None
    if config is None and len(configs) > 1 and "" not in configs:
        named = ", ".join(f"{base}/{config}" for config in sorted(configs))
        raise InputError(f"{base} is prepared in several configs; name one of {named}")
    chosen = next(iter(configs)) if config is None and "" not in configs else config or ""
    if chosen not in configs:
        raise unknown("data set", name, [_joined(base, config) for config in sorted(configs)])
    fitting = [there for there in configs[chosen] if is_version(there, version)]
    if not fitting:
        full = _joined(base, chosen)
        raise unknown("data set", name, [f"{full}:{there}" for there in configs[chosen]])
    folder = root / base / chosen if chosen else root / base
    return folder / fitting[-1]


def is_version(version: str, wanted: str | None) -> bool:
    """Return whether a version is one that is wanted.

    >>> is_version("1.10.0", "1.*.*"), is_version("1.0.0", None), is_version("2.0.0", "1.*.*")
    (True, True, False)
    """
    pairs = zip((wanted or "*.*.*").split("."), version.split("."), strict=True)
    return all(ours in ("*", theirs) for ours, theirs in pairs)


def names(root: Folder) -> list[str]:
    """List the data sets that are prepared in a data directory."""
    return [_joined(name, config) for name in root.folders() for config in _versions(root / name)]


def _joined(name: str, config: str) -> str:
    return f"{name}/{config}" if config else name


def _versions(folder: Folder) -> dict[str, list[str]]:
    """List the prepared versions of a data set, ascending, by config; "" for none."""
    inside = {"": folder} | {
        name: folder / name for name in folder.folders() if not VERSION.fullmatch(name)
    }
    found = {
        config: sorted(
            (
                version
                for version in place.folders()
                if VERSION.fullmatch(version) and DESCRIPTION in (place / version).files()
            ),
            key=lambda version: [int(number) for number in version.split(".")],
        )
        for config, place in inside.items()
    }
    return {config: versions for config, versions in found.items() if versions}


@dataclass(frozen=True)
class Prepared:
    """A prepared data set, opened.

    Attributes:
      name: of it.
      facts: about it.
      train, test: its splits.
    """

    name: str
    facts: Facts
    train: Split
    test: Split


def open_folder(
    name: str, folder: Folder, image_size: int | None, choice: Choice, test_only: bool = False
) -> Prepared:
    """Open the splits of a prepared data set; only its description is read.

    Args:
      name: for messages.
      folder: of one version.
      image_size: side of the images in pixels; None keeps the features' own.
      choice: what is read of it.
      test_only: it is only tested on, and needs no split train.

    Raises:
      InputError: whatever in it cannot be read.
    """
    with readable(name):
        location, states = folder.location, folder.states()
        if verified.is_shared() and not folder.is_remote:  # a copy elsewhere is the same data
            location, states = "", _digests(folder, states)
        identity = json.dumps([location, sorted(states.items())])
        identity += folder.read(DESCRIPTION).decode()
    key = hashlib.sha256(f"{identity} {choice}".encode()).hexdigest()[:24]
    kept = cache.arrays(
        f"{key}-{'test2' if test_only else 'facts3'}",
        lambda: {"facts": np.array(_describe(name, folder, states, choice, test_only).to_json())},
    )
    facts = Facts.from_json(str(kept["facts"]))
    height, width, channels = facts.image_shape
    if image_size is not None:
        height = width = image_size
    if height < 0 or width < 0:
        raise InputError(f"the images of {name} differ in size; choose one with --image-size")
    shape = (height, width, channels)

    def split(which: str, label: str, positions: np.ndarray | None = None) -> Split:
        records = _records(folder, facts, which, states)
        part = "" if positions is None else hashlib.sha256(positions.tobytes()).hexdigest()
        read_as = f"{identity} {choice} {which} {part} {shape} decoder {image.DECODER_VERSION}"
        return Split(
            records if positions is None else Chosen(records, positions),
            hashlib.sha256(read_as.encode()).hexdigest(),
            shape,
            len(facts.class_names),
            f"{name} {facts.version} {label}",
        )

    if choice.test_fraction is None:
        test = split(facts.test, facts.test)
        train = without_images(test) if test_only else split("train", "train")
        return Prepared(name, facts, train, test)
    records = _records(folder, facts, "train", states)

    def divided() -> dict[str, np.ndarray]:
        labels = np.array([facts.fields.number_of(label) for label in _labels(name, records)])
        kept, held_out = order.split(labels, choice.test_fraction or 0.0, order.TEST_SEED)
        return {"train": kept, "test": held_out}

    positions = cache.arrays(f"{key}-divided1", divided)
    check_fraction(name, choice.test_fraction, positions["train"], positions["test"])
    return Prepared(
        name,
        facts,
        split("train", "train", positions["train"]),
        split("train", "held out", positions["test"]),
    )


def _digests(folder: Folder, states: Mapping[str, str]) -> dict[str, str]:
    """Compute the SHA-256 of the files in a folder on this machine, from which its data can be told
    anywhere; once for their states.
    """

    def digest(name: str) -> str:
        with (folder.path / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def compute() -> dict[str, np.ndarray]:
        named = sorted(states.keys() - {REPORT})
        with ThreadPoolExecutor() as threads:
            return {"names": np.array(named), "digests": np.array([*threads.map(digest, named)])}

    key = hashlib.sha256(json.dumps([folder.location, sorted(states.items())]).encode())
    kept = cache.arrays(f"{key.hexdigest()[:24]}-digests1", compute)
    return dict(zip(kept["names"].tolist(), kept["digests"].tolist(), strict=True))


def _records(folder: Folder, facts: Facts, which: str, states: Mapping[str, str]) -> Records:
    files = facts.files[which]
    paths = tuple(f"{folder}/{file}" for file in files)
    seen = tuple(states.get(file, "") for file in files)
    shards = Shards(facts.file_format, paths, seen, tuple(files.values()))
    return Records(shards, facts.fields)


def _labels(name: str, records: Records) -> Iterator[int | str]:
    """Read all labels of a split, as they are stored."""
    for start in range(0, len(records), READ_AT_ONCE):
        with readable(name):
            yield from records.labels(range(start, min(start + READ_AT_ONCE, len(records))))


def _describe(
    name: str, folder: Folder, states: Mapping[str, str], choice: Choice, test_only: bool
) -> Facts:
    """Read what TFDS knows of a data set, and check that it is usable and its files can be opened.

    Raises:
      InputError: it is not.
    """
    info = _info(name, folder)
    file_format = info.file_format.value
    if file_format not in FORMATS:
        raise InputError(
            f"{name} is prepared as {file_format}; prepare it as array_record or tfrecord, with "
            f"tfds.builder('{name}', file_format='array_record', "
            "data_dir=...).download_and_prepare()"
        )
    if file_format == "array_record" and folder.is_remote:
        raise InputError(
            f"{folder} holds array_record files, which are read from a local disk only: copy them, "
            "or prepare them as tfrecord"
        )
    test = _test_split(name, list(info.splits), choice, test_only)
    files = {
        which: {
            path.name: count
            for path, count in zip(
                info.splits[which].filepaths, info.splits[which].shard_lengths, strict=True
            )
        }
        for which in dict.fromkeys(["train", test])
        if which in info.splits
    }
    features = dict(_flat(info.features or {}))
    supervised = info.supervised_keys if isinstance(info.supervised_keys, tuple) else (None, None)
    image_key = _image_key(name, features, choice.image, supervised[0])
    label_key = _label_key(name, features, choice.label, supervised[-1])
    fields, shape = _fields(name, features, image_key, label_key)
    facts = Facts(str(info.version), file_format, fields, shape, (), files, test)
    splits = {which: _records(folder, facts, which, states) for which in files}
    classes, fields = _classes(name, features[label_key], fields, splits)
    facts = Facts(str(info.version), file_format, fields, shape, classes, files, test)
    for which in files:
        # Nothing is opened before it is read; the test is read last, and must not fail then.
        records = _records(folder, facts, which, states)
        with readable(f"{name} {which}"):
            records.__getitems__([0, len(records) - 1][: len(records)])
    return facts


def _info(name: str, folder: Folder) -> Any:
    """Let TFDS read the description of a data set."""
    import tensorflow_datasets as tfds

    with readable(name), _on_disk(folder) as path:
        return tfds.builder_from_directory(path).info


@contextlib.contextmanager
def _on_disk(folder: Folder) -> Iterator[Path]:
    """Yield where the description of a data set is on this machine: TFDS reads few kinds of URL."""
    if not folder.is_remote:
        yield folder.path
        return
    with tempfile.TemporaryDirectory() as copy:
        for file in folder.files():
            if file.endswith((".json", ".txt")):
                Path(copy, file).write_bytes(folder.read(file))
        yield Path(copy)


def _test_split(name: str, splits: Sequence[str], choice: Choice, test_only: bool) -> str:
    """Choose the split that is tested on; train where a share of it is."""
    needs_train = choice.test_fraction is not None or not test_only
    if needs_train and "train" not in splits:
        raise InputError(f"{name} has no split train, only {', '.join(sorted(splits))}")
    if choice.test_fraction is not None:
        if choice.test_split or "test" in splits:
            raise InputError(
                f"{name} has a split {choice.test_split or 'test'} to test on: --test-fraction has "
                "no effect"
            )
        return "train"
    wanted = choice.test_split or "test"
    if wanted == "train" and not test_only:
        raise InputError("--test-split train would test on what is trained on")
    if wanted in splits:
        return wanted
    # "validation" before "extra"
    others = sorted(
        (split for split in splits if split != "train" or test_only),
        key=lambda split: (split[:3] != "val", split),
    )
    advice = [f"--test-split {split} tests on that one" for split in others[:1]]
    if "test" in splits:
        advice = ["leave --test-split out to test on test"]
    elif "train" in splits:
        advice.append("--test-fraction 0.1 holds out a tenth of train")
    has = f"{name} has no split {wanted}, only {', '.join(sorted(splits))}"
    raise InputError(f"{has}: {', '.join(advice)}")


def _flat(features: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (a/b, feature) of all features, those of nested dictionaries too."""
    import tensorflow_datasets as tfds

    for name, feature in features.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            yield from _flat(feature, f"{prefix}{name}/")
        else:
            yield prefix + name, feature


def _is_image(feature: Any) -> bool:
    """Return whether a feature is an image or could be one: an array of 2 or 3 axes."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        return not isinstance(feature, tfds.features.LabeledImage)
    shape: Any = feature.shape
    return type(feature) is tfds.features.Tensor and len(shape) in (2, 3)


def _is_label(feature: Any) -> bool:
    """Return whether a feature is a class, a whole number, true or false, or a text."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.ClassLabel | tfds.features.Text):
        return True
    if not isinstance(feature, tfds.features.Tensor) or feature.shape not in ((), (1,)):
        return False
    dtype: Any = feature.np_dtype
    return np.dtype(dtype).kind in "iubOSU"


def _key(
    name: str,
    features: Mapping[str, Any],
    flag: str,
    wanted: str | None,
    usual: Sequence[str | None],
    fits: Sequence[Callable[[Any], bool]],
) -> str:
    """Choose a feature: the one that is named, one of the usual names, or the only one that fits
    the first condition which one fits.
    """
    able = sorted(key for key, feature in features.items() if fits[-1](feature))
    what = flag.removeprefix("--").removesuffix("-key")
    if wanted is not None:
        if wanted in able:
            return wanted
        raise unknown(f"{what} feature of {name}", wanted, able)
    for key in usual:
        if key in able:
            return str(key)
    for condition in fits:
        fitting = [key for key, feature in features.items() if condition(feature)]
        if len(fitting) == 1:
            return fitting[0]
    if not able:
        raise InputError(
            f"{name} is no image-classification set: none of its features is the {what}, only "
            f"{', '.join(features)}"
        )
    raise InputError(f"{name} has no feature '{what}': choose with {flag} one of {', '.join(able)}")


def _image_key(
    name: str, features: Mapping[str, Any], wanted: str | None, supervised: object
) -> str:
    import tensorflow_datasets as tfds

    def encoded(feature: Any) -> bool:
        return _is_image(feature) and isinstance(feature, tfds.features.Image)

    usual = ["image", supervised if isinstance(supervised, str) else None]
    return _key(name, features, "--image-key", wanted, usual, [encoded, _is_image])


def _label_key(
    name: str, features: Mapping[str, Any], wanted: str | None, supervised: object
) -> str:
    import tensorflow_datasets as tfds

    def is_class(feature: Any) -> bool:
        return isinstance(feature, tfds.features.ClassLabel)

    usual = ["label", supervised if isinstance(supervised, str) else None]
    return _key(name, features, "--label-key", wanted, usual, [is_class, _is_label])


def _fields(
    name: str, features: Mapping[str, Any], image_key: str, label_key: str
) -> tuple[Fields, tuple[int, int, int]]:
    """Describe how an image is stored, and its shape, -1 for a side that varies."""
    import tensorflow_datasets as tfds

    feature = features[image_key]
    if np.dtype(feature.np_dtype) != np.uint8:
        raise InputError(f"the images of {name} are {feature.np_dtype}; only uint8 can be read")
    height, width, *rest = (-1 if side is None else side for side in feature.shape)
    channels = rest[0] if rest else 1
    label_tensor = _encoded(features[label_key])
    if isinstance(feature, tfds.features.Image):
        channels = 1 if channels in (1, 2) else 3
        fields = Fields(image_key, label_key, channels, label_tensor=label_tensor)
        return fields, (height, width, channels)
    if channels not in (1, 3):
        raise InputError(
            f"the images of {name} are arrays of {feature.shape}; they must be (height, width) or "
            "(height, width, channels) of 1 or 3 channels"
        )
    tensor = json.dumps(feature.to_json())
    return Fields(image_key, label_key, 0, tensor, (), label_tensor), (height, width, channels)


def _encoded(feature: Any) -> str:
    """Describe a label that is stored as encoded bytes, as JSON; empty for a plain one."""
    described = feature.to_json()
    is_encoded = described["content"].get("encoding", "none") != "none"
    return json.dumps(described) if is_encoded else ""


def _classes(
    name: str, feature: Any, fields: Fields, splits: Mapping[str, Records]
) -> tuple[tuple[str, ...], Fields]:
    """List the names of the classes; where TFDS does not know them, by going through all labels."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.ClassLabel) and feature.num_classes is not None:
        return tuple(feature.names), fields
    labels: set[Any] = {label for records in splits.values() for label in _labels(name, records)}
    if any(isinstance(label, str) for label in labels):
        classes = tuple(sorted(labels))
        return classes, dataclasses.replace(fields, classes=classes)
    if min(labels) < 0:
        raise InputError(f"{name}: labels must not be negative, got {min(labels)}")
    check_highest(name, max(labels), sum(map(len, splits.values())))
    return tuple(map(str, range(max(labels) + 1))), fields
