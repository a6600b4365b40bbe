"""A network's training step in PyTorch: a contestant that training.py starts, with the Python that
has PyTorch.

    python experiments/benchmarks/torch_step.py [--model resnet20] [--hyper '{"shortcut": "pad"}']
        [--batch-size 128] [--optimizer adam] [--bf16] [--compile] [--check]

32x32 images of noise in NHWC memory, fused optimizer, as many threads as cores. Prints "first step"
after the first, "ready" after five, then for each number of steps read from standard input the
seconds that they took; at the end of the input its peak memory in bytes. With --check it builds the
network and ends. A network that cannot be built: one line of standard error, exit status 2.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Iterable

try:
    import torch  # pyright: ignore[reportMissingImports]
except ImportError:
    sys.exit(f"torch_step.py: {sys.executable} has no PyTorch; give one that has")
from torch import nn  # pyright: ignore[reportMissingImports]
from torch_networks import network


def build_optimizer(name: str, parameters: "Iterable[torch.Tensor]") -> "torch.optim.Optimizer":
    """Build the optimizer of training.py with that name."""
    if name == "adam":
        return torch.optim.Adam(parameters, 1e-3, fused=True)
    return torch.optim.SGD(parameters, 0.01, momentum=0.9, fused=True)


def main(arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        net = network(arguments.model, **json.loads(arguments.hyper))
    except (TypeError, ValueError) as error:
        print(f"torch_step.py: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    if arguments.check:
        return
    net = net.to(device, memory_format=torch.channels_last)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(arguments.optimizer, trained)
    run = torch.compile(net) if arguments.compile else net
    size = arguments.batch_size
    images = [
        torch.randn(size, 3, 32, 32).to(device, memory_format=torch.channels_last) for _ in range(8)
    ]
    labels = [torch.randint(0, 10, (size,), device=device) for _ in range(8)]

    def step(i: int) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=arguments.bf16):
            logits = run(images[i % 8])
        loss = nn.functional.cross_entropy(logits.float(), labels[i % 8])
        loss.backward()
        optimizer.step()
        return loss

    for i in range(5):
        step(i).item()
        if i == 0:
            print("first step", flush=True)
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        losses = [step(i) for i in range(int(line))]
        losses[-1].item()
        print(time.perf_counter() - start, flush=True)
    memory = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    print(memory)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time a network's training step in PyTorch.")
    parser.add_argument("--model", default="cnn", help="name in torch_networks.py")
    parser.add_argument("--hyper", default="{}", help="its hyperparameters, as JSON")
    parser.add_argument("--batch-size", type=int, default=128, help="images per step")
    parser.add_argument("--optimizer", choices=("adam", "sgd"), default="adam")
    parser.add_argument("--bf16", action="store_true", help="forward pass in bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--check", action="store_true", help="build the network and end")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_arguments())
