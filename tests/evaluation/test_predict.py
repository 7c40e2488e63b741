"""Values against the network itself, order, and every kind of bad file."""

import json
import os
import re
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from ev2 import errors, sharding
from ev2.checkpoint import pretrained
from ev2.cli import main as cli
from ev2.evaluation import predict
from ev2.models import normalize
from tests.helpers import image_files
from tests.helpers import tiny_run as tiny

SIDE = 16
NAMES = ("n01440764", "n01443537", "my cat", "n02012849", "rose", "7")
SHOWN = ("tench", "goldfish", "my cat", "crane (bird)", "rose", "7")
IDS = ("n01440764", "n01443537", None, "n02012849", None, None)


def _config(**changes):
    basis = {"eval.image_size": SIDE, "data.mean": (120.0, 115.0, 100.0)}
    return tiny.make_config(**(basis | changes))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint whose EMA weights are twice the raw ones in the classifier."""
    workdir = tmp_path_factory.mktemp("run")

    def double(variables):
        params = dict(variables["params"])
        params["classifier"] = jax.tree.map(lambda x: 2 * x, params["classifier"])
        return {**variables, "params": params}

    return str(workdir), tiny.save_checkpoint(workdir, _config(), NAMES, ema=double)


def _pixels(seed: int) -> np.ndarray:
    """Noise that network and resizing see alike: it has the network's size."""
    return np.random.RandomState(seed).randint(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)


_encode = image_files.encode


def _write(folder, count: int) -> list[str]:
    paths = [folder / f"{i:02}.png" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(_encode(_pixels(i), "PNG"))
    return [str(path) for path in paths]


def _expected(variables, pixels: np.ndarray, factor: float = 1.0) -> np.ndarray:
    """Probabilities `[N, classes]` of images `[N, S, S, 3]`, step by step."""
    model, _, meta = pretrained.load_pretrained(variables[0])
    mean, std = (
        np.array(meta["preprocessing"][k], np.float32) for k in ("mean", "std")
    )
    logits = model.apply(variables[1], (pixels - mean) / std)
    exponentials = np.exp(factor * np.asarray(logits, np.float64))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("weights", "factor"), [("raw", 1.0), ("ema", 2.0)])
def test_the_networks_own_probabilities_in_the_order_given(
    saved, tmp_path, weights, factor
):
    paths = _write(tmp_path, 11)[::-1]
    pixels = np.stack([_pixels(i) for i in range(11)][::-1])
    expected = _expected(saved, pixels, factor)
    # Batches of 8, the simulated devices: the second one is padded.
    results = list(predict.predict(saved[0], paths, weights=weights, batch_size=3))
    assert [result["path"] for result in results] == paths
    for result, probabilities in zip(results, expected, strict=True):
        order = np.argsort(-probabilities)[:5]
        assert [entry["index"] for entry in result["top"]] == order.tolist()
        for entry in result["top"]:
            index = entry["index"]
            assert entry["name"] == SHOWN[index] and entry.get("id") == IDS[index]
            assert entry["probability"] == pytest.approx(
                probabilities[index], rel=1e-4, abs=1e-6
            )
    assert len({result["top"][0]["index"] for result in results}) > 1


def test_top_is_at_most_all_classes(saved, tmp_path):
    assert list(predict.predict(saved[0], [])) == []
    paths = _write(tmp_path, 1)
    for top, shown in ((1, 1), (6, 6), (1000, 6)):
        (result,) = predict.predict(saved[0], paths, top=top)
        assert len(result["top"]) == shown
    assert sum(p["probability"] for p in result["top"]) == pytest.approx(1.0, abs=1e-4)


def test_one_device_gives_what_eight_give(saved, tmp_path, monkeypatch):
    paths = _write(tmp_path, 5)
    eight = list(predict.predict(saved[0], paths, batch_size=2))
    devices = jax.devices()[:1]
    monkeypatch.setattr(predict.jax, "local_devices", lambda: devices)
    sizes = []
    to_global = sharding.to_global

    def note_size(mesh, batch):
        sizes.append(len(batch["image"]))
        return to_global(mesh, batch)

    monkeypatch.setattr(sharding, "to_global", note_size)
    one = list(predict.predict(saved[0], paths, batch_size=2))
    assert sizes == [2, 2, 2]
    _assert_alike(one, eight)


