"""A loss from its specification on the command line: `focal,gamma=2`, or an own one, `my_module.my_loss,alpha=0.3`."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnlab import losses
from cnnlab.cli import parse_spec
from cnnlab.config import Config
from cnnlab.errors import InputError, unknown
from cnnlab.losses.catalogue import accepted

Loss = Callable[..., jax.Array]


def loss_from_spec(spec: str, num_classes: int = 10, given: Mapping[str, Any] | None = None) -> Loss:
    """The loss that `name,key=value,...` means: one of cnnlab.losses, or an own one by its dotted path.

    Args:
      spec: as on the command line; own modules are also found from the current directory.
      num_classes: for trying it once, on shapes only.
      given: hyperparameters for the losses that take them and whose specification leaves them open: class_counts,
        teacher_logits.

    Returns:
      (logits float32[B, K], labels) -> float32[B].

    Raises:
      InputError: an unknown name or hyperparameter, or a function that does not keep a loss's contract.
    """
    loss = _bind(spec, given or {})
    _try(loss, spec, num_classes, ["int32"], {})
    return loss


def loss_from_config(config: Config, num_classes: int, class_counts: np.ndarray) -> Loss:
    """The loss of a run: that of --loss, within what --loss-temperature, --label-smoothing, ... wrap around it.

    Args:
      config: of the run.
      num_classes: K.
      class_counts: int[K], training images of each class.

    Returns:
      (logits float32[B, K], labels int[B] or float32[B, K]) -> float32[B]; with teacher_logits float32[B, K] beside
      them if `needs_teacher`.

    Raises:
      InputError: as `loss_from_spec`, or a teacher without use, or none where one is needed.
    """
    taught = needs_teacher(config)
    if config.teacher and not taught:
        raise InputError(
            f"--teacher is for losses that take teacher_logits, such as distillation; {config.loss} does not"
        )
    counted = "class_counts" in left_open(config.loss) or config.class_weights != "none"
    if counted and not np.all(class_counts):
        raise InputError("a class without training images has no weight or margin: choose another --loss")
    loss = _bind(config.loss, {"class_counts": class_counts}, later=("teacher_logits",) if taught else ())
    if config.loss_temperature != 1:
        loss = losses.temperature(loss, config.loss_temperature)
    if config.label_smoothing:
        loss = losses.label_smoothing(loss, config.label_smoothing, config.smoothing_convention)
    if config.class_weights == "effective_number":
        loss = losses.class_weights(loss, losses.effective_number(class_counts))
    if config.z_loss:
        loss = losses.with_z_loss(loss, config.z_loss)
    labels = ["float32", "int32"] if config.mixup else ["int32"]  # mixup's distributions; validation brings ids
    beside = {"teacher_logits": jax.ShapeDtypeStruct((2, num_classes), jnp.float32)} if taught else {}
    _try(loss, config.loss, num_classes, labels, beside)
    return loss


def needs_teacher(config: Config) -> bool:
    """Whether the loss of a run compares with a teacher's logits.

    Raises:
      InputError: it does, and no teacher is named; or the loss is unknown.
    """
    parameter = _open(config.loss).get("teacher_logits")
    if parameter and parameter.default is parameter.empty and not config.teacher:
        raise InputError(f"{config.loss} compares with a teacher: --teacher RUN names the run folder of one")
    return bool(parameter and config.teacher)


def left_open(spec: str) -> set[str]:
    """The hyperparameters of a loss that its specification does not set.

    Raises:
      InputError: an unknown name.
    """
    return set(_open(spec))


def _open(spec: str) -> dict[str, inspect.Parameter]:
    name, kwargs = parse_spec(spec)
    parameters = list(_signature(name, _named(name)).parameters.items())[2:]
    return {name: parameter for name, parameter in parameters if name not in kwargs}


def on_cosines(spec: str) -> bool:
    """Whether a loss is made for logits that are cosines."""
    return parse_spec(spec)[0].removeprefix("cnnlab.losses.") in losses.ON_COSINES


def source_digest(spec: str) -> str | None:
    """SHA-256 of the file that an own loss is written in; None for those of cnnlab."""
    name, _ = parse_spec(spec)
    if "." not in name:
        return None
    file = inspect.getsourcefile(inspect.unwrap(_own_loss(name)))
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None


def _named(name: str) -> Callable:
    known = losses.LOSSES | losses.ALIASES
    if "." not in name and name not in known:
        raise unknown("loss", name, known)
    return _own_loss(name) if "." in name else known[name]


def _signature(name: str, function: Callable) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (ValueError, TypeError) as error:
        raise InputError(f"loss '{name}' is no loss(logits, labels, ...) written in Python") from error


def _bind(spec: str, given: Mapping[str, Any], later: tuple[str, ...] = ()) -> Loss:
    """The function with its hyperparameters; those in `later` come with each call."""
    name, kwargs = parse_spec(spec)
    function = _named(name)
    signature = _signature(name, function)
    kwargs |= {k: v for k, v in given.items() if k in signature.parameters and k not in kwargs}
    try:
        signature.bind(None, None, **kwargs, **dict.fromkeys(later))
    except TypeError as error:
        raise InputError(f"loss {name}: {error}; its hyperparameters: {accepted(function)}") from error
    return functools.partial(function, **kwargs)


def _try(loss: Loss, spec: str, num_classes: int, labels: list[str], beside: Mapping[str, Any]) -> None:
    """Call the loss once for each type of labels, on shapes only, to refuse what does not keep the contract."""
    logits = jax.ShapeDtypeStruct((2, num_classes), jnp.float32)
    for dtype in labels:
        shape = (2,) if dtype == "int32" else (2, num_classes)
        try:
            result = jax.eval_shape(loss, logits, jax.ShapeDtypeStruct(shape, dtype), **beside)
        except Exception as error:
            name = parse_spec(spec)[0]
            if isinstance(error, ValueError) and "." not in name:  # ours say what is wrong themselves
                raise InputError(f"loss {name}: {error}; its hyperparameters: {accepted(_named(name))}") from error
            with_labels = f"labels {dtype}{list(shape)}{' (mixup)' * (dtype != 'int32')}"
            raise InputError(
                f"loss '{spec}' fails on logits float32[2, {num_classes}] and {with_labels}: {where(error)}"
            ) from error
        if getattr(result, "shape", None) != (2,) or not jnp.issubdtype(result.dtype, jnp.floating):
            raise InputError(f"loss '{spec}' must return one value per example, float32[2] for two; got {result}")


def _own_loss(path: str) -> Callable:
    module_name, _, name = path.rpartition(".")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(f"loss '{path}': no module '{error.name}', here or installed") from error
    except Exception as error:  # whatever a user's module raises while it is imported
        raise InputError(f"loss '{path}': module '{module_name}' cannot be imported: {where(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise unknown(f"loss in {module_name}", name, known)
    return function


def where(error: BaseException) -> str:
    """What was raised and the place in the user's code, in a line."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    reason = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {reason}{place}"
