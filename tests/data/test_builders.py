"""Our builders against the official data, and against everything that can go wrong while they
prepare.

With CNNLAB_FULL_TFDS=1 the comparison covers all 130,000 images of CIFAR-10 and MNIST and the
stored sizes (about two minutes); otherwise the whole test splits and the first 10,000 training
images. The published files of CIFAR-100, Fashion-MNIST and SVHN are not at hand: their builders are
held against what TFDS's make of small archives (tests/golden/builders.py).
"""

import contextlib
import functools
import gzip
import hashlib
import io
import itertools
import json
import os
import pathlib
import struct
import subprocess
import sys
import tarfile
import textwrap
import time

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from archives import (
    CIFAR10_NAMES,
    COARSE_NAMES,
    MNIST_FILES,
    cifar10_archive,
    cifar100_archive,
    examples,
    mat,
    mnist_files,
    published,
)
from PIL import Image
from tensorflow_datasets.core.download import checksums, downloader
from web import serving

from cnnlab import parts
from cnnlab.config import Recipe
from cnnlab.data import builders, catalogue
from cnnlab.data.builders.cifar10 import cifar10_dataset_builder as cifar10
from cnnlab.data.builders.cifar100 import cifar100_dataset_builder as cifar100
from cnnlab.data.builders.fashion_mnist import fashion_mnist_dataset_builder as fashion_mnist
from cnnlab.data.builders.mnist import mnist_dataset_builder as mnist
from cnnlab.data.builders.shapes10 import shapes10_dataset_builder as shapes10
from cnnlab.data.builders.svhn_cropped import svhn_cropped_dataset_builder as svhn_cropped
from cnnlab.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
OFFICIAL = ROOT.parent / "shared" / "tfds"
FULL = bool(os.environ.get("CNNLAB_FULL_TFDS"))
MODULES = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "svhn_cropped": svhn_cropped,
    "shapes10": shapes10,
}
DOWNLOADED = [name for name in MODULES if name != "shapes10"]
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR_FILE = "cifar-10-binary.tar.gz"
CIFAR100_FILE = "cifar-100-binary.tar.gz"
SVHN_FILES = ["train_32x32.mat", "test_32x32.mat", "extra_32x32.mat"]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "builders.json").read_text())


# Archives
# ------------------------------------------------------------------------------


