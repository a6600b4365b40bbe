"""Distortions of test images: CIFAR-10-C's values, draws of an image's own, contracts."""

import base64
import colorsys
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import fft
from small_data import drawn

from cnnlab.data import contents, distortions
from cnnlab.data.dataset import from_arrays
from cnnlab.data.distortions import DISTORTIONS, distorted
from cnnlab.errors import InputError
from cnnlab.parts import find

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "distortions.json").read_text())
SEVERITIES = range(1, 6)
BLURS = (0.4, 0.6, 0.7, 0.8, 1.0)
NOISES = (0.04, 0.06, 0.08, 0.09, 0.10)
QUALITIES = (80, 65, 58, 50, 40)
# Quantisation of luminance in the JPEG standard (ITU-T T.81, Annex K), at quality 50.
LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
WITHOUT_DRAWS = sorted(GOLDEN.keys() - {"picture"})


def pixels(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(12, 10, 3)


PICTURE = pixels(GOLDEN["picture"])


def rng(*seed):
    return np.random.default_rng(seed or 0)


def test_the_golden_table_has_all_that_draw_nothing():
    assert [*DISTORTIONS] == [
        "gaussian_noise", "gaussian_blur", "brightness", "contrast", "jpeg_compression",
    ]  # fmt: skip
    assert set(WITHOUT_DRAWS) == DISTORTIONS.keys() - {"gaussian_noise"}


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_the_published_recipe_by_scikit_image(name, severity):
    """Equal values, the cut-off of fractions included."""
    ours = DISTORTIONS[name](PICTURE, rng(), severity=severity)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, pixels(GOLDEN[name][severity - 1]))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_is_a_sum_over_neighbours(severity):
    """A plain convolution in extended precision; where that is a whole number within 1e-9, either
    side of it is right.
    """
    sigma = BLURS[severity - 1]
    radius = int(4 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-(offsets.astype(np.longdouble) ** 2) / (2 * np.longdouble(sigma) ** 2))
    kernel /= kernel.sum()
    image = PICTURE.astype(np.longdouble)
    for axis in (0, 1):
        width = [(radius, radius) if other == axis else (0, 0) for other in range(3)]
        padded = np.pad(image, width, mode="edge")
        image = sum(
            weight * np.take(padded, np.arange(image.shape[axis]) + place, axis)
            for place, weight in enumerate(kernel)
        )
    ours = distortions.gaussian_blur(PICTURE, rng(), severity)
    exact = np.abs(image - np.round(image)) > 1e-9
    np.testing.assert_array_equal(ours[exact], np.floor(image[exact]).astype(np.uint8))
    assert np.max(np.abs(ours - image.astype(np.float64))) < 1 + 1e-9


def test_brightness_keeps_hue_and_saturation():
    """By the standard library's conversion, pixel by pixel; the fraction is cut off."""
    ours = distortions.brightness(PICTURE, rng(), 4)
    for old, new in zip(PICTURE.reshape(-1, 3), ours.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(old / 255))
        wanted = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1)))
        assert np.all(wanted - new > -1e-9) and np.all(wanted - new < 1 + 1e-9), old


def test_hand_values():
    grey = np.full((2, 2, 1), 100, np.uint8)
    # (100 / 255 + 0.3) * 255 = 176.5
    assert np.all(distortions.brightness(grey, rng(), 5) == 176)
    assert np.all(distortions.brightness(np.full((1, 1, 3), 200, np.uint8), rng(), 5) == 255)
    # 100 and 200 around 150, to 0.15 of the distance: 142.5 and 157.5
    stripes = np.array([[[100], [200]]], np.uint8)
    np.testing.assert_array_equal(distortions.contrast(stripes, rng(), 5)[0, :, 0], [142, 157])


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_in_unit_range(severity):
    """The formula on the same draws, and their size in the middle of the range."""
    deviation = NOISES[severity - 1]
    grey = np.full((64, 64, 3), 128, np.uint8)
    ours = distortions.gaussian_noise(grey, rng(5), severity)
    normal = rng(5).normal(0.0, 1.0, grey.shape)
    wanted = np.uint8(np.clip(grey / 255 + deviation * normal, 0, 1) * 255)
    np.testing.assert_array_equal(ours, wanted)
    # The deviation of n draws is within 4 / sqrt(2 n) of its own; cutting off adds 1/12.
    size = np.std(ours.astype(np.float64)) / 255
    assert abs(size / deviation - 1) < 4 / np.sqrt(2 * grey.size) + (1 / 255 / deviation) ** 2
    assert ours.min() < 128 - 255 * deviation and ours.max() > 128 + 255 * deviation


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_by_its_formula(severity):
    """Grey blocks by a float64 cosine transform and the standard's table at each quality. libjpeg's
    transforms of integers are off by less than a level of a pixel and of a coefficient.
    """
    quality = QUALITIES[severity - 1]
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = np.clip((LUMINANCE * scale + 50) // 100, 1, 255)
    blocks = rng(6).integers(0, 256, (400, 8, 8), dtype=np.uint8)
    num_compared = 0
    for block in blocks:
        coefficients = fft.dctn(block - 128.0, norm="ortho") / table
        kept = np.round(coefficients)
        if np.min(np.abs(np.abs(coefficients - kept) - 0.5)) < 0.02:
            continue  # rounded either way
        wanted = np.clip(np.round(fft.idctn(kept * table, norm="ortho") + 128), 0, 255)
        ours = distortions.jpeg_compression(block[..., None], rng(), severity)[..., 0]
        assert np.max(np.abs(ours - wanted)) <= 1
        num_compared += 1
    assert num_compared > 10


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (5, 9, 3), (1, 1, 1), (32, 32, 3)])
@pytest.mark.parametrize("name", DISTORTIONS)
def test_any_size_and_grey(name, shape):
    image = rng(3).integers(0, 256, shape, dtype=np.uint8)
    before = image.copy()
    results = [DISTORTIONS[name](image, rng(1), severity=s) for s in SEVERITIES]
    for result in results:
        assert (result.dtype, result.shape) == (np.uint8, shape)
    np.testing.assert_array_equal(image, before)
    if shape[-1] == 1 and name != "jpeg_compression":  # grey is three equal channels
        if name == "gaussian_noise":
            return
        colour = DISTORTIONS[name](np.repeat(image, 3, -1), rng(1), severity=2)
        np.testing.assert_array_equal(colour, np.repeat(results[1], 3, -1))


