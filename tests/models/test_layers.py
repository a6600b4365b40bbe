"""The blocked formulation against lax in float64 and float32, by layer, by network and in what a
step is lowered to.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolutions import Direct, Winograd, assert_within, drawn
from jax_modes import quick_compile

from cnnlab import models
from cnnlab.models import blocked, convolution, pooling, strided, winograd

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


def value_and_gradients(function, *arguments, weights):
    """The output, and the gradient of its weighted sum by each argument."""

    @jax.jit
    def parts(*arguments):
        out, back = jax.vjp(function, *arguments)
        return out, *back(jnp.asarray(weights[: out.size].reshape(out.shape)))

    return [np.asarray(part) for part in parts(*map(jnp.asarray, arguments))]


CASES = [
    # batch, height, width, channels, features, kernel, padding, pooling
    (8, 6, 6, 3, 4, (3, 3), 1, 2),
    (8, 8, 8, 8, 4, (3, 3), 1, 2),
    (11, 7, 9, 3, 5, (3, 3), 1, 2),  # odd sides, a last block that is not full
    (19, 7, 9, 9, 5, (3, 3), 1, 2),
    (3, 7, 6, 10, 2, (3, 3), 1, 3),  # less than a block; pooling that leaves rows out
    (1, 5, 5, 1, 1, (1, 1), 0, 1),
    (9, 6, 5, 2, 3, (2, 4), "SAME", 1),
    (9, 6, 7, 12, 3, (5, 2), "VALID", 2),
    (9, 6, 7, 12, 3, (5, 2), ((4, 1), (0, 3)), 2),  # unequal padding
    (9, 6, 7, 4, 3, (3, 3), 3, 1),  # more padding than the kernel can use
    (9, 6, 7, 3, 3, (3, 3), ((-1, 0), (1, -1)), 2),  # padding that cuts
    (9, 6, 7, 9, 3, (3, 3), ((-1, 0), (1, -1)), 2),
    (0, 6, 7, 3, 3, (3, 3), 1, 2),  # no images
    (2, 3, 3, 3, 3, (5, 5), "VALID", 1),  # no output
    (2, 3, 3, 3, 3, (2, 2), "VALID", 4),  # none after pooling
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_blocked_equals_native(case, dtype):
    """Bound: both sum the same products in another order; 4 eps of the sum of their magnitudes,
    which is the same function of magnitudes (no pooling: the winners are those of the signed
    values)."""
    batch, height, width, channels, features, kernel, padding, pool = case
    with jax.enable_x64(dtype == "float64"), quick_compile(dtype == "float64"):
        x = drawn((batch, height, width, channels), dtype)
        weights = drawn((50_000,))
        w = drawn((*kernel, channels, features), dtype, seed=1)
        found, wanted, size = (
            value_and_gradients(
                lambda x, w, formulation=formulation, side=side: nn.Conv(
                    features,
                    kernel,
                    padding=padding,
                    use_bias=False,
                    conv_general_dilated=convolution.Convolution(formulation, side),
                ).apply({"params": {"kernel": w}}, x),
                *arguments,
                weights=weights,
            )
            for formulation, side, arguments, weights in (
                ("blocked", pool, (x, w), weights),
                ("native", pool, (x, w), weights),
                ("native", 1, (np.abs(x), np.abs(w)), np.full_like(weights, np.abs(weights).max())),
            )
        )
    for name, ours, theirs, scale in zip(
        ("value", "by x", "by kernel"), found, wanted, size, strict=True
    ):
        assert ours.dtype == dtype and ours.shape == theirs.shape
        atol = 4 * EPS[dtype] * float(np.max(scale, initial=0))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, err_msg=name)


ALGORITHMS = {
    "columns": {"_direct", "_direct_products"},
    "few channels": {"_two_columns", "_direct_products"},
    "direct": {"_direct", "_direct_products"},
    "Winograd": {"convolve", "_direct_products"},
    "Winograd, gradient too": {"convolve", "kernel_products"},
    "pointwise": {"pointwise"},
    "strided": {"strided"},
    "lax": set(),
}
REACHED = [
    # algorithm, batch, side, channels, features, kernel, strides, padding, pooling
    ("columns", 9, 6, 16, 16, 3, (1, 1), 1, 1),
    ("few channels", 5, 8, 3, 16, 5, (1, 1), 2, 2),
    ("few channels", 3, 7, 1, 32, 3, (1, 1), 1, 1),
    ("few channels", 3, 6, 3, 8, 2, (1, 1), ((1, 0), (-1, 2)), 1),
    ("direct", 3, 6, 17, 8, 3, (1, 1), 1, 1),
    ("Winograd", 2, 6, 32, 32, 3, (1, 1), 1, 1),
    ("Winograd", 2, 6, 24, 64, 3, (1, 1), 1, 1),
    ("direct", 2, 6, 32, 16, 3, (1, 1), 1, 1),
    ("direct", 2, 6, 64, 64, 5, (1, 1), "SAME", 2),
    ("direct", 2, 5, 23, 64, 3, (1, 1), 1, 1),
    ("Winograd", 9, 5, 32, 64, 3, (1, 1), ((2, 0), (0, 3)), 1),
    ("Winograd", 3, 7, 64, 32, 3, (1, 1), "VALID", 1),
    ("Winograd", 11, 7, 32, 64, 3, (1, 1), 1, 2),
    ("Winograd, gradient too", 3, 6, 64, 64, 3, (1, 1), 1, 1),
    ("Winograd, gradient too", 9, 5, 64, 64, 3, (1, 1), ((2, 0), (-1, 3)), 2),
    ("Winograd, gradient too", 2, 6, 128, 128, 3, (1, 1), 1, 1),
    ("Winograd, gradient too", 9, 1, 64, 72, 3, (1, 1), 1, 1),
    ("Winograd, gradient too", 3, 32, 64, 64, 3, (1, 1), 1, 1),  # blocks of 2 images
    ("pointwise", 3, 7, 16, 8, 1, (2, 2), 0, 1),
    ("pointwise", 3, 6, 5, 64, 1, (1, 1), "SAME", 2),
    ("strided", 9, 8, 16, 32, 3, (2, 2), 1, 1),
    ("strided", 3, 7, 64, 64, 3, (2, 1), "SAME", 2),
    ("strided", 2, 9, 16, 4, 5, (3, 2), ((2, 1), (-1, 2)), 1),
    ("strided", 2, 8, 16, 4, 2, (3, 3), 0, 1),  # pixels that no place sees
    ("lax", 3, 7, 15, 32, 3, (2, 2), 1, 1),
]
QUICK = [REACHED[i] for i in (0, 1, 4, 9, 13, 19, 20)]


@pytest.fixture
def traced(monkeypatch):
    """Names of the algorithms that a trace comes by."""
    names = set()

    def listen(module, name, heard=None):
        function = getattr(module, name)

        def listening(*args, **kwargs):
            names.add(heard or name)
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, listening)

    for name in ("_direct", "_direct_products", "_two_columns", "pointwise"):
        listen(blocked, name)
    listen(strided._Geometry, "seen", "strided")
    for name in ("convolve", "kernel_products"):
        listen(winograd, name)
    return names


def direct_or_winograd(algorithm, strides, pads, x, kernel, dy, dtype):
    """Value and gradients by definition, and the bounds of an algorithm."""
    direct = Direct(pads, strides)
    wanted = (
        direct.value(x, kernel),
        direct.by_images(dy, kernel, x.shape),
        direct.by_kernel(x, dy, kernel.shape),
    )
    if not algorithm.startswith("Winograd"):
        return wanted, direct.bounds(x, kernel, dy, dtype)
    return wanted, Winograd(pads).bounds(x, kernel, dy, dtype, algorithm.endswith("too"))


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(
            case,
            dtype,
            id=f"{case}-{dtype}",
            marks=() if case in QUICK and dtype == "float32" else pytest.mark.slow,
        )
        for case in REACHED
        for dtype in ("float32", "float64")
    ],
)
def test_every_algorithm_is_reached_and_within_its_bound(case, dtype, traced):
    """Value and both gradients against the definition in float64, element by element.

    Bounds: a sum of n products in any order is off by at most n eps / 2 of the sum of their
    magnitudes; Winograd's filtering by C + 10 of |A^T| ((|G||g||G^T|) * (|B^T||d||B|)) |A|, its
    gradient by the kernel by n + 8 of |G^T| ((|B^T||d||B|) * (|A||dy||A^T|)) |G| over n tiles
    (support/convolutions.py). A maximum is off by no more than the pixels of its window.
    """
    algorithm, batch, side, channels, features, k, strides, padding, pool = case
    x, w = drawn((batch, side, side, channels), dtype), drawn((k, k, channels, features), dtype, 1)
    pads = ((padding,) * 2,) * 2 if isinstance(padding, int) else padding
    if isinstance(padding, str):
        pads = jax.lax.padtype_to_pads((side, side), (k, k), strides, padding)
    double = [x.astype(np.float64), w.astype(np.float64)]
    z = Direct(pads, strides).value(*double)
    windows = np.zeros(z.shape)  # 1 at the winners
    heights, widths = z.shape[1] // pool, z.shape[2] // pool
    cut = z[:, : heights * pool, : widths * pool]
    cut = cut.reshape(batch, heights, pool, widths, pool, features)
    most = cut.max((2, 4), keepdims=True)
    windows[:, : heights * pool, : widths * pool] = (cut == most).reshape(
        batch, heights * pool, widths * pool, features
    )
    weights = drawn((batch, heights, widths, features), dtype, 2)
    spread = np.zeros(z.shape)
    spread[:, : heights * pool, : widths * pool] = weights.repeat(pool, 1).repeat(pool, 2)
    wanted, bounds = direct_or_winograd(algorithm, strides, pads, *double, spread * windows, dtype)
    value_bound = bounds[0][:, : heights * pool, : widths * pool].reshape(cut.shape).max((2, 4))

    def convolve(x, w):
        return convolution.Convolution("blocked", pool)(
            x, w, strides, padding if isinstance(padding, str) else pads,
            dimension_numbers=convolution.NHWC,
        )  # fmt: skip

    with jax.enable_x64(dtype == "float64"), quick_compile(True):
        found = value_and_gradients(convolve, x, w, weights=weights.ravel())
    assert_within(found[0], most[:, :, 0, :, 0], value_bound, dtype, "value")
    assert_within(found[1], wanted[1], bounds[1], dtype, "by x")
    assert_within(found[2], wanted[2], bounds[2], dtype, "by kernel")
    # The gradient by the kernel is a direct convolution in several of them
    assert traced - ALGORITHMS[algorithm] <= {"_direct"} and traced >= ALGORITHMS[algorithm]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=str(case), marks=() if case in QUICK else pytest.mark.slow)
        for case in REACHED
        if case[-1] == 1
    ],
)
def test_bfloat16_is_within_its_bound(case):
    """Bounds as in `test_every_algorithm_is_reached_and_within_its_bound`, but sums are in single
    precision: what is multiplied has been rounded to bfloat16.
    """
    algorithm, batch, side, channels, features, k, strides, padding, _ = case
    x, w = drawn((batch, side, side, channels)), drawn((k, k, channels, features), seed=1)
    x, w = x.astype("bfloat16"), w.astype("bfloat16")
    pads = ((padding,) * 2,) * 2 if isinstance(padding, int) else padding
    if isinstance(padding, str):
        pads = jax.lax.padtype_to_pads((side, side), (k, k), strides, padding)
    double = [x.astype(np.float64), w.astype(np.float64)]
    dy = drawn(Direct(pads, strides).value(*double).shape, "float32", 2)
    by_kernel = "Winograd" if algorithm == "Winograd, gradient too" else algorithm
    wanted, bounds = direct_or_winograd(by_kernel, strides, pads, *double, dy, "bfloat16")

    def convolve(x, w):
        return convolution.Convolution("blocked")(
            x, w, strides, pads, dimension_numbers=convolution.NHWC
        )

    with quick_compile(True):
        found = value_and_gradients(convolve, x, w, weights=dy.ravel())
    types = ("float32", "bfloat16", "bfloat16")
    for number, name in enumerate(("value", "by x", "by kernel")):
        assert_within(found[number], wanted[number], bounds[number], types[number], name)


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("shape", [(9, 8, 8, 64), (3, 6, 6, 16), (3, 7, 7, 3)])
def test_bfloat16_is_exact_where_its_numbers_are(shape, pool):
    """Of small whole numbers every product and sum is one: equal bits, whoever wins a window."""
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, shape).astype(np.float32)
    w = rng.integers(-2, 3, (3, 3, shape[-1], 64)).astype(np.float32)
    cotangents = rng.integers(-2, 3, 50_000).astype(np.float32)

    def results(formulation, dtype):
        def convolve(x, w):
            return convolution.Convolution(formulation, pool)(
                x, w, (1, 1), "SAME", dimension_numbers=convolution.NHWC
            )

        return value_and_gradients(convolve, x.astype(dtype), w.astype(dtype), weights=cotangents)

    found, wanted = results("blocked", "bfloat16"), results("native", "float32")
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours, np.asarray(theirs).astype(ours.dtype))


def test_float16_does_without_winograd(traced):
    """Its sums and differences could leave float16's range."""
    shapes = [jax.ShapeDtypeStruct(shape, "float16") for shape in ((9, 8, 8, 64), (3, 3, 64, 64))]
    for pool in (1, 2):

        def total(x, w, pool=pool):
            y = convolution.Convolution("blocked", pool)(
                x, w, (1, 1), "SAME", dimension_numbers=convolution.NHWC
            )
            return y.sum()

        gradients = jax.eval_shape(jax.grad(total, (0, 1)), *shapes)
        assert [gradient.dtype for gradient in gradients] == ["float16", "float16"]
    assert traced == {"_direct", "_direct_products"}


