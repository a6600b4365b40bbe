"""What a trained network sees in image files.

python experiments/predict.py runs/cifar10-cnn-cross_entropy-seed0 cat.jpg ship.png --top 3
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import tyro

from cnnlab import cli, files
from cnnlab.console import show, show_result
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

    trained = network.announced(files.path(arguments.run), arguments.weights)
    names = trained.facts.class_names
    paths: list[str] = []
    images: list[np.ndarray] = []
    for path in arguments.images:
        try:
            images.append(image.read(path, trained.facts.image_shape))
            paths.append(path)
        except InputError as error:
            show(f"error: {error}", file=sys.stderr)
    if images:
        probabilities = np.asarray(softmax(trained.logits(np.stack(images))))
        for path, p in zip(paths, probabilities, strict=True):
            best = np.argsort(-p, kind="stable")[: arguments.top]
            show_result(f"{path}: " + ", ".join(f"{names[k]} {p[k]:.3f}" for k in best))
    if len(paths) < len(arguments.images):
        raise cli.Stopped("", cli.EXIT_INPUT)


if __name__ == "__main__":
    cli.main(main, Arguments)
