"""What a GPU does with this package, in one command that ends in time.

    python experiments/benchmarks/gpu.py --minutes 9
    python experiments/benchmarks/gpu.py --torch-python ../torch/bin/python \
        --original airbench94_muon.py --json gpu.json --markdown gpu.md

The parts, those that matter most first: the seed network's bare step and train.py's step against
PyTorch, in float32 and bfloat16; 16 seeds in one program against one; ResNet-18's bare step against
PyTorch; the speed run next to airbench94_muon.py, as many pairs as fit; what deterministic mode
costs. Both files are written anew after each part, so a kill leaves what was measured. What
does not fit in the time or cannot run is listed with the reason.

Steps are timed by the contestants of training.py, in turns of random order. PyTorch's step is not
compiled (training.py has a contestant that is); airbench94_muon.py compiles its own. A mean of
ratios is their geometric mean, each ratio being that of one round or pair. Intervals are Student's,
over the rounds or pairs of this one start of each process. One GPU is used.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import contestants
import numpy as np

from cnnlab import cli, files
from cnnlab.config import Count, Part, Settings, check
from cnnlab.data import builders, storage
from cnnlab.errors import InputError
from cnnlab.study import statistics
from cnnlab.training import run_folder
from cnnlab.types import JsonObject

ROOT = Path(__file__).parents[1]
SPEED_RUN = "speed run"
ORIGINAL = "airbench94_muon.py"
PYTORCH = "pytorch"
LEAST_ROUNDS = 3  # that a part may overrun its share for
CLOSING = 10.0  # seconds that the speed run is given to end its processes
SPEED_RUN_LINE = re.compile(
    r"run \d+/\d+  (?P<who>\w+) +accuracy (?P<accuracy>[\d.]+)  (?P<seconds>[\d.]+) s"
)
# Networks that are small enough for a CPU; the rates are those of a small batch.
TINY_RESNET = "wide_resnet,depth=10,width=1"
TINY_SPEED_RUN = (
    *("--model", "airnet,widths=[4,8]", "--batch-size", "10", "--epochs", "1"),
    *("--validation", "0.9", "--learning-rate", "0.24", "--optimizer"),
    "muon,head_rate=1e-4,bias_rate=0.5,weight_decay=2e-5,momentum=0.85",
)

PROBES = {
    "jax": (
        "import jax, json; device = jax.devices()[0]; "
        "print(json.dumps([jax.__version__, device.platform == 'gpu', device.device_kind]))"
    ),
    PYTORCH: (
        "import torch, json; "
        "print(json.dumps([torch.__version__, torch.cuda.is_available(), 'cuda']))"
    ),
}


@dataclass(frozen=True)
class Arguments(Settings):
    """Measure on a GPU, the most important first, until the time is up."""

    minutes: Annotated[float, "(0, 600]"] = 9.0
    """Time for everything, starts and compilation included."""
    torch_python: str | None = None
    """Python that has PyTorch; None: this one, if it has."""
    original: str | None = None
    """A copy of airbench94_muon.py, to run next to the speed run."""
    dataset: Part | None = None
    """Data set of train.py's steps and the speed run; None: cifar10 where it is prepared, else
    shapes10."""
    data_dir: str | None = None
    """Its TFDS data directory."""
    rounds: Count = 15
    """Turns of each contestant, where the time allows."""
    pairs: Count = 50
    """Speed runs, where the time allows."""
    tiny: bool = False
    """Tiny sizes, on any device: try the script, measure nothing."""
    json: str = "gpu.json"
    """File to write the figures to."""
    markdown: str = "gpu.md"
    """File to write the table to."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Ratio:
    """A comparison of two contestants by their images per second."""

    name: str
    over: str
    under: str
    unit: str = "ratio of images/s"


@dataclass(frozen=True)
class Measurement:
    """A part.

    Attributes:
      contestants: of training.py, or of `DETERMINISTIC`; none for the speed run.
      steps: in a turn.
      least: seconds below which it is not started, a guess of what its processes need.
      weight: of its share of the time that is left.
    """

    name: str
    least: float
    weight: float
    model: str = "cnn"
    steps: int = 320
    contestants: tuple[str, ...] = ()
    ratios: tuple[Ratio, ...] = ()


