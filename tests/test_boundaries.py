"""python -m pytest tests/test_boundaries.py

Holds the imports of ev2 to the plan of its packages, by reading the source.
"""

import ast
import dataclasses
import graphlib
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


# Packages and modules of ev2 that each may import, beside its own.
ALLOWED = {
    "errors": "",
    "config": "progressive",
    "files": "errors",
    "progressive": "errors",
    "sharding": "",
    "models": "errors",
    "data": "errors files",
    "checkpoint": "data errors files models",
    "evaluation": "checkpoint data errors models sharding",
    "export": "checkpoint data errors files models",
    "train": "checkpoint data errors evaluation files models progressive sharding",
    "report": "data errors files progressive train",
    "tpu": "data errors files models report sharding train",
    "sweeps": "checkpoint errors files report train",
    "nas": "data errors files models report sweeps tpu train",
    "bench": "checkpoint data errors export models nas progressive sharding tpu train",
    "cli": "bench checkpoint data errors evaluation export files models nas "
    "progressive report sweeps tpu train",
    "__main__": "cli",
}
# Libraries that one package alone may import, late or not.
LIBRARIES = {
    "flax": "models",
    "orbax": "checkpoint",
    "optuna": "sweeps nas bench",
    "sqlalchemy": "sweeps",
}


def package_of(module: str) -> str:
    """ "ev2.data.tar" to "data", "ev2" to ""."""
    return module.partition(".")[2].partition(".")[0]


def test_every_package_has_its_rule():
    assert {package_of(module) for module in MODULES} - {""} == set(ALLOWED)


def test_rules_make_no_circle():
    graph = {package: allowed.split() for package, allowed in ALLOWED.items()}
    assert list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_stay_in_the_packages_below(package):
    allowed = {"", package, *ALLOWED[package].split()}
    wrong = [
        f"{module}:{found.line} imports {found.module}"
        for module, imports in IMPORTS.items()
        for found in imports
        if package_of(module) == package
        and found.module in MODULES
        and package_of(found.module) not in allowed
    ]
    assert not wrong


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_stay_in_their_packages(library):
    users = {
        package_of(module)
        for module, imports in IMPORTS.items()
        if any(found.module == library for found in imports)
    }
    assert users and users <= set(LIBRARIES[library].split())


def test_data_does_without_accelerators_and_the_rest_without_tensorflow():
    for module, imports in IMPORTS.items():
        inside = package_of(module) == "data"
        wrong = ACCELERATED if inside else TENSORFLOW
        early = {found.module for found in imports if inside or not found.late}
        assert not early & wrong, module


@pytest.mark.parametrize("module", ["ev2", "ev2.progressive", "ev2.models.arch.table"])
def test_plain_modules_need_the_standard_library_alone(module):
    early = {found.module for found in IMPORTS[module] if not found.late}
    assert early <= {*sys.stdlib_module_names, *MODULES}


def test_launching_needs_nothing_heavy():
    # A laptop without JAX can launch; preflight loads it on the workers.
    heavy = {*ACCELERATED, *TENSORFLOW, "numpy"}
    for path in (ROOT / "launch").glob("*.py"):
        early = {found.module for found in read_imports(path) if not found.late}
        assert not early & heavy, path.name


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
    loaded = loaded_after(
        "from ev2 import sharding; from ev2.models import model; from ev2.tpu import "
        "compile; from ev2.train import plan, state, step"
    )
    assert "jax" in loaded and not loaded & TENSORFLOW


def test_workers_of_a_search_do_without_tensorflow():
    loaded = loaded_after("from ev2.nas import search")
    assert "optuna" in loaded and not loaded & TENSORFLOW


def test_export_and_benches_load_what_a_format_needs_when_it_is_asked_for():
    loaded = loaded_after(
        "from ev2.export import export; from ev2.bench import latency, step"
    )
    formats = {"onnx", "onnxruntime", "safetensors"}
    assert "jax" in loaded and not loaded & (TENSORFLOW | formats)
