"""Processes that read ahead end with the process that they read for, however that ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripts import ROOT


def children(pid):
    """The process ids of all that descend from a process."""
    of_threads = Path(f"/proc/{pid}/task").glob("*/children")
    direct = [child for file in of_threads for child in file.read_text().split()]
    return [child for number in map(int, direct) for child in (number, *children(number))]


def is_alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into Linux's /proc")
def test_readers_of_a_killed_run_end(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    command = [sys.executable, str(ROOT / "experiments" / "train.py"), "--feed", "streaming"]
    command += ["--workers", "2", "--epochs", "100", "--model", "mlp,hidden=[8]"]
    command += ["--fraction", "0.1", "--workdir", str(tmp_path / "run"), "--progress", "off"]
    with subprocess.Popen(
        command, env=environment | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith("epoch"):
                break
        readers = children(process.pid)
        process.send_signal(signal.SIGKILL)
    assert len(readers) >= 2
    until = time.monotonic() + 20
    while any(map(is_alive, readers)) and time.monotonic() < until:
        time.sleep(0.1)
    left = [pid for pid in readers if is_alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
