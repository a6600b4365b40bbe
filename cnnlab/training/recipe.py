"""A configuration -> data, loss and compiled steps: what every experiment starts from."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from cnnlab import augment, compilation_cache, contracts, metrics
from cnnlab.config import Config
from cnnlab.console import Console
from cnnlab.data import dataset as datasets
from cnnlab.data import feed as feeds
from cnnlab.data import order, source
from cnnlab.errors import InputError
from cnnlab.models.convolution import Convolution
from cnnlab.parts import Parts, resolve
from cnnlab.training import devices, loop, network, program, run_folder
from cnnlab.training.devices import AXIS, BATCH, SEEDS
from cnnlab.training.step import TrainState, eval_step, zero_totals


@dataclass(frozen=True)
class Experiment:
    """Everything a run needs, built from its configuration.

    Attributes:
      parts: of the configuration.
      layout: the devices.
      state, totals: before the first step, placed; with seeds, each leaf has a leading axis for
        them.
      steps_per_epoch: full batches among the training images.
      step: (state, totals, list of items) -> state, totals after as many steps; compiled.
      dispatch_steps: the most items it takes.
      items: (first step, last step) -> what each step is fed.
      again: seeds -> the same experiment from the start with as many other seeds, nothing compiled
        anew.
      eval_step: (params, batch_stats, batch) -> metric sums; compiled.
      validate: state -> metrics of the held-out images; None where nothing is held out. A list of
        them with seeds.
      logits: (params, batch_stats, batch) -> float32[B, K]; compiled.
      test: the test split's batches.
      facts: JSON facts about the data: digest, class_names, mean, std, image_shape, counts.
      metrics: the user's own, besides those that are always measured.
      feed: resident or streaming.
    """

    parts: Parts
    layout: devices.Layout
    state: TrainState
    totals: Any
    steps_per_epoch: int
    step: Callable
    dispatch_steps: int
    items: Callable[[int, int], Iterator[Any]]
    again: Callable[[Sequence[int]], Experiment]
    eval_step: Callable
    validate: Callable[[TrainState], Any] | None
    logits: Callable
    test: Callable[[], Iterator[Any]]
    facts: dict[str, Any]
    metrics: tuple[metrics.Metric, ...]
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
      seeds: train one network for each, all in one program, in place of the one of `config.seed`.
        Each takes the steps that it would take alone; the images are there once.
      rates: a learning rate for each of the seeds, in place of the one of `config`.
      whole: make one dispatch of all steps of the run.

    Raises:
      InputError: whatever in it cannot be done.
    """
    compilation_cache.keep_compilations()
    together = None if seeds is None else len(seeds)
    parts = resolve(config)
    devices = layout(config, parts, together)
    rows = devices.own(config.batch_size, AXIS)  # of a batch, that this process feeds
    network.run_keys(config, seeds)  # refuse them before the data is read
    dataset = parts.open_dataset(config.data_dir, config.image_size)
    check_parts(config, parts, dataset)
    teacher, teacher_digest = (
        network.teacher_fn(config, dataset, Convolution(devices.formulation))
        if parts.needs_teacher
        else (None, None)
    )
    images, summary, own, held_out, counts, feed_of = _data(
        config, parts, dataset, console, devices
    )
    mean, std = summary.mean_std(
        own
    )  # of all training images, whichever of them are used: the same under conditions
    read = (
        dataset.train.read
        if images is None
        else lambda at: {"image": images[at], "label": summary.labels[at]}
    )
    resident = None if images is None else len(images)
    about = program.Facts(dataset.train.image_shape, mean, std, counts, resident, dataset.mirror)
    built = program.build(config, parts, devices, about, together, teacher, whole)
    model, each, at_once = built.model, built.each, built.dispatch_steps
    first_images = None
    if count := network.init_images(
        model
    ):  # what the model fits itself to, the same whatever the seed
        first_images = augment.normalise(
            jnp.asarray(read(own[:count])["image"]), *network.statistics(mean, std)
        )
    data, own_metrics = devices.place(feed_of(seeds).data), parts.build_metrics()
    features = "features" in parts.loss_asks

    @functools.cache
    def evaluating(views: str) -> Callable:
        apply_fn = network.apply_for_evaluation(model, mean, std, views, features)
        evaluation = functools.partial(
            eval_step, apply_fn=apply_fn, objective=built.objective, own=own_metrics
        )
        return devices.compile(evaluation, (each, each, BATCH), each)

    apply_fn = network.apply_for_evaluation(model, mean, std, config.test_views)
    logits_fn = lambda params, batch_stats, batch, axis_name: apply_fn(
        params, batch_stats, batch["image"]
    )[0]
    logits = devices.compile(logits_fn, (each, each, BATCH), PartitionSpec(*each, AXIS))

    def validate(state: TrainState) -> Any:
        return loop.evaluate(
            evaluating("one"),
            state,
            feeds.in_order(read, held_out, config.batch_size, rows),
            seeds=together,
            own=own_metrics,
        )

    facts = {
        "digest": summary.digest(),
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.train.image_shape),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "class_counts": counts.tolist(),
        "teacher_digest": teacher_digest,
        "counts": {
            "train": int(counts.sum()),
            "validation": len(held_out),
            "test": len(dataset.test),
        },
    }

    def begin(seeds: Sequence[int] | None, rates: Sequence[float] | None = None) -> Experiment:
        key = network.run_keys(config, seeds)
        if key.shape != (() if together is None else (together,)):
            raise InputError(f"as many seeds as before, {together}, can begin again, got {seeds}")
        fold = jax.vmap(jax.random.fold_in, (0, None)) if key.ndim else jax.random.fold_in
        state = network.initial_state(
            model, built.tx, fold(key, 0), dataset.train.image_shape, first_images
        )
        peak = jnp.broadcast_to(
            jnp.asarray(config.learning_rate if rates is None else rates, float), key.shape
        )
        run_key, peak = devices.place(fold(key, 1), each), devices.place(peak, each)

        def step(state, totals, items):
            # a dispatch of fewer steps is filled up, so that one program serves all
            filled = [*items, *[items[-1]] * (at_once - len(items))]
            stacked = jax.tree.map(lambda *steps: np.stack(steps, len(each)), *filled)
            return built.step(state, totals, data, stacked, np.int32(len(items)), run_key, peak)

        return Experiment(
            parts=parts,
            layout=devices,
            state=devices.place(state, each),
            totals=devices.place(zero_totals(seeds=key.shape), each),
            steps_per_epoch=built.steps_per_epoch,
            step=step,
            dispatch_steps=at_once,
            items=feed_of(seeds).items,
            again=begin,
            eval_step=evaluating(config.test_views),
            validate=validate if len(held_out) else None,
            logits=logits,
            test=lambda: feeds.in_order(
                dataset.test.read, np.arange(len(dataset.test)), config.batch_size, rows
            ),
            facts=facts,
            metrics=own_metrics,
            feed="streaming" if images is None else "resident",
        )

    begun = begin(seeds, rates)
    for line in notices(config, parts, devices, begun.state):
        console.say(line)
    return begun


