"""The few chart types of the book. How a method or a state looks stands in ``mlguide.look``.

Every chart returns a matplotlib Figure that pyplot no longer holds: as the last line of a cell it
is shown once, and nothing needs closing. Values of repeated experiments come in raw, one row per
seed, so that a chart cannot leave the spread out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.ticker import LogLocator, NullLocator

from mlguide.experiments import mean_and_spread
from mlguide.look import (
    CLASSES,
    DPI,
    FAINT,
    INK,
    METHODS,
    QUIET,
    STATES,
    STYLE,
    VERDICTS,
    WIDTH,
    Look,
    contrast,
    look_of,
    sheet,
)

__all__ = [
    "METHODS",
    "STATES",
    "budget_curve",
    "client_mix",
    "confusion",
    "cost_accuracy",
    "cost_ratios",
    "dot_intervals",
    "dot_panels",
    "fold_scores",
    "gauges",
    "heat_map",
    "line_bands",
    "marks",
    "picture_grid",
    "pulls",
    "scatter_map",
    "size_accuracy",
    "tradeoff",
    "votes",
]

Values = npt.ArrayLike
HALO = [withStroke(linewidth=3, foreground="white")]
STEM = "#aaaaaa"  # from a mark to its name: no line of the data
SIZES = {"*": 12.0, "P": 9.0, "X": 9.0, "D": 6.8}  # in points: markers that look as large as a dot


def line_bands(
    x: Values,
    results: Mapping[str, Values],
    *,
    xlabel: str,
    ylabel: str,
    ticks: Sequence[str] | None = None,
    log: bool = False,
    ylim: tuple[float, float] | None = None,
    level: tuple[str, float] | None = None,
) -> Figure:
    """One line per method over x: its mean, a band for the 95% interval, its name at the end.

    x: (points,); results: name -> (seeds, points). ticks: names of the points, if not the numbers.
    level: a thin line with its name, as ("chance", 0.1). METHODS and STATES say how a name looks.

    Raises:
        ValueError: if there are no results, or one is not (seeds, points).
    """
    at = np.asarray(x, dtype=float)
    if not results:
        raise ValueError("results must hold at least one method, got none")
    with sheet(3.7) as figure:
        axes = figure.subplots()
        ends: list[tuple[float, Sequence[float], Look]] = []
        for place, (name, values) in enumerate(results.items()):
            raw = np.asarray(values, dtype=float)
            if raw.ndim != 2 or raw.shape[1] != len(at):
                raise ValueError(f"{name!r} must be (seeds, {len(at)}), got {raw.shape}")
            look, (mean, half) = look_of(name, place), mean_and_spread(raw)
            axes.fill_between(at, mean - half, mean + half, color=look.colour, alpha=0.15, lw=0)
            line: dict[str, Any] = {"color": look.colour, "ls": look.line, "lw": look.width}
            axes.plot(at, mean, label=name, **line, **_mark(look))
            ends.append((float(at[-1]), mean.tolist(), look))
        if log:
            axes.set_xscale("log")
        axes.set_xticks(at, ticks if ticks is not None else [f"{v:g}" for v in at])
        axes.set_xticks([], minor=True)
        axes.grid(axis="y")
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if ylim is not None:
            axes.set_ylim(*ylim)
        if level is not None:
            name, value = level
            axes.axhline(value, color=QUIET, lw=0.8, ls=(0, (1, 2)), zorder=1)
            low, high = axes.get_ylim()
            below = value - low > 0.08 * (high - low)  # is there room above the axis?
            right = axes.get_yaxis_transform()  # x from 0 to 1 across the axes, y in data
            note = axes.text(1, value, name, transform=right, color=QUIET, fontsize=9, ha="right")
            note.set(va="top" if below else "bottom", path_effects=HALO)
        _label_ends(figure, axes, ends)
    return figure


def budget_curve(
    budgets: Sequence[int],
    results: Mapping[str, Values],
    *,
    metric: str = "accuracy",
    chance: float | None = None,
    ylim: tuple[float, float] | None = None,
) -> Figure:
    """The label-budget curve: what each method makes of 1, 2, 5 … labels per class (log axis).

    budgets: labels per class; results: name -> (seeds, budgets).

    Raises:
        ValueError: as ``line_bands`` does.
    """
    return line_bands(
        budgets,
        results,
        xlabel="labels per class",
        ylabel=metric,
        log=True,
        ylim=ylim,
        level=None if chance is None else ("chance", chance),
    )


def dot_intervals(
    results: Mapping[str, Values], *, xlabel: str, zero: bool = False, digits: int = 3
) -> Figure:
    """One row per method: every seed as a fine stroke, their mean, and its 95% interval.

    results: name -> (seeds,). zero: the values are differences; draw the line of no difference.
    digits: of the numbers that stand beside the rows.

    Raises:
        ValueError: if there are no results, or one is not (seeds,).
    """
    with sheet(0.9 + 0.42 * len(results)) as figure:
        axes = figure.subplots()
        _dots(axes, results, digits=digits, signed=zero)
        if zero:
            axes.axvline(0, color=QUIET, lw=1.0, zorder=1)
        axes.set_xlabel(xlabel)
    return figure


def dot_panels(
    panels: Mapping[str, Mapping[str, Values]],
    *,
    xlabel: str,
    xlim: tuple[float, float] | None = None,
    zero: bool = False,
    level: tuple[str, float] | None = None,
    digits: int = 3,
) -> Figure:
    """``dot_intervals`` for several exams: one panel each, below one another, on one scale.

    panels: title -> (name -> (seeds,)). xlim: of all panels, where several figures are compared.
    level: a thin line through all panels, with its name above the first, as ("chance", 0.1).

    Raises:
        ValueError: if there are no panels, or as ``dot_intervals`` does.
    """
    if not panels:
        raise ValueError("panels must hold at least one exam, got none")
    sizes = [1 + len(results) for results in panels.values()]
    with sheet(0.7 + 0.32 * sum(sizes)) as figure:
        grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=sizes)
        places: list[Axes] = list(grid.flat)
        for axes, (title, results) in zip(places, panels.items(), strict=True):
            _dots(axes, results, digits=digits, signed=zero)
            axes.set_title(title, loc="left", weight="bold")
            axes.spines["bottom"].set_visible(axes is places[-1])
            axes.tick_params(axis="x", length=3 if axes is places[-1] else 0)
            if zero:
                axes.axvline(0, color=QUIET, lw=1.0, zorder=1)
            if level is not None:
                axes.axvline(level[1], color=QUIET, lw=0.8, ls=(0, (1, 2)), zorder=1)
        if level is not None:
            top = places[0].get_xaxis_transform()  # x in data, y from 0 to 1 up the axes
            where: dict[str, Any] = {"transform": top, "ha": "center", "va": "bottom"}
            places[0].text(level[1], 1.02, level[0], color=QUIET, fontsize=9, **where)
        places[-1].set_xlabel(xlabel)
        if xlim is not None:
            places[-1].set_xlim(*xlim)
    return figure


def cost_accuracy(
    scores: Mapping[str, Values], seconds: Mapping[str, Values], *, metric: str = "accuracy"
) -> Figure:
    """What each method reaches, and beside it what it costs: two panels that share their rows.

    scores: name -> (seeds,). seconds: name -> (seeds,), or one number where the seeds ran at once;
    they stand on a log axis.

    Raises:
        ValueError: if the two name different methods, or as ``dot_intervals`` does.
    """
    if list(scores) != list(seconds):
        raise ValueError(
            f"scores has {list(scores)}, seconds has {list(seconds)}: must be the same"
        )
    with sheet(1.0 + 0.42 * len(scores)) as figure:
        left, right = figure.subplots(1, 2)
        _dots(left, scores, digits=2)
        _dots(right, seconds, digits=2, single=True)
        left.set_xlabel(metric)
        right.set(xlabel="seconds (log axis)", xscale="log", yticklabels=[])
        fast, slow = right.get_xlim()
        right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if slow < 20 * fast else (1, 3)))
        right.xaxis.set_major_formatter("{x:g}")
        right.xaxis.set_minor_locator(NullLocator())
    return figure


def size_accuracy(
    sizes: Mapping[str, float],
    scores: Mapping[str, Values],
    *,
    xlabel: str,
    metric: str = "accuracy",
    joined: Mapping[str, Sequence[str]] | None = None,
    beside: Sequence[str] = (),
) -> Figure:
    """What each method reaches against its size (log axis): mean and 95% interval, by name.

    sizes: name -> parameters, bytes, …; scores: name -> (seeds,). joined: name of a family -> its
    members in order, joined by a line; their names stand above them, those of the others below,
    and those in ``beside`` on the right.

    Raises:
        ValueError: if the two name different methods, there are none, or one is not (seeds,).
    """
    if list(sizes) != list(scores) or not scores:
        raise ValueError(f"sizes has {list(sizes)}, scores has {list(scores)}: must be the same")
    families = dict(joined or {})
    members = {name for family in families.values() for name in family}
    means: dict[str, float] = {}
    with sheet(3.9) as figure:
        axes = figure.subplots()
        axes.set(xscale="log", xlabel=xlabel, ylabel=metric)
        for place, (name, values) in enumerate(scores.items()):
            raw = np.asarray(values, dtype=float)
            if raw.ndim != 1:
                raise ValueError(f"{name!r} must be (seeds,), got {raw.shape}")
            look, (mean, half) = look_of(name, place), mean_and_spread(raw)
            axes.errorbar(sizes[name], mean, half, color=look.colour, lw=2.2, **_mark(look))
            means[name], above = float(mean), name in members
            end, shift, va = (mean + half, 5, "bottom") if above else (mean - half, -5, "top")
            text, where = look.label.replace(", ", "\n"), (sizes[name], end)
            note = axes.annotate(text, where, (0, shift), textcoords="offset points", fontsize=9.5)
            note.set(color=look.text, ha="center", va=va, path_effects=HALO)
            if name in beside:
                note.xy = (sizes[name], float(mean))
                note.set(position=(8, 0), ha="left", va="center")
        for family, names in families.items():
            at, look = [sizes[name] for name in names], look_of(family)
            axes.plot(at, [means[n] for n in names], color=look.colour, ls=look.line, zorder=1)
        axes.margins(x=0.08, y=0.2)
        axes.grid(axis="y")
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_locator(NullLocator())
    return figure


def gauges(
    picture: Figure,
    place: int,
    scores: Mapping[str, Values],
    costs: Mapping[str, Values],
    *,
    height: float,
) -> Figure:
    """Under a picture, what each position of a dial brings and costs; changes the picture.

    place: the position that the picture shows, from 0: it is coloured, and its numbers are written.
    scores: name -> (seeds, positions), means and 95% intervals on one axis for all of them.
    costs: name -> (positions,), bars from zero, each with an axis of its own.
    height: of the whole in inches, so that pictures of several heights make frames of one size.

    Raises:
        ValueError: if the numbers of positions differ, ``place`` is none of them, or the height
            leaves too little room below the picture.
    """
    panels = {name: np.asarray(values, dtype=float) for name, values in {**scores, **costs}.items()}
    counts = sorted({values.shape[-1] for values in panels.values()})
    if len(counts) != 1 or not 0 <= place < counts[0]:
        raise ValueError(f"place must be one of as many positions in all; got {place} of {counts}")
    at, room = np.arange(counts[0]), 1 / len(panels)
    wide, tall = picture.get_size_inches()
    total = round(height * DPI) / DPI
    if total < tall + 1.7:
        raise ValueError(f"height must be at least {tall + 1.7:.2f} inches here, got {height}")
    picture.set_size_inches(wide, total)
    for axes in picture.axes:
        x, y, w, h = axes.get_position().bounds
        axes.set_position((x, 1 - (1 - y) * tall / total, w, h * tall / total))
    colours = [STATES["trained"].colour if position == place else "#bbbbbb" for position in at]
    shared: Axes | None = None
    with plt.rc_context(STYLE):
        for column, (name, values) in enumerate(panels.items()):
            bounds = (column * room + 0.015, 0.3 / total, room - 0.03, 0.68 / total)
            axes = picture.add_axes(bounds, sharey=shared if name in scores else None)
            if name in scores:
                shared, (mean, half) = axes, mean_and_spread(values)
                axes.vlines(at, mean - half, mean + half, colors=colours, lw=3)
                axes.scatter(at, mean, c=colours, zorder=3)
                number = f"{mean[place]:.3f} ± {half[place]:.3f}"
            else:
                axes.bar(at, values, color=colours)
                number = f"{values[place]:,.0f}" if values[place] >= 10 else f"{values[place]:.2f}"
            axes.set(xlim=(-0.6, at[-1] + 0.6), xticks=at, yticks=[])
            axes.tick_params(length=0, labelsize=8.5, pad=2)
            axes.spines["left"].set_visible(False)
            above: dict[str, Any] = {"transform": axes.transAxes, "va": "center"}
            axes.text(0, 1.72, textwrap.fill(name, 13), color=QUIET, fontsize=9.5, **above)
            axes.text(0, 1.2, number, weight="bold", fontsize=9, **above)
    return picture


def cost_ratios(ratios: Mapping[str, Mapping[str, float]], *, to: str) -> Figure:
    """What each method costs, in multiples of what the method ``to`` costs: one row per cost.

    ratios: name -> {cost: ratio}, the same costs for each. Each mark has its number beside it, on
    the left for the cheapest; the names stand above the first row, over their marks as nearly as
    can be, and ``to`` above its line, which begins below all names.

    Raises:
        ValueError: if there are no methods, or they have different costs.
    """
    costs = [list(of) for of in ratios.values()]
    if not costs or not costs[0] or any(names != costs[0] for names in costs):
        raise ValueError(f"ratios must give each method the same costs, at least one; got {costs}")
    with sheet(1.3 + 0.5 * len(costs[0])) as figure:
        axes = figure.subplots()
        reference, most = look_of(to), max(ratio for of in ratios.values() for ratio in of.values())
        axes.set(xlim=(0, 1.2 * max(most, 1)), ylim=(len(costs[0]) - 0.5, -1.25))
        axes.plot([1, 1], [-0.3, len(costs[0]) - 0.5], color=reference.colour, ls=reference.line)
        axes.lines[0].set(lw=1.5, zorder=1)
        axes.text(1, -0.95, to, color=reference.text, ha="center", va="center")
        firsts = [next(iter(of.values())) for of in ratios.values()]
        names = [axes.text(x, -0.5, n, ha="center") for n, x in zip(ratios, firsts, strict=True)]
        for name, of in ratios.items():
            look = look_of(name)
            names[list(ratios).index(name)].set(color=look.text, path_effects=HALO)
            axes.plot(list(of.values()), range(len(of)), ls="", zorder=3, **_mark(look))
            for row, (cost, ratio) in enumerate(of.items()):
                least = ratio == min(other[cost] for other in ratios.values())
                place: Any = {"xytext": (-8 if least else 8, 0), "textcoords": "offset points"}
                note = axes.annotate(f"{ratio:.2f}×", (ratio, row), **place)
                note.set(ha="right" if least else "left", va="center", path_effects=HALO, zorder=2)
                note.set(color=look.text, fontsize=9)
        axes.set_yticks(range(len(costs[0])), costs[0])
        axes.set_xlabel(f"times the cost of {to}")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y")
        figure.draw_without_rendering()  # settles the layout, so that widths are known
        inverse = axes.transData.inverted()
        wide = [1.1 * note.get_window_extent().transformed(inverse).width for note in names]
        for note, x in zip(names, spread(firsts, wide, *axes.get_xlim()), strict=True):
            note.set_x(float(x))
    return figure


def picture_grid(
    images: Values,
    captions: Sequence[str] | None = None,
    *,
    columns: int = 8,
    marks: Sequence[str] | None = None,
) -> Figure:
    """Pictures in rows, each with its caption below and, if marked, a frame that says its state.

    images: (N, 1, H, W) grey or (N, 3, H, W) colour, in [0, 1]. captions: N short texts.
    marks: N of "right", "wrong", a name of STATES, or "" for no frame; right and wrong also put
    their sign before the caption.

    Raises:
        ValueError: if the images have another shape, or captions or marks another number.
    """
    pixels = np.asarray(images, dtype=float)
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise ValueError(f"images must be (N, 1 or 3, H, W), got {pixels.shape}")
    number, _, height, width = pixels.shape
    texts = list(captions or [""] * number)
    signs = list(marks or [""] * number)
    if not len(texts) == len(signs) == number:
        raise ValueError(f"{number} images, but {len(texts)} captions and {len(signs)} marks")
    lines = max(text.count("\n") + 1 for text in texts) if any(texts) else 0
    columns = min(columns, number)
    rows = -(-number // columns)
    side = WIDTH / columns
    with sheet(rows * (side * height / width + 0.19 * lines)) as figure:
        places: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes in places:
            axes.set_axis_off()
        for axes, picture, text, mark in zip(places, pixels, texts, signs, strict=False):
            axes.imshow(picture.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=1)
            look = VERDICTS.get(mark) or (STATES[mark] if mark else None)
            colour = look.text if look else INK
            if mark in VERDICTS:
                text = f"{VERDICTS[mark].symbol} {text}"
            axes.set_title(text, y=0, pad=-4, va="top", fontsize=9.5, color=colour)
            if look:
                frame = Rectangle((0, 0), 1, 1, transform=axes.transAxes, clip_on=False, fill=False)
                frame.set(edgecolor=look.colour, linewidth=3, linestyle=look.line)
                axes.add_patch(frame)
    return figure


def pulls(tasks: Mapping[str, Values], steps: Mapping[str, Values], *, title: str = "") -> Figure:
    """Two tasks' gradients as arrows in the plane that they span, and the steps made of them.

    tasks: two names -> (weights,). steps: name -> (weights,), each a sum of multiples of the two.
    Two vectors span a plane, however many weights there are, so every length and angle is exact.
    Where both losses fall is shaded. All are drawn as pulls, the way that training moves.

    Raises:
        ValueError: if tasks are not two, or a step does not lie in their plane.
    """
    if len(tasks) != 2:
        raise ValueError(f"tasks must be two, got {list(tasks)}")
    vectors = {name: np.asarray(v, dtype=float) for name, v in {**tasks, **steps}.items()}
    left, right = (vectors[name] / np.linalg.norm(vectors[name]) for name in tasks)
    plane = np.stack([right - left, left + right])  # at a right angle, as both are of length 1
    plane /= np.linalg.norm(plane, axis=1, keepdims=True).clip(1e-12)
    tips = {name: plane @ vector for name, vector in vectors.items()}
    size = max(float(np.linalg.norm(vector)) for vector in vectors.values())
    for name, vector in vectors.items():
        if np.linalg.norm(vector - tips[name] @ plane) > 1e-3 * size:
            raise ValueError(f"{name!r} must lie in the plane of {' and '.join(tasks)}")
    with sheet(4.2) as figure:
        axes = figure.subplots()
        side, up = 4 * size * np.array([plane[1] @ left, -(plane[0] @ left)])
        axes.fill([0, -side, side], [0, up, up], color=FAINT, lw=0, zorder=0)
        ends: list[tuple[float, Sequence[float], Look]] = []
        for name, tip in tips.items():
            own = replace(STATES["task-specific"], label=name, line="-")
            look = own if name in tasks else replace(look_of(name), label=name)
            arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": look.colour, "shrinkA": 0}
            arrow |= {"lw": 3.5 if name in tasks else 1.8, "ls": look.line, "shrinkB": 0}
            arrow["mutation_scale"] = 14 * min(1.0, 5 * float(np.linalg.norm(tip)) / size)
            axes.annotate("", tip, (0, 0), arrowprops=arrow)
            if name not in tasks:
                ends.append((float(tip[0]), [float(tip[1])], look))
                continue
            away = float(np.sign(tip[0]))  # the name stands on the outer side, clear of the stems
            note = axes.annotate(name, 0.35 * tip, (8 * away, -4), textcoords="offset points")
            note.set(ha="left" if away > 0 else "right", va="top", color=look.text)
        across, high = (max(abs(tip[i]) for tip in tips.values()) for i in (0, 1))
        high = max(1.3 * high, across / 0.72, 0.6 * size)  # a page of 8 to 5
        axes.set(xlim=(-0.88 * high, 0.88 * high), ylim=(-0.1 * high, high), aspect="equal")
        axes.set(xlabel="length", ylabel="length")
        axes.text(0, 0.97 * high, "both losses fall", color=QUIET, ha="center", va="top")
        axes.set_title(title, loc="left")
        _label_ends(figure, axes, ends)
    return figure


def scatter_map(
    panels: Mapping[str, Values],
    labels: npt.ArrayLike,
    classes: Sequence[str],
    *,
    path: bool = False,
) -> Figure:
    """Points of a few classes on a plane (two principal components, say), one panel per setting.

    panels: title -> (N, 2); labels: (N,) in 0 .. classes - 1, the same points in every panel.
    path: join the points of a class, in order, into a loop. Each class has a colour and a marker,
    which stand with its name above the panels. The axes have no unit, so they carry no numbers; the
    panels share one scale.

    Raises:
        ValueError: if the shapes differ, or there are more classes than markers.
    """
    which = np.asarray(labels)
    if len(classes) > len(CLASSES):
        raise ValueError(f"classes must be at most {len(CLASSES)}, got {len(classes)}")
    per_row = min(len(classes), 5)
    above = 0.3 + 0.25 * -(-len(classes) // per_row)
    with sheet(above + (WIDTH / len(panels) if len(panels) > 1 else 4.6)) as figure:
        grid = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)
        places: list[Axes] = list(grid.flat)
        for axes, (title, points) in zip(places, panels.items(), strict=True):
            at = np.asarray(points, dtype=float)
            if at.shape != (len(which), 2):
                raise ValueError(f"panel {title!r} must be ({len(which)}, 2), got {at.shape}")
            for index, name in enumerate(classes):
                look, mine = CLASSES[index], at[which == index]
                if path:
                    loop = np.vstack([mine, mine[:1]])
                    axes.plot(*loop.T, color=look.colour, lw=1.0, alpha=0.5)
                axes.plot(*mine.T, ls="", alpha=0.85, label=name, **_mark(look))
            axes.set(xticks=[], yticks=[], aspect="equal")
            axes.set_title(title, loc="left")
            axes.spines[["left", "bottom"]].set_color(FAINT)
        legend: dict[str, Any] = {"ncols": per_row, "frameon": False, "handletextpad": 0.2}
        points, names = places[-1].get_legend_handles_labels()
        key = figure.legend(points, names, loc="outside upper left", columnspacing=1.2, **legend)
        for text, look in zip(key.get_texts(), CLASSES, strict=False):
            text.set(color=look.text, weight="bold")
    return figure


def tradeoff(
    results: Mapping[str, Values],
    *,
    xlabel: str,
    ylabel: str,
    xlim: tuple[float, float],
    ylim: tuple[float, float],
    fronts: Sequence[str] = (),
) -> Figure:
    """Two scores against each other, better up and to the right: the path of each method's mean.

    results: name -> (seeds, points, 2), the points in order, x before y; one point draws no path.
    A dot for each point, a marker with both 95% intervals for the last, its name on the right.
    fronts: of the names, those whose points are choices side by side, none of which is the end: no
    point of theirs is marked, and the name runs along the longest stretch, below or left of it.

    Raises:
        ValueError: if there are no results, one is not (seeds, points, 2), or one of the fronts is
            not among them or has a single point.
    """
    if not results:
        raise ValueError("results must hold at least one method, got none")
    for name in fronts:
        if name not in results or np.shape(results[name])[1:2] < (2,):
            raise ValueError(f"fronts must be names of results with several points, got {name!r}")
    with sheet(4.4) as figure:
        axes = figure.subplots()
        axes.grid()
        axes.set(xlabel=xlabel, ylabel=ylabel, xlim=xlim, ylim=ylim)
        ends: list[tuple[float, Sequence[float], Look]] = []
        along: list[tuple[Values, Look]] = []
        for place, (name, values) in enumerate(results.items()):
            raw = np.asarray(values, dtype=float)
            if raw.ndim != 3 or raw.shape[2] != 2 or not raw.shape[1]:
                raise ValueError(f"{name!r} must be (seeds, points, 2), got {raw.shape}")
            look, (mean, half) = look_of(name, place), mean_and_spread(raw)
            axes.plot(*mean.T, color=look.colour, ls=look.line, lw=1.2, alpha=0.7)
            axes.plot(*mean.T, ".", color=look.colour, ms=8 if name in fronts else 4)
            if name in fronts:
                along.append((mean, look))
                continue
            (x, y), (wide, tall) = mean[-1], half[-1]
            axes.errorbar(x, y, tall, wide, ecolor=look.colour, elinewidth=1.6, zorder=3)
            axes.plot(x, y, ls="", label=name, zorder=4, **_mark(look))
            ends.append((float(x), [float(y)], look))
        _label_ends(figure, axes, ends)
        figure.draw_without_rendering()
        for path, look in along:
            _label_along(axes, path, look)
    return figure


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Values,
    *,
    label: str,
    sure: bool = False,
) -> Figure:
    """A table of differences: every cell has its mean, its 95% half-width, and a colour by size.

    values: (seeds, rows, columns). label: what they are. Above zero is orange, below is purple and
    hatched, and zero is white; a frame marks the highest mean of each column. sure: only where its
    interval lies above zero.

    Raises:
        ValueError: if the values have another shape.
    """
    raw = np.asarray(values, dtype=float)
    if raw.shape[1:] != (len(rows), len(columns)):
        raise ValueError(f"values must be (seeds, {len(rows)}, {len(columns)}), got {raw.shape}")
    mean, half = mean_and_spread(raw)
    most, clear = float(np.abs(mean).max()) or 1.0, mean > half
    with sheet(0.75 + 0.5 * len(rows)) as figure:
        axes = figure.subplots()
        for (row, column), value in np.ndenumerate(mean.round(2)):
            face = colormaps["PuOr_r"](0.5 + 0.5 * value / most)
            cell: dict[str, Any] = {"fc": face, "ec": "white", "lw": 1.5}
            below = value < 0
            if below:
                cell |= {"hatch": "///"}
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **cell))
            text = f"{_number(value, 2, '+')}\n± {half[row, column]:.2f}"
            dark = contrast(np.array(face[:3])) > 4.5
            note = axes.text(column, row, text, color="white" if dark else INK, fontsize=9.5)
            note.set(ha="center", va="center")
            if below:
                note.set_bbox({"fc": face, "ec": "none", "pad": 1})
            if row == mean[:, column].argmax() and (clear[row, column] or not sure):
                inner = Rectangle((column - 0.46, row - 0.43), 0.92, 0.86, fill=False, ec=INK, lw=2)
                axes.add_patch(inner)
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5), xlabel=label)
        axes.set_xticks(range(len(columns)), list(columns))
        axes.set_yticks(range(len(rows)), list(rows))
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def _mark(look: Look) -> dict[str, Any]:
    """A look's marker, as keywords of ``Axes.plot``."""
    inside, edge = (look.colour, "white") if look.filled else ("white", look.colour)
    size = SIZES.get(look.marker, 7.5)
    return {"marker": look.marker, "ms": size, "mfc": inside, "mec": edge, "mew": 1.0}


