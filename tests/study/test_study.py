"""Cells of a study: paired, trained once however many processes there are, the same numbers after
any kill.
"""

import copy
import dataclasses
import fcntl
import itertools
import json
import math
import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from small_data import drawn, write_dataset

from cnnlab import files, spec
from cnnlab.console import Console
from cnnlab.errors import InputError
from cnnlab.study import cells, driver, fit, folder, plan, records, report, results, sequential
from cnnlab.study.board import Board
from cnnlab.study.checks import check
from cnnlab.study.plan import Study
from cnnlab.training import experiment

pytestmark = pytest.mark.slow

SMALL = Study.of(
    dataset="tiny", losses=("cross_entropy", "mse"), label_noise=(0.0, 0.3), seeds=2,
    model="mlp,hidden=[8]",
    batch_size=32, validation=0.2, epochs=3, learning_rate=0.01, devices=1, progress="off",
)  # fmt: skip


@pytest.fixture(autouse=True)
def data(tfds_root):
    with jax.numpy_dtype_promotion("standard"):  # optax.adam mixes types
        yield


def cell_of(asked, loss, noise, block=0):
    """A cell of a study."""
    return folder.cells(asked, loss, {"label_noise": noise}, plan.blocks(asked))[block]


def file_of(asked, loss, noise, block=0):
    """Its file."""
    return folder.file(Path(asked.workdir), cell_of(asked, loss, noise, block))


def study(tmp_path, **changes):
    return SMALL.replace(workdir=str(tmp_path / "study"), **changes)


def run(asked):
    return driver.run(asked, Board("off", asked.training.epochs), "COMMAND")


def stepped(built, steps):
    """Where an experiment is after so many steps, each of them a dispatch."""
    progress = built.start()
    for item in built.items(0, steps):
        progress = built.advance(progress, [item])
    return progress


def numbers(found):
    """All that a study found, without what is of the machine and the hour."""
    machine = ("seconds", "images_per_second", "devices", "versions")
    return [{k: v for k, v in cell.to_json().items() if k not in machine} for cell in found.cells]


@pytest.fixture(scope="module")
def whole(tfds_root, tmp_path_factory):
    with jax.numpy_dtype_promotion("standard"):
        return run(study(tmp_path_factory.mktemp("whole")))


def pretend(monkeypatch, whole, trained):
    """Training that takes no time, and notes what it was asked for."""

    def train(study, cell, *_):
        trained.append(cell)
        seeds = {
            "runs": [
                dataclasses.replace(run, seed=seed)
                for run, seed in zip(itertools.cycle(whole.cells[0].runs), cell.seeds, strict=False)
            ]
        }
        return dataclasses.replace(whole.cells[0], arm=cell.arm, config=cell.config, **seeds)

    monkeypatch.setattr(cells, "train_cell", train)


def test_what_a_cell_holds(whole):
    assert whole.conditions == [{"label_noise": 0.0}, {"label_noise": 0.3}]
    for row, condition in zip(whole.arms, whole.conditions, strict=True):
        for arm, name in zip(row, SMALL.losses, strict=True):
            assert (arm.name, arm.condition) == (name, condition)
            assert arm.learning_rates == [0.01, 0.01]
            assert [run.seed for run in arm.runs] == [0, 1]
            assert [cell.tuning for cell in arm.cells] == [None]
            for each in arm.runs:
                assert each.diverged is None and each.test["count"] == 50
                assert [row["epoch"] for row in each.history] == [1, 2, 3]
                assert len(each.gradient_norms) == 5 and min(each.gradient_norms) > 0
                assert 0 <= each.history[-1]["validation_accuracy"] <= 1
            assert arm.images == 2 * 3 * 160 and arm.counts["train"] == 160
            # Two seeds: the variance of being right is a half where they differ, 0 elsewhere.
            assert 0 <= arm.example_variance <= 0.5


def test_a_cell_is_what_train_gives_each_seed_alone(whole):
    config = plan.config(SMALL, "mse", {"label_noise": 0.3}, seed=1)
    built = experiment.build(config)
    (wanted,) = built.test(stepped(built, 15).state)
    found = whole.arms[1][1].runs[1].test
    assert found["confusion"] == wanted["confusion"]
    # 15 float32 steps: parameters agree to some 1e-5 (test_seeds), and so do mean losses of order 1
    np.testing.assert_allclose(
        [found[k] for k in ("nll", "brier", "ece")],
        [wanted[k] for k in ("nll", "brier", "ece")],
        rtol=1e-4,
    )


def test_each_seed_draws_its_own_split(whole, tmp_path):
    """As train.py with --split-seed None does; the split can be fixed, too."""
    asked = study(tmp_path, label_noise=(0.0,), losses=("mse", "focal"))
    config = plan.config(asked, "mse", {}, seed=1)
    assert config.recipe.split_seed is None
    (together,) = (experiment.build(config, seeds=[0, 1]),)
    alone = experiment.build(config)
    assert together.held_out.shape == (2, 40)
    np.testing.assert_array_equal(together.held_out[1], alone.held_out)
    assert len(np.intersect1d(*together.held_out)) < 20
    labels = alone.data.dataset.labels
    for positions in together.held_out:  # stratified alike
        np.testing.assert_array_equal(
            np.bincount(labels[positions]), np.bincount(labels[alone.held_out])
        )
        trained = np.concatenate([item["image"][1] for item in together.items(0, 5)])
    assert not np.isin(trained, together.held_out[1]).any()
    state, own = stepped(together, 10).state, stepped(alone, 10).state
    both, (one,) = together.validate(state), alone.validate(own)
    assert both[1]["confusion"] == one["confusion"] != both[0]["confusion"]
    assert both[1]["nll"] == pytest.approx(one["nll"], rel=1e-4)
    assert together.facts.mean == alone.facts.mean
    for mesh in ("2x1", "1x2", "2x2"):  # whichever devices have which seeds and images
        devices = int(mesh[0]) * int(mesh[2])
        spread = experiment.build(config.replace(devices=devices, mesh=mesh), seeds=[0, 1])
        placed = spread.layout.place(
            jax.device_get(stepped(together, 10).state), spread.program.per_seed
        )
        for ours, theirs in zip(spread.validate(placed), both, strict=True):
            assert ours["confusion"] == theirs["confusion"]
    fixed = plan.config(asked.replace(split_seed=0), "mse", {}, seed=1)
    shared = experiment.build(fixed, seeds=[0, 1])
    assert shared.held_out.shape == (40,)
    np.testing.assert_array_equal(shared.held_out, experiment.build(fixed).held_out)


