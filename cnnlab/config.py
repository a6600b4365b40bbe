"""Every setting of a run: what determines its numbers, what it runs on, what it writes.

Frozen dataclasses whose fields are the flags of the scripts and the keys of configuration files.
What a field may hold stands next to it, as the metadata of its type. Imports no jax, so that
`--help` is quick.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import numbers
import os
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias, TypeGuard, TypeVar

from cnnlab import files, spec
from cnnlab.docstrings import Limits, limits
from cnnlab.errors import InputError, unknown
from cnnlab.types import JsonObject

# Flags of earlier versions that are hyperparameters of a part now.
FORMER = {
    "widths": "--model cnn,widths=[32,64]",
    "whiten": "--model airnet,whiten=true",
    "no-whiten": "--model airnet,whiten=false",
    "hidden": "--model mlp,hidden=[128]",
    "batch-norm": "--model cnn,batch_norm=true",
    "no-batch-norm": "--model cnn,batch_norm=false",
    "dropout": "--model cnn,dropout=0.2",
    "pool": "--model cnn,pool=average",
    "activation": "--model cnn,activation=gelu",
    "head": "--model cnn,head=cosine",
    "loss-temperature": "--loss cross_entropy+temperature,t=2",
    "label-smoothing": "--loss cross_entropy+label_smoothing,alpha=0.1",
    "smoothing-convention": "--loss cross_entropy+label_smoothing,alpha=0.1,convention=off_target",
    "class-weights": "--loss cross_entropy+class_balanced",
    "z-loss": "--loss cross_entropy+z_loss,coefficient=1e-4",
    "head-rate": "--optimizer muon,head_rate=0.02",
    "bias-rate": "--optimizer muon,bias_rate=0.02",
    "whitening-epochs": "--optimizer muon,whitening_epochs=3",
    "filter-momentum": "--optimizer muon,filter_momentum=0.6",
    "warmup-epochs": "--schedule cosine,warmup=1",
    "weight-decay": "--optimizer sgd,weight_decay=5e-4",
    "momentum": "--optimizer sgd,momentum=0.9",
    "nesterov": "--optimizer sgd,nesterov=true",
    "no-nesterov": "--optimizer sgd,nesterov=false",
    "flip": "--augment flip (or alternating_flip, or none)",
    "crop": "--augment flip+crop,padding=4",
    "crop-padding": "--augment flip+crop,padding=4,mode=reflect",
    "cutout": "--augment flip+cutout,size=8",
    "mixup": "--augment flip+mixup,alpha=0.2",
    "list-losses": "--list loss",
}


S = TypeVar("S", bound="Settings")

NOISE = ("symmetric", "asymmetric")
PROGRESS = ("auto", "bar", "lines", "off")
TESTED = ("last", "best")
TEST = "test"  # the test split of a run's own data set
PART = "part"  # in the grammar of spec.py
Part = Annotated[str, PART]
# Bounds of what would be made a list or a process of: refused before that is tried
Count = Annotated[int, "[1, 1000000]"]
Size = Annotated[int, "[0, 1000000000]"]
Few = Annotated[int, "[0, 1000]"]
Rate = Annotated[float, "(0, inf)"]
Share = Annotated[float, "[0, 1)"]
# What the metadata of a type says of a value: an interval, or `PART`; or the words that it may be.
Rule: TypeAlias = str | tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    """A frozen dataclass of settings; fields that are settings themselves are its sections.

    Names are unique over all sections, so settings can be given and listed flat.
    """

    @classmethod
    def of(cls: type[S], **values: object) -> S:
        """Build settings from the defaults and the values given by name, whichever section they are
        in.

        Raises:
          InputError: an unknown name, or a value that does not fit.
        """
        made = {f.name: f.default_factory for f in dataclasses.fields(cls)}
        sections = {k: make() for k, make in made.items() if make is not dataclasses.MISSING}
        return cls(**_placed(values, sections, names(cls)))

    def replace(self: S, **values: object) -> S:
        """Copy the settings with other values for some, given as for `of`."""
        sections = {k: value for k, value in _fields(self) if isinstance(value, Settings)}
        return dataclasses.replace(self, **_placed(values, sections, names(type(self))))

    def items(self) -> Iterator[tuple[str, object]]:
        """Yield (name, value) of every setting, section by section."""
        for name, value in _fields(self):
            if isinstance(value, Settings):
                yield from _fields(value)
            else:
                yield name, value

    def to_json(self) -> JsonObject:
        """Convert the settings to JSON values, by name."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self.items()}


