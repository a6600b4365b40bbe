"""Statistics against enumeration, hand values and other implementations; and their honesty, by
simulation.
"""

import itertools
import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats as scipy_stats

from cnnlab.errors import InputError
from cnnlab.study import statistics

ALPHA = 0.05
STUDIES = 2_000


def most(rate, studies=STUDIES):
    """The largest share of studies that a true rate explains: 1.96 binomial standard errors above
    it.
    """
    return rate + 1.96 * math.sqrt(rate * (1 - rate) / studies)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def families(studies, m, n, seed, noise="normal"):
    """Differences float[studies, m, n] without an effect: m candidates minus one baseline that all
    share.
    """
    rng = np.random.default_rng(seed)
    drawn = (
        rng.standard_normal((studies, m + 1, n))
        if noise == "normal"
        else rng.standard_t(3, (studies, m + 1, n))
    )
    return drawn[:, 1:] - drawn[:, :1]


def enumerated(differences):
    """Sign-flip p-value by its definition."""
    d = [float(v) for v in differences]
    sums = [
        math.fsum(s * v for s, v in zip(signs, d, strict=True))
        for signs in itertools.product((1, -1), repeat=len(d))
    ]
    reach = abs(math.fsum(d)) - 1e-12 * sum(map(abs, d))
    return sum(abs(total) >= reach for total in sums) / len(sums)


# Sign flips


@pytest.mark.parametrize("n", [2, 5, 6, 7, 8])
def test_sign_flip_is_the_enumeration(n):
    d = normal(6, n, seed=n) + np.array([0, 0.5, 1, 2, -1, -2])[:, None]
    assert statistics.sign_flip(d).tolist() == [enumerated(row) for row in d]


def test_sign_flip_by_hand():
    # +-1 +-2 +-3: |sum| is 6 twice, 4 twice, 2 twice, 0 twice.
    assert statistics.sign_flip([[1, 2, 3], [-1, 2, 3], [1, -2, 3], [1, 2, -3]]).tolist() == [
        0.25,
        0.5,
        0.75,
        1,
    ]
    assert statistics.sign_flip([1.0] * 8) == 2**-7
    assert statistics.sign_flip([0.0] * 8) == 1
    assert statistics.sign_flip([[3.0], [0.0]]).tolist() == [1, 1]


def test_sign_flip_properties():
    d = normal(4, 3, 9, seed=1) + 0.7
    p = statistics.sign_flip(d)
    assert p.shape == (4, 3)
    assert (p >= 2**-8).all() and p.min() < 0.05
    np.testing.assert_array_equal(statistics.sign_flip(-d), p)
    np.testing.assert_array_equal(statistics.sign_flip(1e-5 * d), p)
    np.testing.assert_array_equal(statistics.sign_flip(d[..., ::-1]), p)
    one_by_one = [[statistics.sign_flip(row).item() for row in rows] for rows in d]
    assert p.tolist() == one_by_one


@pytest.mark.parametrize(
    ("images", "lowest", "largest"), [(1_024, -10, 10), (10_000, -10, 10), (10_000, 1_000, 1_024)]
)
def test_sign_flip_ties_survive_floating_point(images, lowest, largest):
    """Counts out of N tie; the differences of shares that they come from have to tie as well. (Sums
    of 1,024ths have ten places and end in 5: the worst case for rounding to nine.)"""
    rng = np.random.default_rng(2)
    counts = rng.integers(lowest, largest, (500, 8)) * rng.choice([-1, 1], (500, 8))
    counts[:, 0] = largest
    baseline = rng.integers(4_000, 6_000, counts.shape)
    wanted = [enumerated(row) for row in counts]
    assert statistics.sign_flip((baseline + counts) / images - baseline / images).tolist() == wanted


