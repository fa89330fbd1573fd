"""Which technique to take: five questions, and an answer with the evidence behind it.

The rule is data: ``RULE`` holds a row for each advice, with the answers that it is for and the
claims of the book that back it. ``choose`` looks the answers up. Where no experiment of the book
covers a combination, no row does, and ``choose`` says so instead of guessing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mlguide.look import FAINT, INK, QUIET, look_of, sheet

__all__ = [
    "ANSWERS",
    "COLUMNS",
    "FEW",
    "MANY",
    "NOT_MEASURED",
    "RULE",
    "Advice",
    "Row",
    "choose",
    "draw_map",
    "look_up",
]

NOT_MEASURED = "not measured"

FEW, MANY = 20, 100
"""Labels per class: up to ``FEW`` are few, from ``MANY`` on they are many (F3, F4)."""

ANSWERS: dict[str, dict[str, str]] = {
    "labels": {
        "few": f"up to {FEW} of each class",
        "some": f"more than {FEW} and fewer than {MANY}",
        "many": f"{MANY} of each class or more",
    },
    "relatedness": {
        "related": "a related task with plenty of labels, which shows what my own labels do not",
        "nothing new": "a related task, but my own labels show the same (aligned pictures)",
        "unrelated": "a task of another world",
        "none": "there is no other task",
    },
    "distance": {
        "near": "like the source: similar kinds, pictures taken alike",
        "other kinds": "pictures taken alike, of kinds unlike those of the source",
        "other conditions": "pictures in conditions that the source has not seen",
    },
    "tasks": {
        "one": "one answer for each picture",
        "several": "several answers for each picture",
    },
    "data": {
        "one place": "all labels that I count lie where I train, or may be brought there",
        "stay apart": "others have labels for the same task, which may not leave their devices",
    },
}
"""The five questions, each with its answers in words. With no source, or an unrelated one, the
distance from it plays no part."""


@dataclass(frozen=True)
class Row:
    """One advice: the answers it is for (all of a question's if it is left out), and its evidence.

    claims: ids of the book's claims. because: what they measured. watch: where it ends.
    """

    advice: str
    because: str
    claims: tuple[str, ...]
    watch: str
    labels: tuple[str, ...] = tuple(ANSWERS["labels"])
    relatedness: tuple[str, ...] = tuple(ANSWERS["relatedness"])
    distance: tuple[str, ...] = tuple(ANSWERS["distance"])
    tasks: tuple[str, ...] = tuple(ANSWERS["tasks"])
    data: tuple[str, ...] = tuple(ANSWERS["data"])


RULE: tuple[Row, ...] = (
    Row(
        "transfer",
        "frozen features gained most where labels were few, more than the labels of other phones",
        ("T1", "T4", "F4", "C1"),
        "whoever can augment with what there is to overlook gets most of the way alone",
        labels=("few",), relatedness=("related",), distance=("near",), tasks=("one",),
    ),
    Row(
        "fine-tuned",
        "with many labels every weight may move, after the head, and that loses nothing or gains",
        ("F3", "F4", "C1"),
        "the gain over frozen features is small: where training must be quick, stop at them",
        labels=("many",), relatedness=("related",), distance=("near",), tasks=("one",),
    ),
    Row(
        "transfer",
        "frozen features of nothing but tops still helped with five labels of shoes and bags",
        ("T5",),
        "at a hundred labels their gain could not be told from zero",
        labels=("few",), relatedness=("related",), distance=("other kinds",), tasks=("one",),
        data=("one place",),
    ),
    Row(
        "fine-tuned",
        "late layers are specific: with other kinds there is more to tune, and tuning gained more",
        ("T3", "F5"),
        "LoRA of rank 4 brings most of it if each copy must be small; biases alone do not",
        labels=("many",), relatedness=("related",), distance=("other kinds",), tasks=("one",),
        data=("one place",),
    ),
    Row(
        "alone",
        "a source that had never seen such conditions brought nothing to a few labels",
        ("C1",),
        "augment, if you know the new conditions: that was worth more than this source",
        labels=("few",), relatedness=("related",), distance=("other conditions",), tasks=("one",),
        data=("one place",),
    ),
    Row(
        "fine-tuned",
        "on aligned pictures frozen features gained nothing, but tuning them gained a little",
        ("T1", "T4", "C1"),
        "try a straight line on the pixels first",
        labels=("few",), relatedness=("nothing new",), distance=("near",), tasks=("one",),
        data=("one place",),
    ),
    Row(
        "alone",
        "an unrelated source did not help, and mostly did harm",
        ("T5", "C1"),
        "augment with what there is to overlook, if you know it",
        labels=("few",), relatedness=("unrelated",), tasks=("one",), data=("one place",),
    ),
    Row(
        "alone",
        "there is nothing else to learn from: all others were held against this",
        ("C1",),
        "augment with what there is to overlook, if you know it",
        relatedness=("none",), tasks=("one",), data=("one place",),
    ),
    Row(
        "federated",
        "the labels of other phones were worth more than a source that brings nothing new",
        ("L2", "C1"),
        "clients that differ need more than the plain mean, and updates are not private",
        labels=("few",), relatedness=("nothing new",), distance=("near",), tasks=("one",),
        data=("stay apart",),
    ),
    Row(
        "federated",
        "the labels of other phones helped where the source knew nothing of the conditions",
        ("L2", "C1"),
        "clients that differ need more than the plain mean, and updates are not private",
        labels=("few",), relatedness=("related",), distance=("other conditions",), tasks=("one",),
        data=("stay apart",),
    ),
    Row(
        "federated",
        "a phone learns more from what others have learned than from its own few labels",
        ("L2", "L7", "C1"),
        "clients that differ need more than the plain mean, and updates are not private",
        labels=("few",), relatedness=("unrelated", "none"), tasks=("one",), data=("stay apart",),
    ),
    Row(
        "transfer",
        "one frozen backbone serves old and new task, and did better than learning both at once",
        ("T2", "M3"),
        "where the old task cannot be learned first, learn both at once: that beat few labels",
        labels=("few",), relatedness=("related",), distance=("near",), tasks=("several",),
        data=("one place",),
    ),
    Row(
        "multi-task",
        "with many labels sharing neither helped nor hurt, at less than half of what two take",
        ("M1", "M2", "M3"),
        "weigh the losses so that they count in one unit, and watch each task by itself",
        labels=("many",), relatedness=("related",), distance=("near",), tasks=("several",),
        data=("one place",),
    ),
    Row(
        "multi-task",
        "one network gave all answers for less than half of what three networks take",
        ("M1", "M2", "M4"),
        "it made some more errors: with room for a network for each task, take that",
        labels=("many",), relatedness=("none",), tasks=("several",), data=("one place",),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Advice:
    """What ``choose`` answers: the row of the rule, or None where nothing was measured.

    nearest: the rows that one other answer would lead to, with that answer in words.
    """

    answers: Mapping[str, str]
    row: Row | None
    nearest: tuple[tuple[str, Row], ...]

    @property
    def advice(self) -> str:
        """The technique, or ``"not measured"``."""
        return self.row.advice if self.row else NOT_MEASURED

    @property
    def claims(self) -> tuple[str, ...]:
        """Ids of the claims that back it: none if it was not measured."""
        return self.row.claims if self.row else ()

    def __str__(self) -> str:
        if self.row:
            claims = ", ".join(self.row.claims)
            return f"{self.advice}: {self.row.because} ({claims}). But {self.row.watch}."
        lines = ["No experiment of the book speaks for one technique here: measure it yourself."]
        lines += [f"  With {change}: {row.advice} ({', '.join(row.claims)})."
                  for change, row in self.nearest]  # fmt: skip
        return "\n".join(lines)


def look_up(answers: Mapping[str, str]) -> Row | None:
    """The one row that is for these answers, an answer for each question; None if there is none.

    Raises:
        AssertionError: if there are several: the rule then contradicts itself.
    """
    found = [row for row in RULE if all(answers[q] in getattr(row, q) for q in ANSWERS)]
    if len(found) > 1:
        raise AssertionError(f"the rule gives several answers to {dict(answers)}")
    return found[0] if found else None


def choose(
    *,
    labels_per_class: int,
    relatedness: str,
    distance: str = "near",
    tasks: int = 1,
    data_may_leave: bool = True,
) -> Advice:
    """Which technique to take, with the evidence; ``str`` says it in words.

    Args:
        labels_per_class: labelled examples of each class that I have, on one device.
        relatedness, distance: of the best source at hand, as ``ANSWERS`` words them.
        tasks: how many answers are wanted for each example.
        data_may_leave: False if others have labels for the same task which may not leave their
            devices; True if all there is may lie in one place.

    Raises:
        ValueError: naming the argument, what it got and what it takes.
    """
    for name, count in (("labels_per_class", labels_per_class), ("tasks", tasks)):
        if type(count) is not int or count < 1:
            raise ValueError(f"{name} must be a whole number, at least 1; got {count!r}")
    for name, answer in (("relatedness", relatedness), ("distance", distance)):
        if answer not in ANSWERS[name]:
            raise ValueError(f"{name} must be one of {list(ANSWERS[name])}; got {answer!r}")
    if type(data_may_leave) is not bool:
        raise ValueError(f"data_may_leave must be True or False; got {data_may_leave!r}")
    band = "few" if labels_per_class <= FEW else "many" if labels_per_class >= MANY else "some"
    answers = {
        "labels": band,
        "relatedness": relatedness,
        "distance": distance,
        "tasks": "one" if tasks == 1 else "several",
        "data": "one place" if data_may_leave else "stay apart",
    }
    others = [{**answers, q: other} for q, words in ANSWERS.items() for other in words]
    nearest = [
        (f"{question} = {changed[question]}", row)
        for changed in others
        for question in ANSWERS
        if changed[question] != answers[question] and (row := look_up(changed))
    ]
    return Advice(answers, look_up(answers), tuple(nearest))


COLUMNS = (
    *(("related", distance) for distance in ANSWERS["distance"]),
    ("nothing new", "near"),
    ("unrelated", "near"),
    ("none", "near"),
)
"""The columns of the map: relatedness, and distance where it plays a part."""


def draw_map(tasks: str, data: str) -> Figure:
    """The rule as a map, for one answer to each of the last two questions: labels against sources.

    A cell has the colour of its advice; an empty one was not measured.

    Raises:
        ValueError: naming the argument, what it got and what it takes.
    """
    for name, answer in (("tasks", tasks), ("data", data)):
        if answer not in ANSWERS[name]:
            raise ValueError(f"{name} must be one of {list(ANSWERS[name])}; got {answer!r}")
    bands = list(ANSWERS["labels"])
    with sheet(3.4) as figure:
        axes = figure.subplots()
        for y, labels in enumerate(bands):
            for x, (relatedness, distance) in enumerate(COLUMNS):
                row = look_up(dict(zip(
                    ANSWERS, (labels, relatedness, distance, tasks, data), strict=True
                )))  # fmt: skip
                look = look_of(row.advice) if row else None
                fill = to_rgba(look.colour, 0.18) if look else "none"
                box = Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, fc=fill, lw=1.5)
                box.set(ec=look.colour if look else FAINT, ls="-" if look else ":")
                axes.add_patch(box)
                text = row.advice if row else NOT_MEASURED
                note = axes.text(x, y, text.replace(" ", "\n"), ha="center", va="center", size=9.5)
                note.set(color=look.text if look else QUIET, weight="bold" if look else "normal")
        columns = [r if r != "related" else f"related,\n{d}" for r, d in COLUMNS]
        axes.set_xticks(range(len(COLUMNS)), [c.replace(" ", "\n") for c in columns])
        axes.set_yticks(range(len(bands)), bands)
        axes.set(xlim=(-0.5, len(COLUMNS) - 0.5), ylim=(len(bands) - 0.5, -0.5))
        axes.set(xlabel="the best source at hand", ylabel="labels of each class")
        axes.set_title(f"tasks: {tasks}; data: {data}", loc="left", color=INK)
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
    return figure
