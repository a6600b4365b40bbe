"""fit and evaluate: the only loops. They know steps and batches as functions, and neither model nor
loss.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from cnnlab import metrics
from cnnlab.checkpoint.manager import Checkpoints
from cnnlab.cli import EXIT_INTERRUPTED, EXIT_PREEMPTED, Stopped
from cnnlab.console import Console
from cnnlab.errors import Diverged
from cnnlab.multihost import processes, shutdown, transfer
from cnnlab.training.step import NEVER, TrainState, zero_totals

# Dispatches ahead of the one whose totals are looked at. Far below 32: with more waiting than that,
# collectives over CPU devices deadlocked (jax 0.10: of two devices one never came; with 31 waiting,
# never).
IN_FLIGHT = 2


@dataclass
class StopRequest:
    """Set by a signal, looked at between steps."""

    signal: int | None = None
    agreed: bool = False

    def seen(self) -> int | None:
        """The signal, if one has come; of several processes all see it at the same look, whichever
        got it.
        """
        if processes.count() == 1:
            return self.signal
        self.agreed = self.agreed or shutdown.stop_wanted(self.signal is not None)
        return (self.signal or signal.SIGTERM) if self.agreed else None


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and the first Ctrl-C into a request; a second Ctrl-C interrupts at once."""
    request = StopRequest()

    def note(number: int, _frame: Any) -> None:
        request.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Plan:
    """How long to train and when to save.

    Attributes:
      steps_per_epoch, epochs: their product is the number of steps.
      save_every: steps between saves within an epoch; 0 for none.
      again: what to run to go on, for messages.
      dispatch_steps: the most steps handed to the devices at once.
      save_seconds: at the end of an epoch nothing is saved if that is the time since the last save
        or less.
    """

    steps_per_epoch: int
    epochs: int
    save_every: int
    again: str
    dispatch_steps: int = 1
    save_seconds: float = 0.0


@dataclass(frozen=True)
class Progress:
    """Where a run stands: what a checkpoint holds.

    Attributes:
      state: after state.step steps.
      totals: running sums of the epoch under way.
      history: metrics of the finished epochs; with seeds, whose states have a leading axis, each a
        list.
    """

    state: TrainState
    totals: Any
    history: list[dict[str, Any]]


def restore(
    checkpoints: Checkpoints, like: Progress, which: Any = "latest"
) -> tuple[Progress | None, int, tuple[str, ...]]:
    """The newest progress that verifies.

    Args:
      checkpoints: of the run.
      like: a progress of the same structure, placed on the devices wanted.
      which: latest, best or a step.

    Returns:
      The progress (None where nothing is stored), its step, and why newer ones were rejected.

    Raises:
      InputError: another structure. CheckpointError: none verifies.
    """
    found = checkpoints.restore({"state": like.state, "totals": like.totals}, which=which)
    if found is None:
        return None, 0, ()
    return (
        Progress(found.tree["state"], found.tree["totals"], found.extra["history"]),
        found.step,
        found.rejected,
    )


