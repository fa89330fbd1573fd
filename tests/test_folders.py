"""Whatever lies in a folder is read as it looks, or left alone with its name; copies are found."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mlguide import data, folders
from mlguide.folders import read_folder, read_picture

RANDOM = np.random.default_rng(0)


def picture(seed: int | None = None, side: int = 40) -> Image.Image:
    """A picture unlike any other: four by four patches of random colours."""
    random = RANDOM if seed is None else np.random.default_rng(seed)
    patches = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((side, side), Image.Resampling.NEAREST)


def fill(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture().save(root / name / f"{i:05}.png")
    return root


def notes_of(root: Path, **how) -> str:
    return "\n".join(read_folder(root, side=32, say=lambda _: None, **how).notes)


def red_and_blue(mode: str = "RGB") -> Image.Image:
    """Red on the left, blue on the right; wider than high."""
    image = Image.new("RGB", (60, 40), "blue")
    image.paste("red", (0, 0, 30, 40))
    return image.convert(mode)


def test_a_folder_is_read(tmp_path: Path):
    told: list[str] = []
    album = read_folder(fill(tmp_path, {"dogs": 3, "cats": 4}), side=32, say=told.append)
    pictures = album.pictures
    assert pictures.images.shape == (7, 3, 32, 32) and pictures.images.dtype == torch.float32
    assert pictures.classes == ("cats", "dogs") and pictures.labels.tolist() == [0] * 4 + [1] * 3
    assert album.files[0] == "cats/00000.png" and album.files[-1] == "dogs/00002.png"
    assert len(pictures.groups.unique()) == 7 and album.notes == []
    assert told == ["7 pictures in 7 groups, 2 classes of 3 to 4 pictures"]


def test_the_bundled_folder_is_what_photographs_gives():
    album = read_folder(data.FOLDER / "photographs", side=128, say=lambda _: None)
    bundled = data.photographs()
    assert len(album.pictures) == len(bundled)
    by_name = {name.lower().replace(" ", "_"): name for name in bundled.classes}
    for label, name in enumerate(album.pictures.classes):
        mine = album.pictures.images[album.pictures.labels == label]
        theirs = bundled.images[bundled.labels == bundled.classes.index(by_name[name])]
        assert sorted(mine.sum((1, 2, 3)).tolist()) == sorted(theirs.sum((1, 2, 3)).tolist())
    assert len(album.pictures.groups.unique()) == len(bundled.groups.unique())


# --- kinds of picture ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "YCbCr"])
def test_colour_modes(tmp_path: Path, mode: str):
    file = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    red_and_blue(mode).save(file)
    pixels = read_picture(file, 16).astype(int)
    assert pixels.shape == (16, 16, 3)
    assert (pixels[8, 2] - pixels[8, 13])[[0, 2]].tolist() == pytest.approx([255, -255], abs=12)


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_gets_three_equal_channels(tmp_path: Path, mode: str):
    image = Image.new("L", (20, 20), 0)
    image.paste(255, (0, 0, 10, 20))
    image.convert(mode).save(tmp_path / "a.png")
    pixels = read_picture(tmp_path / "a.png", 20)
    assert pixels[5, 2].tolist() == [255] * 3 and pixels[5, 17].tolist() == [0] * 3


@pytest.mark.parametrize(
    ("values", "suffix"),
    [
        (np.array([[0, 65535]] * 2, np.uint16), "png"),
        (np.array([[0, 65535]] * 2, np.uint16), "tif"),
        (np.array([[0, 65535]] * 2, np.int32), "tif"),
        (np.array([[0, 255]] * 2, np.int32), "tif"),
        (np.array([[0, 1]] * 2, np.float32), "tif"),
        (np.array([[np.nan, 255]] * 2, np.float32), "tif"),
    ],
)
def test_deep_grey_comes_down_to_bytes(tmp_path: Path, values: np.ndarray, suffix: str):
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(values).save(file)
    pixels = read_picture(file, 2)
    assert pixels[0, 0].tolist() == [0] * 3 and pixels[0, 1].tolist() == [255] * 3


def test_a_dark_16_bit_picture_stays_dark(tmp_path: Path):
    Image.fromarray(np.full((4, 4), 200, np.uint16)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png", 4).max() == 1


def test_what_is_transparent_is_white(tmp_path: Path):
    see_through = Image.new("RGBA", (8, 8), (10, 200, 30, 0))
    see_through.save(tmp_path / "a.png")
    assert (read_picture(tmp_path / "a.png", 8) == 255).all()
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 200, 30] * 256)
    palette.save(tmp_path / "b.gif", transparency=0)
    assert (read_picture(tmp_path / "b.gif", 8) == 255).all()
    palette.save(tmp_path / "c.gif")
    assert (read_picture(tmp_path / "c.gif", 8) == [10, 200, 30]).all()


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_picture_is_turned_as_it_was_held(tmp_path: Path, suffix: str):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    red_and_blue().save(tmp_path / f"a.{suffix}", exif=exif)
    pixels = read_picture(tmp_path / f"a.{suffix}", 16).astype(int)
    assert pixels[2, 8, 0] > 240 and pixels[13, 8, 2] > 240  # red is now above


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (700, 3), (33, 47), (3000, 2000)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]):
    Image.new("RGB", size, (200, 100, 50)).save(tmp_path / "a.png")
    assert (read_picture(tmp_path / "a.png", 32) == [200, 100, 50]).all()


def test_the_middle_is_kept(tmp_path: Path):
    image = Image.new("RGB", (90, 30), "black")
    image.paste("white", (30, 0, 60, 30))
    image.save(tmp_path / "a.png")
    assert (read_picture(tmp_path / "a.png", 30) == 255).all()


# --- files that must not stop it, or harm -------------------------------------------------------


def bomb(side: int = 100_000) -> bytes:
    """A PNG of some hundred bytes that claims to hold side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [8_000, 12_000, 100_000])  # Pillow is silent, warns, refuses
