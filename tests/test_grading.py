"""Grading: whatever a submission does, the result is clear, in time, and touches no other."""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import grade
import grade_one
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import assignments

needs_walls = pytest.mark.skipif(
    not shutil.which("bwrap") and not os.environ.get("CI"), reason="bubblewrap is not installed"
)
RIGHT = "def double(x):\n    return x + x"


def cell(kind, source, grade_id, *, points=0, solution=False):
    facts = {
        "schema_version": 3, "grade_id": grade_id, "grade": bool(points), "points": points,
        "solution": solution, "locked": not solution, "task": False,
    }  # fmt: skip
    new = {"code": new_code_cell, "markdown": new_markdown_cell}[kind]
    return new(source, metadata={"nbgrader": facts})


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course with one small assignment, and its student version."""
    course = tmp_path_factory.mktemp("course")
    hidden = "### BEGIN HIDDEN TESTS\nassert double(3) == 6, 'also of three'\n### END HIDDEN TESTS"
    source = new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}},
        cells=[
            cell("code", "import math\nimport torch", "imports"),
            cell("markdown", "## Exercise 1: double (3 points)", "one"),
            cell("code", "def double(x):\n    ### BEGIN SOLUTION\n    return 2 * x\n"
                 "    ### END SOLUTION", "double", solution=True),
            cell("code", f"assert double(2) == 4, 'not of two'\n{hidden}", "doubled", points=2),
            cell("code", hidden, "hidden-only", points=1),
            cell("markdown", "## Exercise 2: say why (2 points)", "two"),
            cell("markdown", "### BEGIN SOLUTION\nBecause.\n### END SOLUTION", "why", points=2,
                 solution=True),
        ],
    )  # fmt: skip
    path = course / "source" / "doubling" / "doubling.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(source, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assignments, "SOURCE", course / "source")
        assignments.make_release("doubling", course / "release")
        yield course


def submission(course: Path, path: Path, answer: str = RIGHT, words: str = "", **more: str) -> Path:
    """The student version with answers; ``more`` replaces the source of any other cell."""
    nb = nbformat.read(course / "release" / "doubling" / "doubling.ipynb", as_version=4)
    sources = {"double": answer, "why": words, **more}
    for each in nb.cells:
        each.source = sources.get(each.metadata.nbgrader.grade_id) or each.source
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)
    return path


def graded(course: Path, path: Path, seconds: int = 30):
    source = course / "source" / "doubling" / "doubling.ipynb"
    result = grade_one.grade(path, source, trusted=not shutil.which("bwrap"), seconds=seconds)
    return {s["cell"]: s["points"] for s in result["scores"]}, "; ".join(result["notes"]), result


def test_right_and_wrong(course, tmp_path):
    points, notes, result = graded(course, submission(course, tmp_path / "a.ipynb", words="So."))
    assert points == {"doubled": 2, "hidden-only": 1, "why": None} and notes == ""
    assert result["answers"] == {"why": "So."}
    wrong = submission(course, tmp_path / "b.ipynb", "def double(x):\n    return 4")
    points, notes, result = graded(course, wrong)
    assert points == {"doubled": 0, "hidden-only": 0, "why": 0}
    assert [s["message"] for s in result["scores"]] == ["also of three", "also of three", ""]
    assert result["scores"][0]["hidden"]


@needs_walls
@pytest.mark.parametrize(
    ("answer", "note"),
    [
        ("import os; os._exit(1)", "Kernel died"),
        ("exit()", "Kernel died"),
        ("while True:\n    pass", "Timeout"),
        ("while True:\n  try:\n    while True: pass\n  except BaseException: pass", "Timeout"),
        ("while True:\n    print('x' * 10_000)", "printed more than"),
        ("open('/etc/passwd').read()", "FileNotFoundError"),
        ("open('/usr/mine', 'w')", "OSError: [Errno 30] Read-only"),
        ("open('big', 'wb').write(bytes(200 << 20))", "File too large"),
        ("torch.ones(4 << 30)", "memory"),
        ("import os\nwhile True:\n  if not os.fork(): import time; time.sleep(60); os._exit(0)",
         "Resource temporarily unavailable"),
        ("input('points please: ')", "StdinNotImplementedError"),
        ("raise ValueError('<script>')", "ValueError"),
    ],
)  # fmt: skip
def test_hostile(answer, note, course, tmp_path):
    # long enough to import torch, short enough to wait for
    points, notes, _ = graded(course, submission(course, tmp_path / "a.ipynb", answer), seconds=8)
    assert points == {"doubled": 0, "hidden-only": 0, "why": 0}
    assert note in notes


@needs_walls
def test_no_network(course, tmp_path):
    """Not even to this machine, where somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        answer = f"import socket\nsocket.create_connection({server.getsockname()}, 5)\n{RIGHT}"
        points, notes, _ = graded(course, submission(course, tmp_path / "a.ipynb", answer))
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()
    assert points["doubled"] == 0 and "Error: [Errno" in notes


