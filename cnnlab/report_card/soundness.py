"""Properties of the implementation: what a loss must do whatever its formula, in the types that
networks use.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cnnlab.errors import said
from cnnlab.report_card.finding import Finding, not_applicable, not_refuted, refuted, show
from cnnlab.report_card.subject import COSINE, Subject

HUGE = 1e4
HALF = (("bfloat16", 1000), ("float16", 100))  # types, and the number of classes to sum over
# relative: float32 keeps to it with room for a sum over a thousand classes, bfloat16 (4e-3) never
AGREE = 1e-5
INFINITE = 1e100  # a derivative beyond it is infinite in the formula
# The formula has a limit at a logit of -inf, but the docstring leaves it out.
WITHOUT_IMPOSSIBLE_CLASSES = {"logit_norm": "a logit of -inf has no length"}


def finite(subject: Subject) -> Finding:
    """Check that value, gradient and Hessian are finite wherever the formula's limit is."""
    rows = _extremes(subject.classes)
    excused = WITHOUT_IMPOSSIBLE_CLASSES.get(subject.name, "")
    if excused:
        rows = rows[np.all(np.isfinite(rows), -1)]
    # What becomes of the formula as an impossible class's logit falls: settled, or on its way to
    # infinity?
    near, far = (subject.values(np.where(np.isinf(rows), fall, rows)) for fall in (-1e6, -1e7))
    with np.errstate(all="ignore"):
        settled = np.isfinite(far) & (np.abs(far - near) <= 1e-3 * np.maximum(1, np.abs(far)))
    # An impossible class as the label may cost infinitely much; no formula's limit is NaN.
    wanted = (settled | np.isnan(far)) & np.isfinite(rows)

    def derivatives(z, k):
        return subject.loss(z, k), jax.grad(subject.loss)(z, k), jax.hessian(subject.loss)(z, k)

    every = jax.jit(jax.vmap(jax.vmap(derivatives, (None, 0)), (0, None)))
    labels = jnp.arange(subject.classes, dtype=jnp.int32)
    for dtype in ("float32", "bfloat16", "float16"):
        for what, value in zip(
            ("value", "gradient", "Hessian"), every(jnp.asarray(rows, dtype), labels), strict=True
        ):
            value = np.asarray(value, np.float64)
            bad = wanted & ~np.all(np.isfinite(value), axis=tuple(range(2, value.ndim)))
            if bad.any():
                i, k = np.argwhere(bad)[0]
                return refuted(
                    f"{dtype}: the {what} at z = {show(rows[i])}, label {k} is "
                    f"{show(value[i, k])}; the loss there is {far[i, k]:.4g} in float64",
                    3 * wanted.size,
                    dtype=dtype,
                    logits=rows[i],
                    label=k,
                    what=what,
                    value=value[i, k],
                    limit=far[i, k],
                )
    left_out = int(np.sum(np.isfinite(rows) & ~wanted))
    note = f"; left out: {excused}" if excused else ""
    note = note or (
        f"; left out: {left_out} where the formula itself is infinite" if left_out else ""
    )
    return not_refuted(
        f"logits of ±{HUGE:g} and -inf in float32, bfloat16, float16{note}", 3 * int(wanted.sum())
    )


def _extremes(classes: int) -> np.ndarray:
    """Build logits that break naive formulas: huge, equal, impossible."""

    def fill(*head, rest=0.0):
        return [*head, *[rest] * classes][:classes]

    rows = [
        fill(),
        fill(rest=HUGE),
        fill(rest=-HUGE),
        fill(HUGE, -HUGE),
        fill(-HUGE, HUGE),
        fill(-HUGE, 0.0, rest=HUGE),
        fill(2.5, -1.5, rest=0.5),
        fill(20.0, -20.0),
        fill(100.0, -100.0),
        fill(1.0, -np.inf, rest=2.0),
        fill(HUGE, -np.inf, rest=-HUGE),
        fill(0.0, rest=-np.inf),
    ]
    return np.array(rows)


