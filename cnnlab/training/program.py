"""A configuration, devices and facts about data -> compiled steps; neither need be here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from cnnlab import augment
from cnnlab.config import Config, Machine
from cnnlab.data import feed as feeds
from cnnlab.data.dataset import Batch
from cnnlab.data.facts import DataFacts
from cnnlab.errors import InputError
from cnnlab.metrics import Metric
from cnnlab.models.convolution import Convolution
from cnnlab.parts import Parts
from cnnlab.training import network
from cnnlab.training.devices import AXIS, BATCH, SEEDS, SHARED, Layout
from cnnlab.training.step import (
    Objective,
    StepParts,
    Sums,
    Totals,
    TrainState,
    Variables,
    estimate_step,
    eval_step,
    train_step,
    zero_totals,
)
from cnnlab.types import PyTree

LEARNING_RATE = "learning_rate"
TRACED = {"loss", "optimizer", "schedule"}  # settings whose parts a dispatch makes anew


@dataclass(frozen=True)
class Program:
    """The compiled steps of a run.

    Attributes:
      config: of the run.
      parts: of it.
      layout: the devices, and how many networks are trained together.
      facts: about the data.
      model: linen module.
      step_parts: what a train step is made of.
      metrics: the user's own.
      is_resident: whether the devices hold all images; otherwise they are streamed.
      dispatch_steps: the most steps that one dispatch takes.
      single_dispatch: a dispatch is all steps of the run, and its number of steps is fixed.
      free: hyperparameters that are data besides the learning rate, such as loss.gamma: one program
        serves all their values.
    """

    config: Config
    parts: Parts
    layout: Layout
    facts: DataFacts
    model: nn.Module
    step_parts: StepParts
    metrics: tuple[Metric, ...]
    is_resident: bool
    dispatch_steps: int
    single_dispatch: bool
    free: tuple[str, ...] = ()

    @property
    def steps_per_epoch(self) -> int:
        """Full batches among the training images."""
        return self.step_parts.objective.steps_per_epoch

    @property
    def per_seed(self) -> PartitionSpec:
        """The spec of what each seed has of its own."""
        return PartitionSpec() if self.layout.num_seeds is None else PartitionSpec(SEEDS)

    @property
    def specs(self) -> tuple[PartitionSpec, ...]:
        """Those of what `dispatch` takes."""
        per_seed = self.per_seed
        items = PartitionSpec(*per_seed, None, AXIS)
        return per_seed, per_seed, SHARED, items, SHARED, per_seed, per_seed

    @cached_property
    def dispatch(self) -> Callable[..., tuple[TrainState, Totals]]:
        """(state, totals, data, items, count, keys, values) -> state, totals after `count` steps.

        Compiled. `items` are stacked by `stack`. `values` has the learning rate and those of `free`
        by name. The state is given away.
        """
        return self.layout.compile(self._steps, self.specs, self.per_seed, donate=(0,))

    def _steps(self, *args: PyTree, axis_name: str | None) -> tuple[TrainState, Totals]:
        state, totals, data, items, count, key, values = args
        step = partial(train_step, parts=self._with_values(values), axis_name=axis_name)
        fetch = self._fetch

        def take(i: int | jax.Array, carry: tuple[TrainState, Totals]) -> tuple[TrainState, Totals]:
            item = jax.tree.map(lambda x: x[i], items)
            return step(*carry, fetch(data, item), key)

        if self.dispatch_steps == 1:
            return take(0, (state, totals))
        steps = self.dispatch_steps if self.single_dispatch else count
        return jax.lax.fori_loop(0, steps, take, (state, totals))

    def _with_values(self, values: Mapping[str, jax.Array]) -> StepParts:
        """Build what a step is made of with hyperparameters that are data."""
        parts = self.parts.with_values({name: values[name] for name in self.free})
        rate = values[LEARNING_RATE]
        tx = network.build_optimizer(self.config.recipe, parts, self.steps_per_epoch, rate)
        objective = self.step_parts.objective
        if self.free:
            loss = parts.bind_loss(np.array(self.facts.class_counts))
            objective = replace(objective, loss=loss)
        return replace(self.step_parts, tx=tx, objective=objective)

    def takes(self, free: Sequence[str]) -> bool:
        """Return whether hyperparameters can be data, as found by tracing the start and a dispatch:
        a part that decides by them in Python, or has them in its shapes, cannot have them so.
        """
        if not {name.split(".")[0] for name in free} <= TRACED:
            return False
        program = replace(self, free=tuple(free))
        try:
            jax.eval_shape(program.dispatch, *program.arguments())
        except Exception:  # whatever a part raises where it is traced
            return False
        return True

    @cached_property
    def estimate(self) -> Callable[..., Variables]:
        """(average, step, data, items, count, keys) -> the average, its batch statistics moved by
        the batches of `count` steps from `step` on; compiled.
        """
        per_seed, _, data, items, count, keys, _ = self.specs
        specs = per_seed, SHARED, data, items, count, keys
        return self.layout.compile(self._estimated, specs, per_seed)

    def _estimated(self, *args: PyTree, axis_name: str | None) -> Variables:
        average, first, data, items, count, key = args
        move = partial(estimate_step, parts=self.step_parts, axis_name=axis_name)

        def take(i: jax.Array, average: Variables) -> Variables:
            item = jax.tree.map(lambda x: x[i], items)
            return move(average, first + i, self._fetch(data, item), key)

        return jax.lax.fori_loop(0, count, take, average)

    @property
    def _fetch(self) -> Callable[..., augment.Batch]:
        """(data, item) -> the batch of a step."""
        if self.is_resident:
            return partial(feeds.gathered, self.facts.image_shape)
        return feeds.as_read

    def stack(self, items: Sequence[Batch]) -> Batch:
        """Stack the items of a dispatch, filled up to `dispatch_steps`, so that one program serves
        any number of them.
        """
        filled = [*items, *[items[-1]] * (self.dispatch_steps - len(items))]
        return jax.tree.map(lambda *steps: np.stack(steps, len(self.per_seed)), *filled)

    def begin(
        self,
        keys: jax.Array,
        images: jax.Array | None,
        values: Mapping[str, jax.Array] | None = None,
    ) -> tuple[TrainState, Totals]:
        """Build the state and the totals before the first step.

        Args:
          keys: key[], of the run; key[S] of several seeds.
          images: float[N, H, W, C], normalised, for models that fit themselves to them.
          values: as for `dispatch`; some optimizers start from them. None: those of the recipe.

        Raises:
          InputError: the images are too small for the model.
        """
        return self._begin(keys, images, values if keys.ndim else None)

    @cached_property
    def _begin(self) -> Callable[..., tuple[TrainState, Totals]]:
        """As `begin`, with `values` for several seeds only; compiled."""
        return jax.jit(self._initial)

    def _initial(
        self,
        keys: jax.Array,
        images: jax.Array | None,
        values: Mapping[str, jax.Array] | None,
    ) -> tuple[TrainState, Totals]:
        tx = self.step_parts.tx
        shape = self.facts.image_shape
        extras = network.state_extras(self.config.recipe, self.parts)
        model = self.model_on_one_device("native")  # traced fastest; the weights are the same
        key = network.fold_in(keys, 0)
        state = network.initial_state(model, tx, key, shape, images, *extras)
        if values is not None:
            state = state.replace(opt_state=jax.vmap(self._opt_state)(values, state.params))
        return state, zero_totals(seeds=keys.shape)

    def _opt_state(self, values: Mapping[str, jax.Array], params: PyTree) -> PyTree:
        return self._with_values(values).tx.init(params)

    def model_on_one_device(self, formulation: str | None = None) -> nn.Module:
        """Build the model as a device has it that reduces over no others, its convolutions in a
        formulation. None: the devices' own.
        """
        conv = Convolution(formulation or self.layout.formulation)
        recipe = self.config.recipe
        return self.parts.build_model(self.facts.num_classes, recipe.compute_dtype, conv)

    def abstract_start(self) -> tuple[TrainState, Totals, jax.Array]:
        """Compute the shapes of the state, the totals and the keys before the first step."""
        num_seeds = self.layout.num_seeds
        shape = self.facts.image_shape
        count = min(network.init_images(self.model), self.facts.num_images)
        images = jax.ShapeDtypeStruct((count, *shape), jnp.float32) if count else None
        keys = jax.eval_shape(lambda: network.run_keys(0 if num_seeds is None else [0] * num_seeds))
        return *jax.eval_shape(self.begin, keys, images, self._abstract_values(keys.shape)), keys

    def _abstract_values(self, shape: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct(shape, jnp.float32) for name in (LEARNING_RATE, *self.free)
        }

    def arguments(self) -> tuple[PyTree, ...]:
        """Return the arguments of `dispatch` as shapes with shardings, from the code that makes the
        real ones.
        """
        num_seeds = self.layout.num_seeds
        facts = self.facts
        state, totals, keys = self.abstract_start()
        values = self._abstract_values(keys.shape)
        batch_size = self.config.recipe.batch_size
        feed = feeds.blank(facts.image_shape, facts.num_images, batch_size, self.is_resident)
        if num_seeds is not None:
            feed = feeds.stacked([feed] * num_seeds)
        items = self.stack(list(feed.items(0, 1)))
        shapes = (state, totals, feed.data, items, np.int32(1), keys, values)
        return tuple(
            jax.tree.map(partial(_placed, NamedSharding(self.layout.mesh, spec)), tree)
            for tree, spec in zip(shapes, self.specs, strict=True)
        )

    @cached_property
    def validation_sums(self) -> Sums:
        """(variables, batch) -> metric sums, of images seen one way; compiled."""
        return self._sums("one")

    @cached_property
    def validation_sums_of_seeds(self) -> Sums:
        """(variables, batches with a leading axis of seeds) -> metric sums; compiled."""
        return self._sums("one", PartitionSpec(SEEDS, AXIS))

    @cached_property
    def test_sums(self) -> Sums:
        """(variables, batch) -> metric sums, over the recipe's views of an image; compiled."""
        views = self.config.recipe.test_views
        return self.validation_sums if views == "one" else self._sums(views)

    def _sums(self, views: str, batch: PartitionSpec = BATCH) -> Sums:
        features = "features" in self.parts.loss_asks
        step = partial(
            eval_step,
            apply_fn=network.apply_for_evaluation(self.model, self.facts, views, features),
            objective=self.step_parts.objective,
            extra_metrics=self.metrics,
        )
        return self.layout.compile(step, (self.per_seed, batch), self.per_seed)

    @cached_property
    def logits(self) -> Callable[[Variables, Batch], jax.Array]:
        """(variables, batch) -> float32[B, K], over the recipe's views of an image; compiled."""
        return self._logits(BATCH)

    @cached_property
    def logits_of_seeds(self) -> Callable[[Variables, Batch], jax.Array]:
        """(variables, batches with a leading axis of seeds) -> float32[S, B, K]; compiled."""
        return self._logits(PartitionSpec(SEEDS, AXIS))

    def _logits(self, batch: PartitionSpec) -> Callable[[Variables, Batch], jax.Array]:
        views = self.config.recipe.test_views
        apply_fn = network.apply_for_evaluation(self.model, self.facts, views)

        def step(variables: Variables, batch: augment.Batch, *, axis_name: str | None) -> jax.Array:
            del axis_name
            return apply_fn(variables, batch["image"])[0]

        specs = self.per_seed, batch
        return self.layout.compile(step, specs, PartitionSpec(*self.per_seed, AXIS))


