"""Checkpoints come back bit by bit or not at all: round trips, policy, damage to every file, kills
at every moment.
"""

import gc
import json
import logging
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoint_worker import damage_every_file
from checkpoint_worker import metric as worker_metric
from checkpoint_worker import state as worker_state
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from cnnlab.checkpoint import manager
from cnnlab.checkpoint.manager import CheckpointError, Checkpoints, kept
from cnnlab.errors import InputError


def training_state(seed: int = 0, width: int = 64) -> dict:
    """Parameters, Adam's moments, batch statistics, counters, a typed key and odd leaves, as a run
    would hold them.
    """
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "Dense_0": {"kernel": jax.random.normal(keys[0], (32, width)), "bias": jnp.zeros(width)},
        "Dense_1": {"kernel": jax.random.normal(keys[1], (width, 10), jnp.bfloat16)},
    }
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    # Optax's bias correction and the mixed dtypes need it.
    with jax.numpy_dtype_promotion("standard"):
        _, opt_state = tx.update(jax.tree.map(lambda p: p * 0.3, params), tx.init(params), params)
    return {
        "params": params,
        "opt_state": opt_state,
        "step": jnp.asarray(7, jnp.int32),
        "key": keys[2],
        "mask": np.arange(6).reshape(2, 3) % 2 == 0,
        "counts": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
        "empty": jnp.zeros((0, 3)),
        "odd name/ in '[]": (None, jnp.asarray([-0.0, 1e-45, 3e38], jnp.float32)),
    }


def raw(leaf) -> tuple:
    """Everything a leaf is, as comparable values: shape, dtype, bytes."""
    data = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return data.shape, str(leaf.dtype), np.ascontiguousarray(data).tobytes()


def assert_same(got, wanted) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted), strict=True
    ):
        assert raw(a) == raw(b), jax.tree_util.keystr(path)


def damage_data(step: pathlib.Path) -> None:
    """One flipped bit in the middle of the largest file of a step."""
    file = max(
        (p for p in (step / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


# Round trips


@pytest.mark.slow
def test_everything_comes_back_bit_by_bit(tmp_path):
    state = training_state()
    extra = {"history": [{"loss": 0.1, "lr": 1e-3}], "fingerprint": "ä"}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(state) is None
        checkpoints.save(3, state, metric=0.5, extra=extra)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [3]
        found = checkpoints.restore(jax.tree.map(lambda leaf: leaf, training_state(seed=1)))
    assert (found.step, found.extra, found.metric, found.rejected) == (3, extra, 0.5, ())
    assert_same(found.tree, state)
    assert isinstance(found.tree["mask"], np.ndarray) and isinstance(found.tree["step"], jax.Array)
    assert jax.random.bits(found.tree["key"]) == jax.random.bits(state["key"])


def test_python_numbers_become_what_jit_would_make_of_them(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"step": 5, "lr": 0.1, "exact": np.float64(0.1)})
        found = checkpoints.restore({"step": 0, "lr": 0.0, "exact": np.float64(0)}).tree
    assert found["step"].dtype == jnp.int32 and found["step"] == 5
    assert found["lr"].dtype == jnp.float32
    assert found["exact"].dtype == np.float64 and found["exact"] == 0.1


def test_eight_devices_to_one_and_back(tmp_path):
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("batch"))
    one = SingleDeviceSharding(jax.devices()[3])
    state = {
        "a": jnp.arange(48.0).reshape(16, 3),
        "b": jnp.ones((8,), jnp.bfloat16),
        "key": jax.random.key(1),
    }

    def like(sharding):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
        )

    for number, (before, after) in enumerate(
        [(everywhere, one), (one, everywhere), (split, one), (one, split)]
    ):
        if split in (before, after):
            state.pop("key", None)  # a scalar cannot be split
        placed = jax.device_put(state, before)
        with Checkpoints(tmp_path / str(number)) as checkpoints:
            checkpoints.save(1, placed)
            found = checkpoints.restore(like(after)).tree
        assert_same(found, state)
        assert all(
            leaf.sharding.is_equivalent_to(after, leaf.ndim) for leaf in jax.tree.leaves(found)
        )
    uncommitted = {"x": jnp.ones(3)}
    with Checkpoints(tmp_path / "uncommitted") as checkpoints:
        checkpoints.save(1, uncommitted)
        # Else it could not meet arrays on 8 devices
        assert not checkpoints.restore(uncommitted).tree["x"].committed


