"""Claim (h): the bi-tempered logistic loss beats cross-entropy under 40 % symmetric label noise.

Source: Amid et al. 2019 (arXiv 1906.03361): ResNet-56 on CIFAR-100 with t1 = 0.8, t2 = 1.2, among
others.

Written before the run: with t1 = 0.8 and t2 = 1.2 it has a higher test accuracy than cross-entropy
at the end of training ("last"), and a higher validation accuracy in its best epoch ("best"): two
statements, one family, margin +-1 point. Each holds if it is better, is refuted if it is worse or
if the difference lies within the margin; otherwise it is undecided.

    python experiments/replications/bi_tempered.py --data-dir DIR
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cnnlab import cli
from cnnlab.study.replication import Replication, replicate

if TYPE_CHECKING:
    from cnnlab.study.statements import Statement

LOSS = "bi_tempered,t1=0.8,t2=1.2"
MEASURES = {"last": "accuracy", "best": "best_validation_accuracy"}


@dataclass(frozen=True)
class BiTempered(Replication):
    __doc__ = Replication.__doc__
    losses: tuple[str, ...] = ("cross_entropy", LOSS)
    label_noise: tuple[float, ...] = (0.4,)


def statements() -> list[Statement]:
    """Return the statements of the claim."""
    from cnnlab.study.statements import Side, Statement, better

    return [
        Statement(
            f"bi-tempered loss beats cross-entropy at 40 % noise, {when} accuracy",
            Side(LOSS, measure),
            Side("cross_entropy", measure),
            better,
            margin=0.01,
            condition="label noise 0.4",
        )
        for when, measure in MEASURES.items()
    ]


if __name__ == "__main__":
    cli.main(lambda study: replicate(study, statements, "bi_tempered"), BiTempered)
