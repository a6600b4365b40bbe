"""experiments/benchmarks/damage.py: every damage changes the file, outcomes are distinguished."""

import importlib.util
import json
import sys

import numpy as np
import pytest
from scripts import ROOT, one_line_error, script

FOLDER = ROOT / "experiments/benchmarks"
NAME = "benchmark_of_damage"


@pytest.fixture(scope="module")
def damage():
    sys.path.append(str(FOLDER))  # where it finds compared.py
    spec = importlib.util.spec_from_file_location(NAME, FOLDER / "damage.py")
    module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(FOLDER))


def test_damages_change_a_file_each_in_its_way(damage):
    content = bytes(range(1, 256)) * 40
    found = dict(damage.damages(content, np.random.default_rng(0), len(damage.BYTES) + 1))
    assert len(found) == len(damage.BYTES) + 1 and content not in found.values()
    flipped = np.frombuffer(found["a flipped bit"], np.uint8) ^ np.frombuffer(content, np.uint8)
    assert np.unpackbits(flipped).sum() == 1
    assert found["deleted"] is None and found["nothing left"] == b""
    assert found["half of it left"] == content[:5100]
    assert found["without its last byte"] == content[:-1]
    assert found["more bytes at its end"].startswith(content)
    assert found["all zeros"] == bytes(10200)
    assert 2008 <= found["a hole of 4 KiB"].count(0) <= 4096  # the last block is shorter
    # A file without bytes can only be deleted, or grow
    names = {name for name, _ in damage.damages(b"", np.random.default_rng(0), 9)}
    assert names == {"deleted", "more bytes at its end"}


@pytest.mark.parametrize("lines", [1, 3])
def test_edits_keep_json_and_change_one_value(damage, lines):
    value = {"a": 1, "b": [0.5, {"c": "x"}], "d": None}
    content = "".join(json.dumps(value) + "\n" for _ in range(lines)).encode()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        for edit in damage.EDITS:
            edited = damage.edited(content, edit, rng)
            values = damage._values(edited)
            assert len(values) == lines and sum(v != value for v in values) == 1
        assert b"NaN" in damage.edited(content, "NaN", rng)
        assert b"Infinity" in damage.edited(content, "infinity", rng)
        fewer = damage.edited(content, "key dropped", rng)
        assert fewer.count(b'":') < content.count(b'":') == 4 * lines
    assert damage.edited(b'["x"]', "number changed", rng) == b'["x"]'  # it has none


@pytest.mark.parametrize(
    ("done", "remade", "outcome"),
    [
        ({"status": 2, "err": "error: no\n"}, False, "refused"),
        ({"status": 2, "err": "two\nlines\n"}, False, "traceback"),
        ({"status": 1, "trace": "Traceback"}, False, "traceback"),
        ({"status": None, "hung": True}, False, "hang"),
        ({"status": 0, "out": "1"}, False, "harmless"),
        ({"status": 0, "out": "1"}, True, "repaired"),
        ({"status": 0, "out": "1", "err": "checkpoint rejected"}, False, "repaired"),
        ({"status": 0, "out": "2"}, True, "silent change"),
        ({"status": 0, "out": "2", "err": "checkpoint rejected"}, False, "said"),
    ],
)
def test_outcomes(damage, done, remade, outcome):
    reader = damage.Reader("x", "x", [], lambda done: done.out)
    done = damage.Done(**{"out": "", "err": ""} | done)
    assert damage.classify(done, reader, "1", remade) == outcome


def test_the_table_has_a_row_per_kind_of_file(damage):
    trials = [
        damage.Trial("run", damage.kind_of(name), name, "deleted", "x", outcome)
        for name, outcome in (
            ("checkpoints/3/about.json", "refused"),
            ("checkpoints/3/state/d/12ab", "repaired"),
            ("checkpoints/3/state/ocdbt.process_0/d/12ab", "hang"),
            ("config.json", "refused"),
        )
    ]
    assert damage.table(trials)[2:] == [
        "| checkpoint, about.json | 1 | 1 | 0 | 0 | 0 | 0 | 0 | 0 |",
        "| checkpoint, arrays | 2 | 0 | 1 | 0 | 0 | 0 | 0 | 1 |",
        "| config.json | 1 | 1 | 0 | 0 | 0 | 0 | 0 | 0 |",
        "| all | 4 | 2 | 1 | 0 | 0 | 0 | 0 | 1 |",
    ]


@pytest.mark.slow
def test_damaged_studies_are_refused_or_repaired(tmp_path):
    path = tmp_path / "figures.json"
    flags = ["--subjects", "studies", "--cases", 1, "--files", 1, "--json", path]
    done = script("benchmarks/damage", *flags, "--keep", tmp_path / "kept", JAX_NUM_CPU_DEVICES="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list((tmp_path / "kept").iterdir())
    trials = json.loads(path.read_text())["trials"]
    outcomes = {trial["outcome"] for trial in trials}
    assert {"refused", "harmless"} <= outcomes <= {"refused", "harmless", "repaired", "said"}
    kinds = {"cell", "logits of a cell", "tuning scores", "manifest.json", "report", "lock"}
    assert {trial["kind"] for trial in trials} == kinds
    assert f"| all | {len(trials)} |" in done.stdout


@pytest.mark.slow
def test_a_number_of_cases_that_cannot_be():
    assert "--cases must lie in [1, 1000]" in one_line_error(
        script("benchmarks/damage", "--cases", 0)
    )
