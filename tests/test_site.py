"""The built book: its links, its pictures, and what a reader's browser does with it.

`make book` must have built it. The second half drives Chromium or Chrome, from files and from a
server of this machine; where none is installed it is skipped, but not on a machine that sets CI.
"""

import gzip
import os
import re
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from functools import partial
from html import unescape
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from downloads import pictures
from PIL import Image, ImageChops
from playwright.sync_api import Browser, Locator, Page
from screenshots import BROWSERS, HTML, ROOT, VIEWS, browser, find_browser, opened, pages, show
from stored import CLAIMS, notebooks

from notebooks import find_notebooks

PAGES = pages()
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
SOURCES = ("book", "mlguide", "notebooks", "_config.yml", "_toc.yml")
# Elements that make a browser load something, and the attribute that says what.
LOADS = {"script": "src", "img": "src", "source": "src", "iframe": "src", "link": "href"}
LOADED_LINKS = {"stylesheet", "icon", "shortcut icon", "preload", "modulepreload"}
AXE = ROOT / "tests" / "axe" / "axe.min.js"
BUDGET = 400_000  # bytes, compressed, of a page beyond what all pages share
NAME_OF_A_FILE = re.compile(r"\.(png|svg|jpe?g|webp|gif)$|_images/", re.IGNORECASE)


