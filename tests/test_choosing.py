"""The rule of the decision map: at most one answer to all that can be asked, with evidence."""

import itertools
from pathlib import Path

import pytest
import yaml
from stored import notebooks

from mlguide import choosing
from mlguide.choosing import ANSWERS, FEW, MANY, NOT_MEASURED, RULE, choose, look_up

ROOT = Path(__file__).parents[1]
ALL = [
    dict(zip(ANSWERS, answers, strict=True))
    for answers in itertools.product(*(list(words) for words in ANSWERS.values()))
]
TECHNIQUES = {"alone", "transfer", "fine-tuned", "multi-task", "federated"}


def test_no_combination_has_two_answers():
    found = [look_up(answers) for answers in ALL]  # raises where there are two
    assert {row.advice for row in found if row} == TECHNIQUES
    assert any(row is None for row in found)


def test_each_row_is_reached_and_speaks_of_answers_that_exist():
    reached = {id(look_up(answers)) for answers in ALL}
    for row in RULE:
        assert id(row) in reached, row
        for question, words in ANSWERS.items():
            assert set(getattr(row, question)) <= set(words), (row, question)


def test_each_row_has_claims_that_the_book_has_measured():
    chapters = yaml.safe_load((ROOT / "book" / "claims.yml").read_text("utf-8"))
    known = {claim["id"] for chapter in chapters.values() for claim in chapter}
    cells = [cell for notebook in notebooks() for cell in notebook.claims.values()]
    recorded = {record["id"] for cell in cells for record in cell}
    for row in RULE:
        assert row.claims and set(row.claims) <= known & recorded, row


@pytest.mark.parametrize(
    ("labels", "band"), [(1, "few"), (FEW, "few"), (FEW + 1, "some"), (MANY - 1, "some"),
                         (MANY, "many")],
)  # fmt: skip
def test_bands_of_labels(labels: int, band: str):
    assert choose(labels_per_class=labels, relatedness="none").answers["labels"] == band


def test_advice_is_the_row_and_its_words():
    few = choose(labels_per_class=5, relatedness="related")
    assert (few.advice, few.claims) == (few.row.advice, few.row.claims)
    assert few.advice == "transfer" and "T1" in str(few)
    several = choose(labels_per_class=500, relatedness="none", tasks=3)
    assert several.advice == "multi-task"
    away = choose(labels_per_class=5, relatedness="unrelated", data_may_leave=False)
    assert away.advice == "federated"


def test_what_was_not_measured_says_so_and_names_neighbours():
    unknown = choose(labels_per_class=5, relatedness="none", tasks=2, data_may_leave=False)
    assert unknown.row is None and unknown.advice == NOT_MEASURED and unknown.claims == ()
    assert "No experiment of the book speaks for one" in str(unknown)
    assert [row.advice for _, row in unknown.nearest] == ["federated"]
    assert "tasks = one: federated" in str(unknown)


def test_a_rule_with_two_answers_is_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(choosing, "RULE", (*RULE, RULE[0]))
    with pytest.raises(AssertionError, match="several answers"):
        choose(labels_per_class=5, relatedness="related")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels_per_class": 0}, "labels_per_class must be a whole number, at least 1; got 0"),
        ({"labels_per_class": 2.5}, "got 2.5"),
        ({"tasks": True}, "tasks must be a whole number"),
        ({"relatedness": "cousin"}, r"relatedness must be one of \['related', .*got 'cousin'"),
        ({"distance": "far"}, "distance must be one of"),
        ({"data_may_leave": "no"}, "data_may_leave must be True or False; got 'no'"),
    ],
)
def test_bad_answers_are_named(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        choose(**{"labels_per_class": 5, "relatedness": "related", **wrong})


def test_the_map_shows_the_rule():
    figure = choosing.draw_map("one", "one place")
    texts = [text.get_text() for text in figure.axes[0].texts]
    cells = [
        look_up({"labels": labels, "relatedness": related, "distance": distance, "tasks": "one",
                 "data": "one place"})
        for labels in ANSWERS["labels"]
        for related, distance in choosing.COLUMNS
    ]  # fmt: skip
    wanted = [row.advice if row else NOT_MEASURED for row in cells]
    assert [t.replace("\n", " ") for t in texts[: len(wanted)]] == wanted
    boxes = [box.get_bbox() for box in figure.axes[0].patches]
    for box, text in zip(boxes, figure.axes[0].texts, strict=True):
        assert box.contains(*text.get_position())
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    with pytest.raises(ValueError, match="tasks must be one of"):
        choosing.draw_map("two", "one place")
