"""How long networks have to be trained until they overfit: what the claims' setting was chosen by.

The claims are about networks that are trained to the end. For the seed network and for ResNet-20,
on a fifth of CIFAR-10: the first epoch whose training accuracy is above 99 % where all labels are
right, and how many of the wrong labels are memorised where 40 % are wrong. The claims are tested in
the cheapest setting that reaches both, 99 % and 90 %. One seed, one learning rate: a pilot, not a
claim.

    python experiments/replications/pilot.py --data-dir DIR
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cnnlab import cli
from cnnlab.study.arms import parse_arm
from cnnlab.study.plan import MOST_LOOKED_AT, MOST_SEEDS, MOST_TUNING_SEEDS
from cnnlab.study.replication import Replication

if TYPE_CHECKING:
    from cnnlab.study.statements import Values

CLEAN, NOISY = "label noise 0.0", "label noise 0.4"
FITTED = "epochs_to_fit_99_percent"
HEAD = ("setting", "epochs to 99 %", "wrong labels memorised", "test accuracy", "ECE", "seconds")


@dataclass(frozen=True)
class Pilot(Replication):
    """Find how long networks have to be trained until they overfit."""

    arms: tuple[str, ...] = (
        "epochs=30 model=cnn",
        "epochs=60 model=cnn",
        "epochs=60 model=cnn augment=flip",
        "epochs=60 model=resnet20",
    )
    label_noise: tuple[float, ...] = (0.0, 0.4)
    seeds: Annotated[int, f"[1, {MOST_SEEDS}]"] = 1
    """How many."""
    until: Annotated[str, ("decided",)] | None = None
    max_seeds: Annotated[int, f"[1, {MOST_LOOKED_AT}]"] | None = None
    tune: tuple[str, ...] = ()
    tune_seeds: Annotated[int, f"[1, {MOST_TUNING_SEEDS}]"] | None = None


def main(study: Pilot) -> None:
    from cnnlab import files
    from cnnlab.study import driver, measures
    from cnnlab.training import run_folder

    folder = files.expanded(study.workdir).absolute() / "pilot"
    results = driver.conduct(study, run_folder.command(), folder)
    if results is None:
        return
    values = measures.table(results, [FITTED, "accuracy", "ece"])
    for place, of_arm in measures.table(results, ["memorised"], NOISY).items():
        values[place] |= of_arm
    files.write_text(folder / "pilot.csv", measures.text(values))
    print(*lines(values), folder / "pilot.csv", sep="\n")


def lines(values: Values) -> list[str]:
    """Write the table of the pilot in Markdown."""
    rows = [HEAD, ("---",) * len(HEAD)]
    for arm in dict.fromkeys(arm for _, arm in values):
        clean, noisy = values[CLEAN, arm], values[NOISY, arm]
        reached, epochs = clean[FITTED][0], parse_arm(arm)["epochs"]
        rows.append(
            (
                arm,
                f"{reached:.0f}" if reached <= epochs else "not reached",
                f"{noisy['memorised'][0]:.1%}",
                f"{clean['accuracy'][0]:.1%}; {noisy['accuracy'][0]:.1%}",
                f"{clean['ece'][0]:.1%}; {noisy['ece'][0]:.1%}",
                f"{clean['seconds'][0]:.0f}; {noisy['seconds'][0]:.0f}",
            )
        )
    return [f"| {' | '.join(row)} |" for row in rows]


if __name__ == "__main__":
    cli.main(main, Pilot)
