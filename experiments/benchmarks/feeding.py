"""Images per second by where the images come from: files of several formats, memory, or nowhere.

    python experiments/benchmarks/feeding.py --dataset cifar10 --json feeding.json
    python experiments/benchmarks/feeding.py --workers 2 --rounds 15

    array_record, TFRecord   the data set as TFDS prepares it, streamed
    folder                   the same images as a folder of PNG files, prepared and streamed
    mapped                   decoded once into a file of the cache
    resident                 decoded once, in the memory of the device
    bare step                the same batch again and again

Each source is read alone, and as the feed of a training step. They take turns in random order in
one process, the first steps of a turn do not count, and figures are medians over the rounds. The
batches of all sources are the same, bit for bit, which is checked first. Files are read from the
operating system's cache, so this compares formats and decoders, not disks.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from cnnlab import cli
from cnnlab.config import Config, Count, Few, Part, Settings, check
from cnnlab.data import prepared, storage, tfrecord
from cnnlab.data.catalogue import open_dataset
from cnnlab.data.dataset import Batch, Dataset
from cnnlab.errors import InputError
from cnnlab.training import experiment as experiments
from cnnlab.training.experiment import Experiment
from cnnlab.training.step import Progress
from cnnlab.types import JsonObject

BARE = "bare step"
WARM_UP = 5  # steps at the start of a turn that do not count
WRITTEN_AT_ONCE = 1024  # images


@dataclass(frozen=True)
class Arguments(Settings):
    """Time the ways to feed a training step."""

    dataset: str = "shapes10"
    """Data set of TFDS, prepared as array_record."""
    data_dir: str | None = None
    """TFDS data directory. None: TFDS_DATA_DIR or ~/tensorflow_datasets."""
    model: Part = "cnn"
    """Network, as for train.py."""
    batch_size: Count = 128
    """Images per step."""
    workers: Few = 0
    """Processes that read and decode when streaming; 0: threads."""
    rounds: Count = 9
    """Turns of each source."""
    steps: Count = 40
    """Steps per turn."""
    json: str | None = None
    """File to write the figures to."""

    def __post_init__(self) -> None:
        check(self)


def main(arguments: Arguments) -> None:
    cli.writable(arguments.json)
    dataset = open_dataset(arguments.dataset, arguments.data_dir)
    with tempfile.TemporaryDirectory() as temporary:
        copies = Path(temporary)
        print("writing copies as TFRecord and as a folder of PNG files", file=sys.stderr)
        write_tfrecord(arguments, copies)
        write_pictures(dataset, copies / "pictures")
        name = dataset.name
        pictures = f"folder,path={copies / 'pictures'}"
        sources = {
            "array_record": build(arguments, name, arguments.data_dir, "streaming"),
            "TFRecord": build(arguments, name, temporary, "streaming"),
            "folder": build(arguments, pictures, temporary, "streaming"),
            "mapped": build(arguments, name, arguments.data_dir, "mapped"),
            "resident": build(arguments, name, arguments.data_dir, "resident"),
        }
        sources[BARE] = sources["resident"]
        check_alike(sources)
        rows = measure(arguments, sources)
    for row in rows:
        alone = f"{row['read alone']:10,.0f}" if row["read alone"] else " " * 10
        print(
            f"{row['source']:14}{alone} images/s read alone {row['training']:10,.0f} in training "
            f"{row['training'] / rows[-1]['training']:6.2f} of the bare step"
        )
    if arguments.json:
        facts = {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "cores": os.cpu_count(),
            **vars(arguments),
        }
        Path(arguments.json).write_text(json.dumps(facts | {"rows": rows}, indent=1))


def write_tfrecord(arguments: Arguments, root: Path) -> None:
    """Write the data set's array_record files as TFRecord below another data directory.

    Raises:
      InputError: it is not prepared as array_record.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    source_root = storage.data_root(arguments.data_dir)
    folder = prepared.find(arguments.dataset, source_root)
    if folder is None or folder.is_remote:
        raise InputError(f"{arguments.dataset} is not prepared on this machine")
    target = root / folder.path.relative_to(source_root.path)
    target.mkdir(parents=True)
    info = json.loads(folder.read(prepared.DESCRIPTION))
    if info.get("fileFormat") != "array_record":
        raise InputError(f"{folder} is not prepared as array_record")
    for name in folder.files():
        if ".array_record" not in name:
            (target / name).write_bytes(folder.read(name))
            continue
        records = ArrayRecordDataSource([str(folder.path / name)])
        with (target / name.replace(".array_record", ".tfrecord")).open("wb") as file:
            file.writelines(map(framed, records))
    info["fileFormat"] = "tfrecord"
    (target / prepared.DESCRIPTION).write_text(json.dumps(info))


