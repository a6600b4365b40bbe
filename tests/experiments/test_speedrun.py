"""experiments/speedrun.py and what it stands on: whole trainings in a dispatch, again and again, on
any platform.
"""

import json
import shlex
import stat
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_modes import quick_compile
from scripts import ROOT, one_line_error, readme_commands, script

from cnnlab import cli
from cnnlab.config import Config
from cnnlab.console import Console
from cnnlab.errors import InputError
from cnnlab.parts import resolve
from cnnlab.training import devices, experiment, network
from cnnlab.training.run import in_memory

sys.path.insert(0, str(ROOT / "experiments"))
import speedrun

# airbench's recipe, its rates those of a hundredth of its batch.
TINY = dict(
    dataset="tiny",
    validation=0.0,
    test_views="mirror_shift",
    model="airnet,widths=[4,8]",
    loss="cross_entropy+label_smoothing,alpha=0.2",
    augment="alternating_flip+crop,padding=1,mode=reflect",
    optimizer="muon,head_rate=2.04468e-4,bias_rate=1.06,weight_decay=4e-5,momentum=0.85",
    learning_rate=0.24,
    schedule="linear",
    batch_size=20,
    epochs=2,
)
FLAGS = [
    word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))
]
STAND_IN = """#!/bin/sh
# As benchmarks/airbench_torch.py is started and answers: the i-th seed has accuracy 0.i, takes i s.
cp "$3" "{folder}/data.npz"; shift 3; echo "$@" > "{folder}/options"
echo '{{"torch": "0.0"}}'
i=0
while read seed; do
  i=$((i + 1)); echo "{{\\"accuracy\\": 0.$i, \\"seconds\\": $i, \\"memory\\": $seed}}"
done
"""


@pytest.fixture
def stand_in(tmp_path):
    path = tmp_path / "python"
    path.write_text(STAND_IN.format(folder=tmp_path))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def ordinary(tfds_root):
    """flax and optax mix types where these networks are half precise."""
    with jax.numpy_dtype_promotion("standard"), quick_compile(True):
        yield


def configured(**changes):
    """The configuration of a run of speedrun.py."""
    run = speedrun.SpeedRun.of(**TINY, **changes)
    return Config(run.recipe, run.machine)


def build_whole(config, seeds):
    """Seeds whose training is one dispatch."""
    return experiment.build(config, seeds=seeds, single_dispatch=True)


def whole_run(built):
    """The state and the totals after all steps, on the host."""
    items = list(built.items(0, built.steps_per_epoch * 2))
    progress = built.advance(built.start(), items)
    return jax.device_get((progress.state, progress.totals))


def assert_same_bits(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.slow
def test_many_runs_are_one_program(ordinary):
    """A second seed's run is, bit for bit, what it is when built for it; nothing is compiled for
    it.
    """
    compiled = []
    config = configured()
    first = build_whole(config, (3, 4))
    assert first.dispatch_steps == 20 and len(list(first.items(0, 20))) == 20
    whole_run(first)
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: (
            compiled.append(name) if name.endswith("backend_compile_duration") else None
        )
    )
    try:
        state, totals = whole_run(first.with_seeds((7, 3)))
    finally:
        jax.monitoring.clear_event_listeners()
    assert not compiled
    assert_same_bits((state, totals), whole_run(build_whole(config, (7, 3))))
    kernels = state.params["Conv_0"]["kernel"]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01


