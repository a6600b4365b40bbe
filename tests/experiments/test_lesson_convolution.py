"""experiments/lessons/convolution.py, with its network trained on shapes10."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from lesson_example import lesson
from scipy import signal

from cnnlab.lesson import Claim
from cnnlab.models import CNN, convolution, pooling

pytestmark = pytest.mark.slow

module = lesson("convolution")
NATIVE, BLOCKED = map(convolution.Convolution, ("native", "blocked"))
CASES = [(7, 3, 1, 1), (8, 3, 0, 2), (6, 2, 2, 3), (4, 1, 1, 2)]


class AtTheTraining(Exception):
    pass


def of_layers(monkeypatch):
    """Whether each of the claims that need no training holds."""

    def trained(*args):
        raise AtTheTraining

    monkeypatch.setattr(module, "in_memory", trained)
    held = []
    with pytest.raises(AtTheTraining):
        for claim in module.teach(module.Flags()):
            held.append(claim.holds)
    return held


@pytest.fixture
def taught(tfds_root, monkeypatch):
    """change of the trained parameters -> last claim of the lesson on `tiny`, pictures, experiment,
    parameters.
    """
    pictures = []
    made = []
    train = module.in_memory
    monkeypatch.setattr(module, "compare", lambda *case: (True, True, 0.0))
    monkeypatch.setattr(
        module, "picture", lambda caption, image, **sides: pictures.append((caption, image))
    )

    def teach(change=lambda params: params):
        def trained(*args):
            experiment, progress = train(*args)
            state = progress.state.replace(params=change(progress.state.params))
            made[:] = experiment, jax.device_get(state.params)
            return experiment, replace(progress, state=state)

        monkeypatch.setattr(module, "in_memory", trained)
        with jax.numpy_dtype_promotion("standard"):  # optax.adam mixes types
            parts = list(module.teach(module.Flags(dataset="tiny", epochs=10)))
        return [part for part in parts if isinstance(part, Claim)][-1], pictures, *made

    return teach


def correlated(x, kernel, stride, padding):
    """SciPy's cross-correlation, every stride-th place of it."""
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    maps = [
        signal.correlate(x, kernel[..., d], "valid")[::stride, ::stride, 0]
        for d in range(kernel.shape[3])
    ]
    return np.stack(maps, -1)


@pytest.mark.parametrize("width,side,padding,stride", CASES)
def test_the_loops_are_scipys_cross_correlation(width, side, padding, stride):
    rng = np.random.default_rng(width)
    x, kernel = rng.normal(size=(width, width + 1, 3)), rng.normal(size=(side, side, 3, 5))
    ours = module.convolve(x, kernel, stride, padding)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, correlated(x, kernel, stride, padding), rtol=0, atol=1e-13)


def test_the_loops_by_hand():
    x = np.arange(1, 10).reshape(3, 3, 1)
    kernel = np.array([[1, 0], [0, 10]]).reshape(2, 2, 1, 1)
    np.testing.assert_array_equal(module.convolve(x, kernel, 1, 0)[..., 0], [[51, 62], [84, 95]])
    np.testing.assert_array_equal(module.convolve(x, kernel, 2, 1)[..., 0], [[10, 30], [70, 95]])


def test_the_layer_turns_no_kernel():
    x = np.array([[[1], [2], [3]]], np.float32)
    kernel = np.array([[[[100]], [[10]], [[1]]]], np.float32)
    for how in (NATIVE, BLOCKED):
        assert module.layer(x, kernel, 1, 0, how).tolist() == [[[123]]]


def test_all_claims_about_layers_hold(monkeypatch):
    assert of_layers(monkeypatch) == [True, True, True]


@pytest.mark.parametrize("how", [NATIVE, BLOCKED])
@pytest.mark.parametrize("width,side,padding,stride", CASES)
def test_compare(width, side, padding, stride, how):
    sized, within, error = module.compare(width, side, padding, stride, how)
    assert sized and within and 0 < error < 1e-5


def test_the_size_without_floor_is_refuted(monkeypatch):
    monkeypatch.setattr(
        convolution, "conv_output_size", lambda w, k, p=0, s=1: (w - k + 2 * p) / s + 1
    )
    assert not module.compare(8, 3, 0, 2, NATIVE)[0]
    assert module.compare(7, 3, 0, 2, NATIVE)[0]
    assert of_layers(monkeypatch) == [False, True, True]


@pytest.mark.parametrize(
    "change",
    [
        lambda kernel: kernel[::-1, ::-1],
        lambda kernel: kernel.astype(np.float16).astype(np.float32),
        lambda kernel: kernel * np.float32(1 + 2**-18),
    ],
    ids=["turned", "half precision", "18 bits"],
)
def test_another_kernel_is_refuted(monkeypatch, change):
    layer = module.layer
    monkeypatch.setattr(module, "layer", lambda x, kernel, *rest: layer(x, change(kernel), *rest))
    assert module.compare(8, 3, 1, 1, BLOCKED)[:2] == (True, False)


def test_other_pooling_is_refuted(monkeypatch):
    monkeypatch.setattr(module, "compare", lambda *case: (True, True, 0.0))
    monkeypatch.setattr(
        pooling, "average_pooling", lambda x, side: pooling.max_pooling(x, side, "native")
    )
    assert of_layers(monkeypatch) == [True, True, False]


def test_leaving_relu_out_is_refuted(monkeypatch):
    monkeypatch.setattr(module, "compare", lambda *case: (True, True, 0.0))
    monkeypatch.setattr(module.nn, "relu", jax.numpy.asarray)
    assert of_layers(monkeypatch) == [True, True, False]


def test_what_learnt_nothing_is_refuted(taught):
    claim, *_ = taught(
        lambda params: params | {"MLP_0": jax.tree.map(jax.numpy.zeros_like, params["MLP_0"])}
    )
    assert "learns" in claim.statement and not claim.holds


def test_the_pictures_are_of_the_trained_network(taught):
    claim, pictures, experiment, params = taught()
    assert claim.holds

    captions = [
        *(f"filter {k}" for k in range(32)),
        "test image",
        *(f"map of {k}" for k in range(16)),
    ]
    assert [caption for caption, _ in pictures] == captions
    kernel = params["Conv_0"]["kernel"]
    filters = np.stack([image for _, image in pictures[:32]], -1)
    assert filters.min() >= 0 and filters.max() <= 1
    np.testing.assert_allclose(
        (filters - 0.5) * 2 * np.abs(kernel).max(), kernel, rtol=0, atol=1e-6
    )

    image = next(experiment.test_batches())["image"][5]
    np.testing.assert_array_equal(pictures[32][1], image / 255)
    facts = experiment.facts
    normal = (image - np.array(facts.mean)) / np.array(facts.std)
    _, seen = CNN(3).apply(
        {"params": params}, normal[None].astype(np.float32), capture_intermediates=True
    )
    # float32[1, 4, 4, 32]: there pooling comes before ReLU
    (pooled,) = seen["intermediates"]["Conv_0"]["__call__"]
    maps = np.stack([image for _, image in pictures[33:]], -1)  # [8, 8, 16]
    largest = maps.reshape(4, 2, 4, 2, 16).max((1, 3))
    np.testing.assert_allclose(largest, np.maximum(pooled[0, ..., :16], 0), rtol=0, atol=1e-5)
