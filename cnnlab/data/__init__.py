"""Data sets: of TFDS without TensorFlow, of arrays; their order, and how a step is fed.

cnnlab.data.cifar10 and the others below are those of catalogue.py, imported when they are used:
Grain's reader processes import this package, and need nothing else of it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cnnlab.data.catalogue import (
        cifar10,
        cifar100,
        fashion_mnist,
        mnist,
        shapes10,
        svhn_cropped,
    )

__all__ = ["cifar10", "cifar100", "fashion_mnist", "mnist", "shapes10", "svhn_cropped"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from cnnlab.data import catalogue

        return getattr(catalogue, name)
    raise AttributeError(f"module 'cnnlab.data' has no attribute '{name}'")