def true_gradient(subject: Subject) -> Finding:
    """Check that the gradient that autodiff gives is that of the values."""
    z = subject.logits(64, seed=20)
    h = 1e-5
    if subject.cosines:
        z = z * (1 - h)
    shifts = h * np.eye(subject.classes)
    base, got = subject.values(z), subject.gradients(z)  # [N, K] and [N, K, K]

    def flat(moved):
        return subject.values(moved.reshape(z.shape[0] * len(shifts), -1)).reshape(got.shape)

    up = flat(z[:, None] + shifts)
    down = flat(z[:, None] - shifts)  # [N, K of the shift, K of the label]
    wanted = np.moveaxis((up - down) / (2 * h), 1, 2)
    bend = np.abs(np.moveaxis(up - 2 * base[:, None] + down, 1, 2)) / h
    size = np.maximum(1, np.abs(wanted).max(-1, keepdims=True))
    smooth = bend <= 0.02 * size  # the two sides of a kink have no gradient in common
    error = np.where(smooth, np.abs(np.nan_to_num(got, nan=np.inf) - wanted) / size, 0)
    i, k = np.unravel_index(np.argmax(error.max(-1)), error.shape[:2])
    if not error[i, k].max() <= AGREE:
        return refuted(
            f"at z = {show(z[i])}, label {k} autodiff gives {show(got[i, k])}, differences of the "
            f"values give {show(wanted[i, k])}",
            error.size,
            logits=z[i],
            label=k,
            gradient=got[i, k],
            differences=wanted[i, k],
        )
    return not_refuted(
        f"differs from central differences by {error.max():.1g} at most", int(smooth.sum())
    )


def float32_accumulation(subject: Subject) -> Finding:
    """Check that half-precision logits cost no more accuracy than their own rounding.

    The loss must be computed and returned in float32.
    """
    worst = 0.0
    count = 16
    for dtype, classes in HALF:
        loss = jax.jit(jax.vmap(subject.of(classes)))
        rng = np.random.default_rng(classes)
        drawn = (
            rng.uniform(-1, 1, (count, classes))
            if subject.cosines
            else 4 * rng.normal(size=(count, classes))
        )
        z = jnp.asarray(drawn, dtype)
        ids = np.arange(count, dtype=np.int32) * 5
        try:
            with jax.enable_x64():
                exact = np.asarray(loss(np.asarray(z, np.float64), ids))
        except Exception as error:  # hyperparameters may be set for fewer
            return not_applicable(f"fails with {classes} classes: {first_line(error)}")
        got = loss(z, ids)
        if got.dtype not in (jnp.float32, jnp.float64):
            return refuted(
                f"{dtype} logits give a loss in {got.dtype}",
                count,
                dtype=dtype,
                result=str(got.dtype),
            )
        got = np.asarray(got, np.float64)
        error = np.abs(got - exact) / (np.abs(exact) + np.abs(exact).mean())
        i = int(np.argmax(np.nan_to_num(error, nan=np.inf)))
        if not error[i] <= AGREE:
            return refuted(
                f"{dtype} logits of {classes} classes: {got[i]:.8g}, the same logits in float64: "
                f"{exact[i]:.8g}",
                count * len(HALF),
                dtype=dtype,
                classes=classes,
                loss=got[i],
                exact=exact[i],
            )
        worst = max(worst, error[i])
    return not_refuted(
        f"off by a relative {worst:.1g} at most with up to 1000 classes", count * len(HALF)
    )


def transform_safe(subject: Subject) -> Finding:
    """Check that jit, vmap and batches of rank 0 to 2 agree with the loss of one example.

    grad, jacfwd and hessian must work too: grad must equal jacfwd, and the Hessian be symmetric.
    """
    loss = subject.loss
    classes = subject.classes
    z = np.asarray(subject.logits(6, seed=21, scales=(1.0, 3.0)), np.float32)
    ids = np.resize(np.arange(classes, dtype=np.int32), 6)
    try:
        wanted = np.array(
            [float(loss(jnp.asarray(row), int(k))) for row, k in zip(z, ids, strict=True)]
        )
    except Exception as error:
        return refuted(f"one example, logits float32[{classes}]: {first_line(error)}", 6)
    z2 = z.reshape(2, 3, classes)
    ids2 = ids.reshape(2, 3)
    ways: dict[str, Callable[[], jax.Array]] = {
        "a batch [6]": lambda: loss(z, ids),
        "jit of a batch [6]": lambda: jax.jit(loss)(z, ids),
        "jit of a batch [2, 3]": lambda: jax.jit(loss)(z2, ids2),
        "vmap": lambda: jax.vmap(loss)(z, ids),
        "jit of vmap of vmap": lambda: jax.jit(jax.vmap(jax.vmap(loss)))(z2, ids2),
        "jit of one example": lambda: jnp.stack(
            [compiled(row, k) for row, k in zip(z, ids, strict=True)]
        ),
    }
    compiled = jax.jit(loss)
    for way, compute in ways.items():
        shape = (2, 3) if "[2, 3]" in way or "of vmap" in way else (6,)
        try:
            got = compute()
        except Exception as error:
            return refuted(f"{way}: {first_line(error)}", 6, way=way)
        if np.shape(got) != shape:
            return refuted(f"{way} gives the shape {np.shape(got)} instead of {shape}", 6, way=way)
        got = np.asarray(got, np.float64).ravel()
        i = int(np.argmax(np.nan_to_num(np.abs(got - wanted), nan=np.inf)))
        if not abs(got[i] - wanted[i]) <= AGREE * (abs(wanted[i]) + np.abs(wanted).mean()):
            return refuted(
                f"{way} gives {got[i]:.7g} at z = {show(z[i])}, label {ids[i]}; alone it is "
                f"{wanted[i]:.7g}",
                6,
                way=way,
                logits=z[i],
                label=ids[i],
                losses=[got[i], wanted[i]],
            )
    try:
        every = jax.jit(
            jax.vmap(lambda z, k: [f(loss)(z, k) for f in (jax.grad, jax.jacfwd, jax.hessian)])
        )
        reverse, forward, second = (np.asarray(d, np.float64) for d in every(z, ids))
    except Exception as error:
        return refuted(f"grad, jacfwd and hessian: {first_line(error)}", 6)
    for name, a, b in (
        ("grad and jacfwd", reverse, forward),
        ("hessian and its transpose", second, second.mT),
    ):
        if not np.all(np.abs(a - b) <= 1e-4 * max(1, float(np.abs(a).max()))):
            return refuted(f"{name} differ by {np.abs(a - b).max():.3g}", 6, one=a, other=b)
    return not_refuted(
        "jit, vmap, batches of rank 0 to 2, grad, jacfwd, hessian", 6 * (len(ways) + 3)
    )


