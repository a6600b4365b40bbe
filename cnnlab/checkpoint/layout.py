"""How checkpoints lie in a folder, here or under gs://: complete steps, unfinished saves, what is
on its way out.

A local step gets its name when it is complete, and one under gs:// a last object, the mark, that
says it is.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from cnnlab import files

if TYPE_CHECKING:
    from orbax.checkpoint.path import step as orbax_step

# Orbax's name for the mark of a complete step under gs://.
MARK = "commit_success.txt"
# Orbax's suffix for local steps that are being written.
TMP = ".orbax-checkpoint-tmp"
# The folder of local steps on their way out.
TODELETE = "todelete"


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def _marked(folder: Path) -> dict[str, bool]:
    """List the steps in a folder under gs://, and whether each has its mark, in one request."""
    marked: dict[str, bool] = {}
    for step, *rest in (name.split("/") for name in files.names(folder)):
        if _is_step(step) and rest:
            marked[step] = marked.get(step, False) or rest == [MARK]
    return marked


def steps(folder: Path) -> list[int]:
    """List the complete steps in a folder of checkpoints, oldest first."""
    if files.is_remote(folder):
        return sorted(int(step) for step, complete in _marked(folder).items() if complete)
    if not folder.is_dir():
        return []
    return sorted(
        int(path.name) for path in folder.iterdir() if _is_step(path.name) and path.is_dir()
    )


def unfinished(folder: Path) -> list[Path]:
    """List what a folder of checkpoints may hold of saves and deletions that did not finish."""
    if not files.is_remote(folder):
        return [folder / TODELETE, *folder.glob(f"*{TMP}*")]
    return [folder / step for step, complete in _marked(folder).items() if not complete]


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
    files.remove(folder)


def move_step(source: Path, target: Path) -> None:
    """Move the folder of a step; under gs:// it stops being one first."""
    if files.is_remote(source):
        for name in sorted(files.names(source), key=MARK.__ne__):
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