@pytest.mark.parametrize(
    ("shape", "kernel", "strides", "padding"),
    [
        pytest.param((0, 5, 5, 64), (3, 3, 64, 64), (1, 1), "SAME", marks=pytest.mark.slow),
        ((0, 5, 5, 16), (3, 3, 16, 4), (2, 2), "SAME"),
        ((0, 5, 5, 4), (1, 1, 4, 4), (2, 2), "SAME"),
        ((2, 2, 5, 16), (3, 3, 16, 4), (2, 2), "VALID"),  # no output
        ((2, 3, 3, 4), (3, 3, 4, 4), (1, 1), "VALID"),  # none after pooling
        pytest.param((2, 2, 5, 64), (3, 3, 64, 64), (1, 1), "VALID", marks=pytest.mark.slow),
        ((2, 5, 5, 0), (3, 3, 0, 4), (1, 1), "SAME"),
        ((2, 5, 5, 64), (3, 3, 64, 0), (1, 1), "SAME"),
        ((2, 5, 5, 16), (3, 3, 16, 0), (2, 2), "SAME"),
        pytest.param(
            (2, 0, 4, 64), (3, 3, 64, 64), (1, 1), ((2, 2), (1, 1)), marks=pytest.mark.slow
        ),
    ],
)
def test_nothing_in_or_out_is_lax_s_own(shape, kernel, strides, padding):
    """No images, pixels, channels, features or outputs: value and gradients of lax's shapes, all
    zeros.
    """

    def parts(formulation, pool):
        def convolve(x, w):
            return convolution.Convolution(formulation, pool)(
                x, w, strides, padding, dimension_numbers=convolution.NHWC
            )

        y, back = jax.vjp(convolve, jnp.zeros(shape), jnp.zeros(kernel))
        return y, *back(jnp.ones_like(y))

    parts = jax.jit(parts, static_argnums=(0, 1))
    for pool in (1, 2):
        for ours, theirs in zip(parts("blocked", pool), parts("native", pool), strict=True):
            assert ours.shape == theirs.shape
            np.testing.assert_array_equal(ours, np.zeros(theirs.shape))


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_integers_are_lax_s_and_mixed_types_its_errors(side, strides):
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 9, (2, 4, 4, 64), dtype=np.int32)
    kernel = rng.integers(-9, 9, (side, side, 64, 64), dtype=np.int32)

    def convolve(x, kernel, formulation="blocked"):
        return convolution.Convolution(formulation)(
            x, kernel, strides, "SAME", dimension_numbers=convolution.NHWC
        )

    found, wanted = convolve(x, kernel), convolve(x, kernel, "native")
    assert found.dtype == wanted.dtype == np.int32
    np.testing.assert_array_equal(found, wanted)
    with jax.numpy_dtype_promotion("standard"), pytest.raises(TypeError, match="same dtypes"):
        convolve(jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.float32))


