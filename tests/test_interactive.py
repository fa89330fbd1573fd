"""Frames must work by HTML and CSS alone; the live panel must run the code, and only when live."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure
from PIL import Image

from mlguide.interactive import frames, live

SIGNS = ("JPY_SESSION_NAME", "COLAB_RELEASE_TAG", "VSCODE_PID")


def bar(height: float) -> Figure:
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.add_subplot().bar([0], [height])
    return figure


def show(**changes) -> str:
    arguments = {"name": "Turn <by>", "alt": "A bar of {}.", "labels": ["low", "high"]}
    return frames(bar, [1, 3], **arguments | changes).data


class Page(HTMLParser):
    """The elements of a page, each as (tag, attributes); fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_every_value_has_a_button_a_picture_and_a_text_of_its_own():
    page = Page(show(start=1))
    assert ["checked" in radio for radio in page.all("input")] == [False, True]
    assert [image["alt"] for image in page.all("img")] == ["A bar of low.", "A bar of high."]
    for image in page.all("img"):
        data = (image["src"] or "").removeprefix("data:image/webp;base64,")
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert (picture.format, picture.size) == ("WEBP", (100, 50))
    assert page.all("img")[0]["src"] != page.all("img")[1]["src"]


def test_the_style_shows_exactly_the_picture_of_the_checked_button():
    shown = re.findall(
        r"label:nth-of-type\((\d+)\) > :checked\) > figure:nth-of-type\((\d+)\)", show()
    )
    assert shown == [("1", "1"), ("2", "2")]


def test_the_pictures_keep_their_captions_where_the_style_is_taken_away():
    bare = re.sub(r"(?s)<style>.*</style>", "", show())
    assert re.findall("<figcaption>(.*?)</figcaption>", bare) == [
        "Turn &lt;by&gt;: low",
        "Turn &lt;by&gt;: high",
    ]
    assert "hidden" not in bare


def test_jupyterlab_leaves_the_arrow_keys_to_each_button():
    # the attribute must stand on the element that has the focus
    assert all(radio["data-lm-suppress-shortcuts"] == "true" for radio in Page(show()).all("input"))


def test_the_same_call_gives_the_same_html_without_ids_or_scripts():
    page = Page(show())
    assert show() == show()
    assert not page.all("script") and not any("id" in a for _, a in page.elements)
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert "http" not in show()


def test_alt_may_be_a_function_of_the_value():
    page = Page(show(alt=lambda value: f"Height {value}"))
    assert [image["alt"] for image in page.all("img")] == ["Height 1", "Height 3"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["low"]}, "got 1 for 2"),
        ({"start": 2}, "start must be 0 to 1, got 2"),
        ({"alt": "A bar."}, "alt must say of each picture"),
        ({"alt": lambda value: ""}, "alt must say of each picture"),
    ],
)
def test_wrong_input_is_refused(changes, message: str):
    with pytest.raises(ValueError, match=message):
        show(**changes)


def test_pictures_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="figures of one size"):
        frames(lambda side: Figure(figsize=(side, 1)), [1, 2], name="side", alt="{}")


def test_without_a_front_end_nothing_is_computed(monkeypatch: pytest.MonkeyPatch):
    for sign in SIGNS:
        monkeypatch.delenv(sign, raising=False)

    def draw(value: int) -> Figure:
        raise AssertionError("must not be called")

    note = live(draw, [1, 2], name="Turn", description="trains a model & draws it.").data
    assert "trains a model &amp; draws it." in note
    assert Page(note).all("script") == []


@pytest.mark.parametrize("sign", SIGNS)
def test_a_live_panel_calls_the_code_with_the_chosen_value(
    sign: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(sign, "x")
    drawn: list[int] = []

    def draw(value: int) -> Figure:
        drawn.append(value)
        return bar(value)

    panel = live(draw, [1, 3], name="Turn", labels=["low", "high"], description="Draws a bar.")
    slider, status, _ = panel.children
    states: list[str] = []
    status.observe(lambda change: states.append(change.new), names="value")
    assert drawn == [1] and slider.description == "Turn"
    slider.label = "high"
    assert drawn == [1, 3] and states == ["computing …", ""]


def test_an_error_in_a_live_panel_is_not_left_computing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(SIGNS[0], "x")

    def draw(value: int) -> Figure:
        if value == 3:
            raise RuntimeError("cannot draw three")
        return bar(value)

    slider, status, _ = live(draw, [1, 3], name="Turn", description="Draws.").children
    with pytest.raises(RuntimeError, match="cannot draw three"):
        slider.value = 3
    assert status.value == ""
