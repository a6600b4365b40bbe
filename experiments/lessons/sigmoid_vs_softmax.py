"""Sigmoids answer one by one, softmax chooses

Sigmoid is the softmax of two classes, one of whose scores is 0: only their difference counts. Many
sigmoids are as many separate answers, yes or no, each from its own score; softmax gives one
distribution, in which a class gains what the others lose. So labels that may hold together or not
at all need sigmoids, classes that exclude each other softmax.

Below, scores that are lines over one input are trained both ways, on two kinds of labels. Softmax
cannot answer both "both" and "none", at whatever threshold (an input with no label teaches it
nothing here; shares are of the inputs that were trained on). Sigmoids cannot answer "in the
middle", as no line is high there and low on both sides. So each gets about one input in three
wrong, even at its best threshold. But "sigmoids cannot do exclusive classes" says too much: the
largest of them names the right class nearly as often as softmax, as the other two are small in the
middle. Argmax decides as softmax does, but it is flat almost everywhere: nothing is learned through
it.

    python experiments/lessons/sigmoid_vs_softmax.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnnlab.lesson import Claim, Lesson, lines, run
from cnnlab.losses import binary_cross_entropy, cross_entropy
from cnnlab.softmax import predict, sigmoid, softmax

HEADS = "sigmoids", "softmax"


def data(rng):
    """Draw inputs float[600]; two labels float[600, 2], each true or not; three exclusive classes,
    one-hot float[600, 3].
    """
    x = rng.uniform(-3, 3, 600).astype(np.float32)
    seen = x[:, None] + rng.normal(0, 0.2, (600, 2))  # each label has noise of its own
    return (
        x,
        np.float32(seen > [-1, 1]),
        np.eye(3, dtype=np.float32)[np.digitize(seen[:, 0], [-1, 1])],
    )


def fit(head, loss, x, labels, steps=3000):
    """Fit head(slope_k x + offset_k) by gradient descent on the mean loss; return it as a function
    of the inputs.
    """

    def scores(W, x):
        return jnp.outer(x, W[0]) + W[1:]  # float[2, K], float[N] -> float[N, K]

    gradient = jax.grad(lambda W: loss(scores(W, x), labels).mean())
    tx = optax.sgd(0.5, momentum=0.9)

    def step(_, state):
        updates, momentum = tx.update(gradient(state[0]), state[1])
        return optax.apply_updates(state[0], updates), momentum

    W = jnp.zeros((2, labels.shape[1]))
    W = jax.lax.fori_loop(0, steps, step, (W, tx.init(W)))[0]
    return lambda x: np.asarray(head(scores(W, x)))


def all_right(p, labels):
    """Compute the share of inputs whose labels are all right, at the best threshold for p."""
    return max(
        np.mean(np.all((p > threshold) == labels, 1)) for threshold in np.linspace(0, 1, 101)
    )


def compare(what, need, x, labels, names):
    """Train sigmoids and softmax on labels float[N, K]; yield their curves, and the claim that
    these labels need one of them.
    """
    # As softmax can have them: a distribution
    shares = labels / np.maximum(labels.sum(1, keepdims=True), 1)
    models = fit(sigmoid, binary_cross_entropy, x, labels), fit(softmax, cross_entropy, x, shares)
    grid = np.linspace(-3, 3, 301, dtype=np.float32)
    for head, model in zip(HEADS, models, strict=True):
        series = dict(zip(names, model(grid).T, strict=True))
        yield lines(f"{what}, {head}", grid, series, "input x", "probability", ylim=(0, 1.4))
    right = [all_right(model(x), labels) for model in models]
    largest = [np.mean(labels[np.arange(len(x)), model(x).argmax(1)]) for model in models]
    # Never giving one of the answers
    limit = 1 - np.unique(labels, axis=0, return_counts=True)[1].min() / len(x)
    measured = (
        "right: sigmoids {:.3f}, softmax {:.3f}; at most {:.3f} lacking an answer; by the largest "
        "{:.3f}, {:.3f}"
    )
    holds = min(right) <= limit < right[HEADS.index(need)]
    yield Claim(f"{what} need {need}", holds, measured.format(*right, limit, *largest))


def teach(flags: Lesson):
    z = np.linspace(-20, 20, 4001, dtype=np.float32)
    off = np.abs(sigmoid(z) - softmax(np.stack([z, 0 * z], -1))[:, 0]).max()
    yield Claim(
        "The sigmoid of z is the softmax of z and 0",
        off < 1e-7,
        f"z from -20 to 20: within {off:.0e}",
    )
    z = np.random.default_rng(0).normal(0, 3, (1000, 5)).astype(np.float32)

    def slopes(head):
        return np.asarray(jax.vmap(jax.jacobian(head))(z))  # [1000, 5, 5]

    alone, shared = (slopes(head)[:, ~np.eye(5, dtype=bool)] for head in (sigmoid, softmax))
    measured = (
        f"slopes in other scores: sigmoids' all {alone.max():g}, softmax's {shared.min():.2f} to "
        f"{shared.max():.0e}"
    )
    holds = np.all(alone == 0) and np.all(shared < 0)
    yield Claim(
        "A sigmoid reads its own score; in softmax each score that grows lowers all others",
        holds,
        measured,
    )
    flat = slopes(lambda z: jax.nn.one_hot(predict(z), 5))
    same = np.mean(predict(softmax(z)) == predict(z))
    measured = (
        f"1000 rows of 5 scores: {same:.0%} alike, argmax's slopes all {np.abs(flat).max():g}"
    )
    yield Claim(
        "Argmax decides as softmax does, but has no gradient",
        same == 1 and np.all(flat == 0),
        measured,
    )
    x, labels, classes = data(np.random.default_rng(1))
    yield from compare("Labels that may hold together", "sigmoids", x, labels, ("x > -1", "x > 1"))
    yield from compare(
        "Classes that exclude each other", "softmax", x, classes, ("x < -1", "middle", "x > 1")
    )


if __name__ == "__main__":
    run(teach)