def fit(
    progress: Progress,
    plan: Plan,
    *,
    step: Callable[[TrainState, Any, list[Any]], tuple[TrainState, Any]],
    items: Callable[[int, int], Iterable[Any]],
    validate: Callable[[TrainState], Any] | None,
    checkpoints: Checkpoints | None,
    record: Callable[[dict[str, Any]], None],
    console: Console,
) -> Progress:
    """Train to the end of the plan, saving on the way. Several seeds go on together while one of
    them is finite.

    Args:
      progress: where to start.
      plan: where to end.
      step: (state, totals, list of items) -> state, totals after as many steps.
      items: (first step, last step) -> what each step is fed.
      validate: state -> metrics of the validation split, a list of them with seeds; None where
        there is none.
      checkpoints: where it is saved, while all of it is finite; None: nowhere.
      record: called with the metrics of each epoch once they are saved.
      console: shows progress.

    Returns:
      The progress at the end.

    Raises:
      Stopped: a signal came; everything is saved.
      Diverged: a step was not finite; its number is named, the last good checkpoint stays.
    """
    state, totals, history = progress.state, progress.totals, list(progress.history)
    number, last = int(np.ravel(transfer.fetch(state.step))[0]), plan.steps_per_epoch * plan.epochs
    place, saved = totals["loss"].sharding, time.monotonic()
    zeros = zero_totals(totals["loss"].dtype, totals["loss"].shape)

    def save(seen: Any, metric: float | None = None) -> bool:
        nonlocal saved
        if checkpoints is None or np.any(seen["bad_step"] != NEVER):
            return False
        checkpoints.save(
            number, {"state": state, "totals": totals}, metric=metric, extra={"history": history}
        )
        saved = time.monotonic()
        return True

    with stop_signals() as stop:
        batches = iter(items(number, last))
        while number < last:
            started, first, waiting = time.monotonic(), number, deque()
            epoch, taken = divmod(number, plan.steps_per_epoch)
            end = (epoch + 1) * plan.steps_per_epoch
            with console.progress(
                f"epoch {epoch + 1}/{plan.epochs}", plan.steps_per_epoch, "steps", taken
            ) as advance:
                while number < end:
                    next_save = (
                        (number // plan.save_every + 1) * plan.save_every
                        if plan.save_every
                        else end
                    )
                    dispatched = list(
                        islice(batches, min(plan.dispatch_steps, end - number, next_save - number))
                    )
                    state, totals = step(state, totals, dispatched)
                    number += len(dispatched)
                    # Dispatch is asynchronous. Looking at the totals of a step a little back keeps
                    # the device busy, bounds the queue (so a signal is answered soon), and sees the
                    # first step that is not finite.
                    waiting.append((len(dispatched), totals))
                    if len(waiting) > IN_FLIGHT:
                        steps, back = waiting.popleft()
                        seen = _finite(back, plan, checkpoints)
                        advance(steps, f"loss {np.mean(seen['loss'] / seen['count']):.4f}")
                    stopped_by = stop.seen()  # read once: it may be set between two looks
                    due = stopped_by or (plan.save_every and number % plan.save_every == 0)
                    if due and number < end:
                        done = save(_finite(totals, plan, checkpoints))
                        if stopped_by:
                            raise _stopped(stopped_by, number, last, checkpoints, plan, done)
                seen = _finite(totals, plan, checkpoints)
            row = _row(seen, epoch, number, number - first, time.monotonic() - started, plan)
            if validate is not None:
                result: Any = validate(state)
                for name in metrics.numbers(result[0] if isinstance(result, list) else result):
                    each = (
                        [seed[name] for seed in result]
                        if isinstance(result, list)
                        else result[name]
                    )
                    row[f"validation_{name}"] = each
            history.append(row)
            totals = transfer.put(zeros, place)
            stopped_by, done = stop.seen(), False  # read once, as above
            if stopped_by or time.monotonic() - saved >= plan.save_seconds:
                done = save(seen, None if totals["loss"].ndim else row.get("validation_accuracy"))
            record(row)
            if (
                stopped_by and number < last
            ):  # with the last step taken, the test is all that is left
                raise _stopped(stopped_by, number, last, checkpoints, plan, done)
    _stored(checkpoints)
    return Progress(state, totals, history)


def _row(
    seen: Any, epoch: int, number: int, steps: int, seconds: float, plan: Plan
) -> dict[str, Any]:
    """An epoch's metrics; `steps` of it were taken by this process, in `seconds`."""
    count = seen["count"].astype(np.float64)
    row = {
        "epoch": epoch + 1,
        "step": number,
        "train_loss": (seen["loss"] / count).tolist(),
        "train_accuracy": (seen["correct"] / count).tolist(),
        "images_per_second": float(np.sum(count)) / plan.steps_per_epoch * steps / seconds,
        "seconds": seconds,
    }
    if epoch == 0:  # early training, where losses differ most
        row["gradient_norms"] = seen["gradient_norms"][..., : plan.steps_per_epoch].tolist()
    if seen["bad_step"].ndim:
        row["bad_step"] = [None if bad == NEVER else bad for bad in seen["bad_step"].tolist()]
    return row


def _finite(totals: Any, plan: Plan, checkpoints: Checkpoints | None) -> Any:
    """The totals on the host, once they show that every step was finite; with seeds, every step of
    one of them.
    """
    seen = transfer.fetch(totals)
    bad = int(np.min(seen["bad_step"]))
    if np.max(seen["bad_step"]) == NEVER:
        return seen
    stored = _stored(checkpoints)
    good = (
        f"the checkpoint of step {stored[-1]} is good"
        if stored
        else "no checkpoint had been written yet"
    )
    where = ", in another --workdir" if stored else ""
    epoch = bad // plan.steps_per_epoch + 1
    raise Diverged(
        f"the loss or the parameters are not finite after step {bad + 1} (epoch {epoch}); {good}. "
        f"Try a lower --learning-rate, --schedule cosine,warmup=1 or --clip-norm{where}",
        seen["bad_step"],
    )


def _stored(checkpoints: Checkpoints | None) -> Sequence[int]:
    """The steps that are saved, once the last of them is written."""
    if checkpoints is None:
        return ()
    checkpoints.wait()
    return checkpoints.steps()


def _stopped(
    number: int, step: int, last: int, checkpoints: Checkpoints | None, plan: Plan, saved: bool
) -> Stopped:
    _stored(checkpoints)
    what, go_on = ("saved" if saved else "not saved, as a seed of it has diverged"), "to go on"
    if checkpoints is None:
        what, go_on = "nothing is saved", "to start again"
    status = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED
    return Stopped(
        f"stopped by {signal.Signals(number).name} at step {step} of {last}, {what}; {go_on}: "
        f"{plan.again}",
        status,
    )


def line(row: dict[str, Any], epochs: int) -> str:
    """An epoch's metrics for a person to read; their means where there are several seeds."""
    mean = lambda name: f"{np.mean(row[name]):.4f}"
    parts = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}", f"loss {mean('train_loss')}"]
    parts.append(f"accuracy {mean('train_accuracy')}")
    if "validation_loss" in row:
        parts.append(
            f"validation loss {mean('validation_loss')} accuracy {mean('validation_accuracy')}"
        )
    return "  ".join([*parts, f"{row['images_per_second']:,.0f} images/s"])


def evaluate(
    step: Callable[[Any, Any, Any], Any],
    state: TrainState,
    batches: Iterable[Any],
    console: Console | None = None,
    seeds: int | None = None,
    own: Sequence[metrics.Metric] = (),
) -> Any:
    """Metrics of a whole data set.

    Args:
      step: (params, batch_stats, batch) -> sums.
      state: the weights.
      batches: padded, with masks (`data.feed.in_order`).
      console: shows progress; None shows nothing.
      seeds: how many the state holds along a leading axis; None for one state without it.
      own: metrics besides those that are always measured.

    Returns:
      `metrics.summarise`; with seeds a list of them.
    """
    parts, waiting = [], deque()
    with (console or Console("off")).progress("evaluating", None, "batches") as advance:
        for batch in batches:
            waiting.append(step(state.params, state.batch_stats, batch))
            if len(waiting) > IN_FLIGHT:
                parts.append(transfer.fetch(waiting.popleft()))
            advance()
    parts += transfer.fetch(list(waiting))
    if seeds is None:
        return metrics.summarise(parts, own)
    return [
        metrics.summarise([{k: v[i] for k, v in part.items()} for part in parts], own)
        for i in range(seeds)
    ]
