"""Where in the image what is seen: mirroring, shifting, scaling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from cnnlab.augment.boxes import check_size
from cnnlab.augment.pipeline import Batch
from cnnlab.errors import unknown

PADDINGS = {"zeros": "constant", "reflect": "reflect"}


def flip(keys: jax.Array, batch: Batch) -> Batch:
    """Mirror each image left-right with probability 1/2."""
    return batch | {"image": _mirrored(batch["image"], jax.vmap(jax.random.bernoulli)(keys))}


def alternating_flip(keys: jax.Array, batch: Batch, run_key: jax.Array) -> Batch:
    """Mirror each image left-right in every other epoch; a coin decides for its first.

    No two epochs in a row show the same half of what there is to see.

    Args:
      run_key: of the coins, by the image's index.

    Source: Jordan, 2024, https://arxiv.org/abs/2404.00498
    """
    del keys
    coins = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(run_key, i)))(batch["index"])
    return batch | {"image": _mirrored(batch["image"], coins ^ (batch["epoch"] % 2 == 1))}


def crop(keys: jax.Array, batch: Batch, padding: int = 4, mode: str = "zeros") -> Batch:
    """Shift each image by up to so many pixels in each direction.

    Args:
      padding: in [1, inf), pixels.
      mode: zeros (the mean, once normalised) or reflect (mirrored at the edge pixels, themselves
        not repeated), what moves in.

    Raises:
      ValueError: padding as large as the image, or another mode.

    Source: Lee et al., 2015, "Deeply-supervised nets", https://arxiv.org/abs/1409.5185
    """
    images = batch["image"]
    _, height, width, channels = images.shape
    check_size("padding", padding, images)
    padded = pad_edges(images, padding, mode)
    corners = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * padding + 1))(keys)

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        return lax.dynamic_slice(
            image, (corner[0], corner[1], jnp.zeros_like(corner[0])), (height, width, channels)
        )

    return batch | {"image": jax.vmap(cut)(padded, corners)}


def _mirrored(images: jax.Array, chosen: jax.Array) -> jax.Array:
    return jnp.where(chosen[:, None, None, None], images[:, :, ::-1], images)


def pad_edges(images: jax.Array, padding: int, mode: str) -> jax.Array:
    if mode not in PADDINGS:
        raise unknown("mode", str(mode), PADDINGS)
    edges = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return jnp.pad(images, edges, mode=PADDINGS[mode])
