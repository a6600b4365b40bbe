"""The models by name; what can be asked of any."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnnlab.models.airnet import AirNet
from cnnlab.models.cnn import CNN
from cnnlab.models.cnn8 import CNN8
from cnnlab.models.dense import MLP, SoftmaxRegression
from cnnlab.models.resnet import RESNETS
from cnnlab.types import PyTree

MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": CNN,
    "mlp": MLP,
    "softmax_regression": SoftmaxRegression,
    "airnet": AirNet,
    "cnn8": CNN8,
    **RESNETS,
}


def count_parameters(params: PyTree) -> int:
    """Count the numbers in a pytree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def model_dtype(compute_dtype: str) -> np.dtype | None:
    """Convert a --compute-dtype to a module's `dtype`: bfloat16, float16, or None for float32, the
    type of the parameters.
    """
    return None if compute_dtype == "float32" else jnp.dtype(compute_dtype)
