"""What a slice that is not here needs: reading the compiler's words, the model of communication,
real compilations.
"""

import functools
import importlib.util
import json
import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from scripts import ROOT

from cnnlab import cli, models
from cnnlab.config import Config
from cnnlab.data.facts import DataFacts
from cnnlab.errors import InputError
from cnnlab.parts import resolve
from cnnlab.tpu import slices
from cnnlab.training import devices, experiment, program

sys.path.insert(0, str(ROOT / "experiments"))
import tpu_plan

FACTS = DataFacts(
    class_names=tuple(map(str, range(10))),
    image_shape=(12, 12, 3),
    mean=(128.0,) * 3,
    std=(64.0,) * 3,
    class_counts=(100,) * 10,
    num_images=1000,
)
CONFIG = Config.of(model="cnn,widths=[4],hidden=[8]", batch_size=64, dispatch_steps=2)
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="pip install -e '.[tpu]'"
)


def build(config, devices, seeds=None, facts=FACTS):
    parts = resolve(config.recipe)
    layout = experiment.choose_layout(config, parts, seeds, devices)
    with jax.numpy_dtype_promotion("standard"):
        return program.build(config, parts, layout, facts)


def state_bytes(made):
    """What the devices have to agree on in a step: gradients, running statistics, the loss, the
    number of hits.
    """
    state = made.arguments()[0]
    leaves = jax.tree.leaves((state.params, state.batch_stats))
    return 4 * (sum(math.prod(leaf.shape) for leaf in leaves) // (made.layout.num_seeds or 1) + 2)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("batch_norm", ["false", "true"])
def test_a_step_communicates_once_and_as_much_as_its_weights(devices, batch_norm):
    """Compiled for virtual devices: no other collective may appear, at any number of them."""
    model = f"{CONFIG.recipe.model},batch_norm={batch_norm}"
    made = build(CONFIG.replace(model=model, devices=devices), jax.devices())
    with jax.numpy_dtype_promotion("standard"):
        found = slices.cost(made).collectives
    assert {each.kind for each in found} <= {"all-reduce"}
    assert {each.devices for each in found} <= {devices}
    if devices == 1:
        assert found == ()
        return
    # batch norm's mean and mean square of each layer's channels (4 and 8), forward, and their
    # gradients
    norms = [] if batch_norm == "false" else [2 * 4 * 4, 2 * 4 * 8] * 2
    assert sum(each.bytes for each in found) == state_bytes(made) + sum(norms)
    assert len(found) == 1 + len(norms)


@pytest.mark.slow
def test_seeds_on_devices_of_their_own_do_not_communicate():
    apart = build(CONFIG, jax.devices(), seeds=8)
    shared = build(CONFIG.replace(mesh="4x2"), jax.devices(), seeds=8)
    with jax.numpy_dtype_promotion("standard"):
        assert slices.cost(apart).collectives == ()
        found = slices.cost(shared).collectives
    assert {(each.kind, each.devices) for each in found} == {("all-reduce", 2)}


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_the_step_lowers_for_every_platform(platform, monkeypatch):
    """As a program for the platform, with the convolutions that are used there (a CPU may compute
    all of them as products); nothing is compiled.
    """
    monkeypatch.setattr(devices.Layout, "platform", platform)
    made = build(CONFIG, jax.devices())
    with jax.numpy_dtype_promotion("standard"):
        text = (
            made.dispatch.trace(*made.arguments()).lower(lowering_platforms=(platform,)).as_text()
        )
    assert ("stablehlo.convolution" in text or platform == "cpu") and "all_reduce" in text
    assert "callback" not in text  # nothing goes back to the host


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("seeds", [None, 16])
@pytest.mark.parametrize(
    ("model", "convolutions"),
    [
        ("resnet20,blocks=[1,1,1],widths=[4,8,8],stem_width=4", 7),
        ("resnet18,blocks=[1,1],widths=[4,8],preactivation=true,stem=imagenet", 7),
        ("wide_resnet,depth=10,width=1,dropout=0.3", 9),
        ("cnn8,widths=[4,8],hidden=6", 4),
    ],
)
def test_networks_of_the_papers_lower_with_native_convolutions(
    model, convolutions, seeds, platform, monkeypatch
):
    """A convolution forward and two back for each that the network has, projections too, the first
    without its gradient in the images; as many for two seeds on each of eight devices.
    """
    monkeypatch.setattr(devices.Layout, "platform", platform)
    made = build(CONFIG.replace(model=model), jax.devices(), seeds)
    with jax.numpy_dtype_promotion("standard"):
        text = (
            made.dispatch.trace(*made.arguments()).lower(lowering_platforms=(platform,)).as_text()
        )
    assert text.count("stablehlo.convolution") == 3 * convolutions - 1
    assert "callback" not in text


HLO = """
  %a = f32[128]{0} all-reduce(%x), replica_groups={{0,1},{2,3}}
  %b = (bf16[8,4]{1,0}, pred[3]{0}) all-reduce-start(%x, %y), replica_groups=[4,2]<=[8]
  %c = (bf16[8,4]{1,0}, pred[3]{0}) all-reduce-done(%b)
  %d = f32[2,4]{1,0} all-gather(%z), replica_groups={}, dimensions={0}
  %m = f32[4]{0} all-reduce(%z), replica_groups=mesh['seed'=4,'data'=2] {'data'}
  %n = f32[4]{0} all-reduce(%z), replica_groups=mesh['seed'=8,'data'=1] {'data'}
  %o = f32[4]{0} all-gather(%z), replica_groups=mesh['a'=2,'b'=3,'c'=8] {'b','c':(2)4}
  %e = f32[] add(%p, %q), metadata={op_name="not an all-reduce(nor a call)"}
"""


def test_collectives_are_read_from_the_compilers_text():
    found = slices.collectives(HLO, 8)
    assert [(each.kind, each.bytes, each.devices) for each in found] == [
        ("all-reduce", 512, 2),
        ("all-reduce", 67, 2),
        ("all-gather", 32, 8),
        ("all-reduce", 16, 2),
        ("all-gather", 16, 12),
    ]


def test_the_time_of_an_all_reduce():
    chip = slices.Chip(1, 1, 1, 100e9, 1, ())

    def of(n, size=1e9):
        return slices.all_reduce_seconds(slices.Collective("all-reduce", size, n), chip)

    assert of(1) == 0
    # 15 ms, and 2 sqrt(4) hops of a microsecond
    np.testing.assert_allclose(of(4), 2 * 0.75 * 1e9 / 100e9 + 4e-6)
    np.testing.assert_allclose(of(256, 0), 32e-6)


def test_a_plan_carried_to_its_own_size_is_itself():
    chip = slices.CHIPS["v5e"]
    cost = slices.Cost(1, 1, 0, 4e9, 2e8, None, (slices.Collective("all-reduce", 2e6, 8),))
    seconds, by = slices.step_seconds(cost, chip)
    np.testing.assert_allclose(
        seconds, 2e8 / 819e9 + 2 * 7 / 8 * 2e6 / 200e9 + 2 * math.sqrt(8) * 1e-6
    )
    assert by == "memory"
    plan = {
        "topology": "v5e:2x4",
        "devices_used": 8,
        "seeds": 1,
        "mesh": [1, 8],
        "batch_size": 1024,
    }
    plan |= {
        "flops": 4e9,
        "traffic": 2e8,
        "collectives": [{"kind": "all-reduce", "bytes": 2e6, "devices": 8}],
    }
    for grow in (True, False):
        np.testing.assert_allclose(slices.predicted(plan, 8, grow)[0], 1024 / seconds)
        rate, waits = slices.predicted(plan, 1, grow)
        assert waits == 0
    np.testing.assert_allclose(rate, 1024 / (8 * 2e8 / 819e9))
    # eight seeds on eight chips need no word; on sixteen, pairs of chips share a seed's batch
    seeds = plan | {"seeds": 8, "mesh": [8, 1], "batch_size": 128}
    assert slices.predicted(seeds, 8, True)[1] == 0 < slices.predicted(seeds, 16, True)[1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v7:2x2", "unknown generation"),
        ("v5e", "v5e in one of 1x1, 2x2"),
        ("v5e:2x6", "GENERATION:SHAPE"),
        ("v5p:16x16x2", "GENERATION:SHAPE"),
    ],
)
def test_slices_that_cannot_be(name, words):
    with pytest.raises(InputError, match=words):
        slices.describe(name)