def random_examples(count: int, shape: tuple[int, ...], seed: int) -> list[tuple[int, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [(int(rng.integers(10)), rng.integers(0, 256, shape, np.uint8)) for _ in range(count)]


@functools.cache
def tiny_cifar() -> bytes:
    return cifar10_archive(random_examples(50, (32, 32, 3), 0), random_examples(10, (32, 32, 3), 1))


def infos(files: dict[str, bytes], base: str) -> dict[str, checksums.UrlInfo]:
    def sha(content):
        return hashlib.sha256(content).hexdigest()

    return {
        base + name: checksums.UrlInfo(size=len(content), checksum=sha(content), filename=name)
        for name, content in files.items()
    }


def place(monkeypatch, data_dir: pathlib.Path, name: str, files: dict[str, bytes]) -> None:
    """Puts the files where a user would by hand, and registers their checksums in place of the real
    ones.
    """
    base = MODULES[name].Builder.url.rpartition("/")[0] + "/"
    monkeypatch.setattr(MODULES[name].Builder, "url_infos", infos(files, base))
    folder = by_hand(name, data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for filename, content in files.items():
        (folder / filename).write_bytes(content)


def by_hand(name: str, data_dir: pathlib.Path) -> pathlib.Path:
    folder = data_dir / "downloads" / "manual"
    return folder / "fashion_mnist" if name == "fashion_mnist" else folder


def read(folder: pathlib.Path, split: str) -> list[dict]:
    """The examples in stored order, images still as PNG bytes."""
    source = tfds.builder_from_directory(folder).as_data_source(
        split=split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    return [source[i] for i in range(len(source))]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def stored_order(split: str, count: int) -> list[int]:
    """TFDS's order, written down independently of it: by the md5 of the split's name and the
    example's index.
    """
    return sorted(range(count), key=lambda i: hashlib.md5(f"{split}{i}".encode()).digest())


# Against the official data
# ------------------------------------------------------------------------------


def assert_same_examples(ours, wanted):
    assert len(ours) == len(wanted)
    for got, (_, want, image) in zip(ours, wanted, strict=True):
        assert {k: v for k, v in got.items() if k != "image"} == {
            k: v for k, v in want.items() if k != "image"
        }
        assert np.array_equal(pixels(got["image"]), image)


def described(folder):
    """dataset_info.json, but for what the compression of the PNGs and the module's name change."""
    info = json.loads((folder / "dataset_info.json").read_text())
    info.pop("moduleName"), info.pop("downloadSize")
    for split in info["splits"]:
        # of the PNGs, which TensorFlow and Pillow compress differently
        assert split.pop("numBytes")
        if not FULL:
            split.pop("shardLengths")
    return info


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_equal_to_official(name, tmp_path, monkeypatch):
    official = OFFICIAL / name / builders.VERSIONS[name]
    if not official.is_dir():
        pytest.skip(f"no official data in {official}")
    monkeypatch.setattr(
        requests.Session, "get", lambda *_, **__: pytest.fail("went to the network")
    )
    wanted, originals = {}, {}
    for split in ("train", "test"):
        examples = read(official, split)
        order = stored_order(split, len(examples))
        if name == "cifar10":
            assert [e["id"] for e in examples] == [f"{split}_{i:05d}".encode() for i in order]
        keep = len(examples) if FULL else 10_000
        chosen = [(i, e) for i, e in zip(order, examples, strict=True) if i < keep]
        wanted[split] = [(i, e, pixels(e["image"])) for i, e in chosen]
        originals[split] = [
            (e["label"], image) for _, e, image in sorted(wanted[split], key=lambda x: x[0])
        ]
    if name == "mnist":  # the first labels of the published files: the order was inverted rightly
        assert [label for label, _ in originals["train"][:10]] == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
        assert [label for label, _ in originals["test"][:10]] == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
        files = mnist_files(originals["train"], originals["test"])
    else:
        files = {CIFAR_FILE: cifar10_archive(originals["train"], originals["test"])}
    place(monkeypatch, tmp_path, name, files)

    folder = builders.prepare(name, tmp_path)

    assert folder == tmp_path / name / builders.VERSIONS[name]
    for split, examples in wanted.items():
        assert_same_examples(read(folder, split), examples)
    for path in official.iterdir():  # the same files, the shards' names included
        assert (folder / path.name).is_file()
        if path.name == "features.json" or path.suffix == ".txt":
            assert (folder / path.name).read_bytes() == path.read_bytes()
    assert described(folder) == described(official)


@pytest.mark.parametrize("name", list(GOLDEN))
def test_equal_to_what_official_builders_make_of_small_archives(name, tmp_path, monkeypatch):
    place(monkeypatch, tmp_path, name, published(name))
    folder = builders.prepare(name, tmp_path)
    golden = GOLDEN[name]
    assert folder.name == golden["version"]
    for split, wanted in golden["examples"].items():
        assert [plain(example) for example in read(folder, split)] == wanted
    texts = [path for path in folder.iterdir() if path.suffix == ".txt"]
    assert {p.name: p.read_text() for p in [folder / "features.json", *texts]} == golden["texts"]
    info = described(folder)
    for split, wanted in zip(info["splits"], golden["info"]["splits"], strict=True):
        split["shardLengths"] = wanted[
            "shardLengths"
        ]  # left out by `described`, compared by `read`
    assert info == golden["info"]


def plain(example: dict) -> dict:
    image = hashlib.sha256(pixels(example["image"]).tobytes()).hexdigest()
    values = {key: int(value) for key, value in example.items() if key not in ("id", "image")}
    return {**values, "image": image} | ({"id": example["id"].decode()} if "id" in example else {})


@pytest.mark.parametrize("name", DOWNLOADED)
def test_registered_checksums_are_those_of_tfds(name):
    path = tfds.core.tfds_path() / "url_checksums" / f"{name}.txt"
    if not path.exists():
        path = tfds.core.tfds_path() / "datasets" / name / "checksums.tsv"
    shipped = checksums.load_url_infos(path)
    ours = MODULES[name].Builder.url_infos
    assert ours == shipped
    assert {i.filename for i in ours.values()} == {i.filename for i in shipped.values()}


def test_registered_checksums_as_published():
    (info,) = cifar10.Builder.url_infos.values()
    assert (info.size, info.checksum[:16]) == (170052171, "c4a38c50a1bc5f3a")
    sizes = {i.filename: int(i.size) for i in mnist.Builder.url_infos.values()}
    assert [sizes[f] for pair in MNIST_FILES.values() for f in pair] == [
        9912422,
        28881,
        1648877,
        4542,
    ]


def test_versions_and_names():
    assert tuple(builders.VERSIONS) == builders.OWN
    for name, module in MODULES.items():
        assert (module.Builder.name, str(module.Builder.VERSION)) == (name, builders.VERSIONS[name])


def test_own_and_official_builders_live_in_one_process():
    for name in DOWNLOADED:
        assert tfds.builder_cls(name) is not MODULES[name].Builder
        assert tfds.builder_cls(name).VERSION == MODULES[name].Builder.VERSION


# Tiny archives, on every machine
# ------------------------------------------------------------------------------


def test_tiny_cifar10(tmp_path, monkeypatch):
    train, test = random_examples(50, (32, 32, 3), 0), random_examples(10, (32, 32, 3), 1)
    place(monkeypatch, tmp_path, "cifar10", {CIFAR_FILE: tiny_cifar()})
    folder = builders.prepare("cifar10", tmp_path)
    for split, originals in (("train", train), ("test", test)):
        for i, example in zip(
            stored_order(split, len(originals)), read(folder, split), strict=True
        ):
            assert (example["id"].decode(), example["label"]) == (
                f"{split}_{i:05d}",
                originals[i][0],
            )
            assert np.array_equal(pixels(example["image"]), originals[i][1])
    assert tfds.builder_from_directory(folder).info.features["label"].names == CIFAR10_NAMES
    assert sorted(p.name for p in tmp_path.iterdir()) == [".cifar10.lock", "cifar10", "downloads"]
    times = [p.stat().st_mtime_ns for p in folder.iterdir()]
    assert builders.prepare("cifar10", str(tmp_path)) == folder  # nothing is done twice
    assert [p.stat().st_mtime_ns for p in folder.iterdir()] == times


def test_tiny_mnist(tmp_path, monkeypatch):
    train, test = random_examples(30, (28, 28), 2), random_examples(7, (28, 28), 3)
    place(monkeypatch, tmp_path, "mnist", mnist_files(train, test))
    folder = builders.prepare("mnist", tmp_path)
    for split, originals in (("train", train), ("test", test)):
        for i, example in zip(
            stored_order(split, len(originals)), read(folder, split), strict=True
        ):
            assert example["label"] == originals[i][0]
            assert np.array_equal(pixels(example["image"]), originals[i][1])
    image = tfds.builder_from_directory(folder).as_data_source(split="test")[0]["image"]
    assert image.shape == (28, 28, 1) and image.dtype == np.uint8


def test_tiny_cifar100(tmp_path, monkeypatch):
    train = [((7, 99), np.arange(3072, dtype=np.uint16).astype(np.uint8).reshape(32, 32, 3))]
    test = [((19, 0), np.zeros((32, 32, 3), np.uint8))]
    archive = cifar100_archive(train, test)
    place(monkeypatch, tmp_path, "cifar100", {CIFAR100_FILE: archive})
    (example,) = read(builders.prepare("cifar100", tmp_path), "train")
    assert (example["id"], example["label"], example["coarse_label"]) == (b"train_00000", 99, 7)
    assert np.array_equal(pixels(example["image"]), train[0][1])


def test_classes_and_superclasses_of_cifar100(tmp_path, monkeypatch):
    place(monkeypatch, tmp_path, "cifar100", published("cifar100"))
    wanted = {
        "label": ([label for (_, label), _ in examples("cifar100", "train")], 100, "class_71"),
        "coarse_label": (
            [coarse for (coarse, _), _ in examples("cifar100", "train")],
            20,
            "superclass_14",
        ),
    }
    for key, (labels, num_classes, name) in wanted.items():
        recipe = Recipe(dataset="cifar100", label_key=key)
        dataset = parts.resolve(recipe).open_dataset(str(tmp_path), recipe)
        assert dataset.num_classes == num_classes and dataset.mirror
        stored = dataset.train.read(np.arange(30))["label"]
        assert stored.tolist() == [labels[i] for i in stored_order("train", 30)]
        assert dataset.class_names[stored[0]] == name
    assert dataset.class_names == tuple(COARSE_NAMES)
    assert catalogue.cifar100(str(tmp_path)).num_classes == 100  # a class is the default
    coarse = catalogue.open_dataset("cifar100", str(tmp_path), label_key="coarse_label")
    assert sorted(coarse.test.read(np.arange(7))["label"]) == [18] * 2 + [19] * 5


def test_digits_of_house_numbers(tmp_path, monkeypatch):
    images = random_examples(3, (32, 32, 3), 4)
    stacked = np.stack([image for _, image in images], -1)
    file = mat(X=stacked, y=np.array([[10], [1], [9]], np.uint8))
    place(monkeypatch, tmp_path, "svhn_cropped", dict.fromkeys(SVHN_FILES, file))
    dataset = catalogue.svhn_cropped(str(tmp_path))
    assert (dataset.num_classes, dataset.mirror, len(dataset.test)) == (10, False, 3)
    order = stored_order("test", 3)
    batch = dataset.test.read(np.arange(3))
    assert batch["label"].tolist() == [[0, 1, 9][i] for i in order]
    assert np.array_equal(batch["image"], [images[i][1] for i in order])
    extra = catalogue.open_dataset("svhn_cropped", str(tmp_path), test_split="extra")
    assert len(extra.test) == 3


def test_clothes_and_digits_placed_by_hand_in_one_data_directory(tmp_path, monkeypatch):
    # Their files have the same names.
    digits = mnist_files(random_examples(30, (28, 28), 2), random_examples(7, (28, 28), 3))
    place(monkeypatch, tmp_path, "mnist", digits)
    place(monkeypatch, tmp_path, "fashion_mnist", published("fashion_mnist"))
    clothes = catalogue.fashion_mnist(str(tmp_path))
    assert clothes.class_names[:2] == ("T-shirt/top", "Trouser") and clothes.mirror
    assert len(catalogue.mnist(str(tmp_path)).test) == 7
    label, image = examples("fashion_mnist", "test")[stored_order("test", 7)[0]]
    first = clothes.test.read(np.arange(1))
    assert first["label"].tolist() == [label]
    assert np.array_equal(first["image"][0, :, :, 0], image)


def test_no_two_files_placed_by_hand_have_one_path(tmp_path):
    paths = [
        by_hand(name, tmp_path) / info.filename
        for name in DOWNLOADED
        for info in MODULES[name].Builder.url_infos.values()
    ]
    assert len(set(paths)) == len(paths)


def symlink(entries):
    entries[1][0].type = tarfile.SYMTYPE
    entries[1][0].linkname = "/etc/passwd"
    entries[1][0].size = 0
    return entries


def twice(entries):
    return [*entries, entries[0]]


def missing(entries):
    return entries[:5] + entries[6:]


def ragged(entries):
    entries[2][0].size -= 1
    return entries


def nine_names(entries):
    entries[6] = (entries[6][0], entries[6][1].replace(b"airplane\n", b""))
    entries[6][0].size = len(entries[6][1])
    return entries


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (symlink, "data_batch_2.bin is not one plain file"),
        (twice, "data_batch_1.bin is not one plain file"),
        (missing, "test_batch.bin missing"),
        (ragged, "data_batch_3.bin has 30729 bytes"),
        (nine_names, "wanted 10 class names, got 9"),
    ],
)
def test_bad_members(change, message, tmp_path, monkeypatch):
    examples = random_examples(50, (32, 32, 3), 0)
    place(
        monkeypatch,
        tmp_path,
        "cifar10",
        {CIFAR_FILE: cifar10_archive(examples, examples[:10], change)},
    )
    refuse("cifar10", tmp_path, message)


def test_members_with_other_paths_are_never_written(tmp_path, monkeypatch):
    def change(entries):
        for name in (
            "../evil.txt",
            "/tmp/cnnlab_evil.txt",
            "cifar-10-batches-bin/../../../evil.txt",
        ):
            info = tarfile.TarInfo(name)
            info.size = 4
            entries.insert(0, (info, b"evil"))
        return entries

    examples = random_examples(50, (32, 32, 3), 0)
    place(
        monkeypatch,
        tmp_path / "data",
        "cifar10",
        {CIFAR_FILE: cifar10_archive(examples, examples[:10], change)},
    )
    builders.prepare("cifar10", tmp_path / "data")
    assert not list(tmp_path.rglob("*evil*")) and not pathlib.Path("/tmp/cnnlab_evil.txt").exists()


@pytest.mark.parametrize("share", [0, 0.0001, 0.5, 0.9])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_truncated_archive(name, share, tmp_path, monkeypatch):
    file = CIFAR_FILE if name == "cifar10" else CIFAR100_FILE
    whole = tiny_cifar() if name == "cifar10" else published("cifar100")[file]
    place(monkeypatch, tmp_path, name, {file: whole[: int(share * len(whole))]})
    refuse(name, tmp_path, "not a whole .tar.gz archive")


@pytest.mark.parametrize(
    ("header", "size", "cut", "message"),
    [
        ((), 0, 0, "not a whole .gz file"),
        ((2051, 7, 28, 28), 7 * 784, 9, "not a whole .gz file"),
        ((2051, 7, 28, 28), 7 * 784 - 1, 0, "wanted 5488 bytes, got 5487"),
        ((2051, 7, 28, 28), 7 * 784 + 1, 0, "wanted 5488 bytes, got more"),
        ((2049, 7, 28, 28), 7 * 784, 0, "the header"),
        ((2051, 7, 28, 27), 7 * 784, 0, "the header"),
        ((2051, 2**31 - 1, 28, 28), 0, 0, "the header"),
        ((2051, 6, 28, 28), 6 * 784, 0, "6 images"),
    ],
)
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_bad_mnist_file(name, header, size, cut, message, tmp_path, monkeypatch):
    files = mnist_files(random_examples(7, (28, 28), 2), random_examples(7, (28, 28), 3))
    content = gzip.compress(struct.pack(f">{len(header)}i", *header) + bytes(size))
    place(
        monkeypatch,
        tmp_path,
        name,
        {**files, MNIST_FILES["test"][0]: content[: len(content) - cut]},
    )
    refuse(name, tmp_path, message)


def without(name: str):
    return lambda entries: [entry for entry in entries if not entry[0].name.endswith(name)]


def one_name_more(entries):
    info, content = entries[2]
    info.size += 5
    return [*entries[:2], (info, b"more\n" + content), entries[3]]


def one_label_byte(entries):
    """As in CIFAR-10: 3073 bytes for each example."""
    info, content = entries[1]
    info.size = 3073
    return [entries[0], (info, content[:3073]), *entries[2:]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("train.bin"), "cifar-100-binary/train.bin missing"),
        (without("coarse_label_names.txt"), "coarse_label_names.txt missing"),
        (one_label_byte, "test.bin has 3073 bytes, not those of 1 to 50000 examples of 3074"),
        (one_name_more, "coarse_label_names.txt: wanted 20 class names, got 21"),
    ],
)
def test_bad_members_of_cifar100(change, message, tmp_path, monkeypatch):
    test = examples("cifar100", "test")
    archive = cifar100_archive(test, test, change)
    place(monkeypatch, tmp_path, "cifar100", {CIFAR100_FILE: archive})
    refuse("cifar100", tmp_path, message)


