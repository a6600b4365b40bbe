"""Fashion-MNIST 3.0.1: the same order, labels and pixels as TFDS's own builder, without TensorFlow.

MNIST's builder reads it: the files have the same names and form. The published files were not at
hand: that they are equal was tried on small files of the same form (tests/golden/builders.py), and
the checksums are TFDS's.

Source: Xiao, Rasul and Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking machine
learning algorithms, 2017, arXiv 1708.07747
"""

from __future__ import annotations

import tensorflow_datasets.public_api as tfds

from cnnlab.data.builders.mnist import mnist_dataset_builder as mnist

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

CITATION = """\
@article{DBLP:journals/corr/abs-1708-07747,
  author    = {Han Xiao and
               Kashif Rasul and
               Roland Vollgraf},
  title     = {Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
               Algorithms},
  journal   = {CoRR},
  volume    = {abs/1708.07747},
  year      = {2017},
  url       = {http://arxiv.org/abs/1708.07747},
  archivePrefix = {arXiv},
  eprint    = {1708.07747},
  timestamp = {Mon, 13 Aug 2018 16:47:27 +0200},
  biburl    = {https://dblp.org/rec/bib/journals/corr/abs-1708-07747},
  bibsource = {dblp computer science bibliography, https://dblp.org}
}
"""


class Builder(mnist.Builder, skip_registration=True):  # type: ignore[call-arg]
    """Not registered with TFDS: both builders of this name may live in one process."""

    VERSION = tfds.core.Version("3.0.1")

    url = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Fashion-MNIST is a dataset of Zalando's article images consisting of a training "
                "set of 60,000 examples and a test set of 10,000 examples. Each example is a 28x28 "
                "grayscale image, associated with a label from 10 classes."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(names=list(CLASS_NAMES)),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            citation=CITATION,
        )