@pytest.mark.slow
def test_a_whole_run_is_its_steps(ordinary, monkeypatch):
    """As one dispatch, step by step, several together as on an accelerator: the same network."""
    config = configured(devices=1)
    whole, _ = whole_run(build_whole(config, (3, 4)))
    _, steps = in_memory(config, seeds=(3, 4))
    assert_same_bits(jax.device_get(steps.state), whole)
    monkeypatch.setattr(devices.Layout, "platform", "gpu")
    together, _ = whole_run(build_whole(config, (3, 4)))
    # Sums in another order, which 20 float32 steps amplify: measured up to 1.5e-3, another seed is
    # 0.28 away.
    for its, mine in zip(jax.tree.leaves(together), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(
            its, mine, rtol=0, atol=1e-2 * max(1.0, float(np.abs(mine).max()))
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cuda", "tpu"])
def test_the_whole_training_is_lowered(name, ordinary, monkeypatch):
    """First weights with the whitening's eigenvectors, and all steps of two seeds, for devices that
    are not here.
    """
    config = configured(compute_dtype="bfloat16", devices=1)
    traced = []
    compile_ = devices.Layout.compile

    def kept(layout, *arguments, **options):
        program = compile_(layout, *arguments, **options)

        def only_traced(state, totals, *rest):
            traced.append(program.trace(state, totals, *rest))
            return state, totals

        return only_traced

    monkeypatch.setattr(devices.Layout, "platform", "gpu" if name == "cuda" else name)
    monkeypatch.setattr(devices.Layout, "compile", kept)
    built = build_whole(config, (3, 4))
    built.advance(built.start(), list(built.items(0, 20)))
    text = traced[0].lower(lowering_platforms=(name,)).as_text()
    convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    # Whitening only forward; four layers forward, by their kernel and by their input. All of both
    # seeds at once.
    assert len(convolutions) == 13 and all(
        "bf16" in line and "f32" not in line for line in convolutions
    )
    parts = resolve(config.recipe)
    model = parts.build_model(3, config.recipe.compute_dtype)
    tx = network.build_optimizer(config.recipe, parts, 10)
    keys = network.run_keys((3, 4))
    images = jnp.zeros((9, 8, 8, 3))
    first = network._initial.trace(model, tx, keys, images, averaged=False, scaled=False).lower(
        lowering_platforms=(name,)
    )
    assert ("syevd" if name == "cuda" else "Eigh") in first.as_text()


@pytest.mark.slow
def test_runs_with_a_target(tfds_root, tmp_path):
    """What is printed and stored is of the runs; a mean that misses the target is exit status 1."""
    path = tmp_path / "result.json"
    done = script(
        "speedrun",
        *FLAGS,
        "--runs",
        4,
        "--together",
        2,
        "--seed",
        5,
        "--target",
        1.0,
        "--json",
        path,
    )
    assert done.returncode == 1, done.stderr
    assert "target 100.00%: missed" in done.stdout
    found = json.loads(path.read_text())
    rows = found["runs"]["cnnlab"]
    assert [row["seed"] for row in rows] == [5, 6, 7, 8]
    for what in ("accuracy", "seconds"):
        values = [row[what] for row in rows]
        summary = found["summary"]["cnnlab"][what]
        assert (
            summary["mean"] == pytest.approx(np.mean(values)) and summary["low"] <= summary["mean"]
        )
        assert summary["sd"] == pytest.approx(np.std(values, ddof=1))
        assert f"mean {summary['mean']:.4f} ± {summary['sd']:.4f}" in done.stdout
    config = {**found["config"], "metrics": tuple(found["config"]["metrics"])}
    assert speedrun.SpeedRun.of(**config).together == 2  # the run's own configuration, whole
    assert found["versions"]["jax"] == jax.__version__


@pytest.mark.slow
def test_taking_turns(tfds_root, tmp_path, stand_in):
    """The other program is given our images, and its rows are compared with ours pair by pair."""
    flags = ["--runs", 2, "--target", 0.01, "--beside", stand_in, "--torch-python", stand_in]
    flags += ["--json", tmp_path / "r.json"]
    done = script("speedrun", *FLAGS, "--validation", 0.1, *flags)
    assert done.returncode == 0, done.stderr
    assert "target 1.00%: reached" in done.stdout
    turns = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("run ")]
    assert turns == ["cnnlab", "airbench", "airbench", "cnnlab"]
    result = json.loads((tmp_path / "r.json").read_text())
    theirs = result["runs"]["airbench"]
    assert theirs == [
        {"seed": i, "accuracy": (i + 1) / 10, "seconds": i + 1, "memory": i} for i in (0, 1)
    ]
    ours = result["runs"]["cnnlab"]
    found = result["summary"]["cnnlab against airbench"]
    assert found["accuracy"]["mean"] == pytest.approx(np.mean([o["accuracy"] for o in ours]) - 0.15)
    ratios = [o["seconds"] / t["seconds"] for o, t in zip(ours, theirs, strict=True)]
    assert found["seconds"]["mean"] == pytest.approx(np.sqrt(np.prod(ratios)))
    assert result["versions"]["torch"] == "0.0"
    assert (tmp_path / "options").read_text().split() == ["batch_size=20", "epochs=2", "cpu"]
    arrays = np.load(tmp_path / "data.npz")
    shapes = {name: arrays[name].shape for name in arrays}
    assert shapes["train_images"] == (180, 8, 8, 3) and shapes["test_images"] == (50, 8, 8, 3)
    assert shapes["train_labels"] == (180,) and arrays["train_images"].dtype == np.uint8


@pytest.mark.slow
def test_a_companion_that_cannot_be(tfds_root, tmp_path):
    beside = [*FLAGS, "--beside", __file__, "--json", tmp_path / "r.json"]
    assert "is no file" in one_line_error(
        script("speedrun", *FLAGS, "--beside", "airbench94_muon.py", cwd=tmp_path)
    )
    assert "cannot be run" in one_line_error(
        script("speedrun", *beside, "--torch-python", tmp_path / "none")
    )
    done = script("speedrun", *beside, "--torch-python", "false")
    assert (
        done.returncode == 2
        and "ended with status 1" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--runs 5 --together 2", "multiple of --together"),
        ("--runs 0", "--runs must lie in [1, 1000000]"),
        ("--runs 2 --seed 4294967295", "below 2**32"),
        ("--target 94", "(0, 1]"),
        ("--feed streaming", "--feed streaming"),
        ("--workdir x", "--workdir"),
        ("--workers 2", "--workers does nothing here"),
        ("--label-noise 0.1 --beside x", "--label-noise is not for --beside"),
        ("--torch-python x", "--beside"),
    ],
)
def test_flags_without_a_meaning_are_refused(flags, said):
    with pytest.raises(InputError) as error:
        cli.parse(speedrun.SpeedRun, flags.split())
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_recipe_is_airbench_s():
    """Its rates are of a loss summed over the batch; ours is a mean, so they grow with it."""
    configs = ROOT / "experiments/configs"
    whole, tenth = (
        cli.parse(speedrun.SpeedRun, ["--config", str(configs / f"{name}.toml")]).recipe
        for name in ("airbench94", "airbench94_tenth")
    )
    for airbench in (whole, tenth):
        optimizer = resolve(airbench).optimizer
        assert optimizer.name == "muon" and optimizer.keywords == pytest.approx(
            {
                "head_rate": 0.67 / 256**2 * airbench.batch_size,
                "bias_rate": 0.053 * airbench.batch_size,
                "weight_decay": 2e-6 * airbench.batch_size,
                "momentum": 0.85,
            },
            rel=1e-5,
        )
    own = {"validation": 0.9, "batch_size": 500, "epochs": 4, "optimizer": tenth.optimizer}
    assert tenth == whole.replace(**own)