IMAGES = np.zeros((32, 32, 3, 4), np.uint8)
DIGITS = np.array([[1], [2], [9], [10]], np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole MATLAB file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "not a whole MATLAB file"),
        (mat(X=IMAGES, y=DIGITS)[:150], "not a whole MATLAB file"),
        (mat(X=IMAGES, y=DIGITS)[:-9], "not a whole MATLAB file"),
        (mat(X=IMAGES), "it holds {'X': (32, 32, 3, 4)}"),
        (mat(y=DIGITS), "it holds {'y': (4, 1)}"),
        (mat(X=IMAGES, y=DIGITS[:3]), "(32, 32, 3, N) and y (N, 1)"),
        (mat(X=IMAGES[:, :, :1], y=DIGITS), "(32, 32, 3, N) and y (N, 1)"),
        (mat(X=IMAGES[:, :, :, :0], y=DIGITS[:0]), "(32, 32, 3, N) and y (N, 1)"),
        (mat(X=IMAGES.astype(np.float32), y=DIGITS), "float32 images with labels 1 to 10, not"),
        (mat(X=IMAGES, y=DIGITS - 1), "labels 0 to 9, not uint8 with 1 to 10"),
        (mat(X=IMAGES, y=DIGITS + 1), "labels 2 to 11, not uint8 with 1 to 10"),
        (mat(X=IMAGES, y=DIGITS / 2), "labels 0.5 to 5.0, not uint8 with 1 to 10"),
    ],
)
def test_bad_matlab_file(content, message, tmp_path, monkeypatch):
    files = published("svhn_cropped") | {"test_32x32.mat": content}
    place(monkeypatch, tmp_path, "svhn_cropped", files)
    refuse("svhn_cropped", tmp_path, message, "test_32x32.mat", "download it again")


