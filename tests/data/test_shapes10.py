"""shapes10: the same bits everywhere, and a class that only the shape tells."""

import hashlib
import io
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from cnnlab.data import builders
from cnnlab.data.builders.shapes10 import (
    CLASS_NAMES,
    SPLITS,
    draw,
    draw_many,
    drawing,
    split_labels,
    split_seeds,
)

GOLDEN = {
    "train": "f6b15776af826ba9e16e9f3a042e4a71e18e3571b8eb0a80173516d52ea19ac7",
    "test": "6ca30f4b2e70f18a37e33833482930d516e95a743d8a9e1ee8d182ef961ce8be",
}


@pytest.fixture(scope="module")
def data() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        split: (draw_many(split_labels(split), split_seeds(split)), split_labels(split))
        for split in SPLITS
    }


def test_golden_bits(data):
    for split, (images, labels) in data.items():
        assert (
            hashlib.sha256(images.tobytes() + labels.astype("<i4").tobytes()).hexdigest()
            == GOLDEN[split]
        ), split


def test_shapes_and_balance(data):
    assert SPLITS == {"train": 10_000, "test": 2_000}
    for split, (images, labels) in data.items():
        assert (images.shape, images.dtype, labels.dtype) == (
            (SPLITS[split], 32, 32, 3),
            np.uint8,
            np.int32,
        )
        assert (np.bincount(labels, minlength=10) == SPLITS[split] // 10).all()
        assert (images.min(), images.max()) == (0, 255)
        assert 110 < images.mean() < 145
        # Nearly all pictures use a wide range of values: nothing is blank.
        assert (np.ptp(images.reshape(len(images), -1), axis=1) > 60).all()


def test_no_image_twice_and_no_seed_in_both_splits(data):
    images = np.concatenate([images for images, _ in data.values()])
    assert len({image.tobytes() for image in images}) == 12_000
    assert not set(split_seeds("train")) & set(split_seeds("test"))


def test_an_image_depends_on_its_own_label_and_seed_only(data):
    images, labels = data["test"]
    order = np.random.default_rng(0).permutation(300)
    assert np.array_equal(draw_many(labels[order], split_seeds("test")[order]), images[order])
    for i in (0, 7, 1999):
        assert np.array_equal(draw(int(labels[i]), int(split_seeds("test")[i])), images[i])
    assert not np.array_equal(draw(3, 5), draw(4, 5))
    assert not np.array_equal(draw(3, 5), draw(3, 6))
    assert draw(9, 2**64 - 1).any()
    assert draw_many(np.zeros(0, int), np.zeros(0, np.uint64)).shape == (0, 32, 32, 3)


@pytest.mark.slow
def test_another_process_draws_the_same(data):
    code = (
        "import sys; from cnnlab.data.builders.shapes10 import draw; "
        "sys.stdout.buffer.write(draw(1, 1).tobytes())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert out == data["train"][0][1].tobytes()


@pytest.mark.parametrize("label", [-1, 10])
def test_label_outside(label):
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 10\)"):
        draw(label, 0)


def test_all_shapes_have_the_same_area():
    """The area would otherwise show in the mean colour's distance from the background, and so tell
    the class.
    """
    axis = (np.arange(800.0) - 399.5) / 200
    u, v = (grid.reshape(1, -1) for grid in np.meshgrid(axis, axis))
    for name, shape in zip(CLASS_NAMES, drawing._SHAPES, strict=True):
        inside = shape(u, v) < 0
        assert abs(inside.sum() / 200**2 - 2.25) < 0.04, name
        assert (
            abs((u * inside).sum() / inside.sum()) < 0.05
            and abs((v * inside).sum() / inside.sum()) < 0.05
        ), name


def test_hash_is_splitmix64():
    """The first outputs of the reference implementation for the seed 1234567 (Rosetta Code,
    Pseudo-random numbers).
    """
    states = np.uint64(1234567) + np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert drawing._mix(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_random_numbers():
    uniform = drawing._Uniform(np.arange(200, dtype=np.uint64))
    numbers = uniform(-1.0, 1.0, 500)
    assert (numbers.min() >= -1) and (numbers.max() < 1) and abs(numbers.mean()) < 0.01
    assert abs(numbers.var() - 1 / 3) < 0.01
    noise = uniform.noise(500)
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    cosine, sine = uniform.direction()
    assert np.allclose(cosine**2 + sine**2, 1)
    assert min(cosine.min(), sine.min()) < -0.9 and max(cosine.max(), sine.max()) > 0.9


def accuracy_of_linear_probe(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, wanted: np.ndarray
) -> float:
    """Least squares onto one-hot labels, features standardised."""
    mean = train.mean(0)
    deviation = train.std(0) + 1e-9

    def add_one(x):
        return np.concatenate([(x - mean) / deviation, np.ones((len(x), 1))], axis=1)

    weights = np.linalg.lstsq(add_one(train), np.eye(10)[labels], rcond=None)[0]
    return float(((add_one(test) @ weights).argmax(1) == wanted).mean())


def test_mean_colour_does_not_tell_the_class(data):
    def features(images):
        mean = images.reshape(len(images), -1, 3).mean(1) / 255
        spread = images.reshape(len(images), -1, 3).std(1) / 255
        return np.concatenate([mean, mean**2], 1), np.concatenate(
            [mean, mean**2, spread, spread**2], 1
        )

    train, labels = data["train"]
    test, wanted = data["test"]
    for of_train, of_test in zip(features(train), features(test), strict=True):
        assert accuracy_of_linear_probe(of_train, labels, of_test, wanted) < 0.15


@pytest.mark.slow
def test_softmax_regression_on_pixels_fails(data):
    """Too many places, colours and polarities for one template a class; the best of six epochs
    counts.
    """

    def prepare(images):
        return (images.reshape(len(images), -1).astype(np.float32) - 127.5) / 64

    train, labels = data["train"]
    test, wanted = data["test"]
    train = prepare(train)
    test = prepare(test)
    hot = np.eye(10, dtype=np.float32)[labels]
    rng = np.random.default_rng(0)
    weights = np.zeros((3072, 10), np.float32)
    step = np.zeros_like(weights)
    best = 0.0
    for _ in range(6):
        for batch in rng.permutation(10_000).reshape(-1, 100):
            logits = train[batch] @ weights
            share = np.exp(logits - logits.max(1, keepdims=True))
            share /= share.sum(1, keepdims=True)
            step = 0.9 * step - 1e-4 * (train[batch].T @ (share - hot[batch]))
            weights += step
        best = max(best, float(((test @ weights).argmax(1) == wanted).mean()))
    assert 0.1 < best < 0.5, best


@pytest.mark.slow
def test_prepared_equals_drawn_and_is_quick(data, tmp_path):
    started = time.process_time()
    folder = builders.prepare("shapes10", tmp_path)
    assert time.process_time() - started < 20  # seconds on one core
    assert folder == tmp_path / "shapes10" / "1.0.0"
    builder = tfds.builder_from_directory(folder)
    assert tuple(builder.info.features["label"].names) == CLASS_NAMES
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == SPLITS
    for split, (images, labels) in data.items():
        source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        order = sorted(
            range(SPLITS[split]), key=lambda i: hashlib.md5(f"{split}{i}".encode()).digest()
        )
        for i, place in zip(order, range(len(source)), strict=True):
            example = source[place]
            assert (example["id"], example["label"]) == (f"{split}_{i:05d}".encode(), labels[i])
            if i < 1000:
                assert np.array_equal(
                    np.asarray(Image.open(io.BytesIO(example["image"]))), images[i]
                )
