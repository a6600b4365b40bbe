"""A study's folder: `cells/` (results, each in one rename), `tuning/` (trials that the cells of an
arm share), `locks/` (who trains which now), checkpoints meanwhile.

The name of a result holds a digest of all that its numbers depend on; those of the data and of a
teacher's weights are in it. (Not noticed: another cnnlab.) So a changed study keeps the cells it
has in common with the old one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cnnlab import files, spec
from cnnlab.config import Config, Recipe
from cnnlab.errors import InputError, one_line
from cnnlab.parts import find, resolve
from cnnlab.spec import Part
from cnnlab.study import choices, plan
from cnnlab.study.arms import parse_arm
from cnnlab.study.plan import Condition, Study
from cnnlab.study.records import CellResult
from cnnlab.training.run_folder import SHORT, conflicts, stored_form
from cnnlab.types import JsonObject

TOO_MUCH = (RecursionError, OverflowError)  # what absurd JSON may end in


@dataclass(frozen=True)
class Cell:
    """An arm under a condition with a block of seeds: what is trained together, and one file.

    Attributes:
      arm, condition: of it.
      seeds: of its networks.
      words: in the name of its file, for people.
      digest: in that name, for us.
      arm_digest: of all that its numbers depend on but its seeds.
      config: as a run stores it.
    """

    arm: str
    condition: Condition
    seeds: tuple[int, ...]
    words: str
    digest: str
    arm_digest: str
    config: JsonObject = field(default_factory=dict, compare=False)

    @property
    def key(self) -> tuple[str, str]:
        """The arm and the condition that it belongs to."""
        return self.arm, plan.label(self.condition)

    @property
    def name(self) -> str:
        """Its name for people."""
        return f"{self.arm}, {plan.label(self.condition)}, {plan.seed_range(self.seeds)}"


def config(study: Study, arm: str, condition: Condition) -> Config:
    """Build a cell's configuration; the teacher is only for the losses that take one."""
    with_teacher = plan.config(study, arm, condition)
    first = spec.parse_pipeline(with_teacher.recipe.loss)[0]
    taught = find("loss", first).asks("teacher_logits")
    return with_teacher if taught else with_teacher.replace(teacher=None)


def cells(
    study: Study, arm: str, condition: Condition, blocks: Sequence[tuple[int, ...]]
) -> list[Cell]:
    """Build the cells of an arm under a condition, one for each block of seeds. A cell's digest
    covers what its configuration changes, its seeds, what tuning tries and the user's files.

    Values at their default are left out of the digest, so that a new hyperparameter in a later
    version does not invalidate finished cells; the file says what the defaults were, and `read`
    compares them.
    """
    configured = config(study, arm, condition)
    tuned = choices.identity(study, configured.recipe)
    shared = [settings(configured.recipe), tuned, resolve(configured.recipe).sources()]
    words = re.sub(r"[^\w.=+-]+", "-", f"{arm}--{plan.label(condition)}")[:80]
    stored = stored_form(configured)
    tuning = _digest(shared)
    return [
        Cell(
            arm,
            condition,
            seeds,
            f"{words}--{plan.seed_range(seeds).replace(' ', '-')}",
            _digest([*shared, seeds]),
            tuning,
            stored,
        )
        for seeds in blocks
    ]


def settings(recipe: Recipe, form: Callable[[Part], spec.Spec] = Part.canonical) -> JsonObject:
    """Return the settings of a recipe that are not at their defaults, its parts in a form such as
    the canonical one.
    """
    default = Recipe().to_json()
    fields = recipe.to_json() | resolve(recipe).specs(form)
    return {k: v for k, v in fields.items() if v != default[k] and k not in SHORT}


def canonical(arm: str, form: Callable[[Part], spec.Spec] = Part.canonical) -> str:
    """Return an arm's canonical form, or another one: aliases and defaults written out make no
    difference. One that can no longer be found stays as it is.

    >>> canonical("ce"), canonical("loss=cross_entropy"), canonical("average=ema optimizer=adam")
    ('cross_entropy', 'cross_entropy', 'average=ema optimizer=adam')
    >>> canonical("label_noise=0.40 epochs=5")
    'epochs=5 label_noise=0.4'
    """
    changed = parse_arm(arm)
    try:
        written = Recipe().to_json() | settings(Recipe(**changed), form)
    except InputError:
        return arm
    written |= {name: value for name, value in changed.items() if name in SHORT}
    words = [f"{name}={written[name]}" for name in sorted(changed)]
    return written["loss"] if changed.keys() == {"loss"} else " ".join(words)


