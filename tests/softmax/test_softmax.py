"""softmax and its relatives against formulas in long double: values, gradients, Hessians and the
edges.
"""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnlab import softmax as sm

EPS = 2.0**-23  # one ulp of float32, relative
TINY = 2e-38  # float32 underflows below
INF = np.inf
NORMALISED = [sm.softmax, sm.log_softmax]
ALL = [*NORMALISED, sm.sigmoid, sm.log_sigmoid]
EXTREMES = [
    [1e4, -1e4, 0.0],
    [-1e4, -1e4, 1.0],
    [1.0, -INF, 2.0],
    [1e4, -INF, -1e4],
    [0.0, -INF, -INF],
    [7.0, 7.0, 7.0],
]


def probabilities(logits, temperature=1.0):
    """Long double; no class may be +inf."""
    z = np.asarray(logits, np.longdouble) / temperature
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def tolerance(logits):
    """The exponential turns the rounding of its argument (half an ulp of the spread) into a
    relative error of the result; the sum rounds once per class; exp, log and the division cost up
    to 2 ulp each."""
    finite = np.where(np.isinf(logits), np.nan, np.asarray(logits, np.float64))
    return (np.nanmax(finite) - np.nanmin(finite) + np.shape(logits)[-1] + 6) * EPS


def test_hand_value():
    # 0.65900114 and 0.24243297 as in the request; ± half a unit of their last digit, and 2 ulp.
    p = sm.softmax(jnp.array([2.0, 1.0, 0.1]))
    np.testing.assert_allclose(p, [0.65900114, 0.24243297, 0.09856589], rtol=2 * EPS, atol=5e-9)
    np.testing.assert_allclose(
        sm.log_softmax(jnp.array([2.0, 1.0, 0.1])), np.log(probabilities([2, 1, 0.1])), rtol=4 * EPS
    )


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_random_values(scale):
    z = (scale * np.random.default_rng(0).standard_normal((4, 5, 10))).astype(np.float32)
    p = probabilities(z)
    rtol = tolerance(z)
    got = np.asarray(sm.softmax(z), np.float64)
    np.testing.assert_allclose(got, p, rtol=rtol, atol=TINY)
    np.testing.assert_allclose(sm.log_softmax(z), np.log(p), rtol=rtol, atol=16 * EPS)
    np.testing.assert_allclose(got.sum(-1), 1, atol=10 * EPS)


@jax.jit
def derivatives(z):
    return [
        d(f)(z) for d, f in itertools.product((jax.jacrev, jax.jacfwd, jax.hessian), NORMALISED)
    ]


@pytest.mark.parametrize("logits", EXTREMES)
def test_extremes(logits):
    z = jnp.array(logits)
    wanted = probabilities(logits)
    p, logp = sm.softmax(z), sm.log_softmax(z)
    with np.errstate(divide="ignore"):  # log 0 = -inf is the wanted value
        exact = np.where(
            np.isinf(logits),
            -INF,
            np.float64(logits) - np.max(logits) - np.log(np.sum(wanted == wanted.max())),
        )
        wanted_log = np.where(wanted > 1e-30, np.log(wanted), exact)
    np.testing.assert_allclose(p, wanted, rtol=8 * EPS, atol=TINY)
    np.testing.assert_allclose(logp, wanted_log, rtol=8 * EPS, atol=EPS)
    masked = np.isinf(logits)
    assert np.all(np.asarray(p)[masked] == 0)

    q = wanted.astype(np.float64)
    jacobian, log_jacobian, forward, log_forward, hessian, log_second = (
        np.asarray(d) for d in derivatives(z)
    )
    np.testing.assert_allclose(jacobian, np.diag(q) - np.outer(q, q), atol=4 * EPS)
    np.testing.assert_allclose(forward, jacobian, atol=EPS)
    np.testing.assert_allclose(log_jacobian[~masked], (np.eye(3) - q)[~masked], atol=4 * EPS)
    np.testing.assert_allclose(log_forward, log_jacobian, atol=EPS)
    for derivative in (jacobian, log_jacobian):
        assert np.all(derivative[:, masked] == 0)

    eye = np.eye(3)
    covariance = np.diag(q) - np.outer(q, q)
    second = q[:, None, None] * ((eye - q)[:, :, None] * (eye - q)[:, None, :] - covariance)
    np.testing.assert_allclose(hessian, second, atol=8 * EPS)
    assert np.all(np.isfinite(log_second)) and np.all(log_second[:, masked] == 0)
    np.testing.assert_allclose(
        log_second[~masked], np.broadcast_to(-covariance, (3, 3, 3))[~masked], atol=8 * EPS
    )


