"""Claim (e): the squared loss on logits matches cross-entropy within one point of accuracy.

Source: Hui & Belkin 2020 (arXiv 2006.07322): 95.9 against 96.3 % on CIFAR-10 with a wide residual
network.
Written before the run: holds if the interval of the paired difference lies within +-1 point;
refuted if it lies beyond; else undecided (restated for intervals that hold at every look, before
any run with them). The learning rate is that of the other replications, chosen for neither.

    python experiments/replications/squared_loss.py --data-dir DIR
"""

from __future__ import annotations

from dataclasses import dataclass

from cnnlab import cli
from cnnlab.study import plan
from cnnlab.study.replication import Judged, Replication, equal, judged, replicate
from cnnlab.study.results import Results


@dataclass(frozen=True)
class SquaredLoss(Replication):
    __doc__ = Replication.__doc__
    losses: tuple[str, ...] = ("cross_entropy", "squared_logits")


def judge(results: Results) -> list[Judged]:
    from cnnlab.study.results import decide

    margin = plan.margin(results.study)
    return [
        judged(f"{v.arm} is within {margin:.0%} of cross_entropy", v.comparison, equal)
        for v in decide(results)
    ]


if __name__ == "__main__":
    cli.main(lambda study: replicate(study, judge, "squared_loss"), SquaredLoss)
