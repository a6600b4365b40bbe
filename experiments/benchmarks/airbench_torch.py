"""The original airbench94_muon.py (github.com/KellerJordan/cifar10-airbench) on images of ours: a
contestant's worker.

    python experiments/benchmarks/airbench_torch.py SCRIPT DATA.npz [cpu] [batch_size=500]
        [epochs=8]

SCRIPT is the user's copy, run as it stands but for what the options ask for; DATA.npz holds
train_images uint8[N, 32, 32, 3], train_labels int[N], test_images and test_labels. On CUDA the
network is compiled and warmed up; on the CPU half precision becomes float32, and only Muon's
products stay bfloat16. Prints its version as JSON when it is ready; then for each seed read from
standard input a line of JSON: accuracy (test-time augmentation), plain_accuracy (without, last
epoch), seconds (by the script's count) and memory (the peak so far in bytes). Bad input: one line
of standard error, exit status 2.
"""

import contextlib
import functools
import importlib.util
import json
import os
import re
import resource
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

try:
    import torch  # pyright: ignore[reportMissingImports]
except ImportError:
    sys.exit(f"airbench_torch.py: {sys.executable} has no PyTorch; give one that has")

ON_CPU = {
    'torch.device("cuda")': 'torch.device("cpu")',
    ".half()": ".float()",
    "@torch.compile\n": "",
    "torch.cuda.Event(enable_timing=True)": "Clock()",
    "torch.cuda.synchronize()": "None",
}
SIZES = {"batch_size": "batch_size = 2000\n", "epochs": "ceil(8 * len(train_loader))"}
REPORTED = {"accuracy": "tta_val_acc", "plain_accuracy": "val_acc", "seconds": "time_seconds"}


class Clock:
    """A CUDA event on the host's clock."""

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, later: "Clock") -> float:
        return 1e3 * (later.at - self.at)


def normalize(
    mean: "torch.Tensor", std: "torch.Tensor"
) -> "Callable[[torch.Tensor], torch.Tensor]":
    """Replace torchvision.transforms.Normalize, all that the script needs of torchvision once it
    has its images.
    """
    return lambda images: (images - mean.to(images)[:, None, None]) / std.to(images)[:, None, None]


def refuse(message: str) -> NoReturn:
    print(f"airbench_torch.py: {message}", file=sys.stderr)
    raise SystemExit(2)


def load(script: Path, substitutions: dict[str, str]) -> Any:
    """Load the script as a module without running its `__main__` part; each substitution must find
    something to replace.
    """
    if not script.is_file():
        refuse(f"there is no script {script}")
    source = script.read_text(errors="replace")
    if missing := [old for old in substitutions if old not in source]:
        refuse(f"{script} has no {missing[0]!r}: it is another script, or another version of it")
    for old, new in substitutions.items():
        print(f"airbench_torch.py: {source.count(old)} x {old!r} -> {new!r}", file=sys.stderr)
        source = source.replace(old, new)
    if not importlib.util.find_spec("torchvision"):
        stand_in: Any = types.ModuleType("torchvision")
        # Whoever asks for it finds it
        stand_in.__spec__ = importlib.util.spec_from_loader("torchvision", None)
        stand_in.transforms = stand_in
        stand_in.Normalize = normalize
        sys.modules.update({"torchvision": stand_in, "torchvision.transforms": stand_in})
    module: Any = types.ModuleType("airbench94_muon")
    module.Clock = Clock
    # There torch.compile looks for the globals of what it inlines.
    sys.modules[module.__name__] = module
    # There the script looks for its own source.
    sys.argv[0] = str(script)
    exec(compile(source, script, "exec"), vars(module))
    return module


def write_images(data: Path, batch_size: int) -> None:
    """Put the images into the current directory, where the script's loader looks for them."""
    try:
        arrays = dict(np.load(data))
        splits = {
            which: (arrays[f"{which}_images"], arrays[f"{which}_labels"])
            for which in ("train", "test")
        }
    except Exception as error:  # a damaged file raises anything
        refuse(f"{data} cannot be read: {error}")
    os.mkdir("cifar10")
    for which, (images, labels) in splits.items():
        if images.dtype != np.uint8 or labels.ndim != 1 or images.shape != (len(labels), 32, 32, 3):
            refuse(f"{data}: {which}_images must be uint8[N, 32, 32, 3] and {which}_labels int[N]")
        if which == "train" and len(images) < batch_size:
            refuse(f"{data}: {len(images)} training images do not fill a batch of {batch_size}")
        tensors = {
            "images": torch.from_numpy(images),
            "labels": torch.from_numpy(labels.astype(np.int64)),
        }
        torch.save(tensors | {"classes": [str(k) for k in range(10)]}, f"cifar10/{which}.pt")


def main(script: str, data: str, *options: str) -> None:
    if wrong := [
        option
        for option in options
        if not re.fullmatch(r"cpu|(batch_size|epochs)=[1-9]\d*", option)
    ]:
        refuse(f"unknown option {wrong[0]!r}: there are cpu, batch_size=N and epochs=N")
    sizes = dict(option.split("=") for option in options if option != "cpu")
    substitutions = {SIZES[name]: re.sub(r"\d+", size, SIZES[name]) for name, size in sizes.items()}
    device = "cpu" if "cpu" in options else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        refuse("PyTorch finds no CUDA device; add cpu")
    torch.set_num_threads(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    source = Path(script).resolve()
    images = Path(data).resolve()
    result = {}
    # What the script says goes elsewhere
    say = functools.partial(print, file=sys.stdout, flush=True)
    if not images.is_file():
        refuse(f"there is no {data}")
    with (
        # Next to DATA.npz: who made that, and may end this process at any time, clears both away.
        tempfile.TemporaryDirectory(dir=images.parent) as folder,
        contextlib.chdir(folder),
        contextlib.redirect_stdout(sys.stderr),
    ):
        write_images(images, int(sizes.get("batch_size", 2000)))
        module = load(source, substitutions | (ON_CPU if device == "cpu" else {}))
        module.print_training_details = lambda variables, is_final_entry: result.update(
            {ours: variables.get(theirs) for ours, theirs in REPORTED.items()}
        )
        model = module.CifarNet().to(device, memory_format=torch.channels_last)
        if device == "cuda":
            model.compile(mode="max-autotune")
            module.main("warmup", model)
        say(json.dumps({"torch": torch.__version__}))
        for seed in sys.stdin:
            torch.manual_seed(int(seed))
            module.main(int(seed), model)
            peak = (
                torch.cuda.max_memory_allocated()
                or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            )
            say(json.dumps(result | {"memory": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) > 2 else refuse("SCRIPT and DATA.npz are needed")
