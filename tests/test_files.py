"""Names of files, and locks."""

import contextlib
import errno
import fcntl
import os
import pathlib
import pwd

import pytest
from run_folders import DATA
from scripts import one_line_error, script

from cnnlab import cli, files, verified
from cnnlab.config import Config, Output, Recipe
from cnnlab.data import builders, catalogue, decoded_file, pictures, storage
from cnnlab.errors import InputError
from cnnlab.study import folder as folders
from cnnlab.study.plan import Study
from cnnlab.training.run_folder import RunFolder, check

URLS = ("s3://bucket/run", "hdfs://host/run", "file:///run", "GS://bucket/run", "http:/host/run")


def study(workdir):
    return Study(losses=("cross_entropy", "focal"), workdir=workdir)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize(
    "take",
    [
        pytest.param(lambda url: Output(workdir=url), id="run folder"),
        pytest.param(lambda url: Output(workdir=pathlib.PurePosixPath(url)), id="a path object"),
        pytest.param(lambda url: Recipe(loss="distillation", teacher=url), id="teacher"),
        pytest.param(study, id="study"),
        pytest.param(files.path, id="folder of a run that is read"),
        pytest.param(cli.writable, id="file that is written"),
        pytest.param(lambda url: catalogue.npz(url), id="npz"),
        pytest.param(lambda url: pictures.folder(url), id="folder of pictures"),
    ],
)
def test_urls_are_no_paths(url, take, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, TypeError)) as refused:
        take(url)
    if refused.type is InputError:
        assert str(pathlib.PurePosixPath(url)).partition("/")[0] in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["CNNLAB_CACHE", "XDG_CACHE_HOME"])
def test_a_cache_is_on_a_disk(name, monkeypatch):
    monkeypatch.delenv("CNNLAB_CACHE")
    monkeypatch.setenv(name, "s3://bucket/cache")
    with pytest.raises(InputError, match="s3://bucket/cache is a URL"):
        verified.folder()


def test_data_behind_a_url_that_nothing_opens(monkeypatch):
    import fsspec

    def fails(scheme):
        raise OSError("Unable to load libjvm")

    monkeypatch.setattr(fsspec, "filesystem", fails)
    storage.filesystem.cache_clear()
    with pytest.raises(InputError, match="hdfs:// cannot be opened: Unable to load libjvm"):
        storage.data_root("hdfs://host/data").files()


