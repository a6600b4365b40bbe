"""Runs and checkpoints under gs://, on a Google Cloud Storage of localhost (fake_gcs.py) that knows
no rename.
"""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from checkpoint_worker import metric, state
from PIL import Image
from run_folders import DATA, events
from scripts import ROOT, one_line_error, script

from cnnlab import files
from cnnlab.checkpoint import digest, manager
from cnnlab.checkpoint.manager import Checkpoints
from cnnlab.config import Config
from cnnlab.errors import CheckpointError, InputError
from cnnlab.training import run_folder

pytestmark = pytest.mark.machines
FLAGS = [
    "--dataset",
    "tiny",
    "--model",
    "softmax_regression",
    "--epochs",
    "2",
    "--batch-size",
    "20",
    "--test-on",
    "best",
]


def train(workdir, *more):
    return script("train", *FLAGS, "--workdir", workdir, *more)


def kill_at(gcs, wanted):
    """Train in gs://bucket/run; SIGKILL just before the object `wanted` is written for the first
    time.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {
        "JAX_PLATFORMS": "cpu"
    }
    command = [
        sys.executable,
        str(ROOT / "experiments" / "train.py"),
        *FLAGS,
        "--workdir",
        "gs://bucket/run",
    ]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:

        def kill(name):
            if name.startswith(wanted):
                process.send_signal(signal.SIGKILL)
                raise PermissionError("killed")  # the write of a dead process does not happen

        gcs.before = kill
        output, _ = process.communicate(timeout=120)
    gcs.before = lambda name: None
    assert process.returncode == -signal.SIGKILL, output


def timeless(text):
    """A JSON text without what it says of seconds, and without the seal that covers them."""
    return re.sub(r'"[a-z_]*seconds?": [^,}]*|\n  "sha256": "[0-9a-f]*"', "", text)


def test_a_run_that_was_killed_ends_as_one_that_was_not(gcs, tfds_root, tmp_path):
    """The same command again: every parameter, metric and test figure is bit for bit that of a
    local run.
    """
    assert train(tmp_path / "local").returncode == 0
    gcs.change("run/", b"")  # what "create folder" in a browser leaves
    kill_at(gcs, "run/checkpoints/18/commit_success.txt")
    assert "run/checkpoints/18/about.json" in gcs.names() and "run/summary.json" not in gcs.names()
    done = train("gs://bucket/run")
    assert done.returncode == 0 and "resuming after step 9 of 18" in done.stdout, done.stderr
    here = tmp_path / "local"
    there = files.path("gs://bucket/run")
    for step in (9, 18):
        about = [digest.read_about(path / "checkpoints", step) for path in (here, there)]
        assert about[0]["leaves"] == about[1]["leaves"] and about[0]["metric"] == about[1]["metric"]
    for name in ("summary.json", "data.json", "versions.json", "metrics.jsonl"):
        assert timeless((there / name).read_text()) == timeless((here / name).read_text())
    assert (there / "metrics.jsonl").read_text().count("\n") == 2
    assert [e for e in events(there) if "second" not in e[0]] == [
        e for e in events(here) if "second" not in e[0]
    ]
    assert files.children(there) == {path.name for path in here.iterdir()} - {"lock"}
    with files.path("gs://bucket/run/curves.png").open("rb") as file, Image.open(file) as picture:
        assert np.asarray(picture.convert("L")).std() > 10

    again = train("gs://bucket/run")
    assert again.stdout.splitlines() == done.stdout.splitlines()[-2:]
    assert "seed: 0 -> 1" in one_line_error(train("gs://bucket/run", "--seed", "1"))
    found = json.loads(script("evaluate", "gs://bucket/run", "--weights", "best", "--json").stdout)
    assert (
        found["confusion"] == json.loads((here / "summary.json").read_text())["test"]["confusion"]
    )
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "black.png")
    seen = script("predict", "gs://bucket/run", tmp_path / "black.png")
    assert seen.stdout.startswith(f"{tmp_path}/black.png: class 0 "), seen.stderr
    student = [
        *FLAGS,
        "--epochs",
        "1",
        "--loss",
        "distillation,alpha=1",
        "--teacher",
        "gs://bucket/run",
    ]
    assert script("train", *student, "--workdir", "gs://bucket/student").returncode == 0


def test_what_cannot_be_a_run_folder_is_one_line(gcs, tfds_root):
    assert "gs:// names no folder" in one_line_error(train("gs://"))
    assert "names no folder; give gs://BUCKET/FOLDER" in one_line_error(train("gs://bucket/"))
    assert "cannot be written to gs://other/run" in one_line_error(train("gs://other/run"))
    gcs.change("notes/mine.txt", b"1")
    assert "is not empty and holds no run" in one_line_error(train("gs://bucket/notes"))
    assert "is no run folder" in one_line_error(script("evaluate", "gs://bucket/notes"))

    def refuse(name):
        raise PermissionError(f"nobody may write {name}")

    gcs.before = refuse
    assert "nobody may write run/.probe-" in one_line_error(train("gs://bucket/run"))
    assert gcs.names() == ["notes/mine.txt"]


def test_without_its_package_gs_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"^gs://bucket/run needs the package gcsfs: pip install -e '\.\[gcs\]'$"
    ):
        run_folder.default_path(Config.of(workdir="gs://bucket/run"))


def test_a_kill_between_any_two_writes_leaves_only_steps_that_verify(gcs):
    """Four saves; after each of their changes to the bucket a new process finds whole steps, and
    goes on from them.
    """
    folder = "gs://bucket/checkpoints"
    committed = {0: []}  # after how many changes which steps were sure to be there
    with Checkpoints(folder, keep=1) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, state(step, 50), metric=metric(step))
            checkpoints.wait()
            committed[len(gcs.history)] = checkpoints.steps()
            assert set(checkpoints.steps()) == manager.kept(
                {s: metric(s) for s in range(1, step + 1)}, 1
            )
    history = list(gcs.history)
    gone = [name for name, content in history if content is None and "points/1/" in name]
    assert gone[:2] == [f"checkpoints/1/{name}" for name in ("commit_success.txt", "about.json")]
    for kill in range(len(history) + 1):
        gcs.replay(history[:kill])
        with Checkpoints(folder, read_only=True) as reader:
            listed = reader.steps()
            assert max(listed, default=0) >= max(
                committed[max(i for i in committed if i <= kill)], default=0
            )
            for step in listed:
                found = reader.restore(state(0, 50), which=step).tree["params"]
                wanted = state(step, 50)["params"]
                assert all(found[name].tobytes() == wanted[name].tobytes() for name in wanted)
        if kill % 7 == 0:  # the next start sweeps: what is left belongs to steps
            Checkpoints(folder, keep=1).close()
            assert {int(name.split("/")[1]) for name in gcs.names("checkpoints/")} == set(listed)


def test_a_step_without_its_mark_is_not_listed_and_is_saved_anew(gcs):
    folder = "gs://bucket/checkpoints"
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step, 50))
    gcs.change("checkpoints/2/commit_success.txt", None)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == [1] and checkpoints.restore(state(0, 50)).step == 1
        assert gcs.names("checkpoints/2/") == []
        checkpoints.save(2, state(2, 50))
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]


def copied(gcs, folder, name, without=("commit_success.txt",)):
    """Copy a local folder into the bucket, all but the files of some names."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in without:
            gcs.change(f"{name}/{path.relative_to(folder)}", path.read_bytes())


