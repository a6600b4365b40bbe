"""A configuration -> its data, its compiled steps, its first state: what every run starts from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TypeAlias, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from cnnlab import augment, compilation_cache, contracts, verified
from cnnlab.config import Config, Machine, Recipe
from cnnlab.console import Console
from cnnlab.data import contents, order
from cnnlab.data import dataset as datasets
from cnnlab.data import feed as feeds
from cnnlab.data.contents import Contents
from cnnlab.data.dataset import Batch
from cnnlab.data.facts import DataFacts
from cnnlab.errors import InputError
from cnnlab.models.convolution import Convolution
from cnnlab.parts import Parts, resolve
from cnnlab.training import devices, loop, memory, network, program, testing
from cnnlab.training.devices import AXIS, SEEDS, Layout
from cnnlab.training.step import ESTIMATION_STEPS, Progress, Sums, TrainState
from cnnlab.types import Device, Metrics, PyTree

Values: TypeAlias = Mapping[str, Sequence[float]]  # of hyperparameters, one for each seed
LONG_READ = 2**32  # bytes of a split that takes long to read


@dataclass(frozen=True)
class TrainingData:
    """A data set, read: what a run trains and validates on.

    Attributes:
      dataset: its labels are the right ones, its positions the images that are not held out under
        the recipe's seed.
      images: uint8[N, H, W, C], the training split in memory; None where it is streamed.
      facts: about it.
      test_sets: the splits to test on besides its own, by name.
    """

    dataset: datasets.Dataset
    images: np.ndarray | None
    facts: DataFacts
    test_sets: Mapping[str, datasets.Split] = field(default_factory=dict)

    def read(self, positions: Sequence[int] | np.ndarray) -> Batch:
        """Read images of the training split: {"image": uint8[B, H, W, C], "label": int32[B]}."""
        if self.images is None:
            return self.dataset.train.read(positions)
        return {"image": self.images[positions], "label": self.dataset.labels[positions]}

    def with_test_sets(
        self, test_sets: Mapping[str, datasets.Split], digests: Mapping[str, str]
    ) -> TrainingData:
        """Add splits to test on, and their digests, by name."""
        facts = dataclasses.replace(self.facts, test_sets=dict(digests))
        return dataclasses.replace(self, test_sets=test_sets, facts=facts)

    def used(self, config: Config, parts: Parts, seed: int) -> datasets.Dataset:
        """Return the data set as it is trained on with a seed: without what is held out, corrupted.

        Raises:
          InputError: under this seed the corruptions leave another number of images.
        """
        recipe = config.recipe
        num_images = self.facts.counts["train"]
        kept, _ = divided(recipe, self.dataset.labels, seed)
        clean = dataclasses.replace(self.dataset, positions=kept)
        used = parts.corrupt(clean, seed, config.machine.data_dir)
        if len(used.positions) != num_images:
            raise InputError(
                f"{recipe.dataset} leaves {len(used.positions)} images under seed {seed} and "
                f"{num_images} under {recipe.seed}; their number must not depend on the seed"
            )
        return used

    def feed(
        self, config: Config, parts: Parts, seed: int, rows: np.ndarray, num_feeds: int = 1
    ) -> feeds.Feed:
        """Build the feed of a run with a seed; this process feeds `rows` of each batch, and has
        `num_feeds` of them.

        Raises:
          InputError: as `used`.
        """
        used = self.used(config, parts, seed)
        chosen = feeds.Order(used.targets, used.positions, seed, config.recipe.batch_size, rows)
        if self.images is None:
            return feeds.streaming(self.dataset.train, chosen, config.machine.workers, num_feeds)
        return feeds.resident(self.images, chosen)


@dataclass(frozen=True)
class Experiment:
    """Everything that a run needs, built from its configuration.

    Attributes:
      config: of the run.
      parts: of the configuration.
      data: what it is trained and validated on.
      program: the compiled steps.
      init_images: float[N, H, W, C], normalised, that the model's initialiser sees; None: none.
      device_images: the images on the devices; () where they are streamed.
      keys: of the seeds, key[] or key[S].
      values: their learning rates, and other hyperparameters that are data, by name: float32[] or
        float32[S] of each.
      feed: their training batches.
      held_out: positions of the images that they are validated on, int64[V]; int64[S, V] where each
        seed has its own.
    """

    config: Config
    parts: Parts
    data: TrainingData
    program: program.Program
    init_images: jax.Array | None
    device_images: PyTree
    keys: jax.Array
    values: dict[str, jax.Array]
    feed: feeds.Feed
    held_out: np.ndarray

    @property
    def layout(self) -> Layout:
        return self.program.layout

    @property
    def facts(self) -> DataFacts:
        return self.data.facts

    @property
    def steps_per_epoch(self) -> int:
        """Full batches among the training images."""
        return self.program.steps_per_epoch

    @property
    def dispatch_steps(self) -> int:
        """The most items that `advance` takes."""
        return self.program.dispatch_steps

    @cached_property
    def run_keys(self) -> jax.Array:
        """The keys of all draws after the initial weights, on the devices."""
        return self.layout.place(network.fold_in(self.keys, 1), self.program.per_seed)

    def start(self) -> Progress:
        """Build the progress before the first step, on the devices."""
        state, totals = self.program.begin(self.keys, self.init_images, self.values)
        return Progress(*self.layout.place((state, totals), self.program.per_seed))

    def items(self, first: int, last: int) -> Iterator[Batch]:
        """Yield what the steps from `first` to before `last` are fed."""
        return self.feed.items(first, last)

    def advance(self, progress: Progress, items: Sequence[Batch]) -> Progress:
        """Take a step for each of the items, at most `dispatch_steps`; the progress is given away.

        It returns while the devices are still working.
        """
        state, totals = self.program.dispatch(
            progress.state,
            progress.totals,
            self.device_images,
            self.program.stack(items),
            np.int32(len(items)),
            self.run_keys,
            self.values,
        )
        return dataclasses.replace(progress, state=state, totals=totals)

    def estimate(self, state: TrainState, step: int) -> TrainState:
        """Estimate the batch statistics of the average after `step` steps, on the batches of the
        last of them; without an average or batch statistics the state stays as it is.
        """
        if not jax.tree.leaves(state.average.get("batch_stats", {})):
            return state
        average = state.average
        first = max(step - min(self.steps_per_epoch, ESTIMATION_STEPS), 0)
        items = iter(self.items(first, step))
        while dispatched := list(islice(items, self.dispatch_steps)):
            average = self.program.estimate(
                average,
                np.int32(first),
                self.device_images,
                self.program.stack(dispatched),
                np.int32(len(dispatched)),
                self.run_keys,
            )
            first += len(dispatched)
            jax.block_until_ready(average)  # a bounded queue, as `loop.IN_FLIGHT`
        return state.replace(average=average)

    def validate(self, state: TrainState) -> list[Metrics]:
        """Compute each network's metrics on the held-out images; empty where none are held out."""
        if not self.held_out.size:
            return []
        sums = self.program.validation_sums
        if self.held_out.ndim > 1:
            sums = self.program.validation_sums_of_seeds
        return self._measure(sums, state, self.training_batches(self.held_out))

    def test(
        self,
        state: TrainState,
        console: Console | None = None,
        split: datasets.Split | None = None,
    ) -> list[Metrics]:
        """Compute each network's metrics on the test images, or on those of another split."""
        return self._measure(self.program.test_sums, state, self.test_batches(split), console)

    def training_batches(self, positions: np.ndarray) -> Iterator[Batch]:
        """Yield images of the training split in batches, each once, with their right labels.

        Args:
          positions: int64[n]; int64[S, n] where each seed has its own, and so its own batches.
        """
        if positions.ndim == 1:
            return self._in_order(self.data.read, positions)
        return feeds.stacked_batches([self._in_order(self.data.read, row) for row in positions])

    def test_batches(self, split: datasets.Split | None = None) -> Iterator[Batch]:
        """Yield the test images, or those of another split, in batches, each image once."""
        split = split or self.data.dataset.test
        return self._in_order(split.read, np.arange(len(split)))

    def logits(self, state: TrainState, batch: Batch) -> jax.Array:
        """Compute the logits of a batch: float32[B, K]; float32[S, B, K] for several seeds, which
        may have a batch each.
        """
        of_seeds = batch["mask"].ndim > 1
        logits = self.program.logits_of_seeds if of_seeds else self.program.logits
        return logits(state.evaluation_variables, batch)

    def with_seeds(self, seeds: Sequence[int]) -> Experiment:
        """Copy the experiment with equally many other seeds; nothing is compiled again.

        Raises:
          InputError: their number differs, or they are no seeds.
        """
        network.check_seeds(seeds)
        if len(seeds) != self.layout.num_seeds:
            raise InputError(
                f"as many seeds as before, {self.layout.num_seeds}, can begin again, got "
                f"{list(seeds)}"
            )
        seeded = _seeded(self.data, self.program, seeds)
        return dataclasses.replace(self, **seeded)

    def notices(self) -> list[str]:
        """List what to know of a user's model that does not take all that a run could pass it."""
        parts = self.parts
        recipe = self.config.recipe
        shared = self.layout.mesh.shape[AXIS]
        alone = shared > 1 and not parts.model.asks("axis_name")
        lines = []
        images = recipe.batch_size // recipe.microbatches
        if alone or recipe.microbatches > 1 or images == 1:
            state, _, _ = self.program.abstract_start()
            if jax.tree.leaves(state.batch_stats) and alone:
                lines.append(
                    f"model {parts.model} does not take axis_name: its batch statistics are those "
                    f"of each device, {_images(images // shared)}"
                )
            elif jax.tree.leaves(state.batch_stats):
                setting = (
                    f"--microbatches {recipe.microbatches}"
                    if recipe.microbatches > 1
                    else f"--batch-size {recipe.batch_size}"
                )
                lines.append(
                    f"model {parts.model} has batch statistics: with {setting} they are those of "
                    f"{_images(images)}"
                )
        if parts.loss.mark("head") and "head" not in parts.model.parameters:
            lines.append(
                f"loss {parts.loss} is made for cosines; model {parts.model} takes no head and "
                "ends as it does"
            )
        return lines

    def _in_order(self, read: Callable[..., Batch], positions: np.ndarray) -> Iterator[Batch]:
        batch_size = self.config.recipe.batch_size
        return feeds.in_order(read, positions, batch_size, _rows(batch_size, self.layout))

    def _measure(
        self,
        sums: Sums,
        state: TrainState,
        batches: Iterator[Batch],
        console: Console | None = None,
    ) -> list[Metrics]:
        extra = self.program.metrics
        variables = state.evaluation_variables
        return loop.evaluate(sums, variables, batches, console, self.layout.num_seeds, extra)


