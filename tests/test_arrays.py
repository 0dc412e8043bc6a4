"""Datasets as .npz files: the good are read whole, anything else is refused in one line, without harm."""

import io
import itertools
import math
import os
import pickle
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from counting import counted
from stages.arrays import Dataset, read_dataset, read_npz, write_npz
from stages.settings import UserError

ROOT = Path(__file__).resolve().parent.parent
TRAIN, TEST, CLASSES = 6, 4, 3
MEGABYTE = 2**20


def good_arrays() -> dict[str, np.ndarray]:
    """Arrays of a dataset in which height, width and channels differ, as do all images."""
    rng = np.random.default_rng(3)
    return {
        "x_train": rng.integers(0, 256, (TRAIN, 5, 4, 3), dtype=np.uint8),
        "y_train": np.arange(TRAIN) % CLASSES,
        "x_test": rng.integers(0, 256, (TEST, 5, 4, 3), dtype=np.uint8),
        "y_test": np.arange(TEST) % CLASSES,
        "class_names": np.array(["ant", "bee", "cow"]),
    }


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_saying(header: dict | str, data: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    """A .npy file whose header need not be true."""
    text = f"{header}\n".encode("latin-1")
    length = len(text).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + text + data


def npz(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of .npy members, whose checksums are right whatever the members hold."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for key, content in members.items():
            archive.writestr(f"{key}.npy", content)
    return buffer.getvalue()


GOOD_MEMBERS = {key: npy(array) for key, array in good_arrays().items()}
HEADER = {"descr": "|u1", "fortran_order": False, "shape": (TRAIN, 5, 4, 3)}
DATA = good_arrays()["x_train"].tobytes()


def refusal(path: Path) -> str:
    """The one line that refuses a file, without the file's name that it starts with."""
    with pytest.raises(UserError) as error:
        read_dataset(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert len(text.splitlines()) == 1
    counted["bad dataset files refused"] += 1
    return text.removeprefix(f"{path}: ")


def assert_contract(dataset: Dataset) -> None:
    """What every stage may rely on."""
    for x, y in ((dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test)):
        assert x.dtype == np.uint8
        assert x.ndim == 4
        assert x.size > 0
        assert y.dtype == np.int64
        assert y.shape == (len(x),)
        assert 0 <= y.min() <= y.max() < len(dataset.class_names)
    assert dataset.x_train.shape[1:] == dataset.x_test.shape[1:]
    assert all(type(name) is str and name.encode() for name in dataset.class_names)
    assert len(set(dataset.class_names)) == len(dataset.class_names)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "dataset.npz"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_dataset_is_read_as_it_was_saved(path, save):
    arrays = good_arrays()
    save(path, **arrays)
    dataset = read_dataset(path)
    assert_contract(dataset)
    for key in ("x_train", "y_train", "x_test", "y_test"):
        assert np.array_equal(getattr(dataset, key), arrays[key])
    assert dataset.class_names == ["ant", "bee", "cow"]


def test_images_without_channels_get_one(path):
    arrays = good_arrays()
    gray = {key: arrays[key][..., 0] for key in ("x_train", "x_test")}
    np.savez(path, **arrays | gray)
    dataset = read_dataset(path)
    assert_contract(dataset)
    assert dataset.x_train.shape == (TRAIN, 5, 4, 1)
    assert np.array_equal(dataset.x_train[..., 0], gray["x_train"])
    assert np.array_equal(dataset.x_test[..., 0], gray["x_test"])


def test_fortran_order_changes_no_pixel(path):
    arrays = good_arrays()
    np.savez(path, **arrays | {key: np.asfortranarray(arrays[key]) for key in ("x_train", "x_test")})
    dataset = read_dataset(path)
    assert np.array_equal(dataset.x_train, arrays["x_train"])
    assert np.array_equal(dataset.x_test, arrays["x_test"])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "<i4", ">i8", "uint64"])
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_labels_of_any_whole_type_in_a_row_or_a_column(path, dtype, shape):
    arrays = good_arrays()
    labels = {key: arrays[key].astype(dtype).reshape(shape) for key in ("y_train", "y_test")}
    np.savez(path, **arrays | labels)
    dataset = read_dataset(path)
    assert_contract(dataset)
    assert np.array_equal(dataset.y_train, arrays["y_train"])
    assert np.array_equal(dataset.y_test, arrays["y_test"])


def test_classes_without_names_are_called_by_their_numbers(path):
    arrays = good_arrays()
    del arrays["class_names"]
    np.savez(path, **arrays)
    assert read_dataset(path).class_names == ["0", "1", "2"]


def test_further_arrays_are_ignored(path):
    np.savez(path, **good_arrays(), note=np.array("by hand"))
    assert_contract(read_dataset(path))


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_missing_array_is_refused_and_the_present_ones_are_named(path, key):
    arrays = good_arrays()
    arrays[f"{key}_"] = arrays.pop(key)
    np.savez(path, **arrays)
    text = refusal(path)
    assert text.startswith(f"{key}: missing, expected x_train, y_train, x_test, y_test")
    assert all(repr(name) in text for name in arrays)


ARRAYS = good_arrays()
NOT_A_NUMBER = np.where(ARRAYS["x_test"] > 99, np.nan, 1.0)


@pytest.mark.parametrize(
    ("key", "array", "problem"),
    [
        ("x_train", ARRAYS["x_train"] / 255, "x_train: was float64 (6, 5, 4, 3), expected uint8"),
        ("x_test", NOT_A_NUMBER, "x_test: was float64 (4, 5, 4, 3), expected uint8"),
        ("x_train", ARRAYS["x_train"].astype(np.int16), "x_train: was int16 (6, 5, 4, 3), expected uint8"),
        ("x_train", ARRAYS["x_train"] > 99, "x_train: was bool (6, 5, 4, 3), expected uint8"),
        ("x_train", ARRAYS["x_train"].reshape(TRAIN, -1), "x_train: was uint8 (6, 60), expected uint8 images (N, H"),
        ("x_test", ARRAYS["x_test"][None], "x_test: was uint8 (1, 4, 5, 4, 3), expected uint8 images (N, H"),
        ("x_test", np.uint8(7), "x_test: was uint8 (), expected uint8 images (N, H"),
        ("x_train", ARRAYS["x_train"][:0], "x_train: was uint8 (0, 5, 4, 3), expected"),
        ("x_test", ARRAYS["x_test"][:, :0], "x_test: was uint8 (4, 0, 4, 3), expected"),
        ("x_train", ARRAYS["x_train"].view([("r", "u1")]), "x_train: was [('r', 'u1')] (6, 5, 4, 3), expected uint8"),
        ("x_test", np.zeros(TEST, dtype=[("rgb", [("r", "u1", (5, 4))])]), "x_test: was "),
        ("x_test", ARRAYS["x_test"][:, :4], "x_test: images (4, 4, 3), expected (5, 4, 3) as in x_train"),
        ("x_test", ARRAYS["x_test"][..., 0], "x_test: images (5, 4, 1), expected (5, 4, 3) as in x_train"),
        ("y_train", ARRAYS["y_train"][:-1], "y_train: was int64 (5,), expected whole numbers (6,)"),
        ("x_test", ARRAYS["x_test"][:-1], "y_test: was int64 (4,), expected whole numbers (3,)"),
        ("y_test", ARRAYS["y_test"][:0], "y_test: was int64 (0,), expected whole numbers (4,)"),
        ("y_train", np.eye(CLASSES, dtype=int)[ARRAYS["y_train"]], "y_train: was int64 (6, 3), expected"),
        ("y_train", ARRAYS["y_train"].astype(float), "y_train: was float64 (6,), expected whole numbers"),
        ("y_train", ARRAYS["y_train"] > 0, "y_train: was bool (6,), expected whole numbers"),
        ("y_test", np.array(["ant"] * TEST), "y_test: was <U3 (4,), expected whole numbers"),
        ("y_train", ARRAYS["y_train"] - 1, "y_train: labels -1 to 1, expected 0 or more"),
        ("y_test", np.full(TEST, 2**64 - 1, dtype=np.uint64), "y_test: labels 18446744073709551615 to "),
        ("y_test", ARRAYS["y_test"] + 1, "label 3, expected less than the number of class_names, 3"),
        ("class_names", np.array(["ant", "bee", "ant"]), "class_names: was <U3 (3,), expected different texts"),
        ("class_names", np.array(["ant", "", "cow"]), "class_names: was <U3 (3,), expected different texts"),
        ("class_names", np.array([["ant", "bee", "cow"]]), "class_names: was <U3 (1, 3), expected"),
        ("class_names", np.array([1, 2, 3]), "class_names: was int64 (3,), expected"),
        ("class_names", np.array([b"ant", b"bee", b"cow"]), "class_names: was |S3 (3,), expected"),
        ("class_names", np.array([], dtype=str), "label 2, expected less than the number of class_names, 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_array_that_does_not_fit_is_refused(path, key, array, problem):
    np.savez(path, **good_arrays() | {key: array})
    assert refusal(path).startswith(problem)


def test_huge_label_without_class_names_is_refused(path):
    np.savez(path, **{k: v for k, v in good_arrays().items() if k != "class_names"} | {"y_test": np.arange(4) + 2**40})
    assert refusal(path).startswith(f"labels up to {2**40 + 3}, expected")


class _Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("key", ["x_train", "y_test", "class_names"])
def test_object_array_is_refused_and_never_unpickled(path, tmp_path, key):
    trap = tmp_path / "sprung"
    np.savez(path, **good_arrays() | {key: np.array([_Payload(trap)], dtype=object)})
    text = refusal(path)
    assert not trap.exists()
    assert text.startswith(f"{key}: holds Python objects")
    with np.load(path, allow_pickle=True) as archive:
        archive[key]
    assert trap.exists()  # the trap works


@pytest.mark.parametrize("disguise", ["bare pickle", "structured", "header that denies it"])
def test_disguised_objects_are_refused_and_never_unpickled(path, tmp_path, disguise):
    trap = tmp_path / "sprung"
    objects = pickle.dumps(np.array([_Payload(trap)], dtype=object))
    member = {
        "bare pickle": objects,
        "structured": npy(np.array([(1, _Payload(trap))], dtype=[("number", int), ("object", object)])),
        "header that denies it": npy_saying(HEADER | {"shape": (len(objects),)}, objects),
    }[disguise]
    path.write_bytes(npz(GOOD_MEMBERS | {"x_train": member}))
    assert refusal(path).startswith("x_train: ")
    assert not trap.exists()
    pickle.loads(objects)
    assert trap.exists()  # the trap works


@pytest.mark.parametrize("number", [0x110000, 0x7FFFFFFF, 0xFFFFFFFF, 0xD800])
def test_names_that_are_no_text_are_refused(path, number):
    names = np.array([number, 98, 99], dtype="<u4").view("<U1")
    path.write_bytes(npz(GOOD_MEMBERS | {"class_names": npy(names)}))
    assert refusal(path).startswith("class_names: ")


def test_truncated_file_is_refused_at_every_length(path):
    whole = npz(GOOD_MEMBERS)
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        assert "expected an .npz file" in refusal(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("key", GOOD_MEMBERS)
def test_flipped_byte_in_the_data_is_refused(path, compression, key):
    whole = bytearray(npz(GOOD_MEMBERS, compression))
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        member = archive.getinfo(f"{key}.npy")
    name_and_header = 30 + len(member.filename)
    whole[member.header_offset + name_and_header + member.compress_size // 2] ^= 1
    path.write_bytes(whole)
    text = refusal(path)
    assert text.startswith(f"{key}: ")
    assert "expected" in text


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"x_train y_train\n1 2\n", id="text"),
        pytest.param(GOOD_MEMBERS["x_train"], id="npy"),
        pytest.param(b"\x1f\x8b\x08\x00", id="gzip"),
        pytest.param(b"PK\x05\x06", id="end of a zip"),
        pytest.param(b"PK\x05\x06" + bytes(18), id="empty zip"),
    ],
)
def test_file_of_another_kind_is_refused(path, content):
    path.write_bytes(content)
    assert "expected" in refusal(path)


def test_folder_is_refused(path):
    path.mkdir()
    assert refusal(path) == "Is a directory, expected an .npz file"


def test_missing_file_is_refused(path):
    assert refusal(path) == "No such file or directory, expected an .npz file"


@pytest.mark.parametrize(
    "member",
    [
        npy_saying(HEADER | {"shape": (TRAIN, 5, 4, 4)}, DATA),
        npy_saying(HEADER | {"shape": (TRAIN, 5, 4, 2)}, DATA),
        npy_saying(HEADER | {"shape": (-TRAIN, -5, 4, 3)}, DATA),
        npy_saying(HEADER | {"shape": (-1, 5, 4, 3)}, DATA),
        npy_saying(HEADER | {"shape": (2**33, 2**31, 1, 1)}, b""),  # 0 bytes, were it counted in 64 bits
        npy_saying(HEADER | {"shape": (1,) * 70}, b"1"),
        npy_saying(HEADER | {"shape": (True, 1, 1)}, b"1"),
        npy_saying(HEADER | {"shape": 360}, DATA),
        npy_saying(HEADER | {"shape": (6.0, 60.0)}, DATA),
        npy_saying(HEADER | {"descr": "|V0", "shape": (2**40,)}, b""),
        npy_saying(HEADER | {"descr": "<U0", "shape": (2**40,)}, b""),
        npy_saying(HEADER | {"descr": ("|u1", (3,)), "shape": (TRAIN, 5, 4)}, DATA),
        npy_saying(HEADER | {"descr": "no such type"}, DATA),
        npy_saying(HEADER | {"descr": "<U9999999999"}, DATA),
        npy_saying(HEADER | {"fortran_order": None}, DATA),
        npy_saying({"descr": "|u1"}, DATA),
        npy_saying("__import__('os').getcwd()", DATA),
        npy_saying("(" * 5000, DATA),
        npy_saying("-" * 9000 + "1", DATA),
        npy_saying(f"{HEADER}{' ' * 60000}", DATA),
        npy_saying("\n\n", DATA),
        npy_saying(HEADER, DATA, version=(9, 9)),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + DATA,
        b"\x93NUMPY",
        b"",
    ],
    ids=range(25),
)
def test_header_that_is_wrong_is_refused(path, member):
    path.write_bytes(npz(GOOD_MEMBERS | {"x_train": member}))
    assert refusal(path).startswith("x_train: ")


def test_later_header_version_is_read(path):
    path.write_bytes(npz(GOOD_MEMBERS | {"x_train": npy_saying(HEADER, DATA, version=(2, 0))}))
    assert np.array_equal(read_dataset(path).x_train, ARRAYS["x_train"])


# One process starts the one that is measured: on Linux a process's peak begins with that of the one that starts it.
START = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[1:]]))"
MEASURE = """
import resource, sys
from pathlib import Path
from stages.arrays import read_dataset
from stages.settings import UserError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

before = peak()
try:
    read_dataset(Path(sys.argv[1]))
except UserError as error:
    print(error, file=sys.stderr)
print(peak() - before)
"""


