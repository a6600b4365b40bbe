"""Labels that people gave: those of the published file, of which nothing is run; and every reason
to refuse them.
"""

import dataclasses
import functools
import hashlib
import io
import pathlib
import pickle

import numpy as np
import pytest
import requests
from small_data import drawn, write_dataset
from web import serving

from cnnlab import parts
from cnnlab.config import Config
from cnnlab.console import Console
from cnnlab.data import catalogue, classes, corruptions, human_labels
from cnnlab.data.dataset import from_arrays
from cnnlab.errors import InputError
from cnnlab.training import experiment

N = 60
RIGHT = np.random.default_rng(0).integers(0, 10, N)


def failure(call, *args) -> str:
    with pytest.raises(InputError) as error:
        call(*args)
    assert len(str(error.value).splitlines()) == 1, error.value
    return str(error.value)


def wrong(labels, kind) -> np.ndarray:
    """The labels of a kind in a made file."""
    seed = list(human_labels.PUBLISHED["cifar10"].keys.values()).index(kind)
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(labels)) < 0.4, rng.integers(0, 10, len(labels)), labels)


def saved(held: dict) -> bytes:
    """A dictionary as NumPy saved it when the files were made."""
    array = np.array(held, object)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    body = pickle.dumps(array, protocol=3)
    return header.getvalue() + body.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def file_of(labels) -> bytes:
    """A file such as the one of CIFAR-10: a pickled dictionary of lists of NumPy's numbers."""
    kinds = human_labels.PUBLISHED["cifar10"].keys.values()
    return saved(
        {"clean_label": list(labels)} | {kind: list(wrong(labels, kind)) for kind in kinds}
    )


@pytest.fixture
def published(monkeypatch, tmp_path):
    """`published(content, name)` is what has to be in the file of a data set; the path by hand."""
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "cache"))

    def publish(content: bytes, name: str = "cifar10") -> pathlib.Path:
        changes = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        known = dataclasses.replace(human_labels.PUBLISHED[name], **changes)
        monkeypatch.setitem(human_labels.PUBLISHED, name, known)
        folder = tmp_path / "downloads" / "manual"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / known.file

    return publish


@pytest.fixture
def no_network(monkeypatch):
    def get(*_, timeout, **__):
        assert timeout == (10, 60)
        raise requests.ConnectionError("Failed to resolve 'host'\n and more")

    monkeypatch.setattr(requests.Session, "get", get)


def dataset(name="cifar10", labels=RIGHT):
    images = np.zeros((len(labels), 2, 2, 3), np.uint8)
    names = [str(k) for k in range(10)]
    splits = {"train": (images, labels), "test": (images, labels), "class_names": names}
    made = from_arrays(name, splits)
    right = np.asarray(labels, np.int32)
    return dataclasses.replace(made, labels=right, targets=right, positions=np.arange(len(labels)))


@pytest.mark.parametrize("kind", human_labels.PUBLISHED["cifar10"].keys)
def test_the_labels_of_the_file_are_taught(kind, published, no_network, tmp_path):
    place = published(file_of(RIGHT))
    place.write_bytes(file_of(RIGHT))
    before = dataset()
    after = corruptions.human_noise(before, 3, kind, str(tmp_path))
    wanted = wrong(RIGHT, human_labels.PUBLISHED["cifar10"].keys[kind])
    np.testing.assert_array_equal(after.targets, wanted)
    assert after.targets.dtype == np.int32 and after.labels is before.labels
    place.unlink()  # it is in the cache now; the seed decides nothing
    again = corruptions.human_noise(before, 4, kind, str(tmp_path))
    np.testing.assert_array_equal(again.targets, wanted)


def test_the_only_kind_need_not_be_named(published, tmp_path):
    content = saved({"clean_label": list(RIGHT), "noise_label": list((RIGHT + 1) % 10)})
    published(content, "cifar100").write_bytes(content)
    for kind in (None, "noisy"):
        after = corruptions.human_noise(dataset("cifar100"), 0, kind, str(tmp_path))
        np.testing.assert_array_equal(after.targets, (RIGHT + 1) % 10)


@pytest.mark.parametrize(
    ("name", "kind", "labels", "said"),
    [
        ("cifar10", None, RIGHT, "a kind, one of worse, aggregate, random1, random2, random3"),
        ("cifar10", "worst", RIGHT, "'worst': did you mean 'worse'?"),
        ("cifar100", "worse", RIGHT, "kind of human noise of cifar100 'worse'. Known: noisy"),
        ("mnist", "worse", RIGHT, "that people labelled, cifar10 and cifar100; mnist is not one"),
        ("cifar10", "worse", RIGHT[:-1], "training labels of cifar10 are not those of the images"),
        ("cifar10", "worse", np.roll(RIGHT, 1), "in the order of TFDS; it takes all classes"),
    ],
)
def test_what_they_are_not_for(name, kind, labels, said, published, no_network, tmp_path):
    published(file_of(RIGHT)).write_bytes(file_of(RIGHT))
    made = dataset(name, labels)
    assert said in failure(corruptions.human_noise, made, 0, kind, str(tmp_path))


