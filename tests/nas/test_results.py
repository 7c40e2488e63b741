"""python -m pytest tests/nas/test_results.py"""

import json
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import demo
from ev2.nas import plots, results
from ev2.nas import space as spaces
from ev2.train import plan

SPACE = spaces.Space(backbones=("efficientnetv2-tiny",))
JOINT = spaces.Space(backbones=("efficientnetv2-s", "efficientnet-b0"))
# Rows of the backbone: layers 1, 1, 2, 2; Fused-MBConv in the first two.
TINY = (
    "efficientnetv2-tiny:r1_k3_s1_e1_i16_o16_c1,r1_k3_s2_e4_i16_o32_c1,"
    "r2_k3_s2_e4_i32_o48_se0.25,r2_k3_s1_e4_i48_o64_se0.25"
)
WIDER = TINY.replace("r1_k3_s2_e4", "r3_k5_s2_e6")  # its second stage
REFERENCE = {
    "name": "efficientnetv2-tiny",
    "step_seconds": 0.02,
    "params": 200_000,
    "accuracy": None,
}
SMALLEST = "F1k3x1 F4k3x1 M4k3x2 M4k3x2"  # `TINY` in the table
PLOTS = ["choices.png", "pareto.png", "reward.png"]


def make_row(trial, reward=None, accuracy=None, step=None, params=None, **more):
    figures = {"reward": reward, "accuracy": accuracy, "step_seconds": step}
    state = "waiting" if reward is None else "done"
    row = {"trial": trial, "arch": TINY, "state": state, "reason": "", "seconds": 9.5}
    row |= {"params": params, "tries": 1, "host": "here", "folder": f"{trial - 1:04d}"}
    return row | figures | more


def fail(trial, reason, **more):
    return make_row(trial, state="failed", reason=reason, **more)


# Trial 1 is beaten by 2; 3 is the fastest, 4 the most accurate, 5 the smallest.
ROWS = [
    make_row(1, 0.70, 0.70, 0.020, 200_000),
    make_row(2, 0.80, 0.75, 0.018, 200_000),
    make_row(3, 0.60, 0.60, 0.010, 300_000),
    make_row(4, 0.75, 0.90, 0.030, 400_000, arch=WIDER),
    make_row(5, 0.50, 0.50, 0.025, 100_000),
    make_row(6, 0.40, 0.45, 0.015, 150_000, state="pruned", reason="below the median"),
    fail(7, "loss is not finite"),
    fail(8, "does not fit", reward=0.0),
    fail(9, "loss is not finite"),
    make_row(10, state="running"),
    make_row(11, arch=""),
]


def make_config(candidate) -> ConfigDict:
    config = demo.get_config()
    with config.unlocked():
        config.data.source = "synthetic"  # a plan then needs no data
        config.data.num_train_images = 640
        config.data.num_classes = 10
        config.odd = ConfigDict()
        config.odd.values = ("a\"'\\é", None, -1, 2.0, 1e-9, True, (), ((1, 2), [3]))
        config.odd.one, config.odd.none = (1,), ()
        config.odd.deeper = ConfigDict({"list": ["x"] * 30})
        config.empty = ConfigDict()
    config.model.blocks = tuple(SPACE.encode(candidate).partition(":")[2].split(","))
    return config


