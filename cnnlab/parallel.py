"""The one place that knows devices: which to use, and how one pure step is compiled over them.

A step is written for the part of the batch that one device holds and takes `axis_name`, the mesh axis over which it
reduces; on one device that is None. State has no leading device axis in any mode. Several seeds add a mesh axis of
their own and a leading axis to whatever differs between them; the step itself knows one seed only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import gcd
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cnnlab.errors import InputError

AXIS, SEEDS = "data", "seed"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
SHARED, BATCH, PER_SEED = PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(SEEDS)


def example_keys(key: jax.Array, batch: int, axis_name: str | None = None) -> jax.Array:
    """One key per example, from its place in the global batch: draws do not depend on how devices share the batch.

    Args:
      key: a typed key, the same on every device.
      batch: examples that this device holds.
      axis_name: the mesh axis that shares the batch; None on one device.

    Returns:
      key[batch].
    """
    first = 0 if axis_name is None else lax.axis_index(axis_name) * batch
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(batch))


def mean(tree: Any, axis_name: str | None) -> Any:
    """Mean over devices of a mean over equal parts of the batch; the identity on one device."""
    return tree if axis_name is None else lax.pmean(tree, axis_name)


def total(tree: Any, axis_name: str | None) -> Any:
    """Sum over devices; the identity on one device."""
    return tree if axis_name is None else lax.psum(tree, axis_name)


def formulation(platform: str) -> str:
    """How layers.py shall convolve on a platform: blocked on cpu, native elsewhere."""
    return "blocked" if platform == "cpu" else "native"


@dataclass(frozen=True)
class Layout:
    """How steps are laid over devices: `mode` is jit (one device), pmap or sharded."""

    mode: str
    mesh: Mesh

    @property
    def device_count(self) -> int:
        return self.mesh.size

    @property
    def platform(self) -> str:
        """Of the mesh's devices: they need not be the default ones, a CPU host compiles for TPUs."""
        return self.mesh.devices.flat[0].platform

    @property
    def formulation(self) -> str:
        """How layers.py shall convolve on these devices."""
        return formulation(self.platform)

    def place(self, tree: Any, spec: PartitionSpec = SHARED) -> Any:
        """Put a pytree on the mesh, by default whole on every device.

        CPU devices share the memory of a numpy array that starts at a multiple of 64 bytes; others are copied.
        """
        return jax.device_put(tree, NamedSharding(self.mesh, spec))

    def compile(
        self,
        step: Callable,
        specs: Sequence[PartitionSpec],
        result: PartitionSpec = SHARED,
        donate: Sequence[int] = (),
    ) -> Callable:
        """Compile `step(*args, axis_name=...)`.

        Args:
          step: a pure function of `len(specs)` positional arguments.
          specs: for each argument the axes of its arrays, from the first: AXIS where the batch is shared out, SEEDS
            (first only) where each seed has its own and the step sees one, None elsewhere. SHARED: the same for all.
          result: of all results: SHARED, the same on every device, or PER_SEED.
          donate: arguments whose memory the result may take over.

        Returns:
          A function of the same arguments.
        """
        mapped = partial(step, axis_name=None if self.mode == "jit" else AXIS)
        if SEEDS in result:
            mapped = _over_seeds(mapped, [0 if SEEDS in spec else None for spec in specs], self.platform)
        if self.mode == "pmap":
            axes = tuple(spec.index(AXIS) if AXIS in spec else None for spec in specs)
            run = jax.pmap(mapped, AXIS, in_axes=axes, out_axes=None, devices=list(self.mesh.devices.flat))
            split = lambda x, i: x.reshape(*x.shape[:i], self.device_count, -1, *x.shape[i + 1 :])
            return lambda *args: run(
                *(
                    arg if i is None else jax.tree.map(partial(split, i=i), arg)
                    for arg, i in zip(args, axes, strict=True)
                )
            )
        if self.mode == "sharded":
            mapped = jax.shard_map(mapped, mesh=self.mesh, in_specs=tuple(specs), out_specs=result, check_vma=False)
        shardings = [NamedSharding(self.mesh, spec) for spec in (*specs, result)]
        return jax.jit(
            mapped, in_shardings=tuple(shardings[:-1]), out_shardings=shardings[-1], donate_argnums=tuple(donate)
        )


