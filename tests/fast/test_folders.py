"""Folders of pictures: layouts and lists, unreadable files, and what is never left out without a word."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from archives import ARRAYS
from stages.images.dataset import validate_arrays
from stages.images.loading import check_settings, load, load_datasets
from stages.images.split import split
from stages.settings import Data
from stages.shared.errors import UserError
from stages.shared.tasks import Task

CLASSES = ["ant", "bee", "cow"]
SOURCE = validate_arrays(Path("source.npz"), dict(ARRAYS))


def save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def photos(folder: Path, splits: tuple[str, ...] = ("",)) -> Path:
    """Save five pictures of noise in a folder per split and class."""
    rng = np.random.default_rng(0)
    for path in [folder / part / name / f"{i}{part}.png" for part in splits for i in range(5) for name in CLASSES]:
        save(Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)), path)
    return folder


def read(folder: Path, seed: int = 1, **options) -> Task:
    """Read a folder as the target task; the source's is another dataset."""
    data = Data(target_path=str(folder), **{"test_fraction": 0.4} | options)
    return split(SOURCE, load(folder, data, ("target",)), data, seed)["target"]


def contents(images: object) -> set[bytes]:
    return {image.tobytes() for image in np.asarray(images)}


def test_test_split_is_made_by_class_and_seed(tmp_path):
    task = read(photos(tmp_path))
    assert task.class_names == CLASSES
    assert np.bincount(task.test.y).tolist() == [2, 2, 2]
    assert np.bincount(task.train.y).tolist() == [3, 3, 3]
    for part in (task.train, task.test):
        pixels = np.stack([np.asarray(Image.open(tmp_path / name)) for name in part.names])
        assert np.array_equal(pixels, part.x)
    assert np.array_equal(read(tmp_path).test.x, task.test.x)
    assert not np.array_equal(read(tmp_path, seed=2).test.x, task.test.x)
    assert task.notes[:2] == ("15 pictures of 8x8 pixels", "test images split off: 6")


@pytest.mark.parametrize(
    ("splits", "counts"),
    [
        (("train", "test"), {"train": 15, "validation": 0, "test": 15}),
        (("Training", "valid"), {"train": 9, "validation": 15, "test": 6}),
        (("train", "validation", "test"), {"train": 15, "validation": 15, "test": 15}),
    ],
)
def test_splits_may_be_folders(tmp_path, splits, counts):
    task = read(photos(tmp_path, splits))
    assert (task.class_names, task.counts) == (CLASSES, counts)
    for part, name in ((task.validation, "val"), (task.test, "test")):
        files = [Image.open(path) for path in tmp_path.glob(f"{name}*/*/*")]
        assert not files or contents(part.x) == contents(files)
    if counts["validation"]:
        with pytest.raises(UserError, match=r"validation_fraction: was 0.1, expected 0: .* has a validation split"):
            read(tmp_path, validation_fraction=0.1)


@pytest.mark.parametrize(
    ("heading", "separator", "prefix"),
    [
        ("path,label,split", ",", ""),
        ("\ufefffile_name;Category;set", ";", ".\\"),
        ("label\tfilename\tsplit", "\t", "{}/"),
        ("File,Class,Subset", ",", r"C:\Users\me\{}" + "\\"),
    ],
)
def test_pictures_may_be_listed_in_a_csv_file(tmp_path, heading, separator, prefix):
    folder = photos(tmp_path / "photos")
    prefix = prefix.format(folder if prefix == "{}/" else folder.name)
    rows = [heading]
    for i in range(15):
        path, label = f"{prefix}{CLASSES[i % 3]}/{i // 3}.png", str(i % 2)
        if "\\" in prefix:
            path = path.replace("/", "\\")
        cells = (label, path) if heading.startswith("label") else (path, label)
        rows.append(separator.join([*cells, "test" if i > 9 else "Train"]))
    (folder / "list.csv").write_text("\n".join(rows), encoding="utf-8")
    task = read(folder)
    assert (task.class_names, task.counts) == (["0", "1"], {"train": 10, "validation": 0, "test": 5})
    assert not any("not used" in note for note in task.notes)
    assert {str(name) for name in task.test.names} == {f"{CLASSES[i % 3]}/{i // 3}.png" for i in range(10, 15)}


def test_pictures_of_one_group_are_in_one_split(tmp_path):
    folder = photos(tmp_path / "photos")
    rows = [f"{name}/{i}.png,{name},{name if i < 3 else ''},train" for name in CLASSES for i in range(5)]
    (folder / "list.csv").write_text("\n".join(["path,label,group,splt", *rows]))
    assert "column of the list that is not used: splt" in read(folder).notes
    for task in (read(folder), read(photos(tmp_path / "others"), groups=r"(.*)/[012]\.png")):
        assert task.counts == {"train": 9, "validation": 0, "test": 6}
        assert {name[4:] for name in task.test.names} == {"3.png", "4.png"}  # three would be too many
        assert "groups, none of them in two splits: 3" in task.notes
    with pytest.raises(UserError, match=r"data.groups: was .\(zz\)., expected a pattern found in names such as 'ant"):
        read(tmp_path / "others", groups="(zz)")
    for pattern in ("(", "a", "(a)(b)"):
        with pytest.raises(UserError, match=r"data.groups: was .*, expected a pattern with one group, such as \(pat"):
            check_settings(Data(groups=pattern))


