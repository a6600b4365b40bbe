"""From a configuration to the pieces of a run, and one-line errors for what cannot be."""

import json
import re
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_data import drawn

from cnnlab import models, parts
from cnnlab.config import Config, Recipe
from cnnlab.console import Console
from cnnlab.data import catalogue, contents, order
from cnnlab.data import feed as feeds
from cnnlab.data.facts import DataFacts
from cnnlab.errors import InputError
from cnnlab.training import devices, experiment, program, run

TINY = Config.of(
    dataset="tiny", model="mlp,hidden=[4]", optimizer="sgd", schedule="constant", batch_size=16,
    devices=1
)  # fmt: skip


def failure(call, *args) -> str:
    with pytest.raises(InputError) as error:
        call(*args)
    assert len(str(error.value).splitlines()) == 1, error.value
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "channels", "mirror"),
    [
        ("cifar10", 3, True),
        ("shapes10", 3, True),
        ("mnist", 1, False),
        ("cifar100", 3, True),
        ("fashion_mnist", 1, True),
        ("svhn_cropped", 3, False),
        ("flowers", 1, False),
        ("flowers", 3, True),
    ],
)
def test_which_data_sets_are_mirrored(name, channels, mirror):
    assert catalogue.may_be_mirrored(name, channels) is mirror


@pytest.mark.usefixtures("tfds_root")
@pytest.mark.parametrize("mirror", [True, False])
def test_a_data_set_may_say_itself_whether_it_is_mirrored(tfds_root, mirror):
    assert catalogue.open_dataset("tiny", mirror=mirror).mirror is mirror


@pytest.mark.parametrize(
    ("augment", "mirror", "names"),
    [
        ("auto", True, ["flip"]),
        ("auto", False, []),
        ("none", True, []),
        ("flip", False, ["flip"]),
        ("crop+crop", True, ["crop", "crop 2"]),
    ],
)
def test_auto_flips_where_a_mirrored_image_is_of_the_same_class(augment, mirror, names):
    pipeline = parts.resolve(Recipe.of(augment=augment)).pipeline(3, None, mirror)
    assert [operation.name for operation in pipeline] == names


def prepared(augment, images, labels, mean, std, **batch):
    """A batch of three classes, normalised and augmented."""
    config = Config.of(model="softmax_regression", augment=augment, batch_size=len(labels))
    facts = DataFacts(
        class_names=("a", "b", "c"), image_shape=images.shape[1:], mean=tuple(mean.tolist()),
        std=tuple(std.tolist()), class_counts=tuple(np.bincount(labels, minlength=3).tolist()),
        mirror=False,
    )  # fmt: skip
    built = program.build(config, parts.resolve(config.recipe), devices.single_device(), facts)
    start = {
        "image": images,
        "label": labels,
        "index": np.arange(len(labels), dtype=np.int32),
        "epoch": np.int32(0),
    }
    key = jax.random.key(0)
    return built.step_parts.prepare(start | batch, key, jax.random.fold_in(key, 7), None)


@pytest.mark.slow
def test_prepare_normalises_and_mixes_labels():
    images, labels = drawn(8, 3, (4, 4, 3), seed=0)
    mean, std = np.array([10.0, 20.0, 30.0]), np.array([2.0, 4.0, 8.0])
    plain = prepared("none", images, labels, mean, std)
    found = plain["image"]
    np.testing.assert_allclose(found, (images - mean) / std, rtol=1e-5)
    assert found.dtype == jnp.float32 and plain["label"] is labels
    mixed = prepared("mixup,alpha=1", images, labels, mean, std)
    targets = mixed["label"]
    assert targets.shape == (8, 3) and targets.dtype == jnp.float32
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
    # a permutation keeps the mean
    np.testing.assert_allclose(mixed["image"].mean(0), found.mean(0), rtol=1e-3, atol=1e-3)
    for operation in ("flip", "crop,padding=2", "cutout,size=2"):
        changed = prepared(operation, images, labels, mean, std)
        assert changed["image"].shape == found.shape and (changed["image"] != found).any(), (
            operation
        )
        assert changed["label"] is labels


