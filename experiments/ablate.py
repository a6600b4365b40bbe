"""Compare losses, or any settings, over paired seeds: one command, and a report that can refuse to
claim.

    python experiments/ablate.py --losses cross_entropy focal,gamma=2 --label-noise 0 0.4
    python experiments/ablate.py --losses cross_entropy my_module.my_loss --tune lr=1e-4..1e-1
    python experiments/ablate.py --arms "optimizer=adam" "optimizer=sgd learning_rate=0.05"
    python experiments/ablate.py --losses cross_entropy focal brier --until decided --max-seeds 24

Every arm is trained on the same batches for each seed, and from the same weights where its network
is the same. The same command
resumes a study that was stopped or killed; machines that share the folder take `--shard 0/4`,
`--shard 1/4`, ... of it, or `--executor ray`. With `--until decided` blocks of seeds are added
until every comparison is decided; the report is written after each of them, to look at whenever
you like.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cnnlab import cli, files
from cnnlab.console import show
from cnnlab.multihost import agree
from cnnlab.study.plan import Study
from cnnlab.training import run_folder

if TYPE_CHECKING:
    from cnnlab.study.results import Results


def write(results: Results) -> list[Path]:
    """Write the report of a study into its folder."""
    from cnnlab.study import report

    return agree.on_first(lambda: report.write(results, files.expanded(results.study.workdir)))


def main(study: Study) -> None:
    from cnnlab.study import driver, report

    results = driver.conduct(study, run_folder.command(), look=write)
    if results is not None:
        paths = write(results)
        show(*report.brief(results), *paths)


if __name__ == "__main__":
    cli.main(main, Study, several=True)
