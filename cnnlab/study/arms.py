"""What a study swaps, as text: `optimizer=sgd,momentum=0.9 learning_rate=0.1` -> settings of a run.

Arms are compared with each other, conditions are what all of them are trained under. Both are
settings of any kind, each word of them `setting=value`; an arm may also be a loss alone. Imports no
jax.
"""

from __future__ import annotations

import ast
import functools
import typing
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

from cnnlab import config as settings
from cnnlab.config import FORMER, Recipe
from cnnlab.errors import InputError, unknown
from cnnlab.types import JsonObject

# Settings by name, with the values that they have under it.
Condition: TypeAlias = JsonObject

# What all networks of a study have in common: they differ by their seeds, and are measured alike
SHARED = ("seed", "noise", "metrics")
# What a comparison cannot be between: the images that arms are tested and validated on
OF_CONDITIONS = (
    *("dataset", "image_key", "label_key", "test_split", "test_fraction"),
    *("validation", "split_seed"),
)
SHORT_NAMES = {"lr": "learning_rate"}


@functools.cache
def parse_arm(text: str) -> Mapping[str, Any]:
    """Parse an arm into the settings in which it differs from the study's.

    Args:
      text: words `setting=value`, or a loss.

    Raises:
      InputError: a setting without a value or named twice, or that cannot differ between arms.

    >>> dict(parse_arm("optimizer=sgd,momentum=0.9 lr=0.1"))
    {'optimizer': 'sgd,momentum=0.9', 'learning_rate': 0.1}
    >>> dict(parse_arm("focal,gamma=2"))
    {'loss': 'focal,gamma=2'}
    """
    where = f"arm '{text}'"
    words = text.split()
    if not words:
        raise InputError("an arm is a loss, or words setting=value; got none")
    if not _is_assignment(words[0]):
        if len(words) > 1:
            raise InputError(f"{where}: its loss is a setting too, as in loss={words[0]}")
        return MappingProxyType({"loss": text.strip()})
    changed: dict[str, Any] = {}
    for word in words:
        name, value = _assignment(word, where)
        if name in changed:
            raise InputError(f"{where}: {name} is set twice")
        if name in OF_CONDITIONS:
            raise InputError(
                f"{where}: arms are tested and validated on the same images; {settings.flag(name)} "
                f"is for all of them, and --vary {name}=... for conditions"
            )
        changed[name] = value
    return MappingProxyType(changed)


def parse_axes(words: Sequence[str]) -> dict[str, tuple[object, ...]]:
    """Parse `--vary`: each setting with its values, in the order of their first words.

    Raises:
      InputError: a word that names no setting, or that is there twice.

    >>> parse_axes(["epochs=5", "optimizer=adam", "epochs=10"])
    {'epochs': (5, 10), 'optimizer': ('adam',)}
    """
    axes: dict[str, tuple[object, ...]] = {}
    for word in words:
        where = f"--vary {word}"
        name, value = _assignment(word, where)
        values = axes.get(name, ())
        if value in values:
            raise InputError(f"{where}: {name} has that value already")
        axes[name] = (*values, value)
    return axes


def _is_assignment(word: str) -> bool:
    """Return whether a word is `setting=value`; a loss has a comma before its first "="."""
    name, equals, _ = word.partition("=")
    return bool(equals) and name.replace("-", "_").isidentifier()


def _assignment(word: str, where: str) -> tuple[str, object]:
    """Parse `setting=value` as the setting's type; `where` is for messages."""
    written, equals, value = word.partition("=")
    name = written.replace("-", "_")
    name = SHORT_NAMES.get(name, name)
    if (former := name.replace("_", "-")) in FORMER:
        raise InputError(
            f"{where}: {former} is a hyperparameter of its part now, as in {FORMER[former]}"
        )
    kinds = _kinds()
    if name not in kinds:
        raise unknown("setting", name, sorted(kinds))
    if not equals or not value:
        raise InputError(f"{where}: wanted setting=value, got '{word}'")
    return name, _typed(where, value, kinds[name])


@functools.cache
def _kinds() -> dict[str, object]:
    """Return the types of the settings that may differ within a study, by name."""
    hints = typing.get_type_hints(Recipe)
    return {name: hint for name, hint in hints.items() if name not in SHARED}


def _typed(where: str, value: str, kind: object) -> object:
    """Parse a setting's value as its type; `where` is for messages."""
    if kind is str:
        return value
    try:
        read = ast.literal_eval(
            {"true": "True", "false": "False", "none": "None"}.get(value.lower(), value)
        )
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        read = value
    kinds = settings.value_types(kind)
    if type(read) in kinds:
        return read
    if float in kinds and type(read) is int:
        return float(read)
    wanted = " or ".join(getattr(k, "__name__", str(k)) for k in kinds)
    raise InputError(f"{where}: '{value}' is no {wanted}")
