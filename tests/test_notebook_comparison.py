"""The comparison of outputs, the refresh and the rules of form, each on small samples.

The last part runs strict nbval, as ``make test`` does, on one notebook and on altered copies.
"""

import copy
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from pprint import pformat

import nbformat
import pytest
import test_notebook_form as form
import yaml
from nbformat import NotebookNode, v4
from notebook_comparison import difference

import notebooks
from notebooks import ROOT, code_stamp, refresh

CLAIM = "[T1] holds when labels are few: effect +0.171 (95% interval +0.113 to +0.229, 10 seeds)"
MANY = "; labels are many: -0.011 (95% interval -0.020 to -0.002, 10 seeds)"
EFFECT = {"mean": 0.1711, "low": 0.1132, "high": 0.2291, "seeds": 10}
RECORD = {"id": "T1", "verdict": "holds when", "effect": EFFECT, "unless": {"many": EFFECT}}
PROVED = {"id": "T2", "verdict": "holds", "checks": ["12 tensors compared"]}
TABLE = "method       accuracy        time\nfrozen  0.652 ± 0.021       9.8 s\n"
HTML = "<tr><th>frozen</th><td>0.652 ± 0.021</td><td>120 ms</td></tr>"


def replaced(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


def with_effect(**changes: float) -> dict:
    return RECORD | {"effect": EFFECT | changes}


# --- two values of one field ------------------------------------------------------------------
SAME = {
    "within the spread": ("0.652 ± 0.021", "0.671 ± 0.019"),
    "within the wider spread": ("0.652 ± 0.011", "0.672 ± 0.021"),
    "signed, and over zero": ("+0.003 ± 0.010", "-0.004 ± 0.012"),
    "a typographic minus": ("−0.003 ± 0.010", "-0.003 ± 0.010"),
    "one unit of rounding": ("1.000 ± 0.000", "0.999 ± 0.001"),
    "spreads alike": ("0.652 ± 0.021", "0.652 ± 0.040"),
    "several on a line": ("0.1 ± 0.2, 0.5 ± 0.2", "0.2 ± 0.2, 0.4 ± 0.2"),
    "a claim": (CLAIM, CLAIM.replace("171", "180").replace("113", "119").replace("229", "241")),
    "a claim with a limit": (CLAIM + MANY, CLAIM + MANY.replace("0.011", "0.013")),
    "a record": (RECORD, with_effect(mean=0.18, low=0.119, high=0.241)),
    "a glue record with its spread": ("'0.652 ± 0.021'", "'0.660 ± 0.021'"),
    "html": (HTML, HTML.replace("0.652", "0.660").replace("120 ms", "95 ms")),
    "an aligned table": (TABLE, TABLE.replace("     9.8 s", "    10.2 s").replace("52 ±", "60 ±")),
    "a table of times": ("a    9.8 s\nbcd  8.1 s", "a   10.2 s\nbcd  8.1 s"),
    "times": ("3.2 s, 1,200 ms, 3 µs, 1.2 ± 0.1 s", "9.1 s, 900 ms, 12 µs, 4.5 ± 0.3 s"),
    "speed": ("7.1x as fast", "12.8x as fast"),
    "addresses": ("<f at 0x7f00aa12>", "<f at 0x55d0bb34>"),
    "figures": ("<Figure size 640x480 with 1 Axes>", "<Figure size 1280x960 with 1 Axes>"),
    "data URIs": ("<i src='data:image/webp;base64,A+/='>", "<i src='data:image/webp;base64,B='>"),
    "png bytes": ("iVBORw0KGgoAAAA\n", "iVBORw0KGgoBBBB\n"),
}  # fmt: skip
DIFFERENT = {
    "beyond the wider spread": ("0.652 ± 0.021", "0.675 ± 0.011"),
    "beyond both spreads": ("0.652 ± 0.021", "0.702 ± 0.021"),
    "a spread that tripled": ("0.652 ± 0.021", "0.652 ± 0.063"),
    "the second on a line": ("0.1 ± 0.2, 0.5 ± 0.2", "0.1 ± 0.2, 0.9 ± 0.2"),
    "two units of rounding": ("1.000 ± 0.000", "0.998 ± 0.000"),
    "other decimals": ("0.652 ± 0.021", "0.65 ± 0.02"),
    "no spread": ("0.652 ± 0.021", "0.652"),
    "an exact digit": ("parameters: 8123", "parameters: 8124"),
    "an exact digit beside measured": ("12 labels 0.65 ± 0.02", "13 labels 0.65 ± 0.02"),
    "a bare float": ("0.652", "0.653"),
    "blanks in exact text": ("a  b", "a b"),
    "a line more": ("a\n", "a\na\n"),
    "a row more": (TABLE, TABLE + TABLE),
    "seeds": ("10 seeds", "11 seeds"),
    "an exact product": ("4x4 pixels, 3x", "4x5 pixels, 3x"),
    "a version": ("2.13.0", "2.14.0"),
    "a time that went": ("done in 3.2 s", "done"),
    "the verdict": (CLAIM, CLAIM.replace("holds when labels are few", "fails here")),
    "the effect": (CLAIM, CLAIM.replace("0.171", "0.271")),
    "the interval alone": (CLAIM, CLAIM.replace("0.113", "0.213").replace("0.229", "0.329")),
    "the claim's seeds": (CLAIM, CLAIM.replace("10 seeds", "5 seeds")),
    "the record's effect": (RECORD, with_effect(mean=0.271)),
    "the record's interval": (RECORD, with_effect(low=0.213, high=0.329)),
    "the record's seeds": (RECORD, with_effect(seeds=5)),
    "the record's other effect": (RECORD, RECORD | {"unless": {"many": EFFECT | {"mean": 0.271}}}),
    "the record's verdict": (RECORD, RECORD | {"verdict": "fails here"}),
    "a proved record's check": (PROVED, PROVED | {"checks": ["13 tensors compared"]}),
    "the claim's other effect": (CLAIM + MANY, CLAIM + MANY.replace("0.011", "0.111")),
    "a glue record's int": ("12", "13"),
    "html, measured": (HTML, HTML.replace("0.652", "0.752")),
    "html, exact": (HTML, HTML.replace("frozen", "tuned")),
    "png for text": ("iVBORw0KGgoAAAA\n", "none"),
}


@pytest.mark.parametrize(("a", "b"), SAME.values(), ids=SAME)
def test_same(a, b):
    assert a != b
    assert difference(a, b) == difference(b, a) == ""


@pytest.mark.parametrize(("a", "b"), DIFFERENT.values(), ids=DIFFERENT)
def test_different(a, b):
    assert difference(a, a) == difference(b, b) == ""
    assert difference(a, b) and difference(b, a)


def test_the_difference_is_named():
    a = difference("x\n0.652 ± 0.021", "x\n0.702 ± 0.021")
    assert a == "beyond the spread: 0.652 ± 0.021 was stored, now 0.702 ± 0.021"
    assert difference("x\ny", "x\nz") == "exact text differs: 'y' was stored, now 'z'"


# --- one notebook that has everything ---------------------------------------------------------
HEAD = """# A sample
After this notebook you will be able to compare outputs.
*about 5 minutes to read, about 5 seconds to run*"""
FOOT = """## What you saw
Ninety of 100 numbers, `0.5` and $0.5$ among them.
## Exercises
<details><summary>A hint</summary>Try 0.5.</details>
<details><summary>The solution</summary>It is 0.5.</details>
## Quiz
<details><summary>Which?</summary>This.</details>
## Read more
[Yosinski 2014](https://arxiv.org/abs/1411.1792), arXiv:1411.1792, and the 95% interval."""
ADDRESS = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["repository"]["url"]
INSTALL = f"import sys\nif 'google.colab' in sys.modules:\n    %pip install git+{ADDRESS}"
MEASURE = "import helper\nprint('pixels', helper.PIXELS)\nprint('accuracy', helper.ACCURACY)"
SEMICOLON = "helper.PIXELS;"
TIMES = """import random
print(f'took {random.uniform(1, 9):.1f} s, {random.uniform(2, 9):.1f}x as fast')
picture = 'iVBORw0KGgo' + str(random.getrandbits(64))
display({'image/png': picture, 'text/plain': '<Figure size 64x64 with 1 Axes>'}, raw=True)"""
CLAIMS = f"""record = {pformat(RECORD)}
line = {pformat(CLAIM)}
display({{'text/plain': line, 'application/vnd.mlguide.claim+json': record}}, raw=True)"""
HELPER = "PIXELS = 784\nACCURACY = '0.652 ± 0.021'\n"


def sample() -> NotebookNode:
    """The notebook before its first run."""
    alt = {"mystnb": {"image": {"alt": "A curve that rises from left to right."}}}
    cells = [
        v4.new_markdown_cell(HEAD, metadata={"slideshow": {"slide_type": "slide"}}),
        v4.new_code_cell(INSTALL, metadata={"tags": ["remove-cell"]}),
        v4.new_code_cell(MEASURE),
        v4.new_code_cell(SEMICOLON),
        v4.new_code_cell(TIMES, metadata={"tags": ["times"], **alt}),
        v4.new_code_cell(CLAIMS),
        v4.new_markdown_cell(FOOT),
    ]
    return v4.new_notebook(cells=cells)


def write(nb: NotebookNode, folder: Path, helper: str = HELPER) -> Path:
    """Store a notebook in a folder of its own, beside the module it imports."""
    folder.mkdir()
    (folder / "helper.py").write_text(helper, "utf-8")
    nbformat.write(nb, folder / "sample.ipynb")
    return folder / "sample.ipynb"


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write(sample(), tmp_path_factory.mktemp("sample") / "nb")
    refresh(path)
    return path


def cell_of(nb: NotebookNode, source: str) -> NotebookNode:
    return next(cell for cell in nb.cells if cell.source == source)


def test_refresh_writes_a_notebook_of_good_form(refreshed):
    nb = nbformat.read(refreshed, as_version=4)
    assert form.problems(nb) == []
    assert cell_of(nb, MEASURE).outputs[0].text == "pixels 784\naccuracy 0.652 ± 0.021\n"
    assert cell_of(nb, SEMICOLON).outputs == []
    assert nb.metadata["language_info"] == {"name": "python"}
    assert [file.name for file in refreshed.parent.glob("*.ipynb*")] == ["sample.ipynb"]


def test_second_refresh_changes_nothing(refreshed):
    nb = nbformat.read(refreshed, as_version=4)
    nb.metadata["mlguide"]["seconds"] = 5  # as good as the second it takes
    nbformat.write(nb, refreshed)
    before = refreshed.read_bytes()
    refresh(refreshed)  # its times and the picture of them are random
    assert refreshed.read_bytes() == before


def test_refresh_takes_what_is_new(refreshed, tmp_path):
    """After a change of code all is new; without one, what differs, and untagged pictures."""
    stored = nbformat.read(refreshed, as_version=4)
    nb = copy.deepcopy(stored)
    nb.metadata["mlguide"]["seconds"] = 100
    cell_of(nb, TIMES).metadata["tags"] = []
    del cell_of(nb, CLAIMS).outputs[0].data[form.CLAIM]
    cell_of(nb, MEASURE).outputs[0].text = "pixels 785\naccuracy 0.652 ± 0.021\n"
    path = write(nb, tmp_path / "a")
    refresh(path)
    new = nbformat.read(path, as_version=4)
    assert cell_of(new, MEASURE).outputs == cell_of(stored, MEASURE).outputs
    assert cell_of(new, CLAIMS).outputs == cell_of(stored, CLAIMS).outputs
    assert new.metadata["mlguide"]["seconds"] < 60
    assert cell_of(new, TIMES).outputs[0] == cell_of(stored, TIMES).outputs[0]
    assert cell_of(new, TIMES).outputs[1] != cell_of(stored, TIMES).outputs[1]

    stored.metadata["mlguide"]["code"] = "another"
    path = write(stored, tmp_path / "b")
    refresh(path)
    new = nbformat.read(path, as_version=4)
    assert cell_of(new, TIMES).outputs[0] != cell_of(stored, TIMES).outputs[0]
    assert new.metadata["mlguide"]["code"] == code_stamp(new)


def test_widgets_get_stable_ids(tmp_path):
    source = "import ipywidgets\nipywidgets.IntSlider(description='k')"
    path = write(v4.new_notebook(cells=[v4.new_code_cell(source)]), tmp_path / "nb")
    refresh(path)
    before = path.read_bytes()
    assert b"widget-view" in before and b"0" * 31 + b"1" in before
    refresh(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("source", "error"),
    [("1 / 0", "ZeroDivisionError"), ("import os; os._exit(1)", "died"), ("1 +", "invalid syntax")],
)
def test_failing_cell_leaves_the_file(tmp_path, monkeypatch, capsys, source, error):
    path = write(v4.new_notebook(cells=[v4.new_code_cell(source)]), tmp_path / "nb")
    before = path.read_bytes()
    monkeypatch.setattr(sys, "argv", ["notebooks.py", "refresh", str(path)])
    assert notebooks.main() == 1
    assert path.read_bytes() == before
    assert error in capsys.readouterr().err


def test_nothing_to_refresh_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["notebooks.py", "refresh", str(tmp_path / "typo")])
    assert notebooks.main() == 1


