"""What a study compares: arms x conditions x paired seeds. Imports no jax, so that `--help` is
quick.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from cnnlab import config as settings
from cnnlab import files
from cnnlab.config import (
    NOISE,
    PROGRESS,
    Config,
    Machine,
    Output,
    Rate,
    Recipe,
    Settings,
    Training,
)
from cnnlab.errors import InputError, unknown
from cnnlab.study.arms import Condition, parse_arm, parse_axes
from cnnlab.study.ranges import parse_ranges

if TYPE_CHECKING:
    from cnnlab.metrics import Metric

EXECUTORS = ("local", "ray")
KEPT = ("all", "none")
BLOCK = 4  # seeds
MAX_SEEDS = 32
MOST_LOOKED_AT = 1_000  # seeds; looking after each takes the square of their number
MOST_SEEDS = 10_000
MOST_TRIALS = 1_000  # of an arm
MOST_CELLS = 100_000  # of a study; its grid is a list
# Values are tried with the last seeds of all, which are no study's own: with other weights, orders
# and draws than are compared.
LAST_SEED = 2**32 - 1
TUNING_SEEDS = 4
MOST_TUNING_SEEDS = 64


@dataclass(frozen=True)
class Study(Settings):
    """Compare losses, or any other settings, over paired seeds: train each under every condition,
    and report what can be claimed.
    """

    training: Training = field(default_factory=functools.partial(Training, split_seed=None))
    machine: Machine = field(default_factory=Machine)

    losses: tuple[str, ...] = ()
    """The losses to compare, as for train.py's --loss: cross_entropy focal,gamma=2 my_module.mine.
    """
    arms: tuple[str, ...] = ()
    """Other settings to compare, each arm a text of words setting=value: "optimizer=adam"
    "optimizer=sgd,momentum=0.9 learning_rate=0.1". Two arms at least, --losses included."""
    baseline: str | None = None
    """The arm that the others are compared with. None: the first."""
    seeds: Annotated[int, f"[1, {MOST_SEEDS}]"] = 8
    """How many seeds: with the same one all arms see the same images in the same order, and start
    from the same weights where their networks agree.
    """
    first_seed: Annotated[int, "[0, 4294967296)"] = 0
    """The first of them; the others follow it."""
    until: Annotated[str, ("decided",)] | None = None
    """decided: add blocks of seeds to the arms that are not decided yet, and to the baseline, until
    all are. One may look at any time, stop, and continue with more."""
    max_seeds: Annotated[int, f"[1, {MOST_LOOKED_AT}]"] | None = None
    """The most that --until decided takes. None: 32."""
    block: Annotated[int, f"[1, {MOST_SEEDS}]"] | None = None
    """Seeds that are trained together and kept in one file, a cell: a study of more seeds trains
    only what is missing. None: 4, or --seeds if that is fewer.
    """
    label_noise: tuple[float, ...] = (0.0,)
    """Conditions: shares of the training labels made wrong, each in [0, 1), of classes that err
    (see --noise)."""
    noise: Annotated[str, NOISE] | None = None
    """How --label-noise errs: symmetric (to any other class; the default) or asymmetric (to a class
    like it, a cat to a dog)."""
    long_tail: tuple[float, ...] = (1.0,)
    """Conditions: how many times more images the first class keeps than the last; 1: all."""
    fraction: tuple[float, ...] = (1.0,)
    """Conditions: shares of the training images that are used, each in (0, 1]."""
    vary: tuple[str, ...] = ()
    """Conditions by any setting, one value per word: dataset=cifar10 dataset=mnist epochs=5
    epochs=10; every combination is trained."""
    metric: str = "accuracy"
    """What the verdicts are about, on the test set: accuracy, nll, brier, ece, top5, or one of
    --metrics by name.
    """
    margin: Rate | None = None
    """Differences within it count as equivalent. None: the metric's own, 0.01 for accuracy (--list
    metric).
    """
    alpha: Annotated[float, "[0.0001, 0.5]"] = 0.05
    """How often a study without any difference may end with a "better" or "worse", at most."""
    comparisons: Annotated[int, f"[1, {MOST_CELLS}]"] | None = None
    """How many comparisons with the baseline are planned, if arms may still be added: verdicts hold
    for so many. None: as many as there are.
    """
    all_pairs: bool = False
    """Compare every pair of arms, too, and rank them, in a section of the report: a second family,
    with an error rate of its own. Nothing is trained for it."""
    test_sets: tuple[settings.Part, ...] = ()
    """Sets to test on besides test, as for train.py: to look at; the verdicts are about test."""
    ood_sets: tuple[settings.Part, ...] = ()
    """Sets of images that are of none of the classes, named as test sets are: their logits are kept
    for reanalyse.py's ood metrics."""
    keep_logits: Annotated[str, KEPT] = "all"
    """all: keep the logits of validation, test and further sets, for reanalyse.py: 0.4 MB for each
    network and 10,000 images of 10 classes. none: keep none."""
    tune: tuple[str, ...] = ()
    """Before the comparison, choose hyperparameters on the validation split, for each arm under
    each condition: learning_rate=1e-4..1e-1 loss.gamma=0.5..5, for the arms that have them; by the
    study's metric, spread evenly in the logarithm."""
    budget: Annotated[int, f"[2, {MOST_TRIALS}]"] = 8
    """How many values --tune tries, the same number for every arm."""
    tune_seeds: Annotated[int, f"[1, {MOST_TUNING_SEEDS}]"] | None = None
    """Seeds that each value is tried with, none of the study's own: with few, equal arms seem to
    differ. None: 4."""
    tune_per_seed: bool = False
    """Choose anew for each seed of the study, with that seed: the most expensive way, and the only
    one that leaves the error rate as it is."""
    shard: str = "0/1"
    """i/n: train every n-th cell from the i-th on (0 <= i < n), for n machines that share the
    folder.
    """
    executor: Annotated[str, EXECUTORS] = "local"
    """local (a cell after the other, here) or ray: a task each, on the cluster of $RAY_ADDRESS or
    on this machine.
    """
    workdir: str = "runs/study"
    """Folder of the results; cells that stand there already are not trained again."""
    progress: Annotated[str, PROGRESS] = "auto"
    """auto (bar on a terminal, lines elsewhere), bar, lines or off."""

    def __post_init__(self) -> None:
        settings.check(self)
        self._check_arms()
        self._check_seeds()
        if not self.workdir or files.is_url(self.workdir):
            raise InputError(
                "--workdir must name a folder on a disk: a study needs locks, and buckets have "
                f"none; got {self.workdir or 'none'}"
            )
        self._check_executor()
        if self.ood_sets and self.keep_logits == "none":
            raise InputError("--ood-sets has no effect with --keep-logits none")
        self._check_tuning()
        if self.comparisons is not None and self.comparisons < comparisons(self):
            raise InputError(
                f"--comparisons must be at least {comparisons(self)}, which this study has; got "
                f"{self.comparisons}"
            )
        for condition in conditions(self):  # every value lies where Config wants it
            self._check_condition(condition)
        if self.noise and not any(
            config(self, arm, condition).recipe.label_noise for arm, condition in grid(self)
        ):
            raise InputError(f"--noise {self.noise} has no effect without --label-noise")

    def _check_tuning(self) -> None:
        parse_ranges(self.tune)
        changed = {name: getattr(self, name) for name in ("tune_seeds", "tune_per_seed")}
        for name, value in changed.items():
            if value and not self.tune:
                raise InputError(f"{settings.flag(name)} has no effect without --tune")
        if all(changed.values()):
            raise InputError("--tune-per-seed takes the study's seeds: leave --tune-seeds away")

    def _check_seeds(self) -> None:
        width = block_width(self)
        if self.until is None and self.max_seeds is not None:
            raise InputError(f"--max-seeds {self.max_seeds} has no effect without --until decided")
        if most_seeds(self) < self.seeds:
            raise InputError(
                f"--max-seeds must be at least --seeds, {self.seeds}; got {most_seeds(self)}"
            )
        if self.first_seed > LAST_SEED - MOST_TUNING_SEEDS - most_seeds(self):
            raise InputError(
                f"the last seed must lie below 2**32 - {MOST_TUNING_SEEDS}; got --first-seed "
                f"{self.first_seed}"
            )
        for name in ("seeds", "first_seed", "max_seeds"):
            number = getattr(self, name) or 0
            if number % width:
                below = number // width * width
                raise InputError(
                    f"{settings.flag(name)} must be a multiple of {width}, the seeds of a block; "
                    f"got {number}: take {below + width}, or --block for blocks of another width"
                )

    def _check_arms(self) -> None:
        if len(names := arm_names(self)) < 2:
            raise InputError(
                "--losses and --arms must name at least two, to compare; got "
                f"{' '.join(names) or 'none'}"
            )
        for name in ("losses", "arms", "label_noise", "long_tail", "fraction"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or not (values or name in ("losses", "arms")):
                raise InputError(
                    f"{settings.flag(name)} takes each value once, at least one; got "
                    f"{' '.join(map(str, values)) or 'none'}"
                )

    def _check_executor(self) -> None:
        sharded = shard(self.shard) != (0, 1)
        if self.executor != "ray":
            return
        if sharded:
            raise InputError("--executor ray shares the cells out itself: leave --shard away")
        if self.machine.processes not in (None, 1):
            raise InputError("--executor ray starts its own processes: leave --processes away")

    def _check_condition(self, condition: Condition) -> None:
        for arm in arm_names(self):
            changed = parse_arm(arm)
            for tuned in parse_ranges(self.tune):
                if tuned.name in {*condition, *changed}:
                    raise InputError(f"--tune chooses {tuned.name}: it cannot be varied too")
            if both := condition.keys() & changed.keys():
                raise InputError(f"arm '{arm}': {min(both)} is a condition already")
            if not config(self, arm, condition).recipe.validation and self.tune:
                raise InputError(
                    "--tune chooses on the validation split: --validation must be above 0"
                )


def arm_names(study: Study) -> tuple[str, ...]:
    """List what is compared, each as it was written: `parse_arm` reads it."""
    return tuple(" ".join(text.split()) for text in (*study.losses, *study.arms))


def changed_settings(study: Study) -> set[str]:
    """Return the settings that differ between arms or between conditions, by name."""
    by_arm = {name for arm in arm_names(study) for name in parse_arm(arm)}
    return by_arm | {name for condition in conditions(study) for name in condition}


def conditions(study: Study) -> list[Condition]:
    """List every combination of the conditions' values; a study without any has one, which is
    empty.

    Raises:
      InputError: --vary names no setting, or a value twice or of another type.
    """
    axes: dict[str, tuple] = {}
    for name, default in (("label_noise", 0.0), ("long_tail", 1.0), ("fraction", 1.0)):
        if (values := getattr(study, name)) != (default,):
            axes[name] = values
    for name, values in parse_axes(study.vary).items():
        if name in axes:
            raise InputError(f"--vary {name}=...: {settings.flag(name)} varies it already")
        axes[name] = values
    number = math.prod(map(len, axes.values()))
    cells = number * len(arm_names(study)) * -(-most_seeds(study) // block_width(study))
    if cells > MOST_CELLS:
        raise InputError(
            f"{len(arm_names(study))} arms under {number:,} conditions with {most_seeds(study):,} "
            f"seeds are {cells:,} cells, more than the {MOST_CELLS:,} that a study may have"
        )
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def config(study: Study, arm: str, condition: Condition, seed: int = 0) -> Config:
    """Build the configuration under which train.py would train one network of the study."""
    shared = {f.name: getattr(study.training, f.name) for f in dataclasses.fields(Training)}
    recipe = {**shared, **parse_arm(arm), "seed": seed, **condition}
    if recipe.get("label_noise"):
        recipe["noise"] = study.noise
    output = Output(progress=study.progress, tensorboard=False, test_sets=study.test_sets)
    return Config(Recipe(**recipe), study.machine, output)


def comparisons(study: Study) -> int:
    """Count the comparisons with the baseline."""
    return (len(arm_names(study)) - 1) * len(conditions(study))


def block_width(study: Study) -> int:
    """Return how many seeds are trained together."""
    return study.block or min(BLOCK, study.seeds)


def most_seeds(study: Study) -> int:
    """Return how many seeds an arm may get."""
    if study.until is None:
        return study.seeds
    width = block_width(study)
    return study.max_seeds or -(-max(MAX_SEEDS, study.seeds) // width) * width


def blocks(study: Study) -> list[tuple[int, ...]]:
    """List the blocks of all seeds that an arm may get. A block is a fixed range of numbers,
    however many are asked for.
    """
    width = block_width(study)
    numbers = range(study.first_seed, study.first_seed + most_seeds(study))
    return [tuple(numbers[i : i + width]) for i in range(0, len(numbers), width)]


def seed_range(numbers: Sequence[int]) -> str:
    """Describe seeds that follow each other in words.

    >>> seed_range([4, 5, 6, 7]), seed_range([0])
    ('seeds 4 to 7', 'seed 0')
    """
    if len(numbers) == 1:
        return f"seed {numbers[0]}"
    return f"seeds {numbers[0]} to {numbers[-1]}"


def grid(study: Study) -> list[tuple[str, Condition]]:
    """List each arm under each condition, in the order of their training."""
    return [(arm, condition) for condition in conditions(study) for arm in arm_names(study)]


def shard(text: str) -> tuple[int, int]:
    """Parse which shard of how many: '1/4' is (1, 4).

    Raises:
      InputError: anything else.
    """
    which, _, of = text.partition("/")
    sound = all(number.isdecimal() and len(number) < 7 for number in (which, of))
    if not sound or int(which) >= int(of):
        raise InputError(
            f"--shard must be i/n with 0 <= i < n < 1,000,000, such as 0/4; got '{text}'"
        )
    return int(which), int(of)


def tuning_seeds(study: Study, seeds: Sequence[int] = ()) -> tuple[int, ...]:
    """List the seeds that values are tried with, those of a block where it is tuned per seed."""
    if study.tune_per_seed:
        return tuple(seeds)
    return tuple(LAST_SEED - i for i in range(study.tune_seeds or TUNING_SEEDS))


def baseline(study: Study) -> str:
    """Return the arm that the others are compared with."""
    return " ".join((study.baseline or arm_names(study)[0]).split())


def further_test_sets(study: Study) -> tuple[str, ...]:
    """Return the test sets besides the data set's own."""
    return Output(test_sets=study.test_sets).further_test_sets


def metrics(study: Study) -> dict[str, Metric]:
    """Return every metric that the study measures, by name: cnnlab's and the user's own.

    Raises:
      InputError: one that is none.
    """
    return _metrics(study.training.metrics)


@functools.cache
def _metrics(names: tuple[str, ...]) -> dict[str, Metric]:
    from cnnlab.metrics import METRICS
    from cnnlab.parts import resolve

    return METRICS | {
        metric.name: metric for metric in resolve(Recipe(metrics=names)).build_metrics()
    }


def metric(study: Study) -> Metric:
    """Return the metric that the verdicts are about.

    Raises:
      InputError: it is not measured.
    """
    known = metrics(study)
    if study.metric not in known:
        raise unknown("metric", study.metric, known)
    return known[study.metric]


def margin(study: Study) -> float:
    """Return the difference of the study's metric within which two arms count as equivalent.

    Raises:
      InputError: the metric is not measured, or has none.
    """
    margin = metric(study).margin if study.margin is None else study.margin
    if not 0 < margin < math.inf:
        raise InputError(f"metric {study.metric} has no margin above 0: give --margin")
    return margin


def label(condition: Condition) -> str:
    """Describe a condition in words.

    >>> label({"label_noise": 0.4, "optimizer": "sgd"})
    'label noise 0.4, optimizer sgd'
    """
    return (
        ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in condition.items())
        or "as configured"
    )
