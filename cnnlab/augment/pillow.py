"""Pillow's image operations on the device.

Pixels are int32[H, W, C], C being 1 or 3, in 0..255; arithmetic and rounding are Pillow's for
uint8. An affine map moves pixels for all operations that do; what moves in is black.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

FIXED_POINT = 16  # binary places of Pillow's coordinates where it takes the nearest pixel


def map_images(function: Callable[..., jax.Array], *arguments: jax.Array) -> jax.Array:
    """Apply a function to each image of a batch and its other arguments: [B, ...] each.

    On a CPU one image after the other, of whose operations only the chosen one is computed; else
    all at once, where every operation is computed for every image.
    """
    return lax.platform_dependent(
        *arguments,
        cpu=lambda *args: lax.map(lambda of_image: function(*of_image), args),
        default=jax.vmap(function),
    )


def operate(
    pixels: jax.Array,
    names: Sequence[str],
    operation: jax.Array,
    amount: jax.Array,
    bilinear: bool = False,
) -> jax.Array:
    """Apply an operation to an image.

    Args:
      pixels: int32[H, W, C] in 0..255.
      names: of the operations that there are, each a key of MAPS or of VALUES, or identity.
      operation: int32[], an index into them.
      amount: float32[]: degrees (counter-clockwise) to rotate, pixels (to the left, upwards) to
        translate, pixels per pixel to shear, bits to keep, the least value to invert, the factor
        of an enhancement (1 keeps the image).
      bilinear: whether affine maps interpolate between pixels; otherwise they take the nearest.

    Returns:
      int32[H, W, C] in 0..255.
    """
    kept = [name for name in names if name in VALUES]
    moving = len(kept)
    identity = moving + 1
    branch = {name: kept.index(name) if name in VALUES else moving for name in names}
    branch["identity"] = identity
    branches = [lambda pixels, amount, _, f=VALUES[name]: f(pixels, amount) for name in kept]
    resample = _resample_bilinear if bilinear else _resample
    branches += [lambda pixels, _, affine: resample(pixels, affine), lambda pixels, *_: pixels]
    affine = _affine(names, operation, amount, pixels.shape)
    chosen = jnp.asarray([branch[name] for name in names])[operation]
    return lax.switch(chosen, branches, pixels, amount, affine)


def _affine(
    names: Sequence[str], operation: jax.Array, amount: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """Compute the affine map of an operation: float32[6].

    (a, b, c, d, e, f) maps the point (x, y) of the new image to (a x + b y + c, d x + e y + f) of
    the old one.
    """
    height, width = shape[:2]
    affine = _entries(amount, 1, 0, 0, 0, 1, 0)
    for place, name in enumerate(names):
        if name in MAPS:
            affine = jnp.where(operation == place, MAPS[name](amount, height, width), affine)
    return affine


def _entries(amount: jax.Array, *entries: jax.Array | float) -> jax.Array:
    return jnp.stack([jnp.asarray(entry, amount.dtype) for entry in entries])


def _rotate(amount: jax.Array, height: int, width: int) -> jax.Array:
    angle = jnp.radians(amount)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2  # the centre stays where it is
    shift_x = x - (cosine * x - sine * y)
    shift_y = y - (sine * x + cosine * y)
    return _entries(amount, cosine, -sine, shift_x, sine, cosine, shift_y)


def _shear_x(amount: jax.Array, height: int, width: int) -> jax.Array:
    del height, width
    return _entries(amount, 1, amount, 0, 0, 1, 0)


def _shear_y(amount: jax.Array, height: int, width: int) -> jax.Array:
    del height, width
    return _entries(amount, 1, 0, 0, amount, 1, 0)


def _translate_x(amount: jax.Array, height: int, width: int) -> jax.Array:
    del height, width
    return _entries(amount, 1, 0, amount, 0, 1, 0)


def _translate_y(amount: jax.Array, height: int, width: int) -> jax.Array:
    del height, width
    return _entries(amount, 1, 0, 0, 0, 1, amount)


# (amount, H, W) -> map[6]
MAPS: dict[str, Callable[[jax.Array, int, int], jax.Array]] = {
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}


def _resample(pixels: jax.Array, affine: jax.Array) -> jax.Array:
    """Read for each new pixel the old one in which the map puts its centre; 0 outside."""
    height, width = pixels.shape[:2]
    a, b, c, d, e, f = affine
    # The map of places, in whole units of fixed point: no rounding adds up along a row.
    places = jnp.stack([a, b, c + (a + b) / 2, d, e, f + (d + e) / 2])
    a, b, c, d, e, f = jnp.floor(places * 2**FIXED_POINT + 0.5).astype(jnp.int32)
    x = jnp.arange(width)[None, :]
    y = jnp.arange(height)[:, None]
    column = (a * x + b * y + c) >> FIXED_POINT
    row = (d * x + e * y + f) >> FIXED_POINT
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return jnp.where(inside[..., None], _read(pixels, row, column), 0)


def _resample_bilinear(pixels: jax.Array, affine: jax.Array) -> jax.Array:
    """Interpolate between the four old pixels around the place where the map puts the centre of
    each new one; 0 outside. The edge pixels are continued by the half pixel that lies around them.
    """
    height, width = pixels.shape[:2]
    a, b, c, d, e, f = affine
    x = jnp.arange(width, dtype=affine.dtype)[None, :] + 0.5
    y = jnp.arange(height, dtype=affine.dtype)[:, None] + 0.5
    column = a * x + b * y + c
    row = d * x + e * y + f
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    left, right_share = _floor_and_rest(column - 0.5)
    top, bottom_share = _floor_and_rest(row - 0.5)
    upper = _between(_read(pixels, top, left), _read(pixels, top, left + 1), right_share)
    lower = _between(_read(pixels, top + 1, left), _read(pixels, top + 1, left + 1), right_share)
    values = jnp.floor(_between(upper, lower, bottom_share)).astype(jnp.int32)
    return jnp.where(inside[..., None], values, 0)


def _floor_and_rest(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    whole = jnp.floor(values)
    return whole.astype(jnp.int32), values - whole


def _between(first: jax.Array, second: jax.Array, share: jax.Array) -> jax.Array:
    first = first.astype(share.dtype)
    return first + (second.astype(share.dtype) - first) * share[..., None]


def _read(pixels: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """Read pixels [H, W, C] at int32[h, w] each; those beyond an edge are the ones at it."""
    height, width, channels = pixels.shape
    place = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
    return pixels.reshape(height * width, channels)[place]


def _posterize(pixels: jax.Array, bits: jax.Array) -> jax.Array:
    """Keep the highest bits."""
    dropped = 8 - bits.astype(jnp.int32)
    return pixels >> dropped << dropped


def _solarize(pixels: jax.Array, threshold: jax.Array) -> jax.Array:
    """Invert the values from a threshold on."""
    return jnp.where(pixels < threshold.astype(jnp.int32), pixels, 255 - pixels)


def _autocontrast(pixels: jax.Array, amount: jax.Array) -> jax.Array:
    """Spread the values of each channel over 0..255, rounded down.

    Pillow multiplies by 255 / (highest - lowest) in float64, which may fall just short of a whole
    number and be rounded down to the one below; here a whole number stays.
    """
    del amount
    low = jnp.min(pixels, (0, 1), keepdims=True)
    high = jnp.max(pixels, (0, 1), keepdims=True)
    spread = _quotient((pixels - low) * 255, jnp.maximum(high - low, 1))
    return jnp.where(high > low, spread, pixels)


BELOW = np.triu(np.ones((256, 256), np.float32), 1)


def _equalize(pixels: jax.Array, amount: jax.Array) -> jax.Array:
    """Make all values of each channel about equally frequent."""
    del amount
    channel = jnp.arange(pixels.shape[-1])[None, None, :]
    histogram = jnp.zeros((pixels.shape[-1], 256), jnp.int32).at[channel, pixels].add(1)
    # A product, not a cumsum: XLA would fuse that into the look-up, and compute it anew for each
    # pixel. Counts are exact in float32.
    exact = lax.Precision.HIGHEST
    fewer = jnp.matmul(histogram.astype(jnp.float32), BELOW, precision=exact)
    below = fewer[channel, pixels].astype(jnp.int32)
    # Below the highest value are all pixels but those that have it.
    step = jnp.max(below, (0, 1), keepdims=True) // 255
    equal = jnp.minimum(_quotient(below + step // 2, jnp.maximum(step, 1)), 255)
    return jnp.where(step > 0, equal, pixels)


def _quotient(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Divide whole numbers, rounded down; quicker in floats.

    The half keeps the quotient away from whole numbers by more than its rounding, for numerators
    below 2**22.
    """
    quotient = (numerator.astype(jnp.float32) + 0.5) / denominator.astype(jnp.float32)
    return quotient.astype(jnp.int32)


