"""Numbers of networks, by hand from what their cells hold."""

import dataclasses

import numpy as np
import pytest
import study_example

from cnnlab.errors import InputError
from cnnlab.study import measures

HISTORY = [
    {"train_accuracy": t, "validation_accuracy": v}
    for t, v in [(0.5, 0.4), (0.97, 0.46), (0.995, 0.44)]
]


def arm(*changes, **fields):
    """An arm whose networks are those of the example, each changed."""
    results = study_example.results(seeds=4, **fields)
    drawn = results.arms[0][0]
    (cell,) = drawn.cells
    runs = [
        dataclasses.replace(run, **{"history": HISTORY} | changed)
        for run, changed in zip(cell.runs, changes, strict=False)
    ]
    return dataclasses.replace(drawn, cells=(dataclasses.replace(cell, runs=runs),))


def measured(name, found):
    return measures.HISTORY[name](found).tolist()


def test_measures_of_the_history():
    found = arm({})
    assert measured("best_validation_accuracy", found) == [0.46]
    assert measured("train_accuracy", found) == [0.995]
    assert measured("first_validation_accuracy", found) == [0.4]
    assert measured("epochs_to_45_percent", found) == [2]
    assert measured("epochs_to_fit_99_percent", found) == [3]
    gradients = arm({"gradient_norms": [1.0, 3.0]})
    assert measured("early_gradient", gradients) == [np.log(2.0)]


def test_an_accuracy_that_is_never_reached_counts_one_epoch_more():
    slow = arm({})
    slow.runs[0].history[:] = [row | {"validation_accuracy": 0.3} for row in HISTORY]
    assert measured("epochs_to_45_percent", slow) == [4]


@pytest.mark.parametrize("name", measures.HISTORY)
def test_networks_that_diverged_have_no_measure(name):
    found = arm({"diverged": 20, "test": None}, {})
    assert np.isnan(measured(name, found)).tolist() == [True, False]


@pytest.mark.parametrize("name", measures.HISTORY)
def test_networks_may_diverge_before_the_first_epoch_ends(name):
    lost = {"diverged": 20, "test": None, "history": [], "gradient_norms": []}
    assert np.isnan(measured(name, arm(lost, lost))).all()


def test_overconfidence_is_confidence_less_accuracy():
    bins = [[10, 30], [2.0, 27.0], [4, 21]]  # images, confidences, hits
    found = arm({"test": {"calibration": bins}})
    assert measured("overconfidence", found) == pytest.approx([(29 - 25) / 40])


def test_a_table_has_a_row_for_each_network_and_shortens_its_numbers(tmp_path):
    results = study_example.results(seeds=8, label_noise=(0.0, 0.4))
    found = measures.table(results, ["accuracy", "ece"], "label noise 0.4")
    assert [condition for condition, _ in found] == ["label noise 0.4"] * 3
    text = measures.text(found)
    assert len(text.splitlines()) == 1 + 3 * 8
    assert text.startswith("condition,arm,seed,images,seconds,accuracy,ece\nlabel noise 0.4,")
    (tmp_path / "table.csv").write_text(text)
    again = measures.read(tmp_path / "table.csv")
    for place, of_arm in found.items():
        for name, column in of_arm.items():
            np.testing.assert_allclose(again[place][name], column, rtol=1e-6)


def test_seeds_that_do_not_follow_each_other_are_refused(tmp_path):
    (tmp_path / "table.csv").write_text("condition,arm,seed,ece\nc,a,0,0.1\nc,a,2,0.2\n")
    with pytest.raises(InputError, match="do not follow"):
        measures.read(tmp_path / "table.csv")


def test_unknown_measures_are_refused():
    with pytest.raises(InputError, match="unknown"):
        measures.check(study_example.results().study, ["ece+temprature"])
    with pytest.raises(InputError, match="unknown"):
        measures.table(study_example.results(seeds=8), ["acuracy"])
