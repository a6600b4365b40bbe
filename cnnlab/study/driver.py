"""A study from its announcement to its results: which cells are trained, when, and until when."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cnnlab import files
from cnnlab.console import Console
from cnnlab.errors import InputError, unknown
from cnnlab.multihost import agree, processes
from cnnlab.spec import Part
from cnnlab.study import folder as folders
from cnnlab.study import manifest as manifests
from cnnlab.study import on_ray, plan, report, sequential
from cnnlab.study.board import Board
from cnnlab.study.cells import Job
from cnnlab.study.checks import check
from cnnlab.study.folder import Cell
from cnnlab.study.manifest import Arms, Manifest
from cnnlab.study.pairing import refuse_other_data
from cnnlab.study.plan import Study
from cnnlab.study.records import CellResult
from cnnlab.study.report.numbers import number_of
from cnnlab.study.results import ArmResult, Family, Results, decide
from cnnlab.study.tuning import WAIT_SECONDS
from cnnlab.training.signals import pause

Look = Callable[[Results], object]
Undecided = Callable[[Results], Iterable[tuple[str, str]]]
"""results so far -> (arm, condition in words) of all that need more seeds"""


def not_decided(results: Results) -> list[tuple[str, str]]:
    """List the arms that are not decided by the study's metric, and their baselines."""
    return [
        (arm, plan.label(verdict.condition))
        for verdict in decide(results)
        if not verdict.comparison.decided
        for arm in (verdict.arm, plan.baseline(results.study))
    ]


def conduct(
    study: Study,
    command: str,
    plan_folder: Path | None = None,
    look: Look | None = None,
    undecided: Undecided = not_decided,
) -> Results | None:
    """Announce a study, train it and show its progress; otherwise as `run`."""
    study = with_baseline(study)
    board = Board(study.progress, study.training.epochs)
    for line in announcement(study):
        board.say(line)
    return run(study, board, command, plan_folder, look, undecided)


def run(
    study: Study,
    board: Board,
    command: str,
    plan_folder: Path | None = None,
    look: Look | None = None,
    undecided: Undecided = not_decided,
) -> Results | None:
    """Train what is still missing of a study.

    Args:
      study: what to compare.
      board: shows how far it is.
      command: to run again, for messages and the report.
      plan_folder: of the manifest; None: the study's. Others may share its cells.
      look: called with the results so far while seeds are added; None: nobody looks.
      undecided: says which arms get more seeds, where the study is run until all are decided.

    Returns:
      The results; None while cells are missing that are another shard's or that another process is
      training.

    Raises:
      InputError: whatever cannot be done; found before any training where it can be known.
      Stopped: a signal came; the cells under way are saved.
    """
    study = with_baseline(study)
    folder = files.expanded(study.workdir).absolute()
    plan_folder = plan_folder or folder
    agree.on_first(lambda: folders.check(folder))
    study = _with_block(study, agree.on_first(lambda: manifests.read(plan_folder)))
    blocks = plan.blocks(study)
    arms = {
        (arm, plan.label(condition)): folders.cells(study, arm, condition, blocks)
        for arm, condition in plan.grid(study)
    }
    _refuse_twins(study, [arm[0] for arm in arms.values()])
    plan.margin(study)  # refuse metric and margin before any training
    remote = on_ray.joined(study, command) if study.executor == "ray" else contextlib.nullcontext()
    with remote as cluster:
        if cluster:
            # Ray may have to wait for a machine
            board.say("checking arms and data on one of Ray's machines")
            digests = cluster.call(check, study, Console("off"))
        else:
            if study.machine.cache and processes.count() > 1:  # the others fetch what it decodes
                agree.on_first(lambda: check(study, board))
            digests = agree.on_all(lambda: check(study, board))
        agree.agree("the data set or the teacher", [vars(digest) for digest in digests.values()])
        job = Job(study, folder, digests, command)
        family = agree.on_first(lambda: _family(job, arms, plan_folder))
        for line in family.deviations:
            board.say(f"not as planned, so there are no verdicts: {line}")
        trainer = Trainer(job, cluster, board, family)
        with board.showing():
            if study.until:
                return _until_decided(trainer, arms, look, undecided)
            return _fixed(trainer, arms)


