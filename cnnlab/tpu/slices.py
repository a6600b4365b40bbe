"""TPU slices that are not here: the train step compiled for one, and what that says before it is
paid for.

libtpu's compiler needs no TPU: `pip install -e '.[tpu]'` on any x86 Linux, and `JAX_PLATFORMS=cpu`
before JAX starts. Memory, operations, traffic and collectives are the compiler's; times are from a
chip's published speeds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from cnnlab import backend
from cnnlab.errors import InputError, one_line, unknown
from cnnlab.training.program import Program
from cnnlab.types import Device, JsonObject

if TYPE_CHECKING:
    import jax

HOP_SECONDS = 1e-6  # an all-reduce's wait at each chip it passes; assumed


@dataclass(frozen=True)
class Chip:
    """One chip of a generation.

    Attributes:
      memory: bytes of HBM.
      peak: bfloat16 operations a second.
      bandwidth: bytes a second to HBM.
      links: bytes a second that it adds to an all-reduce.
      cores: JAX devices that it is; each has its part of the above.
      shapes: of slices, by doubling.

    Source: docs.cloud.google.com/tpu/docs/v3, v4, v5e, v5p, v6e, read in November 2026; `links` is
    the published bandwidth between chips in one direction, which for v5e and v6e is the all-reduce
    bandwidth of a pod over its chips.
    """

    memory: float
    peak: float
    bandwidth: float
    links: float
    cores: int
    shapes: tuple[str, ...]


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")
GIB = 2**30
CHIPS = {
    "v3": Chip(
        32 * GIB, 123e12, 900e9, 328e9, 2, ("1x1", "2x2", "4x4", "4x8", "8x8", "8x16", "16x16")
    ),
    "v4": Chip(32 * GIB, 275e12, 1228e9, 300e9, 1, _DEEP),
    "v5e": Chip(16 * GIB, 197e12, 819e9, 200e9, 1, _FLAT),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 600e9, 1, _DEEP),
    "v6e": Chip(32 * GIB, 918e12, 1638e9, 400e9, 1, _FLAT),
}


@dataclass(frozen=True)
class Slice:
    """A slice by its name, such as v5e:4x8."""

    generation: str
    shape: tuple[int, ...]
    devices: Sequence[Device]

    @property
    def chip(self) -> Chip:
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)


def describe(name: str) -> Slice:
    """Look up a slice by its name, with its devices, for a mesh to compile for.

    Raises:
      InputError: no such slice, or no libtpu.
    """
    generation, _, shape = name.partition(":")
    if generation not in CHIPS:
        raise unknown("generation", generation, CHIPS)
    if shape not in CHIPS[generation].shapes:
        shapes = ", ".join(CHIPS[generation].shapes)
        raise InputError(
            f"--topology is GENERATION:SHAPE, {generation} in one of {shapes}; got '{name}'"
        )
    dims = tuple(map(int, shape.split("x")))
    from jax.experimental import topologies

    how: dict[str, object] = {}
    # The two cores of a chip as one device.
    if generation == "v4":
        how["chip_config_name"] = "megacore"
    # One chip, and eight in two dimensions, are on one host; else each host has four.
    if math.prod(dims) == 1 or (math.prod(dims), len(dims)) == (8, 2):
        how["chips_per_host_bounds"] = [*dims, 1][:3]
    try:
        with backend.silent(2):  # libtpu misses the host that it looks for
            devices = topologies.get_topology_desc(
                platform="tpu", topology_name=name, **how
            ).devices
    except Exception as error:
        raise InputError(
            f"no TPU compiler here ({one_line(error)}); pip install -e '.[tpu]'"
        ) from error
    return Slice(generation, dims, devices)


@dataclass(frozen=True)
class Collective:
    """A collective of a compiled step.

    Attributes:
      kind: as XLA calls it.
      bytes: that each device holds of it.
      devices: that take part in each of its groups.
    """

    kind: str
    bytes: float
    devices: int


@dataclass(frozen=True)
class Cost:
    """What a device needs for a step.

    Attributes:
      arguments, temporaries, outputs: bytes; `outputs` without what takes the place of arguments.
      flops: operations of a step.
      traffic: bytes to and from memory.
      seconds: of a step, by the compiler; None where it gives no sensible figure.
      collectives: of a step.
    """

    arguments: int
    temporaries: int
    outputs: int
    flops: float
    traffic: float
    seconds: float | None
    collectives: tuple[Collective, ...]

    @property
    def memory(self) -> int:
        return self.arguments + self.temporaries + self.outputs


class TooLarge(InputError):
    """The step does not fit into a device's memory, by the compiler's count."""


def cost(program: Program) -> Cost:
    """Compile a program's step for its devices and read what it needs.

    The compiler counts the body of a loop once. Operations, traffic and seconds of a step in
    microbatches are therefore multiplied by their number, with what little is outside of the loop
    (unrolled for v5e, two and eight of them have 0.1 % and 0.5 % fewer operations, and 10 % more
    and 2 % less traffic); collectives of batch norm, which are inside, are listed once.

    Raises:
      TooLarge: it does not fit.
    """
    lowered: Any = cast("jax.stages.Wrapped", program.dispatch).lower(*program.arguments())
    try:
        with backend.silent(2):
            compiled = lowered.compile()
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        words = re.search(r"Used [\d.]+\w of [\d.]+\w hbm", str(error))
        raise TooLarge(words[0] if words else one_line(error)) from error
    memory, counts = compiled.memory_analysis(), compiled.cost_analysis()
    seconds = counts.get("optimal_seconds", -1)
    repeats = program.config.recipe.microbatches
    return Cost(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        repeats * counts["flops"],
        repeats * counts["bytes accessed"],
        repeats * seconds if seconds > 0 else None,
        collectives(compiled.as_text(), program.layout.device_count),
    )


_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
_COLLECTIVE = re.compile(rf"= (\(.*?\)|\S+) ({_KINDS})(?:-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


def collectives(hlo: str, devices: int) -> tuple[Collective, ...]:
    """List the collectives in a compiled module's text; `devices` take part where it names none.

    >>> collectives("%r = (f32[3,4]{1,0}, s32[]) all-reduce(%a, %b), replica_groups=[2,4]<=[8]", 8)
    (Collective(kind='all-reduce', bytes=52, devices=4),)
    """
    listed = []
    for line in hlo.splitlines():
        if match := _COLLECTIVE.search(line):
            size = sum(
                math.prod(map(int, filter(None, dims.split(",")))) * max(1, int(bits or 8) // 8)
                for _, bits, dims in _ARRAY.findall(match[1])
            )
            group = _group_size(line) or devices
            if group > 1:  # one alone has nobody to talk to
                listed.append(Collective(match[2], size, group))
    return tuple(listed)


def _group_size(line: str) -> int | None:
    """Count the devices that take part in a collective: in {{0,1},{2,3}} 2, in [2,4]<=[8] 4, in
    mesh['a'=2,'b'=4] {'b'} 4.

    A group may span part of an axis: in mesh['a'=8] {'a':(2)4}, as written from jax 0.12 on, 4.
    """
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return None


def all_reduce_seconds(collective: Collective, chip: Chip) -> float:
    """Model the time of an all-reduce: reduce-scatter and all-gather, 2 (n - 1) / n of its bytes
    through a chip's links.

    Each hop along a torus of n chips adds HOP_SECONDS: sqrt(n) of them in each of two dimensions,
    there and back.
    """
    n = collective.devices
    if n < 2:
        return 0.0
    return 2 * (n - 1) / n * collective.bytes / chip.links + 2 * math.sqrt(n) * HOP_SECONDS


def step_seconds(cost: Cost, chip: Chip) -> tuple[float, str]:
    """Predict the seconds of a step at a chip's published speeds, and what takes most: arithmetic,
    memory or communication.

    Arithmetic and traffic overlap, communication does not. No chip reaches these speeds; but the
    compiler's traffic also counts what never leaves the chip.
    """
    parts = {
        "arithmetic": cost.flops * chip.cores / chip.peak,
        "memory": cost.traffic * chip.cores / chip.bandwidth,
    }
    talk = sum(all_reduce_seconds(collective, chip) for collective in cost.collectives)
    slower = max(parts, key=lambda name: parts[name])
    return parts[slower] + talk, slower if parts[slower] >= talk else "communication"


def predicted(plan: JsonObject, chips: int, grow: bool) -> tuple[float, float]:
    """Predict the images per second of a plan's run on another number of chips, and the share of a
    step that waits for others.

    Arithmetic and traffic scale with the images of a device, the bytes of an all-reduce with its
    seeds; otherwise the model is that of `step_seconds`.

    Args:
      plan: as tpu_plan.py stores it.
      chips: of the same generation.
      grow: each device keeps its images and the batch grows; else the batch stays and each device
        has fewer.
    """
    chip = CHIPS[plan["topology"].partition(":")[0]]
    devices = chips * chip.cores
    before = plan["devices_used"]
    apart = math.gcd(devices, plan["seeds"])  # groups of devices, as `devices.layout` makes them
    seeds = plan["mesh"][0] / apart  # of a device, over the plan's
    work = 1.0 if grow else before / devices
    busy = work * max(
        plan["flops"] * chip.cores / chip.peak, plan["traffic"] * chip.cores / chip.bandwidth
    )
    waiting = sum(
        all_reduce_seconds(
            Collective(collective["kind"], collective["bytes"] * seeds, devices // apart), chip
        )
        for collective in plan["collectives"]
    )
    images = plan["batch_size"] * plan["seeds"] * (devices / before if grow else 1)
    return images / (busy + waiting), waiting / (busy + waiting)
