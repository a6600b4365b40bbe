"""Images per second of training a network: the bare step, what surrounds it, many seeds, and
PyTorch for comparison.

    python experiments/benchmarks/training.py --json training.json
    python experiments/benchmarks/training.py --torch-python ../torch/bin/python --rounds 15
    python experiments/benchmarks/training.py --torch-python ../torch/bin/python --model resnet20 \
        --contestants "bare step" "bare step, lax convolution" pytorch "pytorch, malloc tuned"

Each contestant is a process of its own, started and warmed up before the first round. In a round
each takes its turn, in random order, while the others sleep, and its first steps do not count;
figures are medians over the rounds. Long turns (--steps) are kinder to those who need much memory.
The bare steps, PyTorch's too, take 32x32 images of noise, already normalised and on the device; the
others are experiments/train.py itself (a short run each round) and the step that it compiles, on
--dataset. PyTorch's contestants need a Python that has PyTorch, and a network of torch_networks.py.
Network, batch and optimizer are the same for all.
"""

from __future__ import annotations

import collections
import json
import math
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from contestants import CONTESTANTS, TORCH_SCRIPT, Contest, Worker

from cnnlab import cli
from cnnlab.config import Config, Count
from cnnlab.errors import InputError, unknown
from cnnlab.types import JsonObject

# what is divided by what, for the table's last column; by PyTorch's where that does not take part
AGAINST = {
    "train.py, resident": "bare step",
    "train.py, streaming": "bare step",
    "4 seeds": "train.py's step",
    "16 seeds": "train.py's step",
}


@dataclass(frozen=True)
class Arguments(Contest):
    """Time the training of a network."""

    contestants: tuple[str, ...] = ()
    """Names; none for all that can run."""
    torch_python: str | None = None
    """Python that has PyTorch; None: this one, if it has."""
    rounds: Count = 9
    """Turns of each contestant."""
    steps: Count = 20
    """Steps a turn; train.py runs two epochs a turn, and its second counts."""
    json: str | None = None
    """File to write the figures to."""


def main(arguments: Arguments) -> None:
    cli.writable(arguments.json)
    torch_python = arguments.torch_python or sys.executable
    names = chosen(arguments, torch_python)
    workers = {name: Worker(name, arguments, torch_python) for name in names}
    order = list(workers)
    rates = {name: [] for name in workers}
    for number in range(arguments.rounds):
        random.shuffle(order)  # nobody always follows the same, whose caches and clock it finds
        for name in order:
            rates[name].append(workers[name].turn(arguments.steps))
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    rows = [row(name, rates[name], worker.stop()) for name, worker in workers.items()]
    compare(rows)
    for figures in rows:
        ratio = f"{figures['ratio']:.2f} of {figures['to']}" if "ratio" in figures else ""
        print(
            f"{figures['name']:28} {figures['images per second']:8,.0f} images/s "
            f"{figures['memory'] / 2**20:8,.0f} MiB   {ratio}"
        )
    if arguments.json:
        facts = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "model": arguments.model,
            "batch_size": arguments.batch_size,
            "optimizer": arguments.optimizer_name,
        }
        Path(arguments.json).write_text(
            json.dumps(facts | {"rounds": arguments.rounds, "rows": rows}, indent=1)
        )


def chosen(arguments: Arguments, torch_python: str) -> list[str]:
    """List the contestants by name, without PyTorch's if it is not installed or lacks the network.

    Raises:
      InputError: an unknown one, or PyTorch's cannot run though they were asked for.
    """
    for name in arguments.contestants:
        if name not in CONTESTANTS:
            raise unknown("contestant", name, CONTESTANTS)
    names = list(arguments.contestants or CONTESTANTS)
    others = [name for name in names if CONTESTANTS[name][0][0] != "torch"]
    obstacle = torch_obstacle(arguments, torch_python) if others != names else ""
    if not obstacle:
        return names
    if arguments.torch_python or arguments.contestants:
        raise InputError(f"PyTorch's contestants cannot run with {torch_python}: {obstacle}")
    print(f"without PyTorch's contestants: {obstacle}", file=sys.stderr)
    return others


def row(name: str, rates: list[float], memory: int) -> JsonObject:
    """Summarise a contestant's figures."""
    quartiles = statistics.quantiles(rates, n=4) if len(rates) > 1 else None
    median = statistics.median(rates)
    return {"name": name, "images per second": median, "memory": memory, "quartiles": quartiles}


