"""Sphinx extension: a deck of slides for each chapter, at `slides/<chapter>.html`.

It is made of the cells whose metadata hold a `slideshow: {slide_type: ...}`, which Jupyter's own
tools set and show: `slide` begins a slide, `fragment` waits for a key, and `-` goes on. Cells
without it are left out. Of prose a slide has the heading and the paragraph below it; of code what
it printed and drew, and the code itself only where the cell has the tag `slide-input`.
"""

import re
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from posixpath import normpath
from typing import Any

import nbformat
from docutils import nodes
from nbconvert import SlidesExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook, new_output
from sphinx.application import Sphinx
from stored import CLAIM, CLAIMS, ROOT, notebooks

HEADING = r"(?m)^(#{1,3}) +(.+?) *$"
STATEMENTS = {claim["id"]: claim for claims in CLAIMS.values() for claim in claims}


def excerpt(prose: str) -> str:
    """From the first heading, if there is one, to the end of the first paragraph below it.

    What a paragraph that ends with a colon leads to, a list or a formula, belongs to it.
    """
    heading = re.search(HEADING, prose)
    blocks = re.split(r"\n\s*\n", prose[heading.start() if heading else 0 :].strip())
    end = 1 + next(i for i, block in enumerate(blocks) if not re.fullmatch(HEADING, block))
    return "\n\n".join(blocks[: end + blocks[end - 1].endswith(":")])


def with_links(prose: str, page: str) -> str:
    """Links as they must be in a deck; each heading leads to its place in the book."""

    def moved(link: re.Match[str]) -> str:
        path = normpath(f"{page}/../{link[1]}") if link[1] else page
        return f"](../{re.sub(r'[.](ipynb|md)$', '', path)}.html{link[2] or ''})"

    def linked(heading: re.Match[str]) -> str:
        anchor = "" if heading[1] == "#" else f"#{nodes.make_id(heading[2])}"
        return f"{heading[1]} [{heading[2]}](../{page}.html{anchor})"

    prose = re.sub(r"\]\((?!\w+:)([^)#\s]*)(#[^)\s]*)?\)", moved, prose)
    return re.sub(HEADING, linked, prose)


def outputs(cell: NotebookNode) -> Iterator[NotebookNode]:
    """What a cell put out; a claim's line comes below what is claimed."""
    for output in cell.outputs:
        if record := output.get("data", {}).get(CLAIM):
            claim = STATEMENTS[record["id"]]
            effect = f" Measured: {claim['effect']}." if "effect" in claim else ""
            text = f"<p>{escape(claim['statement'])}.{escape(effect)}</p>\n"
            text += f"<p>{escape(output.data['text/plain'])}</p>"
            verdict = record["verdict"].replace(" ", "-")
            text = f'<div class="claim {verdict}">{text}</div>'
            output = new_output("display_data", {"text/html": text})
        yield output


def slides(page: str, cells: Iterable[NotebookNode]) -> Iterator[NotebookNode]:
    """The tagged cells of a notebook; a slide that begins without a heading gets its section's."""
    title = ""
    for cell in cells:
        prose = cell.source if cell.cell_type == "markdown" else ""
        kind = cell.metadata.get("slideshow", {}).get("slide_type", "skip")
        if kind != "skip":
            if prose:
                cell.source = with_links(excerpt(prose), page)
            else:
                cell.outputs = list(outputs(cell))
                hidden = "slide-input" not in cell.metadata.get("tags", [])
                cell.metadata["transient"] = {"remove_source": hidden}
            if kind == "slide" and not re.match(HEADING, cell.source if prose else ""):
                cell.metadata["slideshow"] = {"slide_type": "-"}
                slideshow = {"slideshow": {"slide_type": "slide"}}
                heading = with_links(f"## {title}", page)
                yield new_markdown_cell(heading, metadata=slideshow)
            yield cell
        title = [title, *(heading[1] for heading in re.findall(HEADING, prose))][-1]


def deck(chapter: str) -> NotebookNode:
    """The notebook of a chapter's slides. The first has what the chapter is about, and its picture.

    The ids of its cells are new, since those of two notebooks may be equal.
    """
    page = f"book/{chapter}/index"
    opener = (ROOT / f"{page}.md").read_text("utf-8")
    opener = re.sub(r"\{\w+\}`([^`<]+?)( <[^>]*>)?`", r"\1", opener)  # roles
    picture = re.findall('<img class="way".*?>', opener)[0].replace("../../_static", "../_static")
    cells = [new_markdown_cell(f"{with_links(excerpt(opener), page)}\n\n{picture}")]
    for notebook in notebooks(chapter):
        stored = nbformat.read(notebook.path, as_version=4)
        cells += slides(f"notebooks/{notebook.name}", stored.cells)
    for place, cell in enumerate(cells):
        cell.id = f"{chapter}-{place}"
    return new_notebook(cells=cells, metadata={"title": re.findall(HEADING, opener)[0][1]})


def write(app: Sphinx, exception: Exception | None) -> None:
    if exception or app.builder.format != "html":
        return
    template = Path(__file__).with_name("slides.html.j2")
    exporter = SlidesExporter(
        template_file=str(template),
        exclude_anchor_links=True,  # two cells may have one heading
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    folder = Path(app.outdir, "slides")
    folder.mkdir(exist_ok=True)
    for chapter in CLAIMS:
        html, _ = exporter.from_notebook_node(deck(chapter))
        (folder / f"{chapter}.html").write_text(html, "utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "version": "1"}