def test_sign_flip_with_random_flips():
    d = normal(4, 20, seed=3) + np.array([0, 0.3, 0.6, -2])[:, None]
    p = statistics.sign_flip(d)
    np.testing.assert_array_equal(statistics.sign_flip(d), p)
    signs = 1 - 2 * ((np.arange(2**20)[:, None] >> np.arange(20)) & 1).astype(np.int8)
    exact = np.array([np.mean(np.abs(signs @ row) >= abs(row.sum()) - 1e-9) for row in d])
    np.testing.assert_allclose(p, exact, atol=4 * math.sqrt(0.25 / statistics.FLIPS) * 2)
    assert p[3] == pytest.approx(2 / (statistics.FLIPS + 1))  # never 0


# Holm, TOST, sizes


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04: 4 * .01, 3 * .02, 2 * .03, and .04 raised to .06.
    np.testing.assert_allclose(statistics.holm([0.02, 0.04, 0.01, 0.03]), [0.06, 0.06, 0.04, 0.06])
    np.testing.assert_allclose(statistics.holm([0.5, 0.01, 0.9]), [1, 0.03, 1])
    np.testing.assert_allclose(
        statistics.holm([[0.2, 0.2], [0.01, 0.6]]), [[0.4, 0.4], [0.02, 0.6]]
    )
    assert statistics.holm([0.3]) == 0.3 and statistics.holm([]).shape == (0,)


def test_holm_properties():
    p = np.random.default_rng(0).uniform(0, 1, (300, 6)) ** 3
    adjusted = statistics.holm(p)
    assert (adjusted >= p).all() and (adjusted <= np.minimum(1, 6 * p)).all()
    np.testing.assert_allclose(adjusted.min(-1), np.minimum(1, 6 * p.min(-1)))
    order = np.argsort(p, -1)
    assert (np.diff(np.take_along_axis(adjusted, order, -1)) >= 0).all()
    np.testing.assert_array_equal(statistics.holm(p[:, ::-1]), adjusted[:, ::-1])
    # Holm's procedure as it is told: from the smallest on, reject while p_(k) <= alpha / (m - k +
    # 1).
    for row, got in zip(p, adjusted, strict=True):
        rejected = set()
        for step, k in enumerate(np.argsort(row)):
            if row[k] > ALPHA / (6 - step):
                break
            rejected.add(int(k))
        assert set(np.flatnonzero(got <= ALPHA).tolist()) == rejected


def test_equivalence_by_hand():
    d = [0.01, -0.02, 0.03, 0.00, -0.01, 0.02]
    n = 6
    mean = 0.005
    sd = math.sqrt(sum((v - 0.005) ** 2 for v in d) / 5)
    for margin in (0.004, 0.01, 0.03):
        # Against mean <= -margin
        lower = scipy_stats.t.sf((mean + margin) / (sd / math.sqrt(n)), n - 1)
        # Against mean >= margin
        upper = scipy_stats.t.cdf((mean - margin) / (sd / math.sqrt(n)), n - 1)
        assert statistics.equivalence(d, margin) == pytest.approx(max(lower, upper), rel=1e-12)


def test_equivalence_is_two_ttests():
    d = normal(5, 4, 9, seed=4)
    sides = [
        scipy_stats.ttest_1samp(d, bound, axis=-1, alternative=way).pvalue
        for bound, way in ((-0.8, "greater"), (0.8, "less"))
    ]
    p = statistics.equivalence(d, 0.8)
    np.testing.assert_allclose(p, np.maximum(*sides), rtol=1e-9)
    np.testing.assert_allclose(statistics.equivalence(-100 * d, 80), p)
    # The mean is within the margin at level alpha exactly if the interval of confidence 1 - 2 alpha
    # is.
    low, high = statistics.interval(d, 1 - 2 * ALPHA)
    np.testing.assert_array_equal(p < ALPHA, (low > -0.8) & (high < 0.8))


def test_equivalence_of_constants():
    assert statistics.equivalence([[0.0] * 5, [0.1] * 5, [0.5] * 5, [-0.7] * 5], 0.5).tolist() == [
        0,
        0,
        1,
        1,
    ]
    assert statistics.equivalence([[0.0]], 0.5).tolist() == [1]


