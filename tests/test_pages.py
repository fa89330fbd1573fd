"""The pages of the book that are not notebooks, and the extensions that make parts of them."""

import copy
import json
import re
from pathlib import Path

import course
import docstrings
import glossary_links
import mistakes
import pace
import pytest
import quotes
import torch
import torch.nn.functional as F
from slides import excerpt, with_links
from stored import CLAIMS, Section, notebooks
from test_notebook_form import prose
from torch import nn

from mlguide.data import Pictures
from mlguide.federated.simulation import Federation
from mlguide.models import SmallCNN

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(p for p in (ROOT / "book").rglob("*.md") if "static" not in p.parts)
STEPS = ["See", "Run", "Measure", "Break", "Choose", "Practise"]
VERSIONS = r"Python \d\.\d+|CC BY(-SA)? \d\.\d"
# Everything in a page that is code, a role, an attribute or the option of a directive.
MARKUP = r"\{[\w:-]+\}`[^`]*`|\{[^}\n]*\}|(?m:^:[\w-]+:.*$)"


def typed_numbers(text: str) -> list[str]:
    """Decimals and percents in the prose of a page; what a notebook measured is to be pulled in."""
    return re.findall(r"\d+\.\d+|\d+ ?%", prose(re.sub(f"{VERSIONS}|{MARKUP}", " ", text)))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT / "book")))
def test_no_number_of_a_run_is_typed(page: Path):
    assert typed_numbers(page.read_text("utf-8")) == []


@pytest.mark.parametrize("text", ["It gains 0.12 here.", "In 90% of cases", "| a | 3.4 |"])
def test_a_typed_number_is_noticed(text: str):
    assert typed_numbers(text)
    assert not typed_numbers(f"`{text}`\n\n```\n{text}\n```\n")
    assert not typed_numbers("Python 3.11, a 95% interval, CC BY 4.0")


@pytest.mark.parametrize("chapter", CLAIMS)
def test_chapters_open_in_one_order(chapter: str):
    text = (ROOT / "book" / chapter / "index.md").read_text("utf-8")
    assert re.findall(r"(?m)^## (\w+) it$", text) == STEPS
    parts = re.split(r"(?m)^## (\w+) it$", text)
    body = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert "four_ways_out.svg" in body["See"]
    assert f"{{evidence}} {chapter}" in body["Measure"]
    assert f"{{mistakes}} {chapter}" in body["Break"]
    assert f"{{practice}} {chapter}" in body["Practise"]
    linked = set(re.findall(r"/(\d\w+)\.ipynb", body["Run"]))
    assert linked == {nb.path.stem for nb in notebooks(chapter)} or "{pace}" in body["Run"]


# --- mistakes, run times --------------------------------------------------------------------------


def test_every_notebook_breaks_something_and_says_what_it_costs():
    for notebook in notebooks():
        sections = list(notebook.called("Break it"))
        assert any(mistakes.measured(section) for section in sections), notebook.name
        for section in sections:
            told = mistakes.story(section)
            assert len(told[0]) > 40 and not told[0].startswith("```"), (
                notebook.name,
                section.title,
            )


def test_a_mistake_is_told_by_its_first_paragraph_and_what_leads_to_a_measured_line():
    one = "\n\n### Two slips\n\nSee [there](x.ipynb).\n\nMore.\n\n"
    two = f"{one}\n\n**And** so.\n\n"
    printed = [(one, "lost 1 ± 2\n"), (two, "no number\n"), (two, "3 of 4\n"), (two, "5 ± 1\n")]
    section = Section("Break it: the trap", "", f"{two}\n\nThe end.", printed)
    assert mistakes.name(section) == "The trap"
    lines = ["```text\nlost 1 ± 2\n```", "```text\n3 of 4\n```", "```text\n5 ± 1\n```"]
    told = ["**Two slips.** See there.", "More.", lines[0], "**And** so.", *lines[1:]]
    assert mistakes.story(section) == told
    assert mistakes.story(Section("Break it", "", "Each of:\n\n- this")) == []
    section = Section("Break it", "", "\n**A slip.** It", [("\n**A slip.** It", "5 ± 1\n")])
    assert mistakes.name(section) == "A slip"
    assert mistakes.story(section) == ["It", lines[2]]


def test_every_notebook_has_its_times():
    for notebook in notebooks():
        assert pace.minutes_to_read(notebook) > 0 and notebook.seconds > 0, notebook.name


# --- glossary, notation ---------------------------------------------------------------------------


def linked(text: str, *terms: str, seen: set[str] | None = None) -> list[str]:
    pieces = glossary_links.first_uses(text, glossary_links.matcher(terms), seen or set())
    return [piece[0] for piece in pieces if not isinstance(piece, str)]


