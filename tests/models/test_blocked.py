"""The pieces of the blocked formulation against the definition of a convolution, in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolutions import Direct, assert_within, drawn
from jax_modes import quick_compile

from cnnlab.models import blocked, strided
from cnnlab.models.convolution import Convolution


@pytest.fixture
def in_double():
    with jax.enable_x64(True), quick_compile(True):
        yield


def assert_direct(shape, kernel_shape, pads):
    x, kernel = drawn(shape), drawn(kernel_shape)
    wanted = Direct(pads).value(x, kernel)
    found = jax.jit(lambda x, kernel: blocked._direct(kernel, pads, x))(x, kernel)
    bound = Direct(pads).bounds(x, kernel, wanted, "float64")[0]
    assert_within(found, wanted, bound, "float64", (shape, kernel_shape, pads))


@pytest.mark.parametrize(
    ("columns", "kernel", "pads"),
    [
        (6, (3, 3), ((1, 1), (1, 1))),
        (5, (3, 3), ((1, 1), (1, 1))),
        (4, (2, 1), ((0, 1), (0, 0))),
        (8, (1, 4), ((0, 0), (3, 2))),
        (6, (3, 1), ((1, 1), (-1, 1))),
        (4, (3, 3), ((2, -1), (5, 3))),  # more to the left than the kernel is wide
    ],
)
def test_columns_at_once(columns, kernel, pads, in_double):
    """Two and four columns, where that many divide the output's and where they do not."""
    assert_direct((2, 5, columns, 4), (*kernel, 4, 16), pads)
    assert_direct((2, 5, columns, 5), (*kernel, 5, 8), pads)


@pytest.mark.slow
@pytest.mark.parametrize("width", range(1, 6))
def test_columns_under_every_padding(width, in_double):
    """Paddings of 0 to 3 to the left and the right; one to many columns at once."""
    channels, features = {1: (1, 16), 2: (4, 2), 3: (16, 1), 4: (7, 10), 5: (3, 32)}[width]
    for left, right, columns in itertools.product(range(4), range(4), (5, 6, 8)):
        pads = (1, 1), (left, right)
        assert_direct((1, 3, columns, channels), (3, width, channels, features), pads)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 1), (1, 3)])
def test_pointwise(strides, in_double):
    """Value and gradients: products over C, D, and all pixels."""
    x, kernel = drawn((3, 5, 7, 4)), drawn((1, 1, 4, 6))
    direct = Direct(((0, 0), (0, 0)), strides)
    wanted = direct.value(x, kernel)
    dy = drawn(wanted.shape, seed=1)
    found, back = jax.vjp(lambda *args: blocked.pointwise(*args, strides), x, kernel)
    bounds = direct.bounds(x, kernel, dy, "float64")
    gradients = back(jnp.asarray(dy))
    assert_within(found, wanted, bounds[0], "float64", "value")
    assert_within(gradients[0], direct.by_images(dy, kernel, x.shape), bounds[1], "float64", "x")
    assert_within(
        gradients[1], direct.by_kernel(x, dy, kernel.shape), bounds[2], "float64", "kernel"
    )


STRIDED = [
    # batch, height, width, kernel, strides, pads
    (9, 8, 8, (3, 3), (2, 2), ((1, 1), (1, 1))),  # a last block of one image
    (3, 7, 6, (3, 3), (2, 1), ((1, 1), (0, 2))),
    (16, 6, 9, (3, 2), (3, 2), ((0, 0), (0, 0))),
    (2, 9, 8, (7, 7), (2, 2), ((3, 3), (3, 3))),
    (8, 5, 5, (2, 2), (4, 3), ((3, 0), (0, 3))),  # pixels that no place of the kernel sees
    (1, 9, 9, (3, 3), (2, 2), ((-1, 0), (2, -2))),
    (2, 1, 1, (3, 3), (2, 2), ((1, 1), (1, 1))),
]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case in STRIDED[:2] else pytest.mark.slow, id=str(case))
     for case in STRIDED],
)  # fmt: skip
def test_strided(case, in_double):
    batch, height, width, kernel, strides, pads = case
    x, kernel = drawn((batch, height, width, 5)), drawn((*kernel, 5, 4))
    direct = Direct(pads, strides)
    wanted = direct.value(x, kernel)
    dy = drawn(wanted.shape, seed=1)

    @jax.jit
    def parts(x, kernel, dy):
        y, back = jax.vjp(lambda *args: strided.convolve(*args, strides, pads), x, kernel)
        return y, *back(dy)

    theirs = wanted, direct.by_images(dy, kernel, x.shape), direct.by_kernel(x, dy, kernel.shape)
    bounds = direct.bounds(x, kernel, dy, "float64")
    rows = zip(parts(x, kernel, dy), theirs, bounds, ("value", "by x", "by kernel"), strict=True)
    for ours, theirs, bound, name in rows:
        assert_within(ours, theirs, bound, "float64", name)


@pytest.mark.parametrize("batch", [1, 11])
def test_what_is_kept_stays_as_it_is(batch):
    """Values and gradients, in blocks behind a barrier of the compiler's."""
    x = drawn((batch, 2, 3, 2), dtype="float32")
    weights = jnp.asarray(drawn(x.shape, seed=1, dtype="float32"))
    found, back = jax.vjp(blocked.kept, jnp.asarray(x))
    np.testing.assert_array_equal(found, x)
    np.testing.assert_array_equal(back(weights)[0], weights)
    assert "optimization_barrier" in str(jax.make_jaxpr(Convolution("blocked").kept)(x))


def test_native_and_empty_batches_have_nothing_to_keep():
    x, empty = jnp.ones((3, 2, 2, 1)), jnp.ones((0, 2, 2, 1))
    assert Convolution("native").kept(x) is x
    assert Convolution("blocked").kept(empty) is empty


def test_sums_over_blocks_leave_no_image_out():
    """Of 1 to 17 images in blocks of 8, padded with zeros: every image counts once, in sums of
    small integers.
    """
    for batch in (1, 7, 8, 9, 17):
        x, dz = np.random.default_rng(batch).integers(1, 9, (2, batch, 3)).astype(np.float32)
        total = blocked._sum_over_blocks(lambda x, dz: jnp.sum(x * dz), jnp.zeros(()), x, dz, 8)
        assert float(total) == np.sum(x * dz)
