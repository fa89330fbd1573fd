"""Pictures of networks, drawn from the live module, so that a picture cannot lie.

What a block does comes from its layers, its size from a picture sent through it, its colour from
``requires_grad``. Only what a module cannot know of itself is told: that a part is new, shared, ….
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle
from torch import Tensor, nn

from mlguide.look import FAINT, INK, QUIET, STATES, WIDTH, sheet

__all__ = ["RoundView", "draw", "draw_round"]

PER_ROW = 7  # columns beside the picture's; a longer network goes on in the next row
LINE, BRANCH, TALLEST = 0.178, 0.62, 1.2  # inches: a line of text, a branch, the tallest slab
BATCHNORM = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@dataclass
class Block:
    """One box of the picture, and what is known of it from the live module.

    counts: its parameters by state. shape: of one output, without N. batchnorm: whether its running
    statistics move in training, None if it has none.
    """

    name: str
    module: nn.Module
    part: str
    counts: dict[str, int]
    frozen: bool
    shape: tuple[int, ...] = ()
    batchnorm: bool | None = None


def draw(
    model: nn.Module,
    picture: Tensor,
    *,
    states: Mapping[str, str] | None = None,
    title: str = "",
) -> Figure:
    """A network block by block, from the picture it sees to what it answers.

    picture: (channels, height, width) in [0, 1], an example of what the model takes. A copy of the
    model is sent it in training mode, to see every shape and whether BatchNorm's statistics move.
    states: what the module cannot know, such as ``{"head": "new"}``. Names are those of
    ``named_modules``, "backbone" for all of it. What is frozen then keeps its snowflake.

    The blocks are the children of ``model.backbone``, then whatever else the model has: its
    ``head``, or the members of its ``heads``, drawn as branches if they are several. A model
    without a backbone is drawn child after child. A block is frozen if none of its parameters
    requires a gradient, trained if all do, and split if only some do.

    Raises:
        ValueError: for a name that is no block, and for a state that is unknown or that the module
            knows better (frozen, trained).
    """
    blocks = _blocks(model, states or {})
    _measure(model, blocks, picture)
    trunk = [block for block in blocks if block.part != "branch"]
    branches = [block for block in blocks if block.part == "branch"]

    columns = len(trunk) + 2 * bool(branches)  # branches have their texts beside them
    rows = math.ceil(columns / PER_ROW)
    per_row = math.ceil(columns / rows)
    step = WIDTH / (per_row + 1)
    slabs = max([*(_size(b, picture)[1] for b in blocks), 0.9 * step, BRANCH * len(branches)])
    above = 0.3 + 0.1 * (rows > 1)  # room for the bracket, and for the arrow from row to row
    pitch = above + slabs + 0.1 + LINE * max(len(_lines(block)) for block in trunk) + 0.12
    top = 0.05 + 0.28 * bool(title)
    height = top + rows * pitch + 0.3
    with sheet(height) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.text(0.1, 0.22, title, weight="bold")
        x, y = step / 2, top + above + slabs / 2
        end = _input(axes, picture, x, y, 0.42 * step)
        for place, block in enumerate(trunk):
            row, column = divmod(place, per_row)
            x, y = (column + 1.5) * step, top + above + slabs / 2 + row * pitch
            wide, tall = _size(block, picture)
            _arrow(axes, end, (x - wide / 2, y), lane=y - slabs / 2 - above + 0.05)
            _slab(axes, block, x, y, wide, tall)
            _texts(axes, block, x, y + slabs / 2 + 0.1, step)
            _bracket(axes, block, x, y - slabs / 2 - 0.14, step, first=column == 0)
            end = (x + wide / 2, y)
        for place, block in enumerate(branches):
            low = y + (place - (len(branches) - 1) / 2) * BRANCH
            _arrow(axes, end, (x + step - 0.15, low))
            _slab(axes, block, x + step, low, 0.3, 0.46)
            _texts(axes, block, x + step + 0.24, low - 0.26, WIDTH - x - step - 0.3, beside=True)
        _legend(axes, blocks, height - 0.2)
        axes.set(xlim=(0, WIDTH), ylim=(height, 0), aspect="auto")  # inches, downwards
        axes.set_axis_off()
    return figure


def _blocks(model: nn.Module, states: Mapping[str, str]) -> list[Block]:
    """The boxes of a model, in order, with their parameters counted by state."""
    parts = dict(model.named_children())
    backbone = parts.pop("backbone", None)
    rest: dict[str, nn.Module] = {}
    for name, part in parts.items():
        group = isinstance(part, nn.ModuleDict | nn.ModuleList)
        rest |= {f"{name}.{n}": m for n, m in part.named_children()} if group else {name: part}
    body = {f"backbone.{n}": m for n, m in backbone.named_children()} if backbone else {}
    role = "branch" if backbone and len(rest) > 1 else ""
    named = {n: (m, "backbone") for n, m in body.items()} | {n: (m, role) for n, m in rest.items()}

    told = {state for state in STATES if state not in ("frozen", "trained")}
    for name, state in states.items():
        if name not in named and name not in {n.rsplit(".", 1)[0] for n in named}:
            raise ValueError(f"states names {name!r}, which is no block of {list(named)}")
        if state not in told:
            raise ValueError(f"the state of {name!r} must be one of {sorted(told)}, got {state!r}")
    blocks: list[Block] = []
    for name, (module, part) in named.items():
        state = states.get(name) or states.get(name.rsplit(".", 1)[0])
        counts: dict[str, int] = {}
        for p in module.parameters():
            key = state or ("trained" if p.requires_grad else "frozen")
            counts[key] = counts.get(key, 0) + p.numel()
        frozen = bool(counts) and not any(p.requires_grad for p in module.parameters())
        blocks.append(Block(name, module, part, counts, frozen))
    return blocks


def _measure(model: nn.Module, blocks: list[Block], picture: Tensor) -> None:
    """Send the picture through a copy of the model in training mode; note what each block did."""

    def note(block: Block, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        block.shape = tuple(output.shape[1:])

    clone = copy.deepcopy(model).train()
    for block in blocks:
        clone.get_submodule(block.name).register_forward_hook(partial(note, block))
    before = {name: buffer.clone() for name, buffer in clone.named_buffers()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        clone(torch.stack([picture, picture]).to(next(clone.parameters()).device))
    moved = {n for n, buffer in clone.named_buffers() if not torch.equal(buffer, before[n])}
    for block in blocks:
        if any(isinstance(m, BATCHNORM) for m in block.module.modules()):
            block.batchnorm = any(n.startswith(block.name + ".") for n in moved)


def _kind(module: nn.Module) -> list[str]:
    """What a block computes, in two short lines."""
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
    if convolutions:
        first, last, many = convolutions[0], convolutions[-1], len(convolutions)
        size = "×".join(str(side) for side in first.kernel_size)
        what = f"{size} conv" if many == 1 else f"{many} convs"
        return [what, f"{first.in_channels} → {last.out_channels}"]
    if linears:
        return ["linear", f"{linears[0].in_features} → {linears[-1].out_features}"]
    if isinstance(module, nn.AvgPool2d):
        side = module.kernel_size
        sides = (side, side) if isinstance(side, int) else side
        return ["mean of", "×".join(str(side) for side in sides) + " pixels"]
    return [type(module).__name__ if list(module.parameters()) else "no weights", ""]


def _size(block: Block, picture: Tensor) -> tuple[float, float]:
    """Width (from the channels) and height (from the pixels) of a slab, in inches."""
    if len(block.shape) == 1:
        return 0.3, min(0.28 + 0.09 * math.log2(block.shape[0]), TALLEST)
    shrunk = max(block.shape[1:]) / max(picture.shape[1:])
    return 0.18 + 0.05 * math.log2(block.shape[0]), 0.28 + (TALLEST - 0.28) * math.sqrt(shrunk)


def _lines(block: Block) -> list[tuple[str, str, str]]:
    """What stands under a block, line by line: text, colour, weight."""
    shape = "×".join(str(side) for side in block.shape)
    numbers = " numbers" if len(block.shape) == 1 else ""
    lines = [(block.name.rsplit(".", 1)[-1], INK, "bold")]
    lines += [(line, INK, "normal") for line in _kind(block.module)]  # always two
    lines += [(shape + numbers, QUIET, "normal")]
    for state, count in block.counts.items():
        symbol = f"{STATES[state].symbol} " if len(block.counts) > 1 else ""
        lines += [(f"{symbol}{count:,}", STATES[state].text, "bold")]
    if block.frozen and block.batchnorm is not None:
        moves = block.batchnorm
        colour = STATES["trained"].text if moves else QUIET
        lines += [("BatchNorm", colour, "normal")]
        lines += [("moves!", colour, "bold") if moves else ("at rest", colour, "normal")]
    return lines


def _texts(
    axes: Axes, block: Block, x: float, y: float, room: float, *, beside: bool = False
) -> None:
    """Write a block's lines from y downwards, as large as the room (in inches) allows."""
    lines = _lines(block)
    if beside:  # name, widths, parameters
        lines = [lines[0], lines[2], *lines[4:]]
    for place, (text, colour, weight) in enumerate(lines):
        per_letter = 0.0099 if weight == "bold" else 0.0089  # inches for each point, about
        size = min(10.0, 0.97 * room / (per_letter * max(len(text), 1)))
        note = axes.text(x, y + place * LINE, text, fontsize=size, gid=f"text {block.name}")
        note.set(color=colour, weight=weight, va="top", ha="left" if beside else "center")


