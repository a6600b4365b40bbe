"""The user's files behind a part: the module it is named by, the one it is written in, and what
these import.

Files of Python itself, of installed packages and of cnnlab are not among them: their versions are
recorded instead.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
FOREIGN = tuple(
    {
        Path(sysconfig.get_path(name)).resolve()
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    }
)


def sources(*modules: str | None) -> dict[str, str]:
    """Compute the SHA-256 of each of the user's files behind a part, without importing anything.

    Args:
      modules: by which the part was named, and which it is written in; None is none.

    Returns:
      Module name -> digest; empty where no file is the user's.
    """
    waiting = list(modules)
    digests = {}
    while waiting:
        name = waiting.pop()
        path = _file(name) if name and name not in digests else None
        if name is None or path is None or not _is_users(path):
            continue
        text = path.read_bytes()
        digests[name] = hashlib.sha256(text).hexdigest()
        waiting += _imported(name, path, text)
    return dict(sorted(digests.items()))


def _file(name: str) -> Path | None:
    """Find the file of a module that is imported already, or will be within a function."""
    module = sys.modules.get(name)
    if module is not None:
        origin = getattr(module, "__file__", None)
        path = Path(origin) if origin else None
        return path.resolve() if path and path.suffix == ".py" and path.is_file() else None
    parent, _, last = name.rpartition(".")
    above = _file(parent) if parent else None
    folders = (
        [above.parent]
        if above and above.name == "__init__.py"
        else []
        if parent
        else map(Path, sys.path)
    )
    for folder in folders:
        for path in (folder / f"{last}.py", folder / last / "__init__.py"):
            if path.is_file():
                return path.resolve()
    return None


def _is_users(path: Path) -> bool:
    parts = set(path.parts)
    foreign = any(path.is_relative_to(folder) for folder in (*FOREIGN, PACKAGE))
    return not (foreign or parts & {"site-packages", "dist-packages"})


def _imported(name: str, path: Path, text: bytes) -> Iterator[str]:
    """Yield the modules that a file imports anywhere in it, and the packages that they are in."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    modules = set()
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # it has not been imported, and cannot be
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: -(node.level - 1) or None] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            modules |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    for module in modules:
        parts = module.split(".")
        yield from (".".join(parts[: n + 1]) for n in range(len(parts)))
