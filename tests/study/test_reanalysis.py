"""Metrics from kept logits: those that the study measured, others, and what cannot be computed."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import study_example
from scripts import one_line_error, script

from cnnlab import files
from cnnlab.console import Console
from cnnlab.errors import InputError
from cnnlab.metrics import Metric
from cnnlab.posthoc import metrics as posthoc
from cnnlab.posthoc import transforms
from cnnlab.study import driver, logits, manifest, plan, reanalysis
from cnnlab.study.board import Board
from cnnlab.study.logits import Outputs
from cnnlab.study.manifest import PlannedArm
from cnnlab.study.plan import Study
from cnnlab.study.report import reanalysis as report

CLASSES, IMAGES, HELD_OUT = 3, 40, 30


def outputs(rng, seeds, images, per_seed=False):
    shape = (seeds, images) if per_seed else (images,)
    labels = rng.integers(0, CLASSES, shape).astype(np.int32)
    scores = 2 * rng.standard_normal((seeds, images, CLASSES)) + 2 * np.eye(CLASSES)[labels]
    return Outputs(scores.astype(np.float32), labels)


def stored(folder, lost=(), **fields):
    """A study's folder that nobody trained: its cells with logits, each arm with another scale."""
    found = study_example.results(
        losses=("cross_entropy", "focal"), classes=CLASSES, images=IMAGES, seeds=8, epochs=2,
        diverged={(0, 1): list(lost)}, **fields,
    )  # fmt: skip
    arms = []
    for i, row in enumerate(found.arms):
        for j, arm in enumerate(row):
            digest = f"{i}{j}" * 6
            arms.append(PlannedArm(arm.name, arm.condition, digest))
            for k, cell in enumerate(arm.cells):
                write_cell(folder, cell, digest, np.random.default_rng([k, j]), i)
    planned = dataclasses.replace(found.family.manifest, arms=arms)
    files.write_sealed(folder / manifest.NAME, dataclasses.asdict(planned))
    return found


def write_cell(folder, cell, digest, rng, place):
    seeds = len(cell.runs)
    kept = logits.Kept(
        {
            logits.TEST: outputs(rng, seeds, IMAGES),
            logits.VALIDATION: outputs(rng, seeds, HELD_OUT, per_seed=True),
            "ood_sets/far": outputs(rng, seeds, 20),
            "test_sets/night": outputs(rng, seeds, 10),
        },
        np.array([200, 50, 5]),
        *(() if place == 0 else (rng.random((seeds, 9), np.float32), rng.random((seeds, 9)) < 0.5)),
    )
    (folder / "cells").mkdir(exist_ok=True)
    path = folder / "cells" / f"{digest}--{cell.runs[0].seed}.json"
    written = logits.write(logits.file(path), kept)
    if all(run.test is None for run in cell.runs):
        written = ""
    cell = dataclasses.replace(
        cell, arm_digest=digest, logits_digest=written, ood_sets={"far": "ab" * 32}
    )
    files.write_sealed(path, cell.to_json())


def computed(folder, *texts, test_set=None):
    study = reanalysis.read(folder)
    rows = reanalysis.reanalyse(study, reanalysis.parse(texts), test_set, Console("off"))
    return {row.name: row for row in rows}, study


def kept_of(folder, digest, first):
    cell = folder / "cells" / f"{digest}--{first}.json"
    return logits.read(logits.file(cell), files.read_sealed(cell)["logits_digest"])


def test_each_network_has_its_logits_its_labels_and_its_temperature(tmp_path):
    stored(tmp_path)
    found, study = computed(tmp_path, "ece,bins=10", "nll+temperature")
    assert study.arm_names == ["cross_entropy", "focal"] and study.baseline == 0
    for j, digest in ((0, "00" * 6), (1, "01" * 6)):
        for first in (0, 4):
            kept = kept_of(tmp_path, digest, first)
            test, held_out = kept.sets["test"], kept.sets["validation"]
            for i in range(4):
                ece = posthoc.ece(test.logits[i], test.labels, bins=10)
                assert found["ece,bins=10"].values[0, j][first + i] == ece
                fitted = transforms.fit_temperature(held_out.logits[i], held_out.labels[i])
                nll = posthoc.nll(test.logits[i] / np.float64(fitted), test.labels)
                assert found["nll+temperature"].values[0, j][first + i] == pytest.approx(nll, 1e-14)
    gap = found["ece,bins=10"].gap((0, 1), 0)
    np.testing.assert_array_equal(
        gap, found["ece,bins=10"].values[0, 1] - found["ece,bins=10"].values[0, 0]
    )
    assert len(found["ece,bins=10"].gap((0, 0), 0)) == 0