def build(
    config: Config,
    parts: Parts,
    layout: Layout,
    facts: DataFacts,
    teacher: Callable[[jax.Array], jax.Array] | None = None,
    single_dispatch: bool = False,
    free: Sequence[str] = (),
) -> Program:
    """Build the compiled steps of a configuration.

    Args:
      config: of the run.
      parts: of it.
      layout: the devices, which may be those of a machine elsewhere.
      facts: about the data.
      teacher: images in 0..255 -> a teacher's logits.
      single_dispatch: make one dispatch of all steps of the run.
      free: hyperparameters that are data besides the learning rate; `Program.takes` them.

    Raises:
      InputError: whatever in it cannot be done.
    """
    recipe = config.recipe
    num_classes = facts.num_classes
    steps_per_epoch = facts.steps_per_epoch(recipe.batch_size)
    total_steps = steps_per_epoch * recipe.epochs
    mixed = parts.check_pipeline(num_classes, facts.image_shape, recipe.batch_size, facts.mirror)
    label_dtypes = ["float32", "int32"] if mixed else ["int32"]  # validation brings ids
    loss = parts.build_loss(num_classes, np.array(facts.class_counts), label_dtypes)
    conv = Convolution(layout.formulation)
    model = parts.build_model(num_classes, recipe.compute_dtype, conv, layout.axis_name)
    statistics = network.statistics(facts)
    operations = parts.pipeline(num_classes, layout.axis_name, facts.mirror, statistics)
    step = StepParts(
        apply_fn=network.apply_for_training(model, "features" in parts.loss_asks),
        objective=Objective(loss, parts.loss_asks, total_steps, steps_per_epoch, teacher),
        tx=network.build_optimizer(recipe, parts, steps_per_epoch),
        prepare=partial(_prepare, operations, statistics),
        pixels=lambda images: augment.pixels(images, *statistics),
        microbatches=recipe.microbatches,
        average=parts.build_average(total_steps, steps_per_epoch),
    )
    resident = is_resident(config.machine, facts.num_images, facts.image_shape)
    at_once = (
        total_steps
        if single_dispatch
        else min(_at_once(config.machine, layout, resident), steps_per_epoch)
    )
    metrics = parts.build_metrics()
    return Program(
        config,
        parts,
        layout,
        facts,
        model,
        step,
        metrics,
        resident,
        at_once,
        single_dispatch,
        tuple(free),
    )


