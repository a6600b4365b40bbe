"""Every part by name: the contracts of the built-in ones, and the user's own in runs and in
studies.
"""

import inspect
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import user_parts
from scripts import one_line_error, script

from cnnlab import augment, docstrings, losses, models, optim, parts, spec
from cnnlab.config import Config, Machine, Recipe
from cnnlab.console import Console
from cnnlab.data.facts import DataFacts
from cnnlab.errors import InputError
from cnnlab.parts import KINDS
from cnnlab.spec import Part
from cnnlab.study import driver
from cnnlab.study.board import Board
from cnnlab.study.plan import Study
from cnnlab.training import experiment, network
from cnnlab.training.devices import BATCH
from cnnlab.training.devices import layout as choose
from cnnlab.training.run import in_memory
from cnnlab.training.step import Objective, _apart, _interleaved

ROOT = Path(__file__).parents[1]
EVERY = [(kind, name) for kind in KINDS for name in KINDS[kind].builtin()]
TINY = Config.of(
    dataset="tiny", model="mlp,hidden=[8]", batch_size=20, epochs=2, learning_rate=0.01, devices=1
)


@pytest.fixture(autouse=True)
def lenient_types():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        yield


def failure(call, *args) -> str:
    with pytest.raises(InputError) as error:
        call(*args)
    assert len(str(error.value).splitlines()) == 1, error.value
    return str(error.value)


def trained(**changes):
    """A run in memory on the tiny data set: the experiment, and its progress."""
    return in_memory(TINY.replace(**changes))


# The built-in parts


@pytest.mark.parametrize(("kind", "name"), EVERY, ids=[f"{kind}-{name}" for kind, name in EVERY])
def test_a_built_in_part_is_documented_listed_and_named_in_one_way(kind, name):
    function = KINDS[kind].builtin()[name]
    part = Part(KINDS[kind], name, function, {})
    about = docstrings.entry(function)
    assert about.summary.endswith("."), "a first line that is a sentence"
    for hyperparameter in part.hyperparameters():
        assert hyperparameter in about.arguments, f"Args: {hyperparameter}"
    assert f"\n{name}" in f"\n\n{spec.listing(KINDS[kind])}"
    required = {key for key in part.hyperparameters() if part.requires(key)} - set(
        KINDS[kind].supplies
    )
    examples = {
        "at": (80, 120),
        "period": 10,
        "rate": 0.4,
        "factor": 100,
        "share": 0.5,
        "weights": (1, 2),
        "t": 2,
        "path": "/somewhere",
        "classes": (3, 5),
        "severity": 3,
    }
    written = spec.Spec(name, {key: examples[key] for key in required})
    found = spec.find(KINDS[kind], str(written))
    again = spec.find(KINDS[kind], str(found.resolved()))
    assert again.canonical() == found.canonical() == written
    assert again.resolved() == found.resolved()
    assert found.sources() == {}


def test_short_names_and_paths_of_cnnlab_are_the_same_part():
    for text in ("ce", "cross_entropy", "cnnlab.losses.cross_entropy", "cnnlab.losses.ce"):
        assert str(spec.find(KINDS["loss"], text).canonical()) == "cross_entropy"
    assert str(spec.find(KINDS["loss"], "focal,gamma=2.0").canonical()) == "focal"
    assert (
        str(spec.find(KINDS["model"], "cnnlab.models.CNN,widths=[8]").canonical())
        == "cnn,widths=[8]"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_name_is_an_error(kind):
    if kind == "dataset":
        message = failure(
            parts.resolve(TINY.replace(dataset="cifar11").recipe).open_dataset, None, Recipe()
        )
    else:
        message = failure(spec.find, KINDS[kind], "surely_unknown")
    assert "unknown" in message


def test_optax_is_named_by_its_path():
    assert "did you mean 'optax.lion'?" in failure(spec.find, KINDS["optimizer"], "lion")
    assert "did you mean 'optax.contrib.prodigy'?" in failure(
        spec.find, KINDS["optimizer"], "prodigy"
    )
    assert "lion" in failure(spec.find, KINDS["optimizer"], "optax.lionn")


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["optax.lion,b1=0.95", "optax.contrib.prodigy", "optax.adamw,weight_decay=1e-2"]
)
def test_optimizers_of_optax_take_their_own_step(text, tfds_root):
    part = spec.find(KINDS["optimizer"], text)
    rate = 1.0 if "prodigy" in text else 0.01
    changes = {
        "optimizer": text,
        "learning_rate": rate,
        "schedule": "constant",
        "augment": "none",
        "epochs": 1,
    }
    _, progress = trained(**changes)
    built = experiment.build(TINY.replace(**changes))
    tx = part.function(rate, **part.keywords)
    params = built.start().state.params
    state = tx.init(params)

    def loss(params, images, labels):
        return losses.cross_entropy(
            models.MLP(3, hidden=(8,)).apply({"params": params}, images), labels
        ).mean()

    dataset = parts.resolve(TINY.recipe).open_dataset(None, TINY.recipe)
    mean, std = (np.array(values, np.float32) for values in (built.facts.mean, built.facts.std))
    for item in built.items(0, built.steps_per_epoch):
        images = augment.normalise(
            jnp.asarray(dataset.train.read(item["image"])["image"]), mean, std
        )
        updates, state = tx.update(jax.grad(loss)(params, images, item["label"]), state, params)
        params = optax.apply_updates(params, updates)
    for ours, theirs in zip(
        jax.tree.leaves(progress.state.params), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)


