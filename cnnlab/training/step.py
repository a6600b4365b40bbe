"""TrainState and the pure steps.

"Step" has one meaning, an update of the weights by one batch, and one function per level:

    train_step   (state, totals, batch, key) -> state, totals      pure, for one device's part of a
                                                                   batch; here
    dispatch     (state, totals, data, items, count, keys, values) compiled, several train_steps of
                 -> state, totals                                  all seeds; program.py
    advance      (progress, items) -> progress                     a dispatch of a run;
                                                                   experiment.py

The steps receive the model, the loss and the optimizer as functions, and know none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.typing import DTypeLike

from cnnlab import collectives, metrics
from cnnlab.data.dataset import Batch
from cnnlab.optim import Average
from cnnlab.softmax import predict
from cnnlab.types import PyTree, Row

Params: TypeAlias = PyTree  # as flax makes it
Variables: TypeAlias = dict[str, PyTree]  # {"params": Params, "batch_stats": PyTree}
Totals: TypeAlias = dict[str, jax.Array]
Sums: TypeAlias = Callable[[Variables, Batch], dict[str, jax.Array]]  # a batch's, of metrics
# Variables and images float[B, H, W, C] -> logits float32[B, K], and features if they are wanted.
ApplyFn: TypeAlias = Callable[[Variables, jax.Array], tuple[jax.Array, jax.Array | None]]
# The same with a key for dropout; between the two results the new batch_stats.
TrainApplyFn: TypeAlias = Callable[
    [Variables, jax.Array, jax.Array], tuple[jax.Array, PyTree, jax.Array | None]
]

NEVER = 2**31 - 1  # `bad_step` while every step was finite
# Folded into a run's key where a step is otherwise: for draws that are the same at every step.
RUN = 2**32 - 1
# Steps whose batches the batch statistics of averaged parameters are estimated on. Of the averaged
# statistics, which the estimate starts from, 0.9^100 is left; 0.99^100 = 0.37 with flax's own
# momentum.
ESTIMATION_STEPS = 100
EARLY = 64  # steps of an epoch whose gradients are measured


class LossScale(struct.PyTreeNode):
    """What the loss is multiplied by, so that float16 holds its gradients on their way back.

    It is doubled after 2,000 steps whose gradients were finite, and halved, down to 1, by a step
    whose gradients were not: that step leaves the weights as they are.

    Source: Micikevicius et al., 2018, "Mixed precision training", https://arxiv.org/abs/1710.03740

    Attributes:
      factor: float32[], a power of two, so that scaling rounds nothing.
      steps: int32[], finite ones since it changed.
    """

    factor: jax.Array
    steps: jax.Array

    @classmethod
    def start(cls) -> LossScale:
        return cls(jnp.float32(1024), jnp.int32(0))

    def after(self, finite: jax.Array) -> LossScale:
        """Return the scale of the next step.

        Args:
          finite: bool[], whether the gradients of this one were.
        """
        grown = self.steps + 1 == 2000
        larger = jnp.where(grown, 2 * self.factor, self.factor)
        smaller = jnp.maximum(self.factor / 2, 1)
        steps = jnp.where(finite & ~grown, self.steps + 1, 0)
        return LossScale(jnp.where(finite, larger, smaller), steps)


class TrainState(struct.PyTreeNode):
    """All that a step changes.

    Attributes:
      step: int32[], steps taken.
      params, batch_stats: of the model.
      opt_state: of the optimizer.
      average: of the variables over the steps; {} where the run keeps none. Within an epoch batch
        statistics are averaged by the same weights as parameters; at its end they are estimated
        for the averaged parameters (`estimate_step`).
      loss_scale: of float16; None for other types, whose loss is not scaled.
    """

    step: jax.Array
    params: Params
    batch_stats: PyTree
    opt_state: optax.OptState
    average: Variables = struct.field(default_factory=dict)
    loss_scale: LossScale | None = None

    @property
    def variables(self) -> Variables:
        """What the model is trained with."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluation_variables(self) -> Variables:
        """What is validated, tested and returned: the average, where there is one."""
        return self.average or self.variables

    @property
    def last(self) -> TrainState:
        """The state without its average, so that the last weights are what is evaluated."""
        return self.replace(average={})