@dataclass(frozen=True)
class Training(Settings):
    """How networks are trained and on what: what all runs of a study have in common."""

    dataset: Part = "shapes10"
    """shapes10 (drawn here), cifar10, cifar100, mnist, fashion_mnist, svhn_cropped, any prepared
    image-classification set by its TFDS name (emnist/letters, cifar10:3.0.2), or your own:
    my_data.load,size=64. Corruptions follow after a +: cifar10+label_noise,rate=0.4 (--list
    dataset, corruption)."""
    image_size: Annotated[int, "[1, 10000]"] | None = None
    """Side in pixels to which images are scaled and cropped; needed only where their sizes differ.
    """
    image_key: str | None = None
    """Feature of a TFDS data set that is the image. None: image, or the only one."""
    label_key: str | None = None
    """Feature of a TFDS data set that is the label: a class, a whole number or a text. None: label,
    or the only class."""
    test_split: str | None = None
    """Split of a TFDS data set to test on. None: test."""
    test_fraction: Annotated[float, "(0, 1)"] | None = None
    """Share of the training split to test on, of a data set without one for that; stratified by
    class, always the same images."""
    validation: Share = 0.1
    """Share of the training split held out for validation, stratified by class."""
    split_seed: Annotated[int, "[0, 4294967296)"] | None = 0
    """Seed of that split, so that runs over seeds validate on the same images. None: drawn by the
    run's own seed, as a study does by default: its verdicts then cover other splits.
    """

    model: Part = "cnn"
    """cnn, mlp, softmax_regression, airnet, cnn8, resnet18 (20, 32, 34, 44, 50, 56, 110),
    wide_resnet, or your own, with hyperparameters: cnn,widths=[32,64] (--list model)."""
    compute_dtype: Annotated[str, ("float32", "bfloat16", "float16")] = "float32"
    """float32, bfloat16 or float16 (its gradients scaled up on the way); parameters, logits and
    loss are float32."""
    loss: Part = "cross_entropy"
    """A loss as name,key=value,... or your own: my_module.my_loss,alpha=0.3; transforms follow
    after a +: focal,gamma=2+label_smoothing,alpha=0.1 (--list loss, transform)."""
    teacher: str | None = None
    """Run folder of the network that teaches, for the losses that take teacher_logits, such as
    distillation."""

    optimizer: Part = "adam"
    """adam, adamw, sgd, muon, any of Optax's by its path (optax.lion,b1=0.95), or your own (--list
    optimizer)."""
    learning_rate: Rate = 1e-3
    """Peak rate per step; sgd wants about 0.05, muon 0.24."""
    schedule: Part = "cosine"
    """cosine, linear, constant, steps,at=[80,120], one_cycle, restarts,period=10, or your own
    (--list schedule)."""
    clip_norm: Rate | None = None
    """Largest global norm of the gradient; None: no clipping."""
    average: Part = "none"
    """Average of the weights over the steps, which is then what is validated and tested, next to
    the last ones: ema,decay=0.999, swa,start=0.75, or your own (--list average); none."""

    augment: Part = "auto"
    """Operations, such as flip+crop,padding=4+mixup,alpha=0.2, in this order (--list augmentation);
    none; or auto: flip where a mirrored image is of the same class."""
    metrics: tuple[Part, ...] = ()
    """Your own metrics, by their paths, besides those that are always measured (--list metric)."""

    epochs: Count = 10
    """Passes over the training images."""
    batch_size: Count = 128
    """Images per step, over all devices."""
    microbatches: Count = 1
    """Equal parts of each device's images of a step, trained on one after the other to save memory:
    the same step, but that batch norm sees one part at a time."""
    test_views: Annotated[str, ("one", "mirror", "mirror_shift")] = "one"
    """How a test image is seen: one way, mirror (and mirrored), or mirror_shift (and moved by a
    pixel)."""

    def __post_init__(self) -> None:
        # Part of what a run is: found from any directory, and the same from each.
        if self.teacher and not files.is_remote(self.teacher):
            _refuse_urls(self, "teacher", "a run folder, or gs://BUCKET/FOLDER")
            object.__setattr__(self, "teacher", os.path.abspath(files.expanded(self.teacher)))
        check(self)


