"""Folders of pictures and files of arrays as data sets."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from small_data import drawn

from cnnlab import parts
from cnnlab.config import Recipe
from cnnlab.data import catalogue, contents
from cnnlab.data.pictures import folder
from cnnlab.errors import InputError

CLASSES = ("cat", "dog")


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def photos(tmp_path):
    return write(tmp_path / "photos", {"train": 12, "test": 6})


def write(root, counts, shape=(8, 9, 3), suffix="png"):
    """Writes root/SPLIT/CLASS/N.suffix; a split named "" is the folder itself."""
    for seed, (split, count) in enumerate(counts.items()):
        images, labels = drawn(count, 2, shape, seed)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            place = root / split / CLASSES[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0] if shape[-1] == 1 else image).save(
                place / f"{i:03d}.{suffix}"
            )
    return root


def as_set(images, labels):
    pairs = zip(images, labels, strict=True)
    return sorted((image.tobytes(), int(label)) for image, label in pairs)


def failure(call, *args, **kwargs):
    with pytest.raises(InputError) as error:
        call(*args, **kwargs)
    assert len(str(error.value).splitlines()) == 1, error.value
    return str(error.value)


@pytest.mark.parametrize("shape", [(8, 9, 3), (8, 9, 1)])
def test_every_picture_comes_back(shape, tmp_path):
    dataset = folder(write(tmp_path / "photos", {"train": 12, "test": 6}, shape))
    assert (dataset.name, dataset.class_names, dataset.mirror) == ("photos", CLASSES, shape[2] == 3)
    for split, count, seed in ((dataset.train, 12, 0), (dataset.test, 6, 1)):
        images, summary = contents.decoded(split)
        assert images.shape == (count, *shape)
        assert as_set(images, summary.labels) == as_set(*drawn(count, 2, shape, seed))


def test_it_is_prepared_once(photos, data_dir, monkeypatch):
    first = folder(photos)
    (prepared,) = data_dir.glob("folder/photos-*/1.0.0")
    written = (prepared / "dataset_info.json").stat().st_mtime_ns
    second = folder(photos)
    assert second.train.fingerprint == first.train.fingerprint
    assert (prepared / "dataset_info.json").stat().st_mtime_ns == written
    # A picture is replaced by another of the same size.
    picture = photos / "train" / "cat" / sorted(os.listdir(photos / "train" / "cat"))[0]
    before = contents.summary(first.train).digest()
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(picture)
    third = folder(photos)
    assert contents.summary(third.train).digest() != before
    assert len(list(data_dir.glob("folder/*"))) == 1 and not list(data_dir.glob(".*.preparing"))


def test_one_tree_with_a_share_to_test_on(tmp_path):
    photos = write(tmp_path / "photos", {"": 40})
    assert "--test-fraction 0.1 holds out a tenth" in failure(folder, photos)
    dataset = folder(photos, test_fraction=0.25)
    assert (len(dataset.train), len(dataset.test)) == (30, 10)
    both = [contents.decoded(split) for split in (dataset.train, dataset.test)]
    images = np.concatenate([images for images, _ in both])
    labels = np.concatenate([summary.labels for _, summary in both])
    assert as_set(images, labels) == as_set(*drawn(40, 2, (8, 9, 3), 0))


def test_pictures_of_many_sizes_and_kinds(tmp_path):
    photos = write(tmp_path / "photos", {"train": 6, "test": 4})
    write(photos, {"train": 6}, (5, 20, 1), suffix="jpg")
    write(photos, {"train": 6}, (30, 7, 3), suffix="webp")
    (photos / "train" / "cat" / "deeper").mkdir()
    Image.new("RGB", (9, 8)).save(photos / "train" / "cat" / "deeper" / "black.GIF")
    (photos / "train" / "cat" / ".hidden.png").write_bytes(b"nothing")
    (photos / "train" / "cat" / "notes.txt").write_text("nothing")
    (photos / ".DS_Store").write_bytes(b"nothing")
    assert "--image-size" in failure(folder, photos)
    dataset = folder(photos, image_size=6)
    images, _ = contents.decoded(dataset.train)
    assert images.shape == (19, 6, 6, 3)


def test_files_that_cannot_be_read(photos, data_dir):
    (photos / "train" / "cat" / "broken.png").write_bytes(b"no picture")
    (photos / "train" / "dog" / "scan.TIFF").write_bytes(b"II*\0")
    message = failure(folder, photos)
    for words in ("2 of 20 files", "train/cat/broken.png", "train/dog/scan.TIFF", "unreadable=0.1"):
        assert words in message
    assert not list(data_dir.glob("folder/*"))
    dataset = folder(photos, unreadable=0.1)
    assert len(dataset.train) == 12
    (report,) = data_dir.glob("folder/*/1.0.0/pictures.json")
    assert set(json.loads(report.read_text())["unreadable"]) == {
        "train/cat/broken.png", "train/dog/scan.TIFF",
    }  # fmt: skip
    assert "2 of 20 files" in failure(folder, photos)  # what was allowed once is not for ever


@pytest.mark.parametrize(("make", "message"), [
    (lambda root: None, "there is no folder"),
    (lambda root: root.mkdir(), "holds no pictures"),
    (lambda root: write(root, {"training": 3, "test": 3}), "holds test, training with folders"),
    (lambda root: write(root, {"train": 3, "old": 3}), "holds train and old; wanted are train and"),
    (lambda root: write(root, {"train": 12, "val": 12}), "--test-split val tests on that one"),
    (lambda root: write(root, {"train": 3}), "--test-fraction 0.1 holds out a tenth"),
    (lambda root: (root / "train" / "cat").mkdir(parents=True), "holds no pictures"),
])  # fmt: skip
def test_folders_of_another_form(make, message, tmp_path):
    make(tmp_path / "photos")
    assert message in failure(folder, tmp_path / "photos")


def test_which_folder_is_tested_on(tmp_path):
    photos = write(tmp_path / "photos", {"train": 12, "val": 6, "test": 4})
    assert len(folder(photos).test) == 4
    assert len(folder(photos, test_split="val").test) == 6
    assert "has a split test" in failure(folder, photos, test_fraction=0.1)


def test_a_killed_preparation_leaves_nothing_in_the_way(photos, data_dir):
    stage = data_dir / "half"
    stage.mkdir(parents=True)
    folder(photos)
    (prepared,) = data_dir.glob("folder/photos-*/1.0.0")
    (prepared / "pictures.json").unlink()  # as if it had been written by something else
    assert len(folder(photos).train) == 12


def test_the_path_is_found_from_any_directory(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos.parent)
    recipe = Recipe(dataset="folder,path=photos")
    part = parts.find("dataset", recipe.dataset)
    assert part.keywords == {"path": str(photos)}
    monkeypatch.chdir("/")
    assert len(parts.resolve(Recipe(dataset=str(part))).open_dataset(None, recipe).train) == 12


def test_settings_reach_it(tmp_path):
    photos = write(tmp_path / "photos", {"": 40})
    recipe = Recipe(dataset=f"folder,path={photos}", test_fraction=0.5, image_size=4)
    dataset = parts.resolve(recipe).open_dataset(None, recipe)
    assert (len(dataset.test), dataset.test.image_shape) == (20, (4, 4, 3))


# Arrays


@pytest.mark.parametrize("names", [
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
])  # fmt: skip
def test_arrays_of_numpy(names, tmp_path):
    train, test = drawn(20, 3, (4, 4, 3), 0), drawn(9, 3, (4, 4, 3), 1)
    arrays = train[0], train[1][:, None], test[0], test[1]  # Keras's labels have two axes
    np.savez(
        tmp_path / "a.npz", **dict(zip(names, arrays, strict=True)), class_names=["x", "y", "z"]
    )
    recipe = Recipe(dataset=f"npz,path={tmp_path / 'a.npz'}")
    dataset = parts.resolve(recipe).open_dataset(None, recipe)
    assert (dataset.name, dataset.class_names) == ("npz", ("x", "y", "z"))
    np.testing.assert_array_equal(dataset.train.read(range(20))["image"], train[0])
    np.testing.assert_array_equal(dataset.test.read(range(9))["label"], test[1])


def test_arrays_without_a_test_part(tmp_path):
    images, labels = drawn(20, 2, (4, 4, 3), 0)
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=labels)
    recipe = Recipe(dataset=f"npz,path={tmp_path / 'a.npz'}")
    message = failure(parts.resolve(recipe).open_dataset, None, recipe)
    assert "no test" in message and "--test-fraction" in message
    recipe = Recipe(dataset=recipe.dataset, test_fraction=0.25)
    dataset = parts.resolve(recipe).open_dataset(None, recipe)
    assert (len(dataset.train), len(dataset.test)) == (15, 5)


def one_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


@pytest.mark.parametrize(("make", "message"), [
    (lambda path: None, "cannot be read as an .npz file"),
    (lambda path: path.write_bytes(b"PK"), "cannot be read as an .npz file"),
    (one_array, "is an .npy file, of one array"),
    (lambda path: np.savez(path, pictures=np.zeros(3)), "holds no train_images and train_labels"),
    (lambda path: np.savez(path, x_train=np.zeros(3), train_images=np.ones(3)), "under two names"),
    (lambda path: np.savez(path, train_images=np.zeros((2, 4, 4)), train_labels=[0, 1]), "uint8"),
    (lambda path: np.savez(path, train_images=np.array([{}]), train_labels=[0]), "cannot be read"),
])  # fmt: skip
def test_files_of_other_arrays(make, message, tmp_path):
    make(tmp_path / "a.npz")
    recipe = Recipe(dataset=f"npz,path={tmp_path / 'a.npz'}", test_fraction=0.5)
    assert message in failure(parts.resolve(recipe).open_dataset, None, recipe)


def test_a_path_with_signs_of_the_grammar(tmp_path):
    photos = write(tmp_path / "a+b, c", {"train": 12, "test": 6})
    recipe = Recipe(dataset=f"folder,path='{photos}'")
    assert len(parts.resolve(recipe).open_dataset(None, recipe).train) == 12
    shutil.rmtree(photos)
    assert catalogue.DATASETS["folder"] is folder


def test_classes_that_are_not_taught_are_refused(tmp_path):
    photos = write(tmp_path / "photos", {"train": 12, "test": 6})
    (photos / "test" / "cat").rename(photos / "test" / "Cat")
    assert "train has no pictures of Cat, only of cat, dog" in failure(folder, photos)


def test_hidden_folders_and_links_to_nothing(tmp_path):
    photos = write(tmp_path / "photos", {"train": 12, "test": 6})
    hidden = photos / "train" / "cat" / ".checkpoints"
    hidden.mkdir()
    Image.new("RGB", (9, 8)).save(hidden / "copy.png")
    assert len(folder(photos).train) == 12
    (photos / "train" / "cat" / "gone.png").symlink_to("nowhere")
    assert "1 of 19 files cannot be read: train/cat/gone.png" in failure(folder, photos)
    assert "unreadable=0.06" in failure(folder, photos)
    assert len(folder(photos, unreadable=0.06).train) == 12


def test_labels_of_several_columns_are_refused(tmp_path):
    images, labels = drawn(12, 3, (8, 8, 3), 0)
    onehot = np.eye(3, dtype=np.int64)[labels]
    path = tmp_path / "onehot.npz"
    np.savez(path, x_train=images, y_train=onehot, x_test=images, y_test=onehot)
    recipe = Recipe(dataset=f"npz,path={path}")
    message = failure(parts.resolve(recipe).open_dataset, None, recipe)
    assert "labels must be int[12], one for each image, got int64[12, 3]" in message


@pytest.mark.parametrize("name", ["do\ng", "dog ", " ", "d\x1bog", "d\udcffog"])
def test_names_of_classes_that_are_no_line_of_text(name, photos):
    """TFDS would read other classes from its file of names."""
    (photos / "train" / "dog").rename(photos / "train" / name)
    assert f"the class {name!r} is not printable text" in failure(folder, photos)


def test_files_without_a_suffix_and_folders_behind_links(photos, tmp_path):
    whole = folder(photos)
    linked, place = tmp_path / "linked", photos / "train" / "cat"
    for number, file in enumerate(sorted(place.iterdir())):
        file.rename(place / f"{file.stem}{['', '.jfif', '.PNG'][number % 3]}")
    (place / "notes.txt").write_text("no picture")
    shutil.move(place, linked)
    place.symlink_to(linked)  # a class
    (linked / "more").mkdir()
    (linked / "more" / "back").symlink_to(linked)  # a circle
    inner = tmp_path / "inner"
    shutil.move(photos / "train" / "dog", inner)
    (photos / "train" / "dog").mkdir()
    (photos / "train" / "dog" / "sub").symlink_to(inner)
    assert as_set(*read(folder(photos).train)) == as_set(*read(whole.train))


def read(split):
    images, summary = contents.decoded(split)
    return images, summary.labels


def test_a_class_without_pictures(photos):
    (photos / "train" / "owl").mkdir()
    (photos / "train" / "owl" / "notes.txt").write_text("none yet")
    assert "holds no pictures of owl (" in failure(folder, photos)


def test_what_is_no_file_is_listed_and_not_waited_for(photos):
    os.mkfifo(photos / "train" / "cat" / "pipe.png")
    assert "1 of 19 files cannot be read: train/cat/pipe.png (not a regular" in failure(
        folder, photos
    )


def test_a_name_that_is_no_text(photos):
    picture = min((photos / "train" / "cat").iterdir())
    picture.rename(picture.with_name("\udcff.png"))
    assert "(its name is not UTF-8)" in failure(folder, photos)
    assert len(folder(photos, unreadable=0.1).train) == 11
