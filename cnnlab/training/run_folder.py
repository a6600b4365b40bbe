"""A run's folder: config.json, versions.json, data.json, metrics.jsonl, tensorboard/, summary.json,
and the lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cnnlab import files, provenance, schema, spec
from cnnlab.checkpoint import layout
from cnnlab.config import PARTS, SHORT, STORED_BESIDES, Config, Recipe, names
from cnnlab.data.facts import DataFacts
from cnnlab.errors import InputError
from cnnlab.multihost import agree, processes
from cnnlab.types import JsonObject, Metrics, Row

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

    from cnnlab.parts import Parts

PACKAGES = (
    "cnnlab",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "grain",
    "numpy",
)


def default_path(config: Config) -> Path:
    """Choose the run folder of a configuration: --workdir, or runs/DATASET-MODEL-LOSS-seedN."""
    if config.output.workdir:
        path = files.path(config.output.workdir)
        return path if files.is_remote(path) else path.absolute()
    recipe = config.recipe
    name = f"{recipe.dataset}-{recipe.model}-{recipe.loss}-seed{recipe.seed}"
    name = re.sub(r"[^\w.,=+-]", "_", name)
    if len(name) > 150:  # file systems allow 255
        name = f"{name[:140]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return Path("runs").absolute() / name


def versions() -> JsonObject:
    """Collect what a result depends on besides its configuration. The caller, who has jax, adds a
    device list.
    """
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "flags": {
            k: os.environ[k]
            for k in sorted(os.environ)
            if k in ("XLA_FLAGS", "NPROC") or k.startswith("JAX_")
        },
    }


def read(path: Path) -> tuple[Config, DataFacts, JsonObject]:
    """Read a run folder's configuration, the facts about its data, and the configuration as stored.

    Raises:
      InputError: the folder holds no run, or a file of another.
    """
    config = _read_config(path)
    if config is None:
        raise InputError(f"{path} is no run folder: it has no config.json")
    facts = _read_facts(path, config)
    try:
        described = DataFacts.from_json(facts)
    except InputError as error:
        raise InputError(f"{path}/data.json is damaged: {error}") from error
    return Config.from_json(config), described, config


def earlier_tests(path: Path, step: int) -> dict[str, Metrics]:
    """Return the metrics on further test sets that a folder's summary has of the weights of a
    step.
    """
    summary = {}
    with contextlib.suppress(InputError):  # edited since the start: the run must not end with it
        summary = read_summary(path)
    return summary.get("test_sets", {}) if summary.get("tested_step") == step else {}


def read_summary(path: Path) -> JsonObject:
    """Read a run folder's summary; empty where there is none.

    Raises:
      InputError: it is damaged, was edited, or is of another run.
    """
    config = _read_config(path) or {}
    try:
        summary = _read_part(path / "summary.json", config) or {}
    except _Unreadable as error:
        raise _Unreadable(f"{error}, or run the command again, which writes it") from error
    kinds = {"test": dict, "tested_step": int, "epochs": int, "test_sets": dict}
    values = {"test_sets": {}, **summary}
    is_summary = all(isinstance(values.get(name), kind) for name, kind in kinds.items())
    return summary if is_summary else {}


def check(path: Path, config: Config, quick: bool = False) -> dict | None:
    """Refuse a folder that holds another run, before anything is made; return its summary if it is
    finished.

    Args:
      path: of the folder.
      config: of the command.
      quick: as for `conflicts`.

    Raises:
      InputError: the stored configuration differs in a field that a resumed run may not change, a
        file of the folder is missing or was edited, or $CNNLAB_LOCKS is no folder.
    """
    files.lock_file(path / "lock")
    stored = _read_config(path)
    if stored is None:
        if path.exists() and not path.is_dir():
            raise InputError(f"the run folder {path} is a file; choose another --workdir")
        if path.is_dir() and any(
            name != "lock" and name[0] != "." for name in files.children(path)
        ):
            raise InputError(f"{path} is not empty and holds no run; choose another --workdir")
        if files.is_remote(path):
            files.probe(path, "the run folder").unlink()
            return None
        nearest = next(parent for parent in (path, *path.parents) if parent.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise InputError(
                f"the run folder {path} cannot be written: {nearest} does not allow it"
            )
        return None
    if not _has_results(path):  # it failed before it had learned anything: start afresh
        return None
    _read_facts(path, stored)
    if differing := conflicts(stored, config, quick):
        grown = (
            " (epochs may grow where nothing depends on their number, as under --schedule constant)"
        )
        grown = grown if stored.get("epochs") != config.recipe.epochs else ""
        raise InputError(
            f"{path} holds a run with another configuration: {'; '.join(differing)}{grown}. Choose "
            "another --workdir, or delete that folder"
        )
    summary = {}
    with contextlib.suppress(_Unreadable):  # it is written again
        summary = read_summary(path)
    wanted = {"epochs": config.recipe.epochs, "test_on": config.output.test_on}
    tested = {*config.output.further_test_sets} <= summary.get("test_sets", {}).keys()
    return summary if summary and tested and wanted.items() <= summary.items() else None


def conflicts(stored: JsonObject, wanted: Config, quick: bool = False) -> list[str]:
    """List the fields in which a run folder's configuration forbids resuming with `wanted`, as
    'name: stored -> wanted'.

    Parts are compared by what they resolve to: an alias, or a hyperparameter written at its
    default, is no conflict; a default that has changed since then is a conflict. More epochs are no
    conflict where no part depends on their number: every step already taken stays as it was.

    Args:
      stored: as `stored_form` made it.
      wanted: of the command.
      quick: take parts that are written alike for the same; then nothing is imported where all is
        as it was.
    """
    written = stored.get("written", {})
    known = Recipe().to_json()
    differing = {}
    for name, value in wanted.recipe.to_json().items():
        before = written.get(name, stored.get(name, known[name]))
        if before != value:
            differing[name] = (before, value)
    strange = {
        name: (value, None)
        for name, value in stored.items()
        if name not in {*wanted.to_json(), *STORED_BESIDES}
    }
    quick = quick and not stored.get("sources")  # the user's files have to be looked at
    if not strange and (not quick or differing.keys() & {*PARTS, *SHORT, "epochs"}):
        _settle_parts(stored, wanted, differing)
    return [f"{name}: {old} -> {value}" for name, (old, value) in (differing | strange).items()]


def _settle_parts(
    stored: JsonObject, wanted: Config, differing: dict[str, tuple[object, object]]
) -> None:
    """Compare parts by what they resolve to and by the user's files; allow more epochs where they
    may grow.
    """
    from cnnlab.parts import resolve
    from cnnlab.spec import Part, parse_pipeline

    ours, theirs = resolve(wanted.recipe), resolve(Config.from_json(stored).recipe)
    before = theirs.specs(Part.resolved)
    now = ours.specs(Part.resolved)
    canonical_before = theirs.specs(Part.canonical)
    canonical_now = ours.specs(Part.canonical)
    for name in PARTS:
        old, new = ([text] if isinstance(text, str) else text for text in (before[name], now[name]))
        if [*map(parse_pipeline, old)] == [*map(parse_pipeline, new)]:  # as values: 8 is 8.0
            differing.pop(name, None)
        else:
            alike = canonical_before[name] == canonical_now[name]
            differing[name] = (
                (before[name], now[name])
                if alike
                else (canonical_before[name], canonical_now[name])
            )
    for name in SHORT:  # told as part of the data set
        differing.pop(name, None)
    files_before = stored.get("sources", {})
    files_now = ours.sources()
    gone = "no such file"
    for module in changed_sources(stored, ours):
        old_file = files_before.get(module, gone)
        new_file = files_now.get(module, gone)
        differing[f"your file {module}"] = (old_file[:12], new_file[:12])
    epochs = stored.get("epochs")
    if ours.extendable and isinstance(epochs, int) and wanted.recipe.epochs >= epochs:
        differing.pop("epochs", None)


def changed_sources(stored: JsonObject, parts: Parts) -> list[str]:
    """List the modules of the user that are no longer what a run was started with, or that it did
    not have.
    """
    before = stored.get("sources", {})
    now = parts.sources()
    return sorted(
        module for module in before.keys() | now.keys() if before.get(module) != now.get(module)
    )


def moved_sources(path: Path) -> list[str]:
    """Say which of the user's modules would be imported from another file than a run was started
    with, in a line each; nothing is imported.
    """
    places = (_read_config(path) or {}).get("places", {})
    spec.look_here()
    now = {module: provenance.place(module) or "" for module in places}
    return [
        f"{module} is imported from {now[module]}; the run was started with {before}"
        for module, before in places.items()
        if now[module] and os.path.realpath(now[module]) != os.path.realpath(str(before))
    ]


def _has_results(path: Path) -> bool:
    """Return whether a run folder holds something to lose: a checkpoint or a summary."""
    return (path / "summary.json").exists() or bool(layout.steps(path / "checkpoints"))


def stored_form(config: Config) -> JsonObject:
    """Convert a configuration to the form that a run stores: parts with all hyperparameters, the
    same parts as they were written, and the digests of the user's files.

    Other defaults in a later version do not change it, and new hyperparameters with a default do
    not make it unreadable.
    """
    from cnnlab.parts import further_sets, resolve
    from cnnlab.spec import Part

    fields = config.to_json()
    test_sets = further_sets(config.output.test_sets)
    fields["test_sets"] = [test_set.form(Part.resolved) for test_set in test_sets]
    known = Config().to_json()
    parts = resolve(config.recipe)
    written = {name: fields[name] for name in (*PARTS, *SHORT)}
    resolved = {name: known[name] for name in SHORT} | parts.specs(Part.resolved)
    return fields | resolved | {"written": written, "sources": parts.sources()}


class RunFolder:
    """An open run folder, locked against other processes until it is closed.

    Attributes:
      path: of it.
      run: a text by which its files and checkpoints are known.
      warnings: what changed since the last start.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        environment: JsonObject,
        data: DataFacts,
        unnamed: Collection[str] = (),
    ):
        """Make or reopen the folder.

        Args:
          path: of the folder.
          config: already checked against it (`check`).
          environment: versions and devices; `warnings` says what changed since the last start.
          data: facts about the data, which must not change.
          unnamed: further test sets that are objects: others may come under their names.

        Raises:
          InputError: not writable, in use by another process, or made from other data.
        """
        self.path = path
        self._unnamed = unnamed
        self._lock: IO[str] | None = None  # only the first of several processes has it, and writes
        self._tensorboard: SummaryWriter | None = None  # made for the first row
        self._wants_tensorboard = False
        self.run, self.warnings = agree.on_first(lambda: self._open(config, environment, data))

    def _open(
        self, config: Config, environment: JsonObject, facts: DataFacts
    ) -> tuple[str, list[str]]:
        """Lock the folder and describe the run in it; return its `run` and its `warnings`."""
        path = self.path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = files.lock(path / "lock")
        except OSError as error:
            raise InputError(
                f"the run folder {path} cannot be written ({error.strerror})"
            ) from error
        if self._lock is None:
            raise InputError(
                f"the run folder {path} is in use by another process; wait, or choose --workdir"
            )
        try:
            check(path, config)  # again, now that nobody else can change it
            stored = stored_form(config)
            run = _identity(stored, facts)
            if _has_results(path):
                _, before, config_before = read(path)
                run = config_before.get("run", "")
                self._compare(before, facts)
                facts = dataclasses.replace(facts, test_sets=before.test_sets | facts.test_sets)
            old = environment
            # Damaged versions are written again
            with contextlib.suppress(OSError, ValueError, TypeError):
                old = {**json.loads(files.read_text(path / "versions.json"))}
            warnings = [
                f"{k}: {old.get(k)} -> {v}" for k, v in environment.items() if old.get(k) != v
            ]
            data_dir = config.machine.data_dir or os.environ.get("TFDS_DATA_DIR")
            if data_dir and "://" not in data_dir:  # so that it is found from any directory
                data_dir = os.path.abspath(files.expanded(data_dir))
            stored["data_dir"] = data_dir
            stored["places"] = {name: provenance.place(name) for name in stored["sources"]}
            files.write_sealed(path / "config.json", {"run": run, **stored})
            files.write_json(path / "versions.json", environment)
            files.write_sealed(path / "data.json", {"run": run, **facts.to_json()})
        except BaseException:
            self.close()
            raise
        return run, warnings

    def _compare(self, before: DataFacts, now: DataFacts) -> None:
        """Raise InputError where a run was begun with other data, or taught by other weights."""
        path = self.path
        if before.of_data() != now.of_data():
            raise InputError(
                f"{path} was trained on other data under the same name; choose another --workdir"
            )
        if before.teacher_digest != now.teacher_digest:
            raise InputError(
                f"{path} was taught by other weights or code than --teacher has; choose another "
                "--workdir"
            )
        for name, digest in before.test_sets.items():
            if now.test_sets.get(name, digest) != digest and name not in self._unnamed:
                raise InputError(
                    f"test set {name} is not the one that {path} was begun with; choose another "
                    "--workdir, or give it another name"
                )

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush, and release the lock."""
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None
        if self._lock is not None:
            self._lock.close()

    def start_metrics(self, history: Sequence[Row], tensorboard: bool) -> None:
        """Rewrite metrics.jsonl and the TensorBoard events from `history`; epochs that a killed run
        recorded after these are dropped.
        """
        if processes.index():
            return
        files.write_text(
            self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history)
        )
        files.remove(self.path / "tensorboard")
        self._wants_tensorboard = tensorboard
        for row in history:
            self._events(row)

    def add_metrics(self, row: Row) -> None:
        """Append an epoch's metrics."""
        if processes.index():
            return
        files.append_text(self.path / "metrics.jsonl", json.dumps(row) + "\n")
        self._events(row)

    def write_summary(self, summary: JsonObject) -> None:
        """Write what the run has reached."""
        files.write_sealed(self.path / "summary.json", {"run": self.run, **summary})

    def _events(self, row: Row) -> None:
        if self._wants_tensorboard:
            if self._tensorboard is None:
                from tensorboardX import SummaryWriter

                self._tensorboard = SummaryWriter(str(self.path / "tensorboard"))
            for name, value in row.items():
                if isinstance(value, float):
                    self._tensorboard.add_scalar(name.replace("_", "/", 1), value, row["step"])
            self._tensorboard.flush()


