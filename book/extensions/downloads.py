"""Sphinx extension: the figures of the notebooks as files to take away; `{figures}` lists them.

`figures/<chapter>/<notebook>-<n>.png` is the notebook's picture number n, with `-<m>` for position
m of a dial. Below it stands where it comes from and its licence, which are in its metadata, too.
"""

import json
import re
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from html import unescape
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

from docutils import nodes
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from sphinx.application import Sphinx
from stored import ROOT, Made, Notebook, notebooks, typeset

LICENCE = "CC BY 4.0, creativecommons.org/licenses/by/4.0"
DATA = "; data sets shown under their own licences"
FONT = ImageFont.truetype(Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 12)
FRAME = r'<figcaption>([^<]*)</figcaption><img[^>]* alt="([^"]*)" src="data:[^,]*,([^"]*)"'
VECTOR = "four_ways_out.svg"


@dataclass
class Picture:
    name: str  # of the file, below figures/
    number: int  # of the figure in its notebook
    place: int  # on the dial, from 1; 0 without a dial
    position: str  # what the dial says there
    alt: str
    data: str  # base64


def pictures(notebook: Notebook) -> Iterator[Picture]:
    number = 0
    for cell in json.loads(notebook.path.read_text("utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            frames = re.findall(FRAME, "".join(data.get("text/html", "")))
            number += bool(frames) or "image/png" in data
            name = f"{notebook.name}-{number}"
            if "image/png" in data:
                alt = cell["metadata"]["mystnb"]["image"]["alt"]
                yield Picture(name, number, 0, "", alt, "".join(data["image/png"]))
            for place, (position, alt, frame) in enumerate(frames, 1):
                position, alt = unescape(position), unescape(alt)
                yield Picture(f"{name}-{place}", number, place, position, alt, frame)


def save(picture: Picture, lines: list[str], folder: Path) -> None:
    """Write the picture with these lines below it; of each figure also a small one for the list."""
    drawn = Image.open(BytesIO(b64decode(picture.data))).convert("RGBA")
    width = max(drawn.width, *(int(FONT.getlength(line)) + 20 for line in lines))
    whole = Image.new("RGB", (width, drawn.height + 18 * len(lines) + 14), "white")
    whole.paste(drawn, ((width - drawn.width) // 2, 0), drawn)
    text = "\n".join(lines)
    ImageDraw.Draw(whole).text((10, drawn.height + 6), text, "#555555", FONT, spacing=4)
    said = PngInfo()
    title, source, copyright = lines
    for key, value in {"Title": title, "Description": picture.alt, "Source": source,
                       "Copyright": copyright}.items():  # fmt: skip
        said.add_itxt(key, value)
    whole.save(folder / f"{picture.name}.png", pnginfo=said, compress_level=4)
    if picture.place < 2:
        small = whole.crop((0, 0, width, drawn.height))
        small.thumbnail((200, 120))
        small.save(folder / f"{picture.name}.webp", quality=60)


def write(app: Sphinx, exception: Exception | None) -> None:
    if exception or app.builder.format != "html":
        return
    folder = Path(app.outdir, "figures")
    book, owner = app.config.html_title, f"© {app.config.copyright} {app.config.author}"
    for notebook in notebooks():
        (folder / notebook.name).parent.mkdir(parents=True, exist_ok=True)
        address = f"{app.config.html_baseurl}notebooks/{notebook.name}.html"
        lines = [f"{book}: {title(notebook)}", address, f"{owner}, {LICENCE}{DATA}"]
        with ThreadPoolExecutor() as pool:
            list(pool.map(partial(save, lines=lines, folder=folder), pictures(notebook)))
    svg = (ROOT / "book" / "static" / VECTOR).read_text("utf-8")
    wide, high = map(int, re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)[0])
    svg = svg.replace(f'"0 0 {wide} {high}"', f'"0 0 {wide} {high + 50}"')
    for place, line in enumerate([f"{book}, {app.config.html_baseurl}", f"{owner}, {LICENCE}"]):
        text = f'<text x="20" y="{high + 15 + 18 * place}" style="font-size: 12px">{line}</text>'
        svg = svg.replace("</svg>", f"{text}</svg>")
    (folder / VECTOR).write_text(svg, "utf-8")


def title(notebook: Notebook) -> str:
    return notebook.head.splitlines()[0].removeprefix("# ")


def item(figure: list[Picture]) -> str:
    """A figure in the list: a small picture and its text lead to the file, positions to theirs."""
    first = figure[0]
    path, alt = f"../figures/{first.name}", f"Figure {first.number}, small"
    links = [f'<a href="../figures/{p.name}.png">{typeset(p.position)}</a>' for p in figure]
    turned = f"<p>{'; '.join(links)}</p>" if len(figure) > 1 else ""
    return (
        f'<li><a href="{path}.png"><img src="{path}.webp" alt="{alt}" loading="lazy"></a>'
        f'<div><p><a href="{path}.png">{typeset(first.alt)}</a></p>{turned}</div></li>'
    )


class Figures(Made):
    def run(self) -> list[nodes.Node]:
        super().run()  # notes what the page depends on
        parts = ""
        for notebook in notebooks(self.arguments[0]):
            figures = [list(group) for _, group in groupby(pictures(notebook), lambda p: p.number)]
            count = f"({len(figures)} figure{'s'[: len(figures) - 1]})"
            parts += (
                f"<details><summary>{typeset(title(notebook))} {count}</summary>"
                f'<p>From <a href="../notebooks/{notebook.name}.html">this notebook</a>.</p>'
                f'<ul class="figures">{"".join(map(item, figures))}</ul></details>'
            )
        return [nodes.raw("", parts, format="html")]

    def markdown(self, chapter: str) -> str:
        return ""


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("figures", Figures)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "version": "1"}
