"""What a pipeline of augmentations makes of images: a contact sheet.

python experiments/show_augment.py --augment flip+crop+cutmix --output contact.png
python experiments/show_augment.py --dataset cifar10 --augment trivial_augment --images 4 --draws 9
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cnnlab import cli, files
from cnnlab.config import PART, Part, Settings, Size, check
from cnnlab.console import show
from cnnlab.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from cnnlab.parts import Parts
    from cnnlab.training.experiment import TrainingData


Shown = Annotated[int, "[1, 100]"]  # rows and columns of a sheet


@dataclass(frozen=True)
class Arguments(Settings):
    """Draw training images as a network sees them: a row for each, a column for each draw."""

    augment: Annotated[str, PART] = "auto"
    """Operations, as for train.py: flip+crop,padding=4+cutmix (--list augmentation)."""
    dataset: Part = "shapes10"
    """Data set, as for train.py."""
    data_dir: str | None = None
    """TFDS data directory. None: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    image_size: Annotated[int, "[1, 10000]"] | None = None
    """Side in pixels to which images are scaled and cropped."""
    images: Shown = 8
    """Images, which are also those that are mixed with each other."""
    draws: Shown = 6
    """Draws for each image, as of so many epochs."""
    seed: Size = 0
    """Seed of the choice of images and of the draws."""
    output: str = "contact.png"
    """PNG to write."""

    def __post_init__(self) -> None:
        check(self)


def main(arguments: Arguments) -> None:
    cli.writable(arguments.output)

    import numpy as np

    from cnnlab import plots
    from cnnlab.config import Config, Machine, Recipe
    from cnnlab.console import Console
    from cnnlab.parts import resolve
    from cnnlab.training import experiment

    recipe = Recipe.of(
        dataset=arguments.dataset,
        augment=arguments.augment,
        image_size=arguments.image_size,
        batch_size=arguments.images,
        seed=arguments.seed,
        validation=0.0,
    )
    parts = resolve(recipe)
    dataset = parts.open_dataset(arguments.data_dir, recipe)
    if arguments.images > len(dataset.train):
        raise InputError(
            f"--images {arguments.images} is more than the {len(dataset.train)} training images of "
            f"{dataset.name}"
        )
    shape = dataset.train.image_shape
    parts.augmented_shapes(dataset.num_classes, shape, arguments.images, dataset.mirror)
    machine = Machine(data_dir=arguments.data_dir, decoded_limit=0.0)
    read = experiment.read_dataset(machine, dataset, Console("auto"))
    data = experiment.training_data(Config(recipe, machine), parts, dataset, read)
    rng = np.random.default_rng(arguments.seed)
    chosen = np.sort(rng.choice(len(dataset.train), arguments.images, replace=False))
    columns = list(draw(parts, data, chosen, arguments))
    title = f"{parts.specs(lambda part: part.canonical())['augment']} on {dataset.name}"
    with files.written(Path(arguments.output)) as file:
        plots.contact_sheet(columns, file, title)
    show(f"{arguments.output}: {arguments.images} images, {arguments.draws} draws")


def draw(
    parts: Parts, data: TrainingData, chosen: np.ndarray, arguments: Arguments
) -> Iterator[tuple[str, np.ndarray, list[str]]]:
    """Yield the columns of the sheet: a heading, images uint8[B, H, W, C], and their labels."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cnnlab import augment
    from cnnlab.training import network

    facts = data.facts
    statistics = network.statistics(facts)
    operations = parts.pipeline(facts.num_classes, None, facts.mirror, statistics)
    batch = data.dataset.train.read(chosen)
    plain = {
        "image": augment.normalise(jnp.asarray(batch["image"]), *statistics),
        "label": jnp.asarray(batch["label"]),
        "index": jnp.asarray(chosen, jnp.int32),
    }
    key, run_key = jax.random.split(jax.random.key(arguments.seed))

    @jax.jit
    def augmented(epoch: jax.Array) -> augment.Batch:
        draw_key = jax.random.fold_in(key, epoch)
        return augment.apply(operations, plain | {"epoch": epoch}, draw_key, run_key)

    def shown(images: jax.Array) -> np.ndarray:
        return np.asarray(
            jnp.clip(jnp.round(augment.pixels(images, *statistics)), 0, 255), np.uint8
        )

    yield "original", batch["image"], labels(batch["label"], facts.class_names)
    for number in range(arguments.draws):
        seen = augmented(jnp.int32(number))
        names = labels(np.asarray(seen["label"]), facts.class_names)
        yield f"draw {number + 1}", shown(seen["image"]), names
        for place, view in enumerate(seen.get("views", ()), start=1):
            yield f"view {place}", shown(view), names


def labels(values: np.ndarray, class_names: tuple[str, ...]) -> list[str]:
    """Write labels int[B] or float[B, K] in words: "cat", or "cat 0.70" and "dog 0.30" on a line
    each, the largest first.
    """
    import numpy as np

    if np.issubdtype(values.dtype, np.integer):
        return [class_names[value] for value in values]
    words = []
    for distribution in values:
        present = [k for k in np.argsort(-distribution, kind="stable") if distribution[k] >= 0.005]
        shares = [f"{class_names[k]} {distribution[k]:.2f}" for k in present]
        words.append("\n".join(shares) if len(shares) > 1 else class_names[present[0]])
    return words


if __name__ == "__main__":
    cli.main(main, Arguments)
