"""Every image exactly once, for any batch size and any number of devices."""

import jax
import numpy as np
import pytest
from PIL import Image

from configs import demo, folder
from ev2 import errors, sharding
from ev2.checkpoint import pretrained
from ev2.data import decode, sources
from ev2.evaluation import evaluate
from tests.helpers import tiny_run as tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The path, config and variables of a fresh network for the embedded images."""
    workdir = str(tmp_path_factory.mktemp("run"))
    config = demo.get_config()
    config.model.blocks = tiny.BLOCKS
    config.eval.image_size = 16
    names = sources.describe(config).class_names
    return workdir, config, tiny.save_checkpoint(workdir, config, names)


def test_exact_for_any_batch_size_and_device_count(saved):
    _, config, variables = saved
    model = tiny.create_model(config)
    accuracies = set()
    for devices, batch_size in ((1, 64), (8, 1), (8, 7), (8, 64), (8, 2048)):
        mesh = sharding.make_mesh(jax.devices()[:devices])
        weights = jax.device_put({"raw": variables}, sharding.replicated(mesh))
        config.eval.batch_size = batch_size
        eval_step = evaluate.compile_eval_step(model, config, mesh, weights)
        results = evaluate.evaluate(eval_step, weights, config, mesh)["raw"]
        assert results["count"] == 2000 and results["skipped"] == 0
        assert results["confusion"].sum(axis=1).tolist() == [200] * 10
        accuracies.add((results["top1"], results["top5"]))
    assert len(accuracies) == 1


def test_evaluate_checkpoint_reads_model_and_preprocessing(saved):
    workdir, _, _ = saved
    results = evaluate.evaluate_checkpoint(workdir, batch_size=512)
    assert results["count"] == 2000 and results["image_size"] == 16
    assert results["weights"] == "ema" and 0 <= results["top1"] <= results["top5"] <= 1
    assert evaluate.evaluate_checkpoint(f"{workdir}/checkpoints/1") == results
    # A config with another normalization does not change that of the checkpoint.
    other = demo.get_config()
    other.data.mean = (0.0, 0.0, 0.0)
    assert evaluate.evaluate_checkpoint(workdir, other) == results


def test_load_pretrained_gives_back_the_arrays(saved):
    workdir, _, variables = saved
    model, restored, metadata = pretrained.load_pretrained(workdir)
    jax.tree.map(np.testing.assert_array_equal, restored["params"], variables["params"])
    assert model.name == "efficientnetv2-tiny" and len(metadata["class_names"]) == 10
    assert model.apply(restored, np.zeros((2, 16, 16, 3), np.float32)).shape == (2, 10)


def test_bad_input(saved, tmp_path):
    workdir, _, _ = saved
    with pytest.raises(errors.InputError, match="no complete checkpoint"):
        evaluate.evaluate_checkpoint(str(tmp_path))
    # Ten classes without names match the ten of the checkpoint by index.
    config = tiny.make_config(**{"data.num_classes": 10})
    assert evaluate.evaluate_checkpoint(workdir, config)["count"] == 19
    for options, message in (
        ({"batch_size": -1}, "batch_size: -1 is not allowed; give 1 or more"),
        ({"image_size": 7}, "image_size: 7 is not allowed; give 8 or more"),
        ({"split": "all"}, "split: 'all' is for data.source"),
    ):
        with pytest.raises(errors.InputError, match=message):
            evaluate.evaluate_checkpoint(workdir, config, **options)
    config = tiny.make_config(**{"data.num_classes": 11})
    message = "lacks 11 of the data's 11 classes, the first being '0'.* 10 classes"
    with pytest.raises(errors.InputError, match=message):
        evaluate.evaluate_checkpoint(workdir, config)


def save_constant_network(workdir, names, index, **changes) -> str:
    """Saves a network that predicts class `index` for every image."""

    def predict_index(variables):
        classifier = variables["params"]["classifier"]
        bias = np.zeros_like(classifier["bias"])
        bias[index] = 1.0
        constant = {"kernel": np.zeros_like(classifier["kernel"]), "bias": bias}
        return {**variables, "params": {**variables["params"], "classifier": constant}}

    config = tiny.make_config(**{"eval.image_size": 16, **changes})
    tiny.save_checkpoint(workdir, config, names, ema=predict_index)
    return str(workdir)


def write_folder(path, counts):
    """Writes `counts` images of each class; returns the config of the folder."""
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
    config = write_folder(tmp_path / "photos", counts)
    run = save_constant_network(tmp_path / "run", KNOWN, index)
    results = evaluate.evaluate_checkpoint(run, config)
    assert results["top1"] == pytest.approx(top1, abs=1e-9)
    assert (results["count"], results["skipped"], results["split"]) == (15, 0, "all")


def test_unknown_classes_of_a_folder_are_refused(tmp_path):
    config = write_folder(tmp_path / "photos", {"rose": 1, "tulip": 1, "unicorn": 1})
    run = save_constant_network(tmp_path / "run", KNOWN, 0)
    with pytest.raises(errors.InputError) as raised:
        evaluate.evaluate_checkpoint(run, config)
    message = str(raised.value)
    assert "lacks 2 of the data's 3 classes, the first being 'tulip'" in message
    assert "its 6 classes: my cat, goldfish, golden retriever, ..." in message


@pytest.mark.parametrize(
    ("known", "fits"),
    [
        (("0", "1", "2"), True),  # the checkpoint has only numbers
        (("0", "1", "2", "3"), False),
        (("x", "y", "z"), False),
        (("0", "1", "tulip"), False),
    ],
)
def test_names_against_numbers(tmp_path, known, fits):
    config = write_folder(tmp_path / "photos", {"rose": 1, "tulip": 2, "violet": 3})
    run = save_constant_network(tmp_path / "run", known, 2)
    if fits:
        results = evaluate.evaluate_checkpoint(run, config)
        assert results["top1"] == 0.5 and results["count"] == 6
    else:
        with pytest.raises(errors.InputError, match=" lacks "):
            evaluate.evaluate_checkpoint(run, config)


@pytest.mark.parametrize(
    ("trained_on", "split", "count"),
    [
        ("tfds", None, 20),
        ("tfds", "eval", 2),
        ("tfds", "train", 18),
        ("folder", None, 2),  # the other 18 may have been trained on
        ("folder", "all", 20),
    ],
)
def test_how_much_of_a_folder_counts(tmp_path, trained_on, split, count):
    config = write_folder(tmp_path / "photos", {"a": 10, "b": 10})
    source = {"data.source": trained_on}
    run = save_constant_network(tmp_path / "run", ("a", "b"), 0, **source)
    results = evaluate.evaluate_checkpoint(run, config, split=split)
    assert results["count"] == count and results["top1"] == 0.5


def test_all_images_of_a_folder_with_splits_are_refused(tmp_path):
    config = write_folder(tmp_path / "photos/train", {"a": 3, "b": 3})
    write_folder(tmp_path / "photos/val", {"a": 1, "b": 1})
    config.data.path = str(tmp_path / "photos")
    run = save_constant_network(tmp_path / "run", ("b", "a"), 0)
    assert evaluate.evaluate_checkpoint(run, config)["count"] == 2
    with pytest.raises(errors.InputError, match="^split: 'all' of .*photos/train and"):
        evaluate.evaluate_checkpoint(run, config, split="all")


def test_the_checkpoint_decides_the_crop(tmp_path, monkeypatch):
    crop = {"data.eval_crop": "center", "data.eval_crop_padding": 5}
    run = save_constant_network(tmp_path / "run", ("a", "b"), 0, **crop)
    config = write_folder(tmp_path / "photos", {"a": 1, "b": 1})
    config.data.eval_crop_padding = 7
    seen, center_box = [], decode.center_box

    def record(*args, **kwargs):
        seen.append(kwargs)
        return center_box(*args, **kwargs)

    monkeypatch.setattr(decode, "center_box", record)
    evaluate.evaluate_checkpoint(run, config)
    assert seen == [{"image_size": 16, "padding": 5}] * len(seen) and seen
