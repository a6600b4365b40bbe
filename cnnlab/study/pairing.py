"""What two arms have in common for the same seed: images, their order, augmentation draws, initial
weights.

A difference between arms is measured within a seed, so whatever both have in common cancels out of
it. All draws depend on the seed alone, so what two configurations share is paired by construction;
the initial weights are compared as they were.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import jax
import numpy as np

from cnnlab import spec
from cnnlab.errors import InputError
from cnnlab.parts import DATA_SETTINGS
from cnnlab.study.plan import label
from cnnlab.study.records import CellResult
from cnnlab.types import JsonObject, PyTree

NO_OPERATIONS = ("auto", "none")


@dataclass(frozen=True)
class Pairing:
    """What an arm and the baseline have in common for the same seed.

    Attributes:
      images: whether they are trained on the same images, with the same labels.
      batches: whether these come in the same batches; None: in the same order, but batches of
        another size.
      operations: augmentations of both, which draw the same for an image.
      other_operations: augmentations of one of them.
      weights: share of the arm's initial weights that are the baseline's, in [0, 1]; None where
        that is not known.
    """

    images: bool
    batches: bool | None
    operations: tuple[str, ...]
    other_operations: tuple[str, ...]
    weights: float | None


def pairing(arm: CellResult, baseline: CellResult) -> Pairing:
    """Compare an arm with the baseline under the same condition."""
    images = _same(arm, baseline, "dataset") and arm.digest == baseline.digest
    same_size = _same(arm, baseline, "batch_size")
    ours, theirs = _operations(arm), _operations(baseline)
    return Pairing(
        images=images,
        batches=(True if same_size else None) if images else False,
        operations=tuple(name for name in ours if name in theirs),
        other_operations=tuple(sorted({*ours} ^ {*theirs})),
        weights=_shared(arm.initial_weights, baseline.initial_weights),
    )


def fingerprint(params: PyTree) -> dict[str, str]:
    """Return each parameter's shape and the start of its SHA-256, by path.

    Args:
      params: of one network, arrays.

    >>> fingerprint({"dense": {"bias": np.zeros(3, np.float32)}})
    {'dense/bias': '3 15ec7bf0'}
    """
    leaves, _ = jax.tree.flatten_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            f"{'x'.join(map(str, np.shape(leaf)))} "
            f"{hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest()[:8]}"
        )
        for path, leaf in leaves
    }


def refuse_other_data(cells: Iterable[CellResult]) -> None:
    """Refuse cells of one data set that were trained or tested on other images, or taught by other
    weights, than each other.

    Raises:
      InputError: there are two.
    """
    seen: dict[tuple[str, str], tuple[str, CellResult]] = {}
    for cell in cells:
        source = json.dumps([cell.config.get(name) for name in ("dataset", *DATA_SETTINGS)])
        known = {"its data": cell.digest}
        known |= {f"test set {name}": sha for name, sha in (cell.test_sets | cell.ood_sets).items()}
        if cell.teacher_digest is not None:
            known[f"teacher {cell.config.get('teacher')}"] = cell.teacher_digest
        for what, digest in known.items():
            before, other = seen.setdefault((source, what), (digest, cell))
            if before != digest:
                raise InputError(
                    f"{what} of {cell.arm}, {label(cell.condition)} and of {other.arm}, "
                    f"{label(other.condition)} are not the same, under the same name: they cannot "
                    "be compared"
                )


def _same(arm: CellResult, baseline: CellResult, setting: str) -> bool:
    return _settings(arm).get(setting) == _settings(baseline).get(setting)


def _settings(cell: CellResult) -> JsonObject:
    """Return what the first seed of a cell was trained with, and what tuning chose for it."""
    return cell.config | cell.runs[0].chosen


def _operations(cell: CellResult) -> list[str]:
    text = cell.config.get("augment", "none")
    if text in NO_OPERATIONS:
        return [] if text == "none" else [text]
    return [part.name for part in spec.parse_pipeline(text)]


def _shared(ours: Mapping[str, str], theirs: Mapping[str, str]) -> float | None:
    if not (ours and theirs):
        return None
    sizes = {path: _size(text) for path, text in ours.items()}
    equal = sum(size for path, size in sizes.items() if theirs.get(path) == ours[path])
    return equal / sum(sizes.values())


def _size(text: str) -> int:
    """Return how many numbers a parameter has, of its line of `fingerprint`."""
    shape, _, _ = text.partition(" ")
    return math.prod(int(side) for side in shape.split("x") if side)
