"""How often a study's verdicts are wrong, and how many seeds they take, on drawn differences.

    python experiments/benchmarks/verdicts.py
    python experiments/benchmarks/verdicts.py --families 200 --json verdicts.json

Every family is looked at after each seed from the eighth on, as `ablate.py --until decided` may be.
Differences are drawn in units of their standard deviation over seeds.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from cnnlab import cli
from cnnlab.config import Settings, check
from cnnlab.study import sequential

ALPHA = 0.05
COMPARISONS = 6
LOOKED_AT = 48  # seeds of the null families
BLOCK = 4  # seeds that ablate.py trains at once
PATTERNS = 11  # seeds of the enumeration
# In standard deviations, as in the replications of the README: GCE at two rates, NCE+RCE, the long
# tail, the Brier score, and a loss against itself
EFFECTS = (3.1, 1.5, 2.0, 9.0, 7.8, 0.4)
# Some of them have an effect, the others none: what is known of one must not spoil the others
MIXED = (3.0, 2.0, 1.5, 1.0, 0.5, 0.0)


@dataclass(frozen=True)
class Arguments(Settings):
    """Measure the errors and the cost of verdicts."""

    families: Annotated[int, "[1, 20000]"] = 2000
    """Drawn for each row of the table."""
    seed: int = 0
    """Of the draws."""
    json: str | None = None
    """File to write the figures to."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Row:
    """A line of the table: what was drawn, and the figures."""

    what: str
    figures: dict[str, float]


