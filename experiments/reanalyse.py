"""Other metrics of a study's networks, from the logits that it kept, without training.

    python experiments/reanalyse.py runs/study --metric ece ece+temperature aurc
    python experiments/reanalyse.py runs/study --metric accuracy+logit_adjustment,tau=1 few_accuracy
    python experiments/reanalyse.py runs/study --metric ood_auroc,score=energy noise_auroc

`train.py --list posthoc rescaling` describes the metrics and the transforms. Prints a table for
each metric, and writes reanalysis.html, .md and .csv into the study's folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from cnnlab import cli, files
from cnnlab.config import PROGRESS
from cnnlab.console import Console, show


@dataclass(frozen=True)
class Arguments:
    """Compute metrics of a study's networks from their logits."""

    study: tyro.conf.Positional[str]
    """Folder of the study (ablate.py's --workdir)."""
    metric: tuple[str, ...]
    """What to compute, each a metric of logits, and transforms of the logits after a +:
    ece_equal_mass,bins=10 ece+temperature accuracy+logit_adjustment my_metrics.mine."""
    test_set: str | None = None
    """One of the study's further test sets. None: the data set's own."""
    plan: str | None = None
    """Folder of the manifest, where other studies share the cells. None: the study's."""
    progress: Annotated[str, PROGRESS] = "auto"
    """auto (bar on a terminal, lines elsewhere), bar, lines or off."""


def main(arguments: Arguments) -> None:
    from cnnlab.study import reanalysis
    from cnnlab.study.report import reanalysis as report

    analyses = reanalysis.parse(arguments.metric)
    folder = files.expanded(arguments.study)
    plan_folder = files.expanded(arguments.plan) if arguments.plan else folder
    study = reanalysis.read(folder, plan_folder)
    console = Console(arguments.progress)
    measured = reanalysis.reanalyse(study, analyses, arguments.test_set, console)
    paths = report.write(study, measured, plan_folder)
    show(*report.lines(study, measured), *paths)


if __name__ == "__main__":
    cli.main(main, Arguments)
