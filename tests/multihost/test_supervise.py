"""What the parent of a process of several says of its end: real processes, with XLA's words as they
were recorded.
"""

import os
import subprocess
import sys
import time

import pytest

from cnnlab.multihost import supervise

pytestmark = pytest.mark.slow

# jax 0.10 where process 1 was killed; a record's second line is the number of a process, and says
# nothing of XLA
TASKS = """
E1128 11:10:50.561002    5448 coordination_service.cc:1287] Polled an error: UNAVAILABLE:
1
The tasks have crashed. Check the task logs for an earlier error.
"""
# jax 0.12 where process 0 was
FATAL = """
W1128 11:11:10.497965    5997 preemption_sync_manager.cc:147] Failed to retrieve: UNAVAILABLE
Additional GRPC error information from remote target coordination_service while calling GetKeyValue:
=== Source Location Trace: ===
external/xla+/xla/tsl/distributed_runtime/rpc/grpc_util.h:89
. This is only expected if one of the tasks is unhealthy. Check the logs for the actual root cause.

E1128 11:11:10.498117    5997 coordination_service_agent.cc:288] Polled an error.
F1128 11:11:10.498122    5997 client.h:86] Ends: JAX distributed service detected fatal errors
=== Source Location Trace: ===
external/xla+/xla/pjrt/distributed/coordination/coordination_service_error_util.cc:64

"""
OTHER = "W1128 11:12:00.000000    5448 cuda_dnn.cc:1] something else\nand its second line\n"


# what XLA writes when a run is asked to stop; the run continues after it
PREEMPTION = "I1128 11:13:00.000000    5448 preemption_notifier.cc:9] SIGTERM caught\n"


def code(child: str) -> list[str]:
    """The command of a watched process that runs `child`, Python."""
    head = (
        "import os, signal, subprocess, sys, time\nfrom cnnlab.multihost import "
        "supervise\nsupervise.watched()\n"
    )
    return ["env", "--unset=PYTHONUNBUFFERED", sys.executable, "-c", head + child]


def end(child: str, **options) -> tuple[int, str]:
    """Exit status and standard error."""
    done = subprocess.run(code(child), stderr=subprocess.PIPE, text=True, timeout=60, **options)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("child", "status", "errors"),
    [
        ("pass", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("print('ours', file=sys.stderr); sys.exit(1)", 1, "ours\n"),
        (f"os.write(2, {OTHER.encode()})", 0, OTHER),
        (f"os.write(2, {(TASKS + OTHER).encode()})", 0, "\n" + OTHER),
        ("os.abort()", 2, supervise.ALONE + "\n"),
        ("supervise.joined(); os.abort()", 134, ""),
        (f"supervise.joined(); os.write(2, {FATAL.encode()}); "
         "os.abort()", supervise.EXIT_LOST, "\n" + supervise.LOST + "\n"),
        (f"os.write(2, {TASKS.strip().encode()} + b'\\n'); supervise.leave(75, "
         "gone=True)", 75, supervise.LOST + "\n"),
        ("print('stopped', file=sys.stderr); supervise.leave(75)", 75, "stopped\n"),
        # XLA's abort while the child is about to exit for a reason that it has given
        (
            "supervise.joined(); print('stopped', file=sys.stderr); supervise._tell('exit 1'); "
            f"os.write(2, {FATAL.strip().encode()}); os.abort()",
            1,
            "stopped\n",
        ),
        ("signal.signal(signal.SIGTERM, signal.SIG_DFL); os.kill(os.getpid(), "
         "15)", 75, "stopped by SIGTERM\n"),
        # what others write is kept, after a record that is dropped and in the middle of a line
        (
            f"os.write(2, {PREEMPTION.encode()}); subprocess.run(['sh', '-c', 'sleep 0.2; echo "
            "theirs >&2'])",
            0,
            "theirs\n",
        ),
        ("supervise.joined(); os.write(2, b'50%'); supervise.leave(75, "
         "gone=True)", 75, f"50%{supervise.LOST}\n"),
        (
            f"supervise.joined(); os.write(2, b'50%' + {FATAL.encode()}); os.abort()",
            75,
            f"50%\n{supervise.LOST}\n",
        ),
        # a signal to the parent once the child has ended
        (
            "subprocess.Popen(['sh', '-c', f'sleep 0.3; kill -TERM {os.getppid()}; sleep 1'], "
            "start_new_session=True); supervise.leave(0)",
            0,
            "",
        ),
        # handed on; Python tells where. A shell's background jobs start with the signal ignored
        (
            "signal.signal(signal.SIGINT, signal.default_int_handler); os.kill(os.getppid(), "
            "signal.SIGINT); time.sleep(30)",
            130,
            None,
        ),
    ],
)  # fmt: skip
def test_the_end_of_a_watched_process_is_its_own_words_or_one_line(child, status, errors):
    found = end(child)
    assert found[0] == status, found
    assert errors is None or found[1] == errors


def test_a_line_of_two_processes_is_one_of_them():
    writing = "for _ in range(3000): print('line of ' + sys.argv[1], file=sys.stderr)"
    read, write = os.pipe()
    children = [subprocess.Popen([*code(writing), name], stderr=write) for name in "AB"]
    os.close(write)
    with os.fdopen(read) as errors:
        lines = errors.read().splitlines()
    assert [child.wait() for child in children] == [0, 0]
    assert sorted(lines) == ["line of A"] * 3000 + ["line of B"] * 3000


def test_a_signal_in_mid_write_cuts_nothing():
    child = (
        "signal.signal(signal.SIGALRM, lambda *_: None); signal.setitimer(signal.ITIMER_REAL, "
        "0.3)\n"
    )
    with subprocess.Popen(
        code(child + "print('y' * 300_000, file=sys.stderr)"), stderr=subprocess.PIPE
    ) as process:
        time.sleep(0.8)
        assert len(process.stderr.read()) == 300_001


def test_a_slow_reader_gets_all_lines():
    child = (
        "supervise.joined()\nfor _ in range(120): os.write(2, b'z' * 999 + "
        "b'\\n')\nsupervise.leave(75, gone=True)"
    )
    with subprocess.Popen(code(child), stderr=subprocess.PIPE, text=True) as process:
        time.sleep(2.5)
        lines = process.stderr.read().splitlines()
    assert (process.returncode, len(lines), lines[-1]) == (75, 121, supervise.LOST)


def test_the_status_needs_no_reader():
    """Nobody reads standard error any more, it is closed, or standard output is on a full disk."""
    with subprocess.Popen(
        code("time.sleep(0.5); supervise.leave(75, gone=True)"), stderr=subprocess.PIPE
    ) as process:
        process.stderr.close()
    assert process.returncode == 75
    closed = ["sh", "-c", 'exec "$@" 2>&-', "sh", *code("sys.exit(3)")]
    assert subprocess.run(closed, timeout=60).returncode == 3
    with open("/dev/full", "w") as full:
        assert end("print('abc', end=''); supervise.leave(75, gone=True)", stdout=full) == (
            75,
            supervise.LOST + "\n",
        )
