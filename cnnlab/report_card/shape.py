"""Properties of a loss as a function of the logits: symmetry, bounds, curvature, slopes, limits.
All in float64.
"""

from __future__ import annotations

import itertools

import numpy as np

from cnnlab.report_card.finding import Finding, not_applicable, not_refuted, refuted, show
from cnnlab.report_card.subject import SCALES, Subject

SMALL = 1e-9  # relative: differences below it are rounding
# A loss below it is nothing; below 1 nat by as much as a true class's probability of 1 - 1e-6 is
ZERO = 1e-6
VANISHED = 1e-3  # a gradient this much smaller than at its largest no longer teaches
DECADES = (1.0, 10.0, 100.0, 1e3, 1e4)
MARGINS = (0.0, 1.0, 2.0, 5.0, 20.0, 100.0)  # of a wrong class over the true one


def symmetric(subject: Subject) -> Finding:
    """Check that sum_k L(z, k) does not depend on z."""
    z = subject.logits(512, seed=2)
    sums = subject.values(z).sum(-1)
    low, high = int(np.argmin(sums)), int(np.argmax(sums))
    if not sums[high] - sums[low] <= SMALL * max(1, abs(sums[high])):
        return refuted(
            f"the losses of all classes sum to {sums[low]:.4g} at z = {show(z[low])}, to "
            f"{sums[high]:.4g} at {show(z[high])}",
            len(z),
            logits=z[[low, high]],
            sums=sums[[low, high]],
        )
    return not_refuted(f"the losses of all classes sum to {sums[0]:.6g}", len(z), sum=sums[0])


def bounded(subject: Subject) -> Finding:
    """Check that L(z, y) stays below a constant."""
    if subject.cosines:
        highest = subject.values(subject.logits(1024, seed=3)).max()
        return not_applicable(
            f"cosines are bounded themselves; up to {highest:.4g} seen", supremum=highest
        )
    eye = np.eye(subject.classes)
    directions = np.concatenate([eye, -eye, subject.logits(128, seed=3, scales=(1.0,))])
    z = np.outer(DECADES, directions).reshape(-1, subject.classes)
    highest = subject.values(z).reshape(len(DECADES), -1).max(-1)
    growth = np.diff(highest)
    # A bounded loss grows less with every decade, a logarithm by the same, everything else by more.
    if not (growth[-1] <= 0.7 * max(growth[-2], 0) or growth[-1] <= SMALL * max(1, highest[-1])):
        at = (
            int(np.argmax(subject.values(z)[-len(directions) :].max(-1))) + len(z) - len(directions)
        )
        return refuted(
            f"{highest[-1]:.4g} at z = {show(z[at])}, and growing with the logits: "
            + ", ".join(
                f"{h:.3g} at scale {s:g}" for s, h in zip(DECADES[1:], highest[1:], strict=True)
            ),
            len(z),
            logits=z[at],
            scales=DECADES,
            highest=highest,
        )
    return not_refuted(
        f"at most {highest.max():.4g} for logits up to {DECADES[-1]:g}",
        len(z),
        supremum=highest.max(),
    )


def non_negative(subject: Subject) -> Finding:
    """Check that L(z, y) >= 0."""
    z = subject.logits(1024, seed=4, scales=(*SCALES, 100.0))
    values = subject.values(z)
    i, k = np.unravel_index(np.argmin(values), values.shape)
    if not values[i, k] >= -SMALL:
        return refuted(
            f"L = {values[i, k]:.4g} at z = {show(z[i])}, label {k}",
            values.size,
            logits=z[i],
            label=k,
            loss=values[i, k],
        )
    return not_refuted(f"at least {max(values[i, k], 0):.4g}", values.size)


