"""Sphinx extension: `{pace}` lists how long the notebooks of a chapter take to read and to run."""

import re
from typing import Any

from sphinx.application import Sphinx
from stored import Made, Notebook, notebooks


def minutes_to_read(notebook: Notebook) -> int:
    stated = re.search(r"about (\d+) minutes? to read", notebook.head)
    return int(stated[1]) if stated else 0


def row(what: str, minutes: int, run: str, bar: str = "") -> str:
    return f"| {what} | {minutes}\u00a0min | {run} | {bar} |\n"


class Pace(Made):
    def markdown(self, chapter: str) -> str:
        found = notebooks(chapter)
        if not found:
            return ""
        lines = [
            "| notebook | to read | to run | of three minutes |\n| --- | ---: | ---: | --- |\n"
        ]
        for notebook in found:
            bar = f'<span class="bar" style="--seconds: {notebook.seconds}"></span>'
            run = f"{notebook.seconds}\u00a0s"
            lines.append(row(notebook.link, minutes_to_read(notebook), run, bar))
        read, run = sum(map(minutes_to_read, found)), sum(notebook.seconds for notebook in found)
        return "".join(lines) + row("**together**", read, f"{round(run / 60)}\u00a0min")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("pace", Pace)
    return {"parallel_read_safe": True, "version": "1"}
