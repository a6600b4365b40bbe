"""Kill training processes at random moments, start them again, and compare what they end in.

    python experiments/benchmarks/kill.py
    python experiments/benchmarks/kill.py --kills 200 --json kill.json
    python experiments/benchmarks/kill.py --signal term

    resident     train.py with its images in memory
    streaming    train.py --feed streaming --workers 2
    seeds        ablate.py, four seeds trained together in each cell
    tuned        ablate.py --tune

Each is first run to its end; that is the reference. Then lives follow each other: a new folder, a
process that is killed at a moment drawn from the time that the reference took, another that resumes
and is killed, up to four times, and a last one that nobody disturbs. Weights, summary and epochs,
or cells, logits, tuning and tables, must be those of the reference bit for bit, times left out.
Checkpoints are frequent: every other step, in a study after each epoch instead of each minute.

Counted besides: processes of a killed run that are still there after half a minute; at the end of a
life, files that the reference does not have, and locks that somebody holds. The exit status is 1 if
anything differs, fails or is left over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import compared
import jax

from cnnlab import cli, files
from cnnlab.checkpoint import layout
from cnnlab.config import Count, Settings, check
from cnnlab.data import builders
from cnnlab.errors import InputError

EXPERIMENTS = Path(__file__).parents[1]
# A study of a second would never be saved
STUDY = (
    "import runpy, sys; from cnnlab.study import fit; fit.SAVE_SECONDS = 0.0; "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
MOST_KILLS = 4  # of a life
PATIENCE = 600  # seconds until a process counts as hanging
GRACE = 30.0  # seconds in which what a killed process started must end; it may just be starting
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM}
SCENARIOS = ("resident", "streaming", "seeds", "tuned")
BAD = ("different", "failed to resume", "left-over processes", "left-over files", "held locks")
COLUMNS = ("kills", "lives", "bit-equal", *BAD)


@dataclass(frozen=True)
class Arguments(Settings):
    """Kill training processes and compare what they end in with one that was left alone."""

    kills: Count = 40
    """In all, shared out over the scenarios."""
    scenarios: tuple[Annotated[str, SCENARIOS], ...] = SCENARIOS
    """What is trained."""
    signal: Annotated[str, tuple(SIGNALS)] = "kill"
    """kill (SIGKILL) or term (SIGTERM)."""
    seed: int = 0
    """Of the moments."""
    keep: str | None = None
    """Folder to keep a copy of each run in that went wrong."""
    json: str | None = None
    """File to write the figures to."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Scenario:
    """A command, and what it comes to in its folder."""

    command: Sequence[str]
    result: Callable[[Path], str]


@dataclass(frozen=True)
class Reference:
    """What a command comes to that nobody disturbs.

    Attributes:
      seconds: that it took.
      result: in its folder.
      names: of the files there, those in a checkpoint's step left out.
    """

    seconds: float
    result: str
    names: frozenset[str]


@dataclass
class Row:
    """What was counted of a scenario; `moments` are (seconds until a signal, the exit status)."""

    scenario: str
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COLUMNS, 0))
    moments: list[tuple[float, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, column: str, words: str) -> None:
        """Count what must not be, and say it."""
        self.counts[column] += 1
        self.notes.append(f"{column}: {words}")
        print(f"{self.scenario}: {column}: {words}", file=sys.stderr, flush=True)


def scenarios(data_dir: Path) -> dict[str, Scenario]:
    """Build the commands, without their folders."""
    shared = ["--data-dir", str(data_dir), "--fraction", "0.02", "--batch-size", "32"]
    shared += ["--progress", "off"]
    train = [str(EXPERIMENTS / "train.py"), *shared, "--epochs", "8", "--checkpoint-steps", "2"]
    train += ["--model", "mlp,hidden=[8],batch_norm=true,dropout=0.2", "--test-on", "best"]
    train += ["--augment", "flip+crop,padding=1", "--no-tensorboard"]
    study = ["-c", STUDY, str(EXPERIMENTS / "ablate.py"), *shared, "--epochs", "3"]
    study += ["--model", "mlp,hidden=[8]", "--losses", "cross_entropy", "brier", "--seeds", "4"]
    tune = ["--tune", "learning_rate=1e-3..1e-1", "--budget", "2", "--tune-seeds", "2"]
    streaming = ["--feed", "streaming", "--workers", "2"]
    return {
        "resident": Scenario([*train, "--feed", "resident"], compared.run),
        "streaming": Scenario([*train, *streaming], compared.run),
        "seeds": Scenario(study, _study),
        "tuned": Scenario([*study, *tune], _study),
    }


def _study(folder: Path) -> str:
    return "\n".join([compared.study(folder), compared.logits(folder)])


def start(scenario: Scenario, folder: Path) -> subprocess.Popen[str]:
    """Start a command in a process group of its own; its output goes to a file next to the
    folder.
    """
    with folder.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, *scenario.command, "--workdir", str(folder)],
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )


def ended(process: subprocess.Popen[str], seconds: float) -> int | None:
    """Wait for a process; None if it is still there after the seconds."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
    return None


def left_over(process: subprocess.Popen[str]) -> bool:
    """Return whether the group of an ended process still has members after some seconds; they are
    killed.
    """
    until = time.monotonic() + GRACE
    while time.monotonic() < until:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return True


def names(folder: Path) -> frozenset[str]:
    """List the files in a run folder or a study's; a step of a checkpoint counts as one."""
    steps = [folder / "checkpoints" / str(step) for step in layout.steps(folder / "checkpoints")]
    inside = tuple(f"checkpoints/{step.name}/" for step in steps)
    every = {name for name in files.names(folder) if not name.startswith(inside)}
    return frozenset(every | {f"checkpoints/{step.name}" for step in steps})


