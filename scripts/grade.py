"""Grade a folder of submissions: ``python scripts/grade.py SUBMISSIONS [--trusted]``.

``SUBMISSIONS`` holds a folder for each student, in it, at any depth, notebooks that are still
called as they were handed out.  Beside it, in ``SUBMISSIONS-graded``, this writes

- ``<assignment>.csv``: a line for each student, with the points of each exercise;
- ``<assignment>.png``: how the scores are spread, and which exercises were hard;
- ``feedback/<student>/<assignment>.html``: for the student;
- ``by_hand.csv``: the written answers.  Fill in ``points`` and ``comment`` and run this again;
- ``results/``: what was found, so that a second run grades only what is new or changed.
"""

import argparse
import csv
import hashlib
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import nbformat
from grade_one import CELL_SECONDS, CELLS, NO_WALLS, restored, scores
from matplotlib.figure import Figure

from assignments import sources
from mlguide import look

WORKERS = os.cpu_count() or 1
BY_HAND = ("assignment", "question", "student", "out_of", "points", "comment", "answer")
Result = dict[str, Any]


def find(submissions: Path) -> tuple[list[tuple[str, str, Path]], list[str]]:
    """(student, assignment, notebook) of each submission, and what could not be understood."""
    found: dict[tuple[str, str], Path] = {}
    odd: list[str] = []
    for path in sorted(submissions.rglob("*.ipynb")):
        inside = path.relative_to(submissions)
        if ".ipynb_checkpoints" in inside.parts:
            continue
        student, assignment = inside.parts[0], path.stem
        if len(inside.parts) < 2:
            odd.append(f"{inside}: stands in no student's folder")
        elif assignment not in sources():
            odd.append(f"{inside}: is called as none of the assignments ({', '.join(sources())})")
        elif path.is_symlink() or not path.is_file():
            odd.append(f"{inside}: is not a plain file")
        elif (student, assignment) in found:
            odd.append(f"{inside}: a second {assignment} of {student}; the first was taken")
        else:
            found[student, assignment] = path
    seen = {student for student, _ in found}
    odd += [f"{folder.name}: holds no notebook that can be graded"
            for folder in sorted(submissions.iterdir())
            if folder.is_dir() and folder.name not in seen]  # fmt: skip
    return [(*who, path) for who, path in found.items()], odd


def fingerprint(path: Path, source: Path, trusted: bool) -> str:
    """Changes when the submission, the assignment or the grading does."""
    files = (path, source, Path(__file__), Path(__file__).with_name("grade_one.py"))
    parts = [bytes([trusted]), *(file.read_bytes() for file in files)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def empty(source: Path, note: str) -> Result:
    """The result of what could not be run at all: no points, and why."""
    notebook, _ = restored(nbformat.v4.new_notebook(), nbformat.read(source, as_version=4))
    return {**scores(notebook, []), "notes": [note]}


def grade_apart(path: Path, source: Path, trusted: bool) -> Result:
    """Grade one submission in a process of its own, which is ended if it takes too long."""
    command = [sys.executable, Path(__file__).with_name("grade_one.py"), path, source]
    began = time.perf_counter()
    try:
        done = subprocess.run(
            [*command, *(["--trusted"] if trusted else [])],
            capture_output=True, text=True, timeout=(CELLS + 2) * CELL_SECONDS, check=False,
        )  # fmt: skip
        said = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        ran = done.returncode == 0
        result = json.loads(done.stdout) if ran else empty(source, said[0])
    except subprocess.TimeoutExpired:
        ran, result = False, empty(source, "it could not be graded in time")
    return result | {"ran": ran, "seconds": round(time.perf_counter() - began, 1)}


def grade_all(submissions: Path, out: Path, trusted: bool) -> dict[str, dict[str, Result]]:
    """Results by assignment and student; those that are known already are not made again."""
    found, odd = find(submissions)
    for line in odd:
        print("left out:", line)
    results: dict[str, dict[str, Result]] = {}
    waiting = {}
    with ThreadPoolExecutor(WORKERS) as pool:
        for student, assignment, path in found:
            source, kept = sources()[assignment], out / "results" / student / f"{assignment}.json"
            mark = fingerprint(path, source, trusted)
            if kept.is_file() and (old := json.loads(kept.read_text("utf-8")))["of"] == mark:
                results.setdefault(assignment, {})[student] = old
                continue
            job = pool.submit(grade_apart, path, source, trusted)
            waiting[job] = (student, assignment, kept, mark)
        if results:
            print(sum(map(len, results.values())), "graded before and unchanged")
        for number, job in enumerate(in_turn(pool, waiting), 1):
            student, assignment, kept, mark = waiting[job]
            result = job.result() | {"of": mark}
            if result["ran"]:  # another time it may
                write(kept, json.dumps(result, indent=1))
            results.setdefault(assignment, {})[student] = result
            points, out_of, hand = total(result)
            print(f"[{number}/{len(waiting)}] {student}, {assignment}: {points:g} of {out_of:g}",
                  f"({hand:g} more by hand), {result['seconds']} s", *result["notes"],
                  sep="; " if result["notes"] else " ", flush=True)  # fmt: skip
    return results


def in_turn(pool: ThreadPoolExecutor, jobs: Any) -> Iterator[Any]:
    """Jobs as they end; what has not begun when Ctrl-C is pressed never begins."""
    try:
        yield from as_completed(jobs)
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, "utf-8", newline="")
    part.replace(path)


