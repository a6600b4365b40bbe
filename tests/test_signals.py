"""SIGTERM and Ctrl-C end a script with their statuses, from its first second to its last."""

import fcntl
import gc
import os
import pty
import signal
import subprocess
import sys
import termios
import time

import pytest
from scripts import ROOT
from test_cli import Small

from cnnlab import cli, signals
from cnnlab.errors import Ended
from cnnlab.training.signals import stop_signals


def send(number):
    os.kill(os.getpid(), number)


def ended(body, capsys):
    """The exit status of a command, and the one line that it prints."""
    with pytest.raises(SystemExit) as stop:
        cli.main(body, Small, [])
    return stop.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "status", "line"),
    [
        (signal.SIGTERM, 75, "stopped by SIGTERM; run the same command again\n"),
        (signal.SIGHUP, 75, "stopped by SIGHUP; run the same command again\n"),
        (signal.SIGINT, 130, "interrupted\n"),
    ],
)
def test_a_signal_ends_a_command_with_its_status(number, status, line, capsys):
    assert ended(lambda flags: send(number), capsys) == (status, line)


def test_guards_against_errors_let_a_signal_pass(capsys):
    def body(flags):
        try:
            send(signal.SIGTERM)
        except Exception:
            print("guarded")

    assert ended(body, capsys)[0] == 75


def test_an_error_that_a_signal_has_become_ends_with_the_signal_s_status(capsys):
    """Importing an extension module makes an ImportError of whatever is raised in it."""

    def body(flags):
        try:
            send(signal.SIGTERM)
        except Ended as error:
            raise ImportError("Encountered an error while initializing the extension.") from error

    assert ended(body, capsys)[0] == 75


def test_a_second_signal_changes_nothing(capsys):
    def body(flags):
        try:
            send(signal.SIGTERM)
        finally:
            send(signal.SIGTERM)
            send(signal.SIGINT)

    assert ended(body, capsys)[0] == 75


def test_signals_are_ignored_while_the_process_ends():
    with signals.raised(last=True):
        pass
    for number in signals.NUMBERS:
        send(number)


def test_a_signal_that_python_would_only_report_stops_the_training_that_follows(capsys):
    seen = []

    def _xla_gc_callback(*_):
        send(signal.SIGTERM)
        gc.callbacks.remove(_xla_gc_callback)

    def body(flags):
        gc.callbacks.append(_xla_gc_callback)
        gc.collect()
        with stop_signals() as stop:
            seen.append(stop.seen())
        raise cli.Stopped("saved", 75)

    assert ended(body, capsys) == (75, "saved\n")
    assert seen == [signal.SIGTERM]


def test_a_later_command_of_the_process_starts_afresh(capsys):
    assert ended(lambda flags: send(signal.SIGTERM), capsys)[0] == 75
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with stop_signals() as request:
        assert request.seen() is None
    assert cli.main(lambda flags: None, Small, []) is None
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("number", signals.NUMBERS)
def test_an_ignored_signal_stays_ignored(number):
    signal.signal(number, signal.SIG_IGN)
    assert cli.main(lambda flags: send(number), Small, []) is None
    with stop_signals() as stop:
        send(number)
    assert stop.seen() is None


def test_a_signal_that_waited_over_a_restart_is_answered(capsys):
    """The signal comes between the start of the script and that of the same with huge pages."""
    with signals.blocked():
        signal.raise_signal(signal.SIGTERM)  # in this thread, the only one then
        assert ended(lambda flags: None, capsys)[0] == 75


SCRIPT = """
import contextlib, hashlib
from cnnlab import cli, signals
from test_cli import Small
def body(flags):
    with {around}:
        print("begun", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})
cli.main(body, Small, [])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("around", "rounds"),
    [("contextlib.nullcontext()", 10**9), ("signals.held()", 10**7)],
    ids=["nothing to lose", "held"],
)
def test_where_python_cannot_answer_the_process_is_ended(around, rounds):
    """C works without Python's lock, as XLA's compiler does: for ten minutes, or for some seconds
    in which what is held is not lost.
    """
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(around=around, rounds=rounds)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "begun\n"
        for _ in range(3):  # schedulers send more than one
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (75, f"{signals.words(signal.SIGTERM)}\n")


def users_environment():
    return {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {
        "JAX_PLATFORMS": "cpu"
    }


@pytest.mark.slow
def test_a_script_is_stopped_at_any_time(tmp_path):
    """While it imports, reads, compiles, trains, tests, draws; then the same command ends."""
    environment = users_environment()
    command = [sys.executable, str(ROOT / "experiments" / "train.py"), "--epochs", "1"]
    command += ["--model", "mlp,hidden=[8]", "--fraction", "0.1", "--workdir", str(tmp_path / "a")]
    statuses = []
    for wait in (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0):
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True
        ) as process:
            time.sleep(wait)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors.count("\n")) in ((75, 1), (0, 0)), errors
        statuses.append(process.returncode)
    assert statuses[:2] == [75, 75]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_closed_terminal_stops_a_training_that_saves(tmp_path):
    """Its bar can no longer be drawn."""
    command = [sys.executable, str(ROOT / "experiments" / "train.py"), "--epochs", "50"]
    command += ["--model", "mlp,hidden=[8]", "--fraction", "0.1", "--workdir", str(tmp_path / "a")]
    ours, theirs = pty.openpty()
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=errors,
            env=users_environment(),
            preexec_fn=take_terminal,
        )
    os.close(theirs)
    shown = b""
    while b"epoch 2" not in shown:
        shown += os.read(ours, 1 << 16)
    os.close(ours)
    assert process.wait(60) == 75
    said = (tmp_path / "errors").read_text()
    assert said.startswith("stopped by SIGHUP at step") and said.count("\n") == 1
    assert any((tmp_path / "a" / "checkpoints").iterdir())


def take_terminal():
    """Make standard input the terminal of a new session, which gets SIGHUP when it is closed."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
