"""How a program starts JAX: memory, devices, and XLA's options for them."""

import os
import sys
from types import SimpleNamespace

import jax
import pytest

from cnnlab import backend

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


def device(platform, process=0):
    return SimpleNamespace(platform=platform, process_index=process)


@pytest.mark.parametrize(
    ("devices", "cores", "is_one_core"),
    [
        ([device("cpu")] * 2, 2, True),
        ([device("cpu")] * 8, 2, True),
        ([device("cpu")], 1, True),
        ([device("cpu")], 2, False),
        ([device("cpu"), device("cpu", process=1)], 2, False),
        ([device("tpu")] * 8, 2, False),
    ],
)
def test_a_device_for_each_core_computes_in_one_thread(devices, cores, is_one_core, monkeypatch):
    monkeypatch.setattr(backend, "_cores", lambda: cores)
    assert bool(backend.compiler_options(devices)) == is_one_core


def test_xla_knows_the_options():
    double = jax.jit(lambda x: 2 * x, compiler_options=backend.ONE_CORE)
    assert double(1.0) == 2
