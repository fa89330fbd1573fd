"""Sphinx extension: `{mistakes}` gathers a chapter's 'Break it' sections and what they measured.

With the option `short` it is a list of links, for the opener of the chapter.
"""

import re
from typing import Any

from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from stored import Made, Section, notebooks

FIRST = r"\s*(?:\*\*|###+ )(.+?)[.:]?(?:\*\*|\n)\s*"  # a heading or bold words that begin a text


def name(section: Section) -> str:
    """What follows 'Break it: ' in the title, or the heading or bold words that follow it."""
    _, _, title = section.title.partition(": ")
    first = re.match(FIRST, section.prose)
    title = title or (first[1] if first else section.title)
    return title[0].upper() + title[1:]


def paragraphs(prose: str) -> list[str]:
    """Those of a text, each with the heading before it in bold, and without links."""
    text = re.sub(r"(?m)^###+ (.+)\n+", r"**\1.** ", prose)
    text = re.sub(r"(?<!!)\[([^\]]+)\]\([^)]*\)", r"\1", text)
    return re.split(r"\n\n+", text.strip())


def measured(section: Section) -> list[tuple[str, str]]:
    """What it printed that holds a measured number or a count of a whole, and the prose before."""
    return [(said, text) for said, text in section.printed if re.search(r"±|\d of \d", text)]


def story(section: Section) -> list[str]:
    """The first paragraph, and what was measured, each time after the paragraph that leads to it.

    A first paragraph that ends in a colon is left out: what it announces does not follow here.
    Nor do the words follow that are the name of the whole.
    """

    def told(prose: str) -> list[str]:
        return paragraphs(prose if ": " in section.title else re.sub(FIRST, "", prose, count=1))

    parts = [part for part in told(section.prose)[:1] if not part.endswith(":")]
    for said, text in measured(section):
        lead = told(said)[-1]
        parts += [lead] if lead not in parts else []
        parts.append("```text\n" + text.strip("\n") + "\n```")
    return parts


class Mistakes(Made):
    option_spec = {"short": directives.flag}

    def markdown(self, chapter: str) -> str:
        parts = []
        for notebook in notebooks(chapter):
            for section in notebook.called("break it"):
                link = f"{{ref}}`{name(section)} <{section.label}>`"
                if "short" in self.options:
                    parts.append(f"- {link}")
                else:
                    parts.append(f"{{.mistake}}\n**{link}**, in {notebook.link}")
                    parts += story(section)
        return "\n\n".join(parts)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("mistakes", Mistakes)
    return {"parallel_read_safe": True, "version": "1"}
