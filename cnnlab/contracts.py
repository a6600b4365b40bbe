"""What each kind of part promises, tried on shapes before anything is read or trained. Each failure
is one line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cnnlab import augment, spec
from cnnlab.errors import InputError, is_stop
from cnnlab.metrics import Metric
from cnnlab.spec import Part
from cnnlab.types import PyTree

# What a loss may ask for that comes with each call, besides logits and labels.
LOSS_INPUTS = ("teacher_logits", "view_logits", "progress", "epoch", "features")


def check_loss(
    part: Part,
    loss: Callable,
    num_classes: int,
    label_dtypes: Sequence[str] = ("int32",),
    features: Sequence[int] = (2, 16),
    written: str = "",
) -> None:
    """Call a loss once for each type of labels, on shapes only.

    Args:
      part: whose errors are reported.
      loss: the part bound, perhaps within transforms.
      features: shape of the input of the model's last layer for two images.
      written: the loss with its transforms, for messages; empty: the part.
      num_classes: K.
      label_dtypes: int32 for class ids, float32 for distributions.

    Raises:
      InputError: it does not keep the contract.
    """
    logits = jax.ShapeDtypeStruct((2, num_classes), jnp.float32)
    shapes = {
        "teacher_logits": (2, num_classes),
        "view_logits": (1, 2, num_classes),
        "features": tuple(features),
    }
    inputs = {
        name: jax.ShapeDtypeStruct(
            shapes.get(name, ()), jnp.int32 if name == "epoch" else jnp.float32
        )
        for name in LOSS_INPUTS
        if part.asks(name)
    }
    for dtype in label_dtypes:
        shape = (2,) if dtype == "int32" else (2, num_classes)
        try:
            result = jax.eval_shape(loss, logits, jax.ShapeDtypeStruct(shape, dtype), **inputs)
        except BaseException as error:
            if is_stop(error):
                raise
            if isinstance(error, ValueError) and part.is_builtin:
                accepted = f"; {part.accepted()}" if written in ("", str(part)) else ""
                raise InputError(f"loss {written or part.name}: {error}{accepted}") from error
            mixed = "" if dtype == "int32" else " (mixup)"
            labels = f"labels {dtype}{list(shape)}{mixed}"
            raise InputError(
                f"loss '{written or part}' fails on logits float32[2, {num_classes}] and {labels}: "
                f"{spec.where(error)}"
            ) from error
        if getattr(result, "shape", None) != (2,) or not jnp.issubdtype(result.dtype, jnp.floating):
            raise InputError(
                f"loss '{part}' must return one value per example, float32[2] for two; got {result}"
            )


def check_model(part: Part, model: nn.Module, image_shape: Sequence[int], num_classes: int) -> None:
    """Call a user's model once in evaluation and once in training; cnnlab's own are tested.

    Args:
      part: whose errors are reported.
      model: made of it, without an axis_name.
      image_shape: (H, W, C).
      num_classes: K.

    Raises:
      InputError: it does not give float[B, K] for images float32[B, H, W, C].
    """
    if part.is_builtin:
        return
    try:
        hash(model)
    except TypeError as error:
        raise InputError(
            f"model '{part}' cannot be hashed: put tuples in place of lists, dicts and arrays in "
            "its fields"
        ) from error

    def run(key: jax.Array, images: jax.Array) -> tuple[jax.Array, Mapping[str, PyTree]]:
        variables = model.init(key, images, train=False)
        model.apply(variables, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"])
        logits = cast(jax.Array, model.apply(variables, images, train=False))
        return logits, variables

    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    with spec.refused(f"model '{part}' fails on images float32{list(images.shape)}"):
        logits, variables = jax.eval_shape(run, _key(), images)
    shape = getattr(logits, "shape", None)
    if shape != (2, num_classes) or not jnp.issubdtype(logits.dtype, jnp.floating):
        returned = type(logits).__name__ if shape is None else f"{logits.dtype}{list(shape)}"
        raise InputError(
            f"model '{part}' must return logits float32[2, {num_classes}] for two images, got "
            f"{returned}"
        )
    if strange := set(variables) - {"params", "batch_stats"}:
        raise InputError(
            f"model '{part}' has variables in {sorted(strange)}; only params and batch_stats are "
            "kept"
        )


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))


@contextlib.contextmanager
def captured(wanted: bool) -> Iterator[dict[str, jax.Array]]:
    """Catch the input of the last layer that a model calls in the body: the features, under
    "input".
    """
    last: dict[str, jax.Array] = {}
    if not wanted:
        yield last
        return

    def intercept(
        call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext
    ) -> object:
        if (
            context.method_name == "__call__" and context.module.path and args
        ):  # not the model itself
            last["input"] = args[0]
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield last


def features_shape(part: Part, model: nn.Module, image_shape: Sequence[int]) -> tuple[int, ...]:
    """Find the shape of the input of a model's last layer, for two images.

    Raises:
      InputError: the model calls no layer.
    """

    def run(key: jax.Array, images: jax.Array) -> jax.Array | None:
        variables = model.init(key, images, train=False)
        with captured(True) as last:
            model.apply(variables, images, train=False)
        return last.get("input")

    features = jax.eval_shape(run, _key(), jax.ShapeDtypeStruct((2, *image_shape), jnp.float32))
    if features is None:
        raise InputError(
            f"model '{part}' calls no layer, and so has no features for a loss that asks for them"
        )
    return features.shape


def check_schedule(part: Part, build: Callable[[jax.Array], optax.Schedule]) -> None:
    """Ask a schedule for one rate. In the step the peak and the number of the step are traced.

    Args:
      part: whose errors are reported.
      build: peak -> schedule.

    Raises:
      InputError: it fails on traced numbers, or the rate is no number.
    """
    peak, step = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    with spec.refused(f"schedule '{part}' fails where JAX traces peak and step"):
        rate = jax.eval_shape(lambda peak, step: jnp.asarray(build(peak)(step)), peak, step)
    if rate.shape != ():
        raise InputError(
            f"schedule '{part}' must give one rate for a step, got {rate.dtype}{list(rate.shape)}"
        )


def check_average(part: Part, weight: Callable[[jax.Array], jax.Array], total_steps: int) -> None:
    """Ask an average of the weights for the share of some steps. In the step their number is
    traced.

    Args:
      part: whose errors are reported.
      weight: step int32[] -> weight, made of it.
      total_steps: of the run.

    Raises:
      InputError: it fails on a traced number, or a weight is no number in [0, 1].
    """
    with spec.refused(f"average '{part}' fails where JAX traces the step"):
        shape = jax.eval_shape(
            lambda step: jnp.asarray(weight(step)), jax.ShapeDtypeStruct((), jnp.int32)
        )
    if shape.shape != ():
        raise InputError(
            f"average '{part}' must give one weight for a step, got "
            f"{shape.dtype}{list(shape.shape)}"
        )
    for step in sorted({0, total_steps // 2, total_steps - 1}):
        share = float(weight(jnp.int32(step)))
        if not 0 <= share <= 1:
            raise InputError(
                f"average '{part}' must give weights in [0, 1], got {share:g} for step {step} of "
                f"{total_steps}"
            )


def check_optimizer(
    part: Part,
    build: Callable[[jax.Array], optax.GradientTransformationExtraArgs],
    model: nn.Module,
    image_shape: Sequence[int],
) -> None:
    """Take one step of an optimizer on a model's parameters. In the step the learning rate is
    traced.

    Args:
      part: whose errors are reported.
      build: peak of the learning rate -> optimizer.
      model: whose parameters.
      image_shape: (H, W, C).

    Raises:
      InputError: it fails on them.
    """

    def run(
        key: jax.Array, images: jax.Array, peak: jax.Array
    ) -> tuple[optax.Params, optax.OptState]:
        params = model.init(key, images, train=False)["params"]
        tx = build(peak)
        updates, state = tx.update(params, tx.init(params), params, value=peak)
        return optax.apply_updates(params, updates), state

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with spec.refused(f"optimizer '{part}' fails on the model's parameters"):
        jax.eval_shape(run, _key(), images, jax.ShapeDtypeStruct((), jnp.float32))


def check_metric(part: Part, metric: Metric, num_classes: int) -> None:
    """Let a metric add up a batch of two images, on shapes only.

    Args:
      part: whose errors are reported.
      metric: made of it.
      num_classes: K.

    Raises:
      InputError: it fails, or what it gives is no array.
    """
    logits = jax.ShapeDtypeStruct((2, num_classes), jnp.float32)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32)
    mask = jax.ShapeDtypeStruct((2,), jnp.bool_)
    shapes = f"logits float32[2, {num_classes}], labels int32[2] and mask bool[2]"
    with spec.refused(f"metric '{part}' fails on {shapes}"):
        total = jax.eval_shape(metric.sums, logits, labels, mask)
    if not isinstance(total, jax.ShapeDtypeStruct):
        raise InputError(f"metric '{part}' must add up an array, got {type(total).__name__}")


def batch_shapes(batch_size: int, image_shape: Sequence[int]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a batch as the first augmentation finds it."""
    shapes = {
        "image": (batch_size, *image_shape),
        "label": (batch_size,),
        "index": (batch_size,),
        "epoch": (),
    }
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.float32 if name == "image" else jnp.int32)
        for name, shape in shapes.items()
    }


