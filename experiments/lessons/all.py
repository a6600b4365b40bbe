"""Every claim about softmax, cross-entropy and CNNs that cnnlab stands on: run, checked and drawn,
on one page.

    python experiments/lessons/all.py --data-dir DIR

Runs each lesson of this folder as a process of its own and writes lessons.html, one file that loads
nothing from elsewhere. Exit status 1 if a claim does not hold or a lesson fails.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cnnlab import cli, files, lesson
from cnnlab.console import Console
from cnnlab.errors import InputError, unknown

LESSONS = (
    "softmax_1d",
    "sigmoid_vs_softmax",
    "softmax_2d",
    "mnist_softmax",
    "cross_entropy",
    "cross_entropy_vs_mse",
    "convolution",
    "cnn_vs_mlp",
    "training",
)


@dataclass(frozen=True)
class All:
    """Run the lessons and write one page of them."""

    only: tuple[str, ...] = LESSONS
    """Which lessons, by name."""
    data_dir: str | None = None
    """TFDS data directory with CIFAR-10 and MNIST. None: $TFDS_DATA_DIR, else
    ~/tensorflow_datasets.
    """
    workdir: str = "runs/lessons"
    """Folder for lessons.html, and what each lesson leaves."""

    def __post_init__(self) -> None:
        if not self.only or len(set(self.only)) < len(self.only):
            raise InputError(
                f"--only takes each lesson once, at least one; got {' '.join(self.only) or 'none'}"
            )
        for name in self.only:
            if name not in LESSONS:
                raise unknown("lesson", name, LESSONS)


def main(flags: All) -> None:
    folder = lesson.made(flags.workdir)
    environment = os.environ | ({"TFDS_DATA_DIR": flags.data_dir} if flags.data_dir else {})
    console = Console("off")
    taught = []
    failed = []
    for place, name in enumerate(flags.only, 1):
        console.say(f"== {place}/{len(flags.only)} {name}")
        stored = folder / f"{name}.json"
        stored.unlink(missing_ok=True)  # so that what stands there afterwards is of this run
        command = [
            sys.executable,
            str(Path(__file__).with_name(f"{name}.py")),
            "--workdir",
            str(folder),
        ]
        status = subprocess.run(command, env=environment).returncode
        if status == cli.EXIT_INTERRUPTED:
            raise cli.Stopped("interrupted", status)
        if status == cli.EXIT_PREEMPTED:
            raise cli.Stopped(f"{name} was stopped; run the same command again", status)
        if stored.exists():
            taught.append(lesson.read(stored))
        else:
            failed.append(f"{name} (exit status {status})")
    if not taught:
        raise InputError(f"no lesson could be taught: {', '.join(failed)}")
    page = folder / "lessons.html"
    files.write_text(
        page, lesson.page(taught, "Softmax, cross-entropy and CNNs: what holds", failed)
    )
    refuted = sum(len(topic.refuted) for topic in taught)
    console.say(f"{refuted} claims do not hold, {len(failed)} lessons failed", page)
    if refuted or failed:
        raise cli.Stopped("", 1)


if __name__ == "__main__":
    cli.main(main, All)
