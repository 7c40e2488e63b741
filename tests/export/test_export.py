"""Exports give the logits of the source in other runtimes, for any batch."""

import dataclasses
import json
import pathlib
import shutil
import types

import jax
import numpy as np
import pytest

import ev2
from ev2 import errors
from ev2.checkpoint import manager, pretrained
from ev2.checkpoint.published import convert
from ev2.cli import main as cli
from ev2.export import export, servable
from ev2.models import arch
from tests.helpers import command_line
from tests.helpers import published_files as published
from tests.helpers import tiny_run as tiny

MEAN, STD = (120.0, 116.0, 104.0), (58.0, 57.0, 56.0)
CLASSES = 10
# Every kind of block, both strides, kernels of 3 and 5, an even and an odd size.
NETWORKS = {
    "v2": ("efficientnetv2-tiny", tiny.BLOCKS, 16),
    "v1": (
        "efficientnetv2-tiny",
        ("r1_k3_s1_e1_i16_o16_se0.25", "r2_k5_s2_e6_i16_o24_se0.25"),
        17,
    ),
    "lite": ("efficientnet-lite0", ("r1_k3_s2_e6_i32_o24",), 16),
    "resnet": ("resnet50", ("r2_k3_s1_e4_i64_o64_c2", "r1_k3_s2_e4_i64_o128_c2"), 16),
}
FORMATS = sorted(export.FORMATS)


def make_servable(name, blocks=(), size=0, num_classes=CLASSES):
    model = ev2.create_model(name, num_classes=num_classes, blocks=blocks)
    return servable.Servable(
        model=model,
        variables=published.random_variables(model),
        mean=MEAN,
        std=STD,
        image_size=size or model.eval_image_size,
    )


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def source(request):
    return make_servable(*NETWORKS[request.param])


@pytest.fixture(scope="module")
def v2():
    return make_servable(*NETWORKS["v2"])


