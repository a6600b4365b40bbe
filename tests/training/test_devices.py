"""One pure step over any devices: jit, pmap and sharded jit give the numbers of one device."""

import dataclasses
import functools
import platform
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_modes import lenient, quick_compile
from small_data import drawn

from cnnlab import backend, collectives, losses, metrics, optim
from cnnlab.config import Config, Machine
from cnnlab.data.facts import DataFacts
from cnnlab.errors import InputError
from cnnlab.models.convolution import Convolution
from cnnlab.parts import resolve
from cnnlab.training import devices, network, program
from cnnlab.training.devices import layout as choose
from cnnlab.training.step import Objective, create_state, train_step, zero_totals

BATCH = 64
CLASSES = 10
# Everything that draws or that reduces over the batch: batch norm, dropout and five augmentations.
FULL = Config.of(
    model="cnn,widths=[4,8],hidden=[16],batch_norm=true,dropout=0.3",
    augment="flip+alternating_flip+crop,padding=2+cutout,size=4+mixup,alpha=0.4",
    batch_size=BATCH,
)
IMAGES, LABELS = drawn(20 * BATCH, CLASSES, (12, 12, 3), seed=0)
FACTS = DataFacts(
    class_names=tuple(map(str, range(CLASSES))),
    image_shape=(12, 12, 3),
    mean=tuple(IMAGES.mean((0, 1, 2)).tolist()),
    std=tuple(IMAGES.std((0, 1, 2)).tolist()),
    class_counts=tuple(np.bincount(LABELS, minlength=CLASSES).tolist()),
    num_images=len(IMAGES),
)
ONE_DEVICE = Machine(parallel="jit", devices=1)


def batch(step):
    part = slice(step * BATCH, (step + 1) * BATCH)
    return {
        "image": IMAGES[part],
        "label": LABELS[part],
        "index": np.arange(len(LABELS), dtype=np.int32)[part],
    }


def compiled_step(layout, config=FULL, formulation=None):
    parts = resolve(config.recipe)
    convolution = Convolution(formulation or layout.formulation)
    model = parts.build_model(CLASSES, config.recipe.compute_dtype, convolution, layout.axis_name)
    tx = lenient(optim.adam(config.recipe.learning_rate))
    of_step = dataclasses.replace(
        program.build(config, parts, layout, FACTS).step_parts,
        apply_fn=network.apply_for_training(model),
        objective=Objective(losses.cross_entropy),
        tx=tx,
    )
    step = functools.partial(train_step, parts=of_step)
    specs = devices.SHARED, devices.SHARED, devices.BATCH, devices.SHARED
    return layout.compile(step, specs, donate=(0,)), model, tx


def start(layout, model, tx, dtype):
    variables = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 12, 12, 3), jnp.float32))
    state = create_state(jax.tree.map(lambda x: x.astype(dtype), variables), tx)
    return layout.place(state), layout.place(zero_totals(dtype)), layout.place(jax.random.key(2))


@functools.cache
def trained(mode, devices, steps, dtype, config=FULL):
    """Every leaf of the state and the totals after `steps`, on the host, by path."""
    layout = choose(Machine(parallel=mode, devices=devices), BATCH)
    assert (layout.mode, layout.device_count) == (mode, devices)
    # flax's batch norm promotes float64 with float32, which strict rules forbid; the float32 case
    # keeps them.
    promotion = "standard" if dtype == "float64" else "strict"
    with (
        jax.enable_x64(dtype == "float64"),
        jax.numpy_dtype_promotion(promotion),
        quick_compile(dtype == "float64"),
    ):
        step, model, tx = compiled_step(layout, config)
        state, totals, key = start(layout, model, tx, dtype)
        for number in range(steps):
            state, totals = step(state, totals, batch(number), key)
        leaves = jax.tree_util.tree_leaves_with_path((state, totals))
        found = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    assert {str(leaf.dtype) for leaf in found.values()} == {dtype, "int32"}
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "steps", "dtype", "tolerance"),
    [
        ("pmap", 20, "float64", 1e-10),
        ("sharded", 20, "float64", 1e-10),
        ("pmap", 5, "float32", 1e-5),
        ("sharded", 5, "float32", 1e-5),
    ],
)
def test_eight_devices_agree_with_one(mode, steps, dtype, tolerance):
    """Measured, both JAX versions: at most 5.6e-6 after 5 steps in float32, 6.7e-16 after 20 in
    float64.
    """
    assert len(jax.devices()) == 8
    one, eight = trained("jit", 1, steps, dtype), trained(mode, 8, steps, dtype)
    assert one.keys() == eight.keys()
    for part in (".params", ".batch_stats", ".opt_state", ".step", "['loss']", "['correct']"):
        assert any(part in name for name in one), part
    for name, wanted in one.items():
        if wanted.dtype == np.int32:
            np.testing.assert_array_equal(eight[name], wanted, err_msg=name)
        else:
            scale = steps * BATCH if name == "[1]['loss']" else 1  # a sum over that many examples
            np.testing.assert_allclose(
                eight[name], wanted, rtol=0, atol=tolerance * scale, err_msg=name
            )
    assert (one["[0].step"], one["[1]['count']"]) == (steps, steps * BATCH)
    # The comparison is of something: the parameters have moved by far more than the tolerance.
    with jax.enable_x64(dtype == "float64"):
        layout = devices.layout(ONE_DEVICE, BATCH)
        _, model, tx = compiled_step(layout)
        state, _, _ = start(layout, model, tx, dtype)
        before = np.asarray(state.params["Conv_0"]["kernel"])
    assert np.abs(one["[0].params['Conv_0']['kernel']"] - before).max() > 1e-3


