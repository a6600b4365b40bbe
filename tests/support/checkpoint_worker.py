"""Saves checkpoints in processes that `test_checkpoint.py` kills: imports once, then forks a child
for each request.

Requests come as JSON lines on standard input; the answers are `pid <n>` when a child has started
and `exit <status>` when it has ended. A child appends the steps that it was told are committed to
`<folder>.log`, in single writes.
"""

import itertools
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np

from cnnlab.checkpoint import digest
from cnnlab.checkpoint.manager import CheckpointError, Checkpoints

_EVENTS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "open")


def state(step: int, size: int = 40_000) -> dict:
    """A state that only its step determines: what a restore must give back bit by bit."""
    rng = np.random.default_rng(step)
    leaves = {f"layer_{i}": rng.standard_normal(size).astype(np.float32) for i in range(4)}
    return {"params": leaves, "step": np.asarray(step, np.int32)}


def metric(step: int) -> float | None:
    """One step in three has none; the best ones lie anywhere."""
    return None if step % 3 == 0 else step * 37 % 11 / 11


def damages(content: bytes, rng: random.Random, flips: int) -> Iterator[tuple[str, bytes | None]]:
    """Name and new content (None: deleted) of everything that happens to one file."""
    for _ in range(flips if content else 0):
        bit = rng.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit}", bytes(flipped)
    start = rng.randrange(max(1, len(content) - 4096))
    hole = content[:start] + bytes(len(content[start : start + 4096])) + content[start + 4096 :]
    cuts = {
        "truncated to 0": b"",
        "first half": content[: len(content) // 2],
        "last byte missing": content[:-1],
    }
    fills = {"appended": content + b"\x00garbage", "zeros": bytes(len(content)), "4 KB hole": hole}
    for name, damaged in (cuts | fills | {"deleted": None}).items():
        yield name if damaged != content else f"{name}: no change", damaged


def damage_every_file(folder: str | os.PathLike, flips: int) -> dict[str, list[str]]:
    """Saves a step, damages each of its files in every way and sorts what a restore gives: same,
    rejected, silent.
    """
    wanted = state(1, size=5_000)
    extra = {"loss": 0.25}
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, wanted, metric=0.5, extra=extra)
    outcome = {"same": [], "rejected": [], "silent": []}
    rng = random.Random(0)
    for file in sorted(p for p in (checkpoints.folder / "1").rglob("*") if p.is_file()):
        content = file.read_bytes()
        for name, damaged in damages(content, rng, flips):
            if damaged is None:
                file.unlink()
            else:
                file.write_bytes(damaged)
            try:
                found = checkpoints.restore(wanted)
                same = jax.tree.all(
                    jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), found.tree, wanted)
                )
                kind = "same" if same and (found.extra, found.metric) == (extra, 0.5) else "silent"
            except CheckpointError:
                kind = "rejected"
            outcome[kind].append(f"{file.relative_to(checkpoints.folder)}: {name}")
            file.write_bytes(content)
    return outcome


def _damage(folder: str, without: list[str], flips: int) -> None:
    """The number of restores of each kind, with some of the digests switched off."""
    if "files" in without:
        digest.check_files = lambda folder, about: None
    if "leaves" in without:
        digest.digest = lambda name, array: "anything"
    _log(folder, {kind: len(cases) for kind, cases in damage_every_file(folder, flips).items()})


def _save_forever(folder: str, wait: bool, **_) -> None:
    with Checkpoints(folder) as checkpoints:
        start = max(checkpoints.steps(), default=0) + 1
        for step in itertools.count(start):
            checkpoints.save(step, state(step), metric=metric(step), extra={"step": step})
            if wait:
                checkpoints.wait()
                _log(folder, step)
            else:
                if step > start:
                    _log(folder, step - 1)  # save waits for the one before it
                time.sleep(0.005)  # a training step


def _die_at(folder: str, event: int, **_) -> None:
    """Two saves; SIGKILL just before the given file operation (0: never, and their number goes to
    the log).
    """
    seen = 0
    with Checkpoints(folder) as checkpoints:

        def hook(name: str, args: tuple) -> None:
            nonlocal seen
            # rmtree removes names relative to a directory handle, so only the other events can be
            # told by their path.
            if name in _EVENTS and (
                name in ("os.remove", "os.rmdir") or str(args[0]).startswith(folder)
            ):
                seen += 1
                if seen == event:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        for step in (4, 5):
            checkpoints.save(step, state(step), metric=metric(step), extra={"step": step})
            checkpoints.wait()
            _log(folder, step)
    if not event:
        _log(folder, seen)


def _disk_full(folder: str, **_) -> None:
    """Files may not pass 50 kB for a while: the nearest thing to a full disk that needs no
    privileges.
    """
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(1, state(1))
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
        for then in (checkpoints.wait, lambda: checkpoints.save(9, state(9))):
            try:
                checkpoints.save(2, state(2))
                then()
                _log(folder, "no error")
            except CheckpointError as error:
                _log(folder, str(error))
            _log(folder, sorted(os.listdir(folder)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        checkpoints.save(2, state(2))
    with Checkpoints(folder) as checkpoints:
        _log(folder, checkpoints.restore(state(0)).step)


def _raise(folder: str, **_) -> None:
    """The caller fails while a save is under way."""
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, state(1, size=1_000_000))
        raise KeyboardInterrupt


def _log(folder: str, what: object) -> None:
    handle = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, (json.dumps(what) + "\n").encode())
    os.close(handle)


_ACTIONS = {
    "damage": _damage,
    "forever": _save_forever,
    "die_at": _die_at,
    "disk_full": _disk_full,
    "raise": _raise,
}


def main() -> None:
    import orbax.checkpoint  # noqa: F401  (once, here, instead of in every child)

    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()  # no backend and no thread exists yet: each child starts its own
        if pid == 0:
            sys.stdin.close()
            sys.stdout = sys.stderr
            status = 0
            try:
                _ACTIONS[request.pop("action")](**request)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                status = 1
            os._exit(status)
        print("pid", pid, flush=True)
        print("exit", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
