"""What a study is about, written down before its first cell is trained and never rewritten.

Verdicts only count for what was planned: over four metrics, of 100 studies without any effect some
14 have a verdict in one of them. Whatever differs from the manifest is shown without verdicts.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from cnnlab import files, schema
from cnnlab.config import Rate, Recipe, Training
from cnnlab.errors import InputError
from cnnlab.parts import resolve
from cnnlab.study import folder as folders
from cnnlab.study import plan
from cnnlab.study.folder import Cell
from cnnlab.study.plan import Condition, Study
from cnnlab.study.ranges import parse_ranges
from cnnlab.study.records import Count, Size
from cnnlab.types import JsonObject

NAME = "manifest.json"
ADDED = "added.json"  # arms that came later
VERSION = 3  # of study folders; 1 had no manifest, 2 only losses as arms
PLANNED = ("metric", "margin", "baseline", "first_seed", "block", "alpha", "comparisons")

Arms = Mapping[tuple[str, str], Sequence[Cell]]  # cells by `Cell.key`, block after block


@dataclass(frozen=True)
class PlannedArm:
    """An arm under a condition.

    Attributes:
      name, condition: of it.
      digest: of all that its numbers depend on but its seeds (`Cell.arm_digest`).
    """

    name: str
    condition: Condition
    digest: str


@dataclass(frozen=True)
class Manifest:
    """The plan of a study.

    Attributes:
      version: of the folder.
      written: when, in UTC.
      cells: of the study that were there already, trained for another one that shares its folder.
      metric, margin, first_seed, block, alpha: of the study.
      baseline: in its canonical form.
      arms: of the study under each condition, the baseline too.
      comparisons: planned, at least as many as the study has.
      recipe: the other settings on which numbers depend, but for those at their defaults.
    """

    version: Count
    written: str
    cells: Size
    metric: str
    margin: Rate
    baseline: str
    arms: list[PlannedArm]
    first_seed: Size
    block: Count
    alpha: Annotated[float, "(0, 1)"]
    comparisons: Count
    recipe: JsonObject


def of(study: Study, arms: Arms, trained: int = 0) -> Manifest:
    """Write down a study, as of now.

    Args:
      study: to write down.
      arms: its cells.
      trained: how many of them are.
    """
    return Manifest(
        version=VERSION,
        written=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        cells=trained,
        metric=study.metric,
        margin=plan.margin(study),
        baseline=folders.canonical(plan.baseline(study)),
        arms=_planned(arms),
        first_seed=study.first_seed,
        block=plan.block_width(study),
        alpha=study.alpha,
        comparisons=study.comparisons or plan.comparisons(study),
        recipe=_recipe(study),
    )


def _planned(arms: Arms) -> list[PlannedArm]:
    return [
        PlannedArm(cells[0].arm, cells[0].condition, cells[0].arm_digest) for cells in arms.values()
    ]


def _recipe(study: Study) -> JsonObject:
    """Return what all arms have in common, but for settings at their defaults; with the SHA-256 of
    the user's files behind it.
    """
    shared = Recipe(**{f.name: getattr(study.training, f.name) for f in fields(Training)})
    besides: dict[str, object] = {"noise": study.noise, "teacher": shared.teacher}
    shared = dataclasses.replace(shared, teacher=None)  # of those arms whose losses take one
    if study.tune:
        besides |= {
            "tune": " ".join(map(str, parse_ranges(study.tune))),
            "budget": study.budget,
            "tune_seeds": "per seed" if study.tune_per_seed else len(plan.tuning_seeds(study)),
        }
    files_behind = {f"file {name}": sha for name, sha in resolve(shared).sources().items()}
    named = {name: value for name, value in besides.items() if value is not None}
    return folders.settings(shared) | named | files_behind


def read(folder: Path) -> Manifest | None:
    """Read the manifest in a folder; None if there is none.

    Raises:
      InputError: it is damaged, or of another version.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        manifest = schema.build(Manifest, files.read_sealed(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); restore it, or choose another --workdir"
        ) from error
    if manifest.version != VERSION:
        raise InputError(f"{path} is of another version of cnnlab: choose another --workdir")
    return manifest


