"""pytest tests/train/test_initialize.py

Runs that start from trained weights: what is taken, refused, frozen and printed.
"""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from ev2 import errors
from ev2.checkpoint import manager, pretrained
from ev2.train import initialize as initial
from ev2.train import loop as train
from ev2.train import optimizer as optim
from ev2.train import state as states
from ev2.train import step as steps
from tests.helpers import tiny_run as tiny
from tests.train.test_loop import assert_equal_bits, final_state

NAMES = tuple("abcdefghij")
BATCH, SIZE = 16, 16


@pytest.fixture(scope="module")
def source_folder(tmp_path_factory):
    """A run of ten named classes whose EMA weights are twice its raw weights."""
    workdir = tmp_path_factory.mktemp("source") / "run"
    config = tiny.make_config(
        **{
            "data.mean": (1.0, 2.0, 3.0),
            "data.std": (4.0, 5.0, 6.0),
            "data.interpolation": "bicubic",
        }
    )
    double = lambda ema: jax.tree.map(lambda x: 2 * x, ema)  # noqa: E731
    tiny.save_checkpoint(workdir, config, NAMES, ema=double)
    return str(workdir)


def _config(path, **changes):
    return tiny.make_config(**{"init.checkpoint": path, **changes})


def _read(path, tmp_path, **changes):
    return initial.open_checkpoint(_config(path, **changes), str(tmp_path / "new"))


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_weights_asked_for_go_into_state_and_ema(source_folder, tmp_path, weights):
    config, source = _read(source_folder, tmp_path, **{"init.weights": weights})
    model = tiny.create_model(config)
    found, line = initial.select_weights(model, NAMES, source)
    _, expected, _ = pretrained.load_pretrained(source_folder, weights=weights)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    which = {"ema": "EMA", "raw": "raw"}[weights]
    assert line == f"from the {which} weights of {source_folder}, with its classifier"
    fresh = states.create_state(model, optim.make_optimizer(config), config, SIZE)
    state = initial.start_from(fresh, found, jax.devices()[0])
    jax.tree.map(np.testing.assert_array_equal, state.params, expected["params"])
    jax.tree.map(np.testing.assert_array_equal, state.ema, expected)
    assert int(state.step) == 0
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, fresh.opt_state)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (NAMES, ""),
        (tuple("0123456789"), ""),  # numbers are no names
        (NAMES[:3], "3 classes, there 10"),
        ((*NAMES[:9], "z"), "class 9 is 'z', there 'j'"),
        (NAMES[::-1], "class 0 is 'j', there 'a'"),
    ],
)
def test_other_classes_have_a_new_classifier(source_folder, tmp_path, names, reason):
    config, source = _read(source_folder, tmp_path)
    model = tiny.create_model(config, len(names))
    found, line = initial.select_weights(model, names, source)
    assert ("classifier" in found["params"]) == (not reason)
    assert found["params"].keys() >= {"stem", "head"}
    head = f"a new classifier: {reason}" if reason else "its classifier"
    assert line.endswith(f"of {source_folder}, with {head}")
    fresh = states.create_state(model, optim.make_optimizer(config), config, SIZE)
    state = initial.start_from(fresh, found, jax.devices()[0])
    drawn = fresh if reason else dataclasses.replace(fresh, params=found["params"])
    for tree in (state.params, state.ema["params"]):
        jax.tree.map(
            np.testing.assert_array_equal,
            tree["classifier"],
            drawn.params["classifier"],
        )


def test_another_network_is_refused(source_folder, tmp_path):
    blocks = (*tiny.BLOCKS, "r1_k3_s1_e2_i16_o16_c0")[:1]
    config, source = _read(source_folder, tmp_path, **{"model.blocks": blocks})
    with pytest.raises(errors.InputError, match="with blocks .* this run has"):
        initial.select_weights(tiny.create_model(config), NAMES, source)


