"""The rules of the replications, and each script's judgement of results that were drawn to be
known.
"""

import dataclasses
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import study_example
from scripts import ROOT

from cnnlab import cli, losses
from cnnlab.errors import InputError
from cnnlab.study import driver, measures, reanalysis, statistics
from cnnlab.study.manifest import Manifest
from cnnlab.study.replication import Claim, Replication, replicate
from cnnlab.study.statements import (
    HOLDS,
    REFUTED,
    UNDECIDED,
    Side,
    Statement,
    better,
    equal,
    indistinct,
    judge,
    not_better,
)

FOLDER = ROOT / "experiments/replications"
COUNTS = {
    "bi_tempered": 2,
    "calibration": 7,
    "early_training": 3,
    "label_noise": 12,
    "long_tail": 3,
    "same_loss": 2,
    "smoothing": 2,
    "squared_loss": 1,
    "underfitting": 2,
}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def study_of(module):
    (found,) = [
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, Replication) and v is not Replication
    ]
    return found()


def drawn(module, **changes):
    """Drawn results of a script's own study, with logits that cannot be read."""
    study = study_of(module).replace(**changes)
    fields = {k: v for k, v in study.items() if k != "losses"}
    return study_example.results(losses=study.losses, **fields)


@pytest.fixture
def no_logits(monkeypatch):
    """Metrics of kept logits are drawn, too."""

    def drawn_metric(results, arm, name):
        if name in measures.HISTORY or "+" not in name:
            return measured(results, arm, name)
        return np.random.default_rng(len(arm.name)).uniform(0.02, 0.04, len(arm.runs))

    measured = measures._measured
    monkeypatch.setattr(measures, "_measured", drawn_metric)


def test_every_script_is_listed_here():
    scripts = {p.stem for p in FOLDER.glob("*.py") if "replicate(" in p.read_text()}
    assert scripts == set(COUNTS)


@pytest.mark.parametrize("name", COUNTS)
def test_every_script_has_its_study_s_flags(script, name, capsys):
    study = type(study_of(script(name)))
    with pytest.raises(SystemExit):
        cli.parse(study, ["--help"])
    assert "--training" not in capsys.readouterr().out
    asked = cli.parse(study, ["--data-dir", "DIR", "--epochs", "3"])
    training = asked.training
    assert (training.epochs, training.validation, training.augment) == (3, 0.04, "none")
    assert training.dataset.startswith("cifar10") and asked.machine.data_dir == "DIR"
    assert (asked.until, asked.seeds % 12, asked.max_seeds) == ("decided", 0, 24)


def comparison(mean, sd=0.001, n=12, margin=0.01, larger_is_better=True):
    noise = np.resize([-1.0, 1.0], n) * sd
    return statistics.compare((mean + noise)[None], margin, larger_is_better)[0]


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (comparison(0.02), HOLDS),
        (comparison(0.012, sd=0.008), HOLDS),  # better, by how much is open
        (comparison(-0.02), REFUTED),
        (comparison(-0.004, sd=0.0005), REFUTED),  # worse, within the margin
        (comparison(0.0), REFUTED),  # equivalent: it beats nothing
        (comparison(0.004, sd=0.0005), REFUTED),  # better, but within the margin
        (comparison(0.01, sd=0.05), UNDECIDED),
        (comparison(0.02, n=4), UNDECIDED),  # too few seeds for anything
        (comparison(-0.02, larger_is_better=False), HOLDS),
    ],
)
def test_beating(found, verdict):
    assert better(found) == verdict


@pytest.mark.parametrize(
    ("found", "is_equal", "is_not_better", "is_indistinct"),
    [
        (comparison(0.0), HOLDS, HOLDS, HOLDS),
        (comparison(0.004, sd=0.0005), HOLDS, HOLDS, REFUTED),  # it differs, within the margin
        (comparison(0.02), REFUTED, REFUTED, REFUTED),
        (comparison(-0.02), REFUTED, HOLDS, REFUTED),
        # within or beyond, but it differs
        (comparison(0.012, sd=0.008), UNDECIDED, UNDECIDED, REFUTED),
        (comparison(0.009, sd=0.05), UNDECIDED, UNDECIDED, HOLDS),
        (comparison(0.0, n=4), UNDECIDED, UNDECIDED, UNDECIDED),  # nothing could have been found
    ],
)
def test_being_equal_or_no_better_and_indistinct(found, is_equal, is_not_better, is_indistinct):
    assert (equal(found), not_better(found), indistinct(found)) == (
        is_equal,
        is_not_better,
        is_indistinct,
    )


