"""A configuration -> network, optimizer, first state; a run folder -> its trained network."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from cnnlab import augment, compilation_cache, files
from cnnlab.checkpoint import layout, manager
from cnnlab.config import Config, Recipe
from cnnlab.console import show
from cnnlab.contracts import captured
from cnnlab.data.dataset import Dataset
from cnnlab.data.facts import DataFacts
from cnnlab.errors import InputError, first_line, unknown
from cnnlab.models.convolution import Convolution
from cnnlab.parts import Parts, resolve
from cnnlab.softmax import as_float
from cnnlab.training import devices, run_folder
from cnnlab.training.step import (
    ApplyFn,
    TrainApplyFn,
    TrainState,
    Variables,
    create_state,
    zero_totals,
)
from cnnlab.types import PyTree


def build_optimizer(
    recipe: Recipe, parts: Parts, steps_per_epoch: int, peak: float | jax.Array | None = None
) -> optax.GradientTransformationExtraArgs:
    """Build the optimizer of a run under its schedule.

    Args:
      recipe: of the run.
      parts: of it.
      steps_per_epoch: of it.
      peak: in place of the recipe's learning rate; may be traced.
    """
    peak = recipe.learning_rate if peak is None else peak
    total_steps = steps_per_epoch * recipe.epochs
    tx = parts.build_optimizer(peak, total_steps, steps_per_epoch, recipe.compute_dtype)
    if recipe.clip_norm is None:
        return tx
    clipped = optax.chain(optax.clip_by_global_norm(recipe.clip_norm), tx)
    return optax.with_extra_args_support(clipped)


def check_seeds(seeds: Sequence[int]) -> None:
    """Check the seeds of runs.

    Raises:
      InputError: none, or one that is not a whole number in [0, 2**32).
    """
    if not (len(seeds) and all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in seeds)):
        raise InputError(
            f"seeds must be whole numbers in [0, 2**32), at least one, got {list(seeds)}"
        )


def run_keys(seeds: int | Sequence[int]) -> jax.Array:
    """Make the key of a run, key[], or of the runs of several seeds, key[S]."""
    return _keys(np.asarray(seeds, np.uint32))


@jax.jit
def _keys(seeds: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.key)(seeds) if seeds.ndim else jax.random.key(seeds)


@functools.partial(jax.jit, static_argnums=1)
def fold_in(keys: jax.Array, data: int) -> jax.Array:
    """Fold a number into the key of a run, key[], or into each of several, key[S]."""
    fold = jax.vmap(jax.random.fold_in, (0, None)) if keys.ndim else jax.random.fold_in
    return fold(keys, data)


def init_images(model: nn.Module) -> int:
    """Return how many training images a model's `init` sees; 0: one image of zeros."""
    return getattr(model, "init_images", 0)


def state_extras(recipe: Recipe, parts: Parts) -> tuple[bool, bool]:
    """Return `averaged` and `scaled` of a run, as `create_state` takes them."""
    return parts.average is not None, recipe.compute_dtype == "float16"


def initial_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    key: jax.Array,
    image_shape: tuple[int, ...],
    images: jax.Array | None = None,
    averaged: bool = False,
    scaled: bool = False,
) -> TrainState:
    """Build the state before the first step; for key[S] as many states, their leaves stacked.

    Args:
      model: linen module.
      tx: optimizer.
      key: of the weights.
      image_shape: (H, W, C).
      images: float[N, H, W, C], normalised, for models that fit their first layer to them; None
        where it is to be restored.
      averaged, scaled: as for `create_state`.

    Raises:
      InputError: the images are too small for the model.
    """
    blank = np.zeros((1, *image_shape), np.float32)
    try:
        state = _initial(model, tx, key, blank if images is None else images, averaged, scaled)
    except InputError:
        raise
    except (ValueError, ZeroDivisionError) as error:
        reason = first_line(error)
        if isinstance(error, ZeroDivisionError) or "zero-size" in reason:
            reason = "its layers leave no pixel of them; take larger ones (--image-size)"
        raise InputError(f"the model does not fit images of {image_shape}: {reason}") from error
    # Newer JAX initialises a layer on nothing without a word; the network would not see the images.
    if not all(leaf.size for leaf in jax.tree.leaves(state.params)):
        raise InputError(
            f"the model does not fit images of {image_shape}: pooling leaves no pixel; take fewer "
            "widths"
        )
    return state


