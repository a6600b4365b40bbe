"""Golden values of every loss and softmax, written straight from the papers in high-precision
arithmetic.

    python tests/golden/make_golden.py        # rewrites losses.json and softmax.json

Needs only mpmath and numpy. Nothing here is clever: 1 - p is a subtraction, softmax a quotient of
exponentials, and 400 digits pay for it. Gradients come from `mpmath.diff` of the formula alone, an
independent route that is checked once against the simple analytic gradients. In both files

* every logit, teacher logit and label probability is exact in float32, and each distribution sums
  to exactly 1;
* the string "-inf" stands for minus infinity: the value is the formula's limit, the derivative of
  that logit is 0;
* a magnitude below 1e-300 is written as 0.0;
* no point lies at a kink (hinge tie, border of a sparse support, |cos| = 1), so every gradient
  exists.

Each line of losses.json is {"loss", "hyper", "logits", "labels", "value", "gradient"} (+ "extreme":
true), each line of softmax.json {"function", "alpha", "logits", "value", "jacobian", "d_alpha"}
with jacobian[i][j] = d p_i / d z_j.
"""

import functools
import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import mpmath
import numpy as np
from mpmath import mp, mpf

HERE = Path(__file__).parent
INF = mpf("inf")
DIGITS = 400  # the errors of 1 - p, even differenced, stay far below the 1e-300 that counts as zero
# Logits and label probabilities are multiples of it: exact in float32, and short to print
GRID = 1 / 1024
KINK = 5e-3  # how far every point keeps from a non-differentiable one

# ------------------------------------------------------------------------------
# probability mappings


def softmax(z):
    """exp(z_k) / sum_j exp(z_j)."""
    e = [mp.exp(x) for x in z]
    return [x / mp.fsum(e) for x in e]


def log_softmax(z):
    return [mp.log(p) for p in softmax(z)]


def descend(total, x, slope):
    """The root of the convex decreasing `total`(x) - 1 by Newton from the left, where the iterates
    only climb.
    """
    for _ in range(1000):
        step = (total(x) - 1) / slope(x)
        x += step
        if abs(step) <= mpf(2) ** (8 - mp.prec) * max(1, abs(x)):
            return x
    raise ArithmeticError("Newton's iteration did not converge")


def log_t(x, t):
    """The tempered logarithm, (x^(1-t) - 1) / (1-t); log at t = 1 (Naudts 2002)."""
    return mp.log(x) if t == 1 else (mp.power(x, 1 - t) - 1) / (1 - t)


def exp_t(x, t):
    """The tempered exponential, [1 + (1-t) x]_+^(1/(1-t)); exp at t = 1."""
    if x == -INF:
        return mpf(0)
    return mp.exp(x) if t == 1 else mp.power(max(mpf(0), 1 + (1 - t) * x), 1 / (1 - t))


def tempered_softmax(z, t):
    """exp_t(z - lambda) with the lambda that makes it sum to 1 (Amid et al. 2019); (exp_t)' =
    exp_t^t.
    """

    def p(shift):
        return [exp_t(x - shift, t) for x in z]

    shift = descend(
        lambda s: mp.fsum(p(s)), max(z), lambda s: mp.fsum(mp.power(x, t) for x in p(s) if x > 0)
    )
    return p(shift)


def entmax_threshold(z, alpha):
    """The tau of p = [(alpha-1) z - tau]_+^(1/(alpha-1)): bisection to its support, then Newton on
    that support.
    """
    x = [(alpha - 1) * v for v in z]
    power = 1 / (alpha - 1)

    def excess(tau):
        return mp.fsum(mp.power(v - tau, power) for v in x if v > tau) - 1

    low = max(x) - 1
    high = max(x)
    with mp.workprec(120):
        for _ in range(70):
            middle = (low + high) / 2
            low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    tau = low
    support = [v for v in x if v > low]
    for _ in range(60):
        step = excess(tau) / mp.fsum(power * mp.power(v - tau, power - 1) for v in support)
        tau += step
        if abs(step) <= mpf(2) ** (8 - mp.prec) * max(1, abs(tau)):
            return tau
    raise ArithmeticError("the threshold of entmax did not converge")


