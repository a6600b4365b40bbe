"""One run: started or resumed, trained, tested, its outputs written."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Required, TypedDict

import jax
import numpy as np
from jax import monitoring

from cnnlab import files, metrics, models
from cnnlab.checkpoint import digest, layout
from cnnlab.checkpoint.manager import CheckpointError, Checkpoints
from cnnlab.config import Config
from cnnlab.console import Console
from cnnlab.data import contents
from cnnlab.data import feed as feeds
from cnnlab.data.dataset import Dataset
from cnnlab.data.decoded_file import Rows
from cnnlab.data.distortions import distorted
from cnnlab.errors import InputError, one_line
from cnnlab.multihost import agree, processes
from cnnlab.parts import OBJECT, FurtherSet, Parts
from cnnlab.training import experiment as experiments
from cnnlab.training import loop, run_folder, testing
from cnnlab.training import network as networks
from cnnlab.training.experiment import Experiment
from cnnlab.training.loop import Observer, Row, Saver
from cnnlab.training.network import Network
from cnnlab.training.run_folder import RunFolder
from cnnlab.training.step import Objective, Progress, eval_step
from cnnlab.types import JsonObject, Metrics

COMPILING = "/jax/core/compile/backend_compile_duration"


@dataclass(frozen=True)
class Run:
    """A run and its results so far.

    Attributes:
      network: with the weights that were tested, or those that were asked for.
      history: the metrics of each epoch.
      test: the network's metrics on the test images; empty where it was not tested.
      test_last: with an average, those of the last weights in it; else empty.
      test_sets: its metrics on each further test set, by name; empty where it was not tested.
      path: of its folder; None where it was kept in memory.
      summary: what summary.json says.
    """

    network: Network
    history: tuple[Row, ...]
    test: Metrics
    path: Path | None = None
    summary: JsonObject = field(default_factory=dict)
    test_last: Metrics = field(default_factory=dict)
    test_sets: Mapping[str, Metrics] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        return self.network.config


def train(
    experiment: Experiment,
    saver: Saver | None = None,
    observer: Observer | None = None,
    console: Console | None = None,
) -> Progress:
    """Train an experiment to its end, resuming from its checkpoints, if it has any.

    Args:
      experiment: what is trained.
      saver: where its checkpoints are; None: it starts afresh, and nothing is saved.
      observer: is called on the way.
      console: shows progress.

    Raises:
      Stopped, Diverged: as `loop.fit`.
    """
    saver = saver or Saver()
    observer = observer or Observer()
    progress = experiment.start()
    restored, _, rejected = saver.restore(progress)
    progress = restored or progress
    observer.begun(progress, rejected)
    epochs = experiment.config.recipe.epochs
    return loop.fit(experiment, progress, epochs, saver=saver, observer=observer, console=console)


def in_memory(
    config: Config,
    console: Console | None = None,
    seeds: Sequence[int] | None = None,
    parts: Parts | None = None,
) -> tuple[Experiment, Progress]:
    """Train to the end in memory; nothing is saved.

    Args:
      config: of the run.
      console: shows progress and one line per epoch; None shows nothing.
      seeds: as for `experiment.build`.
      parts: of the run; None: those that the configuration names.

    Raises:
      InputError: as `experiment.build`. Stopped, Diverged: as `loop.fit`.
    """
    console = console or Console("silent")
    experiment = experiments.build(config, console, seeds, parts=parts)
    saver = Saver(command=run_folder.command())
    return experiment, train(experiment, saver, Spoken(experiment, console), console)


def kept_in_memory(config: Config, console: Console, parts: Parts | None = None) -> Run:
    """Train to the end in memory, and test.

    Raises:
      InputError, Stopped, Diverged: as `in_memory`.
    """
    experiment, progress = in_memory(config, console, parts=parts)
    tests = _tested(experiment, progress, console)
    network = trained_network(experiment, progress, loop.steps_taken(progress.state))
    return Run(network, progress.history, **tests)


def load(path: Path, weights: str | None = None) -> Run:
    """Load the run of a folder; its `test` is empty where other weights were tested, or none yet.

    Args:
      path: of the folder.
      weights: last, average or best, as for `network.load`; None: those that were tested, before
        that the average of the last step, where the run has one.

    Raises:
      InputError: as `network.load`.

    Warns:
      UserWarning: checkpoints are damaged, so that older weights are loaded.
    """
    checkpoints = path / "checkpoints"
    summary = run_folder.read_summary(path)
    config, _, _ = run_folder.read(path)
    ended = summary.get("epochs") == config.recipe.epochs  # it may have been extended since
    tested = summary["tested_step"] if ended else None
    test_last = summary.get("test_last", {})
    test_sets = summary.get("test_sets", {})
    if weights is None and tested in layout.steps(checkpoints):
        with contextlib.suppress(CheckpointError):  # damaged: the last that verifies
            network = networks.load(path, tested)
            test, history = summary["test"], _history(checkpoints)
            return Run(network, history, test, path, summary, test_last, test_sets)
        warnings.warn(f"{path}: the checkpoint that was tested, {tested}, is damaged", stacklevel=3)
    network = networks.load(path, weights)
    for line in network.rejected:
        warnings.warn(f"{path}: checkpoint rejected: {line}", stacklevel=3)
    history = _history(checkpoints)
    if network.step != tested:
        return Run(network, history, {}, path, summary)
    if weights == "last" and test_last:
        return Run(network, history, test_last, path, summary)
    return Run(network, history, summary["test"], path, summary, test_last, test_sets)


def _history(checkpoints: Path) -> tuple[Row, ...]:
    """Read the epochs of a run from its newest checkpoint, which proves them; metrics.jsonl, for
    other programs, does not.
    """
    for step in reversed(layout.steps(checkpoints)):
        with contextlib.suppress(digest.Rejected):
            return tuple(digest.read_about(checkpoints, step)["extra"]["history"])
    return ()


def in_folder(
    config: Config,
    path: Path,
    console: Console | None = None,
    parts: Parts | None = None,
    started: float | None = None,
) -> Run:
    """Train in a run folder, from where it was stopped if it was, and test once at the end.

    Args:
      config: of the run.
      path: of the folder, already checked (`run_folder.check`).
      console: shows progress and one line per epoch.
      parts: of the run; None: those that the configuration names.
      started: when the command started, by time.monotonic; None: now.

    Raises:
      InputError: as `experiment.build` and `RunFolder`. Stopped, Diverged: as `loop.fit`.
    """
    console = console or Console("off")
    start = _Start(started)
    if config.machine.cache and processes.count() > 1:  # the others fetch what it decodes
        agree.on_first(lambda: experiments.decode(config, console, parts))
    experiment = agree.on_all(lambda: experiments.build(config, console, parts=parts))
    agree.agree("the data set", experiment.facts.to_json())
    agree.agree("a file of yours", experiment.parts.sources())
    devices = describe_devices(config, experiment)
    # not the words of the first line: whether it is mapped, and how far ahead, changes no bit
    feed = "resident" if experiment.program.is_resident else "streaming"
    environment = run_folder.versions() | {"devices": devices, "feed": feed}
    unnamed = [test_set.name for test_set in experiment.parts.test_sets if test_set.is_object]
    with (
        RunFolder(path, config, environment, experiment.facts, unnamed) as folder,
        Checkpoints(path / "checkpoints", keep=config.output.keep, run=folder.run) as checkpoints,
    ):
        saver = Saver(checkpoints, config.output.checkpoint_steps, command=run_folder.command())
        progress = train(experiment, saver, Kept(experiment, console, folder, start), console)
        tested, step = _to_test(config, saver, progress, console)
        tests = _tested(experiment, tested, console)
        earlier = agree.on_first(lambda: run_folder.earlier_tests(path, step))
        tests["test_sets"] = earlier | tests["test_sets"]
        summary = {
            "epochs": config.recipe.epochs,
            "test_on": config.output.test_on,
            "tested_step": step,
            "parameters": models.count_parameters(progress.state.params),
            "last_epoch": progress.history[-1],
            **tests,
            "largest_confusions": metrics.named_confusions(
                tests["test"], experiment.facts.class_names
            ),
        }
        agree.on_first(lambda: _publish(experiment, progress, summary, folder, console))
    reached = trained_network(experiment, tested, step)
    return Run(reached, progress.history, path=path, summary=summary, **tests)


def dataset_of(
    network: Network, data_dir: str | None = None, console: Console | None = None
) -> Dataset:
    """Open the data set that a network was trained on.

    Args:
      network: of a run.
      data_dir: TFDS data directory; None: the run's own.
      console: shows progress.

    Raises:
      InputError: it is not there, or another one of this name is.
    """
    config = network.config
    console = console or Console("off")
    data_dir = data_dir or config.machine.data_dir
    try:
        dataset = network.parts.open_dataset(data_dir, config.recipe)
    except InputError as error:
        if network.parts.dataset.name != OBJECT:
            raise
        raise InputError("the run was trained on data without a name: give it as data") from error
    if difference := _difference(network, dataset, console):
        where = f" in {data_dir}" if data_dir else ""
        raise InputError(
            f"{config.recipe.dataset}{where} is not the data set that the run was trained on: "
            f"{difference}"
        )
    return dataset


def _difference(network: Network, dataset: Dataset, console: Console) -> str:
    """Say in what a data set differs from the one that a network was trained on; empty where it
    does not.
    """
    facts = network.facts
    if not network.fits(dataset):
        return "it has other classes, or images of another shape"
    expected = [(dataset.test, facts.counts["test"])]
    if facts.num_images:  # not in data.json of the first version
        expected.append((dataset.train, facts.num_images))
    for split, count in expected:
        if len(split) != count:
            return f"{split.name} has {len(split):,} images, and had {count:,}"
    if facts.test_digest:
        track = console.track(f"decoding {dataset.test.name}", "reads")
        if contents.summary(dataset.test, track).digest() != facts.test_digest:
            return "it has other test images, or other labels of them"
    return ""


def evaluate(network: Network, dataset: Dataset, console: Console | None = None) -> Metrics:
    """Compute the metrics of a trained network on the test images of a data set, on one device.

    Args:
      network: whose classes and image shape are those of the data set (`Network.fits`).
      dataset: opened.
      console: shows progress.
    """
    recipe = network.config.recipe
    parts = network.parts
    facts = network.facts
    steps_per_epoch = facts.steps_per_epoch(recipe.batch_size)
    total_steps = steps_per_epoch * recipe.epochs
    teacher = networks.teacher_fn(recipe, dataset)[0] if parts.needs_teacher else None
    loss = parts.build_loss(facts.num_classes, np.array(facts.class_counts))
    extra = parts.build_metrics()
    sums = partial(
        eval_step,
        apply_fn=network.apply_fn,
        objective=Objective(loss, parts.loss_asks, total_steps, steps_per_epoch, teacher),
        extra_metrics=extra,
    )
    test = dataset.test
    batches = feeds.in_order(test.read, range(len(test)), recipe.batch_size)
    variables = network.variables
    (result,) = loop.evaluate(jax.jit(sums), variables, batches, console, extra_metrics=extra)
    return result


def evaluate_on(
    network: Network,
    test_set: FurtherSet,
    data_dir: str | None = None,
    console: Console | None = None,
) -> Metrics:
    """Compute the metrics of a trained network on a further test set, on one device.

    Args:
      network: of a run.
      test_set: its data set needs no images to train on.
      data_dir: TFDS data directory; None: the run's own.
      console: shows progress.

    Raises:
      InputError: it is not there, it has other classes or images, or it is not the set of this name
        that the run was tested on.
    """
    config, facts = network.config, network.facts
    if test_set.is_of(network.parts.dataset):
        dataset = dataset_of(network, data_dir, console)
    else:
        dataset = testing.open_other(
            test_set,
            network.parts,
            config.recipe,
            data_dir or config.machine.data_dir,
            facts.class_names,
            facts.image_shape,
        )
    split = distorted(dataset.test, test_set.distortions)
    testing.check_recorded(test_set.name, split, facts, console or Console("off"))
    return evaluate(network, replace(dataset, test=split), console)


class _Tests(TypedDict, total=False):
    """What a run is tested for, as in `Run`: `test_last` only with an average."""

    test: Required[Metrics]
    test_last: Metrics
    test_sets: Required[dict[str, Metrics]]


def _tested(experiment: Experiment, progress: Progress, console: Console) -> _Tests:
    """Test a network, and the last weights in its average, where it has one; then the network on
    the further test sets.
    """
    state = progress.state
    (test,) = experiment.test(state, console)
    last: list[Metrics] = experiment.test(state.last, console) if state.average else []
    test_sets = {}
    for name, split in experiment.data.test_sets.items():
        (result,) = experiment.test(state, console, split)
        test_sets[name] = metrics.without_large_confusion(result)
    if not last:
        return {"test": test, "test_sets": test_sets}
    return {"test": test, "test_last": last[0], "test_sets": test_sets}


def trained_network(experiment: Experiment, progress: Progress, step: int) -> Network:
    """Build the network of an experiment with the weights that it has reached."""
    views = experiment.config.recipe.test_views
    features = "features" in experiment.parts.loss_asks
    model = experiment.program.model
    facts = experiment.facts
    apply_fn = networks.apply_for_evaluation(model, facts, views, features)
    return Network(experiment.config, experiment.parts, facts, apply_fn, progress.state, step)


class Spoken(Observer):
    """An observer that says what is to be known of a run, and one line per epoch."""

    def __init__(self, experiment: Experiment, console: Console):
        self.experiment, self.console = experiment, console

    def begun(self, progress: Progress, rejected: Sequence[str]) -> None:
        del progress, rejected
        for line in self.experiment.notices():
            self.console.say(line)

    def epoch(self, row: Row) -> None:
        self.console.say(loop.line(row, self.experiment.config.recipe.epochs))


class Kept(Spoken):
    """An observer that also says how a run was found and how long it took to start, and records it
    in its folder.
    """

    def __init__(self, experiment: Experiment, console: Console, folder: RunFolder, start: _Start):
        super().__init__(experiment, console)
        self.folder = folder
        self.start = start

    def begun(self, progress: Progress, rejected: Sequence[str]) -> None:
        experiment = self.experiment
        say = self.console.say
        recipe = experiment.config.recipe
        counts = experiment.facts.counts
        parameters = models.count_parameters(progress.state.params)
        say(
            f"{describe_devices(experiment.config, experiment)}; {recipe.dataset}: "
            f"{counts['train']:,} images to train on, {counts['validation']:,} to validate, "
            f"{describe_feed(experiment)}; {recipe.model}: {parameters:,} parameters; "
            f"{recipe.loss}; {self.folder.path}"
        )
        super().begun(progress, rejected)
        for line in rejected:
            say(f"checkpoint rejected: {line}")
        if step := loop.steps_taken(progress.state):
            say(f"resuming after step {step} of {experiment.steps_per_epoch * recipe.epochs}")
            for line in self.folder.warnings:
                say(f"since then {line}: the last bits may differ from a run never stopped")
        self.folder.start_metrics(progress.history, experiment.config.output.tensorboard)

    def first_step(self, progress: Progress) -> None:
        jax.block_until_ready(progress.state)
        seconds = time.monotonic() - self.start.began
        self.console.say(
            f"first step finished after {seconds:.2f} s, {self.start.compiling:.2f} s of it "
            "compilation"
        )

    def epoch(self, row: Row) -> None:
        self.folder.add_metrics(row)
        super().epoch(row)


class _Start:
    """When a run began, and the seconds of its compilations, or of reading them from the cache."""

    def __init__(self, began: float | None) -> None:
        self.began = time.monotonic() if began is None else began
        self._earlier = len(_compilations())

    @property
    def compiling(self) -> float:
        return sum(_compilations()[self._earlier :])


@cache
def _compilations() -> list[float]:
    """Collect the seconds of each compilation of this process from now on. JAX keeps its listeners,
    so there is only one.
    """
    seconds: list[float] = []

    def note(event: str, duration_secs: float, **_: object) -> None:
        if event == COMPILING:
            seconds.append(duration_secs)

    monitoring.register_event_duration_secs_listener(note)
    return seconds


def describe_devices(config: Config, experiment: Experiment) -> str:
    """Describe which devices a run uses, and why not all of them."""
    layout = experiment.layout
    machine = config.machine
    text = f"{layout.device_count} x {jax.devices()[0].device_kind} ({layout.mode})"
    if processes.count() > 1:
        text += f" of {processes.count()} processes"
    chosen = machine.parallel == "auto" and machine.devices is None
    if chosen and layout.device_count < jax.device_count():
        text += f", of {jax.device_count()}: more do not divide the batch or are no faster"
    return text


def describe_feed(experiment: Experiment) -> str:
    """Describe how the images are fed: resident; mapped, from which file; or streaming."""
    if experiment.program.is_resident:
        return "resident"
    ahead = f"up to {experiment.feed.ahead / 1e6:,.0f} MB of batches ahead"
    rows = experiment.data.dataset.train.records
    if isinstance(rows, Rows):
        return f"mapped from {rows.path} ({rows.size / 1e9:,.1f} GB), {ahead}"
    return f"streaming, {ahead}"


def _to_test(
    config: Config, saver: Saver, progress: Progress, console: Console
) -> tuple[Progress, int]:
    """Choose the weights to test; return them with their step."""
    if config.output.test_on == "last":
        return progress, loop.steps_taken(progress.state)
    best, step, rejected = saver.restore(progress, which="best")
    for line in rejected:
        console.say(f"checkpoint rejected, the next best is tested: {line}")
    return best or progress, step


def _publish(
    experiment: Experiment,
    progress: Progress,
    summary: JsonObject,
    folder: RunFolder,
    console: Console,
) -> None:
    """Write the summary, then draw the curves and the confusion matrix: a picture that fails costs
    a line, and never the result.
    """
    from cnnlab import plots

    folder.write_summary(summary)
    recipe = experiment.config.recipe
    result = summary["test"]
    title = f"{recipe.dataset}, {recipe.model}, {recipe.loss}, seed {recipe.seed}"
    tested = f"{title}\ntest accuracy {result['accuracy']:.2%} of {result['count']:,} images"
    names = experiment.facts.class_names
    matrix = metrics.confusion_matrix(result)
    pictures = {
        "curves.png": lambda file: plots.curves(list(progress.history), file, title),
        "confusion.png": lambda file: plots.confusion(matrix, names, file, tested),
    }
    path = folder.path
    for name, draw in pictures.items():
        try:
            with files.written(path / name) as file:
                draw(file)
        except Exception as error:  # matplotlib raises anything
            console.say(f"{path / name} could not be drawn: {one_line(error)}")
