"""The rules of the replications, and each script's judgement of results that were drawn to be
known.
"""

import dataclasses
import importlib
import json

import numpy as np
import pytest
import study_example
from scripts import ROOT

from cnnlab import cli
from cnnlab.errors import InputError
from cnnlab.study import driver, replication, statistics
from cnnlab.study.replication import HOLDS, REFUTED, UNDECIDED, Replication

NAMES = sorted(path.stem for path in (ROOT / "experiments/replications").glob("*.py"))


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments/replications"))
    return importlib.import_module


def study_of(module):
    (found,) = [
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, Replication) and v is not Replication
    ]
    return found()


@pytest.mark.parametrize("name", NAMES)
def test_every_script_has_its_study_s_flags(script, name, capsys):
    study = type(study_of(script(name)))
    with pytest.raises(SystemExit):
        cli.parse(study, ["--help"])
    assert "--training" not in capsys.readouterr().out
    asked = cli.parse(study, ["--data-dir", "DIR", "--epochs", "3"])
    training = asked.training
    assert (training.dataset, training.epochs, training.validation) == ("cifar10", 3, 0.04)
    assert asked.machine.data_dir == "DIR"


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
    assert replication.judged("", found, replication.better).verdict == verdict


@pytest.mark.parametrize(
    ("found", "equal", "indistinct"),
    [
        (comparison(0.0), HOLDS, HOLDS),
        (comparison(0.004, sd=0.0005), HOLDS, REFUTED),  # it differs, within the margin
        (comparison(0.02), REFUTED, REFUTED),
        (comparison(-0.02), REFUTED, REFUTED),
        (comparison(0.012, sd=0.008), UNDECIDED, REFUTED),  # within or beyond, but it differs
        (comparison(0.009, sd=0.05), UNDECIDED, HOLDS),
        (comparison(0.0, n=4), UNDECIDED, UNDECIDED),  # nothing could have been found
    ],
)
def test_being_equal_and_indistinct(found, equal, indistinct):
    assert replication.equal(found) == equal
    assert replication.indistinct(found) == indistinct


@pytest.mark.parametrize("name", NAMES)
def test_every_script_judges_what_it_announces(name, script, monkeypatch):
    """Drawn results of its own study: as many statements as the docstring has, each with a verdict
    and its numbers.
    """
    module = script(name)
    study = study_of(module)
    fields = {name: value for name, value in study.items() if name != "losses"}
    found = study_example.results(losses=study.losses, **fields)
    other = study_example.results(losses=study.losses, first_seed=1000)
    monkeypatch.setattr(driver, "conduct", lambda *_: other)  # same_loss trains more
    statements = module.judge(found)
    assert len(statements) == {"early_training": 4, "label_noise": 5, "calibration": 4,
                               "long_tail": 2,
                               "same_loss": 2, "squared_loss": 1}[name]  # fmt: skip
    assert {each.verdict for each in statements} <= {HOLDS, REFUTED, UNDECIDED}
    assert all(each.numbers for each in statements)
    assert "before the run" in module.__doc__ and "Claim (" in module.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_every_script_judges_arms_with_fewer_seeds_than_their_baseline(name, script, monkeypatch):
    """As --until decided leaves them."""
    module = script(name)
    study = study_of(module)
    fields = {name: value for name, value in study.items() if name != "losses"}
    found = study_example.results(losses=study.losses, **fields)
    for row in found.arms:
        row[1:] = [dataclasses.replace(arm, cells=arm.cells[:2]) for arm in row[1:]]
    other = study_example.results(losses=study.losses, first_seed=1000, seeds=12)
    monkeypatch.setattr(driver, "conduct", lambda *_: other)
    assert module.judge(found)


@pytest.mark.parametrize(
    "changes", [{"losses": ("mse", "focal")}, {"label_noise": (0.1,)}, {"validation": 0.0}]
)
def test_what_a_claim_is_about_cannot_be_changed(script, changes):
    with pytest.raises(InputError, match="--"):
        study_of(script("early_training")).replace(**changes)


def test_a_loss_that_is_better_early_is_found_so(script):
    module = script("early_training")
    found = study_example.results(losses=("cross_entropy", "mean_squared_error"), fraction=(0.2,))
    fast, slow = (cell.runs for cell in found.arms[0])
    for run, quick in zip(slow, fast, strict=True):
        run.gradient_norms[:] = [norm / 10 for norm in quick.gradient_norms]
        for row, like in zip(run.history, quick.history, strict=True):
            row["validation_accuracy"] = like["validation_accuracy"] - 0.2
    assert [each.verdict for each in module.judge(found)][:2] == [HOLDS, HOLDS]
    assert module.judge(found)[3].verdict == HOLDS


def test_a_loss_that_diverges_over_other_seeds_only_differs_from_itself(script, monkeypatch):
    module = script("same_loss")
    study = study_of(module)
    first = study_example.results(losses=study.losses, seeds=12)
    diverged = {(0, 0): list(range(1000, 1012))}
    second = study_example.results(
        losses=study.losses, seeds=12, first_seed=1000, diverged=diverged
    )
    monkeypatch.setattr(driver, "conduct", lambda *_: second)
    assert module.judge(first)[0].verdict == REFUTED


@pytest.mark.slow
def test_replicate_trains_judges_and_stores(tfds_root, tmp_path, capsys, script):
    import jax

    study = Replication.of(
        dataset="tiny", fraction=(1.0,), losses=("cross_entropy", "squared_logits"),
        model="mlp,hidden=[8]",
        batch_size=32, validation=0.2, epochs=2, seeds=8, devices=1, progress="off",
        workdir=str(tmp_path),
    )  # fmt: skip
    with jax.numpy_dtype_promotion("standard"):
        replication.replicate(study, script("squared_loss").judge, "squared_loss")
    stored = json.loads((tmp_path / "squared_loss/verdict.json").read_text())
    (statement,) = stored["statements"]
    assert (
        statement["verdict"].upper() in capsys.readouterr().out and "n = 8" in statement["numbers"]
    )
    assert (tmp_path / "squared_loss/report.html").exists()