def test_a_run_takes_them_from_its_data_directory(published, no_network, tmp_path, monkeypatch):
    splits = {"train": drawn(N, 10, (8, 8, 3), 0), "test": drawn(20, 10, (8, 8, 3), 1)}
    write_dataset(tmp_path, "cifar10", splits, 10, (8, 8, 3))
    right = classes.labels(catalogue.open_dataset("cifar10:1.0.0", str(tmp_path)).train)
    published(file_of(right)).write_bytes(file_of(right))
    config = Config.of(
        dataset="cifar10:1.0.0+human_noise,kind=worse", data_dir=str(tmp_path), batch_size=20,
        validation=0.0, devices=1,
    )  # fmt: skip
    resolved = parts.resolve(config.recipe)
    opened = resolved.open_dataset(str(tmp_path), config.recipe)
    read = experiment.read_dataset(config.machine, opened, Console("off"))
    data = experiment.training_data(config, resolved, opened, read)
    assert data.facts.class_counts == tuple(np.bincount(right, minlength=10))
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "another"))  # the file is read again
    items = list(data.feed(config, resolved, 5, np.arange(20)).items(0, N // 20))
    taught = wrong(right, "worse_label")
    for item in items:
        np.testing.assert_array_equal(item["label"], taught[item["image"]])
    assert np.mean(taught != right) > 0.2


def test_a_file_behind_a_url(published, no_network):
    import fsspec

    file = published(file_of(RIGHT)).name
    fsspec.filesystem("memory").pipe(f"/labels/downloads/manual/{file}", file_of(RIGHT))
    after = corruptions.human_noise(dataset(), 0, "worse", "memory://labels")
    np.testing.assert_array_equal(after.targets, wrong(RIGHT, "worse_label"))


class Running:
    """What makes a pickle run a function."""

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("touched"),)


def test_another_file_is_not_opened(published, no_network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = published(file_of(RIGHT))
    place.write_bytes(saved({"clean_label": Running()}))
    monkeypatch.setattr(human_labels, "unpickled", lambda _: pytest.fail("unpickled"))
    message = failure(corruptions.human_noise, dataset(), 0, "worse", str(tmp_path))
    known = human_labels.PUBLISHED["cifar10"]
    for words in (f"{place} has a wrong checksum", f"{known.size} bytes", known.sha256, known.url):
        assert words in message
    assert not pathlib.Path("touched").exists()


def test_what_a_pickle_may_name(tmp_path, monkeypatch):
    """Numbers of NumPy in the spelling of any version, and nothing that could be called."""
    monkeypatch.chdir(tmp_path)
    content = file_of(RIGHT)
    assert b"numpy.core.multiarray" in content
    later = content.replace(b"numpy.core.multiarray", b"numpy._core.multiarray")
    for spelling in (content, later):
        held = human_labels.unpickled(spelling)
        np.testing.assert_array_equal(held["worse_label"], wrong(RIGHT, "worse_label"))
        assert set(held) == {"clean_label", *human_labels.PUBLISHED["cifar10"].keys.values()}
    for strange in (Running(), functools.partial(print), dataset):
        with pytest.raises(pickle.UnpicklingError, match="is no array of numbers"):
            human_labels.unpickled(saved({"clean_label": strange}))
    assert not pathlib.Path("touched").exists()


def test_without_a_network_it_says_what_to_place_where(published, no_network, tmp_path):
    place = published(file_of(RIGHT))
    message = failure(corruptions.human_noise, dataset(), 0, "worse", str(tmp_path))
    for words in ("human_noise: cannot download from", human_labels.COMMIT, "Failed to resolve"):
        assert words in message
    assert f"{place.name}, place in the folder {place.parent} under the same name" in message


@pytest.fixture
def served(monkeypatch):
    """Files of a web server here, by path, in place of those of the repository."""
    files: dict[str, bytes] = {}

    with serving(files, monkeypatch) as base:
        monkeypatch.setattr(human_labels, "REPOSITORY", base)
        yield files


def test_it_is_downloaded_once(published, served, tmp_path):
    place = published(file_of(RIGHT))
    path = f"{human_labels.COMMIT}/data/{place.name}"
    assert "HTTP code: 404" in failure(
        corruptions.human_noise, dataset(), 0, "worse", str(tmp_path)
    )
    served[path] = b"a login page"
    message = failure(corruptions.human_noise, dataset(), 0, "worse", str(tmp_path))
    assert "the download has a wrong checksum" in message and f"place it as {place}" in message
    served[path] = file_of(RIGHT)
    for _ in range(2):
        after = corruptions.human_noise(dataset(), 0, "worse", str(tmp_path))
        np.testing.assert_array_equal(after.targets, wrong(RIGHT, "worse_label"))
        served.clear()
    assert not place.exists()


def test_the_published_files():
    """As git has them at that commit, under the blobs 2940b207 and 4429c553."""
    assert {p.file: p.size for p in human_labels.PUBLISHED.values()} == {
        "CIFAR-10_human_ordered.npy": 9_300_422,
        "CIFAR-100_human_ordered.npy": 3_099_908,
    }
    for published in human_labels.PUBLISHED.values():
        assert len(bytes.fromhex(published.sha256)) == 32
        assert published.url.endswith(f"/cifar-10-100n/{human_labels.COMMIT}/data/{published.file}")


def test_noise_that_would_be_lost(tmp_path):
    noisy = corruptions.label_noise(dataset(), 0, 0.5)
    message = failure(corruptions.human_noise, noisy, 0, "worse", str(tmp_path))
    assert "human_noise replaces all labels" in message
