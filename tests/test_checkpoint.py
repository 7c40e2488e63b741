"""python -m pytest tests/test_checkpoint.py

Weights without a run: written, read back, refused. A run's own checkpoints are in
test_train.py and test_evaluate.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

import ev2
from ev2 import arch, checkpoint, cli, errors
from tests import published

NAME = "resnet50"
BLOCKS = ("r1_k3_s1_e4_i64_o32_c2", "r1_k3_s2_e4_i32_o64_c2")


@pytest.fixture(scope="module")
def variables():
    model = ev2.create_model(NAME, num_classes=5, blocks=BLOCKS)
    return published.random_variables(model)


@pytest.fixture
def source(variables, tmp_path, monkeypatch):
    """A published file of a small network, which the table has for a while."""
    import dataclasses

    small = dataclasses.replace(arch.get(NAME), rows=arch.decode(BLOCKS))
    monkeypatch.setitem(arch.table._TABLE, NAME, small)
    model = ev2.create_model(NAME, num_classes=5)
    values = published.tensors("torch_resnet", model, variables)
    safetensors.save_file(values, tmp_path / "weights.safetensors")
    return str(tmp_path / "weights.safetensors")


def test_what_is_converted_is_read_back(source, variables, tmp_path):
    out = str(tmp_path / "out")
    report = checkpoint.convert_published(source, out, preprocessing={})
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
    preprocessing = meta["preprocessing"]
    assert (preprocessing["image_size"], preprocessing["eval_crop"]) == (224, "center")
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
        "preprocessing": {"image_size": 64},
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


def test_nothing_is_overwritten(source, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    with pytest.raises(errors.InputError, match="exists and is not overwritten"):
        checkpoint.convert_published(source, str(kept), preprocessing={})
    assert list(kept.iterdir()) == []


def test_a_refused_source_leaves_nothing(tmp_path):
    (tmp_path / "weights.h5").write_bytes(b"nothing")
    with pytest.raises(errors.InputError, match="cut or damaged"):
        checkpoint.convert_published(
            str(tmp_path / "weights.h5"), str(tmp_path / "out"), preprocessing={}
        )
    assert [path.name for path in tmp_path.iterdir()] == ["weights.h5"]


@pytest.mark.parametrize(
    "argv, line",
    [
        (["--mean=1,2", "--out=OUT"], "mean: 1,2 is not allowed"),
        (["--std=0", "--out=OUT"], "std: 0 is not allowed"),
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
