"""The evidence page: every claim that the book must show is there, measured or proved, once."""

import copy
import json
import re
from collections import Counter
from pathlib import Path

import evidence
import pytest
from stored import CLAIMS, notebooks, typeset

ROOT = Path(__file__).resolve().parent.parent

RECORDS = [
    (notebook, place, record)
    for notebook in notebooks()
    for place, records in notebook.claims.items()
    for record in records
]
LISTED = {claim["id"]: (chapter, claim) for chapter, part in CLAIMS.items() for claim in part}


def of(id: str) -> list[tuple]:
    return [found for found in RECORDS if found[2]["id"] == id]


def verdict(record: dict) -> str:
    """What the recorded numbers say, whatever the record calls it."""
    if record["effect"]["low"] <= 0:
        return "fails here"
    contrary = any(other["low"] <= 0 for other in record["unless"].values())
    return "holds when" if contrary else "holds"


def problems(record: dict, listed: dict) -> list[str]:
    """What is wrong with the record of a claim."""
    found = [] if record["kind"] == listed["kind"] else [f"is {record['kind']}"]
    if record["kind"] == "proved":
        return found + ([] if record.get("checks") else ["has no checks"])
    for name, e in {"effect": record["effect"], **record["unless"]}.items():
        if not (e["seeds"] >= 5 and e["low"] <= e["mean"] <= e["high"]):
            found.append(f"{name} is no interval of at least five seeds: {e}")
    if verdict(record) != record["verdict"]:
        found.append(f"says {record['verdict']!r}, its numbers say {verdict(record)!r}")
    if not record["line"].startswith(f"[{record['id']}] {record['verdict']}"):
        found.append("prints another verdict than it records")
    return found


def test_claims_are_listed_once():
    ids = [claim["id"] for part in CLAIMS.values() for claim in part]
    assert len(ids) == len(set(ids)) == 27
    for chapter, claim in LISTED.values():
        assert claim.keys() - {"effect"} == {"id", "kind", "statement"}, (chapter, claim["id"])
        assert claim["kind"] in {"measured", "proved"}


@pytest.mark.parametrize("id", LISTED)
def test_claim_is_shown_once_in_its_chapter(id: str):
    chapter, listed = LISTED[id]
    assert [notebook.path.parent.name for notebook, _, _ in of(id)] == [chapter]
    [(notebook, place, record)] = of(id)
    assert problems(record, listed) == []


@pytest.mark.parametrize("id", LISTED)
def test_page_does_not_contradict_the_claim(id: str):
    for notebook, place, record in of(id):
        cell = json.loads(notebook.path.read_text("utf-8"))["cells"][place]
        says = re.findall(r"page_says=\"([^\"]+)\"", "".join(cell["source"]))
        assert says == ([record["verdict"]] if record["kind"] == "measured" else [])


def test_every_claim_of_the_notebooks_is_listed():
    assert {record["id"] for _, _, record in RECORDS} <= LISTED.keys()


@pytest.mark.parametrize("chapter", CLAIMS)
def test_pages_quote_the_chapter(chapter: str):
    opener = (ROOT / "book" / chapter / "index.md").read_text("utf-8")
    assert Counter(re.findall(r"\{evidence\} (\w+)\n:short:", opener)) == {chapter: 1}
    page = (ROOT / "book" / "evidence.md").read_text("utf-8")
    assert Counter(re.findall(r"\{evidence\} (\w+)", page)) == Counter(list(CLAIMS))


@pytest.mark.parametrize("file", sorted((ROOT / "book").rglob("*.md")), ids=lambda f: f.stem)
def test_no_verdict_is_typed(file: Path):
    text = re.sub(r"(?sm)^```.*?^```", "", file.read_text("utf-8"))
    typed = re.findall(r"\b([TFMLC]\d)\b\W{0,4}(?:holds|fails|is proved)", text)
    assert [id for id in typed if id in LISTED] == []


def test_a_wrong_record_is_noticed():
    record = of("T1")[0][2]
    listed = LISTED["T1"][1]
    assert problems(record, listed) == []
    for change in (
        {"verdict": "holds"},
        {"kind": "proved"},
        {"line": "[T1] holds: effect"},
        {"effect": {**record["effect"], "seeds": 1}},
        {"effect": {**record["effect"], "low": -0.1}},
    ):
        assert problems({**copy.deepcopy(record), **change}, listed) != [], change


# --- how it is set --------------------------------------------------------------------------------


def estimate(mean: float, half: float = 0.5) -> dict:
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": 10}


def test_conditions_stand_in_the_order_of_the_line_and_none_twice():
    contrary = {name: estimate(-1) for name in ("a later one", "the first:")}
    more = {f"{n} of each": estimate(n) for n in (10, 2, 1)}
    line = "holds when so: effect +1.000; the first: effect -1.000; a later one effect -1.000"
    record = {"line": line, "when": "so", "effect": estimate(1), "unless": contrary | more}
    found = list(evidence.by_condition(record))
    assert found == ["so (1 of each)", "the first", "a later one", "2 of each", "10 of each"]


def test_a_verdict_is_set_with_true_signs_that_stay_together():
    line = "holds when so: effect -0.1 (interval -0.2 to -0.0, 9 seeds); x: effect -1; y effect +1"
    assert evidence.verdict_line({"line": line}).replace("\u00a0", "_") == (
        "holds when so: effect \u22120.1 (interval \u22120.2_to_\u22120.0, 9 seeds)"
        "; x: effect \u22121; y: effect +1"
    )
    assert typeset('the head\'s "old" <answers>') == "the head’s “old” &lt;answers&gt;"
