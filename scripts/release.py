"""Cut a release: ``make release`` checks that it may be cut, builds it and proves the wheel.

``_build/release`` then holds the source archive, the wheel, the built book as an archive, and the
checksums of the three. Two runs on one commit give the same bytes: every date is the commit's.
"""

import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
from collections.abc import Mapping
from pathlib import Path

import nbformat
import yaml

from notebooks import code_stamp, find_notebooks

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
OUT = ROOT / "_build" / "release"
MOST_BYTES = 25_000_000  # of what pip downloads
SUMS = "SHA256SUMS"

# The two calls that a frontend makes, with the setuptools that constraints.txt pins.
BUILD = "import sys; from setuptools import build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"

# Run in an environment that has the wheel and nothing of the repository.
PROOF = """
import importlib, pkgutil, sys
from importlib.metadata import version
from pathlib import Path
import mlguide

home = Path(mlguide.__file__).parent
assert home.is_relative_to(sys.prefix), f"mlguide comes from {home}"
assert version("mlguide") == sys.argv[1], f"the wheel says {version('mlguide')}"
for module in pkgutil.walk_packages(mlguide.__path__, "mlguide."):
    if not module.name.startswith("mlguide.federated.flower"):  # an extra
        importlib.import_module(module.name)

from mlguide import data, models
for load in (data.wardrobe, data.mnist_digits, data.written_digits, data.photographs,
             data.shakespeare, models.load_language_model):
    load()
bases = sorted({file.stem for file in models.BASES.glob("*.safetensors")} - {"language"})
assert bases
for base in bases:
    models.load_base(base, 0)
for folder in data.FOLDER.iterdir():
    assert (folder / "LICENSE").is_file(), folder
print(f"the wheel works: every module, data set and the {len(bases)} bases")
"""


def git(root: Path, *arguments: str) -> str:
    """What a git command prints about the repository at ``root``."""
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.rstrip()


def version_of(root: Path) -> str:
    """The version, which stands in ``pyproject.toml`` alone; the rest is tested to be in step."""
    return tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def release_date(root: Path) -> str | None:
    """The date of the version's entry in the changelog, None without one or with nothing in it."""
    heading = rf"(?m)^## \[{re.escape(version_of(root))}\] - (\d{{4}}-\d\d-\d\d)$"
    found = re.search(heading, text := (root / "CHANGELOG.md").read_text("utf-8"))
    body = re.split(r"(?m)^(?:## |\[)", text[found.end() :])[0] if found else ""
    return found[1] if found and body.strip() else None


def problems(root: Path) -> list[str]:
    """Why no release may be cut from the repository at ``root``; empty if it may."""
    found: list[str] = []
    version, date = version_of(root), release_date(root)
    if dirty := git(root, "status", "--porcelain").splitlines():
        found.append(f"the tree is dirty, commit or remove: {', '.join(x[3:] for x in dirty)}")
    if f"v{version}" in git(root, "tag").splitlines():
        found.append(f"the tag v{version} exists: raise the version in pyproject.toml")
    if date is None:
        found.append(f"CHANGELOG.md has no entry '## [{version}] - YYYY-MM-DD' with text below it")
    citation = yaml.safe_load((root / "CITATION.cff").read_text("utf-8"))
    cited = citation["version"], str(citation["date-released"])
    if cited != (version, date):
        found.append(f"CITATION.cff names {' of '.join(cited)}, not {version} of {date}")
    for path in find_notebooks([root / "notebooks"]):
        notebook = nbformat.read(path, as_version=4)
        stamp = notebook.metadata.get("mlguide", {}).get("code")
        if stamp != code_stamp(notebook, root / "mlguide"):
            found.append(f"{path.relative_to(root)} is stale: run make refresh")
    return found


def checksums(files: Mapping[str, bytes]) -> bytes:
    """A manifest that ``sha256sum -c`` reads."""
    lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)]
    return "".join(lines).encode()


def pack(files: Mapping[str, bytes], folder: str, path: Path, date: int) -> None:
    """Write a ``.tar.gz`` whose bytes depend on the files, their names and the date alone."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files):
            about = tarfile.TarInfo(f"{folder}/{name}")
            about.size, about.mtime = len(files[name]), date
            archive.addfile(about, io.BytesIO(files[name]))
    path.write_bytes(gzip.compress(raw.getvalue(), mtime=date))


def unpack(path: Path) -> dict[str, bytes]:
    """The files of a ``.tar.gz`` with one folder in it, by their names below that folder."""
    with tarfile.open(path) as archive:
        members = [member for member in archive if member.isfile()]
        read = {member.name: archive.extractfile(member) for member in members}
        return {name.partition("/")[2]: file.read() for name, file in read.items() if file}


def export(root: Path, tree: Path) -> Path:
    """Copy the files that git tracks, so that no build folder or cache beside them slips in."""
    for name in git(root, "ls-files", "-z").split("\0"):
        if (file := root / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, tree / name)
    return tree


def build_package(tree: Path, out: Path, date: int) -> tuple[Path, Path]:
    """Build the source archive from ``tree``, and the wheel from that archive, into ``out``.

    ``tree`` must hold what belongs to the release and nothing else: a copy, not where one works.
    """
    out.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(date)}  # setuptools dates a wheel by it

    def call(hook: str, where: Path) -> None:
        command = [sys.executable, "-c", BUILD, hook, str(out)]
        done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{hook} failed:\n{done.stdout}{done.stderr}")

    call("build_sdist", tree)
    sdist = next(out.glob("*.tar.gz"))
    pack(unpack(sdist), name := sdist.name.removesuffix(".tar.gz"), sdist, date)
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        call("build_wheel", Path(folder) / name)
    wheel = next(out.glob("*.whl"))
    check_size(sdist, wheel)
    return sdist, wheel


def check_size(*paths: Path) -> None:
    """Refuse what is too large to be downloaded in passing."""
    for path in paths:
        if path.stat().st_size > MOST_BYTES:
            raise RuntimeError(f"{path.name} is above {MOST_BYTES:,} bytes")


def prove(wheel: Path, version: str) -> None:
    """Install the wheel into an empty environment outside the repository and use it there."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / ("Scripts" if os.name == "nt" else "bin") / "python"
        install = ["-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), str(wheel)]
        # without the path of our own modules
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        for arguments in (install, ["-c", PROOF, version]):
            subprocess.run([python, *arguments], cwd=folder, env=clean, check=True)


def main() -> int:
    """Cut the release, or say on one line each why not and return 1."""
    if found := problems(ROOT):
        print("no release:", *found, sep="\n  ", file=sys.stderr)
        return 1
    version, date = version_of(ROOT), int(git(ROOT, "log", "-1", "--format=%ct"))
    shutil.rmtree(OUT, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        _, wheel = build_package(export(ROOT, Path(folder)), OUT, date)
    pages = {
        path.relative_to(HTML).as_posix(): path.read_bytes()
        for path in HTML.rglob("*")
        if path.is_file()
    }
    pages[SUMS] = checksums(pages)
    pack(pages, f"mlguide-{version}-html", OUT / f"mlguide-{version}-html.tar.gz", date)
    made = {path.name: path.read_bytes() for path in sorted(OUT.iterdir())}
    (OUT / SUMS).write_bytes(checksums(made))
    prove(wheel, version)
    for name, content in made.items():
        print(f"{len(content) / 1e6:6.1f} MB  {OUT.relative_to(ROOT) / name}")
    print(f"now: git tag v{version} && git push origin v{version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
