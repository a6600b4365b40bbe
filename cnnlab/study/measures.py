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
from cnnlab.study.reanalysis import KeptCell
from cnnlab.study.report import csvs
from cnnlab.study.results import ArmResult, Results, curve, values
from cnnlab.study.statements import Values


def best_validation_accuracy(arm: ArmResult) -> np.ndarray:
    """Return the highest validation accuracy of all epochs."""
    return _last_or_nan(arm, np.fmax.reduce(curve(arm, "validation_accuracy"), axis=1))


def train_accuracy(arm: ArmResult) -> np.ndarray:
    """Return the training accuracy over the last epoch."""
    return _last_or_nan(arm, curve(arm, "train_accuracy")[:, -1])


def first_validation_accuracy(arm: ArmResult) -> np.ndarray:
    """Return the validation accuracy after the first epoch; 0 where the network diverged."""
    return np.nan_to_num(curve(arm, "validation_accuracy")[:, 0])


def epochs_to(arm: ArmResult, accuracy: float) -> np.ndarray:
    """Return the first epoch with that validation accuracy; one more than all epochs where it is
    never reached.
    """
    reached = curve(arm, "validation_accuracy") >= accuracy
    return np.where(reached.any(1), reached.argmax(1) + 1.0, reached.shape[1] + 1.0)


def early_gradient(arm: ArmResult) -> np.ndarray:
    """Return the natural logarithm of the gradient's mean norm over the first steps."""
    return np.log([np.mean(run.gradient_norms or [1.0]) for run in arm.runs])


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


def _last_or_nan(arm: ArmResult, column: np.ndarray) -> np.ndarray:
    """Return a column with NaN where the network diverged."""
    return np.where([run.diverged is None for run in arm.runs], column, np.nan)


Measure = Callable[[ArmResult], np.ndarray]
HISTORY: dict[str, Measure] = {
    "best_validation_accuracy": best_validation_accuracy,
    "train_accuracy": train_accuracy,
    "first_validation_accuracy": first_validation_accuracy,
    "early_gradient": early_gradient,
    "overconfidence": overconfidence,
    "epochs_to_45_percent": functools.partial(epochs_to, accuracy=0.45),
}


def table(results: Results, measures: Sequence[str]) -> Values:
    """Collect measures of all networks of a study, with what was chosen for them and how long they
    were trained.

    Args:
      results: of the study.
      measures: names of `HISTORY`, metrics of the study, or metrics of the kept logits, such as
        ece+temperature.

    Raises:
      InputError: a measure of the logits that were not kept, or an unknown one.
    """
    return {
        (plan.label(arm.condition), arm.name): _of_arm(results, arm, measures)
        for row in results.arms
        for arm in row
    }


def _of_arm(results: Results, arm: ArmResult, measures: Sequence[str]) -> dict[str, np.ndarray]:
    seconds = [[cell.seconds / len(cell.runs)] * len(cell.runs) for cell in arm.cells]
    columns = {
        "seed": np.array([run.seed for run in arm.runs]),
        "seconds": np.concatenate(seconds),  # its share of the cell's
    }
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
    if np.isnan(value):
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
        return {
            place: {
                name: np.array([float(row[name] or "nan") for row in of_arm]) for name in of_arm[0]
            }
            for place, of_arm in rows.items()
        }
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
