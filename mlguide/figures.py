"""The few chart types of the book. How a method or a state looks stands in `mlguide.look`.

Every chart returns a matplotlib Figure that pyplot no longer holds: as the last line of a cell it
is shown once, and nothing needs closing. Values of repeated experiments come in raw, one row per
seed, so that a chart cannot leave the spread out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.ticker import LogLocator, NullLocator

from mlguide.experiments import mean_and_spread
from mlguide.look import (
    CLASSES,
    FAINT,
    INK,
    METHODS,
    QUIET,
    STATES,
    VERDICTS,
    WIDTH,
    Look,
    look_of,
    sheet,
)

__all__ = [
    "METHODS",
    "STATES",
    "budget_curve",
    "cost_accuracy",
    "dot_intervals",
    "line_bands",
    "picture_grid",
    "scatter_map",
    "size_accuracy",
]

Values = npt.ArrayLike
HALO = [withStroke(linewidth=3, foreground="white")]


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

    Raises ValueError if there are no results, or one is not (seeds, points).
    """
    at = np.asarray(x, dtype=float)
    if not results:
        raise ValueError("results must hold at least one method, got none")
    with sheet(3.7) as figure:
        axes = figure.subplots()
        ends: list[tuple[float, Look]] = []
        for place, (name, values) in enumerate(results.items()):
            raw = np.asarray(values, dtype=float)
            if raw.ndim != 2 or raw.shape[1] != len(at):
                raise ValueError(f"{name!r} must be (seeds, {len(at)}), got {raw.shape}")
            look, (mean, half) = look_of(name, place), mean_and_spread(raw)
            axes.fill_between(at, mean - half, mean + half, color=look.colour, alpha=0.15, lw=0)
            axes.plot(at, mean, color=look.colour, ls=look.line, label=name, **_mark(look))
            ends.append((float(mean[-1]), look))
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
            right = axes.get_yaxis_transform()  # x from 0 to 1 across the axes, y in data
            axes.text(
                1, value, name, transform=right, color=QUIET, fontsize=9, ha="right", va="top"
            )
        _label_ends(figure, axes, float(at[-1]), ends)
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

    budgets: labels per class; results: name -> (seeds, budgets). Raises as `line_bands` does.
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

    Raises ValueError if there are no results, or one is not (seeds,).
    """
    with sheet(0.9 + 0.42 * len(results)) as figure:
        axes = figure.subplots()
        _dots(axes, results, digits=digits, signed=zero)
        if zero:
            axes.axvline(0, color=QUIET, lw=1.0, zorder=1)
        axes.set_xlabel(xlabel)
    return figure


def cost_accuracy(
    scores: Mapping[str, Values], seconds: Mapping[str, Values], *, metric: str = "accuracy"
) -> Figure:
    """What each method reaches, and beside it what it costs: two panels that share their rows.

    scores: name -> (seeds,). seconds: name -> (seeds,), or one number where the seeds ran at once;
    they stand on a log axis. Raises ValueError if the two name different methods, or as
    `dot_intervals` does.
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
) -> Figure:
    """What each method reaches against its size (log axis): mean and 95% interval, by name.

    sizes: name -> parameters, bytes, …; scores: name -> (seeds,). joined: name of a family -> its
    members in order, joined by a line; their names stand above them, those of the others below.

    Raises ValueError if the two name different methods, there are none, or one is not (seeds,).
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
        for family, names in families.items():
            at, look = [sizes[name] for name in names], look_of(family)
            axes.plot(at, [means[n] for n in names], color=look.colour, ls=look.line, zorder=1)
        axes.margins(x=0.08, y=0.2)
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_locator(NullLocator())
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

    Raises ValueError if the images have another shape, or captions or marks another number.
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
    and in the last panel stands named at the middle of its points. The axes have no unit, so they
    carry no numbers; the panels share one scale.

    Raises ValueError if the shapes differ, or there are more classes than markers.
    """
    which = np.asarray(labels)
    if len(classes) > len(CLASSES):
        raise ValueError(f"classes must be at most {len(CLASSES)}, got {len(classes)}")
    with sheet(0.25 + (WIDTH / len(panels) if len(panels) > 1 else 4.6)) as figure:
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
                axes.plot(*mine.T, ls="", alpha=0.85, **_mark(look))
                if axes is places[-1]:
                    middle = mine.mean(axis=0)
                    note = axes.annotate(name, middle, ha="center", va="center", zorder=5)
                    note.set(color=look.text, weight="bold", path_effects=HALO)
            axes.set(xticks=[], yticks=[], aspect="equal")
            axes.set_title(title, loc="left")
            axes.spines[["left", "bottom"]].set_color(FAINT)
    return figure


