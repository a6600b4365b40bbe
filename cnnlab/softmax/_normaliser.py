"""The normaliser of softmax's relatives: c with sum_i exp_t(z_i - c) = 1, and its exact
derivatives.

exp_t(x) = max(0, 1 + a x)^(1/a) with a = 1 - t; exp(x) for a = 0. t = 2 - alpha is entmax:
sparsemax a = 1, entmax15 a = 1/2, softmax a = 0; a < 0 are the heavy tails of the bi-tempered loss.
Differentiating through the iteration would be slow and wrong in the last digits; the implicit
function theorem at its solution is neither.

Where a >= 1/2 the unknown is v = 1 - a c, which makes the base v + a z: of many equal terms each
base is near K^-a, and 1 - a c would be left with the rounding of 1. Elsewhere it is v = c.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

WIDE = 0.5


def probabilities(z: jax.Array, a: float | jax.Array) -> jax.Array:
    """Compute exp_t(z_i - c), which sum to 1.

    Args:
      z: float[..., K] with maximum 0; -inf gives probability 0; NaN in the row gives NaN.
      a: 1 - t, a float or float[...] (which may be traced and differentiated).

    Returns:
      float[..., K], in [0, 1].
    """
    p = _terms(z, _normaliser(z, a), a)
    if isinstance(a, float) and a <= 1:
        return p
    # For a > 1 no v may come near enough: next to the border of the support p moves by eps^(1/a)
    # with its last digit.
    return p / lax.stop_gradient(jnp.sum(p, -1, keepdims=True))


def log_probabilities(z: jax.Array, a: float) -> jax.Array:
    """Compute the logarithms of `probabilities`, also where these underflow; -inf, with derivative
    0, where they are 0.
    """
    v = _normaliser(z, a)
    if a < 0:  # every possible class is inside
        return jnp.log1p(a * (z - v[..., None])) / a
    inside, exponent = _exponents(z, v, a)
    return jnp.where(inside, exponent, jnp.where(jnp.isnan(exponent), exponent, -jnp.inf))


def _terms(z: jax.Array, v: jax.Array, a: float | jax.Array) -> jax.Array:
    """Compute exp_t(z_i - c): float[..., K], float[...] -> float[..., K]. Where it is 0, so are its
    derivatives.
    """
    if power := _power(a):
        return lax.integer_pow(_root(z, v, a), abs(power))
    inside, exponent = _exponents(z, v, a)
    return jnp.where(inside, jnp.exp(exponent), jnp.where(jnp.isnan(exponent), exponent, 0))


def _slopes(z: jax.Array, v: jax.Array, a: float | jax.Array) -> jax.Array:
    """Compute the slope of exp_t at z_i - c, which is exp_t(z_i - c)^t; 0 where exp_t is 0."""
    if power := _power(a):
        root = _root(z, v, a)
        return jnp.sign(root) if power == 1 else lax.integer_pow(root, abs(power - 1))
    base = _base(z, v, a)
    return _terms(z, v, a) / jnp.where(base > 0, base, 1)


def _root(z: jax.Array, v: jax.Array, a: float | jax.Array) -> jax.Array:
    """Compute exp_t(z_i - c)^|a|. NaN stays NaN."""
    base = _base(z, v, a)
    if a < 0:  # every possible class has a base of at least 1
        return 1 / base
    return jnp.where(base <= 0, 0, base)


def _power(a: float | jax.Array) -> int:
    """Return 1 / a if that is a small integer, so that products compute exp_t; 0 otherwise."""
    if not isinstance(a, float) or abs(a) < 1 / 8:
        return 0
    power = round(1 / a)
    return power if abs(power * a - 1) < 1e-9 else 0


def _base(z: jax.Array, v: jax.Array, a: float | jax.Array) -> jax.Array:
    """Compute 1 + a (z_i - c)."""
    v = v[..., None]
    if isinstance(a, float):
        return v + a * z if a >= WIDE else 1 + a * (z - v)
    a = _wide(a, z)
    return jnp.where(a >= WIDE, v + a * z, 1 + a * (z - v))


def _exponents(z: jax.Array, v: jax.Array, a: float | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return where exp_t is positive, and log(1 + a (z_i - c)) / a there, with a harmless value
    elsewhere. NaN stays NaN.
    """
    impossible = z == -jnp.inf
    z = jnp.where(impossible, 0, z)
    base = jnp.where(impossible, 0, _base(z, v, a))
    outside = base <= 0
    safe = jnp.where(base > 0, base, jnp.where(base <= 0, 1, base))

    def direct(a):
        return jnp.log(safe) / a

    def near_0(a):
        return _exponent(jnp.where(outside, 0, z - v[..., None]), a)

    if isinstance(a, float):
        return ~outside & ~jnp.isnan(base), direct(a) if a >= WIDE else near_0(
            jnp.asarray(a, z.dtype)
        )
    a = _wide(a, z)
    exponent = jnp.where(
        a >= WIDE, direct(jnp.where(a >= WIDE, a, 1)), near_0(jnp.where(a >= WIDE, 0, a))
    )
    return ~outside & ~jnp.isnan(base), exponent


def _wide(a: float | jax.Array, z: jax.Array) -> jax.Array:
    """Reshape `a`, float[...] or float[], to broadcast with `z`, float[..., K]."""
    a = jnp.asarray(a, z.dtype)
    return a[..., None] if a.ndim else a