# Settings without effect cannot be written


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "mlp,pool=average"}, "model mlp has no hyperparameter 'pool'"),
        ({"optimizer": "adam,momentum=0.9"}, "optimizer adam has no hyperparameter 'momentum'"),
        ({"optimizer": "adam,head_rate=0.02"}, "optimizer adam has no hyperparameter 'head_rate'"),
        (
            {"optimizer": "sgd,momentum=0,nesterov=true"},
            "nesterov is a form of momentum, which is 0",
        ),
        ({"model": "airnet,hidden=[8]"}, "model airnet has no hyperparameter 'hidden'"),
        ({"model": "airnet,pool=max"}, "model airnet has no hyperparameter 'pool'"),
        ({"model": "cnn,whiten=false"}, "model cnn has no hyperparameter 'whiten'"),
        ({"augment": "flip,mode=reflect"}, "augmentation flip has no hyperparameter 'mode'"),
        (
            {"loss": "cross_entropy,convention=off_target"},
            "loss cross_entropy has no hyperparameter 'convention'",
        ),
        (
            {"model": "softmax_regression,activation=gelu"},
            "model softmax_regression has no hyperparameter 'activ",
        ),
        ({"model": "softmax_regression,batch_norm=true"}, "has no hyperparameter 'batch_norm'"),
        ({"workers": 2}, "--workers 2 has no effect on images that are kept in memory"),
        (
            {"feed": "resident", "decoded_limit": 1.0},
            "--decoded-limit 1 has no effect with --feed resident",
        ),
        ({"optimizer": "muon"}, "muon is for convolution kernels"),
        ({"model": "user_parts.Net", "compute_dtype": "bfloat16"}, "does not take a dtype"),
        ({"model": "mlp,num_classes=7"}, "num_classes comes from the run"),
        ({"augment": "views+flip"}, "takes no view_logits"),
        ({"augment": "augmix"}, "takes no view_logits"),
        (
            {"model": "cnn,widths=[2]", "optimizer": "muon,whitening_epochs=5"},
            "whitening_epochs has no effect",
        ),
        (
            {"model": "airnet,widths=[2,2],whiten=false", "optimizer": "muon,whitening_epochs=5"},
            "has no effect",
        ),
        ({"model": "mlp,hidden=[],activation=gelu"}, "hidden=[] leaves no layer"),
        ({"model": "cnn,widths=[2],hidden=[],dropout=0.5"}, "hidden=[] leaves no layer"),
        ({"schedule": "steps,at=[]"}, "at must name at least one epoch"),
    ],
)
def test_a_setting_without_effect_is_refused(changes, words, tfds_root):
    assert words in failure(experiment.build, TINY.replace(**changes))


def test_the_kind_of_noise_needs_noise():
    assert "--noise asymmetric has no effect without --label-noise" in failure(
        lambda: Config.of(noise="asymmetric")
    )
    study = {"losses": ("ce", "mse"), "noise": "asymmetric"}
    assert "has no effect without --label-noise" in failure(lambda: Study.of(**study))
    assert Study.of(**study, label_noise=(0.0, 0.4)).noise == "asymmetric"


# The user's own parts: those of experiments/README.md in train.py, all of them in a study


