"""Parameter trees, one forward pass against numpy in float64, and the arithmetic of sizes against
lax.
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cnnlab import models
from cnnlab.errors import InputError
from cnnlab.models.convolution import conv_output_size
from cnnlab.models.layers import Dropout

EPS = 2.0**-23  # one ulp of float32, relative
CIFAR = (32, 32, 3)
MNIST = (28, 28, 1)


def promotion(model):
    """flax itself mixes types: avg_pool divides by an integer, bfloat16 batch norm multiplies by
    float32 statistics.
    """
    mixes = getattr(model, "pool", "") == "average" or (
        getattr(model, "batch_norm", False) and model.dtype is not None
    )
    return jax.numpy_dtype_promotion("standard" if mixes else "strict")


def variables(model, shape=CIFAR):
    """Shapes and types of what `init` makes, without making it."""
    with promotion(model):
        return jax.eval_shape(
            model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        )


def described(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(part.key for part in path): leaf.shape for path, leaf in leaves}


def test_the_seed_network_layer_by_layer():
    params = variables(models.CNN())["params"]
    assert described(params) == {
        "Conv_0/bias": (32,),
        "Conv_0/kernel": (3, 3, 3, 32),
        "Conv_1/bias": (64,),
        "Conv_1/kernel": (3, 3, 32, 64),
        "MLP_0/Dense_0/bias": (128,),
        "MLP_0/Dense_0/kernel": (8 * 8 * 64, 128),
        "MLP_0/Dense_1/bias": (10,),
        "MLP_0/Dense_1/kernel": (128, 10),
    }
    assert models.count_parameters(params) == 545_098


@pytest.mark.parametrize(
    ("model", "shape", "count"),
    [
        (models.CNN(), CIFAR, 545_098),
        (
            models.CNN(dropout=0.5, pool="average", activation="gelu", dtype=jnp.bfloat16),
            CIFAR,
            545_098,
        ),
        (models.CNN(), MNIST, 9 * 32 + 32 + 18_496 + (49 * 64 + 1) * 128 + 1_290),
        (models.CNN(num_classes=100), CIFAR, 545_098 + 90 * 129),
        (models.CNN(widths=(8,), hidden=()), CIFAR, 27 * 8 + 8 + (16 * 16 * 8 + 1) * 10),
        (
            models.CNN(widths=(4, 8, 16), hidden=(7, 5)),
            CIFAR,
            112 + 296 + 1_168 + 257 * 7 + 8 * 5 + 6 * 10,
        ),
        # batch norm: scale and bias for each unit, in place of the bias
        (models.CNN(batch_norm=True), CIFAR, 545_098 + 32 + 64 + 128),
        (models.MLP(), MNIST, 785 * 128 + 1_290),
        (models.MLP(hidden=(64, 32)), CIFAR, 3_073 * 64 + 65 * 32 + 330),
        (models.MLP(batch_norm=True), MNIST, 785 * 128 + 1_290 + 128),
        (models.SoftmaxRegression(), CIFAR, 30_730),
        (models.SoftmaxRegression(3), MNIST, 785 * 3),
    ],
)
def test_parameter_counts(model, shape, count):
    assert models.count_parameters(variables(model, shape)["params"]) == count


def test_batch_norm_replaces_the_biases():
    made = variables(models.CNN(batch_norm=True))
    names = described(made["params"])
    assert [n for n in names if n.endswith("bias") and "BatchNorm" not in n] == [
        "MLP_0/Dense_1/bias"
    ]
    stats = described(made["batch_stats"])
    assert sorted(set(stats.values())) == [(32,), (64,), (128,)] and len(stats) == 6


@pytest.mark.parametrize(
    "model",
    [
        models.CNN(widths=(4,), hidden=(6,), dtype=jnp.bfloat16, batch_norm=True, dropout=0.5),
        models.CNN(widths=(4,), hidden=(), dtype=jnp.bfloat16, pool="average"),
        models.MLP(hidden=(6,), dtype=jnp.bfloat16),
        models.SoftmaxRegression(dtype=jnp.bfloat16),
        models.CNN(widths=(4,), hidden=(6,)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_parameters_and_logits_are_float32(model):
    made = variables(model, (8, 8, 3))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    for train in (False, True):

        def forward(v, x, train=train):
            return model.apply(
                v, x, train=train, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"]
            )[0]

        with promotion(model):
            logits = jax.eval_shape(forward, made, jax.ShapeDtypeStruct((5, 8, 8, 3), jnp.float32))
        assert (logits.shape, logits.dtype) == ((5, 10), jnp.float32)


def test_cosine_head_against_numpy():
    """The features and a class's weights enter by their angle alone; features of length 0 have
    none.
    """
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, 7), (7, 5)))
    x[0] = 0
    x[1] = 1e-3 * kernel[:, 2]
    x[2] = -1e3 * kernel[:, 2]
    head = models.CosineHead(5)
    rise = np.broadcast_to(np.arange(1, 6, dtype=np.float32), (6, 5))

    def total(kernel, x):
        return jnp.sum(head.apply({"params": {"kernel": kernel}}, x) * rise)

    logits = np.asarray(head.apply({"params": {"kernel": kernel}}, x))

    def unit(v, axis):
        return v / np.maximum(np.linalg.norm(v.astype(np.float64), axis=axis, keepdims=True), 1e-6)

    # lengths, quotients and a sum of seven products
    np.testing.assert_allclose(logits, unit(x, 1) @ unit(kernel, 0), atol=16 * EPS)
    assert np.all(np.abs(logits) <= 1 + 4 * EPS) and np.all(logits[0] == 0)
    np.testing.assert_allclose(logits[1:3, 2], [1, -1], atol=4 * EPS)
    by_kernel, by_x = jax.jit(jax.grad(total, (0, 1)))(kernel, x)
    assert np.all(np.isfinite(by_kernel)) and np.all(np.isfinite(by_x))
    # Length has no effect
    np.testing.assert_allclose(np.sum(by_x * x, 1), np.zeros(6), atol=64 * EPS)
    np.testing.assert_allclose(np.sum(by_kernel * kernel, 0), np.zeros(5), atol=512 * EPS)


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_heads(head):
    for model in (
        models.SoftmaxRegression(head=head, dtype=jnp.bfloat16),
        models.MLP(hidden=(6,), head=head),
        models.CNN(widths=(4,), hidden=(), head=head, dtype=jnp.bfloat16),
    ):
        made = variables(model, (8, 8, 3))
        biases = [name for name in described(made["params"]) if name.endswith("bias")]
        last = {"linear": "Dense", "cosine": "CosineHead"}[head]
        assert any(last in name and name.endswith("kernel") for name in described(made["params"]))
        assert sum("Conv" not in name for name in biases) == (type(model) is models.MLP) + (
            head == "linear"
        )
        logits = jax.eval_shape(model.apply, made, jax.ShapeDtypeStruct((5, 8, 8, 3), jnp.float32))
        assert (logits.shape, logits.dtype) == ((5, 10), jnp.float32)
        assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}


def test_cosine_head_in_bfloat16():
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    full = models.CosineHead(5)
    half = models.CosineHead(5, jnp.bfloat16)
    made = full.init(jax.random.key(0), x)
    exact, rounded = (np.asarray(head.apply(made, x)) for head in (full, half))
    assert rounded.dtype == np.float32
    # every factor rounded to 2^-9 of itself: at most 2^-8 of a sum of products whose sizes add up
    # to at most 1
    assert 1e-5 < np.max(np.abs(exact - rounded)) < 2.0**-7


def convolve(x, kernel, bias):
    """Cross-correlation with one pixel of zeros around, by its definition."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    result = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for i, j in np.ndindex(x.shape[1:3]):
        result[:, i, j] = (
            np.tensordot(padded[:, i : i + 3, j : j + 3], kernel, ([1, 2, 3], [0, 1, 2])) + bias
        )
    return result


