"""A configuration -> data, loss and compiled steps: what every experiment starts from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from cnnlab import augment, cache, loop, network, parallel, program, run_folder, train
from cnnlab.config import Config
from cnnlab.console import Console
from cnnlab.data import conditions, order, source
from cnnlab.data import feed as feeds
from cnnlab.errors import InputError
from cnnlab.losses.spec import loss_from_config, needs_teacher
from cnnlab.parallel import AXIS, BATCH, SEEDS


@dataclass(frozen=True)
class Experiment:
    """Everything a run needs, built from its configuration.

    Attributes:
      layout: the devices.
      state, totals: before the first step, placed; with seeds, each leaf has a leading axis for them.
      steps_per_epoch: full batches among the training images.
      step: (state, totals, list of items) -> state, totals after as many steps; compiled.
      dispatch_steps: the most items it takes.
      items: (first step, last step) -> what each step is fed.
      again: seeds -> the same experiment from the start with as many other seeds, nothing compiled anew.
      eval_step: (params, batch_stats, batch) -> metric sums; compiled.
      validate: state -> metrics of the held-out images; None where nothing is held out. A list of them with seeds.
      logits: (params, batch_stats, batch) -> float32[B, K]; compiled.
      test: the test split's batches.
      facts: JSON facts about the data: digest, class_names, mean, std, image_shape, counts.
      feed: resident or streaming.
    """

    layout: parallel.Layout
    state: train.TrainState
    totals: Any
    steps_per_epoch: int
    step: Callable
    dispatch_steps: int
    items: Callable[[int, int], Iterator[Any]]
    again: Callable[[Sequence[int]], Experiment]
    eval_step: Callable
    validate: Callable[[train.TrainState], Any] | None
    logits: Callable
    test: Callable[[], Iterator[Any]]
    facts: dict[str, Any]
    feed: str


def build(
    config: Config,
    console: Console,
    seeds: Sequence[int] | None = None,
    rates: Sequence[float] | None = None,
    whole: bool = False,
) -> Experiment:
    """Build the experiment that a configuration describes.

    Args:
      config: of the run.
      console: shows progress.
      seeds: train one network for each, all in one program, in place of the one of `config.seed`. Each takes the
        steps that it would take alone; the images are there once.
      rates: a learning rate for each of the seeds, in place of the one of `config`.
      whole: make one dispatch of all steps of the run.

    Raises:
      InputError: whatever in it cannot be done.
    """
    cache.keep_compilations()
    together = None if seeds is None else len(seeds)
    devices = layout(config, together)
    rows = devices.own(config.batch_size, AXIS)  # of a batch, that this process feeds
    network.run_keys(config, seeds)  # refuse them before the data is read
    dataset = source.open_dataset(config.dataset, config.data_dir, config.image_size)
    loss_from_config(config, dataset.num_classes, np.ones(dataset.num_classes))  # refuse it before the data is read
    teacher, teacher_digest = (
        network.teacher_fn(config, dataset, devices.formulation) if needs_teacher(config) else (lambda images: {}, None)
    )
    check_sizes(config, dataset.train.image_shape)
    images, summary, own, held_out, counts, feed_of = _data(config, dataset, console, devices)
    mean, std = summary.mean_std(own)  # of all training images, whichever of them are used: the same under conditions
    read = dataset.train.read if images is None else lambda at: {"image": images[at], "label": summary.labels[at]}
    patches = None
    if config.model == "airnet":  # fits its first layer to them, the same whatever the seed
        first = read(own[: program.FITTED])["image"]
        patches = augment.normalise(jnp.asarray(first), *network.statistics(mean, std))
    resident = None if images is None else len(images)
    about = program.Facts(dataset.train.image_shape, mean, std, counts, resident)
    built = program.build(config, devices, about, together, teacher, whole)
    model, each, at_once = built.model, built.each, built.dispatch_steps
    data = devices.place(feed_of(seeds).data)

    @functools.cache
    def evaluating(views: str) -> Callable:
        apply_fn = network.apply_for_evaluation(model, mean, std, views)
        evaluation = functools.partial(train.eval_step, apply_fn=apply_fn, loss_fn=built.loss_fn, given=teacher)
        return devices.compile(evaluation, (each, each, BATCH), each)

    apply_fn = network.apply_for_evaluation(model, mean, std, config.test_views)
    logits_fn = lambda params, batch_stats, batch, axis_name: apply_fn(params, batch_stats, batch["image"])
    logits = devices.compile(logits_fn, (each, each, BATCH), PartitionSpec(*each, AXIS))

    def validate(state: train.TrainState) -> Any:
        return loop.evaluate(
            evaluating("one"), state, feeds.in_order(read, held_out, config.batch_size, rows), seeds=together
        )

    facts = {
        "digest": summary.digest(),
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.train.image_shape),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "class_counts": counts.tolist(),
        "teacher_digest": teacher_digest,
        "counts": {"train": int(counts.sum()), "validation": len(held_out), "test": len(dataset.test)},
    }

    def begin(seeds: Sequence[int] | None, rates: Sequence[float] | None = None) -> Experiment:
        key = network.run_keys(config, seeds)
        if key.shape != (() if together is None else (together,)):
            raise InputError(f"as many seeds as before, {together}, can begin again, got {seeds}")
        fold = jax.vmap(jax.random.fold_in, (0, None)) if key.ndim else jax.random.fold_in
        state = network.initial_state(model, built.tx, fold(key, 0), dataset.train.image_shape, patches)
        peak = jnp.broadcast_to(jnp.asarray(config.learning_rate if rates is None else rates, float), key.shape)
        run_key, peak = devices.place(fold(key, 1), each), devices.place(peak, each)

        def step(state, totals, items):
            # a dispatch of fewer steps is filled up, so that one program serves all
            filled = [*items, *[items[-1]] * (at_once - len(items))]
            stacked = jax.tree.map(lambda *steps: np.stack(steps, len(each)), *filled)
            return built.step(state, totals, data, stacked, np.int32(len(items)), run_key, peak)

        return Experiment(
            layout=devices,
            state=devices.place(state, each),
            totals=devices.place(train.zero_totals(seeds=key.shape), each),
            steps_per_epoch=built.steps_per_epoch,
            step=step,
            dispatch_steps=at_once,
            items=feed_of(seeds).items,
            again=begin,
            eval_step=evaluating(config.test_views),
            validate=validate if len(held_out) else None,
            logits=logits,
            test=lambda: feeds.in_order(dataset.test.read, np.arange(len(dataset.test)), config.batch_size, rows),
            facts=facts,
            feed="streaming" if images is None else "resident",
        )

    return begin(seeds, rates)


def trained(
    config: Config, console: Console | None = None, seeds: Sequence[int] | None = None
) -> tuple[Experiment, loop.Progress]:
    """Build an experiment and train it to its end in memory, where nothing is to be kept but what is done with it next.

    Args:
      config: of the run.
      console: shows progress and a line an epoch; None shows nothing.
      seeds: as for `build`.

    Returns:
      The experiment, and its progress: the state after the last step, the metrics of each epoch.

    Raises:
      InputError: as `build`. Stopped, Diverged: as `loop.fit`, with nothing saved.
    """
    console = console or Console("off")
    experiment = build(config, console, seeds)
    return experiment, loop.fit(
        loop.Progress(experiment.state, experiment.totals, []),
        loop.Plan(experiment.steps_per_epoch, config.epochs, 0, run_folder.command(), experiment.dispatch_steps),
        step=experiment.step,
        items=experiment.items,
        validate=experiment.validate,
        checkpoints=None,
        record=lambda row: None if console.mode == "off" else console.say(loop.line(row, config.epochs)),
        console=console,
    )


def layout(config: Config, seeds: int | None = None, available: Sequence[Any] | None = None) -> parallel.Layout:
    """The devices of a configuration, for as many seeds together; of those available, which may be elsewhere.

    Raises:
      InputError: more than there are, or a number that does not fit.
    """
    # A dense network's step is over before two CPU devices have agreed on the gradient (mlp: 0.73 of one's speed).
    cpu_images = 32 if config.model in ("cnn", "airnet") else config.batch_size
    mesh = [int(n) for n in config.mesh.split("x")] if config.mesh else None
    return parallel.layout(config.parallel, config.devices, config.batch_size, seeds, cpu_images, mesh, available)


def check_sizes(config: Config, image_shape: tuple[int, ...]) -> None:
    """Raises InputError where a crop or a cutout takes the whole image."""
    side = min(image_shape[:2])
    if max(config.crop, config.cutout) >= side:
        raise InputError(
            f"--crop {config.crop} and --cutout {config.cutout} must be smaller than the image, {side} pixels"
        )


def resident(feed: str, split: source.Split) -> bool:
    """Whether a split's images are kept in memory, decoded: as asked, or if they are small enough."""
    small = len(split) * np.prod(split.image_shape) <= feeds.RESIDENT_LIMIT
    return feed == "resident" or bool(small and feed != "streaming")