def test_the_readme_s_commands_are_understood(monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = readme_commands("speedrun")
    assert len(commands) >= 2
    for command in commands:
        cli.parse(speedrun.SpeedRun, shlex.split(command)[2:])


def test_intervals_by_hand(capsys):
    rows = [{"accuracy": a, "seconds": s} for a, s in ((0.9, 2.0), (0.92, 3.0), (0.94, 2.5))]
    found = speedrun.summarised(rows, "x", Console("off"))
    half = 4.302652729911275 * 0.02 / 3**0.5  # t of 2 degrees of freedom
    assert found["accuracy"] == pytest.approx(
        {"mean": 0.92, "sd": 0.02, "low": 0.92 - half, "high": 0.92 + half, "median": 0.92}
    )
    assert found["seconds"]["median"] == 2.5
    single = speedrun.summarised(rows[:1], "x", Console("off"))["accuracy"]
    assert (single["mean"], single["sd"], single["low"]) == (0.9, None, None)
    against = speedrun.compared(
        rows, [row | {"seconds": 2 * row["seconds"]} for row in rows], Console("off")
    )
    assert against["seconds"] == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5})
    assert against["accuracy"]["mean"] == 0
    for target, reached, said in (
        (0.9, True, "open"),
        (0.5, True, "and by its"),
        (0.93, False, "open"),
    ):
        assert speedrun.judged(found["accuracy"], target, Console("off")) is reached
        assert said in capsys.readouterr().out
