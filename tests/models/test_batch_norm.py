"""BatchNorm against flax's own layer in float64, and over devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolutions import drawn
from jax.sharding import Mesh, PartitionSpec
from jax_modes import quick_compile

from cnnlab.models.layers import BatchNorm

# Some hundred roundings of 2^-53, of values near 1
TOLERANCE = 1e-12
SHAPE = (16, 3, 5, 4)


@pytest.fixture(autouse=True)
def quickly():
    with quick_compile(True):
        yield


@pytest.fixture
def in_double():
    """flax mixes types under 64 bits."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def variables(channels=4, use_scale=True):
    """Away from where they start."""
    params = {"bias": drawn((channels,), seed=1)}
    if use_scale:
        params["scale"] = 0.5 + drawn((channels,), seed=2) ** 2
    stats = {"mean": drawn((channels,), seed=3), "var": 0.5 + drawn((channels,), seed=4) ** 2}
    return jax.tree.map(jnp.asarray, {"params": params, "batch_stats": stats})


def flax_s(**options):
    """flax's layer, called as ours is."""
    layer = nn.BatchNorm(momentum=options.pop("momentum", 0.9), **options)

    def apply(variables, x, train, mutable):
        return layer.apply(variables, x, use_running_average=not train, mutable=mutable)

    return apply


def value_gradients_statistics(apply, variables, x, train, weights):
    """Of the sum of the result times weights, by parameters and images."""

    def weighted(params, x):
        y, changed = apply(variables | {"params": params}, x, train=train, mutable=["batch_stats"])
        return jnp.sum(y * weights), (y, changed["batch_stats"])

    gradients, (y, stats) = jax.grad(weighted, (0, 1), has_aux=True)(variables["params"], x)
    return {"value": y, "by x": gradients[1], "by params": gradients[0], "stats": stats}


def assert_same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    leaves = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True)
    for (path, ours), theirs in leaves:
        assert ours.dtype == np.float64
        np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=TOLERANCE * max(1, np.abs(theirs).max()), err_msg=str(path)
        )


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"use_scale": False}, {"momentum": 0.6, "epsilon": 0.1}], ids=str
)
def test_numbers_are_flax_s(train, options, in_double):
    """Value, gradients and running statistics, of images whose channels have means and sizes."""
    x = jnp.asarray(3 + drawn(SHAPE) * np.array([0.1, 1, 2, 10]))
    weights = jnp.asarray(drawn(SHAPE, seed=5))
    found, wanted = (
        jax.jit(value_gradients_statistics, static_argnums=(0, 3))(
            apply, variables(use_scale=options.get("use_scale", True)), x, train, weights
        )
        for apply in (BatchNorm(**options).apply, flax_s(**options))
    )
    assert_same(found, wanted)
    moved = np.abs(found["stats"]["mean"] - variables()["batch_stats"]["mean"]).max()
    assert (moved > 0.1) == train


def test_running_statistics_of_several_steps_are_flax_s(in_double):
    """And the value by these statistics, which no step changes."""
    ours, theirs = BatchNorm().apply, flax_s()
    found = wanted = variables()
    for step in range(4):
        x = jnp.asarray(step + drawn(SHAPE, seed=step))
        found, wanted = (
            before | apply(before, x, train=True, mutable=["batch_stats"])[1]
            for apply, before in ((ours, found), (theirs, wanted))
        )
    assert_same(found, wanted)
    (y, same), (flax_y, _) = (
        apply(v, x, train=False, mutable=["batch_stats"])
        for apply, v in ((ours, found), (theirs, wanted))
    )
    assert_same(y, flax_y)
    np.testing.assert_array_equal(same["batch_stats"]["var"], found["batch_stats"]["var"])


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 8])
def test_devices_that_share_a_batch_are_one(count, in_double):
    """Value, gradients and statistics are those of the global batch."""
    x, weights = jnp.asarray(3 + drawn(SHAPE)), jnp.asarray(drawn(SHAPE, seed=5))
    one_device = jax.jit(value_gradients_statistics, static_argnums=(0, 3))
    wanted = one_device(BatchNorm().apply, variables(), x, True, weights)
    mesh = Mesh(np.array(jax.devices()[:count]), ("data",))

    def on_a_device(variables, x, weights):
        parts = value_gradients_statistics(
            BatchNorm(axis_name="data").apply, variables, x, True, weights
        )
        return parts | {"by params": jax.lax.psum(parts["by params"], "data")}

    shared, batch = PartitionSpec(), PartitionSpec("data")
    found = jax.shard_map(
        on_a_device,
        mesh=mesh,
        in_specs=(shared, batch, batch),
        out_specs={"value": batch, "by x": batch, "by params": shared, "stats": shared},
        check_vma=False,
    )
    assert_same(jax.jit(found)(variables(), x, weights), wanted)