STEP = "train.py's step"
DETERMINISTIC = "train.py's step, deterministic"
BFLOAT16 = "pytorch, bf16 autocast"
MEASUREMENTS = (
    Measurement(
        "seed network",
        60,
        3,
        contestants=(
            *("bare step", PYTORCH, STEP),
            *("bare step, bf16", BFLOAT16, "train.py's step, bf16"),
        ),
        ratios=(
            Ratio("bare step over pytorch", "bare step", PYTORCH),
            Ratio("train.py's step over pytorch", STEP, PYTORCH),
            Ratio("bare step over pytorch, bf16", "bare step, bf16", BFLOAT16),
            Ratio("train.py's step over pytorch, bf16", "train.py's step, bf16", BFLOAT16),
        ),
    ),
    Measurement(
        "16 seeds",
        30,
        1,
        contestants=(STEP, "16 seeds"),
        ratios=(Ratio("16 seeds over one", "16 seeds", STEP),),
    ),
    Measurement(
        "ResNet-18",
        60,
        2,
        model="resnet18",
        steps=96,
        contestants=("bare step", PYTORCH, "bare step, bf16", BFLOAT16),
        ratios=(
            Ratio("bare step over pytorch", "bare step", PYTORCH),
            Ratio("bare step over pytorch, bf16", "bare step, bf16", BFLOAT16),
        ),
    ),
    Measurement(SPEED_RUN, 90, 4, model="airnet"),
    Measurement(
        "deterministic mode",
        30,
        1,
        contestants=(STEP, DETERMINISTIC),
        # The time of a step is the inverse of its rate.
        ratios=(
            Ratio("step time, deterministic over not", STEP, DETERMINISTIC, "ratio of step times"),
        ),
    ),
)


