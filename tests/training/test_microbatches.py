"""A step taken in microbatches is the step of the whole batch, in less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_modes import lenient
from small_data import drawn
from stepping import taken

from cnnlab import collectives, losses, optim
from cnnlab.config import Config
from cnnlab.data.facts import DataFacts
from cnnlab.errors import InputError
from cnnlab.models import MLP
from cnnlab.parts import resolve
from cnnlab.tpu import slices
from cnnlab.training import devices, experiment, network, program
from cnnlab.training.step import Objective, StepParts, create_state, train_step, zero_totals

BATCH = 32
# Everything that draws: dropout, mixed labels, and views whose logits the loss takes.
DRAWN = Config.of(
    dataset="tiny", model="cnn,widths=[4],hidden=[6],dropout=0.3", loss="jensen_shannon",
    augment="mixup,alpha=0.4+views,count=2+flip+crop,padding=1", batch_size=BATCH,
    validation=0.2, learning_rate=0.01, devices=1,
)  # fmt: skip
FACTS = DataFacts(
    class_names=tuple("abcdefghij"), image_shape=(32, 32, 3), mean=(127.5,) * 3, std=(60.0,) * 3,
    class_counts=(400,) * 10, num_images=4000,
)  # fmt: skip


@pytest.fixture(autouse=True)
def data(tfds_root):
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        yield


@functools.cache
def whole(steps, dtype):
    return taken(DRAWN, None, steps, dtype)


def compare(found, wanted, tolerance, scale, seed=None):
    assert found.keys() == wanted.keys()
    for name, leaf in wanted.items():
        ours = found[name] if seed is None else found[name][seed]
        if leaf.dtype == np.int32:
            np.testing.assert_array_equal(ours, leaf, err_msg=name)
        elif name not in ("loss", "accuracy", "ece"):  # those of the validation are float32 sums
            larger = scale if name == "[1]['loss']" else 1  # a sum over that many examples
            np.testing.assert_allclose(ours, leaf, rtol=0, atol=tolerance * larger, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "seeds"),
    [
        ({"microbatches": 4}, None),
        ({"microbatches": BATCH}, None),
        ({"microbatches": 4, "devices": 4, "parallel": "pmap"}, None),
        ({"microbatches": 2, "devices": 8, "parallel": "sharded"}, None),
        ({"microbatches": 8, "devices": 2, "dispatch_steps": 2}, [0, 1]),
        ({"devices": 4, "parallel": "pmap"}, None),
    ],
)
def test_the_step_of_the_whole_batch(changes, seeds):
    """Measured: at most 7e-16 after 4 steps."""
    found = taken(DRAWN.replace(**changes), seeds, 4, "float64")
    compare(found, whole(4, "float64"), 1e-12, 4 * BATCH, None if seeds is None else 0)
    before = whole(0, "float64")
    moved = [np.abs(found[name] - before[name]).max() for name in before if ".params" in name]
    assert seeds or min(moved) > 1e-3  # the comparison is of something


def test_examples_keep_their_keys():
    key = jax.random.key(3)
    wanted = jax.random.key_data(collectives.example_keys(key, 16))

    def in_parts(count, axis_name=None, size=16):
        def keys_of(number):
            with collectives.microbatch(number, count):
                keys = collectives.example_keys(key, size // count, axis_name)
            return jax.random.key_data(keys)

        return jax.lax.map(keys_of, jnp.arange(count)).reshape(size, -1)

    np.testing.assert_array_equal(jax.jit(in_parts, static_argnums=0)(4), wanted)
    layout = devices.layout(Config.of(parallel="sharded", devices=4).machine, 16)
    shared = layout.compile(
        lambda x, *, axis_name: jax.lax.all_gather(
            in_parts(2, axis_name, len(x)), axis_name, tiled=True
        ),
        (devices.BATCH,),
    )(np.zeros(16, np.float32))
    np.testing.assert_array_equal(shared, wanted)
    # and outside of a microbatch nothing is left of it
    np.testing.assert_array_equal(jax.random.key_data(collectives.example_keys(key, 16)), wanted)


def step_of(model, microbatches, loss, asks=frozenset(), teacher=None, dtype="float32"):
    """A compiled step on 12 images, and the state after it."""
    images, labels = drawn(12, 3, (4, 4, 3), seed=0)
    batch = {"image": images.astype(dtype) / 64, "label": labels}
    parts = StepParts(
        apply_fn=network.apply_for_training(model, "features" in asks),
        objective=Objective(loss, asks, teacher=teacher),
        tx=lenient(optim.sgd(0.1, momentum=0.0)),
        prepare=lambda batch, *_: batch,
        microbatches=microbatches,
    )
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0), batch["image"])
    state = create_state(jax.tree.map(lambda leaf: leaf.astype(dtype), variables), parts.tx)
    step = jax.jit(functools.partial(train_step, parts=parts))
    return step(state, zero_totals(dtype), batch, jax.random.key(1)), (model, variables, batch)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4, 12])
def test_what_a_loss_asks_for_is_that_of_its_examples(count):
    """Features, and a teacher's logits of the very images."""

    def loss(logits, labels, features, teacher_logits):
        pull = jnp.sum(features**2, -1) + jnp.sum((logits - teacher_logits) ** 2, -1)
        return losses.cross_entropy(logits, labels) + 0.1 * pull

    def teacher(images):
        return images.reshape(len(images), -1)[:, :3]

    asks = frozenset({"features", "teacher_logits"})
    with jax.enable_x64(True):
        model = MLP(3, hidden=(5,))
        found, wanted = (
            step_of(model, number, loss, asks, teacher, "float64")[0] for number in (count, 1)
        )
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_batch_norm_sees_a_microbatch_and_its_statistics_pass_on():
    model = MLP(3, hidden=(5,), batch_norm=True)
    (after, _), (_, variables, batch) = step_of(model, 3, losses.cross_entropy)
    images = batch["image"].reshape(3, 4, 4, 4, 3)
    labels = batch["label"].reshape(3, 4)
    stats, sums = variables["batch_stats"], 0

    @functools.partial(jax.jit, static_argnums=2)
    @functools.partial(jax.grad, has_aux=True)
    def gradient(params, stats, number):
        logits, changed = model.apply(
            {"params": params, "batch_stats": stats}, images[number], train=True,
            mutable=["batch_stats"],
        )  # fmt: skip
        return losses.cross_entropy(logits, labels[number]).mean(), changed["batch_stats"]

    for number in range(3):
        grads, stats = gradient(variables["params"], stats, number)
        sums = grads if number == 0 else jax.tree.map(jnp.add, sums, grads)
    params = jax.tree.map(lambda p, g: p - 0.1 * g / 3, variables["params"], sums)
    wanted = {"params": params, "batch_stats": stats}
    found = {"params": after.params, "batch_stats": after.batch_stats}
    # float32 sums of 12 terms of order one, in another order
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5),
        found,
        wanted,
    )
    (once, _), _ = step_of(model, 1, losses.cross_entropy)
    gap = jax.tree.map(lambda a, b: np.abs(a - b).max(), once.batch_stats, after.batch_stats)
    assert min(jax.tree.leaves(gap)) > 1e-3


