"""A run over more classes than a confusion matrix is written out for: its memory, its files and its
pictures.
"""

import gc
import json

import jax
import numpy as np
import pytest

import cnnlab
from cnnlab import metrics, plots
from cnnlab.study import driver, report
from cnnlab.study.board import Board
from cnnlab.study.plan import Study
from cnnlab.study.report import series
from cnnlab.training import loop

CLASSES = 300
DATA = f"""
import numpy as np


def load():
    labels = np.arange({CLASSES})
    images = np.zeros((2 * len(labels), 4, 4, 1), np.uint8)
    images[:, 0, 0, 0] = np.tile(labels % 256, 2)
    names = [f"$ {{k}}" for k in labels]
    pair = images, np.tile(labels, 2)
    return {{"train": pair, "test": pair, "class_names": names}}
"""


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax's schedules mix types."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A function that trains in tmp_path/run, on classes whose names are nearly TeX."""
    (tmp_path / "many_classes.py").write_text(DATA)
    monkeypatch.syspath_prepend(str(tmp_path))

    def train(**settings):
        return cnnlab.train(
            data="many_classes.load",
            model="softmax_regression",
            optimizer="sgd,momentum=0",
            learning_rate=0.1,
            epochs=1,
            batch_size=100,
            validation=0.0,
            augment="none",
            tensorboard=False,
            workdir=str(tmp_path / "run"),
            **settings,
        )

    return train


def test_the_files_of_a_run_stay_small(trained, tmp_path):
    finished = trained()
    folder = tmp_path / "run"
    assert {"summary.json", "curves.png", "confusion.png"} <= {p.name for p in folder.iterdir()}
    summary = json.loads((folder / "summary.json").read_text())
    matrix = metrics.confusion_matrix(summary["test"])
    assert matrix.shape == (CLASSES, CLASSES) and matrix.sum() == 600
    assert np.trace(matrix) / 600 == summary["test"]["accuracy"]
    assert len(summary["test"]["per_class_accuracy"]) == CLASSES
    largest = summary["largest_confusions"]
    assert len(largest) == 20
    true, predicted = (int(largest[0][name].removeprefix("$ ")) for name in ("true", "predicted"))
    assert (
        matrix[true, predicted] == largest[0]["count"] == np.max(matrix - np.diag(np.diag(matrix)))
    )
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    assert sizes["summary.json"] < 60_000  # 300 x 300 numbers were 1.1 MB
    assert sizes["metrics.jsonl"] < 1_000
    np.testing.assert_array_equal(metrics.confusion_matrix(finished.test), matrix)
    assert cnnlab.load(folder).test == finished.test


def test_a_picture_that_cannot_be_drawn_costs_a_line_and_not_the_result(
    trained, tmp_path, monkeypatch, capsys
):
    def fail(*_):
        assert (tmp_path / "run" / "summary.json").exists()
        raise OverflowError("the figure\nis too large")

    monkeypatch.setattr(plots, "curves", fail)
    finished = trained(progress="off")
    assert finished.test["count"] == 600
    assert not (tmp_path / "run" / "curves.png").exists()
    assert (tmp_path / "run" / "confusion.png").exists()
    where = tmp_path / "run" / "curves.png"
    assert f"{where} could not be drawn: the figure is too large\n" in capsys.readouterr().out


def test_an_evaluation_holds_the_sums_of_a_few_batches(monkeypatch):
    """The matrix of a batch of 5 images is as large as that of all."""
    matrices = []

    def alive():
        shape = (CLASSES, CLASSES)
        return sum(array.shape == shape for array in jax.live_arrays())

    def batches():
        for k in range(12):
            matrices.append(alive())
            yield {"label": np.full(5, k, np.int32)}

    @jax.jit
    def sums(variables, batch):
        logits = jax.nn.one_hot(batch["label"] + variables, CLASSES)
        return metrics.sums(logits, batch["label"], logits[:, 0], np.ones(5, bool))

    gc.collect()  # once: with all that JAX holds it takes a second
    before = alive()
    (result,) = loop.evaluate(sums, np.int32(1), batches())
    matrix = metrics.confusion_matrix(result)
    assert [matrix[k, k + 1] for k in range(12)] == [5] * 12 and matrix.sum() == 60
    assert max(matrices) - before <= loop.IN_FLIGHT + 1


@pytest.mark.slow
def test_a_study_of_many_classes_has_small_cells_and_a_report(tmp_path, monkeypatch):
    (tmp_path / "many_classes.py").write_text(DATA)
    monkeypatch.syspath_prepend(str(tmp_path))
    study = Study.of(
        losses=("cross_entropy", "mse"), dataset="many_classes.load", model="softmax_regression",
        optimizer="sgd,momentum=0", epochs=1, batch_size=100, validation=0.0, augment="none",
        seeds=2, workdir=str(tmp_path / "study"), progress="off",
    )  # fmt: skip
    results = driver.run(study, Board("off", 1), "COMMAND")
    for path in (tmp_path / "study" / "cells").glob("*.json"):
        assert path.stat().st_size < 100_000  # two matrices of 300 x 300 numbers were 2 MB
    (first,) = {cell.class_names[0] for cell in results.cells}
    assert first == "$ 0"
    counts = series.confusion(results.arms[0][0])
    assert counts.shape == (CLASSES, CLASSES) and counts.sum() == 2 * 600
    paths = report.write(results, tmp_path / "report")
    page = paths[0].read_text()
    largest = metrics.largest_confusions(counts)[0]
    assert f">$ {largest.true} → $ {largest.predicted}<" in page and len(page) < 200_000