def test_the_state_may_change_or_be_donated_while_it_is_written(tmp_path):
    train = jax.jit(lambda t: jax.tree.map(lambda x: x * 1.5 + 1, t), donate_argnums=0)
    state = train({f"leaf_{i}": jnp.arange(200_000.0) + i for i in range(8)})
    counters = np.zeros(300_000)
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        for step in range(4):
            checkpoints.save(step, {"device": state, "host": counters})
            state = train(train(state))
            counters[:] = step + 1
        for step in range(4):
            assert (
                checkpoints.restore({"device": state, "host": counters}, which=step)
                .tree["host"]
                .max()
                == step
            )


# Which steps stay


def test_the_last_ones_and_the_best_stay_also_after_a_restart(tmp_path):
    state = {"x": jnp.arange(3.0)}
    metrics = {
        1: 0.5,
        2: 0.9,
        3: None,
        4: 0.7,
        5: float("nan"),
        6: None,
        7: 0.9,
        8: 0.1,
        9: None,
        10: None,
    }
    expected = {4: [2, 3, 4], 6: [2, 5, 6], 7: [6, 7], 9: [7, 8, 9], 10: [7, 9, 10]}
    # Each save in a manager of its own: the metrics live on disk.
    for step, metric in metrics.items():
        with Checkpoints(tmp_path, keep=2) as checkpoints:
            checkpoints.save(step, state, metric=metric)
        assert checkpoints.steps() == expected.get(step, checkpoints.steps())
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.restore(state).step == 10
        assert checkpoints.restore(state, which="best").step == 7
        assert checkpoints.restore(state, which=9).step == 9
    assert not any(p.name not in ("7", "9", "10") for p in tmp_path.iterdir()), (
        "nothing else is left in the folder"
    )


def test_the_last_ones_and_the_best_stay_within_one_run(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step, metric in enumerate([0.1, 0.8, 0.3, None, 0.2]):
            checkpoints.save(step, {"x": jnp.arange(3.0)}, metric=metric)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 4]
    assert kept({}, 3) == set() and kept({5: None}, 1) == {5}


def test_best_without_any_metric_is_the_newest(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros(2)})
        checkpoints.save(2, {"x": jnp.ones(2)})
        assert checkpoints.restore({"x": jnp.zeros(2)}, which="best").step == 2


# Damage


@pytest.mark.slow
def test_no_damage_to_any_file_is_restored_silently(tmp_path, caplog):
    caplog.set_level(logging.INFO, "cnnlab.checkpoint.manager")
    outcome = damage_every_file(tmp_path, flips=60)
    assert outcome["silent"] == []
    # Orbax's own: marks, and what is written after the rename
    unread = (
        "1/commit_success.txt",
        "1/state/commit_success.txt",
        "1/_CHECKPOINT_METADATA",
    )
    assert all(case.startswith(unread) or case.endswith("no change") for case in outcome["same"]), (
        outcome["same"]
    )
    assert len(outcome["rejected"]) > 600
    gc.collect()  # a task that failed unseen would speak up now
    assert {record.name for record in caplog.records} == {"cnnlab.checkpoint.manager"}, (
        "one line each, no traceback"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("without", "flips"), [(["files"], 30), (["files", "leaves"], 30)])
def test_the_digests_of_the_leaves_are_what_finds_the_damage(tmp_path, worker, without, flips):
    worker.start(action="damage", folder=str(tmp_path / "run"), without=without, flips=flips)
    # In a process of its own: Orbax's readers leave failed tasks behind
    assert worker.status() == 0
    (outcome,) = logged(tmp_path / "run")
    assert outcome["rejected"] > 50
    if "leaves" in without:
        assert outcome["silent"] >= 5, "the harness must be able to find a silently wrong restore"
    else:
        assert outcome["silent"] == 0


