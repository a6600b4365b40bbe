"""The report says what the results hold, the same in HTML, Markdown and CSV, and bears
every study.
"""

import copy
import csv
import dataclasses
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import study_example

from cnnlab import metrics
from cnnlab.errors import InputError
from cnnlab.html import markdown, style, svg
from cnnlab.metrics import Metric
from cnnlab.plots import SERIES
from cnnlab.study import plan, report, sequential
from cnnlab.study.report import claims, document, figures, numbers, series, tables
from cnnlab.study.results import decide, values

NASTY = "my.loss,a=<b&c|d"
CLASSES = ["猫 <é>", "dog & $x$", "third|class"]


@pytest.fixture(scope="module")
def studied():
    """Three losses with a nasty name among them, three conditions, unicode classes; no rate was
    tuned.
    """
    return study_example.results(
        ("cross_entropy", NASTY, "focal,gamma=2"),
        class_names=CLASSES,
        label_noise=(0.0, 0.2, 0.4),
        seeds=12,
    )


@pytest.fixture(scope="module")
def folder(studied, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "new"
    assert [p.name for p in report.write(studied, path)] == [
        "report.html",
        "report.md",
        "results.csv",
        "verdicts.csv",
    ]
    return path


def written(results, tmp_path):
    report.write(results, tmp_path)
    return (tmp_path / "report.html").read_text("utf-8"), (tmp_path / "report.md").read_text(
        "utf-8"
    )


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def with_cells(arm, **values):
    """An arm whose cells have other values."""
    return dataclasses.replace(
        arm, cells=tuple(dataclasses.replace(cell, **values) for cell in arm.cells)
    )


def warned(found):
    return claims.warnings(found, decide(found))


class Cells(HTMLParser):
    """The text of every table: rows of cells."""

    def __init__(self, text):
        super().__init__()
        self.tables = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.tables[-1][-1][-1] += data


def markdown_tables(text):
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)

    def unescaped(cell):
        return re.sub(r"\\(.)", r"\1", cell.strip())

    def split(line):
        return [unescaped(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]

    return [[split(line) for i, line in enumerate(table.splitlines()) if i != 1] for table in found]


def without_groups(table, conditions):
    """Rows of an HTML table with the heading above them as their first column, as Markdown
    has it.
    """
    found = [["condition", *table[0]]]
    group = ""
    for row in table[1:]:
        if len(row) == 1 and len(table[0]) > 1:
            group = row[0]
        else:
            found.append(["" if row[0] == "total" else group, *row])
    return found


def test_html_and_markdown_hold_the_same_tables(folder):
    ours = [
        without_groups(table, 3)
        for table in Cells((folder / "report.html").read_text("utf-8")).tables
    ]
    theirs = markdown_tables((folder / "report.md").read_text("utf-8"))
    assert len(ours) == len(theirs) == 13
    assert ours == theirs


def test_the_table_of_verdicts_holds_the_numbers_of_verdicts_csv(folder, studied):
    first, second = markdown_tables((folder / "report.md").read_text("utf-8"))[:2]
    full = rows(folder / "verdicts.csv")
    assert len(first[1:]) == len(second[1:]) == len(full) == 6
    for text, more, row in zip(first[1:], second[1:], full, strict=True):

        def percent(name, row=row):
            return 100 * float(row[name])

        def signed(value):
            return f"{value:+.2f}".replace("-", "−")

        assert text[:2] == more[:2] == [f"label noise {row['label_noise']}", row["arm"]]
        sign, _, words = text[2].partition(" ")
        assert words == row["verdict"] and sign in "▲▼≈?"
        assert text[3:5] == [signed(percent("mean")), signed(percent("median"))]
        assert text[5] == f"[{signed(percent('low'))}, {signed(percent('high'))}]"
        decided = f"seed {row['decided']} of 12" if row["decided"] != "0" else "open at 12, "
        assert text[6].startswith(decided)
        assert text[7] == f"{float(row['p']):.4f}"
        highest = f"{percent('highest_failure_rate'):.0f}"
        assert text[8].replace("\N{NO-BREAK SPACE}", " ") == f"0, ≤ {highest} %"
        assert more[2:4] == [f"{percent('baseline_mean'):.2f}", f"{percent('arm_mean'):.2f}"]
        assert more[4:] == [
            f"{float(row['p_equivalent']):.4f}",
            f"{float(row['p_sign_flip']):.4f}",
            signed(float(row["effect"])),
            f"{float(row['superiority']):.2f}",
        ]
    assert any(row["verdict"].startswith("better") for row in full)


def test_verdicts_csv_is_what_stats_says_to_the_last_bit(folder, studied):
    for row, verdict in zip(rows(folder / "verdicts.csv"), decide(studied), strict=True):
        for name in (*tables.NUMBERS,):
            value = getattr(verdict.comparison, name)
            assert row[name] == "" if value is None else float(row[name]) == value
        assert row["verdict"] == verdict.words
        assert (row["baseline"], row["metric"], float(row["margin"])) == (
            "cross_entropy",
            "accuracy",
            0.01,
        )
        assert (int(row["n"]), int(row["comparisons"])) == (12, 6)


def test_results_csv_holds_every_run_to_the_last_bit(folder, studied):
    found = rows(folder / "results.csv")
    runs = [(cell, run) for row in studied.arms for cell in row for run in cell.runs]
    assert len(found) == len(runs) == 108
    for row, (cell, run) in zip(found, runs, strict=True):
        assert (row["arm"], int(row["seed"]), row["diverged"]) == (cell.name, run.seed, "")
        assert float(row["label_noise"]) == cell.condition["label_noise"]
        assert float(row["learning_rate"]) == cell.learning_rates[0]
        assert int(row["epochs"]) == 10
        for metric in ("accuracy", "nll", "brier", "ece", "top5"):
            assert float(row[metric]) == run.test[metric]


def test_a_varied_field_has_a_column_of_its_own_in_results_csv():
    found = study_example.results(vary=("lr=0.001", "lr=0.01", "epochs=1", "epochs=2"), seeds=1)
    head, lines = tables.csv_runs(found)
    assert head[:2] == ["condition_learning_rate", "condition_epochs"]
    assert len(set(head)) == len(head) == len(lines[0])
    assert lines[-1][:2] == [0.01, 2]
    assert "epoch" not in claims.compared(found).split("conditions")[1].split(")")[1]


SETS = ("test", "cifar10_1/v6", "test+gaussian_noise,severity=3")


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_further_test_sets_have_a_table_each_and_columns(metric, tmp_path):
    """Means, deviations and paired differences, worked out here from the runs."""
    found = study_example.results(seeds=8, label_noise=(0.0, 0.4), test_sets=SETS, metric=metric)
    page, text = written(found, tmp_path)
    section = re.search(r"^## Other test sets\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)[1]
    assert [section.index(name) for name in SETS[1:]] == sorted(map(section.index, SETS[1:]))
    by_set = markdown_tables(section)
    assert len(by_set) == 2
    factor, digits = (100, 2) if metric == "accuracy" else (1, 4)
    for name, (head, *lines) in zip(SETS[1:], by_set, strict=True):
        assert head[2].startswith("mean ") and head[3] == "sd" and head[5] == "interval"
        per_cell = [
            np.array([run.test_sets[name][metric] for run in cell.runs])
            for row in found.arms
            for cell in row
        ]
        assert len(lines) == len(per_cell) == 6
        for i, (line, seed_values) in enumerate(zip(lines, per_cell, strict=True)):
            shown = [float(cell.replace("−", "-")) for cell in line[2:4]]
            wanted = [np.mean(seed_values), np.std(seed_values, ddof=1)]
            np.testing.assert_allclose(shown, factor * np.array(wanted), atol=0.51 * 10**-digits)
            if i % 3 == 0:  # the baseline
                assert line[4:] == ["–", "–"]
                continue
            gap = seed_values - per_cell[i - i % 3]
            assert float(line[4].replace("−", "-")) == pytest.approx(
                factor * gap.mean(), abs=0.51 * 10**-digits
            )
            low, high = (factor * end for end in sequential.interval(gap, 0.05))
            ends = [float(end.replace("−", "-")) for end in line[5].strip("[]").split(", ")]
            np.testing.assert_allclose(ends, [low, high], atol=0.51 * 10**-digits)
    runs = [run for row in found.arms for cell in row for run in cell.runs]
    for row, run in zip(rows(tmp_path / "results.csv"), runs, strict=True):
        for name in SETS[1:]:
            assert float(row[f"nll@{name}"]) == run.test_sets[name]["nll"]
    assert "Other test sets" in page
    plain = study_example.results(seeds=8, label_noise=(0.0, 0.4), metric=metric)
    numbers_of = [[v.comparison for v in decide(study)] for study in (found, plain)]
    assert repr(numbers_of[0]) == repr(numbers_of[1])  # the verdicts are about test


def test_without_further_test_sets_there_is_no_section(folder):
    assert "Other test sets" not in (folder / "report.md").read_text("utf-8")
    assert not [name for name in rows(folder / "results.csv")[0] if "@" in name]


def test_diverged_runs_have_no_metrics_on_further_test_sets(tmp_path):
    found = study_example.results(seeds=8, test_sets=SETS, diverged={(0, 1): [2]})
    _, text = written(found, tmp_path)
    lines = [line.split("|") for line in text.splitlines() if line.startswith("| mean_squared")]
    shown = [[cell.strip() for cell in line[2:6]] for line in lines]
    assert len([row for row in shown if row[:3] == ["–"] * 3 and "∞" in row[3]]) == 2
    (row,) = [row for row in rows(tmp_path / "results.csv") if row["diverged"]]
    assert [row[f"accuracy@{name}"] for name in SETS[1:]] == ["", ""]


def test_verdicts_come_first_and_nothing_is_loaded(folder):
    text = (folder / "report.html").read_text("utf-8")
    body = text[text.index("<body>") :]
    headings = re.findall(r"<h2>(.*?)</h2>", body)
    assert headings[0] == "Verdicts"
    assert headings[-2:] == ["Compute", "To repeat it"]
    assert body.index("<table>") < body.index("<figure") < len(body)
    assert not re.search(r"https?://|<script|<link|@import|src=|javascript:|\son\w+=", text)
    assert set(re.findall(r'href="([^"]*)"', text)) == set(
        re.findall(r'href="(#[^"]*|data:image/png;[^"]*)"', text)
    )
    assert (folder / "report.md").read_text("utf-8").index("## Verdicts") < 700


def test_names_are_escaped(folder):
    text = (folder / "report.html").read_text("utf-8")
    assert "=<b" not in text and "<é>" not in text
    assert html.escape(NASTY) in text.replace("<wbr>", "")
    assert "dog &amp; $x$" in text and "猫 &lt;é&gt;" in text
    assert r"my.loss,a=\<b\&c\|d" in (folder / "report.md").read_text("utf-8")
    HTMLParser().feed(text)
    assert (
        markdown.escape("[a](javascript:b) *c* `d` e_f _g_")
        == r"[a]\(javascript:b) \*c\* \`d\` e_f \_g\_"
    )


def test_svg_ids_do_not_clash_and_every_reference_is_there(folder):
    text = (folder / "report.html").read_text("utf-8")
    ids = re.findall(r' id="([^"]*)"', text)
    definitions = re.findall(r'<(?:path|clipPath|image) id="[^"]*".*?>', text)
    assert len(set(ids)) == len(set(definitions)), "an id that stands for two things"
    assert set(re.findall(r'(?:url\(|href=")#([\w-]+)', text)) <= set(ids)
    assert svg.INK not in text and "currentColor" in text and "var(--s1)" in text
    assert "DejaVu" not in text and "mathdefault" not in text
    for element in re.findall(r"<svg[^>]*>", text):
        assert 'aria-hidden="true"' in element or re.search(
            r'role="img" aria-label="[^"]+"', element
        )


def test_the_same_results_give_the_same_bytes(folder, studied, tmp_path):
    report.write(studied, tmp_path)
    for name in ("report.html", "report.md", "results.csv", "verdicts.csv"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    # No temporary left
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in folder.iterdir())


def test_time_and_machine_change_nothing_outside_their_sections(folder, studied, tmp_path):
    other = copy.deepcopy(studied)
    elsewhere = {"seconds": 3.5, "images_per_second": None}
    for row in other.arms:
        for cell in (cell for arm in row for cell in arm.cells):
            cell.versions["machine"] = f"Linux arm64 {cell.arm[0]}"
        row[:] = [with_cells(arm, devices="1 x TPU v9", **elsewhere) for arm in row]
    report.write(other, tmp_path)
    for name in ("results.csv", "verdicts.csv"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    for name, heading in (("report.html", "<h2>Compute"), ("report.md", "## Compute")):
        mine, theirs = (
            (path / name).read_text("utf-8").split(heading) for path in (folder, tmp_path)
        )
        assert mine[0] == theirs[0]
        assert "different machines" in theirs[1] and "different machines" not in mine[1]


def test_a_file_that_cannot_be_written_leaves_the_old_one(folder, studied, tmp_path, monkeypatch):
    report.write(studied, tmp_path)
    monkeypatch.setattr(
        "cnnlab.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "disk full"))
    )
    with pytest.raises(InputError, match="disk full"):
        report.write(studied, tmp_path)
    assert (tmp_path / "report.html").read_bytes() == (folder / "report.html").read_bytes()
    assert len(list(tmp_path.iterdir())) == 4


def test_rates_that_were_not_tuned_are_said_to_be(folder):
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text("utf-8")
        first = re.split("<h2>|## ", text)[1]
        assert "The learning rate was not tuned per arm (0.001)" in first
        assert "suits the baseline biases every comparison" in first
        assert "Tuning of" not in text


def test_tuned_rates_and_edges(tmp_path):
    found = study_example.results(tune=("lr=1e-4..1e-2",), budget=8, seeds=8)
    text, _ = written(found, tmp_path)
    assert "not tuned" not in text and "Tuning" in text
    assert "learning rate (0.0001 to 0.01); chosen among 8 trials by accuracy" in text
    assert "with 4 seeds that no comparison uses" in text
    assert "optimistic, as they were chosen among 8" in text
    tried = [trial.values["learning_rate"] for trial in found.arms[0][0].cells[0].tuning]
    ends = min(tried), max(tried)
    chosen = {arm.name: {run.chosen["learning_rate"] for run in arm.runs} for arm in found.arms[0]}
    edges = [name for name, rates in chosen.items() if rates & set(ends)]
    assert chosen["cross_entropy"] == {ends[1]} and 0 < len(edges) < 3
    (warning,) = warned(found)
    assert f"at the edge of its range, for cross_entropy ({ends[1]:.3g})" in warning
    assert [loss in warning for loss in study_example.LOSSES] == [
        loss in edges for loss in study_example.LOSSES
    ]
    wide = study_example.results(tune=("lr=1e-6..10",), budget=15, seeds=8)
    assert warned(wide) == []
    assert {row[-1] for row in tables.tuning(wide).rows} == {"inside"}
    assert {row[4] for row in tables.trials(wide).rows} == {"0", "4"}  # diverged, of 4 seeds
    assert [row[5] for row in tables.trials(wide).rows].count("all seeds") == 3


def test_the_lead_says_only_what_all_arms_have_in_common(tmp_path):
    same = claims.compared(study_example.results(seeds=8, epochs=2))
    assert "8 paired seeds each, cnn on shapes10, 2 epochs; by accuracy" in same
    arms = {"arms": ("model=mlp epochs=1",), "losses": ("cross_entropy",)}
    other = claims.compared(
        study_example.results(seeds=8, epochs=2, vary=("augment=none",), **arms)
    )
    assert "8 paired seeds each, on shapes10; by accuracy" in other


def test_every_seed_may_have_its_own_choice(tmp_path):
    ranges = ("lr=1e-4..1e-1", "loss.gamma=0.5..5")
    found = study_example.results(tune=ranges, budget=8, seeds=8, tune_per_seed=True, first_seed=4)
    text, _ = written(found, tmp_path)
    assert "anew for each seed, with that seed" in text and "luck of a choice" in text
    chosen = {tuple(run.chosen.items()) for run in found.arms[0][0].runs}
    assert len(chosen) > 1
    names = [row[2] for row in tables.tuning(found).rows]
    assert names == ["learning rate"] * 3 + ["loss.gamma"]  # only the focal loss has one
    rows = [row for row in tables.trials(found).rows if row[1] == "cross_entropy"]
    assert len(rows) == 8 and all(row[2].startswith("learning rate ") for row in rows)
    counts = [int(row[5].split()[0]) for row in rows if row[5] != "\N{EN DASH}"]
    assert sum(counts) == 8 and len(counts) == len(chosen)


@pytest.mark.parametrize("metric", ["nll", "ece", "brier"])
def test_other_metrics_carry_the_verdicts_where_asked(metric, tmp_path):
    found = study_example.results(metric=metric, seeds=8, epochs=2)
    _, text = written(found, tmp_path)
    assert "smaller is better" in text and "below 0.5 favours the arm" in text
    head = markdown_tables(text)[2][0]
    assert "accuracy (pp)" in head and not any(
        numbers.scales(found.study)[metric].name in name for name in head
    )
    assert len(head) == 1 + 2 * 4


def test_too_few_seeds_and_one(tmp_path):
    found = study_example.results(seeds=1, validation=0.0, label_noise=(0.0, 0.4))
    text, plain = written(found, tmp_path)
    assert "No verdict was possible: 4 comparisons at 1 seed cannot be decided" in plain
    assert f"{sequential.seeds_needed(4)} seeds are needed" in plain
    shown = markdown_tables(plain)[0][1:]
    assert {row[2] for row in shown} == {"? undecided"}
    assert {row[5] for row in shown} == {"–"}
    assert not re.search(r"\b(nan|inf)\b", plain) and "± –" not in text
    assert "Validation accuracy" not in text and "Train accuracy" in text
    assert "No verdict was possible" not in "".join(warned(study_example.results(seeds=8)))


def test_diverged_runs(tmp_path):
    lost = {(0, 1): [1, 4], (1, 0): [3], (1, 2): list(range(12))}
    found = study_example.results(
        diverged=lost, seeds=12, label_noise=(0.0, 0.4), tune=("lr=1e-4..1e-1",)
    )
    for cell in found.arms[1]:  # a history may hold what is not finite, too
        history = cell.runs[0].history
        history[:] = [row | {"train_accuracy": None} for row in history]
    text, plain = written(found, tmp_path)
    assert (
        "2 of 12 runs of mean_squared_error, label noise 0.0: seed 1 (step 77) and 4 (step 77)"
        in plain
    )
    assert "12 of 12 runs of focal,gamma=2" in plain and "1 of 12 runs of cross_entropy" in plain
    words = {(row[0], row[1]): row[2] for row in markdown_tables(plain)[0][1:]}
    # 2 of 8 seeds infinitely bad, the others better
    assert words["label noise 0.0", "mean_squared_error"] == "? undecided"
    assert words["label noise 0.4", "focal,gamma=2"].startswith("▼ worse")
    assert "all runs diverged" in text and "2 runs diverged" in text
    full = rows(tmp_path / "results.csv")
    assert sum(row["diverged"] == "77" and row["accuracy"] == "" for row in full) == 15
    lost = rows(tmp_path / "verdicts.csv")
    assert [row["diverged"] for row in lost] == ["2", "0", "0", "12"]
    assert lost[0]["low"] == "-inf" and float(lost[0]["high"]) > 0
    shown = {(row[0], row[1]): row for row in markdown_tables(plain)[0][1:]}
    row = shown["label noise 0.0", "mean_squared_error"]
    assert row[3] == "–" and row[5].startswith("[−∞, +") and row[8].startswith("2, ≤")


def test_cells_that_do_not_belong_together_are_told(studied):
    found = copy.deepcopy(studied)
    assert not [line for line in warned(found) if "differ" in line and "rate" not in line]
    found.arms[0][1] = with_cells(found.arms[0][1], digest="cd" * 32)
    found.arms[2][0].cells[0].versions["jax"] = "0.11.0"
    told = " ".join(warned(found))
    assert "digests differ" in told and "jax 0.10.0 and 0.11.0" in told
    sizes = study_example.results(vary=("image_size=16", "image_size=32"))
    # the same images at another size
    sizes.arms[1][:] = [with_cells(arm, digest="cd" * 32) for arm in sizes.arms[1]]
    assert "digests" not in " ".join(warned(sizes))


def test_eight_losses_six_conditions_a_hundred_classes_and_a_long_name(tmp_path):
    losses = (
        "cross_entropy",
        *[f"my_package.my_module.my_quite_long_loss_{i},alpha=0.{i}" for i in range(7)],
    )
    found = study_example.results(
        losses,
        classes=100,
        images=200,
        label_noise=(0.0, 0.4),
        fraction=(0.1, 0.5, 1.0),
        seeds=2,
        epochs=2,
    )
    parts = {part.title: part for part in document.sections(found, decide(found))}
    assert {"Accuracy against label noise", "Accuracy against fraction"} <= set(parts)
    assert "Accuracy against long tail" not in parts
    assert len(parts["Largest confusions"].blocks) == 7 and "Confusion matrices" not in parts
    assert len(figures.seeds(found, decide(found), 5)) == 2
    panel = figures.confusion(found, 5, 7)
    assert panel.svg.count("→") == figures.BARS and len(panel.svg) < 30_000
    largest = metrics.largest_confusions(series.confusion(found.arms[5][7]))[0]
    assert f">class {largest.true} → class {largest.predicted}<" in panel.svg
    assert (
        len(
            {
                (look["color"], str(look["linestyle"]), look["marker"])
                for look in map(svg.look, range(8))
            }
        )
        == 8
    )
    groups = series.along(found, "fraction")
    assert [others for others, _ in groups] == [{"label_noise": 0.0}, {"label_noise": 0.4}]
    assert [found.conditions[i]["fraction"] for i in groups[1][1]] == [0.1, 0.5, 1.0]


def test_conditions_without_a_sweep_have_no_figure_of_one():
    found = study_example.results(label_noise=(0.4,), vary=("optimizer=adam", "optimizer=sgd"))
    assert series.along(found, "label_noise") == []


def test_figures_are_drawn_from_what_the_runs_hold():
    found = study_example.results(seeds=3, diverged={(0, 1): [1]}, classes=4)
    good, bad = found.arms[0][:2]
    kept = [run.test for run in bad.runs if run.seed != 1]
    counts = np.sum([test["confusion"] for test in kept], axis=0)
    np.testing.assert_array_equal(series.confusion(bad), counts)
    np.testing.assert_allclose(series.shares(counts), counts / counts.sum(1, keepdims=True))
    count, confidence, accuracy = series.calibration(good)
    added = sum(np.array(run.test["calibration"]) for run in good.runs)
    np.testing.assert_array_equal(count, added[0])
    np.testing.assert_allclose((confidence * count)[count > 0], added[1][count > 0])
    np.testing.assert_allclose((accuracy * count)[count > 0], added[2][count > 0])
    ece = values(good, "ece")
    text = f"{100 * ece.mean():.2f} ± {100 * ece.std(ddof=1):.2f}"
    assert figures.reliability(found, 0, 0).caption == f"cross_entropy: ECE {text} %"
    assert tables.calibration(found).rows[0][-1] == text


def test_bands_leave_out_what_is_not_there():
    table = series.padded([[1.0, 2.0, 3.0], [3.0, float("inf")], [None, 4.0], []])
    assert table.shape == (4, 3)
    mean, sd = series.band(table)
    np.testing.assert_array_equal(mean, [2, 3, 3])
    np.testing.assert_allclose(sd, [np.sqrt(2), np.sqrt(2), np.nan])
    assert series.padded([]).shape == (0, 0)
    assert series.band(series.padded([[None]]))[0].tolist() != [0]


def test_means_and_intervals_of_what_diverged_are_not_those_of_the_rest():
    whole, broken = np.array([0.1, 0.2, 0.6]), np.array([0.1, np.nan, 0.6])
    assert series.mean(whole) == pytest.approx(0.3)
    assert series.sd(whole) == whole.std(ddof=1)
    assert np.isnan([series.mean(broken), series.sd(broken), series.sd(whole[:1])]).all()
    assert series.interval(whole, 0.05) == (-np.inf, np.inf)  # fewer than eight seeds
    low, high = sequential.interval(np.tile(whole, 5), 0.05)
    assert series.interval(np.tile(whole, 5), 0.05) == (low, high)


def test_colours_stand_out_in_light_and_dark():
    def luminance(colour):
        shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (
            x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in shares
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for instead, paper in ((style.LIGHT, "#ffffff"), (style.DARK, "#15181c")):
        for colour in SERIES[:-1]:
            low, high = sorted((luminance(instead.get(colour, colour)), luminance(paper)))
            assert (high + 0.05) / (low + 0.05) >= 3, (colour, paper)  # WCAG 1.4.11


def test_the_configuration_is_there_as_json(folder, studied):
    text = (folder / "report.html").read_text("utf-8")
    blocks = [html.unescape(block) for block in re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)]
    assert blocks[0] == studied.command
    assert json.loads(blocks[1]) == study_example.VERSIONS
    assert json.loads(blocks[2]) == json.loads(json.dumps(studied.study.to_json()))


CHECK = """<!doctype html><body><iframe id="f"
  width="{width}" height="900" src="report.html"></iframe>
<script>
f.onload = () => {{
  const page = f.contentDocument, root = page.documentElement;
  const closed = root.scrollWidth;
  page.querySelectorAll('details').forEach(part => part.open = true);
  const outside = [...page.querySelectorAll('svg text')].filter(text => {{
    const inner = text.getBoundingClientRect();
    const outer = text.ownerSVGElement.getBoundingClientRect();
    return inner.left < outer.left - 2 || inner.right > outer.right + 2 || inner.top < outer.top - 2
      || inner.bottom > outer.bottom + 2;
  }});
  const seen = name => f.contentWindow.getComputedStyle(page.querySelector(name));
  document.body.textContent = JSON.stringify({{
    closed, open: root.scrollWidth, outside: outside.map(text => text.textContent),
    texts: page.querySelectorAll('svg text').length,
    paper: seen('body').backgroundColor, ink: seen('body').color,
    label: seen('figure svg text').fill,
  }});
}};
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_in_a_browser_nothing_sticks_out_and_text_can_be_read(width, dark, folder, tmp_path):
    shutil.copy(folder / "report.html", tmp_path / "report.html")
    (tmp_path / "check.html").write_text(CHECK.format(width=width))
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--allow-file-access-from-files",
    ]
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    where = [
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1400,1000",
        "--virtual-time-budget=5000",
    ]
    command = [
        "chromium",
        *flags,
        scheme,
        *where,
        "--dump-dom",
        f"file://{tmp_path / 'check.html'}",
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    seen = json.loads(html.unescape(re.search(r"<body>(\{.*\})\s*</body>", dom, re.DOTALL)[1]))
    assert (seen["closed"], seen["open"]) == (width, width)
    assert seen["outside"] == [] and seen["texts"] > 100
    light = ("rgb(228, 231, 234)", "rgb(21, 24, 28)")
    black = ("rgb(28, 31, 35)", "rgb(255, 255, 255)")
    assert (seen["ink"], seen["paper"]) == (light if dark else black)
    assert seen["label"] == seen["ink"]


def test_plan_and_report_name_the_same_metrics(studied):
    known = plan.metrics(studied.study)
    assert (
        list(numbers.scales(studied.study))
        == list(known)
        == ["accuracy", "nll", "brier", "ece", "top5"]
    )
    assert plan.metric(studied.study) is known["accuracy"]


def half(logits, labels, mask):
    return 0.5 * mask.sum()


HALF = Metric(
    "half", half, larger_is_better=True, margin=0.2, label="one half", unit="cups", digits=3
)


@pytest.mark.parametrize("metric", ["accuracy", "half"])
def test_a_metric_of_your_own_is_reported_like_the_others(metric, tmp_path):
    found = study_example.results(metrics=("test_report.HALF",), metric=metric, seeds=8, epochs=2)
    for cell in found.arms[0]:
        for run in cell.runs:
            run.test["half"] = 0.5 + run.seed / 100 + 0.3 * (cell.name == "mean_squared_error")
    assert plan.margin(found.study) == {"accuracy": 0.01, "half": 0.2}[metric]
    _, text = written(found, tmp_path)
    verdict, more, other = markdown_tables(text)[:3]
    assert "one half (cups)" in other[0] or metric == "half"
    if metric == "half":
        assert "one half (larger is better)" in text
        assert [verdict[1][i] for i in (0, 2)] == ["mean_squared_error", "+0.300"]
        assert more[1][:3] == ["mean_squared_error", "0.535", "0.835"]
    assert [float(row["half"]) for row in rows(tmp_path / "results.csv")[:2]] == [0.5, 0.51]


def test_collapsed_seeds_and_verdicts_against_the_mean_are_told():
    """Usually two points better, and at chance in one seed of sixteen."""
    found = study_example.results(("cross_entropy", "mse"), seeds=16)
    baseline, arm = found.arms[0]
    for run, base in zip(arm.runs, baseline.runs, strict=True):
        run.test["accuracy"] = base.test["accuracy"] + (0.02 if run.seed != 11 else -0.7)
    told = warned(found)
    assert any("1 of 16 runs of mse" in line and "collapsed" in line for line in told)
    assert any("mean difference disagree: mse, as configured (better)" in line for line in told)
    (verdict,) = decide(found)
    assert verdict.failures.collapsed == 1 and verdict.comparison.mean < 0
    assert tables.verdicts(found, [verdict]).rows[0][-1].startswith("1, ≤")
