"""What a TPU slice would make of a training run, before it is paid for: compiled for it here,
without any TPU.

    python experiments/tpu_plan.py --topology v5e:4x8 --batch-size 8192 --model airnet --seeds 8
    python experiments/tpu_plan.py --topology v5p:2x2x2 --batch-size 1024 --compute-dtype bfloat16
    --price 4.20

The flags are those of train.py and ablate.py. It needs `pip install -e '.[tpu]'` on an x86 Linux
machine, and no data. Memory, operations, traffic and collectives are those that the TPU's compiler
gives. The time of a step is what they take at the chip's published speeds, and the compiler's own
estimate where it gives one; neither is a measurement.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnlab import cli
from cnnlab.config import Config, Training
from cnnlab.errors import InputError

if TYPE_CHECKING:
    from cnnlab.tpu import slices

# image shape, classes, training images
KNOWN = {
    "shapes10": ((32, 32, 3), 10, 10_000),
    "cifar10": ((32, 32, 3), 10, 50_000),
    "mnist": ((28, 28, 1), 10, 60_000),
}


@dataclass(frozen=True)
class Plan(Training):
    """Plan a training run for a TPU slice."""

    topology: str = "v5e:2x4"
    """The slice: generation (v3, v4, v5e, v5p, v6e) and shape in chips, as v5e:4x8 or v5p:2x2x4;
    256 chips at most.
    """
    dataset: str = "cifar10"
    """shapes10, cifar10, mnist, or another with --image-shape, --classes and --images."""
    image_shape: tuple[int, ...] | None = None
    """Height, width and channels of another data set's images."""
    classes: int | None = None
    """Its classes."""
    images: int | None = None
    """Its training images, of which --validation are held out."""
    loss: str = "cross_entropy"
    """As for train.py."""
    seeds: int | None = None
    """Networks trained together, as ablate.py trains them; None: one, as train.py does."""
    price: float | None = None
    """Of a chip for an hour, in any currency; then the cost of the run is printed."""
    json: str | None = None
    """File for the same as JSON."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds is not None and self.seeds < 1:
            raise InputError(f"--seeds must be at least 1, got {self.seeds}")
        shape = self.image_shape
        if shape is not None and (len(shape) != 3 or min(shape) < 1):
            raise InputError(
                f"--image-shape is height, width and channels, such as 64 64 3; got {shape}"
            )
        if self.parallel == "pmap":
            raise InputError("--parallel pmap is not planned for; take sharded")
        for name, least in (("classes", 2), ("images", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"--{name} must be at least {least}, got {value}")
        if self.price is not None and not 0 < self.price < 1e6:
            raise InputError(f"--price must be positive, got {self.price}")


def main(plan: Plan) -> None:
    cli.writable(plan.json)
    os.environ["JAX_PLATFORMS"] = "cpu"  # a TPU that is there is left alone
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }  # and other plans go on beside it
    from cnnlab.tpu import slices

    where = slices.describe(plan.topology)
    made = build(plan, where)
    print(
        f"compiling for {plan.topology}, which takes seconds to minutes",
        file=sys.stderr,
        flush=True,
    )
    try:
        found = slices.cost(made)
    except slices.TooLarge as error:
        raise InputError(
            f"{plan.topology}: does not fit ({error}); {what_fits(plan, where)}"
        ) from error
    told = report(plan, where, made, found)
    print(*lines(plan, told), sep="\n")
    if plan.json:
        Path(plan.json).write_text(json.dumps(told, indent=2) + "\n")


def build(plan: Plan, where: slices.Slice) -> Any:
    """The train step of a plan, for its slice."""
    import numpy as np

    from cnnlab.data import feed
    from cnnlab.parts import resolve
    from cnnlab.training import program, recipe

    shape, classes, images = KNOWN.get(plan.dataset, (None, None, None))
    shape, classes, images = (
        plan.image_shape or shape,
        plan.classes or classes,
        plan.images or images,
    )
    if shape is None or classes is None or images is None:
        raise InputError(
            f"--dataset {plan.dataset}: say --image-shape H W C, --classes K and --images N"
        )
    config = Config(
        **{f.name: getattr(plan, f.name) for f in dataclasses.fields(Training)}, loss=plan.loss
    )
    parts = resolve(config)
    if parts.needs_teacher:
        raise InputError(
            f"--loss {plan.loss} has a teacher's network in its step, which is not planned for"
        )
    kept = images - round(images * plan.validation)
    if kept < plan.batch_size:
        raise InputError(
            f"--batch-size {plan.batch_size} is larger than the {kept} training images"
        )
    resident = plan.feed == "resident" or (
        plan.feed == "auto" and images * np.prod(shape) <= feed.RESIDENT_LIMIT
    )
    counts = np.diff(np.arange(classes + 1) * kept // classes)
    middle = np.full(shape[-1], 127.5)
    facts = program.Facts(tuple(shape), middle, middle / 2, counts, images if resident else None)
    layout = recipe.layout(config, parts, plan.seeds, where.devices)
    made = program.build(config, parts, layout, facts, plan.seeds)
    made.arguments()  # refuses a model that the images are too small for
    return made


def what_fits(plan: Plan, where: slices.Slice) -> str:
    """The largest batch, by halving, whose step fits into the same slice."""
    from cnnlab.tpu import slices

    smaller = plan
    while smaller.batch_size % 2 == 0 and smaller.batch_size // 2 >= len(where.devices):
        smaller = dataclasses.replace(smaller, batch_size=smaller.batch_size // 2)
        try:
            memory = slices.cost(build(smaller, where)).memory
        except InputError:  # too large still, or not to be divided
            continue
        more = plan.batch_size // smaller.batch_size
        needs = f"with {memory / slices.GIB:.1f} GiB a device"
        return (
            f"--batch-size {smaller.batch_size} does, {needs}, and so should this batch on {more} "
            "times the chips"
        )
    return "no smaller batch does: fewer --seeds, narrower layers or --feed streaming"


def report(plan: Plan, where: slices.Slice, made: Any, found: slices.Cost) -> dict[str, Any]:
    """The plan's figures by name."""
    from cnnlab.tpu import slices

    seconds, by = slices.step_seconds(found, where.chip)
    return {
        "topology": plan.topology,
        "chips": where.chips,
        "hosts": len({device.process_index for device in where.devices}),
        "devices": len(where.devices),
        "devices_used": made.layout.device_count,
        "mesh": [made.layout.mesh.shape[axis] for axis in ("seed", "data")],
        "seeds": made.seeds or 1,
        "batch_size": plan.batch_size,
        "steps_per_epoch": made.steps_per_epoch,
        "dispatch_steps": made.dispatch_steps,
        "capacity": where.chip.memory / where.chip.cores,
        **dataclasses.asdict(found),
        "all_reduce_seconds": sum(
            slices.all_reduce_seconds(each, where.chip) for each in found.collectives
        ),
        "step_seconds": seconds,
        "bound_by": by,
        "images_per_second": plan.batch_size * (made.seeds or 1) / seconds,
        "run_seconds": seconds * made.steps_per_epoch * plan.epochs,
    }


