"""From --loss to a loss: what the run supplies, transforms around it, one-line errors, and what
each docstring says.
"""

import hashlib

import jax.numpy as jnp
import numpy as np
import pytest

from cnnlab import docstrings, losses, spec
from cnnlab.config import Config, Recipe
from cnnlab.errors import InputError
from cnnlab.parts import KINDS, resolve

COUNTS = np.array([50, 5, 1])
LOGITS = np.array([[2.0, 0.5, -1.0], [0.0, 1.0, 3.0]], np.float32)
IDS = np.array([0, 1], np.int32)
LOSS = KINDS["loss"]


def failure(call, *args) -> str:
    with pytest.raises(InputError) as error:
        call(*args)
    assert len(str(error.value).splitlines()) == 1, error.value
    return str(error.value)


def built(loss="cross_entropy", class_counts=COUNTS, label_dtypes=("int32",), **fields):
    """The loss of a configuration for as many classes as there are counts."""
    parts = resolve(Recipe.of(loss=loss, **fields))
    return parts.build_loss(len(class_counts), np.asarray(class_counts), label_dtypes)


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
def perhaps_taught(logits, labels, teacher_logits=None):
    return jnp.sum(logits if teacher_logits is None else teacher_logits, -1)
def on_cosines(logits, labels):
    return jnp.sum(logits, -1)
on_cosines.head = "cosine"
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
    logits = jnp.zeros((2, 10), jnp.float32)
    ids = jnp.array([0, 1])
    ten = np.ones(10)
    np.testing.assert_allclose(built("cross_entropy", ten)(logits, ids), np.log(10), rtol=1e-6)
    np.testing.assert_array_equal(built("nce", ten)(logits, ids), losses.nce(logits, ids))
    np.testing.assert_array_equal(
        built("focal, gamma=0.5", ten)(logits, ids), losses.focal(logits, ids, gamma=0.5)
    )
    np.testing.assert_allclose(built("own_losses_here.scaled", ten)(logits, ids), 20)
    np.testing.assert_allclose(built("own_losses_here.scaled,factor=0.5", ten)(logits, ids), 5)


def test_what_is_given_fills_what_is_open(own_losses):
    for name in ("ldam", "logit_adjusted", "balanced_softmax"):
        np.testing.assert_array_equal(
            built(name)(LOGITS, IDS), losses.LOSSES[name](LOGITS, IDS, COUNTS)
        )
    said = built("balanced_softmax,class_counts=[1,1,1]")
    np.testing.assert_allclose(said(LOGITS, IDS), losses.cross_entropy(LOGITS, IDS), rtol=1e-6)
    np.testing.assert_allclose(built("own_losses_here.counted")(LOGITS, IDS), [57.5, 60])
    assert built("cross_entropy")(LOGITS, IDS).shape == (2,)  # it does not ask


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cross_entrpy", ["unknown loss", "did you mean 'cross_entropy'", "mean_squared_error"]),
        ("focall,gamma=2", ["did you mean 'focal'"]),
        ("", ["starts with a name"]),
        ("cross_entropy,gama=2", ["loss cross_entropy", "gama", "its hyperparameters: none"]),
        ("focal,gama=2", ["'gama'", "its hyperparameters: gamma in [0, inf) (default 2.0)"]),
        ("focal,gamma=-1", ["loss focal: gamma must lie in [0, inf), got "
                            "-1", "gamma in [0, inf) (default 2.0)"]),
        ("hinge,form=cramer", ["did you mean "
                               "'crammer_singer'", "margin in (0, inf) (default 1.0); form: "
                                                   "crammer_s"]),
        ("arcface,margin=2", ["margin must lie in [0, 1.5707963], got 2"]),
        ("cross_entropy,gamma", ["key=value"]),
        ("ldam,class_counts=[1,2]", ["one number for each of the 10 classes"]),
        ("distillation", ["distillation compares with a teacher: --teacher RUN"]),
        ("own_losses_here.scaled,facto=2", ["facto", "hyperparameters: factor (default 2.0)"]),
        ("own_losses_here.scale", ["did you mean 'scaled'"]),
        ("own_losses_here.number", ["unknown loss in own_losses_here"]),
        ("own_losses_here.scalar", ["one value per example", "own_losses_here.scalar"]),
        ("own_losses_here.whole", ["one value per example", "int32"]),
        ("own_losses_here.wrong", ["fails on logits float32[2, 10] and labels "
                                   "int32[2]", "(own_losses_here.py:13)"]),
        ("no_such_module_here.loss", ["no module 'no_such_module_here'"]),
        ("broken_losses_here.loss", ["no module 'surely_not_installed'"]),
        ("raising_losses_here.loss", ["cannot be imported: RuntimeError: at work "
                                      "(raising_losses_here.py:2)"]),
        ("_labels.check", ["no module '_labels'"]),
        ("check", ["unknown loss"]),
        ("label_smoothing", ["unknown loss"]),
        ("cross_entropy+focal", ["unknown loss transform 'focal'", "with_z_loss"]),
        ("cross_entropy+label_smoothin", ["unknown loss "
                                          "transform", "did you mean 'label_smoothing'"]),
        ("cross_entropy+label_smoothing,convention=x", ["unknown smoothing convention "
                                                        "'x'", "uniform, off_target"]),
        ("cross_entropy+class_weights,weights=[1,2]", ["one number for each of the 10 classes"]),
    ],
)  # fmt: skip
def test_losses_that_cannot_be(own_losses, text, words):
    message = failure(built, text, np.ones(10))
    assert all(word in message for word in words), message