def test_half_precision_gradients_are_summed_in_single():
    """Of 64 blocks: an error of a rounding or two, as lax's, where a bfloat16 sum would have lost
    eight of its bits.
    """
    x, kernel = (
        jnp.asarray(np.abs(drawn(shape)), jnp.bfloat16) for shape in ((512, 4, 4, 9), (3, 3, 9, 4))
    )

    def by_kernel(formulation, x, kernel):
        convolve = convolution.Convolution(formulation)
        return jax.grad(
            lambda w: (
                convolve(x, w, (1, 1), "SAME", dimension_numbers=convolution.NHWC)
                .astype(jnp.float32)
                .sum()
            )
        )(kernel)

    wanted = np.asarray(by_kernel("native", x.astype(jnp.float32), kernel.astype(jnp.float32)))
    for formulation in pooling.FORMULATIONS:
        found = np.asarray(by_kernel(formulation, x, kernel), np.float32)
        np.testing.assert_allclose(found, wanted, rtol=2.0**-7, err_msg=formulation)


@pytest.mark.parametrize(
    "options",
    [
        {"strides": 2},
        {"kernel_dilation": 2},
        {"input_dilation": 2},
        {"feature_group_count": 2},
        {"precision": "highest"},
    ],
    ids=str,
)
def test_whatever_blocked_does_not_cover_is_lax_itself(options):
    x = drawn((9, 8, 8, 4), "float32")

    def program(formulation, pool=1):
        convolve = convolution.Convolution(formulation, pool) if formulation else None
        layer = nn.Conv(6, (3, 3), padding=1, conv_general_dilated=convolve, **options)
        variables = nn.Conv(6, (3, 3), padding=1, **options).init(jax.random.key(0), x)
        return str(jax.make_jaxpr(lambda x: layer.apply(variables, x))(x)), jax.jit(layer.apply)(
            variables, x
        )

    blocked, found = program("blocked")
    flax, wanted = program(None)
    assert blocked == flax
    np.testing.assert_array_equal(found, wanted)
    for formulation in pooling.FORMULATIONS:  # the bias after pooling: equal bits
        np.testing.assert_array_equal(
            program(formulation, 2)[1], nn.max_pool(wanted, (2, 2), (2, 2))
        )