def _assert_alike(results, others):
    """The same classes, and probabilities equal but for rounding."""
    for mine, theirs in zip(results, others, strict=True):
        for a, b in zip(mine["top"], theirs["top"], strict=True):
            assert a | {"probability": 0} == b | {"probability": 0}
            assert a["probability"] == pytest.approx(b["probability"], rel=1e-4)


def test_one_program_for_all_batches(saved, tmp_path, monkeypatch):
    traced = []
    original = normalize.normalize

    def note(images, mean, std):
        traced.append(images.shape)
        return original(images, mean, std)

    monkeypatch.setattr(normalize, "normalize", note)
    list(predict.predict(saved[0], _write(tmp_path, 19), batch_size=8))
    assert traced == [(8, SIDE, SIDE, 3)]


def test_preprocessing_is_the_checkpoints(tmp_path):
    """EXIF and crop follow the checkpoint, not what the program would do by itself."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.asarray(Image.fromarray(_pixels(0)).resize((SIDE, SIDE)))
    plain, turned = tmp_path / "plain.jpg", tmp_path / "turned.jpg"
    plain.write_bytes(_encode(pixels, "JPEG"))
    turned.write_bytes(_encode(pixels, "JPEG", exif=exif))
    framed = np.zeros((24, 24, 3), np.uint8)  # 16 / (16 + 8) of 24 is the middle
    framed[4:20, 4:20] = _pixels(1)
    (tmp_path / "framed.png").write_bytes(_encode(framed, "PNG"))
    (tmp_path / "middle.png").write_bytes(_encode(_pixels(1), "PNG"))

    def tops(name, **changes):
        workdir = tmp_path / name
        tiny.save_checkpoint(workdir, _config(**changes), NAMES)
        names = ("plain.jpg", "turned.jpg", "framed.png", "middle.png")
        paths = [str(tmp_path / n) for n in names]
        return [result["top"] for result in predict.predict(str(workdir), paths)]

    plain, turned, framed, middle = tops("as-stored")
    assert turned == plain and framed != middle
    plain, turned, *_ = tops("upright", **{"data.exif": True})
    assert turned != plain
    center = {"data.eval_crop": "center", "data.eval_crop_padding": 8}
    *_, framed, middle = tops("center", **center)
    resized = {"data.eval_crop": "center", "data.eval_crop_padding": 0}
    *_, whole, middle = tops("whole", **resized)
    assert framed == middle != whole


BAD = {
    "text.jpg": (b"this is a text", "not an image of a known format"),
    "zero.png": (b"", "the file is empty"),
    "cut.jpg": (_encode(_pixels(0), "JPEG")[:-200], "the JPEG is cut short or damaged"),
    "cut.png": (_encode(_pixels(0), "PNG")[:-200], "the PNG is cut short or damaged"),
    "mid.png": (
        _encode(_pixels(0), "PNG").replace(b"IDAT", b"XDAT"),
        "the PNG is damaged",
    ),
    "wave.webp": (b"RIFF\x24\0\0\0WAVEfmt ", "not an image of a known format"),
}


def test_bad_files_are_named_and_the_rest_done(saved, tmp_path):
    good = _write(tmp_path, 9)
    paths = []
    for name, (content, _) in BAD.items():
        (tmp_path / name).write_bytes(content)
        paths += [str(tmp_path / name), good[len(paths) // 2]]
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink(tmp_path / "gone", tmp_path / "link.png")
    for name in ("missing.png", "pipe.png", "link.png"):
        paths += [str(tmp_path / name), good[len(paths) // 2]]
    results = list(predict.predict(saved[0], paths, batch_size=8))
    reasons = [reason for _, reason in BAD.values()]
    reasons += ["no such file", "not a file", "cannot be read (No such file"]
    assert [result["path"] for result in results] == paths
    for result, reason in zip(results[::2], reasons, strict=True):
        assert set(result) == {"path", "error"} and result["error"].startswith(reason)
    _assert_alike(results[1::2], predict.predict(saved[0], good))


def test_output_that_is_not_finite_is_an_error(tmp_path):
    def spoil(variables):
        return jax.tree.map(lambda x: x * np.float32(np.nan), variables)

    tiny.save_checkpoint(tmp_path / "run", _config(), NAMES, ema=spoil)
    (result,) = predict.predict(str(tmp_path / "run"), _write(tmp_path, 1))
    assert result["error"] == "the network's output is not finite"


def _run(capsys, *argv):
    code = cli.main(["predict", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_command_prints_a_table_or_json_lines(saved, tmp_path, capsys):
    paths = _write(tmp_path, 3)
    (tmp_path / "02.png").write_bytes(b"")
    flag = f"--checkpoint={saved[0]}"
    code, out, err = _run(capsys, flag, str(tmp_path), "--top=2", "--json")
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["path"] for line in lines] == paths
    assert [len(line.get("top", ())) for line in lines] == [2, 2, 0]
    assert lines[2] == {"path": paths[2], "error": "the file is empty"}
    assert err == "ev2: 2 of 3 classified; 1 could not be read\n"
    code, out, err = _run(capsys, flag, "--top=2", *paths)
    expected = [["image", "class", "probability"]]
    for line in lines[:2]:
        best, second = line["top"]
        expected.append([line["path"], best["name"], f"{best['probability']:.2%}"])
        expected.append([second["name"], f"{second['probability']:.2%}"])
    expected.append([paths[2], "not read: the file is empty"])
    rows = [re.split("  +", row.strip()) for row in out.splitlines()]
    assert rows[:1] + rows[2:] == expected


def test_progress_bar_is_for_more_than_one_batch_and_never_among_lines(
    saved, tmp_path, capsys, monkeypatch
):
    flag, paths = f"--checkpoint={saved[0]}", _write(tmp_path, 12)
    code, out, err = _run(capsys, flag, "--batch_size=8", *paths)
    assert code == 0 and "12/12" in err and "img/s" in err
    assert _run(capsys, flag, "--batch_size=12", *paths) == (0, out, "")
    # stderr may be the same terminal or log file as stdout
    code, out, err = _run(capsys, flag, "--json", "--batch_size=8", *paths)
    assert code == 0 and out.count("\n") == 12 and err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, out, err = _run(capsys, flag, "--json", "--batch_size=8", *paths)
    assert code == 0 and out.count("\n") == 12 and "12/12" in err


@pytest.mark.parametrize(
    ("argv", "printed", "message"),
    [
        (["text.jpg"], 3, "text.jpg': not an image of a known format"),
        (["zero.png", "text.jpg"], 4, "zero.png': the file is empty; and 1 more"),
        (["empty"], 0, "empty': the folder holds no images"),
        (["*.gif", "gone"], 0, "*.gif': nothing matches; give files, folders or globs"),
        ([], 0, "IMAGE: none; write ev2 predict IMAGE"),
        (["text.jpg", "--image_size=7"], 0, "image_size: 7 is not allowed; give 8"),
        (["text.jpg", "--top=0"], 0, "top: 0 is not allowed; give 1 or more"),
        (["text.jpg", "--batch_size=0"], 0, "batch_size: 0 is not allowed; give 1"),
        (["text.jpg", "--weights=best"], 0, "weights"),
        (["text.jpg", "--json=out.json"], 0, "json"),
        (["text.jpg", "--checkpoint=/nowhere"], 0, "'/nowhere' holds no complete"),
        (
            ["text.jpg", "zero.png", "--batch_size=1", "--checkpoint=/nowhere"],
            0,  # and no bar
            "'/nowhere' holds no complete",
        ),
    ],
)
def test_bad_input(saved, tmp_path, capsys, monkeypatch, argv, printed, message):
    (tmp_path / "text.jpg").write_text("this is a text")
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    code, out, err = _run(capsys, f"--checkpoint={saved[0]}", *argv)
    assert code == 2 and out.count("\n") == printed
    assert err.startswith("ev2: ") and err.count("\n") == 1 and message in err


def test_features_have_no_classes(saved, monkeypatch):
    class Features:
        num_classes = 0

    monkeypatch.setattr(
        pretrained, "load_pretrained", lambda path, weights: (Features, {}, {})
    )
    with pytest.raises(errors.InputError, match="features and no classes"):
        predict.predict("run", ["a.png"])


def test_names_of_files_need_not_be_text(saved, tmp_path, capsys):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    with open(path, "wb") as file:
        file.write(_encode(_pixels(0), "PNG"))
    flag = f"--checkpoint={saved[0]}"
    code, out, _ = _run(capsys, flag, path)
    assert code == 0 and f"\n{tmp_path}/\N{REPLACEMENT CHARACTER}.png " in out
    code, out, _ = _run(capsys, flag, "--json", path)
    assert code == 0 and json.loads(out)["path"] == path
