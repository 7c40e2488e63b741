"""pytest tests/cli/test_cli.py

What people type: help, exit codes, one clear line for bad input.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from ev2.cli import main as cli

ROOT = pathlib.Path(__file__).parents[2]
DEMO = f"--config={ROOT}/configs/demo.py"
IMAGENET = f"--config={ROOT}/configs/imagenet1k.py:s"  # declared: no TensorFlow
CHAIN = f"--config={ROOT}/configs/chain_demo.py"


def _run(capsys, *argv):
    code = cli.main(argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_lists_the_verbs_that_exist(capsys):
    code, out, _ = _run(capsys)
    assert code == 0
    for verb in cli.VERBS:
        assert verb in out
        code, text, _ = _run(capsys, *verb.split(), "--help")
        assert code == 0 and text.startswith(f"ev2 {verb}")


def test_help_of_a_verb_with_subjects_lists_them(capsys):
    code, out, _ = _run(capsys, "bench", "--help")
    assert code == 0 and "bench infer" in out and "evaluate" not in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "trian"),
        (["plan"], "config"),
        (["plan", "--config=/nowhere.py"], "/nowhere.py"),
        (["plan", DEMO, "--config.optimizer.lrr=1"], "key 'lrr' is not known"),
        (["plan", DEMO, "--config.batch_size=many"], "batch_size"),
        (["plan", DEMO, "--config.batch_size=0"], "batch_size"),
        (
            ["plan", DEMO, "--config.model=s"],
            "model is a section; give --config.model.",
        ),
        (["plan", DEMO, "--config.model.name=vgg"], "vgg"),
        (["plan", DEMO, "--config.model.dtype=fp16"], "model.dtype: 'fp16'"),
        (["plan", DEMO, "--config.model.padding=none"], "model.padding: 'none'"),
        (["plan", DEMO, "--config.progressive.schedule=linear"], "linear"),
        (["plan", DEMO, "--colour=red"], "colour"),
        (["plan", DEMO, "extra"], "extra"),
        (["plan", f"--config={ROOT}/configs/imagenet1k.py:q"], "q"),
        (["plan", f"{DEMO}:s"], "takes nothing behind a colon"),
        (["plan", DEMO, "--json=/nowhere/plan.json"], "/nowhere/plan.json"),
        (["train", DEMO], "workdir"),
        (["train", DEMO, "--workdir=/proc/ev2"], "/proc/ev2"),
        (["evaluate", "--checkpoint=/nowhere"], "/nowhere"),
        (["evaluate"], "checkpoint"),
        (["evaluate", "--checkpoint=/nowhere", "--split=test"], "split"),
        (["evaluate", "--checkpoint=/nowhere", "a.jpg"], "a.jpg"),
        (["predict", __file__], "checkpoint"),
        (["predict", "--checkpoint=/nowhere", __file__], "/nowhere"),
        (["predict", "--checkpoint=/nowhere", "/nothing.jpg"], "/nothing.jpg"),
        (["predict", "--checkpoint=/nowhere"], "IMAGE"),
        (["report", "--workdir=/nowhere"], "/nowhere"),
        (["prepare", "mnist", "--source=/a", "--out=/b"], "mnist"),
        (["prepare", "--source=/a", "--out=/b"], "prepare"),
        (["prepare"], "fashion-mnist"),
        (["prepare", "imagenet1k", "--train=/nowhere.tar"], "out"),
        (["bench", "input", CHAIN], "ev2 chain runs it"),
        (["bench", "speed"], "'bench speed' is not known; after bench, name one of"),
        (["bench", "infer"], "--model or --checkpoint"),
        (["bench", "infer", "--model=vgg"], "vgg"),
        (["bench", "infer", "--model=resnet50", "--batch=0"], "batch: 0"),
        (["bench", "infer", "--model=resnet50", "--formats=safetensors"], "formats"),
        (["bench", "infer", "--model=resnet50", "--image_size=-1"], "image_size: -1"),
        (["export", "--checkpoint=/a", "--format=onnx"], "out"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, argv, message):
    code, out, err = _run(capsys, *argv)
    assert code == 2, (out, err)
    assert out == "" and err.count("\n") == 1 and message in err
    assert err.startswith("ev2: ")


def test_plan_prints_a_table_or_json(capsys, tmp_path):
    code, out, _ = _run(capsys, "plan", IMAGENET)
    assert code == 0
    for size in ("128", "185", "243", "300"):
        assert size in out
    path = tmp_path / "plan.json"
    code, out, _ = _run(capsys, "plan", DEMO, f"--json={path}")
    assert code == 0
    assert json.loads(path.read_text())["model"] == "efficientnetv2-tiny"


def test_a_reader_that_has_enough_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "ev2", "plan", IMAGENET],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_the_installed_command_works_from_another_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ev2", "plan", IMAGENET],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "efficientnetv2-s" in done.stdout
