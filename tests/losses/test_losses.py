"""The contract of a loss, held by every public one: types, labels, extremes, derivatives. (Values:
test_golden.)
"""

import inspect
import math
import re
from functools import cache, cached_property, partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnlab import docstrings, losses
from cnnlab.softmax import as_float

EPS = 2.0**-23  # one ulp of float32, relative
INF = np.inf
K = 5
# Thirty losses with their Hessians: compiled without LLVM's optimisations in two thirds of the
# time.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

GIVEN = {  # what has no default, made to fit the logits
    "class_counts": lambda z: np.arange(10, 10 + z.shape[-1]),
    # where a class is impossible for the student it is for the teacher
    "teacher_logits": lambda z: jnp.where(z == -INF, z, ramp(z)),
    "view_logits": lambda z: jnp.stack([0.5 * ramp(z), -ramp(z)]),
}
# The factor by which a loss stretches its logits bounds its own rounding.
STRETCH = {
    "cosine_softmax": 20,
    "cosface": 64,
    "arcface": 64,
    "ldam": 30,
    "logit_norm": 25,
    "distillation": 16,
}
# Losses of the logits' size, which -inf does not have: `where` names the classes that exist.
MASKED = {"squared_logits", "squentropy", "logit_penalty", "logit_norm"}
# Losses that the papers define on distributions themselves; the others average over the classes.
ON_DISTRIBUTIONS = {
    "mean_squared_error", "mean_absolute_error", "binary_cross_entropy", "asymmetric", "bi_tempered"
}  # fmt: skip

# Losses made for logits that are cosines.
ON_COSINES = {"cosine_softmax", "cosface", "arcface", "ldam"}
# Losses with flat pieces: NaN in the value always, in the slope only where there is one.
FLAT = {"asymmetric", "multiclass_hinge"}

every_loss = pytest.mark.parametrize("name", losses.LOSSES)


def ramp(z):
    return jnp.broadcast_to(jnp.linspace(-1, 1, z.shape[-1], dtype=z.dtype), z.shape)


@cache
def bound(name):
    """(logits, labels) -> the loss, with all that it needs."""
    loss = losses.LOSSES[name]
    required = [
        k for k, p in [*inspect.signature(loss).parameters.items()][2:] if p.default is p.empty
    ]
    return lambda z, y: loss(z, y, **{k: GIVEN[k](as_float(z)) for k in required})


def example(name, shape, seed=0):
    """float32 logits (cosines where they must be) and soft labels."""
    rng = np.random.default_rng([seed, *shape])
    z = 2 * rng.standard_normal(shape)
    soft = rng.dirichlet(np.ones(shape[-1]), shape[:-1])
    return (np.tanh(z) if name in ON_COSINES else z).astype(np.float32), soft.astype(np.float32)


@partial(jit, static_argnums=0)
def derivatives(loss, logits, labels):
    """Of each example: value, gradient (reverse and forward), Hessian."""
    ways = (loss, jax.grad(loss), jax.jacfwd(loss), jax.hessian(loss))
    return jax.vmap(lambda z, y: [f(z, y) for f in ways])(logits, labels)


@partial(jit, static_argnums=0)
def values_and_slopes(loss, logits, labels):
    """Of several batches of one type of labels: losses, and the gradient of their sum."""
    results = []
    for z in logits:
        value, pull = jax.vjp(lambda z: loss(z, labels), z)
        results.append((value, pull(jnp.ones_like(value))[0]))
    return results


EXTREMES = np.array(
    [
        [1e4, -1e4, 0, 0, 0],
        [1e4, 1e4, 1e4, 1e4, -1e4],
        [-1e4, -1e4, -1e4, -1e4, -1e4],
        [0, 0, 0, 0, 0],
        [1e4, -INF, -1e4, 0, 1],
        [1, -INF, 2, -INF, -INF],
        [0, -INF, -INF, -INF, -INF],
    ],
    np.float32,
)
# Every class that is possible is once the true one
AT, EXTREME_IDS = np.nonzero(np.isfinite(EXTREMES))
BAD_IDS = np.array([-1, K, -100, 300, 2**31 - 1, -(2**31)], np.int32)


