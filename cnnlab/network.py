"""A configuration -> network, optimizer, first state; a run folder -> its trained network."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnlab import augment, cache, checkpoint, models, optim, parallel, run_folder, storage, train
from cnnlab.config import CHOICES, Config
from cnnlab.data import source
from cnnlab.errors import InputError, unknown
from cnnlab.losses.spec import on_cosines


def build_model(config: Config, num_classes: int, formulation: str = "native") -> Any:
    """The linen module of a configuration; `formulation` as `parallel.Layout` says for its devices."""
    dtype = models.model_dtype(config.compute_dtype)
    head = config.head if config.head != "auto" else "cosine" if on_cosines(config.loss) else "linear"
    if config.model == "softmax_regression":
        return models.SoftmaxRegression(num_classes, dtype, head)
    activation = {"auto": "gelu" if config.model == "airnet" else "relu"}.get(config.activation, config.activation)
    if config.model == "airnet":
        widths = config.widths or models.AirNet.widths
        return models.AirNet(num_classes, widths, config.whiten, activation, dtype, head, formulation)
    dense = (config.hidden, config.batch_norm, config.dropout)
    if config.model == "mlp":
        return models.MLP(num_classes, *dense, activation, dtype, head)
    widths = config.widths or models.CNN.widths
    return models.CNN(num_classes, widths, *dense, config.pool, activation, dtype, head, formulation)


def build_optimizer(config: Config, steps_per_epoch: int, peak: Any = None) -> Any:
    """The Optax chain of a configuration, with its schedule; `peak` in place of its learning rate may be traced."""
    warmup, total = round(config.warmup_epochs * steps_per_epoch), steps_per_epoch * config.epochs
    peak = config.learning_rate if peak is None else peak
    if config.optimizer == "muon":
        early = min(round(config.whitening_epochs * steps_per_epoch), total)
        rates = {
            name: (peak, optim.schedule(config.schedule, peak, total, warmup))
            for name, peak in (("filters", peak), ("head", config.head_rate), ("biases", config.bias_rate))
        }
        falling = optim.schedule("linear", config.bias_rate if early else 0.0, early)
        rates["whitening_bias"] = config.bias_rate, falling
        return optim.muon(
            rates,
            filter_momentum=config.filter_momentum,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
            dtype=models.model_dtype(config.compute_dtype) or jnp.float32,
        )
    rate = optim.schedule(config.schedule, peak, total, warmup)
    return optim.optimizer(
        config.optimizer,
        rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
    )


def run_keys(config: Config, seeds: Sequence[int] | None = None) -> jax.Array:
    """The key of a run, key[]; of the runs with `seeds` in place of the configured one, key[S].

    Raises:
      InputError: no seeds, or one that is none.
    """
    if seeds is None:
        return jax.random.key(config.seed)
    if not (len(seeds) and all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in seeds)):
        raise InputError(f"seeds must be whole numbers in [0, 2**32), at least one, got {list(seeds)}")
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def initial_state(
    model: Any, tx: Any, key: jax.Array, image_shape: tuple[int, ...], images: jax.Array | None = None
) -> train.TrainState:
    """The state before the first step; for key[S] as many states, their leaves stacked.

    Args:
      model: linen module.
      tx: optimizer.
      key: of the weights.
      image_shape: (H, W, C).
      images: float[N, H, W, C], normalised, for models that fit their first layer to them; None where it is to be
        restored.

    Raises:
      InputError: the images are too small for the model.
    """
    images = jnp.zeros((1, *image_shape)) if images is None else images
    try:
        state = _initial(model, tx, key, images)
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"the model does not fit images of {image_shape}: {str(error).splitlines()[0]}") from error
    # Newer JAX initialises a layer on nothing without a word; the network would not see the images.
    if not all(leaf.size for leaf in jax.tree.leaves(state.params)):
        raise InputError(
            f"the model does not fit images of {image_shape}: pooling leaves no pixel; take fewer --widths"
        )
    return state


@functools.partial(jax.jit, static_argnums=(0, 1))
def _initial(model: Any, tx: Any, key: jax.Array, images: jax.Array) -> train.TrainState:
    one = lambda key: train.create_state(model.init(key, images), tx)
    return (jax.vmap(one) if key.ndim else one)(key)


def apply_for_training(model: Any) -> Callable:
    """(params, batch_stats, images float[B, H, W, C], key, axis_name) -> logits, new batch_stats."""

    def apply_fn(params, batch_stats, images, key, axis_name):
        logits, changed = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            axis_name=axis_name,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        return logits, changed.get("batch_stats", batch_stats)

    return apply_fn


def apply_for_evaluation(model: Any, mean: np.ndarray, std: np.ndarray, views: str = "one") -> Callable:
    """(params, batch_stats, images uint8[B, H, W, C]) -> logits float32[B, K]; the mean over `augment.views`."""

    def apply_fn(params, batch_stats, images):
        normal = augment.normalise(images, *statistics(mean, std))
        logits = lambda images: model.apply({"params": params, "batch_stats": batch_stats}, images)
        if views == "one":
            return logits(normal)
        seen, weights = augment.views(normal, views)
        return jnp.tensordot(weights, jax.lax.map(logits, seen), 1)

    return apply_fn


def statistics(mean: np.ndarray, std: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """A data set's mean and deviation as constants of a program: float[C] each, double where JAX has doubles."""
    dtype = jnp.float64 if jax.config.read("jax_enable_x64") else jnp.float32
    return jnp.asarray(mean, dtype), jnp.asarray(std, dtype)


