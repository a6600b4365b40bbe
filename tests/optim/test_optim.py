"""Schedules at hand points, and two steps of every optimizer against float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnlab import optim, spec
from cnnlab.config import Recipe
from cnnlab.parts import resolve
from cnnlab.training import network

EPS = 2.0**-23  # one ulp of float32, relative


@pytest.fixture(autouse=True)
def optax_promotes():
    """optax itself divides integer step counts by floats, in its cosine and in Adam's bias
    correction.
    """
    with jax.numpy_dtype_promotion("standard"):
        yield


def cosine_down(share):
    """Half a cosine from 0.5 to zero, after a share of it."""
    return 0.25 * (1 + math.cos(math.pi * share))


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("constant", {0: 0.5, 1: 0.5, 99: 0.5, 100: 0.5}),
        ("constant,warmup=1", {0: 0.0, 1: 0.05, 5: 0.25, 9: 0.45, 10: 0.5, 100: 0.5}),
        (
            "cosine",
            {
                0: 0.5,
                50: 0.25,
                25: cosine_down(1 / 4),
                99: 0.25 * (1 - math.cos(math.pi / 100)),
                100: 0,
            },
        ),
        (
            "cosine,warmup=2",
            {0: 0, 10: 0.25, 19: 0.475, 20: 0.5, 60: 0.25, 80: cosine_down(3 / 4), 100: 0, 120: 0},
        ),
        ("cosine,warmup=10", {0: 0.0, 50: 0.25, 99: 0.495}),
        ("cosine,warmup=0.5", {0: 0.0, 4: 0.4, 5: 0.5, 100: 0}),
        ("linear", {0: 0.5, 50: 0.25, 99: 0.005, 100: 0, 120: 0}),
        ("linear,warmup=5", {0: 0, 25: 0.25, 50: 0.5, 75: 0.25, 100: 0}),
        ("steps,at=[2,4]", {0: 0.5, 19: 0.5, 20: 0.05, 39: 0.05, 40: 0.005, 120: 0.005}),
        ("steps,at=[1.5],factor=0.5", {14: 0.5, 15: 0.25, 100: 0.25}),
        ("steps,at=[3,3.01],factor=0.5", {29: 0.5, 30: 0.125}),  # both in one step
        (
            "steps,at=[2,4],factor=0.5,warmup=1",
            {0: 0, 5: 0.25, 10: 0.5, 19: 0.5, 20: 0.25, 39: 0.25, 40: 0.125},
        ),
        (
            "steps,at=[2,4],factor=0.5,warmup=1,warmup_share=0.1",
            {0: 0.05, 9: 0.05, 10: 0.5, 19: 0.5, 20: 0.25, 39: 0.25, 40: 0.125},
        ),
        ("one_cycle", {0: 0.02, 15: 0.26, 30: 0.5, 65: 0.250001, 100: 2e-6, 120: 2e-6}),
        (
            "one_cycle,rise=0.5,start_divisor=1,end_divisor=2",
            {0: 0.5, 25: 0.5, 50: 0.5, 75: 0.375, 100: 0.25},
        ),
        (
            "restarts,period=2",
            {0: 0.5, 10: 0.25, 19: cosine_down(19 / 20), 20: 0.5, 30: 0.25, 100: 0.5, 110: 0.25},
        ),
        (
            "restarts,period=1,growth=2",
            {0: 0.5, 5: 0.25, 10: 0.5, 20: 0.25, 29: cosine_down(19 / 20), 30: 0.5},
        ),
        (
            "restarts,period=1,growth=2",
            {50: 0.25, 69: cosine_down(39 / 40), 70: 0.5, 110: 0.25, 150: 0.5},
        ),
        # 1, 1, 1, 2 steps.
        ("restarts,period=0.1,growth=1.2", {0: 0.5, 1: 0.5, 2: 0.5, 3: 0.5, 4: 0.25, 5: 0.5}),
    ],
)
def test_schedule(text, points):
    """Ten steps an epoch, ten epochs."""
    rate = resolve(Recipe.of(schedule=text)).build_schedule(
        0.5, total_steps=100, steps_per_epoch=10
    )
    for step, wanted in points.items():
        # optax computes cosines in float32 from a rounded angle: a few ulp of the peak
        assert float(rate(jnp.int32(step))) == pytest.approx(wanted, abs=4 * EPS), step


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_a_warmup_longer_than_the_run_is_refused(name):
    with pytest.raises(ValueError, match="warmup must be at most the run, 10 epochs, got 11"):
        optim.SCHEDULES[name](0.5, 100, steps_per_epoch=10, warmup=11)


def test_a_share_of_the_peak_needs_a_warmup():
    with pytest.raises(ValueError, match="warmup_share is the rate of a warm-up, which is 0"):
        optim.steps(0.5, [2], warmup_share=0.1)


PARAMS = {"kernel": [[1.0, -2.0], [3.0, 0.5]], "bias": [0.25, -1.0]}
GRADIENTS = [
    {"kernel": [[0.1, -0.4], [2.0, 0.0]], "bias": [1.0, -0.3]},
    {"kernel": [[-0.2, -0.1], [0.5, 3.0]], "bias": [0.01, 4.0]},
    {"kernel": [[1.0, 1.0], [-1.0, 0.2]], "bias": [-0.5, 0.0]},
]


def as_arrays(tree, dtype):
    return {name: np.asarray(value, dtype) for name, value in tree.items()}


def reference(
    name, rate, momentum=0.9, nesterov=True, weight_decay=0.0, decay_all=False, clip_norm=None
):
    """The textbook's update in float64, decay on kernels unless on all; adamw's is decoupled and
    scaled by the rate.
    """
    params = as_arrays(PARAMS, np.float64)
    first, second = ({k: np.zeros_like(v) for k, v in params.items()} for _ in range(2))
    for step, gradient in enumerate(GRADIENTS, 1):
        gradient = as_arrays(gradient, np.float64)
        norm = math.sqrt(sum((g**2).sum() for g in gradient.values()))
        for k, p in params.items():
            g = gradient[k] * (1 if clip_norm is None else min(1, clip_norm / norm))
            decay = weight_decay * p if k == "kernel" or decay_all else 0
            if name != "adamw":
                g = g + decay
            if name == "sgd":
                first[k] = momentum * first[k] + g
                params[k] = p - rate * (g + momentum * first[k] if nesterov else first[k])
                continue
            first[k] = 0.9 * first[k] + 0.1 * g
            second[k] = 0.999 * second[k] + 0.001 * g**2
            update = (first[k] / (1 - 0.9**step)) / (np.sqrt(second[k] / (1 - 0.999**step)) + 1e-8)
            params[k] = p - rate * (update + (decay if name == "adamw" else 0))
    return params


def built(optimizer, rate, clip_norm=None):
    """The optimizer of a run, whose rate is constant."""
    recipe = Recipe.of(
        optimizer=optimizer, learning_rate=rate, schedule="constant", clip_norm=clip_norm
    )
    return network.build_optimizer(recipe, resolve(recipe), steps_per_epoch=10)


@pytest.mark.parametrize(
    ("name", "options", "clip_norm"),
    [
        ("adam", {"weight_decay": 0.1}, None),
        ("adamw", {"weight_decay": 0.1}, None),
        ("sgd", {"weight_decay": 0.1}, None),
        ("sgd", {"weight_decay": 0.1, "momentum": 0.9, "nesterov": False}, 1.0),
        ("sgd", {"weight_decay": 0.1, "decay_all": True}, 1.0),
    ],
)
def test_decay_is_of_what_it_says_and_comes_after_clipping(name, options, clip_norm):
    """What is ours in them; the updates themselves are Optax's."""
    wanted = reference(name, 0.1, clip_norm=clip_norm, **options)
    tx = built(str(spec.Spec(name, options)), 0.1, clip_norm)
    params = jax.tree.map(jnp.asarray, as_arrays(PARAMS, np.float32))
    state = tx.init(params)
    update = jax.jit(tx.update)
    for gradient in GRADIENTS:
        updates, state = update(as_arrays(gradient, np.float32), state, params)
        params = {k: params[k] + updates[k] for k in params}
    for k in params:
        # three updates of at most 1 in total size, each rounded about ten times; Adam's 1 -
        # 0.999**t is float32 and loses ten bits to cancellation (2**-23 / 0.001 of it, halved by
        # the root)
        lost = 500 * EPS * 0.3 if name.startswith("adam") else 0
        np.testing.assert_allclose(params[k], wanted[k], rtol=0, atol=16 * EPS + lost)