def test_a_copy_without_commit_marks_is_read_verified_and_says_so(gcs, tmp_path, capsys):
    """An earlier Orbax marked no local steps, and one may copy a choice of files."""
    with Checkpoints(tmp_path / "local") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step, 50), metric=metric(step))
    assert (tmp_path / "local/2/commit_success.txt").exists()  # that of today does
    copied(gcs, tmp_path / "local", "checkpoints")
    with Checkpoints("gs://bucket/checkpoints", read_only=True) as reader:
        assert reader.steps() == [1, 2]
        assert_state(reader.restore(state(0, 50)), 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gs://bucket/checkpoints/2/state has no commit mark")
    with Checkpoints("gs://bucket/checkpoints", keep=2) as checkpoints:  # nothing is swept
        checkpoints.save(3, state(3, 50), metric=None)
        checkpoints.wait()
        best = max((1, 2), key=metric)
        assert checkpoints.steps() == sorted({best, 2, 3})
        assert_state(checkpoints.restore(state(0, 50), which="best"), best)
        gcs.change("checkpoints/2/about.json", None)  # as a deletion that was cut short
        assert 2 not in checkpoints.steps()


def assert_state(restored, step):
    assert restored.step == step and restored.rejected == ()
    for name, leaf in state(step, 50)["params"].items():
        assert restored.tree["params"][name].tobytes() == leaf.tobytes()


def test_damage_in_a_copy_without_commit_marks_is_noticed(gcs, tmp_path):
    with Checkpoints(tmp_path / "local") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step, 5000))
    copied(gcs, tmp_path / "local", "checkpoints")
    largest = max(gcs.names("checkpoints/2/"), key=lambda name: len(gcs.objects[name][0]))
    gcs.change(largest, gcs.objects[largest][0][:-1])
    with Checkpoints("gs://bucket/checkpoints", read_only=True) as reader:
        restored = reader.restore(state(0, 5000))
    assert restored.step == 1 and "step 2: " in restored.rejected[0]


