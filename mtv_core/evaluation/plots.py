"""The figures of an evaluation. Drawn without pyplot, so that no state is shared and no display is needed.

Shapes: N pictures of side S.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

TRAINED, UNTRAINED, RIGHT, WRONG = "#2f6690", "#c9ced3", "#3a7d44", "#b23a48"
DPI = 130
SEGMENT_COLOURS = ("#cfe3f2", "#b8b2a7", "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee7733", "#009988")


@dataclass(frozen=True)
class Bar:
    """One metric of the summary; the interval is half its width."""

    label: str
    trained: float
    trained_ci: float
    untrained: float | None = None
    untrained_ci: float = 0.0
    chance: float | None = None
    higher_is_better: bool = True


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png", dpi=DPI)
    partial.replace(path)
    return path


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _grid(rows: int, columns: int, titles: Sequence[str] = (), side: float = 1.5, foot: float = 0.0) -> tuple[Figure, NDArray[Any]]:
    figure = _figure(side * columns, side * rows + 0.35 + foot)
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        _bare(one)
    for one, title in zip(axes[0], titles, strict=False):
        one.set_title(title, fontsize=9)
    return figure, axes


def summary(bars: Sequence[Bar], path: Path) -> Path:
    """The trained against the untrained model, one panel a metric, with 95 % intervals and what guessing gives."""
    columns = min(4, len(bars))
    rows = -(-len(bars) // columns)
    figure = _figure(2.5 * columns, 2.6 * rows + 0.3)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, bar in zip(panels, bars, strict=False):
        heights = [bar.trained] + ([] if bar.untrained is None else [bar.untrained])
        errors = [bar.trained_ci, bar.untrained_ci][: len(heights)]
        names = ["trained", "untrained"][: len(heights)]
        drawn = axes.bar(names, heights, yerr=errors, capsize=4, color=[TRAINED, UNTRAINED][: len(heights)], width=0.65)
        axes.bar_label(drawn, fmt="%.3f", fontsize=8, padding=2)
        if bar.chance is not None:
            axes.axhline(bar.chance, color="#333333", linewidth=1, linestyle="--")
            axes.annotate("chance", (1, bar.chance), xycoords=("axes fraction", "data"), fontsize=7, ha="right", va="bottom")
        axes.set_title(f"{bar.label} {'↑' if bar.higher_is_better else '↓'}", fontsize=9)
        axes.set_ylim(0, 1.25 * max(max(h + e for h, e in zip(heights, errors, strict=True)), bar.chance or 0.0, 1e-6))
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(bars) :]:
        axes.set_visible(False)
    figure.supxlabel("bars are 95 % intervals: over seeds for probes, over pictures elsewhere", fontsize=7)
    return _save(figure, path)


def confusion(panels: Sequence[tuple[str, Sequence[str], NDArray[np.int64]]], path: Path) -> Path:
    """Matrices of (title, classes, counts [true, predicted]), each row as shares of its sum."""
    figure = _figure(4.2 * len(panels), 4.0)
    for axes, (title, classes, counts) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                axes.text(
                    column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color="white" if share > 0.55 else "black"
                )
        axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(classes)), classes, fontsize=8)
        axes.set_title(f"{title}, % of each row", fontsize=9)
        axes.set_xlabel("predicted", fontsize=8)
        axes.set_ylabel("true", fontsize=8)
    return _save(figure, path)


def retrieved(
    rows: Sequence[tuple[str, Sequence[tuple[NDArray[np.uint8], bool]], NDArray[np.uint8]]],
    path: Path,
) -> Path:
    """One row a text: the pictures found first, framed by whether they are right, then the one that was meant."""
    found = max(len(pictures) for _, pictures, _ in rows)
    figure = _figure(1.5 * (found + 1) + 1.9, 1.55 * len(rows) + 0.3)
    axes = figure.subplots(len(rows), found + 2, squeeze=False, width_ratios=[1.3, *[1] * (found + 1)])
    for one in axes.flat:
        _bare(one)
    for row, (text, pictures, meant) in zip(axes, rows, strict=True):
        row[0].text(0.0, 0.5, textwrap.fill(text, 26), transform=row[0].transAxes, fontsize=8, va="center")
        for one, (picture, right) in zip(row[1:], pictures, strict=False):
            one.imshow(picture)
            for spine in one.spines.values():
                spine.set(visible=True, color=RIGHT if right else WRONG, linewidth=2.5)
        row[-1].imshow(meant)
    for one, title in zip(axes[0], ["text", *(f"found {place + 1}" for place in range(found)), "meant"], strict=True):
        one.set_title(title, fontsize=9)
    return _save(figure, path)


def depths(
    pictures: NDArray[np.uint8], predicted: NDArray[np.float32], true: NDArray[np.float32], valid: NDArray[np.bool_], path: Path
) -> Path:
    """Picture, predicted and true depth, all N rows on one scale of metres; where there is no depth nothing is drawn."""
    figure, axes = _grid(len(pictures), 3, ["picture", "predicted depth", "true depth"], foot=0.3)
    low, high = (float(np.percentile(true[valid], share)) for share in (1, 99)) if valid.any() else (0.0, 1.0)
    colours = matplotlib.colormaps["turbo_r"].with_extremes(bad="white")
    drawn = None
    for index, row in enumerate(axes):
        row[0].imshow(pictures[index])
        for one, maps in zip(row[1:], (predicted, true), strict=True):
            drawn = one.imshow(np.where(valid[index], maps[index], np.nan), cmap=colours, vmin=low, vmax=high)
    assert drawn is not None
    figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.6, label="metres", aspect=40)
    return _save(figure, path)


def segments(
    pictures: NDArray[np.uint8], predicted: NDArray[np.uint8], true: NDArray[np.uint8], classes: Sequence[str], path: Path
) -> Path:
    """Picture, predicted and true segments, with a legend."""
    figure, axes = _grid(len(pictures), 3, ["picture", "predicted segments", "true segments"], foot=0.5)
    colours = [SEGMENT_COLOURS[index % len(SEGMENT_COLOURS)] for index in range(len(classes))]
    for index, row in enumerate(axes):
        row[0].imshow(pictures[index])
        for one, maps in zip(row[1:], (predicted, true), strict=True):
            one.imshow(maps[index], cmap=ListedColormap(colours), vmin=-0.5, vmax=len(classes) - 0.5, interpolation="nearest")
    handles = [Patch(color=colour, label=name) for colour, name in zip(colours, classes, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    return _save(figure, path)


def losses(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], path: Path) -> Path:
    """One panel a loss: every logged step in grey, its running mean over a twentieth of them."""
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = _figure(3.2 * columns, 2.3 * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (name, (steps, values)) in zip(panels, curves.items(), strict=False):
        width = max(1, len(values) // 20)
        axes.plot(steps, values, color=UNTRAINED, linewidth=0.8)
        if len(values) >= width:
            smooth = np.convolve(values, np.ones(width) / width, mode="valid")
            axes.plot(np.asarray(steps)[width - 1 :], smooth, color=TRAINED, linewidth=1.6)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    return _save(figure, path)
