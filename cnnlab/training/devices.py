"""The one place that knows devices: which to use, and how one pure step is compiled over them.

A step is written for the part of the batch that one device holds and takes `axis_name`, the mesh
axis over which it reduces; on one device that is None. State has no leading device axis in any
mode. Several seeds add a mesh axis of their own and a leading axis to whatever differs between
them; the step itself knows one seed only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import gcd
from typing import TypeVar, cast

import jax
import numpy as np
from jax import lax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cnnlab import backend
from cnnlab.config import Machine
from cnnlab.errors import InputError
from cnnlab.multihost import processes, transfer
from cnnlab.types import Device, PyTree

T = TypeVar("T")

AXIS, SEEDS = "data", "seed"
SHARED = PartitionSpec()
BATCH = PartitionSpec(AXIS)
# XLA's options for a device that is a CPU core.
ONE_CORE: dict[str, str | bool | int] = {
    "xla_cpu_multi_thread_eigen": False,
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
}
# For the same bits on every run: no unordered sums, no kernel chosen by how fast it was.
DETERMINISTIC_GPU: dict[str, str | bool | int] = {
    "xla_gpu_deterministic_ops": True,
    "xla_gpu_autotune_level": 0,
}


def formulation(platform: str, deterministic: bool = False) -> str:
    """Choose how models/convolution.py convolves: blocked on the platform cpu, native elsewhere,
    and there without what is not deterministic on a GPU where that is asked for.
    """
    if platform == "cpu":
        return "blocked"
    return "deterministic" if deterministic and platform == "gpu" else "native"


@dataclass(frozen=True)
class Layout:
    """How steps are laid over devices.

    Attributes:
      mode: jit (one device), pmap or sharded.
      mesh: of the devices, seeds by parts of the batch.
      num_seeds: networks that are trained together; None for one, whose state has no leading axis.
      deterministic: whether a GPU must compute the same bits on every run.
    """

    mode: str
    mesh: Mesh
    num_seeds: int | None = None
    deterministic: bool = False

    @property
    def device_count(self) -> int:
        return self.mesh.size

    @property
    def platform(self) -> str:
        """Of the mesh's devices: they need not be the default ones, a CPU host compiles
        for TPUs.
        """
        return self.mesh.devices.flat[0].platform

    @property
    def axis_name(self) -> str | None:
        """The axis over which a step reduces; None on one device."""
        return None if self.mode == "jit" else AXIS

    @property
    def formulation(self) -> str:
        """How models/convolution.py convolves on these devices."""
        return formulation(self.platform, self.deterministic)

    def place(self, tree: T, spec: PartitionSpec = SHARED) -> T:
        """Put a pytree on the mesh, by default whole on every device; each process has all of it.

        CPU devices share the memory of a numpy array that starts at a multiple of 64 bytes; others
        are copied.
        """
        return transfer.put(tree, NamedSharding(self.mesh, spec))

    def local_part(self, count: int, axis: str) -> np.ndarray:
        """Return the indices that this process holds, of `count` shared out along a mesh axis.

        Returns:
          int[n], ascending.
        """
        mine = np.vectorize(lambda device: device.process_index == processes.index())(
            self.mesh.devices
        )
        held = np.unique(np.nonzero(mine)[self.mesh.axis_names.index(axis)])
        share = count // self.mesh.shape[axis]
        return (held[:, None] * share + np.arange(share)).ravel()

    def globalise(self, tree: T, spec: PartitionSpec) -> T:
        """Build the global arrays of which each process has a part.

        Args:
          tree: of numpy arrays, this process's parts (`local_part`); others stay as they are.
          spec: along whose axes they are parts.

        Returns:
          With one process, which has all, the tree itself. `compile`'s functions take such parts as
          they are.
        """
        if processes.count() == 1:
            return tree
        return jax.tree.map(partial(self._globalise, spec), tree)

    def _globalise(self, spec: PartitionSpec, part: object) -> object:
        if not isinstance(part, np.ndarray):
            return part
        shape = list(part.shape)
        held: dict[int, np.ndarray] = {}  # by dimension, which of its indices this process has
        for place, axis in enumerate(spec):
            if axis is not None:
                groups = self.mesh.shape[axis]
                shape[place] = groups * part.shape[place] // len(self.local_part(groups, axis))
                held[place] = self.local_part(shape[place], axis)

        def shard(index: tuple[slice, ...]) -> np.ndarray:
            at = list(index)
            for place, indices in held.items():
                first, last, _ = index[place].indices(shape[place])
                at[place] = slice(*np.searchsorted(indices, [first, last]))
            return part[tuple(at)]

        sharding = NamedSharding(self.mesh, spec)
        return jax.make_array_from_callback(tuple(shape), sharding, cast(Callable, shard))

    def compile(
        self,
        step: Callable[..., PyTree],
        specs: Sequence[PartitionSpec],
        result: PartitionSpec = SHARED,
        donate: Sequence[int] = (),
    ) -> Callable[..., PyTree]:
        """Compile `step(*args, axis_name=...)`.

        Args:
          step: a pure function of `len(specs)` positional arguments.
          specs: for each argument the axes of its arrays, from the first: AXIS where the batch is
            shared out, SEEDS (first only) where each seed has its own and the step sees one, None
            elsewhere. SHARED: the same for all.
          result: of all results: SHARED, the same on every device, or one of each seed.
          donate: arguments whose memory the result may take over.

        Returns:
          A function of the same arguments; those in numpy hold this process's part (`globalise`).
        """
        mapped = partial(step, axis_name=self.axis_name)
        if SEEDS in result:
            mapped = _over_seeds(
                mapped, [0 if SEEDS in spec else None for spec in specs], self.platform
            )
        if self.mode == "pmap":
            axes = tuple(spec.index(AXIS) if AXIS in spec else None for spec in specs)
            run = jax.pmap(
                mapped, AXIS, in_axes=axes, out_axes=None, devices=list(self.mesh.devices.flat)
            )
            return lambda *args: run(
                *(
                    arg if i is None else jax.tree.map(partial(_split, i, self.device_count), arg)
                    for arg, i in zip(args, axes, strict=True)
                )
            )
        if self.mode == "sharded":
            mapped = jax.shard_map(
                mapped, mesh=self.mesh, in_specs=tuple(specs), out_specs=result, check_vma=False
            )
        shardings = [NamedSharding(self.mesh, spec) for spec in (*specs, result)]
        run = jax.jit(
            mapped,
            in_shardings=tuple(shardings[:-1]),
            out_shardings=shardings[-1],
            donate_argnums=tuple(donate),
            compiler_options=_compiler_options(list(self.mesh.devices.flat), self.deterministic),
        )
        if processes.count() == 1:
            return run
        return lambda *args: run(
            *(self.globalise(arg, spec) for arg, spec in zip(args, specs, strict=True))
        )


def _compiler_options(
    devices: Sequence[Device], deterministic: bool
) -> dict[str, str | bool | int]:
    """Choose XLA's options for a step over these devices.

    Where each core is a device, it computes in one thread and one operation after the other: no
    core is left for a second thread. On two cores the steps of ResNet-18, ResNet-20 and airnet
    are 1.03 to 1.1 times as fast.
    """
    if deterministic and devices[0].platform == "gpu":
        return DETERMINISTIC_GPU
    ours = [device for device in devices if device.process_index == processes.index()]
    return ONE_CORE if devices[0].platform == "cpu" and len(ours) >= backend.cores() else {}


def _split(i: int, devices: int, x: jax.Array) -> jax.Array:
    """Split an axis in two, the first of which has an entry for each device."""
    return x.reshape(*x.shape[:i], devices, -1, *x.shape[i + 1 :])


def _over_seeds(
    step: Callable[..., PyTree], axes: Sequence[int | None], platform: str
) -> Callable[..., PyTree]:
    """Map a step over all seeds of a device: in turn on a CPU core, which one seed keeps busy,
    together elsewhere.
    """
    if platform != "cpu":
        return jax.vmap(step, tuple(axes))

    def in_turn(*args):
        mapped = [arg for arg, axis in zip(args, axes, strict=True) if axis == 0]

        def step_of_seed(parts):
            parts = iter(parts)
            return step(
                *(next(parts) if axis == 0 else arg for arg, axis in zip(args, axes, strict=True))
            )

        return lax.map(step_of_seed, mapped)

    return in_turn


def layout(
    machine: Machine,
    batch_size: int,
    num_seeds: int | None = None,
    cpu_images: int = 32,
    available: Sequence[Device] | None = None,
) -> Layout:
    """Choose the devices for a batch.

    Each CPU core is used as a device, unless JAX has started with another number
    (JAX_NUM_CPU_DEVICES). Several processes contribute equally many devices each.

    Args:
      machine: which devices were asked for.
      batch_size: images per step over all devices.
      num_seeds: trained together; they are shared out as far as their number allows, the
        batch over the rest.
      cpu_images: on CPU, the fewest images of a seed that a device gets unless their number was
        asked for. Measured on two cores, seed network: 64 images each 1.5 times as fast as one
        device, 16 each 0.84.
      available: to choose from; None: those of all processes.

    Raises:
      InputError: more devices than there are, a number that does not divide the batch, or seeds
        under pmap.
    """
    available = backend.start() if available is None else available
    mode = machine.parallel
    mesh = _mesh(machine, num_seeds or 1)
    fewest = min(cpu_images, batch_size) if available[0].platform == "cpu" else 1
    if mesh:
        count = mesh[0] * mesh[1]
    elif machine.devices:
        count = machine.devices
    else:
        most = 1 if mode == "jit" else len(available)
        count = _most_that_divide(batch_size, num_seeds or 1, most, fewest)
    groups = mesh[0] if mesh else gcd(count, num_seeds or 1)
    _check_count(count, len(available), mode, available[0].platform)
    if batch_size * groups % count:
        raise InputError(
            f"--devices {count} does not divide --batch-size {batch_size} ({count // groups} of "
            "them would share a seed's batch); choose a divisor"
        )
    if mode == "pmap" and (num_seeds is not None or processes.count() > 1):
        raise InputError("--parallel pmap trains one seed at a time, in one process; take sharded")
    if mode == "pmap" and machine.deterministic and available[0].platform == "gpu":
        raise InputError("--parallel pmap cannot be --deterministic on a GPU; take sharded")
    if mode == "auto":
        mode = "sharded" if count > 1 else "jit"
    used = Mesh(_arranged(available, count, groups), (SEEDS, AXIS))
    return Layout(mode, used, num_seeds, machine.deterministic)


def single_device() -> Layout:
    """Choose the first device, for one network."""
    return layout(Machine(parallel="jit"), batch_size=1)


def _mesh(machine: Machine, num_seeds: int) -> tuple[int, int] | None:
    """Parse --mesh: over how many devices the seeds are shared out, and over how many the batch of
    each. None if it is not set.
    """
    if machine.mesh is None:
        return None
    groups, shared = map(int, machine.mesh.split("x"))
    if machine.devices not in (None, groups * shared):
        raise InputError(
            f"--mesh {machine.mesh} is {groups * shared} devices, --devices {machine.devices} is "
            "not"
        )
    if num_seeds % groups:
        raise InputError(
            f"--mesh {machine.mesh}: {groups} does not divide what is trained together, {num_seeds}"
        )
    return groups, shared


def _most_that_divide(batch_size: int, num_seeds: int, most: int, fewest: int) -> int:
    """Find the largest number of devices that each get equally many images of a seed.

    Args:
      batch_size: images of a seed.
      num_seeds: trained together.
      most: devices.
      fewest: images that are worth a second device.
    """
    several = range(processes.count(), most + 1, processes.count())
    share = {n: batch_size * gcd(n, num_seeds) / n for n in several}
    fitting = [n for n in several if share[n] % 1 == 0]
    worthwhile = [n for n in fitting if n > 1 and share[n] >= fewest]
    return max(worthwhile, default=min(fitting, default=processes.count()))


def _check_count(count: int, available: int, mode: str, platform: str) -> None:
    if count > available:
        raise InputError(f"--devices {count} wanted, but there are {available} ({platform})")
    if count % processes.count():
        raise InputError(
            f"--devices {count} cannot be shared by {processes.count()} processes; choose a "
            "multiple"
        )
    if mode == "jit" and count > 1:
        raise InputError(
            f"--parallel jit runs on one device; take sharded or pmap for --devices {count}"
        )


def _arranged(available: Sequence[Device], count: int, num_rows: int) -> np.ndarray:
    """Arrange `count` of the devices, equally many of each process, in `num_rows` rows."""
    if count < len(available):
        per_process = count // processes.count()
        by_process = [
            [device for device in available if device.process_index == p]
            for p in range(processes.count())
        ]
        available = (
            available[:count]
            if len(by_process) == 1
            else [d for devices in by_process for d in devices[:per_process]]
        )
    elif available[0].platform == "tpu":  # along the wires between its chips
        return mesh_utils.create_device_mesh(
            (num_rows, count // num_rows), available, allow_split_physical_axes=True
        )
    return np.array(available).reshape(num_rows, -1)