def write(folder, rows, *, space=SPACE, count=3):
    more = {"reference": REFERENCE, "make_config": make_config, "count": count}
    lines = results.write(folder, rows, space=space, **more)
    return lines, json.loads((folder / "search.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What was written of `ROWS`: the best, trials 2, 4 and 1, and all the rest."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "lines.json").write_text(json.dumps(write(folder, ROWS)[0]))
    return folder


def numbers(rows):
    return [row["trial"] for row in rows]


def test_best_are_those_done_and_the_earlier_of_equal_ones():
    assert numbers(results.rank(ROWS)) == [2, 4, 1, 3, 5]
    same = [make_row(n, 0.5, 0.5, 0.02, 100) for n in (2, 1, 3)]
    assert numbers(results.rank(same)) == [1, 2, 3]
    assert results.rank([make_row(1, 0.5, None, 0.02, 100)]) == []


@pytest.mark.parametrize(
    "figures, front",
    [
        ([], []),
        ([(0.5, 1, 9)], [1]),
        ([(0.5, 1, 9), (0.5, 1, 9)], [1, 2]),  # equal ones stay
        ([(0.5, 1, 9), (0.5, 1, 8)], [2]),
        ([(0.5, 1, 9), (0.6, 1, 9), (0.5, 0.9, 9)], [2, 3]),
        ([(0.5, 1, 9), (0.6, 2, 9), (0.4, 2, 8), (0.5, 2, 9)], [1, 2, 3]),
    ],
)
def test_front_of_accuracy_step_time_and_parameters(figures, front):
    rows = [make_row(n, 0.5, *given) for n, given in enumerate(figures, 1)]
    assert numbers(results.find_front(rows)) == front


def test_table_has_the_front_the_best_and_the_ends():
    assert results.format_table(ROWS, space=SPACE).splitlines() == [
        "Pareto front of accuracy, step time and parameters, best reward first",
        "  trial    reward    top-1 %    ms/step    params M  network",
        f"      2    0.8000      75.00       18.0        0.20  {SMALLEST}",
        f"      4    0.7500      90.00       30.0        0.40  {SMALLEST}".replace(
            "F4k3x1", "F6k5x3"
        ),
        f"      3    0.6000      60.00       10.0        0.30  {SMALLEST}",
        f"      5    0.5000      50.00       25.0        0.10  {SMALLEST}",
        "F4k3x2: Fused-MBConv4, k3x3, 2 layers; M: MBConv",
        "",
        "best reward, trial 2, trials/0001: efficientnetv2-tiny",
        "  Fused-MBConv1 k3x3, 16, x1",
        "  Fused-MBConv4 k3x3, 32, x1",
        "  MBConv4 k3x3, 48, x2",
        "  MBConv4 k3x3, 64, x2",
        "",
        "trials: 5 done, 1 pruned, 3 failed, 1 running, 1 waiting; 11 in all",
        "failed, trial 7 and 1 more: loss is not finite",
        "failed, trial 8: does not fit",
    ]


def test_long_table_is_cut():
    rows = [make_row(n, n / 99, n / 99, n / 99, 100) for n in range(1, 31)]
    rows += [fail(n, f"reason {n} " + 200 * "x") for n in range(31, 39)]
    lines = results.format_table(rows, space=SPACE).splitlines()
    assert lines[2].split()[0] == "30" and lines[21].split()[0] == "11"
    assert lines[22] == "... the first 20 of 30; all are in search.json"
    assert lines[-1] == "failed for 3 other reasons: see search.json"
    assert max(map(len, lines)) < 130


def test_table_names_the_backbone_where_there_are_several():
    text = JOINT.encode(JOINT.decode(f"efficientnet-b0:{_published()}"))
    table = results.format_table(
        [make_row(1, 0.5, 0.5, 0.1, 9, arch=text)], space=JOINT
    )
    network = "efficientnet-b0: M1k3x1 M6k3x2 M6k5x2 M6k3x3 M6k5x3 M6k5x4 M6k3x1"
    assert table.splitlines()[2].endswith(network)


def _published() -> str:
    """Table 1 of the EfficientNet paper, as block strings."""
    rows = (
        *("r1_k3_s1_e1_i32_o16", "r2_k3_s2_e6_i16_o24", "r2_k5_s2_e6_i24_o40"),
        *("r3_k3_s2_e6_i40_o80", "r3_k5_s1_e6_i80_o112", "r4_k5_s2_e6_i112_o192"),
        "r1_k3_s1_e6_i192_o320",
    )
    return ",".join(f"{row}_se0.25" for row in rows)


def test_summary_of_a_search():
    assert results.summarize(ROWS) == "9 of 11 ended, best 0.8000 (trial 2)"
    assert results.summarize(ROWS[-2:]) == "0 of 2 ended"


def test_everything_is_written(folder):
    assert json.loads((folder / "lines.json").read_text()) == [
        f"all trials: {folder}/search.json",
        f"best: ev2 train --config={folder}/best/1.py --workdir=FOLDER",
        f"plots: {folder}/reward.png, {folder}/pareto.png, {folder}/choices.png",
    ]
    written = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*"))
    configs = ["best/1.py", "best/2.py", "best/3.py"]
    assert written == sorted([*configs, *PLOTS, "lines.json", "search.json"])
    found = json.loads((folder / "search.json").read_text())
    assert found["trials"] == ROWS
    places = [(2, "best/1.py"), (4, "best/2.py"), (1, "best/3.py")]
    assert [(row["trial"], row["config"]) for row in found["best"]] == places
    assert found["best"][1] == {**ROWS[3], "config": "best/2.py"}
    assert found["pareto"] == [2, 4, 3, 5] and found["reference"] == REFERENCE
    # Layers 1, 2 or 3 in two stages, 1 to 4 in two; 2 operators, 2 kernels, 3 ratios.
    assert found["space_size"] == (3 * 12) ** 2 * (4 * 12) ** 2
    for name in PLOTS:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "rows", [ROWS[5:], [fail(n, "died") for n in (1, 2)], [make_row(1, arch="")]]
)
def test_nothing_done(tmp_path, rows):
    lines, found = write(tmp_path, rows)
    path = tmp_path / "search.json"
    none = "no trial was trained to the end"
    assert lines == [f"all trials: {path}", f"no plots: {none}"]
    assert (found["best"], found["pareto"]) == ([], []) and found["trials"] == rows
    assert list(tmp_path.iterdir()) == [path]
    assert results.format_table(rows, space=SPACE).startswith(none)


