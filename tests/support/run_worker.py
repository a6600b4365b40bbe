"""Real runs of experiments/train.py that can be stopped at any moment.

`python tests/support/run_worker.py` imports jax and cnnlab once, then forks a child that is
experiments/train.py for each request (JSON lines: arguments, file for its output), so that the next
start after a kill costs no imports. The answers are `pid <n>` and `exit <status>`, negative for a
signal.
"""

import json
import os
import pathlib
import sys
import traceback

ROOT = pathlib.Path(__file__).parents[2]


def _serve() -> None:
    sys.path.insert(0, str(ROOT / "experiments"))
    import jax  # noqa: F401
    import orbax.checkpoint  # noqa: F401
    import tensorflow_datasets  # noqa: F401
    import train

    from cnnlab import cli
    from cnnlab.training import run  # noqa: F401

    for line in sys.stdin:
        args, output = json.loads(line)
        child = os.fork()
        if child == 0:
            target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(target, stream)
            sys.argv = ["experiments/train.py", *args]
            try:
                cli.main(train.main, train.Config, args)
            except SystemExit as end:
                status = end.code or 0
            except BaseException:
                traceback.print_exc()
                status = 99
            else:
                status = 0
            sys.stdout.flush()
            os._exit(status)
        print("pid", child, flush=True)
        print("exit", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