def plan(*flags, path=None, timeout=540):
    command = [
        sys.executable,
        "experiments/tpu_plan.py",
        *flags,
        *(["--json", str(path)] if path else []),
    ]
    lenient = os.environ | {
        "JAX_NUMPY_RANK_PROMOTION": "allow",
        "JAX_NUMPY_DTYPE_PROMOTION": "standard",
    }
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=lenient
    )


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
    ("flags", "collectives", "mesh"),
    [
        (["--topology", "v5e:2x4", "--batch-size", "1024"], [("all-reduce", 8)], [1, 8]),
        (
            [
                "--topology",
                "v5p:2x2x1",
                "--batch-size",
                "256",
                "--seeds",
                "4",
                "--model",
                "cnn,widths=[16]",
            ],
            [],
            [4, 1],
        ),
    ],
    ids=["v5e", "v5p"],
)
def test_a_plan_by_the_compiler_of_the_tpu(flags, collectives, mesh, tmp_path):
    run = plan(*flags, "--compute-dtype", "bfloat16", path=tmp_path / "plan.json")
    assert run.returncode == 0, run.stderr
    told = json.loads((tmp_path / "plan.json").read_text())
    assert [(each["kind"], each["devices"]) for each in told["collectives"]] == collectives
    assert told["mesh"] == mesh
    if collectives:
        weights = models.count_parameters(
            jax.eval_shape(functools.partial(initial, ()), jax.random.key(0))
        )
        assert told["collectives"][0]["bytes"] == 4 * (weights + 2)  # gradients, loss, hits
        # 128 images: forward and two products back, two operations each, of two convolutions and
        # two dense layers, the first convolution without its gradient in the images
        first = 32 * 32 * 32 * 27
        second = 16 * 16 * 64 * 288
        dense = 4096 * 128 + 128 * 10
        np.testing.assert_allclose(
            told["flops"], 128 * 2 * (2 * first + 3 * second + 3 * dense), rtol=0.1
        )
    images = 50_000 * 3072
    assert images < told["arguments"] < images + 3e7
    assert 0 < told["temporaries"] < 2e8  # no copy of the images
    lines = run.stdout.splitlines()
    assert lines[0].startswith(f"{flags[1]}: ") and len(lines) == 9
    for word in ("mesh", "memory", "arithmetic", "traffic", "collectives", "step time", "run"):
        assert any(line.startswith(word) for line in lines), word


