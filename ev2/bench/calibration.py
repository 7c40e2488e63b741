"""The compiler's hours beside the paper's: `ev2 bench calibration PLAN.json...`

    for net in s m l v1-b7; do
      ev2 plan --config=configs/imagenet1k.py:$net --tpu=v3-32 --json=runs/$net.json \\
        --config.progressive.schedule=progressive
    done
    ev2 bench calibration runs/*.json

The paper measured hours on 32 TPU v3 cores; the compiler counts the arithmetic and the
memory traffic of training steps, not waiting for pictures or for other cores, nor
evaluation. One factor between the two says what to expect of a network that nobody has
trained yet, and its spread how much that is worth.
"""

import json
import math
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

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
        ratio of a row's factor to the mean or the other way round; "versions".

    Raises:
        InputError: a file is no such plan.
    """
    plans = [_read(path) for path in paths]
    rows = []
    for plan in plans:
        key = (plan["model"], len(plan["stages"]))
        hours = plan["tpu"]["hours"]
        rows.append(
            {
                "model": key[0],
                "stages": key[1],
                "compiler_hours": hours,
                "paper_hours": PAPER_HOURS[key],
                "factor": PAPER_HOURS[key] / hours,
            }
        )
    logs = [math.log(row["factor"]) for row in rows]
    mean = statistics.fmean(logs)
    return {
        "results": rows,
        "factor": math.exp(mean),
        "spread": math.exp(max(abs(log - mean) for log in logs)),
        "versions": plans[0]["tpu"]["versions"],
    }


def _read(path: str) -> dict[str, Any]:
    """The plan in a file, of a run whose hours the paper has."""
    try:
        plan = json.loads(pathlib.Path(path).read_text())
        key = (plan["model"], len(plan["stages"]))
        slice_name, hours = plan["tpu"]["slice"], plan["tpu"]["hours"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.InputError(
            f"PLAN: {path!r} is no plan for a slice; write it with ev2 plan "
            f"--tpu={SLICE} --json={path}"
        ) from error
    said = ""
    if slice_name != SLICE:
        said = f"is of {slice_name}; the paper's hours are of {SLICE}"
    elif hours is None:
        said = "does not fit and has no hours"
    elif key not in PAPER_HOURS:
        said = f"is of {key[0]} in {key[1]} stages, for which the paper has no hours"
    elif not math.isclose(plan["epochs"], EPOCHS, abs_tol=0.1):
        said = f"is of {plan['epochs']:.1f} epochs; the paper trains {EPOCHS:.0f}"
    if said:
        raise errors.InputError(f"PLAN: {path!r} {said}; give another")
    return plan


def format_table(figures: dict[str, Any]) -> str:
    """Returns the figures of `compare` as a table for people, in Markdown."""
    lines = [
        "| network | stages | hours, compiler | hours, paper | factor |",
        "|---|---|---|---|---|",
    ]
    for row in figures["results"]:
        lines.append(
            f"| {row['model']} | {row['stages']} | {row['compiler_hours']:.2f} | "
            f"{row['paper_hours']:.1f} | {row['factor']:.2f} |"
        )
    versions = figures["versions"]
    lines += [
        "",
        f"factor {figures['factor']:.2f}, geometric mean; each network within a factor "
        f"{figures['spread']:.2f} of it (jax {versions['jax']}, libtpu "
        f"{versions['libtpu']})",
    ]
    return "\n".join(lines)
