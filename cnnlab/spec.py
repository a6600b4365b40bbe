"""One grammar for every part of an experiment: text on the command line -> a function with its
hyperparameters.

    part      name | dotted.path, then ,key=value ...
              focal,gamma=2   my_nets.Net,depth=20   optax.lion,b1=0.95
    pipeline  part+part+...
              flip+crop,padding=4+my_ops.jitter,strength=0.3

Inside brackets and quotes nothing separates, and a "+" separates only before a letter. A dotted
path is looked up from the current directory or in an installed package; whatever can be called is a
part: a function, a class, a `functools.partial`, an object. A part asks for what it needs by
parameter name: `Part.bind` passes what the run can supply (`num_classes`, `class_counts`, ...)
where the function has a parameter of that name. Imports no jax.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib
import inspect
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from cnnlab import docstrings, provenance
from cnnlab.errors import InputError, is_stop, said, unknown

MOST_PARTS = 50  # of a pipeline: 50 augmentations compile for 10 s
SHORT_WORDS = "short_words"  # attribute of a function: short for values of its hyperparameters
CONSTANTS = {"true": True, "false": False, "none": None, "inf": math.inf, "-inf": -math.inf}
# What `isinstance` takes, of a hyperparameter's values; None: they may be anything.
Allowed: TypeAlias = type | tuple[type, ...] | None

TYPES: dict[str, Allowed] = {
    "bool": bool,
    "int": int,
    "float": (int, float),
    "str": str,
    "Path": str,
}
DEFAULTS: dict[type, Allowed] = {
    bool: bool,
    int: (int, float),
    float: (int, float),
    str: str,
    tuple: tuple,
    list: tuple,
}
TYPE_NAMES: dict[Allowed, str] = {
    bool: "true or false",
    int: "a whole number",
    (int, float): "a number",
    str: "a word",
    tuple: "a list",
}


@dataclass(frozen=True)
class Spec:
    """A part as it is written: its name, or the dotted path to it, and keywords."""

    name: str
    keywords: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return ",".join(
            [self.name, *[f"{key}={_text(value)}" for key, value in self.keywords.items()]]
        )


def parse(text: str) -> Spec:
    """Split `name,key=value,...` into the name and the keywords; lists become tuples.

    Raises:
      InputError: an empty name or a piece that is not key=value.

    >>> parse("focal,gamma=2")
    Spec(name='focal', keywords={'gamma': 2})
    >>> parse("my_nets.Net,widths=[32,64],norm=false,kind=soft").keywords
    {'widths': (32, 64), 'norm': False, 'kind': 'soft'}
    """
    name, *pieces = [piece.strip() for piece in split(text, ",")]
    if not name:
        raise InputError(f"a part starts with a name, as in 'focal,gamma=2'; got '{text}'")
    keywords: dict[str, object] = {}
    for piece in pieces:
        key, equals, value = piece.partition("=")
        if not (equals and key.isidentifier() and value) or key in keywords:
            raise InputError(
                "after the name come key=value pairs, each once, as in 'focal,gamma=2'; got "
                f"'{piece}'"
            )
        keywords[key] = _value(value)
    return Spec(name, keywords)


def parse_pipeline(text: str) -> tuple[Spec, ...]:
    """Split `part+part+...` into its parts.

    Raises:
      InputError: as `parse`.

    >>> [str(part) for part in parse_pipeline("flip+crop,padding=4+my_ops.scale,by=1e+2")]
    ['flip', 'crop,padding=4', 'my_ops.scale,by=100.0']
    """
    pieces = split(text, "+")
    if len(pieces) > MOST_PARTS:
        raise InputError(f"at most {MOST_PARTS} parts can follow each other, got {len(pieces):,}")
    return tuple(parse(piece) for piece in pieces)


def split(text: str, separator: str) -> list[str]:
    """Split at a separator outside brackets and quotes; at a "+" only where a letter or "_"
    follows.

    >>> split("ldam,class_counts=[10,20],kind='a,b'", ",")
    ['ldam', 'class_counts=[10,20]', "kind='a,b'"]
    """
    pieces = [""]
    depth = 0
    quote = ""
    escaped = False
    for place, char in enumerate(text):
        if quote:
            quote = "" if char == quote and not escaped else quote
            escaped = char == "\\" and not escaped
        elif char in "'\"":
            quote = char
        else:
            depth += (char in "[({") - (char in "])}")
        follows = text[place + 1 : place + 2]
        if (
            char == separator
            and not depth
            and not quote
            and (char != "+" or follows.isalpha() or follows == "_")
        ):
            pieces.append("")
        else:
            pieces[-1] += char
    return pieces


def is_path(name: str) -> bool:
    """Return whether a name is a dotted path; others may hold dots next to / or : only.

    >>> is_path("my_data.load"), is_path("cifar10:3.0.2"), is_path("mnist")
    (True, False, False)
    """
    return "." in name and not set(name) & set("/:")


def as_name(text: str) -> str:
    """Turn a text into the name of a part: characters that mean something in a spec become "_".

    >>> as_name("my data, v1.2")
    'my_data__v1_2'
    """
    return re.sub(r"[,+.\[\](){}'\"\s]", "_", text)


def _value(text: str) -> object:
    if text.lower() in CONSTANTS:
        return CONSTANTS[text.lower()]
    try:
        return frozen(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        # A list of words, which Python would want in quotes.
        bracketed = text[:1] + text[-1:] in ("[]", "()")
        return tuple(_value(item.strip()) for item in split(text[1:-1], ",")) if bracketed else text


def frozen(value: object) -> object:
    """Convert lists to tuples: the hyperparameters of a linen module must be hashable."""
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def _without_points(value: object) -> object:
    """Convert whole floats to ints, also those in a tuple."""
    if isinstance(value, tuple):
        return tuple(map(_without_points, value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text(value: Any) -> str:
    """Format a value as text that `_value` reads as the same value."""
    for word, constant in CONSTANTS.items():
        if type(value) is type(constant) and value == constant:
            return word
    if isinstance(value, tuple):
        items = [_text(item) if isinstance(item, tuple) else repr(item) for item in value]
        return f"[{','.join(items)}]"
    plain = isinstance(value, str) and value.isprintable() and not set(value) & set(",+'\"[](){} ")
    if plain and value and _value(value) == value:
        return value
    return repr(value)


@dataclass(frozen=True)
class Kind:
    """A kind of part: what its functions are called with, and where those of cnnlab are.

    Attributes:
      name: for messages, such as "loss".
      flag: of the command line that takes such parts.
      contract: how one is called, for messages.
      table: "module:NAME" of a dict from names to functions.
      aliases: "module:NAME" of a dict from short names to functions.
      positional: how many arguments come with the call; the others are hyperparameters.
      supplies: what the run passes to the functions that have a parameter of that name.
      overridable: what of that may be written in a spec too.
      defaulted: what of that is a hyperparameter instead, where the function has a default for it.
      libraries: modules whose functions also keep the contract, by their dotted paths.
      hidden: parameters that are not hyperparameters.
      fallback: name -> function for names that are in no table.
      longest: items that a list may have.
    """

    name: str
    flag: str
    contract: str
    table: str
    aliases: str = ""
    positional: int = 0
    supplies: tuple[str, ...] = ()
    overridable: tuple[str, ...] = ()
    defaulted: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    fallback: str = ""
    longest: int = 100_000

    def builtin(self) -> dict[str, Callable]:
        """Return cnnlab's functions of this kind by name."""
        return dict(_at(self.table))

    def short(self) -> dict[str, Callable]:
        """Return the functions of this kind that have a short name, by that name."""
        return dict(_at(self.aliases)) if self.aliases else {}


