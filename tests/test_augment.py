"""Augmentations on hand-made images; distributions over many draws, with bounds of five standard deviations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnlab import augment
from cnnlab.parallel import example_keys

EPS = 2.0**-23  # one ulp of float32, relative


def keys(count, seed=0):
    return example_keys(jax.random.key(seed), count)


def numbered(count, height=4, width=5, channels=2):
    """Images whose pixels are all different, and none zero."""
    return jnp.arange(1.0, 1 + count * height * width * channels).reshape(count, height, width, channels)


PER_EXAMPLE = {
    "flip": augment.flip,
    "crop": lambda k, x: augment.crop(k, x, 2),
    "cutout": lambda k, x: augment.cutout(k, x, 2),
}
per_example = pytest.mark.parametrize("change", PER_EXAMPLE.values(), ids=PER_EXAMPLE)


def test_normalise():
    images = jnp.array([[[[0, 255]], [[10, 100]]]], jnp.uint8)  # [1, 2, 1, 2]
    mean, std = jnp.array([5.0, 100.0]), jnp.array([2.0, 50.0])
    np.testing.assert_allclose(augment.normalise(images, mean, std), [[[[-2.5, 3.1]], [[2.5, 0.0]]]], rtol=EPS)
    half = augment.normalise(images, mean.astype(jnp.bfloat16), std.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_pixels_is_the_inverse_of_normalise():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), np.uint8)
    mean, std = jnp.array([120.0, 100.0, 3.0]), jnp.array([60.0, 50.0, 1.0])
    back = augment.pixels(augment.normalise(images, mean, std), mean, std)
    np.testing.assert_allclose(back, images, atol=2 * 255 * EPS)
    assert back.dtype == jnp.float32


@per_example
def test_an_example_depends_on_its_own_key_alone(change):
    images, k = numbered(16), keys(16)
    whole = jax.jit(change)(k, images)
    assert whole.shape == images.shape and whole.dtype == images.dtype
    np.testing.assert_array_equal(jax.jit(change)(k[:8], images[:8]), whole[:8])
    np.testing.assert_array_equal(jax.jit(change)(k[8:], images[8:]), whole[8:])
    np.testing.assert_array_equal(jax.jit(change)(k[::-1], images[::-1]), whole[::-1])


@per_example
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_type_stays(change, dtype):
    assert jax.eval_shape(change, keys(2), jnp.ones((2, 4, 4, 1), dtype)).dtype == dtype


def test_flip_mirrors_left_and_right_half_of_the_time():
    image = np.array([[[1], [2], [3]], [[4], [5], [6]]], np.float32)
    mirror = np.array([[[3], [2], [1]], [[6], [5], [4]]], np.float32)
    flipped = np.asarray(augment.flip(keys(2000), jnp.broadcast_to(image, (2000, 2, 3, 1))))
    as_it_was, mirrored = (np.all(flipped == x, (1, 2, 3)) for x in (image, mirror))
    assert np.all(as_it_was ^ mirrored)
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / 2000**0.5


def test_crop_shifts_and_fills_with_zeros():
    image, padding = np.asarray(numbered(1)[0]), 2
    padded = np.zeros((8, 9, 2), np.float32)
    padded[2:6, 2:7] = image
    windows = np.stack([padded[i : i + 4, j : j + 5] for i in range(5) for j in range(5)])
    cropped = np.asarray(augment.crop(keys(2500), jnp.broadcast_to(image, (2500, *image.shape)), padding))
    which = np.all(cropped[:, None] == windows[None], (2, 3, 4))
    assert np.all(which.sum(1) == 1)
    # each of the 25 shifts: mean 100, standard deviation below 10
    assert np.all(abs(which.sum(0) - 100) < 50)


def test_crop_without_padding_is_the_identity():
    np.testing.assert_array_equal(augment.crop(keys(4), numbered(4), 0), numbered(4))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_cutout_removes_a_square_with_its_centre_anywhere(size):
    height, width, draws = 4, 5, 4000
    image = jnp.broadcast_to(numbered(1)[0], (draws, height, width, 2))
    cut = np.asarray(augment.cutout(keys(draws), image, size))
    gone = cut == 0
    assert np.all(cut[~gone] == np.asarray(image)[~gone])
    assert np.all(gone[..., 0] == gone[..., 1])  # all channels alike
    holes = {}
    for i in range(height):
        for j in range(width):
            hole = np.zeros((height, width), bool)
            top, left = i - size // 2, j - size // 2
            hole[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = True
            holes[hole.tobytes()] = holes.get(hole.tobytes(), 0) + 1
    shapes, counts = np.unique(gone[..., 0].reshape(draws, -1), axis=0, return_counts=True)
    assert {shape.tobytes() for shape in shapes} == set(holes)
    for shape, count in zip(shapes, counts, strict=True):
        mean = draws * holes[shape.tobytes()] / (height * width)
        assert abs(count - mean) < 5 * mean**0.5


def test_crop_and_cutout_draw_both_directions_apart():
    """Rows and columns move on their own, not by the same number."""
    image = np.asarray(numbered(1, 5, 5)[0])
    holes = np.asarray(augment.cutout(keys(200), jnp.broadcast_to(image, (200, 5, 5, 2)), 1))[..., 0] == 0
    rows, columns = np.nonzero(holes)[1:]
    assert len(set(zip(rows.tolist(), columns.tolist(), strict=True))) > 20


def mixed(alpha, seed=0, count=8, classes=3):
    rng = np.random.default_rng(5)
    images = jnp.asarray(rng.standard_normal((count, 2, 2, 1)), jnp.float32)
    targets = jnp.asarray(rng.dirichlet(np.ones(classes), count), jnp.float32)
    return images, targets, *jax.jit(augment.mixup, static_argnums=3)(jax.random.key(seed), images, targets, alpha)


def test_mixup_is_the_same_convex_combination_of_images_and_targets():
    for seed in range(5):
        images, targets, new_images, new_targets = (np.asarray(x, np.float64) for x in mixed(0.5, seed))
        np.testing.assert_allclose(new_targets.sum(-1), 1, atol=4 * EPS)
        # Find each example's partner and the batch's one weight: only one pair of them explains the pixels.
        flat, weights, partners = images.reshape(8, -1), set(), []
        for i, got in enumerate(new_images.reshape(8, -1)):
            if np.allclose(got, flat[i], rtol=0, atol=8 * EPS):  # its own partner
                partners.append(i)
                np.testing.assert_allclose(new_targets[i], targets[i], atol=4 * EPS)
                continue
            fits = []
            for j in set(range(8)) - {i}:
                line = flat[i] - flat[j]
                w = line @ (got - flat[j]) / (line @ line)
                fits.append((np.abs(flat[j] + w * line - got).max(), j, w))
            error, j, w = min(fits)
            assert error < 8 * EPS
            partners.append(j)
            weights.add(round(w, 4))
            np.testing.assert_allclose(new_targets[i], w * targets[i] + (1 - w) * targets[j], atol=32 * EPS)
        assert len(weights) == 1 and 0 < weights.pop() < 1
        assert sorted(partners) == list(range(8))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_mixup_weights_are_beta(alpha):
    images, targets = jnp.zeros((2, 1, 1, 1)).at[0].set(1.0), jnp.eye(2)
    draw = lambda key: augment.mixup(key, images, targets, alpha)[1]
    drawn = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 4000)), np.float64)
    swapped = drawn[:, 0, 0] != 1  # with the identity for a permutation nothing mixes
    assert abs(swapped.mean() - 0.5) < 5 * 0.5 / 4000**0.5
    w = drawn[swapped, 0, 0]
    assert abs(w.mean() - 0.5) < 5 * 0.5 / len(w) ** 0.5
    variance = 1 / (4 * (2 * alpha + 1))
    assert w.var() == pytest.approx(variance, rel=5 * (2 / len(w)) ** 0.5)  # kurtosis at most a normal's
    np.testing.assert_allclose(drawn[:, 0] + drawn[:, 1], np.ones((4000, 2)), atol=4 * EPS)


def test_mixup_does_not_see_how_devices_share_the_batch():
    images, targets, new_images, new_targets = mixed(0.5, seed=3)
    shared = lambda images, targets: augment.mixup(jax.random.key(3), images, targets, 0.5, axis_name="data")
    parts = jax.jit(jax.vmap(shared, axis_name="data"))(images.reshape(4, 2, 2, 2, 1), targets.reshape(4, 2, 3))
    np.testing.assert_allclose(parts[0].reshape(images.shape), new_images, atol=2 * EPS)
    np.testing.assert_allclose(parts[1].reshape(targets.shape), new_targets, atol=2 * EPS)
