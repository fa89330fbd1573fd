"""Sphinx extension: the API page shows docstrings as they were written, line by line."""

from typing import Any

from sphinx.application import Sphinx


def as_written(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    while lines and not lines[-1]:
        lines.pop()
    if lines:
        head = [".. code-block:: text", "   :class: docstring", ""]
        lines[:] = [*head, *("   " + line.replace("``", "`") for line in lines), ""]


def without_factory(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:  # fmt: skip
    """`<factory>`, which stands for a default that a dataclass makes, cannot be parsed."""
    return signature and signature.replace("<factory>", "..."), returned


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", as_written)
    app.connect("autodoc-process-signature", without_factory)
    return {"parallel_read_safe": True, "version": "1"}
