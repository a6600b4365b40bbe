"""What a trained network sees in image files.

python experiments/predict.py runs/cifar10-cnn-cross_entropy-seed0 cat.jpg ship.png --top 3
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import tyro

from cnnlab import cli, files
from cnnlab.errors import InputError


@dataclass(frozen=True)
class Arguments:
    """Classify image files with the network of a run folder."""

    run: tyro.conf.Positional[str]
    """Run folder."""
    images: tyro.conf.Positional[tuple[str, ...]]
    """JPEG, PNG, GIF, BMP or WebP files of any size; scaled and cropped to what the network takes.
    """
    top: int = 3
    """Classes to show for each."""
    weights: str | None = None
    """last; average (of the last step); best (on validation), its average where the run has one.
    None: average where the run has one, else last."""


def main(arguments: Arguments) -> None:
    if not arguments.images:
        raise InputError("name at least one image file")
    if arguments.top < 1:
        raise InputError(f"--top must be at least 1, got {arguments.top}")

    import numpy as np

    from cnnlab.data import image
    from cnnlab.softmax import softmax
    from cnnlab.training import network

    trained = network.load(files.path(arguments.run), arguments.weights)
    for line in trained.warnings:
        print(line, file=sys.stderr)
    names = trained.facts.class_names
    images = np.stack([image.read(path, trained.facts.image_shape) for path in arguments.images])
    probabilities = np.asarray(softmax(trained.logits(images)))
    for path, p in zip(arguments.images, probabilities, strict=True):
        best = np.argsort(-p, kind="stable")[: arguments.top]
        print(f"{path}: " + ", ".join(f"{names[k]} {p[k]:.3f}" for k in best))


if __name__ == "__main__":
    cli.main(main, Arguments)