def test_written_config_is_the_config(folder):
    text = (folder / "best/2.py").read_text()
    got = runpy.run_path(str(folder / "best/2.py"))["get_config"]()
    expected = make_config(SPACE.decode(WIDER))
    # Their texts as well: 1 is 1.0, and True, to ==.
    assert got.to_dict() == expected.to_dict()
    assert repr(got.to_dict()) == repr(expected.to_dict())
    assert isinstance(got.odd.deeper, ConfigDict) and got.is_locked
    assert got.model.blocks[1] == "r3_k5_s2_e6_i16_o32_c1"
    assert re.findall(r"^(?:import|from) .*", text, re.M) == [
        "from ml_collections import ConfigDict"
    ]
    assert max(map(len, text.splitlines())) <= 88
    planned = plan.make_plan(got)
    assert (planned["model"], planned["steps"]) == ("efficientnetv2-tiny", 110)


def test_written_config_says_what_it_is(folder):
    said = runpy.run_path(str(folder / "best/2.py"))["__doc__"]
    for words in (
        "A network around efficientnetv2-tiny: trial 4 of an architecture search.",
        "ev2 train --config=best/2.py --workdir=FOLDER",
        "Fused-MBConv6 k5x5, 32, x3",
        "reward          0.7500",
        "top-1           90.00 %",
        "training step   30.00 ms, 1.50 times that of efficientnetv2-tiny",
        "parameters      400,000, 2.00 times as many",
        "not yet measured",
    ):
        assert words in said


def test_reward_plot():
    done = results.rank(ROWS[:5])
    failed = [row for row in ROWS if row["state"] == "failed"]
    higher = make_row(12, 0.65, 0.4, 0.01, 100, state="pruned")
    axes = plots.reward(done, [ROWS[5], higher], failed).axes[0]
    lines = {str(line.get_label()): line for line in axes.lines}
    so_far = lines["best so far"]
    assert list(so_far.get_xdata()) == [1, 2, 3, 4, 5, 12]
    assert list(so_far.get_ydata()) == [0.7, 0.8, 0.8, 0.8, 0.8, 0.8]
    assert list(lines["done"].get_ydata()) == [0.7, 0.8, 0.6, 0.75, 0.5]
    low, high = axes.get_ylim()
    assert (low, high) == pytest.approx((0.47, 0.83))
    assert list(lines["pruned"].get_xdata()) == [6, 12]
    assert list(lines["pruned"].get_ydata()) == [low, 0.65]
    assert list(lines["failed (0)"].get_xdata()) == [7, 8, 9]
    assert list(lines["failed (0)"].get_ydata()) == [low] * 3
    assert [text.get_text() for text in axes.texts] == ["0.8000"]


