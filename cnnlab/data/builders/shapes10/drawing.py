"""Labels and seeds -> images, as a pure function that gives the same bits on every machine.

Two habits make the bits the same everywhere. Random numbers are hashes of (seed, counter) in 64-bit
integers, not a library's generator, whose stream may change between versions. And the arithmetic is
+, -, *, /, sqrt, min and max, which IEEE 754 rounds in one way; sin, cos and exp differ in the last
bit between libraries, so a rotation is a rational point of the circle. A shape is a signed distance
in pixels (negative inside), and the share of a pixel it covers is 1/2 - distance, cut to [0, 1].

The difficulty is tuned for two cores: on 9,000 images and 10 epochs the seed CNN reaches 94 % of
the test images, an MLP (512-512) 81 %, softmax regression 13 %. Any change of a number here changes
the data set: raise the version.

Source: own work. The hash is SplitMix64 (Steele, Lea and Flood, Fast splittable pseudorandom number
generators, 2014).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

CLASS_NAMES = (
    "disc",
    "ring",
    "half_disc",
    "crescent",
    "triangle",
    "frame",
    "cross",
    "star",
    "arrow",
    "heart",
)
SPLITS = {"train": 10_000, "test": 2_000}

SIZE = 32
CHUNK = 50  # images drawn at once: few enough for the processor's cache
Array = np.ndarray


def draw(label: int, seed: int) -> Array:
    """Draw one image.

    Args:
      label: class id in [0, 10), an index into CLASS_NAMES.
      seed: any integer in [0, 2**64); it decides everything but the shape.

    Returns:
      uint8[32, 32, 3].

    Raises:
      ValueError: a label outside [0, 10).

    >>> draw(7, seed=1).shape
    (32, 32, 3)
    """
    return draw_many(np.array([label]), np.array([seed], np.uint64))[0]


def draw_many(labels: Array, seeds: Array) -> Array:
    """Draw a batch; every image depends on its own label and seed only.

    Args:
      labels: int[B] in [0, 10).
      seeds: uint64[B].

    Returns:
      uint8[B, 32, 32, 3].

    Raises:
      ValueError: a label outside [0, 10).
    """
    labels = np.asarray(labels)
    seeds = np.asarray(seeds, np.uint64)
    if labels.size and not 0 <= labels.min() <= labels.max() < len(CLASS_NAMES):
        raise ValueError(
            f"labels must lie in [0, {len(CLASS_NAMES)}), got {labels.min()} to {labels.max()}"
        )
    images = np.empty((len(labels), SIZE, SIZE, 3), np.uint8)
    for label in range(len(CLASS_NAMES)):
        (places,) = np.nonzero(labels == label)
        for start in range(0, len(places), CHUNK):
            chunk = places[start : start + CHUNK]
            images[chunk] = _render(_SHAPES[label], _mix(seeds[chunk]))
    return images


def split_labels(split: str) -> Array:
    """Return the labels of a split in drawing order, every class equally often: int32[N]."""
    return np.arange(SPLITS[split], dtype=np.int32) % len(CLASS_NAMES)


def split_seeds(split: str) -> Array:
    """Return the seeds of a split, uint64[N]; no seed belongs to two splits."""
    first = list(SPLITS).index(split) << 32
    return np.arange(first, first + SPLITS[split], dtype=np.uint64)


# Random numbers
# ------------------------------------------------------------------------------

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: Array) -> Array:
    """Apply one step of SplitMix64, a bijection that looks random: uint64[...] -> uint64[...]."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class _Uniform:
    """Uniform numbers of each image in turn: the n-th call hashes the counter n, so no call
    disturbs another image.
    """

    def __init__(self, keys: Array) -> None:
        self.keys = keys[:, None]  # uint64[B, 1]
        self.counter = 0

    def bits(self, count: int) -> Array:
        """Draw random bits, uint64[B, count]."""
        counters = np.arange(self.counter, self.counter + count, dtype=np.uint64)
        self.counter += count
        return _mix(self.keys + counters * _GOLDEN)

    def __call__(self, low: float, high: float, count: int = 1) -> Array:
        """Draw uniform numbers in [low, high), float64[B, count]."""
        unit = (self.bits(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return low + (high - low) * unit

    def direction(self) -> tuple[Array, Array]:
        """Draw the cosine and sine of any angle, each float64[B, 1].

        The angles are denser around (0, 1) and (0, -1).
        """
        cosine, sine = self.tilt(1.0)
        side = np.where(self(0.0, 1.0) < 0.5, -1.0, 1.0)
        return side * cosine, side * sine

    def tilt(self, most: float) -> tuple[Array, Array]:
        """Draw the cosine and sine of an angle, each float64[B, 1].

        The tangent of half the angle is drawn uniformly from [-most, most).
        """
        t = self(-most, most)
        return (1.0 - t * t) / (1.0 + t * t), 2.0 * t / (1.0 + t * t)

    def noise(self, count: int) -> Array:
        """Draw nearly normal noise, float64[B, count], of mean 0 and deviation 1.

        Each number is the sum of the eight bytes of a hash.
        """
        octets = self.bits(count).view(np.uint8).reshape(len(self.keys), count, 8)
        total = octets[..., 0].astype(np.float64)
        for i in range(1, 8):
            total += octets[..., i]
        return (total - 1020.0) / 209.02153


# Shapes
# ------------------------------------------------------------------------------
# Local coordinates, u to the right and v up, float64[B, P] in units of the shape's size -> signed
# distance in that unit All ten have the area 2.25, so that neither the amount of colour nor the
# size tells the class.


def _length(u: Array, v: Array) -> Array:
    return np.sqrt(u * u + v * v)


def _disc(u: Array, v: Array) -> Array:
    return _length(u, v) - 0.846


def _ring(u: Array, v: Array) -> Array:
    return np.abs(_length(u, v) - 0.78) - 0.23


def _half_disc(u: Array, v: Array) -> Array:
    return np.maximum(_length(u, v + 0.5) - 1.197, -(v + 0.5))


def _crescent(u: Array, v: Array) -> Array:
    return np.maximum(_length(u - 0.43, v) - 1.2, 0.957 - _length(u - 1.047, v))


def _triangle(u: Array, v: Array) -> Array:
    return np.maximum(0.8660254037844386 * np.abs(u) + 0.5 * v, -v) - 0.658


def _frame(u: Array, v: Array) -> Array:
    return np.abs(np.maximum(np.abs(u), np.abs(v)) - 0.83) - 0.17


def _cross(u: Array, v: Array) -> Array:
    long, short = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
    return np.maximum(long - 1.04, short - 0.322)


def _star(u: Array, v: Array) -> Array:
    # Inside a pentagram means behind at least four of its five lines: the second largest distance
    # is negative.
    normals = (
        (0.0, 1.0),
        (0.9510565162951535, 0.30901699437494745),
        (0.5877852522924731, -0.8090169943749475),
    )
    lines = [a * u + b * v for a, b in normals] + [b * v - a * u for a, b in normals[1:]]
    first, second = np.maximum(lines[0], lines[1]), np.minimum(lines[0], lines[1])
    for line in lines[2:]:
        second = np.maximum(second, np.minimum(first, line))
        first = np.maximum(first, line)
    return second - 0.4375


def _arrow(u: Array, v: Array) -> Array:
    side = np.abs(v)
    shaft = np.maximum(np.abs(u + 0.55) - 0.765, side - 0.3)
    head = np.maximum(0.7071067811865476 * (u + side) - 0.8485281374239, -u)
    return np.minimum(shaft, head)


def _heart(u: Array, v: Array) -> Array:
    # Two discs over a triangle on its tip.
    side = np.abs(u)
    point = np.maximum(0.827 * side - 0.562 * (v + 1.143), v - 0.161)
    return np.minimum(point, _length(side - 0.506, v - 0.161) - 0.5275)


_SHAPES: tuple[Callable[[Array, Array], Array], ...] = (
    _disc,
    _ring,
    _half_disc,
    _crescent,
    _triangle,
    _frame,
    _cross,
    _star,
    _arrow,
    _heart,
)


# Picture
# ------------------------------------------------------------------------------

# float64[1, 1024]
_Y, _X = (grid.reshape(1, -1).astype(np.float64) - 15.5 for grid in np.mgrid[0:SIZE, 0:SIZE])


def _render(shape: Callable[[Array, Array], Array], keys: Array) -> Array:
    """Draw images, uint64[B] -> uint8[B, 32, 32, 3].

    From back to front: background, clutter, the shape, a line anywhere, noise.
    """
    uniform = _Uniform(keys)
    # Every second picture is bright on dark, the others dark on bright; all else about the two
    # colours is chance.
    side = np.where(uniform(0.0, 1.0) < 0.5, -1.0, 1.0)
    middle = uniform(0.3, 0.7, 3)
    half = side * uniform(0.15, 0.3, 3)
    background = middle - half
    colour = middle + half
    planes = _shade(background, uniform, 0.35)
    for _ in range(2):
        _blend(planes, uniform(0.0, 1.0, 3), _line(uniform, 3.0, 12.0))
    size, stretch = uniform(6.8, 8.3), uniform(0.9, 1.1)
    room = 15.5 - size  # pixels: near the edge a corner may be cut off, never more
    x, y = room * uniform(-1.0, 1.0), room * uniform(-1.0, 1.0)
    cosine, sine = uniform.tilt(0.15)  # up to 17 degrees to either side
    right, up = _X - x, y - _Y  # rows count downwards
    u = (cosine * right + sine * up) / (size * stretch)
    v = (cosine * up - sine * right) / (size / stretch)
    fill = _shade(colour, uniform, 0.25)
    cover = _cover(shape(u, v) * size)
    for plane, value in zip(planes, fill, strict=True):
        plane += cover * (value - plane)
    _blend(planes, uniform(0.0, 1.0, 3), _line(uniform, 3.0, 10.0))
    strength = uniform(0.02, 0.04)
    for plane in planes:
        plane += strength * uniform.noise(SIZE * SIZE)
    image = np.stack(planes, axis=-1) * 255.0 + 0.5
    return (
        np.floor(np.minimum(np.maximum(image, 0.0), 255.0))
        .astype(np.uint8)
        .reshape(-1, SIZE, SIZE, 3)
    )


def _cover(distance: Array) -> Array:
    """Convert a signed distance in pixels to the share of the pixel covered, in [0, 1]."""
    return np.minimum(np.maximum(0.5 - distance, 0.0), 1.0)


def _shade(colour: Array, uniform: _Uniform, most: float) -> list[Array]:
    """Make three planes float64[B, 1024] of one colour, brighter towards a random side."""
    cosine, sine = uniform.direction()
    slope = uniform(0.0, most) / SIZE * (cosine * _X + sine * _Y)
    return [colour[:, i : i + 1] + slope for i in range(3)]


def _line(uniform: _Uniform, shortest: float, longest: float) -> Array:
    """Compute the cover, float64[B, 1024], of one short thick line anywhere: clutter."""
    x, y = uniform(-16.0, 16.0), uniform(-16.0, 16.0)
    half = 0.5 * uniform(shortest, longest)
    thick = uniform(0.4, 1.2)
    cosine, sine = uniform.direction()
    along = np.maximum(np.abs(cosine * (_X - x) + sine * (_Y - y)) - half, 0.0)
    across = cosine * (_Y - y) - sine * (_X - x)
    return _cover(_length(along, across) - thick)


def _blend(planes: list[Array], colour: Array, cover: Array) -> None:
    """Paint a colour float64[B, 3] over the planes where cover float64[B, 1024] says so."""
    for i, plane in enumerate(planes):
        plane += cover * (colour[:, i : i + 1] - plane)