# Input side, output side and channels in and out of each 3x3 convolution, and how many there are
RESNET18 = [
    (32, 32, 3, 64, 1),
    (32, 32, 64, 64, 4),
    *((2 * side, side, wide // 2, wide, 1) for side, wide in ((16, 128), (8, 256), (4, 512))),
    *((side, side, wide, wide, 3) for side, wide in ((16, 128), (8, 256), (4, 512))),
]


def products(before, after, channels, filters, count):
    """Multiplications of 3x3 convolutions with an image, none of them with the zeros around it."""
    missed = 2 if before == after else 1
    return count * (3 * after - missed) ** 2 * channels * filters


@pytest.mark.slow
@needs_libtpu
def test_a_plan_of_a_residual_network(tmp_path):
    """The README's: arithmetic by hand, and what batch norm adds to the collectives."""
    flags = ["--model", "resnet18", "--optimizer", "sgd", "--compute-dtype", "bfloat16"]
    flags += ["--topology", "v5e:2x4", "--batch-size", "1024"]
    run = plan(*flags, path=tmp_path / "plan.json", timeout=1800)
    assert run.returncode == 0, run.stderr
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["mesh"] == [1, 8]
    assert {(each["kind"], each["devices"]) for each in told["collectives"]} == {("all-reduce", 8)}
    variables = jax.eval_shape(
        models.ResNet().init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    )
    # gradients, running statistics, loss, hits; of batch norm two moments of each channel forward
    # and two sums back, one of which is the same at both ends of a projection
    channels = models.count_parameters(variables["batch_stats"]) // 2
    weights = models.count_parameters(variables["params"])
    shared = 128 + 256 + 512
    agreed = sum(each["bytes"] for each in told["collectives"])
    assert agreed == 4 * (weights + 2 * channels + 2 + 4 * channels - shared)
    # 128 images: forward and two products back, the first convolution without its gradient in
    # the images; projections and the head are 3 % of it
    first, *rest = (products(*row) for row in RESNET18)
    np.testing.assert_allclose(told["flops"], 128 * 2 * (2 * first + 3 * sum(rest)), rtol=0.05)
    assert told["arguments"] + told["temporaries"] < 0.04 * told["capacity"]


def initial(_, key):
    return models.CNN(10).init(key, np.zeros((1, 32, 32, 3), np.float32))["params"]


@pytest.mark.parametrize("images", [1_281_167, 300_000_000])
def test_a_plan_is_of_any_number_of_images(images):
    """ImageNet's and JFT's."""
    assert cli.parse(tpu_plan.Plan, ["--images", str(images)]).images == images


@pytest.mark.slow
@needs_libtpu
def test_what_does_not_fit_says_what_would(tmp_path):
    """A resident data set of 19 GB for chips of 16 GiB, whatever the batch."""
    flags = [
        "--dataset",
        "big",
        "--image-shape",
        "64",
        "64",
        "3",
        "--classes",
        "10",
        "--feed",
        "resident",
    ]
    run = plan(
        "--topology",
        "v5e:2x2",
        "--model",
        "softmax_regression",
        *flags,
        "--images",
        "1600000",
        "--batch-size",
        "8",
    )
    assert run.returncode == 2 and run.stderr.count("\n") == 2, run.stderr
    assert "does not fit" in run.stderr and "--feed streaming" in run.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dataset", "imagenet"], "--image-shape H W C"),
        (["--batch-size", "60000"], "larger than the 45000"),
        (["--batch-size", "100"], "does not divide"),
        (["--seeds", "0"], "--seeds must lie in [1, 1000]"),
        (["--loss", "distillation"], "teacher"),
        (["--parallel", "pmap"], "pmap is not planned"),
        (["--classes", "0"], "--classes must lie in [2, 1000000]"),
        (["--augment", "crop,padding=40"], "smaller than the image"),
        (
            [
                "--dataset",
                "foo",
                "--image-shape",
                "2",
                "2",
                "3",
                "--classes",
                "4",
                "--images",
                "5000",
            ],
            "does not fit images",
        ),
    ],
)
@pytest.mark.slow
@needs_libtpu
def test_plans_that_cannot_be(flags, words):
    run = plan("--topology", "v5e:2x4", "--devices", "8", *flags)
    assert run.returncode == 2 and run.stderr.count("\n") == 1, run.stderr
    assert words in run.stderr


