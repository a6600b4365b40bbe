"""cnnlab.train, evaluate and load: objects in, a run out."""

import dataclasses
import json
import re
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import user_parts

import cnnlab
from cnnlab import augment, files, parts
from cnnlab.config import Config, Recipe
from cnnlab.data.catalogue import open_dataset
from cnnlab.data.dataset import Dataset, from_arrays
from cnnlab.errors import InputError
from cnnlab.losses import focal, ldam
from cnnlab.models import CNN, MLP, MODELS, ResNet, WideResNet
from cnnlab.optim import sgd
from cnnlab.training import run as runs
from cnnlab.training import run_folder

SMALL = {"batch_size": 20, "epochs": 2, "validation": 0.0, "devices": 1}


@pytest.fixture
def tiny(tfds_root) -> Dataset:
    return open_dataset("tiny")


@pytest.fixture(autouse=True)
def ordinary():
    """optax and flax mix types where JAX lets them."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def twice(logits, labels):
    return 2 * optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def same_weights(one, other):
    jax.tree.map(
        np.testing.assert_array_equal, one.network.state.params, other.network.state.params
    )


@pytest.mark.slow
def test_objects_are_the_parts_that_their_specs_name(tiny):
    """The same run, bit for bit, whichever way it is asked for."""
    by_name = cnnlab.train(
        "tiny", "mlp,hidden=[8]", "focal,gamma=3", "sgd,momentum=0.5", schedule="constant",
        augment="flip+crop,padding=1", **SMALL,
    )  # fmt: skip
    by_object = cnnlab.train(
        tiny, MLP(hidden=(8,)), partial(focal, gamma=3.0), partial(sgd, momentum=0.5),
        schedule="constant", augment=[augment.flip, partial(augment.crop, padding=1)], **SMALL,
    )  # fmt: skip
    same_weights(by_name, by_object)
    assert by_name.test == by_object.test and len(by_object.history) == 2
    recipe = by_object.config.recipe
    assert (recipe.dataset, recipe.model, recipe.loss) == (
        "tiny",
        "mlp,hidden=[8]",
        "focal,gamma=3.0",
    )
    assert recipe.augment == "flip+crop,padding=1"


@pytest.mark.slow
def test_a_transformation_is_used_as_it_is(tiny):
    one = cnnlab.train(tiny, "mlp,hidden=[8]", optimizer=optax.sgd(0.05), **SMALL)
    other = cnnlab.train(
        tiny, "mlp,hidden=[8]", optimizer="optax.sgd", schedule="constant", learning_rate=0.05,
        **SMALL,
    )  # fmt: skip
    same_weights(one, other)
    assert one.config.recipe.optimizer == "object"


def test_what_only_this_program_has_is_taken(tiny):
    class Net(nn.Module):
        num_classes: int
        width: int = 4

        @nn.compact
        def __call__(self, images, *, train):
            return nn.Dense(self.num_classes)(nn.Dense(self.width)(images.reshape(len(images), -1)))

    def shifted(keys, batch):
        return batch | {"image": batch["image"] + 1}

    share = user_parts.within(k=2)
    run = cnnlab.train(
        tiny, Net(3, width=5), lambda logits, labels: twice(logits, labels), metrics=[share],
        augment=shifted, **SMALL,
    )  # fmt: skip
    assert run.config.recipe.model == run.config.recipe.loss == "object"
    kernels = {layer["kernel"].shape for layer in run.network.state.params.values()}
    assert kernels == {(8 * 8 * 3, 5), (5, 3)}
    assert share.name in run.test


@pytest.mark.slow
def test_arrays_are_a_data_set():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    images = (labels[:, None, None, None] * 80 + rng.integers(0, 40, (60, 8, 8, 1))).astype(
        np.uint8
    )
    data = {
        "train": (images[:40], labels[:40]), "test": (images[40:], labels[40:]),
        "class_names": ["a", "b", "c"],
    }  # fmt: skip
    run = cnnlab.train(data, "mlp,hidden=[8]", **SMALL | {"epochs": 20, "learning_rate": 0.02})
    assert run.test["accuracy"] > 0.9 and run.test["count"] == 20
    logits = run.network.logits(images[40:])
    assert np.mean(np.argmax(logits, -1) == labels[40:]) == pytest.approx(run.test["accuracy"])
    fewer = data | {"test": (images[40:50], labels[40:50])}
    assert cnnlab.evaluate(run, fewer)["count"] == 10
    with pytest.raises(InputError, match=r"it has other classes: the run is trained on .c."):
        cnnlab.evaluate(run, data | {"class_names": ["a", "b", "d"]})


@pytest.mark.slow
def test_a_run_in_a_folder_is_resumed_loaded_and_evaluated(tiny, tmp_path):
    settings = {"model": MLP(hidden=(8,)), **SMALL, "workdir": str(tmp_path / "run")}
    run = cnnlab.train(tiny, **settings)
    assert run.path == tmp_path / "run" and (run.path / "curves.png").exists()
    in_memory = cnnlab.train(tiny, **settings | {"workdir": None})
    same_weights(run, in_memory)
    loaded = cnnlab.load(run.path)
    same_weights(run, loaded)
    assert loaded.test == run.test and loaded.config.recipe.seed == run.config.recipe.seed
    assert [row["train_loss"] for row in loaded.history] == [
        row["train_loss"] for row in run.history
    ]
    assert cnnlab.evaluate(run.path) == cnnlab.evaluate(run) == run.test
    again = cnnlab.train(tiny, **settings)  # it has ended: nothing is trained
    assert again.history == loaded.history
    with pytest.raises(InputError, match="another configuration: learning_rate"):
        cnnlab.train(tiny, **settings, learning_rate=0.5)


def drawn_arrays(seed: int, count: int = 60) -> dict:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)
    cut = 2 * count // 3
    return {"train": (images[:cut], labels[:cut]), "test": (images[cut:], labels[cut:])}


@pytest.mark.slow
def test_a_finished_folder_is_not_taken_for_other_data(tmp_path):
    """Arrays have no name that could tell them apart: their pixels do."""
    settings = {"model": "mlp,hidden=[4]", **SMALL, "workdir": tmp_path / "run"}
    run = cnnlab.train(drawn_arrays(0), **settings)
    with pytest.raises(InputError, match="trained on other data"):
        cnnlab.train(drawn_arrays(1), **settings)
    repeated = cnnlab.train(drawn_arrays(0), **settings)
    same_weights(run, repeated)
    assert repeated.test == run.test == cnnlab.evaluate(repeated)
    loaded = cnnlab.load(tmp_path / "run")
    with pytest.raises(InputError, match="data without a name: give it as data"):
        cnnlab.evaluate(loaded)
    assert cnnlab.evaluate(loaded, drawn_arrays(0)) == run.test


@pytest.mark.slow
def test_a_data_set_of_a_known_name_is_not_replaced_by_the_known_one(shapes10_root, tmp_path):
    images = np.zeros((60, 32, 32, 3), np.uint8)
    labels = np.arange(60) % 10
    known = open_dataset("shapes10")
    arrays = {"train": (images, labels), "test": (images, labels)}
    mine = from_arrays("shapes10", arrays | {"class_names": known.class_names})
    settings = SMALL | {"epochs": 1, "workdir": tmp_path / "run"}
    cnnlab.train(mine, "softmax_regression", **settings)
    with pytest.raises(InputError, match="not the data set that the run was trained on"):
        cnnlab.evaluate(tmp_path / "run")


@pytest.mark.slow
def test_a_run_of_an_earlier_version_is_evaluated(tiny, tmp_path):
    """Its data.json does not say how many images the training split has."""
    run = cnnlab.train(tiny, "mlp,hidden=[4]", **SMALL, workdir=tmp_path / "run")
    facts = json.loads((run.path / "data.json").read_text())
    del facts["num_images"]
    (run.path / "data.json").write_text(json.dumps(facts))
    files.reseal(run.path / "data.json")
    assert cnnlab.evaluate(run.path) == run.test


@pytest.mark.slow
def test_a_finished_run_with_damage_is_loaded_and_repaired(tiny, tmp_path):
    settings = {"model": "mlp,hidden=[4]", **SMALL, "epochs": 3, "workdir": tmp_path / "run"}
    settings["schedule"] = "constant"
    run = cnnlab.train(tiny, **settings)
    last, before = (run.history[epoch]["step"] for epoch in (-1, -2))
    (run.path / "checkpoints" / str(last) / "about.json").write_text("{}")
    with pytest.warns(UserWarning) as warned:
        loaded = cnnlab.load(run.path)
    assert f"the checkpoint that was tested, {last}, is damaged" in str(warned[0].message)
    assert f"checkpoint rejected: step {last}: about.json" in str(warned[1].message)
    assert (loaded.network.step, loaded.test) == (before, {})
    # The epochs are those that a checkpoint proves, whatever metrics.jsonl says
    assert loaded.history == run.history[:2]
    repaired = cnnlab.train(tiny, **settings)
    same_weights(run, repaired)
    assert repaired.test == run.test
    for damaged in ("", '{"epoch": 1}\n', "\x00"):
        (run.path / "metrics.jsonl").write_text(damaged)
        assert cnnlab.load(run.path).history == repaired.history
    of_run = json.loads((run.path / "config.json").read_text())["run"]
    (run.path / "summary.json").write_text(f'{{"run": "{of_run}", "epochs": 3, "test": {{}}}}')
    files.reseal(run.path / "summary.json")
    loaded = cnnlab.load(run.path)
    assert (loaded.network.step, loaded.test) == (last, {})
    (run.path / "summary.json").write_text("")
    with pytest.raises(InputError, match=r"summary\.json cannot be read .*run the command again"):
        cnnlab.load(run.path)
    assert cnnlab.train(tiny, **settings).test == run.test


@pytest.mark.slow
def test_a_run_that_is_being_extended_is_loaded_with_its_last_weights(tiny, tmp_path):
    settings = {"model": "mlp,hidden=[4]", **SMALL, "schedule": "constant"}
    run = cnnlab.train(tiny, **settings, workdir=tmp_path / "run")
    config = json.loads((run.path / "config.json").read_text())
    # As a process that was killed in the first of two more epochs leaves it.
    (run.path / "config.json").write_text(json.dumps(config | {"epochs": 4}))
    files.reseal(run.path / "config.json")
    loaded = cnnlab.load(run.path)
    assert loaded.test == {} and loaded.network.step == run.network.step


@pytest.mark.slow
def test_the_weights_that_were_tested_come_back(tmp_path):
    """Random labels: the best epoch is seldom the last."""
    settings = {"model": "mlp,hidden=[8]", "batch_size": 10, "epochs": 8, "validation": 0.5}
    settings |= {"devices": 1, "learning_rate": 0.03, "schedule": "constant", "keep": 9}
    data = drawn_arrays(2, count=240)
    run = cnnlab.train(data, **settings, workdir=tmp_path / "run", test_on="best")
    accuracies = [row["validation_accuracy"] for row in run.history]
    best = run.history[int(np.argmax(accuracies))]["step"]
    assert best != run.history[-1]["step"], accuracies  # else this test is of nothing
    assert run.network.step == run.summary["tested_step"] == best
    assert cnnlab.evaluate(run) == run.test
    loaded = cnnlab.load(tmp_path / "run")
    same_weights(run, loaded)
    assert loaded.test == run.test and cnnlab.evaluate(loaded, data) == run.test
    last = cnnlab.load(tmp_path / "run", "last")
    assert last.network.step == run.history[-1]["step"] and last.test == {}
    assert cnnlab.evaluate(last, data) != run.test
    same_weights(run, cnnlab.load(tmp_path / "run", "best"))
    with pytest.raises(InputError, match="unknown weights '5'"):
        cnnlab.load(tmp_path / "run", "5")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": optax.sgd(0.1), "learning_rate": 0.2}, "has its own learning rate"),
        ({"optimizer": optax.sgd(0.1), "schedule": "constant"}, "has its own learning rate"),
        ({"processes": 2}, "processes has no effect here"),
        ({"image_size": 4}, "--image-size 4 has no effect"),
        ({"epochs": "3"}, "epochs must be int, got '3'"),
        ({"recipe": 3}, "recipe must be Recipe, got 3"),
    ],
)
def test_settings_without_effect_or_of_another_type_are_refused(tiny, settings, words):
    with pytest.raises(InputError, match=words):
        cnnlab.train(tiny, "mlp,hidden=[4]", **SMALL | settings)


def test_sections_and_single_settings_go_together():
    config = Config.of(
        recipe=Recipe(epochs=2, seed=3), epochs=5, keep=np.int64(4), workdir=Path("a")
    )
    assert config == Config.of(epochs=5, seed=3, keep=4, workdir="a")


def test_a_folder_needs_parts_with_names(tiny, tmp_path):
    with pytest.raises(InputError, match="this loss has no name"):
        cnnlab.train(tiny, "mlp", lambda z, y: twice(z, y), workdir=str(tmp_path / "run"), **SMALL)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"los": "mse"}, "unknown setting 'los': did you mean 'loss'"),
        ({"loss": "focl"}, "did you mean 'focal'"),
        ({"loss": partial(focal, gama=2)}, "no hyperparameter 'gama'"),
        ({"epochs": 0}, "--epochs must lie in"),
    ],
)
def test_what_cannot_be_asked_is_an_input_error(tiny, settings, words):
    with pytest.raises(InputError, match=words):
        cnnlab.train(tiny, **SMALL | settings)


def test_a_module_s_fields_are_hyperparameters_where_they_differ():
    part = parts.part_of("model", CNN(widths=(8,), num_classes=7, dropout=0.25))
    assert str(part) == "cnn,widths=[8],dropout=0.25"
    assert str(parts.part_of("model", CNN())) == str(parts.part_of("model", CNN)) == "cnn"
    assert parts.part_of("loss", user_parts.penalised).name == "user_parts.penalised"
    assert str(parts.part_of("model", MLP(hidden=[8]))) == "mlp,hidden=[8]"
    assert parts.part_of("loss", partial(focal, gamma=jnp.ones(3))).name == parts.OBJECT
    own = user_parts.Configured(3, table=user_parts.Table(2), kind=jnp.dtype("float32"))
    assert str(parts.part_of("model", own)) == "user_parts.Configured"  # equal, not identical
    assert parts.part_of("model", user_parts.Configured(3, table=np.ones(2))).name == parts.OBJECT


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (ResNet, "resnet18"),
        (ResNet(), "resnet18"),
        (ResNet(10, stem="imagenet"), "resnet18,stem=imagenet"),
        (ResNet(blocks=(3, 4, 6, 3), bottleneck=True), "resnet50"),
        (partial(ResNet, blocks=[3, 4, 6, 3]), "resnet34"),
        (MODELS["resnet20"], "resnet20"),
        (MODELS["resnet20"](head="cosine"), "resnet20,head=cosine"),
        (partial(MODELS["resnet20"], blocks=(5, 5, 5)), "resnet32"),
        (WideResNet(depth=16, width=4), "wide_resnet,depth=16,width=4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_residual_networks_from_python_have_the_names_of_the_command_line(model, name):
    part = parts.part_of("model", model)
    assert part.is_builtin and str(part.canonical()) == name
    supply = {"num_classes": 10, "head": "linear", "axis_name": "data"}
    assert part.call(**supply) == parts.find("model", name).call(**supply)


@pytest.mark.slow
def test_a_residual_network_from_python_is_the_one_by_name(tiny):
    network = ResNet(blocks=(1, 1), widths=(4, 4), stem_width=4, preactivation=True)
    by_object = cnnlab.train(tiny, network, **SMALL)
    written = "resnet18,blocks=[1,1],widths=[4,4],stem_width=4,preactivation=true"
    same_weights(by_object, cnnlab.train(tiny, written, **SMALL))


def test_fields_may_be_arrays():
    class Net(nn.Module):
        num_classes: int
        shift: np.ndarray | None = None
        width: int = 4

    def chosen(module):
        return parts.part_of("model", module).made_with

    assert chosen(Net(3, width=4)) == {"num_classes": 3}
    assert chosen(Net(3, shift=np.ones(2))).keys() == {"num_classes", "shift"}
    assert chosen(Net(3, shift=jnp.ones(2), width=5)).keys() == {"num_classes", "shift", "width"}


def test_a_partial_s_keywords_are_kept_where_the_run_could_supply_them():
    counts = np.array([8, 1, 1])
    part = parts.part_of("loss", partial(ldam, class_counts=counts))
    assert part.name == parts.OBJECT and not part.asks("class_counts")
    logits = jnp.zeros((2, 3))
    labels = jnp.array([0, 1])
    losses = part.bind(class_counts=np.array([1, 1, 8]))(logits, labels)
    np.testing.assert_array_equal(losses, ldam(logits, labels, counts))


@pytest.mark.parametrize(
    ("model", "compute_dtype", "words"),
    [
        (MLP(num_classes=3), "float32", None),
        (MLP(num_classes=7), "float32", "num_classes=7, but the data set decides, and it has 3"),
        (MLP(dtype=jnp.float32), "float32", None),
        (MLP(dtype=jnp.bfloat16), "bfloat16", None),
        (MLP(dtype=jnp.dtype("bfloat16")), "bfloat16", None),
        (MLP(), "bfloat16", None),
        (MLP(dtype=jnp.bfloat16), "float32", "dtype=bfloat16, but --compute-dtype decides, and it"),
        (MLP(dtype=jnp.float32), "bfloat16", "dtype=float32, but --compute-dtype decides, and it"),
        (MLP(dtype="float23"), "float32", "dtype='float23', but --compute-dtype decides, and it"),
    ],
)
def test_what_a_module_was_made_with_is_what_the_run_supplies(model, compute_dtype, words):
    objects = {"model": (parts.part_of("model", model),)}
    build = parts.resolve(Config().recipe, objects).build_model
    if words is None:
        assert build(3, compute_dtype).num_classes == 3
        return
    with pytest.raises(InputError, match=words):
        build(3, compute_dtype)


@pytest.mark.parametrize(
    ("kind", "thing", "words"),
    [
        ("dataset", 5, "the data set must be a spec, a Dataset, a Mapping, or a function (...) ->"),
        ("dataset", ([1], [2]), "or a dict of arrays; got tuple"),
        ("model", 5, "the model must be a spec, a Module, or a function (num_classes, ...) ->"),
        ("model", optax.sgd(0.1), "called with (images, *, train); got GradientTransformation"),
        ("loss", 5, "the loss must be a spec, or a function loss(logits, labels, ...) ->"),
        ("optimizer", {"a": 1}, "a GradientTransformation, or a function (learning_rate, ...) ->"),
        ("average", 0.1, "the average must be a spec, or a function (total_steps, ...) -> step"),
        ("schedule", 0.1, "the schedule must be a spec, or a function (peak, total_steps, ...)"),
    ],
)
def test_what_is_no_part_at_all(kind, thing, words):
    with pytest.raises(InputError, match=re.escape(words)):
        parts.part_of(kind, thing)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("tiny", "tiny"),
        ("my data, v2", "my_data__v2"),
        ("a+b", "a_b"),
        ("os.path", "os_path"),
        ("it's [1", "it_s__1"),
        ("", "object"),
    ],
)
def test_the_name_of_a_data_set_object_is_no_spec(name, written, tiny):
    named = dataclasses.replace(tiny, name=name)
    part = parts.part_of("dataset", named)
    config = Config.of(dataset=str(part), label_noise=0.4)
    resolved = parts.resolve(config.recipe, {"dataset": (part,)})
    assert str(part) == written and resolved.open_dataset(None, Recipe()) is named
    assert [str(corruption) for corruption in resolved.corruptions] == ["label_noise,rate=0.4"]
    assert run_folder.stored_form(config)["written"]["dataset"] == written


@pytest.mark.slow
def test_the_readme_s_example_runs(capsys):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (code,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
        if "cnnlab.train(" in block
    ]
    assert len(code.splitlines()) <= 30
    exec(code, {"images": np.zeros((2, 32, 32, 3), np.uint8)})
    said = capsys.readouterr().out
    accuracy = float(re.fullmatch(r"test accuracy (\S+)%, train loss \d\.\d+\n", said)[1])
    assert accuracy > 25  # measured: 41 %


@pytest.mark.slow
def test_training_says_nothing(tiny, capfd):
    run = cnnlab.train(tiny, "mlp,hidden=[4]", augment=[], **SMALL | {"epochs": 1})
    assert run.config.recipe.augment == "none"  # an empty pipeline
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_runs_are_what_the_scripts_make(tiny):
    config = Config.of(dataset="tiny", model="mlp,hidden=[8]", **SMALL)
    _, progress = runs.in_memory(config)
    run = cnnlab.train(tiny, "mlp,hidden=[8]", **SMALL)
    jax.tree.map(np.testing.assert_array_equal, progress.state.params, run.network.state.params)
    assert dataclasses.asdict(run.config)["recipe"]["epochs"] == 2
