"""Decoded images and facts about data sets, kept between runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np

from cnnlab import verified

HEADER = 16 * verified.ALIGNED  # bytes of a file of arrays that say what they are


def arrays(name: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Read arrays from the cache, or compute them and put them there.

    Args:
      name: of the file; whatever the arrays depend on must be in it.
      compute: gives a few named arrays of numbers or strings.

    Returns:
      The same arrays; each starts at a multiple of 64 bytes in memory.
    """
    path = verified.folder() / f"{name}.arrays"
    body = verified.read(path)
    if body is None:
        body = _packed(compute())
        verified.write(path, body)
    return _unpacked(body)


def _packed(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Pack arrays into one run of bytes, uint8[size].

    A header says what the arrays are; each of them follows at a multiple of 64.
    """
    about = json.dumps(
        [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
    ).encode()
    assert len(about) <= HEADER, "more arrays than the header has room for"
    body = verified.aligned(
        HEADER + sum(array.nbytes + -array.nbytes % verified.ALIGNED for array in arrays.values())
    )
    body[:HEADER] = np.frombuffer(about.ljust(HEADER), np.uint8)
    for name, place in _unpacked(body).items():
        place[...] = arrays[name]
    return body


def _unpacked(body: np.ndarray) -> dict[str, np.ndarray]:
    """Unpack the arrays, as views of the bytes."""
    arrays = {}
    start = HEADER
    for name, dtype, shape in json.loads(body[:HEADER].tobytes()):
        size = np.dtype(dtype).itemsize * math.prod(shape)
        arrays[name] = body[start : start + size].view(dtype).reshape(shape)
        start += size + -size % verified.ALIGNED
    return arrays
