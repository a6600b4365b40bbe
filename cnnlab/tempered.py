"""The normaliser of softmax's relatives: c with sum_i exp_t(z_i - c) = 1, and its exact derivatives.

exp_t(x) = max(0, 1 + a x)^(1/a) with a = 1 - t; exp(x) for a = 0. t = 2 - alpha is entmax: sparsemax a = 1, entmax15
a = 1/2, softmax a = 0; a < 0 are the heavy tails of the bi-tempered loss. Differentiating through the iteration would
be slow and wrong in the last digits; the implicit function theorem at its solution is neither.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def probabilities(z: jax.Array, a: Any) -> jax.Array:
    """exp_t(z_i - c), which sum to 1.

    Args:
      z: float[..., K] with maximum 0; -inf gives probability 0; NaN in the row gives NaN.
      a: 1 - t, a float or float[...] (which may be traced and differentiated).

    Returns:
      float[..., K], in [0, 1].
    """
    return _exp(z - _shift(z, a)[..., None], a)


def _exp(x: jax.Array, a: Any) -> jax.Array:
    """max(0, 1 + a x)^(1/a), exp(x) for a = 0; its derivatives are 0 where it is."""
    power = round(1 / a) if isinstance(a, float) and abs(a) >= 1 / 8 else 0
    if power and abs(power * a - 1) < 1e-9:
        base = 1 + a * x
        return jnp.where(base > 0, lax.integer_pow(jnp.where(base > 0, base, 1), power), jnp.where(base <= 0, 0, base))
    a = jnp.asarray(a, x.dtype)
    a = a[..., None] if a.ndim else a
    inside = a * x > -1
    return jnp.where(inside, jnp.exp(_exponent(jnp.where(inside, x, 0), a)), jnp.where(x <= 0, 0, x))


@jax.custom_jvp
def _exponent(x: jax.Array, a: jax.Array) -> jax.Array:
    """log(1 + a x) / a, x for a = 0."""
    return jnp.where(a == 0, x, jnp.log1p(a * x) / jnp.where(a == 0, 1, a))


@_exponent.defjvp
def _(primals, tangents):
    (x, a), (dx, da) = primals, tangents
    u = a * x
    # d/da = -x^2 (log(1 + u) - u / (1 + u)) / u^2, which cancels for small u: its series there, 1/2 - 2/3 u + 3/4 u^2 -
    small = jnp.abs(u) < 0.1
    safe = jnp.where(small | jnp.isinf(u), 1, u)
    series = jnp.polyval(jnp.array([(-1) ** n * (n + 1) / (n + 2) for n in range(15, -1, -1)], x.dtype), u)
    curve = jnp.where(small, series, (jnp.log1p(safe) - safe / (1 + safe)) / safe**2)
    return _exponent(x, a), dx / (1 + u) - jnp.where(jnp.isfinite(x), x, 0) ** 2 * curve * da


def _shift(z: jax.Array, a: Any) -> jax.Array:
    """c with sum_i exp_t(z_i - c) = 1, for float[..., K] with maximum 0; a = 1 - t, a float or an array."""
    return _fixed_shift(z, a) if isinstance(a, float) else _free_shift(z, a)  # pyright: ignore[reportCallIssue]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _fixed_shift(z: jax.Array, a: float) -> jax.Array:
    return _solve(z, a)


@_fixed_shift.defjvp
def _(a, primals, tangents):
    (z,) = primals
    c = _fixed_shift(z, a)  # pyright: ignore[reportCallIssue]
    total = lambda z, c: jnp.sum(_exp(z - c[..., None], a), -1)
    return c, _implicit(lambda z: total(z, c), lambda c: total(z, c), primals, tangents, c)


@jax.custom_jvp
def _free_shift(z: jax.Array, a: jax.Array) -> jax.Array:
    return _solve(z, a)


@_free_shift.defjvp
def _(primals, tangents):
    z, a = primals
    c = _free_shift(z, a)
    total = lambda z, a, c: jnp.sum(_exp(z - c[..., None], a), -1)
    return c, _implicit(lambda z, a: total(z, a, c), lambda c: total(z, a, c), primals, tangents, c)


def _implicit(of_rest: Callable, of_c: Callable, primals: tuple, tangents: tuple, c: jax.Array) -> jax.Array:
    """dc where the total stays 1: the implicit function theorem."""
    _, change = jax.jvp(of_rest, primals, tangents)
    _, slope = jax.jvp(of_c, (c,), (jnp.ones_like(c),))
    return -change / slope


def _solve(z: jax.Array, a: Any) -> jax.Array:
    """The root c of sum_i exp_t(z_i - c) = 1 by Newton's method on total^a, which is nearly linear in c.

    By Minkowski's inequality total^a is convex and falling for 0 < a <= 1 (concave and growing for a < 0), so Newton's
    steps from c = 0, where the maximum alone gives 1, never pass the root. For a > 1 the interval is halved instead.
    """
    power, classes = jnp.asarray(a, z.dtype), z.shape[-1]
    # -(K^-a - 1) / a: K equal terms would make 1 here
    over_a = lambda log_x: jnp.where(power == 0, log_x, -jnp.expm1(-power * log_x) / jnp.where(power == 0, 1, power))
    batch = jnp.zeros(z.shape[:-1], z.dtype)
    # The error after a step is the step to the power min(2, 1/a): where terms vanish their slope is only Hölder.
    tolerance = 2 * jnp.finfo(z.dtype).eps ** jnp.clip(power, 0.5, 1)

    def improve(state):
        step, c, low, high, done = state
        x = z - c[..., None]
        terms, base = _exp(x, a), 1 + (power[..., None] if power.ndim else power) * x
        total, slope = jnp.sum(terms, -1), jnp.sum(terms / jnp.where(base > 0, base, 1), -1)
        low, high = jnp.where(total >= 1, c, low), jnp.where(total >= 1, high, c)
        newton = c + total * over_a(jnp.log(total)) / slope
        better = jnp.where((power <= 1) & (newton >= low) & (newton <= high), newton, (low + high) / 2)
        close = jnp.abs(better - c) <= tolerance * jnp.maximum(c, 1)
        # A row that has arrived stays, whatever the others of the batch need: results do not depend on the batch.
        return step + 1, jnp.where(done, c, better), low, high, done | close

    start = (0, batch, batch, batch + over_a(jnp.log(jnp.asarray(classes, z.dtype))), jnp.isnan(z[..., 0]))
    unfinished = lambda state: (state[0] < 64) & ~jnp.all(state[-1])
    return lax.while_loop(unfinished, improve, start)[1]
