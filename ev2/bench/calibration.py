"""Compares the compiler's hours with the paper's: `ev2 bench calibration PLAN.json...`

    ev2 plan --config=configs/imagenet1k.py:s --tpu=v3-32 --json=runs/s.json
    ev2 bench calibration runs/*.json                 # docs/results.md has more

The paper measured hours on 32 TPU v3 cores. The compiler counts the arithmetic and the
memory traffic of training steps, but neither evaluation nor waiting for data or other
cores. The factor between the two predicts the hours of an untrained network. The spread
of the factor is the error of that prediction. A search depends on the order of networks
alone, so the order is compared as well.
"""

import itertools
import json
import math
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

import tabulate

from ev2 import errors

# Hours of training on ImageNet1k with 32 TPU v3 cores by network and stages.
# Source: paper, Table 7 (S, M, L; fixed sizes of V1), Table 10 (B7, progressive) and
# Table 12 (ResNet-50 at 224 px). The first sizes of V1 are not in the paper.
PAPER_HOURS = {
    ("efficientnetv2-s", 4): 7.1,
    ("efficientnetv2-m", 4): 13.0,
    ("efficientnetv2-l", 4): 24.0,
    ("efficientnet-b7", 4): 54.0,
    ("efficientnet-b4", 1): 20.8,
    ("efficientnet-b5", 1): 42.9,
    ("efficientnet-b6", 1): 75.0,
    ("efficientnet-b7", 1): 139.0,
    ("resnet50", 1): 4.9,
}
SLICE, EPOCHS = "v3-32", 350.0


def compare(paths: Sequence[str]) -> dict[str, Any]:
    """Returns the factor between the paper's hours and the compiler's.

    Args:
        paths: files that `ev2 plan --tpu=v3-32 --json` wrote, of full recipes.

    Returns:
        "results", a row per plan of "model", "stages", "compiler_hours",
        "paper_hours" and "factor"; "factor", the geometric mean; "spread", the largest
        ratio of a row's factor to the mean or its inverse; `compare_order` of the
        hours, with plans as "network, stages"; "versions".

    Raises:
        InputError: if a file is not a plan of one of the paper's runs.
    """
    plans = [_read(path) for path in paths]
    rows = []
    for plan in plans:
        row = {"model": plan["model"], "stages": len(plan["stages"])}
        ours, papers = plan["tpu"]["hours"], PAPER_HOURS[row["model"], row["stages"]]
        row |= {"compiler_hours": ours, "paper_hours": papers, "factor": papers / ours}
        rows.append(row)
    logs = [math.log(row["factor"]) for row in rows]
    mean = statistics.fmean(logs)
    return {
        "results": rows,
        "factor": math.exp(mean),
        "spread": math.exp(max(abs(log - mean) for log in logs)),
        **compare_order(
            [f"{row['model']}, {row['stages']}" for row in rows],
            [row["compiler_hours"] for row in rows],
            [row["paper_hours"] for row in rows],
        ),
        "versions": plans[0]["tpu"]["versions"],
    }


def compare_order(
    names: Sequence[str], ours: Sequence[float], papers: Sequence[float]
) -> dict[str, Any]:
    """Compares the orders in which two lists of numbers put the same names.

    Returns:
        "rank_correlation", Spearman's, 1 for the same order and -1 for the reverse;
        None for fewer than 3 names, or if all numbers of a list are equal.
        "misordered", the pairs of names that the lists put in opposite order. Equal
        numbers share the mean of their ranks and are not misordered.
    """
    correlation = None
    if len(names) >= 3 and min(len(set(ours)), len(set(papers))) > 1:
        from scipy import stats  # required by jax; slow to load

        correlation = float(stats.spearmanr(ours, papers).statistic)
    rows = zip(names, ours, papers, strict=True)
    pairs = [
        [a[0], b[0]]
        for a, b in itertools.combinations(rows, 2)
        if (a[1] - b[1]) * (a[2] - b[2]) < 0
    ]
    return {"rank_correlation": correlation, "misordered": pairs}


def format_order(figures: dict[str, Any]) -> str:
    """Returns the figures of `compare_order` as one line."""
    correlation = figures["rank_correlation"]
    pairs = [" and ".join(pair) for pair in figures["misordered"]]
    text = "unknown, of 3 or more" if correlation is None else f"{correlation:.2f}"
    return f"rank correlation {text}; in the wrong order: {'; '.join(pairs) or 'none'}"


def _read(path: str) -> dict[str, Any]:
    """Returns the plan in a file; InputError if the paper has no hours for it."""
    try:
        plan = json.loads(pathlib.Path(path).read_text())
        key = (plan["model"], len(plan["stages"]))
        slice_name, hours = plan["tpu"]["slice"], plan["tpu"]["hours"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.InputError(
            f"PLAN: {path!r} is not a plan for a slice; write it with ev2 plan "
            f"--tpu={SLICE} --json={path}"
        ) from error
    problem = ""
    if slice_name != SLICE:
        problem = f"is of {slice_name}; the paper's hours are of {SLICE}"
    elif hours is None:
        problem = "does not fit and has no hours"
    elif key not in PAPER_HOURS:
        problem = f"is of {key[0]} in {key[1]} stages, for which the paper has no hours"
    elif not math.isclose(plan["epochs"], EPOCHS, abs_tol=0.1):
        problem = f"is of {plan['epochs']:.1f} epochs; the paper trains {EPOCHS:.0f}"
    if problem:
        raise errors.InputError(f"PLAN: {path!r} {problem}; give another")
    return plan


def format_table(figures: dict[str, Any]) -> str:
    """Returns the figures of `compare` as a Markdown table."""
    keys = ("model", "stages", "compiler_hours", "paper_hours", "factor")
    table = tabulate.tabulate(
        [[row[key] for key in keys] for row in figures["results"]],
        ("network", "stages", "hours, compiler", "hours, paper", "factor"),
        tablefmt="github",
        floatfmt=("", "", ".2f", ".1f", ".2f"),
    )
    versions = figures["versions"]
    return (
        f"{table}\n\nfactor {figures['factor']:.2f}, geometric mean; each network "
        f"within a factor {figures['spread']:.2f} of it (jax {versions['jax']}, libtpu "
        f"{versions['libtpu']})\n{format_order(figures)}"
    )