def pooled(x, reduce):
    batch, height, width, channels = x.shape
    return reduce(x.reshape(batch, height // 2, 2, width // 2, 2, channels), (2, 4))


@pytest.mark.parametrize(("pool", "reduce"), [("max", np.max), ("average", np.mean)])
@pytest.mark.parametrize(
    ("activation", "curve"), [("relu", lambda x: np.maximum(x, 0)), ("tanh", np.tanh)]
)
def test_forward_against_numpy(pool, reduce, activation, curve):
    model = models.CNN(4, widths=(3, 5), hidden=(6,), pool=pool, activation=activation)
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    shapes = variables(model, (8, 8, 3))
    rng = np.random.default_rng(1)
    made = jax.tree.map(
        lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes
    )
    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), made["params"])
    wanted = x.astype(np.float64)
    for name in ("Conv_0", "Conv_1"):
        wanted = pooled(curve(convolve(wanted, **params[name])), reduce)

    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    wanted = dense(
        curve(dense(wanted.reshape(2, -1), params["MLP_0"]["Dense_0"])), params["MLP_0"]["Dense_1"]
    )
    # sums of up to 45 products of size about 1, four layers deep
    with promotion(model):
        logits = jax.jit(model.apply)(made, x)
    np.testing.assert_allclose(logits, wanted, atol=4 * 45 * EPS)


