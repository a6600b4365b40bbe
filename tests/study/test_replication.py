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
    assert len(judged) == COUNTS[name]
    assert {line.verdict for line in judged} <= {HOLDS, REFUTED, UNDECIDED}
    assert all(line.numbers for line in judged)
    assert "Written before the run" in module.__doc__ and "Claim (" in module.__doc__


@pytest.mark.usefixtures("no_logits")
@pytest.mark.parametrize("name", COUNTS)
def test_every_script_judges_arms_with_fewer_seeds_than_their_baseline(name, script):
    """As --until decided leaves them; those that are undecided get more."""
    module = script(name)
    results = drawn(module)
    for row in results.arms:
        row[1:] = [dataclasses.replace(arm, cells=arm.cells[:2]) for arm in row[1:]]
    claim = Claim(results.study, module.statements())
    judged = claim.judge(results)
    places = set(claim.undecided(results))
    assert bool(places) == (UNDECIDED in {line.verdict for line in judged})
    assert all(arm in results.study.losses for arm, _ in places)


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


def test_what_deviates_from_its_plan_is_exploratory(script):
    module = script("squared_loss")
    results = drawn(module)
    family = dataclasses.replace(results.family, deviations=("seeds 8 instead of 12",))
    results = dataclasses.replace(results, family=family)
    claim = Claim(results.study, module.statements())
    assert {line.verdict for line in claim.judge(results)} == {"exploratory"}


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
    logits, counts = jnp.array([[0.5, 0.1, -0.2]] * 3), [100, 10, 1]
    labels = jnp.arange(3)
    plain = losses.ldam(logits, labels, class_counts=counts)
    weighted = plain * losses.effective_number(counts)
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
    assert f"n = {len(found)}" in statement["numbers"] and len(found) in (8, 12)
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