def scale(*args):
    return subprocess.run(
        [sys.executable, "experiments/scaling.py", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_scaling_draws_from_plans(tmp_path):
    told = {
        "topology": "v5e:2x4",
        "chips": 8,
        "devices_used": 8,
        "seeds": 1,
        "mesh": [1, 8],
        "batch_size": 1024,
    }
    told |= {
        "flops": 4e9,
        "traffic": 2e8,
        "collectives": [{"kind": "all-reduce", "bytes": 2e6, "devices": 8}],
    }
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(told | {"images_per_second": 4e6}))
    run = scale(path, "--out", tmp_path / "scaling.png")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    rows = [line.split() for line in run.stdout.splitlines()]
    assert [row[0] for row in rows[2:11]] == [str(2**i) for i in range(9)]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(told | {"topology": "v4:2x2x1", "images_per_second": 1}))
    (tmp_path / "none.json").write_text("[]")
    (tmp_path / "part.json").write_text(
        '{"topology": "v5e:2x4", "collectives": [1], "images_per_second": 5}'
    )
    for args in (
        [path, other],
        *([tmp_path / f"{name}.json"] for name in ("none", "part", "missing")),
    ):
        run = scale(*args, "--out", tmp_path / "no.png")
        assert run.returncode == 2 and run.stderr.count("\n") == 1, run.stderr