def decode(config: Config, console: Console, parts: Parts | None = None) -> None:
    """Read the data that `build` reads, for the cache.

    Raises:
      InputError: as `build`.
    """
    verified.share(config.machine.cache)
    recipe, data_dir = config.recipe, config.machine.data_dir
    parts = parts or resolve(recipe, test_sets=config.output.test_sets)
    dataset = parts.open_dataset(data_dir, recipe)
    read_dataset(config.machine, dataset, console)
    testing.digests(testing.open_sets(parts, recipe, data_dir, dataset), console)


def build(
    config: Config,
    console: Console | None = None,
    seeds: Sequence[int] | None = None,
    values: Values | None = None,
    *,
    parts: Parts | None = None,
    single_dispatch: bool = False,
) -> Experiment:
    """Build the experiment that a configuration describes.

    Args:
      config: of the run.
      console: shows progress.
      seeds: train one network for each, all in one program, in place of the one of `config.seed`.
        Each takes the steps that it would take alone; the images are there once.
      values: hyperparameters of which each seed has a value, in place of the one of `config`:
        learning_rate, and others that are data (`Program.takes`), such as loss.gamma.
      parts: of the run; None: those that the configuration names.
      single_dispatch: make one dispatch of all steps of the run.

    Raises:
      InputError: whatever in it cannot be done.
    """
    verified.share(config.machine.cache)
    compilation_cache.keep_compilations()
    recipe = config.recipe
    console = console or Console("off")
    parts = parts or resolve(recipe, test_sets=config.output.test_sets)
    layout = choose_layout(config, parts, None if seeds is None else len(seeds))
    network.check_seeds([recipe.seed] if seeds is None else seeds)
    dataset = parts.open_dataset(config.machine.data_dir, recipe)
    check_parts(recipe, parts, dataset)
    test_sets = testing.open_sets(parts, recipe, config.machine.data_dir, dataset)
    teacher, digest = None, None
    if parts.needs_teacher:
        teacher, digest = network.teacher_fn(recipe, dataset, Convolution(layout.formulation))
    free = [name for name in values or {} if name != program.LEARNING_RATE]
    if facts := expected_facts(dataset):
        memory.check(program.build(config, parts, layout, facts, teacher, single_dispatch, free))
    read = read_dataset(config.machine, dataset, console)
    data = training_data(config, parts, dataset, read, digest)
    data = data.with_test_sets(test_sets, testing.digests(test_sets, console))
    compiled = program.build(config, parts, layout, data.facts, teacher, single_dispatch, free)
    memory.check(compiled)  # refuses a model that the images are too small for, too
    init_images = None
    if count := network.init_images(compiled.model):  # the same whatever the seed
        positions = data.dataset.positions
        if recipe.split_seed is None:  # those depend on it
            positions = np.arange(len(data.dataset.labels))
        first = jnp.asarray(data.read(positions[:count])["image"])
        init_images = augment.normalise(first, *network.statistics(data.facts))
    seeded = _seeded(data, compiled, seeds, values)
    device_images = layout.place(seeded["feed"].data)
    return Experiment(config, parts, data, compiled, init_images, device_images, **seeded)