def entmax(z, alpha):
    """argmax_p p.z + H_alpha(p) over the simplex, Tsallis entropy H (Peters, Niculae and Martins
    2019).
    """
    if alpha == 1:
        return softmax(z)
    tau = entmax_threshold(z, mpf(alpha))
    return [mp.power(max(mpf(0), (alpha - 1) * v - tau), 1 / (mpf(alpha) - 1)) for v in z]


def sparsemax(z):
    """The Euclidean projection onto the simplex (Martins and Astudillo 2016, algorithm 1)."""
    ordered = sorted(z, reverse=True)
    rank = max(k for k in range(1, len(z) + 1) if 1 + k * ordered[k - 1] > mp.fsum(ordered[:k]))
    tau = (mp.fsum(ordered[:rank]) - 1) / rank
    return [max(mpf(0), x - tau) for x in z]


# ------------------------------------------------------------------------------
# the losses

LOSSES: dict[str, Callable] = {}


def on_distribution(formula):
    """Registers a formula of (logits, q) that is written for any distribution q."""
    LOSSES[formula.__name__] = formula
    return formula


def on_class(formula):
    """Registers a formula of (logits, y) for a true class y; a distribution q gets sum_k q_k L(z,
    k).
    """

    def expected(z, q, /, **hyper):
        return mp.fsum(q_k * formula(z, k, **hyper) for k, q_k in enumerate(q) if q_k)

    LOSSES[formula.__name__] = expected
    return formula


def others(z, y):
    return [x for j, x in enumerate(z) if j != y]


@on_class
def cross_entropy(z, y):
    return -log_softmax(z)[y]


def sigmoid(x):
    return 1 / (1 + mp.exp(-x))


@on_distribution
def binary_cross_entropy(z, q):
    """1 - sigmoid(x) is written sigmoid(-x): its logarithm counts even where it is 1e-4343."""
    return -mp.fsum(
        (q_k * mp.log(sigmoid(x)) if q_k else 0)
        + ((1 - q_k) * mp.log(sigmoid(-x)) if q_k < 1 else 0)
        for q_k, x in zip(q, z, strict=True)
    )


@on_distribution
def asymmetric(z, q, gamma_pos=1.0, gamma_neg=4.0, clip=0.05):
    """Ridnik et al. 2021: focal terms for what is there and, after a shift by `clip`, for what is
    not.
    """

    def there(s):
        return mp.power(1 - s, gamma_pos) * mp.log(s)

    def absent(n):
        return mp.power(n, gamma_neg) * mp.log(1 - n) if n > 0 else mpf(0)

    return -mp.fsum(
        (q_k * there(sigmoid(x)) if q_k else 0)
        + ((1 - q_k) * absent(sigmoid(x) - clip) if q_k < 1 else 0)
        for q_k, x in zip(q, z, strict=True)
    )


@on_distribution
def mean_squared_error(z, q):
    """Brier 1950: the squared distance of the probabilities, a sum over the classes."""
    return mp.fsum((a - b) ** 2 for a, b in zip(softmax(z), q, strict=True))


@on_class
def squared_logits(z, y, k=1.0, m=1.0):
    """Hui and Belkin 2020: the square loss on logits, with rescaling k and M."""
    return (k * (z[y] - m) ** 2 + mp.fsum(x**2 for x in others(z, y))) / len(z)


@on_class
def squentropy(z, y):
    """Hui, Belkin and Wright 2023."""
    return cross_entropy(z, y) + mp.fsum(x**2 for x in others(z, y)) / (len(z) - 1)


@on_class
def focal(z, y, gamma=2.0):
    """Lin et al. 2017, without alpha balancing."""
    p = softmax(z)[y]
    return -mp.power(1 - p, gamma) * mp.log(p)