def check_augmentation(
    operation: augment.Operation, batch: dict[str, jax.ShapeDtypeStruct], num_classes: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Apply an operation once.

    Args:
      operation: of a pipeline.
      batch: as shapes, as the operation before it left it.
      num_classes: K.

    Returns:
      The batch after it, as shapes.

    Raises:
      InputError: it fails, or changes what it must not.
    """
    name = operation.name
    images = batch["image"]
    try:
        changed = jax.eval_shape(
            lambda batch, key: augment.apply([operation], batch, key, key), batch, _key()
        )
    except BaseException as error:
        if is_stop(error):
            raise
        is_builtin = name.partition(" ")[0] in augment.AUGMENTATIONS  # the second flip is "flip 2"
        explained = isinstance(error, ValueError) and is_builtin
        said = str(error) if explained else spec.where(error)
        raise InputError(
            f"augmentation {name} fails on images float32{list(images.shape)}: {said}"
        ) from error
    labels = {(images.shape[:1], "int32"), ((images.shape[0], num_classes), "float32")}
    if not isinstance(changed, Mapping) or not set(batch) <= set(changed) <= {*batch, "views"}:
        raise InputError(
            f"augmentation {name} must return the batch, with image, label, index and epoch"
        )
    for field in ("image", "index", "epoch"):
        before, after = (f"{b[field].dtype}{list(b[field].shape)}" for b in (batch, changed))
        if before != after:
            raise InputError(f"augmentation {name} must keep {field} {before}, got {after}")
    label = changed["label"]
    if (label.shape, str(label.dtype)) not in labels:
        raise InputError(
            f"augmentation {name} must return labels int32[B] or float32[B, K], got "
            f"{label.dtype}{list(label.shape)}"
        )
    return dict(changed)