def _mark(look: Look) -> dict[str, Any]:
    """A look's marker, as keywords of `Axes.plot`."""
    inside, edge = (look.colour, "white") if look.filled else ("white", look.colour)
    return {"marker": look.marker, "ms": 7.5, "mfc": inside, "mec": edge, "mew": 1.0}


def _label_ends(figure: Figure, axes: Axes, x: float, ends: Sequence[tuple[float, Look]]) -> None:
    """Write each line's name beside its last point, moved apart where names would overlap."""
    notes: list[Annotation] = []
    right = axes.get_yaxis_transform()  # x from 0 to 1 across the axes, y in data
    for y, look in ends:
        stem = {"arrowstyle": "-", "color": look.colour, "lw": 0.8, "relpos": (0, 0.5)}
        stem |= {"shrinkA": 2, "shrinkB": 5}
        name = textwrap.fill(look.label, 16)
        note = axes.annotate(name, (x, y), (1.045, y), textcoords=right, arrowprops=stem)
        note.set(color=look.text, verticalalignment="center")
        notes.append(note)
    figure.draw_without_rendering()  # settles the layout, so that heights in data units are known
    inverse = axes.transData.inverted()
    boxes = [Text.get_window_extent(note).transformed(inverse) for note in notes]  # without stems
    low, high = axes.get_ylim()
    y = spread([e for e, _ in ends], [1.2 * abs(b.height) for b in boxes], low, high)
    for note, place in zip(notes, y, strict=True):
        note.set_y(float(place))


def spread(
    wanted: Sequence[float], heights: Sequence[float], low: float, high: float
) -> npt.NDArray[np.float64]:
    """Middles of labels that do not overlap, as near as can be to the wanted ones (n,), in order.

    Pool-adjacent-violators: labels that would overlap form a block, centred where its members
    want to be. The whole column is then moved inside [low, high] if it fits.
    """
    order = np.argsort(np.asarray(wanted), kind="stable")
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
    """Rows of seeds, mean and interval on `axes`, first method on top, numbers at the right.

    single: a method may have one measurement instead of seeds, which then has no interval.
    """
    if not results:
        raise ValueError("results must hold at least one method, got none")
    sign = "+" if signed else ""
    right = axes.get_yaxis_transform()  # x from 0 to 1 across the axes, y in data
    for row, (name, values) in enumerate(results.items()):
        look, raw = look_of(name), np.asarray(values, dtype=float)
        if raw.ndim != 1 and not (single and raw.ndim == 0):
            raise ValueError(f"{name!r} must be (seeds,), got {raw.shape}")
        mean, spread = float(raw.mean()), ""
        if raw.ndim == 1:
            half = float(mean_and_spread(raw)[1])
            spread = f" ± {half:.{digits}f}"
            fine: dict[str, Any] = {"color": look.colour, "alpha": 0.45, "ms": 9, "mew": 1.0}
            axes.plot(raw, np.full(len(raw), row), "|", **fine)
            axes.plot([mean - half, mean + half], [row, row], color=look.colour, lw=3, alpha=0.9)
        axes.plot(mean, row, ls="", **_mark(look))
        numbers = f"{mean:{sign}.{digits}f}{spread}".replace("-", "\N{MINUS SIGN}")
        axes.text(1.02, row, numbers, transform=right, color=look.text, fontsize=9.5, va="center")
    axes.set_yticks(range(len(results)), list(results))
    axes.set_ylim(len(results) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y")