def is_resident(machine: Machine, num_images: int, image_shape: Sequence[int]) -> bool:
    """Return whether a split's images are kept in memory, decoded: as asked, or if they are small
    enough.

    Raises:
      InputError: they are, and processes are to read them; or a limit that only auto heeds.
    """
    if machine.feed != "auto" and machine.decoded_limit != Machine.decoded_limit:
        raise InputError(
            f"--decoded-limit {machine.decoded_limit:g} has no effect with --feed {machine.feed}"
        )
    small = num_images * np.prod(image_shape) <= feeds.RESIDENT_LIMIT
    resident = machine.feed == "resident" or bool(small and machine.feed == "auto")
    if resident and machine.workers:
        raise InputError(
            f"--workers {machine.workers} has no effect on images that are kept in memory; take "
            "--feed streaming or mapped"
        )
    return resident


def _at_once(machine: Machine, layout: Layout, resident: bool) -> int:
    """Choose the number of steps in a dispatch, unless an epoch is shorter.

    On CPU devices that each train seeds of their own, four steps at once avoid three of four waits
    for the slower device (4 seeds on two cores: 0.9 of one seed's images a second, then 1.0); a
    single seed gains nothing.
    """
    if machine.dispatch_steps:
        return machine.dispatch_steps
    if not resident:
        return 1
    if layout.platform != "cpu":
        return 32
    return 1 if layout.num_seeds is None else 4


def _placed(
    sharding: NamedSharding, leaf: jax.ShapeDtypeStruct | np.ndarray
) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _prepare(
    operations: Sequence[augment.Operation],
    statistics: tuple[jax.Array, jax.Array],
    batch: augment.Batch,
    key: jax.Array,
    run_key: jax.Array,
    axis_name: str | None,
) -> augment.Batch:
    """Normalise a batch, and augment it by the operations."""
    images = augment.normalise(batch["image"], *statistics)
    return augment.apply(operations, batch | {"image": images}, key, run_key, axis_name)
