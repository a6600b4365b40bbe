"""Losses: `loss(logits, labels, **hyperparameters) -> float32[...]`, one value per example; the
caller reduces.

`logits` are float[..., K] of any float type and batch rank; `labels` are int[...] class ids or
float[..., K] target distributions, told apart by their type. A label outside [0, K) never gets
another class's loss: ValueError where its value can be seen, NaN under jit. jit, vmap, grad, jacfwd
and hessian all work. In the formulas p = softmax(z).

LOSSES are all of them by name, ALIASES their short names; TRANSFORMS make losses of losses, as
weighted_sum does. A loss with the attribute `head = "cosine"` is made for logits that are cosines
(`made_for_cosines` sets it).
"""

from cnnlab.losses.entropy import asymmetric, binary_cross_entropy, cross_entropy, focal, poly
from cnnlab.losses.imbalance import balanced_softmax, effective_number, ldam, logit_adjusted
from cnnlab.losses.margin import (
    arcface,
    cosface,
    cosine_softmax,
    logit_norm,
    made_for_cosines,
    multiclass_hinge,
)
from cnnlab.losses.robust import (
    active_passive,
    bi_tempered,
    generalized_cross_entropy,
    mean_absolute_error,
    normalized_cross_entropy,
    normalized_focal,
    reverse_cross_entropy,
    symmetric_cross_entropy,
)
from cnnlab.losses.sparse import entmax_loss, sparsemax_loss
from cnnlab.losses.squared import logit_penalty, mean_squared_error, squared_logits, squentropy
from cnnlab.losses.teacher import distillation, jensen_shannon
from cnnlab.losses.transforms import (
    class_balanced,
    class_weights,
    label_smoothing,
    temperature,
    weighted_sum,
    with_z_loss,
)

ce = cross_entropy
bce = binary_cross_entropy
mse = brier = mean_squared_error
mae = mean_absolute_error
gce = generalized_cross_entropy
rce = reverse_cross_entropy
sce = symmetric_cross_entropy
nce = normalized_cross_entropy
nfl = normalized_focal
apl = active_passive
hinge = multiclass_hinge
kd = distillation

# A loss is what takes logits and labels first; an alias is one under another name than its own.
LOSSES = {
    f.__name__: f
    for f in [*vars().values()]
    if [*getattr(f, "__annotations__", ())][:2] == ["logits", "labels"]
}
ALIASES = {name: f for name, f in [*vars().items()] if f in LOSSES.values() and name != f.__name__}

# What takes a loss first, for pipelines such as focal+label_smoothing,alpha=0.1.
TRANSFORMS = {
    f.__name__: f
    for f in (label_smoothing, temperature, class_weights, class_balanced, with_z_loss)
}
SHORT_TRANSFORMS = {"z_loss": with_z_loss}

__all__ = [
    "ALIASES",
    "LOSSES",
    "SHORT_TRANSFORMS",
    "TRANSFORMS",
    "active_passive",
    "apl",
    "arcface",
    "asymmetric",
    "balanced_softmax",
    "bce",
    "bi_tempered",
    "binary_cross_entropy",
    "brier",
    "ce",
    "class_balanced",
    "class_weights",
    "cosface",
    "cosine_softmax",
    "cross_entropy",
    "distillation",
    "effective_number",
    "entmax_loss",
    "focal",
    "gce",
    "generalized_cross_entropy",
    "hinge",
    "jensen_shannon",
    "kd",
    "label_smoothing",
    "ldam",
    "logit_adjusted",
    "logit_norm",
    "logit_penalty",
    "made_for_cosines",
    "mae",
    "mean_absolute_error",
    "mean_squared_error",
    "mse",
    "multiclass_hinge",
    "nce",
    "nfl",
    "normalized_cross_entropy",
    "normalized_focal",
    "poly",
    "rce",
    "reverse_cross_entropy",
    "sce",
    "sparsemax_loss",
    "squared_logits",
    "squentropy",
    "symmetric_cross_entropy",
    "temperature",
    "weighted_sum",
    "with_z_loss",
]
