"""Claim (a): cross-entropy beats mean squared error (of probabilities) early in training.

MSE's gradient vanishes on confident mistakes, so cross-entropy gives larger gradients at first and
needs fewer epochs to a given accuracy. Written before the run: four statements, the last three one
family under Holm's correction.

1. Logits that give the true class 1e-3: cross-entropy's gradient is at least ten times MSE's
   (computed, no training).
2. The parameters' gradient, averaged over the first 64 steps, is longer under cross-entropy: paired
   differences of its logarithm; within +-0.1 (a tenth) counts as no difference.
3. Fewer epochs to 45 % validation accuracy; a run that never reaches it counts one epoch more than
   it has; +-0.5.
4. Higher validation accuracy after the first epoch; +-1 point.

Each holds if cross-entropy is better, is refuted if it is worse or if the difference lies within
the margin, else undecided (restated for verdicts that hold at every look, before any run with
them). A seed that diverged never reaches the accuracy, and has 0 after the first epoch.

    python experiments/replications/early_training.py --data-dir DIR
"""

from __future__ import annotations

from dataclasses import dataclass

from cnnlab import cli
from cnnlab.study.replication import HOLDS, REFUTED, Judged, Replication, better, judged, replicate
from cnnlab.study.results import Results

TARGET = 0.45


@dataclass(frozen=True)
class EarlyTraining(Replication):
    __doc__ = Replication.__doc__
    losses: tuple[str, ...] = ("cross_entropy", "mean_squared_error")


def judge(results: Results) -> list[Judged]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cnnlab import losses
    from cnnlab.study import statistics
    from cnnlab.study.results import curve, gaps

    row = results.arms[0]
    ours = row[results.study.losses.index("cross_entropy")]
    theirs = row[results.study.losses.index("mean_squared_error")]

    def gradient_norm(arm):
        return np.array([np.mean(run.gradient_norms or [1.0]) for run in arm.runs])

    def epochs(arm):
        reached = curve(arm, "validation_accuracy") >= TARGET
        return np.where(reached.any(1), reached.argmax(1) + 1.0, reached.shape[1] + 1.0)

    def first(arm):
        return np.nan_to_num(curve(arm, "validation_accuracy")[:, 0])

    differences = [
        gaps(np.log(gradient_norm(ours)), np.log(gradient_norm(theirs))) / 0.1,
        gaps(epochs(theirs), epochs(ours)) / 0.5,
        gaps(first(ours), first(theirs)) / 0.01,
    ]
    statements = (
        "gradient over the first 64 steps",
        f"epochs to {TARGET:.0%}",
        "accuracy after the first epoch",
    )
    # Each in units of its margin, so that they are one family.
    compared = statistics.compare(np.array(differences), margin=1.0)
    judgements = [
        judged(s, c, better, " margins") for s, c in zip(statements, compared, strict=True)
    ]

    mistaken = jnp.log(jnp.array([1e-3, 0.999])), jnp.array(0)
    strength = [
        float(jnp.linalg.norm(jax.grad(loss)(*mistaken)))
        for loss in (losses.cross_entropy, losses.mse)
    ]
    ratio = strength[0] / strength[1]
    verdict = HOLDS if ratio >= 10 else REFUTED
    return [
        Judged("gradient at a true class of 1e-3", verdict, f"{ratio:.0f} times MSE's"),
        *judgements,
    ]


if __name__ == "__main__":
    cli.main(lambda study: replicate(study, judge, "early_training"), EarlyTraining)
