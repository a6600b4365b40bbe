"""Numbers of each network of a study that a claim is about, in a table that is small enough to keep
with the claim: read from the history of training, from the test, or from the kept logits.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cnnlab import files
from cnnlab.errors import InputError
from cnnlab.study import folder as folders
from cnnlab.study import logits, plan, reanalysis
from cnnlab.study.plan import Study
from cnnlab.study.reanalysis import KeptCell
from cnnlab.study.report import csvs
from cnnlab.study.results import ArmResult, Results, curve, values
from cnnlab.study.statements import Values


def best_validation_accuracy(arm: ArmResult) -> np.ndarray:
    """Return the highest validation accuracy of all epochs."""
    return _finished(arm, np.fmax.reduce(_curve(arm, "validation_accuracy"), axis=1))


def train_accuracy(arm: ArmResult) -> np.ndarray:
    """Return the training accuracy over the last epoch."""
    return _finished(arm, _curve(arm, "train_accuracy")[:, -1])


def first_validation_accuracy(arm: ArmResult) -> np.ndarray:
    """Return the validation accuracy after the first epoch."""
    return _finished(arm, _curve(arm, "validation_accuracy")[:, 0])


def epochs_to(column: str, accuracy: float, arm: ArmResult) -> np.ndarray:
    """Return the first epoch with that accuracy in a column of the history; one more than all
    epochs where it is never reached.
    """
    reached = _curve(arm, column) >= accuracy
    epochs = np.where(reached.any(1), reached.argmax(1) + 1.0, reached.shape[1] + 1.0)
    return _finished(arm, epochs)


def early_gradient(arm: ArmResult) -> np.ndarray:
    """Return the natural logarithm of the gradient's mean norm over the first steps."""
    norms = np.array([np.mean(run.gradient_norms or [np.nan]) for run in arm.runs])
    with np.errstate(divide="ignore"):
        return _finished(arm, np.log(norms))


def overconfidence(arm: ArmResult) -> np.ndarray:
    """Return the mean confidence on the test set minus the accuracy there."""
    gaps = []
    for run in arm.runs:
        if run.test is None:
            gaps.append(np.nan)
            continue
        count, confidence, hits = np.array(run.test["calibration"]).sum(1)
        gaps.append((confidence - hits) / count)
    return np.array(gaps)


def _curve(arm: ArmResult, name: str) -> np.ndarray:
    """Collect a column of the history: float64[seeds, epochs], of one epoch at least."""
    table = curve(arm, name)
    return table if table.shape[1] else np.full((len(arm.runs), 1), np.nan)


def _finished(arm: ArmResult, column: np.ndarray) -> np.ndarray:
    """Return a column with NaN where the network diverged."""
    return np.where([run.diverged is None for run in arm.runs], column, np.nan)


Measure = Callable[[ArmResult], np.ndarray]
HISTORY: dict[str, Measure] = {
    "best_validation_accuracy": best_validation_accuracy,
    "train_accuracy": train_accuracy,
    "first_validation_accuracy": first_validation_accuracy,
    "early_gradient": early_gradient,
    "overconfidence": overconfidence,
    "epochs_to_45_percent": functools.partial(epochs_to, "validation_accuracy", 0.45),
    "epochs_to_fit_99_percent": functools.partial(epochs_to, "train_accuracy", 0.99),
}


def check(study: Study, measures: Sequence[str]) -> None:
    """Refuse measures before anything is trained.

    Raises:
      InputError: an unknown one, or one of the logits, which the study does not keep.
    """
    for name in measures:
        if name in HISTORY or name in plan.metrics(study):
            continue
        reanalysis.parse([name])
        if study.keep_logits == "none":
            raise InputError(f"{name} is computed from logits: leave --keep-logits none away")


def table(
    results: Results, measures: Sequence[str], condition: str | None = None
) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """Collect measures of all networks of a study, with what was chosen for them and how long they
    were trained.

    Args:
      results: of the study.
      measures: names of `HISTORY`, metrics of the study, or metrics of the kept logits, such as
        ece+temperature.
      condition: under which, in words; None: all of them.

    Raises:
      InputError: a measure of the logits that were not kept, or an unknown one.
    """
    return {
        (plan.label(arm.condition), arm.name): _of_arm(results, arm, measures)
        for row in results.arms
        for arm in row
        if condition in (None, plan.label(arm.condition))
    }


def _of_arm(results: Results, arm: ArmResult, measures: Sequence[str]) -> dict[str, np.ndarray]:
    columns = {"seed": np.array([run.seed for run in arm.runs])}
    for name in ("images", "seconds"):  # of training: its share of those of its cell
        shares = [[getattr(cell, name) / len(cell.runs)] * len(cell.runs) for cell in arm.cells]
        columns[name] = np.concatenate(shares)
    for name in sorted({name for run in arm.runs for name in run.chosen}):
        columns[name] = np.array([run.chosen[name] for run in arm.runs])
    return columns | {name: _measured(results, arm, name) for name in measures}


def _measured(results: Results, arm: ArmResult, name: str) -> np.ndarray:
    if name in HISTORY:
        return HISTORY[name](arm)
    if name in plan.metrics(results.study):
        return values(arm, name)
    (analysis,) = reanalysis.parse([name])
    return np.concatenate([reanalysis.of_cell(analysis, cell) for cell in _kept(results, arm)])


def _kept(results: Results, arm: ArmResult) -> list[KeptCell]:
    """Find the files of an arm's cells."""
    study = results.study
    folder = files.expanded(study.workdir).absolute()
    blocks = plan.blocks(study)[: len(arm.cells)]
    kept = []
    for cell, result in zip(
        folders.cells(study, arm.name, arm.condition, blocks), arm.cells, strict=True
    ):
        path = next((folder / "cells").glob(f"*--{cell.digest}.json"))
        kept.append(KeptCell(result, logits.file(path)))
    return kept


def text(table: Values) -> str:
    """Format a table as CSV, one row for each network."""
    columns = list(dict.fromkeys(name for of_arm in table.values() for name in of_arm))
    rows = []
    for (condition, arm), of_arm in table.items():
        for i in range(len(of_arm["seed"])):
            numbers = [_number(of_arm[name][i]) if name in of_arm else None for name in columns]
            rows.append([condition, arm, *numbers])
    return csvs.text(["condition", "arm", *columns], rows)


def _number(value: float) -> int | float | None:
    """Shorten a value to what is significant; None where the network diverged."""
    if not np.isfinite(value):
        return None
    return int(value) if value == int(value) else float(f"{value:.7g}")


def read(path: Path) -> Values:
    """Read what `text` wrote.

    Raises:
      InputError: the file is not there, or is no such table.
    """
    rows: dict[tuple[str, str], list[dict[str, str]]] = {}
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                rows.setdefault((row.pop("condition"), row.pop("arm")), []).append(row)
        table = {
            place: {
                name: np.array([float(row[name] or "nan") for row in of_arm]) for name in of_arm[0]
            }
            for place, of_arm in rows.items()
        }
        for (condition, arm), of_arm in table.items():
            if np.any(np.diff(of_arm["seed"]) != 1):
                raise ValueError(f"the seeds of {arm}, {condition}, do not follow each other")
        return table
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