def test_averaged_weights_are_an_arm(tmp_path):
    """Its last weights are those of the other arm, to the bit: it is trained alike."""
    averaged = "loss=mse average=swa,start=0.5"
    asked = study(
        tmp_path, losses=("mse",), arms=(averaged,), label_noise=(0.0,), schedule="constant"
    )
    found = run(asked)
    (row,) = found.arms
    plain, other = row
    assert (other.name, other.cells[0].config["average"]) == (averaged, "swa,start=0.5")
    assert [plain.cells[0].config[name] for name in ("average", "loss")] == [
        "none",
        other.cells[0].config["loss"],
    ]
    for mine, theirs in zip(other.runs, plain.runs, strict=True):
        assert mine.test_last == theirs.test != mine.test
        assert theirs.test_last is None
        last = [epoch["validation_last_accuracy"] for epoch in mine.history]
        assert last == [epoch["validation_accuracy"] for epoch in theirs.history]
    gaps = results.differences(found, "nll")[0, 1]
    own = results.values(other, "nll") - results.last_values(other, "nll")
    np.testing.assert_array_equal(gaps, own)
    assert np.all(np.isnan(results.last_values(plain, "nll")))
    text = report.write(found, tmp_path)[1].read_text()
    (line,) = re.findall(r"## Averaged weights.*?\n(\| loss=mse average[^\n]*)", text, re.DOTALL)
    shown = [f"{100 * results.values(other, 'accuracy').mean():.2f}"]
    shown += [f"{100 * results.values(plain, 'accuracy').mean():.2f}"]
    assert [cell.strip() for cell in line.split("|")][2:4] == shown
    twins = asked.replace(arms=("loss=mse average=none",))
    with pytest.raises(InputError, match="are the same under two names"):
        run(twins)


SETS = ("test", "test+gaussian_noise,severity=4", "tiny_v6")


def with_other_sets(tmp_path, monkeypatch, tfds_root, seed=5):
    """A data directory with `tiny` and `tiny_v6`, which has a test split only."""
    root = tmp_path / f"data{seed}"
    root.mkdir(parents=True)
    (root / "tiny").symlink_to(tfds_root / "tiny")
    write_dataset(root, "tiny_v6", {"test": drawn(30, 3, (8, 8, 3), seed)}, 3, (8, 8, 3))
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))


def test_every_seed_is_tested_on_further_sets(tmp_path, monkeypatch, tfds_root):
    """As the seed alone, with the weights that test has; a diverged seed is not."""
    with_other_sets(tmp_path, monkeypatch, tfds_root)
    asked = study(tmp_path, test_sets=SETS, label_noise=(0.0,), tune=("lr=1e-3..1e-2",), budget=2)
    found = run(asked)
    for cell, loss in zip(found.cells, asked.losses, strict=True):
        assert [*cell.test_sets] == [*SETS[1:]] and cell.tuning
        config = plan.config(asked, loss, {}, seed=1).replace(**cell.runs[1].chosen)
        built = experiment.build(config)
        assert built.facts.test_sets == cell.test_sets
        state = stepped(built, 15).state
        for name, split in built.data.test_sets.items():
            (wanted,) = built.test(state, split=split)
            tested = cell.runs[1].test_sets[name]
            assert tested["confusion"] == wanted["confusion"]
            assert tested["nll"] == pytest.approx(wanted["nll"], rel=1e-4)
        assert [cell.runs[0].test_sets[name]["count"] for name in SETS[1:]] == [50, 30]
    columns = (report.write(found, tmp_path)[2]).read_text().splitlines()[0].split(",")
    assert "nll@tiny_v6" in columns
    plain = run(asked.replace(test_sets=()))  # the same cells
    assert numbers(plain) == numbers(found)


def test_cells_without_a_test_set_or_of_other_images_are_refused(
    tmp_path, monkeypatch, whole, tfds_root
):
    """A cell has no weights left that could be tested."""
    asked = study(tmp_path)
    shutil.copytree(whole.study.workdir, asked.workdir)
    trained = []
    pretend(monkeypatch, whole, trained)
    with_other_sets(tmp_path, monkeypatch, tfds_root)
    with pytest.raises(
        InputError, match=r"test set tiny_v6: .*was tested without it; delete it to"
    ):
        run(asked.replace(test_sets=SETS[2:]))
    with pytest.raises(InputError, match="was tested without it"):
        run(asked.replace(test_sets=SETS))
    assert not trained
    asked = study(tmp_path / "new", test_sets=SETS[2:], label_noise=(0.0,))
    monkeypatch.undo()
    with_other_sets(tmp_path / "new", monkeypatch, tfds_root)
    run(asked)
    with_other_sets(tmp_path / "new", monkeypatch, tfds_root, seed=6)
    with pytest.raises(InputError, match=r"tiny_v6: .*was tested on other images of the same name"):
        run(asked)


def test_a_test_set_that_does_not_fit_is_refused_before_training(tmp_path, monkeypatch, whole):
    trained = []
    pretend(monkeypatch, whole, trained)
    for text, message in (
        ("user_parts.night", "test set user_parts.night: it has other classes"),
        ("user_parts.cropped", "data set user_parts.cropped needs image"),
        ("test+user_parts.cropped", "must return an image"),
    ):
        with pytest.raises(InputError, match=message):
            run(study(tmp_path, test_sets=(text,)))
    assert not trained


def test_seeds_are_paired():
    """The same weights, images in the same order and the same wrong labels, whichever the loss."""
    one, two = (
        experiment.build(plan.config(SMALL, loss, {"label_noise": 0.3}), seeds=[0, 1])
        for loss in SMALL.losses
    )
    mine, theirs = (jax.tree.leaves(built.start().state.params) for built in (one, two))
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    clean = experiment.build(plan.config(SMALL, "mse", {"label_noise": 0.0}), seeds=[0, 1])
    wrong = []
    for a, b, c in zip(one.items(0, 10), two.items(0, 10), clean.items(0, 10), strict=True):
        for name in ("image", "label"):
            np.testing.assert_array_equal(a[name], b[name])
        np.testing.assert_array_equal(a["image"], c["image"])  # noise changes no order
        wrong.append(a["label"] != c["label"])
    assert 0.2 < np.mean(wrong) < 0.4
    images = next(one.items(0, 1))["image"]
    assert not np.array_equal(images[0], images[1])  # but each seed has its own


