"""What tuning chooses for an arm: the ranges that are its own, its configuration with values of
them, and the choice.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence

import numpy as np

from cnnlab.config import Config, Recipe
from cnnlab.errors import InputError
from cnnlab.parts import resolve
from cnnlab.spec import Part, Spec
from cnnlab.study import plan
from cnnlab.study.plan import Study
from cnnlab.study.ranges import Point, Range, is_whole, parse_ranges, points
from cnnlab.study.records import Trial

ROUNDING = 1e-9  # of scores: differences within it are none


def ranges_of(study: Study, recipe: Recipe) -> tuple[Range, ...]:
    """Return the ranges of the hyperparameters that an arm has.

    Args:
      study: whose `tune` names them.
      recipe: of the arm under a condition.

    Raises:
      InputError: the arm sets one of them itself, though it has a default, or several of its parts
        have it.
    """
    if not study.tune:
        return ()
    found = []
    parts = resolve(recipe)
    for tuned in parse_ranges(study.tune):
        if not tuned.hyperparameter:
            found.append(tuned)
            continue
        holders = [
            part
            for part in parts.of_setting(tuned.setting)
            if tuned.hyperparameter in part.hyperparameters()
        ]
        for part in holders:
            default = part.parameters[tuned.hyperparameter].default
            is_set = tuned.hyperparameter in part.keywords
            if is_set and default is not inspect.Parameter.empty:
                raise InputError(
                    f"--tune chooses {tuned.name}: {tuned.setting} {part} cannot set it too"
                )
            found.append(dataclasses.replace(tuned, is_whole=part.is_whole(tuned.hyperparameter)))
    return tuple(found)


def check(study: Study, recipes: Mapping[str, Recipe]) -> None:
    """Refuse ranges that no arm has, or that reach beyond what is allowed.

    Args:
      study: to tune.
      recipes: of its arms under its conditions, by what they are called.

    Raises:
      InputError: there is one.
    """
    names = set()
    for name, recipe in recipes.items():
        for ends in ends_of(study, recipe):
            try:
                resolve(ends)
            except InputError as error:
                raise InputError(f"--tune, arm '{name}': {error}") from error
        names |= {tuned.name for tuned in ranges_of(study, recipe)}
    for tuned in parse_ranges(study.tune):
        if tuned.name not in names:
            raise InputError(
                f"--tune {tuned}: no arm's {tuned.setting} has a hyperparameter "
                f"{tuned.hyperparameter}"
            )


def ends_of(study: Study, recipe: Recipe) -> list[Recipe]:
    """Return an arm with the lowest and with the highest values of all its ranges.

    Raises:
      InputError: a value is out of its hyperparameter's range, or no whole number lies in a range.
    """
    ranges = ranges_of(study, recipe)
    for tuned in ranges:
        if tuned.is_whole and math.ceil(tuned.low) > math.floor(tuned.high):
            raise InputError(f"--tune {tuned}: it takes whole numbers, and none lies there")
    return [with_point(recipe, {r.name: r.value(share) for r in ranges}) for share in (0.0, 1.0)]


def identity(study: Study, recipe: Recipe) -> list[object]:
    """Return all that an arm's choice depends on besides the arm; nothing where it has none."""
    ranges = ranges_of(study, recipe)
    if not ranges:
        return []
    seeds: object = "its own" if study.tune_per_seed else list(plan.tuning_seeds(study))
    return [
        [[tuned.name, tuned.low, tuned.high] for tuned in ranges],
        study.budget,
        seeds,
        study.metric,
    ]


def tried(study: Study, recipe: Recipe) -> list[Point]:
    """List the values that are tried for an arm."""
    return points(ranges_of(study, recipe), study.budget)


