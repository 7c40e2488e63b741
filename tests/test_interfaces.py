"""python -m pytest tests/test_interfaces.py (with -m "slow or not slow" for all)

Holds the public interfaces to tests/golden/interfaces.json: commands and flags, exit
codes, files of a run, keys and types of every JSON result, config keys, Python API.

The golden file lists what users and scripts rely on. More may be added to the program
freely; a line leaves the golden file only when an interface is withdrawn on purpose. So
that the inside can be rearranged, this file knows `python -m ev2`, `import ev2`, the
recipes by their paths and the files that commands write, and nothing else of ev2.
"""

import functools
import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

import ev2

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = json.loads((ROOT / "tests/golden/interfaces.json").read_text())
SMALL = " ".join(GOLDEN["small run"])  # two blocks, two stages, a save every 10 steps
RESULTS = GOLDEN["results"] | GOLDEN["slow results"]
KINDS = {
    "int": int,
    "float": float,
    "number": (int, float),
    "string": str,
    "bool": bool,
    "null": type(None),
    "list": list,
    "object": dict,
}


def differences(found, golden, where="") -> list[str]:
    """Returns what `found` lacks of `golden`, one line each.

    A golden object needs its keys, a golden list an element of each of its kinds and
    no element of another kind; a string names the kinds, as in "number|null".
    """
    if isinstance(golden, dict) and isinstance(found, dict):
        lines = [f"{where}.{key} is missing" for key in golden.keys() - found.keys()]
        for key in golden.keys() & found.keys():
            lines += differences(found[key], golden[key], f"{where}.{key}")
        return sorted(lines)
    if isinstance(golden, list) and isinstance(found, list):
        tried = [[differences(f, g, f"{where}[]") for g in golden] for f in found]
        lines = [line for row in tried if all(row) for line in min(row, key=len)]
        unmet = [i for i in range(len(golden)) if all(row[i] for row in tried)]
        return lines or [f"{where}[] has no element of kind {i}" for i in unmet]
    kinds = golden.split("|") if isinstance(golden, str) else [type(golden).__name__]
    if isinstance(found, bool):
        matches = "bool" in kinds
    else:
        matches = any(isinstance(found, KINDS.get(kind, ())) for kind in kinds)
    kind = type(found).__name__
    return [] if matches else [f"{where} is {kind}, not {' or '.join(kinds)}"]


def flatten(tree: dict, separator: str = ".", prefix: str = "") -> dict:
    """Returns the leaves of nested dicts by their joined keys."""
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        nested = isinstance(value, dict)
        flat |= flatten(value, separator, name + separator) if nested else {name: value}
    return flat


