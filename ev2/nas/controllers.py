"""Proposes the next network of a search from the trials that have ended.

    random      every choice drawn evenly
    evolution   a change to the best of a few recent networks (regularized evolution)
    reinforce   drawn from a policy that learns from rewards, see `reinforce`
    tpe         Optuna's tree-structured Parzen estimator

A controller has no state: any number of workers share one study, and each may die at
any moment. A proposal depends on the trials that have ended, the seed and the index of
the trial. It is a network that no other trial of the study has.

Parameters of trials are indices into `Space.choices`. The attribute "reward" of a trial
that has ended is its reward; trials without a reward are left out. The attribute "arch"
is the text of its network, which otherwise follows from its parameters.
"""

import contextlib
import dataclasses
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import optuna
from optuna.trial import TrialState

from ev2 import errors
from ev2.nas import reward
from ev2.nas import space as spaces
from ev2.sweeps import study as studies

# Tuned on the tables of `ev2.bench.controllers`, seeds 100 to 115, for 40 to 600
# networks, with and without noise and failures.
_POPULATION, _TOURNAMENT = 16, 12
_TPE_FIRST = 10  # drawn at random: Optuna's default
_DRAWS, _CHANGES, SAMPLES = 10, 100, 10_000  # attempts to find a new network

Draw = Callable[[], spaces.Candidate]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Known:
    """The inputs of a proposal; `history` is in the order in which trials ended."""

    space: spaces.Space
    history: list[reward.RewardedTrial]
    rng: random.Random
    study: optuna.Study
    trial: optuna.trial.FrozenTrial
    distributions: dict[str, optuna.distributions.BaseDistribution]


def make_sampler(
    name: str, space: spaces.Space, *, seed: int, index: int
) -> optuna.samplers.BaseSampler:
    """Returns the sampler that proposes the network of a trial.

    Args:
        name: one of `NAMES`.
        space: the networks.
        seed: seed of the search.
        index: index of the trial in the search, from 0; the same for its retries.

    Raises:
        InputError: the name is unknown. `suggest` also raises it if every network of
            the space is in the study.
    """
    errors.check_choice("controller", name, NAMES)
    return _Sampler(_CONTROLLERS[name], space, f"{seed} {index}")


def suggest(trial: optuna.Trial, space: spaces.Space) -> spaces.Candidate:
    """Proposes the network of a trial and stores it as the trial's parameters."""
    params = {
        key: trial.suggest_categorical(key, list(range(len(values))))
        for key, values in space.choices.items()
    }
    return to_candidate(params, space)


def to_candidate(params: Mapping[str, Any], space: spaces.Space) -> spaces.Candidate:
    """Returns the network of a trial's parameters."""
    return {key: values[params[key]] for key, values in space.choices.items()}


class _Sampler(optuna.samplers.BaseSampler):
    """Proposes a network that is valid and new to the study."""

    def __init__(
        self, start: Callable[[_Known], Draw], space: spaces.Space, seed: str
    ) -> None:
        self._start, self._space, self._seed = start, space, seed

    def infer_relative_search_space(self, study, trial) -> dict[str, Any]:
        return {
            key: optuna.distributions.CategoricalDistribution(range(len(values)))
            for key, values in self._space.choices.items()
        }

    def sample_relative(self, study, trial, search_space) -> dict[str, Any]:
        known = _Known(
            space=self._space,
            history=read_history(study, self._space),
            rng=random.Random(self._seed),
            study=study,
            trial=trial,
            distributions=search_space,
        )
        candidate = _find_new(self._start(known), known)
        return {
            k: values.index(candidate[k]) for k, values in self._space.choices.items()
        }

    def sample_independent(self, study, trial, param_name, param_distribution) -> Any:
        raise AssertionError(f"{param_name} is not a choice of the space")