LESS = Statement(
    "a has less of it", Side("a", "ece"), Side("b", "ece"), better, 0.01, larger_is_better=False
)


def table(**columns):
    return {("as configured", arm): {"ece": np.asarray(ece)} for arm, ece in columns.items()}


def test_a_statement_is_judged_in_its_own_unit_and_direction():
    rng = np.random.default_rng(0)
    b = rng.uniform(0.2, 0.3, 12)
    (judged,) = judge([LESS], table(a=b - 0.05 + rng.uniform(-0.001, 0.001, 12), b=b))
    assert judged.verdict == HOLDS and judged.comparison.mean == pytest.approx(5, abs=0.1)
    low, high = judged.interval
    assert -5.2 < low < -5 < high < -4.8
    assert judged.numbers.startswith("-5") and "points" in judged.numbers
    over_zero = dataclasses.replace(LESS, second=None, larger_is_better=True)
    (judged,) = judge([over_zero], table(a=b))
    assert judged.verdict == HOLDS and judged.shown(judged.comparison.mean) == pytest.approx(
        100 * b.mean()
    )


def test_the_statements_of_a_claim_share_its_error_rate():
    differences = np.array([0.02] * 9)
    of_one = judge([LESS], table(a=np.zeros(9), b=differences))
    of_eight = judge([LESS] * 8, table(a=np.zeros(9), b=differences))
    assert of_one[0].verdict == HOLDS
    assert {line.verdict for line in of_eight} == {UNDECIDED}


def test_nothing_is_known_of_seeds_that_all_diverged_on_both_sides():
    nothing, later = np.full(8, np.nan), np.append(np.full(8, np.nan), [0.1] * 4)
    assert judge([dataclasses.replace(LESS, rule=equal)], table(a=nothing, b=later))[0].verdict == (
        UNDECIDED
    )


def test_networks_that_diverged_are_infinitely_bad_and_nothing_is_known_of_two_that_did():
    nothing, something = np.full(8, np.nan), np.full(8, 0.1)
    cases = {"a": (something, nothing, HOLDS), "b": (nothing, something, REFUTED),
             "both": (nothing, nothing, UNDECIDED)}  # fmt: skip
    for first, second, verdict in cases.values():
        assert judge([LESS], table(a=first, b=second))[0].verdict == verdict


def test_even_seeds_are_compared_with_odd_ones():
    values = table(a=np.arange(5.0))
    assert Side("a", "ece", (0, 2)).of(values, "as configured").tolist() == [0, 2, 4]
    assert Side("a", "ece", (1, 2)).of(values, "as configured").tolist() == [1, 3]


@pytest.mark.usefixtures("no_logits")
@pytest.mark.parametrize("name", COUNTS)
def test_every_script_judges_what_it_announces(name, script):
    """Drawn results of its own study: as many statements as the docstring has, each with a verdict
    and its numbers.
    """
    module = script(name)
    results = drawn(module)
    claim = Claim(results.study, module.statements())
    judged = claim.judge(results)
    measures.check(results.study, claim.measures)
    assert len(judged) == COUNTS[name]
    assert {line.verdict for line in judged} <= {HOLDS, REFUTED, UNDECIDED}
    assert all(line.numbers for line in judged)
    assert "Written before the run" in module.__doc__ and "Claim (" in module.__doc__
    assert set(claim.undecided(results)) == {
        (side.arm, line.statement.condition)
        for line in judged
        if line.is_open
        for side in line.statement.sides
    }