def test_pareto_plot():
    done = results.rank(ROWS)
    figure = plots.pareto(done, results.find_front(ROWS), REFERENCE)
    axes = figure.axes[0]
    joined, reference = axes.lines
    # Trial 5 is in the front for its parameters alone.
    np.testing.assert_allclose(joined.get_xydata(), [(10, 60), (18, 75), (30, 90)])
    assert list(reference.get_xdata()) == [20, 20]
    parts = {str(part.get_label()): part for part in axes.collections}
    rings = parts["front of all three, with parameters"].get_offsets()
    np.testing.assert_allclose(rings, [(18, 75), (30, 90), (10, 60), (25, 50)])
    np.testing.assert_allclose(parts["best reward, trial 2"].get_offsets(), [(18, 75)])
    (points,) = (part for part in axes.collections if part.get_array() is not None)
    np.testing.assert_allclose(points.get_array(), [0.2, 0.4, 0.2, 0.3, 0.1])


def test_fractions_of_choices():
    rows = [make_row(1, arch=TINY), *(make_row(n, arch=WIDER) for n in (2, 3, 4))]
    fractions = {
        key: plots.count_fractions(SPACE, rows, key) for key in ("layers", "kernel")
    }
    # Offsets -2 to 2; one layer is the backbone's own, and three are two more.
    np.testing.assert_array_equal(fractions["layers"][1], [0, 0, 0.25, 0, 0.75])
    np.testing.assert_array_equal(fractions["layers"][2], [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(
        fractions["kernel"], [[1, 0], [0.25, 0.75], [1, 0], [1, 0]]
    )


def test_fractions_are_of_networks_that_have_the_stage():
    rows = [make_row(1, arch=JOINT.encode(_smaller()))]
    fractions = plots.count_fractions(JOINT, rows, "operator")
    np.testing.assert_array_equal(fractions[5], [1, 0])
    assert np.isnan(fractions[6]).all()  # EfficientNetV2-S has six


def _smaller() -> dict:
    values = {"operator": "mbconv", "layers": 0, "kernel": 3, "expand": 4}
    choices = {f"stage{s}_{key}": v for s in range(1, 8) for key, v in values.items()}
    return {"backbone": "efficientnetv2-s", **choices}


def test_choices_plot():
    rows = [make_row(n, 1 - n / 10, 0.5, 0.1, 9, arch=TINY) for n in (1, 2, 3, 4)]
    rows[0]["arch"] = WIDER  # the best two of four are "the best third"
    figure = plots.choices(SPACE, rows)
    assert figure.get_suptitle().startswith("Fraction in the best third")
    assert "(2 of 4)" in figure.get_suptitle()
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles[0] == "Operator" and titles[2] == "Kernel"
    kernels = figure.axes[2]
    assert [text.get_text() for text in kernels.get_xticklabels()] == ["3x3", "5x5"]
    cells = {text.get_position(): text.get_text() for text in kernels.texts}
    assert cells[0, 1] == "50 (75)" and cells[1, 1] == "50 (25)"
    assert cells[0, 0] == "100 (100)" and (1, 0) not in cells


@pytest.mark.parametrize(
    "rows",
    [
        [make_row(1, 0.5, 0.5, 0.02, 200_000)],
        [make_row(n, 0.0, 0.0, 0.02, 200_000) for n in range(1, 301)],
    ],
    ids=["one", "ties"],
)
def test_plots_of_unusual_searches(tmp_path, rows):
    write(tmp_path, rows, count=1)
    assert sorted(p.name for p in tmp_path.glob("*.png")) == PLOTS


def test_import_is_light():
    code = "import sys; from ev2.nas import results; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"jax", "tensorflow", "matplotlib", "flax"}
    assert not heavy & set(run.stdout.split())
