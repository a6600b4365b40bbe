"""Settings at the edge of what is allowed: right results, or a line that says what is wrong."""

import math

import jax
import numpy as np
import pytest

import cnnlab
from cnnlab import losses
from cnnlab.config import Config
from cnnlab.errors import InputError
from cnnlab.parts import resolve
from cnnlab.training import experiment


def arrays(train=40, test=10, classes=2, shape=(8, 8, 3), value=None):
    """Noise, or images of one value; as many of each class."""

    def split(count):
        if value is not None:
            return np.full((count, *shape), value, np.uint8), np.arange(count) % classes
        images = np.random.default_rng(count).integers(0, 256, (count, *shape)).astype(np.uint8)
        return images, np.arange(count) % classes

    names = [f"c{number}" for number in range(classes)]
    return {"train": split(train), "test": split(test), "class_names": names}


def trained(data, **settings):
    small = {"model": "mlp,hidden=[4]", "epochs": 1, "batch_size": 10, "devices": 1}
    with jax.numpy_dtype_promotion("standard"):
        return cnnlab.train(data=data, **small | settings)


# Loss of one class: its probability is 1. mse: (1 - 1)^2.
@pytest.mark.slow
@pytest.mark.parametrize(
    "loss", ["cross_entropy", "focal", "mse", "gce", "hinge", "sparsemax_loss"]
)
def test_one_class_is_always_right(loss):
    run = trained(arrays(classes=1), loss=loss)
    assert run.test["accuracy"] == run.test["top5"] == 1 and run.test["nll"] == 0
    assert run.history[-1]["train_loss"] == 0


NAMES = [*losses.LOSSES, "cross_entropy+label_smoothing,alpha=0.1,convention=off_target"]


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_of_one_class_is_finite_or_refused(name):
    """Those that divide by what the other classes have are refused, and no other."""
    teacher = {"teacher": "somewhere"} if name == "distillation" else {}
    parts = resolve(Config.of(loss=name, **teacher).recipe)
    compares = {"normalized_cross_entropy", "normalized_focal", "active_passive", "squentropy"}
    if name in compares or "off_target" in name:
        with pytest.raises(InputError, match="compares classes, and the data set has only one"):
            parts.build_loss(1, np.array([7]))
    else:
        parts.build_loss(1, np.array([7]))
    parts.build_loss(2, np.array([7, 7]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "settings", "steps", "tested"),
    [
        pytest.param(arrays(3, 3, 3), {"batch_size": 1, "validation": 0.0}, 3, 3, id="one each"),
        pytest.param(arrays(40, 1), {}, 3, 1, id="one test image"),
        pytest.param(arrays(1, 1, 1), {"batch_size": 1, "validation": 0.0}, 1, 1, id="one image"),
        pytest.param(arrays(40), {"validation": 0.03}, 3, 10, id="one image held out"),
        pytest.param(arrays(shape=(1, 1, 1)), {"augment": "flip"}, 3, 10, id="one pixel"),
        pytest.param(arrays(value=0), {}, 3, 10, id="black"),
        pytest.param(
            arrays(value=255), {"model": "cnn,widths=[4],hidden=[4],batch_norm=true"}, 3, 10,
            id="white, normalised",
        ),
    ],
)  # fmt: skip
def test_few_or_equal_images_are_trained_on(data, settings, steps, tested):
    run = trained(data, **settings)
    assert run.history[-1]["step"] == steps and run.test["count"] == tested
    assert math.isfinite(run.history[-1]["train_loss"]) and math.isfinite(run.test["nll"])
    images, labels = data["test"]
    right = np.argmax(run.network.logits(images), -1) == labels
    assert run.test["accuracy"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize(
    ("data", "settings", "words"),
    [
        (arrays(), {"batch_size": 1000}, "--batch-size 1000 is larger than the 36 training images"),
        (arrays(), {"validation": 0.99}, "--validation 0.99 of 40 images leaves none to train on"),
        (arrays(), {"validation": 0.001}, "holds out none; take more, or 0"),
        (arrays(), {"epochs": 0}, "--epochs must lie in"),
        (arrays(shape=(1, 1, 3)), {"model": "cnn"}, "leaves? no pixel"),
        (arrays(shape=(8, 8, 3)), {"model": "airnet"}, "leaves? no pixel"),
        (arrays(test=0), {}, "test has no images"),
        (arrays(train=0), {}, "train has no images"),
    ],
)
def test_what_leaves_nothing_is_said(data, settings, words):
    with pytest.raises(InputError, match=words):
        trained(data, **settings)


MLP = "mlp,hidden=[4],batch_norm=true"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": MLP, "batch_size": 1}, ["with --batch-size 1 they are those of one image"]),
        (
            {"model": MLP, "batch_size": 4, "microbatches": 4},
            ["with --microbatches 4 they are those of one image"],
        ),
        ({"model": MLP, "batch_size": 2}, []),
        ({"model": "mlp,hidden=[4]", "batch_size": 1}, []),
    ],
)
def test_batch_statistics_of_one_image_are_announced(settings, words, tfds_root):
    config = Config.of(dataset="tiny", data_dir=str(tfds_root), devices=1, **settings)
    notices = experiment.build(config).notices()
    assert len(notices) == len(words)
    for word, notice in zip(words, notices, strict=True):
        assert word in notice
