"""A configuration -> data, model, loss, optimizer and compiled steps: what every experiment starts from."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnlab import augment, checkpoint, loop, models, optim, parallel, run_folder, train
from cnnlab.config import CHOICES, Config
from cnnlab.console import Console
from cnnlab.data import feed as feeds
from cnnlab.data import order, source
from cnnlab.errors import InputError, unknown
from cnnlab.losses.spec import loss_from_config, needs_teacher, on_cosines

# Colour images whose mirror image is another class, or none: digits and letters (by the start of the name).
NO_MIRROR = ("svhn", "mnist", "colored_mnist", "omniglot", "cmaterdb")


def build_model(config: Config, num_classes: int) -> Any:
    """The linen module of a configuration."""
    dtype = models.model_dtype(config.compute_dtype)
    head = config.head if config.head != "auto" else "cosine" if on_cosines(config.loss) else "linear"
    if config.model == "softmax_regression":
        return models.SoftmaxRegression(num_classes, dtype, head)
    dense = (config.hidden, config.batch_norm, config.dropout)
    if config.model == "mlp":
        return models.MLP(num_classes, *dense, config.activation, dtype, head)
    return models.CNN(num_classes, config.widths, *dense, config.pool, config.activation, dtype, head)


def build_optimizer(config: Config, steps_per_epoch: int) -> Any:
    """The Optax chain of a configuration, with its schedule."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    rate = optim.schedule(config.schedule, config.learning_rate, steps_per_epoch * config.epochs, warmup)
    return optim.optimizer(
        config.optimizer,
        rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
    )


def apply_for_training(model: Any) -> Callable:
    """(params, batch_stats, images float[B, H, W, C], key, axis_name) -> logits, new batch_stats."""

    def apply_fn(params, batch_stats, images, key, axis_name):
        logits, changed = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            axis_name=axis_name,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        return logits, changed.get("batch_stats", batch_stats)

    return apply_fn


def apply_for_evaluation(model: Any, mean: np.ndarray, std: np.ndarray) -> Callable:
    """(params, batch_stats, images uint8[B, H, W, C]) -> logits float32[B, K]."""

    def apply_fn(params, batch_stats, images):
        normal = augment.normalise(images, *_statistics(mean, std))
        return model.apply({"params": params, "batch_stats": batch_stats}, normal)

    return apply_fn


def _statistics(mean: np.ndarray, std: np.ndarray) -> tuple[jax.Array, jax.Array]:
    dtype = jnp.float64 if jax.config.read("jax_enable_x64") else jnp.float32
    return jnp.asarray(mean, dtype), jnp.asarray(std, dtype)


def teacher_fn(config: Config, dataset: source.Dataset) -> tuple[Callable, str]:
    """images float or uint8[B, H, W, C] in 0..255 -> {"teacher_logits": float32[B, K]}; and a digest of the weights.

    Raises:
      InputError: no run there, or one on other classes or images.
    """
    trained = load(Path(config.teacher or ""))
    theirs = trained.facts["class_names"], tuple(trained.facts["image_shape"])
    if theirs != (list(dataset.class_names), tuple(dataset.train.image_shape)):
        raise InputError(f"--teacher {config.teacher} was trained on other classes or images than {config.dataset}")
    # On the host: as constants of the step they go to whatever devices it is compiled for.
    params, batch_stats = jax.device_get((trained.state.params, trained.state.batch_stats))
    leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves((params, batch_stats))]
    weights = hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()
    return lambda images: {"teacher_logits": trained.apply_fn(params, batch_stats, images)}, weights


def flips(config: Config, channels: int) -> bool:
    """Whether training images are mirrored: as asked, or for colour images that are not digits or letters."""
    if config.flip != "auto":
        return config.flip == "on"
    return channels == 3 and not config.dataset.startswith(NO_MIRROR)


