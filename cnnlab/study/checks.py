"""What is known to fail is refused before any training of a study."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from cnnlab import compilation_cache, verified
from cnnlab.config import Config, Recipe
from cnnlab.console import Console
from cnnlab.data.contents import Contents
from cnnlab.data.dataset import Dataset
from cnnlab.data.facts import DataFacts
from cnnlab.errors import InputError
from cnnlab.parts import DATA_SETTINGS, Parts, resolve
from cnnlab.spec import refused
from cnnlab.study import choices, plan, tuning
from cnnlab.study import folder as folders
from cnnlab.study.folder import Digests
from cnnlab.study.plan import Study
from cnnlab.training import experiment, memory, network, program, testing
from cnnlab.training.devices import Layout
from cnnlab.training.program import LEARNING_RATE
from cnnlab.training.step import Objective

# Settings that decide how much memory a network takes, besides its data
SIZE = ("model", "optimizer", "average", "compute_dtype", "batch_size", "microbatches", "augment")
LARGE = 50.0  # megabytes of logits that are kept of a network without a word


@dataclass(frozen=True)
class _Opened:
    """A data set, read, with the SHA-256 of the further sets that are tested on."""

    dataset: Dataset
    read: Contents
    test_sets: dict[str, str]
    ood_sets: dict[str, str]


def check(study: Study, console: Console) -> dict[tuple[str, str], Digests]:
    """Refuse, before any training, what can be known to fail.

    Returns:
      The digests of each arm under each condition, by `Cell.key`.

    Raises:
      InputError: no such data set, a loss that does not keep the contract or is not finite, too few
        images, too few devices.
    """
    verified.share(study.machine.cache)
    # JAX looks whether there is a cache when it first compiles, and never again
    compilation_cache.keep_compilations()
    recipes = {
        f"{arm}, {plan.label(condition)}": folders.config(study, arm, condition).recipe
        for arm, condition in plan.grid(study)
    }
    choices.check(study, recipes)
    digests: dict[tuple[str, str], Digests] = {}
    teachers: dict[str, tuple[Callable | None, str | None]] = {}
    opened: dict[tuple[object, ...], _Opened] = {}
    sizes: set[tuple[str, ...]] = set()
    largest = 0.0
    for arm, condition in plan.grid(study):
        config = folders.config(study, arm, condition)
        recipe = config.recipe
        parts = resolve(config.recipe, test_sets=study.test_sets)
        settings = (getattr(recipe, name) for name in DATA_SETTINGS)
        key = str(parts.dataset), *map(str, parts.selections), *settings
        if key not in opened:
            opened[key] = _open(study, config, parts, console)
        known = opened[key]
        data = experiment.training_data(config, parts, known.dataset, known.read)
        width = plan.block_width(study)
        for at_end in choices.ends_of(study, recipe):
            if at_end.batch_size != recipe.batch_size:
                tuned = dataclasses.replace(config, recipe=at_end)
                experiment.training_data(tuned, resolve(at_end), known.dataset, known.read)
        layout = experiment.choose_layout(config, parts, width)
        experiment.check_parts(recipe, parts, data.dataset)
        size = tuple(map(str, (*key, *(getattr(recipe, name) for name in SIZE))))
        if size not in sizes:
            sizes.add(size)
            _check_memory(study, config, parts, data.facts)
        _check_values(recipe, parts, data.facts)
        if arm not in teachers:
            teachers[arm] = None, None
            if parts.needs_teacher:
                teachers[arm] = network.teacher_fn(recipe, data.dataset)
        teacher, teacher_digest = teachers[arm]
        if study.tune_per_seed and width > 1 and choices.ranges_of(study, recipe):
            _check_together(study, config, layout, data.facts, teacher)
        largest = max(largest, _kept_megabytes(data.facts))
        digests[arm, plan.label(condition)] = Digests(
            data.facts.digest, teacher_digest, known.test_sets, known.ood_sets
        )
    if study.keep_logits == "all" and largest > LARGE:
        console.say(
            f"the logits of each network take {largest:,.0f} MB of the study's folder; "
            "--keep-logits none keeps none"
        )
    return digests


def _open(study: Study, config: Config, parts: Parts, console: Console) -> _Opened:
    """Open a data set and the further test sets, and read them."""
    recipe, data_dir = config.recipe, study.machine.data_dir
    dataset = parts.open_dataset(data_dir, recipe)
    test_sets = testing.open_sets(parts, recipe, data_dir, dataset)
    ood = testing.open_ood(study.ood_sets, parts, recipe, data_dir, dataset)
    if facts := experiment.expected_facts(dataset):
        _check_memory(study, config, parts, facts)
    read = experiment.read_dataset(study.machine, dataset, console)
    return _Opened(
        dataset,
        dataclasses.replace(read, images=None),
        testing.digests(test_sets, console),
        testing.digests(ood, console),
    )


def _check_memory(study: Study, config: Config, parts: Parts, facts: DataFacts) -> None:
    """Refuse networks that do not fit into memory, as many as are trained together.

    Raises:
      InputError: they do not.
    """
    numbers = {plan.block_width(study)}
    if tried := choices.tried(study, config.recipe):
        number = len(tried) * len(plan.tuning_seeds(study, range(plan.block_width(study))))
        numbers.add(min(number, tuning.TOGETHER))
    machine = dataclasses.replace(config.machine, mesh=None)
    config = dataclasses.replace(config, machine=machine)
    for number in numbers:
        layout = experiment.choose_layout(config, parts, number)
        memory.check(program.build(config, parts, layout, facts, teacher=lambda images: images))


def _kept_megabytes(facts: DataFacts) -> float:
    """Compute the size of a network's logits on the test set and the validation split."""
    images = facts.counts["test"] + facts.counts["validation"]
    return 4 * images * facts.num_classes / 1e6


