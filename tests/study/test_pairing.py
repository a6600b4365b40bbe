"""What two arms have in common for the same seed, said and true."""

import dataclasses

import jax
import numpy as np
import pytest
import study_example

from cnnlab.errors import InputError
from cnnlab.study import driver
from cnnlab.study.board import Board
from cnnlab.study.pairing import fingerprint, pairing, refuse_other_data
from cnnlab.study.plan import Study
from cnnlab.study.report import document
from cnnlab.study.results import decide

RECIPE = {"dataset": "cifar10", "batch_size": 128, "augment": "flip+crop,padding=4"}


def cell(initial_weights=None, digest="ab", **settings):
    drawn = study_example.results(seeds=1, epochs=1).arms[0][0].cells[0]
    return dataclasses.replace(
        drawn, config=RECIPE | settings, initial_weights=initial_weights or {}, digest=digest
    )


@pytest.mark.parametrize("changes", [
    {"digest": "cd"}, {"test_sets": {"night": "0"}}, {"ood_sets": {"noise": "0"}},
    {"teacher_digest": "0"},
])  # fmt: skip
def test_cells_of_other_data_are_not_compared(changes):
    facts = {"test_sets": {"night": "1"}, "ood_sets": {"noise": "1"}, "teacher_digest": "1"}
    first = dataclasses.replace(cell(teacher="run"), **facts)
    other = dataclasses.replace(first, **changes)
    smaller = dataclasses.replace(cell(teacher="run2", image_size=16), **changes)
    lacking = dataclasses.replace(first, test_sets={}, teacher_digest=None)
    refuse_other_data([first, first, smaller, lacking])
    with pytest.raises(InputError, match="not the same, under the same name"):
        refuse_other_data([first, smaller, other])


def test_what_two_configurations_have_in_common():
    alike = pairing(cell(loss="mse"), cell())
    assert (alike.images, alike.batches) == (True, True)
    assert (alike.operations, alike.other_operations) == (("flip", "crop"), ())
    assert pairing(cell(batch_size=64), cell()).batches is None  # the same order
    augmented = pairing(cell(augment="flip+cutout,size=4"), cell())
    assert (augmented.operations, augmented.other_operations) == (("flip",), ("crop", "cutout"))
    noisy = pairing(cell(dataset="cifar10+label_noise,rate=0.4"), cell())
    assert (noisy.images, noisy.batches) == (False, False)
    assert not pairing(cell(digest="cd"), cell()).images  # as another image_size has
    tuned = cell()
    tuned.runs[0].chosen.update({"batch_size": 64.0})
    assert pairing(tuned, cell()).batches is None  # as it was trained
    assert pairing(cell(augment="none"), cell(augment="auto")).other_operations == ("auto",)


def test_weights_are_counted_not_tensors():
    ours = {"a/kernel": np.zeros((3, 3), np.float32), "b/bias": np.ones(1, np.float32)}
    theirs = ours | {"a/kernel": np.full((3, 3), 2, np.float32)}
    prints = [fingerprint(weights) for weights in (ours, theirs)]
    assert [*prints[0]] == ["a/kernel", "b/bias"] and prints[0]["a/kernel"].startswith("3x3 ")
    assert pairing(cell(prints[0]), cell(prints[1])).weights == 1 / 10
    assert pairing(cell(prints[0]), cell(prints[0])).weights == 1
    assert pairing(cell(prints[0]), cell()).weights is None
    scalar = fingerprint({"a": np.float32(1)})
    assert pairing(cell(scalar), cell(scalar)).weights == 1
    other_shape = fingerprint({"a/kernel": np.zeros((9,), np.float32), "b/bias": ours["b/bias"]})
    assert pairing(cell(other_shape), cell(prints[0])).weights == 1 / 10


@pytest.mark.slow
def test_arms_start_from_the_same_weights_where_their_networks_agree(tmp_path, tfds_root):
    study = Study.of(
        dataset="tiny", model="mlp,hidden=[8,8]", seeds=2, epochs=1, batch_size=20, devices=1,
        arms=("optimizer=adam", "optimizer=sgd", "model=mlp,hidden=[8,4]", "batch_size=40"),
        progress="off", workdir=str(tmp_path),
    )  # fmt: skip
    with jax.numpy_dtype_promotion("standard"):  # optax.adam mixes types
        results = driver.run(study, Board("off", 1), "COMMAND")
    adam, sgd, narrow, large = (arm.cells[0] for arm in results.arms[0])
    assert pairing(sgd, adam).weights == 1 == pairing(large, adam).weights
    assert pairing(large, adam).batches is None
    # 8x8x3 -> 8 -> 4 -> 3: the first layer agrees with 8x8x3 -> 8 -> 8 -> 3, and zero biases
    agreeing = 192 * 8 + 8 + 3
    assert pairing(narrow, adam).weights == agreeing / (agreeing + 8 * 4 + 4 + 4 * 3)
    (section,) = [
        part for part in document.sections(results, decide(results)) if "paired" in part.title
    ]
    assert section.blocks[1].table.rows == [
        ("optimizer=sgd", "the same", "the same", "auto: the same", "the same"),
        ("model=mlp,hidden=[8,4]", "the same", "the same", "auto: the same", "97 % the same"),
        ("batch_size=40", "the same", "same order, another size", "auto: the same", "the same"),
    ]
