"""The bundled data are what they say, and nothing leaks from one side of a split to the other."""

import hashlib
import shutil
from pathlib import Path

import build_data
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlguide import data
from mlguide.data import Pictures


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def digests(pictures: Pictures) -> list[str]:
    return [hashlib.sha256(p.numpy().tobytes()).hexdigest() for p in pictures.images]


def same(a: Pictures, b: Pictures) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


def some(labels: list[int], groups: list[int] | None = None, classes: int = 3) -> Pictures:
    """Tiny pictures, each of one grey level that tells it from the others."""
    levels = torch.arange(len(labels)) / len(labels)
    return Pictures(
        images=levels[:, None, None, None].expand(-1, 1, 2, 2).clone(),
        labels=torch.tensor(labels),
        classes=tuple("abcdefghij"[:classes]),
        groups=torch.tensor(groups or [], dtype=torch.int64),
    )


# -- what is bundled

SETS = {
    "wardrobe": (data.wardrobe, [1200] * 10, [200] * 10),
    "mnist": (data.mnist_digits, [350] * 10, [150] * 10),
    "digits": (
        data.written_digits,
        [127, 130, 127, 131, 129, 130, 129, 128, 127, 129],
        [51, 52, 50, 52, 52, 52, 52, 51, 47, 51],
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_shapes_ranges_and_balance(name: str) -> None:
    load, train_counts, test_counts = SETS[name]
    for pictures, counts in zip(load(), (train_counts, test_counts), strict=True):
        assert pictures.images.shape == (sum(counts), 1, 28, 28)
        assert pictures.images.dtype == torch.float32
        assert pictures.images.min() == 0
        assert 0.98 < pictures.images.max() <= 1
        assert torch.bincount(pictures.labels).tolist() == counts
        assert pictures.name == name
        assert pictures.description and pictures.licence and pictures.source


@pytest.mark.parametrize("name", SETS)
def test_no_picture_of_the_test_is_also_in_the_training_part(name: str) -> None:
    train, test = (digests(part) for part in SETS[name][0]())
    assert len(set(train) | set(test)) == len(train) + len(test)


@pytest.mark.parametrize(
    ("load", "least"), [(data.wardrobe, 0.6), (data.mnist_digits, 0.75), (data.written_digits, 0.8)]
)
def test_the_labels_belong_to_the_pictures(load, least: float) -> None:
    """The nearest class mean finds the label, far above the 0.1 of chance."""
    train, test = load()
    means = torch.stack([train.images[train.labels == k].mean(0).flatten() for k in range(10)])
    guess = torch.cdist(test.images.flatten(1), means).argmin(1)
    found = (guess == test.labels).float().mean().item()
    assert found > least


def test_any_stretch_of_the_wardrobe_is_balanced() -> None:
    train, _ = data.wardrobe()
    assert torch.bincount(train.labels[:500]).tolist() == [50] * 10
    assert train.classes[0] == "T-shirt/top" and train.classes[9] == "Ankle boot"


def test_digits_of_one_form_stay_on_one_side() -> None:
    train, test = data.written_digits()
    assert train.groups.unique().tolist() == list(range(10))
    assert test.groups.unique().tolist() == [10, 11, 12, 13]


def test_digits_are_where_those_of_mnist_are() -> None:
    for pictures in (data.mnist_digits()[0], data.written_digits()[0]):
        ink = pictures.images.mean((0, 1))
        assert ink[4:24, 4:24].sum() > 0.95 * ink.sum()
        middle = (ink.sum(0) * torch.arange(28)).sum() / ink.sum()
        assert 13 < middle < 15


def test_photographs() -> None:
    pictures = data.photographs()
    assert pictures.images.shape == (168, 3, 128, 128)
    assert pictures.classes == ("Mammals", "Fruit and vegetables", "Birds", "Flowers")
    assert torch.bincount(pictures.labels).tolist() == [64, 44, 35, 25]
    assert 0 <= pictures.images.min() and pictures.images.max() == 1
    assert pictures.images[:, :, 0, 0].mean() > 0.9  # the corner is white paper
    groups, sizes = pictures.groups.unique(return_counts=True)
    assert len(groups) == 142 and sizes.max() == 5
    for group in groups[sizes > 1]:
        assert len(pictures.labels[pictures.groups == group].unique()) == 1


def test_the_three_channels_of_a_photograph_are_red_green_blue() -> None:
    pictures = data.photographs().select(["Fruit and vegetables"])
    files = sorted((data.FOLDER / "photographs" / "fruit_and_vegetables").iterdir())
    red, green, blue = pictures.images[[f.stem for f in files].index("tomato"), :, 64, 64]
    assert red > 0.6 > green and red > 0.6 > blue


def test_garment_splits_part_the_ten_garments() -> None:
    assert list(data.GARMENT_SPLITS) == ["near", "swapped", "far"]
    for source, target in data.GARMENT_SPLITS.values():
        assert len(source) == len(target) == 5
        assert {*source, *target} == set(data.GARMENTS)
    assert data.GARMENT_SPLITS["swapped"].source == data.GARMENT_SPLITS["near"].target


def test_a_caller_cannot_damage_the_data_of_the_next() -> None:
    for load in (data.wardrobe, data.mnist_digits, data.written_digits):
        first = load()[0]
        before = first.images.clone()
        first.images.zero_()
        first.labels.zero_()
        again = load()[0]
        assert torch.equal(again.images, before) and again.labels.max() == 9
    data.photographs().images.zero_()
    assert data.photographs().images.max() == 1


def test_every_bundled_file_has_its_checksum_licence_and_source() -> None:
    folders = [f for f in data.FOLDER.iterdir() if f.is_dir()]
    assert {f.name for f in folders} == {
        "wardrobe", "mnist", "digits", "photographs", "shakespeare"
    }  # fmt: skip
    for folder in folders:
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        sums = {name: checksum for checksum, name in (line.split("  ") for line in lines)}
        files = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}
        assert files == sums.keys() | {"SHA256SUMS", "LICENSE", "SOURCE.md"}
        for name, checksum in sums.items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum


DAMAGE = [
    ("wardrobe/train.png", data.wardrobe),
    ("mnist/test.png", data.mnist_digits),
    ("digits/labels.csv", data.written_digits),
    ("photographs/birds/owl.jpg", data.photographs),
    ("shakespeare/roles.json.bz2", data.shakespeare),
]


@pytest.mark.parametrize(("file", "load"), DAMAGE)
def test_a_flipped_bit_is_noticed(file: str, load, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(data.FOLDER / file.split("/")[0], tmp_path / file.split("/")[0])
    monkeypatch.setattr(data, "FOLDER", tmp_path)
    expected = hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()
    content = bytearray((tmp_path / file).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / file).write_bytes(content)
    with pytest.raises(RuntimeError, match="is damaged.*scripts/build_data.py") as error:
        load()
    assert str(tmp_path / file) in str(error.value)
    assert expected in str(error.value)
    assert hashlib.sha256(content).hexdigest() in str(error.value)


@pytest.mark.parametrize(("file", "load"), [*DAMAGE, ("wardrobe/SHA256SUMS", data.wardrobe)])
def test_a_missing_file_is_named(file: str, load, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(data.FOLDER / file.split("/")[0], tmp_path / file.split("/")[0])
    monkeypatch.setattr(data, "FOLDER", tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(RuntimeError, match="is missing. Reinstall mlguide") as error:
        load()
    assert str(tmp_path / file) in str(error.value)


def test_a_file_without_a_checksum_is_not_used(tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(data.FOLDER / "mnist", tmp_path / "mnist")
    monkeypatch.setattr(data, "FOLDER", tmp_path)
    (tmp_path / "mnist" / "SHA256SUMS").write_text("")
    with pytest.raises(RuntimeError, match="train.png is damaged.*SHA256SUMS, where there is none"):
        data.mnist_digits()


def test_the_build_puts_pictures_on_a_sheet_as_the_loader_takes_them_off(
    tmp_path: Path, monkeypatch
) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (250, 8, 8), np.uint8)
    folder = tmp_path / "some"
    folder.mkdir()
    (folder / "sheet.png").write_bytes(build_data.sheet(pictures))
    checksum = hashlib.sha256((folder / "sheet.png").read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text(f"{checksum}  sheet.png\n")
    monkeypatch.setattr(data, "FOLDER", tmp_path)
    cells = data._cells(folder / "sheet.png", side=8)
    assert np.array_equal(cells[:250], pictures) and not cells[250:].any()

    chosen = build_data.in_turn(pictures, np.arange(250) // 25, 20)
    where = {build_data.digest(picture): i for i, picture in enumerate(pictures)}
    kept = [where[build_data.digest(picture)] for picture in chosen]
    assert len(set(kept)) == 200
    assert [i // 25 for i in kept] == [i % 10 for i in range(200)]


# -- Shakespeare


def test_roles_are_large_of_one_play_and_in_the_alphabet() -> None:
    roles = data.shakespeare()
    assert len(roles) == len({(role.play, role.name) for role in roles}) == 137
    assert min(len(role.text) for role in roles) >= 10_000
    assert len({role.play for role in roles}) == 37
    genres = [role.genre for role in roles]
    assert {genre: genres.count(genre) for genre in genres} == {
        "comedies": 27, "histories": 37, "problems": 20, "roman": 17, "romances": 14,
        "tragedies": 22,
    }  # fmt: skip
    assert sorted({*"".join(role.text for role in roles)}) == list(data.ALPHABET)


def test_roles_say_what_they_are_known_for() -> None:
    said = {(role.play, role.name): role.text for role in data.shakespeare()}
    assert "To be, or not to be: that is the question:\n" in said["Hamlet", "HAMLET"]
    assert "What's in a name? that which we call a rose\n" in said["Romeo and Juliet", "JULIET"]
    assert "that is the question" not in said["Hamlet", "HORATIO"]
    assert said["Measure for Measure", "ISABELLA"]


PLAY = """# The Tempest in a Cup

## ACT I

### SCENE I. A cup.

_Enter BOTH, with
a spoon_

**TEA**  
Stir, stir!  
_[Aside]_  
How caf\N{COMBINING ACUTE ACCENT}e\N{EM DASH}no, 'tea'\\--is  drunk.

_Enter MILK_

More!

Exit MILK and
SUGAR_

**MILK**  
[Aside]_  
I come. *Stirs.*

**TEA**  
_Dies_

## ACT II

Not said by anyone.

**TEA**  
I *[risen]* live.
"""


def test_the_build_keeps_what_is_spoken_and_by_whom() -> None:
    title, speech = build_data.speeches(PLAY)
    assert title == "The Tempest in a Cup"
    assert speech == {
        "TEA": "Stir, stir!\nHow cafe--no, 'tea'--is drunk.\nMore!\nI live.\n",
        "MILK": "I come.\n",
    }


def test_encode_and_decode_lose_nothing_of_the_alphabet() -> None:
    assert data.encode('\n !"az').tolist() == [0, 1, 2, 3, 38, 63]
    for text in (data.ALPHABET, "", data.shakespeare()[3].text):
        ids = data.encode(text)
        assert ids.dtype == torch.int64 and ids.shape == (len(text),)
        assert data.decode(ids) == text


def test_encode_spells_what_the_alphabet_lacks() -> None:
    said = "\u201cCaf\xe9\u201d \u2018x\u2019 1\u20132 \u2014 \xdcber\t(no)"
    assert data.decode(data.encode(said)) == "\"Cafe\" 'x' - -- Uberno"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([0, 64]), "ids must be 0 to 63; got 0 to 64"),
        (torch.tensor([-1]), "ids must be 0 to 63; got -1 to -1"),
        (torch.zeros(1, 2, dtype=torch.int64), r"ids must be int64 of shape .*\(1, 2\)"),
        (torch.zeros(2), "ids must be int64 .*float32"),
    ],
)
def test_decode_takes_ids_only(ids: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.decode(ids)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_cut_parts_a_text_at_the_end_of_a_line(fraction: float) -> None:
    for role in data.shakespeare():
        before, after = data.cut(role.text, fraction)
        assert before + after == role.text and before.endswith("\n")
        # a line has about 40 characters; the longest paragraphs of the source are single lines
        assert 0 <= fraction * len(role.text) - len(before) < 200


def test_cut_never_has_more_before_than_was_asked() -> None:
    assert data.cut("ab\ncd\nef\n", 0.6) == ("ab\n", "cd\nef\n")
    assert data.cut("ab\ncd\nef\n", 0.67) == ("ab\ncd\n", "ef\n")


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_cut_takes_a_true_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction must be between 0 and 1"):
        data.cut("ab\ncd\n", fraction)


def test_cut_says_when_no_line_fits() -> None:
    for text in ("", "a long line", "a long line\nb\n"):
        with pytest.raises(ValueError, match="no line that ends in its first 0.5"):
            data.cut(text, 0.5)


# -- Pictures


def test_select_relabels_in_the_order_given() -> None:
    chosen = some([0, 1, 2, 1, 0], groups=[7, 7, 8, 9, 9]).select(["c", "a"])
    assert chosen.classes == ("c", "a")
    assert chosen.labels.tolist() == [1, 0, 1]
    assert chosen.groups.tolist() == [7, 8, 9]
    assert (chosen.images[:, 0, 0, 0] * 5).round().tolist() == [0, 2, 4]


def test_take_keeps_the_order_given() -> None:
    taken = some([0, 1, 2, 1, 0]).take([3, 0])
    assert taken.labels.tolist() == [1, 0]
    assert taken.groups.tolist() == [3, 0]
    assert (taken.images[:, 0, 0, 0] * 5).round().tolist() == [3, 0]
    assert len(taken) == 2


@pytest.mark.parametrize("names", [["a", "hat"], [], ["a", "a"]])
def test_select_takes_only_different_known_classes(names: list[str]) -> None:
    with pytest.raises(ValueError, match="class_names must be different names out of .'a', 'b'"):
        some([0, 1, 2]).select(names)


@pytest.mark.parametrize("indices", [[], [3], [-1], [0.5], [[0]], [True, False, True]])
def test_take_takes_only_indices_of_the_pictures(indices: list[int]) -> None:
    with pytest.raises(ValueError, match="indices must be whole numbers from 0 to 2"):
        some([0, 1, 2]).take(indices)


GOOD = torch.full((3, 1, 2, 2), 0.5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (GOOD[0], "shape"),
        (GOOD[:0], "N at least 1"),
        (GOOD.double(), "float64"),
        ((GOOD * 255).byte(), "uint8"),
        (GOOD * torch.nan, "NaN"),
        (torch.where(torch.arange(12).reshape(3, 1, 2, 2) == 5, torch.nan, 0.5), "NaN"),
        (GOOD * 3, r"\[0, 1\].*1.5"),
        (GOOD - 1, r"\[0, 1\].*-0.5"),
    ],
)
def test_images_are_checked(images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"^images must .*{message}"):
        Pictures(images, torch.tensor([0, 1, 2]), ("a", "b", "c"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 3]), "labels must be 0 to 2.*got 0 to 3"),
        (torch.tensor([-1, 1, 2]), "labels must be 0 to 2.*got -1 to 2"),
        (torch.tensor([0.0, 1.0, 2.0]), "labels must be int64.*float32"),
        (torch.tensor([0, 1]), r"labels must be int64 of shape \(3,\).*\(2,\)"),
    ],
)
def test_labels_are_checked(labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pictures(GOOD, labels, ("a", "b", "c"))


def test_groups_are_checked_and_by_default_each_picture_is_its_own() -> None:
    labels = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="groups must be int64"):
        Pictures(GOOD, labels, ("a", "b", "c"), groups=torch.tensor([0, 1]))
    assert Pictures(GOOD, labels, ("a", "b", "c")).groups.tolist() == [0, 1, 2]


# -- draws


def test_few_labels_is_balanced_and_without_replacement() -> None:
    train, _ = data.mnist_digits()
    few = data.few_labels(train, 20, seeded(0))
    assert torch.bincount(few.labels).tolist() == [20] * 10
    assert len(few.groups.unique()) == 200
    assert few.labels[:10].tolist() == list(range(10))


def test_few_labels_follows_its_seed_and_budgets_are_nested() -> None:
    train, _ = data.mnist_digits()
    generators = [seeded(0), seeded(0)]
    small, large = (
        data.few_labels(train, 2, generators[0]),
        data.few_labels(train, 9, generators[1]),
    )
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    assert same(small, large.take(list(range(20))))
    assert same(small, data.few_labels(train, 2, seeded(0)))
    assert not same(small, data.few_labels(train, 2, seeded(1)))


def test_few_labels_draws_every_picture_as_often() -> None:
    pictures = some([0] * 4 + [1] * 6, classes=2)
    drawn = torch.cat([data.few_labels(pictures, 1, seeded(s)).groups for s in range(600)])
    often = torch.bincount(drawn, minlength=10) / 600
    assert (often[:4] - 1 / 4).abs().max() < 0.08 and (often[4:] - 1 / 6).abs().max() < 0.08


@pytest.mark.parametrize("budget", [0, -1, 3])
def test_few_labels_takes_no_impossible_budget(budget: int) -> None:
    with pytest.raises(ValueError, match=rf"per_class must be 1 to 2, .*\(b\); got {budget}"):
        data.few_labels(some([0, 0, 0, 1, 1, 2, 2, 2]), budget, seeded(0))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.71])
