"""What a study asks for: its grid, its conditions, and one line for whatever cannot be asked."""

import json

import pytest

from cnnlab import cli
from cnnlab.config import Config
from cnnlab.errors import InputError
from cnnlab.study import plan
from cnnlab.study.plan import Study

PAIR = ("cross_entropy", "focal,gamma=2")


def study(**changes):
    return Study.of(**{"losses": PAIR} | changes)


def test_the_grid_is_every_arm_under_every_condition():
    asked = study(
        label_noise=(0.0, 0.4), vary=("optimizer=adam", "optimizer=sgd", "lr=1e-3", "lr=0.05")
    )
    conditions = plan.conditions(asked)
    assert len(conditions) == 8 and conditions[0] == {
        "label_noise": 0.0, "optimizer": "adam", "learning_rate": 1e-3,
    }  # fmt: skip
    cells = plan.grid(asked)
    assert len(cells) == 16 == len({(arm, plan.label(condition)) for arm, condition in cells})
    config = plan.config(asked, *cells[-1], seed=3)
    recipe = config.recipe
    assert (recipe.loss, recipe.label_noise, recipe.optimizer) == ("focal,gamma=2", 0.4, "sgd")
    assert (recipe.learning_rate, recipe.seed) == (0.05, 3)
    assert plan.conditions(study()) == [{}] and plan.label({}) == "as configured"


def test_a_condition_of_one_value_is_one():
    assert plan.conditions(study(label_noise=(0.2,), long_tail=(10.0,))) == [
        {"label_noise": 0.2, "long_tail": 10.0}
    ]


def test_values_take_the_type_of_their_flag():
    asked = study(
        vary=(
            *("batch_size=32", "batch-size=64", "learning_rate=1", "lr=5e-4"),
            *("clip_norm=none", "clip_norm=1.5", "model=mlp,hidden=[8]", "model=mlp"),
        )
    )
    first = plan.conditions(asked)[0]
    assert first == {
        "batch_size": 32,
        "learning_rate": 1.0,
        "clip_norm": None,
        "model": "mlp,hidden=[8]",
    }
    assert type(first["learning_rate"]) is float
    assert all(
        isinstance(plan.config(asked, PAIR[0], condition), Config)
        for condition in plan.conditions(asked)
    )
    json.dumps(asked.to_json())


def test_an_arm_has_settings_of_any_kind():
    averaged = "loss=focal,gamma=2 average=ema,decay=0.99 epochs=5"
    asked = study(
        losses=("focal,gamma=2",), arms=(f"  {averaged} ",),
        vary=("schedule=constant", "schedule=cosine"),
    )  # fmt: skip
    assert plan.arm_names(asked) == ("focal,gamma=2", averaged)
    recipe = plan.config(asked, averaged, plan.conditions(asked)[0], seed=3).recipe
    assert (recipe.loss, recipe.average, recipe.epochs) == ("focal,gamma=2", "ema,decay=0.99", 5)
    assert (recipe.schedule, recipe.seed) == ("constant", 3)
    plain = plan.config(asked, "focal,gamma=2", plan.conditions(asked)[0], seed=3).recipe
    assert recipe == plain.replace(average="ema,decay=0.99", epochs=5)
    varied = study(vary=("average=none", "average=ema,decay=0.99", "average=swa"))
    assert [condition["average"] for condition in plan.conditions(varied)] == [
        "none",
        "ema,decay=0.99",
        "swa",
    ]


