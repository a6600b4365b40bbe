"""What a study is about, written down before its first cell is trained and never rewritten.

Verdicts only count for what was planned: over four metrics, of 100 studies without any effect some
14 have a verdict in one of them. Whatever differs from the manifest is shown without verdicts.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cnnlab import files
from cnnlab.config import Rate
from cnnlab.errors import InputError
from cnnlab.study import folder as folders
from cnnlab.study import plan, schema
from cnnlab.study.folder import Cell
from cnnlab.study.plan import Condition, Study
from cnnlab.study.records import Count, Size
from cnnlab.types import JsonObject

NAME = "manifest.json"
FORM = 2  # of study folders; 1 had cells of all seeds, and no manifest
PLANNED = ("metric", "margin", "baseline", "first_seed", "block", "alpha", "comparisons")

Arms = Mapping[tuple[str, str], Sequence[Cell]]  # cells by `Cell.key`, block after block


@dataclass(frozen=True)
class PlannedArm:
    """An arm under a condition.

    Attributes:
      loss, condition: of it.
      digest: of all that its numbers depend on but its seeds (`Cell.tuning_digest`).
    """

    loss: str
    condition: Condition
    digest: str


@dataclass(frozen=True)
class Manifest:
    """The plan of a study.

    Attributes:
      form: of the folder.
      written: when, in UTC.
      metric, margin, first_seed, block, alpha: of the study.
      baseline: in its canonical form.
      arms: of the study under each condition, the baseline too.
      comparisons: planned, at least as many as the study has.
      recipe: the other settings on which numbers depend, but for those at their defaults.
    """

    form: Count
    written: str
    metric: str
    margin: Rate
    baseline: str
    arms: list[PlannedArm]
    first_seed: Size
    block: Count
    alpha: Annotated[float, "(0, 1)"]
    comparisons: Count
    recipe: JsonObject


def of(study: Study, arms: Arms) -> Manifest:
    """Write down a study, as of now.

    Args:
      study: to write down.
      arms: its cells.
    """
    return Manifest(
        form=FORM,
        written=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        metric=study.metric,
        margin=plan.margin(study),
        baseline=folders.canonical(study, plan.baseline(study)),
        arms=[
            PlannedArm(cells[0].loss, cells[0].condition, cells[0].tuning_digest)
            for cells in arms.values()
        ],
        first_seed=study.first_seed,
        block=plan.block_width(study),
        alpha=study.alpha,
        comparisons=study.comparisons or plan.comparisons(study),
        recipe=_recipe(study),
    )


def _recipe(study: Study) -> JsonObject:
    """Return what all arms have in common, but for settings at their defaults."""
    recipe = plan.config(study, plan.baseline(study), {}).recipe
    _, changed = plan.arm(plan.baseline(study))
    shared = {k: v for k, v in folders.settings(recipe).items() if k not in ("loss", *changed)}
    budget = study.budget if study.tune else None
    besides = {"noise": study.noise, "tune": study.tune, "budget": budget}
    return shared | {name: value for name, value in besides.items() if value is not None}


def settled(study: Study, arms: Arms, folder: Path, cells: Path) -> Manifest:
    """Return the manifest of a study: the one in the folder, else a new one that is written there.

    Args:
      study: to write down.
      arms: its cells.
      folder: of the manifest, created if missing.
      cells: the folder of their files; if it is in the same one, and has some without a manifest,
        that was deleted.

    Raises:
      InputError: the manifest is damaged, missing or cannot be written.
    """
    path = folder / NAME
    if not path.exists():
        if folder == cells.parent and any(cells.glob("*.json")):
            raise InputError(
                f"{path} is missing: what was planned for the cells there cannot be known; choose "
                "another --workdir"
            )
        _write_once(path, of(study, arms))
    try:
        manifest = schema.build(Manifest, files.read_sealed(path))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); restore it, or choose another --workdir"
        ) from error
    if manifest.form != FORM:
        raise InputError(f"{path} is of another version of cnnlab: choose another --workdir")
    return manifest


def _write_once(path: Path, manifest: Manifest) -> None:
    """Write a manifest, unless another process has just done so."""
    temporary = path.with_name(f".{NAME}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_sealed(temporary, dataclasses.asdict(manifest))
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            os.replace(temporary, path)
        temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"the study's folder {path.parent} cannot be written: {error.strerror}"
        ) from error


def deviations(manifest: Manifest, study: Study, arms: Arms) -> list[str]:
    """List in words what a study does otherwise than was planned; empty if verdicts may be drawn.

    Arms and conditions may be added and left out: the planned number of comparisons covers them.
    """
    asked = of(study, arms)
    if study.comparisons is None:
        asked = dataclasses.replace(asked, comparisons=manifest.comparisons)
    pairs = [(name, getattr(asked, name), getattr(manifest, name)) for name in PLANNED]
    names = sorted(asked.recipe.keys() | manifest.recipe.keys())
    pairs += [(name, asked.recipe.get(name), manifest.recipe.get(name)) for name in names]
    return [
        f"{name.replace('_', ' ')} {_word(ours)} instead of {_word(planned)}"
        for name, ours, planned in pairs
        if ours != planned
    ]


def _word(value: object) -> str:
    return "the default" if value is None else str(value)


def family(manifest: Manifest, study: Study, arms: Arms) -> int:
    """Count the comparisons that share the error rate: those planned, and what was added beyond
    them.
    """
    if deviations(manifest, study, arms):  # every arm is another one: there are no verdicts
        return max(manifest.comparisons, plan.comparisons(study))
    known = {arm.digest for arm in manifest.arms}
    baselines = len({plan.label(arm.condition) for arm in manifest.arms})
    added = [
        cells[0]
        for cells in arms.values()
        if cells[0].loss != plan.baseline(study) and cells[0].tuning_digest not in known
    ]
    return max(manifest.comparisons, len(manifest.arms) - baselines + len(added))
