"""Sphinx extension: `{evidence}` shows the claims of a chapter with what its notebooks recorded.

With the option `short` it is a list of the verdicts, of the claims in `only` or of all.
"""

import re
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from stored import CLAIMS, Made, Notebook, notebooks

Record = dict[str, Any]
HALF = 60  # pixels from zero to the end of the longest bar


def recorded(chapter: str) -> dict[str, tuple[Notebook, Record]]:
    """What the notebooks of a chapter recorded of its claims, by the claim's id."""
    return {
        record["id"]: (notebook, record)
        for notebook in notebooks(chapter)
        for records in notebook.claims.values()
        for record in records
    }


def plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return re.sub(r"([\\`*_\[\]<>{}$|#])", r"\\\1", text)


def rows(estimates: Mapping[str, Mapping[str, float]], scale: float) -> Iterable[str]:
    """An interval in a line: the condition, a bar beside the line of zero, the numbers."""
    for name, e in estimates.items():
        low, mean, high = (HALF * e[key] / scale for key in ("low", "mean", "high"))
        name, width = escape(name.rstrip(": ")), 2 * HALF + 12
        numbers = f"{e['mean']:+.3f} ({e['low']:+.3f} to {e['high']:+.3f}), {e['seeds']} seeds"
        yield (
            f"<li><span>{name}</span>"
            f'<svg viewBox="{-width / 2} -8 {width} 16" width="{width}" height="16" '
            f'aria-hidden="true">'
            f'<path class="zero" d="M0 -8V8"/><path d="M{low:.1f} 0H{high:.1f}"/>'
            f'<circle cx="{mean:.1f}" r="4"/></svg>'
            f"<span>{numbers}</span></li>"
        )


def measured(record: Record) -> str:
    """HTML of all intervals of a claim, those on its side of zero first, then the others."""
    estimates = {record["when"] or "as claimed": record["effect"], **record["unless"]}
    scale = max(abs(e[end]) for e in estimates.values() for end in ("low", "high")) or 1
    sides = {
        "Holds": {name: e for name, e in estimates.items() if e["low"] > 0},
        "Does not hold": {name: e for name, e in estimates.items() if e["low"] <= 0},
    }
    return "".join(
        f'<p class="side">{title}</p><ul class="intervals">{"".join(rows(side, scale))}</ul>'
        for title, side in sides.items()
        if side
    )


def verdict_line(record: Record) -> str:
    """The line that the notebook printed, with a word for the conditions after the first."""
    contrary = [name for name, e in record.get("unless", {}).items() if e["low"] <= 0]
    if record.get("verdict") != "holds when" or not contrary:
        return record["line"]
    first = min(contrary, key=record["line"].index)
    return record["line"].replace(f"; {first}", f". Does not hold: {first}", 1)


class Evidence(Made):
    required_arguments = 1
    optional_arguments = 0
    option_spec = {"short": directives.flag, "only": str.split}

    def run(self) -> list[nodes.Node]:
        chapter = self.arguments[0]
        made = super().run()  # of the short form; nothing else
        return made if "short" in self.options else list(map(self.entry, CLAIMS[chapter]))

    def markdown(self, chapter: str) -> str:
        if "short" not in self.options:
            return ""
        found, lines = recorded(chapter), []
        only = self.options.get("only")
        for claim in CLAIMS[chapter]:
            if only and claim["id"] not in only:
                continue
            statement = plain(claim["statement"])
            effect = f" ({plain(claim['effect'])})" if "effect" in claim else ""
            line = (
                verdict_line(found[claim["id"]][1]) if claim["id"] in found else "not measured yet"
            )
            where = f"{{ref}}`The evidence <evidence-{claim['id'].lower()}>`"
            lines.append(f"{statement}{effect}.\n: {plain(line)}. {where}.\n")
        return "\n".join(lines)

    def entry(self, claim: Record) -> nodes.container:
        notebook, record = recorded(self.arguments[0]).get(claim["id"], (None, {}))
        proved = record.get("kind") == "proved"
        verdict = "proved" if proved else record.get("verdict", "not measured yet")
        box = nodes.container(classes=["claim", verdict.replace(" ", "-")])
        box["names"].append(f"evidence-{claim['id'].lower()}")
        self.state.document.note_explicit_target(box)
        when = f" {plain(record['when'])}" if verdict == "holds when" else ""
        text = f"**{claim['id']}** [{verdict}]{{.verdict}}{when}\n\n{plain(claim['statement'])}.\n"
        if "effect" in claim:
            text += f"\nMeasured: {plain(claim['effect'])}.\n"
        if "checks" in record:
            text += "\n" + "\n".join(f"- {plain(check)}" for check in record["checks"]) + "\n"
        box += self.parsed(text)
        if "effect" in record:
            box += nodes.raw("", measured(record), format="html")
        if notebook:
            link = f"{{ref}}`The cell <claim-{claim['id'].lower()}>` in {notebook.link}."
            box += self.parsed(link)
        return box


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("evidence", Evidence)
    return {"parallel_read_safe": True, "version": "1"}