def test_the_same_study_again_trains_nothing_and_a_larger_one_only_what_is_new(
    tmp_path, monkeypatch, whole
):
    asked = study(tmp_path)
    shutil.copytree(whole.study.workdir, asked.workdir)
    trained = []
    pretend(monkeypatch, whole, trained)
    assert numbers(run(asked)) == numbers(whole) and not trained
    run(asked.replace(label_noise=(0.0,)))
    assert not trained  # the same cells without a condition
    run(asked.replace(losses=(*asked.losses, "focal"), baseline="focal"))
    assert [(cell.arm, cell.condition["label_noise"]) for cell in trained] == [
        ("focal", 0.0),
        ("focal", 0.3),
    ]
    trained.clear()
    run(asked.replace(epochs=4))
    assert len(trained) == 4


@pytest.mark.parametrize("kill_at", [1, 2, 3])
def test_a_killed_cell_goes_on_and_ends_in_the_same_numbers(tmp_path, monkeypatch, whole, kill_at):
    class Killed(BaseException):
        """Not caught by anything, like a kill."""

    class Dying(Board):
        def epoch(self, row):
            super().epoch(row)
            if row["epoch"] == kill_at:
                raise Killed

    monkeypatch.setattr(fit, "SAVE_SECONDS", 0.0)
    asked = study(tmp_path)
    seen = []
    for _ in range(2):  # two kills, in two cells or in the same one again
        with pytest.raises(Killed):
            driver.run(asked, Dying("off", asked.training.epochs), "COMMAND")

    class Watched(Board):
        def epoch(self, row):
            seen.append(row["epoch"])

    found = driver.run(asked, Watched("off", asked.training.epochs), "COMMAND")
    assert numbers(found) == numbers(whole)
    assert len(seen) < 12, "nothing had been saved"
    assert not list(Path(asked.workdir).glob("*.checkpoints"))


def test_a_cell_that_another_process_trains_is_left_to_it(tmp_path, monkeypatch, whole):
    asked = study(tmp_path)
    trained = []
    (tmp_path / "study/locks").mkdir(parents=True)
    pretend(monkeypatch, whole, trained)
    name = cell_of(asked, "mse", 0.0).digest
    with (tmp_path / "study/locks" / name).open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert run(asked) is None
        assert len(trained) == 3 and ("mse", 0.0) not in [
            (c.arm, c.condition["label_noise"]) for c in trained
        ]
    assert run(asked) is not None and len(trained) == 4


def test_shards_share_the_grid_out(tmp_path, monkeypatch, whole):
    trained = {}
    for shard in ("2/3", "0/3", "1/3"):
        pretend(monkeypatch, whole, trained.setdefault(shard, []))
        found = run(study(tmp_path, shard=shard))
        assert (found is None) == (shard != "1/3")  # the last to finish has the results
    assert sorted(map(len, trained.values())) == [1, 1, 2]
    assert len({cell.digest for part in trained.values() for cell in part}) == 4


def test_a_seed_that_diverges_counts_as_the_worst(tmp_path):
    """Under SGD a rate of 1e25 breaks squared_logits at once; the study continues."""
    asked = study(
        tmp_path, losses=("cross_entropy", "squared_logits"), label_noise=(0.0,),
        arms=("loss=squared_logits lr=1e25",), optimizer="sgd", seeds=8, block=8,
    )  # fmt: skip
    found = run(asked)
    _, sound, broken = found.arms[0]
    assert all(run.diverged is None for run in sound.runs)
    # the square of 1e25 is no float32
    assert [run.diverged for run in broken.runs] == [1] * 8
    assert all(run.test is None for run in broken.runs)
    assert broken.example_variance is None
    first, second = results.decide(found)
    assert first.failures.diverged == 0 and math.isfinite(first.comparison.mean)
    assert second.failures.diverged == 8 and second.failures.highest_rate == 1
    assert second.words.startswith("worse") and second.comparison.decided == 8
    assert (second.comparison.median, math.isnan(second.comparison.mean)) == (-math.inf, True)
    json.dumps([cell.to_json() for cell in found.cells], allow_nan=False)


def test_conditions_share_a_compilation(tmp_path, monkeypatch):
    """Label noise is data: the second condition of a loss, and a tuning as wide as the seeds,
    compile nothing.
    """
    compiled = []

    def note(event, **_):
        if event == "/jax/compilation_cache/cache_misses":
            compiled.append(event)

    jax.monitoring.register_event_listener(note)
    counts = []
    for noise in ((0.0,), (0.0, 0.1, 0.3)):
        jax.clear_caches()
        compiled.clear()
        run(
            study(
                tmp_path,
                losses=("focal,gamma=1.7", "gce"),
                label_noise=noise,
                tune=("lr=1e-4..1e-2",),
                budget=2,
                tune_seeds=1,
            )
        )
        counts.append(len(compiled))
    assert counts[0] > 0 == counts[1]


def constant(logits, labels):
    """A loss with NaN gradients for equal logits, and NaN for negative ones."""
    import jax.numpy as jnp

    return jnp.sqrt(logits[..., 0])


def of_two(logits, labels):
    """A loss that bears a batch of two only."""
    if logits.shape[0] != 2:
        raise RuntimeError("no")
    return logits[:, 0]


def filters_only(learning_rate):
    """An optimizer of convolution kernels: a user's, for which another's seeds must not look like a
    fourth axis.
    """
    import optax

    def init(params):
        if not any(leaf.ndim == 4 for leaf in jax.tree.leaves(params)):
            raise ValueError("no kernel to train")
        return optax.EmptyState()

    return optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))


def test_an_optimizer_sees_the_parameters_of_one_seed(tmp_path):
    with pytest.raises(
        InputError, match=r"optimizer 'test_study.filters_only' fails on .*: ValueError: no kernel"
    ) as e:
        run(study(tmp_path, optimizer="test_study.filters_only"))
    assert len(str(e.value).splitlines()) == 1
    config = plan.config(
        study(tmp_path, optimizer="test_study.filters_only", model="cnn,widths=[2]"), "mse", {}
    )
    experiment.build(config, seeds=[0, 1]).start()
    experiment.build(config.replace(optimizer="muon"), seeds=[0, 1]).start()


@pytest.mark.parametrize("content", ['{"a": 1}', "[1]", "{", '{"loss": "mse", "runs": []}', ""])
def test_a_damaged_cell_is_named(tmp_path, content, whole):
    asked = study(tmp_path)
    shutil.copytree(whole.study.workdir, asked.workdir)
    path = file_of(asked, "mse", 0.3)
    path.write_text(content)
    with pytest.raises(InputError, match=f"{path.name}.*delete it") as error:
        run(asked)
    assert len(str(error.value).splitlines()) == 1
    path.unlink()
    assert numbers(run(asked)) == numbers(whole)


