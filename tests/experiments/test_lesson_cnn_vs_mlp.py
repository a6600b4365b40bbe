"""CNN against MLP: parameters by hand, shifts by hand, and claims that follow classifiers made for
the purpose.
"""

import jax
import numpy as np
import pytest
from flax import linen as nn
from lesson_example import claims, lesson

from cnnlab import models
from cnnlab.models import MLP

pytestmark = pytest.mark.slow


@pytest.fixture
def script():
    return lesson("cnn_vs_mlp")


def test_parameters_by_hand(script):
    assert script.parameters(nn.Conv(32, (3, 3))) == 3 * 3 * 3 * 32 + 32
    assert script.parameters(models.MLP(hidden=(177,))) == 3072 * 177 + 177 + 177 * 10 + 10
    dense = nn.Sequential([lambda x: x.reshape(1, -1), nn.Dense(7)])
    assert script.parameters(dense) == 3072 * 7 + 7


def test_one_order_of_pixels_for_all_images(script):
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), np.uint8)
    other = script.shuffled(images)
    assert other.shape == images.shape and not np.array_equal(other, images)

    def pixels(images):
        return images.reshape(len(images), 1024, 3)

    for before, after in zip(pixels(images), pixels(other), strict=True):  # whole pixels, none lost
        assert sorted(map(tuple, before)) == sorted(map(tuple, after))
    np.testing.assert_array_equal(script.shuffled(images[3:4])[0], other[3])


def test_shares_after_shifts_by_hand(script):
    """A classifier that sees one pixel: 1 where it is white. White squares of 9x9 around it, or
    none.
    """
    images = np.zeros((4, 32, 32, 3), np.uint8)
    images[:2, 12:21, 12:21] = 255  # two with the square, which is centred on pixel (16, 16)

    def classify(images):
        return (images[:, 16, 16, 0] > 0).astype(int)

    labels = np.array([1, 0, 0, 1])  # right unshifted: the first and the third
    found = script.after_shifts(classify, images, labels)
    # By 2 and 4 pixels the square still covers it; by 8 the first becomes wrong, the second right.
    np.testing.assert_allclose(found, [[0.5, 1], [0.5, 1], [0.5, 1], [0.5, 0.5]])


def test_what_is_trained_learns_and_what_is_not_does_not(script):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (128, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, 128)
    with jax.numpy_dtype_promotion("standard"):  # optax.adam and its schedules mix types

        def share(steps):
            return np.mean(
                script.trained(models.MLP(hidden=(64,)), images, labels, steps)(images) == labels
            )

        short, longer = share(1), share(40)
    assert short < 0.8 and longer > 0.95  # by heart


def taught(script, monkeypatch, chances):
    """The claims where of ten images networks get so many right: as they are, with shuffled pixels,
    shifted.
    """

    def trained(model, images, labels):
        right, shuffled, shifted = chances[type(model).__name__]

        def classify(shown):
            kind = shown[0, 0, 0].tolist()
            share = {(0, 1, 0): right, (0, 0, 1): shuffled}.get(tuple(kind), shifted)
            return np.where(np.arange(len(shown)) % 10 < share, 0, 1)

        return classify

    plain = np.zeros((1000, 32, 32, 3), np.uint8)
    # Told apart by their first pixel: untouched, shuffled, anything else shifted.
    plain[:, 0, 0, 1] = 1

    def shuffled(images):
        other = np.zeros_like(images)
        other[:, 0, 0, 2] = 1
        return other

    summary = type("Summary", (), {"labels": np.zeros(1000, int)})
    monkeypatch.setattr(script, "trained", trained)
    monkeypatch.setattr(script, "shuffled", shuffled)
    monkeypatch.setattr(
        script.catalogue, "open_dataset", lambda *args: type("Data", (), {"train": 0, "test": 0})
    )
    monkeypatch.setattr(script.contents, "decoded", lambda *args: (plain, summary))
    return [claim.holds for claim in claims(script, script.Flags())]


def test_claims_follow_the_networks(script, monkeypatch):
    usual = {"CNN": (8, 4, 6), "MLP": (5, 5, 3)}  # keeps 6 of 8 and 3 of 5
    assert taught(script, monkeypatch, usual) == [True, True, True, True]
    # No better
    assert taught(script, monkeypatch, usual | {"CNN": (5, 4, 4)}) == [
        True,
        False,
        True,
        True,
    ]
    # Better shuffled too
    assert taught(script, monkeypatch, usual | {"CNN": (8, 7, 6)}) == [
        True,
        True,
        False,
        True,
    ]
    # The MLP is not as good
    assert taught(script, monkeypatch, usual | {"MLP": (5, 3, 3)}) == [
        True,
        True,
        False,
        True,
    ]
    # Loses as much
    assert taught(script, monkeypatch, usual | {"CNN": (8, 4, 4)}) == [
        True,
        True,
        True,
        False,
    ]


def test_networks_of_unequal_size_are_no_comparison(script, monkeypatch):
    def smaller(*args, hidden=None, **options):
        return MLP(hidden=(20,)) if hidden else MLP(*args, **options)  # also the CNN's end

    monkeypatch.setattr(script.models, "MLP", smaller)
    usual = {"CNN": (8, 4, 6), "MLP": (5, 5, 3)}
    assert taught(script, monkeypatch, usual) == [True, False, True, True]
