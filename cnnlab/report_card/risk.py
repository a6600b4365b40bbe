"""Properties of the expected risk R(z) = sum_k q_k L(z, k): what a network that fits q perfectly
would answer.

Never L(z, q): a loss may define its value at a distribution otherwise (mean_absolute_error does).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cnnlab.report_card.finding import Finding, not_applicable, not_refuted, refuted, show
from cnnlab.report_card.subject import Subject

FAR = 1e-3  # total variation from which softmax(z) is another distribution than q
EQUAL = 1e-12  # risks that differ by less are the same
ATTAINED = 1e-9  # a risk this near to the lowest is the lowest
GAP = 0.05  # between the two likeliest classes, from which the better one has to be seen
ROUNDS = 250  # of the search
FURTHEST = 1e12  # logits that a search may reach: some risks are lowest at infinity
# K = 3: near-uniform to peaked, none of them symmetric, two without a majority.
TARGETS = [
    (0.36, 0.33, 0.31),
    (0.30, 0.25, 0.45),
    (0.20, 0.46, 0.34),
    (0.50, 0.30, 0.20),
    (0.10, 0.65, 0.25),
    (0.80, 0.15, 0.05),
    (0.02, 0.05, 0.93),
]


def strictly_proper(subject: Subject) -> Finding:
    """Check that softmax(argmin R) is q, and nothing else."""
    if subject.cosines:
        return not_applicable("cosines lie in [-1, 1]: their softmax cannot be q")
    q, z, risk = _minima(subject)
    for i in range(len(q)):
        risk_at_truth = _at_truth(subject, q[i])
        distance = 0.5 * np.abs(_softmax(z[i]) - q[i]).sum(-1)
        others = np.where(distance > FAR, risk[i], np.inf)
        best = int(np.argmin(others))
        if others[best] <= risk_at_truth + EQUAL * max(1, abs(risk_at_truth)):
            p = _softmax(z[i, best])
            return refuted(
                f"for q = {show(q[i])} the risk is {risk[i, best]:.6g} at softmax(z) = {show(p)}, "
                f"{risk_at_truth:.6g} at q itself",
                risk.size,
                q=q[i],
                logits=z[i, best],
                softmax=p,
                risk=risk[i, best],
                risk_at_q=risk_at_truth,
            )
    return not_refuted(
        f"{len(q)} distributions q, {z.shape[1]} descents each, end at q or higher", risk.size
    )


def classification_calibrated(subject: Subject) -> Finding:
    """Check that the largest logit of argmin R belongs to the likeliest class."""
    if subject.cosines:
        return not_applicable(
            "which cosines can occur together depends on the features and weights, not on the loss"
        )
    q, z, _ = _minima(subject)
    points = 0
    for i in range(len(q)):
        top, second = np.argsort(-q[i])[:2]
        if q[i, top] - q[i, second] < GAP:
            continue
        # No preference at all, and where the search ended with a rival brought up to, or the
        # likeliest class down to, a tie; the first of them that is as good is the plainest.
        rivals = np.where(np.arange(len(q[i])) == top, -np.inf, z[i])
        down, up = z[i].copy(), z[i].copy()
        down[:, top] = np.minimum(down[:, top], rivals.max(-1))
        up[np.arange(len(up)), rivals.argmax(-1)] = np.maximum(rivals.max(-1), up[:, top])
        tried = np.concatenate([np.zeros_like(z[i, :1]), up, down, z[i]])
        at = _risk(subject, np.broadcast_to(q[i], tried.shape), tried)
        lead = tried[:, top] - np.delete(tried, top, -1).max(-1)
        lowest = at.min()
        wrong = (lead <= 0) & (at <= lowest + ATTAINED * max(1, abs(lowest)))
        points += len(tried)
        if wrong.any():
            best = int(np.argmax(wrong))
            return refuted(
                f"for q = {show(q[i])} the lowest risk {lowest:.6g} is reached at z = "
                f"{show(tried[best])}, where class {top} does not lead",
                points,
                q=q[i],
                logits=tried[best],
                risk=at[best],
                lowest_risk=lowest,
            )
    return not_refuted(
        f"the likeliest class leads at the lowest risk found for every q with a gap of {GAP}",
        points,
    )


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _targets(classes: int) -> np.ndarray:
    """Choose distributions q: float64[M, K]."""
    if classes == 3:
        return np.array(TARGETS) / np.sum(TARGETS, -1, keepdims=True)
    pattern = np.random.default_rng(classes).permutation(np.linspace(-1, 1, classes))
    plain = np.stack(
        [_softmax(s * np.roll(pattern, i)) for i, s in enumerate((0.2, 0.6, 1.2, 2, 4))]
    )
    minority = np.full(classes, 0.6 / max(classes - 1, 1))
    minority[0] = 0.4  # the likeliest by far, and no majority (which two classes cannot lack)
    return np.concatenate([plain, [minority / minority.sum()]])


def _risk(subject: Subject, q: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Compute R(z) of q[N, K] at z[N, K]; infinite where it has no value."""
    with np.errstate(all="ignore"):
        risk = np.sum(q * subject.values(z), -1)
    return np.where(np.isnan(risk), np.inf, risk)