def test_prepare_mirrors_by_turns_and_reflects():
    images, labels = drawn(8, 3, (4, 4, 3), seed=0)
    mean, std = np.zeros(3), np.ones(3)
    epochs = [
        np.asarray(
            prepared("alternating_flip", images, labels, mean, std, epoch=np.int32(epoch))["image"]
        )
        for epoch in (0, 1, 2)
    ]
    chosen = (epochs[0] != images).any((1, 2, 3))
    assert 0 < chosen.sum() < 8
    for epoch, found in enumerate(epochs):
        mirrored = chosen ^ (epoch % 2 == 1)
        np.testing.assert_array_equal(
            found, np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
        )
    # an image's coin goes with its index, wherever it is in the batch
    shuffled = np.random.default_rng(0).permutation(8)
    index = shuffled.astype(np.int32)
    moved = prepared("alternating_flip", images[shuffled], labels[shuffled], mean, std, index=index)
    np.testing.assert_array_equal(moved["image"], epochs[0][shuffled])

    shifted = prepared("alternating_flip+crop,padding=2,mode=reflect", images, labels, mean, std)[
        "image"
    ]
    padded = np.pad(epochs[0], ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    places = [
        [
            (i, j)
            for i in range(5)
            for j in range(5)
            if (image == around[i : i + 4, j : j + 4]).all()
        ]
        for image, around in zip(np.asarray(shifted), padded, strict=True)
    ]
    assert all(len(place) == 1 for place in places) and len({place[0] for place in places}) > 1


@pytest.mark.parametrize("name", ["cnn", "mlp", "softmax_regression"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_models_keep_float32_parameters_and_logits(name, dtype):
    written = {
        "cnn": "cnn,widths=[2],hidden=[3],batch_norm=true",
        "mlp": "mlp,hidden=[3],batch_norm=true",
    }
    model = parts.resolve(Recipe.of(model=written.get(name, name))).build_model(5, dtype)
    x = jnp.zeros((2, 4, 4, 3), jnp.float32)
    # Flax's batch norm subtracts a float32 mean from bfloat16.
    with jax.numpy_dtype_promotion("standard"):
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x))
        logits = jax.eval_shape(lambda variables: model.apply(variables, x), shapes)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    assert (logits.shape, logits.dtype) == ((2, 5), jnp.float32)
    assert (
        model.dtype == (jnp.bfloat16 if dtype == "bfloat16" else None) == models.model_dtype(dtype)
    )


def test_facts_and_parts(tfds_root):
    config = TINY.replace(data_dir=str(tfds_root), validation=0.1)
    built = experiment.build(config)
    facts = built.facts
    assert facts.counts == {"train": 180, "validation": 20, "test": 50}
    assert facts.class_names == ("class 0", "class 1", "class 2")
    assert facts.image_shape == (8, 8, 3)
    dataset = catalogue.open_dataset("tiny", str(tfds_root))
    images, summary = contents.decoded(dataset.train)
    test = contents.summary(dataset.test)
    own, held_out = order.split(summary.labels, 0.1, 0)
    mean = images[own].mean((0, 1, 2), dtype=np.float64)
    std = images[own].std((0, 1, 2), dtype=np.float64)
    np.testing.assert_allclose(facts.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(facts.std, std, rtol=1e-12)
    assert (built.steps_per_epoch, built.program.is_resident, built.layout.mode) == (
        11,
        True,
        "jit",
    )
    assert facts.digest == contents.Contents(None, summary, test).digest(facts.class_names)
    assert facts.test_digest == test.digest() != summary.digest()
    seen = np.concatenate([item["image"] for item in built.items(0, 11)])
    assert len(set(seen.tolist())) == 176 and not set(seen.tolist()) & set(held_out.tolist())
    first = jax.device_get(built.start().state)
    for seed, same in ((0, True), (1, False)):
        other = jax.device_get(experiment.build(config.replace(seed=seed)).start().state)
        kernels = [state.params["Dense_0"]["kernel"] for state in (first, other)]
        assert np.array_equal(*kernels) is same


@pytest.mark.parametrize("name", ["cnn", "mlp", "softmax_regression"])
@pytest.mark.parametrize(
    ("head", "loss", "built"),
    [
        ("auto", "cross_entropy", "linear"),
        ("auto", "cosface,margin=0.2", "cosine"),
        ("auto", "ldam", "cosine"),
        ("auto", "own_loss_here.loss", "linear"),
        ("auto", "own_loss_here.on_cosines", "cosine"),
        ("linear", "arcface", "linear"),
        ("cosine", "mse", "cosine"),
    ],
)
def test_the_head_fits_the_loss(name, head, loss, built, tmp_path, monkeypatch):
    own = (
        "def loss(logits, labels): return logits[:, 0]\ndef on_cosines(logits, labels): return "
        "logits[:, 0]\n"
    )
    (tmp_path / "own_loss_here.py").write_text(own + "on_cosines.head = 'cosine'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = name if head == "auto" else f"{name},head={head}"
    model: Any = parts.resolve(Recipe.of(model=text, loss=loss)).build_model(5)
    assert (model.head, model.num_classes) == (built, 5)


def test_the_loss_is_told_how_many_images_each_class_has(tfds_root):
    config = TINY.replace(data_dir=str(tfds_root), loss="ldam+class_balanced")
    facts = experiment.build(config).facts
    _, summary = contents.decoded(catalogue.open_dataset("tiny", str(tfds_root)).train)
    own, _ = order.split(summary.labels, config.recipe.validation, config.recipe.split_seed)
    assert facts.class_counts == tuple(np.bincount(summary.labels[own]).tolist())
    assert sum(facts.class_counts) == 180


def test_what_cannot_be_built(tfds_root):
    def build(**fields):
        return failure(experiment.build, TINY.replace(data_dir=str(tfds_root), **fields))

    assert "--batch-size 190 is larger than the 180 training images" in build(batch_size=190)
    assert "did you mean 'tiny'" in build(dataset="tinyy")
    assert "does not fit images of (8, 8, 3)" in build(model="cnn,widths=[2,2,2,2]")
    assert "widths must name at least one convolution" in build(model="cnn,widths=[]")
    assert "unknown pool 'min'" in build(model="cnn,pool=min")
    assert "does not divide" in build(devices=3)
    assert "padding must be smaller than the image, 8 pixels, got 8" in build(
        augment="crop,padding=8"
    )
    assert "unknown mode 'wrap'" in build(augment="crop,mode=wrap")
    assert "warmup must be at most the run, 10 epochs, got 10.5" in build(
        schedule="cosine,warmup=10.5"
    )
    assert "nesterov is a form of momentum" in build(optimizer="sgd,momentum=0,nesterov=true")
    assert "muon is for convolution kernels" in build(optimizer="muon")
    assert "compares views of an image" in build(loss="jensen_shannon")
    assert "takes no view_logits" in build(augment="views+flip")
    assert "unknown loss" in build(loss="nothing")
    assert "scale must lie in (0, inf)" in build(loss="ldam,scale=-1")
    assert "--teacher RUN names the run folder of one" in build(loss="distillation")
    assert "is no run folder" in build(loss="distillation", teacher=str(tfds_root))
    assert "cross_entropy does not" in build(teacher=str(tfds_root))


def test_the_number_of_images_is_the_same_under_every_seed(tfds_root):
    config = TINY.replace(dataset="tiny+user_parts.without_seed")
    assert failure(experiment.build, config, None, [0, 1]) == (
        "tiny+user_parts.without_seed leaves 179 images under seed 1 and 180 under 0; their number "
        "must not depend on the seed"
    )
    assert experiment.build(config, seeds=[0, 0]).facts.counts["train"] == 180


@pytest.mark.parametrize(
    ("platform", "formulation"), [("cpu", "blocked"), ("gpu", "native"), ("tpu", "native")]
)
def test_the_network_convolves_as_the_mesh_s_devices_like(
    platform, formulation, tfds_root, monkeypatch
):
    """Whatever the default backend is, which is cpu here."""
    mesh: Any = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]))
    assert devices.Layout("jit", mesh).formulation == formulation

    monkeypatch.setattr(devices.Layout, "platform", platform)
    with jax.numpy_dtype_promotion("standard"):
        built = experiment.build(
            Config.of(dataset="tiny", model="cnn,widths=[2],hidden=[3]", batch_size=20)
        )
    assert built.program.model.conv.formulation == formulation