def label_safe(subject: Subject) -> Finding:
    """Check that a label outside [0, K) never gets another class's loss.

    It must give an error or NaN where its value can be seen, and NaN under jit.
    """
    classes = subject.classes
    compiled = jax.jit(subject.loss)
    z = np.asarray(subject.logits(3, seed=22, scales=(1.0,)), np.float32)
    good = np.resize(np.arange(classes, dtype=np.int32), 3)
    wanted = np.asarray(compiled(z, good))
    all_classes = np.asarray(subject.values(z))
    # One of them, and all
    cases = [(bad, rows) for bad in (-1, classes, -100) for rows in ([1], [0, 1, 2])]
    for bad, rows in cases:
        ids = good.copy()
        ids[rows] = bad
        for way, loss in (("seen", subject.loss), ("under jit", compiled)):
            try:
                got = np.asarray(loss(z, ids), np.float64)
            except Exception as error:
                if way == "seen":
                    continue
                return refuted(f"label {bad} {way}: {first_line(error)}", 2 * len(cases), label=bad)
            value = got[1]
            if not np.all(np.isnan(got[rows])):
                like = np.flatnonzero(np.abs(all_classes[1] - value) <= 1e-5 * max(1, abs(value)))
                whose = f", the loss of class {like[0]}" if len(like) else ""
                return refuted(
                    f"label {bad} of {classes} classes {way} gives {value:.6g}{whose}, not NaN",
                    2 * len(cases),
                    label=bad,
                    logits=z[1],
                    loss=value,
                )
            others = np.setdiff1d(np.arange(3), rows)
            if not np.allclose(got[others], wanted[others], rtol=AGREE, atol=AGREE):
                return refuted(
                    f"label {bad} {way} changes the losses of the other examples",
                    2 * len(cases),
                    label=bad,
                )
    return not_refuted(
        f"labels -1, {classes} and -100, one of a batch and all of it", 2 * len(cases)
    )


def one_hot_agrees(subject: Subject) -> Finding:
    """Check that a one-hot label means the same as its class id, in value and gradient."""
    z = subject.logits(64, seed=23, scales=(1.0, 3.0))
    eye = np.eye(subject.classes)
    losses_of = jax.vmap(jax.vmap(subject.loss, (None, 0)), (0, None))
    try:
        with jax.enable_x64():
            got = np.asarray(jax.jit(losses_of)(z, eye))
    except Exception as error:
        return not_applicable(f"takes class ids only: {first_line(error)}")
    wanted = subject.values(z)
    if got.shape != wanted.shape:
        return refuted(
            f"a one-hot label gives a loss of shape {got.shape[2:]}, an id one of ()",
            len(z),
            shape=got.shape[2:],
        )
    with jax.enable_x64():
        slopes = jax.jit(jax.vmap(jax.vmap(jax.grad(subject.loss), (None, 0)), (0, None)))(z, eye)
    for what, a, b in (
        ("loss", got, wanted),
        ("gradient", np.asarray(slopes), subject.gradients(z)),
    ):
        error = np.abs(a - b).reshape(*got.shape, -1).max(-1) / np.maximum(1, np.abs(wanted))
        i, k = np.unravel_index(np.argmax(np.nan_to_num(error, nan=np.inf)), error.shape)
        if not error[i, k] <= 1e-8:
            return refuted(
                f"at z = {show(z[i])} the {what} of label {k} is {show(b[i, k])}, one-hot "
                f"{show(a[i, k])}",
                got.size,
                logits=z[i],
                label=k,
                of_id=b[i, k],
                of_one_hot=a[i, k],
            )
    return not_refuted("value and gradient", got.size)


