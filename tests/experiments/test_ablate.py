"""experiments/ablate.py as a user meets it: killed, run twice at once, given nonsense."""

import csv
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from scripts import ROOT, one_line_error, script

pytestmark = pytest.mark.slow

SMALL = [
    "--dataset", "tiny", "--model", "mlp,hidden=[8]", "--batch-size", "32", "--epochs", "3",
    "--seeds", "2",
    "--losses", "cross_entropy", "mse", "--label-noise", "0", "0.3",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tfds_root, tmp_path_factory):
    """A study never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "study"
    done = script("ablate", *SMALL, "--workdir", folder, JAX_NUM_CPU_DEVICES="1")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def environment():
    """A user's: one device, none of the tests' strictness."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    return own | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}


def start(folder, *more):
    command = [
        sys.executable,
        str(ROOT / "experiments/ablate.py"),
        *SMALL,
        "--workdir",
        str(folder),
        *more,
    ]
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_reader_that_goes_away_costs_no_report(whole):
    folder, _ = whole
    (folder / "report.html").unlink()
    command = [
        sys.executable,
        str(ROOT / "experiments/ablate.py"),
        *SMALL,
        "--workdir",
        str(folder),
    ]
    head = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert head.stdout.readline()
    head.stdout.close()
    assert head.wait(120) == 0 and "Traceback" not in head.stderr.read()
    head.stderr.close()
    assert (folder / "report.html").exists()


def numbers(folder):
    """Every byte that a study found: the tables, and the report without what is of the machine and
    the hour.
    """
    report = re.sub("Planned on .*? UTC", "", (folder / "report.md").read_text())
    kept = re.split(r"^## ", report, flags=re.MULTILINE)
    kept = [part for part in kept if not part.lower().startswith(("compute", "to repeat"))]
    assert len(kept) > 4
    return [(folder / name).read_bytes() for name in ("results.csv", "verdicts.csv")], kept


def test_it_says_what_it_does_and_what_it_found(whole):
    folder, output = whole
    assert (
        "2 arms x 2 conditions x 2 seeds of 3 epochs, 2 comparisons with cross_entropy in "
        "accuracy" in output
    )
    assert "no verdict is possible: 2 comparisons cannot be decided by fewer than 8 seeds" in output
    assert re.findall(r"^(\d)/4 ", output, re.MULTILINE) == ["1", "2", "3", "4"]
    assert output.splitlines()[-1].strip().endswith((".csv", ".html", ".md"))
    assert (folder / "results.csv").read_text().count("\n") == 1 + 2 * 2 * 2
    assert not list(folder.glob("*.checkpoints"))


def kill(folder, finished, *more):
    """Start the study, and kill it once so many cells are finished."""
    process = start(folder, *more)
    deadline = time.monotonic() + 120
    while len(list(folder.glob("cells/*.json"))) < finished:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_killed_twice_it_ends_in_the_same_bytes(whole, tmp_path):
    folder = tmp_path / "study"
    for finished in (1, 2):
        kill(folder, finished)
    assert not (folder / "report.html").exists()
    process = start(folder)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    # What was finished is not trained again
    assert len(re.findall(r"^\d/4 ", output, re.MULTILINE)) <= 2
    assert numbers(folder) == numbers(whole[0])


UNTIL = ["--until", "decided", "--seeds", "4", "--block", "4", "--max-seeds", "16"]
QUICK = ["--epochs", "1", "--losses", "cross_entropy", "mse", "--label-noise", "0"]


@pytest.fixture(scope="module")
def until_decided(tfds_root, tmp_path_factory):
    """A study that stops by itself, never interrupted."""
    folder = tmp_path_factory.mktemp("until") / "study"
    done = script("ablate", *SMALL, *UNTIL, *QUICK, "--workdir", folder, JAX_NUM_CPU_DEVICES="1")
    assert done.returncode == 0, done.stderr
    assert "4 to 16 seeds, until decided" in done.stdout
    assert len(list(folder.glob("cells/*.json"))) in (4, 6, 8)
    return folder


def test_killed_twice_it_is_decided_by_the_same_bytes(until_decided, tmp_path):
    folder = tmp_path / "study"
    for finished in (1, 3):
        kill(folder, finished, *UNTIL, *QUICK)
    process = start(folder, *UNTIL, *QUICK)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert numbers(folder) == numbers(until_decided)


def test_two_shards_decide_together(until_decided, tmp_path):
    """Each ends with the results, and no cell is trained twice."""
    folder = tmp_path / "study"
    both = [start(folder, *UNTIL, *QUICK, "--shard", f"{i}/2") for i in range(2)]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    trained = [re.findall(r"^\d/\d (.*?):", output, re.MULTILINE) for output, _ in outputs]
    number = len(list(folder.glob("cells/*.json")))
    assert len(trained[0] + trained[1]) == len(set(trained[0] + trained[1])) == number, outputs
    assert min(map(len, trained)) > 0
    assert numbers(folder) == numbers(until_decided)