def section(title):
    """A section of experiments/README.md."""
    return re.search(
        rf"^## {title}\n(.*?)(?=^## )",
        (ROOT / "experiments/README.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )[1]


CHANGE = section("Your own parts")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in CHANGE.split("```python")[0].splitlines()
    if line.startswith("| ")
]
ROWS = {row[0]: row[1:] for row in ROWS if row[0] != "change"}
FILES = dict(re.findall(r"^# (my_\w+\.py)\n(.*?)(?=^# my_|^```)", CHANGE, re.MULTILINE | re.DOTALL))


def test_the_readme_changes_eight_things():
    assert list(ROWS) == [
        "model",
        "loss",
        "optimizer",
        "schedule",
        "average of the weights",
        "augmentation",
        "data set",
        "metric",
    ]
    assert len(FILES) == 8
    for name, text in FILES.items():
        lines = [
            line for line in text.splitlines() if line and not line.startswith(("import", "from"))
        ]
        assert len(lines) <= 8, name


@pytest.mark.slow
def test_the_readmes_own_parts_train(tfds_root, tmp_path):
    """A real process in a folder that holds nothing but the files: no edit of cnnlab."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    flags = [
        word for row in ROWS.values() for word in shlex.split(re.search(r"`(.*)`", row[-1])[1])
    ]
    assert sum(flag.startswith("--") for flag in flags) == 8
    small = ["--epochs", 1, "--batch-size", 20, "--workdir", tmp_path / "run"]
    done = script("train", *flags, *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "test, average weights" in done.stdout and "confidence" in done.stdout
    evaluated = script("evaluate", tmp_path / "run", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert done.stdout.splitlines()[-3].partition(": ")[2] in evaluated.stdout


@pytest.mark.parametrize("what", ROWS)
def test_the_readmes_built_in_parts_are_found(what):
    flags = re.findall(r"`(--[^`]*)`", ROWS[what][0])
    assert flags or what == "metric"
    for text in flags:
        name, value = shlex.split(text)
        field = name.removeprefix("--").replace("-", "_")
        parts.resolve(Recipe.of(**{field: (value,) if field == "metrics" else value}))


OWN = {
    "model": "user_parts.Net,features=4",
    "optimizer": "user_parts.heavy_ball,beta=0.7",
    "schedule": "user_parts.polynomial",
    "average": "user_parts.tail,start=0.5",
    "augment": "user_parts.jitter,strength=0.05+flip",
    "dataset": "user_parts.blocks,count=180+user_parts.without,label=1",
    "metrics": ("user_parts.not_last", "user_parts.within,k=2"),
}


@pytest.mark.slow
def test_own_parts_in_a_study(tmp_path):
    """All eight kinds, and a corruption; the verdicts are about the user's own metric."""
    study = Study.of(
        **OWN, losses=("cross_entropy", "user_parts.penalised,alpha=0.5"), metric="top2_of_mine",
        seeds=2, epochs=2,
        batch_size=20, learning_rate=0.05, validation=0.1, devices=1, progress="off",
        workdir=str(tmp_path),
    )  # fmt: skip
    found = driver.run(study, Board("off", 2), "COMMAND")
    assert found is not None
    arms = [cell.arm for cell in found.cells]
    assert arms == ["cross_entropy", "user_parts.penalised,alpha=0.5"]
    for cell in found.cells:
        # A third less in training
        assert cell.counts == {
            "train": 54,
            "validation": 9,
            "test": 90,
        }
        assert {"not_last", "top2_of_mine"} <= set(cell.runs[0].test)
        assert cell.config["model"] == "user_parts.Net,features=4"
        assert "validation_not_last" in cell.runs[0].history[0]
        assert cell.config["average"] == "user_parts.tail,start=0.5"
        assert {"not_last", "top2_of_mine"} <= set(cell.runs[0].test_last)
    from cnnlab.study import report

    paths = report.write(found, tmp_path)
    assert "top2_of_mine" in (tmp_path / "report.md").read_text() and len(paths) == 4
    assert "not_last" in (tmp_path / "results.csv").read_text().splitlines()[0]
    # run again, nothing is trained
    again = driver.run(study, Board("off", 2), "COMMAND")
    assert again is not None and again.cells == found.cells


@pytest.mark.slow
def test_arms_that_are_one_under_two_names_are_refused(tmp_path, tfds_root):
    study = Study.of(dataset="tiny", model="mlp,hidden=[8]", losses=("ce", "mse"),
        seeds=2, epochs=1,
        batch_size=20,
                  devices=1, progress="off", workdir=str(tmp_path))  # fmt: skip
    for changes, names in (
        ({"losses": ("ce", "mse", "cross_entropy")}, "'ce' and 'cross_entropy'"),
        ({"losses": ("focal", "focal,gamma=2")}, "'focal' and 'focal,gamma=2'"),
        (
            {"vary": ("optimizer=adam", "optimizer=adam,b1=0.9")},
            "'ce, optimizer adam' and 'ce, optimizer adam,b1=0.9'",
        ),
    ):
        message = failure(driver.run, study.replace(**changes), Board("off", 1), "COMMAND")
        assert f"{names} are the same under two names" in message
    first = driver.run(study, Board("off", 1), "COMMAND")
    again = driver.run(study.replace(losses=("cross_entropy", "mse")), Board("off", 1), "COMMAND")
    assert first is not None and again is not None
    # nothing is trained for another spelling
    assert again.cells[0].runs == first.cells[0].runs
    assert len(list((tmp_path / "cells").glob("*.json"))) == 2


@pytest.mark.slow
def test_a_run_whose_user_file_has_changed_is_not_resumed(tmp_path, tfds_root):
    """Also where it is finished: the summary would be another loss's."""
    text = (
        "from cnnlab import losses\ndef mine(logits, labels):\n    return {} * "
        "losses.cross_entropy(logits, labels)\n"
    )
    small = [
        "--dataset",
        "tiny",
        "--model",
        "mlp,hidden=[4]",
        "--loss",
        "changed_here.mine",
        "--batch-size",
        20,
    ]
    small += ["--schedule", "constant", "--workdir", tmp_path / "run"]
    (tmp_path / "changed_here.py").write_text(text.format(1))
    assert script("train", *small, "--epochs", 1, cwd=tmp_path).returncode == 0
    (tmp_path / "changed_here.py").write_text(text.format(100))
    for epochs in (1, 2):
        message = one_line_error(script("train", *small, "--epochs", epochs, cwd=tmp_path))
        assert "your file changed_here: " in message and "Choose another --workdir" in message
    done = script("evaluate", tmp_path / "run", cwd=tmp_path)
    assert done.stderr == "changed_here is no longer the file that the run was trained with\n"
    (tmp_path / "changed_here.py").write_text(text.format(1))
    assert script("train", *small, "--epochs", 2, cwd=tmp_path).returncode == 0
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/changed_here.py").write_text(text.format(1))
    done = script("evaluate", tmp_path / "run", cwd=tmp_path / "elsewhere")
    assert done.returncode == 0 and done.stderr == (
        f"changed_here is imported from {tmp_path}/elsewhere/changed_here.py; the run was started "
        f"with {tmp_path}/changed_here.py\n"
    )


@pytest.mark.slow
def test_a_user_s_module_that_computes_leaves_the_cpu_its_devices(tmp_path, tfds_root):
    """JAX starts with whatever computes first: that must not be with one CPU device."""
    (tmp_path / "computes_here.py").write_text(
        "import jax.numpy as jnp\nfrom cnnlab.losses import cross_entropy\nONE = jnp.float32(1) + "
        "0\ndef mine(logits, labels):\n    return ONE * cross_entropy(logits, labels)\n"
    )
    small = [
        "--dataset",
        "tiny",
        "--batch-size",
        64,
        "--epochs",
        1,
        "--model",
        "cnn,widths=[2],hidden=[2]",
    ]
    done = [
        script("train", *small, "--loss", loss, "--workdir", tmp_path / loss, cwd=tmp_path)
        for loss in ("cross_entropy", "computes_here.mine")
    ]
    assert [one.returncode for one in done] == [0, 0], done[1].stderr
    plain, own = (one.stdout.splitlines()[0].partition(";")[0] for one in done)
    assert plain == own and " x cpu" in own


def test_arrays_that_cannot_be_a_data_set():
    good = user_parts.blocks()
    from cnnlab.data.dataset import from_arrays

    for changes, words in (
        ({"validation": 1}, "['validation'] is not used"),
        ({"test": (good["test"][0][:0], good["test"][1][:0])}, "has no images"),
        ({"train": (good["train"][0] / 255, good["train"][1])}, "images must be uint8[N, H, W, C]"),
        (
            {"train": (good["train"][0], good["train"][1][:3])},
            "labels must be int[120], one for each image",
        ),
        ({"test": (good["test"][0][:, :4], good["test"][1])}, "have different shapes"),
    ):
        assert words in failure(from_arrays, "mine", good | changes)
    assert "has no test" in failure(from_arrays, "mine", {"train": good["train"]})
    assert from_arrays("mine", good | {"class_names": np.array(["a", "b", "c"])}).class_names == (
        "a",
        "b",
        "c",
    )
    assert from_arrays("mine", {k: good[k] for k in ("train", "test")}).class_names == (
        "0",
        "1",
        "2",
    )
    grey = {k: (good[k][0][..., 0], good[k][1]) for k in ("train", "test")}
    assert (
        from_arrays("mine", grey).train.image_shape == (8, 8, 1)
        and not from_arrays("mine", grey).mirror
    )


@pytest.mark.slow
def test_a_user_s_network_learns_with_everything_else_built_in(tfds_root):
    _, progress = trained(model="user_parts.Net", epochs=6, learning_rate=0.05)
    assert progress.history[-1]["validation_accuracy"] > 0.6


@pytest.mark.slow
def test_statistics_of_each_device_alone_are_announced_once(tfds_root, capsys):

    def build(model, devices):
        in_memory(TINY.replace(model=model, devices=devices, epochs=1), Console("lines"))

    build("user_parts.Net", 2)
    said = capsys.readouterr().out
    assert said.count("does not take axis_name") == 1
    build("user_parts.Net", 1)
    build("cnn,widths=[2],batch_norm=true", 2)
    assert "axis_name" not in capsys.readouterr().out


BROKEN = [
    ("model", "user_parts.blocks", "must return a flax.linen.Module"),
    ("loss", "user_parts.blocks", "fails on logits"),
    ("optimizer", "user_parts.polynomial,total_steps=3", "total_steps comes from the run"),
    ("optimizer", "user_parts.faded", "labels"),
    ("schedule", "user_parts.jitter", "batch"),
    ("augment", "user_parts.penalised", "fails on images"),
    ("dataset", "user_parts.within", "must return a Dataset or a dict of arrays"),
    ("dataset", "tiny+user_parts.jitter", "corruption user_parts.jitter"),
    (
        "schedule",
        "user_parts.python_schedule",
        "schedule 'user_parts.python_schedule' fails where JAX traces",
    ),
    ("schedule", "user_parts.vector_schedule", "must give one rate for a step, got float32[3]"),
    (
        "schedule",
        "optax.cosine_onecycle_schedule,peak_value=0.1",
        "schedule optax.cosine_onecycle_schedule",
    ),
    (
        "optimizer",
        "user_parts.python_rate",
        "optimizer user_parts.python_rate: ConcretizationTypeError",
    ),
    (
        "augment",
        "user_parts.shrunk",
        "must keep image float32[20, 8, 8, 3], got float32[20, 4, 4, 3]",
    ),
    ("augment", "user_parts.halved", "must keep index int32[20], got int32[10]"),
    (
        "augment",
        "user_parts.forgetful",
        "must return the batch, with image, label, index and epoch",
    ),
    (
        "augment",
        "user_parts.odd_labels",
        "must return labels int32[B] or float32[B, K], got float32[20]",
    ),
    ("augment", "mixup+views+mixup", "changes labels and cannot follow views"),
    ("augment", "views+augmix", "it makes views, and there are some already"),
    ("augment", "random_resized_crop,scale=[1,0.5]", "the least and the greatest value, got [1.0"),
    ("augment", "cutmix,p=0", "p must lie in (0, 1], got 0"),
    ("augment", "user_parts.in_pixels,std=3", "std comes from the run"),
    ("metrics", ("user_parts.blocks",), "must be a cnnlab.metrics.Metric"),
    (
        "metrics",
        ("user_parts.within", "user_parts.within"),
        "is called top2_of_mine, as another one is",
    ),
]


@pytest.mark.parametrize(("field", "text", "words"), BROKEN)
def test_a_part_that_does_not_keep_its_contract(field, text, words, tfds_root):
    assert words in failure(experiment.build, TINY.replace(**{field: text}))


# What a loss may ask for


@pytest.mark.slow
def test_features_are_the_input_of_the_head():
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    for model in (
        models.CNN(3, widths=(4,), hidden=(6,)),
        models.MLP(3, hidden=(5,)),
        models.AirNet(3, (2, 2)),
    ):
        variables = model.init(jax.random.key(1), images)
        apply_fn = network.apply_for_training(model, features=True)
        variables = {"batch_stats": {}, **variables}
        logits, _, features = apply_fn(variables, images, jax.random.key(2))
        head = variables["params"].get("MLP_0", variables["params"])
        head = head[max(name for name in head if name.startswith("Dense"))]
        bias = head.get("bias", np.zeros(3, np.float32))[None]
        np.testing.assert_allclose(features @ head["kernel"] + bias, logits, rtol=1e-5, atol=1e-5)
        facts = DataFacts(
            class_names=("a", "b", "c"),
            image_shape=images.shape[1:],
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
            class_counts=(1,) * 3,
        )
        evaluated = network.apply_for_evaluation(model, facts, "mirror", features=True)
        logits, features = evaluated(variables, images)
        np.testing.assert_allclose(features @ head["kernel"] + bias, logits, rtol=1e-5, atol=1e-5)


def objective_of(loss, **fields):
    """The objective of a run on three classes, 10 steps an epoch, 4 epochs; epochs and progress are
    those of a step.
    """
    found = parts.resolve(Recipe.of(loss=loss, **fields))
    return Objective(found.build_loss(3, np.array([100, 10, 1])), found.loss_asks, 40, 10)


LOGITS, LABELS = jnp.array([[2.0, 0.5, -1.0], [0.0, 1.0, 3.0]]), jnp.array([0, 1])


def at(objective, step, **inputs):
    step = None if step is None else jnp.int32(step)
    return objective(
        LOGITS, LABELS, pixels=lambda: None, features=inputs.get("features"), step=step
    )


def test_a_focal_gamma_that_changes_with_the_epoch():
    objective = objective_of("user_parts.focal_schedule,change=2")
    before, after = losses.focal(LOGITS, LABELS, gamma=5.0), losses.focal(LOGITS, LABELS, gamma=3.0)
    np.testing.assert_allclose(at(objective, 19), before, rtol=1e-6)
    for step in (20, 39, None):
        np.testing.assert_allclose(at(objective, step), after, rtol=1e-6)


def test_deferred_reweighting():
    objective = objective_of("user_parts.deferred_ldam,start=3")
    counts = [100, 10, 1]
    plain = losses.ldam(LOGITS, LABELS, counts)
    np.testing.assert_allclose(at(objective, 29), plain, rtol=1e-6)
    weights = losses.effective_number(counts)[np.array(LABELS)]
    np.testing.assert_allclose(at(objective, 30), weights * plain, rtol=1e-5)
    found = parts.resolve(Recipe.of(loss="user_parts.deferred_ldam", model="cnn,widths=[2]"))
    assert found.build_model(3).head == "cosine"  # the mark is the user's


def test_progress_runs_from_zero_to_one():
    objective = objective_of("user_parts.faded")
    plain = losses.cross_entropy(LOGITS, LABELS)
    for step, factor in ((0, 1), (10, 1.5), (20, 2), (None, 3)):
        np.testing.assert_allclose(at(objective, step), factor * plain, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss", ["user_parts.deferred_ldam,start=1", "user_parts.focal_schedule,change=1",
             "user_parts.faded",
             "user_parts.compact,weight=0.001", "user_parts.faded+label_smoothing,alpha=0.1"],
)  # fmt: skip
def test_losses_that_ask_are_trained(loss, tfds_root):
    _, progress = trained(loss=loss, model="cnn,widths=[4],hidden=[8]", epochs=3)
    assert progress.history[-1]["validation_accuracy"] > 0.6