@pytest.mark.parametrize("function", NORMALISED)
def test_no_possible_class_is_nan(function):
    z = jnp.array([[-INF, -INF], [0.0, 0.0]])
    assert np.array_equal(np.isnan(function(z)), [[True, True], [False, False]])
    assert np.all(np.isnan(function(jnp.zeros(3), where=jnp.zeros(3, bool))))


@pytest.mark.parametrize(
    "temperature", [0, 0.0, -1.0, -3, float("nan"), np.float32(0), np.int32(-1)]
)
@pytest.mark.parametrize("function", ALL)
def test_temperature_must_be_positive(function, temperature):
    with pytest.raises(ValueError, match="temperature must be positive, got"):
        function(jnp.zeros(3), temperature=temperature)


@pytest.mark.parametrize("temperature", [0.25, 1, 3.0, jnp.float32(3), np.float64(0.5)])
def test_temperature_divides(temperature):
    z = [2.0, -INF, 0.1, 1.5]
    np.testing.assert_allclose(
        sm.softmax(jnp.array(z), temperature=temperature),
        probabilities(z, float(temperature)),
        rtol=20 * EPS,
    )
    wanted = 1 / (1 + np.exp(-np.float64(z) / float(temperature)))
    np.testing.assert_allclose(
        sm.sigmoid(jnp.array(z), temperature=temperature), wanted, rtol=20 * EPS
    )


@pytest.mark.parametrize("logits", [[2.0, 1.0, 0.1], [2.0, -INF, 0.1]])
def test_gradient_in_the_temperature(logits):
    t = 1.7
    p = probabilities(logits, 1.7).astype(np.float64)
    z = np.where(np.isinf(logits), 0, logits)  # 0 * inf = 0: an impossible class adds nothing
    log_slope = -(z - p @ z) / t**2
    np.testing.assert_allclose(
        jax.jit(jax.jacrev(lambda t: sm.softmax(jnp.array(logits), temperature=t)))(t),
        p * log_slope,
        atol=8 * EPS,
    )
    possible = np.isfinite(logits)
    slope = jax.jit(jax.jacrev(lambda t: sm.log_softmax(jnp.array(logits), temperature=t)))(t)
    np.testing.assert_allclose(slope[possible], log_slope[possible], atol=8 * EPS)
    second = jax.grad(jax.grad(lambda t: sm.softmax(jnp.array(logits), temperature=t)[0]))
    assert np.isfinite(jax.jit(second)(t))


@pytest.mark.parametrize("function", NORMALISED)
def test_any_axis(function):
    z = np.random.default_rng(1).standard_normal((3, 4, 5)).astype(np.float32)
    for axis in (0, 1, 2, -2):
        moved = np.moveaxis(np.asarray(function(jnp.array(np.moveaxis(z, axis, -1)))), -1, axis)
        np.testing.assert_allclose(function(z, axis=axis), moved, rtol=2 * EPS, atol=EPS)


