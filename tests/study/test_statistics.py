"""Statistics against enumeration, hand values and other implementations; verdicts and what their
intervals say.
"""

import itertools
import math
import re

import numpy as np
import pytest
from scipy import stats as scipy_stats

from cnnlab.errors import InputError
from cnnlab.study import sequential, statistics

ALPHA = 0.05


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


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


# Sizes


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


@pytest.mark.parametrize("n", [2, 8, 40])
def test_the_t_interval_is_that_of_the_ttest(n):
    x = normal(3, n, seed=n)
    wanted = scipy_stats.ttest_1samp(x, 0, axis=-1).confidence_interval(0.9)
    np.testing.assert_allclose(statistics.t_interval(x, 0.9), [wanted.low, wanted.high])
    low, high = statistics.t_interval(np.array([[0.1] * n, [0.0] * n]))
    np.testing.assert_allclose(low, [0.1, 0], rtol=1e-15)
    np.testing.assert_array_equal(low, high)
    assert [float(end) for end in statistics.t_interval([3.0])] == [-math.inf, math.inf]


def test_the_highest_rate_of_what_was_not_seen():
    for n in (1, 8, 24):
        assert statistics.highest_rate(0, n) == pytest.approx(1 - 0.05 ** (1 / n))
    # P(at most 2 of 12) at the bound is 5 %
    bound = statistics.highest_rate(2, 12)
    assert scipy_stats.binom.cdf(2, 12, bound) == pytest.approx(0.05)
    assert statistics.highest_rate(3, 3) == 1


# Verdicts


NOISE = scipy_stats.zscore(normal(16, seed=12), ddof=1)  # mean 0, sd 1
# The margin is 1, the family has seven comparisons.
ROWS = {
    "better by more than the margin": 10 + NOISE,
    "worse by more than the margin": -10 + NOISE,
    "equivalent": 0.3 * NOISE,
    "undecided": 0.5 + 2 * NOISE,
    "better, within the margin": 0.5 + 0.1 * NOISE,
    "worse, within the margin": -0.5 + 0.1 * NOISE,
    "better": 1 + 0.3 * NOISE,
}


def test_verdicts():
    rows = list(ROWS.values())
    got = statistics.compare(rows, margin=1)
    assert [c.words for c in got] == list(ROWS)
    turned = [c.words for c in statistics.compare(rows, margin=1, larger_is_better=False)]
    swapped = {"better": "worse", "worse": "better"}
    wanted = [" ".join(swapped.get(word, word) for word in re.split(r"\b(?=,)| ", words)) for words
              in ROWS]  # fmt: skip
    assert [words.replace(" ,", ",") for words in wanted] == turned
    percent = statistics.compare([100 * row for row in rows], margin=100)
    assert [c.words for c in percent] == list(ROWS)


def test_a_verdict_and_its_interval_never_disagree():
    """Over drawn families of all sizes of effects."""
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(100):
        effects = rng.choice([-3, -1, -0.4, 0, 0.4, 1, 3], (5, 1))
        rows = rng.choice([0.1, 0.3, 1]) * (rng.standard_normal((5, 12)) + effects)
        for c in statistics.compare(rows, margin=0.5):
            seen.add(c.words)
            assert c.low <= c.high
            assert (c.verdict == statistics.BETTER) == (c.p <= ALPHA + 1e-9 and c.low >= 0)
            assert (c.verdict == statistics.WORSE) == (c.p <= ALPHA + 1e-9 and c.high <= 0)
            inside = c.low >= -0.5 and c.high <= 0.5
            differs = c.verdict in (statistics.BETTER, statistics.WORSE)
            assert inside or c.verdict != statistics.EQUIVALENT
            assert (c.extent == statistics.WITHIN) == (inside and differs)
            assert (c.extent == statistics.BEYOND) == (c.low >= 0.5 or c.high <= -0.5)
            assert (c.verdict == statistics.UNDECIDED) == (c.decided == 0)
            assert c.low <= 0 <= c.high or c.decided
            assert (c.expected is None) == (c.decided > 0)
    assert len(seen) == 8  # every word occurs


def test_a_comparison_holds_what_the_functions_return():
    rows = np.array(list(ROWS.values()))
    decided = sequential.decide(rows, 1)
    low, high = sequential.interval(rows, ALPHA / 7)
    for k, c in enumerate(statistics.compare(rows, margin=1)):
        assert (c.n, c.mean, c.median) == (16, rows[k].mean(), np.median(rows[k]))
        assert (c.p, c.p_equivalent) == (decided.p[k], decided.p_equivalent[k])
        assert (c.decided, c.evidence) == (decided.seeds[k], tuple(decided.capital[k]))
        assert c.p_sign_flip == statistics.sign_flip(rows[k])
        assert (c.effect, c.superiority) == (
            statistics.effect_size(rows[k]),
            statistics.superiority(rows[k]),
        )
        if c.verdict == statistics.UNDECIDED:
            assert (c.low, c.high) == (low[k], high[k])
            assert c.expected == sequential.seeds_to_expect(rows[k], 1, 7)
    wide = statistics.compare(rows, 1, comparisons=70)[3]
    assert wide.low < low[3] < high[3] < wide.high