def test_bfloat16_computes_in_bfloat16():
    x = np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype(np.float32)
    full, half = (
        models.CNN(widths=(4,), hidden=(6,), dtype=dtype) for dtype in (None, jnp.bfloat16)
    )
    made = jax.jit(full.init)(jax.random.key(0), x)
    difference = np.abs(
        np.asarray(jax.jit(full.apply)(made, x)) - np.asarray(jax.jit(half.apply)(made, x))
    )
    assert 1e-5 < difference.max() < 0.1  # eight bits of mantissa: visible, and small
    assert (models.model_dtype("bfloat16"), models.model_dtype("float32")) == (jnp.bfloat16, None)


def test_batch_norm_normalises_and_remembers():
    model = models.MLP(3, hidden=(4,), batch_norm=True)
    x = np.random.default_rng(0).standard_normal((16, 2, 2, 1)).astype(np.float32)
    made = jax.jit(model.init)(jax.random.key(0), x)

    def run(v, x, train):
        return model.apply(v, x, train=train, mutable=["batch_stats"])

    run = jax.jit(run, static_argnums=2)
    _, changed = run(made, x, True)
    hidden = x.reshape(16, -1).astype(np.float64) @ np.asarray(
        made["params"]["Dense_0"]["kernel"], np.float64
    )
    stats = changed["batch_stats"]["_Norm_0"]["BatchNorm_0"]
    np.testing.assert_allclose(stats["mean"], 0.1 * hidden.mean(0), atol=16 * EPS)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * hidden.var(0), atol=64 * EPS)
    logits, changed = run(made, x, False)
    np.testing.assert_array_equal(
        changed["batch_stats"]["_Norm_0"]["BatchNorm_0"]["mean"], np.zeros(4)
    )
    # An image for itself
    np.testing.assert_allclose(logits[:3], run(made, x[:3], False)[0], atol=8 * EPS)


def test_unknown_options_are_errors():
    for model, words in (
        (models.CNN(pool="median"), "unknown pool 'median'"),
        (models.CNN(activation="softplus"), "unknown activation 'softplus'"),
        (models.MLP(activation="softplus"), "unknown activation 'softplus'"),
        (models.CNN(head="cubic"), "unknown head 'cubic'"),
    ):
        with pytest.raises(InputError, match=words):
            variables(model)
    with pytest.raises(ValueError, match="widths must name at least one convolution"):
        variables(models.CNN(widths=()))


def dropped(rate, x, seed=0, **options):
    layer = Dropout(rate)
    return np.asarray(
        layer.apply(
            {},
            jnp.asarray(x),
            **({"train": True} | options),
            rngs={"dropout": jax.random.key(seed)},
        )
    )


def test_dropout_keeps_the_mean():
    x = np.ones((50, 400), np.float32)
    for rate in (0.25, 0.5):
        y = dropped(rate, x)
        assert set(np.unique(y).tolist()) == {0.0, float(np.float32(1 / (1 - rate)))}
        assert abs(np.mean(y == 0) - rate) < 5 * (rate * (1 - rate) / x.size) ** 0.5
        assert abs(y.mean(dtype=np.float64) - 1) < 5 * (rate / (1 - rate) / x.size) ** 0.5


