"""Every bad field is named with its value; a stored configuration comes back."""

import dataclasses
import json
import math
import re

import pytest

from cnnlab.config import CHOICES, FREE_ON_RESUME, PARTS, Config
from cnnlab.errors import InputError

NAN, INF = math.nan, math.inf
POSITIVE_COUNTS = ("epochs", "batch_size", "keep", "devices", "image_size", "dispatch_steps")
COUNTS = ("workers", "checkpoint_steps", "seed", "split_seed")
BAD = [
    *((field, value) for field in POSITIVE_COUNTS for value in (0, -1)),
    *((field, -1) for field in COUNTS),
    *(
        (field, value)
        for field in ("learning_rate", "clip_norm")
        for value in (0.0, -1e-3, NAN, INF, -INF)
    ),
    *(
        (field, value)
        for field in ("validation", "label_noise")
        for value in (-0.1, 1, 1.5, NAN, INF)
    ),
    *(("long_tail", value) for value in (0.5, -1.0, NAN, INF)),
    *(("fraction", value) for value in (0.0, -0.1, 1.1, NAN, INF)),
    ("seed", 2**32),
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_bad_value_is_named(field, value):
    flag = "--" + field.replace("_", "-")
    with pytest.raises(InputError, match=rf"^{flag} must .*, got {re.escape(str(value))}$"):
        Config(**{field: value})


@pytest.mark.parametrize(
    "good",
    [
        {
            "epochs": 1,
            "batch_size": 1,
            "keep": 1,
            "devices": 1,
            "image_size": 1,
            "dispatch_steps": 1,
        },
        {"validation": 0.0, "workers": 0, "checkpoint_steps": 0, "split_seed": 0, "seed": 0},
        {"validation": 0.999, "seed": 2**32 - 1, "learning_rate": 1e-12, "clip_norm": 1e-12},
        {"label_noise": 0.0, "long_tail": 1.0, "fraction": 1.0, "noise": None},
        {
            "label_noise": 0.999,
            "long_tail": 1e6,
            "fraction": 1e-6,
            "noise": "asymmetric",
            "teacher": "/somewhere",
        },
    ],
)
def test_the_edges_that_are_good(good):
    assert dataclasses.asdict(Config(**good)).items() >= good.items()


@pytest.mark.parametrize("field", CHOICES)
def test_an_unknown_choice_names_the_known_ones(field):
    needed = {"label_noise": 0.2} if field == "noise" else {}
    names = [name for name in CHOICES[field] if name]
    with pytest.raises(InputError, match=f"unknown {field} 'xyzzy': Known: {', '.join(names)}"):
        Config(**{field: "xyzzy"}, **needed)
    for known in CHOICES[field]:
        assert getattr(Config(**{field: known}, **needed), field) == known


@pytest.mark.parametrize(
    ("field", "typo", "meant"),
    [
        ("feed", "streamin", "streaming"),
        ("compute_dtype", "bfloat", "bfloat16"),
        ("parallel", "pmp", "pmap"),
    ],
)
def test_a_typo_is_answered_with_the_nearest_choice(field, typo, meant):
    with pytest.raises(InputError, match=f"did you mean '{meant}'"):
        Config(**{field: typo})


@pytest.mark.parametrize("field", PARTS)
@pytest.mark.parametrize("text", ["", "name,2", "name,a=1,a=2", "name+other,a", ",a=1"])
def test_a_part_that_is_no_spec_is_refused_at_once(field, text):
    """Whether its name is known is seen later, as that brings jax."""
    with pytest.raises(InputError, match="as in 'focal,gamma=2'; got "):
        Config(**{field: (text,) if field == "metrics" else text})


def test_how_labels_err_needs_labels_that_err():
    with pytest.raises(InputError, match="--noise symmetric has no effect without --label-noise"):
        Config(noise="symmetric")


def test_short_forms_of_corruptions_are_written_out():
    assert Config(dataset="cifar10").corrupted_dataset() == "cifar10"
    assert Config(label_noise=0.4).corrupted_dataset() == "shapes10+label_noise,rate=0.4"
    assert (
        Config(
            dataset="mnist+my.blur,by=2",
            fraction=0.5,
            long_tail=8.0,
            label_noise=0.2,
            noise="asymmetric",
        )
    ).corrupted_dataset() == (
        "mnist+my.blur,by=2+fraction,share=0.5+long_tail,factor=8.0+label_noise,rate=0.2,kind=asymmetric"
    )


def test_a_teacher_is_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert Config(teacher="runs/big").teacher == str(tmp_path / "runs" / "big")
    assert Config(teacher="~/big").teacher == "/home/someone/big"


def test_best_needs_validation():
    with pytest.raises(InputError, match="--test-on best needs validation above 0, got best"):
        Config(test_on="best", validation=0.0)


CHANGED = Config(
    model="cnn,widths=[8,16],hidden=[]", clip_norm=1.0, dataset="mnist+my.blur",
    loss="focal,gamma=2+z_loss", seed=7,
    optimizer="sgd,nesterov=false", metrics=("my.worst", "my.mean,over=2"),
)  # fmt: skip


@pytest.mark.parametrize("config", [Config(), CHANGED])
def test_round_trip_through_json(config):
    back = Config.from_json(json.loads(json.dumps(config.to_json())))
    assert back == config and hash(back) == hash(config)


def test_a_field_that_is_newer_than_the_file_is_at_its_default():
    values = CHANGED.to_json()
    values.pop("metrics")
    assert Config.from_json(values) == dataclasses.replace(CHANGED, metrics=())


def test_a_field_that_nobody_knows_is_refused():
    message = (
        r"of another version of cnnlab, this one does not know \['cutmix', 'widths'\]; use "
        r"that version"
    )
    with pytest.raises(InputError, match=message):
        Config.from_json(Config().to_json() | {"widths": [8], "cutmix": 1.0})


@pytest.mark.parametrize("values", [{"epochs": "many"}, {"epochs": None}, {"loss": 3}, {"mesh": 8}])
def test_a_field_of_another_type_is_refused(values):
    with pytest.raises(InputError, match="the stored configuration is damaged"):
        Config.from_json(Config().to_json() | values)


def test_what_may_change_on_resuming_is_a_field():
    fields = {field.name for field in dataclasses.fields(Config)}
    assert fields > FREE_ON_RESUME and fields > set(PARTS) and not FREE_ON_RESUME & set(PARTS)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mesh": "8"}, "--mesh must be two numbers"),
        ({"mesh": "0x2"}, "--mesh must be two numbers"),
        ({"coordinator": "here:1"}, "go together"),
        ({"processes": 2}, "go together"),
        ({"process": 0}, "go together"),
        (
            {"coordinator": "here:1", "processes": 2, "process": 2},
            r"--process must lie in \[0, 2\)",
        ),
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
