"""Seconds from `python experiments/train.py` to its first finished step, and the least that JAX
itself takes; PyTorch's for comparison.

    python experiments/benchmarks/start_up.py --json start_up.json
    python experiments/benchmarks/start_up.py --dataset cifar10 --data-dir DIR --rounds 9 \
        --torch-python ../torch/bin/python

    floor     import jax, flax and optax, and jit one addition
    first     train.py, which has never been compiled; what XLA takes for that is also given, as
              train.py says it
    second    the same command again: XLA's programs come from the cache
    pytorch   torch_step.py: import torch, and a step of the same network on noise, without data

Each start is a process of its own, timed from outside until it prints that it is there, and then
killed; they take turns in random order, and figures are medians over the rounds. The data set
is decoded before, in a cache made for the occasion: a user's first run does that once for each data
set.
"""

from __future__ import annotations

import json
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cnnlab import cli
from cnnlab.config import Count, Settings, check
from cnnlab.errors import InputError

SCRIPT = Path(__file__).parents[1] / "train.py"
TORCH_SCRIPT = Path(__file__).with_name("torch_step.py")
FLOOR = "import jax, flax, optax; print('floor:', jax.jit(lambda x: x + 1)(1), flush=True)"
READY = re.compile(
    r"floor: 2|first step$|first step finished after .* s, ([\d.]+) s of it compilation"
)


@dataclass(frozen=True)
class Arguments(Settings):
    """Time the start of a training run."""

    dataset: str = "shapes10"
    """Data set to train on; it is prepared and decoded before anything is timed."""
    data_dir: str | None = None
    """TFDS data directory. None: TFDS_DATA_DIR or ~/tensorflow_datasets."""
    torch_python: str | None = None
    """Python that has PyTorch; None: without PyTorch."""
    rounds: Count = 7
    """Turns; in each, every start is made once."""
    json: str | None = None
    """File to write the figures to."""

    def __post_init__(self) -> None:
        check(self)


def main(arguments: Arguments) -> None:
    cli.writable(arguments.json)
    train = [str(SCRIPT), "--dataset", arguments.dataset, "--progress", "off"]
    train += ["--data-dir", arguments.data_dir] if arguments.data_dir else []
    commands = {
        "floor": [sys.executable, "-c", FLOOR],
        "first": [sys.executable, *train],
        "second": [sys.executable, *train],
    }
    if arguments.torch_python:
        commands["pytorch"] = [arguments.torch_python, str(TORCH_SCRIPT)]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    compilation = []
    with tempfile.TemporaryDirectory() as folder:
        cold, warm = Path(folder, "cold"), Path(folder, "warm")
        until_ready(commands["second"], warm)  # decodes, and compiles for the second start
        shutil.copytree(warm, cold)
        for _ in range(arguments.rounds):
            # In random order, so that none always follows the same.
            for name in random.sample(list(seconds), len(seconds)):
                if name == "first":
                    shutil.rmtree(cold / "xla")
                cache = cold if name == "first" else warm
                taken, compiling = until_ready(commands[name], cache)
                seconds[name].append(taken)
                compilation += [compiling] if name == "first" else []
    floor = statistics.median(seconds["floor"])
    rows = [{"start": name, "s": statistics.median(taken)} for name, taken in seconds.items()]
    rows[1]["compilation s"] = statistics.median(compilation)
    rest = [
        taken - compiling for taken, compiling in zip(seconds["first"], compilation, strict=True)
    ]
    rows[1]["rest of floor"] = statistics.median(rest) / floor
    for row in rows[2:]:
        row["of floor"] = row["s"] / floor
    for row in rows:
        print(
            json.dumps(
                {
                    key: round(value, 2) if isinstance(value, float) else value
                    for key, value in row.items()
                }
            )
        )
    if arguments.json:
        versions = {
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }
        figures = {
            "versions": versions,
            "dataset": arguments.dataset,
            "rounds": arguments.rounds,
            "rows": rows,
        }
        Path(arguments.json).write_text(
            json.dumps(figures | {"seconds": seconds, "compilation": compilation})
        )


def until_ready(command: list[str], cache: Path) -> tuple[float, float]:
    """Measure the seconds until a command says that it is ready, and how many of them it says it
    spent on compilation.

    Raises:
      InputError: it ended before.
    """
    # As a user starts it: without these, and with Python's own cache of compiled modules.
    ours = "JAX_COMPILATION_CACHE_DIR", "GLIBC_TUNABLES", "PYTHONDONTWRITEBYTECODE"
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment["CNNLAB_CACHE"] = str(cache)
    with tempfile.TemporaryDirectory() as folder, Path(folder, "errors").open("w+") as errors:
        workdir = ["--workdir", str(Path(folder, "run"))] if str(SCRIPT) in command else []
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, *workdir],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if match := READY.match(line):
                    return time.perf_counter() - start, float(match.group(1) or 0)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        errors.seek(0)
        raise InputError(f"no first step: {' '.join(errors.read().split())[-300:] or command}")


if __name__ == "__main__":
    cli.main(main, Arguments)