def test_longest_matlab_file(tmp_path, monkeypatch):
    monkeypatch.setattr(svhn_cropped, "LARGEST", 29)  # of 30 images
    place(monkeypatch, tmp_path, "svhn_cropped", published("svhn_cropped"))
    refuse("svhn_cropped", tmp_path, "with N up to 29")


def test_digits_as_numbers_of_another_type(tmp_path):
    (tmp_path / "file.mat").write_bytes(mat(X=IMAGES, y=DIGITS.astype(np.float64)))
    images, labels = svhn_cropped.read_mat(tmp_path / "file.mat")
    assert images.shape == (32, 32, 3, 4) and labels.tolist() == [1, 2, 9, 10]


def test_no_memory_for_a_matlab_file_is_no_damage(tmp_path, monkeypatch):
    def exhausted(*_, **__):
        raise MemoryError

    monkeypatch.setattr(svhn_cropped.scipy.io, "loadmat", exhausted)
    (tmp_path / "file.mat").write_bytes(mat(X=IMAGES, y=DIGITS))
    with pytest.raises(MemoryError):
        svhn_cropped.read_mat(tmp_path / "file.mat")


def refuse(name: str, data_dir: pathlib.Path, *parts: str) -> None:
    """Asserts that the data set is refused in one line, with these parts, and that nothing is left
    that looks done.
    """
    with pytest.raises(InputError) as caught:
        builders.prepare(name, data_dir)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
    with contextlib.suppress(NotADirectoryError):
        assert not list(data_dir.glob("*/*.*.*")) and not list(data_dir.glob(".*.preparing"))