def convex(subject: Subject) -> Finding:
    """Check that L is convex in z: no chord lies below it."""
    a = subject.logits(1024, seed=5)
    b = subject.logits(1024, seed=6)[::-1]
    z = subject.logits(256, seed=7)
    curvature, direction = np.linalg.eigh(subject.hessians(z))
    # The direction of the most negative curvature, followed far enough that the values show it: a
    # loss may have none (piecewise linear), or a wrong one (a detached gradient), so only values
    # refute.
    i, k = np.unravel_index(np.argmin(np.nan_to_num(curvature[..., 0])), curvature.shape[:2])
    steps = np.outer([0.01, 0.1, 0.3], direction[i, k, :, 0])
    if subject.cosines:
        steps = steps[:1]
    a, b = np.concatenate([a, z[i] - steps]), np.concatenate([b, z[i] + steps])
    ends = (subject.values(a) + subject.values(b)) / 2
    middle = subject.values((a + b) / 2)
    excess = (middle - ends) / np.maximum(1, np.abs(ends))
    j, y = np.unravel_index(np.argmax(excess), excess.shape)
    points = excess.size + curvature[..., 0].size
    least = curvature.min()
    if not excess[j, y] <= 1e-11:
        return refuted(
            f"label {y}: L = {middle[j, y]:.6g} halfway between {show(a[j])} and {show(b[j])}, "
            f"more than the mean {ends[j, y]:.6g} of the ends; smallest Hessian eigenvalue seen "
            f"{least:.3g}",
            points,
            ends=[a[j], b[j]],
            label=y,
            middle=middle[j, y],
            mean=ends[j, y],
            smallest_eigenvalue=least,
        )
    return not_refuted(
        f"smallest Hessian eigenvalue seen {least:.3g}", points, smallest_eigenvalue=least
    )


def shift_invariant(subject: Subject) -> Finding:
    """Check that L(z + c, y) = L(z, y)."""
    z = subject.logits(256, seed=8)
    shifts = np.array([-100.0, -1.0, 0.5, 10.0, 100.0])
    if subject.cosines:
        z = z / 2
        shifts = np.array([-0.4, -0.1, 0.2, 0.4])
    base = subject.values(z)
    moved = np.stack([subject.values(z + c) for c in shifts])
    change = np.abs(moved - base) / np.maximum(1, np.abs(base))
    s, i, k = np.unravel_index(np.argmax(np.nan_to_num(change, nan=np.inf)), change.shape)
    if not change[s, i, k] <= SMALL:
        return refuted(
            f"label {k}: {base[i, k]:.6g} at z = {show(z[i])}, {moved[s, i, k]:.6g} at z + "
            f"{shifts[s]:g}",
            change.size,
            logits=z[i],
            label=k,
            shift=shifts[s],
            losses=[base[i, k], moved[s, i, k]],
        )
    return not_refuted(f"changes by {change.max():.1g} at most", change.size)


def smooth(subject: Subject) -> Finding:
    """Check that the gradient is Lipschitz.

    The largest curvature seen is a lower bound of the constant.
    """
    kink = _kink(subject)
    if kink is not None:
        return kink
    scales = (1.0,) if subject.cosines else (1e-3, 1e-2, 0.1, 1.0, 3.0, 10.0, 100.0, 1e3)
    largest = []
    where = []
    for scale in scales:
        z = subject.logits(128, seed=9, scales=(scale,))
        if not subject.cosines:
            z = np.concatenate([z, scale * _ties(subject.classes)])
        curvature = np.abs(np.linalg.eigvalsh(np.nan_to_num(subject.hessians(z)))).max(-1)
        i, k = np.unravel_index(np.argmax(curvature), curvature.shape)
        largest.append(float(curvature[i, k]))
        where.append((z[i], int(k)))
    best = int(np.argmax(largest))
    z, k = where[best]
    at = f"largest curvature {largest[best]:.4g} at z = {show(z)}, label {k}"
    data = {
        "constant": largest[best],
        "logits": z,
        "label": k,
        "scales": scales,
        "curvatures": largest,
    }
    runaway = len(largest) > 1 and (
        largest[0] > 3 * largest[1] or largest[-1] > 3 * largest[-2] > 0
    )
    if runaway and best in (0, len(largest) - 1):
        end = "shrink" if best == 0 else "grow"
        return refuted(
            f"{at}, and it increases without end as the logits {end}", 128 * len(scales), **data
        )
    return not_refuted(at, 128 * len(scales), **data)


def _ties(classes: int) -> np.ndarray:
    """Build logits where curvature is largest.

    Two classes are level, or one is a little ahead of the other; the others are far below.
    """
    rows = []
    for i, j in itertools.islice(itertools.combinations(range(classes), 2), 10):
        for lead in (0.0, 0.1, 0.3):
            row = np.full(classes, -1.0)
            row[i] = lead
            row[j] = 0
            rows.append(row)
    return np.array(rows)


