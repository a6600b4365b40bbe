"""cnnlab: image classification in JAX, as pure functions from arrays to arrays.

The map of the package; a module imports only modules above it in this list
(tests/test_architecture.py holds that):

    errors.py       InputError: what the user can fix, said in one line
    console.py      what a person sees while it works: a bar on a terminal, lines elsewhere
    docstrings.py   what a part's docstring says: formula, hyperparameters and their ranges, source
    provenance.py   SHA-256 of the user's files behind a part
    spec.py         name,key=value or a dotted path -> a part, a function with keywords; no jax
    files.py        files and folders, here or on Google Cloud Storage
    verified.py     files kept between runs under their SHA-256
    compilation_cache.py  what JAX compiles, kept between runs
    backend.py      starting JAX on this machine: its devices, and the memory of a CPU
    multihost/      one run on several processes: joining, agreeing, shutting down, supervising
    config.py       the frozen dataclass that holds every setting of a run; imports no jax
    cli.py          flags from that dataclass, exit statuses; imports no jax
    collectives.py  means and sums over the devices that share a batch; keys of its examples
    softmax/        logits -> probabilities: softmax, sigmoid, sparsemax, entmax, tempered; predict
    losses/         logits, labels -> one loss per example; functions from losses to losses
    models/         Flax linen modules: SoftmaxRegression, MLP, CNN, AirNet; their layers and heads
    optim/          optimizers besides Optax's own, Muon among them; schedules
    augment/        keys, batch -> batch, on the device; the pipeline; views of test images
    data/           data sets from TFDS or arrays, their order, corruptions, streaming or in memory
    metrics.py      one record per metric: masked sums -> accuracy, NLL, Brier, ECE, top-5, your own
    contracts.py    what each kind of part promises, tried on shapes
    parts.py        the kinds of parts; the strings of a config -> the functions that a run needs
    plots.py        figures
    html/           blocks of text, tables and figures -> one self-contained HTML page
    report_card/    which properties a loss has, with counterexamples
    lesson.py       a script's claims, checked, with the figures that show them, as a page
    checkpoint/     save and restore any pytree, verified
    training/       the pure step, the compiled experiment, the loop, the run's folder
    tpu/            the step compiled for TPU slices that are not here: what it needs, at best
    study/          losses x conditions x paired seeds -> results, statistics, report; replications
"""

__version__ = "0.1.0"
