"""All ways to feed give the same bits at every step, from whichever step one starts."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
from scripts import ROOT

from cnnlab.data import catalogue, contents, feed, order
from cnnlab.errors import InputError

BATCH = 16
SEED = 5


@pytest.fixture(scope="module")
def train(tfds_root):
    return catalogue.open_dataset("tiny", str(tfds_root)).train


@pytest.fixture(scope="module")
def own(train):
    return order.split(contents.summary(train).labels, 0.1, 0)[0]


def batches(train, own, kind, first, last, workers=0):
    images, summary = contents.decoded(train)
    chosen = feed.Order(summary.labels, own, SEED, BATCH)
    if kind == "resident":
        feeding = feed.resident(images, chosen)
    elif kind == "mapped":
        feeding = feed.streaming(contents.on_disk(train, None)[0], chosen, workers)
    else:
        feeding = feed.streaming(train, chosen, workers)
    return [feeding.fetch(feeding.data, item) for item in feeding.items(first, last)]


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    for one, two in zip(found, wanted, strict=True):
        for name, dtype in (("image", np.uint8), ("label", np.int32), ("index", np.int32)):
            assert one[name].dtype == two[name].dtype == dtype
            np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["mapped", "streaming"])
@pytest.mark.parametrize("limit", [feed.READ_AHEAD, 4 * BATCH * 192])
def test_streaming_is_resident(train, own, kind, workers, limit, monkeypatch):
    """Also where so little may wait that the processes hand over parts of a batch."""
    monkeypatch.setattr(feed, "READ_AHEAD", limit)
    ahead = feed.read_ahead(BATCH, 192, workers, limit)
    assert ahead.parts == (3 if workers and limit < 1 << 20 else 1)
    steps = 3 * (len(own) // BATCH) + 5  # into the fourth epoch
    wanted = batches(train, own, "resident", 0, steps)
    assert wanted[0]["image"].shape == (BATCH, 8, 8, 3)
    assert_same(batches(train, own, kind, 0, steps, workers), wanted)


@pytest.mark.parametrize("kind", ["resident", "mapped", "streaming"])
def test_batches_say_which_images_of_the_split_they_hold(train, own, kind):
    per_epoch = len(own) // BATCH
    images, summary = contents.decoded(train)
    found = batches(train, own, kind, 0, 2 * per_epoch)
    for part in found:
        np.testing.assert_array_equal(part["image"], images[part["index"]])
        np.testing.assert_array_equal(part["label"], summary.labels[part["index"]])
    first, second = (
        {int(index) for part in parts for index in part["index"]}
        for parts in (found[:per_epoch], found[per_epoch:])
    )
    assert len(first & second) > 100 and first | second <= set(own.tolist())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "workers"), [("resident", 0), ("streaming", 0), ("streaming", 2)])
def test_the_tail_does_not_depend_on_the_start(train, own, kind, workers):
    per_epoch = len(own) // BATCH
    whole = batches(train, own, "resident", 0, 30)
    for first in [13] if workers else [1, per_epoch - 1, per_epoch, per_epoch + 1, 29, 30]:
        assert_same(batches(train, own, kind, first, 30, workers), whole[first:])


def test_an_epoch_sees_each_training_image_at_most_once_and_no_other(train, own):
    per_epoch = len(own) // BATCH
    positions = [
        own[order.batch_positions(SEED, step, len(own), BATCH)] for step in range(2 * per_epoch)
    ]
    epochs = [np.concatenate(positions[:per_epoch]), np.concatenate(positions[per_epoch:])]
    for seen in epochs:
        assert len(set(seen)) == len(seen) == per_epoch * BATCH and set(seen) <= set(own)
    assert (epochs[0] != epochs[1]).any()
    other_seed = own[order.batch_positions(SEED + 1, 0, len(own), BATCH)]
    assert (positions[0] != other_seed).any()


def test_split_is_stratified_exact_and_its_own(train):
    labels = contents.summary(train).labels
    kept, held_out = order.split(labels, 0.1, 0)
    assert sorted([*kept, *held_out]) == list(range(200)) and len(held_out) == 20
    np.testing.assert_allclose(np.bincount(labels[held_out]), 0.1 * np.bincount(labels), atol=1)
    np.testing.assert_array_equal(order.split(labels, 0.1, 0)[1], held_out)
    assert (order.split(labels, 0.1, 1)[1] != held_out).any()
    assert len(order.split(labels, 0.0, 0)[1]) == 0


@pytest.mark.parametrize("count", [1, 16, 17, 47])
def test_in_order_shows_every_image_once(train, count):
    positions = np.arange(100, 100 + count)
    parts = list(feed.in_order(train.read, positions, BATCH))
    assert len(parts) == -(-count // BATCH)
    assert all(
        part["image"].shape == (BATCH, 8, 8, 3) and part["mask"].shape == (BATCH,) for part in parts
    )
    wanted = train.read(positions)
    for name in ("image", "label"):
        found = np.concatenate([part[name][part["mask"]] for part in parts])
        np.testing.assert_array_equal(found, wanted[name])
    for part in parts:  # padding is a real image, so nothing can overflow
        padding = part["image"][~part["mask"]]
        assert (padding == part["image"][0]).all()


@pytest.mark.slow
def test_shapes10_streams_like_it_is(shapes10_root):
    train = catalogue.open_dataset("shapes10", str(shapes10_root)).train
    own = np.arange(0, len(train), 3)
    images, summary = contents.decoded(train)
    chosen = feed.Order(summary.labels, own, 0, 64)
    resident = feed.resident(images, chosen)
    streaming = feed.streaming(train, chosen)
    found = itertools.islice(streaming.items(50, 56), 6)
    assert_same(
        list(found), [resident.fetch(resident.data, item) for item in resident.items(50, 56)]
    )


def test_no_steps_no_batches(train, own):
    assert batches(train, own, "streaming", 7, 7) == batches(train, own, "resident", 7, 7) == []


@pytest.mark.skipif(sys.platform != "linux", reason="no priorities of threads")
def test_readers_take_what_the_training_leaves():
    """They run at the lowest priority, the thread that trains at its own."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    seen = []

    def read(positions):
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return {"label": positions}

    split = types.SimpleNamespace(read=read, image_shape=(8, 8, 3))
    chosen = feed.Order(np.zeros(200, np.int32), np.arange(40), seed=0, batch_size=4)
    feeding = feed.streaming(split, chosen)
    seen.clear()  # of the first image, which this thread has read
    assert len(list(feeding.items(0, 5))) == 5
    assert set(seen) == {19} and os.getpriority(os.PRIO_PROCESS, 0) == own < 19


