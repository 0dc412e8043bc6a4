"""Arrays in .npz files: what is damaged or hostile is refused in one line, without harm; what is written is whole."""

import contextlib
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

from archives import ARRAYS, HEADER, MEMBERS, Call, npy, npy_saying, npz, refusal
from counting import counted
from repository import ROOT
from stages.images.dataset import read_dataset
from stages.shared.errors import UserError
from stages.shared.npz import HARMLESS_BYTES, write_npz

DATA = ARRAYS["x_train"].tobytes()
MEGABYTE = 2**20


@pytest.fixture
def path(tmp_path):
    return tmp_path / "dataset.npz"


@pytest.mark.parametrize("disguise", ["none", "structured", "bare pickle", "header that denies it"])
@pytest.mark.parametrize("key", ["x_train", "y_test", "class_names"])
def test_objects_are_refused_and_never_unpickled(path, tmp_path, key, disguise):
    trap = tmp_path / "sprung"
    objects = np.array([Call(os.mkdir, str(trap))], dtype=object)
    pickled = pickle.dumps(objects)
    member = {
        "none": npy(objects),
        "structured": npy(np.array([(objects[0],)], dtype=[("object", object)])),
        "bare pickle": pickled,
        "header that denies it": npy_saying(HEADER | {"shape": (len(pickled),)}, pickled),
    }[disguise]
    openly = disguise in ("none", "structured")
    assert refusal(path, npz(**{key: member})).startswith(f"{key}: {'holds Python objects' * openly}")
    assert not trap.exists()
    np.load(io.BytesIO(member if openly else pickled), allow_pickle=True)
    assert trap.exists()  # the trap works


def test_truncated_file_is_refused_at_every_length(path):
    for length in range(0, len(npz()), 97):
        assert "expected an .npz file" in refusal(path, npz()[:length])


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("key", MEMBERS)
def test_flipped_byte_in_the_data_is_refused(path, compression, key):
    whole = bytearray(npz(compression))
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        member = archive.getinfo(f"{key}.npy")
    name_and_header = 30 + len(member.filename)
    whole[member.header_offset + name_and_header + member.compress_size // 2] ^= 1
    assert refusal(path, whole).startswith(f"{key}: ")


NEWER_ZIP = npz().replace(b"PK\x01\x02\x14\x03\x14", b"PK\x01\x02\x14\x03\xff")  # needs version 25.5 to be unpacked
OTHERS = [None, b"", b"x_train y_train\n1 2\n", MEMBERS["x_train"], b"PK\x05\x06" + bytes(18), NEWER_ZIP]


@pytest.mark.parametrize("content", OTHERS, ids=["missing", "empty", "text", "npy", "empty zip", "newer zip"])
def test_file_of_another_kind_is_refused(path, content):
    assert "expected" in refusal(path, content)


# The first product is right, and so is the second if it is counted in 64 bits.
SHAPES = [HEADER | {"shape": shape} for shape in ((-6, -5, 4, 3), (2**61 + 45, 8))]
TEXTS = ["{}", "__import__('os').getcwd()", "(" * 5000, "-" * 9000 + "1", f"{HEADER}{' ' * 60000}"]


@pytest.mark.parametrize("header", [*SHAPES, *TEXTS], ids=itertools.count())
def test_array_with_a_wrong_header_is_refused(path, header):
    assert refusal(path, npz(x_train=npy_saying(header, DATA))).startswith("x_train: ")


# One process starts the one that is measured: on Linux a process's peak begins with that of the one that starts it.
START = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[1:]]))"
MEASURE = """
import resource, sys
from pathlib import Path
from stages.images.dataset import UserError, read_dataset

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_dataset(Path(sys.argv[1]))
except UserError as error:
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(growth if sys.platform == "darwin" else growth * 1024, error)
"""


def peak_growth_and_refusal(path: Path, content: bytes) -> tuple[int, str]:
    """Bytes by which the peak of memory grows while a dataset is read, and the line that refuses it."""
    path.write_bytes(content)
    command = [sys.executable, "-c", START, "-c", MEASURE, str(path)]
    growth, _, text = subprocess.check_output(command, cwd=ROOT, text=True, timeout=120).partition(f" {path}: ")
    return int(growth), text


def black(*shape: int, dtype: str = "u1") -> bytes:
    """A dataset with black images for training, and labels that fit them."""
    return npz(zipfile.ZIP_DEFLATED, x_train=npy(np.zeros(shape, dtype)), y_train=npy(np.zeros(shape[0], int)))


def lying(content: bytes, size: int, claimed: int) -> bytes:
    """An archive that is wrong about an array's size, in its index and before the array."""
    assert content.count(size.to_bytes(4, "little")) >= 2
    return content.replace(size.to_bytes(4, "little"), claimed.to_bytes(4, "little"))


CLAIMED = npy_saying(HEADER | {"shape": (6, 6000, 6000)})  # passes as harmless, but the data are not there
NAMES = HEADER | {"descr": "<U0", "shape": (20_000_000,)}  # fit in no bytes at all
LYING = npz(zipfile.ZIP_DEFLATED, x_train=CLAIMED + DATA)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: black(HARMLESS_BYTES // 10**6 + 1, 1000, 1000), "expected images, not a zip bomb"),
        (lambda: lying(black(100, 1000, 1000), len(npy(np.zeros(0))) + 10**8, 100_000), "x_train: header says"),
        (lambda: lying(LYING, len(CLAIMED + DATA), len(CLAIMED) + 6 * 6000 * 6000), "x_train: EOF"),
        (lambda: npz(x_train=npy_saying(HEADER | {"shape": (10**6, 32, 32, 3)}, DATA)), "x_train: header says"),
        (lambda: npz(x_train=b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + DATA), "x_train: EOF"),
        (lambda: black(25, 1000, 1000, dtype="f4"), "x_train: was float32 (25, 1000, 1000), expected uint8"),
        (lambda: black(10**5, 1000), "x_train: was uint8 (100000, 1000), expected uint8 images (N, H, W, C)"),
        (lambda: npz(class_names=npy_saying(NAMES)), "class_names: was <U0 (20000000,), expected different texts"),
    ],
    ids=["bomb", "bomb that denies it", "index lies", "header lies", "long header", "floats", "rows", "empty names"],
)
def test_memory_stays_small_while_it_is_refused(path, make, problem):
    growth, text = peak_growth_and_refusal(path, make())
    assert growth < 50 * MEGABYTE
    assert problem in text
    assert len(text.splitlines()) == 1