class _Unreadable(InputError):
    """A file that is damaged."""


def _read_sealed(path: Path) -> JsonObject | None:
    """Read a sealed file of a run folder; None where there is none.

    Raises:
      InputError: it is damaged, or was edited.
    """
    try:
        return files.read_sealed(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except files.SealError as error:
        raise InputError(f"{path}: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _Unreadable(f"{path} cannot be read ({error}): restore it") from error


@dataclasses.dataclass(frozen=True)
class _Besides:
    """What config.json holds besides settings (`STORED_BESIDES`)."""

    run: str = ""
    written: dict[str, Any] = dataclasses.field(default_factory=dict)
    sources: dict[str, str] = dataclasses.field(default_factory=dict)
    places: dict[str, str | None] = dataclasses.field(default_factory=dict)


def _read_config(path: Path) -> JsonObject | None:
    """Read the configuration of a run folder; None where there is none.

    Raises:
      InputError: it is damaged, was edited, or holds something of another type besides settings.
    """
    stored = _read_sealed(path / "config.json")
    try:
        schema.build(_Besides, {k: v for k, v in (stored or {}).items() if k in STORED_BESIDES})
    except ValueError as error:
        raise InputError(f"{path}/config.json is damaged: {error}") from error
    return stored


def _read_part(path: Path, config: JsonObject) -> JsonObject | None:
    """Read a sealed file that belongs to a configuration; None where there is none.

    Raises:
      InputError: it is damaged, was edited, or is of another run.
    """
    values = _read_sealed(path)
    if values is not None and values.pop("run", "") != config.get("run", ""):
        raise InputError(f"{path} is of another run than config.json next to it: restore it")
    return values


def _read_facts(path: Path, config: JsonObject) -> JsonObject:
    """Read data.json of a run folder.

    Raises:
      InputError: it is missing, damaged, was edited, or is of another run.
    """
    facts = _read_part(path / "data.json", config)
    if facts is None:
        raise InputError(f"{path}/data.json is missing: restore it")
    return facts


def _identity(stored: JsonObject, facts: DataFacts) -> str:
    """Hash the recipe of a run, as it is stored, and its data."""
    recipe = {name: stored[name] for name in (*names(Recipe), "sources")}
    text = json.dumps([recipe, facts.digest, facts.teacher_digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def command() -> str:
    """Return the command line that started this process, for 'run again' messages."""
    return shlex.join([os.path.relpath(sys.executable), *sys.argv])
