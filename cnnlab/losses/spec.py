"""A loss from its specification on the command line: `focal,gamma=2`, or an own one, `my_module.my_loss,alpha=0.3`."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from cnnlab import losses
from cnnlab.cli import parse_spec
from cnnlab.errors import InputError, unknown


def loss_from_spec(spec: str, num_classes: int = 10, distributions: bool = False) -> Callable[[Any, Any], jax.Array]:
    """The loss that `name,key=value,...` means: one of cnnlab.losses, or an own one by its dotted path.

    Args:
      spec: as on the command line; own modules are also found from the current directory.
      num_classes: for trying it once, on shapes only.
      distributions: whether it will meet float[B, K] labels (mixup) rather than ids.

    Returns:
      (logits float32[B, K], labels) -> float32[B].

    Raises:
      InputError: an unknown name or hyperparameter, or a function that does not keep a loss's contract.
    """
    name, kwargs = parse_spec(spec)
    function = _own_loss(name) if "." in name else getattr(losses, name, None) if name in losses.__all__ else None
    if function is None:
        raise unknown("loss", name, losses.__all__)
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError) as error:
        raise InputError(f"loss '{name}' is no loss(logits, labels, ...) written in Python") from error
    try:
        signature.bind(None, None, **kwargs)
    except TypeError as error:
        takes = list(signature.parameters)[2:] or ["none"]
        raise InputError(f"loss {name}: {error}; its hyperparameters: {', '.join(takes)}") from error
    loss = functools.partial(function, **kwargs)
    labels = (
        jax.ShapeDtypeStruct((2, num_classes), jnp.float32) if distributions else jax.ShapeDtypeStruct((2,), "int32")
    )
    try:
        result = jax.eval_shape(loss, jax.ShapeDtypeStruct((2, num_classes), jnp.float32), labels)
    except Exception as error:
        with_labels = f"labels {labels.dtype}{list(labels.shape)}{' (mixup)' * distributions}"
        raise InputError(
            f"loss '{spec}' fails on logits float32[2, {num_classes}] and {with_labels}: {_where(error)}"
        ) from error
    if getattr(result, "shape", None) != (2,) or not jnp.issubdtype(result.dtype, jnp.floating):
        raise InputError(f"loss '{spec}' must return one value per example, float32[2] for two; got {result}")
    return loss


def source_digest(spec: str) -> str | None:
    """SHA-256 of the file that an own loss is written in; None for those of cnnlab."""
    name, _ = parse_spec(spec)
    if "." not in name:
        return None
    file = inspect.getsourcefile(inspect.unwrap(_own_loss(name)))
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None


def _own_loss(path: str) -> Callable:
    module_name, _, name = path.rpartition(".")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(f"loss '{path}': no module '{error.name}', here or installed") from error
    except Exception as error:  # whatever a user's module raises while it is imported
        raise InputError(f"loss '{path}': module '{module_name}' cannot be imported: {_where(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise unknown(f"loss in {module_name}", name, known)
    return function


def _where(error: BaseException) -> str:
    """What was raised and the place in the user's code, in a line."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    reason = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {reason}{place}"