def test_first_use_of_a_term_is_found():
    assert linked("Seeds: a seed, the SEED", "seed") == ["Seeds"]
    assert linked("seedling, re-seed, seed-like", "seed") == []
    assert linked("a base model of a model", "model", "base model") == ["base model", "model"]
    assert linked("a seed", "seed", seen={"seed"}) == []
    assert linked("the other way round; it updates a seed", "round", "update", "seed") == ["seed"]


def symbols(text: str) -> set[str]:
    """The letters in the formulas of a text, Latin and Greek."""
    text = re.sub(r"(?s)```.*?```|`[^`\n]*`", "", text)
    formulas = " ".join(a or b for a, b in re.findall(r"(?s)\$\$(.*?)\$\$|\$([^$\n]+)\$", text))
    formulas = re.sub(r"\\text\{[^}]*\}|_[a-z]\b|_\{[a-z]+\}|\^T|\^n", " ", formulas)
    words = r"\\(?:frac|partial|sum|cdot|cos|sin|approx|q?quad|Big|left|right)(?![a-z])"
    return set(re.findall(r"\\[A-Za-z]+|[A-Za-z]", re.sub(words, " ", formulas)))


def test_notation_lists_the_symbols_of_every_notebook():
    listed: dict[str, set[str]] = {}
    for row in re.findall(r"(?m)^\|.*ipynb\) \|$", (ROOT / "book/notation.md").read_text("utf-8")):
        name = re.findall(r"notebooks/(.+)\.ipynb", row)[0]
        listed.setdefault(name, set()).update(symbols(row.split("|")[1]))
    used = {}
    for notebook in notebooks():
        cells = json.loads(notebook.path.read_text("utf-8"))["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        used[notebook.name] = symbols(text)
    missing = {name: found - listed.get(name, set()) for name, found in used.items()}
    assert {name: found for name, found in missing.items() if found} == {}
    unused = {name: found - used.get(name, set()) for name, found in listed.items()}
    assert {name: found - {r"\Delta"} for name, found in unused.items() if found} == {}


# --- folds ----------------------------------------------------------------------------------------


def test_quotes_in_a_fold_are_curled_but_not_in_code_or_tags():
    assert quotes.curled('<a id="x">the "part\'s" <code>"x"</code> end\'s</a>') == (
        '<a id="x">the “part’s” <code>"x"</code> end’s</a>'
    )


# --- docstrings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["", "Args:\n    "])
def test_each_parameter_of_a_docstring_has_a_line(head: str):
    told = ["Fit x: y.", f"{head}x: (N,); y: a\n    z, as x: no. z: that", "Raises:\n    E: y."]
    shown = docstrings.with_parameters("\n\n".join(told), ["x", "y"]).split("\n\n")
    assert shown == [told[0], "Args:\n    x: (N,)\n    y: a z, as x: no. z: that", told[2]]
    together = docstrings.with_parameters("x: this. y, z: those.", ["x", "y", "z"])
    assert together == "Args:\n    x: this.\n    y, z: those."


def test_types_are_those_of_the_source():
    def shown(what: str, obj: object) -> tuple[str | None, str | None]:
        return docstrings.as_written(None, what, "", obj, None, "()", None)

    assert shown("method", Federation.save) == ("(path: str | Path)", "None")
    arguments, returned = shown("class", Federation)
    assert "aggregate: Aggregator = mean" in arguments and returned is None
    assert "groups: Tensor = ..." in shown("class", Pictures)[0]


# --- the recipes of the summary sheet -------------------------------------------------------------


def test_recipes_of_the_summary_sheet_do_what_they_say():
    text = (ROOT / "book" / "summary_sheet.md").read_text("utf-8")
    loop, *recipes = re.findall(r"(?s)```python\n(.*?)```", text)
    assert [len(recipe.splitlines()) for recipe in recipes] == [4, 4, 6, 6]
    chance = torch.Generator().manual_seed(0)
    batches = [
        (torch.rand(8, 1, 28, 28, generator=chance), torch.randint(3, (8,), generator=chance))
        for _ in range(3)
    ]
    world = {"torch": torch, "nn": nn, "F": F, "copy": copy, "batches": batches, "classes": 3}
    world["base"] = base = SmallCNN(5, seed=0)
    exec(loop, world)

    exec(recipes[0], world)
    kept, old = world["model"].backbone.state_dict(), base.backbone.state_dict()
    assert all(torch.equal(kept[name], old[name]) for name in old)
    assert world["model"].head.out_features == 3
    probed = world["probed"] = world["model"]

    exec(recipes[1], world)
    then, tuned = probed.state_dict(), world["model"].state_dict()
    moved = {name for name in tuned if not torch.equal(then[name], tuned[name])}
    assert moved == {name for name, _ in probed.named_parameters()}

    world.update(backbone=copy.deepcopy(base.backbone), features=32, outputs={"a": 3, "b": 3})
    world.update(weight={"a": 1.0, "b": 0.5}, batches=[(x, {"a": y, "b": y}) for x, y in batches])
    exec(recipes[2], world)
    now = world["backbone"].state_dict()
    assert any(not torch.equal(now[name], old[name]) for name in old)
    assert world["heads"].keys() == {"a", "b"}

    world.update(model=copy.deepcopy(probed).requires_grad_(True), rounds=[[batches, batches[:1]]])
    exec(recipes[3], world)
    one, two = (copied.state_dict() for copied in world["local"])
    mean = 0.75 * one["head.weight"] + 0.25 * two["head.weight"]
    assert torch.allclose(world["model"].head.weight, mean)


# --- slides ---------------------------------------------------------------------------------------


def test_a_slide_has_the_heading_and_the_paragraph_below_it():
    assert excerpt("Before.\n\n## Title\n\nFirst,\nall of it.\n\nSecond.") == (
        "## Title\n\nFirst,\nall of it."
    )
    assert excerpt("## A\n\n### B\n\nThese two:\n\n- x\n- y\n\nMore.").endswith("- x\n- y")
    assert excerpt("Only.\n\nMore.") == "Only."


def test_links_of_a_notebook_lead_from_its_slides_into_the_book():
    def moved(text: str) -> str:
        return with_links(text, "notebooks/choosing/1_one")

    assert moved("[a](2_two.ipynb)") == "[a](../notebooks/choosing/2_two.html)"
    assert moved("[a](../../book/evidence.md#reading)") == "[a](../book/evidence.html#reading)"
    assert (
        moved("[a](#b) [c](https://d.e)")
        == "[a](../notebooks/choosing/1_one.html#b) [c](https://d.e)"
    )
    assert moved("# One") == "# [One](../notebooks/choosing/1_one.html)"
    assert (
        moved("## Break it: `x`")
        == "## [Break it: `x`](../notebooks/choosing/1_one.html#break-it-x)"
    )


# --- for teachers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chapter", CLAIMS)
def test_a_gap_in_the_objectives_is_noticed(chapter: str):
    objectives = course.COURSE["objectives"][chapter]
    assert list(course.gaps(chapter, objectives)) == []
    for kind in course.KINDS:
        for number, objective in enumerate(objectives):
            less = copy.deepcopy(objectives)
            less[number][kind] = ["invented"]
            found = list(course.gaps(chapter, less))
            assert f"{chapter}: there is no {kind} 'invented'" in found
            others = {each for other in less for each in other[kind]}
            for missing in set(objective[kind]) - others:
                assert f"{chapter}: no objective has {kind} {missing!r}" in found
            less[number][kind] = []
            assert any(f"has no {kind}" in each for each in course.gaps(chapter, less))


def test_syllabi_hold_what_they_say():
    everything = {nb.name for nb in notebooks()}
    graded = {f"assignment {course.of_chapter(chapter)}" for chapter in CLAIMS}
    for weeks, syllabus in course.COURSE["syllabi"].items():
        items = [item for week in syllabus for item in week]
        assert len(syllabus) == weeks and len(set(items)) == len(items)
        assert set(items) <= everything | graded
        assert all(sum(course.minutes(item)) >= 20 for item in items)
    assert set(items) == everything | graded  # those of twelve weeks
    assert graded <= {item for week in course.COURSE["syllabi"][8] for item in week}


def test_a_plan_says_what_its_assignments_grade_beyond_it():
    plan = [["federated_learning/1_the_model_travels"], ["assignment federated_learning"]]
    left_out = dict(course.untaught(plan))["federated_learning"]
    assert {"noise-clip", "read-update"} < set(left_out) and "average" not in left_out
    late = [*plan, ["federated_learning/4_secrets_and_noise"]]
    assert dict(course.untaught(late))["federated_learning"] == left_out
    early = [["federated_learning/4_secrets_and_noise"], *plan]
    assert "noise-clip" not in dict(course.untaught(early))["federated_learning"]
    assert list(course.untaught(course.COURSE["syllabi"][12])) == []


@pytest.mark.parametrize("chapter", CLAIMS)
def test_quizzes_for_a_platform_hold_every_question(chapter: str):
    text = course.gift(chapter)
    questions = [q for nb in notebooks(chapter) for q in course.quiz(nb)]
    folds = [s.prose.count("<summary>") for nb in notebooks(chapter) for s in nb.called("quiz")]
    assert sum(len(q.answers) for q in questions) == sum(folds)
    blocks = re.findall(r"::[^:]+::\[markdown\](.*?) (?<!\\)\{(.*?)\n\}", text, re.S)
    assert len(blocks) == len(questions)
    for (asked, answers), question in zip(blocks, questions, strict=True):
        assert re.sub(r"\\([~=#{}:\\])", r"\1", asked) == question.text
        signs = re.findall(r"(?m)^  ([=~])", answers)
        assert signs == ["=" if n == question.right else "~" for n in range(len(signs))]
        assert len(re.findall(r"(?<!\\)#", answers)) == len(signs)
    assert course.escaped("a=b {c} ~ d: #1") == r"a\=b \{c\} \~ d\: \#1"
