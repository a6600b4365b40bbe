"""What a training needs of memory, and what is said of what does not fit."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import cnnlab
from cnnlab import backend, errors
from cnnlab.config import Config
from cnnlab.console import Console
from cnnlab.data.facts import DataFacts
from cnnlab.errors import InputError
from cnnlab.parts import resolve
from cnnlab.study import checks
from cnnlab.study.plan import Study
from cnnlab.training import experiment, memory, program

GIB = 2**30
FACTS = DataFacts(
    tuple("abcdefghij"), (8, 8, 3), (127.5,) * 3, (60.0,) * 3, (100,) * 10, num_images=1000
)


def built(num_seeds=None, **settings):
    config = Config.of(
        **{"parallel": "jit", "batch_size": 50, "model": "mlp,hidden=[1000]"} | settings
    )
    parts = resolve(config.recipe)
    layout = experiment.choose_layout(config, parts, num_seeds)
    return program.build(config, parts, layout, FACTS, teacher=lambda images: images)


def parameters(hidden):
    return 192 * hidden + hidden + 10 * hidden + 10


@pytest.fixture
def strict():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("strict")
def test_parameters_and_the_optimizer_s_state_are_counted():
    """Adam keeps two numbers for each parameter, plain SGD none, an average a third."""
    size = 4 * parameters(1000)
    for settings, copies in (
        ({"optimizer": "adam"}, 3),
        ({"optimizer": "sgd,momentum=0"}, 1),
        ({"optimizer": "sgd"}, 2),
        ({"optimizer": "adam", "average": "ema"}, 4),
    ):
        need = memory.need(built(**settings))
        assert need.parameters == parameters(1000) and need.gradients == size
        assert copies * size <= need.state < copies * size + 100  # and some counters


@pytest.mark.usefixtures("strict")
def test_activations_grow_with_the_images_that_a_device_takes_at_once():
    """What the gradients of dense layers need at least: their inputs, here 192 and 1000 numbers."""
    small, large, apart = (
        memory.need(built(batch_size=batch, microbatches=parts))
        for batch, parts in ((500, 1), (1000, 1), (1000, 2))
    )
    more = memory.KEPT * 4 * 500 * (192 + 1000)
    assert more <= large.activations - small.activations < 3 * more
    assert (apart.activations, apart.images) == (small.activations, 500)


@pytest.mark.usefixtures("strict")
def test_networks_of_one_program_have_their_states_together():
    need = memory.need(built(num_seeds=6))
    assert (need.networks, need.together) == (6, 1)  # in turn, on a CPU
    assert need.bytes == 6 * need.state + need.gradients + need.activations


@pytest.mark.parametrize("program_of", [{"augment": "views,count=3", "loss": "jensen_shannon"}])
@pytest.mark.usefixtures("strict")
def test_views_are_images_too(program_of):
    plain = memory.need(built())
    assert memory.need(built(**program_of)).activations > 3.5 * plain.activations


@pytest.fixture
def free(monkeypatch):
    return lambda size: monkeypatch.setattr(backend, "free_memory", lambda device: size)


@pytest.mark.parametrize(
    ("settings", "size", "words"),
    [
        # 4 numbers of 4 bytes for each of 203 million parameters: 3.02 GiB; 50 images' activations
        (
            {"model": "mlp,hidden=[1000000]"},
            GIB,
            ["needs about 3.5 GiB", "1.0 GiB are free", "203,000,010 parameters",
             "a network of up to 67,1"],
        ),
        ({"model": "mlp,hidden=[100000]", "num_seeds": 8}, GIB,
         ["of 8 networks", "3 networks at a time would fit"]),
        ({"model": "mlp,hidden=[10000]", "batch_size": 1000}, 60 * 2**20,
         ["activations of 1,000 images", "images at a time would fit (--batch-size, --micro"]),
        ({"model": "mlp,hidden=[1000]", "batch_size": 1000}, 2**40, None),
        ({"model": "mlp,hidden=[1000000]"}, None, None),
    ],
    ids=["parameters", "networks", "images", "fits", "unknown"],
)  # fmt: skip
@pytest.mark.usefixtures("strict")
def test_what_does_not_fit_is_refused_and_what_would_fit_is_said(settings, size, words, free):
    free(size)
    made = built(**settings)
    if words is None:
        return memory.check(made)
    with pytest.raises(InputError) as refused:
        memory.check(made)
    assert "\n" not in str(refused.value) and f"--model {settings['model']} needs" in str(
        refused.value
    )
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    "model",
    [
        *(
            "softmax_regression",
            "mlp",
            "cnn",
            "cnn8",
            "airnet,widths=[8,16]",
            "resnet20",
            "resnet18",
        ),
        *("cnn,batch_norm=true,dropout=0.5,activation=gelu", "resnet50,stem=imagenet"),
        "wide_resnet,depth=16,width=4,dropout=0.3",
    ],
)
@pytest.mark.usefixtures("strict")
def test_more_is_ample_than_any_network_keeps(model):
    made = built(model=model, batch_size=8)
    assert memory.need(made).activations < memory.need(made, memory.AMPLE).activations / 2


@pytest.mark.usefixtures("strict")
def test_a_network_is_not_traced_where_there_is_ample_memory(free, monkeypatch):
    made = built()
    counted = []
    monkeypatch.setattr(memory, "_kept", lambda *_: counted.append(True) or 0)
    ample = memory.need(made, memory.AMPLE).bytes
    for size, traced in ((ample, False), (ample - 1, True), (None, False)):
        free(size)
        memory.check(made)
        assert bool(counted) == traced
        counted.clear()


@pytest.mark.usefixtures("strict")
def test_what_is_said_to_fit_fits(free):
    free(60 * 2**20)
    with pytest.raises(InputError) as refused:
        memory.check(built(model="mlp,hidden=[10000]", batch_size=1000))
    images = int(str(refused.value).split("; ")[-1].split()[0])
    memory.check(built(model="mlp,hidden=[10000]", batch_size=images))
    with pytest.raises(InputError):
        memory.check(built(model="mlp,hidden=[10000]", batch_size=round(1.5 * images)))


class Net(nn.Module):
    num_classes: int
    units: int

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(self.num_classes)(nn.Dense(self.units)(x.reshape(len(x), -1)))


@pytest.mark.slow
@pytest.mark.usefixtures("strict")
def test_a_program_and_a_study_are_refused_before_they_begin(tmp_path):
    """Far beyond any machine: 3.6 terabytes of parameters."""
    data = {"train": (jnp.zeros((40, 9, 9, 1), "uint8"), jnp.arange(40) % 2)}
    data |= {"test": data["train"], "class_names": ["a", "b"]}
    with pytest.raises(InputError, match="needs about"):
        cnnlab.train(data, Net(2, units=10**10), batch_size=10, epochs=1)
    study = Study.of(
        losses=("cross_entropy", "focal"), model="mlp,hidden=[1000000,1000000]", seeds=2, block=2,
        workdir=str(tmp_path / "study"),
    )  # fmt: skip
    with pytest.raises(InputError, match="needs about"):
        checks.check(study, Console("silent"))
    assert not (tmp_path / "study").exists()


@pytest.mark.usefixtures("strict")
def test_what_cannot_fit_is_refused_before_its_data_are_read(free, monkeypatch, tmp_path):
    """10,000 images of 5 billion bytes together."""
    monkeypatch.setattr(experiment, "read_dataset", lambda *_: pytest.fail("read"))
    free(GIB)
    large = {"dataset": "shapes10", "image_size": 420, "model": "mlp,hidden=[1000]"}
    with pytest.raises(InputError, match="needs about"):
        experiment.build(Config.of(**large))
    study = Study.of(**large, losses=("ce", "focal"), seeds=2, workdir=str(tmp_path / "study"))
    with pytest.raises(InputError, match="needs about"):
        checks.check(study, Console("silent"))


@pytest.mark.parametrize(
    ("files", "limit", "free"),
    [
        ({"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  4 kB\n"}, -1, 4096),
        ({"/proc/meminfo": "MemAvailable: 4 kB", "/sys/fs/cgroup/memory.max": "max\n"}, -1, 4096),
        ({"/proc/meminfo": "MemAvailable: 4 kB", "/sys/fs/cgroup/memory.max": "99\n"}, -1, 99),
        (
            {"/proc/meminfo": "MemAvailable: 400 kB", "/proc/self/statm": "2 1 1"},
            9 * 4096,
            7 * 4096,
        ),
        ({}, -1, None),
    ],
    ids=["machine", "container without", "container", "ulimit", "another system"],
)
def test_free_memory_of_a_cpu(files, limit, free, monkeypatch):
    monkeypatch.setattr(backend, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr(backend.resource, "getrlimit", lambda which: (limit, -1))
    monkeypatch.setattr(backend.resource, "getpagesize", lambda: 4096)
    assert backend.free_memory(types.SimpleNamespace(platform="cpu")) == free


def test_free_memory_of_an_accelerator():
    def device(stats):
        return types.SimpleNamespace(platform="gpu", memory_stats=lambda: stats)

    assert backend.free_memory(device({"bytes_limit": 10, "bytes_in_use": 3})) == 7
    assert backend.free_memory(device(None)) is None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 3 GiB"),
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
        jax.errors.JaxRuntimeError("INTERNAL: std::bad_alloc"),
    ],
    ids=str,
)
def test_running_out_of_memory_is_a_line(error):
    assert errors.explained(error).startswith("out of memory (")


def test_other_errors_are_none():
    assert errors.explained(RuntimeError("INTERNAL: a defect")) is None


@pytest.mark.usefixtures("strict")
def test_an_estimate_alone_refuses_nothing(free, monkeypatch):
    """XLA may keep far less than JAX saves; its own count decides."""
    monkeypatch.setattr(memory, "KEPT", 100.0)
    made = built(model="mlp,hidden=[1000]", batch_size=1000)
    wanted = memory.need(made)
    free(int((wanted.least + wanted.bytes) / 2))
    memory.check(made)
