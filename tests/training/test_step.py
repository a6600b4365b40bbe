"""One golden step against float64 numpy, and what a step must keep: totals, the first bad step, the
key.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax_modes import lenient
from small_data import drawn

from cnnlab import augment, losses, optim, parts
from cnnlab.config import Config, Recipe
from cnnlab.data.facts import DataFacts
from cnnlab.training import network, program
from cnnlab.training.step import (
    EARLY,
    NEVER,
    LossScale,
    Objective,
    StepParts,
    create_state,
    eval_step,
    train_step,
    zero_totals,
)

CLASSES = 4
BATCH = 6
RATE = 0.1
IMAGES, LABELS = drawn(BATCH, CLASSES, (3, 3, 2), seed=0)
MEAN, STD = np.array([100.0, 90.0]), np.array([50.0, 60.0])
NORMALISED = ((IMAGES.astype(np.float64) - MEAN) / STD).reshape(BATCH, -1)
FACTS = DataFacts(
    class_names=("a", "b", "c", "d"), image_shape=(3, 3, 2), mean=tuple(MEAN.tolist()),
    std=tuple(STD.tolist()), class_counts=tuple(np.bincount(LABELS, minlength=CLASSES).tolist()),
)  # fmt: skip
PART = {"image": IMAGES, "label": LABELS, "index": np.arange(BATCH, dtype=np.int32)}
CONFIG = Config.of(model="softmax_regression", augment="none")


def build(config=CONFIG, loss_fn=losses.cross_entropy, tx=None, scale=None, **objective):
    """The compiled step and a state with known parameters."""
    resolved = parts.resolve(config.recipe)
    model = resolved.build_model(CLASSES, config.recipe.compute_dtype)
    tx = tx or optim.sgd(RATE, momentum=0.0)
    operations = resolved.pipeline(CLASSES, None, mirror=True)
    made = Objective(loss_fn, **objective)
    step_parts = StepParts(
        apply_fn=network.apply_for_training(model, "features" in made.asks),
        objective=made,
        tx=tx,
        prepare=functools.partial(program._prepare, operations, network.statistics(FACTS)),
        pixels=lambda images: augment.pixels(images, *network.statistics(FACTS)),
    )
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 3, 3, 2), jnp.float32))
    step = jax.jit(functools.partial(train_step, parts=step_parts))
    state = create_state(variables, tx)
    if scale is not None:
        state = state.replace(loss_scale=LossScale(jnp.float32(scale), jnp.int32(0)))
    return step, state


def reference(kernel, bias):
    """Softmax regression by hand, float64: probabilities, mean loss, hits, parameters after one
    step.
    """
    x = NORMALISED
    logits = x @ kernel + bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[np.arange(BATCH), LABELS]).mean()
    error = (p - np.eye(CLASSES)[LABELS]) / BATCH
    hits = int((logits.argmax(1) == LABELS).sum())
    return loss, hits, kernel - RATE * x.T @ error, bias - RATE * error.sum(0)


def weights(state):
    dense = state.params["Dense_0"]
    return np.asarray(dense["kernel"], np.float64), np.asarray(dense["bias"], np.float64)


def test_two_golden_steps():
    step, state = build()
    kernel, bias = weights(state)
    totals = zero_totals()
    loss_sum = 0.0
    hit_sum = 0
    for number in (1, 2):
        before = kernel, bias
        loss, hits, kernel, bias = reference(kernel, bias)
        moved = (
            sum(np.sum((new - old) ** 2) for new, old in zip((kernel, bias), before, strict=True))
            ** 0.5
        )
        loss_sum = loss_sum + loss * BATCH
        hit_sum = hit_sum + hits
        state, totals = step(state, totals, PART, jax.random.key(0))
        np.testing.assert_allclose(weights(state)[0], kernel, rtol=0, atol=2e-6)
        np.testing.assert_allclose(weights(state)[1], bias, rtol=0, atol=2e-6)
        np.testing.assert_allclose(totals["loss"], loss_sum, rtol=1e-5)
        assert (int(state.step), int(totals["count"]), int(totals["correct"])) == (
            number,
            number * BATCH,
            hit_sum,
        )
        assert int(totals["bad_step"]) == NEVER
        np.testing.assert_allclose(totals["gradient_norms"][number - 1], moved / RATE, rtol=1e-5)
    assert not np.any(totals["gradient_norms"][2:])


def test_scaling_a_loss_by_a_power_of_two_changes_no_bit():
    results = []
    for scale in (None, 1024):
        step, state = build(scale=scale)
        after, totals = step(state, zero_totals(), PART, jax.random.key(0))
        results.append((after.replace(loss_scale=None), totals))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_what_float16_would_lose_is_kept_by_a_scaled_loss():
    """A gradient of 2^-25 at the logits is 0 in float16; 1024 times that is not."""

    def tiny(logits, labels):
        return jnp.sum(logits, -1) * jnp.float32(2**-25)

    moves = []
    for scale in (1.0, 1024.0):
        config = CONFIG.replace(compute_dtype="float16")
        step, state = build(config, loss_fn=tiny, tx=optim.sgd(2.0**25, momentum=0.0), scale=scale)
        after, _ = step(state, zero_totals(), PART, jax.random.key(0))
        moves.append(weights(state)[0] - weights(after)[0])
    assert not np.any(moves[0])
    # A sixth of 2^-15 from each image, to half of float16's smallest number, 2^-24, is off by 6 *
    # 2^-10 of itself at most; so are sums of its products with images in magnitudes. The sum itself
    # is rounded so too, and the images to half of 2^-10.
    size = np.abs(NORMALISED).mean(0)[:, None]
    excess = np.abs(moves[1] - NORMALISED.mean(0)[:, None]) - (6 + 1) * 2**-10 * size
    assert np.all(excess <= 2**-10 + 2**-22), excess.max()  # half of 2^-24, scaled; the weights


def test_a_step_that_overflows_float16_is_left_out_and_the_scale_halved():
    """Each image's gradient at the logits is 2^4 / 6; float16 ends at 65504, just below 2^16."""

    def steep(logits, labels):
        return jnp.sum(logits, -1) * jnp.float32(2**4)

    config = CONFIG.replace(compute_dtype="float16")
    step, state = build(config, loss_fn=steep, tx=lenient(optim.adam(RATE)), scale=2**15)
    after, totals = step(state, zero_totals(), PART, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, state.opt_state)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    assert (int(after.step), float(after.loss_scale.factor)) == (1, 2**14)
    assert int(totals["bad_step"]) == NEVER and totals["gradient_norms"][0] == 0
    while after.loss_scale.factor > 2**10:
        previous = after
        after, totals = step(after, totals, PART, jax.random.key(0))
        moved = np.any(weights(after)[1] != weights(previous)[1])
        assert moved == (after.loss_scale.factor == previous.loss_scale.factor)
        if moved:
            break
    # The gradient by the kernel sums that times each image's pixels.
    largest = 2**4 * np.abs(NORMALISED.sum(0)).max() / 6
    fitting = 2.0 ** np.floor(np.log2(65504 / largest))
    assert moved and after.loss_scale.factor == fitting < 2**14 and after.loss_scale.steps == 1
    assert np.all(np.isfinite(totals["gradient_norms"])) and int(totals["bad_step"]) == NEVER