@pytest.mark.slow
def test_jensen_shannon_is_trained_on_views(tfds_root):
    """Against the step by hand: views by the same keys, one pass of the network, the loss of all
    three.
    """
    config = TINY.replace(loss="jensen_shannon,weight=2",
                                 augment="views,count=2+flip+crop,padding=2",
                                 model="cnn,widths=[4],hidden=[8]", epochs=3)  # fmt: skip
    _, progress = in_memory(config)
    assert progress.history[-1]["validation_accuracy"] > 0.6
    words = failure(experiment.build, config.replace(augment="flip"))
    assert "--augment flip+crop+augmix makes some, as does views+flip+crop" in words
    words = failure(experiment.build, config.replace(augment="views+mixup"))
    assert "changes labels and cannot follow views" in words


def test_views_pass_the_network_together_and_come_apart():
    images = jax.random.normal(jax.random.key(0), (5, 4, 4, 3))
    views = jax.random.normal(jax.random.key(1), (2, 5, 4, 4, 3))
    own, others = _apart(_interleaved(images, views), 2)
    np.testing.assert_array_equal(own, images)
    np.testing.assert_array_equal(others, views)


def test_features_have_the_shape_of_the_model_s_own(tfds_root):
    """A loss that needs them in one form is held against the network at hand."""
    ask = {"loss": "user_parts.compact"}
    words = failure(experiment.build, TINY.replace(**ask, model="user_parts.WithoutLayers"))
    assert "calls no layer, and so has no features" in words
    experiment.build(TINY.replace(**ask))


