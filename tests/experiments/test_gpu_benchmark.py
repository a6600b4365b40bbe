"""experiments/benchmarks/gpu.py: what fits in the time is measured, what does not is listed."""

import importlib.util
import json
import math
import sys
import threading
import time

import pytest
from scripts import ROOT, one_line_error, script

from cnnlab import cli
from cnnlab.errors import InputError

FOLDER = ROOT / "experiments/benchmarks"
NAME = "benchmark_of_gpus"

# A Python with PyTorch: it says its version, a step takes half a second, the i-th run of the
# original i s.
STAND_IN = """#!/bin/sh
case "$1" in
  -c) echo '["0.0", false, "cuda"]' ;;
  *torch_step.py) echo ready; while read n; do echo "$n" | awk '{print $1 / 2}'; done ;;
  *) echo '{"torch": "0.0"}'; i=0
     while read seed; do
       i=$((i + 1)); echo "{\\"accuracy\\": 0.$i, \\"seconds\\": $i, \\"memory\\": 1}"
     done ;;
esac
"""


@pytest.fixture(scope="module")
def gpu():
    sys.path.append(str(FOLDER))  # where it finds contestants.py
    spec = importlib.util.spec_from_file_location(NAME, FOLDER / "gpu.py")
    module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(FOLDER))


@pytest.fixture
def result(gpu):
    return gpu.Result({})


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Contestant:
    """Each turn takes a second by the clock; the last one that it has ends it."""

    def __init__(self, clock, turns=99):
        self.clock, self.turns = clock, turns

    def turn(self, steps):
        self.clock.now += 1
        self.turns -= 1
        if self.turns < 0:
            raise InputError("it ended")
        return float(steps)


def test_a_part_gets_its_share_of_what_is_left(gpu):
    part = gpu.Measurement("x", least=60, weight=3)
    assert gpu.allowance([3, 1, 2], part, 300.0) == 150
    assert gpu.allowance([3, 1, 2], part, 90.0) == 60  # what it needs, at the cost of the others
    assert gpu.allowance([3], part, 90.0) == 90
    assert gpu.allowance([3, 1, 2], part, 59.0) == 0


def test_the_parts_fit_in_nine_minutes_by_what_they_need(gpu):
    assert sum(part.least for part in gpu.MEASUREMENTS) < 9 * 60
    for part in gpu.MEASUREMENTS:
        names = {*part.contestants}
        assert names - {gpu.DETERMINISTIC} <= set(gpu.contestants.CONTESTANTS)
        assert all({ratio.over, ratio.under} <= names for ratio in part.ratios)


def test_rounds_end_in_time(gpu):
    assert gpu.another_round(0, 0.0, 10.0, 100.0)
    assert gpu.another_round(5, 9.0, 10.0, 100.0)
    assert not gpu.another_round(5, 11.0, 10.0, 100.0)
    assert gpu.another_round(2, 11.0, -1.0, 100.0)  # the first may take time of later parts
    assert not gpu.another_round(2, 11.0, -1.0, 10.0)
    assert not gpu.another_round(0, 0.0, -1.0, -1.0)


def test_a_budget_ends_no_later_than_its_whole(gpu):
    clock = Clock()
    budget = gpu.Budget(110.0, clock)
    assert budget.left() == 10
    assert budget.allot(4).left() == 4 and budget.allot(40).left() == 10
    clock.now = 112.0
    assert budget.left() == -2
    ended = threading.Event()
    with budget.enforced(ended.set):
        assert ended.wait(10)
    in_time = threading.Event()
    with gpu.Budget(1e9, clock).enforced(in_time.set):
        pass
    assert not in_time.is_set()


def turns(gpu, workers, clock, result, *, share, left):
    part = gpu.Measurement("x", 1, 1, steps=7)
    budget = gpu.Budget(clock.now + left, clock)
    arguments = cli.parse(gpu.Arguments, ["--rounds", "5"])
    return gpu.take_turns(part, workers, arguments, budget.allot(share), budget, result)


def test_turns_until_the_rounds_or_the_time_are_over(gpu, result):
    clock = Clock()
    workers = {"a": Contestant(clock), "b": Contestant(clock)}
    assert turns(gpu, workers, clock, result, share=99, left=99) == {"a": [7.0] * 5, "b": [7.0] * 5}
    rates = turns(gpu, workers, clock, result, share=1, left=99)
    assert [len(values) for values in rates.values()] == [gpu.LEAST_ROUNDS] * 2
    assert not result.gaps
    assert turns(gpu, workers, clock, result, share=0, left=0) == {"a": [], "b": []}
    assert [gap["reason"] for gap in result.gaps] == ["no time was left for a round"] * 2


def test_a_contestant_that_ends_is_listed(gpu, result):
    clock = Clock()
    workers = {"a": Contestant(clock), "b": Contestant(clock, turns=2)}
    rates = turns(gpu, workers, clock, result, share=99, left=99)
    assert [len(rates[name]) for name in "ab"] == [5, 2]
    assert result.gaps == [{"part": "x", "what": "b", "reason": "after 2 rounds: it ended"}]
    assert gpu.divided(rates["a"], rates["b"]) == [1.0, 1.0]


