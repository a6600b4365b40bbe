"""Claim (b), first half: mean absolute error underfits.

Source: Zhang & Sabuncu 2018 (arXiv 1805.07836), where it has 10 points less test accuracy than
cross-entropy on CIFAR-10 without noise, and 50 on CIFAR-100.

Written before the run: without label noise, mean absolute error has a lower training accuracy than
cross-entropy after the last epoch, margin +-5 points, and a lower test accuracy, margin +-1 point:
two statements, one family. Each holds if it is lower, is refuted if it is higher or if the
difference lies within the margin, and else is undecided.

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
            f"mean absolute error has a lower {NAMES[measure]} than cross-entropy",
            Side("cross_entropy", measure),
            Side("mean_absolute_error", measure),
            better,
            margin,
        )
        for measure, margin in MARGINS.items()
    ]


if __name__ == "__main__":
    cli.main(lambda study: replicate(study, statements, "underfitting"), Underfitting)
