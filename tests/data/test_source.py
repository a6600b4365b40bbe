"""What is read is what was prepared, and whatever is wrong with it is said in one line."""

import dataclasses
import json
import pathlib
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from small_data import drawn, write_dataset

from cnnlab.data import builders, order, source
from cnnlab.data.image import fit
from cnnlab.errors import InputError

OFFICIAL = pathlib.Path(__file__).parents[3] / "shared" / "tfds"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def own_tiny(tfds_root, tmp_path):
    """A copy of `tiny` that a test may damage: (data directory, folder)."""
    shutil.copytree(tfds_root / "tiny", tmp_path / "data" / "tiny")
    return tmp_path / "data", tmp_path / "data" / "tiny" / "1.0.0"


def failure(call, *args, **kwargs) -> str:
    with pytest.raises(InputError) as error:
        call(*args, **kwargs)
    assert len(str(error.value).splitlines()) == 1, error.value
    return str(error.value)


def as_set(images, labels):
    return sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


def test_every_image_and_label_comes_back(tfds_root, cache):
    dataset = source.open_dataset("tiny", str(tfds_root))
    assert (dataset.name, dataset.version, dataset.num_classes) == ("tiny", "1.0.0", 3)
    for split, count, seed in ((dataset.train, 200, 0), (dataset.test, 50, 1)):
        images, summary = source.decoded(split)
        assert (len(split), images.shape, images.dtype) == (count, (count, 8, 8, 3), np.uint8)
        assert summary.labels.dtype == np.int32
        assert as_set(images, summary.labels) == as_set(*drawn(count, 3, (8, 8, 3), seed))
        some = split.read(np.array([3, 0, 3]))
        np.testing.assert_array_equal(some["image"], images[[3, 0, 3]])
        np.testing.assert_array_equal(some["label"], summary.labels[[3, 0, 3]])


