"""Some classes of a data set: both splits hold them alone, numbered anew, wherever it is opened."""

import pickle

import numpy as np
import pytest
from small_data import drawn, write_dataset

import cnnlab
from cnnlab import parts
from cnnlab.config import Config, Recipe
from cnnlab.console import Console
from cnnlab.data import catalogue, classes, contents, corruptions, image, records
from cnnlab.data.dataset import Dataset, Split, from_arrays
from cnnlab.errors import InputError
from cnnlab.study import checks
from cnnlab.study.plan import Study
from cnnlab.training import experiment, network, run

LABELS = np.array([0, 1, 2, 3, 2, 1, 2], np.int32)
NAMES = ("ant", "bee", "cow", "dog")
CONFIG = Config.of(
    dataset="tiny+subset,classes=[2,0]", model="softmax_regression", epochs=1, batch_size=16,
    augment="none", optimizer="sgd", schedule="constant", devices=1, tensorboard=False,
)  # fmt: skip


def failure(call, *args, **keywords) -> str:
    with pytest.raises(InputError) as error:
        call(*args, **keywords)
    assert len(str(error.value).splitlines()) == 1, error.value
    return str(error.value)


def made(labels=LABELS, **about):
    """Pictures whose value is their place."""
    values = np.arange(len(labels), dtype=np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (len(labels), 2, 2, 3))
    about = {"class_names": NAMES} | about
    return from_arrays("made", {"train": (images, labels), "test": (images, labels), **about})


def opened(dataset, data_dir=None):
    recipe = Recipe(dataset=dataset)
    return parts.resolve(recipe).open_dataset(data_dir, recipe)


def test_classes_are_numbered_in_the_order_in_which_they_are_written():
    whole = made(taken_for={1: 2, 2: 0, 3: 2}, superclasses=(7, 8, 7, 8))
    kept = classes.keep(whole, (2, "ant"))
    assert kept.class_names == ("cow", "ant") and kept.superclasses == (7, 7)
    assert kept.taken_for == {0: 1}  # a cow for an ant; the other pairs lost a class
    for split in (kept.train, kept.test):
        assert len(split) == 4 and split.num_classes == 2
        read = split.read(range(4))
        np.testing.assert_array_equal(read["image"][:, 0, 0, 0], [0, 2, 4, 6])
        np.testing.assert_array_equal(read["label"], [1, 0, 0, 0])
        np.testing.assert_array_equal(split.read_labels([3, 0]), [0, 1])
    others = [whole, classes.keep(whole, (0, 2)), classes.keep(whole, (2, 3))]
    assert len({dataset.train.fingerprint for dataset in (kept, *others)}) == 4
    # The whole set is as it was
    np.testing.assert_array_equal(whole.train.read(range(7))["label"], LABELS)


def test_without_pairs_left_no_class_is_taken_for_another():
    left = classes.keep(made(taken_for={1: 2}), (0, 1))
    assert "no class of made is known to be taken for another" in failure(
        corruptions.label_noise, left, 0, 0.4, "asymmetric"
    )
    # Without any knowledge it is the next, before and after
    assert classes.keep(made(), (0, 1)).taken_for == {}


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ((0, 4), "unknown class of made '4'. Known: ant, bee, cow, dog."),
        ((0, -1), "unknown class of made '-1'"),
        ((0, "bea"), "unknown class of made 'bea': did you mean 'bee'?"),
        ((0, True), "unknown class of made 'True'"),
        ((1, "bee"), "written once each"),
        ((1,), "a list of at least two, as in subset,classes=[0,1]; got (1,)"),
        ("bee", "a list of at least two"),
        (3, "a list of at least two"),
    ],
)
def test_classes_that_cannot_be_kept(chosen, said):
    assert said in failure(classes.keep, made(), chosen)