def test_sizes():
    d = np.array([[1.0, 2, 3], [0, 0, 0], [2, 2, 2], [-0.1, -0.1, -0.1], [-1, 0, 1]])
    assert statistics.effect_size(d).tolist() == [2, 0, math.inf, -math.inf, 0]
    assert statistics.superiority(d).tolist() == [1, 0.5, 1, 0, 0.5]
    assert (
        statistics.superiority([3.0, -1, 0, 0]) == 0.5
        and statistics.superiority([3.0, 1, 0, -1]) == 0.625
    )
    assert np.isnan(statistics.effect_size([1.0])) and statistics.superiority([1.0]) == 1
    # 0.1, but for the last bits
    noisy = np.array([0.7, 0.2, 0.9]) + 0.1 - np.array([0.7, 0.2, 0.9])
    assert np.ptp(noisy) > 0 and statistics.effect_size(noisy) == math.inf
    x = normal(50, 7, seed=5)
    np.testing.assert_allclose(statistics.effect_size(-3 * x), -statistics.effect_size(x))
    np.testing.assert_allclose(statistics.superiority(-x), 1 - statistics.superiority(x))


# Intervals


def test_interval_is_ttest_below_and_bca_from_the_switch_on():
    x = normal(3, statistics.BCA_FROM - 1, seed=6)
    wanted = scipy_stats.ttest_1samp(x, 0, axis=-1).confidence_interval(0.9)
    np.testing.assert_allclose(statistics.interval(x, 0.9), [wanted.low, wanted.high])
    x = np.random.default_rng(7).exponential(size=statistics.BCA_FROM)
    low, high = statistics.interval(x)
    other = scipy_stats.bootstrap((x,), np.mean, rng=np.random.default_rng(8)).confidence_interval
    assert (low, high) == pytest.approx(other, rel=0.02)
    assert high - x.mean() > 1.05 * (x.mean() - low)  # BCa follows the skew
    assert statistics.interval(x) == (low, high)


def test_interval_moves_and_scales_with_the_values():
    for n in (2, 8, statistics.BCA_FROM):
        x = normal(2, 3, n, seed=n)
        low, high = statistics.interval(x)
        assert low.shape == high.shape == (2, 3)
        np.testing.assert_allclose(
            statistics.interval(5 + 1e-3 * x), [5 + 1e-3 * low, 5 + 1e-3 * high]
        )
        narrower = statistics.interval(x, 0.8)
        assert (low < narrower[0]).all() and (narrower[1] < high).all()


@pytest.mark.parametrize("n", [1, 2, 8, statistics.BCA_FROM])
def test_interval_of_constants(n):
    mixed = np.concatenate([normal(1, n), np.full((1, n), 0.1), np.zeros((1, n))])
    low, high = statistics.interval(mixed)
    if n == 1:
        assert (low == -math.inf).all() and (high == math.inf).all()
    else:
        np.testing.assert_allclose(low[1:], [0.1, 0], rtol=1e-15)
        np.testing.assert_array_equal(low[1:], high[1:])
        assert low[0] < mixed[0].mean() < high[0]


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 16, 20, 32])
def test_interval_covers(n):
    """0.93 to 0.97 of 4,000 studies; the standard error is 0.0035."""
    low, high = statistics.interval(normal(4_000, n, seed=100 + n))
    assert 0.93 <= np.mean((low <= 0) & (high >= 0)) <= 0.97


# Power


def test_seeds_needed():
    assert [statistics.seeds_needed(m) for m in (1, 6)] == [6, 8]
    for alpha in (0.05, 0.01, 2**-6):
        for m in range(1, 40):
            n = statistics.seeds_needed(m, alpha)
            assert n == math.ceil(1 + math.log2(m / alpha))
            clearest = [statistics.sign_flip([1.0] * seeds) for seeds in (n - 1, n)]
            assert m * clearest[0] > alpha >= m * clearest[1]


