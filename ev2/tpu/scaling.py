"""Formats a forecast: the stages as a table, the slices as tables and a plot."""

import pathlib
from collections.abc import Sequence
from typing import Any

import tabulate
from matplotlib import figure as mpl_figure
from matplotlib import ticker

from ev2 import errors, files
from ev2.report import plots
from ev2.tpu import slices

_HEADINGS = (
    *("stage", "px", "images/device", "HBM GiB", "of", "TFLOP", "GB", "ms/step"),
    *("images/s/device", "reduced MB", "hours", "compiled in"),
)
_SCALING_HEADINGS = (
    *("slice", "devices", "batch", "ms/step", "reduced MB", "hours", "device-hours"),
)


def format_stages(table: dict[str, Any]) -> str:
    """Returns the stages of `forecast.forecast` on its first slice as a table."""
    rows = [_stage_row(stage, table["tpu"]["devices"]) for stage in table["stages"]]
    lines = [_tabulate(rows, _HEADINGS), _summarize(table["tpu"])]
    for stage in table["stages"]:
        lines += _remarks(stage["tpu"], f"{stage['image_size']} px")
    return "\n".join(lines)


def _tabulate(rows: Sequence[Sequence[str]], headings: Sequence[str]) -> str:
    options = {"colalign": ("right",) * len(headings), "disable_numparse": True}
    return tabulate.tabulate(rows, headings, "plain", **options)


def _stage_row(stage: dict[str, Any], devices: int) -> tuple[str, ...]:
    tpu = stage["tpu"]
    steps = stage["last_step"] - stage["first_step"]
    used = tpu["hbm_bytes"] or tpu.get("wanted_bytes")
    start = (
        str(stage["index"]),
        str(stage["image_size"]),
        f"{stage['batch_size'] // devices:,}",
        "?" if used is None else f"{used / slices.GIB:.2f}",
        f"{tpu['hbm_available_bytes'] / slices.GIB:.2f}",
    )
    end = "cached" if tpu.get("cached") else f"{tpu['compile_seconds']:.0f} s"
    if tpu["step_seconds"] is None:
        return (*start, *("-",) * 6, end)
    bound = ">" if tpu["step_seconds_from"] == "lower bound" else ""
    return (
        *start,
        f"{tpu['flops'] / 1e12:.3g}",
        f"{tpu['bytes_accessed'] / 1e9:.1f}",
        f"{bound}{1e3 * tpu['step_seconds']:.1f}",
        f"{tpu['images_per_second_per_device']:,.0f}",
        f"{tpu['reduced_bytes'] / 1e6:.1f}",
        format_hours(steps * tpu["step_seconds"] / 3600),
        end,
    )


def _summarize(total: dict[str, Any]) -> str:
    result = "does not fit"
    if total["fits"]:
        hours, sums = (
            format_hours(total[key], " hours") for key in ("hours", "device_hours")
        )
        result = f"fits; {hours} of training steps, {sums} over all devices"
    versions = total["versions"]
    return (
        f"{total['slice']}, {total['devices']:,} x {total['device_kind']}: {result} "
        f"(jax {versions['jax']}, libtpu {versions['libtpu']})"
    )


def _remarks(tpu: dict[str, Any], size: str) -> list[str]:
    """Returns lines for a stage that does not fit or whose time is a bound."""
    lines = []
    if tpu["step_seconds_from"] == "lower bound":
        lines.append(
            f"{size}: the compiler's time is not a positive number; > is what "
            "arithmetic or memory traffic takes at the peak of the device"
        )
    if not tpu["fits"]:
        largest = tpu["largest"]
        lines.append(
            f"{size}: no batch of a multiple of 8 images per device fits"
            if largest is None
            else f"{size}: does not fit; {largest['batch_per_device']} images per "
            f"device do (batch_size {largest['batch_size']:,}), at "
            f"{largest['images_per_second_per_device']:,.0f} images/s/device"
        )
    return lines


def format_scaling(table: dict[str, Any]) -> str:
    """Returns the slices of `forecast.forecast` as two tables; ms of the last stage."""
    per_device = table["tpu"]["batch_size"] // table["tpu"]["devices"]
    titles = {
        "strong": "strong scaling: the same global batch",
        "weak": f"weak scaling: the same {per_device:,} images per device",
    }
    lines = []
    for name, title in titles.items():
        rows = sorted(table["scaling"][name], key=lambda row: row["devices"])
        size = table["stages"][-1]["image_size"]
        lines.append(f"{title}; ms/step and MB at {size} px")
        lines.append(_tabulate([_scaling_row(row) for row in rows], _SCALING_HEADINGS))
    return "\n".join(lines)


