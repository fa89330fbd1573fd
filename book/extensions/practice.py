"""Sphinx extension: `{practice}` links to the exercises and the quiz of a chapter."""

from typing import Any

from sphinx.application import Sphinx
from stored import Made, notebooks


class Practice(Made):
    def markdown(self, chapter: str) -> str:
        lines = ["| notebook | practise | check yourself |\n| --- | --- | --- |\n"]
        for notebook in notebooks(chapter):
            parts = [part for title in ("Exercises", "Quiz") for part in notebook.called(title)]
            links = " | ".join(f"{{ref}}`{part.title} <{part.label}>`" for part in parts)
            lines.append(f"| {notebook.link} | {links} |\n")
        return "".join(lines) if len(lines) > 1 else ""


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("practice", Practice)
    return {"parallel_read_safe": True, "version": "1"}