def read_history(
    study: optuna.Study, space: spaces.Space
) -> list[reward.RewardedTrial]:
    """Returns the trials of a study that have a reward, in the order of their ends."""
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    ended = [
        trial
        for trial in study.get_trials(deepcopy=False, states=states)
        if "reward" in trial.user_attrs and trial.params.keys() >= space.choices.keys()
    ]
    ended.sort(key=lambda trial: (trial.datetime_complete, trial.number))
    return [
        reward.RewardedTrial(
            tuple(t.params[key] for key in space.choices), t.user_attrs["reward"]
        )
        for t in ended
    ]


def _find_new(draw: Draw, known: _Known) -> spaces.Candidate:
    """Returns the first drawn network that is valid and new, or raises InputError."""
    space = known.space
    taken = {
        _read_text(trial, space)
        for trial in known.study.get_trials(deepcopy=False)
        # A repeated trial has left its network to another trial.
        if trial.number != known.trial.number
        and trial.user_attrs.get("end") != studies.REPEATED
    }
    for candidate in _try(draw, known):
        if space.encode(candidate) not in taken and space.is_valid(candidate):
            return candidate
    raise errors.InputError(
        f"trials: the space has nothing new after {len(taken - {''}):,} networks; ask "
        "for fewer trials or widen the space"
    )


def _try(draw: Draw, known: _Known) -> Iterator[spaces.Candidate]:
    """Yields drawn networks, then repeated mutations of the last, then random ones."""
    for _ in range(_DRAWS):
        candidate = draw()
        yield candidate
    for _ in range(_CHANGES):
        candidate = known.space.mutate(candidate, known.rng)
        yield candidate
    for _ in range(SAMPLES):
        yield known.space.sample(known.rng)


def _read_text(trial: optuna.trial.FrozenTrial, space: spaces.Space) -> str:
    """Returns the text of a trial's network, "" before its proposal."""
    if "arch" in trial.user_attrs:
        return trial.user_attrs["arch"]
    if trial.params.keys() >= space.choices.keys():
        return space.encode(to_candidate(trial.params, space))
    return ""


def _start_random(known: _Known) -> Draw:
    return lambda: known.space.sample(known.rng)


def _start_evolution(known: _Known) -> Draw:
    """Regularized evolution: the oldest networks leave the population, not the worst.

    Source: Real et al. 2019, Regularized Evolution for Image Classifier Architecture
    Search, Algorithm 1. Differs: a population of 100 and a tournament of 25 there, for
    20,000 networks.
    """
    population = known.history[-_POPULATION:]
    if len(population) < _POPULATION:
        return _start_random(known)

    def draw() -> spaces.Candidate:
        contenders = known.rng.sample(population, _TOURNAMENT)
        winner = max(contenders, key=lambda ended: ended.reward)
        params = dict(zip(known.space.choices, winner.indices, strict=True))
        return known.space.mutate(to_candidate(params, known.space), known.rng)

    return draw


def _start_reinforce(known: _Known) -> Draw:
    from ev2.nas import reinforce  # loads JAX, which other controllers do not need

    sizes = tuple(len(values) for values in known.space.choices.values())
    probabilities = reinforce.learn(sizes, known.history)

    def draw() -> spaces.Candidate:
        choices = zip(known.space.choices.items(), probabilities, strict=True)
        return {k: known.rng.choices(v, p)[0] for (k, v), p in choices}

    return draw


def _start_tpe(known: _Known) -> Draw:
    if len(known.history) < _TPE_FIRST:
        return _start_random(known)
    with _quiet():
        estimator = optuna.samplers.TPESampler(
            n_startup_trials=0,  # drawn above
            seed=known.rng.getrandbits(32),
            multivariate=True,
            constant_liar=True,  # running trials count as bad, so that workers differ
        )

    def draw() -> spaces.Candidate:
        with _quiet():
            inputs = known.study, known.trial, known.distributions
            params = estimator.sample_relative(*inputs)
        return to_candidate(params, known.space)

    return draw


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences Optuna's warnings about experimental options."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


_CONTROLLERS = {
    **{"random": _start_random, "evolution": _start_evolution},
    **{"reinforce": _start_reinforce, "tpe": _start_tpe},
}
NAMES = tuple(_CONTROLLERS)
