"""experiments/launch/: every file parses, and every command in it is one that its script
understands.
"""

import os
import re
import shlex
import subprocess
import sys

import pytest
import yaml
from scripts import ROOT

from cnnlab.cli import EXIT_INPUT, EXIT_PREEMPTED, parse
from cnnlab.config import Config
from cnnlab.study.plan import Study

pytestmark = pytest.mark.slow

LAUNCH = ROOT / "experiments/launch"
SHELL, YAML = sorted(LAUNCH.glob("*.sh")), sorted(LAUNCH.glob("*.yaml"))
FLAGS = {"ablate": Study, "train": Config}

# What the files call, noting how.
STUB = """#!/usr/bin/env bash
name=$(basename "$0")
[[ $name != srun ]] || { while [[ $1 == -* ]]; do shift; done; exec "$@"; }
{ printf '%q ' "$name" "$@"; echo; } >> "$CALLS"
[[ $name != python ]] || exit "${STATUS:-0}"
"""
# A cloud of one slice. Its files: the state of the slice in the queue and of its machines; how the
# next slices come up, and how the next trainings end (status, both states); without a line, well.
CLOUD = r"""#!/usr/bin/env bash
{ printf '%q ' gcloud "$@"; echo; } >> "$CALLS"
cd "$CLOUD"
next() { line=$(head -n 1 "$1" 2>/dev/null || true); sed -i 1d "$1" 2>/dev/null || true; }
case "$*" in
  *queued-resources\ create*)
    [[ ! -e queue ]] || exit 1
    next made && echo "${line:-ACTIVE}" > queue && echo READY > machines ;;
  *queued-resources\ describe*) cat queue && sed -i 's/PROVISIONING/ACTIVE/' queue ;;
  *queued-resources\ delete*) rm queue machines ;;
  *tpu-vm\ describe*) cat machines ;;
  *train.py*)
    next ends && [[ $line != INT ]] || { kill -INT $PPID; exit 1; }
    read -r status queue machines <<< "${line:-0 ACTIVE READY}"
    echo "$queue" > queue && echo "$machines" > machines && exit "$status" ;;
esac
"""


def head(path):
    """The commands that the head of a file shows, a line each; what follows two blanks is said
    about them.
    """
    text = re.sub(r"\\\n# +", "", path.read_text())
    return [re.split(r"  +", line)[0] for line in re.findall(r"^#   (\S.*)$", text, re.MULTILINE)]


def understood(text):
    """Parse the flags of the experiments that a text of shell runs; their names."""
    found = re.findall(r"experiments/(\w+)\.py ?(.*)", text.replace("\\\n", " "))
    for name, flags in found:
        parse(FLAGS[name], shlex.split(flags))
    return [name for name, _ in found]


