"""Residual networks, wide ones and the 8-layer CNN against PyTorch's, in float64
(tests/golden/resnets.py).
"""

import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax_modes import quick_compile

from cnnlab import spec
from cnnlab.errors import InputError
from cnnlab.models import MODELS, Convolution, count_parameters

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "resnets.json").read_text())
NETWORKS = GOLDEN["networks"]
# A hundred layers' rounding, each of 2^-53 times at most a thousand
TOLERANCE = 1e-11
QUICK = {"native": ("resnet20", "wide_resnet,depth=10,width=1"), "blocked": ()}
CASES = [
    pytest.param(
        name,
        formulation,
        marks=[] if name in QUICK[formulation] else pytest.mark.slow,
        id=f"{name}-{formulation}",
    )
    for name in NETWORKS
    for formulation in QUICK
]


@pytest.fixture(autouse=True)
def in_double():
    """flax mixes types under 64 bits."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), quick_compile(True):
        yield


def build(written, num_classes=10, **supply):
    part = spec.parse(written)
    return MODELS[part.name](num_classes=num_classes, **part.keywords, **supply)


def shapes(model, side=32):
    """Parameters' path -> shape, in the order of creation."""
    found = {}

    def initial(key):
        variables = model.init(key, jnp.zeros((1, side, side, 3)))
        # Here, as JAX sorts what a transformation returns
        found.update({path: leaf.shape for path, leaf in flatten_dict(variables["params"]).items()})

    jax.eval_shape(initial, jax.random.key(0))
    return found


def layers_of(paths):
    """Layer's path -> its parameters' names, in the order of creation."""
    layers = {}
    for *layer, name in paths:
        layers.setdefault(tuple(layer), []).append(name)
    return layers


def described(layer, shape_of):
    """The kind and shape of a layer, as in the golden file."""
    if (*layer, "scale") in shape_of:
        return ["norm", list(shape_of[*layer, "scale"])]
    shape = list(shape_of[*layer, "kernel"])
    return ["conv" if len(shape) == 4 else "dense", shape]


