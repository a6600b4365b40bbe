"""Cross-entropy sees what accuracy does not

Cross-entropy is -log of the probability that the true class got, in nats: 0 for certainty, and
without limit as that probability goes to 0. Accuracy asks only whether it was the largest, so two
networks that err on the same picture look alike, however sure one of them was. A loss that reads
the probabilities tells them apart, and has a gradient.

The well-known table of two networks and three pictures names the probabilities of the true classes.
For cross-entropy that is enough. Squared error needs the other classes too: 0.25 and 0.71 are sum_k
(p_k - e_k)^2, averaged over the pictures, if there are two classes. The true class's (1 - p)^2
alone, or the mean over the classes, gives half of that. Squared error tells these networks apart as
well; where the two losses part is an error made with certainty.

    python experiments/lessons/cross_entropy.py
"""

import jax.numpy as jnp
import numpy as np

from cnnlab.html.svg import INK, look
from cnnlab.lesson import Claim, Lesson, Table, figure, run
from cnnlab.losses import cross_entropy, mean_squared_error
from cnnlab.softmax import predict

LABELS = np.array([0, 1, 0])  # cat, dog, cat
# Network 1: [3 pictures, 2 classes]
FIRST = np.array([[0.9, 0.1], [0.1, 0.9], [0.4, 0.6]], np.float32)
SECOND = np.array([[0.6, 0.4], [0.3, 0.7], [0.1, 0.9]], np.float32)


def of_true(p):
    """Select the probabilities of the true classes: float[3, 2] -> float[3]."""
    return p[np.arange(3), LABELS]


def measure(p):
    """Compute the number of errors, the pictures' mean squared error, the true class's part of it,
    and cross-entropy: float[4].
    """
    z = jnp.log(p)  # softmax(log p) = p
    squared = mean_squared_error(z, LABELS).mean()
    entropy = cross_entropy(z, LABELS).mean()
    return np.array(
        [(predict(z) != LABELS).sum(), squared, ((1 - of_true(p)) ** 2).mean(), entropy]
    )


def curve(name, formula, loss):
    def paint(axis):
        p = np.linspace(0.03, 1, 200)
        axis.plot(p, loss(p), color=INK)
        for place, q in enumerate((of_true(FIRST), of_true(SECOND))):
            axis.plot(
                q,
                loss(q),
                **look(place) | {"linestyle": ""},
                markersize=8,
                label=f"network {place + 1}",
            )
        axis.set(
            xlabel="probability p of the true class", ylabel=f"{name} {formula}", ylim=(-0.1, 3)
        )
        axis.legend(frameon=False, fontsize=10)

    return figure(f"{name.capitalize()} of six pictures (two at 0.9)", paint)


def teach(flags: Lesson):
    exact = -np.log(0.7)
    ours = float(cross_entropy(jnp.log(jnp.array([0.7, 0.2, 0.1])), 0))
    # float32 rounds three p and a log, by 2^-24
    holds = exact == 0.35667494393873245 and abs(ours - exact) < 2**-22
    measured = f"-log 0.7 = {exact}; cnnlab, in float32, {ours:.8f}"
    yield Claim("0.7 for the true class costs 0.3567 nats", holds, measured)

    first = measure(FIRST)
    second = measure(SECOND)
    names = (
        "errors of 3",
        "squared error, both classes",
        "squared error, true class",
        "cross-entropy (nats)",
    )
    rows = [("p of the true class", "0.9, 0.9, 0.4", "0.6, 0.7, 0.1")]
    rows += [
        (name, f"{a:.5g}", f"{b:.5g}") for name, a, b in zip(names, first, second, strict=True)
    ]
    yield Table(("", "network 1", "network 2"), rows, 1)
    holds = np.all(first.round(2)[[0, 1, 3]] == [1, 0.25, 0.38]) and np.all(
        second.round(2)[[0, 1, 3]] == [1, 0.71, 1.06]
    )
    measured = (
        f"squared error {first[1]:.2f} and {second[1]:.2f}, "
        f"cross-entropy {first[3]:.2f} and {second[3]:.2f}"
    )
    yield Claim("Both networks err on one picture of three; their losses differ", holds, measured)
    yield curve("cross-entropy", "-log p (nats)", lambda p: -np.log(p))
    yield curve("squared error", "2 (1 - p)²", lambda p: 2 * (1 - p) ** 2)

    z = jnp.log(jnp.array([[0.4, 0.6, 0], [0.4, 0.5, 0.1]]))
    squared, entropy = (loss(z, jnp.array([0, 0])) for loss in (mean_squared_error, cross_entropy))
    holds = abs(entropy[0] - entropy[1]) < 2**-22 and np.allclose(squared, [0.72, 0.62], 0, 2**-22)
    measured = (
        f"(0.4, 0.6, 0) {squared[0]:.2f}, (0.4, 0.5, 0.1) {squared[1]:.2f}; cross-entropy of both "
        f"{entropy[0]:.4f}"
    )
    yield Claim(
        "Squared error depends on how the wrong classes share the rest, cross-entropy does not",
        holds,
        measured,
    )
    p = 10.0 ** -np.arange(1, 31)
    squared, entropy = (
        loss(np.log([p, 1 - p]).T, np.zeros(30, int))
        for loss in (mean_squared_error, cross_entropy)
    )
    holds = np.all(squared <= 2) and np.allclose(entropy, -np.log(p), 1e-6, 0)
    measured = f"at p = 1e-30 cross-entropy is {entropy[-1]:.2f}, squared error {squared[-1]:.2f}"
    yield Claim(
        "A sure error costs cross-entropy without limit, squared error at most 2", holds, measured
    )


if __name__ == "__main__":
    run(teach)
