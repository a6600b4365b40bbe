"""What is done to test images on purpose: noise, blur, other light, compression.

A distortion is `(image uint8[H, W, C], rng, **hyperparameters) -> uint8[H, W, C]`, a pure function
of an image and of draws from `rng`, a `numpy.random.Generator` that depends on the image's place in
its split and on the name of the distortion, and on nothing else: not on the batch, the number of
devices or processes, or the seed of the run. Every network sees the same distorted images.

The built-in ones are those of CIFAR-10-C, with its severities and, as there, values cut off to
whole numbers. They take images of 1 or 3 channels and of any size.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from cnnlab import spec
from cnnlab.data.dataset import Example, Split
from cnnlab.errors import InputError
from cnnlab.spec import Part

Distortion: TypeAlias = Callable[[np.ndarray, np.random.Generator], np.ndarray]

SEED = 0  # of all draws; no run changes it


def gaussian_noise(image: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Add normal noise with a deviation of 0.04, 0.06, 0.08, 0.09 or 0.1 of the range.

    Args:
      severity: in [1, 5].

    Source: Hendrycks & Dietterich, 2019, "Benchmarking neural network robustness to common
    corruptions and perturbations", https://arxiv.org/abs/1903.12261
    """
    deviation = _of((0.04, 0.06, 0.08, 0.09, 0.1), severity)
    return _as_bytes(image / 255 + deviation * rng.standard_normal(image.shape))