# What follows uses a cheaper step: a linear model under plain gradient descent.

LINEAR = Config.of(model="softmax_regression", augment="none", batch_size=BATCH)


def linear_step(layout):
    step, model, _ = compiled_step(layout, LINEAR)
    variables = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 12, 12, 3), jnp.float32))
    state = create_state(variables, lenient(optim.adam(1e-3)))
    return step, (
        layout.place(state),
        layout.place(zero_totals()),
        batch(0),
        layout.place(jax.random.key(2)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pmap", "sharded"])
def test_the_batch_is_shared_out_and_the_gradient_summed(mode):
    layout = devices.layout(Machine(parallel=mode, devices=8), BATCH)
    step, arguments = linear_step(layout)
    # pmap's step is a plain function; jit refuses compiler options on a step inside another.
    outermost = jax.jit(step) if mode == "pmap" else step
    program = outermost.lower(*arguments).compile().as_text()
    assert "all-reduce" in program
    assert f"u8[{BATCH // 8},12,12,3]" in program  # what one device holds
    single, its_arguments = linear_step(devices.layout(ONE_DEVICE, BATCH))
    one = single.lower(*its_arguments).compile().as_text()
    assert "all-reduce" not in one and f"u8[{BATCH},12,12,3]" in one
    state, totals = step(*arguments)
    for leaf in jax.tree.leaves((state, totals)):
        assert len(leaf.sharding.device_set) == 8 and leaf.is_fully_replicated
    assert state.params["Dense_0"]["bias"].shape == (CLASSES,)  # no leading device axis
    wanted, its_totals = single(*its_arguments)
    for found, one_device in zip(
        jax.tree.leaves((state, totals)), jax.tree.leaves((wanted, its_totals)), strict=True
    ):
        np.testing.assert_allclose(found, one_device, rtol=1e-5, atol=1e-6)


def test_pmap_sees_a_part_and_the_axis():
    layout = devices.layout(Machine(parallel="pmap", devices=8), 16)
    seen = layout.compile(
        lambda x, *, axis_name: (
            jnp.int32(x.shape[0]),
            collectives.total(x.sum(), axis_name),
            collectives.mean(x.mean(), axis_name),
        ),
        (devices.BATCH,),
    )(np.arange(16, dtype=np.float32))
    assert [float(value) for value in seen] == [2, 120, 7.5]


def test_example_keys_do_not_depend_on_the_split():
    key = jax.random.key(3)
    whole = jax.random.key_data(collectives.example_keys(key, 16))
    layout = devices.layout(Machine(parallel="pmap", devices=8), 16)
    gathered = layout.compile(
        lambda x, *, axis_name: jax.lax.all_gather(
            jax.random.key_data(collectives.example_keys(key, x.shape[0], axis_name)),
            axis_name,
            tiled=True,
        ),
        (devices.BATCH,),
    )(np.zeros(16, np.float32))
    np.testing.assert_array_equal(gathered, whole)
    assert len(np.unique(whole, axis=0)) == 16


@pytest.mark.parametrize("mode", ["pmap", "sharded"])
def test_evaluation_agrees(mode):
    def sums(logits, part, *, axis_name):
        loss = losses.cross_entropy(logits, part["label"])
        return collectives.total(metrics.sums(logits, part["label"], loss, part["mask"]), axis_name)

    logits = np.random.default_rng(0).standard_normal((BATCH, CLASSES)).astype(np.float32)
    part = {"label": LABELS[:BATCH], "mask": np.arange(BATCH) < BATCH - 9}
    found, wanted = (
        devices.layout(machine, BATCH).compile(sums, (devices.BATCH, devices.BATCH))(logits, part)
        for machine in (Machine(parallel=mode, devices=8), ONE_DEVICE)
    )
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-6, atol=1e-6, err_msg=name)
    assert int(wanted["count"]) == BATCH - 9


@pytest.mark.parametrize(
    ("mode", "devices", "size", "found"),
    [
        ("auto", None, 256, ("sharded", 8)),
        ("auto", None, 128, ("sharded", 4)),  # 32 images each
        ("auto", None, 96, ("sharded", 3)),
        ("auto", None, 63, ("jit", 1)),
        ("auto", None, 11, ("jit", 1)),
        ("auto", 8, 64, ("sharded", 8)),
        ("auto", 1, 64, ("jit", 1)),
        ("auto", 4, 64, ("sharded", 4)),
        ("jit", None, 64, ("jit", 1)),
        ("pmap", None, 64, ("pmap", 2)),
        ("pmap", 1, 64, ("pmap", 1)),
        ("sharded", None, 11, ("sharded", 1)),
    ],
)
def test_choice_of_devices(mode, devices, size, found):
    layout = choose(Machine(parallel=mode, devices=devices), size)
    assert (layout.mode, layout.device_count) == found


@pytest.mark.parametrize(
    ("mode", "devices", "size", "words"),
    [
        ("auto", 8, 12, ["--devices 8", "--batch-size 12", "divi"]),
        ("pmap", 3, 64, ["--devices 3", "--batch-size 64"]),
        ("sharded", 9, 72, ["--devices 9", "there are 8", "cpu"]),
        ("jit", 2, 64, ["--parallel jit", "one device"]),
    ],
)
def test_choices_that_cannot_be(mode, devices, size, words):
    with pytest.raises(InputError) as error:
        choose(Machine(parallel=mode, devices=devices), size)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu", "cuda", "tpu"])
def test_the_step_lowered_for_each_platform(name):
    """The formulation follows the mesh's devices, not this host: accelerators get lax's own
    convolution throughout.
    """
    formulation = devices.formulation({"cuda": "gpu"}.get(name, name))  # a device's name for itself
    config = Config.of(batch_size=BATCH, augment="none", model="cnn,widths=[8,16]")
    layout = devices.layout(ONE_DEVICE, BATCH)
    step, model, tx = compiled_step(layout, config, formulation)
    state, totals, key = start(layout, model, tx, "float32")
    text = step.trace(state, totals, batch(0), key).lower(lowering_platforms=(name,)).as_text()
    convolutions = text.count("stablehlo.convolution")
    if name == "cpu":
        assert "stablehlo.while" in text and model.conv.formulation == "blocked"
    else:
        # forward and by the kernel for both layers, by the input for the second
        assert (convolutions, text.count("stablehlo.while"), model.conv.formulation) == (
            5,
            0,
            "native",
        )


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
def test_freed_memory_is_kept():
    """Taking 64 MB again and again faults their pages in once."""
    program = """
import resource, sys
import numpy as np
from cnnlab.config import Machine
from cnnlab.training import devices
if sys.argv[1] == "with":
    devices.layout(Machine(), 128)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**24, np.float32)
before = faults()
for _ in range(5):
    np.ones(2**24, np.float32)
print(faults() - before)
"""
    with_layout, without = (
        int(
            subprocess.run(
                [sys.executable, "-c", program, how], capture_output=True, text=True, check=True
            ).stdout
        )
        for how in ("with", "without")
    )
    # Numpy asks for huge pages where there are any: then 32 faults each
    assert 4 * with_layout < without


def device(platform, process=0):
    return SimpleNamespace(platform=platform, process_index=process)


@pytest.mark.parametrize(
    ("available", "cores", "is_one_core"),
    [
        ([device("cpu")] * 2, 2, True),
        ([device("cpu")] * 8, 2, True),
        ([device("cpu")], 1, True),
        ([device("cpu")], 2, False),
        ([device("cpu"), device("cpu", process=1)], 2, False),
        ([device("tpu")] * 8, 2, False),
    ],
)
def test_a_device_for_each_core_computes_in_one_thread(available, cores, is_one_core, monkeypatch):
    monkeypatch.setattr(backend, "cores", lambda: cores)
    assert bool(devices._compiler_options(available, deterministic=True)) == is_one_core


def test_xla_knows_the_options():
    for options in (devices.ONE_CORE, devices.DETERMINISTIC_GPU):
        assert jax.jit(lambda x: 2 * x, compiler_options=options)(1.0) == 2


def test_a_deterministic_gpu():
    assert devices.layout(Machine(parallel="jit", deterministic=True), 8).deterministic
    for name, formulation in (("gpu", "deterministic"), ("tpu", "native"), ("cpu", "blocked")):
        mesh: Any = SimpleNamespace(devices=np.array([device(name)]))
        assert devices.Layout("jit", mesh, deterministic=True).formulation == formulation
    assert devices._compiler_options([device("gpu")], True) == devices.DETERMINISTIC_GPU
    assert devices._compiler_options([device("gpu")], False) == {}
    with pytest.raises(InputError, match="--parallel pmap cannot be --deterministic on a GPU"):
        pmapped = Machine(parallel="pmap", deterministic=True)
        devices.layout(pmapped, 8, available=[device("gpu")])