def test_what_blocked_does_not_cover_of_half_precision_is_lax_in_single():
    """The first convolution of a residual network for large images: three channels, a stride."""
    x = jax.random.normal(jax.random.key(0), (2, 12, 12, 3)).astype(jnp.bfloat16)
    kernel = jax.random.normal(jax.random.key(1), (7, 7, 3, 8)).astype(jnp.bfloat16)

    def convolved(formulation, x, kernel):
        convolve = convolution.Convolution(formulation)
        return convolve(x, kernel, (2, 2), ((3, 3), (3, 3)), dimension_numbers=blocked.NHWC)

    got = convolved("blocked", x, kernel)
    assert got.dtype == jnp.float32
    single = x.astype(jnp.float32), kernel.astype(jnp.float32)
    np.testing.assert_array_equal(got, convolved("native", *single))


def test_one_dimension_and_many_batch_dimensions():
    """nn.Conv flattens batch axes before it convolves; a line of pixels is not covered and falls
    back.
    """
    for shape, kernel in (((2, 3, 6, 6, 3), (3, 3)), ((5, 9, 3), (3,))):
        x = drawn(shape, "float32")
        variables = nn.Conv(4, kernel).init(jax.random.key(0), x)
        found = nn.Conv(4, kernel, conv_general_dilated=convolution.Convolution("blocked")).apply(
            variables, x
        )
        np.testing.assert_allclose(
            found, nn.Conv(4, kernel).apply(variables, x), atol=64 * EPS["float32"]
        )


