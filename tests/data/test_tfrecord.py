"""TFRecord files: written by TensorFlow or like it, damaged, compressed, in several shards, in a
bucket.
"""

import base64
import json
import pickle

import fsspec
import numpy as np
import pytest
from scripts import script
from tfrecords import convert, framed

from cnnlab.data import catalogue, contents, tfrecord
from cnnlab.data.records import Shards
from cnnlab.errors import InputError

RECORDS = [b"", b"one", bytes(range(40))]
# RECORDS, as TensorFlow 2.21's tf.io.TFRecordWriter writes them: plainly and compressed.
WRITTEN = base64.b64decode(
    "AAAAAAAAAAApA5gH2OqCogMAAAAAAAAAsJlJDm9uZQFAVQgoAAAAAAAAAP9wFkoAAQIDBAUGBwgJCgsMDQ4PEBESExQVFhcY"
    "GRobHB0eHyAhIiMkJSYndRGJgw=="
)
COMPRESSED = {
    "GZIP": (
        "H4sIAAAAAAAAA2NggABN5hnsN141LWKG8jfM9OTLz0tldAjl0IAK/S8Q82JgZGJmYWVj5+Dk4ubh5eMX"
        "EBQSFhEVE5eQlJKWkZWTV1BUUlZRVVMvFexsBgDVHtPCWwAAAA=="
    ),
    "ZLIB": (
        "eJxjYIAATeYZ7DdeNS1ihvI3zPTky89LZXQI5dCACv0vEPNiYGRiZmFlY+fg5OLm4eXjFxAUEhYRFROX"
        "kJSSlpGVk1dQVFJWUVVTLxXsbAYAmCYNyg=="
    ),
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_tensorflow_wrote_comes_back(tmp_path):
    assert b"".join(map(framed, RECORDS)) == WRITTEN
    file = tmp_path / "a"
    file.write_bytes(WRITTEN)
    records = tfrecord.TFRecords([str(file)])
    assert len(records) == 3
    assert records.__getitems__([0, 1, 2]) == RECORDS
    assert records.__getitems__([2, 0, 2]) == [RECORDS[2], RECORDS[0], RECORDS[2]]
    assert records.__getitems__([]) == []


def test_several_files_are_one_list(tmp_path):
    rng = np.random.default_rng(0)
    every = [rng.bytes(int(n)) for n in rng.integers(0, 3000, 50)]
    parts = every[:20], [], every[20:21], every[21:]
    paths = [str(tmp_path / f"part{i}") for i in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        with open(path, "wb") as file:
            file.write(b"".join(map(framed, part)))
    records = tfrecord.TFRecords(paths)
    order = rng.permutation(50).tolist()
    assert records.__getitems__(order) == [every[i] for i in order]
    elsewhere = pickle.loads(pickle.dumps(records))  # as a reader process has it
    assert elsewhere.__getitems__(order) == [every[i] for i in order]


@pytest.mark.parametrize("place", range(len(WRITTEN)))
def test_any_changed_byte_is_noticed(place, tmp_path):
    damaged = bytearray(WRITTEN)
    damaged[place] ^= 1 << place % 8
    file = tmp_path / "a"
    file.write_bytes(damaged)
    with pytest.raises(OSError, match=r"no record begins|checksum|ends within"):
        records = tfrecord.TFRecords([str(file)])
        records.__getitems__(range(len(records)))


@pytest.mark.parametrize("size", range(1, len(WRITTEN)))
def test_any_lost_end_is_noticed(size, tmp_path):
    ends = np.cumsum([len(framed(record)) for record in RECORDS]).tolist()
    file = tmp_path / "a"
    file.write_bytes(WRITTEN[:size])
    shards = Shards("tfrecord", (str(file),), ("",), (3,))
    message = "records where 3 are promised" if size in ends else "no record begins|ends within"
    with pytest.raises(OSError, match=message):
        shards.__getitems__([0])


@pytest.mark.parametrize("method", COMPRESSED)
def test_compressed_files_are_refused(method, tmp_path):
    file = tmp_path / "a"
    file.write_bytes(base64.b64decode(COMPRESSED[method]))
    with pytest.raises(InputError, match=rf"compressed \({method}\).*without compression"):
        tfrecord.TFRecords([str(file)])


def test_a_length_that_looks_compressed_is_none(tmp_path):
    """A record of 0x8b1f bytes begins as a GZIP file does."""
    record = bytes(0x8B1F)
    file = tmp_path / "a"
    file.write_bytes(framed(record))
    assert tfrecord.TFRecords([str(file)]).__getitems__([0]) == [record]


def test_the_index_is_kept_until_the_file_changes(tmp_path, cache, monkeypatch):
    file = tmp_path / "a"
    file.write_bytes(WRITTEN)
    made = []
    index = tfrecord.index
    monkeypatch.setattr(tfrecord, "index", lambda path: made.append(path) or index(path))
    for state, count in (("1", 1), ("1", 1), ("2", 2)):
        assert len(tfrecord.TFRecords([str(file)], [state])) == 3
        assert len(made) == count


@pytest.mark.parametrize("shards", [1, 3])
def test_a_data_set_is_the_same_as_tfrecord(shards, tfds_root, tmp_path, cache):
    convert(tfds_root / "tiny" / "1.0.0", tmp_path / "tiny" / "1.0.0", shards)
    ours = catalogue.open_dataset("tiny", str(tmp_path))
    theirs = catalogue.open_dataset("tiny", str(tfds_root))
    assert ours.class_names == theirs.class_names
    for split in ("train", "test"):
        images, summary = contents.decoded(getattr(ours, split))
        wanted, wanted_summary = contents.decoded(getattr(theirs, split))
        # Records were dealt out to the shards in turn.
        order = np.concatenate([np.arange(len(images))[i::shards] for i in range(shards)])
        np.testing.assert_array_equal(images, wanted[order])
        np.testing.assert_array_equal(summary.labels, wanted_summary.labels[order])


def test_damage_in_a_data_set_is_one_line(tfds_root, tmp_path, cache):
    folder = convert(tfds_root / "tiny" / "1.0.0", tmp_path / "tiny" / "1.0.0")
    (file,) = folder.glob("tiny-train*")
    content = bytearray(file.read_bytes())
    content[tfrecord.index(str(file))[100, 0] + 30] ^= 1
    file.write_bytes(content)
    train = catalogue.open_dataset("tiny", str(tmp_path)).train
    with pytest.raises(InputError, match=r"tiny 1.0.0 train, image 100 cannot be read"):
        contents.decoded(train)


def test_a_data_set_behind_a_url(tfds_root, tmp_path, cache):
    """fsspec's file system in memory stands for a bucket."""
    folder = convert(tfds_root / "tiny" / "1.0.0", tmp_path / "tiny", 2)
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/tiny/1.0.0", recursive=True)
    try:
        ours = catalogue.open_dataset("tiny", "memory://bucket")
        assert ours.test.read([3, 0])["image"].shape == (2, 8, 8, 3)
        images, _ = contents.decoded(ours.train)
        wanted, _ = contents.decoded(catalogue.open_dataset("tiny", str(tfds_root)).train)
        order = np.concatenate([np.arange(200)[i::2] for i in range(2)])
        np.testing.assert_array_equal(images, wanted[order])
        with pytest.raises(InputError, match="did you mean 'tiny'"):
            catalogue.open_dataset("tinny", "memory://bucket")
    finally:
        memory.rm("/bucket", recursive=True)


@pytest.mark.machines
def test_training_streams_from_a_bucket(tfds_root, tmp_path, cache, gcs):
    """A run on gs:// data is the run on the same files here, reader processes included."""
    folder = convert(tfds_root / "tiny" / "1.0.0", tmp_path / "data" / "tiny" / "1.0.0", 2)
    for file in folder.iterdir():
        with fsspec.open(f"gs://bucket/data/tiny/1.0.0/{file.name}", "wb") as copy:
            copy.write(file.read_bytes())
    summaries = []
    for where in ("gs://bucket/data", str(tmp_path / "data")):
        run = tmp_path / f"run{len(summaries)}"
        quick = ["--epochs", "2", "--batch-size", "32", "--model", "mlp,hidden=[8]"]
        feed = ["--feed", "streaming", "--workers", "1", "--data-dir", where]
        done = script("train", "--dataset", "tiny", *quick, *feed, "--workdir", run)
        assert done.returncode == 0, done.stderr
        summaries.append(json.loads((run / "summary.json").read_text()))
    assert summaries[0]["test"] == summaries[1]["test"]


def test_urls_that_nothing_opens():
    with pytest.raises(InputError, match="nonsense:// cannot be opened"):
        catalogue.open_dataset("tiny", "nonsense://bucket")


def test_array_record_behind_a_url(tfds_root, cache):
    memory = fsspec.filesystem("memory")
    memory.put(str(tfds_root / "tiny" / "1.0.0"), "/bucket2/tiny/1.0.0", recursive=True)
    try:
        with pytest.raises(InputError, match=r"local disk only.*as tfrecord"):
            catalogue.open_dataset("tiny", "memory://bucket2")
    finally:
        memory.rm("/bucket2", recursive=True)


@pytest.fixture
def bucket(tfds_root, tmp_path):
    """Tiny as TFRecord in fsspec's memory."""
    folder = convert(tfds_root / "tiny" / "1.0.0", tmp_path / "tiny")
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket3/tiny/1.0.0", recursive=True)
    yield memory
    memory.rm("/bucket3", recursive=True)


def test_changes_behind_a_url_whose_listing_says_nothing(bucket, cache, monkeypatch):
    """A web server lists names; the headers of a file say when it changes."""
    listed = type(bucket).ls

    def names(self, path, detail=True, **more):
        files = listed(self, path, detail=True, **more)
        return [{key: file[key] for key in ("name", "size", "type")} for file in files]

    monkeypatch.setattr(type(bucket), "ls", names)
    before = catalogue.open_dataset("tiny", "memory://bucket3").test
    assert catalogue.open_dataset("tiny", "memory://bucket3").test.fingerprint == before.fingerprint
    (file,) = (path for path in bucket.find("/bucket3") if "tiny-test" in path)
    bucket.pipe_file(file, bucket.cat_file(file))
    assert catalogue.open_dataset("tiny", "memory://bucket3").test.fingerprint != before.fingerprint
    silent = {"name": file, "size": 1, "type": "file"}
    monkeypatch.setattr(type(bucket), "info", lambda self, path, **more: silent)
    with pytest.raises(
        InputError, match="the server does not say when it changes; copy the folder"
    ):
        catalogue.open_dataset("tiny", "memory://bucket3")


def test_our_own_sets_are_not_prepared_behind_a_url(bucket):
    with pytest.raises(
        InputError, match="cifar10 is not in memory://bucket3; prepare it on a disk"
    ):
        catalogue.open_dataset("cifar10", "memory://bucket3")
