"""Save and restore any pytree of arrays: asynchronous, atomic, verified bit by bit at every restore.

Orbax writes a step into a temporary folder and renames it; that survives a kill. It does not notice a flipped bit in
the array data, so each step also holds `about.json`: path, shape, dtype and SHA-256 of every leaf as it was in memory,
SHA-256 of every array file, the metric and the caller's `extra`, under a SHA-256 of its own. What is read back must
give the same digests, or the step is rejected and the next tried. (The leaves' digests are the proof; the files' keep
damaged files away from Orbax, whose parallel readers answer them with tracebacks from background threads.)

A folder looks like this (all but the numbered steps may be deleted by hand):

    400/            a step: state/ (Orbax's array data) and about.json (the digests)
    500.orbax-…     being written, or left by a killed process: removed at the next start
    todelete/       steps that `keep` dropped, on their way out: a rename first, so no half-deleted step is ever listed
    rejected/       steps that failed a restore, set aside by the next save; never removed by cnnlab
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from cnnlab.errors import InputError

# orbax.checkpoint is imported where it is first needed: 0.4 to 0.6 s that a run without checkpoints does not pay.

_ABOUT, _TMP, _TODELETE, _REJECTED = "about.json", ".orbax-checkpoint-tmp", "todelete", "rejected"
_log = logging.getLogger(__name__)


class CheckpointError(InputError):
    """A state that cannot be stored, or stored steps of which none can be trusted. The message names the step."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `Checkpoints.restore` found.

    Attributes:
        step: the step that verified.
        tree: the state in the structure of `like`: jax arrays with its shardings, numpy arrays where it has those.
        extra: the dict given to `save`, as JSON gives it back (tuples are lists, keys are strings).
        metric: the metric given to `save`.
        rejected: one line, "step 9: why", for each step that was tried before and failed.
    """

    step: int
    tree: Any
    extra: dict
    metric: float | None
    rejected: tuple[str, ...]


class Checkpoints:
    """The steps of one run in one folder; one process writes, others may read (`read_only=True`).

    Use it as a context manager: `close` waits for the save under way, and only then is its failure sure to be seen.
    With several hosts every process makes one and calls every method.

    Args:
        folder: where the steps are; made if missing, relative paths are taken from the current directory now.
        keep: how many of the last steps to keep. The best (highest metric; of equals the newest) is kept beside them.
        read_only: look only: creates, cleans and deletes nothing. Use it beside a run that is still writing.

    Raises:
        InputError: `keep` below 1, or a folder that cannot be written.
    """

    def __init__(self, folder: str | os.PathLike, *, keep: int = 2, read_only: bool = False):
        if keep < 1:
            raise InputError(f"checkpoints: keep must be at least 1, got {keep}.")
        self.folder = pathlib.Path(os.path.abspath(folder))
        self._keep = keep
        self._pending: int | None = None  # the step being saved, and what its about.json will say
        self._about: dict = {}
        self._rejected: set[int] = set()
        self._metrics: dict[int, float | None] = {}  # of the steps whose about.json can be read
        self._manager: Any = None
        if not read_only:
            _probe(self.folder)
            _on_first_process(lambda: _sweep(self.folder))
            for step in self.steps():
                with contextlib.suppress(_Rejected):  # restore says why; a step that cannot be read is never deleted
                    self._metrics[step] = _read_about(self.folder, step)["metric"]
            self._manager = self._make_manager()
            # A process that forgets `close` loses its save, or hangs for 20 minutes in Orbax's threads (measured). Only
            # this hook, which concurrent.futures uses itself, runs before executors are shut down; atexit is later.
            getattr(threading, "_register_atexit", atexit.register)(self._at_exit)

    def _make_manager(self):
        import orbax.checkpoint as ocp

        _quiet_orbax()
        options = ocp.CheckpointManagerOptions(
            todelete_subdir=_TODELETE,
            preservation_policy=_Policy(
                lambda step: step not in self._metrics or step in kept(self._metrics, self._keep)
            ),
            lightweight_initialize=True,  # metrics are in about.json: a damaged step must not stop the start
            async_options=ocp.AsyncOptions(post_finalization_callback=self._before_rename),
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self.close()
        except CheckpointError as failed:
            if error is None:
                raise
            error.add_note(str(failed))  # what ended the run matters more than the save that failed with it

    def steps(self) -> list[int]:
        """The committed steps on disk, oldest first, damaged ones included; a save under way is not among them."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if _is_step(p))

    def save(self, step: int, tree: Any, *, metric: float | None = None, extra: dict | None = None) -> None:
        """Copies the state off the devices and writes it in the background; at most one save is under way.

        Args:
            step: any number above those already in the folder.
            tree: a pytree of jax or numpy arrays, typed PRNG keys and Python numbers.
            metric: higher is better. None (a save in mid-epoch) or NaN: never the best.
            extra: a small dict of JSON values, stored in the same atomic step.

        Raises:
            CheckpointError: a leaf holds NaN or inf; this save, or the one before it (its step is named), failed.
            InputError: the step is not new, `extra` is not JSON, or a leaf is not an array of numbers.
        """
        if self._manager is None:
            raise InputError(f"checkpoints in {self.folder}: opened read-only or closed, step {step} cannot be saved.")
        import orbax.checkpoint as ocp

        step = int(step)
        self.wait()
        self._set_rejected_aside()
        latest = max(self.steps(), default=-1)
        if step <= latest:
            exists = "already exists" if step in self.steps() else f"is not newer than step {latest}"
            raise InputError(
                f"checkpoint step {step} {exists} in {self.folder}; use another folder or delete the newer steps."
            )
        metric = None if metric is None or not math.isfinite(metric) else float(metric)
        leaves = _named_leaves(tree)
        self._about = _about(step, leaves, metric, extra)
        # Orbax refuses arrays without elements; their shape and dtype are in about.json, which is all they hold.
        # Orbax copies what the caller may change or donate meanwhile before it returns (a test holds it to that).
        state = {name: _data(leaf) for name, leaf in leaves.items() if np.size(_data(leaf))}
        if not state:
            raise InputError(f"checkpoint step {step}: the tree holds no array, there is nothing to save.")
        self._pending, self._metrics[step] = step, metric
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(state))
        try:
            self._manager.save(step, args=args, force=True)  # without force it may return False and write nothing
        except Exception as error:
            raise self._failed(step, error) from error

    def wait(self) -> None:
        """Returns when the save under way, if any, is on disk and named.

        Raises:
            CheckpointError: it failed; the message names its step. The steps before it are untouched.
        """
        step = self._pending
        if self._manager is None or step is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(step, error) from error
        self._pending = None
        _on_first_process(
            lambda: (_fsync(self.folder), _sweep(self.folder))
        )  # the rename itself must survive a power loss

    def close(self) -> None:
        """Waits for the save under way and ends Orbax's threads. A second call does nothing.

        Raises:
            CheckpointError: as `wait`.
        """
        try:
            self.wait()
        finally:
            manager, self._manager = self._manager, None
            if manager is not None:
                manager.close()

    def _at_exit(self) -> None:
        try:
            self.close()
        except Exception as error:  # it would be lost without a word, and with exit status 0
            print(f"{error} (noticed when the process ended; use Checkpoints as a context manager)", file=sys.stderr)

    def restore(self, like: Any, *, which: Literal["latest", "best"] | int = "latest") -> Restored | None:
        """The newest (or best, or the given) step whose every leaf has the digest it was saved with.

        Args:
            like: the wanted structure: a pytree of arrays or jax.ShapeDtypeStruct; the leaves go to its shardings,
                whatever number of devices the step was saved on.
            which: "latest"; "best", from the highest metric down, then steps without one from the newest; or one step.

        Returns:
            The first step that verifies, with a line for each that did not; None if the folder holds no step.

        Raises:
            CheckpointError: no step verifies; each is named with the reason.
            InputError: a sound step holds other leaves, shapes or dtypes than `like`; the wanted step does not exist.
        """
        self.wait()
        wanted, steps, rejected = _named_leaves(like), self.steps()[::-1], []
        if not isinstance(which, str):
            which = int(which)
            if which not in steps:
                raise InputError(
                    f"checkpoint step {which} is not in {self.folder}; it holds {steps[::-1] or 'no step'}."
                )
            steps = [which]
        elif which not in ("latest", "best"):
            raise InputError(f"restore: which must be 'latest', 'best' or a step, got {which!r}.")
        if which == "best":
            steps.sort(key=lambda step: _rank(self.folder, step), reverse=True)  # stable: of equals the newest first
        for step in steps:
            try:
                about = _read_about(self.folder, step)
                _compare(wanted, about, self.folder)
                _check_files(self.folder, about)
                host = _read_state(self.folder, about)
            except _Rejected as why:
                rejected.append(f"step {step}: {why}")
                self._rejected.add(step)
                _log.warning("checkpoint step %d in %s rejected: %s", step, self.folder, why)
                continue
            values = [_placed(name, host[name], leaf) for name, leaf in wanted.items()]
            tree = jax.tree.unflatten(jax.tree.structure(like), values)
            return Restored(step, tree, about["extra"], about["metric"], tuple(rejected))
        if not steps:
            return None
        raise CheckpointError(f"no checkpoint in {self.folder} can be trusted: {'; '.join(rejected)}.")

    def _set_rejected_aside(self) -> None:
        """Moves what `restore` rejected out of the way: it could not be saved anew, and would push good steps out."""
        bad = [step for step in sorted(self._rejected) if step in self.steps()]
        self._rejected.clear()
        if not bad:
            return

        def move():
            (self.folder / _REJECTED).mkdir(exist_ok=True)
            for step in bad:
                (self.folder / str(step)).rename(self.folder / _REJECTED / f"{step}-{time.time_ns()}")

        _on_first_process(move)
        for step in bad:
            self._metrics.pop(step, None)
        self._manager.reload()

    def _failed(self, step: int, error: Exception) -> CheckpointError:
        """Forgets the save under way, so that the next one can succeed (the disk may have room again), and names it."""
        self._pending = None
        self._metrics.pop(step, None)
        _on_first_process(lambda: _sweep(self.folder))
        self._manager.reload()
        return CheckpointError(f"checkpoint step {step} in {self.folder} was not saved: {_one_line(error)}")

    def _before_rename(self) -> None:
        """Runs in Orbax's thread, on the first process, when all is written and nothing yet has the step's name."""
        (tmp,) = self.folder.glob(f"{self._pending}{_TMP}*")
        files = sorted(str(path.relative_to(tmp)) for path in (tmp / "state").rglob("*") if path.is_file())
        body = self._about | {"files": _file_digests(tmp, files)}
        (tmp / _ABOUT).write_text(json.dumps({"sha256": _seal(body), "body": body}))
        # Orbax syncs the array data, but neither its small files nor the folders.
        for path in [tmp, *tmp.rglob("*")]:
            _fsync(path)


