"""A study's networks under other metrics, computed from the logits that it kept, without training.

Verdicts are about the metric that was named before the study. What is computed here is to look at.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from cnnlab import files, spec
from cnnlab.console import Console
from cnnlab.errors import InputError, one_line, unknown
from cnnlab.metrics import Metric
from cnnlab.parts import find
from cnnlab.posthoc.metrics import SHOWN, Shown
from cnnlab.spec import Part
from cnnlab.study import folder as folders
from cnnlab.study import logits, manifest, plan
from cnnlab.study.logits import OOD_SETS, TEST, TEST_SETS, VALIDATION, Kept, Outputs
from cnnlab.study.manifest import Manifest
from cnnlab.study.pairing import refuse_other_data
from cnnlab.study.plan import Condition
from cnnlab.study.records import CellResult
from cnnlab.study.results import difference

# Why something is not there that a metric asks for.
MISSING = {
    "validation_logits": "the study held no images out (--validation)",
    "validation_labels": "the study held no images out (--validation)",
    "train_losses": "no training label was made wrong (--label-noise)",
    "wrong_labels": "no training label was made wrong (--label-noise)",
    "ood_logits": "the study was run without --ood-sets",
}


@dataclass(frozen=True)
class Analysis:
    """A metric of logits, and how the logits are transformed before.

    Attributes:
      text: as it was written, such as ece+temperature.
      metric: of them.
      transforms: in their order.
    """

    text: str
    metric: Part
    transforms: tuple[Part, ...]

    @property
    def shown(self) -> Shown:
        """How its values are shown."""
        metric = self.metric.function
        if isinstance(metric, Metric):
            label = metric.label or metric.name
            sizes = (metric.factor, metric.unit, metric.difference_unit, metric.digits)
            return Shown(label, metric.larger_is_better, *sizes)
        return self.metric.mark(SHOWN, Shown(self.metric.name))

    @property
    def label(self) -> str:
        """Its name for people, such as ECE (bins=10) + temperature."""
        hyperparameters = str(self.metric).removeprefix(self.metric.name).removeprefix(",")
        first = f"{self.shown.label} ({hyperparameters})" if hyperparameters else self.shown.label
        return " + ".join([first, *map(str, self.transforms)])

    def compute(self, outputs: Outputs, supply: Mapping[str, np.ndarray]) -> float:
        """Compute the metric of one network.

        Args:
          outputs: logits float[N, K] and labels int[N] of the network.
          supply: what else is kept of it, of parts.LOGITS_INPUTS.

        Raises:
          InputError: whatever the metric or a transform raises.
        """
        scores = np.asarray(outputs.logits, np.float64)
        supply = dict(supply)
        for part in self.transforms:
            rescale = functools.partial(part.call, **supply)
            changed = {
                name: rescale(supply[name])
                for name in ("validation_logits", "ood_logits")
                if name in supply
            }
            scores = rescale(scores)
            supply |= changed
        if isinstance(self.metric.function, Metric):
            return _of_sums(self.metric.function, scores, outputs.labels)
        value = np.asarray(self.metric.call(scores, outputs.labels, **supply))
        if value.shape or value.dtype.kind not in "fiub":
            raise InputError(f"post-hoc metric {self.metric} must return a number, got {value!r}")
        return float(value)

    def missing(self, kept: Kept) -> str:
        """Return the name of what the metric or a transform asks for and is not kept; empty if all
        of it is.
        """
        there = {"class_counts"}
        if VALIDATION in kept.sets:
            there |= {"validation_logits", "validation_labels"}
        if kept.train_losses is not None:
            there |= {"train_losses", "wrong_labels"}
        if any(name.startswith(OOD_SETS) for name in kept.sets):
            there.add("ood_logits")
        asked = (
            name
            for part in (self.metric, *self.transforms)
            for name in MISSING
            if part.requires(name) and name not in there
        )
        return next(asked, "")


def _of_sums(metric: Metric, scores: np.ndarray, labels: np.ndarray) -> float:
    """Compute a metric of sums over all images at once."""
    mask = jnp.ones(len(labels), bool)
    total = metric.sums(jnp.asarray(scores, jnp.float32), jnp.asarray(labels), mask)
    return float(metric.finish(np.asarray(total, np.float64), float(len(labels))))


def parse(texts: Sequence[str]) -> list[Analysis]:
    """Parse what to compute, each a metric and transforms of its logits after a +.

    Raises:
      InputError: there is no text, or an unknown name or hyperparameter.
    """
    if not texts:
        raise InputError("--metric names what to compute, such as ece+temperature")
    analyses: dict[tuple[str, ...], Analysis] = {}
    for text in texts:
        first, *rest = spec.parse_pipeline(text)
        transforms = tuple(find("rescaling", written) for written in rest)
        analysis = Analysis(text, find("posthoc", first), transforms)
        same = tuple(str(part.canonical()) for part in (analysis.metric, *transforms))
        analyses.setdefault(same, analysis)
    return [*analyses.values()]


@dataclass(frozen=True)
class KeptCell:
    """A cell with the file of its logits."""

    result: CellResult
    path: Path

    def read(self) -> Kept | None:
        """Read its logits; None if all its networks diverged.

        Raises:
          InputError: none were kept, or the file is not theirs.
        """
        if self.result.logits_digest:
            return logits.read(self.path, self.result.logits_digest)
        if all(run.test is None for run in self.result.runs):
            return None
        raise InputError(
            f"no logits were kept with {self.path.with_suffix('.json')}: the study was run with "
            "--keep-logits none"
        )


@dataclass(frozen=True)
class KeptStudy:
    """What is there of a study.

    Attributes:
      manifest: what was planned.
      conditions: of it.
      arm_names: of it.
      cells: (condition, arm) by number -> cells, in the order of their seeds, which follow each
        other from the first.
      absent: what was planned and is not there, or follows a gap, in words.
    """

    manifest: Manifest
    conditions: list[Condition]
    arm_names: list[str]
    cells: dict[tuple[int, int], list[KeptCell]]
    absent: Sequence[str] = ()

    @property
    def baseline(self) -> int:
        """The number of the baseline among the arms."""
        canonical = [folders.canonical(name) for name in self.arm_names]
        return canonical.index(self.manifest.baseline)


@dataclass(frozen=True)
class Measured:
    """A metric of every network of a study.

    Attributes:
      name: as it was written, with the set that it is about where that is not the test set.
      label: the same for people, such as ECE + temperature.
      shown: how its values are shown.
      values: (condition, arm) by number -> float64[seeds]; NaN where a network diverged, or the
        metric is not defined.
    """

    name: str
    label: str
    shown: Shown
    values: dict[tuple[int, int], np.ndarray]

    def gap(self, place: tuple[int, int], baseline: int) -> np.ndarray:
        """Subtract the baseline's values of the same seeds: float64[seeds]; empty without them, for
        the baseline itself, and where the metric is defined for neither.
        """
        base = self.values.get((place[0], baseline))
        if base is None or place[1] == baseline:
            return np.array([])
        if np.isnan(base).all() and np.isnan(self.values[place]).all():
            return np.array([])
        return difference(self.values[place], base, self.shown.larger_is_better)


def read(folder: Path, plan_folder: Path | None = None) -> KeptStudy:
    """Read what is there of a study.

    Args:
      folder: of its cells.
      plan_folder: of its manifest; None: the same.

    Raises:
      InputError: there is no manifest, a file is damaged, cells are of different data under the
        same name, or no cell of the baseline is there.
    """
    plan_folder = plan_folder or folder
    planned = manifest.read(plan_folder)
    if planned is None:
        raise InputError(f"{plan_folder} is no study's folder: it has no {manifest.NAME}")
    of_arm: dict[str, list[KeptCell]] = {}
    for path in sorted((folder / "cells").glob("*.json")):
        result = _read_cell(path)
        of_arm.setdefault(result.arm_digest, []).append(KeptCell(result, logits.file(path)))
    arms = [*planned.arms, *manifest.added(plan_folder)]
    conditions = list({plan.label(arm.condition): arm.condition for arm in arms}.values())
    names = list({folders.canonical(arm.name): arm.name for arm in arms}.values())
    cells = {}
    absent = []
    for arm in arms:
        there = of_arm.get(arm.digest, [])
        if found := _in_a_row(there, planned):
            cells[conditions.index(arm.condition), _place(names, arm.name)] = found
        where = f"{arm.name}, {plan.label(arm.condition)}" if arm.condition else arm.name
        if len(found) < len(there):
            seed = planned.first_seed + len(found) * planned.block
            absent.append(f"{where}, from seed {seed} on: the cell that begins there is missing")
        elif not there:
            absent.append(f"{where}: no cell is there")
    refuse_other_data(cell.result for of_place in cells.values() for cell in of_place)
    kept = KeptStudy(planned, conditions, names, cells, absent)
    if not any(place[1] == kept.baseline for place in cells):
        raise InputError(f"{folder} has no finished cell of the baseline, {planned.baseline}")
    return kept


def _place(names: Sequence[str], name: str) -> int:
    return [folders.canonical(n) for n in names].index(folders.canonical(name))


def _read_cell(path: Path) -> CellResult:
    try:
        return CellResult.from_json(files.read_sealed(path), {})
    except (OSError, ValueError, LookupError, TypeError, *folders.TOO_MUCH) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error


def _in_a_row(cells: Sequence[KeptCell], planned: Manifest) -> list[KeptCell]:
    """Return cells of the study's blocks in the order of their seeds, up to the first gap."""
    found = []
    wanted = planned.first_seed
    for cell in sorted(cells, key=lambda cell: cell.result.runs[0].seed):
        seeds = [run.seed for run in cell.result.runs]
        if len(seeds) == planned.block and seeds[0] == wanted:
            found.append(cell)
            wanted += planned.block
    return found