@pytest.mark.slow
def test_a_damaged_step_is_named_and_the_one_before_it_taken(tmp_path, caplog):
    caplog.set_level(logging.INFO, "cnnlab.checkpoint.manager")
    first, second = training_state(1), training_state(2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, first, metric=0.2)
        checkpoints.save(20, second, metric=0.9)
        checkpoints.wait()
        damage_data(tmp_path / "20")
        found = checkpoints.restore(first)
        assert found.step == 10
        assert_same(found.tree, first)
        assert (
            len(found.rejected) == 1
            and found.rejected[0].startswith("step 20: ")
            and "20" in caplog.text
        )
        assert checkpoints.restore(first, which="best").step == 10
        with pytest.raises(CheckpointError, match="step 20: "):
            checkpoints.restore(first, which=20)
        # The run goes on from 10 and reaches 20 again: the damaged one is set aside, not
        # overwritten, not counted.
        checkpoints.save(15, first)
        checkpoints.save(20, second, metric=0.9)
        found = checkpoints.restore(first)
        assert (found.step, found.rejected) == (20, ())
        assert_same(found.tree, second)
    assert checkpoints.steps() == [15, 20]
    assert [p.name.split("-")[0] for p in (tmp_path / "rejected").iterdir()] == ["20"]


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\x00"])
def test_a_step_damaged_everywhere_stops_neither_start_nor_restore_nor_save(tmp_path, content):
    state = training_state()
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, metric=step)
    for file in [p for p in (tmp_path / "2").rglob("*") if p.is_file()]:
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        # By a caller who does not restore: what cannot be read is not counted, not deleted
        checkpoints.save(3, state)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2, 3]
        found = checkpoints.restore(state, which="best")
        assert found.step == 1 and found.rejected[0].startswith("step 2: about.json ")
        with pytest.raises(CheckpointError, match=r"step 2: about\.json "):
            checkpoints.restore(state, which=2)


def test_a_best_step_that_cannot_be_read_is_named_not_passed_over(tmp_path):
    state = {"x": jnp.arange(3.0)}
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step, metric in {1: 0.9, 2: 0.5, 3: None}.items():
            checkpoints.save(step, state, metric=metric)
    about = tmp_path / "1" / "about.json"
    about.write_text(about.read_text()[:-1])
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        found = checkpoints.restore(state, which="best")
        assert found.step == 2
        (line,) = found.rejected
        assert line.startswith("step 1: about.json cannot be read")
        assert checkpoints.restore(state).rejected == ()


def test_when_no_step_can_be_trusted_all_are_named(tmp_path):
    state = training_state()
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state)
        checkpoints.wait()
        damage_data(tmp_path / "1")
        (tmp_path / "2" / "about.json").write_text('{"body": [], "sha256": 1}')
        with pytest.raises(CheckpointError, match=r"step 2: .*; step 1: [^\n]*$"):
            checkpoints.restore(state)


def test_a_step_under_another_number_is_rejected(tmp_path):
    state = {"x": jnp.ones(3)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    shutil.copytree(tmp_path / "1", tmp_path / "5")
    found = Checkpoints(tmp_path, read_only=True).restore(state)
    assert found.step == 1 and found.rejected == ("step 5: it was saved as step 1",)


def test_a_step_of_another_run_is_refused(tmp_path):
    """Of the same structure: by hand into the folder, or by a run on other data in its place."""
    state = {"w": np.arange(3.0)}
    for run in ("a", "b", ""):
        with Checkpoints(tmp_path / f"run {run}", run=run) as checkpoints:
            checkpoints.save(7, state)
    for run in ("a", "b", ""):
        for of in ("a", "b", ""):
            with Checkpoints(tmp_path / f"run {of}", read_only=True, run=run) as checkpoints:
                if run == of:
                    assert checkpoints.restore(state).step == 7
                    continue
                for which in ("latest", "best", 7):
                    with pytest.raises(InputError, match=r"step 7 in .* is of another run"):
                        checkpoints.restore(state, which=which)


def test_an_empty_folder_named_like_a_step(tmp_path):
    state = {"x": jnp.ones(3)}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(8, state)
    (tmp_path / "9").mkdir()
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        found = checkpoints.restore(state)
        assert found.step == 8 and found.rejected[0].startswith("step 9: ")
        checkpoints.save(9, state)
    assert checkpoints.steps() == [9]
    (tmp_path / "010").mkdir()
    (tmp_path / "x").mkdir()
    assert checkpoints.steps() == [9]


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s["params"]["Dense_0"].update(bias=jnp.zeros(65)),
            r"'params.Dense_0.bias' is float32\[64\], wanted",
        ),
        (
            lambda s: s["params"].update(Dense_2={"kernel": jnp.ones(2)}),
            r"no leaf 'params.Dense_2.kernel' \(wanted",
        ),
        (
            lambda s: s["params"].pop("Dense_1"),
            r"a leaf '\S*Dense_1.kernel' \(bfloat16\[64, 10\]\) that is not wanted",
        ),
        (
            lambda s: s.update(step=jnp.zeros((), jnp.float32)),
            r"'step' is int32\[\], wanted float32\[\]",
        ),
        (
            lambda s: s.update(key=jax.random.key(0, impl="rbg")),
            r"'key' is key<fry>\[\], wanted key<rbg>\[\]",
        ),
    ],
)
def test_another_structure_is_an_input_error_in_one_line(tmp_path, change, message):
    state = training_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.save(2, state)
        change(state)
        with pytest.raises(InputError, match=message) as error:
            checkpoints.restore(state)
    assert "step 2" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_is_not_stored(tmp_path, value):
    state = training_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        state["params"]["Dense_1"]["kernel"] = (
            state["params"]["Dense_1"]["kernel"].at[3, 3].set(value)
        )
        with pytest.raises(
            CheckpointError, match=r"step 2 .*'params.Dense_1.kernel' bfloat16\[64, 10\]"
        ):
            checkpoints.save(2, state)
        assert checkpoints.restore(training_state()).step == 1
        checkpoints.save(2, training_state())
    assert checkpoints.steps() == [1, 2]


