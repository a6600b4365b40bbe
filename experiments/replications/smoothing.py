"""Claim (g): label smoothing's advantage in calibration vanishes after temperature scaling.

Source: Müller et al. 2019 (arXiv 1906.02629): smoothing calibrates as temperature scaling does;
ResNet-56 on CIFAR-100, smoothing 0.05.

Written before the run: (1) cross-entropy with labels smoothed by 0.1 has a lower expected
calibration error (ECE) than cross-entropy, margin +-1 point: it holds if better, and is refuted if
worse or if the difference lies within the margin; (2) once each network's logits are divided by the
temperature that fits the validation images best, it has no advantage that matters, margin +-0.5
points: it holds if the difference lies within the margin or smoothing is worse, and is refuted if
smoothing is better by more than the margin. Otherwise they are undecided. Two statements, one
family.

    python experiments/replications/smoothing.py --data-dir DIR
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cnnlab import cli
from cnnlab.study.replication import Replication, replicate

if TYPE_CHECKING:
    from cnnlab.study.statements import Statement

SMOOTHED = "cross_entropy+label_smoothing,alpha=0.1"


@dataclass(frozen=True)
class Smoothing(Replication):
    __doc__ = Replication.__doc__
    losses: tuple[str, ...] = ("cross_entropy", SMOOTHED)


def statements() -> list[Statement]:
    """Return the statements of the claim."""
    from cnnlab.study.statements import Side, Statement, better, not_better

    return [
        Statement(
            "label smoothing lowers the ECE",
            Side(SMOOTHED, "ece"),
            Side("cross_entropy", "ece"),
            better,
            margin=0.01,
            larger_is_better=False,
        ),
        Statement(
            "after temperature scaling label smoothing has no advantage in ECE",
            Side(SMOOTHED, "ece+temperature"),
            Side("cross_entropy", "ece+temperature"),
            not_better,
            margin=0.005,
            larger_is_better=False,
        ),
    ]


if __name__ == "__main__":
    cli.main(lambda study: replicate(study, statements, "smoothing"), Smoothing)
