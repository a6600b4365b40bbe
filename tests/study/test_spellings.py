"""A part under any of its names is one arm, one cell, one comparison."""

import sys

import pytest

from cnnlab.config import Config
from cnnlab.errors import InputError
from cnnlab.study import driver, folder, reanalysis
from cnnlab.study.board import Board
from cnnlab.study.plan import Study
from cnnlab.training.run_folder import conflicts, stored_form

MINE = """
import functools
import optax
from cnnlab.losses import cross_entropy, focal, label_smoothing
from cnnlab.models import CNN

def loss(logits, labels, alpha=1, beta=None):
    return alpha * cross_entropy(logits, labels)

same = loss
again = functools.partial(loss, alpha=3)
sharp = functools.partial(focal, gamma=3)
smooth = label_smoothing
narrow = functools.partial(CNN, widths=(8,))
adam = optax.adam
"""


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "spelt.py").write_text(MINE)
    (tmp_path / "spelt_too.py").write_text("from spelt import loss\n")
    yield
    for name in ("spelt", "spelt_too"):
        sys.modules.pop(name, None)


SAME = [
    ("ce", "cross_entropy"),
    ("focal", "focal,gamma=2"),
    ("cnnlab.losses.entropy.focal", "focal,gamma=2e0"),
    ("loss=ce", "cross_entropy"),
    ("spelt.focal", "focal"),
    ("spelt.same", "spelt.loss"),
    ("spelt_too.loss", "spelt.loss"),
    ("spelt.again", "spelt.loss,alpha=3"),
    ("spelt.again,alpha=2", "spelt.loss,alpha=2.0"),
    ("spelt.loss,beta=2", "spelt.loss,beta=2.0"),
    ("spelt.sharp", "focal,gamma=3"),
    ("ce+spelt.smooth", "cross_entropy+label_smoothing,alpha=0.1,convention=uniform"),
    ("apl,active=nfl,passive=rce", "active_passive,active=normalized_focal"),
    ("apl,active=nce", "active_passive"),
    ("model=spelt.CNN", "model=cnn,widths=[32,64]"),
    ("model=spelt.narrow", "model=cnn,widths=(8,)"),
    ("optimizer=spelt.adam", "optimizer=optax.adam,eps=1e-8"),
    ("optimizer=adam", "lr=1e-3"),
    ("schedule=cosine", "schedule=cosine,warmup=0"),
    ("average=ema,decay=0.999", "average=ema"),
    ("augment=flip+crop", "augment=flip+crop,padding=4"),
    ("clip-norm=1", "clip_norm=1.0"),
]
OTHER = [
    ("spelt.loss", "spelt.loss,alpha=2"),
    ("spelt.again", "spelt.loss"),
    ("optimizer=adam", "optimizer=optax.adam"),
    ("augment=flip+crop", "augment=crop+flip"),
    ("apl,active=nfl", "apl"),
]


def cells(arms):
    study = Study(arms=arms)
    return [folder.cells(study, arm, {}, [(0, 1)])[0] for arm in arms]


@pytest.mark.parametrize("arms", SAME, ids=str)
def test_another_spelling_is_the_same_arm(arms, tmp_path):
    study = Study.of(arms=arms, workdir=str(tmp_path / "study"), progress="off")
    with pytest.raises(InputError, match="are the same under two names"):
        driver.run(study, Board("off", 1), "COMMAND")
    assert not (tmp_path / "study").exists()
    first, second = cells(arms)
    # A cell also depends on files that only hand a function on: importing them may do more.
    handed_on = [f"spelt.{name}" for name in ("focal", "again", "sharp", "smooth", "CNN", "narrow")]
    handed_on += ["spelt_too", "spelt.adam"]
    assert (first.digest == second.digest) != any(name in arms[0] for name in handed_on)


@pytest.mark.parametrize("arms", OTHER, ids=str)
def test_what_computes_otherwise_is_another_arm(arms):
    first, second = cells(arms)
    assert first.digest != second.digest


@pytest.mark.parametrize(
    ("before", "after"),
    [("spelt.same", "spelt.loss"), ("apl,active=nce", "active_passive")],
)
def test_a_run_is_resumed_under_another_name(before, after):
    assert conflicts(stored_form(Config.of(loss=before)), Config.of(loss=after)) == []
    assert conflicts(stored_form(Config.of(loss=after)), Config.of(loss=before)) == []


@pytest.mark.parametrize(
    ("arms", "baseline", "named"),
    [
        (("cross_entropy", "focal"), "ce", "cross_entropy"),
        (("ce", "focal,gamma=3"), "loss=spelt.sharp", "focal,gamma=3"),
        (("optimizer=sgd", "optimizer=adam"), "optimizer=adam,b1=0.9", "optimizer=adam"),
        (("lr=0.1", "lr=0.2"), "learning-rate=0.2", "lr=0.2"),
    ],
)
def test_a_baseline_in_another_spelling(arms, baseline, named):
    assert driver.with_baseline(Study(arms=arms, baseline=baseline)).baseline == named


def test_an_unknown_baseline():
    study = Study(losses=("cross_entropy", "focal"), baseline="cross_entrpy")
    with pytest.raises(InputError, match="did you mean 'cross_entropy'"):
        driver.with_baseline(study)


def test_a_metric_of_logits_is_computed_once():
    same = ["ece", "ece,bins=15", "ece+temperature"]
    assert [analysis.text for analysis in reanalysis.parse(same)] == ["ece", "ece+temperature"]


def test_functions_are_no_arms():
    with pytest.raises(TypeError, match="losses must hold texts or numbers, got <function"):
        Study(losses=("ce", lambda logits, labels: logits))
