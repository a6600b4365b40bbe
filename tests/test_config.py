"""Every bad field is named with its value; a stored configuration comes back."""

import dataclasses
import json
import math
import re

import pytest

from cnnlab import config as settings
from cnnlab.config import PARTS, Config, Machine, Output, Recipe, Settings
from cnnlab.errors import InputError

NAN, INF = math.nan, math.inf
POSITIVE_COUNTS = (
    "epochs", "batch_size", "microbatches", "keep", "devices", "image_size", "dispatch_steps",
)  # fmt: skip
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
    with pytest.raises(InputError, match=rf"^{flag} must lie in .*, got {re.escape(str(value))}$"):
        Config.of(**{field: value})


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
    assert dict(Config.of(**good).items()).items() >= good.items()


@pytest.mark.parametrize(
    "field",
    [
        name
        for section in (Recipe, Machine, Output)
        for name, kinds, _ in settings._rules(section)
        if int in kinds and float not in kinds
    ],
)
def test_every_whole_number_has_an_upper_bound(field):
    """A request for a trillion of something is answered before a list of them is built."""
    with pytest.raises(InputError, match=rf"{settings.flag(field)} must lie in \[\d+, \d+[\])]"):
        Config.of(**{field: 999_999_999_999})


CHOICES = [
    (name, words)
    for section in (Recipe, Machine, Output)
    for name, _, rules in settings._rules(section)
    for words in rules
    if isinstance(words, tuple)
]


@pytest.mark.parametrize(("field", "known"), CHOICES)
def test_an_unknown_choice_names_the_known_ones(field, known):
    needed = {"label_noise": 0.2} if field == "noise" else {}
    with pytest.raises(InputError, match=f"unknown {field} 'xyzzy'. Known: {', '.join(known)}"):
        Config.of(**{field: "xyzzy"}, **needed)
    for name in known:
        assert dict(Config.of(**{field: name}, **needed).items())[field] == name


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
        Config.of(**{field: typo})


@pytest.mark.parametrize("field", PARTS)
@pytest.mark.parametrize("text", ["", "name,2", "name,a=1,a=2", "name+other,a", ",a=1"])
def test_a_part_that_is_no_spec_is_refused_at_once(field, text):
    """Whether its name is known is seen later, as that brings jax."""
    with pytest.raises(InputError, match="as in 'focal,gamma=2'; got "):
        Config.of(**{field: (text,) if field == "metrics" else text})


def test_how_labels_err_needs_labels_that_err():
    with pytest.raises(InputError, match="--noise symmetric has no effect without --label-noise"):
        Config.of(noise="symmetric")


def test_short_forms_of_corruptions_are_written_out():
    assert Recipe.of(dataset="cifar10").corrupted_dataset() == "cifar10"
    assert Recipe.of(label_noise=0.4).corrupted_dataset() == "shapes10+label_noise,rate=0.4"
    assert (
        Recipe.of(
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
    assert Recipe.of(teacher="runs/big").teacher == str(tmp_path / "runs" / "big")
    assert Recipe.of(teacher="~/big").teacher == "/home/someone/big"


def test_best_needs_validation():
    with pytest.raises(InputError, match="--test-on best needs --validation above 0"):
        Config.of(test_on="best", validation=0.0)


CHANGED = Config.of(
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
    assert Config.from_json(values) == CHANGED.replace(metrics=())


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


@pytest.mark.parametrize("values", [{"epochs": "many"}, {"epochs": None}, {"metrics": "mine"}])
def test_another_type_is_an_error_of_the_program(values):
    with pytest.raises(TypeError, match=f"^{next(iter(values))} must be "):
        Config.of(**values)


def test_every_setting_is_in_one_section():
    sections = [settings.names(section) for section in (Recipe, Machine, Output)]
    assert sum(map(len, sections)) == len(set.union(*map(set, sections)))
    assert sections[0] > set(PARTS)


def test_settings_are_given_flat():
    @dataclasses.dataclass(frozen=True)
    class Job(Settings):
        recipe: Recipe = dataclasses.field(default_factory=Recipe)
        machine: Machine = dataclasses.field(default_factory=Machine)
        price: float = 1.0

    job = Job.of(loss="focal", devices=2, price=3.0)
    assert job == Job(Recipe(loss="focal"), Machine(devices=2), 3.0)
    assert job.replace(epochs=3) == Job(Recipe(loss="focal", epochs=3), Machine(devices=2), 3.0)
    assert set(dict(job.items())) == settings.names(Recipe) | settings.names(Machine) | {"price"}
    with pytest.raises(InputError, match="unknown setting 'los': did you mean 'loss'"):
        job.replace(los="focal")
    with pytest.raises(InputError, match="--epochs must lie in"):
        job.replace(epochs=0)


# Files of settings


def test_a_toml_file_and_a_run_s_configuration_hold_settings(tmp_path):
    (tmp_path / "a.toml").write_text(
        'epochs = 3\nmetrics = ["my.a"]\n[machine]\ndispatch-steps = 2\n[any]\nloss = "focal"\n'
    )
    assert settings.read_file(str(tmp_path / "a.toml")) == {
        "epochs": 3, "metrics": ["my.a"], "dispatch_steps": 2, "loss": "focal",
    }  # fmt: skip
    stored = CHANGED.to_json() | {"workdir": "here", "process": 1, "written": {}, "sources": {}}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    read = settings.read_file(str(tmp_path / "config.json"))
    left_out = {"workdir", "coordinator", "processes", "process"}
    assert read == {k: v for k, v in CHANGED.to_json().items() if k not in left_out}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("none.toml", None, "No such file"),
        ("a.toml", "epochs = ", "cannot be read"),
        ("a.toml", "epochs = 1\n[more]\nepochs = 2\n", "epochs is set twice"),
        ("a.json", "{", "cannot be read"),
        ("a.json", "[1]", "holds no settings"),
    ],
)
def test_a_file_that_is_none(tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        settings.read_file(str(tmp_path / name))


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
        ({"processes": 0}, r"--processes must lie in \[1, 1000000\]"),
    ],
)
def test_processes_and_meshes_that_cannot_be(fields, words):
    with pytest.raises(InputError, match=words):
        Config.of(**fields)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().seed = 1  # pyright: ignore[reportAttributeAccessIssue]
