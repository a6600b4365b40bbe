"""Means over seeds and images: by hand, and against effects whose size is known."""

import math
import time

import numpy as np
import pytest
from scipy import stats

from cnnlab.errors import InputError
from cnnlab.study import statistics
from cnnlab.study.crossed import crossed_mean

TABLES = 1_500
# Three standard errors of a share of 95 %, and what is lost to approximate degrees of freedom
WITHIN = 3 * math.sqrt(0.95 * 0.05 / TABLES) + 0.005


def effects(rng, seeds, images, sizes):
    """A table of crossed normal effects of seeds, images and both, with mean 0."""
    of_seeds, of_images, of_both = sizes
    table = of_both * rng.standard_normal((seeds, images))
    table += of_seeds * rng.standard_normal((seeds, 1))
    return table + of_images * rng.standard_normal(images)


def test_a_small_table_by_hand():
    # Means of the seeds 1 and 0, of the images 1, 1/2, 0; residuals 0, +-1/2, +-1/2.
    # MS_S = 3 * 1/2, MS_I = 2 * 1/4, MS_E = 4 * 1/4 / 2.
    found = crossed_mean(np.array([[1, 1, 1], [1, 0, -1]]))
    assert (found.mean, found.seeds, found.images, found.left_out) == (0.5, 2, 3, 0)
    assert (found.of_seeds, found.of_images, found.of_both) == pytest.approx((1 / 6, 0, 1 / 12))
    assert found.variance == pytest.approx(1.5 / 6) and found.freedom == 1
    half = stats.t.isf(0.025, 1) * 0.5
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half))


def test_images_that_differ_by_hand():
    # Means of the seeds 1/2 and 1/2, of the images 1 and 0; residuals 0. Only images count.
    images = crossed_mean(np.array([[1, 0], [1, 0]]))
    assert (images.of_seeds, images.of_images, images.of_both) == (0, 0.25, 0)
    assert images.freedom == 1
    # MS_S = 2 * 1/8, MS_I = 2 * 9/8, MS_E = 4 * 1/16; V = MS_I.
    mixed = crossed_mean(np.array([[1, 0], [2, 0]]))
    assert (mixed.of_seeds, mixed.of_images, mixed.of_both) == pytest.approx((0, 0.5, 1 / 16))
    assert mixed.freedom == pytest.approx(2.25**2 / (0.25**2 + 2.25**2 + 0.25**2))


@pytest.mark.parametrize(
    ("seeds", "images", "sizes"),
    [
        (8, 40, (0.3, 0.5, 1.0)),
        (8, 400, (0.05, 1.0, 1.0)),  # the images dominate
        (8, 200, (0.3, 0.0, 1.0)),  # the seeds do
        (8, 200, (0.0, 0.0, 1.0)),  # neither
    ],
)
def test_the_interval_covers_new_seeds_and_new_images(seeds, images, sizes):
    rng = np.random.default_rng(images)
    found = [crossed_mean(effects(rng, seeds, images, sizes)) for _ in range(TABLES)]
    covered = np.mean([c.low <= 0 <= c.high for c in found])
    assert covered == pytest.approx(0.95, abs=WITHIN)
    of_seeds, of_images, of_both = np.square(sizes) / [seeds, images, seeds * images]
    if of_seeds and of_images:
        parts = np.mean([(c.of_seeds, c.of_images, c.of_both) for c in found], 0)
        np.testing.assert_allclose(parts, [of_seeds, of_images, of_both], rtol=0.1)


def test_an_interval_over_seeds_alone_misses_new_images():
    """The images are drawn anew for each table, as another test set would be."""
    rng = np.random.default_rng(0)
    tables = [effects(rng, 8, 400, (0.05, 1.0, 1.0)) for _ in range(TABLES)]
    low, high = statistics.t_interval(np.stack([table.mean(1) for table in tables]))
    assert np.mean((low <= 0) & (high >= 0)) < 0.85


def test_differences_of_hits_are_covered():
    """An arm and its baseline are right where an ability of seed, image and both is above 0; the
    baseline shares half of the variance of each. P(right) = Phi(a / sd) is known.
    """
    rng = np.random.default_rng(1)
    sizes, abilities = np.array([0.1, 1.0, 0.6]), (1.0, 0.8)
    truth = np.subtract(*stats.norm.cdf(np.array(abilities) / np.linalg.norm(sizes)))
    covered = 0
    for _ in range(TABLES):
        shared = effects(rng, 8, 200, sizes * np.sqrt(0.5))
        arm, baseline = (
            a + shared + effects(rng, 8, 200, sizes * np.sqrt(0.5)) > 0 for a in abilities
        )
        found = crossed_mean(arm.astype(np.int8) - baseline.astype(np.int8))
        covered += found.low <= truth <= found.high
    assert covered / TABLES == pytest.approx(0.95, abs=WITHIN)


def test_parts_add_up_to_the_variance_and_never_below_that_of_the_seeds():
    rng = np.random.default_rng(2)
    for _ in range(200):
        h = rng.integers(-1, 2, (rng.integers(2, 6), rng.integers(2, 9)))
        found = crossed_mean(h)
        assert min(found.of_seeds, found.of_images, found.of_both) >= 0
        assert found.variance >= h.mean(1).var(ddof=1) / len(h) - 1e-12
        half = stats.t.isf(0.025, found.freedom) * math.sqrt(found.variance)
        assert found.high - found.mean == pytest.approx(half)
        doubled = crossed_mean(2 * h, confidence=0.5)
        assert doubled.variance == pytest.approx(4 * found.variance)


def test_results_that_are_all_equal_are_sure():
    for value in (0, 1):
        sure = crossed_mean(np.full((4, 10), value))
        assert (sure.mean, sure.low, sure.high, sure.variance) == (value, value, value, 0)


@pytest.mark.parametrize("shape", [(1, 10), (10, 1), (1, 1)])
def test_one_seed_or_one_image_says_nothing_of_others(shape):
    found = crossed_mean(np.ones(shape))
    assert found.mean == 1
    numbers = (found.low, found.high, found.freedom, found.of_seeds, found.of_images, found.of_both)
    assert np.isnan([*numbers, found.variance]).all()


def test_seeds_that_diverged_are_left_out_and_counted():
    rng = np.random.default_rng(3)
    h = rng.integers(-1, 2, (6, 30)).astype(float)
    whole = crossed_mean(h[[0, 2, 3, 5]])
    h[[1, 4]] = np.nan
    found = crossed_mean(h)
    assert (found.seeds, found.left_out, whole.left_out) == (4, 2, 0)
    assert (found.mean, found.low, found.of_both) == (whole.mean, whole.low, whole.of_both)
    none = crossed_mean(np.full((3, 5), np.nan))
    assert (none.seeds, none.left_out) == (0, 3) and math.isnan(none.mean)


def test_what_is_no_table_is_refused():
    for shape in ((4,), (4, 0), (2, 3, 4)):
        with pytest.raises(InputError, match="seeds, images"):
            crossed_mean(np.zeros(shape))


def test_ten_thousand_images_take_no_time():
    h = np.random.default_rng(4).integers(-1, 2, (32, 10_000))
    start = time.perf_counter()
    for _ in range(6):
        crossed_mean(h)
    assert time.perf_counter() - start < 1
