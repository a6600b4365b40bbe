"""Every file gives the pixels that TensorFlow's decoder gave, whoever reads it."""

import base64
import builtins
import io
import json
import os
import resource
import socket
import struct
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_data import write_dataset

from cnnlab.config import Config
from cnnlab.data import catalogue, contents, image
from cnnlab.errors import InputError
from cnnlab.training import experiment

TABLE = json.loads((Path(__file__).parents[1] / "golden" / "pictures.json").read_text())
PICTURES = TABLE["pictures"]
# TensorFlow reads a BMP's palette indices as brightness; here they are looked up.
NOT_LOOKED_UP = "bmp, palette"
# TensorFlow computes the luma of 16-bit colours before it cuts them to 8 bits, Pillow gives 8.
ROUNDED = ("png, 16 bit colour", 1)


def picture(name: str) -> bytes:
    return base64.b64decode(PICTURES[name]["file"])


def wanted(name: str, channels: int) -> np.ndarray | None:
    """Return the pixels in the table; None where TensorFlow refuses the file."""
    row = PICTURES[name][str(channels)]
    if "refused" in row:
        return None
    pixels = np.frombuffer(base64.b64decode(row["pixels"]), np.uint8)
    return pixels.reshape(*TABLE["shape"], channels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PICTURES)
def test_pixels_are_those_of_tensorflow(name, channels):
    found = image.decode(picture(name), channels)
    assert (found.shape, found.dtype) == ((*TABLE["shape"], channels), np.uint8)
    pixels = wanted(name, channels)
    if pixels is None:
        pixels = image.with_channels(image.decode(picture(name), 3), channels)
    if name != NOT_LOOKED_UP:
        bound = 1 if (name, channels) == ROUNDED else 0
        np.testing.assert_allclose(found.astype(int), pixels, rtol=0, atol=bound)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_data_set_and_a_file_give_the_same_pixels(channels, tmp_path, monkeypatch):
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "cache"))
    files = [picture(name) for name in PICTURES]
    labels = range(len(files))
    height, width = TABLE["shape"]
    shape = (height, width, channels)
    splits = {"train": (files, labels), "test": (files, labels)}
    write_dataset(tmp_path, "pictures", splits, len(files), shape)
    dataset = catalogue.open_dataset("pictures", str(tmp_path))
    images, summary = contents.decoded(dataset.train)
    streamed = dataset.test.read(range(len(files)))
    for split_images, split_labels in (
        (images, summary.labels),
        (streamed["image"], streamed["label"]),
    ):
        assert sorted(split_labels) == list(labels)
        for pixels, label in zip(split_images, split_labels, strict=True):
            (tmp_path / "file").write_bytes(files[label])
            np.testing.assert_array_equal(pixels, image.read(tmp_path / "file", shape))


@pytest.mark.parametrize("feed", ["resident", "streaming"])
def test_training_and_testing_see_the_pixels_in_the_table(feed, tmp_path, monkeypatch):
    """Colour pictures in ten formats and more, as the steps and `predict` get them."""
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "cache"))
    names = [n for n in PICTURES if wanted(n, 3) is not None and n != NOT_LOOKED_UP]
    assert len({n.partition(",")[0] for n in names}) == 5 and len(names) >= 10
    shape = (*TABLE["shape"], 3)
    pairs = ([picture(name) for name in names], range(len(names)))
    write_dataset(tmp_path, "pictures", {"train": pairs, "test": pairs}, len(names), shape)
    config = Config.of(
        dataset="pictures", data_dir=str(tmp_path), feed=feed, model="softmax_regression",
        batch_size=len(names), validation=0.0, augment="none", devices=1,
    )  # fmt: skip
    built = experiment.build(config)
    (item,) = built.items(0, 1)
    trained = built.feed.fetch(jnp.asarray(built.feed.data), jax.tree.map(jnp.asarray, item))
    (tested,) = built.test_batches()
    for batch in (trained, tested):
        for label, pixels in zip(np.asarray(batch["label"]), batch["image"], strict=True):
            np.testing.assert_array_equal(pixels, wanted(names[label], 3))
    (tmp_path / "file").write_bytes(picture(names[0]))
    read = image.read(tmp_path / "file", shape)  # as experiments/predict.py does
    np.testing.assert_array_equal(read, wanted(names[0], 3))


