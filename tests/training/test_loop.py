"""A run that was stopped and started again ends in the bits of one that never stopped.

In one process for every place to stop, feed and device count; in real processes for signals and
kills at any moment.
"""

import dataclasses
import functools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnlab.checkpoint.manager import Checkpoints
from cnnlab.cli import EXIT_INTERRUPTED, EXIT_PREEMPTED, Stopped
from cnnlab.config import Config
from cnnlab.errors import InputError
from cnnlab.training import experiment as experiments
from cnnlab.training import loop, run_folder, signals

ROOT = pathlib.Path(__file__).parents[2]
# 160 images to train on, 4 steps an epoch, 12 steps in all; everything that has a state or draws.
CONFIG = Config.of(
    dataset="tiny", validation=0.2, model="mlp,hidden=[8],batch_norm=true,dropout=0.2",
    augment="flip+crop,padding=1",
    batch_size=40, epochs=3, checkpoint_steps=0, tensorboard=False, progress="off",
)  # fmt: skip
LAST = 12


@pytest.fixture(autouse=True)
def standard_promotion():
    """optax.adam and its schedules mix types."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def build(tfds_root):
    """Experiments by (feed, devices, changes), compiled once."""

    @functools.cache
    def one(feed="resident", devices=1, **changes):
        config = CONFIG.replace(data_dir=str(tfds_root), feed=feed, devices=devices, **changes)
        experiment = experiments.build(config)
        assert experiment.program.is_resident == (feed == "resident")
        assert experiment.layout.device_count == devices and experiment.dispatch_steps == 1
        return experiment

    return one


class Watched:
    """An experiment that notes the steps it is fed for, and sends a signal before step `stop_at`;
    `advance` in place of its own.
    """

    def __init__(self, experiment, advance=None, stop_at=None, number=signal.SIGTERM):
        self.experiment, self.stop_at, self.number = experiment, stop_at, number
        self.steps_per_epoch = experiment.steps_per_epoch
        self.dispatch_steps = experiment.dispatch_steps
        self.advance = advance or experiment.advance
        self.estimate = experiment.estimate
        self.validate = experiment.validate
        self.seen = []

    def items(self, first, last):
        for at, item in enumerate(self.experiment.items(first, last), first + 1):
            if at == self.stop_at:
                os.kill(os.getpid(), self.number)
            self.seen.append(at)
            yield item


class Recorded(loop.Observer):
    """Keeps the metrics of each epoch in a run folder."""

    def __init__(self, files):
        self.files = files

    def epoch(self, row):
        self.files.add_metrics(row)


def run(  # noqa: PLR0913
    experiment, folder, *, epochs=3, save_every=0, stop_at=None, number=signal.SIGTERM,
    advance=None, keep=2,
):  # fmt: skip
    """Start or resume; a signal comes while step `stop_at` is taken. Return the progress at the
    end, the steps taken and the checkpoints rejected.
    """
    watched = Watched(experiment, advance, stop_at, number)
    config = CONFIG.replace(epochs=epochs, schedule="constant")
    with (
        run_folder.RunFolder(folder, config, {}, experiment.facts) as files,
        Checkpoints(folder / "checkpoints", keep=keep) as checkpoints,
    ):
        saver = loop.Saver(checkpoints, save_every, command="COMMAND")
        start = experiment.start()
        found, _, rejected = saver.restore(start)
        files.start_metrics((found or start).history, False)
        end = loop.fit(watched, found or start, epochs, saver=saver, observer=Recorded(files))
    return end, watched.seen, rejected


def timeless(rows):
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows
    ]


def metrics_of(folder):
    return timeless(
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    )


def assert_identical(one, two):
    for a, b in zip(
        jax.tree.leaves((one.state, one.totals)),
        jax.tree.leaves((two.state, two.totals)),
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))  # atol 0
    assert timeless(one.history) == timeless(two.history)


@pytest.fixture(scope="module")
def never_stopped(build, tmp_path_factory):
    @functools.cache
    def one(feed="resident", devices=1):
        with jax.numpy_dtype_promotion("standard"):
            end, seen, _ = run(build(feed, devices), tmp_path_factory.mktemp("whole"))
        assert seen == list(range(1, LAST + 1)) and len(end.history) == 3
        return end

    return one


@pytest.mark.slow
@pytest.mark.parametrize(("feed", "devices"), [("resident", 1), ("streaming", 1), ("resident", 8)])
# The first step, mid-epoch, the end of an epoch, the last but one.
@pytest.mark.parametrize("stop_at", [1, 6, 8, LAST - 1])
def test_resume_matrix(build, never_stopped, tmp_path, feed, devices, stop_at):
    with pytest.raises(Stopped) as stopped:
        run(build(feed, devices), tmp_path, stop_at=stop_at)
    assert stopped.value.status == EXIT_PREEMPTED
    assert f"SIGTERM at step {stop_at} of {LAST}" in str(stopped.value) and "COMMAND" in str(
        stopped.value
    )
    end, seen, _ = run(build(feed, devices), tmp_path)
    assert seen == list(range(stop_at + 1, LAST + 1))  # nothing is done twice
    assert_identical(end, never_stopped(feed, devices))
    assert metrics_of(tmp_path) == timeless(end.history)


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [3, 4, 5])
def test_stopping_at_and_around_a_save(build, never_stopped, tmp_path, stop_at):
    for at in (stop_at, stop_at + 4):
        with pytest.raises(Stopped) as stopped:
            run(build(), tmp_path, save_every=3, stop_at=at, number=signal.SIGINT)
        assert stopped.value.status == EXIT_INTERRUPTED and "SIGINT" in str(stopped.value)
    end, _, _ = run(build(), tmp_path, save_every=3)
    assert_identical(end, never_stopped())


@pytest.mark.slow
@pytest.mark.parametrize("average", ["ema,decay=0.9", "swa,start=0.3"])
def test_an_average_is_resumed(build, never_stopped, tmp_path, average):
    """Stopped before, at and after the end of an epoch; the steps are those without an average."""
    end = resumed(build(average=average), tmp_path)
    plain = never_stopped()
    for a, b in zip(jax.tree.leaves(end.state.last), jax.tree.leaves(plain.state), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert len(jax.tree.leaves(end.state.average)) == len(jax.tree.leaves(plain.state.variables))


@pytest.mark.slow
def test_a_run_in_microbatches_is_resumed(build, tmp_path):
    resumed(build(microbatches=4), tmp_path / "plain")
    resumed(build(devices=2, microbatches=4, average="ema,decay=0.9"), tmp_path / "averaged")


def resumed(experiment, folder):
    """The end of a run that was stopped three times, which is that of one that never was."""
    whole, _, _ = run(experiment, folder / "whole")
    for stop_at in (3, 8, 9):
        with pytest.raises(Stopped):
            run(experiment, folder / "stopped", stop_at=stop_at)
    end, _, _ = run(experiment, folder / "stopped")
    assert_identical(end, whole)
    return end


@pytest.mark.slow
def test_both_feeds_train_the_same(never_stopped):
    assert_identical(never_stopped("resident"), never_stopped("streaming"))
    assert_identical(never_stopped("resident"), never_stopped("mapped"))


@pytest.mark.slow
def test_saving_changes_nothing(build, never_stopped, tmp_path):
    assert_identical(run(build(), tmp_path, save_every=1, keep=1)[0], never_stopped())


def test_a_signal_in_the_last_step_leaves_the_test_for_later(build, never_stopped, tmp_path):
    with pytest.raises(Stopped, match=f"at step {LAST} of {LAST}, saved; to resume: COMMAND"):
        run(build(), tmp_path, stop_at=LAST)
    end, seen, _ = run(build(), tmp_path)
    assert seen == []
    assert_identical(end, never_stopped())


def in_memory(experiment, stop_at=None):
    def advance(progress, items):
        if int(progress.state.step) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return experiment.advance(progress, items)

    saver = loop.Saver(None, every_steps=2, command="COMMAND")
    return loop.fit(Watched(experiment, advance), experiment.start(), 3, saver=saver)


def test_without_checkpoints_the_same_is_trained(build, never_stopped):
    assert_identical(in_memory(build()), never_stopped())


def test_without_checkpoints_a_stop_says_that_nothing_is_saved(build):
    with pytest.raises(
        Stopped, match="at step 7 of 12, nothing is saved; to start again: COMMAND"
    ) as stop:
        in_memory(build(), stop_at=6)
    assert stop.value.status == 75


def test_handlers_are_given_back(build, tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped):
        run(build(), tmp_path, stop_at=2)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_second_interrupt_interrupts_at_once():
    with signals.stop_signals() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8)])
def test_resume_on_another_number_of_devices(build, never_stopped, tmp_path, before, after):
    with pytest.raises(Stopped):
        run(build("resident", before), tmp_path, stop_at=6)
    restored = []
    for devices in (before, after):
        start = build("resident", devices).start()
        with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
            found, step, _ = loop.Saver(checkpoints).restore(start)
        assert step == 6 == int(found.state.step)
        assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(found.state)} == {devices}
        restored.append(found)
    assert_identical(*restored)
    end, _, _ = run(build("resident", after), tmp_path)
    for a, b in zip(
        jax.tree.leaves(end.state),
        jax.tree.leaves(never_stopped("resident", after).state),
        strict=True,
    ):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_more_epochs_continue(build, tmp_path):
    constant = build(schedule="constant")
    run(constant, tmp_path / "grown", epochs=2)
    end, seen, _ = run(constant, tmp_path / "grown", epochs=3)
    assert seen == [9, 10, 11, 12]
    assert_identical(end, run(constant, tmp_path / "whole", epochs=3)[0])


def test_a_finished_run_takes_no_step(build, tmp_path):
    end, _, _ = run(build(), tmp_path)
    again, seen, _ = run(build(), tmp_path)
    assert seen == []
    assert_identical(again, end)


def poisoned(experiment, at):
    """An experiment's `advance`, which finds its parameters not finite at step `at` (from 0)."""

    def advance(progress, items):
        state = progress.state
        if int(state.step) == at:
            bad = jax.tree.map(lambda x: x * jnp.float32(jnp.nan), state.params)
            progress = dataclasses.replace(progress, state=state.replace(params=bad))
        return experiment.advance(progress, items)

    return advance


