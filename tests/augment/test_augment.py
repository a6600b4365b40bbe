"""Augmentations on hand-made images; distributions over many draws, with bounds of five standard
deviations.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_modes import quick_compile
from PIL import Image

from cnnlab import augment, spec
from cnnlab.augment import boxes, geometry
from cnnlab.collectives import example_keys
from cnnlab.config import Recipe
from cnnlab.errors import InputError
from cnnlab.parts import KINDS, resolve

STATISTICS = jnp.full(3, 100.0), jnp.full(3, 50.0)  # mean and deviation
EPS = 2.0**-23  # one ulp of float32, relative


@pytest.fixture(autouse=True)
def compiled_quickly():
    with quick_compile(True):
        yield


def keys(count, seed=0):
    return example_keys(jax.random.key(seed), count)


def numbered(count, height=4, width=5, channels=2):
    """Images whose pixels are all different, and none zero."""
    return jnp.arange(1.0, 1 + count * height * width * channels).reshape(
        count, height, width, channels
    )


def batch(images, labels=None):
    """A batch of the first epoch, its images those of the split from the first on."""
    places = jnp.arange(len(images), dtype=jnp.int32)
    return {
        "image": images,
        "label": places if labels is None else labels,
        "index": places,
        "epoch": jnp.int32(0),
    }


def on_images(operation, **hyperparameters):
    """An operation as (keys, images) -> images; the rest of the batch must stay as it is."""

    def change(keys, images):
        before = batch(images)
        after = operation(keys, before, **hyperparameters)
        assert set(after) == set(before) and all(
            after[name] is before[name] for name in before if name != "image"
        )
        return after["image"]

    return change


def view_of_augmix(keys, images):
    """The second of the views, which this operation changes in place of the images."""
    return augment.augmix(keys, batch(images), mean=100.0, std=50.0)["views"][1]


PER_EXAMPLE = {
    "flip": on_images(augment.flip),
    "crop": on_images(augment.crop, padding=2),
    "crop_reflect": on_images(augment.crop, padding=2, mode="reflect"),
    "random_resized_crop": on_images(augment.random_resized_crop),
    "cutout": on_images(augment.cutout, size=2),
    "random_erasing": on_images(augment.random_erasing),
    "random_erasing_noise": on_images(augment.random_erasing, fill="noise"),
    "trivial_augment": on_images(augment.trivial_augment, mean=100.0, std=50.0),
    "augmix": view_of_augmix,
}
SLOW = {"augmix"}  # to compile
per_example = pytest.mark.parametrize(
    "change",
    [
        pytest.param(change, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, change in PER_EXAMPLE.items()
    ],
)


def test_normalise():
    images = jnp.array([[[[0, 255]], [[10, 100]]]], jnp.uint8)  # [1, 2, 1, 2]
    mean, std = jnp.array([5.0, 100.0]), jnp.array([2.0, 50.0])
    np.testing.assert_allclose(
        augment.normalise(images, mean, std), [[[[-2.5, 3.1]], [[2.5, 0.0]]]], rtol=EPS
    )
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
    images = numbered(16, channels=3)
    k = keys(16)
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
    flipped = np.asarray(
        on_images(augment.flip)(keys(2000), jnp.broadcast_to(image, (2000, 2, 3, 1)))
    )
    as_it_was, mirrored = (np.all(flipped == x, (1, 2, 3)) for x in (image, mirror))
    assert np.all(as_it_was ^ mirrored)
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / 2000**0.5


@pytest.mark.parametrize(
    ("mode", "padding_of_numpy"), [("zeros", "constant"), ("reflect", "reflect")]
)
def test_crop_shifts_and_fills(mode, padding_of_numpy):
    image = np.asarray(numbered(1)[0])
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), padding_of_numpy)
    windows = np.stack([padded[i : i + 4, j : j + 5] for i in range(5) for j in range(5)])
    crop = on_images(augment.crop, padding=2, mode=mode)
    cropped = np.asarray(crop(keys(2500), jnp.broadcast_to(image, (2500, *image.shape))))
    which = np.all(cropped[:, None] == windows[None], (2, 3, 4))
    assert np.all(which.sum(1) == 1)
    # each of the 25 shifts: mean 100, standard deviation below 10
    assert np.all(abs(which.sum(0) - 100) < 50)


def test_crop_without_padding_is_the_identity():
    np.testing.assert_array_equal(
        on_images(augment.crop, padding=0)(keys(4), numbered(4)), numbered(4)
    )
    # `none` says it better.
    with pytest.raises(InputError, match=r"padding must lie in \[1, inf\), got 0"):
        spec.find(KINDS["augmentation"], "crop,padding=0")


def test_sizes_and_modes_that_cannot_be():
    for call, words in (
        (
            on_images(augment.crop, padding=4),
            "padding must be smaller than the image, 4 pixels, got 4",
        ),
        (on_images(augment.cutout, size=4), "size must be smaller than the image, 4 pixels, got 4"),
        (
            on_images(augment.crop, mode="zero", padding=1),
            "unknown mode 'zero': did you mean 'zeros'",
        ),
        (
            on_images(augment.random_erasing, fill="noize"),
            "unknown fill 'noize': did you mean 'noise'",
        ),
        (
            on_images(augment.random_resized_crop, scale=(1.0, 0.5)),
            r"scale must be the least and the greatest value, got \[1.0, 0.5\]",
        ),
        (
            on_images(augment.random_erasing, ratio=(1.0,)),
            r"ratio must be the least and the greatest value, got \[1.0\]",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call(keys(2), numbered(2))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_cutout_removes_a_square_with_its_centre_anywhere(size):
    height = 4
    width = 5
    draws = 4000
    image = jnp.broadcast_to(numbered(1)[0], (draws, height, width, 2))
    cut = np.asarray(on_images(augment.cutout, size=size)(keys(draws), image))
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
    cutout = on_images(augment.cutout, size=1)
    holes = np.asarray(cutout(keys(200), jnp.broadcast_to(image, (200, 5, 5, 2))))[..., 0] == 0
    rows, columns = np.nonzero(holes)[1:]
    assert len(set(zip(rows.tolist(), columns.tolist(), strict=True))) > 20


def drawn_boxes(shape, scale, ratio, draws=3000, fallback=(1, 1)):
    """Boxes on the device, and those of a loop in NumPy: {field: values} each."""
    ours = jax.jit(boxes.random_boxes, static_argnums=(1, 2, 3, 4))(
        keys(draws), shape, scale, ratio, fallback
    )
    rng = np.random.default_rng(0)
    theirs = []
    while len(theirs) < draws:
        area = np.prod(shape) * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        height, width = round(float((area / aspect) ** 0.5)), round(float((area * aspect) ** 0.5))
        if 0 < height <= shape[0] and 0 < width <= shape[1]:
            top = rng.integers(0, shape[0] - height + 1)
            left = rng.integers(0, shape[1] - width + 1)
            theirs.append((top, left, height, width))
    return np.stack([np.asarray(values) for values in ours], 1), np.array(theirs)


@pytest.mark.parametrize(
    ("shape", "scale", "ratio"),
    [
        ((32, 32), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((12, 20), (0.02, 0.4), (0.3, 1 / 0.3)),
    ],
)
def test_random_boxes_are_distributed_as_one_after_the_other_until_one_fits(shape, scale, ratio):
    ours, theirs = drawn_boxes(shape, scale, ratio)
    top, left, height, width = ours.T
    assert np.all((top >= 0) & (left >= 0) & (height >= 1) & (width >= 1))
    assert np.all((top + height <= shape[0]) & (left + width <= shape[1]))
    for mine, other in zip(ours.T, theirs.T, strict=True):
        error = ((mine.var() + other.var()) / len(mine)) ** 0.5
        assert abs(mine.mean() - other.mean()) < 5 * error
        # A kurtosis below 6, as all of these have.
        assert mine.var() == pytest.approx(other.var(), rel=5 * (2 * 5 / len(mine)) ** 0.5)
    correlations = np.corrcoef(ours.T) - np.corrcoef(theirs.T)
    assert abs(correlations).max() < 5 * (2 / len(ours)) ** 0.5


@pytest.mark.parametrize(
    ("size", "box"), [((4, 40), (0, 18, 4, 5)), ((40, 4), (18, 0, 5, 4)), ((8, 8), (0, 0, 8, 8))]
)
def test_a_crop_whose_draws_do_not_fit_is_the_largest_in_the_middle(size, box):
    # The whole area has the image's shape; only the last of these is within the ratio.
    images = numbered(3, *size, channels=1)
    crop = on_images(augment.random_resized_crop, scale=(1.0, 1.0))
    top, left, height, width = (np.full(3, value) for value in box)
    wanted = geometry.resized(images, boxes.Boxes(*map(jnp.asarray, (top, left, height, width))))
    np.testing.assert_array_equal(crop(keys(3), images), wanted)


def test_a_resized_box_is_pillows():
    rng = np.random.default_rng(0)
    height, width, channels = 12, 17, 3
    images = rng.standard_normal((40, height, width, channels)).astype(np.float32)
    heights, widths = rng.integers(1, height + 1, 40), rng.integers(1, width + 1, 40)
    tops, lefts = rng.integers(0, height - heights + 1), rng.integers(0, width - widths + 1)
    of = boxes.Boxes(*(jnp.asarray(x, jnp.int32) for x in (tops, lefts, heights, widths)))
    ours = np.asarray(jax.jit(geometry.resized)(jnp.asarray(images), of))
    for i, (top, left, h, w) in enumerate(zip(tops, lefts, heights, widths, strict=True)):
        for channel in range(channels):
            cut = Image.fromarray(images[i, top : top + h, left : left + w, channel].copy())
            theirs = np.asarray(cut.resize((width, height), Image.Resampling.BILINEAR))
            # Weights: a coordinate below 17 in float32, in each direction.
            tolerance = 2 * 17 * 2 * EPS * abs(images[i]).max()
            np.testing.assert_allclose(ours[i, :, :, channel], theirs, rtol=0, atol=tolerance)


def test_random_erasing_removes_one_box_from_a_share_of_the_images():
    draws, height, width = 2000, 10, 14
    images = jnp.broadcast_to(numbered(1, height, width)[0], (draws, height, width, 2))
    erased = np.asarray(jax.jit(on_images(augment.random_erasing, p=0.3))(keys(draws), images))
    gone = erased == 0
    assert np.all(erased[~gone] == np.asarray(images)[~gone]) and np.all(
        gone[..., 0] == gone[..., 1]
    )
    hit = gone.any((1, 2, 3))
    assert abs(hit.mean() - 0.3) < 5 * (0.3 * 0.7 / draws) ** 0.5
    rows, columns = gone[hit].any((2, 3)).sum(1), gone[hit].any((1, 3)).sum(1)
    np.testing.assert_array_equal(gone[hit, :, :, 0].sum((1, 2)), rows * columns)
    shares = rows * columns / (height * width)
    # Each side is rounded to whole pixels: (s + 1/2) (t + 1/2) of s t at most.
    assert shares.min() > 0 and shares.max() < 0.4 + 0.5 * (height + width) / (height * width)
    assert abs(shares.mean() - 0.21) < 0.02


def test_random_erasing_with_noise_is_normal_in_the_same_boxes():
    images = jnp.full((500, 8, 8, 1), 100.0)
    hole = np.asarray(jax.jit(on_images(augment.random_erasing))(keys(500), images)) == 0
    noisy = np.asarray(jax.jit(on_images(augment.random_erasing, fill="noise"))(keys(500), images))
    np.testing.assert_array_equal(noisy != 100, hole)
    noise = noisy[hole]
    assert abs(noise.mean()) < 5 / len(noise) ** 0.5
    assert noise.var() == pytest.approx(1, rel=5 * (2 / len(noise)) ** 0.5)
    assert len(np.unique(noise)) > 0.99 * len(noise)


def mixup(key, images, labels, alpha, classes=3, axis_name=None):
    """The images and labels that mixup gives."""
    changed = augment.mixup(None, batch(images, labels), key, classes, alpha, axis_name)
    return changed["image"], changed["label"]


def mixed(alpha, seed=0, count=8, classes=3):
    rng = np.random.default_rng(5)
    images = jnp.asarray(rng.standard_normal((count, 2, 2, 1)), jnp.float32)
    targets = jnp.asarray(rng.dirichlet(np.ones(classes), count), jnp.float32)
    return (
        images,
        targets,
        *jax.jit(mixup, static_argnums=3)(jax.random.key(seed), images, targets, alpha),
    )


def test_mixup_is_the_same_convex_combination_of_images_and_targets():
    for seed in range(5):
        images, targets, new_images, new_targets = (
            np.asarray(x, np.float64) for x in mixed(0.5, seed)
        )
        np.testing.assert_allclose(new_targets.sum(-1), 1, atol=4 * EPS)
        # Find each example's partner and the batch's one weight: only one pair of them explains the
        # pixels.
        flat = images.reshape(8, -1)
        weights = set()
        partners = []
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
            np.testing.assert_allclose(
                new_targets[i], w * targets[i] + (1 - w) * targets[j], atol=32 * EPS
            )
        assert len(weights) == 1 and 0 < weights.pop() < 1
        assert sorted(partners) == list(range(8))


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_mixup_weights_are_beta(alpha):
    images = jnp.zeros((2, 1, 1, 1)).at[0].set(1.0)
    targets = jnp.eye(2)

    def draw(key):
        return mixup(key, images, targets, alpha, classes=2)[1]

    drawn = np.asarray(
        jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 4000)), np.float64
    )
    swapped = drawn[:, 0, 0] != 1  # with the identity for a permutation nothing mixes
    assert abs(swapped.mean() - 0.5) < 5 * 0.5 / 4000**0.5
    w = drawn[swapped, 0, 0]
    assert abs(w.mean() - 0.5) < 5 * 0.5 / len(w) ** 0.5
    variance = 1 / (4 * (2 * alpha + 1))
    # Kurtosis at most a normal's
    assert w.var() == pytest.approx(variance, rel=5 * (2 / len(w)) ** 0.5)
    np.testing.assert_allclose(drawn[:, 0] + drawn[:, 1], np.ones((4000, 2)), atol=4 * EPS)


def test_mixup_does_not_see_how_devices_share_the_batch():
    images, targets, new_images, new_targets = mixed(0.5, seed=3)

    def shared(images, targets):
        return mixup(jax.random.key(3), images, targets, 0.5, axis_name="data")

    parts = jax.jit(jax.vmap(shared, axis_name="data"))(
        images.reshape(4, 2, 2, 2, 1), targets.reshape(4, 2, 3)
    )
    np.testing.assert_allclose(parts[0].reshape(images.shape), new_images, atol=2 * EPS)
    np.testing.assert_allclose(parts[1].reshape(targets.shape), new_targets, atol=2 * EPS)


def test_mixup_makes_class_ids_distributions():
    images = jnp.ones((8, 2, 2, 1))
    labels = jnp.arange(8, dtype=jnp.int32) % 3
    for of_ids, of_distributions in zip(
        mixup(jax.random.key(1), images, labels, 0.5),
        mixup(jax.random.key(1), images, jax.nn.one_hot(labels, 3), 0.5),
        strict=True,
    ):
        assert of_ids.dtype == jnp.float32
        np.testing.assert_array_equal(of_ids, of_distributions)


def cutmix(key, images, labels, alpha=1.0, p=1.0, classes=3, axis_name=None):
    """The images and labels that cutmix gives."""
    changed = augment.cutmix(None, batch(images, labels), key, classes, alpha, p, axis_name)
    return changed["image"], changed["label"]


def test_cutmix_replaces_the_same_box_of_each_image_and_weighs_labels_by_its_area():
    count, height, width = 8, 12, 20
    plain = np.broadcast_to(
        np.arange(count, dtype=np.float32)[:, None, None, None], (count, height, width, 2)
    )
    labels = np.eye(count, dtype=np.float32)
    shares = []
    for seed in range(20):
        key = jax.random.key(seed)
        images, targets = (
            np.asarray(x) for x in cutmix(key, jnp.asarray(plain), jnp.asarray(labels))
        )
        assert np.all(images[..., 0] == images[..., 1])  # all channels alike
        foreign = images[..., 0] != plain[..., 0]
        moved = foreign.any((1, 2))
        box = foreign.any(0)
        assert np.all(foreign[moved] == box)  # who is its own partner shows no box
        rows, columns = (np.flatnonzero(box.any(axis)) for axis in (1, 0))
        assert box.sum() == len(rows) * len(columns)
        assert all(np.all(np.diff(places) == 1) for places in (rows, columns))
        partners = np.where(moved, np.max(np.where(box, images[..., 0], 0), (1, 2)), range(count))
        assert sorted(partners) == list(range(count))
        weight = 1 - box.mean()
        wanted = weight * labels + (1 - weight) * labels[partners.astype(int)]
        np.testing.assert_allclose(targets, wanted, atol=2 * EPS)
        shares.append(box.mean())
    assert len(set(shares)) > 10


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_cutmix_draws_areas_and_centres_as_the_paper_does(alpha):
    height, width, draws = 8, 16, 3000
    rng = np.random.default_rng(0)
    half = np.stack([height, width]) * np.sqrt(1 - rng.beta(alpha, alpha, (draws, 1)))
    half = half.astype(int) // 2
    centre = rng.integers(0, [height, width], (draws, 2))
    low = np.maximum(centre - half, 0)
    high = np.minimum(centre + half, [height, width])
    expected = [(high - low).prod(1) / (height * width), low[:, 0], high[:, 1]]
    images = jnp.zeros((2, height, width, 1)).at[1].set(1.0)

    def draw(key):
        return cutmix(key, images, jnp.arange(2, dtype=jnp.int32), alpha, classes=2)

    seen, labels = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 2 * draws))
    box = np.asarray(seen[:, 0, :, :, 0]) != 0
    mixed = box.any((1, 2))
    box = box[mixed]
    np.testing.assert_allclose(labels[mixed, 0, 1], box.mean((1, 2)), atol=2 * EPS)
    empty = expected[0] == 0
    found = [box.mean((1, 2)), box.any(2).argmax(1), width - box.any(1)[:, ::-1].argmax(1)]
    for theirs, ours in zip(expected, found, strict=True):
        theirs = theirs[~empty]
        error = (theirs.var() / len(theirs) + ours.var() / len(ours)) ** 0.5
        assert abs(theirs.mean() - ours.mean()) < 5 * error
        assert ours.var() == pytest.approx(theirs.var(), rel=0.25)


@pytest.mark.slow
def test_cutmix_leaves_a_share_of_the_batches_as_they_are():
    images = numbered(4)
    labels = jnp.arange(4, dtype=jnp.int32) % 3

    def draw(key):
        return cutmix(key, images, labels, p=0.25)

    seen, targets = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 1000))
    mixed = np.any(np.asarray(seen) != np.asarray(images), (1, 2, 3, 4))
    # A box of a pixel or less, or the identity for a permutation: fewer than a quarter are mixed.
    assert 0.1 < mixed.mean() < 0.25 + 5 * (0.25 * 0.75 / 1000) ** 0.5
    plain = np.asarray(targets)[~mixed]
    assert np.mean(np.all(plain == np.eye(3)[labels], (1, 2))) > 0.9


def test_cutmix_does_not_see_how_devices_share_the_batch():
    images = numbered(8)
    labels = jnp.arange(8, dtype=jnp.int32) % 3
    seen, targets = jax.jit(cutmix)(jax.random.key(3), images, labels)

    def shared(images, labels):
        return cutmix(jax.random.key(3), images, labels, axis_name="data")

    parts = jax.jit(jax.vmap(shared, axis_name="data"))(
        images.reshape(4, 2, *images.shape[1:]), labels.reshape(4, 2)
    )
    assert np.any(np.asarray(seen) != images)
    np.testing.assert_array_equal(parts[0].reshape(images.shape), seen)
    np.testing.assert_array_equal(parts[1].reshape(targets.shape), targets)


def applied(text, images, step=0, run=9, epoch=0, axis_name=None, index=None):
    """The batch after a pipeline, as a step of a run applies it."""
    operations = resolve(Recipe.of(augment=text)).pipeline(3, axis_name, True, STATISTICS)
    before = batch(images, jnp.arange(len(images), dtype=jnp.int32) % 3) | {
        "epoch": jnp.int32(epoch)
    }
    before |= {} if index is None else {"index": index}
    return augment.apply(operations, before, jax.random.key(step), jax.random.key(run), axis_name)


def same(one, two):
    return np.array_equal(one, two)


@pytest.mark.slow
def test_without_one_operation_the_others_draw_as_before():
    """Whatever stands before or between them: an operation changes by draws of its own what it is
    given.
    """
    images = numbered(64, 6, 6)
    flipped, cropped = (applied(text, images)["image"] for text in ("flip", "crop,padding=2"))
    both = applied("flip+crop,padding=2", images)["image"]
    assert same(both, applied("crop,padding=2", flipped)["image"]) and not same(both, cropped)
    assert same(applied("crop,padding=2+flip", images)["image"], applied("flip", cropped)["image"])
    with_a_hole = applied("flip+cutout,size=2+crop,padding=2", images)["image"]
    assert same(
        with_a_hole, applied("crop,padding=2", applied("cutout,size=2", flipped)["image"])["image"]
    )
    mixed = applied("flip+mixup,alpha=0.4", images)
    assert same(mixed["label"], applied("mixup,alpha=0.4", images)["label"])
    assert same(mixed["image"], applied("mixup,alpha=0.4", flipped)["image"])


def test_an_operation_may_come_twice_and_draws_anew():
    images = numbered(64, 6, 6)
    # As the same draws would make it
    assert not same(applied("flip+flip", images)["image"], images)
    names = [
        operation.name
        for operation in resolve(Recipe.of(augment="flip+crop+flip")).pipeline(3, None, True)
    ]
    assert names == ["flip", "crop", "flip 2"]


def test_draws_come_from_the_step_and_those_of_the_run_do_not():
    images = numbered(64)
    for text in ("flip", "crop,padding=2", "cutout,size=2"):
        first, again, next_step, other_run = (
            applied(text, images, step=step, run=run)["image"]
            for step, run in ((0, 9), (0, 9), (1, 9), (0, 8))
        )
        assert same(first, again) and same(first, other_run) and not same(first, next_step)
    first, next_step, other_run = (
        applied("alternating_flip", images, step=step, run=run)["image"]
        for step, run in ((0, 9), (1, 9), (0, 8))
    )
    assert same(first, next_step) and not same(first, other_run)


def test_an_alternating_flip_is_of_the_image_wherever_it_comes():
    images = numbered(64)
    index = jnp.asarray(np.random.default_rng(0).permutation(1000)[:64], jnp.int32)
    first, second, third = (
        applied("alternating_flip", images, epoch=e, index=index)["image"] for e in range(3)
    )
    assert same(second, first[:, :, ::-1]) and same(third, first)
    turned = np.array([not same(one, two) for one, two in zip(first, images, strict=True)])
    assert abs(turned.mean() - 0.5) < 5 * 0.5 / 64**0.5
    elsewhere = applied("alternating_flip", images[::-1], index=index[::-1])["image"]
    assert same(elsewhere[::-1], first)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["flip+crop,padding=2+cutout,size=2", "mixup,alpha=0.4", "views+flip+crop,padding=2"]
)
def test_a_pipeline_does_not_see_how_devices_share_the_batch(text):
    images = numbered(8)
    whole = applied(text, images)

    def part(images):
        changed = applied(text, images, axis_name="data")
        return changed["image"], changed.get("views", changed["image"][None])

    shared = jax.jit(jax.vmap(part, axis_name="data", out_axes=(0, 1)))
    seen, views = shared(images.reshape(4, 2, *images.shape[1:]))
    np.testing.assert_allclose(seen.reshape(images.shape), whole["image"], rtol=2 * EPS)
    if "views" in whole:
        np.testing.assert_array_equal(views.reshape(whole["views"].shape), whole["views"])


def test_views_are_each_changed_by_draws_of_their_own():
    images = numbered(64, 6, 6)
    plain = applied("views", images)
    assert plain["views"].shape == (2, *images.shape)
    assert same(plain["image"], images) and all(same(view, images) for view in plain["views"])
    text = "flip+crop,padding=2"
    changed = applied(f"views,count=3+{text}", images)
    assert changed["views"].shape == (3, *images.shape)
    assert same(changed["image"], applied(text, images)["image"])  # as without views
    seen = [changed["image"], *changed["views"]]
    assert not any(same(seen[i], seen[j]) for i in range(4) for j in range(i))
    fewer = applied(f"views,count=1+{text}", images)  # each view whatever the others
    assert same(fewer["views"], changed["views"][:1])
    # what comes before is the same in all
    before = applied(f"{text}+views", images)
    assert same(before["image"], changed["image"]) and all(
        same(view, changed["image"]) for view in before["views"]
    )
    assert same(changed["label"], plain["label"]) and set(changed) == {
        "image",
        "label",
        "index",
        "epoch",
        "views",
    }


def test_augmix_makes_views_that_what_follows_changes():
    images = jnp.tile(numbered(8, 6, 6, 1), 3) / 100
    plain = applied("augmix", images)
    assert plain["views"].shape == (2, *images.shape) and same(plain["image"], images)
    followed = applied("augmix+flip", images)
    assert same(followed["image"], applied("flip", images)["image"])
    for views, before in zip(followed["views"], plain["views"], strict=True):
        for view, unturned in zip(views, before, strict=True):
            assert same(view, unturned) or same(view, unturned[:, ::-1])
    assert not same(followed["views"], plain["views"])


def test_only_one_operation_of_a_pipeline_makes_views():
    for text in ("views+augmix", "views+views"):
        with pytest.raises(ValueError, match="it makes views, and there are some already"):
            applied(text, jnp.ones((2, 6, 6, 3)))


def test_views_alternate_each_for_itself():
    images = numbered(64)
    first, second = (
        applied("views+alternating_flip", images, epoch=epoch)["views"] for epoch in (0, 1)
    )
    assert same(second, first[:, :, :, ::-1]) and not same(first[0], first[1])