def compare(rows: list[JsonObject]) -> None:
    """Add to each contestant its ratio to the one that it is compared with."""
    median = {row["name"]: row["images per second"] for row in rows}
    for row in rows:
        other = AGAINST.get(row["name"])
        other = other if other in median else "pytorch"
        if other in median:
            row |= {"ratio": row["images per second"] / median[other], "to": other}


def torch_obstacle(arguments: Arguments, python: str) -> str:
    """Say in one line why a Python cannot build the network in PyTorch; empty: it can."""
    command = [python, str(TORCH_SCRIPT), *arguments.torch_flags(), "--check"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    complaint = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
    return complaint[-1] if done.returncode else ""


def work(kind: str, option: str, *recipe: str) -> None:
    """Run a contestant that is not PyTorch's in this process; it reads and prints as torch_step.py
    does.

    Args:
      kind: bare, or step for what train.py compiles.
      option: the formulation of convolutions or the number of seeds; "-" for the default.
      recipe: flags of train.py.
    """
    import jax

    config = cli.parse(Config, list(recipe))
    if kind == "bare":
        step = bare_step(config, None if option == "-" else option)
        at_once = 1
    else:
        step, at_once = experiment_step(config, None if option == "-" else int(option))
    jax.block_until_ready(step(0))
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        ahead = collections.deque()
        dispatches = math.ceil(int(line) / at_once)
        for i in range(dispatches):
            ahead.append(step(i))
            if len(ahead) > 2:  # as many as loop.fit lets run ahead
                jax.block_until_ready(ahead.popleft())
        jax.block_until_ready(ahead.pop())
        print((time.perf_counter() - start) * int(line) / (dispatches * at_once), flush=True)
    stats = jax.devices()[0].memory_stats() or {}
    print(
        stats.get("peak_bytes_in_use") or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )


def bare_step(config: Config, formulation: str | None = None):
    """Build a step of forward, backward and optimizer on eight batches of noise, as PyTorch's
    contestants do.

    Args:
      config: whose model, batch size, type, optimizer and learning rate, which stays constant,
        count.
      formulation: of convolutions; None: the one for the devices.
    """
    import functools

    import jax
    import jax.numpy as jnp

    from cnnlab import losses
    from cnnlab.models.convolution import Convolution
    from cnnlab.parts import resolve
    from cnnlab.training import devices, network
    from cnnlab.training.step import Objective, StepParts, train_step, zero_totals

    recipe = config.recipe
    found = resolve(recipe)
    layout = devices.layout(config.machine, recipe.batch_size, cpu_images=found.cpu_images)
    conv = Convolution(formulation or layout.formulation)
    model = found.build_model(10, recipe.compute_dtype, conv, layout.axis_name)
    tx = found.optimizer.call(recipe.learning_rate)
    parts = StepParts(
        apply_fn=network.apply_for_training(model),
        objective=Objective(losses.cross_entropy),
        tx=tx,
        prepare=lambda batch, key, run_key, axis_name: batch,
    )
    step_fn = functools.partial(train_step, parts=parts)
    specs = (devices.SHARED, devices.SHARED, devices.BATCH, devices.SHARED)
    compiled = layout.compile(step_fn, specs, donate=(0,))
    key = layout.place(jax.random.key(0))
    batches = [
        {
            "image": jax.random.normal(jax.random.key(i), (recipe.batch_size, 32, 32, 3)),
            "label": jax.random.randint(jax.random.key(i), (recipe.batch_size,), 0, 10),
        }
        for i in range(8)
    ]
    batches = [layout.place(batch, devices.BATCH) for batch in batches]
    state = [layout.place(network.initial_state(model, tx, jax.random.key(0), (32, 32, 3)))]
    totals = [layout.place(zero_totals(jnp.float32))]

    def step(i: int):
        state[0], totals[0] = compiled(state[0], totals[0], batches[i % 8], key)
        return totals[0]  # the state's memory goes to the next step

    return step


def experiment_step(config: Config, seeds: int | None = None):
    """Build the dispatch that experiments/train.py compiles, of several seeds if wanted; return it
    and how many steps it takes.
    """
    import itertools

    from cnnlab.training import experiment as experiments

    experiment = experiments.build(config, seeds=None if seeds is None else range(seeds))
    items = experiment.items(0, 1_000_000)
    progress = experiment.start()

    def step(_: int):
        nonlocal progress
        fed = list(itertools.islice(items, experiment.dispatch_steps))
        progress = experiment.advance(progress, fed)
        return progress.totals

    return step, experiment.dispatch_steps


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        try:
            work(*sys.argv[2:])
        # Of the data set; the process that started this one says that it has ended.
        except InputError as error:
            sys.exit(f"error: {error}")
    else:
        cli.main(main, Arguments)
