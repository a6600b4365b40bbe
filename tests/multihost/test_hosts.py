"""Real processes on this machine, joined over localhost: they train as one does, and stop, fail and
resume together.
"""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from stepping import taken

from cnnlab import files
from cnnlab.cli import EXIT_INPUT, EXIT_INTERRUPTED, EXIT_PREEMPTED
from cnnlab.config import Config
from cnnlab.multihost import agree, processes, supervise
from cnnlab.multihost.join import join

pytestmark = pytest.mark.machines
ROOT = Path(__file__).parents[2]
SECONDS = 240  # for what takes ten when nothing else runs
# Everything that draws or reduces over the batch.
FIELDS = {
    "dataset": "shapes10", "model": "mlp,hidden=[6],batch_norm=true,dropout=0.3",
    "augment": "flip+crop,padding=1+mixup,alpha=0.4", "batch_size": 32, "fraction": 0.05,
    "epochs": 5,
}  # fmt: skip


def environment(devices: int) -> dict[str, str]:
    quiet = {"JAX_NUMPY_RANK_PROMOTION": "allow", "JAX_NUMPY_DTYPE_PROMOTION": "standard"}
    return (
        os.environ
        | quiet
        | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/support'}"}
    )


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def started(commands: list[list[str]], devices: int):
    """Python processes of as many CPU devices each; whatever happens, none is left."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    children = [
        subprocess.Popen([sys.executable, *c], env=environment(devices), **pipes) for c in commands
    ]
    try:
        yield children
    finally:
        for child in children:
            with child:
                child.kill()


@functools.cache
def alone(seeds: tuple[int, ...] | None, steps: int, dtype: str) -> dict[str, np.ndarray]:
    config = Config.of(**FIELDS, parallel="jit", devices=1)
    return taken(config, None if seeds is None else list(seeds), steps, dtype)


@pytest.mark.parametrize(
    ("processes", "devices", "seeds", "more", "kinds"),
    [
        (2, 2, None, {"feed": "streaming"}, ["float32", "float64"]),
        (4, 1, None, {}, ["float64"]),
        # A seed on each process, its batch over two devices
        (2, 2, (3, 0), {"mesh": "2x2"}, ["float64"]),
    ],
    ids=["2", "4", "seeds"],
)
def test_several_processes_take_the_steps_of_one(
    processes, devices, seeds, more, kinds, shapes10_root, tmp_path
):
    """State, totals and validation: always in double, where no fault hides in the rounding."""
    port = free_port()
    kinds = [(steps, dtype) for steps, dtype in ((5, "float32"), (20, "float64")) if dtype in kinds]

    def command(i: int) -> list[str]:
        request = {
            "join": [f"localhost:{port}", processes, i],
            "fields": FIELDS | more,
            "seeds": seeds,
            "kinds": kinds,
        }
        return [
            "tests/support/host_worker.py",
            json.dumps(request | {"out": str(tmp_path / str(i))}),
        ]

    with started([command(i) for i in range(processes)], devices) as children:
        for child in children:
            errors = child.communicate(timeout=SECONDS)[1]
            assert child.returncode == 0, errors[-3000:]
    for steps, dtype in kinds:
        tolerance = {"float32": 1e-5, "float64": 1e-10}[dtype]
        wanted = alone(seeds, steps, dtype)
        for i in range(processes):
            with np.load(tmp_path / f"{i}-{dtype}.npz") as found:
                assert set(found) == set(wanted)
                for name, leaf in wanted.items():
                    assert found[name].dtype == leaf.dtype
                    if leaf.dtype.kind == "i":
                        np.testing.assert_array_equal(found[name], leaf, err_msg=name)
                        continue
                    # A sum over the examples
                    scale = steps * FIELDS["batch_size"] if name == "[1]['loss']" else 1
                    np.testing.assert_allclose(
                        found[name], leaf, rtol=0, atol=tolerance * scale, err_msg=name
                    )


def runs(
    processes: int,
    workdir: Path,
    *more: str,
    devices: int = 1,
    own: dict[int, list[str]] | None = None,
):
    """experiments/train.py in several processes; `own` are flags of one of them."""
    port = free_port()
    flags = [
        "experiments/train.py",
        "--dataset",
        "tiny",
        "--model",
        "mlp,hidden=[4]",
        "--batch-size",
        "16",
    ]
    flags += ["--progress", "off", "--workdir", str(workdir), *more]

    def joined(i):
        return [
            "--coordinator",
            f"localhost:{port}",
            "--processes",
            str(processes),
            "--process",
            str(i),
        ]

    each = [
        [*flags, *(joined(i) if processes > 1 else []), *(own or {}).get(i, [])]
        for i in range(processes)
    ]
    return started(each, devices)


def ends(children) -> list[tuple[int, str, str]]:
    """(exit status, standard output, standard error) of each."""
    texts = [child.communicate(timeout=SECONDS) for child in children]
    return [(child.returncode, *text) for child, text in zip(children, texts, strict=True)]


def saved(workdir: Path) -> list[int]:
    return sorted(
        int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdigit()
    )


def wait_for_steps(workdir: Path, children) -> None:
    deadline = time.monotonic() + SECONDS
    while len(saved(workdir)) < 2:
        assert all(child.poll() is None for child in children), ends(children)
        assert time.monotonic() < deadline
        time.sleep(0.05)


def summary(workdir: Path) -> dict:
    return json.loads((workdir / "summary.json").read_text())


def final(workdir: Path) -> dict:
    return summary(workdir)["test"]


def test_further_test_sets_are_shared_out(tfds_root, tmp_path):
    """Each process tests on its rows: the metrics of one process, and the same digests."""
    noise = "test+gaussian_noise,severity=3"
    more = ["--epochs", "1", "--devices", "2", "--test-sets", noise, "test+contrast,severity=5"]
    for num_processes in (1, 2):
        workdir = tmp_path / str(num_processes)
        with runs(num_processes, workdir, *more, devices=2 // num_processes) as children:
            for status, _, errors in ends(children):
                assert (status, errors) == (0, "")
    alone, together = (summary(tmp_path / str(number)) for number in (1, 2))
    assert [*alone["test_sets"]] == [*together["test_sets"]] == more[-2:]
    for name, wanted in alone["test_sets"].items():
        assert together["test_sets"][name]["confusion"] == wanted["confusion"]
        assert together["test_sets"][name]["count"] == 50
        assert abs(together["test_sets"][name]["nll"] - wanted["nll"]) < 1e-5
    digests = [
        json.loads((tmp_path / str(number) / "data.json").read_text())["test_sets"]
        for number in (1, 2)
    ]
    assert digests[0] == digests[1] != {}


def test_a_run_in_a_bucket_goes_on_with_other_numbers_of_processes(tfds_root, tmp_path, gcs):
    """An epoch in one process, one in two, one in four; the devices, and so the arithmetic, are
    four throughout.
    """
    moved = files.path("gs://bucket/moved")
    stages = [(1, 4, 1), (2, 2, 2), (4, 1, 3)]
    for num_processes, devices, epochs in stages:
        more = ["--schedule", "constant", "--epochs", str(epochs), "--devices", "4"]
        with runs(num_processes, moved, *more, devices=devices) as children:
            for i, (status, out, errors) in enumerate(ends(children)):
                assert status == 0, errors
                if i == 0:
                    assert ("resuming after step" in out) == (epochs > 1)
                    assert (f"of {num_processes} processes" in out) == (num_processes > 1)
                else:
                    assert out == ""  # the first alone speaks
                assert [
                    line for line in errors.splitlines() if "google_auth_provider" not in line
                ] == []
    more = ["--schedule", "constant", "--epochs", "3", "--devices", "4"]
    with runs(1, tmp_path / "stayed", *more, devices=4) as children:
        assert ends(children)[0][0] == 0
    there, here = final(moved), final(tmp_path / "stayed")
    assert there["count"] == here["count"] == 50 and there["confusion"] == here["confusion"]
    # Of 33 float32 steps; gloo sums in another order than one process
    assert abs(there["nll"] - here["nll"]) < 1e-5
    rows = [json.loads(line) for line in (moved / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]


@pytest.mark.parametrize("victim", [0, 1], ids=["first", "other"])
def test_a_killed_process_ends_the_others_with_a_line_and_the_rerun_resumes(
    victim, tfds_root, tmp_path
):
    endless = ["--epochs", "5000", "--schedule", "constant"]
    with runs(2, tmp_path, *endless) as children:
        wait_for_steps(tmp_path, children)
        children[victim].kill()
        found = ends(children)
    assert found[victim][0] == -signal.SIGKILL
    status, _, errors = found[1 - victim]
    assert (status, errors.count("\n")) == (supervise.EXIT_LOST, 1), errors
    assert supervise.LOST in errors
    before = saved(tmp_path)[-1]
    # It is rejected, and set aside
    (tmp_path / "checkpoints" / str(before) / "about.json").write_text("{}")
    with runs(2, tmp_path, *endless) as children:
        deadline = time.monotonic() + SECONDS
        while saved(tmp_path)[-1] <= before:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # and SIGTERM to one, as a cloud sends it, saves the same step in all
        children[1 - victim].send_signal(signal.SIGTERM)
        found = ends(children)
    assert [status for status, *_ in found] == [EXIT_PREEMPTED] * 2
    (_, out, errors), (_, silent, nothing) = found
    assert (
        f"checkpoint rejected: step {before}" in out
        and "resuming after step" in out
        and silent == ""
    )
    assert (
        errors.startswith("stopped by SIGTERM at step ")
        and errors.count("\n") == 1
        and nothing == ""
    )
    assert f"at step {saved(tmp_path)[-1]} of" in errors


def test_what_fails_on_one_fails_on_all_with_one_line(tfds_root, tmp_path):
    """No data on one of them; another command line; a terminal's Ctrl-C."""
    with runs(2, tmp_path / "a", own={1: ["--data-dir", str(tmp_path / "nothing")]}) as children:
        (status, _, errors), (other, _, nothing) = ends(children)
    assert (status, other, errors.count("\n"), nothing) == (EXIT_INPUT, EXIT_INPUT, 1, "")
    assert errors.startswith("error: process 1 of 2: ") and "nothing" in errors
    with runs(2, tmp_path / "b", own={1: ["--workdir", str(tmp_path / "c")]}) as children:
        (status, _, errors), (other, _, nothing) = ends(children)
    assert (status, other, nothing) == (EXIT_INPUT, EXIT_INPUT, "")
    assert (
        errors
        == "error: the command line of process 1 differs from that of process 0: give all the "
        "same\n"
    )
    with runs(2, tmp_path / "d", "--epochs", "5000") as children:
        wait_for_steps(tmp_path / "d", children)
        children[0].send_signal(signal.SIGINT)
        found = ends(children)
    assert [status for status, *_ in found] == [EXIT_INTERRUPTED, EXIT_PREEMPTED]
    assert found[0][2].startswith("stopped by SIGINT at step ")


