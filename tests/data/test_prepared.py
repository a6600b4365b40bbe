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
from small_data import drawn, write_dataset, write_features

from cnnlab import parts
from cnnlab.config import Recipe
from cnnlab.data import builders, catalogue, contents, order
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
    dataset = catalogue.open_dataset("tiny", str(tfds_root))
    assert (dataset.name, dataset.version, dataset.num_classes) == ("tiny", "1.0.0", 3)
    for split, count, seed in ((dataset.train, 200, 0), (dataset.test, 50, 1)):
        images, summary = contents.decoded(split)
        assert (len(split), images.shape, images.dtype) == (count, (count, 8, 8, 3), np.uint8)
        assert summary.labels.dtype == np.int32
        assert as_set(images, summary.labels) == as_set(*drawn(count, 3, (8, 8, 3), seed))
        some = split.read(np.array([3, 0, 3]))
        np.testing.assert_array_equal(some["image"], images[[3, 0, 3]])
        np.testing.assert_array_equal(some["label"], summary.labels[[3, 0, 3]])


def test_statistics_are_those_of_the_training_part_only(tfds_root, cache):
    train = catalogue.open_dataset("tiny", str(tfds_root)).train
    images, summary = contents.decoded(train)
    own, held_out = order.split(summary.labels, 0.25, 0)
    mean, std = summary.mean_std(own)
    np.testing.assert_allclose(mean, images[own].mean((0, 1, 2), dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(std, images[own].std((0, 1, 2), dtype=np.float64), rtol=1e-12)
    # Over all images it would be another number
    assert np.abs(mean - images.mean((0, 1, 2))).max() > 1e-3
    summary.sums[held_out] = 0  # what is held out has no influence
    np.testing.assert_array_equal(summary.mean_std(own)[0], mean)


def test_streaming_and_resident_summaries_are_equal(tfds_root, cache):
    train = catalogue.open_dataset("tiny", str(tfds_root)).train
    one = contents.summary(train)
    two = contents.decoded(train)[1]
    for name in ("labels", "sums", "squares"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.pixels == two.pixels == 64 and one.digest() == two.digest()


def test_the_cache_is_used_and_its_damage_noticed(tfds_root, cache, monkeypatch):
    train = catalogue.open_dataset("tiny", str(tfds_root)).train
    images, summary = contents.decoded(train)
    (file,) = cache.glob("*-images*")
    content = file.read_bytes()
    reads = []
    monkeypatch.setattr(
        contents, "_passes", lambda *_: reads.append(1) or iter([train.read(range(200))])
    )
    again, _ = contents.decoded(train)
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
        found, its_summary = contents.decoded(train)
        np.testing.assert_array_equal(found, images)
        assert its_summary.digest() == summary.digest()
        assert len(reads) == number  # read from the data set, not from the damaged file
    contents.decoded(train)
    assert len(reads) == len(damages)  # and stored again


def test_a_cache_that_cannot_be_written_costs_only_time(tfds_root, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "file"))
    assert contents.decoded(catalogue.open_dataset("tiny", str(tfds_root)).train)[0].shape == (
        200,
        8,
        8,
        3,
    )


@pytest.mark.slow
def test_a_start_from_the_cache_imports_no_tfds(tfds_root, cache):
    script = (
        "import sys; from cnnlab.data import catalogue, contents\n"
        "dataset = catalogue.open_dataset('tiny', sys.argv[1])\n"
        "images, summary = contents.decoded(dataset.train)\nprint(dataset.class_names, "
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
    catalogue.open_dataset("tiny", str(root))  # sound, and its facts are kept
    next(folder.glob("tiny-test.array_record*")).unlink()
    # Both splits are opened before the facts are kept, though only train is read at first.
    for _ in range(2):
        assert "tiny test cannot be read" in failure(catalogue.open_dataset, "tiny", str(root))


def test_other_data_under_the_same_name(own_tiny, cache):
    root, folder = own_tiny
    before = catalogue.open_dataset("tiny", str(root)).train
    digest = contents.summary(before).digest()
    shutil.rmtree(folder)
    splits = {"train": drawn(200, 3, (8, 8, 3), seed=7), "test": drawn(50, 3, (8, 8, 3), seed=8)}
    write_dataset(root, "tiny", splits, 3, (8, 8, 3))
    after = catalogue.open_dataset("tiny", str(root)).train
    assert after.fingerprint != before.fingerprint
    assert contents.summary(after).digest() != digest
    other_size = catalogue.open_dataset("tiny", str(root), image_size=6).train
    assert other_size.fingerprint != after.fingerprint


@pytest.mark.parametrize(("name", "shape", "counts"), [
    ("mnist", (28, 28, 1), (60_000, 10_000)), ("cifar10", (32, 32, 3), (50_000, 10_000))
])  # fmt: skip
def test_official_data(name, shape, counts):
    if not (OFFICIAL / name).is_dir():
        pytest.skip(f"no official data in {OFFICIAL / name}")
    dataset = catalogue.open_dataset(name, str(OFFICIAL))
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
    train = catalogue.open_dataset("tiny", str(root)).train
    message = failure(contents.summary, train)
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
    message = failure(lambda: contents.decoded(catalogue.open_dataset("tiny", str(root)).train))
    assert (
        "tiny" in message
        and "cannot be read" in message
        and "prepare the data set again" in message
    )


def test_file_of_garbage_in_the_middle(own_tiny, cache):
    root, folder = own_tiny
    (file,) = folder.glob("tiny-train.array_record*")
    content = bytearray(file.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 2000] = bytes(2000)
    file.write_bytes(content)
    assert "prepare the data set again" in failure(
        lambda: contents.decoded(catalogue.open_dataset("tiny", str(root)).train)
    )


def test_missing_file(own_tiny, cache):
    root, folder = own_tiny
    next(folder.glob("tiny-train.array_record*")).unlink()
    assert "prepare the data set again" in failure(
        lambda: contents.decoded(catalogue.open_dataset("tiny", str(root)).train)
    )


def test_another_file_format(own_tiny):
    root, folder = own_tiny
    info = json.loads((folder / "dataset_info.json").read_text()) | {"fileFormat": "riegeli"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    message = failure(catalogue.open_dataset, "tiny", str(root))
    assert "prepared as riegeli" in message and "file_format='array_record'" in message


def test_unknown_names_and_folders(tfds_root, tmp_path):
    assert "did you mean 'tiny'" in failure(catalogue.open_dataset, "tinny", str(tfds_root))
    assert "did you mean 'cifar10'" in failure(catalogue.open_dataset, "cifar-10", str(tmp_path))
    assert "unknown data set" in failure(catalogue.open_dataset, "../tiny", str(tfds_root))
    assert "--data-dir" in failure(catalogue.open_dataset, "tiny", str(tmp_path / "nothing"))


@pytest.fixture
def emnist(tfds_root, tmp_path):
    """A data directory with two configs of `emnist`, one of them in two versions, and one config of
    `solo`.
    """
    places = ("emnist/digits/1.0.0", "emnist/letters-2/1.0.0", "emnist/letters-2/1.10.0")
    for place in (*places, "solo/only/2.0.0"):
        shutil.copytree(tfds_root / "tiny" / "1.0.0", tmp_path / place)
        info = json.loads((tmp_path / place / "dataset_info.json").read_text())
        info |= {"version": place.rpartition("/")[2]}
        (tmp_path / place / "dataset_info.json").write_text(json.dumps(info))
    return str(tmp_path)


@pytest.mark.parametrize(("name", "version"), [
    ("emnist/digits", "1.0.0"), ("emnist/letters-2", "1.10.0"),
    ("emnist/letters-2:1.0.0", "1.0.0"), ("emnist/letters-2:1.10.0", "1.10.0"),
    ("solo", "2.0.0"), ("solo/only", "2.0.0"), ("solo:2.0.0", "2.0.0"),
    ("emnist/letters-2:1.*.*", "1.10.0"), ("emnist/letters-2:1.0.*", "1.0.0"),
    ("solo:*.*.*", "2.0.0"),
])  # fmt: skip
def test_names_as_in_tfds(name, version, emnist, cache):
    """A number of a version is a number: 1.10 is newer than 1.9."""
    dataset = catalogue.open_dataset(name, emnist)
    assert (dataset.name, dataset.version, len(dataset.train)) == (name, version, 200)
    part = parts.find("dataset", f"{name},mirror=false")
    assert (part.name, part.path, part.keywords) == (name, "", {"mirror": False})


@pytest.mark.parametrize(("name", "message"), [
    ("emnist", "several configs; name one of emnist/digits, emnist/letters-2"),
    ("emnist:1.0.0", "several configs; name one of"),
    ("emnist/letter", "did you mean 'emnist/letters-2'"),
    ("emnist/letters-2:1.9.0", "emnist/letters-2:1.0.0, emnist/letters-2:1.10.0"),
    ("solo:1.0.0", "Known: solo/only:2.0.0"), ("solo/other", "Known: solo/only"),
    ("solo:1.*.*", "Known: solo/only:2.0.0"), ("emnist:1.*.*", "several configs; name one of"),
    ("shapes10:9.*.*", "unknown data set"),
    ("unheard_of", "unknown data set 'unheard_of'"), ("solo:2", "unknown data set"),
    ("shapes10:3.0.0", "unknown data set"), ("shapes10/big", "unknown data set"),
])  # fmt: skip
def test_names_that_are_ambiguous_or_of_nothing(name, message, emnist, cache):
    assert message in failure(catalogue.open_dataset, name, emnist)


def twice(examples):
    return {"train": examples, "test": examples}


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 5), np.uint8)


def image_features():
    """How a grey image may be stored: {what: (feature, what it is given)}."""
    import tensorflow_datasets as tfds

    tensor = tfds.features.Tensor
    return {
        "image": (tfds.features.Image(shape=(4, 5, 1)), lambda a: Image.fromarray(a)),
        "tensor": (tensor(shape=(4, 5), dtype=np.uint8), lambda a: a),
        "tensor with a channel": (tensor(shape=(4, 5, 1), dtype=np.uint8), lambda a: a[..., None]),
        "zipped": (tensor(shape=(4, 5), dtype=np.uint8, encoding="zlib"), lambda a: a),
    }


def label_features():
    """How a label may be stored: {what: (feature, label -> what it is given, class names)}."""
    import tensorflow_datasets as tfds

    tensor = tfds.features.Tensor
    return {
        "class": (tfds.features.ClassLabel(names=["a", "b"]), lambda k: k, ("a", "b")),
        "number": (np.int64, lambda k: k, ("0", "1")),
        "small number": (np.uint8, lambda k: 2 * k, ("0", "1", "2")),
        "truth": (np.bool_, lambda k: k, ("0", "1")),
        "text": (tfds.features.Text(), lambda k: ["ü", "cat"][k], ("cat", "ü")),
        "string": (tensor(shape=(), dtype=np.object_), lambda k: ["ü", "cat"][k], ("cat", "ü")),
        "list": (tensor(shape=(1,), dtype=np.int64), lambda k: np.array([k]), ("0", "1")),
        "zipped": (tensor(shape=(), dtype=np.int64, encoding="zlib"), np.int64, ("0", "1")),
        "bytes": (tensor(shape=(1,), dtype=np.uint8, encoding="bytes"),
                  lambda k: np.array([k], np.uint8), ("0", "1")),
    }  # fmt: skip


@pytest.mark.parametrize("stored_label", label_features())
@pytest.mark.parametrize("stored", ["image", "tensor", "tensor with a channel", "zipped"])
def test_any_layout_with_an_image_and_a_label(stored, stored_label, tmp_path, cache):
    image_feature, as_stored = image_features()[stored]
    label_feature, as_label, classes = label_features()[stored_label]
    features = {"inner": {"picture": image_feature}, "kind": label_feature, "weight": np.float32}
    examples = [
        {"inner": {"picture": as_stored(a)}, "kind": as_label(i % 2), "weight": 0.5}
        for i, a in enumerate(PIXELS)
    ]
    write_features(tmp_path, "mine", features, twice(examples))
    keys = {} if stored_label == "class" else {"label_key": "kind"}
    dataset = catalogue.open_dataset("mine", str(tmp_path), image_key="inner/picture", **keys)
    assert dataset.class_names == classes
    found = dataset.train.read(range(6))
    assert found["image"].shape == (6, 4, 5, 1)
    names = [label_features()[stored_label][1](i % 2) for i in range(6)]
    wanted = {a.tobytes(): str(np.ravel(name)[0]) for a, name in zip(PIXELS, names, strict=True)}
    for pixels, label in zip(found["image"], found["label"], strict=True):
        expected = wanted[pixels.tobytes()]
        assert classes[label] == (classes[int(expected)] if stored_label == "class" else expected)


@pytest.mark.parametrize(("keys", "message"), [
    ({}, "no feature 'image': choose with --image-key one of left, right"),
    ({"image_key": "middle"}, "unknown image feature of mine 'middle'"),
    ({"image_key": "left"}, "no feature 'label': choose with --label-key one of age, name"),
    ({"image_key": "left", "label_key": "right"}, "unknown label feature of mine 'right'"),
])  # fmt: skip
def test_which_features_are_meant(keys, message, tmp_path, cache):
    import tensorflow_datasets as tfds

    picture = tfds.features.Image(shape=(4, 5, 1))
    features = {"left": picture, "right": picture, "age": np.int32, "name": tfds.features.Text()}
    example = {
        "left": Image.fromarray(PIXELS[0]), "right": Image.fromarray(PIXELS[1]),
        "age": 3, "name": "x",
    }  # fmt: skip
    write_features(tmp_path, "mine", features, twice([example]))
    assert message in failure(catalogue.open_dataset, "mine", str(tmp_path), **keys)
    chosen = catalogue.open_dataset("mine", str(tmp_path), image_key="right", label_key="age")
    found = chosen.test.read([0])
    np.testing.assert_array_equal(found["image"][0, :, :, 0], PIXELS[1])
    assert (found["label"].tolist(), chosen.class_names) == ([3], ("0", "1", "2", "3"))


def test_features_that_are_no_pictures(tmp_path, cache):
    import tensorflow_datasets as tfds

    def message(name, feature, value):
        label = tfds.features.ClassLabel(num_classes=2)
        examples = [{feature[0]: value, "label": 0}]
        write_features(tmp_path, name, {feature[0]: feature[1], "label": label}, twice(examples))
        return failure(catalogue.open_dataset, name, str(tmp_path))

    text = "text", tfds.features.Text()
    assert "none of its features is the image, only" in message("texts", text, "a")
    floats = "image", tfds.features.Tensor(shape=(2, 2), dtype=np.float32)
    found = message("floats", floats, np.zeros((2, 2), np.float32))
    assert "float32; only uint8" in found
    seven = "image", tfds.features.Tensor(shape=(2, 2, 7), dtype=np.uint8)
    assert "1 or 3 channels" in message("seven", seven, np.zeros((2, 2, 7), np.uint8))


def test_labels_that_are_negative_or_new(tmp_path, cache):
    import tensorflow_datasets as tfds

    picture = tfds.features.Image(shape=(4, 5, 1))
    examples = [{"image": Image.fromarray(PIXELS[i]), "label": i - 1} for i in range(3)]
    write_features(tmp_path, "mine", {"image": picture, "label": np.int64}, twice(examples))
    assert "must not be negative, got -1" in failure(
        catalogue.open_dataset, "mine", str(tmp_path), label_key="label"
    )


def test_a_share_of_train_to_test_on(tmp_path, cache):
    images, labels = drawn(100, 2, (4, 4, 3), 0)
    write_dataset(tmp_path, "half", {"train": (images, labels)}, 2, (4, 4, 3))
    dataset = catalogue.open_dataset("half", str(tmp_path), test_fraction=0.2)
    assert (len(dataset.train), len(dataset.test)) == (80, 20)
    train, test = (contents.decoded(split) for split in (dataset.train, dataset.test))
    both = np.concatenate([train[0], test[0]]), np.concatenate([train[1].labels, test[1].labels])
    assert as_set(*both) == as_set(images, labels)
    share = np.bincount(test[1].labels) / np.bincount(labels)
    np.testing.assert_allclose(share, 0.2, atol=0.03)  # stratified
    once_more = catalogue.open_dataset("half", str(tmp_path), test_fraction=0.2)
    np.testing.assert_array_equal(once_more.test.read(range(20))["image"], test[0])
    assert "holds out no image" in failure(
        catalogue.open_dataset, "half", str(tmp_path), test_fraction=0.001
    )
    assert "leaves no image to train on" in failure(
        catalogue.open_dataset, "half", str(tmp_path), test_fraction=0.999
    )


def test_which_split_is_tested_on(tmp_path, cache):
    images, labels = drawn(30, 2, (4, 4, 3), 0)
    splits = {
        "train": (images[:20], labels[:20]), "validation": (images[20:26], labels[20:26]),
        "extra": (images[26:], labels[26:]),
    }  # fmt: skip
    write_dataset(tmp_path, "three", splits, 2, (4, 4, 3))
    message = failure(catalogue.open_dataset, "three", str(tmp_path))
    assert "no split test, only extra, train, validation: --test-split validation" in message
    dataset = catalogue.open_dataset("three", str(tmp_path), test_split="validation")
    assert (len(dataset.train), len(dataset.test)) == (20, 6)
    for choice, words in (
        ({"test_split": "train"}, "trained on"),
        ({"test_split": "validation", "test_fraction": 0.1}, "has no effect"),
        ({"test_split": "valid"}, "no split valid"),
    ):
        assert words in failure(catalogue.open_dataset, "three", str(tmp_path), **choice)


def test_settings_that_a_data_set_does_not_take(tmp_path, cache):
    recipe = Recipe(dataset="shapes10", image_key="picture")
    message = failure(parts.resolve(recipe).open_dataset, None, recipe)
    assert "takes no image_key: --image-key picture has no effect" in message


def test_no_test_split(tmp_path):
    write_dataset(tmp_path, "half", {"train": drawn(5, 2, (4, 4, 3), 0)}, 2, (4, 4, 3))
    message = failure(catalogue.open_dataset, "half", str(tmp_path))
    assert "half has no split test, only train: --test-fraction 0.1 holds out a tenth" in message


def test_images_of_many_sizes(tmp_path, cache):
    images = [np.full((4 + i, 9 - i, 3), 20 * i, np.uint8) for i in range(6)]
    labels = [i % 2 for i in range(6)]
    write_dataset(
        tmp_path, "sizes", {"train": (images, labels), "test": (images, labels)}, 2, (None, None, 3)
    )
    assert "--image-size" in failure(catalogue.open_dataset, "sizes", str(tmp_path))
    train = catalogue.open_dataset("sizes", str(tmp_path), image_size=5).train
    decoded, _ = contents.decoded(train)
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
from cnnlab.data import catalogue, contents, feed
split = catalogue.open_dataset("tiny", sys.argv[1]).train
images, summary = contents.decoded(split)
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
    train = catalogue.open_dataset("tensors", str(tmp_path)).train
    found = train.read(range(6))
    # TFDS shuffles
    order = [int(np.flatnonzero((images == image).all((1, 2, 3)))[0]) for image in found["image"]]
    assert sorted(order) == list(range(6))
    np.testing.assert_array_equal(found["label"], np.array(order) % 2)