def test_a_split_without_images_of_the_classes():
    assert "made train holds no image of the classes to keep" in failure(
        classes.keep, made(np.array([0, 1, 0, 1, 0, 1, 0])), (2, 3)
    )
    assert "labels must lie in [0, 4), got -1..3" in failure(
        classes.keep, made(np.array([0, 1, 2, 3, -1, 1, 0])), (2, 3)
    )


def test_a_prepared_set_is_filtered_in_both_splits(tfds_root, tmp_path, monkeypatch):
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path))
    whole = catalogue.open_dataset("tiny", str(tfds_root))
    reads = []

    def counted(self, positions):
        reads.append(len(positions))
        return [self.fields.number_of(label) for label in self.labels(positions)]

    with monkeypatch.context() as patch:
        patch.setattr(records.Records, "class_numbers", counted)
        patch.setattr(image, "decode", lambda *_: pytest.fail("decoded an image for its label"))
        kept = opened("tiny+subset,classes=[2,0]", str(tfds_root))
        assert reads == [200, 50]
        opened("tiny+subset,classes=[0,1]", str(tfds_root))  # from the cache
        assert reads == [200, 50]
    assert kept.class_names == ("class 2", "class 0")
    for split, all_of_it in ((kept.train, whole.train), (kept.test, whole.test)):
        every = all_of_it.read(range(len(all_of_it)))
        places = np.flatnonzero(every["label"] != 1)
        read = pickle.loads(pickle.dumps(split)).read(range(len(split)))  # as reader processes do
        np.testing.assert_array_equal(read["image"], every["image"][places])
        np.testing.assert_array_equal(read["label"], np.where(every["label"][places] == 2, 0, 1))
        pixels, summary = contents.decoded(split)
        np.testing.assert_array_equal(pixels, read["image"])
        np.testing.assert_array_equal(summary.labels, read["label"])
    twice = opened("tiny+subset,classes=[1,2,0]+subset,classes=['class 2',2]", str(tfds_root))
    assert twice.class_names == kept.class_names
    np.testing.assert_array_equal(
        twice.test.read(range(len(twice.test)))["image"],
        kept.test.read(range(len(kept.test)))["image"],
    )


def test_a_share_to_test_on_is_taken_before_classes_are_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "cache"))
    write_dataset(tmp_path, "half", {"train": drawn(100, 3, (4, 4, 3), 0)}, 3, (4, 4, 3))
    recipe = Recipe(dataset="half+subset,classes=[0,2]", test_fraction=0.2)
    kept = parts.resolve(recipe).open_dataset(str(tmp_path), recipe)
    whole = catalogue.open_dataset("half", str(tmp_path), test_fraction=0.2)
    for split, all_of_it in ((kept.train, whole.train), (kept.test, whole.test)):
        every = all_of_it.read(range(len(all_of_it)))
        places = np.flatnonzero(every["label"] != 1)
        read = split.read(range(len(split)))
        np.testing.assert_array_equal(read["image"], every["image"][places])
        np.testing.assert_array_equal(read["label"], every["label"][places] // 2)


class Drawn:
    """Records of a user, who reads images and labels together."""

    def __len__(self):
        return len(LABELS)

    def __getitems__(self, positions):
        return [
            {"image": np.full((2, 2, 3), p, np.uint8), "label": int(LABELS[p])} for p in positions
        ]


def test_records_that_give_labels_with_images_only(tmp_path, monkeypatch):
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path))
    split = Split(Drawn(), "drawn" * 8, (2, 2, 3), 4, "drawn")
    kept = classes.keep(Dataset("drawn", "1", split, split, NAMES), ("dog", "cow")).train
    np.testing.assert_array_equal(kept.read(range(4))["image"][:, 0, 0, 0], [2, 3, 4, 6])
    np.testing.assert_array_equal(kept.read(range(4))["label"], [1, 0, 1, 1])


