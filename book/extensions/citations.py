"""Sphinx extension: the list of works without the roles that docutils gives it.

A screen reader asks a list for its items, and the entries have a role that no longer exists.
"""

from typing import Any

from sphinx.application import Sphinx


def without_roles(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    if "body" in context:
        body = context["body"].replace('<div role="list" class="citation-list">', "<div>")
        context["body"] = body.replace(' role="doc-biblioentry"', "")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", without_roles)
    return {"parallel_read_safe": True, "version": "1"}
