"""Further test sets: opened for testing only, refused before training, tested at the end."""

import json
import re

import jax
import numpy as np
import pytest
import user_parts
from PIL import Image
from small_data import drawn, write_dataset

import cnnlab
from cnnlab import files, parts
from cnnlab.config import Config
from cnnlab.console import Console
from cnnlab.data import catalogue, distortions
from cnnlab.data.dataset import from_arrays
from cnnlab.errors import InputError
from cnnlab.training import experiment, program, run, run_folder, testing

SHAPE = (8, 8, 3)
NAMES = ["class 0", "class 1", "class 2"]
NOISE = "test+gaussian_noise,severity=5"
BLUR = "test+gaussian_blur,severity=1"
FIELDS = {
    "dataset": "tiny", "model": "softmax_regression", "epochs": 1, "batch_size": 20,
    "augment": "none", "optimizer": "sgd", "schedule": "constant", "devices": 1, "validation": 0.0,
    "tensorboard": False,
}  # fmt: skip
TINY = Config.of(**FIELDS)
CALL = {name: value for name, value in FIELDS.items() if name not in ("dataset", "model")}


@pytest.fixture(autouse=True)
def data(tfds_root):
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def root(tfds_root, tmp_path, monkeypatch):
    """A data directory with `tiny`, and a cache of its own."""
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    (tmp_path / "tiny").symlink_to(tfds_root / "tiny")
    return tmp_path


def opened(*texts, **changes):
    """The splits of test sets of a run on `tiny`."""
    recipe = TINY.replace(**changes).recipe
    found = parts.resolve(recipe, test_sets=texts)
    dataset = found.open_dataset(None, recipe)
    return testing.open_sets(found, recipe, None, dataset)


def refusal(*texts, **changes):
    with pytest.raises(InputError) as error:
        testing.digests(opened(*texts, **changes), Console("off"))
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def write_pictures(root, counts):
    """Writes root/SPLIT/CLASS/N.png, for each split as many of each of two classes as asked."""
    for split, count in counts.items():
        for label in ("cat", "dog"):
            place = root / split / label
            place.mkdir(parents=True)
            for number, image in enumerate(drawn(count, 2, SHAPE, seed=count)[0]):
                Image.fromarray(image).save(place / f"{number}.png")


def read(split):
    return split.read(range(len(split)))


def as_set(images, labels):
    return sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


# Opening


def test_the_own_test_split(root):
    own = catalogue.open_dataset("tiny").test
    assert opened() == opened("test") == {}
    splits = opened("test", NOISE, "tiny+contrast,severity=5")
    assert [*splits] == [NOISE, "tiny+contrast,severity=5"]
    rng = np.random.default_rng
    assert all(np.array_equal(read(s)["label"], read(own)["label"]) for s in splits.values())
    flat = [distortions.contrast(image, rng(), 5) for image in read(own)["image"]]
    np.testing.assert_array_equal(read(splits["tiny+contrast,severity=5"])["image"], flat)


def test_a_prepared_set_with_nothing_but_a_test_split(root):
    images, labels = drawn(30, 3, SHAPE, seed=5)
    write_dataset(root, "tiny_v6", {"test": (images, labels)}, 3, SHAPE)
    for _ in range(2):  # the second time from the cache
        split = opened("tiny_v6")["tiny_v6"]
        batch = read(split)
        assert as_set(batch["image"], batch["label"]) == as_set(images, labels)  # TFDS shuffles
    with pytest.raises(InputError, match="has no split train, only test"):
        catalogue.open_dataset("tiny_v6")  # what is trained on needs one, also after that


