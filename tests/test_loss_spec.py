"""From the command line to a loss: specifications, the flags that wrap them, one-line errors, and the catalogue."""

import dataclasses
import hashlib

import jax.numpy as jnp
import numpy as np
import pytest

from cnnlab import losses
from cnnlab.config import Config
from cnnlab.errors import InputError
from cnnlab.losses import catalogue, spec

COUNTS = np.array([50, 5, 1])
LOGITS = np.array([[2.0, 0.5, -1.0], [0.0, 1.0, 3.0]], np.float32)
IDS = np.array([0, 1], np.int32)


def failure(call, *args) -> str:
    with pytest.raises(InputError) as error:
        call(*args)
    assert len(str(error.value).splitlines()) == 1, error.value
    return str(error.value)


OWN = """import jax.numpy as jnp
def scaled(logits, labels, factor=2.0):
    return factor * jnp.sum(logits * 0 + 1, -1)
def counted(logits, labels, *, class_counts):
    return jnp.sum(logits, -1) + float(sum(class_counts))
def taught(logits, labels, teacher_logits):
    return jnp.sum(logits - teacher_logits, -1)
def scalar(logits, labels):
    return jnp.mean(logits)
def whole(logits, labels):
    return jnp.argmax(logits, -1)
def wrong(logits, labels):
    return logits @ logits
def of_ids(logits, labels):
    return jnp.take_along_axis(logits, labels[:, None], -1)[:, 0]
number = 3
"""


@pytest.fixture
def own_losses(tmp_path, monkeypatch):
    """A module in the current directory, which is not on sys.path."""
    (tmp_path / "own_losses_here.py").write_text(OWN)
    (tmp_path / "broken_losses_here.py").write_text("import surely_not_installed\n")
    (tmp_path / "raising_losses_here.py").write_text("\nraise RuntimeError('at work')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))  # restores sys.path afterwards
    return tmp_path


def test_losses_by_name_and_by_path(own_losses):
    logits, ids = jnp.zeros((2, 10), jnp.float32), jnp.array([0, 1])
    np.testing.assert_allclose(spec.loss_from_spec("cross_entropy")(logits, ids), np.log(10), rtol=1e-6)
    np.testing.assert_array_equal(spec.loss_from_spec("nce")(logits, ids), losses.nce(logits, ids))
    np.testing.assert_array_equal(
        spec.loss_from_spec("focal, gamma=0.5")(logits, ids), losses.focal(logits, ids, gamma=0.5)
    )
    np.testing.assert_allclose(spec.loss_from_spec("own_losses_here.scaled")(logits, ids), 20)
    np.testing.assert_allclose(spec.loss_from_spec("own_losses_here.scaled,factor=0.5")(logits, ids), 5)


def test_what_is_given_fills_what_is_open(own_losses):
    given = {"class_counts": COUNTS}
    for name in ("ldam", "logit_adjusted", "balanced_softmax"):
        np.testing.assert_array_equal(
            spec.loss_from_spec(name, 3, given)(LOGITS, IDS), losses.LOSSES[name](LOGITS, IDS, COUNTS)
        )
    said = spec.loss_from_spec("balanced_softmax,class_counts=[1,1,1]", 3, given)
    np.testing.assert_allclose(said(LOGITS, IDS), losses.cross_entropy(LOGITS, IDS), rtol=1e-6)
    np.testing.assert_allclose(spec.loss_from_spec("own_losses_here.counted", 3, given)(LOGITS, IDS), [57.5, 60])
    assert spec.loss_from_spec("cross_entropy", 3, given)(LOGITS, IDS).shape == (2,)  # it does not ask


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cross_entrpy", ["unknown loss", "did you mean 'cross_entropy'", "mean_squared_error"]),
        ("focall,gamma=2", ["did you mean 'focal'"]),
        ("", ["starts with a name"]),
        ("cross_entropy,gama=2", ["loss cross_entropy", "gama", "its hyperparameters: none"]),
        ("focal,gama=2", ["'gama'", "its hyperparameters: gamma in [0, inf) (default 2.0)"]),
        ("focal,gamma=-1", ["loss focal: gamma must lie in [0, inf), got -1", "gamma in [0, inf) (default 2.0)"]),
        ("hinge,form=cramer", ["did you mean 'crammer_singer'", "margin in (0, inf) (default 1.0); form: crammer_s"]),
        ("arcface,margin=2", ["margin must lie in [0, 1.5707963], got 2"]),
        ("cross_entropy,gamma", ["key=value"]),
        ("ldam", ["class_counts", "max_margin in [0, inf) (default 0.5)"]),
        ("ldam,class_counts=[1,2]", ["one number for each of the 10 classes"]),
        ("distillation", ["teacher_logits"]),
        ("own_losses_here.scaled,facto=2", ["facto", "hyperparameters: factor (default 2.0)"]),
        ("own_losses_here.scale", ["did you mean 'scaled'"]),
        ("own_losses_here.number", ["unknown loss in own_losses_here"]),
        ("own_losses_here.scalar", ["one value per example", "own_losses_here.scalar"]),
        ("own_losses_here.whole", ["one value per example", "int32"]),
        ("own_losses_here.wrong", ["fails on logits float32[2, 10] and labels int32[2]", "(own_losses_here.py:13)"]),
        ("no_such_module_here.loss", ["no module 'no_such_module_here'"]),
        ("broken_losses_here.loss", ["no module 'surely_not_installed'"]),
        ("raising_losses_here.loss", ["cannot be imported: RuntimeError: at work (raising_losses_here.py:2)"]),
        ("_labels.check", ["no module '_labels'"]),
        ("check", ["unknown loss"]),
        ("label_smoothing", ["unknown loss"]),
    ],
)  # fmt: skip
def test_losses_that_cannot_be(own_losses, text, words):
    message = failure(spec.loss_from_spec, text)
    assert all(word in message for word in words), message


