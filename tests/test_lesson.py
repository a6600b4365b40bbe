"""The frame of the lessons: what a script's parts become on the terminal, on the page and as exit
status.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lesson_example import LESSONS, lesson
from scripts import one_line_error, script

from cnnlab import lesson as lessons
from cnnlab.errors import InputError
from cnnlab.lesson import Claim, Lesson, Table, Text

pytestmark = pytest.mark.slow
SCRIPTS = sorted(path for path in LESSONS.glob("*.py"))
TAUGHT = [path.stem for path in SCRIPTS if path.stem != "all"]


def teach(flags):
    """A title <with> signs

    A paragraph
    over two lines.

        a command
    """
    yield Text("said & done")
    yield Table(("word", "number"), [("one", "1"), ("eleven", "11")], 1)
    yield Claim("Holds", np.True_, "1 < 2")
    yield Claim("Breaks", np.float32(2) < 1, "2 > 1")
    yield lessons.lines(
        "Two lines", [1, 10, 100], {"a": [1, 2, 3], "b": [3, 2, 1]}, "x (m)", "y (s)", xscale="log"
    )
    yield lessons.picture("An image", np.eye(4), limit=1.0)


@pytest.fixture
def taught(tmp_path, monkeypatch, capsys):
    """What `teach` has left, its exit status and what it printed."""
    monkeypatch.setattr(sys.modules[__name__], "__doc__", teach.__doc__)
    with pytest.raises(SystemExit) as stop:
        lessons.run(teach, args=["--workdir", str(tmp_path / "made" / "here")])
    folder = tmp_path / "made" / "here"
    return (
        lessons.read(folder / "test_lesson.json"),
        stop.value.code,
        capsys.readouterr().out,
        folder,
    )


def test_a_claim_that_does_not_hold_is_status_1_and_everything_is_still_written(taught):
    found, status, printed, folder = taught
    assert status == 1
    assert [claim.statement for claim in found.refuted] == ["Breaks"]
    assert printed.splitlines() == [
        "said & done",
        "    word    number",
        "    one          1",
        "    eleven      11",
        "HOLDS: Holds",
        "    1 < 2",
        "DOES NOT HOLD: Breaks",
        "    2 > 1",
        str(folder / "test_lesson.html"),
    ]
    assert sorted(path.name for path in folder.iterdir()) == [
        "test_lesson.html",
        "test_lesson.json",
    ]


def test_what_is_read_is_what_was_taught(taught):
    found, _, _, _ = taught
    assert (found.name, found.title) == ("test_lesson", "A title <with> signs")
    assert found.text.startswith("A paragraph\nover two lines.")
    text, table, *claims = list(teach(Lesson()))[:4]
    assert [found.parts[0], *found.parts[2:4]] == [text, *claims]
    assert json.dumps(vars(found.parts[1])) == json.dumps(vars(table))  # lists or tuples
    assert [type(part).__name__ for part in found.parts[4:]] == ["Panel", "Panel"]
    assert found.source == Path(__file__).read_text() and 0 < found.seconds < 60


def test_the_page(taught):
    _, _, _, folder = taught
    page, _, source = (folder / "test_lesson.html").read_text().partition("<details>")
    assert "def test_the_page" in source
    assert (
        "<h2>A title &lt;with&gt; signs</h2>" in page
        and "<p>A paragraph over two lines.</p>" in page
    )
    assert "a command" not in page
    assert (
        page.index('class="alarm">Does not hold: Breaks. 2 &gt; 1')
        < page.index("✓ Holds")
        < page.index("✗ Breaks")
    )
    assert "1 of 2 claims hold" in page
    assert page.count("<figure") == 2 and page.count('<div class="panels">') == 1  # side by side
    for label in ("x (m)", "y (s)", ">a<", ">b<", ">100<"):
        assert label in page
    assert not [
        bad
        for bad in ("http://www.w3.org/1999/xlink", "<script", 'href="http', "src=")
        if bad in page
    ]


def test_lines_differ_in_more_than_colour():
    svg = lessons.lines("c", [0, 1], {str(n): [n, n] for n in range(4)}, "x", "y").svg
    drawn = [path for path in svg.split("<path") if "clip-path" in path and "var(--s" in path]
    assert len({path.partition("stroke-dasharray")[2].partition(";")[0] for path in drawn}) == 4


def test_pictures_diverge_around_white():
    from base64 import b64decode
    from io import BytesIO

    from PIL import Image

    svg = lessons.picture("c", np.array([[-1.0, 0.0, 1.0]]), limit=1.0, side=30).svg
    pixels = np.asarray(
        Image.open(BytesIO(b64decode(svg.partition("base64,")[2].partition('"')[0]))).convert("RGB")
    )
    low, middle, high = pixels[pixels.shape[0] // 2][[5, pixels.shape[1] // 2, -5]].astype(int)
    assert middle.min() > 230 and low[2] > low[1] and high[0] > high[2]  # purple, white, orange


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"parts": [{"kind": "Nothing"}]}', '{"parts": []}', '{"parts": 3}']
)
def test_what_is_no_lesson_is_said_to_be_none(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match="holds no lesson"):
        lessons.read(tmp_path / "x.json")


def test_a_workdir_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be made" in one_line_error(
        script("lessons/softmax_1d", "--workdir", tmp_path / "file" / "x")
    )
    assert "must name a folder" in one_line_error(script("lessons/softmax_1d", "--workdir", ""))


@pytest.mark.parametrize("name", TAUGHT)
def test_lessons_say_what_they_are(name):
    module = lesson(name)
    title, _, text = module.__doc__.partition("\n")
    assert title and not title.endswith(".") and f"python experiments/lessons/{name}.py" in text


def test_help_of_a_lesson():
    done = script("lessons/cross_entropy_vs_mse", "--help")
    assert (
        done.returncode == 0 and "--workdir" in done.stdout and "Pairs of networks" in done.stdout
    )


def test_all_runs_lessons_as_processes_and_makes_one_page(tmp_path):
    assert sorted(lesson("all").LESSONS) == sorted(TAUGHT)
    (tmp_path / "softmax_1d.json").write_text("left by another run")
    done = script("lessons/all", "--only", "softmax_1d", "cross_entropy", "--workdir", tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "lessons.html").read_text()
    titles = [lesson(name).__doc__.partition("\n")[0] for name in ("softmax_1d", "cross_entropy")]
    assert [page.index(f'<h2 id="s{place}">{title}</h2>') for place, title in enumerate(titles)]
    assert [f'<a href="#s{place}">{title}</a>' in page for place, title in enumerate(titles)] == [
        True,
        True,
    ]
    assert "claims hold" in page and "Does not hold" not in page
    assert done.stdout.splitlines()[0] == "== 1/2 softmax_1d" and done.stdout.endswith(
        f"{tmp_path}/lessons.html\n"
    )


def test_all_says_what_failed_and_ends_in_1(tmp_path):
    nowhere = ("--data-dir", tmp_path / "nowhere")
    done = script(
        "lessons/all", "--only", "softmax_1d", "cnn_vs_mlp", "--workdir", tmp_path, *nowhere
    )
    assert done.returncode == 1
    assert (
        "Without a result: cnn_vs_mlp (exit status 2)." in (tmp_path / "lessons.html").read_text()
    )


def test_all_names_lessons_that_do_not_exist():
    assert "did you mean 'training'?" in one_line_error(
        script("lessons/all", "--only", "trainning")
    )
    assert "at least one; got none" in one_line_error(script("lessons/all", "--only"))
    assert "each lesson once" in one_line_error(
        script("lessons/all", "--only", "training", "training")
    )


STUB = """'''Stub

python
'''
from cnnlab.lesson import Claim, run