def test_other_forms_of_a_loss():
    plain = losses.cross_entropy(LOGITS, LABELS)
    np.testing.assert_allclose(
        at(objective_of("user_parts.Outer.Inner.deep,alpha=0.5"), 0), 0.5 * plain, rtol=1e-6
    )
    np.testing.assert_allclose(
        at(objective_of("user_parts.Scaled,factor=3"), 20), 4.5 * plain, rtol=1e-6
    )
    np.testing.assert_allclose(
        at(objective_of("user_parts.words,kinds=[x,y],flags=[false,true]"), 0), plain, rtol=1e-6
    )
    found = spec.find(KINDS["loss"], "user_parts.Scaled,factor=3")
    assert (
        set(found.sources()) == {"user_parts"}
        and str(found.resolved()) == "user_parts.Scaled,factor=3"
    )


@pytest.mark.slow
def test_a_model_that_takes_no_head_is_announced(tfds_root, capsys):
    config = TINY.replace(loss="arcface", epochs=1)
    in_memory(config.replace(model="user_parts.Net"), Console("lines"))
    assert "model user_parts.Net takes no head" in capsys.readouterr().out
    in_memory(config, Console("lines"))
    assert "takes no head" not in capsys.readouterr().out


# Augmentations


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        *sorted({*augment.AUGMENTATIONS} - {"cutout"}),
        "cutout,size=3",
        "views+flip+crop",
        "user_parts.jitter",
    ],
)
def test_draws_depend_on_the_place_in_the_global_batch_and_not_on_the_devices(text):
    found = parts.resolve(Recipe.of(augment=text, loss="jensen_shannon"))
    batch = {
        "image": np.random.default_rng(0).standard_normal((16, 8, 8, 3)).astype(np.float32),
        "label": np.arange(16, dtype=np.int32) % 3,
        "index": np.arange(16, dtype=np.int32)[::-1].copy(),
    }
    key, run_key = jax.random.key(1), jax.random.key(2)
    one = _augmented(found, "jit", 1, batch, key, run_key)
    for mode in ("pmap", "sharded"):
        several = _augmented(found, mode, 8, batch, key, run_key)
        assert one.keys() == several.keys()
        for name in one:
            np.testing.assert_allclose(several[name], one[name], rtol=1e-6, atol=1e-6, err_msg=name)
    assert any((one[name] != batch[name]).any() for name in ("image", "label")) or "views" in one


