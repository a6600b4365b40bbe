"""Whatever is written on a command line, in a settings file or in a stored one: it is taken, or
refused in one line before anything is made. No traceback, no hang, no file left.
"""

import contextlib
import json
from dataclasses import asdict
from pathlib import Path

import fuzzing
import pytest
import study_example
from fuzzing import SETTINGS
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folders import DATA

from cnnlab import cli, files, parts, spec
from cnnlab.config import Config
from cnnlab.errors import InputError
from cnnlab.metrics import METRICS
from cnnlab.study import manifest
from cnnlab.study.records import CellResult
from cnnlab.training import run_folder
from cnnlab.training.run_folder import RunFolder

SCRIPTS = {  # the class of their flags, and what they cannot do without
    "train": ("Config", []),
    "ablate": ("Study", ["--losses", "cross_entropy", "focal"]),
    "speedrun": ("SpeedRun", []),
    "tpu_plan": ("Plan", []),
    "report_card": ("Arguments", []),
    "show_augment": ("Arguments", []),
    "evaluate": ("Arguments", ["nowhere"]),
    "predict": ("Arguments", ["nowhere", "image.png"]),
    "reanalyse": ("Arguments", ["nowhere"]),
    "scaling": ("Options", ["plan.json"]),
}
# They wait for other processes, or start some.
LEFT_OUT = {"coordinator", "processes", "process", "executor", "beside", "torch_python"}


def tiers(few, many):
    """The same test with few cases, and slow with many: 5,000 in all."""
    cases = [few, pytest.param(many, marks=pytest.mark.slow)]
    return pytest.mark.parametrize("count", cases)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder; what would be the work ends the command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts.Parts, "open_dataset", fuzzing.admit)
    monkeypatch.setattr("cnnlab.report_card.card", fuzzing.admit)
    monkeypatch.setattr("cnnlab.tpu.slices.describe", fuzzing.admit)


@tiers(10, 200)
@pytest.mark.parametrize("name", SCRIPTS)
def test_command_lines(name, count):
    module = fuzzing.script(name)
    class_name, needed = SCRIPTS[name]
    settings_class = getattr(module, class_name)
    hints = {k: v for k, v in cli._hints(settings_class).items() if k not in LEFT_OUT}

    @settings(SETTINGS, max_examples=count)
    @given(fuzzing.command_lines(hints))
    def check(args):
        fuzzing.outcome(module.main, settings_class, [*needed, *args])

    check()


@tiers(100, 1000)
def test_specs(count):
    """What is found is written as a spec that finds the same."""

    @settings(SETTINGS, max_examples=count)
    @given(st.sampled_from(sorted(parts.KINDS)), fuzzing.specs())
    def check(kind, text):
        with fuzzing.limited():
            try:
                found = [spec.find(parts.KINDS[kind], s) for s in spec.parse_pipeline(text)]
            except InputError:
                return
        for part in found:
            assert str(spec.find(parts.KINDS[kind], str(part))) == str(part)

    check()


SETTINGS_FILE = {
    "dataset": "shapes10", "model": "cnn,widths=[8,16]", "loss": "focal,gamma=2", "epochs": 3,
    "learning_rate": 1e-3, "batch_size": 64, "metrics": ["top5"], "tensorboard": False,
    "average": "none", "workers": 0, "data_dir": None, "seed": 1,
}  # fmt: skip


def toml(values):
    """Most JSON values are TOML values too; the others make a file that is none."""
    if not isinstance(values, dict):
        return json.dumps(values)
    return "".join(f"{json.dumps(name)} = {json.dumps(value)}\n" for name, value in values.items())


@tiers(20, 500)
def test_settings_files(count):
    broken = st.binary(max_size=30)

    @settings(SETTINGS, max_examples=count)
    @given(
        fuzzing.changed(SETTINGS_FILE),
        st.sampled_from(["toml", "json"]),
        st.one_of(st.none(), st.none(), broken),
    )
    def check(values, suffix, rest):
        text = (toml(values) if suffix == "toml" else json.dumps(values)).encode()
        file = Path(f"settings.{suffix}")
        file.write_bytes(text if rest is None else text[: 7 * len(rest)] + rest)
        train = fuzzing.script("train")
        fuzzing.outcome(train.main, Config, ["--config", str(file)])

    check()


@tiers(50, 1000)
def test_files_of_a_run(count):
    """Sealed as they are: somebody has edited them and meant to."""
    with RunFolder(Path("run"), Config(), {"python": "3"}, DATA) as folder:
        folder.write_summary({"epochs": 10, "tested_step": 9, "test": {"accuracy": 0.5}})
    names = ["config.json", "data.json", "summary.json"]
    before = {name: files.read_sealed(Path("run", name)) for name in names}

    def resumed(path):
        run_folder.check(path, Config())

    @settings(SETTINGS, max_examples=count)
    @given(st.data())
    def check(data):
        name = data.draw(st.sampled_from(names))
        file = Path("run", name)
        file.write_text(json.dumps(data.draw(fuzzing.changed(before[name]))))
        with contextlib.suppress(ValueError):  # no object
            files.reseal(file)
        for read in (run_folder.read, run_folder.read_summary, run_folder.moved_sources, resumed):
            with fuzzing.limited(), contextlib.suppress(InputError):
                read(Path("run"))
        files.write_sealed(file, before[name])

    check()


@tiers(30, 500)
def test_files_of_a_study(count):
    results = study_example.results(classes=3, images=20, steps=4, seeds=2)
    cell = results.arms[0][0].cells[0].to_json()
    planned = asdict(results.family.manifest)

    @settings(SETTINGS, max_examples=count)
    @given(fuzzing.changed(cell), fuzzing.changed(planned))
    def check(of_cell, of_manifest):
        with fuzzing.limited():
            with contextlib.suppress(ValueError):
                read = CellResult.from_json(of_cell, METRICS).to_json()
                assert read.items() >= of_cell.items()  # more where there is a default
            with contextlib.suppress(InputError):
                Path(manifest.NAME).write_text(json.dumps(of_manifest))
                with contextlib.suppress(ValueError):  # no object
                    files.reseal(Path(manifest.NAME))
                manifest.read(Path())

    check()