@functools.partial(jax.jit, static_argnums=(0, 1, 4, 5))
def _initial(
    model: nn.Module,
    tx: optax.GradientTransformation,
    key: jax.Array,
    images: ArrayLike,
    averaged: bool,
    scaled: bool,
) -> TrainState:
    def state_of_seed(key: jax.Array) -> TrainState:
        return create_state(dict(model.init(key, images, train=False)), tx, averaged, scaled)

    return (jax.vmap(state_of_seed) if key.ndim else state_of_seed)(key)


def apply_for_training(model: nn.Module, features: bool = False) -> TrainApplyFn:
    """Build the function that applies a model in a train step.

    Args:
      model: linen module.
      features: whether the input of its last layer is wanted.

    Returns:
      (variables, images float[B, H, W, C], key) -> logits, new batch_stats, features or None.
    """

    def apply_fn(
        variables: Variables, images: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, PyTree, jax.Array | None]:
        with captured(features) as last:
            logits, changed = model.apply(
                variables, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
            )
        batch_stats = changed.get("batch_stats", variables["batch_stats"])
        return as_float(logits), batch_stats, last.get("input")

    return apply_fn


def apply_for_evaluation(
    model: nn.Module, facts: DataFacts, views: str = "one", features: bool = False
) -> ApplyFn:
    """Build the function that applies a model in evaluation.

    Args:
      model: linen module.
      facts: whose mean and deviation normalise the images.
      views: of each image, over which logits and features are averaged (`augment.averaged_views`).
      features: whether the input of its last layer is wanted.

    Returns:
      (variables, images uint8[B, H, W, C]) -> logits float32[B, K], features or None.
    """

    mean, std = statistics(facts)

    def apply_to_view(
        variables: Variables, images: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        with captured(features) as last:
            logits = cast(jax.Array, model.apply(variables, images, train=False))
        return as_float(logits), last.get("input")

    def apply_fn(variables: Variables, images: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        normal = augment.normalise(images, mean, std)
        if views == "one":
            return apply_to_view(variables, normal)
        view_images, weights = augment.averaged_views(normal, views)
        outputs = jax.lax.map(functools.partial(apply_to_view, variables), view_images)
        return jax.tree.map(lambda x: jnp.tensordot(weights, x, 1), outputs)

    return apply_fn


def statistics(facts: DataFacts) -> tuple[jax.Array, jax.Array]:
    """Return a data set's mean and deviation as constants of a program: float[C] each.

    They are float64 if JAX has it enabled, otherwise float32.
    """
    dtype = jax.dtypes.canonicalize_dtype(float)
    # jnp.asarray would compile a program
    return jax.device_put((np.asarray(facts.mean, dtype), np.asarray(facts.std, dtype)))


@dataclass(frozen=True)
class Network:
    """A run folder's network with its weights.

    Attributes:
      config: of the run.
      parts: of it.
      facts: about its data.
      apply_fn: (variables, images uint8[B, H, W, C]) -> logits float32[B, K], features.
      state: the weights; with an average, that is what is applied.
      step: after how many steps.
      changed: the user's modules behind its parts that are no longer what they were.
      rejected: why newer checkpoints than that of its step were not taken.
    """

    config: Config
    parts: Parts
    facts: DataFacts
    apply_fn: ApplyFn
    state: TrainState
    step: int
    changed: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()

    @property
    def warnings(self) -> list[str]:
        """What to say before its results."""
        changed = [f"{m} is no longer the file that the run was trained with" for m in self.changed]
        return changed + [f"checkpoint rejected: {line}" for line in self.rejected]

    def fits(self, dataset: Dataset) -> bool:
        """Return whether a data set has the classes and the image shape that it was trained on."""
        facts = self.facts
        described = tuple(dataset.class_names), tuple(dataset.train.image_shape)
        return described == (facts.class_names, facts.image_shape)

    def logits(self, images: np.ndarray | jax.Array) -> jax.Array:
        """Compute the logits of images uint8[B, H, W, C]: float32[B, K]."""
        return jax.jit(self.apply_fn)(self.variables, jnp.asarray(images))[0]

    @property
    def variables(self) -> Variables:
        """What the model is applied with."""
        return self.state.evaluation_variables


_WHICH: dict[str, Literal["latest", "best"]] = {
    "last": "latest",
    "best": "best",
    "average": "latest",
}


def load(path: Path, weights: str | int | None = None, conv: Convolution | None = None) -> Network:
    """Load the network of a run folder, on one device; the run need not have ended.

    Args:
      path: the run folder.
      weights: last; average (of the last step); best (on validation) or those after a number of
        steps, their average where the run has one; None: average where it has one, else last.
      conv: how it convolves; None for the way of the default devices.

    Raises:
      InputError: no run there, no checkpoint yet, none that verifies, or no average.
    """
    which = weights if isinstance(weights, int) else _WHICH.get(weights or "last")
    if which is None:
        raise unknown("weights", str(weights), _WHICH)
    config, facts, stored = run_folder.read(path)
    recipe = config.recipe
    compilation_cache.keep_compilations()
    parts = resolve(recipe)
    if weights == "average" and parts.average is None:
        raise InputError(f"{path} holds a run without --average; use --weights last")
    conv = conv or Convolution(devices.single_device().formulation)
    model = parts.build_model(facts.num_classes, recipe.compute_dtype, conv)
    tx = build_optimizer(recipe, parts, facts.steps_per_epoch(recipe.batch_size))
    key = jax.random.key(0)
    extras = state_extras(recipe, parts)
    state = initial_state(model, tx, key, facts.image_shape, None, *extras)
    run = stored.get("run", "")
    with manager.Checkpoints(path / "checkpoints", read_only=True, run=run) as checkpoints:
        checkpoint = checkpoints.restore({"state": state, "totals": zero_totals()}, which=which)
    if checkpoint is None:
        names = (step.name for step in layout.unfinished(path / "checkpoints"))
        parts_of = ", ".join(name for name in names if name.isdecimal())
        only = f", only parts of step {parts_of}: a save under way, or a copy that was cut short"
        raise InputError(f"{path} holds no checkpoint yet{only if parts_of else ''}")
    if weights == "best" and checkpoint.metric is None:
        raise InputError(
            f"{path} holds no checkpoint with a validation accuracy, so none is best; use "
            "--weights last"
        )
    apply_fn = apply_for_evaluation(model, facts, recipe.test_views, "features" in parts.loss_asks)
    changed = tuple(run_folder.changed_sources(stored, parts))
    state = checkpoint.tree["state"]
    state = state.last if weights == "last" else state
    return Network(
        config, parts, facts, apply_fn, state, checkpoint.step, changed, checkpoint.rejected
    )


def announced(path: Path, weights: str | None = None) -> Network:
    """Load the network of a run folder for a command, as `load` does. On stderr it says which of
    the user's modules are not where they were, before they are imported; then its `warnings`.
    """
    show(*run_folder.moved_sources(path), file=sys.stderr)
    network = load(path, weights)
    show(*network.warnings, file=sys.stderr)
    return network


def teacher_fn(
    recipe: Recipe, dataset: Dataset, conv: Convolution | None = None
) -> tuple[Callable[[jax.Array], jax.Array], str]:
    """Load the teacher of a recipe as a function.

    Returns:
      Images float or uint8[B, H, W, C] in 0..255 -> the teacher's logits float32[B, K]; and a
      digest of its weights and of the user's files behind its model.

    Raises:
      InputError: no run there, one on other classes or images, or one whose newest checkpoint is
        damaged: an older teacher would be another one.
    """
    teacher = load(files.path(recipe.teacher or ""), conv=conv)
    for line in teacher.rejected:
        raise InputError(
            f"--teacher {recipe.teacher}: checkpoint rejected: {line}; delete its summary.json and "
            "run its command again, which trains these steps again"
        )
    if not teacher.fits(dataset):
        raise InputError(
            f"--teacher {recipe.teacher} was trained on other classes or images than "
            f"{recipe.dataset}"
        )
    # On the host: as constants of the step they go to whatever devices it is compiled for.
    variables = jax.device_get(teacher.variables)
    params_first = variables["params"], variables["batch_stats"]
    leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(params_first)]
    code = [bytes.fromhex(digest) for digest in teacher.parts.model.sources().values()]
    digest = hashlib.sha256(b"".join([*(leaf.tobytes() for leaf in leaves), *code])).hexdigest()
    return lambda images: teacher.apply_fn(variables, images)[0], digest
