"""python -m pytest tests/launch/test_space.py

Sweep files: what they may say, and the points that follow from them.
"""

import collections
import math

import ml_collections
import optuna
import pytest

from configs import demo
from ev2 import errors
from launch import space

LR = {"low": 0.01, "high": 0.16, "log": True}


def parse(**said) -> space.Sweep:
    said = {"method": "random", "trials": 3, "keys": {"optimizer.lr": LR}, **said}
    return space.parse({k: v for k, v in said.items() if v is not None})


def grid(**keys) -> space.Sweep:
    return parse(method="grid", trials=None, keys=keys)


def test_a_grid_is_every_combination_once():
    sweep = grid(a=[1, 2, 3], b=[(16, 28), (20, 28)])
    points = space.points(sweep)
    assert sweep.trials == len(points) == 6
    values = [tuple(space.decode(sweep, point).items()) for point in points]
    assert len(set(values)) == 6
    assert values[1] == (("a", 1), ("b", (20, 28)))


def draw(sweep: space.Sweep, count: int) -> list[dict]:
    """The values of the first trials, as workers of a new study suggest them."""
    study, found = optuna.create_study(), []
    for index in range(count):
        study.sampler = space.make_sampler(sweep, index)
        found.append(space.suggest(study.ask(), sweep))
    return found


def test_random_draws_follow_from_the_seed_and_keep_to_their_range():
    keys = {
        "log": {"low": 1e-6, "high": 1e-2, "log": True},
        "flat": {"low": -1.0, "high": 1.0},
        "whole": {"low": 1, "high": 3},
        "whole_log": {"low": 1, "high": 1000, "log": True},
        "step": {"low": 0.0, "high": 0.5, "step": 0.25},
        "choice": ["a", "b"],
    }
    sweep = parse(keys=keys, trials=400)
    draws = draw(sweep, 400)
    assert draws == draw(sweep, 400)
    assert draws[:100] == draw(parse(keys=keys, trials=100), 100)
    assert draws[:100] != draw(parse(keys=keys, seed=1), 100)
    columns = {key: [values[key] for values in draws] for key in keys}
    assert all(1e-6 <= value <= 1e-2 for value in columns["log"])
    assert 0.4 < sum(value < 1e-4 for value in columns["log"]) / 400 < 0.6
    assert abs(sum(columns["flat"]) / 400) < 0.1
    assert set(columns["whole"]) == {1, 2, 3}
    assert collections.Counter(columns["whole"]).most_common()[-1][1] > 100
    assert all(type(value) is int for value in columns["whole_log"])
    assert 0.55 < sum(value < 100 for value in columns["whole_log"]) / 400 < 0.75
    assert set(columns["step"]) == {0.0, 0.25, 0.5}
    assert set(columns["choice"]) == {"a", "b"}


def test_optuna_takes_the_points_as_they_are():
    keys = {
        "optimizer.lr": [0.01, 0.02],
        "progressive.image_size": [(16, 28), (20, 28)],
        "progressive.adaptive": [True, False],
    }
    sweep = grid(**keys)
    study = optuna.create_study()
    for point in space.points(sweep):
        study.enqueue_trial(point)
        trial = study.ask()
        assert space.suggest(trial, sweep) == space.decode(sweep, point)
        assert trial.params == point


def test_without_points_optuna_suggests():
    sweep = parse(method="tpe", keys={"lr": LR, "size": [(16, 28), (20, 28)]})
    assert space.points(sweep) == [{}, {}, {}]
    values = space.suggest(optuna.create_study().ask(), sweep)
    assert 0.01 <= values["lr"] <= 0.16 and values["size"] in [(16, 28), (20, 28)]


def test_values_arrive_as_on_the_command_line():
    values = {"a.lr": 0.1, "b": (20, 28), "c": True, "d": "sgd", "e": 3, "f": 1e-06}
    assert space.as_flags(values) == [
        "--config.a.lr=0.1",
        "--config.b=(20, 28)",
        "--config.c=true",
        "--config.d=sgd",
        "--config.e=3",
        "--config.f=1e-06",
    ]