@dataclass(frozen=True)
class Progress:
    """Where a run stands: what a checkpoint holds.

    Attributes:
      state: after state.step steps; with seeds each leaf has a leading axis for them.
      totals: running sums of the epoch under way.
      history: metrics of the finished epochs; with seeds each a list.
    """

    state: TrainState
    totals: Totals
    history: tuple[Row, ...] = ()


def create_state(
    variables: Variables,
    tx: optax.GradientTransformation,
    averaged: bool = False,
    scaled: bool = False,
) -> TrainState:
    """Build the state before the first step.

    Args:
      variables: a model's initial ones.
      tx: optimizer.
      averaged: whether the run keeps an average of the variables.
      scaled: whether its loss is scaled.
    """
    params = variables["params"]
    state = TrainState(jnp.int32(0), params, variables.get("batch_stats", {}), tx.init(params))
    if averaged:
        # A copy, as the steps take over the memory of both.
        state = state.replace(average=jax.tree.map(jnp.copy, state.variables))
    return state.replace(loss_scale=LossScale.start()) if scaled else state


def zero_totals(dtype: DTypeLike = jnp.float32, seeds: tuple[int, ...] = ()) -> Totals:
    """Build the running sums of an epoch before its first step, with the leading axes `seeds`.

    `bad_step` is the first step that was not finite, `gradient_norms` are those of the epoch's
    first steps.
    """
    return {
        "loss": jnp.zeros(seeds, dtype),
        "correct": jnp.zeros(seeds, jnp.int32),
        "count": jnp.zeros(seeds, jnp.int32),
        "bad_step": jnp.full(seeds, NEVER, jnp.int32),
        "gradient_norms": jnp.zeros((*seeds, EARLY), dtype),
    }


@dataclass(frozen=True)
class Objective:
    """The loss of a run, and what it is passed besides logits and labels.

    Attributes:
      loss: (logits float32[B, K], labels, those of `asks`) -> float32[B].
      asks: which of teacher_logits, view_logits, progress, epoch and features it takes.
      total_steps, steps_per_epoch: of the run.
      teacher: images float or uint8[B, H, W, C] in 0..255 -> float32[B, K].
    """

    loss: Callable[..., jax.Array]
    asks: frozenset[str] = frozenset()
    total_steps: int = 1
    steps_per_epoch: int = 1
    teacher: Callable[[jax.Array], jax.Array] | None = None

    def __call__(
        self,
        logits: jax.Array,
        labels: jax.Array,
        *,
        pixels: Callable[[], jax.Array],
        features: jax.Array | None,
        view_logits: jax.Array | None = None,
        step: jax.Array | None = None,
    ) -> jax.Array:
        """Compute the loss of each example.

        Args:
          logits: float32[B, K].
          labels: int32[B] or float32[B, K].
          pixels: the images in 0..255, for the teacher.
          features: float[B, ...], the input of the model's last layer.
          view_logits: float32[V, B, K], of the views of each image; None: the image itself is its
            only view.
          step: int32[]; None in evaluation, where the loss is that of the end of the run.
        """
        inputs: dict[str, jax.Array | None] = {}
        if "teacher_logits" in self.asks:
            assert self.teacher
            inputs["teacher_logits"] = self.teacher(pixels())
        if "view_logits" in self.asks:
            inputs["view_logits"] = logits[None] if view_logits is None else view_logits
        if "features" in self.asks:
            inputs["features"] = features
        if "progress" in self.asks:
            inputs["progress"] = (
                jnp.float32(1) if step is None else jnp.float32(step) / self.total_steps
            )
        if "epoch" in self.asks:
            inputs["epoch"] = (
                jnp.int32(self.total_steps - 1 if step is None else step) // self.steps_per_epoch
            )
        return self.loss(logits, labels, **inputs)


def as_they_are(images: jax.Array) -> jax.Array:
    """Return images unchanged, as they are not normalised."""
    return images