def drawn(row, layers):
    """Images, labels, parameters and statistics, as the golden script draws them."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((4, row["side"], row["side"], 3))
    labels = rng.integers(0, 10, 4)
    params = {}
    stats = {}
    for (layer, names), (kind, shape) in zip(layers.items(), row["layers"], strict=True):
        if kind == "norm":
            params[*layer, "scale"] = 0.5 + rng.random(shape)
            params[*layer, "bias"] = 0.1 * rng.standard_normal(shape)
            stats[*layer, "mean"] = 0.1 * rng.standard_normal(shape)
            stats[*layer, "var"] = 0.5 + rng.random(shape)
            continue
        scale = np.sqrt(2 / np.prod(shape[:-1]))
        params[*layer, "kernel"] = rng.standard_normal(shape) * scale
        if "bias" in names:
            params[*layer, "bias"] = 0.1 * rng.standard_normal(shape[-1])
    return jnp.array(images), labels, unflatten_dict(params), unflatten_dict(stats)


def assert_close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


def assert_summarised(arrays, summaries):
    """The arrays have these sums of squares and weighted sums, up to relative errors of their
    norms; the weights' norm is at most the root of their number.
    """
    for array, (squares, weighted) in zip(arrays, summaries, strict=True):
        flat = np.asarray(array).ravel()
        assert flat @ flat == pytest.approx(squares, rel=2 * TOLERANCE)
        error = TOLERANCE * np.sqrt(squares * flat.size)
        assert flat @ np.cos(np.arange(flat.size)) == pytest.approx(weighted, rel=0, abs=error)


@pytest.mark.parametrize(("name", "formulation"), CASES)
def test_values_and_gradients_are_pytorch_s(name, formulation):
    row = NETWORKS[name]
    model = build(name, dtype=jnp.float64, conv=Convolution(formulation))
    shape_of = shapes(model, row["side"])
    layers = layers_of(shape_of)
    assert [described(layer, shape_of) for layer in layers] == row["layers"]
    images, labels, params, stats = drawn(row, layers)

    @jax.jit
    def evaluated(params):
        return model.apply({"params": params, "batch_stats": stats}, images)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def trained(params):
        logits, changed = model.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (logits, changed["batch_stats"])

    assert_close(evaluated(params), np.array(row["eval_logits"]))
    (loss, (logits, changed)), gradients = trained(params)
    assert logits.dtype == jnp.float64
    assert_close(logits, np.array(row["train_logits"]))
    assert_close(loss, np.array(row["loss"]))
    gradients = flatten_dict(gradients)
    order = [
        (*layer, name)
        for layer in layers
        for name in ("kernel", "scale", "bias")
        if (*layer, name) in gradients
    ]
    assert len(order) == len(gradients)
    assert_summarised([gradients[path] for path in order], row["gradients"])
    changed = flatten_dict(changed)
    norms = [layer for layer in layers if (*layer, "scale") in gradients]
    assert_summarised([changed[*norm, "mean"] for norm in norms], row["means"])
    assert_summarised([changed[*norm, "var"] for norm in norms], row["variances"])


@pytest.mark.parametrize("name", GOLDEN["parameters"])
def test_numbers_of_parameters(name):
    model = build(name, 1000 if "imagenet" in name else 10)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert count_parameters(variables["params"]) == GOLDEN["parameters"][name]


def test_numbers_of_parameters_are_the_papers():
    """Table 6 of He et al. 2015 and table 4 of Zagoruyko and Komodakis 2016, in millions."""
    published = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85,
                 "resnet110": 1.7, "wide_resnet": 36.5,
                 "wide_resnet,depth=40,width=2": 2.2}  # fmt: skip
    for name, millions in published.items():
        digits = 1 if millions >= 1 else 2
        assert round(GOLDEN["parameters"][name] / 1e6, digits) == millions


def test_numbers_of_parameters_are_the_readme_s():
    text = (Path(__file__).parents[2] / "cnnlab/models/README.md").read_text()
    table = re.search(r"^# Models\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)[1]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    rows = [row for row in rows if "--model" not in row[0]]
    stated = {}
    for row in rows:
        counts = [int(count.replace(",", "")) for count in re.findall(r"[\d,]+\d", row[-1])]
        stated |= dict(zip(re.findall(r"`([^`]*)`", row[0]), counts, strict=True))
    assert {name.split(",")[0] for name in stated} == MODELS.keys()
    for name, count in stated.items():
        variables = jax.eval_shape(build(name).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        assert count_parameters(variables["params"]) == count, name


def test_cnn8_needs_a_pixel_after_all_maxima():
    model = build("cnn8")
    with pytest.raises(ValueError, match="images must have 8 x 8 pixels or more"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 7, 3)))
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def test_dropout_is_in_front_of_the_second_convolution():
    """Where that is zero a mask changes nothing; else it does."""
    name = "wide_resnet,depth=10,width=1"
    row = NETWORKS[name]
    images, _, params, stats = drawn(row, layers_of(shapes(build(name), row["side"])))
    model = build(f"{name},dropout=0.5", dtype=jnp.float64)
    closed = {
        path: leaf * (path[-2] != "Conv_1" or path[0].startswith("Conv"))
        for path, leaf in flatten_dict(params).items()
    }
    closed = unflatten_dict(closed)

    @jax.jit
    def logits(params, key):
        variables = {"params": params, "batch_stats": stats}
        rngs = {"dropout": key}
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)[0]

    masks = [jax.random.key(0), jax.random.key(1)]
    first, second = (logits(closed, key) for key in masks)
    np.testing.assert_array_equal(first, second)
    first, second = (logits(params, key) for key in masks)
    assert abs(first - second).min() > 1e-6
    assert_close(model.apply({"params": params, "batch_stats": stats}, images), row["eval_logits"])


@pytest.mark.slow
def test_a_wide_network_is_the_residual_network_of_its_widths():
    """The same parameters by the same names, and the same draws."""
    wide = build("wide_resnet,depth=10,width=2,dropout=0.5")
    same = build(
        "resnet18,blocks=[1,1,1],widths=[32,64,128],stem_width=16,preactivation=true,dropout=0.5"
    )
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 3)))
    variables = jax.jit(wide.init)(jax.random.key(0), images)

    @functools.partial(jax.jit, static_argnums=0)
    def logits(model, key):
        rngs = {"dropout": key}
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)

    assert list(shapes(wide)) == list(shapes(same))
    jax.tree.map(
        np.testing.assert_array_equal, variables, jax.jit(same.init)(jax.random.key(0), images)
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        logits(wide, jax.random.key(1)),
        logits(same, jax.random.key(1)),
    )


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("wide_resnet,depth=12", "depth must be 6 n \\+ 4"),
        ("wide_resnet,depth=4", "depth must be 6 n \\+ 4"),
        ("resnet20,shortcut=padding", "did you mean 'pad'"),
        ("resnet18,stem=mnist", "unknown stem"),
        ("resnet18,zero_scale=true,preactivation=true", "zero_scale"),
        ("resnet18,blocks=[2,2]", "blocks and widths"),
    ],
)
def test_what_does_not_fit_is_refused(written, said):
    with pytest.raises((ValueError, InputError), match=said):
        build(written)
