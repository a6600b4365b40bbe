"""Sizes and boxes that operations of several files draw or check."""

from __future__ import annotations

import jax


def check_size(name: str, pixels: int, images: jax.Array) -> None:
    side = min(images.shape[1:3])
    if pixels >= side:
        raise ValueError(f"{name} must be smaller than the image, {side} pixels, got {pixels}")
