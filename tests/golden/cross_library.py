"""What other libraries return, values and gradients, on random logits: the second opinion on the
golden files.

    python tests/golden/cross_library.py    # rewrites cross_library.json and its _softmax.json

Needs torch, optax, keras (on its torch backend) and deep-spin's entmax; all compute in float64. A
row reads

    {"library", "version", "call",
     "loss", "hyper", "transform", "logits", "labels", "value", "gradient", "scale", "atol"}

value and gradient are theirs, to be multiplied by `scale` to be ours; `note` says why scale is not
1 or gradient is null; `atol` bounds the error of their arithmetic (an iteration that stops early, a
float32 inside, a published rounding). `transform` names the wrapper of ours that reproduces the
call: {"label_smoothing": {"alpha", "convention"}}, {"class_weights": {"weights"}}, {"with_z_loss":
{"coefficient"}}, {"temperature": {"t"}}. The rows of cross_library_softmax.json are those of
softmax.json with library, version, call and atol.

Rows with "recorded": true come from research code that is no installed package, run once at the
commit they name, or from numbers a repository publishes in its tests: this script keeps them as
they stand. Every row, recorded or not, is held against the formulas of make_golden.py before it is
written.
"""

import json
import os
from importlib.metadata import version

os.environ["KERAS_BACKEND"] = "torch"  # before keras is imported

import entmax
import jax
import keras
import make_golden
import numpy as np
import torch
import torch.nn.functional as F
from jax import numpy as jnp
from make_golden import HERE, LOSSES, distribution, on_grid, partial, support_is_clear
from mpmath import mp, mpf
from optax import losses as ox

jax.config.update("jax_enable_x64", True)
keras.config.set_floatx("float64")

SHAPES = [(3, 1), (5, 3), (10, 2)]


def uniform(alpha):
    return {"label_smoothing": {"alpha": alpha, "convention": "uniform"}}


def make_row(
    library,
    call,
    value,
    gradient,
    loss,
    z,
    label,
    hyper=None,
    transform=None,
    scale=1.0,
    atol=1e-12,
    **more,
):
    source = {"library": library, "version": version(library), "call": call} | more
    ours = {
        "loss": loss,
        "hyper": hyper or {},
        "transform": transform,
        "logits": z,
        "labels": label,
    }
    return (
        source | ours | {"value": value, "gradient": gradient, "scale": float(scale), "atol": atol}
    )


def by_torch(library, call, function, loss, z, label, **ours):
    x = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    value = function(x)
    (gradient,) = torch.autograd.grad(value, x)
    return make_row(library, call, value.item(), gradient.tolist(), loss, z, label, **ours)


def by_jax(call, function, loss, z, label, **ours):
    value, gradient = jax.value_and_grad(function)(jnp.array(z))
    return make_row("optax", call, float(value), gradient.tolist(), loss, z, label, **ours)


def samples(seed):
    """(classes, logits, true class, soft labels, teacher logits, class weights), clear of every
    kink.
    """
    rng = np.random.default_rng(seed)
    for classes, scale in SHAPES:
        while True:
            z = on_grid(scale * rng.normal(size=classes))
            ordered = np.diff(np.sort(z))
            if all(support_is_clear(z, a) for a in (1.2, 1.5, 2.0, 3.0)) and ordered.min() > 0.02:
                break
        y = int(rng.integers(classes))
        q = distribution(rng, classes)
        yield (
            classes,
            z,
            y,
            q,
            on_grid(2 * rng.normal(size=classes)),
            on_grid(rng.uniform(0.25, 4, classes)),
        )


