"""The scripts as a user meets them: real processes, their output and their exit status."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from scripts import ROOT, one_line_error, readme_commands, script

from cnnlab import cli
from cnnlab.config import Config
from cnnlab.errors import InputError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tfds_root, tmp_path_factory):
    """A finished run on the tiny data set."""
    path = tmp_path_factory.mktemp("run") / "tiny"
    small = [
        "--model",
        "cnn,widths=[4],hidden=[8]",
        "--epochs",
        3,
        "--batch-size",
        20,
        "--learning-rate",
        0.01,
    ]
    done = script("train", "--dataset", "tiny", *small, "--workdir", path)
    assert done.returncode == 0, done.stderr
    return path, [*map(str, small)], done.stdout


def test_run_folder_holds_what_the_readme_says(run):
    path, _, _ = run
    names = {p.name for p in path.iterdir()}
    assert names >= {
        "config.json",
        "versions.json",
        "data.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
    }
    assert names >= {"curves.png", "confusion.png", "summary.json"}
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [9, 18, 27]  # 180 of 200 images, by 20
    test = json.loads((path / "summary.json").read_text())["test"]
    assert test["count"] == 50 and np.sum(test["confusion"]) == 50
    assert test["accuracy"] == np.trace(test["confusion"]) / 50
    with Image.open(path / "confusion.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10  # something is drawn


def test_first_line_says_device_data_parameters_and_place(run):
    path, _, output = run
    first = output.splitlines()[0]
    for part in (
        "1 x cpu (jit)",
        "180 images to train on, 20 to validate",
        "parameters",
        "cross_entropy",
        str(path),
    ):
        assert part in first


def test_a_finished_run_prints_its_summary_and_trains_nothing(run):
    path, small, output = run
    before = (path / "metrics.jsonl").stat().st_mtime_ns
    again = script("train", "--dataset", "tiny", *small, "--workdir", path)
    assert again.returncode == 0
    assert again.stdout.splitlines() == output.splitlines()[-2:]
    assert (path / "metrics.jsonl").stat().st_mtime_ns == before


def test_another_configuration_is_refused_by_name(run):
    path, small, _ = run
    other = ["--seed", 5, "--model", "cnn,widths=[4],hidden=[8],dropout=0.1"]
    line = one_line_error(script("train", "--dataset", "tiny", *small, *other, "--workdir", path))
    assert "seed: 0 -> 5" in line
    assert "model: cnn,hidden=[8],widths=[4] -> cnn,dropout=0.1,hidden=[8],widths=[4]" in line


def test_another_spelling_is_the_same_run(run):
    path, small, output = run
    spelled = [
        "--model",
        "cnn,hidden=[8],widths=[4],dropout=0",
        "--loss",
        "ce",
        "--schedule",
        "cosine,warmup=0",
    ]
    again = script("train", "--dataset", "tiny", *small, *spelled, "--workdir", path)
    assert again.stdout.splitlines() == output.splitlines()[-2:], again.stderr


def test_evaluate_repeats_the_summary(run):
    path, _, _ = run
    summary = json.loads((path / "summary.json").read_text())["test"]
    found = json.loads(script("evaluate", path, "--json").stdout)
    assert found["confusion"] == summary["confusion"]
    assert found["nll"] == pytest.approx(summary["nll"], rel=1e-6)  # float32 sums, compiled apart
    assert f"accuracy {summary['accuracy']:.4f}" in script("evaluate", path).stdout


def test_several_test_sets(tfds_root, tmp_path):
    """Trained with one, another added to the finished run; evaluated on a third; one line each."""
    path = tmp_path / "run"
    noise, flat, blur = (
        f"test+{name},severity=5" for name in ("gaussian_noise", "contrast", "gaussian_blur")
    )
    flags = ["--dataset", "tiny", "--model", "mlp,hidden=[8]", "--epochs", 1, "--workdir", path]
    first = script("train", *flags, "--test-sets", noise)
    assert first.returncode == 0, first.stderr
    summary = json.loads((path / "summary.json").read_text())
    shown = f"{noise}: accuracy {summary['test_sets'][noise]['accuracy']:.4f}  NLL"
    assert [line for line in first.stdout.splitlines() if line.startswith(shown)]
    second = script("train", *flags, "--test-sets", "test", noise, flat)
    assert "resuming after step" in second.stdout and "epoch 1/1" not in second.stdout
    after = json.loads((path / "summary.json").read_text())
    assert [*after["test_sets"]] == [noise, flat]
    assert (after["test"], after["test_sets"][noise]) == (
        summary["test"],
        summary["test_sets"][noise],
    )
    third = script("train", *flags, "--test-sets", flat)  # nothing to do
    assert third.stdout.splitlines() == second.stdout.splitlines()[-4:]
    found = script("evaluate", path, "--json", "--test-sets", flat, blur)
    assert found.returncode == 0, found.stderr
    results = json.loads(found.stdout)
    assert results["accuracy"] == after["test"]["accuracy"]
    assert results["test_sets"][flat]["accuracy"] == after["test_sets"][flat]["accuracy"]
    lines = script("evaluate", path, "--test-sets", flat, blur).stdout.splitlines()
    assert [line.split(":")[0] for line in lines[-2:]] == [flat, blur]
    for wrong, words in (
        ("test+contrast,severity=6", "severity must lie in [1, 5]"),
        ("tinny", "unknown data set 'tinny'"),
    ):
        for name, given in (("train", flags), ("evaluate", [path])):
            assert words in one_line_error(script(name, *given, "--test-sets", wrong))


def test_a_run_teaches_another(run, tmp_path):
    teacher, small, _ = run
    path = tmp_path / "student"
    flags = [
        "--dataset",
        "tiny",
        *small,
        "--model",
        "mlp,hidden=[8]",
        "--epochs",
        1,
        "--loss",
        "distillation,alpha=1",
    ]
    done = script(
        "train",
        *flags,
        "--teacher",
        teacher,
        "--augment",
        "flip+mixup,alpha=0.2",
        "--workdir",
        path,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((path / "summary.json").read_text())["test"]
    found = json.loads(script("evaluate", path, "--json").stdout)
    assert (
        found["loss"] == pytest.approx(summary["loss"], rel=1e-5)
        and found["confusion"] == summary["confusion"]
    )


def test_teachers_that_cannot_be(run, shapes10_root, tmp_path):
    teacher, _, _ = run
    flags = ["--teacher", teacher, "--workdir", tmp_path / "run"]
    line = one_line_error(script("train", "--dataset", "shapes10", "--loss", "kd", *flags))
    assert f"--teacher {teacher} was trained on other classes or images than shapes10" in line
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_named_and_teaches_nobody(run, tmp_path):
    path, small, _ = run
    copy = shutil.copytree(path, tmp_path / "copy")
    (copy / "checkpoints" / "27" / "about.json").write_text("{}")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for name, given in (("evaluate", []), ("predict", [tmp_path / "a.png"])):
        done = script(name, copy, *given)
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith("checkpoint rejected: step 27: about.json cannot be read")
        assert len(done.stderr.splitlines()) == 1
    flags = ["--dataset", "tiny", *small, "--loss", "kd", "--teacher", copy]
    line = one_line_error(script("train", *flags, "--workdir", tmp_path / "student"))
    assert f"--teacher {copy}: checkpoint rejected: step 27: about.json" in line
    assert not (tmp_path / "student").exists()


SIGNED = """
import flax.linen as nn

