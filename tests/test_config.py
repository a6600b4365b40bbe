"""Every bad field is named with its value; a stored configuration comes back; what a resumed run may change."""

import dataclasses
import json
import math
import re

import pytest

from cnnlab.config import CHOICES, FREE_ON_RESUME, Config, conflicts
from cnnlab.errors import InputError

NAN, INF = math.nan, math.inf
POSITIVE_COUNTS = ("epochs", "batch_size", "keep", "devices", "image_size")
COUNTS = ("workers", "crop", "cutout", "checkpoint_steps", "seed", "split_seed")
BAD = [
    *((field, value) for field in POSITIVE_COUNTS for value in (0, -1)),
    *((field, -1) for field in COUNTS),
    *(
        (field, value)
        for field in ("learning_rate", "clip_norm", "loss_temperature")
        for value in (0.0, -1e-3, NAN, INF, -INF)
    ),
    *((field, value) for field in ("validation", "dropout", "momentum") for value in (-0.1, 1, 1.5, NAN, INF)),
    *((field, value) for field in ("warmup_epochs", "weight_decay", "mixup", "z_loss") for value in (-0.1, NAN, INF)),
    *(("label_smoothing", value) for value in (-0.1, 1.1, NAN, INF)),
    ("widths", (32, 0)),
    ("widths", ()),
    ("hidden", (-128,)),
    ("seed", 2**32),
    ("warmup_epochs", 10.5),
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_bad_value_is_named(field, value):
    flag = "--" + field.replace("_", "-")
    with pytest.raises(InputError, match=rf"^{flag} must .*, got {re.escape(str(value))}$"):
        Config(**{field: value})


@pytest.mark.parametrize(
    "good",
    [
        {"epochs": 1, "batch_size": 1, "keep": 1, "devices": 1, "image_size": 1},
        {"validation": 0.0, "dropout": 0.0, "momentum": 0.0, "warmup_epochs": 0.0, "weight_decay": 0.0, "mixup": 0.0},
        {"validation": 0.999, "dropout": 0.999, "momentum": 0.999, "warmup_epochs": 10.0, "seed": 2**32 - 1},
        {"hidden": (), "learning_rate": 1e-12, "clip_norm": 1e-12, "loss_temperature": 1e-12},
        {"label_smoothing": 0.0, "z_loss": 0.0, "teacher": "/somewhere", "loss_temperature": 100.0},
        {"label_smoothing": 1.0, "z_loss": 1.0, "class_weights": "effective_number", "head": "cosine"},
        {"widths": (), "model": "mlp"},
    ],
)
def test_the_edges_that_are_good(good):
    assert dataclasses.asdict(Config(**good)).items() >= good.items()


@pytest.mark.parametrize("field", CHOICES)
def test_an_unknown_choice_names_the_known_ones(field):
    with pytest.raises(InputError, match=f"unknown {field} 'xyzzy': Known: {', '.join(CHOICES[field])}"):
        Config(**{field: "xyzzy"})
    for known in CHOICES[field]:
        assert getattr(Config(**{field: known}), field) == known


@pytest.mark.parametrize(
    ("field", "typo", "meant"),
    [("optimizer", "adamm", "adam"), ("model", "cn", "cnn"), ("schedule", "cosin", "cosine")],
)
def test_a_typo_is_answered_with_the_nearest_choice(field, typo, meant):
    with pytest.raises(InputError, match=f"did you mean '{meant}'"):
        Config(**{field: typo})


def test_a_teacher_is_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert Config(teacher="runs/big").teacher == str(tmp_path / "runs" / "big")
    assert Config(teacher="~/big").teacher == "/home/someone/big"


def test_best_needs_validation():
    with pytest.raises(InputError, match="--test-on best needs validation above 0, got best"):
        Config(test_on="best", validation=0.0)


CHANGED = Config(
    widths=(8, 16), hidden=(), clip_norm=1.0, dataset="mnist", loss="focal,gamma=2", seed=7, nesterov=False
)


@pytest.mark.parametrize("config", [Config(), CHANGED])
def test_round_trip_through_json(config):
    back = Config.from_json(json.loads(json.dumps(config.to_json())))
    assert back == config and hash(back) == hash(config)


def test_another_versions_fields_are_refused():
    values = Config().to_json()
    values.pop("mixup")
    with pytest.raises(InputError, match="mixup"):
        Config.from_json(values)
    with pytest.raises(InputError, match=r"\['cutmix'\] differ"):
        Config.from_json(Config().to_json() | {"cutmix": 1.0})


def test_no_conflict_with_itself():
    for config in (Config(), CHANGED):
        assert conflicts(json.loads(json.dumps(config.to_json())), config) == []


def test_conflicts_are_named():
    found = conflicts(Config(seed=1, learning_rate=0.1).to_json(), Config(seed=2, widths=(8,)))
    assert sorted(found) == ["learning_rate: 0.1 -> 0.001", "seed: 1 -> 2", "widths: None -> [8]"]


@pytest.mark.parametrize(
    ("schedule", "before", "after", "allowed"),
    [
        ("constant", 5, 10, True),
        ("constant", 10, 5, False),
        ("cosine", 5, 10, False),
        ("cosine", 10, 5, False),
        ("cosine", 5, 5, True),
    ],
)
def test_more_epochs(schedule, before, after, allowed):
    found = conflicts(Config(schedule=schedule, epochs=before).to_json(), Config(schedule=schedule, epochs=after))
    assert found == ([] if allowed else [f"epochs: {before} -> {after}"])


OTHER = {
    "workdir": "elsewhere", "data_dir": "elsewhere", "workers": 3, "keep": 9, "checkpoint_steps": 5, "progress": "off",
    "tensorboard": False, "test_on": "best", "parallel": "pmap", "devices": 2, "feed": "streaming",
    "dispatch_steps": 4, "mesh": "1x2", "coordinator": "localhost:1", "processes": 2, "process": 1,
}  # fmt: skip


def test_free_fields_and_no_others():
    assert set(OTHER) == FREE_ON_RESUME
    assert conflicts(Config().to_json(), Config(**OTHER)) == []
    # changing any other field of the stored one is a conflict
    stored = Config().to_json()
    for field in set(stored) - FREE_ON_RESUME:
        assert conflicts(stored | {field: "something else"}, Config()), field


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mesh": "8"}, "--mesh must be two numbers"),
        ({"mesh": "0x2"}, "--mesh must be two numbers"),
        ({"coordinator": "here:1"}, "go together"),
        ({"processes": 2}, "go together"),
        ({"process": 0}, "go together"),
        ({"coordinator": "here:1", "processes": 2, "process": 2}, r"--process must lie in \[0, 2\)"),
        ({"coordinator": "here", "processes": 2, "process": 0}, "--coordinator must be HOST:PORT"),
        ({"processes": 0}, "go together|at least 1"),
    ],
)
def test_processes_and_meshes_that_cannot_be(fields, words):
    with pytest.raises(InputError, match=words):
        Config(**fields)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1
