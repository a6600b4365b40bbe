"""The step can be described, lowered and compiled without data or devices, and is then the very
step that runs.
"""

import jax
import numpy as np
import pytest

from cnnlab.config import Config
from cnnlab.console import Console
from cnnlab.parts import resolve
from cnnlab.training import devices, program, recipe

SMALL = {"dataset": "tiny", "model": "mlp,hidden=[4]", "batch_size": 16, "validation": 0.0}


@pytest.mark.parametrize(
    ("config", "seeds"),
    [
        (Config(**SMALL), None),
        (Config(**SMALL, augment="alternating_flip", devices=4), [3, 4]),
        (Config(**SMALL, feed="streaming", devices=2), None),
        (
            Config(**SMALL, augment="views+flip+crop,padding=1", loss="jensen_shannon", devices=2),
            None,
        ),
    ],
    ids=["one", "seeds", "streaming", "views"],
)
def test_the_described_arguments_are_those_of_the_run(config, seeds, tfds_root, monkeypatch):
    """A step called with real arguments is compiled for the shapes, types and shardings that
    `arguments` tells.
    """
    built, called = [], []
    real = program.build
    monkeypatch.setattr(program, "build", lambda *args: built.append(real(*args)) or built[-1])
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        experiment = recipe.build(config, Console("off"), seeds)
        (made,) = built
        step, told = made.step, made.arguments()
        object.__setattr__(made, "step", lambda *args: called.append(args) or step(*args))
        experiment.step(
            experiment.state, experiment.totals, list(experiment.items(0, made.dispatch_steps))
        )
        assert step._cache_size() == 1
        step.lower(*told)
    assert jax.tree.structure(called[0]) == jax.tree.structure(told)
    for leaf, wanted in zip(jax.tree.leaves(told), jax.tree.leaves(called[0]), strict=True):
        assert (leaf.shape, leaf.dtype) == (np.shape(wanted), wanted.dtype)
        if isinstance(wanted, jax.Array):  # numpy's are placed by the step itself
            assert leaf.sharding.is_equivalent_to(wanted.sharding, len(leaf.shape))


def test_a_mesh_of_seeds_and_parts_of_the_batch():
    facts = program.Facts((8, 8, 3), np.full(3, 128.0), np.full(3, 64.0), np.full(3, 50), 200)
    config = Config(**SMALL, mesh="4x2")
    parts = resolve(config)
    with jax.numpy_dtype_promotion("standard"):
        made = program.build(config, parts, recipe.layout(config, parts, 4), facts, 4)
        state, *_, keys, rates = made.arguments()
    assert made.layout.mesh.shape == {devices.SEEDS: 4, devices.AXIS: 2}
    assert {leaf.sharding.spec[0] for leaf in jax.tree.leaves((state, keys, rates))} == {
        devices.SEEDS
    }
