"""The kinds of parts, and what a run is made of: strings of a configuration -> parts -> functions.

`KINDS` says for each kind how its functions are called, where cnnlab's own are, and what the run
supplies. `resolve` finds the parts of a configuration; `Parts` makes the functions of them that a
run needs, each held against its contract. From there on only functions travel.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnnlab import augment, backend, contracts, spec
from cnnlab.config import TEST, Recipe, flag
from cnnlab.contracts import LOSS_INPUTS
from cnnlab.data import dataset as datasets
from cnnlab.data.corruptions import AT_OPENING
from cnnlab.errors import InputError, unknown
from cnnlab.metrics import METRICS, Metric
from cnnlab.models import CPU_IMAGES, model_dtype
from cnnlab.models.convolution import Convolution
from cnnlab.optim import Average
from cnnlab.spec import Kind, Part

OBJECT = "object"  # the name of a part that only this program has
# What a program may give for a kind of part besides functions: what they return.
READY: dict[str, tuple[type, ...]] = {
    "model": (nn.Module,),
    "optimizer": (optax.GradientTransformation,),
    "dataset": (datasets.Dataset, Mapping),
    "metric": (Metric,),
}

# Settings of a run that a data set may ask for.
DATA_SETTINGS = ("image_size", "image_key", "label_key", "test_split", "test_fraction")
# Of the data set; also names that hyperparameters of the user's augmentations may have.
STATISTICS = ("mean", "std")

# What is kept of a network, for metrics and transforms of its logits.
LOGITS_INPUTS = (
    *("validation_logits", "validation_labels", "class_counts"),
    *("train_losses", "wrong_labels", "ood_logits"),
)

KINDS = {
    "model": Kind(
        "model",
        "--model",
        "(num_classes, ...) -> nn.Module, called with (images, *, train)",
        "cnnlab.models:MODELS",
        longest=100,
        supplies=("num_classes", "dtype", "head", "conv", "axis_name"),
        overridable=("head",),
        hidden=("parent", "name"),
    ),
    "loss": Kind(
        "loss",
        "--loss",
        "loss(logits, labels, ...) -> float32[B]",
        "cnnlab.losses:LOSSES",
        "cnnlab.losses:ALIASES",
        positional=2,
        supplies=("class_counts", *LOSS_INPUTS),
        overridable=("class_counts", "teacher_logits", "view_logits"),
    ),
    "transform": Kind(
        "loss transform",
        "--loss LOSS+",
        "(loss, ...) -> loss",
        "cnnlab.losses:TRANSFORMS",
        "cnnlab.losses:SHORT_TRANSFORMS",
        positional=1,
        supplies=("class_counts",),
        overridable=("class_counts",),
    ),
    "optimizer": Kind(
        "optimizer",
        "--optimizer",
        "(learning_rate, ...) -> optax.GradientTransformation",
        "cnnlab.optim:OPTIMIZERS",
        positional=1,
        supplies=("schedule", "dtype", "steps_per_epoch", "total_steps"),
        libraries=("optax", "optax.contrib"),
    ),
    "schedule": Kind(
        "schedule",
        "--schedule",
        "(peak, total_steps, ...) -> optax.Schedule",
        "cnnlab.optim:SCHEDULES",
        positional=1,
        supplies=("total_steps", "steps_per_epoch"),
        libraries=("optax",),
    ),
    "average": Kind(
        "average",
        "--average",
        "(total_steps, ...) -> step -> weight",
        "cnnlab.optim:AVERAGES",
        supplies=("total_steps", "steps_per_epoch"),
    ),
    "augmentation": Kind(
        "augmentation",
        "--augment",
        "(keys[B], batch, ...) -> batch",
        "cnnlab.augment:AUGMENTATIONS",
        positional=2,
        supplies=("key", "run_key", "num_classes", "axis_name", *STATISTICS),
        defaulted=STATISTICS,
    ),
    "dataset": Kind(
        "data set",
        "--dataset",
        "(...) -> Dataset, or a dict of arrays",
        "cnnlab.data.catalogue:DATASETS",
        supplies=("data_dir", "test_only", *DATA_SETTINGS),
        overridable=DATA_SETTINGS,
        fallback="cnnlab.data.catalogue:named",
    ),
    "corruption": Kind(
        "corruption",
        "--dataset SET+",
        "(dataset, seed, ...) -> dataset",
        "cnnlab.data.corruptions:CORRUPTIONS",
        positional=2,
        supplies=("data_dir",),
    ),
    "distortion": Kind(
        "distortion",
        "--test-sets SET+",
        "(image uint8[H, W, C], rng, ...) -> uint8[H, W, C]",
        "cnnlab.data.distortions:DISTORTIONS",
        positional=2,
    ),
    "posthoc": Kind(
        "post-hoc metric",
        "reanalyse.py --metric",
        "(logits float[N, K], labels int[N], ...) -> float",
        "cnnlab.posthoc.metrics:METRICS",
        positional=2,
        supplies=LOGITS_INPUTS,
    ),
    "rescaling": Kind(
        "transform of logits",
        "reanalyse.py --metric METRIC+",
        "(logits float[N, K], ...) -> float[N, K]",
        "cnnlab.posthoc.transforms:TRANSFORMS",
        positional=1,
        supplies=LOGITS_INPUTS,
    ),
    "metric": Kind("metric", "--metrics", "Metric, or (...) -> Metric", "cnnlab.metrics:METRICS"),
}


def _corrupted(
    part: Part, dataset: datasets.Dataset, seed: int, data_dir: str | None
) -> datasets.Dataset:
    """Apply a corruption.

    Raises:
      InputError: it fails, or returns something else.
    """
    changed = part.call(dataset, seed, data_dir=data_dir)
    if not isinstance(changed, datasets.Dataset):
        raise InputError(f"corruption '{part}' must return a Dataset, got {type(changed).__name__}")
    return changed


def _refuse_settings(part: Part, settings: Mapping[str, object]) -> None:
    """Refuse settings that a data set does not take.

    Raises:
      InputError: there are any.
    """
    if settings:
        name, value = next(iter(settings.items()))
        raise InputError(f"data set '{part}' takes no {name}: {flag(name)} {value} has no effect")


@dataclass(frozen=True)
class FurtherSet:
    """A set that a network is tested on besides the test split of its own data set.

    Attributes:
      name: as it was written.
      dataset: whose test split it is; None: the network's own.
      distortions: of its images, in their order.
    """

    name: str
    dataset: Part | None
    distortions: tuple[Part, ...] = ()

    @property
    def is_object(self) -> bool:
        """Whether it was given as an object, which has no name of its own."""
        return self.dataset is not None and self.dataset.name == OBJECT

    def is_of(self, dataset: Part) -> bool:
        """Return whether it is the test split of a data set that was named, distorted or not."""
        part = self.dataset
        return part is None or (part.name != OBJECT and part.canonical() == dataset.canonical())

    def form(self, form: Callable[[Part], spec.Spec]) -> str:
        """Format the set as a pipeline, its parts as for `Parts.specs`."""
        first = TEST if self.dataset is None else str(form(self.dataset))
        return "+".join([first, *[str(form(part)) for part in self.distortions]])


@dataclass(frozen=True)
class Parts:
    """The parts of a run, found; what depends on the data is bound later.

    Attributes:
      average: of the weights; None: only the last ones are kept.
      augmentations: None for `auto`, which depends on the data set.
      test_sets: besides the test split of the data set. No part of training, so that they are not
        among the parts that an iteration gives.
    """

    dataset: Part
    corruptions: tuple[Part, ...]
    model: Part
    loss: Part
    transforms: tuple[Part, ...]
    optimizer: Part
    schedule: Part
    average: Part | None
    augmentations: tuple[Part, ...] | None
    metrics: tuple[Part, ...]
    test_sets: tuple[FurtherSet, ...] = ()

    def __iter__(self) -> Iterator[Part]:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "test_sets":
                yield from (value,) if isinstance(value, Part) else value or ()

    def sources(self) -> dict[str, str]:
        """Compute the SHA-256 of each of the user's files behind a part, by module name."""
        return {module: digest for part in self for module, digest in part.sources().items()}

    def specs(self, form: Callable[[Part], spec.Spec]) -> dict[str, str | list[str]]:
        """Format the parts as fields of a configuration.

        Args:
          form: Part.resolved, for what is stored; Part.canonical, for what is compared and named.
        """

        def joined(parts: Sequence[Part]) -> str:
            return "+".join(str(form(part)) for part in parts)

        augmentations = self.augmentations
        return {
            "dataset": joined([self.dataset, *self.corruptions]),
            "model": joined([self.model]),
            "loss": joined([self.loss, *self.transforms]),
            "optimizer": joined([self.optimizer]),
            "schedule": joined([self.schedule]),
            "average": "none" if self.average is None else joined([self.average]),
            "augment": "auto" if augmentations is None else joined(augmentations) or "none",
            "metrics": [str(form(part)) for part in self.metrics],
        }

    def of_setting(self, setting: str) -> tuple[Part, ...]:
        """Return the parts that a setting of the recipe names, in their order."""
        return {
            "model": (self.model,),
            "loss": (self.loss, *self.transforms),
            "optimizer": (self.optimizer,),
            "schedule": (self.schedule,),
            "average": () if self.average is None else (self.average,),
            "augment": self.augmentations or (),
        }[setting]

    def with_values(self, values: Mapping[str, object]) -> Parts:
        """Set hyperparameters of parts, by names such as loss.gamma; values may be traced.

        Raises:
          InputError: as `holder`.
        """
        parts = self
        for name, value in values.items():
            part = parts.holder(name)
            keywords = {**part.keywords, name.partition(".")[2]: value}
            parts = parts._replacing(part, dataclasses.replace(part, keywords=keywords))
        return parts

    def holder(self, name: str) -> Part:
        """Return the part that has a hyperparameter, by a name such as loss.gamma.

        Raises:
          InputError: none of the setting's parts has it, or several have.
        """
        setting, _, hyperparameter = name.partition(".")
        holders = [
            part for part in self.of_setting(setting) if hyperparameter in part.hyperparameters()
        ]
        if len(holders) == 1:
            return holders[0]
        how_many = "several of its parts have" if holders else "no part of it has"
        raise InputError(f"{name}: {how_many} a hyperparameter {hyperparameter}")

    def _replacing(self, old: Part, new: Part) -> Parts:
        changed: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is old:
                changed[field.name] = new
            elif isinstance(value, tuple) and any(part is old for part in value):
                changed[field.name] = tuple(new if part is old else part for part in value)
        return dataclasses.replace(self, **changed)

    @property
    def extendable(self) -> bool:
        """Whether more epochs leave the steps already taken as they were."""
        length = ("total_steps", "progress", "epoch")  # validation is of the last epoch
        return not any(part.asks(name) for part in self for name in length)

    @property
    def cpu_images(self) -> int:
        """The fewest images of the model that are worth a CPU device."""
        return self.model.mark("cpu_images", CPU_IMAGES)

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss compares with a teacher's logits."""
        return self.loss.asks("teacher_logits")

    @property
    def selections(self) -> tuple[Part, ...]:
        """The corruptions that act when the data set is opened."""
        return tuple(part for part in self.corruptions if part.mark(AT_OPENING))

    def open_dataset(self, data_dir: str | None, recipe: Recipe) -> datasets.Dataset:
        """Open the data set, before any corruption that is drawn by a seed.

        Args:
          data_dir: TFDS data directory; None for the default.
          recipe: of the run, whose DATA_SETTINGS the data set may ask for.

        Raises:
          InputError: whatever is wrong with it, or a setting that it does not take.
        """
        return self.select(self.open_whole(data_dir, recipe), data_dir)

    def open_whole(self, data_dir: str | None, recipe: Recipe) -> datasets.Dataset:
        """Open the data set as it is, before any corruption; arguments as for `open_dataset`."""
        part = self.dataset
        settings = {name: getattr(recipe, name) for name in DATA_SETTINGS}
        dataset = part.call(data_dir=data_dir, **settings)
        left = {
            name: value
            for name, value in settings.items()
            if value is not None and not part.asks(name)
        }
        image_size = left.pop("image_size", None)
        if isinstance(dataset, Mapping):
            test_fraction = left.pop("test_fraction", None)
            _refuse_settings(part, left)
            return datasets.from_arrays(part.name, dataset, image_size, test_fraction)
        _refuse_settings(part, left)
        if not isinstance(dataset, datasets.Dataset):
            raise InputError(
                f"data set '{self.dataset}' must return a Dataset or a dict of arrays, got "
                f"{type(dataset).__name__}"
            )
        if image_size not in (None, *dataset.train.image_shape[:2]):
            raise InputError(
                f"data set '{self.dataset}' has images of {dataset.train.image_shape} and does not "
                f"scale them: --image-size {image_size} has no effect"
            )
        return dataset

    def select(self, dataset: datasets.Dataset, data_dir: str | None) -> datasets.Dataset:
        """Apply the corruptions that act on both splits, in order.

        Args:
          dataset: opened.
          data_dir: TFDS data directory; None for the default.

        Raises:
          InputError: one that fails, or does not return a data set.
        """
        for part in self.selections:
            before = dataset
            dataset = _corrupted(part, dataset, 0, data_dir)
            # train has no images where the data set was opened for testing only.
            for whole, split in ((before.train, dataset.train), (before.test, dataset.test)):
                if len(whole) > len(split) == 0 or split.num_classes != dataset.num_classes:
                    raise InputError(
                        f"corruption '{part}' must leave images in {split.name}, of as many "
                        "classes as there are names"
                    )
        return dataset

    def corrupt(
        self, dataset: datasets.Dataset, seed: int, data_dir: str | None
    ) -> datasets.Dataset:
        """Apply the corruptions of the training split, in order.

        Args:
          dataset: its labels, targets and positions filled in.
          seed: of the draws.
          data_dir: TFDS data directory; None for the default.

        Raises:
          InputError: a corruption that fails, or does not return what can be trained on.
        """
        for part in self.corruptions:
            if part.mark(AT_OPENING):
                continue
            before = dataset
            dataset = _corrupted(part, dataset, seed, data_dir)
            wrong = dataset.targets.shape != before.labels.shape or not np.all(
                (dataset.targets >= 0) & (dataset.targets < dataset.num_classes)
            )
            if wrong or not np.all(np.isin(dataset.positions, before.positions)):
                raise InputError(
                    f"corruption '{part}' must keep a target in [0, {dataset.num_classes}) for "
                    "each image, and choose among the positions that there are"
                )
        return dataset

    def build_model(
        self,
        num_classes: int,
        compute_dtype: str = "float32",
        conv: Convolution = Convolution(),  # noqa: B008 (frozen)
        axis_name: str | None = None,
    ) -> nn.Module:
        """Build the linen module.

        Args:
          num_classes: K.
          compute_dtype: float32, bfloat16 or float16.
          conv: how the devices at hand convolve.
          axis_name: the mesh axis that shares the batch.

        Raises:
          InputError: the result is not a module, does not take the type, or was given as an object
            with another type or for another number of classes.
        """
        dtype = model_dtype(compute_dtype)
        made_with = self.model.made_with
        made_classes = made_with.get("num_classes", num_classes)
        if made_classes != num_classes:
            raise InputError(
                f"model {self.model} was made with num_classes={made_classes}, but the data set "
                f"decides, and it has {num_classes} classes"
            )
        made_dtype = _dtype_name(made_with.get("dtype", dtype))
        if made_dtype != compute_dtype:
            raise InputError(
                f"model {self.model} was made with dtype={made_dtype}, but --compute-dtype "
                f"decides, and it is {compute_dtype}"
            )
        if dtype is not None and "dtype" not in self.model.parameters:
            raise InputError(
                f"--compute-dtype {compute_dtype} has no effect: model {self.model} does not take "
                "a dtype"
            )
        head = self.loss.mark("head", "linear")
        supply = {
            "num_classes": num_classes,
            "dtype": dtype,
            "head": head,
            "conv": conv,
            "axis_name": axis_name,
        }
        model = self.model.call(**supply)
        if not isinstance(model, nn.Module):
            raise InputError(
                f"model '{self.model}' must return a flax.linen.Module, got {type(model).__name__}"
            )
        return model

    def build_loss(
        self, num_classes: int, class_counts: np.ndarray, label_dtypes: Sequence[str] = ("int32",)
    ) -> Callable[..., jax.Array]:
        """Build the loss with its transforms, and check it against its contract on shapes.

        A loss that asks for features is not checked here: their shape depends on the model.

        Args:
          num_classes: K.
          class_counts: int[K], training images of each class.
          label_dtypes: int32 for class ids, float32 for distributions.

        Returns:
          (logits float32[B, K], labels int[B] or float32[B, K], those of LOSS_INPUTS that it asks
          for) -> float32[B].

        Raises:
          InputError: it does not keep the contract, or a class has no images where they are
            counted.
        """
        counted = any(part.asks("class_counts") for part in (self.loss, *self.transforms))
        if counted and not np.all(class_counts):
            raise InputError(
                "a class without training images has no weight or margin: choose another --loss"
            )
        loss = self.bind_loss(class_counts)
        if "features" not in self.loss_asks:  # their shape is the model's affair
            contracts.check_loss(
                self.loss, loss, num_classes, label_dtypes, written=self.written_loss
            )
        if num_classes == 1 and not self.loss_asks:  # a sum over the other classes may divide
            value = loss(jnp.zeros((1, 1), jnp.float32), jnp.zeros(1, jnp.int32))
            if not np.all(np.isfinite(value)):
                raise InputError(
                    f"loss {self.written_loss} compares classes, and the data set has only one"
                )
        return loss

    def bind_loss(self, class_counts: np.ndarray) -> Callable[..., jax.Array]:
        """Build the loss with its transforms, unchecked; their hyperparameters may be traced."""
        loss = self.loss.bind(class_counts=class_counts)
        for part in self.transforms:
            loss = part.call(loss, class_counts=class_counts)
        return loss

    @property
    def written_loss(self) -> str:
        """The loss with its transforms, as it was written."""
        return "+".join(map(str, (self.loss, *self.transforms)))

    @property
    def loss_asks(self) -> frozenset[str]:
        """What the loss wants with each call, of LOSS_INPUTS."""
        return frozenset(name for name in LOSS_INPUTS if self.loss.asks(name))

    def build_schedule(
        self, peak: float | jax.Array, total_steps: int, steps_per_epoch: int
    ) -> optax.Schedule:
        """Build the schedule, step -> learning rate. The peak may be traced."""
        schedule = self.schedule.call(
            peak, total_steps=total_steps, steps_per_epoch=steps_per_epoch
        )
        if isinstance(schedule, Callable):
            return schedule
        raise InputError(
            f"schedule '{self.schedule}' must return step -> rate, got {type(schedule).__name__}"
        )

    def build_optimizer(
        self,
        peak: float | jax.Array,
        total_steps: int,
        steps_per_epoch: int,
        compute_dtype: str = "float32",
    ) -> optax.GradientTransformationExtraArgs:
        """Build the optimizer with its schedule.

        Args:
          peak: learning rate, which may be traced.
          total_steps: of the run.
          steps_per_epoch: of it.
          compute_dtype: of products inside the optimizer, where it has any.

        Raises:
          InputError: the result is not a gradient transformation.
        """

        def schedule(peak: float | jax.Array) -> optax.Schedule:
            return self.build_schedule(peak, total_steps, steps_per_epoch)

        supply = {"schedule": schedule, "dtype": model_dtype(compute_dtype) or jnp.float32}
        supply |= {"steps_per_epoch": steps_per_epoch, "total_steps": total_steps}
        tx = self.optimizer.call(schedule(peak), **supply)
        if not isinstance(tx, optax.GradientTransformation):
            raise InputError(
                f"optimizer '{self.optimizer}' must return an optax.GradientTransformation, got "
                f"{type(tx).__name__}"
            )
        return optax.with_extra_args_support(tx)

    def build_average(self, total_steps: int, steps_per_epoch: int) -> Average | None:
        """Build the average of the weights, step int32[] -> weight float32[]; None where the run
        has none.

        Raises:
          InputError: it fails, or is no function.
        """
        if self.average is None:
            return None
        weight = self.average.call(total_steps=total_steps, steps_per_epoch=steps_per_epoch)
        if isinstance(weight, Callable):
            return weight
        raise InputError(
            f"average '{self.average}' must return step -> weight, got {type(weight).__name__}"
        )

    def pipeline(
        self,
        num_classes: int,
        axis_name: str | None,
        mirror: bool,
        statistics: tuple[jax.Array, jax.Array] | None = None,
    ) -> tuple[augment.Operation, ...]:
        """Bind the augmentations.

        Args:
          num_classes: K.
          axis_name: the mesh axis that shares the batch.
          mirror: whether `auto` flips.
          statistics: the mean and the deviation of each channel, float[C] each, in 0..255; None
            where no augmentation requires them.
        """
        parts = self.augmentations
        if parts is None:
            parts = (find("augmentation", "flip"),) if mirror else ()
        return augment.pipeline(
            (
                part.name,
                part.bind(
                    num_classes=num_classes,
                    axis_name=axis_name,
                    **_required(part, dict(zip(STATISTICS, statistics or (), strict=False))),
                ),
                [name for name in ("key", "run_key") if part.asks(name)],
            )
            for part in parts
        )

    def check_pipeline(
        self, num_classes: int, image_shape: Sequence[int], batch_size: int, mirror: bool
    ) -> bool:
        """Check the augmentations against their contract, on shapes only, and against what the loss
        takes.

        Returns:
          Whether they make labels distributions.

        Raises:
          InputError: one of them fails, changes what it must not, or makes views that the loss does
            not take.
        """
        batch = self.augmented_shapes(num_classes, image_shape, batch_size, mirror)
        views = "views" in batch
        mixed = jnp.issubdtype(batch["label"].dtype, jnp.floating)
        if views and not self.loss.asks("view_logits"):
            raise InputError(
                f"--augment makes views, and loss {self.loss} takes no view_logits; jensen_shannon "
                "does"
            )
        if self.loss.requires("view_logits") and not views:
            raise InputError(
                f"loss {self.loss} compares views of an image: --augment flip+crop+augmix makes "
                "some, as does views+flip+crop"
            )
        return mixed

    def augmented_shapes(
        self, num_classes: int, image_shape: Sequence[int], batch_size: int, mirror: bool
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Check the augmentations against their contract, on shapes only.

        Returns:
          The batch after them, as shapes.

        Raises:
          InputError: one of them fails, or changes what it must not.
        """
        channels = image_shape[-1]
        # jnp.zeros would compile a program
        statistics = jax.device_put((np.zeros(channels, np.float32), np.ones(channels, np.float32)))
        batch = contracts.batch_shapes(batch_size, image_shape)
        for operation in self.pipeline(num_classes, None, mirror, statistics):
            batch = contracts.check_augmentation(operation, batch, num_classes)
        return batch

    def build_metrics(self) -> tuple[Metric, ...]:
        """Build the user's own metrics.

        Raises:
          InputError: a part that is not a Metric, or a name that is already taken.
        """
        names = set(METRICS)
        built = []
        for part in self.metrics:
            metric = part.call()
            if not isinstance(metric, Metric):
                raise InputError(
                    f"metric '{part}' must be a cnnlab.metrics.Metric, got {type(metric).__name__}"
                )
            if metric.name in names | {
                "count",
                "loss",
                "confusion",
                "calibration",
                "per_class_accuracy",
            }:
                raise InputError(
                    f"metric '{part}' is called {metric.name}, as another one is; give it its own "
                    "name"
                )
            names.add(metric.name)
            built.append(metric)
        return tuple(built)


def _required(part: Part, supply: Mapping[str, object]) -> dict[str, object]:
    """Return what a part asks for and has no default for."""
    return {name: value for name, value in supply.items() if part.requires(name)}


def find(kind: str, written: spec.Spec | str) -> Part:
    """Find a part of a kind.

    Raises:
      InputError: as `spec.find`.
    """
    backend.configure_cpu_devices()
    return spec.find(KINDS[kind], written)


def part_of(kind: str, thing: object) -> Part:
    """Make a part from a spec, or from what a program passes in place of one.

    Args:
      kind: of part.
      thing: a spec; a function or class that keeps the kind's contract, also within a
        functools.partial; a linen module, whose fields become hyperparameters; an
        optax.GradientTransformation, a Dataset, a mapping of arrays or a Metric.

    Returns:
      The part. Its name is one under which `find` finds it, that of a Dataset, or `OBJECT`.

    Raises:
      InputError: as `find`, or it is none of these.
    """
    if isinstance(thing, str):
        return find(kind, thing)
    ready = READY.get(kind, ())
    if isinstance(thing, ready):
        if isinstance(thing, nn.Module):
            return _part_of_module(thing)
        name = thing.name if isinstance(thing, datasets.Dataset) else ""
        return Part(KINDS[kind], spec.as_name(name) or OBJECT, lambda *_: thing, {})
    if not callable(thing):
        types = "".join(f"a {ready_type.__name__}, " for ready_type in ready)
        raise InputError(
            f"the {KINDS[kind].name} must be a spec, {types}or a function "
            f"{KINDS[kind].contract}; got {type(thing).__name__}"
        )
    function = thing
    keywords = {}
    if isinstance(thing, functools.partial) and not thing.args:
        function, keywords = thing.func, thing.keywords
    name = spec.name_of(KINDS[kind], function)
    if name and all(map(spec.is_literal, keywords.values())):
        return find(kind, spec.Spec(name, {k: spec.frozen(value) for k, value in keywords.items()}))
    return Part(KINDS[kind], OBJECT, function, {}, made_with=keywords)


def _part_of_module(module: nn.Module) -> Part:
    """Convert a linen module to a part. Its fields that differ from their defaults become
    hyperparameters, except for what the run supplies.
    """
    kind = KINDS["model"]
    supplied = {*kind.supplies} - {*kind.overridable}
    parameters = inspect.signature(type(module)).parameters
    changed = {
        field.name: getattr(module, field.name)
        for field in dataclasses.fields(module)
        if field.init
        and field.name not in kind.hidden
        and not _is_default(getattr(module, field.name), parameters[field.name].default)
    }
    chosen = {name: value for name, value in changed.items() if name not in supplied}
    part = part_of("model", functools.partial(type(module), **chosen))
    decided = {name: changed[name] for name in ("num_classes", "dtype") if name in changed}
    return dataclasses.replace(part, made_with={**part.made_with, **decided})


def _dtype_name(dtype: Any) -> str:
    """Convert a module's `dtype` to its --compute-dtype, the inverse of `model_dtype`."""
    try:
        return "float32" if dtype is None else jnp.dtype(dtype).name
    except TypeError:
        return repr(dtype)


def _is_default(value: object, default: object) -> bool:
    """Return whether a field is at its default; an array never is, as it has no truth value."""
    if value is default:
        return True
    arrays = isinstance(value, np.ndarray | jax.Array) or isinstance(
        default, np.ndarray | jax.Array
    )
    try:
        return not arrays and bool(value == default)
    except (TypeError, ValueError):  # of arrays inside it
        return False


def further_sets(texts: Sequence[str]) -> tuple[FurtherSet, ...]:
    """Find test sets, without the data set's own test split.

    Args:
      texts: each `test` or a data set, then distortions after a +.

    Raises:
      InputError: an unknown name or hyperparameter, or the same set twice.
    """
    found: dict[str, FurtherSet] = {}
    for text in texts:
        first, *rest = spec.parse_pipeline(text)
        dataset = None if first == spec.Spec(TEST) else find("dataset", first)
        distortions = tuple(find("distortion", written) for written in rest)
        test_set = FurtherSet(text, dataset, distortions)
        canonical = test_set.form(Part.canonical)
        if canonical in found:
            raise InputError(f"--test-sets {found[canonical].name} {text} names one set twice")
        if canonical != TEST:
            found[canonical] = test_set
    return tuple(found.values())


def resolve(
    recipe: Recipe,
    objects: Mapping[str, tuple[Part, ...]] | None = None,
    test_sets: Sequence[str] = (),
) -> Parts:
    """Find the parts of a recipe.

    Args:
      recipe: which names them.
      objects: in place of those named by some settings, as `part_of` made them.
      test_sets: besides the test split of the data set, as for `further_sets`.

    Raises:
      InputError: an unknown name or hyperparameter, or parts that do not go together.
    """
    objects = objects or {}

    def parts_of(setting: str, kind: str, specs: Sequence[spec.Spec]) -> tuple[Part, ...]:
        return objects.get(setting) or tuple(find(kind, written) for written in specs)

    dataset, *corruptions = spec.parse_pipeline(recipe.corrupted_dataset())
    loss, *transforms = spec.parse_pipeline(recipe.loss)
    operations = [] if recipe.augment in ("auto", "none") else spec.parse_pipeline(recipe.augment)
    augmentations = parts_of("augment", "augmentation", operations)
    averages = [] if recipe.average == "none" else [spec.parse(recipe.average)]
    parts = Parts(
        dataset=parts_of("dataset", "dataset", [dataset])[0],
        corruptions=tuple(find("corruption", written) for written in corruptions),
        model=parts_of("model", "model", [spec.parse(recipe.model)])[0],
        loss=parts_of("loss", "loss", [loss])[0],
        transforms=tuple(find("transform", written) for written in transforms),
        optimizer=parts_of("optimizer", "optimizer", [spec.parse(recipe.optimizer)])[0],
        schedule=parts_of("schedule", "schedule", [spec.parse(recipe.schedule)])[0],
        average=next(iter(parts_of("average", "average", averages)), None),
        augmentations=None if recipe.augment == "auto" else augmentations,
        metrics=parts_of("metrics", "metric", [*map(spec.parse, recipe.metrics)]),
        test_sets=further_sets(test_sets),
    )
    _check_order(parts)
    if recipe.teacher and not parts.loss.asks("teacher_logits"):
        raise InputError(
            "--teacher is for losses that take teacher_logits, such as distillation; "
            f"{recipe.loss} does not"
        )
    if parts.loss.requires("teacher_logits") and not recipe.teacher:
        raise InputError(
            f"{recipe.loss} compares with a teacher: --teacher RUN names the run folder of one"
        )
    if not recipe.teacher and parts.loss.asks("teacher_logits"):  # it can do without one
        parts = dataclasses.replace(parts, loss=_without(parts.loss, "teacher_logits"))
    return parts


def _check_order(parts: Parts) -> None:
    """Refuse a corruption of the whole data set behind one that is drawn by a seed.

    Raises:
      InputError: there is one.
    """
    drawn = None
    for part in parts.corruptions:
        if not part.mark(AT_OPENING):
            drawn = drawn or part
        elif drawn:
            raise InputError(
                f"corruption '{part}' acts when the data set is opened: write it before '{drawn}'"
            )


def _without(part: Part, name: str) -> Part:
    return dataclasses.replace(
        part, keywords={**part.keywords, name: part.parameters[name].default}
    )


def listing(names: Sequence[str]) -> str:
    """List every kind with its parts, or describe all parts of some kinds: what --list prints.

    Raises:
      InputError: an unknown kind.
    """
    for name in names:
        if name not in KINDS:
            raise unknown("kind of part", name, KINDS)
    if not names:
        kinds = [
            f"{name:<13} {', '.join(kind.builtin())}   ({kind.flag})"
            for name, kind in KINDS.items()
        ]
        return "\n".join([*kinds, "", "--list model (loss, optimizer, ...) says all about them."])
    return "\n\n".join(spec.listing(KINDS[name]) for name in names)