def notices(config: Config, parts: Parts, devices: devices.Layout, state: TrainState) -> list[str]:
    """What to know of a user's model that does not take all that the run could pass it, a line
    each.
    """
    lines, shared = [], devices.mesh.shape[AXIS]
    if shared > 1 and jax.tree.leaves(state.batch_stats) and not parts.model.asks("axis_name"):
        lines.append(
            f"model {parts.model} does not take axis_name: its batch statistics are those of each "
            f"device, {config.batch_size // shared} images"
        )
    if parts.loss.mark("head") and "head" not in parts.model.parameters:
        lines.append(
            f"loss {parts.loss} is made for cosines; model {parts.model} takes no head and ends as "
            "it does"
        )
    return lines


def trained(
    config: Config, console: Console | None = None, seeds: Sequence[int] | None = None
) -> tuple[Experiment, loop.Progress]:
    """Build an experiment and train it to its end in memory, where nothing is to be kept but what
    is done with it next.

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
        loop.Plan(
            experiment.steps_per_epoch,
            config.epochs,
            0,
            run_folder.command(),
            experiment.dispatch_steps,
        ),
        step=experiment.step,
        items=experiment.items,
        validate=experiment.validate,
        checkpoints=None,
        record=lambda row: (
            None if console.mode == "off" else console.say(loop.line(row, config.epochs))
        ),
        console=console,
    )


def layout(
    config: Config, parts: Parts, seeds: int | None = None, available: Sequence[Any] | None = None
) -> devices.Layout:
    """The devices of a configuration, for as many seeds together; of those available, which may be
    elsewhere.

    Raises:
      InputError: more than there are, or a number that does not fit.
    """
    mesh = [int(n) for n in config.mesh.split("x")] if config.mesh else None
    return devices.layout(
        config.parallel, config.devices, config.batch_size, seeds, parts.cpu_images, mesh, available
    )


def check_parts(config: Config, parts: Parts, dataset: datasets.Dataset) -> None:
    """Refuse what can be known to fail once the data set has been opened, before its images are
    read.

    Raises:
      InputError: a part that does not keep its contract.
    """
    classes, shape = dataset.num_classes, dataset.train.image_shape
    mixed = parts.check_pipeline(classes, shape, config.batch_size, dataset.mirror)
    label_dtypes = ["float32", "int32"] if mixed else ["int32"]
    loss = parts.build_loss(classes, np.ones(classes), label_dtypes)
    model = parts.build_model(classes, config.compute_dtype)
    contracts.check_model(parts.model, model, shape, classes)
    if "features" in parts.loss_asks:
        features = contracts.features_shape(parts.model, model, shape)
        contracts.check_loss(parts.loss, loss, classes, label_dtypes, features, parts.written_loss)
    parts.build_metrics()
    steps = max(len(dataset.train) // config.batch_size, 1)
    network.build_optimizer(config, parts, steps)
    if parts.schedule.path:  # cnnlab's own are tested
        contracts.check_schedule(
            parts.schedule, lambda peak: parts.build_schedule(peak, steps * config.epochs, steps)
        )
    if parts.optimizer.path:
        contracts.check_optimizer(
            parts.optimizer,
            lambda peak: network.build_optimizer(config, parts, steps, peak),
            model,
            shape,
        )


def resident(config: Config, split: datasets.Split) -> bool:
    """Whether a split's images are kept in memory, decoded: as asked, or if they are small enough.

    Raises:
      InputError: they are, and processes are to read them.
    """
    small = len(split) * np.prod(split.image_shape) <= feeds.RESIDENT_LIMIT
    keep = config.feed == "resident" or bool(small and config.feed != "streaming")
    if keep and config.workers:
        raise InputError(
            f"--workers {config.workers} has no effect on images that are kept in memory; take "
            "--feed streaming"
        )
    return keep


def training_set(
    config: Config, dataset: datasets.Dataset, labels: np.ndarray
) -> tuple[datasets.Dataset, np.ndarray]:
    """The data set as corruptions find it, and the positions that are held out: int[V].

    Args:
      config: of the run.
      dataset: as opened.
      labels: int32[N], of its training split.

    Raises:
      InputError: none is held out though some should be.
    """
    own, held_out = order.split(labels, config.validation, config.split_seed)
    if config.validation and not len(held_out):
        raise InputError(
            f"--validation {config.validation} of {len(labels)} images holds out none; take more, "
            "or 0"
        )
    return dataclasses.replace(dataset, labels=labels, targets=labels, positions=own), held_out


def class_counts(config: Config, corrupted: datasets.Dataset) -> np.ndarray:
    """How many images of each class are trained on, by their right labels: int[K], whatever the
    seed.

    Raises:
      InputError: fewer are left than a batch takes.
    """
    counts = corrupted.class_counts()
    if counts.sum() < config.batch_size:
        raise InputError(
            f"--batch-size {config.batch_size} is larger than the {counts.sum()} training images"
        )
    return counts


def _data(
    config: Config,
    parts: Parts,
    dataset: datasets.Dataset,
    console: Console,
    devices: devices.Layout,
):
    """Decoded training images (None when streaming), their summary, the split's sides, class
    counts; seeds -> feed.
    """
    track = console.track(f"decoding {dataset.train.name}", "reads")
    if resident(config, dataset.train):
        images, summary = source.decoded(dataset.train, track)
    else:
        images, summary = None, source.summary(dataset.train, track)
    clean, held_out = training_set(config, dataset, summary.labels)
    rows = devices.own(config.batch_size, AXIS)
    counts = class_counts(config, parts.corrupt(clean, config.seed))

    def one(seed: int) -> feeds.Feed:
        used = parts.corrupt(clean, seed)
        if len(used.positions) != counts.sum():
            raise InputError(
                f"{config.dataset} leaves {len(used.positions)} images under seed {seed} and "
                f"{counts.sum()} under {config.seed}; their number must not depend on the seed"
            )
        fixed = used.targets, used.positions, seed, config.batch_size
        if images is None:
            return feeds.streaming(dataset.train, *fixed, config.workers, rows)
        return feeds.resident(images, *fixed, rows)

    def feed_of(seeds: Sequence[int] | None) -> feeds.Feed:
        if seeds is None:
            return one(config.seed)
        return feeds.together([one(seeds[i]) for i in devices.own(len(seeds), SEEDS)])

    return images, summary, clean.positions, held_out, counts, feed_of
