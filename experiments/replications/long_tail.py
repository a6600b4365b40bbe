"""Claim (d): logit adjustment or the balanced softmax beats cross-entropy on a long tail (balanced
test set).

Source: Menon et al. 2021 (arXiv 2007.07314), Ren et al. 2020 (arXiv 2007.10740): CIFAR-10-LT,
factor 100.
Written before the run: each has a higher test accuracy than cross-entropy where the first class has
100 times the images of the last: holds if better, refuted if worse or if the difference lies within
+-1 point, else undecided (restated for verdicts that hold at every look, before any run with them).
At tau = 1 the two are the same function, and must agree.

    python experiments/replications/long_tail.py --data-dir DIR
"""

from __future__ import annotations

from dataclasses import dataclass

from cnnlab import cli
from cnnlab.study.replication import Judged, Replication, better, judged, replicate
from cnnlab.study.results import Results


@dataclass(frozen=True)
class LongTail(Replication):
    __doc__ = Replication.__doc__
    losses: tuple[str, ...] = ("cross_entropy", "logit_adjusted", "balanced_softmax")
    fraction: tuple[float, ...] = (1.0,)
    long_tail: tuple[float, ...] = (100.0,)


def judge(results: Results) -> list[Judged]:
    from cnnlab.study.results import decide

    return [
        judged(f"{v.arm} beats cross_entropy on the long tail", v.comparison, better)
        for v in decide(results)
    ]


if __name__ == "__main__":
    cli.main(lambda study: replicate(study, judge, "long_tail"), LongTail)
