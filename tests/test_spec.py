"""The grammar of parts: text -> spec -> text, what a name or path finds, what its keywords may be,
whose files.
"""

import dataclasses
import functools
import hashlib
import inspect
import itertools
import math
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from cnnlab import docstrings, losses, models, optim, provenance, spec
from cnnlab.errors import InputError
from cnnlab.parts import KINDS
from cnnlab.spec import Spec


def failure(call, *args) -> str:
    with pytest.raises(InputError) as error:
        call(*args)
    assert len(str(error.value).splitlines()) == 1, error.value
    return str(error.value)


def find(kind, text):
    return spec.find(KINDS[kind], text)


@pytest.mark.parametrize(
    ("text", "name", "keywords"),
    [
        ("cross_entropy", "cross_entropy", {}),
        (" focal , gamma=2 ", "focal", {"gamma": 2}),
        ("focal,gamma=2.5,kind=soft", "focal", {"gamma": 2.5, "kind": "soft"}),
        (
            "my.module.loss,a=1e-3,b=-1,c=True,d=None",
            "my.module.loss",
            {"a": 1e-3, "b": -1, "c": True, "d": None},
        ),
        (
            "f,a=true,b=FALSE,c=none,d=inf,e=-inf",
            "f",
            {"a": True, "b": False, "c": None, "d": math.inf, "e": -math.inf},
        ),
        ("ldam,class_counts=[10,20],m=0.5", "ldam", {"class_counts": (10, 20), "m": 0.5}),
        ("f,a=(1,(2,3)),b=1", "f", {"a": (1, (2, 3)), "b": 1}),
        ("f,a=[[1,2],[3,[4]]]", "f", {"a": ((1, 2), (3, (4,)))}),
        ("f,a=[]", "f", {"a": ()}),
        ("f,a={'b': [1, 2], 'c': 3}", "f", {"a": {"b": [1, 2], "c": 3}}),
        ("f,a=x=y", "f", {"a": "x=y"}),
        ("f,a='quoted'", "f", {"a": "quoted"}),
        (
            "f,a='1',b='true',c='a, b=(c',d=\"it's\"",
            "f",
            {"a": "1", "b": "true", "c": "a, b=(c", "d": "it's"},
        ),
        (r"f,a='it\'s',b='\\',c=1", "f", {"a": "it's", "b": "\\", "c": 1}),
        ("f,a=1_000,b=0x10,c=1e+3,d=nan", "f", {"a": 1000, "b": 16, "c": 1000.0, "d": "nan"}),
    ],
)
def test_parse(text, name, keywords):
    got = spec.parse(text)
    assert got == Spec(name, keywords)
    assert {k: type(v) for k, v in got.keywords.items()} == {
        k: type(v) for k, v in keywords.items()
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        ",a=1",
        "f,2",
        "f,a",
        "f,a=",
        "f,=2",
        "f,1a=2",
        "f,a b=2",
        "f,,a=1",
        "f,",
        "f,a=1,a=2",
    ],
)
def test_what_is_no_spec(text):
    for read in (spec.parse, spec.parse_pipeline):
        with pytest.raises(InputError, match="as in 'focal,gamma=2'; got "):
            read(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("flip", [Spec("flip")]),
        ("flip+crop,padding=4", [Spec("flip"), Spec("crop", {"padding": 4})]),
        (" flip +crop,padding=4", [Spec("flip"), Spec("crop", {"padding": 4})]),
        ("a.b,x=1e+3+c.d,y=+2+_e", [Spec("a.b", {"x": 1000.0}), Spec("c.d", {"y": 2}), Spec("_e")]),
        ("f,a='x+y'+g,b=[1,2]", [Spec("f", {"a": "x+y"}), Spec("g", {"b": (1, 2)})]),
        ("f,a={'x': 'p+q'}+f,a=2", [Spec("f", {"a": {"x": "p+q"}}), Spec("f", {"a": 2})]),
        (r"f,a='\'+g'+h", [Spec("f", {"a": "'+g"}), Spec("h")]),
    ],
)
def test_parse_pipeline(text, parts):
    assert spec.parse_pipeline(text) == tuple(parts)


@pytest.mark.parametrize("text", ["+", "flip+", "+flip", "flip++crop", "flip+,a=1", "flip+crop,4"])
def test_what_is_no_pipeline(text):
    """A "+" before anything but a letter belongs to what it follows, and that is found to be no
    name.
    """
    with pytest.raises(InputError):
        for part in spec.parse_pipeline(text):
            find("augmentation", part)


