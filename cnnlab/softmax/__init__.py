"""From logits to probabilities.

Every function accumulates in float32 (float64 stays float64) whatever the logits' type, is stable
for logits of ±1e4 and for -inf (a class that cannot be), and differentiates to any order there. A
row without a possible class has no distribution: it gives NaN.
"""

from cnnlab.softmax._scores import as_float
from cnnlab.softmax.exponential import gumbel_softmax, log_softmax, predict, softmax
from cnnlab.softmax.logistic import log_sigmoid, sigmoid
from cnnlab.softmax.sparse import entmax, entmax15, sparsemax
from cnnlab.softmax.tempered import log_tempered_softmax, tempered_softmax

__all__ = [
    "as_float",
    "entmax",
    "entmax15",
    "gumbel_softmax",
    "log_sigmoid",
    "log_softmax",
    "log_tempered_softmax",
    "predict",
    "sigmoid",
    "softmax",
    "sparsemax",
    "tempered_softmax",
]