@dataclass(frozen=True)
class StepParts:
    """The functions that a train step is made of.

    Attributes:
      apply_fn: (variables, images float[B, H, W, C], key) -> logits float32[B, K], new batch_stats,
        features.
      objective: the loss.
      tx: the optimizer.
      prepare: (batch with its epoch, key of the step, key of the run, axis_name) -> batch as the
        loss takes it, its images float[B, H, W, C], perhaps with views float[V, B, H, W, C].
      pixels: normalised images -> the same in 0..255.
      microbatches: equal parts of a device's batch that are differentiated one after the other, to
        save memory. What depends on an example, dropout included, stays as it is without them;
        batch statistics are those of each part, and the running ones move once for each.
      average: step int32[] -> share in [0, 1] of the variables after it in their average; None:
        none is kept.
    """

    apply_fn: TrainApplyFn
    objective: Objective
    tx: optax.GradientTransformation
    prepare: Callable[..., dict[str, jax.Array]]
    pixels: Callable[[jax.Array], jax.Array] = as_they_are
    microbatches: int = 1
    average: Average | None = None


def train_step(
    state: TrainState,
    totals: Totals,
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    parts: StepParts,
    axis_name: str | None = None,
) -> tuple[TrainState, Totals]:
    """Take one step of gradient descent on the batch's mean loss.

    Args:
      state: before.
      totals: running sums of the epoch (`zero_totals`).
      batch: {"image": uint8[B, H, W, C], "label": int32[B], "index": int32[B]}; under pmap this
        device's part.
      key: the run's key; the step is folded in, so a resumed run draws the same.
      parts: what the step is made of.
      axis_name: the device axis under pmap.

    Returns:
      The state and the totals after, the same on every device.
    """
    examples, model_key = _prepared(batch, state.step, key, parts, axis_name)
    differentiate = _gradients if parts.microbatches == 1 else _accumulated
    gradients = differentiate(state, examples, model_key, parts)
    loss, grads, batch_stats, hits = collectives.mean(gradients, axis_name)
    update = optax.with_extra_args_support(parts.tx).update
    updates, opt_state = update(grads, state.opt_state, state.params, value=loss)
    params = optax.apply_updates(state.params, updates)

    devices = collectives.size(axis_name)
    count = jnp.int32(devices * len(batch["label"]))
    after = TrainState(
        state.step + 1, params, batch_stats, opt_state, state.average, state.loss_scale
    )
    if parts.average is not None:
        average = _averaged(state.average, after.variables, parts.average(state.step))
        after = after.replace(average=average)
    norm = optax.tree.norm(grads)
    if state.loss_scale is not None:
        after, norm = _unless_overflown(state, after, norm)
    # The norm of the new parameters is finite only if each of them is: one number watches the whole
    # state.
    finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(after.params))
    # of the step in its epoch; those beyond the early ones are dropped
    place = totals["count"] // count
    totals = {
        "loss": totals["loss"] + loss * count.astype(loss.dtype),
        "correct": totals["correct"] + jnp.round(devices * hits).astype(jnp.int32),
        "count": totals["count"] + count,
        "bad_step": jnp.minimum(totals["bad_step"], jnp.where(finite, NEVER, state.step)),
        "gradient_norms": totals["gradient_norms"].at[place].set(norm, mode="drop"),
    }
    return after, totals


def _unless_overflown(
    state: TrainState, after: TrainState, norm: jax.Array
) -> tuple[TrainState, jax.Array]:
    """Leave out a step whose scaled gradients overflowed, unless the scale cannot become smaller.

    Args:
      state, after: before and after the step.
      norm: float[], of the gradients.

    Returns:
      The state after the step or, but for its number and scale, before it; and the norm, 0 of a
      step that was left out.
    """
    scale = state.loss_scale
    assert scale is not None
    finite = jnp.isfinite(norm)
    left_out = ~finite & (scale.factor > 1)
    before = state.replace(step=after.step)
    kept = jax.tree.map(lambda old, new: jnp.where(left_out, old, new), before, after)
    return kept.replace(loss_scale=scale.after(finite)), jnp.where(left_out, 0, norm)


