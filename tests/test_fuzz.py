"""Whatever is written on a command line, in a settings file or in a stored one: it is taken, or
refused in one line before anything is made. No traceback, no hang.
"""

import fuzzing
import pytest
from fuzzing import SETTINGS, specs
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnlab import cli, parts, spec
from cnnlab.errors import InputError

SCRIPTS = {  # and the class of their flags
    "train": "Config", "ablate": "Study", "speedrun": "SpeedRun", "tpu_plan": "Plan",
    "report_card": "Arguments", "show_augment": "Arguments", "evaluate": "Arguments",
    "predict": "Arguments", "reanalyse": "Arguments", "scaling": "Options",
}  # fmt: skip
# They wait for other processes, or start some.
LEFT_OUT = {"coordinator", "processes", "process", "executor", "beside", "torch_python"}


def tiers(few, many):
    """The same test with few cases, and slow with many."""
    cases = [few, pytest.param(many, marks=pytest.mark.slow)]
    return pytest.mark.parametrize("count", cases)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder of its own, no data, and no work."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts.Parts, "open_dataset", fuzzing.admit)
    monkeypatch.setattr("cnnlab.report_card.card", fuzzing.admit)
    monkeypatch.setattr("cnnlab.tpu.slices.describe", fuzzing.admit)


@tiers(3, 120)
@pytest.mark.parametrize("name", SCRIPTS)
def test_command_lines(name, count):
    module = fuzzing.script(name)
    settings_class = getattr(module, SCRIPTS[name])
    flags = sorted(cli._hints(settings_class).keys() - LEFT_OUT)

    @settings(SETTINGS, max_examples=count)
    @given(fuzzing.command_lines([*flags, "config", "no_such_flag"]))
    def check(args):
        fuzzing.outcome(module.main, settings_class, args)

    check()


@tiers(60, 1500)
def test_specs(count):
    """A spec that is found is written as one that is found again, and is the same."""

    @settings(SETTINGS, max_examples=count)
    @given(st.sampled_from(sorted(parts.KINDS)), specs())
    def check(kind, text):
        with fuzzing.limited():
            try:
                parsed = spec.parse_pipeline(text)
                found = [spec.find(parts.KINDS[kind], part) for part in parsed]
            except InputError as error:
                assert "\n" not in str(error)
                return
        for part in found:
            assert str(spec.find(parts.KINDS[kind], str(part))) == str(part)

    check()