def test_an_edited_cell_is_named(tmp_path, whole):
    """Whatever is changed in its text."""
    asked = study(tmp_path)
    shutil.copytree(whole.study.workdir, asked.workdir)
    path = file_of(asked, "mse", 0.3)
    text = path.read_text()
    for place in range(10, len(text), len(text) // 40):
        old = text[place]
        other = "7" if old != "7" else "8"
        path.write_text(text[:place] + other + text[place + 1 :])
        with pytest.raises(InputError, match=f"{path.name} cannot be read .*delete it") as error:
            run(asked)
        assert len(str(error.value).splitlines()) == 1
    path.write_text(text)
    assert numbers(run(asked)) == numbers(whole)


def changed(values, where, value):
    """Values with another one at a path such as runs.0.test.accuracy."""
    values = copy.deepcopy(values)
    *outer, last = [int(key) if key.isdecimal() else key for key in where.split(".")]
    inner = values
    for key in outer:
        inner = inner[key]
    inner[last] = value
    return values


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("runs.0.test.accuracy", 7.0, r"runs\[0\].test.accuracy must lie in \[0, 1\], got 7.0"),
        ("runs.1.test.ece", -0.5, r"runs\[1\].test.ece must lie in \[0, 1\]"),
        ("runs.1.test.accuracy", 0.3333, "accuracy|confusion does not hold 50 images"),
        ("runs.0.test.nll", "2", "runs.0..test.nll must be a number, got 2"),
        ("runs.0.test.count", 51, "must be 50, got 51|does not hold 51 images"),
        ("runs.0.seed", 5, "it holds seeds 5 to 1, not seeds 0 to 1"),
        ("runs.0.seed", -1, r"runs\[0\].seed must lie in \[0, 9007199254740992\), got -1"),
        ("runs.0.diverged", 3, r"runs\[0\] has diverged, or a test, but not both"),
        ("runs.0.hits", "AAAA", r"hits of 24 images, not 50"),
        ("runs.0.history", None, r"runs\[0\].history must be a list, got None"),
        ("runs.0.chosen", {"learning_rate": 0.5}, r"runs\[0\].chosen is none of the values"),
        ("seconds", "1", "seconds must be float, got '1'"),
        ("counts.test", -5, r"counts.test must lie in \[0, 9007199254740992\)"),
        ("surplus", 1, "surplus is not known"),
    ],
)
def test_a_cell_out_of_range_is_named_whatever_its_seal(tmp_path, whole, where, value, said):
    """As another program would write it."""
    asked = study(tmp_path)
    shutil.copytree(whole.study.workdir, asked.workdir)
    path = file_of(asked, "mse", 0.3)
    files.write_sealed(path, changed(files.read_sealed(path), where, value))
    with pytest.raises(InputError, match=said) as error:
        run(asked)
    assert path.name in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_folder_of_an_earlier_version_is_refused(tmp_path, monkeypatch, whole):
    asked = study(tmp_path)
    trained = []
    pretend(monkeypatch, whole, trained)
    cells_there = tmp_path / "study" / "cells"
    cells_there.mkdir(parents=True)
    (cells_there / "mse--label-noise-0.3-0123456789ab.json").write_text("{}")
    with pytest.raises(InputError, match=r"an earlier version .*choose another --workdir") as error:
        run(asked)
    assert len(str(error.value).splitlines()) == 1 and not trained


def test_more_seeds_train_only_new_blocks_and_end_in_the_same_numbers(tmp_path, monkeypatch):
    """2, then 4, then 6 seeds; and 6 at once: the same cells to the bit."""
    step_by_step = study(tmp_path, label_noise=(0.3,), block=2, epochs=1)
    trained = []
    train = cells.train_cell

    def noted(study, cell, *rest):
        trained.append((cell.arm, cell.seeds))
        return train(study, cell, *rest)

    monkeypatch.setattr(cells, "train_cell", noted)
    for seeds_now in (2, 4, 6):
        trained.clear()
        found = run(step_by_step.replace(seeds=seeds_now))
        last = (seeds_now - 2, seeds_now - 1)
        assert trained == [(loss, last) for loss in step_by_step.losses]
        assert [len(arm.runs) for arm in found.arms[0]] == [seeds_now] * 2
    at_once = run(step_by_step.replace(seeds=6, workdir=str(tmp_path / "at once")))
    assert numbers(at_once) == numbers(found)
    trained.clear()
    fewer = run(step_by_step.replace(seeds=4))  # the same folder, asked for less
    assert not trained and [len(arm.runs) for arm in fewer.arms[0]] == [4, 4]


def manifest_of(asked):
    return json.loads(Path(asked.workdir, "manifest.json").read_text())


def test_the_manifest_is_written_before_the_first_cell_and_never_again(
    tmp_path, monkeypatch, whole
):
    asked = study(tmp_path, metric="nll", baseline="mse", comparisons=5)

    def train(*_):
        held = manifest_of(asked)
        assert (held["metric"], held["baseline"], held["comparisons"]) == (
            "nll",
            "mean_squared_error",
            5,
        )
        arms = [(arm["name"], arm["condition"]["label_noise"]) for arm in held["arms"]]
        assert arms == [(loss, noise) for noise in (0.0, 0.3) for loss in asked.losses]
        assert held["recipe"]["epochs"] == 3 and "loss" not in held["recipe"]
        raise InputError("stop here")

    monkeypatch.setattr(cells, "train_cell", train)
    with pytest.raises(InputError, match="stop here"):
        run(asked)
    before = Path(asked.workdir, "manifest.json").read_bytes()
    monkeypatch.undo()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))  # refused before anything is written
    with pytest.raises(InputError):
        run(asked.replace(metric="ece"))
    assert Path(asked.workdir, "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metric": "nll"}, "metric nll instead of accuracy"),
        ({"margin": 0.05}, "margin 0.05 instead of 0.01"),
        ({"baseline": "mse"}, "baseline mean_squared_error instead of cross_entropy"),
        ({"alpha": 0.1}, "alpha 0.1 instead of 0.05"),
        ({"first_seed": 2}, "first seed 2 instead of 0"),
        ({"comparisons": 9}, "comparisons 9 instead of 2"),
        ({"epochs": 1}, "epochs 1 instead of 3"),
        ({"schedule": "constant"}, "schedule constant instead of the default"),
    ],
)
def test_what_was_not_planned_has_no_verdict(tmp_path, monkeypatch, whole, changes, said):
    asked = study(tmp_path, **changes)
    shutil.copytree(whole.study.workdir, asked.workdir)
    pretend(monkeypatch, whole, [])
    found = run(asked)
    assert any(line == said for line in found.family.deviations)
    assert {verdict.words for verdict in results.decide(found)} == {"exploratory"}
    paths = report.write(found, tmp_path)
    text = paths[1].read_text()
    assert said in text and "· exploratory" in text
    assert not re.search("[▲▼≈?] (better|worse|equivalent|undecided)", text)
    assert ",exploratory" in paths[3].read_text()
    back = run(study(tmp_path))
    assert (
        not back.family.deviations
        and "exploratory" not in report.write(back, tmp_path)[3].read_text()
    )


