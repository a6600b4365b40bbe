"""What is used of JAX's private modules is in the JAX that is installed, and does its work."""

import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from cnnlab import jax_private


@pytest.mark.slow
@pytest.mark.parametrize("process", ["0", "1"])
def test_jax_keeps_its_programs_in_our_cache(process, tmp_path):
    """In a process of its own: JAX looks for a cache once. By itself only process 0 keeps any."""
    program = """
import sys, jax
from jax._src import distributed
from cnnlab import jax_private

distributed.global_state.process_id = int(sys.argv[2])

class Kept(dict):
    def put(self, key, value):
        self[key] = value

jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
kept = Kept()
jax_private.keep_programs_in(kept)
for _ in range(2):
    jax.clear_caches()
    assert jax.jit(lambda x: x * 3 + 1)(2.0) == 7
assert len(kept) >= 1 and all(isinstance(value, bytes) for value in kept.values())
"""
    command = [sys.executable, "-c", program, str(tmp_path), process]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_one_process_has_no_coordination_client():
    assert jnp.ones(()) == 1 and jax.process_count() == 1
    assert jax_private.coordination_client() is None


@pytest.mark.slow
def test_the_coordination_client_has_keys_and_a_barrier():
    program = """
import sys, jax
from cnnlab import jax_private

jax.distributed.initialize(sys.argv[1], 1, 0)
client = jax_private.coordination_client()
client.key_value_set("key", "3")
assert client.key_value_try_get("key") == "3"
client.wait_at_barrier("barrier", 1000)
"""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", program, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("chips", "gpu", "errors", "found"),
    [
        (0, False, {}, {}),
        (0, False, {"tpu": "no TPU here", "cuda": "no driver"}, {}),  # installed for tpu_plan.py
        (4, False, {"tpu": "busy"}, {"tpu": "busy"}),
        (4, False, {}, {"tpu": "jax[tpu] is not installed"}),
        (0, True, {"cuda": "busy"}, {"cuda": "busy"}),
        (0, True, {}, {}),  # a screen needs one too
    ],
)
def test_accelerators_that_cannot_be_used(chips, gpu, errors, found, monkeypatch):
    from jax._src import hardware_utils, xla_bridge

    monkeypatch.setattr(
        hardware_utils, "num_available_tpu_chips_and_device_id", lambda: (chips, None)
    )
    monkeypatch.setattr(hardware_utils, "has_visible_nvidia_gpu", lambda: gpu)
    monkeypatch.setattr(xla_bridge, "_backend_errors", errors)
    assert jax_private.unusable_accelerators() == found
