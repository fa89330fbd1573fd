"""The form of every notebook: run, in order, up to date, with head and foot, clean of noise.

What a cell prints is compared by nbval; it does not see what is checked here, least of all a
notebook whose outputs were cleared, which it passes.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat import NotebookNode

from notebooks import ROOT, code_stamp, find_notebooks

CLAIM = "application/vnd.mlguide.claim+json"
NOTEBOOKS = find_notebooks()
MOST_BYTES = 1_500_000
MOST_SECONDS = 180
MOST_LINES = 20  # the house style says about 15
MOST_WIDE = 100
SHORT_RUN = 15  # seconds, below which the stated time need not be near
SLIDES = {"slide", "fragment", "-"}
MACHINE_PATHS = re.compile(
    rf"/home/|/Users/|/root/|/tmp/|[A-Z]:\\Users|(?<![\w.-]){re.escape(str(ROOT))}/"
)


def code_cells(nb: NotebookNode) -> list[tuple[str, NotebookNode]]:
    """The code cells that are not empty, each with words that say where it is."""
    cells = enumerate(nb.cells, 1)
    return [(f"cell {n}", c) for n, c in cells if c.cell_type == "code" and c.source.strip()]


def texts(cell: NotebookNode) -> Iterator[str]:
    """All that a cell put out as text, stream or display."""
    for output in cell.outputs:
        fields = [output.get("text")] + list(output.get("data", {}).values())
        yield from (field for field in fields if isinstance(field, str))


def prose(source: str) -> str:
    """Markdown without code, maths, links, HTML tags, what is folded away, and '95% interval'."""
    for away in (
        r"(?s)<details.*?</details>",
        r"(?s)<!--.*?-->",
        r"(?sm)^(```+|~~~+).*?^\1",
        r"(`+).+?\1",
        r"(?s)\$\$.*?\$\$",
        r"\$[^$\n]+\$",
        r"!?\[[^\]]*\]\([^)]*\)",
        r"https?://\S+|arXiv:\S+|doi:\S+",
        r"<[^>]+>",
        r"95% (confidence )?interval",
    ):
        source = re.sub(away, " ", source)
    return source


def markdown(nb: NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")


def section(nb: NotebookNode, title: str) -> str | None:
    """The text below a heading of that title, up to the next one of its level or above."""
    found = re.search(rf"(?m)^(#+) +{title} *$", markdown(nb))
    if not found:
        return None
    rest = markdown(nb)[found.end() :]
    return re.split(rf"(?m)^#{{1,{len(found[1])}}} ", rest)[0]


def rule_valid(nb: NotebookNode) -> Iterator[str]:
    ids = {cell.get("id") for cell in nb.cells}
    if nb.nbformat_minor < 5 or len(ids) != len(nb.cells):
        yield "has cells without an id of their own; save it with a current Jupyter"
        return
    try:
        nbformat.validate(nb)
    except nbformat.ValidationError as error:
        yield f"is not a valid notebook: {error}"
    size = len(nbformat.writes(nb).encode())
    if size > MOST_BYTES:
        yield f"has {size:,} bytes, more than {MOST_BYTES:,}"


def rule_run_in_order(nb: NotebookNode) -> Iterator[str]:
    for expected, (where, cell) in enumerate(code_cells(nb), 1):
        if cell.execution_count != expected:
            yield f"{where}: run as number {cell.execution_count}, not {expected}"
        if re.search(r"(?m)^(\w+\.)*(print|display|claim|prove|record)\(", cell.source):
            if not cell.outputs:
                yield f"{where}: prints, but no output is stored"
    if not any(cell.outputs for _, cell in code_cells(nb)):
        yield "no output is stored at all"


def rule_clean(nb: NotebookNode) -> Iterator[str]:
    for where, cell in code_cells(nb):
        if "execution" in cell.metadata:
            yield f"{where}: has times of execution in its metadata; run make refresh"
        if any(output.output_type == "error" for output in cell.outputs):
            yield f"{where}: an error is stored"
        if any(output.get("name") == "stderr" for output in cell.outputs):
            yield f"{where}: stderr is stored"
        for text in texts(cell):
            for path in MACHINE_PATHS.findall(text):
                yield f"{where}: {path!r} in an output is a path of one machine"


def rule_compared(nb: NotebookNode) -> Iterator[str]:
    for where, cell in code_cells(nb):
        tags = " ".join(cell.metadata.get("tags", []))
        if re.search(r"(?i)nbval[-_]|raises[-_]exception|validate_ignore", tags + cell.source):
            yield f"{where}: opts out of the comparison; every cell is compared"


def rule_alt_text(nb: NotebookNode) -> Iterator[str]:
    for where, cell in code_cells(nb):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            if len(alt) < 20 or re.search(r"\.\w{3,4}$", alt):
                yield f"{where}: metadata mystnb.image.alt must say what the picture shows: {alt!r}"


def rule_stamp(nb: NotebookNode) -> Iterator[str]:
    stamp = nb.metadata.get("mlguide", {})
    if stamp.get("code") != code_stamp(nb):
        yield "its code or mlguide has changed since it was run: run make refresh"
    elif stamp["seconds"] > MOST_SECONDS:
        yield f"runs for {stamp['seconds']} s, more than {MOST_SECONDS} s"


def rule_head(nb: NotebookNode) -> Iterator[str]:
    first = nb.cells[0]
    if first.cell_type != "markdown" or not first.source.startswith("# "):
        yield "the first cell must be markdown and begin with the title, '# ...'"
        return
    if "you will be able to" not in first.source:
        yield "the head must say what 'you will be able to' do"
    stated = {
        what: int(number) * (60 if unit.startswith("min") else 1)
        for number, unit, what in re.findall(
            r"about (\d+) (seconds|s|minutes|minute|min) to (read|run)", first.source
        )
    }
    if stated.keys() != {"read", "run"}:
        yield "the head must say 'about N minutes to read' and 'about N seconds to run'"
        return
    took = nb.metadata.get("mlguide", {}).get("seconds", 0)
    low, high = sorted((stated["run"], took))
    if high >= SHORT_RUN and high > 1.5 * low:
        yield f"the head promises {stated['run']} s to run, it took {took} s"


def rule_foot(nb: NotebookNode) -> Iterator[str]:
    for title in ("What you saw", "Exercises", "Quiz", "Read more"):
        if not (section(nb, title) or "").strip():
            yield f"has no section '{title}', or nothing in it"
    exercises = section(nb, "Exercises") or ""
    folds = re.findall(r"(?si)<details>\s*<summary>(.*?)</summary>(.*?)</details>", exercises)
    kinds = [summary.lower() for summary, inside in folds if inside.strip()]
    hints = sum("hint" in kind for kind in kinds)
    solutions = sum("solution" in kind for kind in kinds)
    if not hints or hints != solutions or len(kinds) != exercises.count("<details"):
        yield f"exercises need a folded hint and a solution each: {hints} and {solutions} found"


def rule_install_cell(nb: NotebookNode) -> Iterator[str]:
    address = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["repository"]["url"]
    cells = [c.source for _, c in code_cells(nb) if "remove-cell" in c.metadata.get("tags", [])]
    cells = [source for source in cells if "google.colab" in source]
    if len(cells) != 1:
        yield "needs one cell with the tag remove-cell that installs mlguide in google.colab"
        return
    found = {url.removesuffix(".git") for url in re.findall(r"https://[^\s\"'@#]+", cells[0])}
    if found != {address}:
        yield f"the install cell names {sorted(found)}, _config.yml {address}"


def rule_short_cells(nb: NotebookNode) -> Iterator[str]:
    for where, cell in code_cells(nb):
        lines = [line.strip() for line in cell.source.splitlines()]
        count = sum(not line.startswith("#") for line in lines if line)
        if count > MOST_LINES:
            yield f"{where}: {count} lines of code, at most {MOST_LINES}"


def rule_short_lines(nb: NotebookNode) -> Iterator[str]:
    """Longer ones are cut off on the page, in cells and in solutions."""
    written = [cell.source for _, cell in code_cells(nb)]
    written += re.findall(r"(?ms)^```python$(.*?)^```$", markdown(nb))
    for line in "\n".join(written).splitlines():
        if len(line) > MOST_WIDE:
            yield f"a line of code has {len(line)} characters, at most {MOST_WIDE}: {line.strip()}"


def rule_claims(nb: NotebookNode) -> Iterator[str]:
    for where, cell in code_cells(nb):
        shown = {name for text in texts(cell) for name in re.findall(r"(?m)^\[([A-Z]\d+)\] ", text)}
        records = [o.get("data", {}).get(CLAIM) for o in cell.outputs]
        recorded = {record["id"] for record in records if record}
        for name in shown ^ recorded:
            yield f"{where}: the claim {name} has a line or a record, but not both"


def rule_no_typed_numbers(nb: NotebookNode) -> Iterator[str]:
    for number, cell in enumerate(nb.cells, 1):
        if cell.cell_type == "markdown":
            for typed in re.findall(r"\d+\.\d+|\d+ ?%", prose(cell.source)):
                yield f"cell {number}: {typed!r} in the prose; a cell should print it"


def rule_slides(nb: NotebookNode) -> Iterator[str]:
    shows = [
        cell.metadata.slideshow.slide_type for cell in nb.cells if "slideshow" in cell.metadata
    ]
    if shows[:1] != ["slide"] or not SLIDES.issuperset(shows):
        yield f"cells for its chapter's slides are tagged {shows}"


RULES = [rule for name, rule in list(globals().items()) if name.startswith("rule_")]


def problems(nb: NotebookNode) -> list[str]:
    """All that is wrong with the form of a notebook."""
    return [problem for rule in RULES for problem in rule(nb)]


def test_there_are_notebooks():
    assert NOTEBOOKS, "no notebook below notebooks/: the tests below would check nothing"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__.removeprefix("rule_"))
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_form(path: Path, rule):
    assert list(rule(nbformat.read(path, as_version=4))) == []
