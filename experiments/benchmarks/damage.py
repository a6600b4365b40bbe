"""What becomes of a run, a study and the caches when their files are damaged.

    python experiments/benchmarks/damage.py
    python experiments/benchmarks/damage.py --cases 20 --seed 1 --keep damaged --json damage.json

Small ones are made first: a finished run and one that was killed, a finished study and one that
lacks a cell. Then files of them are damaged, each file in several ways, and after each damage every
command that reads the folder is run on a fresh copy:

    refused         one line, exit status 2
    repaired        an older checkpoint was used, or the file was made again; the same result
    harmless        the same result, though the file stays as it is
    said            another result, and the command said that something was damaged
    silent change   another result
    traceback, hang

"The same result" is that of the undamaged folder bit for bit: weights, summary, epochs; cells,
logits, tables; what is printed. Only times are left out. The exit status is 1 if there is a silent
change, a traceback or a hang.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import importlib
import io
import itertools
import json
import math
import os
import platform
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import compared
import jax
import numpy as np
import tyro
from PIL import Image

from cnnlab import cli, files
from cnnlab.config import Config, Count, Settings, check
from cnnlab.errors import InputError
from cnnlab.study.plan import Study
from cnnlab.training import run

OUTCOMES = ("refused", "repaired", "harmless", "said", "silent change", "traceback", "hang")
BAD = OUTCOMES[-3:]
SUBJECTS = ("runs", "studies", "cache")
SAYS_SO = ("rejected", "damaged", "cannot be read", "was changed", "left out")
LIMIT = 300  # seconds of a command; undamaged ones take 3, with a machine to themselves
WORDS = 2000  # of a trace that are kept
WRITTEN_AFTER = 50  # trials
HOLE = 4096  # bytes of a block that a disk lost
METRIC = """
import jax.numpy as jnp

from cnnlab.metrics import Metric


def sums(logits, labels, mask):
    return jnp.sum(jnp.where(mask, jnp.max(logits, -1), 0))


largest = Metric("largest_logit", sums)
"""


@dataclass(frozen=True)
class Arguments(Settings):
    """Damage the files of runs, studies and caches, and see what becomes of them."""

    cases: Annotated[int, "[1, 1000]"] = 6
    """Damages of each file, and as many edits of values where it holds JSON."""
    files: Count = 8
    """Files of a kind that are damaged in a folder; of more, so many are drawn."""
    subjects: tuple[Annotated[str, SUBJECTS], ...] = SUBJECTS
    """What is damaged: runs, studies, the cache."""
    seed: int = 0
    """Of the draws."""
    keep: str | None = None
    """Folder to keep a copy of each damaged folder in that ended in a silent change, a traceback or
    a hang."""
    json: str | None = None
    """File to write the figures to."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class RunArguments:
    """Load a run from Python."""

    run: tyro.conf.Positional[str]
    """Run folder."""


@dataclass(frozen=True)
class Done:
    """How a command ended.

    Attributes:
      status: its exit status.
      out, err: what it printed.
      trace: of an error that nobody explained.
      hung: whether the time limit ended it.
    """

    status: object
    out: str
    err: str
    trace: str = ""
    hung: bool = False


@dataclass(frozen=True)
class Reader:
    """A command that reads a folder.

    Attributes:
      name: for people.
      script: of experiments/; or "load".
      args: of it.
      result: what it came to, where its status is 0; times left out.
    """

    name: str
    script: str
    args: Sequence[str]
    result: Callable[[Done], str]


@dataclass(frozen=True)
class Subject:
    """A folder to damage.

    Attributes:
      name: for people.
      source: of the undamaged files.
      place: where the readers expect the folder.
      readers: of it.
      besides: folders to remove before each reader.
      forget: whether JAX must forget its compiled programs, as a new process has none.
    """

    name: str
    source: Path
    place: Path
    readers: Sequence[Reader]
    besides: Sequence[Path] = ()
    forget: bool = False

    def fresh(self) -> None:
        """Put an undamaged copy in place."""
        for folder in (self.place, *self.besides):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.source, self.place)
        if self.forget:
            jax.clear_caches()


@dataclass(frozen=True)
class Trial:
    """A damage, and how a reader ended."""

    subject: str
    kind: str
    file: str
    damage: str
    reader: str
    outcome: str
    words: str = field(repr=False, default="")