def kept(metrics: Mapping[int, float | None], keep: int) -> set[int]:
    """The steps to keep: the last `keep`, and the one with the highest metric (of equals the newest).

    >>> sorted(kept({1: 0.5, 2: 0.9, 3: None, 4: 0.7, 5: None}, keep=2))
    [2, 4, 5]
    """
    best = max(((m, step) for step, m in metrics.items() if m is not None), default=None)
    return set(sorted(metrics)[-keep:]) | ({best[1]} if best else set())


@dataclasses.dataclass
class _Policy:
    """Orbax's preservation policy from a predicate on the step."""

    keeps: Callable[[int], bool]

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        return [self.keeps(checkpoint.step) for checkpoint in checkpoints]


class _Rejected(Exception):
    """Why a stored step cannot be trusted."""


def _named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by path, such as `params.Dense_0.kernel`: a flat dict leaves nothing to Orbax's view of custom nodes."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "tree"
        if name in leaves:
            raise InputError(f"checkpoint: two leaves are called '{name}'; rename one of the keys.")
        if isinstance(leaf, bool | int | float | complex) and not isinstance(leaf, np.generic):
            leaf = jnp.asarray(leaf)  # the dtype that a jitted step would give it
        dtype = getattr(leaf, "dtype", None)
        number = dtype is not None and (_is_key(leaf) or jnp.issubdtype(dtype, np.number) or dtype == np.bool_)
        if not number or not getattr(dtype, "isnative", True):
            raise InputError(
                f"checkpoint: leaf '{name}' is a {type(leaf).__name__} {dtype or ''}, not an array of numbers."
            )
        leaves[name] = leaf
    return leaves


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _data(leaf: Any) -> Any:
    """A jax or numpy array; of typed PRNG keys their words, as Orbax and SHA-256 know numbers only."""
    if isinstance(leaf, np.generic):
        return np.asarray(leaf)
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _host(leaf: Any) -> np.ndarray:
    """A copy-free look at a leaf from the host."""
    leaf = _data(leaf)
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    if leaf.is_fully_replicated:  # also across hosts; and unlike np.asarray(leaf) it leaves no copy cached on the leaf
        return np.asarray(leaf.addressable_data(0))
    if leaf.is_fully_addressable:
        return np.asarray(leaf)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def _digest(name: str, array: np.ndarray) -> str:
    """SHA-256 of path, shape, dtype and bytes; about 1 s per 1.3 GB."""
    sha = hashlib.sha256(json.dumps([name, array.shape, str(array.dtype)]).encode())
    sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _seal(body: dict) -> str:
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()


