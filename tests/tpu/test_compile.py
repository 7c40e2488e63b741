"""python -m pytest tests/tpu/test_compile.py

The slow ones compile with libtpu, where it is installed: pip install 'ev2[tpu]'
"""

import dataclasses
import importlib.util
import math
import time
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


class Lowered:
    """A traced step, compiled to given figures or to an error."""

    def __init__(self, *, seconds=0.5, temp=1000, error=""):
        self.seconds, self.temp, self.error = seconds, temp, error

    def compile(self):
        if self.error:
            raise jax.errors.JaxRuntimeError(self.error)
        memory = types.SimpleNamespace(
            argument_size_in_bytes=100,
            output_size_in_bytes=80,
            alias_size_in_bytes=70,
            temp_size_in_bytes=self.temp,
        )
        cost = {"flops": 123e12, "bytes accessed": 90e9}
        cost["optimal_seconds"] = self.seconds
        return types.SimpleNamespace(
            memory_analysis=lambda: memory,
            cost_analysis=lambda: cost,
            as_text=lambda: "",
        )


def compile_lowered(**options):
    started = time.monotonic() - 7.04
    return tpu.compile_lowered(Lowered(**options), V3, images=64, started=started)


def test_figures_of_a_step():
    figures = compile_lowered()
    assert figures.pop("compile_seconds") == pytest.approx(7.0, abs=0.2)
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
    }


def test_a_step_larger_than_the_memory_does_not_fit():
    assert not compile_lowered(temp=16 * 2**30)["fits"]


@pytest.mark.parametrize("seconds", [-0.2, 0.0, math.nan, math.inf])
def test_an_impossible_time_is_replaced_by_a_lower_bound(seconds):
    # A v3 core does 61.5 TFLOP/s and moves 450 GB/s: 2 s of the one, 0.2 of the other.
    figures = compile_lowered(seconds=seconds)
    assert figures["step_seconds"] == pytest.approx(2.0)
    assert figures["step_seconds_from"] == "lower bound"
    assert figures["images_per_second_per_device"] == pytest.approx(32.0)


@pytest.mark.parametrize(
    "message, wanted",
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, "
            "the total memory required for HLO temporaries (33.34G) exceeds available "
            "HBM (15.48G). HLO module: jit_train_step.",
            int(33.34 * 2**30),
        ),
        ("RESOURCE_EXHAUSTED: ?", None),
    ],
)
def test_a_step_that_the_compiler_refuses_reports_its_memory(message, wanted):
    figures = compile_lowered(error=message)
    assert not figures["fits"] and figures["step_seconds"] is None
    assert figures["wanted_bytes"] == wanted
    assert set(figures) == {*compile_lowered(), "wanted_bytes"}


def test_another_error_of_the_compiler_is_raised():
    with pytest.raises(jax.errors.JaxRuntimeError):
        compile_lowered(error="INTERNAL: ?")


def test_bytes_between_devices_are_counted_from_results():
    hlo = """
  %all-reduce.1 = (f32[24]{0:T(256)}, bf16[3,3,24]{2,1,0:T(8,128)(2,1)}) all-reduce(%a)
  %get-tuple-element.2 = f32[24]{0:T(256)} get-tuple-element(%all-reduce.1), index=0
  %all-reduce.3 = s32[]{:T(128)} all-reduce(%b), to_apply=%region
  %fusion.4 = f32[1000]{0} fusion(%all-reduce.3), kind=kLoop
  %ag = pred[16]{0} all-gather(%c), dimensions={0}
"""
    assert tpu.reduced_bytes(hlo) == 24 * 4 + 3 * 3 * 24 * 2 + 4 + 16


def make_request(config: ConfigDict, **changes) -> tpu.CompileRequest:
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


def test_host_settings_change_no_request():
    config = imagenet1k.get_config("s")
    request = make_request(config)
    for key, value in {"seed": 5, "optimizer.lr": 0.5, "epochs": 90.0}.items():
        config.update_from_flattened_dict({key: value})
    config.progressive.dropout = (0.0, 0.1)
    assert make_request(config) == request
    config.optimizer.momentum = 0.8
    assert make_request(config) != request


def test_a_missing_libtpu_is_refused_with_its_extra(monkeypatch):
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
        tpu.compile_apart(make_request(tiny.make_config()))


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
    job = make_request(tiny.make_config(**{"model.dtype": "bfloat16"}))
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