@on_class
def poly(z, y, epsilon=1.0):
    """Poly-1, Leng et al. 2022."""
    p = softmax(z)[y]
    return -mp.log(p) + epsilon * (1 - p)


@on_distribution
def mean_absolute_error(z, q):
    """Ghosh et al. 2017: 2 (1 - p_y) on a class."""
    return mp.fsum(abs(a - b) for a, b in zip(softmax(z), q, strict=True))


@on_class
def generalized_cross_entropy(z, y, q=0.7):
    """Zhang and Sabuncu 2018."""
    return (1 - mp.power(softmax(z)[y], q)) / q


@on_class
def reverse_cross_entropy(z, y, log_zero=-4.0):
    """Wang et al. 2019: -sum_k p_k log e_k with log 0 := A."""
    return -mp.fsum(p * log_zero for p in others(softmax(z), y))


@on_class
def symmetric_cross_entropy(z, y, alpha=0.1, beta=1.0, log_zero=-4.0):
    """Wang et al. 2019."""
    return alpha * cross_entropy(z, y) + beta * reverse_cross_entropy(z, y, log_zero)


@on_class
def normalized_cross_entropy(z, y):
    """Ma et al. 2020."""
    log_p = log_softmax(z)
    return log_p[y] / sum(log_p)


@on_class
def normalized_focal(z, y, gamma=0.5):
    """Ma et al. 2020."""
    terms = [focal(z, k, gamma) for k in range(len(z))]
    return terms[y] / sum(terms)


@on_distribution
def active_passive(
    z, q, alpha=1.0, beta=1.0, active="normalized_cross_entropy", passive="reverse_cross_entropy"
):
    """Ma et al. 2020."""
    return alpha * LOSSES[active](z, q) + beta * LOSSES[passive](z, q)


@on_distribution
def bi_tempered(z, q, t1=0.8, t2=1.2):
    """Amid et al. 2019: the Bregman divergence of temperature t1 between q and the tempered softmax
    of t2.
    """
    p = tempered_softmax(z, mpf(t2))
    t1 = mpf(t1)
    return mp.fsum(
        (b * (log_t(b, t1) - log_t(a, t1)) if b else 0)
        - (mp.power(b, 2 - t1) - mp.power(a, 2 - t1)) / (2 - t1)
        for a, b in zip(p, q, strict=True)
    )


def fenchel_young(z, y, alpha, p):
    """(p - e_y).z + H_alpha(p) (Blondel, Martins and Niculae 2020), Tsallis entropy, Shannon's at
    alpha = 1.
    """
    p_support = [x for x in p if x > 0]
    if alpha == 1:
        entropy = -mp.fsum(x * mp.log(x) for x in p_support)
    else:
        entropy = mp.fsum(x - mp.power(x, alpha) for x in p_support) / (alpha * (mpf(alpha) - 1))
    return mp.fsum(a * b for a, b in zip(p, z, strict=True) if a) - z[y] + entropy


@on_class
def entmax_loss(z, y, alpha=1.5):
    return fenchel_young(z, y, mpf(alpha), entmax(z, mpf(alpha)))


@on_class
def sparsemax_loss(z, y):
    return fenchel_young(z, y, mpf(2), sparsemax(z))


@on_class
def multiclass_hinge(z, y, margin=1.0, form="crammer_singer"):
    """Crammer and Singer 2001 (the worst class) and Weston and Watkins 1999 (the sum over
    classes).
    """
    violations = [max(mpf(0), margin + x - z[y]) for x in others(z, y)]
    return {"crammer_singer": max, "weston_watkins": mp.fsum}[form](violations)


@on_class
def logit_penalty(z, y, beta=6e-4):
    """Kornblith et al. 2021: the squared norm of the logits, whole and not halved."""
    return cross_entropy(z, y) + beta * mp.fsum(x**2 for x in z)


@on_class
def cosine_softmax(z, y, scale=20.0):
    return cross_entropy([scale * x for x in z], y)


