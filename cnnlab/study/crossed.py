"""The mean of a table of seeds x images, with an interval that covers new seeds and new images.

A seed moves the results on all images, and an image is hard or easy for all seeds. The two-way
random effects model h_si = mu + seed_s + image_i + both_si keeps these apart: the variance of the
mean over the table is the sum of three parts, which shrink with the number of seeds, of images,
and of their product.

Source: Searle, Casella & McCulloch, 1992, Variance Components, doi 10.1002/9780470316856; Owen,
2007, The pigeonhole bootstrap, doi 10.1214/07-AOAS122.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cnnlab.errors import InputError


@dataclass(frozen=True)
class CrossedMean:
    """The mean over seeds and images, and how far it may be from that over all of both.

    Attributes:
      mean: over the table; NaN if no seed has finite results.
      low, high: Student's interval over new seeds and new images, for a number of seeds that was
        fixed beforehand; NaN for one seed or one image. The degrees of freedom are approximate:
        with three seeds, a 95 % interval covers some 93 %.
      freedom: Satterthwaite's degrees of freedom; NaN likewise.
      of_seeds: part of the variance of the mean that shrinks with more seeds alone.
      of_images: part that shrinks with more images alone.
      of_both: part that shrinks with either: what a seed does on an image and on no other.
      seeds, images: in the table.
      left_out: seeds that diverged, which are not in the table.
    """

    mean: float
    low: float
    high: float
    freedom: float
    of_seeds: float
    of_images: float
    of_both: float
    seeds: int
    images: int
    left_out: int

    @property
    def variance(self) -> float:
        """Variance of the mean, the sum of its three parts."""
        return self.of_seeds + self.of_images + self.of_both


def crossed_mean(h: np.ndarray, confidence: float = 0.95) -> CrossedMean:
    """Estimate the mean over all seeds and all images from a table of some of both.

    With the mean squares of seeds, images and the rest,

        MS_S = N var_s(h_s.)    MS_I = n var_i(h_.i)
        MS_E = sum (h_si - h_s. - h_.i + h_..)^2 / ((n - 1) (N - 1))

    Var(h_..) = max(MS_S + MS_I - MS_E, MS_S) / (n N). Its parts add up to it: MS_S - MS_E of the
    seeds and MS_I - MS_E of the images, where these are positive, and the rest of both.

    Args:
      h: float[n, N], n seeds and N images, such as hits of an arm minus hits of the baseline. A
        seed with a value that is not finite is left out.
      confidence: of the interval.

    Raises:
      InputError: h is not a table with one image or more.

    >>> crossed_mean(np.array([[1, 0, 1], [1, 0, 0]])).mean
    0.5
    """
    from scipy import stats

    h = np.asarray(h, np.float64)
    if h.ndim != 2 or not h.shape[1]:
        raise InputError(f"wanted results [seeds, images], got shape {h.shape}")
    is_finite = np.isfinite(h).all(1)
    left_out = int((~is_finite).sum())
    h = h[is_finite]
    num_seeds, num_images = h.shape
    mean = float(h.mean()) if num_seeds else np.nan
    if num_seeds < 2 or num_images < 2:
        nan = float("nan")
        return CrossedMean(mean, nan, nan, nan, nan, nan, nan, num_seeds, num_images, left_out)
    squares = _mean_squares(h)
    total, freedom = _total(*squares, num_seeds, num_images)
    half = float(stats.t.isf((1 - confidence) / 2, freedom)) * np.sqrt(total / h.size)
    by_seed, by_image, rest = squares
    return CrossedMean(
        mean,
        mean - half,
        mean + half,
        freedom,
        of_seeds=max(by_seed - rest, 0.0) / h.size,
        of_images=max(by_image - rest, 0.0) / h.size,
        of_both=min(by_seed, rest) / h.size,
        seeds=num_seeds,
        images=num_images,
        left_out=left_out,
    )


def _mean_squares(h: np.ndarray) -> tuple[float, float, float]:
    """Compute the mean squares of seeds, of images, and of the rest."""
    num_seeds, num_images = h.shape
    seed_means, image_means = h.mean(1), h.mean(0)
    residuals = h - seed_means[:, None] - image_means + h.mean()
    rest = float(np.vdot(residuals, residuals)) / ((num_seeds - 1) * (num_images - 1))
    by_seed = num_images * float(seed_means.var(ddof=1))
    return by_seed, num_seeds * float(image_means.var(ddof=1)), rest


def _total(
    by_seed: float, by_image: float, rest: float, num_seeds: int, num_images: int
) -> tuple[float, float]:
    """Combine the mean squares into n N times the variance of the mean, with Satterthwaite's
    degrees of freedom: those of the seeds where the images seem to add nothing.
    """
    if by_image <= rest:
        return by_seed, num_seeds - 1.0
    total = by_seed + by_image - rest
    spread = by_seed**2 / (num_seeds - 1) + by_image**2 / (num_images - 1)
    spread += rest**2 / ((num_seeds - 1) * (num_images - 1))
    return total, total**2 / spread
