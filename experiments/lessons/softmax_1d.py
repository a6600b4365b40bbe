"""Softmax turns scores into a distribution

Exponentials are positive and growing, so p_i = exp(z_i) / sum_j exp(z_j) is positive, sums to one
and keeps the order of the scores. Only differences of scores count, and they become ratios: p_i /
p_j = exp(z_i - z_j). That is what "softmax amplifies differences" can mean; the difference of two
probabilities is smaller than that of their scores.

    python experiments/lessons/softmax_1d.py
"""

import jax.numpy as jnp
import numpy as np

from cnnlab.lesson import Claim, Lesson, Table, lines, run
from cnnlab.softmax import predict, softmax

SCORES = np.random.default_rng(0).normal(0, 3, (1000, 5)).astype(np.float32)
W, B = np.array([[-2, 0.5, 1.5], [0, 1, -1]], np.float32)  # of the lines z_k = w_k x + b_k


def distribution(p):
    off = np.abs(p.sum(1) - 1).max()
    order = np.all(np.argsort(p, 1) == np.argsort(SCORES, 1))
    measured = (
        f"1000 rows of 5 scores: smallest {p.min():.0e}, sums within {off:.0e} of 1, order kept: "
        f"{order}"
    )
    return Claim(
        "Positive, sums to one, order kept", p.min() > 0 and off < 1e-6 and order, measured
    )


def shift_invariance(p):
    off = np.abs(p - softmax(SCORES + 100)).max()  # z + 100 is rounded to within 2^-18
    return Claim(
        "The same when all scores grow by 100", off < 2**-17, f"probabilities within {off:.0e}"
    )


def ratios(p):
    gaps = np.float64(SCORES[:, :1] - SCORES[:, 1:])
    off = np.abs(np.log(p[:, :1] / p[:, 1:]) - gaps).max()
    most = np.abs((p[:, :1] - p[:, 1:]) / gaps).max()
    yield Claim(
        "Differences become ratios: p_i / p_j = exp(z_i - z_j)",
        off < 1e-5,
        f"logarithms within {off:.0e}",
    )
    gap = float(softmax(np.array([2.0, 1.0, 0.1])) @ np.array([1.0, -1.0, 0.0]))
    measured = (
        f"from 2.0 and 1.0 above to a gap of {gap:.3f}; at most {most:.3f} of it in 4000 pairs"
    )
    yield Claim(
        "The gap of probabilities is at most half that of the scores", most <= 0.5 + 1e-6, measured
    )


def naive(z):
    return jnp.exp(z) / jnp.sum(jnp.exp(z))


def overflow(dtype):
    """Find the smallest integer score at which the naive form fails."""
    return next(z for z in range(200) if not jnp.isfinite(naive(jnp.array([z, 0], dtype))).all())


def teach(flags: Lesson):
    z = np.array([2.0, 1.0, 0.1])
    e = np.exp(z)
    p = np.asarray(softmax(z))
    rows = [(f"{a}", f"{b:.3f}", f"{c:.3f}") for a, b, c in zip(z, e, p, strict=True)]
    yield Table(("score", "exponential", "probability"), rows, 0)
    exact = (
        np.abs(e - [7.389056, 2.718282, 1.105171]).max() < 1e-6
        and np.abs(p - [0.659, 0.242, 0.099]).max() < 5e-4
    )
    yield Claim(
        "[2.0, 1.0, 0.1] gives 0.659, 0.242, 0.099",
        exact,
        f"exponentials {e.round(3)}, sum {e.sum():.4f}",
    )
    p = np.float64(softmax(SCORES))
    yield from (distribution(p), shift_invariance(p), *ratios(p))

    x = np.linspace(-4, 4, 401, dtype=np.float32)
    z = x[:, None] * W + B
    p = np.asarray(softmax(z))

    def named(y):
        return {f"class {k}": y[:, k] for k in range(3)}

    yield lines("Three lines over one input", x, named(z), "input x", "score")
    yield lines("Their softmax", x, named(p), "input x", "probability")
    rows = [
        (f"{x[i]:g}", *(f"{s:.1f}" for s in z[i]), f"{predict(z[i])}") for i in range(0, 401, 50)
    ]
    yield Table(("x", "z_0", "z_1", "z_2", "argmax"), rows, 0)
    # Where the top two cross
    tie = np.sort(softmax(np.array([[-0.4], [2]], np.float32) * W + B), 1)[:, 1:]
    same = np.all(p.argmax(1) == z.argmax(1)) and np.abs(tie[:, 0] - tie[:, 1]).max() < 1e-6
    measured = f"401 inputs; at x = -0.4 both have {tie[0, 0]:.3f}, at 2 {tie[1, 0]:.3f}"
    yield Claim(
        "The largest score has the largest probability; where two lines cross, two tie",
        same,
        measured,
    )

    t = np.geomspace(0.01, 1000, 101)
    p = np.array([softmax(np.array([2.0, 1.0, 0.1]), temperature=temperature) for temperature in t])
    series = {f"score {score}": p[:, k] for k, score in enumerate((2.0, 1.0, 0.1))}
    yield lines(
        "From argmax to uniform", t, series, "temperature (log)", "probability", xscale="log"
    )
    measured = f"largest probability {p[0].max():.6f} at 0.01 and {p[-1].max():.6f} at 1000"
    yield Claim(
        "Cold it is argmax, hot uniform",
        p[0].max() == 1 and np.abs(p[-1] - 1 / 3).max() < 1e-3,
        measured,
    )
    at = [overflow(dtype) for dtype in (jnp.float32, jnp.bfloat16, jnp.float16)]
    finite = np.isfinite(softmax(jnp.array([1e4, 0.0]))).all()
    measured = (
        "fails from a score of {} in float32, {} in bfloat16, {} in float16; cnnlab's bears 10,000"
    ).format(*at)
    yield Claim(
        "Without subtracting the maximum it overflows", at == [89, 89, 12] and finite, measured
    )


if __name__ == "__main__":
    run(teach)
