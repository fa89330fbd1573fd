"""A folder of pictures, read with care: one sub-folder for each class, and nothing taken on trust.

``read_folder`` gives the pictures and says in plain words what it left alone and why. Broken files
do not stop it, links are not followed, and copies are found, since a copy on the other side of a
split would be a test that gives the answer away.
"""

from __future__ import annotations

import csv
import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from mlguide.data import Pictures

__all__ = ["Album", "plain", "read_folder", "read_picture", "short"]

SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")  # none of which runs a program
MOST_PIXELS = 50_000_000  # a file of some kilobytes can unpack to more than the memory holds
ALIKE = 4 / 255  # a copy saved in another size or quality differs by less (root mean square)


class Album(NamedTuple):
    """What ``read_folder`` found: pictures, the file of each, and what it left alone and why."""

    pictures: Pictures
    folder: Path
    files: list[str]  # in the folder, such as "cats/1.jpg"
    notes: list[str]


def read_folder(
    folder: str | Path,
    *,
    side: int = 96,
    most: int = 600,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Album:
    """Read a folder with one sub-folder of pictures for each class, each as ``(3, side, side)``.

    Pictures that are the same, or nearly, get one group, which no fold parts. So do those with the
    same ``group`` in a file ``groups.csv`` of the folder, with columns ``file`` and ``group``:
    pictures of one animal, one patient, one day.

    Args:
        most: how many pictures are read, or three of each class if that is more. If there are more,
            they are drawn at random, the same share of each class, by ``seed``.
        say: is told the progress, and in the end what was left alone.

    Raises:
        ValueError: in plain words, if there are not two classes with two separate pictures each.
    """
    root = Path(folder)
    by_class, notes = _list_files(root)
    wanted = _sample(by_class, most, seed)
    found = sum(map(len, by_class.values()))
    if len(wanted) < found:
        notes.append(f"{len(wanted)} of {found:,} pictures were drawn to save time (most={most})")
    pixels: list[npt.NDArray[np.uint8]] = []
    files: list[str] = []
    broken: list[str] = []
    for number, path in enumerate(wanted, 1):
        try:
            pixels.append(read_picture(path, side))
            files.append(path.relative_to(root).as_posix())
        except ValueError as error:
            broken.append(str(error))
        if number % 200 == 0:
            say(f"read {number} of {len(wanted)} pictures")
    if broken:
        notes.append(f"cannot be read: {_some(broken)}")
    if not files:
        raise ValueError(f"{plain(root.name)}: not one picture can be read: {_some(broken)}")
    images = torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2)  # bytes: a quarter of floats
    groups, keep = _groups(images, files, _told_groups(root, notes), notes)
    classes = _classes([f for f, k in zip(files, keep, strict=True) if k], by_class, groups, notes)
    rows = [i for i, file in enumerate(files) if keep[i] and _class_of(file) in classes]
    pictures = Pictures(
        images[rows].float() / 255,
        torch.tensor([classes.index(_class_of(files[i])) for i in rows]),
        tuple(map(plain, classes)),
        torch.tensor([groups[files[i]] for i in rows]),
        name=plain(root.name),
    )
    sizes = torch.bincount(pictures.labels)
    say(
        f"{len(rows)} pictures in {len(pictures.groups.unique())} groups, "
        f"{len(classes)} classes of {int(sizes.min())} to {int(sizes.max())} pictures"
    )
    for note in notes:
        say(f"- {note}")
    return Album(pictures, root, [files[i] for i in rows], notes)