def test_refusals_of_save_and_restore(tmp_path):
    state = {"x": jnp.ones(3)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state)
        with pytest.raises(InputError, match="step 5 already exists"):
            checkpoints.save(5, state)
        with pytest.raises(InputError, match="step 4 is not newer than step 5"):
            checkpoints.save(4, state)
        with pytest.raises(InputError, match="extra must hold JSON"):
            checkpoints.save(6, state, extra={"x": jnp.ones(2)})
        with pytest.raises(InputError, match="leaf 'y' is a str"):
            checkpoints.save(6, {"y": "text"})
        with pytest.raises(InputError, match="leaf 'y' is a ndarray >f4"):
            checkpoints.save(6, {"y": np.zeros(2, ">f4")})
        with pytest.raises(InputError, match=r"two leaves are called 'a\.b'"):
            checkpoints.save(6, {"a": {"b": 1}, "a.b": 2})
        with pytest.raises(InputError, match="nothing to save"):
            checkpoints.save(6, {})
        with pytest.raises(InputError, match=r"step 7 is not in .*; it holds \[5\]"):
            checkpoints.restore(state, which=7)
        checkpoints.save(6, {"y": np.ones(2)})
        with pytest.raises(InputError, match="'y' is float64, which jax would make float32"):
            checkpoints.restore({"y": jax.ShapeDtypeStruct((2,), np.float64)})
        with pytest.raises(InputError, match="'newest'"):
            checkpoints.restore(state, which="newest")
        checkpoints.save(7, state)
    with pytest.raises(InputError, match="closed"):
        checkpoints.save(8, state)
    checkpoints.close()
    assert checkpoints.steps() == [6, 7]
    with pytest.raises(InputError, match="keep"):
        Checkpoints(tmp_path, keep=0)


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"^checkpoints cannot be written to [^\n]*$"):
            Checkpoints(folder)

    def refuse(*_, **__):
        # Tests may run as root, whom no mode stops
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(pathlib.Path, "write_bytes", refuse)
    with pytest.raises(InputError, match="Read-only file system"):
        Checkpoints(tmp_path / "new")


def test_a_folder_that_the_processes_do_not_share_is_refused(tmp_path):
    with pytest.raises(InputError, match="the folder is not shared"):
        manager._see(tmp_path / "what the first one wrote")


def test_a_relative_folder_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints("run") as checkpoints:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        checkpoints.save(1, {"x": jnp.ones(3)})
    assert (tmp_path / "run" / "1").is_dir()


def test_a_reader_changes_nothing(tmp_path):
    assert Checkpoints(tmp_path / "none", read_only=True).restore({"x": jnp.ones(3)}) is None
    assert not (tmp_path / "none").exists()
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()  # a run that is writing
    with (
        Checkpoints(tmp_path, read_only=True) as reader,
        pytest.raises(InputError, match="read-only"),
    ):
        reader.save(1, {"x": jnp.ones(3)})
    assert [p.name for p in tmp_path.iterdir()] == ["3.orbax-checkpoint-tmp"]
    with Checkpoints(tmp_path):
        assert list(tmp_path.iterdir()) == []


