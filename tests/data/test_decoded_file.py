"""A file of decoded images gives the images of its split bit by bit, whatever happens to the file:
in any state it costs time and nothing else.
"""

import errno
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from cnnlab.data import catalogue, contents, decoded_file
from cnnlab.data.dataset import from_arrays
from cnnlab.errors import InputError

ROOT = Path(__file__).parents[2]
ROW = 8 * 8 * 3
EVERY = np.arange(200)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def train(tfds_root):
    return catalogue.open_dataset("tiny", str(tfds_root)).train


def silent(line):
    pytest.fail(f"said {line}")


def mapped(train, limit=None, progress=iter):
    return contents.on_disk(train, limit, progress, silent)


def assert_same(found, wanted):
    for name in ("image", "label"):
        assert found[name].dtype == wanted[name].dtype
        np.testing.assert_array_equal(found[name], wanted[name])


def undecodable(*_):
    pytest.fail("it is decoded again")


def files(folder):
    return sorted(path.suffix for path in folder.iterdir() if "images2" in path.name)


def test_a_split_is_decoded_once_and_then_read(cache, train, monkeypatch):
    wanted = train.read(EVERY)
    summary = contents.summary(train)
    shutil.rmtree(cache)
    reads = []
    split, facts = mapped(train, progress=lambda parts: reads.append(parts) or iter(parts))
    assert len(reads) == 1 and facts.digest() == summary.digest()
    assert files(cache) == [".lock", ".rows"]
    assert split.records.path.read_bytes() == wanted["image"].tobytes()
    monkeypatch.setattr(type(train.records), "__getitems__", undecodable)
    again, facts = mapped(train, progress=undecodable)
    assert facts.digest() == summary.digest()
    pickled = pickle.loads(pickle.dumps(again))  # as Grain's workers get it
    for reader in (split, again, pickled):
        assert_same(reader.read(EVERY), wanted)
        order = np.random.default_rng(0).permutation(200)[:31]
        assert_same(reader.read(order), {k: v[order] for k, v in wanted.items()})
    assert len(again) == 200 and again.name == train.name and again.records.size == 200 * ROW


def test_the_file_is_written_in_pieces(cache, train, monkeypatch):
    monkeypatch.setattr(contents, "READ_BYTES", 7 * ROW)
    sizes = []
    write = decoded_file.write

    def watched(target, parts):
        return write(target, (sizes.append(len(part)) or part for part in parts))

    monkeypatch.setattr(decoded_file, "write", watched)
    split, facts = mapped(train)
    assert max(sizes) == 7 and sum(sizes) == 200
    assert_same(split.read(EVERY), train.read(EVERY))
    monkeypatch.undo()
    assert facts.digest() == contents.summary(train).digest()


def damages(file: Path):
    """Ways to damage a file, each with the images that are not as they were."""

    def flip(place):
        content = bytearray(file.read_bytes())
        content[place] ^= 1
        file.write_bytes(content)

    return {
        "a bit": lambda: flip(5 * ROW + 3),
        "the last bit": lambda: flip(200 * ROW - 1),
        "half of it": lambda: os.truncate(file, 100 * ROW + 17),
        "zeros": lambda: file.write_bytes(bytes(200 * ROW)),
        "nothing": lambda: file.write_bytes(b""),
        "another order": lambda: file.write_bytes(
            b"".join(reversed([file.read_bytes()[i : i + ROW] for i in range(0, 200 * ROW, ROW)]))
        ),
        "gone": file.unlink,
        "a folder": lambda: (file.unlink(), file.mkdir()),
        "no rights": lambda: file.chmod(0),
    }


@pytest.mark.parametrize("damage", damages(Path()))
def test_damage_costs_time_and_nothing_else(cache, train, damage):
    wanted = train.read(EVERY)
    split, _ = mapped(train)
    file = split.records.path
    damages(file)[damage]()
    assert_same(split.read(EVERY), wanted)  # while a run reads it
    if damage == "a folder":
        assert mapped(train, 1.0) is None  # left alone
        return
    split, facts = mapped(train)  # at the next start
    assert_same(split.read(EVERY), wanted)
    assert facts.digest() == contents.summary(train).digest()
    if damage != "a bit":  # that image is not among those that are looked at
        assert file.read_bytes() == wanted["image"].tobytes()


def test_only_damaged_images_are_decoded_again(cache, train, monkeypatch):
    split, _ = mapped(train)
    wanted = train.read(EVERY)
    file = split.records.path
    content = bytearray(file.read_bytes())
    for image in (5, 77):
        content[image * ROW] ^= 128
    file.write_bytes(content)
    decoded = []
    records = type(train.records)
    read = records.__getitems__

    def counted(self, positions):
        decoded.extend(positions)
        return read(self, positions)

    monkeypatch.setattr(records, "__getitems__", counted)
    assert_same(split.read(EVERY), wanted)
    assert decoded == [5, 77]


