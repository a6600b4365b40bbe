"""A study on a local Ray cluster, as a user starts it: the numbers of the local executor, whatever
is killed.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from scripts import ROOT, one_line_error, script

from cnnlab.cli import parse
from cnnlab.errors import InputError
from cnnlab.study.plan import Study

pytestmark = pytest.mark.machines
SMALL = [
    "--dataset", "tiny", "--model", "softmax_regression", "--batch-size", "32", "--epochs", "3",
    "--seeds", "2",
    "--losses", "own.first", "own.second", "--label-noise", "0", "0.3", "--devices", "1",
]  # fmt: skip

# The losses' module is imported by every process that trains: it notes which trainings begin and
# end, saves after each epoch, and does to the first cell that gets there what the test wants.
OWN = """
import os, signal, sys, time
from cnnlab.losses import cross_entropy
from cnnlab.losses import mean_squared_error as second
from cnnlab.study import seeds
from cnnlab.training import loop

def first(logits, labels):
    if os.environ.get("FAILS") and sys.argv[0].endswith("default_worker.py"):
        with open("calls", "a") as file:
            file.write("called\\n")
        raise RuntimeError("a worker's nerves")
    return cross_entropy(logits, labels)

class Watched(loop.Observer):
    def __init__(self, observer):
        self.observer = observer

    def first_step(self, progress):
        self.observer.first_step(progress)

    def epoch(self, row):
        self.observer.epoch(row)
        name = f"AT_EPOCH_{row['epoch']}"
        if name in os.environ:
            try:
                os.close(os.open(name, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            exec(os.environ[name])

def fit(experiment, progress, epochs, *, observer, **more):
    with open("log", "a") as file:
        file.write(f"begun at {progress.state.step.tolist()[0]}\\n")
    done = trained(experiment, progress, epochs, observer=Watched(observer), **more)
    with open("log", "a") as file:
        file.write("ended\\n")
    return done

trained, loop.fit, seeds.SAVE_SECONDS = loop.fit, fit, 0.0
"""


@pytest.fixture(scope="module")
def ray_folder():
    """Ray's own files and sockets, whose paths must be short."""
    pytest.importorskip("ray")
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def processes(ray_folder):
    """What runs of the clusters that had their files there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"RAY_TMPDIR={ray_folder}".encode() in path.read_bytes().split(b"\0"):
                found.append((path.parent / "cmdline").read_text())
        except OSError:
            pass
    return [line for line in found if line]


@pytest.fixture(scope="module")
def whole(tfds_root, tmp_path_factory):
    """results.csv of a study trained here."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "own.py").write_text(OWN)
    done = script("ablate", *SMALL, "--workdir", folder / "study", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "log").read_text().count("ended") == 4
    return (folder / "study/results.csv").read_bytes()


def environment(ray_folder, **env):
    """A user's, with the folder of Ray's files."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    return {**inherited, "JAX_PLATFORMS": "cpu", "RAY_TMPDIR": ray_folder, **env}


def start(folder, ray_folder, **env):
    """Start the study on Ray in a folder where only the losses are, as a terminal does: in a
    process group.
    """
    (folder / "own.py").write_text(OWN)
    command = [
        sys.executable,
        str(ROOT / "experiments/ablate.py"),
        *SMALL,
        "--workdir",
        "study",
        "--executor",
        "ray",
    ]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment(ray_folder, **env), stdout=pipe,
        stderr=pipe,
                            text=True, start_new_session=True)  # fmt: skip


def stopped(folder, ray_folder, send, number, status):
    """Stop the study by a signal while a cell's second epoch is recorded.

    Returns:
      The steps that were saved, the log, and how many cells were finished, which others had begun:
      one that was stopped between its training and its test is trained to its end and yet
      unfinished.
    """
    process = start(folder, ray_folder, AT_EPOCH_2="time.sleep(3)")
    deadline = time.monotonic() + 120
    while not (folder / "AT_EPOCH_2").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    send(process.pid, number)
    _, errors = process.communicate(timeout=120)
    said = (
        f"stopped by {number.name}, what was under way is saved; to resume: "
        ".*ablate.py .* --executor ray\n"
    )
    assert process.returncode == status and re.fullmatch(said, errors), errors
    assert not processes(ray_folder)
    (folder / "AT_EPOCH_2").unlink()
    saved = {
        path: int(path.name)
        for path in folder.glob("study/*.checkpoints/training/*")
        if path.name.isdecimal() and int(path.name)
    }
    steps = list(saved.values())
    # at once, and not as the second epoch's end had left it
    assert max(steps, default=0) > 10, steps
    finished = {path.stem.rsplit("-")[-1] for path in folder.glob("study/cells/*.json")}
    # without a step: its worker was stopped before the first
    begun = finished | {path.parents[1].stem for path in saved}
    return steps, (folder / "log").read_text().split("\n"), len(finished), len(begun)


def test_interrupted_and_then_its_workers_killed_a_study_trains_no_cell_twice(
    whole, ray_folder, tmp_path
):
    steps, before, finished, begun = stopped(tmp_path, ray_folder, os.killpg, signal.SIGINT, 130)
    kill = "os.kill(os.getpid(), signal.SIG{})".format
    process = start(tmp_path, ray_folder, AT_EPOCH_2=kill("TERM"), AT_EPOCH_3=kill("KILL"))
    output, errors = process.communicate(timeout=240)
    assert (process.returncode, errors) == (0, ""), output
    assert (tmp_path / "study/results.csv").read_bytes() == whole
    log = (tmp_path / "log").read_text().split("\n")[len(before) - 1 :]
    assert log.count("ended") == 4 - finished, (before, log)
    assert log.count("begun at 0") == 4 - begun, (before, log)
    resumed = [line for line in log if line.startswith("begun at ") and line != "begun at 0"]
    # what the interruption had saved, and one a signal
    assert len(resumed) == len(steps) + 2, (before, log)
    assert "cells to train on Ray, 1 CPU each" in output
    assert re.findall(r"^(\d)/4 ", output, re.MULTILINE)[-1] == "4"
    assert not list((tmp_path / "study").glob("*.checkpoints")) and not processes(ray_folder)


def test_a_study_goes_from_here_to_ray_and_back(whole, ray_folder, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    flags = [*SMALL, "--workdir", "study"]
    done = script("ablate", *flags, "--shard", "1/2", cwd=tmp_path)  # both cells of own.second
    assert done.returncode == 0 and "2 of 4 cells are left to others" in done.stdout
    kept = {
        path.name: path.stat().st_mtime_ns for path in (tmp_path / "study/cells").glob("*.json")
    }

    process = start(tmp_path, ray_folder, FAILS="1")
    _, errors = process.communicate(timeout=120)
    said = r"error: loss 'own.first' fails on .*RuntimeError: a worker's nerves \(own.py:\d+\)\n"
    assert process.returncode == 2 and re.fullmatch(said, errors), errors
    assert (tmp_path / "calls").read_text() == "called\n"  # and not called again
    assert not processes(ray_folder)

    steps, before, finished, _ = stopped(tmp_path, ray_folder, os.kill, signal.SIGTERM, 75)
    assert finished in (2, 3)
    done = script("ablate", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "study/results.csv").read_bytes() == whole
    log = (tmp_path / "log").read_text().split("\n")
    assert log.count("ended") == before.count("ended") + 4 - finished, log
    assert any(f"begun at {step}" in log for step in steps), log
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "study/cells").glob("*.json")}
    assert len(kept) == 2 and len(now) == 4 and now.items() > kept.items()


def test_a_study_is_decided_on_ray_as_here(ray_folder, tfds_root, tmp_path):
    """Blocks of seeds are added round by round, each shared out over the machines."""
    flags = [
        "--dataset", "tiny", "--model", "softmax_regression", "--batch-size", "32", "--epochs", "1",
        "--devices", "1", "--losses", "cross_entropy", "mse", "--seeds", "4", "--until", "decided",
        "--max-seeds", "12", "--block", "4",
    ]  # fmt: skip
    for name, more in (("here", ()), ("ray", ("--executor", "ray"))):
        done = script("ablate", *flags, *more, "--workdir", tmp_path / name, RAY_TMPDIR=ray_folder)
        assert done.returncode == 0, done.stderr
    for name in ("results.csv", "verdicts.csv"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    assert len(list((tmp_path / "ray/cells").glob("*.json"))) in (4, 6)
    assert not processes(ray_folder)


def test_a_shard_of_a_cluster_and_unknown_executors_are_refused():
    losses = ["--losses", "mse", "focal"]
    with pytest.raises(InputError, match="--executor ray shares the cells out itself"):
        parse(Study, [*losses, "--executor", "ray", "--shard", "0/2"])
    with pytest.raises(InputError, match="unknown executor 'rai': did you mean 'ray'"):
        parse(Study, [*losses, "--executor", "rai"])


def test_without_ray_it_says_what_to_install(tmp_path):
    (tmp_path / "ray.py").write_text("raise ImportError")
    done = script(
        "ablate",
        *SMALL[:10],
        "--losses",
        "mse",
        "focal",
        "--executor",
        "ray",
        PYTHONPATH=f"{tmp_path}:{ROOT}",
    )
    assert "needs the package ray: pip install -e '.[ray]'" in one_line_error(done)


def test_no_cluster_where_it_is_said_to_be(ray_folder, tmp_path):
    done = script(
        "ablate",
        *SMALL[:10],
        "--losses",
        "mse",
        "focal",
        "--executor",
        "ray",
        RAY_ADDRESS="nonsense",
    )
    assert "error: no Ray cluster at nonsense: " in one_line_error(done)
