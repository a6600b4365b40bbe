"""What TFDS's own builders of cifar100, fashion_mnist and svhn_cropped make of small archives, to
hold ours against.

    python tests/golden/builders.py    # rewrites builders.json

Needs tensorflow and tensorflow-datasets, of the version below. The archives are those of
tests/support/archives.py, in the form of the published ones, which are not at hand; sizes and
checksums are patched, and so are the numbers of examples that MNIST's builder expects. A row reads

    version    of the data set
    texts      file name -> content: features.json and the class names
    info       dataset_info.json, but for what the module's name and the compression decide
    examples   split -> in stored order the features, the image as the SHA-256 of its pixels
"""

import hashlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import archives
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.image_classification import mnist

TFDS = "4.9.10"
NAMES = ("cifar100", "fashion_mnist", "svhn_cropped")


def prepared(name: str, root: Path) -> Path:
    """Let TFDS's builder prepare the small archives; return the folder."""
    files = archives.published(name)
    by_hand = root / name
    by_hand.mkdir()
    for file, content in files.items():
        (by_hand / file).write_bytes(content)
    builder_class = tfds.builder_cls(name)
    builder_class.url_infos = {
        url: checksums.UrlInfo(
            size=len(files[info.filename]),
            checksum=hashlib.sha256(files[info.filename]).hexdigest(),
            filename=info.filename,
        )
        for url, info in builder_class.url_infos.items()
    }
    builder = builder_class(data_dir=root / "data", file_format="array_record")
    config = tfds.download.DownloadConfig(
        manual_dir=by_hand, try_download_gcs=False, force_checksums_validation=True
    )
    builder.download_and_prepare(download_dir=root / "downloads", download_config=config)
    return Path(builder.data_dir)


def row(folder: Path) -> dict:
    info = json.loads((folder / "dataset_info.json").read_text())
    info.pop("moduleName"), info.pop("downloadSize")
    for split in info["splits"]:
        split.pop("numBytes")
    return {
        "version": folder.name,
        "texts": {
            path.name: path.read_text()
            for path in [folder / "features.json", *sorted(folder.glob("*.txt"))]
        },
        "info": info,
        "examples": {
            split["name"]: [plain(example) for example in read(folder, split["name"])]
            for split in info["splits"]
        },
    }


def read(folder: Path, split: str) -> list[dict]:
    source = tfds.builder_from_directory(folder).as_data_source(
        split=split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    return [source[i] for i in range(len(source))]


def plain(example: dict) -> dict:
    pixels = np.asarray(Image.open(io.BytesIO(example.pop("image"))))
    values = {
        key: value.decode() if isinstance(value, bytes) else int(value)
        for key, value in example.items()
    }
    return {**values, "image": hashlib.sha256(pixels.tobytes()).hexdigest()}


def main() -> None:
    assert tfds.__version__ == TFDS, tfds.__version__
    mnist._TRAIN_EXAMPLES = archives.COUNTS["train"]
    mnist._TEST_EXAMPLES = archives.COUNTS["test"]
    with tempfile.TemporaryDirectory() as root:
        rows = {name: row(prepared(name, Path(root))) for name in NAMES}
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