def test_transforms_are_applied_in_their_order_to_all_logits(tmp_path):
    stored(tmp_path)
    found, _ = computed(
        tmp_path, "nll+temperature+logit_adjustment", "nll+logit_adjustment+temperature",
        "ood_auroc+temperature", "ood_auroc",
    )  # fmt: skip
    kept = kept_of(tmp_path, "00" * 6, 0)
    test, held_out = kept.sets["test"], kept.sets["validation"]
    counts = kept.class_counts
    fitted = transforms.fit_temperature(held_out.logits[0], held_out.labels[0])
    first = transforms.logit_adjustment(test.logits[0] / np.float64(fitted), class_counts=counts)
    one = found["nll+temperature+logit_adjustment"].values[0, 0][0]
    assert one == pytest.approx(posthoc.nll(first, test.labels), 1e-13)
    moved = transforms.logit_adjustment(held_out.logits[0], class_counts=counts)
    fitted = transforms.fit_temperature(moved, held_out.labels[0])
    second = transforms.logit_adjustment(test.logits[0], class_counts=counts) / fitted
    other = found["nll+logit_adjustment+temperature"].values[0, 0][0]
    assert other == pytest.approx(posthoc.nll(second, test.labels), 1e-13) and other != one
    cooled = found["ood_auroc+temperature: far"].values[0, 0]
    assert not np.array_equal(cooled, found["ood_auroc: far"].values[0, 0])
    fitted = transforms.fit_temperature(held_out.logits[0], held_out.labels[0])
    auroc = posthoc.ood_auroc(
        test.logits[0] / np.float64(fitted),
        test.labels,
        ood_logits=kept.sets["ood_sets/far"].logits[0] / np.float64(fitted),
    )
    assert cooled[0] == pytest.approx(auroc, abs=1e-12)


def test_conditions_with_label_noise_and_further_test_sets(tmp_path):
    stored(tmp_path, label_noise=(0.0, 0.4))
    found, study = computed(tmp_path, "accuracy", test_set="night")
    assert [plan.label(c) for c in study.conditions] == ["label noise 0.0", "label noise 0.4"]
    night = kept_of(tmp_path, "11" * 6, 4).sets["test_sets/night"]
    accuracy = posthoc.accuracy(night.logits[2], night.labels)
    assert found["accuracy@night"].values[1, 1][6] == accuracy
    noise, _ = computed(tmp_path, "noise_auroc")  # only where labels were wrong
    assert np.isnan(noise["noise_auroc"].values[0, 0]).all()
    assert len(noise["noise_auroc"].gap((0, 1), 0)) == 0
    kept = kept_of(tmp_path, "10" * 6, 0)
    positive, negative = (kept.train_losses[0][kept.wrong_labels[0] == w] for w in (True, False))
    assert noise["noise_auroc"].values[1, 0][0] == posthoc.auroc(positive, negative)
    head, rows = report.csv_rows(study, list(found.values()))
    assert head == ["label_noise", "arm", "seed", "accuracy@night"] and len(rows) == 2 * 2 * 8


def test_blocks_without_what_a_metric_takes_keep_their_places(tmp_path):
    """Seeds 0 to 3 have no out-of-distribution set and no wrong label, seeds 4 to 7 have."""
    stored(tmp_path, label_noise=(0.4,))
    for digest in ("00" * 6, "01" * 6):
        for first in (0, 4):
            path = tmp_path / "cells" / f"{digest}--{first}.json"
            held, kept = files.read_sealed(path), kept_of(tmp_path, digest, first)
            rng = np.random.default_rng(first)
            if first:
                wrong = rng.random((4, 9)) < 0.5
                kept = dataclasses.replace(
                    kept, train_losses=rng.random((4, 9), np.float32), wrong_labels=wrong
                )
            else:
                sets = {name: s for name, s in kept.sets.items() if "ood" not in name}
                kept, held = dataclasses.replace(kept, sets=sets), held | {"ood_sets": {}}
            written = logits.write(logits.file(path), kept)
            files.write_sealed(path, held | {"logits_digest": written})
    found, study = computed(tmp_path, "ood_auroc", "noise_auroc", "nll")
    assert list(found) == ["ood_auroc: far", "noise_auroc", "nll"]
    late = kept_of(tmp_path, "00" * 6, 4)
    for name in ("ood_auroc: far", "noise_auroc"):
        values = found[name].values[0, 0]
        assert np.isnan(values).tolist() == [True] * 4 + [False] * 4
    losses = late.train_losses[0]
    auroc = posthoc.auroc(losses[late.wrong_labels[0]], losses[~late.wrong_labels[0]])
    assert found["noise_auroc"].values[0, 0][4] == auroc
    assert len(report.csv_rows(study, list(found.values()))[1]) == 16


