"""Which files of the user are behind a part: everything that can change what it computes."""

import functools
import hashlib
import importlib
import sys
import zipfile

import pytest

from cnnlab import parts, provenance
from cnnlab.config import Recipe
from cnnlab.parts import KINDS

LOSS = "from cnnlab.losses import cross_entropy\ndef loss(z, y):\n    return cross_entropy(z, y)\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Write the user's files and import some of them; forget them afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = {*sys.modules}

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        importlib.invalidate_caches()
        return tmp_path

    yield write
    for name in {*sys.modules} - before:
        spec = object.__getattribute__(sys.modules[name], "__dict__").get("__spec__", tmp_path)
        if str(tmp_path) in str(spec):
            del sys.modules[name]


# How mine.py comes to use other files: the texts of all, and the modules that are behind mine.loss.
# What mine.py does not define is LOSS.
WAYS = {
    "import": ("mine.py: import other", "other"),
    "from": ("mine.py: from other import x", "other"),
    "star": ("mine.py: from other import *", "other"),
    "within a function": ("mine.py: def later(): import other", "other"),
    "if": ("mine.py: import sys | if sys.argv == 1: import other", "other"),
    "of it": ("mine.py: import other || other.py: import third || third.py: x = 1", "other third"),
    "in a circle": ("mine.py: import other || other.py: import mine | x = 1", "other"),
    "by name": ("mine.py: import importlib as i | a = i.import_module('other')", "other"),
    "by name, later": ("mine.py: def later(): return __import__('other')", "other"),
    "by name, as another": (
        "mine.py: from importlib import import_module as im | def later(): im('other')",
        "other",
    ),
    "from a table of tables": (
        "mine.py: T = {'a': [{'b': __import__('ot' + 'her').f}]} || other.py: def f(): pass",
        "other",
    ),
    "in whose place an object is": (
        "mine.py: import other"
        "|| other.py: import sys | class L: pass | sys.modules[__name__] = L()",
        "other",
    ),
    "by a name put together": ("mine.py: m = __import__('ot' + f'her')", "other"),
    "from a table": (
        "mine.py: T = {n: __import__(f'plug_{n}').f for n in 'ab'}"
        "|| plug_a.py: def f(): pass || plug_b.py: class f: pass",
        "plug_a plug_b",
    ),
    "an object": ("mine.py: c = __import__('ot' + 'her').C() || other.py: class C: pass", "other"),
    "a package": (
        "mine.py: import pack.inner || pack/__init__.py: x = 1 || pack/inner.py: x = 1",
        "pack pack.inner",
    ),
    "relative": (
        "mine.py: from pack import f || pack/__init__.py: from .inner import f"
        "|| pack/inner.py: from .sub import f || pack/sub/__init__.py: from ..deep import f"
        "|| pack/deep.py: def f(): pass",
        "pack pack.inner pack.sub pack.deep",
    ),
    "a package without __init__": (
        "mine.py: import space.inner || space/inner.py: from . import deep || space/deep.py: x = 1",
        "space.inner space.deep",
    ),
    "the same, later": (
        "mine.py: def later(): from space import inner"
        "|| space/inner.py: from .deep import x || space/deep.py: x = 1",
        "space.inner space.deep",
    ),
    "relative, by name": (
        "mine.py: import pack || pack/inner.py: x = 1"
        "|| pack/__init__.py: import importlib as i | def f(): i.import_module('.inner', __name__)",
        "pack pack.inner",
    ),
    "a decorator": (
        "mine.py: from other import logged | @logged | def loss(z, y): return z[..., 0]"
        "|| other.py: import functools | def logged(f): return functools.wraps(f)(lambda z, y: 0)",
        "other",
    ),
    "under another name": (
        "mine.py: from other import loss || other.py: def loss(z, y): return z[..., 0]",
        "other",
    ),
    "transformed": (
        "mine.py: from cnnlab.losses import label_smoothing | import other "
        "| loss = label_smoothing(other.f, 0.1) || other.py: def f(z, y): return z[..., 0]",
        "other",
    ),
    "a closure": (
        "mine.py: from other import make | loss = make()"
        "|| other.py: def make(): return lambda z, y: z[..., 0]",
        "other",
    ),
    "a partial": (
        "mine.py: import functools | from other import f | loss = functools.partial(f, a=object())"
        "|| other.py: def f(z, y, a): return z[..., 0]",
        "other",
    ),
    "an object that is called": (
        "mine.py: from other import Loss | loss = Loss()"
        "|| other.py: class Loss: __call__ = lambda self, z, y: z[..., 0]",
        "other",
    ),
    "a lambda": ("mine.py: import other | loss = lambda z, y: other.x * z[..., 0]", "other"),
    "no Python": (
        "mine.py: def later(): import other || other.py: ?",
        "other",
    ),
}


def texts(way):
    """The files of a way, by name."""
    named = (file.strip().partition(": ")[::2] for file in WAYS[way][0].split("||"))
    files = {"other.py": "x = 1"} | {
        name: "\n".join(line.strip() for line in text.split(" | ")) + "\n" for name, text in named
    }
    return files | {"mine.py": ("" if "loss" in files["mine.py"] else LOSS) + files["mine.py"]}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "import importlib.util as u\ns = u.spec_from_file_location('unknown', 'other.py')\n"
            "m = u.module_from_spec(s)\ns.loader.exec_module(m)\n",
            "unknown",
        ),
        (
            "import importlib.util as u\ns = u.spec_from_file_location('unknown', 'other.py')\n"
            "m = u.module_from_spec(s)\ns.loader.exec_module(m)\nloss = m.make()\ndel m, s\n",
            "unknown",
        ),
        ("import runpy\nmake = runpy.run_path('other.py')['make']\n", "<run_path>"),
        ("import runpy\nC = runpy.run_path('other.py')['C']\n", "<run_path>"),
    ],
)
def test_a_file_that_is_run_from_a_path_is_behind_what_it_made(text, name, project):
    other = "def make(): return lambda z, y: z[..., 0]\nclass C:\n    def f(self): return 1\n"
    folder = project({"other.py": other, "mine.py": ("" if "loss" in text else LOSS) + text})
    found = parts.find("loss", "mine.loss").sources()
    assert found == {
        "mine": hashlib.sha256((folder / "mine.py").read_bytes()).hexdigest(),
        name: hashlib.sha256((folder / "other.py").read_bytes()).hexdigest(),
    }


