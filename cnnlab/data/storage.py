"""Folders of data files: here, or behind any URL that fsspec opens (gs://, s3://, ...)."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cnnlab import files
from cnnlab.errors import InputError, one_line

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# What file systems call the state of a file, besides its size: one of them changes with its bytes.
STATES = (
    *("mtime", "updated", "LastModified", "last_modified", "Last-Modified", "modify", "created"),
    *("etag", "ETag", "generation", "sha", "blob_id", "md5", "Content-MD5", "Digest", "CRC"),
)


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

    # It prints the traces of errors, which are raised as well.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    try:
        return fsspec.filesystem(scheme)
    except Exception as error:  # of a library that misses another one, for example
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

    def files(self) -> list[str]:
        """List the names of the files in the folder, sorted. One that does not exist has none.

        Raises:
          OSError: it cannot be read, whatever the library at work calls that.
        """
        return sorted(name for name, is_folder in self._children().items() if not is_folder)

    def folders(self) -> list[str]:
        """List the names of the folders in the folder, sorted; otherwise as `files`."""
        return sorted(name for name, is_folder in self._children().items() if is_folder)

    def states(self) -> dict[str, str]:
        """Describe each file in the folder by a text that changes when the file does.

        Raises:
          OSError: as `files`; or the file system does not say when a file changes.
        """
        if not self.is_remote:
            return {name: state_of(self.path / name) for name in self.files()}
        return {
            name: self._remote_state(name, info)
            for name, info in self._listing().items()
            if info["type"] != "directory"
        }

    def _children(self) -> dict[str, bool]:
        """List what is in the folder: names, and whether each is a folder."""
        if self.is_remote:
            return {name: info["type"] == "directory" for name, info in self._listing().items()}
        if not self.path.is_dir():
            return {}
        with os.scandir(self.location) as entries:
            return {entry.name: entry.is_dir() for entry in entries}

    def read(self, name: str) -> bytes:
        """Read a file in the folder.

        Raises:
          OSError: as `files`.
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

    def _listing(self) -> dict[str, dict[str, Any]]:
        """Ask the file system for what is in the folder: by name what it says of each."""
        filesystem = self._filesystem
        try:
            infos = filesystem.ls(self.location, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:
            raise OSError(one_line(error)) from error
        return {str(info["name"]).rstrip("/").rpartition("/")[2]: info for info in infos}

    def _remote_state(self, name: str, listed: Mapping[str, Any]) -> str:
        """Describe a file by a text that changes when the file does.

        Args:
          name: of it.
          listed: what the listing of its folder says; a web server's says less than the file's own
            headers.
        """
        info = listed
        filesystem = self._filesystem
        if not _says_state(info):
            try:
                info = filesystem.info(f"{self.location}/{name}")
            except Exception as error:
                raise OSError(one_line(error)) from error
        if _says_state(info):
            return str([info.get(key) for key in ("size", *STATES)])
        raise OSError(
            f"{self}/{name}: the server does not say when it changes; copy the folder to a disk"
        )


def _says_state(info: Mapping[str, Any]) -> bool:
    return any(info.get(key) is not None for key in STATES)


def state_of(path: Path) -> str:
    """Describe a file on this machine by a text that changes when the file does: its size, the time
    when it was modified, and its ctime, which a copy does not keep and nobody can set.
    """
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def data_root(data_dir: str | None) -> Folder:
    """Resolve the TFDS data directory: as given, else $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Raises:
      InputError: a directory was named and is not there.
    """
    if data_dir is None:
        if not (chosen := os.environ.get("TFDS_DATA_DIR")) and not files.has_home():
            raise InputError("this user has no home: --data-dir DIR says where data sets are")
        return Folder.at(chosen or "~/tensorflow_datasets")
    if not is_remote(data_dir) and not files.expanded(data_dir).is_dir():
        raise InputError(
            f"--data-dir {data_dir} is not a directory; make it first, or leave the flag out"
        )
    return Folder.at(data_dir)
