"""The logits that a study keeps: those of its networks, of the images that they were tested on."""

import hashlib
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from cnnlab.console import Console
from cnnlab.errors import InputError
from cnnlab.losses import cross_entropy
from cnnlab.study import checks, driver, folder, logits, plan
from cnnlab.study.board import Board
from cnnlab.study.plan import Study
from cnnlab.training import experiment

SMALL = Study.of(
    dataset="tiny", losses=("cross_entropy", "mse"), label_noise=(0.4,), seeds=2,
    model="mlp,hidden=[8]", test_sets=("test+gaussian_noise,severity=1",),
    ood_sets=("test+gaussian_noise,severity=5",), batch_size=32, validation=0.2, epochs=2,
    learning_rate=0.01, devices=1, progress="off",
)  # fmt: skip


def drawn(noisy):
    rng = np.random.default_rng(0)
    test = logits.Outputs(
        rng.standard_normal((2, 5, 3)).astype(np.float32), np.arange(5, dtype=np.int32) % 3
    )
    far = logits.Outputs(np.full((2, 4, 3), np.nan, np.float32), np.zeros(4, np.int32))
    sets = {logits.TEST: test, "ood_sets/a/b+c,d=1": far}
    losses = (np.ones((2, 7), np.float32), np.eye(2, 7, dtype=bool)) if noisy else ()
    return logits.Kept(sets, np.array([4, 2, 1]), *losses)


@pytest.mark.parametrize("noisy", [False, True])
def test_what_is_written_is_read(tmp_path, noisy):
    kept = drawn(noisy)
    path = tmp_path / "cell.npz"
    digest = logits.write(path, kept)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() == logits.write(path, kept)
    again = logits.read(path, digest)
    assert again.sets.keys() == kept.sets.keys()
    for name, outputs in kept.sets.items():
        np.testing.assert_array_equal(again.sets[name].logits, outputs.logits)
        np.testing.assert_array_equal(again.sets[name].labels, outputs.labels)
        assert again.sets[name].logits.dtype == np.float32
    np.testing.assert_array_equal(again.class_counts, [4, 2, 1])
    if noisy:
        np.testing.assert_array_equal(again.train_losses, kept.train_losses)
        np.testing.assert_array_equal(again.wrong_labels, kept.wrong_labels)
    else:
        assert again.train_losses is again.wrong_labels is None


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_another_file_is_refused(tmp_path, damage):
    path = tmp_path / "cell.npz"
    digest = logits.write(path, drawn(False))
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=re.escape(str(path))):
        logits.read(path, digest)


def test_sets_of_which_nothing_would_be_kept_are_refused():
    with pytest.raises(InputError, match="--ood-sets has no effect with --keep-logits none"):
        SMALL.replace(keep_logits="none")


def study(tmp_path, **changes):
    return SMALL.replace(workdir=str(tmp_path / "study"), **changes)


def run(asked):
    with jax.numpy_dtype_promotion("standard"):  # optax.adam mixes types
        return driver.run(asked, Board("off", asked.training.epochs), "COMMAND")


def kept_of(asked, cell, result):
    cell_file = folder.file(Path(asked.workdir), cell)
    return logits.read(logits.file(cell_file), result.logits_digest)


@pytest.mark.slow
def test_logits_are_those_of_the_networks_and_sets(tmp_path, tfds_root):
    asked = study(tmp_path)
    results = run(asked)
    condition = {"label_noise": 0.4}
    for arm in results.arms[0]:
        (cell,) = folder.cells(asked, arm.name, condition, plan.blocks(asked))
        kept = kept_of(asked, cell, arm.cells[0])
        test, far = kept.sets["test"], kept.sets["ood_sets/test+gaussian_noise,severity=5"]
        near = kept.sets["test_sets/test+gaussian_noise,severity=1"]
        assert test.logits.shape == (2, 50, 3) == near.logits.shape == far.logits.shape
        assert kept.sets["validation"].logits.shape == (2, 40, 3)
        for i, network in enumerate(arm.runs):
            for outputs, measured in (
                (test, network.test),
                (near, network.tested("test+gaussian_noise,severity=1")),
            ):
                right = outputs.logits[i].argmax(-1) == outputs.labels
                assert right.mean() == measured["accuracy"]
                losses = cross_entropy(outputs.logits[i], outputs.labels)
                np.testing.assert_allclose(np.mean(losses), measured["nll"], rtol=1e-5)
            validation = kept.sets["validation"]
            right = validation.logits[i].argmax(-1) == validation.labels[i]
            last = network.history[-1]["validation_accuracy"]
            assert right.mean() == pytest.approx(last, abs=1e-6)
        assert np.abs(far.logits - test.logits).max() > np.abs(near.logits - test.logits).max()
    assert arm.cells[0].ood_sets.keys() == {"test+gaussian_noise,severity=5"}


