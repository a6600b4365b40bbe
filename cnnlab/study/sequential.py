"""Evidence about paired differences that holds at every look: after any seed, however it was
decided to stop there.

The null hypothesis is that the differences d_1, d_2, ... are symmetric about a centre c. Given
their sizes, each sign is then the toss of a fair coin. A player who bets on these signs plays a
fair game: her capital, which starts at 1, has mean 1 after every seed, and the chance that it ever
reaches K is at most 1 / K (Ville's inequality). Capital is therefore evidence against the null, and
1 / its largest value is a p-value, whenever one looks. No bet wins more than the player needs to
reach the limit at which the comparison is decided.

Functions work along the last axis, seeds in the order of their numbers, and broadcast over the
others. A difference is +-inf where one side of a pair diverged, and 0 where both did.

Source: Ramdas, Ruf, Larsson & Koolen, 2020, arXiv 2009.03167; Koning, 2023, arXiv 2310.01153.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cnnlab.errors import InputError

FIRST = 8  # seeds of the first look: fewer cannot decide
MOST = 2.0  # no seed counts for more than so many typical differences, collapsed or diverged
# The player's strategies: the share tanh(scale |z|) of its capital that each bets on a sign, from
# cautious to all of it, and the share of the first capital that it plays with.
SCALES = np.array([0.25, 0.5, 1, 2, 4, np.inf])
WEIGHTS = np.array([0.15, 0.15, 0.20, 0.15, 0.10, 0.25])
ROUNDING = 1e-9  # relative: 6 (1 / 120) may exceed 0.05
REACHED = 1 - 1e-12  # of the limit
FARTHEST = 1e4  # where an interval's search ends, in ranges of the differences
HALVINGS = 40


def evidence(
    d: ArrayLike, c: ArrayLike = 0.0, limit: ArrayLike = 20.0, *, tolerance: ArrayLike = 0.0
) -> np.ndarray:
    """Compute the player's capital after each seed from the eighth on.

    Args:
      d: float[..., n], the differences.
      c: float[...], the centre of the null hypothesis.
      limit: float[...], above 1: the capital at which the comparison is decided.
      tolerance: float[..., n]: a distance from the centre up to it counts as 0.

    Returns:
      float64[..., n - 7], in [0, limit]; empty for fewer than eight seeds.

    Raises:
      InputError: a difference is NaN, or a limit is not above 1.

    >>> evidence([0.3, 0.5, 0.2, 0.4, 0.1, 0.6, 0.3, 0.2, 0.4]).round(2)
    array([20., 20.])
    """
    differences = _checked(d)
    limit = np.asarray(limit, np.float64)
    if not np.all(limit > 1):
        raise InputError(f"the limit of a game must be above 1, got {limit.min()}")
    distance = differences - np.asarray(c, np.float64)[..., None]
    distance = np.where(np.abs(distance) <= tolerance, 0.0, distance)
    if distance.shape[-1] < FIRST:
        return np.zeros((*distance.shape[:-1], 0))
    stakes = _stakes(distance)
    capital, up, down = _first_block(stakes[..., :FIRST], limit)
    capitals = [capital]
    for seed in range(FIRST, distance.shape[-1]):
        up = up * (1 + stakes[..., seed])
        down = down * (1 - stakes[..., seed])
        total = np.sum(up + down, -1)  # it was 1 after the seed before
        gain = np.where(total > 0, total - 1, 0.0)
        scale = np.where(total > 0, total, 1.0)[..., None]
        up = up / scale
        down = down / scale
        capital = _bet(capital, gain, limit)
        capitals.append(capital)
    return np.stack(capitals, -1)


def _checked(differences: ArrayLike) -> np.ndarray:
    """Convert differences to float64[..., n].

    Raises:
      InputError: they have no axis of seeds, or one is NaN.
    """
    differences = np.asarray(differences, np.float64)
    if not differences.ndim or np.isnan(differences).any():
        raise InputError(
            f"wanted differences float[..., seeds] without NaN, got shape {differences.shape}"
        )
    return differences


def _stakes(distance: np.ndarray) -> np.ndarray:
    """Compute the share that each strategy bets, float64[..., 6, n], with the sign of what came."""
    unit = _typical(distance)[..., None]
    z = np.clip(distance / unit, -MOST, MOST)[..., None, :]
    return np.concatenate([np.tanh(SCALES[:-1, None] * z), np.sign(z)], -2)


def _typical(distance: np.ndarray) -> np.ndarray:
    """Compute the size of a typical distance, float64[...]: the median of the finite ones among the
    first eight; if that is 0 their largest; if that is 0 the first later one that is not.
    """
    sizes = np.abs(distance)
    first = np.ma.masked_invalid(sizes[..., :FIRST])
    median = np.ma.filled(np.ma.median(first, -1), 0.0)
    largest = np.ma.filled(first.max(-1), 0.0)
    later = np.concatenate([sizes[..., FIRST:], np.ones_like(sizes[..., :1])], -1)
    position = np.argmax((later > 0) & np.isfinite(later), -1)
    later = np.take_along_axis(later, position[..., None], -1)[..., 0]
    return np.where(median > 0, median, np.where(largest > 0, largest, later))


def _first_block(
    stakes: np.ndarray, limit: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Play the first eight seeds as one bet: what exceeds the limit for some pattern of signs is
    given to the others.

    Args:
      stakes: float64[..., 6, 8], with signs.
      limit: float64[...].

    Returns:
      the capital, float64[...]; and each strategy's part of it if it bets on plus or on minus,
      float64[..., 6] each, as shares of the two together.
    """
    sizes = np.abs(stakes)
    products = np.ones((*sizes.shape[:-1], 1))
    for seed in range(FIRST):
        size = sizes[..., seed, None]
        products = np.concatenate([products * (1 + size), products * (1 - size)], -1)
    # Reversed, it is the same patterns with all signs turned.
    possible = WEIGHTS @ (products + products[..., ::-1]) / 2
    raised = _fair_factor(possible, limit)
    up = WEIGHTS * np.prod(1 + stakes, -1) / 2
    down = WEIGHTS * np.prod(1 - stakes, -1) / 2
    total = np.sum(up + down, -1)
    return np.minimum(limit, raised * total), up / total[..., None], down / total[..., None]


