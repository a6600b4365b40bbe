"""The logits of a cell's networks, in a file next to the cell's: any metric can be computed from
them later, without training. Imports no jax.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnnlab import files
from cnnlab.errors import InputError, one_line

TEST, VALIDATION = "test", "validation"
TEST_SETS, OOD_SETS = "test_sets/", "ood_sets/"  # before the name of a further set
LOGITS, LABELS = "/logits", "/labels"  # after the name of any set


@dataclass(frozen=True)
class Outputs:
    """What a cell's networks say of a set of images.

    Attributes:
      logits: float32[S, N, K]; NaN where a network diverged.
      labels: int32[N], the right ones; int32[S, N] where each seed has its own images.
    """

    logits: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Kept:
    """What is kept of a cell's networks.

    Attributes:
      sets: by name: TEST; VALIDATION, where images are held out; after TEST_SETS or OOD_SETS the
        further ones.
      class_counts: int64[K], training images of each class.
      train_losses: float32[S, n], the cross-entropy of each training image with the label that it
        was taught with; None where no label was wrong.
      wrong_labels: bool[S, n], whether that label was wrong; None where none was.
    """

    sets: Mapping[str, Outputs]
    class_counts: np.ndarray
    train_losses: np.ndarray | None = None
    wrong_labels: np.ndarray | None = None


def file(cell_file: Path) -> Path:
    """Return the file of the logits that belong to a cell's file."""
    return cell_file.with_suffix(".npz")


def write(path: Path, kept: Kept) -> str:
    """Write the logits of a cell, compressed.

    Returns:
      The SHA-256 of the file.
    """
    arrays = {"class_counts": kept.class_counts}
    for name, outputs in kept.sets.items():
        arrays[name + LOGITS] = outputs.logits
        arrays[name + LABELS] = outputs.labels
    if kept.train_losses is not None and kept.wrong_labels is not None:
        arrays |= {"train_losses": kept.train_losses, "wrong_labels": kept.wrong_labels}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    files.write_bytes(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def read(path: Path, digest: str) -> Kept:
    """Read what `write` wrote.

    Raises:
      InputError: it is not there, or is not the file of this SHA-256.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise InputError(
            f"{path} is not the file that its cell was stored with; delete the cell's two files to "
            "train it again"
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = dict(archive)
    names = [name.removesuffix(LOGITS) for name in arrays if name.endswith(LOGITS)]
    return Kept(
        {name: Outputs(arrays[name + LOGITS], arrays[name + LABELS]) for name in names},
        arrays["class_counts"],
        arrays.get("train_losses"),
        arrays.get("wrong_labels"),
    )
