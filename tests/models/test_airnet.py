"""AirNet and its recipe against float64: the original script's own steps
(tests/golden/airbench.py), and numpy.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_modes import quick_compile

from cnnlab import augment, models, optim

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "airbench.json").read_text())
BATCH = 16
TOTAL = 8
EARLY = 3
SIZES = [BATCH * side**2 for side in (15, 15, 7, 7, 3, 3)]  # values of a channel in each batch norm
EPS = 2.0**-23


@pytest.fixture(autouse=True)
def in_double():
    """optax and flax mix types under 64 bits."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), quick_compile(True):
        yield


def drawn():
    """Images, labels and the seven kernels, as tests/golden/airbench.py draws them."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (BATCH, 32, 32, 3)), rng.integers(0, 10, BATCH)
    mean, std = (
        np.float32(v).astype(float) for v in ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])
    )
    widths = [(24, 64), (64, 64), (64, 256), (256, 256), (256, 256), (256, 256)]
    filters = [rng.standard_normal((3, 3, i, o)) / np.sqrt(9 * i) for i, o in widths]
    return (
        jnp.array((pixels / 255 - mean) / std),
        labels,
        [*filters, rng.standard_normal((256, 10))],
    )


def linear(peak, total_steps):
    """optax.linear_schedule, which is float32 under 64 bits too, in float64."""
    return lambda count: peak * jnp.maximum(0.0, 1 - count.astype(float) / total_steps)


@pytest.mark.slow
def test_five_steps_are_the_original_scripts(monkeypatch):
    images, labels, kernels = drawn()
    net = models.AirNet(dtype=jnp.float64)
    made = net.init(jax.random.key(0), images)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), made["params"])
    stats = jax.tree.map(lambda leaf: leaf.astype(float), made["batch_stats"])
    np.testing.assert_allclose(
        abs(stats["whitening"]), abs(np.array(GOLDEN["whitening"])), atol=2e-4, rtol=1e-4
    )
    stats["whitening"] = jnp.array(GOLDEN["whitening"])  # the signs are LAPACK's
    for i, kernel in enumerate(kernels[:-1]):
        params[f"Conv_{i}"]["kernel"] = jnp.array(kernel)
    params["Dense_0"]["kernel"] = jnp.array(kernels[-1]) / 256
    # A summed loss as there: Muon's 1e-7 beside the gradient's norm is not free of scale.
    monkeypatch.setattr(optim, "linear", linear)
    tx = optim.muon(
        linear(0.24, TOTAL),
        lambda peak: linear(peak, TOTAL),
        dtype=jnp.float64,
        head_rate=0.67 / 256**2,
        bias_rate=0.053,
        whitening_epochs=EARLY,
        momentum=0.85,
        weight_decay=2e-6 * BATCH,
    )
    targets = optax.smooth_labels(jax.nn.one_hot(labels, 10), 0.2)

    def loss(params, stats):
        logits, changed = net.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy(logits.astype(float), targets).sum(), changed[
            "batch_stats"
        ]

    @jax.jit
    def step(params, stats, opt_state):
        (value, changed), grads = jax.value_and_grad(loss, has_aux=True)(params, stats)
        updates, opt_state = tx.update(grads, opt_state, params)
        for i, n in enumerate(SIZES):  # PyTorch keeps the variance over n - 1, flax that over n
            norm = changed[f"BatchNorm_{i}"]
            before = stats[f"BatchNorm_{i}"]["var"]
            norm["var"] = 0.6 * before + (norm["var"] - 0.6 * before) * n / (n - 1)
        return optax.apply_updates(params, updates), changed, opt_state, value / BATCH

    opt_state = tx.init(params)
    losses = []
    for i in range(5):
        params, stats, opt_state, value = step(params, stats, opt_state)
        losses.append(float(value))
        if i == 0:
            filters = [name for name in GOLDEN["updates"] if "conv" in name]
            for place, name in enumerate(filters):
                first = params[f"Conv_{place}"]["kernel"].ravel()[:5]
                np.testing.assert_allclose(
                    first, GOLDEN["updates"][name]["first"], rtol=1e-8, atol=1e-9
                )
    np.testing.assert_allclose(losses, GOLDEN["losses"], rtol=1e-7)

    def apply(images):
        return net.apply({"params": params, "batch_stats": stats}, images)

    np.testing.assert_allclose(apply(images), GOLDEN["logits"], atol=1e-6)
    seen, weights = augment.averaged_views(images, "mirror_shift")
    together = sum(weight * apply(view) for weight, view in zip(weights, seen, strict=True))
    np.testing.assert_allclose(together, GOLDEN["tta_logits"], atol=1e-6)


def test_newton_schulz_is_the_original_scripts():
    for row in GOLDEN["newton_schulz"]:
        found = optim.orthogonalised(jnp.array(row["matrix"]), dtype=jnp.float64)
        np.testing.assert_allclose(found, row["result"], rtol=1e-10)


def test_whitened_patches_are_uncorrelated():
    mixed = np.array([[1, 0.9, 0.8], [0, 1, 0.5], [0, 0, 1]])
    images = np.random.default_rng(1).standard_normal((50, 9, 9, 3)) @ mixed
    kernel = np.asarray(models.whitening(jnp.array(images), eps=0.0), float)
    seen = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    seen = np.asarray(seen).reshape(-1, 24)
    np.testing.assert_allclose(seen[:, 12:], -seen[:, :12], rtol=EPS)
    # float32 moments of 3,200 patches, their eigenvalues within a factor 100
    np.testing.assert_allclose(
        seen[:, :12].T @ seen[:, :12] / len(seen), np.eye(12), atol=3_200 * EPS
    )


def test_an_image_turns_each_epoch():
    image = jnp.broadcast_to(jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1), (1_000, 1, 2, 1))

    def turned(seed, epoch, places):
        batch = {
            "image": image[: len(places)],
            "label": places,
            "index": places,
            "epoch": jnp.int32(epoch),
        }
        return np.asarray(
            augment.alternating_flip(None, batch, jax.random.key(seed))["image"][:, 0, 0, 0] == 1
        )

    places = jnp.arange(1_000, dtype=jnp.int32)
    turns = np.array([turned(3, epoch, places) for epoch in range(4)])
    assert (
        (turns[0] != turns[1]).all()
        and (turns[0] == turns[2]).all()
        and (turns[1] == turns[3]).all()
    )
    assert abs(turns[0].mean() - 0.5) < 5 * 0.5 / np.sqrt(1_000)
    assert (turns[0] != turned(4, 0, places)).any()
    # By the image, not by its place
    np.testing.assert_array_equal(turned(3, 1, places[100:110]), turns[1][100:110])


def test_initial_filters_pass_their_channels_on():
    kernel = models.first_filters_pass_on(jax.random.key(0), (3, 3, 4, 6), jnp.float64)
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, 4))
    seen = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_array_equal(seen[..., :4], x)
    assert 0 < float(abs(kernel[..., 4:]).max()) <= 1 / 6
    assert models.first_filters_pass_on(jax.random.key(0), (3, 3, 4, 2)).shape == (3, 3, 4, 2)


def test_reflected_pixels_move_in():
    image = jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    seen, weights = augment.averaged_views(image, "mirror_shift")
    assert seen.shape == (6, 1, 3, 3, 1) and float(weights.sum()) == 1
    np.testing.assert_array_equal(seen[2, 0, ..., 0], [[5, 4, 5], [2, 1, 2], [5, 4, 5]])
    np.testing.assert_array_equal(seen[1, 0, ..., 0], [[3, 2, 1], [6, 5, 4], [9, 8, 7]])


def test_linear_schedule_and_triangle():
    rate = optim.linear(0.5, 10)
    np.testing.assert_allclose([rate(i) for i in (0, 5, 9, 10)], [0.5, 0.25, 0.05, 0], atol=EPS)
    rate = optim.linear(0.5, 10, warmup=5)
    np.testing.assert_allclose([rate(i) for i in (0, 4, 5, 10)], [0, 0.4, 0.5, 0], atol=EPS)
