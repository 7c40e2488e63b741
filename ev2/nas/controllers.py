"""Proposes the next network of a search from the trials that have ended.

    random      every choice evenly
    evolution   a change to the best of a few recent ones (regularized evolution)
    reinforce   drawn from a policy that learns from rewards, see `reinforce`
    tpe         Optuna's tree-structured Parzen estimator

A controller has no state of its own: any number of workers share one study and any of
them may die, so a proposal follows from the trials that have ended, the seed and the
index of the trial. No network is proposed that another trial of the study has.

Parameters of trials are indices into `Space.choices`. The reward of a trial that has
ended is its attribute "reward"; trials without one are left out. The text of its
network is its attribute "arch", or else follows from its parameters.
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
_TPE_FIRST = 10  # drawn at random: Optuna's own number
_DRAWS, _CHANGES, SAMPLES = 10, 100, 10_000  # tries to find a new network

Draw = Callable[[], spaces.Candidate]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Known:
    """What a proposal follows from; `history` is in the order in which trials ended."""

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
        name: of `NAMES`.
        space: of networks.
        seed: of the search.
        index: of the trial in the search, from 0; its retries have the same.

    Raises:
        InputError: the name is not known. `suggest` also raises it, if every network
            of the space is in the study.
    """
    errors.check_choice("controller", name, NAMES)
    return _Sampler(_CONTROLLERS[name], space, f"{seed} {index}")


def suggest(trial: optuna.Trial, space: spaces.Space) -> spaces.Candidate:
    """Returns the network that a trial is to try, and keeps it as its parameters."""
    params = {
        key: trial.suggest_categorical(key, list(range(len(values))))
        for key, values in space.choices.items()
    }
    return to_candidate(params, space)


def to_candidate(params: Mapping[str, Any], space: spaces.Space) -> spaces.Candidate:
    """Returns the network of a trial's parameters."""
    return {key: values[params[key]] for key, values in space.choices.items()}


class _Sampler(optuna.samplers.BaseSampler):
    """Proposes a whole network, valid and new to the study."""

    def __init__(
        self, start: Callable[[_Known], Draw], space: spaces.Space, seed: str
    ) -> None:
        self._start, self._space, self._seed = start, space, seed

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, optuna.distributions.BaseDistribution]:
        return {
            key: optuna.distributions.CategoricalDistribution(range(len(values)))
            for key, values in self._space.choices.items()
        }

    def sample_relative(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        search_space: dict[str, optuna.distributions.BaseDistribution],
    ) -> dict[str, Any]:
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
        raise AssertionError(f"{param_name} is no choice of the space")


def read_history(
    study: optuna.Study, space: spaces.Space
) -> list[reward.RewardedTrial]:
    ended = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if "reward" in trial.user_attrs
        and trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        and trial.params.keys() >= space.choices.keys()
    ]
    ended.sort(key=lambda trial: (trial.datetime_complete, trial.number))
    return [
        reward.RewardedTrial(
            tuple(t.params[key] for key in space.choices), t.user_attrs["reward"]
        )
        for t in ended
    ]


def _find_new(draw: Draw, known: _Known) -> spaces.Candidate:
    """The first network tried that is valid and that no other trial has.

    Raises:
        InputError: there is none.
    """
    space = known.space
    taken = {_read_text(other, space) for other in _others(known)}
    for candidate in _try(draw, known):
        if space.encode(candidate) not in taken and space.is_valid(candidate):
            return candidate
    raise errors.InputError(
        f"trials: the space has nothing new after {len(taken - {''}):,} networks; ask "
        "for fewer trials or widen the space"
    )


def _try(draw: Draw, known: _Known) -> Iterator[spaces.Candidate]:
    """Yields networks as drawn, then ever more changes to the last, then any."""
    for _ in range(_DRAWS):
        candidate = draw()
        yield candidate
    for _ in range(_CHANGES):
        candidate = known.space.mutate(candidate, known.rng)
        yield candidate
    for _ in range(SAMPLES):
        yield known.space.sample(known.rng)


def _others(known: _Known) -> list[optuna.trial.FrozenTrial]:
    """Other trials that hold a network; a repeated one has left it to another trial."""
    return [
        trial
        for trial in known.study.get_trials(deepcopy=False)
        if trial.number != known.trial.number
        and trial.user_attrs.get("end") != studies.REPEATED
    ]


def _read_text(trial: optuna.trial.FrozenTrial, space: spaces.Space) -> str:
    """The text of a trial's network, "" if it has none yet."""
    if "arch" in trial.user_attrs:
        return trial.user_attrs["arch"]
    if trial.params.keys() >= space.choices.keys():
        return space.encode(to_candidate(trial.params, space))
    return ""


def _start_random(known: _Known) -> Draw:
    return lambda: known.space.sample(known.rng)


def _start_evolution(known: _Known) -> Draw:
    """Regularized evolution: the oldest leave the population, not the worst.

    Source: Real et al. 2019, Regularized Evolution for Image Classifier Architecture
    Search, Algorithm 1. Differs: there the population is 100 and the tournament 25,
    for 20,000 networks.
    """
    population = known.history[-_POPULATION:]
    if len(population) < _POPULATION:
        return _start_random(known)

    def draw() -> spaces.Candidate:
        contenders = known.rng.sample(population, _TOURNAMENT)
        winner = max(contenders, key=lambda ended: ended.reward)
        return known.space.mutate(_look_up(winner.indices, known.space), known.rng)

    return draw


def _look_up(indices: tuple[int, ...], space: spaces.Space) -> spaces.Candidate:
    return to_candidate(dict(zip(space.choices, indices, strict=True)), space)


def _start_reinforce(known: _Known) -> Draw:
    from ev2.nas import reinforce  # loads JAX; the other controllers do without

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
            n_startup_trials=0,  # done above
            seed=known.rng.getrandbits(32),
            multivariate=True,
            constant_liar=True,  # what runs counts as bad, so that workers spread
        )

    def draw() -> spaces.Candidate:
        with _quiet():
            params = estimator.sample_relative(
                known.study, known.trial, known.distributions
            )
        return to_candidate(params, known.space)

    return draw


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences Optuna's warning that options are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


_CONTROLLERS = {
    "random": _start_random,
    "evolution": _start_evolution,
    "reinforce": _start_reinforce,
    "tpe": _start_tpe,
}
NAMES = tuple(_CONTROLLERS)
