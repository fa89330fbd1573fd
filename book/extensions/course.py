"""Sphinx extension for teachers: `{objectives}`, `{syllabus}` and the quizzes as files.

Objectives and syllabi stand in `course.yml`.  An objective without a notebook, an exercise, a quiz
question or an assignment's question, or one of these without an objective, stops the build.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pace import minutes_to_read
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from stored import ROOT, Made, Notebook, notebooks

COURSE = yaml.safe_load((ROOT / "book" / "course.yml").read_text("utf-8"))
KINDS = ("notebooks", "exercises", "quiz", "assignment")
EXERCISE_MINUTES, QUESTION_MINUTES = 10, 1
FINAL = "final_project"  # the assignment of the chapter on choosing


@dataclass
class Question:
    text: str
    answers: list[tuple[str, str]]  # each with what is said of it
    right: int


def quiz(notebook: Notebook) -> list[Question]:
    """The questions of a notebook's quiz.

    Raises:
        ExtensionError: if one has not exactly one answer that is called right.
    """
    found = []
    for section in notebook.called("quiz"):
        pattern = r"\*\*(.+?)\*\*\s*\n((?:\s*<details>.*?</details>)+)"
        for text, folds in re.findall(pattern, section.prose, re.S):
            answers = re.findall(r"<summary>(.*?)</summary>(.*?)</details>", folds, re.S)
            answers = [(" ".join(a.split()), " ".join(b.split())) for a, b in answers]
            right = [n for n, (_, said) in enumerate(answers) if said.lower().startswith("right")]
            if len(right) != 1:
                raise ExtensionError(f"{notebook.name}: {len(right)} right answers to {text!r}")
            found.append(Question(" ".join(text.split()), answers, right[0]))
    return found


def gift(chapter: str) -> str:
    """The quizzes of a chapter in Moodle's GIFT format, https://docs.moodle.org/en/GIFT_format."""
    lines = [f"// {len(notebooks(chapter))} quizzes of {chapter}, CC BY 4.0"]
    for notebook in notebooks(chapter):
        lines.append(f"\n$CATEGORY: {chapter}/{notebook.path.stem}")
        for number, question in enumerate(quiz(notebook), 1):
            lines.append(
                f"\n::{notebook.path.stem} {number}::[markdown]{escaped(question.text)} {{"
            )
            for place, (answer, said) in enumerate(question.answers):
                sign = "=" if place == question.right else "~"
                lines.append(f"  {sign}{escaped(answer)}#{escaped(said)}")
            lines.append("}")
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    return re.sub(r"([~=#{}:\\])", r"\\\1", text)


def exercises(notebook: Notebook) -> list[int]:
    sections = notebook.called("exercises")
    return [int(n) for s in sections for n in re.findall(r"(?m)^\*\*(\d+)\.\*\*", s.prose)]


@dataclass
class Assignment:
    title: str
    minutes: int
    questions: list[str]  # grade_ids of what is graded


def assignment(name: str) -> Assignment:
    path = ROOT / "assignments" / "source" / name / f"{name}.ipynb"
    cells = json.loads(path.read_text("utf-8"))["cells"]
    head = "".join(cells[0]["source"])
    facts = [cell["metadata"]["nbgrader"] for cell in cells]
    title = head.splitlines()[0].removeprefix("# Assignment: ").removeprefix("# ")
    minutes = int(re.search(r"about (\d+) minutes to do", head)[1])
    return Assignment(
        title[0].upper() + title[1:], minutes, [f["grade_id"] for f in facts if f["grade"]]
    )


def of_chapter(chapter: str) -> str:
    """The assignment of a chapter."""
    return FINAL if chapter == "choosing" else chapter


def gaps(chapter: str, objectives: list[dict[str, Any]]) -> Iterator[str]:
    """What no objective of a chapter speaks of, and what an objective lacks or invents."""
    there = {
        "notebooks": [n.path.stem for n in notebooks(chapter)],
        "exercises": [f"{n.path.stem} {k}" for n in notebooks(chapter) for k in exercises(n)],
        "quiz": [f"{n.path.stem} {k + 1}" for n in notebooks(chapter) for k in range(len(quiz(n)))],
        "assignment": assignment(of_chapter(chapter)).questions,
    }
    for kind in KINDS:
        for objective in objectives:
            if not objective.get(kind):
                yield f"{chapter}, {objective['objective']!r}: has no {kind}"
        named = [each for objective in objectives for each in objective.get(kind) or []]
        for each in sorted(set(named) ^ set(there[kind])):
            what = "there is no" if each in named else "no objective has"
            yield f"{chapter}: {what} {kind} {each!r}"


