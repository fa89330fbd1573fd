"""Sphinx extension: `{pace}` lists how long the notebooks of a chapter take to read and to run."""

import re
from typing import Any

from sphinx.application import Sphinx
from stored import Made, Notebook, notebooks


def minutes_to_read(notebook: Notebook) -> int:
    stated = re.search(r"about (\d+) minutes? to read", notebook.head)
    return int(stated[1]) if stated else 0


def row(what: str, minutes: int, seconds: int, bar: str = "") -> str:
    run = f"{seconds} s" if bar else f"{round(seconds / 60)} min"
    return f"| {what} | {minutes} min | {run} {bar} |\n"


class Pace(Made):
    def markdown(self, chapter: str) -> str:
        found = notebooks(chapter)
        if not found:
            return ""
        lines = ["| notebook | to read | to run |\n| --- | ---: | :--- |\n"]
        for notebook in found:
            bar = f'<span class="bar" style="--seconds: {notebook.seconds}"></span>'
            lines.append(row(notebook.link, minutes_to_read(notebook), notebook.seconds, bar))
        total = sum(map(minutes_to_read, found)), sum(notebook.seconds for notebook in found)
        return "".join(lines) + row("**together**", *total)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("pace", Pace)
    return {"parallel_read_safe": True, "version": "1"}
