"""A config, devices and facts about the data -> the compiled train step, whether or not data and devices are here."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from cnnlab import augment, network, parallel, train
from cnnlab.config import Config
from cnnlab.data import feed as feeds
from cnnlab.losses.spec import loss_from_config
from cnnlab.parallel import AXIS, SEEDS, SHARED

FITTED = 5_000  # training images to which airnet's first layer is fitted
# Colour images whose mirror image is another class, or none: digits and letters (by the start of the name).
NO_MIRROR = ("svhn", "mnist", "colored_mnist", "omniglot", "cmaterdb")


@dataclass(frozen=True)
class Facts:
    """What a step depends on of its data.

    Attributes:
      image_shape: (H, W, C).
      mean, std: float[C], of pixels in 0..255.
      class_counts: int[K], images of each class that are trained on.
      resident: images that every device holds; None when they are streamed.
    """

    image_shape: tuple[int, ...]
    mean: np.ndarray
    std: np.ndarray
    class_counts: np.ndarray
    resident: int | None


@dataclass(frozen=True)
class Program:
    """A train step and what it is made of.

    Attributes:
      layout: the devices.
      seeds: how many networks it trains; None for one, whose state has no leading axis.
      model: linen module.
      tx: optimizer.
      loss_fn: (logits, labels, **given) -> float32[B].
      steps_per_epoch: full batches among the training images.
      dispatch_steps: the most steps that one call takes.
      each: the spec of what every seed has of its own.
      step: (state, totals, data, items, count, keys, rates) -> state, totals after `count` steps; compiled.
      arguments: () -> what `step` takes, as shapes with shardings.
    """

    layout: parallel.Layout
    seeds: int | None
    model: Any
    tx: Any
    loss_fn: Callable
    steps_per_epoch: int
    dispatch_steps: int
    each: PartitionSpec
    step: Any
    arguments: Callable[[], tuple[Any, ...]]


def build(
    config: Config,
    layout: parallel.Layout,
    facts: Facts,
    seeds: int | None = None,
    teacher: Callable = lambda images: {},
    whole: bool = False,
) -> Program:
    """The train step of a configuration.

    Args:
      config: of the run.
      layout: the devices, which may be those of a machine elsewhere.
      facts: about the data.
      seeds: train as many networks together; None: one.
      teacher: images in 0..255 -> what the loss takes beside logits and labels.
      whole: make one dispatch of all steps of the run.

    Raises:
      InputError: whatever in it cannot be done.
    """
    num_classes = len(facts.class_counts)
    steps_per_epoch = int(facts.class_counts.sum()) // config.batch_size
    loss_fn = loss_from_config(config, num_classes, facts.class_counts)
    model = network.build_model(config, num_classes, layout.formulation)
    tx = network.build_optimizer(config, steps_per_epoch)
    pure = functools.partial(
        train.train_step,
        apply_fn=network.apply_for_training(model),
        loss_fn=loss_fn,
        prepare=prepare_fn(config, facts.mean, facts.std, num_classes),
        given=lambda images: teacher(augment.pixels(images, *network.statistics(facts.mean, facts.std))),
        loss_scale=1024.0 if config.compute_dtype == "float16" else 1.0,
    )

    # On CPU devices that each train seeds of their own, four steps at once spare three of four waits for the slower one
    # (4 seeds on two cores: 0.9 of one seed's images a second, then 1.0); alone a seed gains nothing.
    at_once = 32 if layout.platform != "cpu" else 1 if seeds is None else 4
    at_once = config.dispatch_steps or (1 if facts.resident is None else at_once)
    at_once = min(at_once, steps_per_epoch, config.checkpoint_steps or steps_per_epoch)  # no dispatch is longer
    if whole:
        at_once = steps_per_epoch * config.epochs
    fetch = feeds.as_read if facts.resident is None else functools.partial(feeds.gathered, facts.image_shape)

    def fed_steps(state, totals, data, items, count, key, rate, *, axis_name):
        tx = network.build_optimizer(config, steps_per_epoch, rate)  # the rate is data: one program for all of them

        def one(i, carry):
            item = jax.tree.map(lambda x: x[i], items)
            return pure(carry[0], carry[1], fetch(data, item), key, tx=tx, axis_name=axis_name)

        if at_once == 1:
            return one(0, (state, totals))
        return jax.lax.fori_loop(0, at_once if whole else count, one, (state, totals))

    seeded = () if seeds is None else (SEEDS,)
    each, items_spec = PartitionSpec(*seeded), PartitionSpec(*seeded, None, AXIS)
    specs = (each, each, SHARED, items_spec, SHARED, each, each)

    def arguments() -> tuple[Any, ...]:
        leading = () if seeds is None else (seeds,)
        key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), leading) if leading else jax.random.key(0))
        fitted = min(FITTED, facts.resident or FITTED) if config.model == "airnet" else 1
        images = jax.ShapeDtypeStruct((fitted, *facts.image_shape), jnp.float32)
        initial = lambda key, images: network.initial_state(model, tx, key, facts.image_shape, images)
        state = jax.eval_shape(initial, key, images)
        totals = jax.eval_shape(functools.partial(train.zero_totals, seeds=leading))
        of = lambda dtype, *shape: jax.ShapeDtypeStruct((*leading, at_once, config.batch_size, *shape), dtype)
        items = {"image": of(jnp.int32), "label": of(jnp.int32)}
        if facts.resident is None:
            items["image"] = of(jnp.uint8, *facts.image_shape)
        if config.flip == "alternating":
            items["mirrored"] = of(jnp.bool_)
        flat = facts.resident, math.prod(facts.image_shape)
        data = jax.ShapeDtypeStruct(flat, jnp.uint8) if facts.resident else ()
        rate = jax.ShapeDtypeStruct(leading, jnp.float32)
        shapes = (state, totals, data, items, jax.ShapeDtypeStruct((), jnp.int32), key, rate)
        place = lambda spec: (
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(layout.mesh, spec))
        )
        return tuple(jax.tree.map(place(spec), tree) for tree, spec in zip(shapes, specs, strict=True))

    return Program(
        layout, seeds, model, tx, loss_fn, steps_per_epoch, at_once, each,
        layout.compile(fed_steps, specs, each, donate=(0,)), arguments,
    )  # fmt: skip


def flips(config: Config, channels: int) -> bool:
    """Whether training images are mirrored: as asked, or for colour images that are not digits or letters."""
    if config.flip != "auto":
        return config.flip == "on"
    return channels == 3 and not config.dataset.startswith(NO_MIRROR)


def prepare_fn(config: Config, mean: np.ndarray, std: np.ndarray, num_classes: int) -> Callable:
    """(key, batch, axis_name) -> augmented, normalised images float[B, H, W, C] and labels (mixup: distributions)."""
    mirrored = flips(config, len(mean))

    def prepare(key, batch, axis_name):
        images, labels = augment.normalise(batch["image"], *network.statistics(mean, std)), batch["label"]
        keys = lambda place: parallel.example_keys(jax.random.fold_in(key, place), len(labels), axis_name)
        if config.flip == "alternating":
            images = augment.mirror(images, batch["mirrored"])
        elif mirrored:
            images = augment.flip(keys(0), images)
        if config.crop:
            images = augment.crop(keys(1), images, config.crop, config.crop_padding)
        if config.cutout:
            images = augment.cutout(keys(2), images, config.cutout)
        if config.mixup:
            targets = jax.nn.one_hot(labels, num_classes, dtype=images.dtype)
            return augment.mixup(jax.random.fold_in(key, 3), images, targets, config.mixup, axis_name)
        return images, labels

    return prepare
