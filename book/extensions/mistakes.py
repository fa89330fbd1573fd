"""Sphinx extension: `{mistakes}` gathers a chapter's 'Break it' sections and what they measured.

With the option `short` it is a list of links, for the opener of the chapter.
"""

import re
from typing import Any

from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from stored import Made, Section, notebooks


def name(section: Section) -> str:
    """What follows 'Break it: ' in the title, or the words in bold that the section begins with."""
    _, _, title = section.title.partition(": ")
    bold = re.match(r"\s*\*\*(.+?)[.:]?\*\*", section.prose)
    title = title or (bold[1] if bold else section.title)
    return title[0].upper() + title[1:]


def story(section: Section) -> str:
    """The first paragraph, with a heading before it in bold, and without links."""
    text = re.sub(r"^\s*###+ (.+)\n+", r"**\1.** ", section.prose)
    text = re.sub(r"(?<!!)\[([^\]]+)\]\([^)]*\)", r"\1", text)
    return text.strip().split("\n\n")[0]


def damage(section: Section) -> list[str]:
    """The printed lines that hold a measured number or a count of a whole, as they stand."""
    return [text.strip("\n") for text in section.printed if re.search(r"±|\d of \d", text)]


class Mistakes(Made):
    option_spec = {"short": directives.flag}

    def markdown(self, chapter: str) -> str:
        parts = []
        for notebook in notebooks(chapter):
            for section in notebook.called("break it"):
                link = f"{{ref}}`{name(section)} <{section.label}>`"
                if "short" in self.options:
                    parts.append(f"- {link}\n")
                    continue
                parts.append(f"**{link}**, in {notebook.link}\n\n{story(section)}\n\n")
                parts += [f"```text\n{text}\n```\n\n" for text in damage(section)]
        return "".join(parts)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("mistakes", Mistakes)
    return {"parallel_read_safe": True, "version": "1"}
