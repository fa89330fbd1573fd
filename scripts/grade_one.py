"""Grade one submission behind walls: ``python scripts/grade_one.py NOTEBOOK SOURCE [--trusted]``.

Prints the result as JSON.  What the student wrote runs in a kernel that sees the system and the
book's package, both read-only, and one empty folder of its own: no network, no other file.  The
walls are bubblewrap's (https://github.com/containers/bubblewrap), a small program of most Linux
systems.  The kernel is spoken to through a socket in the file system, so that it needs no network.
"""

import argparse
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from nbgrader.utils import compute_checksum, is_grade, is_solution

import mlguide

CELL_SECONDS = 120
CELLS = 3  # as many cells may take all of that time
MOST_BYTES = 1_000_000  # of output that is kept, and ten times that of a submission
MEMORY, FILE, PROCESSES = 8 << 30, 100 << 20, 128
NO_WALLS = (
    "bubblewrap is needed to run a stranger's code behind walls (Debian, Ubuntu: apt "
    "install bubblewrap). For notebooks that you trust: make grade TRUSTED=1"
)
# What an honest answer has no use for; said to the teacher, who may have a look.
ODD = ("get_ipython", "_getframe", "settrace", "setprofile", "ctypes", "ipykernel", "linecache",
       "currentframe", "gc.get_", "__builtins__", "builtins")  # fmt: skip
# Run before each graded cell, and each must fail: if one passes, the tests have been disarmed.
CANARIES = tuple(f"### BEGIN HIDDEN TESTS\n{test}\n### END HIDDEN TESTS" for test in (
    "import math, torch\nassert torch.equal(torch.zeros(2), torch.ones(2)) or isinstance(0.0, str)"
    " or torch.allclose(torch.zeros(2), torch.ones(2)) or math.isclose(0.0, 1.0)",
    "import torch\ntorch.testing.assert_close(torch.zeros(2), torch.ones(2))",
))  # fmt: skip


def walls(work: Path, sockets: Path) -> list[str]:
    """The command that runs what follows it with only ``work`` and ``sockets`` to write to.

    Raises:
        FileNotFoundError: if bubblewrap is not installed.
    """
    if not shutil.which("bwrap"):
        raise FileNotFoundError(NO_WALLS)
    system = ["/usr", "/etc/ld.so.cache", "/etc/alternatives", "/etc/fonts", "/etc/localtime"]
    python = [p for p in {sys.prefix, sys.base_prefix} if not p.startswith("/usr/")]
    package = Path(mlguide.__file__).parent
    # Processes are counted for each user but root: inside, root becomes a user nobody else is.
    alone, stranger = ["--unshare-user", "--cap-drop", "ALL"], []
    if os.geteuid() == 0:
        user = 1_000_000 + secrets.randbelow(1_000_000_000)
        alone, stranger = [], ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups",
                               "--bounding-set=-all", "--no-new-privs"]  # fmt: skip
        for path in (work, sockets, *sockets.iterdir()):
            os.chown(path, user, user)
    return [
        "bwrap", *alone, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts",
        "--unshare-cgroup-try", "--die-with-parent", "--new-session", "--clearenv",
        "--tmpfs", "/tmp",
        *(part for path in [*system, *python, work, "/book/mlguide"]
          for parent in [*Path(path).parents][-2::-1]
          for part in ("--perms", "0755", "--dir", str(parent))),
        *(part for path in system + python for part in ("--ro-bind-try", path, path)),
        *(part for name in ("bin", "sbin", "lib", "lib64")
          for part in ("--symlink", f"usr/{name}", f"/{name}")),
        "--proc", "/proc", "--dev", "/dev",
        "--ro-bind", str(package), "/book/mlguide",
        "--bind", str(work), str(work), "--bind", str(sockets), str(sockets),
        *(part for name, value in {
            "PATH": os.defpath, "HOME": str(work), "USER": "student", "LANG": "C.UTF-8",
            "PYTHONPATH": "/book", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1",
        }.items() for part in ("--setenv", name, value)),
        "--chdir", str(work), *stranger,
        "prlimit", f"--as={MEMORY}", f"--fsize={FILE}", f"--nproc={PROCESSES}", "--core=0",
    ]  # fmt: skip


def restored(submission: NotebookNode, source: NotebookNode) -> tuple[NotebookNode, list[str]]:
    """The source notebook with the student's answers in it, and what the student had changed.

    Cells that a student added stay behind the cell that they followed.  All others are the
    teacher's, whatever the submission did to them.
    """
    ours = {c.metadata.nbgrader.grade_id for c in source.cells if "nbgrader" in c.metadata}
    theirs: dict[str, NotebookNode] = {}
    added: dict[str, list[NotebookNode]] = {}
    last = ""
    for cell in submission.cells:
        found = cell.metadata.get("nbgrader", {}).get("grade_id", "")
        if found in ours and found not in theirs:
            theirs[found] = cell
            last = found
        elif cell.cell_type == "code":
            added.setdefault(last, []).append(nbformat.v4.new_code_cell(cell.source))
    notebook = nbformat.v4.new_notebook(cells=list(added.get("", [])))
    notes: list[str] = []
    for cell in source.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id", "")
        cell = nbformat.from_dict(cell)
        if name and name not in theirs:
            notes.append(f"the cell {name!r} was missing; it was put back")
        if is_solution(cell):
            answer = theirs.get(name, nbformat.v4.new_code_cell())
            cell.source = answer.source
            handed_out = answer.metadata.get("nbgrader", {}).get("checksum")
            cell.metadata["unanswered"] = handed_out == compute_checksum(cell) or not answer.source
        notebook.cells += [cell, *(added.get(name, []) if name else [])]
    return notebook, notes


