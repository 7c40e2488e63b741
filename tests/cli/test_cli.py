"""Help, exit codes, and one clear line for bad input."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
from inspect import signature

import pytest

import ev2
from ev2 import config
from ev2.cli import commands, flags, help, recipe_keys
from ev2.cli import main as cli
from ev2.cli.commands import COMMANDS

ROOT = pathlib.Path(__file__).parents[2]
DEMO = f"--config={ROOT}/configs/demo.py"
IMAGENET = f"--config={ROOT}/configs/imagenet1k.py:s"  # declared: no TensorFlow
CHAIN = f"--config={ROOT}/configs/chain_demo.py"
SEARCH = f"--config={ROOT}/configs/search.py:tiny"


def _run(capsys, *argv):
    code = cli.main(argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_lists_every_command(capsys):
    code, out, _ = _run(capsys)
    assert code == 0 and _run(capsys, "--help") == (0, out, "")
    assert set(re.findall(r"^  (\S+(?: \S+)?)  ", out, re.MULTILINE)) == set(COMMANDS)
    code, out, _ = _run(capsys, "bench", "--help")
    assert code == 0 and "bench infer" in out and "evaluate" not in out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_usage_example_and_flags(capsys, name):
    code, out, _ = _run(capsys, *name.split(), "--help")
    assert code == 0 and out.startswith(f"usage: ev2 {name} ")
    assert max(map(len, out.splitlines())) <= 180
    values, names = flags.Values(), re.findall(r"^  --(?:\[no\])?(\w+)  ", out, re.M)
    command = commands.load(name)
    for flag in command.flags:
        flag.add(values, ())
    assert sorted(names) == sorted(values)
    example = re.search(rf"^example: ev2 {name} (.*)$", out, re.MULTILINE)
    assert example is not None
    parsed, words = flags.parse(command.flags, shlex.split(example[1]))
    assert bool(words) == bool(command.arguments) and parsed is not None


def test_help_with_a_recipe_explains_its_keys(capsys):
    code, out, _ = _run(capsys, "train", IMAGENET, "--help", "--config.optimizer.lr=2")
    assert code == 0 and "--workdir" in out
    assert "  optimizer.lr = 2.0\n      peak learning rate per 256 images" in out
    assert re.search(r"  batch_size = 4096\n      Global images per step\.", out)
    for key in ("epochs", "steps"):  # one comment above both
        assert re.search(rf"  {key} = .*\n      Length of the run: exactly one", out)
    code, out, _ = _run(capsys, "search", SEARCH, "--help")
    assert code == 0 and "  proxy = a recipe, with the keys of ev2/config.py" in out
    assert "  trials = 40\n      candidates" in out  # explained in the recipe itself


def test_every_key_of_a_run_is_explained():
    text = recipe_keys.format_keys(config.default_config(), str(ROOT / "ev2/config.py"))
    keys = re.findall(r"^  ([\w.]+) = ", text, re.MULTILINE)
    explained = re.findall(r"^  ([\w.]+) = .*\n      \S", text, re.MULTILINE)
    assert len(keys) >= 80 and sorted(set(keys) - set(explained)) == []


def test_version(capsys):
    assert _run(capsys, "--version") == (0, f"ev2 {ev2.__version__}\n", "")


def test_commands_as_markdown():
    text = help.describe_commands()
    assert [*re.findall(r"^### `ev2 (.*)`$", text, re.MULTILINE)] == [*COMMANDS]
    assert "| `--shard_mb` | Approximate size of a shard" in text


def test_functions_of_the_package_have_signatures_and_docstrings():
    assert {"create_model", "list_models", "load_pretrained"} <= {*dir(ev2)}
    assert "num_classes" in signature(ev2.create_model).parameters
    assert "Args:" in (ev2.create_model.__doc__ or "")
    with pytest.raises(TypeError, match="num_class'"):
        ev2.create_model("efficientnetv2-s", num_class=3)  # type: ignore[call-arg]
    with pytest.raises(AttributeError, match="has no attribute 'creat_model'"):
        _ = ev2.creat_model


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "command: 'trian' is not known; did you mean 'train'?"),
        (["fly"], "command: 'fly' is not known; choose one of train, chain"),
        (["plan"], "config"),
        (["report", "--workdir="], "workdir: missing; give --workdir=..."),
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
        (["prepare"], "choose one of imagenet1k, imagenet21k"),
        (["prepare", "imagenet1k", "--train=/nowhere.tar"], "out"),
        (["bench", "input", CHAIN], "ev2 chain runs it"),
        (["bench", "speed"], "'bench speed' is not known; choose one of step, infer"),
        (["bench", "stpe"], "'bench stpe' is not known; did you mean 'bench step'?"),
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


@pytest.mark.parametrize("argv", [["plan", IMAGENET], ["--help"], ["train", "--help"]])
def test_a_closed_pipe_is_no_error(argv):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "ev2", *argv],
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
