"""pytest tests/nas/test_search.py; pytest -m slow tests/nas/test_search.py -s

The search with candidates that only pretend to train, and slowly with real ones.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import optuna
import pytest

from configs import demo
from configs import search as configs
from ev2 import errors
from ev2.cli import main as cli
from ev2.nas import config as search_config
from ev2.nas import controllers, proxy, reward, search
from ev2.nas import space as spaces
from ev2.sweeps import study

# Stands for ev2.nas.proxy: the accuracy grows with the layers of the first row.
PRETENDER = """
import json, pathlib, re, sys
given = dict(word[2:].split("=", 1) for word in sys.argv[2:])
if "cost" in given:
    cost = {"params": 10_000, "step_seconds": 0.2, "step_spread": 0.0}
    pathlib.Path(given["cost"]).write_text(json.dumps({**cost, "arch": given["arch"]}))
    sys.exit()
folder = pathlib.Path(given["workdir"])
folder.mkdir(parents=True, exist_ok=True)
layers = [int(n) for n in re.findall(r"[:,]r(\\d+)", given["arch"])]
cost = {"arch": given["arch"], "params": 1000 * sum(layers), "step_seconds": 0.1}
(folder / "cost.json").write_text(json.dumps(cost))
with open(folder / "starts", "a") as starts:
    starts.write("x")
