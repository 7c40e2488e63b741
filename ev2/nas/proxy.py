"""Times the step of one candidate, then trains it, in a process of its own.

    python -m ev2.nas.proxy TASK --arch=TEXT --workdir=FOLDER    # or --cost=FILE

With --cost the step alone is timed. After a kill at any moment the same command resumes
the candidate. The folder holds cost.json beside the files of `ev2 train`.
"""

import contextlib
import copy
import fcntl
import json
import math
import pathlib
import statistics
import sys
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from ev2 import errors, files
from ev2.models import arch
from ev2.tpu import cache as tpu_cache
from ev2.tpu import compile as tpu_compile
from ev2.train import memory
from ev2.train import workdir as workdirs

COST = "cost.json"
REFUSED = 2  # exit code: no candidate can be trained here
SOURCES = ("measure", "compile")  # of the step time
_TIMED_S = 5.0  # of steps, or ten steps: enough for a median


def apply(recipe: ConfigDict, text: str) -> ConfigDict:
    """Returns the recipe with the network of a text of `Space.encode`."""
    name, _, blocks = text.partition(":")
    config = copy.deepcopy(recipe)
    config.model.name = name
    # The published network has no blocks, so that its checkpoints fit as well.
    same = arch.decode(blocks.split(",")) == arch.get(name).stages
    config.model.blocks = () if same else tuple(blocks.split(","))
    return config


def weigh(
    search: ConfigDict,
    text: str,
    num_classes: int,
    *,
    alone: contextlib.AbstractContextManager,
) -> dict[str, Any]:
    """Returns the cost of a candidate: "params", "step_seconds", "step_spread".

    The step is timed while `alone` is held. "step_spread" is the standard deviation of
    the seconds over their median; 0 for the compiler's estimate.

    Raises:
        StoppedError: the step does not fit into the memory of the slice.
    """
    config, how = apply(search.proxy, text), search.step_time
    network = arch.get(config.model.name, config.model.blocks)
    cost = {"params": arch.count_params(network, num_classes)}
    sizes = {"image_size": how.image_size, "batch_size": how.batch_size}
    if how.source == "measure":
        from ev2.train import timing

        options = {"max_seconds": _TIMED_S, "alone": alone, **sizes}
        seconds = timing.time_train_step(config, num_classes, **options)
        median = statistics.median(seconds)
        spread = statistics.pstdev(seconds) / median
        return {**cost, "step_seconds": median, "step_spread": spread}
    step_config = tpu_compile.step_config(config)
    request = {"config": step_config, "num_classes": num_classes, **sizes}
    figures = tpu_cache.compile_cached(
        tpu_compile.CompileRequest(slice_name=how.slice, **request)
    )
    if not figures["fits"]:
        raise errors.StoppedError(
            f"its step of {how.batch_size:,} images at {how.image_size} px does not "
            f"fit into the memory of {how.slice}"
        )
    return {**cost, "step_seconds": figures["step_seconds"], "step_spread": 0.0}


def main(argv: list[str]) -> int:
    """Runs one candidate and returns the exit code.

    TASK is a JSON file of "search", a config, and "num_classes". Exit codes: 0 done, 1
    the network fails, `REFUSED`, 75 preempted and saved.
    """
    path, *flags = argv
    given = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    task = json.loads(pathlib.Path(path).read_text())
    search = ConfigDict(task["search"], convert_dict=True)
    text, workdir = given["arch"], given.get("workdir", "")
    if workdir:
        pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    cost = pathlib.Path(given["cost"] if "cost" in given else f"{workdir}/{COST}")
    try:
        with _alone(
            f"{cost}.lock"
        ):  # workers that start together time the reference once
            if read_cost(cost, text) is None:
                alone = _alone(f"{path}.lock")
                figures = weigh(search, text, task["num_classes"], alone=alone)
                document = json.dumps({"arch": text, **figures}, indent=1)
                files.write_atomically(cost, document.encode())
    except (errors.InputError, errors.StoppedError) as error:
        return _fail(error, 1)  # this network fails
    try:
        if workdir:
            from ev2.train import loop

            loop.train_and_evaluate(apply(search.proxy, text), workdir)
    except errors.PreemptedError:
        return 75
    except FloatingPointError as error:
        return _fail(error, 1)
    except (errors.InputError, errors.StoppedError) as error:
        return _fail(error, REFUSED)  # no network could be trained
    return 0


def _fail(error: Exception, code: int) -> int:
    print(f"ev2: {error}", file=sys.stderr)
    return code


def read_cost(path: pathlib.Path, text: str) -> dict[str, Any] | None:
    """Reads a cost.json; None if it is missing, damaged or of another network."""
    try:
        cost = workdirs.read_json(path) or {}
        positive = cost["params"] > 0 and 0 < cost["step_seconds"] < math.inf
        return cost if positive and cost["arch"] == text else None
    except (errors.InputError, LookupError, TypeError):
        return None


@contextlib.contextmanager
def _alone(path: str) -> Iterator[None]:
    """Holds an exclusive file lock."""
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    memory.keep_freed()
    sys.exit(main(sys.argv[1:]))
