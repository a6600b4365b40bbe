"""What machines share in a bucket, on a Google Cloud Storage of localhost: one makes it, the others
have it; whatever is wrong there costs time and a line.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from scripts import ROOT, one_line_error, script
from small_data import drawn, write_dataset

from cnnlab import verified
from cnnlab.config import Config
from cnnlab.data import cache, contents, decoded_file
from cnnlab.data.dataset import Split
from cnnlab.data.prepared import Choice, open_folder
from cnnlab.data.storage import Folder
from cnnlab.errors import InputError

pytestmark = pytest.mark.machines
SHARED = "gs://bucket/cache"
IMAGE = (8, 8, 3)


@pytest.fixture
def machine(gcs, tmp_path, monkeypatch):
    """Continue on another machine, by its name: with its own cache folder."""

    def machine(name):
        verified.share(None)
        monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / name))
        verified.share(SHARED)
        return tmp_path / name

    yield machine
    verified.share(None)


def numbers():
    return {"numbers": np.arange(100)}


def not_made():
    pytest.fail("another machine has it")


def test_what_one_machine_makes_another_has(machine, gcs):
    here = machine("here")
    cache.arrays("some", numbers)
    there = machine("there")
    np.testing.assert_array_equal(cache.arrays("some", not_made)["numbers"], np.arange(100))
    assert gcs.names() == ["cache/some.arrays"]
    # A bucket is a cache folder, byte for byte
    (content,) = {(folder / "some.arrays").read_bytes() for folder in (here, there)}
    assert gcs.objects["cache/some.arrays"][0] == content
    assert [path.name for path in there.iterdir()] == ["some.arrays"]


def test_what_a_machine_had_before_is_shared_once(machine, gcs, monkeypatch):
    machine("here")
    verified.share(None)
    cache.arrays("some", numbers)
    assert gcs.names() == []
    machine("here")
    for _ in range(2):
        cache.arrays("some", not_made)
    assert [name for name, _ in gcs.history if "probe" not in name] == ["cache/some.arrays"]
    machine("here")
    cache.arrays("some", not_made)
    assert [name for name, _ in gcs.history if "probe" not in name] == ["cache/some.arrays"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "another"])
def test_a_damaged_object_is_noticed_and_replaced(machine, gcs, capsys, damage):
    machine("here")
    cache.arrays("other", lambda: {"numbers": np.arange(100) + 1})
    cache.arrays("some", numbers)
    sound = gcs.objects["cache/some.arrays"][0]
    gcs.change(
        "cache/some.arrays",
        {
            "flipped": sound[:700] + bytes([sound[700] ^ 1]) + sound[701:],
            "cut": sound[:-1],
            "empty": b"",
            "another": gcs.objects["cache/other.arrays"][0],
        }[damage],
    )
    machine("there")
    np.testing.assert_array_equal(cache.arrays("some", numbers)["numbers"], np.arange(100))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cache: gs://bucket/cache/some.arrays is damaged")
    assert gcs.objects["cache/some.arrays"][0] == sound
    machine("elsewhere")
    cache.arrays("some", not_made)
    assert capsys.readouterr().err == ""


def test_two_machines_may_make_the_same(machine, gcs):
    """The other one's object appears after this one has looked for it: it stays."""
    machine("there")
    cache.arrays("some", numbers)
    theirs = gcs.objects["cache/some.arrays"]
    del gcs.objects["cache/some.arrays"]
    machine("here")

    def late():
        gcs.objects["cache/some.arrays"] = theirs
        return numbers()

    cache.arrays("some", late)
    assert gcs.objects["cache/some.arrays"] is theirs


def test_a_bucket_that_fails_later_on_is_done_without(machine, gcs, capsys):
    machine("here")

    def refuse(name):
        raise PermissionError("the quota is used up")

    gcs.before = refuse
    for name in ("a", "b"):
        np.testing.assert_array_equal(cache.arrays(name, numbers)["numbers"], np.arange(100))
        cache.arrays(name, not_made)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cache: gs://bucket/cache is not used any more: ") and "quota" in line


def test_what_cannot_be_shared_is_one_line(machine, gcs):
    with pytest.raises(InputError, match=r"^--cache must be gs://BUCKET/FOLDER, got /nfs/cache"):
        Config.of(cache="/nfs/cache")
    for inside in ("gs://bucket/run", "gs://bucket/run/", "gs://bucket/run/cache"):
        with pytest.raises(InputError, match=r"^--cache gs://.* must not be in --workdir gs://"):
            Config.of(cache=inside, workdir="gs://bucket/run")
    assert Config.of(cache="gs://bucket/runs", workdir="gs://bucket/run").machine.cache
    with pytest.raises(InputError, match="gs://bucket names no folder"):
        verified.share("gs://bucket")
    with pytest.raises(InputError, match=r"^the cache cannot be written to gs://other/cache: "):
        verified.share("gs://other/cache")
    gcs.before = lambda name: (_ for _ in ()).throw(PermissionError("nobody may write"))
    with pytest.raises(InputError, match=r"^the cache cannot be written to gs://bucket/.*nobody"):
        verified.share("gs://bucket/more")