def _about(step: int, leaves: dict[str, Any], metric: float | None, extra: dict | None) -> dict:
    """What about.json says, but for the files, which are still to be written."""
    records = []
    for name, leaf in leaves.items():
        host = _host(leaf)
        if jnp.issubdtype(host.dtype, np.inexact) and not np.isfinite(host).all():
            raise CheckpointError(
                f"checkpoint step {step} not saved: leaf '{name}' {_describe(leaf)} holds NaN or infinity."
            )
        record = {"path": name, "is": _describe(leaf), "shape": host.shape, "dtype": str(host.dtype)}
        record["key"] = str(jax.random.key_impl(leaf)) if _is_key(leaf) else None
        records.append(record | {"sha256": _digest(name, host)})
    body = {"step": step, "metric": metric, "extra": {} if extra is None else extra, "leaves": records}
    try:
        body = json.loads(json.dumps(body))
    except (TypeError, ValueError) as error:
        raise InputError(f"checkpoint step {step}: extra must hold JSON values only: {error}.") from None
    return body


def _file_digests(folder: pathlib.Path, names: Iterable[str]) -> dict[str, str]:
    digests = {}
    for name in names:
        with open(folder / name, "rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _check_files(folder: pathlib.Path, about: dict) -> None:
    for name, digest in about["files"].items():
        try:
            found = _file_digests(folder / str(about["step"]), [name])[name]
        except OSError as error:
            raise _Rejected(f"{name} cannot be read ({_one_line(error)})") from None
        if found != digest:
            raise _Rejected(f"{name} is not what was written (its SHA-256 differs)")


def _read_about(folder: pathlib.Path, step: int) -> dict:
    try:
        about = json.loads((folder / str(step) / _ABOUT).read_bytes())
        body, seal = about["body"], about["sha256"]
    except FileNotFoundError:
        raise _Rejected(f"{_ABOUT} is missing: never completed, or half deleted") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _Rejected(f"{_ABOUT} cannot be read ({_one_line(error)})") from None
    if _seal(body) != seal:
        raise _Rejected(f"{_ABOUT} is not what was written (its SHA-256 differs)")
    if body["step"] != step:
        raise _Rejected(f"it was saved as step {body['step']}")
    return body


def _rank(folder: pathlib.Path, step: int) -> float:
    try:
        metric = _read_about(folder, step)["metric"]
    except _Rejected:
        metric = None
    return -math.inf if metric is None else metric


def _compare(wanted: dict[str, Any], about: dict, folder: pathlib.Path) -> None:
    """Raises InputError naming the first leaf in which the wanted structure differs from the stored one."""
    stored = {leaf["path"]: leaf["is"] for leaf in about["leaves"]}
    where = f"checkpoint step {about['step']} in {folder} does not fit:"
    hint = "use the configuration it was saved with, or another folder."
    for name, leaf in wanted.items():
        if name not in stored:
            raise InputError(f"{where} it has no leaf '{name}' (wanted {_describe(leaf)}); {hint}")
        if stored[name] != _describe(leaf):
            raise InputError(f"{where} leaf '{name}' is {stored[name]}, wanted {_describe(leaf)}; {hint}")
    for name in stored.keys() - wanted.keys():
        raise InputError(f"{where} it has a leaf '{name}' ({stored[name]}) that is not wanted; {hint}")


def _read_state(folder: pathlib.Path, about: dict) -> dict[str, Any]:
    """Every leaf as a numpy array (keys: as typed keys), equal to what was saved, or _Rejected."""
    import orbax.checkpoint as ocp

    _quiet_orbax()
    records = {leaf["path"]: leaf for leaf in about["leaves"]}
    # Read into host memory: the digests need it there, and no sharding of the saving run can get in the way.
    as_numpy = {
        name: ocp.RestoreArgs(restore_type=np.ndarray) for name, leaf in records.items() if 0 not in leaf["shape"]
    }
    args = ocp.args.PyTreeRestore(item=dict.fromkeys(as_numpy, 0), restore_args=as_numpy)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            host = reader.restore(folder / str(about["step"]) / "state", args=args)
    except Exception as error:
        raise _Rejected(f"its arrays cannot be read ({_one_line(error)})") from None
    for name, leaf in records.items():
        array = host[name] if name in host else np.zeros(leaf["shape"], jnp.dtype(leaf["dtype"]))
        if _digest(name, array) != leaf["sha256"]:
            raise _Rejected(f"leaf '{name}' is not what was saved (its SHA-256 differs)")
        host[name] = jax.random.wrap_key_data(jnp.asarray(array), impl=leaf["key"]) if leaf["key"] else array
    return host


def _placed(name: str, value: Any, like: Any) -> Any:
    """The restored value where `like` is: a numpy array, the default device, or any sharding."""
    if isinstance(like, np.ndarray | np.generic):
        return value if isinstance(like, np.ndarray) else value[()]
    sharding = getattr(like, "sharding", None) if getattr(like, "committed", True) else None
    placed = jax.device_put(value, sharding)
    if placed.dtype != value.dtype:
        raise InputError(
            f"checkpoint: leaf '{name}' is {value.dtype}, which jax would make {placed.dtype}: enable x64."
        )
    return placed


def _is_step(path: pathlib.Path) -> bool:
    return path.name.isascii() and path.name.isdecimal() and str(int(path.name)) == path.name and path.is_dir()


def _probe(folder: pathlib.Path) -> None:
    """Makes the folder and writes into it: Orbax would say so only in the background, at the first save."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as file:
            file.write(b"1")
    except OSError as error:
        raise InputError(
            f"checkpoints cannot be written to {folder}: {_one_line(error)}; give another folder."
        ) from None


def _sweep(folder: pathlib.Path) -> None:
    """Removes what no step needs: unfinished saves and steps already dropped."""
    for path in [folder / _TODELETE, *folder.glob(f"*{_TMP}*")]:
        shutil.rmtree(path, ignore_errors=True)


def _fsync(path: str | os.PathLike) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _on_first_process(action: Callable[[], Any]) -> None:
    """With several hosts on one file system, one of them changes it and all wait."""
    if jax.process_index() == 0:
        action()
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("cnnlab.checkpoint")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _from_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _quiet_orbax() -> None:
    """Orbax logs tracebacks of errors that it also raises; what matters is raised here in one line."""
    logging.getLogger("absl").addFilter(_from_orbax)