def test_arms_within_the_planned_comparisons_and_beyond(tmp_path, monkeypatch, whole):
    asked = study(tmp_path, comparisons=4)
    pretend(monkeypatch, whole, [])
    assert run(asked).family.comparisons == 4
    more = run(asked.replace(losses=(*asked.losses, "focal")))
    assert (more.family.comparisons, more.family.deviations) == (4, ())
    alias = run(asked.replace(losses=("ce", "mean_squared_error", "focal,gamma=2.0")))
    assert (alias.family.comparisons, alias.family.deviations) == (4, ())  # the same by other names
    assert "has grown" not in report.write(more, tmp_path)[1].read_text()
    beyond = run(asked.replace(losses=(*asked.losses, "focal", "gce"), comparisons=None))
    assert (beyond.family.comparisons, beyond.family.deviations) == (6, ())
    assert (
        "has grown from 4 planned comparisons to 6" in report.write(beyond, tmp_path)[1].read_text()
    )
    fewer = run(asked.replace(label_noise=(0.0,), comparisons=None))
    # What was planned, or ever asked for, stays counted
    assert (fewer.family.comparisons, fewer.family.deviations) == (6, ())


def test_every_arm_that_was_ever_asked_for_is_counted(tmp_path, monkeypatch, whole):
    """One at a time is as many looks as all at once."""
    pretend(monkeypatch, whole, [])
    asked = study(tmp_path, label_noise=(0.0,))
    counts = [run(asked).family.comparisons]
    for gamma in (1, 2, 3):
        counts.append(
            run(asked.replace(losses=("cross_entropy", f"focal,gamma={gamma}"))).family.comparisons
        )
    counts.append(run(asked.replace(label_noise=(0.3,))).family.comparisons)  # a condition, too
    assert counts == [1, 2, 3, 4, 5]
    assert run(asked).family.comparisons == 5
    Path(asked.workdir, "added.json").write_text("{")
    with pytest.raises(InputError, match=r"added.json cannot be read"):
        run(asked)


LOSSES = """
import jax.numpy as jnp
from cnnlab.losses import cross_entropy
from cnnlab.metrics import Metric

def base(logits, labels):
    return SCALE * cross_entropy(logits, labels)

def hits(logits, labels, mask):
    return SCALE * jnp.sum(jnp.where(mask, logits[:, 0] > 0, False))

mine = Metric("mine", hits, larger_is_better=True)
"""