def _number(value: float, digits: int, sign: str = "") -> str:
    """The number with a true minus sign; what rounds to zero has no sign."""
    rounded = round(float(value), digits)
    text = f"{rounded:{sign}.{digits}f}" if rounded else f"{0:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _label_ends(
    figure: Figure, axes: Axes, ends: Sequence[tuple[float, Sequence[float], Look]]
) -> None:
    """Write the name of each line on the right, joined to its end, where none overlap.

    ends: x of the end, all y of the line (the last is that of the end), look.
    """
    if not ends:
        return
    notes: list[Annotation] = []
    right = axes.get_yaxis_transform()  # x from 0 to 1 across the axes, y in data
    for x, line, look in ends:
        stem = {"arrowstyle": "-", "color": STEM, "lw": 0.8, "relpos": (0, 0.5)}
        stem |= {"shrinkA": 2, "shrinkB": 5}
        name = textwrap.fill(look.label, 16)
        where: Any = {"xytext": (1.045, line[-1]), "textcoords": right, "arrowprops": stem}
        note = axes.annotate(name, (x, line[-1]), **where)
        note.set(color=look.text, verticalalignment="center")
        notes.append(note)
    figure.draw_without_rendering()  # settles the layout, so that heights in data units are known
    inverse = axes.transData.inverted()
    boxes = [Text.get_window_extent(note).transformed(inverse) for note in notes]  # without stems
    low, high = axes.get_ylim()
    lines = [line for _, line, _ in ends]
    wanted, heights = [line[-1] for line in lines], [1.2 * abs(b.height) for b in boxes]
    order = upwards(lines, 0.01 * (high - low))
    for note, place in zip(notes, spread(wanted, heights, low, high, order), strict=True):
        note.set_y(float(place))