@pytest.mark.parametrize("side", [1, 2, 3, 17])
def test_ties_go_to_the_first_pixel_in_every_formulation(side):
    """Small integers tie in nearly every window; -inf and equal zeros of both signs are
    among them.
    """
    x = np.random.default_rng(0).integers(0, 3, (3, 37, 35, 2)).astype(np.float32)
    x[0, :4, :4] = -np.inf
    x[1, :4, :4, 0] = -0.0
    native, *others = (
        jax.vjp(lambda x, f=f: pooling.max_pooling(x, side, f), jnp.asarray(x))
        for f in pooling.FORMULATIONS
    )
    cotangent = drawn(native[0].shape, "float32")
    for value, pull in others:
        np.testing.assert_array_equal(value, native[0])
        np.testing.assert_array_equal(pull(cotangent)[0], native[1](cotangent)[0])


def test_hand_values_of_pooling():
    x = jnp.asarray([[1.0, 5.0, 2.0], [5.0, 0.0, 9.0], [7.0, 7.0, 7.0]]).reshape(1, 3, 3, 1)
    value, gradient = jax.value_and_grad(lambda x: pooling.max_pooling(x, 2, "blocked").sum())(x)
    assert float(value) == 5
    # The first of the two fives
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(pooling.average_pooling(x, 2), [[[[2.75]]]])
    assert np.isnan(pooling.max_pooling(x.at[0, 1, 1].set(jnp.nan), 2, "blocked")).all()


