"""Re-execute notebooks in place: ``python scripts/notebooks.py refresh [notebook or folder ...]``.

A second run leaves every file as it was.  Nothing that changes from run to run is written (time
stamps, random widget ids), and while the code is the same, times that were stored stay.  The
notebook is stamped with a hash of the code that it depends on and with its run time, so that a
test can tell when it must run again.
"""

import argparse
import ast
import copy
import hashlib
import importlib.util
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbformat import NotebookNode
from notebook_comparison import difference

ROOT = Path(__file__).resolve().parent.parent
CELL_TIMEOUT = 600  # seconds


def find_notebooks(paths: Iterable[Path] = (ROOT / "notebooks",)) -> list[Path]:
    """The notebooks among ``paths`` and in the folders among them, sorted."""
    found = (
        file
        for path in paths
        for file in ([path] if path.suffix == ".ipynb" else path.rglob("*.ipynb"))
    )
    return sorted(file for file in found if ".ipynb_checkpoints" not in file.parts)


def _imports(source: str, parent: str) -> set[str]:
    """Dotted names that Python source imports anywhere; ``parent`` is the package it stands in."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(base, parent) if node.level else base
            names.update([base, *(f"{base}.{alias.name}" for alias in node.names)])
    # import a.b.c runs a and a.b as well
    return {name.rsplit(".", n)[0] for name in names for n in range(name.count(".") + 1)}


def _modules(cells: list[str], package: Path) -> dict[str, str]:
    """Sources of the modules of ``package`` that the cells import, directly or through others."""
    plain = TransformerManager().transform_cell  # turns %magic and !command into Python
    waiting = {name for cell in cells for name in _imports(plain(cell), "")}
    found: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        stem = package.parent.joinpath(*name.split("."))
        for file, parent in ((stem.with_suffix(".py"), name.rpartition(".")[0]),
                             (stem / "__init__.py", name)):  # fmt: skip
            if name.split(".")[0] == package.name and name not in found and file.is_file():
                found[name] = file.read_text("utf-8")
                waiting |= _imports(found[name], parent)
    return found


def code_stamp(nb: NotebookNode, package: Path = ROOT / "mlguide") -> str:
    """Hash of all that decides the outputs: the cells, the modules they reach, the bundled data.

    Comment lines, blank lines and the kind of line ends do not count.
    """
    cells = [cell.source for cell in nb.cells if cell.cell_type == "code"]
    sources = cells + [text for _, text in sorted(_modules(cells, package).items())]
    sources += [file.read_text("utf-8") for file in sorted(package.rglob("SHA256SUMS"))]
    digest = hashlib.sha256()
    for source in sources:
        lines = (line.rstrip() for line in source.splitlines())
        lines = (line for line in lines if line and not line.lstrip().startswith("#"))
        digest.update(("\n".join(lines) + "\0").encode())
    return digest.hexdigest()[:16]


def _stable_widget_ids(nb: NotebookNode) -> NotebookNode:
    """Number the widgets, whose ids are drawn at random, in the order they were made."""
    state = nb.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    text = nbformat.writes(nb)
    for number, old in enumerate(state.get("state", {})):
        text = text.replace(old, f"{number:032x}")
    return nbformat.reads(text, as_version=4)


def _fields(output: NotebookNode) -> dict:
    return {output.name: output.text} if output.output_type == "stream" else output.data


def _keep_equal(stored: NotebookNode, cell: NotebookNode) -> None:
    """Put stored values back into a cell whose outputs are equal, for the sake of the times.

    New pictures are taken, unless the tag ``times`` says that the cell draws times.
    """
    old_new = [(_fields(a), _fields(b)) for a, b in zip(stored.outputs, cell.outputs, strict=False)]
    if len(stored.outputs) != len(cell.outputs) or any(
        old.keys() != new.keys() or any(difference(old[key], new[key]) for key in new)
        for old, new in old_new
    ):
        return
    for (old, _), output in zip(old_new, cell.outputs, strict=True):
        if output.output_type == "stream":
            output.text = old[output.name]
            continue
        for key, value in output.data.items():
            picture = key.startswith("image/") or "data:image/" in value
            if not picture or "times" in cell.metadata.get("tags", []):
                output.data[key] = old[key]


def refresh(path: Path, package: Path = ROOT / "mlguide") -> float:
    """Re-execute one notebook in place and stamp it; returns the seconds it ran.

    Raises:
        CellControlSignal, DeadKernelError, SyntaxError: if a cell fails, takes too long, ends the
            kernel or cannot be read; the file is then left as it was.
    """
    nb = nbformat.read(path, as_version=4)
    stored = copy.deepcopy(nb)
    code = code_stamp(nb, package)  # before the run, so that an edit meanwhile is noticed
    nb.metadata.pop("widgets", None)
    began = time.perf_counter()
    NotebookClient(
        nb, timeout=CELL_TIMEOUT, kernel_name="python3", record_timing=False,
        store_widget_state=True, coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--log-level=ERROR"],
    ).execute()  # fmt: skip
    seconds = time.perf_counter() - began
    nb.metadata["language_info"] = {"name": "python"}  # without the version of this Python
    nb = _stable_widget_ids(nb)

    stamp = dict(stored.metadata.get("mlguide", {}))
    if stamp.get("code") == code:
        for old, cell in zip(stored.cells, nb.cells, strict=True):
            if cell.cell_type == "code":
                _keep_equal(old, cell)
    if stamp.get("code") != code or abs(seconds - stamp["seconds"]) > max(5, stamp["seconds"] / 2):
        stamp = {"code": code, "seconds": max(1, round(seconds))}
    nb.metadata["mlguide"] = stamp

    part = path.with_name(path.name + ".part")
    nbformat.write(nb, part)
    os.replace(part, path)
    return seconds


def main() -> int:
    """Refresh the notebooks named on the command line, or all; 1 if any of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, usage="%(prog)s refresh [path ...]")
    parser.add_argument("command", choices=["refresh"])
    parser.add_argument(
        "paths", nargs="*", type=Path, default=[ROOT / "notebooks", ROOT / "assignments" / "source"]
    )
    paths = find_notebooks(parser.parse_args().paths)
    failed = not paths
    if failed:
        print("no notebook found", file=sys.stderr)
    for path in paths:
        print(path, end=" ", flush=True)
        try:
            print(f"{refresh(path):.0f} s", flush=True)
        except (CellControlSignal, DeadKernelError, SyntaxError) as error:
            print(f"failed, file left as it was\n{error}", file=sys.stderr, flush=True)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