def estimate_step(
    average: Variables,
    step: jax.Array,
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    parts: StepParts,
    axis_name: str | None = None,
) -> Variables:
    """Move the batch statistics of averaged parameters as a train step moves those of its own.

    Averages of statistics are those of no network. On shapes10 with a small CNN estimates give 90.4
    % where averages give 88.3 under `swa`, and 92.5 in place of 92.0 under `ema` (two seeds each).
    Izmailov et al. (2018) do the same in a pass over all training images.

    Args:
      average: before.
      step: int32[], the number of the train step of this batch, whose draws are repeated.
      batch, key, parts, axis_name: as for `train_step`.
    """
    examples, model_key = _prepared(batch, step, key, parts, axis_name)
    count = parts.microbatches

    def move(batch_stats: PyTree, numbered: tuple[jax.Array, _Examples]) -> tuple[PyTree, None]:
        number, microbatch = numbered
        variables = {**average, "batch_stats": batch_stats}
        with collectives.microbatch(number, count):
            return parts.apply_fn(variables, microbatch.seen, model_key)[1], None

    numbered = jnp.arange(count, dtype=jnp.int32), examples.divided(count)
    batch_stats, _ = jax.lax.scan(move, average["batch_stats"], numbered)
    return {**average, "batch_stats": collectives.mean(batch_stats, axis_name)}


def _prepared(
    batch: dict[str, jax.Array],
    step: jax.Array,
    key: jax.Array,
    parts: StepParts,
    axis_name: str | None,
) -> tuple[_Examples, jax.Array]:
    """Prepare the batch of a step; return also the key of the model's draws."""
    prepare_key, model_key = jax.random.split(jax.random.fold_in(key, step))
    run_key = jax.random.fold_in(key, RUN)
    epoch = step // parts.objective.steps_per_epoch
    prepared = parts.prepare(batch | {"epoch": epoch}, prepare_key, run_key, axis_name)
    views = prepared.get("views")
    examples = _Examples(prepared["image"], prepared["label"], batch["label"], views)
    return examples, model_key


def _averaged(average: Variables, variables: Variables, weight: jax.Array) -> Variables:
    """Move an average by a share of the way to the variables; exactly, for the shares 0 and 1."""

    def moved(mean: jax.Array, value: jax.Array) -> jax.Array:
        share = jnp.asarray(weight, mean.dtype)
        return (1 - share) * mean + share * value

    return jax.tree.map(moved, average, variables)


class _Examples(NamedTuple):
    """What the loss of a batch is computed from.

    Attributes:
      images: float[B, H, W, C], augmented.
      labels: int32[B] or float32[B, K], as the augmentations leave them.
      classes: int32[B], as they were.
      views: float[V, B, H, W, C]; None where there are none.
    """

    images: jax.Array
    labels: jax.Array
    classes: jax.Array
    views: jax.Array | None = None

    @property
    def seen(self) -> jax.Array:
        """What the model is applied to: float[B (1 + V), H, W, C]."""
        return self.images if self.views is None else _interleaved(self.images, self.views)

    def divided(self, count: int) -> _Examples:
        """Divide the examples into equal parts, in order, along a new first axis."""

        def parts_of(values: jax.Array) -> jax.Array:
            return values.reshape(count, -1, *values.shape[1:])

        views = None if self.views is None else jax.vmap(parts_of, 0, 1)(self.views)
        images, labels, classes = map(parts_of, (self.images, self.labels, self.classes))
        return _Examples(images, labels, classes, views)


class _Gradients(NamedTuple):
    """What the examples of a device contribute to a step.

    Attributes:
      loss: float[], their mean.
      grads: of it.
      batch_stats: after them.
      hits: float[], how many were right.
    """

    loss: jax.Array
    grads: Params
    batch_stats: PyTree
    hits: jax.Array