def _unwrapped(function: Callable) -> tuple[Callable, dict[str, object]]:
    """Return what a `functools.partial` wraps, and the keywords that it sets; other functions
    unchanged, with none.
    """
    if not isinstance(function, functools.partial):
        return function, {}
    return function.func, {key: frozen(value) for key, value in function.keywords.items()}


def _at(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Part:
    """A part that has been found.

    Attributes:
      kind: of it.
      name: of a built-in one, or the dotted path.
      function: what is called; of a class whose instances are called, the class.
      keywords: the hyperparameters that were written for it.
      module: the user's module that was imported for it.
      made_with: of an object, what it was made with that no spec says; the run does not supply it.
    """

    kind: Kind
    name: str
    function: Callable
    keywords: Mapping[str, object]
    module: str = ""
    made_with: Mapping[str, object] = field(default_factory=dict)

    @functools.cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Everything but what comes with the call, by name."""
        every = self._signature()
        if self._is_constructed:
            every = [*every, *self._signature(self.function.__call__)[1 + self.kind.positional :]]
        else:
            every = every[self.kind.positional :]
        named = [p for p in every if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return {p.name: p for p in named if p.name not in self.kind.hidden}

    @property
    def _is_constructed(self) -> bool:
        """Whether it is a class whose instances are called, as a loss may be: Loss(gamma=2)(logits,
        labels).
        """
        return self.kind.positional > 1 and inspect.isclass(self.function)

    def _signature(self, function: Callable | None = None) -> list[inspect.Parameter]:
        try:
            return list(inspect.signature(function or self.function).parameters.values())
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{self.kind.name} '{self.name}' is no {self.kind.contract} written in Python"
            ) from error

    @functools.cached_property
    def open_ended(self) -> bool:
        """Whether the function takes any keyword."""
        return any(p.kind is p.VAR_KEYWORD for p in self._signature())

    def asks(self, name: str) -> bool:
        """Return whether the function has a parameter of that name that neither the spec nor the
        object sets.
        """
        return name in self.parameters and name not in {**self.keywords, **self.made_with}

    def requires(self, name: str) -> bool:
        """Return whether the function asks for that name and has no default for it."""
        return self.asks(name) and self.parameters[name].default is inspect.Parameter.empty

    def mark(self, name: str, default: object = None) -> Any:
        """Return an attribute of the function, also from within a `functools.partial` or a wrapper;
        `default` where there is none.
        """
        function = self.function
        while not hasattr(function, name):
            function = getattr(function, "func", None) or getattr(function, "__wrapped__", None)
            if function is None:
                return default
        return getattr(function, name)

    def bind(self, **supply: object) -> Callable:
        """Bind the function to its hyperparameters and to what it asks for of `supply`.

        Raises:
          InputError: Python cannot read the signature of the function.
        """
        keywords = {
            **self.made_with,
            **self.keywords,
            **{name: value for name, value in supply.items() if self.asks(name)},
        }
        if not self._is_constructed:
            return functools.partial(self.function, **keywords)
        accepted = {p.name for p in self._signature()}
        made = self.function(
            **{name: value for name, value in keywords.items() if name in accepted}
        )
        return functools.partial(
            made, **{name: value for name, value in keywords.items() if name not in accepted}
        )

    def call(self, *args: object, **supply: object) -> Any:
        """Call the bound function and return its result.

        Raises:
          InputError: whatever it raises, in one line.
        """
        try:
            return self.bind(**supply)(*args)
        except InputError:
            raise
        except BaseException as error:  # whatever a user's function raises
            if is_stop(error):
                raise
            said = (
                f"{error}; {self.accepted()}"
                if isinstance(error, ValueError) and self.is_builtin
                else where(error)
            )
            raise InputError(f"{self.kind.name} {self}: {said}") from error

    @property
    def is_builtin(self) -> bool:
        """Whether it is one of cnnlab's, which are tested and say themselves what is wrong."""
        return self.kind.builtin().get(self.name) is self.function

    @property
    def path(self) -> str:
        """The dotted path, where the part has one."""
        return self.name if is_path(self.name) else ""

    def canonical(self) -> Spec:
        """Build the shortest spec of the same part: under the name that leaves the fewest
        hyperparameters to write, and without those at their defaults.
        """
        return min(
            (part._without_defaults() for part in self._under_other_names()),
            key=lambda spec: len(spec.keywords),
        )

    def _without_defaults(self) -> Spec:
        values = {name: self._as_default(name, value) for name, value in self.keywords.items()}
        changed = {
            k: v
            for k, v in values.items()
            if k not in self.parameters or not self._is_default(k, v)
        }
        return Spec(self._first_name, dict(sorted(changed.items())))

    @property
    def _first_name(self) -> str:
        """The name, of the user's functions that by which their module defines them."""
        defined = name_of(self.kind, self.function) if self.path else ""
        return defined if self.module and defined.startswith(f"{self.module}.") else self.name

    def identity(self) -> Spec:
        """Build the canonical spec of the function itself, whichever module hands it on, or wraps
        it in a `functools.partial`: parts that compute the same have the same.
        """
        function, preset = _unwrapped(self.function)
        name = name_of(self.kind, function) if self.path else ""
        if (
            not name
            or getattr(self.function, "args", ())
            or not all(map(is_literal, preset.values()))
        ):
            return self.canonical()
        module = "" if name in self.kind.builtin() else str(function.__module__)
        return Part(self.kind, name, function, {**preset, **self.keywords}, module).canonical()

    def _under_other_names(self) -> list[Part]:
        """List this part, then what it is called after the other built-in parts of its function."""
        if not self.is_builtin:
            return [self]
        function, preset = _unwrapped(self.function)
        parameters = inspect.signature(function).parameters
        parts: list[Part] = [self]
        for name, other in self.kind.builtin().items():
            wrapped, other_preset = _unwrapped(other)
            if name != self.name and wrapped is function:
                undone = {key: frozen(parameters[key].default) for key in other_preset}
                keywords = {**undone, **preset, **self.keywords}
                parts.append(Part(self.kind, name, other, keywords))
        return parts

    def resolved(self) -> Spec:
        """Build the spec with every default, except of what the run supplies, for storage: a later
        default does not change it.
        """
        defaults = {
            name: frozen(p.default)
            for name, p in self.parameters.items()
            if name not in self.kind.supplies and is_literal(p.default)
        }
        return Spec(self._first_name, dict(sorted((defaults | dict(self.keywords)).items())))

    def _as_default(self, name: str, value: object) -> object:
        """Convert an int to a float where the function takes floats, and whole floats to ints
        elsewhere, also those in a list: 2 and 2.0 are one spelling.
        """
        parameter = self.parameters.get(name)
        floats = parameter and (
            _annotated(parameter) == "float" or type(parameter.default) is float
        )
        if not floats:
            return _without_points(value)
        return float(value) if type(value) is int else value

    def _is_default(self, name: str, value: object) -> bool:
        default = frozen(self.parameters[name].default)
        return (
            is_literal(default)
            and default == value
            and isinstance(default, bool) == isinstance(value, bool)
        )

    def sources(self) -> dict[str, str]:
        """Compute the SHA-256 of each of the user's files behind the part, by module name."""
        if not self.path:
            return {}
        return provenance.sources(self.module, provenance.written_in(self.function))

    def accepted(self) -> str:
        """Describe the hyperparameters in one line."""
        return f"its hyperparameters: {docstrings.accepted(self.function, self.hyperparameters())}"

    def hyperparameters(self) -> dict[str, inspect.Parameter]:
        """Return the parameters that a spec may set, by name."""
        fixed = set(self.kind.supplies) - set(self.kind.overridable)
        return {
            name: parameter
            for name, parameter in self.parameters.items()
            if name not in fixed
            or (name in self.kind.defaulted and parameter.default is not parameter.empty)
        }

    def is_whole(self, name: str) -> bool:
        """Return whether a hyperparameter takes whole numbers only."""
        return _annotated(self.parameters[name]) == "int"

    def __str__(self) -> str:
        return str(Spec(self.name, self.keywords))


def find(kind: Kind, spec: Spec | str) -> Part:
    """Find the part that a spec names, and check its keywords against the function's signature and
    ranges.

    Raises:
      InputError: an unknown name, a module that cannot be imported, an unknown or a missing
        keyword, a value of another type or outside its range.
    """
    spec = parse(spec) if isinstance(spec, str) else spec
    name, function, module = _look_up(kind, spec.name)
    part = Part(kind, name, function, dict(spec.keywords), module)
    short_words: Mapping[object, object] = part.mark(SHORT_WORDS, {})
    keywords = {
        key: short_words.get(value, value) if isinstance(value, str) else value
        for key, value in _with_absolute_paths(part).items()
    }
    part = dataclasses.replace(part, keywords=keywords)
    for key, value in spec.keywords.items():
        if key in part.hyperparameters():
            _check_value(part, key, value)
        elif key in part.parameters:
            raise InputError(
                f"{kind.name} {spec.name}: {key} comes from the run; {part.accepted()}"
            )
        elif not part.open_ended:
            raise InputError(
                f"{kind.name} {spec.name} has no hyperparameter '{key}'; {part.accepted()}"
            )
    for key in part.parameters:
        if part.requires(key) and key not in kind.supplies:
            raise InputError(f"{kind.name} {spec.name} needs {key}; {part.accepted()}")
    return part


def _with_absolute_paths(part: Part) -> dict[str, object]:
    """Return a part's keywords, those of parameters annotated Path made absolute, so that a run
    that stores them finds them from any directory. URLs stay.
    """
    return {
        key: os.path.abspath(os.path.expanduser(value))
        if isinstance(value, str)
        and "://" not in value
        and key in part.parameters
        and _annotated(part.parameters[key]) == "Path"
        else value
        for key, value in part.keywords.items()
    }


def name_of(kind: Kind, function: object) -> str:
    """Return the name by which `find` finds a function or class: that of a built-in part, or its
    dotted path; in the kind's libraries, the public path.

    The name is empty where there is none, as for a lambda or what a script defines.
    """
    builtin = next((name for name, known in kind.builtin().items() if known is function), "")
    module, path = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if builtin or not module or module == "__main__":
        return builtin
    if public := _public_path(kind, function):
        return public
    named: object = sys.modules.get(module)
    for attribute in path.split("."):
        named = getattr(named, attribute, None)
    return f"{module}.{path}" if named is function else ""


def _public_path(kind: Kind, function: object) -> str:
    """Return the path of a function in the kind's libraries, empty if it is in none."""
    for library in kind.libraries:
        for name, known in vars(importlib.import_module(library)).items():
            if known is function:
                return f"{library}.{name}"
    return ""


def _look_up(kind: Kind, name: str) -> tuple[str, Callable, str]:
    """Look up a part: its name in its one spelling, its function, and the name of the module that
    was imported for it.
    """
    builtin = kind.builtin()
    module = ""
    known = builtin | kind.short()
    if is_path(name):
        function, module = _load(kind, name)
        if name.split(".")[0] != "cnnlab":
            public = _public_path(kind, function) if "._" in name else ""
            return public or name, function, module
    else:
        function = known.get(name)
    if function is None and kind.fallback:
        return name, _at(kind.fallback)(name), ""
    if function is None:
        for library in kind.libraries:
            if hasattr(importlib.import_module(library), name):
                raise InputError(f"unknown {kind.name} '{name}': did you mean '{library}.{name}'?")
        raise unknown(kind.name, name, known)
    return (
        next((builtin_name for builtin_name, f in builtin.items() if f is function), name),
        function,
        module,
    )


def look_here() -> None:
    """Let modules be imported from the current directory."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _load(kind: Kind, path: str) -> tuple[Callable, str]:
    """Import what a dotted path names, an attribute of a module or of a class in one. Return it
    and the module's name.
    """
    look_here()
    names = path.split(".")
    if not all(name.isidentifier() for name in names):
        raise InputError(f"{kind.name} '{path}' is no dotted path to something in Python")
    for length in range(len(names) - 1, 0, -1):
        module_name = ".".join(names[:length])
        try:
            target = _imported(module_name, f"{kind.name} '{path}'")
        except ModuleNotFoundError as error:
            missing = str(error.name)
            if length > 1 and missing != names[0] and f"{module_name}.".startswith(f"{missing}."):
                continue  # a class in a module, perhaps
            raise InputError(
                f"{kind.name} '{path}': no module '{error.name}', here or installed"
            ) from error
        with refused(f"{kind.name} '{path}'"):  # a module may have a __getattr__
            for name in names[length:]:
                if not hasattr(target, name):
                    raise unknown(f"{kind.name} in {module_name}", name, _callables(target))
                target = getattr(target, name)
        if not callable(target) and not kind.positional == 0:
            raise unknown(
                f"{kind.name} in {module_name}",
                names[-1],
                _callables(importlib.import_module(module_name)),
            )
        return target, module_name
    raise InputError(f"{kind.name} '{path}': no module '{names[0]}', here or installed")


def _imported(name: str, what: str) -> Any:
    """Import a user's module. What it prints goes to standard error: some commands print a result
    as JSON.
    """
    cannot = f"{what}: module '{name}' cannot be imported"
    with contextlib.redirect_stdout(sys.stderr), refused(cannot, ModuleNotFoundError):
        return importlib.import_module(name)


@contextlib.contextmanager
def refused(what: str, *passing: type[Exception]) -> Iterator[None]:
    """Refuse whatever a user's code raises in the body, also by `sys.exit`: in a line that begins
    with `what`.

    Raises:
      InputError: as raised in the body, or made of what was. Those of `passing`: as raised.
    """
    try:
        yield
    except (InputError, *passing):
        raise
    except BaseException as error:
        if is_stop(error):
            raise
        raise InputError(f"{what}: {where(error)}") from error


def _callables(module: object) -> list[str]:
    return [
        name for name, value in vars(module).items() if callable(value) and not name.startswith("_")
    ]


def _check_value(part: Part, key: str, value: object) -> None:
    """Check a value against the type of the annotation or default, and against the range that the
    docstring states.
    """
    parameter = part.parameters[key]
    said = f"{part.kind.name} {part.name}: {key} must"
    default = parameter.default
    written = _annotated(parameter)
    if value is None and default is None:
        return
    kind = TYPES.get(written) or DEFAULTS.get(type(default))
    if not _is_of(kind, value):
        raise InputError(f"{said} be {TYPE_NAMES[kind]}, got {_text(value)}; {part.accepted()}")
    if items := re.fullmatch(r"(?:Sequence|list|tuple)\[(\w+)(?:, \.\.\.)?\]", written):
        kind = TYPES.get(items[1])
        if not (isinstance(value, tuple) and all(_is_of(kind, item) for item in value)):
            items_are = f", each {TYPE_NAMES[kind]}" if kind else ""
            raise InputError(f"{said} be a list{items_are}, got {_text(value)}; {part.accepted()}")
    if isinstance(value, tuple) and len(value) > part.kind.longest:
        raise InputError(f"{said} have at most {part.kind.longest:,} items, got {len(value):,}")
    limits = docstrings.limits(docstrings.entry(part.function).arguments.get(key, ""))
    for number in value if isinstance(value, tuple) else (value,):
        if (
            limits
            and isinstance(number, int | float)
            and not isinstance(number, bool)
            and number not in limits
        ):
            raise InputError(f"{said} lie in {limits}, got {_text(value)}; {part.accepted()}")


def _annotated(parameter: inspect.Parameter) -> str:
    """Return the annotation of a parameter as it is written, without `| None`."""
    annotation = parameter.annotation
    return (annotation.__name__ if isinstance(annotation, type) else str(annotation)).removesuffix(
        " | None"
    )


def _is_of(kind: Allowed, value: object) -> bool:
    return kind is None or (
        isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    )


def is_literal(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(is_literal, value))
    return value is None or isinstance(value, bool | int | float | str)


def where(error: BaseException) -> str:
    """Describe an error and its place in the user's code in one line."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not ("site-packages" in frame.filename or frame.filename.startswith("<frozen"))
    ]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):  # it says where
        place = ""
    reason = next(iter(said(error).splitlines()), "")
    return f"{type(error).__name__}: {reason}{place}"


