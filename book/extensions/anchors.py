"""Sphinx extension: names for the sections and claims of notebooks, so that pages can link to them.

A section is `<chapter>/<notebook>:<title in small letters, with dashes>`, the cell in which a claim
is measured or proved `claim-<id>`.
"""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from stored import ROOT, label, read


class Anchors(SphinxTransform):
    default_priority = 400

    def apply(self, **_: Any) -> None:
        folder, _, name = self.env.docname.partition("/")
        if folder != "notebooks":
            return
        claims = read(ROOT / f"{self.env.docname}.ipynb").claims
        for title in self.document[0].children:
            if isinstance(title, nodes.section):
                self.name(title, label(name, title[0].astext()))
        for cell in self.document.findall(nodes.container):
            if cell.get("nb_element") == "cell_code":
                for claim in claims.get(cell["cell_index"], []):
                    self.name(cell, f"claim-{claim['id'].lower()}")

    def name(self, node: nodes.Element, name: str) -> None:
        node["names"].append(name)
        self.document.note_explicit_target(node)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_transform(Anchors)
    return {"parallel_read_safe": True, "version": "1"}