def test_names_with_colons_are_paths(tmp_path, monkeypatch):
    """Only a word and :/ is a URL."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a:b", "a:b", "C:/run", "./s3:/run", "1s:/run"):
        assert files.path(name) == pathlib.Path(name)
        cli.writable("x:y")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("train", "--workdir"), ("train", "--teacher"), ("train", "--config"),
        ("train", "--dataset", "tiny", "--data-dir"), ("evaluate",),
        ("ablate", "--losses", "ce", "mse", "--workdir"),
        ("report_card", "ce", "--json"),
        ("report_card", "ce", "--html"), ("report_card", "ce", "--markdown"),
        ("scaling", "plan.json", "--out"), ("show_augment", "--output"), ("speedrun", "--json"),
        ("tpu_plan", "--json"), ("lessons/softmax_1d", "--workdir"), ("lessons/all", "--workdir"),
        ("benchmarks/losses", "--json"), ("benchmarks/training", "--json"),
        ("replications/same_loss", "--workdir"),
    ],
)  # fmt: skip
def test_scripts_refuse_urls_and_leave_nothing(command, tmp_path):
    one_line_error(script(*command, "nosuch://bucket/x", cwd=tmp_path))
    assert not list(tmp_path.iterdir())


# Locks


@pytest.fixture
def no_locks(monkeypatch):
    """A disk that says so in one way or another, everywhere but below a folder."""
    real = fcntl.flock

    def install(number, allowed):
        def flock(file, operation):
            if not os.readlink(f"/proc/self/fd/{file.fileno()}").startswith(str(allowed)):
                raise OSError(number, os.strerror(number))
            real(file, operation)

        monkeypatch.setattr(fcntl, "flock", flock)

    return install


@contextlib.contextmanager
def run_folder(path):
    with RunFolder(path / "run", Config(), {}, DATA):
        yield True


@contextlib.contextmanager
def preparation(path):
    def write(stage):
        (stage / "made").mkdir(parents=True)
        return stage / "made"

    builders.prepare_folder("x", path, path / "x", (path / "x").is_dir, write)
    yield (path / "x").is_dir()


HOLDERS = [
    run_folder,
    preparation,
    pytest.param(lambda path: folders.claimed(path / "study", "0" * 12), id="cell"),
]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
@pytest.mark.parametrize("hold", HOLDERS)
def test_a_disk_without_locks_is_said_and_a_way_works(
    hold, number, no_locks, tmp_path, monkeypatch
):
    locks = tmp_path / "locks"
    no_locks(number, locks)
    with pytest.raises(InputError) as refused, hold(tmp_path):
        pass
    said = str(refused.value)
    assert f"has no locks ({os.strerror(number)})" in said and "$CNNLAB_LOCKS" in said
    assert "another process" not in said
    monkeypatch.setenv("CNNLAB_LOCKS", str(locks))
    with pytest.raises(InputError, match="is not a folder"), hold(tmp_path):
        pass
    locks.mkdir()
    with hold(tmp_path) as held:
        assert held
    assert len(list(locks.iterdir())) == 1


@pytest.mark.parametrize("refuse", [lambda path: check(path, Config()), folders.check])
def test_a_folder_for_locks_that_is_missing_is_said_before_anything_is_made(
    refuse, tmp_path, monkeypatch
):
    monkeypatch.setenv("CNNLAB_LOCKS", str(tmp_path / "locks"))
    with pytest.raises(InputError, match="is not a folder: make it first"):
        refuse(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path):
    path = tmp_path / "a[b].csv"
    ended = 2**31 - 1  # more than a system has
    node = os.uname().nodename
    left, ours, other, strange = (
        tmp_path / f".{path.name}.{middle}.x"
        for middle in (f"{node}.{ended}", f"{node}.{os.getppid()}", f"elsewhere.{ended}", node)
    )
    for file in (left, ours, other, strange):
        file.touch()
    files.write_text(path, "1")
    assert {*tmp_path.iterdir()} == {path, ours, other, strange}


def test_a_folder_for_locks_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("CNNLAB_LOCKS", "/proc")
    with pytest.raises(InputError, match="no lock can be made in /proc: "), run_folder(tmp_path):
        pass


def test_decoded_images_do_without_a_lock(no_locks, tmp_path):
    no_locks(errno.ENOLCK, "nowhere")
    with decoded_file.locked(tmp_path / "x.rows", pytest.fail) as why:
        assert "has no locks (No locks available)" in why


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_lock_keeps_others_out_wherever_it_is(elsewhere, tmp_path, monkeypatch):
    if elsewhere:
        (tmp_path / "locks").mkdir()
        monkeypatch.setenv("CNNLAB_LOCKS", str(tmp_path / "locks"))
    (tmp_path / "link").symlink_to(tmp_path)
    with run_folder(tmp_path):
        with pytest.raises(InputError, match="in use by another process"), run_folder(tmp_path):
            pass
        again = files.lock(tmp_path / "link" / "run" / "lock")  # the same folder
        other = files.lock(tmp_path / "lock")
        assert again is None and other is not None
        other.close()
    with run_folder(tmp_path):
        pass


# Homes


@pytest.fixture
def no_home(monkeypatch):
    def missing(user):
        raise KeyError(user)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", missing)


def test_without_a_home_a_cache_ends_with_the_process(no_home, tmp_path, monkeypatch):
    for name in ("CNNLAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    folder = verified.folder()
    assert folder.is_dir() and folder == verified.folder()
    assert folder.stat().st_mode & 0o077 == 0  # nobody else puts programs there
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path))
    assert verified.folder() == tmp_path


def test_without_a_home_the_data_directory_has_to_be_named(no_home, tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR")
    with pytest.raises(InputError, match="no home: --data-dir DIR"):
        storage.data_root(None)
    assert storage.data_root(str(tmp_path)).path == tmp_path
