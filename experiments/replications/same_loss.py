"""Claim (f): a loss compared with itself, over other seeds, is not found to be better or worse.

The A/A test of the procedure: networks of even seeds against networks of the same loss with odd
seeds, which differ in everything that a seed decides.

Written before the run: cross-entropy, and mean squared error, each with 24 seeds, twelve pairs; two
statements, one family, margin +-1 point of test accuracy. Each holds if the verdict is undecided or
equivalent, and is refuted if it is better or worse.

    python experiments/replications/same_loss.py --data-dir DIR
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cnnlab import cli
from cnnlab.study.plan import MOST_SEEDS
from cnnlab.study.replication import Replication, replicate

if TYPE_CHECKING:
    from cnnlab.study.statements import Statement

LOSSES = ("cross_entropy", "mean_squared_error")


@dataclass(frozen=True)
class SameLoss(Replication):
    __doc__ = Replication.__doc__
    losses: tuple[str, ...] = LOSSES
    seeds: Annotated[int, f"[1, {MOST_SEEDS}]"] = 24
    """How many; half of them are compared with the other half."""


def statements() -> list[Statement]:
    """Return the statements of the claim."""
    from cnnlab.study.statements import Side, Statement, indistinct

    return [
        Statement(
            f"{loss} does not differ from itself",
            Side(loss, "accuracy", (0, 2)),
            Side(loss, "accuracy", (1, 2)),
            indistinct,
            margin=0.01,
        )
        for loss in LOSSES
    ]


if __name__ == "__main__":
    cli.main(lambda study: replicate(study, statements, "same_loss"), SameLoss)