def torch_rows(classes, z, y, q, teacher, weights):
    def f64(x):
        return torch.tensor(x, dtype=torch.float64)

    def row(call, function, *ours, **more):
        return by_torch("torch", call, function, *ours, **more)

    ce = F.cross_entropy
    one_hot = f64(np.eye(classes)[y])
    targets = f64(on_grid(np.random.default_rng(classes).uniform(size=classes)))
    by_k = {"scale": classes, "note": "divides by K"}
    yield row("cross_entropy(z, y)", lambda x: ce(x, torch.tensor(y)), "cross_entropy", z, y)
    yield row("cross_entropy(z, q)", lambda x: ce(x, f64(q)), "cross_entropy", z, q)

    def smooth(x):
        return ce(x, torch.tensor(y), label_smoothing=0.1)

    yield row(
        "cross_entropy(z, y, label_smoothing=0.1)",
        smooth,
        "cross_entropy",
        z,
        y,
        transform=uniform(0.1),
    )

    def smooth(x):
        return ce(x, f64(q), label_smoothing=0.3)

    yield row(
        "cross_entropy(z, q, label_smoothing=0.3)",
        smooth,
        "cross_entropy",
        z,
        q,
        transform=uniform(0.3),
    )

    def weighted(x):
        return ce(x[None], torch.tensor([y]), weight=f64(weights), reduction="none")[0]

    call = "cross_entropy(z, y, weight=w, reduction='none')"
    transform = {"class_weights": {"weights": weights}}
    yield row(call, weighted, "cross_entropy", z, y, transform=transform)

    def cooled(x):
        return ce(x / 2, torch.tensor(y))

    yield row(
        "cross_entropy(z / 2, y)",
        cooled,
        "cross_entropy",
        z,
        y,
        transform={"temperature": {"t": 2.0}},
    )
    for label, target in ((y, one_hot), (targets.tolist(), targets)):

        def bce(x, t=target):
            return F.binary_cross_entropy_with_logits(x, t, reduction="sum")

        call = "binary_cross_entropy_with_logits(z, t, reduction='sum')"
        yield row(call, bce, "binary_cross_entropy", z, label)
    for margin in (1.0, 0.5):

        def hinge(x, m=margin):
            return F.multi_margin_loss(x, torch.tensor(y), margin=m)

        hyper = {"margin": margin, "form": "weston_watkins"}
        yield row(
            f"multi_margin_loss(z, y, margin={margin})",
            hinge,
            "multiclass_hinge",
            z,
            y,
            hyper=hyper,
            **by_k,
        )
    for t in (1.0, 4.0):
        soft = F.softmax(f64(teacher) / t, -1)

        def kl(x, t=t, soft=soft):
            return t**2 * F.kl_div(F.log_softmax(x / t, -1), soft, reduction="sum")

        hyper = {"teacher_logits": teacher, "temperature": t, "alpha": 1.0}
        call = f"T**2 * kl_div(log_softmax(z / T), softmax(teacher / T), reduction='sum'), T={t}"
        yield row(call, kl, "distillation", z, y, hyper=hyper)

    def mse(x):
        return F.mse_loss(x.softmax(-1), f64(q), reduction="sum")

    yield row("mse_loss(softmax(z), q, reduction='sum')", mse, "mean_squared_error", z, q)

    def mae(x):
        return F.l1_loss(x.softmax(-1), one_hot, reduction="sum")

    yield row("l1_loss(softmax(z), one_hot, reduction='sum')", mae, "mean_absolute_error", z, y)
    yield row("mse_loss(z, one_hot)", lambda x: F.mse_loss(x, one_hot), "squared_logits", z, y)


def optax_rows(classes, z, y, q, teacher, _):
    row = by_jax
    one_hot = jax.nn.one_hot(y, classes)
    soft = jnp.array(q)

    def int_ce(x):
        return ox.softmax_cross_entropy_with_integer_labels(x, jnp.array(y))

    yield row("softmax_cross_entropy_with_integer_labels(z, y)", int_ce, "cross_entropy", z, y)

    def ce(x):
        return ox.softmax_cross_entropy(x, soft)

    yield row("softmax_cross_entropy(z, q)", ce, "cross_entropy", z, q)

    def smooth(x):
        return ox.softmax_cross_entropy(x, ox.smooth_labels(one_hot, 0.1))

    call = "softmax_cross_entropy(z, smooth_labels(one_hot, 0.1))"
    yield row(call, smooth, "cross_entropy", z, y, transform=uniform(0.1))

    def bce(x):
        return ox.sigmoid_binary_cross_entropy(x, soft).sum()

    yield row("sigmoid_binary_cross_entropy(z, t).sum()", bce, "binary_cross_entropy", z, q)
    for epsilon in (1.0, 2.0, -1.0):
        for label, target in ((y, one_hot), (q, soft)):

            def poly(x, e=epsilon, t=target):
                return ox.poly_loss_cross_entropy(x, t, epsilon=e)

            call = f"poly_loss_cross_entropy(z, labels, epsilon={epsilon})"
            yield row(call, poly, "poly", z, label, hyper={"epsilon": epsilon})

    # Both want a batch: see DEVIATIONS.md.
    def hinge(x):
        return ox.multiclass_hinge_loss(x[None], jnp.array([y]))[0]

    yield row("multiclass_hinge_loss(z[None], y[None])[0]", hinge, "multiclass_hinge", z, y)

    def sparse(x):
        return ox.multiclass_sparsemax_loss(x[None], jnp.array([y]))[0]

    yield row("multiclass_sparsemax_loss(z[None], y[None])[0]", sparse, "sparsemax_loss", z, y)
    t = 3.0
    target = jax.nn.softmax(jnp.array(teacher) / t)

    def kl(x, p=target):
        return t**2 * ox.kl_divergence(jax.nn.log_softmax(x / t), p)

    hyper = {"teacher_logits": teacher, "temperature": t, "alpha": 1.0}
    call = "T**2 * kl_divergence(log_softmax(z / T), softmax(teacher / T)), T=3"
    yield row(call, kl, "distillation", z, y, hyper=hyper)

    def brier(x):
        return ox.l2_loss(jax.nn.softmax(x), soft).sum()

    halved = {"scale": 2.0, "note": "half the square"}
    yield row("l2_loss(softmax(z), q).sum()", brier, "mean_squared_error", z, q, **halved)


