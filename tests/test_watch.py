"""What the parent of a process of several says of its end: real processes, with XLA's words as they were recorded."""

import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

from cnnlab import hosts, watch

# jax 0.10 where process 1 was killed; a record's second line is the number of a process, and says nothing of XLA
TASKS = """
E1128 11:10:50.561002    5448 coordination_service.cc:1287] Polled an error from coordination service: UNAVAILABLE:
1
The tasks have crashed. Check the task logs for an earlier error, or scheduler events to debug further.
"""
# jax 0.12 where process 0 was
FATAL = """
W1128 11:11:10.497965    5997 preemption_sync_manager.cc:147] Failed to retrieve preemption notice: UNAVAILABLE
Additional GRPC error information from remote target coordination_service while calling GetKeyValue:
=== Source Location Trace: ===
external/xla+/xla/tsl/distributed_runtime/rpc/grpc_util.h:89
. This is only expected if one of the tasks is unhealthy. Check the logs for the actual root cause.

E1128 11:11:10.498117    5997 coordination_service_agent.cc:288] Polled an error from coordination service.
F1128 11:11:10.498122    5997 client.h:86] Terminating process because the JAX distributed service detected fatal errors
=== Source Location Trace: ===
external/xla+/xla/pjrt/distributed/coordination/coordination_service_error_util.cc:64

"""
OTHER = "W1128 11:12:00.000000    5448 cuda_dnn.cc:1] something else\nand its second line\n"


def end(child: str) -> tuple[int, str]:
    """Exit status and standard error of a watched process that runs `child`, Python."""
    code = "import os, signal, sys, time\nfrom cnnlab import watch\nwatch.watched()\n" + textwrap.dedent(child)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("child", "status", "errors"),
    [
        ("pass", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("print('ours', file=sys.stderr); sys.exit(1)", 1, "ours\n"),
        (f"os.write(2, {OTHER.encode()})", 0, OTHER),
        (f"os.write(2, {(TASKS + OTHER).encode()})", 0, "\n" + OTHER),
        ("os.abort()", 2, watch.ALONE + "\n"),
        ("watch.joined(); os.abort()", 134, ""),
        (f"watch.joined(); os.write(2, {FATAL.encode()}); os.abort()", watch.EXIT_LOST, "\n" + watch.LOST + "\n"),
        (f"os.write(2, {TASKS.strip().encode()} + b'\\n'); watch.leave(75, gone=True)", 75, watch.LOST + "\n"),
        ("print('stopped', file=sys.stderr); watch.leave(75)", 75, "stopped\n"),
        # XLA's abort while the child is about to exit for a reason that it has given
        (
            f"watch.joined(); print('stopped', file=sys.stderr); os.write(2, b'cnnlab: exit 1\\n' + "
            f"{FATAL.strip().encode()}); os.abort()",
            1,
            "stopped\n",
        ),
        ("signal.signal(signal.SIGTERM, signal.SIG_DFL); os.kill(os.getpid(), 15)", 75, "stopped by SIGTERM\n"),
        # handed on; Python tells where. A shell's background jobs start with the signal ignored
        (
            "signal.signal(signal.SIGINT, signal.default_int_handler); "
            "os.kill(os.getppid(), signal.SIGINT); time.sleep(30)",
            130,
            None,
        ),
    ],
)  # fmt: skip
def test_the_end_of_a_watched_process_is_its_own_words_or_one_line(child, status, errors):
    found = end(child)
    assert found[0] == status, found
    assert errors is None or found[1] == errors


def test_only_the_words_of_abandoned_writers_are_dropped(monkeypatch):
    said = []
    monkeypatch.setattr(sys, "__unraisablehook__", said.append)
    dropped, kept = (SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "else"))
    hosts._unraisable(dropped)
    hosts._unraisable(kept)
    assert said == [kept]
