"""python -m pytest tests/tpu/test_compile.py

The slow ones compile with libtpu, where it is installed: pip install 'ev2[tpu]'
"""

import dataclasses
import importlib.util
import math
import types

import jax
import pytest
from ml_collections import ConfigDict

from configs import imagenet1k
from ev2 import errors, sharding
from ev2.tpu import compile as tpu
from ev2.tpu import slices
from ev2.train import compile as programs
from ev2.train import optimizer as optim
from tests.helpers import tiny_run as tiny

V3 = slices.find("v3-8")
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed; it is the extra tpu",
)


def make_compiled(*, seconds=0.5, temp=1000, hlo=""):
    """What jax returns for a compiled step, as far as it is read."""
    memory = types.SimpleNamespace(
        argument_size_in_bytes=100,
        output_size_in_bytes=80,
        alias_size_in_bytes=70,
        temp_size_in_bytes=temp,
    )
    cost = {"flops": 123e12, "bytes accessed": 90e9, "optimal_seconds": seconds}
    return types.SimpleNamespace(
        memory_analysis=lambda: memory,
        cost_analysis=lambda: cost,
        as_text=lambda: hlo,
    )


def test_figures_of_a_step():
    figures = tpu.read_figures(make_compiled(), V3, images=64, compile_seconds=7.04)
    assert figures == {
        "fits": True,
        "hbm_bytes": 100 + 80 + 1000 - 70,
        "temp_bytes": 1000,
        "hbm_available_bytes": int(15.48 * 2**30),
        "flops": 123e12,
        "bytes_accessed": 90e9,
        "step_seconds": 0.5,
        "step_seconds_from": "compiler",
        "images_per_second_per_device": 128.0,
        "reduced_bytes": 0,
        "compile_seconds": 7.0,
    }


def test_more_than_there_is_does_not_fit():
    compiled = make_compiled(temp=16 * 2**30)
    assert not tpu.read_figures(compiled, V3, images=1, compile_seconds=0)["fits"]


@pytest.mark.parametrize("said", [-0.2, 0.0, math.nan, math.inf])
def test_a_time_that_cannot_be_is_replaced_and_named(said):
    # A v3 core does 61.5 TFLOP/s and moves 450 GB/s: 2 s of the one, 0.2 of the other.
    compiled = make_compiled(seconds=said)
    figures = tpu.read_figures(compiled, V3, images=64, compile_seconds=0)
    assert figures["step_seconds"] == pytest.approx(2.0)
    assert figures["step_seconds_from"] == "lower bound"
    assert figures["images_per_second_per_device"] == pytest.approx(32.0)


def test_bytes_between_devices_are_those_of_the_results():
    hlo = """
  %all-reduce.1 = (f32[24]{0:T(256)}, bf16[3,3,24]{2,1,0:T(8,128)(2,1)}) all-reduce(%a)
  %get-tuple-element.2 = f32[24]{0:T(256)} get-tuple-element(%all-reduce.1), index=0
  %all-reduce.3 = s32[]{:T(128)} all-reduce(%b), to_apply=%region
  %fusion.4 = f32[1000]{0} fusion(%all-reduce.3), kind=kLoop
  %ag = pred[16]{0} all-gather(%c), dimensions={0}
"""
    assert tpu.reduced_bytes(hlo) == 24 * 4 + 3 * 3 * 24 * 2 + 4 + 16


def test_what_does_not_fit_says_what_it_wanted():
    said = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the "
        "total memory required for HLO temporaries (33.34G) exceeds available HBM "
        "(15.48G). HLO module: jit_train_step."
    )
    figures = tpu._unfit(V3, said, 30.13)
    assert not figures["fits"] and figures["step_seconds"] is None
    assert figures["wanted_bytes"] == int(33.34 * 2**30)
    assert tpu._unfit(V3, "RESOURCE_EXHAUSTED: ?", 1.0)["wanted_bytes"] is None
    known = tpu.read_figures(make_compiled(), V3, images=1, compile_seconds=0)
    assert set(figures) == {*known, "wanted_bytes"}


def make_job(config: ConfigDict, **changes) -> tpu.CompileRequest:
    usual = {"num_classes": 10, "image_size": 32, "batch_size": 64}
    return tpu.CompileRequest(
        config=tpu.step_config(config), slice_name="v3-8", **(usual | changes)
    )


@pytest.mark.parametrize("mixup", [(0.0, 0.0), (0.0, 0.5)])
def test_the_kept_part_of_the_config_gives_the_same_program(mixup):
    config = tiny.make_config(**{"progressive.mixup": mixup, "seed": 3})
    mesh = sharding.make_mesh(jax.devices()[:1])

    def lower(config):
        model = programs.make_model(config, 10)
        optimizer = optim.make_optimizer(config)
        sizes = {"image_size": 8, "batch_size": 16}
        lowered = programs.lower_train_step(model, optimizer, config, mesh, **sizes)
        return lowered.as_text()

    kept = ConfigDict(tpu.step_config(config), convert_dict=True)
    kept.seed = config.seed
    assert lower(kept) == lower(config)


def test_what_is_the_hosts_business_changes_no_job():
    config = imagenet1k.get_config("s")
    job = make_job(config)
    for key, value in {"seed": 5, "optimizer.lr": 0.5, "epochs": 90.0}.items():
        config.update_from_flattened_dict({key: value})
    config.progressive.dropout = (0.0, 0.1)
    assert make_job(config) == job
    config.optimizer.momentum = 0.8
    assert make_job(config) != job


def test_without_libtpu_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.InputError, match=r"pip install 'ev2\[tpu\]'"):
        tpu.check_installed()


@pytest.mark.parametrize(
    "code, error, said",
    [(-9, errors.InputError, "too little memory"), (1, RuntimeError, "no such thing")],
)
def test_a_compiling_process_that_fails(monkeypatch, code, error, said):
    ended = types.SimpleNamespace(returncode=code, stderr="no such thing", stdout="")
    monkeypatch.setattr(tpu.subprocess, "run", lambda *args, **options: ended)
    with pytest.raises(error, match=said):
        tpu.compile_apart(make_job(tiny.make_config()))


@needs_libtpu
@pytest.mark.slow
def test_every_slice_is_known_to_the_compiler():
    for short, generation in slices.GENERATIONS.items():
        for count in generation.shapes:
            devices = tpu.get_devices(slices.find(f"{short}-{count}"))
            assert devices[0].device_kind == generation.device_kind


@needs_libtpu
@pytest.mark.slow
def test_the_compiler_itself(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    job = make_job(tiny.make_config(**{"model.dtype": "bfloat16"}))
    figures = tpu.compile_apart(job)
    assert figures["fits"] and figures["step_seconds_from"] == "compiler"
    # Every gradient crosses: two bytes for each of the kernels at least.
    model = tiny.create_model(tiny.make_config())
    state = jax.eval_shape(lambda: model.init(jax.random.key(0), 32))
    count = sum(leaf.size for leaf in jax.tree.leaves(state["params"]))
    assert 2 * count < figures["reduced_bytes"] < 10 * count

    # 80,000 images of 256 px a core are 15.7 GB before the first map.
    huge = dataclasses.replace(job, image_size=256, batch_size=8 * 80_000)
    figures = tpu.compile_apart(huge)
    assert not figures["fits"] and figures["wanted_bytes"] > 15.48 * 2**30
