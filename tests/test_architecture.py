"""The map in `cnnlab/__init__.py` is the law: its order is the order of imports, and it names every
module.
"""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import cnnlab

ROOT = Path(__file__).parents[1]
PACKAGE, EXPERIMENTS = ROOT / "cnnlab", ROOT / "experiments"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")
SCRIPTS = sorted(EXPERIMENTS.rglob("*.py"))
ORDER = re.findall(r"^    (\w+)(?:\.py|/) ", cnnlab.__doc__, re.MULTILINE)


def dotted(path):
    """cnnlab/losses/entropy.py -> cnnlab.losses.entropy; a package is its __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {dotted(p) for p in [*MODULES, *SCRIPTS, PACKAGE / "__init__.py"]}


def imports(path):
    """Every module that a file imports, anywhere in it; `from package import module` names the
    module.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            known = inner & NAMES
            found |= known if known == inner else known | {node.module}
    return found


def part(module):
    """The entry of the map that a module of cnnlab belongs to."""
    return module.split(".")[1]


def test_the_map_names_every_module_and_no_other():
    entries = {p.stem for p in PACKAGE.glob("*.py")} | {
        p.parent.name for p in PACKAGE.glob("*/__init__.py")
    }
    assert len(ORDER) == len(set(ORDER))
    assert set(ORDER) == entries - {"__init__"}
    for entry in ORDER:
        kind = f"{entry}/" if (PACKAGE / entry).is_dir() else f"{entry}.py"
        assert f"    {kind} " in cnnlab.__doc__


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_module_imports_only_what_stands_above_it(path):
    own = part(dotted(path))
    for module in imports(path):
        if module.split(".")[0] != "cnnlab" or module == "cnnlab":
            continue
        other = part(module)
        assert other == own or ORDER.index(other) < ORDER.index(own), (
            f"{own} imports {module}, which stands below it"
        )


def test_no_circles():
    graph = {dotted(p): imports(p) & NAMES for p in MODULES}
    # a package that gathers its modules is imported by them in name only
    graph = {m: {n for n in needs if not m.startswith(f"{n}.")} for m, needs in graph.items()}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(MODULES)


@pytest.mark.slow
def test_importing_the_package_imports_nothing_else():
    code = """
import sys
before = set(sys.modules)
import cnnlab
new = {name.partition(".")[0] for name in set(sys.modules) - before}
assert new <= {"cnnlab", *sys.stdlib_module_names}, new
assert [name for name in sys.modules if name.startswith("cnnlab.")] == []
assert cnnlab.train and cnnlab.evaluate and cnnlab.load
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        cnnlab.trian  # noqa: B018


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_cnnlab_knows_no_experiment(path):
    assert not [m for m in imports(path) if m.split(".")[0] in ("experiments", "tests")]


@pytest.mark.parametrize("path", SCRIPTS, ids=dotted)
def test_an_experiment_imports_no_other(path):
    """Only what is no script, such as networks that two of them need."""
    siblings = {p.stem for p in SCRIPTS if "if __name__ ==" in p.read_text()}
    assert not [m for m in imports(path) if m.split(".")[0] in siblings | {"experiments"}]


def test_only_one_module_names_what_is_private_to_jax():
    private = {
        path.relative_to(ROOT).as_posix()
        for path in [*MODULES, *SCRIPTS]
        if "jax._src" in path.read_text()
    }
    assert private == {"cnnlab/jax_private.py"}


def test_no_drawer_for_odds_and_ends():
    assert not [
        p for p in [*MODULES, *SCRIPTS] if p.stem in ("utils", "util", "helpers", "misc", "common")
    ]


def test_every_public_function_of_losses_and_softmax_shows_an_example():
    shown = [*(PACKAGE / "losses").glob("[!_]*.py"), *(PACKAGE / "softmax").glob("[!_]*.py")]
    functions = [
        (path.stem, node.name, ast.get_docstring(node) or "")
        for path in shown
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]
    assert len(functions) > 40
    assert not [f[:2] for f in functions if ">>> " not in f[2]]


@pytest.mark.slow
def test_no_module_brings_tensorflow():
    # Read by TFDS alone
    skipped = [m for m in map(dotted, MODULES) if m.endswith("_dataset_builder")]
    code = (
        "import importlib, sys\nfor m in sys.argv[1:]: "
        "importlib.import_module(m)\nprint('tensorflow' in sys.modules)"
    )
    names = sorted({dotted(p) for p in MODULES} - set(skipped))
    run = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True
    )
    assert (run.stdout, run.returncode) == ("False\n", 0), run.stderr
