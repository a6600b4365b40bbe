"""What a run or a study has come to, without its times: what damage.py and kill.py compare."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cnnlab import files
from cnnlab.checkpoint import digest, layout
from cnnlab.types import Json

OF_THE_CLOCK = {"seconds", "images_per_second", files.SEAL}


def canonical(value: Json) -> str:
    """Write a JSON value as a text that is the same for equal values, NaN included, without the
    times in it and the seals over these.
    """
    return json.dumps(_timeless(value), sort_keys=True)


def _timeless(value: Json) -> Json:
    if isinstance(value, dict):
        return {k: _timeless(inner) for k, inner in value.items() if k not in OF_THE_CLOCK}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def summary(run: Path) -> str:
    """Return what summary.json of a run folder says."""
    return canonical(json.loads((run / "summary.json").read_text()))


def run(folder: Path) -> str:
    """Return the summary of a finished run, its epochs, and the SHA-256 of every leaf of its newest
    checkpoint, as read back from its files.
    """
    checkpoints = folder / "checkpoints"
    step = max(layout.steps(checkpoints))
    try:
        about = digest.read_about(checkpoints, step)
        digest.check_files(checkpoints, about)
        digest.read_state(checkpoints, about)
    except digest.Rejected as why:
        return f"step {step} cannot be trusted: {why}"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    leaves = {leaf["path"]: leaf["sha256"] for leaf in about["leaves"]}
    return "\n".join([summary(folder), canonical(rows), canonical(leaves)])


def study(folder: Path) -> str:
    """Return what a finished study has in its tables and its cells."""
    parts = [(folder / name).read_text() for name in ("results.csv", "verdicts.csv")]
    for path in sorted(folder.glob("cells/*.json")):
        parts.append(f"{path.name}: {canonical(json.loads(path.read_text()))}")
    return "\n".join(parts)


def logits(folder: Path) -> str:
    """Return the SHA-256 of the files of logits of a study."""
    paths = sorted(folder.glob("cells/*.npz"))
    return "\n".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