@dataclass(frozen=True)
class Recipe(Training):
    """What determines the numbers of a run. A resumed run keeps it."""

    seed: Annotated[int, "[0, 4294967296)"] = 0
    """Seed of initial weights, order, augmentation, dropout, wrong labels and left out images."""
    label_noise: Share = 0.0
    """Short for +label_noise,rate=... on the data set: share of the training labels made wrong."""
    noise: Annotated[str, NOISE] | None = None
    """How --label-noise errs: symmetric (to any other class; the default) or asymmetric (to a class
    like it, a cat to a dog)."""
    long_tail: Annotated[float, "[1, inf)"] = 1.0
    """Short for +long_tail,factor=...: how many times more images the first class keeps than the
    last; 1: all."""
    fraction: Annotated[float, "(0, 1]"] = 1.0
    """Short for +fraction,share=...: share of the training images of each class that is used."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise and not self.label_noise:
            raise InputError(f"--noise {self.noise} has no effect without --label-noise")

    def corrupted_dataset(self) -> str:
        """Return the data set's spec, with the short forms of corruptions written out."""
        noise = {"rate": self.label_noise} | ({"kind": self.noise} if self.noise else {})
        short = {
            "fraction": {"share": self.fraction} if self.fraction < 1 else {},
            "long_tail": {"factor": self.long_tail} if self.long_tail > 1 else {},
            "label_noise": noise if self.label_noise else {},
        }
        written = [str(spec.Spec(name, keywords)) for name, keywords in short.items() if keywords]
        return "+".join([self.dataset, *written])


