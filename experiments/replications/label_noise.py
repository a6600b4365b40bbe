"""Claim (b): GCE, SCE and NCE+RCE beat cross-entropy under symmetric label noise.

Source: Zhang & Sabuncu 2018 (arXiv 1805.07836), Wang et al. 2019 (arXiv 1908.06112), Ma et al. 2020
(arXiv 2006.13554): networks of 8 to 34 layers on all of CIFAR-10, 120 epochs, one learning rate and
weight decay for every loss.

Written before the run: 40 % and 80 % of the training labels are wrong. Each loss has a higher test
accuracy than cross-entropy at the end of training ("last"), and a higher validation accuracy in its
best epoch, on images whose labels are right ("best"): twelve statements, one family, margin +-1
point. Each holds if the loss is better, is refuted if it is worse or if the difference lies within
the margin; otherwise it is undecided.

    python experiments/replications/label_noise.py --data-dir DIR
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cnnlab import cli
from cnnlab.study.replication import Replication, replicate

if TYPE_CHECKING:
    from cnnlab.study.statements import Statement

ROBUST = {
    "generalized_cross_entropy": "GCE",
    "symmetric_cross_entropy": "SCE",
    "active_passive": "NCE+RCE",
}
RATES = (0.4, 0.8)
MEASURES = {"last": "accuracy", "best": "best_validation_accuracy"}


@dataclass(frozen=True)
class LabelNoise(Replication):
    __doc__ = Replication.__doc__
    losses: tuple[str, ...] = ("cross_entropy", *ROBUST)
    label_noise: tuple[float, ...] = RATES


def statements() -> list[Statement]:
    """Return the statements of the claim."""
    from cnnlab.study.statements import Side, Statement, better

    return [
        Statement(
            f"{short} beats cross-entropy at {rate:.0%} noise, {when} accuracy",
            Side(loss, measure),
            Side("cross_entropy", measure),
            better,
            margin=0.01,
            condition=f"label noise {rate}",
        )
        for rate in RATES
        for loss, short in ROBUST.items()
        for when, measure in MEASURES.items()
    ]


if __name__ == "__main__":
    cli.main(lambda study: replicate(study, statements, "label_noise"), LabelNoise)