def test_grey_with_transparency_is_grey_whatever_its_bits():
    """A PNG of two pixels written by hand: 16 bits of grey and of alpha each."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 2, 1, 16, 4, 0, 0, 0)
    row = zlib.compress(b"\0" + struct.pack(">4H", 0x0102, 0xFFFF, 0xC8FF, 0))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")
    file = b"\x89PNG\r\n\x1a\n" + chunks
    np.testing.assert_array_equal(image.decode(file, 0), [[[1], [200]]])
    np.testing.assert_array_equal(image.decode(file, 3), [[[1] * 3, [200] * 3]])


def test_what_tensorflow_refuses_has_its_own_colours():
    """By hand: alpha is dropped, a palette looked up, one bit is black or white."""
    drawn = image.decode(picture("png"), 3)
    np.testing.assert_array_equal(image.decode(picture("webp, alpha"), 3), drawn)
    few = image.decode(picture("png, palette"), 3)
    np.testing.assert_array_equal(image.decode(picture("bmp, palette"), 3), few)
    bits = image.decode(picture("png, 1 bit"), 3)
    np.testing.assert_array_equal(image.decode(picture("bmp, 1 bit"), 3), bits)
    assert set(bits.ravel()) == {0, 255}


def gif(indices, colours, transparent, canvas, corner):
    """Write a GIF of one frame, its background entry 9 of the palette; codes of nine bits."""
    height, width = indices.shape
    codes = [code for index in indices.ravel().tolist() for code in (256, index)] + [257]
    number = sum(code << 9 * i for i, code in enumerate(codes))
    packed = number.to_bytes(-(-9 * len(codes) // 8), "little")
    assert len(packed) < 256
    return b"".join([
        b"GIF89a", struct.pack("<HHBBB", *canvas, 0xF7, 9, 0), colours.tobytes(),
        b"\x21\xf9\x04", bytes([transparent is not None, 0, 0, transparent or 0, 0]),
        b"\x2c", struct.pack("<HHHHB", *corner, width, height, 0),
        bytes([8, len(packed)]), packed, b"\0\x3b",
    ])  # fmt: skip


@pytest.mark.parametrize("transparent", [None, 77])
@pytest.mark.parametrize(("canvas", "corner"), [((5, 4), (0, 0)), ((9, 8), (2, 3))])
@pytest.mark.parametrize("palette", ["grey", "colour"])
def test_what_a_gif_does_not_draw_is_black(palette, canvas, corner, transparent):
    """By hand. Pillow reads a grey palette as brightness, and fills up with the background."""
    rng = np.random.default_rng(0)
    colours = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
    if palette == "colour":
        colours = rng.permutation(colours)[:, :1] ^ np.uint8([[0, 64, 128]])
    indices = rng.integers(1, 256, (4, 5))
    indices[1, 2] = 77
    expected = np.zeros((canvas[1], canvas[0], 3), np.uint8)
    left, top = corner
    expected[top : top + 4, left : left + 5] = colours[indices]
    if transparent is not None:
        expected[top + 1, left + 2] = 0
    data = gif(indices, colours, transparent, canvas, corner)
    np.testing.assert_array_equal(image.decode(data, 3), expected)
    np.testing.assert_array_equal(image.decode(data, 1), image.with_channels(expected, 1))


def test_luma_by_hand():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [7, 7, 7]]], np.uint8)
    # 0.299, 0.587 and 0.114 of 255, rounded down
    assert image.with_channels(colours, 1).ravel().tolist() == [76, 149, 29, 7]
    grey = colours[:, :, :1]
    np.testing.assert_array_equal(image.with_channels(grey, 3), np.concatenate([grey] * 3, -1))


def jpeg(side: int = 40) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize("data", [
    b"", b"no picture", jpeg()[:-2], jpeg()[:400], b"\xff\xd8\xff", picture("png")[:60],
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"RIFF0000WEBPVP8 ",
    picture("gif")[:-30], picture("bmp")[:-30],
    jpeg().replace(b"\x01\x22\x00", b"\x01\x14\x00", 1),  # colours sampled 4:4:1
])  # fmt: skip
def test_what_is_no_whole_picture_is_an_error(data, tmp_path):
    (tmp_path / "file.png").write_bytes(data)
    with pytest.raises(InputError, match="cannot be read as an image"):
        image.read(tmp_path / "file.png", (8, 8, 3))


def test_extra_bytes_are_no_error():
    pixels = image.decode(jpeg(), 3)
    np.testing.assert_array_equal(image.decode(jpeg() + b"more", 3), pixels)
    # A marker in the middle: libjpeg warns, and so does TensorFlow.
    data = jpeg()
    half = len(data) // 2
    damaged = image.decode(data[:half] + b"\xff\xd9" + data[half + 2 :], 3)
    assert damaged.shape == pixels.shape


def test_opencv_is_not_used(monkeypatch):
    """Neither is it imported: what decodes does not depend on what else is installed."""
    imported = builtins.__import__

    def refuse(name, *args, **kwargs):
        assert name.partition(".")[0] != "cv2"
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for name in PICTURES:
        image.decode(picture(name), 3)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="there is no image file"):
        image.read(tmp_path / "nothing.png", (8, 8, 3))
    with pytest.raises(InputError, match="not a regular file"):
        image.read(tmp_path, (8, 8, 3))


def chunk(kind, data):
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def claimed(width, height, kind):
    """A file of some hundred bytes that claims to be an image of a size."""
    if kind == "PNG":
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"0")), chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    data = bytearray(file.getvalue())
    place, form = {
        "JPEG": (data.find(b"\xff\xc0") + 5, ">HH"),
        "GIF": (6, "<HH"),
        "BMP": (18, "<ii"),
    }[kind]
    sides = (height, width) if kind == "JPEG" else (width, height)
    data[place : place + struct.calcsize(form)] = struct.pack(form, *sides)
    return bytes(data)


@pytest.mark.parametrize(("width", "height"), [(65_000, 65_000), (12_000, 12_000)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
def test_a_small_file_that_claims_a_large_image(kind, width, height):
    """Nothing of that size is allocated: 12.7 GB would end the process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Exception, match="pixels"):
        image.decode(claimed(width, height, kind), 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.fixture
def strange(tmp_path):
    """What lies about in folders, by the words for it."""
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 40)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "proc").symlink_to("/proc/self/mem")
    picture = Image.new("RGB", (8, 8))
    for kind in ("EPS", "TIFF", "PPM", "PDF", "TGA", "ICO"):
        picture.save(tmp_path / kind, kind)
    (tmp_path / "ps").write_bytes(b"%!PS-Adobe-3.0\n(x) print\n")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *((name, "not a regular file") for name in ("folder", "fifo", "link", "null", "zero")),
        ("socket", "not a regular file"), ("empty", "empty file"), ("proc", "empty file"),
        ("sparse", "1,099,511,627,776 bytes"), ("loop", "symbolic links"), ("x" * 300, "too long"),
        *((name, "not a JPEG, PNG") for name in ("EPS", "TIFF", "PPM", "PDF", "TGA", "ICO", "ps")),
        ("missing", "there is no image file"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused_at_once(name, words, strange):
    with pytest.raises(InputError, match=words) as refused:
        image.read(strange / name, (8, 8, 3))
    assert str(strange / name) in str(refused.value)
