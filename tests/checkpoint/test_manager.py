"""python -m pytest tests/checkpoint/test_manager.py

Which checkpoints of a run are kept; weights without a run: written, read back, refused.
"""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

import ev2
from ev2 import errors
from ev2.checkpoint import manager as checkpoint
from ev2.checkpoint.published import preprocessing
from ev2.checkpoint.published import write as convert
from ev2.cli import main as cli
from ev2.models import arch
from tests.helpers import published_files as published

NAME = "resnet50"
BLOCKS = ("r1_k3_s1_e4_i64_o32_c2", "r1_k3_s2_e4_i32_o64_c2")


def _save(workdir, scores, **keep):
    """Saves a state per item of `scores`; returns the steps kept."""
    checkpoints = checkpoint.Checkpoints(str(workdir), **keep)
    for step, score in scores.items():
        state = {"step": jnp.asarray(step)}
        checkpoints.save(state, step, {"model": {}}, score=score)
    latest = checkpoints.latest_step()
    checkpoints.close()
    kept = sorted(int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*"))
    assert latest == kept[-1]
    return kept


def test_the_newest_and_the_best_are_kept(tmp_path, caplog):
    first = {10: 0.5, 20: None, 30: 0.9, 40: None, 50: 0.7, 60: None}
    assert _save(tmp_path, first, keep=2) == [30, 50, 60]
    # After a restart the best of before is still known, until there is a better one.
    assert _save(tmp_path, {70: 0.8, 80: None}, keep=2) == [30, 70, 80]
    assert _save(tmp_path, {90: 0.95, 100: None}, keep=1) == [90, 100]
    assert not caplog.records, caplog.text


def test_several_of_the_best_are_kept(tmp_path):
    scores = {1: 0.5, 2: 0.9, 3: 0.7, 4: 0.9, 5: 0.1, 6: None}
    assert _save(tmp_path, scores, keep=1, keep_best=3) == [2, 3, 4, 6]
    checkpoints = checkpoint.Checkpoints(str(tmp_path), keep=1, keep_best=3)
    assert checkpoints.best_step() == 4  # of equal ones the latest
    assert checkpoints.read_meta(4) == {"model": {}}
    checkpoints.close()


def test_without_an_evaluation_the_newest_are_kept(tmp_path):
    assert _save(tmp_path, dict.fromkeys((1, 2, 3, 4)), keep=2) == [3, 4]


@pytest.fixture(scope="module")
def variables():
    model = ev2.create_model(NAME, num_classes=5, blocks=BLOCKS)
    return published.random_variables(model)


@pytest.fixture
def source(variables, tmp_path, monkeypatch):
    """A published file of a small network, which the table has for a while."""
    small = dataclasses.replace(arch.get(NAME), rows=arch.decode(BLOCKS))
    monkeypatch.setitem(arch.table._TABLE, NAME, small)
    model = ev2.create_model(NAME, num_classes=5)
    values = published.tensors("torch_resnet", model, variables)
    safetensors.save_file(values, tmp_path / "weights.safetensors")
    return str(tmp_path / "weights.safetensors")


def test_what_is_converted_is_read_back(source, variables, tmp_path):
    out = str(tmp_path / "out")
    report = convert.convert_published(source, out, preprocessing={})
    assert report["model"] == NAME and report["matched"] == len(
        jax.tree.leaves(variables)
    )
    for weights in ("ema", "raw"):  # there is one set
        model, found, meta = checkpoint.load_pretrained(out, weights=weights)
        jax.tree.map(np.testing.assert_array_equal, found, variables)
    direct_model, direct, direct_meta = ev2.load_pretrained(source)
    jax.tree.map(np.testing.assert_array_equal, direct, variables)
    images = np.random.default_rng(0).normal(size=(2, 33, 33, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        jax.jit(model.apply)(found, images), jax.jit(direct_model.apply)(direct, images)
    )
    assert model.arch.padding == "symmetric" and meta["config"] is None
    assert meta["class_names"] == direct_meta["class_names"] == list("01234")
    found = meta["preprocessing"]
    assert (found["image_size"], found["eval_crop"]) == (224, "center")
    assert meta["source"]["format"] == "torch_resnet"


def test_blocks_and_padding_travel(variables, tmp_path):
    # As of a Keras ResNet, whose rows are not the table's.
    rows = [f"{b[:-1]}3" for b in BLOCKS]
    model = ev2.create_model(NAME, num_classes=5, blocks=rows, padding="same")
    meta = {
        "model": {
            "name": NAME,
            "num_classes": 5,
            "blocks": rows,
            "padding": "same",
        },
        "preprocessing": preprocessing.of_published("torch_resnet", model.arch),
        "class_names": list("abcde"),
        "config": None,
        "one_set": True,
    }
    checkpoint.save_weights(str(tmp_path / "out"), variables, meta)
    found, values, _ = checkpoint.load_pretrained(str(tmp_path / "out"))
    assert found.arch == model.arch
    images = jnp.ones((1, 32, 32, 3))
    np.testing.assert_array_equal(
        jax.jit(found.apply)(values, images), jax.jit(model.apply)(variables, images)
    )


def cut_weights(folder):
    for file in (folder / "state").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:500])


