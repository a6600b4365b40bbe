"""Train the airbench network from scratch as often as asked, each run one dispatch; accuracy and time, with intervals.

    python experiments/speedrun.py --runs 50 --target 0.94 --data-dir DIR

A run's time holds its first weights, the whitening, the order of the images, all steps, and the test with six views of
each image; compilation and a first run that is not counted come before, and are reported apart. The recipe is that of
KellerJordan/cifar10-airbench, airbench94_muon.py: its rates are of a summed loss, these of the mean over 2,000 images.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from cnnlab import cli, run_folder
from cnnlab.config import Config
from cnnlab.errors import InputError


@dataclass(frozen=True)
class SpeedRun(Config):
    """Train one network after another, as fast as it goes, with the airbench recipe."""

    runs: int = 5
    """Networks to train, with the seeds from --seed on."""
    target: float | None = None
    """Test accuracy that their mean shall reach, in (0, 1]; else exit status 1."""
    json: str = "speedrun.json"
    """File to write the runs, the configuration and the versions to."""

    dataset: str = "cifar10"
    validation: float = 0.0
    model: str = "airnet"
    optimizer: str = "muon"
    learning_rate: float = 0.24
    head_rate: float = 0.67 * 2_000 / 256**2
    bias_rate: float = 0.053 * 2_000
    schedule: str = "linear"
    weight_decay: float = 4e-3
    momentum: float = 0.85
    label_smoothing: float = 0.2
    flip: str = "alternating"
    crop: int = 2
    crop_padding: str = "reflect"
    test_views: str = "mirror_shift"
    epochs: int = 8
    batch_size: int = 2_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.runs < 1:
            raise InputError(f"--runs must be at least 1, got {self.runs}")
        if self.target is not None and not 0 < self.target <= 1:
            raise InputError(f"--target must lie in (0, 1], got {self.target}")


def main(config: SpeedRun) -> None:
    cli.writable(config.json)
    import jax
    import numpy as np

    from cnnlab import loop, parallel, recipe, stats
    from cnnlab.console import Console

    console, begun = Console(config.progress), time.perf_counter()
    experiment = recipe.build(config, console, [config.seed], whole=True)
    test = [experiment.layout.place(batch, parallel.BATCH) for batch in experiment.test()]

    def run(seed: int) -> tuple[float, float]:
        """Test accuracy of a network trained from scratch, and the seconds."""
        start = time.perf_counter()
        fresh = experiment.again([seed])
        items = list(fresh.items(0, fresh.steps_per_epoch * config.epochs))
        state, totals = fresh.step(fresh.state, fresh.totals, items)
        (result,) = loop.evaluate(fresh.eval_step, state, test, seeds=1)
        jax.block_until_ready(totals)
        return result["accuracy"], time.perf_counter() - start

    run(config.seed)
    before = time.perf_counter() - begun
    console.say(f"data, compilation and a run that does not count: {before:.1f} s")
    rows = []
    for number in range(config.runs):
        accuracy, seconds = run(config.seed + number)
        rows.append({"seed": config.seed + number, "accuracy": accuracy, "seconds": seconds})
        console.say(f"run {number + 1}/{config.runs}  accuracy {accuracy:.4f}  {seconds:.3f} s")
    summary = {}
    for name in ("accuracy", "seconds"):
        values = np.array([row[name] for row in rows])
        low, high = map(float, stats.interval(values))
        sd = float(values.std(ddof=1)) if len(values) > 1 else None
        summary[name] = {"mean": float(values.mean()), "sd": sd, "median": float(np.median(values))}
        if sd is not None:
            summary[name] |= {"low": low, "high": high}
            console.say(f"{name}: mean {values.mean():.4f} ± {sd:.4f} (sd), 95 % interval [{low:.4f}, {high:.4f}]")
    device = str(experiment.layout.mesh.devices.flat[0].device_kind)
    stored = {"config": config.to_json(), "versions": run_folder.versions() | {"device": device}}
    run_folder.write_json(Path(config.json), {"summary": summary, "runs": rows, "before": before} | stored)
    mean = summary["accuracy"]["mean"]
    if config.target is not None:
        console.say(f"target {config.target:.2%}: {'reached' if mean >= config.target else 'missed'} by the mean")
        if mean < config.target:
            raise SystemExit(1)


if __name__ == "__main__":
    cli.main(main, SpeedRun)
