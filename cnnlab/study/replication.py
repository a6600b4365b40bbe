"""A published claim, put to the test: a study whose statements, and the rules that decide them, are
written before the run (`cnnlab.study.statements`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cnnlab import files
from cnnlab.config import Training, flag
from cnnlab.errors import InputError
from cnnlab.study.plan import MOST_LOOKED_AT, MOST_SEEDS, MOST_TRIALS, MOST_TUNING_SEEDS, Study
from cnnlab.training import run_folder

if TYPE_CHECKING:
    from cnnlab.study.results import Results
    from cnnlab.study.statements import Judged, Statement, Values

# What a claim is about
FIXED = (
    *("losses", "arms", "label_noise", "long_tail", "fraction", "vary"),
    *("metric", "margin", "baseline", "alpha"),
)
ALWAYS = ("accuracy", "train_accuracy")  # measures that are of interest in every claim
# The cheapest setting of the pilot (experiments/replications/pilot.py) in which networks overfit.
TRAINING = partial(
    Training,
    dataset="cifar10+fraction,share=0.2",
    validation=0.04,
    split_seed=None,
    compute_dtype="bfloat16",
    optimizer="sgd,momentum=0.9",
    learning_rate=0.05,
    augment="none",
    epochs=30,
)


@dataclass(frozen=True)
class Replication(Study):
    """Test a claim with networks that are trained until they overfit, as the pilot found for two
    CPU cores: the seed network, a fifth of CIFAR-10, no augmentation. Each loss has its own
    learning rate and weight decay, tuned with the same budget.
    """

    training: Training = field(default_factory=TRAINING)
    seeds: Annotated[int, f"[1, {MOST_SEEDS}]"] = 12
    """How many to begin with."""
    until: Annotated[str, ("decided",)] | None = "decided"
    """decided: add blocks of seeds to the arms of undecided statements, until all hold or are
    refuted. None: train --seeds."""
    max_seeds: Annotated[int, f"[1, {MOST_LOOKED_AT}]"] | None = 24
    """The most that --until decided takes. None: 32."""
    tune: tuple[str, ...] = ("learning_rate=0.005..0.5", "optimizer.weight_decay=1e-5..1e-2")
    """Before the comparison, choose hyperparameters on the validation split, for each arm under
    each condition, by accuracy."""
    budget: Annotated[int, f"[2, {MOST_TRIALS}]"] = 8
    """How many values --tune tries, the same number for every arm."""
    tune_seeds: Annotated[int, f"[1, {MOST_TUNING_SEEDS}]"] | None = 2
    """Seeds that each value is tried with, none of the study's own. None: 4."""
    workdir: str = "runs/replications"
    """Folder of the results; replications share the cells that they have in common."""

    def __post_init__(self) -> None:
        super().__post_init__()
        claim = type(self)
        for name in FIXED:
            if claim is not Replication and getattr(self, name) != getattr(claim, name):
                raise InputError(
                    f"the claim is about {getattr(claim, name)}: {flag(name)} cannot be changed"
                )
        if not self.training.validation:
            raise InputError(
                "--validation must be above 0: claims are about accuracies on that split too"
            )


def replicate(study: Replication, statements: Callable[[], Sequence[Statement]], name: str) -> None:
    """Train the study until its statements are decided, write its report, and print and store the
    verdict on each of them with the numbers of every network.

    Args:
      study: whose results are judged.
      statements: returns those of the claim.
      name: of the replication, for its folder of reports and its table.
    """
    from cnnlab.study import driver, measures, report
    from cnnlab.study.results import EXPLORATORY

    claim = Claim(study, statements())
    measures.check(study, claim.measures)
    folder = files.expanded(study.workdir).absolute() / name
    command = run_folder.command()
    claim.write(folder / "statements.json")
    results = driver.conduct(study, command, folder, undecided=claim.undecided)
    if results is None:
        return
    report.write(results, folder)
    deviations = [*results.family.deviations, *claim.deviations(folder / "statements.json")]
    judged = claim.judge(results)
    if deviations:  # numbers to look at
        judged = [replace(line, verdict=EXPLORATORY) for line in judged]
    for line in judged:
        print(
            f"{line.verdict.upper():<11} {line.statement.text}\n            {line.numbers}",
            flush=True,
        )
    rows = [
        {"statement": line.statement.text, "verdict": line.verdict, "numbers": line.numbers}
        for line in judged
    ]
    stored = {"statements": rows, "command": command, "deviations": deviations}
    files.write_json(folder / "verdict.json", stored)
    print(folder / "verdict.json")
    if not deviations:
        files.write_text(folder / f"{name}.csv", measures.text(claim.table(results)))
        print(folder / f"{name}.csv")


@dataclass(frozen=True)
class Claim:
    """The statements of a claim about a study.

    Attributes:
      study: that decides them.
      statements: of the claim, one family.
    """

    study: Study
    statements: Sequence[Statement]

    @property
    def measures(self) -> list[str]:
        """What is measured of every network."""
        sides = [side for statement in self.statements for side in statement.sides]
        return list(dict.fromkeys([*ALWAYS, *(side.measure for side in sides)]))

    def table(self, results: Results) -> Values:
        """Collect what the statements are about, of every network."""
        from cnnlab.study import measures

        return measures.table(results, self.measures)

    def judge(self, results: Results) -> list[Judged]:
        """Judge the statements."""
        from cnnlab.study import statements

        return statements.judge(self.statements, self.table(results), self.study.alpha)

    def undecided(self, results: Results) -> list[tuple[str, str]]:
        """List the arms of the statements that more seeds may decide, each with its condition."""
        return [
            (side.arm, line.statement.condition)
            for line in self.judge(results)
            if line.is_open
            for side in line.statement.sides
        ]

    def write(self, path: Path) -> None:
        """Write the statements down, unless they are."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            written = [statement.written() for statement in self.statements]
            files.write_sealed(path, {"statements": written})

    def deviations(self, path: Path) -> list[str]:
        """List in words what the statements are otherwise than was written before the run.

        Raises:
          InputError: the file is not there, or is damaged.
        """
        try:
            planned = files.read_sealed(path)["statements"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path} cannot be read ({error}): restore it") from error
        written = [statement.written() for statement in self.statements]
        same = json.loads(json.dumps(written)) == planned
        return [] if same else ["other statements than were written before the run"]
