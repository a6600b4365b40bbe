"""The four steps: equal to the library's, found out where one of them is another, and updates by
hand values.
"""

import jax
import numpy as np
import pytest
from lesson_example import claims, lesson

from cnnlab.losses import label_smoothing

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def standard_promotion():
    """optax.adam and its schedules mix types."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def script():
    return lesson("training")


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_by_hand_and_by_library_the_same(script, name):
    with jax.enable_x64(True):
        assert script.compare(getattr(script, name)).holds


def broken_adam(p, gradient, memory, t):
    """Without the correction of the moments' bias."""
    m = 0.9 * memory[0] + 0.1 * gradient
    v = 0.999 * memory[1] + 0.001 * gradient**2
    return p - 0.001 * m / (v**0.5 + 1e-8), (m, v)


def test_another_update_is_found_out(script):
    broken_adam.__name__ = "adam"
    with jax.enable_x64(True):
        assert not script.compare(broken_adam).holds


def test_another_loss_is_found_out(script, monkeypatch):
    """The library descends on the loss that it is given, the steps by hand on one that is smoothed
    a little.
    """
    given = script.Objective(script.cross_entropy)
    monkeypatch.setattr(script, "Objective", lambda loss: given)
    monkeypatch.setattr(script, "cross_entropy", label_smoothing(script.cross_entropy, 1e-4))
    with jax.enable_x64(True):
        assert not script.compare(script.sgd).holds


def test_updates_by_hand_values(script):
    # From 1 with the gradient 2, then 3: Nesterov's step looks ahead along the velocity 2, then 3 +
    # 0.9 * 2 = 4.8.
    p, memory = script.sgd(1.0, 2.0, (0.0, 0.0), 1)
    assert p == pytest.approx(1 - 0.05 * (2 + 0.9 * 2))
    assert script.sgd(p, 3.0, memory, 2)[0] == pytest.approx(p - 0.05 * (3 + 0.9 * 4.8))
    # Adam's first step has the rate's length, whatever the gradient; the second: m 0.18 + 0.3, v
    # 0.003996 + 0.009.
    p, memory = script.adam(1.0, 2.0, (0.0, 0.0), 1)
    assert p == pytest.approx(1 - 0.001, abs=1e-10)
    step = 0.001 * (0.48 / 0.19) / np.sqrt(0.012996 / 0.001999)
    assert script.adam(p, 3.0, memory, 2)[0] == pytest.approx(p - step, abs=1e-10)


def drawn(script, monkeypatch, losses, accuracy):
    rows = [
        {"train_loss": x, "validation_loss": x, "validation_accuracy": accuracy} for x in losses
    ]
    progress = type("Progress", (), {"history": rows})
    monkeypatch.setattr(script, "in_memory", lambda config, console: (None, progress))
    monkeypatch.setattr(script, "compare", lambda update: script.Claim("", True, ""))
    return [claim.holds for claim in claims(script, script.Flags(epochs=len(losses)))][2:]


def test_what_is_said_of_the_curves_follows_them(script, monkeypatch):
    assert drawn(script, monkeypatch, [2.0, 1.0, 0.5], 0.95) == [True, True]
    assert drawn(script, monkeypatch, [2.0, 1.0, 1.1], 0.95) == [False, False]
    assert drawn(script, monkeypatch, [2.0, 1.0, 0.5], 0.85) == [False, False]


def test_real_training_too_short_does_not_come_to_90_percent(script, shapes10_root, monkeypatch):
    monkeypatch.setattr(script, "RATES", {"adam": 1e-3})
    monkeypatch.setattr(script, "compare", lambda update: script.Claim("", True, ""))
    *_, claim = claims(script, script.Flags(epochs=1))
    assert not claim.holds and claim.statement.startswith("Each epoch of adam")