def settled(study: Study, arms: Arms, folder: Path, workdir: Path) -> Manifest:
    """Return the manifest of a study: the one in the folder, else a new one that is written there.
    It is final once a cell has begun.

    Args:
      study: to write down.
      arms: its cells.
      folder: of the manifest, created if missing.
      workdir: the study's folder, which others may share.

    Raises:
      InputError: the manifest is damaged, missing or cannot be written.
    """
    path = folder / NAME
    of_this = {cell.digest for cells in arms.values() for cell in cells}
    trained = {name.stem.rpartition("--")[2] for name in (workdir / "cells").glob("*.json")}
    begun = trained or any(workdir.glob("*.checkpoints")) or any(workdir.glob("tuning/*"))
    manifest = read(folder)
    if manifest is None:
        if (folder == workdir and trained) or (folder / "verdicts.csv").exists():
            raise InputError(
                f"{path} is missing: what was planned for the cells there cannot be known; choose "
                "another --workdir"
            )
        _write_once(path, of(study, arms, len(trained & of_this)))
    elif not begun and deviations(manifest, study, arms):
        path.unlink(missing_ok=True)
        _write_once(path, of(study, arms))
    manifest = read(folder)
    assert manifest is not None
    return manifest


def _write_once(path: Path, manifest: Manifest) -> None:
    """Write a manifest, unless another process has just done so."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.temporary(path) as new:
            files.write_sealed(new, dataclasses.asdict(manifest))
            try:
                os.link(new, path)
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                new.replace(path)
    except OSError as error:
        raise InputError(
            f"the study's folder {path.parent} cannot be written: {error.strerror}"
        ) from error


def deviations(manifest: Manifest, study: Study, arms: Arms) -> list[str]:
    """List in words what a study does otherwise than was planned; empty if verdicts may be drawn.

    Arms and conditions may be added and left out: the planned number of comparisons covers them.
    """
    current = of(study, arms)
    if study.comparisons is None:
        current = dataclasses.replace(current, comparisons=manifest.comparisons)
    pairs = [(name, getattr(current, name), getattr(manifest, name)) for name in PLANNED]
    names = sorted(current.recipe.keys() | manifest.recipe.keys())
    pairs += [(name, current.recipe.get(name), manifest.recipe.get(name)) for name in names]
    lines = [
        f"{name.replace('_', ' ')} {_word(ours)} instead of {_word(planned)}"
        for name, ours, planned in pairs
        if ours != planned
    ]
    if not lines and _is_edited(manifest, study, arms):
        lines.append("the files behind the baseline instead of those that were there")
    return lines


def _is_edited(manifest: Manifest, study: Study, arms: Arms) -> bool:
    """Return whether the baseline is another one than was planned, by the same name."""
    planned = {
        plan.label(arm.condition): arm.digest
        for arm in manifest.arms
        if folders.canonical(arm.name) == manifest.baseline
    }
    for (arm, label), cells in arms.items():
        digest = cells[0].arm_digest
        if arm == plan.baseline(study) and planned.get(label, digest) != digest:
            return True
    return False


def _word(value: object) -> str:
    return "the default" if value is None else str(value)


def added(folder: Path) -> list[PlannedArm]:
    """Read which arms were added to a study beyond its manifest.

    Raises:
      InputError: the note is damaged.
    """
    path = folder / ADDED
    try:
        values = files.read_sealed(path)["arms"] if path.exists() else []
        return [schema.build(PlannedArm, value) for value in values]
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); restore it, or choose another --workdir"
        ) from error


def extended(manifest: Manifest, study: Study, arms: Arms, folder: Path) -> int:
    """Count the comparisons that share the error rate: those planned, and all that were ever added
    beyond them. What this study adds is noted next to the manifest.

    Raises:
      InputError: the note is damaged, or cannot be written.
    """
    path = folder / ADDED
    before = added(folder)
    try:
        known = {arm.digest for arm in (*manifest.arms, *before)}
        new = [arm for arm in _planned(arms) if arm.digest not in known]
        if new:
            noted = [dataclasses.asdict(arm) for arm in (*before, *new)]
            files.write_sealed(path, {"arms": noted})
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    everything = {arm.digest: arm for arm in (*manifest.arms, *before, *new)}.values()
    compared = sum(folders.canonical(arm.name) != manifest.baseline for arm in everything)
    return max(manifest.comparisons, compared)