class Hung(BaseException):
    """A command took too long. No Exception, so that nobody catches it."""


def _hung(number: int, frame: FrameType | None) -> None:
    raise Hung


def load(arguments: RunArguments) -> None:
    """Print what `cnnlab.load` returns of a run folder, without times."""
    loaded = run.load(Path(arguments.run))
    leaves = jax.tree.leaves(loaded.network.variables)
    weights = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()
    print(compared.canonical([loaded.summary, list(loaded.history), loaded.test, weights]))


def call(reader: Reader) -> Done:
    """Run a command in this process."""
    body, settings = _script(reader.script)
    out, err = io.StringIO(), io.StringIO()
    status: object = 0
    before = signal.signal(signal.SIGALRM, _hung)
    signal.alarm(LIMIT)
    warnings.simplefilter("always")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main(body, settings, list(reader.args))
    except SystemExit as end:
        status = end.code or 0
    except Hung:
        return Done(None, out.getvalue(), err.getvalue(), hung=True)
    except Exception:
        return Done(1, out.getvalue(), err.getvalue(), traceback.format_exc())
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return Done(status, out.getvalue(), err.getvalue())


def _script(name: str) -> tuple[Callable[[Any], object], type]:
    if name == "load":
        return load, RunArguments
    module = importlib.import_module(name)
    settings = {"train": Config, "ablate": Study}
    return module.main, settings.get(name) or module.Arguments


# What is damaged


def subjects(root: Path, wanted: Sequence[str]) -> Iterator[Subject]:
    """Make the folders one after the other."""
    for name in ("data", "user"):
        (root / name).mkdir()
    (root / "user" / "my_metrics.py").write_text(METRIC)
    os.chdir(root / "user")  # where commands find a user's module
    shared = ["--data-dir", str(root / "data"), "--fraction", "0.02", "--batch-size", "32"]
    shared += ["--metrics", "my_metrics.largest", "--progress", "off"]
    make = {"runs": _runs, "studies": _studies, "cache": _cache}
    for name in wanted:
        yield from make[name](root, shared)


def _runs(root: Path, shared: list[str]) -> Iterator[Subject]:
    place = root / "run"
    flags = [*shared, "--model", "mlp,hidden=[8]", "--schedule", "constant", "--keep", "3"]
    flags += ["--checkpoint-steps", "3", "--no-tensorboard", "--workdir", str(place)]
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(root / "picture.png")

    def tested(done: Done) -> str:
        return "\n".join([*_lines(done, "test"), compared.summary(place)])

    def trained(done: Done) -> str:
        return "\n".join([*_lines(done, "test"), compared.run(place)])

    again = Reader("train.py again", "train", [*flags, "--epochs", "3"], tested)
    longer = Reader("train.py, another epoch", "train", [*flags, "--epochs", "4"], trained)
    resumed = Reader("train.py resumes", "train", [*flags, "--epochs", "3"], trained)
    evaluate = Reader("evaluate.py", "evaluate", [str(place), "--json"], _printed)
    best = Reader("evaluate.py, best", "evaluate", [*evaluate.args, "--weights", "best"], _printed)
    args = [str(place), str(root / "picture.png"), "--top", "10"]
    predict = Reader("predict.py", "predict", args, _printed)
    loaded = Reader("cnnlab.load", "load", [str(place)], _printed)
    _make(again)
    finished = _keep(place, root / "finished run")
    readers = [again, longer, evaluate, best, predict, loaded]
    subject = Subject("finished run", finished, place, readers)
    yield subject
    subject.fresh()
    # As a kill after the last checkpoint but one leaves it
    steps = sorted(int(path.name) for path in (place / "checkpoints").glob("[0-9]*"))
    shutil.rmtree(place / "checkpoints" / str(steps[-1]))
    for path in (place / "summary.json", *place.glob("*.png")):
        path.unlink()
    killed = _keep(place, root / "killed run")
    yield Subject("killed run", killed, place, [resumed, evaluate, loaded])