def cost(microbatches, model="cnn,widths=[16,32],hidden=[32]"):
    """What a step of 512 images needs, by the compiler's count."""
    config = Config.of(
        batch_size=512, microbatches=microbatches, devices=1, augment="none", model=model
    )
    parts = resolve(config.recipe)
    layout = experiment.choose_layout(config, parts)
    return slices.cost(program.build(config, parts, layout, FACTS))


@pytest.mark.slow
def test_memory_falls():
    """By the compiler's count. The prepared batch stays, and as many bytes as the parameters a few
    times over: gradients of a microbatch and of all, what updates them, transformed kernels.
    """
    whole_batch = cost(1).temporaries
    batch = 512 * 32 * 32 * 3 * 4
    parameters = (9 * 3 * 16 + 16 + 9 * 16 * 32 + 32 + 8 * 8 * 32 * 32 + 32 + 32 * 10 + 10) * 4
    for count in (2, 8, 32):
        assert cost(count).temporaries < batch + whole_batch / count + 8 * parameters, count


@pytest.mark.slow
def test_plans_count_the_operations_of_all_microbatches():
    """XLA counts the body of a loop once. Products, which are nearly all here, are those of the
    whole batch; what is outside of the loop is counted eight times.
    """
    whole_batch, parts = cost(1, "mlp,hidden=[512]"), cost(8, "mlp,hidden=[512]")
    np.testing.assert_allclose(parts.flops, whole_batch.flops, rtol=0.1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"microbatches": 3},
            "--microbatches 3 does not divide the 32 images of a device (--batch-size 32); choose",
        ),
        (
            {"microbatches": 16, "devices": 4},
            "does not divide the 8 images of a device (--batch-size 32 over 4 devices)",
        ),
        ({"microbatches": 64}, "--microbatches 64 does not divide the 32 images"),
        ({"microbatches": 0}, "--microbatches must lie in [1, 1000000], got 0"),
    ],
)
def test_what_cannot_be_divided(changes, words):
    with pytest.raises(InputError) as error:
        config = DRAWN.replace(**changes)
        experiment.choose_layout(config, resolve(config.recipe))
    assert words in str(error.value) and len(str(error.value).splitlines()) == 1


def test_batch_statistics_of_microbatches_are_announced():
    config = DRAWN.replace(model="mlp,hidden=[4],batch_norm=true", loss="ce", augment="none")
    assert experiment.build(config).notices() == []
    (line,) = experiment.build(config.replace(microbatches=4)).notices()
    assert "with --microbatches 4 they are those of 8 images" in line
    plain = config.replace(microbatches=4, model="mlp,hidden=[4]")
    assert experiment.build(plain).notices() == []
