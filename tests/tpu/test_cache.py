"""python -m pytest tests/tpu/test_cache.py"""

import dataclasses
import pathlib

import pytest

from ev2.tpu import cache as tpu_cache
from ev2.tpu import compile as tpu
from tests import test_boundaries

REQUEST = tpu.CompileRequest(
    config={"model": {"name": "x"}},
    num_classes=10,
    image_size=8,
    batch_size=16,
    slice_name="v3-8",
)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture(name="compiled")
def fake_compiler(monkeypatch):
    """The requests that were compiled; each step takes 0.1 s longer than the last."""
    requests = []

    def compile_apart(request):
        requests.append(request)
        return {"fits": True, "step_seconds": 0.1 * len(requests)}

    monkeypatch.setattr(tpu, "compile_apart", compile_apart)
    return requests


def test_a_step_is_compiled_once(tmp_path, compiled):
    first, second = tpu_cache.compile_cached(REQUEST), tpu_cache.compile_cached(REQUEST)
    assert first == {"fits": True, "step_seconds": 0.1, "cached": False}
    assert second == {**first, "cached": True}
    assert compiled == [REQUEST]
    assert [path.suffix for path in (tmp_path / "ev2" / "tpu").iterdir()] == [".json"]


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 32},
        {"image_size": 12},
        {"num_classes": 11},
        {"slice_name": "v3-32"},
        {"config": {"model": {"name": "y"}}},
    ],
)
def test_another_request_is_another_step(change):
    other = dataclasses.replace(REQUEST, **change)
    assert tpu_cache.make_key(other) != tpu_cache.make_key(REQUEST)


def test_versions_flags_and_sources_matter(monkeypatch):
    keys = {tpu_cache.make_key(REQUEST)}
    with monkeypatch.context() as patch:
        patch.setenv("LIBTPU_INIT_ARGS", "--xla_something")
        keys.add(tpu_cache.make_key(REQUEST))
    with monkeypatch.context() as patch:
        patch.setattr(tpu_cache, "get_versions", lambda: {"libtpu": "1"})
        keys.add(tpu_cache.make_key(REQUEST))
    with monkeypatch.context() as patch:
        patch.setattr(tpu_cache, "digest_sources", lambda: "0")
        keys.add(tpu_cache.make_key(REQUEST))
    assert len(keys) == 4


def test_a_damaged_file_is_compiled_again(compiled):
    tpu_cache.compile_cached(REQUEST)
    path = tpu_cache.get_folder() / f"{tpu_cache.make_key(REQUEST)}.json"
    path.write_text(path.read_text()[:20])
    assert not tpu_cache.compile_cached(REQUEST)["cached"]
    assert tpu_cache.compile_cached(REQUEST)["cached"]
    assert len(compiled) == 2


def test_the_sources_are_all_that_the_step_imports():
    imports = test_boundaries.IMPORTS
    reached, waiting = set(), ["ev2.tpu.compile", "ev2.train.compile"]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += [f.module for f in imports[module] if f.module in imports]
    root = test_boundaries.ROOT / "ev2"
    paths = {test_boundaries.MODULES[module].relative_to(root) for module in reached}
    paths = {path for path in paths if path.name != "__init__.py"}
    sources = {pathlib.Path(name) for name in tpu_cache.SOURCES}
    assert all((root / name).exists() for name in sources)
    assert {p for p in paths if not sources & {p, *p.parents}} == set()
    assert all(any(s in (p, *p.parents) for p in paths) for s in sources)
