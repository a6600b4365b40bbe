"""What a training needs of memory, estimated on shapes: what cannot fit is refused before anything
is allocated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp

from cnnlab import backend
from cnnlab.errors import InputError, is_out_of_memory
from cnnlab.multihost import processes
from cnnlab.training import network
from cnnlab.training.devices import AXIS, SEEDS
from cnnlab.training.program import Program
from cnnlab.training.step import TrainState
from cnnlab.types import PyTree

# Of the arrays that backpropagation keeps, as JAX sees them, XLA keeps about so much: it fuses some
# (cnn, airnet, cnn8, ResNets on a CPU: 0.8 to 1.4; long chains of elementwise functions: 0.2).
KEPT = 0.8
# Bytes that backpropagation keeps of a layer's output channel at a pixel of the image, at most: it,
# normalised and activated, and a mask. Where that is free for every kernel, at full resolution, a
# start need not trace the network to count (that is 6 to 36 times less).
AMPLE = 16


@dataclass(frozen=True)
class Need:
    """What a device needs, in bytes; for activations that is an estimate, the rest a lower bound.

    Attributes:
      parameters: how many there are, of a network.
      state: of a network: parameters, the optimizer's state, an average of the weights.
      gradients: of a network.
      activations: of the images that a network takes at once.
      images: how many these are.
      networks: trained together on the device.
      together: how many of them take a step at the same time.
    """

    parameters: int
    state: int
    gradients: int
    activations: float
    images: int
    networks: int
    together: int

    @property
    def bytes(self) -> float:
        return self._of(self.networks, self.images)

    @property
    def least(self) -> float:
        """Without activations."""
        return self._of(self.networks, 0)

    def _of(self, networks: int, images: float) -> float:
        step = self.gradients + self.activations * images / self.images
        return networks * self.state + min(networks, self.together) * step

    def fitting(self, capacity: float) -> str:
        """Say what would fit into so many bytes."""
        bytes_of_network = self.state + self.gradients
        if bytes_of_network > capacity:
            most = int(capacity * self.parameters / bytes_of_network)
            return f"a network of up to {most:,} parameters would fit"
        networks = max(
            (n for n in range(self.networks) if self._of(n, self.images) <= capacity), default=0
        )
        if networks:
            few = "a network" if networks == 1 else f"{networks} networks"
            return f"{few} at a time would fit"
        per_image = self.activations / self.images
        images = int((capacity - bytes_of_network) / per_image)
        if not images:
            return "not one image of a batch would fit: take a smaller network"
        return f"{images} images at a time would fit (--batch-size, --microbatches)"


def need(program: Program, per_output: int | None = None) -> Need:
    """Estimate what a device needs for a program's steps.

    Args:
      program: the steps.
      per_output: bytes of activations for each output channel of a kernel and pixel of an image,
        where they are not to be counted.

    Raises:
      InputError: the images are too small for the model.
    """
    layout = program.layout
    state, _, _ = program.abstract_start()
    num_seeds = layout.num_seeds or 1
    if layout.num_seeds is not None:
        state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), state)
    networks = num_seeds // layout.mesh.shape[SEEDS]
    recipe = program.config.recipe
    images = recipe.batch_size // layout.mesh.shape[AXIS] // recipe.microbatches
    if per_output is None:
        activations = KEPT * _kept(program, state, images)
    else:
        height, width, channels = program.facts.image_shape
        kernels = (leaf.shape for leaf in jax.tree.leaves(state.params) if leaf.ndim > 1)
        per_pixel = per_output * (channels + sum(shape[-1] for shape in kernels))
        activations = per_pixel * images * (1 + _views(program, images)) * height * width
    return Need(
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        state=_size(state),
        gradients=_size(state.params),
        activations=activations,
        images=images,
        networks=networks,
        together=1 if layout.platform == "cpu" else networks,
    )


def check(program: Program) -> None:
    """Refuse a program whose steps need more memory than its devices have. Where only activations
    are too many by the estimate, the compiler is asked, which takes its time.

    Raises:
      InputError: as `need`, or they do; it says what would fit.
    """
    layout = program.layout
    ours = [d for d in layout.mesh.devices.flat if d.process_index == processes.index()]
    available = backend.free_memory(ours[0])
    free = math.inf if available is None else available
    sharing = len(ours) if layout.platform == "cpu" else 1  # cores have one memory
    if need(program, AMPLE).bytes * sharing <= free:
        return
    wanted = need(program)
    if wanted.bytes * sharing <= free:
        return
    if wanted.least * sharing <= free and _compiled(program) * sharing <= free:
        return
    at_once = min(wanted.networks, wanted.together)
    networks = f" of {wanted.networks} networks" if wanted.networks > 1 else ""
    devices = f", on each of {sharing} devices" if sharing > 1 else ""
    raise InputError(
        f"--model {program.config.recipe.model} needs about {_text(wanted.bytes * sharing)} of "
        f"memory, and {_text(free)} are free: {_text(wanted.networks * wanted.state)} for "
        f"{wanted.parameters:,} parameters and the optimizer's state{networks}, "
        f"{_text(at_once * wanted.gradients)} for gradients, "
        f"{_text(at_once * wanted.activations)} for activations of {wanted.images:,} images"
        f"{devices}; {wanted.fitting(free / sharing)}"
    )


def _compiled(program: Program) -> float:
    """Return how many bytes a device needs by the count of the compiler; infinitely many where it
    refuses.
    """
    lowered = cast(jax.stages.Wrapped, program.dispatch).lower(*program.arguments())
    try:
        memory: Any = lowered.compile().memory_analysis()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return math.inf
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + new


def _text(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB"


def _kept(program: Program, state: TrainState, images: int) -> int:
    """Compute the bytes that backpropagation keeps of a forward pass besides the parameters."""

    def kept(params: PyTree, batch_stats: PyTree, x: jax.Array, key: jax.Array) -> list[jax.Array]:
        def logits(params: PyTree) -> jax.Array:
            variables = {"params": params, "batch_stats": batch_stats}
            return model(variables, x, key)[0]

        arrays = {id(leaf): leaf for leaf in jax.tree.leaves(jax.vjp(logits, params)[1])}
        for leaf in jax.tree.leaves(params):
            arrays.pop(id(leaf), None)
        return [*arrays.values()]

    # as on one device: collectives need a mesh
    model = network.apply_for_training(program.model_on_one_device())
    count = images * (1 + _views(program, images))
    x = jax.ShapeDtypeStruct((count, *program.facts.image_shape), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return _size(jax.eval_shape(kept, state.params, state.batch_stats, x, key))


def _views(program: Program, images: int) -> int:
    """Count the views of each image that the network takes besides it."""
    if not program.parts.loss.asks("view_logits"):
        return 0
    facts = program.facts
    shapes = program.parts.augmented_shapes(
        facts.num_classes, facts.image_shape, images, facts.mirror
    )
    return shapes["views"].shape[0]


def _size(tree: PyTree) -> int:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
