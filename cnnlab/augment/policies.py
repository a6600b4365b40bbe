"""Random image operations, and views of an image."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cnnlab.augment.pipeline import Batch


def views(keys: jax.Array, batch: Batch, count: int = 2) -> Batch:
    """Copies of each image, which the operations that follow change each in its own way, for losses
    on `view_logits`.

    Args:
      count: in [1, inf), copies of each image besides itself.

    Source: Hendrycks et al., 2020, "AugMix", https://arxiv.org/abs/1912.02781
    """
    del keys
    return batch | {"views": jnp.stack([batch["image"]] * count)}