def test_split_is_by_class_and_loses_nothing(seed: int, fraction: float) -> None:
    train, _ = data.mnist_digits()
    one, other = data.split(train, fraction, seeded(seed))
    expected = [round(350 * fraction)] * 10
    assert (torch.bincount(one.labels) - torch.tensor(expected)).abs().max() <= 1
    assert sorted(digests(one) + digests(other)) == sorted(digests(train))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=8, max_size=40),
    st.floats(0.1, 0.9),
    st.integers(0, 9),
)
def test_split_never_goes_through_a_group(rows, fraction: float, seed: int) -> None:
    pictures = some([label for label, _ in rows], [group * 5 - 7 for _, group in rows])
    try:
        one, other = data.split(pictures, fraction, seeded(seed))
    except ValueError as error:
        assert "leaves one part without" in str(error)
        return
    assert not set(one.groups.tolist()) & set(other.groups.tolist())
    assert len(one) + len(other) == len(pictures)
    for part in (one, other):
        assert set(part.labels.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("seed", range(20))
def test_split_of_the_photographs_keeps_near_duplicates_together(seed: int) -> None:
    pictures = data.photographs()
    one, other = data.split(pictures, 0.6, seeded(seed))
    assert not set(one.groups.tolist()) & set(other.groups.tolist())
    for part, share in ((one, 0.6), (other, 0.4)):
        wanted = torch.bincount(pictures.labels) * share
        # A class can miss its share by half of its largest group, of five pictures.
        assert (torch.bincount(part.labels) - wanted).abs().max() <= 2.5


def test_split_of_the_written_digits_keeps_forms_together() -> None:
    train, _ = data.written_digits()
    one, other = data.split(train, 0.7, seeded(0))
    assert len(one.groups.unique()) == 7 and len(other.groups.unique()) == 3
    assert not set(one.groups.tolist()) & set(other.groups.tolist())


def test_split_follows_its_seed() -> None:
    pictures = data.photographs()
    one = data.split(pictures, 0.5, seeded(0))[0]
    assert same(one, data.split(pictures, 0.5, seeded(0))[0])
    assert not same(one, data.split(pictures, 0.5, seeded(1))[0])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_split_takes_a_true_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction must be between 0 and 1"):
        data.split(some([0, 0, 1, 1, 2, 2]), fraction, seeded(0))


def test_split_says_which_class_cannot_be_on_both_sides() -> None:
    pictures = some([0, 0, 0, 0, 1, 1], groups=[0, 1, 2, 3, 4, 4], classes=2)
    with pytest.raises(ValueError, match="leaves one part without b, .* 2 pictures in 1 groups"):
        data.split(pictures, 0.5, seeded(0))
    with pytest.raises(ValueError, match="leaves one part without a"):
        data.split(some([0, 0, 1, 1], classes=2), 0.01, seeded(0))


# -- pose


def garments(n: int = 40) -> torch.Tensor:
    return data.wardrobe()[1].images[:n]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pose_without_turn_or_inversion_changes_nothing(dtype: torch.dtype) -> None:
    images = garments().to(dtype)
    posed = data.pose(images, seeded(0), degrees=0, invert=0)
    assert torch.equal(posed.images, images) and posed.images.dtype == dtype
    assert not posed.degrees.any() and not posed.inverted.any()


@pytest.mark.parametrize(("angle", "quarters"), [(90, 1), (-90, 3), (180, 2)])
def test_pose_turns_counter_clockwise(angle: float, quarters: int, monkeypatch) -> None:
    images = garments().double()
    # 2 u - 1 = angle / 180, so that every picture is turned by this angle.
    draw = torch.full((2, len(images)), (angle / 180 + 1) / 2, dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: draw)
    posed = data.pose(images, seeded(0), invert=0)
    assert torch.allclose(posed.degrees, torch.full_like(posed.degrees, angle))
    assert torch.allclose(posed.images, torch.rot90(images, quarters, (2, 3)), atol=1e-12)


def test_pose_does_to_each_picture_what_it_says() -> None:
    """A grey plane comes out as the plane turned by the angle that is returned."""
    side = (torch.arange(28, dtype=torch.float64) + 0.5) / 14 - 1
    y, x = torch.meshgrid(side, side, indexing="ij")
    images = (0.5 + 0.3 * y + 0.1 * x).expand(64, 1, 28, 28)
    posed = data.pose(images, seeded(0))
    upright = torch.where(posed.inverted[:, None, None, None], 1 - posed.images, posed.images)
    angle = posed.degrees.deg2rad()
    inner = x**2 + y**2 < 0.8
    # The slope, 0.3 down and 0.1 to the right, turns counter-clockwise.
    down = 0.3 * angle.cos() - 0.1 * angle.sin()
    right = 0.3 * angle.sin() + 0.1 * angle.cos()
    expected = 0.5 + down[:, None, None] * y + right[:, None, None] * x
    assert (upright[:, 0] - expected)[:, inner].abs().max() < 1e-9
    assert 10 < posed.inverted.sum() < 54


def test_pose_inverts_after_the_turn_and_stays_in_range() -> None:
    images = garments()
    dark, light = (data.pose(images, seeded(3), invert=p) for p in (0, 1))
    assert torch.equal(light.images, 1 - dark.images)
    assert light.inverted.all() and not dark.inverted.any()
    assert 0 <= dark.images.min() and dark.images.max() <= 1


def test_pose_brings_in_black_at_the_corners() -> None:
    posed = data.pose(torch.ones(64, 1, 28, 28), seeded(0), invert=0)
    turned = (posed.degrees.abs() % 90 - 45).abs() < 30
    assert turned.any() and not posed.images[turned][:, :, 0, 0].any()


def test_pose_draws_the_angles_and_inversions_that_were_asked_for() -> None:
    posed = data.pose(garments(1).expand(4000, 1, 28, 28), seeded(0), degrees=30, invert=0.2)
    assert posed.degrees.abs().max() <= 30
    assert posed.degrees.mean().abs() < 1.5 and abs(posed.degrees.std() - 30 / 3**0.5) < 0.6
    assert abs(posed.inverted.float().mean() - 0.2) < 0.03
    assert abs(posed.degrees[posed.inverted].mean()) < 3  # one says nothing about the other


def test_pose_follows_its_seed_and_takes_as_many_numbers_whatever_it_does() -> None:
    images = garments()
    a, b = data.pose(images, seeded(0)), data.pose(images, seeded(0))
    assert torch.equal(a.images, b.images) and torch.equal(a.degrees, b.degrees)
    assert not torch.equal(a.degrees, data.pose(images, seeded(1)).degrees)
    still, moved = seeded(0), seeded(0)
    data.pose(images, still, degrees=0, invert=0)
    double = data.pose(images.double(), moved)
    assert torch.equal(still.get_state(), moved.get_state())
    assert torch.equal(double.degrees.float(), a.degrees)
    assert torch.allclose(double.images.float(), a.images, atol=1e-4)


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (GOOD[0], {}, "images must be .*shape"),
        (GOOD[:, :, :1], {}, "images must be square"),
        (GOOD.half(), {}, "images must be .*float16"),
        (GOOD * torch.nan, {}, "NaN"),
        (GOOD * 255, {}, r"\[0, 1\]"),
        (GOOD, {"degrees": -1}, "degrees must be 0 to 180; got -1"),
        (GOOD, {"degrees": 360}, "degrees must be 0 to 180; got 360"),
        (GOOD, {"invert": 1.5}, "invert is a probability, 0 to 1; got 1.5"),
    ],
)
def test_pose_is_checked(images: torch.Tensor, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.pose(images, seeded(0), **settings)


def test_turn_by_quarters_is_exact_and_each_picture_has_its_own_angle():
    images = torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    turned = data.turn(images, torch.tensor([0.0, 90.0, -90.0]))
    expected = [images[0], images[1].rot90(1, (1, 2)), images[2].rot90(-1, (1, 2))]
    torch.testing.assert_close(turned, torch.stack(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("degrees", [torch.zeros(2), torch.zeros(3, 1)])
def test_turn_wants_an_angle_for_each_picture(degrees: torch.Tensor):
    with pytest.raises(ValueError, match=r"degrees must be \(3,\)"):
        data.turn(torch.zeros(3, 1, 4, 4), degrees)