def peak_growth(path: Path) -> tuple[int, str]:
    """Bytes by which the peak of memory grows when a dataset is read, and the line that refuses it."""
    result = subprocess.run(
        [sys.executable, "-c", START, "-c", MEASURE, str(path)], cwd=ROOT, check=True,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return int(result.stdout), result.stderr


def write_large(path: Path, images: int, compression: int) -> None:
    """A dataset of black 32x32x3 images, written piece by piece."""
    header = npy_saying(HEADER | {"shape": (images, 32, 32, 3)}, b"")
    with zipfile.ZipFile(path, "w", compression) as archive:
        for key in ("y_train", "x_test", "y_test"):
            archive.writestr(f"{key}.npy", GOOD_MEMBERS[key])
        with archive.open("x_train.npy", "w") as member:
            member.write(header)
            for _ in range(images // 1024):
                member.write(bytes(3072 * 1024))


def zip_bomb(path: Path) -> None:
    write_large(path, 170 * 1024, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("x_train.npy").file_size > 500 * MEGABYTE
    assert path.stat().st_size < MEGABYTE


def zip_bomb_that_denies_it(path: Path) -> None:
    """The sizes in the archive's own index are small, but the compressed data go on."""
    zip_bomb(path)
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo("x_train.npy").file_size
    content = path.read_bytes()
    assert content.count(size.to_bytes(4, "little")) >= 1
    path.write_bytes(content.replace(size.to_bytes(4, "little"), (100_000).to_bytes(4, "little")))


def header_of_far_too_many_images(path: Path) -> None:
    path.write_bytes(npz(GOOD_MEMBERS | {"x_train": npy_saying(HEADER | {"shape": (10**6, 32, 32, 3)}, DATA)}))


def index_and_header_of_too_many_images(path: Path) -> None:
    """Index and header agree on what would pass as harmless, but the data are not there."""
    claimed = 250 * MEGABYTE
    header = npy_saying(HEADER | {"shape": (claimed // 4, 2, 2)}, b"")
    member = header + DATA
    whole = npz(GOOD_MEMBERS | {"x_train": member}, zipfile.ZIP_DEFLATED)
    old, new = (size.to_bytes(4, "little") for size in (len(member), len(header) + claimed))
    assert whole.count(old) >= 2
    path.write_bytes(whole.replace(old, new))


def long_header(path: Path) -> None:
    path.write_bytes(npz(GOOD_MEMBERS | {"x_train": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + DATA}))


def two_gigabytes_of_nothing(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**31)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (zip_bomb, "zip bomb"),
        (zip_bomb_that_denies_it, "x_train: "),
        (header_of_far_too_many_images, "does not fit its length"),
        (index_and_header_of_too_many_images, "x_train: "),
        (long_header, "x_train: "),
        (two_gigabytes_of_nothing, "expected an .npz file"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_memory_stays_small_while_it_is_refused(path, make, problem):
    make(path)
    growth, text = peak_growth(path)
    assert growth < 100 * MEGABYTE
    assert text.startswith(f"{path}: ")
    assert problem in text
    assert len(text.splitlines()) == 1


def test_memory_that_is_taken_would_be_seen(path):
    write_large(path, 50 * 1024, zipfile.ZIP_STORED)
    growth, text = peak_growth(path)
    assert growth > 140 * MEGABYTE
    assert "x_test: images (5, 4, 3)" in text  # x_train was read


def mutated(content: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    """Bytes with some of them flipped, inserted, deleted, or the end cut off."""
    changed = bytearray(content)
    for kind, place, value in changes:
        at = place % (len(changed) + 1)
        if kind == "flip":
            changed[at : at + 1] = [value ^ byte for byte in changed[at : at + 1]]
        elif kind == "insert":
            changed[at:at] = bytes([value] * (1 + value % 9))
        elif kind == "delete":
            del changed[at : at + 1 + value % 99]
        else:
            del changed[at:]
    return bytes(changed)


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "flip", "insert", "delete", "truncate"]),
        st.integers(0, 2**16),
        st.integers(1, 255),
    ),
    min_size=1,
    max_size=4,
)
SIZES = st.integers(0, 6)
STRANGE_SIZES = st.sampled_from([-1, 2**31, 2**32, 2**63, 2**64, 10**30, True, 1.0, None, "4"])
HEADERS = st.fixed_dictionaries(
    {
        "descr": st.sampled_from(
            [
                *("|u1", "<i8", "<U3", "<U1") * 6,
                *("|u1", "|i1", "|b1", "<i4", ">i8", "<u8", "<f8", "<c16", "|O", "|S1", "<U1", "<U0", "|V0", "|V4"),
                *("<M8[s]", "<m8[ns]", "u1,u1", "", "x", None, 5, (), []),
                *(("|u1", (2,)), [("a", "|u1")], [("a", "|O")], [("a\nb", "|u1", (2,))], [("a", [("b", "<U1")])]),
            ]
        ),
        "fortran_order": st.sampled_from([False, False, True, True, None]),
        "shape": st.one_of(
            st.lists(SIZES, max_size=5).map(tuple),
            st.lists(st.one_of(SIZES, STRANGE_SIZES), max_size=5).map(tuple),
            SIZES,
        ),
    }
)
fuzz = hypothesis_settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def assert_read_or_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        dataset = read_dataset(path)
    except UserError as error:
        assert str(error).startswith(f"{path}: ")
        assert len(str(error).splitlines()) == 1
        counted["fuzzed dataset files refused"] += 1
    else:
        assert_contract(dataset)
        counted["fuzzed dataset files read"] += 1


@fuzz
@given(compressed=st.booleans(), changes=CHANGES)
def test_damaged_archive_is_read_right_or_refused(path, compressed, changes):
    whole = npz(GOOD_MEMBERS, zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED)
    assert_read_or_refused(path, mutated(whole, changes))


@fuzz
@pytest.mark.filterwarnings("ignore:Reading `.npy` or `.npz` file required additional header parsing")
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@given(key=st.sampled_from(list(GOOD_MEMBERS)), changes=CHANGES)
def test_damaged_array_in_a_sound_archive_is_read_right_or_refused(path, key, changes):
    # Most of the changes go into the header, which is the part that is interpreted.
    changes = [(kind, place % 128 if place % 3 else place, value) for kind, place, value in changes]
    assert_read_or_refused(path, npz(GOOD_MEMBERS | {key: mutated(GOOD_MEMBERS[key], changes)}))


def fitting_length(header: dict) -> int:
    """How many bytes of data a header asks for; 0 where that is no small number."""
    shape = header["shape"]
    if not isinstance(shape, tuple) or not all(type(size) is int and 0 <= size < 10 for size in shape):
        return 0
    try:
        return np.dtype(header["descr"]).itemsize * math.prod(shape)
    except TypeError:
        return 0


@fuzz
@given(key=st.sampled_from(list(GOOD_MEMBERS)), header=HEADERS, pattern=st.binary(min_size=1), fits=st.booleans())
def test_array_with_any_header_is_read_right_or_refused(path, key, header, pattern, fits):
    length = fitting_length(header) if fits else 99
    data = (pattern * length)[:length]
    assert_read_or_refused(path, npz(GOOD_MEMBERS | {key: npy_saying(header, data)}))


def test_written_arrays_are_read_back(path):
    arrays = good_arrays() | {"note": np.array("a text alone")}
    write_npz(path, arrays)
    back = read_npz(path, tuple(arrays))
    assert back.keys() == arrays.keys()
    for key, array in arrays.items():
        assert (back[key].dtype, back[key].shape) == (array.dtype, array.shape)
        assert np.array_equal(back[key], array)


def test_equal_arrays_make_equal_bytes(tmp_path, monkeypatch):
    clock = itertools.count(1_000_000_000, 1000)
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    arrays = good_arrays()
    write_npz(tmp_path / "a.npz", arrays)
    write_npz(tmp_path / "b.npz", {key: array.copy() for key, array in arrays.items()})
    write_npz(tmp_path / "c.npz", {key: np.asfortranarray(array) for key, array in arrays.items()})
    first = (tmp_path / "a.npz").read_bytes()
    assert (tmp_path / "b.npz").read_bytes() == first
    assert (tmp_path / "c.npz").read_bytes() == first
    write_npz(tmp_path / "d.npz", arrays | {"y_test": arrays["y_test"] + 1})
    assert (tmp_path / "d.npz").read_bytes() != first


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
@pytest.mark.parametrize("before", [None, b"what was there before"])
def test_failed_writing_leaves_nothing_new_under_the_name(tmp_path, monkeypatch, step, before):
    path = tmp_path / "new folder" / "half.npz"
    if before:
        path.parent.mkdir()
        path.write_bytes(before)
    write_bytes = Path.write_bytes

    def fail(self: Path, content: bytes | Path) -> None:
        if step == "write_bytes":
            write_bytes(self, bytes(content)[:100])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, step, fail)
        with pytest.raises(UserError, match=r"half\.npz: No space left"):
            write_npz(path, good_arrays())
    assert (path.read_bytes() if path.exists() else None) == before
    write_npz(path, good_arrays())  # and what failed is not in the way
    assert_contract(read_dataset(path))
    assert [file.name for file in path.parent.iterdir()] == ["half.npz"]
