"""A run's folder: who may open it, what it refuses, what is in it afterwards."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cnnlab import run_folder
from cnnlab.config import Config
from cnnlab.errors import InputError
from cnnlab.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
VERSIONS = {"python": "3.11", "jax": "0.10"}
DATA = {
    "digest": "abc", "class_names": ["a", "b"], "image_shape": [8, 8, 3], "mean": [1.0], "std": [2.0], "counts": {},
    "class_counts": [3, 4],
}  # fmt: skip


def opened(path, config=None, versions=VERSIONS, data=DATA):
    return RunFolder(path, config or Config(), versions, data)


def trained(path, **kwargs):
    """A folder that has something to lose: a checkpoint."""
    opened(path, **kwargs).close()
    (path / "checkpoints" / "10").mkdir(parents=True)


def row(epoch):
    return {"epoch": epoch, "step": 10 * epoch, "train_loss": 1.5 / epoch, "validation_accuracy": 0.5}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "shapes10-cnn-cross_entropy-seed0"),
        ({"loss": "focal,gamma=2.5", "seed": 3}, "shapes10-cnn-focal,gamma=2.5-seed3"),
        ({"loss": "my.loss,w=[1, 2]"}, "shapes10-cnn-my.loss,w=_1,_2_-seed0"),
        ({"dataset": "../../etc/pass wd:1.0"}, ".._.._etc_pass_wd_1.0-cnn-cross_entropy-seed0"),
    ],
)
def test_default_path(changes, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_folder.default_path(Config(**changes)) == tmp_path / "runs" / name


def test_workdir_is_the_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert run_folder.default_path(Config(workdir="here/run 1")) == tmp_path / "here" / "run 1"
    assert run_folder.default_path(Config(workdir="~/run")) == Path("/home/someone/run")


def test_what_a_new_folder_holds(tmp_path):
    config = Config(seed=5, widths=(8,))
    with opened(tmp_path / "a" / "run", config) as folder:
        assert folder.warnings == []
        assert {p.name for p in folder.path.iterdir()} == {"lock", "config.json", "versions.json", "data.json"}
    assert run_folder.read(folder.path) == (config, DATA)
    (folder.path / "data.json").write_text("{}")
    with pytest.raises(InputError, match=r"data\.json is damaged: it lacks \['class_counts', 'class_names'"):
        run_folder.read(folder.path)
    assert json.loads((folder.path / "versions.json").read_text()) == VERSIONS


def test_versions():
    found = run_folder.versions()
    assert {"python", "machine", "flags", "jax", "cnnlab", "numpy"} <= set(found)
    assert found["python"] == sys.version.split()[0] and json.dumps(found)


def test_changed_versions_warn(tmp_path):
    opened(tmp_path / "run").close()
    with opened(tmp_path / "run", versions={"python": "3.11", "jax": "0.12", "flax": "1"}) as folder:
        assert folder.warnings == ["jax: 0.10 -> 0.12", "flax: None -> 1"]
    with opened(tmp_path / "run", versions={"python": "3.11", "jax": "0.12", "flax": "1"}) as folder:
        assert folder.warnings == []


def test_another_configuration_is_refused_and_nothing_changes(tmp_path):
    path = tmp_path / "run"
    trained(path)
    before = {p.name: p.read_bytes() for p in path.iterdir() if p.is_file()}
    wanted = r"holds a run with another configuration: learning_rate: 0.001 -> 0.1; seed: 0 -> 1\. Choose another"
    for refuse in (run_folder.check, opened):
        with pytest.raises(InputError, match=wanted):
            refuse(path, Config(seed=1, learning_rate=0.1))
    with pytest.raises(InputError, match=r"epochs: 10 -> 20 \(epochs may grow, under --schedule constant\)"):
        run_folder.check(path, Config(epochs=20))
    assert {p.name: p.read_bytes() for p in path.iterdir() if p.is_file()} == before
    with opened(path, Config(workers=2, progress="off")) as folder:  # free to change
        assert run_folder.read(folder.path)[0].workers == 2


def test_a_folder_with_nothing_to_lose_takes_another_configuration(tmp_path):
    """A run that failed before its first checkpoint must not block the corrected command."""
    path = tmp_path / "run"
    opened(path).close()
    (path / ".config.json.abc").write_text("left by a kill")
    with opened(path, Config(seed=1), data=DATA | {"digest": "xyz"}):
        assert run_folder.read(path)[0].seed == 1


def test_other_data_is_refused(tmp_path):
    trained(tmp_path / "run")
    with pytest.raises(InputError, match="trained on other data under the same name"):
        opened(tmp_path / "run", data=DATA | {"digest": "xyz"})
    opened(tmp_path / "run").close()  # the failed one gave the lock back


def test_what_is_no_run_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        run_folder.check(tmp_path, Config())
    with pytest.raises(InputError, match="is a file"):
        run_folder.check(tmp_path / "notes.txt", Config())
    with pytest.raises(InputError, match="is no run folder"):
        run_folder.read(tmp_path)
    for blocked in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "run"):
        with pytest.raises(InputError, match="cannot be written"):
            opened(blocked)
    with pytest.raises(InputError, match=r"cannot be written: .*notes\.txt does not allow it"):
        run_folder.check(tmp_path / "notes.txt" / "run", Config())  # before any data is read
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"epochs": ')
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        run_folder.check(tmp_path / "run", Config())


def test_check_returns_the_summary_of_a_finished_run(tmp_path):
    path, config = tmp_path / "run", Config(schedule="constant")
    assert run_folder.check(path, config) is None
    with opened(path, config):
        assert run_folder.check(path, config) is None
        run_folder.write_json(
            path / "summary.json", {"epochs": 10, "test_on": "last", "tested_step": 9, "test": {"accuracy": 0.5}}
        )
    assert run_folder.check(path, config)["test"] == {"accuracy": 0.5}
    assert run_folder.check(path, Config(schedule="constant", epochs=20)) is None
    assert run_folder.check(path, Config(schedule="constant", test_on="best")) is None
    (path / "summary.json").write_text("damaged")
    assert run_folder.check(path, config) is None  # it is written again


HOLDER = """
import sys, time
from pathlib import Path
from cnnlab.config import Config
from cnnlab.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[1]), Config(), {}, {"digest": "abc"})
print("open", flush=True)
time.sleep(600)
"""


def test_the_lock(tmp_path):
    path = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"open\n"
            with pytest.raises(InputError, match="is in use by another process"):
                opened(path, versions={})
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    with opened(path, versions={}), pytest.raises(InputError, match="is in use by another process"):
        opened(path, versions={})
    opened(path, versions={}).close()


def test_metrics_after_a_kill(tmp_path):
    with opened(tmp_path / "run") as folder:
        folder.start_metrics([], tensorboard=False)
        for epoch in (1, 2, 3):
            folder.add_metrics(row(epoch))
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [row(1), row(2), row(3)]
    with opened(tmp_path / "run") as folder:  # the checkpoint is of epoch 1
        folder.start_metrics([row(1)], tensorboard=False)
        folder.add_metrics(row(2) | {"train_loss": 0.125})
    again = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert again == [row(1), row(2) | {"train_loss": 0.125}]
    assert not (folder.path / "tensorboard").exists()


def events(folder):
    """(tag, step, value) of every scalar, from the files' TFRecords: length, its check, content, its check."""
    from tensorboardX.proto import event_pb2

    found = []
    for file in sorted((folder / "tensorboard").iterdir()):
        content = file.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            event = event_pb2.Event.FromString(content[12 : 12 + size])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            content = content[16 + size :]
    return found


