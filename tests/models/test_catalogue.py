"""What every model by name keeps: the same logits however devices share the batch, and programs of
plain convolutions for accelerators.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from convolutions import drawn
from jax import lax
from jax_modes import quick_compile

from cnnlab.config import Config, Machine
from cnnlab.models import MODELS, Convolution
from cnnlab.parts import resolve
from cnnlab.training import devices

# With as few layers as have all kinds of the model's
SMALL = {
    "cnn": "cnn,widths=[4],hidden=[5],batch_norm=true,dropout=0.5",
    "mlp": "mlp,hidden=[5],batch_norm=true,dropout=0.5",
    "softmax_regression": "softmax_regression",
    "airnet": "airnet,widths=[4]",
    "cnn8": "cnn8,widths=[4],hidden=5",
    "wide_resnet": "wide_resnet,depth=10,width=1,dropout=0.5",
}
THIN = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")
# The other thin networks differ in their number of blocks alone
QUICK = ("softmax_regression", "cnn8", "resnet20")
BATCH = 16


def small(name):
    """Residual networks of two stages, of a block each."""
    return SMALL.get(name, f"{name},blocks=[1,1],widths=[4,8],stem_width=4")


def build(written, axis_name=None, formulation="blocked"):
    recipe = Config.of(model=written, batch_size=BATCH, augment="none").recipe
    return resolve(recipe).build_model(10, "float32", Convolution(formulation), axis_name)


def started(leaf):
    """Kernels that keep the size of what passes; positive scales, biases and statistics."""
    values = drawn(leaf.shape)
    return values / np.prod(leaf.shape[:-1]) ** 0.5 if leaf.ndim > 1 else 0.5 + np.abs(values)


def logits(mode, written, variables, images):
    """In evaluation and in training, of all images."""
    layout = devices.layout(Machine(parallel=mode, devices=1 if mode == "jit" else 8), BATCH)
    model = build(written, layout.axis_name, layout.formulation)

    def both(variables, images, axis_name):
        trained, _ = model.apply(
            variables,
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        )
        parts = model.apply(variables, images, train=False), trained
        return parts if axis_name is None else lax.all_gather(parts, axis_name, tiled=True)

    return layout.compile(both, (devices.SHARED, devices.BATCH))(layout.place(variables), images)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in MODELS]
)
def test_logits_are_the_same_under_jit_pmap_and_sharded(name):
    """In evaluation and training, with batch statistics and masks of the global batch. Float64:
    a few thousand roundings of 2^-53.
    """
    images = drawn((BATCH, 8, 8, 3))
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), quick_compile(True):
        variables = jax.eval_shape(build(small(name)).init, jax.random.key(0), images)
        variables = jax.tree.map(started, variables)
        wanted = logits("jit", small(name), variables, images)
        for mode in ("pmap", "sharded"):
            found = logits(mode, small(name), variables, images)
            for ours, theirs in zip(found, wanted, strict=True):
                assert ours.shape == (BATCH, 10) and ours.dtype == np.float64
                size = np.abs(theirs).max()
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * size, err_msg=mode)
                # Not a comparison of what is the same for all images
                assert np.std(theirs, 0).max() > 1e-3 * size


LOWERED = ["resnet20", "resnet18", "wide_resnet,depth=10,width=1", "cnn8", "airnet"]


def traced_step(name, formulation):
    """A model's gradient for a batch of 8, and its variables."""
    model = build(name, formulation=formulation)
    shape = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), shape)

    def loss(params, stats, images):
        logits, _ = model.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.zeros(8, jnp.int32)
        ).mean()

    stats = variables.get("batch_stats", {})
    return jax.jit(jax.value_and_grad(loss)).trace(variables["params"], stats, shape), variables


@pytest.mark.parametrize("name", LOWERED)
def test_accelerators_get_plain_convolutions(name):
    """A train step lowered for TPU and GPU: one convolution for the value, one for each gradient,
    no loop, no barrier, no product but those of dense layers.
    """
    traced, variables = traced_step(name, "native")
    kernels = [leaf.ndim for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim > 1]
    for platform in ("tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        counts = [
            text.count(f"stablehlo.{operation}")
            for operation in ("convolution", "while", "optimization_barrier", "dot_general")
        ]
        whitened = name == "airnet"  # a convolution whose kernel and images have no gradient
        convolutions = 3 * kernels.count(4) - (0 if whitened else 1) + whitened
        # A dense layer's value and both gradients
        assert counts == [convolutions, 0, 0, 3 * kernels.count(2)]


POOLED = ["cnn", "cnn8", "airnet", "resnet18,stem=imagenet"]


@pytest.mark.parametrize("name", POOLED)
def test_deterministic_pooling_selects_and_scatters_nothing(name):
    """Of select-and-scatter, which sums in any order, XLA has no other form for GPUs."""
    for formulation, has in (("native", True), ("deterministic", False)):
        traced, _ = traced_step(name, formulation)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        assert ("select_and_scatter" in text) == has, formulation


def test_a_cpu_gets_blocks():
    """The same model in the other formulation has what accelerators must not get."""
    model = build("resnet18,blocks=[1,1],widths=[4,8],stem_width=4")
    shape = jax.ShapeDtypeStruct((8, 8, 8, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), shape)
    text = jax.jit(model.apply).trace(variables, shape).lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.while" in text and "stablehlo.optimization_barrier" in text