class Case:
    """A loss on the same rows: three examples with each class for a label, the extremes, examples
    with good labels.
    """

    def __init__(self, name):
        self.name = name
        self.loss = bound(name)
        self.stretch = STRETCH.get(name, 1)
        self.z, self.soft = example(name, (3, K))
        rows = [np.repeat(self.z, K, 0), EXTREMES[AT], np.repeat(self.z[:1], len(BAD_IDS), 0)]
        self.logits = np.concatenate(rows)
        self.ids = np.concatenate([np.tile(np.arange(K), 3), EXTREME_IDS, BAD_IDS * 0]).astype(
            np.int32
        )
        starts = np.cumsum([0, *map(len, rows)])
        self.plain, self.extreme, self.last = (slice(a, b) for a, b in pairwise(starts))
        # -inf is no logit that all of them take
        self.taken = np.isfinite(EXTREMES[AT]).all(-1) | (name not in MASKED)

    @cached_property
    def by_id(self):
        return [np.asarray(x) for x in derivatives(self.loss, self.logits, self.ids)]

    @cached_property
    def by_distribution(self):
        """Rows: the one-hot labels of `by_id` in place of its ids; the last ones have soft
        labels.
        """
        labels = np.eye(K, dtype=np.float32)[self.ids]
        logits = self.logits.copy()
        logits[self.last][:3], labels[self.last][:3] = self.z, self.soft
        return [np.asarray(x) for x in derivatives(self.loss, logits, labels)]

    @cached_property
    def differences(self):
        """The gradient in float64, and its central differences."""
        step = 1e-5 / self.stretch
        shifts = np.concatenate([np.zeros((1, K)), step * np.eye(K), -step * np.eye(K)])
        z = (self.logits[self.plain].astype(np.float64)[:, None] + shifts).reshape(-1, K)
        # one more: with int64 ids 2**32 + 1 must not be class 1
        z = np.concatenate([z, z[:1]])
        ids = np.append(np.repeat(self.ids[self.plain], len(shifts)), 2**32 + 1)
        with jax.enable_x64():
            ((value, slope),) = values_and_slopes(self.loss, (z,), ids)
        assert value.dtype == slope.dtype == np.float64
        assert (
            np.isnan(value[-1]) and np.any(np.isnan(slope[-1])) and np.all(np.isfinite(value[:-1]))
        )
        slope = np.asarray(slope[:-1]).reshape(-1, len(shifts), K)
        return slope[:, 0], (slope[:, 1 : K + 1] - slope[:, K + 1 :]) / (2 * step)


@pytest.fixture(scope="module", params=losses.LOSSES)
def case(request):
    return Case(request.param)


def close(got, wanted, stretch, at_most=32):
    """Equal but for `at_most` ulp of the largest entry (1, if that is more), times the stretch."""
    np.testing.assert_allclose(
        got, wanted, rtol=0, atol=at_most * EPS * stretch * max(1, np.max(np.abs(wanted)))
    )


def test_gradient_and_hessian_are_those_of_float64(case):
    _, reverse, forward, hessian = (x[case.plain] for x in case.by_id)
    slope, second = case.differences
    close(reverse, slope, case.stretch)
    close(forward, reverse, case.stretch, 4)
    close(hessian, second, case.stretch)
    close(hessian, np.swapaxes(hessian, -1, -2), case.stretch, 4)


def test_extreme_logits(case):
    """Finite to the second derivative, also in float16; an impossible class has no say."""
    for kind in (case.by_id, case.by_distribution):
        value, reverse, forward, hessian = (x[case.extreme][case.taken] for x in kind)
        impossible = np.isinf(EXTREMES[AT][case.taken])
        assert np.all(np.isfinite(value))
        for derivative in (reverse, forward, hessian):
            assert np.all(np.abs(derivative) < 65504)
            assert np.all(derivative[impossible] == 0)
        assert np.all(np.swapaxes(hessian, -1, -2)[impossible] == 0)
        close(reverse, forward, case.stretch)


def test_one_hot_labels_are_ids(case):
    rows = [*range(case.extreme.start)]
    if case.stretch == 1:  # the others stretch 1e4 until its ulp is seen
        rows += [*(case.extreme.start + np.flatnonzero(case.taken))]
    for ids, one_hot in zip(case.by_id, case.by_distribution, strict=True):
        np.testing.assert_allclose(
            one_hot[rows], ids[rows], rtol=1e-5, atol=64 * EPS * case.stretch
        )


def test_distributions_average_the_classes(case):
    """sum_k q_k L(z, k), with its derivatives."""
    if case.name in ON_DISTRIBUTIONS:
        return  # see test_losses_of_distributions
    for ids, soft in zip(case.by_id, case.by_distribution, strict=True):
        of_class = ids[case.plain].astype(np.float64).reshape(3, K, *ids.shape[1:])
        wanted = np.einsum("nk,nk...->n...", case.soft, of_class)
        close(soft[case.last][:3], wanted, case.stretch)


def test_a_bad_id_is_nan_and_its_neighbours_stay(case):
    ids = case.ids.copy()
    ids[case.last] = BAD_IDS
    results = [*zip(case.by_id, derivatives(case.loss, case.logits, ids), strict=True)]
    for i, (good, bad) in enumerate(results):
        assert np.all(np.isnan(bad[case.last])) or (i > 0 and case.name in FLAT)
        np.testing.assert_array_equal(bad[: case.last.start], good[: case.last.start])


def test_any_batch_rank(case):
    """Rank 0 is `by_id`."""
    z = case.logits[case.plain]
    ids = case.ids[case.plain]
    wanted = case.by_id[0][case.plain]
    one_hot = np.eye(K, dtype=np.float32)[ids]

    def rows(x, batch):
        return jnp.reshape(x, batch + x.shape[1:])

    for batch in ((15,), (3, 5), (5, 1, 3)):
        for labels in (ids, one_hot):
            value = jax.eval_shape(case.loss, rows(z, batch), rows(labels, batch))
            assert (value.shape, value.dtype) == (batch, jnp.float32)
    for value in jit(lambda z, *labels: [case.loss(z, y) for y in labels])(
        *(rows(x, batch) for x in (z, ids, one_hot))
    ):
        np.testing.assert_allclose(
            value.reshape(15), wanted, rtol=1e-5, atol=64 * EPS * case.stretch
        )


