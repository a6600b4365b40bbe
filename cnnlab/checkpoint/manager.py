"""Save and restore any pytree of arrays: asynchronous, atomic, verified bit by bit at every
restore.

Orbax writes a step into a temporary folder and renames it; that survives a kill. It does not notice
a flipped bit in the array data, so each step also holds `about.json`: path, shape, dtype and
SHA-256 of every leaf as it was in memory, SHA-256 of every array file, the run, the metric and the
caller's `extra`, under a SHA-256 of its own. What is read back must give the same digests, or the
step is rejected and the next tried; those of files spare Orbax's readers damaged ones.

A folder looks like this (all but the numbered steps may be deleted by hand):

    400/            a step: state/ (Orbax's array data) and about.json (the digests)
    500.orbax-…     being written, or left by a killed process: removed at the next start
    todelete/       steps that `keep` dropped, on their way out: a rename first, so no half-deleted
                    step is ever listed
    rejected/       steps that failed a restore, set aside by the next save; never removed by cnnlab

Under gs:// there is no rename: a step is written in its place, and is one as long as
commit_success.txt lies in it, which is written last, after about.json, and deleted first. Local
steps have it too (from Orbax 0.12.8 on), so that a folder may be copied there.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import logging
import math
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, cast

import jax
import numpy as np

from cnnlab import files
from cnnlab.checkpoint import digest, layout
from cnnlab.errors import CheckpointError, InputError, one_line, release
from cnnlab.multihost import agree, processes
from cnnlab.types import PyTree

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

_REJECTED = "rejected"
_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())  # who calls restore says what was rejected


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `Checkpoints.restore` found.

    Attributes:
      step: the step that verified.
      tree: the state in the structure of `like`: jax arrays with its shardings, numpy arrays
        where it has those.
      extra: the dict given to `save`, as JSON gives it back (tuples are lists, keys are strings).
      metric: the metric given to `save`.
      rejected: one line, "step 9: why", for each step that was tried before and failed.
    """

    step: int
    tree: PyTree
    extra: dict
    metric: float | None
    rejected: tuple[str, ...]


