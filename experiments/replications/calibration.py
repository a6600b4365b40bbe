"""Claim (c): cross-entropy is overconfident; the Brier score, focal loss and label smoothing lower
the ECE.

Source: Guo et al. 2017 (arXiv 1706.04599), Mukhoti et al. 2020 (arXiv 2002.09437), with networks
trained to the end. Written before the run: (1) cross-entropy's mean confidence on the test set is
above its accuracy, margin +-1 point; (2-4) mean_squared_error, focal (gamma 2) and cross-entropy
smoothed by 0.1 each have a lower ECE than cross-entropy, margin +-0.01. Each holds if better, is
refuted if worse or if the difference lies within the margin, else undecided (restated for verdicts
that hold at every look, before any run with them).

    python experiments/replications/calibration.py --data-dir DIR
"""

from __future__ import annotations

from dataclasses import dataclass

from cnnlab import cli
from cnnlab.study.replication import Judged, Replication, better, judged, replicate
from cnnlab.study.results import Results


@dataclass(frozen=True)
class Calibration(Replication):
    __doc__ = Replication.__doc__
    losses: tuple[str, ...] = (
        "cross_entropy",
        "mean_squared_error",
        "focal,gamma=2",
        "calibration.smoothed",
    )
    metric: str = "ece"


def smoothed(logits, labels, alpha=0.1):
    """Cross-entropy with smoothed labels, as your own loss would be."""
    from cnnlab.losses import cross_entropy, label_smoothing

    return label_smoothing(cross_entropy, alpha)(logits, labels)


def judge(results: Results) -> list[Judged]:
    import numpy as np

    from cnnlab.study import statistics
    from cnnlab.study.results import decide

    # [seeds, 3, bins]
    bins = np.array(
        [run.test["calibration"] for run in results.arms[0][0].runs if run.test is not None]
    )
    count, confidence, hits = bins.sum(2).T
    (over,) = statistics.compare(((confidence - hits) / count)[None], margin=0.01)
    lower = [judged(f"{v.arm} lowers the ECE", v.comparison, better) for v in decide(results)]
    return [judged("cross_entropy is overconfident", over, better), *lower]


if __name__ == "__main__":
    cli.main(lambda study: replicate(study, judge, "calibration"), Calibration)
