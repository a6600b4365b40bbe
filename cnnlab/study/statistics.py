"""Statistics of paired studies: what losses did over the same seeds, minus what a baseline did.

The same seed means the same initial weights and data order, so what differs is the loss's doing.
All functions start from the differences, candidate minus baseline, float[..., n] over n seeds, and
work along the last axis. They raise InputError for values that are not finite.

Sources: Bouthillier et al., 2021, arXiv 2103.03098; Agarwal et al., 2021, arXiv 2108.13264; Colas
et al., 2018, arXiv 1806.08295.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnlab.errors import InputError
from cnnlab.study.sequential import holm

BETTER, WORSE, EQUIVALENT = "better", "worse", "equivalent"
UNDECIDED, UNDERPOWERED = "undecided", "underpowered"

# A bootstrap of few values is too narrow: it lacks t's factor sqrt(n / (n - 1)) and tails. Of
# normal means, nominally 0.95, BCa covers 0.919, 0.926, 0.930, 0.939 at n = 16, 20, 24, 32 (20,000
# studies each); t covers 0.95 at each.
BCA_FROM = 32
RESAMPLES = 9_999
FLIPS = 99_999  # 2^16 < FLIPS < 2^17: all of them up to 16 seeds
# Seeds; above, and up to 20 comparisons, `detectable` of a t-test is that of sign flips to 3 %.
SIMULATED_TO = 12
STUDIES = 4_000  # a power of 0.8 is met to within 0.006, one standard error
# Differences that agree to this share of the largest are equal: metrics are subtracted in floating
# point.
SAME = 1e-9


def interval(values: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Compute the confidence interval of the mean: Student's t below `BCA_FROM` values, BCa
    bootstrap from there on.

    Returns:
      (low, high), float[...] each. One value says nothing: (-inf, inf). Constant values give the
      mean twice.

    Source: BCa, Efron, 1987, doi 10.2307/2289144.
    """
    from scipy import stats

    values = _checked(values)
    n = values.shape[-1]
    mean = np.asarray(values.mean(-1))
    sd = _sd(values)
    if n == 1:
        return mean - np.inf, mean + np.inf
    if n < BCA_FROM:
        half = stats.t.isf((1 - confidence) / 2, n - 1) * sd / np.sqrt(n)
        return mean - half, mean + half
    low = mean.copy()
    high = mean.copy()
    varied = sd > 0
    if varied.any():
        rows = values[varied]
        rng = np.random.default_rng(0)
        options: dict[str, Any] = dict(
            vectorized=True, axis=-1, n_resamples=RESAMPLES, batch=_batch(rows), rng=rng
        )
        bootstrap = stats.bootstrap(
            (rows,), np.mean, confidence_level=confidence, method="BCa", **options
        )
        low[varied], high[varied] = bootstrap.confidence_interval
    return low, high


def sign_flip(differences: np.ndarray) -> np.ndarray:
    """Compute the two-sided p-value of the sign-flip test: without an effect, each difference could
    equally well be its negative.

    Returns:
      float[...]. Exact up to 16 seeds, hence >= 2^(1-n); above, from 99,999 random flips, always
      the same, hence
      >= 2e-5. 1 where all differences are zero, and for n = 1.

    Source: Fisher, 1935, The Design of Experiments; random flips, Phipson & Smyth, 2010, arXiv
    1603.05766.
    """
    from scipy import stats

    differences = _checked(differences)
    if differences.shape[-1] == 1:
        return np.ones(differences.shape[:-1])
    largest = np.abs(differences).max(-1, keepdims=True)
    # Shares of 10,000 images tie often, but once subtracted not to the last bit: sums are rounded
    # to the ninth place. Pi keeps those that are fractions of the largest difference away from the
    # point where rounding turns.
    scaled = differences / (np.pi * np.where(largest > 0, largest, 1))

    def total(x, axis):
        return np.round(np.sum(x, axis=axis), 9)

    rng = np.random.default_rng(0)
    options: dict[str, Any] = dict(
        vectorized=True, axis=-1, n_resamples=FLIPS, batch=_batch(scaled), rng=rng
    )
    return np.asarray(
        stats.permutation_test((scaled,), total, permutation_type="samples", **options).pvalue
    )


