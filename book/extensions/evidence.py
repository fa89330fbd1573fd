"""Sphinx extension: `{evidence}` shows the claims of a chapter with what its notebooks recorded.

With the option `short` it is a list of the verdicts, of the claims in `only` or of all.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from stored import CLAIMS, Made, Notebook, notebooks, typeset

Record = dict[str, Any]
STRIP = 200  # pixels from the least to the largest of the ends of a claim's bars, and of zero


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


def rows(record: Record, estimates: Mapping[str, Mapping[str, float]]) -> Iterable[str]:
    """An interval in a line: the condition, a bar beside the line of zero, the numbers."""
    every = [record["effect"], *record["unless"].values()]
    least, most = min(0, *(e["low"] for e in every)), max(0, *(e["high"] for e in every))
    scale = STRIP / ((most - least) or 1)
    for name, e in estimates.items():
        low, mean, high = (scale * e[key] for key in ("low", "mean", "high"))
        seeds = f", {e['seeds']} seeds" if e["seeds"] != record["effect"]["seeds"] else ""
        numbers = f"{e['mean']:+z.3f} ({e['low']:+z.3f} to {e['high']:+z.3f})".replace(
            "-", "\u2212"
        )
        left, width = scale * least - 6, STRIP + 12
        yield (
            f"<li><span>{typeset(name)}{seeds}</span>"
            f'<svg viewBox="{left:.1f} -9 {width} 18" width="{width}" height="18" '
            f'aria-hidden="true">'
            f'<path class="zero" d="M0 -9V9"/><path d="M{low:.1f} 0H{high:.1f}"/>'
            f'<circle cx="{mean:.1f}" r="3"/></svg>'
            f"<span>{numbers}</span></li>"
        )


def by_condition(record: Record) -> dict[str, Mapping[str, float]]:
    """All intervals of a claim by their conditions, in the order of the notebook's line.

    What is not in the line follows in the order of its words and numbers. A condition with the
    very numbers of the effect is the one that it was measured under.
    """

    def place(name: str) -> tuple[bool, int, list[str | int]]:
        words = [int(w) if w.isdigit() else w for w in re.split(r"(\d+)", name)]
        return name not in record["line"], record["line"].find(name), words

    head = record["when"] or "as claimed"
    same = [name for name, e in record["unless"].items() if e == record["effect"]]
    head += f" ({same[0].rstrip(': ')})" if same else ""
    others = sorted(record["unless"].keys() - same, key=place)
    return {head: record["effect"]} | {n.rstrip(": "): record["unless"][n] for n in others}


def measured(record: Record) -> str:
    """HTML of all intervals of a claim, those on its side of zero first, then the others."""
    estimates = by_condition(record)
    sides = {
        "Holds": {name: e for name, e in estimates.items() if e["low"] > 0},
        "Does not hold": {name: e for name, e in estimates.items() if e["low"] <= 0},
    }
    return "".join(
        f'<p class="side">{title}</p><ul class="intervals">{"".join(rows(record, side))}</ul>'
        for title, side in sides.items()
        if side
    )


def verdict_line(record: Record) -> str:
    """The line that the notebook printed, set as text."""
    line = re.sub(r"(?<!:) effect (?=[+-]\d)", ": effect ", record["line"])
    line = re.sub(r"(?<![\w-])-(?=\d)", "\u2212", line)
    return re.sub(r"(?<=interval )(\S+) to (\S+)", "\\1\u00a0to\u00a0\\2", line)


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
            statement = f"{plain(claim['statement'])}."
            if "effect" in claim:
                statement += f" Measured: {plain(claim['effect'])}."
            line = (
                verdict_line(found[claim["id"]][1]) if claim["id"] in found else "not measured yet"
            )
            where = f"{{ref}}`The evidence <evidence-{claim['id'].lower()}>`"
            lines.append(f"{statement}\n: {plain(line)}. {where}.\n")
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
            over = f" over {record['effect']['seeds']} seeds" if "effect" in record else ""
            text += f"\nMeasured{over}: {plain(claim['effect'])}.\n"
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