@pytest.fixture
def copies(tfds_root, tmp_path):
    """The same data set on two machines, where its files are of other times."""
    for name in ("here", "there"):
        shutil.copytree(tfds_root / "tiny", tmp_path / "data" / name / "tiny")
    return {name: tmp_path / "data" / name / "tiny" / "1.0.0" for name in ("here", "there")}


def opened(folder) -> Split:
    return open_folder("tiny", Folder.at(folder), None, Choice()).train


@pytest.fixture
def passes(monkeypatch):
    """The names of the splits that were decoded."""
    names = []
    decode = contents._passes

    def noted(split, progress):
        names.append(split.name)
        return decode(split, progress)

    monkeypatch.setattr(contents, "_passes", noted)
    return names


def test_a_copy_of_a_data_set_is_the_same_data_and_another_is_not(
    machine, copies, passes, tmp_path
):
    machine("here")
    images, _ = contents.decoded(opened(copies["here"]))
    machine("there")
    fetched, _ = contents.decoded(opened(copies["there"]))
    assert len(passes) == 1
    np.testing.assert_array_equal(fetched, images)
    splits = {"train": drawn(200, 3, IMAGE, seed=2), "test": drawn(50, 3, IMAGE, seed=1)}
    write_dataset(tmp_path / "other", "tiny", splits, 3, IMAGE)
    other, _ = contents.decoded(opened(tmp_path / "other" / "tiny" / "1.0.0"))
    assert len(passes) == 2 and (other != images).any()


@pytest.mark.parametrize("damaged", [False, True])
def test_a_file_of_decoded_images_is_fetched_and_every_image_verified(
    machine, copies, passes, gcs, capsys, damaged
):
    machine("here")
    contents.on_disk(opened(copies["here"]), None)
    (name,) = (name for name in gcs.names() if name.endswith(".rows"))
    sound = gcs.objects[name][0]
    # The pixel of an image that is not in the sample
    place = (decoded_file.SAMPLE + 1) * np.prod(IMAGE)
    if damaged:
        gcs.change(name, sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
    folder = machine("there")
    split, _ = contents.on_disk(opened(copies["there"]), None)
    assert len(passes) == (2 if damaged else 1)
    assert len(capsys.readouterr().err.splitlines()) == damaged
    assert split.records.path.is_relative_to(folder) and gcs.objects[name][0] == sound
    assert split.records.path.read_bytes() == sound


def test_a_file_of_decoded_images_that_is_too_large_is_not_fetched(machine, copies, gcs):
    machine("here")
    contents.on_disk(opened(copies["here"]), None)
    folder = machine("there")
    assert contents.on_disk(opened(copies["there"]), 1e-9) is None
    assert not list(folder.glob("*.rows"))


FLAGS = [
    *("--dataset", "tiny", "--model", "softmax_regression", "--epochs", "1", "--batch-size", "20"),
    *("--progress", "off", "--cache", SHARED),
]


def train(name, tmp_path, processes=1):
    """Train on another machine, or several, and return what each counted."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    several = ["--coordinator", address, "--processes", str(processes), "--process"]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    with contextlib.ExitStack() as held:
        children = []
        for i in range(processes):
            command = [sys.executable, "tests/support/counting.py", tmp_path / f"{name}-{i}.json"]
            command += ["experiments/train.py", *FLAGS, "--workdir", tmp_path / name]
            command += [*several, str(i)] if processes > 1 else []
            here = {"JAX_PLATFORMS": "cpu", "CNNLAB_CACHE": str(tmp_path / f"cache-{name}-{i}")}
            child = subprocess.Popen(
                command,
                cwd=ROOT,
                env=inherited | here | {"JAX_NUM_CPU_DEVICES": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            children.append(held.enter_context(child))
            held.callback(child.kill)
        for child in children:
            _, errors = child.communicate(timeout=240)
            assert child.returncode == 0, errors
    return [json.loads((tmp_path / f"{name}-{i}.json").read_text()) for i in range(processes)]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_machine_that_is_made_anew_compiles_and_decodes_nothing(
    gcs, tfds_root, tmp_path, processes
):
    """Nor do the other hosts of a run, of which JAX keeps no programs; they do not even decode in
    the first run.
    """
    first = train("first", tmp_path, processes)
    assert sum(counts["compiled"] for counts in first) > 5
    assert [counts["decoded"] for counts in first] == [2, 0][:processes]
    for counts in train("second", tmp_path, processes):
        assert (counts["compiled"], counts["decoded"]) == (0, 0) and counts["programs"] > 5
    results = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("first", "second")]
    rows = [[json.loads(line) for line in text.splitlines()] for text in results]
    losses = [[row["train_loss"] for row in run] for run in rows]
    assert losses[0] == losses[1]


def test_a_cache_that_cannot_be_had_ends_a_run_before_it_begins(gcs, tfds_root, tmp_path):
    flags = [*FLAGS[:-1], "gs://other/cache", "--workdir", tmp_path / "run"]
    error = one_line_error(script("train", *flags))
    assert error.startswith("error: the cache cannot be written to gs://other/cache: ")
    assert not (tmp_path / "run").exists()
