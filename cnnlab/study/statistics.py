"""Statistics of paired studies: what arms did over the same seeds, minus what a baseline did.

The same seed means the same initial weights and data order, so what differs is the arm's doing.
All functions start from the differences, candidate minus baseline, float[..., n] over n seeds, and
work along the last axis. Verdicts are those of `sequential`, which hold at every look; sign flips
are a second opinion, for one look.

Sources: Bouthillier et al., 2021, arXiv 2103.03098; Agarwal et al., 2021, arXiv 2108.13264; Colas
et al., 2018, arXiv 1806.08295.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnlab.errors import InputError
from cnnlab.study import sequential

BETTER, WORSE, EQUIVALENT, UNDECIDED = "better", "worse", "equivalent", "undecided"
BEYOND, WITHIN = " by more than the margin", ", within the margin"  # after better and worse

ALPHA = 0.05
FLIPS = 99_999  # 2^16 < FLIPS < 2^17: all of them up to 16 seeds
# Differences that agree to this share of the larger value are equal: metrics are subtracted in
# floating point.
SAME = 1e-9


def t_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Compute Student's confidence interval of the mean, for a number of seeds that was fixed
    before.

    Returns:
      (low, high), float[...] each. One value says nothing: (-inf, inf). Constant values give the
      mean twice.
    """
    from scipy import stats

    values = _checked(values)
    n = values.shape[-1]
    mean = np.asarray(values.mean(-1))
    if n == 1:
        return mean - np.inf, mean + np.inf
    half = stats.t.isf((1 - confidence) / 2, n - 1) * _sd(values) / np.sqrt(n)
    return mean - half, mean + half


def sign_flip(differences: np.ndarray) -> np.ndarray:
    """Compute the two-sided p-value of the sign-flip test: without an effect, each difference could
    equally well be its negative.

    Returns:
      float[...]. Exact up to 16 seeds, hence >= 2^(1-n); above, from 99,999 random flips, always
      the same, hence >= 2e-5. 1 where all differences are zero, and for n = 1.

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
    return (np.sign(np.asarray(differences, np.float64)).mean(-1) + 1) / 2


def probability_within(differences: np.ndarray, margin: float) -> float:
    """Compute P(|mu| < margin | differences), for normal differences of mean mu and a prior that is
    flat in mu and in the logarithm of their standard deviation: mu then has Student's distribution
    with n - 1 degrees of freedom, about the mean, in standard errors of it. This is no error rate.

    Args:
      differences: float[n].
      margin: above 0.

    Returns:
      a probability; NaN for one difference, or where one is not finite. 0 or 1 where all are equal.

    Source: Gelman et al., 2013, Bayesian Data Analysis, section 3.2.

    >>> round(probability_within(np.array([-1.0, 0.0, 1.0]), 1.0), 3)
    0.775
    """
    from scipy import special

    differences = np.asarray(differences, np.float64)
    n = len(differences)
    if n < 2 or not np.isfinite(differences).all():
        return float("nan")
    mean = float(differences.mean())
    error = float(_sd(differences)) / np.sqrt(n)
    if error == 0:
        return float(abs(mean) < margin)
    ends = (np.array([-margin, margin]) - mean) / error
    return float(np.diff(special.stdtr(n - 1, ends))[0])


def highest_rate(count: int, runs: int, confidence: float = 0.95) -> float:
    """Compute the upper confidence bound of a rate of which `count` of so many runs were seen: for
    none of n it is 1 - 0.05^(1/n).

    Source: Clopper & Pearson, 1934, doi 10.1093/biomet/26.4.404.

    >>> round(highest_rate(0, 8), 3), highest_rate(8, 8)
    (0.312, 1.0)
    """
    from scipy import special

    if count >= runs:
        return 1.0
    return float(special.betaincinv(count + 1, runs - count, confidence))


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
    direction is better; what diverged counts as infinitely bad.

    Attributes:
      n: seeds.
      mean, median: of the differences, in the metric's unit; the mean is NaN where a run diverged.
      low, high: the interval, which holds at every look, for all comparisons together.
      p: that the differences are symmetric about 0, at every look, after Holm.
      p_equivalent: that they are symmetric about a centre beyond the margin, likewise.
      p_sign_flip: of the sign-flip test of these n seeds, for one look and this comparison alone;
        NaN where a run diverged.
      effect: mean / sd.
      superiority: P(candidate > baseline).
      decided: after how many seeds; 0 if it is not.
      expected: seeds to expect until it is; None if it is.
      evidence: against "symmetric about 0" after each seed from the eighth on.
      verdict: better, worse, equivalent or undecided.
      extent: of better and worse, if the interval says so: by more than the margin, or within it.
    """

    n: int
    mean: float
    median: float
    low: float
    high: float
    p: float
    p_equivalent: float
    p_sign_flip: float
    effect: float
    superiority: float
    decided: int
    expected: float | None
    evidence: tuple[float, ...]
    verdict: str
    extent: str

    @property
    def words(self) -> str:
        """The verdict with its extent."""
        return self.verdict + self.extent


