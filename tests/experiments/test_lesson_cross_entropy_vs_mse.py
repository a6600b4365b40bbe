"""Cross-entropy against mean squared error: gradients by hand, epochs by hand, and verdicts on
drawn runs.
"""

import jax
import numpy as np
import pytest
from lesson_example import claims, lesson

from cnnlab.losses import cross_entropy, mean_squared_error

pytestmark = pytest.mark.slow


@pytest.fixture
def script():
    return lesson("cross_entropy_vs_mse")


def test_gradients_are_those_of_the_formulas(script):
    p = np.array([1e-6, 0.1, 1 / 3, 0.5, 0.9], np.float32)
    q = p.astype(np.float64)
    # p - onehot is (p - 1, 1 - p), and 2 (1 - p)^2 has the slope -4 p (1 - p)^2 in z_y; to
    # float32's eps.
    exact = np.sqrt(2) * (1 - q), np.sqrt(2) * 4 * q * (1 - q) ** 2
    for loss, norms in zip((cross_entropy, mean_squared_error), exact, strict=True):
        np.testing.assert_allclose(script.gradient_norms(loss, p), norms, rtol=1e-6, atol=2**-23)


def test_epochs_are_counted_along_lines_from_chance(script):
    accuracy = np.array([[0.3, 0.7, 0.2], [0.5, 0.8, 0.3]])
    # 0.3 to 0.5 crosses 0.4 halfway; 0.1 to 0.7 halfway in the first epoch; the third never does.
    np.testing.assert_allclose(script.epochs_to(0.4, accuracy), [1.5, 0.5, 2.0])


def drawn(norms, accuracy):
    """Runs as `train` gives them: [seeds, steps], [epochs, seeds], a little apart."""
    rng = np.random.default_rng(0)

    def scatter(*shape):
        return rng.uniform(0.999, 1.001, shape)

    return norms * scatter(8, 5), np.array(accuracy)[:, None] * scatter(len(accuracy), 8)


def verdicts(script, monkeypatch, ours, theirs, seeds=8):
    runs = {"cross_entropy": ours, "mean_squared_error": theirs}
    monkeypatch.setattr(
        script, "train", lambda loss, flags: (runs[loss][0][:seeds], runs[loss][1][:, :seeds])
    )
    return [claim.holds for claim in claims(script, script.Flags(epochs=2))]


def test_verdicts_follow_the_pairs(script, monkeypatch):
    fast, slow = drawn(2.0, [0.4, 0.5]), drawn(0.5, [0.3, 0.45])
    assert verdicts(script, monkeypatch, fast, slow) == [True] * 4
    assert verdicts(script, monkeypatch, slow, fast) == [True, False, False, False]
    assert verdicts(script, monkeypatch, fast, fast) == [True, False, False, False]
    # Too few for three
    assert verdicts(script, monkeypatch, fast, slow, seeds=6) == [
        True,
        False,
        False,
        False,
    ]


def test_logit_gradients_of_another_loss_are_found_out(script, monkeypatch):
    fast, slow = drawn(2.0, [0.4, 0.5]), drawn(0.5, [0.3, 0.45])
    monkeypatch.setattr(script, "cross_entropy", mean_squared_error)
    assert verdicts(script, monkeypatch, fast, slow) == [False, True, True, True]


def test_real_training_of_two_pairs(script, shapes10_root):
    """Another seed and another loss give other gradients."""
    flags = script.Flags(dataset="shapes10", data_dir=str(shapes10_root), epochs=1, seeds=2)
    with jax.numpy_dtype_promotion("standard"):  # optax.adam and its schedules mix types
        runs = [script.train(loss, flags) for loss in ("cross_entropy", "mean_squared_error")]
    (norms, accuracy), (others, _) = runs
    assert norms.shape[0] == 2 and accuracy.shape == (1, 2)
    assert (others.mean(1) < norms.mean(1)).all() and not np.allclose(norms[0], norms[1])
