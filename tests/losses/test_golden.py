"""Losses and softmax's relatives against tests/golden: 400-digit values and gradients, and other
libraries' results.
"""

import inspect
import json
from collections import defaultdict
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from jax_modes import quick_compile

from cnnlab import losses, softmax

GOLDEN = Path(__file__).parents[1] / "golden"
EPS64 = 2.0**-52
# Hundreds of small programs, each run once: LLVM's optimisations are most of what they cost.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
# Hyperparameters that are compiled in; the others are traced, so that their values share a
# compilation.
STATIC = {
    "asymmetric": ("clip",),
    "bi_tempered": ("t1", "t2"),
    "entmax_loss": ("alpha",),
    "arcface": ("margin",),
}
NAMES = ("form", "active", "passive")


def scale(name, hyper):
    """By how much a loss stretches its logits: its own scale in the bound on errors."""
    defaults = {"cosface": 64, "arcface": 64, "ldam": 30, "cosine_softmax": 20}
    if name == "logit_norm":
        return 1 / hyper.get("temperature", 0.04)
    if name == "distillation":  # T^2, and two logarithms of the size of z / T
        return 2 * hyper.get("temperature", 4.0)
    return max(hyper.get("scale", defaults.get(name, 1)), 1)


def table(name):
    return json.loads((GOLDEN / name).read_text())


def numbers(row, dtype):
    """JSON to an array, "-inf" included."""

    def plain(x):
        return [plain(v) for v in x] if isinstance(x, list) else -np.inf if x == "-inf" else x

    return np.array(plain(row), dtype)


def settings(row):
    """A case's hyperparameters, defaults included: those that are compiled in, and the numbers."""
    defaults = {
        k: p.default for k, p in inspect.signature(losses.LOSSES[row["loss"]]).parameters.items()
    }
    hyper = {k: v for k, v in defaults.items() if isinstance(v, (float, str))} | row["hyper"]
    fixed = (*STATIC.get(row["loss"], ()), *NAMES)
    return {k: v for k, v in hyper.items() if k in fixed}, {
        k: v for k, v in hyper.items() if k not in fixed
    }


def grouped(rows):
    """Cases that share a compilation: one loss, what is compiled in, kind of label, K."""
    groups = defaultdict(list)
    for row in rows:
        fixed = json.dumps([settings(row)[0], row.get("transform")], sort_keys=True)
        kind = "ids" if isinstance(row["labels"], int) else "distributions"
        groups[row["loss"], fixed, kind, len(row["logits"])].append(row)
    return groups


GROUPS = grouped(table("losses.json"))


@partial(jit, static_argnums=0)
def value_and_gradient(loss, logits, labels, given):
    return jax.vmap(jax.value_and_grad(lambda z, y, g: loss(z, y, **g)))(logits, labels, given)


def evaluated(rows, dtype):
    """Values and gradients of a group."""
    fixed = settings(rows[0])[0]
    wrap = rows[0].get("transform") or {}
    loss = partial(losses.LOSSES[rows[0]["loss"]], **fixed)
    for transform, arguments in wrap.items():
        loss = getattr(losses, transform)(loss, **arguments)
    logits = np.stack([numbers(row["logits"], dtype) for row in rows])
    ids = isinstance(rows[0]["labels"], int)
    labels = np.array([row["labels"] for row in rows], np.int32 if ids else dtype)
    given = {
        k: np.stack([numbers(settings(row)[1][k], dtype) for row in rows])
        for k in settings(rows[0])[1]
    }
    return value_and_gradient(loss, logits, labels, given)


def compare(name, dtype, rtol, atol):
    """|got - wanted| <= rtol |wanted| + atol max(1, the largest |logit|) times the loss's scale."""
    for (loss, *_), rows in GROUPS.items():
        if loss != name:
            continue
        got, slope = evaluated(rows, dtype)
        assert got.dtype == slope.dtype == dtype
        for row, value, gradient in zip(rows, np.asarray(got), np.asarray(slope), strict=True):
            size = max([1.0, *(abs(x) for x in row["logits"] if x != "-inf")])
            slack = atol * scale(name, row["hyper"]) * size
            assert abs(value - row["value"]) <= rtol * abs(row["value"]) + slack, (row, value)
            steep = max(map(abs, row["gradient"]))
            assert np.max(np.abs(gradient - row["gradient"])) <= rtol * steep + slack, (
                row,
                gradient,
            )


