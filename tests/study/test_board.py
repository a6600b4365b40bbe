"""What a person sees of a study: tables on a terminal, plain lines elsewhere."""

import dataclasses
import io

import study_example
from rich.console import Console as Screen

from cnnlab.study.board import Board, UnderWay
from cnnlab.study.folder import Cell
from cnnlab.study.records import SeedRun


def cell(loss, noise, first=0):
    """A cell of two seeds."""
    name = f"{loss}{noise}{first}"
    return Cell(loss, {"noise": noise}, (first, first + 1), name, name, "")


CE, MSE, NOISY, LATER = cell("ce", 0), cell("mse", 0), cell("ce", 0.4), cell("ce", 0, 2)
CELLS = [CE, MSE, NOISY, LATER]


def result(*accuracies):
    """A cell's result with a run for each accuracy; None: it diverged."""
    runs = [
        SeedRun(seed, 3, None, [], [])
        if accuracy is None
        else SeedRun(seed, None, {"accuracy": accuracy}, [], [])
        for seed, accuracy in enumerate(accuracies)
    ]
    return dataclasses.replace(study_example.results(seeds=1).cells[0], runs=runs)


DONE, BROKEN = result(0.5, 0.6), result(None, 0.25)


def drawn(board):
    screen = Screen(file=io.StringIO(), width=140)
    screen.print(board.tables())
    return screen.file.getvalue()


def test_the_table_shows_what_is_done_and_how_far_the_rest_is():
    board = Board("bar", epochs=4)
    board.mode = "off"  # no live display here
    board.expect(CELLS, CELLS)
    board.finished(CE, DONE)
    board.started(MSE)
    board.mode = "bar"
    board.phase("training")
    with board.progress("epoch 1/4", 10, "steps") as advance:
        advance(5, "loss 1.0")
        assert "training 12 %" in drawn(board)  # half of one epoch of four
    board.epoch({"epoch": 2, "train_accuracy": [0.1, 0.3], "validation_accuracy": [0.4, 0.5]})
    text = drawn(board)
    assert "1 of 4 cells done" in text and "training 50 % (45.0 %)" in text
    assert "55.00 %, 2 of 4 seeds" in text
    board.mode = "off"
    board.finished(MSE, BROKEN)
    assert "25.00 % (1 diverged)" in drawn(board) and "left" in drawn(board)
    board.finished(LATER, result(0.6, 0.7))
    assert "60.00 %" in drawn(board) and "of 4 seeds" not in drawn(board)


STANDING = ("comparison", "seeds", "evidence", "interval", "verdict")
ROWS = [
    ("mse, noise 0:", "8", "31 of 60", "[-1, +2] pp", "? undecided, about 12 to expect"),
    ("mse, noise 0.4:", "8", "60 of 60", "[+1, +2] pp", "better"),
]


def test_the_comparisons_stand_below_it(capsys):
    board = Board("bar")
    board.expect(CELLS, CELLS)
    assert "evidence" not in drawn(board)
    board.standing(STANDING, ROWS)
    text = drawn(board)
    assert text.index("cells done") < text.index("evidence") < text.index("31 of 60")
    lines = Board("lines")
    lines.standing(STANDING, ROWS)
    assert capsys.readouterr().out.splitlines() == [
        "  mse, noise 0: 8 seeds, evidence 31 of 60, interval [-1, +2] pp, ? undecided, about 12 "
        "to expect",
        "  mse, noise 0.4: 8 seeds, evidence 60 of 60, interval [+1, +2] pp, better",
    ]


def test_lines_elsewhere(capsys):
    board = Board("lines", epochs=1)
    board.expect(CELLS, CELLS)
    with board.showing():
        board.finished(CE, DONE)  # found, not trained: no line
        board.started(MSE)
        board.epoch({"epoch": 1, "train_accuracy": [0.1]})
        board.finished(MSE, DONE)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("2/4 mse, noise 0, seeds 0 to 1: 55.00 %; about ")
    assert line.endswith(" left")


def test_several_cells_under_way_elsewhere(capsys):
    board = Board("lines", epochs=4)

    def at(where, share):
        return UnderWay(0.0, "training", share, "45.0 %", where)

    board.expect(CELLS, CELLS)
    with board.showing():
        for share in (0.0, 0.25):  # said once
            board.elsewhere(CE, at("one", share))
            board.elsewhere(MSE, at("two", share))
        assert drawn(board).count("training 25 % (45.0 %)") == 2
        board.elsewhere(LATER, at("four", 0.5))  # another block of the same arm
        assert "training 25 % (45.0 %); training 50 % (45.0 %)" in drawn(board)
        board.elsewhere(MSE, at("three", 0.0))  # its machine was lost
        board.finished(CE, DONE, trained=True)
        board.finished(NOISY, DONE, trained=True)  # too quick to be seen
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "training ce, noise 0, seeds 0 to 1 on one",
        "training mse, noise 0, seeds 0 to 1 on two",
        "training ce, noise 0, seeds 2 to 3 on four",
        "training mse, noise 0, seeds 0 to 1 on three",
    ]
    assert [line.split(":")[0] for line in lines[4:]] == [
        "1/4 ce, noise 0, seeds 0 to 1",
        "2/4 ce, noise 0.4, seeds 0 to 1",
    ]