@pytest.mark.parametrize("use_scale", [True, False])
def test_init_makes_flax_s_tree_and_statistics_of_no_batch(use_scale):
    """In training too, and without the axis that a step has."""
    x = jnp.asarray(3 + drawn(SHAPE, "float32"))
    layer = BatchNorm(use_scale=use_scale, axis_name="data")
    found = layer.init(jax.random.key(0), x, train=True)
    wanted = nn.BatchNorm(use_scale=use_scale).init(jax.random.key(0), x, use_running_average=False)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_the_start_of_the_scale_is_an_option():
    zeros = nn.initializers.zeros
    made = BatchNorm(scale_init=zeros).init(jax.random.key(0), jnp.ones((2, 3)), train=False)
    np.testing.assert_array_equal(made["params"]["scale"], np.zeros(3))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("train", [True, False])
def test_types(dtype, train):
    """Half precision is widened before sums: statistics are single, the result within the rounding
    of its type of flax's in float64. Gradients have the types of what they are by.
    """
    x = jnp.asarray(3 + drawn(SHAPE), dtype)
    made = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), variables())

    def weighted(params, x):
        y, changed = BatchNorm().apply(
            made | {"params": params}, x, train=train, mutable=["batch_stats"]
        )
        return y.astype(jnp.float32).sum(), (y, changed["batch_stats"])

    gradients, (y, stats) = jax.jit(jax.grad(weighted, (0, 1), has_aux=True))(made["params"], x)
    assert (y.dtype, gradients[1].dtype) == (dtype, dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves((stats, gradients[0]))} == {jnp.dtype("float32")}
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), made)
        wanted, changed = flax_s()(
            double, x.astype(jnp.float64), train=train, mutable=["batch_stats"]
        )
    eps = float(jnp.finfo(dtype).eps)
    # Single precision takes the squares of values near 3: ten times their variance
    np.testing.assert_allclose(np.asarray(y, np.float64), wanted, rtol=eps / 2, atol=256 * 2.0**-23)
    for name in ("mean", "var"):
        theirs = changed["batch_stats"][name]
        np.testing.assert_allclose(stats[name], theirs, rtol=0, atol=64 * 2.0**-23)


def test_a_channel_without_variance_gives_no_nan():
    """Rounding leaves the mean of squares above the square of the mean, or below."""
    values = np.geomspace(1e-3, 1e4, 64).astype(np.float32)
    x = jnp.broadcast_to(values, (7, 5, 64))
    excess = jnp.mean(x * x, (0, 1)) - jnp.mean(x, (0, 1)) ** 2
    assert excess.min() < -1e-5 < 1e-5 < excess.max()
    v = jax.jit(BatchNorm().init, static_argnames="train")(jax.random.key(0), x, train=False)

    def total(x):
        y, changed = BatchNorm().apply(v, x, train=True, mutable=["batch_stats"])
        return y.sum(), changed["batch_stats"]["var"]

    gradient, var = jax.jit(jax.grad(total, has_aux=True))(x)
    # 0.9 of the first variance, 1
    assert np.all(np.isfinite(gradient)) and np.all(var >= 0.9 - 2.0**-23)