def expected_facts(dataset: datasets.Dataset) -> DataFacts | None:
    """Return facts of the shapes that those of a data set will have, where reading it takes so long
    that what it is read for should be checked before.
    """
    classes, shape = dataset.num_classes, dataset.train.image_shape
    if len(dataset.train) * math.prod(shape) <= LONG_READ:
        return None
    return DataFacts(
        class_names=dataset.class_names,
        image_shape=shape,
        mean=(0.0,) * shape[-1],
        std=(1.0,) * shape[-1],
        class_counts=(-(-len(dataset.train) // classes),) * classes,
        num_images=len(dataset.train),
        mirror=dataset.mirror,
    )


def _images(count: int) -> str:
    return "one image" if count == 1 else f"{count} images"


class _OfSeeds(TypedDict):
    """What of an experiment depends on the seeds."""

    keys: jax.Array
    values: dict[str, jax.Array]
    feed: feeds.Feed
    held_out: np.ndarray


def _seeded(
    data: TrainingData,
    compiled: program.Program,
    seeds: Sequence[int] | None,
    values: Values | None = None,
) -> _OfSeeds:
    """Build what depends on the seeds in an experiment."""
    config, parts, layout = compiled.config, compiled.parts, compiled.layout
    recipe = config.recipe
    keys = network.run_keys(recipe.seed if seeds is None else seeds)
    hyperparameters = {program.LEARNING_RATE: recipe.learning_rate, **(values or {})}
    rows = _rows(recipe.batch_size, layout)
    labels = data.dataset.labels
    _, held_out = divided(recipe, labels, recipe.seed)
    if seeds is None:
        feed = data.feed(config, parts, recipe.seed, rows)
    else:
        held = [seeds[i] for i in layout.local_part(len(seeds), SEEDS)]
        feed = feeds.stacked([data.feed(config, parts, seed, rows, len(held)) for seed in held])
        if recipe.split_seed is None:
            held_out = np.stack([divided(recipe, labels, seed)[1] for seed in held])
    dtype = jax.dtypes.canonicalize_dtype(float)
    arrays = {
        name: jax.device_put(np.broadcast_to(np.asarray(value, dtype), keys.shape))
        for name, value in hyperparameters.items()
    }
    placed = layout.place(arrays, compiled.per_seed)
    return {"keys": keys, "values": placed, "feed": feed, "held_out": held_out}


def divided(recipe: Recipe, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide a training split, of labels int32[N], into what is trained on and what is held out:
    ascending positions of each.
    """
    split_seed = seed if recipe.split_seed is None else recipe.split_seed
    return order.split(labels, recipe.validation, split_seed)


def _rows(batch_size: int, layout: Layout) -> np.ndarray:
    """Return the rows of a batch that this process feeds."""
    return layout.local_part(batch_size, AXIS)


def choose_layout(
    config: Config,
    parts: Parts,
    num_seeds: int | None = None,
    available: Sequence[Device] | None = None,
) -> Layout:
    """Choose the devices for a configuration and `num_seeds` seeds, from those available, which may
    be elsewhere.

    Raises:
      InputError: more than there are, or a number that does not fit; microbatches that do not
        divide what a device has of a batch.
    """
    batch_size = config.recipe.batch_size
    count = config.recipe.microbatches
    layout = devices.layout(config.machine, batch_size, num_seeds, parts.cpu_images, available)
    shared = layout.mesh.shape[AXIS]
    if batch_size // shared % count:
        over = f" over {shared} devices" if shared > 1 else ""
        raise InputError(
            f"--microbatches {count} does not divide the {batch_size // shared} images of a device "
            f"(--batch-size {batch_size}{over}); choose a divisor"
        )
    return layout


def check_parts(recipe: Recipe, parts: Parts, dataset: datasets.Dataset) -> None:
    """Refuse what is known to fail once the data set is open, before its images are read.

    Raises:
      InputError: a part that does not keep its contract.
    """
    classes = dataset.num_classes
    shape = dataset.train.image_shape
    mixed = parts.check_pipeline(classes, shape, recipe.batch_size, dataset.mirror)
    label_dtypes = ["float32", "int32"] if mixed else ["int32"]
    loss = parts.build_loss(classes, np.ones(classes), label_dtypes)
    model = parts.build_model(classes, recipe.compute_dtype)
    contracts.check_model(parts.model, model, shape, classes)
    if "features" in parts.loss_asks:
        features = contracts.features_shape(parts.model, model, shape)
        contracts.check_loss(parts.loss, loss, classes, label_dtypes, features, parts.written_loss)
    for part, metric in zip(parts.metrics, parts.build_metrics(), strict=True):
        contracts.check_metric(part, metric, classes)
    steps = max(len(dataset.train) // recipe.batch_size, 1)
    total_steps = steps * recipe.epochs
    network.build_optimizer(recipe, parts, steps)
    weight = parts.build_average(total_steps, steps)
    if parts.average and weight and not parts.average.is_builtin:
        contracts.check_average(parts.average, weight, total_steps)
    if not parts.schedule.is_builtin:
        contracts.check_schedule(
            parts.schedule, lambda peak: parts.build_schedule(peak, total_steps, steps)
        )
    if not parts.optimizer.is_builtin:
        contracts.check_optimizer(
            parts.optimizer,
            lambda peak: network.build_optimizer(recipe, parts, steps, peak),
            model,
            shape,
        )


def read_dataset(machine: Machine, dataset: datasets.Dataset, console: Console) -> Contents:
    """Go through the splits of a data set, showing a bar: an image that cannot be decoded, or a
    label that is none, is found before training.

    Raises:
      InputError: there is one.
    """
    train = dataset.train
    track = console.track(f"decoding {train.name}", "reads")
    images = None
    split = None
    if program.is_resident(machine, len(train), train.image_shape):
        images, summary = contents.decoded(train, track)
    elif machine.feed != "streaming" and (
        found := contents.on_disk(
            train, None if machine.feed == "mapped" else machine.decoded_limit, track, console.say
        )
    ):
        split, summary = found
    else:
        summary = contents.summary(train, track)
    track = console.track(f"decoding {dataset.test.name}", "reads")
    return Contents(images, summary, contents.summary(dataset.test, track), split)


def training_data(
    config: Config,
    parts: Parts,
    dataset: datasets.Dataset,
    read: Contents,
    teacher_digest: str | None = None,
) -> TrainingData:
    """Divide a training split into what is trained on and what is held out.

    Raises:
      InputError: no image is held out though some should be, or fewer are left than a batch takes.
    """
    recipe = config.recipe
    split = dataset.train
    labels = read.train.labels
    kept, held_out = divided(recipe, labels, recipe.seed)
    if recipe.validation and not len(held_out):
        raise InputError(
            f"--validation {recipe.validation} of {len(split)} images holds out none; take more, "
            "or 0"
        )
    if not len(kept):
        raise InputError(
            f"--validation {recipe.validation} of {len(split)} images leaves none to train on"
        )
    clean = dataclasses.replace(
        dataset, train=read.split or split, labels=labels, targets=labels, positions=kept
    )
    counts = parts.corrupt(clean, recipe.seed, config.machine.data_dir).class_counts()
    if counts.sum() < recipe.batch_size:
        raise InputError(
            f"--batch-size {recipe.batch_size} is larger than the {counts.sum()} training images"
        )
    # Of all images, whichever of them are trained on: the same under all conditions of a study, and
    # of those held out too where these depend on the seed.
    every = np.arange(len(split)) if recipe.split_seed is None else kept
    mean, std = read.train.mean_std(every)
    facts = DataFacts(
        class_names=tuple(dataset.class_names),
        image_shape=tuple(split.image_shape),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        class_counts=tuple(counts.tolist()),
        digest=read.digest(dataset.class_names),
        test_digest=read.test.digest(),
        num_images=len(split),
        counts={
            "train": int(counts.sum()),
            "validation": len(held_out),
            "test": len(dataset.test),
        },
        mirror=dataset.mirror,
        teacher_digest=teacher_digest,
    )
    return TrainingData(clean, read.images, facts)
