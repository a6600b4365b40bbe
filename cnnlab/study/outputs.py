"""What the networks of a cell say of sets of images: their metrics, their hits, their logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jax.sharding import PartitionSpec

from cnnlab import metrics
from cnnlab.data.dataset import Batch, Split
from cnnlab.losses import cross_entropy
from cnnlab.multihost import processes, transfer
from cnnlab.softmax import predict
from cnnlab.study.logits import OOD_SETS, TEST, TEST_SETS, VALIDATION, Kept, Outputs
from cnnlab.training import devices
from cnnlab.training.devices import AXIS, SEEDS
from cnnlab.training.experiment import Experiment
from cnnlab.training.step import TrainState
from cnnlab.types import Metrics


@dataclass(frozen=True)
class Tested:
    """Networks tested on a set of N images.

    Attributes:
      metrics: `metrics.summarise` of each.
      hits: bool[S, N], where each was right.
      outputs: their logits; None where they are not kept.
    """

    metrics: list[Metrics]
    hits: np.ndarray
    outputs: Outputs | None


def test(
    experiment: Experiment, state: TrainState, split: Split | None = None, keep: bool = False
) -> Tested:
    """Test every network on the test set, or on another split; keep the logits if asked."""
    extra = experiment.program.metrics
    measure = jax.jit(jax.vmap(partial(_measured, extra_metrics=extra), (0, None)))
    total: dict[str, np.ndarray] = {}
    hits = []
    kept = []
    for logits, known in _evaluated(experiment, state, experiment.test_batches(split)):
        sums, right = jax.device_get(measure(logits, known))
        metrics.add(total, sums)
        hits.append(right[:, known["mask"]])
        if keep:
            kept.append(_of_images(logits, known))
    outputs = _joined(kept) if keep else None
    return Tested(metrics.summarise_seeds([total], extra), np.concatenate(hits, 1), outputs)


def _measured(
    logits: jax.Array, batch: dict[str, jax.Array], extra_metrics: Sequence[metrics.Metric]
) -> tuple[dict[str, jax.Array], jax.Array]:
    label = batch["label"]
    losses = cross_entropy(logits, label)
    sums = metrics.sums(logits, label, losses, batch["mask"], extra_metrics)
    return sums, predict(logits) == label


def kept(
    experiment: Experiment,
    state: TrainState,
    tests: dict[str | None, Tested],
    ood_splits: dict[str, Split],
    seeds: Sequence[int],
) -> Kept:
    """Collect what is kept of networks.

    Args:
      experiment: which trained them.
      state: at their end.
      tests: with their logits, by the names of the further test sets; None: the data set's own.
      ood_splits: to compute logits of, by name.
      seeds: of the networks.
    """
    sets = {
        TEST if name is None else TEST_SETS + name: tested.outputs
        for name, tested in tests.items()
        if tested.outputs
    }
    if experiment.held_out.size:
        batches = experiment.training_batches(experiment.held_out)
        sets[VALIDATION] = _outputs(experiment, state, batches)
    for name, split in ood_splits.items():
        sets[OOD_SETS + name] = _outputs(experiment, state, experiment.test_batches(split))
    class_counts = np.array(experiment.facts.class_counts, np.int64)
    return Kept(sets, class_counts, *_training_losses(experiment, state, seeds))


def _evaluated(
    experiment: Experiment, state: TrainState, batches: Iterator[Batch]
) -> Iterator[tuple[jax.Array | np.ndarray, dict[str, np.ndarray]]]:
    """Yield for each batch the logits float32[S, B, K] of every network, and its label and mask:
    [B], or [S, B] where each network has its own batch. All of them in every process.
    """
    for batch in batches:
        logits = experiment.logits(state, batch)
        labelled = {name: batch[name] for name in ("label", "mask")}
        spec = PartitionSpec(SEEDS, AXIS) if batch["mask"].ndim > 1 else devices.BATCH
        known = experiment.layout.globalise(labelled, spec)
        if processes.count() > 1:
            logits, known = transfer.fetch((logits, known))
        yield logits, known


def _of_images(logits: jax.Array | np.ndarray, known: dict[str, np.ndarray]) -> Outputs:
    """Leave out what only fills a batch up."""
    mask = known["mask"]
    filled = mask if mask.ndim == 1 else mask[0]
    return Outputs(np.asarray(logits)[:, filled], known["label"][..., filled])


def _joined(parts: Sequence[Outputs]) -> Outputs:
    """Join the outputs of batches."""
    return Outputs(
        np.concatenate([part.logits for part in parts], 1),
        np.concatenate([part.labels for part in parts], -1),
    )


def _outputs(experiment: Experiment, state: TrainState, batches: Iterator[Batch]) -> Outputs:
    return _joined([_of_images(*batch) for batch in _evaluated(experiment, state, batches)])


def _training_losses(
    experiment: Experiment, state: TrainState, seeds: Sequence[int]
) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Compute the cross-entropy of each training image with the label that it was taught with, as
    the network sees it in evaluation, and whether that label was wrong: [S, n] of each; nothing
    where no label was wrong.
    """
    data = experiment.data
    used = [data.used(experiment.config, experiment.parts, seed) for seed in seeds]
    targets = np.stack([dataset.targets[dataset.positions] for dataset in used])
    wrong = targets != np.stack([dataset.labels[dataset.positions] for dataset in used])
    if not wrong.any():
        return None, None
    held = experiment.layout.local_part(len(seeds), SEEDS)
    positions = np.stack([used[i].positions for i in held])
    compute = jax.jit(cross_entropy)
    losses = []
    start = 0
    for batch in _evaluated(experiment, state, experiment.training_batches(positions)):
        logits = _of_images(*batch).logits
        taught = targets[:, start : start + logits.shape[1]]
        losses.append(np.asarray(compute(logits, taught)))
        start += logits.shape[1]
    return np.concatenate(losses, 1), wrong
