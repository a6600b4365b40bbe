"""A configuration -> network, optimizer, first state; a run folder -> its trained network."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnnlab import augment, compilation_cache, files
from cnnlab.checkpoint import manager
from cnnlab.config import CHOICES, Config
from cnnlab.contracts import captured
from cnnlab.data.dataset import Dataset
from cnnlab.errors import InputError, unknown
from cnnlab.models.convolution import Convolution
from cnnlab.parts import Parts, resolve
from cnnlab.softmax import as_float
from cnnlab.training import devices, run_folder
from cnnlab.training.step import TrainState, create_state, zero_totals


def build_optimizer(
    config: Config, parts: Parts, steps_per_epoch: int, peak: Any = None
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a run under its schedule; `peak` in place of its learning rate may be
    traced.
    """
    peak = config.learning_rate if peak is None else peak
    tx = parts.build_optimizer(
        peak, steps_per_epoch * config.epochs, steps_per_epoch, config.compute_dtype
    )
    if config.clip_norm is None:
        return tx
    return optax.with_extra_args_support(
        optax.chain(optax.clip_by_global_norm(config.clip_norm), tx)
    )


def run_keys(config: Config, seeds: Sequence[int] | None = None) -> jax.Array:
    """The key of a run, key[]; of the runs with `seeds` in place of the configured one, key[S].

    Raises:
      InputError: no seeds, or one that is none.
    """
    if seeds is None:
        return jax.random.key(config.seed)
    if not (len(seeds) and all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in seeds)):
        raise InputError(
            f"seeds must be whole numbers in [0, 2**32), at least one, got {list(seeds)}"
        )
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def init_images(model: nn.Module) -> int:
    """How many training images a model's `init` sees; 0 for one of zeros."""
    return getattr(model, "init_images", 0)


def initial_state(
    model: Any,
    tx: Any,
    key: jax.Array,
    image_shape: tuple[int, ...],
    images: jax.Array | None = None,
) -> TrainState:
    """The state before the first step; for key[S] as many states, their leaves stacked.

    Args:
      model: linen module.
      tx: optimizer.
      key: of the weights.
      image_shape: (H, W, C).
      images: float[N, H, W, C], normalised, for models that fit their first layer to them; None
        where it is to be restored.

    Raises:
      InputError: the images are too small for the model.
    """
    images = jnp.zeros((1, *image_shape)) if images is None else images
    try:
        state = _initial(model, tx, key, images)
    except InputError:
        raise
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"the model does not fit images of {image_shape}: {str(error).splitlines()[0]}"
        ) from error
    # Newer JAX initialises a layer on nothing without a word; the network would not see the images.
    if not all(leaf.size for leaf in jax.tree.leaves(state.params)):
        raise InputError(
            f"the model does not fit images of {image_shape}: pooling leaves no pixel; take fewer "
            "widths"
        )
    return state


@functools.partial(jax.jit, static_argnums=(0, 1))
def _initial(model: Any, tx: Any, key: jax.Array, images: jax.Array) -> TrainState:
    one = lambda key: create_state(model.init(key, images, train=False), tx)
    return (jax.vmap(one) if key.ndim else one)(key)


def apply_for_training(model: nn.Module, features: bool = False) -> Callable:
    """(params, batch_stats, images float[B, H, W, C], key) -> logits, new batch_stats, features
    (None: not wanted).
    """

    def apply_fn(
        params: Any, batch_stats: Any, images: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Any, Any]:
        variables = {"params": params, "batch_stats": batch_stats}
        with captured(features) as last:
            logits, changed = model.apply(
                variables, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
            )
        return as_float(logits), changed.get("batch_stats", batch_stats), last.get("input")

    return apply_fn