def test_average_pooling_is_flax_s():
    x = drawn((3, 7, 9, 2), "float32")
    with jax.numpy_dtype_promotion("standard"):  # flax divides by an integer
        wanted = nn.avg_pool(jnp.asarray(x), (3, 3), (3, 3))
    np.testing.assert_allclose(
        pooling.average_pooling(jnp.asarray(x), 3), wanted, rtol=0, atol=8 * EPS["float32"]
    )


def test_unknown_formulation():
    for function in (
        lambda: convolution.Convolution("fast"),
        lambda: pooling.max_pooling(jnp.zeros((1, 2, 2, 1)), 2, "fast"),
    ):
        with pytest.raises(ValueError, match=r"native.*blocked.*fast"):
            function()


NETWORKS = [
    {},
    {"batch_norm": True},
    {"activation": "tanh", "widths": (4, 8, 16)},
    {"activation": "silu"},
    {"pool": "average"},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_a_network_is_the_same_in_both_formulations(options):
    """The seed network and its relatives, value and every gradient: to 1e-5 in float32, to 1e-12 in
    float64.

    Silu is not monotone, so after it near-ties may have another winner in float32: float64 only.
    """
    for dtype, tolerance in (("float32", 1e-5), ("float64", 1e-12)):
        if (dtype, options.get("activation")) == ("float32", "silu"):
            continue
        double = dtype == "float64"
        with jax.enable_x64(double), jax.numpy_dtype_promotion("standard"), quick_compile(double):
            native, blocked = (
                models.CNN(
                    **({"widths": (8, 16), "hidden": (16,)} | options),
                    conv=convolution.Convolution(f),
                )
                for f in ("native", "blocked")
            )
            both_gradients(native, blocked, dtype, tolerance)


def both_gradients(native, blocked, dtype, tolerance):
    x, weights = (jnp.asarray(drawn(shape, dtype)) for shape in ((20, 13, 13, 3), (20, 10)))
    variables = jax.tree.map(
        lambda leaf: leaf.astype(dtype), jax.jit(native.init)(jax.random.key(0), x)
    )
    theirs = jax.eval_shape(blocked.init, jax.random.key(0), x)
    # Checkpoints are interchangeable
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, theirs)

    def outputs(model):
        def objective(params, x):
            logits = model.apply(
                variables | {"params": params}, x, train=True, mutable=["batch_stats"]
            )[0]
            return jnp.sum(weights * logits)

        return jax.tree.leaves(
            jax.jit(jax.value_and_grad(objective, (0, 1)))(variables["params"], x)
        )

    for ours, theirs in zip(outputs(blocked), outputs(native), strict=True):
        np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=tolerance * max(1, np.abs(theirs).max())
        )


def test_pooling_before_bias_and_activation_changes_no_bit():
    """What CNN does for increasing activations, against the order that is usually written."""
    x = jnp.asarray(drawn((4, 8, 8, 3), "float32"))
    for activation in models.INCREASING:
        model = models.CNN(4, widths=(5,), hidden=(), activation=activation)
        variables = model.init(jax.random.key(0), x)
        variables["params"]["Conv_0"]["bias"] = jnp.asarray(drawn((5,), "float32"))
        z = nn.Conv(5, (3, 3), padding=1).apply({"params": variables["params"]["Conv_0"]}, x)
        features = nn.max_pool(models.ACTIVATIONS[activation](z), (2, 2), (2, 2)).reshape(4, -1)
        dense = variables["params"]["MLP_0"]["Dense_0"]
        wanted = features @ dense["kernel"] + dense["bias"].reshape(1, -1)
        np.testing.assert_array_equal(model.apply(variables, x), wanted)