def test_dropout_off():
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    np.testing.assert_array_equal(dropped(0.9, x, train=False), x)
    np.testing.assert_array_equal(dropped(0.0, x), x)
    np.testing.assert_array_equal(Dropout(0.9).apply({}, x, train=False), x)  # no key needed


def test_a_dropout_mask_comes_from_the_place_in_the_global_batch():
    x = np.ones((8, 64), np.float32)
    whole = dropped(0.5, x)
    assert len({row.tobytes() for row in whole}) == 8
    np.testing.assert_array_equal(dropped(0.5, x[:3]), whole[:3])
    assert not np.array_equal(dropped(0.5, x, seed=1), whole)

    def on_a_device(part):
        return Dropout(0.5, "data").apply({}, part, train=True, rngs={"dropout": jax.random.key(0)})

    parts = jax.jit(jax.vmap(on_a_device, axis_name="data"))(x.reshape(4, 2, 64))
    np.testing.assert_array_equal(parts.reshape(8, 64), whole)


def test_dropout_acts_on_hidden_units():
    x = np.random.default_rng(0).standard_normal((4, 2, 2, 1)).astype(np.float32)
    for model in (models.MLP(3, (32,), dropout=0.5), models.CNN(3, (4,), (32,), dropout=0.5)):
        made = jax.jit(model.init)(jax.random.key(0), x)
        apply = jax.jit(model.apply, static_argnames="train")

        def run(seed, train, apply=apply, made=made):
            return np.asarray(apply(made, x, train=train, rngs={"dropout": jax.random.key(seed)}))

        np.testing.assert_array_equal(run(0, False), run(1, False))
        np.testing.assert_array_equal(run(0, True), run(0, True))
        assert not np.allclose(run(0, True), run(1, True)) and not np.allclose(
            run(0, True), run(0, False)
        )


SIZES = [
    (w, k, p, s)
    for w, k, p, s in itertools.product((1, 2, 5, 8, 28, 32), (1, 2, 3, 5), (0, 1, 2), (1, 2, 3))
    if k <= w + 2 * p
]


def test_conv_output_size_against_lax():
    for w, k, p, s in SIZES:
        real = jax.eval_shape(
            lambda x, kernel, p=p, s=s: lax.conv_general_dilated(
                x, kernel, (s, s), [(p, p), (p, p)]
            ),
            jax.ShapeDtypeStruct((1, 1, w, w), jnp.float32),
            jax.ShapeDtypeStruct((1, 1, k, k), jnp.float32),
        )
        assert real.shape[2:] == (conv_output_size(w, k, p, s),) * 2, (w, k, p, s)


@pytest.mark.parametrize(
    ("w", "k", "p", "s"), [(32, 3, 1, 1), (28, 5, 0, 2), (7, 3, 2, 3), (8, 2, 0, 2), (9, 2, 0, 2)]
)
def test_conv_output_size_against_flax(w, k, p, s):
    x = jax.ShapeDtypeStruct((1, w, w, 1), jnp.float32)
    layer = nn.Conv(1, (k, k), strides=s, padding=p)
    convolved = jax.eval_shape(lambda x: layer.init_with_output(jax.random.key(0), x)[0], x)
    most = jax.eval_shape(lambda x: nn.max_pool(x, (k, k), (s, s), [(p, p), (p, p)]), x)
    assert convolved.shape == most.shape == (1, *(conv_output_size(w, k, p, s),) * 2, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 0, 1), "W=0"),
        ((5, 0, 0, 1), "K=0"),
        ((5, 3, -1, 1), "P=-1"),
        ((5, 3, 0, 0), "S=0"),
        ((2, 3, 0, 1), "a kernel of 3 does not fit into 2 pixels with padding 0"),
        ((2, 7, 2, 1), "a kernel of 7 does not fit"),
    ],
)
def test_conv_output_size_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        conv_output_size(*arguments)
