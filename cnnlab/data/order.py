"""Which image comes when: pure functions of seeds and steps, so that the step alone says where to
resume.
"""

from __future__ import annotations

import functools

import numpy as np

TEST_SEED = 0  # of the images that --test-fraction takes: always the same ones


def split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a stratified share of a data set.

    Each class gives `fraction` of its images, rounded so that the total is round(fraction * N)
    (largest remainders).

    Args:
      labels: int[N].
      fraction: in [0, 1).
      seed: of the choice.

    Returns:
      Ascending positions of the kept and of the held-out images: int64[N - V], int64[V].
    """
    classes, counts = np.unique(labels, return_counts=True)
    quota = counts * fraction
    take = np.floor(quota).astype(int)
    short = round(fraction * len(labels)) - take.sum()
    take[np.argsort(take - quota, kind="stable")[:short]] += 1
    rng = np.random.default_rng([seed, 0x5917])
    held = [
        rng.permutation(np.flatnonzero(labels == c))[:n] for c, n in zip(classes, take, strict=True)
    ]
    held_out = np.sort(np.concatenate(held)) if held else np.zeros(0, np.int64)
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, 0x0DE2]).permutation(count)


def batch_positions(seed: int, step: int, count: int, batch_size: int) -> np.ndarray:
    """Return the positions, among `count` training images, of the batch of a step.

    Every epoch visits each image at most once, in an order of its own, and leaves out the last
    count % batch_size of that order.

    Args:
      seed: of the order.
      step: from 0, over all epochs.
      count: training images.
      batch_size: at most `count`.

    Returns:
      int64[batch_size].
    """
    epoch, place = divmod(step, count // batch_size)
    return _permutation(seed, epoch, count)[place * batch_size : (place + 1) * batch_size].copy()