def test_a_flood_that_ends_is_cut_and_the_answer_counts(course, tmp_path, monkeypatch):
    seen = []
    scores = grade_one.scores
    monkeypatch.setattr(grade_one, "scores", lambda nb, notes: seen.append(nb) or scores(nb, notes))
    flood = submission(course, tmp_path / "a.ipynb", "print('x' * 5_000_000)\n" + RIGHT)
    points, notes, _ = graded(course, flood)
    assert points["doubled"] == 2 and "printed more than" in notes
    assert len(nbformat.writes(seen[0])) < 1.1 * grade_one.MOST_BYTES


@needs_walls
def test_sees_nothing_but_the_package(course, tmp_path):
    """Not the source with its hidden tests, not the submission beside it, not who runs it."""
    (tmp_path / "other.ipynb").write_text("{}")
    paths = [course / "source", tmp_path / "other.ipynb", assignments.SOURCE, Path.home()]
    answer = f"""
import os, mlguide.data
for path in {[str(path) for path in paths]}:  # folders on the way to Python may be there, bare
    assert not os.path.isfile(path), path
    assert not os.path.exists(path) or set(os.listdir(path)) <= {{".pyenv", ".venv"}}, path
assert set(os.listdir(".")) <= {{".ipython"}}, os.listdir(".")
"""
    points, notes, _ = graded(course, submission(course, tmp_path / "a.ipynb", answer + RIGHT))
    assert (points["doubled"], notes) == (2, "")


def test_changed_tests_are_put_back(course, tmp_path):
    wrong = "def double(x):\n    return 4"
    path = submission(course, tmp_path / "a.ipynb", wrong, doubled="pass")
    points, notes, _ = graded(course, path)
    assert points["doubled"] == 0 and "'doubled' had been changed" in notes
    nb = nbformat.read(submission(course, path, wrong), as_version=4)
    nb.cells = [c for c in nb.cells if c.metadata.nbgrader.grade_id != "doubled"][::-1]
    nbformat.write(nb, path)
    points, notes, _ = graded(course, path)
    assert points["doubled"] == 0 and "'doubled' was missing" in notes


def test_disarmed_tests_give_no_points(course, tmp_path):
    for trick in (
        "torch.equal = lambda a, b: True",
        "import ast\nclass Off(ast.NodeTransformer):\n    def visit_Assert(self, node):\n"
        "        return ast.Pass()\nget_ipython().ast_transformers.append(Off())",
        "get_ipython().input_transformers_cleanup.append(\n"
        "    lambda lines: ['pass'] if any('HIDDEN TESTS' in x for x in lines) else lines)",
    ):
        path = submission(course, tmp_path / "a.ipynb", f"{trick}\n{RIGHT}")
        points, notes, _ = graded(course, path)
        assert points == {"doubled": 0, "hidden-only": 0, "why": 0} and "disarmed" in notes


def test_the_code_of_hidden_tests_does_not_come_back(course, tmp_path):
    answer = "def double(x):\n    raise AssertionError(get_ipython().user_ns['In'][-1][-90:])"
    _, notes, result = graded(course, submission(course, tmp_path / "a.ipynb", answer))
    assert "double(3)" not in json.dumps(result["scores"]) and "double(3)" not in notes
    path = submission(course, tmp_path / "a.ipynb")
    nb = nbformat.read(path, as_version=4)
    nb.cells.append(new_code_cell("raise ValueError(In[-2])"))  # of the graded cell before
    nbformat.write(nb, path)
    own = graded(course, path)[1]
    assert "ValueError: the message is not shown" in own and "double(3)" not in own
    assert "look at: the answers speak of get_ipython" in notes


def test_windows_line_ends_are_no_change(course, tmp_path):
    path = submission(course, tmp_path / "a.ipynb")
    nb = nbformat.read(path, as_version=4)
    for each in nb.cells:
        each.source = each.source.replace("\n", "\r\n")
    nbformat.write(nb, path)
    assert graded(course, path)[:2] == ({"doubled": 2, "hidden-only": 1, "why": 0}, "")


def test_own_cells_are_kept_where_they_stood(course, tmp_path):
    path = submission(course, tmp_path / "a.ipynb", "def double(x):\n    return twice * x")
    nb = nbformat.read(path, as_version=4)
    nb.cells.insert(2, new_code_cell("twice = 2"))
    nbformat.write(nb, path)
    assert graded(course, path)[0]["doubled"] == 2


def test_what_is_no_notebook(course, tmp_path):
    path = tmp_path / "a.ipynb"
    path.write_text("points")
    with pytest.raises(ValueError, match="not a notebook"):
        graded(course, path)
    path.write_bytes(b" " * 11_000_000)
    with pytest.raises(ValueError, match="more than"):
        graded(course, path)


