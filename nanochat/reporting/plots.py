"""Plots of the report as PNG: a section's curves, a panel for each pair of axes; accuracies, a panel for each task."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.common import written_atomically
from nanochat.reporting.accuracy_tables import Accuracy
from nanochat.reporting.schema import STAGES, Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# An opaque background: a transparent one is not readable on both light and dark pages.
_BACKGROUND = "#ffffff"
_INK = "#24292f"
_FAINT = "#d0d7de"
_COLOURS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#57606a")
_PANEL_INCHES = (5.6, 3.3)
_SMALL_INCHES = (3.7, 2.6)
_MAX_VALUE = 1e30  # beyond this matplotlib's own arithmetic overflows
_MIN_SMOOTHED_POINTS = 120  # a noisy curve of at least so many points is drawn faint, with its running mean


def plot_curves(curves: Mapping[str, Curve], path: Path) -> None:
    """Write the curves of one section to `path` as PNG, atomically. Values that are not finite are gaps."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no window system; imported late because slow
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels: dict[tuple[str, str], dict[str, Curve]] = {}
    for name, curve in curves.items():
        panels.setdefault((_label(curve["xlabel"]), _label(curve["ylabel"])), {})[name] = curve
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = (_PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * rows)
    figure = Figure(size, facecolor=_BACKGROUND, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, ((xlabel, ylabel), members) in zip(grid, panels.items(), strict=False):
        _draw_panel(axes, members, xlabel, ylabel)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    _save(figure, path)


def plot_accuracies(accuracies: Mapping[str, Mapping[str, Accuracy]], path: Path) -> None:
    """Write accuracies by stage to `path` as PNG, atomically. `accuracies`: task -> stage -> accuracy.

    One panel for each task, with 95% intervals as bars and the accuracy of guessing as a dashed line.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(3, len(accuracies))
    rows = math.ceil(len(accuracies) / columns)
    size = (_SMALL_INCHES[0] * columns, _SMALL_INCHES[1] * rows)
    figure = Figure(size, facecolor=_BACKGROUND, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    stages = list(dict.fromkeys(stage for by_stage in accuracies.values() for stage in by_stage))
    for axes, (task, by_stage) in zip(grid, accuracies.items(), strict=False):
        _draw_task(axes, by_stage, sorted(stages, key=STAGES.index))
        axes.set_title(_label(task), color=_INK, fontsize=11, loc="left", parse_math=False)
        axes.set_ylabel("right (%)", color=_INK)
    for axes in grid[len(accuracies) :]:
        axes.set_axis_off()
    _save(figure, path)


def _draw_task(axes: Axes, by_stage: Mapping[str, Accuracy], stages: Sequence[str]) -> None:
    """Draw the accuracies of one task, in percent."""
    positions = [stages.index(stage) for stage in by_stage]
    values = [100 * metric["value"] for metric in by_stage.values()]
    ends = [[100 * end for end in metric["interval"]] for metric in by_stage.values()]
    below = [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)]
    above = [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)]
    chance = 100 * list(by_stage.values())[-1]["chance"]
    axes.axhline(chance, color=_COLOURS[1], linewidth=1.2, linestyle=(0, (4, 3)))
    axes.errorbar(
        positions, values, yerr=[below, above], color=_COLOURS[0], linewidth=1.6, marker="o", markersize=5, capsize=4
    )
    if chance > 0:
        axes.text(len(stages) - 0.55, chance + 2, "guessing", color=_COLOURS[1], fontsize=8, ha="right")
    axes.set_xticks(range(len(stages)), stages)
    axes.set_xlim(-0.5, len(stages) - 0.5)
    axes.set_ylim(-4, 104)
    _style(axes)


def _save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with written_atomically(path) as temporary, warnings.catch_warnings():
        # A box in place of a missing letter, or letters that are not joined, are acceptable.
        warnings.filterwarnings(
            "ignore", message=r"Glyph .* missing|.* does not support .* natively", category=UserWarning
        )
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})


def _draw_panel(axes: Axes, members: Mapping[str, Curve], xlabel: str, ylabel: str) -> None:
    """Draw the curves that share one pair of axes."""
    from matplotlib.ticker import FuncFormatter

    names = []
    for index, (name, curve) in enumerate(members.items()):
        has_mean = _draw_curve(axes, _finite(curve["x"]), _finite(curve["y"]), _COLOURS[index % len(_COLOURS)])
        names.append(_label(name) + (" (bold: running mean)" if has_mean else ""))
    axes.set_title(names[0] if len(names) == 1 else "", color=_INK, fontsize=11, loc="left", parse_math=False)
    axes.set_xlabel(xlabel, color=_INK, parse_math=False)
    axes.set_ylabel(ylabel, color=_INK, parse_math=False)
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    _style(axes)
    if len(names) > 1:
        _legend(axes, names)


def _style(axes: Axes) -> None:
    """Set the colours, the grid and the spines that all axes have."""
    axes.set_facecolor(_BACKGROUND)
    axes.tick_params(colors=_INK, labelsize=9)
    axes.grid(color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_color(_FAINT)
        spine.set_visible(side in ("left", "bottom"))


def _draw_curve(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str) -> bool:
    """Draw a curve; many noisy points are faint, under their running mean. Return True if the mean is drawn."""
    finite = [i for i, (a, b) in enumerate(zip(x, y, strict=True)) if math.isfinite(a) and math.isfinite(b)]
    if not finite:
        axes.text(0.5, 0.5, "no finite values", transform=axes.transAxes, ha="center", va="center", color=_INK)
        return False
    values = [y[i] for i in finite]
    # A schedule of the learning rate has few turns and is drawn plainly.
    is_noisy = len(finite) >= _MIN_SMOOTHED_POINTS and _count_turns(values) > len(finite) / 4
    marker = "o" if len(finite) <= 25 else ""
    width, alpha = (0.8, 0.35) if is_noisy else (1.6, 1.0)
    axes.plot(x, y, color=colour, linewidth=width, alpha=alpha, marker=marker, markersize=4)
    if is_noisy:
        means = running_mean(values, half=len(finite) // 80)
        axes.plot([x[i] for i in finite], means, color=colour, linewidth=1.8)
    return is_noisy


def running_mean(values: Sequence[float], half: int) -> list[float]:
    """Return the mean of each value and its `half` neighbours on both sides.

    At the start, where a loss falls steeply, the window shrinks on both sides alike; at the end only on the right.

    >>> running_mean([0.0, 3.0, 6.0, 3.0], half=1)
    [0.0, 3.0, 4.0, 4.5]
    """
    means = []
    for i in range(len(values)):
        reach = min(half, i)
        window = values[i - reach : i + reach + 1]
        means.append(math.fsum(window) / len(window))
    return means


def _count_turns(values: Sequence[float]) -> int:
    """Return how often a curve turns from rising to falling or back."""
    steps = [b - a for a, b in itertools.pairwise(values)]
    return sum(a * b < 0 for a, b in itertools.pairwise(steps))


def _legend(axes: Axes, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=_COLOURS[i % len(_COLOURS)], linewidth=2) for i in range(len(names))]
    legend = axes.legend(handles, ["" for _ in names], frameon=False, fontsize=9, labelcolor=_INK)
    # Set after the legend is made: a leading _ would hide a label, and $ would start a formula.
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _finite(values: Sequence[float | None]) -> list[float]:
    return [float(v) if v is not None and abs(v) < _MAX_VALUE else math.nan for v in values]


def _tick(value: float, _: int) -> str:
    for least, unit, letter in ((1e12, 1e12, "T"), (1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "K")):
        if abs(value) >= least:
            return f"{value / unit:g}{letter}"
    return f"{value:.6g}"


def _label(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:80]
