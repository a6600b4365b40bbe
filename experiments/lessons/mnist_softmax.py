"""Ten weight vectors read digits, and whether the nearest one wins

Softmax regression holds 784 weights for each digit, and they can be looked at as an image: ink on
orange speaks for the class, ink on purple against it. The score of a class is the dot product of
the picture x with its vector w, plus a bias b. That is in normalised pixels, as the network sees
them: paper, too, counts there (-0.42 on MNIST).

It is often said that the class whose vector is nearest to the picture wins. As |x - w|² = |x|² - 2
(w x - |w|²/2), the nearest vector has the largest w x - |w|²/2. So the largest dot product is the
nearest vector where all norms are equal, and any two vectors of different norms have pictures where
it is not. The largest score w x + b is the nearest vector where b + |w|²/2 is the same for all
classes; equal norms without bias are one such case, not the only one. And a distance needs a unit:
on raw pixels the same network has weights w / std and another bias, the same scores, and other
nearest vectors. Dot products and biases describe the network in either unit, nearness does not.

    python experiments/lessons/mnist_softmax.py --data-dir DIR
"""

import itertools
from dataclasses import dataclass

import numpy as np

from cnnlab.config import Config, Count, Size
from cnnlab.console import Console
from cnnlab.lesson import Claim, Lesson, Table, picture, run
from cnnlab.training.run import in_memory


@dataclass(frozen=True)
class Flags(Lesson):
    dataset: str = "mnist"
    """As for train.py; of colours the means are shown."""
    data_dir: str | None = None
    """TFDS data directory. None: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    epochs: Count = 10
    """Passes over the training images."""
    seed: Size = 0
    """Of first weights and order."""


def distances(x, w):
    """Compute the distances from each x[N, D] to each column of w[D, K]: float[N, K]."""
    return np.stack([np.linalg.norm(x - column, axis=1) for column in w.T], 1)


def agreement(x, w, b):
    """Compute the share of the pictures x[N, D] where the class with the largest score has the
    nearest vector.
    """
    return np.mean((x @ w + b).argmax(1) == distances(x, w).argmin(1))


def counterexample(a, b):
    """Construct a picture that is nearer to the shorter vector, though its dot product is larger
    with the longer one, by a quarter of | |a|² - |b|² |.
    """
    return (a @ a - b @ b) / (4 * (a - b) @ (a - b)) * (a - b)


def teach(flags: Flags):
    # Fades the noise of the first weights
    config = Config.of(
        dataset=flags.dataset,
        data_dir=flags.data_dir,
        model="softmax_regression",
        epochs=flags.epochs,
        seed=flags.seed,
        optimizer="adamw,weight_decay=0.3",
    )
    experiment, progress = in_memory(config, Console())
    (result,) = experiment.test(progress.state)
    accuracy = result["accuracy"]
    yield Claim(
        "784 inputs and ten vectors reach 92 %",
        accuracy >= 0.92,
        f"{accuracy:.2%} of the test images",
    )
    w, b = (
        np.asarray(progress.state.params["Dense_0"][name], np.float64)
        for name in ("kernel", "bias")
    )
    # uint8[N, H, W, C]
    images = np.concatenate([batch["image"][batch["mask"]] for batch in experiment.test_batches()])
    pixels = images.reshape(-1, len(w))
    # The mean and deviation of each pixel
    mean, std = (
        np.tile(values, images[0, ..., 0].size)
        for values in (experiment.facts.mean, experiment.facts.std)
    )
    for k, weights in enumerate(w.T):
        # Few weights are larger than half the largest
        yield picture(
            f"weights of {k}", weights.reshape(images.shape[1:]).mean(-1), np.abs(w).max() / 2
        )

    x = (pixels - mean) / std
    norms = np.linalg.norm(w, axis=0)
    scores = x @ w + b
    nearest = distances(x, w).argmin(1)
    for i in (0, np.argmax(scores.argmax(1) != nearest)):
        yield picture(f"score: {scores[i].argmax()}, nearest: {nearest[i]}", images[i].mean(-1))
        columns = zip(scores[i], norms, distances(x[i : i + 1], w)[0], strict=True)
        rows = [(f"{k}", *(f"{number:.2f}" for number in row)) for k, row in enumerate(columns)]
        yield Table(("class", "w x + b", "|w|", "|x - w|"), rows, 1)
    raw = pixels / 255, w * 255 / std[:, None], b - mean / std @ w
    cases = (x, w, b), raw, (x, w / norms, 0), (x, w / norms, b), (x, w, -(norms**2) / 2)
    ours, others, equal, biased, balanced = (agreement(*case) for case in cases)
    measured = (
        f"in {ours:.2%} of the test images it is; on pixels in [0, 1] in {others:.2%}, at the same "
        "scores"
    )
    yield Claim(
        "The trained network's largest score is not always the nearest vector",
        max(ours, others) < 1,
        measured,
    )
    measured = (
        f"norms scaled to 1: {equal:.2%} of {len(x):,} test images; with the trained bias "
        f"{biased:.2%}"
    )
    yield Claim(
        "With equal norms and no bias the largest score is the nearest vector",
        equal == 1 > biased,
        measured,
    )
    pairs = [np.stack(pair, 1) for pair in itertools.combinations(w.T, 2)]  # [784, 2] each
    misled = sum(agreement(counterexample(*pair.T)[None], pair, 0) == 0 for pair in pairs)
    measured = (
        f"{misled} of {len(pairs)}; by hand: x = (1, 0), itself one of the vectors (1, 0) and (3, "
        "0)"
    )
    yield Claim(
        "Any two of different norms and no bias have a picture where it is not",
        misled == len(pairs),
        measured,
    )
    yield Claim(
        "With b = -|w|²/2 it is, whatever the norms",
        balanced == 1,
        f"{balanced:.2%} of the test images",
    )


if __name__ == "__main__":
    run(teach, Flags)