CE, MSE, SMOOTHED = (
    "cross_entropy",
    "mean_squared_error",
    "cross_entropy+label_smoothing,alpha=0.1",
)
POSTHOC = "accuracy+logit_adjustment,tau=1"
NOISES = ("label noise 0.4", "label noise 0.8")
TAIL = "long tail 100.0"
# What is measured where a claim is true and where it is not: arm -> measure -> value.
TRUE = {
    "bi_tempered": {
        CE: {"accuracy": 0.4, "best_validation_accuracy": 0.5},
        "bi_tempered,t1=0.8,t2=1.2": {"accuracy": 0.6, "best_validation_accuracy": 0.6},
    },
    "calibration": {
        CE: {"overconfidence": 0.2, "ece": 0.2, "ece+temperature": 0.03},
        MSE: {"ece": 0.1, "ece+temperature": 0.01},
        "focal,gamma=3": {"ece": 0.1, "ece+temperature": 0.01},
        SMOOTHED: {"ece": 0.1, "ece+temperature": 0.01},
    },
    "early_training": {
        CE: {"early_gradient": 1.0, "epochs_to_45_percent": 3, "first_validation_accuracy": 0.3},
        MSE: {"early_gradient": 0.0, "epochs_to_45_percent": 8, "first_validation_accuracy": 0.2},
    },
    "label_noise": {
        CE: {"accuracy": 0.4, "best_validation_accuracy": 0.5},
        "generalized_cross_entropy": {"accuracy": 0.6, "best_validation_accuracy": 0.6},
        "symmetric_cross_entropy": {"accuracy": 0.6, "best_validation_accuracy": 0.6},
        "active_passive": {"accuracy": 0.6, "best_validation_accuracy": 0.6},
    },
    "long_tail": {
        CE: {"accuracy": 0.4, POSTHOC: 0.501},
        "logit_adjusted": {"accuracy": 0.5},
        "deferred.ldam_drw": {"accuracy": 0.5},
    },
    "same_loss": {CE: {"accuracy": 0.5}, MSE: {"accuracy": 0.5}},
    "smoothing": {
        CE: {"ece": 0.2, "ece+temperature": 0.02},
        SMOOTHED: {"ece": 0.1, "ece+temperature": 0.025},
    },
    "squared_loss": {CE: {"accuracy": 0.5}, "squared_logits": {"accuracy": 0.501}},
    "underfitting": {
        CE: {"train_accuracy": 0.99, "accuracy": 0.6},
        "mean_absolute_error": {"train_accuracy": 0.5, "accuracy": 0.5},
    },
}
FALSE = {
    name: {arm: {m: -v for m, v in measured.items()} for arm, measured in arms.items()}
    for name, arms in TRUE.items()
    if name not in ("same_loss", "smoothing", "squared_loss", "long_tail")
} | {
    "same_loss": {CE: {"accuracy": (0.5, 0.4)}, MSE: {"accuracy": (0.5, 0.55)}},
    "smoothing": {
        CE: {"ece": 0.2, "ece+temperature": 0.03},
        SMOOTHED: {"ece": 0.205, "ece+temperature": 0.02},
    },
    "squared_loss": {CE: {"accuracy": 0.5}, "squared_logits": {"accuracy": 0.52}},
    "long_tail": {
        CE: {"accuracy": 0.5, POSTHOC: 0.4},
        "logit_adjusted": {"accuracy": 0.5},
        "deferred.ldam_drw": {"accuracy": 0.4},
    },
}


def world(name, arms):
    """Values of 24 seeds about those numbers; two numbers are of even and of odd seeds."""
    conditions = {"label_noise": NOISES, "bi_tempered": NOISES[:1], "long_tail": (TAIL,)}
    rng = np.random.default_rng(0)
    return {
        (condition, arm): {
            measure: np.resize(level, 24) + rng.uniform(-1e-3, 1e-3, 24)
            for measure, level in measured.items()
        }
        for condition in conditions.get(name, ("as configured",))
        for arm, measured in arms.items()
    }


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize(("worlds", "verdict"), [(TRUE, HOLDS), (FALSE, REFUTED)])
def test_every_script_finds_what_is_true_and_what_is_not(name, worlds, verdict, script):
    module = script(name)
    judged = judge(module.statements(), world(name, worlds[name]))
    assert {line.statement.text: line.verdict for line in judged} == {
        line.statement.text: verdict for line in judged
    }
    assert not any(line.is_open for line in judged)


@pytest.mark.usefixtures("no_logits")
@pytest.mark.parametrize("name", COUNTS)
def test_every_script_judges_arms_with_fewer_seeds_than_their_baseline(name, script):
    """As --until decided leaves them; those that are undecided get more."""
    module = script(name)
    results = drawn(module)
    for row in results.arms:
        row[1:] = [dataclasses.replace(arm, cells=arm.cells[:2]) for arm in row[1:]]
    claim = Claim(results.study, module.statements())
    lengths = {line.comparison.n for line in claim.judge(results)}
    assert lengths <= {4, 8, 12, 24} and min(lengths) < 24


@pytest.mark.usefixtures("no_logits")
def test_a_table_is_read_back_as_it_was_written(script, tmp_path):
    module = script("calibration")
    results = drawn(module)
    claim = Claim(results.study, module.statements())
    (tmp_path / "table.csv").write_text(measures.text(claim.table(results)))
    values = measures.read(tmp_path / "table.csv")
    assert values.keys() == claim.table(results).keys()
    verdicts = [line.verdict for line in judge(claim.statements, values)]
    assert verdicts == [line.verdict for line in claim.judge(results)]
    assert len(values["as configured", "cross_entropy"]["optimizer.weight_decay"]) == 24
    with pytest.raises(InputError, match="cannot be read"):
        measures.read(tmp_path / "none.csv")


