"""Arrays come back bit by bit, and a cache in any state costs time and nothing else."""

import numpy as np
import pytest

from cnnlab import verified
from cnnlab.data import cache


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def some_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 256, (7, 5, 3), np.uint8),
        "sums": rng.integers(-(2**60), 2**60, (2, 3)),
        "names": np.array(["one", "zwei", "três", ""]),
        "version": np.array("3.0.2"),
        "nothing": np.zeros((0, 4), np.float32),
        "strided": np.arange(20.0).reshape(4, 5)[::2, ::-1],
    }


def assert_same(found, wanted):
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)


def test_arrays_come_back_aligned(folder):
    made = cache.arrays("some", some_arrays)
    read = cache.arrays("some", lambda: pytest.fail("it is in the cache"))
    for found in (made, read):
        assert_same(found, some_arrays())
        for array in found.values():
            assert array.ctypes.data % 64 == 0
            array[...] = array  # they may be written to
    assert [path.name for path in folder.iterdir()] == ["some.arrays"]


def test_every_damage_is_noticed(folder):
    cache.arrays("some", some_arrays)
    (file,) = folder.iterdir()
    content = file.read_bytes()
    damages = [b"", content[:31], content[:32], content[:-1], content + b"\0", bytes(len(content))]
    for place in range(0, len(content), 7):
        damages.append(
            content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]
        )
    for damaged in damages:
        file.write_bytes(damaged)
        assert verified.read(file) is None
    assert_same(cache.arrays("some", some_arrays), some_arrays())
    assert file.read_bytes() == content  # and stored again


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "file"))
    assert_same(cache.arrays("some", some_arrays), some_arrays())
