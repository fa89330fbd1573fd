"""Try notebooks in Colab's shape: ``make test-colab``, or ``python scripts/colab.py notebook ...``.

An environment gets what Colab ships (``scripts/colab-versions.txt``) and nothing of ours.
A notebook is copied alone into an empty folder. Its hidden cell must then install mlguide, from a
wheel in place of the address, without a change to what was there; and the notebook must run.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from release import build_package, export

from notebooks import ROOT

SHIPPED = ROOT / "scripts" / "colab-versions.txt"
ENVIRONMENT = ROOT / ".venv-colab"
NOTEBOOK = ROOT / "notebooks" / "multi_task_learning" / "1_one_network_three_answers.ipynb"
DATE = 315_532_800  # 1980, the first that a wheel can hold
MOST_ADDED = 60_000_000  # bytes on disk: a reader waits for the download
# Colab's own names, by which a notebook, or a figure with sliders, knows that it is there.
PRETEND = "import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')"
SIGN = {"COLAB_RELEASE_TAG": "release-colab"}

# For the environment's own Python: name, version and size of every distribution.
LIST = """
import json
from importlib.metadata import distributions
print(json.dumps({d.name: [d.version, sum(f.locate().stat().st_size for f in d.files or []
                                          if f.locate().is_file())] for d in distributions()}))
"""
RUN = """
import sys, nbformat
from nbclient import NotebookClient
nb = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(nb, timeout=900, kernel_name="python3").execute()
nbformat.write(nb, sys.argv[1])
"""


def direct() -> set[str]:
    """What Colab ships of our own dependencies: the file's first part."""
    first = SHIPPED.read_text("utf-8").partition("# what these stand on")[0].splitlines()
    return {line.partition("==")[0] for line in first if not line.startswith("#")}


def python(*arguments: str, folder: Path = ROOT, environment: dict[str, str] | None = None) -> str:
    """Run the environment's Python, away from the modules here; returns what it prints."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(ENVIRONMENT / "bin" / "python"), "-P", *arguments]  # -P: not from here
    return subprocess.run(
        command, cwd=folder, env=clean | (environment or {}), check=True, text=True,
        stdout=subprocess.PIPE,
    ).stdout  # fmt: skip


def installed() -> dict[str, list]:
    """Version and bytes of every distribution in the environment."""
    return json.loads(python("-c", LIST))


def in_colab(notebook: Path, wheel: Path, folder: Path) -> tuple[Path, bool]:
    """Copy a notebook into a folder as Colab would open it; also whether it asks for an extra.

    The address of the package becomes that of the wheel, and a first cell pretends to be Colab.
    """
    nb = nbformat.read(notebook, as_version=4)
    cells = [cell for cell in nb.cells if "google.colab" in cell.source]
    if len(cells) != 1 or "git+https://" not in cells[0].source:
        raise ValueError(f"{notebook.name} has no install cell")
    cell = cells[0]
    cell.source = re.sub(r'git\+https://[^"]+', wheel.as_uri(), cell.source)
    for other in nb.cells:
        if other.cell_type == "code":
            other.outputs, other.execution_count = [], None
    nb.cells.insert(0, nbformat.v4.new_code_cell(PRETEND))
    nbformat.write(nb, path := folder / notebook.name)
    return path, "mlguide[" in cell.source


def try_out(notebook: Path, wheel: Path) -> list[str]:
    """Run one notebook in Colab's shape; returns what is wrong, and prints what was added."""
    before = installed()
    if "mlguide" in before:
        raise RuntimeError(f"an earlier run was cut off: delete {ENVIRONMENT}")
    with tempfile.TemporaryDirectory() as name:
        path, extra = in_colab(notebook, wheel, Path(name))
        try:
            python("-c", RUN, str(path), folder=Path(name), environment=SIGN)
        finally:
            after = installed()
            added = sorted(after.keys() - before.keys())
            python("-m", "pip", "uninstall", "-q", "-y", *added)
    changed = {
        one: f"{one} {old} -> {after.get(one, ['gone'])[0]}"
        for one, (old, _) in before.items()
        if after.get(one, [""])[0] != old
    }
    size = sum(after[one][1] for one in added)
    print(f"{notebook.stem}: adds {size / 1e6:.1f} MB on disk, {len(added)} packages:")
    print("  " + ", ".join(f"{one} {after[one][0]}" for one in added))
    # An extra brings the limits of others: it may change what it must, but none of ours.
    forbidden = changed.keys() & direct() if extra else changed.keys()
    wrong = [changed[one] for one in sorted(forbidden)]
    if not extra and size > MOST_ADDED:
        wrong.append(f"adds {size:,} bytes")
    if changed:
        (ENVIRONMENT / ".ready").unlink()  # no longer Colab's: make builds it again
    return [f"{notebook.stem}: {what}" for what in wrong]


def main() -> int:
    """Try the notebooks named on the command line, or one; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, default=[NOTEBOOK])
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, wheel = build_package(export(ROOT, folder / "tree"), folder / "out", DATE)
        for notebook in parser.parse_args().notebooks:
            wrong += try_out(notebook, wheel)
    print(*wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