def _label_along(axes: Axes, path: Values, look: Look) -> None:
    """Write the name of a path along its longest stretch, below or left of it."""
    at = axes.transData.transform(np.asarray(path, dtype=float))  # in pixels, (points, 2)
    longest = int(np.linalg.norm(np.diff(at, axis=0), axis=1).argmax())
    along = at[longest + 1] - at[longest]
    along = along if (along[0], along[1]) > (0, 0) else -along  # read from left to right, or up
    down = np.array([along[1], -along[0]]) / np.linalg.norm(along)
    down = down if down.sum() < 0 else -down
    place: Any = {"xytext": 9 * down, "textcoords": "offset points", "rotation_mode": "anchor"}
    note = axes.annotate(look.label, np.asarray(path)[longest : longest + 2].mean(0), **place)
    note.set(rotation=np.rad2deg(np.arctan2(along[1], along[0])), path_effects=HALO)
    note.set(color=look.text, ha="center", va="center")


def upwards(lines: Sequence[Sequence[float]], near: float) -> list[int]:
    """Places of the lines by their last values, the lowest first.

    Values that are less than ``near`` apart tell nothing: the values before them decide.
    """

    def by_value(places: list[int], back: int) -> list[int]:
        if len(places) < 2 or back > min(len(lines[place]) for place in places):
            return places
        places = sorted(places, key=lambda place: lines[place][-back])
        groups = [places[:1]]
        for one, other in zip(places, places[1:], strict=False):
            if lines[other][-back] - lines[one][-back] < near:
                groups[-1].append(other)
            else:
                groups.append([other])
        return [place for group in groups for place in by_value(group, back + 1)]

    return by_value(list(range(len(lines))), 1)


