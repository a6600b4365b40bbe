"""Every object that is not built in is held against the contract of its kind before training."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cnnlab
from cnnlab.errors import InputError
from cnnlab.metrics import Metric

SMALL = {"batch_size": 20, "epochs": 1, "validation": 0.0, "devices": 1}


@pytest.fixture(autouse=True)
def lenient_types():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        yield


def arrays():
    """60 images in 3 classes."""
    labels = np.arange(60) % 3
    images = np.zeros((60, 8, 8, 3), np.uint8) + labels[:, None, None, None].astype(np.uint8)
    return {"train": (images[:40], labels[:40]), "test": (images[40:], labels[40:])}


def failure(**objects) -> str:
    with pytest.raises(InputError) as error:
        cnnlab.train(**{"data": arrays(), "model": "mlp,hidden=[4]"} | SMALL | objects)
    assert len(str(error.value).splitlines()) == 1, error.value
    return str(error.value)


def local_modules() -> SimpleNamespace:
    """Modules as a script or a notebook has them: without a path to find them by."""

    class Logits(nn.Module):
        """As many logits as it is asked for, whatever the classes."""

        count: int

        @nn.compact
        def __call__(self, images, *, train):
            return nn.Dense(self.count)(images.reshape(len(images), -1))

    class WithoutTrain(nn.Module):
        @nn.compact
        def __call__(self, images):
            return nn.Dense(3)(images.reshape(len(images), -1))

    class Flat(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            return nn.Dense(3)(images.reshape(-1))

    class Pair(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            logits = nn.Dense(3)(images.reshape(len(images), -1))
            return logits, logits

    class Caching(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            self.variable("cache", "count", lambda: jnp.zeros(()))
            return nn.Dense(3)(images.reshape(len(images), -1))

    class Scaled(nn.Module):
        scale: np.ndarray | None = None

        @nn.compact
        def __call__(self, images, *, train):
            return nn.Dense(3)(images.reshape(len(images), -1) * self.scale)

    return SimpleNamespace(**locals())


def local_functions() -> SimpleNamespace:
    """Functions without a path."""

    def refuse(*_, **__):
        raise ValueError("mine\nand more")

    def vector_schedule(peak):
        return lambda step: peak * jnp.ones(3)

    def masked(learning_rate):
        return optax.masked(optax.sgd(learning_rate), {"a": True})

    def other_updates(updates, state, params=None):
        return jnp.ones(3), state

    def halved(keys, batch):
        return batch | {"index": batch["index"][::2]}

    return SimpleNamespace(**locals())


def local_averages() -> SimpleNamespace:
    """Averages without a path."""

    def no_function(total_steps):
        return 0.5

    def growing_share(total_steps):
        return lambda step: step + 1.0

    def negative_share(total_steps):
        return lambda step: 0.5 - step

    def python_share(total_steps):
        return lambda step: 1.0 if step < 3 else 0.5

    def share_of_each_class(total_steps):
        return lambda step: jnp.ones(3)

    return SimpleNamespace(**locals())


NETS = local_modules()
BAD = local_functions()
SHARES = local_averages()


@pytest.mark.parametrize(
    ("setting", "thing", "words"),
    [
        ("model", NETS.Logits(5), "model 'object' must return logits float32[2, 3] for two images"),
        ("model", NETS.Logits(2), "model 'object' must return logits float32[2, 3] for two images"),
        ("model", NETS.Flat(), "model 'object' must return logits float32[2, 3] for two images"),
        ("model", NETS.Pair(), "model 'object' must return logits float32[2, 3] for two images"),
        ("model", NETS.WithoutTrain(), "model 'object' fails on images float32[2, 8, 8, 3]: Type"),
        ("model", NETS.Caching(), "model 'object' has variables in ['cache']"),
        (
            "model",
            NETS.Scaled(np.ones(192)),
            "model 'object' cannot be hashed: put tuples in place",
        ),
        ("model", BAD.refuse, "model object: ValueError: mine (test_contracts.py"),
        ("loss", BAD.refuse, "loss 'object' fails on logits float32[2, 3] and labels int32[2]: Va"),
        ("optimizer", BAD.masked, "optimizer 'object' fails on the model's parameters: ValueError"),
        (
            "optimizer",
            optax.GradientTransformation(lambda params: (), BAD.other_updates),
            "optimizer 'object' fails on the model's parameters: ValueError",
        ),
        ("optimizer", BAD.refuse, "optimizer object: ValueError: mine (test_contracts.py"),
        ("schedule", BAD.vector_schedule, "schedule 'object' must give one rate for a step, got"),
        ("schedule", BAD.refuse, "schedule object: ValueError: mine (test_contracts.py"),
        ("average", BAD.refuse, "average object: ValueError: mine (test_contracts.py"),
        ("average", SHARES.no_function, "average 'object' must return step -> weight, got float"),
        (
            "average",
            SHARES.growing_share,
            "average 'object' must give weights in [0, 1], got 2 for",
        ),
        (
            "average",
            SHARES.negative_share,
            "average 'object' must give weights in [0, 1], got -0.5",
        ),
        (
            "average",
            SHARES.python_share,
            "average 'object' fails where JAX traces the step: Tracer",
        ),
        (
            "average",
            SHARES.share_of_each_class,
            "average 'object' must give one weight for a step,",
        ),
        ("augment", BAD.halved, "augmentation object must keep index int32[20], got int32[10]"),
        ("augment", BAD.refuse, "augmentation object fails on images float32[20, 8, 8, 3]: Value"),
        ("data", BAD.refuse, "data set object: ValueError: mine (test_contracts.py"),
        ("data", lambda: [1], "data set 'object' must return a Dataset or a dict of arrays"),
        ("metrics", [lambda: 5], "metric 'object' must be a cnnlab.metrics.Metric, got int"),
        ("metrics", [Metric("mine", BAD.refuse)], "metric 'object' fails on logits float32[2, 3]"),
        (
            "metrics",
            [Metric("mine", lambda logits, labels, mask: {"a": mask.sum()})],
            "metric 'object' must add up an array, got dict",
        ),
    ],
)
def test_an_object_that_does_not_keep_its_contract(setting, thing, words):
    assert failure(**{setting: thing}).startswith(words)
