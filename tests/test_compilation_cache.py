"""Compiled programs come back, and a cache in any state costs time and nothing else."""

import gc
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from cnnlab import compilation_cache, verified


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    programs = compilation_cache._Programs(tmp_path / "file" / "xla")
    programs.put("key", b"program")
    assert programs.get("key") is None


def test_programs_used_last_stay_when_there_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "PROGRAMS_LIMIT", 1000)

    def put(number):
        # 100 bytes stored
        return compilation_cache._Programs(tmp_path / "xla").put(str(number), bytes([number]) * 68)

    for number in range(9):
        put(number)
        os.utime(tmp_path / "xla" / str(number), (number, number))
    # It is used: 1 is the oldest now
    assert compilation_cache._Programs(tmp_path / "xla").get("0") == bytes(68)
    put(9)
    assert len(list((tmp_path / "xla").iterdir())) == 10
    put(10)
    assert sorted(int(path.name) for path in (tmp_path / "xla").iterdir()) == [0, 7, 8, 9, 10]


def test_programs_that_another_process_removes_are_no_matter(tmp_path, monkeypatch):
    """Between listing them and looking at each. An earlier version left the listing open, with a
    warning later on.
    """
    monkeypatch.setattr(compilation_cache, "PROGRAMS_LIMIT", 1000)
    for number in range(20):
        verified.write(tmp_path / str(number), np.zeros(68, np.uint8))
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    compilation_cache._Programs(tmp_path).put("new", bytes(68))
    gc.collect()
    assert len([path for path in tmp_path.iterdir() if path.exists()]) == 5


PROGRAM = """
import json, pathlib, sys, warnings
warnings.simplefilter("error")
import jax, numpy as np
from jax.sharding import PartitionSpec as P
from cnnlab import compilation_cache, verified

compilation_cache.keep_compilations()
compilation_cache.keep_compilations()
hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None
)

def run():
    "Hits of the cache, compiling for two devices anew, and what the program says."
    jax.clear_caches()
    hits.clear()
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    total = lambda x: jax.lax.psum(x.sum(), "data")
    step = jax.shard_map(total, mesh=mesh, in_specs=P("data"), out_specs=P())
    return len(hits), float(jax.jit(step)(np.arange(8.0, dtype=np.float32))), len(hits)

said = [run(), run()]
flipped = lambda old: old[:40] + bytes([old[40] ^ 1]) + old[41:]
for content in (lambda old: old[:-1], flipped, lambda old: b""):
    for file in (verified.folder() / "xla").glob("*"):
        file.write_bytes(content(file.read_bytes()))
    said += [run(), run()]
print(json.dumps([(value, hits) for _, value, hits in said]))
"""


def in_a_process(**env) -> list:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | env, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_compiled_programs_are_kept_and_their_damage_noticed(folder):
    said = in_a_process()
    assert {value for value, _ in said} == {28.0}
    hits = [hits for _, hits in said]
    assert hits[::2] == [0, 0, 0, 0]  # at first, and after each damage
    assert min(hits[1::2]) >= 1  # kept, and kept anew
    assert not list((folder / "xla").glob(".*"))


@pytest.mark.slow
def test_a_folder_for_programs_that_cannot_be_written_is_no_matter(tmp_path):
    (tmp_path / "file").write_text("in the way")
    said = in_a_process(CNNLAB_CACHE=str(tmp_path / "file"))
    assert {(value, hits) for value, hits in said} == {(28.0, 0)}


@pytest.mark.slow
def test_the_folder_that_jax_was_given_is_left_to_it(tmp_path, folder):
    own = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    assert {value for value, _ in in_a_process(**own)} == {28.0}
    assert list((tmp_path / "own").glob("jit_*")) and not folder.exists()
