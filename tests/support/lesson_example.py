"""The lessons' scripts as modules."""

import importlib.util
import sys
from pathlib import Path

from cnnlab.lesson import Claim, Lesson

LESSONS = Path(__file__).parents[2] / "experiments" / "lessons"


def lesson(name):
    """The script experiments/lessons/NAME.py as a fresh module, not run."""
    spec = importlib.util.spec_from_file_location(f"lesson_{name}", LESSONS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and inspect look for it there
    spec.loader.exec_module(module)
    return module


def claims(module, flags=None):
    """The claims of a lesson, taught here and now."""
    return [part for part in module.teach(flags or Lesson()) if isinstance(part, Claim)]
