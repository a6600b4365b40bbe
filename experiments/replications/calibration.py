"""Claim (c): cross-entropy is overconfident; the Brier score, focal loss and label smoothing lower
the expected calibration error (ECE), before and after temperature scaling.

Source: Guo et al. 2017 (arXiv 1706.04599), Mukhoti et al. 2020 (arXiv 2002.09437): ResNet-50 and
larger on all of CIFAR-10, 350 epochs, with augmentation; focal loss with gamma = 3.

Written before the run: (1) cross-entropy's mean confidence on the test set is above its accuracy,
margin +-1 point; (2-4) the Brier score (mean_squared_error of the probabilities), focal loss with
gamma = 3 and cross-entropy with labels smoothed by 0.1 each have a lower ECE than cross-entropy,
margin +-1 point; (5-7) the same once each network's logits are divided by the temperature that fits
the validation images best, margin +-0.5 points. Seven statements, one family. Each holds if better,
is refuted if worse or if the difference lies within the margin; otherwise it is undecided.

    python experiments/replications/calibration.py --data-dir DIR
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cnnlab import cli
from cnnlab.study.replication import Replication, replicate

if TYPE_CHECKING:
    from cnnlab.study.statements import Statement

CALIBRATED = {
    "mean_squared_error": "Brier score",
    "focal,gamma=3": "focal loss",
    "cross_entropy+label_smoothing,alpha=0.1": "label smoothing",
}


@dataclass(frozen=True)
class Calibration(Replication):
    __doc__ = Replication.__doc__
    losses: tuple[str, ...] = ("cross_entropy", *CALIBRATED)


def statements() -> list[Statement]:
    """Return the statements of the claim."""
    from cnnlab.study.statements import Side, Statement, better

    overconfident = Statement(
        "cross-entropy is overconfident: confidence above accuracy",
        Side("cross_entropy", "overconfidence"),
        None,
        better,
        margin=0.01,
    )
    before_and_after = [
        Statement(
            f"{name} lowers the ECE{when}",
            Side(loss, measure),
            Side("cross_entropy", measure),
            better,
            margin,
            larger_is_better=False,
        )
        for when, measure, margin in (
            ("", "ece", 0.01),
            (" after temperature scaling", "ece+temperature", 0.005),
        )
        for loss, name in CALIBRATED.items()
    ]
    return [overconfident, *before_and_after]


if __name__ == "__main__":
    cli.main(lambda study: replicate(study, statements, "calibration"), Calibration)
