"""What a TPU slice would make of a training run, before it is paid for: compiled for it here,
without any TPU.

    python experiments/tpu_plan.py --topology v5e:4x8 --batch-size 8192 --model airnet --seeds 8
    python experiments/tpu_plan.py --topology v5p:2x2x2 --batch-size 1024 --price 4.20

The flags are those of train.py and ablate.py. It needs `pip install -e '.[tpu]'` on an x86 Linux
machine, and no data. Memory, operations, traffic and collectives are those that the TPU's compiler
gives. The time of a step is what they take at the chip's published speeds, and the compiler's own
estimate where it gives one; neither is a measurement.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cnnlab import cli, files
from cnnlab.config import Config, Machine, Recipe, Settings, check
from cnnlab.errors import InputError
from cnnlab.types import JsonObject

if TYPE_CHECKING:
    from cnnlab.tpu import slices
    from cnnlab.training.program import Program

# image shape, classes, training images
KNOWN = {
    "shapes10": ((32, 32, 3), 10, 10_000),
    "cifar10": ((32, 32, 3), 10, 50_000),
    "cifar100": ((32, 32, 3), 100, 50_000),
    "mnist": ((28, 28, 1), 10, 60_000),
    "fashion_mnist": ((28, 28, 1), 10, 60_000),
    "svhn_cropped": ((32, 32, 3), 10, 73_257),
}


Side = Annotated[int, "[1, 10000]"]


@dataclass(frozen=True)
class Plan(Settings):
    """Plan a training run for a TPU slice."""

    recipe: Recipe = field(default_factory=partial(Recipe, dataset="cifar10"))
    machine: Machine = field(default_factory=Machine)

    topology: str = "v5e:2x4"
    """The slice: generation (v3, v4, v5e, v5p, v6e) and shape in chips, as v5e:4x8 or v5p:2x2x4;
    256 chips at most.
    """
    image_shape: tuple[Side, ...] | None = None
    """Height, width and channels of another data set than cnnlab's."""
    classes: Annotated[int, "[2, 1000000]"] | None = None
    """Its classes; of cifar100 with --label-key coarse_label, 20."""
    images: Annotated[int, "[1, 2147483648)"] | None = None
    """Its training images, of which --validation are held out; they are counted in 32 bits."""
    seeds: Annotated[int, "[1, 1000]"] | None = None
    """Networks trained together, as ablate.py trains them; None: one, as train.py does."""
    price: Annotated[float, "(0, 1e6)"] | None = None
    """Of a chip for an hour, in any currency; then the cost of the run is printed."""
    json: str | None = None
    """File for the same as JSON."""

    def __post_init__(self) -> None:
        check(self)
        shape = self.image_shape
        if shape is not None and len(shape) != 3:
            raise InputError(
                f"--image-shape is height, width and channels, such as 64 64 3; got {shape}"
            )
        if self.machine.parallel == "pmap":
            raise InputError("--parallel pmap is not planned for; take sharded")


def main(plan: Plan) -> None:
    cli.writable(plan.json)
    # A TPU that is there is left alone, and other plans may be made at the same time.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    from cnnlab.tpu import slices

    where = slices.describe(plan.topology)
    compiled = build(plan, where)
    print(
        f"compiling for {plan.topology}, which takes seconds to minutes",
        file=sys.stderr,
        flush=True,
    )
    try:
        cost = slices.cost(compiled)
    except slices.TooLarge as error:
        raise InputError(
            f"{plan.topology}: does not fit ({error}); {what_fits(plan, where)}"
        ) from error
    figures = report(plan, where, compiled, cost)
    print(*lines(plan, figures), sep="\n")
    if plan.json:
        files.write_json(Path(plan.json), figures)


