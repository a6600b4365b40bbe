"""Train one network with one loss, validate each epoch, test once at the end.

    python experiments/train.py                                        shapes10, drawn on the spot: about 94 %
    python experiments/train.py --dataset cifar10 --data-dir DIR       CIFAR-10 (downloaded by TFDS without --data-dir)
    python experiments/train.py --loss my_module.my_loss,alpha=0.3     an own loss

The same command goes on where a run stopped; on a finished run it prints the summary.
"""

from cnnlab import cli, run_folder
from cnnlab.config import Config


def main(config: Config) -> None:
    path = run_folder.default_path(config)
    if summary := run_folder.check(path, config):
        print(report(summary, path))
        return

    import jax

    from cnnlab import checkpoint, loop, models, plots, recipe
    from cnnlab.console import Console

    console = Console(config.progress)
    experiment = recipe.build(config, console)
    devices = f"{experiment.layout.device_count} x {jax.devices()[0].device_kind} ({experiment.layout.mode})"
    parameters = models.count_parameters(experiment.state.params)
    counts = experiment.facts["counts"]
    console.say(
        f"{devices}; {config.dataset} {counts['train']:,} + {counts['validation']:,} images, {experiment.feed}; "
        f"{config.model} {parameters:,} parameters; {config.loss}; {path}"
    )
    if config.parallel == "auto" and config.devices is None and experiment.layout.device_count < jax.device_count():
        console.say(f"{experiment.layout.device_count} of {jax.device_count()} devices: the most that divide the batch")
    environment = run_folder.versions() | {"devices": devices, "feed": experiment.feed}
    with (
        run_folder.RunFolder(path, config, environment, experiment.facts) as folder,
        checkpoint.Checkpoints(path / "checkpoints", keep=config.keep) as checkpoints,
    ):
        start = loop.Progress(experiment.state, experiment.totals, [])
        found, step, rejected = loop.restore(checkpoints, start)
        for line in rejected:
            console.say(f"checkpoint rejected: {line}")
        if found is not None:
            console.say(f"resuming after step {step} of {experiment.steps_per_epoch * config.epochs}")
            for line in folder.warnings:
                console.say(f"since then {line}: the last bits may differ from a run never stopped")
        progress = found or start
        folder.start_metrics(progress.history, config.tensorboard)
        validate = None
        if (validation := experiment.validation) is not None:
            validate = lambda state: loop.evaluate(experiment.eval_step, state, validation())
        plan = loop.Plan(experiment.steps_per_epoch, config.epochs, config.checkpoint_steps, run_folder.command())
        progress = loop.fit(
            progress,
            plan,
            step=experiment.step,
            items=experiment.items,
            validate=validate,
            checkpoints=checkpoints,
            folder=folder,
            console=console,
        )
        tested, step = progress, int(progress.state.step)
        if config.test_on == "best":
            best, step, _ = loop.restore(checkpoints, progress, which="best")
            tested = best or progress
        result = loop.evaluate(experiment.eval_step, tested.state, experiment.test(), console)
        title = f"{config.dataset}, {config.model}, {config.loss}, seed {config.seed}"
        plots.curves(progress.history, path / "curves.png", title)
        accuracy = f"test accuracy {result['accuracy']:.2%}"
        plots.confusion(result["confusion"], experiment.facts["class_names"], path / "confusion.png", f"{title}: {accuracy}")
        summary = {
            "epochs": config.epochs,
            "test_on": config.test_on,
            "tested_step": step,
            "parameters": parameters,
            "last_epoch": progress.history[-1],
            "test": result,
        }
        run_folder.write_json(path / "summary.json", summary)
        console.say(report(summary, path))


def report(summary: dict, path: object) -> str:
    test = summary["test"]
    return (
        f"test on {test['count']:,} images ({summary['test_on']} weights, step {summary['tested_step']}): "
        f"accuracy {test['accuracy']:.4f}  NLL {test['nll']:.4f}  Brier {test['brier']:.4f}  ECE {test['ece']:.4f}\n"
        f"{path}/summary.json"
    )


if __name__ == "__main__":
    cli.main(main, Config)