class Parsed(HTMLParser):
    """What there is to check in one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.alts: list[str | None] = []
        text = path.read_text("utf-8")
        self.feed(text)
        self.loads += urls_of_css("".join(re.findall(r"(?s)<style.*?</style>", text)))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "img":
            self.alts.append(found.get("alt"))
        if LOADS.get(tag) in found and (tag != "link" or found.get("rel") in LOADED_LINKS):
            self.loads.append(found[LOADS[tag]])


def urls_of_css(text: str) -> list[str]:
    text = re.sub(r"(?s)/\*.*?\*/", "", text)
    return re.findall(r"""url\(\s*["']?([^"')]+)""", text) + re.findall(
        r"""@import\s+["']([^"']+)""", text
    )


def local(base: Path, address: str) -> tuple[Path, str] | None:
    """The file and the anchor that an address on a page means, None if it leads elsewhere."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return None
    path = (base.parent / unquote(parts.path)).resolve() if parts.path else base
    return path, unquote(parts.fragment)


@pytest.fixture(scope="session")
def site() -> dict[Path, Parsed]:
    """Every page that a reader can come to from the front page."""
    front, built = HTML / "index.html", HTML.parent / ".built"
    if not front.is_file() or not built.is_file():
        pytest.fail(f"there is no book at {front}: run `make book` first")
    files = [ROOT / name for name in SOURCES]
    files += [inner for folder in files for inner in folder.rglob("*") if inner.is_file()]
    files = [file for file in files if file.is_file() and file.suffix != ".pyc"]
    newest = max(files, key=lambda file: file.stat().st_mtime)
    if newest.stat().st_mtime > built.stat().st_mtime:
        pytest.fail(f"{newest.relative_to(ROOT)} is newer than the book: run `make book` again")

    found: dict[Path, Parsed] = {}
    waiting = [front, *(HTML / f"{name}.html" for name in PAGES)]
    while waiting:
        page = waiting.pop()
        if page in found or page.suffix != ".html" or not page.is_file():
            continue
        found[page] = Parsed(page)
        waiting += [target[0] for link in found[page].links if (target := local(page, link))]
    return found


def relative(path: Path) -> str:
    return path.relative_to(HTML).as_posix()


def test_every_page_is_there(site):
    assert [name for name in PAGES if HTML / f"{name}.html" not in site] == []


def test_links_lead_somewhere(site):
    broken = []
    for page, parsed in site.items():
        for link in set(parsed.links):
            if target := local(page, link):
                path, anchor = target
                known = anchor in {"", "top"} or path not in site or anchor in site[path].ids
                if not path.exists() or not known:
                    broken.append(f"{relative(page)}: {link}")
    assert broken == []


def test_everything_a_page_loads_comes_with_it(site):
    wrong = []
    for page, parsed in site.items():
        for address in parsed.loads:
            target = local(page, address)
            if target is None and not address.startswith("data:"):
                wrong.append(f"{relative(page)}: loads {address}")
            elif target is not None and not target[0].is_file():
                wrong.append(f"{relative(page)}: {address} is missing")
    for sheet in HTML.rglob("*.css"):
        for address in urls_of_css(sheet.read_text("utf-8", errors="replace")):
            if local(sheet, address) is None and not address.startswith("data:"):
                wrong.append(f"{relative(sheet)}: loads {address}")
    assert wrong == []


def test_pictures_say_what_they_show(site):
    silent = [
        f"{relative(page)}: alt={alt!r}"
        for page, parsed in site.items()
        for alt in parsed.alts
        if not alt or NAME_OF_A_FILE.search(alt)
    ]
    assert silent == []


def test_no_id_twice(site):
    twice = {
        relative(page): [name for name, count in Counter(parsed.ids).items() if count > 1]
        for page, parsed in site.items()
    }
    assert {page: names for page, names in twice.items() if names} == {}


def test_no_path_of_the_machine_that_built_it(site):
    assert [relative(page) for page in site if str(ROOT) in page.read_text("utf-8")] == []


def links(site: dict[Path, Parsed], page: str) -> set[str]:
    """Where the links of a page lead, as `path#anchor` from the root of the book."""
    base = HTML / f"{page}.html"
    found = [local(base, link) for link in site[base].links]
    found = [(path, anchor) for path, anchor in filter(None, found) if HTML in path.parents]
    return {f"{relative(path)}#{anchor}".rstrip("#") for path, anchor in found}


def test_evidence_leads_to_the_very_cell(site):
    there = links(site, "book/evidence")
    for notebook in notebooks():
        for claim in [claim for cell in notebook.claims.values() for claim in cell]:
            assert f"notebooks/{notebook.name}.html#claim-{claim['id'].lower()}" in there
    listed = {f"evidence-{claim['id'].lower()}" for part in CLAIMS.values() for claim in part}
    assert listed <= set(site[HTML / "book" / "evidence.html"].ids)


@pytest.mark.parametrize("chapter", CLAIMS)
def test_picture_code_evidence_and_exercises_are_two_clicks_away(site, chapter: str):
    front, opener = links(site, "book/index"), links(site, f"book/{chapter}/index")
    assert f"book/{chapter}/index.html" in front
    assert any(alt for alt in site[HTML / "book" / chapter / "index.html"].alts)
    for claim in CLAIMS[chapter]:
        assert f"book/evidence.html#evidence-{claim['id'].lower()}" in opener
    for notebook in notebooks(chapter):
        page = f"notebooks/{notebook.name}.html"
        assert {page, f"{page}#exercises", f"{page}#quiz"} <= opener
        assert any(link.startswith(f"{page}#break-it") for link in opener)


@pytest.mark.parametrize("chapter", CLAIMS)
def test_slides_of_a_chapter(site, chapter: str):
    deck = HTML / "slides" / f"{chapter}.html"
    assert f"slides/{chapter}.html" in links(site, f"book/{chapter}/index")
    there = links(site, f"slides/{chapter}")
    for notebook in notebooks(chapter):  # a title, something seen or measured, the three sentences
        page = f"notebooks/{notebook.name}.html"
        assert {page, f"{page}#what-you-saw"} < {link for link in there if link.startswith(page)}
    text = unescape(deck.read_text("utf-8"))
    for claim in [c for nb in notebooks(chapter) for cell in nb.claims.values() for c in cell]:
        assert f"<p>{claim['line']}</p>" in text


@pytest.mark.parametrize("notebook", notebooks(), ids=lambda notebook: notebook.name)
def test_figures_can_be_taken_away(site, notebook):
    found = list(pictures(notebook))
    there = links(site, "book/figures")
    alts = site[HTML / "notebooks" / f"{notebook.name}.html"].alts
    drawn = [alt for alt in alts if not alt.endswith(" logo")]  # of Colab and Binder, by the theme
    assert [picture.alt for picture in found] == drawn
    for picture in found:
        assert f"figures/{picture.name}.png" in there
        with Image.open(HTML / "figures" / f"{picture.name}.png") as file:
            assert file.text["Description"] == picture.alt
            assert "CC BY 4.0" in file.text["Copyright"]
            assert file.text["Source"].endswith(f"notebooks/{notebook.name}.html")
            drawn = Image.open(BytesIO(b64decode(picture.data))).convert("RGBA")
            left = (file.width - drawn.width) // 2
            same = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn)
            kept = file.crop((left, 0, left + drawn.width, drawn.height))
            assert (
                max(
                    high
                    for _, high in ImageChops.difference(kept, same.convert("RGB")).getextrema()
                )
                <= 1
            )
            below = file.crop((0, drawn.height, file.width, file.height))
            assert below.convert("L").getextrema()[0] < 150  # something is written there


def test_launch_buttons_open_the_notebook(site):
    repository = CONFIG["repository"]
    where, branch = urlsplit(repository["url"]).path, repository["branch"]
    for path in find_notebooks():
        notebook = path.relative_to(ROOT)
        links = site[HTML / notebook.with_suffix(".html")].links
        launched = {link for link in links if re.search(r"colab\.research|mybinder", link)}
        assert launched == {
            f"https://colab.research.google.com/github{where}/blob/{branch}/{notebook.as_posix()}",
            f"https://mybinder.org/v2/gh{where}/{branch}?urlpath=lab/tree/{notebook.as_posix()}",
        }


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def chromium(site) -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        message = f"no browser to test with: install one of {', '.join(BROWSERS)}"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with browser(path) as running:
        yield running


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def served() -> Iterator[str]:
    """The address of the book on a server of this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(HTML))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def holding(*markers: str) -> list[str]:
    """The pages whose article has one of these texts (none if the book is not built)."""
    files = {name: HTML / f"{name}.html" for name in PAGES}
    texts = {name: file.read_text("utf-8") for name, file in files.items() if file.is_file()}
    articles = {name: text.partition("<article")[2] for name, text in texts.items()}
    return [name for name, text in articles.items() if any(marker in text for marker in markers)]