@pytest.fixture
def own_file(tmp_path, monkeypatch):
    """Write a module of losses and metrics with another scale, as a user edits it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(scale):
        (tmp_path / "edited.py").write_text(LOSSES.replace("SCALE", str(scale)))
        sys.modules.pop("edited", None)

    return write


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"losses": ("edited.base", "mse")}, "the files behind the baseline instead of"),
        (
            {"metrics": ("edited.mine",), "metric": "mine"},
            "file .*edited.* instead of",
        ),
        ({"losses": ("mse", "edited.base")}, None),  # an arm of its own, which is counted
    ],
)
def test_files_behind_the_baseline_or_the_metric_are_part_of_the_plan(
    tmp_path, monkeypatch, whole, own_file, changes, said
):
    trained = []
    measured = {"mine": 0.5} if "metrics" in changes else {}
    reaching(monkeypatch, whole, trained, lambda *_: 20, measured)
    own_file(1.0)
    asked = study(tmp_path, label_noise=(0.0,), **changes)
    assert (run(asked).family.deviations, run(asked).family.comparisons) == ((), 1)
    own_file(0.5)
    trained.clear()
    found = run(asked)
    assert trained
    if said is None:
        assert (found.family.deviations, found.family.comparisons) == ((), 2)
        # The same command again changes nothing: the old arm is not the new one
        assert run(asked).family.left_out == found.family.left_out == []
    else:
        assert len(found.family.deviations) == 1 and re.search(said, found.family.deviations[0])


def test_what_the_baseline_alone_overrides_is_pinned_for_the_others(tmp_path, monkeypatch, whole):
    pretend(monkeypatch, whole, [])
    arms = ("epochs=1", "loss=mse")
    asked = study(tmp_path, label_noise=(0.0,), losses=(), arms=arms)
    assert run(asked).family.deviations == ()
    assert run(asked.replace(epochs=5)).family.deviations == ["epochs 5 instead of 3"]


def test_a_plan_can_be_corrected_until_a_cell_has_begun(tmp_path, monkeypatch, whole):
    def stop(*_):
        raise InputError("stop here")

    asked = study(tmp_path, label_noise=(0.0,))
    monkeypatch.setattr(cells, "train_cell", stop)
    for margin in (0.1, 0.01):
        with pytest.raises(InputError, match="stop here"):
            run(asked.replace(margin=margin))
        assert manifest_of(asked)["margin"] == margin
    pretend(monkeypatch, whole, [])
    assert run(asked.replace(margin=0.01)).family.deviations == ()
    assert run(asked.replace(margin=0.1)).family.deviations == ["margin 0.1 instead of 0.01"]


def test_arms_may_be_corruptions_of_the_data(tmp_path, monkeypatch, whole):
    """Their verdicts count: they are two arms, not two names of the default."""
    pretend(monkeypatch, whole, [])
    asked = study(
        tmp_path, losses=(), arms=("label_noise=0.0", "label_noise=0.4"), label_noise=(0.0,),
        noise="asymmetric",
    )  # fmt: skip
    for _ in range(2):
        found = run(asked)
        assert not found.family.deviations and found.family.comparisons == 1
    assert found.family.manifest.baseline == "label_noise=0.0"
    noisy = folder.config(asked, "label_noise=0.4", {}).recipe
    assert (noisy.label_noise, noisy.noise) == (0.4, "asymmetric")


def test_the_width_of_blocks_is_that_of_the_manifest(tmp_path, monkeypatch, whole):
    trained = []
    pretend(monkeypatch, whole, trained)
    asked = study(tmp_path, label_noise=(0.0,))  # two seeds, a block of two
    run(asked)
    trained.clear()
    more = run(asked.replace(seeds=8))
    assert more.family.deviations == () and {len(cell.seeds) for cell in trained} == {2}


def test_the_report_says_what_was_planned(tmp_path, monkeypatch, whole):
    pretend(monkeypatch, whole, [])
    asked = study(tmp_path, label_noise=(0.0,))
    run(asked)
    text = report.write(run(asked.replace(metric="ece", margin=0.05)), tmp_path)[1].read_text()
    assert (
        "before its first cell was trained: accuracy against cross_entropy, margin ±1.00 pp" in text
    )
    assert "no verdicts: metric ece instead of accuracy and margin 0.05 instead of 0.01" in text
    # Cells that another study of the folder had trained
    elsewhere = driver.run(asked, Board("off"), "COMMAND", tmp_path / "claim")
    assert elsewhere.family.manifest.cells == 2
    assert "when 2 cells of it had been trained for another study" in (
        report.write(elsewhere, tmp_path / "claim")[1].read_text()
    )
    (tmp_path / "claim/manifest.json").unlink()
    with pytest.raises(InputError, match=r"manifest.json is missing"):
        driver.run(asked, Board("off"), "COMMAND", tmp_path / "claim")


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("runs.0.test.calibration", "x"),
        ("runs.0.test.confusion", [[1]]),
        ("runs.0.test.nll", 10**400),
        ("runs.0.history", [{"validation_accuracy": "x"}]),
        ("runs.0.history", [{"validation_accuracy": 7.0}]),
        ("runs.0.gradient_norms", [-1.0]),
        ("images", 10**400),
        ("class_names", []),
        ("runs.0.chosen", {"learning_rate": "x"}),
        ("config", {"loss": "nonsense"}),
    ],
)
def test_an_absurd_cell_is_one_line_that_names_it(tmp_path, whole, where, value):
    asked = study(tmp_path)
    shutil.copytree(whole.study.workdir, asked.workdir)
    path = file_of(asked, "mse", 0.3)
    files.write_sealed(path, changed(files.read_sealed(path), where, value))
    with pytest.raises(InputError, match=rf"{path.name} cannot be read") as error:
        run(asked)
    assert len(str(error.value).splitlines()) == 1


def test_deeply_nested_cells_swapped_ones_and_copies(tmp_path, whole):
    asked = study(tmp_path)
    shutil.copytree(whole.study.workdir, asked.workdir)
    path, other = file_of(asked, "mse", 0.3), file_of(asked, "cross_entropy", 0.3)
    text = path.read_text()
    path.with_name("x (copy).json").write_text("{}")
    assert numbers(run(asked)) == numbers(whole)
    path.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(InputError, match=rf"{path.name} cannot be read"):
        run(asked)
    path.write_text(other.read_text())
    with pytest.raises(InputError, match=r"holds another cell, cross_entropy, label noise 0\.3"):
        run(asked)
    path.write_text(text)


def test_a_damaged_cell_of_an_arm_that_is_left_out_is_named(tmp_path, whole):
    asked = study(tmp_path)
    shutil.copytree(whole.study.workdir, asked.workdir)
    path = file_of(asked, "mse", 0.3)
    path.write_text("{")
    with pytest.raises(InputError, match=f"{path.name} cannot be read"):
        run(asked.replace(label_noise=(0.0,)))


def test_a_metric_without_a_margin_or_beyond_its_range_is_refused(tmp_path, monkeypatch, whole):
    from cnnlab.metrics import METRICS

    monkeypatch.setitem(METRICS, "nll", dataclasses.replace(METRICS["nll"], margin=0.0))
    plan._metrics.cache_clear()
    with pytest.raises(InputError, match="metric nll has no margin above 0: give --margin"):
        run(study(tmp_path, metric="nll"))
    assert not (tmp_path / "study").exists()
    pretend(monkeypatch, whole, [])
    monkeypatch.setitem(METRICS, "ece", dataclasses.replace(METRICS["ece"], low=0.9))
    plan._metrics.cache_clear()
    with pytest.raises(InputError, match=r"cannot be kept: runs\[0\].test.ece must lie in"):
        run(study(tmp_path))
    assert not list(Path(tmp_path, "study/cells").glob("*.json"))
    monkeypatch.undo()
    plan._metrics.cache_clear()


@pytest.mark.parametrize("content", [None, "{", '{"version": 2}'])
def test_a_missing_or_damaged_manifest_is_one_line(tmp_path, whole, content):
    asked = study(tmp_path)
    shutil.copytree(whole.study.workdir, asked.workdir)
    path = Path(asked.workdir, "manifest.json")
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"manifest.json .*choose another --workdir") as error:
        run(asked)
    assert len(str(error.value).splitlines()) == 1


def test_cells_of_other_data_or_another_teacher_are_refused(tmp_path, whole):
    asked = study(tmp_path)
    shutil.copytree(whole.study.workdir, asked.workdir)
    path = file_of(asked, "mse", 0.3)
    held = files.read_sealed(path)
    for name in ("digest", "teacher_digest"):
        files.write_sealed(path, held | {name: "0" * 64})
        with pytest.raises(InputError, match="other data, or by another teacher"):
            run(asked)
    files.write_sealed(path, held)
    assert numbers(run(asked)) == numbers(whole)


def test_a_cell_of_a_version_without_some_hyperparameter_is_accepted(tmp_path, monkeypatch, whole):
    asked = study(tmp_path)
    trained = []
    shutil.copytree(whole.study.workdir, asked.workdir)
    pretend(monkeypatch, whole, trained)
    for path in Path(asked.workdir, "cells").glob("*.json"):
        held = files.read_sealed(path)
        model, optimizer = (spec.parse(held["config"][name]) for name in ("model", "optimizer"))
        # Defaults are stored too
        assert (model.keywords["dropout"], optimizer.keywords["b1"]) == (
            0.0,
            0.9,
        )
        for name, part, gone in (("model", model, "dropout"), ("optimizer", optimizer, "b1")):
            kept = {key: value for key, value in part.keywords.items() if key != gone}
            held["config"][name] = str(spec.Spec(part.name, kept))
        files.write_sealed(path, held)
    found = run(asked)
    assert not trained
    assert [cell.runs for cell in found.cells] == [cell.runs for cell in whole.cells]


@pytest.mark.parametrize(
    ("name", "part", "stored", "said"),
    [
        ("model", "mlp", "dropout=0.5", "model: mlp,dropout=0.5,hidden=[8] -> mlp,hidden=[8]"),
        ("optimizer", "adam", "b1=0.8", "optimizer: adam,b1=0.8 -> adam"),
    ],
)
def test_a_cell_of_a_version_with_another_default_is_refused(
    tmp_path, whole, name, part, stored, said
):
    asked = study(tmp_path)
    shutil.copytree(whole.study.workdir, asked.workdir)
    path = file_of(asked, "mse", 0.3)
    held = files.read_sealed(path)
    key, _, value = stored.partition("=")
    then = spec.parse(held["config"][name])
    assert then.name == part and then.keywords[key] != float(value)
    held["config"][name] = str(spec.Spec(part, {**then.keywords, key: float(value)}))
    files.write_sealed(path, held)
    wanted = (
        f"{path.name} was trained by a version of cnnlab with other defaults ({said}); delete it"
    )
    with pytest.raises(InputError, match=re.escape(wanted)) as error:
        run(asked)
    assert len(str(error.value).splitlines()) == 1


def test_a_finished_study_in_a_folder_that_cannot_be_written_is_read(tmp_path, monkeypatch, whole):
    asked = study(tmp_path)
    shutil.copytree(whole.study.workdir, asked.workdir)
    monkeypatch.setattr(folder, "claimed", lambda *_: pytest.fail("locked"))
    assert numbers(run(asked)) == numbers(whole)


def test_the_teacher_is_for_the_losses_that_take_one(tmp_path):
    asked = study(
        tmp_path, losses=("cross_entropy", "distillation"), teacher=str(tmp_path / "teacher")
    )
    teachers = [folder.config(asked, loss, {}).recipe.teacher for loss in asked.losses]
    assert teachers == [None, str(tmp_path / "teacher")]


def test_each_cell_is_compared_with_the_images_of_its_own_condition(tmp_path):
    varied = study(tmp_path, label_noise=(0.0,), vary=("image_size=8", "image_size=16"))
    digests = check(varied, Console("silent"))
    assert len(digests) == 4
    by_condition = {
        condition: {digests[loss, condition].digest for loss in SMALL.losses}
        for _, condition in digests
    }
    small, large = by_condition.values()
    assert len(small) == len(large) == 1 and small != large


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"losses": ("cross_entropy", "test_study.constant")},
            "test_study.constant gives values that are not finite",
        ),
        (
            {"losses": ("cross_entropy", "jax.numpy.sum")},
            "must return one value per example|fails on",
        ),
        ({"losses": ("cross_entropy", "no.such")}, "no module 'no'"),
        ({"batch_size": 200}, "--batch-size 200 is larger than the 160 training images"),
        ({"dataset": "tinny"}, "unknown data set 'tinny'"),
        (
            {"losses": ("cross_entropy", "test_study.of_two")},
            "test_study.of_two fails on a batch of 32",
        ),
        (
            {"vary": ("augment=crop,padding=1", "augment=crop,padding=8")},
            "must be smaller than the image, 8 pixels",
        ),
        ({"vary": ("optimizer=adam", "optimizer=adamm")}, "did you mean 'adam'"),
        ({"vary": ("model=mlp,hiden=[8]",)}, "model mlp has no hyperparameter 'hiden'"),
        ({"metric": "acuracy"}, "unknown metric 'acuracy': did you mean 'accuracy'"),
        (
            {"losses": ("cross_entropy", "focal+smoothing"), "label_noise": (0.0,)},
            "unknown loss transform 'smoothing'",
        ),
        ({"devices": 9}, "--devices 9 wanted, but there are 8"),
        ({"long_tail": (1.0, 10_000.0), "batch_size": 100}, "--batch-size 100 is larger"),
    ],
)
def test_what_is_known_to_fail_is_refused_before_any_training(tmp_path, monkeypatch, changes, said):
    def build(*_, **__):
        pytest.fail("trained")

    monkeypatch.setattr(experiment, "build", build)
    with pytest.raises(InputError, match=said) as error:
        run(study(tmp_path, **changes))
    assert len(str(error.value).splitlines()) == 1


def test_the_announcement_says_how_many_seeds_a_verdict_takes(tmp_path):
    lines = driver.announcement(study(tmp_path, losses=("cross_entropy", "mse", "focal")))
    assert lines[0].startswith(
        "3 arms x 2 conditions x 2 seeds of 3 epochs, 4 comparisons with cross_entropy"
    )
    needed = sequential.seeds_needed(4)
    assert (
        f"no verdict is possible: 4 comparisons cannot be decided by fewer than {needed} seeds"
        in lines[1]
    )
    assert not any("verdict" in line for line in driver.announcement(study(tmp_path, seeds=8)))
    until = driver.announcement(study(tmp_path, until="decided", max_seeds=16))
    assert "x 2 to 16 seeds, until decided, of 3 epochs" in until[0]


def reaching(monkeypatch, whole, trained, accuracies, measured=None):
    """Training that takes no time: `accuracies(loss, seed)` of 50 images are right."""

    def train(study, cell, *_):
        trained.append(cell)
        runs = []
        for seed in cell.seeds:
            right = accuracies(cell.arm, seed)
            test = whole.cells[0].runs[0].test | {
                "accuracy": right / 50,
                "confusion": [[right, 50 - right, 0], [0, 0, 0], [0, 0, 0]],
                **(measured or {}),
            }
            hits = records.packed(np.arange(50) < right)
            run = whole.cells[0].runs[0]
            runs.append(dataclasses.replace(run, seed=seed, test=test, hits=hits))
        of_cell = {"arm": cell.arm, "condition": cell.condition, "config": cell.config}
        return dataclasses.replace(whole.cells[0], runs=runs, **of_cell)

    monkeypatch.setattr(cells, "train_cell", train)


def clear_and_close(loss, seed):
    """Two arms that differ at once, one that never does, one that does after a while."""
    close = 20 + (seed * 7) % 5
    return {
        "cross_entropy": close,
        "mse": close - 10 - seed % 3,
        "focal,gamma=1": close + (-1) ** (seed * (seed + 1) // 2),
        "gce": close + (3 + seed % 2 if seed not in (1, 4) else -3),
    }[loss]


ARMS = ("cross_entropy", "mse", "focal,gamma=1", "gce")


def until(tmp_path, **changes):
    asked = {"until": "decided", "max_seeds": 24, "seeds": 8, "block": 4, "losses": ARMS}
    return study(tmp_path, label_noise=(0.0,), **(asked | changes))


def test_blocks_are_added_to_what_is_not_decided(tmp_path, monkeypatch, whole, capsys):
    trained, looks = [], []
    reaching(monkeypatch, whole, trained, clear_and_close)
    found = driver.run(until(tmp_path), Board("lines"), "COMMAND", look=looks.append)
    assert [len(look.arms[0][0].runs) for look in looks] == [8, 12, 16, 20]
    assert found.family.deviations == ()
    numbers_of = {arm.name: len(arm.runs) for arm in found.arms[0]}
    assert numbers_of == {"cross_entropy": 24, "mse": 8, "focal,gamma=1": 24, "gce": 16}
    verdicts = {verdict.arm: verdict for verdict in results.decide(found)}
    assert verdicts["mse"].words == "worse by more than the margin"
    assert verdicts["mse"].comparison.decided == 8
    assert verdicts["gce"].kind == "better" and 12 < verdicts["gce"].comparison.decided <= 16
    assert verdicts["focal,gamma=1"].kind == "undecided"
    order = [(cell.seeds[0], cell.arm) for cell in trained]
    assert [loss for first, loss in order if first == 8] == ["cross_entropy", *ARMS[2:]]
    assert [loss for first, loss in order if first == 16] == ["cross_entropy", "focal,gamma=1"]
    output = capsys.readouterr().out
    assert "  gce, as configured: 12 seeds, evidence " in output and ", expect " in output

    # As if all had been trained: the same verdicts
    full = run(until(tmp_path, until=None, max_seeds=None, seeds=24))
    again = {verdict.arm: verdict for verdict in results.decide(full)}
    for loss, verdict in verdicts.items():
        assert again[loss].comparison.decided == verdict.comparison.decided
        assert again[loss].comparison.p == verdict.comparison.p
    # And again until decided: the same bytes, though more cells are there
    trained.clear()
    paths = [report.write(found, tmp_path / "one"), report.write(run(until(tmp_path)), tmp_path)]
    assert not trained
    assert [path.read_bytes() for path in paths[0]] == [path.read_bytes() for path in paths[1]]


def test_a_larger_maximum_goes_on(tmp_path, monkeypatch, whole):
    trained = []
    reaching(monkeypatch, whole, trained, clear_and_close)
    short = run(until(tmp_path, max_seeds=12))
    assert {len(arm.runs) for arm in short.arms[0]} == {8, 12}
    trained.clear()
    longer = run(until(tmp_path))
    assert {cell.seeds[0] for cell in trained} == {12, 16, 20}
    at_once = run(until(tmp_path / "at once"))
    assert [v.comparison for v in results.decide(longer)] == [
        v.comparison for v in results.decide(at_once)
    ]


def test_an_arm_that_comes_later_is_trained_from_the_first_seed(tmp_path, monkeypatch, whole):
    trained = []
    reaching(monkeypatch, whole, trained, clear_and_close)
    run(until(tmp_path, losses=ARMS[:2], comparisons=3))
    trained.clear()
    found = run(until(tmp_path))
    assert {(cell.arm, cell.seeds[0]) for cell in trained} >= {("gce", 0), ("focal,gamma=1", 0)}
    assert found.family.comparisons == 3 and found.family.deviations == ()
    verdicts = {verdict.arm: verdict.words for verdict in results.decide(found)}
    assert verdicts["mse"].startswith("worse")


def test_what_is_known_of_an_arm_stays_when_it_is_left_out(tmp_path, monkeypatch, whole):
    """Holm gives to the others what a decided one does not need, asked for or not."""
    reaching(monkeypatch, whole, [], clear_and_close)
    full = run(until(tmp_path))
    fewer = run(until(tmp_path, losses=("cross_entropy", "gce", "focal,gamma=1")))
    assert [arm.name for arm, _ in fewer.family.left_out] == [
        "mse"
    ] and fewer.family.comparisons == 3
    known = {verdict.arm: verdict for verdict in results.decide(full)}
    for verdict in results.decide(fewer):
        assert verdict.comparison == known[verdict.arm].comparison
    family = dataclasses.replace(fewer.family, left_out=())
    alone = dataclasses.replace(fewer, family=family)
    assert results.decide(alone)[0].comparison.p > known["gce"].comparison.p


def test_undecided_arms_are_waited_for_where_others_train_them(tmp_path, monkeypatch, whole):
    """A shard takes what is left, and what a dead process has not finished."""
    trained = []
    reaching(monkeypatch, whole, trained, clear_and_close)
    asked = until(tmp_path, shard="1/2")
    digest = folder.cells(asked, "mse", {}, plan.blocks(asked))[0].digest
    lock = Path(asked.workdir) / "locks" / digest
    lock.parent.mkdir(parents=True)
    waited = []
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def let_go(_, command):
            waited.append(command)
            held.close()

        monkeypatch.setattr(driver, "pause", let_go)
        found = run(asked)
    assert waited == ["COMMAND"] and trained[0].seeds == (4, 5, 6, 7)
    assert len(found.arms[0][1].runs) == 8


def test_nothing_is_known_where_no_metric_is_finite(tmp_path, monkeypatch, whole):
    nothing = {"nll": math.nan}
    reaching(monkeypatch, whole, [], lambda *_: 20, nothing)
    asked = study(tmp_path, label_noise=(0.0,), metric="nll", seeds=8, block=8)
    found = run(asked)
    (verdict,) = results.decide(found)
    assert (verdict.words, verdict.failures.diverged) == ("undecided", 8)
    assert report.write(found, tmp_path)


def test_means_next_to_a_verdict_are_of_the_same_seeds(tmp_path, monkeypatch, whole):
    """The baseline is trained further, and gets better."""
    reaching(monkeypatch, whole, [], lambda loss, seed: clear_and_close(loss, seed) + seed // 8)
    found = run(until(tmp_path))
    row = next(
        line.split(",")
        for line in report.write(found, tmp_path)[3].read_text().splitlines()
        if line.startswith("mse,")
    )
    head = Path(tmp_path, "verdicts.csv").read_text().splitlines()[0].split(",")
    values = dict(zip(head, row, strict=True))
    gap = float(values["arm_mean"]) - float(values["baseline_mean"])
    assert gap == pytest.approx(float(values["mean"])) and values["n"] == "8"


def test_a_report_of_averages_of_which_one_diverged(tmp_path):
    asked = study(
        tmp_path,
        losses=(),
        arms=("loss=mse", "loss=mse average=ema,decay=0.9"),
        label_noise=(0.0,),
        seeds=8,
        epochs=1,
    )
    found = run(asked)
    arm = found.arms[0][1]
    lost = dataclasses.replace(arm.runs[0], test=None, test_last=None, diverged=3, hits="")
    first = dataclasses.replace(arm.cells[0], runs=[lost, *arm.cells[0].runs[1:]])
    found.arms[0][1] = dataclasses.replace(arm, cells=(first, *arm.cells[1:]))
    text = report.write(found, tmp_path)[1].read_text()
    assert "Averaged weights" in text


def test_spread_is_that_of_the_seeds(whole):
    cell = whole.arms[0][0]
    on_test, over_sets = results.spread(cell)
    accuracies = [run.test["accuracy"] for run in cell.runs]
    assert (
        on_test == pytest.approx(np.std(accuracies, ddof=1))
        and 0 <= over_sets <= on_test * (50 / 49) ** 0.5
    )