@pytest.mark.slow
@every_loss
def test_half_logits_accumulate_in_float32(name):
    """100 classes; the last rows are extreme and the very last id is bad."""
    z, _ = example(name, (9, 100))
    z[-3] = 0
    z[-2, :90] = -1e4
    ids = np.arange(9, dtype=np.int32) + 90
    z[-3, :2] = 1e4, -1e4
    if name not in MASKED:
        z[-2, 3:5] = -INF
    ids[-1] = 100
    z = jnp.asarray(z, jnp.bfloat16)
    (value, slope), (wanted, exact) = values_and_slopes(bound(name), (z, as_float(z)), ids)
    assert value.dtype == jnp.float32 and slope.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, wanted, rtol=4 * EPS)
    # Rounded once, at the end
    np.testing.assert_allclose(as_float(slope), exact, rtol=2.0**-8, atol=1e-30)
    good = np.arange(9) < 8
    assert np.array_equal(np.isfinite(value), good) and np.array_equal(
        np.isfinite(as_float(slope)).all(-1), good
    )


@every_loss
@pytest.mark.parametrize(("dtype", "written"), [(jnp.bfloat16, "bf16["), (jnp.float16, "f16[")])
def test_nothing_is_computed_in_half_precision(name, dtype, written):
    """On a CPU XLA may keep more digits than it was asked for; the program says what others would
    do.
    """
    ids = np.zeros(6, np.int32)
    program = jax.make_jaxpr(bound(name))(jnp.zeros((6, K), dtype), ids)
    assert program.out_avals[0].dtype == jnp.float32
    assert str(program).count(written) == 1  # the argument


@every_loss
def test_narrow_ids_do_not_wrap(name):
    value = jit(bound(name))(np.zeros((2, 300), np.float32), np.array([-1, 3], np.int8))
    assert np.isnan(value).tolist() == [True, False]  # -1 is not class 255


@every_loss
def test_empty_batch_and_python_numbers(name):
    loss = bound(name)
    for labels in (np.zeros(0, np.int32), np.zeros((0, K), np.float32)):

        def slope(z, y=labels):
            return (loss(z, y), jax.grad(lambda z: jnp.sum(loss(z, y)))(z))

        value, slope = jax.eval_shape(slope, jnp.zeros((0, K)))
        assert (value.shape, slope.shape) == ((0,), (0, K))
    value = jax.eval_shape(lambda: loss([0.5, 0.0, -0.5], 0))
    assert (value.shape, value.dtype) == ((), jnp.float32)


@every_loss
def test_a_label_out_of_range_is_an_error_where_it_can_be_seen(name):
    for label in (*BAD_IDS.tolist(), 2**32 + 1):
        with pytest.raises(ValueError, match=rf"class ids must lie in \[0, {K}\), got {label}$"):
            bound(name)(np.zeros((3, K), np.float32), np.array([0, label, 1]))
    with pytest.raises(ValueError, match="class ids must lie in"):
        bound(name)([0.0, 1.0], 2)
    with pytest.raises(ValueError, match="class ids must lie in"):
        jax.grad(bound(name))(jnp.zeros(K), jnp.array(-1))


MISFITS = [
    (
        np.eye(5, dtype=np.int32)[:2],
        r"one-hot labels must be float \(labels.astype\(float\)\), or take their argmax",
    ),
    (np.array([[0], [1]]), r"drop the last axis \(labels\[..., 0\]\)"),
    (np.array([True, False]), "labels must be integer class ids or float distributions, got bool"),
    (
        np.eye(5, dtype=bool)[:2],
        "labels must be integer class ids or float distributions, got bool",
    ),
    (np.array([0.0, 1.0], np.float32), "class ids must be integers"),
    (np.zeros((2, 4), np.float32), r"must have the logits' shape \(2, 5\), got \(2, 4\)"),
    (np.array([0, 1, 2]), r"must have the logits' batch shape \(2,\), got \(3,\)"),
    (np.array(0), r"must have the logits' batch shape \(2,\), got \(\)"),
]


@every_loss
def test_labels_that_do_not_fit(name):
    for labels, message in MISFITS:
        for loss in (bound(name), jax.jit(bound(name))):
            with pytest.raises(ValueError, match=message):
                loss(np.zeros((2, K), np.float32), labels)


@every_loss
def test_logits_need_classes(name):
    required = {
        k: v(jnp.zeros(K))
        for k, v in GIVEN.items()
        if k in inspect.signature(losses.LOSSES[name]).parameters
    }
    with pytest.raises(ValueError, match="got a scalar"):
        losses.LOSSES[name](jnp.array(1.0), 0, **required)


@pytest.mark.parametrize("name", ["cross_entropy", "mean_squared_error", "multiclass_hinge"])
def test_wide_and_narrow_label_types(name):
    z, _ = example(name, (4, K))
    ids = np.array([4, 0, 1, 2])
    wanted = np.asarray(bound(name)(z, ids))
    for dtype in (np.uint8, np.int16, np.uint32, np.int64):
        np.testing.assert_array_equal(bound(name)(z, ids.astype(dtype)), wanted)
    np.testing.assert_array_equal(bound(name)(z, ids.tolist()), wanted)


