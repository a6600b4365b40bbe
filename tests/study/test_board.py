"""What a person sees of a study: a table on a terminal, plain lines elsewhere."""

import dataclasses
import io

import study_example
from rich.console import Console as Screen

from cnnlab.study.board import Board, UnderWay
from cnnlab.study.results import SeedRun

CELLS = [("ce", "noise 0"), ("mse", "noise 0"), ("ce", "noise 0.4"), ("mse", "noise 0.4")]


def cell(*accuracies):
    """A cell's result with a run for each accuracy; None: it diverged."""
    runs = [
        SeedRun(seed, 3, None, [], [])
        if accuracy is None
        else SeedRun(seed, None, {"accuracy": accuracy}, [], [])
        for seed, accuracy in enumerate(accuracies)
    ]
    return dataclasses.replace(study_example.results(seeds=1).cells[0][0], runs=runs)


DONE, BROKEN = cell(0.5, 0.6), cell(None, 0.25)


def drawn(board):
    screen = Screen(file=io.StringIO(), width=120)
    screen.print(board.table())
    return screen.file.getvalue()


def test_the_table_shows_what_is_done_and_how_far_the_rest_is():
    board = Board("bar", epochs=4)
    board.mode = "off"  # no live display here
    with board.showing(CELLS):
        board.finished("ce", "noise 0", DONE)
        board.started("mse", "noise 0")
        board.mode = "bar"
        board.phase("training")
        with board.progress("epoch 1/4", 10, "steps") as advance:
            advance(5, "loss 1.0")
            assert "training 12 %" in drawn(board)  # half of one epoch of four
        board.epoch({"epoch": 2, "train_accuracy": [0.1, 0.3], "validation_accuracy": [0.4, 0.5]})
        text = drawn(board)
        assert (
            "1 of 4 cells done" in text and "55.00 %" in text and "training 50 % (45.0 %)" in text
        )
        board.mode = "off"
        board.finished("mse", "noise 0", BROKEN)
        assert "25.00 % (1 diverged)" in drawn(board) and "left" in drawn(board)


def test_lines_elsewhere(capsys):
    board = Board("lines", epochs=1)
    with board.showing(CELLS):
        board.finished("ce", "noise 0", DONE)  # found, not trained: no line
        board.started("mse", "noise 0")
        board.epoch({"epoch": 1, "train_accuracy": [0.1]})
        board.finished("mse", "noise 0", DONE)
    lines = capsys.readouterr().out.splitlines()
    assert (
        len(lines) == 1
        and lines[0].startswith("2/4 mse, noise 0: 55.00 %; about ")
        and lines[0].endswith(" left")
    )


def test_several_cells_under_way_elsewhere(capsys):
    board = Board("lines", epochs=4)

    def at(where, share):
        return UnderWay(0.0, "training", share, "45.0 %", where)

    with board.showing(CELLS):
        for share in (0.0, 0.25):  # said once
            board.elsewhere("ce", "noise 0", at("one", share))
            board.elsewhere("mse", "noise 0", at("two", share))
        assert drawn(board).count("training 25 % (45.0 %)") == 2
        board.elsewhere("mse", "noise 0", at("three", 0.0))  # its machine was lost
        board.finished("ce", "noise 0", DONE, trained=True)
        board.finished("mse", "noise 0.4", DONE, trained=True)  # too quick to be seen
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "training ce, noise 0 on one",
        "training mse, noise 0 on two",
        "training mse, noise 0 on three",
    ]
    assert [line.split(":")[0] for line in lines[3:]] == ["1/4 ce, noise 0", "2/4 mse, noise 0.4"]