def test_a_copied_run_is_evaluated_and_not_begun_again(gcs, tfds_root, tmp_path):
    assert train(tmp_path / "local").returncode == 0
    copied(gcs, tmp_path / "local", "run")
    copied(gcs, tmp_path / "local", "cut", ("commit_success.txt", "about.json"))
    done = script("evaluate", "gs://bucket/run", "--weights", "best", "--json")
    assert "has no commit mark" in done.stderr
    summary = json.loads((tmp_path / "local/summary.json").read_text())
    assert json.loads(done.stdout)["confusion"] == summary["test"]["confusion"]
    gcs.change("run/summary.json", None)
    again = train("gs://bucket/run")
    assert "resuming after step 18 of 18" in again.stdout, again.stderr
    assert one_line_error(script("evaluate", "gs://bucket/cut")).endswith(
        "holds no checkpoint yet, only parts of step 9, 18: a save under way, or a copy that was "
        "cut short"
    )


@pytest.mark.parametrize("only", ["files", "leaves"])
def test_a_flipped_bit_is_rejected_and_the_step_before_is_restored(gcs, monkeypatch, only):
    """By the digest of the file as by that of the leaf, each with the other switched off; the next
    save moves it.
    """
    if only == "files":
        monkeypatch.setattr(digest, "digest", lambda name, array: "anything")
    else:
        monkeypatch.setattr(digest, "check_files", lambda folder, about: None)
    with Checkpoints("gs://bucket/checkpoints", keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step, 5000))
            checkpoints.wait()
        largest = max(gcs.names("checkpoints/2/"), key=lambda name: len(gcs.objects[name][0]))
        content = bytearray(gcs.objects[largest][0])
        content[len(content) // 2] ^= 1
        gcs.change(largest, bytes(content))
        found = checkpoints.restore(state(0, 5000))
        assert found.step == 1 and found.rejected[0].startswith("step 2: ")
        checkpoints.save(2, state(2, 5000))
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2] and checkpoints.restore(state(0, 5000)).step == 2
    gone = [
        name
        for name, content in gcs.history
        if content is None and name.startswith("checkpoints/2/")
    ]
    # From then on it is no step, wherever a kill comes
    assert gone[:2] == ["checkpoints/2/commit_success.txt", "checkpoints/2/about.json"]
    aside = gcs.names("checkpoints/rejected/2-")
    assert any(gcs.objects[name][0] == content for name in aside)


def test_a_save_that_fails_says_so_and_leaves_nothing(gcs):
    with Checkpoints("gs://bucket/checkpoints") as checkpoints:
        checkpoints.save(1, state(1, 50))
        checkpoints.wait()

        def refuse(name):
            if name.endswith("2/state/_METADATA"):
                raise PermissionError("the quota is used up")

        gcs.before = refuse
        with pytest.raises(
            CheckpointError,
            match=r"checkpoint step 2 in gs://bucket/checkpoints was not saved: .*quota",
        ):
            checkpoints.save(2, state(2, 50))
            checkpoints.wait()
        assert gcs.names("checkpoints/2/") == [] and checkpoints.steps() == [1]
        gcs.before = lambda name: None
        checkpoints.save(2, state(2, 50))
    assert checkpoints.steps() == [1, 2]


def test_two_processes_of_one_machine_cannot_write_one_run(gcs):
    path = files.path("gs://bucket/run")
    with (
        run_folder.RunFolder(path, Config(), {}, DATA),
        pytest.raises(InputError, match="is in use by another process"),
    ):
        run_folder.RunFolder(path, Config(), {}, DATA)
    run_folder.RunFolder(path, Config(), {}, DATA).close()


def test_what_a_library_calls_a_failed_read_is_one_line(gcs, monkeypatch):
    path = files.path("gs://bucket/run")

    def fail(path, mode):
        raise RuntimeError("401:\nanonymous caller")

    monkeypatch.setattr(files._gcs(), "open", fail)
    with pytest.raises(
        InputError, match=r"^gs://bucket/run/config\.json cannot be read \(401: anonymous caller\)"
    ):
        run_folder.read(path)