@pytest.mark.parametrize("name", sorted(MASKED))
def test_where_leaves_classes_out(name):
    """As if they were not there, whatever their logit is; finite to the second derivative
    at -inf.
    """
    loss = losses.LOSSES[name]
    there = np.array([True, False, True, True, False])
    z, _ = example(name, (4, K))
    without = z[:, there]
    z[:, 1] = -INF
    z[:, 4] = [1e4, -INF, 3, -INF]
    ids = np.array([0, 2, 3, 2], np.int32)

    def masked(z, y):
        return loss(z, y, where=there)

    found = derivatives(masked, z, ids)
    assert all(np.all(np.isfinite(x)) for x in found)
    np.testing.assert_allclose(found[0], loss(without, np.array([0, 1, 2, 1])), rtol=16 * EPS)
    for derivative in found[1:]:
        assert np.all(np.asarray(derivative)[:, ~there] == 0)
    one_hot = np.eye(K, dtype=np.float32)[ids]
    np.testing.assert_allclose(jit(masked)(z, one_hot), found[0], rtol=16 * EPS, atol=64 * EPS)


LOG = np.log([0.7, 0.2, 0.1]).tolist()
SHARES = np.log([0.7, 0.2, 0.1]) / np.log(0.7 * 0.2 * 0.1)  # of the three cross-entropies
ROOTS = -np.sqrt(1 - np.array([0.7, 0.2, 0.1])) * np.log([0.7, 0.2, 0.1])


HAND = [
    ("cross_entropy", {}, LOG, 0, 0.35667494393873245),
    ("cross_entropy", {}, LOG, 2, 2.302585092994046),
    # 1.5 bits
    ("cross_entropy", {}, np.log([0.5, 0.25, 0.25]).tolist(), [0.5, 0.25, 0.25],
        1.0397207708399179),
    ("binary_cross_entropy", {}, [0.0, math.log(3)], 1, math.log(2) + math.log(4 / 3)),
    ("binary_cross_entropy", {"target_threshold": 0.2}, [0.0, math.log(3)], [0.2, 0.3],
        math.log(8 / 3)),
    ("mean_squared_error", {}, LOG, 0, 0.14),  # .3² + .2² + .1²
    ("mean_squared_error", {}, LOG, 2, 1.34),  # .7² + .2² + .9²
    ("squared_logits", {"k": 2.0, "m": 3.0}, [1.0, 2.0], 0, 6.0),  # (2 · 2² + 2²) / 2
    ("squentropy", {}, [0.0, 0.0, 2.0], 2, math.log(2 + math.e**2) - 2),
    ("logit_penalty", {"beta": 0.5}, [0.0, 2.0], 0, math.log(1 + math.e**2) + 2),
    ("focal", {}, LOG, 0, 0.09 * 0.35667494393873245),
    ("focal", {"gamma": 0.5}, LOG, 2, math.sqrt(0.9) * math.log(10)),
    ("poly", {}, LOG, 1, math.log(5) + 0.8),
    ("asymmetric", {"clip": 0.5}, [0.0, 0.0], 0, 0.5 * math.log(2)),
    ("mean_absolute_error", {}, LOG, 0, 0.6),
    ("generalized_cross_entropy", {"q": 0.5}, np.log([0.25, 0.75]).tolist(), 0, 1.0),  # (1 - ½) / ½
    ("reverse_cross_entropy", {}, LOG, 0, 1.2),  # 4 · 0.3
    ("symmetric_cross_entropy", {}, LOG, 0, 1.2356674943938733),
    ("normalized_cross_entropy", {}, LOG, 1, SHARES[1]),
    ("normalized_focal", {}, LOG, 1, ROOTS[1] / ROOTS.sum()),
    ("active_passive", {}, LOG, 0, SHARES[0] + 1.2),
    ("active_passive", {"active": "focal", "passive": "mean_absolute_error"}, LOG, 0,
                        0.03210074495448592 + 0.6),
    # log_0 p = p - 1; power: sum p²
    ("bi_tempered", {"t1": 0.0, "t2": 1.0}, LOG, 0, 0.3 - (1 - 0.54) / 2),
    ("sparsemax_loss", {}, [1.0, 0.5, -1.0], 1, 0.5625),  # p = ¾ ¼ 0: .875 - .5 + (1 - .625) / 2
    ("sparsemax_loss", {}, [1.0, 0.0, -1.0], 0, 0.0),
    ("entmax_loss", {"alpha": 2.0}, [1.0, 0.5, -1.0], 0, 0.0625),
    ("multiclass_hinge", {}, [1.0, 0.5, 1.5], 0, 1.5),
    ("multiclass_hinge", {"form": "weston_watkins"}, [1.0, 0.5, 1.5], 0, 2.0),
    ("multiclass_hinge", {"margin": 0.25}, [1.0, 0.5, -1.5], 0, 0.0),
    ("cosine_softmax", {}, [0.5, 0.4], 1, math.log(1 + math.e**2)),
    ("logit_norm", {"temperature": 0.1}, [3.0, 4.0], 0, math.log(1 + math.e**2)),
    ("cosface", {"margin": 0.5, "scale": 4.0}, [1.0, 0.0], 0, math.log(1 + math.exp(-2))),
    # 60° + 30°: cosine 0
    ("arcface", {"margin": math.pi / 6, "scale": 2.0}, [0.5, 0.0], 0, math.log(2)),
    ("ldam", {"class_counts": [16, 1], "scale": 2.0}, [0.25, 0.0], 0, math.log(2)),  # margin ½ · ½
    ("logit_adjusted", {"class_counts": [3, 1], "tau": 2.0}, [0.0, 0.0], 1, math.log(10)),  # 9 to 1
    ("balanced_softmax", {"class_counts": [3, 1]}, [0.0, math.log(3)], 0, math.log(2)),
    ("distillation", {"teacher_logits": [0.0, 0.0], "alpha": 0.0}, [0.0, 2.0], 1,
        math.log(1 + math.exp(-2))),
    ("distillation", {"teacher_logits": [0.0, -INF], "temperature": 2, "alpha": 1}, [0.0, 0.0], 1,
        4 * math.log(2)),
    ("jensen_shannon", {"view_logits": [[-INF, 0.0]]}, [0.0, -INF], 0, 12 * math.log(2)),

]  # fmt: skip


