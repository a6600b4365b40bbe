"""What processes exchange comes back equal, and makes nothing but data."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from cnnlab.errors import CheckpointError, Diverged, InputError
from cnnlab.multihost import messages
from cnnlab.study.manifest import PlannedArm
from cnnlab.study.records import SeedRun
from cnnlab.study.tuning import Network


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -(2**70), 1.5, math.inf, "a\x1b\udcff", [], (), {}, {1, 2}, [1, (2, [3])],
        {"a": {"kind": "path"}, 3: (1,), (1, "b"): None}, Path("/a/b"), [Path("runs")],
        {Network(1, 2): 0.5},
        PlannedArm("cross_entropy", {"label_noise": 0.4}, "abc"),
        SeedRun(0, None, {"accuracy": 0.5, "confusion": [[1, 2], [3, 4]]}, [{"epoch": 1}], [0.1]),
    ],
)  # fmt: skip
def test_values_come_back_equal(value):
    back = messages.decode(messages.encode(value))
    assert back == value and type(back) is type(value)


def test_nan_and_arrays():
    assert math.isnan(messages.decode(messages.encode(math.nan)))
    for array in (np.float32(0.1), np.arange(6.0).reshape(2, 3), np.zeros((0, 2), bool)):
        back = messages.decode(messages.encode(array))
        np.testing.assert_array_equal(back, array)
        assert back.dtype == array.dtype and back.shape == array.shape


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (InputError("no"), InputError, "no"),
        (CheckpointError("step 3"), CheckpointError, "step 3"),
        (Diverged("at 3", np.int32(3)), InputError, "at 3"),
        (MemoryError("big"), InputError, "out of memory (big); ask for less"),
        (ValueError("x"), ValueError, "x"),
        (KeyError("x"), RuntimeError, "KeyError: 'x'"),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "bad"), RuntimeError, "UnicodeDecodeError: "),
    ],
)
def test_errors_arrive_with_their_words(error, kind, words):
    back = messages.decode(messages.encode(error))
    assert type(back) is kind and str(back).startswith(words)


@pytest.mark.parametrize(
    "message",
    [
        {"kind": "dataclass", "name": "os:system", "fields": {}},
        {"kind": "dataclass", "name": "subprocess:Popen", "fields": {"args": "true"}},
        {"kind": "dataclass", "name": "cnnlab.files:remove", "fields": {"folder": "/x"}},
        {"kind": "dataclass", "name": "cnnlab.files:os.system", "fields": {}},
        {"kind": "anything"},
        {"a": 1},
    ],
)
def test_a_message_makes_nothing_else(message):
    with pytest.raises(ValueError, match="no "):
        messages.decode(json.dumps(message).encode())


def test_objects_are_not_sent():
    for value in (object(), InputError, lambda: 0, np.array([object()]), b"x"):
        with pytest.raises(TypeError, match="cannot exchange"):
            messages.encode(value)


def test_an_error_of_several_arguments_keeps_its_words():
    class Odd(Exception):
        def __init__(self, first, second):
            super().__init__(first)

    back = messages.decode(messages.encode(Odd("what happened", 2)))
    assert type(back) is RuntimeError and str(back) == "Odd: what happened"


def test_a_named_tuple_keeps_its_names():
    (key,) = messages.decode(messages.encode({Network(1, 2): 0.5}))
    assert (key.trial, key.seed) == (1, 2)