def test_a_loss_that_no_scale_helps_is_a_bad_step():
    config = CONFIG.replace(compute_dtype="float16")
    step, state = build(config, loss_fn=lambda z, y: jnp.sum(z, -1) * 1e9, scale=1)
    after, totals = step(state, zero_totals(), PART, jax.random.key(0))
    assert int(totals["bad_step"]) == 0 and not np.all(np.isfinite(weights(after)[0]))


def test_a_loss_scale_doubles_after_2000_finite_steps():
    scale = LossScale(jnp.float32(8), jnp.int32(1998))
    for finite, factor, steps in ((True, 8, 1999), (True, 16, 0), (True, 16, 1), (False, 8, 0)):
        scale = scale.after(jnp.bool_(finite))
        assert (float(scale.factor), int(scale.steps)) == (factor, steps)
    for _ in range(5):
        scale = scale.after(jnp.bool_(False))
    assert scale.factor == 1


def test_only_early_gradients_are_kept():
    step, state = build()
    full = zero_totals() | {"count": jnp.int32(EARLY * BATCH)}
    _, totals = step(state, full, PART, jax.random.key(0))
    assert not np.any(totals["gradient_norms"])


@pytest.mark.slow
def test_state_keeps_its_shapes_and_may_be_donated():
    config = Config.of(model="cnn,widths=[2],hidden=[3],batch_norm=true,dropout=0.5")
    step, state = build(config, tx=lenient(optim.adam(1e-3)))

    def describe(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    kept = jax.tree.map(np.array, state)
    wanted, _ = step(state, zero_totals(), PART, jax.random.key(0))
    assert describe(wanted) == describe(state)
    donated = jax.jit(step, donate_argnums=0)
    found, _ = donated(jax.tree.map(jnp.asarray, kept), zero_totals(), PART, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    before = kept.batch_stats
    after = wanted.batch_stats
    assert all(
        (a != b).any() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    )


def test_the_first_step_that_is_not_finite_is_kept():
    def nan(logits, labels):
        return losses.cross_entropy(logits, labels).at[0].set(jnp.nan)

    good, state = build()
    bad, _ = build(loss_fn=nan)
    totals = zero_totals()
    key = jax.random.key(0)
    state, totals = good(state, totals, PART, key)
    assert int(totals["bad_step"]) == NEVER
    state, totals = bad(state, totals, PART, key)
    assert int(totals["bad_step"]) == 1
    state, totals = good(state, totals, PART, key)  # its parameters are NaN by now
    assert (int(state.step), int(totals["bad_step"])) == (3, 1)


def test_parameters_that_overflow_under_a_finite_loss_are_seen():
    explode = optax.GradientTransformation(
        lambda params: (),
        lambda grads, state, params=None: (
            jax.tree.map(lambda g: g * jnp.float32(jnp.inf), grads),
            state,
        ),
    )
    step, state = build(tx=explode)
    _, totals = step(state, zero_totals(), PART, jax.random.key(0))
    assert np.isfinite(totals["loss"]) and int(totals["bad_step"]) == 0


def test_the_step_is_folded_into_the_key():
    config = Config.of(model="mlp,hidden=[32],dropout=0.5", augment="none")
    step, state = build(config)

    def first(state, key):
        return np.asarray(step(state, zero_totals(), PART, key)[1]["loss"])

    def at(number):
        return state.replace(step=jnp.int32(number))

    assert first(at(3), jax.random.key(0)) == first(at(3), jax.random.key(0))
    draws = {
        float(first(at(number), jax.random.key(seed))) for number in range(3) for seed in range(2)
    }
    assert len(draws) == 6


@pytest.mark.slow
def test_augmentation_and_dropout_draw_from_different_keys():
    resolved = parts.resolve(Recipe.of(model="mlp,hidden=[4]", augment="none"))
    seen = []

    def prepare(batch, key, run_key, axis_name):
        seen.extend([key, run_key])
        return program._prepare((), network.statistics(FACTS), batch, key, run_key, axis_name)

    inner = network.apply_for_training(resolved.build_model(CLASSES))

    def apply_fn(variables, images, key):
        seen.append(key)
        return inner(variables, images, key)

    tx = optim.sgd(RATE)
    _, state = build(Config.of(model="mlp,hidden=[4]", augment="none"), tx=tx)
    step_parts = StepParts(apply_fn, Objective(losses.cross_entropy), tx, prepare)
    for step in (0, 1):
        at = state.replace(step=jnp.int32(step))
        train_step(at, zero_totals(), PART, jax.random.key(0), parts=step_parts)
    words = [tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in seen]
    assert len(words) == 6 and words[1] == words[4]  # the run's key is the same at every step
    assert len(set(words)) == 5


def test_a_loss_is_given_what_it_asks_for():
    """Progress and epoch by the step, the teacher's logits of the very pixels, the input of the
    last layer.
    """
    seen = []

    def asking(logits, labels, teacher_logits, view_logits, progress, epoch, features):
        seen.append(
            jax.tree.map(jnp.shape, (teacher_logits, view_logits, progress, epoch, features))
        )
        jax.debug.callback(
            lambda *values: seen.append([np.array(value) for value in values]),
            progress,
            epoch,
            teacher_logits,
        )
        return losses.cross_entropy(logits, labels) + 0 * jnp.sum(features, -1)

    asks = frozenset({"teacher_logits", "view_logits", "progress", "epoch", "features"})
    config = Config.of(model="mlp,hidden=[5]", augment="views,count=2+flip")

    def teacher(pixels):
        return pixels.reshape(len(pixels), -1)[:, :CLASSES]

    step, state = build(
        config, asking, asks=asks, total_steps=20, steps_per_epoch=5, teacher=teacher
    )
    step(state.replace(step=jnp.int32(7)), zero_totals(), PART, jax.random.key(0))[1][
        "loss"
    ].block_until_ready()
    jax.effects_barrier()
    shapes, (progress, epoch, taught) = seen
    assert shapes == ((BATCH, CLASSES), (2, BATCH, CLASSES), (), (), (BATCH, 5))
    assert (progress, epoch) == (np.float32(7 / 20), 1)
    either = [images.reshape(BATCH, -1)[:, :CLASSES] for images in (IMAGES, IMAGES[:, :, ::-1])]
    for image, plain, mirrored in zip(taught, *either, strict=True):
        assert np.allclose(image, plain, rtol=1e-4) or np.allclose(image, mirrored, rtol=1e-4)


def test_in_evaluation_the_run_is_over_and_an_image_is_its_only_view():
    def asking(logits, labels, view_logits, progress, epoch):
        return jnp.stack(
            [
                progress,
                epoch.astype(progress.dtype),
                jnp.sum(view_logits == logits[None], dtype=progress.dtype),
            ]
        )

    objective = Objective(asking, frozenset({"view_logits", "progress", "epoch"}), 20, 5)
    logits = jnp.ones((BATCH, CLASSES), jnp.float32)
    found = objective(logits, LABELS, pixels=lambda: IMAGES, features=None)
    np.testing.assert_array_equal(found, [1, 3, BATCH * CLASSES])


@pytest.mark.parametrize("filler", [0, 255])
def test_padding_does_not_count_in_evaluation(filler):
    _, state = build()
    model = parts.resolve(CONFIG.recipe).build_model(CLASSES)
    apply_fn = network.apply_for_evaluation(model, FACTS)
    objective = Objective(losses.cross_entropy)
    step = jax.jit(functools.partial(eval_step, apply_fn=apply_fn, objective=objective))
    images = IMAGES.copy()
    labels = LABELS.copy()
    images[4:] = filler
    labels[4:] = 1
    padded = {"image": images, "label": labels, "mask": np.arange(BATCH) < 4}
    whole = {"image": IMAGES[:4], "label": LABELS[:4], "mask": np.ones(4, bool)}
    found, wanted = (step(state.variables, part) for part in (padded, whole))
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6, err_msg=name)
    x = ((IMAGES[:4].astype(np.float64) - MEAN) / STD).reshape(4, -1)
    logits = x @ weights(state)[0] + weights(state)[1]
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(found["loss"], -logp[np.arange(4), LABELS[:4]].sum(), rtol=1e-5)
    confusion = np.zeros((CLASSES, CLASSES), int)
    np.add.at(confusion, (LABELS[:4], logits.argmax(1)), 1)
    np.testing.assert_array_equal(found["confusion"], confusion)