def test_hand_values():
    calls = [
        partial(losses.LOSSES[loss], logits, label, **hyper)
        for loss, hyper, logits, label, _ in HAND
    ]
    for (*case, value), got in zip(HAND, jit(lambda: [call() for call in calls])(), strict=True):
        assert got.dtype == jnp.float32 and got.shape == ()
        # the logits' rounding and about ten more
        np.testing.assert_allclose(got, value, rtol=12 * EPS, atol=4 * EPS, err_msg=str(case))


def test_losses_of_distributions():
    """Their own definitions, at q that is not one-hot."""
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.5, 0.3])
    z = jnp.log(jnp.array(p))
    soft = jnp.array(q)
    s = p / (1 + p)  # sigmoid(log p)
    n = np.maximum(s - 0.05, 0)

    def log5(x):
        return 5 * (x**0.2 - 1)

    wanted = {
        "mean_squared_error": 0.5**2 + 0.3**2 + 0.2**2,
        "mean_absolute_error": 0.5 + 0.3 + 0.2,
        "binary_cross_entropy": -np.sum(q * np.log(s) + (1 - q) * np.log(1 - s)),
        "asymmetric": -np.sum(q * (1 - s) * np.log(s) + (1 - q) * n**4 * np.log(1 - n)),
        "bi_tempered": np.sum(q * (log5(q) - log5(p)) - (q**1.2 - p**1.2) / 1.2),
    }
    assert set(wanted) == ON_DISTRIBUTIONS
    for name, value in wanted.items():
        hyper = {"t2": 1.0} if name == "bi_tempered" else {}
        np.testing.assert_allclose(
            losses.LOSSES[name](z, soft, **hyper), value, rtol=16 * EPS, err_msg=name
        )


def test_an_impossible_true_class():
    z = jnp.array([1.0, -INF, 2.0])
    assert losses.cross_entropy(z, 1) == INF
    p = 1 / (1 + np.exp([1.0, -1.0]))
    np.testing.assert_allclose(losses.mean_squared_error(z, 1), np.sum(p**2) + 1, rtol=4 * EPS)
    assert losses.multiclass_hinge(z, 1) == INF
    assert np.all(np.isfinite(jax.grad(losses.cross_entropy)(z, 1)))


# name -> factor and power: value = factor · miss^power where the miss 1 - p_y is small
NEAR_CERTAIN = {
    "cross_entropy": ({}, 1, 1),
    "focal": ({}, 1, 3),
    "poly": ({}, 2, 1),
    "mean_absolute_error": ({}, 2, 1),
    "generalized_cross_entropy": ({}, 1, 1),
    "reverse_cross_entropy": ({}, 4, 1),
    "symmetric_cross_entropy": ({}, 4.1, 1),
    "cosine_softmax": ({"scale": 1.0}, 1, 1),
    "balanced_softmax": ({"class_counts": [7, 7, 7]}, 1, 1),
    "entmax_loss": ({"alpha": 1.0}, 1, 1),
}


@pytest.mark.parametrize("name", NEAR_CERTAIN)
@pytest.mark.parametrize("lead", [30.0, 25.0])
def test_small_losses_keep_their_digits(name, lead):
    """1 - p_y = 2 e^-30 = 1.9e-13 is a millionth of the ulp of p_y = 1."""
    hyper, factor, power = NEAR_CERTAIN[name]
    if power == 3 and lead == 30:
        lead = 20.0  # its 1e-38 would underflow
    miss = 2 * math.exp(-lead)
    miss /= 1 + miss
    value, slope = jax.value_and_grad(partial(losses.LOSSES[name], **hyper))(
        jnp.array([lead, 0.0, 0.0]), 0
    )
    rtol = 1e-6 * power + miss  # the next term of the series is smaller by `miss`
    np.testing.assert_allclose(value, factor * miss**power, rtol=rtol)
    steep = power * factor * miss**power
    np.testing.assert_allclose(slope, [-steep, steep / 2, steep / 2], rtol=rtol)


