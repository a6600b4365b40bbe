"""The commands of cnnlab/data/README.md run as they are written there."""

import re
import shlex

import numpy as np
import pytest
from PIL import Image
from scripts import ROOT, script
from small_data import drawn, write_dataset
from tfrecords import convert

pytestmark = pytest.mark.slow

README = (ROOT / "cnnlab/data/README.md").read_text()
COMMANDS = re.findall(
    r"^python experiments/train\.py ([^#\n]*)",
    README.split("<!-- data -->\n```\n")[1].split("```")[0],
    re.MULTILINE,
)
SHAPE = (16, 16, 3)


def pictures(folder, count):
    rng = np.random.default_rng(count)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, SHAPE, np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.jpg")


@pytest.fixture
def workplace(tmp_path):
    """A folder that holds what the commands name, small."""
    for split, count in (("train", 100), ("test", 20)):
        pictures(tmp_path / "photos" / split, count)
    pictures(tmp_path / "pets", 120)
    train = drawn(160, 3, SHAPE, seed=0)
    test = drawn(40, 3, SHAPE, seed=1)
    arrays = {
        f"{name}_{split}": values
        for split, pair in (("train", train), ("test", test))
        for name, values in zip(("x", "y"), pair, strict=True)
    }
    np.savez(tmp_path / "digits.npz", **arrays)
    splits = {"train": train, "validation": test}
    source = write_dataset(tmp_path / "source", "plants", splits, 3, SHAPE)
    convert(source, tmp_path / "data" / "plants" / "1.0.0", shards=2)
    cifar10 = write_dataset(tmp_path / "home", "cifar10", {"train": train, "test": test}, 3, SHAPE)
    description = cifar10 / "dataset_info.json"
    description.write_text(description.read_text().replace("1.0.0", "3.0.2"))
    cifar10.rename(cifar10.with_name("3.0.2"))
    code = next(c for c in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "stripes" in c)
    (tmp_path / "my_data.py").write_text(code)
    return tmp_path


def test_all_of_them_are_tried():
    kinds = ("cifar10:", "--data-dir", "folder,", "--test-fraction", "npz,", "my_data.")
    assert all(any(kind in command for command in COMMANDS) for kind in kinds)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_on_data(command, workplace):
    quick = ["--epochs", "1", "--workdir", "run", "--batch-size", "32"]
    done = script(
        "train", *shlex.split(command), *quick, cwd=workplace, TFDS_DATA_DIR=str(workplace / "home")
    )
    assert done.returncode == 0, done.stderr
    assert (workplace / "run" / "summary.json").is_file()
