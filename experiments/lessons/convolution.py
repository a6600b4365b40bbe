"""Convolution by hand, the size of what comes out, and what a network learns to look for

A filter is a small window of weights w, laid over the picture x at places S pixels apart. The dot
product with what it covers answers for that place: y[i, j] = sum of x[S i + u, S j + v, c] w[u, v,
c] over rows u, columns v and channels c; a bias may be added. That is what the layers of the usual
libraries compute and call a convolution. In mathematics it is a cross-correlation, and a
convolution turns the kernel by 180° first. To training that is all the same; a kernel that is
carried from one to the other has to be turned.

A kernel of K pixels has floor((W - K + 2 P) / S) + 1 places on W pixels with P zeros on each side.
The formula is often written without the floor, as it is only where the division leaves no
remainder; else, that many of the last rows and columns are not covered.

The pictures are of the seed network's first layer after training: its 32 filters in the colours of
normalised pixels, grey for 0, all on one scale; a test image; and the answers of the first 16 to
it, after bias and ReLU and before pooling, from black for 0 to white for the largest of each.

    python experiments/lessons/convolution.py --data-dir DIR
"""

from dataclasses import dataclass
from itertools import product

import flax.linen as nn
import jax
import numpy as np

from cnnlab.config import Config, Count
from cnnlab.console import Console
from cnnlab.lesson import Claim, Lesson, picture, run
from cnnlab.models import convolution, pooling
from cnnlab.training.run import in_memory

# One picture, four filters
X, *KERNEL = np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype(np.float32)


@dataclass(frozen=True)
class Flags(Lesson):
    dataset: str = "cifar10"
    """Colour images in ten classes, as for train.py."""
    data_dir: str | None = None
    """TFDS data directory. None: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    epochs: Count = 3
    """Passes over the training images."""


def convolve(x, kernel, stride, padding):
    """Convolve by hand: x[H, W, C], kernel[K, K, C, D] -> float64[H', W', D]."""
    x = np.pad(np.float64(x), ((padding, padding), (padding, padding), (0, 0)))
    # The places where it fits
    rows, columns = (range(0, n - len(kernel) + 1, stride) for n in x.shape[:2])
    y = np.zeros((len(rows), len(columns), kernel.shape[3]))
    for i, j, u, v in np.ndindex(len(rows), len(columns), *kernel.shape[:2]):
        y[i, j] += x[rows[i] + u, columns[j] + v] @ kernel[u, v]  # the sum over channels
    return y


def layer(x, kernel, stride, padding, how):
    conv = nn.Conv(
        kernel.shape[3], kernel.shape[:2], stride, padding, use_bias=False, conv_general_dilated=how
    )
    with jax.default_matmul_precision("highest"):  # GPUs may round to TF32
        return np.asarray(conv.apply({"params": {"kernel": kernel}}, x[None]))[0]


def compare(width, side, padding, stride, how):
    """Return whether the sides match the formula, whether the error is within what n terms, each
    rounded n times, allow, and the largest error.
    """
    x = X[:width, :width]
    kernel = np.stack(KERNEL, -1)[:side, :side]
    exact = convolve(x, kernel, stride, padding)
    ours = layer(x, kernel, stride, padding, how)
    sides = {convolution.conv_output_size(width, side, padding, stride), len(exact), len(ours)}
    bound = ((1 + 2**-24) ** kernel[..., 0].size - 1) * convolve(
        abs(x), abs(kernel), stride, padding
    )
    return len(sides) == 1, np.all(abs(ours - exact) <= bound), np.max(abs(ours - exact))


def teach(flags: Flags):
    grid = list(
        product(
            range(4, 9),
            (1, 2, 3),
            (0, 1, 2),
            (1, 2, 3),
            map(convolution.Convolution, ("native", "blocked")),
        )
    )
    sized, within, errors = zip(*(compare(*case) for case in grid), strict=True)
    measured = (
        f"{len(grid)} cases, {sum((w - k + 2 * p) % s > 0 for w, k, p, s, _ in grid)} of them with "
        "a remainder"
    )
    yield Claim(
        "The layer's output has floor((W - K + 2 P) / S) + 1 pixels a side", all(sized), measured
    )
    measured = (
        f"strides 1 to 3, padding 0 to 2: off by at most {max(errors):.0e}, nowhere by more than "
        "float32 may be"
    )
    yield Claim("It is what the loops compute, which do not turn the kernel", all(within), measured)
    x = nn.relu(
        np.array([[1, -3, 2, 4], [5, 6, -1, 2], [-7, -2, 8, 1], [0, -1, 3, -4]], np.float32)[
            None, ..., None
        ]
    )
    largest, mean = (
        y.ravel().tolist()
        for y in (pooling.max_pooling(x, 2, "native"), pooling.average_pooling(x, 2))
    )
    right = largest == [6, 4, 0, 8] and mean == [3, 2, 0, 3]
    yield Claim(
        "ReLU and pooling from 4x4 to 2x2 give what they do by hand",
        right,
        f"largest {largest}, means {mean}",
    )

    experiment, progress = in_memory(
        Config.of(dataset=flags.dataset, data_dir=flags.data_dir, epochs=flags.epochs), Console()
    )
    (result,) = experiment.test(progress.state)
    accuracy = result["accuracy"]
    yield Claim(
        "A network of such layers learns", accuracy > 0.5, f"{accuracy:.1%} of the test images"
    )
    kernel, bias = (
        np.asarray(progress.state.params["Conv_0"][name]) for name in ("kernel", "bias")
    )
    yield from [
        picture(f"filter {k}", 0.5 + kernel[..., k] / abs(kernel).max() / 2, side=64)
        for k in range(32)
    ]
    image = next(experiment.test_batches())["image"][5]
    facts = experiment.facts
    normal = (image - np.array(facts.mean)) / np.array(facts.std)
    maps = convolve(normal, kernel, 1, 1) + bias
    yield picture("test image", image / 255)
    # After ReLU
    yield from [picture(f"map of {k}", np.maximum(maps[..., k], 0)) for k in range(16)]


if __name__ == "__main__":
    run(teach, Flags)
