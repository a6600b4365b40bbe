"""Runs an experiment and counts what it made: `python tests/support/counting.py OUT SCRIPT ...`.

OUT gets a JSON object: `programs`, how many programs were asked for, `compiled`, how many of them
were compiled, and `decoded`, how many splits were gone through.
"""

import json
import runpy
import sys
from pathlib import Path

import jax

from cnnlab.data import contents


def main() -> None:
    out = Path(sys.argv[1])
    counts = {"programs": 0, "compiled": 0, "decoded": 0}
    passes = contents._passes

    def counted(*args):
        counts["decoded"] += 1
        return passes(*args)

    def seen(event: str, **_: object) -> None:
        if event == "/jax/compilation_cache/compile_requests_use_cache":
            counts["programs"] += 1
            counts["compiled"] += 1
        elif event == "/jax/compilation_cache/cache_hits":
            counts["compiled"] -= 1

    contents._passes = counted
    jax.monitoring.register_event_listener(seen)
    sys.argv = sys.argv[2:]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        out.write_text(json.dumps(counts))


if __name__ == "__main__":
    main()