def test_the_flags_of_the_issue():
    flags = (
        "--losses cross_entropy mean_squared_error focal,gamma=2 my_module.my_loss --dataset "
        "cifar10 --seeds 8"
    )
    asked = cli.parse(
        Study, [*flags.split(), "--label-noise", "0", "0.4", "--workdir", "runs/losses"]
    )
    assert (
        len(asked.losses) == 4
        and asked.label_noise == (0.0, 0.4)
        and plan.baseline(asked) == "cross_entropy"
    )
    assert plan.margin(asked) == 0.01


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"losses": ()}, "--losses and --arms must name at least two, to compare; got none"),
        ({"losses": ("focal",)}, "must name at least two, to compare; got focal"),
        ({"losses": ("focal", "focal")}, "takes each value once"),
        ({"seeds": 0}, r"--seeds must lie in \[1, 10000\]"),
        ({"first_seed": -1}, "--first-seed"),
        ({"seeds": 6}, "must be a multiple of 4, the seeds of a block; got 6: take 8, or --block"),
        ({"first_seed": 2}, "--first-seed must be a multiple of 4"),
        ({"seeds": 8, "block": 3}, "--seeds must be a multiple of 3"),
        ({"max_seeds": 24}, "--max-seeds 24 has no effect without --until decided"),
        ({"until": "decided", "max_seeds": 4}, "--max-seeds must be at least --seeds, 8; got 4"),
        ({"until": "decided", "max_seeds": 30}, "--max-seeds must be a multiple of 4"),
        ({"until": "dawn"}, "unknown until 'dawn'"),
        ({"until": "decided", "max_seeds": 10**9}, r"--max-seeds must lie in \[1, 1000\]"),
        ({"alpha": 0.7}, "--alpha"),
        ({"arms": ("split_seed=3",)}, "tested and validated on the same images"),
        ({"shard": "0/" + "9" * 5000}, "--shard must be i/n"),
        ({"vary": ("epochs=" + "-" * 100_000 + "1",)}, "is no int"),
        ({"comparisons": 10**12}, "--comparisons must lie in"),
        ({"losses": ("ce", "mse", "focal"), "comparisons": 1}, "at least 2, which this study has"),
        ({"tune": ("lr=1e-4..1e-1",), "budget": 999_999_999_999}, "--budget must lie in"),
        (
            {
                "vary": tuple(
                    f"{name}={value}"
                    for name in ("batch_size", "epochs")
                    for value in range(1, 400)
                )
            },
            "159,201 conditions with 8 seeds are .* more than the 100,000 that a study may have",
        ),
        ({"label_noise": (0.0, 1.0)}, r"--label-noise must lie in \[0, 1\), got 1.0"),
        ({"label_noise": (-0.1,)}, "--label-noise"),
        ({"label_noise": (float("nan"),)}, "--label-noise"),
        ({"label_noise": ()}, "at least one"),
        ({"label_noise": (0.4, 0.4)}, "each value once"),
        ({"long_tail": (0.5,)}, "--long-tail"),
        ({"fraction": (0.0,)}, "--fraction"),
        ({"margin": 0.0}, "--margin"),
        ({"tune": ("lr=1..0.1",)}, "NAME=LOW..HIGH"),
        ({"tune": ("lr=1e-4..1e-1",), "budget": 1}, "--budget"),
        ({"tune": ("lr=1e-4..1e-1",), "validation": 0.0}, "--validation must be above 0"),
        ({"shard": "4/4"}, "--shard"),
        ({"shard": "x"}, "--shard"),
        ({"vary": ("optimiser=adam",)}, "did you mean 'optimizer'"),
        ({"vary": ("optimizer",)}, "setting=value"),
        ({"vary": ("epochs=1", "epochs=2.5")}, "'2.5' is no int"),
        ({"vary": ("image_size=16.5",)}, "'16.5' is no int or NoneType"),
        ({"vary": ("batch_size={[]:1}",)}, "is no int"),
        ({"vary": ("devices=1",)}, "unknown setting 'devices'"),
        ({"vary": ("lr=1e-3", "lr=1e-2"), "tune": ("lr=1e-4..1e-1",)}, "cannot be varied too"),
        (
            {"vary": ("validation=0.1", "validation=0"), "tune": ("lr=1e-4..1e-1",)},
            "--validation must be above 0",
        ),
        ({"workdir": ""}, "--workdir"),
        ({"seeds": 10**9}, r"--seeds must lie in \[1, 10000\]"),
        ({"vary": ("epochs=1", "epochs=2", "epochs=1")}, "has that value already"),
        (
            {"vary": ("widths=8",)},
            r"a hyperparameter of its part now, as in --model cnn,widths=\[32,64\]",
        ),
        ({"vary": ("metrics=a",)}, "unknown setting 'metrics'"),
        ({"arms": ("averge=ema",)}, "did you mean 'average'"),
        ({"arms": ("lr=1 average",)}, "wanted setting=value, got 'average'"),
        ({"arms": ("lr=1 learning-rate=2",)}, "learning_rate is set twice"),
        ({"arms": ("epochs=2.5",)}, "arm 'epochs=2.5': '2.5' is no int"),
        ({"arms": ("dropout=0.5",)}, "a hyperparameter of its part now"),
        (
            {"arms": ("epochs=3",), "vary": ("epochs=1", "epochs=2")},
            "epochs is a condition already",
        ),
        ({"arms": ("lr=1",), "tune": ("lr=1e-4..1e-1",)}, "cannot be varied too"),
        ({"vary": ("optimizer=,sgd",)}, "a part starts with a name"),
    ],
)
def test_what_cannot_be_asked(changes, said):
    with pytest.raises(InputError, match=said) as error:
        study(**changes)
    assert len(str(error.value).splitlines()) == 1


def test_blocks_are_fixed_ranges_of_seeds():
    assert plan.blocks(study(seeds=8)) == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert plan.blocks(study(seeds=12))[:2] == plan.blocks(study(seeds=8))
    assert plan.blocks(study(seeds=8, first_seed=4)) == plan.blocks(study(seeds=12))[1:]
    assert plan.blocks(study(seeds=3)) == [(0, 1, 2)]  # fewer than a block
    assert plan.blocks(study(seeds=4, block=2)) == [(0, 1), (2, 3)]
    asked = study(until="decided")
    assert len(plan.blocks(asked)) == 8 and asked.seeds == 8
    assert plan.most_seeds(study(until="decided", seeds=40)) == 40
    assert plan.most_seeds(study(until="decided", max_seeds=16)) == 16
    wide = plan.blocks(study(until="decided", block=5, seeds=10))
    assert len(wide) == 7 and {len(block) for block in wide} == {5}


def test_no_study_trains_with_the_seed_of_its_tuning():
    last = 2**32 - 64 - 12  # a multiple of 4
    with pytest.raises(InputError, match="first-seed"):
        study(first_seed=last + 4)
    asked = study(first_seed=last, tune=("lr=1e-4..1e-1",), tune_seeds=64)
    assert plan.blocks(asked)[-1][-1] < min(plan.tuning_seeds(asked))
    with pytest.raises(InputError, match="first-seed"):
        study(first_seed=last, until="decided")


def test_a_study_has_every_flag_of_train_but_what_it_varies():
    asked = dict(study().items())
    assert {*dict(Config().items())} - {*asked} == {
        "seed",
        "checkpoint_steps",
        "keep",
        "test_on",
        "tensorboard",
    }
