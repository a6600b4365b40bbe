"""Progress without a terminal: lines now and then, counted right; a bar on request."""

import io
import sys

import pytest

from cnnlab import cli, console
from cnnlab.config import Machine
from cnnlab.console import Console
from cnnlab.errors import InputError


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(("terminal", "mode"), [(True, "bar"), (False, "lines")])
def test_auto_looks_for_a_terminal(terminal, mode, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stdout", stream)
    assert Console().mode == Console("auto").mode == mode
    assert Console("off").mode == "off"


def test_a_line_every_ten_seconds(clock, capsys):
    with Console("lines").progress("epoch 1", 100, "steps", done=20) as advance:
        for _ in range(5):
            clock[0] += 4
            advance(2, "loss 0.5")
    # After 12 s; the next would come at 22 s
    assert capsys.readouterr().out == "epoch 1: 26/100 steps loss 0.5\n"


def test_a_line_without_a_note(clock, capsys):
    with Console("lines").progress("reading", 3, "files") as advance:
        clock[0] += 11
        advance()
    assert capsys.readouterr().out == "reading: 1/3 files\n"


def test_an_unknown_total(clock, capsys):
    with Console("lines").progress("reading", None, "files") as advance:
        clock[0] += 11
        advance(7)
    assert capsys.readouterr().out == "reading: 7 files\n"


def test_off_says_only_what_is_said(clock, capsys):
    quiet = Console("off")
    with quiet.progress("epoch 1", 2, "steps") as advance:
        clock[0] += 100
        advance()
        quiet.say("[saved] step 7")
    assert capsys.readouterr().out == "[saved] step 7\n"


def test_the_bar_lets_lines_through_as_they_are(capsys):
    shown = Console("bar")
    with shown.progress("epoch 1", 2, "steps") as advance:
        advance(1, "loss 0.5")
        shown.say("[bold]markup is text[/bold] " + "x" * 200)
    shown.say("after")
    lines = capsys.readouterr().out.splitlines()
    assert "[bold]markup is text[/bold] " + "x" * 200 in lines
    assert lines[-1] == "after"


def test_the_bar_is_gone_after_an_error(capsys):
    shown = Console("bar")
    with pytest.raises(ZeroDivisionError), shown.progress("epoch 1", 2, "steps"):
        raise ZeroDivisionError
    shown.say("plain")
    assert capsys.readouterr().out.endswith("plain\n")
    with shown.progress("epoch 2", 2, "steps") as advance:  # a second one may start
        advance()


def test_track_gives_every_element_and_counts(clock, capsys):
    seen = []
    for element in Console("lines").track("decoding", "reads")([3, 1, 2]):
        seen.append(element)
        clock[0] += 11
    assert seen == [3, 1, 2]
    assert capsys.readouterr().out.splitlines() == [f"decoding: {k}/3 reads" for k in (1, 2, 3)]


NAME = "a\x1b[31m\nb\u202e\udcff caf\u00e9"
ESCAPED = r"a\x1b[31m\nb\u202e\udcff café"


@pytest.mark.parametrize("mode", ["off", "bar"])
def test_names_are_printed_escaped(mode, capsys):
    shown = Console(mode)
    with shown.progress(NAME, 2, "steps") as advance:
        advance(1, NAME)
        shown.say(NAME, "[/b]")
    shown.say(NAME)
    console.show(NAME, 3, file=sys.stderr)
    printed = capsys.readouterr()
    assert ESCAPED in printed.out.splitlines() and "[/b]" in printed.out.splitlines()
    assert printed.out.count(ESCAPED) >= 2 and "a\x1b[31m" not in printed.out
    assert printed.err == f"{ESCAPED}\n3\n"


def test_a_description_is_no_markup(capsys):
    """A folder may be called [/b], which ends nothing."""
    with Console("bar").progress("decoding [/b]", 2, "reads") as advance:
        advance(1, "[/i]")


def test_an_error_is_printed_escaped(capsys):
    def fails(flags):
        raise InputError(f"no folder {NAME}")

    with pytest.raises(SystemExit) as stop:
        cli.main(fails, Machine, [])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: no folder a\\x1b[31m b\\u202e\\udcff café\n"