@pytest.mark.parametrize(
    ("text", "separator", "pieces"),
    [
        ("", ",", [""]),
        ("a,b,", ",", ["a", "b", ""]),
        ("f(a,[b,c]),{d,e},'g,h',\"i,j\"", ",", ["f(a,[b,c])", "{d,e}", "'g,h'", '"i,j"']),
        ("a='\",',b", ",", ["a='\",'", "b"]),
        ("a=1e+2+b+_c+3+d", "+", ["a=1e+2", "b", "_c+3", "d"]),
        ("(a+b)+c", "+", ["(a+b)", "c"]),
    ],
)
def test_split(text, separator, pieces):
    assert spec.split(text, separator) == pieces


VALUES = [
    True, False, None, math.inf, -math.inf, 0, 1, -7, 10**20, 0.0, -0.5, 1e-300, 1e22, 1 / 3, 2.0,
    (), (1,), (1, 2.5),
    ((1, 2), (3,)), ("a", "b,c", True, None), "soft", "a.b", "a-b", "x=y", "", " ", "\t", "a\nb",
    "true", "NONE", "inf",
    "1", "1e3", "[1]", "a,b", "a+b", "a'b", 'a"b', "a'b\"c,+d", "\\", "a\\'b", "(", "]", "{}",
    "naïve", "a b",
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_written_and_read_is_the_same(value):
    written = Spec("my.part", {"a": value, "b": 1})
    read, other = spec.parse_pipeline(f"{written}+next,c=2")
    assert read == written == spec.parse(str(written)) and other == Spec("next", {"c": 2})
    assert type(read.keywords["a"]) is type(value)


def test_several_values_written_and_read_are_the_same():
    for values in itertools.permutations(VALUES[::3], 3):
        written = Spec("part", dict(zip("abc", values, strict=True)))
        assert spec.parse(str(written)) == written
    assert str(Spec("f", {"a": True, "b": None, "c": (1, 2), "d": "soft", "e": "1", "f": 0.1})) == (
        "f,a=true,b=none,c=[1,2],d=soft,e='1',f=0.1"
    )


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        # ranges that the docstrings state
        *(("model", f"mlp,dropout={x}", "dropout must lie in [0, 1), "
                                        "got") for x in (-0.1, 1, 1.5, "inf", "-inf")),
        ("model", "cnn,widths=[32,0]", "widths must lie in [1, 100000], got [32,0]"),
        ("model", "mlp,hidden=[999999999999]", "hidden must lie in [1, 1000000]"),
        ("model", "cnn8,widths=[999999999999]", "widths must lie in [1, 100000]"),
        ("model", "wide_resnet,width=999999999999", "width must lie in [1, 1000]"),
        ("augmentation", "augmix,width=999999999999", "width must lie in [1, 100]"),
        ("augmentation", "views,count=999999999999", "count must lie in [1, 100]"),
        ("schedule", "restarts,period=999999999999", "period must lie in (0, 1000000]"),
        ("model", "mlp,hidden=[-128]", "hidden must lie in [1, 1000000], got [-128]"),
        *(("optimizer", f"sgd,momentum={x}", "momentum must lie in [0, 1), "
                                             "got") for x in (-0.1, 1, "inf")),
        *(("optimizer", f"{name},weight_decay=-0.1", "weight_decay must lie in [0, "
                                                     "inf)") for name in optim.OPTIMIZERS),
        *(("optimizer", f"adam,{beta}=1", f"{beta} must lie in [0, 1)") for beta in ("b1", "b2")),
        ("optimizer", "adamw,eps=0", "eps must lie in (0, inf)"),
        ("optimizer", "muon,head_rate=0", "head_rate must lie in (0, inf)"),
        *(("schedule", f"cosine,warmup={x}", "warmup must lie in [0, inf), "
                                             "got") for x in (-0.1, "inf", "-inf")),
        ("schedule", "one_cycle,rise=1", "rise must lie in (0, 1), got 1"),
        ("schedule", "steps,at=[80,0]", "at must lie in (0, inf), got [80,0]"),
        ("schedule", "restarts,period=1,growth=0.5", "growth must lie in [1, inf)"),
        ("augmentation", "crop,padding=0", "padding must lie in [1, inf)"),
        ("augmentation", "cutout,size=-1", "size must lie in [1, inf)"),
        *(("augmentation", f"mixup,alpha={x}", "alpha must lie in (0, inf), "
                                               "got") for x in (-0.1, 0, "inf")),
        *(("transform", f"label_smoothing,alpha={x}", "alpha must lie in [0, 1], "
                                                      "got") for x in (-0.1, 1.1, "inf")),
        *(("transform", f"temperature,t={x}", "t must lie in (0, inf), "
                                              "got") for x in (0, -1e-3, "inf")),
        *(("transform", f"z_loss,coefficient={x}", "coefficient must lie in [0, inf), "
                                                   "got") for x in (-0.1, "inf")),
        ("transform", "class_balanced,beta=1", "beta must lie in [0, 1)"),
        ("loss", "focal,gamma=-1", "loss focal: gamma must lie in [0, inf), got -1"),
        ("corruption", "label_noise,rate=1", "rate must lie in (0, 1)"),
        ("corruption", "long_tail,factor=1", "factor must lie in (1, inf)"),
        ("corruption", "fraction,share=0", "share must lie in (0, 1)"),
        # types that annotations or defaults say
        ("model", "cnn,batch_norm=yes", "model cnn: batch_norm must be true or false, got yes"),
        ("model", "cnn,batch_norm=1", "batch_norm must be true or false, got 1"),
        ("model", "cnn,widths=32", "widths must be a list, got 32"),
        ("model", "cnn,widths=[a,b]", "widths must be a list, each a whole number, got ['a','b']"),
        ("model", "cnn,widths=[3.5]", "widths must be a list, each a whole number, got [3.5]"),
        ("model", "cnn,pool=2", "pool must be a word, got 2"),
        ("model", "mlp,dropout=nan", "dropout must be a number, got nan"),
        ("optimizer", "sgd,nesterov=no", "nesterov must be true or false, got no"),
        ("optimizer", "sgd,momentum=none", "momentum must be a number, got none"),
        ("schedule", "steps,at=80", "at must be a list, each a number, got 80"),
        ("augmentation", "crop,padding=2.0", "padding must be a whole number, got 2.0"),
        ("augmentation", "crop,padding=true", "padding must be a whole number, got true"),
        ("loss", "focal,gamma=true", "gamma must be a number, got true"),
        ("loss", "focal,gamma=much", "gamma must be a number, got much"),
        # what comes from the run
        ("model", "cnn,num_classes=3", "model cnn: num_classes comes from the run; its "
                                       "hyperparameters: widths in"),
        *(("model", f"cnn,{name}=x", f"{name} comes from the "
                                     "run") for name in ("dtype", "conv", "axis_name")),
        ("optimizer", "muon,steps_per_epoch=3", "steps_per_epoch comes from the run"),
        ("schedule", "cosine,total_steps=3", "total_steps comes from the run"),
        ("augmentation", "mixup,num_classes=3", "num_classes comes from the run"),
        ("augmentation", "alternating_flip,run_key=3", "run_key comes from the run"),
        ("dataset", "cifar10,data_dir=here", "data_dir comes from the run"),
        # what there is not, and what is missing
        ("model", "cnn,name=mine", "model cnn has no hyperparameter 'name'; its hyperparameters: "
                                   "widths"),
        ("optimizer", "sgd,learning_rate=2", "has no hyperparameter 'learning_rate'"),
        ("loss", "focal,logits=1", "has no hyperparameter 'logits'"),
        ("loss", "cross_entropy,gama=2", "its hyperparameters: none"),
        ("schedule", "steps", "schedule steps needs at; its hyperparameters: at in (0, inf); "
                              "factor in"),
        ("transform", "temperature", "loss transform temperature needs t"),
        ("corruption", "label_noise", "corruption label_noise needs rate"),
    ],
)  # fmt: skip
def test_keywords_that_cannot_be(kind, text, said):
    assert said in failure(find, kind, text)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("model", "mlp,hidden=[],dropout=0"),
        ("model", "cnn,widths=[1],dropout=0.999,batch_norm=true,head=cosine"),
        ("optimizer", "sgd,momentum=0,nesterov=none,weight_decay=0"),
        ("optimizer", "sgd,momentum=0.999,nesterov=false,weight_decay=0.5"),
        ("optimizer", "adam,b1=0,eps=1e-12"),
        ("schedule", "cosine,warmup=0"),
        ("schedule", "steps,at=[80,120.5]"),
        ("augmentation", "mixup,alpha=1e-12"),
        ("transform", "label_smoothing,alpha=0"),
        ("transform", "label_smoothing,alpha=1"),
        ("transform", "temperature,t=1e-12"),
        ("transform", "z_loss,coefficient=0"),
        ("loss", "ldam,class_counts=[3,1,2],scale=3"),  # these counts may be written
        ("corruption", "label_noise,rate=0.999,kind=asymmetric"),
    ],
)
def test_the_edges_that_are_good(kind, text):
    part = find(kind, text)
    assert part.keywords == spec.parse(text).keywords


