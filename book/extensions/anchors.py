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
        domain = self.env.get_domain("std")
        for section in self.document.findall(nodes.section):
            if section.parent.parent is self.document:  # of second rank
                target = label(name, section[0].astext())
                domain.note_hyperlink_target(target, self.env.docname, section["ids"][0])
        claims = read(ROOT / f"{self.env.docname}.ipynb").claims
        for cell in self.document.findall(nodes.container):
            if cell.get("nb_element") == "cell_code":
                for claim in claims.get(cell["cell_index"], []):
                    anchor = f"claim-{claim['id'].lower()}"
                    cell["ids"].append(anchor)
                    domain.note_hyperlink_target(anchor, self.env.docname, anchor)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_transform(Anchors)
    return {"parallel_read_safe": True, "version": "1"}