@pytest.mark.parametrize(("at", "good"), [(0, None), (6, 6), (7, 6), (11, 10)])
def test_not_a_number(build, tmp_path, at, good):
    experiment = build()
    with pytest.raises(InputError) as error:
        run(experiment, tmp_path, save_every=2, advance=poisoned(experiment, at))
    assert f"not finite after step {at + 1} (epoch {at // 4 + 1})" in str(error.value)
    wanted = (
        f"the checkpoint of step {good} is good" if good else "no checkpoint had been written yet"
    )
    assert wanted in str(error.value)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        found, step, _ = loop.Saver(checkpoints).restore(experiment.start())
    if good:
        assert step == good
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(found.state)))
    else:
        assert found is None


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(build, never_stopped, tmp_path):
    with pytest.raises(Stopped):
        run(build(), tmp_path, save_every=3, stop_at=10)
    files = [
        p
        for p in (tmp_path / "checkpoints" / "10").rglob("*")
        if p.is_file() and p.stat().st_size > 200
    ]
    largest = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    end, seen, rejected = run(build(), tmp_path, save_every=3)
    assert seen == [10, 11, 12] and len(rejected) == 1 and rejected[0].startswith("step 10: ")
    assert_identical(end, never_stopped())


def test_evaluation_is_the_mean_over_all_images(build, never_stopped):
    experiment = build()
    end = never_stopped()
    (result,) = experiment.test(end.state)
    (validation,) = experiment.validate(end.state)
    assert result["count"] == 50 == np.sum(result["confusion"])  # 40 + 10 and padding
    assert validation["count"] == 40
    assert validation["loss"] == end.history[-1]["validation_loss"]


