"""How things look, said once for every diagram and chart of the book.

Colour is state: what is frozen, trained, new, shared … has one colour and one further sign (hatch,
line, marker, symbol), so that a grey print can be read as well. What is not a state is grey. The
colours are Okabe and Ito's, "Color Universal Design" (2008).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

__all__ = [
    "CLASSES",
    "DPI",
    "FAINT",
    "INK",
    "METHODS",
    "NEUTRAL",
    "QUIET",
    "STATES",
    "STYLE",
    "VERDICTS",
    "WIDTH",
    "Look",
    "contrast",
    "look_of",
    "sheet",
]

WIDTH = 6.625  # inches: 10.5 points are 16 pixels on a page of 720, 8 on a phone of 390
DPI = 120
INK, QUIET, FAINT = "#222222", "#666666", "#e4e4e4"


@dataclass(frozen=True)
class Look:
    """How one thing is drawn everywhere: a colour, and signs that do without colour."""

    label: str
    colour: str
    hatch: str = ""
    line: str = "-"
    marker: str = "o"
    filled: bool = True
    symbol: str = ""
    width: float = 2.0  # of a line, in points

    @property
    def text(self) -> str:
        """The colour, darkened until it can be read on white (contrast of at least 4.5 to 1)."""
        rgb = np.array(to_rgb(self.colour))
        while contrast(rgb) < 4.5:
            rgb = rgb * 0.95
        return "#" + "".join(f"{round(255 * float(c)):02x}" for c in rgb)


def contrast(rgb: npt.NDArray[np.float64]) -> float:
    """Contrast of a colour (3,) in [0, 1] with white, 1 to 21, as WCAG 2 defines it."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(1.05 / (linear @ np.array([0.2126, 0.7152, 0.0722]) + 0.05))


STATES: dict[str, Look] = {
    look.label: look
    for look in (
        Look("frozen", "#0072B2", hatch="///", marker="s", symbol="❄"),
        Look("trained", "#D55E00", hatch="", marker="o", symbol="↻"),
        Look("new", "#009E73", hatch="...", line="-.", marker="P", symbol="✚"),
        Look("shared", "#CC79A7", hatch="xxx", line="--", marker="D", symbol="⇄"),
        Look("task-specific", "#E69F00", hatch="\\\\\\", line=":", marker="v", symbol="⚑"),
        Look("on-device", "#56B4E9", hatch="ooo", line="--", marker="h", symbol="⌂"),
        Look("on-server", "#444444", hatch="+++", line="-.", marker="p", symbol="☁"),
    )
}
VERDICTS = {
    "right": Look("right", "#444444", symbol="✓"),
    "wrong": Look("wrong", "#000000", line="--", symbol="✗"),
}
# Classes are no states: they take another palette (Paul Tol's "muted"), the hues nearest to a state
# last, and always a marker too.
CLASSES = [
    Look("", colour, marker=marker)
    for colour, marker in zip(
        "#332288 #999933 #882255 #DDCC77 #555555 #AA4499 #117733 #88CCEE #CC6677 #44AA99".split(),
        "osD^vPXph*",
        strict=True,
    )
]
NEUTRAL = Look("", "#555555")

