"""Claim (f): a loss compared with itself, over other seeds, is not found to be better or worse.

The A/A test of the study itself: cross-entropy, and mean squared error, over seeds 0.. against the
same loss over seeds 1000... Written before the run: holds for a loss if the verdict is undecided or
equivalent, refuted if it is better or worse; undecided if there are fewer than eight seeds.

    python experiments/replications/same_loss.py --data-dir DIR
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from cnnlab import cli, files
from cnnlab.study import plan
from cnnlab.study.replication import Judged, Replication, indistinct, judged, replicate
from cnnlab.study.results import Results


@dataclass(frozen=True)
class SameLoss(Replication):
    __doc__ = Replication.__doc__
    losses: tuple[str, ...] = ("cross_entropy", "mean_squared_error")


def judge(results: Results) -> list[Judged]:
    from cnnlab.study import driver, statistics
    from cnnlab.study.results import difference, values
    from cnnlab.training import run_folder

    study = results.study
    others = dataclasses.replace(study, first_seed=study.first_seed + 1000)
    folder = files.expanded(study.workdir).absolute() / "same_loss/again"
    other = driver.conduct(others, run_folder.command(), folder)
    if other is None:
        return []
    pairs = zip(results.arms[0], other.arms[0], strict=True)
    larger = plan.metric(study).larger_is_better
    differences = [
        difference(values(first, study.metric), values(second, study.metric), larger)
        for first, second in pairs
    ]
    compared = statistics.compare(differences, plan.margin(study), larger)
    return [
        judged(f"{loss} does not differ from itself", comparison, indistinct)
        for loss, comparison in zip(study.losses, compared, strict=True)
    ]


if __name__ == "__main__":
    cli.main(lambda study: replicate(study, judge, "same_loss"), SameLoss)
