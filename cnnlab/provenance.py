"""The user's files behind a part: the module it is named by, the one it is written in, and what these import.

Files of Python itself, of installed packages and of cnnlab are not among them: their versions are recorded instead.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
FOREIGN = tuple({Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def sources(module: str, function: Callable | None = None) -> dict[str, str]:
    """SHA-256 of each user's file behind a part.

    Args:
      module: by which the part was named; it has been imported.
      function: the part, which may be written in another module.

    Returns:
      Module name -> digest; empty where no file is the user's.
    """
    written_in: Any = inspect.unwrap(getattr(function, "func", function)) if function else None
    waiting, digests = [module, getattr(written_in, "__module__", None)], {}
    while waiting:
        name = waiting.pop()
        path = _file(name) if name and name not in digests else None
        if path is None or not _is_users(path):
            continue
        text = path.read_bytes()
        digests[name] = hashlib.sha256(text).hexdigest()
        waiting += _imported(name, path, text)
    return dict(sorted(digests.items()))


def _file(name: str) -> Path | None:
    module = sys.modules.get(name)
    origin = getattr(module, "__file__", None)
    if module is None:  # imported within a function, later
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError, AttributeError):
            return None
        origin = spec.origin if spec else None
    path = Path(origin) if origin else None
    return path.resolve() if path and path.suffix == ".py" and path.is_file() else None


def _is_users(path: Path) -> bool:
    parts = set(path.parts)
    foreign = any(path.is_relative_to(folder) for folder in (*FOREIGN, PACKAGE))
    return not (foreign or parts & {"site-packages", "dist-packages"})


def _imported(name: str, path: Path, text: bytes) -> Iterator[str]:
    """The modules that a file imports anywhere in it, and the packages that they are in."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: -(node.level - 1) or None] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    for module in found:
        parts = module.split(".")
        yield from (".".join(parts[: n + 1]) for n in range(len(parts)))
