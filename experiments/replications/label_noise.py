"""Claim (b): MAE underfits; GCE and NCE+RCE beat cross-entropy under 40 % and 80 % symmetric label noise.

Source: Zhang & Sabuncu 2018 (arXiv 1805.07836), Ma et al. 2020 (arXiv 2006.13554), with larger networks and 120 epochs.
Written before the run: GCE and NCE+RCE each have a higher test accuracy than cross-entropy under each rate (the study's
own verdicts, nine comparisons under Holm's correction): holds if better; refuted if worse or equivalent within +-1
point; else undecided. MAE's training accuracy on right labels is lower than cross-entropy's, by the same rule with
+-5 points.

    python experiments/replications/label_noise.py --data-dir DIR
"""

from __future__ import annotations

from dataclasses import dataclass

from cnnlab import cli
from cnnlab.replication import Judged, Replication, better, judged, replicate
from cnnlab.study.results import Results


@dataclass(frozen=True)
class LabelNoise(Replication):
    __doc__ = Replication.__doc__
    losses: tuple[str, ...] = (
        "cross_entropy", "mean_absolute_error", "generalized_cross_entropy", "active_passive",
    )  # fmt: skip
    label_noise: tuple[float, ...] = (0.0, 0.4, 0.8)


def judge(results: Results) -> list[Judged]:
    from cnnlab import stats
    from cnnlab.study.results import curve, verdicts

    found = [
        judged(f"{v.loss} beats cross_entropy at noise {v.condition['label_noise']}", v.comparison, better)
        for v in verdicts(results)
        if v.condition["label_noise"] > 0 and v.loss != "mean_absolute_error"
    ]
    entropy, absolute = (curve(cell, "train_accuracy")[:, -1] for cell in results.cells[0][:2])
    (underfits,) = stats.compare((entropy - absolute)[None], margin=0.05)
    return [judged("mean_absolute_error underfits right labels", underfits, better), *found]


if __name__ == "__main__":
    cli.main(lambda study: replicate(study, judge, "label_noise"), LabelNoise)
