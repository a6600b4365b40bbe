"""Train one network with one loss, validate each epoch, test once at the end.

    python experiments/train.py                                      shapes10, drawn here: 94 %
    python experiments/train.py --dataset cifar10 --data-dir DIR     without DIR, TFDS downloads it
    python experiments/train.py --loss my_module.my_loss,alpha=0.3   your own loss
    python experiments/train.py --config RUN/config.json --seed 1    another seed of a run
    python experiments/train.py --list                               every part by name

The same command resumes a run that was stopped; on a finished run it prints the summary.
"""

from __future__ import annotations

from pathlib import Path

from cnnlab import cli
from cnnlab.config import Config
from cnnlab.console import Console, show
from cnnlab.multihost import agree
from cnnlab.training import run_folder


def main(config: Config) -> None:
    path = run_folder.default_path(config)
    if summary := agree.on_first(lambda: run_folder.check(path, config, quick=True)):
        show(*report(summary, path))
        return

    from cnnlab.training import run

    console = Console(config.output.progress)
    summary = run.in_folder(config, path, console, started=cli.STARTED).summary
    console.say(*report(summary, path))


def report(summary: dict, path: Path) -> list[str]:
    from cnnlab import metrics

    kinds = {"test": f"{summary['test_on']} weights"}
    if "test_last" in summary:
        best = "best " if summary["test_on"] == "best" else ""
        kinds = {"test": f"{best}average weights", "test_last": "last weights"}
    lines = [
        f"test, {kind} (step {summary['tested_step']}): {metrics.describe(summary[name])}"
        for name, kind in kinds.items()
    ]
    lines += [
        f"{name}: {metrics.describe(result)}"
        for name, result in summary.get("test_sets", {}).items()
    ]
    return [*lines, f"{path}/summary.json"]


def list_parts(kinds: list[str]) -> None:
    from cnnlab import parts

    print(parts.listing(kinds))


if __name__ == "__main__":
    cli.main(main, Config, alone={"--list": list_parts}, several=True)
