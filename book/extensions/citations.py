"""Sphinx extension: works are cited as in the notebooks, and listed without the roles of docutils.

A screen reader asks a list for its items, and the entries have a role that no longer exists.
"""

from dataclasses import dataclass, field
from typing import Any

from sphinx.application import Sphinx
from sphinxcontrib.bibtex.plugin import register_plugin
from sphinxcontrib.bibtex.style.referencing import BracketStyle, PersonStyle
from sphinxcontrib.bibtex.style.referencing.author_year import AuthorYearReferenceStyle


def brackets() -> BracketStyle:
    return BracketStyle("(", ")", "; ")


@dataclass
class AndOthers(AuthorYearReferenceStyle):
    """(Zhu and others 2019; Sener and Koltun 2018)."""

    bracket_parenthetical: BracketStyle = field(default_factory=brackets)
    bracket_textual: BracketStyle = field(default_factory=brackets)
    person: PersonStyle = field(default_factory=lambda: PersonStyle(other=" and others"))
    author_year_sep: str = " "


def without_roles(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    if "body" in context:
        body = context["body"].replace('<div role="list" class="citation-list">', "<div>")
        context["body"] = body.replace(' role="doc-biblioentry"', "")


def setup(app: Sphinx) -> dict[str, Any]:
    register_plugin("sphinxcontrib.bibtex.style.referencing", "and_others", AndOthers)
    app.connect("html-page-context", without_roles)
    return {"parallel_read_safe": True, "version": "1"}
