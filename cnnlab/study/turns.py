"""Whether the difference between two arms turns along the epochs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cnnlab.study import statistics

# What a difference does along the epochs; see `Course.kind`
TURNED, FADED, KEPT, NEVER_CLEAR = "turned", "lost", "kept", "never clear"


@dataclass(frozen=True)
class Course:
    """The mean of paired differences at each epoch.

    Attributes:
      epochs: int64[E], numbers of the epochs, from 1.
      mean: float64[E].
      low, high: float64[E], Student's interval of each epoch, for itself alone.
      seeds: how many were finite to the end on both sides; two or more.
      left_out: seeds that were not.
    """

    epochs: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int
    left_out: int

    @property
    def is_clear(self) -> np.ndarray:
        """Whether the interval of each epoch lies on one side of zero, bool[E]."""
        return (self.low > 0) | (self.high < 0)

    @property
    def _agrees(self) -> np.ndarray:
        """Whether the mean has the sign of the last epoch, bool[E]."""
        return np.sign(self.mean) == np.sign(self.mean[-1])

    @property
    def last_turn(self) -> int:
        """The last epoch at which the mean had another sign than at the last epoch; 0: none."""
        others = np.flatnonzero(~self._agrees)
        return int(self.epochs[others[-1]]) if len(others) else 0

    @property
    def kind(self) -> str:
        """What the difference does:

        - turned: its sign changed, and was clear of zero both before and after: at some epoch up to
          `last_turn` with the other sign, and at some later one with the sign of the last epoch.
        - faded: it was clear of zero with the other sign, and with the sign of the last epoch at no
          later epoch.
        - kept: it was clear of zero at some epoch, and never with another sign than at the last.
        - never clear: at no epoch was the interval clear of zero.
        """
        is_clear = self.is_clear
        if not is_clear.any():
            return NEVER_CLEAR
        if not (is_clear & ~self._agrees).any():
            return KEPT
        return TURNED if is_clear[self.epochs > self.last_turn].any() else FADED


def course(arm: np.ndarray, baseline: np.ndarray, confidence: float = 0.95) -> Course | None:
    """Follow the difference of two arms along the epochs, over the seeds that both have.

    Args:
      arm, baseline: float64[seeds, epochs], such as the validation accuracy; NaN where a run had
        diverged, or nothing was measured. Epochs that only one of them has are left out.
      confidence: of each epoch's interval.

    Returns:
      None for fewer than two epochs, or two seeds that are finite at all of these.
    """
    num_seeds = min(len(arm), len(baseline))
    num_epochs = min(arm.shape[1], baseline.shape[1])
    gaps = arm[:num_seeds, :num_epochs] - baseline[:num_seeds, :num_epochs]
    epochs = np.flatnonzero(np.isfinite(gaps).any(0))
    is_finite = np.isfinite(gaps[:, epochs]).all(1)
    gaps = gaps[is_finite][:, epochs]
    if len(epochs) < 2 or len(gaps) < 2:
        return None
    low, high = statistics.t_interval(gaps.T, confidence)
    mean = np.round(gaps.mean(0), 12)  # shares that cancel out but for rounding have no sign
    return Course(epochs + 1, mean, low, high, len(gaps), num_seeds - len(gaps))
