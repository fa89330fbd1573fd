"""Figures with a dial: in the published page, and live in Jupyter and Colab.

``frames`` draws every position of the dial beforehand, and HTML and CSS alone show the chosen one:
no kernel, no JavaScript. ``live`` puts the same drawing function behind a slider that calls it.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from IPython.display import HTML

__all__ = ["frames", "has_front_end", "live"]

Value = TypeVar("Value")
WIDTH = 660  # pixels, of a picture that has lost its style

# CSS asks which button is checked (`:has`, in every browser since the end of 2023) and hides the
# other pictures. Where it cannot, or where the style is taken away (an untrusted notebook in
# JupyterLab, a notebook on GitHub), all pictures stand below one another, each with its caption.
STYLE = """\
.mlguide-frames {max-width: 720px; margin: 1em 0}
.mlguide-frames fieldset {display: flex; flex-wrap: wrap; align-items: center; gap: 8px;
  min-width: 0; margin: 0 0 10px; padding: 4px; border: 0}
.mlguide-frames legend {float: left; width: auto; margin: 0 4px 0 0; padding: 0;
  font-size: 1em; font-weight: 600; color: inherit}
.mlguide-frames label {position: relative; margin: 0; cursor: pointer}
.mlguide-frames input {position: absolute; inset: 0; width: 100%; height: 100%; margin: 0;
  opacity: 0; cursor: pointer}
