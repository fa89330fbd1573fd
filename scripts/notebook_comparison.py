"""When are two outputs of a notebook cell the same?  Three tiers:

- exact: everything that is not named below is compared to the letter;
- measured: ``0.652 ± 0.021``, ``+0.171 (95% interval +0.113 to +0.229`` and, in JSON, an estimate
  with ``mean``, ``low`` and ``high`` are compared within the spread that stands there, since
  another processor changes training in the last digits;
- never compared: times (``3.2 s``, ``120 ms``, ``7.1x``), addresses, the bytes of pictures.
  That they are there is compared.

A bare float is exact.  Whatever comes out of a training is therefore printed, and recorded for
glue, together with its spread; an exact ratio is printed without the ``x`` that marks a speed.
"""

import json
import re
from typing import Any, NamedTuple

_NUMBER = r"(?<![\w.])[+\-−]?\d+(?:\.\d+)?"
_TIME = r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?: ± \d+(?:\.\d+)?)? ?(?:s|ms|µs)(?![\w-])"
_SPEED = r"(?<![\w.])\d+\.\d+(?: ± \d+\.\d+)?x(?!\w)"
_NEVER_COMPARED = [
    (re.compile(r"\A(?:iVBORw0KGgo|/9j/)[A-Za-z0-9+/=\s]+\Z"), "⟨picture⟩"),
    (re.compile(r"data:image/[\w.+-]+;base64,[A-Za-z0-9+/=]+"), "⟨picture⟩"),
    (re.compile(r"<Figure size \d+x\d+ with \d+ Axes>"), "⟨figure⟩"),
    (re.compile(r"0x[0-9a-fA-F]{6,}"), "⟨address⟩"),
    (re.compile(rf"{_TIME}|{_SPEED}"), "⟨time⟩"),
]
_INTERVAL = "{} (95% interval {} to {}"
_MEASURED = re.compile(
    re.escape(_INTERVAL).replace(r"\{\}", f"({_NUMBER})") + rf"|({_NUMBER}) ± (\d+(?:\.\d+)?)"
)


class Measured(NamedTuple):
    """A mean, half the width of its 95% interval, and the value of one unit in the last place."""

    mean: float
    spread: float
    unit: float

    def agrees(self, other: "Measured") -> bool:
        """The means lie within the wider spread, and it is no more than twice the narrower.

        Seeds make the spread. Where training is chaotic, another instruction set moves a mean like
        other seeds would, and of two spreads over ten seeds one is narrow by luck; what leaves the
        wider is a change.  One unit is allowed for rounding, which also covers ``1.000 ± 0.000``.
        """
        narrow, wide = sorted((self.spread, other.spread))
        unit = 1.001 * self.unit  # 1.001: 0.3 - 0.2 is a little more than 0.1
        return abs(self.mean - other.mean) <= wide + unit and wide <= 2 * narrow + unit

    def __str__(self) -> str:
        return f"{self.mean:g} ± {self.spread:g}"


def as_text(value: Any) -> str:
    """An output's value as text; JSON in one order, its estimates in the words of a claim."""
    if isinstance(value, str):
        return value

    def in_words(record: dict[str, Any]) -> Any:
        if not {"mean", "low", "high"} <= record.keys():
            return record
        numbers = (f"{record.pop(key):+.3f}" for key in ("mean", "low", "high"))
        return [_INTERVAL.format(*numbers), record]

    value = json.loads(json.dumps(value), object_hook=in_words)
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _split(text: str) -> tuple[str, list[Measured]]:
    """The text with its measured numbers cut out, and those numbers."""
    for pattern, name in _NEVER_COMPARED:
        text = pattern.sub(name, text)
    found: list[Measured] = []

    def cut(match: re.Match[str]) -> str:
        decimals = len(next(filter(None, match.groups())).partition(".")[2])
        centre, low, high, mean, spread = (
            None if group is None else float(group.replace("−", "-")) for group in match.groups()
        )
        if centre is not None:  # two estimates: an interval that moved alone is a change as well
            found.append(Measured(centre, (high - low) / 2, 10.0**-decimals))
            found.append(Measured((low + high) / 2, (high - low) / 2, 10.0**-decimals))
        else:
            found.append(Measured(mean, spread, 10.0**-decimals))
        return f"⟨{'mean' if centre is None else 'interval'}, {decimals} decimals⟩"

    text = _MEASURED.sub(cut, text)
    if found or "⟨time⟩" in text:  # maybe an aligned table: 9.8 and 10.1 differ in their blanks
        text = re.sub(r" *\n *", "\n", re.sub(r"[ \t]+", " ", text)).strip(" ")
    return text, found


def difference(stored: Any, new: Any) -> str:
    """Why two values of one output field differ, in words; empty when they are the same."""
    stored, new = as_text(stored), as_text(new)
    if stored == new:
        return ""
    (text, numbers), (new_text, new_numbers) = _split(stored), _split(new)
    if text != new_text:
        lines = zip(text.splitlines() + [""], new_text.splitlines() + [""], strict=False)
        first = next((pair for pair in lines if pair[0] != pair[1]), ("", ""))
        return f"exact text differs: {first[0][:200]!r} was stored, now {first[1][:200]!r}"
    for number, new_number in zip(numbers, new_numbers, strict=True):
        if not number.agrees(new_number):
            return f"beyond the spread: {number} was stored, now {new_number}"
    return ""