def test_it_stands_before_what_is_drawn():
    recipe = Recipe(dataset="tiny+fraction,share=0.5+subset,classes=[0,1]+long_tail,factor=2")
    assert failure(parts.resolve, recipe) == (
        "corruption 'subset,classes=[0,1]' acts when the data set is opened: write it before "
        "'fraction,share=0.5'"
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "corruption 'user_parts.nothing' must return a Dataset, got NoneType"),
        ("one_name", "corruption 'user_parts.one_name' must leave images in tiny 1.0.0 train, of"),
    ],
)
def test_a_marked_corruption_of_the_user_is_held_to_its_contract(name, said, tfds_root):
    assert said in failure(opened, f"tiny+user_parts.{name}", str(tfds_root))


def test_a_corruption_of_the_user_may_be_marked(tfds_root):
    kept = opened("tiny+user_parts.without_first", str(tfds_root))
    assert kept.class_names == ("class 1", "class 2") and len(kept.test) < 50
    resolved = parts.resolve(Recipe(dataset="tiny+user_parts.without_first"))
    assert resolved.corrupt(kept, 1, None) is kept  # it does not act twice


def test_a_run_on_some_classes_is_trained_tested_and_evaluated_on_them(tfds_root, tmp_path):
    done = run.in_folder(CONFIG, tmp_path / "run")
    labels = catalogue.open_dataset("tiny", str(tfds_root)).test.read(range(50))["label"]
    facts = done.network.facts
    assert facts.class_names == ("class 2", "class 0")
    assert done.test["count"] == np.sum(labels != 1) == facts.counts["test"]
    assert np.shape(done.test["confusion"]) == (2, 2)
    trained = network.load(tmp_path / "run")
    again = cnnlab.evaluate(str(tmp_path / "run"))
    assert again["accuracy"] == done.test["accuracy"]
    assert len(run.dataset_of(trained).test) == facts.counts["test"]
    # All classes, or these already: the images of these are tested on
    images = catalogue.open_dataset("tiny", str(tfds_root)).test.read(range(50))["image"]
    splits = {"train": (images, labels), "test": (images, labels)}
    given = {**splits, "class_names": [f"class {k}" for k in range(3)]}
    assert cnnlab.evaluate(str(tmp_path / "run"), given)["accuracy"] == done.test["accuracy"]
    kept = labels != 1
    pair = images[kept], (labels[kept] == 0).astype(int)
    given = {"train": pair, "test": pair, "class_names": ["class 2", "class 0"]}
    assert cnnlab.evaluate(str(tmp_path / "run"), given)["accuracy"] == done.test["accuracy"]
    # Streamed, it is the same run
    streamed = run.in_folder(CONFIG.replace(feed="streaming"), tmp_path / "streamed")
    assert streamed.test["accuracy"] == done.test["accuracy"]
    assert streamed.history[-1]["train_loss"] == done.history[-1]["train_loss"]


def test_a_study_is_on_the_classes_that_are_kept(tfds_root, monkeypatch):
    seen = []
    training_data = experiment.training_data

    def noted(config, parts, dataset, *args):
        seen.append(dataset.class_names)
        return training_data(config, parts, dataset, *args)

    monkeypatch.setattr(experiment, "training_data", noted)
    study = Study.of(
        dataset="tiny+subset,classes=[2,1]", losses=("ce", "mse"), label_noise=(0.0, 0.2), seeds=2,
        batch_size=20, model="softmax_regression", devices=1, progress="off",
    )  # fmt: skip
    checks.check(study, Console("off"))
    assert seen == [("class 2", "class 1")] * 4


def test_names_that_are_numbers_are_names():
    images = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((4, 2, 2, 3), np.uint8)
    pair = (images, np.array([0, 1, 2, 1]))
    arrays = {"train": pair, "test": pair, "class_names": ["7", "2", "0"]}
    kept = classes.keep(from_arrays("made", arrays), [2, 7])
    assert kept.class_names == ("2", "7")
    batch = kept.test.read(range(len(kept.test)))
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], [0, 1, 3])
    np.testing.assert_array_equal(batch["label"], [1, 0, 0])