def _fair_factor(possible: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Find a such that min(limit, a M) averages 1 over the patterns' capitals M, float64[..., P]:
    with the k largest at the limit, k limit + a (sum of the others) = P.
    """
    falling = -np.sort(-possible, -1)
    others = np.cumsum(falling[..., ::-1], -1)[..., ::-1]
    at_limit = np.arange(falling.shape[-1])
    factors = (falling.shape[-1] - at_limit * limit[..., None]) / others
    within = factors * falling <= limit[..., None]
    return np.take_along_axis(factors, np.argmax(within, -1)[..., None], -1)[..., 0]


def _bet(capital: np.ndarray, gain: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Bet the share of the capital that wins or loses `gain`, or less if less is needed to reach
    the limit; there the player stops.
    """
    enough = limit / np.where(capital > 0, capital, 1.0) - 1
    gain = np.clip(gain, -enough, enough)
    return np.where(capital >= limit * REACHED, capital, np.minimum(limit, capital * (1 + gain)))


def p_value(
    d: ArrayLike, c: ArrayLike = 0.0, limit: ArrayLike = 20.0, *, tolerance: ArrayLike = 0.0
) -> np.ndarray:
    """Compute the p-value of "symmetric about the centre" after all seeds, float64[...]: 1 / the
    largest capital so far, hence at least 1 / limit. Args and Raises as for `evidence`.

    >>> float(p_value([0.3, 0.5, 0.2, 0.4, 0.1, 0.6, 0.3, 0.2]))
    0.05
    """
    capitals = evidence(d, c, limit, tolerance=tolerance)
    return 1 / np.max(capitals, -1, initial=1.0)


def interval(
    d: ArrayLike, level: ArrayLike, *, tolerance: ArrayLike = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the centres whose p-value is above a level: a confidence interval that holds at every
    look.

    Args:
      d: float[..., n], the differences.
      level: float[...], in (0, 1): 0.05, or less for one of several comparisons.
      tolerance: as for `evidence`.

    Returns:
      (low, high), float64[...] each; infinite where no end was found, as for fewer than eight
      seeds; NaN where no centre fits: the differences are not symmetric about any.

    Raises:
      InputError: as for `evidence`.
    """
    differences = _checked(d)
    shape = np.broadcast_shapes(differences.shape[:-1], np.shape(level))
    differences = np.broadcast_to(differences, (*shape, differences.shape[-1]))
    level = np.broadcast_to(np.asarray(level, np.float64), shape)
    finite = np.isfinite(differences)
    if differences.shape[-1] < FIRST or not finite.any():
        return np.full(shape, -np.inf), np.full(shape, np.inf)
    finite_only = np.ma.masked_array(differences, ~finite)
    reach = np.maximum(np.ma.filled(finite_only.max(-1) - finite_only.min(-1), 0.0), 1e-12)

    def inside(centre: np.ndarray) -> np.ndarray:
        p = p_value(differences, centre, 1 / level, tolerance=tolerance)
        return p > level * (1 + ROUNDING)

    start, is_inside = _start(finite_only, inside)
    ends = [start + _edge(inside, start, sign * reach) for sign in (-1, 1)]
    has_finite = finite.any(-1)
    low, high = (np.where(is_inside, end, np.nan) for end in ends)
    return np.where(has_finite, low, -np.inf), np.where(has_finite, high, np.inf)


Inside = Callable[[np.ndarray], np.ndarray]


def _start(finite_only: np.ma.MaskedArray, inside: Inside) -> tuple[np.ndarray, np.ndarray]:
    """Find a centre inside, float64[...]: the median, unless later seeds have moved it out of what
    earlier ones allow; and whether there is one, bool[...].
    """
    start = np.ma.filled(np.ma.median(finite_only, -1), 0.0)
    is_inside = inside(start)
    earlier = [finite_only[..., :n] for n in range(FIRST, finite_only.shape[-1], FIRST // 2)]
    others = [np.zeros_like(start), *[np.ma.filled(np.ma.median(x, -1), 0.0) for x in earlier]]
    others.append(np.ma.filled(finite_only.mean(-1), 0.0))
    for other in others:
        if is_inside.all():
            break
        better = ~is_inside & inside(other)
        start = np.where(better, other, start)
        is_inside = is_inside | better
    return start, is_inside


def _edge(inside: Inside, start: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Find how far from the start nothing is inside any more, float64[...], to 2^-40 of itself;
    infinite beyond `FARTHEST` times the reach.

    Args:
      inside: whether a centre is.
      start: a centre, float64[...].
      reach: a distance with its direction, float64[...].
    """
    far = np.ones(np.shape(start))
    while (is_near := inside(start + far * reach) & (far <= FARTHEST)).any():
        far = np.where(is_near, 2 * far, far)
    near = np.zeros(np.shape(start))
    beyond = far > FARTHEST
    for _ in range(HALVINGS):
        middle = (near + far) / 2
        is_inside = inside(start + middle * reach)
        near = np.where(is_inside, middle, near)
        far = np.where(is_inside, far, middle)
    return np.where(beyond, np.inf, far) * reach


def direction(differences: ArrayLike) -> np.ndarray:
    """Say which sign float[..., n] mostly have, each counted as two typical ones at most: 1, -1 or
    0.
    """
    differences = _checked(differences)
    z = np.clip(differences / _typical(differences)[..., None], -MOST, MOST)
    return np.sign(np.sum(z, -1))


def holm(p: np.ndarray, reserved: int = 0) -> np.ndarray:
    """Adjust the p-values of families, float[..., m]: rejecting all that are <= alpha keeps the
    family-wise error rate <= alpha.

    Args:
      p: of the comparisons.
      reserved: further comparisons that the family may still get; they count with p = 1.

    Returns:
      float64[..., m]: for the k-th smallest, the largest of min(1, (m + reserved - j + 1) p_j) over
      j <= k.

    Source: Holm, 1979, https://www.jstor.org/stable/4615733.
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p, -1)
    factors = np.arange(p.shape[-1], 0, -1) + reserved
    steps = np.take_along_axis(p, order, -1) * factors
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(steps, -1), 1), -1)
    return adjusted


@dataclass(frozen=True)
class Decisions:
    """What is known of a family of m comparisons after all its seeds.

    Attributes:
      p: float64[..., m], that the differences are symmetric about 0; adjusted by Holm, as is the
        next.
      p_equivalent: float64[..., m], that they are symmetric about a centre beyond the margin.
      seeds: int64[..., m]: after how many a comparison was decided; 0 where it is not.
      capital: float64[..., m, n - 7], against "symmetric about 0" after each seed.
    """

    p: np.ndarray
    p_equivalent: np.ndarray
    seeds: np.ndarray
    capital: np.ndarray


def decide(
    differences: ArrayLike,
    margin: float,
    comparisons: int | None = None,
    alpha: float = 0.05,
    tolerance: ArrayLike = 0.0,
    lengths: ArrayLike | None = None,
) -> Decisions:
    """Look at a family after every seed; what is decided keeps its p-values.

    Args:
      differences: float[..., m, n].
      margin: above 0; two arms are equivalent if the centre lies within +-margin.
      comparisons: planned for the family, at least m; None: m.
      alpha: how often a family without differences may hold one, at most.
      tolerance: float[..., m, n], as for `evidence`.
      lengths: int[..., m]: how many of the n seeds a comparison has, whatever stands after them;
        None: all.

    Raises:
      InputError: as for `evidence`, or more comparisons than were planned.
    """
    differences = _checked(differences)
    m = differences.shape[-2]
    planned = m if comparisons is None else comparisons
    if not 1 <= m <= planned or not 0 < margin < np.inf:
        raise InputError(
            f"wanted a margin above 0 and comparisons >= {m} >= 1, got {margin} and {planned}"
        )
    limit = planned / alpha
    capital = evidence(differences, 0.0, limit, tolerance=tolerance)
    p_zero = 1 / np.maximum.accumulate(np.maximum(capital, 1), -1)
    beyond = _p_beyond(differences, margin, limit, tolerance)
    shape = differences.shape[:-1]
    last = np.broadcast_to(differences.shape[-1] if lengths is None else lengths, shape) - FIRST
    p, q = np.ones(shape), np.ones(shape)
    adjusted_p, adjusted_q = np.ones(shape), np.ones(shape)
    seeds = np.zeros(shape, np.int64)
    for look in range(capital.shape[-1]):
        is_final = (seeds > 0) | (look > last)
        p = np.where(is_final, p, p_zero[..., look])
        q = np.where(is_final, q, beyond[..., look])
        adjusted_p = holm(p, planned - m)
        adjusted_q = holm(q, planned - m)
        reached = np.minimum(adjusted_p, adjusted_q) <= alpha * (1 + ROUNDING)
        seeds = np.where((seeds == 0) & reached, np.minimum(look, last) + FIRST, seeds)
    return Decisions(adjusted_p, adjusted_q, seeds, capital)


def _p_beyond(
    differences: np.ndarray, margin: float, limit: float, tolerance: ArrayLike
) -> np.ndarray:
    """Compute the p-value of a centre beyond +-margin after each seed from the eighth on,
    float64[..., n - 7]: the larger one of the two ends; 1 unless the median lies within the margin.
    """
    larger = np.zeros(())
    for centre in (-margin, margin):
        capital = evidence(differences, centre, limit, tolerance=tolerance)
        p = 1 / np.maximum.accumulate(np.maximum(capital, 1), -1)
        larger = np.maximum(larger, p)
    seeds = range(FIRST, differences.shape[-1] + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the median of -inf and inf is NaN
        medians = [np.median(differences[..., :n], -1) for n in seeds]
    if not medians:
        return larger
    return np.where(np.abs(np.stack(medians, -1)) < margin, larger, 1.0)


@functools.cache
def seeds_needed(comparisons: int, alpha: float = 0.05) -> int:
    """Compute the fewest seeds that can decide one of several comparisons, when all differences are
    equal.

    >>> [seeds_needed(m) for m in (1, 3, 6, 12, 24)]
    [8, 8, 9, 10, 11]
    """
    if comparisons < 1 or not 0 < alpha < 1:
        raise InputError(
            f"wanted comparisons >= 1 and 0 < alpha < 1, got {comparisons} and {alpha}"
        )
    limit = comparisons / alpha
    most = FIRST + math.ceil(math.log2(limit))
    capital = evidence(np.ones(most), 0.0, limit)
    return FIRST + int(np.argmax(capital >= limit * REACHED))


def seeds_to_expect(
    differences: ArrayLike, margin: float, comparisons: int, alpha: float = 0.05
) -> np.ndarray:
    """Estimate after how many seeds a comparison will be decided, float64[...], if the differences
    continue as they are: different from 0 or within the margin, whichever comes first. Infinite
    where neither is in sight.

    n = (ln(comparisons / alpha) + 1.5) / min(ln 2, ln(1 + d^2) / 2), with d the distance of the
    mean from 0, or from the margin, over the standard deviation. Those not finite are left out.

    >>> float(seeds_to_expect([0.5, 1.5] * 4, 9.0, 1).round(1))
    8.0
    """
    differences = np.asarray(differences, np.float64)
    finite_only = np.ma.masked_invalid(differences)
    mean = np.abs(np.ma.filled(finite_only.mean(-1), 0.0))
    sd = np.ma.filled(finite_only.std(-1, ddof=1), 0.0)
    distance = np.maximum(mean, margin - mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = np.where(distance > 0, distance / sd, 0.0)
        rate = np.minimum(np.log(2), np.log1p(effect**2) / 2)
        seeds = (np.log(comparisons / alpha) + 1.5) / rate
    return np.maximum(seeds, FIRST)