# The download
# ------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch):
    """A web server here: `server(files, registered)` serves the files and registers CIFAR-10's;
    else it answers 404.
    """
    served: dict[str, bytes] = {}

    with serving(served, monkeypatch) as base:

        def serve(files: dict[str, bytes], registered: dict[str, bytes]) -> str:
            served.update(files)
            monkeypatch.setattr(cifar10.Builder, "url", f"{base}/{CIFAR_FILE}")
            monkeypatch.setattr(cifar10.Builder, "url_infos", infos(registered, f"{base}/"))
            return f"{base}/"

        yield serve


def test_download(server, tmp_path):
    server({CIFAR_FILE: tiny_cifar()}, {CIFAR_FILE: tiny_cifar()})
    folder = builders.prepare("cifar10", tmp_path)
    assert len(read(folder, "train")) == 50
    assert json.loads((folder / "dataset_info.json").read_text())["downloadSize"] == str(
        len(tiny_cifar())
    )
    # TFDS is left as it was
    assert (downloader.MAX_RETRIES, downloader._open_url.__name__) == (
        10,
        "_open_url",
    )


def test_downloaded_file_with_wrong_checksum(server, tmp_path):
    base = server({CIFAR_FILE: b"a login page"}, {CIFAR_FILE: tiny_cifar()})
    sha = hashlib.sha256(tiny_cifar()).hexdigest()
    where = str(tmp_path / "downloads" / "manual" / CIFAR_FILE)
    refuse("cifar10", tmp_path, "the download has a wrong checksum", sha, base + CIFAR_FILE, where)