def held_locks(folder: Path) -> list[str]:
    """List the lock files of a folder that some process holds."""
    held = []
    for path in [*folder.glob("lock"), *folder.glob("locks/*")]:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(path.name)
    return held


def reference(scenario: Scenario, root: Path) -> Reference:
    """Run a command to its end, twice: first for what is cached, then for its time and its result,
    which must be the same.
    """
    results = []
    seconds = 0.0
    for name in ("first", "second"):
        folder = root / name
        began = time.monotonic()
        process = start(scenario, folder)
        if ended(process, PATIENCE) != 0:
            left_over(process)
            raise InputError(f"undisturbed: {_last_line(folder)}")
        seconds = time.monotonic() - began
        results.append(scenario.result(folder))
    if results[0] != results[1]:
        raise InputError("the command comes to something else each time")
    return Reference(seconds, results[0], names(root / "second"))


def live(scenario: Scenario, wanted: Reference, folder: Path, row: Row, draws: Draws) -> None:
    """Start a command in a new folder, kill it some times, let it end, and compare."""
    row.counts["lives"] += 1
    status = None
    for _ in range(draws.kills()):
        process = start(scenario, folder)
        moment = draws.moment(wanted.seconds)
        status = ended(process, moment)
        if status is not None:  # it was quicker
            break
        process.send_signal(draws.number)
        row.counts["kills"] += 1
        status = ended(process, PATIENCE)
        row.moments.append((moment, status if status is not None else -1))
        if left_over(process):
            row.note("left-over processes", f"{moment:.2f} s after its start")
        status = None if status != 0 else status
    if status is None:
        process = start(scenario, folder)
        status = ended(process, PATIENCE)
        if left_over(process):
            row.note("left-over processes", "of the process that was not killed")
    compare(scenario, wanted, folder, row, status)


def compare(
    scenario: Scenario, wanted: Reference, folder: Path, row: Row, status: int | None
) -> None:
    """Compare the folder of a command that ended with that of the reference."""
    if status != 0:
        row.note("failed to resume", f"status {status}: {_last_line(folder)}")
        return
    if scenario.result(folder) == wanted.result:
        row.counts["bit-equal"] += 1
    else:
        row.note("different", str(folder))
    if strange := names(folder) - wanted.names:
        row.note("left-over files", ", ".join(sorted(strange)))
    if held := held_locks(folder):
        row.note("held locks", ", ".join(held))


def _last_line(folder: Path) -> str:
    lines = folder.with_suffix(".log").read_text().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    return next(reversed(errors or lines), "nothing said")


@dataclass
class Draws:
    """When, and how often, a life is disturbed."""

    rng: random.Random
    number: signal.Signals
    left: int

    def kills(self) -> int:
        """Draw how often."""
        return min(self.left, self.rng.randint(1, MOST_KILLS))

    def moment(self, seconds: float) -> float:
        """Draw a moment of a life of so many seconds."""
        return self.rng.uniform(0.0, seconds)


def measure(arguments: Arguments, root: Path) -> list[Row]:
    """Kill every scenario so many times."""
    builders.prepare("shapes10", root / "data")
    chosen = {name: scenarios(root / "data")[name] for name in arguments.scenarios}
    rows = []
    for place, (name, scenario) in enumerate(chosen.items()):
        folder = root / name
        folder.mkdir()
        wanted = reference(scenario, folder)
        print(f"{name}: {wanted.seconds:.1f} s undisturbed", file=sys.stderr, flush=True)
        row = Row(name)
        number = (arguments.kills + place) // len(chosen)
        rng = random.Random(f"{arguments.seed} {name}")
        while (left := number - row.counts["kills"]) > 0:
            before = len(row.notes)
            life = folder / f"life{row.counts['lives']}"
            live(scenario, wanted, life, row, Draws(rng, SIGNALS[arguments.signal], left))
            print(f"{name}: {row.counts['kills']} of {number}", file=sys.stderr, flush=True)
            if arguments.keep and len(row.notes) > before:
                kept = Path(arguments.keep, f"{name} {life.name}")
                shutil.copytree(life, kept)
                shutil.copy(life.with_suffix(".log"), kept / "said.log")
            shutil.rmtree(life, ignore_errors=True)
        if cached := sorted(path.name for path in (root / "cache").rglob("*.tmp")):
            row.note("left-over files", f"in the cache: {', '.join(cached)}")
        rows.append(row)
    return rows


def table(rows: Sequence[Row]) -> list[str]:
    """Write a row per scenario, in Markdown."""
    lines = [f"| scenario | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in rows:
        lines.append(f"| {row.scenario} | {' | '.join(str(row.counts[c]) for c in COLUMNS)} |")
    total = [str(sum(row.counts[column] for row in rows)) for column in COLUMNS]
    return [*lines, f"| all | {' | '.join(total)} |"]


def main(arguments: Arguments) -> None:
    cli.writable(arguments.json)
    if arguments.keep is not None:
        Path(arguments.keep).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["CNNLAB_CACHE"] = str(Path(temporary, "cache"))
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
        rows = measure(arguments, Path(temporary))
    print(*table(rows), sep="\n", flush=True)
    if arguments.json:
        figures = {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "cores": os.cpu_count(),
            **vars(arguments),
            "rows": [vars(row) for row in rows],
        }
        Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")
    if any(row.counts[column] for row in rows for column in BAD):
        raise cli.Stopped("", 1)


if __name__ == "__main__":
    cli.main(main, Arguments)
