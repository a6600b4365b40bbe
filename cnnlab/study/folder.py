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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnnlab import spec
from cnnlab.config import FREE_ON_RESUME, Config
from cnnlab.errors import InputError
from cnnlab.parts import find, resolve
from cnnlab.spec import Part
from cnnlab.study import plan
from cnnlab.study.plan import Condition, Study
from cnnlab.training.run_folder import SHORT, conflicts, stored_form


@dataclass(frozen=True)
class Cell:
    """A loss under a condition, what names its files (words for people, a digest for us), and its
    configuration.
    """

    loss: str
    condition: Condition
    words: str
    digest: str
    config: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def key(self) -> tuple[str, str]:
        """How the board calls it."""
        return self.loss, plan.label(self.condition)


def config(study: Study, loss: str, condition: Condition) -> Config:
    """A cell's configuration; the teacher is for the losses that take one."""
    whole = plan.config(study, loss, condition)
    first = spec.parse_pipeline(loss)[0]
    taught = find("loss", first).asks("teacher_logits")
    return whole if taught else dataclasses.replace(whole, teacher=None)


def cell(study: Study, loss: str, condition: Condition) -> Cell:
    """A study's cell. Its digest is of what its configuration changes, its seeds, its rates and the
    user's files.

    What is at its default is left out of the digest, so that a later version's new hyperparameter
    makes no finished cell invalid; the file says what the defaults were, and `read` compares that.
    """
    configured = config(study, loss, condition)
    parts, default = resolve(configured), Config().to_json()
    fields = (
        configured.to_json()
        | {"dataset": configured.corrupted_dataset()}
        | parts.specs(Part.canonical)
    )
    changed = {
        k: v for k, v in fields.items() if v != default[k] and k not in FREE_ON_RESUME | {*SHORT}
    }
    identity = [changed, plan.seeds(study), plan.rates(study), parts.sources()]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    words = re.sub(r"[^\w.=+-]+", "-", f"{loss}--{plan.label(condition)}")[:80]
    return Cell(loss, condition, words, digest, stored_form(configured))


def checkpoints(folder: Path, cell: Cell) -> Path:
    """Where a cell is saved while it is trained."""
    return folder / f"{cell.digest}.checkpoints"


@contextlib.contextmanager
def claimed(folder: Path, digest: str) -> Iterator[bool]:
    """Whether nobody else, on this machine or one that shares the folder, holds the lock; a dead
    process holds none.

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


def read(
    folder: Path, cell: Cell, seeds: list[int], facts: dict[str, str | None], metrics: Iterable[str]
) -> dict[str, Any] | None:
    """A cell's result, whatever the words in its file's name; None where there is none.

    Args:
      folder: of the study.
      cell: of it.
      seeds: which it must hold.
      facts: digests of data and teacher that it must have been trained with.
      metrics: names of what it must have measured.

    Raises:
      InputError: damaged, another cell's, or of other data.
    """
    path = next((folder / "cells").glob(f"*-{cell.digest}.json"), None)
    if path is None:
        return None
    try:
        result = json.loads(path.read_text())
        sound = [run["seed"] for run in result["runs"]] == seeds
        tests = [run["test"] for run in result["runs"] if run["diverged"] is None]
        sound = sound and all(isinstance(test[name], float) for test in tests for name in metrics)
        same = all(result.get(name) == value for name, value in facts.items())
        differing = conflicts(result["config"], Config.from_json(cell.config))
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
    if differing:
        raise InputError(
            f"{path} was trained by a version of cnnlab with other defaults "
            f"({'; '.join(differing)}); delete it to train that cell again"
        )
    return result | {"loss": cell.loss, "condition": cell.condition}
