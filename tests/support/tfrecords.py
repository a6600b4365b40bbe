"""TFRecord files for tests, written from array_record ones; independently of what reads them."""

import json
import struct
from pathlib import Path

import google_crc32c
from array_record.python.array_record_data_source import ArrayRecordDataSource


def framed(data: bytes) -> bytes:
    """A record as TFRecord files hold it."""
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    rotated = (crc >> 15) + ((crc << 17) & 0xFFFFFFFF)
    return struct.pack("<I", (rotated + 0xA282EAD8) % 2**32)


def convert(folder: Path, target: Path, shards: int = 1) -> Path:
    """Writes the array_record data set of a folder as TFRecord into another; returns that one."""
    target.mkdir(parents=True)
    info = json.loads((folder / "dataset_info.json").read_text()) | {"fileFormat": "tfrecord"}
    for split in info["splits"]:
        name = f"{info['name']}-{split['name']}"
        (file,) = folder.glob(f"{name}.array_record*")
        records = list(ArrayRecordDataSource([str(file)]))
        parts = [records[i::shards] for i in range(shards)]
        split["shardLengths"] = [str(len(part)) for part in parts]
        for i, part in enumerate(parts):
            shard = target / f"{name}.tfrecord-{i:05d}-of-{shards:05d}"
            shard.write_bytes(b"".join(map(framed, part)))
    (target / "dataset_info.json").write_text(json.dumps(info))
    for file in [folder / "features.json", *folder.glob("*.txt")]:
        (target / file.name).write_bytes(file.read_bytes())
    return target