LOSSES = {loss for loss, *_ in GROUPS}


def test_every_loss_is_in_the_tables():
    assert set(losses.LOSSES) == LOSSES


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_float64(name):
    with jax.enable_x64():
        compare(name, np.float64, 64 * EPS64, 64 * EPS64)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_float32(name):
    compare(name, np.float32, 1e-6, 1e-6)


@pytest.mark.slow
def test_other_libraries():
    """Each row's `scale` makes their convention ours; golden/DEVIATIONS.md says where they
    differ.
    """
    rows = table("cross_library.json")
    assert {row["library"] for row in rows} >= {"torch", "optax", "keras", "entmax"}
    with jax.enable_x64(), quick_compile(True):
        for group in grouped(rows).values():
            for row, value, gradient in zip(group, *evaluated(group, np.float64), strict=True):
                atol = row["atol"] * max(1, abs(float(value)))
                assert abs(row["scale"] * row["value"] - float(value)) <= atol, row
                if row["gradient"] is not None:
                    wanted = row["scale"] * np.array(row["gradient"])
                    np.testing.assert_allclose(
                        gradient, wanted, rtol=0, atol=atol, err_msg=str(row)
                    )


MAPPINGS = {
    "softmax": softmax.softmax,
    "sparsemax": softmax.sparsemax,
    "entmax15": softmax.entmax15,
}


@jit
def entmax_slopes(logits, alpha):
    each = (
        jax.vmap(jax.jacrev(softmax.entmax))(logits, alpha),
        jax.vmap(jax.jacfwd(softmax.entmax, 1))(logits, alpha),
    )
    return jax.vmap(softmax.entmax)(logits, alpha), *each


@partial(jit, static_argnums=0)
def slopes(function, logits):
    return jax.vmap(function)(logits), jax.vmap(jax.jacrev(function))(logits)


@pytest.mark.parametrize("file", ["softmax.json", "cross_library_softmax.json"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_and_its_relatives(file, dtype):
    """A class of logit -inf is as good as absent, so every K is padded to the largest."""
    groups = defaultdict(list)
    for row in table(file):
        groups[row["function"]].append(row)
    for name, rows in groups.items():
        logits = np.full((len(rows), 10), -np.inf, dtype)
        for i, row in enumerate(rows):
            logits[i, : len(row["logits"])] = numbers(row["logits"], dtype)
        with jax.enable_x64(dtype == np.float64):
            if name == "entmax":
                found = entmax_slopes(logits, np.array([row["alpha"] for row in rows], dtype))
            else:
                found = slopes(MAPPINGS[name], logits)
        p, jacobian, *by_alpha = map(np.asarray, found)
        assert (
            p.dtype == dtype
            and np.all(p[np.isinf(logits)] == 0)
            and np.all(np.abs(p.sum(-1) - 1) < 1e-5)
        )
        for i, row in enumerate(rows):
            k = len(row["logits"])
            # Probabilities carry the rounding of logits up to 80 apart; a class farther off has
            # none in float32.
            atol = max(256 * np.finfo(dtype).eps, row.get("atol", 0))
            for got, wanted in (
                (p[i, :k], row["value"]),
                (jacobian[i, :k, :k], row.get("jacobian")),
            ):
                # entmax beyond alpha = 2 is steep at the border of its support: p^(2 - alpha).
                if wanted is not None:
                    steep = max(1, np.max(np.abs(wanted)))
                    np.testing.assert_allclose(
                        got, wanted, rtol=0, atol=steep * atol, err_msg=str(row)
                    )
            if by_alpha and row.get("d_alpha") is not None:
                steep = 16 * max(1, np.max(np.abs(row["d_alpha"])))
                np.testing.assert_allclose(
                    by_alpha[0][i, :k], row["d_alpha"], rtol=0, atol=steep * atol
                )


@pytest.mark.parametrize("alpha", [1.0, 1.3, 1.5, 2.0, 2.5])
def test_a_fixed_alpha_is_a_traced_one(alpha):
    """Numbers take shortcuts (softmax, squares, no slope in alpha)."""
    z = np.array([[2.0, -np.inf, 1.5, 0.25], [1e4, -1e4, 0.0, 9999.5]], np.float32)
    fixed = jax.jit(partial(softmax.entmax, alpha=alpha))(z)
    np.testing.assert_allclose(
        fixed, jax.jit(softmax.entmax)(z, np.full(2, alpha, np.float32)), atol=2e-6
    )