def total(result: Result) -> tuple[float, float, float]:
    """Points so far, points in all, and points that wait to be given by hand."""
    scores = result["scores"]
    given = sum(s["points"] for s in scores if s["points"] is not None)
    hand = sum(s["out_of"] for s in scores if s["points"] is None)
    return given, sum(s["out_of"] for s in scores), hand


def by_hand(out: Path, results: dict[str, dict[str, Result]]) -> None:
    """Take points and comments from ``by_hand.csv`` into the results, and write it anew.

    Raises:
        ValueError: if points in it are no number from 0 to ``out_of``, or a column is missing;
            nothing is written then.
    """
    path = out / "by_hand.csv"
    given: dict[tuple[str, ...], dict[str, str]] = {}
    if path.is_file():
        given = {tuple(r[c] or "" for c in BY_HAND[:3]): r for r in read_by_hand(path)}
    rows = []
    for assignment, students in sorted(results.items()):
        for student, result in sorted(students.items()):
            for score in result["scores"]:
                if score["points"] is not None:
                    continue
                row = given.pop((assignment, score["cell"], plain(student)), {})
                points, answer = row.get("points") or "", plain(result["answers"][score["cell"]])
                if points and letters(row["answer"]) != letters(answer):
                    print(f"by_hand.csv: the answer of {student} to {score['cell']} is a new one")
                    points = ""
                if points:
                    score["points"] = number(points, score["out_of"], f"{student}, {score['cell']}")
                score["message"] = row.get("comment") or ""
                rows.append([assignment, score["cell"], plain(student), score["out_of"], points,
                             score["message"], answer])  # fmt: skip
    for row in given.values():  # somebody's work: never thrown away
        if row["points"] or row["comment"]:
            print("by_hand.csv: kept, fits no answer:", *(row[c] for c in BY_HAND[:3]))
            rows.append([row[c] or "" for c in BY_HAND])
    write(path, "\ufeff" + table([BY_HAND, *sorted(rows, key=lambda r: r[:3])]))


def read_by_hand(path: Path) -> list[dict[str, str]]:
    """The rows, in whatever letters and with whatever delimiter a spreadsheet saved them.

    Raises:
        ValueError: if a column is missing.
    """
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("cp1252", errors="replace")
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    if missing := [c for c in BY_HAND if c not in (reader.fieldnames or ())]:
        raise ValueError(f"by_hand.csv has lost its columns {', '.join(missing)}")
    return list(reader)


def letters(text: str | None) -> str:
    """What no spreadsheet changes when it saves a text."""
    return re.sub(r"[^A-Za-z0-9]", "", text or "")


def number(text: str, most: float, where: str) -> float:
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        value = -1
    if not 0 <= value <= most:
        raise ValueError(f"by_hand.csv: points of {where} must be from 0 to {most:g}, got {text!r}")
    return value


