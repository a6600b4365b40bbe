"""Experiments after some steps."""

import dataclasses

import jax
import numpy as np
from jax_modes import quick_compile

from cnnlab.config import Config
from cnnlab.multihost import transfer
from cnnlab.training import experiment


def stepped(config, seeds, steps, dtype):
    """An experiment, and its progress after `steps` in a type."""
    built = experiment.build(config, seeds=seeds)
    first = built.start()
    state, totals = jax.tree.map(
        lambda leaf: leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf,
        (first.state, first.totals),
    )
    progress = dataclasses.replace(first, state=state, totals=totals)
    items = list(built.items(0, steps))
    at_once = built.dispatch_steps
    for start in range(0, steps, at_once):
        progress = built.advance(progress, items[start : start + at_once])
    return built, progress


def taken(config: Config, seeds: list[int] | None, steps: int, dtype: str) -> dict[str, np.ndarray]:
    """Every leaf of the state and totals after so many steps, and the validation's figures, by
    name.
    """
    double = dtype == "float64"
    with jax.enable_x64(double), jax.numpy_dtype_promotion("standard"), quick_compile(double):
        built, progress = stepped(config, seeds, steps, dtype)
        rows = built.validate(progress.state)
        found = {
            name: np.array([row[name] for row in rows]) for name in ("loss", "accuracy", "ece")
        }
        reached = transfer.fetch((progress.state, progress.totals))
        leaves = jax.tree_util.tree_leaves_with_path(reached)
    return found | {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
