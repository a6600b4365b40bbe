"""Many seeds in one program take the steps that each would take alone; the data is there once."""

import functools
import gc

import jax
import numpy as np
import pytest
from jax_modes import lenient, quick_compile
from stepping import stepped

from cnnlab.config import Config, Machine
from cnnlab.errors import InputError
from cnnlab.models import CPU_IMAGES
from cnnlab.parts import resolve
from cnnlab.training import devices, experiment, network

SEEDS = (3, 0, 7, 11)
# Everything that draws or reduces over the batch; 32 images a step, four steps an epoch.
CONFIG = Config.of(
    dataset="tiny",
    model="cnn,widths=[4],hidden=[6],batch_norm=true,dropout=0.3",
    augment="flip+crop,padding=1+mixup,alpha=0.4",
    batch_size=32,
    validation=0.2,
    epochs=5,
    label_noise=0.3,
    fraction=0.8,
)


@pytest.fixture(autouse=True)
def strict_but_for_optax(tfds_root, monkeypatch):
    build = network.build_optimizer

    def build_leniently(*arguments):
        return lenient(build(*arguments))

    monkeypatch.setattr(network, "build_optimizer", build_leniently)


def taken(config, seeds, steps, dtype):
    """Each seed's state, totals and validation after `steps`, on the host, in the order of the
    seeds.
    """
    double = dtype == "float64"
    with jax.enable_x64(double), jax.numpy_dtype_promotion("standard"), quick_compile(double):
        built, progress = stepped(config, seeds, steps, dtype)
        validation = built.validate(progress.state)
        state, totals = jax.device_get((progress.state, progress.totals))
    if seeds is None:
        return [(state, totals, validation[0])]

    def of_one_seed(i):
        return jax.tree.map(lambda leaf: leaf[i], (state, totals))

    return [(*of_one_seed(i), validation[i]) for i in range(len(seeds))]


@functools.cache
def alone(seed, steps, dtype, model=CONFIG.recipe.model):
    config = CONFIG.replace(seed=seed, parallel="jit", model=model)
    return taken(config, None, steps, dtype)[0]


def assert_as_alone(together, model, steps, dtype, tolerance):
    """Each seed's state, totals and validation are those of the seed alone."""
    for seed, found in zip(SEEDS, together, strict=False):
        wanted = alone(seed, steps, dtype, model)
        paths = jax.tree_util.tree_leaves_with_path(wanted[:2])
        for (path, theirs), ours in zip(paths, jax.tree.leaves(found[:2]), strict=True):
            assert ours.dtype == theirs.dtype
            # A sum over examples
            scale = (
                steps * CONFIG.recipe.batch_size if "'loss'" in jax.tree_util.keystr(path) else 1
            )
            np.testing.assert_allclose(
                ours, theirs, rtol=0, atol=tolerance * scale, err_msg=f"{seed} {path}"
            )
        assert found[2]["count"] == wanted[2]["count"] == 40
        np.testing.assert_allclose(found[2]["nll"], wanted[2]["nll"], rtol=1e-4)
    kernels = [state.params["Conv_0"]["kernel"] for state, _, _ in together]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01  # the seeds differ


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "seeds", "at_once", "steps", "dtype", "tolerance"),
    [
        (1, 2, 1, 20, "float64", 1e-10),  # one device, in turn
        (4, 4, 1, 20, "float64", 1e-10),  # a device for each
        (8, 4, 3, 20, "float64", 1e-10),  # two devices for each, several steps a dispatch
        (2, 3, 1, 20, "float64", 1e-10),  # no sharing of seeds: the batch over both
        (1, 2, 1, 5, "float32", 1e-5),
        (8, 4, 3, 5, "float32", 1e-5),
    ],
)
def test_together_as_alone(devices, seeds, at_once, steps, dtype, tolerance):
    config = CONFIG.replace(devices=devices, dispatch_steps=at_once)
    together = taken(config, SEEDS[:seeds], steps, dtype)
    assert len(together) == seeds
    assert_as_alone(together, CONFIG.recipe.model, steps, dtype, tolerance)


