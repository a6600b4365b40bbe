"""A config, devices and facts about the data -> the compiled train step, whether or not data and
devices are here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from cnnlab import augment
from cnnlab.config import Config
from cnnlab.data import feed as feeds
from cnnlab.models.convolution import Convolution
from cnnlab.parts import Parts
from cnnlab.training import devices, network
from cnnlab.training.devices import AXIS, SEEDS, SHARED
from cnnlab.training.step import Objective, train_step, zero_totals


@dataclass(frozen=True)
class Facts:
    """What a step depends on of its data.

    Attributes:
      image_shape: (H, W, C).
      mean, std: float[C], of pixels in 0..255.
      class_counts: int[K], images of each class that are trained on.
      resident: images that every device holds; None when they are streamed.
      mirror: whether a mirrored image is of the same class.
    """

    image_shape: tuple[int, ...]
    mean: np.ndarray
    std: np.ndarray
    class_counts: np.ndarray
    resident: int | None
    mirror: bool = True


@dataclass(frozen=True)
class Program:
    """A train step and what it is made of.

    Attributes:
      layout: the devices.
      seeds: how many networks it trains; None for one, whose state has no leading axis.
      model: linen module.
      tx: optimizer.
      objective: the loss.
      steps_per_epoch: full batches among the training images.
      dispatch_steps: the most steps that one call takes.
      each: the spec of what every seed has of its own.
      step: (state, totals, data, items, count, keys, rates) -> state, totals after `count` steps;
        compiled.
      arguments: () -> what `step` takes, as shapes with shardings.
    """

    layout: devices.Layout
    seeds: int | None
    model: Any
    tx: Any
    objective: Objective
    steps_per_epoch: int
    dispatch_steps: int
    each: PartitionSpec
    step: Any
    arguments: Callable[[], tuple[Any, ...]]


def build(
    config: Config,
    parts: Parts,
    layout: devices.Layout,
    facts: Facts,
    seeds: int | None = None,
    teacher: Callable | None = None,
    whole: bool = False,
) -> Program:
    """The train step of a configuration.

    Args:
      config: of the run.
      parts: of it.
      layout: the devices, which may be those of a machine elsewhere.
      facts: about the data.
      seeds: train as many networks together; None: one.
      teacher: images in 0..255 -> a teacher's logits.
      whole: make one dispatch of all steps of the run.

    Raises:
      InputError: whatever in it cannot be done.
    """
    num_classes = len(facts.class_counts)
    steps_per_epoch = int(facts.class_counts.sum()) // config.batch_size
    mixed = parts.check_pipeline(num_classes, facts.image_shape, config.batch_size, facts.mirror)
    label_dtypes = ["float32", "int32"] if mixed else ["int32"]  # validation brings ids
    loss = parts.build_loss(num_classes, facts.class_counts, label_dtypes)
    objective = Objective(
        loss, parts.loss_asks, steps_per_epoch * config.epochs, steps_per_epoch, teacher
    )
    model = parts.build_model(
        num_classes, config.compute_dtype, Convolution(layout.formulation), layout.axis_name
    )
    tx = network.build_optimizer(config, parts, steps_per_epoch)
    mean, std = facts.mean, facts.std
    pure = functools.partial(
        train_step,
        apply_fn=network.apply_for_training(model, "features" in parts.loss_asks),
        objective=objective,
        prepare=prepare_fn(parts.pipeline(num_classes, layout.axis_name, facts.mirror), mean, std),
        pixels=lambda images: augment.pixels(images, *network.statistics(mean, std)),
        loss_scale=1024.0 if config.compute_dtype == "float16" else 1.0,
    )

    # On CPU devices that each train seeds of their own, four steps at once spare three of four
    # waits for the slower one (4 seeds on two cores: 0.9 of one seed's images a second, then 1.0);
    # alone a seed gains nothing.
    at_once = 32 if layout.platform != "cpu" else 1 if seeds is None else 4
    at_once = config.dispatch_steps or (1 if facts.resident is None else at_once)
    at_once = min(
        at_once, steps_per_epoch, config.checkpoint_steps or steps_per_epoch
    )  # no dispatch is longer
    if whole:
        at_once = steps_per_epoch * config.epochs
    fetch = (
        feeds.as_read
        if facts.resident is None
        else functools.partial(feeds.gathered, facts.image_shape)
    )

    def fed_steps(state, totals, data, items, count, key, rate, *, axis_name):
        tx = network.build_optimizer(
            config, parts, steps_per_epoch, rate
        )  # the rate is data: one program for all of them

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
        key = jax.eval_shape(
            lambda: jax.random.split(jax.random.key(0), leading) if leading else jax.random.key(0)
        )
        wanted = network.init_images(model)
        seen = min(wanted, facts.resident or wanted) or 1
        images = jax.ShapeDtypeStruct((seen, *facts.image_shape), jnp.float32)
        initial = lambda key, images: network.initial_state(
            model, tx, key, facts.image_shape, images
        )
        state = jax.eval_shape(initial, key, images)
        totals = jax.eval_shape(functools.partial(zero_totals, seeds=leading))
        of = lambda dtype, *shape: jax.ShapeDtypeStruct(
            (*leading, at_once, config.batch_size, *shape), dtype
        )
        items = {"image": of(jnp.int32), "label": of(jnp.int32)}
        if facts.resident is None:
            items |= {"image": of(jnp.uint8, *facts.image_shape), "index": of(jnp.int32)}
        flat = facts.resident, math.prod(facts.image_shape)
        data = jax.ShapeDtypeStruct(flat, jnp.uint8) if facts.resident else ()
        rate = jax.ShapeDtypeStruct(leading, jnp.float32)
        shapes = (state, totals, data, items, jax.ShapeDtypeStruct((), jnp.int32), key, rate)
        place = lambda spec: (
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=NamedSharding(layout.mesh, spec)
            )
        )
        return tuple(
            jax.tree.map(place(spec), tree) for tree, spec in zip(shapes, specs, strict=True)
        )

    return Program(
        layout,
        seeds,
        model,
        tx,
        objective,
        steps_per_epoch,
        at_once,
        each,
        layout.compile(fed_steps, specs, each, donate=(0,)),
        arguments,
    )


def prepare_fn(
    operations: Sequence[augment.Operation], mean: np.ndarray, std: np.ndarray
) -> Callable:
    """(batch, key of the step, key of the run, axis_name) -> the batch normalised, and augmented by
    the operations.
    """

    def prepare(
        batch: augment.Batch, key: jax.Array, run_key: jax.Array, axis_name: str | None
    ) -> augment.Batch:
        images = augment.normalise(batch["image"], *network.statistics(mean, std))
        return augment.apply(operations, batch | {"image": images}, key, run_key, axis_name)

    return prepare