def test_another_split_by_name(root):
    splits = {name: drawn(count, 3, SHAPE, count) for name, count in [("train", 9), ("val", 12)]}
    write_dataset(root, "others", splits, 3, SHAPE)
    found = opened("others,test_split=val", "others,test_split=train", "others,test_fraction=0.4")
    assert [len(split) for split in found.values()] == [12, 9, 4]  # of 9, by class
    message = refusal("others")
    assert message == (
        "test set others: others has no split test, only train, val: test_split val tests on that "
        "one, test_fraction 0.1 holds out a tenth of train"
    )
    with pytest.raises(InputError, match="--test-split train would test on what is trained on"):
        catalogue.open_dataset("others", test_split="train")
    write_dataset(root, "alone", {"train": splits["train"]}, 3, SHAPE)
    assert "test_split train tests on that one" in refusal("alone")
    assert len(opened("alone,test_split=train")["alone,test_split=train"]) == 9
    # The run's settings are of its own data set, under whichever name.
    flat = "others,mirror=none+contrast,severity=5"
    assert len(opened(flat, dataset="others", test_split="val")[flat]) == 12
    tested = opened("others,test_split=val", dataset="alone", test_fraction=0.4)
    assert [len(split) for split in tested.values()] == [12]


def test_functions_that_return_arrays(root):
    own = {"dataset": "user_parts.blocks"}
    night = "user_parts.night,count=30"
    splits = opened(night, f"{night}+user_parts.inverted", **own)
    images, labels = user_parts.night(count=30)["test"]
    np.testing.assert_array_equal(read(splits[night])["image"], images)
    np.testing.assert_array_equal(read(splits[night])["label"], labels)
    np.testing.assert_array_equal(read([*splits.values()][1])["image"], 255 - images)
    with pytest.raises(InputError, match="has no train"):
        parts.resolve(Config.of(dataset=night).recipe).open_dataset(None, Config().recipe)


def test_pictures_and_files_of_arrays(root):
    """A folder of classes, or one that holds nothing but test."""
    for name, splits in (("flat", {"": 4}), ("divided", {"test": 5})):
        write_pictures(root / name, splits)
    own = {"dataset": f"folder,path={root}/both"}
    write_pictures(root / "both", {"train": 30, "test": 6})
    flat, divided = (f"folder,path={root}/{name}" for name in ("flat", "divided"))
    with pytest.raises(InputError) as error:  # opened as what it is not, and prepared as that
        catalogue.folder(root / "divided")
    assert "holds test with folders inside" in str(error.value)
    splits = opened(flat, divided, **own)
    counts = [np.bincount(read(split)["label"]).tolist() for split in splits.values()]
    assert counts == [[4, 4], [5, 5]]
    np.savez(root / "night.npz", test_images=drawn(7, 3, SHAPE, 0)[0], test_labels=np.arange(7) % 3)
    assert len(opened(f"npz,path={root}/night.npz")[f"npz,path={root}/night.npz"]) == 7


def test_images_are_scaled_where_the_run_s_are(root):
    write_dataset(root, "large", {"test": drawn(5, 3, (12, 12, 3), 0)}, 3, (12, 12, 3))
    assert refusal("large") == (
        "test set large: it has images of (12, 12, 3), the run is trained on (8, 8, 3); "
        "large,image_size=8 scales them"
    )
    assert read(opened("large,image_size=8")["large,image_size=8"])["image"].shape == (5, *SHAPE)
    assert read(opened("large", image_size=6)["large"])["image"].shape == (5, 6, 6, 3)
    night = "user_parts.night,count=3,size=12"
    own = {"dataset": "user_parts.blocks", "image_size": 6}
    assert read(opened(night, **own)[night])["image"].shape == (3, 6, 6, 3)


# Refused before training


def classes(count, **arrays):
    images, labels = drawn(12, count, SHAPE, 0)
    return lambda: {"test": (images, labels), **arrays}


