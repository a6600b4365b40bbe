"""How checkpoints lie in a folder, here or under gs://: complete steps, unfinished saves, what is
on its way out.

A local step gets its name when it is complete, and one under gs:// a last object, the mark, that
says it is. A folder that was copied there may lack the marks. So a step with its description alone
is complete too, unless it is newer than all marked ones, as a save is that was cut short: the
description is written after all but the mark, and deleted before the rest.
"""

from __future__ import annotations

import contextlib
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from cnnlab import files

if TYPE_CHECKING:
    from orbax.checkpoint.path import step as orbax_step

# Orbax's name for the mark of a complete step under gs://.
MARK = "commit_success.txt"
# Ours for the description of a step, which is written before the mark.
ABOUT = "about.json"
# Orbax's suffix for local steps that are being written.
TMP = ".orbax-checkpoint-tmp"
# The folder of local steps on their way out.
TODELETE = "todelete"


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def _complete(folder: Path) -> dict[int, bool]:
    """List the steps in a folder under gs://, and whether each is complete, in one request."""
    ends: dict[int, set[str]] = {}
    for step, _, name in (name.partition("/") for name in files.names(folder)):
        if _is_step(step) and name:
            ends.setdefault(int(step), set()).update({name} & {MARK, ABOUT})
    newest = max((step for step, names in ends.items() if MARK in names), default=math.inf)
    return {
        step: MARK in names or (ABOUT in names and step < newest) for step, names in ends.items()
    }


def steps(folder: Path) -> list[int]:
    """List the complete steps in a folder of checkpoints, oldest first."""
    if files.is_remote(folder):
        return sorted(step for step, complete in _complete(folder).items() if complete)
    if not folder.is_dir():
        return []
    return sorted(
        int(path.name) for path in folder.iterdir() if _is_step(path.name) and path.is_dir()
    )


def unfinished(folder: Path) -> list[Path]:
    """List what a folder of checkpoints may hold of saves and deletions that did not finish."""
    if not files.is_remote(folder):
        return [folder / TODELETE, *folder.glob(f"*{TMP}*")]
    complete = _complete(folder)
    return [folder / str(step) for step in sorted(complete) if not complete[step]]


@contextlib.contextmanager
def readable(state: Path) -> Iterator[Path]:
    """Yield a folder from which Orbax reads the arrays of a step: theirs or, where that lacks the
    mark that Orbax wants of it under gs://, a copy on this machine.
    """
    if not files.is_remote(state) or (state / MARK).exists():
        yield state
        return
    print(
        f"{state} has no commit mark ({MARK}), as in a copy of a local folder: it is read by way "
        "of this machine's disk, and verified by its SHA-256",
        file=sys.stderr,
    )
    with tempfile.TemporaryDirectory() as copy:
        for name in files.names(state):
            files.download(state / name, Path(copy, name))
        yield Path(copy)


def step_names(folder: Path) -> orbax_step.NameFormat | None:
    """Return how Orbax is to name and find steps; None for its own way.

    It need not find those under gs://, and could do so only for users who may see the settings of
    the bucket.
    """
    return (
        cast("orbax_step.NameFormat", SimpleNamespace(build_name=str, find_all=lambda folder: []))
        if files.is_remote(folder)
        else None
    )


def remove_step(folder: Path) -> None:
    """Delete the folder of a step, if it is there; under gs:// it stops being one first."""
    if files.is_remote(folder):
        with contextlib.suppress(Exception):  # what stays is in nobody's way, and tried again
            (folder / MARK).unlink(missing_ok=True)
            (folder / ABOUT).unlink(missing_ok=True)
    files.remove(folder)


def move_step(source: Path, target: Path) -> None:
    """Move the folder of a step; under gs:// it stops being one first."""
    if files.is_remote(source):
        ends = [MARK, ABOUT]
        for name in sorted(files.names(source), key=lambda name: (*ends, name).index(name)):
            files.move(source / name, target / name)
        return
    target.parent.mkdir(exist_ok=True)
    files.move(source, target)


def sweep(folder: Path, pauses: tuple[float, ...] = ()) -> None:
    """Remove what no step needs: unfinished saves and steps already dropped; again after each of
    the pauses.
    """
    for pause in (0, *pauses):
        time.sleep(pause)
        for path in unfinished(folder):
            remove_step(path)
