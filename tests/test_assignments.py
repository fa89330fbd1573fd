"""The assignments: what is handed out holds no answer, and grades tell right from plausible."""

import ast
import os
import re
import shutil
from pathlib import Path
from typing import Any

import grade_one
import nbformat
import pytest
import yaml
from nbformat import NotebookNode
from test_notebook_form import RULES

import assignments

SOURCES = assignments.sources()
WALLS = bool(shutil.which("bwrap"))
ANSWERS = {
    name: yaml.safe_load(path.read_text("utf-8"))
    for name in SOURCES
    if (path := Path(__file__).parent / "assignments" / f"{name}.yml").is_file()
}


def packed(cases: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Mistakes gathered into as few students as hold them, no two in one cell or one test."""
    if os.environ.get("ONE_BY_ONE"):  # slower: shows also that none loses what another does
        return [[case] for case in cases]
    students: list[list[dict[str, Any]]] = []
    for case in cases:
        for student in students:
            if all(
                set(case["answers"]).isdisjoint(other["answers"])
                and set(case["loses"]).isdisjoint(other["loses"])
                for other in student
            ):
                student.append(case)
                break
        else:
            students.append([case])
    return students


STUDENTS = {name: packed(cases) for name, cases in ANSWERS.items()}
CASES = [(name, n) for name, students in STUDENTS.items() for n in range(len(students))]
NOT_FOR_ASSIGNMENTS = {"rule_foot", "rule_head", "rule_slides", "rule_short_cells", "rule_claims"}


def test_walls_are_there_where_it_counts():
    assert WALLS or not os.environ.get("CI"), "install bubblewrap"


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("release")
    return {name: assignments.make_release(name, folder) for name in SOURCES}


def graded(nb: NotebookNode) -> dict[str, NotebookNode]:
    cells = [c for c in nb.cells if c.metadata.get("nbgrader", {}).get("grade")]
    return {c.metadata.nbgrader.grade_id: c for c in cells}


def by_tests(nb: NotebookNode) -> dict[str, NotebookNode]:
    return {k: c for k, c in graded(nb).items() if not c.metadata.nbgrader.solution}


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def regions(cell: NotebookNode) -> dict[str, list[str]]:
    """The lines of a cell by the region in which they stand; of ``""`` those in none."""
    region, found = "", {"": [], "SOLUTION": [], "HIDDEN TESTS": []}
    for line in cell.source.splitlines():
        if mark := re.search(r"(BEGIN|END) (SOLUTION|HIDDEN TESTS)", line):
            region = mark[2] if mark[1] == "BEGIN" else ""
        elif line.strip():
            found[region].append(line.strip())
    return found


def test_one_for_each_chapter_and_a_final_project():
    chapters = {path.name for path in (assignments.ROOT / "notebooks").iterdir() if path.is_dir()}
    assert set(SOURCES) == chapters - {"choosing"} | {"final_project"}
    assert set(ANSWERS) == set(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_form(name):
    nb = read(SOURCES[name])
    for rule in RULES:
        if rule.__name__ not in NOT_FOR_ASSIGNMENTS:
            assert list(rule(nb)) == [], rule.__name__
    ids = [cell.metadata.nbgrader.grade_id for cell in nb.cells]
    assert len(set(ids)) == len(ids)
    for cell in nb.cells:
        facts = cell.metadata.nbgrader
        assert facts.solution != facts.locked, f"{facts.grade_id}: either an answer or locked"
    points = {k: c.metadata.nbgrader.points for k, c in graded(nb).items()}
    assert sum(points.values()) == 20
    assert sum(points[k] for k in by_tests(nb)) == 16, "the rest is graded by hand"
    for words in ("you will be able to", "20 points", "minutes to do", "seconds to run"):
        assert words in nb.cells[0].source, words


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_given_away(name, released):
    source, student = read(SOURCES[name]), read(released[name])
    handed_out = "\n".join(cell.source for cell in student.cells)
    stored = released[name].read_text("utf-8")
    assert not any(cell.get("outputs") for cell in student.cells)
    for mark in ("BEGIN", "END"):
        for what in ("SOLUTION", "HIDDEN TESTS"):
            assert f"{mark} {what}" not in stored
    visible = {line for cell in source.cells for line in regions(cell)[""]}
    lines = {line.strip() for line in handed_out.splitlines()}
    for cell in source.cells:
        secrets = regions(cell)
        secret = set(secrets["SOLUTION"] + secrets["HIDDEN TESTS"])
        assert not (secret - visible) & lines, cell.metadata.nbgrader.grade_id
        if cell.metadata.nbgrader.grade and not cell.metadata.nbgrader.solution:
            assert secrets["HIDDEN TESTS"], cell.metadata.nbgrader.grade_id
    assert released[name].parent.name == name and len(list(released[name].parent.iterdir())) == 1


def grade(nb: NotebookNode | Path, name: str, folder: Path) -> dict[str, dict[str, Any]]:
    path = nb if isinstance(nb, Path) else folder / f"{name}.ipynb"
    if not isinstance(nb, Path):
        nbformat.write(nb, path)
    result = grade_one.grade(path, SOURCES[name], trusted=not WALLS)
    return {score["cell"]: score for score in result["scores"]}


@pytest.mark.parametrize("name", SOURCES)
def test_reference_gets_full_marks(name, tmp_path):
    tests = by_tests(read(SOURCES[name]))
    scores = grade(SOURCES[name], name, tmp_path)
    lost = {k: scores[k]["message"] for k in tests if scores[k]["points"] != scores[k]["out_of"]}
    assert lost == {}
    assert sum(scores[k]["points"] for k in tests) == 16
    assert all(s["points"] is None for k, s in scores.items() if k not in tests)


@pytest.mark.parametrize("name", SOURCES)
def test_untouched_gets_nothing(name, released, tmp_path):
    scores = grade(released[name], name, tmp_path)
    assert {k: s["points"] for k, s in scores.items() if s["points"] != 0} == {}


@pytest.mark.parametrize(("name", "number"), CASES)
def test_mistakes_lose_exactly(name, number, tmp_path):
    cases = STUDENTS[name][number]
    nb = read(SOURCES[name])
    answers = {cell: code for case in cases for cell, code in case["answers"].items()}
    for cell in nb.cells:
        if cell.metadata.nbgrader.grade_id in answers:
            assert cell.metadata.nbgrader.solution
            cell.source = answers.pop(cell.metadata.nbgrader.grade_id)
    assert not answers, f"no such cells: {list(answers)}"
    scores = grade(nb, name, tmp_path)
    lost = {k: s["message"] for k, s in scores.items() if s["points"] == 0}
    assert sorted(lost) == sorted(k for case in cases for k in case["loses"]), lost
    hidden = {k for k in lost if scores[k]["hidden"]}
    assert hidden == {k for case in cases for k in case.get("hidden", case["loses"])}, lost


@pytest.mark.parametrize("name", SOURCES)
def test_every_hidden_test_is_needed(name):
    """Were a hidden test weakened, a mistake that only it finds would go through."""
    cases = ANSWERS[name]
    needed = {cell for case in cases for cell in case.get("hidden", case["loses"])}
    assert needed == set(by_tests(read(SOURCES[name])))
    assert sum("mistake" in case for case in cases) >= 4
    assert any("style" in case and not case["loses"] for case in cases)
    for case in cases:
        for code in case["answers"].values():
            ast.parse(code)