def test_where_leaves_the_classes_out():
    z = np.array([[3.0, np.nan, 1.0, 9.0], [0.0, 0.0, -INF, 2.0]], np.float32)
    mask = np.array([True, False, True, False])

    def total(z):
        return jnp.sum(sm.softmax(z, where=mask[None])[:, 0])

    p = sm.softmax(z, where=mask[None])
    np.testing.assert_allclose(p[:, [0, 2]], probabilities(z[:, [0, 2]]), rtol=8 * EPS)
    assert np.all(np.asarray(p)[:, ~mask] == 0)
    assert np.all(np.asarray(sm.log_softmax(z, where=mask[None]))[:, ~mask] == -INF)
    slope = jax.grad(lambda t: sm.softmax(z, temperature=t, where=mask[None])[1, 0])(2.0)
    # The only possible class stays certain; -inf / t inside the mask stays out of it
    assert slope == 0
    gradient = np.asarray(jax.grad(total)(z))
    assert (
        np.all(np.isfinite(gradient)) and np.all(gradient[:, ~mask] == 0) and gradient[0, 0] > 0.1
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32", "int8", "uint8", "float32"])
def test_accumulates_in_float32(dtype):
    # 1000 classes: sums in bfloat16 or float16 would be wrong in the second digit.
    z = jnp.asarray(np.random.default_rng(2).uniform(0, 8, 1000), dtype)
    exact = np.asarray(z, np.float64)
    for function, wanted in (
        (sm.softmax, probabilities(exact)),
        (sm.log_softmax, np.log(probabilities(exact))),
    ):
        got = function(z)
        assert got.dtype == jnp.float32
        # Errors of a sum grow like its root
        np.testing.assert_allclose(got, wanted, rtol=tolerance(exact) / 20)
    for function in (sm.sigmoid, sm.log_sigmoid):
        assert function(z).dtype == jnp.float32


@pytest.mark.parametrize("function", ALL)
def test_float64_stays(function):
    with jax.enable_x64():
        z = jnp.array([2.0, 1.0, 0.1])
        got = np.asarray(function(z))
    p = probabilities([2.0, 1.0, 0.1])
    s = 1 / (1 + np.exp(-np.array([2.0, 1.0, 0.1], np.longdouble)))
    wanted = {"softmax": p, "log_softmax": np.log(p), "sigmoid": s, "log_sigmoid": np.log(s)}[
        function.__name__
    ]
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, wanted.astype(np.float64), rtol=4 * 2.0**-52)


@pytest.mark.parametrize("function", NORMALISED)
def test_shift_changes_nothing(function):
    z = np.random.default_rng(3).integers(-50, 50, (20, 7)).astype(np.float32)
    for shift in (1024.0, -4096.0, 1e6):  # exact in float32, so the results agree to the bit
        np.testing.assert_array_equal(function(z), function(z + np.float32(shift)))


@pytest.mark.parametrize("function", NORMALISED)
def test_order_is_kept(function):
    z = np.random.default_rng(4).standard_normal((50, 12)).astype(np.float32)
    ascending = np.take_along_axis(np.asarray(function(z)), np.argsort(z), -1)
    assert np.all(np.diff(ascending) >= 0) and np.all(ascending[:, -1] > ascending[:, 0])


def test_sigmoid_is_a_softmax_of_two():
    z = np.concatenate([np.linspace(-80, 80, 41), [1e4, -1e4]]).astype(np.float32)
    pair = np.stack([z, np.zeros_like(z)], -1)
    s = 1 / (1 + np.exp(-z.astype(np.longdouble)))
    np.testing.assert_allclose(sm.sigmoid(z), s, rtol=8 * EPS, atol=TINY)
    np.testing.assert_allclose(sm.sigmoid(z), sm.softmax(pair)[:, 0], rtol=8 * EPS, atol=TINY)
    wanted = np.minimum(z, 0) - np.log1p(np.exp(-abs(z.astype(np.longdouble))))
    np.testing.assert_allclose(sm.log_sigmoid(z), wanted, rtol=8 * EPS, atol=TINY)
    # log_softmax subtracts near-equal numbers there: absolute accuracy only
    np.testing.assert_allclose(
        sm.log_sigmoid(z), sm.log_softmax(pair)[:, 0], rtol=8 * EPS, atol=2 * EPS
    )


@pytest.mark.parametrize(
    ("function", "first", "second"),
    [
        (sm.sigmoid, lambda s: s * (1 - s), lambda s: s * (1 - s) * (1 - 2 * s)),
        (sm.log_sigmoid, lambda s: 1 - s, lambda s: -s * (1 - s)),
    ],
)
def test_sigmoid_derivatives(function, first, second):
    z = jnp.array([0.0, 1.5, -3.0, 1e4, -1e4])
    s = (1 / (1 + np.exp(-np.asarray(z, np.longdouble)))).astype(np.float64)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(function)))(z), first(s), atol=4 * EPS)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.hessian(function)))(z), second(s), atol=4 * EPS)
    assert np.isfinite(jax.grad(function)(-INF))