def test_a_bomb_is_refused_by_name(tmp_path: Path, side: int):
    fill(tmp_path, {"cats": 3, "dogs": 3})
    (tmp_path / "dogs" / "bomb.png").write_bytes(bomb(side))
    said = notes_of(tmp_path)
    assert "cannot be read: dogs/bomb.png (unpacks to more than 50 million pixels)" in said


def test_broken_files_are_named_and_left(tmp_path: Path):
    fill(tmp_path, {"cats": 3, "dogs": 3})
    whole = (tmp_path / "cats" / "00000.png").read_bytes()
    (tmp_path / "cats" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cats" / "empty.jpg").write_bytes(b"")
    (tmp_path / "dogs" / "text.png").write_text("not a picture")
    (tmp_path / "dogs" / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\nquit\n")
    album = read_folder(tmp_path, side=32, say=lambda _: None)
    assert len(album.pictures) == 6
    [note] = album.notes
    for name in ("cats/cut.png", "cats/empty.jpg", "dogs/text.png", "dogs/script.png"):
        assert name in note


def test_only_broken_files_are_refused(tmp_path: Path):
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_text("no")
    with pytest.raises(ValueError, match="not one picture can be read: cats/a.png"):
        read_folder(tmp_path)


def test_hidden_files_and_other_kinds_are_left(tmp_path: Path):
    fill(tmp_path, {"cats": 2, "dogs": 2, ".hidden": 2, "__MACOSX": 2, "empty": 0})
    (tmp_path / "cats" / ".DS_Store").write_text("")
    (tmp_path / "cats" / "._0.png").write_text("")
    (tmp_path / "cats" / "notes.txt").write_text("")
    (tmp_path / "cats" / "phone.HEIC").write_text("")
    picture().save(tmp_path / "loose.png")
    album = read_folder(tmp_path, side=32, say=lambda _: None)
    assert album.pictures.classes == ("cats", "dogs") and len(album.pictures) == 4
    said = "\n".join(album.notes)
    assert "not a kind of picture that is read: cats/notes.txt, cats/phone.HEIC" in said
    assert "in no sub-folder, so of no class: loose.png" in said
    assert "no picture in it: empty" in said and "DS_Store" not in said and "._" not in said


def test_suffixes_in_capitals_are_read(tmp_path: Path):
    fill(tmp_path, {"cats": 2, "dogs": 2})
    picture().save(tmp_path / "cats" / "CAMERA.JPG")
    assert "cats/CAMERA.JPG" in read_folder(tmp_path, side=32, say=lambda _: None).files


def test_nested_folders_are_named(tmp_path: Path):
    fill(tmp_path, {"cats": 2, "dogs": 2, "dogs/puppies": 2})
    assert "a sub-folder of a class is not read: dogs/puppies" in notes_of(tmp_path)
    fill(tmp_path / "above", {"train/cats": 2, "train/dogs": 2})
    with pytest.raises(ValueError, match="none of its sub-folders holds a picture.*train/cats"):
        read_folder(tmp_path / "above")


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links here")
def test_links_are_not_followed(tmp_path: Path):
    outside = fill(tmp_path / "outside", {"secret": 2}) / "secret"
    inside = fill(tmp_path / "inside", {"cats": 2, "dogs": 2})
    (inside / "linked").symlink_to(outside, target_is_directory=True)
    (inside / "cats" / "linked.png").symlink_to(outside / "00000.png")
    (inside / "cats" / "nowhere.png").symlink_to(tmp_path / "nothing")
    (inside / "groups.csv").symlink_to(tmp_path / "nothing")
    album = read_folder(inside, side=32, say=lambda _: None)
    assert len(album.pictures) == 4 and album.pictures.classes == ("cats", "dogs")
    assert "links are not followed: groups.csv, linked, cats/linked.png" in album.notes[0]


def test_a_missing_or_empty_folder_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="nothing is not a folder"):
        read_folder(tmp_path / "nothing")
    with pytest.raises(ValueError, match="must hold one sub-folder of pictures.*It is empty"):
        read_folder(tmp_path)


def test_odd_names_can_be_printed(tmp_path: Path):
    fill(tmp_path, {"$x$ café": 2, "dogs": 2})
    os.rename(tmp_path / "dogs", os.fsencode(tmp_path) + b"/d\xffgs\n")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xffgs\n")) / "a.txt").write_text("")
    told: list[str] = []
    album = read_folder(tmp_path, side=32, say=told.append)
    assert album.pictures.classes == ("$x$ café", r"d\udcffgs\n")
    "\n".join(told).encode()
    assert r"d\udcffgs\n/a.txt" in album.notes[0]
    assert folders.short("$x$ café and much more") == r"\$x\$ café and …"


# --- classes and copies -------------------------------------------------------------------------


def test_a_class_of_one_picture_is_left_out_by_name(tmp_path: Path):
    fill(tmp_path, {"cats": 3, "dogs": 3, "unicorns": 1})
    album = read_folder(tmp_path, side=32, say=lambda _: None)
    assert album.pictures.classes == ("cats", "dogs") and len(album.pictures) == 6
    assert album.notes == ["fewer than two separate pictures, left out: unicorns"]


def test_two_copies_are_not_two_separate_pictures(tmp_path: Path):
    fill(tmp_path, {"cats": 3, "dogs": 3, "twins": 0})
    for name in "ab":
        picture(5).save(tmp_path / "twins" / f"{name}.png")
    assert read_folder(tmp_path, side=32, say=lambda _: None).pictures.classes == ("cats", "dogs")


def test_one_class_is_refused(tmp_path: Path):
    fill(tmp_path, {"cats": 5, "dogs": 1})
    with pytest.raises(ValueError, match="two classes .* but there is cats.*left out: dogs"):
        read_folder(tmp_path, side=32)


def test_copies_are_of_one_group_and_others_are_not(tmp_path: Path):
    fill(tmp_path, {"cats": 5, "dogs": 5})
    original = picture(7, side=4).resize((128, 128), Image.Resampling.BICUBIC)
    original.save(tmp_path / "cats" / "one.png")
    original.save(tmp_path / "cats" / "same.png")
    original.resize((90, 90)).save(tmp_path / "cats" / "small.jpg", quality=80)
    album = read_folder(tmp_path, side=32, say=lambda _: None)
    group = dict(zip(album.files, album.pictures.groups.tolist(), strict=True))
    copies = ("cats/one.png", "cats/same.png", "cats/small.jpg")
    assert len({group[name] for name in copies}) == 1
    assert len(album.pictures) == 13 and len(set(group.values())) == 11
    assert "same or nearly" in album.notes[0] and "cats/one.png ~ cats/same.png" in album.notes[0]


def test_a_picture_in_two_classes_is_left_out(tmp_path: Path):
    fill(tmp_path, {"cats": 3, "dogs": 3})
    for name in ("cats", "dogs"):
        picture(9).save(tmp_path / name / "both.png")
    album = read_folder(tmp_path, side=32, say=lambda _: None)
    assert len(album.pictures) == 6
    assert "in two classes, left out: cats/both.png, dogs/both.png" in album.notes[-1]


def test_where_all_look_alike_only_equal_ones_are_held_together(tmp_path: Path):
    base = np.asarray(picture(3)).astype(int)
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
        for i in range(6):
            part = base.copy()
            part[i, i] = 255 - part[i, i] if name == "bad" else part[i, i] // 2
            Image.fromarray(part.astype(np.uint8)).save(tmp_path / name / f"{i}.png")
    Image.open(tmp_path / "good" / "0.png").save(tmp_path / "good" / "again.png")
    album = read_folder(tmp_path, side=40, say=lambda _: None)
    assert len(album.pictures) == 13 and len(album.pictures.groups.unique()) == 12
    assert any("many pictures look nearly the same" in note for note in album.notes)


def test_groups_csv_holds_together(tmp_path: Path):
    fill(tmp_path, {"cats": 4, "dogs": 4})
    table = tmp_path / "groups.csv"
    table.write_text("file,group\ncats/00000.png,tom\ncats/00003.png,tom\ndogs/00001.png,rex\n")
    album = read_folder(tmp_path, side=32, say=lambda _: None)
    group = dict(zip(album.files, album.pictures.groups.tolist(), strict=True))
    assert group["cats/00000.png"] == group["cats/00003.png"] and len(set(group.values())) == 7
    assert album.notes == ["groups.csv tells of 2 groups"]
    table.write_text("name;number\na;1\n")
    with pytest.raises(ValueError, match="groups.csv must have the columns file and group"):
        read_folder(tmp_path)


# --- many ---------------------------------------------------------------------------------------


def test_two_hundred_classes_and_ten_thousand_pictures(tmp_path: Path):
    fill(tmp_path, {f"class {i:03}": 2 for i in range(200)})
    for folder in sorted(tmp_path.iterdir()):
        for i in range(48):  # links cost no pixels here; hard ones are files like all others
            os.link(folder / f"{i % 2:05}.png", folder / f"again {i}.png")
    told: list[str] = []
    album = read_folder(tmp_path, side=32, most=650, say=told.append)
    assert told[0] == "read 200 of 650 pictures"
    assert any("650 of 10,000 pictures were drawn to save time" in note for note in album.notes)
    assert len(album.pictures.classes) <= 200 and torch.bincount(album.pictures.labels).max() == 4
    few = read_folder(tmp_path, side=32, most=10, say=lambda _: None)
    assert "600 of 10,000 pictures were drawn to save time (most=10)" in "\n".join(few.notes)


def test_a_draw_keeps_rare_classes_and_shares():
    by_class = {
        name: [Path(name) / str(i) for i in range(n)]
        for name, n in (("rare", 3), ("some", 1000), ("many", 9000))
    }
    drawn = folders._sample(by_class, 500, 0)
    counts = [sum(path.parts[0] == name for path in drawn) for name in by_class]
    assert len(set(drawn)) == 500 and counts[0] == 3
    assert counts[2] / counts[1] == pytest.approx(9, abs=0.5)
    assert folders._sample(by_class, 500, 0) == drawn != folders._sample(by_class, 500, 1)
    assert len(folders._sample(by_class, 20_000, 0)) == 10_003