def test_ranges_take_the_config_s_type():
    sweep = parse(keys={"optimizer.lr": {"low": 1, "high": 2}})
    (found,) = space.fit(sweep, demo.get_config()).keys.values()
    assert isinstance(found, space.Range) and not found.whole
    assert isinstance(space.points(space.fit(sweep, demo.get_config()))[0], dict)
    whole = parse(keys={"progressive.stages": {"low": 1, "high": 4}})
    (found,) = space.fit(whole, demo.get_config()).keys.values()
    assert isinstance(found, space.Range) and found.whole


@pytest.mark.parametrize(
    "keys, message",
    [
        (
            {"optimizer.rate": [0.1]},
            "sweep: key 'optimizer.rate' is not in the config; nearest: optimizer.",
        ),
        ({"optimizer": [0.1]}, "sweep: key 'optimizer' is not in the config"),
        (
            {"progressive.stages": {"low": 1.0, "high": 4.0}},
            "sweep: keys['progressive.stages']: 1.0 is not allowed; give int",
        ),
        ({"optimizer.name": ["sgd", 3]}, "keys['optimizer.name']: 3 is not allowed"),
    ],
)
def test_keys_are_checked_against_the_config(keys, message):
    with pytest.raises(errors.InputError) as raised:
        space.fit(parse(keys=keys), demo.get_config())
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "said, message",
    [
        ({"method": "gird"}, "method: 'gird' is not known; choose one of grid, random"),
        ({"method": None}, "method: None is not known"),
        ({"trails": 3}, "sweep: entry: 'trails' is not known; choose one of method"),
        ({"keys": {}}, "sweep: keys: {} is not allowed; give a dict of config keys"),
        ({"keys": None}, "sweep: keys: None is not allowed"),
        ({"keys": {"a": []}}, "keys['a']: [] is not allowed; give a list of values"),
        ({"keys": {"a": [1, 1]}}, "none of them twice"),
        ({"keys": {"a": 1}}, "give a list, or a dict with low, high"),
        ({"keys": {"a": {"low": 1}}}, "give a list, or a dict with low, high"),
        ({"keys": {"a": {"low": 2, "high": 1}}}, "give numbers, low below high"),
        ({"keys": {"a": {"low": 0, "high": 1, "log": True}}}, "low above 0"),
        ({"keys": {"a": {"low": 0, "high": 9, "step": 0.5}}}, "give a step above 0"),
        ({"keys": {"a": {"low": 0.0, "high": math.nan}}}, "give numbers"),
        ({"trials": None}, "sweep: trials: 0 is not allowed; give 1 to 100000"),
        ({"trials": True}, "sweep: trials: True is not allowed"),
        ({"method": "grid"}, "keys['optimizer.lr']: Range("),
        ({"method": "grid", "keys": {"a": [1, 2]}}, "nothing: this grid has 2 points"),
        ({"prune": "hyper"}, "prune: 'hyper' is not known"),
        ({"prune_after": 0}, "prune_after: 0 is not allowed"),
        ({"goal": "max"}, "goal: 'max' is not known"),
        ({"score": ""}, "score: '' is not allowed"),
    ],
)
def test_what_no_sweep_can_be_is_refused(said, message):
    with pytest.raises(errors.InputError) as raised:
        parse(**said)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "there is no file"),
        ("def get_sweep(:\n", "SyntaxError"),
        ("x = 1\n", "it needs a get_sweep() that returns a dict"),
        ("def get_sweep():\n    return [1]\n", "get_sweep(): [1] is not allowed"),
        ("def get_sweep():\n    return 1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_files_that_are_no_sweeps(tmp_path, text, message):
    path = tmp_path / "sweep.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(errors.InputError) as raised:
        space.load(str(path))
    assert message in str(raised.value)


def test_the_sweeps_that_come_along_fit_their_config():
    sweep = space.load("configs/sweeps/demo.py")
    config = demo.get_config()
    assert isinstance(config, ml_collections.ConfigDict)
    assert space.fit(sweep, config).trials == 12
