"""What experiments/benchmarks/torch_networks.py computes in float64, to hold our networks against.

    python tests/golden/resnets.py    # rewrites resnets.json here

Needs PyTorch. What is random comes from np.random.default_rng(0), anew for each network, in this
order:

    images    standard_normal((4, side, side, 3))
    labels    integers(0, 10, 4)
    layers    in the order of "layers": the forward pass, the projection of a block last; of each
              kernel    standard_normal(shape) * sqrt(2 / fan-in), HWIO or IO
              bias      0.1 * standard_normal, of the head
              scale, bias, mean, var of a batch norm: 0.5 + random, 0.1 * standard_normal,
              0.1 * standard_normal, 0.5 + random

resnets.json, "parameters": the number of trained parameters of networks, by their specs; with
imagenet's stem for 1000 classes, else for 10. "networks", by spec:

    side, layers              of the images; [kind, [inputs, outputs]] of each layer: conv with the
                              kernel's shape, norm with its channels, dense with the kernel's shape
    train_logits, loss        in training mode; the mean cross-entropy of these logits
    gradients                 of the loss, in the order of the draws without mean and var
    means, variances          of the batch norms after that one pass, in order
    eval_logits               in evaluation mode, with the means and variances that were drawn

An array is given by two numbers: the sum of its squares, and its sum weighted by cos(0), cos(1),
... over its flattened HWIO or IO form. PyTorch's variances are of n - 1 values; here they are
corrected to those of n, as flax keeps them.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments" / "benchmarks"))
from torch_networks import network  # pyright: ignore[reportMissingImports]

# spec -> side of the images
NETWORKS = {
    "resnet20": 16,
    "resnet20,shortcut=projection": 17,
    "resnet20,preactivation=true": 16,
    "resnet20,preactivation=true,shortcut=projection": 15,
    "resnet18": 16,
    "resnet18,preactivation=true": 15,
    "resnet18,stem=imagenet": 64,
    "resnet18,preactivation=true,stem=imagenet": 33,
    "resnet50": 16,
    "resnet50,preactivation=true": 16,
    "wide_resnet,depth=16,width=4": 16,
    "wide_resnet,depth=10,width=1": 15,
    "cnn8": 32,
}
# of these the number of parameters only
COUNTED = [
    "airnet",
    "cnn",
    *(f"resnet{depth}" for depth in (32, 44, 56, 110, 34)),
    "resnet110,preactivation=true",
    "resnet34,stem=imagenet",
    "resnet50,stem=imagenet",
    "wide_resnet",
    "wide_resnet,depth=40,width=2",
]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def build(spec, num_classes=10):
    """The network of a spec `name,key=value,...`."""
    name, *pairs = spec.split(",")
    words = {"true": True}
    hyper = dict(pair.split("=") for pair in pairs)
    hyper = {
        key: words.get(value, int(value) if value.isdigit() else value)
        for key, value in hyper.items()
    }
    return network(name, num_classes, **hyper)


def count(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def layers_of(model):
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear, *NORMS))]


def described(layer):
    """The kind and shape of a layer, as in the JSON."""
    if isinstance(layer, NORMS):
        return ["norm", [layer.num_features]]
    kind = "conv" if isinstance(layer, nn.Conv2d) else "dense"
    return [kind, list(in_flax(layer.weight).shape)]


def in_flax(array):
    """OIHW as HWIO, OI as IO."""
    return array.detach().permute({4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim])


def draw(rng, layer):
    """Draw the weights of a layer, and the statistics of a batch norm."""
    if isinstance(layer, NORMS):
        size = layer.num_features
        layer.weight.data = torch.tensor(0.5 + rng.random(size))
        layer.bias.data = torch.tensor(0.1 * rng.standard_normal(size))
        layer.running_mean = torch.tensor(0.1 * rng.standard_normal(size))
        layer.running_var = torch.tensor(0.5 + rng.random(size))
        return
    shape = tuple(in_flax(layer.weight).shape)
    kernel = torch.tensor(rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1])))
    layer.weight.data = kernel.permute({4: (3, 2, 0, 1), 2: (1, 0)}[kernel.ndim]).contiguous()
    if layer.bias is not None:
        layer.bias.data = torch.tensor(0.1 * rng.standard_normal(len(layer.bias)))


def rounded(numbers):
    """Nested lists of the numbers, to 15 digits."""
    return [rounded(part) for part in numbers] if np.ndim(numbers) else float(f"{numbers:.15g}")


def summary(array):
    """The sum of squares and the weighted sum of an array."""
    flat = in_flax(array).flatten().numpy()
    return rounded([flat @ flat, flat @ np.cos(np.arange(flat.size))])


def observed_sizes(layers):
    """A dictionary that a pass fills: norm -> values of a channel that it saw."""
    sizes = {}

    def see(norm, inputs):
        sizes[norm] = inputs[0].numel() / norm.num_features

    for layer in layers:
        if isinstance(layer, NORMS):
            layer.register_forward_pre_hook(see)
    return sizes


def row(spec, side):
    """The entry of a network in the JSON."""
    rng = np.random.default_rng(0)
    images = torch.tensor(rng.standard_normal((4, side, side, 3))).permute(0, 3, 1, 2)
    labels = torch.tensor(rng.integers(0, 10, 4))
    model = build(spec).double()
    layers = layers_of(model)
    for layer in layers:
        draw(rng, layer)
    norms = [layer for layer in layers if isinstance(layer, NORMS)]
    drawn_variances = [norm.running_var.clone() for norm in norms]
    eval_logits = model.eval()(images)
    sizes = observed_sizes(layers)
    train_logits = model.train()(images)
    loss = F.cross_entropy(train_logits, labels)
    loss.backward()
    variances = []
    for norm, before in zip(norms, drawn_variances, strict=True):
        change = norm.running_var - 0.9 * before
        variances.append(0.9 * before + change * (sizes[norm] - 1) / sizes[norm])
    return {
        "side": side,
        "layers": [described(layer) for layer in layers],
        "train_logits": rounded(train_logits),
        "loss": rounded(loss.item()),
        "gradients": [summary(p.grad) for layer in layers for p in layer.parameters()],
        "means": [summary(norm.running_mean) for norm in norms],
        "variances": [summary(variance) for variance in variances],
        "eval_logits": rounded(eval_logits),
    }


def main():
    counts = {
        spec: count(build(spec, 1000 if "imagenet" in spec else 10))
        for spec in [*NETWORKS, *COUNTED]
    }
    lines = [f'"torch": {json.dumps(torch.__version__)}', f'"parameters": {json.dumps(counts)}']
    rows = [f"{json.dumps(spec)}: {json.dumps(row(spec, side))}" for spec, side in NETWORKS.items()]
    lines.append('"networks": {\n' + ",\n".join(rows) + "\n}")
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    Path(__file__).with_suffix(".json").write_text(text)


if __name__ == "__main__":
    main()