def spread(
    wanted: Sequence[float],
    heights: Sequence[float],
    low: float,
    high: float,
    upwards: Sequence[int] | None = None,
) -> npt.NDArray[np.float64]:
    """Middles of labels that do not overlap, as near as can be to the wanted ones (n,), in order.

    upwards: places of the labels from the lowest on, if not the order of the wanted middles.

    Pool-adjacent-violators: labels that would overlap form a block, centred where its members
    want to be. The whole column is then moved inside [low, high] if it fits.
    """
    order = np.argsort(np.asarray(wanted), kind="stable") if upwards is None else list(upwards)
    tall = np.asarray(heights, dtype=float)[order]
    offset = np.cumsum(tall) - tall / 2
    blocks: list[list[float]] = []
    for value in np.asarray(wanted, dtype=float)[order] - offset:
        block = [float(value)]
        while blocks and np.mean(blocks[-1]) >= np.mean(block):
            block = blocks.pop() + block
        blocks.append(block)
    placed = np.repeat([np.mean(b) for b in blocks], [len(b) for b in blocks]) + offset
    placed -= max(0.0, placed[-1] + tall[-1] / 2 - high)
    placed += max(0.0, low - (placed[0] - tall[0] / 2))
    result = np.empty_like(placed)
    result[order] = placed
    return result


