"""The published recipes say what to expect, are understood, and fit the data that they are for."""

import re
import shlex
import sys

import jax
import numpy as np
import pytest
from scripts import ROOT

from cnnlab import cli
from cnnlab.config import Config
from cnnlab.data.dataset import Dataset
from cnnlab.data.facts import DataFacts
from cnnlab.models import count_parameters
from cnnlab.parts import resolve
from cnnlab.training import experiment, program

sys.path.insert(0, str(ROOT / "experiments"))
import speedrun

PATHS = sorted((ROOT / "experiments/configs").glob("*.toml"))
# Of CIFAR-10, in the order of its labels
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(autouse=True)
def lenient_types():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        yield


def read(name):
    return cli.parse(Config, ["--config", str(ROOT / f"experiments/configs/{name}.toml")])


def build(config):
    """The program of a recipe for CIFAR-10, of which nothing but the labels is needed."""
    parts = resolve(config.recipe)
    labels = np.repeat(np.arange(10, dtype=np.int32), 5000)
    positions = np.arange(0, 50_000 * (1 - config.recipe.validation), dtype=np.int64)
    whole = Dataset(
        "cifar10", "1", None, None, NAMES, labels=labels, targets=labels, positions=positions
    )
    facts = DataFacts(
        class_names=NAMES,
        image_shape=(32, 32, 3),
        mean=(125.3, 123.0, 113.9),
        std=(63.0, 62.1, 66.7),
        class_counts=tuple(parts.corrupt(whole, 0, None).class_counts().tolist()),
        num_images=50_000,
    )
    layout = experiment.choose_layout(config, parts, available=jax.devices()[:1])
    return program.build(config, parts, layout, facts)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_recipe_says_what_to_expect_and_its_commands_are_understood(path):
    text = path.read_text()
    assert re.findall(r"^# (Source|Command|Result|Time) ", text, re.MULTILINE) == [
        "Source", "Command", "Result", "Time",
    ]  # fmt: skip
    commands = re.findall(r"python experiments/(\w+)\.py (.*)", text)
    assert commands
    for name, flags in commands:
        settings = {"train": Config, "speedrun": speedrun.SpeedRun}[name]
        assert f"experiments/configs/{path.name}" in flags
        flags = shlex.split(flags.replace("experiments/", f"{ROOT}/experiments/"))
        resolve(cli.parse(settings, flags).recipe)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_recipe_s_experiment_can_be_built(path):
    """Everything but the numbers: the shapes of the state before the first step."""
    built = build(read(path.stem))
    state, _, _ = built.abstract_start()
    assert count_parameters(state.params) > 1e5
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state.params))


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_recipe_s_step_can_be_traced(path):
    built = build(read(path.stem))
    state, totals = jax.eval_shape(built.dispatch, *built.arguments())
    assert jax.tree.structure((state, totals)) == jax.tree.structure(built.arguments()[:2])


@pytest.mark.parametrize(
    ("name", "steps_per_epoch", "epochs", "rates"),
    [
        # 64,000 steps of 128 images
        (
            "resnet20",
            390,
            164,
            {0: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_959: 0.001},
        ),
        (
            "resnet110",
            390,
            164,
            {0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1, 32_000: 0.01, 48_000: 0.001},
        ),
        (
            "resnet18",
            390,
            200,
            {0: 0.1, 60 * 390 - 1: 0.1, 60 * 390: 0.02, 120 * 390: 0.004, 160 * 390: 0.0008},
        ),
        (
            "resnet50",
            390,
            350,
            {0: 0.1, 150 * 390 - 1: 0.1, 150 * 390: 0.01, 250 * 390: 0.001},
        ),
        (
            "wide_resnet_28_10",
            390,
            200,
            {0: 0.1, 60 * 390 - 1: 0.1, 60 * 390: 0.02, 120 * 390: 0.004, 160 * 390: 0.0008},
        ),
        (
            "wide_resnet_40_2_logit_norm",
            390,
            200,
            {0: 0.1, 80 * 390 - 1: 0.1, 80 * 390: 0.01, 140 * 390: 0.001},
        ),
        # 12,406 images
        (
            "resnet32_long_tail",
            96,
            200,
            {0: 0, 240: 0.05, 480: 0.1, 160 * 96 - 1: 0.1, 160 * 96: 0.001, 180 * 96: 0.00001},
        ),
        (
            "resnet34_label_noise",
            390,
            120,
            {0: 0.01, 40 * 390 - 1: 0.01, 40 * 390: 0.001, 80 * 390: 0.0001},
        ),
        ("cnn8_label_noise", 390, 120, {0: 0.01, 60 * 390: 0.005, 120 * 390: 0}),
        ("resnet20_short", 351, 15, {0: 0.008, 1053: 0.2, 15 * 351: 8e-7}),
    ],
)
def test_the_rates_of_a_recipe_are_the_paper_s(name, steps_per_epoch, epochs, rates):
    recipe = read(name).recipe
    assert (build(read(name)).steps_per_epoch, recipe.epochs) == (steps_per_epoch, epochs)
    rate = resolve(recipe).build_schedule(
        recipe.learning_rate, steps_per_epoch * epochs, steps_per_epoch
    )
    for step, wanted in rates.items():
        # a cosine in float32 ends a few ulp of the peak from zero
        assert float(rate(step)) == pytest.approx(wanted, rel=1e-5, abs=1e-9), step


def test_ten_times_the_layers_are_the_same_recipe():
    short, deep = read("resnet20").recipe, read("resnet110").recipe
    changed = {"model": deep.model, "schedule": deep.schedule}
    assert deep == short.replace(**changed)
