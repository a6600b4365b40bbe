"""TrainState and the pure steps. They receive the model, the loss and the optimizer as functions
and know none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from cnnlab import collectives, metrics
from cnnlab.softmax import predict

NEVER = 2**31 - 1  # `bad_step` while every step was finite
RUN = (
    2**32 - 1
)  # folded into a run's key where a step is otherwise: for draws that are the same at every step
EARLY = 64  # steps of an epoch whose gradients are measured


class TrainState(struct.PyTreeNode):
    """All that a step changes.

    Attributes:
      step: int32[], steps taken.
      params, batch_stats: of the model.
      opt_state: of the optimizer.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any


def create_state(variables: dict[str, Any], tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step, from a model's initial variables."""
    params = variables["params"]
    return TrainState(jnp.int32(0), params, variables.get("batch_stats", {}), tx.init(params))


def zero_totals(dtype: Any = jnp.float32, seeds: tuple[int, ...] = ()) -> dict[str, jax.Array]:
    """Running sums of an epoch before its first step, with the leading axes `seeds`.

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
        """The loss of each example.

        Args:
          logits: float32[B, K].
          labels: int32[B] or float32[B, K].
          pixels: the images in 0..255, for the teacher.
          features: float[B, ...], the input of the model's last layer.
          view_logits: float32[V, B, K], of the views of each image; None: the image itself is its
            only view.
          step: int32[]; None in evaluation, where the loss is that of the end of the run.
        """
        inputs: dict[str, Any] = {}
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


def train_step(
    state: TrainState,
    totals: dict[str, jax.Array],
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    apply_fn: Callable,
    objective: Objective,
    tx: optax.GradientTransformation,
    prepare: Callable,
    pixels: Callable[[jax.Array], jax.Array] = lambda images: images,
    loss_scale: float = 1.0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of gradient descent on the batch's mean loss.

    Args:
      state: before.
      totals: running sums of the epoch (`zero_totals`).
      batch: {"image": uint8[B, H, W, C], "label": int32[B], "index": int32[B]}; under pmap this
        device's part.
      key: the run's key; the step is folded in, so a resumed run draws the same.
      apply_fn: (params, batch_stats, images, key) -> logits float32[B, K], new batch_stats,
        features.
      objective: the loss.
      tx: the optimizer.
      prepare: (batch with its epoch, key of the step, key of the run, axis_name) -> batch as the
        loss takes it, its images float[B, H, W, C], perhaps with views float[V, B, H, W, C].
      pixels: normalised images -> the same in 0..255.
      loss_scale: by which gradients are larger on their way back, so that float16 holds them; a
        power of two.
      axis_name: the device axis under pmap.

    Returns:
      The state and the totals after, the same on every device.
    """
    prepare_key, model_key = jax.random.split(jax.random.fold_in(key, state.step))
    run_key = jax.random.fold_in(key, RUN)
    epoch = state.step // objective.steps_per_epoch
    prepared = prepare(batch | {"epoch": epoch}, prepare_key, run_key, axis_name)
    images, labels, views = prepared["image"], prepared["label"], prepared.get("views")

    def objective_fn(params: Any) -> tuple[jax.Array, Any]:
        seen = images if views is None else _together(images, views)
        logits, batch_stats, features = apply_fn(params, state.batch_stats, seen, model_key)
        view_logits = None
        if views is not None:
            logits, view_logits = _apart(logits, len(views))
            features = None if features is None else _apart(features, len(views))[0]
        losses = objective(
            logits,
            labels,
            pixels=lambda: pixels(images),
            features=features,
            view_logits=view_logits,
            step=state.step,
        )
        return loss_scale * jnp.mean(losses), (logits, batch_stats)

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(objective_fn, has_aux=True)(
        state.params
    )
    loss, grads = jax.tree.map(lambda x: x / loss_scale, (loss, grads))
    hits = jnp.sum(
        predict(logits) == batch["label"], dtype=loss.dtype
    )  # a float: one collective a step, for them all
    loss, grads, batch_stats, hits = collectives.mean((loss, grads, batch_stats, hits), axis_name)
    update = optax.with_extra_args_support(tx).update
    updates, opt_state = update(grads, state.opt_state, state.params, value=loss)
    params = optax.apply_updates(state.params, updates)

    devices = collectives.size(axis_name)
    count = jnp.int32(devices * len(batch["label"]))
    # The norm of the new parameters is finite only if each of them is: one number watches the whole
    # state.
    finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(params))
    place = (
        totals["count"] // count
    )  # of the step in its epoch; those beyond the early ones are dropped
    totals = {
        "loss": totals["loss"] + loss * count.astype(loss.dtype),
        "correct": totals["correct"] + jnp.round(devices * hits).astype(jnp.int32),
        "count": totals["count"] + count,
        "bad_step": jnp.minimum(totals["bad_step"], jnp.where(finite, NEVER, state.step)),
        "gradient_norms": totals["gradient_norms"]
        .at[place]
        .set(optax.tree.norm(grads), mode="drop"),
    }
    return TrainState(state.step + 1, params, batch_stats, opt_state), totals


def _together(images: jax.Array, views: jax.Array) -> jax.Array:
    """[B, ...], [V, B, ...] -> [B (1 + V), ...]: each image before its views, whichever device
    holds them.
    """
    return jnp.concatenate([images[None], views]).swapaxes(0, 1).reshape(-1, *images.shape[1:])


def _apart(values: jax.Array, views: int) -> tuple[jax.Array, jax.Array]:
    """What the model made of `_together`: float[B, ...] of the images, float[V, B, ...] of their
    views.
    """
    each = values.reshape(-1, 1 + views, *values.shape[1:]).swapaxes(0, 1)
    return each[0], each[1:]


def eval_step(
    params: Any,
    batch_stats: Any,
    batch: dict[str, jax.Array],
    *,
    apply_fn: Callable,
    objective: Objective,
    own: Sequence[metrics.Metric] = (),
    axis_name: str | None = None,
) -> dict[str, jax.Array]:
    """Metric sums of a batch, padding masked out.

    Args:
      params, batch_stats: of the model.
      batch: {"image": uint8[B, H, W, C], "label": int32[B], "mask": bool[B]}.
      apply_fn: (params, batch_stats, images uint8[B, H, W, C]) -> logits float32[B, K], features.
      objective: the loss.
      own: metrics besides those that are always measured.
      axis_name: the device axis under pmap.

    Returns:
      `metrics.sums`, over all devices.
    """
    logits, features = apply_fn(params, batch_stats, batch["image"])
    loss = objective(logits, batch["label"], pixels=lambda: batch["image"], features=features)
    return collectives.total(
        metrics.sums(logits, batch["label"], loss, batch["mask"], own), axis_name
    )