# What starts from another model wears the colour of its state; what starts alone is grey.
_FROZEN, _TRAINED, _SHARED = STATES["frozen"], STATES["trained"], STATES["shared"]
_DEVICE, _SERVER = STATES["on-device"], STATES["on-server"]
METHODS: dict[str, Look] = {
    look.label: look
    for look in (
        replace(_FROZEN, label="frozen features"),
        replace(_FROZEN, label="linear probe"),
        replace(_FROZEN, label="copied, frozen"),
        replace(_FROZEN, label="stored statistics"),
        replace(STATES["new"], label="re-estimated statistics"),
        replace(_FROZEN, label="random features", line="--", filled=False),
        replace(_FROZEN, label="random, frozen", line="--", filled=False),
        replace(_TRAINED, label="fine-tuned"),
        replace(_TRAINED, label="copied, fine-tuned"),
        replace(_TRAINED, label="probe then tune", line="--", marker="D", filled=False),
        replace(_TRAINED, label="layer-wise rates", line="-.", marker="^", filled=False),
        replace(_TRAINED, label="gradual unfreezing", line=":", marker="v", filled=False),
        replace(_FROZEN, label="head only"),
        replace(_TRAINED, label="last block", line=":", marker="v", filled=False),
        replace(_TRAINED, label="last 2", line="--", marker="^", filled=False),
        replace(_TRAINED, label="all"),
        replace(_TRAINED, label="5 labels of each", line="--", marker="D", filled=False),
        replace(_TRAINED, label="50 labels of each", line="-.", marker="^", filled=False),
        replace(_TRAINED, label="200 labels of each"),
        replace(_TRAINED, label="all weights"),
        replace(_TRAINED, label="biases", line=":", marker="d", filled=False),
        replace(STATES["new"], label="LoRA"),
        *(replace(STATES["new"], label=f"LoRA, rank {rank}") for rank in (1, 2, 4, 8, 16)),
        replace(_TRAINED, label="lower rate", line=":", marker="v"),
        replace(_TRAINED, label="L2-SP", line="-.", marker="X"),
        replace(_TRAINED, label="EWC", marker="p", filled=False),
        replace(STATES["shared"], label="rehearsal", line=":", marker="h", filled=False),
        replace(STATES["shared"], label="old answers"),
        replace(STATES["new"], label="LoRA, left on", line="--", filled=False),
        replace(STATES["new"], label="LoRA, taken off", marker="D"),
        Look("shuffled labels", "#777777", line="-.", marker="D", filled=False),
        replace(_SHARED, label="unit weights"),
        replace(_SHARED, label="tuned weight", line="-", marker="o"),
        replace(_SHARED, label="mean", filled=False),
        replace(_SHARED, label="PCGrad", line="-.", marker="^"),
        replace(_SHARED, label="MGDA", line=":", marker="v"),
        replace(_SHARED, label="fixed weights", line="-"),
        *(
            replace(_SHARED, label=f"weight {weight:g}")
            for weight in (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10)
        ),
        replace(_SHARED, label="fixed halfway", filled=False),
        replace(_SHARED, label="normalised", marker="s"),
        replace(_SHARED, label="learned", line="-.", marker="^"),
        Look("alone, formula", INK, line=":", marker="", width=1.3),
        Look("shared, formula", INK, line=":", marker="", width=1.3),
        replace(STATES["on-device"], label="clipped and noised", line="-", marker="s"),
        Look("one network each", "#333333", marker="s"),
        Look("from scratch", "#333333", marker="^"),
        Look("scratch + augmentation", "#777777", line="--", marker="D", filled=False),
        Look("pixels", "#808080", line=":", marker="X"),
        Look("logistic regression", "#808080", line=":", marker="X"),
        replace(_DEVICE, label="FedAvg", line="-", marker="o"),
        replace(_DEVICE, label="FedSGD", line=":", marker="v", filled=False),
        replace(_DEVICE, label="FedAvg, two shards", line="--", marker="o", filled=False),
        replace(_DEVICE, label="FedSGD, two shards", line="-.", marker="v"),
        replace(_DEVICE, label="same start", line="-", marker="o"),
        replace(STATES["shared"], label="one shared network"),
        Look("three networks", "#333333", marker="^"),
        Look("three narrow networks", "#777777", line="--", marker="s", filled=False),
        replace(_DEVICE, label="FedProx", line=":", marker="v"),
        replace(_DEVICE, label="SCAFFOLD", line="--", marker="s"),
        replace(_DEVICE, label="FedAvgM", line="-.", marker="^", filled=False),
        replace(_DEVICE, label="FedAdam", line="-.", marker="D", filled=False),
        replace(_TRAINED, label="personalised"),
        Look("local only", "#808080", line=":", marker="X"),
        Look("central", "#555555", line="-.", marker="*"),
        replace(STATES["on-server"], label="one row", line="-"),
        replace(STATES["on-server"], label="all rows", line="--", marker="D", filled=False),
        replace(STATES["on-server"], label="matched gradients", line=":", marker="v"),
        replace(STATES["on-server"], label="chosen weights", line="-", marker="X"),
        replace(_SERVER, label="random weights", line="-.", marker="D", filled=False),
        replace(_DEVICE, label="whole update", line="-", marker="o"),
        *(replace(_DEVICE, label=f"{bits} bits", marker="s") for bits in (8, 4, 2)),
        replace(_DEVICE, label="2 bits, length", marker="s", filled=False),
        Look("2 bits, length, memory", "#000000", line=":", marker="X"),
        replace(_DEVICE, label="sign", marker="X"),
        *(
            replace(_DEVICE, label=f"top {share}", line=":", marker="^")
            for share in ("1/10", "1/100", "1/1000")
        ),
        replace(_DEVICE, label="rank 2", marker="D", filled=False),
        *(Look(f"{units} units", "#777777", line="-.", marker="v") for units in (16, 8, 4)),
        replace(_DEVICE, label="plain mean", line="-", marker="o"),
        replace(_SERVER, label="median", line="--", marker="s"),
        replace(_SERVER, label="trimmed mean", line=":", marker="D", filled=False),
        replace(_SERVER, label="Krum", line="-.", marker="^"),
        replace(_SERVER, label="Multi-Krum", line="-", marker="P"),
        replace(_DEVICE, label="honest", marker="o"),
        replace(_DEVICE, label="a role's own text"),
        replace(_SERVER, label="drawn from all"),
        replace(_DEVICE, label="sent by the node"),
        replace(_SERVER, label="sent by the server"),
        Look("hostile", "#000000", marker="X"),
        replace(STATES["on-device"], label="federated", line="-", marker="o"),
        replace(STATES["on-device"], label="its own update", line="-", marker="o"),
        Look("alone", "#333333", marker="^"),
        Look("alone + augmentation", "#777777", line="--", marker="D", filled=False),
        replace(_FROZEN, label="transfer"),
        replace(_SHARED, label="multi-task"),
        Look("everything", "#555555", line="-.", marker="P"),
        replace(STATES["on-server"], label="average of ten"),
    )
}


def look_of(name: str, place: int = 0) -> Look:
    """The look of a method or state; any other name is grey, its marker given by its place."""
    known = METHODS.get(name) or STATES.get(name)
    spare = "o^DvPX"[place % 6], ("-", "--", "-.", ":")[place % 4]
    return known or replace(NEUTRAL, label=name, marker=spare[0], line=spare[1])


STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10.5,
    "axes.labelsize": 10.5,
    "axes.titlesize": 10.5,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.minor.size": 0,
    "lines.linewidth": 2.0,
    "hatch.linewidth": 0.9,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "figure.dpi": DPI,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.08,  # inches: no name touches the edge of the paper
}


@contextmanager
def sheet(height: float) -> Generator[Figure]:
    """A figure of the book's width and this height in inches, and its style while it is drawn on.

    pyplot makes it (so that notebooks can show it) and lets go of it; its settings stay untouched.
    """
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(WIDTH, round(height * DPI) / DPI))  # whole pixels
        try:
            yield figure
        finally:
            plt.close(figure)
