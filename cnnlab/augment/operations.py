"""The operations that are built in."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

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
    _check_size("padding", padding, images)
    padded = pad_edges(images, padding, mode)
    corners = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * padding + 1))(keys)

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        return lax.dynamic_slice(
            image, (corner[0], corner[1], jnp.zeros_like(corner[0])), (height, width, channels)
        )

    return batch | {"image": jax.vmap(cut)(padded, corners)}


def cutout(keys: jax.Array, batch: Batch, size: int = 8) -> Batch:
    """Set a square to zero (the mean, once normalised); its centre lies anywhere in the image.

    Args:
      size: in [1, inf), side of the square in pixels.

    Raises:
      ValueError: size as large as the image.

    Source: DeVries & Taylor, 2017, https://arxiv.org/abs/1708.04552
    """
    images = batch["image"]
    _, height, width, _ = images.shape
    _check_size("size", size, images)

    def cut(key: jax.Array, image: jax.Array) -> jax.Array:
        row_key, column_key = jax.random.split(key)
        top = jax.random.randint(row_key, (), 0, height) - size // 2
        left = jax.random.randint(column_key, (), 0, width) - size // 2
        row = jnp.arange(height)[:, None]
        column = jnp.arange(width)[None, :]
        hole = (row >= top) & (row < top + size) & (column >= left) & (column < left + size)
        return jnp.where(hole[..., None], jnp.zeros_like(image), image)

    return batch | {"image": jax.vmap(cut)(keys, images)}


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
    images, labels = batch["image"], batch["label"]
    if jnp.issubdtype(labels.dtype, jnp.integer):
        labels = jax.nn.one_hot(labels, num_classes, dtype=images.dtype)
    weight_key, partner_key = jax.random.split(key)
    weight = jax.random.beta(weight_key, alpha, alpha, dtype=images.dtype)
    count = images.shape[0]
    if axis_name is None:
        partners = jax.random.permutation(partner_key, count)
        everyone = (images, labels)
    else:
        everyone = jax.tree.map(
            lambda x: lax.all_gather(x, axis_name, tiled=True), (images, labels)
        )
        permutation = jax.random.permutation(partner_key, everyone[0].shape[0])
        partners = lax.dynamic_slice_in_dim(permutation, lax.axis_index(axis_name) * count, count)

    def mix(mine: jax.Array, every: jax.Array) -> jax.Array:
        return weight.astype(mine.dtype) * mine + (1 - weight).astype(mine.dtype) * every[partners]

    return batch | {"image": mix(images, everyone[0]), "label": mix(labels, everyone[1])}


def views(keys: jax.Array, batch: Batch, count: int = 2) -> Batch:
    """Copies of each image, which the operations that follow change each in its own way, for losses
    on `view_logits`.

    Args:
      count: in [1, inf), copies of each image besides itself.

    Source: Hendrycks et al., 2020, "AugMix", https://arxiv.org/abs/1912.02781
    """
    del keys
    return batch | {"views": jnp.stack([batch["image"]] * count)}


AUGMENTATIONS: dict[str, Callable[..., Batch]] = {
    f.__name__: f for f in (flip, alternating_flip, crop, cutout, mixup, views)
}


def _mirrored(images: jax.Array, chosen: jax.Array) -> jax.Array:
    return jnp.where(chosen[:, None, None, None], images[:, :, ::-1], images)


def _check_size(name: str, pixels: int, images: jax.Array) -> None:
    side = min(images.shape[1:3])
    if pixels >= side:
        raise ValueError(f"{name} must be smaller than the image, {side} pixels, got {pixels}")


def pad_edges(images: jax.Array, padding: int, mode: str) -> jax.Array:
    if mode not in PADDINGS:
        raise unknown("mode", str(mode), PADDINGS)
    edges = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return jnp.pad(images, edges, mode=PADDINGS[mode])
