"""What is stored with a checkpoint's arrays, and how it proves them: SHA-256 of every leaf and
file, sealed.

`about.json` of a step holds path, shape, dtype and SHA-256 of every leaf as it was in memory,
SHA-256 of every array file, the run, the metric and the caller's `extra`, under a SHA-256 of its
own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from cnnlab.checkpoint.layout import ABOUT, MARK, readable
from cnnlab.errors import CheckpointError, InputError, one_line
from cnnlab.multihost import processes, transfer
from cnnlab.types import PyTree

Array: TypeAlias = jax.Array | np.ndarray | np.generic
Leaf: TypeAlias = Array | jax.ShapeDtypeStruct  # of a tree that is saved, or of what is wanted


class Rejected(Exception):
    """Why a stored step cannot be trusted."""


def named_leaves(tree: PyTree) -> dict[str, Leaf]:
    """Flatten a tree into leaves by path, such as `params.Dense_0.kernel`. A flat dict leaves
    nothing to Orbax's view of custom nodes.
    """
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "tree"
        if name in leaves:
            raise InputError(f"checkpoint: two leaves are called '{name}'; rename one of the keys.")
        if isinstance(leaf, bool | int | float | complex) and not isinstance(leaf, np.generic):
            leaf = jnp.asarray(leaf)  # the dtype that a jitted step would give it
        dtype = getattr(leaf, "dtype", None)
        number = dtype is not None and (
            is_key(leaf) or jnp.issubdtype(dtype, np.number) or dtype == np.bool_
        )
        if not number or not getattr(dtype, "isnative", True):
            raise InputError(
                f"checkpoint: leaf '{name}' is a {type(leaf).__name__} {dtype or ''}, not an array "
                "of numbers."
            )
        leaves[name] = leaf
    return leaves


def is_key(leaf: Leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def data(leaf: Array) -> jax.Array | np.ndarray:
    """Return a leaf as a jax or numpy array; for typed PRNG keys, their words, as Orbax and SHA-256
    know only numbers.
    """
    if isinstance(leaf, np.generic):
        return np.asarray(leaf)
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def _host(leaf: Array) -> np.ndarray:
    """View a leaf from the host, without a copy where that is possible."""
    leaf = data(leaf)
    # Also across hosts; np.asarray would cache a copy.
    if isinstance(leaf, jax.Array) and leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    return np.asarray(transfer.fetch(leaf))


def digest(name: str, array: np.ndarray) -> str:
    """Compute the SHA-256 of path, shape, dtype and bytes; it takes about 1 s per 1.3 GB."""
    sha = hashlib.sha256(json.dumps([name, array.shape, str(array.dtype)]).encode())
    sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def _describe(leaf: Leaf) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def seal(body: dict) -> str:
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()


def about_step(
    step: int, leaves: dict[str, Array], metric: float | None, extra: dict | None, run: str = ""
) -> dict:
    """Describe a step as about.json does, except for its files, which are still to be written."""
    records = []
    for name, leaf in leaves.items():
        host = _host(leaf)
        if jnp.issubdtype(host.dtype, np.inexact) and not np.isfinite(host).all():
            raise CheckpointError(
                f"checkpoint step {step} not saved: leaf '{name}' {_describe(leaf)} holds NaN or "
                "infinity."
            )
        record = {
            "path": name,
            "is": _describe(leaf),
            "shape": host.shape,
            "dtype": str(host.dtype),
        }
        record["key"] = str(jax.random.key_impl(cast(jax.Array, leaf))) if is_key(leaf) else None
        records.append(record | {"sha256": digest(name, host)})
    body = {
        "step": step,
        "run": run,
        "metric": metric,
        "extra": {} if extra is None else extra,
        "leaves": records,
    }
    try:
        body = json.loads(json.dumps(body))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"checkpoint step {step}: extra must hold JSON values only: {error}."
        ) from None
    return body


def file_digests(folder: pathlib.Path, names: Iterable[str]) -> dict[str, str]:
    digests = {}
    for name in names:
        with (folder / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def check_files(folder: pathlib.Path, about: dict) -> None:
    for name, stated in about["files"].items():
        if name.endswith(MARK):  # Orbax's, which a copy of a local folder may lack
            continue
        try:
            actual = file_digests(folder / str(about["step"]), [name])[name]
        except OSError as error:
            raise Rejected(f"{name} cannot be read ({one_line(error)})") from None
        if actual != stated:
            raise Rejected(f"{name} is not what was written (its SHA-256 differs)")


def read_about(folder: pathlib.Path, step: int) -> dict:
    try:
        about = json.loads((folder / str(step) / ABOUT).read_bytes())
        body = about["body"]
        stated = about["sha256"]
    except FileNotFoundError:
        raise Rejected(f"{ABOUT} is missing: never completed, or half deleted") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Rejected(f"{ABOUT} cannot be read ({one_line(error)})") from None
    if seal(body) != stated:
        raise Rejected(f"{ABOUT} is not what was written (its SHA-256 differs)")
    if body["step"] != step:
        raise Rejected(f"it was saved as step {body['step']}")
    return body


def compare(wanted: Mapping[str, Leaf], about: dict, folder: pathlib.Path) -> None:
    """Raise InputError naming the first leaf in which the wanted structure differs from the stored
    one.
    """
    stored = {leaf["path"]: leaf["is"] for leaf in about["leaves"]}
    where = f"checkpoint step {about['step']} in {folder} does not fit:"
    hint = "use the configuration it was saved with, or another folder."
    for name, leaf in wanted.items():
        if name not in stored:
            raise InputError(f"{where} it has no leaf '{name}' (wanted {_describe(leaf)}); {hint}")
        if stored[name] != _describe(leaf):
            raise InputError(
                f"{where} leaf '{name}' is {stored[name]}, wanted {_describe(leaf)}; {hint}"
            )
    for name in stored.keys() - wanted.keys():
        raise InputError(
            f"{where} it has a leaf '{name}' ({stored[name]}) that is not wanted; {hint}"
        )


def rank(folder: pathlib.Path, step: int) -> float:
    """Return the metric of a step, by which the best is found; infinity where it cannot be read: it
    may have been the best, and must be rejected before another is taken for that.
    """
    try:
        metric = read_about(folder, step)["metric"]
    except Rejected:
        return math.inf
    return -math.inf if metric is None else metric


def read_state(folder: pathlib.Path, about: dict) -> dict[str, np.ndarray]:
    """Read every leaf as a numpy array (of keys, their words), equal to what was saved; raise
    Rejected if it is not.
    """
    import orbax.checkpoint as ocp

    quiet_orbax()
    records = {leaf["path"]: leaf for leaf in about["leaves"]}
    # Read into host memory: the digests need it there, and no sharding of the saving run can get in
    # the way.
    as_numpy = {
        name: ocp.RestoreArgs(restore_type=np.ndarray)
        for name, leaf in records.items()
        if 0 not in leaf["shape"]
    }
    args = ocp.args.PyTreeRestore(item=dict.fromkeys(as_numpy, 0), restore_args=as_numpy)
    index = processes.index()  # the one process that reads; Orbax would wait for the others
    alone = ocp.options.MultiprocessingOptions(index, {index}, barrier_sync_key_prefix="read")
    try:
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
        with (
            readable(folder / str(about["step"]) / "state") as state,
            ocp.Checkpointer(handler, multiprocessing_options=alone) as reader,
        ):
            host = reader.restore(state, args=args)
    except Exception as error:
        raise Rejected(f"its arrays cannot be read ({one_line(error)})") from None
    for name, leaf in records.items():
        array = host[name] if name in host else np.zeros(leaf["shape"], jnp.dtype(leaf["dtype"]))
        if digest(name, array) != leaf["sha256"]:
            raise Rejected(f"leaf '{name}' is not what was saved (its SHA-256 differs)")
        host[name] = array
    return host


def verified(
    folder: pathlib.Path, step: int, wanted: Mapping[str, Leaf], run: str = ""
) -> tuple[dict, dict[str, np.ndarray]]:
    """Read about.json of a step and its leaves, as `read_state`; raise Rejected if anything in it
    is not what was saved.

    Raises:
      InputError: it is of another run, or holds other leaves than wanted.
    """
    about = read_about(folder, step)
    if about.get("run", "") != run:
        raise InputError(
            f"checkpoint step {step} in {folder} is of another run, or of one on other data: "
            "remove it, or choose another folder."
        )
    compare(wanted, about, folder)
    check_files(folder, about)
    return about, read_state(folder, about)


def placed(leaf: dict, value: np.ndarray | jax.Array, like: Leaf) -> Array:
    """Put the restored value of a leaf of `about` where `like` is: a numpy array, the default
    device, or any sharding.
    """
    if leaf["key"]:
        value = jax.random.wrap_key_data(jnp.asarray(value), impl=leaf["key"])
    if isinstance(like, np.ndarray | np.generic):
        return value if isinstance(like, np.ndarray) else value[()]
    sharding = getattr(like, "sharding", None) if getattr(like, "committed", True) else None
    there = transfer.put(value, sharding)
    if there.dtype != value.dtype:
        was = f"leaf '{leaf['path']}' is {value.dtype}"
        raise InputError(f"checkpoint: {was}, which jax would make {there.dtype}: enable x64.")
    return there


def _from_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def quiet_orbax() -> None:
    """Keep Orbax from logging tracebacks of errors that it also raises; what matters is raised here
    in one line.
    """
    logging.getLogger("absl").addFilter(_from_orbax)