@on_class
def logit_norm(z, y, temperature=0.04):
    """Wei et al. 2022."""
    norm = mp.sqrt(mp.fsum(x**2 for x in z))
    return cross_entropy([x / (temperature * norm) for x in z], y)


def replaced(z, y, value):
    return [value if j == y else x for j, x in enumerate(z)]


@on_class
def ldam(z, y, class_counts, max_margin=0.5, scale=30.0):
    """Cao et al. 2019: margins C n^(-1/4), with the C that makes the largest `max_margin`."""
    root = [mp.power(n, mpf(-1) / 4) for n in class_counts]
    margin = max_margin * root[y] / max(root)
    return cosine_softmax(replaced(z, y, z[y] - margin), y, scale)


@on_class
def logit_adjusted(z, y, class_counts, tau=1.0):
    """Menon et al. 2021."""
    prior = [mpf(n) / sum(class_counts) for n in class_counts]
    return cross_entropy([x + tau * mp.log(pi) for x, pi in zip(z, prior, strict=True)], y)


@on_class
def balanced_softmax(z, y, class_counts):
    """Ren et al. 2020: n_y exp(z_y) / sum_j n_j exp(z_j)."""
    weighted = [n * mp.exp(x) for n, x in zip(class_counts, z, strict=True)]
    return -mp.log(weighted[y] / mp.fsum(weighted))


@on_class
def cosface(z, y, margin=0.35, scale=64.0):
    """Wang et al. 2018."""
    return cosine_softmax(replaced(z, y, z[y] - margin), y, scale)


@on_class
def arcface(z, y, margin=0.5, scale=64.0):
    """Deng et al. 2019, with the authors' continuation z_y - m sin(pi - m) past an angle of
    pi - m.
    """
    angle = mp.acos(z[y])
    target = (
        mp.cos(angle + margin)
        if angle <= mp.pi - margin
        else z[y] - margin * mp.sin(mp.pi - margin)
    )
    return cosine_softmax(replaced(z, y, target), y, scale)


@on_distribution
def distillation(z, q, teacher_logits, temperature=4.0, alpha=0.9):
    """Hinton et al. 2015: the soft term carries T^2, so that its gradients keep their size."""
    teacher = softmax([x / temperature for x in teacher_logits])
    student = log_softmax([x / temperature for x in z])
    divergence = mp.fsum(a * (mp.log(a) - b) for a, b in zip(teacher, student, strict=True) if a)
    return alpha * temperature**2 * divergence + (1 - alpha) * LOSSES["cross_entropy"](z, q)


@on_distribution
def jensen_shannon(z, q, view_logits, weight=12.0):
    """Hendrycks et al. 2020 (AugMix): the mean divergence of every view's probabilities from their
    mixture.
    """
    views = [softmax(view) for view in [z, *view_logits]]
    mixture = [mp.fsum(column) / len(views) for column in zip(*views, strict=True)]
    divergence = mp.fsum(
        p * mp.log(p / m) for view in views for p, m in zip(view, mixture, strict=True) if p
    )
    return LOSSES["cross_entropy"](z, q) + weight * divergence / len(views)


# ------------------------------------------------------------------------------
# which settings

