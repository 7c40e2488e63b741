"""pytest tests/test_evaluate.py

Every image exactly once, for any batch size and any number of devices.
"""

import jax
import numpy as np
import pytest

from configs import demo
from ev2 import checkpoint, data, errors, evaluate, models, optim, sharding
from ev2 import state as states
from tests import tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of a fresh network on the embedded pictures."""
    workdir = tmp_path_factory.mktemp("run")
    config = demo.get_config()
    config.model.blocks = tiny.BLOCKS
    config.eval.image_size = 16
    model = models.create_model(
        config.model.name, num_classes=10, blocks=config.model.blocks
    )
    state = states.create_state(model, optim.make_optimizer(config), config, 16)
    names = data.describe(config).class_names
    meta = checkpoint.make_meta(config, model, names)
    checkpoints = checkpoint.Checkpoints(str(workdir), keep=1)
    checkpoints.save(state, 3, meta)
    checkpoints.close()
    return workdir, config, state


_found_on = {}


@pytest.mark.parametrize("devices", [1, 8])
def test_exact_for_any_batch_size_and_device_count(saved, devices):
    _, config, state = saved
    mesh = sharding.make_mesh(jax.devices()[:devices])
    model = models.create_model(config.model.name, num_classes=10, blocks=tiny.BLOCKS)
    weights = {"raw": {"params": state.params, "batch_stats": state.batch_stats}}
    weights = jax.device_put(weights, sharding.replicated(mesh))
    eval_step = evaluate.make_compiled_eval_step(model, config, mesh)
    found = []
    for batch_size in (1, 7, 64, 2048):
        config.eval.batch_size = batch_size
        found.append(evaluate.evaluate(eval_step, weights, config, mesh)["raw"])
        assert found[-1]["count"] == 2000 and found[-1]["skipped"] == 0
        assert found[-1]["confusion"].sum(axis=1).tolist() == [200] * 10
    assert len({(f["top1"], f["top5"]) for f in found}) == 1
    _found_on[devices] = (found[0]["top1"], found[0]["top5"])
    assert len(set(_found_on.values())) == 1  # whatever the number of devices


def test_evaluate_checkpoint_reads_model_and_preprocessing(saved):
    workdir, config, _ = saved
    results = evaluate.evaluate_checkpoint(str(workdir), batch_size=512)
    assert results["count"] == 2000 and results["image_size"] == 16
    assert results["weights"] == "ema" and 0 <= results["top1"] <= results["top5"] <= 1
    one = evaluate.evaluate_checkpoint(str(workdir / "checkpoints" / "3"))
    assert one == results
    # A config that normalizes otherwise does not change what the weights get.
    other = demo.get_config()
    other.data.mean = (0.0, 0.0, 0.0)
    assert evaluate.evaluate_checkpoint(str(workdir), other) == results


def test_load_pretrained_gives_back_the_arrays(saved):
    workdir, _, state = saved
    model, variables, meta = checkpoint.load_pretrained(str(workdir))
    jax.tree.map(np.testing.assert_array_equal, variables["params"], state.params)
    assert model.name == "efficientnetv2-tiny" and len(meta["class_names"]) == 10
    images = np.zeros((2, 16, 16, 3), np.float32)
    assert model.apply(variables, images).shape == (2, 10)


def test_bad_input(saved, tmp_path):
    workdir, _, _ = saved
    with pytest.raises(errors.InputError, match="no complete checkpoint"):
        evaluate.evaluate_checkpoint(str(tmp_path))
    other = tiny.make_config(**{"data.num_classes": 11})
    with pytest.raises(errors.InputError, match="10 classes .* 11"):
        evaluate.evaluate_checkpoint(str(workdir), other)