PUBLIC = {  # names and defaults that users write; what follows them has a default of None
    "cross_entropy": {},
    "binary_cross_entropy": {},
    "mean_squared_error": {},
    "squared_logits": {"k": 1.0, "m": 1.0},
    "squentropy": {},
    "focal": {"gamma": 2.0},
    "poly": {"epsilon": 1.0},
    "mean_absolute_error": {},
    "generalized_cross_entropy": {"q": 0.7},
    "reverse_cross_entropy": {"log_zero": -4.0},
    "symmetric_cross_entropy": {"alpha": 0.1, "beta": 1.0, "log_zero": -4.0},
    "normalized_cross_entropy": {},
    "normalized_focal": {"gamma": 0.5},
    "active_passive": {
        "alpha": 1.0,
        "beta": 1.0,
        "active": "normalized_cross_entropy",
        "passive": "reverse_cross_entropy",
    },
    "bi_tempered": {"t1": 0.8, "t2": 1.2},
    "sparsemax_loss": {},
    "entmax_loss": {"alpha": 1.5},
    "multiclass_hinge": {"margin": 1.0, "form": "crammer_singer"},
    "logit_penalty": {"beta": 6e-4},
    "cosine_softmax": {"scale": 20.0},
    "logit_norm": {"temperature": 0.04},
    "ldam": {"class_counts": inspect.Parameter.empty, "max_margin": 0.5, "scale": 30.0},
    "logit_adjusted": {"class_counts": inspect.Parameter.empty, "tau": 1.0},
    "balanced_softmax": {"class_counts": inspect.Parameter.empty},
    "cosface": {"margin": 0.35, "scale": 64.0},
    "arcface": {"margin": 0.5, "scale": 64.0},
    "distillation": {"teacher_logits": inspect.Parameter.empty, "temperature": 4.0, "alpha": 0.9},
    "asymmetric": {"gamma_pos": 1.0, "gamma_neg": 4.0, "clip": 0.05},
    "jensen_shannon": {"view_logits": inspect.Parameter.empty, "weight": 12.0},
}
SHORT = {
    "ce": "cross_entropy", "bce": "binary_cross_entropy", "mse": "mean_squared_error",
    "brier": "mean_squared_error",
    "mae": "mean_absolute_error", "gce": "generalized_cross_entropy",
    "rce": "reverse_cross_entropy",
    "sce": "symmetric_cross_entropy", "nce": "normalized_cross_entropy", "nfl": "normalized_focal",
    "apl": "active_passive", "hinge": "multiclass_hinge", "kd": "distillation",
}  # fmt: skip
TRANSFORMS = {"label_smoothing", "temperature", "class_weights", "class_balanced", "with_z_loss"}
CHANGES = TRANSFORMS | {"effective_number", "made_for_cosines", "weighted_sum"}
TABLES = {"LOSSES", "ALIASES", "TRANSFORMS", "SHORT_TRANSFORMS"}


def test_names_and_defaults():
    assert set(losses.LOSSES) == set(PUBLIC)
    for name, wanted in PUBLIC.items():
        parameters = {
            k: p.default for k, p in inspect.signature(losses.LOSSES[name]).parameters.items()
        }
        assert [*parameters][:2] == ["logits", "labels"]
        hyper = [*parameters.items()][2:]
        assert hyper[: len(wanted)] == [*wanted.items()], name
        assert all(default is None for _, default in hyper[len(wanted) :]), name
    assert {short: loss.__name__ for short, loss in losses.ALIASES.items()} == SHORT
    assert set(losses.__all__) == set(PUBLIC) | set(SHORT) | CHANGES | TABLES
    assert all(
        getattr(losses, name) is (losses.LOSSES | losses.ALIASES)[name]
        for name in {*PUBLIC, *SHORT}
    )
    assert set(losses.TRANSFORMS) == TRANSFORMS
    assert list(losses.SHORT_TRANSFORMS.items()) == [("z_loss", losses.with_z_loss)]


def test_losses_made_for_cosines_say_so():
    """And a user's own can: the attribute is what counts."""
    assert {
        name for name, loss in losses.LOSSES.items() if getattr(loss, "head", "linear") == "cosine"
    } == ON_COSINES

    def own(logits, labels):
        return losses.cosface(logits, labels)

    assert losses.made_for_cosines(own) is own and own.head == "cosine"


def ranges():
    """(loss, hyperparameter, interval) as the docstrings have them."""
    for name, loss in losses.LOSSES.items():
        for hyper, text in docstrings.entry(loss).arguments.items():
            if text.startswith("in "):
                found = re.findall(r"[\[(]-?[\w./]+, [\w./]+[\])]", text)
                # Arcface: written [0, 1.5707963]
                yield pytest.param(name, hyper, found[-1], id=f"{name}-{hyper}")


RANGES = [*ranges()]