def equivalence(differences: np.ndarray, margin: float) -> np.ndarray:
    """Compute the p-value of "the mean lies outside +-margin": two one-sided t-tests, of which the
    larger p counts.

    Returns:
      float[...]; of constant differences 0 within the margin, else 1; 1 for n = 1.

    Source: TOST, Schuirmann, 1987, doi 10.1007/BF01068419.
    """
    from scipy import stats

    differences = _checked(differences)
    if not 0 < margin < np.inf:
        raise InputError(f"the margin of equivalence must be positive and finite, not {margin}")
    n = differences.shape[-1]
    room = margin - np.abs(differences.mean(-1))
    sd = _sd(differences)
    if n == 1:
        return np.ones(room.shape)
    p = stats.t.sf(room * np.sqrt(n) / np.where(sd > 0, sd, 1), n - 1)
    return np.where(sd > 0, p, np.where(room > 0, 0.0, 1.0))


def effect_size(differences: np.ndarray) -> np.ndarray:
    """Compute Cohen's d_z, mean / sd: float[...]; 0 or +-inf for constant differences; NaN for one
    seed.

    Source: Lakens, 2013, doi 10.3389/fpsyg.2013.00863.
    """
    differences = _checked(differences)
    mean = differences.mean(-1)
    sd = _sd(differences)
    constant = (
        np.nan if differences.shape[-1] == 1 else np.where(mean == 0, 0, np.copysign(np.inf, mean))
    )
    return np.where(sd > 0, mean / np.where(sd > 0, sd, 1), constant)


def superiority(differences: np.ndarray) -> np.ndarray:
    """Estimate P(candidate > baseline) on the same seed, float[...]: the share of positive
    differences plus half of the zeros.

    Source: McGraw & Wong, 1992, doi 10.1037/0033-2909.111.2.361.
    """
    return (np.sign(_checked(differences)).mean(-1) + 1) / 2


def seeds_needed(comparisons: int, alpha: float = 0.05) -> int:
    """Compute the fewest seeds n at which the sign-flip test can reach alpha after Holm's
    correction: m 2^(1-n) <= alpha.

    >>> [seeds_needed(m) for m in (1, 2, 6, 12)]
    [6, 7, 8, 9]
    """
    if comparisons < 1 or not 0 < alpha < 1:
        raise InputError(
            f"wanted comparisons >= 1 and 0 < alpha < 1, got {comparisons} and {alpha}"
        )
    return next(n for n in itertools.count(1) if comparisons * 2.0 ** (1 - n) <= alpha)


@functools.cache
def detectable(n: int, comparisons: int = 1, alpha: float = 0.05, power: float = 0.8) -> float:
    """Compute the smallest effect that n seeds find with that power at alpha / comparisons, Holm's
    strictest step.

    Returns:
      mean / sd of normal differences; inf where n < seeds_needed(comparisons, alpha), as no effect
      is large enough.
    """
    if n < seeds_needed(comparisons, alpha):
        return np.inf
    level = alpha / comparisons
    if n > SIMULATED_TO:
        from scipy import special, stats

        return float(
            special.nctdtrinc(n - 1, 1 - power, stats.t.isf(level / 2, n - 1)) / np.sqrt(n)
        )
    # Turning the seeds J leaves the sum where it was or above if effect <= -mean(noise over J). The
    # test finds an effect > 0 when fewer than k = level 2^(n-1) of the 2^n - 1 turns do so (not
    # turning is the k-th): when the effect exceeds the k-th largest of -mean(noise over J). The
    # power is the share of studies with a lower threshold.
    k = int(level * 2.0 ** (n - 1) * (1 + SAME))
    turned = (np.arange(1, 2**n)[:, None] >> np.arange(n)) & 1
    noise = np.random.default_rng(0).standard_normal((STUDIES, n)).astype(np.float32)
    # [STUDIES, 2^n - 1], 65 MB at most
    means = noise @ (turned / turned.sum(1, keepdims=True)).T.astype(np.float32)
    means.partition(k - 1, -1)
    return float(np.quantile(-means[:, k - 1], power))


def distribution_sd(accuracies: np.ndarray, example_variance: float, images: int) -> float:
    """Estimate the standard deviation over seeds of the accuracy on the whole distribution rather
    than on these N test images.

    Let c_i be 1 where image i is right. Over seeds, N^2 Var(accuracy) = sum_i Var(c_i) + sum_{i !=
    j} Cov(c_i, c_j); images are independent draws, so Cov averages Var_dist: Var_dist = N/(N-1)
    (Var(accuracy) - mean Var(c_i) / N).

    Args:
      accuracies: float[n], shares in [0, 1], n >= 2 seeds.
      example_variance: mean over the images of the variance of c_i over the seeds (ddof=1).
      images: N >= 2.

    Returns:
      a share; 0 where the estimate of the variance is negative.

    Source: Jordan, 2023, arXiv 2304.01910.
    """
    accuracies = _checked(accuracies)
    if accuracies.ndim != 1 or len(accuracies) < 2 or images < 2:
        raise InputError(
            f"wanted accuracies of 2 seeds or more on 2 images or more, got {accuracies.shape}, "
            f"{images}"
        )
    return float(
        np.sqrt(
            max(0, images / (images - 1) * (accuracies.var(ddof=1) - example_variance / images))
        )
    )


