"""Weights without a run: converted, read back, refused; the command `ev2 convert`."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

import ev2
from ev2 import errors
from ev2.checkpoint import pretrained
from ev2.checkpoint.published import preprocessing
from ev2.cli import main as cli
from tests.helpers import command_line
from tests.helpers import published_files as published

NAME = "resnet50"
BLOCKS = ("r1_k3_s1_e4_i64_o32_c2", "r1_k3_s2_e4_i32_o64_c2")


@pytest.fixture(scope="module")
def variables():
    model = ev2.create_model(NAME, num_classes=5, blocks=BLOCKS)
    return published.random_variables(model)


@pytest.fixture
def source(variables, tmp_path):
    """A published file of a small network, which it names itself."""
    model = ev2.create_model(NAME, num_classes=5, blocks=BLOCKS)
    tensors = published.tensors("torch_resnet", model, variables)
    metadata = {"model": {"name": NAME, "blocks": BLOCKS, "padding": "symmetric"}}
    path = tmp_path / "weights.safetensors"
    safetensors.save_file(tensors, path, {"ev2": json.dumps(metadata)})
    return str(path)


def convert(source, out, **options):
    return pretrained.convert_published(source, str(out), **options)


def test_converted_weights_are_read_back(source, variables, tmp_path):
    out = str(tmp_path / "out")
    report = convert(source, out)
    leaves = len(jax.tree.leaves(variables))
    assert (report["model"], report["matched"]) == (NAME, leaves)
    for weights in ("ema", "raw"):  # there is one set
        model, loaded, meta = pretrained.load_pretrained(out, weights=weights)
        jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    direct_model, direct, direct_meta = ev2.load_pretrained(source)
    jax.tree.map(np.testing.assert_array_equal, direct, variables)
    images = np.random.default_rng(0).normal(size=(2, 33, 33, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        jax.jit(model.apply)(loaded, images),
        jax.jit(direct_model.apply)(direct, images),
    )
    assert model.arch.padding == "symmetric" and meta["config"] is None
    assert meta["class_names"] == direct_meta["class_names"] == list("01234")
    expected = meta["preprocessing"]
    assert (expected["image_size"], expected["eval_crop"]) == (224, "center")
    assert meta["source"]["format"] == "torch_resnet"


def test_blocks_and_padding_are_kept(variables, tmp_path):
    # As of a Keras ResNet, whose blocks differ from the table.
    blocks = [f"{block[:-1]}3" for block in BLOCKS]
    model = ev2.create_model(NAME, num_classes=5, blocks=blocks, padding="same")
    expected = preprocessing.of_published("torch_resnet", model.arch)
    meta = pretrained.make_metadata(model, tuple("abcde"), preprocessing=expected)
    pretrained.save_weights(str(tmp_path / "out"), variables, meta)
    loaded, values, _ = pretrained.load_pretrained(str(tmp_path / "out"))
    assert loaded.arch == model.arch
    images = jnp.ones((1, 32, 32, 3))
    np.testing.assert_array_equal(
        jax.jit(loaded.apply)(values, images), jax.jit(model.apply)(variables, images)
    )


def truncate_weights(folder):
    for file in (folder / "state").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:500])


def rename_a_class(folder):
    path = folder / "meta" / "metadata"
    path.write_text(path.read_text().replace('"4"', '"5"'))


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda folder: shutil.rmtree(folder / "state" / "d"), "No such file"),
        (truncate_weights, "has changed"),
        (rename_a_class, "meta/metadata has changed"),
        (lambda folder: (folder / "sums.json").unlink(), "sums.json: No such file"),
    ],
)
def test_a_corrupt_checkpoint_is_refused_in_one_line(damage, reason, source, tmp_path):
    out = tmp_path / "out"
    convert(source, out)
    damage(out)
    with pytest.raises(errors.InputError, match=f"is corrupt .*{reason}") as error:
        pretrained.load_pretrained(str(out))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("classes", [None, 1000])
def test_classes_of_a_new_head_are_numbered(classes, source, tmp_path):
    out = str(tmp_path / "out")
    convert(source, out, num_classes=classes, new_head=True)
    names = pretrained.load_pretrained(out)[2]["class_names"]
    assert names == [str(i) for i in range(classes or 5)]


def test_raw_values_are_refused_of_a_file_with_one_set(source, tmp_path):
    with pytest.raises(errors.InputError, match="raw: .* one set of weights"):
        convert(source, tmp_path / "out", averaged=False)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(source, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(errors.InputError, match="exists and is left as it is"):
        convert(source, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_refused_source_leaves_nothing(tmp_path):
    path = tmp_path / "weights.h5"
    path.write_bytes(b"nothing")
    with pytest.raises(errors.InputError, match="truncated or corrupt"):
        convert(str(path), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "argv, line",
    [
        (["--mean=1,2", "--out=OUT"], "mean: 1,2 is not allowed"),
        (["--std=0.229", "--out=OUT"], "std: 0.229 is not allowed"),
        (["--image_size=99999", "--out=OUT"], "image_size: 99999 is not allowed"),
        (["--json=/nowhere/x.json", "--out=OUT"], "json: '/nowhere/x.json'"),
        ([f"--json={__file__}", "--out=OUT"], "is not a JSON file"),
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
    assert line in command_line.refuse(capsys, "convert", source, *argv)
    assert not out.exists()


@pytest.mark.parametrize("words, found", [([], "none"), (["a", "b"], "2 given")])
def test_one_source_is_converted(words, found, tmp_path, capsys):
    error = command_line.refuse(capsys, "convert", *words, f"--out={tmp_path}/out")
    assert f"SOURCE: {found}; write ev2 convert SOURCE" in error


def test_the_command_reports_and_takes_another_preprocessing(source, tmp_path, capsys):
    out, report = tmp_path / "out", tmp_path / "report.json"
    argv = ["--mean=127", "--std=1,2,3", "--image_size=96", f"--json={report}"]
    assert cli.main(["convert", source, f"--out={out}", *argv]) == 0
    assert "resnet50 from torch_resnet names" in capsys.readouterr().out
    assert '"matched"' in report.read_text()
    expected = pretrained.load_pretrained(str(out))[2]["preprocessing"]
    assert (expected["mean"], expected["std"]) == ([127, 127, 127], [1, 2, 3])
    assert expected["image_size"] == 96
