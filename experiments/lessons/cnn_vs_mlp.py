"""What weight sharing buys: a CNN against an MLP of as many parameters

A convolution is a dense layer under two restrictions: an output sees only the pixels around its
place, and at all places through the same weights. The two networks here have equally many
parameters, so the CNN's advantage is no matter of size. It rests on the arrangement of the pixels:
put into another order, one and the same for all images, they are as good as before to the MLP,
whose first layer treats all of them alike, and the CNN's advantage is gone.

Convolutions are often called translation invariant. They are equivariant: a shifted image gives
shifted features, which the dense layers behind them meet in places where they were not trained. So
the CNN suffers too when test images are shifted (cyclically here, so that no pixel is lost), but of
the images that it had right it keeps more right than the MLP. Accuracy does not show that: the MLP
had less to lose, and gets more by chance of what it had wrong, so that a long shift takes fewer
points from it.

    python experiments/lessons/cnn_vs_mlp.py --data-dir DIR
"""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import numpy as np

from cnnlab import losses, models, optim
from cnnlab.console import Console
from cnnlab.data import catalogue, contents, order
from cnnlab.lesson import Claim, Lesson, lines, run
from cnnlab.models import convolution
from cnnlab.training import devices, network
from cnnlab.training.step import Objective, StepParts, train_step, zero_totals

SHIFTS = (0, 2, 4, 8)  # pixels, in each of four directions
# Points: at least three standard errors of a difference between shares of 5000 images each.
ERROR = 3.0


@dataclass(frozen=True)
class Flags(Lesson):
    data_dir: str | None = None
    """TFDS data directory. None: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""


def parameters(module):
    return models.count_parameters(
        jax.eval_shape(module.init, jax.random.key(0), jax.numpy.zeros((1, 32, 32, 3)))
    )


def shuffled(images):
    return images.reshape(-1, 1024, 3)[:, np.random.default_rng(0).permutation(1024)].reshape(
        images.shape
    )


def normal(images):
    return images.astype(np.float32) / 127.5 - 1


def trained(model, images, labels, steps=500):
    """Train the model, and return it as a function: images -> the classes that it predicts."""
    tx = optim.adam(optim.cosine(1e-3, steps))
    key = jax.random.key(0)
    parts = StepParts(
        apply_fn=network.apply_for_training(model),
        objective=Objective(losses.cross_entropy),
        tx=tx,
        prepare=lambda batch, *keys: batch | {"image": normal(batch["image"])},
    )
    step = jax.jit(partial(train_step, parts=parts))
    state = network.initial_state(model, tx, key, (32, 32, 3))
    totals = zero_totals()
    for i in Console().track(f"training the {type(model).__name__}", "steps")(range(steps)):
        at = order.batch_positions(0, i, len(images), 128)
        state, totals = jax.block_until_ready(
            step(state, totals, {"image": images[at], "label": labels[at]}, key)
        )
    return jax.jit(lambda images: model.apply({"params": state.params}, normal(images)).argmax(-1))


def after_shifts(classify, images, labels):
    """Measure accuracy, and of what was right unshifted the share that still is: float[S, 2], the
    mean of four directions.
    """

    def moved(by):
        return (np.roll(images, pixels, axis) for pixels in (-by, by) for axis in (1, 2))

    right = np.array([[classify(x) == labels for x in moved(by)] for by in SHIFTS])  # [S, 4, N]
    return np.stack([right.mean((1, 2)), right[..., right[0, 0]].mean((1, 2))], 1)


def teach(flags: Flags):
    pair = (
        models.CNN(conv=convolution.Convolution(devices.formulation(jax.default_backend()))),
        models.MLP(hidden=(177,)),
    )
    outputs = (
        nn.Sequential([jax.numpy.ravel, nn.Dense(32 * 32 * 32)]),
        nn.ConvLocal(32, (3, 3)),
        nn.Conv(32, (3, 3)),
    )
    dense, local, conv, *sizes = (parameters(module) for module in outputs + pair)
    measured = (
        f"32x32x32 outputs: dense {dense:,}, from 3x3 pixels each {local:,}, shared {conv:,}; "
        f"networks: {sizes}"
    )
    yield Claim(
        "Shared, 896 parameters in place of 100,696,064",
        (conv, dense) == (896, 100_696_064),
        measured,
    )

    data = catalogue.open_dataset("cifar10", flags.data_dir)
    track = Console().track
    (images, known), (tests, answers) = (
        contents.decoded(part, track("decoding")) for part in (data.train, data.test)
    )
    shifted = [
        after_shifts(trained(model, images, known.labels), tests, answers.labels) for model in pair
    ]
    # Each float[S], in per cent
    (cnn, cnn_kept), (mlp, mlp_kept) = 100 * np.swapaxes(shifted, 1, 2)
    holds = cnn[0] - mlp[0] > 8 and abs(sizes[0] / sizes[1] - 1) < 0.01
    yield Claim("At equal size the CNN is 8 points better", holds, f"{cnn[0]:.1f}, {mlp[0]:.1f} %")
    other = [
        trained(model, shuffled(images), known.labels)(shuffled(tests)) == answers.labels
        for model in pair
    ]
    a, b = 100 * np.mean(other, 1)
    gone = a < b + ERROR and abs(b - mlp[0]) < ERROR
    yield Claim(
        "On shuffled pixels it is no better, and the MLP as good as before",
        gone,
        f"{a:.1f} and {b:.1f} %",
    )

    for name, ours, theirs in (
        ("accuracy (%)", cnn, mlp),
        ("still right of what was right (%)", cnn_kept, mlp_kept),
    ):
        yield lines(
            name, SHIFTS, {"CNN": ours, "MLP": theirs}, "shift (pixels)", name, markers=True
        )
    falls = (
        f"of all test images they lose {(cnn[0] - cnn)[1:].round(1)} and "
        f"{(mlp[0] - mlp)[1:].round(1)} points"
    )
    measured = (
        f"{cnn_kept[1:].round(1)} and {mlp_kept[1:].round(1)} % after {SHIFTS[1:]} pixels; {falls}"
    )
    yield Claim(
        "Shifted, it keeps more right of what it had right",
        np.all((cnn_kept - mlp_kept)[1:] > ERROR),
        measured,
    )


if __name__ == "__main__":
    run(teach, Flags)
