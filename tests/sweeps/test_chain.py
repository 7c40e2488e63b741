"""pytest tests/sweeps/test_chain.py; pytest -m slow tests/sweeps/test_chain.py

Links run in order, each from the weights of another; what is finished stays as it is.
"""

import csv
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest

from configs import chain as chains
from configs import chain_demo, comparisons
from ev2 import errors
from ev2.checkpoint import pretrained
from ev2.cli import main as cli
from ev2.report import report
from ev2.sweeps import chain
from ev2.train import loop, setup
from ev2.train import workdir as workdirs
from tests.helpers import fashion_groups
from tests.helpers import tiny_run as tiny

ROOT = pathlib.Path(__file__).parents[2]


def _recipe(**changes):
    changes = {"progressive.schedule": "fixed", "steps": 2, **changes}
    return tiny.make_config(**changes)


def _chain(runs=2, **changes):
    """Three links; the second leaves its preprocessing open and has other classes."""
    first = _recipe(**{"data.mean": (1.0, 2.0, 3.0)})
    left = {"data.mean": (), "data.std": (), "data.interpolation": ""}
    second = _recipe(**left, **{"data.num_classes": 4, **changes})
    links = {
        "wide": first,
        "narrow": chains.start_from("wide", second),
        "last": chains.start_from("narrow", _recipe()),
    }
    return chains.make_chain(links, {"narrow": runs, "last": runs})


@pytest.fixture(autouse=True)
def no_reports(monkeypatch):
    monkeypatch.setattr(report, "write_report", lambda workdir: None)