@dataclass(frozen=True)
class Budget:
    """The time until a deadline, by a clock in seconds."""

    deadline: float
    clock: Callable[[], float] = time.monotonic

    def left(self) -> float:
        """Return the seconds left, negative once it is over."""
        return self.deadline - self.clock()

    def allot(self, seconds: float) -> Budget:
        """Return a budget of these seconds from now on, which ends no later than this one."""
        return replace(self, deadline=min(self.deadline, self.clock() + seconds))

    @contextlib.contextmanager
    def enforced(self, end: Callable[[], object]) -> Iterator[None]:
        """Call a function in the body, from a thread, when the time is up."""
        timer = threading.Timer(max(0.0, self.left()), end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


@dataclass
class Result:
    """What was measured, and what was not."""

    facts: JsonObject
    rows: list[JsonObject] = field(default_factory=list)
    gaps: list[JsonObject] = field(default_factory=list)

    def leave_out(self, part: str, what: str, reason: str) -> None:
        """Note what is not measured, and why."""
        self.gaps.append({"part": part, "what": what, "reason": reason})
        print(f"{part}: {what}: not measured: {reason}", flush=True)

    def add(self, part: str, name: str, unit: str, values: Sequence[float]) -> None:
        """Add a row; a ratio's mean is geometric."""
        if not values:
            return
        row = {"part": part, "what": name, "unit": unit, **summary(values, "ratio" in unit)}
        self.rows.append(row | {"values": list(values)})
        print(f"{part}: {' | '.join(cells(row))}", flush=True)

    def write(self, arguments: Arguments, seconds: float) -> None:
        """Write both files anew."""
        facts = self.facts | {"seconds": round(seconds, 1)}
        value = facts | {"rows": self.rows, "not measured": self.gaps}
        files.write_json(Path(arguments.json), value)
        files.write_text(Path(arguments.markdown), markdown(facts, self.rows, self.gaps))


def main(arguments: Arguments) -> None:
    total = 60 * arguments.minutes
    budget = Budget(time.monotonic() + total)
    cli.writable(arguments.json)
    cli.writable(arguments.markdown)
    if arguments.original and not Path(arguments.original).is_file():
        raise InputError(f"--original {arguments.original} is no file; give a copy of {ORIGINAL}")
    if not arguments.tiny:  # PyTorch's contestants use one, too
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or "0"
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
    arguments = replace(arguments, dataset=arguments.dataset or prepared(arguments.data_dir))
    facts, obstacle = investigate(arguments, budget)
    result = Result(facts)
    for number, part in enumerate(MEASUREMENTS):
        seconds = allowance([later.weight for later in MEASUREMENTS[number:]], part, budget.left())
        # A CPU's tiny sizes need less than these guesses.
        if seconds == 0 and not (arguments.tiny and budget.left() > 0):
            reason = f"{max(0.0, budget.left()):.0f} s were left, it needs about {part.least:.0f} s"
            result.leave_out(part.name, "all of it", reason)
        else:
            limit = budget.allot(seconds or budget.left())
            if part.name == SPEED_RUN:
                time_speed_runs(part, arguments, obstacle, limit, result)
            else:
                time_steps(part, arguments, obstacle, limit, budget, result)
        result.write(arguments, total - budget.left())


def prepared(data_dir: str | None) -> str:
    """Choose the data set: cifar10 if nothing need be downloaded for it."""
    folder = storage.data_root(data_dir) / "cifar10" / builders.VERSIONS["cifar10"]
    there = not folder.is_remote and (folder.path / "dataset_info.json").is_file()
    return "cifar10" if there else "shapes10"


def allowance(weights: Sequence[float], part: Measurement, left: float) -> float:
    """Return the seconds for the first of several parts: its share of those left, at least what it
    needs; 0 where it does not fit.

    Args:
      weights: of this part and those after it.
      part: the first.
      left: seconds.
    """
    if left < part.least:
        return 0.0
    return max(part.least, left * weights[0] / sum(weights))


def another_round(done: int, seconds: float, share: float, left: float) -> bool:
    """Return whether there is time for one more round.

    Args:
      done: rounds so far.
      seconds: that the last one took; 0 before the first.
      share: seconds that are left to the part.
      left: seconds that are left in all, which the first rounds may use.
    """
    return seconds < (left if done < LEAST_ROUNDS else share)


def investigate(arguments: Arguments, budget: Budget) -> tuple[JsonObject, str]:
    """Find out device and versions, each in a process that ends; return them, and why PyTorch's
    contestants cannot run: empty if they can.

    Raises:
      InputError: JAX has no GPU here, and the sizes are not tiny.
    """
    found = probe("jax", sys.executable, budget)
    if isinstance(found, str):
        raise InputError(f"JAX does not start: {found}")
    _, on_gpu, device = found
    if not on_gpu and not arguments.tiny:
        raise InputError(
            f"JAX finds no GPU here but {device}; --tiny tries the script on any device"
        )
    versions = run_folder.versions()
    theirs = probe(PYTORCH, arguments.torch_python or sys.executable, budget)
    if isinstance(theirs, str):
        obstacle = f"PyTorch cannot be imported: {theirs}"
    else:
        versions["PyTorch"] = theirs[0]
        places = {True: "a GPU", False: "the CPU"}
        obstacle = ""
        if theirs[1] != on_gpu:
            obstacle = f"PyTorch computes on {places[theirs[1]]}, JAX on {places[on_gpu]}"
    facts = {"device": device, "versions": versions, "dataset": arguments.dataset}
    return facts | {"minutes": arguments.minutes, "tiny": arguments.tiny}, obstacle


def probe(name: str, python: str, budget: Budget) -> list | str:
    """Ask a Python for a framework: its version, whether it computes on a GPU, and which; or the
    reason why it cannot say.
    """
    command = [python, "-c", PROBES[name]]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env=contestants.environment("torch" if name == PYTORCH else "bare"),
            timeout=max(1.0, budget.left()),
        )
    except OSError as error:
        return f"this Python does not start: {error.strerror}"
    except subprocess.TimeoutExpired:
        return "the time was up"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return f"it printed {done.stdout[-200:]!r}"