# Real processes
# ------------------------------------------------------------------------------

ARGUMENTS = [
    "--dataset", "tiny", "--validation", "0.2", "--model",
    "mlp,hidden=[8],batch_norm=true,dropout=0.2",
    "--augment", "flip+crop,padding=1", "--batch-size", "16", "--epochs", "4", "--checkpoint-steps",
    "1",
    "--no-tensorboard", "--progress", "lines",
]  # fmt: skip


def environment(devices=1):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_NUMPY")}
    return kept | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}


class Worker:
    """tests/support/run_worker.py, and the runs that it forks."""

    def __init__(self, folder):
        self.output = folder / "output.txt"
        self.errors = (folder / "worker.txt").open("w")
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "support" / "run_worker.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(), cwd=folder,
            stderr=self.errors,
        )  # fmt: skip

    def start(self, *args):
        self.output.write_text("")
        self.process.stdin.write(json.dumps([list(args), str(self.output)]) + "\n")
        self.process.stdin.flush()
        word, pid = self.process.stdout.readline().split()
        assert word == "pid"
        return int(pid)

    def wait(self):
        word, status = self.process.stdout.readline().split()
        assert word == "exit"
        return int(status)

    def run(self, *args):
        self.start(*args)
        status = self.wait()
        return status, self.output.read_text()

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()
        self.errors.close()


