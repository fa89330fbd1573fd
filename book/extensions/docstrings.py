"""Sphinx extension: the API page shows docstrings as text, and types as the source has them.

It prepares what Sphinx's own extension napoleon then reads as sections.
"""

import inspect
import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.inspect import stringify_signature


def prepared(
    app: Sphinx, what: str, name: str, obj: Any, options: object, lines: list[str]
) -> None:
    """Each parameter in a line of its own below `Args:`, which the package writes shorter."""
    if what in ("data", "attribute", "property"):
        lines[:0] = ["..", ""]  # an empty comment, or words before a colon are taken for a type
    elif what != "module":
        names = inspect.signature(obj.__init__ if what == "class" else obj).parameters
        lines[:] = with_parameters("\n".join(lines), list(names)).splitlines()


def with_parameters(text: str, names: list[str]) -> str:
    known = r"(?:{0})(?:, (?:{0}))*: ".format("|".join(names))
    parts = text.split("\n\n")
    for place, part in enumerate(parts):
        words = " ".join(part.removeprefix("Args:").split())
        if names and re.match(known, words):
            each = re.split(rf"(?<=[.;…]) (?={known})", words)
            parts[place] = "\n    ".join(["Args:", *(one.rstrip(";") for one in each)])
    return "\n\n".join(parts)


def as_written(
    app: Sphinx, what: str, name: str, obj: Any, options: object, signature: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:  # fmt: skip
    """The types as the source has them, by their short names and not by what these stand for."""
    if not signature or what not in ("class", "function", "method"):
        return signature, returned
    found = inspect.signature(obj)
    if what == "method":
        found = found.replace(parameters=list(found.parameters.values())[1:])  # without self
    text = stringify_signature(found, show_return_annotation=False)
    # a dataclass's defaults, which are otherwise no Python
    text = re.sub(r"<function (\w+)[^>]*>", r"\1", text).replace("<factory>", "...")
    return text, None if what == "class" else found.return_annotation


def without_fields(
    app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: object
) -> bool | None:
    """The fields of a tuple, and those with a function as default, stand in the signature."""
    borrowed = what == "class" and inspect.isfunction(obj) and "." not in obj.__qualname__
    field = (inspect.getdoc(obj) or "").startswith("Alias for field number")
    return True if borrowed or field else None


def without_lists(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    """A long signature is a list of definitions without terms, where screen readers stumble."""
    if "body" in context:
        lines = re.compile(r"<dd>(<em class=\"sig-param\">.*?)</dd>\n", re.S)
        body = lines.sub(r'<span class="sig-line">\1</span>', context["body"])
        context["body"] = re.sub(r"<dl>\n(<span class=\"sig-line\">.*?)</dl>\n", r"\1", body)


def with_breaks(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    """The heading of a module breaks at its dots where it is too long for a phone."""
    if "body" in context:
        heading = re.compile(r"(?<=<h2>)mlguide[.\w]+(?=<)")
        dotted = heading.sub(lambda found: found[0].replace(".", ".<wbr>"), context["body"])
        context["body"] = dotted


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", prepared, priority=400)
    app.connect("autodoc-process-signature", as_written)
    app.connect("autodoc-skip-member", without_fields)
    app.connect("html-page-context", without_lists)
    app.connect("html-page-context", with_breaks)
    return {"parallel_read_safe": True, "version": "1"}