def test_an_augmentation_is_given_the_statistics_that_it_requires():
    batch = {
        "image": jnp.zeros((2, 4, 4, 3)),
        "label": jnp.zeros(2, jnp.int32),
        "index": jnp.zeros(2, jnp.int32),
        "epoch": jnp.int32(0),
    }

    statistics = jnp.array([10.0, 20.0, 30.0]), jnp.array([2.0, 4.0, 5.0])

    def changed(text):
        operations = parts.resolve(Recipe.of(augment=text)).pipeline(3, None, True, statistics)
        key = jax.random.key(0)
        return augment.apply(operations, batch, key, key)["image"][0, 0, 0]

    # Half of the pixels 10, 20, 30, normalised again.
    np.testing.assert_allclose(changed("user_parts.in_pixels"), [-2.5, -2.5, -3.0])
    np.testing.assert_allclose(changed("user_parts.in_pixels,factor=1"), np.zeros(3))
    # With a default it is a hyperparameter instead.
    for text, value in (("user_parts.shifted", 0.25), ("user_parts.shifted,mean=0.5", 0.5)):
        np.testing.assert_array_equal(changed(text), np.full(3, value))
    for text in ("trivial_augment,mean=3", "augmix,std=[1,2,3]", "user_parts.in_pixels,mean=1"):
        with pytest.raises(InputError, match="comes from the run"):
            parts.resolve(Recipe.of(augment=text))
    with pytest.raises(InputError) as error:
        parts.resolve(Recipe.of(augment="augmix,width=0"))
    assert "mean" not in str(error.value)