def teach(flags):
    yield Claim("Two is one", 2 == 1, "it is not")


if __name__ == "__main__":
    run(teach)
"""


def test_all_counts_what_is_refuted_and_takes_nothing_that_was_left(tmp_path):
    """A copy of all.py beside a lesson whose claim does not hold and one that dies where another
    run left a result.
    """
    (tmp_path / "all.py").write_text((LESSONS / "all.py").read_text())
    (tmp_path / "softmax_1d.py").write_text(STUB)
    (tmp_path / "training.py").write_text("raise SystemExit(3)")
    with pytest.raises(SystemExit):
        lessons.run(teach, args=["--workdir", str(tmp_path)])
    (tmp_path / "test_lesson.json").rename(tmp_path / "training.json")
    command = [
        sys.executable,
        tmp_path / "all.py",
        "--only",
        "softmax_1d",
        "training",
        "--workdir",
        tmp_path,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and "1 claims do not hold, 1 lessons failed" in done.stdout
    page = (tmp_path / "lessons.html").read_text()
    assert "0 of 1 claims hold" in page and "Without a result: training (exit status 3)." in page
    (tmp_path / "training.py").write_text(STUB.replace("2 == 1", "True"))
    done = subprocess.run(
        [*command[:3], "training", *command[5:]], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [*command[:3], "softmax_1d", *command[5:]], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1 and "1 claims do not hold, 0 lessons failed" in done.stdout
