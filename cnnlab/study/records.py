"""What a study's cells hold on disk: dataclasses with ranges, checked when they are read."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from cnnlab import schema
from cnnlab.config import Rate
from cnnlab.metrics import WRITTEN_OUT, Metric, confusion_matrix, written_confusion
from cnnlab.study.plan import Condition
from cnnlab.types import JsonObject, Metrics, Row

Count = Annotated[int, "[1, 9007199254740992)"]
Size = Annotated[int, "[0, 9007199254740992)"]  # exact as a float
MOST = 1e300  # of a metric that is finite
ROUNDING = 1e-3  # of sums of confidences, relative


@dataclass(frozen=True)
class Trial:
    """Values of hyperparameters that were tried.

    Attributes:
      values: by name, such as learning_rate and loss.gamma.
      scores: the study's metric on the validation split with each tuning seed; None where training
        did not stay finite.
    """

    values: dict[str, float]
    scores: list[float | None]


@dataclass(frozen=True)
class SeedRun:
    """One network of a cell.

    Attributes:
      seed: of it.
      diverged: the number of its first step that was not finite; None: all were.
      test: `metrics.summarise` of the test set; None where it diverged.
      history: train.py's rows, one per epoch.
      gradient_norms: of its first steps.
      hits: which images of the test set it got right, as `packed`; empty where it diverged.
      test_last: where its weights are averaged, the test of the last of them; else None.
      test_sets: the same as `test` of each further test set, by name.
      chosen: values that tuning chose for it, by name, such as learning_rate and loss.gamma.
    """

    seed: Size
    diverged: Count | None
    test: Metrics | None
    history: list[Row]
    gradient_norms: list[float]
    hits: str = ""
    test_last: Metrics | None = None
    test_sets: dict[str, Metrics] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)

    def tested(self, test_set: str | None) -> Metrics | None:
        """Return the test on one of the further test sets; None for `test_set`: on the data set's
        own.
        """
        return self.test if test_set is None else self.test_sets.get(test_set)


def packed(hits: np.ndarray) -> str:
    """Write bool[N] as text: eight to a byte, in base 64.

    >>> packed(np.array([True, False, True]))
    'oA=='
    """
    return base64.b64encode(np.packbits(hits).tobytes()).decode()


def unpacked(text: str, count: int) -> np.ndarray:
    """Read bool[count] that `packed` wrote.

    Raises:
      ValueError: it did not, or another number of them.
    """
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text, validate=True), np.uint8))
    if not 0 <= len(bits) - count < 8:
        raise ValueError(f"hits of {len(bits)} images, not {count}")
    return bits[:count].astype(bool)


@dataclass(frozen=True)
class CellResult:
    """What a cell's file holds: an arm under a condition, trained with a block of seeds.

    Attributes:
      arm, condition: of the cell.
      config: as a run stores it.
      runs: one for each seed.
      tuning: the trials; None where nothing was tuned. Where it is tuned per seed, their scores are
        those of the cell's seeds, else of the tuning seeds.
      images: trained on, by all seeds.
      seconds, images_per_second: of training.
      parameters: of a network.
      devices, versions: that it was trained with.
      class_names, counts, digest, teacher_digest, test_sets: of its data (`DataFacts`).
      initial_weights: of its first seed, as `pairing.fingerprint`.
      ood_sets: SHA-256 of the sets of images that are of none of the classes, by name.
      logits_digest: SHA-256 of the file of its logits (`logits.write`); empty where none are kept.
      arm_digest: `Cell.arm_digest`, which the manifest names.
    """

    arm: str
    condition: Condition
    config: JsonObject
    runs: list[SeedRun]
    tuning: list[Trial] | None
    images: Size
    seconds: Annotated[float, "[0, inf)"]
    images_per_second: Rate | None
    parameters: Size
    devices: str
    versions: JsonObject
    class_names: list[str]
    counts: dict[str, Size]
    digest: str
    teacher_digest: str | None
    test_sets: dict[str, str] = field(default_factory=dict)
    initial_weights: dict[str, str] = field(default_factory=dict)
    ood_sets: dict[str, str] = field(default_factory=dict)
    logits_digest: str = ""
    arm_digest: str = ""

    def to_json(self) -> JsonObject:
        """Convert the result to JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(
        cls, values: object, measured: Mapping[str, Metric], tuned: Metric | None = None
    ) -> CellResult:
        """Rebuild the result from the values of `to_json`.

        Args:
          values: read from JSON.
          measured: the metrics that every test must hold, by name.
          tuned: the metric of the trials' scores; None: whatever it is.

        Raises:
          ValueError: something is missing, unknown, of another type, out of its range, or at odds
            with the rest.
        """
        cell = schema.build(cls, values)
        check(cell, measured, tuned)
        return cell