@pytest.mark.slow
def test_trained_in_memory_is_the_experiment_fitted(tfds_root, capsys):
    config = TINY.replace(epochs=2)
    with jax.numpy_dtype_promotion("standard"):
        built, progress = run.in_memory(config, Console("lines"))
        _, quiet = run.in_memory(config)
        _, both = run.in_memory(config, seeds=[0, 1])
    assert int(progress.state.step) == 2 * built.steps_per_epoch
    assert [row["epoch"] for row in progress.history] == [1, 2]
    assert [line[:9] for line in capsys.readouterr().out.splitlines()] == ["epoch 1/2", "epoch 2/2"]
    jax.tree.map(np.testing.assert_array_equal, progress.state.params, quiet.state.params)
    assert np.shape(both.history[-1]["validation_accuracy"]) == (2,)
    np.testing.assert_allclose(
        both.history[-1]["train_loss"][0], progress.history[-1]["train_loss"], rtol=1e-5
    )


def test_images_that_memory_does_not_hold_are_decoded_into_a_file(
    tfds_root, tmp_path, monkeypatch, capsys
):
    """200 images of 8 x 8 x 3 are 38,400 bytes; a batch of 16 is 3 kB, of which 16 may wait."""
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "cache"))
    config = TINY.replace(data_dir=str(tfds_root), progress="off", tensorboard=False, epochs=1)
    small = experiment.build(config)
    assert run.describe_feed(small) == "resident"
    assert not list((tmp_path / "cache").glob("*.rows"))
    asked = experiment.build(config.replace(feed="mapped"))
    (file,) = (tmp_path / "cache").glob("*.rows")
    assert run.describe_feed(asked).startswith(f"mapped from {file}")
    file.unlink()
    monkeypatch.setattr(feeds, "RESIDENT_LIMIT", 38_399)
    limited = experiment.build(config.replace(decoded_limit=38_399 / 2**30))
    ahead = "up to 0 MB of batches ahead"
    assert run.describe_feed(limited) == f"streaming, {ahead}"
    built = experiment.build(config)
    assert file.stat().st_size == 38_400
    assert run.describe_feed(built) == f"mapped from {file} (0.0 GB), {ahead}"
    assert built.facts == small.facts and built.feed.ahead == 16 * 16 * 192
    for streamed in (limited, built):
        for item, wanted in zip(streamed.items(0, 11), small.items(0, 11), strict=True):
            np.testing.assert_array_equal(
                item["image"].reshape(16, -1), small.device_images[wanted["image"]]
            )
    for wanted in (small.data, limited.data):
        pair = zip(built.data.read([7, 3]).values(), wanted.read([7, 3]).values(), strict=True)
        assert all(np.array_equal(*both) for both in pair)
    several = experiment.build(config, seeds=[0, 1])
    assert several.feed.ahead == 2 * built.feed.ahead
    monkeypatch.setattr(feeds, "READ_AHEAD", 8 * 16 * 192)  # the memory is shared by the seeds
    assert experiment.build(config).feed.ahead == 8 * 16 * 192
    assert experiment.build(config, seeds=[0, 1]).feed.ahead == 8 * 16 * 192
    for feed, wanted in (("streaming", "streaming, "), ("mapped", "mapped from ")):
        asked = experiment.build(config.replace(feed=feed))
        assert run.describe_feed(asked).startswith(wanted)
    with jax.numpy_dtype_promotion("standard"):
        run.in_folder(config, tmp_path / "run", Console("off"))
    assert f"images to train on, 20 to validate, mapped from {file} (" in capsys.readouterr().out
    versions = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert versions["feed"] == "streaming"  # so that going on with that is no change
    message = failure(experiment.build, config.replace(feed="resident", workers=1))
    assert message.endswith("take --feed streaming or mapped")


@pytest.mark.slow
def test_a_start_compiles_four_programs(tfds_root, caplog):
    """Each costs tracing, lowering and a look into the cache; jnp functions outside of them would
    be programs too.
    """
    config = Config.of(dataset="tiny", model="cnn,widths=[2],hidden=[3]", batch_size=20)
    jax.clear_caches()
    with jax.numpy_dtype_promotion("standard"), jax.log_compiles(), caplog.at_level("WARNING"):
        built = experiment.build(config)
        items = list(built.items(0, built.dispatch_steps))
        jax.block_until_ready(built.advance(built.start(), items).totals)
    compiled = re.findall(r"Finished XLA compilation of jit\((\w+)\)", caplog.text)
    assert compiled == ["_keys", "_initial", "fold_in", "_steps"]
