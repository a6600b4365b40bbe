"""Claim (b), first half: mean absolute error underfits.

Source: Zhang & Sabuncu 2018 (arXiv 1805.07836): ResNet-34 on CIFAR-10 and CIFAR-100.

Written before the run: without label noise, cross-entropy has a higher training accuracy than mean
absolute error over the last epoch, margin +-5 points, and a higher test accuracy, margin +-1 point:
two statements, one family. Each holds if it is higher, is refuted if it is lower or if the
difference lies within the margin; otherwise it is undecided.

    python experiments/replications/underfitting.py --data-dir DIR
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cnnlab import cli
from cnnlab.study.replication import Replication, replicate

if TYPE_CHECKING:
    from cnnlab.study.statements import Statement

MARGINS = {"train_accuracy": 0.05, "accuracy": 0.01}
NAMES = {"train_accuracy": "training accuracy", "accuracy": "test accuracy"}


@dataclass(frozen=True)
class Underfitting(Replication):
    __doc__ = Replication.__doc__
    losses: tuple[str, ...] = ("cross_entropy", "mean_absolute_error")


def statements() -> list[Statement]:
    """Return the statements of the claim."""
    from cnnlab.study.statements import Side, Statement, better

    return [
        Statement(
            f"cross-entropy has a higher {NAMES[measure]} than mean absolute error",
            Side("cross_entropy", measure),
            Side("mean_absolute_error", measure),
            better,
            margin,
        )
        for measure, margin in MARGINS.items()
    ]


if __name__ == "__main__":
    cli.main(lambda study: replicate(study, statements, "underfitting"), Underfitting)
