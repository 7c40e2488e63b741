"""python -m pytest tests/bench/test_calibration.py"""

import json

import pytest

from ev2 import errors
from ev2.bench import calibration
from ev2.cli import main as cli


def write_plan(folder, model="efficientnetv2-s", stages=4, hours=3.0, **changes):
    plan = {"model": model, "epochs": 349.998, "stages": [{}] * stages}
    plan["tpu"] = {"slice": "v3-32", "hours": hours}
    plan["tpu"] |= {"versions": {"jax": "1", "libtpu": "2"}} | changes
    path = folder / f"{model}-{stages}.json"
    path.write_text(json.dumps(plan))
    return str(path)


def test_one_factor_and_its_spread(tmp_path):
    # 7.1 / 3.55 = 2 and 24 / 3 = 8: a mean of 4, off by a factor of 2 either way.
    paths = [write_plan(tmp_path, hours=3.55)]
    paths.append(write_plan(tmp_path, "efficientnetv2-l", hours=3.0))
    figures = calibration.compare(paths)
    assert [row["factor"] for row in figures["results"]] == pytest.approx([2, 8])
    assert figures["factor"] == pytest.approx(4)
    assert figures["spread"] == pytest.approx(2)


def test_the_verb_takes_plans_and_prints_a_table(tmp_path, capsys):
    paths = [write_plan(tmp_path), write_plan(tmp_path, "resnet50", 1, hours=2.45)]
    out = tmp_path / "calibration.json"
    assert cli.main(["bench", "calibration", *paths, f"--json={out}"]) == 0
    said = capsys.readouterr().out
    cells = [line.split() for line in said.splitlines()]
    assert "| efficientnetv2-s | 4 | 3.00 | 7.1 | 2.37 |".split() in cells
    assert "| resnet50 | 1 | 2.45 | 4.9 | 2.00 |".split() in cells
    assert "(jax 1, libtpu 2)" in said
    figures = json.loads(out.read_text())
    assert len(figures["results"]) == 2
    # 3.00 and 2.45 hours, as the paper's 7.1 and 4.9.
    assert figures["rank_correlation"] is None and figures["misordered"] == []
    last = said.splitlines()[-1]
    assert last == "rank correlation unknown, of 3 or more; in the wrong order: none"


def test_plans_in_the_wrong_order_are_named(tmp_path, capsys):
    # The paper's hours: 4.9, 7.1, 13 and 24. Ranks 2, 1, 3, 4: 1 - 6 * 2 / 60.
    names = [("resnet50", 1), ("efficientnetv2-s", 4)]
    names += [("efficientnetv2-m", 4), ("efficientnetv2-l", 4)]
    hours = (2.95, 2.92, 5.0, 9.0)
    paths = [write_plan(tmp_path, *n, h) for n, h in zip(names, hours, strict=True)]
    out = tmp_path / "calibration.json"
    assert cli.main(["bench", "calibration", *paths, f"--json={out}"]) == 0
    figures = json.loads(out.read_text())
    assert figures["rank_correlation"] == pytest.approx(0.8)
    assert figures["misordered"] == [["resnet50, 1", "efficientnetv2-s, 4"]]
    last = capsys.readouterr().out.splitlines()[-1]
    pair = "resnet50, 1 and efficientnetv2-s, 4"
    assert last == f"rank correlation 0.80; in the wrong order: {pair}"


@pytest.mark.parametrize(
    "ours, papers, correlation, misordered",
    [
        ([1, 2, 3], [10, 20, 30], 1.0, []),
        ([3, 2, 1], [10, 20, 30], -1.0, [["a", "b"], ["a", "c"], ["b", "c"]]),
        # Ranks 1.5, 1.5, 3 and 1, 2, 3: a covariance of 1.5, squares of 1.5 and 2.
        ([1, 1, 3], [10, 20, 30], 3**0.5 / 2, []),
        ([1, 1, 1], [10, 20, 30], None, []),
        ([2, 1], [10, 20], None, [["a", "b"]]),
    ],
)
def test_order(ours, papers, correlation, misordered):
    figures = calibration.compare_order("abc"[: len(ours)], ours, papers)
    assert figures["misordered"] == misordered
    if correlation is None:
        assert figures["rank_correlation"] is None
    else:
        assert figures["rank_correlation"] == pytest.approx(correlation)


@pytest.mark.parametrize(
    "values, said",
    [
        ({"slice": "v4-8"}, "is of v4-8"),
        ({"hours": None}, "does not fit"),
        ({"model": "efficientnetv2-b0"}, "for which the paper has no hours"),
        ({"stages": 2}, "in 2 stages, for which"),
    ],
)
def test_a_plan_that_the_paper_has_no_hours_for(tmp_path, values, said):
    with pytest.raises(errors.InputError) as error:
        calibration.compare([write_plan(tmp_path, **values)])
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", '{"model": "x"}'])
def test_a_file_that_is_not_a_plan_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(errors.InputError, match="is not a plan for a slice"):
        calibration.compare([str(path)])


def test_a_shorter_run_is_not_the_papers(tmp_path):
    path = write_plan(tmp_path)
    with open(path) as file:
        plan = json.load(file)
    plan["epochs"] = 90.0
    with open(path, "w") as file:
        json.dump(plan, file)
    with pytest.raises(errors.InputError, match="of 90.0 epochs"):
        calibration.compare([path])