TRANSFORMED = [
    # channels, features, kernel, strides, pooling
    (2, 3, 3, (1, 1), 2),
    (16, 16, 3, (1, 1), 1),
    (32, 64, 3, (1, 1), 2),
    (64, 64, 3, (1, 1), 1),
    (16, 8, 3, (2, 2), 1),
    (16, 8, 1, (2, 2), 1),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", TRANSFORMED, ids=str)
def test_reverse_over_reverse_vmap_and_remat(case):
    """Hessian-vector products by two reverse passes, and a seed axis of images and kernels, as on
    one array after another; a pass that computes again.
    """
    channels, features, side, strides, pool = case
    kernels = drawn((2, side, side, channels, features), "float32") / (side * channels**0.5)
    images, direction = drawn((2, 9, 4, 4, channels), "float32", 2), drawn(kernels[0].shape)
    kernels, images = jnp.asarray(kernels), jnp.asarray(images)
    direction = jnp.asarray(direction, jnp.float32)

    def loss(w, x, formulation):
        z = convolution.Convolution(formulation, pool)(
            x, w, strides, "SAME", dimension_numbers=convolution.NHWC
        )
        return jnp.sum(jnp.tanh(z))

    def product(w, x, formulation):
        return jax.grad(lambda w: jnp.vdot(jax.grad(loss)(w, x, formulation), direction))(w)

    def again(w, x, formulation):
        return jax.grad(jax.checkpoint(lambda w: loss(w, x, formulation)))(w)

    gradient = jax.grad(loss)
    for function, wanted in ((gradient, gradient), (product, product), (again, gradient)):
        both = jax.jit(jax.vmap(lambda w, x, f=function: f(w, x, "blocked")))(kernels, images)
        for i in range(2):
            theirs = jax.jit(wanted, static_argnums=2)(kernels[i], images[i], "native")
            np.testing.assert_allclose(both[i], theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


def test_there_is_no_forward_mode():
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))

    def convolve(x):
        return convolution.Convolution("blocked")(
            x, kernel, (1, 1), "SAME", dimension_numbers=convolution.NHWC
        )

    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(convolve, (x,), (x,))


@pytest.mark.parametrize(
    ("side", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 3, 0), (2, 1, 0)]
)
def test_deterministic_pooling_is_the_native_one(side, stride, padding):
    """Value and gradient to the bit; of equal pixels, as after a ReLU, the first gets it."""
    x = np.maximum(drawn((3, 7, 8, 2)), 0)
    results = [
        value_and_gradients(
            lambda x, f=formulation: pooling.max_pooling(x, side, f, stride, padding),
            x,
            weights=drawn((500,)),
        )
        for formulation in ("native", "deterministic")
    ]
    assert np.mean(x == 0) > 0.3
    for native, deterministic in zip(*results, strict=True):
        if stride < side:  # a pixel that wins several windows sums their cotangents
            np.testing.assert_allclose(deterministic, native, rtol=0, atol=8 * EPS["float32"])
        else:
            np.testing.assert_array_equal(deterministic, native)


def test_what_is_kept_passes_gradients_on():
    x = jnp.asarray(drawn((11, 3, 3, 2)), jnp.bfloat16)
    keep = convolution.Convolution("blocked").kept
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(keep(x) ** 2))(x)
    np.testing.assert_array_equal(value, jnp.sum(x**2))
    np.testing.assert_array_equal(gradient, 2 * x)


@pytest.mark.slow
def test_a_residual_network_s_gradients_in_bfloat16():
    """As far from those of float32 as lax's are, or nearly: Winograd's filtering rounds sums of
    four numbers where lax rounds the numbers. Of 32 images batch norm makes little noise.
    """
    x = drawn((32, 16, 16, 3), "float32")

    def gradients(formulation, dtype):
        model = models.ResNet(
            blocks=(1, 1), widths=(32, 64), stem_width=32, dtype=dtype,
            conv=convolution.Convolution(formulation),
        )  # fmt: skip
        variables = jax.jit(model.init)(jax.random.key(0), x)
        rest = {name: values for name, values in variables.items() if name != "params"}

        def loss(params):
            logits, _ = model.apply(
                {"params": params, **rest}, x, train=True, mutable=["batch_stats"]
            )
            return jnp.mean(logits * drawn(logits.shape, "float32"))

        return jax.jit(jax.grad(loss))(variables["params"])

    exact = jax.tree.leaves(gradients("native", None))
    off = [
        [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found, exact, strict=True)]
        for found in (
            jax.tree.leaves(gradients(formulation, jnp.bfloat16))
            for formulation in ("blocked", "native")
        )
    ]
    assert max(off[0]) < 2 * max(off[1]) < 0.5, off
