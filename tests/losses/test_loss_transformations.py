"""Losses under JAX's transformations, with labels of every kind: one table over all of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from test_loss_transforms import MADE
from test_losses import EXTREMES, MASKED, STRETCH, K, bound, example

from cnnlab import losses

EPS = 2.0**-23  # one ulp of float32, relative
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
IDS = np.array([0, 4, 2, 2, 1, 3, 0, 4], np.int32)
ONE_HOT = np.eye(K, dtype=np.float32)[IDS]
# Those that loop inside (`by_class`, `_normaliser`), and one that does not; the others are slow.
QUICK = {"cross_entropy", "multiclass_hinge", "entmax_loss"}
every_loss = pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in losses.LOSSES],
)


def scanned(loss, z, y):
    return lax.scan(lambda _, example: (None, loss(*example)), None, (z, y))[1]


def scanned_over_logits(loss, z, y):
    return lax.scan(lambda _, logits: (None, loss(logits, y)), None, z[None])[1][0]


def in_while_loop(loss, z, y):
    def step(state):
        i, values = state
        return i + 1, values.at[i].set(loss(z[i], y[i]))

    start = (jnp.int32(0), jnp.zeros(len(z)))
    return lax.while_loop(lambda state: state[0] < len(z), step, start)[1]


def vmapped_over_labels(loss, z, y):
    """Row i, column j: the loss of logits j with label i."""
    return jnp.diagonal(jax.vmap(lambda label: jax.vmap(lambda row: loss(row, label))(z))(y))


def sharded(loss, z, y):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    over = PartitionSpec("data")
    return jax.shard_map(loss, mesh=mesh, in_specs=over, out_specs=over)(z, y)


VALUES = {
    "jit": lambda loss, z, y: loss(z, y),
    "scan": scanned,
    "scan over logits": scanned_over_logits,
    "while_loop": in_while_loop,
    "vmap over labels": vmapped_over_labels,
    "checkpoint": lambda loss, z, y: jax.checkpoint(loss)(z, y),
    "shard_map": sharded,
}
SLOPES = {
    "grad": lambda loss, z, y: jax.grad(lambda z: loss(z, y).sum())(z),
    "jacrev": lambda loss, z, y: jax.jacrev(lambda z: loss(z, y))(z).sum(0),
    "checkpoint": lambda loss, z, y: jax.grad(lambda z: jax.checkpoint(loss)(z, y).sum())(z),
    "shard_map": lambda loss, z, y: jax.grad(lambda z: sharded(loss, z, y).sum())(z),
}


@every_loss
def test_transformations_agree(name):
    """With labels that are traced, and with a jax array from outside the transformation."""
    loss = bound(name)
    z = example(name, (8, K))[0]
    atol = 16 * EPS * STRETCH.get(name, 1)
    for labels in (IDS, ONE_HOT):
        outside = jnp.asarray(labels)
        for ways in (VALUES, SLOPES):
            traced, closed_over = jit(
                lambda z, y, ways=ways, outside=outside: [
                    {way: f(loss, z, y_) for way, f in ways.items()} for y_ in (y, outside)
                ]
            )(z, labels)
            wanted = traced[next(iter(ways))]
            for way in ways:
                for got in (traced[way], closed_over[way]):
                    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=atol, err_msg=way)


@every_loss
def test_labels_of_every_kind(name):
    """Python numbers, lists, NumPy and jax arrays, and a list that holds a traced id."""
    loss = bound(name)
    z = jnp.asarray(example(name, (8, K))[0])
    wanted = jit(loss)(z, IDS)
    kinds = [IDS, jnp.asarray(IDS), IDS.tolist(), IDS.astype(np.uint8), ONE_HOT, ONE_HOT.tolist()]
    got, alone, listed = jit(
        lambda z, y: (
            [loss(z, labels) for labels in kinds],
            loss(z[1], 4),
            loss(z[:2], [y[0], 4]),
        )
    )(z, IDS)
    atol = 16 * EPS * STRETCH.get(name, 1)
    for values in got:
        np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=atol)
    np.testing.assert_allclose(alone, wanted[1], rtol=1e-5, atol=atol)
    np.testing.assert_allclose(listed, wanted[:2], rtol=1e-5, atol=atol)
    too_large = jnp.full(8, K)
    with pytest.raises(ValueError, match=rf"class ids must lie in \[0, {K}\), got {K}"):
        jit(lambda z: loss(z, too_large))(z)


@every_loss
def test_float64_stays(name):
    z = example(name, (8, K))[0]
    with jax.enable_x64():
        value, slope = jit(jax.vmap(jax.value_and_grad(bound(name))))(
            z.astype(np.float64), IDS.astype(np.int64)
        )
    assert value.dtype == slope.dtype == np.float64
    narrow = jit(bound(name))(z, IDS)
    np.testing.assert_allclose(narrow, value, rtol=1e-5, atol=16 * EPS * STRETCH.get(name, 1))


@every_loss
def test_no_nan_on_the_way(name):
    """Not even one that is thrown away, for logits that are extreme or, where they may be, -inf."""
    loss = bound(name)
    z = EXTREMES[:4] if name in MASKED else EXTREMES
    ids = np.argmax(z, -1)
    with jax.debug_nans(True):
        for labels in (ids, np.eye(K, dtype=np.float32)[ids]):
            jax.vjp(lambda z, labels=labels: loss(z, labels), jnp.asarray(z))[1](
                np.ones(len(z), np.float32)
            )


@pytest.mark.parametrize(
    "name", [n if n == "all" else pytest.param(n, marks=pytest.mark.slow) for n in MADE]
)
def test_losses_of_losses(name):
    loss = MADE[name]
    z = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    ids = np.arange(8) % 3
    wanted = np.asarray(loss(z, ids))
    for labels in (ids, np.eye(3, dtype=np.float32)[ids]):
        outside = jnp.asarray(labels)
        got = jit(
            lambda z, outside=outside: {way: f(loss, z, outside) for way, f in VALUES.items()}
        )(z)
        for way, values in got.items():
            np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=16 * EPS, err_msg=way)