@pytest.fixture
def worker(tmp_path, tfds_root):
    one = Worker(tmp_path)
    yield one
    one.close()


def newest(folder):
    """The newest committed step of a run folder, looked at from outside."""
    try:
        return max(
            (int(name) for name in os.listdir(folder / "checkpoints") if name.isdecimal()),
            default=0,
        )
    except FileNotFoundError:
        return 0


def wait_for(condition, process):
    while not condition():
        time.sleep(0.002)
        assert pathlib.Path(f"/proc/{process}").exists(), "the run ended before it could be stopped"


def outcome(folder):
    """What a finished run leaves: SHA-256 of every leaf of the last checkpoint, its metrics, its
    summary.
    """
    last = newest(folder)
    body = json.loads((folder / "checkpoints" / str(last) / "about.json").read_text())["body"]
    digests = {leaf["path"]: leaf["sha256"] for leaf in body["leaves"]}
    summary = json.loads((folder / "summary.json").read_text())
    summary["last_epoch"] = timeless([summary["last_epoch"]])
    # The seal is of the times, too; a run that was extended is the one that it was
    for name in ("sha256", "run"):
        del summary[name]
    return last, digests, metrics_of(folder), summary


@pytest.mark.slow
def test_kills_and_signals_at_any_moment(worker, tmp_path):
    """Each run of a sequence ends by a signal at a random moment; the next goes on. For both ways
    of feeding.
    """
    status, text = worker.run(*ARGUMENTS, "--feed", "resident", "--workdir", "whole")
    assert status == 0, text
    wanted = outcome(tmp_path / "whole")
    assert wanted[0] == 40 and len(wanted[1]) > 10 and len(wanted[2]) == 4
    rng = random.Random(20260101)
    for feed, numbers in {
        "resident": [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGKILL],
        "streaming": [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL],
    }.items():
        folder = tmp_path / feed
        args = [*ARGUMENTS, "--feed", feed, "--workdir", feed]
        for turn, number in enumerate(numbers):
            before = newest(folder)
            pid = worker.start(*args)
            target = before + rng.randrange(1, 4)
            wait_for(lambda folder=folder, target=target: newest(folder) >= target, pid)
            time.sleep(rng.random() * 0.03)
            os.kill(pid, number)
            status = worker.wait()
            text = worker.output.read_text()
            case = f"{feed}, signal {turn}, after step {before}: {text}"
            assert status == {signal.SIGKILL: -9, signal.SIGTERM: 75, signal.SIGINT: 130}[number], (
                case
            )
            if number != signal.SIGKILL:
                name = signal.Signals(number).name
                (line,) = [line for line in text.splitlines() if line.startswith("stopped by")]
                assert (
                    name in line
                    and f"of {wanted[0]}, saved" in line
                    and "experiments/train.py --dataset tiny" in line
                )
                assert f"at step {newest(folder)} of" in line
            if turn:
                assert f"resuming after step {before} of 40" in text, case
            assert not (folder / "summary.json").exists()
        status, text = worker.run(*args)
        assert status == 0, text
        assert outcome(folder) == wanted, feed


