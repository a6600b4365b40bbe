"""What the processes of a run send each other: JSON. Reading it makes numbers, texts, lists, paths,
arrays and dataclasses of cnnlab, and runs nothing else.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import sys
from collections.abc import Mapping

import numpy as np

from cnnlab import files
from cnnlab.errors import CheckpointError, InputError, explained, said

KIND = "kind"  # of an object in JSON: what it was


def encode(value: object) -> bytes:
    """Encode what processes exchange.

    Raises:
      TypeError: something that is none of the above.
    """
    return json.dumps(_written(value)).encode()


def decode(message: bytes) -> object:
    """Decode what `encode` gave: an equal value; of an error its words, as an error of its kind.

    Raises:
      ValueError: it is no such message.
    """
    return _read(json.loads(message))


def _written(value: object) -> object:
    """Convert a value to what JSON has."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [*map(_written, value)]
    if isinstance(value, Mapping):
        items = [[_written(key), _written(item)] for key, item in value.items()]
        return {KIND: "dict", "items": items}
    if isinstance(value, tuple | set | frozenset) and not _field_names(type(value)):
        kind = "tuple" if isinstance(value, tuple) else "set"
        return {KIND: kind, "items": [*map(_written, value)]}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {KIND: "array", "dtype": value.dtype.str, "shape": [*value.shape], "data": data}
    if isinstance(value, Exception):
        return {KIND: "error", **_described(value)}
    if names := _field_names(type(value)):
        named = f"{type(value).__module__}:{type(value).__qualname__}"
        fields = {name: _written(getattr(value, name)) for name in names}
        return {KIND: "dataclass", "name": named, "fields": fields}
    if hasattr(value, "__fspath__"):
        return {KIND: "path", "path": str(value)}
    raise TypeError(f"processes cannot exchange a {type(value).__name__}")


def _read(value: object) -> object:
    """Convert what JSON has to the value that it was."""
    if isinstance(value, list):
        return [*map(_read, value)]
    if not isinstance(value, dict):
        return value
    match value.get(KIND):
        case "dict":
            return {_read(key): _read(item) for key, item in value["items"]}
        case "tuple":
            return tuple(map(_read, value["items"]))
        case "set":
            return {*map(_read, value["items"])}
        case "array":
            data = np.frombuffer(base64.b64decode(value["data"]), np.dtype(value["dtype"]))
            return data.reshape(value["shape"])[()]
        case "path":
            return files.path(value["path"])
        case "error":
            return _error(value["name"], value["words"])
        case "dataclass":
            fields = {name: _read(item) for name, item in value["fields"].items()}
            return _dataclass(value["name"])(**fields)
    raise ValueError(f"no message of a process of cnnlab: {sorted(value)}")


def _field_names(kind: type) -> list[str]:
    """List the fields of a dataclass or of a named tuple; none of another type."""
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    return [*getattr(kind, "_fields", ())] if issubclass(kind, tuple) else []


def _dataclass(name: str) -> type:
    """Find a dataclass of cnnlab by its name, module:Class.

    Raises:
      ValueError: it is none, or not of cnnlab.
    """
    module, _, path = name.partition(":")
    found = getattr(sys.modules.get(module), path, None) if module.startswith("cnnlab.") else None
    if not (isinstance(found, type) and _field_names(found)):
        raise ValueError(f"{name} is no dataclass of cnnlab")
    return found


def _described(error: Exception) -> dict[str, str]:
    """Describe an error: the kind that those who catch it know, and its words."""
    for kind in (CheckpointError, InputError):
        if isinstance(error, kind):
            return {"name": kind.__name__, "words": str(error)}
    if words := explained(error):  # of this machine, which only it can explain
        return {"name": "InputError", "words": words}
    return {"name": type(error).__name__, "words": said(error)}


def _error(name: str, words: str) -> Exception:
    if kind := {"InputError": InputError, "CheckpointError": CheckpointError}.get(name):
        return kind(words)
    known = {"OSError": OSError, "ValueError": ValueError, "TypeError": TypeError}.get(name)
    return known(words) if known else RuntimeError(f"{name}: {words}")