@pytest.fixture
def run(tmp_path):
    """Runs a file of experiments/launch by its command, with stubs of all that it calls; what it
    called.
    """
    for name in ("srun", "scontrol", "gcloud", "git", "ray", "python"):
        (tmp_path / name).write_text(CLOUD if name == "gcloud" else STUB)
        (tmp_path / name).chmod(0o755)

    def run(command, status=0, errors="", **env):
        (tmp_path / "calls").write_text("")
        words = shlex.split(command)
        # After sbatch and its flags
        script = next(i for i, word in enumerate(words) if word.endswith(".sh"))
        paths = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "CALLS": tmp_path / "calls",
            "CLOUD": tmp_path,
            "PYTHON": tmp_path / "python",
        }
        slurm = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "4"}
        user = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {
            "JAX_PLATFORMS": "cpu"
        }
        environment = {
            **user,
            **slurm,
            **{k: str(v) for k, v in paths.items()},
            "BUCKET": "gs://bucket",
            "PAUSE": "0.01",
            **env,
        }
        done = subprocess.run(
            ["bash", *words[script:]], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == status, done.stderr
        assert re.fullmatch(errors, done.stderr)
        return (tmp_path / "calls").read_text()

    return run


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_a_shell_file_does_what_its_head_says(path, run):
    assert not subprocess.run(["bash", "-n", path], capture_output=True, text=True).stderr
    assert os.access(path, os.X_OK)
    commands = [line for line in head(path) if path.name in line]
    called = "".join(run(command) for command in commands)
    ssh = "\n".join(
        shlex.split(line)[-1].removeprefix("--command=")
        for line in called.splitlines()
        if " ssh " in line
    )
    assert set(understood(ssh or called)) == {
        "slurm_train": {"train"},
        "gcloud_tpu": {"train"},
    }.get(path.stem, {"ablate"})
    steps = re.findall(r"^  (\w[\w |]*)\) ", path.read_text(), re.MULTILINE)
    shown = {shlex.split(command)[1] for command in commands if steps}
    assert shown == {step for group in steps for step in group.split(" | ")}


@pytest.mark.parametrize("name", ["slurm_array.sh", "slurm_train.sh"])
def test_a_job_that_has_saved_is_queued_again_and_a_failed_one_is_not(name, run):
    (command,) = head(LAUNCH / name)
    assert "scontrol requeue 12" in run(command, EXIT_PREEMPTED, STATUS=str(EXIT_PREEMPTED))
    assert "scontrol" not in run(command, EXIT_INPUT, STATUS=str(EXIT_INPUT))


TAKEN = ["75 ACTIVE PREEMPTED", "255 SUSPENDED ", "1 SUSPENDING ", "1 ACTIVE PREEMPTED"]


@pytest.mark.parametrize(
    ("made", "ends", "status", "slices"),
    [
        ([], [], 0, 1),
        ([], ["75 ACTIVE READY", *TAKEN], 0, 6),
        (["PROVISIONING", "FAILED", "SUSPENDED", "ACTIVE"], ["75 SUSPENDED "], 0, 4),
        ([], [*TAKEN, "2 ACTIVE READY"], 2, 5),  # another try would find the same
        ([], [*TAKEN, *["1 ACTIVE READY"] * 3], 1, 7),  # a fault of the run
        (["FAILED"] * 9, [], 1, 3),
        ([], TAKEN * 9, 1, 8),  # TRIES
    ],
    ids=["well", "taken", "queue", "input", "failed", "refused", "tries"],
)
def test_a_slice_that_is_taken_away_is_made_again_until_the_run_ends(
    made, ends, status, slices, run, tmp_path
):
    (tmp_path / "made").write_text("".join(f"{line}\n" for line in made))
    (tmp_path / "ends").write_text("".join(f"{line}\n" for line in ends))
    command = f"{LAUNCH}/gcloud_tpu.sh run --dataset cifar10 --loss focal,gamma=2"
    calls = run(command, status, "slice .* of 8 ended with status .*\\n" * (slices - 1), TRIES="8")
    steps = re.findall("queued-resources (create|delete)", calls)
    assert steps == ["create", "delete"] * slices
    trainings = {line for line in calls.splitlines() if "train.py" in line}
    assert len(trainings) == (0 if made[:1] == ["FAILED"] else 1)  # the same command each time
    assert not (tmp_path / "queue").exists()


def test_a_slice_that_is_there_is_neither_used_nor_deleted(run, tmp_path):
    (tmp_path / "queue").write_text("ACTIVE\n")
    error = "error: BUCKET is not set, or there is a slice mine: .*\n"
    calls = run(f"{LAUNCH}/gcloud_tpu.sh run --dataset cifar10", 2, error, NAME="mine")
    assert calls.count("gcloud") == calls.count("describe") == 1


def test_ctrl_c_deletes_the_slice(run, tmp_path):
    (tmp_path / "ends").write_text("INT\n")  # as gcloud does, it ends with a status
    assert run(f"{LAUNCH}/gcloud_tpu.sh run", 130).count("train.py") == 1
    assert not (tmp_path / "queue").exists()


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_parses(path):
    assert yaml.safe_load(path.read_text()) and any(path.name in line for line in head(path))


def test_the_kubernetes_job():
    spec = yaml.safe_load((LAUNCH / "kubernetes_job.yaml").read_text())["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    command = shlex.join([*container["command"], *container["args"]])
    assert understood(command.replace("$(JOB_COMPLETION_INDEX)", "3")) == ["ablate"]
    assert f"$(JOB_COMPLETION_INDEX)/{spec['completions']}" in command
    # As podFailurePolicy wants it
    assert spec["completionMode"] == "Indexed" and pod["restartPolicy"] == "Never"
    codes = [
        rule["onExitCodes"] | {"action": rule["action"]}
        for rule in spec["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    ]
    assert [(rule["action"], rule["values"]) for rule in codes] == [
        ("Ignore", [EXIT_PREEMPTED]), ("FailIndex", [EXIT_INPUT])
    ]  # fmt: skip
    assert {rule["containerName"] for rule in codes} == {container["name"]}
    assert [mount["name"] for mount in container["volumeMounts"]] == [
        volume["name"] for volume in pod["volumes"]
    ]


def test_the_skypilot_task():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    run = task["run"].replace("$BUCKET", "gs://bucket")
    assert understood(run) == ["train"] and "BUCKET" in task["envs"]
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [EXIT_PREEMPTED]


@pytest.mark.slow
def test_a_job_array_trains_a_study(tfds_root, tmp_path, run):
    small = (
        "--dataset tiny --model softmax_regression --batch-size 32 --epochs 1 --seeds 2 --losses "
        "mse focal"
    )
    for task, reports in (("1", 0), ("0", 1)):
        run(
            f"{LAUNCH}/slurm_array.sh {small} --progress off --workdir {tmp_path}/study",
            PYTHON=sys.executable, SLURM_ARRAY_TASK_ID=task, SLURM_ARRAY_TASK_COUNT="2",
        )  # fmt: skip
        assert len(list(tmp_path.glob("study/report.html"))) == reports
    assert len(list(tmp_path.glob("study/cells/*.json"))) == 2