def _over_seeds(step: Callable, axes: Sequence[int | None], platform: str) -> Callable:
    """The step for all seeds of a device: in turn on a CPU core, which one seed keeps busy, together elsewhere."""
    if platform != "cpu":
        return jax.vmap(step, tuple(axes))

    def in_turn(*args):
        mapped = [arg for arg, axis in zip(args, axes, strict=True) if axis == 0]

        def one(parts):
            parts = iter(parts)
            return step(*(next(parts) if axis == 0 else arg for arg, axis in zip(args, axes, strict=True)))

        return lax.map(one, mapped)

    return in_turn


def layout(mode: str, devices: int | None, batch_size: int, seeds: int | None = None, cpu_images: int = 32) -> Layout:
    """Choose the devices for a batch.

    CPU cores are used as a device each, unless JAX has started with another number (JAX_NUM_CPU_DEVICES).

    Args:
      mode: auto, jit, pmap or sharded; auto is sharded when more than one device is used.
      devices: how many; None takes the most that divide the batch (one for jit).
      batch_size: images per step over all devices.
      seeds: how many are trained together; they are shared out as far as their number allows, the batch over the rest.
      cpu_images: on CPU, the fewest images of a seed that a device gets unless `devices` says so. Measured on two
        cores, seed network: 64 images each 1.5 times as fast as one device, 16 each 0.84.

    Raises:
      InputError: more devices than there are, a number that does not divide the batch, or seeds under pmap.
    """
    available = start()
    share = lambda n: batch_size * gcd(n, seeds or 1) / n  # images of one seed that one of n devices gets
    if devices is None:
        least = min(cpu_images, batch_size) if available[0].platform == "cpu" else 1
        fitting = range(2, len(available) + 1 if mode != "jit" else 0)
        devices = max((n for n in fitting if share(n) % 1 == 0 and share(n) >= least), default=1)
    if devices > len(available):
        raise InputError(f"--devices {devices} wanted, but there are {len(available)} ({available[0].platform})")
    if mode == "jit" and devices > 1:
        raise InputError(f"--parallel jit runs on one device; take sharded or pmap for --devices {devices}")
    if share(devices) % 1:
        raise InputError(f"--devices {devices} does not divide --batch-size {batch_size}; choose a divisor")
    if mode == "pmap" and seeds is not None:
        raise InputError("--parallel pmap trains one seed at a time; take sharded")
    if mode == "auto":
        mode = "sharded" if devices > 1 else "jit"
    return Layout(mode, Mesh(np.array(available[:devices]).reshape(gcd(devices, seeds or 1), -1), (SEEDS, AXIS)))


def start() -> list[Any]:
    """The default platform's devices; if JAX has not started, with a CPU device for each core.

    A program that computes before it asks for a layout calls this first, or has one CPU device.

    Raises:
      InputError: there is none.
    """
    asked = os.environ.get("JAX_NUM_CPU_DEVICES") or "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not asked:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        with contextlib.suppress(RuntimeError):  # JAX has started already, with the devices it has
            jax.config.update("jax_num_cpu_devices", cores)
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = next(iter(str(error).splitlines()), "the platform that JAX_PLATFORMS names is not there")
        raise InputError(f"JAX finds no device: {reason}") from error
    if devices[0].platform == "cpu":
        _keep_freed_memory()
    return devices


def _keep_freed_memory() -> None:
    """Have glibc keep the memory that a step frees for the next one.

    XLA asks for its temporaries anew each step; from 32 MB on malloc would return their pages and fault them in again.
    Kept, a step with batch norm on two cores is 1.9 times as fast on jax 0.10, 1.3 times on 0.12.
    """
    with contextlib.suppress(OSError, AttributeError):  # another libc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