@pytest.mark.parametrize("name", DISTORTIONS)
def test_a_higher_severity_changes_more(name):
    image = rng(0).integers(60, 180, (32, 32, 3), dtype=np.uint8)
    smooth = distortions.gaussian_blur(image, rng(), 5)
    changes = [
        np.mean(np.abs(DISTORTIONS[name](smooth, rng(2), severity=s) - smooth.astype(float)))
        for s in SEVERITIES
    ]
    assert all(low < high for low, high in itertools.pairwise(changes)), changes


@pytest.fixture
def split():
    images, labels = drawn(40, 3, (8, 8, 3), seed=4)
    return from_arrays("mine", {"test": (images, labels)}, test_only=True).test


def pipeline(*texts):
    return [find("distortion", text) for text in texts]


def test_draws_depend_on_the_image_alone(split):
    """Not on which images are read with it, or in which order."""
    noisy = distorted(split, pipeline("gaussian_noise,severity=3"))
    together = noisy.read(range(40))
    np.testing.assert_array_equal(together["label"], split.read(range(40))["label"])
    for positions in ([7], [39, 7, 0], range(5, 20)):
        part = noisy.read(positions)
        np.testing.assert_array_equal(part["image"], together["image"][np.array(positions)])
    noise = together["image"].astype(int) - split.read(range(40))["image"]
    correlations = np.corrcoef(noise.reshape(40, -1))[np.triu_indices(40, 1)]
    assert np.max(np.abs(correlations)) < 0.5  # 192 values each: 1 / sqrt(192) = 0.07


def test_draws_of_a_distortion_do_not_depend_on_the_others(split):
    """Of two distortions the second draws as it does alone; of two alike the second anew."""
    parts = ("user_parts.inverted", "user_parts.speckled")
    speckled = "user_parts.speckled,amount=0.3"
    both = distorted(split, pipeline(parts[0], speckled)).read(range(40))["image"]
    alone = distorted(split, pipeline(speckled)).read(range(40))["image"]
    np.testing.assert_array_equal(both == 255, (alone == 255) | (both == 255))
    assert np.mean(alone == 255) == pytest.approx(0.3, abs=0.05)
    twice = distorted(split, pipeline(speckled, speckled)).read(range(40))["image"]
    # 0.3 + 0.7 * 0.3, and 0.02 is 3.6 deviations of 7,680 draws
    assert np.mean(twice == 255) == pytest.approx(0.51, abs=0.02)


def test_distortions_follow_one_another(split):
    first, second = "contrast,severity=5", "user_parts.inverted"
    images = split.read(range(40))["image"]
    one_way = distorted(split, pipeline(first, second)).read(range(40))["image"]
    other_way = distorted(split, pipeline(second, first)).read(range(40))["image"]
    np.testing.assert_array_equal(
        one_way, 255 - np.stack([distortions.contrast(image, rng(), 5) for image in images])
    )
    assert np.any(one_way != other_way)
    assert distorted(split, []) is split


def test_distorted_images_are_not_cached(split, tmp_path, monkeypatch):
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "cache"))
    noisy = distorted(split, pipeline("gaussian_noise,severity=1"))
    first = contents.summary(noisy)
    assert first.digest() == contents.summary(noisy).digest() != contents.summary(split).digest()
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").glob("*.arrays"))


@pytest.mark.parametrize(("name", "message"), [
    ("cropped", r"user_parts.cropped must return an image uint8\[8, 8, 3\], got uint8\[7, 8, 3\]"),
    ("as_floats", r"as_floats must return an image uint8\[8, 8, 3\], got float64\[8, 8, 3\]"),
    ("fails_on_some", "distortion user_parts.fails_on_some: KeyError: 'some image' .user_parts.py"),
])  # fmt: skip
def test_a_distortion_that_breaks_its_contract(name, message, split):
    with pytest.raises(InputError, match=message) as error:
        distorted(split, pipeline(f"user_parts.{name}")).read(range(40))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["contrast,severity=0", "contrast,severity=6"])
def test_severity_has_a_range(text):
    with pytest.raises(InputError, match=r"severity must lie in \[1, 5\]"):
        find("distortion", text)
    with pytest.raises(InputError, match="severity must be a whole number"):
        find("distortion", "contrast,severity=2.5")
    with pytest.raises(InputError, match="did you mean 'contrast'"):
        find("distortion", "contrest,severity=2")
