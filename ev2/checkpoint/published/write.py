"""Published weights written as a checkpoint: what `ev2 convert` does."""

import collections
from typing import Any

from ev2 import errors, files
from ev2.checkpoint import manager as checkpoint
from ev2.checkpoint.published import convert

_CHOICES = {
    "interpolation": ("bilinear", "bicubic"),
    "eval_crop": ("resize", "center"),
}
# Lowest and highest: pixels, or levels in 0..255. A deviation below 1 is one that was
# meant for pictures in 0..1.
_RANGES = {"image_size": (8, 4096), "mean": (0, 255), "std": (1, 255)}


def convert_published(
    source: str, out: str, *, preprocessing: dict[str, Any], **options: Any
) -> dict[str, Any]:
    """Writes a published file as a checkpoint; returns the mapping report.

    Args:
      source: see `models.convert`.
      out: folder to make.
      preprocessing: values in place of the published ones, by their names in the meta
        data; means and deviations as numbers or strings, one or three, in 0..255.
      options: of `models.convert.convert`.

    Raises:
      InputError: what `models.convert` refuses, raw values of a file that has but one
        set, a preprocessing that cannot be, or `out` exists or cannot be written.
    """
    files.check_new("out", out)
    chosen = {key: _check(key, value) for key, value in preprocessing.items()}
    converted = convert.convert(source, **options)
    if not options.get("averaged", True) and not converted.has_both:
        raise errors.InputError(
            f"raw: {source!r} has one set of weights and no averages; leave --raw out"
        )
    converted.preprocessing.update(chosen)
    meta = checkpoint.make_published_meta(converted)
    checkpoint.save_weights(out, converted.variables, meta)
    return {**converted.report, "preprocessing": converted.preprocessing}


def _check(key: str, value: Any) -> Any:
    """A preprocessing value as the meta data holds it."""
    if key in _CHOICES:
        errors.check_choice(key, value, _CHOICES[key])
        return value
    try:
        numbers = [float(v) for v in (value if key != "image_size" else [value])]
    except ValueError:
        numbers = []
    low, high = _RANGES[key]
    counts = (1,) if key == "image_size" else (1, 3)
    if len(numbers) not in counts or not all(low <= v <= high for v in numbers):
        given = value if key == "image_size" else ",".join(map(str, value))
        raise errors.InputError(
            f"{key}: {given} is not allowed; give {' or '.join(map(str, counts))} "
            f"number{'s' if len(counts) > 1 else ''} from {low} to {high}"
        )
    return value if key == "image_size" else tuple(numbers * (3 // len(numbers)))


def format_report(report: dict, out: str) -> str:
    """The mapping report for people: counts, then what was left out by reason."""
    skipped = collections.Counter(row["reason"] for row in report["skipped"])
    lines = [
        f"{report['model']} from {report['format']} names: {report['matched']:,} "
        f"tensors matched, {report['transposed']:,} of them transposed",
        *(f"{count:,} left out: {reason}" for reason, count in skipped.items()),
        *report["notes"],
        "preprocessing: "
        + ", ".join(f"{k} {_short(v)}" for k, v in report["preprocessing"].items()),
        f"weights: {out}",
    ]
    return "\n".join(lines)


def _short(value: object) -> str:
    return "/".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)