def _at_truth(subject: Subject, q: np.ndarray) -> float:
    """Compute min_c R(log q + c), the risk of answering q.

    Of the logits that mean q, those that suit the loss best are taken.
    """
    centre = 0.0
    width = 64.0
    best = np.inf
    for _ in range(16):
        shifts = centre + width * np.linspace(-1, 1, 65)
        risk = _risk(subject, np.broadcast_to(q, (65, len(q))), np.log(q) + shifts[:, None])
        centre = shifts[int(np.argmin(risk))]
        width = width / 8
        best = min(best, float(risk.min()))
    return best


def _minima(subject: Subject) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Search for the lowest risk of each q[M, K] from S starts, once per subject.

    Return q, the ends z[M, S, K] of the searches, and R(z)[M, S].
    """
    if "minima" not in vars(subject):
        q = _targets(subject.classes)
        starts = np.stack([_starts(subject, row) for row in q])
        targets = np.repeat(q, starts.shape[1], 0)
        z, risk = descend(
            lambda z: _risk(subject, targets.repeat(len(z) // len(targets), 0), z),
            starts.reshape(-1, subject.classes),
        )
        vars(subject)["minima"] = q, z.reshape(starts.shape), risk.reshape(starts.shape[:2])
    return vars(subject)["minima"]


def _starts(subject: Subject, q: np.ndarray) -> np.ndarray:
    """Choose where the searches start: multiples of log q, corners, the centre, random points."""
    eye = np.eye(len(q))
    centred = np.log(q) - np.log(q).mean()
    return np.concatenate(
        [np.outer((0, 0.3, 1, 2, 8), centred), 4 * eye[:4], subject.logits(6, seed=1)]
    )


def descend(
    function: Callable[[np.ndarray], np.ndarray], z: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Lower function(z) by trying steps along the axes, at random, and along the last step.

    It reads values only: neither a kink nor a wrong gradient misleads it.

    Args:
      function: float64[n * N, K] -> float64[n * N], n consecutive rows for each of the N problems.
      z: float64[N, K], the starts.

    Returns:
      float64[N, K] and float64[N], where it ended.
    """
    rng = np.random.default_rng(0)
    problems, classes = z.shape
    axes = np.concatenate([np.eye(classes), -np.eye(classes)])
    value = function(z)
    step = np.ones(problems)
    last = np.zeros_like(z)
    for _ in range(ROUNDS):
        random = rng.standard_normal((classes + 2, classes))
        random /= np.linalg.norm(random, axis=-1, keepdims=True)
        moves = step[:, None, None] * np.concatenate([axes, random, -random])
        moves = np.concatenate([moves, last[:, None], 2 * last[:, None]], 1)
        tried = np.clip(z[:, None] + moves, -FURTHEST, FURTHEST)
        moves = tried - z[:, None]
        at = function(tried.reshape(-1, classes)).reshape(tried.shape[:2])
        best = np.argmin(at, 1)
        lowest = np.take_along_axis(at, best[:, None], 1)[:, 0]
        better = lowest < value
        last = np.where(better[:, None], np.take_along_axis(moves, best[:, None, None], 1)[:, 0], 0)
        z = z + last
        value = np.where(better, lowest, value)
        step = np.clip(
            np.where(better, np.maximum(step, np.linalg.norm(last, axis=-1)), step / 2), 0, 100
        )
        if step.max() < 1e-9:
            break
    return z, value