def _studies(root: Path, shared: list[str]) -> Iterator[Subject]:
    place = root / "study"
    flags = [*shared, "--model", "softmax_regression", "--epochs", "1", "--seeds", "2"]
    flags += ["--losses", "cross_entropy", "brier", "--tune", "learning_rate=1e-3..1e-1"]
    flags += ["--budget", "2", "--tune-seeds", "1", "--workdir", str(place)]

    def compare(done: Done) -> str:
        return "\n".join([*_lines(done, "  "), compared.study(place)])

    ablate = Reader("ablate.py", "ablate", flags, compare)
    args = [str(place), "--metric", "ece", "ece+temperature"]
    reanalyse = Reader("reanalyse.py", "reanalyse", args, _printed)
    _make(ablate)
    finished = _keep(place, root / "finished study")
    subject = Subject("finished study", finished, place, [ablate, reanalyse])
    yield subject
    subject.fresh()
    for path in [*place.glob("cells/brier*"), *place.glob("*.*")]:
        if path.name != "manifest.json":
            path.unlink()
    partial = _keep(place, root / "partial study")
    yield Subject("study that lacks a cell", partial, place, [ablate])


def _cache(root: Path, shared: list[str]) -> Iterator[Subject]:
    place = root / "another run"
    flags = [*shared, "--model", "mlp,hidden=[8]", "--epochs", "1", "--no-tensorboard"]
    flags += ["--workdir", str(place), "--feed"]

    def trained(done: Done) -> str:
        return "\n".join([*_lines(done, "test"), compared.run(place)])

    readers = [
        Reader(f"train.py, {feed}", "train", [*flags, feed], trained)
        for feed in ("resident", "mapped")
    ]
    # Of the others: only what these read is damaged
    shutil.rmtree(root / "cache", ignore_errors=True)
    for reader in readers:
        shutil.rmtree(place, ignore_errors=True)
        jax.clear_caches()
        _make(reader)
    full = _keep(root / "cache", root / "full cache")
    yield Subject("cache", full, root / "cache", readers, [place], forget=True)


def _make(reader: Reader) -> None:
    done = call(reader)
    if done.status != 0:
        raise InputError(f"{reader.name} failed undamaged, {_how(done)}: {done.err} {done.trace}")


def _how(done: Done) -> str:
    return f"no end after {LIMIT} s" if done.hung else f"status {done.status}"


def _keep(folder: Path, copy: Path) -> Path:
    return Path(shutil.copytree(folder, copy))


def _printed(done: Done) -> str:
    return done.out


def _lines(done: Done, start: str) -> list[str]:
    return [line for line in done.out.splitlines() if line.startswith(start)]


KINDS = (
    ("about.json", "checkpoint, about.json"),
    ("/state/d/", "checkpoint, arrays"),
    ("/state/ocdbt.process_0/", "checkpoint, arrays"),
    ("checkpoints/", "checkpoint, Orbax's other files"),
    (".png", "figure"),
    ("lock", "lock"),
    ("tuning/", "tuning scores"),
    ("xla/", "compiled program"),
    (".rows", "decoded images, mapped"),
    ("images", "decoded images"),
    (".arrays", "facts and summaries of data"),
    (".npz", "logits of a cell"),
    ("cells/", "cell"),
    ("manifest.json", "manifest.json"),
    (".json", ""),
    (".jsonl", ""),
)


def kind_of(name: str) -> str:
    """Return the kind of a file by its path in its folder; tables and pages are one."""
    for part, kind in KINDS:
        if part in name:
            return kind or name
    return "report"


# Damages


def damages(
    content: bytes, rng: np.random.Generator, count: int
) -> Iterator[tuple[str, bytes | None]]:
    """Yield damages of a file, and as many edits if it holds JSON, each kind once before any comes
    again: the name, and the bytes, None where the file is deleted.
    """
    for name in _drawn(["deleted", *BYTES], rng, count):
        damaged = BYTES[name](content, rng) if name in BYTES else None
        if damaged != content:
            yield name, damaged
    for name in _drawn(EDITS, rng, count) if _is_json(content) else ():
        damaged = edited(content, name, rng)
        if damaged != content:
            yield f"JSON: {name}", damaged


