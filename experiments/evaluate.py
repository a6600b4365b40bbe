"""Test metrics of a run folder, also of a run that is still going on.

python experiments/evaluate.py runs/shapes10-cnn-cross_entropy-seed0
python experiments/evaluate.py RUN --weights best --json > result.json
"""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import dataclass

import tyro

from cnnlab import cli, files
from cnnlab.errors import InputError


@dataclass(frozen=True)
class Arguments:
    """Evaluate the network of a run folder on the test split."""

    run: tyro.conf.Positional[str]
    """Run folder."""
    weights: str = "last"
    """last, or best (on validation)."""
    data_dir: str | None = None
    """TFDS data directory. None: the run's own."""
    json: bool = False
    """Print everything, the confusion matrix included, as JSON."""


def main(arguments: Arguments) -> None:
    import jax
    import numpy as np

    from cnnlab import metrics
    from cnnlab.console import Console
    from cnnlab.data import feed
    from cnnlab.training import loop, network
    from cnnlab.training.step import Objective, eval_step

    trained = network.load(files.path(arguments.run), arguments.weights)
    for module in trained.changed:
        print(f"{module} is no longer the file that the run was trained with", file=sys.stderr)
    config = trained.config
    data_dir = arguments.data_dir or config.data_dir
    parts, facts = trained.parts, trained.facts
    dataset = parts.open_dataset(data_dir, config.image_size)
    test = dataset.test
    if [*dataset.class_names] != facts["class_names"] or [*test.image_shape] != facts[
        "image_shape"
    ]:
        raise InputError(
            f"{config.dataset} in {data_dir} is not what {arguments.run} was trained on"
        )
    loss = parts.build_loss(test.num_classes, np.array(facts["class_counts"]))
    steps = facts["counts"]["train"] // config.batch_size
    teacher = network.teacher_fn(config, dataset)[0] if parts.needs_teacher else None
    own = parts.build_metrics()
    step = functools.partial(
        eval_step,
        apply_fn=trained.apply_fn,
        objective=Objective(loss, parts.loss_asks, steps * config.epochs, steps, teacher),
        own=own,
    )
    step = jax.jit(step)
    batches = feed.in_order(test.read, range(len(test)), config.batch_size)
    result = loop.evaluate(
        step, trained.state, batches, Console("off" if arguments.json else "auto"), own=own
    )
    if arguments.json:
        print(
            json.dumps(
                {"run": arguments.run, "step": trained.step, "weights": arguments.weights, **result}
            )
        )
        return
    print(
        f"{arguments.run}, {arguments.weights} weights (step {trained.step}): "
        f"{metrics.describe(result)}"
    )
    for name, accuracy in zip(
        trained.facts["class_names"], result["per_class_accuracy"], strict=True
    ):
        print(f"  {name:<16} {'no images' if accuracy is None else f'{accuracy:.4f}'}")


if __name__ == "__main__":
    cli.main(main, Arguments)