def test_what_was_not_kept_is_said_where_an_arm_diverged_altogether(tmp_path):
    stored(tmp_path, lost=range(8))
    with pytest.raises(InputError, match="takes train_losses, and no training label"):
        computed(tmp_path, "noise_auroc")


def test_a_diverged_network_is_worse_than_any_and_an_undefined_metric_is_not(tmp_path):
    stored(tmp_path, lost=(1, 4, 5, 6, 7))
    found, study = computed(tmp_path, "nll", "few_accuracy,few=1")
    gap = found["nll"].gap((0, 1), 0)
    assert np.isinf(gap).tolist() == [False, True, False, False, True, True, True, True]
    assert np.all(gap[[1, 4, 5, 6, 7]] > 0)
    assert len(found["few_accuracy,few=1"].gap((0, 1), 0)) == 0
    (row,) = [r for r in report.table(study, found["nll"]).rows if r[1] == "focal"]
    assert row[3:5] == ("\N{EN DASH}", "\N{EN DASH}")


def entropy(logits, labels, *, base=2.0):
    """A metric of the user's, without a mark."""
    return float(base * len(labels))


def halved(logits):
    """A transform of the user's."""
    return logits / 2


def a_word(logits, labels):
    """A metric that returns no number."""
    return "x"


def many(logits, labels):
    """A metric that returns several."""
    return np.ones(3)


mine = Metric("mine", lambda z, y, mask: mask.sum(), larger_is_better=True, unit="images")


def test_metrics_and_transforms_of_the_user(tmp_path):
    stored(tmp_path)
    found, _ = computed(
        tmp_path, "test_reanalysis.entropy,base=3", "test_reanalysis.mine",
        "nll+test_reanalysis.halved",
    )  # fmt: skip
    ours = found["test_reanalysis.entropy,base=3"]
    assert ours.values[0, 0].tolist() == [120.0] * 8 and not ours.shown.larger_is_better
    assert found["test_reanalysis.mine"].values[0, 0].tolist() == [1.0] * 8  # a mean
    assert found["test_reanalysis.mine"].shown.unit == "images"
    test = kept_of(tmp_path, "00" * 6, 0).sets["test"]
    nll = posthoc.nll(test.logits[0] / 2, test.labels)
    assert found["nll+test_reanalysis.halved"].values[0, 0][0] == pytest.approx(nll, 1e-13)


@pytest.mark.parametrize(
    ("texts", "test_set", "said"),
    [
        (("eec",), None, "did you mean 'ece'"),
        (("ece+temperatur",), None, "did you mean 'temperature'"),
        (("ece,bins=0",), None, "bins must lie in [1, inf)"),
        (("few_accuracy,class_counts=3",), None, "class_counts comes from the run"),
        (("noise_auroc",), None, "takes train_losses, and no training label was made wrong"),
        ((), None, "--metric names what to compute"),
        (("test_reanalysis.a_word",), None, "test_reanalysis.a_word must return a number"),
        (("test_reanalysis.many",), None, "test_reanalysis.many must return a number"),
        (("accuracy",), "day", "unknown test set of the study 'day'. Known: night"),
    ],
)
def test_what_cannot_be_computed_is_one_line(tmp_path, texts, test_set, said):
    stored(tmp_path)
    with pytest.raises(InputError, match=re.escape(said)):
        computed(tmp_path, *texts, test_set=test_set)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("manifest", "is no study's folder"),
        ("logits", "is not the file that its cell was stored with"),
        ("none", "the study was run with --keep-logits none"),
        ("cell", "cannot be read"),
        ("data", "are not the same, under the same name"),
        ("edit", "it was changed since it was written"),
        ("baseline", "has no finished cell of the baseline, cross_entropy"),
    ],
)
def test_what_is_missing_or_damaged_is_one_line(tmp_path, damage, said):
    stored(tmp_path)
    cell = tmp_path / "cells" / f"{'00' * 6}--0.json"
    if damage == "manifest":
        (tmp_path / manifest.NAME).unlink()
    elif damage == "logits":
        cell.with_suffix(".npz").write_bytes(b"x")
    elif damage == "none":
        files.write_sealed(cell, files.read_sealed(cell) | {"logits_digest": ""})
    elif damage == "cell":
        cell.write_text("{")
    elif damage == "data":
        files.write_sealed(cell, files.read_sealed(cell) | {"digest": "0" * 64})
    elif damage == "edit":
        cell.write_text(json.dumps(json.loads(cell.read_text()) | {"seconds": 0.125}))
    else:
        cell.unlink()
    with pytest.raises(InputError, match=re.escape(said)):
        computed(tmp_path, "ece")


