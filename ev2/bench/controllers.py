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
# Standard deviations relative to 1 for single choices: a third of the variance comes
# from choices that depend on each other.
_STAGE, _PAIR = 0.5, 0.5


def make_space() -> spaces.Space:
    """Returns the networks around B4 of half to one and a half its parameters."""
    params = arch.count_params(arch.get(_BACKBONE), 1000)
    low, high = (int(factor * params) for factor in _PARAMS)
    return spaces.Space(backbones=(_BACKBONE,), min_params=low, max_params=high)


class Table:
    """A reward from 0 to 1 for every network of a space of one backbone.

    Attributes:
        best: the candidate of reward 1, within the bounds of the space.
    """

    def __init__(self, space: spaces.Space, seed: int):
        """Draws tables until the best network is within the bounds."""
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
        """Draws numbers for each stage's states and for neighbours' pairs of states."""
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
        """Returns the reward: 0 for the worst network, 1 for the best."""
        states = [
            int(np.ravel_multi_index(indices, self._sizes))
            for indices in _find_indices(self._space, candidate)
        ]
        score = sum(own[state] for own, state in zip(self._own, states, strict=True))
        pairs = zip(self._pairs, itertools.pairwise(states), strict=True)
        score += sum(pair[states] for pair, states in pairs)
        return float((score - self._low) / (self._high - self._low))

    def _to_candidate(self, states: Sequence[int]) -> spaces.Candidate:
        indices = np.ravel([np.unravel_index(s, self._sizes) for s in states])
        choices = zip(self._space.choices.items(), indices, strict=True)
        return {name: values[index] for (name, values), index in choices}


@functools.cache
def _find_same(space: spaces.Space, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """For each stage and state the first state that gives the same network.

    Several offsets may give one layer, since no stage has less.
    """
    first = {key: values[0] for key, values in space.choices.items()}
    names = list(first)
    tables = []
    for start in range(0, len(names), len(_KEYS)):
        states = []
        for indices in itertools.product(*map(range, sizes)):
            chosen = zip(names[start:], indices, strict=False)
            candidate = first | {name: space.choices[name][i] for name, i in chosen}
            same = space.decode(space.encode(candidate))
            found = _find_indices(space, same)[start // len(_KEYS)]
            states.append(np.ravel_multi_index(found, sizes))
        tables.append(np.array(states))
    return tables


def _find_indices(
    space: spaces.Space, candidate: Mapping[str, Any]
) -> list[tuple[int, ...]]:
    """Returns the indices of each stage's values among its choices."""
    found = [v.index(candidate[name]) for name, v in space.choices.items()]
    count = len(_KEYS)
    return [tuple(found[i : i + count]) for i in range(0, len(found), count)]


def find_best(
    own: Sequence[np.ndarray], pairs: Sequence[np.ndarray]
) -> tuple[float, list[int]]:
    """Returns the highest sum along the chain and its states."""
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
        seeds: one search each; a seed draws a table and the controllers' choices.
        names: the controllers, "random" first.

    Returns:
        `{"budget", "seeds", "space_size", "results": [{"name", "reward", "regret",
        "std", "beats_random", "proposal_ms"}]}`: the mean over seeds of the best reward
        found, its distance from 1, the standard deviation of both, the fraction of
        seeds with a better reward than random search, and milliseconds per proposal.

    Raises:
        InputError: a number is below 1.
    """
    for key, value in (("budget", budget), ("seeds", len(seeds))):
        if value < 1:
            raise errors.InputError(f"{key}: {value} is not allowed; give 1 or more")
    jax.config.update("jax_platforms", "cpu")  # as in a search
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = make_space()
    found = {name: [] for name in names}
    for seed in tqdm.tqdm(seeds, unit="seed"):
        table = Table(space, seed)
        for name in names:
            found[name].append(search(name, space, table, seed=seed, budget=budget))
    results = [_summarize(name, found[name], found["random"]) for name in names]
    counts = {"budget": budget, "seeds": len(seeds), "space_size": space.size()}
    return {**counts, "results": results}


def search(
    name: str, space: spaces.Space, table: Table, *, seed: int, budget: int
) -> tuple[float, float]:
    """Returns the best reward of a controller's search, and seconds per proposal."""
    study, best, seconds = optuna.create_study(direction="maximize"), 0.0, 0.0
    for index in range(budget):
        start = time.perf_counter()
        study.sampler = controllers.make_sampler(name, space, seed=seed, index=index)
        trial = study.ask()
        candidate = controllers.suggest(trial, space)
        seconds += time.perf_counter() - start
        reward = table(candidate)
        trial.set_user_attr("arch", space.encode(candidate))
        trial.set_user_attr("reward", reward)
        study.tell(trial, reward)
        best = max(best, reward)
    return best, seconds / budget


def _summarize(name: str, found: Sequence, random: Sequence) -> dict[str, Any]:
    rewards, seconds = zip(*found, strict=True)
    wins = sum(ours[0] > other[0] for ours, other in zip(found, random, strict=True))
    return {
        "name": name,
        "reward": statistics.fmean(rewards),
        "regret": 1 - statistics.fmean(rewards),
        "std": statistics.pstdev(rewards),
        "beats_random": wins / len(found),
        "proposal_ms": 1000 * statistics.fmean(seconds),
    }


def format_table(figures: dict[str, Any]) -> str:
    """Returns the figures of `measure` as a table."""
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