def _kink(subject: Subject) -> Finding | None:
    """Find where the gradient jumps, by bisection; None if it does not.

    Of random segments, the half over which it changes more is kept, again and again.
    """
    classes = subject.classes
    a = subject.logits(340, seed=10, scales=(1.0, 2.0))
    b = subject.logits(340, seed=11, scales=(2.0, 1.0))
    label = np.resize(np.arange(classes), len(a))

    def label_slopes(z):
        return subject.gradients(z)[np.arange(len(z)), label]

    at_a, at_b = label_slopes(a), label_slopes(b)
    size = np.abs(at_a).max()
    for _ in range(45):
        middle = (a + b) / 2
        at = label_slopes(middle)
        left = np.linalg.norm(at - at_a, axis=-1) > np.linalg.norm(at_b - at, axis=-1)
        left = left[:, None]
        a, at_a = np.where(left, a, middle), np.where(left, at_a, at)
        b, at_b = np.where(left, middle, b), np.where(left, at, at_b)
    jump, distance = np.linalg.norm(at_b - at_a, axis=-1), np.linalg.norm(b - a, axis=-1)
    i = int(np.argmax(jump))
    if jump[i] > 1e-4 * size:
        return refuted(
            f"label {label[i]}: at z = {show(a[i])} the gradient jumps from {show(at_a[i])} to "
            f"{show(at_b[i])} within a distance of {distance[i]:.1g}",
            340 * 45,
            logits=[a[i], b[i]],
            label=label[i],
            gradients=[at_a[i], at_b[i]],
        )
    return None


def strong_on_confident_mistakes(subject: Subject) -> Finding:
    """Check that |dL/dz| does not vanish where the network is surest of a wrong class."""
    margins = np.array((0.0, 0.5, 1.0, 1.9) if subject.cosines else MARGINS)
    z = np.zeros((len(margins), subject.classes))
    z[:, 1] = margins / 2 if subject.cosines else margins
    z[:, 0] = -margins / 2 if subject.cosines else 0
    size = np.linalg.norm(subject.gradients(z)[:, 0], axis=-1)
    # Without cosines the verdict falls at a margin of 20; 100 is shown.
    known, last = (size, size[-1]) if subject.cosines else (size[:-2], size[-2])
    shown = margins[1:] if subject.cosines else margins[3:]
    text = "|gradient| " + ", ".join(
        f"{s:.3g} at margin {-m:g}" for m, s in zip(shown, size[-len(shown) :], strict=True)
    )
    data = {"margins": -margins, "gradients": size}
    if not last >= VANISHED * known.max():
        return refuted(
            f"{text}; {known.max():.3g} at its largest", len(margins), logits=z, label=0, **data
        )
    return not_refuted(text, len(margins), **data)


def zero_at_perfect(subject: Subject) -> Finding:
    """Check that the loss of a perfect answer is 0.

    That is along z = t e_y, -t (1 - e_y) or t (e_y - 1 / K), for some t up to 1e4.
    """
    classes = subject.classes
    e_y = np.eye(classes)[0]
    if subject.cosines:
        z = (e_y - (1 - e_y) / max(classes - 1, 1))[None]
    else:
        size = np.concatenate([np.linspace(0, 20, 201), np.geomspace(20, 1e4, 60)])
        z = np.concatenate([np.outer(size, ray) for ray in (e_y, e_y - 1, e_y - 1 / classes)])
    values = subject.values(z)[:, 0]
    i = int(np.nanargmin(np.abs(values)))
    if not abs(values[i]) <= ZERO:
        return refuted(
            f"{values[i]:.4g} at best, at z = {show(z[i])}, label 0",
            len(z),
            logits=z[i],
            label=0,
            loss=values[i],
        )
    return not_refuted(f"{show(values[i])} at z = {show(z[i])}, label 0", len(z), loss=values[i])


def rewards_truth(subject: Subject) -> Finding:
    """Check that a larger logit of the true class never costs more."""
    z = subject.logits(256, seed=12)
    classes = subject.classes
    base = subject.values(z)
    worst = None
    for k, step in itertools.product(range(classes), (0.1, 1.0, 10.0)):
        moved = z.copy()
        moved[:, k] = np.minimum(z[:, k] + step, 1) if subject.cosines else z[:, k] + step
        more = subject.values(moved)[:, k] - base[:, k]
        i = int(np.argmax(np.nan_to_num(more, nan=np.inf)))
        if not more[i] <= SMALL * max(1, abs(base[i, k])) and (worst is None or more[i] > worst[0]):
            worst = more[i], i, k, moved[i]
    points = 3 * base.size
    if worst is None:
        return not_refuted("raising the true logit by 0.1, 1 and 10", points)
    _, i, k, to = worst
    after = base[i, k] + worst[0]
    return refuted(
        f"label {k}: {base[i, k]:.4g} at z = {show(z[i])}, {after:.4g} once z_{k} is {to[k]:.4g}",
        points,
        logits=[z[i], to],
        label=k,
        losses=[base[i, k], after],
    )
