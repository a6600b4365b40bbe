"""The report card of a loss: which properties it has, each with a counterexample, what was tried,
or a proof.

    subject.py     a loss under examination: values, gradients and Hessians in float64
    risk.py        what minimises the expected risk: strict propriety, calibration
    shape.py       the loss as a function of the logits: symmetry, bounds, curvature, slopes, limits
    soundness.py   the implementation: finite, true gradients, accumulation, transforms, labels
    claims.py      what a docstring says
    citations.py   what is proved of cnnlab's own losses
    finding.py     a verdict, and how it is written down
    page.py        cards as a self-contained HTML page; table.py: as text

PROPERTIES are all of them; `card` examines a loss. A card that calls everything good is worthless:
the tests assert the refutations too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

import numpy as np

from cnnlab import losses
from cnnlab.docstrings import Entry, entry
from cnnlab.errors import InputError, unknown
from cnnlab.report_card import claims as claims_
from cnnlab.report_card import risk, shape, soundness
from cnnlab.report_card.citations import citation
from cnnlab.report_card.finding import NOT_APPLICABLE, NOT_REFUTED, PROVED, REFUTED, Finding, plain
from cnnlab.report_card.subject import Subject, placeholders
from cnnlab.spec import parse
from cnnlab.types import JsonObject

__all__ = [
    "MATHEMATICAL",
    "PROPERTIES",
    "Card",
    "Curve",
    "Finding",
    "Property",
    "card",
    "curve",
    "placeholders",
]


class Property(NamedTuple):
    """A property: a short name for tables, what it means, where it comes from, and the check."""

    short: str
    meaning: str
    source: str
    check: Callable[[Subject], Finding]


MATHEMATICAL = {
    "strictly_proper": Property(
        "proper",
        "the expected loss sum_k q_k L(z, k) is lowest where softmax(z) = q, and only there",
        "Gneiting & Raftery 2007; Williamson et al. 2016",
        risk.strictly_proper,
    ),
    "classification_calibrated": Property(
        "calibr",
        "where the expected loss is lowest, the likeliest class has the largest logit",
        "Bartlett et al. 2006; Tewari & Bartlett 2007",
        risk.classification_calibrated,
    ),
    "symmetric": Property(
        "symm",
        "the losses of all classes sum to a constant, which makes it tolerant of label noise",
        "Ghosh et al. 2017",
        shape.symmetric,
    ),
    "bounded": Property(
        "bound", "no mistake costs more than a constant", "Ghosh et al. 2017", shape.bounded
    ),
    "non_negative": Property(
        "nonneg", "the loss is never negative", "Blondel et al. 2020", shape.non_negative
    ),
    "convex": Property(
        "convex",
        "convex in the logits",
        "Williamson et al. 2016; Blondel et al. 2020",
        shape.convex,
    ),
    "shift_invariant": Property(
        "shift", "adding a number to all logits changes nothing", "softmax", shape.shift_invariant
    ),
    "smooth": Property(
        "smooth",
        "the gradient has no jumps; the curvature seen bounds its Lipschitz constant from below",
        "Blondel et al. 2020",
        shape.smooth,
    ),
    "strong_on_confident_mistakes": Property(
        "mistak",
        "the gradient does not vanish where a wrong class leads by 20",
        "Zhang & Sabuncu 2018",
        shape.strong_on_confident_mistakes,
    ),
    "zero_at_perfect": Property(
        "zero",
        "a perfect answer costs nothing, in the limit",
        "Blondel et al. 2020",
        shape.zero_at_perfect,
    ),
    "rewards_truth": Property(
        "reward",
        "a larger logit of the true class never costs more",
        "common sense",
        shape.rewards_truth,
    ),
}
IMPLEMENTATION = {
    "finite": Property(
        "finite",
        "value, gradient and Hessian are finite in float32, bfloat16 and float16 wherever the "
        "formula is, for logits of ±1e4 and -inf",
        "optax #896, #898, #1020",
        soundness.finite,
    ),
    "true_gradient": Property(
        "grad",
        "autodiff's gradient is that of the values",
        "central differences",
        soundness.true_gradient,
    ),
    "float32_accumulation": Property(
        "accum",
        "half-precision logits give a float32 loss, as accurate as float32 is",
        "mixed precision",
        soundness.float32_accumulation,
    ),
    "transform_safe": Property(
        "transf",
        "jit, vmap, batches of rank 0 to 2, grad, jacfwd and hessian work and agree",
        "optax PR #1762",
        soundness.transform_safe,
    ),
    "label_safe": Property(
        "label",
        "a label outside [0, K) never gets another class's loss",
        "optax #1185",
        soundness.label_safe,
    ),
    "one_hot_agrees": Property(
        "onehot",
        "a one-hot distribution means the same as its class id",
        "mixup",
        soundness.one_hot_agrees,
    ),
    "label_differentiable": Property(
        "dlabel",
        "the derivative with respect to a distribution is that of the values, also at 0 and 1",
        "differences; label distributions that are learned",
        soundness.label_differentiable,
    ),
}
PROPERTIES = MATHEMATICAL | IMPLEMENTATION


@dataclass(frozen=True)
class Card:
    """All findings on one loss.

    Attributes:
      name: as it was asked for.
      findings: by property.
      about: what its docstring says.
      loss: the function.
      hyperparameters: those that were set.
      num_classes, cosines, seconds: how it was examined.
    """

    name: str
    findings: dict[str, Finding]
    about: Entry
    loss: Callable
    hyperparameters: dict[str, object] = field(default_factory=dict)
    num_classes: int = 3
    cosines: bool = False
    seconds: float = 0.0

    def __getitem__(self, property: str) -> Finding:
        return self.findings[property]

    @property
    def broken_claims(self) -> list[Finding]:
        """What is claimed and refuted, or could not be examined at all."""
        return [
            f
            for f in self.findings.values()
            if f.claimed and f.verdict in (REFUTED, NOT_APPLICABLE)
        ]

    def to_json(self) -> JsonObject:
        """Convert the card to strict JSON."""
        findings = {name: finding.to_json() for name, finding in self.findings.items()}
        fields = {name: value for name, value in vars(self).items() if name != "loss"}
        about = cast(JsonObject, plain(fields | {"about": vars(self.about)}))
        return about | {"findings": findings}


def card(
    loss: Callable,
    *,
    name: str | None = None,
    hyperparameters: Mapping[str, object] | None = None,
    num_classes: int = 3,
    cosines: bool | None = None,
    claims: Iterable[str] = (),
    properties: Iterable[str] | None = None,
) -> Card:
    """Examine a loss, which takes a few seconds, most of them to compile it.

    Args:
      loss: (logits, labels, **hyperparameters) -> float32[...]. What it takes from the data or from
        other networks (class_counts, teacher_logits, view_logits) is filled in with `placeholders`.
      name: for the card; the function's own by default.
      hyperparameters: those to set.
      num_classes: K of the examination; the searches are made for few.
      cosines: whether the logits are cosines; by default where cnnlab.losses says so.
      claims: properties said to hold, besides those that the docstring claims: `strictly_proper`,
        `same as squentropy`.
      properties: which to examine; all by default, the claimed ones always.

    Returns:
      Its card: one Finding for each property.

    Raises:
      InputError: an unknown property, or fewer than two classes.

    >>> from cnnlab.losses import focal
    >>> found = card(focal, properties=["strictly_proper", "shift_invariant"])
    >>> [(name, finding.verdict) for name, finding in found.findings.items()]
    [('strictly_proper', 'refuted'), ('shift_invariant', 'proved')]
    """
    if num_classes < 2:
        raise InputError(f"a loss is examined with at least 2 classes, got {num_classes}")
    start = time.perf_counter()
    loss_name = getattr(loss, "__name__", "loss")
    hyperparameters = dict(hyperparameters or {})
    claimed = claims_.resolve([*claims_.claimed(loss), *claims], PROPERTIES)
    wanted = list(PROPERTIES if properties is None else properties)
    for asked in wanted:
        if asked not in PROPERTIES:
            raise unknown("property", asked, PROPERTIES)
    built_in = losses.LOSSES.get(loss_name) is loss
    if cosines is None:
        cosines = bool(getattr(loss, "head", "linear") == "cosine")
    subject = Subject(loss, loss_name, num_classes, cosines, hyperparameters)
    findings = {}
    for key in [p for p in PROPERTIES if p in wanted or p in claimed]:
        finding = _examine(PROPERTIES[key].check, subject, key)
        proof = citation(loss_name, key, not hyperparameters) if built_in else ""
        if proof and finding.verdict == NOT_REFUTED:
            finding = replace(finding, verdict=PROVED, citation=proof)
        findings[key] = replace(finding, property=key, claimed=key in claimed)
    if "same_as" in claimed:
        other = _named(claimed["same_as"], num_classes)
        finding = _examine(lambda subject: soundness.same_as(subject, other), subject, "same_as")
        findings["same_as"] = replace(finding, property="same_as", claimed=True)
    seconds = round(time.perf_counter() - start, 2)
    return Card(
        name or loss_name,
        findings,
        entry(loss),
        loss,
        hyperparameters,
        num_classes,
        cosines,
        seconds,
    )


def _examine(check: Callable[[Subject], Finding], subject: Subject, name: str) -> Finding:
    """Run a check and return its finding.

    Mathematical properties do not apply to a loss that raises; those of an implementation are
    refuted.
    """
    try:
        if (name in MATHEMATICAL or name == "true_gradient") and (broken := subject.no_number()):
            return Finding(name, REFUTED, broken, 1)
        return check(subject)
    except Exception as error:
        reason = soundness.first_line(error)
        if name in MATHEMATICAL:
            return Finding(name, NOT_APPLICABLE, f"it cannot be evaluated: {reason}")
        return Finding(name, REFUTED, f"it fails: {reason}")


def _named(spec: str, num_classes: int) -> Subject:
    """Look up the built-in loss that a claim `same as ...` names."""
    written = parse(spec)
    known = losses.LOSSES | losses.ALIASES
    if written.name not in known:
        raise unknown("loss in the claim 'same as'", written.name, known)
    loss = known[written.name]
    return Subject(
        loss,
        written.name,
        num_classes,
        bool(getattr(loss, "head", "linear") == "cosine"),
        dict(written.keywords),
    )


class Curve(NamedTuple):
    """A loss along a sweep of the true class: x, loss and |gradient| at it; x is `probability` or
    `cosine`.
    """

    axis: str
    x: np.ndarray
    loss: np.ndarray
    gradient: np.ndarray


def curve(
    loss: Callable,
    hyperparameters: Mapping[str, object] | None = None,
    num_classes: int = 3,
    cosines: bool = False,
) -> Curve:
    """Compute a loss and the length of its gradient against the true class's probability.

    The other classes are equally likely.

    Args:
      loss, hyperparameters, num_classes: as in `card`.
      cosines: sweep the true class's cosine z_y instead, the others being -z_y / (K - 1): cosines
        do not reach every probability.

    Returns:
      float64[201] each. The other logits are 0, for the losses that see more than probabilities.
    """
    subject = Subject(loss, "", num_classes, cosines, dict(hyperparameters or {}))
    x = np.linspace(-0.999, 0.999, 201) if cosines else np.linspace(0.001, 0.999, 201)
    others = -x / (num_classes - 1) if cosines else np.zeros_like(x)
    z_y = x if cosines else np.log(x * (num_classes - 1) / (1 - x))
    z = np.stack([z_y, *[others] * (num_classes - 1)], -1)
    gradient = np.linalg.norm(subject.gradients(z)[:, 0], axis=-1)
    return Curve("cosine" if cosines else "probability", x, subject.values(z)[:, 0], gradient)