@pytest.mark.slow
def test_training_losses_are_of_the_labels_as_they_were_taught(tmp_path, tfds_root):
    """Worked out anew: the labels of each seed are drawn by its own experiment, and its images go
    through the network one split at a time.
    """
    asked = study(tmp_path, losses=("cross_entropy", "focal"), ood_sets=(), test_sets=())
    arm = run(asked).arms[0][0]
    (cell,) = folder.cells(asked, arm.name, {"label_noise": 0.4}, plan.blocks(asked))
    kept = kept_of(asked, cell, arm.cells[0])
    assert kept.train_losses.shape == kept.wrong_labels.shape == (2, 160)
    assert kept.class_counts.sum() == 160
    for seed in (0, 1):
        config = plan.config(asked, arm.name, {"label_noise": 0.4}, seed)
        alone = experiment.build(config)
        used = alone.data.used(config, alone.parts, seed)
        taught, right = used.targets[used.positions], used.labels[used.positions]
        np.testing.assert_array_equal(kept.wrong_labels[seed], taught != right)
        with jax.numpy_dtype_promotion("standard"):
            progress = alone.start()
            for item in alone.items(0, 10):
                progress = alone.advance(progress, [item])
        batches = alone.training_batches(used.positions)
        outputs = [(alone.logits(progress.state, batch), batch["mask"]) for batch in batches]
        computed = np.concatenate([np.asarray(z)[mask] for z, mask in outputs])
        # Ten float32 steps in two programs: parameters agree to some 1e-5, as in test_study
        losses = np.asarray(cross_entropy(computed, taught))
        np.testing.assert_allclose(kept.train_losses[seed], losses, rtol=1e-3, atol=1e-4)
        assert 0.2 < kept.wrong_labels[seed].mean() < 0.6


@pytest.mark.slow
def test_nothing_is_kept_where_none_is_asked_for_or_every_network_diverged(tmp_path, tfds_root):
    asked = study(tmp_path, keep_logits="none", ood_sets=(), test_sets=())
    assert [cell.logits_digest for cell in run(asked).cells] == ["", ""]
    lost = study(tmp_path, losses=("mse", "focal"), learning_rate=1e30, optimizer="sgd")
    assert {cell.logits_digest for cell in run(lost).cells if not cell.runs[0].test} == {""}
    assert not list((tmp_path / "study").rglob("*.npz"))


@pytest.mark.slow
def test_large_logits_are_announced(tmp_path, tfds_root, monkeypatch, capsys):
    """90 images of 3 classes, four bytes each: 1,080 bytes."""
    asked = study(tmp_path, ood_sets=(), test_sets=())
    monkeypatch.setattr(checks, "LARGE", 0.00109)
    checks.check(asked, Console("lines"))
    assert "logits" not in capsys.readouterr().out
    monkeypatch.setattr(checks, "LARGE", 0.00107)
    checks.check(asked, Console("lines"))
    assert "the logits of each network take 0 MB" in capsys.readouterr().out
    checks.check(asked.replace(keep_logits="none"), Console("lines"))
    assert "logits" not in capsys.readouterr().out


@pytest.mark.slow
def test_cells_without_an_ood_set_are_refused(tmp_path, tfds_root):
    run(study(tmp_path, ood_sets=()))
    with pytest.raises(InputError, match=r"severity=5: .* was tested without it"):
        run(study(tmp_path))
