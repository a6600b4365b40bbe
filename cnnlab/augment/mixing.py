"""Images and labels mixed with those of other examples of the batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from cnnlab.augment.pipeline import Batch


def mixup(
    keys: jax.Array,
    batch: Batch,
    key: jax.Array,
    num_classes: int,
    alpha: float = 0.2,
    axis_name: str | None = None,
) -> Batch:
    """Mix each image and its label with those of another example: w x_i + (1 - w) x_j, w ~
    Beta(alpha, alpha).

    One w for the batch, partners by a random permutation of the global batch. Labels become
    distributions.

    Args:
      key: of the whole batch, the same on every device.
      num_classes: K.
      alpha: in (0, inf).
      axis_name: the mesh axis that shares the batch.

    Source: Zhang et al., 2018, https://arxiv.org/abs/1710.09412
    """
    del keys
    weight_key, partner_key = jax.random.split(key)
    weight = jax.random.beta(weight_key, alpha, alpha, dtype=batch["image"].dtype)
    mine = batch["image"], _distributions(batch, num_classes)
    images, labels = jax.tree.map(
        lambda x, other: _weighted(weight, x, other), mine, _partners(partner_key, mine, axis_name)
    )
    return batch | {"image": images, "label": labels}


def cutmix(
    keys: jax.Array,
    batch: Batch,
    key: jax.Array,
    num_classes: int,
    alpha: float = 1.0,
    p: float = 1.0,
    axis_name: str | None = None,
) -> Batch:
    """Replace a box of each image by that of another example, and mix the labels by area: w y_i +
    (1 - w) y_j, w the share of the image that is left.

    The box has sqrt(1 - v) of the height and of the width, v ~ Beta(alpha, alpha); its centre lies
    anywhere in the image, which cuts it off. One box for the batch, partners by a random
    permutation of the global batch. Labels become distributions.

    Args:
      key: of the whole batch, the same on every device.
      num_classes: K.
      alpha: in (0, inf).
      p: in (0, 1], share of the batches that are mixed; the paper has 0.5 for CIFAR.
      axis_name: the mesh axis that shares the batch.

    Source: Yun et al., 2019, "CutMix", https://arxiv.org/abs/1905.04899
    """
    del keys
    coin_key, area_key, centre_key, partner_key = jax.random.split(key, 4)
    height, width = batch["image"].shape[1:3]
    side = jnp.sqrt(1 - jax.random.beta(area_key, alpha, alpha, dtype=jnp.float32))
    side = jnp.where(jax.random.bernoulli(coin_key, p), side, 0)
    centre = jax.random.randint(centre_key, (2,), 0, jnp.array([height, width]))
    inside_rows = _interval(height, centre[0], side)
    inside_columns = _interval(width, centre[1], side)
    inside = inside_rows[:, None] & inside_columns[None, :]
    weight = 1 - jnp.mean(inside.astype(jnp.float32))
    mine = batch["image"], _distributions(batch, num_classes)
    images, labels = _partners(partner_key, mine, axis_name)
    return batch | {
        "image": jnp.where(inside[None, :, :, None], images, mine[0]),
        "label": _weighted(weight, mine[1], labels),
    }


def _interval(length: int, centre: jax.Array, share: jax.Array) -> jax.Array:
    """Mark the pixels of a side within half a share of its length from the centre: bool[length]."""
    half = (length * share).astype(jnp.int32) // 2
    places = jnp.arange(length)
    return (places >= centre - half) & (places < centre + half)


def _distributions(batch: Batch, num_classes: int) -> jax.Array:
    """Return the labels as distributions, float[B, K]."""
    labels = batch["label"]
    if jnp.issubdtype(labels.dtype, jnp.integer):
        return jax.nn.one_hot(labels, num_classes, dtype=batch["image"].dtype)
    return labels


def _partners(
    key: jax.Array, values: tuple[jax.Array, jax.Array], axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    """Return the images and labels of each example's partner, which a random permutation of the
    global batch decides.
    """
    count = len(values[0])
    if axis_name is None:
        partners = jax.random.permutation(key, count)
        return values[0][partners], values[1][partners]
    images, labels = (lax.all_gather(x, axis_name, tiled=True) for x in values)
    permutation = jax.random.permutation(key, len(images))
    partners = lax.dynamic_slice_in_dim(permutation, lax.axis_index(axis_name) * count, count)
    return images[partners], labels[partners]


def _weighted(weight: jax.Array, mine: jax.Array, other: jax.Array) -> jax.Array:
    return weight.astype(mine.dtype) * mine + (1 - weight).astype(mine.dtype) * other