def _digest(identity: object) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def file(folder: Path, cell: Cell) -> Path:
    """Return the file that a cell is stored in."""
    return folder / "cells" / f"{cell.words}--{cell.digest}.json"


def checkpoints(folder: Path, digest: str) -> Path:
    """Return the folder where a cell, or a tuning, is saved while it is trained."""
    return folder / f"{digest}.checkpoints"


def check(folder: Path) -> None:
    """Refuse a folder before anything is made in it.

    Raises:
      InputError: it is of an earlier version, whose cells held all seeds of an arm; or
        $CNNLAB_LOCKS is no folder.
    """
    files.lock_file(folder / "locks" / "any")
    for path in (folder / "cells").glob("*.json"):
        is_new = re.search(r"--seeds?-\d+(-to-\d+)?--[0-9a-f]{12}$", path.stem)
        if not is_new and re.search(r"-[0-9a-f]{12}$", path.stem):
            raise InputError(
                f"{folder} holds the study of an earlier version of cnnlab ({path.name}): choose "
                "another --workdir"
            )


@contextlib.contextmanager
def claimed(folder: Path, digest: str) -> Iterator[bool]:
    """Take a cell's lock while the body runs, and yield whether that succeeded. It fails if another
    process, on this machine or one that shares the folder, holds the lock; a dead process holds
    none.

    Raises:
      InputError: the folder cannot be written, or has no locks.
    """
    try:
        for name in ("cells", "tuning", "locks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder / "cells").close()
        file = files.lock(folder / "locks" / digest)
    except OSError as error:
        raise InputError(
            f"the study's folder {folder} cannot be written: {error.strerror}"
        ) from error
    with file or contextlib.nullcontext():
        yield file is not None


@dataclass(frozen=True)
class Digests:
    """What a cell's numbers depend on besides its configuration.

    Attributes:
      digest: of the pixels and labels of both splits.
      teacher_digest: of the teacher's weights.
      test_sets: of the further test sets, by name.
      ood_sets: of the sets of images that are of none of the classes, by name.
    """

    digest: str
    teacher_digest: str | None
    test_sets: Mapping[str, str] = field(default_factory=dict)
    ood_sets: Mapping[str, str] = field(default_factory=dict)


def read(folder: Path, cell: Cell, digests: Digests | None, study: Study) -> CellResult | None:
    """Read a cell's result, whatever the words in its file's name; None if there is none.

    Args:
      folder: of the study.
      cell: of it.
      digests: that it must have been trained with; None: whatever it was.
      study: whose metrics it must hold.

    Raises:
      InputError: damaged, another cell's, or of other data.
    """
    path = next((folder / "cells").glob(f"*--{cell.digest}.json"), None)
    if path is None:
        return None
    try:
        values = files.read_sealed(path)
        result = CellResult.from_json(values, plan.metrics(study), plan.metric(study))
        seeds = tuple(run.seed for run in result.runs)
        if seeds != cell.seeds:
            raise ValueError(
                f"it holds {plan.seed_range(seeds)}, not {plan.seed_range(cell.seeds)}"
            )
        differing = conflicts(result.config, Config.from_json(cell.config))
    except (InputError, OSError, ValueError, LookupError, TypeError, *TOO_MUCH) as error:
        raise InputError(
            f"{path} cannot be read ({one_line(error)}); delete it to train that cell again"
        ) from error
    if differing and (result.arm, result.condition) != (cell.arm, cell.condition):
        raise InputError(
            f"{path} holds another cell, {result.arm}, {plan.label(result.condition)}; delete it "
            "to train its own again"
        )
    if digests is not None:
        _refuse_other_data(path, result, digests)
    if differing:
        raise InputError(
            f"{path} was trained by a version of cnnlab with other defaults "
            f"({'; '.join(differing)}); delete it to train that cell again"
        )
    return dataclasses.replace(result, arm=cell.arm, condition=cell.condition)


def _refuse_other_data(path: Path, result: CellResult, digests: Digests) -> None:
    """Raise InputError unless a cell was trained and tested on the data that is wanted."""
    if (result.digest, result.teacher_digest) != (digests.digest, digests.teacher_digest):
        raise InputError(
            f"{path} was trained on other data, or by another teacher, of the same name; delete "
            "it, or choose another --workdir"
        )
    recorded = result.test_sets | result.ood_sets
    for name, digest in {**digests.test_sets, **digests.ood_sets}.items():
        if recorded.get(name) != digest:
            how = "on other images of the same name" if name in recorded else "without it"
            raise InputError(
                f"test set {name}: {path} was tested {how}; delete it to train that cell again, or "
                "choose another --workdir"
            )
