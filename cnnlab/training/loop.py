"""fit and evaluate: the only loops. They know neither model nor loss."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, Protocol

import jax
import numpy as np

from cnnlab import metrics, signals
from cnnlab.checkpoint.manager import Checkpoints
from cnnlab.cli import Stopped
from cnnlab.console import Console
from cnnlab.data.dataset import Batch
from cnnlab.errors import Diverged
from cnnlab.multihost import transfer
from cnnlab.training.signals import StopRequest, stop_signals, stopped_by
from cnnlab.training.step import NEVER, Progress, Sums, Totals, TrainState, Variables, zero_totals
from cnnlab.types import Metrics, Row

# Dispatches ahead of the one whose totals are looked at. Far below 32: with more waiting than that,
# collectives over CPU devices deadlocked (jax 0.10: of two devices one never came; with 31 waiting,
# never).
IN_FLIGHT = 2


class Trainable(Protocol):
    """What `fit` needs of an experiment."""

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def dispatch_steps(self) -> int: ...

    def items(self, first: int, last: int) -> Iterator[Batch]: ...

    def advance(self, progress: Progress, items: Sequence[Batch]) -> Progress: ...

    def estimate(self, state: TrainState, step: int) -> TrainState: ...

    def validate(self, state: TrainState) -> list[Metrics]: ...


@dataclass
class Saver:
    """Where and when a run is saved.

    Attributes:
      checkpoints: where; None: nowhere.
      every_steps: steps between saves within an epoch; 0 for none.
      every_seconds: at the end of an epoch nothing is saved sooner after the last save.
      command: what to run to continue, for messages.
      saved: when the last save was, by time.monotonic.
    """

    checkpoints: Checkpoints | None = None
    every_steps: int = 0
    every_seconds: float = 0.0
    command: str = ""
    saved: float = field(default_factory=time.monotonic)

    def save(self, progress: Progress, step: int, metric: float | None = None) -> None:
        """Save what a run has reached."""
        assert self.checkpoints is not None
        tree = {"state": progress.state, "totals": progress.totals}
        extra = {"history": list(progress.history)}
        self.checkpoints.save(step, tree, metric=metric, extra=extra)
        self.saved = time.monotonic()

    def restore(
        self, like: Progress, which: Literal["latest", "best"] | int = "latest"
    ) -> tuple[Progress | None, int, tuple[str, ...]]:
        """Restore the newest progress that verifies; or the best, or that of a step.

        Args:
          like: a progress of the same structure, placed on the devices wanted.
          which: latest, best or a step.

        Returns:
          The progress (None where nothing is stored), its step, and why newer ones were rejected.

        Raises:
          InputError: another structure. CheckpointError: none verifies.
        """
        if self.checkpoints is None:
            return None, 0, ()
        tree = {"state": like.state, "totals": like.totals}
        checkpoint = self.checkpoints.restore(tree, which=which)
        if checkpoint is None:
            return None, 0, ()
        history = tuple(checkpoint.extra["history"])
        progress = Progress(checkpoint.tree["state"], checkpoint.tree["totals"], history)
        return progress, checkpoint.step, checkpoint.rejected

    def stored(self) -> Sequence[int]:
        """Wait until the last save is written, and return the steps that are saved."""
        if self.checkpoints is None:
            return ()
        self.checkpoints.wait()
        return self.checkpoints.steps()

    def next_save(self, step: int, last: int) -> int:
        """Return the next step to save at within an epoch; `last`, its end, if there is none."""
        if not self.every_steps:
            return last
        return min(last, (step // self.every_steps + 1) * self.every_steps)


class Observer:
    """What is called while a run trains. By itself it does nothing."""

    def begun(self, progress: Progress, rejected: Sequence[str]) -> None:
        """Note where the run starts, and why newer checkpoints were rejected, before training."""

    def first_step(self, progress: Progress) -> None:
        """Note this process's first dispatch, which may not have finished."""

    def epoch(self, row: Row) -> None:
        """Note the metrics of an epoch, once it is saved."""


def fit(
    experiment: Trainable,
    progress: Progress,
    epochs: int,
    *,
    saver: Saver | None = None,
    observer: Observer | None = None,
    console: Console | None = None,
) -> Progress:
    """Train to the end of the last epoch, saving on the way.

    Several seeds continue together while one of them is finite.

    Args:
      experiment: what is trained.
      progress: where to start; it is given away.
      epochs: how long in all.
      saver: where and when it is saved, while all of it is finite; None: nowhere.
      observer: is called on the way.
      console: shows progress.

    Returns:
      The progress at the end.

    Raises:
      Stopped: a signal came; everything is saved.
      Diverged: a step was not finite; its number is named, the last good checkpoint stays.
    """
    saver = saver or Saver()
    observer = observer or Observer()
    step = steps_taken(progress.state)
    last = experiment.steps_per_epoch * epochs
    with stop_signals() as stop, contextlib.ExitStack() as holding:
        loop = _Loop(experiment, epochs, saver, observer, stop, console or Console("off"), holding)
        items = iter(experiment.items(step, last))
        while step < last:
            progress, row = loop.train_epoch(progress, step, items)
            step = row["step"]
            progress, saved = loop.end_epoch(progress, row)
            observer.epoch(row)
            # With the last step taken the test is all that is left: later, if that step is saved
            if loop.stopped_by is not None and (step < last or saved):
                raise loop.stopped(step, saved)
    saver.stored()
    return progress