def lines(plan: Plan, told: dict[str, Any]) -> list[str]:
    """The plan for a person to read."""
    many = lambda n, what: f"{n:,} {what}{'s' * (n != 1)}"
    mib = lambda name: f"{told[name] / 2**20:,.1f}"
    apart, shared = told["mesh"]
    used, memory = (
        told["devices_used"],
        sum(told[name] for name in ("arguments", "temporaries", "outputs")),
    )
    unused = f", {used} of them used" * (used < told["devices"])
    compiler = f"{told['seconds'] * 1e3:.3f} ms" if told["seconds"] else "none given"
    said = [
        f"{plan.topology}: {many(told['chips'], 'chip')} on {many(told['hosts'], 'host')}, "
        f"{many(told['devices'], 'device')}{unused}",
        f"step         {plan.model}, {plan.loss}, {plan.compute_dtype}, "
        f"{many(told['seeds'], 'seed')}, batch {plan.batch_size:,}, "
        f"{many(told['dispatch_steps'], 'step')} a dispatch",
        f"mesh         {apart}x{shared}: {many(told['seeds'] // apart, 'seed')} a device, each "
        f"seed's batch over {many(shared, 'device')}, {many(plan.batch_size // shared, 'image')} "
        "each",
        f"memory       {mib('arguments')} MiB arguments + {mib('temporaries')} temporaries + "
        f"{mib('outputs')} output, {memory / told['capacity']:.1%} of a device's "
        f"{told['capacity'] / 2**30:.0f} GiB",
        f"arithmetic   {told['flops'] / 1e9:,.2f} GFLOP a device and step",
        f"traffic      {told['traffic'] / 1e6:,.1f} MB a device and step",
    ]
    groups = collections.Counter((each["kind"], each["devices"]) for each in told["collectives"])
    for (kind, devices), count in groups.items():
        size = sum(
            each["bytes"]
            for each in told["collectives"]
            if (each["kind"], each["devices"]) == (kind, devices)
        )
        said.append(
            f"collectives  {count} x {kind} over {many(devices, 'device')}, {size / 1e6:,.3f} MB "
            "in all"
        )
    if groups:
        said[-1] += f", about {told['all_reduce_seconds'] * 1e6:,.0f} us"
    else:
        said.append("collectives  none")
    said += [
        f"step time    about {told['step_seconds'] * 1e3:.3f} ms by published speeds, mostly "
        f"{told['bound_by']}: {told['images_per_second']:,.0f} images/s; by the compiler: "
        f"{compiler}",
        f"run          {many(plan.epochs, 'epoch')} of {many(told['steps_per_epoch'], 'step')}: "
        f"about {told['run_seconds']:,.2f} s, without start, compilation and tests",
    ]
    if plan.price:
        hours = told["run_seconds"] / 3600 * told["chips"]
        said[-1] += f"; {hours:,.4f} chip-hours, {hours * plan.price:,.4f} at {plan.price} each"
    return said


if __name__ == "__main__":
    cli.main(main, Plan)
