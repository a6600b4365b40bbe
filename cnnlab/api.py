"""The library without a command line: objects in, a `Run` out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeGuard, cast

import flax.linen as nn
import jax
import optax

from cnnlab import files, parts, spec
from cnnlab.augment import Batch
from cnnlab.config import TEST, Config
from cnnlab.console import Console
from cnnlab.data.dataset import Dataset
from cnnlab.errors import InputError
from cnnlab.metrics import Metric
from cnnlab.optim import Average
from cnnlab.parts import OBJECT, FurtherSet, part_of
from cnnlab.spec import Part
from cnnlab.training import run as runs
from cnnlab.training import run_folder
from cnnlab.training.run import Run
from cnnlab.types import Metrics

Data: TypeAlias = (
    str | Dataset | Mapping[str, object] | Callable[..., Dataset | Mapping[str, object]]
)
Optimizer: TypeAlias = (
    str | optax.GradientTransformation | Callable[..., optax.GradientTransformation]
)

PIPELINES = {"augment": "augmentation", "metrics": "metric"}


def train(  # noqa: PLR0913 (the kinds of parts)
    data: Data | None = None,
    model: str | nn.Module | Callable[..., nn.Module] | None = None,
    loss: str | Callable[..., jax.Array] | type | None = None,
    optimizer: Optimizer | None = None,
    *,
    schedule: str | Callable[..., optax.Schedule] | None = None,
    average: str | Callable[..., Average] | None = None,
    augment: str | Sequence[str | Callable[..., Batch]] | None = None,
    metrics: Sequence[str | Metric | Callable[..., Metric]] = (),
    test_sets: Sequence[Data] | Mapping[str, Data] = (),
    **settings: object,
) -> Run:
    """Train one network and test it once, at the end.

    Every part is a spec as on the command line, or an object: what keeps the contract of its kind
    (`cnnlab.parts.part_of`). What is left out is as in experiments/train.py.

    Args:
      data: spec, Dataset, {"train": (images, labels), "test": ..., "class_names": ...}, or a
        function that returns one of these.
      model: spec, linen module or class, or function (num_classes, ...) -> module.
      loss: spec, or function (logits, labels, ...) -> loss of each example.
      optimizer: spec, optax.GradientTransformation, or function (learning_rate, ...) -> one. A
        transformation has its own learning rate and schedule.
      schedule: spec, or function (peak, total_steps, ...) -> optax.Schedule.
      average: spec, or function (total_steps, ...) -> (step -> weight), of the weights.
      augment: spec, or a list of specs and functions (keys, batch, ...) -> batch.
      metrics: besides those that are always measured: specs, Metrics or functions that return one.
      test_sets: to test on besides the test images of `data`, at the end: specs, where `test` is
        data itself (test+gaussian_noise,severity=3), or what `data` takes, with or without train;
        {name: one of these} names them.
      settings: any other, by its name in `cnnlab.config`: epochs, batch_size, seed, devices, ... A
        `workdir` makes it a run that can be stopped and resumed; without it, it is kept in memory.
        Nothing is printed unless `progress` is given.

    Returns:
      The run: its network, history and test metrics, those of the test sets by name.

    Raises:
      InputError: whatever cannot be done. Stopped, Diverged: as `loop.fit`.
    """
    wanted = {"dataset": data, "model": model, "loss": loss, "optimizer": optimizer}
    wanted |= {"schedule": schedule, "average": average}
    wanted |= {"augment": augment, "metrics": metrics or None}
    texts = {name: _as_setting(name, thing) for name, thing in wanted.items() if _is_text(thing)}
    objects = {
        name: _parts_of(name, thing)
        for name, thing in wanted.items()
        if thing is not None and name not in texts
    }
    for name, pipeline in objects.items():
        texts[name] = _as_setting(name, [str(part) for part in pipeline])
    named = _named_sets(test_sets)
    further = tuple(test_set for _, test_set in named)
    texts["test_sets"] = tuple(text for text, _ in named)
    config = _config(optimizer, schedule, settings, texts)
    resolved = replace(parts.resolve(config.recipe, objects), test_sets=further)
    console = Console(cast(str, settings.get("progress", "silent")))
    if config.output.workdir is None:
        return runs.kept_in_memory(config, console, resolved)
    for part in resolved:
        if part.name == OBJECT and part.kind.name != "data set":
            raise InputError(
                f"a run folder names its parts, and this {part.kind.name} has no name: put it "
                "into a module that can be imported, or leave workdir out"
            )
    path = run_folder.default_path(config)
    # Whether a data set given as an object is the folder's is seen once it is read.
    has_objects = "dataset" in objects or any(test_set.is_object for test_set in further)
    if run_folder.check(path, config) and not has_objects:
        finished = load(path)
        if finished.test:  # else the weights that were tested are damaged
            return finished
    return runs.in_folder(config, path, console, resolved)


def _config(
    optimizer: Optimizer | None,
    schedule: object,
    settings: Mapping[str, object],
    texts: Mapping[str, object],
) -> Config:
    """Build the configuration of a run from Python; refuse what would have no effect."""
    fixed = isinstance(optimizer, optax.GradientTransformation)
    if fixed and (schedule is not None or {"schedule", "learning_rate"} & settings.keys()):
        raise InputError(
            "an optax.GradientTransformation has its own learning rate and schedule: leave "
            "learning_rate and schedule out, or give a function of the learning rate"
        )
    if alone := {"coordinator", "processes", "process"} & settings.keys():
        raise InputError(
            f"{min(alone)} has no effect here: the processes of a program join by "
            "cnnlab.multihost.join.join, or run experiments/train.py"
        )
    try:
        return Config.of(**{"tensorboard": False, **settings, **texts})
    except TypeError as error:
        raise InputError(str(error)) from error


def load(path: str | os.PathLike[str], weights: str | None = None) -> Run:
    """Load the run of a folder; it need not have ended.

    Args:
      path: of the folder, also gs://BUCKET/FOLDER.
      weights: last; average (of the last step); best (on validation), its average where the run
        has one; None: those that were tested.

    Raises:
      InputError: no run there, no checkpoint yet, or none that verifies.
    """
    return runs.load(files.path(path), weights)


def evaluate(
    run: Run | str | os.PathLike[str], data: Data | None = None, data_dir: str | None = None
) -> Metrics:
    """Compute the metrics of a run's network on test images.

    Args:
      run: or the path of its folder.
      data: whose test images, as for the `test_sets` of `train`: it may have no images to train on,
        and a spec may distort them (test+gaussian_noise,severity=3); None: those of its own data
        set.
      data_dir: TFDS data directory; None: the run's own.

    Raises:
      InputError: the data set is not there, has other classes or images, or is not the one of this
        name that the run was trained or tested on.
    """
    network = (run if isinstance(run, Run) else load(run)).network
    if data is None or data == TEST:
        return runs.evaluate(network, runs.dataset_of(network, data_dir))
    return runs.evaluate_on(network, _further_set(OBJECT, data), data_dir)


def _named_sets(
    test_sets: Sequence[Data] | Mapping[str, Data],
) -> list[tuple[str, FurtherSet]]:
    """Convert what is given as test sets: as it is written in a configuration, and the set.

    Raises:
      InputError: a set that has no name, or a name of two sets.
    """
    if isinstance(test_sets, str):
        test_sets = (test_sets,)
    if isinstance(test_sets, Mapping):
        pairs = [(name, data) for name, data in test_sets.items() if data != TEST]
    else:
        pairs = [(_name_of(data), data) for data in test_sets if data != TEST]
    named = []
    for name, data in pairs:
        text = data if isinstance(data, str) else spec.as_name(name)
        named.append((text, _further_set(name, data)))
    names = [TEST, *[test_set.name for _, test_set in named]]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"test_sets: two sets have the name {min(twice)}; give {{name: set}}")
    return named


def _name_of(data: Data) -> str:
    """Return the name of a test set that is given without one."""
    if isinstance(data, str):
        return data
    part = part_of("dataset", data)
    if part.name == OBJECT:
        raise InputError("test_sets: a set without a name; give {name: set}")
    return part.name


def _further_set(name: str, data: Data) -> FurtherSet:
    """Convert a spec, or what `part_of` takes for a data set, to a test set."""
    if isinstance(data, str):
        (test_set,) = parts.further_sets([data])
        return test_set if name == OBJECT else replace(test_set, name=name)
    part = part_of("dataset", data)
    # The run's own data set may have the name of this object.
    is_object = isinstance(data, Dataset | Mapping)
    return FurtherSet(name, replace(part, name=OBJECT) if is_object else part)


def _is_text(thing: object) -> TypeGuard[str | Sequence[str]]:
    """Return whether a part is given as it would be on the command line."""
    if isinstance(thing, list | tuple):
        return bool(thing) and all(isinstance(item, str) for item in thing)
    return isinstance(thing, str)


def _parts_of(name: str, thing: object) -> tuple[Part, ...]:
    """Convert what is given for a setting to parts: one, or those of a pipeline."""
    things = thing if isinstance(thing, list | tuple) and name in PIPELINES else [thing]
    return tuple(part_of(PIPELINES.get(name, name), item) for item in things)


def _as_setting(name: str, texts: str | Sequence[str]) -> str | tuple[str, ...]:
    """Convert specs to the value of a setting: a tuple for metrics, one text for a pipeline."""
    texts = (texts,) if isinstance(texts, str) else tuple(texts)
    return texts if name == "metrics" else "+".join(texts) or "none"
