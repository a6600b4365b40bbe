"""A run's folder: who may open it, what it refuses, what is in it afterwards; what a resumed run
may change.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import DATA, events

from cnnlab import files
from cnnlab.checkpoint import reseal
from cnnlab.config import PARTS, Config, Machine, Output, Recipe, names
from cnnlab.errors import InputError
from cnnlab.training import run_folder
from cnnlab.training.run_folder import RunFolder, conflicts, stored_form

ROOT = Path(__file__).parents[2]
VERSIONS = {"python": "3.11", "jax": "0.10"}
OTHER_DATA = dataclasses.replace(DATA, digest="xyz")


def opened(path, config=None, versions=VERSIONS, data=DATA):
    return RunFolder(path, config or Config(), versions, data)


def trained(path, **kwargs):
    """A folder that has something to lose: a checkpoint."""
    opened(path, **kwargs).close()
    (path / "checkpoints" / "10").mkdir(parents=True)


def row(epoch):
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "train_loss": 1.5 / epoch,
        "validation_accuracy": 0.5,
    }


EDITS = [
    ("config.json", "seed", 1),
    ("config.json", "model", "mlp,hidden=[4]"),
    ("config.json", "sources", {"mine": "0" * 64}),
    ("config.json", "run", "another"),
    ("data.json", "mean", [1.0, 1.0, 1.5]),
    ("data.json", "class_names", ["b", "a"]),
    ("data.json", "digest", "xyz"),
    ("data.json", "sha256", None),
    ("summary.json", "test", {"accuracy": 0.75}),
    ("summary.json", "run", "another"),
]


@pytest.mark.parametrize(("name", "key", "value"), EDITS)
def test_an_edited_file_is_named(name, key, value, tmp_path):
    trained(tmp_path)
    with opened(tmp_path) as folder:
        folder.write_summary({"epochs": 10, "tested_step": 9, "test": {"accuracy": 0.5}})
    file = tmp_path / name
    values = json.loads(file.read_text())
    assert values[key] != value
    file.write_text(json.dumps({**values, key: value}))
    read = run_folder.read_summary if name == "summary.json" else run_folder.read
    for look in (opened, read):
        with pytest.raises(
            InputError, match=f"{file}: it (was changed|has no seal).*cnnlab.checkpoint.reseal"
        ):
            look(tmp_path)


def test_a_deliberate_edit_is_sealed_anew(tmp_path):
    trained(tmp_path)
    file = tmp_path / "data.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "mean": [1.0, 1.0, 1.5]}))
    with pytest.raises(InputError, match="it was changed"):
        run_folder.read(tmp_path)
    reseal.main(reseal.Arguments((str(file),)))
    assert run_folder.read(tmp_path)[1] == dataclasses.replace(DATA, mean=(1.0, 1.0, 1.5))
    for path in (tmp_path, tmp_path / "nothing.json"):
        with pytest.raises(InputError, match=f"{path} cannot be sealed"):
            reseal.main(reseal.Arguments((str(path),)))
    with pytest.raises(InputError, match="name the files"):
        reseal.main(reseal.Arguments(()))


@pytest.mark.parametrize("changes", [{"config": Config.of(seed=1)}, {"data": OTHER_DATA}])
@pytest.mark.parametrize("name", ["data.json", "summary.json"])
def test_a_file_of_another_run_is_named(name, changes, tmp_path):
    for folder, settings in (("run", {}), ("other", changes)):
        trained(tmp_path / folder, **settings)
        with opened(tmp_path / folder, **settings) as opened_folder:
            opened_folder.write_summary({"epochs": 10, "tested_step": 9, "test": {}})
    (tmp_path / "run" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    read = run_folder.read if name == "data.json" else run_folder.read_summary
    with pytest.raises(InputError, match=f"{name} is of another run than config.json"):
        read(tmp_path / "run")


def test_facts_that_are_missing_are_not_taken_for_equal(tmp_path):
    trained(tmp_path)
    (tmp_path / "data.json").unlink()
    for start in (opened, lambda path: run_folder.check(path, Config()), run_folder.read):
        with pytest.raises(InputError, match=r"data\.json is missing: restore it"):
            start(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"class_names": ("b", "a")},
        {"image_shape": (16, 4, 3)},
        {"mirror": False},
        {"class_counts": (4, 3)},
        {"test_digest": "other"},
    ],
)
def test_every_fact_of_the_data_is_compared(changes, tmp_path):
    trained(tmp_path)
    with pytest.raises(InputError, match="trained on other data under the same name"):
        opened(tmp_path, data=dataclasses.replace(DATA, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": ["a", 1.0, 1.0]}, r"mean\[0\] must be float"),
        ({"mean": [1.0, 256.0, 1.0]}, r"mean\[1\] must lie in \[0, 255\]"),
        ({"std": [1.0, 0.0, 1.0]}, r"std\[1\] must lie in \(0, 255\]"),
        ({"std": [1.0]}, "mean and std of C channels"),
        ({"image_shape": [8, 8]}, r"image_shape must be \(H, W, C\)"),
        ({"class_names": ["a"]}, "as many classes as class_names"),
        ({"class_counts": [3, -4]}, r"class_counts\[1\] must lie in"),
        ({"counts": {"test": 1.5}}, "counts.test must be int"),
        ({"mirror": 1}, "mirror must be bool"),
    ],
)
def test_facts_have_types_and_ranges(changes, message, tmp_path):
    opened(tmp_path).close()
    values = json.loads((tmp_path / "data.json").read_text())
    (tmp_path / "data.json").write_text(json.dumps(values | changes))
    files.reseal(tmp_path / "data.json")
    with pytest.raises(InputError, match=message):
        run_folder.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "shapes10-cnn-cross_entropy-seed0"),
        ({"loss": "focal,gamma=2.5", "seed": 3}, "shapes10-cnn-focal,gamma=2.5-seed3"),
        ({"loss": "my.loss,w=[1, 2]"}, "shapes10-cnn-my.loss,w=_1,_2_-seed0"),
        (
            {"loss": "focal+z_loss", "model": "mlp,hidden=[8]"},
            "shapes10-mlp,hidden=_8_-focal+z_loss-seed0",
        ),
        ({"dataset": "../../etc/pass wd:1.0"}, ".._.._etc_pass_wd_1.0-cnn-cross_entropy-seed0"),
    ],
)
def test_default_path(changes, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_folder.default_path(Config.of(**changes)) == tmp_path / "runs" / name


def test_a_long_name_is_cut_and_stays_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    long = "focal" + "+label_smoothing,alpha=0.1" * 8
    names = {run_folder.default_path(Config.of(loss=long, seed=seed)).name for seed in (0, 1)}
    assert len(names) == 2 and all(
        len(name) < 150 and name.startswith("shapes10-cnn-focal+label") for name in names
    )


def test_workdir_is_the_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert run_folder.default_path(Config.of(workdir="here/run 1")) == tmp_path / "here" / "run 1"
    assert run_folder.default_path(Config.of(workdir="~/run")) == Path("/home/someone/run")


def test_what_a_new_folder_holds(tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR")
    config = Config.of(seed=5, model="cnn,widths=[8]", label_noise=0.2)
    with opened(tmp_path / "a" / "run", config) as folder:
        assert folder.warnings == []
        assert {p.name for p in folder.path.iterdir()} == {
            "lock",
            "config.json",
            "versions.json",
            "data.json",
        }
    stored, facts, _ = run_folder.read(folder.path)
    assert facts == DATA and stored == Config.of(
        seed=5,
        dataset="shapes10+label_noise,kind=symmetric,rate=0.2",
        model="cnn,activation=relu,batch_norm=false,dropout=0.0,hidden=[128],pool=max,widths=[8]",
        optimizer="adam,b1=0.9,b2=0.999,eps=1e-08,weight_decay=0.0",
        schedule="cosine,warmup=0.0",
    )
    written = json.loads((folder.path / "config.json").read_text())["written"]
    assert (
        written.keys() > set(PARTS)
        and written["model"] == config.recipe.model
        and written["label_noise"] == 0.2
    )
    assert stored_form(stored) | {"written": written} == stored_form(config)
    run = json.loads((folder.path / "config.json").read_text())["run"]
    files.write_sealed(folder.path / "data.json", {"run": run})
    with pytest.raises(
        InputError, match=r"data\.json is damaged: it lacks \['class_counts', 'class_names'"
    ):
        run_folder.read(folder.path)
    assert json.loads((folder.path / "versions.json").read_text()) == VERSIONS


@pytest.mark.parametrize("data_dir", [None, "elsewhere"])
def test_the_data_directory_of_the_environment_is_kept(data_dir, tmp_path, monkeypatch):
    """So that the run is evaluated where the variable is not set; a flag comes before it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", "tfds")
    config = Config(machine=Machine(data_dir=data_dir))
    opened(tmp_path / "run", config).close()
    stored = json.loads((tmp_path / "run/config.json").read_text())
    assert stored["data_dir"] == str(tmp_path / (data_dir or "tfds"))


