"""What the project says of itself in several places agrees, and nothing is forgotten."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from screenshots import pages

from mlguide.look import STATES

ROOT = Path(__file__).resolve().parent.parent
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
REPOSITORY = CONFIG["repository"]["url"]
PUBLISHED = CONFIG["html"]["baseurl"]
DATASETS = sorted(path for path in (ROOT / "mlguide" / "datasets").iterdir() if path.is_dir())
# Slow to import, or no part of the plain install.
HEAVY = {"IPython", "ipywidgets", "efficientnet_lite_pytorch", "sklearn", "scipy", "pandas", "flwr"}
HEAVY |= {"ray", "grpc", "cryptography", "transformers", "peft", "torchjd", "nbformat"}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    split = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): pinned for name, pinned in split}


def test_address_stands_in_the_config_and_agrees_elsewhere():
    assert PROJECT["urls"] == {"Repository": REPOSITORY, "Documentation": PUBLISHED}
    assert (CITATION["repository-code"], CITATION["url"]) == (REPOSITORY, PUBLISHED)
    readme = (ROOT / "README.md").read_text("utf-8")
    assert PUBLISHED in readme
    texts = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "book").rglob("*.md")]
    texts += (ROOT / "notebooks").rglob("*.ipynb")
    owner, name = REPOSITORY.split("/")[-2:]
    for text in texts:
        # what points to a repository or its pages points to this one, if it says its name
        found = re.findall(
            r"(?:github\.com|colab\.research\.google\.com/github|mybinder\.org/v2/gh)/([\w.-]+)/"
            + rf"(?:mlguide|{re.escape(name)})\b|([\w-]+)\.github\.io/",
            text.read_text("utf-8"),
        )
        assert {a or b for a, b in found} <= {owner}, text.relative_to(ROOT)


def test_the_package_is_installed_from_its_address():
    """On the usual index another project has its name."""
    told: list[str] = []
    for pattern in ("*.md", "book/**/*.md", "notebooks/**/*.ipynb", "assignments/source/**/*.ipynb",
                    "mlguide/**/*.py"):  # fmt: skip
        for file in ROOT.glob(pattern):
            told += re.findall(r"pip install [^`\n]*mlguide[^`\n]*", file.read_text("utf-8"))
    assert len(told) > 30
    assert [line for line in told if f"@ git+{REPOSITORY}@" not in line] == []


def test_version_agrees():
    assert PROJECT["version"] == CITATION["version"] == version("mlguide")


def test_conda_takes_everything_from_the_package():
    names, pip = [], []
    for entry in yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))["dependencies"]:
        names += [] if isinstance(entry, dict) else [entry.split("=")[0]]
        pip += entry["pip"] if isinstance(entry, dict) else []
    pip = [line for line in pip if not line.startswith("--")]  # options
    assert (names, pip) == (["python", "pip"], ["-e .[flower]"])


def requirements(name: str, extras: set[str]) -> dict[str, list[Requirement]]:
    """All that an installed distribution needs here, directly or through others, by name."""
    found: dict[str, list[Requirement]] = {}
    waiting, seen = [(name, frozenset(extras))], set()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for line in distribution(current[0]).requires or []:
            need = Requirement(line)
            wanted = [{"extra": extra} for extra in {"", *current[1]}]
            if need.marker is None or any(need.marker.evaluate(extra) for extra in wanted):
                found.setdefault(canonicalize_name(need.name), []).append(need)
                waiting.append((canonicalize_name(need.name), frozenset(need.extras)))
    return found


def test_constraints_pin_every_dependency():
    needed = requirements("mlguide", {"book", "test", "flower", "teach"})
    needed.pop("mlguide")  # the extra of the tests asks for the extra flower
    # the GPU libraries belong to one build of torch, which pins them itself
    gpu = re.compile(r"nvidia|cuda|triton")
    assert {name for name in needed if not gpu.match(name)} - pins().keys() == set()
    assert pins()["torch"] == "2.13.0"
    wrong = [
        f"{need} against {pins()[name]}"
        for name, needs in needed.items()
        for need in needs
        if name in pins() and not need.specifier.contains(pins()[name], prereleases=True)
    ]
    assert wrong == []


def test_the_tests_run_with_the_pinned_versions():
    # torch's build (+cpu) is not part of the pin
    here = {name: version(name).partition("+")[0] for name in pins()}
    assert here == pins()


@pytest.mark.parametrize("folder", DATASETS, ids=lambda folder: folder.name)
def test_dataset_says_what_it_is(folder: Path):
    assert [
        name for name in ("LICENSE", "SOURCE.md", "SHA256SUMS") if not (folder / name).is_file()
    ] == []


def test_there_are_datasets():
    assert DATASETS


def test_a_reader_without_ci_passes_over_the_fleets_tests():
    """A file in which pytest finds no test at all would stop `make test` there."""
    reader = {name: value for name, value in os.environ.items() if name != "CI"}
    run = [sys.executable, "-m", "pytest", "-q", "tests/test_fleet.py"]
    done = subprocess.run(run, cwd=ROOT, env=reader, capture_output=True, text=True)
    assert done.returncode == 0 and "skipped" in done.stdout, done.stdout


def test_import_is_light():
    """Of what is slow to import, the modules of the plain install load torch and matplotlib."""
    files = [file.relative_to(ROOT) for file in (ROOT / "mlguide").rglob("[a-z]*.py")]
    plain = [file for file in files if "flower" not in file.parts]  # an extra
    modules = sorted(".".join(file.with_suffix("").parts) for file in plain)
    code = f"import sys, json, {', '.join(modules)}; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert loaded.isdisjoint(HEAVY), loaded.intersection(HEAVY)


def test_import_of_the_package_itself_loads_nothing():
    code = "import sys; bare = set(sys.modules); import mlguide; print(set(sys.modules) - bare)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'mlguide'}"


def test_table_of_contents_has_every_page():
    files = [*(ROOT / "book").rglob("*.md"), *(ROOT / "notebooks").rglob("*.ipynb")]
    names = [file.relative_to(ROOT).with_suffix("").as_posix() for file in files]
    kept = [name for name in names if "/static/" not in name and "checkpoints" not in name]
    assert sorted(kept) == sorted(pages())


def test_api_page_has_every_module():
    listed = re.findall(r"automodule:: mlguide\.(\S+)", (ROOT / "book/api.md").read_text("utf-8"))
    files = [file.relative_to(ROOT / "mlguide") for file in (ROOT / "mlguide").rglob("[a-z]*.py")]
    app = Path("federated/flower/wardrobe")  # is sent to a fleet, not imported
    modules = [".".join(file.with_suffix("").parts) for file in files if file.parent != app]
    assert sorted(listed) == sorted(modules)


def test_glossary_is_sorted_and_has_the_terms_used():
    text = (ROOT / "book" / "glossary.md").read_text("utf-8")
    body = text.split("```{glossary}")[1].split("```")[0]
    terms = re.findall(r"(?m)^(\S.*)$", body)
    assert terms == sorted(set(terms), key=str.lower)
    for page in (ROOT / "book").rglob("*.md"):
        used = re.findall(r"\{term\}`([^`<]*?)(?: <([^>]+)>)?`", page.read_text("utf-8"))
        assert {target or shown for shown, target in used} <= set(terms), page.relative_to(ROOT)


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("book/static/four_ways_out.svg", r"\.{} {{fill: (#\w+)}}"),
        ("book/static/css/mlguide.css", r"\.state\.{} {{--state: (#\w+)}}"),
    ],
)
def test_states_have_their_colours(file: str, pattern: str):
    text = (ROOT / file).read_text("utf-8")
    found = {name: re.findall(pattern.format(name), text) for name in STATES}
    assert found == {name: [look.colour] for name, look in STATES.items()}