# --- the stamp --------------------------------------------------------------------------------
@pytest.fixture
def package(tmp_path) -> Path:
    files = {
        "__init__.py": "from .first import f\n",
        "first.py": "# why\nfrom pack.deep import second\ndef f(): return 1\n",
        "deep/__init__.py": "",
        "deep/second.py": "def g():\n    from ..lazy import h\n    return h\n",
        "lazy.py": "h = 1\n",
        "apart.py": "x = 1\n",
        "datasets/toy/SHA256SUMS": "00 toy.npz\n",
    }
    for name, text in files.items():
        (tmp_path / "pack" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pack" / name).write_text(text, "utf-8")
    return tmp_path / "pack"


@pytest.mark.parametrize("source", ["import pack", "%matplotlib inline\nfrom pack.deep import x"])
@pytest.mark.parametrize("name", ["__init__.py", "first.py", "deep/second.py", "deep/__init__.py",
                                  "lazy.py", "datasets/toy/SHA256SUMS"])  # fmt: skip
def test_stamp_sees_what_is_reached(package, source, name):
    nb = v4.new_notebook(cells=[v4.new_code_cell(source)])
    before = code_stamp(nb, package)
    file = package / name
    file.write_text(file.read_text("utf-8") + "y = 2\n", "utf-8")
    assert code_stamp(nb, package) != before


def test_stamp_ignores_the_rest(package):
    nb = v4.new_notebook(cells=[v4.new_code_cell("import pack\npack.f()")])
    before = code_stamp(nb, package)
    (package / "apart.py").write_text("x = 2\n", "utf-8")
    (package / "lazy.py").write_bytes(b"# a comment\r\n\r\nh = 1\r\n")
    nb.cells.append(v4.new_markdown_cell("text"))
    nb.cells[0].source = "import pack\n# a comment\npack.f()"
    assert code_stamp(nb, package) == before
    nb.cells[0].source = "import pack\npack.f"
    assert code_stamp(nb, package) != before


# --- the rules of form: each must see a notebook that breaks it ---------------------------------
def clear(nb):
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def in_cell(source: str, change):
    return lambda nb: change(cell_of(nb, source))


def in_text(index: int, old: str, new: str):
    def alter(nb):
        nb.cells[index].source = replaced(nb.cells[index].source, old, new)

    return alter


def output(text: str, name: str = "stdout") -> NotebookNode:
    return v4.new_output("stream", name=name, text=text)


BROKEN = [
    ("valid", lambda nb: nb.update(nbformat_minor=4)),
    ("valid", lambda nb: nb.cells[1].update(id=nb.cells[2].id)),
    ("valid", in_cell(MEASURE, lambda c: c.outputs[0].pop("name"))),
    ("valid", in_text(0, "# ", "# " + "x" * form.MOST_BYTES)),
    ("run_in_order", clear),
    ("run_in_order", in_cell(MEASURE, lambda c: c.update(outputs=[]))),
    ("run_in_order", lambda nb: nb.cells.insert(2, nb.cells.pop(3))),
    ("run_in_order", in_cell(SEMICOLON, lambda c: c.update(execution_count=None))),
    ("clean", in_cell(MEASURE, lambda c: c.metadata.update(execution={}))),
    ("clean", in_cell(MEASURE, lambda c: c.outputs.append(output("warning", "stderr")))),
    ("clean", in_cell(MEASURE, lambda c: c.outputs.append(v4.new_output("error")))),
    ("clean", in_cell(MEASURE, lambda c: c.outputs.append(output("/home/me/x")))),
    ("clean", in_cell(MEASURE, lambda c: c.outputs.append(output(f"{ROOT}/mlguide/x.py")))),
    ("compared", in_cell(MEASURE, lambda c: c.metadata.update(tags=["nbval-skip"]))),
    ("compared", in_cell(MEASURE, lambda c: c.update(source="# NBVAL_IGNORE_OUTPUT"))),
    ("alt_text", in_cell(TIMES, lambda c: c.metadata.pop("mystnb"))),
    (
        "alt_text",
        in_cell(TIMES, lambda c: c.metadata.mystnb.image.update(alt="a long path to.png")),
    ),
    ("stamp", in_cell(SEMICOLON, lambda c: c.update(source="helper.PIXELS"))),
    ("stamp", lambda nb: nb.metadata.pop("mlguide")),
    ("stamp", lambda nb: nb.metadata.mlguide.update(seconds=form.MOST_SECONDS + 1)),
    ("head", in_text(0, "# A", "A")),
    ("head", in_text(0, "be able to", "have to")),
    ("head", in_text(0, "to read", "to skip")),
    ("head", in_text(0, "5 seconds to run", "5 minutes to run")),
    ("head", lambda nb: nb.metadata.mlguide.update(seconds=60)),
    ("foot", in_text(-1, "What you saw", "What you did")),
    ("foot", in_text(-1, "\n<details><summary>Which?</summary>This.</details>", "")),
    ("foot", in_text(-1, "The solution", "More")),
    ("foot", in_text(-1, "Try 0.5.", "")),
    ("install_cell", in_cell(INSTALL, lambda c: c.metadata.update(tags=[]))),
    ("install_cell", in_cell(INSTALL, lambda c: c.update(source=c.source + "2"))),
    ("install_cell", in_cell(INSTALL, lambda c: c.update(source="import sys"))),
    ("slides", lambda nb: nb.cells[0].metadata.pop("slideshow")),
    ("slides", lambda nb: nb.cells[0].metadata.slideshow.update(slide_type="slides")),
    ("short_cells", in_cell(MEASURE, lambda c: c.update(source="x = 1\n" * 21))),
    ("short_lines", in_cell(MEASURE, lambda c: c.update(source="x = " + "9" * 97))),
    ("short_lines", in_text(-1, "It is 0.5.", f"\n\n```python\n{'x' * 101}\n```\n")),
    ("claims", in_cell(CLAIMS, lambda c: c.outputs[0].data.pop(form.CLAIM))),
    ("claims", in_cell(CLAIMS, lambda c: c.outputs[0].data.pop("text/plain"))),
    ("claims", in_cell(MEASURE, lambda c: c.outputs.append(output("[T2] holds: proved")))),
    ("no_typed_numbers", in_text(-1, "Ninety of 100", "0.9 of 100")),
    ("no_typed_numbers", in_text(-1, "Ninety of 100", "90% of 100")),
]


@pytest.mark.parametrize(
    ("rule", "alter"), BROKEN, ids=[f"{n}-{b[0]}" for n, b in enumerate(BROKEN)]
)
def test_rule_sees(refreshed, rule, alter):
    nb = nbformat.read(refreshed, as_version=4)
    alter(nb)
    assert list(getattr(form, f"rule_{rule}")(nb))


def test_every_rule_was_broken():
    assert {f"rule_{rule}" for rule, _ in BROKEN} == {rule.__name__ for rule in form.RULES}


# --- strict nbval, on altered copies ------------------------------------------------------------
def stored(source: str, pattern: str, new: str):
    """Edit what a cell is said to have printed."""

    def edit(cell):
        out = cell.outputs[0]
        place, key = (out, "text") if out.output_type == "stream" else (out.data, "text/plain")
        place[key], count = re.subn(pattern, new, place[key])
        assert count

    return in_cell(source, edit)


def drop_picture(nb):
    del cell_of(nb, TIMES).outputs[1].data["image/png"]


def tolerated(nb):
    """Everything that another processor, another day or another version may change."""
    stored(MEASURE, "0.652", "0.660")(nb)
    stored(TIMES, r"\d\.\d (s)", r"77.7 \1")(nb)
    cell_of(nb, TIMES).outputs[1].data["image/png"] = "iVBORw0KGgoAAAA"
    claim = cell_of(nb, CLAIMS).outputs[0].data
    claim["text/plain"] = replaced(claim["text/plain"], "0.171", "0.180")
    claim[form.CLAIM].effect.update(mean=0.18)


ALTERED = {  # name: (what happens to the notebook, how many cells then fail)
    "untouched": (lambda nb: None, 0),
    "tolerated": (tolerated, 0),
    "exact": (stored(MEASURE, "784", "785"), 1),
    "beyond_the_spread": (stored(MEASURE, "0.652", "0.702"), 1),
    "verdict": (stored(CLAIMS, "holds", "fails"), 1),
    "record": (in_cell(CLAIMS, lambda c: c.outputs[0].data[form.CLAIM].effect.update(mean=0.5)), 1),
    "output_removed": (in_cell(CLAIMS, lambda c: c.update(outputs=[])), 1),
    "picture_removed": (drop_picture, 1),
    "reordered": (lambda nb: nb.cells.insert(2, nb.cells.pop(3)), 1),
    "helper_exact": (replaced(HELPER, "784", "785"), 1),
    "helper_measured": (replaced(HELPER, "0.652", "0.702"), 1),
    "helper_within": (replaced(HELPER, "0.652", "0.642"), 0),
}


@pytest.fixture(scope="module")
def failures(refreshed, tmp_path_factory) -> dict[str, int]:
    """How many cells fail in each altered copy, all run by one pytest with our conftest."""
    folder = tmp_path_factory.mktemp("altered")
    shutil.copy(ROOT / "conftest.py", folder)
    for name, (change, _) in ALTERED.items():
        nb = nbformat.read(refreshed, as_version=4)
        if callable(change):
            change(nb)
        write(nb, folder / name, HELPER if callable(change) else change)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "-p", "no:cacheprovider",
         "--nbval", "--nbval-current-env", "--nbval-cell-timeout=60", "-q",
         f"--junitxml={folder / 'report.xml'}", folder],
        capture_output=True, text=True, cwd=folder, timeout=280,
    )  # fmt: skip
    assert run.returncode == 1, run.stdout + run.stderr  # some tests failed, and nothing worse
    counts = dict.fromkeys(ALTERED, 0)
    cells = dict.fromkeys(ALTERED, 0)
    for case in ET.parse(folder / "report.xml").iter("testcase"):
        name = next(name for name in ALTERED if name in re.split(r"[./]", case.get("classname")))
        cells[name] += 1
        counts[name] += case.find("failure") is not None
    assert set(cells.values()) == {5}, run.stdout
    return counts


@pytest.mark.parametrize("name", ALTERED)
def test_nbval(failures, name):
    assert failures[name] == ALTERED[name][1]
