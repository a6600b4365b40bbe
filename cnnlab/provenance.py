"""The user's files behind a part: the module it is named by, the one it is written in, and what
these import.

Files of Python itself, of installed packages and of cnnlab are not among them: their versions are
recorded instead.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, TypeAlias

PACKAGE = Path(__file__).resolve().parent
FOREIGN = tuple(
    {
        Path(sysconfig.get_path(name)).resolve()
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    }
)
IMPORTERS = ("import_module", "__import__")  # functions that take a module's name
# A name, and the file of one that cannot be found by it, as what importlib loads from a path
Module: TypeAlias = tuple[str, str | None]
MOST_HELD = 10_000  # things that a module holds, also in lists and dicts, that are looked at


def sources(*modules: str | None) -> dict[str, str]:
    """Compute the SHA-256 of each of the user's files behind a part, without importing anything.

    Args:
      modules: by which the part was named, and which it is written in; None is none.

    Returns:
      Module name -> digest; empty where no file is the user's.
    """
    waiting: set[Module] = {(name, None) for name in modules if name}
    seen = set()
    digests = {}
    while waiting:
        name, file = module = waiting.pop()
        seen.add(module)
        found = _spec(name)
        content = _content(found) if found else _read(file)
        others = {(name.rpartition(".")[0], None)}  # the package, which is imported before it
        if content is not None:
            digests[name] = hashlib.sha256(content).hexdigest()
            others |= {(other, None) for other in _imported(name, content)} | {*_held(name)}
        waiting |= {other for other in others if other[0]} - seen
    return dict(sorted(digests.items()))


def place(module: str) -> str | None:
    """Return the file that a module is, or would be, imported from; None where there is none."""
    found = _spec(module)
    return found.origin if found else None


def written_in(thing: object) -> str | None:
    """Return the module in which a function is written, also that within a partial or a wrapper,
    or the class of an object.
    """
    return getattr(_definition(thing), "__module__", None)


def _definition(thing: object) -> FunctionType | type:
    """Return the function within a partial or a wrapper, or the class of an object."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    with contextlib.suppress(ValueError):  # wrappers in a circle
        thing = inspect.unwrap(thing) if isinstance(thing, FunctionType) else thing
    return thing if isinstance(thing, FunctionType | type) else type(thing)


def _file_of(definition: FunctionType | type) -> str | None:
    """Return the file of a function, or of a class with a method."""
    defined = [definition] if isinstance(definition, FunctionType) else vars(definition).values()
    functions = (function for function in defined if isinstance(function, FunctionType))
    return next((function.__code__.co_filename for function in functions), None)


def _spec(name: str) -> ModuleSpec | None:
    """Find a module that is imported already, or will be within a function; import nothing."""
    if found := _attribute(sys.modules.get(name), "__spec__"):  # an object may have replaced it
        return found
    parent = name.rpartition(".")[0]
    above = _spec(parent) if parent else None
    if parent and (above is None or above.submodule_search_locations is None):
        return None
    folders = above.submodule_search_locations if above else None
    for finder in sys.meta_path:
        with contextlib.suppress(Exception):  # of an installed package's own finder
            if found := finder.find_spec(name, folders):
                return found
    return None


def _content(spec: ModuleSpec | None) -> bytes | None:
    """Read the file of a module; None where it is not the user's, or there is none."""
    read = getattr(spec and spec.loader, "get_data", None)
    return _read(spec.origin, read) if spec and read else None


def _read(
    file: str | None, read: Callable[[str], bytes] = lambda file: Path(file).read_bytes()
) -> bytes | None:
    """Read a file; None where it is not the user's, or there is none."""
    if file is None or not _is_users(file):
        return None
    with contextlib.suppress(OSError):
        return read(file)
    return None


def _is_users(file: str) -> bool:
    path = Path(file).resolve()
    parts = set(path.parts)
    foreign = any(path.is_relative_to(folder) for folder in (*FOREIGN, PACKAGE))
    return not (foreign or parts & {"site-packages", "dist-packages"})


def _imported(name: str, content: bytes) -> Iterator[str]:
    """Yield the modules that a file imports anywhere in it, as far as it writes their names."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # no text, or it has not been imported and cannot be
        return
    found = _spec(name)
    is_package = found is not None and found.submodule_search_locations is not None
    package = name if is_package else name.rpartition(".")[0]
    importers = {*IMPORTERS}
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                importers |= {a.asname for a in node.names if a.name in IMPORTERS and a.asname}
                base = _absolute(package, node.level, node.module or "")
                yield from (base, *(f"{base}.{alias.name}" for alias in node.names))
            case ast.Call(args=[ast.Constant(value=str(written)), *_]) if (
                getattr(node.func, "attr", getattr(node.func, "id", None)) in importers
            ):
                module = written.lstrip(".")
                yield _absolute(package, len(written) - len(module), module)


def _absolute(package: str, level: int, module: str) -> str:
    """Resolve a module that is imported from a package with `level` dots before its name."""
    parents = package.split(".")[: -(level - 1) or None] if level else []
    return ".".join([*parents, *([module] if module else [])])


def _held(name: str) -> Iterator[Module]:
    """Yield the modules behind what a module holds, whatever the way by which it came there, such
    as a name that was put together.
    """
    held = _attribute(sys.modules.get(name), "__dict__") or {}
    waiting = [*held.values()]
    for _ in range(MOST_HELD):
        if not waiting:
            return
        thing = waiting.pop()
        if type(thing) in (dict, list, tuple, set):
            waiting += thing.values() if type(thing) is dict else thing
            continue
        if issubclass(type(thing), ModuleType):
            module, file = _attribute(thing, "__name__"), _attribute(thing, "__file__")
        else:
            definition = _definition(thing)
            module, file = getattr(definition, "__module__", None), _file_of(definition)
        if isinstance(module, str):
            yield module, file


def _attribute(module: object, name: str) -> Any:
    """Return an attribute of a module, without loading one that is loaded when it is used."""
    with contextlib.suppress(AttributeError):
        return object.__getattribute__(module, name)