def reanalyse(
    study: KeptStudy, analyses: Sequence[Analysis], test_set: str | None, console: Console
) -> list[Measured]:
    """Compute metrics of every network of a study.

    Args:
      study: whose logits were kept.
      analyses: to compute, in this order.
      test_set: a further test set by its name; None: the data set's own.
      console: shows how far it is.

    Returns:
      One for each, in the order of the texts; where a metric is about out-of-distribution images,
      for each set of them. Cells that lack what a metric asks for have NaN.

    Raises:
      InputError: logits were not kept, or what a metric asks for under no condition.
    """
    measured: dict[str, Measured] = {}
    lacking: dict[str, str] = {}
    computed = set()
    places = [(place, cell) for place, cells in study.cells.items() for cell in cells]
    ood_sets = list(dict.fromkeys(name for _, cell in places for name in cell.result.ood_sets))
    for place, cell in console.track("reading logits", "cells")(places):
        kept = cell.read()
        for analysis in analyses:
            missing = "" if kept is None else analysis.missing(kept)
            if missing:
                lacking[analysis.text] = missing
            elif kept:
                computed.add(analysis.text)
            for name, ood_set in _named(analysis, test_set, ood_sets):
                if kept is None or missing:
                    values = [np.nan] * len(cell.result.runs)
                else:
                    values = _of_cell(analysis, cell, kept, test_set, ood_set)
                label = analysis.label + name.removeprefix(analysis.text)
                new = Measured(name, label, analysis.shown, {})
                rows = measured.setdefault(name, new).values
                rows[place] = np.array([*rows.get(place, ()), *values])
    for text, missing in lacking.items():
        if text not in computed:
            raise InputError(f"--metric {text} takes {missing}, and {MISSING[missing]}")
    return list(measured.values())


