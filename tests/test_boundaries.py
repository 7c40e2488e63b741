"""python -m pytest tests/test_boundaries.py

Holds the imports of ev2 to the plan of its rooms, by reading the source.
"""

import ast
import dataclasses
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TENSORFLOW = {"tensorflow", "tensorflow_datasets"}
ACCELERATED = {"jax", "jaxlib", "flax", "optax", "orbax", "clu"}


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported module; `late` if it is inside a function."""

    module: str  # as "ev2.data" or "jax"; modules of ev2 in full, others by root
    late: bool
    line: int


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((ROOT / "ev2").rglob("*.py"))}


def read_imports(path: pathlib.Path) -> list[Import]:
    tree = ast.parse(path.read_text())
    late = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            found.append(Import(_shorten(name), id(node) in late, node.lineno))
    return found


def _shorten(name: str) -> str:
    """ "jax.numpy" to "jax"; "ev2.sharding.Mesh" to "ev2.sharding"."""
    root = name.split(".")[0]
    if root != "ev2":
        return root
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


IMPORTS = {name: read_imports(path) for name, path in MODULES.items()}


def in_room(module: str, *rooms: str) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def offences(forbidden, *, modules, late_is_fine=False):
    """Lines "ev2.x:12 imports y" of `modules` that import what is `forbidden`."""
    return [
        f"{module}:{found.line} imports {found.module}"
        for module in modules
        for found in IMPORTS[module]
        if in_room(found.module, *forbidden) and not (found.late and late_is_fine)
    ]


def outside(*rooms):
    return [module for module in MODULES if not in_room(module, *rooms)]


def inside(*rooms):
    return [module for module in MODULES if in_room(module, *rooms)]


def test_rules_are_about_modules_that_exist():
    for room in ("ev2.models", "ev2.data", "ev2.arch", "ev2.progressive", "ev2.cli"):
        assert inside(room), room
    assert any(found.module == "flax" for found in IMPORTS["ev2.models.layers"])
    assert any(found.module == "jax" for found in IMPORTS["ev2.step"])


def test_flax_is_for_the_networks():
    assert not offences({"flax"}, modules=outside("ev2.models"))


def test_tensorflow_is_for_the_data():
    modules = outside("ev2.data")
    assert not offences(TENSORFLOW, modules=modules, late_is_fine=True)


def test_jax_is_not_for_the_data():
    assert not offences(ACCELERATED, modules=inside("ev2.data"))


def test_orbax_is_for_checkpoints():
    assert not offences({"orbax"}, modules=outside("ev2.checkpoint"))


@pytest.mark.parametrize(
    "room", ["ev2.errors", "ev2.arch", "ev2.class_names", "ev2.progressive"]
)
def test_pure_modules_need_the_standard_library_alone(room):
    allowed = {*sys.stdlib_module_names, "ev2", "ev2.errors"}
    for module in inside(room):
        wrong = [f for f in IMPORTS[module] if f.module not in allowed]
        assert not [found for found in wrong if not in_room(found.module, room)]


def test_ev2_itself_needs_the_standard_library_alone():
    # Its functions load what they return.
    early = [found for found in IMPORTS["ev2"] if not found.late]
    assert not [f for f in early if f.module not in sys.stdlib_module_names]


def test_nothing_in_ev2_knows_recipes_launching_or_tests():
    assert not offences({"configs", "launch", "tests"}, modules=MODULES)


def test_recipes_import_recipes_and_nothing_of_ev2():
    allowed = {*sys.stdlib_module_names, "configs", "ml_collections"}
    for path in (ROOT / "configs").glob("*.py"):
        wrong = [f for f in read_imports(path) if f.module not in allowed]
        assert not wrong, path.name


def test_launching_needs_nothing_heavy():
    # A laptop without JAX can launch; preflight loads it on the workers.
    allowed = {*sys.stdlib_module_names, "absl", "launch", "ev2.errors", "ev2.files"}
    for path in (ROOT / "launch").glob("*.py"):
        early = [found for found in read_imports(path) if not found.late]
        more = SWEEPING if path.name in SWEEPS else set()
        assert not [f for f in early if f.module not in allowed | more], path.name


# What sweeps have beside that: nothing heavy either.
SWEEPS = ("sweep.py", "asked.py", "results.py", "sweep_tpu.py")
SWEEPING = {"optuna", "ml_collections", "ev2.check", "ev2.storage", "ev2.trials"}
SWEEPING |= {"ev2.trial", "ev2.trial_files", "ev2.workers"}


def test_optuna_is_for_trials_and_search():
    search = ("ev2.nas", "ev2.bench.controllers")
    modules = outside("ev2.storage", "ev2.trials", *search)
    assert not offences({"optuna", "sqlalchemy"}, modules=modules)


# What may import a room: everything else must do without it.
@pytest.mark.parametrize(
    "room, importers",
    [
        ("ev2.cli", ["ev2.__main__"]),
        ("ev2.verbs", ["ev2.cli"]),
        ("ev2.train", ["ev2.verbs", "ev2.chain", "ev2.nas", "ev2.bench"]),
        ("ev2.chain", ["ev2.verbs"]),
        ("ev2.nas", ["ev2.verbs", "ev2.nas", "ev2.bench"]),
        ("ev2.bench", ["ev2.bench_verbs", "ev2.bench"]),
    ],
)
def test_rooms_that_few_may_enter(room, importers):
    assert not offences({room}, modules=outside(room, *importers))


# What a module at the bottom may take from ev2.
@pytest.mark.parametrize(
    "room, allowed",
    [
        ("ev2.models", ["ev2.models", "ev2.arch", "ev2.errors", "ev2.quiet"]),
        (
            "ev2.data",
            [
                *("ev2.data", "ev2.errors", "ev2.progressive", "ev2.class_names"),
                "ev2.quiet",
            ],
        ),
        ("ev2.losses", ["ev2.errors"]),
        ("ev2.metrics", ["ev2.errors"]),
        ("ev2.optim", ["ev2.errors", "ev2.progressive"]),
        ("ev2.sharding", ["ev2.errors"]),
        ("ev2.storage", ["ev2.errors"]),
        ("ev2.trials", ["ev2.errors", "ev2.storage"]),
        ("ev2.trial", ["ev2.errors", "ev2.trials", "ev2.trial_files"]),
        ("ev2.trial_files", []),
    ],
)
def test_lower_rooms_do_not_look_up(room, allowed):
    wrong = [
        f"{module}:{found.line} imports {found.module}"
        for module in inside(room)
        for found in IMPORTS[module]
        if in_room(found.module, "ev2") and not in_room(found.module, *allowed)
    ]
    assert not wrong


def test_imports_make_no_circle():
    graph = {
        module: {f.module for f in found if f.module in MODULES and not f.late}
        for module, found in IMPORTS.items()
    }
    done: set[str] = set()

    def visit(module, path):
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for imported in sorted(graph[module]):
                # A package's own modules may be imported by its __init__.
                if imported != "ev2" and not module.startswith(f"{imported}."):
                    visit(imported, [*path, module])
            done.add(module)

    for module in graph:
        visit(module, [])


def test_readme_lists_every_file():
    tree = (ROOT / "README.md").read_text().partition("## Files")[2]
    listed: dict[str, set[str]] = {}
    room = ""
    for line in tree.splitlines():
        room = line.split()[0] if line[:1].strip().isalpha() else room
        listed.setdefault(room, set()).update(
            word.strip(",") for word in line.split() if word.strip(",").endswith(".py")
        )
    scripts = [*(ROOT / "configs").glob("*.py"), *(ROOT / "launch").glob("*.py")]
    for path in [*MODULES.values(), *scripts]:
        if not path.name.startswith("__"):
            folder = f"{path.parent.relative_to(ROOT)}/"
            assert path.name in listed[folder], f"{folder}{path.name}"


def loaded_after(statement: str) -> set[str]:
    """Root packages in sys.modules after `statement` in a fresh interpreter."""
    code = f"import sys; {statement}; print(*{{m.split('.')[0] for m in sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_import_ev2_loads_nothing_heavy():
    loaded = loaded_after("import ev2; ev2.list_models()")
    assert not loaded & (ACCELERATED | TENSORFLOW | {"numpy", "matplotlib"})


def test_model_step_and_plan_do_without_tensorflow():
    loaded = loaded_after("from ev2 import models, plan, sharding, state, step, tpu")
    assert "jax" in loaded and not loaded & TENSORFLOW


def test_workers_of_a_search_do_without_tensorflow():
    loaded = loaded_after("from ev2.nas import search")
    assert "optuna" in loaded and not loaded & TENSORFLOW


def test_export_and_benches_load_what_a_format_needs_when_it_is_asked_for():
    loaded = loaded_after("from ev2 import export; from ev2.bench import infer, step")
    formats = {"onnx", "onnxruntime", "safetensors"}
    assert "jax" in loaded and not loaded & (TENSORFLOW | formats)
