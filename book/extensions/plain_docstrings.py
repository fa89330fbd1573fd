"""Sphinx extension: the API page shows docstrings as they were written, line by line."""

from typing import Any

from sphinx.application import Sphinx


def as_written(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    while lines and not lines[-1]:
        lines.pop()
    if lines:
        lines[:] = [".. code-block:: text", "", *("   " + line for line in lines), ""]


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", as_written)
    return {"parallel_read_safe": True, "version": "1"}