@pytest.mark.slow
def test_the_airbench_recipe_survives_a_kill(worker, tmp_path):
    """A fitted first layer among the batch statistics, Muon's momenta, images that turn
    each epoch.
    """
    args = [
        "--dataset", "tiny", "--validation", "0", "--model", "airnet,widths=[4]", "--optimizer",
        "muon",
        "--schedule", "linear", "--augment", "alternating_flip+crop,padding=1,mode=reflect",
        "--batch-size", "40",
        "--epochs", "4", "--checkpoint-steps", "1", "--no-tensorboard", "--progress", "lines",
    ]  # fmt: skip
    pid = worker.start(*args, "--workdir", "killed")
    wait_for(lambda: newest(tmp_path / "killed") >= 7, pid)  # in the second epoch
    os.kill(pid, signal.SIGKILL)
    assert worker.wait() == -9 and newest(tmp_path / "killed") < 20
    for name in ("killed", "whole"):
        status, text = worker.run(*args, "--workdir", name)
        assert status == 0, text
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_averages_and_microbatches_survive_kills(worker, tmp_path):
    args = [*ARGUMENTS, "--average", "swa,start=0.3", "--microbatches", "2"]
    status, text = worker.run(*args, "--workdir", "whole")
    assert status == 0 and "test, average weights" in text and "test, last weights" in text, text
    wanted = outcome(tmp_path / "whole")
    assert any(".average." in name for name in wanted[1])
    for number, target in ((signal.SIGKILL, 5), (signal.SIGTERM, 13), (signal.SIGKILL, 27)):
        pid = worker.start(*args, "--workdir", "killed")
        wait_for(lambda target=target: newest(tmp_path / "killed") >= target, pid)
        os.kill(pid, number)
        assert worker.wait() == {signal.SIGKILL: -9, signal.SIGTERM: 75}[number]
    status, text = worker.run(*args, "--workdir", "killed")
    assert status == 0, text
    assert outcome(tmp_path / "killed") == wanted


@pytest.mark.slow
def test_killed_before_anything_is_saved(worker, tmp_path):
    rng = random.Random(7)
    for _ in range(3):
        pid = worker.start(*ARGUMENTS, "--epochs", "1", "--workdir", "early")
        time.sleep(rng.random())
        os.kill(pid, signal.SIGKILL)
        worker.wait()
    status, text = worker.run(*ARGUMENTS, "--epochs", "1", "--workdir", "early")
    assert status == 0, text
    status, text = worker.run(*ARGUMENTS, "--epochs", "1", "--workdir", "whole")
    assert status == 0, text
    assert outcome(tmp_path / "early") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_the_command_line(worker, tmp_path):
    """A finished run prints its summary; not a number ends with status 2; the best weights can be
    tested.
    """
    quick = [*ARGUMENTS, "--epochs", "2", "--checkpoint-steps", "0", "--schedule", "constant"]
    args = [*quick, "--workdir", "run", "--test-on", "best"]
    status, text = worker.run(*args)
    assert status == 0 and "accuracy" in text, text
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = metrics_of(tmp_path / "run")
    best = max(rows, key=lambda row: (row["validation_accuracy"], row["step"]))
    assert summary["tested_step"] == best["step"] and summary["test"]["count"] == 50
    before = outcome(tmp_path / "run")
    script = [sys.executable, str(ROOT / "experiments" / "train.py")]
    again = subprocess.run(
        [*script, *args], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert again.returncode == 0 and again.stderr == "", again.stderr
    assert again.stdout.strip() == "\n".join(text.strip().splitlines()[-2:])
    assert outcome(tmp_path / "run") == before

    status, text = worker.run(*args, "--epochs", "3")
    assert status == 0 and "resuming after step 20 of 30" in text, text
    status, text = worker.run(*quick, "--epochs", "3", "--workdir", "longer", "--test-on", "best")
    assert status == 0, text
    assert outcome(tmp_path / "run") == outcome(tmp_path / "longer")

    status, text = worker.run(*args, "--learning-rate", "0.1")
    assert status == 2 and "learning_rate: 0.001 -> 0.1" in text, text

    status, text = worker.run(
        *quick, "--workdir", "nan", "--optimizer", "sgd", "--learning-rate", "1e38"
    )
    (line,) = [line for line in text.splitlines() if line.startswith("error:")]
    assert status == 2 and "not finite after step" in line and "Traceback" not in text, text
