"""Train a network from scratch as often as asked, each run one dispatch; accuracy and time.

    CONFIG=experiments/configs/airbench94.toml
    python experiments/speedrun.py --config $CONFIG --runs 50 --target 0.94 --data-dir DIR
    python experiments/speedrun.py --config $CONFIG --runs 50 --beside airbench94_muon.py

A run's time holds its first weights, the whitening, the order of the images, all steps, and the
test with all views of each image; compilation and a first run that is not counted come before, and
are reported separately. With --beside, the user's copy of KellerJordan/cifar10-airbench's
airbench94_muon.py alternates with ours, on the same images and device. On a CPU, where a run of all
images takes 20 minutes, airbench94_tenth.toml trains both on a tenth of them; there the script's
half precision is float32.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cnnlab import cli, files
from cnnlab.config import PROGRESS, Config, Count, Machine, Recipe, Settings, check, flag
from cnnlab.console import Console
from cnnlab.errors import InputError
from cnnlab.training import run_folder
from cnnlab.types import JsonObject

WORKER = Path(__file__).parent / "benchmarks" / "airbench_torch.py"
# Settings that do nothing here: a run is one dispatch, of images in memory.
IDLE = ("dispatch_steps", "workers", "decoded_limit")
# What changes the images or labels that are trained on.
CONDITIONS = ("label_noise", "long_tail", "fraction")


@dataclass(frozen=True)
class SpeedRun(Settings):
    """Train one network after another, each as fast as it goes."""

    recipe: Recipe = field(default_factory=Recipe)
    machine: Machine = field(default_factory=Machine)

    runs: Count = 5
    """Networks to train, with the seeds from --seed on."""
    together: Annotated[int, "[1, 1000]"] = 1
    """Networks in one dispatch; a divisor of the runs. The time of each is its share of theirs."""
    target: Annotated[float, "(0, 1]"] | None = None
    """Test accuracy that their mean must reach; else exit status 1."""
    beside: str | None = None
    """A copy of airbench94_muon.py, to run it in turns with ours."""
    torch_python: str | None = None
    """Python that has PyTorch, for --beside; None: this one."""
    json: str = "speedrun.json"
    """File to write the runs, the configuration and the versions to."""
    progress: Annotated[str, PROGRESS] = "auto"
    """auto (bar on a terminal, lines elsewhere), bar, lines or off."""

    def __post_init__(self) -> None:
        check(self)
        if self.runs % self.together:
            raise InputError(f"--runs {self.runs} must be a multiple of --together {self.together}")
        if self.recipe.seed + self.runs > 2**32:
            raise InputError(
                f"--seed {self.recipe.seed} leaves no {self.runs} seeds below 2**32; take a lower "
                "one"
            )
        if self.machine.feed in ("mapped", "streaming"):
            raise InputError(
                f"--feed {self.machine.feed} has no place in a run that is one dispatch; leave it "
                "out"
            )
        for name in IDLE:
            if getattr(self.machine, name) != getattr(Machine, name):
                raise InputError(f"{flag(name)} does nothing here; leave it out")
        for name in CONDITIONS if self.beside else ():
            if getattr(self.recipe, name) != getattr(Recipe, name):
                raise InputError(f"{flag(name)} is not for --beside; leave it out")
        if self.torch_python and not self.beside:
            raise InputError("--torch-python is for --beside airbench94_muon.py; give both")


def main(config: SpeedRun) -> None:
    cli.writable(config.json)
    if config.beside:  # JAX would take three quarters of a GPU's memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    import jax

    console = Console(config.progress)
    begun = time.perf_counter()
    with (
        rival(config, console) if config.beside else contextlib.nullcontext((None, {})) as (
            theirs,
            its_versions,
        )
    ):
        run = runner(config, console)
        groups = [
            range(first, first + config.together)
            for first in range(0, config.runs, config.together)
        ]
        groups = [[config.recipe.seed + number for number in group] for group in groups]
        built = time.perf_counter()
        console.say(
            f"read and built in {built - begun:.1f} s; compiling, and a run that does not count"
        )
        run(groups[0])
        before = {"build": built - begun, "compile and first run": time.perf_counter() - built}
        console.say(
            f"compiled and run in {before['compile and first run']:.1f} s; from here on it counts"
        )
        contestants = {"cnnlab": run} | ({"airbench": theirs} if theirs else {})
        rows: dict[str, list[JsonObject]] = {name: [] for name in contestants}
        for number, seeds in enumerate(groups):
            # In alternating order: neither always finds the other's caches.
            names = list(contestants)
            if number % 2:
                names.reverse()
            for name in names:
                new = contestants[name](seeds)
                rows[name] += new
                accuracy, seconds = (
                    sum(row[what] for row in new) for what in ("accuracy", "seconds")
                )
                said = f"{name:8}  accuracy {accuracy / len(new):.4f}  {seconds:.3f} s"
                console.say(f"run {len(rows[name])}/{config.runs}  {said}")
    summary = {name: summarised(runs, name, console) for name, runs in rows.items()}
    if theirs:
        summary["cnnlab against airbench"] = compared(rows["cnnlab"], rows["airbench"], console)
    reached = config.target is None or judged(summary["cnnlab"]["accuracy"], config.target, console)
    versions = run_folder.versions() | its_versions | {"device": jax.devices()[0].device_kind}
    result = {
        "summary": summary,
        "seconds before": before,
        "config": config.to_json(),
        "versions": versions,
    }
    files.write_json(Path(config.json), result | {"runs": rows})
    if not reached:
        raise cli.Stopped("", 1)


def runner(config: SpeedRun, console: Console) -> Callable[[Sequence[int]], list[JsonObject]]:
    """Build a function: as many seeds as run together -> for each its test accuracy, its share of
    the seconds, and the peak memory in bytes.
    """
    import jax

    from cnnlab.training import devices, loop
    from cnnlab.training import experiment as experiments

    experiment = experiments.build(
        Config(config.recipe, config.machine), console, range(config.together), single_dispatch=True
    )
    test = [experiment.layout.place(batch, devices.BATCH) for batch in experiment.test_batches()]

    def run(seeds: Sequence[int]) -> list[JsonObject]:
        start = time.perf_counter()
        fresh = experiment.with_seeds(seeds)
        steps = fresh.steps_per_epoch * config.recipe.epochs
        end = fresh.advance(fresh.start(), list(fresh.items(0, steps)))
        sums = fresh.program.test_sums
        variables = fresh.estimate(end.state, steps).evaluation_variables
        results = loop.evaluate(sums, variables, test, num_seeds=len(seeds))
        jax.block_until_ready(end.totals)
        seconds = (time.perf_counter() - start) / len(seeds)
        memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        return [
            {"seed": seed, "accuracy": result["accuracy"], "seconds": seconds, "memory": memory}
            for seed, result in zip(seeds, results, strict=True)
        ]

    return run


@contextlib.contextmanager
def rival(
    config: SpeedRun, console: Console
) -> Iterator[tuple[Callable[[Sequence[int]], list[JsonObject]], dict[str, str]]]:
    """Start the user's airbench94_muon.py in a process that sleeps between runs; yield a function
    such as `runner` returns, and its versions.
    """
    import numpy as np

    from cnnlab import backend
    from cnnlab.data import contents
    from cnnlab.parts import resolve
    from cnnlab.training import experiment

    if not Path(config.beside or "").is_file():
        raise InputError(f"--beside {config.beside} is no file; give a copy of airbench94_muon.py")
    on_cpu = ["cpu"] if backend.start()[0].platform == "cpu" else []
    dataset = resolve(config.recipe).open_dataset(config.machine.data_dir, config.recipe)
    images, summary = contents.decoded(
        dataset.train, console.track(f"decoding {dataset.train.name}", "reads")
    )
    training, _ = experiment.divided(config.recipe, summary.labels, config.recipe.seed)
    test = dataset.test.read(np.arange(len(dataset.test)))
    with tempfile.TemporaryDirectory() as folder:
        arrays = {"train_images": images[training], "train_labels": summary.labels[training]}
        arrays |= {"test_images": test["image"], "test_labels": test["label"]}
        np.savez(f"{folder}/data.npz", **arrays)  # pyright: ignore[reportArgumentType]
        options = [
            f"batch_size={config.recipe.batch_size}",
            f"epochs={config.recipe.epochs}",
            *on_cpu,
        ]
        command = [
            config.torch_python or sys.executable,
            WORKER,
            config.beside,
            f"{folder}/data.npz",
            *options,
        ]
        pipe = subprocess.PIPE
        try:
            # In a group of its own: Ctrl-C reaches us, and we end it.
            process = subprocess.Popen(
                [str(part) for part in command], stdin=pipe, stdout=pipe, text=True, process_group=0
            )
        except OSError as error:
            raise InputError(
                f"--torch-python {command[0]} cannot be run: {error.strerror}"
            ) from error
        to, out = process.stdin, process.stdout
        assert to and out

        def answer() -> str:
            line = out.readline()
            if not line:
                raise InputError(f"{WORKER.name} ended with status {process.wait()}; see above")
            return line

        def run(seeds: Sequence[int]) -> list[JsonObject]:
            rows = []
            for seed in seeds:
                with contextlib.suppress(BrokenPipeError):  # answer says that it has ended
                    to.write(f"{seed}\n")
                    to.flush()
                rows.append({"seed": seed} | json.loads(answer()))
            return rows

        try:
            yield run, json.loads(answer())
        finally:
            to.close()
            process.terminate()
            process.wait()


def summarised(
    rows: list[JsonObject], name: str, console: Console
) -> dict[str, dict[str, float | None]]:
    """Summarise accuracy and seconds: mean, median, standard deviation and 95 % interval of the
    mean. Print them, and return them as JSON values.
    """
    import numpy as np

    from cnnlab.study import statistics

    summary: dict[str, dict[str, float | None]] = {}
    for what in ("accuracy", "seconds"):
        values = np.array([row[what] for row in rows])
        low, high = map(float, statistics.t_interval(values)) if len(values) > 1 else (None, None)
        sd = float(values.std(ddof=1)) if len(values) > 1 else None
        figures = {
            "mean": float(values.mean()),
            "sd": sd,
            "low": low,
            "high": high,
            "median": float(np.median(values)),
        }
        summary[what] = figures
        spread = (
            f" ± {sd:.4f} (sd), 95 % interval [{low:.4f}, {high:.4f}]" if len(values) > 1 else ""
        )
        console.say(
            f"{name:8}  {what:8}  mean {figures['mean']:.4f}{spread}, "
            f"median {figures['median']:.4f}"
        )
    return summary


def compared(ours: list[JsonObject], theirs: list[JsonObject], console: Console) -> JsonObject:
    """Compare our runs with those that alternated with them: the difference of accuracies, the
    ratio of times.
    """
    import numpy as np

    from cnnlab.study import statistics

    def column(rows, what):
        return np.array([row[what] for row in rows])

    difference = column(ours, "accuracy") - column(theirs, "accuracy")
    times = np.log(column(ours, "seconds") / column(theirs, "seconds"))
    rows = {"accuracy": (difference, float), "seconds": (times, lambda x: float(np.exp(x)))}
    compared = {}
    for what, (values, shown) in rows.items():
        low, high = statistics.t_interval(values) if len(values) > 1 else (None, None)
        compared[what] = {"mean": shown(values.mean())}
        compared[what] |= {} if low is None else {"low": shown(low), "high": shown(high)}
    for what, label in (
        ("accuracy", "accuracy, ours less theirs"),
        ("seconds", "seconds, ours over theirs"),
    ):
        figures = compared[what]
        spread = (
            f", 95 % interval [{figures['low']:.4f}, {figures['high']:.4f}]"
            if "low" in figures
            else ""
        )
        console.say(f"{label}: {figures['mean']:.4f}{spread}")
    return compared


def judged(accuracy: dict[str, float | None], target: float, console: Console) -> bool:
    """Return whether the mean reaches the target; print that, and whether the interval leaves it
    open.
    """
    mean, low, high = (accuracy[name] for name in ("mean", "low", "high"))
    assert mean is not None
    sure = low is not None and high is not None and not low <= target <= high
    verdict = f"{'reached' if mean >= target else 'missed'} by the mean"
    interval = "and by its interval" if sure else "but left open by its interval: more --runs"
    console.say(f"target {target:.2%}: {verdict}, {interval}")
    return mean >= target


if __name__ == "__main__":
    cli.main(main, SpeedRun)
