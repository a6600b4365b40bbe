"""Flags, exit statuses; errors of the user are one line."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cnnlab import cli
from cnnlab.config import FORMER, Config, Recipe, Settings
from cnnlab.errors import InputError
from cnnlab.study.plan import Study
from cnnlab.training.run_folder import stored_form

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Small:
    """A small configuration."""

    rate: float = 0.1
    """A rate."""
    sizes: tuple[int, ...] = (1, 2)
    """Some sizes."""
    name: str | None = None
    """A name."""
    fast: bool = False
    """A switch."""
    batch_size: int = 4
    """Another number."""


def test_parse():
    assert cli.parse(Small, []) == Small()
    args = [
        "--rate",
        "1e-3",
        "--sizes",
        "4",
        "5",
        "6",
        "--name",
        "a",
        "--fast",
        "--batch-size",
        "8",
    ]
    assert cli.parse(Small, args) == Small(1e-3, (4, 5, 6), "a", True, 8)
    assert cli.parse(Small, ["--batch_size", "8"]) == Small(batch_size=8)
    config = cli.parse(
        Config, ["--seed", "3", "--metrics", "my.worst", "my.mean,over=2", "--no-tensorboard"]
    )
    assert config == Config.of(seed=3, metrics=("my.worst", "my.mean,over=2"), tensorboard=False)
    spec = "cnn,widths=[8,16],pool=average"
    assert cli.parse(Config, ["--model", spec, "--augment", "flip+crop,padding=2"]) == Config.of(
        model=spec, augment="flip+crop,padding=2"
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--rat", "1"], ["--rat"]),
        (["--no-such-thing", "1"], ["--no-such-thing"]),
        (["--rate", "fast"], ["--rate", "fast"]),
        (["--rate"], ["--rate"]),
        (["--sizes", "1", "x"], ["--sizes", "x"]),
        (["--batch-size", "1.5"], ["--batch-size", "1.5"]),
        (["stray"], ["stray"]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])  # tyro draws its boxes accordingly
def test_a_bad_flag_is_one_line(args, words, encoding, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    with pytest.raises(InputError) as caught:
        cli.parse(Small, args)
    message = str(caught.value)
    assert "\n" not in message and message.endswith("; --help lists the flags")
    assert all(word in message for word in words)
    assert not set("│╭╰─╮╯") & set(message) and "---" not in message
    assert capsys.readouterr().err == ""


def test_help_says_what_there_is(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.parse(Small, ["--help"])
    assert stop.value.code in (0, None)
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("--rate", "A rate.", "--batch-size", "(default: 4)"))


def test_a_bad_value_of_the_configuration_is_an_input_error():
    with pytest.raises(InputError, match=r"^--learning-rate must lie in \(0, inf\), got -1\.0$"):
        cli.parse(Config, ["--learning-rate", "-1"])
    with pytest.raises(InputError, match="did you mean 'resident'"):
        cli.parse(Config, ["--feed", "residents"])
    with pytest.raises(InputError, match="after the name come key=value pairs"):
        cli.parse(Config, ["--optimizer", "sgd,0.9"])


def test_files_of_settings_are_overridden_by_flags(tmp_path):
    """Wherever --config stands, the last file first."""
    file, run = tmp_path / "a.toml", tmp_path / "config.json"
    file.write_text('loss = "focal"\nepochs = 3\n[machine]\ndevices = 2\n')
    stored = Config.of(epochs=5, seed=2, clip_norm=1.0, keep=9, metrics=("my.a",), workdir="here")
    run.write_text(json.dumps(stored.to_json() | {"written": {}, "sources": {}}))
    assert cli.parse(Config, ["--config", str(file)]) == Config.of(
        loss="focal", epochs=3, devices=2
    )
    flags = ["--epochs", "7", f"--config={file}", "--loss", "mse", "--metrics"]
    assert cli.parse(Config, flags) == Config.of(loss="mse", epochs=7, devices=2)
    assert cli.parse(Config, ["--config", str(run)]) == stored.replace(workdir=None)
    both = cli.parse(Config, ["--config", str(run), "--config", str(file)])
    assert both == stored.replace(workdir=None, loss="focal", epochs=3, devices=2)


def test_a_run_s_settings_that_a_command_has_not_are_left_out_and_others_refused(tmp_path):
    @dataclass(frozen=True)
    class Job(Settings):
        recipe: Recipe = field(default_factory=Recipe)

    (tmp_path / "config.json").write_text(json.dumps(Config.of(seed=2, keep=9).to_json()))
    assert cli.parse(Job, ["--config", str(tmp_path / "config.json")]) == Job(Recipe(seed=2))
    for text, words in (
        ("keep = 9", "unknown setting 'keep'"),
        ("widths = [3]", "widths is written --model cnn,widths=[32,64] now"),
        ("epochs = [1, 2]", "epochs cannot be [1, 2], which is of another type"),
        ("epochs = 1.5", "epochs cannot be 1.5"),
        ("metrics = [1]", "metrics cannot be [1]"),
        ('clip_norm = "None"', "clip_norm cannot be 'None'"),
    ):
        (tmp_path / "a.toml").write_text(text)
        with pytest.raises(InputError, match=re.escape(f"a.toml: {words}")):
            cli.parse(Job, ["--config", str(tmp_path / "a.toml")])
    (tmp_path / "config.json").write_text('{"loss": "ce", "widhts": [8]}')
    with pytest.raises(InputError, match=r"config\.json: unknown setting 'widhts'"):
        cli.parse(Job, ["--config", str(tmp_path / "config.json")])
    with pytest.raises(InputError, match="--config takes a file"):
        cli.parse(Job, ["--config"])


def test_flags_override_the_short_forms_of_a_stored_run(tmp_path):
    run = Config.of(dataset="cifar10", label_noise=0.2, noise="asymmetric", fraction=0.5)
    (tmp_path / "config.json").write_text(json.dumps(stored_form(run)))
    file = ["--config", str(tmp_path / "config.json")]
    assert cli.parse(Config, file).recipe.corrupted_dataset() == run.recipe.corrupted_dataset()
    for flags, changes in (
        (["--label-noise", "0.4"], {"label_noise": 0.4}),
        (["--fraction", "1"], {"fraction": 1.0}),
        (["--dataset", "mnist"], {"dataset": "mnist"}),
        (["--noise", "symmetric"], {"noise": "symmetric"}),
    ):
        changed = cli.parse(Config, [*file, *flags]).recipe
        assert changed.corrupted_dataset() == run.replace(**changes).recipe.corrupted_dataset()


def test_a_stored_run_keeps_its_data_set_s_defaults(tmp_path):
    """Those of your function may have changed since; single values are lists of one."""
    run = Config.of(dataset="user_parts.blocks", label_noise=0.2)
    stored = stored_form(run)
    stored["dataset"] = stored["dataset"].replace("count=240", "count=200")
    (tmp_path / "config.json").write_text(json.dumps(stored))
    file = ["--config", str(tmp_path / "config.json")]
    recipe = cli.parse(Config, file).recipe
    assert recipe.dataset == "user_parts.blocks,count=200,size=8" and recipe.label_noise == 0.2
    study = cli.parse(Study, [*file, "--losses", "cross_entropy", "mse"])
    assert study.label_noise == (0.2,) and study.training.dataset == recipe.dataset


@pytest.mark.slow
def test_a_former_flag_is_answered_with_its_new_spelling():
    for flag, spelling in FORMER.items():
        for args in (
            [f"--{flag}"],
            [f"--{flag}", "1"],
            [f"--{flag}=1"],
            ["--seed", "1", f"--{flag.replace('-', '_')}"],
        ):
            with pytest.raises(InputError) as caught:
                cli.parse(Config, args)
            wanted = (
                f"--{flag} is written {spelling} now; --list shows every part with its "
                "hyperparameters"
            )
            assert str(caught.value) == wanted


@pytest.mark.parametrize("flag", sorted(set(FORMER) - {"list-losses"}))
def test_the_new_spelling_of_a_former_flag_is_understood(flag):
    from cnnlab import parts

    config = cli.parse(Config, shlex.split(FORMER[flag])[:2])
    assert config != Config() and parts.resolve(config.recipe)


def test_a_former_flag_that_is_a_flag_of_this_command_is_its_own():
    @dataclass(frozen=True)
    class Other:
        momentum: float = 0.9

    assert cli.parse(Other, ["--momentum", "0.5"]) == Other(0.5)
    with pytest.raises(InputError, match="--help lists the flags"):
        cli.parse(Other, ["--momentum", "much"])


def raises(error):
    def body(config):
        raise error

    return body


@pytest.mark.parametrize(
    ("body", "args", "status", "message"),
    [
        (raises(InputError("two\n  lines")), [], 2, "error: two lines\n"),
        (raises(cli.Stopped("saved at step 7", cli.EXIT_PREEMPTED)), [], 75, "saved at step 7\n"),
        (raises(cli.Stopped("saved", cli.EXIT_INTERRUPTED)), [], 130, "saved\n"),
        (raises(KeyboardInterrupt()), [], 130, "interrupted\n"),
        (print, ["--rate", "x"], 2, None),
    ],
)
def test_exit_statuses(body, args, status, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(body, Small, args)
    assert stop.value.code == status
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    if message is None:
        assert err.startswith("error: ") and "--rate" in err
    else:
        assert err == message


def test_main_passes_the_configuration_on_and_returns():
    seen = []
    assert cli.main(seen.append, Small, ["--rate", "2"]) is None
    assert seen == [Small(rate=2.0)]


def test_a_flag_that_stands_alone_takes_the_words_after_it(capsys):
    seen = []

    def fail(words):
        raise InputError(f"no {words}")

    alone = {"--list": seen.append, "--fail": fail}
    cli.main(seen.append, Small, ["--list"], alone)
    cli.main(seen.append, Small, ["--list", "loss", "model"], alone)
    cli.main(seen.append, Small, ["--rate", "2"], alone)
    assert seen == [[], ["loss", "model"], Small(rate=2.0)]
    for args, message in (
        (["--fail", "x"], "error: no ['x']\n"),
        (["--rate", "2", "--list"], "--list"),
    ):  # not first
        with pytest.raises(SystemExit) as stop:
            cli.main(seen.append, Small, args, alone)
        assert stop.value.code == 2 and message in capsys.readouterr().err
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("module", "args", "restarts"),
    [("__main__", None, 1), ("__main__", [], 0), ("experiments.train", None, 0)],
)
def test_only_a_script_starts_again_for_huge_pages(module, args, restarts, monkeypatch):
    """Not a test that calls a script's body under pytest, nor one with its own words."""
    calls = []
    monkeypatch.setattr(cli.backend, "restart_with_huge_pages", lambda: calls.append(1))
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def body(flags):
        pass

    body.__module__ = module
    cli.main(body, Small, args)
    assert len(calls) == restarts


