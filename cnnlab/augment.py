"""Random changes of training images, on the device, inside the step.

Each takes one key per example (see `parallel.example_keys`), so that a draw does not depend on how devices share the
batch: `keys: key[B], images: float[B, H, W, C] -> float[B, H, W, C]`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def normalise(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """(images - mean) / std per channel: uint8[B, H, W, C] in 0..255 -> the type of `mean` (float[C], same unit)."""
    return (images.astype(mean.dtype) - mean.reshape(1, 1, 1, -1)) / std.reshape(1, 1, 1, -1)


def pixels(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """What `normalise` was given: float[B, H, W, C] -> the same in 0..255."""
    return images * std.reshape(1, 1, 1, -1) + mean.reshape(1, 1, 1, -1)


def flip(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Mirror each image left-right with probability 1/2."""
    return mirror(images, jax.vmap(jax.random.bernoulli)(keys))


def mirror(images: jax.Array, chosen: jax.Array) -> jax.Array:
    """Mirror the images left-right where `chosen`, bool[B], says so (`order.mirrored`)."""
    return jnp.where(chosen[:, None, None, None], images[:, :, ::-1], images)


def crop(keys: jax.Array, images: jax.Array, padding: int, mode: str = "zeros") -> jax.Array:
    """Shift each image by -padding..padding pixels in each direction.

    What moves in are zeros (the mean, once normalised), or under the mode `reflect` the image mirrored at its edge
    pixels, themselves not repeated.

    Source: Lee et al., 2015, "Deeply-supervised nets", arXiv 1409.5185.
    """
    _, height, width, channels = images.shape
    padded = _padded(images, padding, mode)
    corners = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * padding + 1))(keys)
    cut = lambda image, corner: lax.dynamic_slice(
        image, (corner[0], corner[1], jnp.zeros_like(corner[0])), (height, width, channels)
    )
    return jax.vmap(cut)(padded, corners)


def cutout(keys: jax.Array, images: jax.Array, size: int) -> jax.Array:
    """Set a square of `size` pixels to zero (the mean, once normalised); its centre lies anywhere in the image.

    Source: DeVries & Taylor, 2017, arXiv 1708.04552.
    """
    _, height, width, _ = images.shape

    def one(key, image):
        top, left = (
            jax.random.randint(k, (), 0, side) - size // 2
            for k, side in zip(jax.random.split(key), (height, width), strict=True)
        )
        row, column = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
        hole = (row >= top) & (row < top + size) & (column >= left) & (column < left + size)
        return jnp.where(hole[..., None], jnp.zeros_like(image), image)

    return jax.vmap(one)(keys, images)


def _padded(images: jax.Array, padding: int, mode: str) -> jax.Array:
    edges = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return jnp.pad(images, edges, mode="constant" if mode == "zeros" else mode)


VIEWS = {  # of a test image: each mirrored or not, shifted by so many rows and columns, and its weight
    "one": [(False, 0, 1.0)],
    "mirror": [(False, 0, 0.5), (True, 0, 0.5)],
    "mirror_shift": [
        (m, shift, weight) for shift, weight in ((0, 1 / 4), (-1, 1 / 8), (1, 1 / 8)) for m in (False, True)
    ],
}


def views(images: jax.Array, name: str) -> tuple[jax.Array, jax.Array]:
    """The same images seen in several ways, for test-time augmentation: their logits are averaged.

    Args:
      images: float[B, H, W, C].
      name: one (as they are), mirror (and mirrored), or mirror_shift (both, also moved by one pixel down and right and
        up and left, where what moves in is reflected; these four weigh as much as the two unmoved).

    Returns:
      float[V, B, H, W, C], and the views' weights float32[V], which sum to 1.

    Source: Jordan, 2024, arXiv 2404.00498.
    """
    height, width = images.shape[1:3]
    padded = _padded(images, 1, "reflect")
    seen = []
    for mirrored, shift, _ in VIEWS[name]:
        view = padded[:, 1 + shift : 1 + shift + height, 1 + shift : 1 + shift + width]
        seen.append(view[:, :, ::-1] if mirrored else view)
    return jnp.stack(seen), jnp.array([weight for _, _, weight in VIEWS[name]], jnp.float32)


def mixup(
    key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """Mix each image and its target with those of another example: w x_i + (1 - w) x_j, w ~ Beta(alpha, alpha).

    One w a batch, partners by a random permutation of the global batch.

    Args:
      key: one typed key, the same on every device.
      images: float[B, H, W, C].
      targets: float[B, K], distributions.
      alpha: positive.
      axis_name: the device axis under pmap.

    Returns:
      images and targets, mixed.

    Source: Zhang et al., 2018, arXiv 1710.09412.
    """
    weight_key, partner_key = jax.random.split(key)
    weight = jax.random.beta(weight_key, alpha, alpha, dtype=images.dtype)
    batch = images.shape[0]
    if axis_name is None:
        partners, everyone = jax.random.permutation(partner_key, batch), (images, targets)
    else:
        everyone = jax.tree.map(lambda x: lax.all_gather(x, axis_name, tiled=True), (images, targets))
        permutation = jax.random.permutation(partner_key, everyone[0].shape[0])
        partners = lax.dynamic_slice_in_dim(permutation, lax.axis_index(axis_name) * batch, batch)
    mix = lambda mine, all_: weight.astype(mine.dtype) * mine + (1 - weight).astype(mine.dtype) * all_[partners]
    return mix(images, everyone[0]), mix(targets, everyone[1])