def _gradients(
    state: TrainState, examples: _Examples, key: jax.Array, parts: StepParts
) -> _Gradients:
    """Differentiate the mean loss of examples.

    Args:
      state: before the step.
      examples: of this device.
      key: of the model's draws.
      parts: what the step is made of.
    """
    images, labels, classes, views = examples
    scale = 1.0 if state.loss_scale is None else state.loss_scale.factor

    def mean_loss(params: Params) -> tuple[jax.Array, tuple[jax.Array, PyTree]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, batch_stats, features = parts.apply_fn(variables, examples.seen, key)
        view_logits = None
        if views is not None:
            logits, view_logits = _apart(logits, len(views))
            features = None if features is None else _apart(features, len(views))[0]
        losses = parts.objective(
            logits,
            labels,
            pixels=lambda: parts.pixels(images),
            features=features,
            view_logits=view_logits,
            step=state.step,
        )
        return scale * jnp.mean(losses), (logits, batch_stats)

    gradient_fn = jax.value_and_grad(mean_loss, has_aux=True)
    (loss, (logits, batch_stats)), grads = gradient_fn(state.params)
    loss, grads = jax.tree.map(lambda x: x / scale, (loss, grads))
    # a float: one collective a step, for them all
    hits = jnp.sum(predict(logits) == classes, dtype=loss.dtype)
    return _Gradients(loss, grads, batch_stats, hits)


def _accumulated(
    state: TrainState, examples: _Examples, key: jax.Array, parts: StepParts
) -> _Gradients:
    """Differentiate the mean loss of examples one microbatch after the other, so that only what one
    of them needs is in memory. Batch statistics pass from each to the next.
    """
    count = parts.microbatches

    def gradients_of(batch_stats: PyTree, number: jax.Array, examples: _Examples) -> _Gradients:
        with collectives.microbatch(number, count):
            return _gradients(state.replace(batch_stats=batch_stats), examples, key, parts)

    def add(sums: _Gradients, numbered: tuple[jax.Array, _Examples]) -> tuple[_Gradients, None]:
        new = gradients_of(sums.batch_stats, *numbered)
        added = jax.tree.map(jnp.add, sums, new)
        return added._replace(batch_stats=new.batch_stats), None

    numbered = jnp.arange(count, dtype=jnp.int32), examples.divided(count)
    first = jax.tree.map(lambda leaf: leaf[0], numbered)
    shapes = jax.eval_shape(gradients_of, state.batch_stats, *first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    sums, _ = jax.lax.scan(add, zeros._replace(batch_stats=state.batch_stats), numbered)
    loss, grads = jax.tree.map(lambda leaf: leaf / count, (sums.loss, sums.grads))
    return sums._replace(loss=loss, grads=grads)


def _interleaved(images: jax.Array, views: jax.Array) -> jax.Array:
    """Interleave images and their views, [B, ...], [V, B, ...] -> [B (1 + V), ...]: each image
    before its views, whichever device holds them.
    """
    return jnp.concatenate([images[None], views]).swapaxes(0, 1).reshape(-1, *images.shape[1:])


def _apart(values: jax.Array, views: int) -> tuple[jax.Array, jax.Array]:
    """Split what the model made of `_interleaved`: float[B, ...] of the images, float[V, B, ...] of
    their views.
    """
    by_view = values.reshape(-1, 1 + views, *values.shape[1:]).swapaxes(0, 1)
    return by_view[0], by_view[1:]


def eval_step(
    variables: Variables,
    batch: dict[str, jax.Array],
    *,
    apply_fn: ApplyFn,
    objective: Objective,
    extra_metrics: Sequence[metrics.Metric] = (),
    axis_name: str | None = None,
) -> dict[str, jax.Array]:
    """Compute the metric sums of a batch, padding masked out.

    Args:
      variables: of the model.
      batch: {"image": uint8[B, H, W, C], "label": int32[B], "mask": bool[B]}.
      apply_fn: (variables, images uint8[B, H, W, C]) -> logits float32[B, K], features.
      objective: the loss.
      extra_metrics: besides those that are always measured.
      axis_name: the device axis under pmap.

    Returns:
      `metrics.sums`, over all devices.
    """
    logits, features = apply_fn(variables, batch["image"])
    loss = objective(logits, batch["label"], pixels=lambda: batch["image"], features=features)
    sums = metrics.sums(logits, batch["label"], loss, batch["mask"], extra_metrics)
    return collectives.total(sums, axis_name)
