"""The augmentations and their names."""

from __future__ import annotations

from collections.abc import Callable

from cnnlab.augment.erasing import cutout
from cnnlab.augment.geometry import alternating_flip, crop, flip
from cnnlab.augment.mixing import cutmix, mixup
from cnnlab.augment.pipeline import Batch
from cnnlab.augment.policies import views

AUGMENTATIONS: dict[str, Callable[..., Batch]] = {
    f.__name__: f for f in (flip, alternating_flip, crop, cutout, mixup, cutmix, views)
}