def test_what_is_left_open_is_the_checkpoints(source_folder, tmp_path, caplog):
    left = {"data.mean": (), "data.std": (), "data.interpolation": ""}
    config, _ = _read(source_folder, tmp_path, **left)
    assert config.data.mean == (1.0, 2.0, 3.0) and config.data.std == (4.0, 5.0, 6.0)
    assert config.data.interpolation == "bicubic"
    assert not caplog.records
    _read(source_folder, tmp_path, **{"data.std": (), "data.interpolation": ""})
    assert "data.mean is (128.0, 128.0, 128.0), but the weights of" in caplog.text
    assert "data.std" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init.checkpoint": "required"}, "init.checkpoint: this recipe starts from"),
        ({"data.mean": ()}, r"data.mean: \(\) stands for the value of init.checkpoint"),
        ({"data.interpolation": ""}, "data.interpolation: '' stands for the value"),
        ({"init.layer_decay": 0.0}, "init.layer_decay: 0.0 is not allowed"),
        ({"init.weights": "best"}, "init.weights: 'best'"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    tmp_path, changes, message
):
    with pytest.raises(errors.InputError, match=f"^{message}"):
        train.train_and_evaluate(tiny.make_config(**changes), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def _steps(config, num_steps=2):
    """The state before and after some steps on the checkpoint-like values of a draw."""
    model = tiny.create_model(config)
    optimizer = optim.make_optimizer(config)
    create = lambda: states.create_state(model, optimizer, config, SIZE)  # noqa: E731
    before = jax.jit(create)()
    train_step = jax.jit(steps.make_train_step(model, optimizer, config))
    random = np.random.default_rng(0)
    strengths = {"learning_rate": 0.01, "dropout": 0.1, "drop_path": 0.1}
    strengths |= {"mixup": 0.0, "cutmix": 0.0}
    state = before
    for _ in range(num_steps):
        batch = {
            "image": random.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8),
            "label": np.arange(BATCH, dtype=np.int32) % 10,
            "mask": np.ones(BATCH, np.float32),
        }
        state, _ = train_step(state, batch, jax.tree.map(np.float32, strengths))
    return jax.device_get(before), jax.device_get(state)


def _moved(before, after):
    """Names of the parts of which some leaf is not what it was, bit by bit."""
    return {
        name
        for name in before
        for a, b in zip(
            jax.tree.leaves(before[name]), jax.tree.leaves(after[name]), strict=True
        )
        if a.tobytes() != b.tobytes()
    }


def test_a_frozen_backbone_stays_bit_for_bit():
    changes = {"init.freeze": "backbone", "optimizer.weight_decay": 0.1}
    before, after = _steps(_config("somewhere", **changes))
    assert _moved(before.params, after.params) == {"classifier"}
    assert _moved(before.ema["params"], after.ema["params"]) == {"classifier"}
    assert not _moved(before.batch_stats, after.batch_stats)
    assert not _moved(before.ema["batch_stats"], after.ema["batch_stats"])


def test_frozen_statistics_stay_and_all_weights_learn():
    before, after = _steps(_config("somewhere", **{"init.freeze_bn": True}))
    assert _moved(before.params, after.params) == before.params.keys()
    assert not _moved(before.batch_stats, after.batch_stats)
    assert not _moved(before.ema["batch_stats"], after.ema["batch_stats"])


def test_learning_rates_fall_from_the_head_down():
    config = _config("somewhere", **{"init.layer_decay": 0.5})
    # Parts of the tiny network, from the last to learn least to the first.
    factors = {"classifier": 1, "head": 1, "stage2": 0.5, "stage1": 0.25, "stem": 0.125}
    optimizer = optim.make_optimizer(config)
    params = tiny.create_model(config).init(jax.random.key(0), SIZE)["params"]
    ones = jax.tree.map(jax.numpy.ones_like, params)
    state = optimizer.init(params)
    updates, _ = optimizer.update(ones, state, params, learning_rate=1.0)
    plain = optim.make_optimizer(tiny.make_config())
    expected, _ = plain.update(ones, state, params, learning_rate=1.0)
    for name, below in updates.items():
        factor = factors[name.split("_")[0]]
        for a, b in zip(
            jax.tree.leaves(below), jax.tree.leaves(expected[name]), strict=True
        ):
            np.testing.assert_array_equal(a, factor * b)


class Stopped(Exception):
    """Stands for a kill."""


@pytest.mark.slow
def test_a_resumed_run_needs_the_checkpoint_no_more(
    source_folder, tmp_path, monkeypatch, capsys
):
    moved = tmp_path / "gone"
    shutil.copytree(source_folder, moved)
    config = _config(
        str(moved),
        **{
            "steps": 4,
            "progressive.schedule": "fixed",
            "init.layer_decay": 0.5,
            "init.freeze_bn": True,
            "data.mean": (),
            "data.num_classes": 11,
        },
    )
    train.train_and_evaluate(config, str(tmp_path / "whole"))
    assert "with a new classifier: 11 classes, there 10" in capsys.readouterr().out
    save = manager.Checkpoints.save

    def save_and_stop(self, state, step, *args, **kwargs):
        save(self, state, step, *args, **kwargs)
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(manager.Checkpoints, "save", save_and_stop)
        with pytest.raises(Stopped):
            train.train_and_evaluate(config, str(tmp_path / "run"))
    shutil.rmtree(moved)
    train.train_and_evaluate(config, str(tmp_path / "run"))
    assert_equal_bits(final_state(tmp_path / "run"), final_state(tmp_path / "whole"))
    _, variables, meta = pretrained.load_pretrained(str(tmp_path / "run"))
    assert meta["preprocessing"]["mean"] == [1.0, 2.0, 3.0]
    _, source, _ = pretrained.load_pretrained(source_folder)
    assert not _moved(source["batch_stats"], variables["batch_stats"])
