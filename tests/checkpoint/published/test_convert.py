"""Conversion of published files, made here from our tensors by each format's names.

test_parity.py tests names and arithmetic against the publishers; golden/ lists names
and shapes of the released code's variables.
"""

import json
import pathlib
import tarfile

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

import ev2
from ev2 import errors
from ev2.checkpoint.published import convert
from ev2.export import safetensors as exported
from ev2.export import servable
from tests.helpers import published_files as published

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
NAME = "efficientnetv2-tiny"
MODEL = published.network()
VARIABLES = published.random_variables(MODEL)
AVERAGED = published.random_variables(MODEL, seed=1)


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    """Shrinks the network, which files are detected as."""
    published.shrink(monkeypatch, {NAME: published.BLOCKS})


def of(scheme, variables=VARIABLES):
    return published.tensors(scheme, MODEL, variables)


def assert_same(result, wanted):
    assert jax.tree.structure(result) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, result, wanted)


def write_safetensors(path, values):
    safetensors.save_file(values, path)


def write_small(folder, values=None) -> str:
    """Writes `values`, by default timm's form of the small network."""
    path = folder / "small.safetensors"
    write_safetensors(path, of("timm") if values is None else values)
    return str(path)


@pytest.mark.parametrize(
    "scheme, file, write",
    [
        ("keras", "old.h5", published.write_keras_h5),
        ("keras", "new.weights.h5", published.write_keras_v3),
        ("keras", "new.keras", published.write_keras_archive),
        ("timm", "small.safetensors", write_safetensors),
    ],
)
def test_format_and_network_are_found(scheme, file, write, tmp_path):
    write(tmp_path / file, of(scheme))
    result = convert.convert(str(tmp_path / file))
    model = result.model
    assert (model.name, model.num_classes) == (NAME, published.CLASSES)
    assert_same(result.variables, VARIABLES)
    report = result.report
    leaves = len(jax.tree.leaves(VARIABLES))
    assert (report["format"], report["matched"]) == (scheme, leaves)
    assert report["missing"] == []
    assert [note[:17] for note in report["notes"]] == (
        ["read as timm's tf"] if scheme == "timm" else []
    )
    kernels = sum(leaf.ndim > 1 for leaf in jax.tree.leaves(VARIABLES))
    depthwise = 3  # the only kernels that TensorFlow's axes need to be turned for
    assert report["transposed"] == (depthwise if scheme == "keras" else kernels)


@pytest.fixture
def released(tmp_path):
    """A checkpoint as the released code saves it, and its prefix."""
    (tmp_path / "released").mkdir()
    prefix = tmp_path / "released" / "model.ckpt-7"
    raw, averaged = of("released"), of("released", AVERAGED)
    published.write_released(prefix, "efficientnetv2-own", raw, averaged)
    return prefix


def test_a_released_checkpoint_gives_its_ema_weights(released, tmp_path):
    archive = tmp_path / "released.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(released.parent, "somewhere/inside")
    for path in (released, released.parent, archive):
        result = convert.convert(str(path))
        assert_same(result.variables, AVERAGED)
        raw = convert.convert(str(path), averaged=False)
        assert_same(raw.variables, VARIABLES)
    skipped = {t["name"]: t["reason"] for t in result.report["skipped"]}
    assert skipped["global_step"] == "not of the network"
    stem = "efficientnetv2-own/stem/conv2d/kernel"
    assert skipped[stem] == "raw; the average is used"
    assert f"{stem}/RMSProp" in skipped


