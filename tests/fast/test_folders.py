"""Folders of pictures: layouts, splits, duplicates, unreadable files, and two datasets brought to one shape."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from archives import ARRAYS
from stages.images.folders import read_folder
from stages.images.loading import load_datasets
from stages.settings import Data
from stages.shared.errors import UserError

CLASSES = ["ant", "bee", "cow"]


def save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def photos(folder: Path, splits: tuple[str, ...] = ("",)) -> Path:
    """Save five pictures of noise in a folder per split and class."""
    rng = np.random.default_rng(0)
    for path in [folder / split / name / f"{i}{split}.png" for split in splits for i in range(5) for name in CLASSES]:
        save(Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)), path)
    return folder


def read(folder: Path, seed: int = 1, **options: str):
    return read_folder(folder, None, Data(test_fraction=0.4, **options), seed)


def contents(images: object) -> set[bytes]:
    return {image.tobytes() for image in np.asarray(images)}


def test_test_split_is_made_by_class_and_seed(tmp_path):
    dataset = read(photos(tmp_path))
    assert dataset.class_names == CLASSES
    assert np.bincount(dataset.y_test).tolist() == [2, 2, 2]
    assert np.bincount(dataset.y_train).tolist() == [3, 3, 3]
    assert np.array_equal(read(tmp_path).x_test, dataset.x_test)
    assert not np.array_equal(read(tmp_path, seed=2).x_test, dataset.x_test)
    assert dataset.notes == ("15 pictures of 8x8 pixels", "test images split off, of all classes: 6")


@pytest.mark.parametrize("splits", [("train", "test"), ("Training", "valid"), ("train", "validation", "test")])
def test_splits_may_be_folders(tmp_path, splits):
    dataset = read(photos(tmp_path, splits))
    assert (dataset.class_names, len(dataset.y_train), len(dataset.y_test)) == (CLASSES, 15 * (len(splits) - 1), 15)
    assert contents(dataset.x_test) == contents([Image.open(path) for path in tmp_path.glob(f"{splits[-1]}/*/*")])


def test_pictures_may_be_listed_in_a_csv_file(tmp_path):
    photos(tmp_path)
    rows = [f"{CLASSES[i % 3]}/{i // 3}.png,{i % 2},{'test' if i > 9 else 'train'}" for i in range(15)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    dataset = read(tmp_path)
    assert (dataset.class_names, len(dataset.y_train), len(dataset.y_test)) == (["0", "1"], 10, 5)


def test_pictures_are_sorted_by_file_name_whatever_their_class(tmp_path):
    for i, name in enumerate(["cow", "ant", "bee", "ant"]):
        for split in ("train", "test"):
            save(Image.new("RGB", (8, 8), (i, len(split), 0)), tmp_path / split / name / f"{i}.png")
    assert read(tmp_path).y_test.tolist() == [2, 0, 1, 0]


def test_duplicates_never_cross_the_split(tmp_path):
    photos(tmp_path / "whole")
    for i in range(20):
        save(Image.open(tmp_path / "whole/ant/0.png"), tmp_path / f"whole/ant/copy{i}.bmp")
    dataset = read(tmp_path / "whole")
    assert not contents(dataset.x_train) & contents(dataset.x_test)
    assert "exact duplicates: 20" in dataset.notes
    photos(tmp_path / "split", ("train", "test"))
    save(Image.open(tmp_path / "split/test/ant/1test.png"), tmp_path / "split/train/bee/x.png")
    dataset = read(tmp_path / "split")
    assert (len(dataset.y_train), len(dataset.y_test)) == (15, 15)
    assert "left out of the training images, as they are test images, too: 1" in dataset.notes


def test_unreadable_files_are_listed_or_skipped_and_system_files_ignored(tmp_path):
    photos(tmp_path)
    for name in ("ant/notes.txt", "bee/broken.jpg", "cow/.DS_Store", "cow/Thumbs.db"):
        (tmp_path / name).write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (tmp_path / "cow/0.png").write_bytes((tmp_path / "cow/0.png").read_bytes()[:100])
    with pytest.raises(UserError) as error:
        read(tmp_path)
    first, *listed, last = str(error.value).splitlines()
    assert first == f"{tmp_path}: 3 of 17 files cannot be read:"
    assert [line.split(":")[0].strip() for line in listed] == ["cow/0.png", "bee/broken.jpg", "ant/notes.txt"]
    assert last == "Remove them, or set data.unreadable=skip"
    dataset = read(tmp_path, unreadable="skip")
    assert len(dataset.y_train) + len(dataset.y_test) == 14
    assert sum(note.startswith("skipped: ") for note in dataset.notes) == 3


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("ant/9.png", (9, 8), "pictures of different sizes, expected one size, or a size to"),
        ("9.png", (8, 8), "1 pictures in no class's folder (9.png), expected"),
        ("dog/9.png", (8, 8), "class 'dog' has 1 different pictures, expected at least 2"),
        ("a.csv", "path,label,split\nant/0.png,ant,train\n", "splits ['train'], expected train and test (or val)"),
        ("a.csv", "file,label\n", "columns ['file', 'label'], expected path, label and, optionally, split"),
        ("a.csv", "path,label\n../x.png,ant\n", "['../x.png']: expected paths in"),
    ],
)
def test_other_layout_is_refused_in_one_line(tmp_path, name, content, problem):
    photos(tmp_path)
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
    else:
        save(Image.new("RGB", content), tmp_path / name)
    with pytest.raises(UserError, match=re.escape(problem)) as error:
        read(tmp_path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(("side", "size"), [(None, (5, 4)), (16, (16, 16))])
def test_two_datasets_get_one_size_and_rgb(tmp_path, side, size):
    grey = {key: array[..., 0] if key[0] == "x" else array for key, array in ARRAYS.items()}
    np.savez(tmp_path / "grey.npz", **grey)
    path, target_path = str(tmp_path / "grey.npz"), str(photos(tmp_path / "photos"))
    source, target = load_datasets(Data(path=path, target_path=target_path, image_size=side), 1)
    assert (source.name, target.name) == ("grey", "photos")
    assert {x.shape[1:] for x in (source.x_train, source.x_test, target.x_train, target.x_test)} == {(*size, 3)}
    assert target.notes[0].endswith(f"shorter side resized and centre cropped to {size[1]}x{size[0]}")
    assert source.notes[-1] == "grey made RGB"
