"""One of several processes that train together: `python tests/support/host_worker.py REQUEST`.

The request is a JSON object. It takes steps of a configuration, in one precision or several, and
stores what it then has of the state.
"""

import json
import sys

import numpy as np


def main(join: list, fields: dict, seeds: list | None, kinds: list, out: str) -> None:
    from cnnlab.multihost import join as hosts

    hosts.join(*join)
    from stepping import taken

    from cnnlab.config import Config

    config = Config.of(**fields)
    for steps, dtype in kinds:
        np.savez(f"{out}-{dtype}.npz", **taken(config, seeds, steps, dtype))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