def label_differentiable(subject: Subject) -> Finding:
    """Check that dL/dq of a distribution q is that of the values, also where q_k is 0 or 1.

    There differences of the values, into [0, 1], may converge slowly: q^1.2 has the slope 0 at 0
    and a difference of h^0.2. So they must come closer as the step shrinks.
    """
    classes = subject.classes
    z = subject.logits(8, seed=26, scales=(1.0, 3.0))
    eye = np.eye(classes)
    mixed = np.random.default_rng(26).dirichlet(np.ones(classes), 3)
    q = np.concatenate([eye, (eye + np.roll(eye, 1, 0)) / 2, mixed])
    over_all = jax.vmap(jax.vmap(jax.value_and_grad(subject.loss, 1), (None, 0)), (0, None))
    steps = [np.where(q < 0.5, size, -size) for size in (1e-4, 1e-6)]
    moved = [(q[:, None] + step[..., None] * eye).reshape(-1, classes) for step in steps]
    try:
        with jax.enable_x64():
            values, slopes = jax.jit(over_all)(z, np.concatenate([q, *moved]))
    except Exception as error:
        return not_applicable(f"takes class ids only: {first_line(error)}")
    value, *ends = np.split(np.asarray(values), [len(q), len(q) + len(moved[0])], axis=1)
    slope = np.asarray(slopes)[:, : len(q)]
    chords = [
        (end.reshape(slope.shape) - value[..., None]) / step
        for end, step in zip(ends, steps, strict=True)
    ]
    size = np.maximum(1, np.abs(chords[1]))
    far, near = (np.abs(chord - slope) / size for chord in chords)
    converges = (near <= 0.7 * far) | (np.abs(slope) > INFINITE)
    error = np.nan_to_num(np.where(converges, 0, near), nan=np.inf)
    i, j, k = np.unravel_index(np.argmax(error), error.shape)
    if not error[i, j, k] <= AGREE:
        return refuted(
            f"at z = {show(z[i])}, q = {show(q[j])} autodiff gives {slope[i, j, k]:.6g} for "
            f"dL/dq_{k}, a difference of the values {chords[1][i, j, k]:.6g}",
            error.size,
            logits=z[i],
            distribution=q[j],
            derivative=slope[i, j, k],
            difference=chords[1][i, j, k],
        )
    return not_refuted("dL/dq at 0, at 1 and in between", error.size)


def same_as(subject: Subject, other: Subject) -> Finding:
    """Check that value and gradient are those of another loss."""
    z = np.concatenate(
        [subject.logits(192, seed=24), subject.logits(64, seed=25, scales=(30.0, 100.0))]
    )
    if other.cosines and not subject.cosines:
        z = COSINE * np.tanh(z)
    for what, a, b in (
        ("loss", subject.values(z), other.values(z)),
        ("gradient", subject.gradients(z), other.gradients(z)),
    ):
        size = np.maximum(1, np.abs(b)).reshape(len(z), subject.classes, -1).max(-1)
        error = np.abs(a - b).reshape(len(z), subject.classes, -1).max(-1) / size
        # Of the points that differ clearly the one with the plainest numbers.
        clear = ~(error <= 1e-9)
        if clear.any():
            i = int(np.argmax(clear.any(-1)))
            k = int(np.argmax(clear[i]))
            return refuted(
                f"at z = {show(z[i])}, label {k} the {what} is {show(a[i, k])}, that of "
                f"{other.name} {show(b[i, k])}",
                error.size,
                logits=z[i],
                label=k,
                other=other.name,
                values=[a[i, k], b[i, k]],
            )
    return not_refuted(f"value and gradient of {other.name}", error.size)


def first_line(error: BaseException) -> str:
    """Describe what was raised, in one line."""
    return f"{type(error).__name__}: {next(iter(said(error).splitlines()), '')}"[:200]