def _check_together(
    study: Study, config: Config, layout: Layout, facts: DataFacts, teacher: Callable | None
) -> None:
    """Refuse seeds that are trained together with values that a program cannot take as data.

    Raises:
      InputError: there are some.
    """
    point = choices.tried(study, config.recipe)[0]
    names = [name for name in point if name != LEARNING_RATE]
    recipe = choices.with_point(config.recipe, point)
    with_point = dataclasses.replace(config, recipe=recipe)
    compiled = program.build(with_point, resolve(recipe), layout, facts, teacher)
    if names and not compiled.takes(names):
        raise InputError(
            "--tune-per-seed: the seeds of a block are trained together, and "
            f"{' and '.join(names)} cannot differ between them; take --block 1"
        )


def _check_values(recipe: Recipe, parts: Parts, facts: DataFacts) -> None:
    """Call the loss once on a batch of ordinary logits.

    Raises:
      InputError: its values or gradients are not finite, or it cannot be called.
    """
    if "features" in parts.loss_asks:
        return  # what they are is the model's affair
    batch = recipe.batch_size
    num_classes = facts.num_classes
    loss = parts.build_loss(num_classes, np.array(facts.class_counts))
    teacher = (lambda images: jnp.zeros_like(logits)) if parts.needs_teacher else None
    objective = Objective(loss, parts.loss_asks, teacher=teacher)
    logits = jnp.tanh(jax.random.normal(jax.random.key(0), (batch, num_classes)))
    labels = jnp.arange(batch) % num_classes

    def total(z: jax.Array) -> jax.Array:
        return jnp.sum(objective(z, labels, pixels=lambda: z, features=None, step=jnp.int32(0)))

    with refused(f"loss {recipe.loss} fails on a batch of {batch}"):
        outcome = jax.value_and_grad(total)(logits)
    for what, values in zip(("values", "gradients"), outcome, strict=True):
        if not np.all(np.isfinite(values)):
            raise InputError(
                f"loss {recipe.loss} gives {what} that are not finite for logits between -1 and 1"
            )