def _drawn(names: Sequence[str], rng: np.random.Generator, count: int) -> list[str]:
    rounds = -(-count // len(names))
    return [str(name) for _ in range(rounds) for name in rng.permutation(names)][:count]


def _flipped(content: bytes, rng: np.random.Generator) -> bytes:
    if not content:
        return content
    damaged = bytearray(content)
    damaged[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _hole(content: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(content) // HOLE + 1)) * HOLE
    end = min(start + HOLE, len(content))
    return content[:start] + bytes(end - start) + content[end:]


BYTES: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "a flipped bit": _flipped,
    "another flipped bit": _flipped,
    "nothing left": lambda content, rng: b"",
    "half of it left": lambda content, rng: content[: len(content) // 2],
    "without its last byte": lambda content, rng: content[:-1],
    "more bytes at its end": lambda content, rng: content + rng.bytes(int(rng.integers(1, 100))),
    "all zeros": lambda content, rng: bytes(len(content)),
    "a hole of 4 KiB": _hole,
}
EDITS = ("number changed", "key dropped", "key renamed", "type changed", "NaN", "infinity")
OTHER_TYPES = (None, True, 7, 0.5, "text", [], {}, [[1, 2], 3], {"a": 1})


def _is_json(content: bytes) -> bool:
    """Return whether a file holds JSON objects, in one piece or line by line."""
    try:
        return isinstance(_values(content)[0], dict)
    except (ValueError, IndexError):
        return False


def _values(content: bytes) -> list[Any]:
    try:
        return [json.loads(content)]
    except ValueError:
        return [json.loads(line) for line in content.decode().splitlines()]


def edited(content: bytes, edit: str, rng: np.random.Generator) -> bytes:
    """Edit one value of JSON so that it stays JSON; unchanged where it has no such value."""
    values = _values(content)
    keyed = edit in ("key dropped", "key renamed")
    places = [
        (holder, key)
        for holder, key in _places(values)
        if (isinstance(key, str) if keyed else edit == "type changed" or _is_number(holder[key]))
        and holder is not values
    ]
    if not places:
        return content
    holder, key = places[rng.integers(len(places))]
    if keyed:
        value = holder.pop(key)
        if edit == "key renamed":
            holder[f"{key}x"] = value
    else:
        holder[key] = _another(holder[key], edit, rng)
    lines = len(values) > 1
    return "".join(
        json.dumps(value, indent=None if lines else 2) + "\n" for value in values
    ).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every (dict or list, key or place) in a JSON value."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield value, key
            yield from _places(inner)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _another(value: Any, edit: str, rng: np.random.Generator) -> Any:
    if edit == "number changed":
        return value + 1 if isinstance(value, int) else value * 1.01 + 1e-3
    if edit == "type changed":
        others = [other for other in OTHER_TYPES if type(other) is not type(value)]
        return others[rng.integers(len(others))]
    return math.nan if edit == "NaN" else math.inf


# The campaign


def campaign(arguments: Arguments, root: Path) -> Iterator[Trial]:
    """Damage file after file, and run what reads it."""
    rng = np.random.default_rng(arguments.seed)
    for subject in subjects(root, arguments.subjects):
        wanted = {reader.name: _reference(subject, reader) for reader in subject.readers}
        kinds = collections.defaultdict(list)
        for name in files.names(subject.source):
            kinds[kind_of(name)].append(name)
        for kind, names in kinds.items():
            chosen = rng.permutation(names)[: arguments.files]
            print(f"{subject.name}: {len(chosen)} x {kind}", file=sys.stderr, flush=True)
            for name, reader in itertools.product(map(str, chosen), subject.readers):
                content = (subject.source / name).read_bytes()
                for damage, damaged in damages(content, rng, arguments.cases):
                    outcome, words = _tried(subject, reader, name, damaged, wanted[reader.name])
                    words = words[-WORDS:] if outcome in BAD else ""
                    trial = Trial(subject.name, kind, name, damage, reader.name, outcome, words)
                    _note(trial, subject, arguments.keep, name, damaged)
                    yield trial


def _reference(subject: Subject, reader: Reader) -> str:
    """Return what a reader comes to on the undamaged folder, the same twice."""
    results = []
    for _ in range(2):
        subject.fresh()
        done = call(reader)
        if done.status != 0:
            raise InputError(
                f"{reader.name} failed undamaged, {_how(done)}: {done.err} {done.trace}"
            )
        results.append(_result(reader, done))
    if results[0] != results[1]:
        raise InputError(f"{reader.name} comes to something else each time; {subject.name}")
    return results[0]


def _tried(
    subject: Subject, reader: Reader, name: str, damaged: bytes | None, wanted: str
) -> tuple[str, str]:
    """Run a reader on a damaged copy; return the outcome and what it said."""
    subject.fresh()
    put(subject.place / name, damaged)
    done = call(reader)
    path = subject.place / name
    after = path.read_bytes() if path.is_file() else None
    return classify(done, reader, wanted, after != damaged), done.trace or done.err or done.out


def put(path: Path, content: bytes | None) -> None:
    """Write a file in place; None: delete it."""
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def classify(done: Done, reader: Reader, wanted: str, remade: bool) -> str:
    """Name the outcome of a trial.

    Args:
      done: how the reader ended.
      reader: that read.
      wanted: its result on the undamaged folder.
      remade: whether the damaged file is another one now.
    """
    if done.hung:
        return "hang"
    if done.status == cli.EXIT_INPUT and len(done.err.strip().splitlines()) == 1:
        return "refused"
    if done.status != 0:
        return "traceback"
    says_so = any(words in done.out + done.err for words in SAYS_SO)
    if _result(reader, done) == wanted:
        return "repaired" if remade or says_so else "harmless"
    return "said" if says_so else "silent change"


def _result(reader: Reader, done: Done) -> str:
    try:
        return reader.result(done)
    except (OSError, ValueError) as error:  # it left a damaged file
        return f"no result: {error}"


def _note(
    trial: Trial, subject: Subject, keep: str | None, name: str, damaged: bytes | None
) -> None:
    """Say what must not be, and keep the folder."""
    if trial.outcome not in BAD:
        return
    words = next(reversed(trial.words.strip().splitlines()), "")[:120]
    print(
        f"{trial.outcome}: {trial.file}, {trial.damage}; {trial.reader}: {words}", file=sys.stderr
    )
    if keep is not None:
        number = len(list(Path(keep).iterdir()))
        copy = _keep(subject.source, Path(keep, f"{number} {trial.outcome} {trial.reader}"))
        put(copy / name, damaged)


def table(trials: Sequence[Trial]) -> list[str]:
    """Write a row per kind of file and a column per outcome, in Markdown."""
    counts: dict[str, collections.Counter[str]] = {}
    for trial in trials:
        counts.setdefault(trial.kind, collections.Counter())[trial.outcome] += 1
    counts["all"] = sum(counts.values(), collections.Counter())
    lines = [f"| file | cases | {' | '.join(OUTCOMES)} |", "|---" * (len(OUTCOMES) + 2) + "|"]
    for kind, count in counts.items():
        cells = " | ".join(str(count[outcome]) for outcome in OUTCOMES)
        lines.append(f"| {kind} | {count.total()} | {cells} |")
    return lines


def write(path: Path, arguments: Arguments, trials: Sequence[Trial]) -> None:
    """Write the figures, also those of a campaign that is under way."""
    figures = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "cores": os.cpu_count(),
        **vars(arguments),
        "trials": [vars(trial) for trial in trials],
    }
    files.write_json(path, figures)


def main(arguments: Arguments) -> None:
    cli.writable(arguments.json)
    target = arguments.json and os.path.abspath(arguments.json)
    if arguments.keep is not None:
        Path(arguments.keep).mkdir(parents=True, exist_ok=True)
        arguments = arguments.replace(keep=os.path.abspath(arguments.keep))
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.path.insert(0, "")
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["CNNLAB_CACHE"] = str(Path(temporary, "cache"))
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
        trials: list[Trial] = []
        for trial in campaign(arguments, Path(temporary)):
            trials.append(trial)
            if target and len(trials) % WRITTEN_AFTER == 0:
                write(Path(target), arguments, trials)
        os.chdir(os.path.dirname(os.path.abspath(__file__)))  # the folder is removed
    print(*table(trials), sep="\n", flush=True)
    if target:
        write(Path(target), arguments, trials)
    if any(trial.outcome in BAD for trial in trials):
        raise cli.Stopped("", 1)


if __name__ == "__main__":
    cli.main(main, Arguments)
