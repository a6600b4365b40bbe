"""Where a property of a built-in loss is proved. Few on purpose: each is what the paper states, for
our formula.

A numeric counterexample beats a citation: `card` gives "proved" only to what it could not refute.
"""

from __future__ import annotations

from collections.abc import Iterable

BOYD = "Boyd & Vandenberghe 2004, Convex Optimization"
GNEITING = "Gneiting & Raftery 2007, JASA 102, section 3"
GHOSH = "Ghosh, Kumar & Sastry 2017, arXiv:1712.09482"
MA = "any loss divided by its sum over the classes: Ma et al. 2020, arXiv:2006.13554"
BLONDEL = "Blondel, Martins & Niculae 2020, arXiv:1901.02324, proposition 2"
OF_PROBABILITIES = (
    "a function of softmax(z) = softmax(z + c): Goodfellow, Bengio & Courville 2016, section "
    "6.2.2.3"
)

# (property, citation) -> the losses it holds for, whatever their hyperparameters (in the ranges
# that they accept)
ALWAYS = {
    ("strictly_proper", f"logarithmic score: {GNEITING}"): ["cross_entropy"],
    ("strictly_proper", f"quadratic score: {GNEITING}"): ["mean_squared_error"],
    ("classification_calibrated", "strictly proper, and softmax keeps the order"): [
        "cross_entropy",
        "mean_squared_error",
    ],
    ("classification_calibrated", "Charoenphakdee et al. 2021, arXiv:2011.09172"): ["focal"],
    ("classification_calibrated", "one versus all: Zhang 2004, JMLR 5"): ["binary_cross_entropy"],
    ("symmetric", GHOSH): ["mean_absolute_error"],
    ("symmetric", "Wang et al. 2019, arXiv:1908.06112"): ["reverse_cross_entropy"],
    ("symmetric", MA): ["normalized_cross_entropy", "normalized_focal"],
    ("bounded", GHOSH): ["mean_absolute_error"],
    ("bounded", "Zhang & Sabuncu 2018, arXiv:1805.07836: within [0, 1/q]"): [
        "generalized_cross_entropy"
    ],
    ("bounded", "two distributions are never further apart than 2: Brier 1950"): [
        "mean_squared_error"
    ],
    ("bounded", "a share of a sum of losses, within [0, 1]: Ma et al. 2020, arXiv:2006.13554"): [
        "normalized_cross_entropy",
        "normalized_focal",
    ],
    ("convex", f"log-sum-exp minus a linear function: {BOYD}, section 3.1.5"): ["cross_entropy"],
    ("convex", f"log-sum-exp of an affine function: {BOYD}, sections 3.1.5 and 3.2.2"): [
        "logit_adjusted",
        "balanced_softmax",
        "cosine_softmax",
        "cosface",
        "ldam",
    ],
    ("convex", f"a sum of convex functions: {BOYD}, section 3.2.1"): [
        "binary_cross_entropy",
        "squared_logits",
        "squentropy",
        "logit_penalty",
    ],
    ("convex", f"a maximum or sum of maxima of affine functions: {BOYD}, section 3.2.3"): [
        "multiclass_hinge"
    ],
    ("convex", f"a Fenchel-Young loss: {BLONDEL}"): ["sparsemax_loss", "entmax_loss"],
    ("non_negative", f"a Fenchel-Young loss: {BLONDEL}"): ["sparsemax_loss", "entmax_loss"],
    ("shift_invariant", OF_PROBABILITIES): [
        "cross_entropy",
        "mean_squared_error",
        "mean_absolute_error",
        "focal",
        "poly",
        "generalized_cross_entropy",
        "reverse_cross_entropy",
        "symmetric_cross_entropy",
        "normalized_cross_entropy",
        "normalized_focal",
    ],
    ("shift_invariant", "Martins & Astudillo 2016, arXiv:1602.02068"): ["sparsemax_loss"],
    ("smooth", "constant 1/2: Böhning 1992, Ann. Inst. Stat. Math. 44; Blondel et al. 2020"): [
        "cross_entropy"
    ],
    ("smooth", f"constant 1, of a 1-strongly convex entropy: {BLONDEL}"): ["sparsemax_loss"],
}
# The same for the default hyperparameters alone.
BY_DEFAULT = {
    ("symmetric", "a sum of symmetric losses: Ma et al. 2020, arXiv:2006.13554"): [
        "active_passive"
    ],
    ("bounded", "for t1 < 1: Amid et al. 2019, arXiv:1906.03361"): ["bi_tempered"],
}


def citation(name: str, property: str, defaults: bool) -> str:
    """Return where it is proved that the built-in loss has the property; empty if we know no proof.

    Args:
      name: of a loss in cnnlab.losses.
      property: of the report card.
      defaults: whether no hyperparameter was changed.

    >>> citation("cross_entropy", "smooth", defaults=True)[:12]
    'constant 1/2'
    >>> citation("bi_tempered", "bounded", defaults=False)
    ''
    """
    tables: Iterable[dict] = (ALWAYS, BY_DEFAULT) if defaults else (ALWAYS,)
    citations = [
        text
        for table in tables
        for (p, text), names in table.items()
        if p == property and name in names
    ]
    return citations[0] if citations else ""