@dataclass(frozen=True)
class Trained:
    """A run folder's network with its weights.

    Attributes:
      config: of the run.
      facts: about its data (`Experiment.facts`).
      apply_fn: (params, batch_stats, images uint8[B, H, W, C]) -> logits float32[B, K].
      state: the weights.
      step: after how many steps.
    """

    config: Config
    facts: dict[str, Any]
    apply_fn: Callable
    state: train.TrainState
    step: int


def load(path: Path, weights: str = "last", formulation: str | None = None) -> Trained:
    """The network of a run folder, on one device; the run may still be going on.

    Args:
      path: the run folder.
      weights: last or best (on validation).
      formulation: of its convolutions; None for that of the default devices.

    Raises:
      InputError: no run there, no checkpoint yet, or none that verifies.
    """
    if weights not in CHOICES["test_on"]:
        raise unknown("weights", weights, CHOICES["test_on"])
    config, facts = run_folder.read(path)
    cache.keep_compilations()
    model = build_model(config, len(facts["class_names"]), formulation or parallel.layout("jit", 1, 1).formulation)
    tx = build_optimizer(config, facts["counts"]["train"] // config.batch_size)
    state = initial_state(model, tx, jax.random.key(0), tuple(facts["image_shape"]))
    with checkpoint.Checkpoints(path / "checkpoints", read_only=True) as checkpoints:
        found = checkpoints.restore(
            {"state": state, "totals": train.zero_totals()}, which="latest" if weights == "last" else "best"
        )
    if found is None:
        raise InputError(f"{path} holds no checkpoint yet")
    if weights == "best" and found.metric is None:
        raise InputError(f"{path} holds no checkpoint with a validation accuracy, so none is best; use --weights last")
    apply_fn = apply_for_evaluation(model, np.array(facts["mean"]), np.array(facts["std"]), config.test_views)
    return Trained(config, facts, apply_fn, found.tree["state"], found.step)


def teacher_fn(config: Config, dataset: source.Dataset, formulation: str | None = None) -> tuple[Callable, str]:
    """images float or uint8[B, H, W, C] in 0..255 -> {"teacher_logits": float32[B, K]}; and a digest of the weights.

    Raises:
      InputError: no run there, or one on other classes or images.
    """
    trained = load(storage.path(config.teacher or ""), formulation=formulation)
    theirs = trained.facts["class_names"], tuple(trained.facts["image_shape"])
    if theirs != (list(dataset.class_names), tuple(dataset.train.image_shape)):
        raise InputError(f"--teacher {config.teacher} was trained on other classes or images than {config.dataset}")
    # On the host: as constants of the step they go to whatever devices it is compiled for.
    params, batch_stats = jax.device_get((trained.state.params, trained.state.batch_stats))
    leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves((params, batch_stats))]
    weights = hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()
    return lambda images: {"teacher_logits": trained.apply_fn(params, batch_stats, images)}, weights