def test_equal_pictures_are_never_in_two_splits(tmp_path):
    photos(tmp_path / "whole")
    for i in range(20):
        save(Image.open(tmp_path / "whole/ant/0.png"), tmp_path / f"whole/ant/copy{i}.bmp")
    task = read(tmp_path / "whole", validation_fraction=0.3)
    parts = [contents(part.x) for part in (task.train, task.validation, task.test)]
    assert not parts[0] & parts[1] | parts[1] & parts[2] | parts[0] & parts[2]
    assert "exact duplicates: 20" in task.notes
    folder = photos(tmp_path / "split", ("train", "test"))
    save(Image.open(folder / "test/ant/1test.png"), folder / "train/bee/x.png")
    task = read(folder)
    assert task.counts == {"train": 15, "validation": 0, "test": 15}
    assert task.warnings == (
        "pictures with several labels (1): test/ant/1test.png is 'ant' but train/bee/x.png is 'bee'",
        "images left out of training, as they are test images, too (1)",
    )


def test_pretraining_does_not_see_the_test_images_of_the_target(tmp_path):
    photos(tmp_path / "target")
    (photos(tmp_path / "source") / "ant").rename(tmp_path / "source/ape")
    data = Data(path=str(tmp_path / "source"), target_path=str(tmp_path / "target"))
    tasks = split(*load_datasets(data), data, 1)
    assert not contents(tasks["source"].train.x) & contents(tasks["target"].test.x)
    said = "images left out of training, as they are test images of the target task (1)"
    assert tasks["source"].warnings == (said,)


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
    task = read(tmp_path, unreadable="skip")
    assert sum(task.counts.values()) == 14
    assert sum(note.startswith("skipped: ") for note in task.notes) == 3


@pytest.mark.parametrize(("kind", "raised"), [(MemoryError, MemoryError), (PermissionError, UserError)])
def test_an_error_of_the_system_is_no_property_of_a_picture(tmp_path, monkeypatch, kind, raised):
    def fail(path, *_, **__):
        raise kind(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(raised, match="Permission denied"):
        read(photos(tmp_path), unreadable="skip")


def test_only_the_chosen_classes_are_looked_at(tmp_path):
    photos(tmp_path)
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog/one.png").write_text("no picture")
    assert read(tmp_path, target_classes=["cow", "ant"]).class_names == ["cow", "ant"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda f: save(Image.new("RGB", (9, 8)), f / "ant/9.png"), "pictures of different sizes, expected one size"),
        (lambda f: [save(Image.new("RGB", (1025, 8)), f / f"ant/{i}.png") for i in range(5)], "of 1025x8 pixels, exp"),
        (lambda f: save(Image.new("RGB", (8, 8)), f / "9.png"), "1 pictures in no class's folder (9.png), expected"),
        (lambda f: save(Image.new("RGB", (8, 8)), f / "dog/9.png"), "class 'dog' has 1 different pictures, expect"),
        (lambda f: (f / "a.csv").write_text("path,label,split\nant/0.png,ant,test\n"), "splits ['test'], expected tr"),
        (lambda f: (f / "a.csv").write_text("file,name\n"), "columns ['file', 'name'], expected columns path, label"),
        (lambda f: (f / "a.csv").write_text("path,label\nant/0.png,ant,test\n"), "row 2 has 3 values, expected 2"),
        (lambda f: (f / "a.csv").write_text("path,label\n../x.png,ant\n"), "'../x.png': expected paths in"),
        (lambda f: (f / "a.csv").write_bytes(b"path,label\nant/0.png,K\xe4fer\n"), "not UTF-8 (in Excel: CSV UTF-8"),
        (lambda f: (f / "owl").mkdir(), "owl: an empty folder, expected pictures, or no such folder"),
        (lambda f: (f / "ant/more").symlink_to(f / "bee"), "ant/more: a link to a folder, which DVC does not look"),
        (lambda f: photos(f / "old~"), "old~: excluded by .dvcignore, which DVC does not look into"),
        (lambda f: os.mkfifo(f / "ant/pipe"), "ant/pipe: not a regular file, expected a picture"),
        (lambda f: [p.write_text("") for p in (f / "cow").iterdir()], "classes ['cow']: none of their files can be"),
    ],
)  # fmt: skip
def test_nothing_is_left_out_without_a_word(tmp_path, change, problem):
    change(photos(tmp_path))
    with pytest.raises(UserError, match=re.escape(problem)) as error:
        read(tmp_path, unreadable="skip")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(("side", "size"), [(None, (5, 4)), (16, (16, 16))])
def test_two_datasets_get_one_size_and_rgb(tmp_path, side, size):
    grey = {key: array[..., 0] if key[0] == "x" else array for key, array in ARRAYS.items()}
    np.savez(tmp_path / "grey.npz", **grey)
    path, target_path = str(tmp_path / "grey.npz"), str(photos(tmp_path / "photos"))
    source, target = load_datasets(Data(path=path, target_path=target_path, image_size=side))
    assert (source.name, target.name) == ("grey", "photos")
    assert {part.x.shape[1:] for dataset in (source, target) for part in dataset.splits.values()} == {(*size, 3)}
    assert target.notes[0].endswith(f"resized to {size[1]}x{size[0]}: shorter side, then centre cropped")
    assert source.notes[-1] == "grey made RGB"