# Failures while saving


@pytest.mark.slow
@pytest.mark.parametrize("notice", ["wait", "save", "close", "restore"])
def test_a_failed_save_is_named_and_the_next_one_works(tmp_path, monkeypatch, notice):
    state = {"x": jnp.ones(3)}
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state)
    checkpoints.wait()

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manager, "_fsync", full)
    checkpoints.save(2, state)
    calls = {
        "save": lambda: checkpoints.save(3, state),
        "restore": lambda: checkpoints.restore(state),
    }
    with pytest.raises(CheckpointError, match=r"step 2 .*No space left") as error:
        calls.get(notice, getattr(checkpoints, notice))()
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["1"], (
        "what the failed save wrote is freed, what it replaced stays"
    )
    with checkpoints if notice != "close" else Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(2, state)
    assert checkpoints.steps() == [2]


def test_a_failed_save_counts_neither_as_the_best_nor_as_one_of_the_last(tmp_path, monkeypatch):
    state = {"x": jnp.ones(3)}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state, metric=-step)
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(manager, "_fsync", lambda path: 1 / 0)
            checkpoints.save(5, state, metric=9.0)
            with pytest.raises(CheckpointError, match=r"step 5 .*division"):
                checkpoints.wait()
        checkpoints.save(4, state)
    assert checkpoints.steps() == [1, 3, 4]


def test_a_failed_save_does_not_hide_what_ended_the_run(tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manager, "_fsync", full)
    with pytest.raises(ZeroDivisionError) as error, Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, {"x": jnp.ones(3)})
        raise ZeroDivisionError
    assert "step 2" in error.value.__notes__[0]


def test_all_of_a_step_is_synced_before_it_is_named(tmp_path, monkeypatch):
    synced = {}
    fsync = manager._fsync
    monkeypatch.setattr(
        manager, "_fsync", lambda p: (synced.setdefault(os.stat(p).st_ino, str(p)), fsync(p))
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, training_state())
    step = tmp_path / "1"
    # Orbax writes them later, nobody needs them
    unread = {
        step / "commit_success.txt",
        step / "_CHECKPOINT_METADATA",
    }
    assert {
        p for p in [step, tmp_path, *step.rglob("*")] if p.stat().st_ino not in synced
    } <= unread
    assert not any(str(step) + "/" in path for path in synced.values()), (
        "synced under the temporary name"
    )


# Real processes