def with_baseline(study: Study) -> Study:
    """Name the baseline as its arm is written, whatever the spelling.

    Raises:
      InputError: no arm is the baseline.
    """
    names = plan.arm_names(study)
    if plan.baseline(study) in names:
        return study
    wanted = folders.canonical(plan.baseline(study), Part.identity)
    for name in names:
        if folders.canonical(name, Part.identity) == wanted:
            return study.replace(baseline=name)
    raise unknown("baseline", plan.baseline(study), names)


def _with_block(study: Study, manifest: Manifest | None) -> Study:
    """Take the width of the blocks that are there, unless another is asked for."""
    if manifest is None or study.block is not None:
        return study
    return study.replace(block=manifest.block)


def _family(job: Job, arms: Arms, plan_folder: Path) -> Family:
    """Compare a study with its manifest, which is written if there is none."""
    study = job.study
    manifest = manifests.settled(study, arms, plan_folder, job.folder)
    if deviations := manifests.deviations(manifest, study, arms):
        # Every arm is another one: there are no verdicts.
        comparisons = max(manifest.comparisons, plan.comparisons(study))
        return Family(manifest, comparisons, deviations, ())
    comparisons = manifests.extended(manifest, study, arms, plan_folder)
    return Family(manifest, comparisons, (), _left_out(job, manifest, arms))


def _left_out(job: Job, manifest: Manifest, arms: Arms) -> list[tuple[ArmResult, ArmResult]]:
    """Read what is there of the arms that were planned and are not asked for, each with its
    baseline.
    """
    study = job.study
    digests = {cells[0].arm_digest for cells in arms.values()}
    pairs = []
    for arm in manifest.arms:
        if arm.digest in digests or folders.canonical(arm.name) == manifest.baseline:
            continue
        stored = _stored(job, arm.name, arm.condition, arm.digest)
        baseline = _stored(job, plan.baseline(study), arm.condition)
        if stored.cells and baseline.cells:
            refuse_other_data([*stored.cells, *baseline.cells])
            pairs.append((stored, baseline))
    return pairs


def _stored(job: Job, arm: str, condition: plan.Condition, digest: str | None = None) -> ArmResult:
    """Read the cells that are there of an arm, up to the first that is missing; none if the arm has
    another digest than this now.
    """
    try:
        cells = folders.cells(job.study, arm, condition, plan.blocks(job.study))
    except InputError:  # a file of the user's that is gone
        cells = []
    if digest is not None:
        cells = [cell for cell in cells if cell.arm_digest == digest]
    results = (folders.read(job.folder, cell, None, job.study) for cell in cells)
    prefix = itertools.takewhile(lambda result: result is not None, results)
    return ArmResult(arm, condition, tuple(result for result in prefix if result))


@dataclass
class Trainer:
    """Trains cells here or on Ray's machines, and keeps their results.

    Attributes:
      job: what is trained.
      cluster: Ray's machines; None: here.
      board: shows how far it is.
      family: of the study's comparisons.
      results: of cells, by digest.
    """

    job: Job
    cluster: on_ray.Cluster | None
    board: Board
    family: Family
    results: dict[str, CellResult] = field(default_factory=dict)

    def look(self, cells: Sequence[Cell]) -> list[Cell]:
        """Read what is there of some cells, and return those that are missing."""
        missing = []
        for cell in cells:
            if cell.digest in self.results:
                continue
            if result := self.job.read(cell):
                self._keep(cell, result)
                self.job.clear(cell)
            else:
                missing.append(cell)
        return missing

    def train(self, cells: Sequence[Cell]) -> None:
        """Train cells, except for those that another process is training."""
        if self.cluster:
            self.cluster.train(self.job.train, cells, self.job.folder, self.board)
            self.look(cells)
            return
        for cell in cells:
            if result := self.job.train(cell, self.board):
                self._keep(cell, result)

    def train_all(self, cells: Sequence[Cell]) -> None:
        """Train cells, or wait for the processes that do, until all are there. Several processes
        start at different ones.
        """
        which, of = plan.shard(self.job.study.shard)
        while missing := self.look(cells):
            first = which * len(missing) // of
            self.train([*missing[first:], *missing[:first]])
            if self.look(missing):
                pause(WAIT_SECONDS, self.job.command)

    def _keep(self, cell: Cell, result: CellResult) -> None:
        self.results[cell.digest] = result
        self.board.finished(cell, result)

    def pooled(self, arms: Arms) -> Results:
        """Put the cells of each arm together, all of which are there."""
        study = self.job.study
        pooled = [
            ArmResult(
                cells[0].arm,
                cells[0].condition,
                tuple(self.results[cell.digest] for cell in cells),
            )
            for cells in arms.values()
        ]
        width = len(plan.arm_names(study))
        rows = [pooled[i : i + width] for i in range(0, len(pooled), width)]
        return Results(study, plan.conditions(study), rows, self.job.command, self.family)


