"""Real processes on this machine, joined over localhost: they train as one does, and stop, fail and resume together."""

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from test_parallel import quick_compile

from cnnlab import parallel, recipe
from cnnlab.config import Config
from cnnlab.console import Console

ROOT = Path(__file__).parents[1]
SECONDS = 240  # for what takes ten when nothing else runs
# Everything that draws or reduces over the batch.
FIELDS = {
    "dataset": "shapes10", "widths": (4,), "hidden": (6,), "batch_norm": True, "dropout": 0.3, "flip": "on", "crop": 1,
    "mixup": 0.4, "batch_size": 32, "fraction": 0.05, "epochs": 5,
}  # fmt: skip


def environment(devices: int) -> dict[str, str]:
    quiet = {"JAX_NUMPY_RANK_PROMOTION": "allow", "JAX_NUMPY_DTYPE_PROMOTION": "standard"}
    return os.environ | quiet | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def started(commands: list[list[str]], devices: int):
    """Python processes of as many CPU devices each; whatever happens, none is left."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    children = [subprocess.Popen([sys.executable, *c], env=environment(devices), **pipes) for c in commands]
    try:
        yield children
    finally:
        for child in children:
            with child:
                child.kill()


def taken(config: Config, seeds: list[int] | None, steps: int, dtype: str) -> dict[str, np.ndarray]:
    """Every leaf of the state and totals after so many steps, and the validation's figures, by name."""
    double = dtype == "float64"
    with jax.enable_x64(double), jax.numpy_dtype_promotion("standard"), quick_compile(double):
        experiment = recipe.build(config, Console("off"), seeds)
        state, totals = jax.tree.map(
            lambda leaf: leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf, (experiment.state, experiment.totals)
        )
        items, at_once = list(experiment.items(0, steps)), experiment.dispatch_steps
        for start in range(0, steps, at_once):
            state, totals = experiment.step(state, totals, items[start : start + at_once])
        validation = experiment.validate(state)
        rows = validation if isinstance(validation, list) else [validation]
        found = {name: np.array([row[name] for row in rows]) for name in ("loss", "accuracy", "ece")}
        leaves = jax.tree_util.tree_leaves_with_path(parallel.fetch((state, totals)))
    return found | {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@functools.cache
def alone(seeds: tuple[int, ...] | None, steps: int, dtype: str) -> dict[str, np.ndarray]:
    config = Config(**FIELDS, parallel="jit", devices=1)
    return taken(config, None if seeds is None else list(seeds), steps, dtype)


@pytest.mark.parametrize(
    ("processes", "devices", "seeds", "more"),
    [
        (2, 2, None, {"feed": "streaming"}),
        (4, 1, None, {}),
        (2, 2, (3, 0), {"mesh": "2x2"}),  # a seed on each process, its batch over two devices
        (4, 1, (3, 0), {"mesh": "2x2"}),  # a seed's batch over two processes
    ],
    ids=["2", "4", "2-seeds-apart", "4-seeds-shared"],
)
def test_several_processes_take_the_steps_of_one(processes, devices, seeds, more, shapes10_root, tmp_path):
    """The bounds are the issue's; measured: see the assertions' message when they fail."""
    port = free_port()

    def command(i: int) -> list[str]:
        request = {"join": [f"localhost:{port}", processes, i], "fields": FIELDS | more, "seeds": seeds}
        return ["tests/host_worker.py", json.dumps(request | {"out": str(tmp_path / str(i))})]

    with started([command(i) for i in range(processes)], devices) as children:
        for child in children:
            errors = child.communicate(timeout=SECONDS)[1]
            assert child.returncode == 0, errors[-3000:]
    for steps, dtype, tolerance in ((5, "float32", 1e-5), (20, "float64", 1e-10)):
        wanted = alone(seeds, steps, dtype)
        for i in range(processes):
            with np.load(tmp_path / f"{i}-{dtype}.npz") as found:
                assert set(found) == set(wanted)
                for name, leaf in wanted.items():
                    assert found[name].dtype == leaf.dtype
                    if leaf.dtype.kind == "i":
                        np.testing.assert_array_equal(found[name], leaf, err_msg=name)
                        continue
                    scale = steps * FIELDS["batch_size"] if name == "[1]['loss']" else 1  # a sum over the examples
                    np.testing.assert_allclose(found[name], leaf, rtol=0, atol=tolerance * scale, err_msg=name)