# What waits for the training
# ------------------------------------------------------------------------------


def test_what_waits_keeps_within_a_limit():
    """224 x 224 pixels in colour, 128 at a time, are 19 MB."""
    image = 224 * 224 * 3
    limit = 64 << 20
    for workers in (1, 2, 4, 8, 16):
        for batch_size in (1, 32, 128):
            ahead = feed.read_ahead(batch_size, image, workers, limit)
            part = -(-batch_size // ahead.parts)
            assembled = batch_size if ahead.parts > 1 else 0
            assert part * (ahead.parts - 1) < batch_size
            assert (ahead.waiting * part + assembled) * image <= limit
    assert feed.read_ahead(128, image, 0, limit).waiting == 3
    assert feed.read_ahead(512, image, 0, limit).waiting == 2  # one is read, the other trained on
    assert feed.read_ahead(128, 3072, 0, limit).waiting == 16
    assert feed.read_ahead(128, 3072, 4, limit) == feed.ReadAhead(4, 1, 2, 2)
    huge = feed.read_ahead(512, image, 4, limit)  # half the limit, besides the batch itself
    assert huge.waiting * -(-512 // huge.parts) * image <= limit // 2
    assert feed.read_ahead(8, limit, 4, limit).parts == 8


class Counted:
    """A split whose reads leave a file each."""

    image_shape = (8, 8, 3)

    def __init__(self, folder):
        self.folder = folder

    def read(self, positions):
        (self.folder / f"{time.time_ns()}-{os.getpid()}-{threading.get_ident()}").touch()
        images = np.zeros((len(positions), *self.image_shape), np.uint8)
        return {"image": images, "label": np.zeros(len(positions), np.int32)}


@pytest.mark.parametrize(
    "workers", [0, *[pytest.param(workers, marks=pytest.mark.slow) for workers in (1, 3)]]
)
def test_no_more_is_read_than_may_wait(tmp_path, workers, monkeypatch):
    monkeypatch.setattr(feed, "READ_AHEAD", 3 * 16 * 192)
    chosen = feed.Order(np.zeros(200, np.int32), np.arange(200), seed=0, batch_size=16)
    feeding = feed.streaming(Counted(tmp_path), chosen, workers)
    ahead = feed.read_ahead(16, 192, workers, feed.READ_AHEAD)
    assert 2 * 16 * 192 < feeding.ahead <= 3 * 16 * 192
    for read in tmp_path.iterdir():  # the first image, for what it imports
        read.unlink()
    items = feeding.items(0, 100)
    next(items)
    count = 0
    while count != (count := len(list(tmp_path.iterdir()))):  # until nothing is read any more
        time.sleep(1 if workers else 0.1)
    items.close()
    # That much waits, and one batch has been taken.
    assert count == ahead.waiting + ahead.parts
    assert feed.stacked([feeding, feeding]).ahead == 2 * feeding.ahead
    shared = feed.streaming(Counted(tmp_path), chosen, workers, num_feeds=3)
    assert shared.ahead == 2 * 16 * 192 if not workers else shared.ahead <= (16 + 12) * 192
    assert shared.ahead < feeding.ahead


@pytest.mark.parametrize(
    ("free", "limit"),
    [
        (1 << 40, feed.READ_AHEAD),
        (64 << 20, (32 << 20) - 2 * feed.SEMAPHORES),  # Docker's own choice
        ((1 << 20) - 4096, None),
        (0, None),
    ],
)
def test_what_processes_hand_over_fits_into_shared_memory(free, limit, train, own, monkeypatch):
    status = types.SimpleNamespace(f_bavail=free // 4096, f_frsize=4096)
    monkeypatch.setattr(feed.os, "statvfs", lambda path: status)
    chosen = feed.Order(contents.summary(train).labels, own, SEED, BATCH)
    feed.streaming(train, chosen, workers=0)
    if limit is None:
        with pytest.raises(InputError, match=r"--workers 2: .* shared memory .* --workers 0"):
            feed.streaming(train, chosen, workers=2)
        return
    seen = []
    real = feed.read_ahead
    monkeypatch.setattr(feed, "read_ahead", lambda *args: seen.append(args) or real(*args))
    feed.streaming(train, chosen, workers=2)
    assert min(seen[0][3], feed.READ_AHEAD) == limit


FED_FOR_EVER = """
import time
import numpy as np
from cnnlab.data import catalogue, feed

chosen = feed.Order(np.zeros(200, np.int32), np.arange(200), seed=0, batch_size=16)
items = feed.streaming(catalogue.open_dataset("tiny").train, chosen, 2).items(0, 100_000)
next(items)
print("fed", flush=True)
time.sleep(600)
"""


IMPORTED = """
import sys
import numpy as np
from cnnlab.data import catalogue, feed

train = catalogue.open_dataset("tiny").train
chosen = feed.Order(np.zeros(200, np.int32), np.arange(200), seed=0, batch_size=16)
names = "grain", "tensorflow_datasets"
before = [name in sys.modules for name in names]
feed.streaming(train, chosen)
print(*before, *(name in sys.modules for name in names))
"""


@pytest.mark.slow
def test_what_reading_takes_is_imported_before_other_threads_run(train):
    """While these packages are imported, a save in another thread would fail."""
    command = [sys.executable, "-c", IMPORTED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True", "True"]


@pytest.mark.slow
def test_readers_end_with_a_run_that_is_killed(tfds_root):
    process = subprocess.Popen(
        [sys.executable, "-c", FED_FOR_EVER], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == "fed\n"
        time.sleep(1)  # all that may wait has been read
        process.send_signal(signal.SIGKILL)
    until = time.monotonic() + 30
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < until:
            os.killpg(process.pid, 0)  # raises once its group is empty
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("readers are left over")