@pytest.mark.parametrize("name", ["efficientnetv2-b0", "efficientnet-b2"])
def test_the_released_names_are_covered(name, tmp_path):
    listed = json.loads((GOLDEN / f"{name}.json").read_text())["variables"]
    random = np.random.default_rng(0)
    raw = {  # in (0, 1): variances are among them
        name: random.random(shape, np.float32) * 0.1
        for name, shape in listed
        if name != "global_step"
    }
    averaged = {key: value + 1 for key, value in raw.items()}
    plain = {key.partition("/")[2]: value for key, value in averaged.items()}
    published.write_released(
        tmp_path / "model",
        name,
        {key.partition("/")[2]: value for key, value in raw.items()},
        plain,
    )
    result = convert.convert(str(tmp_path), name)
    assert result.report["matched"] == len(averaged)
    assert result.model.num_classes == 1000
    stem = result.variables["params"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(stem, plain["stem/conv2d/kernel"])
    assert all(leaf.min() >= 1 for leaf in jax.tree.leaves(result.variables))


def test_the_newest_of_several_checkpoints_is_taken(tmp_path):
    folder = tmp_path / "released"
    folder.mkdir()
    for step in (9999, 10000):  # by number, not by name
        values = of("released") | {"head_1/dense/bias": np.full(5, step, np.float32)}
        prefix = folder / f"model.ckpt-{step}"
        published.write_released(prefix, "own", of("released"), values)
    (folder / "checkpoint").unlink()
    with tarfile.open(tmp_path / "released.tgz", "w:gz") as tar:
        tar.add(folder, "released")

    def bias(path):
        return convert.convert(str(path)).variables["params"]["classifier"]["bias"][0]

    assert bias(folder) == bias(tmp_path / "released.tgz") == 10000
    # Where there is a file that names one, it decides, in an archive too.
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-9999"\n')
    with tarfile.open(tmp_path / "named.tgz", "w:gz") as tar:
        tar.add(folder, "released")
    assert bias(folder) == bias(tmp_path / "named.tgz") == 9999
    (folder / "checkpoint").write_bytes(b"\xff\xfe")
    assert bias(folder) == 10000


def test_folding_leaves_the_logits_alone(tmp_path, monkeypatch):
    # Biases before a normalization, another epsilon, BGR: Keras's ResNets.
    blocks = ("r1_k3_s1_e4_i64_o32_c3", "r2_k3_s2_e4_i32_o64_c3")
    model = published.network("resnet50", blocks=blocks)
    variables = published.random_variables(model)
    values = published.tensors("keras_resnet", model, variables)
    values["conv1_conv/bias"] = np.linspace(-1, 1, 64, dtype=np.float32)
    values["conv3_block1_2_conv/bias"] = np.linspace(-1, 1, 16, dtype=np.float32)
    published.shrink(monkeypatch, {"resnet50": [f"{b[:-1]}2" for b in blocks]})
    published.write_keras_v3(tmp_path / "resnet.weights.h5", values)
    result = convert.convert(str(tmp_path / "resnet.weights.h5"))
    assert result.model.arch.stages == model.arch.stages  # the stride in the first 1x1
    stem = result.variables["batch_stats"]["stem"]["norm"]["mean"]
    mean = variables["batch_stats"]["stem"]["norm"]["mean"]
    np.testing.assert_allclose(stem, mean - values["conv1_conv/bias"])
    kernel = result.variables["params"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel[:, :, ::-1], values["conv1_conv/kernel"])
    assert len(result.report["notes"]) == 3
    assert result.preprocessing["mean"] == (123.68, 116.779, 103.939)


def test_another_epsilon_is_folded_into_the_scale(tmp_path):
    path = write_small(tmp_path)
    result = convert.convert(path, padding="symmetric").variables
    norm, stats = (v["stem"]["norm"] for v in (result["params"], result["batch_stats"]))
    before = VARIABLES["params"]["stem"]["norm"]["scale"]
    np.testing.assert_allclose(
        norm["scale"] / np.sqrt(stats["var"] + 1e-3),
        before / np.sqrt(stats["var"] + 1e-5),
        rtol=1e-6,
    )
    assert convert.convert(path, padding="symmetric").model.arch.padding == "symmetric"


def test_a_new_head_only_when_asked(tmp_path):
    path = write_small(tmp_path)
    with pytest.raises(errors.InputError, match="num_classes: 7, but .* 5 classes"):
        convert.convert(path, num_classes=7)
    result = convert.convert(path, num_classes=7, new_head=True)
    assert result.variables["params"]["classifier"]["kernel"].shape == (256, 7)
    assert_same(result.variables["params"]["head"], VARIABLES["params"]["head"])
    assert {tensor["name"] for tensor in result.report["skipped"]} == {
        *("classifier.weight", "classifier.bias")
    }
    bare = convert.convert(path, num_classes=0)
    assert "classifier" not in bare.variables["params"]
    assert bare.model.num_classes == 0


@pytest.mark.parametrize("classes", [1000, 21_843])
def test_heads_of_imagenet(classes, tmp_path):
    values = of("timm") | {
        "classifier.weight": np.ones((classes, 256), np.float32),
        "classifier.bias": np.arange(classes, dtype=np.float32),
    }
    model, variables, meta = ev2.load_pretrained(write_small(tmp_path, values))
    assert model.num_classes == classes == len(meta["class_names"])
    assert variables["params"]["classifier"]["kernel"].shape == (256, classes)
    # 1,000 are ILSVRC2012's, by WordNet id; nobody has a sure list of the 21,843.
    assert meta["class_names"][1] == ("n01443537" if classes == 1000 else "1")


def test_layers_after_the_network_are_skipped_with_a_new_head(tmp_path):
    values = {k: v for k, v in of("keras").items() if "predictions" not in k}
    values |= {"dense/kernel": np.ones((256, 3)), "dense/bias": np.ones(3)}
    published.write_keras_v3(tmp_path / "own.keras.h5", values)
    path = str(tmp_path / "own.keras.h5")
    with pytest.raises(errors.InputError, match="it also has dense/bias"):
        convert.convert(path, NAME)
    result = convert.convert(path, NAME, num_classes=7, new_head=True)
    assert result.variables["params"]["classifier"]["kernel"].shape == (256, 7)
    skipped = {t["name"]: t["reason"] for t in result.report["skipped"]}
    assert skipped["dense/kernel"] == "our network has no such tensor"


def test_values_that_are_not_finite_are_refused(tmp_path):
    bad = np.full((16, 3, 3, 3), np.nan, np.float32)
    path = write_small(tmp_path, spoilt(conv_stem__weight=bad))
    with pytest.raises(errors.InputError, match="conv_stem.weight is not finite"):
        convert.convert(path)


@pytest.mark.parametrize("scheme", ["keras", "efficientnet_pytorch"])
def test_padding_is_refused_where_the_format_has_its_own(scheme, tmp_path):
    if scheme == "keras":
        path = str(tmp_path / "own.h5")
        published.write_keras_h5(path, of("keras"))
    else:
        blocks = ("r1_k3_s1_e1_i16_o16", "r1_k3_s2_e6_i16_o24")
        model = published.network(blocks=blocks)
        variables = published.random_variables(model)
        path = write_small(tmp_path, published.tensors(scheme, model, variables))
    with pytest.raises(errors.InputError, match=f"padding: {scheme} networks have"):
        convert.convert(path, padding="symmetric")


def test_a_file_that_was_exported_brings_everything_back(tmp_path):
    source = servable.Servable(
        model=MODEL,
        variables=VARIABLES,
        mean=(1, 2, 3),
        std=(4, 5, 6),
        image_size=40,
        metadata={
            "model": {"name": NAME, "num_classes": 5, "blocks": published.BLOCKS},
            "preprocessing": {"mean": [1, 2, 3], "std": [4, 5, 6], "image_size": 40},
            "class_names": list("abcde"),
        },
    )
    exported.write(source, tmp_path / "own.safetensors")
    model, variables, meta = ev2.load_pretrained(tmp_path / "own.safetensors")
    assert_same(variables, VARIABLES)
    assert model.arch.stages == MODEL.arch.stages
    assert meta["class_names"] == list("abcde")
    result = meta["preprocessing"]
    assert (result["mean"], result["std"]) == ([1, 2, 3], [4, 5, 6])
    assert result["image_size"] == 40


def test_a_file_without_a_classifier_gives_features(tmp_path):
    values = {k: v for k, v in of("timm").items() if not k.startswith("classifier")}
    result = convert.convert(write_small(tmp_path, values))
    assert result.model.num_classes == 0
    assert "classifier" not in result.variables["params"]


def spoilt(**changes):
    values = of("timm")
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            del values[name]
        else:
            values[name] = value
    return values


@pytest.mark.parametrize(
    "values, name, complaint",
    [
        (
            spoilt(conv_stem__weight=np.zeros((8, 3, 3, 3), np.float32)),
            NAME,
            r"conv_stem.weight is \(8, 3, 3, 3\), not \(16, 3, 3, 3\)",
        ),
        (spoilt(bn1__running_var=None), NAME, "it has no bn1.running_var"),
        (spoilt(blocks__0__9__bn=np.zeros(3)), NAME, "it also has blocks.0.9.bn"),
        (of("timm"), "efficientnetv2-b0", f"the file fits {NAME}"),
        (of("timm"), "resnet50", f"not of resnet50: .*; the file fits {NAME}"),
        ({"layer.weight": np.zeros(3)}, "", "tensors called layer.weight"),
        (of("timm"), "efficientnetv2-q", "model.name: 'efficientnetv2-q'"),
    ],
)
def test_a_file_of_something_else_is_refused(values, name, complaint, tmp_path):
    path = write_small(tmp_path, values)
    with pytest.raises(errors.InputError, match=complaint) as error:
        convert.convert(path, name)
    assert "\n" not in str(error.value)


def test_damaged_and_dangerous_files_are_refused(tmp_path, released):
    whole = tmp_path / "whole.safetensors"
    write_safetensors(whole, of("timm"))
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:5000])
    published.write_keras_v3(tmp_path / "whole.h5", of("keras"))
    cut = (tmp_path / "whole.h5").read_bytes()[:3000]
    (tmp_path / "cut.h5").write_bytes(cut)
    (tmp_path / "cut.keras").write_bytes(cut)
    (tmp_path / "cut.tgz").write_bytes(cut)
    data = next(released.parent.glob("*.data-*"))
    data.write_bytes(data.read_bytes()[:100])
    (tmp_path / "code.pth").write_bytes(
        b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00true\x85R."
    )
    cases = {
        "cut.safetensors": "truncated or corrupt",
        "cut.h5": "truncated or corrupt",
        "cut.keras": "truncated or corrupt",
        "cut.tgz": "truncated or corrupt",
        "released": "truncated or corrupt",
        "code.pth": "os.system",
        "nothing.h5": "does not exist",
        "small.txt": "is not a weight file",
    }
    (tmp_path / "small.txt").write_text("weights")
    for name, complaint in cases.items():
        with pytest.raises(errors.InputError, match=complaint) as error:
            convert.convert(str(tmp_path / name))
        assert "\n" not in str(error.value)


