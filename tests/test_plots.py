"""Figures: what they draw is read from the axes, what they write is a PNG."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from cnnlab import plots
from cnnlab.html import svg

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved; they are still written."""
    figures = []
    save = Figure.savefig

    def record(self, *args, **kwargs):
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", record)
    return figures


HISTORY = [
    {"epoch": e, "step": 10 * e, "train_loss": 2.0 / e, "train_accuracy": 0.1 * e}
    | {"validation_loss": 2.5 / e, "validation_accuracy": 0.09 * e}
    for e in range(1, 5)
]


def test_curves(drawn, tmp_path):
    plots.curves(HISTORY, tmp_path / "curves.png", title="a title")
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)
    (figure,) = drawn
    assert figure.get_suptitle() == "a title"
    for axis, name in zip(figure.axes, ("loss", "accuracy"), strict=True):
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("epoch", name)
        for line, kind in zip(axis.get_lines(), ("train", "validation"), strict=True):
            assert line.get_label() == kind
            np.testing.assert_array_equal(
                line.get_xydata(), [(r["epoch"], r[f"{kind}_{name}"]) for r in HISTORY]
            )


def test_curves_without_validation(drawn, tmp_path):
    history = [{k: v for k, v in row.items() if "validation" not in k} for row in HISTORY[:1]]
    plots.curves(history, tmp_path / "curves.png")
    assert [line.get_label() for axis in drawn[0].axes for line in axis.get_lines()] == [
        "train",
        "train",
    ]


def test_confusion_rows_are_shares_of_the_true_class(drawn, tmp_path):
    plots.confusion(
        np.array([[8, 2, 0], [0, 0, 0], [1, 0, 3]]),
        ["cat", "dog", "owl"],
        tmp_path / "confusion.png",
        "test",
    )
    axis = drawn[0].axes[0]
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_title()) == ("predicted", "true", "test")
    np.testing.assert_allclose(
        axis.images[0].get_array(), [[0.8, 0.2, 0], [0, 0, 0], [0.25, 0, 0.75]]
    )
    texts = {(int(t.get_position()[0]), int(t.get_position()[1])): t.get_text() for t in axis.texts}
    assert texts == {(0, 0): "80", (1, 0): "20", (0, 2): "25", (2, 2): "75"}  # (predicted, true)
    assert [t.get_text() for t in axis.get_yticklabels()] == ["cat", "dog", "owl"]
    assert (tmp_path / "confusion.png").read_bytes().startswith(PNG)


def test_of_many_classes_the_largest_confusions_are_drawn(drawn, tmp_path):
    matrix = 20 * np.eye(1000, dtype=int)
    matrix[7, 3] = 30
    matrix[1, 999] = 5
    for k in range(100, 150):  # more than are drawn
        matrix[k, k + 1] = 1
    names = [f"class {k} of a long and very long family" for k in range(1000)]
    names[3] = "$5 or $10"
    plots.confusion(matrix, names, tmp_path / "confusion.png", "a title")
    (axis,) = drawn[0].axes
    bars = [bar.get_width() for bar in axis.patches]
    np.testing.assert_allclose(bars, [30 / 50, 5 / 25, *[1 / 21] * 18])
    labels = [text.get_text() for text in axis.get_yticklabels()]
    assert labels[0] == "class 7 of a long and very … → $5 or $10"
    assert [text.get_text() for text in axis.texts][:2] == [" 60 % (30)", " 20 % (5)"]
    assert axis.get_title() == "a title\nlargest confusions of 1,000 classes"
    with Image.open(tmp_path / "confusion.png") as image:
        assert max(image.size) <= 9 * 120


def test_a_perfect_network_of_many_classes_has_a_picture_too(drawn, tmp_path):
    plots.confusion(np.eye(100, dtype=int), [str(k) for k in range(100)], tmp_path / "it.png")
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["no mistakes"]


@pytest.mark.parametrize("name", ["$5 or $10", r"x$\frac$y", "$", r"\$", "日本語", "a_b^c"])
@pytest.mark.parametrize("classes", [2, 60])
def test_names_are_drawn_as_they_are(drawn, tmp_path, name, classes):
    """As TeX some of them raise, and others become something else."""
    names = [name, *[str(k) for k in range(1, classes)]]
    matrix = np.ones((classes, classes), int)
    plots.confusion(matrix, names, tmp_path / "confusion.png", name)
    plots.curves(HISTORY, tmp_path / "curves.png", name)
    images = np.zeros((1, 2, 2, 3), np.uint8)
    plots.contact_sheet([(name, images, [name])], tmp_path / "contact.png", name)
    for figure in drawn:
        texts = figure.findobj(Text)
        assert texts and not any(text.get_parse_math() for text in texts)
        assert any(name in text.get_text() for text in texts)


def test_a_contact_sheet_has_a_row_for_each_image_and_a_column_for_each_way_to_see_it(
    drawn, tmp_path
):
    rng = np.random.default_rng(0)
    columns = [
        (heading, rng.integers(0, 256, (2, 5, 4, channels), np.uint8), ["cat", f"{heading} dog"])
        for heading, channels in (("original", 3), ("draw 1", 3), ("draw 2", 1))
    ]
    plots.contact_sheet(columns, tmp_path / "contact.png", "flip on pets")
    assert (tmp_path / "contact.png").read_bytes().startswith(PNG)
    (figure,) = drawn
    assert figure.get_suptitle() == "flip on pets"
    grid = np.reshape(figure.axes, (2, 3))
    for column, (heading, images, labels) in enumerate(columns):
        assert [axis.get_title() for axis in grid[:, column]] == [heading, ""]
        for axis, image, label in zip(grid[:, column], images, labels, strict=True):
            np.testing.assert_array_equal(axis.images[0].get_array(), np.squeeze(image))
            assert axis.get_xlabel() == label


def test_a_name_that_begins_with_an_underscore_has_a_place_in_the_legend():
    """matplotlib leaves such names out of a legend without a word."""
    from cnnlab.plots import _overlaid

    curve = ("probability", np.array([0.1, 0.9]), np.array([2.0, 0.1]), np.array([1.0, 0.2]))
    figure = _overlaid({"_mine.loss": curve, "focal": curve})
    legend = figure.axes[1].get_legend()
    assert [text.get_text().strip() for text in legend.get_texts()] == ["_mine.loss", "focal"]


def test_a_picture_of_a_page_that_fails_costs_a_warning():
    def paint(axis):
        raise RuntimeError("no <font>")

    with pytest.warns(UserWarning, match="accuracy could not be drawn: no <font>"):
        drawn = svg.draw(paint, "accuracy")
    assert drawn == "<span>accuracy could not be drawn: no &lt;font&gt;</span>"


def test_intervals(drawn, tmp_path):
    rows = [
        plots.Interval("a beats b", "holds", 0.5, 2.0, 3.0),
        plots.Interval("c equals $d", "holds", -0.5, 0.1, 0.7),
        plots.Interval("e beats f", "undecided", -np.inf, -1.0, np.inf),
    ]
    plots.intervals(rows, tmp_path / "intervals.png")
    (figure,) = drawn
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [row.text for row in rows]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["holds", "undecided"]
    assert axis.lines[3].get_xdata().tolist() == [-0.5, 0.7]
    assert axis.lines[5].get_xdata().tolist() == [-plots.FARTHEST, plots.FARTHEST]
