"""The one place that knows devices: which to use, and how one pure step is compiled over them.

A step is written for the global batch and takes `axis_name`. Under jit and sharded jit it is None and the arrays are
global; under pmap the step sees one device's part of the batch and reduces over the axis by that name. State has no
leading device axis in any mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cnnlab.errors import InputError

AXIS = "data"


def example_keys(key: jax.Array, batch: int, axis_name: str | None = None) -> jax.Array:
    """One key per example, from its place in the global batch: draws do not depend on how devices share the batch.

    Args:
      key: a typed key, the same on every device.
      batch: examples that this device holds.
      axis_name: the device axis under pmap.

    Returns:
      key[batch].
    """
    first = 0 if axis_name is None else lax.axis_index(axis_name) * batch
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(batch))


def mean(tree: Any, axis_name: str | None) -> Any:
    """Mean over devices of a mean over equal parts of the batch; the identity outside pmap."""
    return tree if axis_name is None else lax.pmean(tree, axis_name)


def total(tree: Any, axis_name: str | None) -> Any:
    """Sum over devices; the identity outside pmap."""
    return tree if axis_name is None else lax.psum(tree, axis_name)


@dataclass(frozen=True)
class Layout:
    """How steps are laid over devices: `mode` is jit, pmap or sharded."""

    mode: str
    mesh: Mesh

    @property
    def device_count(self) -> int:
        return self.mesh.size

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def place(self, tree: Any) -> Any:
        """Put a pytree on every device of the mesh."""
        return jax.device_put(tree, self.replicated)

    def compile(self, step: Callable, batched: Sequence[bool], donate: Sequence[int] = ()) -> Callable:
        """Compile `step(*args, axis_name=...)`, whose results are the same on every device.

        Args:
          step: a pure function of `len(batched)` positional arguments.
          batched: for each argument, whether its arrays have a leading batch axis to share out.
          donate: arguments whose memory the result may take over.

        Returns:
          A function of the same arguments.
        """
        if self.mode == "pmap":
            axes = tuple(0 if b else None for b in batched)
            mapped = jax.pmap(
                partial(step, axis_name=AXIS), AXIS, in_axes=axes, out_axes=None, devices=list(self.mesh.devices.flat)
            )
            split = lambda x: x.reshape(self.device_count, x.shape[0] // self.device_count, *x.shape[1:])
            return lambda *args: mapped(
                *(jax.tree.map(split, arg) if b else arg for arg, b in zip(args, batched, strict=True))
            )
        shared = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return jax.jit(
            partial(step, axis_name=None),
            in_shardings=tuple(shared if b else self.replicated for b in batched),
            out_shardings=self.replicated,
            donate_argnums=tuple(donate),
        )


def layout(mode: str, devices: int | None, batch_size: int) -> Layout:
    """Choose the devices for a batch.

    Args:
      mode: auto, jit, pmap or sharded; auto is sharded when more than one device is used.
      devices: how many; None takes the most that divide the batch (one for jit).
      batch_size: images per step over all devices.

    Raises:
      InputError: more devices than there are, or a number that does not divide the batch.
    """
    try:
        available = jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = next(iter(str(error).splitlines()), "the platform that JAX_PLATFORMS names is not there")
        raise InputError(f"JAX finds no device: {reason}") from error
    if devices is None:
        limit = 1 if mode == "jit" else len(available)
        devices = max(n for n in range(1, limit + 1) if batch_size % n == 0)
    if devices > len(available):
        raise InputError(f"--devices {devices} wanted, but there are {len(available)} ({available[0].platform})")
    if mode == "jit" and devices > 1:
        raise InputError(f"--parallel jit runs on one device; take sharded or pmap for --devices {devices}")
    if batch_size % devices:
        raise InputError(f"--devices {devices} does not divide --batch-size {batch_size}; choose a divisor")
    if mode == "auto":
        mode = "sharded" if devices > 1 else "jit"
    return Layout(mode, Mesh(np.array(available[:devices]), (AXIS,)))