# Beside the defaults; class_counts, teacher_logits and view_logits are drawn with each case.
OTHERS = {
    "squared_logits": [{"k": 15.0, "m": 30.0}, {"k": 0.5, "m": 2.0}],
    "focal": [{"gamma": 0.0}, {"gamma": 0.5}, {"gamma": 1.0}, {"gamma": 5.0}],
    "poly": [{"epsilon": -1.0}, {"epsilon": 2.0}, {"epsilon": 0.0}],
    "asymmetric": [
        {"gamma_pos": 0.0, "clip": 0.0},
        {"gamma_pos": 2.0, "gamma_neg": 2.0, "clip": 0.2},
    ],
    "jensen_shannon": [{"weight": 1.0}],
    "generalized_cross_entropy": [{"q": 1.0}, {"q": 0.1}, {"q": 0.5}],
    "reverse_cross_entropy": [{"log_zero": -6.0}, {"log_zero": -1.0}],
    "symmetric_cross_entropy": [
        {"alpha": 6.0, "beta": 0.1},
        {"alpha": 1.0, "beta": 0.5, "log_zero": -2.0},
    ],
    "normalized_focal": [{"gamma": 0.0}, {"gamma": 1.0}, {"gamma": 2.0}],
    "active_passive": [
        {"active": "normalized_focal", "passive": "mean_absolute_error"},
        {"alpha": 10.0, "beta": 0.1, "passive": "mean_absolute_error"},
        {"alpha": 0.5, "beta": 2.0, "active": "normalized_focal"},
    ],
    "bi_tempered": [
        {"t1": 1.0, "t2": 1.0},
        {"t1": 1.0},
        {"t2": 1.0},
        {"t1": 0.5, "t2": 4.0},
        {"t1": 0.2, "t2": 1.5},
    ],
    "entmax_loss": [{"alpha": a} for a in (1.0, 1.2, 2.0, 3.0)],
    "multiclass_hinge": [
        {"form": "weston_watkins"},
        {"margin": 0.25},
        {"margin": 5.0, "form": "weston_watkins"},
    ],
    "logit_penalty": [{"beta": 0.0}, {"beta": 0.1}],
    "cosine_softmax": [{"scale": 1.0}, {"scale": 5.0}],
    "logit_norm": [{"temperature": 1.0}, {"temperature": 0.5}],
    "ldam": [{"max_margin": 1.0, "scale": 1.0}, {"max_margin": 0.3, "scale": 10.0}],
    "logit_adjusted": [{"tau": 0.0}, {"tau": 0.5}, {"tau": 2.0}],
    "cosface": [{"margin": 0.0, "scale": 30.0}, {"margin": 0.2, "scale": 10.0}],
    "arcface": [
        {"margin": 0.0, "scale": 30.0},
        {"margin": 1.0, "scale": 10.0},
        {"margin": 0.1, "scale": 4.0},
    ],
    "distillation": [
        {"temperature": 1.0, "alpha": 1.0},
        {"temperature": 2.0, "alpha": 0.5},
        {"temperature": 20.0, "alpha": 0.0},
    ],
}
COUNTED = ("ldam", "logit_adjusted", "balanced_softmax")
COSINES = ("arcface", "cosface", "cosine_softmax", "ldam")
# (classes, scale of the logits, kind of label): at the defaults, then at each other setting.
DEFAULT_SHAPES = [
    (2, 1, "id"),
    (5, 3, "id"),
    (5, 1, "id"),
    (5, 10, "id"),
    (2, 3, "id"),
    (2, 3, "dirichlet"),
    (5, 10, "dirichlet"),
    (5, 1, "dirichlet"),
    (5, 3, "one_hot"),
    (5, 3, "zeros"),
]
OTHER_SHAPES = [(5, 3, "id"), (5, 1, "dirichlet")]

NINF = -math.inf
SEPARATED = [1e4, 1.5, -1e4, -2.25, 0.75]
CLOSE = [-1e4, 1e4, 9999.5, 3.0, -2.0]
MODERATE = [80.0, -80.0, 0.5, -1.25, 3.0]
MASKED = [2.0, NINF, -1.0, 0.5, NINF]
LONELY = [NINF, 0.5, NINF, NINF, NINF]
BOTH = [1e4, NINF, -1e4, 3.0, -2.0]
EXTREMES = [
    *((SEPARATED, y) for y in (0, 1, 2)),
    *((CLOSE, y) for y in (2, 0)),
    *((MODERATE, y) for y in (0, 1)),
    (MASKED, 0),
    (MASKED, 3),
    (MASKED, [0.5, 0.0, 0.25, 0.25, 0.0]),
    (LONELY, 1),
    *((BOTH, y) for y in (0, 2)),
]
# No finite limit at a logit of -inf
UNBOUNDED = (
    "squared_logits",
    "squentropy",
    "logit_norm",
    "logit_penalty",
)