DIALS, FOLDS = holding('class="mlguide-frames'), holding("<details>")

# What axe-core finds in the article: barriers for readers, faint text and pictures without a text
# among them. In the dark only colours can be new.
BARRIERS = """async dark => {
  const rules = {type: 'rule', values: ['color-contrast', 'link-in-text-block']};
  const options = {preload: false, resultTypes: ['violations'], ...(dark ? {runOnly: rules} : {})};
  const found = await axe.run('article', options);
  return found.violations.filter(v => ['serious', 'critical'].includes(v.impact))
    .flatMap(v => v.nodes.map(n => `${v.id}: ${n.html.slice(0, 200)}`));
}"""
# The pictures that a reader sees without turning a dial, as if the reader had come to all of them.
SEEN = """() => Promise.all([...document.images].filter(i => i.checkVisibility()).map(i => {
  i.loading = 'eager';
  return i.decode();
}))"""
ALL_LOADED = """[...document.images].every(
  i => i.naturalWidth || i.loading == "lazy" && i.closest("details:not([open])"))"""

# Links to the glossary that the build has made where it should not, or twice on a page.
MISPLACED = """() => {
  const links = [...document.querySelectorAll('article a.glossary-link')];
  const wrong = links.filter(a => a.closest('h1, h2, h3, pre, code, figure, .sd-card, .cell'));
  const twice = links.filter((a, i) => links.findIndex(b => b.href === a.href) < i);
  return [...wrong, ...twice].map(a => a.outerHTML);
}"""


@pytest.mark.parametrize("name", PAGES)
def test_page_from_its_file(chromium: Browser, name: str):
    with opened(chromium, name) as (page, faults):
        page.evaluate(AXE.read_text("utf-8"))
        for view in VIEWS:
            show(page, view)
            theme = page.evaluate("document.documentElement.dataset.theme")
            assert theme == ("dark" if view == "dark" else "light")
            wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, f"{view}: the page is {wide} pixels wider than the screen"
            if view != "narrow":
                assert page.evaluate(BARRIERS, view == "dark") == [], view
        show(page, "light")
        try_dials(page)
        page.wait_for_function(ALL_LOADED)
        try_folds(page)
        assert page.evaluate(MISPLACED) == []
        if name.startswith("notebooks/"):
            assert page.locator("article a.glossary-link").count() > 3
    assert faults == []


