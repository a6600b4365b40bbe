"""What a TPU slice would make of a training run, before it is paid for: compiled for it here, without any TPU.

    python experiments/tpu_plan.py --topology v5e:4x8 --batch-size 8192 --model airnet --seeds 8
    python experiments/tpu_plan.py --topology v5p:2x2x2 --batch-size 1024 --compute-dtype bfloat16 --price 4.20

The flags are those of train.py and ablate.py. It needs `pip install -e '.[tpu]'` on an x86 Linux machine, and no data.
Memory, operations, traffic and collectives are those that the TPU's compiler gives; the time of a step is a bound from
the chip's published speeds, and the compiler's own estimate where it gives one.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cnnlab import cli
from cnnlab.config import Config, Training
from cnnlab.errors import InputError

if TYPE_CHECKING:
    from cnnlab import slices

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
    """The slice: generation (v3, v4, v5e, v5p, v6e) and shape in chips, as v5e:4x8 or v5p:2x2x4; 256 chips at most."""
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
            raise InputError(f"--image-shape is height, width and channels, such as 64 64 3; got {shape}")
        if self.price is not None and not 0 < self.price < 1e6:
            raise InputError(f"--price must be positive, got {self.price}")


def main(plan: Plan) -> None:
    cli.writable(plan.json)
    os.environ["JAX_PLATFORMS"] = "cpu"  # a TPU that is there is left alone
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    from cnnlab import slices

    where = slices.describe(plan.topology)
    made = build(plan, where)
    try:
        found = slices.cost(made)
    except slices.TooLarge as error:
        raise InputError(f"{plan.topology}: does not fit ({error}); {what_fits(plan, where)}") from error
    told = report(plan, where, made, found)
    print(*told.pop("lines"), sep="\n")
    if plan.json:
        from pathlib import Path

        Path(plan.json).write_text(json.dumps(told, indent=2) + "\n")


def build(plan: Plan, where: slices.Slice) -> Any:
    """The train step of a plan, for its slice."""
    import numpy as np

    from cnnlab import program, recipe
    from cnnlab.data import feed
    from cnnlab.losses.spec import needs_teacher

    shape, classes, images = KNOWN.get(plan.dataset, (None, None, None))
    shape, classes, images = plan.image_shape or shape, plan.classes or classes, plan.images or images
    if shape is None or classes is None or images is None:
        raise InputError(f"--dataset {plan.dataset}: say --image-shape H W C, --classes K and --images N")
    config = Config(**{f.name: getattr(plan, f.name) for f in dataclasses.fields(Training)}, loss=plan.loss)
    if needs_teacher(config):
        raise InputError(f"--loss {plan.loss} has a teacher's network in its step, which is not planned for")
    kept = images - round(images * plan.validation)
    if kept < plan.batch_size:
        raise InputError(f"--batch-size {plan.batch_size} is larger than the {kept} training images")
    resident = plan.feed == "resident" or (plan.feed == "auto" and images * np.prod(shape) <= feed.RESIDENT_LIMIT)
    counts = np.diff(np.arange(classes + 1) * kept // classes)
    middle = np.full(shape[-1], 127.5)
    facts = program.Facts(tuple(shape), middle, middle / 2, counts, images if resident else None)
    return program.build(config, recipe.layout(config, plan.seeds, where.devices), facts, plan.seeds)


def what_fits(plan: Plan, where: slices.Slice) -> str:
    """The largest batch, by halving, whose step fits into the same slice."""
    from cnnlab import slices

    smaller = plan
    while smaller.batch_size % 2 == 0 and smaller.batch_size // 2 >= len(where.devices):
        smaller = dataclasses.replace(smaller, batch_size=smaller.batch_size // 2)
        try:
            memory = slices.cost(build(smaller, where)).memory
        except slices.TooLarge:
            continue
        more = plan.batch_size // smaller.batch_size
        return (
            f"--batch-size {smaller.batch_size} does, with {memory / slices.GIB:.1f} GiB a device, and so may this batch "
            f"on {more} times the chips"
        )
    return "no smaller batch does: fewer --seeds, narrower layers or --feed streaming"


def report(plan: Plan, where: slices.Slice, made: Any, found: slices.Cost) -> dict[str, Any]:
    """The plan's figures by name, and its `lines`."""
    from cnnlab import slices

    chip, parts = where.chip, made.layout.mesh.shape
    seeds, used = made.seeds or 1, made.layout.device_count
    shared, each = parts["data"], plan.batch_size // parts["data"]
    capacity = chip.memory / chip.cores
    seconds, by = slices.bound(found, chip)
    epoch = seconds * made.steps_per_epoch
    processes = len({device.process_index for device in where.devices})
    mib = lambda n: f"{n / 2**20:,.1f} MiB"
    lines = [
        f"{plan.topology}: {where.chips} chips on {processes} host{'s' * (processes > 1)}, {len(where.devices)} devices"
        + f", {used} of them used" * (used < len(where.devices)),
        f"step: {plan.model}, {plan.loss}, {plan.compute_dtype}, {seeds} seed{'s' * (seeds > 1)} of {plan.batch_size} images; "
        f"{made.dispatch_steps} steps a dispatch",
        f"mesh {parts['seed']}x{shared}: {seeds // parts['seed']} seed{'s' * (seeds > parts['seed'])} a device, each seed's "
        f"batch over {shared} device{'s' * (shared > 1)}, {each} images each",
        f"memory a device: {mib(found.arguments)} arguments + {mib(found.temporaries)} temporaries + {mib(found.outputs)} "
        f"output = {found.memory / capacity:.1%} of {capacity / slices.GIB:.0f} GiB",
        f"arithmetic a device and step: {found.flops / 1e9:,.2f} GFLOP; traffic {found.traffic / 1e6:,.1f} MB",
    ]
    lines += [
        f"collective: {each.kind} of {each.bytes / 1e6:,.3f} MB over {each.devices} devices, at best "
        f"{slices.all_reduce_seconds(each, chip) * 1e6:,.0f} us"
        for each in found.collectives
    ] or ["collective: none"]
    rate = plan.batch_size * seeds / seconds
    lines += [
        f"step: at best {seconds * 1e3:.3f} ms (bound by {by}), {rate:,.0f} images/s; the compiler's estimate: "
        + (f"{found.seconds * 1e3:.3f} ms" if found.seconds else "none"),
        f"run: {plan.epochs} epochs of {made.steps_per_epoch} steps, at best {plan.epochs * epoch:,.2f} s without compilation, "
        "start and tests",
    ]
    if plan.price:
        lines[-1] += f"; at {plan.price} a chip-hour {plan.epochs * epoch / 3600 * where.chips * plan.price:,.4f}"
    return {
        "topology": plan.topology,
        "chips": where.chips,
        "mesh": dict(parts),
        "images_per_device": each,
        "seeds": seeds,
        "steps_per_epoch": made.steps_per_epoch,
        "capacity": capacity,
        **{
            field.name: getattr(found, field.name) for field in dataclasses.fields(found) if field.name != "collectives"
        },
        "collectives": [dataclasses.asdict(each) for each in found.collectives],
        "bound_seconds": seconds,
        "bound_by": by,
        "images_per_second": rate,
        "lines": lines,
    }


if __name__ == "__main__":
    cli.main(main, Plan)