def _slab(axes: Axes, block: Block, x: float, y: float, wide: float, tall: float) -> None:
    """A block's box: one layer for each state, in its colour and hatch, with its symbol."""
    layers = list(block.counts) or [""]
    share = tall / len(layers)
    for place, state in enumerate(layers):
        middle = y + (place - (len(layers) - 1) / 2) * share
        _box(axes, state, x - wide / 2, middle - share / 2, wide, share, f"slab {block.name}")
        symbols = [STATES[state].symbol] if state else []
        symbols += ["❄"] * (block.frozen and state != "frozen")
        for i, symbol in enumerate(symbols):
            level = middle + 0.25 * (i - (len(symbols) - 1) / 2)
            axes.add_patch(Circle((x, level), 0.115, fc="white", ec="none"))
            axes.text(x, level + 0.005, symbol, color=STATES[state].text, ha="center", va="center")


def _box(axes: Axes, state: str, x: float, y: float, wide: float, tall: float, gid: str) -> None:
    look = STATES.get(state)
    face: dict[str, Any] = {"fc": "white", "ec": QUIET}  # no parameters, no state
    if look:
        face = {"fc": look.colour, "ec": "#ffffffb0", "hatch": look.hatch}
    rounded = "round,pad=0,rounding_size=0.05"
    axes.add_patch(FancyBboxPatch((x, y), wide, tall, boxstyle=rounded, gid=gid, **face))


