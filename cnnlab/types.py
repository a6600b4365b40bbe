"""Names of types that several modules share, for annotations; importing them costs nothing."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

# Arrays, in whatever nest of tuples, lists, dicts and nodes of flax and Optax.
PyTree: TypeAlias = Any
# What json writes; and an object of it, as it is read: whoever reads it knows its keys.
Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
JsonObject: TypeAlias = dict[str, Any]
# The metrics of a data set by name, as `metrics.summarise` makes them.
Metrics: TypeAlias = dict[str, Any]
# An epoch's metrics by name, a line of metrics.jsonl; with seeds each a list.
Row: TypeAlias = dict[str, Any]


class Device(Protocol):
    """What cnnlab asks of a JAX device, whose own class is not written in Python."""

    @property
    def platform(self) -> str: ...

    @property
    def device_kind(self) -> str: ...

    @property
    def process_index(self) -> int: ...
