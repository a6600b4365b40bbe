"""A linear softmax classifier divides the plane

Each class has a weight vector w_k and an offset b_k, and its score w_k x + b_k is a plane over the
plane of inputs. The decision regions are where one of these planes is the highest. So they are
convex, and their borders are where the two highest tie: pieces of straight lines, at right angles
to w_i - w_j. Softmax moves no border; it says how sure the decision is, and that is what the loss
and its gradient read. The borders are looked for on 200 straight ways, as steps in which the class
of largest probability changes.

An arrow, a class's weight vector, points where its score grows, and that need not be its region:
only differences of scores count, so any vector may be added to all of them. The class in the middle
wins by its offset, nearly without a vector. Gradient descent from 0 leaves the sum of the vectors
at 0, as the gradients of the classes cancel.

Class ids count from 0, so the labels 2, 4, 1, 0 need at least five classes. With four, a loss of
cnnlab raises an error where it sees the labels, and is NaN for the impossible one under jit, where
it does not.

    python experiments/lessons/softmax_2d.py
"""

import jax
import numpy as np
import optax

from cnnlab.html.svg import INK, look
from cnnlab.lesson import Claim, Lesson, figure, run
from cnnlab.losses import cross_entropy
from cnnlab.softmax import predict, softmax

CENTRES = np.array([[0, 0], [4, 1], [-1, 4], [-4, -1], [1, -4]])


def scores(W, x):
    return x @ W[:2] + W[2:]  # w_k x + b_k: float[..., 2] @ [2, 5] + [1, 5]


def fit(x, classes, steps=2000):
    """Fit weight vectors and offsets, the columns and the last row of W, by gradient descent on
    cross-entropy.
    """
    gradient = jax.grad(lambda W: cross_entropy(scores(W, x), classes).mean())
    tx = optax.sgd(0.1, momentum=0.9)

    def step(_, state):
        updates, momentum = tx.update(gradient(state[0]), state[1])
        return optax.apply_updates(state[0], updates), momentum

    W = np.zeros((3, 5), np.float32)
    return np.asarray(jax.lax.fori_loop(0, steps, step, (W, tx.init(W)))[0])


def paint(axis, W, x, classes, borders):
    ticks = np.linspace(-6, 6, 121)
    z = scores(W, np.stack(np.meshgrid(ticks, ticks), -1))  # [121, 121, 5]
    for k in range(5):
        ahead = z[..., k] - np.delete(z, k, -1).max(-1)
        axis.contourf(ticks, ticks, ahead, [0, 1e3], colors=[look(k)["color"]], alpha=0.2)
        axis.plot(
            *x[classes == k].T, **look(k) | {"linestyle": ""}, markersize=4, label=f"class {k}"
        )
    axis.plot(*borders.T, ".", color=INK, markersize=2)
    axis.quiver(
        *np.zeros((2, 5)), *W[:2], angles="xy", scale_units="xy", scale=1, color=INK, zorder=3
    )
    axis.set(xlabel="input x_1", ylabel="input x_2", xlim=(-6, 6), ylim=(-6, 6))
    axis.legend(fontsize=9, labelspacing=0.2, handletextpad=0, loc="upper left", frameon=False)


def answer(loss, classes):
    """Return what a loss says of the labels 2, 4, 1, 0 for that many classes: its values, or its
    error.
    """
    try:
        return str(loss(np.zeros((4, classes), np.float32), np.array([2, 4, 1, 0])).round(2))
    except ValueError as error:
        return str(error)


def teach(flags: Lesson):
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(5), 40)
    x = np.float32(CENTRES[classes] + rng.normal(0, 0.8, (200, 2)))
    W = fit(x, classes)
    ways = np.linspace(*rng.uniform(-6, 6, (2, 200, 2)), num=5001)  # [5001, 200, 2]
    z = scores(W, ways)
    decisions = np.asarray(predict(softmax(z)))
    crossing = decisions[1:] != decisions[:-1]  # a border lies in this step
    yield figure(
        "Regions and weight vectors",
        lambda a: paint(a, W, x, classes, ways[1:][crossing]),
        height=323,
    )
    lead = np.diff(np.sort(z)[..., -2:])[..., 0]
    # float32 rounds scores below 64 by 2^-19
    same = np.all((decisions == z.argmax(-1)) | (lead < 2**-17))
    tie = lead[1:][crossing].max()
    change = np.abs(np.diff(z, axis=0)).max()
    measured = (
        f"the largest leads by {np.median(lead):.1f} (median), beside {crossing.sum()} borders by "
        f"{tie:.3f} at most"
    )
    yield Claim(
        "A region is where one score is largest; on its border two tie",
        same and tie < 2 * change,
        measured,
    )
    length = np.linalg.norm(W[:2], axis=0)
    right = np.mean(scores(W, x).argmax(1) == classes)
    measured = (
        f"{right:.1%} of 200 points right; vectors of lengths {length.round(1)}, offsets "
        f"{W[2].round(1)}"
    )
    by_offset = W[2].argmax() == 0 and 5 * length[0] < min(length[1:])
    yield Claim("The middle class wins by its offset", right > 0.95 and by_offset, measured)
    four, five = answer(cross_entropy, 4), answer(cross_entropy, 5)
    measured = f"four: {four}; under jit {answer(jax.jit(cross_entropy), 4)}; five: {five}"
    yield Claim(
        "The labels 2, 4, 1, 0 need five classes", "got 4" in four and "1.61" in five, measured
    )


if __name__ == "__main__":
    run(teach)
