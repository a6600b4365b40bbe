"""Files and folders here or on Google Cloud Storage (gs://): all that differs between the two.

A path is a pathlib.Path or, under gs://, an etils.epath.Path, which has the same methods. There, an object is written
whole or not at all, and what is listed is what is there; but there are no folders, renames, appends, fsync or locks.
So a local step gets its name when it is complete, and one under gs:// a last object, the mark, that says it is.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cnnlab.errors import InputError, one_line, release

MARK = "commit_success.txt"  # the names that Orbax gives: to the mark of a complete step under gs://,
TMP = ".orbax-checkpoint-tmp"  # to local steps being written,
TODELETE = "todelete"  # and what cnnlab calls the folder of local steps on their way out


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is on Google Cloud Storage."""
    return os.fspath(path).startswith("gs://")


def path(name: str | os.PathLike) -> Path:
    """The path of a name.

    Raises:
      InputError: gs:// without a bucket and a folder, or without the package that reads it.
    """
    if not is_remote(name):
        return Path(name)
    if not re.match("gs://[^/]+/+[^/]", os.fspath(name)):
        raise InputError(f"{os.fspath(name)} names no folder; give gs://BUCKET/FOLDER")
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(f"{os.fspath(name)} needs the package gcsfs: pip install -e '.[gcs]'")
    os.environ.setdefault("EPATH_USE_TF", "false")  # else etils takes TensorFlow, where that is installed
    from etils import epath
    from fsspec.config import conf

    conf.setdefault("gcs", {})["use_listings_cache"] = False  # TensorStore writes past it
    found: Any = epath.Path(name)
    return found


@functools.cache
def _gcs() -> Any:
    import fsspec

    return fsspec.filesystem("gcs", finalize_on_close=True)  # as etils asks, so that both have one


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
      OSError: it cannot be read, whatever the library at work calls that.
    """
    try:
        return path.read_text()
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise OSError(one_line(error)) from error


def append_text(path: Path, text: str) -> None:
    """Add to a file; under gs:// by writing it anew."""
    if is_remote(path):
        path.write_text(path.read_text() + text)
        return
    with path.open("a") as file:
        file.write(text)


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A local file to write, which then is or becomes `path`: for libraries that know no other."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, path.name)
        yield local
        path.write_bytes(local.read_bytes())


def files(folder: Path) -> list[str]:
    """The names of all files below a folder, relative to it."""
    if not is_remote(folder):
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    root = str(folder).removeprefix("gs://") + "/"
    found = (name.removeprefix(root) for name in _gcs().find(str(folder)) if name.startswith(root))
    return sorted(name for name in found if name and name[-1] != "/")  # such a name is a browser's mark of a folder


def children(folder: Path) -> set[str]:
    """The names of the files and folders in a folder."""
    if not is_remote(folder):
        return {path.name for path in folder.iterdir()}
    return {name.split("/")[0] for name in files(folder)}


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def _marked(folder: Path) -> dict[str, bool]:
    """The steps in a folder under gs://, and whether each has its mark; in one request."""
    found: dict[str, bool] = {}
    for step, *rest in (name.split("/") for name in files(folder)):
        if _is_step(step) and rest:
            found[step] = found.get(step, False) or rest == [MARK]
    return found


def steps(folder: Path) -> list[int]:
    """The complete steps in a folder of checkpoints, oldest first."""
    if is_remote(folder):
        return sorted(int(step) for step, complete in _marked(folder).items() if complete)
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if _is_step(path.name) and path.is_dir())


def unfinished(folder: Path) -> list[Path]:
    """What a folder of checkpoints holds of saves and deletions that did not come to their end."""
    if not is_remote(folder):
        return [folder / TODELETE, *folder.glob(f"*{TMP}*")]
    return [folder / step for step, complete in _marked(folder).items() if not complete]


def step_names(folder: Path) -> Any:
    """How Orbax names and finds steps; None for its own way.

    It need not find those under gs://, and would do so only for who may see the settings of the bucket.
    """
    return SimpleNamespace(build_name=str, find_all=lambda folder: []) if is_remote(folder) else None


def remove(folder: Path) -> None:
    """Delete a folder, if it is there; a step under gs:// stops being one first."""
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    remote: Any = folder
    with contextlib.suppress(Exception):  # as above: what stays is in nobody's way, and tried again
        (remote / MARK).unlink(missing_ok=True)
        remote.rmtree(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Move a folder; a step under gs:// stops being one first."""
    if is_remote(source):
        for name in sorted(files(source), key=MARK.__ne__):
            _gcs().mv(str(source / name), str(target / name))
        return
    target.parent.mkdir(exist_ok=True)
    source.rename(target)


def sync(path: Path) -> None:
    """What was written there survives a power loss. Under gs:// it does already."""
    if is_remote(path):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path, pauses: tuple[float, ...] = ()) -> None:
    """Remove what no step needs: unfinished saves and steps already dropped; again after each of the pauses."""
    for pause in (0, *pauses):
        time.sleep(pause)
        for path in unfinished(folder):
            remove(path)


def probe(folder: Path, what: str) -> Path:
    """Write a file into a folder, made where missing; whoever asked deletes it.

    Raises:
      InputError: `what` cannot be written there.
    """
    trial = folder / f".probe-{os.urandom(8).hex()}"
    try:
        if not is_remote(folder):
            folder.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"1")
    except Exception as error:  # gcsfs and google.auth have errors of their own
        release(error)
        raise InputError(f"{what} cannot be written to {folder}: {one_line(error)}; give another folder.") from None
    return trial


def lock_file(folder: Path) -> Path:
    """The file whose lock is the folder's; that of a folder under gs:// only keeps this machine's processes apart."""
    if not is_remote(folder):
        return folder / "lock"
    place = os.environ.get("STORAGE_EMULATOR_HOST", "") + os.fspath(folder)  # another server's is another folder
    return Path(tempfile.gettempdir(), f"cnnlab-{os.getuid()}-{hashlib.sha256(place.encode()).hexdigest()[:16]}.lock")
