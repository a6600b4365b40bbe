"""How long a loss and its gradient take, compared with Optax's where Optax has the loss, and with
cross-entropy.

    python experiments/benchmarks/losses.py --json losses.json
    python experiments/benchmarks/losses.py --losses cross_entropy focal --rounds 100

Everything is compiled first and then timed in turns, so that a busy machine slows all alike;
figures are medians over the rounds. Each timed call is the mean loss over the batch and its
gradient, jitted.
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cnnlab import cli
from cnnlab.config import Count, Settings, check
from cnnlab.errors import unknown

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Arguments(Settings):
    """Time value and gradient of the losses."""

    losses: tuple[str, ...] = ()
    """Names; none for all."""
    shapes: tuple[tuple[Count, Count], ...] = ((65536, 10), (4096, 1000))
    """Batch and classes of the logits."""
    dtypes: tuple[Annotated[str, DTYPES], ...] = ("float32", "bfloat16")
    """Types of the logits."""
    rounds: Count = 30
    """Turns; in each, every function is called once."""
    json: str | None = None
    """File to write the figures to."""

    def __post_init__(self) -> None:
        check(self)


def main(arguments: Arguments) -> None:
    import jax

    from cnnlab import losses

    for name in arguments.losses:
        if name not in losses.LOSSES:
            raise unknown("loss", name, losses.LOSSES)
    cli.writable(arguments.json)
    names = arguments.losses or tuple(losses.LOSSES)
    rows = []
    for shape in arguments.shapes:
        for dtype in arguments.dtypes:
            median = time_all(names, shape, dtype, arguments.rounds)
            for name in names:
                row = {"loss": name, "shape": [*shape], "dtype": dtype} | figures(name, median)
                rows.append(row)
                print(json.dumps(row), flush=True)
    if arguments.json:
        versions = {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
        }
        Path(arguments.json).write_text(
            json.dumps({"versions": versions, "rounds": arguments.rounds, "rows": rows})
        )


def time_all(
    names: tuple[str, ...], shape: tuple[int, int], dtype: str, rounds: int
) -> dict[tuple[str, str], float]:
    """Time value and gradient of each loss, in alternation: (whose, name) -> the median of the
    seconds.
    """
    import jax
    import numpy as np

    batch, classes = shape
    rng = np.random.default_rng(0)
    logits = jax.numpy.asarray(3 * rng.standard_normal((batch, classes)), dtype)
    ids = jax.numpy.asarray(rng.integers(0, classes, batch), "int32")
    compiled = {
        key: jax.jit(value_and_gradient(loss)).lower(logits, ids).compile()
        for key, loss in contestants(names, batch, classes).items()
    }
    seconds = {key: [] for key in compiled}
    for _ in range(rounds):
        # nobody always follows the same, whose cache it finds
        for key in rng.permutation(list(compiled)).tolist():
            run = compiled[tuple(key)]
            start = time.perf_counter()
            jax.block_until_ready(run(logits, ids))
            seconds[tuple(key)].append(time.perf_counter() - start)
    return {key: float(np.median(taken)) for key, taken in seconds.items()}


def figures(name: str, median: dict[tuple[str, str], float]) -> dict[str, float]:
    """Compute a loss's milliseconds, and their ratio to those of cross-entropy and of optax's loss,
    if there is one.
    """
    ours = median["ours", name]
    row = {"ms": 1e3 * ours, "of cross_entropy": ours / median["ours", "cross_entropy"]}
    if ("optax", name) in median:
        row["of optax"] = ours / median["optax", name]
    return row


def contestants(names: tuple[str, ...], batch: int, classes: int) -> dict:
    """Collect the losses to time: (whose, name) -> loss of logits and ids; cross-entropy is always
    among them.
    """
    import jax
    import numpy as np
    import optax

    from cnnlab import spec
    from cnnlab.parts import KINDS

    supplied = {
        "class_counts": np.geomspace(1000, 10, classes),
        "teacher_logits": np.linspace(1, -1, classes, dtype=np.float32),
        "view_logits": np.zeros((2, batch, classes), np.float32),
    }
    ours = {}
    for name in ("cross_entropy", *names):
        ours["ours", name] = spec.find(KINDS["loss"], name).bind(**supplied)

    def one_hot(ids):
        return jax.nn.one_hot(ids, classes)

    theirs = {
        "cross_entropy": optax.softmax_cross_entropy_with_integer_labels,
        "poly": lambda z, y: optax.losses.poly_loss_cross_entropy(z, one_hot(y), epsilon=1.0),
        "multiclass_hinge": optax.losses.multiclass_hinge_loss,
        # it fails on bfloat16
        "sparsemax_loss": lambda z, y: optax.losses.multiclass_sparsemax_loss(
            z.astype("float32"), y
        ),
        "binary_cross_entropy": lambda z, y: optax.sigmoid_binary_cross_entropy(z, one_hot(y)).sum(
            -1
        ),
    }
    return ours | {("optax", name): theirs[name] for name in theirs if name in names}


def value_and_gradient(loss):
    import jax

    return lambda logits, ids: jax.value_and_grad(lambda z: loss(z, ids).astype("float32").mean())(
        logits
    )


if __name__ == "__main__":
    cli.main(main, Arguments)
