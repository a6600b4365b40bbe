"""Image operations against Pillow's own, and the policies that choose among them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from cnnlab import augment
from cnnlab.augment import pillow, policies
from cnnlab.collectives import example_keys

NAMES = ("identity", *pillow.MAPS, *pillow.VALUES)
MEAN, STD = np.float32([120, 110, 100]), np.float32([60, 50, 70])
ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}
MATRICES = {
    "shear_x": lambda amount: (1, amount, 0, 0, 1, 0),
    "shear_y": lambda amount: (1, 0, 0, amount, 1, 0),
    "translate_x": lambda amount: (1, 0, amount, 0, 1, 0),
    "translate_y": lambda amount: (1, 0, 0, 0, 1, amount),
}
STEPS = np.arange(31)
AMOUNTS = {
    "rotate": 4.5 * STEPS,
    "shear_x": 0.033 * STEPS,
    "shear_y": -0.033 * STEPS,
    "translate_x": STEPS - 15,
    "translate_y": STEPS - 15,
    "posterize": 1 + STEPS % 8,
    "solarize": 256 * STEPS // 30,
    **dict.fromkeys(ENHANCERS, 0.01 + STEPS * 1.99 / 30),
}


def by_pillow(name, pixels, amount, bilinear=False):
    """Pillow's result: uint8[H, W, C] to the same."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    resampling = Image.Resampling.BILINEAR if bilinear else Image.Resampling.NEAREST
    amount = float(amount)
    if name == "rotate":
        changed = image.rotate(amount, resampling)
    elif name in MATRICES:
        affine = Image.Transform.AFFINE
        changed = image.transform(image.size, affine, MATRICES[name](amount), resampling)
    elif name in ENHANCERS:
        changed = ENHANCERS[name](image).enhance(amount)
    elif name in ("posterize", "solarize"):
        changed = getattr(ImageOps, name)(image, int(amount))
    else:
        changed = image if name == "identity" else getattr(ImageOps, name)(image)
    return np.asarray(changed).reshape(pixels.shape)


@functools.partial(jax.jit, static_argnums=3)
def on_device(images, operation, amount, bilinear=False):
    def operate(image, operation, amount):
        return pillow.operate(image, NAMES, operation, amount, bilinear)

    return pillow.map_images(operate, images, operation, amount)


@functools.cache
def compared(channels, bilinear=False):
    """For each operation: images, amounts, results on the device, those of Pillow."""
    rng = np.random.default_rng(channels)
    images = rng.integers(0, 256, (31, 32, 40, channels))
    # Of narrow ranges of values, of few values, and of a single one.
    images[:10] = images[:10] * np.linspace(0.02, 0.9, 10)[:, None, None, None] + 20
    images[10:15] = images[10:15] // 100 * 100
    images[15] = 7
    images = images.astype(np.uint8)
    names = list(pillow.MAPS) if bilinear else NAMES
    amounts = np.float32([AMOUNTS.get(name, np.zeros(31)) for name in names])
    operations = np.repeat([NAMES.index(name) for name in names], 31)
    many = np.concatenate([images] * len(names)).astype(np.int32)
    ours = np.asarray(on_device(many, operations, amounts.reshape(-1), bilinear))
    assert ours.dtype == np.int32 and ours.min() >= 0 and ours.max() <= 255
    results = {}
    for name, of_name, new in zip(names, amounts, np.split(ours, len(names)), strict=True):
        theirs = [by_pillow(name, *pair, bilinear) for pair in zip(images, of_name, strict=True)]
        results[name] = images.astype(int), of_name, new, np.array(theirs, int)
    return results


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "autocontrast"])
def test_an_operation_is_pillows(name, channels):
    """Bit for bit, the nearest pixel of affine maps included."""
    images, _, ours, theirs = compared(channels)[name]
    np.testing.assert_array_equal(ours, theirs)
    unchanged = name == "identity" or (name == "color" and channels == 1)
    assert np.array_equal(ours, images) == unchanged


