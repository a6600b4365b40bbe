"""cnnlab: image classification in JAX, as pure functions from arrays to arrays.

The map of the package; a module imports only modules above it in this list
(tests/test_architecture.py holds that):

    types.py        names of types that modules share, for annotations
    errors.py       InputError: what the user can fix, said in one line
    console.py      what a person sees while it works: a bar on a terminal, lines elsewhere
    docstrings.py   what a part's docstring says: formula, hyperparameters and their ranges, source
    schema.py       JSON values -> dataclasses, checked against types and ranges
    provenance.py   SHA-256 of the user's files behind a part
    spec.py         name,key=value or a dotted path -> a part, a function with keywords; no jax
    files.py        files and folders, here or on Google Cloud Storage
    bucket.py       the folder of a bucket that the cache folders of several machines share
    verified.py     files kept between runs under their SHA-256
    jax_private.py  all that is used of JAX's private modules
    compilation_cache.py  what JAX compiles, kept between runs
    backend.py      starting JAX on this machine: its devices, and the memory of a CPU
    multihost/      one run on several processes: joining, agreeing, shutting down, supervising
    signals.py      SIGTERM and Ctrl-C end a script at once, or once its training has saved
    config.py       Recipe, Machine and Output: every setting of a run; imports no jax
    cli.py          flags from dataclasses, exit statuses; imports no jax
    collectives.py  means and sums over the devices that share a batch; keys of its examples
    softmax/        logits -> probabilities: softmax, sigmoid, sparsemax, entmax, tempered; predict
    losses/         logits, labels -> one loss per example; functions from losses to losses
    models/         Flax linen modules: dense, convolutional, residual; their layers and heads
    optim/          optimizers besides Optax's own, Muon among them; schedules; weight averages
    augment/        keys, batch -> batch, on the device; the pipeline; views of test images
    data/           data sets from TFDS or arrays, their order, corruptions, streaming or in memory
    metrics.py      one record per metric: masked sums -> accuracy, NLL, Brier, ECE, top-5, your own
    posthoc/        stored logits -> metrics, other logits; after training, in float64; no jax
    contracts.py    what each kind of part promises, tried on shapes
    parts.py        the kinds of parts; the strings of a config -> the functions that a run needs
    plots.py        figures
    html/           blocks of text, tables and figures -> one self-contained HTML page
    report_card/    which properties a loss has, with counterexamples
    lesson.py       a script's claims, checked, with the figures that show them, as a page
    checkpoint/     save and restore any pytree, verified
    training/       the pure step, the compiled experiment, the loop, the run's folder
    tpu/            the step compiled for TPU slices that are not here: what it needs, at best
    study/          arms x conditions x paired seeds -> results, statistics, report; replications
    api.py          train, evaluate, load: objects in, a Run out

cnnlab.train, cnnlab.evaluate and cnnlab.load are those of api.py, imported when they are used.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cnnlab.api import evaluate, load, train

__all__ = ["evaluate", "load", "train"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name in __all__:
        from cnnlab import api

        return getattr(api, name)
    raise AttributeError(f"module 'cnnlab' has no attribute '{name}'")