def steps_taken(state: TrainState) -> int:
    """Return the number of steps behind a state; all seeds have the same."""
    return int(np.ravel(transfer.fetch(state.step))[0])


@dataclass
class _Loop:
    """What the parts of `fit` share: `holding` is closed when it ends, `stopped_by` is the signal
    that ends it.
    """

    experiment: Trainable
    epochs: int
    saver: Saver
    observer: Observer
    stop: StopRequest
    console: Console
    holding: contextlib.ExitStack
    begun: bool = False
    stopped_by: int | None = None

    def train_epoch(
        self, progress: Progress, step: int, items: Iterator[Batch]
    ) -> tuple[Progress, Row]:
        """Train to the end of the epoch that `step` is in."""
        started = time.monotonic()
        first = step
        steps_per_epoch = self.experiment.steps_per_epoch
        epoch, taken = divmod(step, steps_per_epoch)
        end = step - taken + steps_per_epoch
        waiting: deque[tuple[int, Totals]] = deque()
        title = f"epoch {epoch + 1}/{self.epochs}"
        with self.console.progress(title, steps_per_epoch, "steps", taken) as show:
            while step < end:
                next_save = self.saver.next_save(step, end)
                most = min(self.experiment.dispatch_steps, next_save - step)
                dispatched = list(islice(items, most))
                progress = self.experiment.advance(progress, dispatched)
                step += len(dispatched)
                if not self.begun:  # it is compiled, and until now there was nothing to lose
                    self.begun = True
                    self.holding.enter_context(signals.held())
                    self.observer.first_step(progress)
                # Dispatch is asynchronous. Looking at the totals of a step a little back keeps the
                # device busy, bounds the queue (so a signal is answered soon), and sees the first
                # step that is not finite.
                waiting.append((len(dispatched), progress.totals))
                if len(waiting) > IN_FLIGHT:
                    count, totals = waiting.popleft()
                    sums = self._finite(totals)
                    show(count, f"loss {np.mean(sums['loss'] / sums['count']):.4f}")
                self.stopped_by = self.stop.seen()  # read once: it may be set between two looks
                if step < end and (self.stopped_by or step == next_save):
                    sums = self._finite(progress.totals)
                    saved = self._save(progress, step, bool(np.all(sums["bad_step"] == NEVER)))
                    if self.stopped_by:
                        raise self.stopped(step, saved)
            sums = self._finite(progress.totals)
        seconds = time.monotonic() - started
        return progress, _row(sums, epoch, steps_per_epoch, step - first, seconds)

    def end_epoch(self, progress: Progress, row: Row) -> tuple[Progress, bool]:
        """Validate and save; return the progress for the next epoch, and whether it was saved."""
        totals = progress.totals["loss"]
        state = self.experiment.estimate(progress.state, row["step"])
        several = totals.ndim > 0
        row |= _validation(self.experiment.validate(state), several)
        if state.average:
            row |= _validation(self.experiment.validate(state.last), several, "validation_last")
        zeros = transfer.put(zero_totals(totals.dtype, totals.shape), totals.sharding)
        progress = Progress(state, zeros, (*progress.history, row))
        self.stopped_by = self.stop.seen()
        saved = False
        if self.stopped_by or time.monotonic() - self.saver.saved >= self.saver.every_seconds:
            metric = None if totals.ndim else row.get("validation_accuracy")
            saved = self._save(
                progress, row["step"], all(bad is None for bad in row.get("bad_step", [])), metric
            )
        return progress, saved

    def stopped(self, step: int, saved: bool) -> Stopped:
        """Wait for the last save, and build the error to raise where the run stops."""
        assert self.stopped_by is not None
        self.saver.stored()
        what = "saved" if saved else "not saved, as a seed of it has diverged"
        then = "to resume"
        if self.saver.checkpoints is None:
            what = "nothing is saved"
            then = "to start again"
        last = self.experiment.steps_per_epoch
        return stopped_by(
            self.stopped_by,
            f" at step {step} of {last * self.epochs}, {what}; {then}: {self.saver.command}",
        )

    def _save(
        self, progress: Progress, step: int, finite: bool, metric: float | None = None
    ) -> bool:
        """Save if every seed is finite; return whether it was saved."""
        if self.saver.checkpoints is None or not finite:
            return False
        self.saver.save(progress, step, metric)
        return True

    def _finite(self, totals: Totals) -> dict[str, np.ndarray]:
        """Fetch the totals to the host; raise Diverged if no seed's steps were all finite."""
        sums = transfer.fetch(totals)
        if np.max(sums["bad_step"]) == NEVER:
            return sums
        bad = int(np.min(sums["bad_step"]))
        stored = self.saver.stored()
        good = "no checkpoint had been written yet"
        if stored:
            good = f"the checkpoint of step {stored[-1]} is good"
        where = ", in another --workdir" if stored else ""
        raise Diverged(
            f"the loss or the parameters are not finite after step {bad + 1} (epoch "
            f"{bad // self.experiment.steps_per_epoch + 1}); {good}. Try a lower --learning-rate, "
            f"--schedule cosine,warmup=1 or --clip-norm{where}",
            sums["bad_step"],
        )