@pytest.mark.parametrize("way", WAYS)
def test_every_file_that_a_part_uses_is_behind_it(way, project):
    expected = WAYS[way][1].split()
    folder = project(texts(way) | {"unused.py": ""})
    found = parts.find("loss", "mine.loss").sources()
    assert found.keys() == {"mine", *expected}
    for name, digest in found.items():
        path = folder / (name.replace(".", "/") + ".py")
        path = path if path.exists() else path.with_suffix("") / "__init__.py"
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    again = dict(found)
    for name in expected:
        path = folder / (name.replace(".", "/") + ".py")
        path = path if path.exists() else path.with_suffix("") / "__init__.py"
        path.write_text(path.read_text() + "# edited\n")
        now = parts.find("loss", "mine.loss").sources()
        assert {key for key in now if now[key] != again[key]} == {name}
        again = now


def test_the_package_of_a_part_is_behind_it(project):
    project({"pack/__init__.py": "SCALE = 2\n", "pack/losses.py": LOSS})
    assert parts.find("loss", "pack.losses.loss").sources().keys() == {"pack", "pack.losses"}


def test_a_module_in_an_archive(project, monkeypatch):
    folder = project({})
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        archive.writestr("zipped.py", LOSS)
    monkeypatch.syspath_prepend(str(folder / "all.zip"))
    found = parts.find("loss", "zipped.loss").sources()
    assert found == {"zipped": hashlib.sha256(LOSS.encode()).hexdigest()}


def test_what_is_installed_is_not_the_users(project):
    project({"mine.py": "import os, json, numpy, jax, optax, cnnlab, cnnlab.losses\n" + LOSS})
    assert parts.find("loss", "mine.loss").sources().keys() == {"mine"}


def test_a_module_that_is_loaded_when_it_is_used_is_not_loaded(project):
    folder = project({"slow.py": "raise RuntimeError\n"})
    lazy = (
        "import importlib.util as u, sys\nspec = u.find_spec('sl' + 'ow')\nspec.loader = "
        "u.LazyLoader(spec.loader)\nslow = u.module_from_spec(spec)\nsys.modules['slow'] = slow\n"
        "spec.loader.exec_module(slow)\n"
    )
    (folder / "mine.py").write_text(lazy + LOSS)
    assert parts.find("loss", "mine.loss").sources().keys() >= {"mine"}


HELPER = "scale = 1\n"
# A part of each kind in a file that uses helper.py.
EACH_KIND = {
    "model": "import flax.linen as nn\nclass part(nn.Module):\n    num_classes: int\n",
    "loss": "def part(logits, labels):\n    return logits[..., 0]\n",
    "transform": "def part(loss):\n    return loss\n",
    "optimizer": "def part(learning_rate):\n    pass\n",
    "schedule": "def part(peak, total_steps):\n    pass\n",
    "average": "def part(total_steps):\n    pass\n",
    "augmentation": "def part(keys, batch):\n    return batch\n",
    "dataset": "def part():\n    pass\n",
    "corruption": "def part(dataset, seed):\n    return dataset\n",
    "distortion": "def part(image, rng):\n    return image\n",
    "posthoc": "def part(logits, labels):\n    return 0.0\n",
    "rescaling": "def part(logits):\n    return logits\n",
    "metric": "def part():\n    pass\n",
}
FORMS = {
    "function": "",
    "partial": "import functools\npart = functools.partial(part)\n",
    "decorated": "import functools\n_f = part\npart = functools.wraps(_f)(lambda *a: _f(*a))\n",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_every_kind_have_their_files(kind, form, project):
    project(
        {
            "helper.py": HELPER,
            "mine.py": "from helper import scale\n" + EACH_KIND[kind] + FORMS[form],
        }
    )
    assert parts.find(kind, "mine.part").sources().keys() == {"mine", "helper"}


def test_the_files_of_a_recipe_are_those_of_all_its_parts(project):
    names = (
        "dataset",
        "corruption",
        "model",
        "loss",
        "transform",
        "optimizer",
        "schedule",
        "average",
        "augmentation",
        "metric",
    )
    project(
        {f"my_{name}.py": f"import of_{name}\n{EACH_KIND[name]}" for name in names}
        | {f"of_{name}.py": "" for name in names}
    )
    recipe = Recipe(
        dataset="my_dataset.part+my_corruption.part", model="my_model.part",
        loss="my_loss.part+my_transform.part", optimizer="my_optimizer.part",
        schedule="my_schedule.part", average="my_average.part", augment="my_augmentation.part",
        metrics=("my_metric.part",),
    )  # fmt: skip
    found = parts.resolve(recipe).sources()
    assert found.keys() == {f"{prefix}_{name}" for prefix in ("my", "of") for name in names}


def test_where_a_function_is_written():
    def circle():
        pass

    circle.__wrapped__ = circle
    assert provenance.written_in(circle) == __name__
    partial = functools.partial(functools.partial(hashlib.new, "sha256"))
    assert provenance.written_in(partial) == "hashlib"
    assert provenance.written_in(pytest.mark) == "_pytest.mark.structures"
