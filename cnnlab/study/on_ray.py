"""A study's cells as Ray tasks: on the machines of the cluster that $RAY_ADDRESS names, else on
this one.

A cell has a machine for itself: the accelerators of the largest kind of machine, or its cores; with
--devices n only n of them. Nothing is shipped but the names of functions: the machines share the
folder that the command runs in (own losses, relative paths) as they share the study's, and have the
same cnnlab. (`ray job submit --working-dir .` brings the first where they do not.) A cell whose
worker is lost continues elsewhere from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import platform
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import cnnlab
from cnnlab import files, signals
from cnnlab.cli import EXIT_PREEMPTED, Stopped
from cnnlab.errors import InputError, first_line
from cnnlab.study import folder as folders
from cnnlab.study.board import Board, UnderWay
from cnnlab.study.folder import Cell
from cnnlab.study.plan import Study
from cnnlab.study.records import CellResult
from cnnlab.training.signals import StopRequest, stop_signals, stopped_by
from cnnlab.types import Row

T = TypeVar("T")

# Of a cell that lost its worker: spot machines go often, but no crash must repeat forever.
RETRIES = 20
LOOK_SECONDS = 1.0  # between two looks at the cells under way
STOP_SECONDS = 120.0  # that they have to save themselves when the study is stopped
LOCK_SECONDS = 120  # after which a file server gives up the locks of a lost machine; NFS takes 90
# Bytes for what tasks hand over: a cell's result is some hundred kilobytes, Ray's own choice
# gigabytes.
OBJECTS = 10**8

OTHER_CODE = "other cnnlab than this one: install the same there"


class Preempted(Exception):
    """A worker was told to go and has saved its cell; Ray starts the task again."""


@contextlib.contextmanager
def joined(study: Study, command: str) -> Iterator[Cluster]:
    """Join the cluster that $RAY_ADDRESS names (auto: this machine's), or start one on this machine
    that ends with the body.

    Args:
      study: what will be trained on it.
      command: what to run to resume, for messages.

    Raises:
      InputError: no Ray, no such cluster, or one of another version of Ray or Python.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("--executor ray needs the package ray: pip install -e '.[ray]'") from error
    address = os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": "error"}
    try:
        if address:
            ray.init(address, runtime_env={"env_vars": _environment()}, **quiet)
        else:
            # Else Ray reports to its makers.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # Else it leaves one in the home.
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            ray.init("local", include_dashboard=False, object_store_memory=OBJECTS, **quiet)
    except Exception as error:  # Ray's are of many kinds, Exception itself among them
        raise InputError(
            f"no Ray cluster at {address or 'this machine'}: {first_line(error)}"
        ) from error
    try:
        with stop_signals() as stop, signals.held():
            yield Cluster(ray, study, command, stop)
    finally:
        ray.shutdown()


class Cluster:
    """Ray's machines, for the cells of a study."""

    def __init__(self, ray: ModuleType, study: Study, command: str, stop: StopRequest):
        self._ray = ray
        self._study = study
        self._command = command
        self._stop = stop

    def call(self, function: Callable[..., T], *args: object) -> T:
        """Call a function on one of the machines that train, and return its result.

        Raises:
          InputError: it does, or its worker was lost too often.
          Stopped: a signal came.
        """
        results: list[T] = []
        self._run([(function, *args)], lambda _, result: results.append(result), lambda _: None)
        return results[0]

    def train(
        self,
        train_cell: Callable[[Cell, Board], CellResult | None],
        cells: Sequence[Cell],
        folder: Path,
        board: Board,
    ) -> None:
        """Train cells, as many at once as there are machines.

        Args:
          train_cell: trains a cell and returns what its file holds; None while another process
            trains it.
          cells: what is missing of the study.
          folder: of the study.
          board: shows which are under way, and where.

        Raises:
          InputError: a cell does, or its worker was lost too often.
          Stopped: a signal came. Here as there the cells under way are saved.
        """
        kind, number = self._share()
        all_of = self._ray.cluster_resources()
        if cells:
            board.say(
                f"{len(cells)} cells to train on Ray, {number} {kind} each of "
                f"{all_of.get(kind, 0):.0f}"
            )
        for cell in cells:
            _under_way(folder, cell).unlink(missing_ok=True)  # a killed study's

        def done(i: int, result: CellResult | None) -> None:
            if result:
                board.finished(cells[i], result, trained=True)

        def look(waiting: list[int]) -> None:
            for i in waiting:
                with contextlib.suppress(OSError, ValueError):  # not begun
                    board.elsewhere(
                        cells[i],
                        UnderWay(**json.loads(_under_way(folder, cells[i]).read_text())),
                    )

        self._run(
            [(_patiently, train_cell, self._study, folder, cell) for cell in cells], done, look
        )

    def _share(self) -> tuple[str, int]:
        return share(
            [node["Resources"] for node in self._ray.nodes() if node["Alive"]],
            self._study.machine.devices,
        )

    def _run(
        self,
        calls: Sequence[tuple],
        done: Callable[[int, Any], None],
        look: Callable[[list[int]], None],
    ) -> None:
        """Make calls (function, *args): `done` gets the number and the result of each, `look`
        regularly gets the numbers of those still under way.

        Raises:
          InputError, Stopped: as above, once all that is under way has saved.
        """
        ray = self._ray
        task = ray.remote(
            **_options(*self._share()), max_retries=RETRIES, retry_exceptions=[Preempted]
        )(_task)
        waiting = {
            task.remote(os.getcwd(), _code(), pickle.dumps(call)): i for i, call in enumerate(calls)
        }
        try:
            while waiting and not self._stop.signal:
                for ref in ray.wait(list(waiting), timeout=LOOK_SECONDS)[0]:
                    done(waiting.pop(ref), self._result(ref))
                look(list(waiting.values()))
        finally:
            for ref in waiting:
                ray.cancel(ref)  # what is queued goes, what runs sees a Ctrl-C
            late = (
                ray.wait(list(waiting), num_returns=len(waiting), timeout=STOP_SECONDS)[1]
                if waiting
                else []
            )
        if waiting and self._stop.signal:
            saved = "not all saved" if late else "saved"
            raise stopped_by(
                self._stop.signal, f", what was under way is {saved}; to resume: {self._command}"
            )

    def _result(self, ref: object) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except (
            Preempted,
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.OutOfMemoryError,
        ) as error:
            raise InputError(
                f"a cell lost its worker {RETRIES + 1} times; the last: {first_line(error)}"
            ) from error
        except errors.RayTaskError as error:
            if "failed to import" in str(error):  # Ray's word for a _task that is not there
                raise InputError(
                    f"a machine of the cluster has no cnnlab, or an{OTHER_CODE}"
                ) from error
            raise error.cause from error


def share(machines: Sequence[Mapping[str, float]], devices: int | None) -> tuple[str, int]:
    """Choose what a cell takes of a cluster's machines: all accelerators of the largest, or its
    cores, or `devices` of them.

    >>> share([{"CPU": 8.0}, {"CPU": 2.0}], None)
    ('CPU', 8)
    >>> share([{"CPU": 8.0}, {"CPU": 32.0, "GPU": 4.0}], 1)
    ('GPU', 1)
    >>> share([{"CPU": 208.0, "TPU": 8.0}], None)
    ('TPU', 8)
    """
    most = {
        kind: int(max((machine.get(kind, 0) for machine in machines), default=0))
        for kind in ("TPU", "GPU", "CPU")
    }
    kind = next((kind for kind in most if most[kind]), "CPU")
    # At least 1: the cluster may be one that grows once it is asked.
    return kind, min(devices or most[kind], most[kind]) or 1


def _options(kind: str, number: int) -> Mapping[str, object]:
    """Express a cell's share as Ray's options. A process keeps an accelerator until it ends, so it
    runs one task; on CPU the next task finds JAX warm.
    """
    if kind == "CPU":
        return {"num_cpus": number}
    return ({"num_gpus": number} if kind == "GPU" else {"resources": {kind: number}}) | {
        "max_calls": 1
    }


def _task(place: str, code: str, call: bytes) -> object:
    """Call a function on a worker.

    Args:
      place: the folder of the command.
      code: digest of the cnnlab that runs it.
      call: (function, *arguments), pickled: unpickled after this machine is known to be like that
        one.

    Raises:
      InputError: it is not, or the function does.
      Preempted: the worker was told to go, and has saved.
    """
    try:
        os.chdir(place)
    except OSError as error:
        said = f"{platform.node()} has no folder {place} ({error.strerror})"
        raise InputError(f"{said}: run the command in one that the machines share") from error
    if _code() != code:
        raise InputError(f"{platform.node()} has an{OTHER_CODE}")
    function, *args = pickle.loads(call)
    try:
        return function(*args)
    except Stopped as stop:
        if stop.status == EXIT_PREEMPTED:
            raise Preempted(str(stop)) from stop
        return None  # cancelled


def _patiently(
    train_cell: Callable[[Cell, Board], CellResult | None], study: Study, folder: Path, cell: Cell
) -> CellResult | None:
    """Train a cell on a worker. If its lock is held, as a lost machine's is at first, try again for
    a while.

    Raises:
      InputError: the user's files are others on this machine.
    """
    (here,) = folders.cells(study, cell.arm, cell.condition, [cell.seeds])
    if here.digest != cell.digest:
        raise InputError(
            f"{platform.node()} has other files behind the parts of {cell.arm} than this machine"
        )
    board = Telling(study.training.epochs, _under_way(folder, cell))
    for _ in range(LOCK_SECONDS):
        if result := train_cell(cell, board):
            return result
        time.sleep(1)
    return None


class Telling(Board):
    """A worker's board: it leaves how far its cell is in a file, for the board of the one who
    waits.
    """

    def __init__(self, epochs: int, path: Path):
        super().__init__("off", epochs)
        self._path = path

    def started(self, cell: Cell) -> None:
        super().started(cell)
        self._tell()

    def phase(self, what: str) -> None:
        super().phase(what)
        self._tell()

    def epoch(self, row: Row) -> None:
        super().epoch(row)
        self._tell()

    def _tell(self) -> None:
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(
                self._path, vars(self.here) | {"where": f"{platform.node()}, process {os.getpid()}"}
            )


def _under_way(folder: Path, cell: Cell) -> Path:
    return folders.checkpoints(folder, cell.digest) / "now.json"  # goes with them


def _code() -> str:
    """Hash cnnlab's files with SHA-256: two versions must not train parts of the same study."""
    digest = hashlib.sha256()
    package = Path(cnnlab.__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _environment() -> dict[str, str]:
    """Return the variables that the cells share with the command: JAX's settings, and where the
    data sets and the cache are.
    """
    names = ("XLA_FLAGS", "NPROC", "TFDS_DATA_DIR", "CNNLAB_CACHE")
    return {
        name: value
        for name, value in os.environ.items()
        if name in names or name.startswith("JAX_")
    }
