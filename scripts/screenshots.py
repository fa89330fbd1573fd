"""Picture every page of the built book, light, dark and narrow, to look at: `make screenshots`.

The pictures go to ``_build/screenshots``; how soon a page shows something is printed beside its
name. The tests of the site open their pages in the same way.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from playwright.sync_api import Browser, Page, Route, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
VIEWS = {  # colour scheme, width and height in pixels
    "light": ("light", 1280, 900),
    "dark": ("dark", 1280, 900),
    "narrow": ("light", 390, 844),
}
# Those of a dial wait until a reader comes near them, which no screenshot does.
ALL_PICTURES = """Promise.all(Array.from(document.images, image => {
  image.loading = 'eager';
  return image.decode();
}))"""


def pages() -> list[str]:
    """The pages of the book in reading order, named as in ``_toc.yml``."""

    def files(entry: dict) -> Iterator[str]:
        if "file" in entry:
            yield entry["file"]
        for part in ("parts", "chapters", "sections"):
            for inner in entry.get(part, []):
                yield from files(inner)

    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    return [toc["root"], *files(toc)]


def find_browser() -> str | None:
    """Path of an installed Chromium or Chrome, if there is one."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def browser(path: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]  # as root, and on a machine without a screen
        running = playwright.chromium.launch(executable_path=path, args=options)
        yield running
        running.close()


@contextmanager
def opened(
    running: Browser, name: str, *, site: str = HTML.as_uri(), **context: object
) -> Iterator[tuple[Page, list[str]]]:
    """A page of the book at this address, its files if none is given; no request may leave it.

    Yields the page and a list of what goes wrong in it: requests that would have left the book,
    and errors on the console.
    """
    faults: list[str] = []

    def refuse(route: Route) -> None:
        faults.append(f"asks for {route.request.url}")
        route.abort()

    def note(text: str) -> None:
        if "THEBE_JS_URL" not in text:  # sphinx-thebe defines it twice, which does no harm
            faults.append(f"console: {text}")

    session = running.new_context(reduced_motion="reduce", **context)
    session.route(lambda url: not url.startswith((f"{site}/", "data:", "blob:")), refuse)
    page = session.new_page()
    page.on("pageerror", lambda error: note(str(error)))
    page.on("console", lambda message: note(message.text) if message.type == "error" else None)
    page.goto(f"{site}/{name}.html", wait_until="load")
    yield page, faults
    session.close()


def show(page: Page, view: str) -> None:
    """Turn an open page to one of the views, and wait until it has settled."""
    scheme, width, height = VIEWS[view]
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": height})
    page.evaluate("window.MathJax?.startup?.promise")
    page.wait_for_timeout(600)  # the theme fades from one scheme to the other


def main() -> int:
    path = find_browser()
    if path is None:
        print(f"needs a browser, one of {', '.join(BROWSERS)}", file=sys.stderr)
        return 1
    folder = HTML.parent / "screenshots"
    folder.mkdir(exist_ok=True)
    with browser(path) as running:
        for name in pages():
            with opened(running, name) as (page, _):
                paint = page.evaluate("performance.getEntriesByName('first-paint')[0].startTime")
                page.evaluate(ALL_PICTURES)
                for view in VIEWS:
                    show(page, view)
                    file = folder / f"{name.replace('/', '-')}-{view}.png"
                    page.screenshot(path=file, full_page=True)
            print(f"{name}: first paint after {paint:.0f} ms", flush=True)
    print(f"The pictures are in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
