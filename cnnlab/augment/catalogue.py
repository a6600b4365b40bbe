"""The augmentations and their names."""

from __future__ import annotations

from collections.abc import Callable

from cnnlab.augment.erasing import cutout, random_erasing
from cnnlab.augment.geometry import alternating_flip, crop, flip, random_resized_crop
from cnnlab.augment.mixing import cutmix, mixup
from cnnlab.augment.pipeline import Batch
from cnnlab.augment.policies import augmix, trivial_augment, views

AUGMENTATIONS: dict[str, Callable[..., Batch]] = {
    f.__name__: f
    for f in (
        flip,
        alternating_flip,
        crop,
        random_resized_crop,
        cutout,
        random_erasing,
        trivial_augment,
        mixup,
        cutmix,
        views,
        augmix,
    )
}
