"""python -m pytest tests/bench/test_table3.py

A fake compiler stands for libtpu: its images/s are given by network.
"""

import json
import re

import pytest

from ev2.bench import table3
from ev2.cli import main as cli
from ev2.models import arch
from ev2.tpu import cache as tpu_cache
from ev2.tpu import compile as tpu

NAMES = ["no fused", "fused stage 1-3", "fused stage 1-5", "fused stage 1-7"]
PAPER_SPEEDS = dict(zip(NAMES, (262, 362, 327, 254), strict=True))

VERSIONS = {"jax": "1", "jaxlib": "1", "libtpu": "2"}


class FakeCompiler:
    """Images/s by the number of fused rows; 0 does not fit, negative is a bound."""

    def __init__(self, speeds):
        self.speeds, self.requests = speeds, []

    def __call__(self, request: tpu.CompileRequest):
        self.requests.append(request)
        blocks = request.config["model"]["blocks"]
        speed = self.speeds[sum(block.endswith("_c1") for block in blocks)]
        source = "lower bound" if speed < 0 else "compiler"
        return {
            "fits": speed != 0,
            "images_per_second_per_device": abs(speed) or None,
            "step_seconds_from": source if speed else None,
            "compile_seconds": 60.0,
        }


@pytest.fixture(name="run")
def run_command(tmp_path, monkeypatch):
    """`ev2 bench fused` by the fake compiler: its JSON and the requests."""

    def run(speeds, *flags):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(tpu, "check_installed", lambda: None)
        monkeypatch.setattr(tpu_cache, "get_versions", lambda: VERSIONS)
        compiler = FakeCompiler(speeds)
        monkeypatch.setattr(tpu, "compile_apart", compiler)
        path = tmp_path / "fused.json"
        assert cli.main(["bench", "fused", *flags, f"--json={path}"]) == 0
        return json.loads(path.read_text()), compiler.requests

    return run


@pytest.mark.parametrize(
    "last, params, multiply_adds",
    [(0, 19.3e6, 4.5e9), (3, 20.0e6, 7.5e9), (5, 43.4e6, 21.3e9), (7, 132.0e6, 34.4e9)],
)
def test_parameters_and_flops_are_the_papers(last, params, multiply_adds):
    # paper, Table 3.
    network = table3.fuse(last)
    assert arch.count_params(network, 1000) == pytest.approx(params, rel=0.021)
    counted = arch.count_multiply_adds(network, 1000, 380)
    assert counted == pytest.approx(multiply_adds, rel=0.03)


def test_only_the_first_rows_are_fused():
    rows, own = table3.fuse(5).stages, arch.get("efficientnet-b4").stages
    assert [row.operator for row in rows] == ["fused_mbconv"] * 5 + ["mbconv"] * 2
    assert [row.kernel for row in rows] == [3, 3, 3, 3, 5, 5, 3]
    assert [row.se_ratio for row in rows] == [0.0] * 5 + [0.25] * 2
    assert rows[5:] == own[5:] and table3.fuse(0) == arch.get("efficientnet-b4")
    assert [row.layers for row in rows] == [row.layers for row in own]


def test_the_command_compiles_four_networks_beside_the_paper(run, capsys):
    figures, requests = run({0: 524.0, 3: 724.0, 5: 654.0, 7: 127.0})
    assert len(requests) == 4
    assert {(j.image_size, j.batch_size, j.slice_name) for j in requests} == (
        {(380, 32 * 8, "v3-8")}
    )
    for request in requests:
        model = request.config["model"]
        assert (model["name"], model["dtype"]) == ("efficientnet-b4", "bfloat16")
    assert figures["platform"] == "v3-8" and figures["versions"] == VERSIONS
    assert (figures["image_size"], figures["batch_size"]) == (380, 32)
    rows = figures["results"]
    assert [row["name"] for row in rows] == NAMES
    assert {r["name"]: r["paper_images_per_second"] for r in rows} == PAPER_SPEEDS
    assert [row["ratio"] for row in rows] == [2.0, 2.0, 2.0, 0.5]
    assert figures["rank_correlation"] == pytest.approx(1.0)
    assert figures["misordered"] == []
    out, err = capsys.readouterr()
    assert "4 programs to compile" in err and "4 of 4" in err and NAMES[1] in err
    row = "| no fused | 19.3 | 19.3 | 4.4 | 4.5 | 524 | 262 | 2.00 |"
    assert row.split() in [line.split() for line in out.splitlines()]
    assert "380 px, 32 images a core, v3-8 (jax 1, libtpu 2)" in out
    assert "rank correlation 1.00; in the wrong order: none" in out


def test_another_batch_size_and_slice(run):
    figures, requests = run(
        {0: 1.0, 3: 2.0, 5: 3.0, 7: 4.0}, "--tpu=v3-32", "--batch=16", "--size=192"
    )
    assert {(j.image_size, j.batch_size, j.slice_name) for j in requests} == (
        {(192, 16 * 32, "v3-32")}
    )
    # A quarter of the area: paper, Table 3, less the 2 % that it counts more.
    counted = figures["results"][0]["multiply_adds"]
    assert counted == pytest.approx(4.5e9 / 4, rel=0.03)


def test_where_the_order_fails(run, capsys):
    # Ranks 4, 3, 2, 1 of ours and 2, 4, 3, 1 of the paper: 1 - 6 * 6 / 60.
    figures, _ = run({0: 400.0, 3: 300.0, 5: 200.0, 7: -100.0})
    assert figures["rank_correlation"] == pytest.approx(0.4)
    assert figures["misordered"] == [NAMES[:2], [NAMES[0], NAMES[2]]]
    out = capsys.readouterr().out
    assert "0.40; in the wrong order: no fused and fused stage 1-3; no fused and" in out
    assert re.search(r"\| +<100 \| +254 \| +0.39 \|", out)
    assert "fused stage 1-7: the compiler's time is not a positive number" in out


def test_what_does_not_fit_says_so_and_has_no_rank(run, capsys):
    figures, _ = run({0: 100.0, 3: 300.0, 5: 200.0, 7: 0})
    assert not figures["results"][3]["fits"]
    assert figures["results"][3]["ratio"] is None
    assert figures["rank_correlation"] == pytest.approx(1.0)
    out, err = capsys.readouterr()
    assert re.search(r"\| +does not fit \| +254 \| +- \|", out)
    assert "does not fit" in err


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--tpu=v3-33", "there is no slice 'v3-33'"),
        ("--tpu=v4-8", "tpu: 'v4-8' is not allowed"),
        ("--batch=0", "batch: 0 is not allowed"),
        ("--size=4", "size: 4 is not allowed"),
        ("--size=big", "size"),
        ("--batch=32", "tpu: libtpu, the compiler, is not installed"),
    ],
)
def test_the_command_refuses(flag, message, monkeypatch, capsys):
    monkeypatch.setattr(tpu.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["bench", "fused", flag]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