def _list_files(root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The files of each sub-folder that look like pictures, and notes on all that is left alone."""
    if not root.is_dir():
        raise ValueError(f"{plain(str(root))} is not a folder")
    by_class: dict[str, list[Path]] = {}
    left: dict[str, list[str]] = {}

    def leave(why: str, paths: Iterable[Path]) -> None:
        left.setdefault(why, []).extend(path.relative_to(root).as_posix() for path in paths)

    def look_into(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
        """Sub-folders, pictures and other files; no links, so nothing outside is ever read."""
        seen = sorted(p for p in folder.iterdir() if p.name[0] != "." and p.name != "__MACOSX")
        leave("links are not followed", (p for p in seen if p.is_symlink()))
        seen = [p for p in seen if not p.is_symlink()]
        folders = [p for p in seen if p.is_dir()]
        images = [p for p in seen if p.is_file() and p.suffix.lower() in SUFFIXES]
        return folders, images, [p for p in seen if p not in folders and p not in images]

    folders, loose, others = look_into(root)
    leave("in no sub-folder, so of no class", loose)
    leave("not a kind of picture that is read", (p for p in others if p.name != "groups.csv"))
    for folder in folders:
        below, files, others = look_into(folder)
        leave("a sub-folder of a class is not read", below)
        leave("not a kind of picture that is read", others)
        if files:
            by_class[folder.name] = files
        else:
            leave("no picture in it", [folder])
    if not by_class:
        told = "; ".join(f"{why}: {_some(names)}" for why, names in left.items() if names)
        raise ValueError(
            f"{plain(root.name)} must hold one sub-folder of pictures for each class, but none of "
            f"its sub-folders holds a picture. {told or 'It is empty'}"
        )
    return by_class, [f"{why}: {_some(names)}" for why, names in left.items() if names]


def _sample(by_class: Mapping[str, list[Path]], most: int, seed: int) -> list[Path]:
    """The files to read: five of each class in turn, then the same share of each class."""
    generator = torch.Generator().manual_seed(seed)
    turns: list[tuple[float, Path]] = []
    for files in by_class.values():
        for place, i in enumerate(torch.randperm(len(files), generator=generator).tolist()):
            turns.append((place - 5 if place < 5 else place / len(files), files[i]))
    return sorted(path for _, path in sorted(turns)[: max(most, 3 * len(by_class))])


def read_picture(path: Path, side: int) -> npt.NDArray[np.uint8]:
    """The middle square of a picture file, ``(side, side, 3)``: turned as its EXIF data say, what
    is transparent on white, grey in three equal channels, 16 bits brought down to 8.

    Raises:
        ValueError: naming the file, if it is broken, of another format, or huge when unpacked.
    """
    from PIL import Image, ImageOps

    name = plain(f"{path.parent.name}/{path.name}")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as file:
            if math.prod(file.size) > MOST_PIXELS:
                raise Image.DecompressionBombError
            file.draft(None, (2 * side, 2 * side))  # a JPEG can be unpacked smaller
            image = ImageOps.exif_transpose(file)
            if image.mode[0] in "IF":
                image = Image.fromarray(_to_bytes(np.asarray(image), image.mode))
            if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA"):
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            square = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC)
    except Image.DecompressionBombError:
        most = MOST_PIXELS // 1_000_000
        raise ValueError(f"{name} (unpacks to more than {most} million pixels)") from None
    except Exception as error:  # a broken file can make Pillow raise nearly anything
        raise ValueError(f"{name} ({type(error).__name__})") from None
    return np.asarray(square)


def _to_bytes(values: npt.NDArray[Any], mode: str) -> npt.NDArray[np.uint8]:
    """Grey in 16 or 32 bits, or in floats, as bytes."""
    numbers = np.nan_to_num(values.astype(float))
    most = numbers.max()
    top = 65535 if "16" in mode or most > 255 else 255 if most > 1 else 1
    return (numbers / top * 255).round().clip(0, 255).astype(np.uint8)


def _groups(
    images: Tensor, files: Sequence[str], told: Mapping[str, str], notes: list[str]
) -> tuple[dict[str, int], list[bool]]:
    """The group of each file, and which to keep: a picture that stands in two classes is not."""
    first: dict[bytes, int] = {}
    digests = [hashlib.sha256(image.tobytes()).digest() for image in images.numpy()]
    same = [(first.setdefault(digest, row), row) for row, digest in enumerate(digests)]
    same = [(a, b) for a, b in same if a != b]
    small = torch.cat(
        [F.adaptive_avg_pool2d(part / 255, 16).flatten(1) for part in images.split(500)]
    )
    near: list[tuple[int, int]] = []
    for start in range(0, len(small), 500):
        apart = torch.cdist(small[start : start + 500], small) / small.shape[1] ** 0.5
        near += [(start + a, b) for a, b in (apart < ALIKE).nonzero().tolist() if start + a < b]
    if len(near) > len(files):
        notes.append("many pictures look nearly the same: only equal ones were held together")
        near = same
    if near:
        pairs = [f"{files[a]} ~ {files[b]}" for a, b in near]
        notes.append(f"the same or nearly, so on one side of every split: {_some(pairs)}")
    group = list(range(len(files)))  # joined step by step
    members: dict[str, int] = {}
    by_name = [
        (members.setdefault(told[file], row), row) for row, file in enumerate(files) if file in told
    ]
    for a, b in [*same, *near, *by_name]:
        old, new = group[b], group[a]
        group = [new if g == old else g for g in group] if old != new else group
    torn = {digests[a] for a, b in same if _class_of(files[a]) != _class_of(files[b])}
    if torn:
        names = [file for file, digest in zip(files, digests, strict=True) if digest in torn]
        notes.append(f"the same picture in two classes, left out: {_some(names)}")
    return dict(zip(files, group, strict=True)), [digest not in torn for digest in digests]


def _told_groups(root: Path, notes: list[str]) -> dict[str, str]:
    """The groups that the folder itself tells of in ``groups.csv``: file -> group."""
    path = root / "groups.csv"
    if not path.is_file() or path.is_symlink():
        return {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"file", "group"} <= rows[0].keys():
        raise ValueError(f"{plain(root.name)}/groups.csv must have the columns file and group")
    notes.append(f"groups.csv tells of {len({row['group'] for row in rows})} groups")
    return {row["file"]: row["group"] for row in rows}


def _classes(
    files: Sequence[str],
    by_class: Mapping[str, list[Path]],
    groups: Mapping[str, int],
    notes: list[str],
) -> list[str]:
    """The classes with at least two separate pictures: one to learn from, one to be tested on."""
    separate: dict[str, set[int]] = {name: set() for name in by_class}
    for file in files:
        separate[_class_of(file)].add(groups[file])
    lonely = [name for name, of_class in separate.items() if len(of_class) < 2]
    if lonely:
        notes.append(f"fewer than two separate pictures, left out: {_some(lonely)}")
    classes = [name for name in by_class if name not in lonely]
    if len(classes) < 2:
        raise ValueError(
            "there must be two classes with two separate pictures each, but there is "
            f"{_some(classes) or 'none'}. {'; '.join(notes)}"
        )
    return classes


def _class_of(file: str) -> str:
    return file.split("/")[0]


def plain(text: str) -> str:
    """Text that can be printed, whatever the bytes of a file's name."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def short(text: str, most: int = 14) -> str:
    """A name that fits below a picture, and that matplotlib does not take for a formula."""
    return (text if len(text) <= most else text[: most - 1] + "…").replace("$", r"\$")


def _some(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(map(plain, names[:most]))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
