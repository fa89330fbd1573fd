"""Make the student versions: ``python scripts/assignments.py`` writes ``assignments/release``.

A student version is the source without its solutions, hidden tests and outputs, its tests locked.
nbgrader makes it, in a course of its own in a folder that is thrown away.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from nbgrader.apps import NbGraderAPI
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "assignments" / "source"
RELEASE = ROOT / "assignments" / "release"


def sources() -> dict[str, Path]:
    """The source notebook of each assignment, by its name."""
    return {path.stem: path for path in sorted(SOURCE.glob("*/*.ipynb"))}


def make_release(name: str, release: Path = RELEASE) -> Path:
    """Write the student version of one assignment; returns where it is.

    Raises:
        RuntimeError: if nbgrader refuses the source.
    """
    # nbgrader calls alembic by its bare name
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with tempfile.TemporaryDirectory() as course:
        shutil.copytree(SOURCE / name, Path(course, "source", name))
        config = Config()
        config.CourseDirectory.root = course
        config.CourseDirectory.course_id = "mlguide"
        made = NbGraderAPI(config=config).generate_assignment(name)
        if not made["success"]:
            raise RuntimeError(f"nbgrader refuses {name}:\n{made['error'] or made['log']}")
        shutil.copytree(Path(course, "release", name), release / name, dirs_exist_ok=True)
    return release / name / f"{name}.ipynb"


def main() -> int:
    for name in sources():
        print(make_release(name).relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
