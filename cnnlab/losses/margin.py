"""Losses that ask the true class for a lead, and those on logits that are cosines.

Cosine logits are w_k . h / (|w_k| |h|), with h the features and w_k a class's weights in the last
layer: the losses see only the result; models.CosineHead makes it, and is the place where the
weights are needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from cnnlab.errors import unknown
from cnnlab.losses import _labels
from cnnlab.losses._likelihood import log_probability
from cnnlab.losses.entropy import cross_entropy

L = TypeVar("L", bound=Callable)


def made_for_cosines(loss: L) -> L:
    """Mark a loss, your own too, as made for logits that are cosines: models then get a cosine
    head.

    Args:
      loss: gets the attribute `head = "cosine"`.

    Returns:
      The same loss.

    >>> made_for_cosines(lambda logits, labels: 0).head
    'cosine'
    """
    vars(loss)["head"] = "cosine"
    return loss


def multiclass_hinge(
    logits: ArrayLike, labels: ArrayLike, margin: float = 1.0, form: str = "crammer_singer"
) -> jax.Array:
    """How far the true class is from leading by a margin.

        L(z, y) = max_{j != y} max(0, margin + z_j - z_y);  form weston_watkins: the sum over j != y

    (torch.nn.functional.multi_margin_loss is the sum divided by K.)

    Args:
      logits: float[..., K].
      labels: int[...] class ids, or float[..., K] target distributions: sum_k q_k L(z, k).
      margin: in (0, inf), in units of the logits.
      form: crammer_singer or weston_watkins.

    Returns:
      float32[...], at least 0, in units of the logits; NaN for an id outside [0, K) under jit. At a
      kink the slope is shared by the classes that tie.

    Raises:
      ValueError: labels that do not fit the logits, a visible id outside [0, K), margin outside its
        range, or another form.

    Source: Crammer & Singer, 2001, JMLR 2; Weston & Watkins, 1999, ESANN. Both: Dogan, Glasmachers
    & Igel, 2016, "A unified view on multi-class support vector classification",
    https://jmlr.org/papers/v17/11-229.html

    >>> print(multiclass_hinge([1.0, 0.5, 1.5], 0))
    1.5
    >>> print(multiclass_hinge([1.0, 0.5, 1.5], 0, form="weston_watkins"))
    2.0
    """
    margin = _labels.in_range("margin", margin, "(0, inf)")
    if form not in ("crammer_singer", "weston_watkins"):
        raise unknown("form of the hinge", str(form), ("crammer_singer", "weston_watkins"))

    def of_id(z: jax.Array, y: jax.Array) -> jax.Array:
        no_rival = _labels.is_label(y, z.shape[-1]) | (z == -jnp.inf)
        short = jnp.where(no_rival, 0, jax.nn.relu(margin + z - _labels.pick(z, y)[..., None]))
        return jnp.max(short, -1) if form == "crammer_singer" else jnp.sum(short, -1)

    return _labels.by_class(of_id, logits, labels)


@made_for_cosines
def cosine_softmax(logits: ArrayLike, labels: ArrayLike, scale: float = 20.0) -> jax.Array:
    """Cross-entropy of cosines, stretched to a useful range: a softmax at temperature 1 / scale.

        L(z, y) = -log softmax(scale z)_y,  z cosines

    Args:
      logits: float[..., K] cosines, as models.CosineHead makes them.
      labels: int[...] class ids, or float[..., K] target distributions: sum_k q_k L(z, k).
      scale: in (0, inf), the inverse temperature (the paper's tau is 1 / scale = 0.05).

    Returns:
      float32[...], in nats, at least 0; NaN for an id outside [0, K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, a visible id outside [0, K), or scale outside
        its range.

    Source: Kornblith et al., 2021, "Why do better loss functions lead to less transferable
    features?", https://arxiv.org/abs/2010.16402

    >>> print(f"{cosine_softmax([0.5, 0.4], 0):.4f}")  # log(1 + e^-2)
    0.1269
    """
    scale = _labels.in_range("scale", scale, "(0, inf)")
    logits, labels = _labels.check(logits, labels)
    return cross_entropy(scale * logits, labels)


@made_for_cosines
def cosface(
    logits: ArrayLike, labels: ArrayLike, margin: float = 0.35, scale: float = 64.0
) -> jax.Array:
    """Cross-entropy of cosines in which the true class must lead by a margin of cosine.

        L(z, y) = -log softmax(scale (z - margin e_y))_y,  z cosines

    Args:
      logits: float[..., K] cosines, as models.CosineHead makes them.
      labels: int[...] class ids, or float[..., K] target distributions: sum_k q_k L(z, k).
      margin: in [0, 2).
      scale: in (0, inf), the inverse temperature.

    Returns:
      float32[...], in nats, at least 0; NaN for an id outside [0, K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, a visible id outside [0, K), or a number
        outside its range.

    Source: Wang et al., 2018, "CosFace: large margin cosine loss for deep face recognition",
    https://arxiv.org/abs/1801.09414

    >>> print(f"{cosface([0.5, 0.1], 0, margin=0.4, scale=10.0):.4f}")  # a tie: log 2
    0.6931
    """
    margin = _labels.in_range("margin", margin, "[0, 2)")
    scale = _labels.in_range("scale", scale, "(0, inf)")

    def of_id(z: jax.Array, y: jax.Array) -> jax.Array:
        return -log_probability(
            scale * (z - jnp.where(_labels.is_label(y, z.shape[-1]), margin, 0)), y
        )

    return _labels.by_class(of_id, logits, labels)


@made_for_cosines
def arcface(
    logits: ArrayLike, labels: ArrayLike, margin: float = 0.5, scale: float = 64.0
) -> jax.Array:
    """Cross-entropy of cosines in which the true class must lead by an angle.

        L(z, y) = -log softmax(scale z')_y,  z'_y = cos(arccos z_y + margin),  z'_j = z_j

    Beyond arccos z_y = pi - margin the cosine would grow again; there z'_y = z_y - margin
    sin(margin), as the authors' code has it. A true class's logit outside [-1, 1] counts as the
    nearest cosine; at -1 and 1, where the slope is infinite, that of arccos is left out.

    Args:
      logits: float[..., K] cosines, as models.CosineHead makes them.
      labels: int[...] class ids, or float[..., K] target distributions: sum_k q_k L(z, k).
      margin: in [0, pi/2), in radians; written [0, 1.5707963].
      scale: in (0, inf), the inverse temperature.

    Returns:
      float32[...], in nats, at least 0; NaN for an id outside [0, K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, a visible id outside [0, K), or a number
        outside its range.

    Source: Deng et al., 2019, "ArcFace: additive angular margin loss for deep face recognition",
    https://arxiv.org/abs/1801.07698

    >>> import jax.numpy as jnp
    >>> print(f"{arcface(jnp.cos(jnp.array([0.7, 1.2])), 0):.4f}")  # a tie: log 2
    0.6931
    """
    margin = _labels.in_range("margin", margin, "[0, 1.5707963]")
    scale = _labels.in_range("scale", scale, "(0, inf)")
    cos_margin, sin_margin = math.cos(margin), math.sin(margin)

    def of_id(z: jax.Array, y: jax.Array) -> jax.Array:
        cosine = jnp.clip(_labels.pick(z, y), -1, 1)
        inside = jnp.abs(cosine) < 1
        sine = jnp.where(inside, jnp.sqrt(jnp.where(inside, (1 - cosine) * (1 + cosine), 1)), 0)
        further = jnp.where(
            cosine >= -cos_margin,
            cosine * cos_margin - sine * sin_margin,
            cosine - margin * sin_margin,
        )
        moved = jnp.where(_labels.is_label(y, z.shape[-1]), further[..., None], z)
        return -log_probability(scale * moved, y)

    return _labels.by_class(of_id, logits, labels)


def logit_norm(
    logits: ArrayLike, labels: ArrayLike, temperature: float = 0.04, where: ArrayLike | None = None
) -> jax.Array:
    """Cross-entropy of logits brought to one length, so that confidence cannot come from their
    size.

        L(z, y) = -log softmax(z / (temperature |z|))_y

    Args:
      logits: float[..., K]; |z| = 0, where it is undefined, counts as equal logits.
      labels: int[...] class ids, or float[..., K] target distributions: sum_k q_k L(z, k).
      temperature: in (0, inf).
      where: bool[..., K], the classes that exist. A logit of -inf has no finite length.

    Returns:
      float32[...], in nats, at least 0; NaN for an id outside [0, K) under jit.

    Raises:
      ValueError: labels that do not fit the logits, a visible id outside [0, K), or temperature
        outside its range.

    Source: Wei et al., 2022, "Mitigating neural network overconfidence with logit normalization",
    https://arxiv.org/abs/2205.09310

    >>> print(f"{logit_norm([3.0, 4.0], 1, temperature=0.1):.4f}")  # log(1 + e^-2)
    0.1269
    """
    temperature = _labels.in_range("temperature", temperature, "(0, inf)")
    logits, labels = _labels.check(logits, labels)
    where = None if where is None else jnp.asarray(where)
    z = logits if where is None else jnp.where(where, logits, 0)
    # Brought to a largest entry of 1, which the loss does not see, so that no square leaves
    # float32's range.
    largest = lax.stop_gradient(jnp.max(jnp.abs(z), -1, keepdims=True))
    z = z / jnp.where(largest > 0, largest, 1)
    square = jnp.sum(z**2, -1, keepdims=True)
    directions = z / (temperature * jnp.sqrt(jnp.where(square > 0, square, 1)))
    return cross_entropy(
        directions if where is None else jnp.where(where, directions, -jnp.inf), labels
    )
