"""Strategies for what a user may write by mistake, and a script run in this process until it would
open data.
"""

import contextlib
import importlib.util
import inspect
import io
import os
import re
import signal
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from scripts import ROOT

from cnnlab import cli, parts

# Reproducible: the same cases on every machine.
SETTINGS = settings(
    database=None, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck]
)
SECONDS = 120  # that no refusal takes on the slowest machine

NUMBERS = [
    "0", "1", "-1", "2", "0.5", "1e-3", "-0.0", "nan", "inf", "-inf", "1e400", "1e-400", "1_000",
    "0x10", "007", "１２", "99999999999999999999", "1.", ".5", "1e", "--1", "1,2", "2**3",
]  # fmt: skip
WORDS = [
    "", " ", "none", "None", "true", "auto", "all", "cross_entropy", "tiny", "shapes10", "train",
    "=", ",", "+", ":", "/", ".", "..", "-", "--", "@", "*", "%s", "{}", "$x", "~", "é", "日本",
    "\x1b[31m", "a\nb", "\t", "\u202e", "x" * 5000, "[", "]", "[1,2", "[1,2]", "()", "'", '"',
    "s3://bucket/run", "file:///tmp", "http://localhost", "a.b", "nowhere.thing", "user_parts.Net",
    "user_parts.nothing", "optax.adam", "numpy.random", "json.dumps", "os.path.join",
    "lr=1e-4..1e-1",
]  # fmt: skip
PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
VALUES = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(WORDS), PLAIN)
INTEGERS = st.sampled_from(["0", "1", "2", "3", "8", "100", "-1", "1000000", "99999999999", "2.5"])
FLOATS = st.sampled_from(
    ["0", "1", "0.1", "1e-3", "0.5", "2", "-1", "nan", "inf", "1e400", "1e-400"]
)


@st.composite
def specs(draw, kinds=tuple(parts.KINDS)):
    """A part or a pipeline of them; names and keywords are mostly those that there are."""
    words = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        kind = parts.KINDS[draw(st.sampled_from(kinds))]
        known = {**kind.builtin(), **kind.short()}
        name = draw(st.one_of(*[st.sampled_from(sorted(known))] * 4, VALUES))
        keys = [k for k in _hyperparameters(known.get(name)) if k not in kind.hidden]
        key = st.one_of(*[st.sampled_from(keys)] * 4, PLAIN) if keys else PLAIN
        value = st.one_of(FLOATS, INTEGERS, st.just("[1,2]"), VALUES)
        pairs = draw(st.lists(st.tuples(key, value), max_size=2))
        words.append(",".join([name, *(f"{k}={v}" for k, v in pairs)]))
    return "+".join(words)


def _hyperparameters(function):
    return [] if function is None else [*inspect.signature(function).parameters]


def _of_flag(name, hint):
    """The words of a flag, most of which its type takes."""
    flag = f"--{name.replace('_', '-')}"
    if hint is bool:
        return st.sampled_from([[flag], [f"--no-{flag[2:]}"]])
    kinds = [key for key, kind in parts.KINDS.items() if kind.flag == flag]
    kinds += ["loss"] * (name == "losses") + ["transform"] * (name == "loss")
    text = str(hint)
    if kinds:
        fitting = specs(kinds)
    elif "int" in text:
        fitting = INTEGERS
    elif "float" in text:
        fitting = FLOATS
    else:
        choices = [word for word in re.findall(r"'([\w-]+)'", text) if word != "str"]
        fitting = st.sampled_from([*choices, "run", "tiny"])
    value = st.one_of(*[fitting] * 6, VALUES)
    if "tuple" in text or "list" in text:
        return st.lists(value, max_size=3).map(lambda values: [flag, *values])
    return value.map(lambda value: [flag, value])


def command_lines(hints):
    """Words of a command line whose flags have these types; a few are of none."""
    flags = [_of_flag(name, hint) for name, hint in hints.items()]
    unknown = st.one_of(VALUES.map(lambda word: [word]), st.just(["--config", "nowhere.toml"]))
    words = st.one_of(*[st.sampled_from(flags).flatmap(lambda flag: flag)] * 12, unknown)
    return st.lists(words, max_size=4).map(
        lambda lists: [word for words in lists for word in words]
    )


def _changed(value, draw):
    if isinstance(value, dict) and value and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(value)))
        kind = draw(st.sampled_from(["inside", "inside", "gone", "renamed"]))
        rest = {k: v for k, v in value.items() if k != key}
        if kind == "gone":
            return rest
        if kind == "renamed":
            return {**rest, draw(PLAIN): value[key]}
        return {**value, key: _changed(value[key], draw)}
    if isinstance(value, list) and value and draw(st.booleans()):
        i = draw(st.integers(0, len(value) - 1))
        kind = draw(st.sampled_from(["inside", "inside", "gone", "twice"]))
        replaced = {"gone": [], "twice": [value[i]] * 2}.get(kind)
        if replaced is None:
            replaced = [_changed(value[i], draw)]
        return [*value[:i], *replaced, *value[i + 1 :]]
    other = [None, True, False, 0, -1, 1, 7.0, -0.5, 1e308, 2**70, "", "x", [], [1], {}, {"a": 1}]
    other += [float("nan"), float("inf"), "nan", [[]], "\x1b[31m", "1"]
    return draw(st.sampled_from([v for v in other if repr(v) != repr(value)]))


def changed(value):
    """A JSON value in which one thing is another: a value, a type, a key, a length."""
    return st.composite(lambda draw: _changed(value, draw))()


class Admitted(BaseException):
    """What was asked for was taken, and the data would be opened now."""


def admit(*_, **__):
    raise Admitted


def script(name):
    """An experiment's module."""
    path = ROOT / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"fuzzed_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their types up there
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def limited():
    """A hang is an error."""

    def stop(*_):
        raise TimeoutError(f"no answer within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(body, settings_class, args, **options):
    """Run a script: "admitted", "done" or the line that refuses it.

    Raises:
      AssertionError: it left a file, or said more than one line or an unprintable one.
    """
    errors = io.StringIO()
    before = {*Path().rglob("*")}
    with limited(), contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.main(body, settings_class, args, **options)
            result = "done"
        except Admitted:
            result = "admitted"
        except SystemExit as stop:
            result = "done" if stop.code in (0, None) else errors.getvalue()
            assert stop.code in (0, None, cli.EXIT_INPUT), stop.code
    assert {*Path().rglob("*")} == before, "files were left"
    if result not in ("done", "admitted"):
        line = result.removesuffix("\n")
        assert line.startswith("error: ") and len(line) < 20_000, line
        assert all(c.isprintable() for c in line), repr(line)
    assert os.getcwd()
    return result
