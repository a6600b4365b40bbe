"""Claim (a): cross-entropy beats the mean squared error of probabilities early in training.

Where a network is confidently wrong the squared error's gradient vanishes: at a probability of
0.001 of the true class cross-entropy's gradient in the logits is 250 times as long. So
cross-entropy should take longer steps at first and need fewer epochs.

Written before the run: three statements, one family. Cross-entropy has (1) a longer gradient in the
parameters, on average over the first 64 steps: the difference of natural logarithms, margin +-0.1
(a tenth); (2) fewer epochs to 45 % validation accuracy, where a network that never reaches it
counts one epoch more than it has, margin +-0.5; (3) a higher validation accuracy after the first
epoch, margin +-1 point. Each holds if cross-entropy is better, is refuted if it is worse or if the
difference lies within the margin; otherwise it is undecided. Each loss has the learning rate that
is best for it at the end of training.

    python experiments/replications/early_training.py --data-dir DIR
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cnnlab import cli
from cnnlab.study.replication import Replication, replicate

if TYPE_CHECKING:
    from cnnlab.study.statements import Statement

FIRST, SECOND = "cross_entropy", "mean_squared_error"


@dataclass(frozen=True)
class EarlyTraining(Replication):
    __doc__ = Replication.__doc__
    losses: tuple[str, ...] = (FIRST, SECOND)


def statements() -> list[Statement]:
    """Return the statements of the claim."""
    from cnnlab.study.statements import Side, Statement, better

    gradient, epochs = "early_gradient", "epochs_to_45_percent"
    accuracy = "first_validation_accuracy"
    return [
        Statement(
            "cross-entropy has a longer gradient over the first 64 steps",
            Side(FIRST, gradient),
            Side(SECOND, gradient),
            better,
            margin=0.1,
            factor=1,
            unit="in the logarithm",
        ),
        Statement(
            "cross-entropy needs fewer epochs to 45 %",
            Side(FIRST, epochs),
            Side(SECOND, epochs),
            better,
            margin=0.5,
            larger_is_better=False,
            factor=1,
            unit="epochs",
        ),
        Statement(
            "cross-entropy has a higher accuracy after the first epoch",
            Side(FIRST, accuracy),
            Side(SECOND, accuracy),
            better,
            margin=0.01,
        ),
    ]


if __name__ == "__main__":
    cli.main(lambda study: replicate(study, statements, "early_training"), EarlyTraining)