def test_hand_placed_file_with_wrong_checksum(tmp_path):
    where = tmp_path / "downloads" / "manual" / CIFAR_FILE
    where.parent.mkdir(parents=True)
    where.write_bytes(tiny_cifar())
    refuse(
        "cifar10",
        tmp_path,
        f"{where} has a wrong checksum, wanted 170052171 bytes with sha256 c4a38c50",
        CIFAR_URL,
    )
    assert where.read_bytes() == tiny_cifar()  # the user's file is not ours to delete


@pytest.mark.parametrize(
    ("name", "wanted", "url"),
    [
        (
            "cifar100",
            "168513733 bytes with sha256 58a81ae1",
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        ),
        (
            "fashion_mnist",
            "26421880 bytes with sha256 3aede38d",
            fashion_mnist.Builder.url + "train-images-idx3-ubyte.gz",
        ),
        (
            "svhn_cropped",
            "182040794 bytes with sha256 435e94d6",
            "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
        ),
    ],
)
def test_hand_placed_files_that_are_not_the_published_ones(name, wanted, url, tmp_path):
    by_hand(name, tmp_path).mkdir(parents=True)
    for file, content in published(name).items():
        (by_hand(name, tmp_path) / file).write_bytes(content)
    where = by_hand(name, tmp_path) / url.rpartition("/")[2]
    refuse(name, tmp_path, f"{where} has a wrong checksum, wanted {wanted}", f"get {url} again")


