"""CIFAR-100 3.0.2: the same ids, order, both labels and pixels as TFDS's own builder, without
TensorFlow.

CIFAR-10's builder reads it: an example has two label bytes in place of one, the superclass first.
The published archive was not at hand: that they are equal was tried on small archives of the same
form (tests/golden/builders.py), and the checksum is TFDS's.

Source: Krizhevsky, Learning multiple layers of features from tiny images, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import tensorflow_datasets.public_api as tfds

from cnnlab.data.builders.cifar10 import cifar10_dataset_builder as cifar10


class Builder(cifar10.Builder, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-100. Not registered with TFDS: both builders of this name may live in one process."""

    VERSION = tfds.core.Version("3.0.2")

    url = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
    layout = cifar10.Layout(
        splits={"train": ("cifar-100-binary/train.bin",), "test": ("cifar-100-binary/test.bin",)},
        names={
            "coarse_label": "cifar-100-binary/coarse_label_names.txt",
            "label": "cifar-100-binary/fine_label_names.txt",
        },
        most_examples=50_000,
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "This dataset is just like the CIFAR-10, except it has 100 classes containing 600 "
                "images each. There are 500 training images and 100 testing images per class. The "
                "100 classes in the CIFAR-100 are grouped into 20 superclasses. Each image comes "
                'with a "fine" label (the class to which it belongs) and a "coarse" label (the '
                "superclass to which it belongs)."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(32, 32, 3)),
                    "label": tfds.features.ClassLabel(num_classes=100),
                    "coarse_label": tfds.features.ClassLabel(num_classes=20),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            citation=cifar10.CITATION,
        )