@pytest.mark.parametrize(("arrays", "message"), [
    (classes(3, class_names=["class 0", "class 2", "class 3"]),
     "test set mine: it has other classes: the run is trained on 'class 1', which is none of class "
     "0, class 2, class 3"),
    (classes(2, class_names=["class 0", "class 1"]),
     "test set mine: it has 2 classes, the run is trained on 3"),
    (classes(2, class_names=["0", "1"]), "it has 2 classes, the run is trained on 3"),
    (classes(5), r"mine test: labels must lie in [0, 3), got 0..4"),
    (lambda: {"test": drawn(12, 3, (8, 8, 1), 0)},
     "test set mine: it has images of (8, 8, 1), the run is trained on (8, 8, 3)"),
    (lambda: {"train": drawn(12, 3, SHAPE, 0)}, "test set mine: data set mine has no test"),
    (lambda: {"test": drawn(12, 3, SHAPE, 0), "names": []}, "['names'] is not used"),
    (lambda: 3, "must return a Dataset or a dict of arrays, got int"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_before_training(arrays, message, root, monkeypatch):
    monkeypatch.setattr(program, "build", None)  # nothing is compiled
    with pytest.raises(InputError, match=re.escape(message)) as error:
        cnnlab.train("tiny", test_sets={"mine": arrays}, **CALL)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("arrays", [
    classes(3), classes(2), classes(3, class_names=["0", "1", "2"]),
    classes(3, class_names=["1", "2", "3"]), classes(3, class_names=NAMES),
])  # fmt: skip
def test_classes_without_names_are_numbers(arrays, root):
    """Labels alone may lack the last classes."""
    found = parts.FurtherSet("mine", parts.part_of("dataset", arrays))
    recipe = TINY.recipe
    own = parts.resolve(recipe)
    other = testing.open_other(found, own, recipe, None, NAMES, SHAPE)
    assert other.class_names == tuple(NAMES) and len(other.test) == 12 and len(other.train) == 0


@pytest.mark.parametrize(("text", "message"), [
    ("tinny", "test set tinny: unknown data set 'tinny': did you mean 'tiny'"),
    ("user_parts.nightt", "unknown data set in user_parts 'nightt': did you mean 'night'"),
    ("test+gausian_noise,severity=1", "unknown distortion 'gausian_noise'"),
    ("test+label_noise,rate=0.1", "unknown distortion 'label_noise'"),
    ("test+contrast", "distortion contrast needs severity"),
    ("test,a=1", "data set test has no hyperparameter 'a'"),
    ("test+user_parts.cropped", "distortion user_parts.cropped must return an image"),
    ("test+user_parts.fails_on_some", "distortion user_parts.fails_on_some: KeyError"),
    ("tiny,test_split=extra", "tiny has no split extra, only test, train"),
    ("tiny,test_fraction=0.5", "tiny has a split test to test on: test_fraction has no effect"),
    ("tiny,image_key=picture", "unknown image feature of tiny 'picture'"),
])  # fmt: skip
def test_what_is_not_there(text, message, root):
    assert message in refusal(text)


def test_a_set_that_is_named_twice(root):
    message = refusal(NOISE, "test+gaussian_noise,severity=5")
    assert "names one set twice" in message
    assert "names one set twice" in refusal("npz,path=a.npz", "npz,path=./a.npz")
    with pytest.raises(InputError, match="two sets have the name tiny"):
        cnnlab.train("tiny", test_sets=["tiny", "tiny"])
    with pytest.raises(InputError, match="two sets have the name test"):
        cnnlab.train("tiny", test_sets={"test": user_parts.night()})
    with pytest.raises(InputError, match=r"a set without a name; give \{name: set\}"):
        cnnlab.train("tiny", test_sets=[user_parts.night()])


def test_an_image_that_is_none_is_found_before_training(root, monkeypatch):
    images, labels = drawn(20, 3, SHAPE, 1)
    files = [b"no picture" if i == 7 else image for i, image in enumerate(images)]
    write_dataset(root, "damaged", {"test": (files, labels)}, 3, SHAPE)
    monkeypatch.setattr(program, "build", None)
    for text in ("damaged", "damaged+contrast,severity=1"):
        with pytest.raises(InputError, match=r"damaged 1.0.0 test, image \d+ cannot be read"):
            experiment.build(TINY.replace(test_sets=(text,)))


# Tested at the end


def accuracy(network, images, labels):
    return np.mean(np.argmax(network.logits(images), -1) == labels)


def test_the_metrics_are_those_of_the_distorted_images(root):
    """And the training and test are what they are without further sets."""
    plain = cnnlab.train("tiny", "softmax_regression", **CALL)
    ran = cnnlab.train(
        "tiny", "softmax_regression", test_sets=["test", NOISE, "tiny+user_parts.inverted"], **CALL
    )
    assert (ran.test, plain.test_sets) == (plain.test, {})
    jax.tree.map(np.testing.assert_array_equal, plain.network.variables, ran.network.variables)
    batch = read(catalogue.open_dataset("tiny").test)
    noisy = read(opened(NOISE)[NOISE])["image"]
    images = {NOISE: noisy, "tiny+user_parts.inverted": 255 - batch["image"]}
    assert [*ran.test_sets] == [*images] == [*ran.network.facts.test_sets]
    for name, shown in images.items():
        result = ran.test_sets[name]
        assert result["count"] == 50
        assert result["accuracy"] == pytest.approx(accuracy(ran.network, shown, batch["label"]))
        assert result == cnnlab.evaluate(ran, name)
    assert ran.test_sets["tiny+user_parts.inverted"]["accuracy"] < ran.test["accuracy"] - 0.2


@pytest.mark.parametrize(
    "changes",
    [{"devices": 4}, {"batch_size": 7}, {"feed": "streaming"}, {"test_views": "mirror"}],
    ids=str,
)
def test_neither_devices_nor_batches_change_what_is_tested(changes, root):
    """The same digests; and the metrics of untrained weights, but for views."""
    base = TINY.replace(test_sets=(NOISE, "user_parts.night"), dataset="user_parts.blocks")
    before, after = experiment.build(base), experiment.build(base.replace(**changes))
    assert before.facts.test_sets == after.facts.test_sets
    assert before.facts.test_sets.keys() == {NOISE, "user_parts.night"}
    results = []
    for built in (before, after):
        state = built.start().state
        splits = built.data.test_sets.values()
        results.append([built.test(state, split=split)[0]["nll"] for split in splits])
    if "test_views" in changes:
        assert np.all(np.abs(np.subtract(*results)) > 1e-6)
    else:
        np.testing.assert_allclose(*results, rtol=1e-5)


def test_a_run_folder(root):
    """Sets are added to a finished run and dropped; it is not trained again."""
    config = TINY.replace(workdir=str(root / "run"))
    first = run.in_folder(config, root / "run")
    assert run_folder.check(root / "run", config)
    assert (first.summary["test_sets"], first.network.facts.test_sets) == ({}, {})
    more = config.replace(test_sets=("test", NOISE))
    assert run_folder.check(root / "run", more) is None
    saved = (root / "run" / "metrics.jsonl").read_text()
    second = run.in_folder(more, root / "run")
    assert (second.test, second.history) == (first.test, first.history)
    assert (root / "run" / "metrics.jsonl").read_text() == saved
    assert [*second.summary["test_sets"]] == [NOISE]
    for finished in (config, more):  # nothing to do for either
        for quick in (True, False):
            assert run_folder.check(root / "run", finished, quick)
    third = run.in_folder(config.replace(test_sets=(BLUR,)), root / "run")
    assert third.test_sets.keys() == {NOISE, BLUR}  # of the same weights
    assert third.test_sets[NOISE] == second.test_sets[NOISE]
    assert run_folder.check(root / "run", config.replace(test_sets=(NOISE, BLUR)))
    second = third
    facts = json.loads((root / "run" / "data.json").read_text())
    assert [*facts["test_sets"]] == [NOISE, BLUR] and len(facts["test_sets"][NOISE]) == 64
    loaded = cnnlab.load(root / "run")
    assert loaded.test_sets == second.test_sets == second.summary["test_sets"]
    assert loaded.test_sets[NOISE]["accuracy"] == cnnlab.evaluate(root / "run", NOISE)["accuracy"]
    del facts["test_sets"]  # as an earlier version wrote it
    (root / "run" / "data.json").write_text(json.dumps(facts))
    files.reseal(root / "run" / "data.json")
    assert cnnlab.load(root / "run").network.facts.test_sets == {}
    summary = json.loads((root / "run" / "summary.json").read_text())
    del summary["test_sets"]
    (root / "run" / "summary.json").write_text(json.dumps(summary))
    files.reseal(root / "run" / "summary.json")
    assert cnnlab.load(root / "run").test_sets == {}


def test_config_json_names_sets_from_anywhere(root, monkeypatch):
    monkeypatch.chdir(root)
    config = Config.of(test_sets=("test", "npz,path=night.npz+contrast,severity=2"))
    stored = run_folder.stored_form(config)["test_sets"]
    assert stored == [f"npz,path={root}/night.npz+contrast,severity=2"]
    assert parts.further_sets(stored)[0].form(parts.Part.resolved) == stored[0]


def test_a_test_set_that_has_changed_is_noticed(root):
    write_dataset(root, "night", {"test": drawn(20, 3, SHAPE, 1)}, 3, SHAPE)
    night = "night+contrast,severity=1"
    run.in_folder(TINY.replace(test_sets=("night", night)), root / "run")
    for name in ("night", night):
        assert cnnlab.evaluate(root / "run", name)["count"] == 20
    write_dataset(root / "other", "night", {"test": drawn(20, 3, SHAPE, 2)}, 3, SHAPE)
    (root / "other" / "tiny").symlink_to(root / "tiny")
    for name in ("night", night):
        with pytest.raises(InputError, match=re.escape(f"test set {name} is not the one that")):
            cnnlab.evaluate(root / "run", name, data_dir=str(root / "other"))
    changed = TINY.replace(data_dir=str(root / "other"), test_sets=("night",), epochs=3)
    with pytest.raises(InputError, match=r"test set night is not the one .*run was begun with"):
        run.in_folder(changed, root / "run")
    other = "night+contrast,severity=2"  # it was not tested on this one
    assert cnnlab.evaluate(root / "run", other, data_dir=str(root / "other"))["count"] == 20


@pytest.mark.slow
def test_averaged_weights_are_tested(root):
    settings = CALL | {"average": "swa,start=0.5", "test_sets": [NOISE], "epochs": 2}
    ran = cnnlab.train("tiny", "softmax_regression", **settings)
    images = read(opened(NOISE)[NOISE])
    assert ran.test_sets[NOISE]["accuracy"] == pytest.approx(
        accuracy(ran.network, images["image"], images["label"])
    )
    assert ran.test_sets[NOISE] == cnnlab.evaluate(ran, NOISE)
    assert ran.test_last != ran.test


# From Python


def test_objects(root):
    """Arrays, data sets and functions, in memory and in a folder."""
    images, labels = drawn(16, 3, SHAPE, 3)
    tiny = catalogue.open_dataset("tiny")
    # A data set of the name of the run's own is not taken for that.
    twin = from_arrays("tiny", {"test": (images, labels), "class_names": NAMES}, test_only=True)
    sets = {"arrays": {"test": (images, labels)}, "twin": twin, "noisy": NOISE}
    ran = cnnlab.train(tiny, "softmax_regression", test_sets=sets, **CALL)
    assert [*ran.test_sets] == ["arrays", "twin", "noisy"]
    assert ran.test_sets["arrays"] == ran.test_sets["twin"] != ran.test
    assert ran.test_sets["arrays"]["count"] == 16 and ran.test_sets["noisy"]["count"] == 50
    for data in (sets["arrays"], twin, lambda: sets["arrays"]):
        assert cnnlab.evaluate(ran, data) == ran.test_sets["arrays"]
    assert cnnlab.evaluate(ran, "test") == cnnlab.evaluate(ran)
    listed = cnnlab.train(
        tiny, "softmax_regression", test_sets=[twin], workdir=root / "run", **CALL
    )
    assert listed.test_sets == {"tiny": ran.test_sets["twin"]}
    assert cnnlab.load(root / "run").test_sets == listed.test_sets
    again = {"tiny": {"test": (images[:9], labels[:9])}}  # other images, which have no name
    ended = cnnlab.train(
        "tiny", "softmax_regression", test_sets=again, workdir=root / "run", **CALL
    )
    assert (ended.test, ended.test_sets["tiny"]["count"]) == (listed.test, 9)
    one = cnnlab.train(tiny, "softmax_regression", test_sets=NOISE, **CALL)
    assert one.test_sets == {NOISE: ran.test_sets["noisy"]}


def test_a_set_of_all_classes_after_a_choice_of_some(root):
    write_dataset(root, "later", {"test": drawn(30, 3, SHAPE, seed=9)}, 3, SHAPE)
    splits = opened("later", "test+gaussian_noise,severity=1", dataset="tiny+subset,classes=[2,0]")
    later = catalogue.open_dataset("later", str(root), test_only=True).test
    labels = later.read(range(30))["label"]
    assert len(splits["later"]) == np.sum(labels != 1)
    kept = splits["later"].read(range(len(splits["later"])))
    np.testing.assert_array_equal(kept["label"], (labels == 0)[labels != 1].astype(np.int32))
    np.testing.assert_array_equal(kept["image"], later.read(np.flatnonzero(labels != 1))["image"])


def test_classes_are_matched_by_their_names(root):
    images, labels = drawn(12, 3, SHAPE, 0)
    order = ["class 2", "class 0", "class 1"]
    arrays = {"test": (images, labels), "class_names": order}
    found = parts.resolve(TINY.recipe)
    other = parts.FurtherSet("mine", parts.part_of("dataset", lambda: arrays))
    found_split = testing.open_other(other, found, TINY.recipe, None, NAMES, SHAPE).test
    read_labels = found_split.read(range(12))["label"]
    np.testing.assert_array_equal(read_labels, [NAMES.index(order[k]) for k in labels])


def test_folders_of_numbers_are_those_numbers(root):
    """Sorted as texts, 10 would stand before 2."""
    for number in range(11):
        place = root / "train" / "numbers" / str(number)
        place.mkdir(parents=True)
        Image.fromarray(np.full(SHAPE, number, np.uint8)).save(place / "0.png")
    dataset = catalogue.folder(root / "train" / "numbers", test_only=True)
    assert dataset.class_names == tuple(map(str, range(11)))
    batch = dataset.test.read(range(11))
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])


def test_the_run_s_own_data_may_be_an_object_too(root):
    """One object is not taken for the other; a share to test on is held out of the same one."""
    train, other = drawn(60, 3, SHAPE, 3), drawn(16, 3, SHAPE, 4)
    data = {"train": train}
    sets = {"other": {"train": train, "test": other}}
    ran = cnnlab.train(data, "softmax_regression", test_sets=sets, test_fraction=0.2, **CALL)
    assert (ran.test["count"], ran.test_sets["other"]["count"]) == (12, 16)
    assert cnnlab.evaluate(ran, sets["other"]) == ran.test_sets["other"]
    assert cnnlab.evaluate(ran, data) == cnnlab.evaluate(ran) == ran.test
    noisy = cnnlab.evaluate(ran, "test+contrast,severity=5")
    assert noisy["count"] == 12 and noisy["nll"] != ran.test["nll"]