@pytest.mark.parametrize("channels", [3, 1])
def test_autocontrast_is_pillows_but_where_that_falls_short_of_a_whole_number(channels):
    images, _, ours, theirs = compared(channels)["autocontrast"]
    low, high = (f(images, (1, 2), keepdims=True) for f in (np.min, np.max))
    width = np.maximum(high - low, 1)
    exact = np.where(high > low, (images - low) * 255 // width, images)
    np.testing.assert_array_equal(ours, exact)
    short = ours != theirs
    assert np.all((images - low) * 255 % width == 0, where=short)
    assert np.all(ours[short] == theirs[short] + 1) and short.mean() < 0.1


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", pillow.MAPS)
def test_bilinear_maps_are_pillows_within_the_rounding_down(name, channels):
    """Float32 and Pillow's float64 fall on both sides of a whole number now and then."""
    _, amounts, ours, theirs = compared(channels, bilinear=True)[name]
    # Where a rotation by 90 degrees puts centres on the edge of the image, neither is right.
    kept = np.abs(amounts) % 90 != 0 if name == "rotate" else slice(None)
    difference = np.abs(ours - theirs)[kept]
    assert difference.max() <= 1 and np.mean(difference != 0) < 0.02


def test_all_images_at_once_are_the_images_one_after_the_other():
    """As accelerators and CPUs compute them."""
    images = np.random.default_rng(0).integers(0, 256, (len(NAMES), 8, 8, 3)).astype(np.int32)
    operations = np.arange(len(NAMES))
    amounts = np.float32([AMOUNTS.get(name, STEPS)[20] for name in NAMES])
    for bilinear in (False, True):

        def operate(image, operation, amount, bilinear=bilinear):
            return pillow.operate(image, NAMES, operation, amount, bilinear)

        at_once = jax.jit(jax.vmap(operate))(images, operations, amounts)
        one_by_one = on_device(images, operations, amounts, bilinear)
        assert np.abs(np.asarray(at_once) - np.asarray(one_by_one)).max() <= bilinear


def normalised(images, dtype=np.float32):
    return ((images - MEAN) / STD).astype(dtype)


def batch_of(images):
    places = jnp.arange(len(images), dtype=jnp.int32)
    return {"image": jnp.asarray(images), "label": places, "index": places, "epoch": jnp.int32(0)}


def keys(count, seed=0):
    return example_keys(jax.random.key(seed), count)


def wide():
    """The operations of TrivialAugment's wide space as the paper's program has them: name, the
    amounts of all strengths.
    """
    signed = {
        "rotate": [int(k * 135 / 30) for k in range(31)],
        "shear_x": [k * 0.99 / 30 for k in range(31)],
        "shear_y": [k * 0.99 / 30 for k in range(31)],
        "translate_x": [int(k * 32 / 30) for k in range(31)],
        "translate_y": [int(k * 32 / 30) for k in range(31)],
    }
    enhancement = [k * (2.0 - 0.01) / 30 + 0.01 for k in range(31)]
    return {
        **{name: [*amounts, *(-a for a in amounts)] for name, amounts in signed.items()},
        **dict.fromkeys(ENHANCERS, enhancement),
        "posterize": [8 - int(k * 6 / 30) for k in range(31)],
        "solarize": [256 - int(k * 256 / 30) for k in range(31)],
        "identity": [0],
        "autocontrast": [0],
        "equalize": [0],
    }


@pytest.mark.parametrize("channels", [3, 1])
def test_trivial_augment_does_one_of_the_papers_operations_at_one_of_its_strengths(channels):
    image = np.random.default_rng(0).integers(0, 86, (12, 14, channels)).astype(np.uint8)
    image[0, 0], image[0, 1] = 0, 85  # 255 / 85 is a whole number: Pillow's autocontrast is exact
    shares = {}
    for name, amounts in wide().items():
        for amount in amounts:
            result = by_pillow(name, image, amount).tobytes()
            shares[result] = shares.get(result, 0) + 1 / (14 * len(amounts))
    assert sum(shares.values()) == pytest.approx(1)
    draws = 3000
    mean, std = MEAN[:channels], STD[:channels]
    before = batch_of(
        np.broadcast_to(((image - mean) / std).astype(np.float32), (draws, *image.shape))
    )
    changed = jax.jit(augment.trivial_augment)(keys(draws), before, mean, std)["image"]
    pixels = np.asarray(changed) * std + mean
    np.testing.assert_allclose(pixels, np.round(pixels), atol=1e-4)
    results, counts = np.unique(
        np.round(pixels).astype(np.uint8).reshape(draws, -1), axis=0, return_counts=True
    )
    for result, count in zip(results, counts, strict=True):
        expected = draws * shares.pop(result.tobytes())
        assert abs(count - expected) < 5 * max(expected, 1) ** 0.5
    assert sum(shares.values()) < 0.15  # what is rare


def chain_by_pillow(image, uniform, severity):
    """A chain of AugMix by Pillow, as the paper's program has it."""
    height, width, _ = image.shape
    for which, how_much, sign in uniform[:-1].reshape(-1, 3)[: 1 + int(uniform[-1] * 3)]:
        level = 0.1 + (severity - 0.1) * float(how_much)
        signed = -1 if sign < 0.5 else 1
        name, amount = [
            ("autocontrast", 0),
            ("equalize", 0),
            ("posterize", 4 - int(level * 4 / 10)),
            ("rotate", signed * int(level * 30 / 10)),
            ("solarize", 256 - int(level * 256 / 10)),
            ("shear_x", signed * level * 0.3 / 10),
            ("shear_y", signed * level * 0.3 / 10),
            ("translate_x", signed * int(level * width / 3 / 10)),
            ("translate_y", signed * int(level * height / 3 / 10)),
        ][int(which * 9)]
        image = by_pillow(name, image, amount, bilinear=True)
    return image


def smooth_images(count, height=20, width=28):
    """Waves of many values, for which one more or less changes an equalized image little."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:height, :width]
    angles = rng.uniform(0.05, 0.3, (2, count, 1, 1, 3))
    waves = np.sin(angles[0] * y[None, :, :, None] + angles[1] * x[None, :, :, None])
    return (128 + 100 * waves + rng.normal(0, 5, waves.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("severity", [3.0, 10.0])
def test_a_chain_of_augmix_is_the_papers(severity):
    count = 60
    images = smooth_images(count)
    uniform = np.random.default_rng(0).random((count, 10), np.float32)
    ranges = policies._augmix_ranges(20, 28)

    @jax.jit
    def chains(images, uniform):
        def chain(image, uniform):
            return policies._chain(image, ranges, uniform, severity)

        return pillow.map_images(chain, images, uniform)

    ours = np.asarray(chains(images.astype(np.int32), uniform))
    differences = []
    for image, draws, mine in zip(images, uniform, ours, strict=True):
        differences.append(np.abs(chain_by_pillow(image, draws, severity) - mine).max())
    # A value that an interpolation rounds otherwise may be spread or inverted by what follows.
    assert np.mean(np.array(differences) <= 1) > 0.85 and np.median(differences) == 0


def test_augmix_views_are_mixtures_of_chains_and_the_image_stays():
    count = 8
    width = 3
    images = smooth_images(count)
    before = batch_of(normalised(images))
    after = jax.jit(augment.augmix)(keys(count), before, MEAN, STD)
    assert set(after) == {*before, "views"}
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    views = np.asarray(after["views"], np.float64) * STD + MEAN
    assert views.shape == (2, *images.shape)
    for i in range(count):
        for v, key in enumerate(jax.random.split(keys(count)[i])):
            chain_key, weight_key, clean_key = jax.random.split(key, 3)
            uniform = np.asarray(jax.random.uniform(chain_key, (width, 10), jnp.float32))
            weights = jax.random.dirichlet(weight_key, jnp.ones(width, jnp.float32))
            clean = float(jax.random.beta(clean_key, 1.0, 1.0))
            chains = [chain_by_pillow(images[i], draws, 3.0) for draws in uniform]
            mixture = np.tensordot(np.asarray(weights, np.float64), np.stack(chains), 1)
            expected = clean * images[i] + (1 - clean) * mixture
            difference = np.abs(views[v, i] - expected)
            assert difference.mean() < 0.5 and np.quantile(difference, 0.9) < 2


@pytest.mark.slow
def test_augmix_views_differ_and_stay_within_what_pixels_can_be():
    images = smooth_images(16)
    change = jax.jit(functools.partial(augment.augmix, severity=10.0))
    after = change(keys(16), batch_of(normalised(images)), MEAN, STD)
    views = np.asarray(after["views"])
    assert not any(np.array_equal(*pair) for pair in zip(*views, strict=True))
    assert np.all(views >= normalised(np.zeros(3)) - 1e-5)
    assert np.all(views <= normalised(np.full(3, 255)) + 1e-5)


def test_pixels_between_levels_are_rounded_first():
    """As those of an image that was interpolated, or of zeros, the mean of the data set."""
    levels = policies._levels(
        jnp.asarray(normalised(np.float32([[[[-3.0, 100.4, 100.6]]]]))), MEAN, STD
    )
    np.testing.assert_array_equal(levels, [[[[0, 100, 101]]]])


def test_images_of_two_channels_have_no_grey():
    with pytest.raises(ValueError, match="images must have 1 or 3 channels, got 2"):
        augment.trivial_augment(keys(1), batch_of(np.zeros((1, 4, 4, 2), np.float32)), 0.0, 1.0)
