"""Test metrics of a run folder, also of a run that is still under way.

python experiments/evaluate.py runs/shapes10-cnn-cross_entropy-seed0
python experiments/evaluate.py RUN --weights best --json > result.json
python experiments/evaluate.py RUN --test-sets cifar10_1/v6 test+gaussian_noise,severity=3
"""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass

import tyro

from cnnlab import cli, files
from cnnlab.console import Console, show_result


@dataclass(frozen=True)
class Arguments:
    """Evaluate the network of a run folder on the test split."""

    run: tyro.conf.Positional[str]
    """Run folder."""
    weights: str | None = None
    """last; average (of the last step); best (on validation), its average where the run has one.
    None: average where the run has one, else last."""
    data_dir: str | None = None
    """TFDS data directory. None: the run's own."""
    test_sets: tuple[str, ...] = ()
    """Sets to test on besides the data set's own, as for train.py; the run need not have been
    tested on them."""
    json: bool = False
    """Print everything, the confusion matrix included, as JSON; of more than 100 classes its rows
    are texts such as "0:48 17:2", predicted class:images."""


def main(arguments: Arguments) -> None:
    printed = sys.stderr if arguments.json else sys.stdout
    with contextlib.redirect_stdout(printed):  # by a user's code too
        lines = evaluated(arguments)
    show_result(*lines)


def evaluated(arguments: Arguments) -> list[str]:
    """Evaluate, and return the lines that say what comes of it."""
    from cnnlab import metrics
    from cnnlab.parts import further_sets
    from cnnlab.training import network, run

    test_sets = further_sets(arguments.test_sets)
    trained = network.announced(files.path(arguments.run), arguments.weights)
    weights = arguments.weights or ("average" if trained.state.average else "last")
    console = Console("off" if arguments.json else "auto")
    dataset = run.dataset_of(trained, arguments.data_dir, console)
    result = run.evaluate(trained, dataset, console)
    further = {
        test_set.name: run.evaluate_on(trained, test_set, arguments.data_dir, console)
        for test_set in test_sets
    }
    names = trained.facts.class_names
    if arguments.json:
        about = {"run": arguments.run, "step": trained.step, "weights": weights}
        confused = {"largest_confusions": metrics.named_confusions(result, names)}
        test_results = {"test_sets": further} if further else {}
        return [json.dumps({**about, **result, **confused, **test_results})]
    where = f"{arguments.run}, {weights} weights (step {trained.step})"
    lines = [f"{where}: {metrics.describe(result)}"]
    for name, accuracy in zip(names, result["per_class_accuracy"], strict=True):
        lines.append(f"  {name:<16} {'no images' if accuracy is None else f'{accuracy:.4f}'}")
    return lines + [f"{name}: {metrics.describe(other)}" for name, other in further.items()]


if __name__ == "__main__":
    cli.main(main, Arguments)