def test_modules_that_are_not_where_they_were(tmp_path, monkeypatch):
    """Reported without importing them: the files that are there now would fail."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    text = (
        "from cnnlab.losses import cross_entropy as loss\ndef mine(z, y):\n    return loss(z, y)\n"
    )
    (tmp_path / "here/moved_away.py").write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path / "here")
    opened(tmp_path / "run", Config.of(loss="moved_away.mine")).close()
    assert run_folder.moved_sources(tmp_path / "run") == []
    assert run_folder.read(tmp_path / "run")[0] == Config.from_json(
        json.loads((tmp_path / "run/config.json").read_text())
    )
    del sys.modules["moved_away"]
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path / "here")])
    (tmp_path / "there/moved_away.py").write_text("raise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path / "there")
    (line,) = run_folder.moved_sources(tmp_path / "run")
    assert line == (
        f"moved_away is imported from {tmp_path}/there/moved_away.py; the run was started with "
        f"{tmp_path}/here/moved_away.py"
    )
    assert "moved_away" not in sys.modules


def test_versions():
    found = run_folder.versions()
    assert {"python", "machine", "flags", "jax", "cnnlab", "numpy"} <= set(found)
    assert found["python"] == sys.version.split()[0] and json.dumps(found)


def test_changed_versions_warn(tmp_path):
    opened(tmp_path / "run").close()
    with opened(
        tmp_path / "run", versions={"python": "3.11", "jax": "0.12", "flax": "1"}
    ) as folder:
        assert folder.warnings == ["jax: 0.10 -> 0.12", "flax: None -> 1"]
    with opened(
        tmp_path / "run", versions={"python": "3.11", "jax": "0.12", "flax": "1"}
    ) as folder:
        assert folder.warnings == []


def test_another_configuration_is_refused_and_nothing_changes(tmp_path):
    path = tmp_path / "run"
    trained(path)
    before = {p.name: p.read_bytes() for p in path.iterdir() if p.is_file()}
    wanted = (
        r"holds a run with another configuration: learning_rate: 0.001 -> 0.1; seed: 0 -> "
        r"1\. Choose another"
    )
    for refuse in (run_folder.check, opened):
        with pytest.raises(InputError, match=wanted):
            refuse(path, Config.of(seed=1, learning_rate=0.1))
    with pytest.raises(
        InputError, match=r"epochs: 10 -> 20 \(epochs may grow where nothing depends on"
    ):
        run_folder.check(path, Config.of(epochs=20))
    assert {p.name: p.read_bytes() for p in path.iterdir() if p.is_file()} == before
    with opened(path, Config.of(workers=2, progress="off")) as folder:  # free to change
        assert run_folder.read(folder.path)[0].machine.workers == 2


CHANGED = Config.of(
    model="cnn,hidden=[],widths=[8,16]", clip_norm=1.0, dataset="mnist",
    loss="focal,gamma=2+z_loss", seed=7,
    optimizer="sgd,nesterov=false", augment="none", fraction=0.5,
)  # fmt: skip


def stored(config):
    """What config.json says of a configuration."""
    return json.loads(json.dumps(stored_form(config)))


def test_no_conflict_with_itself():
    for config in (Config(), CHANGED):
        assert conflicts(stored(config), config) == []
        # nor with what is read from the folder
        assert conflicts(stored(config), Config.from_json(stored(config))) == []


def test_conflicts_are_named():
    found = conflicts(
        stored(Config.of(seed=1, learning_rate=0.1)), Config.of(seed=2, model="cnn,widths=[8]")
    )
    assert sorted(found) == [
        "learning_rate: 0.1 -> 0.001",
        "model: cnn -> cnn,widths=[8]",
        "seed: 1 -> 2",
    ]
    found = conflicts(stored(Config.of(label_noise=0.4)), Config.of(fraction=0.5, loss="ce"))
    assert found == ["dataset: shapes10+label_noise,rate=0.4 -> shapes10+fraction,share=0.5"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"model": "cnn"}, {"model": "cnn,widths=[32,64],dropout=0"}),
        ({"model": "cnn,pool=average,widths=[8]"}, {"model": "cnn,widths=[8],pool=average"}),
        ({"loss": "ce"}, {"loss": "cross_entropy"}),
        (
            {"loss": "cnnlab.losses.focal+z_loss"},
            {"loss": "focal,gamma=2.0+with_z_loss,coefficient=0.0001"},
        ),
        ({"loss": "kd", "teacher": "/t"}, {"loss": "distillation", "teacher": "/t"}),
        ({"optimizer": "sgd,momentum=0.9"}, {"optimizer": "sgd"}),
        ({"schedule": "cosine,warmup=0"}, {"schedule": "cosine"}),
        ({"augment": "flip+crop"}, {"augment": "flip+crop,padding=4,mode=zeros"}),
        ({"label_noise": 0.4}, {"label_noise": 0.4, "noise": "symmetric"}),
        ({"label_noise": 0.4}, {"dataset": "shapes10+label_noise,rate=0.4"}),
        (
            {"dataset": "shapes10+fraction,share=0.5+long_tail,factor=8.0"},
            {"fraction": 0.5, "long_tail": 8.0},
        ),
    ],
)
def test_another_spelling_is_no_conflict(before, after):
    assert conflicts(stored(Config.of(**before)), Config.of(**after)) == []
    assert conflicts(stored(Config.of(**after)), Config.of(**before)) == []


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ({"augment": "flip+crop"}, {"augment": "crop+flip"}, "augment: flip+crop -> crop+flip"),
        ({"augment": "auto"}, {"augment": "flip"}, "augment: auto -> flip"),
        ({"loss": "focal+z_loss"}, {"loss": "focal"}, "loss: focal+with_z_loss -> focal"),
        (
            {"label_noise": 0.4}, {"dataset": "shapes10+label_noise,rate=0.2"},
            "dataset: shapes10+label_noise,rate=0.4 -> shapes10+label_noise,rate=0.2",
        ),
        (
            {"label_noise": 0.4}, {"label_noise": 0.4, "noise": "asymmetric"},
            "dataset: shapes10+label_noise,rate=0.4 -> "
            "shapes10+label_noise,kind=asymmetric,rate=0.4",
        ),
        ({"optimizer": "adam"}, {"optimizer": "optax.adam"}, "optimizer: adam -> optax.adam"),
    ],
)  # fmt: skip
def test_another_part_is_a_conflict(before, after, found):
    assert conflicts(stored(Config.of(**before)), Config.of(**after)) == [found]


@pytest.mark.parametrize(
    ("fields", "before", "after", "allowed"),
    [
        ({"schedule": "constant"}, 5, 10, True),
        ({"schedule": "constant,warmup=1"}, 5, 10, True),
        ({"schedule": "steps,at=[8]"}, 5, 10, True),
        ({"schedule": "restarts,period=2"}, 5, 10, True),
        ({"schedule": "constant", "optimizer": "muon"}, 5, 10, True),
        ({"schedule": "constant"}, 10, 5, False),
        ({"schedule": "cosine"}, 5, 10, False),
        ({"schedule": "cosine"}, 10, 5, False),
        ({"schedule": "one_cycle"}, 5, 10, False),
        ({"schedule": "constant", "loss": "fading_loss_here.fading"}, 5, 10, False),
        ({"schedule": "constant", "loss": "fading_loss_here.fading,progress=1"}, 5, 10, False),
        ({"schedule": "cosine"}, 5, 5, True),
    ],
)
def test_more_epochs(fields, before, after, allowed, tmp_path, monkeypatch):
    """They are the same run where nothing depends on their number."""
    (tmp_path / "fading_loss_here.py").write_text(
        "def fading(logits, labels, progress): return progress * logits[:, 0]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    if "progress=1" in fields.get("loss", ""):  # it comes from the run
        with pytest.raises(InputError, match="progress comes from the run"):
            stored(Config.of(**fields))
        return
    found = conflicts(stored(Config.of(**fields, epochs=before)), Config.of(**fields, epochs=after))
    assert found == ([] if allowed else [f"epochs: {before} -> {after}"])


OTHER = {
    "workdir": "elsewhere", "data_dir": "elsewhere", "workers": 3, "keep": 9, "checkpoint_steps": 5,
    "progress": "off",
    "tensorboard": False, "test_on": "best", "test_sets": ("mnist",), "parallel": "pmap",
    "devices": 2, "feed": "streaming", "decoded_limit": 1.0, "deterministic": True,
    "dispatch_steps": 4, "mesh": "1x2", "coordinator": "localhost:1", "processes": 2, "process": 1,
    "cache": "gs://bucket/cache",
}  # fmt: skip
BOUND = {
    "dataset": "mnist", "model": "mlp", "loss": "focal", "optimizer": "sgd", "schedule": "linear",
    "augment": "none",
    "metrics": ("accuracy",), "label_noise": 0.1, "noise": "asymmetric", "long_tail": 2.0,
    "fraction": 0.5, "image_size": 8, "validation": 0.2, "split_seed": 1,
    "compute_dtype": "bfloat16", "teacher": "/t",
    "learning_rate": 0.1, "clip_norm": 1.0, "epochs": 11, "batch_size": 64, "test_views": "mirror",
    "seed": 1, "average": "ema", "microbatches": 2, "image_key": "a", "label_key": "b",
    "test_split": "c", "test_fraction": 0.1,
}  # fmt: skip


def test_free_fields_and_no_others():
    assert set(OTHER) == names(Machine) | names(Output)
    assert conflicts(stored(Config()), Config.of(**OTHER)) == []
    assert set(BOUND) == names(Recipe)


@pytest.mark.parametrize("field", BOUND)
def test_any_other_field_is_a_conflict(field):
    needed = {"noise": {"label_noise": 0.3}, "teacher": {"loss": "kd", "teacher": "/other"}}.get(
        field, {}
    )
    before, after = Config.of(**needed), Config.of(**{**needed, field: BOUND[field]})
    told = "dataset" if field in ("label_noise", "noise", "long_tail", "fraction") else field
    for one, other in ((before, after), (after, before)):
        assert [line.split(":")[0] for line in conflicts(stored(one), other)] == [told]


def test_fields_that_one_of_them_does_not_know():
    """A field that is newer than the file is at its default; one that is gone is a conflict."""
    older = stored(Config())
    del older["test_views"], older["written"]["augment"]
    assert conflicts(older, Config()) == []
    assert conflicts(older, Config.of(test_views="mirror")) == ["test_views: one -> mirror"]
    assert conflicts(stored(Config()) | {"cutmix": 1.0}, Config()) == ["cutmix: 1.0 -> None"]


def test_a_default_that_has_changed_is_a_conflict_although_it_is_written_alike():
    before = stored(Config.of(model="mlp"))
    assert "activation=relu" in before["model"] and before["written"]["model"] == "mlp"
    other = before | {"model": before["model"].replace("activation=relu", "activation=tanh")}
    (found,) = conflicts(other, Config.of(model="mlp"))
    assert found == "model: mlp,activation=tanh -> mlp"
    assert conflicts(other, Config.of(model="mlp"), quick=True) == []
    assert conflicts(other, Config.of(model="mlp,activation=tanh")) == []


def test_whole_numbers_and_floats_are_the_same():
    before = stored(Config.of(dataset="shapes10+long_tail,factor=8"))
    assert conflicts(before, Config.of(long_tail=8.0)) == []
    assert conflicts(before, Config.of(long_tail=9.0)) != []


def test_a_folder_with_nothing_to_lose_takes_another_configuration(tmp_path):
    """A run that failed before its first checkpoint must not block the corrected command."""
    path = tmp_path / "run"
    opened(path).close()
    (path / ".config.json.abc").write_text("left by a kill")
    with opened(path, Config.of(seed=1), data=OTHER_DATA):
        assert run_folder.read(path)[0].recipe.seed == 1


def test_other_data_is_refused(tmp_path):
    trained(tmp_path / "run")
    with pytest.raises(InputError, match="trained on other data under the same name"):
        opened(tmp_path / "run", data=OTHER_DATA)
    opened(tmp_path / "run").close()  # the failed one gave the lock back


def test_another_teacher_is_refused(tmp_path):
    taught = dataclasses.replace(DATA, teacher_digest="abc")
    trained(tmp_path / "run", data=taught)
    for other in (DATA, dataclasses.replace(DATA, teacher_digest="xyz")):
        with pytest.raises(
            InputError, match="was taught by other weights or code than --teacher has"
        ):
            opened(tmp_path / "run", data=other)
    opened(tmp_path / "run", data=taught).close()


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
    path = tmp_path / "run"
    config = Config.of(schedule="constant")
    assert run_folder.check(path, config) is None
    with opened(path, config) as folder:
        assert run_folder.check(path, config) is None
        folder.write_summary(
            {"epochs": 10, "test_on": "last", "tested_step": 9, "test": {"accuracy": 0.5}}
        )
    assert run_folder.check(path, config)["test"] == {"accuracy": 0.5}
    assert run_folder.check(path, Config.of(schedule="constant", epochs=20)) is None
    assert run_folder.check(path, Config.of(schedule="constant", test_on="best")) is None
    (path / "summary.json").write_text("damaged")
    assert run_folder.check(path, config) is None  # it is written again


HOLDER = """
import sys, time
from pathlib import Path
from cnnlab.config import Config
from cnnlab.data.facts import DataFacts
from cnnlab.training.run_folder import RunFolder
data = DataFacts(("a", "b"), (8, 8, 3), (1.0,), (2.0,), (3, 4), digest="abc")
folder = RunFolder(Path(sys.argv[1]), Config(), {}, data)
print("open", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_the_lock(tmp_path):
    path = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
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


def close(got, wanted):
    return [
        (tag, step, pytest.approx(value, rel=1e-7)) for tag, step, value in wanted
    ] == got  # written as float32


def test_tensorboard_says_what_the_metrics_say(tmp_path):
    with opened(tmp_path / "run") as folder:
        folder.start_metrics([], tensorboard=True)
        for epoch in (1, 2, 3):
            folder.add_metrics(row(epoch))

    def scalars(epochs):
        return [
            scalar
            for e in epochs
            for scalar in (("train/loss", 10 * e, 1.5 / e), ("validation/accuracy", 10 * e, 0.5))
        ]

    assert close(events(folder.path), scalars([1, 2, 3]))
    with opened(tmp_path / "run") as folder:
        folder.start_metrics([row(1)], tensorboard=True)
        folder.add_metrics(row(4))
    assert close(events(folder.path), scalars([1, 4]))


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    file = tmp_path / "config.json"
    files.write_json(file, {"a": 1})
    assert file.read_text() == '{\n  "a": 1\n}\n'

    def fail(*_):
        raise OSError("disk full")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, fail)
            with pytest.raises(OSError, match="disk full"):
                files.write_json(file, {"a": 2})
        assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
        assert json.loads(file.read_text()) == {"a": 1}
    with pytest.raises(TypeError):
        files.write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 1}


def test_files_are_as_readable_as_any_other(tmp_path):
    files.write_json(tmp_path / "a.json", 1)
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "b").stat().st_mode