def on_grid(x):
    return [float(v) for v in np.round(np.asarray(x) / GRID) * GRID]


def distribution(rng, classes):
    """Dirichlet(1) in multiples of GRID: the last class takes what is left, so that it sums to
    exactly 1.
    """
    q = np.floor(rng.dirichlet(np.ones(classes)) / GRID) * GRID
    q[-1] += 1 - q.sum()
    return [float(v) for v in q]


def draw_label(rng, loss, kind, classes):
    y = int(rng.integers(classes))
    if kind == "id":
        return y
    if kind == "one_hot":
        return [float(k == y) for k in range(classes)]
    if loss in ("binary_cross_entropy", "asymmetric") and kind == "dirichlet":
        return on_grid(rng.uniform(size=classes))  # independent targets need not sum to 1
    if kind == "dirichlet":
        return distribution(rng, classes)
    q = [0.0] * classes
    for k, v in zip(rng.permutation(classes)[:2], (0.625, 0.375), strict=True):
        q[k] = v
    return q


def per_class_hyper(rng, loss, classes):
    if loss in COUNTED:
        return {
            "class_counts": [int(n) for n in np.ceil(5000 * rng.uniform(0.02, 1, classes) ** 3)]
        }
    if loss == "jensen_shannon":
        return {"view_logits": [on_grid(3 * rng.normal(size=classes)) for _ in range(2)]}
    return (
        {"teacher_logits": on_grid(3 * rng.normal(size=classes))} if loss == "distillation" else {}
    )


def smooth_at(loss, hyper, z, label):
    """Whether no kink lies near: of the hinge, of a sparse support, of arcface's continuation."""
    classes = [label] if isinstance(label, int) else [k for k, q_k in enumerate(label) if q_k]
    if loss == "multiclass_hinge":
        gaps = [[hyper.get("margin", 1.0) + x - z[y] for x in others(z, y)] for y in classes]
        return all(
            min(map(abs, gap)) > KINK and (len(gap) == 1 or -np.subtract(*sorted(gap)[-2:]) > KINK)
            for gap in gaps
        )
    if loss == "arcface":
        return all(abs(z[y] - math.cos(math.pi - hyper.get("margin", 0.5))) > KINK for y in classes)
    if loss in ("sparsemax_loss", "entmax_loss"):
        return support_is_clear(z, 2.0 if loss == "sparsemax_loss" else hyper.get("alpha", 1.5))
    return True


def support_is_clear(z, alpha):
    if alpha == 1:
        return True
    tau = entmax_threshold([mpf(x) for x in z], mpf(alpha))
    return all(abs((alpha - 1) * x - tau) > KINK for x in z)


def random_cases(loss):
    """(hyper, logits, label) of one loss."""
    rng = np.random.default_rng(zlib.crc32(loss.encode()))
    settings = [({}, shape) for shape in DEFAULT_SHAPES]
    settings += [(setting, shape) for setting in OTHERS.get(loss, []) for shape in OTHER_SHAPES]
    if loss == "arcface":  # two beyond the angle of continuation, which random cosines seldom reach
        yield {}, on_grid([0.3, -0.93, 0.1, -0.2, 0.7]), 1
        yield {"margin": 1.0, "scale": 10.0}, on_grid([0.3, 0.6, -0.8, 0.2, 0.0]), 2
    for i, (setting, (classes, scale, kind)) in enumerate(settings):
        cosines = loss == "arcface" or (loss in COSINES and i % 2 == 0)
        while True:
            hyper = per_class_hyper(rng, loss, classes) | setting
            z = on_grid(
                rng.uniform(-0.95, 0.95, classes) if cosines else scale * rng.normal(size=classes)
            )
            label = draw_label(rng, loss, kind, classes)
            if smooth_at(loss, hyper, z, label):
                break
        yield hyper, z, label


