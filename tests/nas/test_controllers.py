"""pytest tests/nas/test_controllers.py

Proposals are new and valid, the same on all workers, and better than chance.
"""

import dataclasses
import datetime
import itertools
import json
import random
import subprocess
import sys
from typing import Any

import numpy as np
import optuna
import pytest

from ev2 import errors
from ev2.bench import controllers as bench
from ev2.cli import main as cli
from ev2.nas import controllers, reinforce, reward
from ev2.nas import space as spaces

# Stages of 1, 1, 2 and 2 layers: with one fewer the first two are as they were, so of
# 256 candidates 64 are different networks.
SMALL = spaces.Space(
    backbones=("efficientnetv2-tiny",),
    operators=("mbconv",),
    layers=(-1, 0),
    kernels=(3,),
    expands=(1, 4),
    num_classes=10,
)
NAMES = pytest.mark.parametrize("name", controllers.NAMES)


@pytest.fixture(autouse=True)
def quiet_optuna():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def propose(name, space, study, *, seed=0, index=0):
    """A running trial, and the network that it is to try."""
    study.sampler = controllers.make_sampler(name, space, seed=seed, index=index)
    trial = study.ask()
    return trial, controllers.suggest(trial, space)


def finish(study, trial, value):
    trial.set_user_attr("reward", value)
    study.tell(trial, value)


def make_history(space, count, *, seed=0):
    """A study of random networks and random rewards."""
    study, rng = optuna.create_study(direction="maximize"), random.Random(seed)
    for index in range(count):
        trial, _ = propose("random", space, study, seed=seed, index=index)
        finish(study, trial, rng.random())
    return study


def enumerate_texts(space):
    """The texts of all valid networks, one by one."""
    values = itertools.product(*space.choices.values())
    candidates = [dict(zip(space.choices, chosen, strict=True)) for chosen in values]
    return {space.encode(c) for c in candidates if space.is_valid(c)}


def test_evolution_and_reinforce_beat_random():
    names = ("random", "evolution", "reinforce")
    figures = bench.measure(budget=60, seeds=range(4), names=names)
    chance, evolved, learned = (row["reward"] for row in figures["results"])
    assert evolved > chance + 0.03 and learned > chance + 0.03
    assert figures["results"][0]["beats_random"] == 0


@NAMES
def test_all_networks_come_once_and_then_none(name, monkeypatch):
    monkeypatch.setattr(controllers, "SAMPLES", 300)
    space = dataclasses.replace(SMALL, max_params=66_000)
    expected = enumerate_texts(space)
    assert 20 < len(expected) < len(enumerate_texts(SMALL)) == 64
    study, seen = optuna.create_study(direction="maximize"), []
    for index in range(len(expected)):
        trial, candidate = propose(name, space, study, index=index)
        seen.append(space.encode(candidate))
        if index % 3 == 0:
            continue  # runs on: known by its parameters
        trial.set_user_attr("arch", seen[-1])
        finish(study, trial, len(seen[-1]) / 1000)
    assert sorted(seen) == sorted(expected)
    with pytest.raises(errors.InputError, match=f"new after {len(expected)} networks"):
        propose(name, space, study, index=len(expected))
    # One that is tried again has its network from before.
    study.enqueue_trial(dict.fromkeys(space.choices, 0))
    _, candidate = propose(name, space, study)
    assert candidate == {key: values[0] for key, values in space.choices.items()}


@NAMES
def test_a_proposal_follows_from_history_seed_and_index(name):
    space = bench.make_space()

    def draw(seed, index):
        reinforce.learned.clear()
        return propose(name, space, make_history(space, 24), seed=seed, index=index)[1]

    first = draw(3, 24)
    assert first == draw(3, 24) and space.is_valid(first)
    assert first != draw(4, 24) and first != draw(3, 25)


def test_a_child_differs_in_one_choice_from_one_of_the_last_16():
    space, known = bench.make_space(), []
    study, rng = optuna.create_study(direction="maximize"), random.Random(0)
    for index in range(40):
        trial, candidate = propose("random", space, study, index=index)
        known.append(candidate)
        finish(study, trial, 1 - index / 100 + rng.random() / 100)
    for index in range(40, 60):
        _, child = propose("evolution", space, study, index=index)
        apart = [sum(child[k] != one[k] for k in child) for one in known]
        assert apart.index(1) >= 24
        # Of 12 of the 16 the best: one of the 5 best, which here are the oldest.
        assert apart.index(1) < 24 + 5


