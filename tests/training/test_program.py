"""The step can be described, lowered and compiled without data or devices, and is then the very
step that runs.
"""

import jax
import numpy as np
import pytest

from cnnlab.config import Config
from cnnlab.data.facts import DataFacts
from cnnlab.parts import resolve
from cnnlab.training import devices, experiment, program

SMALL = {"dataset": "tiny", "model": "mlp,hidden=[4]", "batch_size": 16, "validation": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "seeds"),
    [
        (Config.of(**SMALL), None),
        (Config.of(**SMALL, augment="alternating_flip", devices=4), [3, 4]),
        (Config.of(**SMALL, feed="streaming", devices=2), None),
        (
            Config.of(
                **SMALL, augment="views+flip+crop,padding=1", loss="jensen_shannon", devices=2
            ),
            None,
        ),
    ],
    ids=["one", "seeds", "streaming", "views"],
)
def test_the_described_arguments_are_those_of_the_run(config, seeds, tfds_root):
    """A step called with real arguments is compiled for the shapes, types and shardings that
    `arguments` describes.
    """
    called = []
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        built = experiment.build(config, seeds=seeds)
        dispatch = built.program.dispatch
        described = built.program.arguments()

        def record_and_dispatch(*args):
            called.append(args)
            return dispatch(*args)

        object.__setattr__(built.program, "dispatch", record_and_dispatch)
        built.advance(built.start(), list(built.items(0, built.dispatch_steps)))
        dispatch.lower(*described)
    assert len(called) == 1
    assert jax.tree.structure(called[0]) == jax.tree.structure(described)
    for leaf, wanted in zip(jax.tree.leaves(described), jax.tree.leaves(called[0]), strict=True):
        assert (leaf.shape, leaf.dtype) == (np.shape(wanted), wanted.dtype)
        if isinstance(wanted, jax.Array):  # numpy's are placed by the step itself
            assert leaf.sharding.is_equivalent_to(wanted.sharding, len(leaf.shape))


def test_a_mesh_of_seeds_and_parts_of_the_batch():
    facts = DataFacts(
        class_names=("a", "b", "c"), image_shape=(8, 8, 3), mean=(128.0,) * 3, std=(64.0,) * 3,
        class_counts=(50,) * 3, num_images=200,
    )  # fmt: skip
    config = Config.of(**SMALL, mesh="4x2")
    parts = resolve(config.recipe)
    with jax.numpy_dtype_promotion("standard"):
        layout = experiment.choose_layout(config, parts, 4)
        made = program.build(config, parts, layout, facts)
        state, *_, keys, values = made.arguments()
    assert made.layout.mesh.shape == {devices.SEEDS: 4, devices.AXIS: 2}
    assert {leaf.sharding.spec[0] for leaf in jax.tree.leaves((state, keys, values))} == {
        devices.SEEDS
    }
