"""Claim (f): a loss compared with itself, over other seeds, is not found to be better or worse.

The A/A test of the study itself: cross-entropy, and mean squared error, over seeds 0.. against the
same loss over seeds 1000... Written before the run: holds if both verdicts are undecided,
equivalent or underpowered; refuted if one is better or worse.

    python experiments/replications/same_loss.py --data-dir DIR
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from cnnlab import cli
from cnnlab.study import plan
from cnnlab.study.replication import Judged, Replication, indistinct, judged, replicate
from cnnlab.study.results import Results


@dataclass(frozen=True)
class SameLoss(Replication):
    __doc__ = Replication.__doc__
    losses: tuple[str, ...] = ("cross_entropy", "mean_squared_error")


def judge(results: Results) -> list[Judged]:
    import numpy as np

    from cnnlab.study import cells, statistics
    from cnnlab.study.results import values
    from cnnlab.training import run_folder

    study = results.study
    others = dataclasses.replace(study, first_seed=study.first_seed + 1000)
    other = cells.conduct(others, run_folder.command())
    if other is None:
        return []
    pairs = zip(results.cells[0], other.cells[0], strict=True)
    compared = statistics.compare(
        np.array(
            [values(first, study.metric) - values(second, study.metric) for first, second in pairs]
        ),
        plan.margin(study),
    )
    return [
        judged(f"{loss} does not differ from itself", comparison, indistinct)
        for loss, comparison in zip(study.losses, compared, strict=True)
    ]


if __name__ == "__main__":
    cli.main(lambda study: replicate(study, judge, "same_loss"), SameLoss)
