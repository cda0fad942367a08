"""Plots: PNG files of a reasonable size that show the curves, for any curves."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nanochat.reporting.plots import plot_accuracies, plot_curves, running_mean


@pytest.fixture(autouse=True, scope="module")
def _font_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """matplotlib writes a list of fonts to the home folder, unless MPLCONFIGDIR is set before its import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))
        yield


def curve(x: list[Any], y: list[Any], xlabel: str = "step", ylabel: str = "loss (nats per token)") -> dict[str, Any]:
    return {"x": x, "y": y, "xlabel": xlabel, "ylabel": ylabel}


def pixels(curves: dict[str, Any], folder: Path) -> np.ndarray:
    """Draw curves and return the picture, (height, width, 3)."""
    path = folder / "curves.png"
    plot_curves(curves, path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [file.name for file in folder.iterdir()] == ["curves.png"]
    with Image.open(path) as image:
        image.load()
        return np.asarray(image.convert("RGB")).astype(int)


def blue(picture: np.ndarray) -> int:
    """Return the number of pixels in the first curve's colour."""
    return int((abs(picture - [9, 105, 218]).max(axis=-1) < 40).sum())


def test_a_curve_is_drawn_on_an_opaque_light_background(tmp_path: Path) -> None:
    picture = pixels({"training loss": curve([0, 1, 2], [3.0, 2.0, 1.0])}, tmp_path)
    height, width, _ = picture.shape
    assert 200 < height < width < 1000
    assert picture[0, 0].tolist() == [255, 255, 255]
    assert blue(picture) > 300
    num_dark = (picture.max(axis=-1) < 100).sum()
    assert num_dark > 300, "labels, dark on the background"
    rows, columns = np.nonzero(abs(picture - [9, 105, 218]).max(axis=-1) < 40)
    left, right = columns < columns.min() + 20, columns > columns.max() - 20
    assert rows[left].mean() < rows[right].mean(), "a falling loss falls"


def test_curves_share_axes_if_their_labels_are_the_same(tmp_path: Path) -> None:
    single = pixels({"a": curve([0, 1], [1, 2])}, tmp_path).shape
    shared = pixels({"a": curve([0, 1], [1, 2]), "b": curve([0, 1], [2, 1])}, tmp_path)
    apart = pixels({"a": curve([0, 1], [1, 2]), "b": curve([0, 1], [2, 1], ylabel="bits per byte")}, tmp_path).shape
    three = pixels({str(i): curve([0, 1], [1, 2], ylabel=str(i)) for i in range(3)}, tmp_path).shape
    assert shared.shape == single
    assert (abs(shared - [188, 76, 0]).max(axis=-1) < 40).sum() > 300, "the second curve has another colour"
    assert apart == (single[0], 2 * single[1], 3)
    assert three == (2 * single[0], 2 * single[1], 3)


@pytest.mark.slow
def test_values_that_are_not_finite_are_gaps(tmp_path: Path) -> None:
    x = list(range(200))
    whole = blue(pixels({"loss": curve(x, [float(i) for i in x])}, tmp_path))
    holes = [None if 50 <= i < 100 else math.nan if 100 <= i < 150 else float(i) for i in x]
    assert 0.3 * whole < blue(pixels({"loss": curve(x, holes)}, tmp_path)) < 0.7 * whole


@pytest.mark.parametrize(
    "values", [[], [None], [math.nan, math.inf], [1.0], [0.0] * 500, [1e308, -1e308], [5e-324, 0.0]]
)
def test_odd_curves_are_drawn(values: list[float | None], tmp_path: Path) -> None:
    picture = pixels({"loss": curve(list(range(len(values))), values)}, tmp_path)
    drawable = any(value is not None and abs(value) < 1e30 for value in values)
    assert (blue(picture) > 20) == drawable


def test_the_same_curves_give_the_same_file(tmp_path: Path) -> None:
    curves = {"loss": curve(list(range(300)), [math.sin(9 * i) for i in range(300)])}
    plot_curves(curves, tmp_path / "first.png")
    plot_curves(curves, tmp_path / "second.png")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def accuracy(value: float, chance: float = 0.0) -> dict[str, Any]:
    return {"value": value, "interval": [max(0.0, value - 0.05), min(1.0, value + 0.05)], "chance": chance}


def accuracy_pixels(accuracies: dict[str, Any], folder: Path) -> np.ndarray:
    plot_accuracies(accuracies, folder / "a.png")
    assert [file.name for file in folder.iterdir()] == ["a.png"]
    with Image.open(folder / "a.png") as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_accuracies_rise_from_stage_to_stage_above_the_line_of_guessing(tmp_path: Path) -> None:
    picture = accuracy_pixels({"FactChoice": {"base": accuracy(0.3, 0.25), "sft": accuracy(0.9, 0.25)}}, tmp_path)
    rows, columns = np.nonzero(abs(picture - [9, 105, 218]).max(axis=-1) < 40)
    left, right = rows[columns < columns.min() + 5], rows[columns > columns.max() - 5]
    assert left.mean() > rows.mean() > right.mean()
    assert np.ptp(left) > 5, "the interval is a bar"
    guessing, _ = np.nonzero(abs(picture - [188, 76, 0]).max(axis=-1) < 40)
    assert left.mean() < np.median(guessing) < left.mean() + 0.2 * len(picture)


def test_accuracies_have_a_panel_for_each_task_three_in_a_row(tmp_path: Path) -> None:
    one, two, three, four = (
        accuracy_pixels({str(i): {"mid": accuracy(0.5)} for i in range(count)}, tmp_path).shape
        for count in (1, 2, 3, 4)
    )
    assert two == (one[0], 2 * one[1], 3)
    assert three == (one[0], 3 * one[1], 3)
    assert four == (2 * one[0], 3 * one[1], 3)


def test_odd_accuracies_are_drawn(tmp_path: Path) -> None:
    outside = {"value": 1.0, "interval": [1.0, 0.0], "chance": 1}
    picture = accuracy_pixels({"$x^": {"base": outside, "rl": accuracy(0.0)}, "_b": {"mid": accuracy(1.0)}}, tmp_path)
    assert blue(picture) > 20


LABELS = st.one_of(
    st.text(max_size=12), st.sampled_from(["$x^", "_hidden", "损失", "a\nb\x00", "\\frac{", "{}%s", " "])
)
NUMBERS = st.one_of(st.none(), st.floats(), st.integers(-(2**63), 2**63))


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.dictionaries(LABELS, st.tuples(st.lists(NUMBERS, max_size=5), LABELS, LABELS), min_size=1, max_size=3))
def test_any_names_and_numbers_are_drawn(parts: dict[str, tuple[list[Any], str, str]]) -> None:
    curves = {name: curve(values, values[::-1], x, y) for name, (values, x, y) in parts.items()}
    with tempfile.TemporaryDirectory() as folder:
        assert pixels(curves, Path(folder)).std() > 0


def test_the_running_mean_is_the_mean_of_the_window() -> None:
    values = np.random.default_rng(0).normal(size=50)
    means = running_mean(values.tolist(), half=4)
    np.testing.assert_allclose(means[4:-4], np.convolve(values, np.ones(9) / 9, mode="valid"))
    assert means[0] == values[0]
    assert means[-1] == pytest.approx(values[-5:].mean())
    assert running_mean(values.tolist(), half=0) == values.tolist()


def test_noise_is_averaged_and_a_schedule_is_not(tmp_path: Path) -> None:
    x = list(range(400))
    ramp = [float(i) for i in x]
    noise = list(itertools.islice(itertools.cycle([0.0, 400.0]), len(x)))
    assert blue(pixels({"a": curve(x, ramp)}, tmp_path)) > 500
    middle = pixels({"a": curve(x, noise)}, tmp_path)
    rows, columns = np.nonzero(abs(middle - [9, 105, 218]).max(axis=-1) < 40)
    rows = rows[columns > middle.shape[1] / 2]  # at the start the window is too narrow to smooth
    assert np.ptp(rows) < 0.3 * middle.shape[0], "only the mean, near the middle, has the full colour"
