"""The contestants of training.py and gpu.py: processes that train a network and sleep between
turns.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cnnlab import spec
from cnnlab.config import Count, Part, Settings, check
from cnnlab.errors import InputError

HERE = Path(__file__).parent
TORCH_SCRIPT = HERE / "torch_step.py"
# Of a GPU's memory each JAX process takes what it uses, not three quarters: several wait for their
# turn at once.
SHARE = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
# glibc gives nothing back.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4000000000"}

# Steps at the start of a turn that do not count: who has slept finds cold caches, and virtual
# machines take free memory back meanwhile.
WARM_UP = 3

# name -> the optimizer's spec and its learning rate; torch_step.py has the same by these names
OPTIMIZERS = {"adam": ("adam", 1e-3), "sgd": ("sgd,momentum=0.9,nesterov=false", 0.01)}

BF16 = "--compute-dtype", "bfloat16"

# name -> torch_step.py with its options, or training.py's worker with its option and flags of
# train.py; and environment variables
CONTESTANTS: dict[str, tuple[list[str], dict[str, str]]] = {
    "bare step": (["bare", "-"], {}),
    "bare step, bf16": (["bare", "-", *BF16], {}),
    "bare step, one device": (["bare", "-"], {"JAX_NUM_CPU_DEVICES": "1"}),
    "bare step, lax convolution": (["bare", "native"], {"JAX_NUM_CPU_DEVICES": "1"}),
    "pytorch": (["torch"], {}),
    "pytorch, malloc tuned": (["torch"], KEEP_MEMORY),
    "pytorch, compiled": (["torch", "--compile"], {}),
    "pytorch, bf16 autocast": (["torch", "--bf16"], {}),
    "pytorch, bf16, malloc tuned": (["torch", "--bf16"], KEEP_MEMORY),
    "train.py's step": (["step", "-"], {}),
    "train.py's step, bf16": (["step", "-", *BF16], {}),
    "train.py, resident": (["script", "resident"], {}),
    "train.py, streaming": (["script", "streaming"], {}),
    "4 seeds": (["step", "4"], {}),
    "16 seeds": (["step", "16"], {}),
}


@dataclass(frozen=True)
class Contest(Settings):
    """What all contestants train."""

    model: Part = "cnn"
    """Network, as for train.py: a name, then hyperparameters."""
    batch_size: Count = 128
    """Images per step."""
    optimizer: Annotated[str, ("auto", *OPTIMIZERS)] = "auto"
    """adam, sgd (momentum 0.9), or auto: adam for the seed network, otherwise sgd."""
    dataset: str = "shapes10"
    """Data set of train.py and of the seeds."""
    data_dir: str | None = None
    """Its TFDS data directory."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def optimizer_name(self) -> str:
        """The optimizer, chosen by the network where that is left open."""
        seed_network = spec.parse(self.model).name == "cnn"
        return {"auto": "adam" if seed_network else "sgd"}.get(self.optimizer, self.optimizer)

    def recipe_flags(self) -> list[str]:
        """List the flags of train.py that say the same."""
        optimizer, rate = OPTIMIZERS[self.optimizer_name]
        flags = ["--model", self.model, "--batch-size", str(self.batch_size)]
        flags += ["--optimizer", optimizer, "--learning-rate", str(rate)]
        flags += ["--dataset", self.dataset]
        flags += ["--data-dir", self.data_dir] if self.data_dir else []
        return flags

    def torch_flags(self) -> list[str]:
        """List the flags of torch_step.py that say the same."""
        model = spec.parse(self.model)
        flags = ["--model", model.name, "--hyper", json.dumps(dict(model.keywords))]
        flags += ["--batch-size", str(self.batch_size), "--optimizer", self.optimizer_name]
        return flags


def environment(kind: str) -> dict[str, str]:
    """Return the environment of a kind of contestant: huge pages are ours (`cnnlab.backend`)."""
    inherited = dict(os.environ) | SHARE
    if kind == "torch":
        inherited.pop("GLIBC_TUNABLES", None)
    return inherited


class Worker:
    """A contestant's process: asleep until its turn."""

    def __init__(self, name: str, contest: Contest, torch_python: str) -> None:
        (kind, *options), variables = CONTESTANTS[name]
        self.name = name
        self.script = options[0] if kind == "script" else None
        self.batch_size = contest.batch_size
        self.recipe = contest.recipe_flags()
        if self.script:
            self.memory = 0
            return
        command = [torch_python, TORCH_SCRIPT, *contest.torch_flags(), *options]
        if kind != "torch":
            option, *flags = options
            command = [sys.executable, HERE / "training.py", "--worker", kind, option]
            command += [*self.recipe, *flags]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            list(map(str, command)),
            stdin=pipe,
            stdout=pipe,
            text=True,
            env=environment(kind) | variables,
        )
        self.seeds = int(options[0]) if kind == "step" and options[0] != "-" else 1
        self._read("ready")

    def _read(self, wanted: str | None = None) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        while wanted and line and line.strip() != wanted:
            line = self.process.stdout.readline()
        if not line:
            raise InputError(
                f"the contestant {self.name!r} ended with status {self.process.wait()}; see above"
            )
        return line

    def turn(self, steps: int) -> float:
        """Measure the images per second over some steps."""
        if self.script:
            return self._run_script()
        self._time(WARM_UP)
        return steps * self.batch_size * self.seeds / self._time(steps)

    def _time(self, steps: int) -> float:
        """Measure the seconds that some steps take."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # _read says that it has ended
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        line = self._read()
        try:
            return float(line)
        except ValueError:
            raise InputError(f"the contestant {self.name!r} printed {line.strip()!r}") from None

    def _run_script(self) -> float:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                HERE.parent / "train.py",
                *self.recipe,
                "--feed",
                self.script,
                "--epochs",
                "2",
            ]
            command += ["--workdir", f"{folder}/run", "--progress", "off", "--no-tensorboard"]
            process = subprocess.Popen(list(map(str, command)), env=os.environ | SHARE)
            _, status, usage = os.wait4(process.pid, 0)  # of this child alone
            process.returncode = os.waitstatus_to_exitcode(status)
            if status:
                raise InputError(f"train.py ended with status {process.returncode}; see above")
            rows = [
                json.loads(line)
                for line in Path(f"{folder}/run/metrics.jsonl").read_text().splitlines()
            ]
        self.memory = max(self.memory, 1024 * usage.ru_maxrss)
        return rows[-1]["images_per_second"]

    def stop(self) -> int:
        """End the process and return its peak memory in bytes: a worker's on its device, unless
        that is a CPU, else on the host.
        """
        if self.script:
            return self.memory
        assert self.process.stdin
        self.process.stdin.close()
        memory = int(self._read())
        self.process.wait()
        return memory