def test_predict():
    cases = [
        ([2.0, 1.0, 0.1], 0),
        ([0.0, 3.0, 3.0], 1),
        ([5.0, 5.0, 5.0], 0),
        ([-INF, -1e4, -INF], 1),
    ]
    got = sm.predict(jnp.array([logits for logits, _ in cases]))
    assert got.dtype == jnp.int32
    assert got.tolist() == [wanted for _, wanted in cases]
    assert sm.predict(jnp.array([[1.0, 9.0], [2.0, 0.0]]), axis=0).tolist() == [1, 0]
    assert int(sm.predict(jnp.array([9.0, 1.0, 2.0]), where=jnp.array([False, True, True]))) == 2
    assert sm.predict(jnp.array([[1, 4], [3, 2]])).tolist() == [1, 0]


@pytest.mark.parametrize("function", ALL)
def test_jit_and_vmap(function):
    z = jnp.array(np.random.default_rng(5).standard_normal((4, 3)), jnp.float32)
    t = jnp.array([0.5, 1.0, 2.0, 4.0])
    one_by_one = np.stack(
        [function(row, temperature=float(u)) for row, u in zip(z, t, strict=True)]
    )

    def tempered(row, u):
        return function(row, temperature=u)

    np.testing.assert_allclose(jax.vmap(tempered)(z, t), one_by_one, rtol=4 * EPS, atol=EPS)
    np.testing.assert_allclose(
        jax.jit(jax.vmap(tempered))(z, t), one_by_one, rtol=4 * EPS, atol=EPS
    )


# The relatives: one family, p = exp_t(z - c) with c such that they sum to one (softmax at t = 1,
# sparsemax at t = 0).
RELATIVES = {
    "sparsemax": sm.sparsemax,
    "entmax15": sm.entmax15,
    "entmax": partial(sm.entmax, alpha=1.3),
    "entmax3": partial(sm.entmax, alpha=3.0),
    "tempered": partial(sm.tempered_softmax, t=1.6),
    "gumbel": partial(sm.gumbel_softmax, jax.random.key(0)),
}
relative = pytest.mark.parametrize("name", RELATIVES)
# These take long to compile
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def test_relatives_by_hand():
    found = jit(
        lambda: [
            sm.sparsemax([1.0, 0.5, -1.0]),  # 1 + 0.5 - 2 c = 1
            sm.sparsemax([0.25, 0.0, 0.0]),  # c = -0.25
            sm.sparsemax([3.0, 0.0]),
            sm.entmax15([0.0, 0.0, 0.0, 0.0]),
            # Roots 0.8 and 0.2, which is 0.6 below: sum of squares 0.64 + 0.04 < 1.
            sm.entmax15([1.4, 0.2, -9.0]),
            # p² = (2 z - c): roots of 1 - c and -c add up to 1 at c = 0.
            sm.entmax([0.5, 0.0, -1.0], 3.0),
            # 1 / (1 - z + c): 1 / c + 1 / (1 + c) = 1 at the golden ratio.
            sm.tempered_softmax([1.0, 0.0], 2.0),
            sm.tempered_softmax([2.0, 1.0, 0.1], 1.0),
        ]
    )()
    # A² + b² = 1, a - b = 0.6
    spread = (
        (0.6 + math.sqrt(2 - 0.36)) / 2,
        (-0.6 + math.sqrt(2 - 0.36)) / 2,
    )
    golden = (1 + math.sqrt(5)) / 2
    wanted = [
        [0.75, 0.25, 0],
        [0.5, 0.25, 0.25],
        [1, 0],
        [0.25] * 4,
        [spread[0] ** 2, spread[1] ** 2, 0],
        [1, 0, 0],
        [1 / golden, 1 / golden**2],
        probabilities([2.0, 1.0, 0.1]),
    ]
    for got, exact in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, np.float64(exact), rtol=8 * EPS, atol=4 * EPS)
        assert np.array_equal(np.asarray(got) == 0, np.asarray(exact) == 0)  # exact zeros


