"""LDAM with deferred re-weighting, as your own loss: it asks for the class counts and the progress
of the run by their names.

Source: Cao et al., 2019, "Learning imbalanced datasets with label-distribution-aware margin loss",
https://arxiv.org/abs/1906.07413
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cnnlab.losses import class_weights, effective_number, ldam, made_for_cosines


@made_for_cosines
def ldam_drw(
    logits: ArrayLike, labels: ArrayLike, class_counts: ArrayLike, progress: ArrayLike = 1.0
) -> jax.Array:
    """LDAM, whose classes count by the effective number of their images in the last fifth of the
    run: float32[B]. A training image counts as much as before on average; in the paper's code that
    is so of the images of each batch.
    """
    counts = jnp.asarray(class_counts, jnp.float32)
    balanced = jnp.asarray(effective_number(class_counts), jnp.float32)
    balanced = balanced * counts.sum() / (counts * balanced).sum()
    weights = jnp.where(jnp.asarray(progress) < 0.8, 1.0, balanced)
    return class_weights(ldam, weights)(logits, labels, class_counts=class_counts)
