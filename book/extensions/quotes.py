"""Sphinx extension: quotes in the folds of a notebook are curled, as in its other text."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.smartquotes import smartyPants
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


def curled(html: str) -> str:
    """HTML with typographic quotes, but for what is code."""
    parts = re.split(r"(<(?:code|pre)\b.*?</(?:code|pre)>)", html, flags=re.S)
    return "".join(part if n % 2 else smartyPants(part, "q") for n, part in enumerate(parts))


class Quotes(SphinxTransform):
    default_priority = 400

    def apply(self, **_: Any) -> None:
        for raw in self.document.findall(nodes.raw):
            if "<summary>" in raw.astext():
                raw[0] = nodes.Text(curled(raw.astext()))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_transform(Quotes)
    return {"parallel_read_safe": True, "version": "1"}