def _longhand(kind: Kind, function: Callable) -> Spec | None:
    """Return the spec of a part that is another built-in one with some hyperparameters set."""
    wrapped, preset = _unwrapped(function)
    names = [name for name, known in kind.builtin().items() if known is wrapped]
    return Spec(names[0], preset) if preset and names else None


def listing(kind: Kind) -> str:
    """Describe every built-in part of a kind for the terminal: its formula, hyperparameters,
    defaults and source.
    """
    short = kind.short()
    blocks = []
    for name, function in kind.builtin().items():
        if longhand := _longhand(kind, function):
            blocks.append(f"{name}: short for {longhand}")
            continue
        part = Part(kind, name, function, {})
        about = docstrings.entry(function)
        aliases = [alias for alias, other in short.items() if other is function]
        lines = [", ".join((name, *aliases)) + f": {about.summary}"]
        lines += [f"    {line}" for line in about.formula.split("\n") if about.formula]
        for key, parameter in part.hyperparameters().items():
            default = (
                "required"
                if parameter.default is parameter.empty
                else f"default {_text(parameter.default)}"
            )
            if key in kind.supplies:
                default = "supplied by the run"
            lines.append(f"  {key} ({default}): {about.arguments.get(key, '')}".rstrip(": "))
        blocks.append("\n".join([*lines, *([f"  {about.source}"] if about.source else [])]))
    more = [
        f"Every function of {library} that is {kind.contract}, as {library}.NAME"
        for library in kind.libraries
    ]
    return "\n\n".join(
        [*blocks, *more, f"{kind.flag} also takes your own, by its dotted path: {kind.contract}"]
    )