@pytest.mark.usefixtures("no_logits")
def test_tables_of_verdicts_are_written_from_the_numbers_alone(script, tmp_path, capsys):
    publish = script("publish")
    module = script("squared_loss")
    results = drawn(module)
    claim = Claim(results.study, module.statements())
    (tmp_path / "results").mkdir()
    (tmp_path / "results/squared_loss.csv").write_text(measures.text(claim.table(results)))
    marked = f"before\n{publish.BEGIN}\nstale\n{publish.END}\nafter\n"
    (tmp_path / "README.md").write_text(marked)
    publish.main(publish.Arguments(str(tmp_path)))
    (judged,) = claim.judge(results)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "stale" not in text
    page = (tmp_path / "results/squared_loss.md").read_text()  # which was not there
    for written in (text, page):
        assert f"| **{judged.verdict}** | {judged.difference} points |" in written
    rate = results.arms[0][0].runs[0].chosen["learning_rate"]
    assert f"{rate:.4g}" in page and "48 networks" in page
    assert (tmp_path / "results/verdicts.png").stat().st_size > 1000
    (tmp_path / "README.md").write_text("no marks")
    with pytest.raises(cli.Stopped, match="no line"):
        publish.main(publish.Arguments(str(tmp_path)))


def test_the_pilot_s_table(script):
    column = {"train_accuracy": 0.995, "accuracy": 0.6, "ece": 0.31, "seconds": 50.0}
    fast = {name: np.array([value]) for name, value in column.items()}
    fast |= {"epochs_to_fit_99_percent": np.array([13.0]), "memorised": np.array([0.98])}
    values = {(c, a): f for c in ("label noise 0.0", "label noise 0.4")
              for a, f in (("epochs=30", fast), ("epochs=9", fast))}  # fmt: skip
    assert script("pilot").lines(values)[2:] == [
        "| epochs=30 | 13 | 98.0% | 60.0%; 60.0% | 31.0%; 31.0% | 50; 50 |",
        "| epochs=9 | not reached | 98.0% | 60.0%; 60.0% | 31.0%; 31.0% | 50; 50 |",
    ]


def test_published_tables_are_those_of_the_published_numbers(script):
    publish = script("publish")
    for path, text in publish.pages(FOLDER, publish.read(FOLDER)).items():
        assert path.read_text() == text, f"run experiments/replications/publish.py: {path.name}"


def test_statements_that_change_after_the_run_are_noticed(script, tmp_path):
    study = study_of(script("squared_loss"))
    claim = Claim(study, script("squared_loss").statements())
    path = tmp_path / "statements.json"
    with pytest.raises(InputError, match="restore it"):
        claim.deviations(path)
    claim.write(path)
    assert claim.deviations(path) == []
    for change in ({"margin": 0.02}, {"rule": better}, {"text": "it differs"}):
        other = Claim(study, [dataclasses.replace(claim.statements[0], **change)])
        other.write(path)
        assert other.deviations(path) == ["other statements than were written before the run"]


def test_what_needs_logits_is_refused_before_the_run_where_none_are_kept(script, capsys):
    module = script("smoothing")
    study = study_of(module).replace(keep_logits="none")
    with pytest.raises(InputError, match="--keep-logits"):
        replicate(study, module.statements, "smoothing")
    assert capsys.readouterr().out == ""


def test_an_advantage_whose_size_is_open_gets_more_seeds():
    rng = np.random.default_rng(1)
    b = rng.uniform(0.2, 0.3, 12)
    near = judge([LESS], table(a=b - 0.01 + rng.uniform(-0.008, 0.008, 12), b=b))[0]
    assert (near.verdict, near.comparison.words, near.is_open) == (HOLDS, "better", True)
    far = judge([LESS], table(a=b - 0.03 + rng.uniform(-0.008, 0.008, 12), b=b))[0]
    assert (far.verdict, far.is_open) == (HOLDS, False)


def test_constant_differences_are_decided_on_either_side_of_a_margin():
    """Of whole numbers, far from zero compared with their margin."""
    four, six = np.full(9, 4.0), np.full(9, 6.0)
    for rule, verdict in ((better, HOLDS), (equal, REFUTED), (not_better, REFUTED)):
        statement = dataclasses.replace(LESS, margin=0.5, rule=rule)
        (judged,) = judge([statement], table(a=four, b=six))
        assert judged.verdict == verdict and judged.comparison.extent
        assert judged.shown(judged.comparison.low) == pytest.approx(-200)