def test_detectable_by_hand():
    # At n = seeds_needed all n differences have to agree in sign: power Phi(effect)^n.
    for n, m in ((6, 1), (8, 6), (7, 3)):
        effect = scipy_stats.norm.ppf(0.8 ** (1 / n))
        assert statistics.detectable(n, m) == pytest.approx(effect, rel=0.02)
    assert statistics.detectable(5) == statistics.detectable(7, 4) == math.inf
    critical = scipy_stats.t.ppf(1 - ALPHA / 12, 29)
    found = statistics.detectable(30, 6) * math.sqrt(30)
    assert scipy_stats.nct.sf(critical, 29, found) == pytest.approx(0.8, abs=1e-6)


def test_detectable_shrinks_with_seeds_and_grows_with_comparisons():
    by_seeds = [statistics.detectable(n, 6) for n in range(7, 30)]
    assert by_seeds[0] == math.inf
    assert all(a > b for a, b in itertools.pairwise(by_seeds))
    for n in (10, 12, 13, 25):
        assert all(
            a < b for a, b in itertools.pairwise(statistics.detectable(n, m) for m in (1, 3, 6, 12))
        )
        assert (
            statistics.detectable(n, 1, power=0.5)
            < statistics.detectable(n, 1)
            < statistics.detectable(n, 1, power=0.95)
        )
    assert statistics.detectable(9, 1, alpha=0.01) == statistics.detectable(9, 5, alpha=0.05)


def by_matrix(differences, seed=0):
    """Sign-flip p-values, float[studies, n], as a product of matrices: all flips to n = 12, else
    20,000 random ones.
    """
    n = differences.shape[-1]
    if n <= 12:
        flips = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        extra = 0
    else:
        flips = np.random.default_rng(seed).choice([-1, 1], (20_000, n))
        extra = 1
    p = []
    for part in np.array_split(differences, math.ceil(len(differences) / 200)):
        sums, observed = np.abs(part @ flips.T.astype(float)), np.abs(part.sum(-1))
        p.append((np.sum(sums >= observed[:, None] - 1e-9, -1) + extra) / (len(flips) + extra))
    return np.concatenate(p)


@pytest.mark.parametrize(("n", "m"), [(8, 1), (8, 6), (12, 3), (20, 6)])
def test_an_effect_that_is_detectable_is_found_with_power_080(n, m):
    """Sampling error of the test (1.96 standard errors of 4,000 studies), 0.012 for the simulation
    in `detectable` (1.96 standard errors of its 4,000) and 0.01 for t in place of flips above n =
    12."""
    studies = 4_000
    d = normal(studies, n, seed=200 + n + m) + statistics.detectable(n, m)
    p = by_matrix(d)
    np.testing.assert_allclose(p[:3], statistics.sign_flip(d[:3]), atol=0.003 if n > 12 else 0)
    tolerance = (
        1.96 * math.sqrt(0.16 / studies) + 0.012 + (0.01 if n > statistics.SIMULATED_TO else 0)
    )
    assert np.mean(p <= ALPHA / m) == pytest.approx(0.8, abs=tolerance)


def test_compare_finds_a_detectable_effect():
    """One candidate of six differs, by as much as `detectable` says; 0.02 for what Holm gains over
    Bonferroni.
    """
    studies = 8_000
    d = families(studies, 6, 8, seed=9) / math.sqrt(2)  # sd 1
    d[:, 2] -= statistics.detectable(8, 6)
    verdict = statistics.verdicts(d, 0.1)["verdict"]
    power = np.mean(verdict[:, 2] == statistics.WORSE)
    assert power == pytest.approx(0.8, abs=1.96 * math.sqrt(0.16 / studies) + 0.012 + 0.02)
    assert not (verdict[:, 2] == statistics.BETTER).any()


# Honesty: how often a verdict is wrong


@pytest.mark.parametrize(("noise", "n"), [("normal", 8), ("t3", 8), ("normal", 10)])
def test_false_differences(noise, n):
    verdict = statistics.verdicts(families(STUDIES, 6, n, seed=n, noise=noise), 0.5)["verdict"]
    wrong = np.isin(verdict, (statistics.BETTER, statistics.WORSE)).any(-1).mean()
    assert wrong <= most(ALPHA)