def _fixed(trainer: Trainer, arms: Arms) -> Results | None:
    """Train this shard of a study whose seeds are fixed; return the results if all is there."""
    cells = _in_order(arms)
    which, of = plan.shard(trainer.job.study.shard)
    shard = cells[which::of]
    trainer.board.expect(cells, shard)
    missing = {cell.digest for cell in trainer.look(cells)}
    trainer.train([cell for cell in shard if cell.digest in missing])
    if left := trainer.look(cells):
        trainer.board.say(
            f"{len(left)} of {len(cells)} cells are left to others; the last to finish writes the "
            "report"
        )
        return None
    return trainer.pooled(arms)


def _until_decided(
    trainer: Trainer, arms: Arms, look: Look | None, undecided: Undecided
) -> Results:
    """Train blocks of seeds of the arms that are not decided, and of what they are compared with,
    until all are or have the most seeds.

    What is trained next follows from the cells alone, so any number of processes, killed and
    started again, train the same.
    """
    study = trainer.job.study
    first = study.seeds // plan.block_width(study)
    most = len(plan.blocks(study))
    wanted = dict.fromkeys(arms, first)
    for blocks in range(first, most + 1):
        now = {key: cells[: wanted[key]] for key, cells in arms.items()}
        cells = _in_order(now)
        trainer.board.expect(cells, cells)
        is_new = bool(trainer.look(cells))
        trainer.train_all(cells)
        results = trainer.pooled(now)
        verdicts = decide(results)
        trainer.board.standing(*report.standings(results, verdicts))
        left = set(undecided(results))
        if not left or blocks == most:
            return results
        if look and is_new:
            look(results)
        wanted |= dict.fromkeys(left, blocks + 1)
    raise AssertionError("no block was left")


def _in_order(arms: Arms) -> list[Cell]:
    """List cells block by block, so that comparisons grow together."""
    longest = max(map(len, arms.values()))
    return [cells[i] for i in range(longest) for cells in arms.values() if i < len(cells)]


def _refuse_twins(study: Study, cells: Sequence[folders.Cell]) -> None:
    """Raise InputError if two arms are the same under two names: a study would compare the arm with
    itself.
    """
    seen: dict[str, str] = {}
    for cell in cells:
        name = f"{cell.arm}, {plan.label(cell.condition)}" if cell.condition else cell.arm
        recipe = folders.config(study, cell.arm, cell.condition).recipe
        identity = str(sorted(folders.settings(recipe, Part.identity).items()))
        if identity in seen:
            raise InputError(
                f"'{seen[identity]}' and '{name}' are the same under two names; leave one out"
            )
        seen[identity] = name


def announcement(study: Study) -> list[str]:
    """List what to know before a study is paid for, one line each: its size, and whether it can end
    in a verdict at all.
    """
    arms, conditions = len(plan.arm_names(study)), len(plan.conditions(study))
    number = plan.comparisons(study)
    planned = study.comparisons or number
    needed = sequential.seeds_needed(planned, study.alpha)
    seeds = number_of(study.seeds, "seed")
    if study.until:
        seeds = f"{study.seeds} to {number_of(plan.most_seeds(study), 'seed')}, until decided,"
    epochs = f" of {number_of(study.training.epochs, 'epoch')}"
    if "epochs" in plan.changed_settings(study):
        epochs = ""
    lines = [
        f"{arms} arms x {number_of(conditions, 'condition')} x {seeds}{epochs}, "
        f"{number_of(number, 'comparison')} with {plan.baseline(study)} in "
        f"{plan.metric(study).name}"
    ]
    if plan.most_seeds(study) < needed:
        lines.append(
            f"no verdict is possible: {number_of(planned, 'comparison')} cannot be decided by "
            f"fewer than {needed} seeds; more can be added later"
        )
    if study.tune:
        per_seed = number_of(len(plan.tuning_seeds(study)), "tuning seed")
        if study.tune_per_seed:
            per_seed = "every seed"
        lines.append(
            f"tuning first: {number_of(study.budget, 'trial')} with {per_seed}, for each arm under "
            "each condition"
        )
    else:
        lines.append(
            "nothing is tuned per arm (--tune learning_rate=1e-4..1e-1 does): the report says so"
        )
    return lines
