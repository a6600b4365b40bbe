"""What a run knows of its data: data.json of a run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from cnnlab import schema
from cnnlab.errors import InputError
from cnnlab.types import JsonObject

SPLITS = ("train", "validation", "test")
Count = Annotated[int, "[0, inf)"]
Side = Annotated[int, "[1, inf)"]
Mean = Annotated[float, "[0, 255]"]
Deviation = Annotated[float, "(0, 255]"]


@dataclass(frozen=True)
class DataFacts:
    """Facts about the data of a run.

    Attributes:
      class_names: of the K classes.
      image_shape: (H, W, C).
      mean, std: of each channel over all training images that are not held out, in 0..255; where
        each seed holds out its own, over all training images.
      class_counts: for each class how many images are trained on, by their right labels.
      digest: SHA-256 of the images and labels of both splits, and of the names of the classes.
      test_digest: SHA-256 of those of the test split; empty for a run of an earlier version.
      num_images: of the training split, those that are held out or left out included.
      counts: images by split: train (those trained on), validation and test.
      mirror: whether a mirrored image is of the same class.
      teacher_digest: SHA-256 of the teacher's weights and of the user's files behind its model.
      test_sets: for each further test set, SHA-256 of its pixels and labels.
    """

    class_names: tuple[str, ...]
    image_shape: tuple[Side, ...]
    mean: tuple[Mean, ...]
    std: tuple[Deviation, ...]
    class_counts: tuple[Count, ...]
    digest: str = ""
    test_digest: str = ""
    num_images: Count = 0
    counts: dict[str, Count] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    mirror: bool = True
    teacher_digest: str | None = None
    test_sets: dict[str, str] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return len(self.class_counts)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Count the full batches among the images that are trained on."""
        return sum(self.class_counts) // batch_size

    def to_json(self) -> JsonObject:
        """Convert the facts to JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> DataFacts:
        """Build the facts from what `to_json` returned.

        Raises:
          InputError: some are missing, of another type, out of their range, or do not go together.
        """
        required = ("class_names", "image_shape", "mean", "std", "counts", "class_counts", "digest")
        if missing := sorted(set(required) - values.keys()):
            raise InputError(f"it lacks {missing}")
        known = [f.name for f in dataclasses.fields(cls)]
        kept = {name: values[name] for name in known if name in values}
        try:
            facts = schema.build(cls, kept)
        except ValueError as error:
            raise InputError(str(error)) from error
        channels = facts.image_shape[-1:]
        if len(facts.image_shape) != 3 or (len(facts.mean), len(facts.std)) != 2 * channels:
            raise InputError("image_shape must be (H, W, C), mean and std of C channels")
        if len(facts.class_counts) != len(facts.class_names):
            raise InputError("class_counts must be of as many classes as class_names")
        return facts

    def of_data(self) -> JsonObject:
        """Return what follows from the data alone, as far as it is known: not what taught or tested
        the network.
        """
        others = ("teacher_digest", "test_sets")
        return {name: value for name, value in vars(self).items() if name not in others}