def extreme_cases(loss):
    if loss == "arcface":  # its logits are cosines
        return
    rng = np.random.default_rng(zlib.crc32(loss.encode()) + 1)
    for z, label in EXTREMES:
        masked = NINF in z
        if masked and loss in UNBOUNDED:
            continue
        hyper = per_class_hyper(rng, loss, len(z))
        # Finite only where the teacher rules the class out too.
        if masked and loss == "distillation":
            hyper["teacher_logits"] = [
                x if v > NINF else v for x, v in zip(hyper["teacher_logits"], z, strict=True)
            ]
        if masked and loss == "jensen_shannon":  # a class that cannot be cannot be in any view
            hyper["view_logits"] = [
                [x if v > NINF else v for x, v in zip(view, z, strict=True)]
                for view in hyper["view_logits"]
            ]
        yield hyper, z, label
    if loss == "multiclass_hinge":
        yield {"form": "weston_watkins"}, SEPARATED, 1
        yield {"form": "weston_watkins"}, MASKED, 3
    for setting in {"entmax_loss": [1.0, 2.0, 3.0]}.get(loss, []):
        yield {"alpha": setting}, SEPARATED, 1
        yield {"alpha": setting}, MASKED, 3
    for setting in OTHERS["bi_tempered"][:4] if loss == "bi_tempered" else []:
        yield setting, SEPARATED, 1
        yield setting, MASKED, 3
    if loss == "active_passive":
        yield OTHERS[loss][0], SEPARATED, 1
        yield OTHERS[loss][0], MASKED, 3


# ------------------------------------------------------------------------------
# values, gradients


def number(x):
    return 0.0 if abs(x) < mpf("1e-300") else float(x)


def partial(function, z, j):
    """d function / d z_j at z; 0 where z_j is -inf."""
    return (
        mpf(0) if z[j] == -INF else mpmath.diff(lambda x: function([*z[:j], x, *z[j + 1 :]]), z[j])
    )


def exactly(value):
    if isinstance(value, list):
        return [exactly(x) for x in value]
    return value if isinstance(value, str) else mpf(value)


def evaluate(loss, hyper, logits, label):
    z = [mpf(x) for x in logits]
    q = (
        [mpf(k == label) for k in range(len(z))]
        if isinstance(label, int)
        else [mpf(x) for x in label]
    )
    exact = {name: exactly(v) for name, v in hyper.items()}

    def function(z):
        return LOSSES[loss](z, q, **exact)

    return function(z), [partial(function, z, j) for j in range(len(z))], z, q


ANALYTIC = {
    "cross_entropy": lambda z, q: [p - t for p, t in zip(softmax(z), q, strict=True)],
    "binary_cross_entropy": lambda z, q: [sigmoid(x) - t for x, t in zip(z, q, strict=True)],
    "sparsemax_loss": lambda z, q: [p - t for p, t in zip(sparsemax(z), q, strict=True)],
    "entmax_loss": lambda z, q, alpha=1.5: [
        p - t for p, t in zip(entmax(z, mpf(alpha)), q, strict=True)
    ],
    "logit_penalty": lambda z, q, beta=6e-4: [
        p - t + 2 * beta * x for p, t, x in zip(softmax(z), q, z, strict=True)
    ],
    "cosine_softmax": lambda z, q, scale=20.0: [
        scale * (p - t) for p, t in zip(softmax([scale * x for x in z]), q, strict=True)
    ],
}


def loss_rows():
    for loss in LOSSES:
        for mark, cases in (({}, random_cases(loss)), ({"extreme": True}, extreme_cases(loss))):
            for hyper, logits, label in cases:
                value, gradient, z, q = evaluate(loss, hyper, logits, label)
                if loss in ANALYTIC:
                    expected = ANALYTIC[loss](z, q, **hyper)
                    assert all(
                        abs(a - b) < mpf("1e-30") for a, b in zip(gradient, expected, strict=True)
                    ), loss
                row = {"loss": loss, "hyper": hyper, "logits": logits, "labels": label}
                yield (
                    row | {"value": number(value), "gradient": [number(g) for g in gradient]} | mark
                )