def _scaling_row(row: dict[str, Any]) -> tuple[str, ...]:
    start = (row["slice"], f"{row['devices']:,}", f"{row['batch_size']:,}")
    if not row["fits"]:
        return (*start, "does not fit", "-", "-", "-")
    return (
        *start,
        f"{1e3 * row['step_seconds'][-1]:.1f}",
        f"{row['reduced_bytes'][-1] / 1e6:.1f}",
        format_hours(row["hours"]),
        format_hours(row["device_hours"]),
    )


def format_hours(hours: float, unit: str = "") -> str:
    """Returns hours with `unit`, or seconds below six minutes."""
    if hours < 0.1:
        return f"{3600 * hours:.3g} s"
    return f"{hours:,.0f}{unit}" if hours >= 100 else f"{hours:.2f}{unit}"


def choose_path(plot: str | None, json_path: str | None, count: int) -> str:
    """Returns the path of the plot: as given, or beside the JSON; "" for no plot.

    Raises:
        InputError: a plot is requested for one slice, or the file exists.
    """
    if plot and count < 2:
        raise errors.InputError(
            f"plot: {plot!r} is asked for and --tpu has one slice; give two or more"
        )
    if plot:
        files.check_new("plot", plot)
        return plot
    beside = str(pathlib.Path(json_path).with_suffix(".png")) if json_path else ""
    return beside if count > 1 else ""


def write_plot(table: dict[str, Any], path: str) -> None:
    """Writes `draw(table)` as PNG."""
    files.write_atomically(path, plots.to_png(draw(table)))


def draw(table: dict[str, Any]) -> mpl_figure.Figure:
    """Draws the scaling tables by number of devices.

    Panels: step time of the last stage, bytes between devices, hours, device-hours.
    Slices that the recipe does not fit are left out.
    """
    size = table["stages"][-1]["image_size"]
    counts = {r["devices"] for rows in table["scaling"].values() for r in rows}
    panels = (
        (f"Step at {size} px (ms)", lambda row: 1e3 * row["step_seconds"][-1], "log"),
        (
            "Reduced across devices per step (MB)",
            lambda row: row["reduced_bytes"][-1] / 1e6,
            "linear",
        ),
        ("Hours of training steps", lambda row: row["hours"], "log"),
        ("Device-hours", lambda row: row["device_hours"], "linear"),
    )
    series = (
        ("strong", "same global batch", plots.EMA, "o-"),
        ("weak", "same batch per device", plots.TRAIN, "s--"),
    )
    drawn = plots.new_figure(5.2, 2 * plots.WIDTH_IN)
    axes = drawn.subplots(2, 2, sharex=True)
    for panel, (title, value, scale) in zip(axes.flat, panels, strict=True):
        for name, label, colour, style in series:
            rows = [row for row in table["scaling"][name] if row["fits"]]
            rows.sort(key=lambda row: row["devices"])
            devices, values = [r["devices"] for r in rows], [value(r) for r in rows]
            panel.plot(devices, values, style, color=colour, label=label)
        _style_panel(panel, title, sorted(counts))
        _scale_values(panel, scale)
    axes.flat[0].legend(frameon=False, labelcolor=plots.TEXT)
    for panel in axes[-1]:
        panel.set_xlabel("Devices", color=plots.MUTED)
    title = f"{table['model']}, by the compiler's figures"
    drawn.suptitle(title, color=plots.TEXT, x=0.01, ha="left")
    return drawn


def _style_panel(panel, title: str, counts: Sequence[int]) -> None:
    """Applies the common style, with devices on a logarithmic axis."""
    plots.style_axes(panel, title)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(ticker.FixedLocator(counts))
    panel.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    panel.xaxis.set_minor_locator(ticker.NullLocator())


def _scale_values(panel, scale: str) -> None:
    """Scales values from 0 with room above, or on a logarithmic axis."""
    if scale == "linear":
        panel.set_ylim(0, 1.15 * panel.get_ylim()[1])
        return
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.4g}"))
    panel.yaxis.set_minor_locator(ticker.NullLocator())