def test_a_checkpoint_without_averages_is_refused(tmp_path):
    published.write_released(tmp_path / "model", "own", of("released"), {})
    with pytest.raises(errors.InputError, match="no EMA weights"):
        convert.convert(str(tmp_path))
    assert_same(convert.convert(str(tmp_path), averaged=False).variables, VARIABLES)


@pytest.mark.parametrize(
    "mean, variance, wanted",
    [
        # A private network: the layer's values are used.
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), ((0.0,) * 3, (255.0,) * 3)),
        # A published network: the variance holds the standard deviation.
        (
            *((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ),
    ],
)
def test_keras_input_layer(mean, variance, wanted, tmp_path, monkeypatch):
    layer = "normalization_3"  # Keras counts the layers made so far
    blocks = ("r1_k3_s1_e1_i32_o16_se0.25",)
    model = published.network("efficientnet-b0", blocks=blocks)
    variables = published.random_variables(model)
    values = published.tensors("keras", model, variables) | {
        f"{layer}/mean": np.array(mean, np.float32),
        f"{layer}/variance": np.array(variance, np.float32),
    }
    published.write_keras_h5(tmp_path / "own.h5", values)
    published.shrink(monkeypatch, {"efficientnet-b0": blocks})
    result = convert.convert(str(tmp_path / "own.h5"), "efficientnet-b0")
    np.testing.assert_allclose(result.preprocessing["mean"], wanted[0], rtol=1e-6)
    np.testing.assert_allclose(result.preprocessing["std"], wanted[1], rtol=1e-6)