WRAPPED = {
    "temperature,t=2": lambda loss: losses.temperature(loss, 2.0),
    "label_smoothing,alpha=0.2": lambda loss: losses.label_smoothing(loss, 0.2),
    "class_balanced": lambda loss: losses.class_weights(loss, losses.effective_number(COUNTS)),
    "z_loss,coefficient=0.1": lambda loss: losses.with_z_loss(loss, 0.1),
}


@pytest.mark.parametrize(
    "chosen", [[], *([one] for one in WRAPPED), [*WRAPPED], [*reversed(WRAPPED)]], ids="+".join
)
def test_transforms_wrap_the_loss(chosen):
    """In the order in which they are written: the last is outermost, so z-loss there sees the
    logits as they are.
    """

    def wanted(logits, labels):
        return losses.focal(logits, labels, gamma=1.0)

    for transform in chosen:
        wanted = WRAPPED[transform](wanted)
    got = built("+".join(["focal,gamma=1", *chosen]))(LOGITS, IDS)
    np.testing.assert_allclose(got, wanted(LOGITS, IDS), rtol=1e-6)


def test_smoothing_convention():
    got = built("cross_entropy+label_smoothing,alpha=0.3,convention=off_target")(LOGITS, IDS)
    wanted = losses.label_smoothing(losses.cross_entropy, 0.3, "off_target")(LOGITS, IDS)
    np.testing.assert_array_equal(got, wanted)


def test_class_weights_may_be_written():
    got = built("cross_entropy+class_weights,weights=[1,2,3]")(LOGITS, IDS)
    np.testing.assert_allclose(
        got, np.float32([1, 2]) * losses.cross_entropy(LOGITS, IDS), rtol=1e-6
    )
    got = built("cross_entropy+class_balanced,class_counts=[50,5,1]", np.ones(3))(LOGITS, IDS)
    np.testing.assert_array_equal(got, built("cross_entropy+class_balanced")(LOGITS, IDS))


def test_a_class_without_images():
    for loss in ("ldam", "logit_adjusted,tau=2", "cross_entropy+class_balanced"):
        message = failure(built, loss, np.array([3, 0, 2]))
        assert "a class without training images has no weight or margin" in message
    built("cross_entropy", np.array([3, 0, 2]))
    built("ldam,class_counts=[3,1,2]", np.array([3, 0, 2]))


def test_a_teacher_is_named_where_one_is_needed(own_losses):
    for loss in ("distillation", "kd,alpha=0.5", "own_losses_here.taught"):
        config = Config.of(loss=loss, teacher="runs/big")
        assert resolve(config.recipe).needs_teacher and resolve(config.recipe).loss_asks == {
            "teacher_logits"
        }
        message = failure(resolve, config.replace(teacher=None).recipe)
        assert "--teacher RUN names the run folder of one" in message and loss in message
    got = built("distillation,alpha=0.5", teacher="runs/big")(
        LOGITS, IDS, teacher_logits=LOGITS[::-1]
    )
    np.testing.assert_array_equal(got, losses.distillation(LOGITS, IDS, LOGITS[::-1], alpha=0.5))
    assert not resolve(Recipe.of(loss="distillation,teacher_logits=[1,2,3]")).needs_teacher
    message = failure(resolve, Recipe.of(teacher="runs/big"))
    assert "cross_entropy does not" in message and "such as distillation" in message


def test_a_loss_that_can_do_without_a_teacher(own_losses):
    parts = resolve(Recipe.of(loss="own_losses_here.perhaps_taught"))
    assert not parts.needs_teacher and not parts.loss_asks
    np.testing.assert_allclose(parts.build_loss(3, COUNTS)(LOGITS, IDS), LOGITS.sum(-1))
    assert resolve(Recipe.of(loss="own_losses_here.perhaps_taught", teacher="t")).loss_asks == {
        "teacher_logits"
    }


