"""Both splits of a run are known by their pixels and labels: other data are noticed before anything
is trained, resumed or evaluated on them.
"""

import os
import shutil

import jax
import numpy as np
import pytest
from small_data import drawn, write_dataset

import cnnlab
from cnnlab import files
from cnnlab.config import Config
from cnnlab.data import catalogue, contents
from cnnlab.data.dataset import from_arrays
from cnnlab.errors import InputError
from cnnlab.training import network, run

SHAPE = (8, 8, 3)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Of a run on `mine` in tmp_path, as `write` wrote it."""
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "cache"))
    return Config.of(
        dataset="mine", data_dir=str(tmp_path), model="softmax_regression", epochs=1, batch_size=16,
        augment="none", optimizer="sgd", schedule="constant", devices=1, tensorboard=False,
    )  # fmt: skip


def write(root, **changes):
    """Prepares `mine` anew, a split of it changed."""
    shutil.rmtree(root / "mine", ignore_errors=True)
    splits = {"train": drawn(64, 3, SHAPE, 0), "test": drawn(20, 3, SHAPE, 1)}
    for split, change in changes.items():
        splits[split] = change(*splits[split])
    write_dataset(root, "mine", splits, 3, SHAPE)


def shifted(images, labels):
    return images, (labels + 1) % 3


def turned(images, labels):
    """By 90 degrees: the same sums over pixels."""
    return np.rot90(images, axes=(1, 2)), labels


@pytest.mark.parametrize("change", [shifted, turned])
@pytest.mark.parametrize("split", ["train", "test"])
def test_other_data_under_the_same_name(split, change, config, tmp_path):
    write(tmp_path)
    run.in_folder(config, tmp_path / "run")
    run.in_folder(config, tmp_path / "run")  # the same data
    write(tmp_path, **{split: change})
    with pytest.raises(InputError, match="trained on other data under the same name"):
        run.in_folder(config, tmp_path / "run")
    trained = network.load(tmp_path / "run")
    if split == "test":
        with pytest.raises(InputError, match="the run was trained on: it has other test images"):
            run.dataset_of(trained)
    write(tmp_path)
    assert run.evaluate(trained, run.dataset_of(trained))


def test_a_run_of_an_earlier_version_is_evaluated(config, tmp_path):
    """It does not know the digest of its test split."""
    write(tmp_path)
    run.in_folder(config, tmp_path / "run")
    data = tmp_path / "run" / "data.json"
    data.write_text(data.read_text().replace("test_digest", "another_fact"))
    files.reseal(data)
    trained = network.load(tmp_path / "run")
    assert trained.facts.test_digest == "" and run.dataset_of(trained)


@pytest.mark.parametrize("workers", ["resident", "streaming"])
def test_a_test_image_that_is_none_is_found_before_training(workers, config, tmp_path):
    images, labels = drawn(20, 3, SHAPE, 1)
    files = [b"no picture" if i == 7 else image for i, image in enumerate(images)]
    write(tmp_path, test=lambda *_: (files, labels))
    with pytest.raises(InputError, match=r"mine 1.0.0 test, image \d+ cannot be read"):
        run.in_folder(config.replace(feed=workers), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_labels_of_the_test_split_are_checked_before_training(config, tmp_path):
    write(tmp_path)
    folder = tmp_path / "mine" / "1.0.0"
    write(tmp_path, test=lambda images, labels: (images, np.full(20, 2)))
    features = folder / "features.json"
    features.write_text(features.read_text().replace('"numClasses": "3"', '"numClasses": "2"'))
    (folder / "label.labels.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match=r"labels must lie in \[0, 2\)"):
        run.in_folder(config, tmp_path / "run")


@pytest.mark.parametrize("change", [
    {"class_names": ["b", "a", "c"]}, {"mirror": False}, {"shape": (4, 16, 3)},
])  # fmt: skip
def test_a_run_on_arrays_knows_their_shape_and_their_classes(change, config, tmp_path):
    """The pixels and labels stay; an average over the image takes any shape."""
    images, labels = drawn(64, 3, SHAPE, 0)

    def data(class_names=("a", "b", "c"), shape=SHAPE, mirror=True):
        pair = images.reshape(-1, *shape), labels
        described = {"class_names": list(class_names), "mirror": mirror}
        return {"train": pair, "test": pair, **described}

    settings = {"model": "cnn,widths=[4],hidden=[],pool=average", "batch_size": 16, "epochs": 1}
    settings |= {"devices": 1, "workdir": tmp_path / "run"}
    with jax.numpy_dtype_promotion("standard"):
        cnnlab.train(data(), **settings)
        with pytest.raises(InputError, match="trained on other data under the same name"):
            cnnlab.train(data(**change), **settings)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"loss": "mse"}])
def test_checkpoints_of_another_run_are_refused(changes, config, tmp_path):
    write(tmp_path)
    run.in_folder(config, tmp_path / "run")
    run.in_folder(config.replace(**changes), tmp_path / "other")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "run" / "checkpoints")
    for use in (network.load, run.load, lambda path: run.in_folder(config, path)):
        with pytest.raises(InputError, match=r"run/checkpoints is of another run"):
            use(tmp_path / "run")


def test_what_a_digest_covers():
    images, labels = drawn(6, 3, SHAPE, 0)

    def digest(images, labels):
        pair = images, labels
        dataset = from_arrays("mine", {"train": pair, "test": pair, "class_names": ["a", "b", "c"]})
        return contents.summary(dataset.train).digest()

    before = digest(images, labels)
    assert digest(images.copy(), labels.astype(np.int64)) == before
    one_pixel = images.copy()
    one_pixel[3, 2, 1, 0] ^= 1
    swapped = images.copy()
    swapped[0, 0, 0], swapped[0, 0, 1] = images[0, 0, 1], images[0, 0, 0]
    for other in (one_pixel, swapped, np.rot90(images, axes=(1, 2)), images[:, :, ::-1]):
        assert digest(other, labels) != before
    assert digest(*shifted(images, labels)) != before
    assert digest(images[::-1], labels[::-1]) != before  # the order of the images is the run's


def test_a_data_set_that_is_decoded_again_has_the_same_digest(tmp_path, config, monkeypatch):
    write(tmp_path)
    streamed = contents.summary(catalogue.open_dataset("mine", str(tmp_path)).train).digest()
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "other cache"))
    _, summary = contents.decoded(catalogue.open_dataset("mine", str(tmp_path)).train)
    assert summary.digest() == streamed


def test_a_file_that_is_replaced_at_the_same_time_and_size(config, tmp_path):
    """A copy that keeps the time of the original has another time of its own."""
    write(tmp_path)
    run.in_folder(config, tmp_path / "run")
    files = sorted((tmp_path / "mine").rglob("*.array_record*"))
    before = {file: file.stat() for file in files}
    other = tmp_path / "other"
    write(other, test=shifted)
    for file in files:
        copy = other / file.relative_to(tmp_path)
        assert copy.stat().st_size == before[file].st_size
        file.write_bytes(copy.read_bytes())
        os.utime(file, ns=(before[file].st_atime_ns, before[file].st_mtime_ns))
        assert file.stat().st_mtime_ns == before[file].st_mtime_ns
    with pytest.raises(InputError, match="it has other test images, or other labels of them"):
        run.dataset_of(network.load(tmp_path / "run"))
