"""Train one network with one loss, validate each epoch, test once at the end.

    python experiments/train.py                                        shapes10, drawn on the spot:
    about 94 % python experiments/train.py --dataset cifar10 --data-dir DIR       CIFAR-10
    (downloaded by TFDS without --data-dir) python experiments/train.py --loss
    my_module.my_loss,alpha=0.3     your own loss python experiments/train.py --list
    every part by name; --list loss: all about it

The same command resumes a run that was stopped; on a finished run it prints the summary.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from cnnlab import cli, files
from cnnlab.config import Config
from cnnlab.multihost import agree, processes
from cnnlab.training import run_folder


def main(config: Config) -> None:
    path = run_folder.default_path(config)
    if summary := agree.on_first(lambda: run_folder.check(path, config, quick=True)):
        print(report(summary, path))
        return

    import jax

    from cnnlab import models
    from cnnlab.checkpoint.manager import Checkpoints
    from cnnlab.console import Console
    from cnnlab.training import loop, recipe

    console, compiling = Console(config.progress), compile_seconds()
    experiment = agree.together(lambda: recipe.build(config, console))
    agree.agree("the data set", experiment.facts)
    agree.agree("a file of yours", experiment.parts.sources())
    layout, counts = experiment.layout, experiment.facts["counts"]
    devices = f"{layout.device_count} x {jax.devices()[0].device_kind} ({layout.mode})"
    if processes.count() > 1:
        devices += f" of {processes.count()} processes"
    if (
        config.parallel == "auto"
        and config.devices is None
        and layout.device_count < jax.device_count()
    ):
        devices += f", of {jax.device_count()}: more do not divide the batch or are no faster"
    console.say(
        f"{devices}; {config.dataset}: {counts['train']:,} images to train on, "
        f"{counts['validation']:,} to validate, {experiment.feed}; {config.model}: "
        f"{models.count_parameters(experiment.state.params):,} parameters; {config.loss}; {path}"
    )
    environment = run_folder.versions() | {"devices": devices, "feed": experiment.feed}
    with (
        run_folder.RunFolder(path, config, environment, experiment.facts) as folder,
        Checkpoints(path / "checkpoints", keep=config.keep) as checkpoints,
    ):
        start = loop.Progress(experiment.state, experiment.totals, [])
        found, step, rejected = loop.restore(checkpoints, start)
        for line in rejected:
            console.say(f"checkpoint rejected: {line}")
        if found is not None:
            console.say(
                f"resuming after step {step} of {experiment.steps_per_epoch * config.epochs}"
            )
            for line in folder.warnings:
                console.say(f"since then {line}: the last bits may differ from a run never stopped")
        progress = found or start
        folder.start_metrics(progress.history, config.tensorboard)

        def record(row: dict) -> None:
            folder.add_metrics(row)
            console.say(loop.line(row, config.epochs))

        progress = loop.fit(
            progress,
            loop.Plan(
                experiment.steps_per_epoch,
                config.epochs,
                config.checkpoint_steps,
                run_folder.command(),
                experiment.dispatch_steps,
            ),
            step=announced(experiment.step, console.say, compiling),
            items=experiment.items,
            validate=experiment.validate,
            checkpoints=checkpoints,
            record=record,
            console=console,
        )
        tested, step = progress, int(progress.state.step)
        if config.test_on == "best":
            best, step, rejected = loop.restore(checkpoints, progress, which="best")
            for line in rejected:
                console.say(f"checkpoint rejected, the next best is tested: {line}")
            tested = best or progress
        result = loop.evaluate(
            experiment.eval_step, tested.state, experiment.test(), console, own=experiment.metrics
        )
        summary = {
            "epochs": config.epochs,
            "test_on": config.test_on,
            "tested_step": step,
            "parameters": models.count_parameters(experiment.state.params),
            "last_epoch": progress.history[-1],
            "test": result,
        }

        def publish() -> None:
            draw(config, progress.history, result, experiment.facts["class_names"], path)
            files.write_json(path / "summary.json", summary)

        agree.on_first(publish)
        console.say(report(summary, path))


def compile_seconds() -> list[float]:
    """The seconds of each compilation from now on, or of reading it from the cache."""
    from jax import monitoring

    seconds = []

    def note(event: str, duration_secs: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration_secs)

    monitoring.register_event_duration_secs_listener(note)
    return seconds


def announced(step: Callable, say: Callable[[str], None], compiling: list[float]) -> Callable:
    """The step; when the first call of it has finished, a line says how long the start took."""
    import jax

    first = True

    def run(*args):
        nonlocal first
        result = step(*args)
        if first:
            first = False
            jax.block_until_ready(result)
            seconds = time.monotonic() - cli.STARTED
            say(
                f"first step finished after {seconds:.2f} s, {sum(compiling):.2f} s of it "
                "compilation"
            )
        return result

    return run


def draw(
    config: Config, history: list[dict], result: dict, class_names: list[str], path: Path
) -> None:
    from cnnlab import plots

    title = f"{config.dataset}, {config.model}, {config.loss}, seed {config.seed}"
    with files.written(path / "curves.png") as file:
        plots.curves(history, file, title)
    title += f"\ntest accuracy {result['accuracy']:.2%} of {result['count']:,} images"
    with files.written(path / "confusion.png") as file:
        plots.confusion(result["confusion"], class_names, file, title)


def list_parts(kinds: list[str]) -> None:
    from cnnlab import parts

    print(parts.listing(kinds))


def report(summary: dict, path: Path) -> str:
    from cnnlab import metrics

    where = f"test, {summary['test_on']} weights (step {summary['tested_step']})"
    return f"{where}: {metrics.describe(summary['test'])}\n{path}/summary.json"


if __name__ == "__main__":
    cli.main(main, Config, alone={"--list": list_parts}, several=True)
