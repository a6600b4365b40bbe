"""Claim (d): logit adjustment (the balanced softmax) and LDAM with deferred re-weighting beat
cross-entropy on a long tail, and adjusting the logits after training equals the loss.

Source: Menon et al. 2021 (arXiv 2007.07314), Ren et al. 2020 (arXiv 2007.10740), Cao et al. 2019
(arXiv 1906.07413): ResNet-32 on CIFAR-10-LT, factor 100, 200 epochs, with augmentation.

Written before the run: the first class has 100 times the images of the last; the test set is
balanced, and so are the validation images by which rates and weight decays are chosen. (1) Logit
adjustment with tau = 1, which is the balanced softmax, and (2) LDAM with deferred re-weighting each
have a higher test accuracy than cross-entropy, margin +-1 point: they hold if better, and are
refuted if worse or if the difference lies within the margin. (3) Cross-entropy's logits less the
logarithm of the class frequencies, after training, have the accuracy of the adjusted loss: it holds
if the difference lies within +-1 point, and is refuted if it lies beyond. Otherwise they are
undecided. Three statements, one family.

    python experiments/replications/long_tail.py --data-dir DIR
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from cnnlab import cli
from cnnlab.config import Training
from cnnlab.study.replication import TRAINING, Replication, replicate

if TYPE_CHECKING:
    from cnnlab.study.statements import Statement

ADJUSTED = {
    "logit_adjusted": "logit adjustment (balanced softmax)",
    "deferred.ldam_drw": "LDAM with deferred re-weighting",
}
CONDITION = "long tail 100.0"


@dataclass(frozen=True)
class LongTail(Replication):
    __doc__ = Replication.__doc__
    training: Training = field(default_factory=partial(TRAINING, dataset="cifar10"))
    losses: tuple[str, ...] = ("cross_entropy", *ADJUSTED)
    long_tail: tuple[float, ...] = (100.0,)


def statements() -> list[Statement]:
    """Return the statements of the claim."""
    from cnnlab.study.statements import Side, Statement, better, equal

    beaten = [
        Statement(
            f"{name} beats cross-entropy on the long tail",
            Side(loss, "accuracy"),
            Side("cross_entropy", "accuracy"),
            better,
            margin=0.01,
            condition=CONDITION,
        )
        for loss, name in ADJUSTED.items()
    ]
    after_training = Statement(
        "adjusting cross-entropy's logits after training equals the adjusted loss",
        Side("cross_entropy", "accuracy+logit_adjustment,tau=1"),
        Side("logit_adjusted", "accuracy"),
        equal,
        margin=0.01,
        condition=CONDITION,
    )
    return [*beaten, after_training]


if __name__ == "__main__":
    cli.main(lambda study: replicate(study, statements, "long_tail"), LongTail)