@pytest.mark.parametrize(("name", "hyper", "interval"), RANGES)
def test_hyperparameters_keep_their_range(name, hyper, interval):
    logits = jnp.zeros((2, 3))
    labels = jnp.full((2, 3), 1 / 3)

    def call(value):
        return partial(losses.LOSSES[name], **required(name) | {hyper: value})

    def required(name):
        return {k: GIVEN[k](logits) for k in PUBLIC[name] if k in GIVEN}

    low, high = (float(x) for x in interval[1:-1].split(","))
    good = [np.float32(max(low, 0) + 0.5) if low > -INF else -0.5]
    good += [low] * (interval[0] == "[") + [high] * (interval[-1] == "]")
    bad = [low - 1e-3] if interval[0] == "[" else [low]
    bad += [high + 1e-3] if interval[-1] == "]" else [high]
    for value in good:
        jax.eval_shape(call(value), logits, labels)
    for value in (*bad, math.nan, "many", None if hyper != "target_threshold" else -1):
        with pytest.raises(
            ValueError, match=rf"^{hyper} must lie in {re.escape(interval)}, got {value}$"
        ):
            call(value)(logits, labels)


COMPILED_IN = {("arcface", "margin"), ("bi_tempered", "t1"), ("bi_tempered", "t2")}


def test_other_hyperparameters_may_be_traced():
    """And mean then what they mean as numbers."""
    z = jnp.array([[2.0, 0.5, 0.0], [1.0, -1.0, 0.5]])
    ids = np.array([0, 2], np.int32)
    calls = {}
    for name, hyper, interval in (param.values for param in RANGES):
        if (name, hyper) not in COMPILED_IN | {("binary_cross_entropy", "target_threshold")}:
            value = 0.5 + max(float(interval[1:].split(",")[0]), 0) if hyper != "log_zero" else -0.5
            given = {k: GIVEN[k](z) for k in PUBLIC[name] if k in GIVEN}
            calls[name, hyper] = partial(losses.LOSSES[name], z, ids, **given), hyper, value
    traced = jit(lambda values: {k: f(**{hyper: values[k]}) for k, (f, hyper, _) in calls.items()})
    fixed = jit(lambda: {k: f(**{hyper: value}) for k, (f, hyper, value) in calls.items()})()
    for key, value in traced({k: value for k, (*_, value) in calls.items()}).items():
        np.testing.assert_allclose(value, fixed[key], rtol=1e-5, atol=1e-6, err_msg=str(key))
    slope = jax.jit(jax.grad(lambda gamma: losses.focal(z[0], 0, gamma)))(2.0)
    step = (losses.focal(z[0], 0, 2.05) - losses.focal(z[0], 0, 1.95)) / 0.1
    np.testing.assert_allclose(slope, step, rtol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda z: losses.multiclass_hinge(z, 0, form="crammer"),
            "form of the hinge 'crammer': did you mean 'cram",
        ),
        (
            lambda z: losses.active_passive(z, 0, active="focl"),
            "active loss 'focl': did you mean 'focal'",
        ),
        (lambda z: losses.active_passive(z, 0, passive="focal"), "passive loss 'focal'"),
        (
            lambda z: losses.ldam(z, 0, [1, 2]),
            "class_counts must be one number for each of the 3 classes, got int64",
        ),
        (lambda z: losses.ldam(z, 0, [1, 0, 2]), "class_counts must all be positive and finite"),
        (
            lambda z: losses.balanced_softmax(z, 0, [1, INF, 2]),
            "class_counts must all be positive and finite",
        ),
        (lambda z: losses.logit_adjusted(z, 0, "abc"), "class_counts must be one number for each"),
        (
            lambda z: losses.distillation(z, 0, [1.0, 2.0]),
            r"teacher_logits must have the logits' shape \(3,\), got \(",
        ),
        (
            lambda z: losses.jensen_shannon(z, 0, z),
            r"view_logits must be float\[V, ...\] over the logits' shape \(3,",
        ),
        (lambda z: losses.jensen_shannon(z, 0, z[None][:0]), r"got \(0, 3\)"),
    ],
)
def test_other_hyperparameters_that_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros(3))


def test_active_passive_takes_functions():
    z, labels = jnp.array([[1.0, 0.0, 2.0]]), jnp.array([1])
    got = losses.active_passive(z, labels, 0.5, 2.0, losses.focal, lambda z, y: z[:, 0])
    np.testing.assert_allclose(got, 0.5 * losses.focal(z, labels) + 2, rtol=2 * EPS)


@pytest.mark.slow
def test_teachers_and_views():
    z, other = jnp.array([1.0, 0.0, 2.0]), jnp.array([0.0, 1.0, 0.5])
    assert np.all(jax.grad(lambda t: losses.distillation(z, 0, t))(other) == 0)
    assert np.any(jax.grad(lambda v: losses.jensen_shannon(z, 0, v))(other[None]) != 0)
    # a student that agrees with its teacher pays for the label alone
    np.testing.assert_allclose(
        losses.distillation(z, 0, z), 0.1 * losses.cross_entropy(z, 0), rtol=8 * EPS
    )


def test_cross_entropy_is_convex_and_smooth():
    z, _ = example("cross_entropy", (20, K), seed=1)
    hessians = derivatives(losses.cross_entropy, z, np.zeros(20, np.int32))[3]
    eigenvalues = np.linalg.eigvalsh(np.asarray(hessians, np.float64))
    # 1/2: Blondel et al. 2020
    assert eigenvalues.min() > -8 * EPS and eigenvalues.max() <= 0.5 + 8 * EPS