def compare(
    differences: Sequence[np.ndarray] | np.ndarray,
    margin: float,
    larger_is_better: bool = True,
    comparisons: int | None = None,
    alpha: float = ALPHA,
    tolerance: Sequence[np.ndarray] | None = None,
) -> list[Comparison]:
    """Compare m candidates with one baseline, as one family.

    Args:
      differences: float[n] for each candidate, of its first n seeds, candidate minus baseline;
        +-inf where one of the two diverged, 0 where both did.
      margin: the difference that would matter, > 0, in the metric's unit.
      larger_is_better: False for a loss; turns the verdict, not the numbers.
      comparisons: planned for the family; None: m.
      alpha: how often a family without differences may hold a "better" or "worse", at most.
      tolerance: for each difference, how much of it may be rounding; None: nothing.

    Raises:
      InputError: a difference is NaN, or there are more candidates than were planned.
    """
    rows = [np.asarray(row, np.float64) for row in differences]
    if not rows:
        return []
    if any(row.ndim != 1 or not len(row) for row in rows):
        raise InputError("wanted differences [seeds] for each comparison, one or more of them")
    slack = [np.zeros(len(row)) for row in rows] if tolerance is None else tolerance
    planned = len(rows) if comparisons is None else comparisons
    lengths = np.array([len(row) for row in rows])
    padded, padded_slack = _padded(rows), _padded(slack)
    decisions = sequential.decide(padded, margin, planned, alpha, padded_slack, lengths)
    level = alpha / planned
    low, high = _by_length(padded, lengths, level, padded_slack)
    first_low, first_high = _by_length(padded, decisions.seeds, level, padded_slack)
    flips = _sign_flips(padded, lengths)
    compared = []
    for i, row in enumerate(rows):
        p, q = float(decisions.p[i]), float(decisions.p_equivalent[i])
        reached = alpha * (1 + sequential.ROUNDING)
        decided = int(decisions.seeds[i])
        sign = int(sequential.direction(row[:decided])) if p <= reached else 0
        decision = (sign, q <= reached, margin)
        interval = _cut(float(low[i]), float(high[i]), *decision)
        if not interval[0] <= interval[1]:  # later seeds contradict those that decided
            interval = _cut(float(first_low[i]), float(first_high[i]), *decision)
        verdict, extent = _verdict(*interval, *decision, larger_is_better)
        expected = sequential.seeds_to_expect(row, margin, planned, alpha)
        looks = max(0, len(row) - sequential.FIRST + 1)
        compared.append(
            Comparison(
                **_sizes(row),
                low=interval[0],
                high=interval[1],
                p=p,
                p_equivalent=q,
                p_sign_flip=float(flips[i]),
                decided=decided,
                expected=None if decided else float(expected),
                evidence=tuple(decisions.capital[i, :looks].tolist()),
                verdict=verdict,
                extent=extent,
            )
        )
    return compared


def unknown(n: int) -> Comparison:
    """Return the comparison of n pairs of which none is finite: nothing is known of it."""
    nan, inf = float("nan"), float("inf")
    sizes = {name: nan for name in ("mean", "median", "effect", "superiority", "p_sign_flip")}
    return Comparison(
        n=n,
        **sizes,
        low=-inf,
        high=inf,
        p=1.0,
        p_equivalent=1.0,
        decided=0,
        expected=inf,
        evidence=(),
        verdict=UNDECIDED,
        extent="",
    )


def _by_length(
    padded: np.ndarray, lengths: np.ndarray, level: float, slack: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the intervals of rows of several lengths, each of its first seeds: float64[m] each;
    infinite for none.
    """
    low, high = np.full(len(padded), -np.inf), np.full(len(padded), np.inf)
    for n in np.unique(lengths[lengths > 0]):
        same = lengths == n
        low[same], high[same] = sequential.interval(
            padded[same, :n], level, tolerance=slack[same, :n]
        )
    return low, high


def _sign_flips(padded: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Compute sign-flip p-values of rows of several lengths, float64[m]; NaN where not all is
    finite.
    """
    p = np.full(len(padded), np.nan)
    for n in np.unique(lengths):
        same = (lengths == n) & np.isfinite(padded[:, :n]).all(-1)
        if same.any():
            p[same] = sign_flip(padded[same, :n])
    return p


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    table = np.zeros((len(rows), max(map(len, rows))))
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return table


def _sizes(row: np.ndarray) -> dict[str, Any]:
    """Compute the fields of a comparison that describe float[n] without a verdict."""
    finite = bool(np.all(np.isfinite(row)))
    with np.errstate(invalid="ignore"):  # the median of -inf and inf is NaN
        median = float(np.median(row))
    return {
        "n": len(row),
        "mean": float(row.mean()) if finite else np.nan,
        "median": median,
        "effect": float(effect_size(row)) if finite else np.nan,
        "superiority": float(superiority(row)),
    }


def _cut(
    low: float, high: float, sign: int, equivalent: bool, margin: float
) -> tuple[float, float]:
    """Make an interval say what is known: it ends at the values that Holm has rejected, which may
    be at a higher level than its own, and holds 0 while nothing is decided.

    Args:
      low, high: of the interval.
      sign: of the differences, if they are not symmetric about 0; else 0.
      equivalent: whether they lie within the margin.
      margin: the difference that would matter.
    """
    if sign > 0:
        low = max(low, 0.0)
    elif sign < 0:
        high = min(high, 0.0)
    elif not equivalent:
        low, high = min(low, 0.0), max(high, 0.0)
    if equivalent:
        low, high = max(low, -margin), min(high, margin)
    return low, high


def _verdict(
    low: float, high: float, sign: int, equivalent: bool, margin: float, larger_is_better: bool
) -> tuple[str, str]:
    """Put what is known in words: the verdict and its extent. Args as for `_cut`."""
    if not sign:
        return (EQUIVALENT if equivalent else UNDECIDED), ""
    verdict = BETTER if (sign > 0) == larger_is_better else WORSE
    if low >= margin or high <= -margin:
        return verdict, BEYOND
    if -margin <= low and high <= margin:
        return verdict, WITHIN
    return verdict, ""


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