def prepare_fn(config: Config, mean: np.ndarray, std: np.ndarray, num_classes: int) -> Callable:
    """(key, batch, axis_name) -> augmented, normalised images float[B, H, W, C] and labels (mixup: distributions)."""
    mirrored = flips(config, len(mean))

    def prepare(key, batch, axis_name):
        images, labels = augment.normalise(batch["image"], *_statistics(mean, std)), batch["label"]
        keys = lambda place: parallel.example_keys(jax.random.fold_in(key, place), len(labels), axis_name)
        if mirrored:
            images = augment.flip(keys(0), images)
        if config.crop:
            images = augment.crop(keys(1), images, config.crop)
        if config.cutout:
            images = augment.cutout(keys(2), images, config.cutout)
        if config.mixup:
            targets = jax.nn.one_hot(labels, num_classes, dtype=images.dtype)
            return augment.mixup(jax.random.fold_in(key, 3), images, targets, config.mixup, axis_name)
        return images, labels

    return prepare


@dataclass(frozen=True)
class Experiment:
    """Everything a run needs, built from its configuration.

    Attributes:
      layout: the devices.
      state, totals: before the first step, placed.
      steps_per_epoch: full batches among the training images.
      step: (state, totals, item) -> state, totals; compiled.
      items: (first step, last step) -> what each step is fed.
      eval_step: (params, batch_stats, batch) -> metric sums; compiled.
      validate: state -> metrics of the held-out images; None where nothing is held out.
      test: the test split's batches.
      facts: JSON facts about the data: digest, class_names, mean, std, image_shape, counts.
      feed: resident or streaming.
    """

    layout: parallel.Layout
    state: train.TrainState
    totals: Any
    steps_per_epoch: int
    step: Callable
    items: Callable[[int, int], Iterator[Any]]
    eval_step: Callable
    validate: Callable[[train.TrainState], dict[str, Any]] | None
    test: Callable[[], Iterator[Any]]
    facts: dict[str, Any]
    feed: str


def build(config: Config, console: Console) -> Experiment:
    """Build the experiment that a configuration describes.

    Raises:
      InputError: whatever in it cannot be done.
    """
    layout = parallel.layout(config.parallel, config.devices, config.batch_size)
    dataset = source.open_dataset(config.dataset, config.data_dir, config.image_size)
    loss_from_config(config, dataset.num_classes, np.ones(dataset.num_classes))  # refuse it before the data is read
    teacher, teacher_digest = teacher_fn(config, dataset) if needs_teacher(config) else (lambda images: {}, None)
    side = min(dataset.train.image_shape[:2])
    if max(config.crop, config.cutout) >= side:
        raise InputError(
            f"--crop {config.crop} and --cutout {config.cutout} must be smaller than the image, {side} pixels"
        )
    images, summary, own, held_out, feed = _data(config, dataset, console)
    mean, std = summary.mean_std(own)
    steps_per_epoch = len(own) // config.batch_size
    class_counts = np.bincount(summary.labels[own], minlength=dataset.num_classes)
    loss_fn = loss_from_config(config, dataset.num_classes, class_counts)

    model = build_model(config, dataset.num_classes)
    key = jax.random.key(config.seed)
    tx = build_optimizer(config, steps_per_epoch)
    state = initial_state(model, tx, jax.random.fold_in(key, 0), dataset.train.image_shape)

    pure = functools.partial(
        train.train_step,
        apply_fn=apply_for_training(model),
        loss_fn=loss_fn,
        tx=tx,
        prepare=prepare_fn(config, mean, std, dataset.num_classes),
        given=lambda images: teacher(augment.pixels(images, *_statistics(mean, std))),
    )

    def fed_step(state, totals, data, item, key, *, axis_name):
        return pure(state, totals, feed.fetch(data, item), key, axis_name=axis_name)

    compiled = layout.compile(fed_step, batched=(False, False, False, True, False), donate=(0,))
    data, run_key = layout.place(feed.data), layout.place(jax.random.fold_in(key, 1))
    evaluation = functools.partial(
        train.eval_step, apply_fn=apply_for_evaluation(model, mean, std), loss_fn=loss_fn, given=teacher
    )
    eval_step = layout.compile(evaluation, batched=(False, False, True))
    read = dataset.train.read if images is None else lambda at: {"image": images[at], "label": summary.labels[at]}

    def validate(state: train.TrainState) -> dict[str, Any]:
        return loop.evaluate(eval_step, state, feeds.in_order(read, held_out, config.batch_size))

    facts = {
        "digest": summary.digest(),
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.train.image_shape),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "class_counts": class_counts.tolist(),
        "teacher_digest": teacher_digest,
        "counts": {"train": len(own), "validation": len(held_out), "test": len(dataset.test)},
    }
    return Experiment(
        layout=layout,
        state=layout.place(state),
        totals=layout.place(train.zero_totals()),
        steps_per_epoch=steps_per_epoch,
        step=lambda state, totals, item: compiled(state, totals, data, item, run_key),
        items=feed.items,
        eval_step=eval_step,
        validate=validate if len(held_out) else None,
        test=lambda: feeds.in_order(dataset.test.read, np.arange(len(dataset.test)), config.batch_size),
        facts=facts,
        feed="streaming" if images is None else "resident",
    )


