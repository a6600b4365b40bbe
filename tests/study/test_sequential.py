"""Evidence along the seeds: a fair game, the same numbers as its definition, and few false
verdicts.
"""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cnnlab.errors import InputError
from cnnlab.study import sequential

ALPHA = 0.05
WEIGHTED_SCALES = ((0.25, 0.15), (0.5, 0.15), (1, 0.2), (2, 0.15), (4, 0.1), (math.inf, 0.25))


def kinds_of_differences(n, seed):
    """Rows float[6, n]: plain, tied, one infinite, nothing at first, many diverged, an outlier."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((6, n)) + rng.choice([0.0, 0.5, 2.0], (6, 1))
    rows[1] = np.round(rows[1])
    rows[2, rng.integers(n)] = np.inf
    rows[3, :8] = 0
    rows[4] = np.where(rng.random(n) < 0.3, -np.inf, rows[4])
    rows[5, 3] = 50
    return rows


def capital_by_definition(differences, centre, limit):
    """The capital after each seed, one seed and one strategy at a time."""
    distances = [d - centre for d in differences]
    sizes = sorted(abs(y) for y in distances[:8] if math.isfinite(y))
    middle = len(sizes) // 2
    unit = (sizes[middle] + sizes[~middle]) / 2 if sizes else 0.0
    unit = unit or (sizes[-1] if sizes else 0.0)
    later = [abs(y) for y in distances[8:] if y and math.isfinite(y)]
    unit = unit or (later[0] if later else 1.0)
    z = [max(-2.0, min(2.0, y / unit)) for y in distances]

    def share(scale, value):
        return math.copysign(value != 0, value) if scale == math.inf else math.tanh(scale * value)

    def total(values):
        both = 0.0
        for scale, weight in WEIGHTED_SCALES:
            up = math.prod(1 + share(scale, value) for value in values)
            down = math.prod(1 - share(scale, value) for value in values)
            both += weight * (up + down) / 2
        return both

    possible = [
        total([sign * abs(value) for sign, value in zip(signs, z[:8], strict=True)])
        for signs in itertools.product((1, -1), repeat=8)
    ]
    low, high = 1.0, 1e6
    for _ in range(200):
        factor = math.sqrt(low * high)
        mean = math.fsum(min(limit, factor * value) for value in possible) / 256
        low, high = (low, factor) if mean > 1 else (factor, high)
    capital = [min(limit, low * total(z[:8]))]
    for n in range(9, len(z) + 1):
        gain = total(z[:n]) / total(z[: n - 1]) - 1
        now = capital[-1]
        if now >= limit * (1 - 1e-12):
            capital.append(now)
            continue
        share_bet = min(1.0, (limit - now) / (now * abs(gain))) if gain and now else 1.0
        capital.append(now * (1 + share_bet * gain))
    return capital


@pytest.mark.parametrize(
    ("n", "centre", "limit"), [(8, 0.0, 20), (9, -1.0, 20), (17, 0.3, 120), (21, 0.0, 1000)]
)
def test_the_capital_is_that_of_the_definition(n, centre, limit):
    rows = kinds_of_differences(n, seed=n)
    wanted = [capital_by_definition(row, centre, limit) for row in rows]
    # Products of up to 21 factors, rounded each: 1e-13
    np.testing.assert_allclose(
        sequential.evidence(rows, centre, limit), wanted, rtol=1e-12, atol=1e-12
    )


def test_the_game_is_fair():
    """Over all signs of the same sizes the capital averages 1 at every look, and never leaves [0,
    limit].
    """
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=10)))
    sizes = np.abs(kinds_of_differences(10, seed=3))[:, None]
    capital = sequential.evidence(np.where(sizes > 0, sizes * signs, 0.0), 0.0, 60.0)
    np.testing.assert_allclose(capital.mean(1), 1, atol=1e-12)
    assert capital.min() >= 0 and capital.max() <= 60
    # Ville: the share that ever reaches the limit
    assert np.all(np.mean(capital.max(-1) >= 60 * (1 - 1e-9), 1) <= 1 / 60)


def test_by_hand():
    """Eight equal differences: two of 256 patterns of signs are as extreme."""
    equal = np.full(8, 0.3)
    assert sequential.p_value(equal) == 1 / 20
    # Nothing is bet on
    np.testing.assert_allclose(sequential.evidence(np.zeros(12)), np.ones(5), rtol=1e-15)
    assert sequential.p_value(equal[:7]) == 1 and sequential.evidence(equal[:7]).shape == (0,)
    # 2 patterns, as they have the same capital, get 128 each if all others get nothing
    assert 60 < sequential.evidence(equal, 0.0, 1e6)[0] < 128
    # The limit is never exceeded, and kept once it is reached
    rows = np.concatenate([equal, -equal])
    assert sequential.evidence(rows)[0] == sequential.evidence(rows)[-1] == 20
    # Differences as small as rounding are none
    small = sequential.p_value(np.full(8, 1e-12), tolerance=np.full(8, 1e-9))
    assert small > 1 - 1e-12


def test_no_seed_counts_for_more_than_two_typical_differences():
    rows = np.tile([0.9, 1.1, 1.0, 1.2, 0.8, 1.0, 1.1, 0.9, -2.1], (3, 1))
    rows[1, -1], rows[2, -1] = -1e6, -np.inf
    capital = sequential.evidence(rows, 0.0, 1000.0)
    assert np.ptp(capital, 0).tolist() == [0, 0]


def test_symmetries():
    rows = kinds_of_differences(14, seed=5)[[0, 1, 5]]
    np.testing.assert_array_equal(
        sequential.evidence(rows, 0.0, 120), sequential.evidence(-rows, 0.0, 120)
    )
    low, high = sequential.interval(rows, 0.05)
    mirrored = sequential.interval(-rows, 0.05)
    moved = sequential.interval(10 * rows + 3, 0.05)
    np.testing.assert_allclose(mirrored, (-high, -low), rtol=1e-9)
    np.testing.assert_allclose(moved, (10 * low + 3, 10 * high + 3), rtol=1e-9)


def test_an_interval_holds_the_centres_with_a_larger_p():
    rows = kinds_of_differences(16, seed=7)
    level = 0.05 / 6
    low, high = sequential.interval(rows, level)
    assert np.all(low < high)
    for end, outwards in ((low, -1e-6), (high, 1e-6)):
        there = np.isfinite(end)
        assert there[0] and there[1]
        just_inside = sequential.p_value(rows[there], end[there] - outwards, 1 / level)
        beyond = sequential.p_value(rows[there], end[there] + outwards, 1 / level)
        assert np.all(just_inside > level * (1 + 1e-9))
        assert np.all(beyond <= level * (1 + 1e-9))
    later = sequential.interval(rows[:, :12], level)
    assert np.all(later[0] <= low + 1e-9) and np.all(high <= later[1] + 1e-9)  # it only shrinks
    wide = sequential.interval(rows[:, :7], level)
    assert np.all(np.isinf(wide))
    # Where the median has moved out of what the first seeds allow, and where nothing fits
    moved = np.concatenate([np.linspace(0.9, 1.1, 8), np.full(4, -1.0)])
    low_moved, high_moved = sequential.interval(moved, 0.05)
    assert 0.5 < low_moved < high_moved < 1.2
    torn = np.concatenate([np.full(12, 1.0), np.full(30, -1.0)])
    assert np.isnan(sequential.interval(torn, 0.05)).all()
    nothing = sequential.interval(np.full((1, 9), np.inf), 0.05)
    assert [float(end[0]) for end in nothing] == [-np.inf, np.inf]
    # A level for each row
    both = sequential.interval(rows[:1], np.array([0.05, level])[:, None])
    assert both[0].shape == (2, 1) and both[0][1, 0] == low[0] < both[0][0, 0]


def test_holm_by_hand():
    p = [0.01, 0.04, 0.03]
    np.testing.assert_allclose(sequential.holm(p), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(sequential.holm(p, reserved=2), [0.05, 0.12, 0.12])
    assert sequential.holm([0.5, 0.9]).tolist() == [1.0, 1.0]


def test_holm_properties():
    p = np.random.default_rng(0).uniform(0, 1, (300, 6)) ** 3
    adjusted = sequential.holm(p)
    assert (adjusted >= p).all() and (adjusted <= np.minimum(1, 6 * p)).all()
    np.testing.assert_allclose(adjusted.min(-1), np.minimum(1, 6 * p.min(-1)))
    order = np.argsort(p, -1)
    assert (np.diff(np.take_along_axis(adjusted, order, -1)) >= 0).all()
    np.testing.assert_array_equal(sequential.holm(p[:, ::-1]), adjusted[:, ::-1])
    # By its definition: from the smallest on, reject while p_(k) <= alpha / (m - k + 1).
    for row, got in zip(p, adjusted, strict=True):
        rejected = set()
        for step, k in enumerate(np.argsort(row)):
            if row[k] > ALPHA / (6 - step):
                break
            rejected.add(int(k))
        assert set(np.flatnonzero(got <= ALPHA).tolist()) == rejected


def test_a_decision_keeps_its_p_and_its_seed():
    """What comes after a decision changes nothing of it, and opens the way for the others."""
    clear = np.concatenate([np.full(9, 1.0), np.full(11, -1.0)])
    rng = np.random.default_rng(0)
    close = 0.02 * rng.standard_normal(20)
    late = np.concatenate([[0.3, -0.2, 0.1], np.full(17, 0.5)])
    rows = np.stack([clear, close, late])
    decided = sequential.decide(rows, 0.1, alpha=ALPHA)
    assert decided.seeds[0] == decided.seeds[1] == 8
    assert decided.p[0] <= ALPHA and decided.p_equivalent[0] == 1
    assert decided.p_equivalent[1] <= ALPHA
    assert decided.seeds[2] > 8
    shorter = sequential.decide(rows[:, :8], 0.1, alpha=ALPHA)
    assert shorter.p[0] == decided.p[0] and shorter.seeds.tolist() == [8, 8, 0]
    # Reserved comparisons cost seeds
    reserved = sequential.decide(rows, 0.1, comparisons=24, alpha=ALPHA)
    assert reserved.seeds[0] == 0  # too late: its differences have turned
    assert np.all(reserved.seeds[1:] > decided.seeds[1:])


def test_which_seeds_come_together_does_not_matter():
    rows = kinds_of_differences(20, seed=11)[:, :20]
    after = {n: sequential.decide(rows[:, :n], 0.4).seeds for n in (8, 12, 13, 20)}
    for n, seeds in after.items():
        known = after[20] <= n
        np.testing.assert_array_equal(seeds[known], after[20][known])
        assert not seeds[~known].any()


def test_equivalent_needs_the_median_within_the_margin():
    """All signs about either end are the same, but on the wrong side."""
    decided = sequential.decide(np.full((1, 12), 3.0), margin=1.0)
    assert decided.p_equivalent.tolist() == [1.0] and decided.p[0] <= ALPHA


def test_what_cannot_be_decided():
    with pytest.raises(InputError, match="without NaN"):
        sequential.evidence([0.1, math.nan] * 4)
    with pytest.raises(InputError, match="comparisons >= 2"):
        sequential.decide(np.zeros((2, 8)), 0.1, comparisons=1)
    with pytest.raises(InputError, match="margin above 0"):
        sequential.decide(np.zeros((2, 8)), 0.0)
    with pytest.raises(InputError, match="must be above 1"):
        sequential.evidence(np.zeros(8), 0.0, 1.0)
    with pytest.raises(InputError):
        sequential.seeds_needed(0)


def test_seeds_to_expect():
    steady = np.array([0.9, 1.1] * 6)
    assert sequential.seeds_to_expect(steady, 0.01, 1) == 8  # as soon as one may look
    # ln 20 + 1.5 = 4.5, a sd of 1 at a mean of 0.5: ln(1.25) / 2
    rows = np.array([1.5, -0.5] * 8)
    sd = rows.std(ddof=1)
    wanted = (math.log(20) + 1.5) / (math.log1p((0.5 / sd) ** 2) / 2)
    assert sequential.seeds_to_expect(rows, 0.1, 1) == pytest.approx(wanted)
    assert sequential.seeds_to_expect(rows, 10.0, 1) < wanted  # within the margin before that
    assert sequential.seeds_to_expect(np.zeros(8), 1.0, 1) == 8


@pytest.mark.parametrize("heavy", [False, True])
def test_false_differences_are_few_whenever_one_looks(heavy):
    """A look after every seed from 8 to 48, one baseline for all six arms."""
    rng = np.random.default_rng(heavy)
    shape = (400, 7, 48)
    drawn = rng.standard_t(3, shape) if heavy else rng.standard_normal(shape)
    decided = sequential.decide(drawn[:, 1:] - drawn[:, :1], 1e-6)
    false = np.mean(np.any(decided.p <= ALPHA * (1 + 1e-9), -1))
    assert false <= ALPHA + 1.96 * math.sqrt(ALPHA * (1 - ALPHA) / 400)


@pytest.mark.slow
def test_the_benchmark_measures_few_errors(tmp_path):
    """2,000 families for each of ten kinds of noise."""
    script = Path(__file__).parents[2] / "experiments/benchmarks/verdicts.py"
    file = tmp_path / "verdicts.json"
    subprocess.run([sys.executable, script, "--json", file], check=True, capture_output=True)
    rows = json.loads(file.read_text())
    false = [row["false better or worse"] for row in rows if "false better or worse" in row]
    assert len(false) == 11 and max(false) <= ALPHA + 1.96 * math.sqrt(ALPHA * 0.95 / 2000)
    power = {row["drawn"]: row for row in rows if "power" in row}
    assert power["effect of 4 sd, one of 6, at most 32 seeds"]["mean seeds"] < 9.1
    assert power["effect of 1 sd, one of 12, at most 32 seeds"]["power"] > 0.87
    assert rows[-1]["mean evidence - 1"] < 1e-12