def _input(axes: Axes, picture: Tensor, x: float, y: float, half: float) -> tuple[float, float]:
    """The picture that goes in; returns where the first arrow starts."""
    pixels = picture.detach().cpu().permute(1, 2, 0).squeeze(-1).numpy()
    frame = (x - half, x + half, y + half, y - half)
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, extent=frame)
    axes.add_patch(Rectangle((x - half, y - half), 2 * half, 2 * half, fill=False, ec=FAINT))
    shape = "×".join(str(side) for side in picture.shape)
    axes.text(x, y + half + 0.08, shape, color=QUIET, ha="center", va="top")
    return x + half, y


def _arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], lane: float = 0
) -> None:
    """An arrow from box to box; to a box further left it goes by the lane above that box."""
    (x0, y0), (x1, y1) = start, end
    x, y = [x0, x1], [y0, y1]
    if x1 < x0:
        turn = min(x0 + 0.34, WIDTH - 0.05)  # past the words below that box
        x = [x0, turn, turn, x1 - 0.3, x1 - 0.3, x1]
        y = [y0, y0, lane, lane, y1, y1]
    axes.plot(x, y, color=QUIET, lw=1.0, zorder=0)
    line = {"arrowstyle": "-|>", "color": QUIET, "lw": 1.0, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (x1, y1), ((x[-2] + x1) / 2, (y[-2] + y1) / 2), arrowprops=line, zorder=0)


def _bracket(axes: Axes, block: Block, x: float, y: float, step: float, *, first: bool) -> None:
    """A line over each block of the backbone; the first of a row carries the name."""
    if block.part == "backbone":
        axes.plot([x - 0.5 * step, x + 0.5 * step], [y, y], color=FAINT, lw=2.5, zorder=-1)
        if first:
            label = axes.text(x - 0.5 * step, y, "backbone ", color=QUIET, va="center")
            label.set_bbox({"fc": "white", "ec": "none", "pad": 1.5})


def _legend(axes: Axes, blocks: list[Block], y: float) -> None:
    """The states in the picture, each with the number of its parameters."""
    totals = {state: sum(b.counts.get(state, 0) for b in blocks) for state in STATES}
    shown = {state: total for state, total in totals.items() if total}
    size = 10.5 if len(shown) < 3 else 9  # three long names would not fit otherwise
    label, x = axes.text(0.1, y, "parameters", va="center", color=QUIET, fontsize=size), 0.1
    for state, look in STATES.items():
        if total := shown.get(state):
            x += label.get_window_extent().width / axes.figure.dpi + 0.2
            _box(axes, state, x, y - 0.1, 0.3, 0.2, f"legend {state}")
            x += 0.36
            label = axes.text(x, y, f"{look.symbol} {state} {total:,}", gid=f"legend {state}")
            label.set(color=look.text, weight="bold", va="center", fontsize=size)


