"""Schedules and Optax chains."""

from __future__ import annotations

import jax
import optax


def schedule(name: str, peak: float, total_steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """The learning rate of each step: linear from 0 to `peak` over the warm-up, then constant or cosine to 0.

    Args:
      name: cosine or constant.
      peak: the largest rate.
      total_steps: steps in all, warm-up included; at that step cosine reaches 0.
      warmup_steps: steps of warm-up.

    Source: cosine, Loshchilov & Hutter, 2017, arXiv 1608.03983.
    """
    if name == "constant":
        after = optax.constant_schedule(peak)
    else:
        after = optax.cosine_decay_schedule(peak, max(total_steps - warmup_steps, 1))
    if not warmup_steps:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), after], [warmup_steps])


def _kernels(params) -> object:
    """Which parameters weight decay touches: kernels, not biases or normalisation."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def optimizer(
    name: str,
    rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """An Optax chain: clip the gradient's global norm, decay, then adam, adamw or sgd.

    Args:
      name: adam, adamw or sgd.
      rate: learning rate or schedule.
      momentum, nesterov: of sgd.
      weight_decay: on kernels; decoupled for adamw (Loshchilov & Hutter, 2019), added to the gradient otherwise.
      clip_norm: None for no clipping.
    """
    chain = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    if weight_decay and name != "adamw":
        chain.append(optax.add_decayed_weights(weight_decay, mask=_kernels))
    if name == "adam":
        chain.append(optax.adam(rate))
    elif name == "adamw":
        chain.append(optax.adamw(rate, weight_decay=weight_decay, mask=_kernels))
    else:
        chain.append(optax.sgd(rate, momentum=momentum or None, nesterov=nesterov and momentum > 0))
    return optax.chain(*chain)