def _named(
    analysis: Analysis, test_set: str | None, ood_sets: Sequence[str]
) -> list[tuple[str, str | None]]:
    """Name what an analysis computes, with the out-of-distribution set that each is about."""
    name = analysis.text if test_set is None else f"{analysis.text}@{test_set}"
    if not analysis.metric.asks("ood_logits"):
        return [(name, None)]
    return [(f"{name}: {ood_set}", ood_set) for ood_set in ood_sets]


def of_cell(analysis: Analysis, cell: KeptCell) -> list[float]:
    """Compute a metric of each network of a cell on the data set's own test set; NaN where it
    diverged.

    Raises:
      InputError: logits were not kept, or what the metric asks for.
    """
    kept = cell.read()
    if kept is None:
        return [np.nan] * len(cell.result.runs)
    if missing := analysis.missing(kept):
        raise InputError(f"{analysis.text} takes {missing}, and {MISSING[missing]}")
    return _of_cell(analysis, cell, kept, None, None)


def _of_cell(
    analysis: Analysis, cell: KeptCell, kept: Kept, test_set: str | None, ood_set: str | None
) -> list[float]:
    """Compute a metric of each network of a cell; NaN where it diverged, or the cell lacks the
    out-of-distribution set.
    """
    runs = cell.result.runs
    if ood_set is not None and OOD_SETS + ood_set not in kept.sets:
        return [np.nan] * len(runs)
    return [
        np.nan if run.test is None else _of_network(analysis, kept, i, test_set, ood_set)
        for i, run in enumerate(runs)
    ]


def _of_network(
    analysis: Analysis, kept: Kept, i: int, test_set: str | None, ood_set: str | None
) -> float:
    """Compute a metric of the i-th network of a cell."""
    name = TEST if test_set is None else TEST_SETS + test_set
    if name not in kept.sets:
        there = [n.removeprefix(TEST_SETS) for n in kept.sets if n.startswith(TEST_SETS)]
        if not there:
            raise InputError(f"--test-set {test_set}: the study was run without --test-sets")
        raise unknown("test set of the study", str(test_set), there)
    supply = {"class_counts": kept.class_counts}
    if VALIDATION in kept.sets:
        validation = _of(kept.sets[VALIDATION], i)
        supply |= {"validation_logits": validation.logits, "validation_labels": validation.labels}
    if kept.train_losses is not None and kept.wrong_labels is not None:
        supply |= {"train_losses": kept.train_losses[i], "wrong_labels": kept.wrong_labels[i]}
    if ood_set is not None:
        supply["ood_logits"] = kept.sets[OOD_SETS + ood_set].logits[i]
    return analysis.compute(_of(kept.sets[name], i), supply)


def _of(outputs: Outputs, i: int) -> Outputs:
    """Return what the i-th network says."""
    labels = outputs.labels if outputs.labels.ndim == 1 else outputs.labels[i]
    return Outputs(outputs.logits[i], labels)