def build(plan: Plan, where: slices.Slice) -> Program:
    """Build the train step of a plan, for its slice."""
    import numpy as np

    from cnnlab.data.facts import DataFacts
    from cnnlab.parts import resolve
    from cnnlab.training import experiment, program

    shape, classes, images = KNOWN.get(plan.recipe.dataset, (None, None, None))
    if plan.recipe.label_key not in (None, "label"):
        classes = None
    shape = plan.image_shape or shape
    classes = plan.classes or classes
    images = plan.images or images
    if shape is None or classes is None or images is None:
        raise InputError(
            f"--dataset {plan.recipe.dataset}: say --image-shape H W C, --classes K and --images N"
        )
    config = Config(plan.recipe, plan.machine)
    parts = resolve(config.recipe)
    if parts.needs_teacher:
        raise InputError(
            f"--loss {plan.recipe.loss} has a teacher's network in its step, which is not planned "
            f"for"
        )
    kept = images - round(images * plan.recipe.validation)
    if kept < plan.recipe.batch_size:
        raise InputError(
            f"--batch-size {plan.recipe.batch_size} is larger than the {kept} training images"
        )
    facts = DataFacts(
        class_names=tuple(map(str, range(classes))),
        image_shape=tuple(shape),
        mean=(127.5,) * shape[-1],
        std=(63.75,) * shape[-1],
        class_counts=tuple(np.diff(np.arange(classes + 1) * kept // classes).tolist()),
        num_images=images,
    )
    layout = experiment.choose_layout(config, parts, plan.seeds, where.devices)
    compiled = program.build(config, parts, layout, facts)
    compiled.arguments()  # refuses a model that the images are too small for
    return compiled


def what_fits(plan: Plan, where: slices.Slice) -> str:
    """Describe the largest batch, found by halving, whose step fits into the same slice."""
    from cnnlab.tpu import slices

    smaller = plan
    while smaller.recipe.batch_size % 2 == 0 and smaller.recipe.batch_size // 2 >= len(
        where.devices
    ):
        smaller = smaller.replace(batch_size=smaller.recipe.batch_size // 2)
        try:
            memory = slices.cost(build(smaller, where)).memory
        except InputError:  # too large still, or not to be divided
            continue
        more = plan.recipe.batch_size // smaller.recipe.batch_size
        needs = f"with {memory / slices.GIB:.1f} GiB a device"
        parts = more * plan.recipe.microbatches
        return (
            f"--batch-size {smaller.recipe.batch_size} does, {needs}, and so should this batch on "
            f"{more} times the chips, or with --microbatches {parts}"
        )
    return "no smaller batch does: fewer --seeds, narrower layers or --feed streaming"


def report(plan: Plan, where: slices.Slice, compiled: Program, cost: slices.Cost) -> JsonObject:
    """Collect the plan's figures by name."""
    from cnnlab.tpu import slices

    seconds, by = slices.step_seconds(cost, where.chip)
    return {
        "topology": plan.topology,
        "chips": where.chips,
        "hosts": len({device.process_index for device in where.devices}),
        "devices": len(where.devices),
        "devices_used": compiled.layout.device_count,
        "mesh": [compiled.layout.mesh.shape[axis] for axis in ("seed", "data")],
        "seeds": compiled.layout.num_seeds or 1,
        "batch_size": plan.recipe.batch_size,
        "microbatches": plan.recipe.microbatches,
        "steps_per_epoch": compiled.steps_per_epoch,
        "dispatch_steps": compiled.dispatch_steps,
        "capacity": where.chip.memory / where.chip.cores,
        **dataclasses.asdict(cost),
        "all_reduce_seconds": sum(
            slices.all_reduce_seconds(collective, where.chip) for collective in cost.collectives
        ),
        "step_seconds": seconds,
        "bound_by": by,
        "images_per_second": plan.recipe.batch_size * (compiled.layout.num_seeds or 1) / seconds,
        "run_seconds": seconds * compiled.steps_per_epoch * plan.recipe.epochs,
    }


def lines(plan: Plan, figures: JsonObject) -> list[str]:
    """Format the plan for a person to read, a string for each line."""

    def many(n, what):
        plural = "" if n == 1 else "s"
        return f"{n:,} {what}{plural}"

    def mib(name):
        return f"{figures[name] / 2**20:,.1f}"

    apart, shared = figures["mesh"]
    used = figures["devices_used"]
    memory = sum(figures[name] for name in ("arguments", "temporaries", "outputs"))
    unused = f", {used} of them used" if used < figures["devices"] else ""
    count = plan.recipe.microbatches
    parts = f" in {count:,} microbatches" if count > 1 else ""
    compiler = f"{figures['seconds'] * 1e3:.3f} ms" if figures["seconds"] else "none given"
    said = [
        f"{plan.topology}: {many(figures['chips'], 'chip')} on {many(figures['hosts'], 'host')}, "
        f"{many(figures['devices'], 'device')}{unused}",
        f"step         {plan.recipe.model}, {plan.recipe.loss}, {plan.recipe.compute_dtype}, "
        f"{many(figures['seeds'], 'seed')}, batch {plan.recipe.batch_size:,}, "
        f"{many(figures['dispatch_steps'], 'step')} a dispatch",
        f"mesh         {apart}x{shared}: {many(figures['seeds'] // apart, 'seed')} a device, each "
        f"seed's batch over {many(shared, 'device')}, "
        f"{many(plan.recipe.batch_size // shared, 'image')} each{parts}",
        f"memory       {mib('arguments')} MiB arguments + {mib('temporaries')} temporaries + "
        f"{mib('outputs')} output, {memory / figures['capacity']:.1%} of a device's "
        f"{figures['capacity'] / 2**30:.0f} GiB",
        f"arithmetic   {figures['flops'] / 1e9:,.2f} GFLOP a device and step",
        f"traffic      {figures['traffic'] / 1e6:,.1f} MB a device and step",
    ]
    groups = collections.Counter(
        (collective["kind"], collective["devices"]) for collective in figures["collectives"]
    )
    for (kind, devices), count in groups.items():
        size = sum(
            collective["bytes"]
            for collective in figures["collectives"]
            if (collective["kind"], collective["devices"]) == (kind, devices)
        )
        said.append(
            f"collectives  {count} x {kind} over {many(devices, 'device')}, {size / 1e6:,.3f} MB "
            "in all"
        )
    if groups:
        said[-1] += f", about {figures['all_reduce_seconds'] * 1e6:,.0f} us"
    else:
        said.append("collectives  none")
    said += [
        f"step time    about {figures['step_seconds'] * 1e3:.3f} ms by published speeds, mostly "
        f"{figures['bound_by']}: {figures['images_per_second']:,.0f} images/s; by the compiler: "
        f"{compiler}",
        f"run          {many(plan.recipe.epochs, 'epoch')} of "
        f"{many(figures['steps_per_epoch'], 'step')}: "
        f"about {figures['run_seconds']:,.2f} s, without start, compilation and tests",
    ]
    if plan.price:
        hours = figures["run_seconds"] / 3600 * figures["chips"]
        said[-1] += f"; {hours:,.4f} chip-hours, {hours * plan.price:,.4f} at {plan.price} each"
    return said


if __name__ == "__main__":
    cli.main(main, Plan)
