"""Metrics and the temperature of a small set of logits, by other libraries and by plain loops.

    python tests/golden/posthoc.py    # rewrites posthoc.json

Needs scikit-learn, netcal, mpmath, scipy and numpy; their versions are in the file. netcal gives
the calibration errors over equal bins (classwise: its error of two classes, class by class),
scikit-learn what is about ranks and recalls. The temperature is where mpmath's numerical
derivative of the likelihood is zero, in 60 digits; netcal's own agrees to float32. What no library
has is written as loops over images, in fractions: bins of equal mass, and the area under the
risk-coverage curve as an average over the orders of images with the same confidence.
"""

import importlib.metadata
import json
from fractions import Fraction
from pathlib import Path

import mpmath
import numpy as np
from netcal.metrics import ECE
from netcal.scaling import TemperatureScaling
from scipy.special import logsumexp, softmax
from sklearn import metrics

LIBRARIES = ("scikit-learn", "netcal", "mpmath", "scipy", "numpy")
BINS = (15, 10)
NUM_CLASSES = 5


def drawn(count: int, seed: int) -> np.ndarray:
    """Draw logits of one decimal, a third of which come twice: many ties, of every score."""
    rng = np.random.default_rng(seed)
    logits = np.round(2 * rng.standard_normal((count, NUM_CLASSES)), 1)
    logits[-count // 3 :] = logits[: count // 3 + (count % 3 > 0)]
    return logits


def labels_of(logits: np.ndarray, seed: int) -> np.ndarray:
    """Draw classes from a softmax of half the logits: a network that is too sure."""
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(NUM_CLASSES, p=p) for p in softmax(logits / 2, 1)])


def equal_mass(confidence: list[float], hits: list[bool], bins: int) -> float:
    order = sorted(range(len(hits)), key=lambda i: confidence[i])
    shared = {}
    for value in set(confidence):
        tied = [hits[i] for i in order if confidence[i] == value]
        shared[value] = Fraction(sum(tied), len(tied))
    total = Fraction(0)
    start = 0
    for b in range(bins):
        size = len(hits) // bins + (b < len(hits) % bins)
        inside = [confidence[i] for i in order[start : start + size]]
        total += abs(sum((shared[value] - Fraction(value) for value in inside), Fraction(0)))
        start += size
    return float(total / len(hits))


def risk_coverage(confidence: list[float], hits: list[bool]) -> float:
    """Average over both orders of images with the same confidence, of which there are two."""
    assert max(map(confidence.count, confidence)) == 2
    areas = []
    for first in (True, False):
        order = sorted(range(len(hits)), key=lambda i: (-confidence[i], hits[i] != first))
        wrong = 0
        area = Fraction(0)
        for rank, i in enumerate(order, 1):
            wrong += not hits[i]
            area += Fraction(wrong, rank)
        areas.append(area / len(hits))
    return float(sum(areas) / 2)


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    rows = [[mpmath.mpf(float(z)) for z in row] for row in logits]

    def nll(log_temperature):
        scale = mpmath.exp(-log_temperature)
        return mpmath.fsum(
            mpmath.log(mpmath.fsum(mpmath.exp(z * scale) for z in row)) - row[y] * scale
            for row, y in zip(rows, labels, strict=True)
        )

    with mpmath.workdps(60):
        root = mpmath.findroot(lambda x: mpmath.diff(nll, x), (0.5, 0.8), tol=1e-40)
        return float(mpmath.exp(root))


def detection(inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
    """Compare the scores of test images, which should be high, and out-of-distribution ones."""
    scores = np.concatenate([inside, outside])
    is_inside = np.arange(len(scores)) < len(inside)
    fpr, tpr, _ = metrics.roc_curve(is_inside, scores, drop_intermediate=False)
    return {
        "ood_auroc": metrics.roc_auc_score(is_inside, scores),
        "ood_aupr": metrics.average_precision_score(~is_inside, -scores),
        "ood_fpr95": fpr[np.argmax(tpr >= 0.95)],
    }


def values(logits: np.ndarray, labels: np.ndarray, ood_logits: np.ndarray) -> dict[str, float]:
    """Compute each metric by its spec."""
    p = softmax(logits, 1)
    confidence = p.max(1).tolist()
    hits = (logits.argmax(1) == labels).tolist()
    rows = {
        "aurc": risk_coverage(confidence, hits),
        "accuracy": metrics.accuracy_score(labels, logits.argmax(1)),
        "nll": metrics.log_loss(labels, p, labels=range(NUM_CLASSES)),
        "brier": metrics.brier_score_loss(
            labels, p, labels=range(NUM_CLASSES), scale_by_half=False
        ),
        "balanced_error": 1 - metrics.balanced_accuracy_score(labels, logits.argmax(1)),
    }
    for bins in BINS:
        rows[f"ece,bins={bins}"] = ECE(bins).measure(p, labels)
        rows[f"ece_classwise,bins={bins}"] = np.mean(
            [ECE(bins).measure(p[:, k], (labels == k).astype(int)) for k in range(NUM_CLASSES)]
        )
        rows[f"ece_equal_mass,bins={bins}"] = equal_mass(confidence, hits, bins)
    scores = {
        "max_probability": (p.max(1), softmax(ood_logits, 1).max(1)),
        "energy": (logsumexp(logits, 1), logsumexp(ood_logits, 1)),
        "max_logit": (logits.max(1), ood_logits.max(1)),
    }
    for score, (inside, outside) in scores.items():
        # Scores are equal, or differ by more than any rounding.
        assert np.min(np.diff(np.unique([*inside, *outside]))) > 1e-9
        for name, value in detection(inside, outside).items():
            rows[f"{name},score={score}"] = value
    return {name: float(value) for name, value in rows.items()}


def main() -> None:
    logits = drawn(200, 1)
    labels = labels_of(logits, 2)
    ood_logits = np.round(0.6 * drawn(90, 3), 1)
    losses = np.round(np.random.default_rng(4).exponential(1, 150), 1)
    wrong = np.random.default_rng(5).random(150) < 0.2 + 0.2 * (losses > 1)
    fitted = temperature(logits, labels)
    scaling = TemperatureScaling()
    scaling.fit(softmax(logits, 1), labels)
    # netcal multiplies; it reads the logits from probabilities, in float32.
    assert abs(1 / float(scaling.temperature[0]) - fitted) < 1e-3 * fitted
    table = {
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "logits": logits.tolist(),
        "labels": labels.tolist(),
        "ood_logits": ood_logits.tolist(),
        "train_losses": losses.tolist(),
        "wrong_labels": wrong.tolist(),
        "values": values(logits, labels, ood_logits),
        "noise_auroc": float(metrics.roc_auc_score(wrong, losses)),
        "temperature": fitted,
    }
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in table.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    Path(__file__).with_suffix(".json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