@pytest.mark.parametrize(
    "changes", [{"losses": ("mse", "focal")}, {"label_noise": (0.1,)}, {"validation": 0.0}]
)
def test_what_a_claim_is_about_cannot_be_changed(script, changes):
    with pytest.raises(InputError, match="--"):
        study_of(script("early_training")).replace(**changes)


def test_a_loss_that_is_better_early_is_found_so(script):
    module = script("early_training")
    results = drawn(module)
    fast, slow = results.arms[0]
    for run, quick in zip(slow.runs, fast.runs, strict=True):
        run.gradient_norms[:] = [norm / 10 for norm in quick.gradient_norms]
        for row, like in zip(run.history, quick.history, strict=True):
            row["validation_accuracy"] = like["validation_accuracy"] - 0.2
    judged = Claim(results.study, module.statements()).judge(results)
    assert [judged[i].verdict for i in (0, 2)] == [HOLDS, HOLDS]
    assert judged[0].shown(judged[0].comparison.mean) == pytest.approx(np.log(10))


def test_the_gradient_of_a_confident_mistake_is_250_times_as_long():
    """What the claim about early training says of the formulas."""
    mistaken = jnp.log(jnp.array([1e-3, 0.999])), jnp.array(0)
    lengths = [
        float(jnp.linalg.norm(jax.grad(loss)(*mistaken)))
        for loss in (losses.cross_entropy, losses.mse)
    ]
    assert lengths[0] / lengths[1] == pytest.approx(250, rel=0.01)


def test_deferred_weights_begin_in_the_last_fifth(script):
    loss = script("deferred").ldam_drw
    logits, counts = jnp.array([[0.5, 0.1, -0.2]] * 3), np.array([100, 10, 1])
    labels = jnp.arange(3)
    plain = np.asarray(losses.ldam(logits, labels, class_counts=counts))
    weights = np.asarray(losses.effective_number(counts))
    weighted = plain * weights * np.sum(counts) / np.sum(weights * counts)
    np.testing.assert_allclose(loss(logits, labels, counts, progress=0.79), plain, rtol=1e-6)
    np.testing.assert_allclose(loss(logits, labels, counts, progress=0.8), weighted, rtol=1e-6)
    assert loss.head == "cosine"


@pytest.mark.slow
def test_replicate_trains_judges_and_stores(tfds_root, tmp_path, capsys):
    study = Replication.of(
        dataset="tiny", losses=("cross_entropy", "squared_logits"), model="mlp,hidden=[8]",
        compute_dtype="float32", batch_size=32, validation=0.2, epochs=2, seeds=8, max_seeds=12,
        budget=2, tune_seeds=1, devices=1, progress="off", workdir=str(tmp_path),
    )  # fmt: skip

    def statements():
        sides = Side("squared_logits", "nll+temperature"), Side("cross_entropy", "nll+temperature")
        return [Statement("it is likelier", *sides, better, 1e-6, larger_is_better=False)]

    with jax.numpy_dtype_promotion("standard"):
        replicate(study, statements, "likelihood")
    stored = json.loads((tmp_path / "likelihood/verdict.json").read_text())
    (statement,) = stored["statements"]
    assert statement["verdict"].upper() in capsys.readouterr().out
    values = measures.read(tmp_path / "likelihood/likelihood.csv")
    kept = reanalysis.read(tmp_path, tmp_path / "likelihood")
    (analysis,) = reanalysis.parse(["nll+temperature"])
    expected = [value for cell in kept.cells[0, 1] for value in reanalysis.of_cell(analysis, cell)]
    found = values["as configured", "squared_logits"]["nll+temperature"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert f"n = {len(found)}" in statement["numbers"]
    assert stored["deviations"] == []
    assert (tmp_path / "likelihood/report.html").exists()


@pytest.mark.slow
def test_seeds_are_added_to_the_arms_of_undecided_statements_alone(tfds_root, tmp_path):
    asked = []

    def undecided(results):
        asked.append([len(arm.runs) for arm in results.arms[0]])
        return [("mean_squared_error", "as configured")] if len(asked) == 1 else []

    study = Replication.of(
        dataset="tiny", losses=("cross_entropy", "squared_logits", "mean_squared_error"),
        model="mlp,hidden=[8]", compute_dtype="float32", batch_size=32, validation=0.2, epochs=1,
        seeds=4, max_seeds=12, tune=(), tune_seeds=None, devices=1, progress="off",
        workdir=str(tmp_path),
    )  # fmt: skip
    with jax.numpy_dtype_promotion("standard"):
        results = driver.conduct(study, "command", undecided=undecided)
    assert asked == [[4, 4, 4], [4, 4, 8]]
    assert isinstance(results.family.manifest, Manifest)
