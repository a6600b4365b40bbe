"""A loss under examination: its values, gradients and Hessians in float64 at many points, each
compiled once.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cnnlab.report_card.finding import show

Loss = Callable[[ArrayLike, ArrayLike], jax.Array]

# Points per compiled call: every batch is padded to it, so that no second shape is compiled
CHUNK = 1024
FEW = 256  # the same for Hessians
SCALES = (0.3, 1.0, 3.0, 10.0)  # standard deviations of random logits
COSINE = 0.95  # random cosines stay this far inside [-1, 1], whose ends are special (arcface)


def placeholders(num_classes: int) -> dict[str, Any]:
    """Make values, by name, for hyperparameters that a loss takes from the data or other networks.

    Args:
      num_classes: K.

    Returns:
      class_counts, K from 1000 down to 10; teacher_logits, K from 1 down to -1; view_logits, two
      views of one example;
      progress and epoch, those of the end of a run of one epoch.
    """
    slope = np.linspace(1, -1, num_classes)
    # Lists: they become float32 or float64 arrays as the examination continues in one or the other.
    return {
        "class_counts": np.geomspace(1000, 10, num_classes).tolist(),
        "teacher_logits": slope.tolist(),
        "view_logits": np.stack([0.5 * slope, -0.25 * slope]).tolist(),
        "progress": 1.0,
        "epoch": 0,
    }


def filled(loss: Callable, num_classes: int) -> Loss:
    """Bind those of `placeholders` that the loss requires and that are not set yet."""
    parameters = inspect.signature(loss).parameters
    missing = {name for name, p in parameters.items() if p.default is p.empty}
    values = {name: value for name, value in placeholders(num_classes).items() if name in missing}
    views = values.pop("view_logits", None)
    if values:
        loss = functools.partial(loss, **values)
    if views is None:
        return loss

    def with_views(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
        shape = jnp.shape(logits)  # the views have the logits' batch shape
        stacked = jnp.asarray(views).reshape(len(views), *[1] * (len(shape) - 1), num_classes)
        return loss(logits, labels, view_logits=jnp.broadcast_to(stacked, (len(views), *shape)))

    return with_views


@dataclass(frozen=True, eq=False)
class Subject:
    """A loss, the number of classes it is examined with, and whether its logits are cosines.

    The methods take float64[N, K] and look at one example at a time: they need no batch semantics
    of the loss.
    """

    function: Callable
    name: str
    classes: int = 3
    cosines: bool = False
    hyperparameters: Mapping[str, object] = field(default_factory=dict)

    def of(self, classes: int) -> Loss:
        """Return the loss for K classes: (logits float[..., K], labels) -> float[...]."""
        return filled(functools.partial(self.function, **self.hyperparameters), classes)

    @functools.cached_property
    def loss(self) -> Loss:
        return self.of(self.classes)

    def values(self, z: np.ndarray) -> np.ndarray:
        """Compute L(z, k) for every class k: float64[N, K] -> float64[N, K]."""
        return _in_chunks(self._values, z, CHUNK)

    def gradients(self, z: np.ndarray) -> np.ndarray:
        """Compute dL(z, k)/dz for every class k: float64[N, K] -> float64[N, K, K]."""
        return _in_chunks(self._gradients, z, CHUNK)

    def hessians(self, z: np.ndarray) -> np.ndarray:
        """Compute the Hessian for every class k: float64[N, K] -> float64[N, K, K, K]."""
        return _in_chunks(self._hessians, z, FEW)

    @functools.cached_property
    def _values(self) -> Callable:
        return self._of_all_classes(self.loss)

    @functools.cached_property
    def _gradients(self) -> Callable:
        return self._of_all_classes(jax.grad(self.loss))

    @functools.cached_property
    def _hessians(self) -> Callable:
        return self._of_all_classes(jax.hessian(self.loss))

    def _of_all_classes(self, function: Callable) -> Callable:
        over_labels = jax.vmap(function, (None, 0))
        return jax.jit(
            jax.vmap(lambda z: over_labels(z, jnp.arange(self.classes, dtype=jnp.int32)))
        )

    def no_number(self) -> str:
        """Describe an ordinary point without a finite loss; empty if there is none.

        Such a loss could get any verdict.
        """
        z = self.logits(64, seed=99)
        bad = np.argwhere(~np.isfinite(self.values(z)))
        return (
            f"L has no finite value at z = {show(z[bad[0, 0]])}, label {bad[0, 1]}"
            if len(bad)
            else ""
        )

    def logits(self, count: int, seed: int = 0, scales: tuple[float, ...] = SCALES) -> np.ndarray:
        """Draw random logits, float64[count, K].

        They are normal, of several scales in turn; uniform for cosines.
        """
        rng = np.random.default_rng([seed, self.classes])
        if self.cosines:
            return rng.uniform(-COSINE, COSINE, (count, self.classes))
        return np.resize(scales, count)[:, None] * rng.standard_normal((count, self.classes))


def _in_chunks(function: Callable, z: np.ndarray, size: int) -> np.ndarray:
    z = np.asarray(z, np.float64)
    padded = np.concatenate([z, np.zeros((-len(z) % size, z.shape[1]))])
    with jax.enable_x64():
        parts = [np.asarray(function(padded[i : i + size])) for i in range(0, len(padded), size)]
    return np.concatenate(parts)[: len(z)]