def _pretend_to_train(config, workdir):
    """Leaves what a run does, with fresh weights; compiling takes seconds a run."""
    made = setup.set_up(config, workdir)
    tiny.save_checkpoint(workdir, made.config, made.info.class_names)
    scores = {"top1": 0.5 + 0.1 * config.seed, "top5": 1.0, "count": 19, "skipped": 0}
    result = {"ema": scores, "raw": scores, "step": 1, "image_size": 12}
    result |= {"wall_seconds": 90.0 + config.seed, "devices": 8}
    stages = [{"train_seconds": 10.0}, {"train_seconds": 2.5 + config.seed}]
    with workdirs.Workdir(workdir, made.config) as folder:
        folder.write_json("stages.json", {"stages": stages})
        folder.write_json("eval.json", result)
    return result


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A chain that was stopped when two of its runs were finished, and went on."""
    workdir = tmp_path_factory.mktemp("chain") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_report", lambda workdir: None)
        calls = []

        def stop_at_the_third(config, folder):
            calls.append(folder)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return _pretend_to_train(config, folder)

        patch.setattr(loop, "train_and_evaluate", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            chain.run_chain(_chain(), str(workdir))
        half = json.loads((workdir / "chain.json").read_text())
        assert [link["name"] for link in half["links"]] == ["wide", "narrow"]
        summary = chain.run_chain(_chain(), str(workdir))
    names = [str(pathlib.Path(folder).relative_to(workdir)) for folder in calls]
    # The third is called again; the two before are not.
    rest = ["narrow/1", "narrow/1", "last/0", "last/1"]
    assert names == ["wide/0", "narrow/0", *rest]
    return workdir, summary


def test_each_starts_from_the_link_and_seed_it_names(finished):
    workdir, _ = finished
    for name, start in (
        ("narrow/0", "wide/0"),
        ("narrow/1", "wide/0"),
        ("last/0", "narrow/0"),
        ("last/1", "narrow/1"),
    ):
        config = json.loads((workdir / name / "config.json").read_text())["config"]
        assert config["init"]["checkpoint"] == str(workdir / start)
        assert config["seed"] == int(name[-1])
    assert config["data"]["mean"] == [128.0] * 3  # its own
    narrow = json.loads((workdir / "narrow/1/config.json").read_text())["config"]
    assert narrow["data"]["mean"] == [1.0, 2.0, 3.0]  # of the link
    _, variables, meta = pretrained.load_pretrained(str(workdir / "narrow/0"))
    assert meta["preprocessing"]["mean"] == [1.0, 2.0, 3.0]
    assert variables["params"]["classifier"]["kernel"].shape[1] == 4


def test_the_summary_adds_up(finished, capsys):
    workdir, summary = finished
    assert summary == json.loads((workdir / "chain.json").read_text())
    assert [link["name"] for link in summary["links"]] == ["wide", "narrow", "last"]
    with open(workdir / "chain.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["link"], row["seed"]) for row in rows] == [
        *(("wide", "0"), ("narrow", "0"), ("narrow", "1"), ("last", "0")),
        ("last", "1"),
    ]
    results = [
        json.loads((workdir / row["link"] / row["seed"] / "eval.json").read_text())
        for row in rows
    ]
    for row, result in zip(rows, results, strict=True):
        assert float(row["top1"]) == result["ema"]["top1"]
        assert float(row["wall_seconds"]) == result["wall_seconds"]
        hours = result["wall_seconds"] * 8 / 3600  # eight devices in tests
        assert float(row["device_hours"]) == pytest.approx(hours, abs=1e-4)
        assert pathlib.Path(row["config"]).is_file()
        assert pathlib.Path(row["checkpoint"]).name == row["step"] == "1"
    top1 = [result["ema"]["top1"] for result in results[3:]]
    assert summary["links"][2]["top1"] == {
        "mean": sum(top1) / 2,
        "spread": pytest.approx(statistics.stdev(top1)),
        "runs": 2,
    }
    assert summary["links"][0]["top1"]["spread"] is None
    assert summary["links"][2]["train_seconds"]["mean"] == 13.0
    seconds = sum(result["wall_seconds"] for result in results)
    assert summary["wall_seconds"] == pytest.approx(seconds)
    text = chain.format_summary(summary)
    assert " wide/0/checkpoints/1 " in text and " last/{0,1} " in text
    assert f"{100 * sum(top1) / 2:.2f} +- {100 * statistics.stdev(top1):.2f}" in text


def _times(workdir):
    return {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}


def test_a_finished_chain_is_left_as_it_is_even_if_its_data_are_gone(
    finished, monkeypatch, capsys
):
    workdir, summary = finished
    monkeypatch.setattr(loop, "train_and_evaluate", None)
    before = _times(workdir)
    again = chain.run_chain(_chain(), str(workdir), dry=True)
    assert again == summary and _times(workdir) == before
    plan = capsys.readouterr().out.splitlines()
    assert len(plan) == 6 and all(line.endswith("finished") for line in plan[1:])
    assert chain.run_chain(_chain(), str(workdir)) == summary
    changed = {p for p, at in _times(workdir).items() if before[p] != at}
    assert {p.name for p in changed} <= {"chain.json", "chain.csv"}


def test_a_chain_that_was_moved_is_recognized(finished, tmp_path, monkeypatch):
    workdir, summary = finished
    shutil.copytree(workdir, tmp_path / "moved")
    monkeypatch.setattr(loop, "train_and_evaluate", None)
    again = chain.run_chain(_chain(), str(tmp_path / "moved"))
    assert again["links"][2]["top1"] == summary["links"][2]["top1"]


def test_what_changed_is_refused_before_anything_is_run(finished, tmp_path):
    workdir, _ = finished
    before = _times(workdir)
    other = _chain(**{"optimizer.lr": 0.5})
    with pytest.raises(errors.InputError, match=r"^narrow: workdir: .*optimizer\.lr"):
        chain.run_chain(other, str(workdir))
    assert _times(workdir) == before
    shutil.copytree(workdir, tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs/wide")
    with pytest.raises(errors.InputError, match="^narrow: .*is not finished any more"):
        chain.run_chain(_chain(), str(tmp_path / "runs"))


def _changed(**changes):
    found = _chain()
    found.unlock()
    found.update_from_flattened_dict(changes)
    return found


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (tiny.make_config, "config: this is a recipe, not a chain"),
        (lambda: _changed(links=()), r"links: \(\) is not allowed"),
        (lambda: _changed(links=("wide", "wide")), "links: .* each once"),
        (
            lambda: _changed(links=("other",)),
            "links: 'other' is not a link; choose",
        ),
        (
            lambda: _changed(links=("narrow", "wide")),
            "narrow: init.checkpoint: 'link:wide' is not a link before this one",
        ),
        (lambda: _changed(**{"seeds.last": 0}), "seeds.last: 0 is not allowed"),
        (lambda: _changed(**{"seeds.last": 3}), "last: seeds: 3 runs cannot start"),
        (
            lambda: _changed(**{"last.model.blocks": tiny.BLOCKS[:1]}),
            "last: model.blocks: .* from which this starts",
        ),
        (
            lambda: _changed(**{"last.data.source": "nowhere"}),
            "last: data.source: 'nowhere'",
        ),
        (
            lambda: _changed(**{"wide.init.checkpoint": "required"}),
            "wide: init.checkpoint: this recipe starts from trained weights",
        ),
        (
            lambda: _changed(**{"wide.data.mean": ()}),
            "wide: data.mean: .* init.checkpoint, which is not given",
        ),
        (lambda: _changed(**{"last.batch_size": 12}), "last: batch_size: .* 12 "),
    ],
)
def test_bad_chains_are_one_line_and_leave_nothing(tmp_path, make, message):
    with pytest.raises(errors.InputError, match=f"^{message}") as error:
        chain.run_chain(make(), str(tmp_path / "runs"))
    assert "\n" not in str(error.value) and not (tmp_path / "runs").exists()


def test_a_chain_is_not_trained_as_a_recipe(tmp_path, capsys):
    config = f"--config={ROOT}/configs/chain_demo.py:{tmp_path}"
    assert cli.main(["train", config, f"--workdir={tmp_path}/run"]) == 2
    assert "this is a chain of recipes; ev2 chain runs it" in capsys.readouterr().err
    assert cli.main(["chain", config, f"--workdir={tmp_path}/runs"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("ev2: pretrain: data.path: ") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_the_papers_chain_starts_each_from_the_one_before(recipe):
    found = chains.get_config(f"m,recipe={recipe}")
    sets = ("cifar10", "cifar100", "flowers", "cars")
    assert found.links == ("imagenet21k", "imagenet1k_ft", *sets)
    starts = [found[name].init.checkpoint for name in found.links]
    assert starts == ["", "link:imagenet21k", *["link:imagenet1k_ft"] * 4]
    assert [found.seeds[name] for name in found.links] == [1, 1, 5, 5, 5, 5]
    assert found.is_locked and found.cars.is_locked
    assert {found[name].recipe for name in found.links} == {recipe}
    table_8 = chains.get_config("s,weights=1k")
    assert table_8.links == ("imagenet1k", *sets)
    assert table_8.flowers.init.checkpoint == "link:imagenet1k"
    with pytest.raises(ValueError, match="chain.py: there is no model 'xl'"):
        chains.get_config("xl")


@pytest.mark.parametrize("name", ["sizes", "table13"])
def test_comparisons_differ_in_what_they_compare_alone(name):
    found = comparisons.get_config(f"{name},runs=2")
    flat = [workdirs.flatten(found[link].to_dict(), ".") for link in found.links]
    differing = {
        key for key in flat[0] for other in flat[1:] if flat[0][key] != other[key]
    }
    assert differing == {"progressive.schedule", "progressive.adaptive"}
    assert {found.seeds[link] for link in found.links} == {2}
    assert len(found.links) == {"sizes": 2, "table13": 4}[name]


def test_pretraining_is_compared_at_equal_steps():
    found = comparisons.get_config("pretraining")
    assert found.finetune.init.checkpoint == "link:pretrain"
    assert found.scratch.steps == found.finetune.steps and found.seeds.scratch == 3
    with pytest.raises(ValueError, match="there is no comparison 'size'"):
        comparisons.get_config("size")


def test_the_small_chain_builds():
    found = chain_demo.get_config("somewhere")
    assert found.links == ("pretrain", "finetune", "transfer")
    assert found.pretrain.data.max_labels == 3 and found.seeds.transfer == 3


def _start(groups, workdir):
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    env.pop("XLA_FLAGS", None)  # one device, as a person would run it
    config = f"--config={ROOT}/configs/chain_demo.py:{groups}"
    return subprocess.Popen(
        [sys.executable, "-m", "ev2", "chain", config, f"--workdir={workdir}"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _kill_when(process, there, seconds=1200):
    """Kills the process without notice once `there()`."""
    until = time.monotonic() + seconds
    while not there() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert there() and process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_a_small_chain_killed_twice_ends_in_its_summary(tmp_path):
    groups, workdir = tmp_path / "groups", tmp_path / "chain"
    fashion_groups.write_fashion_groups(groups)
    _kill_when(
        _start(groups, workdir),
        lambda: (workdir / "pretrain/0/checkpoints/100/meta").is_dir(),
    )
    assert not (workdir / "pretrain/0/eval.json").exists()
    _kill_when(
        _start(groups, workdir),
        lambda: (workdir / "finetune/0/checkpoints/50/meta").is_dir(),
    )
    before = _times(workdir / "pretrain")
    assert workdir / "pretrain/0/eval.json" in before
    last = _start(groups, workdir)
    out, err = last.communicate(timeout=1200)
    assert last.returncode == 0, err
    assert _times(workdir / "pretrain") == before
    plan, table = out.split("\n\n")[0], out[out.rindex("\nlink") :]
    assert re.search(r"pretrain .* 562  finished\n", plan)
    assert re.search(r"finetune .* 375  to resume\n", plan)
    assert re.search(r"transfer +efficientnetv2-tiny .* \d\d\.\d\d \+- \d\.\d\d", table)
    summary = json.loads((workdir / "chain.json").read_text())
    pretrain, finetune, transfer = summary["links"]
    assert pretrain["top1"]["mean"] > 0.7 and finetune["top1"]["mean"] > 0.7
    assert transfer["top1"]["mean"] > 0.8 and transfer["top1"]["runs"] == 3
    assert len({run["top1"] for run in transfer["runs"]}) > 1
    # Both starts of a killed run are counted.
    lines = (workdir / "finetune/0/metrics.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["wall_seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert finetune["wall_seconds"] >= seconds[-1]
    for link in summary["links"]:
        for run in link["runs"]:
            assert (pathlib.Path(run["config"]).parent / "report.html").is_file()


@pytest.mark.slow
def test_fashion_groups_are_the_embedded_pictures_with_other_labels(tmp_path):
    from ev2.data import sources

    out = tmp_path / "groups"
    fashion_groups.write_fashion_groups(out)
    embedded = sources.open_embedded("train")
    rows = np.array([0, 1, 2, 500, 7000, 11_999])
    pictures, classes = embedded.read(rows)
    config = chain_demo.get_config(str(out))
    several = sources.open_source(config.pretrain, "train")
    kinds = sources.open_source(config.transfer, "train")
    assert len(several) == len(kinds) == 12_000
    assert several.read(rows)[0] == kinds.read(rows)[0] == pictures
    names = [{several.class_names[i] for i in row if i >= 0} for row in
             several.read(rows)[1].tolist()]  # fmt: skip
    expected = {
        "Trouser": {"clothing"},
        "Dress": {"clothing"},
        "Bag": set(),
        **dict.fromkeys(("T-shirt/top", "Pullover", "Coat", "Shirt"),
                        {"clothing", "top"}),
        **dict.fromkeys(("Sandal", "Sneaker", "Ankle boot"), {"footwear"}),
    }  # fmt: skip
    for found, label in zip(names, classes.tolist(), strict=True):
        name = embedded.class_names[label]
        assert found == {name} | expected[name]
