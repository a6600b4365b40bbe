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
from cnnlab.study.results import Results


def main(study: Study) -> None:
    from cnnlab import report
    from cnnlab.study import cells
    from cnnlab.study.board import Board

    board = Board(study.progress, study.epochs)
    for line in cells.announcement(study):
        board.say(line)
    results = cells.run(study, board, run_folder.command())
    if results is not None:
        show(results)
        for path in report.write(results, Path(study.workdir).expanduser()):
            board.say(str(path))


def show(results: Results) -> None:
    """The verdicts, on the terminal."""
    from rich.console import Console
    from rich.table import Table

    from cnnlab.report import claims, tables
    from cnnlab.study.results import verdicts

    found = verdicts(results)
    whole = tables.verdicts(results, found)
    shown = [i for i, name in enumerate(whole.head) if name.startswith(("condition", "loss", "verdict", "diff", "95"))]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for i in shown:
        table.add_column(whole.head[i], justify="left" if i < whole.words else "right")
    for row in whole.rows:
        table.add_row(*[row[i] for i in shown])
    screen = Console(highlight=False, soft_wrap=True)
    if not screen.is_terminal:  # a pipe has no width: the table stays whole there
        screen.width = 240
    screen.print(claims.summary(results, found), table, sep="\n", markup=False)


if __name__ == "__main__":
    cli.main(main, Study)