.mlguide-frames span {display: block; padding: 4px 14px; border: 1px solid #808080;
  border-radius: 18px; line-height: 24px; background: #fff; color: #222}
.mlguide-frames label:hover span {background: #e4e4e4}
.mlguide-frames input:checked + span {background: #444; color: #fff; font-weight: 600;
  box-shadow: 0 0 0 2px #fff, 0 0 0 4px #444}
.mlguide-frames input:focus-visible + span {outline: 3px solid #0072b2; outline-offset: 2px;
  box-shadow: 0 0 0 2px #fff, 0 0 0 7px #fff}
.mlguide-frames figure {margin: 0; padding: 0}
.mlguide-frames img {display: block; box-sizing: border-box; width: 100%; max-width: 100%;
  height: auto; margin: 0; padding: 0; background: #fff}
@supports selector(:has(*)) {
.mlguide-frames figure {display: none}
.mlguide-frames figcaption {display: none}
SHOWN {display: block}
}"""
SHOWN = ".mlguide-frames:has(label:nth-of-type({0}) > :checked) > figure:nth-of-type({0})"


def frames(
    draw: Callable[[Value], Figure],
    values: Sequence[Value],
    *,
    name: str,
    alt: str | Callable[[Value], str],
    labels: Sequence[str] | None = None,
    start: int = 0,
) -> HTML:
    """A dial that needs no kernel: one picture per value, chosen by click, touch or arrow keys.

    draw: value -> Figure, all of one size. name: what the dial turns, written before its buttons.
    alt: what a picture shows, for readers who do not see it: a function of the value, or a text
    with ``{}`` where the label goes. labels: the buttons' texts, ``str(value)`` if not given.
    start: place of the picture shown first.

    The same arguments give the same HTML. It has no ids, and its form keeps the buttons to
    themselves, so that a page holds any number of dials, alike or not.

    Raises:
        ValueError: if there are no values, labels are not as many, start is no place among them, a
            picture has no alt text of its own, or the pictures differ in size.
    """
    from IPython.display import HTML

    texts = [str(value) for value in values] if labels is None else list(labels)
    if not texts or len(texts) != len(values):
        raise ValueError(f"labels must be one for each value, got {len(texts)} for {len(values)}")
    if not 0 <= start < len(values):
        raise ValueError(f"start must be 0 to {len(values) - 1}, got {start}")
    alts = [
        alt.format(text) if isinstance(alt, str) else alt(value)
        for value, text in zip(values, texts, strict=True)
    ]
    if "" in alts or len(set(alts)) < len(alts):
        raise ValueError(f"alt must say of each picture what it alone shows, got {alts}")
    figures = [draw(value) for value in values]
    sizes = {tuple(float(side) for side in figure.get_size_inches()) for figure in figures}
    if len(sizes) > 1:
        raise ValueError(f"draw must return figures of one size, got {sorted(sizes)} in inches")

    # JupyterLab would take the arrow keys for itself without the attribute.
    dial = '<input type="radio" name="dial" data-lm-suppress-shortcuts="true"'
    buttons, pictures = "", ""
    for place, (figure, text, says) in enumerate(zip(figures, texts, alts, strict=True)):
        checked = " checked" if place == start else ""
        buttons += f"<label>{dial}{checked}><span>{_safe(text)}</span></label>\n"
        pictures += (
            f"<figure><figcaption>{_safe(name)}: {_safe(text)}</figcaption>"
            f'<img width="{WIDTH}" alt="{_safe(says)}" src="{_data_uri(figure)}"></figure>\n'
        )
    shown = ",\n".join(SHOWN.format(place + 1) for place in range(len(values)))
    style = STYLE.replace("SHOWN", shown)
    return HTML(
        # A form of method "dialog" that is in none sends nothing when Enter is pressed.
        '<form class="mlguide-frames" method="dialog">\n'
        f"<style>\n{style}\n</style>\n"
        f'<fieldset role="radiogroup"><legend>{_safe(name)}</legend>\n{buttons}</fieldset>\n'
        f"{pictures}</form>"
    )


def live(
    draw: Callable[[Value], Figure],
    values: Sequence[Value],
    *,
    name: str,
    description: str,
    labels: Sequence[str] | None = None,
) -> Any:
    """The live counterpart of ``frames``: a slider that calls ``draw`` and shows what it returns.

    description: what the panel does, as the rest of a sentence that begins with "It". Only Jupyter,
    Colab and VS Code can show a panel: elsewhere (the published page, an automatic run) nothing is
    computed and the description stands in its place as a note, the same in every run.

    Returns an ipywidgets VBox or an IPython HTML: make it the last line of the cell.
    """
    if not has_front_end():
        from IPython.display import HTML

        return HTML(
            f'<p class="mlguide-live"><em>In Jupyter or Colab, run this cell for a live panel. It '
            f"{_safe(description)}</em></p>"
        )
    import ipywidgets as widgets
    from IPython.display import HTML, display

    texts = [str(value) for value in values] if labels is None else list(labels)
    slider = widgets.SelectionSlider(
        options=list(zip(texts, values, strict=True)),
        description=name,
        continuous_update=False,  # a picture may take seconds: draw it when the handle is let go
        style={"description_width": "initial"},
        layout={"width": "100%", "max_width": f"{WIDTH}px"},
    )
    status, output = widgets.Label(), widgets.Output()

    def show(_: object) -> None:
        status.value = "computing …"
        with output:  # an error in `draw` is shown here too, in place of the last picture
            try:
                figure = draw(slider.value)
            except Exception:
                output.clear_output()
                raise
            finally:
                status.value = ""
            output.clear_output(wait=True)
            display(figure)

    slider.observe(show, names="value")
    show(None)
    # A saved notebook keeps this line, but not the panel.
    display(HTML(f"<p>{_safe(description)} <em>(No panel? Run this cell again.)</em></p>"))
    return widgets.VBox([slider, status, output])


def has_front_end() -> bool:
    """Whether a person is at the other end of this kernel, with a page that can show widgets.

    Jupyter's server, Colab and VS Code say so in the environment of the kernels they start.
    nbclient, nbconvert, nbval and Jupyter Book start kernels themselves and set none of these.
    """
    return any(
        sign in os.environ for sign in ("JPY_SESSION_NAME", "COLAB_RELEASE_TAG", "VSCODE_PID")
    )


def _data_uri(figure: Figure) -> str:
    """The figure as a lossless WebP picture inside an address."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="webp", pil_kwargs={"lossless": True})
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _safe(text: str) -> str:
    return html.escape(text, quote=True)