@dataclass(frozen=True)
class Machine(Settings):
    """What a run runs on and how it is fed: no number depends on it, but in its rounding."""

    data_dir: str | None = None
    """TFDS data directory. None: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    feed: Annotated[str, ("auto", "resident", "mapped", "streaming")] = "auto"
    """resident (decoded once, gathered on the device), mapped (decoded once into a file of the
    cache, whose rows are read) or streaming (decoded as it goes); same batches. auto: the first of
    them that there is room for."""
    decoded_limit: Annotated[float, "[0, inf)"] = 16.0
    """GiB that auto may take for the file of decoded images, and no more than half of what is free
    on its disk."""
    workers: Few = 0
    """Processes that read, and decode, when mapped or streaming; 0: threads of this one."""
    parallel: Annotated[str, ("auto", "jit", "pmap", "sharded")] = "auto"
    """auto (sharded when there is more than one device), jit (one device), pmap or sharded."""
    devices: Count | None = None
    """Devices to use. None: the most that divide the batch; CPU cores are used where that is
    faster."""
    mesh: str | None = None
    """SxD: S groups of devices share out the seeds, the D devices of each the batch, as 8x1. None:
    as many groups as seeds and devices allow."""
    dispatch_steps: Count | None = None
    """Steps handed to the devices at once. None: 1 on CPU (4 for several seeds) and when streaming,
    else 32."""
    deterministic: bool = False
    """Have a GPU compute the same bits on every run, more slowly; a CPU and a TPU do anyway."""
    coordinator: str | None = None
    """host:port of the first of several processes; found by itself on Cloud TPU, Slurm, Open MPI
    and Kubernetes."""
    processes: Count | None = None
    """How many processes train together, on as many machines or one; 1: this one alone, whatever
    the scheduler says."""
    process: Size | None = None
    """The number of this process, from 0."""
    cache: str | None = None
    """gs://BUCKET/FOLDER where machines share compiled programs and decoded images, so that other
    hosts, and one that is made anew, need not make them again. None: not shared; this machine's are
    in $CNNLAB_CACHE, else ~/.cache/cnnlab."""

    def __post_init__(self) -> None:
        check(self)
        if self.mesh is not None and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", self.mesh):
            raise InputError(f"--mesh must be two numbers of devices, such as 8x1, got {self.mesh}")
        several = (self.coordinator, self.processes, self.process)
        if self.processes != 1 and None in several and several != (None, None, None):
            raise InputError(
                "--coordinator HOST:PORT, --processes N and --process I go together, on each of N "
                "processes"
            )
        if self.processes is not None and (self.process or 0) >= self.processes:
            raise InputError(f"--process must lie in [0, {self.processes}), got {self.process}")
        host, _, port = (self.coordinator or "host:1").rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise InputError(f"--coordinator must be HOST:PORT, got {self.coordinator}")
        if self.cache is not None and not files.is_remote(self.cache):
            raise InputError(
                f"--cache must be gs://BUCKET/FOLDER, got {self.cache}; the folder on this machine "
                "is $CNNLAB_CACHE"
            )


@dataclass(frozen=True)
class Output(Settings):
    """What a run writes and shows."""

    workdir: str | None = None
    """Run folder, also gs://BUCKET/FOLDER. None: runs/DATASET-MODEL-LOSS-seedN."""
    checkpoint_steps: Size = 0
    """Steps between checkpoints within an epoch; 0: at the end of each epoch only."""
    keep: Count = 2
    """Newest checkpoints kept, besides the best."""
    test_on: Annotated[str, TESTED] = "last"
    """Step whose weights are tested: last, or best (on validation); with --average, their
    averages."""
    test_sets: tuple[Part, ...] = ()
    """Sets to test on besides test, the data set's own: cifar10_1/v6, my_data.night; distortions
    follow after a +: test+gaussian_noise,severity=3 (--list dataset, distortion)."""
    tensorboard: bool = True
    """Write TensorBoard events."""
    progress: Annotated[str, PROGRESS] = "auto"
    """auto (bar on a terminal, lines elsewhere), bar, lines or off."""

    def __post_init__(self) -> None:
        check(self)
        if self.workdir and not files.is_remote(self.workdir):
            _refuse_urls(self, "workdir", "a folder on a disk, or gs://BUCKET/FOLDER")

    @property
    def further_test_sets(self) -> tuple[str, ...]:
        """The test sets besides the data set's own, which is always tested on."""
        return tuple(text for text in self.test_sets if text != TEST)


@dataclass(frozen=True)
class Config(Settings):
    """Train one network with one loss on one data set; test it once, at the end."""

    recipe: Recipe = field(default_factory=Recipe)
    machine: Machine = field(default_factory=Machine)
    output: Output = field(default_factory=Output)

    def __post_init__(self) -> None:
        if self.output.test_on == "best" and not self.recipe.validation:
            raise InputError("--test-on best needs --validation above 0")
        cache, workdir = self.machine.cache, self.output.workdir
        if cache and workdir and f"{cache}/".startswith(workdir.rstrip("/") + "/"):
            raise InputError(f"--cache {cache} must not be in --workdir {workdir}")

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Config:
        """Build the configuration that `to_json` described; a newer setting is at its default.

        Raises:
          InputError: a setting that this version does not know, or of another type.
        """
        values = {name: value for name, value in values.items() if name not in STORED_BESIDES}
        if strange := values.keys() - dict(cls().items()).keys():
            raise InputError(
                "the stored configuration is of another version of cnnlab, this one does not know "
                f"{sorted(strange)}; use that version, or train again"
            )
        try:
            return cls.of(**_tuples(values))
        except (TypeError, AttributeError) as error:
            raise InputError(f"the stored configuration is damaged: {error}") from error