def test_history_is_what_has_a_reward_in_the_order_of_its_end():
    study, values = optuna.create_study(direction="maximize"), [0, 1, 2, 3, 4]
    zero = optuna.distributions.CategoricalDistribution([0])
    kinds: dict[str, Any] = dict.fromkeys(SMALL.choices, zero)
    start = datetime.datetime(2026, 1, 1)
    ends = [(3, 0.3), (1, 0.1), (2, None), (1, 0.2), (4, 0.0)]
    for number, (minutes, value) in zip(values, ends, strict=True):
        trial = optuna.trial.create_trial(
            params=dict.fromkeys(kinds, 0),
            distributions=kinds,
            value=number,
            user_attrs={} if value is None else {"reward": value},
        )
        trial.datetime_complete = start + datetime.timedelta(minutes=minutes)
        study.add_trial(trial)
    running, _ = propose("random", SMALL, study)
    running.set_user_attr("reward", 0.9)
    history = controllers.read_history(study, SMALL)
    assert [ended.reward for ended in history] == [0.1, 0.2, 0.3, 0.0]
    assert history[0].indices == (0,) * len(kinds)


def test_the_policy_learns_which_value_pays():
    rng, history = random.Random(0), []
    sizes = (2, 3, 1)
    for _ in range(20):
        for _ in range(5):
            shares = reinforce.learn(sizes, history)
            drawn = tuple(rng.choices(range(len(s)), s)[0] for s in shares)
            value = 0.5 + 0.1 * (drawn[1] == 2)
            history.append(reward.RewardedTrial(drawn, value))
    assert reinforce.learn(sizes, history[:4]) == [[1 / 2] * 2, [1 / 3] * 3, [1.0]]
    shares = reinforce.learn(sizes, history)
    assert [len(row) for row in shares] == [2, 3, 1]
    assert [sum(row) for row in shares] == pytest.approx([1, 1, 1], abs=1e-5)
    assert shares[1][2] > 0.9 and max(shares[0]) < 0.9
    reinforce.learned.clear()  # all at once is as bit by bit
    assert reinforce.learn(sizes, history) == shares


def test_only_reinforce_loads_jax():
    code = """if True:
        import sys, optuna
        from ev2.nas import controllers, space
        tiny = space.Space(backbones=("efficientnetv2-tiny",))
        study = optuna.create_study()
        for name in ("random", "evolution"):
            study.sampler = controllers.make_sampler(name, tiny, seed=0, index=0)
            controllers.suggest(study.ask(), tiny)
        print("jax" in sys.modules)"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert run.stdout.split() == [b"False"]


def test_unknown_controllers_are_refused():
    with pytest.raises(
        errors.InputError, match="controller: 'bayes' .* reinforce, tpe"
    ):
        controllers.make_sampler("bayes", SMALL, seed=0, index=0)


def test_dynamic_programming_finds_the_best_chain():
    rng = np.random.default_rng(0)
    own, pairs = rng.normal(size=(4, 3)), rng.normal(size=(3, 3, 3))

    def add(states):
        alone = sum(own[i][state] for i, state in enumerate(states))
        return alone + sum(pairs[i][states[i], states[i + 1]] for i in range(3))

    expected = max(itertools.product(range(3), repeat=4), key=add)
    score, states = bench.find_best(list(own), list(pairs))
    assert tuple(states) == expected and score == pytest.approx(add(expected))


def test_no_network_is_better_than_the_known_best():
    space, rng = bench.make_space(), random.Random(0)
    table = bench.Table(space, 0)
    assert table(table.best) == pytest.approx(1) and space.is_valid(table.best)
    for _ in range(100):
        assert 0 <= table(space.mutate(table.best, rng)) < 1
        assert 0 <= table(space.sample(rng)) < 1
    # B4's first stage has two layers: one or two fewer leave one.
    same = [{**table.best, "stage1_layers": offset} for offset in (-2, -1)]
    assert table(same[0]) == table(same[1])


def test_the_verb_prints_a_table_and_writes_json(tmp_path, capsys):
    path = tmp_path / "controllers.json"
    argv = ["bench", "controllers", "--budget=12", "--seeds=2", f"--json={path}"]
    assert cli.main(argv) == 0
    figures, table = json.loads(path.read_text()), capsys.readouterr().out
    assert (figures["budget"], figures["seeds"]) == (12, 2)
    assert [row["name"] for row in figures["results"]] == list(controllers.NAMES)
    for row in figures["results"]:
        assert f"{row['reward']:.4f}" in table
        assert row["reward"] + row["regret"] == pytest.approx(1)
    assert cli.main(["bench", "controllers", "--seeds=0"]) == 2
