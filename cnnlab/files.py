"""Files and folders here or on Google Cloud Storage (gs://): all that differs between the two.

A path is a pathlib.Path or, under gs://, an etils.epath.Path, which has the same methods. There, an
object is written whole or not at all, and what is listed is what is there; but there are no
folders, renames, appends, fsync or locks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import glob
import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from cnnlab.errors import InputError, one_line, release
from cnnlab.types import JsonObject

if TYPE_CHECKING:
    from etils import epath
    from fsspec import AbstractFileSystem

SEAL = "sha256"  # of a sealed JSON object
# What a URL starts with, also where a path lost one of its slashes; C:/ is a disk
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
LOCKS = "CNNLAB_LOCKS"  # the variable that names a folder for locks


class SealError(ValueError):
    """A JSON object that is not what `write_sealed` wrote."""


def is_remote(path: str | os.PathLike) -> bool:
    """Return whether a path is on Google Cloud Storage."""
    return os.fspath(path).startswith("gs://")


def path(name: str | os.PathLike) -> Path:
    """Convert a name to a path.

    Raises:
      InputError: gs:// without a bucket and a folder, or without the package that reads it; another
        URL.
    """
    if is_url(name) and not is_remote(name):
        raise InputError(f"{os.fspath(name)}: of URLs only gs://BUCKET/FOLDER can be used here")
    if not is_remote(name):
        return expanded(name)
    if not re.match("gs://[^/]+/+[^/]", os.fspath(name)):
        raise InputError(f"{os.fspath(name)} names no folder; give gs://BUCKET/FOLDER")
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(f"{os.fspath(name)} needs the package gcsfs: pip install -e '.[gcs]'")
    # Else etils takes TensorFlow, where that is installed
    os.environ.setdefault("EPATH_USE_TF", "false")
    from etils import epath
    from fsspec.config import conf

    conf.setdefault("gcs", {})["use_listings_cache"] = False  # TensorStore writes past it
    return cast(Path, epath.Path(name))


def is_url(name: str | os.PathLike) -> bool:
    """Return whether a name is a URL, which no disk has.

    >>> is_url("s3://bucket/run"), is_url("file:/run"), is_url("C:/run"), is_url("runs/a:b")
    (True, True, False, False)
    """
    return SCHEME.match(os.fspath(name)) is not None


def expanded(name: str | os.PathLike) -> Path:
    """Return a path on this machine, with ~ expanded to a home directory.

    Raises:
      InputError: a URL, or ~ of a user who has no home here.
    """
    if is_url(name):
        raise InputError(f"{os.fspath(name)} is a URL; here a path on a disk is needed")
    expanded = os.path.expanduser(name)
    if os.fspath(expanded).startswith("~"):
        raise InputError(f"{os.fspath(name)}: ~ is of a user who has no home here")
    return Path(expanded)


def has_home() -> bool:
    """Return whether the user has a home directory."""
    return os.path.expanduser("~") != "~"


@functools.cache
def _gcs() -> AbstractFileSystem:
    import fsspec

    return fsspec.filesystem("gcs", finalize_on_close=True)  # as etils asks, so that both have one


def read_text(path: Path) -> str:
    """Read a file's text.

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
    """Append to a file; under gs:// by rewriting it."""
    if is_remote(path):
        path.write_text(path.read_text() + text)
        return
    with naming(path), path.open("a") as file:
        file.write(text)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of the system in the body the name of the file, which a failed write lacks."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # one of the system
            error.filename = str(path)
        raise


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yield a file to write, which then becomes `path`: for libraries that write local files, and
    not atomically.
    """
    with naming(path), tempfile.TemporaryDirectory() as folder:
        local = Path(folder, path.name)
        yield local
        write_bytes(path, local.read_bytes())


def download(source: Path, target: Path) -> None:
    """Copy an object to a file on this machine.

    Raises:
      FileNotFoundError: there is no such object. Others: as gcsfs calls them.
    """
    _gcs().get_file(str(source), str(target))


def upload(source: Path, target: Path, replace: bool) -> None:
    """Copy a file on this machine to an object; without `replace` only if there is none."""
    with contextlib.suppress(FileExistsError):
        _gcs().put_file(str(source), str(target), mode="overwrite" if replace else "create")


def names(folder: Path) -> list[str]:
    """List the names of all files below a folder, relative to it."""
    if not is_remote(folder):
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    root = str(folder).removeprefix("gs://") + "/"
    relative = (
        name.removeprefix(root) for name in _gcs().find(str(folder)) if name.startswith(root)
    )
    # Such a name is a browser's mark of a folder
    return sorted(name for name in relative if name and name[-1] != "/")


def children(folder: Path) -> set[str]:
    """List the names of the files and folders in a folder."""
    if not is_remote(folder):
        return {path.name for path in folder.iterdir()}
    return {name.split("/")[0] for name in names(folder)}


def remove(folder: Path) -> None:
    """Delete a folder, if it is there."""
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    remote = cast("epath.Path", folder)
    with contextlib.suppress(Exception):  # what stays is in nobody's way
        remote.rmtree(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Move a file, or a local folder."""
    if is_remote(source):
        _gcs().mv(str(source), str(target))
    else:
        source.rename(target)