def plain(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t")) else text


def table(rows: list[Any]) -> str:
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    return file.getvalue()


def by_exercise(result: Result) -> dict[str, tuple[float, float]]:
    """Points and points in all of each exercise; what waits for a hand counts as nothing yet."""
    found: dict[str, tuple[float, float]] = {}
    for score in result["scores"]:
        points, out_of = found.get(score["exercise"], (0, 0))
        found[score["exercise"]] = (points + (score["points"] or 0), out_of + score["out_of"])
    return found


def scores_table(students: dict[str, Result]) -> str:
    exercises = list(by_exercise(next(iter(students.values()))))
    rows: list[Any] = [["student", "points", "out_of", "waiting", *exercises, "seconds", "notes"]]
    for student, result in sorted(students.items()):
        points, out_of, hand = total(result)
        each = [f"{p:g}" for p, _ in by_exercise(result).values()]
        rows.append([plain(student), f"{points:g}", f"{out_of:g}", f"{hand:g}", *each,
                     result["seconds"], plain("; ".join(result["notes"]))])  # fmt: skip
    return table(rows)


def picture(students: dict[str, Result]) -> Figure:
    """Left the spread of the scores, right the mean share of each exercise, hardest at the top.

    Answers that wait for a person are left out on the right.
    """
    results = list(students.values())
    totals = [total(result)[0] for result in results]
    most = int(total(results[0])[1])
    scores = [score for result in results for score in result["scores"]]
    waiting = {score["cell"] for score in scores if score["points"] is None}
    got, of = Counter(), Counter()
    for score in scores:
        if score["cell"] not in waiting:
            name = score["exercise"].split(":")[0]
            got[name] += score["points"]
            of[name] += score["out_of"]
    shares = {name: got[name] / of[name] for name in of}
    shares = dict(sorted(shares.items(), key=lambda item: -item[1]))
    with look.sheet(3.2) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(2, 3))
        left.hist(totals, bins=[x - 0.5 for x in range(most + 2)], color=look.NEUTRAL.colour)
        left.set_xlabel(f"points of {most}")
        left.set_ylabel(f"of {len(results)} submissions")
        left.yaxis.get_major_locator().set_params(integer=True)
        right.barh(list(shares), list(shares.values()), color=look.NEUTRAL.colour)
        right.set_xlim(0, 1)
        right.set_xlabel("mean share of an exercise's points")
    return figure


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>
:root {{ color-scheme: light dark }}
body {{ font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }}
body {{ max-width: 46rem; margin: 2rem auto; padding: 0 1rem }}
h2 {{ font-size: 1.1rem; margin: 1.6rem 0 .2rem }}
p, ul {{ margin: .3rem 0 }}
pre {{ white-space: pre-wrap; border-left: 3px solid; padding-left: .8rem }}
</style></head><body>
<h1>{title}</h1>
<p><strong>{points:g} of {out_of:g} points</strong>{waiting}</p>
{body}
</body></html>
"""


def feedback(student: str, assignment: str, result: Result) -> str:
    """A page for the student: what each check said, without the code of the tests."""
    points, out_of, hand = total(result)
    body = [f"<ul>{''.join(f'<li>{html.escape(note)}</li>' for note in result['notes'])}</ul>"]
    for exercise, (got, most) in by_exercise(result).items():
        title = re.sub(r" \([^()]*points?[^()]*\)$", "", exercise)
        body.append(f"<h2>{html.escape(title)}: {got:g} of {most:g}</h2><ul>")
        for score in result["scores"]:
            if score["exercise"] == exercise:
                body.append(f"<li>{''.join(feedback_lines(score, result['answers']))}</li>")
        body.append("</ul>")
    waiting = f", {hand:g} more will be given by hand" if hand else ""
    title = html.escape(f"{assignment.replace('_', ' ')}: {student}")
    return PAGE.format(title=title, points=points, out_of=out_of, waiting=waiting,
                       body="\n".join(body))  # fmt: skip


def feedback_lines(score: dict[str, Any], answers: dict[str, str]) -> Iterator[str]:
    points, out_of = score["points"], score["out_of"]
    sign = "…" if points is None else "✓" if points == out_of else "◐" if points else "✗"
    given = "waits for a person, " if points is None else f"{points:g} of "
    yield f"{sign} <code>{html.escape(score['cell'])}</code>, {given}{out_of:g}. "
    yield html.escape(score["message"])
    if score["cell"] in answers:
        yield f"<pre>{html.escape(answers[score['cell']])}</pre>"


def main() -> int:
    parser = argparse.ArgumentParser(description="Grade a folder of submissions.")
    parser.add_argument("submissions", type=Path)
    parser.add_argument("--trusted", action="store_true", help="run them without walls")
    args = parser.parse_args()
    if not args.submissions.is_dir():
        print(f"SUBMISSIONS must be a folder, got {str(args.submissions)!r}", file=sys.stderr)
        return 2
    if not args.trusted and not shutil.which("bwrap"):
        print(NO_WALLS, file=sys.stderr)
        return 2
    submissions = args.submissions.resolve()
    out = submissions.with_name(submissions.name + "-graded")
    try:
        results = grade_all(submissions, out, args.trusted)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    if not results:
        print("nothing to grade: SUBMISSIONS/<student>/<assignment>.ipynb is expected")
        return 1
    try:
        by_hand(out, results)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for assignment, students in results.items():
        write(out / f"{assignment}.csv", scores_table(students))
        picture(students).savefig(out / f"{assignment}.png", dpi=look.DPI)
        for student, result in students.items():
            page = feedback(student, assignment, result)
            write(out / "feedback" / student / f"{assignment}.html", page)
    mean = [r["seconds"] for students in results.values() for r in students.values()]
    print(f"{len(mean)} submissions, {sum(mean) / len(mean):.0f} s each; see {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