def _shared(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    families, _, seeds = shape
    baseline = rng.standard_normal((families, 1, seeds))
    return rng.standard_normal(shape) - baseline


def _outliers(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    return rng.standard_normal(shape) * np.where(rng.random(shape) < 0.05, 50, 1)


def _diverged(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    side = np.sign(rng.standard_normal(shape))
    return np.where(rng.random(shape) < 0.1, np.inf * side, rng.standard_normal(shape))


def _uneven(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    return rng.standard_normal(shape) * np.exp(rng.standard_normal(shape[-1:]))


NOISES: dict[str, Callable[[np.random.Generator, tuple[int, int, int]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "normal, one baseline for all": _shared,
    "uniform": lambda rng, shape: rng.uniform(-1, 1, shape),
    "Laplace": lambda rng, shape: rng.laplace(size=shape),
    "Student's t, 3 degrees of freedom": lambda rng, shape: rng.standard_t(3, shape),
    "Cauchy": lambda rng, shape: rng.standard_cauchy(shape),
    "ties": lambda rng, shape: np.round(2 * rng.standard_normal(shape)) / 2,
    "5 % outliers of 50 standard deviations": _outliers,
    "another spread at each seed": _uneven,
    "10 % diverged": _diverged,
}


def rows(arguments: Arguments) -> Iterator[Row]:
    """Measure the table row by row."""
    rng = np.random.default_rng(arguments.seed)
    shape = (arguments.families, COMPARISONS, LOOKED_AT)
    for name, noise in NOISES.items():
        decided = _decide(noise(rng, shape), 1e-6)
        false = np.any(decided.p <= _level(), -1)
        yield Row(f"no effect: {name}", {"false better or worse": float(np.mean(false))})
    yield _at_the_margin(rng, shape)
    yield _together(rng, shape)
    for effect, comparisons in itertools.product((1.0, 4.0, 8.0), (1, 3, 6, 12)):
        yield _power(rng, arguments.families, effect, comparisons)
    for most in (32, 64):
        yield _cost(rng, arguments.families, most)
    yield Row(f"all 2^{PATTERNS} signs of the same sizes", {"mean evidence - 1": _unfairness()})


def _level() -> float:
    return ALPHA * (1 + sequential.ROUNDING)


def _decide(
    differences: np.ndarray, margin: float, comparisons: int | None = None
) -> sequential.Decisions:
    return sequential.decide(differences, margin, comparisons, ALPHA)


def _at_the_margin(rng: np.random.Generator, shape: tuple[int, int, int]) -> Row:
    """Half of the arms differ by exactly the margin, which is neither nothing nor equivalent."""
    at_margin = np.arange(COMPARISONS) % 2 == 0
    decided = _decide(rng.standard_normal(shape) + at_margin[:, None], 1.0)
    differs = (decided.p <= _level())[:, ~at_margin]
    equivalent = (decided.p_equivalent <= _level())[:, at_margin]
    return Row(
        "half of the arms at the margin, the others without effect",
        {
            "false better or worse": float(np.mean(differs.any(-1))),
            "false equivalent": float(np.mean(equivalent.any(-1))),
        },
    )


def _together(rng: np.random.Generator, shape: tuple[int, int, int]) -> Row:
    """Measure how often some interval of a family misses its centre at some look."""
    centres = np.array(MIXED)
    differences = rng.standard_normal(shape) + centres[:, None]
    p = sequential.p_value(differences, centres, COMPARISONS / ALPHA)
    missed = p <= ALPHA / COMPARISONS * (1 + sequential.ROUNDING)
    return Row(
        f"effects of {', '.join(map(str, MIXED))} sd",
        {"some interval of the family misses, at some look": float(np.mean(missed.any(-1)))},
    )


def _power(rng: np.random.Generator, families: int, effect: float, comparisons: int) -> Row:
    """One comparison has an effect; the others of its family are not decided."""
    most = 32
    decided = _decide(rng.standard_normal((families, 1, most)) + effect, 1e-6, comparisons)
    seeds = np.where(decided.seeds, decided.seeds, most)
    return Row(
        f"effect of {effect:g} sd, one of {comparisons}, at most {most} seeds",
        {"mean seeds": float(seeds.mean()), "power": float(np.mean(decided.seeds > 0))},
    )


def _cost(rng: np.random.Generator, families: int, most: int) -> Row:
    """Count the runs of a study: those of each arm until it is decided, and of the baseline until
    all are.
    """
    effects = np.array(EFFECTS)[:, None]
    differences = rng.standard_normal((families, COMPARISONS, most)) + effects
    decided = _decide(differences, 1.0).seeds
    seeds = np.where(decided, decided, most)
    blocks = -(-seeds // BLOCK) * BLOCK
    fixed = {n: _decide(differences[..., :n], 1.0).seeds > 0 for n in (16, 32)}
    return Row(
        f"effects of {', '.join(map(str, EFFECTS))} sd, margin 1 sd, at most {most} seeds",
        {
            "runs": float(np.mean(seeds.sum(-1) + seeds.max(-1))),
            "runs in blocks of 4": float(np.mean(blocks.sum(-1) + blocks.max(-1))),
            "decided": float(np.mean(decided > 0)),
            **{f"decided by {n} seeds": float(share.mean()) for n, share in fixed.items()},
        },
    )


def _unfairness() -> float:
    """Compute the largest |mean evidence - 1| over all signs of some sizes, at every look."""
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=PATTERNS)))
    sizes = np.array(
        [
            [0.3, 0.7, 1.1, 0.2, 0.9, 1.4, 0.5, 0.8, 0.6, 1.0, 1.2],
            [1.0, 1.0, 1.0, 2.0, 2.0, 0.0, 0.0, 1.0, 1.0, 2.0, 0.0],
            [0.3, 0.7, 50.0, 0.2, 0.9, 1.4, 0.5, 0.8, 90.0, 1.0, 1.2],
            [0.3, np.inf, 1.1, 0.2, 0.9, 1.4, 0.5, 0.8, 0.6, np.inf, 1.2],
        ]
    )
    capital = sequential.evidence(sizes[:, None] * signs, 0.0, COMPARISONS / ALPHA)
    return float(np.max(np.abs(capital.mean(1) - 1)))


def main(arguments: Arguments) -> None:
    cli.writable(arguments.json)
    print("| drawn | measured |\n|---|---|", flush=True)
    measured = []
    for row in rows(arguments):
        figures = "; ".join(f"{name} {value:.3g}" for name, value in row.figures.items())
        print(f"| {row.what} | {figures} |", flush=True)
        measured.append({"drawn": row.what, **row.figures})
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    cli.main(main, Arguments)