BOUNDED = {
    "mean_squared_error": 2, "mean_absolute_error": 2, "normalized_cross_entropy": 1,
    "normalized_focal": 1,
    "generalized_cross_entropy": 1 / 0.7, "reverse_cross_entropy": 4, "active_passive": 5,
}  # fmt: skip


def test_bounds():
    z, _ = example("", (200, K), seed=2)
    z = 30 * z
    ids = np.random.default_rng(2).integers(0, K, 200).astype(np.int32)
    found = jit(lambda z: {name: bound(name)(z, ids) for name in [*BOUNDED, "cross_entropy"]})(z)
    assert np.all(found.pop("cross_entropy") >= 0)
    for name, value in found.items():
        assert np.all((value >= 0) & (value <= BOUNDED[name] * (1 + 4 * EPS))), name
        assert (
            np.max(value) > 0.9 * BOUNDED[name] or "normalized" in name or name == "active_passive"
        ), name


@pytest.mark.slow
@every_loss
def test_training_lowers_it(name):
    """200 steps of gradient descent with a linear model (or its cosines) on three clouds of
    points.
    """
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3, dtype=np.int32), 8)
    x = (2 * np.eye(3)[labels] + 0.5 * rng.standard_normal((24, 3))).astype(np.float32)
    loss = bound(name)
    rate = 0.1 / STRETCH.get(name, 1)

    def unit(v, axis):
        return v / jnp.linalg.norm(v, axis=axis, keepdims=True)

    def objective(w):
        z = unit(x, 1) @ unit(w, 0) if name in ON_COSINES else x @ w
        return jnp.mean(loss(z, labels))

    def step(w, _):
        value, slope = jax.value_and_grad(objective)(w)
        return w - rate * slope, value

    start = 0.1 * rng.standard_normal((3, 3)).astype(np.float32)
    w, history = jit(lambda w: jax.lax.scan(step, w, None, 200))(start)
    assert np.all(np.isfinite(w)) and np.all(np.isfinite(history))
    assert history[-1] < 0.9 * history[0]


@pytest.mark.parametrize("temperature", [1.0, 4.0, 100.0, 1e4])
def test_distillation_keeps_its_digits_at_high_temperatures(temperature):
    """T^2 KL of two nearly equal distributions."""
    rng = np.random.default_rng(0)
    z, teacher = rng.standard_normal((2, 8, 10)).astype(np.float32)

    def of(z, t):
        return jit(partial(losses.distillation, temperature=temperature, alpha=1.0))(
            z, np.zeros(8, np.int32), t
        )

    with jax.enable_x64():
        wanted = np.asarray(of(z.astype(np.float64), teacher.astype(np.float64)))
    # log p is rounded to an ulp of log K; KL is about d^2 / 2 for differences d of size 1 / T
    np.testing.assert_allclose(of(z, teacher), wanted, rtol=16 * EPS * max(temperature, 4))


@pytest.mark.slow
def test_bi_tempered_between_logarithm_and_power():
    value, slope = jax.value_and_grad(lambda z: losses.bi_tempered(z, 1, t1=1.0, t2=1.05))(
        jnp.array([1e4, 0.0])
    )
    np.testing.assert_allclose(value, 20 * np.log1p(0.05 * 1e4), rtol=1e-4)
    np.testing.assert_allclose(slope, [1 / 501, -1 / 501], rtol=1e-4)


def test_entmax_loss_of_a_traced_alpha_has_its_limit():
    z = jnp.array([0.0, 1.0, -0.5])
    value, slope = jax.value_and_grad(lambda alpha: losses.entmax_loss(z, 0, alpha))(jnp.float32(1))
    np.testing.assert_allclose(value, losses.cross_entropy(z, 0), rtol=4 * EPS)
    assert np.isfinite(slope)


def test_logit_norm_sees_directions_of_any_length():
    z = np.array([1.0, 2.0, -0.5], np.float32)
    wanted = losses.logit_norm(z, 0)
    for size in (1e-30, 1e30):
        np.testing.assert_allclose(
            losses.logit_norm(np.float32(size) * z, 0), wanted, rtol=32 * EPS
        )


def test_an_array_of_a_hyperparameter_is_the_number():
    z = jnp.array([1.0, -0.5, 0.3])
    np.testing.assert_allclose(
        losses.asymmetric(z, 0, clip=jnp.float32(0.05)), losses.asymmetric(z, 0), rtol=4 * EPS
    )


@pytest.mark.parametrize("name", ["multiclass_hinge", "cross_entropy", "mean_squared_error"])
def test_the_logits_decide_the_type(name):
    with jax.enable_x64():
        assert (
            losses.LOSSES[name](jnp.zeros(3, jnp.float32), np.full(3, 1 / 3)).dtype == jnp.float32
        )


def test_a_closed_over_id_does_not_wrap():
    with pytest.raises(ValueError, match="class ids must lie in"):
        jax.jit(lambda z: losses.cross_entropy(z, np.array([2**32 + 1])))(jnp.zeros((1, 3)))
