"""A user's code that ends the program in place of an error: one line, status 2, from every kind of
part, imported, called and traced.
"""

import sys

import pytest
from test_cli import Small

from cnnlab import cli, spec
from cnnlab.config import Config
from cnnlab.contracts import check_loss, check_model, check_optimizer, check_schedule
from cnnlab.errors import InputError
from cnnlab.parts import KINDS, find, resolve

LEAVING = {
    "sys.exit(0)": "SystemExit: 0",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "raise BaseException('two\\nlines')": "BaseException: two",
    "raise type('Silent', (Exception,), {'__str__': lambda self: 1 / 0})": "Silent: ",
    "deep()": "RecursionError: maximum recursion depth exceeded",
}
MODULE = """
import sys
def deep():  # with *args, Python 3.13.0 finds no end and takes all memory
    deep()
def ends(*args, **kwargs):
    {statement}
def getattr_(name):
    {statement}
"""


def run(body, capsys):
    """The exit status of a command and its standard error."""
    with pytest.raises(SystemExit) as stop:
        cli.main(body, Small, [])
    return stop.value.code, capsys.readouterr().err


@pytest.fixture(params=LEAVING, ids=LEAVING.values())
def leaving(request, tmp_path, monkeypatch):
    """Modules here, whose code ends the program; what that is called in a line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = MODULE.format(statement=request.param)
    (tmp_path / "leaving_called.py").write_text(text)
    (tmp_path / "leaving_asked.py").write_text(text.replace("getattr_", "__getattr__"))
    (tmp_path / "leaving_imported.py").write_text(text + "ends()\n")
    yield LEAVING[request.param]
    for name in ("called", "asked", "imported"):
        sys.modules.pop(f"leaving_{name}", None)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_part_is_refused_in_a_line(kind, leaving, capsys):
    for path in ("leaving_imported.ends", "leaving_asked.absent"):
        status, errors = run(lambda flags, path=path: find(kind, path), capsys)
        assert status == 2 and errors.count("\n") == 1
        assert errors.startswith(f"error: {KINDS[kind].name} '{path}'") and leaving in errors


def test_a_part_that_is_called_is_refused_in_a_line(leaving, capsys):
    for setting in ("model", "optimizer", "schedule", "average", "dataset"):
        part = getattr(resolve(Config.of(**{setting: "leaving_called.ends"}).recipe), setting)
        status, errors = run(lambda flags, part=part: part.call(), capsys)
        assert status == 2 and errors.count("\n") == 1
        assert f"leaving_called.ends: {leaving}" in errors


def test_a_part_that_is_traced_is_refused_in_a_line(leaving, capsys):
    loss, model = find("loss", "leaving_called.ends"), find("model", "leaving_called.ends")

    def ends(*args, **kwargs):
        import leaving_called

        leaving_called.ends()

    class Net:
        init = apply = ends

    checks = [
        lambda flags: check_loss(loss, loss.bind(), 10),
        lambda flags: check_model(model, Net(), (4, 4, 3), 10),
        lambda flags: check_schedule(find("schedule", "leaving_called.ends"), ends),
        lambda flags: check_optimizer(
            find("optimizer", "leaving_called.ends"), ends, Net(), (4, 4, 3)
        ),
    ]
    for check in checks:
        status, errors = run(check, capsys)
        assert status == 2 and errors.count("\n") == 1
        assert "leaving_called.ends' fails" in errors and leaving in errors


def test_code_that_leaves_where_nothing_guards_it_is_no_success(capsys):
    """As a user's data set whose images are read in training may."""
    status, errors = run(lambda flags: sys.exit(0), capsys)
    assert status == 2 and errors.count("\n") == 1
    assert errors.startswith("error: code of yours has ended the command: SystemExit: 0 (test_")


def test_ctrl_c_in_a_program_of_the_user_s_stays_one():
    """There Python's own handler raises it; nobody's code has."""
    with pytest.raises(KeyboardInterrupt), spec.refused("loss"):
        raise KeyboardInterrupt
    with pytest.raises(InputError, match=r"^loss: SystemExit: 3"), spec.refused("loss"):
        sys.exit(3)


def test_what_a_module_prints_is_no_result(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "printing_here.py").write_text("print('hello')\ndef loss(logits, labels): ...\n")
    find("loss", "printing_here.loss")
    assert capsys.readouterr() == ("", "hello\n")
