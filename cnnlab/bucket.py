"""A folder of a bucket that holds what the cache folders of several machines do.

Its objects are the files of a cache folder, byte for byte and under the same names. A machine
fetches what it lacks, and publishes what it made. An upload becomes an object at its end or not at
all, and of two objects of one name either will do, so that writers need no lock. Whatever goes
wrong after the start costs time and a line on standard error.

Who may write there can have the machines run code, as in any folder of compiled programs.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from cnnlab import files
from cnnlab.errors import InputError, one_line, release


class Bucket:
    """A folder of a bucket next to a cache folder of this machine.

    Args:
      location: gs://BUCKET/FOLDER.
      folder: the cache folder.

    Raises:
      InputError: it cannot be written or listed, or the package for that is not there.
    """

    def __init__(self, location: str, folder: Path):
        self._location = files.path(location)
        self._folder = folder
        self._damaged: set[str] = set()
        self._is_lost = False
        files.probe(self._location, "the cache").unlink()
        try:
            self._present = set(files.names(self._location))
        except Exception as error:  # gcsfs and google.auth have errors of their own
            raise InputError(f"--cache {location} cannot be listed: {one_line(error)}") from None

    def holds(self, path: Path) -> bool:
        """Return whether there is an object for a file of the cache folder that may be sound."""
        name = self._name(path)
        if not self._is_lost and name not in self._damaged:
            with self._tried():
                return (self._location / name).exists()
        return False

    def fetch(self, path: Path, is_sound: Callable[[Path], bool]) -> bool:
        """Fetch a file of the cache folder; return whether that succeeded.

        Args:
          path: where it is to be.
          is_sound: whether a file, which has another name yet, is what belongs there. An object
            that is not is replaced when the file is published.
        """
        name = self._name(path)
        if self._is_lost or name in self._damaged:
            return False
        with self._tried():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._present.discard(name)
            with files.temporary(path) as new, contextlib.suppress(FileNotFoundError):
                files.download(self._location / name, new)
                if is_sound(new):
                    new.replace(path)
                    self._present.add(name)
                    return True
                self._damaged.add(name)
                _say(f"{self._location / name} is damaged, or not what its name says: made again")
        return False

    def publish(self, path: Path) -> None:
        """Put a file of the cache folder into the bucket, unless it is there."""
        name = self._name(path)
        if self._is_lost or name in self._present:
            return
        with self._tried():
            files.upload(path, self._location / name, replace=name in self._damaged)
            self._damaged.discard(name)
            self._present.add(name)

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()

    @contextlib.contextmanager
    def _tried(self) -> Iterator[None]:
        """Once something fails, do without the bucket: gcsfs has tried for a minute by then."""
        try:
            yield
        except Exception as error:  # gcsfs and google.auth have errors of their own
            release(error)
            self._is_lost = True
            _say(f"{self._location} is not used any more: {one_line(error)}")


def _say(line: str) -> None:
    print(f"cache: {line}", file=sys.stderr, flush=True)