def class_counts(config: Config, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """How many images of each class are trained on, by their right labels: int[K], whatever the seed.

    Args:
      config: of the run.
      labels: int32[N], of the training split.
      num_classes: K.

    Raises:
      InputError: none is held out though some should be, or fewer are left than a batch takes.
    """
    own, held_out = order.split(labels, config.validation, config.split_seed)
    if config.validation and not len(held_out):
        raise InputError(f"--validation {config.validation} of {len(labels)} images holds out none; take more, or 0")
    whole = np.bincount(labels[own], minlength=num_classes)
    counts = conditions.class_counts(whole, config.fraction, config.long_tail)
    if counts.sum() < config.batch_size:
        raise InputError(f"--batch-size {config.batch_size} is larger than the {counts.sum()} training images")
    return counts


def _data(config: Config, dataset: source.Dataset, console: Console, devices: parallel.Layout):
    """Decoded training images (None when streaming), their summary, the split's sides, class counts; seeds -> feed."""
    track = console.track(f"decoding {dataset.train.name}", "reads")
    if resident(config.feed, dataset.train):
        images, summary = source.decoded(dataset.train, track)
    else:
        images, summary = None, source.summary(dataset.train, track)
    own, held_out = order.split(summary.labels, config.validation, config.split_seed)
    counts = class_counts(config, summary.labels, dataset.num_classes)
    rows = devices.own(config.batch_size, AXIS)

    def one(seed: int) -> feeds.Feed:
        labels, used = _labels(config, summary.labels, dataset.num_classes, seed), own
        if counts.sum() < len(own):
            used = conditions.subset(summary.labels, own, counts, seed)
        fixed = seed, config.batch_size, config.flip == "alternating"
        if images is None:
            return feeds.streaming(dataset.train, labels, used, *fixed, config.workers, rows)
        return feeds.resident(images, labels, used, *fixed, rows)

    def feed_of(seeds: Sequence[int] | None) -> feeds.Feed:
        if seeds is None:
            return one(config.seed)
        return feeds.together([one(seeds[i]) for i in devices.own(len(seeds), SEEDS)])

    return images, summary, own, held_out, counts, feed_of


def _labels(config: Config, labels: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
    """The labels as they are taught."""
    if not config.label_noise:
        return labels
    if config.noise == "symmetric":
        return conditions.symmetric_noise(labels, config.label_noise, num_classes, seed)
    other = conditions.taken_for(config.dataset, num_classes)
    return conditions.asymmetric_noise(labels, config.label_noise, other, seed)