WRAPPED = {
    "loss_temperature": (2.0, lambda loss: losses.temperature(loss, 2.0)),
    "label_smoothing": (0.2, lambda loss: losses.label_smoothing(loss, 0.2)),
    "class_weights": ("effective_number", lambda loss: losses.class_weights(loss, losses.effective_number(COUNTS))),
    "z_loss": (0.1, lambda loss: losses.with_z_loss(loss, 0.1)),
}


@pytest.mark.parametrize("flags", [[], *([flag] for flag in WRAPPED), [*WRAPPED]], ids="+".join)
def test_flags_wrap_the_loss(flags):
    """In this order; z-loss sees the logits as they are."""
    config = Config(loss="focal,gamma=1", **{flag: WRAPPED[flag][0] for flag in flags})
    wanted = lambda z, y: losses.focal(z, y, gamma=1.0)
    for flag in flags:
        wanted = WRAPPED[flag][1](wanted)
    got = spec.loss_from_config(config, 3, COUNTS)(LOGITS, IDS)
    np.testing.assert_allclose(got, wanted(LOGITS, IDS), rtol=1e-6)


def test_smoothing_convention():
    config = Config(label_smoothing=0.3, smoothing_convention="off_target")
    got = spec.loss_from_config(config, 3, COUNTS)(LOGITS, IDS)
    wanted = losses.label_smoothing(losses.cross_entropy, 0.3, "off_target")(LOGITS, IDS)
    np.testing.assert_array_equal(got, wanted)


def test_counts_come_from_the_data():
    got = spec.loss_from_config(Config(loss="balanced_softmax"), 3, COUNTS)(LOGITS, IDS)
    np.testing.assert_array_equal(got, losses.balanced_softmax(LOGITS, IDS, COUNTS))


def test_a_class_without_images():
    for change in (
        {"loss": "ldam"},
        {"loss": "logit_adjusted,tau=2"},
        {"class_weights": "effective_number"},
    ):
        message = failure(spec.loss_from_config, Config(**change), 3, np.array([3, 0, 2]))
        assert "a class without training images has no weight or margin" in message
    spec.loss_from_config(Config(), 3, np.array([3, 0, 2]))
    spec.loss_from_config(Config(loss="ldam,class_counts=[3,1,2]"), 3, np.array([3, 0, 2]))


def test_a_teacher_is_named_where_one_is_needed(own_losses):
    for loss in ("distillation", "kd,alpha=0.5", "own_losses_here.taught"):
        config = Config(loss=loss, teacher="runs/big")
        assert spec.needs_teacher(config)
        message = failure(spec.loss_from_config, dataclasses.replace(config, teacher=None), 3, COUNTS)
        assert "--teacher RUN names the run folder of one" in message and loss in message
    config = Config(loss="distillation,alpha=0.5", teacher="runs/big")
    got = spec.loss_from_config(config, 3, COUNTS)(LOGITS, IDS, teacher_logits=LOGITS[::-1])
    np.testing.assert_array_equal(got, losses.distillation(LOGITS, IDS, LOGITS[::-1], alpha=0.5))
    assert not spec.needs_teacher(Config(loss="distillation,teacher_logits=[1,2,3]"))
    message = failure(spec.loss_from_config, Config(teacher="runs/big"), 3, COUNTS)
    assert "cross_entropy does not" in message and "such as distillation" in message