def assert_equal_bits(found, expected) -> None:
    """Asserts that two trees have the same keys, types and bits."""
    found, expected = flatten(found, "/"), flatten(expected, "/")
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == expected[name].dtype, name
        assert value.tobytes() == expected[name].tobytes(), name


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder for everything that the tests of this file write."""
    return tmp_path_factory.mktemp("interfaces")


@pytest.fixture(scope="module")
def start(home):
    """A function that starts `python -m ev2 COMMAND` and returns the process."""
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # and a single device
        "JAX_COMPILATION_CACHE_DIR": str(home / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    if environment.pop("PYTHONDONTWRITEBYTECODE", ""):  # imports take twice the time
        environment["PYTHONPYCACHEPREFIX"] = str(home / "bytecode")

    def start(command: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "ev2", *command.split()],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="module")
def run(start):
    """A function that runs a command, to exit code 0, and returns its stdout."""

    def run(command: str) -> str:
        process = start(command)
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, (command, err)
        return out

    return run


@pytest.fixture(scope="module")
def trained(home, run):
    """`home` with a finished run, its weights as safetensors, and some images."""
    for name in ("images/a", "images/b", "weights"):
        (home / name).mkdir(parents=True)
    for i in range(10):
        image = Image.new("RGB", (28, 28), (25 * i, 100, 0))
        image.save(home / f"images/{'ab'[i % 2]}/{i}.png")
    (home / "text.png").write_text("not an image")
    out = run(f"train {SMALL} --workdir={home}/run")
    assert str(home / "run/report.html") in out
    file = home / "weights/w.safetensors"
    run(f"export --checkpoint={home}/run --format=safetensors --out={file}")
    return home


def test_help_lists_every_command(run):
    out = run("--help")
    assert [c for c in GOLDEN["commands"] if not re.search(rf"\b{c}\b", out)] == []


@pytest.mark.parametrize("command", GOLDEN["commands"])
def test_a_command_has_its_flags(run, command):
    # "  --name: text" or "  --[no]name ..." at the start of a line.
    pattern = re.compile(r"^\s+--(?:\[no\])?(\w+)(?=[:=,\s]|$)", re.MULTILINE)
    found = pattern.findall(run(f"{command} --help"))
    assert set(GOLDEN["commands"][command]) - set(found) == set()


@pytest.mark.parametrize("command", GOLDEN["bad input"])
def test_bad_input_is_one_line_and_writes_nothing(start, tmp_path, command):
    process = start(command.format(home=tmp_path))
    out, err = process.communicate(timeout=600)
    assert (process.returncode, out) == (2, ""), err
    assert err.startswith("ev2: ") and err.find("\n") == len(err) - 1, err
    assert GOLDEN["bad input"][command] in err
    assert list(tmp_path.iterdir()) == []


def test_a_run_leaves_its_files(trained):
    files = GOLDEN["files of a run"]
    assert [name for name in files if not list((trained / "run").glob(name))] == []


@pytest.mark.parametrize(
    "name",
    [
        *GOLDEN["results"],
        *(pytest.param(n, marks=pytest.mark.slow) for n in GOLDEN["slow results"]),
    ],
)
def test_a_result_has_its_keys(trained, run, name):
    result = RESULTS[name]
    command = result["command"].format(home=trained, small=SMALL)
    out = run(command) if command else ""
    place = result["found in"]
    if place == "last line":
        found = json.loads(out.splitlines()[-1])
    elif place == "all lines":
        found = [json.loads(line) for line in out.splitlines()]
    else:
        text = pathlib.Path(place.format(home=trained)).read_text()
        by_line = place.endswith(".jsonl")
        found = [*map(json.loads, text.splitlines())] if by_line else json.loads(text)
    assert differences(found, result["keys"]) == []


@pytest.mark.slow
def test_a_report_can_be_drawn_again(trained, run):
    (trained / "run/report.html").unlink()
    run(f"report --workdir={trained}/run")
    assert (trained / "run/report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    "signals",
    [
        pytest.param((signal.SIGTERM, signal.SIGKILL), id="SIGTERM, then SIGKILL"),
        pytest.param((signal.SIGTERM,), id="SIGTERM", marks=pytest.mark.slow),
        pytest.param((signal.SIGKILL,), id="SIGKILL", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_ends_in_the_same_bits(trained, start, run, signals):
    workdir = trained / "-".join(["interrupted", *(sent.name for sent in signals)])
    command = f"train {SMALL} --workdir={workdir}"

    def saved() -> set[str]:
        return {p.name for p in workdir.glob("checkpoints/*") if p.name.isdigit()}

    for sent in signals:
        before, process = saved(), start(command)
        while not saved() - before and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(sent)
        err = process.communicate(timeout=300)[1]
        expected = 75 if sent == signal.SIGTERM else -sent
        assert process.returncode == expected, err
        assert saved() and not (workdir / "eval.json").exists()
    run(command)
    folders = (trained / "run", workdir)
    whole, resumed = (ev2.load_pretrained(folder)[1] for folder in folders)
    assert_equal_bits(resumed, whole)
    results = [json.loads((f / "eval.json").read_text()) for f in folders]
    assert results[0]["raw"] == results[1]["raw"]


def load_recipe(recipe: str) -> dict:
    """Returns the config of "FILE.py:ARGUMENT" by dotted keys, as JSON has it."""
    path, _, argument = recipe.partition(":")
    spec = importlib.util.spec_from_file_location("recipe", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(*([argument] if argument else []))
    return flatten(json.loads(json.dumps(config.to_dict())))


@pytest.mark.parametrize("recipe", GOLDEN["recipes"])
def test_a_recipe_has_every_key(recipe):
    assert differences(load_recipe(recipe), GOLDEN["config"]) == []


@pytest.mark.parametrize("recipe", GOLDEN["other configs"])
def test_a_config_of_many_runs_has_its_keys(recipe):
    assert differences(load_recipe(recipe), GOLDEN["other configs"][recipe]) == []


def test_a_run_writes_every_key_down(trained):
    written = json.loads((trained / "run/config.json").read_text())
    assert differences(flatten(written["config"]), GOLDEN["config"]) == []


def test_import_loads_no_framework():
    code = "import ev2, sys; sys.exit(len({'jax', 'tensorflow'} & {*sys.modules}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_networks_by_name():
    assert ev2.list_models() == GOLDEN["models"]
    model = ev2.create_model("efficientnetv2-b0", num_classes=1000)
    init = functools.partial(model.init, image_size=224)
    variables = jax.eval_shape(init, jax.random.key(0))
    assert set(variables) == {"params", "batch_stats"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), "float32")
    apply = functools.partial(model.apply, train=False)
    logits = jax.eval_shape(apply, variables, images)
    assert (logits.shape, logits.dtype) == ((2, 1000), np.float32)


def test_a_backbone_gives_its_maps():
    model = ev2.create_model("efficientnetv2-tiny", num_classes=0, dtype="bfloat16")
    init = functools.partial(model.init, image_size=32)
    apply = functools.partial(model.apply, train=False, endpoints=True)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), "float32")
    variables = jax.eval_shape(init, jax.random.key(0))
    features, ends = jax.eval_shape(apply, variables, images)
    assert features.dtype == np.float32 and features.shape == ends["features"].shape
    assert [ends[f"reduction_{i}"].shape[1] for i in (1, 2, 3)] == [16, 8, 4]


def test_weights_come_back_by_path(trained):
    model, variables, meta = ev2.load_pretrained(trained / "run")
    shapes = {k: list(v.shape) for k, v in flatten(variables, "/").items()}
    assert shapes == GOLDEN["variables"]
    assert differences(meta, GOLDEN["meta"]) == []
    images = np.zeros((2, 12, 12, 3), np.float32)
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    assert (logits.shape, logits.dtype) == ((2, 10), np.float32)
    _, published, meta = ev2.load_pretrained(str(trained / "weights/w.safetensors"))
    assert_equal_bits(published, variables)
    assert differences(meta, GOLDEN["published meta"]) == []