def test_means_and_intervals_by_hand(gpu):
    found = gpu.summary([1.0, 3.0])
    assert (found["n"], found["mean"]) == (2, 2.0)
    half = 12.7062047  # Student's, one degree of freedom, times a standard error of 1
    assert (found["low"], found["high"]) == pytest.approx((2 - half, 2 + half))
    ratio = gpu.summary([0.5, 2.0], geometric=True)
    assert ratio["mean"] == pytest.approx(1) and ratio["low"] * ratio["high"] == pytest.approx(1)
    assert ratio["high"] == pytest.approx(math.exp(half * math.log(2)))
    assert gpu.summary([4.0]) == {"n": 1, "mean": 4.0, "low": None, "high": None}


def test_speed_runs_are_read_as_they_come_and_paired(gpu, result):
    said = [
        "read and built in 1.0 s; compiling, and a run that does not count\n",
        "run 1/50  cnnlab    accuracy 0.9400  2.000 s\n",
        "run 1/50  airbench  accuracy 0.9410  4.000 s\n",
        "run 2/50  airbench  accuracy 0.9390  4.000 s\n",
    ]
    runs = gpu.read_runs(said)
    assert runs == {"cnnlab": [(0.94, 2.0)], "airbench": [(0.941, 4.0), (0.939, 4.0)]}
    gpu.add_speed_runs("speed run", runs, result)
    found = {(row["what"], row["unit"]): (row["n"], row["mean"]) for row in result.rows}
    assert found["airbench94_muon.py", "seconds"] == (2, 4.0)
    assert found["cnnlab over airbench94_muon.py", "ratio of seconds"] == (1, 0.5)
    assert found["cnnlab less airbench94_muon.py", "accuracy"] == (1, pytest.approx(-0.001))


def test_speed_runs_go_without_an_original_that_does_not_start(gpu, result, monkeypatch):
    commands = []

    def run_until(stop, command):
        commands.append(command)
        return ({}, 2) if "--beside" in command else ({"cnnlab": [(0.94, 2.0)]}, 0)

    monkeypatch.setattr(gpu, "run_until", run_until)
    arguments = gpu.Arguments(original="airbench94_muon.py")
    part = next(part for part in gpu.MEASUREMENTS if part.name == gpu.SPEED_RUN)
    gpu.time_speed_runs(part, arguments, "", gpu.Budget(time.monotonic() + 100), result)
    assert len(commands) == 2 and result.rows[0]["what"] == "cnnlab"
    assert [gap["what"] for gap in result.gaps] == ["airbench94_muon.py"]


def test_the_table(gpu, result):
    result.add("seed network", "bare step", "images/s", [12000.0, 12000.0])
    result.add("seed network", "pytorch", "images/s", [])
    result.add("16 seeds", "16 seeds over one", "ratio of images/s", [1.23456])
    result.leave_out("speed run", "all of it", "3 s were left, it needs about 90 s")
    versions = {"python": "3.11.7", "jax": "0.10.2", "grain": "1", "PyTorch": "2.13"}
    facts = {"device": "NVIDIA A100", "versions": versions, "dataset": "cifar10"}
    facts |= {"minutes": 9, "seconds": 500.2, "tiny": False}
    assert gpu.markdown(facts, result.rows, result.gaps).splitlines() == [
        "NVIDIA A100; python 3.11.7, jax 0.10.2, PyTorch 2.13; cifar10; 500 s of 540 s.",
        "",
        "| part | what | n | mean | 95 % interval | unit |",
        "|---|---|---|---|---|---|",
        "| seed network | bare step | 2 | 12,000 | [12,000, 12,000] | images/s |",
        "| 16 seeds | 16 seeds over one | 1 | 1.235 |  | ratio of images/s |",
        "",
        "Not measured:",
        "",
        "- speed run, all of it: 3 s were left, it needs about 90 s",
    ]


def test_the_data_set_is_one_that_is_there(gpu, tmp_path):
    assert gpu.prepared(str(tmp_path)) == "shapes10"
    (tmp_path / "cifar10/3.0.2").mkdir(parents=True)
    (tmp_path / "cifar10/3.0.2/dataset_info.json").write_text("{}")
    assert gpu.prepared(str(tmp_path)) == "cifar10"


@pytest.mark.slow
def test_tiny_sizes_next_to_pytorch(gpu, tfds_root, tmp_path):
    """Every part has its rows, from the stand-in for PyTorch and the original too."""
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    done = script(
        *("benchmarks/gpu", "--tiny", "--dataset", "tiny", "--json", tmp_path / "gpu.json"),
        *("--torch-python", python, "--original", python, "--markdown", tmp_path / "gpu.md"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["not measured"] == []
    assert found["versions"]["PyTorch"] == "0.0" and found["device"] == "cpu"
    assert {"python", "jax", "jaxlib", "flax"} <= set(found["versions"])
    names = {(row["part"], row["what"]) for row in found["rows"]}
    for part in gpu.MEASUREMENTS:
        wanted = [*part.contestants, *(ratio.name for ratio in part.ratios)]
        assert {(part.name, name) for name in wanted} <= names
    speed_run = [row for row in found["rows"] if row["part"] == "speed run"]
    assert len(speed_run) == 6
    for row in found["rows"]:
        assert row["n"] == 2 and row["low"] <= row["mean"] <= row["high"]
    table = (tmp_path / "gpu.md").read_text()
    assert table.count("\n| ") == 1 + len(found["rows"])
    assert "Tiny sizes" in table and "Not measured" not in table


@pytest.mark.slow
def test_a_machine_without_a_gpu(tfds_root, tmp_path):
    done = script("benchmarks/gpu", "--dataset", "tiny", cwd=tmp_path)
    assert "JAX finds no GPU here but cpu; --tiny" in one_line_error(done)
    assert not list(tmp_path.iterdir())