def check(cell: CellResult, measured: Mapping[str, Metric], tuned: Metric | None = None) -> None:
    """Check what a cell's file holds, or will.

    Args:
      cell: of a study.
      measured: the metrics that every test must hold, by name.
      tuned: the metric of the trials' scores; None: whatever it is.

    Raises:
      ValueError: a number is out of its range, or at odds with the rest.
    """
    if not cell.class_names or not cell.runs:
        raise ValueError("it has no classes, or no runs")
    for i, trial in enumerate(cell.tuning or []):
        for score in trial.scores:
            check_score(score, tuned, f"tuning[{i}].scores")
    if len({len(trial.scores) for trial in cell.tuning or []}) > 1:
        raise ValueError("tuning: some trials have more scores than others")
    tried = [trial.values for trial in cell.tuning or []] or [{}]
    for i, run in enumerate(cell.runs):
        if run.chosen not in tried:
            raise ValueError(f"runs[{i}].chosen is none of the values that were tried")
        _check_run(cell, run, measured, f"runs[{i}]")


def check_score(score: float | None, tuned: Metric | None, where: str) -> None:
    """Check the score of a trial; None: it diverged.

    Raises:
      ValueError: it is not finite, or out of the range of the metric.
    """
    if score is None:
        return
    if not math.isfinite(score):
        raise ValueError(f"{where} must be finite, got {score}")
    if tuned is not None:
        schema.in_range(where, score, tuned.low, tuned.high)


def _check_run(cell: CellResult, run: SeedRun, measured: Mapping[str, Metric], where: str) -> None:
    tests = [("test", run.test), ("test_last", run.test_last)]
    tests += [(f"test_sets.{name}", test) for name, test in run.test_sets.items()]
    if (run.test is None) != (run.diverged is not None):
        raise ValueError(f"{where} has diverged, or a test, but not both")
    for name, test in tests:
        if test is not None:
            check_test(test, measured, len(cell.class_names), f"{where}.{name}")
    for i, row in enumerate(run.history):
        _check_row(row, f"{where}.history[{i}]")
    for i, norm in enumerate(run.gradient_norms):
        schema.in_range(f"{where}.gradient_norms[{i}]", norm, 0.0, math.inf)
    if run.test is None:
        return
    count = cell.counts.get("test")
    if run.test["count"] != count:
        raise ValueError(f"{where}.test.count must be {count}, got {run.test['count']}")
    hits = unpacked(run.hits, run.test["count"])
    if hits.mean() != run.test["accuracy"]:
        raise ValueError(
            f"{where}.test.accuracy must be {hits.mean()}, as hits are, got {run.test['accuracy']}"
        )


def _check_row(row: Row, where: str) -> None:
    """Check an epoch's metrics: numbers, and accuracies in [0, 1]."""
    for name, value in row.items():
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"{where}.{name} must be a number, got {value}")
        if name.endswith("accuracy") and math.isfinite(value):
            schema.in_range(f"{where}.{name}", value, 0.0, 1.0)


def check_test(test: Metrics, measured: Mapping[str, Metric], classes: int, where: str) -> None:
    """Check what `metrics.summarise` returned.

    Raises:
      ValueError: a metric is missing or out of its range, or they do not go together.
    """
    count = test.get("count")
    if type(count) is not int or not 1 <= count < 2**53:
        raise ValueError(f"{where}.count must be a number of images, got {count}")
    for name, metric in measured.items():
        value = test.get(name)
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or MOST < abs(value) < math.inf
        ):
            raise ValueError(f"{where}.{name} must be a number, got {value}")
        if math.isfinite(value):
            schema.in_range(f"{where}.{name}", value, metric.low, metric.high)
    _check_calibration(test.get("calibration"), count, where)
    if "confusion" in test or classes <= WRITTEN_OUT:
        matrix = confusion_matrix(test)
        if matrix.shape != (classes, classes):
            raise ValueError(f"{where}.confusion must be {classes} x {classes}")
        if (matrix < 0).any() or written_confusion(matrix) != test["confusion"]:
            raise ValueError(f"{where}.confusion must hold numbers of images")
        if matrix.sum() != count or np.trace(matrix) / count != test["accuracy"]:
            raise ValueError(f"{where}.confusion does not hold {count} images with that accuracy")


def _check_calibration(rows: object, count: int, where: str) -> None:
    bins = np.array(rows)
    if bins.dtype.kind not in "if" or bins.ndim != 2 or len(bins) != 3:
        raise ValueError(f"{where}.calibration must be three rows of numbers")
    most = bins[0] * (1 + ROUNDING)
    if (bins < 0).any() or (bins[1:] > most).any() or bins[0].sum() > count:
        raise ValueError(f"{where}.calibration has more hits or confidence than images in a bin")