def weight(page: Page) -> int:
    """Bytes of a page and of what it loads, compressed, less _static, which all pages share."""
    loaded = page.evaluate("performance.getEntriesByType('resource').map(e => e.name)")
    paths = {urlsplit(address).path for address in [page.url, *loaded]}
    files = [HTML / unquote(path).lstrip("/") for path in paths if not path.startswith("/_static/")]
    return sum(len(gzip.compress(file.read_bytes())) for file in files)


@pytest.mark.parametrize("name", PAGES)
def test_page_from_a_server(chromium: Browser, served: str, name: str):
    with opened(chromium, name, site=served) as (page, faults):
        page.evaluate(SEEN)
        assert weight(page) < BUDGET
    assert faults == []


@pytest.mark.parametrize("name", [name for name in PAGES if name in DIALS + FOLDS])
def test_page_without_script(chromium: Browser, served: str, name: str):
    with opened(chromium, name, site=served, java_script_enabled=False) as (page, faults):
        try_dials(page)
        try_folds(page)
        assert page.evaluate(ALL_LOADED)
    assert faults == []


def test_the_book_has_dials_and_folds(site):
    assert DIALS and FOLDS


def visible_pictures(dial: Locator) -> list[int]:
    return [i for i, picture in enumerate(dial.locator("img").all()) if picture.is_visible()]


def try_dials(page: Page) -> None:
    for dial in page.locator(".mlguide-frames").all():
        count = dial.locator("input[type=radio]").count()
        assert count == dial.locator("img").count() > 1
        for i in range(count):
            dial.locator("label").nth(i).click()
            assert visible_pictures(dial) == [i]
        dial.locator("input").last.press("ArrowLeft")
        assert visible_pictures(dial) == [count - 2]
        dial.locator("input").nth(count - 2).press("ArrowRight")
        address = page.url
        dial.locator("input").last.press("Enter")
        assert visible_pictures(dial) == [count - 1] and page.url == address


def height(element: Locator) -> float:
    box = element.bounding_box()
    return box["height"] if box else 0


def try_folds(page: Page) -> None:
    for fold in page.locator("article details:not([class])").all():
        summary = fold.locator(":scope > summary")
        if not summary.is_visible():
            continue  # inside a fold that is closed
        closed = height(fold)
        summary.press("Enter")
        assert height(fold) > closed + 10
        summary.click()
        assert height(fold) == closed


@pytest.mark.parametrize("view", VIEWS)
def test_picture_of_the_four_ways_is_a_map(chromium: Browser, view: str):
    with opened(chromium, "book/index", java_script_enabled=False) as (page, _):
        page.set_viewport_size({"width": VIEWS[view][1], "height": VIEWS[view][2]})
        fields = page.locator(".four-ways a")
        assert fields.count() == 4
        if view == "narrow":  # one below another, as the picture's words would be too small
            assert not page.locator(".four-ways img").is_visible()
            boxes = [field.bounding_box() for field in fields.all()]
            assert all(box and box["width"] > 300 for box in boxes)
            assert all(low["y"] - high["y"] > 300 for high, low in pairwise(boxes) if high and low)
            shown = {f.evaluate("e => getComputedStyle(e).backgroundImage") for f in fields.all()}
            assert len(shown) == 4 and all("_ways_out.svg#svgView" in image for image in shown)
        else:
            for field, (right, low) in zip(
                fields.all(), [(0, 0), (1, 0), (0, 1), (1, 1)], strict=True
            ):
                field.focus()
                assert field.evaluate("e => e === document.activeElement")
                picture = page.locator(".four-ways img").bounding_box()
                box = field.bounding_box()
                assert picture and box and box["width"] > 0.4 * picture["width"]
                assert picture["x"] <= box["x"] and picture["y"] <= box["y"]
                assert box["x"] + box["width"] <= picture["x"] + picture["width"]
                assert box["y"] + box["height"] <= picture["y"] + picture["height"]
                assert (box["x"] > picture["x"] + picture["width"] / 2) == bool(right)
                assert (box["y"] > picture["y"] + picture["height"] / 2) == bool(low)
        fields.first.click()
        assert page.url.endswith("book/transfer_learning/index.html")