class Worker:
    """`checkpoint_worker.py` as a process that forks children to kill."""

    def __init__(self):
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "JAX_NUM_CPU_DEVICES": "1"}
        script = str(pathlib.Path(__file__).parents[1] / "support" / "checkpoint_worker.py")
        self.process = subprocess.Popen(
            [sys.executable, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def start(self, **request) -> int:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self._answer("pid"))

    def status(self) -> int:
        return int(self._answer("exit"))

    def _answer(self, kind: str) -> str:
        word, value = self.process.stdout.readline().split()
        assert word == kind
        return value


@pytest.fixture(scope="module")
def worker():
    worker = Worker()
    yield worker
    worker.process.stdin.close()
    worker.process.wait(timeout=60)
    worker.process.stdout.close()


def logged(folder: pathlib.Path) -> list:
    log = pathlib.Path(f"{folder}.log")
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def assert_sound(folder: pathlib.Path, committed: int) -> int:
    """After a kill: the newest step verifies, is no older than what was reported, and nothing
    listed is half there.
    """
    with Checkpoints(folder) as checkpoints:
        found = checkpoints.restore(worker_state(0))
        if found is None:
            assert committed == 0
            return 0
        assert found.rejected == () and found.step >= committed
        for step in checkpoints.steps():
            one = checkpoints.restore(worker_state(0), which=step)
            assert_same(one.tree, worker_state(step))
            assert (one.extra, one.metric) == ({"step": step}, worker_metric(step))
    assert [p.name for p in folder.iterdir() if not p.name.isdecimal()] == []
    return found.step


@pytest.mark.slow
@pytest.mark.parametrize("wait", [True, False], ids=["sync", "async"])
def test_twenty_kills_at_random_moments(tmp_path, worker, wait):
    rng = random.Random(int(wait))
    folder = tmp_path / "run"
    reached = [0]
    landed = 0
    for _ in range(20):
        pid = worker.start(action="forever", folder=str(folder), wait=wait)
        begun = len(logged(folder))
        patience = time.monotonic() + 30
        # The start-up is not what is to be hit.
        while len(logged(folder)) == begun and time.monotonic() < patience:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(pid, signal.SIGKILL)
        assert worker.status() == -signal.SIGKILL
        landed += any("tmp" in p.name or p.name == "todelete" for p in folder.iterdir())
        reached.append(assert_sound(folder, committed=max(logged(folder), default=0)))
        assert reached[-1] > reached[-2], "each life went on from the one before"
    assert landed >= 5, "most kills must hit a save"


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_a_kill_before_each_file_operation_of_two_saves(tmp_path, worker, part):
    base = tmp_path / "base"
    with Checkpoints(base, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(
                step, worker_state(step), metric=worker_metric(step), extra={"step": step}
            )
    shutil.copytree(base, tmp_path / "count")
    worker.start(action="die_at", folder=str(tmp_path / "count"), event=0)
    assert worker.status() == 0
    *_, operations = logged(tmp_path / "count")
    # The renames, the digests, every sync and every removal of two old steps
    assert operations > 40
    killed = 0
    for event in range(1 + part, operations + 1, 4):
        folder = tmp_path / str(event)
        shutil.copytree(base, folder)
        worker.start(action="die_at", folder=str(folder), event=event)
        killed += worker.status() == -signal.SIGKILL
        assert assert_sound(folder, committed=max(logged(folder), default=3)) >= 3
        shutil.rmtree(folder)
    assert killed > operations // 4 - 5  # the order of Orbax's threads moves the count a little


def test_a_full_disk_costs_one_step_and_says_which(tmp_path, worker):
    folder = tmp_path / "run"
    worker.start(action="disk_full", folder=str(folder))
    assert worker.status() == 0
    at_wait, left, at_save, left_again, restored = logged(folder)
    for message in (at_wait, at_save):
        assert (
            message.startswith(f"checkpoint step 2 in {folder} was not saved: ")
            and "\n" not in message
        )
    assert left == left_again == ["1"]
    assert restored == 2


def test_only_the_words_of_abandoned_writers_are_dropped(monkeypatch):
    said = []
    monkeypatch.setattr(sys, "__unraisablehook__", said.append)
    dropped, kept = (
        SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "else")
    )
    manager._unraisable(dropped)
    manager._unraisable(kept)
    assert said == [kept]


@pytest.mark.slow
def test_an_impatient_ctrl_c_does_not_lose_the_save_under_way(tmp_path, monkeypatch):
    """The second one comes while the first is waiting for the save."""
    sync = manager._fsync

    def slow(path):
        time.sleep(0.3)
        sync(path)

    monkeypatch.setattr(manager, "_fsync", slow)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt) as stop, Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(1, worker_state(1))
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        checkpoints.wait()
    assert not hasattr(stop.value, "__notes__")
    assert Checkpoints(tmp_path / "run", read_only=True).restore(worker_state(0)).step == 1


def test_an_exception_in_the_run_does_not_lose_the_save_under_way(tmp_path, worker):
    worker.start(action="raise", folder=str(tmp_path / "run"))
    assert worker.status() == 1
    state = worker_state(1, size=1_000_000)
    assert_same(Checkpoints(tmp_path / "run", read_only=True).restore(state).tree, state)


@pytest.mark.slow
@pytest.mark.parametrize("close", [True, False])
def test_a_run_prints_nothing_and_loses_nothing_even_unclosed(tmp_path, close):
    code = (
        "import sys, jax.numpy as jnp\nfrom cnnlab.checkpoint.manager import Checkpoints\n"
        "c = Checkpoints(sys.argv[1]); x = {'x': jnp.ones(3_000_000)}\n"
        "for step in range(3): c.save(step, x)\nassert c.restore(x).step == 2\n"
    ) + ("c.close()" if close else "c.save(3, x)")
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert Checkpoints(tmp_path, read_only=True).steps()[-1] == (2 if close else 3)
