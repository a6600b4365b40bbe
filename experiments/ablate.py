"""Compare losses over paired seeds: one command, and a report that can refuse to claim.

    python experiments/ablate.py --losses cross_entropy mean_squared_error focal,gamma=2 --label-noise 0 0.4
    python experiments/ablate.py --losses cross_entropy my_module.my_loss --tune lr=1e-4..1e-1 --workdir runs/mine

Every loss is trained from the same weights on the same batches for each seed. The same command goes on where a study
was stopped or killed; machines that share the folder take `--shard 0/4`, `--shard 1/4`, ... of it.
"""

from __future__ import annotations

from pathlib import Path

from cnnlab import cli, run_folder
from cnnlab.study.plan import Study


def main(study: Study) -> None:
    from cnnlab import report
    from cnnlab.study import cells
    from cnnlab.study.board import Board

    board = Board(study.progress, study.epochs)
    for line in cells.announcement(study):
        board.say(line)
    results = cells.run(study, board, run_folder.command())
    if results is not None:
        for path in report.write(results, Path(study.workdir).expanduser()):
            board.say(str(path))


if __name__ == "__main__":
    cli.main(main, Study)