def keras_rows(classes, z, y, q, *_):
    kl = keras.losses

    def row(call, loss, transfer, target, *ours, **more):
        def function(x):
            return loss(torch.tensor(np.array([target])), transfer(x)[None])[0]

        return by_torch("keras", call, function, *ours, **more)

    one_hot = np.eye(classes)[y]

    def raw(x):
        return x

    logits = {"from_logits": True, "reduction": None}
    each = {"reduction": None}
    ce = kl.CategoricalCrossentropy(**logits)
    yield row("CategoricalCrossentropy(from_logits=True)", ce, raw, q, "cross_entropy", z, q)
    ce = kl.CategoricalCrossentropy(label_smoothing=0.1, **logits)
    call = "CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)"
    yield row(call, ce, raw, one_hot, "cross_entropy", z, y, transform=uniform(0.1))
    focal = kl.CategoricalFocalCrossentropy(**logits)
    call = "CategoricalFocalCrossentropy(from_logits=True)"
    balanced = {"scale": 4.0, "note": "balances every class by alpha=0.25"}
    yield row(call, focal, raw, one_hot, "focal", z, y, **balanced)
    yield row(call, focal, raw, q, "focal", z, q, **balanced)
    focal = kl.CategoricalFocalCrossentropy(alpha=1.0, gamma=0.5, **logits)
    call = "CategoricalFocalCrossentropy(alpha=1.0, gamma=0.5, from_logits=True)"
    yield row(call, focal, raw, one_hot, "focal", z, y, hyper={"gamma": 0.5})
    for power in (0.5, 0.7):
        gce = kl.CategoricalGeneralizedCrossEntropy(q=power, **each)
        call = f"CategoricalGeneralizedCrossEntropy(q={power}) on softmax(z)"
        hyper = {"q": power}
        yield row(
            call, gce, lambda x: x.softmax(-1), y, "generalized_cross_entropy", z, y, hyper=hyper
        )
    bce = kl.BinaryCrossentropy(**logits)
    by_k = {"scale": classes, "note": "means over the classes, in float32", "atol": 1e-6}
    yield row(
        "BinaryCrossentropy(from_logits=True)", bce, raw, q, "binary_cross_entropy", z, q, **by_k
    )


def entmax_rows(classes, z, y, *_):
    def row(call, loss, name, z=z, y=y, **more):
        return by_torch(
            "entmax", call, lambda x: loss(x[None], torch.tensor([y]))[0], name, z, y, **more
        )

    yield row("sparsemax_loss(z, y)", entmax.sparsemax_loss, "sparsemax_loss")
    yield row("entmax15_loss(z, y)", entmax.entmax15_loss, "entmax_loss")
    for alpha in (1.2, 1.5, 2.0, 3.0):

        def loss(x, t, a=alpha):
            return entmax.entmax_bisect_loss(x, t, a, n_iter=100)

        call = f"entmax_bisect_loss(z, y, {alpha}, n_iter=100)"
        yield row(call, loss, "entmax_loss", hyper={"alpha": alpha}, atol=1e-10)