class Checkpoints:
    """The steps of one run in one folder; one process writes, others may read (`read_only=True`).

    Use it as a context manager: `close` waits for the save under way, and only then is its failure
    sure to be seen. With several hosts every process makes one and calls every method.

    Args:
      folder: where the steps are, also gs://BUCKET/FOLDER; made if missing; relative to the
        current directory of now.
      keep: how many of the last steps to keep. The best (highest metric; of equals the newest) is
        kept in addition.
      read_only: look only: creates, cleans and deletes nothing. Use it next to a run that is still
        writing.
      run: what the steps are of: a step that was saved under another text is not restored.

    Raises:
      InputError: `keep` below 1, or a folder that cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        keep: int = 2,
        read_only: bool = False,
        run: str = "",
    ):
        if keep < 1:
            raise InputError(f"checkpoints: keep must be at least 1, got {keep}.")
        self.folder = files.path(folder if files.is_remote(folder) else os.path.abspath(folder))
        self._keep = keep
        self._run = run
        self._pending: int | None = None  # the step being saved
        self._finished: Future[None] | None = None  # of that step, once it is waited for
        self._about: dict = {}  # what its about.json will say
        self._rejected: set[int] = set()
        self._metrics: dict[int, float | None] = {}  # of the steps whose about.json can be read
        # Made at the first save: importing Orbax takes 0.4 s, which no start should wait for
        self._manager: Any = None
        self._open = not read_only
        if not read_only:
            mark = agree.on_first(lambda: files.probe(self.folder, "checkpoints"))
            agree.on_all(lambda: _see(self.folder / mark.name))
            agree.on_first(lambda: (mark.unlink(), _sweep(self.folder)))
            for step in self.steps():
                # `restore` says why; what cannot be read stays.
                with contextlib.suppress(digest.Rejected):
                    self._metrics[step] = digest.read_about(self.folder, step)["metric"]

    def _make_manager(self) -> ocp.CheckpointManager:
        import orbax.checkpoint as ocp

        digest.quiet_orbax()
        sys.unraisablehook = _unraisable
        options = ocp.CheckpointManagerOptions(
            step_name_format=layout.step_names(self.folder),
            todelete_subdir=layout.TODELETE,
            preservation_policy=_Policy(
                lambda step: files.is_remote(self.folder) or not self._dropped(step)
            ),
            # Metrics are in about.json: a damaged step must not stop the start
            lightweight_initialize=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._before_rename),
        )
        # A process that forgets `close` loses its save, or hangs for 20 minutes in Orbax's threads
        # (measured). Only this hook, registered after concurrent.futures' own and so called first,
        # runs before executors are shut down.
        getattr(threading, "_register_atexit", atexit.register)(self._at_exit)
        return ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is not None and processes.count() > 1:
            # It may be this process's alone, and closing takes all; where it is everybody's,
            # `_at_exit` closes
            return
        try:
            self.close()
        except Exception as failed:
            if error is None:
                raise
            # What ended the run matters more than the save that failed with it
            error.add_note(str(failed))

    def steps(self) -> list[int]:
        """List the committed steps on disk, oldest first, including damaged ones; a save under way
        is not among them.
        """
        return layout.steps(self.folder)

    def _dropped(self, step: int) -> bool:
        return step in self._metrics and step not in kept(self._metrics, self._keep)

    def save(
        self, step: int, tree: PyTree, *, metric: float | None = None, extra: dict | None = None
    ) -> None:
        """Copy the state off the devices and write it in the background; at most one save is
        under way.

        Args:
          step: any number above those already in the folder.
          tree: a pytree of jax or numpy arrays, typed PRNG keys and Python numbers.
          metric: higher is better. None (a save in mid-epoch) or NaN: never the best.
          extra: a small dict of JSON values, stored in the same atomic step.

        Raises:
          CheckpointError: a leaf holds NaN or inf; this save, or the one before it (its step is
            named), failed.
          InputError: the step is not new, `extra` is not JSON, or a leaf is not an array of
            numbers.
        """
        if not self._open:
            raise InputError(
                f"checkpoints in {self.folder}: opened read-only or closed, step {step} cannot be "
                "saved."
            )
        import orbax.checkpoint as ocp

        self._manager = self._manager or self._make_manager()
        step = int(step)
        self.wait()
        self._set_rejected_aside()
        latest = max(self.steps(), default=-1)
        if step <= latest:
            exists = (
                "already exists" if step in self.steps() else f"is not newer than step {latest}"
            )
            raise InputError(
                f"checkpoint step {step} {exists} in {self.folder}; use another folder or delete "
                "the newer steps."
            )
        metric = None if metric is None or not math.isfinite(metric) else float(metric)
        leaves = cast(dict[str, digest.Array], digest.named_leaves(tree))
        self._about = digest.about_step(step, leaves, metric, extra, self._run)
        # Orbax refuses arrays without elements; their shape and dtype are in about.json, which is
        # all they hold. Orbax copies what the caller may change or donate meanwhile before it
        # returns (a test holds it to that).
        state = {
            name: digest.data(leaf) for name, leaf in leaves.items() if np.size(digest.data(leaf))
        }
        if not state:
            raise InputError(
                f"checkpoint step {step}: the tree holds no array, there is nothing to save."
            )
        self._pending = step
        self._metrics[step] = metric
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(state))
        try:
            # Without force it may return False and write nothing
            self._manager.save(step, args=args, force=True)
        except Exception as error:
            raise self._failed(step, error) from error

    def wait(self) -> None:
        """Wait until the save under way, if any, is on disk and named.

        Raises:
          CheckpointError: it failed; the message names its step. The steps before it are
            untouched.
        """
        step = self._pending
        if self._manager is None or step is None:
            return
        # In a thread: up to Python 3.12 a thread whose `join` is interrupted counts as ended, and
        # Orbax would say at the next call that all is on disk
        self._finished = self._finished or _in_thread(self._manager.wait_until_finished)
        try:
            self._finished.result()
        except Exception as error:
            raise self._failed(step, error) from error
        self._pending = self._finished = None
        # The sync, so that the rename too survives a power loss.
        agree.on_first(lambda: (_fsync(self.folder), self._drop(), _sweep(self.folder)))

    def _drop(self) -> None:
        """Remove the dropped steps under gs://. Orbax would delete a step's files in any order;
        here it stops being a step first.
        """
        if files.is_remote(self.folder):
            for step in filter(self._dropped, self.steps()):
                layout.remove_step(self.folder / str(step))

    def close(self) -> None:
        """Wait for the save under way and end Orbax's threads. A second call does nothing.

        Raises:
          CheckpointError: as `wait`.
        """
        try:
            self.wait()
        finally:
            manager = self._manager
            self._manager = None
            self._open = False
            if manager is not None:
                manager.close()

    def _at_exit(self) -> None:
        try:
            self.close()
        except Exception as error:  # it would be lost without a word, and with exit status 0
            print(
                f"{error} (noticed when the process ended; use Checkpoints as a context manager)",
                file=sys.stderr,
            )

    def restore(
        self, like: PyTree, *, which: Literal["latest", "best"] | int = "latest"
    ) -> Restored | None:
        """Restore the newest (or best, or the given) step whose every leaf has the digest it was
        saved with.

        Args:
          like: the wanted structure: a pytree of arrays or jax.ShapeDtypeStruct; the leaves go to
            its shardings, whatever number of devices the step was saved on.
          which: "latest"; "best", from the highest metric down, then steps without one from the
            newest; or one step.

        Returns:
          The first step that verifies, with a line for each that did not; None if the folder
          holds no step.

        Raises:
          CheckpointError: no step verifies; each is named with the reason.
          InputError: a sound step is of another run, or holds other leaves, shapes or dtypes than
            `like`; the wanted step does not exist.
        """
        self.wait()
        wanted = digest.named_leaves(like)
        # Of the processes of a run the first one reads: one that cannot what others can would leave
        # them waiting.
        once = agree.on_first if self._open else lambda read: read()
        about, host, rejected = once(lambda: self._verified(wanted, which))
        self._rejected |= rejected.keys()
        why = tuple(f"step {step}: {reason}" for step, reason in rejected.items())
        for line in why:
            _log.info("checkpoint in %s rejected: %s", self.folder, line)
        if about is None and rejected:
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be trusted: {'; '.join(why)}."
            )
        if about is None:
            return None
        leaves = {leaf["path"]: leaf for leaf in about["leaves"]}
        values = [digest.placed(leaves[name], host[name], leaf) for name, leaf in wanted.items()]
        tree = jax.tree.unflatten(jax.tree.structure(like), values)
        return Restored(about["step"], tree, about["extra"], about["metric"], why)

    def _verified(
        self, wanted: Mapping[str, digest.Leaf], which: str | int
    ) -> tuple[dict | None, dict, dict[int, str]]:
        """Read about.json and the leaves of the first step that verifies (None if none does); also
        return why those before it did not.
        """
        steps = self.steps()[::-1]
        rejected = {}
        if not isinstance(which, str):
            which = int(which)
            if which not in steps:
                held = steps[::-1] or "no step"
                raise InputError(
                    f"checkpoint step {which} is not in {self.folder}; it holds {held}."
                )
            steps = [which]
        elif which not in ("latest", "best"):
            raise InputError(f"restore: which must be 'latest', 'best' or a step, got {which!r}.")
        if which == "best":  # stable: of equals the newest first
            steps.sort(key=lambda step: digest.rank(self.folder, step), reverse=True)
        for step in steps:
            try:
                return *digest.verified(self.folder, step, wanted, self._run), rejected
            except digest.Rejected as why:
                rejected[step] = str(why)
        return None, {}, rejected

    def _set_rejected_aside(self) -> None:
        """Move what `restore` rejected out of the way: it could not be saved again, and would push
        out good steps.
        """
        # The same in all processes, as what lies in the folder is not, while one moves it
        bad = sorted(self._rejected)
        self._rejected.clear()
        if not bad:
            return

        def move():
            for step in set(bad).intersection(self.steps()):
                layout.move_step(
                    self.folder / str(step), self.folder / _REJECTED / f"{step}-{time.time_ns()}"
                )

        agree.on_first(move)
        for step in bad:
            self._metrics.pop(step, None)
        self._manager.reload()

    def _failed(self, step: int, error: Exception) -> CheckpointError:
        """Forget the save under way, so that the next can succeed, and build the error that names
        it; its writers may continue for a while.
        """
        self._pending = self._finished = None
        self._metrics.pop(step, None)
        with contextlib.suppress(Exception):  # Orbax raises it once more, in this thread
            self._manager.wait_until_finished()
        if processes.index() == 0:  # alone: the others may know of no failure
            _sweep(self.folder, pauses=(0.1, 0.2, 0.5))
        self._manager.reload()
        release(error)
        return CheckpointError(
            f"checkpoint step {step} in {self.folder} was not saved: {one_line(error)}"
        )

    def _before_rename(self) -> None:
        """Write about.json and sync the files: in Orbax's thread, on process 0, when all is written
        and nothing yet makes it a step.
        """
        remote = files.is_remote(self.folder)
        (tmp,) = (
            [self.folder / str(self._pending)]
            if remote
            else self.folder.glob(f"{self._pending}{layout.TMP}*")
        )
        written = [f"state/{name}" for name in files.names(tmp / "state")]
        body = self._about | {"files": digest.file_digests(tmp, written)}
        (tmp / layout.ABOUT).write_text(json.dumps({"sha256": digest.seal(body), "body": body}))
        if not remote:
            # Orbax syncs the array data, but neither its small files nor folders.
            for path in [tmp, *tmp.rglob("*")]:
                _fsync(path)


def kept(metrics: Mapping[int, float | None], keep: int) -> set[int]:
    """Choose the steps to keep: the last `keep`, and the one with the highest metric (of equals the
    newest).

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


_fsync = files.sync
_sweep = layout.sweep


def _in_thread(action: Callable[[], None]) -> Future[None]:
    """Call an action in a thread of its own; whoever waits for it may be interrupted."""
    future: Future[None] = Future()

    def call() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future


def _unraisable(args: sys.UnraisableHookArgs) -> None:
    """Report an error as Python's own hook does, except what TensorStore's writers say of a save
    that has failed: it ended without waiting for them, and `_failed` names it.
    """
    if "Event loop is closed" not in str(args.exc_value):
        sys.__unraisablehook__(args)


def _see(mark: pathlib.Path) -> None:
    """Check that this process sees what process 0 wrote: each writes its part of a step."""
    if not mark.exists():
        raise InputError(
            f"checkpoints in {mark.parent}: the folder is not shared; give a --workdir that all "
            "see."
        )
