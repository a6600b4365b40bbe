"""experiments/benchmarks/kill.py: what differs or is left over is counted."""

import fcntl
import importlib.util
import json
import signal
import subprocess
import sys

import pytest
from scripts import ROOT, script

FOLDER = ROOT / "experiments/benchmarks"
NAME = "benchmark_of_kills"


@pytest.fixture(scope="module")
def kill():
    sys.path.append(str(FOLDER))  # where it finds compared.py
    spec = importlib.util.spec_from_file_location(NAME, FOLDER / "kill.py")
    module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(FOLDER))


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    for name in ("lock", "summary.json", "checkpoints/4/about.json", "checkpoints/4/state/x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("1")
    (tmp_path / "run.log").write_text("first\nlast\n")
    return folder


def test_what_goes_wrong_is_counted(kill, run):
    def counted(status=0):
        row = kill.Row("x")
        kill.compare(scenario, wanted, run, row, status)
        return {column: count for column, count in row.counts.items() if count}

    scenario = kill.Scenario([], lambda folder: (folder / "summary.json").read_text())
    wanted = kill.Reference(1.0, "1", kill.names(run))
    assert wanted.names == {"lock", "summary.json", "checkpoints/4"}
    assert counted() == {"bit-equal": 1}
    assert counted(status=1) == {"failed to resume": 1}
    assert counted(status=None) == {"failed to resume": 1}
    (run / "checkpoints/8.orbax-checkpoint-tmp").mkdir()
    (run / "checkpoints/8.orbax-checkpoint-tmp/state").write_text("")
    assert counted() == {"bit-equal": 1, "left-over files": 1}
    (run / "summary.json").write_text("2")
    assert counted() == {"different": 1, "left-over files": 1}
    with (run / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert kill.held_locks(run) == ["lock"]
    assert kill.held_locks(run) == []


@pytest.mark.slow
def test_processes_that_live_on_are_seen_and_ended(kill, monkeypatch):
    monkeypatch.setattr(kill, "GRACE", 0.5)
    for command, left in (("sleep 60 & echo; exec sleep 60", True), ("echo; exec sleep 60", False)):
        with subprocess.Popen(
            ["sh", "-c", command], stdout=subprocess.PIPE, start_new_session=True
        ) as process:
            process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            assert kill.left_over(process) == left
    assert not kill.left_over(process)


@pytest.mark.slow
def test_a_run_ends_in_the_same_bits_however_often_it_is_killed(tmp_path):
    path = tmp_path / "figures.json"
    flags = ["--kills", 2, "--scenarios", "resident", "--json", path]
    done = script("benchmarks/kill", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads(path.read_text())["rows"]
    counts = row["counts"]
    assert counts["kills"] == len(row["moments"]) == 2 and not row["notes"]
    assert counts["bit-equal"] == counts["lives"] >= 1
    assert all(status == -signal.SIGKILL for _, status in row["moments"])
