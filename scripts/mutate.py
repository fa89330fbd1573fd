"""Plant faults in ``mlguide`` and see how many its tests catch: ``make mutate``.

Cosmic Ray knows where a fault can be and what it looks like. The places are drawn with a fixed
seed (``make mutate SEED=1`` draws others), from each module in proportion to how many it has. Each
fault goes into a copy of the tree, and all test files run that can reach its module, until one
fails. No faults are planted in annotations and ``raise`` statements, nor (a filter by operator, as
Cosmic Ray has one) into the numbers of the modules that only draw: whether a line is a point wider
is a matter of taste.
"""

import ast
import difflib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parent.parent
FAULTS, LEAST = 60, 2  # in all, in each module
SEED = int(os.environ.get("SEED", "0"))
DRAWING = {"mlguide.drawing", "mlguide.figures", "mlguide.look"}
OTHER = {"tests/test_pages.py", "tests/test_project.py"}  # tests of the book and of the project
COPIED = ["book", "mlguide", "notebooks", "scripts", "tests"]
SECONDS = 1800  # for the tests of one fault; pyproject.toml gives each test fewer

Position = tuple[int, int]


class Fault(NamedTuple):
    """A change of one place in a module."""

    file: Path
    line: int
    operator: str
    code: str  # of the whole module


def dotted(file: Path) -> str:
    """The name that imports a file."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(file: Path) -> set[str]:
    """All that a file imports: modules, and names in them, which may be modules as well."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def tests_by_module(modules: dict[str, Path]) -> dict[str, list[str]]:
    """For each module the test files that can reach it, the likeliest to catch a fault first."""
    uses = {name: imported(file) for name, file in modules.items()}
    tests = {f"tests/{file.name}": imported(file) for file in ROOT.glob("tests/test_*.py")}
    result: dict[str, list[str]] = {}
    for module in modules:
        reach, size = {module}, 0
        while len(reach) > size:
            size = len(reach)
            reach |= {name for name in modules if uses[name] & reach}
        parts = module.split(".")[1:]
        own = {f"tests/test_{name}.py" for name in (*parts, "_".join(parts))}
        found = [file for file in tests.keys() - OTHER if tests[file] & reach]
        result[module] = sorted(
            found, key=lambda file: (file not in own, module not in tests[file], file)
        )
    return result


def left_alone(code: str) -> Iterator[tuple[Position, Position]]:
    """From where to where the annotations and the ``raise`` statements go."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node = node.annotation
        elif isinstance(node, ast.FunctionDef):
            node = node.returns
        elif not isinstance(node, ast.Raise):
            continue
        if node:
            yield (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)


def places(file: Path) -> dict[tuple[Position, Position], list[tuple[str, int]]]:
    """For each place of a file that can be changed the operators, with which of their changes."""
    code = file.read_text("utf-8")
    skipped, nodes = list(left_alone(code)), list(ast_nodes(get_ast(code)))
    found: dict[tuple[Position, Position], list[tuple[str, int]]] = defaultdict(list)
    for name in sorted(operator_names()):
        number = name == "core/NumberReplacer" and dotted(file) in DRAWING
        if number or get_operator(name).arguments():  # the latter are names of variables
            continue
        operator = get_operator(name)()
        positions = (place for node in nodes for place in operator.mutation_positions(node))
        for index, (start, end) in enumerate(positions):
            if not any(first <= start and end <= last for first, last in skipped):
                found[start, end].append((name, index))
    return found


def draw_faults(modules: Iterable[Path]) -> Iterator[Fault]:
    """Faults at places of their own; what is no Python or changes nothing is drawn again."""
    chance = random.Random(SEED)
    found = {file: places(file) for file in modules}
    total = sum(map(len, found.values()))
    for file, operators in found.items():
        code = file.read_text("utf-8")
        wanted = min(len(operators), max(LEAST, round(FAULTS * len(operators) / total)))
        for place in chance.sample(sorted(operators), len(operators)):
            if not wanted:
                break
            name, index = chance.choice(operators[place])
            changed = mutate_code(code, get_operator(name)(), index)
            try:
                same = ast.dump(ast.parse(changed)) == ast.dump(ast.parse(code))
            except SyntaxError:
                continue
            if not same:
                wanted -= 1
                yield Fault(file, place[0][0], name.removeprefix("core/"), changed)


def verdict(tests: list[str], fault: Fault | None = None) -> str:
    """What the first failing test says of a tree with this fault, empty when all pass."""
    with tempfile.TemporaryDirectory(prefix="mutate-") as name:
        copy = Path(name)
        for part in COPIED:
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("conftest.py", "pyproject.toml"):
            shutil.copy(ROOT / part, copy)
        if fault:
            (copy / fault.file.relative_to(ROOT)).write_text(fault.code, "utf-8")
        # The likeliest file alone: to collect them all takes longer than most faults live.
        return run(tests[:1], copy) or run(tests[1:], copy)


def run(tests: list[str], folder: Path) -> str:
    """What the first failing test of these files says, empty when all pass or there is no file."""
    if not tests:
        return ""
    process = subprocess.Popen(
        [ROOT / ".venv/bin/pytest", "-x", "-q", *tests],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "CI": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output = process.communicate(timeout=SECONDS)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output = f"no end\n{process.communicate()[0]}"
    said = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return "" if process.returncode == 0 else (said or output.splitlines())[0]


def diff(fault: Fault) -> str:
    """The change as a diff of its module."""
    before, after = fault.file.read_text("utf-8").splitlines(), fault.code.splitlines()
    name = fault.file.relative_to(ROOT).as_posix()
    return "\n".join(difflib.unified_diff(before, after, name, name, lineterm=""))


def main() -> None:
    """Plant the faults of the modules named on the command line, or of all."""
    modules = {dotted(file): file for file in sorted(ROOT.glob("mlguide/**/*.py"))}
    tests = tests_by_module(modules)
    wanted = sys.argv[1:]
    faults = list(draw_faults(modules.values()))
    faults = [fault for fault in faults if not wanted or dotted(fault.file) in wanted]
    needed = {file for fault in faults for file in tests[dotted(fault.file)]}
    if failure := verdict(sorted(needed)):
        sys.exit(f"Without any fault: {failure}")
    survivors: list[Fault] = []
    planted, caught = Counter[str](), Counter[str]()
    for fault in faults:
        module = dotted(fault.file)
        said = verdict(tests[module], fault)
        planted[module] += 1
        caught[module] += bool(said)
        print(f"{module}:{fault.line} {fault.operator}: {said[:150] or 'SURVIVES'}", flush=True)
        if not said:
            survivors.append(fault)
    print()
    for module, number in planted.items():
        print(f"{caught[module]:3d} of {number:2d}  {module}")
    print(f"\n{caught.total()} of {planted.total()} caught, {caught.total() / planted.total():.1%}")
    for fault in survivors:
        print(f"\n{diff(fault)}")


if __name__ == "__main__":
    main()
