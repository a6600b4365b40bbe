"""Running the experiments as a user does."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def script(name, *args, cwd=ROOT, **env):
    """Run an experiment on one device, quietly, on the tiny data set's directory."""
    # A user's process: one device, and without the strictness that optax does not bear.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment = {**inherited, "JAX_PLATFORMS": "cpu", **env}
    command = [sys.executable, str(ROOT / "experiments" / f"{name}.py"), *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=560
    )


def one_line_error(done, status=2):
    """The single line that a failed command printed."""
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def readme_commands(name="train"):
    """Commands of a script in the README of any folder."""
    texts = [path.read_text().replace("\\\n", " ") for path in sorted(ROOT.glob("**/README.md"))
             if not path.relative_to(ROOT).parts[0].startswith(".")]  # fmt: skip
    return re.findall(rf"python experiments/{name}\.py[^\n`#]*", "\n".join(texts))
