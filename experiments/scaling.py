"""Scaling on paper: what plans of tpu_plan.py say of 1 to 256 chips, with the model of the
all-reduce that they assume.

    python experiments/tpu_plan.py --topology v5e:2x4 --batch-size 1024 --json plan-8.json
    python experiments/tpu_plan.py --topology v5e:8x8 --batch-size 8192 --json plan-64.json
    python experiments/scaling.py plan-8.json plan-64.json --out scaling.png

The first plan is carried to other numbers of chips twice: each device keeps its images, so that the
batch grows; and the batch stays, so that each has fewer. A step is its arithmetic or traffic at the
chip's published speed, whichever takes longer, and then its all-reduces: 2 (n - 1) / n of their
bytes through a chip's links and a microsecond for each of 2 sqrt(n) hops; nothing overlaps. The
other plans are marks: what the compiler gives at their size. Nothing of it is measured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from cnnlab import cli, files
from cnnlab.console import show
from cnnlab.errors import InputError, one_line
from cnnlab.types import JsonObject


@dataclass(frozen=True)
class Options:
    """Predict throughput from 1 to 256 chips."""

    plans: tyro.conf.Positional[tuple[str, ...]]
    """Files that tpu_plan.py wrote with --json; of one generation, the first the one that is
    carried on.
    """
    out: str = "scaling.png"
    """Picture to write."""


def main(options: Options) -> None:
    cli.writable(options.out)
    plans = [read(path) for path in options.plans]
    if not plans:
        raise InputError("name at least one plan that tpu_plan.py wrote with --json")
    from cnnlab import plots
    from cnnlab.tpu import slices

    first = plans[0]
    generation = plans[0]["topology"].partition(":")[0]
    if other := [
        plan["topology"] for plan in plans if not plan["topology"].startswith(f"{generation}:")
    ]:
        raise InputError(
            f"{options.plans[0]} is of {generation}, and {other[0]} is not: one generation a "
            "picture"
        )
    if not first["collectives"]:
        raise InputError(
            f"{options.plans[0]} has no collective to scale: plan a slice whose devices share a "
            "seed's batch"
        )
    chips = [2**i for i in range(9)]
    grown = {n: slices.predicted(first, n, grow=True) for n in chips}
    kept = {n: slices.predicted(first, n, grow=False) for n in chips}
    per_device = first["batch_size"] // first["mesh"][1]
    print(
        f"{first['topology']}, {per_device} images a device: images/s, and the share of a "
        "step that waits for other devices"
    )
    print(f"{'chips':>6} {'batch grows':>14} {'waits':>7} {'batch stays':>14} {'waits':>7}")
    for n in chips:
        print(
            f"{n:>6} {grown[n][0]:>14,.0f} {grown[n][1]:>7.1%} {kept[n][0]:>14,.0f} "
            f"{kept[n][1]:>7.1%}"
        )
    for plan in plans:
        print(
            f"{plan['topology']}, compiled: {plan['images_per_second']:,.0f} images/s on "
            f"{plan['chips']} chips"
        )
    lines = {
        "ideal": {n: n * grown[1][0] for n in chips},
        f"{per_device} images a device": {n: rate for n, (rate, _) in grown.items()},
        f"batch {first['batch_size']:,}": {n: rate for n, (rate, _) in kept.items()},
    }
    points = {plan["chips"]: plan["images_per_second"] for plan in plans}
    with files.written(Path(options.out)) as file:
        plots.scaling(lines, points, file, f"{generation}: predicted, not measured")
    show(options.out)


def read(path: str) -> JsonObject:
    """Read a plan's figures, and check that they can be scaled."""
    from cnnlab.tpu import slices

    try:
        plan = json.loads(Path(path).read_text())
        slices.predicted(plan, plan["chips"], grow=True)
        float(plan["images_per_second"])
    except Exception as error:
        raise InputError(
            f"{path} is no plan that tpu_plan.py wrote with --json ({one_line(error)})"
        ) from error
    return plan


if __name__ == "__main__":
    cli.main(main, Options)
