"""cnnlab: image classification in JAX, as pure functions from arrays to arrays.

The map of the package; a module imports only modules above it in this list (tests/test_architecture.py holds that):

    errors.py       InputError: what the user can mend, said in one line
    docstrings.py   what a part's docstring says: formula, hyperparameters and their ranges, source
    provenance.py   SHA-256 of the user's files behind a part
    spec.py         name,key=value or a dotted path -> a part: a function with its hyperparameters; imports no jax
    watch.py        a process of several in a child, whose end its parent tells in a line
    hosts.py        starting JAX on one machine or many: devices, joined processes, what the first alone does
    config.py       the frozen dataclass that holds every hyperparameter of a run; imports no jax
    cli.py          flags from that dataclass, exit statuses; imports no jax
    console.py      what a person sees while it works: a bar on a terminal, lines elsewhere
    tempered.py     the normaliser of softmax's sparse and heavy-tailed relatives, with exact derivatives
    softmax.py      logits -> probabilities: softmax, sigmoid, sparsemax, entmax, gumbel_softmax; predict
    optim.py        optimizers besides Optax's own, Muon among them; schedules
    parallel.py     the one place that knows devices: jit | pmap | sharded jit; many seeds in one program
    augment.py      keys, batch -> batch, on the device; the pipeline
    layers.py       convolution and pooling as the platform likes them; dropout; conv_output_size
    cache.py        what is kept between runs, under its SHA-256: decoded images, compiled programs
    data/           data sets from TFDS or arrays, their order, label noise, long tails, streaming or resident
    storage.py      files and folders, here or on Google Cloud Storage
    plots.py        figures
    page/           blocks of text, tables and figures -> one self-contained HTML page
    losses/         logits, labels -> one loss per example; functions from losses to losses
    metrics.py      one record per metric: masked sums -> accuracy, NLL, Brier, ECE, top-5, your own
    report_card/    which properties a loss has, with counterexamples
    models.py       Flax linen modules: SoftmaxRegression, MLP, CNN, AirNet; linear or cosine head
    contracts.py    what each kind of part promises, tried on shapes
    parts.py        the kinds of parts; the strings of a config -> the functions that a run needs
    run_folder.py   config, versions, metrics.jsonl, summary, lock
    lesson.py       a script's claims, checked, with the figures that show them, as a page
    digest.py       SHA-256 of every leaf and file of a checkpoint
    checkpoint.py   save and restore any pytree, verified
    train.py        TrainState and the pure train and eval steps
    network.py      a config -> network, optimizer, first state; a run folder -> its trained network
    program.py      a config, devices and facts about the data -> the compiled train step, here or for elsewhere
    slices.py       TPU slices that are not here: the step compiled for one, what it needs, how long it takes at best
    loop.py         fit and evaluate: the only loops
    recipe.py       a config -> data, loss and compiled steps: what every experiment starts from
    stats.py        paired differences -> intervals, exact tests, verdicts
    study/          losses x conditions x paired seeds -> results
    report/         results -> HTML, Markdown, CSV
    replication.py  a published claim put to the test
"""

__version__ = "0.1.0"