FAULT
scores = {"ema": {"top1": layers[0] / 10}}
line = {"split": "eval", "step": 1, **scores}
(folder / "metrics.jsonl").write_text(json.dumps(line) + chr(10))
(folder / "eval.json").write_text(json.dumps(scores))
"""


def make_config(**changes):
    config = configs.get_config("tiny,controller=random")
    config.trials = 6
    for key, value in changes.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    return config


@pytest.fixture
def pretend(monkeypatch, tmp_path):
    """A function that lets candidates pretend, with a fault for some of them."""

    def start(fault: str = "pass") -> None:
        script = tmp_path / "pretender.py"
        script.write_text(PRETENDER.replace("FAULT", fault))
        monkeypatch.setattr(search, "CANDIDATE", (sys.executable, str(script)))
        monkeypatch.setattr(search, "POLL_S", 0.01)

    return start


@pytest.mark.parametrize("controller", controllers.NAMES)
def test_search(pretend, tmp_path, controller, capsys):
    pretend()
    config = make_config(controller=controller)
    found = search.search(config, str(tmp_path / "run"))
    rows = found["trials"]
    assert len({row["arch"] for row in rows}) == 6
    assert all(row["state"] == "done" for row in rows)
    for row in rows:
        accuracy = int(row["arch"].split(":r")[1][0]) / 10
        assert row["accuracy"] == accuracy
        expected = accuracy * 0.5**-0.07 * (row["params"] / 10_000) ** -0.05
        assert row["reward"] == pytest.approx(expected)
    assert found["best"][0]["reward"] == max(row["reward"] for row in rows)
    # A second call finds all done; the controllers propose the same anew elsewhere.
    assert search.search(config, str(tmp_path / "run"))["trials"] == rows
    starts = (tmp_path / "run/trials").glob("*/starts")
    assert [path.read_text() for path in starts] == ["x"] * 6
    again = search.search(config, str(tmp_path / "again"))["trials"]
    assert [row["arch"] for row in again] == [row["arch"] for row in rows]
    assert "networks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("sys.exit('ev2: loss is not finite at steps 1 to 2')", "not finite"),
        ("sys.exit('out of memory')", "out of memory"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import time; time.sleep(60)", "longer than"),
        ("(folder / 'eval.json').write_text('{'); sys.exit()", "eval.json"),
        ("(folder / 'cost.json').write_text('{')", "what it costs"),
        ("cost['arch'] = 'other'", "what it costs"),
    ],
)
def test_failed_candidates_count_as_nothing(pretend, tmp_path, fault, reason):
    end = "; (folder / 'cost.json').write_text(json.dumps(cost))" * ("'arch'" in fault)
    pretend(f"\nif folder.name == '0001':\n    {fault}{end}")
    config = make_config(trials=3, limit_minutes=0.02)
    rows = search.search(config, str(tmp_path / "run"))["trials"]
    assert [row["state"] for row in rows] == ["done", "failed", "done"]
    assert rows[1]["reward"] == 0 and reason in rows[1]["reason"]
    assert (tmp_path / "run/trials/0001/starts").read_text() == "x"  # not tried again


@pytest.mark.parametrize("fault", ["sys.exit(75)", "os.kill(os.getpid(), SIGTERM)"])
def test_a_candidate_stopped_from_outside_is_tried_again(pretend, tmp_path, fault):
    first = "(folder / 'starts').read_text() == 'x'"
    pretend(f"import os; from signal import SIGTERM\nif {first}: {fault}")
    rows = search.search(make_config(trials=1), str(tmp_path / "run"))["trials"]
    assert rows[0]["state"] == "done" and rows[0]["tries"] == 2
    assert (tmp_path / "run/trials/0000/starts").read_text() == "xx"


def test_a_machine_that_can_run_none_ends(pretend, tmp_path):
    pretend("(sys.stderr.write('ev2: data.path: gone'), sys.exit(2))")
    with pytest.raises(
        errors.StoppedError, match="no trial can be run or scored here: data.path"
    ):
        search.search(make_config(), str(tmp_path / "run"))
    assert len(list((tmp_path / "run/trials").glob("*/starts"))) == 1
    pretend()  # mended: nothing is lost
    rows = search.search(make_config(), str(tmp_path / "run"))["trials"]
    assert [row["state"] for row in rows] == ["done"] * 6


def test_of_two_trials_with_one_network_whose_workers_die_one_draws_again(
    pretend, tmp_path
):
    # Both have noted the same network, and neither has looked at the other.
    pretend()
    config, run = make_config(trials=2), tmp_path / "run"
    spec = search_config.check(config, run)
    shared = study.SharedStudy(
        str(run / "study.db"), "search", search.make_study_spec(spec)
    )
    both = [shared.ask(), shared.ask()]
    texts = []
    for trial in both:
        shared.sampler = optuna.samplers.RandomSampler(seed=0)
        texts.append(spec.space.encode(controllers.suggest(trial, spec.space)))
        study.note(trial, arch=texts[-1], end=study.DIED)
        shared.retry(shared.tell(trial, state=optuna.trial.TrialState.FAIL))
    assert texts[0] == texts[1]
    rows = search.search(config, str(run))["trials"]
    assert [row["state"] for row in rows] == ["done"] * 2
    assert len({row["arch"] for row in rows}) == 2


def test_a_space_that_runs_out_ends_with_what_there_is(pretend, tmp_path, monkeypatch):
    pretend()
    few = {"space__layers": (0,), "space__kernels": (3,), "space__expands": (4,)}
    # As where there are too many to count.
    monkeypatch.setattr(search_config, "COUNTED_PER_TRIAL", 0)
    rows = search.search(make_config(trials=10, **few), str(tmp_path / "run"))["trials"]
    states = [row["state"] for row in rows]
    assert states == ["done"] * 8 + ["failed"] * 2  # 8 of 16 are within the bounds
    assert "nothing new" in rows[-1]["reason"] and rows[-1]["reward"] == 0


def test_pruning(pretend, tmp_path):
    # Every candidate reports once and then takes its time; from the sixth on those
    # below the median are ended.
    wait = (
        "line = {'split': 'eval', 'step': 1, 'ema': {'top1': 0.9 if "
        "int(folder.name) < 5 else 0.1}}; (folder / 'metrics.jsonl').write_text("
        "json.dumps(line) + chr(10)); import time; time.sleep(0.3 if "
        "int(folder.name) < 5 else 30)"
    )
    pretend(wait)
    config = make_config(trials=6, prune="median", proxy__eval__every_epochs=0.5)
    rows = search.search(config, str(tmp_path / "run"))["trials"]
    assert [row["state"] for row in rows] == ["done"] * 5 + ["pruned"]
    assert rows[5]["accuracy"] == 0.1 and 0 < rows[5]["reward"] < 0.2


def test_all_failed(pretend, tmp_path):
    pretend("sys.exit('ev2: no image')")
    with pytest.raises(errors.CheckError, match="no candidate"):
        search.search(make_config(trials=2), str(tmp_path / "run"))
    document = json.loads((tmp_path / "run/search.json").read_text())
    assert document["best"] == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"controller": "magic"}, "controller: 'magic' is not known; choose one of"),
        ({"trials": 0}, "trials: 0 is not allowed; give 1 to"),
        ({"trials": -40}, "trials: -40 is not allowed"),
        ({"limit_minutes": -1.0}, "limit_minutes: -1.0 is not allowed"),
        (
            {
                "trials": 17,
                **{"space__layers": (0,), "space__kernels": (3,)},
                "space__expands": (4,),
            },
            "trials: 17 is not allowed; the space has 8 networks within its bounds",
        ),
        ({"space__params": (90.0, 99.0)}, "space: none of 10,000 networks"),
        ({"space__params": (2.0, 1.0)}, "space.params"),
        ({"space__operators": ("conv",)}, "space.operators: 'conv' is not known"),
        ({"space__backbones": ("resnet50",)}, "space.backbones: resnet50"),
        ({"reward__reference": "b4"}, "reward.reference: 'b4' is not known"),
        ({"reward__step_exponent": 0.07}, "reward.step_exponent: 0.07 is not allowed"),
        ({"step_time__source": "guess"}, "step_time.source: 'guess' is not known"),
        ({"step_time__source": "compile", "step_time__slice": "v3-3"}, "'v3-3'"),
        ({"prune": "always"}, "prune: 'always' is not known"),
        (
            {"prune": "median", "proxy__eval__every_epochs": 0.0},
            "prune: 'median' is not allowed; give 'none' where",
        ),
        ({"space__params": (0.5, float("inf"))}, "space.params"),
        ({"space__params": (0.0, 0.0)}, "space.params"),
        ({"space__layers": ([1],)}, "config: unhashable type"),
        ({"proxy__model__dtype": "int8"}, "proxy: model.dtype: 'int8' is not allowed"),
        ({"proxy__data__eval_split": "minival"}, "'minival' is not known"),
        ({"full__eval__metric": "top1"}, "full: eval.metric: 'top1' is not allowed"),
    ],
)
def test_bad_searches_are_refused_before_anything_is_written(tmp_path, changes, text):
    with pytest.raises(errors.InputError, match="^[^\n]*$") as caught:
        search.search(make_config(**changes), str(tmp_path / "run"))
    assert text in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_bad_calls_are_refused(tmp_path):
    run = str(tmp_path / "run")
    lacking = make_config().unlock()
    del lacking.space.kernels
    with pytest.raises(errors.InputError, match="config.*kernels"):
        search.search(lacking, run)
    (tmp_path / "file").touch()
    with pytest.raises(errors.InputError, match="workdir"):
        search.search(make_config(), str(tmp_path / "file"), storage=run)
    with pytest.raises(errors.InputError, match="this is not a search"):
        search.search(demo.get_config(), run)
    with pytest.raises(errors.InputError, match="cannot be reached"):
        search.search(make_config(), run, storage="postgresql://nobody@localhost:9/x")
    with pytest.raises(errors.InputError, match="workers: 0"):
        search.search(make_config(), run, workers=0)
    assert not os.path.exists(run)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["search"], "config: missing"),
        (["search", "--config=configs/search.py:huge"], "there is no search 'huge'"),
        (["train", "--config=configs/search.py:tiny"], "ev2 search runs it"),
        (["search", "--config=configs/demo.py"], "this is not a search"),
        (
            ["search", "--config=configs/search.py:tiny", "--config.trials=-1"],
            "trials: -1 is not allowed",
        ),
    ],
)
def test_command_line_refuses(words, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parents[2])
    assert cli.main([*words, f"--workdir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert text in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_another_search_in_the_folder_is_refused(pretend, tmp_path, monkeypatch):
    pretend()
    monkeypatch.chdir(tmp_path)
    search.search(make_config(trials=2), ".")
    search.search(make_config(trials=2), str(tmp_path))
    other = make_config(trials=2, controller="tpe")
    with pytest.raises(errors.InputError, match="controller.*another --workdir"):
        search.search(other, str(tmp_path))
    with pytest.raises(errors.InputError, match="name='second'"):
        search.search(make_config(trials=2), str(tmp_path), name="second")
    (tmp_path / "study.db").rename(tmp_path / "away.db")
    with pytest.raises(errors.InputError, match="study.db' is gone, while"):
        search.search(make_config(trials=2), str(tmp_path))
    assert not (tmp_path / "study.db").exists()
    for text in ("", "[]", "{"):
        (tmp_path / "task.json").write_text(text)
        with pytest.raises(errors.InputError, match="task.json.*damaged"):
            search.search(make_config(trials=2), str(tmp_path))


def test_reward_by_hand():
    rate = reward.Reward(step_seconds=0.1, params=1_000_000)
    assert rate(0.8, 0.1, 1_000_000) == pytest.approx(0.8)
    # 2^-0.07 = 0.95264, 2^-0.05 = 0.96594.
    assert rate(0.8, 0.2, 1_000_000) == pytest.approx(0.8 * 0.95264, rel=1e-4)
    assert rate(0.8, 0.1, 2_000_000) == pytest.approx(0.8 * 0.96594, rel=1e-4)
    assert rate(0.0, 0.1, 1) == 0


def test_proxy_takes_the_network_of_a_text():
    config = demo.get_config()
    text = "efficientnetv2-tiny:r1_k3_s1_e1_i16_o16_c1,r1_k3_s2_e4_i16_o32_c1"
    changed = proxy.apply(config, text)
    assert changed.model.blocks == tuple(text.split(":")[1].split(","))
    assert config.model.blocks == ()
    space = spaces.Space(backbones=("efficientnetv2-tiny",))
    own = search_config.encode_reference(configs.get_config("tiny"))
    assert space.encode(space.decode(own)) == own
    assert proxy.apply(config, own).model.blocks == ()


def test_a_step_that_does_not_fit_is_said(monkeypatch):
    config = configs.get_config("imagenet")
    figures = {"fits": True, "step_seconds": 0.25}
    monkeypatch.setattr(proxy.tpu_cache, "compile_cached", lambda request: figures)
    text, alone = search_config.encode_reference(config), contextlib.nullcontext()
    assert proxy.weigh(config, text, 1000, alone=alone) == {
        "params": 19_341_616,
        "step_seconds": 0.25,
        "step_spread": 0.0,
    }
    figures["fits"] = False
    with pytest.raises(errors.StoppedError, match="does not fit into the memory"):
        proxy.weigh(config, text, 1000, alone=alone)


def _start(workdir, *words):
    command = [sys.executable, "-m", "ev2", "search"]
    command += ["--config=configs/search.py:tiny,controller=evolution"]
    command += [f"--workdir={workdir}", "--config.trials=6", *words]
    command += ["--config.proxy.epochs=0.2", "--config.step_time.batch_size=16"]
    return subprocess.Popen(
        command,
        cwd=pathlib.Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_killed_stopped_and_shared(tmp_path):
    """One worker killed, then told to stop, then two: nothing lost, nothing doubled."""
    first = _start(tmp_path)
    while not (tmp_path / "trials/0001/cost.json").exists():
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.5)
    os.killpg(first.pid, signal.SIGKILL)
    said = first.communicate()[1]
    second = _start(tmp_path)
    while not (tmp_path / "trials/0002/config.json").exists():
        assert second.poll() is None, second.stderr.read()
        time.sleep(0.5)
    second.terminate()
    said += second.communicate()[1]
    assert second.returncode == 75, said
    last = _start(tmp_path, "--workers=2")
    said += last.communicate()[1]
    assert last.returncode == 0, said
    assert said.count(": done, ") == 6, said  # each was trained to the end once
    rows = json.loads((tmp_path / "search.json").read_text())["trials"]
    assert [row["state"] for row in rows] == ["done"] * 6
    # Only those that were under way at the kill and at the stop were tried again.
    assert [row["tries"] > 1 for row in rows] == [False, True, True] + [False] * 3
    assert len({row["arch"] for row in rows}) == 6
    assert len(list((tmp_path / "trials").glob("*/eval.json"))) == 6
