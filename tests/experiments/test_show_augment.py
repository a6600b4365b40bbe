"""The contact sheet of a pipeline."""

import shlex
import sys

import numpy as np
import pytest
from PIL import Image
from scripts import ROOT, one_line_error, readme_commands, script

from cnnlab import cli, plots

sys.path.insert(0, str(ROOT / "experiments"))
import show_augment


@pytest.fixture
def sheets(monkeypatch, tmp_path):
    """The columns, path and title of what is drawn, which is not drawn."""
    monkeypatch.chdir(tmp_path)
    drawn = []

    def record(columns, file, title):
        drawn.append((columns, file, title))
        file.touch()

    monkeypatch.setattr(plots, "contact_sheet", record)
    return drawn


def sheet(sheets, *flags):
    arguments = cli.parse(show_augment.Arguments, ["--dataset", "tiny", *flags])
    show_augment.main(arguments)
    return sheets[-1]


def test_a_sheet_shows_the_original_and_draws(sheets, tfds_root, tmp_path):
    path = str(tmp_path / "contact.png")
    flags = ("--images", "5", "--draws", "3", "--augment", "flip", "--output", path)
    columns, where, title = sheet(sheets, *flags)
    assert (where.name, title) == ("contact.png", "flip on tiny")
    assert where != tmp_path / "contact.png"  # which is written at once, when all is drawn
    assert [heading for heading, _, _ in columns] == ["original", "draw 1", "draw 2", "draw 3"]
    _, original, names = columns[0]
    assert original.shape == (5, 8, 8, 3) and original.dtype == np.uint8 and len(names) == 5
    turned = []
    for _, images, labels in columns[1:]:
        assert images.dtype == np.uint8 and labels == names
        for image, before in zip(images, original, strict=True):
            turned.append(not np.array_equal(image, before))
            np.testing.assert_array_equal(image, before[:, ::-1] if turned[-1] else before)
    assert 0 < sum(turned) < len(turned)
    again, _, _ = sheet(sheets, *flags)
    other, _, _ = sheet(sheets, *flags, "--seed", "1")
    np.testing.assert_array_equal(again[2][1], columns[2][1])
    assert not np.array_equal(other[0][1], original)
    assert (tmp_path / "contact.png").read_bytes() == b""


def test_a_sheet_shows_views_and_mixed_labels(sheets, tfds_root):
    columns, _, title = sheet(
        sheets, "--images", "4", "--draws", "2", "--augment", "mixup,alpha=8+views,count=1"
    )
    assert title == "mixup,alpha=8.0+views,count=1 on tiny"
    headings = [heading for heading, _, _ in columns]
    assert headings == ["original", "draw 1", "view 1", "draw 2", "view 1"]
    np.testing.assert_array_equal(columns[1][1], columns[2][1])
    for name in columns[1][2]:
        shares = [line.rsplit(" ", 1) for line in name.splitlines()]
        if len(shares) > 1:
            assert sum(float(share) for _, share in shares) == pytest.approx(1, abs=0.011)
    assert any("\n" in name for name in columns[1][2])


def test_labels_in_words():
    names = ("cat", "dog", "owl")
    assert show_augment.labels(np.int32([1, 0]), names) == ["dog", "cat"]
    mixed = np.float32([[0.3, 0.7, 0], [0, 0, 1], [0.2, 0.3, 0.5]])
    assert show_augment.labels(mixed, names) == [
        "dog 0.70\ncat 0.30",
        "owl",
        "owl 0.50\ndog 0.30\ncat 0.20",
    ]


def test_the_readmes_commands_parse():
    commands = readme_commands("show_augment")
    for command in commands:
        cli.parse(show_augment.Arguments, shlex.split(command)[2:])
    assert commands


@pytest.mark.slow
def test_the_script_writes_a_picture_or_a_line(tfds_root, tmp_path):
    path = tmp_path / "contact.png"
    (tmp_path / "few.py").write_text(
        "import numpy as np\n\ndef few():\n"
        "    images, labels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 2\n"
        "    return {'train': (images, labels), 'test': (images, labels)}\n"
    )
    flags = ["--dataset", "tiny", "--images", 3, "--draws", 2, "--output", path]
    done = script("show_augment", *flags, "--augment", "flip+crop,padding=2+augmix")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{path}: 3 images, 2 draws\n")
    with Image.open(path) as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    for wrong, words in (
        (["--augment", "flipp"], "did you mean 'flip'"),
        (["--augment", "crop,padding=8"], "padding must be smaller than the image, 8 pixels"),
        (["--images", 0], "--images must lie in [1, 100], got 0"),
        (
            ["--dataset", "few.few", "--images", 21],
            "--images 21 is more than the 20 training images of few",
        ),
        (["--output", tmp_path], "cannot be written"),
    ):
        assert words in one_line_error(
            script("show_augment", *flags, *wrong, PYTHONPATH=str(tmp_path))
        )