@jax.custom_jvp
def _exponent(x: jax.Array, a: jax.Array) -> jax.Array:
    """Compute log(1 + a x) / a, or x for a = 0."""
    return jnp.where(a == 0, x, jnp.log1p(a * x) / jnp.where(a == 0, 1, a))


@_exponent.defjvp
def _(primals, tangents):
    x, a = primals
    dx, da = tangents
    u = a * x
    # d/da = -x^2 (log(1 + u) - u / (1 + u)) / u^2, which cancels for small u: its series there, 1/2
    # - 2/3 u + 3/4 u^2 -
    small = jnp.abs(u) < 0.1
    safe = jnp.where(small | jnp.isinf(u), 1, u)
    series = jnp.polyval(
        jnp.array([(-1) ** n * (n + 1) / (n + 2) for n in range(15, -1, -1)], x.dtype), u
    )
    curve = jnp.where(small, series, (jnp.log1p(safe) - safe / (1 + safe)) / safe**2)
    return _exponent(x, a), dx / (1 + u) - jnp.where(jnp.isfinite(x), x, 0) ** 2 * curve * da


def _normaliser(z: jax.Array, a: float | jax.Array) -> jax.Array:
    """Find v with sum_i exp_t(z_i - c) = 1, for float[..., K] with maximum 0; a = 1 - t is a float
    or an array.
    """
    return _fixed(z, a) if isinstance(a, float) else _free(z, a)  # pyright: ignore[reportCallIssue]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _fixed(z: jax.Array, a: float) -> jax.Array:
    return _solve(z, a)


@_fixed.defjvp
def _(a, primals, tangents):
    (z,) = primals
    (dz,) = tangents
    v = _fixed(z, a)  # pyright: ignore[reportCallIssue]
    slopes = _slopes(z, v, a)
    dc = jnp.sum(slopes * dz, -1) / jnp.sum(slopes, -1)
    return v, -a * dc if a >= WIDE else dc


@jax.custom_jvp
def _free(z: jax.Array, a: jax.Array) -> jax.Array:
    return _solve(z, a)


@_free.defjvp
def _(primals, tangents):
    z, a = primals
    v = _free(z, a)

    def total(z, a, v):
        return jnp.sum(_terms(z, v, a), -1)

    return v, _implicit(lambda z, a: total(z, a, v), lambda v: total(z, a, v), primals, tangents, v)


def _implicit(
    of_rest: Callable, of_v: Callable, primals: tuple, tangents: tuple, v: jax.Array
) -> jax.Array:
    """Compute the dv that keeps the total at 1, by the implicit function theorem."""
    _, change = jax.jvp(of_rest, primals, tangents)
    _, slope = jax.jvp(of_v, (v,), (jnp.ones_like(v),))
    return -change / slope


def _sums(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum two arrays over their last axis.

    Where that is short, both at once: XLA on a CPU then stores neither x nor y. Of many classes it
    adds faster what it has stored.
    """
    if x.shape[-1] > 64:
        return jnp.sum(x, -1), jnp.sum(y, -1)
    zero = np.zeros((), x.dtype)
    x_sum, y_sum = lax.reduce((x, y), (zero, zero), _add_pairs, (x.ndim - 1,))
    return x_sum, y_sum


def _add_pairs(
    left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return left[0] + right[0], left[1] + right[1]


def _solve(z: jax.Array, a: float | jax.Array) -> jax.Array:
    """Find the root by Newton's method on total^a, which is nearly linear in c.

    By Minkowski's inequality total^a is convex and decreasing for 0 < a <= 1 (concave and
    increasing for a < 0), so Newton's steps from c = 0, where the maximum alone gives 1, never pass
    the root. For a > 1 the interval is halved instead.
    """
    power = jnp.asarray(a, z.dtype)
    classes = z.shape[-1]
    wide = power >= WIDE

    # (1 - x^-a) / a, from log x: K equal terms, 1 each at c = 0, have their root there
    def over_a(log_x):
        return jnp.where(
            power == 0, log_x, -jnp.expm1(-power * log_x) / jnp.where(power == 0, 1, power)
        )

    log_classes = jnp.log(jnp.asarray(classes, z.dtype))
    batch = jnp.zeros_like(z[..., 0])  # like z it varies over the axes of a shard_map
    # The error after a step is the step to the power min(2, 1/a): where terms vanish their slope is
    # only Hölder.
    tolerance = 2 * jnp.finfo(z.dtype).eps ** jnp.clip(power, 0.5, 1)

    def improve(state):
        # The root lies between first, on the side of c = 0, and last.
        step, v, first, last, done = state
        total, slope = _sums(_terms(z, v, a), _slopes(z, v, a))
        first, last = jnp.where(total >= 1, v, first), jnp.where(total >= 1, last, v)
        newton = v + jnp.where(wide, -power, 1) * total * over_a(jnp.log(total)) / slope
        within = (newton - first) * (newton - last) <= 0
        better = jnp.where((power <= 1) & within, newton, (first + last) / 2)
        close = jnp.abs(better - v) <= tolerance * jnp.where(wide, v, jnp.maximum(v, 1))
        # A row that has arrived stays, whatever the others of the batch need: results do not depend
        # on the batch.
        return step + 1, jnp.where(done, v, better), first, last, done | close

    begin = jnp.where(wide, batch + 1, batch)
    end = batch + jnp.where(wide, jnp.exp(-power * log_classes), over_a(log_classes))

    def unfinished(state):
        return (state[0] < 128) & ~jnp.all(state[-1])

    return lax.while_loop(unfinished, improve, (0, begin, begin, end, jnp.isnan(z[..., 0])))[1]