@relative
def test_relatives_of_a_batch(name):
    """Sum, order, shift, type, axis, temperature and mask, as softmax has them; a row does not see
    the others.
    """
    function = RELATIVES[name]
    rng = np.random.default_rng(0)
    z = rng.integers(-40, 40, (6, 7)).astype(np.float32) / 8
    z[1] = -INF
    z[2, 3] = -INF
    z[3] = [1e4, -1e4, 0, 1e4, -INF, 1, 2]
    good = np.arange(6) != 1
    mask = np.arange(7) < 5

    @jit
    def ways(z):
        def batch(z, **options):
            return function(z, **options)

        masked = batch(z, where=jnp.broadcast_to(mask, z.shape))
        cut = batch(jnp.where(mask[None], z, -INF))
        return (
            batch(z),
            batch(z + 1024),
            batch(z.T, axis=0).T,
            batch(z, temperature=4.0),
            batch(z / 4),
            masked,
            cut,
        )

    p, shifted, along, warm, divided, masked, cut = map(np.asarray, ways(z))
    assert p.dtype == np.float32 and np.all(np.isnan(p[1])) and np.all(np.isnan(masked[1]))
    assert np.all((p[good] >= 0) & (p[good] <= 1)) and np.all(p[np.isinf(z) & good[:, None]] == 0)
    # a square root at the border of the support magnifies the last digit of c
    np.testing.assert_allclose(p[good].sum(-1), 1, atol=(128 if name == "entmax3" else 16) * EPS)
    np.testing.assert_array_equal(masked, cut)
    assert np.all(masked[good][:, ~mask] == 0)
    # Other noise along another axis; the noise is not tempered with the logits.
    if name == "gumbel":
        return
    np.testing.assert_array_equal(shifted[[0, 4, 5]], p[[0, 4, 5]])
    np.testing.assert_allclose(along, p, atol=4 * EPS)
    np.testing.assert_allclose(warm, divided, atol=4 * EPS)
    ascending = np.take_along_axis(p[good], np.argsort(z[good]), -1)
    assert np.all(np.diff(ascending) >= 0)
    if name != "tempered":  # whose tails never end
        assert np.any(p[good][:, :3] == 0) and np.all(p[3, [1, 2, 4, 5, 6]] == 0)


@pytest.mark.parametrize("name", ["sparsemax", "entmax15", "entmax", "tempered"])
def test_a_row_is_the_same_alone_and_in_a_batch(name):
    z = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32) * np.array(
        [[0.1], [1], [5], [50]], np.float32
    )
    function = jit(RELATIVES[name])
    alone = function(np.repeat(z[:1], 4, 0))  # the same program, other rows beside it
    np.testing.assert_array_equal(function(z)[0], alone[0])
    np.testing.assert_array_equal(function(z[::-1])[3], alone[0])


@pytest.mark.parametrize(
    "name", ["sparsemax", "entmax15", "entmax", "entmax3", "tempered", "gumbel"]
)
def test_relatives_derivatives_are_finite_at_extremes(name):
    function = RELATIVES[name]
    jacobian, hessian = jit(
        jax.vmap(lambda z: (jax.jacrev(function)(z), jax.hessian(function)(z)))
    )(np.float32(EXTREMES))
    jacobian, hessian = np.asarray(jacobian), np.asarray(hessian)
    assert np.all(np.isfinite(jacobian)) and np.all(np.isfinite(hessian))
    np.testing.assert_allclose(jacobian.sum(1), 0, atol=8 * EPS)  # probabilities keep their sum
    np.testing.assert_allclose(jacobian, np.swapaxes(jacobian, 1, 2), atol=8 * EPS)
    impossible = np.isinf(EXTREMES)
    assert np.all(np.swapaxes(jacobian, 1, 2)[impossible] == 0)


def test_relatives_keep_float64():
    with jax.enable_x64():
        z = np.array([1.0, 0.25, -0.5])
        found = jit(lambda z: {name: function(z) for name, function in RELATIVES.items()})(z)
        for name, p in found.items():
            assert p.dtype == np.float64, name
            assert abs(float(np.sum(np.asarray(p))) - 1) < 8 * 2.0**-52, name
    half = jax.eval_shape(lambda z: [f(z) for f in RELATIVES.values()], jnp.zeros(3, jnp.bfloat16))
    assert {p.dtype for p in half} == {jnp.dtype("float32")}


