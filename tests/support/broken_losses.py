"""Losses with one fault each, all seen in real code or one keystroke away from it; the report card
must catch them.

By dotted path: `python experiments/report_card.py broken_losses.wrong_sign` from this folder.
"""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from cnnlab import losses
from cnnlab.losses import _labels


def _checked(logits, labels):
    """What cnnlab's own losses do about types and labels, so that each loss below has its one fault
    only.
    """
    return _labels.check(logits, labels)


def _of_probability(function, logits, labels):
    """sum_k q_k function(log p_k), the class picked by a one-hot matrix."""
    logits, labels = _checked(logits, labels)
    ids = jnp.issubdtype(labels.dtype, jnp.integer)
    q = _labels.distribution(labels, logits.shape[-1], logits.dtype)
    log_p = _labels.bounded(jax.nn.log_softmax(logits), q)
    value = jnp.sum(q * function(log_p), -1)
    return _labels.poison(value, labels, logits.shape[-1]) if ids else value


def sound(logits, labels):
    """Cross-entropy in the same words as those below, without a fault.

    Claims: strictly_proper, convex, finite, same as cross_entropy
    """
    return _of_probability(jnp.negative, logits, labels)


def wrong_sign(logits, labels):
    """log p instead of -log p: training drives the true class away."""
    return _of_probability(lambda log_p: log_p, logits, labels)


def detached_focal(logits, labels, gamma=2.0):
    """Focal loss whose factor gets no gradient, as in the Active-Passive-Losses repository."""
    return _of_probability(
        lambda log_p: -(lax.stop_gradient(-jnp.expm1(log_p)) ** gamma) * log_p, logits, labels
    )


def naive_log(logits, labels):
    """log(softmax(z)): the probability underflows before its logarithm is taken."""
    logits, labels = _checked(logits, labels)
    q = _labels.distribution(labels, logits.shape[-1], logits.dtype)
    value = -jnp.sum(jnp.where(q != 0, q * jnp.log(jax.nn.softmax(logits)), 0), -1)
    return _labels.poison(value, labels, logits.shape[-1])


def last_class_wrap(logits, labels):
    """The label -1 is the last class, as Python and Optax index."""
    logits = _labels.as_float(logits)
    if jnp.issubdtype(jnp.asarray(labels).dtype, jnp.floating):
        return losses.cross_entropy(logits, labels)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def first_class_clip(logits, labels):
    """The label is clipped into [0, K): -100, often used for "ignore", becomes class 0."""
    if jnp.issubdtype(jnp.asarray(labels).dtype, jnp.floating):
        return losses.cross_entropy(logits, labels)
    return losses.cross_entropy(logits, jnp.clip(jnp.asarray(labels), 0, jnp.shape(logits)[-1] - 1))


def squentropy_slip(logits, labels):
    """`/ K - 1` where `/ (K - 1)` is meant.

    Claims: same as squentropy
    """
    logits, labels = _checked(logits, labels)
    classes = logits.shape[-1]
    q = _labels.distribution(labels, classes, logits.dtype)
    return losses.cross_entropy(logits, labels) + jnp.sum((1 - q) * logits**2, -1) / classes - 1


def half_precision(logits, labels):
    """Cross-entropy that sums in the logits' own type, as it comes: bfloat16 keeps three digits."""
    logits = jnp.asarray(logits)
    _, labels = _checked(logits, labels)
    q = _labels.distribution(labels, logits.shape[-1], logits.dtype)
    value = -jnp.sum(jnp.where(q != 0, q * jax.nn.log_softmax(logits), 0), -1)
    return _labels.as_float(_labels.poison(value, labels, logits.shape[-1]))


def improper_focal(logits, labels):
    """Focal loss taken for a scoring rule.

    Claims: strictly_proper, classification_calibrated
    """
    return losses.focal(logits, labels)


def mean_over_batch(logits, labels):
    """The batch's mean rather than one value per example: masks and weights come too late."""
    return jnp.mean(losses.cross_entropy(logits, labels))


def branch_on_value(logits, labels):
    """A Python `if` on a value that jit does not know."""
    logits, labels = _checked(logits, labels)
    value = losses.cross_entropy(logits, labels)
    return value if jnp.max(logits) < 1e30 else value * 0


def float_labels_as_ids(logits, labels):
    """Distributions are truncated to ids: a one-hot row becomes K labels of 0 and 1."""
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        return losses.cross_entropy(logits, labels)
    ids = labels.astype(jnp.int32)
    return jnp.take_along_axis(-jax.nn.log_softmax(_labels.as_float(logits)), ids, -1)


def label_mask(logits, labels):
    """Classes without a share are left out, and with them the derivative by their share."""
    logits, labels = _checked(logits, labels)
    q = _labels.distribution(labels, logits.shape[-1], logits.dtype)
    log_p = jax.nn.log_softmax(logits)
    value = -jnp.sum(jnp.where(q != 0, q * jnp.where(q != 0, log_p, -1.0), 0), -1)
    return _labels.poison(value, labels, logits.shape[-1])


def guarded_log(logits, labels):
    """-log(p + 1e-8): no NaN any more, and no gradient from a confident mistake either.

    Claims: same as cross_entropy
    """
    return _of_probability(lambda log_p: -jnp.log(jnp.exp(log_p) + 1e-8), logits, labels)
