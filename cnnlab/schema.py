"""JSON values -> dataclasses, each field checked against its type, and a number against the range
in the type's metadata: `Annotated[float, "[0, 1]"]`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from cnnlab.docstrings import limits

T = TypeVar("T")
ROUNDING = 1e-6  # beyond a range that float32 sums may lie


def build(kind: type[T], value: object, where: str = "") -> T:
    """Build a dataclass from the values of `dataclasses.asdict`, as JSON keeps them.

    Args:
      kind: of it.
      value: to build it from.
      where: it stands, for messages.

    Raises:
      ValueError: a field is missing, of another type, or out of its range; or unknown.

    >>> @dataclasses.dataclass
    ... class Point:
    ...     x: Annotated[float, "[0, 1]"]
    >>> build(Point, {"x": 7.0})
    Traceback (most recent call last):
    ValueError: x must lie in [0, 1], got 7.0
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'it'} must be an object, got {_short(value)}")
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {
        field.name: field
        for field in dataclasses.fields(kind)  # pyright: ignore[reportArgumentType]
    }
    if strange := value.keys() - fields.keys():
        raise ValueError(f"{_join(where, min(strange))} is not known")
    values = {}
    for name, field in fields.items():
        if name in value:
            values[name] = _value(hints[name], value[name], _join(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{_join(where, name)} is missing")
    return kind(**values)


def in_range(where: str, value: float, low: float, high: float) -> None:
    """Check that a number lies between two others, but for rounding; what is not finite does not
    unless a side is open.

    Raises:
      ValueError: it does not.
    """
    if not low - ROUNDING <= value <= high + ROUNDING:
        raise ValueError(f"{where} must lie in [{low:g}, {high:g}], got {value}")


def _value(hint: Any, value: object, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    origin = typing.get_origin(hint)
    if origin is Annotated:
        inner, text = typing.get_args(hint)
        read = _value(inner, value, where)
        _check_range(read, text, where)
        return read
    if origin in _CONTAINERS:
        return _CONTAINERS[origin](hint, value, where)
    if hint is Any or _is(hint, value):
        return float(typing.cast(int, value)) if hint is float else value
    raise ValueError(f"{where} must be {hint.__name__}, got {_short(value)}")


def _check_range(value: object, text: str, where: str) -> None:
    interval = limits(f"in {text}")
    if interval is not None and isinstance(value, int | float) and value not in interval:
        raise ValueError(f"{where} must lie in {text}, got {value}")


def _union(hint: Any, value: object, where: str) -> Any:
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    if value is None and len(kinds) < len(typing.get_args(hint)):
        return None
    return _value(kinds[0], value, where)


def _list(hint: Any, value: object, where: str) -> Any:
    if not isinstance(value, list):
        raise ValueError(f"{where} must be a list, got {_short(value)}")
    inner = typing.get_args(hint)[0]
    items = [_value(inner, item, f"{where}[{i}]") for i, item in enumerate(value)]
    return items if typing.get_origin(hint) is list else tuple(items)


def _dict(hint: Any, value: object, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object, got {_short(value)}")
    inner = typing.get_args(hint)[1]
    return {name: _value(inner, item, _join(where, name)) for name, item in value.items()}


_CONTAINERS: dict[Any, Callable[[Any, object, str], Any]] = {
    types.UnionType: _union,
    typing.Union: _union,
    list: _list,
    tuple: _list,
    dict: _dict,
}


def _is(hint: Any, value: object) -> bool:
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