def test_a_signal_in_the_middle_saves_and_the_same_command_goes_on(whole, tmp_path):
    folder = tmp_path / "study"
    process = start(folder, "--epochs", "400")
    deadline = time.monotonic() + 120
    while not list(folder.glob("*.checkpoints/training")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    time.sleep(2)  # it compiles and trains now
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    if process.returncode != -signal.SIGTERM:  # that came before the first step
        assert process.returncode == 75 and re.fullmatch(
            r"stopped by SIGTERM at step \d+ of \d+, saved; .*\n", errors
        )
        assert [
            path.name for path in folder.glob("*.checkpoints/training/*") if path.name.isdecimal()
        ]


def test_two_at_once_train_no_cell_twice(whole, tmp_path):
    folder = tmp_path / "study"
    both = [start(folder), start(folder)]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    trained = [re.findall(r"^\d/4 (.*?):", output, re.MULTILINE) for output, _ in outputs]
    assert len(trained[0] + trained[1]) == len(set(trained[0] + trained[1])) == 4, outputs
    assert numbers(folder) == numbers(whole[0])  # the later one wrote the report


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--losses"], "losses"),
        (["--losses", "mse"], "at least two"),
        (["--seeds", "0"], "--seeds must lie in [1, 10000]"),
        (["--seeds", ""], "seeds"),
        (["--baseline", "focal"], "unknown baseline 'focal'"),
        (["--label-noise", "0", "1"], "--label-noise must lie in [0, 1)"),
        (["--losses", "mse", "own.scalar"], "must return one value per example"),
        (["--losses", "mse", "own.wide"], "must return one value per example"),
        (["--losses", "mse", "own.nan"], "not finite"),
        (["--losses", "mse", "own.gradient"], "gradients that are not finite"),
    ],
)
def test_bad_input_is_one_line_before_any_training(tfds_root, tmp_path, args, said):
    (tmp_path / "own.py").write_text(
        "import jax.numpy as jnp\nscalar = lambda z, y: jnp.mean(z)\nwide = lambda z, y: z\nnan = "
        "lambda z, y: jnp.log(z[..., 0])\ngradient = lambda z, y: jnp.sqrt(z[..., 0] - z[..., 0])\n"
    )
    done = script("ablate", *SMALL, *args, "--workdir", tmp_path / "study", cwd=tmp_path)
    assert said in one_line_error(done)
    assert not list(tmp_path.glob("study/cells/*"))


STUDIES = {
    "four optimizers": [
        "--model", "cnn,widths=[4],hidden=[8]", "--arms", "optimizer=adam",
        "optimizer=sgd,momentum=0.9 learning_rate=0.05", "optimizer=muon learning_rate=0.24",
        "optimizer=optax.lion learning_rate=3e-4",
    ],
    "two networks under two augmentations": [
        "--arms", "model=mlp,hidden=[8]", "model=cnn,widths=[4],hidden=[8]", "--vary",
        "augment=flip", "augment=flip+crop,padding=1",
    ],
    "two losses on two data sets": [
        "--model", "mlp,hidden=[8]", "--losses", "cross_entropy", "mse", "--fraction", "0.05",
        "--vary", "dataset=tiny", "dataset=shapes10",
    ],
}  # fmt: skip


@pytest.mark.parametrize("what", STUDIES)
def test_any_setting_is_an_arm_or_a_condition(what, tfds_root, tmp_path):
    """One command each; .ci/run and the README have them in the sizes that a user takes."""
    done = script(
        "ablate", *STUDIES[what], *([] if "data sets" in what else ["--dataset", "tiny"]),
        "--batch-size", "8", "--epochs", "1", "--seeds", "2", "--workdir", tmp_path / "study",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with (tmp_path / "study/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    text = (tmp_path / "study/report.md").read_text()
    if what == "four optimizers":
        assert arms == STUDIES[what][3:] and len(rows) == 4 * 2
        rates = {row["arm"]: float(row["learning_rate"]) for row in rows}
        assert list(rates.values()) == [0.001, 0.05, 0.24, 0.0003]
        pairing = "| the same | the same | auto: the same | the same |"
    elif "networks" in what:
        assert len(arms) == 2 and len(rows) == 2 * 2 * 2
        assert {row["augment"] for row in rows} == {"flip", "flip+crop,padding=1"}
        pairing = "| the same | the same | flip, crop: the same | different |"
    else:
        assert {row["dataset"] for row in rows} == {"tiny", "shapes10"} and len(rows) == 8
        pairing = "| the same | the same | auto: the same | the same |"
    assert pairing in text.partition("## What was paired")[2]
