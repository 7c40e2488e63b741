"""Compares controllers on networks of known reward: `ev2 bench controllers`.

    ev2 bench controllers --budget=200 --seeds=20

Nothing is trained. The reward of a network is a sum of random numbers: one for each
choice of a stage, one for each stage as a whole, and one for each pair of equal choices
of neighbouring stages. Every seed draws its own numbers. Dynamic programming finds the
best network of such a chain exactly, and with it the regret of a controller.
"""

import functools
import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optuna
import tabulate
import tqdm

from ev2 import errors
from ev2.models import arch
from ev2.nas import controllers
from ev2.nas import space as spaces

_BACKBONE = "efficientnet-b4"
_PARAMS = (0.5, 1.5)  # bounds, relative to the backbone
_KEYS = ("operator", "layers", "kernel", "expand")
# Standard deviations relative to 1 for single choices: a third of all variance is of
# choices that depend on each other.
_STAGE, _PAIR = 0.5, 0.5


def make_space() -> spaces.Space:
    """Returns the space: networks around B4, of half to one and a half its size."""
    params = arch.count_params(arch.get(_BACKBONE), 1000)
    low, high = (int(factor * params) for factor in _PARAMS)
    return spaces.Space(backbones=(_BACKBONE,), min_params=low, max_params=high)


class Table:
    """A reward of 0 to 1 for every network of a space of one backbone.

    Attributes:
        best: the one candidate of reward 1, within the bounds of the space.
    """

    def __init__(self, space: spaces.Space, seed: int):
        """Draws tables until the best network of all is within the bounds."""
        self._space = space
        self._sizes = tuple(len(space.choices[f"stage1_{key}"]) for key in _KEYS)
        self._same = _find_same(space, self._sizes)
        for attempt in itertools.count():
            self._draw(np.random.default_rng([seed, attempt]))
            self._high, states = find_best(self._own, self._pairs)
            self.best = self._to_candidate(states)
            if space.is_valid(self.best):
                break
        self._low = -find_best([-t for t in self._own], [-t for t in self._pairs])[0]

    def _draw(self, rng: np.random.Generator) -> None:
        """Sets the numbers of each stage's states, and of neighbours' pairs of them."""
        count = int(np.prod(self._sizes))
        parts = np.unravel_index(np.arange(count), self._sizes)
        self._own, self._pairs = [], []
        for same in self._same:
            own = rng.normal(0, _STAGE, count)
            for size, part in zip(self._sizes, parts, strict=True):
                own += rng.normal(0, 1, size)[part]
            self._own.append(own[same])
        for same, following in itertools.pairwise(self._same):
            pair = np.zeros((count, count))
            for size, part in zip(self._sizes, parts, strict=True):
                pair += rng.normal(0, _PAIR, (size, size))[np.ix_(part, part)]
            self._pairs.append(pair[np.ix_(same, following)])

    def __call__(self, candidate: Mapping[str, Any]) -> float:
        """Returns the reward: 0 for the worst network of all, 1 for the best."""
        states = [
            int(np.ravel_multi_index(indices, self._sizes))
            for indices in _find_indices(self._space, candidate)
        ]
        score = sum(own[state] for own, state in zip(self._own, states, strict=True))
        pairs = zip(self._pairs, itertools.pairwise(states), strict=True)
        score += sum(pair[states] for pair, states in pairs)
        return float((score - self._low) / (self._high - self._low))

    def _to_candidate(self, states: Sequence[int]) -> spaces.Candidate:
        candidate = {}
        for stage, state in enumerate(states, 1):
            indices = np.unravel_index(state, self._sizes)
            for key, index in zip(_KEYS, indices, strict=True):
                name = f"stage{stage}_{key}"
                candidate[name] = self._space.choices[name][index]
        return candidate


