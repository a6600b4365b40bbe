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
from cnnlab.study.choices import most_central
from cnnlab.study.ranges import parse_ranges, points
from cnnlab.study.report.numbers import number_of

ALPHA = 0.05
COMPARISONS = 6
LOOKED_AT = 48  # seeds of the null families
BLOCK = 4  # seeds that ablate.py trains at once
PATTERNS = 11  # seeds of the enumeration
# In standard deviations, as in earlier replications: GCE at two rates, NCE+RCE, the long
# tail, the Brier score, and a loss against itself
EFFECTS = (3.1, 1.5, 2.0, 9.0, 7.8, 0.4)
# Some of them have an effect, the others none: what is known of one must not spoil the others
MIXED = (3.0, 2.0, 1.5, 1.0, 0.5, 0.0)
# Tuning: standard deviations that a decade from the best value costs, from flat to steep
COSTS = (0.25, 1.0, 4.0, 16.0, 64.0)
TUNED = ("learning_rate", "loss.gamma", "optimizer.weight_decay")
TUNED_ARMS = 3  # besides the baseline
DECADES = 3
PER_SEED = 0


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
    for number, trials in ((1, 8), (1, 16), (2, 16), (2, 32), (3, 16)):
        for seeds in (1, 4, 8, PER_SEED):
            yield _tuned(rng, arguments.families, number, trials, seeds)
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


def _tuned(rng: np.random.Generator, families: int, number: int, trials: int, seeds: int) -> Row:
    """Tune arms that are equal, then compare them: the worst of several costs of a wrong choice.

    Args:
      rng: of the draws.
      families: of one baseline and three arms, for each cost.
      number: of hyperparameters.
      trials: of each arm.
      seeds: that each trial has; PER_SEED: those of the comparison, each with its own choice.
    """
    false = [_tuned_at(rng, families, number, trials, seeds, cost) for cost in COSTS]
    how = "per seed" if seeds == PER_SEED else f"with {number_of(seeds, 'seed')}"
    return Row(
        f"equal arms, {number_of(number, 'hyperparameter')} tuned {how}, {trials} trials",
        {"false better or worse, of three": max(false)},
    )


def _tuned_at(
    rng: np.random.Generator, families: int, number: int, trials: int, seeds: int, cost: float
) -> float:
    """Count families with a false verdict where a decade from the best value costs so many standard
    deviations over seeds. The best value lies somewhere within the middle two thirds of three
    decades; three quarters of the variance over seeds is common to all networks of a seed.
    """
    words = tuple(f"{name}=1e-4..1e-1" for name in TUNED[:number])
    ranges = parse_ranges(words)
    places = np.array([[r.share(p[r.name]) for r in ranges] for p in points(ranges, trials)])
    best = rng.uniform(1 / 6, 5 / 6, (families, 1, number))
    lost = -cost * DECADES**2 * np.sum((places - best) ** 2, -1)  # [families, trials]
    scored = LOOKED_AT if seeds == PER_SEED else seeds
    scores = lost[:, None, :, None] + _noise(rng, (families, 1 + TUNED_ARMS, trials, scored))
    if seeds == PER_SEED:
        chosen = scores.argmax(2)
    else:
        flat = scores.reshape(-1, trials, scored)
        chosen = np.array([most_central(arm, places) for arm in flat])
        chosen = chosen.reshape(families, 1 + TUNED_ARMS, 1)
    reached = np.take_along_axis(np.broadcast_to(lost[:, None], scores.shape[:3]), chosen, 2)
    tested = reached + _noise(rng, (families, 1 + TUNED_ARMS, LOOKED_AT))
    decided = _decide(tested[:, 1:] - tested[:, :1], 1e-6)
    return float(np.mean(np.any(decided.p <= _level(), -1)))


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw what networks [families, arms, ..., seeds] differ by, with variance 1."""
    common = rng.standard_normal((shape[0], *[1] * (len(shape) - 2), shape[-1]))
    return np.sqrt(0.75) * common + np.sqrt(0.25) * rng.standard_normal(shape)


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
