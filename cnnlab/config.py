"""Every hyperparameter of a run, in one frozen dataclass. Imports no jax, so that `--help` is
quick.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from dataclasses import dataclass
from typing import Any

from cnnlab import spec
from cnnlab.errors import InputError, unknown

CHOICES = {
    "noise": (None, "symmetric", "asymmetric"),
    "feed": ("auto", "resident", "streaming"),
    "compute_dtype": ("float32", "bfloat16", "float16"),
    "test_views": ("one", "mirror", "mirror_shift"),
    "parallel": ("auto", "jit", "pmap", "sharded"),
    "test_on": ("last", "best"),
    "progress": ("auto", "bar", "lines", "off"),
}

# Fields that name parts in the grammar of spec.py.
PARTS = ("dataset", "model", "loss", "optimizer", "schedule", "augment", "metrics")

# Flags of earlier versions, which are now hyperparameters of the part that they act on.
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

# Fields that a resumed run may change: they do not enter the arithmetic of a step, or (the last
# line) only in its rounding, which the run says.
FREE_ON_RESUME = frozenset(
    {
        "workdir",
        "data_dir",
        "workers",
        "keep",
        "checkpoint_steps",
        "progress",
        "tensorboard",
        "test_on",
    }
    | {
        "parallel",
        "devices",
        "mesh",
        "feed",
        "dispatch_steps",
        "coordinator",
        "processes",
        "process",
    }
)


@dataclass(frozen=True)
class Training:
    """How networks are trained and on what, whichever the loss: what all runs of a study have in
    common.
    """

    dataset: str = "shapes10"
    """shapes10 (drawn here), cifar10, mnist, any TFDS image-classification set prepared as
    array_record, or your own: my_data.load,size=64. Corruptions follow after a +:
    cifar10+label_noise,rate=0.4 (--list dataset, corruption)."""
    data_dir: str | None = None
    """TFDS data directory. None: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    noise: str | None = None
    """How --label-noise errs: symmetric (to any other class; the default) or asymmetric (to a class
    like it, a cat to a dog)."""
    image_size: int | None = None
    """Side in pixels to which images are scaled and cropped; needed only where their sizes differ.
    """
    validation: float = 0.1
    """Share of the training split held out for validation, stratified by class, in [0, 1)."""
    split_seed: int = 0
    """Seed of that split; apart from `seed`, so that runs over seeds validate on the same images.
    """
    feed: str = "auto"
    """auto, resident (decoded once, gathered on the device) or streaming (read as it goes); same
    batches.
    """
    workers: int = 0
    """Processes that read and decode when streaming; 0: threads of this one."""

    model: str = "cnn"
    """cnn, mlp, softmax_regression, airnet, or your own, with hyperparameters: cnn,widths=[32,64]
    (--list model).
    """
    compute_dtype: str = "float32"
    """float32, bfloat16 or float16 (its gradients scaled up on the way); parameters, logits and
    loss are float32.
    """
    teacher: str | None = None
    """Run folder of the network that teaches, for the losses that take teacher_logits, such as
    distillation.
    """

    optimizer: str = "adam"
    """adam, adamw, sgd, muon, any of Optax's by its path (optax.lion,b1=0.95), or your own (--list
    optimizer).
    """
    learning_rate: float = 1e-3
    """Peak rate per step; sgd wants about 0.05, muon 0.24."""
    schedule: str = "cosine"
    """cosine, linear, constant, steps,at=[80,120], one_cycle, restarts,period=10, or your own
    (--list schedule).
    """
    clip_norm: float | None = None
    """Largest global norm of the gradient; None: no clipping."""

    augment: str = "auto"
    """Operations, such as flip+crop,padding=4+mixup,alpha=0.2, in this order (--list augmentation);
    none; or auto: flip where a mirrored image is of the same class."""
    metrics: tuple[str, ...] = ()
    """Your own metrics, by their paths, besides those that are always measured (--list metric)."""

    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 128
    """Images per step, over all devices."""
    test_views: str = "one"
    """How a test image is seen: one way, mirror (and mirrored), or mirror_shift (and moved by a
    pixel).
    """
    parallel: str = "auto"
    """auto (sharded when there is more than one device), jit (one device), pmap or sharded."""
    devices: int | None = None
    """Devices to use. None: the most that divide the batch; CPU cores are used where that is
    faster.
    """
    mesh: str | None = None
    """SxD: S groups of devices share out the seeds, the D devices of each the batch, as 8x1. None:
    as many groups as seeds and devices allow."""
    coordinator: str | None = None
    """host:port of the first of several processes; found by itself on Cloud TPU, Slurm, Open MPI
    and Kubernetes.
    """
    processes: int | None = None
    """How many processes train together, on as many machines or one; 1: this one alone, whatever
    the scheduler says.
    """
    process: int | None = None
    """The number of this process, from 0."""
    dispatch_steps: int | None = None
    """Steps handed to the devices at once. None: 1 on CPU (4 for several seeds) and when streaming,
    else 32.
    """

    progress: str = "auto"
    """auto (bar on a terminal, lines elsewhere), bar, lines or off."""

    def __post_init__(self) -> None:
        # Part of what a run is: found from any directory, and the same from each.
        if self.teacher and not self.teacher.startswith("gs://"):
            object.__setattr__(self, "teacher", os.path.abspath(os.path.expanduser(self.teacher)))
        for field, known in CHOICES.items():
            if getattr(self, field, known[0]) not in known:
                raise unknown(
                    field, str(getattr(self, field)), [str(name) for name in known if name]
                )
        for field in PARTS:
            for text in (
                [getattr(self, field, "cross_entropy")] if field != "metrics" else self.metrics
            ):
                spec.parse_pipeline(text)
        for field in ("epochs", "batch_size"):
            _require(self, field, getattr(self, field) >= 1, "must be at least 1")
        for field in ("devices", "image_size", "dispatch_steps"):
            value = getattr(self, field)
            _require(self, field, value is None or value >= 1, "must be at least 1")
        shape = re.fullmatch(r"[1-9]\d*x[1-9]\d*", self.mesh or "1x1")
        _require(self, "mesh", shape, "must be two numbers of devices, such as 8x1")
        several = (self.coordinator, self.processes, self.process)
        if self.processes != 1 and None in several and several != (None, None, None):
            raise InputError(
                "--coordinator HOST:PORT, --processes N and --process I go together, on each of N "
                "processes"
            )
        if self.processes is not None:
            _require(self, "processes", self.processes >= 1, "must be at least 1")
            _require(
                self,
                "process",
                0 <= (self.process or 0) < self.processes,
                f"must lie in [0, {self.processes})",
            )
        host, _, port = (self.coordinator or "h:1").rpartition(":")
        _require(
            self,
            "coordinator",
            host and port.isdecimal() and 0 < int(port) < 2**16,
            "must be HOST:PORT",
        )
        _require(
            self, "learning_rate", 0 < self.learning_rate < math.inf, "must be positive and finite"
        )
        clip = self.clip_norm
        _require(
            self, "clip_norm", clip is None or 0 < clip < math.inf, "must be positive and finite"
        )
        _require(self, "validation", 0 <= self.validation < 1, "must lie in [0, 1)")
        for field in ("workers", "split_seed"):
            _require(self, field, getattr(self, field) >= 0, "must be at least 0")

    def to_json(self) -> dict:
        """The fields as JSON values, by name."""
        return {
            k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()
        }


