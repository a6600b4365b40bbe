"""Random choices among Pillow's image operations, and views of an image."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from cnnlab.augment import pillow
from cnnlab.augment.pipeline import Batch, normalise, pixels

T = TypeVar("T", jax.Array, np.ndarray)

WIDE_STRENGTHS = 31  # of TrivialAugment
VIEWS = 2  # of AugMix
MOST_OPERATIONS = 3  # of its chains
HIGHEST_SEVERITY = 10  # of AugMix
LEAST_SEVERITY = 0.1


class Range(NamedTuple):
    """What an operation's amount is (`pillow.operate`), from the weakest to the strongest.

    Attributes:
      weakest, strongest: amounts.
      whole: whether the distance from the weakest is rounded down to a whole number.
      signed: whether the amount is taken times -1 or 1, by a coin.
    """

    weakest: float = 0.0
    strongest: float = 0.0
    whole: bool = False
    signed: bool = False

    def at(self, strength: T, strongest: int) -> T:
        """Compute the amount at a strength in [0, strongest]."""
        distance = strength * abs(self.strongest - self.weakest) / strongest
        distance = distance // 1 if self.whole else distance
        return self.weakest + (distance if self.strongest > self.weakest else -distance)


ENHANCEMENT = Range(0.01, 2.0)
WIDE = {
    "identity": Range(),
    "autocontrast": Range(),
    "equalize": Range(),
    "rotate": Range(0, 135, whole=True, signed=True),
    "solarize": Range(256, 0, whole=True),
    "color": ENHANCEMENT,
    "posterize": Range(8, 2, whole=True),
    "contrast": ENHANCEMENT,
    "brightness": ENHANCEMENT,
    "sharpness": ENHANCEMENT,
    "shear_x": Range(0, 0.99, signed=True),
    "shear_y": Range(0, 0.99, signed=True),
    "translate_x": Range(0, 32, whole=True, signed=True),
    "translate_y": Range(0, 32, whole=True, signed=True),
}


def trivial_augment(keys: jax.Array, batch: Batch, mean: jax.Array, std: jax.Array) -> Batch:
    """Change each image by one random operation of random strength: TrivialAugment (wide).

    One of 14 operations, one of 31 strengths. They are Pillow's, on pixels in 0..255, to which the
    image is rounded first: identity, autocontrast, equalize, posterize to 8..2 bits, solarize from
    256..0 on, color, contrast, brightness and sharpness by a factor in 0.01..2, and, with either
    sign and the nearest pixel, rotate by up to 135 degrees, shear by up to 0.99, translate by up to
    32 pixels. What moves in is black.

    Args:
      mean, std: float[C], of the data set, in pixels.

    Source: Müller & Hutter, 2021, "TrivialAugment", https://arxiv.org/abs/2103.10158
    """
    draws = jax.vmap(lambda key: jax.random.bits(key, (3,)))(keys)
    operation = (draws[:, 0] % len(WIDE)).astype(jnp.int32)
    strength = draws[:, 1] % WIDE_STRENGTHS
    negative = (draws[:, 2] % 2 == 1) & jnp.array([r.signed for r in WIDE.values()])[operation]
    amount = jnp.asarray(_wide_amounts())[operation, strength]
    amount = jnp.where(negative, -amount, amount)

    def change(image: jax.Array, operation: jax.Array, amount: jax.Array) -> jax.Array:
        return pillow.operate(image, tuple(WIDE), operation, amount)

    images = batch["image"]
    changed = pillow.map_images(change, _levels(images, mean, std), operation, amount)
    return batch | {"image": _normalised(changed, mean, std, images.dtype)}


def _wide_amounts() -> np.ndarray:
    """Compute the amounts of TrivialAugment: float32[operations, strengths].

    In float64: on the device some whole amounts would be rounded down to the one below.
    """
    strengths = np.arange(WIDE_STRENGTHS, dtype=np.float64)
    amounts = [r.at(strengths, WIDE_STRENGTHS - 1) for r in WIDE.values()]
    return np.stack(amounts).astype(np.float32)


def augmix(
    keys: jax.Array,
    batch: Batch,
    mean: jax.Array,
    std: jax.Array,
    width: int = 3,
    severity: float = 3.0,
    alpha: float = 1.0,
) -> Batch:
    """Two views of each image for `jensen_shannon`, each a mixture of chains of random operations;
    the image itself stays as it is: AugMix.

        view = m x + (1 - m) sum_i w_i chain_i(x),  m ~ Beta(alpha, alpha),  w ~ Dirichlet(alpha)

    A chain has 1 to 3 operations, none of which is among the corruptions of CIFAR-10-C. They
    are Pillow's, on pixels in 0..255, to which the image is rounded first: autocontrast, equalize,
    posterize, solarize, and, with either sign and bilinear, rotate, shear and translate. What moves
    in is black.

    Args:
      mean, std: float[C], of the data set, in pixels.
      width: in [1, 100], chains of a view.
      severity: in [0.1, 10], the strongest; each operation has a strength between 0.1 and it. At 10
        it rotates by 30 degrees, shears by 0.3 and translates by a third of the image.
      alpha: in (0, inf).

    Source: Hendrycks et al., 2020, "AugMix", https://arxiv.org/abs/1912.02781
    """
    images = batch["image"]
    ranges = _augmix_ranges(*images.shape[1:3])
    view_keys = jax.vmap(lambda key: jax.random.split(key, VIEWS), out_axes=1)(keys).reshape(-1)

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        chain_key, weight_key, clean_key = jax.random.split(key, 3)
        uniform = jax.random.uniform(chain_key, (width, 3 * MOST_OPERATIONS + 1), jnp.float32)
        weights = jax.random.dirichlet(weight_key, jnp.full(width, alpha, jnp.float32))
        return uniform, weights, jax.random.beta(clean_key, alpha, alpha, dtype=jnp.float32)

    def mix(image: jax.Array, uniform: jax.Array, weights: jax.Array) -> jax.Array:
        chains = jnp.stack([_chain(image, ranges, uniform[i], severity) for i in range(width)])
        return jnp.tensordot(weights, chains.astype(jnp.float32), 1, precision="highest")

    uniform, weights, clean_weight = jax.vmap(draw)(view_keys)
    levels = jnp.concatenate([_levels(images, mean, std)] * VIEWS)
    mixture = _normalised(pillow.map_images(mix, levels, uniform, weights), mean, std, images.dtype)
    clean_weight = clean_weight.astype(images.dtype)[:, None, None, None]
    seen = clean_weight * jnp.concatenate([images] * VIEWS) + (1 - clean_weight) * mixture
    return batch | {"views": seen.reshape(VIEWS, *images.shape)}


def _augmix_ranges(height: int, width: int) -> dict[str, Range]:
    return {
        "autocontrast": Range(),
        "equalize": Range(),
        "posterize": Range(4, 0, whole=True),
        "rotate": Range(0, 30, whole=True, signed=True),
        "solarize": Range(256, 0, whole=True),
        "shear_x": Range(0, 0.3, signed=True),
        "shear_y": Range(0, 0.3, signed=True),
        "translate_x": Range(0, width / 3, whole=True, signed=True),
        "translate_y": Range(0, height / 3, whole=True, signed=True),
    }


def _chain(
    pixels: jax.Array, ranges: dict[str, Range], uniform: jax.Array, severity: float
) -> jax.Array:
    """Apply a random number of random operations to an image.

    Args:
      pixels: int32[H, W, C] in 0..255.
      ranges: of the operations.
      uniform: float32[3 D + 1] in [0, 1), all that is random; D is the most operations.
      severity: the strongest.
    """
    names = tuple(ranges)
    draws = uniform[:-1].reshape(-1, 3)

    def step(place: jax.Array, pixels: jax.Array) -> jax.Array:
        which, how_much, sign = draws[place]
        operation = (which * len(names)).astype(jnp.int32)
        strength = LEAST_SEVERITY + (severity - LEAST_SEVERITY) * how_much
        amounts = []
        for allowed in ranges.values():
            amount = allowed.at(strength, HIGHEST_SEVERITY)
            amounts.append(jnp.where(sign < 0.5, -amount, amount) if allowed.signed else amount)
        amount = jnp.stack(amounts)[operation]
        return pillow.operate(pixels, names, operation, amount, bilinear=True)

    length = 1 + (uniform[-1] * len(draws)).astype(jnp.int32)
    return lax.fori_loop(0, length, step, pixels)


def _levels(images: jax.Array, mean: ArrayLike, std: ArrayLike) -> jax.Array:
    """Convert normalised images to pixels, int32[B, H, W, C] in 0..255."""
    unrounded = pixels(images.astype(jnp.float32), *_statistics(mean, std))
    return jnp.clip(jnp.round(unrounded), 0, 255).astype(jnp.int32)


def _normalised(levels: jax.Array, mean: ArrayLike, std: ArrayLike, dtype: DTypeLike) -> jax.Array:
    return normalise(levels, *_statistics(mean, std)).astype(dtype)


def _statistics(mean: ArrayLike, std: ArrayLike) -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)


def views(keys: jax.Array, batch: Batch, count: int = 2) -> Batch:
    """Copies of each image, which the operations that follow change each in its own way, for losses
    on `view_logits`.

    Args:
      count: in [1, 100], copies of each image besides itself.

    Source: Hendrycks et al., 2020, "AugMix", https://arxiv.org/abs/1912.02781
    """
    del keys
    return batch | {"views": jnp.stack([batch["image"]] * count)}
