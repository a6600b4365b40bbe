"""The labels that people gave to the training images of CIFAR-10 and CIFAR-100 (CIFAR-N), in the
order of TFDS.

The published files are pickles. One is opened only if its SHA-256 is that of the file known to be
harmless, and even then by an unpickler that makes nothing but numbers, lists and dictionaries.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnlab.data import builders, cache, storage
from cnnlab.data.dataset import readable
from cnnlab.errors import InputError, unknown

REPOSITORY = "https://raw.githubusercontent.com/UCSC-REAL/cifar-10-100n"
COMMIT = "49df7d8a69e355470c77c1c2f2424916325a394b"
CLEAN = "clean_label"

# What the pickles may name: in both spellings of NumPy's module, before and after its version 2.
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
    ("numpy.core.multiarray", "scalar"): np.int64(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


@dataclass(frozen=True)
class Published:
    """A file of labels.

    Attributes:
      file: its name.
      size: of it, in bytes.
      sha256: of it.
      keys: kind of labels -> what they are called in it.
    """

    file: str
    size: int
    sha256: str
    keys: Mapping[str, str]

    @property
    def url(self) -> str:
        return f"{REPOSITORY}/{COMMIT}/data/{self.file}"


# At that commit git has them as the blobs 2940b207427c0ed047f55da0374acfa0997c757b and
# 4429c5530b413118dedbbd1052e686ddea118ebc. Git's SHA-1 would do against damage; SHA-256 also does
# against a file that somebody made to look alike.
PUBLISHED = {
    "cifar10": Published(
        "CIFAR-10_human_ordered.npy",
        9_300_422,
        "ce7dbb10797c3b8a2ad27aaf2ea49925a0111c74a6cf2c1d0319727aac9f7720",
        {
            "worse": "worse_label",
            "aggregate": "aggre_label",
            "random1": "random_label1",
            "random2": "random_label2",
            "random3": "random_label3",
        },
    ),
    "cifar100": Published(
        "CIFAR-100_human_ordered.npy",
        3_099_908,
        "603b16e5f88f77a0db27ffe41b62cf59ba438da2b8bd4a085d502ad72e2b3dbf",
        {"noisy": "noise_label"},
    ),
}


def read(name: str, kind: str | None, right: np.ndarray, data_dir: str | None) -> np.ndarray:
    """Return the labels that people gave, int32[N].

    Args:
      name: of the data set.
      kind: of labels; None where there is one kind only.
      right: int32[N], the labels of its training split.
      data_dir: TFDS data directory, in whose downloads/manual the file may lie; None for the
        default.

    Raises:
      InputError: another data set, another kind, other right labels, a file that cannot be had or
        is another.
    """
    published = PUBLISHED.get(name.partition(":")[0])
    if published is None:
        labelled = " and ".join(PUBLISHED)
        raise InputError(
            f"human_noise is for the data sets that people labelled, {labelled}; {name} is not one"
        )
    kinds = list(published.keys)
    if kind is None and len(kinds) > 1:
        raise InputError(f"human_noise of {name} needs a kind, one of {', '.join(kinds)}")
    kind = kinds[0] if kind is None else kind
    if kind not in kinds:
        raise unknown(f"kind of human noise of {name}", str(kind), kinds)
    labels = cache.arrays(
        f"{published.sha256[:24]}-human1", lambda: unpickled(_content(published, data_dir))
    )
    if not np.array_equal(labels[CLEAN], right):
        raise InputError(
            f"human_noise: the training labels of {name} are not those of the images that people "
            "labelled, in the order of TFDS; it takes all classes, by their fine label"
        )
    return labels[published.keys[kind]].astype(np.int32)


def _content(published: Published, data_dir: str | None) -> bytes:
    """Read a published file that lies where those placed by hand do, or download it; verified."""
    by_hand = storage.data_root(data_dir) / "downloads" / "manual"
    place = by_hand / published.file
    with readable(str(place)):
        is_there = published.file in by_hand.files()
        content = by_hand.read(published.file) if is_there else b""
    if not is_there:
        content = builders.download(
            "human_noise", published.url, published.size, published.sha256, by_hand
        )
    if hashlib.sha256(content).hexdigest() != published.sha256:
        raise InputError(
            f"human_noise: {place} has a wrong checksum, wanted {published.size} bytes with sha256 "
            f"{published.sha256}: get {published.url} again and place it there."
        )
    return content


def unpickled(content: bytes) -> dict[str, np.ndarray]:
    """Read the labels in a published file, by what they are called in it: uint8[N] each.

    Raises:
      UnpicklingError: it names anything but arrays and numbers of NumPy.
    """
    file = io.BytesIO(content)
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    held = _Numbers(file).load().item()
    return {name: np.array(labels, np.uint8) for name, labels in held.items()}


class _Numbers(pickle.Unpickler):
    """An unpickler to which nothing is known but NumPy's arrays and numbers."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        known = ALLOWED.get((module_name.replace("numpy._core", "numpy.core"), global_name))
        if known is None:
            raise pickle.UnpicklingError(f"{module_name}.{global_name} is no array of numbers")
        return known