def expected_logits(source, images):
    """Returns the logits of the network on images normalized by hand."""
    normalized = (images.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    return np.asarray(jax.jit(source.model.apply)(source.variables, normalized))


def skip_without(format_name):
    try:
        export.check_installed(format_name)
    except errors.InputError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("format_name", FORMATS)
def test_every_format_gives_the_logits_of_the_source(source, format_name, tmp_path):
    skip_without(format_name)
    out = tmp_path / "new" / "model"
    report = export.write_checked(source, format_name, out)
    assert json.loads((tmp_path / "new" / "export.json").read_text()) == report
    assert report["format"] == format_name and report["passed"]
    assert report["max_abs_difference"] <= report["bound"]
    assert sorted(p.name for p in out.parent.iterdir()) == ["export.json", "model"]

    call = export.FORMATS[format_name].load(out, source)
    for count in (1, 5):
        images = source.random_images(count)
        expected = expected_logits(source, images)
        found = call(images)
        assert found.shape == (count, CLASSES) and found.dtype == np.float32
        assert np.abs(found - expected).max() <= 1e-4 * max(1, np.abs(expected).max())
    assert np.ptp(expected, axis=0).max() > 1e-2  # the logits depend on the images


def test_stablehlo_is_one_file_for_all_platforms(v2, tmp_path):
    export.write_checked(v2, "stablehlo", tmp_path / "model")
    exported = jax.export.deserialize(bytearray((tmp_path / "model").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    (images,) = exported.in_avals
    assert str(images.shape[0]) == "batch" and images.shape[1:] == (16, 16, 3)
    assert images.dtype == np.uint8
    text = exported.mlir_module()
    assert "feature_group_count = 32" in text  # for accelerators
    assert "stablehlo.gather" not in text  # the CPU's form is slices and sums


def test_saved_model_is_called_as_its_docstring_says(v2, tmp_path):
    out = tmp_path / "model"
    export.write_checked(v2, "saved_model", out)
    import tensorflow as tf

    loaded = tf.saved_model.load(str(out))
    images = v2.random_images(2)
    found = loaded(tf.constant(images)).numpy()
    np.testing.assert_allclose(found, expected_logits(v2, images), atol=1e-4)
    # Weights are variables of the module, not constants of its graph.
    bias = v2.variables["params"]["classifier"]["bias"].tobytes()
    assert bias not in (out / "saved_model.pb").read_bytes()
    assert bias in (out / "variables" / "variables.data-00000-of-00001").read_bytes()


def test_tflite_has_plain_operators_and_no_normalization(source, tmp_path):
    export.write_checked(source, "tflite", tmp_path / "model")
    import tensorflow as tf

    with pytest.warns(UserWarning, match="Interpreter is deprecated"):
        interpreter = tf.lite.Interpreter(str(tmp_path / "model"))
    operators = [node["op_name"] for node in interpreter._get_ops_details()]
    blocks = [block for _, block in source.model.arch.named_blocks]
    depthwise = sum(block.operator == arch.MBCONV for block in blocks)
    assert operators.count("DEPTHWISE_CONV_2D") == depthwise
    # TensorFlow Lite's convolutions pad as TensorFlow does; the rest is written out.
    symmetric = source.model.arch.padding == "symmetric"
    assert set(operators) <= {
        *("CAST", "SUB", "MUL", "ADD", "CONV_2D", "DEPTHWISE_CONV_2D", "LOGISTIC"),
        *("SUM", "RESHAPE", "FULLY_CONNECTED", "MAX_POOL_2D", "STRIDED_SLICE"),
        *(("PAD", "PADV2") if symmetric else ()),
        *(("RELU6",) if source.model.arch.activation == "relu6" else ()),
    }
    if not source.model.arch.is_resnet:
        skips = [r for r in blocks if r.stride == 1 and r.in_channels == r.out_channels]
        assert operators.count("ADD") == len(skips)  # and none of a normalization


def test_onnx_is_plain_and_folded(source, tmp_path):
    skip_without("onnx")
    import onnx

    export.write_checked(source, "onnx", tmp_path / "model")
    model = onnx.load(tmp_path / "model")
    (opset,) = model.opset_import
    assert (opset.domain, opset.version) == ("", 17)
    (images,), (logits,) = model.graph.input, model.graph.output
    for value, name in ((images, "images"), (logits, "logits")):
        assert value.name == name
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    operators = [node.op_type for node in model.graph.node]
    convolutions = [
        leaf for leaf in jax.tree.leaves(source.variables["params"]) if leaf.ndim == 4
    ]
    assert operators.count("Conv") == len(convolutions)
    assert operators.count("Transpose") == 1
    assert operators.count("Sub") == 1  # the images' mean: no normalization is left
    used = {name for node in model.graph.node for name in node.input}
    assert {constant.name for constant in model.graph.initializer} <= used


def test_onnx_refuses_an_unsupported_operation(v2, tmp_path):
    skip_without("onnx")

    def apply(variables, images, *, train):
        return jax.numpy.sort(images.mean((1, 2)), axis=-1)

    odd = types.SimpleNamespace(name="odd", apply=apply)
    strange = servable.Servable(
        model=odd, variables={}, mean=MEAN, std=STD, image_size=8
    )
    with pytest.raises(errors.InputError, match="'onnx' does not support .* sort"):
        export.write_checked(strange, "onnx", tmp_path / "model")
    assert not list(tmp_path.iterdir())


def perturbed(source):
    """Returns the network with one bias of the classifier moved by a thousandth."""
    variables = jax.tree.map(np.copy, source.variables)
    variables["params"]["classifier"]["bias"][3] += 1e-3
    return dataclasses.replace(source, variables=variables)


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_small_difference_is_found(v2, format_name, tmp_path):
    skip_without(format_name)
    out = tmp_path / "model"
    export.FORMATS[format_name].write(perturbed(v2), out)
    found = export.compare(v2, format_name, out)
    assert not found["passed"]
    assert found["max_abs_difference"] == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize("format_name", ["stablehlo", "tflite", "onnx", "safetensors"])
def test_a_changed_file_is_found(v2, format_name, tmp_path):
    skip_without(format_name)
    out = tmp_path / "model"
    export.write_checked(v2, format_name, out)
    bias = v2.variables["params"]["classifier"]["bias"]
    content = out.read_bytes()
    assert content.count(bias.tobytes()) == 1
    out.write_bytes(content.replace(bias.tobytes(), (bias + 1).tobytes()))
    found = export.compare(v2, format_name, out)
    assert not found["passed"]
    assert found["max_abs_difference"] == pytest.approx(1, rel=0.01)


def test_weights_are_held_to_the_bit(v2, tmp_path):
    skip_without("safetensors")
    variables = jax.tree.map(np.copy, v2.variables)
    kernel = variables["params"]["stem"]["conv"]["kernel"]
    kernel[0, 0, 0, 0] = np.nextafter(kernel[0, 0, 0, 0], np.float32(9))
    nudged = dataclasses.replace(v2, variables=variables)
    export.FORMATS["safetensors"].write(nudged, tmp_path / "model")
    found = export.compare(v2, "safetensors", tmp_path / "model")
    assert found["max_abs_difference"] < found["bound"]
    assert found["unequal_tensors"] == 1 and not found["passed"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns a run folder whose checkpoint has random weights."""
    workdir = tmp_path_factory.mktemp("run")
    source = make_servable(*NETWORKS["v2"])
    state = {**source.variables, "ema": source.variables}
    names = tuple(map(str, range(CLASSES)))
    metadata = pretrained.make_metadata(source.model, names, config=tiny.make_config())
    checkpoints = manager.Checkpoints(str(workdir), keep=1)
    checkpoints.save(state, 1, metadata)
    checkpoints.close()
    return workdir


def test_the_command_writes_file_and_report(saved, tmp_path, capsys):
    out = tmp_path / "model.shlo"
    argv = ["export", f"--checkpoint={saved}", "--format=stablehlo", f"--out={out}"]
    assert cli.main(argv) == 0
    assert str(out) in capsys.readouterr().out
    report = json.loads((tmp_path / "export.json").read_text())
    assert report["format"] == "stablehlo" and report["bytes"] == out.stat().st_size
    assert report["images"] == ["batch", 12, 12, 3] and report["classes"] == CLASSES
    assert 0 <= report["max_abs_difference"] <= report["bound"]
    # The path exists the second time.
    before = out.read_bytes()
    assert cli.main(argv) == 2
    assert "exists" in capsys.readouterr().err and out.read_bytes() == before


def test_preprocessing_comes_from_the_checkpoint(saved):
    _, _, meta = pretrained.load_pretrained(str(saved))
    source = servable.from_checkpoint(str(saved))
    assert list(source.mean) == meta["preprocessing"]["mean"]
    assert list(source.std) == meta["preprocessing"]["std"]
    assert source.image_size == 12 and source.metadata == meta


def test_a_mismatch_fails_with_its_size_and_deletes_nothing(
    saved, tmp_path, capsys, monkeypatch
):
    right = export.FORMATS["stablehlo"]
    wrong = right._replace(write=lambda s, path: right.write(perturbed(s), path))
    monkeypatch.setitem(export.FORMATS, "stablehlo", wrong)
    out = tmp_path / "model"
    argv = ["export", f"--checkpoint={saved}", "--format=stablehlo", f"--out={out}"]
    error = command_line.refuse(capsys, *argv, code=1)
    report = json.loads((tmp_path / "export.json").read_text())
    assert f"{report['max_abs_difference']:.3g}" in error
    assert out.is_file() and not report["passed"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "coreml"}, "format: 'coreml' is not known"),
        ({"checkpoint": "/nowhere"}, "checkpoint: '/nowhere'"),
        ({"out": "/proc/model"}, "out: '/proc/model' cannot be written"),
        ({"out": str(pathlib.Path(__file__) / "model")}, "cannot be written"),
        ({"out": __file__}, "exists"),
        ({"out": str(pathlib.Path(__file__).parent)}, "exists"),
    ],
)
def test_bad_flags_are_refused_before_computing(
    saved, tmp_path, changes, message, capsys, monkeypatch
):
    def nothing(*_, **__):
        raise AssertionError("computed something")

    monkeypatch.setattr(servable.Servable, "apply", nothing)
    flags = {"checkpoint": saved, "format": "tflite", "out": tmp_path / "m", **changes}
    assert cli.main(["export", *(f"--{key}={v}" for key, v in flags.items())]) == 2
    assert message in command_line.error_line(capsys)
    assert not list(tmp_path.iterdir())


def test_only_an_earlier_report_is_replaced(saved, tmp_path, capsys):
    def run(out):
        argv = [f"--checkpoint={saved}", "--format=stablehlo", f"--out={out}"]
        return cli.main(["export", *argv]), capsys.readouterr().err

    code, line = run(tmp_path / "export.json")
    assert code == 2 and "the path of the report" in line
    report = tmp_path / "export.json"
    report.write_text('{"mine": 1}')
    code, line = run(tmp_path / "model")
    assert code == 2 and "is not an export's report" in line
    assert list(tmp_path.iterdir()) == [report]
    assert report.read_text() == '{"mine": 1}'
    report.write_text('{"max_abs_difference": 0}')  # of another format
    code, _ = run(tmp_path / "model")
    assert code == 0 and '"stablehlo"' in report.read_text()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    without = export.FORMATS["onnx"]._replace(packages=("jax", "no_such_package"))
    monkeypatch.setitem(export.FORMATS, "onnx", without)
    with pytest.raises(errors.InputError, match="needs no_such_package.*export"):
        export.export("/nowhere", "onnx", str(tmp_path / "model"))


@pytest.mark.parametrize("format_name", ["stablehlo", "saved_model"])
def test_a_failed_write_leaves_nothing(v2, format_name, tmp_path, monkeypatch):
    def half(_, path):
        if format_name == "saved_model":
            (path / "variables").mkdir(parents=True)
        else:
            path.write_bytes(b"half")
        raise OSError("disk full")

    wrong = export.FORMATS[format_name]._replace(write=half)
    monkeypatch.setitem(export.FORMATS, format_name, wrong)
    with pytest.raises(OSError, match="disk full"):
        export.write_checked(v2, format_name, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(published.TIMM))
def test_timm_loads_the_weights_and_gives_the_same_logits(name, tmp_path):
    why = "timm or torch is not installed; pip install 'ev2[peers,export]'"
    torch = pytest.importorskip("torch", reason=why)
    timm = pytest.importorskip("timm", reason=why)
    skip_without("safetensors")
    from safetensors import torch as safetensors

    source = make_servable(name, size=96)
    out = tmp_path / "model.safetensors"
    report = export.write_checked(source, "safetensors", out)
    assert report["unequal_tensors"] == 0
    network = timm.create_model(published.TIMM[name], num_classes=CLASSES)
    network.load_state_dict(safetensors.load_file(out), strict=True)
    images = source.random_images(2)
    expected = expected_logits(source, images)
    normalized = (images.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    with torch.no_grad():
        batch = torch.from_numpy(normalized.transpose(0, 3, 1, 2).copy())
        found = network.eval()(batch).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())

    # And back, from a file that timm's side wrote.
    again = str(tmp_path / "again.safetensors")
    safetensors.save_file(network.state_dict(), again)
    back = convert.convert(again, name).variables
    jax.tree.map(np.testing.assert_array_equal, back, dict(source.variables))


def test_padding_unknown_to_timm_is_refused(tmp_path):
    model = ev2.create_model("resnet50", blocks=NETWORKS["resnet"][1], padding="same")
    source = dataclasses.replace(make_servable(*NETWORKS["resnet"]), model=model)
    with pytest.raises(errors.InputError, match="pads otherwise .*same"):
        export.write_checked(source, "safetensors", tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("name", ["efficientnetv2-b0", "efficientnet-b0", "resnet50"])
def test_at_true_size(name, format_name, tmp_path):
    skip_without(format_name)
    source = make_servable(name, num_classes=1000)
    report = export.write_checked(source, format_name, tmp_path / "model")
    assert report["passed"] and report["images"][1:] == [224, 224, 3]
    shutil.rmtree(tmp_path)