def framed(data: bytes) -> bytes:
    """Frame a record as TFRecord files hold it."""
    length = tfrecord.LENGTH.pack(len(data), 0)[:8]
    header = length + tfrecord.CHECKSUM.pack(tfrecord.masked_checksum(length))
    return header + data + tfrecord.CHECKSUM.pack(tfrecord.masked_checksum(data))


def write_pictures(dataset: Dataset, root: Path) -> None:
    """Write the images of both splits as PNG files, SPLIT/CLASS/NUMBER.png, in their order within
    each class.
    """
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        for label in dataset.class_names:
            (root / name / label).mkdir(parents=True)
        for start in range(0, len(split), WRITTEN_AT_ONCE):
            positions = range(start, min(start + WRITTEN_AT_ONCE, len(split)))
            batch = split.read(positions)
            for position, image, label in zip(
                positions, batch["image"], batch["label"].tolist(), strict=True
            ):
                picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
                path = root / name / dataset.class_names[label] / f"{position:07d}.png"
                picture.save(path, compress_level=1)


def build(arguments: Arguments, dataset: str, data_dir: str | None, feed: str) -> Experiment:
    """Compile a training step that is fed from a source."""
    config = Config.of(
        dataset=dataset,
        data_dir=data_dir,
        feed=feed,
        model=arguments.model,
        batch_size=arguments.batch_size,
        workers=0 if feed == "resident" else arguments.workers,
        dispatch_steps=1,
        validation=0.0,
        augment="none",
    )
    print(f"preparing {dataset}, {feed}", file=sys.stderr)
    return experiments.build(config)


def check_alike(sources: dict[str, Experiment]) -> None:
    """Check that all sources of the same order of images give the same batch.

    A folder sorts its pictures by class, so that there only the shapes are compared.
    """
    batches = {name: first_batch(experiment) for name, experiment in sources.items()}
    wanted = batches["array_record"]
    for name, batch in batches.items():
        same = jax.tree.map(np.array_equal, batch, wanted)
        if name == "folder":
            same = jax.tree.map(lambda a, b: a.shape == b.shape, batch, wanted)
        if not all(jax.tree.leaves(same)):
            raise InputError(f"{name} gives other batches than array_record")


def first_batch(experiment: Experiment) -> dict[str, np.ndarray]:
    """Fetch the batch of the first step as the compiled step does."""
    (item,) = experiment.items(0, 1)
    batch = experiment.feed.fetch(
        jnp.asarray(experiment.feed.data), jax.tree.map(jnp.asarray, item)
    )
    return {name: np.asarray(values) for name, values in batch.items()}


def measure(arguments: Arguments, sources: dict[str, Experiment]) -> list[JsonObject]:
    """Let all sources take turns; return one row for each."""
    progress = {name: experiment.start() for name, experiment in sources.items()}
    alone = {name: [] for name in sources if name not in ("resident", BARE)}
    training = {name: [] for name in sources}
    turns = [("alone", name) for name in alone] + [("training", name) for name in training]
    length = WARM_UP + arguments.steps
    for number in range(arguments.rounds):
        random.shuffle(turns)
        for kind, name in turns:
            experiment = sources[name]
            items = experiment.items(number * length, (number + 1) * length)
            if kind == "alone":
                alone[name].append(arguments.steps * arguments.batch_size / drain(items))
                continue
            if name == BARE:
                items = repeat(next(items), length)
            progress[name], seconds = train(experiment, progress[name], iter(items))
            training[name].append(arguments.steps * arguments.batch_size / seconds)
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    return [
        {
            "source": name,
            "read alone": statistics.median(alone[name]) if name in alone else None,
            "training": statistics.median(rates),
            "quartiles": statistics.quantiles(rates, n=4) if len(rates) > 1 else None,
        }
        for name, rates in training.items()
    ]


def drain(items: Iterator[Batch]) -> float:
    """Read all items; return the seconds after the warm-up."""
    for _ in islice(items, WARM_UP):
        pass
    start = time.monotonic()
    for _ in items:
        pass
    return time.monotonic() - start


def train(
    experiment: Experiment, progress: Progress, items: Iterator[Batch]
) -> tuple[Progress, float]:
    """Take a step for each item; return the progress and the seconds after the warm-up."""
    for item in islice(items, WARM_UP):
        progress = experiment.advance(progress, [item])
    jax.block_until_ready(progress.state)
    start = time.monotonic()
    for item in items:
        progress = experiment.advance(progress, [item])
    jax.block_until_ready(progress.state)
    return progress, time.monotonic() - start


if __name__ == "__main__":
    cli.main(main, Arguments)