def test_entmax_lies_between_softmax_and_sparsemax():
    """Sparser as alpha grows, from softmax at 1 to sparsemax at 2, also where alpha is traced."""
    z = np.array([1.2, 0.3, 0.0, -0.8], np.float32)
    alphas = np.array([1.0, 1.001, 1.25, 1.5, 1.75, 2.0], np.float32)
    p = np.asarray(jit(jax.vmap(sm.entmax, (None, 0)))(z, alphas))
    np.testing.assert_allclose(p[0], sm.softmax(z), rtol=8 * EPS)
    np.testing.assert_allclose(p[1], p[0], atol=1e-3)
    np.testing.assert_allclose(p[3], jit(sm.entmax15)(z), atol=4 * EPS)
    np.testing.assert_allclose(p[5], jit(sm.sparsemax)(z), atol=4 * EPS)
    assert np.all(np.diff(p[:, 0]) > 0) and np.all(np.diff(p[:, 3]) <= 0)
    np.testing.assert_array_equal(sm.entmax(z, 1), sm.softmax(z))


@pytest.mark.parametrize("alpha", [0.999, 0, -1.0, float("nan"), np.float32(0.5)])
def test_entmax_needs_alpha_of_at_least_one(alpha):
    with pytest.raises(ValueError, match="alpha must lie in"):
        sm.entmax([0.0, 1.0], alpha)


@relative
def test_relatives_need_a_positive_temperature(name):
    for temperature in (0, -1.0):
        with pytest.raises(ValueError, match="temperature must be positive, got"):
            RELATIVES[name](jnp.zeros(3), temperature=temperature)


def test_gumbel_samples_have_the_softmax_frequencies():
    z = jnp.array([1.0, 0.0, -1.0, -INF])
    draws = 10_000
    keys = jax.random.split(jax.random.key(1), draws)
    hard = np.asarray(
        jit(jax.vmap(lambda key: sm.gumbel_softmax(key, z, hard=True)))(keys), np.float64
    )
    assert np.all((np.abs(hard) < EPS) | (np.abs(hard - 1) < EPS))
    p = probabilities([1.0, 0.0, -1.0, -INF]).astype(np.float64)
    assert np.all(np.abs(hard.mean(0) - p) <= 5 * np.sqrt(p * (1 - p) / draws))


def test_hard_samples_are_one_hot_with_the_soft_gradient():
    z = jnp.array([1.0, 0.0, -1.0])
    key = jax.random.key(3)
    weights = np.array([1.0, 2.0, 4.0], np.float32)

    @jit
    def both(t):
        def sample(z, hard):
            return sm.gumbel_softmax(key, z, temperature=t, hard=hard)

        def slope(hard):
            return jax.grad(lambda z: jnp.sum(sample(z, hard) * weights))(z)

        return sample(z, False), sample(z, True), slope(False), slope(True)

    soft, hard, soft_slope, hard_slope = map(np.asarray, both(0.7))
    np.testing.assert_allclose(hard, np.eye(3)[np.argmax(soft)], atol=EPS)
    np.testing.assert_array_equal(hard_slope, soft_slope)
    assert np.any(soft_slope != 0)
    cold = np.asarray(both(1e-3)[0])
    np.testing.assert_allclose(cold, hard, atol=EPS)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.2, 1.9, 2.0, 2.5, 4.0, 7.0])
def test_many_equal_classes_share_exactly(alpha):
    """Their bases are near K^(1 - alpha), which 1 - a c would have lost in the rounding of 1."""
    for classes in (10, 1000):
        p = np.asarray(sm.entmax(np.zeros((2, classes), np.float32), alpha), np.float64)
        np.testing.assert_allclose(p, 1 / classes, rtol=1e-5)


@pytest.mark.parametrize("t", [11, -9.0, float("nan"), float("inf")])
def test_tempered_softmax_needs_a_bounded_t(t):
    with pytest.raises(ValueError, match=r"t must lie in \[-8, 10\]"):
        sm.tempered_softmax([0.0, 1.0], t)


def test_logarithms_of_tempered_probabilities_do_not_underflow():
    log_p = sm.log_tempered_softmax(jnp.array([1e4, 0.0, -jnp.inf]), 1.05)
    wanted = -20 * np.log1p(0.05 * 1e4)  # exp_t(-1e4), whose 20th power of 501 is beyond float32
    np.testing.assert_allclose(log_p[1], wanted, rtol=1e-6)
    assert (
        log_p[2] == -np.inf
        and np.isnan(sm.log_tempered_softmax(jnp.array([-jnp.inf] * 2), 1.2)).all()
    )