def with_point(recipe: Recipe, point: Point) -> Recipe:
    """Set the values of a point in a recipe.

    Raises:
      InputError: one is out of its range.
    """
    parts = resolve(recipe)
    settings = {}
    hyperparameters = {}
    for name, value in point.items():
        hyperparameter = name.partition(".")[2]
        if not hyperparameter:
            settings[name] = int(value) if is_whole(name) else value
        elif parts.holder(name).is_whole(hyperparameter):
            hyperparameters[name] = int(value)
        else:
            hyperparameters[name] = value
    written = parts.with_values(hyperparameters).specs(_as_written)
    changed = {name.partition(".")[0] for name in hyperparameters}
    return dataclasses.replace(recipe, **settings, **{name: written[name] for name in changed})


def _as_written(part: Part) -> Spec:
    return Spec(part.name, part.keywords)


def for_seeds(config: Config, chosen: Sequence[Point]) -> tuple[Config, dict[str, list[float]]]:
    """Set what was chosen for the seeds of a cell.

    Returns:
      The configuration, and the values of which each seed has another, by name: they are data.
    """
    differing = {
        name: [point[name] for point in chosen]
        for name in chosen[0]
        if len({point[name] for point in chosen}) > 1
    }
    return dataclasses.replace(config, recipe=with_point(config.recipe, chosen[0])), differing


def choose(study: Study, trials: Sequence[Trial], seeds: Sequence[int]) -> list[Point]:
    """Choose the values of each seed of a cell, {} where nothing was tried: with `tune_per_seed`
    those of the trial with the best score of that seed, else of the one that is `most_central`.

    Trials that diverged with any of the seeds are left out. If all did, it is one that did least
    often, of those the lowest, which diverges as untuned values would: the study continues.
    """
    if not trials:
        return [{} for _ in seeds]
    scores = np.array([[np.nan if s is None else s for s in trial.scores] for trial in trials])
    if not plan.metric(study).larger_is_better:
        scores = -scores
    ranges = parse_ranges(study.tune)
    ranges = [tuned for tuned in ranges if tuned.name in trials[0].values]
    places = np.array([[r.share(trial.values[r.name]) for r in ranges] for trial in trials])
    if not study.tune_per_seed:
        return [trials[_chosen(scores, places)].values] * len(seeds)
    return [trials[_chosen(scores[:, [i]], places)].values for i in range(len(seeds))]


def _chosen(scores: np.ndarray, places: np.ndarray) -> int:
    """Choose a trial by scores float64[trials, seeds]: larger ones are better, NaN diverged."""
    diverged = np.isnan(scores).sum(1)
    sound = np.flatnonzero(diverged == 0)
    if not len(sound):
        return int(np.lexsort((*places.T[::-1], diverged))[0])
    return int(sound[most_central(scores[sound], places[sound])])


def most_central(scores: np.ndarray, places: np.ndarray) -> int:
    """Choose among trials the one at the centre of those that could be the best.

    A trial's weight is exp(-(b - m)^2 / 2 s^2), where m is its mean score over the seeds, b that of
    the best trial and s the standard error of such a difference, pooled over the better half of the
    trials. Of those within 2 s it is the trial nearest to the weighted mean of their places. Where
    many are close to the best mean score, it is largely luck which has it; the centre uses them all
    (simulated in experiments/benchmarks/verdicts.py). With one seed there is no s, and the best is
    taken.

    Args:
      scores: float64[trials, seeds], finite; larger ones are better.
      places: float64[trials, hyperparameters], each from 0 to 1 along its range.

    Returns:
      The number of the trial.
    """
    means = scores.mean(1)
    trials, seeds = scores.shape
    if trials < 3 or seeds < 2:
        return int(np.argmax(means))
    better = scores[np.argsort(-means, kind="stable")[: -(-trials // 2)]]
    noise = better - better.mean(1, keepdims=True) - better.mean(0) + better.mean()
    variance = np.sum(noise**2) / ((len(better) - 1) * (seeds - 1))
    error = max(np.sqrt(2 * variance / seeds), ROUNDING * np.max(np.abs(means)), ROUNDING)
    behind = (means.max() - means) / error
    weights = np.exp(-(behind**2) / 2)
    centre = weights @ places / weights.sum()
    distances = np.sum((places - centre) ** 2, 1)
    return int(np.argmin(np.where(behind <= 2, distances, np.inf)))
