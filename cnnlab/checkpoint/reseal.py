"""Accept a file of a run or a study as it was edited: seal it anew.

python -m cnnlab.checkpoint.reseal RUN/config.json RUN/data.json
"""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from cnnlab import cli, files
from cnnlab.errors import InputError, one_line


@dataclass(frozen=True)
class Arguments:
    """Seal files of a run or a study as they are now, after a deliberate edit."""

    paths: tyro.conf.Positional[tuple[str, ...]]
    """config.json, data.json or summary.json of a run; a cell, the tuning or the manifest of a
    study."""


def main(arguments: Arguments) -> None:
    if not arguments.paths:
        raise InputError("name the files to seal")
    for path in arguments.paths:
        try:
            files.reseal(files.path(path))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path} cannot be sealed: {one_line(error)}") from error


if __name__ == "__main__":
    cli.main(main, Arguments)
