"""The seed network's training step in PyTorch: a contestant that training.py starts, with the
Python that has PyTorch.

    python experiments/benchmarks/torch_step.py [bf16] [compile]

NHWC memory, fused Adam, as many threads as cores. Prints "ready", then for each number of steps
read from standard input the seconds that they took; at the end of the input its peak memory in
bytes.
"""

import os
import resource
import sys
import time

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

BATCH = 128


def main(options: set[str]) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(4096, 128), nn.ReLU(), nn.Linear(128, 10)),
    )
    net = net.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    run = torch.compile(net) if "compile" in options else net
    images = [
        torch.randn(BATCH, 3, 32, 32).to(device, memory_format=torch.channels_last)
        for _ in range(8)
    ]
    labels = [torch.randint(0, 10, (BATCH,), device=device) for _ in range(8)]

    def step(i: int) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled="bf16" in options):
            logits = run(images[i % 8])
        loss = nn.functional.cross_entropy(logits.float(), labels[i % 8])
        loss.backward()
        optimizer.step()
        return loss

    for i in range(5):
        step(i).item()
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


if __name__ == "__main__":
    main(set(sys.argv[1:]))
