"""Sphinx extension: the first use of a glossary term in the prose of a page leads to the glossary.

Prose is what stands in a paragraph: headings, code, links, figures and words that are marked stay
as they are. What a page links by hand with `{term}` counts as its first use.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

GLOSSARY = "book/glossary"
WITHOUT = {GLOSSARY, "book/api", "book/references"}  # pages
EVERYDAY = {"round", "update"}  # terms that often mean less; a page links them by hand
CARDS = {"sd-card", "cell"}  # classes of boxes that are links or code


def matcher(terms: Iterable[str]) -> re.Pattern[str]:
    """Any of the terms as a whole word, in the singular or with an s; the longest that fits."""
    words = [re.escape(t) for t in sorted(terms, key=len, reverse=True) if t not in EVERYDAY]
    return re.compile(rf"(?i)(?<![\w-])({'|'.join(words)})s?(?![\w-])")


def first_uses(
    text: str, pattern: re.Pattern[str], seen: set[str]
) -> Iterator[str | re.Match[str]]:
    """The text in pieces: strings that stay, and matches of terms not in `seen`, which grows."""
    end = 0
    for found in pattern.finditer(text):
        if (term := found[1].lower()) not in seen:
            seen.add(term)
            yield text[end : found.start()]
            yield found
            end = found.end()
    yield text[end:]


def in_prose(text: nodes.Text) -> bool:
    if not isinstance(text.parent, nodes.paragraph):
        return False
    node = text.parent
    while node := node.parent:
        if isinstance(node, nodes.figure) or CARDS.intersection(node.get("classes", [])):
            return False
    return True


class GlossaryLinks(SphinxPostTransform):
    default_priority = 20  # when references are resolved

    def run(self, **_: Any) -> None:
        page = self.env.docname
        if page in WITHOUT:
            return
        places = self.env.get_domain("std")._terms  # term: (page, anchor)
        pattern = matcher(places)
        linked = {anchor: term for term, (_, anchor) in places.items()}
        seen = {linked.get(ref.get("refid", ref.get("refuri", "").rpartition("#")[2]), "")
                for ref in self.document.findall(nodes.reference)}  # fmt: skip
        for text in filter(in_prose, list(self.document.findall(nodes.Text))):
            pieces = []
            for piece in first_uses(text.astext(), pattern, seen):
                if isinstance(piece, str):
                    pieces.append(nodes.Text(piece))
                    continue
                where, anchor = places[piece[1].lower()]
                address = self.app.builder.get_relative_uri(page, where)
                link = nodes.reference(piece[0], piece[0], refuri=f"{address}#{anchor}")
                link["classes"] = ["glossary-link"]
                pieces.append(link)
            if len(pieces) > 1:
                text.parent.replace(text, pieces)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_post_transform(GlossaryLinks)
    return {"parallel_read_safe": True, "version": "1"}
