"""A study's folder: `cells/` (results, each in one rename), `locks/` (who trains which now),
checkpoints meanwhile.

The name of a result holds a digest of all that its numbers depend on; those of the data and of a
teacher's weights are in it. (Not noticed: another cnnlab.) So a changed study keeps the cells it
has in common with the old one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from cnnlab import spec
from cnnlab.config import Config, Recipe
from cnnlab.errors import InputError
from cnnlab.parts import find, resolve
from cnnlab.spec import Part
from cnnlab.study import plan
from cnnlab.study.plan import Condition, Study
from cnnlab.study.results import CellResult
from cnnlab.training.run_folder import SHORT, conflicts, stored_form
from cnnlab.types import JsonObject, Metrics


@dataclass(frozen=True)
class Cell:
    """A loss under a condition, what names its files (words for people, a digest for us), and its
    configuration.
    """

    loss: str
    condition: Condition
    words: str
    digest: str
    config: JsonObject = field(default_factory=dict, compare=False)

    @property
    def key(self) -> tuple[str, str]:
        """How the board calls it."""
        return self.loss, plan.label(self.condition)


def config(study: Study, loss: str, condition: Condition) -> Config:
    """Build a cell's configuration; the teacher is only for the losses that take one."""
    with_teacher = plan.config(study, loss, condition)
    first = spec.parse_pipeline(plan.arm(loss)[0])[0]
    taught = find("loss", first).asks("teacher_logits")
    return with_teacher if taught else with_teacher.replace(teacher=None)


def cell(study: Study, loss: str, condition: Condition) -> Cell:
    """Build a study's cell. Its digest covers what its configuration changes, its seeds, its rates
    and the user's files.

    Values at their default are left out of the digest, so that a new hyperparameter in a later
    version does not invalidate finished cells; the file says what the defaults were, and `read`
    compares them.
    """
    configured = config(study, loss, condition)
    recipe = configured.recipe
    parts = resolve(recipe)
    default = Recipe().to_json()
    fields = recipe.to_json() | parts.specs(Part.canonical)
    changed = {k: v for k, v in fields.items() if v != default[k] and k not in SHORT}
    identity = [changed, plan.seeds(study), plan.rates(study), parts.sources()]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    words = re.sub(r"[^\w.=+-]+", "-", f"{loss}--{plan.label(condition)}")[:80]
    return Cell(loss, condition, words, digest, stored_form(configured))


def checkpoints(folder: Path, cell: Cell) -> Path:
    """Return the folder where a cell is saved while it is trained."""
    return folder / f"{cell.digest}.checkpoints"


@contextlib.contextmanager
def claimed(folder: Path, digest: str) -> Iterator[bool]:
    """Take a cell's lock while the body runs, and yield whether that succeeded. It fails if another
    process, on this machine or one that shares the folder, holds the lock; a dead process holds
    none.

    Raises:
      InputError: the folder cannot be written, or has no locks.
    """
    try:
        for name in ("cells", "locks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder / "cells").close()
        file = (folder / "locks" / digest).open("a")
    except OSError as error:
        raise InputError(
            f"the study's folder {folder} cannot be written: {error.strerror}"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            raise InputError(
                f"the study's folder {folder} has no locks ({error.strerror}); take another"
            ) from error
        yield True


@dataclass(frozen=True)
class Digests:
    """What a cell's numbers depend on besides its configuration.

    Attributes:
      digest: of the pixels and labels of both splits.
      teacher_digest: of the teacher's weights.
      test_sets: of the further test sets, by name.
    """

    digest: str
    teacher_digest: str | None
    test_sets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """What a cell's file must hold.

    Attributes:
      seeds: of its runs.
      digests: that it was trained with.
      metrics: names of what was measured.
    """

    seeds: list[int]
    digests: Digests
    metrics: list[str]


def read(folder: Path, cell: Cell, wanted: Wanted) -> CellResult | None:
    """Read a cell's result, whatever the words in its file's name; None if there is none.

    Args:
      folder: of the study.
      cell: of it.
      wanted: what its file must hold.

    Raises:
      InputError: damaged, another cell's, or of other data.
    """
    path = next((folder / "cells").glob(f"*-{cell.digest}.json"), None)
    if path is None:
        return None
    try:
        result = CellResult.from_json(json.loads(path.read_text()))
        tests = [cast(Metrics, run.test) for run in result.runs if run.diverged is None]
        sound = [run.seed for run in result.runs] == wanted.seeds and all(
            isinstance(test[name], float) for test in tests for name in wanted.metrics
        )
        trained_with = Digests(result.digest, result.teacher_digest, wanted.digests.test_sets)
        same = trained_with == wanted.digests
        differing = conflicts(result.config, Config.from_json(cell.config))
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({error!r}); delete it to train that cell again"
        ) from error
    if not sound:
        raise InputError(
            f"{path} does not hold the cell that it is named after; delete it to train that again"
        )
    if not same:
        raise InputError(
            f"{path} was trained on other data, or by another teacher, of the same name; delete "
            "it, or choose another --workdir"
        )
    for name, digest in wanted.digests.test_sets.items():
        if result.test_sets.get(name) != digest:
            how = "on other images of the same name" if name in result.test_sets else "without it"
            raise InputError(
                f"test set {name}: {path} was tested {how}; delete it to train that cell again, or "
                "choose another --workdir"
            )
    if differing:
        raise InputError(
            f"{path} was trained by a version of cnnlab with other defaults "
            f"({'; '.join(differing)}); delete it to train that cell again"
        )
    return dataclasses.replace(result, loss=cell.loss, condition=cell.condition)