def test_transforms_pass_the_teacher_on():
    loss = built("+".join(["kd", *WRAPPED]), teacher="t")
    assert loss(LOGITS, IDS, teacher_logits=LOGITS).shape == (2,)


def test_mixup_brings_distributions_and_validation_ids(own_losses):
    both = ("float32", "int32")
    built("own_losses_here.of_ids")
    message = failure(built, "own_losses_here.of_ids", COUNTS, both)
    assert "and labels float32[2, 3] (mixup): " in message and "own_losses_here.py:15" in message
    built("arcface", COUNTS, both)
    # an own loss that bears neither is refused with its first reason
    assert "labels int32[2]: " in failure(built, "own_losses_here.wrong", COUNTS)


@pytest.mark.parametrize(
    ("text", "open_ones"),
    [
        ("cross_entropy", set()),
        ("ldam,scale=3", {"class_counts", "max_margin"}),
        ("kd,alpha=0.5,teacher_logits=[1,2]", {"temperature"}),
        ("own_losses_here.counted", {"class_counts"}),
    ],
)
def test_what_a_spec_leaves_open(own_losses, text, open_ones):
    part = spec.find(LOSS, text)
    assert {name for name in part.parameters if part.asks(name)} == open_ones


def test_losses_for_cosines_say_so(own_losses):
    marked = {
        name for name, loss in losses.LOSSES.items() if getattr(loss, "head", None) == "cosine"
    }
    assert marked == {"arcface", "cosface", "cosine_softmax", "ldam"}
    assert {
        name for name in losses.LOSSES if spec.find(LOSS, name).mark("head") == "cosine"
    } == marked
    assert spec.find(LOSS, "cosface,margin=0.1").mark("head") == "cosine"
    assert spec.find(LOSS, "own_losses_here.scaled").mark("head", "linear") == "linear"
    assert spec.find(LOSS, "own_losses_here.on_cosines").mark("head", "linear") == "cosine"


def test_the_file_of_an_own_loss_is_told_by_its_digest(own_losses):
    assert spec.find(LOSS, "focal,gamma=2").sources() == {}
    digest = hashlib.sha256((own_losses / "own_losses_here.py").read_bytes()).hexdigest()
    assert resolve(Recipe.of(loss="own_losses_here.scaled,factor=3")).sources() == {
        "own_losses_here": digest
    }


@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_loss_is_described(name):
    part = spec.find(LOSS, name)
    entry = docstrings.entry(part.function)
    assert entry.name == name and entry.summary.endswith(".") and len(entry.summary) > 20
    assert entry.formula.startswith("L(z, y) = ")
    assert "http" in entry.source or "J. R. Stat. Soc." in entry.source or "JMLR" in entry.source
    for hyper in part.hyperparameters():
        assert entry.arguments[hyper], hyper


def test_an_entry():
    entry = docstrings.entry(losses.poly)
    assert entry.formula == "L(z, y) = -log p_y + epsilon (1 - p_y)"
    text = "in [-1, inf); -1 takes that term away, 0 is cross-entropy (Optax's default is 2)."
    assert entry.arguments["epsilon"] == text
    assert entry.source == 'Leng et al., 2022, "PolyLoss", https://arxiv.org/abs/2204.12511'
    assert docstrings.entry(losses.bi_tempered).formula.count("\n") == 2
    accepted = spec.find(LOSS, "ldam").accepted()
    assert accepted.startswith(
        "its hyperparameters: class_counts: K positive numbers n_k of training examples; max_"
    )


def test_the_listing_names_every_loss_and_hyperparameter():
    *listed, last = spec.listing(LOSS).split("\n\n")
    blocks = {block.split(",")[0].split(":")[0]: block for block in listed}
    assert set(blocks) == set(losses.LOSSES)
    assert blocks["mean_squared_error"].startswith(
        "mean_squared_error, mse, brier: Squared distance"
    )
    assert "\n  gamma (default 2.0): in [0, inf)" in blocks["focal"]
    assert "\n  class_counts (supplied by the run): " in blocks["ldam"]
    assert blocks["poly"].endswith("\n  " + docstrings.entry(losses.poly).source)
    assert last.startswith(
        "--loss also takes your own, by its dotted path: loss(logits, labels, ...)"
    )
    for name, block in blocks.items():
        aliases = {alias for alias, loss in losses.ALIASES.items() if loss.__name__ == name}
        assert set(block.split(": ")[0].split(", ")) == {name} | aliases