def test_the_flags_pass_the_teacher_on():
    config = Config(loss="kd", teacher="t", **{flag: value for flag, (value, _) in WRAPPED.items()})
    loss = spec.loss_from_config(config, 3, COUNTS)
    assert loss(LOGITS, IDS, teacher_logits=LOGITS).shape == (2,)


def test_mixup_brings_distributions_and_validation_ids(own_losses):
    spec.loss_from_config(Config(loss="own_losses_here.of_ids"), 3, COUNTS)
    message = failure(spec.loss_from_config, Config(loss="own_losses_here.of_ids", mixup=0.2), 3, COUNTS)
    assert "and labels float32[2, 3] (mixup): " in message and "own_losses_here.py:15" in message
    spec.loss_from_config(Config(loss="arcface", mixup=0.2), 3, COUNTS)
    # an own loss that bears neither is refused with its first reason
    assert "labels int32[2]: " in failure(spec.loss_from_config, Config(loss="own_losses_here.wrong"), 3, COUNTS)


def test_left_open(own_losses):
    assert spec.left_open("cross_entropy") == set()
    assert spec.left_open("ldam,scale=3") == {"class_counts", "max_margin"}
    assert spec.left_open("kd,alpha=0.5,teacher_logits=[1,2]") == {"temperature"}
    assert spec.left_open("own_losses_here.counted") == {"class_counts"}
    assert "unknown loss" in failure(spec.left_open, "kdd")


def test_on_cosines():
    assert {name for name in losses.LOSSES if spec.on_cosines(name)} == losses.ON_COSINES
    assert spec.on_cosines("cosface,margin=0.1") and not spec.on_cosines("my.cosface")


def test_source_digest(own_losses):
    assert spec.source_digest("focal,gamma=2") is None
    digest = hashlib.sha256((own_losses / "own_losses_here.py").read_bytes()).hexdigest()
    assert spec.source_digest("own_losses_here.scaled,factor=3") == digest


@pytest.mark.parametrize("name", losses.LOSSES)
def test_the_catalogue_knows_every_loss(name):
    entry = catalogue.entry(losses.LOSSES[name])
    assert entry.name == name and entry.summary.endswith(".") and len(entry.summary) > 20
    assert entry.formula.startswith("L(z, y) = ")
    assert "http" in entry.source or "J. R. Stat. Soc." in entry.source or "JMLR" in entry.source
    for hyper, (_, text) in entry.hyperparameters.items():
        assert text, hyper
    assert set(entry.aliases) == {alias for alias, f in losses.ALIASES.items() if f.__name__ == name}


def test_an_entry():
    entry = catalogue.entry(losses.poly)
    assert entry.formula == "L(z, y) = -log p_y + epsilon (1 - p_y)"
    text = "in [-1, inf); -1 takes that term away, 0 is cross-entropy (Optax's default is 2)."
    assert entry.hyperparameters == {"epsilon": (1.0, text)}
    assert entry.source == 'Leng et al., 2022, "PolyLoss", https://arxiv.org/abs/2204.12511'
    assert catalogue.entry(losses.bi_tempered).formula.count("\n") == 2
    bare = catalogue.entry(lambda logits, labels, a=1: 0)
    assert (bare.summary, bare.formula, bare.hyperparameters, bare.source) == ("", "", {"a": (1, "")}, "")
    assert catalogue.accepted(losses.ldam).startswith("class_counts: K positive numbers n_k of training examples; max_")


def test_the_listing_names_every_loss_and_hyperparameter():
    blocks = {block.split(",")[0].split(":")[0]: block for block in catalogue.listing().split("\n\n")}
    assert set(blocks) == set(losses.LOSSES)
    assert blocks["mean_squared_error"].startswith("mean_squared_error, mse, brier: Squared distance")
    assert "\n  gamma (default 2.0): in [0, inf)" in blocks["focal"]
    assert "\n  class_counts (required): " in blocks["ldam"]
    assert blocks["poly"].endswith("\n  " + catalogue.entry(losses.poly).source)