def close(got, wanted):
    return [(tag, step, pytest.approx(value, rel=1e-7)) for tag, step, value in wanted] == got  # written as float32


def test_tensorboard_says_what_the_metrics_say(tmp_path):
    with opened(tmp_path / "run") as folder:
        folder.start_metrics([], tensorboard=True)
        for epoch in (1, 2, 3):
            folder.add_metrics(row(epoch))
    scalars = lambda epochs: [
        scalar for e in epochs for scalar in (("train/loss", 10 * e, 1.5 / e), ("validation/accuracy", 10 * e, 0.5))
    ]
    assert close(events(folder.path), scalars([1, 2, 3]))
    with opened(tmp_path / "run") as folder:
        folder.start_metrics([row(1)], tensorboard=True)
        folder.add_metrics(row(4))
    assert close(events(folder.path), scalars([1, 4]))


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    file = tmp_path / "config.json"
    run_folder.write_json(file, {"a": 1})
    assert file.read_text() == '{\n  "a": 1\n}\n'

    def fail(*_):
        raise OSError("disk full")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, fail)
            with pytest.raises(OSError, match="disk full"):
                run_folder.write_json(file, {"a": 2})
        assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
        assert json.loads(file.read_text()) == {"a": 1}
    with pytest.raises(TypeError):
        run_folder.write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 1}


def test_files_are_as_readable_as_any_other(tmp_path):
    run_folder.write_json(tmp_path / "a.json", 1)
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "b").stat().st_mode
