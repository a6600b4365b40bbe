"""Every hyperparameter of a run, in one frozen dataclass. Imports no jax, so that `--help` is quick."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from dataclasses import dataclass
from typing import Any

from cnnlab.errors import InputError, unknown

CHOICES = {
    "noise": ("symmetric", "asymmetric"),
    "feed": ("auto", "resident", "streaming"),
    "model": ("cnn", "mlp", "softmax_regression", "airnet"),
    "pool": ("max", "average"),
    "activation": ("auto", "relu", "gelu", "silu", "tanh"),
    "compute_dtype": ("float32", "bfloat16", "float16"),
    "head": ("auto", "linear", "cosine"),
    "smoothing_convention": ("uniform", "off_target"),
    "class_weights": ("none", "effective_number"),
    "optimizer": ("adam", "adamw", "sgd", "muon"),
    "schedule": ("cosine", "linear", "constant"),
    "flip": ("auto", "on", "off", "alternating"),
    "crop_padding": ("zeros", "reflect"),
    "test_views": ("one", "mirror", "mirror_shift"),
    "parallel": ("auto", "jit", "pmap", "sharded"),
    "test_on": ("last", "best"),
    "progress": ("auto", "bar", "lines", "off"),
}

# Fields that a resumed run may change: they do not enter the arithmetic of a step, or (the last line) only in its
# rounding, which the run says.
FREE_ON_RESUME = frozenset(
    {"workdir", "data_dir", "workers", "keep", "checkpoint_steps", "progress", "tensorboard", "test_on"}
    | {"parallel", "devices", "mesh", "feed", "dispatch_steps", "coordinator", "processes", "process"}
)


@dataclass(frozen=True)
class Training:
    """How networks are trained and on what, whichever the loss: what all runs of a study have in common."""

    dataset: str = "shapes10"
    """shapes10 (drawn here), cifar10, mnist, or any TFDS image-classification set prepared as array_record."""
    data_dir: str | None = None
    """TFDS data directory. None: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    noise: str = "symmetric"
    """How label noise errs: symmetric (to any other class) or asymmetric (to a class like it, a cat to a dog)."""
    image_size: int | None = None
    """Side in pixels to which images are scaled and cropped; needed only where their sizes differ."""
    validation: float = 0.1
    """Share of the training split held out for validation, stratified by class, in [0, 1)."""
    split_seed: int = 0
    """Seed of that split; apart from `seed`, so that runs over seeds validate on the same images."""
    feed: str = "auto"
    """auto, resident (decoded once, gathered on the device) or streaming (read as it goes); same batches."""
    workers: int = 0
    """Processes that read and decode when streaming; 0: threads of this one."""

    model: str = "cnn"
    """cnn, mlp, softmax_regression or airnet (the airbench network)."""
    widths: tuple[int, ...] | None = None
    """Channels of each convolution of the cnn, or group of airnet. None: 32 64, for airnet 64 256 256."""
    whiten: bool = True
    """First layer of airnet: fitted to the patches of 5,000 training images and fixed, or trained as the others are."""
    hidden: tuple[int, ...] = (128,)
    """Units of each hidden dense layer (cnn, mlp)."""
    batch_norm: bool = False
    """Batch normalisation after each convolution or hidden dense layer."""
    dropout: float = 0.0
    """Share of hidden units dropped in training, in [0, 1)."""
    pool: str = "max"
    """max or average pooling."""
    activation: str = "auto"
    """relu, gelu, silu, tanh, or auto (gelu for airnet, else relu)."""
    compute_dtype: str = "float32"
    """float32, bfloat16 or float16 (its gradients scaled up on the way); parameters, logits and loss are float32."""
    head: str = "auto"
    """Last layer: linear, cosine (logits are cosines), or auto (cosine for the losses that are made for them)."""

    loss_temperature: float = 1.0
    """Divides the logits in the loss."""
    label_smoothing: float = 0.0
    """Share of each label that is given to all classes, in [0, 1]."""
    smoothing_convention: str = "uniform"
    """uniform (alpha / K for every class) or off_target (alpha / (K - 1) for the others)."""
    class_weights: str = "none"
    """none, or effective_number (Cui 2019, beta 0.9999, from the counts of the training images)."""
    z_loss: float = 0.0
    """Weight of the squared log-normaliser of the logits, added to the loss; 1e-4 is usual."""
    teacher: str | None = None
    """Run folder of the network that teaches, for the losses that take teacher_logits, such as distillation."""

    optimizer: str = "adam"
    """adam, adamw, sgd, or muon (on the filters of cnn and airnet, sgd on the rest)."""
    learning_rate: float = 1e-3
    """Peak rate per step; sgd wants about 0.05, muon 0.24."""
    head_rate: float = 0.02
    """Peak rate of dense kernels under muon."""
    bias_rate: float = 0.02
    """Peak rate of biases under muon."""
    whitening_epochs: float = 3.0
    """Epochs over which airnet's first bias is trained under muon, at a rate that falls to zero."""
    schedule: str = "cosine"
    """cosine or linear (both to zero at the last step) or constant."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from zero."""
    weight_decay: float = 0.0
    """Decoupled for adamw, added to the gradient for adam and sgd; on kernels only. muon: share of head and biases
    that a step at the peak rate takes away."""
    momentum: float = 0.9
    """Momentum of sgd, and of what muon leaves to it, in [0, 1)."""
    filter_momentum: float = 0.6
    """Momentum of muon on the filters, in [0, 1)."""
    nesterov: bool = True
    """Nesterov's form of momentum, for sgd and what muon leaves to it."""
    clip_norm: float | None = None
    """Largest global norm of the gradient; None: no clipping."""

    flip: str = "auto"
    """Mirror left-right: at random (on), off, auto (on for colour images, off for digits and letters), or alternating
    (a coin for each image in the first epoch, then the other way each epoch)."""
    crop: int = 0
    """Pixels of padding around the image before a random crop to its size."""
    crop_padding: str = "zeros"
    """What the padding is: zeros or reflect."""
    cutout: int = 0
    """Side in pixels of a random square set to the mean."""
    mixup: float = 0.0
    """Alpha of the Beta distribution that mixes pairs of images; 0: none."""

    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 128
    """Images per step, over all devices."""
    test_views: str = "one"
    """How a test image is seen: one way, mirror (and mirrored), or mirror_shift (and moved by a pixel)."""
    parallel: str = "auto"
    """auto (sharded when there is more than one device), jit (one device), pmap or sharded."""
    devices: int | None = None
    """Devices to use. None: the most that divide the batch; CPU cores are used where that is faster."""
    mesh: str | None = None
    """SxD: S groups of devices share out the seeds, the D devices of each the batch, as 8x1. None: as many groups as
    seeds and devices allow."""
    coordinator: str | None = None
    """host:port of the first of several processes; found by itself on Cloud TPU, Slurm, Open MPI and Kubernetes."""
    processes: int | None = None
    """How many processes train together, on as many machines or one; 1: this one alone, whatever the scheduler says."""
    process: int | None = None
    """The number of this process, from 0."""
    dispatch_steps: int | None = None
    """Steps handed to the devices at once. None: 1 on CPU (4 for several seeds) and when streaming, else 32."""

    progress: str = "auto"
    """auto (bar on a terminal, lines elsewhere), bar, lines or off."""

    def __post_init__(self) -> None:
        # Part of what a run is: found from any directory, and the same from each.
        if self.teacher and not self.teacher.startswith("gs://"):
            object.__setattr__(self, "teacher", os.path.abspath(os.path.expanduser(self.teacher)))
        for field, known in CHOICES.items():
            if getattr(self, field, known[0]) not in known:
                raise unknown(field, str(getattr(self, field)), known)
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
                "--coordinator HOST:PORT, --processes N and --process I go together, on each of N processes"
            )
        if self.processes is not None:
            _require(self, "processes", self.processes >= 1, "must be at least 1")
            _require(self, "process", 0 <= (self.process or 0) < self.processes, f"must lie in [0, {self.processes})")
        host, _, port = (self.coordinator or "h:1").rpartition(":")
        _require(self, "coordinator", host and port.isdecimal() and 0 < int(port) < 2**16, "must be HOST:PORT")
        _require(self, "learning_rate", 0 < self.learning_rate < math.inf, "must be positive and finite")
        clip = self.clip_norm
        _require(self, "clip_norm", clip is None or 0 < clip < math.inf, "must be positive and finite")
        for field in ("head_rate", "bias_rate"):
            _require(self, field, 0 < getattr(self, field) < math.inf, "must be positive and finite")
        for field in ("validation", "dropout", "momentum", "filter_momentum"):
            _require(self, field, 0 <= getattr(self, field) < 1, "must lie in [0, 1)")
        _require(self, "label_smoothing", 0 <= self.label_smoothing <= 1, "must lie in [0, 1]")
        _require(self, "loss_temperature", 0 < self.loss_temperature < math.inf, "must be positive and finite")
        for field in ("warmup_epochs", "whitening_epochs", "weight_decay", "mixup", "z_loss"):
            _require(self, field, 0 <= getattr(self, field) < math.inf, "must be finite and at least 0")
        for field in ("workers", "crop", "cutout", "split_seed"):
            _require(self, field, getattr(self, field) >= 0, "must be at least 0")
        for field in ("widths", "hidden"):
            _require(self, field, all(n >= 1 for n in getattr(self, field) or ()), "must all be at least 1")
        wide = self.model not in ("cnn", "airnet")
        _require(self, "widths", self.widths != () or wide, "must name at least one convolution")
        _require(
            self, "optimizer", self.optimizer != "muon" or not wide, f"must be another: {self.model} has no filters"
        )
        _require(self, "warmup_epochs", self.warmup_epochs <= self.epochs, f"must be at most epochs ({self.epochs})")
        plain = self.model in ("softmax_regression", "airnet")
        _require(self, "batch_norm", not (plain and self.batch_norm), f"has no layer to act on in {self.model}")
        _require(self, "dropout", not (plain and self.dropout), f"has no layer to act on in {self.model}")

    def to_json(self) -> dict:
        """The fields as JSON values, by name."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


@dataclass(frozen=True)
class Config(Training):
    """Train one network with one loss on one data set; test it once, at the end."""

    loss: str = "cross_entropy"
    """A loss as name,key=value,... (--list-losses shows all) or an own one: my_module.my_loss,alpha=0.3."""
    seed: int = 0
    """Seed of initial weights, order, augmentation, dropout, wrong labels and left out images."""
    label_noise: float = 0.0
    """Share of the training labels made wrong, in [0, 1), of classes that err; validation and test stay right."""
    long_tail: float = 1.0
    """How many times more images the first class keeps than the last, exponential between; 1: all."""
    fraction: float = 1.0
    """Share of the training images of each class that is used, in (0, 1]."""

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
        _require(self, "seed", 0 <= self.seed < 2**32, "must lie in [0, 2**32)")
        _require(self, "keep", self.keep >= 1, "must be at least 1")
        _require(self, "checkpoint_steps", self.checkpoint_steps >= 0, "must be at least 0")
        _require(self, "test_on", self.test_on == "last" or self.validation > 0, "best needs validation above 0")

    @classmethod
    def from_json(cls, values: dict) -> Config:
        """The configuration that `to_json` described.

        Raises:
          InputError: a field is missing or unknown.
        """
        fields = {f.name for f in dataclasses.fields(cls)}
        if set(values) != fields:
            raise InputError(
                f"the stored configuration does not fit this version of cnnlab: {sorted(set(values) ^ fields)} differ"
            )
        typed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        try:
            return cls(**typed)
        except TypeError as error:
            raise InputError(f"the stored configuration is damaged: {error}") from error


def _require(config: Training, field: str, holds: object, wanted: str) -> None:
    if not holds:
        flag = "--" + field.replace("_", "-")
        raise InputError(f"{flag} {wanted}, got {getattr(config, field)}")


def conflicts(stored: dict, wanted: Config) -> list[str]:
    """The fields in which a run folder's configuration forbids going on with `wanted`, as 'name: stored -> wanted'.

    More epochs are no conflict under a constant schedule: every step already taken stays as it was.
    """
    new = wanted.to_json()
    free = set(FREE_ON_RESUME)
    if stored.get("schedule") == "constant" and new["epochs"] >= stored.get("epochs", math.inf):
        free.add("epochs")
    new |= dict.fromkeys(stored.keys() - new.keys())  # fields of another version of cnnlab
    return [f"{k}: {stored.get(k)} -> {v}" for k, v in new.items() if k not in free and stored.get(k) != v]