def test_an_interval_ends_where_holm_rejects():
    """Of two, one is clear; for the other 1 / 20 is enough, but not 1 / 40."""
    clear = 10 + NOISE[:8]
    close = np.array([0.9, 1.1, 1.0, 0.7, -0.1, 0.8, 1.2, 0.9])
    low, _ = sequential.interval(close, ALPHA / 2)
    assert low < 0
    alone, both = statistics.compare([close], 3)[0], statistics.compare([clear, close], 3)[1]
    if alone.p <= ALPHA / 2:
        pytest.fail("not close enough")
    assert alone.verdict == both.verdict == statistics.BETTER and both.low == 0


def test_what_is_decided_stays_whatever_comes_later():
    """Seeds that turn cannot make "better" worse, nor "equivalent" a difference."""
    turning = np.concatenate([1 + 0.1 * NOISE[:8], -1 + 0.1 * np.tile(NOISE, 2)[:24]])
    for n in (8, 12, 16, 32):
        (c,) = statistics.compare([turning[:n]], margin=0.1)
        assert (c.verdict, c.decided) == (statistics.BETTER, 8)
        assert 0 <= c.low < c.high
    # Usually better, sometimes collapsed
    rng = np.random.default_rng(0)
    for _ in range(40):
        bad = rng.random(32) < 0.4
        row = np.where(bad, -10 + rng.standard_normal(32), 1 + 0.2 * rng.standard_normal(32))
        whole = statistics.compare([row], margin=0.1)[0]
        if whole.decided:
            before = statistics.compare([row[: whole.decided]], margin=0.1)[0]
            assert (before.verdict, before.p) == (whole.verdict, whole.p)
            assert before.low - 1e-9 <= whole.low <= whole.high <= before.high + 1e-9


def test_no_decision_comes_after_the_last_seed_of_an_arm():
    """Holm decides the close one when the other is decided, which has more seeds."""
    close = np.array([0.9, 1.1, 1.0, 0.7, -0.1, 0.8, 1.2, 0.9])
    late = np.concatenate([np.resize([1.0, -1.0], 6), np.full(14, 1.0)])
    short, long = statistics.compare([close, late], 0.1)
    assert long.decided > 8 and short.decided == 8 == short.n


def test_arms_with_fewer_seeds():
    """What was decided is not trained any further: its numbers are those of its own seeds."""
    rows = [ROWS["better by more than the margin"][:12], ROWS["undecided"]]
    short, long = statistics.compare(rows, margin=1)
    assert (short.n, long.n, len(short.evidence), len(long.evidence)) == (12, 16, 5, 9)
    (alone, _) = statistics.compare([row[:12] for row in rows], margin=1)
    assert short == alone


def test_what_diverged_is_infinitely_bad():
    rows = np.tile(1 + 0.1 * NOISE[:12], (3, 1))
    rows[1, 3] = -np.inf  # the candidate diverged
    rows[2, 3] = np.inf  # the baseline did
    plain, worse, better = statistics.compare(rows, margin=0.1)
    assert (plain.verdict, better.verdict) == (statistics.BETTER, statistics.BETTER)
    assert worse.low == -math.inf and math.isnan(worse.mean) and math.isnan(worse.p_sign_flip)
    assert better.low == pytest.approx(plain.low, abs=0.2) and 0.8 < worse.median < 1.2
    (both,) = statistics.compare([[np.inf, -np.inf] * 5], margin=0.1)
    assert (both.verdict, both.p) == (statistics.UNDECIDED, 1.0)


@pytest.mark.parametrize(("m", "n"), [(6, 7), (1, 1), (12, 9)])
def test_too_few_seeds_decide_nothing(m, n):
    for d in (np.full((m, n), 100.0), np.zeros((m, n)), 1e-6 * normal(m, n)):
        for c in statistics.compare(d, margin=1):
            assert c.verdict == statistics.UNDECIDED and c.decided == 0


def test_no_comparison_and_constant_ones():
    assert statistics.compare(np.empty((0, 8)), 1) == []
    zero, plus = statistics.compare([[0.0] * 8, [0.1] * 8], 1)
    assert (zero.words, zero.effect) == ("equivalent", 0) and zero.p > 1 - 1e-12
    assert zero.low == pytest.approx(0, abs=1e-9) == zero.high
    assert (plus.words, plus.effect) == ("better, within the margin", math.inf)


@pytest.mark.parametrize("values", [[[1.0, math.nan]], np.empty((2, 0)), [1.0, 2.0]])
def test_what_cannot_be_compared(values):
    with pytest.raises(InputError):
        statistics.compare(values, 1)


def test_what_cannot_be_asked():
    for margin in (0, -1, math.nan, math.inf):
        with pytest.raises(InputError, match="margin"):
            statistics.compare([[1.0, 2.0]], margin)
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