MAPPINGS = [
    ("softmax", None),
    ("sparsemax", None),
    ("entmax15", None),
    *(("entmax", alpha) for alpha in (1.0, 1.05, 1.3, 1.5, 2.0, 2.5, 4.0)),
]
MAPPING_SHAPES = [(2, 1), (3, 3), (4, 1), (5, 3), (5, 10), (7, 0.3), (10, 1)]
MAPPING_EXTREMES = [SEPARATED, CLOSE, MODERATE, MASKED, LONELY, BOTH]


def d_entmax_d_alpha(z, alpha):
    """At alpha = 1 the limit -p/2 (u^2 - sum_j p_j u_j^2), u = log p, held against a one-sided
    difference.
    """

    def p(a, i):
        return entmax_once(tuple(z), a, mp.prec)[i]

    if alpha != 1:
        return [
            mpf(0) if z[i] == -INF else mpmath.diff(lambda a, i=i: p(a, i), alpha)
            for i in range(len(z))
        ]
    squares = [(x, mp.log(x) ** 2 if x else mpf(0)) for x in softmax(z)]
    mean = mp.fsum(x * u for x, u in squares)
    limit = [-x * (u - mean) / 2 for x, u in squares]
    step = mpf("1e-20")
    for i, slope in enumerate(limit):
        assert z[i] == -INF or abs((p(1 + step, i) - p(mpf(1), i)) / step - slope) < mpf("1e-15")
    return limit


@functools.cache
def entmax_once(z, alpha, precision):
    """Every entry of a jacobian needs the same few points; `precision` is in the key because the
    answer has it.
    """
    finite = iter(entmax([x for x in z if x > -INF], alpha))
    return [mpf(0) if x == -INF else next(finite) for x in z]


def softmax_rows():
    rng = np.random.default_rng(20200601)
    for function, alpha in MAPPINGS:
        order = {"softmax": 1, "sparsemax": 2, "entmax15": 1.5}.get(function, alpha)
        randoms = []
        for classes, scale in MAPPING_SHAPES:
            while not support_is_clear(z := on_grid(scale * rng.normal(size=classes)), order):
                pass
            randoms.append(z)
        for logits in randoms + MAPPING_EXTREMES:
            z = [mpf(x) for x in logits]

            def p(z, i, function=function, order=order):
                if function in ("softmax", "sparsemax"):
                    return {"softmax": softmax, "sparsemax": sparsemax}[function](z)[i]
                return entmax_once(tuple(z), mpf(order), mp.prec)[i]

            assert support_is_clear([x for x in logits if x > NINF], order), (
                function,
                alpha,
                logits,
            )
            value = [number(p(z, i)) for i in range(len(z))]
            jacobian = [
                [number(partial(lambda z, i=i: p(z, i), z, j)) for j in range(len(z))]
                for i in range(len(z))
            ]
            slope = [number(x) for x in d_entmax_d_alpha(z, mpf(alpha))] if alpha else None
            row = {"function": function, "alpha": alpha, "logits": logits, "value": value}
            yield row | {"jacobian": jacobian, "d_alpha": slope}
            entmax_once.cache_clear()


def write(name, rows):
    """One compact line a row; floats by repr, so that they read back bit for bit."""

    def plain(x):
        if isinstance(x, dict):
            return {k: plain(v) for k, v in x.items()}
        return [plain(v) for v in x] if isinstance(x, list) else "-inf" if x == NINF else x

    lines = [json.dumps(plain(row), separators=(",", ":"), allow_nan=False) for row in rows]
    path = HERE / name
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(f"{name}: {len(lines)} cases, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    mp.dps = DIGITS
    write("losses.json", loss_rows())
    write("softmax.json", softmax_rows())