def _blend(degenerate: jax.Array, pixels: jax.Array, factor: jax.Array) -> jax.Array:
    """Compute degenerate + factor (pixels - degenerate), rounded down; a factor above 1 leads away
    from the degenerate image.
    """
    difference = (pixels - degenerate).astype(jnp.float32)
    blend = degenerate.astype(jnp.float32) + factor * difference
    return jnp.clip(blend, 0, 255).astype(jnp.int32)


def _brightness(pixels: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with black."""
    return _blend(jnp.zeros_like(pixels), pixels, factor)


def _color(pixels: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with the grey image."""
    return _blend(_grey(pixels), pixels, factor)


def _contrast(pixels: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with the mean of the grey image, rounded."""
    count = pixels.shape[0] * pixels.shape[1]
    total = jnp.sum(_grey(pixels), keepdims=True)
    return _blend((2 * total + count) // (2 * count), pixels, factor)


def _sharpness(pixels: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend with the image of which each pixel, of weight 5, is averaged with its eight neighbours;
    pixels at the edge stay.
    """
    if min(pixels.shape[:2]) < 3:
        return pixels
    inner = pixels[1:-1, 1:-1]
    rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * inner
    smooth = _quotient(2 * total + 13, jnp.full_like(total, 26))
    return pixels.at[1:-1, 1:-1].set(_blend(smooth, inner, factor))


def _grey(pixels: jax.Array) -> jax.Array:
    """Compute the luma (ITU-R 601): int32[H, W, 1]."""
    channels = pixels.shape[-1]
    if channels == 1:
        return pixels
    if channels != 3:
        raise ValueError(f"images must have 1 or 3 channels, got {channels}")
    red, green, blue = jnp.unstack(pixels, axis=-1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16)[..., None]


# (pixels[H, W, C], amount) -> pixels
VALUES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
}
