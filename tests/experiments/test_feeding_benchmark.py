"""experiments/benchmarks/feeding.py: every source feeds the same batches."""

import json

import pytest
from scripts import one_line_error, script

SCRIPT = "benchmarks/feeding"


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_every_source_is_timed(workers, tfds_root, tmp_path):
    figures = tmp_path / "figures.json"
    quick = ["--dataset", "tiny", "--model", "softmax_regression", "--batch-size", "16"]
    short = ["--rounds", "1", "--steps", "2", "--workers", workers]
    done = script(SCRIPT, *quick, *short, "--json", str(figures))
    assert done.returncode == 0, done.stderr
    rows = json.loads(figures.read_text())["rows"]
    names = ["array_record", "TFRecord", "folder", "mapped", "resident", "bare step"]
    assert [row["source"] for row in rows] == names
    assert all(row["training"] > 0 for row in rows)
    assert [row["read alone"] is None for row in rows] == [False] * 4 + [True] * 2


@pytest.mark.slow
def test_a_data_set_that_is_not_prepared(tmp_path):
    said = one_line_error(script(SCRIPT, "--dataset", "flowers", "--data-dir", str(tmp_path)))
    assert "unknown data set 'flowers'" in said