def changed(submission: NotebookNode) -> list[str]:
    """Locked cells that are no longer as they were handed out, by the checksum they carry."""
    locked = [c for c in submission.cells if c.metadata.get("nbgrader", {}).get("checksum")]
    return [
        f"the locked cell {cell.metadata.nbgrader['grade_id']!r} had been changed; restored"
        for cell in locked
        if not is_solution(cell) and compute_checksum(cell) != cell.metadata.nbgrader["checksum"]
    ]


class Graded(NotebookClient):
    """A notebook that is run to its end, whatever its cells do."""

    def __init__(
        self, notebook: NotebookNode, kernel: AsyncKernelManager, cwd: Path, seconds: int
    ) -> None:
        super().__init__(
            notebook, kernel, allow_errors=True, interrupt_on_timeout=True, record_timing=False,
            error_on_timeout={"ename": "Timeout", "evalue": "took too long", "traceback": []},
            timeout_func=self.seconds_left, on_cell_executed=self.keep_outcome,
            shell_timeout_interval=1, iopub_timeout=20, raise_on_iopub_timeout=False,
            shutdown_kernel="immediate", resources={"metadata": {"path": str(cwd)}},
        )  # fmt: skip
        self.cell_seconds = seconds
        self.end = time.monotonic() + CELLS * seconds
        self.output_bytes = 0

    def seconds_left(self, cell: NotebookNode) -> int:
        return max(1, min(self.cell_seconds, round(self.end - time.monotonic())))

    def keep_outcome(self, cell: NotebookNode, execute_reply: Any, **_: Any) -> None:
        """The kernel's reply counts, not what a cell chose to show."""
        reply = execute_reply["content"]
        cell.metadata["outcome"] = [reply.get("ename", reply["status"]), reply.get("evalue", "")]

    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> Any:
        if msg["msg_type"] in ("stream", "display_data", "execute_result", "error"):
            self.output_bytes += len(json.dumps(msg["content"]))
            if self.output_bytes > MOST_BYTES:
                return None
        return super().process_message(msg, cell, cell_index)

    def run(self) -> list[str]:
        """Execute all cells; returns notes on what went wrong as a whole."""
        notes: list[str] = []
        code = [(i, c) for i, c in enumerate(self.nb.cells) if c.cell_type == "code"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with self.setup_kernel(cleanup_kc=True, **quiet):
            for index, cell in code:
                try:
                    if time.monotonic() > self.end:
                        raise TimeoutError(f"all of {CELLS * self.cell_seconds} s were used up")
                    self.execute_cell(cell, index)
                except (DeadKernelError, TimeoutError) as error:
                    start = cell.source.strip()[:40]
                    notes.append(f"stopped in the cell beginning {start!r}: {error}")
                    break
        if self.output_bytes > MOST_BYTES:
            notes.append(f"printed more than {MOST_BYTES:,} bytes; the rest was thrown away")
        return notes


def grade(
    submission: Path, source: Path, *, trusted: bool = False, seconds: int = CELL_SECONDS
) -> dict[str, Any]:
    """Run a submission against its source and say what each graded cell is worth.

    Args:
        submission, source: the student's notebook, and the one with solutions and hidden tests.
        trusted: run it without walls.
        seconds: what one cell may take; all of them together may take three times that.

    Returns:
        ``scores``: for each graded cell its name, exercise, points (None: by hand), ``out_of``,
        message and whether it failed in a hidden test; ``answers``: the written ones; ``notes``.

    Raises:
        FileNotFoundError: without bubblewrap, unless ``trusted``.
        ValueError: if the submission is too large or is no notebook.
    """
    if submission.stat().st_size > 10 * MOST_BYTES:
        raise ValueError(f"the file has more than {10 * MOST_BYTES:,} bytes")
    try:
        theirs = nbformat.read(submission, as_version=4)
        nbformat.validate(theirs)
    except Exception as error:
        raise ValueError(f"the file is not a notebook: {str(error)[:200]}") from None
    for cell in theirs.cells:  # Windows' line ends are no change
        cell.source = cell.source.replace("\r\n", "\n")
    notes = changed(theirs)
    notebook, missing = restored(theirs, nbformat.read(source, as_version=4))
    with_canaries(notebook)
    with tempfile.TemporaryDirectory() as folder:
        work, sockets, spec = (Path(folder, name) for name in ("work", "run", "kernels/graded"))
        for path in (work, sockets, spec):
            path.mkdir(parents=True)
        manager = AsyncKernelManager(
            kernel_name="graded", transport="ipc", connection_file=str(sockets / "kernel.json"),
            kernel_spec_manager=KernelSpecManager(
                kernel_dirs=[str(spec.parent)], ensure_native_kernel=False
            ),
        )  # fmt: skip
        manager.write_connection_file()
        command = [] if trusted else walls(work, sockets)
        command += [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        kernel = {
            "argv": command,
            "display_name": "graded",
            "language": "python",
            "interrupt_mode": "message",
        }
        Path(spec, "kernel.json").write_text(json.dumps(kernel), "utf-8")
        notes += missing + Graded(notebook, manager, work, seconds).run()
    notes += stopped_by_themselves(notebook)
    answers = "\n".join(cell.source for cell in notebook.cells if is_solution(cell))
    answers += "\n".join(c.source for c in theirs.cells if "nbgrader" not in c.metadata)
    if odd := [name for name in ODD if name in answers]:
        notes.append(f"for the teacher to look at: the answers speak of {', '.join(odd)}")
    return {**scores(notebook, notes), "notes": notes}


def with_canaries(notebook: NotebookNode) -> None:
    """Put the canaries before each cell that is graded by its tests."""
    cells: list[NotebookNode] = []
    for cell in notebook.cells:
        if is_grade(cell) and not is_solution(cell):
            cells += [nbformat.v4.new_code_cell(text) for text in CANARIES]
        cells.append(cell)
    notebook.cells = cells


def stopped_by_themselves(notebook: NotebookNode) -> list[str]:
    """A line for each of the student's own cells that ended in an error."""
    return [
        f"the cell beginning {cell.source.strip()[:40]!r} ended in {kind}: "
        + unsecret(value[:200], notebook)
        for cell in notebook.cells
        if not is_grade(cell) and cell.metadata.get("unanswered") is not True
        for kind, value in [cell.metadata.get("outcome", ("ok", ""))]
        if kind != "ok" and cell.source not in CANARIES
    ]


def scores(notebook: NotebookNode, notes: list[str]) -> dict[str, Any]:
    """What each graded cell of an executed notebook is worth, and the written answers."""
    exercise, found, answers = "", [], {}
    canaries = [cell for cell in notebook.cells if cell.source in CANARIES]
    disarmed = any(cell.metadata.get("outcome", [""])[0] == "ok" for cell in canaries)
    if disarmed:
        notes.append("tests that must fail did not: the submission had disarmed them; no points")
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            exercise = cell.source.splitlines()[0].removeprefix("## ")
        if not is_grade(cell):
            continue
        name, out_of = cell.metadata.nbgrader["grade_id"], cell.metadata.nbgrader["points"]
        kind, value = cell.metadata.get("outcome", ("not run", ""))
        score = {"cell": name, "exercise": exercise, "out_of": out_of, "message": ""}
        if is_solution(cell):
            answers[name] = cell.source
            score["points"] = 0 if cell.metadata["unanswered"] else None
        else:
            score["points"] = out_of if kind == "ok" and not disarmed else 0
            message = value if kind == "AssertionError" else f"{kind}: {value}".strip(": ")
            score["message"] = "" if kind == "ok" else unsecret(message[:500], notebook)
            score["hidden"] = line_of_failure(cell) > first_hidden_line(cell)
        found.append(score)
    return {"scores": found, "answers": answers}


def unsecret(message: str, notebook: NotebookNode) -> str:
    """The message, unless an answer has made it show the code of a hidden test."""
    hidden = "\n".join(
        text
        for cell in notebook.cells
        for text in re.findall(r"BEGIN HIDDEN TESTS\n(.*?)\n### END", cell.source, re.S)
    )
    lines = [line.strip() for line in hidden.splitlines() if len(line.strip()) > 12]
    shown = any(line in message for line in lines)
    return "the message is not shown: it held the code of a hidden test" if shown else message


def line_of_failure(cell: NotebookNode) -> int:
    """The line of the cell in which it failed, 0 if it did not or none was told."""
    traces = ["\n".join(o.traceback) for o in cell.outputs if o.output_type == "error"]
    found = re.search(
        r"Cell In\[\d+\], line (\d+)", re.sub(r"\x1b\[[\d;]*m", "", *traces[:1] or [""])
    )
    return int(found[1]) if found else 0


def first_hidden_line(cell: NotebookNode) -> int:
    lines = cell.source.splitlines()
    return next((n for n, line in enumerate(lines, 1) if "BEGIN HIDDEN TESTS" in line), len(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("--trusted", action="store_true", help="run it without walls")
    parser.add_argument("--seconds", type=int, default=CELL_SECONDS, help="what one cell may take")
    args = parser.parse_args()
    try:
        result = grade(args.notebook, args.source, trusted=args.trusted, seconds=args.seconds)
        print(json.dumps(result))
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