@dataclass(frozen=True)
class Comparison:
    """One candidate against the baseline. The numbers are candidate minus baseline, whichever
    direction is better.
    """

    n: int  # seeds
    mean: float  # in the metric's unit, as low, high and detectable are
    low: float
    high: float
    method: str  # of the interval: t or BCa
    p: float  # sign flips
    p_holm: float
    p_equivalent: float  # TOST, after Holm
    effect: float  # mean / sd
    superiority: float  # P(candidate > baseline)
    detectable: float  # with power 0.8; inf where seeds are too few
    verdict: str


def verdicts(
    differences: np.ndarray,
    margin: float,
    larger_is_better: bool = True,
    alpha: float = 0.05,
    others: int = 0,
) -> dict:
    """Compute the fields of `Comparison` except for n and the interval, of many families at once.

    Args:
      differences: float[..., m, n], families of m comparisons; the rest as for `compare`.

    Returns:
      name -> float[..., m]; verdict: str[..., m].
    """
    differences = _checked(differences)
    m = differences.shape[-2] + others
    n = differences.shape[-1]
    mean = differences.mean(-1)
    p = sign_flip(differences)
    enough = n >= seeds_needed(m, alpha)

    p_holm = holm(p, others)
    p_equivalent = holm(equivalence(differences, margin), others)
    smallest = detectable(n, m, alpha) * _sd(differences) if enough else np.full(p.shape, np.inf)
    # Too few seeds first: then no p-value can tell a difference from none, and nothing else may be
    # read into that.
    cases = [
        np.full(p.shape, not enough),
        p_holm <= alpha,
        p_equivalent <= alpha,
        smallest > margin,
    ]
    names = [
        UNDERPOWERED,
        np.where((mean > 0) == larger_is_better, BETTER, WORSE),
        EQUIVALENT,
        UNDERPOWERED,
    ]
    return {
        "mean": mean,
        "p": p,
        "p_holm": p_holm,
        "p_equivalent": p_equivalent,
        "effect": effect_size(differences),
        "superiority": superiority(differences),
        "detectable": smallest,
        "verdict": np.select(cases, names, UNDECIDED),
    }


def compare(
    differences: np.ndarray,
    margin: float,
    larger_is_better: bool = True,
    alpha: float = 0.05,
    others: int = 0,
) -> list[Comparison]:
    """Compare m candidates with one baseline, as one family.

    Args:
      differences: float[m, n], candidate minus baseline; m = 0 gives [].
      margin: the difference that would matter, > 0, in the metric's unit.
      larger_is_better: False for a loss; turns the verdict, not the numbers.
      alpha: how often a family of no differences may hold a "better" or "worse".
      others: comparisons of the family that ended without numbers; Holm's correction counts them.
    """
    if np.ndim(differences) != 2:
        raise InputError(
            f"wanted differences [comparisons, seeds], got shape {np.shape(differences)}"
        )
    if not len(differences):
        return []
    columns = verdicts(differences, margin, larger_is_better, alpha, others)
    columns["low"], columns["high"] = interval(differences, 1 - alpha)
    n = np.shape(differences)[1]
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    fixed: dict[str, Any] = {"n": n, "method": "t" if n < BCA_FROM else "BCa"}
    return [Comparison(**fixed, **dict(zip(columns, row, strict=True))) for row in rows]


def _checked(values: np.ndarray) -> np.ndarray:
    """Convert values to float64[..., n]; raise InputError unless n >= 1 and all are finite."""
    values = np.asarray(values, np.float64)
    if not values.ndim or not values.shape[-1]:
        raise InputError(f"wanted one value or more along the last axis, got shape {values.shape}")
    if not np.isfinite(values).all():
        count = f"{(~np.isfinite(values)).sum()} of {values.size} values"
        raise InputError(
            f"{count} are not finite and have no mean: compare a metric that is, such as the "
            "accuracy"
        )
    return values


def _sd(values: np.ndarray) -> np.ndarray:
    """Compute the standard deviation, float[...]; exactly 0 where values differ by no more than
    rounding, and for one value.
    """
    constant = np.ptp(values, -1) <= SAME * np.abs(values).max(-1)
    return np.where(constant, 0, values.std(-1, ddof=min(1, values.shape[-1] - 1)))


def _batch(values: np.ndarray) -> int:
    """Choose how many resamples scipy may hold at once: a handful of copies, 30 MB each."""
    return max(1, 4_000_000 // max(1, values.size))
