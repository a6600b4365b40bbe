"""Cross-entropy against mean squared error: what reaches the logits, and what training makes of it

Through a softmax the gradient of the squared error (summed over the classes) carries p_k as a
factor in logit k, so a network that is sure of one wrong class is told almost nothing; where
several share the rest it still is told something. Cross-entropy's is p - onehot, largest just
there. The notes conclude that under MSE gradients are low early on, and that cross-entropy gives
stronger feedback and converges faster. Here each is measured: in the logits exactly, in training
over paired seeds (same first weights, batches and mirroring), by verdicts for three comparisons
together. The learning rate is tuned for neither, and Adam divides by the gradients' size,
so that short ones alone slow nothing down. A run that never reaches the target counts all its
epochs, which favours the slower loss.

    python experiments/lessons/cross_entropy_vs_mse.py --data-dir DIR
"""

from dataclasses import dataclass
from typing import Annotated

import jax
import numpy as np

from cnnlab.config import Config, Count
from cnnlab.console import Console
from cnnlab.lesson import Claim, Lesson, lines, run
from cnnlab.losses import cross_entropy, mean_squared_error
from cnnlab.study import statistics
from cnnlab.training.run import in_memory

TARGET = 0.4  # validation accuracy


@dataclass(frozen=True)
class Flags(Lesson):
    dataset: str = "cifar10"
    """As for train.py; a tenth of its training images is used."""
    data_dir: str | None = None
    """TFDS data directory. None: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    epochs: Count = 4
    """Passes over the training images."""
    seeds: Annotated[int, "[2, 1000]"] = 8
    """Pairs of networks; three comparisons need eight."""


def gradient_norms(loss, p):
    """Compute the length of the gradient in the logits where the true class has p[N] and one wrong
    class all the rest.
    """
    gradients = jax.vmap(jax.grad(loss), (0, None))(np.log(np.stack([p, 1 - p], -1)), 0)
    return np.linalg.norm(gradients, axis=-1)


def epochs_to(target, accuracy):
    """Compute the epochs until accuracy[epochs, seeds], linearly interpolated from chance on,
    reaches the target; all epochs if it never does.
    """
    curves = np.concatenate([np.full((1, accuracy.shape[1]), 0.1), accuracy])
    after = np.argmax(curves >= target, 0)  # 0 where it never does
    high, low = (curves[at, np.arange(len(after))] for at in (after, after - 1))
    return np.where(after > 0, after - (high - target) / (high - low), len(accuracy))


def train(loss, flags):
    """Train the networks; return gradient norms of the first epoch [seeds, steps] and validation
    accuracies [epochs, seeds].
    """
    config = Config.of(
        dataset=flags.dataset,
        data_dir=flags.data_dir,
        validation=0.04,
        epochs=flags.epochs,
        loss=loss,
        fraction=0.1,
    )
    history = in_memory(config, Console(), range(flags.seeds))[1].history
    return np.array(history[0]["gradient_norms"]), np.array(
        [row["validation_accuracy"] for row in history]
    )


def teach(flags: Flags):
    p = np.geomspace(1e-6, 1, 200, endpoint=False, dtype=np.float32)

    def named(of):
        return {"cross-entropy": of[0], "mean squared error": of[1]}

    norms = [gradient_norms(loss, p) for loss in (cross_entropy, mean_squared_error)]
    yield lines(
        "What a mistake sends back",
        p,
        named(norms),
        "p of true class",
        "|gradient| in logits",
        xscale="log",
    )
    ours = norms[0][0]
    theirs = norms[1][0]
    measured = f"where the true class has one in a million: {theirs:.1e} against {ours:.3f}"
    yield Claim(
        "Sure of one wrong class MSE's gradient vanishes, CE's does not",
        theirs < 1e-5 < 1.4 < ours,
        measured,
    )

    runs = [train(loss, flags) for loss in ("cross_entropy", "mean_squared_error")]
    # [losses, seeds, steps], [losses, epochs, seeds]
    norms, curves = map(np.stack, zip(*runs, strict=True))
    steps, epochs = (1 + np.arange(n) for n in (norms.shape[2], len(curves[0])))
    yield lines(
        "First epoch, mean of seeds",
        steps,
        named(norms.mean(1)),
        "step",
        "|gradient| in parameters",
    )
    yield lines(
        "Validation, mean of seeds",
        epochs,
        named(100 * curves.mean(2)),
        "epoch",
        "accuracy (%)",
        markers=True,
    )
    # Statement, values for losses and seeds, the difference that would matter, whether more is
    # better.
    comparisons = (
        (
            "Early gradients are longer under cross-entropy (log10)",
            np.log10(norms.mean(2)),
            0.05,
            True,
        ),
        (
            f"It takes fewer epochs to {TARGET:.0%}",
            np.stack([epochs_to(TARGET, c) for c in curves]),
            0.25,
            False,
        ),
        ("It is more accurate after the first epoch", curves[:, 0], 0.01, True),
    )
    for statement, (ours, theirs), margin, more in comparisons:
        # Corrected for three
        (c,) = statistics.compare((ours - theirs)[None], margin, more, comparisons=3)
        interval = f"{c.mean:+.2f} [{c.low:+.2f}, {c.high:+.2f}], p {c.p:.3f}, n = {c.n}"
        measured = f"{ours.mean():.2f} against {theirs.mean():.2f}, paired {interval}"
        yield Claim(statement, c.verdict == statistics.BETTER, measured)


if __name__ == "__main__":
    run(teach, Flags)