def _dots(
    axes: Axes,
    results: Mapping[str, Values],
    *,
    digits: int,
    signed: bool = False,
    single: bool = False,
) -> None:
    """Rows of seeds, mean and interval on ``axes``, first method on top, numbers at the right.

    single: a method may have one measurement instead of seeds, which then has no interval.
    """
    if not results:
        raise ValueError("results must hold at least one method, got none")
    right = axes.get_yaxis_transform()  # x from 0 to 1 across the axes, y in data
    for row, (name, values) in enumerate(results.items()):
        look, raw = look_of(name), np.asarray(values, dtype=float)
        if raw.ndim != 1 and not (single and raw.ndim == 0):
            raise ValueError(f"{name!r} must be (seeds,), got {raw.shape}")
        mean, spread = float(raw.mean()), ""
        if raw.ndim == 1:
            half = float(mean_and_spread(raw)[1])
            spread = f" ± {half:.{digits}f}"
            fine: dict[str, Any] = {"color": look.colour, "alpha": 0.4, "ms": 9, "mew": 1.0}
            axes.plot(raw, np.full(len(raw), row), "|", **fine)
            axes.plot([mean - half, mean + half], [row, row], color=look.colour, lw=3, alpha=0.9)
        axes.plot(mean, row, ls="", **_mark(look))
        numbers = _number(mean, digits, "+" if signed else "") + spread
        axes.text(1.02, row, numbers, transform=right, color=look.text, fontsize=9.5, va="center")
    axes.set_yticks(range(len(results)), list(results))
    axes.set_ylim(len(results) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y")


def client_mix(
    panels: Mapping[str, Values], classes: Sequence[str], *, most: float | None = None
) -> Figure:
    """Which client has how many examples of which class: a table of squares for each deal.

    panels: title -> (clients, classes), counts; up to two panels side by side. A column is a
    client, a row a class, and a square is the darker the more examples there are. most: the number
    that is darkest, the largest of all if None.

    Raises:
        ValueError: if there are no panels, or one has not a column for each of the classes.
    """
    if not panels:
        raise ValueError("panels must hold at least one deal, got none")
    tables = {title: np.asarray(counts, dtype=float) for title, counts in panels.items()}
    for title, table in tables.items():
        if table.ndim != 2 or table.shape[1] != len(classes):
            raise ValueError(f"{title!r} must be (clients, {len(classes)}), got {table.shape}")
    if most is None:
        most = max(float(table.max()) for table in tables.values()) or 1.0
    columns = min(2, len(tables))
    rows = -(-len(tables) // columns)
    shades = LinearSegmentedColormap.from_list("device", ["white", STATES["on-device"].colour, INK])
    with sheet(0.5 + rows * (0.25 + 0.17 * len(classes))) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        places: list[Axes] = list(grid.flat)
        for axes in places[len(tables) :]:
            axes.set_axis_off()
        for axes, (title, table) in zip(places, tables.items(), strict=False):
            axes.pcolormesh(table.T, cmap=shades, vmin=0, vmax=most, ec=FAINT, lw=0.4)
            axes.set(xticks=[], ylim=(len(classes), 0))
            axes.set_yticks(np.arange(len(classes)) + 0.5, list(classes), fontsize=8.5)
            axes.tick_params(length=0)
            axes.set_title(title, loc="left")
        for axes in grid[-1]:
            axes.set_xlabel(f"clients; darkest: {most:.0f} examples")
    return figure


def votes(
    answers: Mapping[str, Values],
    steps: Mapping[str, float],
    scores: Mapping[str, Values],
    *,
    xlabel: str,
    xlim: tuple[float, float],
    metric: str = "accuracy",
) -> Figure:
    """What clients answer and what each rule makes of it; beside it, where that leads.

    answers: name of a group -> (clients,), each client's answer as one number, on the first row.
    steps: rule -> one such number; scores: rule -> (seeds,), in [0, 1]. xlim: of the left panel,
    where several figures are compared; what lies beyond stands at the edge.

    Raises:
        ValueError: if steps and scores name different rules, or as ``dot_intervals`` does.
    """
    if list(steps) != list(scores):
        raise ValueError(f"steps has {list(steps)}, scores has {list(scores)}: must be the same")
    with sheet(1.3 + 0.42 * len(scores)) as figure:
        left, right = figure.subplots(1, 2)
        _dots(right, scores, digits=2)
        for place, (name, values) in enumerate(answers.items()):
            look, at = look_of(name, place), np.clip(np.asarray(values, dtype=float), *xlim)
            height = -1.2 + 0.4 * np.arange(len(at)) / max(len(at), 1)  # so that all are seen
            left.plot(at, height, ls="", alpha=0.8, label=name, **_mark(look))
            x, y = 0.04 + 0.45 * place, -1.75
            left.plot(x, y, ls="", transform=left.get_yaxis_transform(), **_mark(look))
            left.text(x + 0.04, y, name, transform=left.get_yaxis_transform(), va="center")
        for row, (name, value) in enumerate(steps.items()):
            left.plot(np.clip(value, *xlim), row, ls="", **_mark(look_of(name)))
        for axes in (left, right):
            axes.set_ylim(len(scores) - 0.4, -2.1)
        left.axvline(0, ymax=0.88, color=QUIET, lw=1.0, zorder=1)
        left.axhline(-0.6, color=FAINT, lw=1.0)
        left.set_yticks(range(-1, len(scores)), ["the answers", *scores])
        left.tick_params(axis="y", length=0)
        left.spines["left"].set_visible(False)
        left.set(xlabel=xlabel, xlim=(xlim[0] - 0.03 * (xlim[1] - xlim[0]), xlim[1]))
        right.set(xlabel=metric, xlim=(0, 1), yticklabels=[])
    return figure


def marks(
    results: Mapping[str, Values],
    *,
    xlabel: str,
    ylabel: str,
    names: Mapping[str, tuple[float, float]] | None = None,
    zero: bool = False,
) -> Figure:
    """A mark for each client (or play, or picture), with its size on a log axis; groups by look.

    results: name of a group -> (N, 2), size and value of each. Several groups are named above the
    axes. names: text -> (x, y), beside marks that are worth a name. zero: draw a line at no effect.

    Raises:
        ValueError: if there are no results, or one is not (N, 2) with sizes above 0.
    """
    if not results:
        raise ValueError("results must hold at least one group, got none")
    with sheet(3.7) as figure:
        axes = figure.subplots()
        axes.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
        for place, (name, values) in enumerate(results.items()):
            raw = np.asarray(values, dtype=float)
            if raw.ndim != 2 or raw.shape[1] != 2 or not (raw[:, 0] > 0).all():
                raise ValueError(f"{name!r} must be (N, 2) with sizes above 0, got {raw.shape}")
            mark: dict[str, Any] = _mark(look_of(name, place)) | {"ms": 6}
            axes.plot(*raw.T, ls="", label=name, alpha=0.9, **mark)
        if zero:
            axes.axhline(0, color=QUIET, lw=1.0, zorder=1)
        for text, where in (names or {}).items():
            note = axes.annotate(text, where, (6, 4), textcoords="offset points", fontsize=8.5)
            note.set(path_effects=HALO, zorder=4)
        if len(results) > 1:
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(results), frameon=False)
        axes.grid(axis="y")
        low, high = axes.get_xlim()
        ratio = high / low
        subs = (1, 2, 3, 5, 7) if ratio < 30 else (1, 2, 5) if ratio < 1000 else (1,)
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_locator(NullLocator())
    return figure


def fold_scores(
    scores: Mapping[str, Values],
    halves: Mapping[str, float],
    costs: Mapping[str, Mapping[str, float]],
    *,
    to: str,
    metric: str = "accuracy",
    level: tuple[str, float] | None = None,
) -> Figure:
    """What each method reaches in each fold, and what it costs, in multiples of the method ``to``.

    scores: name -> (folds,), in [0, 1], faint strokes. halves: name -> half the width of its
    interval, which the caller computes: folds are no seeds. costs: title of a column -> (name ->
    number), such as {"work": …}. level: a thin line with a name, as ("chance", 0.25).

    Raises:
        ValueError: if the three name different methods, or there are none.
    """
    named = [list(scores), list(halves), *(list(of) for of in costs.values())]
    if not scores or any(names != named[0] for names in named):
        raise ValueError(f"scores, halves and costs must name the same methods; got {named}")
    wide = 1.0 + 0.42 * len(costs)
    with sheet(1.15 + 0.42 * len(scores)) as figure:
        axes, table = figure.subplots(1, 2, sharey=True, width_ratios=(4.4 - wide, wide))
        places = np.linspace(1, 1.0 / wide, len(costs), endpoint=False)[::-1]
        cell: dict[str, Any] = {"fontsize": 9.5, "va": "center", "ha": "right"}
        for row, (name, values) in enumerate(scores.items()):
            look, raw = look_of(name), np.asarray(values, dtype=float)
            mean, half = float(raw.mean()), halves[name]
            ends = np.clip([mean - half, mean + half], 0, 1)
            axes.plot(raw, np.full(len(raw), row), "|", color=look.colour, alpha=0.45, ms=9)
            axes.plot(ends, [row, row], color=look.colour, lw=3, alpha=0.9)
            axes.plot(mean, row, ls="", **_mark(look))
            table.text(0, row, f"{mean:.2f} ± {half:.2f}", color=look.text, **cell | {"ha": "left"})
            for x, of in zip(places, costs.values(), strict=True):
                times = of[name] / of[to]
                text = f"{times:.1f}×" if times < 99.5 else f"{times:,.0f}×"
                table.text(x, row, text, color=look.text, **cell)
        for x, title in zip(places, costs, strict=True):
            table.text(x, -0.75, title, color=QUIET, **cell)
        if level is not None:
            axes.axvline(level[1], ymax=0.93, color=QUIET, lw=0.8, ls=(0, (1, 2)), zorder=1)
            axes.text(level[1], -0.75, f" {level[0]}", color=QUIET, **cell | {"ha": "left"})
        axes.set(ylim=(len(scores) - 0.4, -1.1), xlabel=metric)
        axes.set_yticks(range(len(scores)), list(scores))
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y")
        table.set_axis_off()
    return figure


def confusion(counts: Values, classes: Sequence[str], *, most: int = 12) -> Figure:
    """What each class was taken for: a row for each class, a column for each answer, counts.

    counts: (classes, classes). The shade of a cell is its share of the row. Of more than ``most``
    classes those with the most mistakes are shown, and all others as if they were one.

    Raises:
        ValueError: if the counts have another shape.
    """
    raw = np.asarray(counts, dtype=float)
    if raw.shape != (len(classes), len(classes)):
        raise ValueError(f"counts must be ({len(classes)}, {len(classes)}), got {raw.shape}")
    names, mistakes = list(classes), raw.sum(0) + raw.sum(1) - 2 * raw.diagonal()
    if len(names) > most:
        shown = np.sort(np.argsort(-mistakes, kind="stable")[:most])
        to = np.full(len(names), most)
        to[shown] = np.arange(most)
        names, whole = [names[i] for i in shown] + ["all others"], raw
        raw = np.zeros((most + 1, most + 1))
        np.add.at(raw, (to[:, None], to[None]), whole)
    share = raw / np.maximum(raw.sum(1, keepdims=True), 1)
    side = min(0.6, 5.0 / len(names))
    with sheet(1.2 + side * len(names)) as figure:
        axes = figure.subplots()
        axes.imshow(share, cmap="Greys", vmin=0, vmax=1.3, aspect="auto")
        for (row, column), count in np.ndenumerate(raw):
            if count:
                dark = share[row, column] > 0.6
                note = axes.text(column, row, f"{count:.0f}", color="white" if dark else INK)
                note.set(ha="center", va="center", weight="bold" if row == column else "normal")
        axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 5 else 0)
        axes.set_yticks(range(len(names)), names)
        if len(names) > 5:
            plt.setp(axes.get_xticklabels(), ha="right", rotation_mode="anchor")
        axes.set(xlabel="what it was taken for", ylabel="what it is")
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
    return figure
