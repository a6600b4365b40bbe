"""Training is four steps, repeated: forward, loss, backward, update

Forward turns images into logits; the loss turns these and the labels into one number, and has a
slope in each logit; backward carries the slopes through the network to its parameters (the chain
rule); the update moves the parameters against them. Here each is written out once, with the updates
of SGD (Nesterov's momentum) and Adam by their formulas, and gives what cnnlab's compiled train_step
gives. In float64: Adam divides each gradient by its own size, so that in float32 the rounding of a
gradient near 0 becomes a step of full length.

Then both optimizers train the seed network. The training loss is the mean over an epoch while the
weights change, the validation loss is measured after it; so early on the second can be the smaller
one.

    python experiments/lessons/training.py
"""

from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from cnnlab import models, optim
from cnnlab.config import Config, Count
from cnnlab.console import Console
from cnnlab.lesson import Claim, Lesson, lines, run
from cnnlab.losses import cross_entropy
from cnnlab.training import network
from cnnlab.training.run import in_memory
from cnnlab.training.step import Objective, StepParts, create_state, train_step, zero_totals

RATES = {"sgd": 0.05, "adam": 0.001}


@dataclass(frozen=True)
class Flags(Lesson):
    dataset: str = "shapes10"
    """As for train.py."""
    epochs: Count = 10
    """Passes over the training images."""


def sgd(p, gradient, memory, t):
    velocity = gradient + 0.9 * memory[0]
    return p - RATES["sgd"] * (gradient + 0.9 * velocity), (velocity,)


def adam(p, gradient, memory, t):
    m = 0.9 * memory[0] + 0.1 * gradient
    v = 0.999 * memory[1] + 0.001 * gradient**2
    return p - RATES["adam"] * m / (1 - 0.9**t) / ((v / (1 - 0.999**t)) ** 0.5 + 1e-8), (m, v)


def by_hand(update, model, state, step, batches):
    """Take each step by hand and with the library; return the largest difference of their losses
    and parameters.
    """
    p, unravel = ravel_pytree(state.params)
    memory = (0.0, 0.0)
    off = 0.0
    for t, (x, y) in enumerate(batches, 1):
        # 1. forward
        logits, backward = jax.vjp(lambda p, x=x: model.apply({"params": unravel(p)}, x), p)
        # 2. loss
        loss, slopes = jax.value_and_grad(lambda z, y=y: cross_entropy(z, y).mean())(logits)
        (gradient,) = backward(slopes)  # 3. backward
        p, memory = update(p, gradient, memory, t)  # 4. update
        state, totals = step(
            state, zero_totals(x.dtype), {"image": x, "label": y}, jax.random.key(0)
        )
        off = max(
            off, abs(loss - totals["loss"] / len(x)), abs(p - ravel_pytree(state.params)[0]).max()
        )
    return off


def compare(update):
    rng = np.random.default_rng(0)
    model = models.CNN(widths=(8, 16), hidden=(32,))
    name = update.__name__
    batches = [(rng.normal(size=(16, 32, 32, 3)), rng.integers(0, 10, 16)) for _ in range(10)]
    params = jax.tree.map(np.float64, model.init(jax.random.key(0), batches[0][0])["params"])
    tx = optim.OPTIMIZERS[name](RATES[name])
    parts = StepParts(
        apply_fn=network.apply_for_training(model),
        objective=Objective(cross_entropy),
        tx=tx,
        prepare=lambda batch, *keys: batch,
    )
    step = jax.jit(partial(train_step, parts=parts))
    off = by_hand(update, model, create_state({"params": params}, tx), step, batches)
    return Claim(
        f"The four steps of {name} by hand are train_step",
        off < 1e-6,
        f"10 steps: within {off:.0e}",
    )


def teach(flags: Flags):
    with jax.enable_x64(True):
        yield from [compare(update) for update in (sgd, adam)]

    def config(name):
        return Config.of(
            dataset=flags.dataset, optimizer=name, learning_rate=RATES[name], epochs=flags.epochs
        )

    runs = {name: in_memory(config(name), Console())[1].history for name in RATES}
    for key in ("train_loss", "validation_loss", "validation_accuracy"):
        curves = {name: [row[key] for row in rows] for name, rows in runs.items()}
        label = key.replace("_", " ")
        if "loss" in key:
            label += " (nats)"
        yield lines(label, range(1, flags.epochs + 1), curves, "epoch", label, markers=True)
    for name, rows in runs.items():
        loss = [row["train_loss"] for row in rows]
        right = rows[-1]["validation_accuracy"]
        measured = f"{loss[0]:.2f} to {loss[-1]:.3f}; {right:.1%} of the validation images right"
        holds = np.all(np.diff(loss) < 0) and right > 0.9
        yield Claim(
            f"Each epoch of {name} lowers the training loss; it comes to 90 %", holds, measured
        )


if __name__ == "__main__":
    run(teach, Flags)