def test_statistics_are_those_of_the_training_part_only(tfds_root, cache):
    train = source.open_dataset("tiny", str(tfds_root)).train
    images, summary = source.decoded(train)
    own, held_out = order.split(summary.labels, 0.25, 0)
    mean, std = summary.mean_std(own)
    np.testing.assert_allclose(mean, images[own].mean((0, 1, 2), dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(std, images[own].std((0, 1, 2), dtype=np.float64), rtol=1e-12)
    # Over all images it would be another number
    assert np.abs(mean - images.mean((0, 1, 2))).max() > 1e-3
    summary.sums[held_out] = 0  # what is held out has no influence
    np.testing.assert_array_equal(summary.mean_std(own)[0], mean)


def test_streaming_and_resident_summaries_are_equal(tfds_root, cache):
    train = source.open_dataset("tiny", str(tfds_root)).train
    one = source.summary(train)
    two = source.decoded(train)[1]
    for name in ("labels", "sums", "squares"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.pixels == two.pixels == 64 and one.digest() == two.digest()


def test_the_cache_is_used_and_its_damage_noticed(tfds_root, cache, monkeypatch):
    train = source.open_dataset("tiny", str(tfds_root)).train
    images, summary = source.decoded(train)
    (file,) = cache.glob("*-images*")
    content = file.read_bytes()
    reads = []
    monkeypatch.setattr(
        source, "_passes", lambda *_: reads.append(1) or iter([train.read(range(200))])
    )
    again, _ = source.decoded(train)
    np.testing.assert_array_equal(again, images)
    assert not reads
    rng = random.Random(0)
    damages = [b"", content[:-1], content[: len(content) // 2], bytes(len(content)), content[100:]]
    # Flips in the first header, anywhere, and in the directory at the end.
    for place in [rng.randrange(400) for _ in range(40)] + [
        rng.randrange(-len(content), 0) for _ in range(20)
    ]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        damages.append(bytes(flipped))
    for place in range(1, 300, 6):
        flipped = bytearray(content)
        flipped[-place] ^= 1 << rng.randrange(8)
        damages.append(bytes(flipped))
    for number, damaged in enumerate(damages, 1):
        file.write_bytes(damaged)
        found, its_summary = source.decoded(train)
        np.testing.assert_array_equal(found, images)
        assert its_summary.digest() == summary.digest()
        assert len(reads) == number  # read from the data set, not from the damaged file
    source.decoded(train)
    assert len(reads) == len(damages)  # and stored again


def test_a_cache_that_cannot_be_written_costs_only_time(tfds_root, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "file"))
    assert source.decoded(source.open_dataset("tiny", str(tfds_root)).train)[0].shape == (
        200,
        8,
        8,
        3,
    )


@pytest.mark.slow
def test_a_start_from_the_cache_imports_no_tfds(tfds_root, cache):
    script = (
        "import sys; from cnnlab.data import source\ndataset = source.open_dataset('tiny', "
        "sys.argv[1])\nimages, summary = source.decoded(dataset.train)\nprint(dataset.class_names, "
        "len(dataset.train), len(dataset.test), dataset.train.image_shape, "
        "images.sum())\nprint('tensorflow_datasets' in sys.modules)\nprint(dataset.test.read([0, "
        "49])['label'].shape, 'tensorflow_datasets' in sys.modules)\n"
    )
    first, second = (
        subprocess.run(
            [sys.executable, "-c", script, str(tfds_root)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        for _ in range(2)
    )
    assert (
        first[0] == second[0] and "('class 0', 'class 1', 'class 2') 200 50 (8, 8, 3)" in first[0]
    )
    assert (first[1], second[1], second[2]) == ("True", "False", "(2,) True")


def test_what_is_wrong_with_a_data_set_is_said_again(own_tiny, cache):
    root, folder = own_tiny
    source.open_dataset("tiny", str(root))  # sound, and its facts are kept
    next(folder.glob("tiny-test.array_record*")).unlink()
    # Both splits are opened before the facts are kept, though only train is read at first.
    for _ in range(2):
        assert "tiny test: the prepared files cannot be read" in failure(
            source.open_dataset, "tiny", str(root)
        )


def test_other_data_under_the_same_name(own_tiny, cache):
    root, folder = own_tiny
    before = source.open_dataset("tiny", str(root)).train
    digest = source.summary(before).digest()
    shutil.rmtree(folder)
    splits = {"train": drawn(200, 3, (8, 8, 3), seed=7), "test": drawn(50, 3, (8, 8, 3), seed=8)}
    write_dataset(root, "tiny", splits, 3, (8, 8, 3))
    after = source.open_dataset("tiny", str(root)).train
    assert after.fingerprint != before.fingerprint
    assert source.summary(after).digest() != digest
    other_size = source.open_dataset("tiny", str(root), image_size=6).train
    assert other_size.fingerprint != after.fingerprint


@pytest.mark.parametrize(("name", "shape", "counts"), [
    ("mnist", (28, 28, 1), (60_000, 10_000)), ("cifar10", (32, 32, 3), (50_000, 10_000))
])  # fmt: skip
def test_official_data(name, shape, counts):
    if not (OFFICIAL / name).is_dir():
        pytest.skip(f"no official data in {OFFICIAL / name}")
    dataset = source.open_dataset(name, str(OFFICIAL))
    assert (dataset.train.image_shape, dataset.num_classes) == (shape, 10)
    assert (len(dataset.train), len(dataset.test)) == counts
    part = dataset.test.read(range(200))
    assert (part["image"].shape, part["image"].dtype, part["label"].dtype) == (
        (200, *shape),
        np.uint8,
        np.int32,
    )
    assert set(part["label"]) == set(range(10)) and 20 < part["image"].mean() < 150


def test_labels_outside_the_classes(own_tiny, cache):
    root, folder = own_tiny
    features = folder / "features.json"
    features.write_text(features.read_text().replace('"numClasses": "3"', '"numClasses": "2"'))
    (folder / "label.labels.txt").write_text("class 0\nclass 1\n")
    train = source.open_dataset("tiny", str(root)).train
    message = failure(source.summary, train)
    assert "labels" in message and "[0, 2)" in message and "tiny" in message
    low = dataclasses.replace(
        train, records=_Records([{"image": np.zeros((8, 8, 3), np.uint8), "label": -1}])
    )
    assert "[0, 2), got -1" in failure(low.read, [0])


class _Records:
    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitems__(self, positions):
        return [self.examples[p] for p in positions]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_file(own_tiny, cache, share):
    root, folder = own_tiny
    (file,) = folder.glob("tiny-train.array_record*")
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    message = failure(lambda: source.decoded(source.open_dataset("tiny", str(root)).train))
    assert "tiny" in message and "cannot be read" in message and "prepare again" in message


def test_file_of_garbage_in_the_middle(own_tiny, cache):
    root, folder = own_tiny
    (file,) = folder.glob("tiny-train.array_record*")
    content = bytearray(file.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 2000] = bytes(2000)
    file.write_bytes(content)
    assert "prepare again" in failure(
        lambda: source.decoded(source.open_dataset("tiny", str(root)).train)
    )


def test_missing_file(own_tiny, cache):
    root, folder = own_tiny
    next(folder.glob("tiny-train.array_record*")).unlink()
    assert "prepare again" in failure(
        lambda: source.decoded(source.open_dataset("tiny", str(root)).train)
    )


def test_another_file_format(own_tiny):
    root, folder = own_tiny
    info = json.loads((folder / "dataset_info.json").read_text()) | {"fileFormat": "tfrecord"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for file in folder.glob("*.array_record*"):
        file.rename(folder / file.name.replace("array_record", "tfrecord"))
    message = failure(source.open_dataset, "tiny", str(root))
    assert "another file format" in message and "file_format='array_record'" in message


def test_unknown_names_and_folders(tfds_root, tmp_path):
    assert "did you mean 'tiny'" in failure(source.open_dataset, "tinny", str(tfds_root))
    assert "did you mean 'cifar10'" in failure(source.open_dataset, "cifar-10", str(tmp_path))
    assert "unknown data set" in failure(source.open_dataset, "../tiny", str(tfds_root))
    assert "--data-dir" in failure(source.open_dataset, "tiny", str(tmp_path / "nothing"))


def test_no_test_split(tmp_path):
    write_dataset(tmp_path, "half", {"train": drawn(5, 2, (4, 4, 3), 0)}, 2, (4, 4, 3))
    assert "no split ['test']" in failure(source.open_dataset, "half", str(tmp_path))


def test_images_of_many_sizes(tmp_path, cache):
    images = [np.full((4 + i, 9 - i, 3), 20 * i, np.uint8) for i in range(6)]
    labels = [i % 2 for i in range(6)]
    write_dataset(
        tmp_path, "sizes", {"train": (images, labels), "test": (images, labels)}, 2, (None, None, 3)
    )
    assert "--image-size" in failure(source.open_dataset, "sizes", str(tmp_path))
    train = source.open_dataset("sizes", str(tmp_path), image_size=5).train
    decoded, _ = source.decoded(train)
    assert decoded.shape == (6, 5, 5, 3)
    assert (
        sorted(image.min() for image in decoded)
        == sorted(image.max() for image in decoded)
        == list(range(0, 120, 20))
    )


def test_fit():
    wide = np.zeros((2, 6, 1), np.uint8)
    wide[:, 2:4] = 200
    np.testing.assert_array_equal(fit(wide, (2, 2, 1)), np.full((2, 2, 1), 200))  # the centre
    np.testing.assert_array_equal(fit(wide, (2, 2, 3)), np.full((2, 2, 3), 200))  # grey to colour
    assert fit(wide, (2, 6, 1)) is wide
    steps = np.repeat(np.repeat(np.array([[0, 100], [200, 40]], np.uint8), 2, 0), 2, 1)[..., None]
    small = fit(steps, (2, 2, 1))
    wanted = np.asarray(Image.fromarray(steps[..., 0]).resize((2, 2), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(small[..., 0], wanted)
    assert abs(int(small.mean()) - 85) <= 1  # antialiased: nothing is dropped
    colour = np.zeros((3, 3, 3), np.uint8)
    colour[..., 0] = 255
    assert (fit(colour, (3, 3, 1)) == 76).all()  # ITU-R 601: 0.299 red
    for shape in ((5, 9), (9, 5), (31, 17), (1, 50)):
        assert fit(np.zeros((*shape, 3), np.uint8), (7, 7, 3)).shape == (7, 7, 3)


@pytest.mark.slow
def test_no_tensorflow(tfds_root, cache):
    script = """
import sys
from cnnlab.data import feed, source
split = source.open_dataset("tiny", sys.argv[1]).train
images, summary = source.decoded(split)
order = feed.Order(summary.labels, summary.labels.argsort(), 0, 10)
next(feed.streaming(split, order).items(0, 2))
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script, str(tfds_root)], check=True)


def test_an_image_that_is_a_tensor_is_read_too(tmp_path):
    """Any feature of that shape and type; only TFDS's own Image goes the short way."""
    import tensorflow_datasets as tfds

    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = "tensors"
        pkg_dir_path = tmp_path

        def _info(self):
            tensor = tfds.features.Tensor(shape=(4, 4, 3), dtype=np.uint8)
            features = tfds.features.FeaturesDict(
                {"image": tensor, "label": tfds.features.ClassLabel(num_classes=2)}
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            for i, image in enumerate(images):
                yield i, {"image": image, "label": i % 2}

    with builders._quiet():
        Builder(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    train = source.open_dataset("tensors", str(tmp_path)).train
    found = train.read(range(6))
    # TFDS shuffles
    order = [int(np.flatnonzero((images == image).all((1, 2, 3)))[0]) for image in found["image"]]
    assert sorted(order) == list(range(6))
    np.testing.assert_array_equal(found["label"], np.array(order) % 2)