def _augmented(found, mode, devices, batch, key, run_key):
    layout = choose(Machine(parallel=mode, devices=devices), 16)
    statistics = jnp.full(3, 100.0), jnp.full(3, 50.0)
    operations = found.pipeline(3, layout.axis_name, True, statistics)

    def step(batch, *, axis_name):
        changed = augment.apply(
            operations, batch | {"epoch": jnp.int32(0)}, key, run_key, axis_name
        )
        changed.pop("epoch")
        views = changed.pop("views", None)
        if views is not None:
            changed["views"] = views.swapaxes(0, 1)
        if axis_name is not None:
            changed = jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), changed)
        return changed

    return jax.device_get(layout.compile(step, (BATCH,))(batch))


# Schedules and the length of a run


@pytest.mark.parametrize(
    ("changes", "extendable"),
    [
        ({"schedule": "constant"}, True),
        ({"schedule": "steps,at=[2,4]"}, True),
        ({"schedule": "restarts,period=2"}, True),
        ({"schedule": "constant", "optimizer": "muon"}, True),
        ({"schedule": "cosine"}, False),
        ({"schedule": "linear"}, False),
        ({"schedule": "one_cycle"}, False),
        ({"schedule": "user_parts.polynomial"}, False),
        ({"schedule": "optax.constant_schedule"}, True),
        ({"schedule": "constant", "loss": "user_parts.faded"}, False),
        ({"schedule": "constant", "loss": "user_parts.focal_schedule"}, False),
    ],
)
def test_a_part_says_whether_it_depends_on_the_length_of_the_run(changes, extendable):
    assert parts.resolve(Recipe.of(**changes)).extendable is extendable