@functools.cache
def _find_same(space: spaces.Space, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """For each stage and state the first state that means the same network.

    Offsets that would leave no layer leave one, so several of them mean the same.
    """
    first = {key: values[0] for key, values in space.choices.items()}
    tables = []
    for stage in range(1, len(first) // len(_KEYS) + 1):
        states = []
        for indices in itertools.product(*map(range, sizes)):
            names = [f"stage{stage}_{key}" for key in _KEYS]
            chosen = {
                n: space.choices[n][i] for n, i in zip(names, indices, strict=True)
            }
            same = space.decode(space.encode(first | chosen))
            found = _find_indices(space, same)[stage - 1]
            states.append(np.ravel_multi_index(found, sizes))
        tables.append(np.array(states))
    return tables


def _find_indices(
    space: spaces.Space, candidate: Mapping[str, Any]
) -> list[tuple[int, ...]]:
    """The indices of each stage's values among its choices."""
    stages = len(space.choices) // len(_KEYS)
    return [
        tuple(space.choices[name].index(candidate[name]) for name in names)
        for names in ([f"stage{s + 1}_{key}" for key in _KEYS] for s in range(stages))
    ]


def find_best(
    own: Sequence[np.ndarray], pairs: Sequence[np.ndarray]
) -> tuple[float, list[int]]:
    """The highest sum along the chain and its states, by dynamic programming."""
    score, origins = own[0], []
    for numbers, pair in zip(own[1:], pairs, strict=True):
        sums = score[:, None] + pair  # [state before, state]
        origins.append(sums.argmax(axis=0))
        score = sums.max(axis=0) + numbers
    states = [int(score.argmax())]
    for origin in reversed(origins):
        states.append(int(origin[states[-1]]))
    return float(score.max()), states[::-1]


def measure(
    *,
    budget: int = 200,
    seeds: Sequence[int] = range(20),
    names: Sequence[str] = controllers.NAMES,
) -> dict[str, Any]:
    """Returns the best reward that every controller finds.

    Args:
        budget: candidates of a search.
        seeds: of a table and of the controllers' draws; a search for each.
        names: of the controllers, "random" first.

    Returns:
        `{"budget", "seeds", "space_size", "results": [{"name", "reward", "regret",
        "std", "beats_random", "proposal_ms"}]}`: the mean over seeds of the best reward
        found, its distance from the best network's, the standard deviation of both, the
        fraction of seeds in which it is above random's, and milliseconds a proposal.

    Raises:
        InputError: a number is below 1.
    """
    for key, value in (("budget", budget), ("seeds", len(seeds))):
        if value < 1:
            raise errors.InputError(f"{key}: {value} is not allowed; give 1 or more")
    jax.config.update("jax_platforms", "cpu")  # where a search's policy is
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = make_space()
    found = {name: [] for name in names}
    for seed in tqdm.tqdm(seeds, unit="seed"):
        table = Table(space, seed)
        for name in names:
            found[name].append(search(name, space, table, seed=seed, budget=budget))
    rate = functools.partial(_rate, known=found["random"])
    return {
        "budget": budget,
        "seeds": len(seeds),
        "space_size": space.size(),
        "results": [rate(name, found[name]) for name in names],
    }


def search(
    name: str, space: spaces.Space, table: Table, *, seed: int, budget: int
) -> tuple[float, float]:
    """Returns the best reward that a controller finds, and its seconds a proposal."""
    study, best, seconds = optuna.create_study(direction="maximize"), 0.0, 0.0
    for index in range(budget):
        start = time.perf_counter()
        make = controllers.make_sampler
        study.sampler = make(name, space, seed=seed, index=index)
        trial = study.ask()
        candidate = controllers.suggest(trial, space)
        seconds += time.perf_counter() - start
        reward = table(candidate)
        trial.set_user_attr("arch", space.encode(candidate))
        trial.set_user_attr("reward", reward)
        study.tell(trial, reward)
        best = max(best, reward)
    return best, seconds / budget


def _rate(
    name: str,
    found: Sequence[tuple[float, float]],
    *,
    known: Sequence[tuple[float, float]],
) -> dict[str, Any]:
    rewards = [reward for reward, _ in found]
    wins = sum(ours[0] > other[0] for ours, other in zip(found, known, strict=True))
    return {
        "name": name,
        "reward": statistics.fmean(rewards),
        "regret": 1 - statistics.fmean(rewards),
        "std": statistics.pstdev(rewards),
        "beats_random": wins / len(found),
        "proposal_ms": 1000 * statistics.fmean(seconds for _, seconds in found),
    }


def format_table(figures: dict[str, Any]) -> str:
    """Returns the figures of `measure` as a table for people."""
    title = (
        f"{figures['budget']:,} of {figures['space_size']:,} networks a search, "
        f"{figures['seeds']} seeds; the best network has reward 1"
    )
    head = ("", "reward", "regret", "std", "beats random", "ms a proposal")
    rows = [
        (row["name"], row["reward"], row["regret"], row["std"])
        + (f"{row['beats_random']:.0%}", row["proposal_ms"])
        for row in figures["results"]
    ]
    formats = ("", ".4f", ".4f", ".4f", "", ".1f")
    sides = ("left", *["right"] * (len(head) - 1))
    table = tabulate.tabulate(rows, head, "plain", floatfmt=formats, colalign=sides)
    return f"{title}\n{table}"
