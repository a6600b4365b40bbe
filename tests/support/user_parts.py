"""One part of each kind, as a user writes them in a file of their own."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnnlab import augment
from cnnlab.data.classes import keep
from cnnlab.data.corruptions import at_opening
from cnnlab.losses import cross_entropy, effective_number, focal, ldam, made_for_cosines
from cnnlab.metrics import Metric


class Net(nn.Module):
    """A network that knows nothing of cnnlab: a number of classes, and its own hyperparameters."""

    num_classes: int
    features: int = 8

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(self.features, (3, 3), strides=2)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


def penalised(logits, labels, alpha=0.1):
    return cross_entropy(logits, labels) + alpha * jnp.mean(logits**2, -1)


def heavy_ball(learning_rate, beta=0.8):
    return optax.sgd(learning_rate, momentum=beta)


def polynomial(peak, total_steps, power=2.0):
    return optax.polynomial_schedule(peak, 0.0, power, total_steps)


def tail(total_steps, start=0.5):
    return lambda step: 1 / jnp.maximum(step - int(start * total_steps) + 1, 1)


def jitter(keys, batch, strength=0.1):
    noise = jax.vmap(lambda key: jax.random.normal(key, batch["image"].shape[1:]))(keys)
    return batch | {"image": batch["image"] + strength * noise}


def in_pixels(keys, batch, mean, std, factor=0.5):
    """Darken images in pixels, of which it needs the mean and deviation."""
    darker = factor * augment.pixels(batch["image"], mean, std)
    return batch | {"image": augment.normalise(darker, mean, std)}


def shifted(keys, batch, mean=0.25):
    """A mean of its own, which no data set decides."""
    return batch | {"image": batch["image"] + mean}


def blocks(count=240, size=8):
    """Three classes of brightness."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    images = (
        rng.integers(0, 90, (count, size, size, 3)) + 80 * labels[:, None, None, None]
    ).astype(np.uint8)
    half = count // 2
    names = ["dark", "grey", "bright"]
    return {
        "train": (images[half:], labels[half:]),
        "test": (images[:half], labels[:half]),
        "class_names": names,
    }


def without(dataset, seed, label=0):
    """A corruption: one class is never seen in training."""
    kept = dataset.labels[dataset.positions] != label
    return dataclasses.replace(dataset, positions=dataset.positions[kept])


def without_seed(dataset, seed):
    """A corruption that leaves out as many images as the seed says."""
    return dataclasses.replace(dataset, positions=dataset.positions[seed:])


@at_opening
def without_first(dataset, seed):
    """A corruption of both splits."""
    return keep(dataset, range(1, dataset.num_classes))


@at_opening
def one_name(dataset, seed):
    return dataclasses.replace(dataset, class_names=dataset.class_names[:1])


@at_opening
def nothing(dataset, seed):
    return None


def smallest_first(logits, labels, mask):
    return jnp.sum(jnp.where(mask, jnp.argsort(logits, -1)[:, 0] != labels, 0), dtype=jnp.int32)


not_last = Metric("not_last", smallest_first, larger_is_better=True, margin=0.02)


def within(k=2):
    """A metric with a hyperparameter: the share of images whose class is among the k largest
    logits.
    """

    def hits(logits, labels, mask):
        own = jnp.take_along_axis(logits, labels[:, None], -1)
        return jnp.sum((jnp.sum(logits > own, -1) < k) & mask, dtype=jnp.int32)

    return Metric(f"top{k}_of_mine", hits, larger_is_better=True)


# What losses of papers ask for.


@made_for_cosines
def deferred_ldam(logits, labels, class_counts, epoch, start=160):
    """LDAM-DRW (Cao et al., 2019): LDAM, its classes weighted by their effective numbers from an
    epoch on.
    """
    weights = jnp.where(epoch >= start, jnp.asarray(effective_number(class_counts)), 1.0)
    return weights.astype(logits.dtype)[labels] * ldam(logits, labels, class_counts)


def focal_schedule(logits, labels, epoch, change=100):
    """Focal loss with gamma 5 before an epoch and 3 after it (Mukhoti et al., 2020: FLSD)."""
    return jnp.where(
        epoch < change, focal(logits, labels, gamma=5.0), focal(logits, labels, gamma=3.0)
    )


def faded(logits, labels, progress):
    """Cross-entropy that fades from 1 to 3 times its size over the run."""
    return (1 + 2 * progress) * cross_entropy(logits, labels)


def compact(logits, labels, features, weight=0.01):
    """Cross-entropy and a pull of the features towards zero."""
    return cross_entropy(logits, labels) + weight * jnp.sum(features**2, -1)


# Other forms of parts.


class Outer:
    class Inner:
        @staticmethod
        def deep(logits, labels, alpha=1):
            return alpha * cross_entropy(logits, labels)


class Scaled:
    """A loss as a class: made of its hyperparameters, called with logits and labels."""

    def __init__(self, factor=2):
        self.factor = factor

    def __call__(self, logits, labels, progress):
        return self.factor * (1 + progress) * cross_entropy(logits, labels)


def words(logits, labels, kinds=("a", "b"), flags=(True, False)):
    assert kinds == ("x", "y") and flags == (False, True)
    return cross_entropy(logits, labels)


@dataclasses.dataclass(frozen=True)
class Table:
    size: int


class Configured(nn.Module):
    """Its fields are no literals."""

    num_classes: int
    table: object = Table(2)
    kind: object = jnp.float32

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1))


class WithoutLayers(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, *, train):
        return (
            self.param("bias", nn.initializers.zeros, (1, self.num_classes))
            + images.mean((1, 2, 3))[:, None]
        )


def python_schedule(peak, total_steps):
    return lambda step: peak if step < total_steps / 2 else peak / 10


def vector_schedule(peak):
    return lambda step: peak * jnp.ones(3)


def python_rate(learning_rate):
    return optax.sgd(float(learning_rate(0)))


# Augmentations that do not keep their contract.


def shrunk(keys, batch):
    return batch | {"image": batch["image"][:, ::2, ::2]}


def halved(keys, batch):
    return batch | {"index": batch["index"][::2]}


def forgetful(keys, batch):
    return {"image": batch["image"], "label": batch["label"]}


def odd_labels(keys, batch):
    return batch | {"label": batch["label"].astype(jnp.float32)}


def of_features(logits, labels, features):
    return cross_entropy(logits, labels)


# Data to test on, and distortions of it.


def night(count=60, size=8, image_size=None):
    """The classes of `blocks` in the dark, with no images to train on."""
    side = image_size or size
    labels = np.arange(count) % 3
    images = np.random.default_rng(1).integers(0, 40, (count, side, side, 3))
    images += 25 * labels[:, None, None, None]
    return {
        "test": (images.astype(np.uint8), labels),
        "class_names": ["dark", "grey", "bright"],
    }


def inverted(image, rng):
    return 255 - image


def speckled(image, rng, amount=0.5):
    return np.where(rng.random(image.shape) < amount, np.uint8(255), image)


def cropped(image, rng):
    return image[1:]


def as_floats(image, rng):
    return image / 255


def fails_on_some(image, rng):
    if rng.random() < 0.1:
        raise KeyError("some image")
    return image
