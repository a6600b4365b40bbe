"""Test images seen in several ways."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cnnlab.augment.geometry import pad_edges

# of a test image: each mirrored or not, shifted by so many rows and columns, and its weight
TEST_VIEWS = {
    "one": [(False, 0, 1.0)],
    "mirror": [(False, 0, 0.5), (True, 0, 0.5)],
    "mirror_shift": [
        (m, shift, weight)
        for shift, weight in ((0, 1 / 4), (-1, 1 / 8), (1, 1 / 8))
        for m in (False, True)
    ],
}


def averaged_views(images: jax.Array, name: str) -> tuple[jax.Array, jax.Array]:
    """Build several views of the same images, for test-time augmentation.

    The logits of the views are averaged, by their weights.

    Args:
      images: float[B, H, W, C].
      name: one (as they are), mirror (and mirrored), or mirror_shift (both, also moved by one pixel
        down and right and up and left, where what moves in is reflected; these four weigh as much
        as the two unmoved).

    Returns:
      float[V, B, H, W, C], and the views' weights float32[V], which sum to 1.

    Source: Jordan, 2024, arXiv 2404.00498.
    """
    height, width = images.shape[1:3]
    padded = pad_edges(images, 1, "reflect")
    seen = []
    for mirrored, shift, _ in TEST_VIEWS[name]:
        view = padded[:, 1 + shift : 1 + shift + height, 1 + shift : 1 + shift + width]
        seen.append(view[:, :, ::-1] if mirrored else view)
    return jnp.stack(seen), jnp.array([weight for _, _, weight in TEST_VIEWS[name]], jnp.float32)