def entmax_mappings(classes, z, *_):
    def row(call, function, name, alpha, z, by_alpha=None, atol=1e-12):
        x = torch.tensor(z, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(function, x).tolist()
        a = None if by_alpha is None else torch.tensor(alpha, dtype=torch.float64)
        slope = (
            None if by_alpha is None else torch.autograd.functional.jacobian(by_alpha, a).tolist()
        )
        source = {"library": "entmax", "version": version("entmax"), "call": call, "atol": atol}
        ours = {"function": name, "alpha": alpha, "logits": z, "value": function(x).tolist()}
        return source | ours | {"jacobian": jacobian, "d_alpha": slope}

    yield row("sparsemax(z)", lambda x: entmax.sparsemax(x, dim=-1), "sparsemax", None, z)
    yield row("entmax15(z)", lambda x: entmax.entmax15(x, dim=-1), "entmax15", None, z)
    for alpha in (1.2, 1.5, 2.0, 3.0):

        def bisect(x, a=alpha):
            return entmax.entmax_bisect(x, a, dim=-1, n_iter=100)

        def by_alpha(a, z=z):
            return entmax.entmax_bisect(torch.tensor([z], dtype=torch.float64), a, n_iter=100)[0]

        call = f"entmax_bisect(z, {alpha}, n_iter=100)"
        yield row(call, bisect, "entmax", alpha, z, by_alpha, atol=1e-10)


# ------------------------------------------------------------------------------------ held against
# the golden formulas


def exact_loss(row):
    """The value and gradient that make_golden's formulas give for a row, its transform applied by
    hand.
    """
    (transform, options), *_ = (row["transform"] or {None: {}}).items()
    z = [mpf(x) for x in row["logits"]]
    y = row["labels"]
    classes = len(row["logits"])
    q = [mpf(k == y) for k in range(classes)] if isinstance(y, int) else [mpf(x) for x in y]
    if transform == "label_smoothing":
        alpha = mpf(options["alpha"])
        off = alpha / classes if options["convention"] == "uniform" else alpha / (classes - 1)
        keep = 1 - alpha if options["convention"] == "uniform" else 1 - alpha - off
        q = [keep * x + off for x in q]
    hyper = {k: [mpf(x) for x in v] if isinstance(v, list) else v for k, v in row["hyper"].items()}
    weight = options["weights"][y] if transform == "class_weights" else 1

    def function(z):
        x = [v / options["t"] for v in z] if transform == "temperature" else z
        penalty = 0
        if transform == "with_z_loss":
            penalty = options["coefficient"] * mp.log(mp.fsum(mp.exp(v) for v in z)) ** 2
        return weight * LOSSES[row["loss"]](x, q, **hyper) + penalty

    return function(z), [partial(function, z, j) for j in range(classes)]


def check_loss(row):
    value, gradient = exact_loss(row)
    pairs = [
        (row["value"], value),
        *zip(row["gradient"] or [], gradient, strict=bool(row["gradient"])),
    ]
    for theirs, ours in pairs:
        difference = abs(row["scale"] * theirs - ours)
        assert difference <= row["atol"] * max(1, abs(ours)), f"{float(difference):.1e} {row}"
    return row


def check_mapping(row):
    z = [mpf(x) for x in row["logits"]]
    alpha = row["alpha"] or {"sparsemax": 2.0, "entmax15": 1.5}[row["function"]]

    def p(z, i, a=alpha):
        return make_golden.entmax(z, mpf(a))[i]

    for i in range(len(z)):
        pairs = [(row["value"][i], p(z, i))]
        pairs += [
            (row["jacobian"][i][j], partial(lambda z, i=i: p(z, i), z, j)) for j in range(len(z))
        ]
        if row["d_alpha"]:
            pairs.append(
                (row["d_alpha"][i], make_golden.mpmath.diff(lambda a, i=i: p(z, i, a), mpf(alpha)))
            )
        for theirs, ours in pairs:
            assert abs(theirs - ours) <= 100 * row["atol"], f"{float(theirs - ours):.1e} {row}"
    return row


def recorded():
    path = HERE / "cross_library.json"
    return (
        [row for row in json.loads(path.read_text()) if row.get("recorded")]
        if path.exists()
        else []
    )


if __name__ == "__main__":
    mp.dps = 40
    calls = enumerate((torch_rows, optax_rows, keras_rows, entmax_rows))
    rows = [row for seed, library in calls for sample in samples(seed) for row in library(*sample)]
    make_golden.write("cross_library.json", map(check_loss, rows + recorded()))
    mappings = [row for sample in samples(4) for row in entmax_mappings(*sample)]
    make_golden.write("cross_library_softmax.json", map(check_mapping, mappings))