def test_a_defect_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.main(raises(ZeroDivisionError()), Small, [])


SCRIPT = """
import sys
from cnnlab import cli
from test_cli import Small
def body(config):
    for _ in range(100_000):
        print("x" * 100)
cli.main(body, Small, [])
"""


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error():
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout.readline() == b"x" * 100 + b"\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0


def test_a_directory_that_is_gone_is_a_line(tmp_path, capsys, monkeypatch):
    here = tmp_path / "gone"
    here.mkdir()
    monkeypatch.chdir(here)
    here.rmdir()
    with pytest.raises(SystemExit) as stop:
        cli.main(lambda flags: None, Small, [])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: the current directory is gone")


@pytest.mark.slow
def test_the_command_line_brings_no_jax():
    code = (
        "import sys, cnnlab.cli, cnnlab.config, cnnlab.spec; print(sorted({m.split('.')[0] for m "
        "in sys.modules}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "cnnlab" in found
    for heavy in ("jax", "jaxlib", "flax", "numpy", "tyro", "matplotlib", "tensorflow"):
        assert f"'{heavy}'" not in found


def test_trying_a_file_leaves_it_as_it_was(tmp_path):
    fresh, old = tmp_path / "fresh.json", tmp_path / "old.json"
    old.write_text("{}")
    for path in (fresh, old):
        cli.writable(str(path))
    assert not fresh.exists() and old.read_text() == "{}"
    with pytest.raises(InputError, match="cannot be written"):
        cli.writable(str(tmp_path / "missing" / "x.json"))
