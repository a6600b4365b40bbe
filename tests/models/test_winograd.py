"""Winograd's filtering against the documented matrices and the definition of a convolution, in
float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolutions import A_T, B_T, Direct, G, Winograd, assert_within, drawn
from jax_modes import quick_compile

from cnnlab.models import winograd


@pytest.fixture
def in_double():
    with jax.enable_x64(True), quick_compile(True):
        yield


def test_a_tile_by_hand():
    """y[i, j] = d[i, j] + 2 d[i, j+2] + d[i+1, j+1] + d[i+2, j]; the gradient by the kernel of
    y[0, 0] + 2 y[1, 1] is d[i, j] + 2 d[i+1, j+1]. All of it is exact in float32.
    """
    d = jnp.asarray([[1.0, 2, 0, 1], [0, 1, 3, 1], [2, 0, 1, 0], [1, 1, 0, 2]]).reshape(1, 4, 4, 1)
    g = jnp.asarray([[1.0, 0, 2], [0, 1, 0], [1, 0, 0]]).reshape(3, 3, 1, 1)
    dy = jnp.asarray([[1.0, 0], [0, 2]]).reshape(1, 2, 2, 1)
    none = ((0, 0), (0, 0))

    @jax.jit
    def parts(d, g, dy):
        y = winograd.convolve(winograd.transformed(g), 0, none, d)
        return y, winograd.kernel_gradient(winograd.kernel_products(d, dy, none))

    y, gradient = parts(d, g, dy)
    np.testing.assert_array_equal(y[0, :, :, 0], [[4, 7], [7, 5]])
    np.testing.assert_array_equal(gradient[..., 0, 0], [[3, 8, 2], [0, 3, 3], [4, 0, 5]])


@pytest.mark.parametrize(
    ("terms", "matrix"),
    [
        ("_input_terms", B_T),
        ("_kernel_terms", G),
        ("_output_terms", A_T),
        ("_cotangent_terms", A_T.T),
        ("_gradient_terms", G.T),
    ],
)
def test_terms_are_the_documented_matrices(terms, matrix):
    """M X M^T, of small integers that halves leave exact."""
    tile = np.random.default_rng(0).integers(-8, 8, (matrix.shape[1],) * 2).astype(float)
    rows = winograd._transform(getattr(winograd, terms), tile)
    np.testing.assert_array_equal(np.array(rows), matrix @ tile @ matrix.T)


def test_the_matrices_give_a_convolution():
    """y = A^T ((G g G^T) * (B^T d B)) A, for odd and even sides: the oracle of the bounds."""
    for height, width in ((4, 4), (5, 7), (6, 5)):
        x, kernel = drawn((2, height, width, 3)), drawn((3, 3, 3, 2))
        pads = (1, 0), (2, 1)
        dy = drawn((2, height - 1, width + 1, 2))
        direct, by_matrices = Direct(pads), Winograd(pads)
        for found, wanted in (
            (by_matrices.value(x, kernel), direct.value(x, kernel)),
            (by_matrices.by_images(dy, kernel, x.shape), direct.by_images(dy, kernel, x.shape)),
            (by_matrices.by_kernel(x, dy, kernel.shape), direct.by_kernel(x, dy, kernel.shape)),
        ):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


CASES = [
    # batch, height, width, channels, features, pads
    (2, 6, 8, 3, 2, ((1, 1), (1, 1))),
    (1, 5, 7, 2, 3, ((1, 1), (1, 1))),
    (2, 5, 6, 1, 4, ((0, 0), (0, 0))),
    (2, 6, 5, 4, 1, ((2, 0), (0, 3))),
    (1, 7, 8, 2, 2, ((-1, 2), (1, -2))),
    (3, 1, 1, 2, 2, ((1, 1), (1, 1))),
    (1, 3, 3, 2, 2, ((0, 0), (0, 0))),
    (1, 2, 4, 2, 2, ((5, -3), (-1, 4))),
]
QUICK = CASES[4:5]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow, id=str(case))
     for case in CASES],
)  # fmt: skip
def test_values_and_both_gradients_are_a_convolution_s(case, in_double):
    """Each within the bound of `Winograd.bounds`: the same linear maps of magnitudes,
    |A^T| ((|G||g||G^T|) * (|B^T||d||B|)) |A|, times the roundings that follow one another.

    The channels of images are either axis of the kernel's elements; products of two batches add up.
    """
    batch, height, width, channels, features, pads = case
    x, kernel = drawn((batch, height, width, channels)), drawn((3, 3, channels, features))
    wanted = Direct(pads).value(x, kernel)
    dy = drawn(wanted.shape, seed=1)

    @jax.jit
    def found(x, kernel, dy):
        elements = winograd.transformed(kernel)
        swapped = [[element.T for element in row] for row in elements]
        products = winograd.kernel_products(x, dy, pads)
        twice = jax.tree.map(jnp.add, products, products)
        turned = winograd.transformed(kernel[::-1, ::-1])
        turned_pads = tuple((2 - before, 2 - after) for before, after in pads)
        return (
            winograd.convolve(elements, 0, pads, x),
            winograd.convolve(swapped, 1, pads, x),
            winograd.convolve(turned, 1, turned_pads, dy),
            winograd.kernel_gradient(products),
            winograd.kernel_gradient(twice) / 2,
        )

    bounds = Winograd(pads).bounds(x, kernel, dy, "float64")
    by_images = Direct(pads).by_images(dy, kernel, x.shape)
    by_kernel = Direct(pads).by_kernel(x, dy, kernel.shape)
    for ours, theirs, bound, name in zip(
        found(x, kernel, dy),
        (wanted, wanted, by_images, by_kernel, by_kernel),
        (bounds[0], bounds[0], *bounds[1:], bounds[2]),
        ("axis 0", "axis 1", "by images", "by kernel", "of two batches"),
        strict=True,
    ):
        assert_within(ours, theirs, bound, "float64", name)


def test_products_count_what_tiles_count():
    """16 matrix products of [tiles, C] with [C, D], in place of 36."""
    x, kernel = jnp.zeros((1, 8, 8, 5)), jnp.zeros((3, 3, 5, 7))
    pads = (1, 1), (1, 1)

    def value(x, kernel):
        return winograd.convolve(winograd.transformed(kernel), 0, pads, x)

    def by_kernel(x, kernel):
        return winograd.kernel_gradient(winograd.kernel_products(x, value(x, kernel), pads))

    for function, count in ((value, 16), (by_kernel, 32)):
        program = str(jax.make_jaxpr(function)(x, kernel))
        assert (program.count("dot_general["), program.count("conv_general")) == (count, 0)
