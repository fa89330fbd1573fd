"""What the notebooks stored when they last ran, for the pages of the book that are made of it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from docutils.utils.smartquotes import smartyPants
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = yaml.safe_load((ROOT / "book" / "claims.yml").read_text("utf-8"))
CLAIM = "application/vnd.mlguide.claim+json"


@dataclass
class Section:
    """A part of a notebook below a heading of second rank: its prose, what its cells printed."""

    title: str
    label: str  # what `{ref}` calls it, see anchors.py
    prose: str = ""
    printed: list[tuple[str, str]] = field(default_factory=list)  # the prose so far, the text


@dataclass
class Notebook:
    path: Path
    seconds: int  # of its last run
    head: str
    sections: list[Section]
    claims: dict[int, list[dict[str, Any]]]  # by the place of the cell, each with its printed line

    @property
    def name(self) -> str:
        return f"{self.path.parent.name}/{self.path.stem}"

    @property
    def link(self) -> str:
        return f"{{doc}}`/notebooks/{self.name}`"

    def called(self, start: str) -> Iterator[Section]:
        return (s for s in self.sections if s.title.lower().startswith(start.lower()))


def label(notebook: str, title: str) -> str:
    return f"{notebook}:{nodes.make_id(title)}".lower()


@cache
def read(path: Path) -> Notebook:
    stored = json.loads(path.read_text("utf-8"))
    seconds = stored["metadata"].get("mlguide", {}).get("seconds", 0)
    found = Notebook(path, seconds, "", [Section("", "")], {})
    for place, cell in enumerate(stored["cells"]):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            found.head = found.head or text
            start, *rest = re.split(r"(?m)^## +(.+?) *$", text)
            found.sections[-1].prose += f"\n\n{start}"
            for title, prose in zip(rest[::2], rest[1::2], strict=True):
                found.sections.append(Section(title, label(found.name, title), prose))
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if output.get("name") == "stdout":
                section = found.sections[-1]
                section.printed.append((section.prose, "".join(output["text"])))
            if CLAIM in data:
                record = {**data[CLAIM], "line": "".join(data["text/plain"])}
                found.claims.setdefault(place, []).append(record)
    return found


def notebooks(chapter: str = "*") -> list[Notebook]:
    """The notebooks of a chapter, or all, in the order of the book."""
    order = list(CLAIMS)
    paths = (ROOT / "notebooks").glob(f"{chapter}/[0-9]*.ipynb")
    return [read(p) for p in sorted(paths, key=lambda p: (order.index(p.parent.name), p.name))]


def typeset(text: str) -> str:
    """Plain text as HTML, with the quotes and apostrophes that Markdown gets on a page."""
    return escape(smartyPants(text, "q"), quote=False)


class Made(SphinxDirective):
    """A directive that writes Markdown made of the notebooks of one chapter, or of all."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        chapter = self.arguments[0] if self.arguments else "*"
        for notebook in notebooks():
            self.env.note_dependency(str(notebook.path))
        self.env.note_dependency(str(ROOT / "book" / "claims.yml"))
        return self.parsed(self.markdown(chapter) or "Not written yet.")

    def parsed(self, markdown: str) -> list[nodes.Node]:
        parent = nodes.Element()
        self.state.nested_parse(StringList(markdown.splitlines(), self.env.docname), 0, parent)
        return parent.children

    def markdown(self, chapter: str) -> str:
        raise NotImplementedError