def test_memory_that_is_taken_would_be_seen(path):
    growth, text = peak_growth_and_refusal(path, black(100, 1000, 1000))
    assert growth > 90 * MEGABYTE
    assert text.startswith("x_test: images (5, 4, 3)")  # x_train was read


def mutated(content: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """The content with some of its bytes replaced by others: more, fewer or as many."""
    for place, deleted, inserted in changes:
        at = place % (len(content) + 1)
        content = content[:at] + inserted + content[at + deleted :]
    return content


def with_header(key: str, header: dict, pattern: bytes, fits: bool) -> bytes:
    """A dataset one array of which has any header, and as many bytes as it asks for if that can be said."""
    length, shape = 99, header["shape"]
    if fits and isinstance(shape, tuple) and set(shape) <= set(range(7)):
        with contextlib.suppress(TypeError):  # there is no such type
            length = np.dtype(header["descr"]).itemsize * int(math.prod(shape))
    return npz(**{key: npy_saying(header, (pattern * length)[:length])})


CHANGE = st.tuples(st.integers(0, 2**16), st.sampled_from([0, 1, 1, 2, 30, 10**6]), st.binary(max_size=2))
CHANGES = st.lists(CHANGE, min_size=1, max_size=4)
KEY = st.sampled_from(list(MEMBERS))
DESCR = [
    *("|u1", "<i8", "<U3", "<U1") * 6,
    *("|i1", "|b1", ">i8", "<u8", "<f8", "<c16", "|O", "|S1", "<U0", "|V0", "|V4", "<M8[s]", "u1,u1", "", "x", None),
    *(5, (), [], ("|u1", (2,)), [("a", "|u1")], [("a", "|O")], [("a\nb", "|u1", (2,))], [("a", [("b", "<U1")])]),
]
SIZE = st.integers(0, 6)
STRANGE_SIZE = st.sampled_from([-1, 2**31, 2**32, 2**63, 2**64, 10**30, True, 1.0, None, "4"])
SHAPE = st.lists(SIZE, max_size=5).map(tuple) | st.lists(SIZE | STRANGE_SIZE, max_size=5).map(tuple) | SIZE
ORDER = st.sampled_from([False, False, True, True, None])
HEADERS = st.fixed_dictionaries({"descr": st.sampled_from(DESCR), "fortran_order": ORDER, "shape": SHAPE})


@pytest.mark.filterwarnings("ignore")  # numpy's, of what it reads in a header
@pytest.mark.parametrize(
    "contents",
    [
        st.builds(mutated, st.sampled_from([npz(), npz(zipfile.ZIP_DEFLATED)]), CHANGES),
        st.builds(lambda key, changes: npz(**{key: mutated(MEMBERS[key], changes)}), KEY, CHANGES),
        st.builds(with_header, KEY, HEADERS, st.binary(min_size=1), st.booleans()),
    ],
    ids=["archive", "array", "header"],
)
@given(data=st.data())
@hypothesis_settings(
    max_examples=200, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_damaged_file_is_read_right_or_refused(path, contents, data):
    path.write_bytes(data.draw(contents))
    try:
        dataset = read_dataset(path)
    except UserError as error:
        assert str(error).startswith(f"{path}: ")
        assert len(str(error).splitlines()) == 1
        counted["fuzzed dataset files refused"] += 1
        return
    for x, y in ((dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test)):
        assert (x.dtype, x.ndim, x.shape[1:]) == (np.uint8, 4, dataset.x_train.shape[1:])
        assert (y.dtype, y.shape) == (np.int64, (len(x),))
        assert 0 <= y.min() <= y.max() < len(dataset.class_names)
    assert all(type(name) is str and name.encode() for name in dataset.class_names)
    assert len(set(dataset.class_names)) == len(dataset.class_names)
    counted["fuzzed dataset files read"] += 1


def test_equal_arrays_make_equal_bytes(path, monkeypatch):
    clock = itertools.count(1_000_000_000, 1000)
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))

    def written(arrays: dict[str, np.ndarray]) -> bytes:
        write_npz(path, arrays)
        return path.read_bytes()

    assert written(ARRAYS) == written({key: np.asfortranarray(array) for key, array in ARRAYS.items()})
    assert written(ARRAYS) != written(ARRAYS | {"y_test": ARRAYS["y_test"] + 1})


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_failed_writing_leaves_what_was_there(path, monkeypatch, step):
    write_npz(path, ARRAYS)
    before, write_bytes = path.read_bytes(), Path.write_bytes

    def fail(self: Path, content: bytes | Path) -> None:
        if step == "write_bytes":
            write_bytes(self, bytes(content)[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, step, fail)
    for target in (path, path.with_name("new.npz")):
        with pytest.raises(UserError, match=r"\.npz: No space left"):
            write_npz(target, {"other": np.zeros(4)})
    assert [(file, file.read_bytes()) for file in path.parent.iterdir()] == [(path, before)]