def test_summary_sheet_prints_on_two_sides(chromium: Browser):
    with opened(chromium, "book/summary_sheet") as (page, _):
        pdf = page.pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 2
    assert set(re.findall(rb"/MediaBox \[0 0 (\d+)", pdf)) == {b"594"}  # points: A4


@pytest.mark.parametrize("place", ["file", "server"])
def test_search_finds_each_chapter(chromium: Browser, served: str, place: str):
    site = served if place == "server" else HTML.as_uri()
    with opened(chromium, "search", site=site) as (page, faults):
        for chapter in CLAIMS:
            page.goto(f"{site}/search.html?q={chapter.replace('_', '+')}")
            found = f"#search-results a[href^='book/{chapter}/index.html']"
            page.locator(found).first.wait_for(timeout=10_000)
    # From a file Sphinx cannot read the pages that it found, and shows their titles only.
    assert place == "file" or faults == []


# What is drawn on paper though it is of use on a screen only, and dials that do not say where
# they stand.
ON_PAPER = """() => [
  ...[...document.querySelectorAll(`.bd-sidebar, .bd-header, .bd-header-article, .prev-next-area,
    .bd-footer, .copybtn, .headerlink, .skip-link, fieldset, dialog, button`)]
    .filter(e => e.checkVisibility({visibilityProperty: true, opacityProperty: true})),
  ...[...document.querySelectorAll('.mlguide-frames')].filter(
    dial => [...dial.querySelectorAll('figcaption')].filter(c => c.checkVisibility()).length !== 1)
].map(e => e.outerHTML.slice(0, 200))"""


@pytest.mark.parametrize("name", ["book/transfer_learning/index", *DIALS[:1]])
def test_print_is_clean(chromium: Browser, name: str):
    with opened(chromium, name) as (page, _):
        page.emulate_media(media="print")
        assert page.evaluate(ON_PAPER) == []


# What sticks out of the slide that is shown.
OUTSIDE = """() => {
  const page = document.querySelector('.slides').getBoundingClientRect();
  return [...Reveal.getCurrentSlide().querySelectorAll('*')].filter(element => {
    const box = element.getBoundingClientRect();
    return box.width && (box.bottom > page.bottom + 1 || box.right > page.right + 1);
  }).map(element => element.outerHTML.slice(0, 99));
}"""


@pytest.mark.parametrize("chapter", CLAIMS)
def test_slides_in_a_browser(chromium: Browser, chapter: str):
    size = {"width": 1280, "height": 720}
    with opened(chromium, f"slides/{chapter}", viewport=size) as (page, faults):
        page.wait_for_function("Reveal.isReady()")
        total, dials = page.evaluate("Reveal.getTotalSlides()"), 0
        assert total >= 12
        for number in range(total):
            while page.evaluate("Reveal.availableFragments().next"):
                page.keyboard.press("ArrowRight")
            assert page.evaluate("Reveal.getSlidePastCount()") == number
            assert page.evaluate(OUTSIDE) == []
            for dial in page.locator("section.present section.present .mlguide-frames").all():
                dial.locator("label").last.click()
                assert visible_pictures(dial) == [dial.locator("img").count() - 1]
                dials += 1
            page.keyboard.press("PageDown")  # also when a dial was turned
        assert page.evaluate("Reveal.isLastSlide()") and dials
    assert faults == []


@pytest.mark.parametrize("chapter", CLAIMS)
def test_slides_print_one_a_page(chromium: Browser, chapter: str):
    with opened(chromium, f"slides/{chapter}") as (page, _):
        total = page.evaluate("Reveal.getTotalSlides()")
        page.goto(f"{page.url.partition('#')[0]}?print-pdf")
        page.wait_for_selector(".pdf-page")
        pdf = page.pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == total