def apply_for_evaluation(
    model: nn.Module, mean: np.ndarray, std: np.ndarray, views: str = "one", features: bool = False
) -> Callable:
    """(params, batch_stats, images uint8[B, H, W, C]) -> logits float32[B, K], features if wanted,
    else None.

    Both are the mean over `augment.averaged_views`.
    """

    def apply_fn(params: Any, batch_stats: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        def seen(images: jax.Array) -> tuple[jax.Array, Any]:
            with captured(features) as last:
                logits: Any = model.apply(
                    {"params": params, "batch_stats": batch_stats}, images, train=False
                )
            return as_float(logits), last.get("input")

        normal = augment.normalise(images, *statistics(mean, std))
        if views == "one":
            return seen(normal)
        each, weights = augment.averaged_views(normal, views)
        return jax.tree.map(lambda x: jnp.tensordot(weights, x, 1), jax.lax.map(seen, each))

    return apply_fn


def statistics(mean: np.ndarray, std: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """A data set's mean and deviation as constants of a program: float[C] each, double where JAX
    has doubles.
    """
    dtype = jnp.float64 if jax.config.read("jax_enable_x64") else jnp.float32
    return jnp.asarray(mean, dtype), jnp.asarray(std, dtype)


@dataclass(frozen=True)
class Trained:
    """A run folder's network with its weights.

    Attributes:
      config: of the run.
      parts: of it.
      facts: about its data (`Experiment.facts`).
      apply_fn: (params, batch_stats, images uint8[B, H, W, C]) -> logits float32[B, K], features.
      state: the weights.
      step: after how many steps.
      changed: the user's modules behind its parts that are no longer what they were.
    """

    config: Config
    parts: Parts
    facts: dict[str, Any]
    apply_fn: Callable
    state: TrainState
    step: int
    changed: tuple[str, ...] = ()


def load(path: Path, weights: str = "last", conv: Convolution | None = None) -> Trained:
    """The network of a run folder, on one device; the run may still be going on.

    Args:
      path: the run folder.
      weights: last or best (on validation).
      conv: how it convolves; None for the way of the default devices.

    Raises:
      InputError: no run there, no checkpoint yet, or none that verifies.
    """
    if weights not in CHOICES["test_on"]:
        raise unknown("weights", weights, CHOICES["test_on"])
    config, facts, stored = run_folder.read(path)
    compilation_cache.keep_compilations()
    parts, classes = resolve(config), len(facts["class_names"])
    conv = conv or Convolution(devices.layout("jit", 1, 1).formulation)
    model = parts.build_model(classes, config.compute_dtype, conv)
    tx = build_optimizer(config, parts, facts["counts"]["train"] // config.batch_size)
    state = initial_state(model, tx, jax.random.key(0), tuple(facts["image_shape"]))
    with manager.Checkpoints(path / "checkpoints", read_only=True) as checkpoints:
        found = checkpoints.restore(
            {"state": state, "totals": zero_totals()},
            which="latest" if weights == "last" else "best",
        )
    if found is None:
        raise InputError(f"{path} holds no checkpoint yet")
    if weights == "best" and found.metric is None:
        raise InputError(
            f"{path} holds no checkpoint with a validation accuracy, so none is best; use "
            "--weights last"
        )
    mean, std = np.array(facts["mean"]), np.array(facts["std"])
    apply_fn = apply_for_evaluation(
        model, mean, std, config.test_views, "features" in parts.loss_asks
    )
    changed = tuple(run_folder.changed_sources(stored, parts))
    return Trained(config, parts, facts, apply_fn, found.tree["state"], found.step, changed)


def teacher_fn(
    config: Config, dataset: Dataset, conv: Convolution | None = None
) -> tuple[Callable, str]:
    """Images float or uint8[B, H, W, C] in 0..255 -> the teacher's logits float32[B, K]; and a
    digest of its weights.

    Raises:
      InputError: no run there, or one on other classes or images.
    """
    trained = load(files.path(config.teacher or ""), conv=conv)
    theirs = trained.facts["class_names"], tuple(trained.facts["image_shape"])
    if theirs != (list(dataset.class_names), tuple(dataset.train.image_shape)):
        raise InputError(
            f"--teacher {config.teacher} was trained on other classes or images than "
            f"{config.dataset}"
        )
    # On the host: as constants of the step they go to whatever devices it is compiled for.
    params, batch_stats = jax.device_get((trained.state.params, trained.state.batch_stats))
    leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves((params, batch_stats))]
    weights = hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()
    return lambda images: trained.apply_fn(params, batch_stats, images)[0], weights
