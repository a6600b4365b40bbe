"""What airbench94_muon.py (github.com/KellerJordan/cifar10-airbench) computes in float64, to hold
our version against.

    python tests/golden/airbench.py PATH/airbench94_muon.py    # rewrites airbench.json here

Needs PyTorch and the script at the commit below. Its own `main` trains, an epoch being one step on
the same 16 images, unaugmented; of eight steps the first five count. What is random comes from
np.random.default_rng(0), in this order:

    images    integers(0, 256, (16, 32, 32, 3)); then (x / 255 - mean) / std in float64 with the
              script's float32 values
    labels    integers(0, 10, 16)
    filters   of conv1 and conv2 in layers.1, .2, .3: standard_normal((3, 3, I, O)) / sqrt(9 * I)
    head      standard_normal((256, 10))

Biases start at 0. airbench.json, its arrays HWIO and IO:

    whitening                   the first filters, fitted to the images; the eigenvectors' signs are
                                LAPACK's choice
    losses                      before each step, the script's sum over the batch / 16
    updates                     each parameter after the first step: its norm, its first five
                                numbers
    running_mean, running_var   of each norm after step 5, the first four
    logits, tta_logits          after step 5, in evaluation mode: of the images, and with
                                tta_level=2
    newton_schulz               of default_rng(1).standard_normal, 6x4 and then 4x6, by
                                zeropower_via_newtonschulz5
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments" / "benchmarks"))
import airbench_torch  # pyright: ignore[reportMissingImports]

COMMIT = "f1c599c4af24aca803e3e65a6a7e52a502e09d0e"
SHA256 = "704e29251a5207d8aed8a35adf13f772ff386b90a712aaddc2a28854385b536e"
IN_FLOAT64 = airbench_torch.ON_CPU | {
    ".half()": ".double()",
    "mod.float()": "mod.double()",
    "reshape(-1,c,h,w).float()": "reshape(-1,c,h,w).double()",
    # .double() alone is G itself, which the script then divides in place
    "G.bfloat16()": "G.double().clone()",
    "batch_size = 2000\n": "batch_size = 16\n",
}


class Batch(list):
    """In the place of the script's loader: one batch in every epoch, normalised already."""

    def __init__(self, images, labels):
        super().__init__([(images, labels)])
        self.images = images
        self.labels = labels
        self.normalize = lambda images: images


def in_flax(parameter):
    """OIHW as HWIO, OI as IO."""
    return parameter.detach().permute({4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[parameter.ndim])


def rounded(numbers):
    """Nested lists of the numbers, to 12 digits."""
    return [rounded(part) for part in numbers] if np.ndim(numbers) else float(f"{numbers:.12g}")


def train(module):
    """The rows of the JSON that `main` gives."""
    rng = np.random.default_rng(0)
    pixels = torch.tensor(rng.integers(0, 256, (16, 32, 32, 3)) / 255).permute(0, 3, 1, 2)
    normalize = module.T.Normalize(module.CIFAR_MEAN, module.CIFAR_STD)
    batch = Batch(normalize(pixels), torch.tensor(rng.integers(0, 10, 16)))
    model = module.CifarNet()
    for group in list(model.layers)[1:4]:
        for conv in (group.conv1, group.conv2):
            outputs, inputs = conv.weight.shape[:2]
            filters = rng.standard_normal((3, 3, inputs, outputs)) / np.sqrt(9 * inputs)
            conv.weight.data = torch.tensor(filters).permute(3, 2, 0, 1).contiguous()
    model.head.weight.data = torch.tensor(rng.standard_normal((256, 10))).T.contiguous()
    model.whiten.bias.data.zero_()
    model.reset = lambda: None  # main would draw the weights anew
    rows: dict = {"losses": []}

    def observe(variables, is_final_entry):
        epoch = variables["epoch"]
        if epoch in range(5):
            loss = F.cross_entropy(
                variables["outputs"], batch.labels, label_smoothing=0.2, reduction="sum"
            )
            rows["losses"].append(rounded(loss.item() / 16))
        if epoch == 0:
            rows["whitening"] = rounded(in_flax(model.whiten.weight))

            def summary(p):
                return {
                    "norm": rounded(p.norm()),
                    "first": rounded(in_flax(p).flatten()[:5]),
                }

            rows["updates"] = {
                name: summary(p) for name, p in model.named_parameters() if p.requires_grad
            }
        if epoch == 4:
            norms = {name: layer for name, layer in model.named_modules() if "norm" in name}
            for statistic in ("running_mean", "running_var"):
                rows[statistic] = {
                    name: rounded(getattr(norm, statistic)[:4]) for name, norm in norms.items()
                }
            rows["logits"], rows["tta_logits"] = (
                rounded(module.infer(model, batch, level)) for level in (0, 2)
            )

    module.CifarLoader = lambda *args, **options: batch
    module.print_training_details = observe
    module.main(0, model)
    return rows


def newton_schulz(module):
    rng = np.random.default_rng(1)
    for matrix in (rng.standard_normal((6, 4)), rng.standard_normal((4, 6))):
        result = module.zeropower_via_newtonschulz5(torch.tensor(matrix), steps=3)
        yield {"matrix": rounded(matrix), "result": rounded(result)}


def main(script):
    if hashlib.sha256(script.read_bytes()).hexdigest() != SHA256:
        sys.exit(f"{script} is not airbench94_muon.py of commit {COMMIT}")
    module = airbench_torch.load(script, IN_FLOAT64)
    source = {
        "repository": "KellerJordan/cifar10-airbench",
        "commit": COMMIT,
        "torch": torch.__version__,
    }
    rows = {"source": source} | train(module) | {"newton_schulz": list(newton_schulz(module))}
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items())
    Path(__file__).with_suffix(".json").write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
