"""Averaged weights in a run: what is kept, validated, tested, saved and loaded."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_modes import quick_compile
from stepping import stepped, taken

import cnnlab
from cnnlab import files
from cnnlab.config import Config
from cnnlab.data.catalogue import open_dataset
from cnnlab.errors import InputError
from cnnlab.parts import resolve
from cnnlab.training import experiment, loop, network, run
from cnnlab.training.step import create_state

CONFIG = Config.of(
    dataset="tiny", model="mlp,hidden=[8],batch_norm=true", average="ema,decay=0.6",
    batch_size=40, validation=0.2, epochs=2, learning_rate=0.01, schedule="constant", devices=1,
)  # fmt: skip
DRAWN = CONFIG.replace(
    model="mlp,hidden=[8],batch_norm=true,dropout=0.2", augment="flip+crop,padding=1"
)
SMALL = {"model": "mlp,hidden=[8],batch_norm=true", "batch_size": 40, "validation": 0.2}
SMALL |= {"epochs": 3, "devices": 1, "learning_rate": 0.01, "schedule": "constant"}


@pytest.fixture(autouse=True)
def lenient_types(tfds_root):
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        yield


def leaves(tree):
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def same(one, other):
    assert one.keys() == other.keys()
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[name], err_msg=name)


@pytest.mark.slow
def test_parameters_and_batch_statistics_are_averaged_and_the_steps_stay_as_they_are():
    """Against the recurrence in float64, over the weights of a run without an average."""
    with jax.enable_x64(True), quick_compile(True):
        plain, progress = stepped(CONFIG.replace(average="none"), None, 0, "float64")
        assert progress.state.average == {}
        items = list(plain.items(0, 8))
        wanted = leaves(progress.state.variables)
        for number, item in enumerate(items):
            progress = plain.advance(progress, [item])
            share = np.float64(np.float32(max(np.float32(0.4), np.float32(9 / (9 + number)))))
            now = leaves(progress.state.variables)
            wanted = {k: (1 - share) * old + share * now[k] for k, old in wanted.items()}
        _, averaged = stepped(CONFIG, None, 8, "float64")
    same(leaves(averaged.state.last), leaves(progress.state))
    same(leaves(averaged.totals), leaves(progress.totals))
    found = leaves(averaged.state.average)
    assert found.keys() == wanted.keys() and any("batch_stats" in name for name in found)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6, err_msg=name)
        assert np.abs(found[name] - now[name]).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "seeds"),
    [({"devices": 8}, None), ({"devices": 8, "parallel": "pmap"}, None), ({"devices": 4}, [0, 1])],
)
def test_averages_agree_over_devices_and_seeds(changes, seeds):
    wanted = taken(CONFIG, None, 8, "float64")
    found = taken(CONFIG.replace(**changes), seeds, 8, "float64")
    assert any(".average" in name for name in wanted)
    for name, leaf in wanted.items():
        if ".state" in name or "average" in name or "params" in name:
            first = found[name] if seeds is None else found[name][0]
            np.testing.assert_allclose(first, leaf, rtol=0, atol=1e-10, err_msg=name)


@pytest.mark.slow
def test_batch_statistics_are_estimated_for_the_averaged_parameters():
    """As training moves them, on the batches of the last steps; by hand, dropout and crops too."""
    with jax.enable_x64(True), quick_compile(True):
        built, progress = stepped(DRAWN, None, 4, "float64")
        state = progress.state
        found = built.estimate(state, 4)
        parts = built.program.step_parts
        batch_stats = state.average["batch_stats"]
        for step, item in enumerate(built.items(0, 4)):
            images = built.data.read(np.asarray(item["image"]))["image"]
            batch = {"image": images, "label": item["label"], "index": item["image"]}
            key = jax.random.fold_in(built.run_keys, step)
            prepare_key, model_key = jax.random.split(key)
            batch |= {"epoch": np.int32(0)}
            prepared = parts.prepare(batch, prepare_key, built.run_keys, None)
            variables = {"params": state.average["params"], "batch_stats": batch_stats}
            _, batch_stats, _ = parts.apply_fn(variables, prepared["image"], model_key)
    same(leaves(found.average["params"]), leaves(state.average["params"]))
    same(leaves(found.last), leaves(state.last))
    wanted, before = leaves(batch_stats), leaves(state.average["batch_stats"])
    for name, value in leaves(found.average["batch_stats"]).items():
        np.testing.assert_allclose(value, wanted[name], rtol=0, atol=1e-6, err_msg=name)
        assert np.abs(value - before[name]).max() > 1e-3
    plain = built.estimate(state.last, 4)
    assert plain.average == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "seeds"),
    [
        ({"devices": 8}, None),
        ({"devices": 8, "parallel": "pmap"}, None),
        ({"devices": 4, "dispatch_steps": 3}, [0, 1]),
        ({"feed": "streaming"}, None),
        ({"dispatch_steps": 4}, None),
    ],
)
def test_estimates_agree_over_devices_seeds_and_feeds(changes, seeds):
    def estimated(config, seeds):
        with jax.enable_x64(True), quick_compile(True):
            built, progress = stepped(config, seeds, 4, "float64")
            return leaves(built.estimate(progress.state, 4).average)

    found = estimated(DRAWN.replace(**changes), seeds)
    for name, leaf in estimated(DRAWN, None).items():
        first = found[name] if seeds is None else found[name][0]
        np.testing.assert_allclose(first, leaf, rtol=0, atol=1e-10, err_msg=name)


@pytest.mark.slow
def test_estimates_are_of_the_last_hundred_steps(monkeypatch):
    monkeypatch.setattr(experiment, "ESTIMATION_STEPS", 2)
    built, progress = stepped(CONFIG, None, 4, "float32")
    asked = []

    def items(self, first, last):
        asked.append((first, last))
        return self.feed.items(first, last)

    monkeypatch.setattr(experiment.Experiment, "items", items)
    built.estimate(progress.state, 4)
    assert asked == [(2, 4)]
    built.estimate(progress.state.last, 4)  # nothing to estimate
    assert asked == [(2, 4)]


def test_state_and_average_share_no_memory():
    """The steps take over the memory of both."""
    variables = {"params": {"a": np.ones(3, np.float32)}}
    tx = network.build_optimizer(CONFIG.recipe, resolve(CONFIG.recipe), 4)
    state = create_state(jax.tree.map(jnp.asarray, variables), tx, averaged=True)
    ours, theirs = state.params["a"], state.average["params"]["a"]
    np.testing.assert_array_equal(ours, theirs)
    assert ours.unsafe_buffer_pointer() != theirs.unsafe_buffer_pointer()
    assert state.evaluation_variables is state.average
    assert state.last.evaluation_variables["params"] is state.params


@pytest.mark.slow
def test_both_are_validated_and_tested():
    built, progress = run.in_memory(CONFIG)
    (averaged,) = built.validate(progress.state)
    (last,) = built.validate(progress.state.last)
    row = progress.history[-1]
    assert row["validation_loss"] == averaged["loss"] != last["loss"]
    assert row["validation_last_loss"] == last["loss"]
    assert {name for name in row if name.startswith("validation_last_")} == {
        name.replace("validation_", "validation_last_")
        for name in row
        if name.startswith("validation_") and "last" not in name
    }
    said = loop.line(row, 2)
    assert f"(last weights {last['accuracy']:.4f})" in said
    plain = run.in_memory(CONFIG.replace(average="none"))[1].history[-1]
    assert plain["validation_loss"] == last["loss"] and plain["train_loss"] == row["train_loss"]
    assert not any("last" in name for name in plain)


@pytest.mark.slow
def test_the_average_is_the_run_s_network_and_the_last_weights_can_be_loaded(tmp_path):
    data = open_dataset("tiny")
    folder = tmp_path / "run"
    trained = cnnlab.train(data, **SMALL, average="swa,start=0.5", workdir=folder)
    plain = cnnlab.train(data, **SMALL)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test"] == trained.test == cnnlab.evaluate(trained)
    assert summary["test_last"] == trained.test_last == plain.test != trained.test
    assert plain.test_last == {}
    for weights, test, test_last in (
        (None, trained.test, trained.test_last),
        ("average", trained.test, trained.test_last),
        ("last", trained.test_last, {}),
    ):
        loaded = cnnlab.load(folder, weights)
        assert (loaded.test, loaded.test_last) == (test, test_last), weights
        assert cnnlab.evaluate(loaded) == test, weights
    same(leaves(cnnlab.load(folder).network.variables), leaves(trained.network.variables))
    same(leaves(cnnlab.load(folder, "last").network.variables), leaves(plain.network.variables))
    images = data.test.read(range(4))["image"]
    logits = trained.network.logits(images)
    assert np.abs(np.asarray(logits - plain.network.logits(images))).max() > 1e-3
    again = cnnlab.train(data, **SMALL, average="swa,start=0.5", workdir=folder)  # it has ended
    assert (again.test, again.test_last) == (trained.test, trained.test_last)
    with pytest.raises(InputError, match=r"average: swa,start=0\.5 -> ema"):
        cnnlab.train(data, **SMALL, average="ema", workdir=folder)


@pytest.mark.slow
def test_the_best_average_is_tested_and_taught_with(tmp_path):
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 240)
    images = rng.integers(0, 256, (240, 8, 8, 1)).astype(np.uint8)
    data = {"train": (images[:160], labels[:160]), "test": (images[160:], labels[160:])}
    settings = SMALL | {"epochs": 8, "validation": 0.5, "batch_size": 10, "learning_rate": 0.03}
    folder = tmp_path / "run"
    settings |= {"average": "ema,decay=0.5", "workdir": folder, "test_on": "best"}
    trained = cnnlab.train(data, **settings)
    accuracies = [row["validation_accuracy"] for row in trained.history]
    place = len(accuracies) - 1 - int(np.argmax(accuracies[::-1]))
    assert trained.network.step == trained.history[place]["step"]
    best = cnnlab.load(folder, "best")
    assert best.test == trained.test == cnnlab.evaluate(best, data)
    same(leaves(best.network.variables), leaves(trained.network.variables))
    teacher = network.load(folder)
    same(leaves(teacher.variables), leaves(teacher.state.average))


@pytest.mark.slow
def test_runs_of_versions_without_averages_are_read_and_resumed(tmp_path):
    """Their configuration does not name the settings, their checkpoints have no such leaves."""
    data = open_dataset("tiny")
    folder = tmp_path / "run"
    trained = cnnlab.train(data, **SMALL, workdir=folder)
    step = trained.network.step
    about = json.loads((folder / "checkpoints" / str(step) / "about.json").read_text())["body"]
    assert not [leaf["path"] for leaf in about["leaves"] if "average" in leaf["path"]]
    stored = json.loads((folder / "config.json").read_text())
    for holder in (stored, stored["written"]):
        del holder["average"]
    (folder / "config.json").write_text(json.dumps(stored))
    files.reseal(folder / "config.json")
    loaded = cnnlab.load(folder)
    assert loaded.test == trained.test == cnnlab.evaluate(loaded)
    grown = cnnlab.train(data, **SMALL | {"epochs": 4}, workdir=folder)
    assert [row["epoch"] for row in grown.history] == [1, 2, 3, 4]
    assert timeless(grown.history[:3]) == timeless(trained.history)
    with pytest.raises(InputError, match="holds a run without --average; use --weights last"):
        cnnlab.load(folder, "average")
    with pytest.raises(InputError, match="average: none -> ema"):
        cnnlab.train(data, **SMALL | {"epochs": 4}, average="ema", workdir=folder)


def timeless(rows):
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows
    ]


@pytest.mark.slow
def test_an_average_of_the_user_s_own():
    def latest(total_steps):
        return lambda step: (step == total_steps - 1).astype(jnp.float32)

    data = open_dataset("tiny")
    trained = cnnlab.train(data, **SMALL | {"model": "mlp,hidden=[8]"}, average=latest)
    assert trained.config.recipe.average == "object"
    assert trained.test == trained.test_last
    same(leaves(trained.network.state.average), leaves(trained.network.state.variables))


def test_a_program_keeps_the_average_in_its_arguments():
    """What tpu_plan.py counts."""
    averaged, plain = (
        experiment.build(config).program.abstract_start()[0]
        for config in (CONFIG, CONFIG.replace(average="none"))
    )
    assert len(jax.tree.leaves(averaged)) - len(jax.tree.leaves(plain)) == len(
        jax.tree.leaves(plain.variables)
    )
    assert dataclasses.fields(averaged)[-2].name == "average"
