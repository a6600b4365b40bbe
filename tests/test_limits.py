"""What is asked for has limits, checked before anything of that size is made."""

import importlib.util
import sys
import time

import pytest
from scripts import ROOT

from cnnlab import cli
from cnnlab.errors import InputError
from cnnlab.parts import find
from cnnlab.spec import parse_pipeline

HUGE = "999999999999"


def refused(call, *args):
    """The message of an InputError that comes at once."""
    started = time.monotonic()
    with pytest.raises(InputError) as error:
        call(*args)
    assert time.monotonic() - started < 5
    assert "\n" not in str(error.value)
    return str(error.value)


def settings_of(path, name):
    spec = importlib.util.spec_from_file_location(f"limits_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, name)


@pytest.mark.parametrize(
    ("script", "name", "flags"),
    [
        ("report_card", "Arguments", ["--num-classes"]),
        ("show_augment", "Arguments", ["--images", "--draws", "--image-size"]),
        ("speedrun", "SpeedRun", ["--runs", "--together", "--epochs", "--batch-size"]),
        ("tpu_plan", "Plan", ["--classes", "--images", "--seeds", "--image-shape"]),
        ("lessons/convolution", "Flags", ["--epochs"]),
        ("lessons/cross_entropy_vs_mse", "Flags", ["--epochs", "--seeds"]),
        ("lessons/mnist_softmax", "Flags", ["--epochs", "--seed"]),
        ("lessons/training", "Flags", ["--epochs"]),
        ("benchmarks/start_up", "Arguments", ["--rounds"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_number_of_a_script_has_a_limit(script, name, flags):
    settings = settings_of(ROOT / "experiments" / f"{script}.py", name)
    for flag in flags:
        for value in (HUGE, "-1"):
            assert flag in refused(
                cli.parse, settings, [flag, *[value] * (3 if "shape" in flag else 1)]
            )


@pytest.mark.parametrize("hidden", [101, 10_000])
def test_a_model_s_lists_have_a_limit(hidden):
    text = f"mlp,hidden=[{','.join(['8'] * hidden)}]"
    assert f"hidden must have at most 100 items, got {hidden:,}" in refused(find, "model", text)
    assert find("model", f"mlp,hidden=[{','.join(['8'] * 100)}]")


def test_pipelines_have_a_limit():
    assert "at most 50 parts" in refused(parse_pipeline, "+".join(["flip"] * 51))
    assert len(parse_pipeline("+".join(["flip"] * 50))) == 50
