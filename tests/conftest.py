"""Every test runs under strict promotion, with warnings as errors, on eight virtual CPU devices."""

import fcntl
import os
import signal
import subprocess
from pathlib import Path

import pytest

# scripts that make the tables, whose packages are no dependencies; what tests share
collect_ignore = ["golden", "support"]

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"


def _shared(tmp_path_factory) -> Path:
    """A folder of this session, the same for all xdist workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory):
    """No test reads or writes the user's data sets and caches; subprocesses inherit that."""
    shared = _shared(tmp_path_factory)
    names = {"TFDS_DATA_DIR": shared / "tfds", "CNNLAB_CACHE": shared / "cache"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: str(path) for name, path in names.items()})
    yield shared
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(autouse=True)
def no_processes(request, monkeypatch):
    """A test of the default tier starts no process; `slow` and `machines` may."""
    if not {"slow", "machines"} & {mark.name for mark in request.node.iter_markers()}:
        start = subprocess.Popen.__init__

        def refuse(self, args, *rest, **options):
            if args[0] == "fc-list":  # matplotlib's, once on each machine, to find fonts
                return start(self, args, *rest, **options)
            pytest.fail(f"a test that starts a process is marked slow or machines: {args}")

        monkeypatch.setattr(subprocess.Popen, "__init__", refuse)


@pytest.fixture(autouse=True)
def signal_handlers():
    """Each test begins with Python's handlers: a command that a signal ended ignores more of them,
    and a background job, such as CI, ignores Ctrl-C.
    """
    handlers = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    handlers[signal.SIGHUP] = signal.SIG_DFL
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tfds_root(own_folders) -> Path:
    """A TFDS data directory with `tiny`: 200 + 50 images of 8x8x3 in 3 classes. Read only."""
    from small_data import drawn, write_dataset

    root = own_folders / "tfds"
    root.mkdir(exist_ok=True)
    with (own_folders / "tiny.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "tiny" / "1.0.0").is_dir():
            splits = {
                "train": drawn(200, 3, (8, 8, 3), seed=0),
                "test": drawn(50, 3, (8, 8, 3), seed=1),
            }
            write_dataset(root, "tiny", splits, 3, (8, 8, 3))
    return root


@pytest.fixture(scope="session")
def shapes10_root(own_folders) -> Path:
    """The same directory with `shapes10`, prepared once."""
    from cnnlab.data import builders

    builders.prepare("shapes10", own_folders / "tfds")
    return own_folders / "tfds"


@pytest.fixture(scope="module")
def server():
    """A Google Cloud Storage of localhost."""
    import fsspec.config
    from fake_gcs import FakeGCS

    with FakeGCS() as gcs, pytest.MonkeyPatch.context() as patch:
        for name, value in gcs.environment.items():
            patch.setenv(name, value)
        # The environment was read at its import
        patch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
        yield gcs


@pytest.fixture
def gcs(server):
    """An empty bucket."""
    server.replay([])
    server.history.clear()
    yield server
    server.before = lambda name: None
