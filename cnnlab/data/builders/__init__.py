"""TFDS builders that need no TensorFlow, and the one function that prepares them.

    cifar10/         CIFAR-10 3.0.2, equal to the official builder's in ids, order, labels, pixels
    cifar100/        CIFAR-100 3.0.2, likewise, with superclasses as a second label
    mnist/           MNIST 3.0.1, likewise
    fashion_mnist/   Fashion-MNIST 3.0.1, likewise
    svhn_cropped/    cropped Street View House Numbers 3.1.0, likewise
    shapes10/        ten drawn shapes, made on the spot: no download

TFDS itself is imported when something has to be prepared, not before: it takes a second.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from cnnlab import files
from cnnlab.data.records import FORMATS
from cnnlab.data.storage import Folder
from cnnlab.errors import InputError, unknown

# Stated again in each builder; a test compares
VERSIONS = {
    "cifar10": "3.0.2",
    "cifar100": "3.0.2",
    "mnist": "3.0.1",
    "fashion_mnist": "3.0.1",
    "svhn_cropped": "3.1.0",
    "shapes10": "1.0.0",
}
OWN = tuple(VERSIONS)
# Whose files have the names of another's: those placed by hand have a folder for themselves
SAME_FILE_NAMES = ("fashion_mnist",)

CONNECT_SECONDS = 10
READ_SECONDS = 60
RETRIES = 2  # TFDS's own: no limit, no limit, 10


def prepare(name: str, data_dir: str | os.PathLike[str]) -> pathlib.Path:
    """Prepare one of our data sets as array_record, unless that is done already.

    Args:
      name: one of OWN.
      data_dir: TFDS's data folder; made where missing. Files placed by hand in
        data_dir/downloads/manual (Fashion-MNIST's, which are named as MNIST's, in
        data_dir/downloads/manual/fashion_mnist) are used instead of a download, under the same
        checksum.

    Returns:
      The versioned folder, such as data_dir/cifar10/3.0.2, as `tfds.builder_from_directory` takes
      it.

    Raises:
      InputError: unknown name, a folder that cannot be written, no network, a wrong checksum, a
        damaged archive.
    """
    if name not in OWN:
        raise unknown("data set", name, OWN)
    root = pathlib.Path(data_dir).expanduser().absolute()
    folder = root / name / VERSIONS[name]

    def write(stage: pathlib.Path) -> pathlib.Path:
        module = importlib.import_module(f"{__name__}.{name}.{name}_dataset_builder")
        builder = module.Builder(data_dir=stage, file_format="array_record")
        by_hand = root / "downloads" / "manual"
        if name in SAME_FILE_NAMES:
            by_hand /= name
        if builder.url_infos:
            by_hand.mkdir(parents=True, exist_ok=True)
        return build(name, builder, by_hand)

    prepare_folder(name, root, folder, lambda: _is_done(folder), write)
    return folder


def prepare_folder(
    name: str,
    root: pathlib.Path,
    folder: pathlib.Path,
    is_done: Callable[[], bool],
    write: Callable[[pathlib.Path], pathlib.Path],
) -> None:
    """Make a folder of prepared data, unless that is done already.

    Two processes may call it at once: the second waits for the first. One that was killed leaves a
    hidden folder, which the next call removes; the finished folder appears in one rename.

    Args:
      name: of the lock.
      root: data directory, which is made where missing.
      folder: to be made below it; what is there is replaced.
      is_done: whether it holds what is wanted.
      write: hidden folder -> the one in it that becomes `folder`.

    Raises:
      InputError: the folder cannot be written, or what `write` raises.
    """
    stage = root / f".{name}.preparing"  # which only the holder of the lock touches
    try:
        if is_done():
            return
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f".{name}.lock"):
            if is_done():
                return
            shutil.rmtree(stage, ignore_errors=True)  # of a call that was killed
            try:
                made = write(stage)
                folder.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(folder, ignore_errors=True)
                os.rename(made, folder)
            finally:
                shutil.rmtree(stage, ignore_errors=True)
    except InputError:
        raise
    except OSError as error:
        reason = f"{error.strerror or error} ({error.filename or root})"
        raise InputError(
            f"cannot prepare {name} in {root}: {reason}; fix that or choose another data folder."
        ) from error


def _is_done(folder: pathlib.Path) -> bool:
    """Return whether the folder holds a finished data set.

    A folder that exists but cannot be used raises InputError: it is the user's to move.
    """
    try:
        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
        kind = info.get("fileFormat", "tfrecord")
        counts = {split["name"]: len(split["shardLengths"]) for split in info["splits"]}
    except FileNotFoundError:
        if folder.is_dir():
            raise InputError(
                f"{folder} holds no dataset_info.json: move the folder away and run again."
            ) from None
        return False
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{folder}/dataset_info.json is damaged: move the folder away and run again."
        ) from None
    if kind not in FORMATS:
        raise InputError(
            f"{folder} is prepared as {kind}, wanted {' or '.join(FORMATS)}: choose another data "
            "folder."
        )
    for split, count in counts.items():
        for shard in range(count):
            path = folder / f"{info['name']}-{split}.{kind}-{shard:05d}-of-{count:05d}"
            if not path.is_file():
                raise InputError(f"{path} is missing: move the folder {folder} away and run again.")
    return True


def build(name: str, builder: Any, by_hand: pathlib.Path) -> pathlib.Path:
    """Let a builder of TFDS prepare; return the folder that it made."""
    import tensorflow_datasets.public_api as tfds

    stage = pathlib.Path(builder.data_dir_root)
    config = tfds.download.DownloadConfig(
        manual_dir=by_hand, try_download_gcs=False, force_checksums_validation=True
    )
    with _quiet(), _patience(), _download_errors(name, by_hand, builder.url_infos or {}):
        builder.download_and_prepare(download_dir=stage / "downloads", download_config=config)
    return pathlib.Path(builder.data_dir)


def download(name: str, url: str, size: int, sha256: str, by_hand: Folder) -> bytes:
    """Download a file as TFDS does.

    Args:
      name: of what needs it, for messages.
      url: of the file.
      size: of it, in bytes.
      sha256: of it.
      by_hand: where the user may place it, for messages.

    Raises:
      InputError: no network, or a wrong checksum.
    """
    import tensorflow_datasets.public_api as tfds
    from tensorflow_datasets.core import utils
    from tensorflow_datasets.core.download import checksums

    file = url.rpartition("/")[2]
    info = checksums.UrlInfo(size=utils.Size(size), checksum=sha256, filename=file)
    with (
        tempfile.TemporaryDirectory() as stage,
        _quiet(),
        _patience(),
        _download_errors(name, by_hand, {url: info}),
    ):
        manager = tfds.download.DownloadManager(
            download_dir=stage, url_infos={url: info}, force_checksums_validation=True
        )
        return pathlib.Path(manager.download(url)).read_bytes()


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[None]:
    """Hold an exclusive lock."""

    def waiting() -> None:
        if sys.stderr.isatty():
            print(f"Another process prepares here: waiting for {path}", file=sys.stderr)

    with files.lock(path, waiting) or contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars and TFDS's announcements to a terminal, out of log files and pipes."""
    import tensorflow_datasets.public_api as tfds
    from tensorflow_datasets.core.utils import tqdm_utils

    shown = tqdm_utils._active
    log = logging.getLogger("urllib3")
    with contextlib.ExitStack() as stack:
        stack.callback(log.setLevel, log.level)
        log.setLevel(logging.ERROR)  # each retry is a warning; the error at the end says it all
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
            stack.callback(tfds.display_progress_bar, shown)
        if not sys.stdout.isatty():
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Limit TFDS's retries, and its waits to seconds.

    Without a network it would try for minutes, behind a silent firewall for ever.
    """
    from tensorflow_datasets.core.download import downloader

    retries, open_url = downloader.MAX_RETRIES, downloader._open_url
    downloader.MAX_RETRIES = RETRIES
    downloader._open_url = functools.partial(open_url, timeout=(CONNECT_SECONDS, READ_SECONDS))
    try:
        yield
    finally:
        downloader.MAX_RETRIES, downloader._open_url = retries, open_url


@contextlib.contextmanager
def _download_errors(
    name: str, by_hand: pathlib.Path | Folder, url_infos: dict[str, Any]
) -> Iterator[None]:
    """Turn what the download may raise into one line that says what to do."""
    import requests
    from tensorflow_datasets.core.download import download_manager, util

    try:
        yield
    except download_manager.NonMatchingChecksumError as error:
        match = re.match(r"Artifact (.*), downloaded to (.*), has wrong checksum", str(error))
        url, path = match.groups() if match else (next(iter(url_infos)), str(by_hand))
        wanted = url_infos[url]
        what = "the download" if pathlib.Path(path).parent != by_hand else path
        raise InputError(
            f"{name}: {what} has a wrong checksum, wanted {int(wanted.size)} bytes with sha256 "
            f"{wanted.checksum}: get {url} again and place it as {by_hand / wanted.filename}."
        ) from error
    except (requests.RequestException, util.DownloadError) as error:
        base = next(iter(url_infos)).rpartition("/")[0]
        files = ", ".join(info.filename for info in url_infos.values())
        raise InputError(
            f"{name}: cannot download from {base}/ ({_reason(error)}). To continue without a "
            f"network, get from there {files}, place in the folder {by_hand} under the same name, "
            "and run again."
        ) from error


def _reason(error: Exception) -> str:
    """Name the innermost cause in a few words: requests wraps a socket's error four times."""
    words = " ".join(str(error).split())
    match = re.search(
        r"Failed to resolve '[^']*'|timed out|[Rr]efused|unreachable|HTTP code: \d+", words
    )
    return match.group(0) if match else words[:100] or type(error).__name__