def test_an_error_of_one_alone_is_told_by_it_and_ends_the_others(tfds_root, tmp_path):
    """In mid-training, with a save under way: the others wait in a step, and nobody may wait for
    them.
    """
    with runs(2, tmp_path, "--epochs", "5000") as children:
        wait_for_steps(tmp_path, children)
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").mkdir()
        (status, _, errors), (other, _, line) = ends(children)
    assert (status, errors) == (
        EXIT_INPUT, f"process 0 of 2: error: {tmp_path}/metrics.jsonl: Is a directory\n"
    )  # fmt: skip
    assert (other, line.count("\n")) == (supervise.EXIT_LOST, 1) and supervise.LOST in line


def test_processes_that_do_not_find_each_other_can_be_interrupted(tfds_root, tmp_path):
    with runs(2, tmp_path) as children:
        children[1].kill()
        time.sleep(2)
        assert children[0].poll() is None
        children[0].send_signal(signal.SIGINT)
        (status, out, errors), _ = ends(children)
    assert (status, out, errors) == (EXIT_INTERRUPTED, "", "interrupted\n")


def test_alone_nothing_is_asked_of_others():
    assert (processes.index(), processes.count()) == (0, 1)
    join()  # no scheduler here
    assert processes.count() == 1
    assert agree.on_first(lambda: 3) == agree.on_all(lambda: 3) == 3
    agree.agree("it", 1)
    with pytest.raises(ZeroDivisionError):
        agree.on_first(lambda: 1 // 0)


@pytest.mark.parametrize("split_seed", ["None", "0"])
def test_two_processes_tune_a_study_and_keep_its_logits_as_one_does(
    split_seed, shapes10_root, tmp_path
):
    """To the bit: each process has seeds of its own, with their validation splits and labels."""
    port = free_port()
    flags = [
        "experiments/ablate.py", "--losses", "cross_entropy", "focal", "--model", "mlp,hidden=[6]",
        "--epochs", "1", "--seeds", "2", "--fraction", "0.1", "--label-noise", "0.4", "--tune",
        "lr=1e-3..1e-1", "loss.gamma=0.5..5", "--budget", "2", "--tune-seeds", "2", "--progress",
        "off", "--split-seed", split_seed, "--ood-sets", "test+gaussian_noise,severity=5",
    ]  # fmt: skip
    joined = ["--coordinator", f"localhost:{port}", "--processes", "2", "--process"]
    two = [[*flags, "--workdir", str(tmp_path / "two"), *joined, str(i)] for i in range(2)]
    with started(two, 1) as children:
        for child in children:
            errors = child.communicate(timeout=SECONDS)[1]
            assert child.returncode == 0, errors[-3000:]
    with started([[*flags, "--workdir", str(tmp_path / "one")]], 2) as (child,):
        errors = child.communicate(timeout=SECONDS)[1]
        assert child.returncode == 0, errors[-3000:]
    for kind, count in (("cells/*.npz", 2), ("tuning/*.json", 2)):
        paths = sorted((tmp_path / "one").glob(kind))
        assert len(paths) == count
        for path in paths:
            other = tmp_path / "two" / path.relative_to(tmp_path / "one")
            assert other.read_bytes() == path.read_bytes(), path.name
    for name in ("results.csv", "verdicts.csv"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