def _row(
    sums: dict[str, np.ndarray], epoch: int, steps_per_epoch: int, steps: int, seconds: float
) -> Row:
    """Build the row of an epoch's metrics; this process took `steps` of its steps, in `seconds`."""
    count = sums["count"].astype(np.float64)
    row = {
        "epoch": epoch + 1,
        "step": (epoch + 1) * steps_per_epoch,
        "train_loss": (sums["loss"] / count).tolist(),
        "train_accuracy": (sums["correct"] / count).tolist(),
        "images_per_second": float(np.sum(count)) / steps_per_epoch * steps / seconds,
        "seconds": seconds,
    }
    if epoch == 0:  # early training, where losses differ most
        row["gradient_norms"] = sums["gradient_norms"][..., :steps_per_epoch].tolist()
    if sums["bad_step"].ndim:
        row["bad_step"] = [None if bad == NEVER else bad for bad in sums["bad_step"].tolist()]
    return row


def _validation(results: Sequence[Metrics], several: bool, prefix: str = "validation") -> Row:
    """Build the part of a row with the metrics of the held-out images: lists over seeds if there
    are several networks.
    """
    names = metrics.numbers(results[0]) if results else ()
    columns = {f"{prefix}_{name}": [result[name] for result in results] for name in names}
    return columns if several else {name: values[0] for name, values in columns.items()}


def line(row: Row, epochs: int) -> str:
    """Format an epoch's metrics for a person to read; their means where there are several seeds."""
    mean = {name: f"{np.mean(row[name]):.4f}" for name in _SHOWN if name in row}
    parts = [
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}",
        f"loss {mean['train_loss']}",
        f"accuracy {mean['train_accuracy']}",
    ]
    if "validation_loss" in row:
        parts.append(
            f"validation loss {mean['validation_loss']} accuracy {mean['validation_accuracy']}"
        )
    if "validation_last_accuracy" in row:
        parts[-1] += f" (last weights {mean['validation_last_accuracy']})"
    return "  ".join([*parts, f"{row['images_per_second']:,.0f} images/s"])


_SHOWN = (
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "validation_last_accuracy",
)


def evaluate(
    sums: Sums,
    variables: Variables,
    batches: Iterable[Batch],
    console: Console | None = None,
    num_seeds: int | None = None,
    extra_metrics: Sequence[metrics.Metric] = (),
) -> list[Metrics]:
    """Compute the metrics of a whole data set, for each network that the variables hold.

    Args:
      sums: (variables, batch) -> metric sums.
      variables: of the model.
      batches: padded, with masks (`data.feed.in_order`).
      console: shows progress; None shows nothing.
      num_seeds: how many the variables hold along a leading axis; None for one without it.
      extra_metrics: besides those that are always measured.

    Returns:
      `metrics.summarise` of each seed; a list of one where there is no seed axis.
    """
    parts = _fetched(sums, variables, batches, console or Console("off"))
    if num_seeds is None:
        return [metrics.summarise(parts, extra_metrics)]
    return metrics.summarise_seeds(parts, extra_metrics)


def _fetched(
    sums: Sums, variables: Variables, batches: Iterable[Batch], console: Console
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the metric sums of each batch on the host, while the devices work on the next ones."""
    waiting: deque[dict[str, jax.Array]] = deque()
    with console.progress("evaluating", None, "batches") as show:
        for batch in batches:
            waiting.append(sums(variables, batch))
            if len(waiting) > IN_FLIGHT:
                yield transfer.fetch(waiting.popleft())
            show()
        while waiting:
            yield transfer.fetch(waiting.popleft())
