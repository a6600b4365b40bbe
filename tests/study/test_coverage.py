"""What the report says of the verdicts' reach: seeds and images, all pairs, conditions, epochs."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import study_example
from scipy import stats

from cnnlab.study import folder, manifest, pairs, plan, sequential, statistics, turns
from cnnlab.study.crossed import crossed_mean
from cnnlab.study.plan import Study
from cnnlab.study.records import unpacked
from cnnlab.study.report import claims, coverage, document, figures, series
from cnnlab.study.results import (
    EXPLORATORY,
    decide,
    differences,
    hit_differences,
    over_conditions,
    values,
)

LOSSES = study_example.LOSSES


@pytest.fixture(scope="module")
def studied():
    return study_example.results(label_noise=(0.0, 0.4), seeds=12, epochs=5, all_pairs=True)


def sections(results):
    return {part.title: part for part in document.sections(results, decide(results))}


def text(section):
    return " ".join(block.text for block in section.blocks if hasattr(block, "text"))


# Seeds and images


def test_hits_are_subtracted_image_by_image():
    found = study_example.results(seeds=4, diverged={(0, 1): [2]}, images=99)
    baseline, arm = found.arms[0][:2]
    table = hit_differences(arm, baseline)
    assert table.shape == (4, 99) and set(np.unique(table[[0, 1, 3]])) == {-1, 0, 1}
    assert np.isnan(table[2]).all()
    ours, theirs = (unpacked(runs.runs[3].hits, 99).astype(int) for runs in (arm, baseline))
    np.testing.assert_array_equal(table[3], ours - theirs)
    gaps = values(arm, "accuracy") - values(baseline, "accuracy")
    np.testing.assert_allclose(table.mean(1), gaps)
    assert coverage.crossed(found).rows[0][2] == "3, 1 diverged"


def test_the_report_has_the_interval_over_seeds_and_images(studied):
    part = sections(studied)["What the verdicts cover"]
    rows = coverage.crossed(studied).rows
    assert [row[:2] for row in rows] == [
        (f"label noise {noise}", arm) for noise in (0.0, 0.4) for arm in LOSSES[1:]
    ]
    found = crossed_mean(hit_differences(studied.arms[1][2], studied.arms[1][0]))
    ends = [float(end.replace("−", "-")) for end in rows[3][5].strip("[]").split(", ")]
    np.testing.assert_allclose(ends, [100 * found.low, 100 * found.high], atol=0.0051)
    shares = [int(share.split("\N{NO-BREAK SPACE}")[0]) for share in rows[3][7:]]
    assert sum(shares) == pytest.approx(100, abs=1)
    assert "new test images" in text(part) and "--until" not in text(part)
    growing = study_example.results(seeds=8, until="decided", max_seeds=8, epochs=1)
    assert "covers less than it says" in text(sections(growing)["What the verdicts cover"])


# All pairs and ranks


def test_pairs_are_a_family_of_their_own(studied):
    verdicts = pairs.decide(studied)
    assert pairs.comparisons(studied) == len(verdicts) == 6
    places = list(itertools.combinations(range(3), 2))
    assert [(v.against, v.arm) for v in verdicts[:3]] == [
        (LOSSES[first], LOSSES[second]) for first, second in places
    ]
    rows = [
        values(row[second], "accuracy") - values(row[first], "accuracy")
        for row in studied.arms
        for first, second in places
    ]
    wanted = statistics.compare(rows, 0.01, comparisons=6)
    assert [v.words for v in verdicts] == [c.words for c in wanted]
    assert [v.comparison.p for v in verdicts] == [c.p for c in wanted]
    with_baseline = {(v.arm, str(v.condition)): v for v in decide(studied)}
    for verdict in verdicts:
        if verdict.against == LOSSES[0]:  # the same differences, at another level
            first = with_baseline[verdict.arm, str(verdict.condition)].comparison
            assert verdict.comparison.mean == first.mean
            assert verdict.comparison.low <= first.low and first.high <= verdict.comparison.high


def test_pairs_of_planned_arms_count():
    found = study_example.results(label_noise=(0.0, 0.4), seeds=8, comparisons=5, epochs=1)
    family = dataclasses.replace(found.family, comparisons=5)
    # five comparisons are three arms or four under each condition, with three pairs or six
    assert pairs.comparisons(dataclasses.replace(found, family=family)) == 12


def decided(studied, *words):
    """Verdicts of the three pairs under the first condition: second against first, third against
    first, third against second.
    """
    drawn = pairs.decide(studied)[:3]
    return [
        dataclasses.replace(
            verdict, comparison=dataclasses.replace(verdict.comparison, verdict=word)
        )
        for verdict, word in zip(drawn, words, strict=True)
    ]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("better", "better", "better"), [(3, 3), (2, 2), (1, 1)]),
        (("worse", "better", "undecided"), [(2, 2), (2, 3), (1, 2)]),
        (("undecided", "equivalent", "worse"), [(1, 3), (1, 2), (2, 3)]),
        (("undecided", "undecided", "undecided"), [(1, 3)] * 3),
    ],
)
def test_ranks_follow_from_decided_pairs(words, wanted, studied):
    ranked = pairs.ranks(studied, decided(studied, *words), 0)
    assert [(rank.best, rank.worst) for rank in ranked] == wanted
    assert [rank.is_unbeaten for rank in ranked] == [best == 1 for best, _ in wanted]


def test_mean_ranks_are_those_of_the_seeds():
    found = study_example.results(seeds=4, diverged={(0, 1): [2]}, epochs=1)
    table = [values(arm, "accuracy") for arm in found.arms[0]]
    rank = pairs.seed_ranks(found, 0)
    assert rank.shape == (3, 4) and rank[1, 2] == 3
    for seed in (0, 1, 3):
        order = np.argsort([-row[seed] for row in table])
        if len({row[seed] for row in table}) == 3:
            assert rank[order, seed].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(rank.sum(0), 6)
    smaller = study_example.results(seeds=4, epochs=1, metric="nll")
    best = np.argmin([values(arm, "nll") for arm in smaller.arms[0]], 0)
    assert (pairs.seed_ranks(smaller, 0)[best, range(4)] == 1).all()
    ranked = pairs.ranks(found, [], 0)
    assert [r.mean for r in ranked] == rank.mean(1).tolist() and ranked[0].seeds == 4


def test_ranks_hold_together():
    """Of families of equal arms, whose pairs depend on each other, at most 5 % decide one of them,
    and so rule out a rank.
    """
    arms = np.random.default_rng(0).standard_normal((2_000, 4, 24))
    first, second = np.triu_indices(4, 1)
    found = sequential.decide(arms[:, second] - arms[:, first], 1e-6)
    wrong = np.mean((found.p <= 0.05).any(-1))
    assert 0 < wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2_000)


def test_the_section_of_pairs_is_there_on_demand_and_the_verdicts_stay(studied):
    part = sections(studied)["All pairs and ranks"]
    assert "second family, of 6 comparisons, with an error rate of its own" in text(part)
    assert "about the baseline alone, cross_entropy" in text(part)
    assert "under label noise 0.0: cross_entropy and mean_squared_error." in text(part)
    plain = study_example.results(label_noise=(0.0, 0.4), seeds=12, epochs=5)
    assert "All pairs and ranks" not in sections(plain)
    first, same = (sections(results)["Verdicts"] for results in (studied, plain))
    assert first == same
    short = study_example.results(seeds=8, epochs=1, losses=(*LOSSES, "mse"), all_pairs=True)
    needed = sequential.seeds_needed(6)
    assert f"so many need {needed} seeds" in text(sections(short)["All pairs and ranks"])


def test_pairs_of_a_study_that_deviates_decide_nothing(studied):
    family = dataclasses.replace(studied.family, deviations=["margin 0.1 instead of 0.01"])
    found = dataclasses.replace(studied, family=family)
    verdicts = pairs.decide(found)
    assert {verdict.kind for verdict in verdicts} == {EXPLORATORY}
    assert {(r.best, r.worst) for r in pairs.ranks(found, verdicts, 0)} == {(1, 3)}
    assert claims.unbeaten(found, verdicts)[0].endswith("all ranks are open.")


def test_asking_for_pairs_changes_no_cell_and_no_plan():
    plain, asked = (Study.of(losses=LOSSES, all_pairs=pairs) for pairs in (False, True))
    planned = []
    for study in (plain, asked):
        arms = {
            (arm, plan.label(condition)): folder.cells(study, arm, condition, plan.blocks(study))
            for arm, condition in plan.grid(study)
        }
        planned.append((arms, dataclasses.replace(manifest.of(study, arms), written="")))
    assert planned[0] == planned[1]
    assert manifest.deviations(planned[0][1], asked, planned[0][0]) == []


# Conditions


def test_differences_are_averaged_over_conditions_at_the_same_seed(studied):
    gaps = differences(studied, "accuracy")
    first, second = over_conditions(studied)
    assert (first.label, second.arm) == ("all 2 conditions", LOSSES[2])
    np.testing.assert_allclose(second.differences, (gaps[0, 2] + gaps[1, 2]) / 2)
    row = coverage.condition_means(studied).rows[1]
    assert row[3] == f"{100 * second.differences.mean():+.2f}"
    low, high = (100 * end for end in sequential.interval(second.differences, 0.05))
    assert row[5] == f"[{low:+.2f}, {high:+.2f}]".replace("-", "−")
    assert "Means over conditions" in sections(studied)


def test_only_seeds_of_all_conditions_are_averaged(studied):
    arms = [list(row) for row in studied.arms]
    arms[1][2] = dataclasses.replace(arms[1][2], cells=arms[1][2].cells[:2])
    found = over_conditions(dataclasses.replace(studied, arms=arms))
    assert [len(mean.differences) for mean in found] == [12, 8]


def test_each_data_set_has_its_mean_where_it_has_further_conditions():
    vary = ("dataset=cifar10", "dataset=mnist")
    found = study_example.results(label_noise=(0.0, 0.4), vary=vary, seeds=8, epochs=1)
    labels = [mean.label for mean in over_conditions(found)]
    assert labels == [
        *["all 4 conditions"] * 2,
        *["dataset cifar10"] * 2,
        *["dataset mnist"] * 2,
    ]
    gaps = differences(found, "accuracy")
    of_mnist = [i for i, c in enumerate(found.conditions) if c["dataset"] == "mnist"]
    np.testing.assert_allclose(
        over_conditions(found)[4].differences, np.mean([gaps[i, 1] for i in of_mnist], 0)
    )
    sets_only = study_example.results(vary=vary, seeds=8, epochs=1)
    assert {mean.label for mean in over_conditions(sets_only)} == {"all 2 conditions"}


def test_what_diverged_under_a_condition_has_an_infinite_average():
    lost = {(0, 1): [1, 2], (1, 0): [2]}
    found = study_example.results(label_noise=(0.0, 0.4), seeds=8, epochs=1, diverged=lost)
    gaps = over_conditions(found)[0].differences
    assert gaps[1] == -np.inf and gaps[2] == 0  # the arm, and then the baseline
    assert np.isfinite(np.delete(gaps, 1)).all()
    assert coverage.condition_means(found).rows[0][3] == "–"
    single = study_example.results(seeds=8, epochs=1)
    assert over_conditions(single) == [] and "Means over conditions" not in sections(single)


# Epochs

SPREAD = 0.01 * np.array([-1.0, -0.5, 0, 0.5, 1])[:, None]


def followed(means, spread=SPREAD):
    baseline = np.full((5, len(means)), 0.5)
    return turns.course(baseline + np.array(means) + spread, baseline)


@pytest.mark.parametrize(
    ("means", "kind", "last_turn", "words"),
    [
        (
            [-0.1, -0.05, -0.002, 0.04, 0.1],
            turns.TURNED,
            3,
            "the sign turned after epoch 3: above the baseline since epoch 4",
        ),
        (
            [0.002, -0.1, -0.2],
            turns.KEPT,
            1,
            "kept its sign from epoch 2 on: below the baseline, clear of zero at the end",
        ),
        (
            [0.1, 0.1, 0.002],
            turns.KEPT,
            0,
            "kept its sign from epoch 1 on: above the baseline, not clear of zero at the end",
        ),
        (
            [0.1, 0.1, 0.002, -0.002],
            turns.FADED,
            3,
            "clear of zero until epoch 2, with another sign than at the end",
        ),
        ([0.002, -0.002, 0.001], turns.NEVER_CLEAR, 2, "never clear of zero"),
        ([0.1, 0.0], turns.FADED, 1, "clear of zero until epoch 1, with another sign"),
        ([0.0, 0.0], turns.NEVER_CLEAR, 0, "never clear of zero"),
    ],
)
def test_whether_a_difference_turns(means, kind, last_turn, words):
    course = followed(means)
    assert (course.kind, course.last_turn) == (kind, last_turn)
    assert claims.course(course).startswith(words)
    half = stats.t.isf(0.025, 4) * SPREAD.std(ddof=1) / math.sqrt(5)
    np.testing.assert_allclose(course.high - course.mean, half)
    np.testing.assert_allclose(course.low, np.array(means) - half)


def test_seeds_and_epochs_that_are_not_there_are_left_out():
    arm = 0.5 + np.array([[0.1, 0.1, 0.2], [0.2, 0.2, 0.3], [0.9, np.nan, np.nan]])
    course = turns.course(arm, np.full((4, 2), 0.5))
    assert (course.seeds, course.left_out, course.epochs.tolist()) == (2, 1, [1, 2])
    np.testing.assert_allclose(course.mean, [0.15, 0.15])
    every_second = np.where(np.arange(3) % 2, np.nan, arm[:2])
    assert turns.course(every_second, np.full((2, 3), 0.5)).epochs.tolist() == [1, 3]
    assert turns.course(arm[:1], arm[:1]) is None and turns.course(arm[:, :1], arm) is None


def test_the_report_follows_validation_accuracy(studied):
    part = sections(studied)["Differences along the epochs"]
    assert "not the test metric" in text(part)
    assert len(coverage.courses(studied).rows) == 4
    panel = figures.courses(studied, 1)
    assert panel.caption.endswith("label noise 0.4") and "<svg" in panel.svg
    runs = [[run.history[-1]["validation_accuracy"] for run in arm.runs] for arm in studied.arms[0]]
    course = series.courses(studied)[0, 2]
    assert course.mean[-1] == pytest.approx(np.mean(runs[2]) - np.mean(runs[0]))
    for fields in ({"validation": 0.0}, {"epochs": 1}, {"seeds": 1}):
        found = study_example.results(**({"seeds": 8, "epochs": 3} | fields))
        assert "Differences along the epochs" not in sections(found)
    # Of eight that diverged, two have two epochs, which say nothing of the last
    lost = study_example.results(seeds=8, epochs=3, diverged={(0, 1): list(range(8))})
    assert lost.arms[0][1].runs[2].history and series.courses(lost)[0, 1] is None
    assert [row[2].split()[0] for row in coverage.courses(lost).rows] == ["fewer", "kept"]


# Bayes


def test_the_probability_within_the_margin_is_the_integral_of_the_posterior():
    """Over mu and the standard deviation, on a grid, with the prior 1 / sd."""
    gaps = np.array([0.4, -0.1, 0.6, 0.3, 0.9])
    mu = np.arange(-4, 5, 0.0025)[:, None] + 0.00125
    log_sd = np.linspace(-4, 4, 801)
    squares = ((gaps - mu) ** 2).sum(1)[:, None]
    log_density = -5 * log_sd - squares / 2 / np.exp(2 * log_sd)
    weight = np.exp(log_density - log_density.max()).sum(1)
    inside = np.abs(mu[:, 0]) < 0.5
    wanted = weight[inside].sum() / weight.sum()
    assert statistics.probability_within(gaps, 0.5) == pytest.approx(wanted, abs=1e-4)


def test_the_probability_within_the_margin_at_its_edges():
    assert statistics.probability_within(np.full(4, 0.1), 0.2) == 1
    assert statistics.probability_within(np.full(4, 0.3), 0.2) == 0
    assert statistics.probability_within(np.array([-1.0, 1.0]), 1e9) == pytest.approx(1)
    for gaps in ([1.0], [1.0, np.inf], [1.0, np.nan]):
        assert math.isnan(statistics.probability_within(np.array(gaps), 1.0))


def test_the_report_says_that_the_probability_is_no_error_rate():
    found = study_example.results(seeds=8, epochs=1, diverged={(0, 2): [3]})
    part = sections(found)["Within the margin, by Bayes’ rule"]
    assert "This is not an error rate: it assumes" in text(part)
    table = coverage.within_margin(found)
    assert table.head[-1] == "P(|μ| < 1.00 pp)"
    gaps = differences(found, "accuracy")[0, 1]
    wanted = f"{statistics.probability_within(gaps, 0.01):.3f}"
    assert [row[-1] for row in table.rows] == [wanted, "–"]