def sync(path: Path) -> None:
    """Make what was written to a path survive a power loss. Under gs:// it does already."""
    if is_remote(path):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def probe(folder: Path, what: str) -> Path:
    """Write a trial file into a folder, which is created if missing; the caller deletes the file.

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
        raise InputError(
            f"{what} cannot be written to {folder}: {one_line(error)}; give another folder."
        ) from None
    return trial


def lock(path: Path, waiting: Callable[[], object] | None = None) -> IO[str] | None:
    """Take the lock of a file, which is made if missing. It is held until the file is closed; the
    kernel closes it when the process dies, so the file may stay.

    Args:
      path: of the file.
      waiting: is called before another process is waited for; None: it is not waited for.

    Returns:
      The open file; None where another process holds the lock.

    Raises:
      OSError: the file cannot be made.
      InputError: its disk has no locks, or $CNNLAB_LOCKS is no folder that can be written.
    """
    place = lock_file(path)
    try:
        file = place.open("a")
    except OSError as error:
        if place.parent == path.parent:
            raise
        raise InputError(f"no lock can be made in {place.parent}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            if waiting is None:
                file.close()
                return None
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        file.close()
        raise InputError(
            f"the disk of {place} has no locks ({error.strerror}), which keep two processes from "
            f"writing the same files: choose a folder on another disk, or let ${LOCKS} name one "
            "for the locks; it keeps apart the processes that see it"
        ) from error
    return file


def lock_file(path: Path) -> Path:
    """Return the file whose lock is meant by that of `path`: itself; where $CNNLAB_LOCKS names a
    folder, one in that; under gs:// one that only keeps this machine's processes apart.
    """
    folder = os.environ.get(LOCKS)
    if is_remote(path):  # another server's is another folder
        place = os.environ.get("STORAGE_EMULATOR_HOST", "") + os.fspath(path.parent)
    elif folder:
        place = os.path.realpath(path)
    else:
        return path
    name = f"cnnlab-{os.getuid()}-{hashlib.sha256(place.encode()).hexdigest()[:16]}.lock"
    locks = expanded(folder) if folder else Path(tempfile.gettempdir())
    if not locks.is_dir():
        raise InputError(f"${LOCKS} {locks} is not a folder: make it first, or unset it")
    return locks / name


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_sealed(path: Path, values: JsonObject) -> None:
    """Write a JSON object atomically, with a seal: the SHA-256 of its other values."""
    write_json(path, {**values, SEAL: _seal(values)})


def read_sealed(path: Path) -> JsonObject:
    """Read what `write_sealed` wrote, without its seal.

    Raises:
      OSError: it cannot be read.
      ValueError: it is no JSON object; or, a SealError, was changed since.
    """
    values = json.loads(read_text(path))
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    seal = values.pop(SEAL, None)
    if seal != _seal(values):
        wrong = "it was changed since it was written" if seal else "it has no seal"
        raise SealError(
            f"{wrong}: restore it, or accept it as it is with python -m "
            "cnnlab.checkpoint.reseal FILE"
        )
    return values


def reseal(path: Path) -> None:
    """Seal a JSON object as it is now.

    Raises:
      OSError, ValueError: it cannot be read, or written; or is no JSON object.
    """
    values = json.loads(read_text(path))
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    write_sealed(path, {name: value for name, value in values.items() if name != SEAL})


def _seal(values: JsonObject) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    # Of a file name that is no UTF-8, for one
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    if is_remote(path):
        path.write_bytes(content)
        return
    with naming(path):
        if path.exists() and not path.is_file():  # /dev/stdout
            path.write_bytes(content)
        else:
            _replace(path, content)


def _replace(path: Path, content: bytes) -> None:
    with temporary(path) as new:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.chmod(0o666 & ~_umask())
        new.replace(path)


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Yield a new file in the folder of a path, to be renamed to it when it is complete; where it
    is not, it is removed: if the process is killed, by the next one that writes that path.
    """
    _remove_abandoned(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_prefix(path)}{os.getpid()}.")
    os.close(handle)
    try:
        yield Path(name)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def _prefix(path: Path) -> str:
    """Begin the names of a path's temporary files; the number of a process follows."""
    return f".{path.name[:50]}.{os.uname().nodename}."  # file systems allow 255 bytes


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files of a path whose processes, on this machine, are no more."""
    prefix = _prefix(path)
    for file in path.parent.glob(f"{glob.escape(prefix)}*"):
        with contextlib.suppress(ValueError, OSError):
            if not _is_alive(int(file.name.removeprefix(prefix).partition(".")[0])):
                file.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return True


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