def test_missing_on_the_server(server, tmp_path):
    server({}, {CIFAR_FILE: tiny_cifar()})
    refuse(
        "cifar10",
        tmp_path,
        "cannot download",
        "HTTP code: 404",
        str(tmp_path / "downloads" / "manual"),
    )


@pytest.mark.parametrize(
    ("name", "base", "files"),
    [
        ("cifar10", CIFAR_URL.removesuffix(CIFAR_FILE), [CIFAR_FILE]),
        ("cifar100", CIFAR_URL.removesuffix(CIFAR_FILE), [CIFAR100_FILE]),
        ("mnist", mnist.Builder.url, list(itertools.chain(*MNIST_FILES.values()))),
        (
            "fashion_mnist",
            fashion_mnist.Builder.url,
            list(itertools.chain(*MNIST_FILES.values())),
        ),
        ("svhn_cropped", svhn_cropped.Builder.url, SVHN_FILES),
    ],
)
@pytest.mark.parametrize("error", [requests.ConnectionError, requests.Timeout])
def test_no_network(name, base, files, error, tmp_path, monkeypatch):
    def get(*_, timeout, **__):
        assert timeout == (10, 60)  # a silent firewall ends the wait too
        raise error("Failed to resolve 'host'\n and more")

    monkeypatch.setattr(requests.Session, "get", get)
    folder = by_hand(name, tmp_path)
    hints = [
        f"cannot download from {base}",
        "Failed to resolve 'host'",
        f"in the folder {folder} under",
        *files,
    ]
    refuse(name, tmp_path, *hints)
    assert folder.is_dir()  # ready for the user


def test_no_network_is_known_within_seconds(tmp_path, monkeypatch):
    # Nobody listens
    monkeypatch.setattr(cifar10.Builder, "url", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    monkeypatch.setattr(
        cifar10.Builder, "url_infos", infos({CIFAR_FILE: b""}, "http://127.0.0.1:9/")
    )
    started = time.monotonic()
    refuse("cifar10", tmp_path, "cannot download", "refused")
    assert time.monotonic() - started < 15  # TFDS alone: 200 s


# Folders and processes
# ------------------------------------------------------------------------------


def test_unknown_name(tmp_path):
    with pytest.raises(InputError, match="did you mean 'cifar10'"):
        builders.prepare("cifar-10", tmp_path)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    refuse("shapes10", tmp_path / "file", "cannot prepare shapes10", "file")
    refuse("shapes10", tmp_path / "file" / "deeper", "cannot prepare shapes10", "Not a directory")
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        refuse("shapes10", tmp_path / "closed", "cannot prepare shapes10", "Permission denied")


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (
            '{"name": "mnist", "splits": [], "fileFormat": "riegeli"}',
            "prepared as riegeli, wanted array_record or tfrecord",
        ),
        ("{", "is damaged"),
        (None, "holds no dataset_info.json"),
        (
            '{"name": "mnist", "fileFormat": "array_record", "splits": [{"name": "test", '
            '"shardLengths": ["1"]}]}',
            "mnist-test.array_record-00000-of-00001 is missing",
        ),
    ],
)
def test_folder_that_is_there_but_of_no_use(info, message, tmp_path):
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    if info is not None:
        (folder / "dataset_info.json").write_text(info)
    with pytest.raises(InputError, match=message):
        builders.prepare("mnist", tmp_path)


