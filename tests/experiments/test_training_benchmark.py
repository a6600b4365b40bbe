"""experiments/benchmarks/training.py: every contestant trains the network that was asked for."""

import importlib.util
import json
import sys

import jax
import pytest
from jax_modes import quick_compile
from scripts import ROOT, one_line_error, script

from cnnlab import cli
from cnnlab.config import Config
from cnnlab.errors import InputError

# Under a name that no other script has
NAME = "benchmark_of_training"
FOLDER = ROOT / "experiments/benchmarks"
sys.path.append(str(FOLDER))  # where it finds contestants.py
SPEC = importlib.util.spec_from_file_location(NAME, FOLDER / "training.py")
training = sys.modules[NAME] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(training)

# As benchmarks/torch_step.py is started and answers: a step takes half a second.
STAND_IN = """#!/bin/sh
for option; do
  printf '%s\\n' "$option" >> "{folder}/options"
  [ "$option" = --check ] && exit {status}
done
echo ready
while read steps; do echo "$steps" | awk '{{print $1 / 2}}'; done
echo 1048576
"""


@pytest.fixture
def stand_in(tmp_path):
    def python(status=0):
        path = tmp_path / "python"
        path.write_text(STAND_IN.format(folder=tmp_path, status=status))
        path.chmod(0o755)
        return path

    return python


def arguments(*flags):
    return cli.parse(training.Arguments, list(flags))


def test_both_sides_are_asked_for_the_same():
    found = arguments("--model", "resnet20,shortcut=projection", "--batch-size", "32")
    config = cli.parse(Config, found.recipe_flags())
    assert config.recipe.model == "resnet20,shortcut=projection"
    assert config.recipe.batch_size == 32
    assert config.recipe.optimizer == "sgd,momentum=0.9,nesterov=false"
    assert config.recipe.learning_rate == 0.01
    torch_flags = found.torch_flags()
    options = dict(zip(torch_flags[::2], torch_flags[1::2], strict=True))
    assert options == {
        "--model": "resnet20",
        "--hyper": '{"shortcut": "projection"}',
        "--batch-size": "32",
        "--optimizer": "sgd",
    }


def test_the_default_is_the_seed_network_as_train_py_trains_it():
    found = arguments()
    config = cli.parse(Config, found.recipe_flags())
    assert config == Config()
    assert found.torch_flags()[-1] == "adam"
    assert arguments("--optimizer", "sgd").optimizer_name == "sgd"
    assert arguments("--model", "cnn8").optimizer_name == "sgd"


def test_the_optimizers_of_both_sides_have_the_same_numbers():
    source = (ROOT / "experiments/benchmarks/torch_step.py").read_text()
    assert "torch.optim.Adam(parameters, 1e-3, fused=True)" in source
    assert "torch.optim.SGD(parameters, 0.01, momentum=0.9, fused=True)" in source
    assert importlib.import_module("contestants").OPTIMIZERS == {
        "adam": ("adam", 1e-3),
        "sgd": ("sgd,momentum=0.9,nesterov=false", 0.01),
    }


def test_contestants_without_pytorch(monkeypatch, capsys):
    monkeypatch.setattr(training, "torch_obstacle", lambda arguments, python: "no such network")
    names = training.chosen(arguments(), "python")
    assert names == [name for name in training.CONTESTANTS if not name.startswith("pytorch")]
    assert "no such network" in capsys.readouterr().err
    assert training.chosen(arguments("--contestants", "4 seeds"), "python") == ["4 seeds"]
    for flags in (["--contestants", "pytorch"], ["--torch-python", "python"]):
        with pytest.raises(InputError, match="cannot run with python: no such network"):
            training.chosen(arguments(*flags), "python")
    with pytest.raises(InputError, match="did you mean 'pytorch'"):
        training.chosen(arguments("--contestants", "pytorhc"), "python")


def test_ratios_by_hand():
    rows = [
        training.row("pytorch", [50.0, 40.0, 60.0], 1),
        training.row("bare step", [100.0], 1),
        training.row("4 seeds", [25.0], 1),
    ]
    training.compare(rows)
    assert [(row["ratio"], row["to"]) for row in rows] == [
        (1.0, "pytorch"),
        (2.0, "pytorch"),
        (0.5, "pytorch"),
    ]
    rows.append(training.row("train.py's step", [50.0], 1))
    training.compare(rows)
    assert (rows[2]["ratio"], rows[2]["to"]) == (0.5, "train.py's step")
    assert rows[0]["quartiles"] == [40.0, 50.0, 60.0] and rows[1]["quartiles"] is None


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_bare_step_trains_the_model_of_the_flags(optimizer):
    """Sixteen steps are two passes over eight batches: their loss falls, and all images count."""
    flags = ["--model", "mlp,hidden=[8]", "--batch-size", "6", "--optimizer", optimizer]
    config = cli.parse(Config, arguments(*flags).recipe_flags())
    with jax.numpy_dtype_promotion("standard"), quick_compile(True):
        step = training.bare_step(config)
        totals = [jax.device_get(step(i)) for i in range(16)]
    assert totals[-1]["count"] == 16 * 6
    first, both = float(totals[7]["loss"]), float(totals[15]["loss"])
    assert both - first < first


@pytest.mark.slow
def test_a_round_beside_pytorch(tfds_root, tmp_path, stand_in):
    path = tmp_path / "figures.json"
    done = script(
        *("benchmarks/training", "--model", "mlp,hidden=[8]", "--batch-size", 8),
        *("--dataset", "tiny", "--rounds", 1, "--steps", 1),
        *("--torch-python", stand_in(), "--json", path),
        *("--contestants", "bare step", "pytorch, bf16, malloc tuned", "pytorch", "4 seeds"),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert (found["model"], found["batch_size"]) == ("mlp,hidden=[8]", 8)
    assert found["optimizer"] == "sgd"
    rates = {row["name"]: row["images per second"] for row in found["rows"]}
    assert rates["pytorch"] == rates["pytorch, bf16, malloc tuned"] == 16
    assert rates["bare step"] > 0 and rates["4 seeds"] > 0
    assert all(row["to"] == "pytorch" for row in found["rows"])
    assert "of pytorch" in done.stdout
    options = (tmp_path / "options").read_text().splitlines()
    assert options.count("mlp") == 3 and options.count('{"hidden": [8]}') == 3
    assert options.count("--check") == 1 and options.count("--bf16") == 1


@pytest.mark.slow
def test_networks_that_there_are_not(tfds_root, stand_in):
    flags = ["--rounds", 1, "--contestants", "bare step", "pytorch"]
    obstacle = one_line_error(
        script("benchmarks/training", *flags, "--torch-python", stand_in(status=3))
    )
    assert "it ended with status 3" in obstacle
    done = script("benchmarks/training", *flags[:-1], "--model", "resnet21")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "unknown model 'resnet21'" in done.stderr and "'bare step' ended" in done.stderr