def test_without_walls_it_refuses(course, tmp_path, monkeypatch):
    path = submission(course, tmp_path / "a.ipynb")
    monkeypatch.setattr(grade_one.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="bubblewrap"):
        grade_one.grade(path, course / "source" / "doubling" / "doubling.ipynb")


def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    trusted = [] if shutil.which("bwrap") else ["--trusted"]
    monkeypatch.setattr(sys, "argv", ["grade.py", str(folder), *trusted])
    return grade.main()


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_of_submissions(course, tmp_path, monkeypatch, capsys):
    folder, out = tmp_path / "round 1", tmp_path / "round 1-graded"
    submission(course, folder / "Ada" / "doubling.ipynb", words="=1+1 <b>bold</b>")
    submission(course, folder / "Bob" / "sub" / "doubling.ipynb", "raise ValueError('<script>')")
    submission(course, folder / "Cyd" / "doubling (1).ipynb")
    (folder / "Dan").mkdir()
    (folder / "Dan" / "doubling.ipynb").write_text("no notebook")
    assert run(folder, monkeypatch) == 0
    said = capsys.readouterr().out
    assert "Cyd/doubling (1).ipynb: is called as none" in said and "[3/3]" in said
    assert "Cyd: holds no notebook that can be graded" in said
    table = {row["student"]: row for row in rows(out / "doubling.csv")}
    exercise = "Exercise 1: double (3 points)"
    assert {k: (r["points"], r["waiting"], r[exercise]) for k, r in table.items()} == {
        "Ada": ("3", "2", "3"), "Bob": ("0", "0", "0"), "Dan": ("0", "0", "0"),
    }  # fmt: skip
    assert "not a notebook" in table["Dan"]["notes"]
    assert (out / "doubling.png").read_bytes()[:4] == b"\x89PNG"
    page = (out / "feedback" / "Bob" / "doubling.html").read_text("utf-8")
    assert "&lt;script&gt;" in page and "<script" not in page
    for page in out.glob("feedback/*/*.html"):
        assert "double(3)" not in page.read_text("utf-8"), "the code of a hidden test"

    # points by hand go into the scores, and nothing is graded twice
    hand = rows(out / "by_hand.csv")
    assert [(r["student"], r["answer"]) for r in hand] == [("Ada", "'=1+1 <b>bold</b>")]
    for points, code in (("3", 1), ("1,5", 0)):  # saved as by a spreadsheet in Germany
        hand[0] |= {"points": points, "comment": "die Hälfte"}
        with (out / "by_hand.csv").open("w", newline="", encoding="cp1252") as file:
            writer = csv.DictWriter(file, grade.BY_HAND, delimiter=";")
            writer.writeheader()
            writer.writerows(hand)
        assert run(folder, monkeypatch) == code
    said = capsys.readouterr()
    assert "must be from 0 to 2, got '3'" in said.err
    assert "2 graded before and unchanged" in said.out and "[1/1] Dan" in said.out
    assert rows(out / "doubling.csv")[0]["points"] == "4.5"
    assert "die Hälfte" in (out / "feedback" / "Ada" / "doubling.html").read_text("utf-8")

    # a changed submission is graded again; points for another answer are not kept, nor any lost
    shutil.rmtree(folder / "Dan")
    submission(course, folder / "Bob" / "sub" / "doubling.ipynb")
    assert run(folder, monkeypatch) == 0
    assert "[1/1] Bob" in capsys.readouterr().out
    (folder / "Ada").rename(tmp_path / "away")
    assert run(folder, monkeypatch) == 0
    assert "kept, fits no answer: doubling why Ada" in capsys.readouterr().out
    submission(course, folder / "Ada" / "doubling.ipynb", words="Another answer.")
    assert run(folder, monkeypatch) == 0
    assert "the answer of Ada to why is a new one" in capsys.readouterr().out
    assert rows(out / "doubling.csv")[0]["points"] == "3"


def test_nothing_to_grade(tmp_path, monkeypatch, capsys):
    assert run(tmp_path, monkeypatch) == 1
    assert run(tmp_path / "none", monkeypatch) == 2
    assert "must be a folder" in capsys.readouterr().err
    monkeypatch.setattr(grade.shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["grade.py", str(tmp_path)])
    assert grade.main() == 2
    assert "bubblewrap is needed" in capsys.readouterr().err


def test_a_grading_that_hangs_is_ended(course, tmp_path, monkeypatch):
    def hang(*args, **more):
        raise subprocess.TimeoutExpired("grade_one", 1)

    monkeypatch.setattr(grade.subprocess, "run", hang)
    source = course / "source" / "doubling" / "doubling.ipynb"
    result = grade.grade_apart(source, source, trusted=True)
    assert grade.total(result) == (0, 5, 0) and "in time" in result["notes"][0]
    assert json.dumps(result)
