"""How a program starts: the memory that it asks for."""

import os
import sys

import jax
import pytest

from cnnlab import backend, jax_private
from cnnlab.errors import InputError

COMMAND = ["python", "-X", "dev", __file__, "--epochs", "1"]


@pytest.fixture
def restarts(monkeypatch, tmp_path):
    """Restart under a setting of Linux, in an environment, started as a command; what was run."""
    calls = []
    monkeypatch.setattr(os, "execv", lambda path, args: calls.append((path, args)))
    monkeypatch.setattr(backend, "HUGE_PAGES_SETTING", str(tmp_path / "enabled"))

    def restart(setting="always [madvise] never", environment=(), command=COMMAND, argv=None):
        if setting:
            (tmp_path / "enabled").write_text(setting)
        monkeypatch.setattr(os, "environ", dict(environment))
        monkeypatch.setattr(sys, "orig_argv", command)
        monkeypatch.setattr(sys, "argv", command[3:] if argv is None else argv)
        backend.restart_with_huge_pages()
        return calls, dict(os.environ)

    return restart


def test_a_script_restarts_with_its_own_command(restarts):
    calls, environment = restarts()
    assert calls == [(sys.executable, [sys.executable, *COMMAND[1:]])]
    assert environment == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"setting": "[always] madvise never"}, id="given to all"),
        pytest.param({"setting": "always madvise [never]"}, id="given to none"),
        pytest.param({"setting": ""}, id="another system"),
        pytest.param({"environment": [("GLIBC_TUNABLES", "")]}, id="the user's, or restarted"),
        pytest.param({"command": ["python", "-c", "pass"], "argv": ["-c"]}, id="no script"),
        pytest.param({"command": ["python", "-"], "argv": ["-"]}, id="standard input"),
        pytest.param({"command": ["python"], "argv": [""]}, id="a console"),
        pytest.param({"command": ["python"], "argv": []}, id="embedded"),
        pytest.param({"command": ["python", "-m", "train"], "argv": [__file__]}, id="a module"),
    ],
)
def test_nothing_else_restarts(settings, restarts):
    calls, environment = restarts(**settings)
    assert not calls and environment == dict(settings.get("environment", ()))


@pytest.fixture
def unasked():
    """No platform is asked for."""
    before = jax.config.values["jax_platforms"]
    jax.config.update("jax_platforms", "")
    yield
    jax.config.update("jax_platforms", before)


BUSY = "The TPU is already in use by process 42.\nMore."


@pytest.mark.parametrize(
    ("accelerators", "environment", "said"),
    [
        ({"tpu": BUSY}, {}, "has a TPU that JAX cannot use (The TPU is already in use by process"),
        ({"cuda": "no supported devices"}, {}, "has a GPU that JAX cannot use (no supported"),
        ({"cuda": "no supported devices"}, {"CUDA_VISIBLE_DEVICES": "0"}, "has a GPU"),
        ({"cuda": "no supported devices"}, {"CUDA_VISIBLE_DEVICES": ""}, None),
        ({"cuda": "no supported devices"}, {"CUDA_VISIBLE_DEVICES": "-1"}, None),
        ({}, {}, None),
    ],
)
def test_nobody_trains_on_the_cpu_unawares(accelerators, environment, said, unasked, monkeypatch):
    monkeypatch.setattr(jax_private, "unusable_accelerators", lambda: accelerators)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if said is None:
        assert backend.start() == jax.devices()
        return
    with pytest.raises(InputError) as refused:
        backend.start()
    assert said in str(refused.value) and "set JAX_PLATFORMS=cpu" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_cpu_that_is_asked_for_is_taken(monkeypatch):
    monkeypatch.setattr(jax_private, "unusable_accelerators", lambda: {"tpu": BUSY})
    assert backend.start() == jax.devices()