@dataclass(frozen=True)
class RoundView:
    """What ``draw_round`` shows of one round of a federation, all of it taken from the live one.

    Weights are shown as pictures, such as those of one unit: (h, w) each. asked: the numbers of
    the m phones that were asked, out of phones, and sizes: how many pictures each has. before,
    after: of the server. trained: (m, h, w), what each phone ended with. pictures: (m, 4, H, W)
    in [0, 1], four of each phone's own. losses: (m, 2), of each phone on its own pictures before
    and after its training. accuracy: of the server's model before and after. down, up: bytes to
    and from one phone.
    """

    phones: int
    asked: Sequence[int]
    sizes: Sequence[int]
    before: Tensor
    after: Tensor
    trained: Tensor
    pictures: Tensor
    losses: Tensor
    accuracy: tuple[float, float]
    down: int
    up: int


ROUND_STEPS = (
    "The server has a model, the phones have the pictures",
    "The server sends its weights to the phones it asks",
    "Each phone trains on its own pictures",
    "What changed comes back; the pictures stay",
    "The server moves by the mean of the updates",
)
DRAWN = 4  # phones that have room on the sheet


def draw_round(view: RoundView, step: int) -> Figure:
    """One round of a federation in slow motion, step 1 to 5: who holds what, and what travels.

    At most four of the phones asked are drawn, and all of them counted. Weights and updates have
    one colour scale each, the same at every step.

    Raises:
        ValueError: if step is not 1 to 5.
    """
    if not 1 <= step <= len(ROUND_STEPS):
        raise ValueError(f"step must be 1 to {len(ROUND_STEPS)}, got {step}")
    shown = min(len(view.asked), DRAWN)
    room = WIDTH / DRAWN
    with sheet(6.4) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.text(0.1, 0.2, f"{step}. {ROUND_STEPS[step - 1]}", weight="bold", size=13, va="center")
        _server(axes, view, step)
        for place in range(shown):
            x = WIDTH / 2 + (place - (shown - 1) / 2) * room
            _phone(axes, view, step, place, x)
            _wire(axes, view, step, place, x, WIDTH / 2 + 0.5 * (x - WIDTH / 2))
        _crowd(axes, view, step, shown)
        axes.set(xlim=(0, WIDTH), ylim=(6.4, 0), aspect="auto")  # inches, downwards
    return figure


def _server(axes: Axes, view: RoundView, step: int) -> None:
    """The server: its weights, how good they are, and in the last step what became of them."""
    look, last, reach = STATES["on-server"], step == len(ROUND_STEPS), _reach(view)
    _card(axes, 0.5, 0.45, WIDTH - 1.0, 1.3, look.colour, 0.12)
    name = f"{look.symbol} server"
    axes.text(0.65, 0.66, name, color=look.text, size=13, weight="bold", va="center")
    axes.text(2.0, 0.66, f"{view.down:,} bytes of weights", size=12, va="center")
    _tile(axes, view.before, 1.08, 1.28, 0.8, look.colour, reach)
    score = f"{view.accuracy[0]:.2f}"
    if last:
        signs: dict[str, Any] = {"size": 15, "weight": "bold", "ha": "center", "va": "center"}
        step_taken = view.after - view.before
        _tile(axes, step_taken, 2.28, 1.28, 0.8, STATES["on-device"].colour, _reach(view, True))
        _tile(axes, view.after, 3.48, 1.28, 0.8, look.colour, reach)
        axes.text(1.68, 1.28, "+", **signs)
        axes.text(2.88, 1.28, "=", **signs)
        score += f" → {view.accuracy[1]:.2f}"
    x = 4.1 if last else 1.7
    axes.text(x, 1.13, "accuracy", size=12, va="center")
    axes.text(x, 1.4, score, size=15, weight="bold", va="center")