def test_a_range_is_as_it_is_written():
    for text, inside, outside in (
        ("in [0, 1)", (0, 0.5), (-1e-9, 1, math.inf, math.nan)),
        ("in (0, 1], and so on", (1e-9, 1), (0, 1.1)),
        ("a number in [-1, inf), or", (-1, 1e300), (-1.1, math.inf)),
        ("in [-inf, inf]", (math.inf, -math.inf), ()),
    ):
        limits = docstrings.limits(text)
        assert limits and all(x in limits for x in inside) and not any(x in limits for x in outside)
    for text in ("", "positive", "in [0, K), a class", "within (0, 1"):
        assert docstrings.limits(text) is None


@pytest.mark.parametrize(
    ("kind", "text", "shortest", "whole"),
    [
        ("loss", "kd,temperature=4,alpha=0.5", "distillation,alpha=0.5", None),
        ("loss", "cross_entropy", "cross_entropy", "cross_entropy"),
        ("loss", "focal,gamma=2", "focal", "focal,gamma=2"),
        ("loss", "cnnlab.losses.focal,gamma=1", "focal,gamma=1.0", "focal,gamma=1"),
        ("loss", "ldam,class_counts=[3,1],scale=30", "ldam,class_counts=[3,1]", None),
        ("transform", "z_loss", "with_z_loss", "with_z_loss,coefficient=0.0001"),
        ("augmentation", "crop,padding=4,mode=reflect", "crop,mode=reflect",
         "crop,mode=reflect,padding=4"),
        ("augmentation", "mixup", "mixup", "mixup,alpha=0.2"),
        ("optimizer", "sgd,weight_decay=5e-4,momentum=0.9", "sgd,weight_decay=0.0005", None),
        ("schedule", "cosine,warmup=1", "cosine,warmup=1.0", "cosine,warmup=1"),
        ("model", "cnn,widths=[32,64]", "cnn", None),
        ("schedule", "steps,at=[2.0,5]", "steps,at=[2,5]", None),
        ("model", "mlp,hidden=[8],batch_norm=true", "mlp,batch_norm=true,hidden=[8]", None),
        (
            "model", "softmax_regression,head=cosine", "softmax_regression,head=cosine",
            "softmax_regression,head=cosine",
        ),
    ],
)  # fmt: skip
def test_the_shortest_and_the_whole_spec_of_a_part(kind, text, shortest, whole):
    part = find(kind, text)
    assert str(part.canonical()) == shortest
    assert whole is None or str(part.resolved()).startswith(whole)
    for form in (part.canonical(), part.resolved()):  # each is the same part
        again = find(kind, str(form))
        assert again.function is part.function
        assert again.canonical() == part.canonical() and again.resolved() == part.resolved()
    assert set(part.resolved().keywords) >= set(part.keywords)
    assert not set(part.resolved().keywords) & (set(KINDS[kind].supplies) - set(part.keywords))


