"""pytest tests/evaluation/test_evaluate.py

Every image exactly once, for any batch size and any number of devices.
"""

import jax
import numpy as np
import pytest
from PIL import Image

from configs import demo, folder
from ev2 import errors, sharding
from ev2.checkpoint import manager, pretrained
from ev2.data import decode as data_image
from ev2.data import sources
from ev2.evaluation import evaluate
from ev2.models.model import create_model
from ev2.train import optimizer as optim
from ev2.train import state as states
from tests.helpers import tiny_run as tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of a fresh network on the embedded pictures."""
    workdir = tmp_path_factory.mktemp("run")
    config = demo.get_config()
    config.model.blocks = tiny.BLOCKS
    config.eval.image_size = 16
    model = create_model(config.model.name, num_classes=10, blocks=config.model.blocks)
    state = states.create_state(model, optim.make_optimizer(config), config, 16)
    names = sources.describe(config).class_names
    meta = pretrained.make_metadata(model, names, config=config)
    checkpoints = manager.Checkpoints(str(workdir), keep=1)
    checkpoints.save(state, 3, meta)
    checkpoints.close()
    return workdir, config, state


_found_on = {}


@pytest.mark.parametrize("devices", [1, 8])
def test_exact_for_any_batch_size_and_device_count(saved, devices):
    _, config, state = saved
    mesh = sharding.make_mesh(jax.devices()[:devices])
    model = create_model(config.model.name, num_classes=10, blocks=tiny.BLOCKS)
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
    model, variables, meta = pretrained.load_pretrained(str(workdir))
    jax.tree.map(np.testing.assert_array_equal, variables["params"], state.params)
    assert model.name == "efficientnetv2-tiny" and len(meta["class_names"]) == 10
    images = np.zeros((2, 16, 16, 3), np.float32)
    assert model.apply(variables, images).shape == (2, 10)


def test_bad_input(saved, tmp_path):
    workdir, _, _ = saved
    with pytest.raises(errors.InputError, match="no complete checkpoint"):
        evaluate.evaluate_checkpoint(str(tmp_path))
    # Ten declared classes without names are taken as the checkpoint's, eleven not.
    other = tiny.make_config(**{"data.num_classes": 10})
    assert evaluate.evaluate_checkpoint(str(workdir), other)["count"] == 19
    other = tiny.make_config(**{"data.num_classes": 11})
    message = "does not know 11 of the data's 11 classes, the first being '0'.* 10 are"
    with pytest.raises(errors.InputError, match=message):
        evaluate.evaluate_checkpoint(str(workdir), other)
    with pytest.raises(errors.InputError, match="split: 'all' is for data.source"):
        evaluate.evaluate_checkpoint(str(workdir), other, split="all")


def _always(index):
    """Changes weights so that the network sees class `index` in every picture."""

    def change(variables):
        classifier = variables["params"]["classifier"]
        bias = np.zeros_like(classifier["bias"])
        bias[index] = 1.0
        seen = {"kernel": np.zeros_like(classifier["kernel"]), "bias": bias}
        return {**variables, "params": {**variables["params"], "classifier": seen}}

    return change


def _save(workdir, names, index, **changes):
    config = tiny.make_config(**{"eval.image_size": 16, **changes})
    tiny.save_checkpoint(workdir, config, names, ema=_always(index))
    return str(workdir)


def _write_folder(path, counts):
    for name, count in counts.items():
        (path / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((16, 16, 3), 20 * i, np.uint8)
            Image.fromarray(pixels).save(path / name / f"{i:02}.png")
    config = folder.get_config()
    config.data.path = str(path)
    return config


KNOWN = ("my cat", "n01443537", "n02099601", "n01440764", "rose", "3")


@pytest.mark.parametrize(
    ("index", "top1"), [(0, 4 / 15), (1, 2 / 15), (2, 0.0), (3, 1 / 15), (5, 8 / 15)]
)
def test_classes_of_a_folder_are_found_by_name(tmp_path, index, top1):
    """Fewer classes, in another order, by id, by name and by another spelling."""
    counts = {"3": 8, "My_Cat": 4, "goldfish": 2, "n01440764": 1}
    config = _write_folder(tmp_path / "photos", counts)
    run = _save(tmp_path / "run", KNOWN, index)
    results = evaluate.evaluate_checkpoint(run, config)
    assert results["top1"] == pytest.approx(top1, abs=1e-9)
    assert (results["count"], results["skipped"], results["split"]) == (15, 0, "all")


def test_unknown_classes_of_a_folder_are_refused(tmp_path):
    config = _write_folder(tmp_path / "photos", {"rose": 1, "tulip": 1, "unicorn": 1})
    run = _save(tmp_path / "run", KNOWN, 0)
    with pytest.raises(errors.InputError) as raised:
        evaluate.evaluate_checkpoint(run, config)
    assert "not know 2 of the data's 3 classes, the first being 'tulip'" in str(
        raised.value
    )
    assert "its 6 are: my cat, goldfish, golden retriever, ..." in str(raised.value)


@pytest.mark.parametrize(
    ("known", "fits"),
    [
        (("0", "1", "2"), True),  # the checkpoint has numbers alone
        (("0", "1", "2", "3"), False),
        (("x", "y", "z"), False),
        (("0", "1", "tulip"), False),
    ],
)
def test_names_against_numbers(tmp_path, known, fits):
    config = _write_folder(tmp_path / "photos", {"rose": 1, "tulip": 2, "violet": 3})
    run = _save(tmp_path / "run", known, 2)
    if fits:
        results = evaluate.evaluate_checkpoint(run, config)
        assert results["top1"] == 0.5 and results["count"] == 6
    else:
        with pytest.raises(errors.InputError, match="does not know"):
            evaluate.evaluate_checkpoint(run, config)


@pytest.mark.parametrize(
    ("learnt_from", "split", "count"),
    [
        ("tfds", None, 20),
        ("tfds", "eval", 2),
        ("tfds", "train", 18),
        ("folder", None, 2),  # ten of its twenty may be what was learnt
        ("folder", "all", 20),
    ],
)
def test_how_much_of_a_folder_counts(tmp_path, learnt_from, split, count):
    config = _write_folder(tmp_path / "photos", {"a": 10, "b": 10})
    run = _save(tmp_path / "run", ("a", "b"), 0, **{"data.source": learnt_from})
    results = evaluate.evaluate_checkpoint(run, config, split=split)
    assert results["count"] == count and results["top1"] == 0.5


def test_a_folder_with_splits_is_never_taken_whole(tmp_path):
    _write_folder(tmp_path / "photos/train", {"a": 3, "b": 3})
    _write_folder(tmp_path / "photos/val", {"a": 1, "b": 1})
    config = folder.get_config()
    config.data.path = str(tmp_path / "photos")
    run = _save(tmp_path / "run", ("b", "a"), 0)
    assert evaluate.evaluate_checkpoint(run, config)["count"] == 2
    with pytest.raises(errors.InputError, match="^split: 'all' of .*photos/train and"):
        evaluate.evaluate_checkpoint(run, config, split="all")


def test_the_crop_is_the_checkpoints(tmp_path, monkeypatch):
    """A config names the images; the checkpoint decides how they are cropped."""
    crop = {"data.eval_crop": "center", "data.eval_crop_padding": 5}
    run = _save(tmp_path / "run", ("a", "b"), 0, **crop)
    config = _write_folder(tmp_path / "photos", {"a": 1, "b": 1})
    config.data.eval_crop_padding = 7
    seen, box = [], data_image.center_box
    monkeypatch.setattr(
        data_image, "center_box", lambda *a, **k: seen.append(k) or box(*a, **k)
    )
    evaluate.evaluate_checkpoint(run, config)
    assert seen == [{"image_size": 16, "padding": 5}] * len(seen) and seen