def change_meta(**changes):
    def change(folder):
        (file,) = [f for f in (folder / "meta").rglob("*") if f.name == "metadata"]
        meta = json.loads(file.read_text())
        for key, value in changes.items():
            meta[key] = value
        file.write_text(json.dumps(meta))

    return change


# What the library left running when it failed says so later, by itself.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "damage, complaint",
    [
        (lambda folder: shutil.rmtree(folder / "state" / "d"), "cannot be read"),
        (cut_weights, "cannot be read"),
        (change_meta(preprocessing={"image_size": 224}), "cannot be read"),
        (change_meta(class_names=["a"]), "one name for each class"),
        (
            change_meta(model={"name": NAME, "num_classes": 5, "blocks": BLOCKS[:1]}),
            "damaged",
        ),
    ],
)
def test_a_damaged_checkpoint_is_one_line(damage, complaint, source, tmp_path):
    out = tmp_path / "out"
    convert.convert_published(source, str(out), preprocessing={})
    damage(out)
    with pytest.raises(errors.InputError, match=complaint) as error:
        checkpoint.load_pretrained(str(out))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("classes", [None, 1000])
def test_a_new_head_has_no_names(classes, source, tmp_path):
    out = str(tmp_path / "out")
    options = {"num_classes": classes, "new_head": True}
    convert.convert_published(source, out, preprocessing={}, **options)
    names = checkpoint.load_pretrained(out)[2]["class_names"]
    assert names == [str(i) for i in range(classes or 5)]


def test_raw_values_are_asked_of_a_file_that_has_them(source, tmp_path):
    with pytest.raises(errors.InputError, match="raw: .* one set of weights"):
        convert.convert_published(
            source, str(tmp_path / "out"), preprocessing={}, averaged=False
        )
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(source, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    with pytest.raises(errors.InputError, match="exists and is left as it is"):
        convert.convert_published(source, str(kept), preprocessing={})
    assert list(kept.iterdir()) == []


def test_a_refused_source_leaves_nothing(tmp_path):
    (tmp_path / "weights.h5").write_bytes(b"nothing")
    with pytest.raises(errors.InputError, match="cut or damaged"):
        convert.convert_published(
            str(tmp_path / "weights.h5"), str(tmp_path / "out"), preprocessing={}
        )
    assert [path.name for path in tmp_path.iterdir()] == ["weights.h5"]


@pytest.mark.parametrize(
    "argv, line",
    [
        (["--mean=1,2", "--out=OUT"], "mean: 1,2 is not allowed"),
        (["--std=0.229", "--out=OUT"], "std: 0.229 is not allowed"),
        (["--image_size=99999", "--out=OUT"], "image_size: 99999 is not allowed"),
        (["--json=/nowhere/x.json", "--out=OUT"], "json: '/nowhere/x.json'"),
        ([f"--json={__file__}", "--out=OUT"], "is no JSON file"),
        (["--image_size=4", "--out=OUT"], "image_size: 4 is not allowed"),
        (["--interpolation=cubic", "--out=OUT"], "interpolation: 'cubic'"),
        (["--num_classes=7", "--out=OUT"], "5 classes"),
        (["--model=vgg", "--out=OUT"], "vgg"),
        (["--padding=valid", "--out=OUT"], "padding"),
        ([], "out"),
    ],
)
def test_bad_flags_are_one_line(argv, line, source, tmp_path, capsys):
    out = tmp_path / "out"
    argv = [word.replace("OUT", str(out)) for word in argv]
    assert cli.main(["convert", source, *argv]) == 2
    captured = capsys.readouterr()
    assert line in captured.err and captured.err.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("words, found", [([], "none"), (["a", "b"], "2 given")])
def test_one_source_is_converted(words, found, tmp_path, capsys):
    assert cli.main(["convert", *words, f"--out={tmp_path}/out"]) == 2
    assert f"SOURCE: {found}; write ev2 convert SOURCE" in capsys.readouterr().err


def test_the_command_reports_and_takes_another_preprocessing(source, tmp_path, capsys):
    out, report = tmp_path / "out", tmp_path / "report.json"
    argv = ["--mean=127", "--std=1,2,3", "--image_size=96", f"--json={report}"]
    assert cli.main(["convert", source, f"--out={out}", *argv]) == 0
    assert "resnet50 from torch_resnet names" in capsys.readouterr().out
    assert '"matched"' in report.read_text()
    preprocessing = checkpoint.load_pretrained(str(out))[2]["preprocessing"]
    assert preprocessing["mean"] == [127, 127, 127] and preprocessing["std"] == [
        1,
        2,
        3,
    ]
    assert preprocessing["image_size"] == 96
