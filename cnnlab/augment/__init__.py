"""Random changes of training images, on the device, inside the step.

An operation is `(keys[B], batch, **hyperparameters) -> batch`. A batch is {image float[B, H, W, C],
normalised; label int32[B] or float[B, K]; index int32[B], the image's place in the training split;
epoch int32[]}, perhaps with views float[V, B, H, W, C]. An operation gets one key per example, from
the example's place in the global batch, so that its draws do not depend on how devices share the
batch. The keys are derived from its name: without one operation the others draw as before. It may
also ask for `key` (one for the whole batch), `run_key` (the same at every step), `num_classes`,
`axis_name` (the mesh axis that shares the batch; None on one device), and, for operations on pixels
in 0..255, `mean` and `std`, float[C], by which images were normalised: `pixels(images, mean, std)`.
Where its `mean` or `std` has a default, it is a hyperparameter instead.
"""

from cnnlab.augment.catalogue import AUGMENTATIONS
from cnnlab.augment.erasing import cutout, random_erasing
from cnnlab.augment.evaluation import TEST_VIEWS, averaged_views
from cnnlab.augment.geometry import alternating_flip, crop, flip, random_resized_crop
from cnnlab.augment.mixing import cutmix, mixup
from cnnlab.augment.pipeline import Batch, Operation, apply, normalise, pipeline, pixels
from cnnlab.augment.policies import augmix, trivial_augment, views

__all__ = [
    "AUGMENTATIONS",
    "TEST_VIEWS",
    "Batch",
    "Operation",
    "alternating_flip",
    "apply",
    "augmix",
    "averaged_views",
    "crop",
    "cutmix",
    "cutout",
    "flip",
    "mixup",
    "normalise",
    "pipeline",
    "pixels",
    "random_erasing",
    "random_resized_crop",
    "trivial_augment",
    "views",
]