@pytest.mark.parametrize(
    ("text", "shortest"),
    [
        ("resnet18", "resnet18"),
        ("resnet20", "resnet20"),
        ("resnet18,blocks=[3,4,6,3]", "resnet34"),
        ("resnet34,bottleneck=true", "resnet50"),
        ("resnet50,bottleneck=false", "resnet34"),
        ("resnet20,blocks=[5,5,5]", "resnet32"),
        ("resnet20,blocks=[9,9,9],dropout=0", "resnet56"),
        ("resnet110,blocks=[7,7,7],shortcut=projection", "resnet44,shortcut=projection"),
        (
            "resnet18,blocks=[3,3,3],widths=[16,32,64],stem_width=16,shortcut=pad",
            "resnet20",
        ),
        (
            "resnet18,blocks=[3,3,3],widths=[16,32,64]",
            "resnet18,blocks=[3,3,3],widths=[16,32,64]",
        ),
        ("resnet20,blocks=[1,1,1],stem_width=8", "resnet20,blocks=[1,1,1],stem_width=8"),
        (
            "resnet18,stem=imagenet,preactivation=true",
            "resnet18,preactivation=true,stem=imagenet",
        ),
        ("resnet18,dropout=1e-1,head=cosine", "resnet18,dropout=0.1,head=cosine"),
        ("cnnlab.models.ResNet,bottleneck=true,blocks=[3,4,6,3]", "resnet50"),
        ("wide_resnet,depth=28", "wide_resnet"),
        ("wide_resnet,width=2,depth=40", "wide_resnet,depth=40,width=2"),
    ],
)
def test_a_network_with_several_names_has_one_spec(text, shortest):
    """What is stored and what is compared both name the network that was written."""
    part = find("model", text)
    assert str(part.canonical()) == shortest
    written = part.call(num_classes=10)
    for form in (part.canonical(), part.resolved()):
        assert find("model", str(form)).call(num_classes=10) == written
        assert str(find("model", str(form)).canonical()) == shortest


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("resnet19", "unknown model 'resnet19': did you mean 'resnet18'"),
        ("wide_resnets", "did you mean 'wide_resnet'"),
        ("resnet18,steem=imagenet", "model resnet18 has no hyperparameter 'steem'; its"),
        ("resnet34,depth=34", "model resnet34 has no hyperparameter 'depth'; its"),
        ("resnet20,blocks=3", "blocks must be a list, got 3"),
        ("resnet20,widths=[16,0,64]", "widths must lie in [1, 100000]"),
        ("resnet18,dropout=1", "dropout must lie in [0, 1)"),
        ("wide_resnet,depth=4", "depth must lie in [10, 1000]"),
        ("resnet18,conv=blocked", "conv comes from the run"),
    ],
)
def test_a_network_that_cannot_be_is_refused_by_name(text, words):
    assert words in failure(find, "model", text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("resnet18,stem=imagnet", "unknown stem 'imagnet': did you mean 'imagenet'"),
        ("resnet20,shortcut=padding", "unknown shortcut 'padding': did you mean 'pad'"),
        (
            "resnet20,blocks=[1,1]",
            "model resnet20,blocks=[1,1]: blocks and widths must have the same",
        ),
        ("resnet18,zero_scale=true,preactivation=true", "zero_scale needs a batch norm"),
        ("resnet20,widths=[8,16,32]", "shortcut=pad takes no channels away: stem_width 16, widths"),
        ("wide_resnet,depth=30", "depth must be 6 n + 4, such as 16, 28 or 40, got 30; its"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused_before_data_is_read(text, words):
    assert words in failure(lambda: find("model", text).call(num_classes=10))


def test_the_whole_spec_names_every_hyperparameter_with_a_default():
    assert (
        str(find("model", "mlp").resolved())
        == "mlp,activation=relu,batch_norm=false,dropout=0.0,hidden=[128]"
    )
    assert (
        str(find("optimizer", "sgd").resolved())
        == "sgd,decay_all=false,momentum=0.9,nesterov=none,weight_decay=0.0"
    )
    for kind in KINDS.values():
        for name, function in kind.builtin().items():
            whole = spec.Part(kind, name, function, {}).resolved()
            assert spec.parse(str(whole)) == whole


OWN = '''
"""A module of the user's."""

import functools

import own_helpers_here
import own_package_here.inner
from own_package_here import beside as other

from cnnlab.losses import focal


def scaled(logits, labels, factor: float = 2.0, kind="", where=None, names=("a",)):
    """A loss.

    Args:
      factor: in (0, 10], what it is multiplied by.
    """
    return factor * own_helpers_here.one(logits)


class Outer:
    class Inner:
        def __init__(self, strength=1):
            self.strength = strength

    @staticmethod
    def soft(logits, labels, alpha=0.5):
        return alpha


class Object:
    """Called like a function."""

    head = "cosine"

    def __init__(self, base):
        self.base = base

    def __call__(self, logits, labels, more: int = 1):
        return self.base + more


def typed(logits, labels, flag: bool, sizes: list[int], word: "str | None" = None):
    import own_lazy_here

    return own_lazy_here.two


def open_ended(logits, labels, **anything):
    return anything


@functools.wraps(focal)
def wrapped(logits, labels, gamma=1.0):
    return focal(logits, labels, gamma)


wrapped.head = "cosine"
sharp = functools.partial(focal, gamma=5.0)
again = functools.partial(wrapped, gamma=3.0)
instance = Object(10)
number = 3
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Modules in the current directory, which is not on sys.path."""
    package = tmp_path / "own_package_here"
    (package / "inner").mkdir(parents=True)
    files = {
        "own_parts_here.py": OWN,
        "own_helpers_here.py": "import numpy\nimport own_second_here\none = lambda logits: 1\n",
        "own_second_here.py": "import os\nimport own_parts_here  # a circle\n",
        "own_lazy_here.py": "two = 2\n",
        "own_unused_here.py": "",
        "leaving_here.py": "import sys\nsys.exit('usage: leaving_here FILE')\n",
        "raising_here.py": "\nraise RuntimeError('at\\nwork')\n",
        "broken_here.py": "def f(:\n",
        "needing_here.py": "import surely_not_installed\n",
        "again_here.py": "from own_parts_here import scaled\n",
        "own_package_here/__init__.py": "",
        "own_package_here/beside.py": "from . import third\nfrom .inner import deep\n",
        "own_package_here/third.py": "",
        "own_package_here/unused.py": "",
        "own_package_here/inner/__init__.py": "from ..third import __name__ as third\n",
        "own_package_here/inner/deep.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))  # restores sys.path afterwards
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.split(".")[0].endswith("_here"):
            del sys.modules[name]


def test_what_a_dotted_path_finds(own):
    """A function, an attribute of a class, a class in a class, a functools.partial, an object that
    can be called.
    """
    logits = jnp.zeros((2, 3), jnp.float32)
    ids = jnp.array([0, 1])
    assert find("loss", "own_parts_here.scaled").bind()(logits, ids) == 2
    assert find("loss", "own_parts_here.scaled,factor=3").call(logits, ids) == 3
    assert find("loss", "own_parts_here.Outer.soft,alpha=0.25").call(logits, ids) == 0.25
    assert find("model", "own_parts_here.Outer.Inner,strength=4").call().strength == 4
    sharp = find("loss", "own_parts_here.sharp")
    np.testing.assert_array_equal(sharp.call(logits, ids), losses.focal(logits, ids, gamma=5.0))
    assert (
        str(sharp.resolved()) == "own_parts_here.sharp,gamma=5.0"
        and str(sharp.canonical()) == "own_parts_here.sharp"
    )
    blunt = find("loss", "own_parts_here.sharp,gamma=0")
    np.testing.assert_allclose(blunt.call(logits, ids), math.log(3), rtol=1e-6)
    assert find("loss", "own_parts_here.instance").call(0, 0) == 11
    assert find("loss", "own_parts_here.instance,more=5").call(0, 0) == 15
    assert find("loss", "own_parts_here.open_ended,a=1,b=soft").call(0, 0) == {"a": 1, "b": "soft"}
    assert find("model", "cnnlab.models.CNN,widths=[2]").function is models.CNN


def test_own_parts_are_held_to_what_they_say(own):
    for text, said in (
        ("scaled,factor=0", "loss own_parts_here.scaled: factor must lie in (0, 10], got 0"),
        ("scaled,factor=x", "factor must be a number"),
        ("scaled,names=b", "names must be a list"),
        ("sharp,gamma=-1", "gamma must lie in [0, inf), got -1"),
        ("again,gamma=-1", "gamma must lie in [0, inf), got -1"),
        ("instance,more=1.5", "more must be a whole number, got 1.5"),
        ("instance,base=1", "has no hyperparameter 'base'; its hyperparameters: more (default 1)"),
        ("typed,sizes=[1]", "needs flag"),
        ("typed,flag=no,sizes=[1]", "flag must be true or false, got no"),
        ("typed,flag=true,sizes=[1.5]", "sizes must be a list, each a whole number"),
        ("typed,flag=true,sizes=[1],word=2", "word must be a word, got 2"),
    ):
        assert said in failure(find, "loss", f"own_parts_here.{text}")
    assert (
        find("loss", "own_parts_here.typed,flag=true,sizes=[],word=none").keywords["word"] is None
    )


def test_the_whole_spec_of_an_own_part_is_read_again(own):
    whole = find("loss", "own_parts_here.scaled").resolved()
    assert str(whole) == "own_parts_here.scaled,factor=2.0,kind='',names=['a'],where=none"
    assert find("loss", str(whole)).resolved() == whole


def test_marks_are_found_within_wrappers(own):
    marks = {
        name: find("loss", f"own_parts_here.{name}").mark("head")
        for name in ("wrapped", "again", "instance")
    }
    assert set(marks.values()) == {"cosine"}
    assert find("loss", "own_parts_here.sharp").mark("head", "linear") == "linear"
    assert find("loss", "arcface").mark("head") == "cosine"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "no_such_module_here.loss",
            "loss 'no_such_module_here.loss': no module 'no_such_module_here', here or installed",
        ),
        ("own_parts_here.scale", "unknown loss in own_parts_here 'scale': did you mean 'scaled'?"),
        ("own_parts_here.Outer.sof", "unknown loss in own_parts_here 'sof': did you mean 'soft'?"),
        ("own_parts_here.number", "unknown loss in own_parts_here 'number'"),
        ("own_package_here.nothing.loss", "'nothing'"),
        ("needing_here.loss", "no module 'surely_not_installed', here or installed"),
        (
            "raising_here.loss",
            "module 'raising_here' cannot be imported: RuntimeError: at (raising_here.py:2)",
        ),
        (
            "leaving_here.loss",
            "cannot be imported: SystemExit: usage: leaving_here FILE (leaving_here.py:2)",
        ),
        ("broken_here.loss", "module 'broken_here' cannot be imported: SyntaxError: "),
        (
            "builtins.max",
            "'builtins.max' is no loss(logits, labels, ...) -> float32[B] written in Python",
        ),
        ("a..b", "loss 'a..b' is no dotted path to something in Python"),
        (".b", "is no dotted path"),
        ("a.b-c", "is no dotted path"),
    ],
)
def test_paths_that_lead_nowhere(own, text, said):
    assert said in failure(find, "loss", text)


def test_an_optimizer_that_is_only_in_optax_is_pointed_to():
    assert (
        failure(find, "optimizer", "lion") == "unknown optimizer 'lion': did you mean 'optax.lion'?"
    )
    assert find("optimizer", "optax.lion,b1=0.5").keywords == {"b1": 0.5}
    assert "did you mean 'adam'" in failure(find, "optimizer", "adamm")
    assert "did you mean 'cosine'" in failure(find, "schedule", "cosin")
    assert "did you mean 'cnn'" in failure(find, "model", "cn")


def test_the_name_of_a_function_of_a_library_is_its_public_one():
    def name(kind, function):
        return spec.name_of(KINDS[kind], function)

    assert name("optimizer", optax.adam) == "optax.adam"
    assert name("optimizer", optax.contrib.prodigy) == "optax.contrib.prodigy"
    assert name("schedule", optax.cosine_decay_schedule) == "optax.cosine_decay_schedule"
    private = find("optimizer", f"{optax.sgd.__module__}.sgd,momentum=0.9")  # as once stored
    assert str(private) == "optax.sgd,momentum=0.9"
    assert name("loss", optax.l2_loss) == optax.l2_loss.__module__ + ".l2_loss"  # not its library


def test_what_a_part_asks_for_is_passed_and_nothing_else(own):
    supply = {"class_counts": (3, 1, 2), "progress": 0.5}
    assert find("loss", "own_parts_here.open_ended").call(0, 0, **supply) == {}
    ldam = find("loss", "ldam")
    assert ldam.asks("class_counts") and ldam.requires("class_counts") and not ldam.asks("progress")
    logits = jnp.zeros((2, 3), jnp.float32)
    ids = jnp.array([0, 1])
    np.testing.assert_array_equal(
        ldam.bind(**supply)(logits, ids), losses.ldam(logits, ids, (3, 1, 2))
    )
    written = find("loss", "ldam,class_counts=[1,1,1]")
    assert not written.asks("class_counts") and written.bind(**supply).keywords == {
        "class_counts": (1, 1, 1)
    }


def test_what_a_part_raises_is_one_line(own):
    part = find("loss", "own_parts_here.Outer.soft,alpha=2")
    message = failure(part.call, 1)
    assert message.startswith("loss own_parts_here.Outer.soft,alpha=2: TypeError: ")
    message = failure(find("schedule", "cosine,warmup=3").call, 0.1)
    assert "total_steps" in message
    message = failure(
        functools.partial(
            find("schedule", "cosine,warmup=3").call, total_steps=20, steps_per_epoch=10
        ),
        1,
    )
    assert message == (
        "schedule cosine,warmup=3: warmup must be at most the run, 2 epochs, got 3; its "
        "hyperparameters: warmup in [0, inf) (default 0.0)"
    )


def digests(folder, *names):
    paths = {name: folder / (name.replace(".", "/") + ".py") for name in names}
    paths = {
        name: path if path.exists() else path.parent / path.stem / "__init__.py"
        for name, path in paths.items()
    }
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}


OF_OWN = [
    "own_parts_here", "own_helpers_here", "own_second_here", "own_lazy_here", "own_package_here",
    "own_package_here.beside", "own_package_here.inner", "own_package_here.inner.deep",
    "own_package_here.third",
]  # fmt: skip


def test_sources_are_the_users_files_that_a_part_is_made_of(own):
    """What its module imports too, also within functions and relative to a package; not what is
    installed.
    """
    part = find("loss", "own_parts_here.scaled,factor=3")
    assert part.sources() == digests(own, *OF_OWN)
    assert list(part.sources()) == sorted(OF_OWN)
    # a part that another module only hands on
    assert find("loss", "again_here.scaled").sources() == digests(own, "again_here", *OF_OWN)
    # a class in a module
    assert find("loss", "own_parts_here.Outer.soft").sources() == digests(own, *OF_OWN)
    (own / "own_second_here.py").write_text("import os\n")
    assert part.sources()["own_second_here"] == hashlib.sha256(b"import os\n").hexdigest()


def test_what_is_installed_has_no_sources(own):
    for kind, text in (
        ("loss", "focal,gamma=2"),
        ("loss", "cnnlab.losses.focal"),
        ("optimizer", "optax.lion"),
    ):
        assert find(kind, text).sources() == {}
    assert provenance.sources("json") == provenance.sources("jax.numpy", jnp.sum.__module__) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_listing_names_every_part_and_hyperparameter(kind):
    text = spec.listing(KINDS[kind])
    for name, function in KINDS[kind].builtin().items():
        start = re.search(rf"^{name}\b[^\n]*: ", text, re.MULTILINE)
        assert start, name
        block = text[start.start() :].split("\n\n")[0]
        if same := re.fullmatch(rf"{name}: short for (.*)", block):
            assert str(find(kind, same[1]).canonical()) == name
            continue
        for key in spec.Part(KINDS[kind], name, function, {}).hyperparameters():
            assert f"\n  {key} (" in block, (name, key)
    assert text.endswith(
        f"\n\n{KINDS[kind].flag} also takes your own, by its dotted path: {KINDS[kind].contract}"
    )


def test_a_part_that_is_another_with_presets_takes_a_line():
    lines = spec.listing(KINDS["model"]).split("\n\n")
    assert "resnet34: short for resnet18,blocks=[3,4,6,3]" in lines
    thin = "widths=[16,32,64],stem_width=16,shortcut=pad"
    assert f"resnet20: short for resnet18,{thin},blocks=[3,3,3]" in lines
    (whole,) = (block for block in lines if block.startswith("resnet18: "))
    assert "\n  stem (default cifar): cifar (" in whole and "arXiv 1512.03385" in whole


def test_an_entry_of_what_has_no_docstring():
    def bare(logits, labels, a=1):
        return 0

    entry = docstrings.entry(bare)
    assert dataclasses.astuple(entry) == ("bare", "", "", {}, "")
    assert (
        docstrings.entry(functools.partial(losses.poly, epsilon=2)).source
        == docstrings.entry(losses.poly).source
    )
    assert docstrings.accepted(bare, {}) == "none"
    assert (
        docstrings.accepted(bare, {"a": inspect.signature(bare).parameters["a"]}) == "a (default 1)"
    )


def test_a_section_of_a_docstring():
    assert docstrings.section(losses.poly, "Source") == docstrings.entry(losses.poly).source
    assert docstrings.section(losses.poly, "Elsewhere") == ""


@pytest.mark.slow
def test_the_grammar_itself_needs_no_jax():
    code = "import sys, cnnlab.spec as s; s.parse_pipeline('a,b=1+c'); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
