"""Small prepared data sets for tests, and real runs of experiments/train.py that can be stopped at
any moment.

`write_dataset` makes a TFDS data set out of arrays. `python tests/run_worker.py` imports jax and
cnnlab once, then forks a child that is experiments/train.py for each request (JSON lines:
arguments, file for its output), so that the next start after a kill costs no imports. The answers
are `pid <n>` and `exit <status>`, negative for a signal.
"""

import json
import os
import pathlib
import sys
import traceback

import numpy as np

from cnnlab.data import builders

ROOT = pathlib.Path(__file__).parents[1]


def write_dataset(
    root: pathlib.Path,
    name: str,
    splits: dict,
    classes: int,
    shape: tuple,
    file_format: str = "array_record",
) -> pathlib.Path:
    """Prepares `root/name/1.0.0` from {split: (images, labels)}; None in `shape` for sizes that
    vary.
    """
    import tensorflow_datasets as tfds
    from PIL import Image

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = "placeholder"
        pkg_dir_path = pathlib.Path(root)

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=shape),
                    "label": tfds.features.ClassLabel(names=[f"class {k}" for k in range(classes)]),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(*arrays) for split, arrays in splits.items()}

        def _generate_examples(self, images, labels):
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
                yield i, {"image": picture, "label": int(label)}

    Builder.name = name
    with builders._quiet():
        builder = Builder(data_dir=root, file_format=file_format)
        builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


def drawn(
    count: int, classes: int, shape: tuple[int, int, int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images of noise around a brightness that tells the class: uint8[N, H, W, C] and their labels
    int32[N].
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count).astype(np.int32)
    noise = rng.integers(0, 120, (count, *shape))
    return (noise + 130 * labels.reshape(-1, 1, 1, 1) // max(classes - 1, 1)).astype(
        np.uint8
    ), labels


def lenient(tx):
    """An optax chain that may mix types, as optax.adam does; the rest of a step stays under strict
    rules.
    """
    import jax
    import optax

    update_fn = optax.with_extra_args_support(tx).update

    def update(grads, state, params=None, **extra):
        with jax.numpy_dtype_promotion("standard"):
            return update_fn(grads, state, params, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _serve() -> None:
    sys.path.insert(0, str(ROOT / "experiments"))
    import jax  # noqa: F401
    import orbax.checkpoint  # noqa: F401
    import tensorflow_datasets  # noqa: F401
    import train

    from cnnlab import cli
    from cnnlab.training import loop, recipe  # noqa: F401

    for line in sys.stdin:
        args, output = json.loads(line)
        child = os.fork()
        if child == 0:
            target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(target, stream)
            sys.argv = ["experiments/train.py", *args]
            try:
                cli.main(train.main, train.Config, args)
            except SystemExit as end:
                status = end.code or 0
            except BaseException:
                traceback.print_exc()
                status = 99
            else:
                status = 0
            sys.stdout.flush()
            os._exit(status)
        print("pid", child, flush=True)
        print("exit", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
