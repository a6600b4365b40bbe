"""Small prepared data sets."""

import pathlib

import numpy as np

from cnnlab.data import builders


def write_features(
    root: pathlib.Path,
    name: str,
    features: dict,
    splits: dict,
    file_format: str = "array_record",
) -> pathlib.Path:
    """Prepares `root/name/1.0.0` from {split: [example, ...]} with these features of TFDS."""
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = "placeholder"
        pkg_dir_path = pathlib.Path(root)

        def _info(self):
            described = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=described)

        def _split_generators(self, dl_manager):
            return {split: iter(enumerate(examples)) for split, examples in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError  # TFDS asks for the method

    Builder.name = name
    with builders._quiet():
        builder = Builder(data_dir=root, file_format=file_format)
        builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


def write_dataset(
    root: pathlib.Path,
    name: str,
    splits: dict,
    classes: int,
    shape: tuple,
    file_format: str = "array_record",
) -> pathlib.Path:
    """Prepares `root/name/1.0.0` from {split: (images, labels)}; None in `shape` for sizes that
    vary. Images are arrays or the contents of image files.
    """
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=shape),
        "label": tfds.features.ClassLabel(names=[f"class {k}" for k in range(classes)]),
    }
    examples = {
        split: [
            {"image": _as_stored(image), "label": int(label)}
            for image, label in zip(*arrays, strict=True)
        ]
        for split, arrays in splits.items()
    }
    return write_features(root, name, features, examples, file_format)


def _as_stored(image):
    """What TFDS takes: the contents of a file, or a picture."""
    from PIL import Image

    if isinstance(image, bytes):
        return image
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def drawn(
    count: int, classes: int, shape: tuple[int, int, int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images of noise around a brightness that tells the class: uint8[N, H, W, C] and their labels
    int32[N].
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count).astype(np.int32)
    noise = rng.integers(0, 120, (count, *shape))
    return (noise + 130 * labels.reshape(-1, 1, 1, 1) // max(classes - 1, 1)).astype(
        np.uint8
    ), labels
