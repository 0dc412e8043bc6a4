"""Pictures: every kind is read upright as RGB of one size, folders and lists as they are meant, duplicates once."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from archives import ARRAYS
from stages.images.pictures import read_picture, read_pictures
from stages.images.source import load_both
from stages.settings import Data
from stages.shared.errors import UserError

RED, GREEN, WHITE = (204, 0, 0), (0, 204, 0), (255, 255, 255)  # as palettes have them
CLASSES = ["ant", "bee", "cow"]


def halves_of(left: tuple, right: tuple, size: tuple[int, int] = (40, 20)) -> Image.Image:
    """A picture whose left half has one colour, its right half another; `size` is (width, height)."""
    picture = Image.new("RGB", size, right)
    picture.paste(left, (0, 0, size[0] // 2, size[1]))
    return picture


def save(picture: Image.Image, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    return path


def turned() -> dict:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    return {"exif": exif}


def gray16() -> Image.Image:
    return Image.fromarray(np.full((20, 40), 60_000, np.uint16))


def clear(mode: str) -> Image.Image:
    """Its left half is transparent."""
    picture = halves_of(RED, GREEN).convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, 20, 20))
    return picture.convert(mode)


TWO = halves_of(RED, GREEN)
SAID = "transparent, put on white"


@pytest.mark.parametrize(
    ("picture", "name", "options", "left", "right", "changes"),
    [
        (TWO, "a.png", {}, RED, GREEN, ()),
        (TWO, "a.jpg", {"quality": 95}, RED, GREEN, ()),
        (TWO, "a.JPEG", {"quality": 95}, RED, GREEN, ()),
        (TWO, "a.webp", {"lossless": True}, RED, GREEN, ()),
        (TWO, "a.bmp", {}, RED, GREEN, ()),
        (TWO.convert("CMYK"), "a.tiff", {}, RED, GREEN, ()),
        (TWO, "a.gif", {"save_all": True, "append_images": [halves_of(WHITE, WHITE)]}, RED, GREEN, ()),
        (TWO.convert("P"), "a.png", {}, RED, GREEN, ()),
        (Image.new("L", (40, 20), 77), "a.png", {}, (77,) * 3, (77,) * 3, ("greyscale",)),
        (Image.new("1", (40, 20), 1), "a.png", {}, WHITE, WHITE, ("greyscale",)),
        (gray16(), "a.png", {}, (233,) * 3, (233,) * 3, ("16 bit made 8", "greyscale")),
        (clear("RGBA"), "a.png", {}, WHITE, GREEN, (SAID,)),
        (TWO.convert("RGBA"), "a.png", {}, RED, GREEN, ()),
        (clear("PA").convert("RGBA"), "a.webp", {"lossless": True}, WHITE, GREEN, (SAID,)),
        (TWO.rotate(90, expand=True), "a.jpg", turned(), RED, GREEN, ("turned as EXIF says",)),
    ],
)
def test_every_kind_is_read_upright_as_rgb(tmp_path, picture, name, options, left, right, changes):
    pixels, _, said = read_picture(save(picture, tmp_path / name, **options), None)
    assert (pixels.shape, pixels.dtype, said) == ((20, 40, 3), np.uint8, changes)
    for column, colour in ((5, left), (35, right)):
        assert np.abs(pixels[10, column].astype(int) - colour).max() <= 12  # JPEG, palettes


def test_32_bit_is_refused(tmp_path):
    for kind in (np.float32, np.int32):
        path = save(Image.fromarray(np.ones((20, 40), kind)), tmp_path / "a.tiff")
        with pytest.raises(ValueError, match="32-bit pixels, expected 8 or 16"):
            read_picture(path, None)


def test_shorter_side_is_resized_and_the_centre_cropped(tmp_path):
    picture = halves_of(RED, GREEN, (3000, 2000))
    picture.paste(WHITE, (0, 0, 400, 2000))  # left of the centre
    for name in ("a.png", "a.jpg"):
        pixels = read_picture(save(picture, tmp_path / name), (32, 32)).pixels
        assert pixels.shape == (32, 32, 3)
        assert np.abs(pixels[:, :14].astype(int) - RED).max() <= 15
        assert np.abs(pixels[:, -14:].astype(int) - GREEN).max() <= 15


def photos(folder: Path, parts: tuple[str, ...] = ("",), per_class: int = 5) -> Path:
    """Pictures of noise in a folder for each class, of each part."""
    rng = np.random.default_rng(0)
    for part in parts:
        for i in range(per_class):
            for name in CLASSES:
                noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                save(noise, folder / part / name / f"{i}{part}.png")
    return folder


def read(folder: Path, size: tuple[int, int] | None = None, skip: bool = False):
    return read_pictures(folder, size, Data(test_fraction=0.4, unreadable="skip" if skip else "stop"), 1)


def test_test_part_is_split_off_by_class_and_seed(tmp_path):
    dataset = read(photos(tmp_path / "photos"))
    assert dataset.class_names == CLASSES
    assert np.bincount(dataset.y_test).tolist() == [2, 2, 2]
    assert np.bincount(dataset.y_train).tolist() == [3, 3, 3]
    assert np.array_equal(read(tmp_path / "photos").x_test, dataset.x_test)
    other = read_pictures(tmp_path / "photos", None, Data(test_fraction=0.4), 2)
    assert not np.array_equal(other.x_test, dataset.x_test)
    assert dataset.notes == ("15 pictures of 8x8 pixels", "test images split off, of all classes: 6")


@pytest.mark.parametrize("parts", [("train", "test"), ("Training", "valid"), ("train", "validation", "test")])
def test_parts_may_be_folders(tmp_path, parts):
    dataset = read(photos(tmp_path / "photos", parts))
    assert (dataset.class_names, len(dataset.y_test)) == (CLASSES, 15)
    assert len(dataset.y_train) == 15 * (len(parts) - 1)
    held_out = parts[-1]
    expected = {read_picture(path, None).pixels.tobytes() for path in tmp_path.glob(f"photos/{held_out}/*/*.png")}
    assert {picture.tobytes() for picture in np.asarray(dataset.x_test)} == expected


def test_pictures_stand_in_the_order_of_their_names_whatever_their_class(tmp_path):
    for i, name in enumerate(["cow", "ant", "bee", "ant"]):
        for part in ("train", "test"):
            save(Image.new("RGB", (8, 8), (i, len(part), 0)), tmp_path / part / name / f"{i}.png")
    assert read(tmp_path).y_test.tolist() == [2, 0, 1, 0]


def test_pictures_may_be_listed_in_a_file(tmp_path):
    photos(tmp_path)
    files = [f"{CLASSES[i % 3]}/{i // 3}.png,{'odd' if i % 2 else 'even'}" for i in range(15)]
    rows = [f"{file},{'test' if i > 9 else 'train'}" for i, file in enumerate(files)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    dataset = read(tmp_path)
    assert (dataset.class_names, len(dataset.y_train), len(dataset.y_test)) == (["even", "odd"], 10, 5)
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *files]))
    assert len(read(tmp_path).y_test) == 6  # two fifths of each class


def test_equal_pictures_never_stand_on_both_sides(tmp_path):
    photos(tmp_path / "split")
    for i in range(20):
        save(Image.open(tmp_path / "split/ant/0.png"), tmp_path / f"split/ant/copy{i}.bmp")
    dataset = read(tmp_path / "split")
    train, test = ({image.tobytes() for image in np.asarray(x)} for x in (dataset.x_train, dataset.x_test))
    assert not train & test
    assert "exact duplicates: 20" in dataset.notes
    photos(tmp_path / "given", ("train", "test"))
    save(Image.open(tmp_path / "given/test/ant/1test.png"), tmp_path / "given/train/bee/x.png")
    dataset = read(tmp_path / "given")
    assert (len(dataset.y_train), len(dataset.y_test)) == (15, 15)
    assert "left out of the training images, as they are test images, too: 1" in dataset.notes


def test_what_cannot_be_read_is_listed_or_skipped(tmp_path):
    photos(tmp_path)
    for name in ("ant/notes.txt", "bee/broken.jpg", "cow/.DS_Store", "cow/Thumbs.db", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (tmp_path / "cow/cut.png").write_bytes((tmp_path / "cow/0.png").read_bytes()[:100])
    with pytest.raises(UserError) as error:
        read(tmp_path)
    first, *listed, last = str(error.value).splitlines()
    assert first == f"{tmp_path}: 3 of 18 files cannot be read:"
    assert [line.split(":")[0].strip() for line in listed] == ["bee/broken.jpg", "cow/cut.png", "ant/notes.txt"]
    assert last == "Remove them, or set data.unreadable=skip"
    dataset = read(tmp_path, skip=True)
    assert len(dataset.y_train) + len(dataset.y_test) == 15
    assert sum(note.startswith("skipped: ") for note in dataset.notes) == 3
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="18 of 18 files cannot be read"):
        read(tmp_path, skip=True)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("ant/9.png", (9, 8), "pictures of different sizes, expected one size, or one to"),
        ("9.png", (8, 8), "1 pictures in no class's folder (9.png), expected"),
        ("a.csv", "path,label,split\nant/0.png,ant,train\n", "parts ['train'], expected train and test (or val)"),
        ("dog/9.png", (8, 8), "class 'dog' has 1 different pictures, expected at least 2"),
        ("a.csv", "file,label\n", "columns ['file', 'label'], expected path, label and, optionally, split"),
        ("a.csv", "path,label\n../x.png,ant\n", "['../x.png']: expected paths in"),
        ("a.csv", "path,label,split\nant/0.png,ant,dev\n", "split ['dev'], expected some of"),
        ("a.csv", "path,label\n", "no pictures, expected"),
    ],
)
def test_folder_that_is_laid_out_otherwise_is_refused(tmp_path, name, content, problem):
    photos(tmp_path)
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
    else:
        save(Image.new("RGB", content), tmp_path / name)
    with pytest.raises(UserError, match=re.escape(problem)) as error:
        read(tmp_path)
    assert str(error.value).isprintable()


def test_channels_that_do_not_go_together_are_refused(tmp_path):
    for channels, problem in ((4, "4 channels, expected 3"), (2, "images of 2 channels, expected 1, 3 or 4")):
        four = {k: np.repeat(a[..., :1], channels, 3) if k[0] == "x" else a for k, a in ARRAYS.items()}
        np.savez(tmp_path / f"{channels}.npz", **four)
        photos(tmp_path / "photos")
        data = Data(path=str(tmp_path / "photos"), target_path=str(tmp_path / f"{channels}.npz"))
        with pytest.raises(UserError, match=problem):
            load_both(data, 1)


def test_two_datasets_are_brought_to_one_size_and_to_colour(tmp_path):
    grey = {key: array[..., 0] if key[0] == "x" else array for key, array in ARRAYS.items()}
    np.savez(tmp_path / "source.npz", **grey)
    photos(tmp_path / "photos")
    for side, size in ((None, (5, 4)), (16, (16, 16))):
        data = Data(path=str(tmp_path / "source.npz"), target_path=str(tmp_path / "photos"), image_size=side)
        (name, source), (target_name, target) = load_both(data, 1)
        assert (name, target_name) == ("source", "photos")
        assert {x.shape[1:] for x in (source.x_train, source.x_test, target.x_train, target.x_test)} == {(*size, 3)}
    assert target.notes[0] == "15 pictures of 8x8 pixels, shorter side resized and centre cropped to 16x16"
    assert source.notes == ("resized from 4x5 to 16x16 pixels: shorter side, then centre cropped", "grey made RGB")
