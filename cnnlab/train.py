"""TrainState and the pure steps. They receive the model, the loss and the optimizer as functions and know none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from cnnlab import metrics, parallel
from cnnlab.softmax import predict

NEVER = 2**31 - 1  # `bad_step` while every step was finite
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

    `bad_step` is the first step that was not finite, `gradient_norms` are those of the epoch's first steps.
    """
    return {
        "loss": jnp.zeros(seeds, dtype),
        "correct": jnp.zeros(seeds, jnp.int32),
        "count": jnp.zeros(seeds, jnp.int32),
        "bad_step": jnp.full(seeds, NEVER, jnp.int32),
        "gradient_norms": jnp.zeros((*seeds, EARLY), dtype),
    }


def train_step(
    state: TrainState,
    totals: dict[str, jax.Array],
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    apply_fn: Callable,
    loss_fn: Callable,
    tx: optax.GradientTransformation,
    prepare: Callable,
    given: Callable = lambda images: {},
    loss_scale: float = 1.0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of gradient descent on the batch's mean loss.

    Args:
      state: before.
      totals: running sums of the epoch (`zero_totals`).
      batch: {"image": uint8[B, H, W, C], "label": int32[B]}; under pmap this device's part.
      key: the run's key; the step is folded in, so a resumed run draws the same.
      apply_fn: (params, batch_stats, images, key, axis_name) -> logits float32[B, K], new batch_stats.
      loss_fn: (logits, labels, **given) -> float32[B].
      tx: the optimizer.
      prepare: (key, batch, axis_name) -> images float[B, H, W, C], labels as the loss takes them.
      given: images -> what the loss takes beside logits and labels, by name: a teacher's logits.
      loss_scale: by which gradients are larger on their way back, so that float16 holds them; a power of two.
      axis_name: the device axis under pmap.

    Returns:
      The state and the totals after, the same on every device.
    """
    prepare_key, model_key = jax.random.split(jax.random.fold_in(key, state.step))
    images, labels = prepare(prepare_key, batch, axis_name)

    def objective(params):
        logits, batch_stats = apply_fn(params, state.batch_stats, images, model_key, axis_name)
        return loss_scale * jnp.mean(loss_fn(logits, labels, **given(images))), (logits, batch_stats)

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    loss, grads = jax.tree.map(lambda x: x / loss_scale, (loss, grads))
    hits = jnp.sum(predict(logits) == batch["label"], dtype=loss.dtype)  # a float: one collective a step, for them all
    loss, grads, batch_stats, hits = parallel.mean((loss, grads, batch_stats, hits), axis_name)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    devices = parallel.size(axis_name)
    count = jnp.int32(devices * len(batch["label"]))
    # The norm of the new parameters is finite only if each of them is: one number watches the whole state.
    finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(params))
    place = totals["count"] // count  # of the step in its epoch; those beyond the early ones are dropped
    totals = {
        "loss": totals["loss"] + loss * count.astype(loss.dtype),
        "correct": totals["correct"] + jnp.round(devices * hits).astype(jnp.int32),
        "count": totals["count"] + count,
        "bad_step": jnp.minimum(totals["bad_step"], jnp.where(finite, NEVER, state.step)),
        "gradient_norms": totals["gradient_norms"].at[place].set(optax.tree.norm(grads), mode="drop"),
    }
    return TrainState(state.step + 1, params, batch_stats, opt_state), totals


def eval_step(
    params: Any,
    batch_stats: Any,
    batch: dict[str, jax.Array],
    *,
    apply_fn: Callable,
    loss_fn: Callable,
    given: Callable = lambda images: {},
    axis_name: str | None = None,
) -> dict[str, jax.Array]:
    """Metric sums of a batch, padding masked out.

    Args:
      params, batch_stats: of the model.
      batch: {"image": uint8[B, H, W, C], "label": int32[B], "mask": bool[B]}.
      apply_fn: (params, batch_stats, images uint8[B, H, W, C]) -> logits float32[B, K].
      loss_fn: (logits, labels, **given) -> float32[B].
      given: images uint8[B, H, W, C] -> what the loss takes beside logits and labels.
      axis_name: the device axis under pmap.

    Returns:
      `metrics.sums`, over all devices.
    """
    logits = apply_fn(params, batch_stats, batch["image"])
    loss = loss_fn(logits, batch["label"], **given(batch["image"]))
    return parallel.total(metrics.sums(logits, batch["label"], loss, batch["mask"]), axis_name)