def python(script: str, data_dir: pathlib.Path, **options) -> subprocess.Popen:
    """Starts a fresh Python that knows the tiny CIFAR-10 placed in data_dir and runs the script."""
    (info,) = infos({CIFAR_FILE: tiny_cifar()}, "").values()
    head = f"""
        import sys, time
        from cnnlab.data import builders
        assert "tensorflow_datasets" not in sys.modules
        from tensorflow_datasets.core.download.checksums import UrlInfo
        from cnnlab.data.builders.cifar10.cifar10_dataset_builder import Builder
        info = UrlInfo({info.size}, "{info.checksum}", "{CIFAR_FILE}")
        Builder.url_infos = {{"{CIFAR_URL}": info}}
        data_dir = {str(data_dir)!r}
    """
    code = textwrap.dedent(head) + textwrap.dedent(script)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes, **options)


@pytest.mark.slow
def test_no_tensorflow_and_nothing_printed(tmp_path, monkeypatch):
    place(monkeypatch, tmp_path, "cifar10", {CIFAR_FILE: tiny_cifar()})
    script = """
        builders.prepare("cifar10", data_dir)
        try:
            builders.prepare("mnist", data_dir)  # no network
        except builders.InputError:
            pass
        assert "tensorflow" not in sys.modules, "TensorFlow was imported"
    """
    process = python(script, tmp_path, env={**os.environ, "https_proxy": "http://127.0.0.1:9"})
    assert (*process.communicate(timeout=60), process.returncode) == ("", "", 0)


@pytest.mark.slow
def test_two_processes_at_once(tmp_path, monkeypatch):
    place(monkeypatch, tmp_path, "cifar10", {CIFAR_FILE: tiny_cifar()})
    script = """
        work = builders.build
        def slow(*args):
            print("works", flush=True)
            time.sleep(1.5)
            return work(*args)
        builders.build = slow
        print("ready", flush=True)
        sys.stdin.readline()
        print(builders.prepare("cifar10", data_dir))
    """
    both = [python(script, tmp_path, stdin=subprocess.PIPE) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    results = [process.communicate(timeout=60) for process in both]
    folder = tmp_path / "cifar10" / "3.0.2"
    assert sorted(out for out, _ in results) == [f"{folder}\n", f"works\n{folder}\n"], results
    assert len(read(folder, "train")) == 50


@pytest.mark.slow
def test_killed_half_way_then_prepared(tmp_path, monkeypatch):
    place(monkeypatch, tmp_path, "cifar10", {CIFAR_FILE: tiny_cifar()})
    script = """
        generate = Builder._generate_examples
        def half(self, prefix, batches):
            for index, example in generate(self, prefix, batches):
                if (prefix, index) == ("test_", 5):  # the training split is written by now
                    print("half", flush=True, file=sys.__stdout__)
                    time.sleep(60)
                yield index, example
        Builder._generate_examples = half
        builders.prepare("cifar10", data_dir)
    """
    process = python(script, tmp_path)
    assert process.stdout.readline() == "half\n"
    process.kill()
    process.communicate()
    assert (
        list(tmp_path.glob(".cifar10.preparing/cifar10/*/*train*"))
        and not (tmp_path / "cifar10").exists()
    )
    # Worse than what a kill leaves: it looks done to TFDS
    junk = tmp_path / ".cifar10.preparing" / "cifar10" / "3.0.2"
    junk.mkdir()
    (junk / "dataset_info.json").write_text("{}")
    folder = builders.prepare("cifar10", tmp_path)
    assert (len(read(folder, "train")), len(read(folder, "test"))) == (50, 10)
    assert not (tmp_path / ".cifar10.preparing").exists()