def gaussian_blur(image: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Blur with a Gaussian of a deviation of 0.4, 0.6, 0.7, 0.8 or 1 pixel; the border is repeated.

    Args:
      severity: in [1, 5].

    Source: Hendrycks & Dietterich, 2019, https://arxiv.org/abs/1903.12261
    """
    del rng
    from scipy import ndimage

    deviation = _of((0.4, 0.6, 0.7, 0.8, 1.0), severity)
    blurred = ndimage.gaussian_filter(image / 255, (deviation, deviation, 0), mode="nearest")
    return _as_bytes(blurred)


def brightness(image: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Add 0.05, 0.1, 0.15, 0.2 or 0.3 of the range to the value of each pixel (HSV), at most to its
    end; hue and saturation stay.

    Args:
      severity: in [1, 5].

    Source: Hendrycks & Dietterich, 2019, https://arxiv.org/abs/1903.12261
    """
    del rng
    added = _of((0.05, 0.1, 0.15, 0.2, 0.3), severity)
    if image.shape[-1] == 1:  # grey: only a value
        return _as_bytes(image / 255 + added)
    hue, saturation, value = _hsv(image / 255)
    return _as_bytes(_rgb(hue, saturation, np.clip(value + added, 0, 1)))


def contrast(image: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Bring pixels nearer to the image's mean of their channel: to 0.75, 0.5, 0.4, 0.3 or 0.15 of
    their distance from it.

    Args:
      severity: in [1, 5].

    Source: Hendrycks & Dietterich, 2019, https://arxiv.org/abs/1903.12261
    """
    del rng
    share = _of((0.75, 0.5, 0.4, 0.3, 0.15), severity)
    values = image / 255
    mean = values.mean((0, 1), keepdims=True)
    return _as_bytes((values - mean) * share + mean)


def jpeg_compression(image: np.ndarray, rng: np.random.Generator, severity: int) -> np.ndarray:
    """Store as JPEG of quality 80, 65, 58, 50 or 40 (with half the resolution of colours) and read.

    Args:
      severity: in [1, 5].

    Source: Hendrycks & Dietterich, 2019, https://arxiv.org/abs/1903.12261
    """
    del rng
    from PIL import Image

    file = io.BytesIO()
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.save(file, "JPEG", quality=_of((80, 65, 58, 50, 40), severity))
    with Image.open(file, formats=("JPEG",)) as stored:
        return np.array(stored).reshape(image.shape)


DISTORTIONS: dict[str, Callable[..., np.ndarray]] = {
    f.__name__: f for f in (gaussian_noise, gaussian_blur, brightness, contrast, jpeg_compression)
}


def distorted(split: Split, parts: Sequence[Part]) -> Split:
    """Distort the images of a split as they are read.

    Args:
      split: whose images are scaled first.
      parts: distortions, in their order.
    """
    if not parts:
        return split
    name = "+".join([split.name, *map(str, parts)])
    # Not kept in the cache: what a distortion makes also depends on the versions of libraries.
    return dataclasses.replace(
        split, records=Distorted(split, tuple(parts)), fingerprint="", name=name
    )


@dataclass(frozen=True)
class Distorted:
    """The images of a split, distorted, read like the records of a file.

    Attributes:
      split: of the images.
      parts: distortions, in their order.
    """

    split: Split
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, positions: Sequence[int]) -> list[Example]:
        batch = self.split.read(positions)
        return [
            {"image": self._distort(image, position), "label": int(label)}
            for image, label, position in zip(
                batch["image"], batch["label"], positions, strict=True
            )
        ]

    @functools.cached_property
    def _bound(self) -> list[tuple[Part, Distortion, int, int]]:
        """The distortions as functions, with what their draws depend on besides the image."""
        names = [part.name for part in self.parts]
        return [
            (part, part.bind(), zlib.crc32(part.name.encode()), names[:place].count(part.name))
            for place, part in enumerate(self.parts)
        ]

    def _distort(self, image: np.ndarray, position: int) -> np.ndarray:
        for part, function, name, repeat in self._bound:
            rng = np.random.default_rng([SEED, position, name, repeat])
            with spec.refused(f"distortion {part}"):
                changed = function(image, rng)
            _check(part, image, changed)
            image = changed
        return image


def _check(part: Part, image: np.ndarray, changed: object) -> None:
    """Raise InputError where a distortion does not return an image of the same shape."""
    described = type(changed).__name__
    if isinstance(changed, np.ndarray):
        described = f"{changed.dtype}{list(changed.shape)}"
    wanted = f"uint8{list(image.shape)}"
    if described != wanted:
        raise InputError(f"distortion {part} must return an image {wanted}, got {described}")


def _of(values: Sequence[float], severity: int) -> float:
    return values[severity - 1]


def _as_bytes(values: np.ndarray) -> np.ndarray:
    """Convert values, cut off to [0, 1], to uint8 as CIFAR-10-C does: without rounding."""
    return (np.clip(values, 0, 1) * 255).astype(np.uint8)


def _hsv(colours: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Convert RGB to hue, saturation and value, all in [0, 1]; the hue of grey is 0.

    Source: Smith, 1978, "Color gamut transform pairs".
    """
    red, green, blue = np.moveaxis(colours, -1, 0)
    value = colours.max(-1)
    chroma = value - colours.min(-1)
    divisor = np.where(chroma == 0, 1, chroma)
    # Of two equal maxima the later channel decides.
    sector = np.where(
        blue == value,
        4 + (red - green) / divisor,
        np.where(green == value, 2 + (blue - red) / divisor, (green - blue) / divisor),
    )
    hue = np.where(chroma == 0, 0, sector / 6 % 1)
    saturation = chroma / np.where(value == 0, 1, value)
    return hue, saturation, value


def _rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Convert what `_hsv` returned back: float64[H, W, 3]."""
    sector = np.floor(hue * 6)
    inside = hue * 6 - sector
    low = value * (1 - saturation)
    falling = value * (1 - inside * saturation)
    rising = value * (1 - (1 - inside) * saturation)
    which = sector.astype(int) % 6
    red = np.choose(which, [value, falling, low, low, rising, value])
    green = np.choose(which, [rising, value, value, falling, low, low])
    blue = np.choose(which, [low, low, rising, value, value, falling])
    return np.stack([red, green, blue], -1)