class Objectives(Made):
    def markdown(self, chapter: str) -> str:
        objectives = COURSE["objectives"][chapter]
        if found := list(gaps(chapter, objectives)):
            raise ExtensionError("course.yml: " + "; ".join(found))
        lines = [
            "| objective | notebooks | exercises | quiz | assignment |\n" + "| --- " * 5 + "|\n"
        ]
        for each in objectives:
            links = [f"{{doc}}`{n[0]} </notebooks/{chapter}/{n}>`" for n in each["notebooks"]]
            practice = [short(each["exercises"]), short(each["quiz"])]
            questions = ", ".join(f"`{q}`" for q in each["assignment"])
            lines.append(f"| {each['objective']} | {', '.join(links)} | "
                         f"{' | '.join(practice)} | {questions} |\n")  # fmt: skip
        return "".join(lines)


def short(names: list[str]) -> str:
    """``1_the_recipe 2`` as ``1.2``: the number of the notebook and of the item in it."""
    return ", ".join(sorted(f"{n.split('_')[0]}.{n.split()[-1]}" for n in names))


def minutes(item: str) -> tuple[int, int, int]:
    """Minutes to read, to practise and for an assignment of one part of a week."""
    if item.startswith("assignment "):
        return 0, 0, assignment(item.split()[-1]).minutes
    notebook = next(n for n in notebooks(item.split("/")[0]) if n.name == item)
    practice = EXERCISE_MINUTES * len(exercises(notebook)) + QUESTION_MINUTES * len(quiz(notebook))
    return minutes_to_read(notebook), practice, 0


def untaught(syllabus: list[list[str]]) -> Iterator[tuple[str, list[str]]]:
    """The assignments of a plan that grade what no notebook up to their week has taught."""
    read: set[str] = set()
    for week in syllabus:
        read.update(week)
        for chapter, objectives in COURSE["objectives"].items():
            if f"assignment {of_chapter(chapter)}" in week:
                left_out = [
                    cell
                    for each in objectives
                    if read.isdisjoint(f"{chapter}/{notebook}" for notebook in each["notebooks"])
                    for cell in each["assignment"]
                ]
                if left_out:
                    yield of_chapter(chapter), left_out


class Syllabus(Made):
    """The argument is the number of weeks."""

    def markdown(self, weeks: str) -> str:
        kinds = (f"{kind} (min)" for kind in ("reading", "practice", "assignment", "total"))
        lines = [f"| week | parts | {' | '.join(kinds)} |\n"
                 "| ---: | --- | ---: | ---: | ---: | ---: |\n"]  # fmt: skip
        for week, items in enumerate(COURSE["syllabi"][int(weeks)], 1):
            each = [sum(column) for column in zip(*map(minutes, items), strict=True)]
            times = " | ".join(str(n) if n else "" for n in [*each, sum(each)])
            lines.append(f"| {week} | {'<br>'.join(map(part, items))} | {times} |\n")
        for name, cells in untaught(COURSE["syllabi"][int(weeks)]):
            listed = ", ".join(f"`{cell}`" for cell in cells)
            what = "also grades what this plan does not teach before it is due"
            lines.append(f"\nThe assignment `{name}` {what}: {listed}.\n")
        return "".join(lines)


def part(item: str) -> str:
    if item.startswith("assignment "):
        name = item.split()[-1]
        return f"Assignment “{assignment(name).title}”, `{name}`"
    return f"{{doc}}`/notebooks/{item}`"


def write_quizzes(app: Sphinx, error: Exception | None) -> None:
    if error or app.builder.format != "html":
        return
    folder = Path(app.outdir, "quizzes")
    folder.mkdir(exist_ok=True)
    for chapter in COURSE["objectives"]:
        Path(folder, f"{chapter}.gift.txt").write_text(gift(chapter), "utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("objectives", Objectives)
    app.add_directive("syllabus", Syllabus)
    app.connect("build-finished", write_quizzes)
    return {"parallel_read_safe": True, "version": "1"}
