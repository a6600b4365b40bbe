"""Compare losses over paired seeds: one command, and a report that can refuse to claim.

    python experiments/ablate.py --losses cross_entropy focal,gamma=2 --label-noise 0 0.4
    python experiments/ablate.py --losses cross_entropy my_module.my_loss --tune lr=1e-4..1e-1

Every loss is trained from the same weights on the same batches for each seed. The same command
resumes a study that was stopped or killed; machines that share the folder take `--shard 0/4`,
`--shard 1/4`, ... of it, or `--executor ray`.
"""

from __future__ import annotations

from cnnlab import cli, files
from cnnlab.multihost import agree
from cnnlab.study.plan import Study
from cnnlab.training import run_folder


def main(study: Study) -> None:
    from cnnlab.study import cells, report

    results = cells.conduct(study, run_folder.command())
    if results is not None:
        paths = agree.on_first(lambda: report.write(results, files.expanded(study.workdir)))
        print(*report.brief(results), *paths, sep="\n", flush=True)


if __name__ == "__main__":
    cli.main(main, Study, several=True)
