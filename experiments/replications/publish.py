"""The verdicts on the claims, as tables and a picture, from the numbers of every network that lie
in results/.

After a replication has ended: copy its table, such as smoothing.csv in runs/replications/smoothing,
to results/ and run this. It judges every claim anew, writes the tables into README.md and the pages
of the claims, between the lines that mark them, and draws results/verdicts.png. Nothing is trained.

    python experiments/replications/publish.py
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cnnlab import cli, files

if TYPE_CHECKING:
    from cnnlab.study.statements import Judged, Values

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- verdicts -->", "<!-- end of verdicts -->"
PICTURE = "verdicts.png"
VERDICT = ("statement", "verdict", "difference", "in words", "seeds")
TRIALS = 16  # networks that an arm was tuned with
NETWORK = "seed network, 9,600 images, 30 epochs"
# Claims in their order, each with the setting in which it was published, and with ours.
SETTINGS = {
    "early_training": ("taught; no source", NETWORK),
    "underfitting": ("ResNet-34, CIFAR-10, 120 epochs", NETWORK),
    "label_noise": ("8 to 34 layers, CIFAR-10, 120 epochs", NETWORK),
    "calibration": ("ResNet-50, CIFAR-10, 350 epochs", NETWORK),
    "long_tail": (
        "ResNet-32, CIFAR-10 100:1, 200 epochs",
        "seed network, CIFAR-10 100:1, 30 epochs",
    ),
    "squared_loss": ("wide ResNet, CIFAR-10", NETWORK),
    "same_loss": ("a test of the procedure", NETWORK),
    "smoothing": ("ResNet-56, CIFAR-100", NETWORK),
    "bi_tempered": ("ResNet-56, CIFAR-100", NETWORK),
}


@dataclass(frozen=True)
class Arguments:
    """Write the tables of verdicts from the numbers in results/."""

    folder: str = str(FOLDER)
    """Folder of the replications."""


@dataclass(frozen=True)
class Published:
    """A claim whose networks are trained.

    Attributes:
      name: of its script.
      letter: of the claim, such as (b).
      values: of its networks.
      judged: its statements.
    """

    name: str
    letter: str
    values: Values
    judged: Sequence[Judged]

    @property
    def link(self) -> str:
        """A link to its page."""
        return f"[{self.letter}](results/{self.name}.md)"


def read(folder: Path) -> list[Published]:
    """Read and judge all claims whose numbers are there."""
    from cnnlab.study import measures, statements

    sys.path.insert(0, str(FOLDER))
    published = []
    for name in SETTINGS:
        table = folder / "results" / f"{name}.csv"
        if not table.exists():
            continue
        script = importlib.import_module(name)
        letter = re.findall(r"Claim (\(\w\))", script.__doc__ or "")[0]
        values = measures.read(table)
        judged = statements.judge(script.statements(), values)
        published.append(Published(name, letter, values, judged))
    return published


def overview(claims: Sequence[Published]) -> list[str]:
    """Write the tables of all statements, and of what their claims took."""
    verdicts = [
        (claim.link, judged.statement.text, *_verdict(judged))
        for claim in claims
        for judged in claim.judged
    ]
    settings = [(claim.link, *SETTINGS[claim.name], compute(claim.values)) for claim in claims]
    return [
        *table(("claim", *VERDICT), verdicts),
        "",
        *table(("claim", "published for", "here", "compute"), settings),
    ]


def page(claim: Published) -> list[str]:
    """Write the tables of a claim: its statements, its arms, what it took."""
    verdicts = [(judged.statement.text, *_verdict(judged)) for judged in claim.judged]
    return [
        *table(VERDICT, verdicts),
        "",
        *arms(claim.values),
        "",
        f"Compute: {compute(claim.values)}.",
    ]


def _verdict(judged: Judged) -> tuple[str, str, str, str]:
    """Return a statement's cells under VERDICT, but for the first."""
    c = judged.comparison
    seeds = f"{c.n}, decided at {c.decided}" if c.decided else str(c.n)
    difference = f"{judged.difference} {judged.statement.unit}"
    return f"**{judged.verdict}**", difference, c.words, seeds


def arms(values: Values) -> list[str]:
    """Write a table of the arms: what was chosen for them, and the mean of each measure."""
    measures = list(dict.fromkeys(name for of_arm in values.values() for name in of_arm))
    measures = [name for name in measures if name not in ("seed", "images", "seconds")]
    rows = []
    for (condition, arm), of_arm in values.items():
        means = [f"{np.nanmean(of_arm[name]):.4g}" if name in of_arm else "" for name in measures]
        rows.append((condition, f"`{arm}`", str(len(of_arm["seed"])), *means))
    return table(
        ("condition", "arm", "seeds", *(name.replace("_", " ") for name in measures)), rows
    )


def compute(values: Values) -> str:
    """Write how many networks were trained, and how long."""
    networks = sum(len(of_arm["seed"]) for of_arm in values.values())
    hours = sum(of_arm["seconds"].sum() for of_arm in values.values()) / 3600
    tuned = [of_arm["seconds"].mean() for of_arm in values.values() if "learning_rate" in of_arm]
    tuning = TRIALS * sum(tuned) / 3600
    images = max(of_arm["images"].max() for of_arm in values.values())
    return (
        f"{networks} networks of {images:,.0f} images, {hours:.1f} hours of a core; "
        f"{TRIALS * len(tuned)} for tuning, about {tuning:.1f} hours"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Write a table in Markdown."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def replaced(text: str, lines: Sequence[str]) -> str:
    """Put lines between the marks of a text."""
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise cli.Stopped(f"no line {BEGIN} and {END} to write between", 1)
    return "\n".join([before + BEGIN, *lines, END + after])


def pages(folder: Path, claims: Sequence[Published]) -> dict[Path, str]:
    """Return the text of README.md, of the page of every claim, and of the pilot's."""
    from cnnlab.study import measures

    contents = {folder / "README.md": overview(claims)}
    contents |= {folder / "results" / f"{claim.name}.md": page(claim) for claim in claims}
    if (folder / "results/pilot.csv").exists():
        numbers = measures.read(folder / "results/pilot.csv")
        pilot = importlib.import_module("pilot")
        contents[folder / "results/pilot.md"] = pilot.lines(numbers)
    return {path: replaced(_text(path), lines) for path, lines in contents.items()}


def _text(path: Path) -> str:
    """Read a page; a new one has nothing but the marks."""
    return path.read_text() if path.exists() else f"# {path.stem}\n\n{BEGIN}\n{END}\n"


def main(arguments: Arguments) -> None:
    from cnnlab import plots

    folder = Path(arguments.folder)
    claims = read(folder)
    for path, text in pages(folder, claims).items():
        files.write_text(path, text)
        print(path)
    rows = [
        plots.Interval(f"{claim.letter} {judged.statement.text}", judged.verdict, *_margins(judged))
        for claim in claims
        for judged in claim.judged
    ]
    plots.intervals(rows, folder / "results" / PICTURE)
    print(folder / "results" / PICTURE)


def _margins(judged: Judged) -> tuple[float, float, float]:
    c = judged.comparison
    return c.low, c.mean, c.high


if __name__ == "__main__":
    cli.main(main, Arguments)
