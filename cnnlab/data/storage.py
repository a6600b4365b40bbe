"""Folders of data files: here, or behind any URL that fsspec opens (gs://, s3://, ...)."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cnnlab import files
from cnnlab.errors import InputError, one_line

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# What file systems call the state of a file, besides its size: one of them changes with its bytes.
STATES = ("mtime", "etag", "ETag", "generation", "updated", "LastModified", "last_modified")


def is_remote(location: str | os.PathLike[str]) -> bool:
    """Return whether a location is a URL."""
    return "://" in os.fspath(location)


@functools.cache
def filesystem(scheme: str) -> AbstractFileSystem:
    """Return the file system of a URL's scheme.

    Raises:
      InputError: no installed package opens such URLs.
    """
    import fsspec

    try:
        return fsspec.filesystem(scheme)
    except (ImportError, ValueError) as error:
        raise InputError(f"{scheme}:// cannot be opened: {one_line(error)}") from error


@dataclass(frozen=True)
class Folder:
    """A folder that is read.

    Attributes:
      location: absolute path, or URL.
    """

    location: str

    @classmethod
    def at(cls, location: str | os.PathLike[str]) -> Folder:
        """Return the folder at a path or URL."""
        if is_remote(location):
            return cls(os.fspath(location).rstrip("/"))
        return cls(os.path.abspath(files.expanded(location)))

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.location}/{name}")

    def __str__(self) -> str:
        return self.location

    @property
    def is_remote(self) -> bool:
        return is_remote(self.location)

    @property
    def path(self) -> Path:
        """Of a folder on this machine."""
        assert not self.is_remote, self.location
        return Path(self.location)

    def children(self) -> dict[str, str]:
        """List what is in the folder: names, and "" for a folder or a text that changes when the
        file does. A folder that does not exist is empty.

        Raises:
          OSError: it cannot be read, whatever the library at work calls that.
        """
        if self.is_remote:
            return self._remote_children()
        if not self.path.is_dir():
            return {}
        with os.scandir(self.location) as entries:
            return {entry.name: _state(entry) for entry in entries}

    def files(self) -> dict[str, str]:
        """Return those of `children` that are files."""
        return {name: state for name, state in self.children().items() if state}

    def folders(self) -> list[str]:
        """Return the names of those of `children` that are folders, sorted."""
        return sorted(name for name, state in self.children().items() if not state)

    def read(self, name: str) -> bytes:
        """Read a file in the folder.

        Raises:
          OSError: as `children`.
        """
        if not self.is_remote:
            return (self.path / name).read_bytes()
        filesystem = self._filesystem
        try:
            return cast(bytes, filesystem.cat_file(f"{self.location}/{name}"))
        except Exception as error:
            raise OSError(one_line(error)) from error

    @property
    def _filesystem(self) -> AbstractFileSystem:
        return filesystem(self.location.partition("://")[0])

    def _remote_children(self) -> dict[str, str]:
        filesystem = self._filesystem
        try:
            found = filesystem.ls(self.location, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:
            raise OSError(one_line(error)) from error
        states = {}
        for info in found:
            name = str(info["name"]).rstrip("/").rpartition("/")[2]
            state = [info.get(key) for key in ("size", *STATES)]
            states[name] = "" if info["type"] == "directory" else str(state)
        return states


def _state(entry: os.DirEntry[str]) -> str:
    if entry.is_dir():
        return ""
    status = entry.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def data_root(data_dir: str | None) -> Folder:
    """Resolve the TFDS data directory: as given, else $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Raises:
      InputError: a directory was named and is not there.
    """
    if data_dir is None:
        return Folder.at(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    if not is_remote(data_dir) and not files.expanded(data_dir).is_dir():
        raise InputError(
            f"--data-dir {data_dir} is not a directory; make it first, or leave the flag out"
        )
    return Folder.at(data_dir)