class Worker(contestants.Worker):
    """A contestant's process that is killed when its time is up."""

    def __init__(
        self, name: str, arguments: contestants.Contest, torch_python: str, limit: Budget
    ) -> None:
        self.limit = limit
        super().__init__(name, arguments, torch_python)

    def _read(self, wanted: str | None = None) -> str:
        with self.limit.enforced(self.process.kill):
            return super()._read(wanted)

    def end(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.wait()


class Deterministic(contestants.Contest):
    """The same for a contestant that computes the same bits on every run."""

    def recipe_flags(self) -> list[str]:
        return [*super().recipe_flags(), "--deterministic"]


def time_steps(
    part: Measurement,
    arguments: Arguments,
    obstacle: str,
    limit: Budget,
    budget: Budget,
    result: Result,
) -> None:
    """Measure a part's contestants in turns: its share of the time is `limit`, all that is left
    `budget`.
    """
    names = [name for name in part.contestants if not (obstacle and is_pytorch(name))]
    for name in part.contestants:
        if name not in names:
            result.leave_out(part.name, name, obstacle)
    with contextlib.ExitStack() as stack:
        workers = {}
        # PyTorch's last: if one hangs, only the comparison is lost.
        for name in sorted(names, key=is_pytorch):
            try:
                workers[name] = started(name, part, arguments, limit)
            except InputError as error:
                late = "its share of the time was up before it was ready"
                result.leave_out(part.name, name, late if limit.left() <= 0 else str(error))
            else:
                stack.callback(workers[name].end)
                workers[name].limit = budget
        rates = take_turns(part, workers, arguments, limit, budget, result)
    for name, values in rates.items():
        result.add(part.name, name, "images/s", values)
    for ratio in part.ratios:
        if ratio.over in rates and ratio.under in rates:
            values = divided(rates[ratio.over], rates[ratio.under])
            result.add(part.name, ratio.name, ratio.unit, values)


def is_pytorch(name: str) -> bool:
    return name.startswith(PYTORCH)


def started(name: str, part: Measurement, arguments: Arguments, limit: Budget) -> Worker:
    """Start a contestant, and wait until it has compiled.

    Raises:
      InputError: it has ended, perhaps because the time was up.
    """
    kind = Deterministic if name == DETERMINISTIC else contestants.Contest
    settings = kind(
        model=TINY_RESNET if arguments.tiny and part.model == "resnet18" else part.model,
        batch_size=8 if arguments.tiny else 128,
        dataset=arguments.dataset or "shapes10",
        data_dir=arguments.data_dir,
    )
    contestant = STEP if name == DETERMINISTIC else name
    return Worker(contestant, settings, arguments.torch_python or sys.executable, limit)


def take_turns(
    part: Measurement,
    workers: dict[str, Worker],
    arguments: Arguments,
    limit: Budget,
    budget: Budget,
    result: Result,
) -> dict[str, list[float]]:
    """Measure each contestant's images per second once a round, in random order, until there are
    enough rounds or no time; one that ends takes no further part.
    """
    rates = {name: [] for name in workers}
    seconds = 0.0
    rounds = min(2, arguments.rounds) if arguments.tiny else arguments.rounds
    for done in range(rounds):
        if not another_round(done, seconds, limit.left(), budget.left()):
            break
        begun = time.perf_counter()
        for name in random.sample(list(workers), len(workers)):
            try:
                rates[name].append(workers[name].turn(2 if arguments.tiny else part.steps))
            except InputError as error:
                del workers[name]
                reason = "the time was up" if budget.left() <= 0 else str(error)
                result.leave_out(part.name, name, f"after {done} rounds: {reason}")
        seconds = time.perf_counter() - begun
    for name in workers:
        if not rates[name]:
            result.leave_out(part.name, name, "no time was left for a round")
    return rates


def time_speed_runs(
    part: Measurement, arguments: Arguments, obstacle: str, limit: Budget, result: Result
) -> None:
    """Measure speed runs, next to the original if that can run, until the time is up."""
    if not obstacle and not arguments.original:
        obstacle = f"no copy of it was given (--original {ORIGINAL})"
    if obstacle:
        result.leave_out(part.name, ORIGINAL, obstacle)
    # The rest of its share is for its processes to end in.
    stop = limit.allot(max(limit.left() - CLOSING, limit.left() / 2))
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/speedrun.json"
        runs, status = run_until(stop, speed_run(arguments, path, beside=not obstacle))
        if status and not runs and not obstacle and stop.left() > 0:
            reason = f"speedrun.py ended with status {status} next to it"
            result.leave_out(part.name, ORIGINAL, reason)
            runs, status = run_until(stop, speed_run(arguments, path, beside=False))
    what = "the rest" if runs else "all of it"
    if status and stop.left() > 0:
        result.leave_out(part.name, what, f"speedrun.py ended with status {status}")
    elif not runs:
        result.leave_out(part.name, what, "the time was up before the first run")
    add_speed_runs(part.name, runs, result)


def run_until(
    stop: Budget, command: Sequence[str]
) -> tuple[dict[str, list[tuple[float, float]]], int]:
    """Run the speed run's command until it ends or the time is up; return what it printed of its
    runs, as `read_runs`, and its exit status.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        with stop.enforced(process.terminate), process.stdout as lines:
            runs = read_runs(lines)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=CLOSING)
    finally:
        process.kill()
        process.wait()
    return runs, process.returncode


def speed_run(arguments: Arguments, path: str, beside: bool) -> list[str]:
    """Give the command of the speed run."""
    command = [sys.executable, str(ROOT / "speedrun.py"), "--progress", "lines", "--json", path]
    command += ["--config", str(ROOT / "configs" / "airbench94.toml")]
    command += ["--dataset", arguments.dataset or "cifar10", "--compute-dtype", "bfloat16"]
    command += ["--data-dir", arguments.data_dir] if arguments.data_dir else []
    command += ["--runs", str(min(2, arguments.pairs) if arguments.tiny else arguments.pairs)]
    command += TINY_SPEED_RUN if arguments.tiny else ()
    if beside:
        command += ["--beside", str(arguments.original)]
        command += ["--torch-python", arguments.torch_python or sys.executable]
    return command


def read_runs(lines: Iterable[str]) -> dict[str, list[tuple[float, float]]]:
    """Read what the speed run prints: contestant -> accuracy and seconds of each run."""
    runs = {}
    for line in lines:
        if match := SPEED_RUN_LINE.match(line):
            run = float(match["accuracy"]), float(match["seconds"])
            runs.setdefault(match["who"], []).append(run)
    return runs


def add_speed_runs(part: str, runs: dict[str, list[tuple[float, float]]], result: Result) -> None:
    """Add the rows of the speed run; pairs are runs of the same number."""
    names = {"cnnlab": "cnnlab", "airbench": ORIGINAL}
    for who, name in names.items():
        for column, unit in enumerate(("accuracy", "seconds")):
            values = [run[column] for run in runs.get(who, [])]
            result.add(part, name, unit, values)
    pairs = list(zip(*(runs.get(who, []) for who in names), strict=False))
    accuracy = [ours[0] - theirs[0] for ours, theirs in pairs]
    result.add(part, f"cnnlab less {ORIGINAL}", "accuracy", accuracy)
    seconds = [ours[1] / theirs[1] for ours, theirs in pairs]
    result.add(part, f"cnnlab over {ORIGINAL}", "ratio of seconds", seconds)


def divided(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Divide what two contestants did in the same rounds; one may have ended earlier."""
    return [a / b for a, b in zip(over, under, strict=False)]


def summary(values: Sequence[float], geometric: bool = False) -> JsonObject:
    """Compute number, mean and 95 % interval, whose ends are None for a single value."""
    array = np.log(values) if geometric else np.asarray(values)
    ends = [float(array.mean())]
    if len(values) > 1:
        ends += map(float, statistics.t_interval(array))
    if geometric:
        ends = [float(np.exp(end)) for end in ends]
    low, high = ends[1:] or (None, None)
    return {"n": len(values), "mean": ends[0], "low": low, "high": high}


def cells(row: JsonObject) -> list[str]:
    """Write out a row, but for its part."""
    interval = "" if row["low"] is None else f"[{shown(row['low'])}, {shown(row['high'])}]"
    return [row["what"], str(row["n"]), shown(row["mean"]), interval, row["unit"]]


def shown(number: float) -> str:
    """Write a number with four digits, or all before the point.

    >>> shown(12345.6), shown(1.23456)
    ('12,346', '1.235')
    """
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def markdown(facts: JsonObject, rows: list[JsonObject], gaps: list[JsonObject]) -> str:
    """Write the table, with the device and the versions above and what is missing below."""
    versions = facts["versions"]
    packages = [
        f"{name} {versions[name]}"
        for name in ("python", "jax", "jaxlib", "flax", "PyTorch")
        if name in versions
    ]
    taken = f"{facts['seconds']:.0f} s of {60 * facts['minutes']:.0f} s"
    lines = [f"{facts['device']}; {', '.join(packages)}; {facts['dataset']}; {taken}.", ""]
    if facts["tiny"]:
        lines += ["Tiny sizes: these figures say nothing.", ""]
    lines += ["| part | what | n | mean | 95 % interval | unit |", "|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join([row['part'], *cells(row)])} |" for row in rows]
    if gaps:
        lines += ["", "Not measured:", ""]
        lines += [f"- {gap['part']}, {gap['what']}: {gap['reason']}" for gap in gaps]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    cli.main(main, Arguments)
