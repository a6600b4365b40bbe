"""Files as the makers of data sets publish them, of a few examples: for tests, and for
tests/golden/builders.py, which gives them to TFDS's own builders.

An example is (label, uint8[H, W] or uint8[H, W, 3]); of CIFAR-100, ((superclass, class), image).
"""

import gzip
import hashlib
import io
import struct
import tarfile
from collections.abc import Callable

import numpy as np
import scipy.io

CIFAR10_NAMES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]
# Made up: the true ones are in the published archive only.
COARSE_NAMES = [f"superclass_{i}" for i in range(20)]
FINE_NAMES = [f"class_{i}" for i in range(100)]
MNIST_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}

Example = tuple[int | tuple[int, int], np.ndarray]
Change = Callable[[list], list]


def tar_gz(members: list[tuple[str, bytes]], change: Change | None = None) -> bytes:
    """An archive of (name, content); `change` may edit the list of (TarInfo, content)."""
    entries = []
    for name, content in members:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        entries.append((info, content))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for info, content in change(entries) if change else entries:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def cifar_records(examples: list[Example]) -> bytes:
    """The label bytes of each example, then its red, green and blue planes."""
    return b"".join(
        bytes(np.atleast_1d(labels).tolist()) + image.transpose(2, 0, 1).tobytes()
        for labels, image in examples
    )


def lines(names: list[str]) -> bytes:
    """One per line, and the empty line that ends the published files."""
    return "\n".join([*names, "", ""]).encode()


def cifar10_archive(
    train: list[Example], test: list[Example], change: Change | None = None
) -> bytes:
    size = -(-len(train) // 5)
    batches = [train[i * size : (i + 1) * size] for i in range(5)]
    members = [(f"data_batch_{i}.bin", cifar_records(batch)) for i, batch in enumerate(batches, 1)]
    members += [("test_batch.bin", cifar_records(test)), ("batches.meta.txt", lines(CIFAR10_NAMES))]
    return tar_gz([(f"cifar-10-batches-bin/{name}", content) for name, content in members], change)


def cifar100_archive(
    train: list[Example], test: list[Example], change: Change | None = None
) -> bytes:
    members = [
        ("train.bin", cifar_records(train)),
        ("test.bin", cifar_records(test)),
        ("coarse_label_names.txt", lines(COARSE_NAMES)),
        ("fine_label_names.txt", lines(FINE_NAMES)),
    ]
    return tar_gz([(f"cifar-100-binary/{name}", content) for name, content in members], change)


def mnist_files(train: list[Example], test: list[Example]) -> dict[str, bytes]:
    """The four gzip files of MNIST and Fashion-MNIST."""
    files = {}
    for split, part in (("train", train), ("test", test)):
        images, labels = MNIST_FILES[split]
        pixels = b"".join(image.tobytes() for _, image in part)
        files[images] = gzip.compress(struct.pack(">4i", 2051, len(part), 28, 28) + pixels, 1)
        files[labels] = gzip.compress(
            struct.pack(">2i", 2049, len(part)) + bytes(label for label, _ in part), 1
        )
    return files


def svhn_files(splits: dict[str, list[Example]]) -> dict[str, bytes]:
    """A compressed MATLAB file for each split: X uint8[32, 32, 3, N] and y uint8[N, 1], in which
    the digit 0 is 10.
    """
    return {
        f"{split}_32x32.mat": mat(
            X=np.stack([image for _, image in part], -1),
            y=np.array([[label or 10] for label, _ in part], np.uint8),
        )
        for split, part in splits.items()
    }


def mat(**arrays: np.ndarray) -> bytes:
    """A MATLAB 5 file."""
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, arrays, do_compression=True)
    return buffer.getvalue()


# The same on every machine and in every version of NumPy
# ------------------------------------------------------------------------------

COUNTS = {"train": 30, "test": 7, "extra": 5}  # examples


def examples(name: str, split: str) -> list[Example]:
    """The examples of a split of cifar100, fashion_mnist or svhn_cropped, drawn from their names.

    The first labels are the classes in turn, from the last down.
    """
    shape = (28, 28) if name == "fashion_mnist" else (32, 32, 3)
    num_classes = 100 if name == "cifar100" else 10
    count = COUNTS[split]
    size = int(np.prod(shape))
    stream = hashlib.shake_256(f"{name} {split}".encode()).digest(count * size)
    images = np.frombuffer(stream, np.uint8).reshape(count, *shape)
    labels = [-(i + 1) % num_classes for i in range(count)]
    if name == "cifar100":
        return [((label // 5, label), image) for label, image in zip(labels, images, strict=True)]
    return list(zip(labels, images, strict=True))


def published(name: str) -> dict[str, bytes]:
    """File name -> content, of the data set of these examples."""
    train, test = examples(name, "train"), examples(name, "test")
    if name == "cifar100":
        return {"cifar-100-binary.tar.gz": cifar100_archive(train, test)}
    if name == "fashion_mnist":
        return mnist_files(train, test)
    return svhn_files({"train": train, "test": test, "extra": examples(name, "extra")})
