"""shapes10 1.0.0 as a TFDS builder: nothing to download, drawn while it is prepared."""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow_datasets.public_api as tfds
from PIL import Image

from cnnlab.data.builders.shapes10 import drawing


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Ten shapes, 10,000 images to train and 2,000 to test. Any change of a pixel needs a new
    version.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Drawn 32x32 colour images of ten shapes: 10000 to train, 2000 to test. The class "
                "is the shape; colour, place, size, rotation, stretch, background, clutter and "
                "noise do not depend on it."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(32, 32, 3)),
                    "label": tfds.features.ClassLabel(names=list(drawing.CLASS_NAMES)),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager  # nothing to download
        return {split: self._generate_examples(split) for split in drawing.SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        labels, seeds = drawing.split_labels(split), drawing.split_seeds(split)
        for start in range(0, len(labels), 1000):
            images = drawing.draw_many(labels[start : start + 1000], seeds[start : start + 1000])
            for index, image in enumerate(images, start):
                record = {
                    "id": f"{split}_{index:05d}",
                    "image": Image.fromarray(image),
                    "label": int(labels[index]),
                }
                yield index, record