def test_false_differences_of_differences_with_heavy_tails():
    """Independent t3 differences, where six comparisons have the most chances: without Holm this is
    about 0.2.
    """
    d = np.random.default_rng(10).standard_t(3, (STUDIES, 6, 10))
    verdict = statistics.verdicts(d, 0.5)["verdict"]
    wrong = np.isin(verdict, (statistics.BETTER, statistics.WORSE)).any(-1).mean()
    assert 0.02 <= wrong <= most(ALPHA)  # honest, and not by never finding anything


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("m", [1, 6])
def test_false_equivalence(side, m):
    margin = 1.5  # sd 1: wide enough for the other test of the two not to matter
    d = families(STUDIES, m, 9, seed=11) / math.sqrt(2) + side * margin
    result = statistics.verdicts(d, margin)
    assert np.mean(result["verdict"] == statistics.EQUIVALENT) <= ALPHA
    wrong = (result["p_equivalent"] <= ALPHA).any(-1).mean()
    assert wrong <= most(ALPHA)
    assert m > 1 or wrong >= 0.03


# Verdicts


NOISE = scipy_stats.zscore(normal(10, seed=12), ddof=1)  # mean 0, sd 1
# At n = 10 and m = 5 an effect of 1.4 sd is detectable. The margin is 1.
ROWS = {
    statistics.BETTER: 10 + NOISE,
    statistics.WORSE: -10 + NOISE,
    statistics.EQUIVALENT: 0.5 * NOISE,
    statistics.UNDECIDED: 0.5 + 0.7 * NOISE,  # detectable 0.98
    statistics.UNDERPOWERED: 0.5 + 0.75 * NOISE,  # detectable 1.05
}


def test_verdicts():
    d = np.array(list(ROWS.values()))
    got = statistics.compare(d, margin=1)
    assert [c.verdict for c in got] == list(ROWS)
    turned = statistics.compare(d, margin=1, larger_is_better=False)
    assert [c.verdict for c in turned] == [statistics.WORSE, statistics.BETTER, *list(ROWS)[2:]]
    for a, b in zip(got, turned, strict=True):
        assert {**asdict(a), "verdict": ""} == {**asdict(b), "verdict": ""}
    percent = statistics.compare(100 * d, margin=100)
    assert [c.verdict for c in percent] == list(ROWS)


def test_a_comparison_holds_what_the_functions_return():
    d = np.array(list(ROWS.values()))
    low, high = statistics.interval(d)
    p = statistics.holm(statistics.sign_flip(d))
    p_equivalent = statistics.holm(statistics.equivalence(d, 1))
    for k, c in enumerate(statistics.compare(d, margin=1)):
        assert (c.n, c.method, c.mean, c.low, c.high) == (10, "t", d[k].mean(), low[k], high[k])
        assert (c.p, c.p_holm, c.p_equivalent) == (
            statistics.sign_flip(d[k]),
            p[k],
            p_equivalent[k],
        )
        assert (c.effect, c.superiority) == (
            statistics.effect_size(d[k]),
            statistics.superiority(d[k]),
        )
        assert c.detectable == pytest.approx(statistics.detectable(10, 5) * d[k].std(ddof=1))
    assert p[0] == 5 * 2**-9
    assert statistics.compare(normal(1, statistics.BCA_FROM), 1)[0].method == "BCa"
    narrow = statistics.compare(d, 1, alpha=0.2)[0]
    wide = statistics.compare(d, 1, alpha=0.01)[0]
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(("m", "n"), [(6, 7), (1, 5), (1, 1), (3, 2)])
def test_too_few_seeds_never_say_more_than_that(m, n):
    for d in (np.full((m, n), 100.0), np.zeros((m, n)), 1e-6 * normal(m, n)):
        for c in statistics.compare(d, margin=1):
            assert c.verdict == statistics.UNDERPOWERED and c.detectable == math.inf