def read_file(path: str) -> JsonObject:
    """Read settings from a TOML file, or from a run's config.json: the same settings elsewhere.

    Tables of a TOML file group settings for the reader; their names have no meaning. Of a run's
    configuration, what names its folder and processes is left out, and corruptions that were given
    as short forms are short forms again, so that flags override them.

    Raises:
      InputError: the file cannot be read.
    """
    try:
        text = files.read_text(files.path(path))
        values = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except OSError as error:
        raise InputError(f"--config {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"--config {path} cannot be read: it holds no settings")
    if path.endswith(".json"):
        written = values.get("written")
        if isinstance(written, dict) and {"dataset", *SHORT} <= written.keys():
            values |= {name: written[name] for name in SHORT}
            values["dataset"] = _without_short_forms(values["dataset"], written["dataset"])
        return {k: v for k, v in values.items() if k not in (*STORED_BESIDES, *OF_ONE_RUN)}
    settings: JsonObject = {}
    for name, value in values.items():
        for key, inner in (value if isinstance(value, dict) else {name: value}).items():
            if (key := key.replace("-", "_")) in settings:
                raise InputError(f"--config {path}: {key} is set twice")
            settings[key] = inner
    return settings


def _without_short_forms(resolved: str, written: str) -> str:
    """Cut a resolved data set to the parts that were written: short forms come last in it."""
    parts = spec.parse_pipeline(resolved)[: len(spec.parse_pipeline(written))]
    return "+".join(map(str, parts))


def as_args(values: Mapping[str, object]) -> list[str]:
    """Convert settings to the words of a command line.

    >>> as_args({"batch_size": 64, "tensorboard": False, "metrics": ["a.b", "c.d"]})
    ['--batch-size', '64', '--no-tensorboard', '--metrics', 'a.b', 'c.d']
    """
    args: list[str] = []
    for name, value in values.items():
        if isinstance(value, bool):
            args.append(flag(name) if value else flag(f"no_{name}"))
        elif isinstance(value, list | tuple):
            args += [flag(name), *map(str, value)]
        else:
            args += [flag(name), str(value)]
    return args


def check(section: Settings) -> None:
    """Check the fields of a dataclass against their types and the metadata of those.

    Raises:
      TypeError: one is of another type.
      InputError: one does not fit; it is named with its value.
    """
    for name, kinds, rules in _rules(type(section)):
        value: object = getattr(section, name)
        if isinstance(value, Settings):  # a section, which has checked itself
            continue
        number = type(value) is int and float in kinds
        if type(value) not in kinds and not number:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"{name} must be {wanted}, got {value!r}")
        for item in value if isinstance(value, tuple) else ():
            if not isinstance(item, str | int | float | tuple):
                raise TypeError(
                    f"{name} must hold texts or numbers, got {item!r}; a function of yours is "
                    "named by its path, my_module.my_function"
                )
        for rule in rules if value is not None else ():
            _check_rule(name, value, rule)


def _check_rule(name: str, value: Any, rule: Rule) -> None:
    """Check a value, or each item of a tuple, against one rule."""
    if isinstance(value, tuple):
        for item in value:
            _check_rule(name, item, rule)
    elif rule == PART:
        spec.parse_pipeline(value)
    elif isinstance(rule, tuple):
        if value not in rule:
            raise unknown(name, str(value), rule)
    elif value not in _interval(rule):
        raise InputError(f"{flag(name)} must lie in {rule}, got {value}")


def _refuse_urls(section: Settings, name: str, wanted: str) -> None:
    """Refuse a URL as the value of a setting.

    Raises:
      InputError: it is one.
    """
    value = getattr(section, name)
    if files.is_url(value):
        raise InputError(f"{flag(name)} {value} is a URL that is not supported: give {wanted}")