def test_images_are_scaled_before_they_are_written(cache, tfds_root):
    train = catalogue.open_dataset("tiny", str(tfds_root), image_size=5).train
    split, _ = mapped(train)
    wanted = train.read(EVERY)
    assert split.records.size == 200 * 75
    assert_same(split.read(EVERY), wanted)
    split.records.path.unlink()
    assert_same(split.read(EVERY), wanted)


def test_a_lost_summary_is_made_again(cache, train):
    mapped(train)
    for path in cache.glob("*summary*"):
        path.unlink()
    split, facts = mapped(train)
    assert_same(split.read(EVERY), train.read(EVERY))
    assert facts.digest() == contents.summary(train).digest()


def test_what_is_too_large_is_not_written(cache, train, monkeypatch):
    size = 200 * ROW
    assert mapped(train, 0.0) is None
    assert mapped(train, (size - 1) / 2**30) is None
    assert files(cache) == [".lock"]
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2 * size - 2))
    assert mapped(train, 16.0) is None
    assert mapped(train, None) is not None  # it is wanted in any case
    assert mapped(train, 16.0) is not None  # it is there
    for path in cache.glob("*.rows"):
        path.unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2 * size))
    assert mapped(train, size / 2**30) is not None
    for path in cache.glob("*.rows"):
        path.unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(size))
    with pytest.raises(InputError, match=r"tiny.*cannot be kept in .*: 0\.0 GiB are free there; t"):
        mapped(train)


def test_a_full_disk_leaves_nothing(cache, train, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert mapped(train, 16.0) is None
    with pytest.raises(InputError, match="its disk is full; take --feed streaming"):
        mapped(train)
    assert files(cache) == [".lock"]


def test_an_image_that_cannot_be_decoded_leaves_nothing(cache, train, monkeypatch):
    read = type(train).read

    def fail(self, positions):
        if 150 in positions:
            raise InputError("image 150 is damaged")
        return read(self, positions)

    monkeypatch.setattr(contents, "READ_AT_ONCE", 40)
    monkeypatch.setattr(type(train), "read", fail)
    with pytest.raises(InputError, match="image 150"):
        mapped(train, 16.0)
    assert files(cache) == [".lock"]


def test_a_cache_that_cannot_be_written(tmp_path, train, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "file" / "cache"))
    assert mapped(train, 16.0) is None
    with pytest.raises(InputError, match="that folder cannot be written; take --feed streaming"):
        mapped(train)


def test_what_a_killed_process_left_is_removed_even_where_there_is_no_room(cache, train):
    target = decoded_file.path(f"{train.fingerprint[:24]}-images2")
    target.with_suffix(".partial").write_bytes(bytes(1000))
    assert mapped(train, 0.0) is None
    assert files(cache) == [".lock"]
    target.with_suffix(".partial").write_bytes(bytes(1000))
    split, _ = mapped(train)
    assert_same(split.read(EVERY), train.read(EVERY))
    assert files(cache) == [".lock", ".rows"]


def test_the_second_waits_for_the_first(cache, train, monkeypatch):
    """Threads hold locks of their own, as processes do."""
    said = []
    started = threading.Event()
    result = []

    def slow(parts):
        started.set()
        deadline = time.monotonic() + 10
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
        return iter(parts)

    first = threading.Thread(target=lambda: result.append(mapped(train, progress=slow)))
    first.start()
    started.wait()
    second = contents.on_disk(train, None, undecodable, said.append)
    first.join()
    assert said == [f"waiting for another process that decodes into {second[0].records.path}"]
    assert_same(second[0].read(EVERY), result[0][0].read(EVERY))


def test_arrays_are_in_memory_anyway(cache):
    images = np.zeros((4, 2, 2, 3), np.uint8)
    arrays = {"train": (images, np.arange(4)), "test": (images, np.arange(4))}
    train = from_arrays("mine", arrays).train
    assert mapped(train, 16.0) is None
    with pytest.raises(InputError, match="arrays in memory already"):
        mapped(train)


PROCESS = """
import sys
import numpy as np
from cnnlab.data import catalogue, contents
contents.READ_AT_ONCE = 2
train = catalogue.open_dataset("tiny", sys.argv[1]).train
print("begun", flush=True)
split, facts = contents.on_disk(train, None, iter, lambda line: None)
same = np.array_equal(split.read(np.arange(200))["image"], train.read(np.arange(200))["image"])
print(same, facts.digest(), flush=True)
"""


@pytest.mark.slow
def test_processes_are_killed_and_others_run_at_the_same_time(cache, train, tfds_root):
    wanted = contents.summary(train).digest()
    command = [sys.executable, "-c", PROCESS, str(tfds_root)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def start():
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    for wait in (0.0, 0.005, 0.02):
        shutil.rmtree(cache, ignore_errors=True)
        process = start()
        process.stdout.readline()
        threading.Event().wait(wait)
        process.kill()
        process.communicate()
        others = [start() for _ in range(3)]
        for other in others:
            assert other.communicate()[0] == f"begun\nTrue {wanted}\n"
        assert files(cache) == [".lock", ".rows"]
