"""TFRecord files, read in any order and without TensorFlow.

A file is a sequence of records, all numbers little-endian: the length (uint64), its checksum
(uint32), the data, their checksum (uint32). A checksum is a CRC-32C, rotated and shifted. There is
no index: one pass over the lengths makes it, and the cache keeps it.

Source: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from collections.abc import Sequence
from typing import BinaryIO, cast

import numpy as np

from cnnlab.data import cache, storage
from cnnlab.errors import InputError, one_line

LENGTH = struct.Struct("<QI")  # with its checksum
CHECKSUM = struct.Struct("<I")
COMPRESSED = {
    b"\x1f\x8b": "GZIP",
    b"\x78\x01": "ZLIB",
    b"\x78\x5e": "ZLIB",
    b"\x78\x9c": "ZLIB",
    b"\x78\xda": "ZLIB",
}
READ_AHEAD = 8 << 20  # bytes of a remote file while it is indexed


class TFRecords:
    """The records of several files, one after the other, by position."""

    def __init__(self, paths: Sequence[str], states: Sequence[str] | None = None):
        """Index the files, or read their index from the cache.

        Args:
          paths: of the files, or URLs.
          states: a text for each that changes when the file does; None: nothing is cached.

        Raises:
          InputError: a file that is compressed. OSError: one that is damaged or cannot be read.
        """
        self._open: dict[int, int] = {}  # file -> its descriptor, of those on this machine
        self._lock = threading.Lock()
        self.paths = tuple(paths)
        indices = [
            _cached_index(path, state)
            for path, state in zip(paths, states or [""] * len(paths), strict=True)
        ]
        self.file_of = np.repeat(np.arange(len(indices)), [len(index) for index in indices])
        self.places = np.concatenate([np.zeros((0, 2), np.int64), *indices])

    def __len__(self) -> int:
        return len(self.places)

    def __getstate__(self) -> dict[str, object]:
        kept = ("paths", "file_of", "places")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state, _lock=threading.Lock(), _open={})

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def __getitems__(self, positions: Sequence[int]) -> list[bytes]:
        """Read the records at some positions.

        Raises:
          OSError: one is damaged or cannot be read.
        """
        starts, lengths = self.places[np.asarray(positions, np.int64)].T.tolist()
        numbers = self.file_of[np.asarray(positions, np.int64)].tolist()
        ends = [s + n + CHECKSUM.size for s, n in zip(starts, lengths, strict=True)]
        if self.paths and storage.is_remote(self.paths[0]):
            parts = self._read_remote(numbers, starts, ends)
        else:
            parts = [
                os.pread(self._descriptor(number), end - start, start)
                for number, start, end in zip(numbers, starts, ends, strict=True)
            ]
        return [
            _checked(part, length, self.paths[number])
            for part, length, number in zip(parts, lengths, numbers, strict=True)
        ]

    def _descriptor(self, number: int) -> int:
        with self._lock:
            if number not in self._open:
                self._open[number] = os.open(self.paths[number], os.O_RDONLY)
            return self._open[number]

    def _read_remote(
        self, numbers: Sequence[int], starts: Sequence[int], ends: Sequence[int]
    ) -> list[bytes]:
        filesystem = storage.filesystem(self.paths[0].partition("://")[0])
        paths = [self.paths[number] for number in numbers]
        try:
            return filesystem.cat_ranges(paths, list(starts), list(ends), on_error="raise")
        except Exception as error:
            raise OSError(f"{paths[0]}: {one_line(error)}") from error


def masked_checksum(data: bytes) -> int:
    """Compute the checksum of TFRecord files.

    >>> hex(masked_checksum(b"123456789"))  # its CRC-32C is 0xe3069283
    '0xc78ab0e5'
    """
    import google_crc32c

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _checked(part: bytes, length: int, path: str) -> bytes:
    """Split a record from the checksum that follows it, and compare them."""
    data, checksum = part[:length], part[length:]
    if len(checksum) != CHECKSUM.size or CHECKSUM.unpack(checksum)[0] != masked_checksum(data):
        raise OSError(f"{path}: a record does not fit its checksum")
    return data


def _cached_index(path: str, state: str) -> np.ndarray:
    if not state:
        return index(path)
    key = hashlib.sha256(f"{path} {state}".encode()).hexdigest()
    return cache.arrays(f"{key[:24]}-tfrecord1", lambda: {"index": index(path)})["index"]


def index(path: str) -> np.ndarray:
    """Find the records of a file.

    Returns:
      int64[N, 2], start and length of the data of each.

    Raises:
      InputError: the file is compressed. OSError: it is damaged or cannot be read.
    """
    if not storage.is_remote(path):
        with open(path, "rb") as file:
            return _index(file, os.fstat(file.fileno()).st_size, path)
    filesystem = storage.filesystem(path.partition("://")[0])
    try:
        with filesystem.open(path, "rb", block_size=READ_AHEAD) as file:
            return _index(cast(BinaryIO, file), int(filesystem.size(path) or 0), path)
    except (OSError, InputError):
        raise
    except Exception as error:
        raise OSError(f"{path}: {one_line(error)}") from error


def _index(file: BinaryIO, size: int, path: str) -> np.ndarray:
    places = []
    at = 0
    while at < size:
        header = file.read(LENGTH.size)
        if at == 0 and (method := COMPRESSED.get(header[:2])) and not _is_length(header):
            raise InputError(
                f"{path} is compressed ({method}), so no record can be read without those before "
                "it: write it again without compression"
            )
        if not _is_length(header):
            raise OSError(f"{path}: no record begins at byte {at}")
        length, _ = LENGTH.unpack(header)
        places.append((at + LENGTH.size, length))
        at += LENGTH.size + length + CHECKSUM.size
        file.seek(at)
    if at != size:
        raise OSError(f"{path} ends within a record, at byte {size} of {at}")
    return np.array(places, np.int64).reshape(-1, 2)


def _is_length(header: bytes) -> bool:
    """Return whether these bytes are a length with its checksum."""
    if len(header) != LENGTH.size:
        return False
    return LENGTH.unpack(header)[1] == masked_checksum(header[: LENGTH.size - CHECKSUM.size])