SIGN = {sign}

class Net(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, *, train):
        return SIGN * nn.Dense(self.num_classes)(images.reshape(len(images), -1))
"""


def test_a_teacher_is_known_by_its_code_too(tfds_root, tmp_path):
    """A study does not keep what its earlier code taught, and a run does not continue with it."""
    code = tmp_path / "signed_net.py"
    code.write_text(SIGNED.format(sign="1.0"))
    shared = ["--dataset", "tiny", "--batch-size", 20, "--epochs", 1, "--schedule", "constant"]
    taught = ["--model", "softmax_regression", "--teacher", tmp_path / "teacher"]
    study = [
        "--losses",
        "ce",
        "kd",
        "--seeds",
        1,
        *shared,
        *taught,
        "--workdir",
        tmp_path / "study",
    ]
    student = [*shared, *taught, "--loss", "kd", "--workdir", tmp_path / "student"]

    def run(name, *flags):
        return script(name, *flags, cwd=tmp_path)

    teacher = run("train", *shared, "--model", "signed_net.Net", "--workdir", tmp_path / "teacher")
    for done in (teacher, run("ablate", *study), run("train", *student)):
        assert done.returncode == 0, done.stderr
    code.write_text(SIGNED.format(sign="-1.0"))
    assert "by another teacher" in run("ablate", *study).stderr
    line = one_line_error(run("train", *student, "--epochs", 2))
    assert "taught by other weights or code than --teacher has" in line


def test_the_parts_are_listed():
    from cnnlab import parts

    for words in ([], ["loss"], ["model", "optimizer"]):
        done = script("train", "--list", *words)
        assert (done.returncode, done.stderr) == (0, "") and done.stdout == parts.listing(
            words
        ) + "\n"
    assert "did you mean 'loss'" in one_line_error(script("train", "--list", "losses"))


def test_predict_takes_images_of_any_size_and_mode(run, tmp_path):
    path, _, _ = run
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (16, 16), np.uint16))
    files = []
    for name, picture in {
        "a.jpg": colours, "b.png": colours.convert("L"), "c.png": colours.convert("P"),
        "d.png": colours.convert("RGBA"), "e.png": colours.convert("1"),
        "f.png": colours.convert("LA"),
        "g.png": deep, "h.jpg": colours.convert("CMYK"), "i.png": colours.resize((1, 3)),
    }.items():  # fmt: skip
        picture.save(tmp_path / name)
        files.append(tmp_path / name)
    done = script("predict", path, *files, "--top", 3)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(f) for f in files]
    for line in lines:
        probabilities = [float(x) for x in re.findall(r" (\d\.\d{3})", line)]
        assert len(probabilities) == 3 and probabilities == sorted(probabilities, reverse=True)
        # Three classes, each rounded to 3 digits
        assert sum(probabilities) == pytest.approx(1, abs=3 * 0.0005)


def test_a_bad_file_does_not_keep_predict_from_the_others(run, tmp_path):
    path, _, _ = run
    names = ["a.png", "fifo.png", "b\x1b[31m\n.png", "missing.png", "c.png"]
    os.mkfifo(tmp_path / names[1])
    for name in names[::2]:
        Image.new("RGB", (9, 7)).save(tmp_path / name)
    done = script("predict", path, *(tmp_path / name for name in names))
    assert done.returncode == 2
    bad = [
        f"error: {tmp_path}/fifo.png cannot be read as an image (not a regular file)",
        f"error: there is no image file {tmp_path}/missing.png",
    ]
    assert done.stderr.splitlines() == bad
    seen = [line.partition(": ")[0] for line in done.stdout.splitlines()]
    assert seen == [f"{tmp_path}/{name}" for name in ("a.png", r"b\x1b[31m\n.png", "c.png")]


def test_names_of_classes_are_printed_escaped(tmp_path):
    (tmp_path / "strange_names.py").write_text(
        "import numpy as np\n"
        "IMAGES = np.zeros((40, 8, 8, 3), np.uint8)\n"
        "SPLIT = IMAGES, np.arange(40) % 2\n"
        "def load():\n"
        "    names = ['\\x1b[2Jcat', 'dog\\nfake 1.000']\n"
        "    return {'train': SPLIT, 'test': SPLIT, 'class_names': names}\n"
    )
    small = ["--model", "mlp,hidden=[4]", "--epochs", 1, "--batch-size", 20, "--workdir", "run"]
    Image.new("RGB", (9, 7)).save(tmp_path / "a.png")
    commands = [
        ("train", "--dataset", "strange_names.load", *small),
        ("evaluate", "run"),
        ("evaluate", "run", "--json"),
        ("predict", "run", "a.png"),
    ]
    for command in commands:
        done = script(*command, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert "\x1b" not in done.stdout
        if command[0] != "train" and "--json" not in command:
            assert r"\x1b[2Jcat" in done.stdout and r"dog\nfake 1.000" in done.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--dataset", "tinny"], "did you mean 'tiny'?"),
        (["--dataset", "tiny", "--loss", "cross_entrpy"], "did you mean 'cross_entropy'?"),
        (
            ["--dataset", "tiny", "--batch-size", "181"],
            "181 is larger than the 180 training images",
        ),
        (["--dataset", "tiny", "--batch-size", "20", "--devices", "999"], "there are"),
        (["--dataset", "tiny", "--model", "cnn,widths=[4,4,4,4]"], "does not fit"),
        (
            ["--dataset", "tiny", "--model", "mlp,dropout=1"],
            "model mlp: dropout must lie in [0, 1), got 1",
        ),
        (["--dataset", "tiny", "--optimizer", "adm"], "did you mean 'adam'?"),
        (
            ["--dataset", "tiny", "--augment", "flip+crop,padding=8"],
            "padding must be smaller than the image, 8 pixels",
        ),
        (
            ["--dataset", "tiny", "--mixup", "0.2"],
            "--mixup is written --augment flip+mixup,alpha=0.2 now",
        ),
        (["--data-dir", "nowhere"], "--data-dir nowhere"),
        (["--dataset", "tiny", "--workdir", __file__], "is a file"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tfds_root, tmp_path, args, said):
    assert said in one_line_error(script("train", *args, cwd=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("CNNLAB_CACHE", "~nobody-of-that-name/x", "has no home"),
        ("JAX_NUM_CPU_DEVICES", "many", 'value "many"'),
    ],
)
def test_a_bad_environment_is_one_line(tfds_root, tmp_path, name, value, said):
    done = script("train", "--dataset", "tiny", "--workdir", tmp_path / "run", **{name: value})
    assert said in one_line_error(done) and not (tmp_path / "run").exists()


def test_bad_files_are_one_line(run, tmp_path):
    path, _, _ = run
    text = tmp_path / "note.png"
    text.write_text("no image")
    assert "note.png cannot be read as an image" in one_line_error(script("predict", path, text))
    assert "no image file" in one_line_error(script("predict", path, tmp_path / "missing.png"))
    assert "is no run folder" in one_line_error(script("evaluate", tmp_path))


@pytest.mark.parametrize(
    "flags",
    [["--optimizer", "sgd,0.9"], ["--epochs", "0"], ["--epochs", "-3"], ["--batch-size", "0"],
     ["--learning-rate", "nan"], ["--learning-rate", "-1"], ["--dropout", "0.5"],
     ["--no-such-flag"],
     ["--epochs", "many"]],
)  # fmt: skip
def test_bad_flags_raise_before_anything_runs(flags):
    with pytest.raises(InputError) as error:
        cli.parse(Config, flags)
    assert "\n" not in str(error.value)


def test_a_run_that_failed_at_once_does_not_block_the_corrected_command(tfds_root, tmp_path):
    flags = [
        "--dataset",
        "tiny",
        "--model",
        "mlp",
        "--epochs",
        1,
        "--batch-size",
        20,
        "--workdir",
        tmp_path / "run",
    ]
    line = one_line_error(script("train", *flags, "--optimizer", "sgd", "--learning-rate", 1e38))
    assert "not finite after step" in line and "no checkpoint" in line
    assert script("train", *flags).returncode == 0


def test_a_reader_that_goes_away_does_not_end_the_training(tfds_root, tmp_path):
    path = tmp_path / "run"
    flags = f"--dataset tiny --model mlp --epochs 2 --batch-size 20 --workdir {path}"
    command = f"{sys.executable} {ROOT}/experiments/train.py {flags} | head -1"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=300
    )
    assert len(done.stdout.splitlines()) == 1 and "Traceback" not in done.stderr
    assert (path / "summary.json").exists()


def test_no_weights_are_best_without_validation(tfds_root, tmp_path):
    path = tmp_path / "run"
    flags = [
        "--dataset",
        "tiny",
        "--model",
        "mlp",
        "--epochs",
        1,
        "--batch-size",
        20,
        "--validation",
        0,
    ]
    assert script("train", *flags, "--workdir", path).returncode == 0
    assert "none is best" in one_line_error(script("evaluate", path, "--weights", "best"))


def test_ctrl_c_reaches_the_readers_too_and_the_run_is_saved(tfds_root, tmp_path):
    """A terminal signals the whole process group: the reading processes must live until the step is
    saved.
    """
    path = tmp_path / "run"
    flags = (
        "--dataset tiny --model mlp --epochs 4000 --batch-size 20 --feed streaming --workers 1 "
        "--workdir"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "experiments" / "train.py"), *flags.split(), str(path)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    rows = path / "metrics.jsonl"
    while not (rows.exists() and rows.read_text().count("\n") >= 2):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == 130, complaint
    assert "Traceback" not in complaint and "stopped by SIGINT" in complaint
    assert [p for p in (path / "checkpoints").iterdir() if p.name.isdigit()]


def test_help_comes_before_jax(tmp_path):
    code = (
        "import sys, runpy; sys.argv = ['train.py', '--help']\ntry: runpy.run_path(sys.argv[0], "
        "run_name='__main__')\nexcept SystemExit: print('heavy:', [m for m in ('jax', 'flax', "
        "'matplotlib', 'grain') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "experiments", capture_output=True, text=True
    )
    unwrapped = " ".join(done.stdout.replace("│", " ").split())
    assert "--learning-rate FLOAT Peak rate" in unwrapped and "(default: 0.001)" in unwrapped
    assert done.stdout.strip().endswith("heavy: []")


def test_shapes10_needs_a_cnn(shapes10_root, tmp_path):
    """The quickstart passes 90 %; pixels alone (softmax regression) and an MLP fall well short on
    the same budget.
    """

    def accuracy(*args):
        path = tmp_path / args[1]
        done = script("train", *args, "--workdir", path)
        assert done.returncode == 0, done.stderr
        return json.loads((path / "summary.json").read_text())["test"]["accuracy"]

    cnn = accuracy("--model", "cnn")
    assert cnn > 0.9
    assert accuracy("--model", "mlp,hidden=[128]") <= cnn - 0.1
    assert accuracy("--model", "softmax_regression") < 0.5


@pytest.mark.parametrize("command", readme_commands())
def test_readme_commands_parse(command):
    args = shlex.split(command)[2:]
    # DIR and S stand for something.
    if not {"--help", "--list"} & set(args) and not any(a.isupper() for a in args):
        cli.parse(Config, args)


def test_readme_has_enough_commands():
    assert len(readme_commands()) >= 6
