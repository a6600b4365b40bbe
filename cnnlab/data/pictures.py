"""A folder of pictures as a data set: train/CLASS/* and test/CLASS/*, or CLASS/* with a share to
test on.

The files are looked at once and prepared as array_record next to the other data sets, so that they
are read as fast as those.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cnnlab import files
from cnnlab.console import Console
from cnnlab.data import builders, image, prepared, storage
from cnnlab.data.dataset import Dataset
from cnnlab.data.prepared import REPORT, Choice
from cnnlab.data.storage import Folder
from cnnlab.errors import InputError, one_line

# Of files that are taken for pictures; those without one are, too.
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".gif", ".bmp", ".webp")
# Pictures that cannot be read: not left out without a word.
FOREIGN = (".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".ppm", ".pgm", ".svg")
SPLITS = ("train", "test", "validation", "valid", "val")
MOST_LISTED = 5  # files that a message names
VERSION = "1.0.0"


@dataclass(frozen=True)
class Picture:
    """A file of a folder.

    Attributes:
      path: relative to the folder.
      split: one of SPLITS.
      label: name of its class.
    """

    path: str
    split: str
    label: str


def folder(  # noqa: PLR0913 (hyperparameters)
    path: Path,
    data_dir: str | None = None,
    image_size: int | None = None,
    test_split: str | None = None,
    test_fraction: float | None = None,
    unreadable: float = 0.0,
    mirror: bool | None = None,
    test_only: bool = False,
) -> Dataset:
    """Pictures in folders named after their classes: path/train/CLASS/* and path/test/CLASS/*, or
    path/CLASS/* with a share to test on; JPEG, PNG, GIF, BMP and WebP.

    Args:
      path: of the folder.
      image_size: side to which they are scaled and cropped; none: theirs, where all are alike.
      test_split: folder next to train to test on; none: test.
      test_fraction: in (0, 1), share to test on where there is no folder test; stratified by class,
        always the same pictures.
      unreadable: in [0, 1), share of the files that may be no pictures that can be read; they are
        listed in pictures.json of the prepared folder.
      mirror: whether a mirrored picture is of the same class; none: where they are in colour.
      test_only: it is only tested on: path/test/CLASS/*, or all of path/CLASS/*.

    Raises:
      InputError: no such folder, no pictures in it or in a class, a class whose name is no line of
        text, or more unreadable ones than allowed.
    """
    root = Path(os.path.abspath(files.expanded(path)))
    found = pictures(root, test_only)
    prepared_folder = prepare(root, found, storage.data_root(data_dir), unreadable)
    if test_only and {picture.split for picture in found} == {"train"}:
        test_split = test_split or "train"
    choice = Choice(test_split=test_split, test_fraction=test_fraction)
    name = f"folder {root.name}"
    opened = prepared.open_folder(name, prepared_folder, image_size, choice, test_only)
    return Dataset(
        root.name,
        VERSION,
        opened.train,
        opened.test,
        opened.facts.class_names,
        mirror=opened.train.image_shape[2] == 3 if mirror is None else mirror,
    )


def pictures(root: Path, test_only: bool = False) -> list[Picture]:
    """List the pictures of a folder, sorted.

    Args:
      root: of the tree.
      test_only: there need be none to train on.

    Raises:
      InputError: there are none, none of a class, or not the folders that are wanted.
    """
    if not root.is_dir():
        raise InputError(f"there is no folder {root}")
    inside = {entry.name for entry in root.iterdir() if _counts(entry) and entry.is_dir()}
    divided = "train" in inside or (test_only and inside == {"test"})
    splits = sorted(inside & {*SPLITS}) if divided else []
    if splits and (strange := inside - {*SPLITS}):
        raise InputError(
            f"{root} holds train and {', '.join(sorted(strange))}; wanted are train and test, or "
            "a folder for each class"
        )
    classes = [
        (split, label)
        for split in splits or ["train"]
        for label in sorted((root / split if splits else root).iterdir())
        if _counts(label) and label.is_dir()
    ]
    found = [
        Picture(str(file.relative_to(root)), split, label.name)
        for split, label in classes
        for file in _files(label)
        if file.suffix.lower() in ("", *SUFFIXES, *FOREIGN)
    ]
    _check_names(root, {label.name for _, label in classes})
    if not any(picture.split == "train" or test_only for picture in found):
        raise InputError(
            f"{root} holds no pictures as CLASS/NAME or train/CLASS/NAME ({', '.join(SUFFIXES)})"
        )
    if not splits and all(picture.path.count("/") > 1 for picture in found):
        raise InputError(
            f"{root} holds {', '.join(sorted(inside))} with folders inside: are these the classes? "
            "Name a folder to train on train, or put the pictures into CLASS/NAME"
        )
    if empty := {label.name for _, label in classes} - {picture.label for picture in found}:
        raise InputError(
            f"{root} holds no pictures of {', '.join(_in_order(empty))} ({', '.join(SUFFIXES)}); "
            "remove that folder, or let its name begin with a dot"
        )
    return found


def _check_names(root: Path, classes: Iterable[str]) -> None:
    """Refuse names of classes that TFDS, which keeps them as lines of a file, reads otherwise.

    Raises:
      InputError: there is one.
    """
    for name in classes:
        if not name.isprintable() or name != name.strip():
            raise InputError(
                f"{root}: the class {name!r} is not printable text without spaces around it; "
                "rename the folder"
            )


def _counts(entry: Path) -> bool:
    return not entry.name.startswith(".")


def _files(folder: Path) -> list[Path]:
    """List the files in a folder and below it, sorted; links to folders are followed, once each."""
    files = []
    seen = set()
    for place, inside, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:
            inside.clear()
            continue
        seen.add(os.path.realpath(place))
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        files += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(files)


def prepare(root: Path, found: Sequence[Picture], data: Folder, unreadable: float) -> Folder:
    """Prepare the pictures as array_record, unless that was done since they changed.

    Args:
      root: their folder.
      found: all of them.
      data: data directory.
      unreadable: share of them that may be no pictures.

    Returns:
      The prepared folder.
    """
    if data.is_remote:
        raise InputError(f"pictures are prepared on a local disk: --data-dir {data} is a URL")
    stamps = [(p.path, p.split, _state(root / p.path)) for p in found]
    identity = hashlib.sha256(json.dumps([str(root), stamps]).encode()).hexdigest()
    place = hashlib.sha256(str(root).encode()).hexdigest()[:8]
    target = data.path / "folder" / f"{_plain(root.name)}-{place}" / VERSION

    def is_done() -> bool:
        try:
            report = json.loads((target / REPORT).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return False
        if report["identity"] != identity:
            return False
        _allow(root, report["unreadable"], len(found), unreadable)
        return True

    def write(stage: Path) -> Path:
        shapes, faults = look_at(root, found)
        _allow(root, faults, len(found), unreadable)
        sound = [picture for picture in found if picture.path not in faults]
        _check_classes(root, found, sound)
        made = _write(stage, target.parent.name, root, sound, _common_shape(shapes))
        report = {"identity": identity, "folder": str(root), "unreadable": faults}
        (made / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")
        return made

    builders.prepare_folder(f"folder-{place}", data.path, target, is_done, write)
    return Folder.at(target)


def _state(path: Path) -> str:
    """Describe a file by a text that changes when it does; empty for a link to nothing."""
    try:
        return storage.state_of(path)
    except OSError:
        return ""


def _plain(name: str) -> str:
    """Turn a folder's name into one that TFDS takes for a config."""
    return "".join(char if char.isalnum() or char in "-_" else "_" for char in name) or "pictures"


def _allow(root: Path, faults: Mapping[str, str], count: int, unreadable: float) -> None:
    """Refuse more unreadable files than allowed.

    Raises:
      InputError: there are more.
    """
    if len(faults) <= unreadable * count:
        return
    listed = [f"{path} ({why})" for path, why in list(faults.items())[:MOST_LISTED]]
    more = f" and {len(faults) - MOST_LISTED} more" if len(faults) > MOST_LISTED else ""
    if len(faults) == count:
        raise InputError(
            f"{root}: none of its {count} files can be read: {', '.join(listed)}{more}"
        )
    share = min(math.ceil(100 * len(faults) / count), 99) / 100
    raise InputError(
        f"{root}: {len(faults)} of {count} files cannot be read: {', '.join(listed)}{more}. Remove "
        f"them, or allow for them with folder,unreadable={share:g}"
    )


def _check_classes(root: Path, found: Sequence[Picture], sound: Sequence[Picture]) -> None:
    """Refuse a class of which no picture is left, or none to train on.

    Raises:
      InputError: there is one.
    """
    if lost := {picture.label for picture in found} - {picture.label for picture in sound}:
        raise InputError(f"{root}: no picture of {', '.join(_in_order(lost))} can be read")
    taught = {picture.label for picture in sound if picture.split == "train"}
    if taught and (untaught := {picture.label for picture in sound} - taught):
        raise InputError(
            f"{root}: train has no pictures of {', '.join(_in_order(untaught))}, only of "
            f"{', '.join(_in_order(taught))}"
        )


def _in_order(classes: Iterable[str]) -> list[str]:
    """Sort names of classes; numbers by their value."""
    return sorted(classes, key=lambda name: (int(name) if name.isdecimal() else math.inf, name))


def look_at(
    root: Path, found: Sequence[Picture]
) -> tuple[list[tuple[int, int, int]], dict[str, str]]:
    """Decode every picture.

    Returns:
      The shapes of those that can be read, and why the others cannot, by path.
    """
    shapes: list[tuple[int, int, int]] = []
    faults: dict[str, str] = {}
    track = Console("auto" if os.isatty(1) else "off").track(f"decoding {root}", "pictures")
    with ThreadPoolExecutor() as threads:
        looked = threads.map(lambda picture: _look_at(root / picture.path), found)
        for picture in track(found):
            outcome = next(looked)
            if isinstance(outcome, str):
                faults[picture.path] = outcome
            else:
                shapes.append(outcome)
    return shapes, faults


def _look_at(path: Path) -> tuple[int, int, int] | str:
    """Return a picture's shape, or why it cannot be read."""
    if path.suffix.lower() in FOREIGN:
        return "not a JPEG, PNG, GIF, BMP or WebP file"
    if str(path).encode(errors="ignore").decode() != str(path):
        return "its name is not UTF-8"
    try:
        height, width, channels = image.decode(image.contents(path), 0).shape
        return height, width, channels
    except Exception as error:  # Pillow's readers raise anything on damaged files
        return one_line(error)


def _common_shape(shapes: Sequence[tuple[int, int, int]]) -> tuple[int | None, int | None, int]:
    """Return the shape of all pictures, None for a side that varies; in colour if any is."""
    heights, widths, channels = map(set, zip(*shapes, strict=True))
    height = heights.pop() if len(heights) == 1 else None
    width = widths.pop() if len(widths) == 1 else None
    return height, width, max(channels)


def _write(
    stage: Path,
    config: str,
    root: Path,
    found: Sequence[Picture],
    shape: tuple[int | None, int | None, int],
) -> Path:
    """Prepare pictures as the config of a data set of TFDS; their files are stored as they are."""
    import tensorflow_datasets.public_api as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        name = "folder"
        VERSION = tfds.core.Version(VERSION)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)]  # noqa: RUF012
        pkg_dir_path = stage  # type: ignore[assignment]

        def _info(self) -> tfds.core.DatasetInfo:
            classes = _in_order({picture.label for picture in found})
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "id": tfds.features.Text(),
                        "image": tfds.features.Image(shape=shape),
                        "label": tfds.features.ClassLabel(names=classes),
                    }
                ),
                supervised_keys=("image", "label"),
            )

        def _split_generators(
            self, dl_manager: tfds.download.DownloadManager
        ) -> dict[str, Iterator[tuple[int, dict]]]:
            del dl_manager  # nothing to download
            splits = sorted({picture.split for picture in found})
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
            chosen = [picture for picture in found if picture.split == split]
            for number, picture in enumerate(chosen):
                data = (root / picture.path).read_bytes()
                yield number, {"id": picture.path, "image": data, "label": picture.label}

    return builders.build("folder", Builder(data_dir=stage, file_format="array_record"), stage)