@pytest.mark.slow
def test_muon_under_a_constant_rate_takes_the_same_steps_in_a_longer_run(tfds_root):
    """Its schedule of the first bias, too, is of fixed length."""
    muon = {"optimizer": "muon,whitening_epochs=3", "schedule": "constant", "learning_rate": 0.1}
    found = []
    for epochs in (1, 5):
        config = TINY.replace(model="airnet,widths=[2,2]", epochs=epochs, **muon)
        built = experiment.build(config)
        progress = built.start()
        for item in built.items(0, 9):
            progress = built.advance(progress, [item])
        found.append(jax.device_get(progress.state.params))
    for short, long in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(short, long)


# What is stored


def test_a_stored_part_is_read_with_what_it_was_run_with(monkeypatch):
    """A later default changes nothing that is stored, and a new hyperparameter makes nothing
    unreadable.
    """
    stored = parts.resolve(Recipe.of(model="mlp")).specs(Part.resolved)["model"]
    canonical = parts.resolve(Recipe.of(model="mlp")).specs(Part.canonical)["model"]

    class Later(models.MLP):
        __doc__ = (models.MLP.__doc__ or "") + "\n"
        hidden: tuple = (64,)
        residual: bool = False

    monkeypatch.setitem(models.MODELS, "mlp", Later)
    later = parts.resolve(Recipe.of(model=stored))
    assert later.build_model(3).hidden == (128,) and later.build_model(3).residual is False
    assert "residual=false" in later.specs(Part.resolved)["model"]
    assert canonical == "mlp"


def test_sources_of_user_files_are_told_by_module():
    found = parts.resolve(Recipe.of(**OWN))
    assert set(found.sources()) == {"user_parts"}
    assert parts.resolve(Recipe()).sources() == {}


def test_the_signature_of_each_kind_is_its_contract():
    for kind in KINDS.values():
        for function in kind.builtin().values():
            first = list(inspect.signature(function).parameters)[: kind.positional]
            assert len(first) == kind.positional, function


@pytest.mark.slow
def test_old_flags_in_a_real_process():
    done = script("train", "--pool", "average")
    assert "--pool is written --model cnn,pool=average now" in one_line_error(done)


def test_a_schedule_by_its_path(tfds_root):
    rate = parts.resolve(Recipe.of(schedule="user_parts.polynomial,power=1")).build_schedule(
        1.0, 100, 10
    )
    assert float(rate(50)) == pytest.approx(0.5)
    assert float(optim.cosine(1.0, 100)(50)) == pytest.approx(0.5)


def test_the_users_own_module_is_what_the_tests_import():
    assert user_parts.not_last() is user_parts.not_last