@dataclass(frozen=True)
class Config(Training):
    """Train one network with one loss on one data set; test it once, at the end."""

    loss: str = "cross_entropy"
    """A loss as name,key=value,... or your own: my_module.my_loss,alpha=0.3; transforms follow
    after a +: focal,gamma=2+label_smoothing,alpha=0.1 (--list loss, transform)."""
    seed: int = 0
    """Seed of initial weights, order, augmentation, dropout, wrong labels and left out images."""
    label_noise: float = 0.0
    """Short for +label_noise,rate=... on the data set: share of the training labels made wrong, in
    [0, 1).
    """
    long_tail: float = 1.0
    """Short for +long_tail,factor=...: how many times more images the first class keeps than the
    last; 1: all.
    """
    fraction: float = 1.0
    """Short for +fraction,share=...: share of the training images of each class that is used, in
    (0, 1].
    """

    workdir: str | None = None
    """Run folder, also gs://BUCKET/FOLDER. None: runs/DATASET-MODEL-LOSS-seedN."""
    checkpoint_steps: int = 0
    """Steps between checkpoints within an epoch; 0: at the end of each epoch only."""
    keep: int = 2
    """Newest checkpoints kept, beside the best."""
    test_on: str = "last"
    """Weights to test: last, or best (on validation)."""
    tensorboard: bool = True
    """Write TensorBoard events."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, "label_noise", 0 <= self.label_noise < 1, "must lie in [0, 1)")
        _require(self, "long_tail", 1 <= self.long_tail < math.inf, "must be finite and at least 1")
        _require(self, "fraction", 0 < self.fraction <= 1, "must lie in (0, 1]")
        if self.noise and not self.label_noise:
            raise InputError(f"--noise {self.noise} has no effect without --label-noise")
        _require(self, "seed", 0 <= self.seed < 2**32, "must lie in [0, 2**32)")
        _require(self, "keep", self.keep >= 1, "must be at least 1")
        _require(self, "checkpoint_steps", self.checkpoint_steps >= 0, "must be at least 0")
        _require(
            self,
            "test_on",
            self.test_on == "last" or self.validation > 0,
            "best needs validation above 0",
        )

    def corrupted_dataset(self) -> str:
        """The data set's spec, the short forms of corruptions written out."""
        noise = {"rate": self.label_noise} | ({"kind": self.noise} if self.noise else {})
        short = {
            "fraction": {"share": self.fraction} if self.fraction < 1 else {},
            "long_tail": {"factor": self.long_tail} if self.long_tail > 1 else {},
            "label_noise": noise if self.label_noise else {},
        }
        written = [str(spec.Spec(name, keywords)) for name, keywords in short.items() if keywords]
        return "+".join([self.dataset, *written])

    @classmethod
    def from_json(cls, values: dict) -> Config:
        """The configuration that `to_json` described; a field that it lacks, as it is newer, is at
        its default.

        Raises:
          InputError: a field that this version does not know, or of another type.
        """
        values = {
            name: value for name, value in values.items() if name not in ("written", "sources")
        }
        if strange := set(values) - {f.name for f in dataclasses.fields(cls)}:
            raise InputError(
                "the stored configuration is of another version of cnnlab, this one does not know "
                f"{sorted(strange)}; use that version, or train again"
            )
        typed: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        try:
            return cls(**typed)
        except (TypeError, AttributeError) as error:
            raise InputError(f"the stored configuration is damaged: {error}") from error


def _require(config: Training, field: str, holds: object, wanted: str) -> None:
    if not holds:
        flag = "--" + field.replace("_", "-")
        raise InputError(f"{flag} {wanted}, got {getattr(config, field)}")