def test_cells_beyond_a_gap_or_of_another_study_are_left_out(tmp_path):
    stored(tmp_path)
    first = tmp_path / "cells" / f"{'01' * 6}--0.json"
    other = files.read_sealed(tmp_path / "cells" / f"{'00' * 6}--4.json")
    files.write_sealed(tmp_path / "cells" / "other.json", other | {"arm_digest": "ff" * 6})
    assert computed(tmp_path, "ece")[1].absent == []
    first.unlink()
    found, study = computed(tmp_path, "ece")
    assert {place: len(values) for place, values in found["ece"].values.items()} == {(0, 0): 8}
    gap = "focal, from seed 0 on: the cell that begins there is missing"
    assert report.lines(study, list(found.values()))[-1] == f"left out: {gap}"
    for page in report.write(study, list(found.values()), tmp_path)[:2]:
        assert f"Left out: {gap}." in page.read_text()
    (tmp_path / "cells" / f"{'01' * 6}--4.json").unlink()
    assert computed(tmp_path, "ece")[1].absent == ["focal: no cell is there"]


def test_the_page_has_a_section_and_a_figure_for_each_metric(tmp_path):
    stored(tmp_path, label_noise=(0.0, 0.4))
    found, study = computed(tmp_path, "ece", "ece+temperature")
    html, text, table = (p.read_text() for p in report.write(study, list(found.values()), tmp_path))
    assert html.count("<h2") == 2 and html.count("<svg") == 8
    assert "(Figures: reanalysis.html.)" in text and "Verdicts are only about accuracy" in text
    row = next(csv.DictReader(table.splitlines()))
    assert float(row["ece"]) == found["ece"].values[0, 0][0]
    lines = report.lines(study, list(found.values()))
    assert lines[0].split()[:3] == ["condition", "arm", "seeds"] and len(lines) == 2 * (1 + 4 + 1)


@pytest.mark.slow
def test_a_study_measures_again_what_it_measured(tmp_path, tfds_root):
    """The metrics of its report, from the logits: float32 sums on the device against float64."""
    study = Study.of(
        dataset="tiny", losses=("cross_entropy", "mse"), label_noise=(0.0, 0.3), seeds=2,
        model="mlp,hidden=[8]", batch_size=32, validation=0.2, epochs=2, learning_rate=0.01,
        devices=1, progress="off", workdir=str(tmp_path),
    )  # fmt: skip
    with jax.numpy_dtype_promotion("standard"):  # optax.adam mixes types
        results = driver.run(study, Board("off", 2), "COMMAND")
    names = ("accuracy", "nll", "brier", "ece", "top5")
    found, _ = computed(Path(study.workdir), *names)
    for i, row in enumerate(results.arms):
        for j, arm in enumerate(row):
            for name in names:
                wanted = [run.test[name] for run in arm.runs]
                np.testing.assert_allclose(found[name].values[i, j], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_script_computes_without_training(tmp_path, tfds_root):
    study = [
        "--dataset", "tiny", "--model", "mlp,hidden=[8]", "--batch-size", "32", "--epochs", "1",
        "--seeds", "2", "--losses", "cross_entropy", "mse", "--ood-sets",
        "test+gaussian_noise,severity=5", "--workdir", str(tmp_path),
    ]  # fmt: skip
    done = script("ablate", *study)
    assert done.returncode == 0, done.stderr
    done = script(
        "reanalyse", tmp_path, "--metric", "ece", "ece+temperature", "ood_fpr95,score=energy"
    )
    assert done.returncode == 0, done.stderr
    assert "distribution (score=energy): test+gaussian_noise,severity=5 (%)" in done.stdout
    with (tmp_path / "reanalysis.csv").open() as file, (tmp_path / "results.csv").open() as other:
        rows, measured = list(csv.DictReader(file)), list(csv.DictReader(other))
    assert [float(r["ece"]) for r in rows] == pytest.approx(
        [float(r["ece"]) for r in measured], rel=1e-5, abs=1e-6
    )
    done = script("reanalyse", tmp_path / "nothing", "--metric", "ece")
    assert "is no study's folder" in one_line_error(done)