def initial_state(model: Any, tx: Any, key: jax.Array, image_shape: tuple[int, ...]) -> train.TrainState:
    """The state before the first step.

    Raises:
      InputError: the images are too small for the model.
    """
    try:
        variables = jax.jit(model.init)(key, jnp.zeros((1, *image_shape)))
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"the model does not fit images of {image_shape}: {str(error).splitlines()[0]}") from error
    # Newer JAX initialises a layer on nothing without a word; the network would not see the images.
    if not all(leaf.size for leaf in jax.tree.leaves(variables)):
        raise InputError(
            f"the model does not fit images of {image_shape}: pooling leaves no pixel; take fewer --widths"
        )
    return train.create_state(variables, tx)


@dataclass(frozen=True)
class Trained:
    """A run folder's network with its weights.

    Attributes:
      config: of the run.
      facts: about its data (`Experiment.facts`).
      apply_fn: (params, batch_stats, images uint8[B, H, W, C]) -> logits float32[B, K].
      state: the weights.
      step: after how many steps.
    """

    config: Config
    facts: dict[str, Any]
    apply_fn: Callable
    state: train.TrainState
    step: int


def load(path: Path, weights: str = "last") -> Trained:
    """The network of a run folder, on one device; the run may still be going on.

    Args:
      path: the run folder.
      weights: last or best (on validation).

    Raises:
      InputError: no run there, no checkpoint yet, or none that verifies.
    """
    if weights not in CHOICES["test_on"]:
        raise unknown("weights", weights, CHOICES["test_on"])
    config, facts = run_folder.read(path)
    model = build_model(config, len(facts["class_names"]))
    tx = build_optimizer(config, facts["counts"]["train"] // config.batch_size)
    state = initial_state(model, tx, jax.random.key(0), tuple(facts["image_shape"]))
    with checkpoint.Checkpoints(path / "checkpoints", read_only=True) as checkpoints:
        found = checkpoints.restore(
            {"state": state, "totals": train.zero_totals()}, which="latest" if weights == "last" else "best"
        )
    if found is None:
        raise InputError(f"{path} holds no checkpoint yet")
    if weights == "best" and found.metric is None:
        raise InputError(f"{path} holds no checkpoint with a validation accuracy, so none is best; use --weights last")
    apply_fn = apply_for_evaluation(model, np.array(facts["mean"]), np.array(facts["std"]))
    return Trained(config, facts, apply_fn, found.tree["state"], found.step)


def _data(config: Config, dataset: source.Dataset, console: Console):
    """Decoded training images (None when streaming), their summary, the two sides of the split, and the feed."""
    count = len(dataset.train)
    if count * np.prod(dataset.train.image_shape) <= feeds.RESIDENT_LIMIT and config.feed != "streaming":
        resident = True
    else:
        resident = config.feed == "resident"
    track = console.track(f"decoding {dataset.train.name}", "reads")
    if resident:
        images, summary = source.decoded(dataset.train, track)
    else:
        images, summary = None, source.summary(dataset.train, track)
    own, held_out = order.split(summary.labels, config.validation, config.split_seed)
    if len(own) < config.batch_size:
        raise InputError(f"--batch-size {config.batch_size} is larger than the {len(own)} training images")
    if config.validation and not len(held_out):
        raise InputError(f"--validation {config.validation} of {count} images holds out none; take more, or 0")
    if images is None:
        feed = feeds.streaming(dataset.train, own, config.seed, config.batch_size, config.workers)
    else:
        feed = feeds.resident(images, summary.labels, own, config.seed, config.batch_size)
    return images, summary, own, held_out, feed
