"""Claim (e): the squared loss on logits, with its own learning rate, equals cross-entropy within a
point of accuracy.

Source: Hui & Belkin 2020 (arXiv 2006.07322): 95.9 against 96.3 % on CIFAR-10 with a wide residual
network.

Written before the run: one statement, margin +-1 point of test accuracy. It holds if the interval
of the paired difference lies within the margin, and is refuted if it lies beyond; otherwise it is
undecided.

    python experiments/replications/squared_loss.py --data-dir DIR
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cnnlab import cli
from cnnlab.study.replication import Replication, replicate

if TYPE_CHECKING:
    from cnnlab.study.statements import Statement


@dataclass(frozen=True)
class SquaredLoss(Replication):
    __doc__ = Replication.__doc__
    losses: tuple[str, ...] = ("cross_entropy", "squared_logits")


def statements() -> list[Statement]:
    """Return the statements of the claim."""
    from cnnlab.study.statements import Side, Statement, equal

    return [
        Statement(
            "the squared loss equals cross-entropy within a point",
            Side("squared_logits", "accuracy"),
            Side("cross_entropy", "accuracy"),
            equal,
            margin=0.01,
        )
    ]


if __name__ == "__main__":
    cli.main(lambda study: replicate(study, statements, "squared_loss"), SquaredLoss)