def flag(name: str) -> str:
    """Return the flag of a setting.

    >>> flag("batch_size")
    '--batch-size'
    """
    return "--" + name.replace("_", "-")


def names(section: type) -> frozenset[str]:
    """Return the names of a dataclass's fields."""
    return frozenset(field.name for field in dataclasses.fields(section))


def value_types(hint: Any) -> tuple[type, ...]:
    """List the types of the values that a type hint allows.

    >>> value_types(tuple[str, ...]), value_types(int | None) == (int, type(None))
    ((<class 'tuple'>,), True)
    """
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return tuple(kind for inner in typing.get_args(hint) for kind in value_types(inner))
    return (typing.get_origin(hint) or hint,)


def fits(value: object, hint: Any) -> bool:
    """Return whether a value, as TOML or JSON holds it, is of the type of a setting.

    >>> fits(3, float), fits("3", int), fits(["a"], tuple[str, ...]), fits(True, int | None)
    (True, False, True, False)
    """
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(fits(value, inner) for inner in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        return all(fits(inner, item) for inner in (value if isinstance(value, list) else [value]))
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint if hint in (int, str, bool, type(None)) else True


def _placed(
    values: dict[str, object], sections: dict[str, Settings], fields: Iterable[str]
) -> dict[str, object]:
    """Arrange settings given flat as the fields of a dataclass: its sections, changed, and the
    others.
    """
    values = {name: _plain(value) for name, value in values.items()}
    placed = {name: value for name, value in values.items() if name in fields}
    rest = {name: value for name, value in values.items() if name not in fields}
    for key, default in sections.items():
        inner = {name: rest.pop(name) for name in names(type(default)) & rest.keys()}
        section = placed.get(key, default)
        if not isinstance(section, type(default)):
            raise TypeError(f"{key} must be {type(default).__name__}, got {section!r}")
        placed[key] = dataclasses.replace(section, **inner)
    if rest:
        inside = [name for section in sections.values() for name, _ in _fields(section)]
        raise unknown("setting", min(rest), [*inside, *sorted({*fields} - sections.keys())])
    return placed


def _plain(value: object) -> object:
    """Convert a path to text, and a NumPy number to a Python one; return other values unchanged."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, numbers.Number) and hasattr(value, "item"):
        return value.item()  # pyright: ignore[reportAttributeAccessIssue]
    return value


def _fields(section: Settings) -> list[tuple[str, object]]:
    return [(field.name, getattr(section, field.name)) for field in dataclasses.fields(section)]


def _tuples(values: Mapping[str, object]) -> dict[str, object]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


@functools.cache
def _interval(text: str) -> Limits:
    interval = limits(f"in {text}")
    assert interval is not None, text
    return interval


@functools.cache
def _rules(section: type) -> list[tuple[str, tuple[type, ...], list[Rule]]]:
    """List (name, types that a value may have, metadata of its type) of a dataclass's fields."""
    plain = typing.get_type_hints(section)
    annotated = typing.get_type_hints(section, include_extras=True)
    return [
        (name, value_types(kind), [rule for rule in _metadata(annotated[name]) if _is_rule(rule)])
        for name, kind in plain.items()
    ]


def _is_rule(metadata: object) -> TypeGuard[Rule]:
    """Return whether metadata is one of our rules; tyro's markers are not."""
    return type(metadata) in (str, tuple)


def _metadata(hint: object) -> Iterator[object]:
    yield from getattr(hint, "__metadata__", ())
    for inner in typing.get_args(hint):
        yield from _metadata(inner)


# What a run folder's config.json holds besides settings.
STORED_BESIDES = ("written", "sources", "places", "run", files.SEAL)
SHORT = ("label_noise", "noise", "long_tail", "fraction")  # forms of corruptions of the data set
OF_ONE_RUN = ("workdir", "coordinator", "processes", "process")
PARTS = tuple(name for name, _, rules in _rules(Recipe) if PART in rules)