def _phone(axes: Axes, view: RoundView, step: int, place: int, x: float) -> None:
    """A phone that was asked, its middle at x: its pictures, and the model while it is there."""
    look, top, wide = STATES["on-device"], 2.85, 1.5
    _card(axes, x - wide / 2, top, wide, 2.62, look.colour, 0.25)
    name = f"{look.symbol} phone {view.asked[place]}"
    text = axes.text(x, top + 0.18, name, color=look.text, size=12, weight="bold")
    count = axes.text(x, top + 0.4, f"{view.sizes[place]} pictures", size=11)
    for note in (text, count):
        note.set(ha="center", va="center")
    for i, picture in enumerate(view.pictures[place, :4]):
        _picture(axes, picture, x + (i % 2 - 0.5) * 0.62, top + 0.84 + i // 2 * 0.62, 0.58)
    weights, y = (None, view.before, *[view.trained[place]] * 3)[step - 1], top + 2.16
    edge = STATES["trained" if step == 3 else "on-device"]
    _tile(axes, weights, x - 0.38, y, 0.6, edge.colour, _reach(view))
    if step > 1:
        losses = [f"{loss:.2f}" for loss in view.losses[place].tolist()]
        lines = ["loss", losses[0], f"→ {losses[1]}"][: 2 if step == 2 else 3]
        note = axes.text(x, y, "\n".join(lines), size=11.5, va="center", linespacing=1.15)
        note.set_color(edge.text if step == 3 else INK)


def _wire(axes: Axes, view: RoundView, step: int, place: int, x: float, above: float) -> None:
    """The way from the server (at ``above``) to a phone (at x), and what travels on it now."""
    ends, sending, returning = ((above, 1.8), (x, 2.82)), step == 2, step == 4
    if not (sending or returning):
        axes.plot(*zip(*ends, strict=True), color=QUIET, lw=1, ls=(0, (1, 3)), zorder=0)
        return
    start, end = ends if sending else ends[::-1]
    style = {"arrowstyle": "-|>", "color": INK, "lw": 2, "mutation_scale": 16}
    axes.annotate("", end, start, arrowprops={**style, "shrinkA": 0, "shrinkB": 0}, zorder=0)
    sent = view.before if sending else view.trained[place] - view.before
    edge = STATES["on-server" if sending else "on-device"].colour
    _tile(axes, sent, (above + x) / 2, 2.28, 0.56, edge, _reach(view, returning))


def _crowd(axes: Axes, view: RoundView, step: int, shown: int) -> None:
    """All phones as a row of strokes, those asked in colour; and the bytes that went so far."""
    look, count = STATES["on-device"], len(view.asked)
    at = [0.1 + (WIDTH - 0.2) * (k + 0.5) / view.phones for k in range(view.phones)]
    axes.vlines(at, 5.65, 5.75, colors="#bbbbbb", lw=2)
    if step > 1:
        axes.vlines([at[k] for k in view.asked], 5.59, 5.81, colors=look.text, lw=3)
    asked = f", {count} asked" if step > 1 else ""
    more = f", {shown} drawn" if step > 1 and shown < count else ""
    axes.text(
        0.1, 5.99, f"{view.phones} phones{asked}{more}", size=12, va="center", color=look.text
    )
    down, up = count * view.down * (step > 1), count * view.up * (step > 3)
    text = f"this round: {down:,} bytes down, {up:,} bytes up"
    axes.text(0.1, 6.22, text, size=12, va="center", weight="bold")


def _reach(view: RoundView, updates: bool = False) -> float:
    """The largest weight or update in the view, which has the darkest colour."""
    weights = torch.stack([view.before, view.after, *view.trained])
    return float((weights - view.before if updates else weights).abs().max())


def _card(axes: Axes, x: float, y: float, wide: float, tall: float, colour: str, a: float) -> None:
    rounded = "round,pad=0,rounding_size=0.12"
    face: dict[str, Any] = {"fc": (*to_rgb(colour), a), "ec": colour, "lw": 2}
    axes.add_patch(FancyBboxPatch((x, y), wide, tall, boxstyle=rounded, zorder=-1, **face))


def _picture(axes: Axes, picture: Tensor, x: float, y: float, side: float) -> None:
    half = side / 2
    where = (x - half, x + half, y + half, y - half)
    axes.imshow(picture.detach().numpy(), cmap="gray", vmin=0, vmax=1, extent=where)


def _tile(
    axes: Axes, weights: Tensor | None, x: float, y: float, side: float, edge: str, reach: float
) -> None:
    """Weights as a picture: orange above zero, purple below; None is an empty place."""
    half = side / 2
    where = (x - half, x + half, y + half, y - half)
    if weights is not None:
        axes.imshow(weights.numpy(), cmap="PuOr_r", vmin=-reach, vmax=reach, extent=where, zorder=2)
    frame = Rectangle((x - half, y - half), side, side, fill=False, ec=edge, lw=2, zorder=3)
    frame.set_linestyle("-" if weights is not None else (0, (2, 2)))
    axes.add_patch(frame)