# With channels enough for each way that a CPU convolves, at any stride
THIN = "resnet20,blocks=[1,1,1],widths=[16,16,32]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "devices", "seeds", "at_once"),
    [
        (THIN, 2, 2, 1),  # a device for each
        (THIN, 2, 4, 4),  # two seeds a device, in turn
        (THIN, 4, 2, 3),  # two devices for each
        ("resnet18,blocks=[1,1],widths=[4,8],stem_width=4", 1, 2, 1),
        ("resnet50,blocks=[1,1],widths=[4,4],stem_width=4,stem=imagenet,zero_scale=true", 1, 2, 1),
        ("wide_resnet,depth=10,width=1,dropout=0.3", 1, 2, 1),
        ("cnn8,widths=[4,8],hidden=6", 1, 2, 1),
    ],
)
def test_networks_of_the_papers_together_as_alone(model, devices, seeds, at_once):
    config = CONFIG.replace(model=model, devices=devices, dispatch_steps=at_once)
    together = taken(config, SEEDS[:seeds], 6, "float64")
    assert len(together) == seeds
    assert_as_alone(together, model, 6, "float64", 1e-10)


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "wide_resnet", "cnn8"])
def test_networks_of_the_papers_are_laid_out_as_the_seed_network_is(name):
    """On two cores: a seed a core, or both share a batch, each of at least 32 images."""
    parts = resolve(CONFIG.replace(model=name).recipe)
    assert parts.cpu_images == CPU_IMAGES

    def shape(batch_size, seeds):
        config = CONFIG.replace(model=name, batch_size=batch_size)
        made = experiment.choose_layout(config, parts, seeds, jax.devices()[:2])
        return dict(made.mesh.shape)

    assert shape(128, None) == {"seed": 1, "data": 2}
    assert shape(48, None) == {"seed": 1, "data": 1}
    assert shape(128, 4) == shape(48, 4) == {"seed": 2, "data": 1}
    assert shape(128, 3) == {"seed": 1, "data": 2}


@pytest.mark.slow
def test_seeds_are_trained_together_where_that_is_faster(monkeypatch):
    """vmap, as on an accelerator, gives what one after another gives."""
    with monkeypatch.context() as patch:
        patch.setattr(devices.Layout, "platform", "gpu")
        together = taken(CONFIG.replace(devices=2, dispatch_steps=2), SEEDS, 5, "float32")
    for seed, found in zip(SEEDS, together, strict=True):
        for theirs, ours in zip(
            jax.tree.leaves(alone(seed, 5, "float32")[0]), jax.tree.leaves(found[0]), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_no_copy_of_the_images_for_a_seed():
    """However many seeds: one array of images among all that live on the devices."""
    config = CONFIG.replace(devices=1, model="softmax_regression")
    built = experiment.build(config, seeds=SEEDS)
    built.advance(built.start(), list(built.items(0, 1)))
    gc.collect()
    images = {
        array.unsafe_buffer_pointer()
        for array in jax.live_arrays()
        if array.shape[-2:] == (200, 8 * 8 * 3)
    }
    assert len(images) == 1


def test_layouts_of_seeds():
    def shape(machine, batch_size, seeds):
        return dict(devices.layout(machine, batch_size, seeds).mesh.shape)

    assert shape(Machine(), 128, 8) == {"seed": 8, "data": 1}
    assert shape(Machine(), 64, 4) == {"seed": 4, "data": 2}
    assert shape(Machine(), 128, 3) == {"seed": 3, "data": 2}
    assert shape(Machine(devices=2), 128, 3) == {"seed": 1, "data": 2}
    assert shape(Machine(), 20, 8) == {"seed": 8, "data": 1}
    assert shape(Machine(parallel="jit"), 20, 8) == {"seed": 1, "data": 1}
    with pytest.raises(InputError, match="pmap"):
        devices.layout(Machine(parallel="pmap", devices=2), 128, 2)


@pytest.mark.parametrize("seeds", [[], [1.5], [-1], [2**32]])
def test_seeds_that_cannot_be(seeds):
    with pytest.raises(InputError, match="seeds must be whole numbers"):
        experiment.build(CONFIG, seeds=seeds)