def test_a_schedule_as_rate_starts_at_step_zero():
    tx = optim.sgd(optim.constant(1.0, warmup=2), momentum=0.0)
    params = {"bias": jnp.zeros(1)}
    state = tx.init(params)
    moved = []
    for _ in range(4):
        updates, state = tx.update({"bias": jnp.ones(1)}, state, params)
        moved.append(float(updates["bias"][0]))
    assert moved == [0.0, -0.5, -1.0, -1.0]


def test_clipping_leaves_short_gradients_alone():
    tx = built("sgd,momentum=0", 1.0, clip_norm=5.0)
    params = {"bias": jnp.zeros(2)}
    for gradient, wanted in (
        ([3.0, 4.0], [-3.0, -4.0]),
        ([30.0, 40.0], [-3.0, -4.0]),
        ([0.0, 0.0], [0.0, 0.0]),
    ):
        updates, _ = tx.update({"bias": jnp.array(gradient)}, tx.init(params), params)
        np.testing.assert_allclose(updates["bias"], wanted, rtol=2 * EPS)


def test_nesterov_is_a_form_of_momentum():
    for nesterov in (True, False):
        with pytest.raises(ValueError, match="nesterov is a form of momentum, which is 0"):
            optim.sgd(0.1, momentum=0.0, nesterov=nesterov)


def test_decay_of_all_is_a_form_of_decay():
    with pytest.raises(ValueError, match="decay_all is a form of weight_decay, which is 0"):
        optim.sgd(0.1, decay_all=True)
