"""Pictures: the curves of a stage, those with the same axes in one panel; and accuracies by stage, a panel a task."""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.reporting.schema import STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Dark ink on an opaque pale sheet: reads the same on a light and on a dark page, which a transparent picture does not.
_SHEET, _INK, _FAINT = "#ffffff", "#24292f", "#d0d7de"
_COLOURS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#57606a")
_PANEL_INCHES = (5.6, 3.3)
_SMALL_INCHES = (3.7, 2.6)
_LARGEST = 1e30  # beyond this the axes' own arithmetic overflows, and no curve of ours has a meaning
_MANY = 120  # points from which a noisy curve is drawn faint, with its running mean over it


def plot_curves(curves: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write the curves of one stage to `path` as PNG, whole or not at all.

    A curve is {"x": numbers, "y": numbers or None, "xlabel": str, "ylabel": str}; what is not finite is a gap.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no window system; imported late because slow
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for name, curve in curves.items():
        panels.setdefault((_label(curve["xlabel"]), _label(curve["ylabel"])), {})[name] = curve
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = (_PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * rows)
    figure = Figure(size, facecolor=_SHEET, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, ((xlabel, ylabel), members) in zip(grid, panels.items(), strict=False):
        _panel(axes, members, xlabel, ylabel)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    _save(figure, path)


def plot_accuracies(accuracies: Mapping[str, Mapping[str, Mapping[str, Any]]], path: Path) -> None:
    """Write accuracies by stage to `path` as PNG: a panel a task, 95% intervals as bars, guessing as a broken line.

    `accuracies`: task -> model, in the order of the stages -> {"value", "interval": [low, high], "chance"}.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(3, len(accuracies))
    rows = math.ceil(len(accuracies) / columns)
    size = (_SMALL_INCHES[0] * columns, _SMALL_INCHES[1] * rows)
    figure = Figure(size, facecolor=_SHEET, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    models = list(dict.fromkeys(model for by_model in accuracies.values() for model in by_model))
    for axes, (task, by_model) in zip(grid, accuracies.items(), strict=False):
        _stages(axes, by_model, sorted(models, key=STAGES.index))
        axes.set_title(_label(task), color=_INK, fontsize=11, loc="left", parse_math=False)
        axes.set_ylabel("right (%)", color=_INK)
    for axes in grid[len(accuracies) :]:
        axes.set_axis_off()
    _save(figure, path)


def _stages(axes: Axes, by_model: Mapping[str, Mapping[str, Any]], models: Sequence[str]) -> None:
    """The accuracies of one task, in percent."""
    places = [models.index(model) for model in by_model]
    values = [100 * metric["value"] for metric in by_model.values()]
    ends = [[100 * end for end in metric["interval"]] for metric in by_model.values()]
    below = [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)]
    above = [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)]
    chance = 100 * list(by_model.values())[-1]["chance"]
    axes.axhline(chance, color=_COLOURS[1], linewidth=1.2, linestyle=(0, (4, 3)))
    axes.errorbar(
        places, values, yerr=[below, above], color=_COLOURS[0], linewidth=1.6, marker="o", markersize=5, capsize=4
    )
    if chance > 0:
        axes.text(len(models) - 0.55, chance + 2, "guessing", color=_COLOURS[1], fontsize=8, ha="right")
    axes.set_xticks(range(len(models)), models)
    axes.set_xlim(-0.5, len(models) - 0.5)
    axes.set_ylim(-4, 104)
    _dress(axes)


def _save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with warnings.catch_warnings():
        # A box in place of a letter, or letters that are not joined, are good enough.
        warnings.filterwarnings(
            "ignore", message=r"Glyph .* missing|.* does not support .* natively", category=UserWarning
        )
        figure.savefig(aside, format="png", dpi=120, metadata={"Software": None})
    os.replace(aside, path)


def _panel(axes: Axes, members: Mapping[str, Mapping[str, Any]], xlabel: str, ylabel: str) -> None:
    """One pair of axes with the curves that share them."""
    from matplotlib.ticker import FuncFormatter

    names = []
    for index, (name, curve) in enumerate(members.items()):
        averaged = _line(axes, _finite(curve["x"]), _finite(curve["y"]), _COLOURS[index % len(_COLOURS)])
        names.append(_label(name) + (" (bold: running mean)" if averaged else ""))
    axes.set_title(names[0] if len(names) == 1 else "", color=_INK, fontsize=11, loc="left", parse_math=False)
    axes.set_xlabel(xlabel, color=_INK, parse_math=False)
    axes.set_ylabel(ylabel, color=_INK, parse_math=False)
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    _dress(axes)
    if len(names) > 1:
        _legend(axes, names)


def _dress(axes: Axes) -> None:
    """What all our axes look like."""
    axes.set_facecolor(_SHEET)
    axes.tick_params(colors=_INK, labelsize=9)
    axes.grid(color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_color(_FAINT)
        spine.set_visible(side in ("left", "bottom"))


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str) -> bool:
    """A curve; where many points are noisy, faintly, with their running mean over it. True if there is such a mean."""
    drawn = [i for i, (a, b) in enumerate(zip(x, y, strict=True)) if math.isfinite(a) and math.isfinite(b)]
    if not drawn:
        axes.text(0.5, 0.5, "no finite values", transform=axes.transAxes, ha="center", va="center", color=_INK)
        return False
    values = [y[i] for i in drawn]
    noisy = len(drawn) >= _MANY and _turns(values) > len(drawn) / 4  # a schedule has corners, and keeps them
    marker = "o" if len(drawn) <= 25 else ""
    width, alpha = (0.8, 0.35) if noisy else (1.6, 1.0)
    axes.plot(x, y, color=colour, linewidth=width, alpha=alpha, marker=marker, markersize=4)
    if noisy:
        means = running_mean(values, half=len(drawn) // 80)
        axes.plot([x[i] for i in drawn], means, color=colour, linewidth=1.8)
    return noisy


def running_mean(values: Sequence[float], half: int) -> list[float]:
    """Mean over the `half` neighbours on both sides and the value itself.

    At the start, where a loss falls steeply, the window shrinks on both sides alike; at the end it is merely cut off.

    >>> running_mean([0.0, 3.0, 6.0, 3.0], half=1)
    [0.0, 3.0, 4.0, 4.5]
    """
    means = []
    for i in range(len(values)):
        reach = min(half, i)
        window = values[i - reach : i + reach + 1]
        means.append(math.fsum(window) / len(window))
    return means


def _turns(values: Sequence[float]) -> int:
    """How often a curve turns from rising to falling or back."""
    steps = [b - a for a, b in itertools.pairwise(values)]
    return sum(a * b < 0 for a, b in itertools.pairwise(steps))


def _legend(axes: Axes, names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=_COLOURS[i % len(_COLOURS)], linewidth=2) for i in range(len(names))]
    legend = axes.legend(handles, ["" for _ in names], frameon=False, fontsize=9, labelcolor=_INK)
    for text, name in zip(legend.get_texts(), names, strict=True):  # late: a leading _ would hide it, a $ is no formula
        text.set_parse_math(False)
        text.set_text(name)


def _finite(values: Sequence[float | None]) -> list[float]:
    return [float(v) if v is not None and abs(v) < _LARGEST else math.nan for v in values]


def _tick(value: float, _: int) -> str:
    for least, unit, letter in ((1e12, 1e12, "T"), (1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "K")):
        if abs(value) >= least:
            return f"{value / unit:g}{letter}"
    return f"{value:.6g}"


def _label(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:80]