def test_a_significant_difference_within_the_margin_is_a_difference():
    (c,) = statistics.compare([0.1 + 0.01 * NOISE], margin=1)
    assert c.p_equivalent < ALPHA and c.verdict == statistics.BETTER


def test_no_comparison_and_constant_ones():
    assert statistics.compare(np.empty((0, 8)), 1) == []
    zero, plus = statistics.compare([[0.0] * 8, [0.1] * 8], 1)
    assert (zero.verdict, zero.p, zero.effect, zero.low, zero.high) == (
        statistics.EQUIVALENT,
        1,
        0,
        0,
        0,
    )
    assert (plus.verdict, plus.effect, plus.detectable) == (statistics.BETTER, math.inf, 0)


@pytest.mark.parametrize(
    "values", [[[1.0, math.nan]], [[math.inf, 1.0]], np.empty((2, 0)), [1.0, 2.0], 3.0]
)
def test_what_cannot_be_compared(values):
    with pytest.raises(InputError):
        statistics.compare(values, 1)


def test_what_cannot_be_asked():
    for margin in (0, -1, math.nan, math.inf):
        with pytest.raises(InputError, match="margin"):
            statistics.equivalence([1.0, 2.0], margin)
    for comparisons, alpha in ((0, 0.05), (1, 0), (1, 1)):
        with pytest.raises(InputError):
            statistics.seeds_needed(comparisons, alpha)
    for accuracies, images in (([0.5], 100), ([[0.5, 0.6]], 100), ([0.5, 0.6], 1)):
        with pytest.raises(InputError):
            statistics.distribution_sd(np.array(accuracies), 0.1, images)


# The variance that test images add


@pytest.mark.parametrize(("spread", "images"), [(0.05, 100), (0.02, 400), (0.2, 2)])
def test_distribution_sd_finds_the_truth(spread, images):
    """Seeds of accuracy 0.7 +- spread over the whole distribution, by simulation: the images differ
    in difficulty, a seed's share moves them all, and each answer is a draw of its own. 600 seeds,
    the mean of 400 test sets."""
    rng = np.random.default_rng(images)
    estimates, naive = [], []
    for _ in range(400):
        shift = rng.choice([-spread, spread], (600, 1))
        right = rng.random((600, images)) < rng.choice([0.6, 0.8], images) + shift
        accuracies = right.mean(1)
        estimates.append(
            statistics.distribution_sd(accuracies, right.var(0, ddof=1).mean(), images) ** 2
        )
        naive.append(accuracies.var(ddof=1))
    error = 3 * np.std(estimates) / math.sqrt(len(estimates))
    assert np.mean(estimates) == pytest.approx(spread**2, abs=error)
    assert abs(np.mean(naive) - spread**2) > 3 * error  # the correction matters


def test_distribution_sd_of_pure_noise_is_nothing():
    """Every seed has the same accuracy over the distribution; on 100 images it looks like a sd of
    0.046.
    """
    right = np.random.default_rng(13).random((2_000, 100)) < 0.7
    accuracies = right.mean(1)
    assert accuracies.std(ddof=1) == pytest.approx(0.046, abs=0.002)
    assert statistics.distribution_sd(accuracies, right.var(0, ddof=1).mean(), 100) < 0.012


def test_distribution_sd_by_hand():
    # Seeds right on 2, 1, 0 of 2 images, both the same: Var(accuracy) = 1/4, each Var(c) = 1/3.
    right = np.array([[1, 1], [1, 0], [0, 0]])
    assert right.mean(1).var(ddof=1) == 0.25
    got = statistics.distribution_sd(right.mean(1), right.var(0, ddof=1).mean(), 2)
    assert got == pytest.approx(math.sqrt(2 * (1 / 4 - 1 / 6)))
    assert got**2 == pytest.approx(np.cov(right.T)[0, 1])  # with two images: their covariance
    assert statistics.distribution_sd(np.array([0.5, 0.5]), 0.25, 100) == 0
