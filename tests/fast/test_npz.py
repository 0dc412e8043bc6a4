"""Arrays in .npz files: what is damaged or hostile is refused in one line, without harm."""

import io
import itertools
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from archives import ARRAYS, HEADER, MEMBERS, Call, npy, npy_saying, npz, refusal
from counting import counted
from stages.images.dataset import read_dataset
from stages.shared.errors import UserError
from stages.shared.npz import HARMLESS_BYTES

DATA = ARRAYS["x_train"].tobytes()


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


@pytest.mark.parametrize("key", MEMBERS)
def test_flipped_byte_in_the_data_is_refused(path, key):
    whole = bytearray(npz())
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        member = archive.getinfo(f"{key}.npy")
    name_and_header = 30 + len(member.filename)
    whole[member.header_offset + name_and_header + member.compress_size // 2] ^= 1
    assert refusal(path, whole).startswith(f"{key}: ")


def test_file_of_another_kind_and_one_truncated_at_any_length_are_refused(path):
    truncated = [npz()[:length] for length in range(0, len(npz()), 97)]
    for content in (None, b"text\n", MEMBERS["x_train"], b"PK\x05\x06" + bytes(18), *truncated):
        assert "expected" in refusal(path, content)


# The first product is right, and so is the second if it is counted in 64 bits.
SHAPES = [HEADER | {"shape": shape} for shape in ((-6, -5, 4, 3), (2**61 + 45, 8))]
TEXTS = ["{}", "__import__('os').getcwd()", "(" * 5000, "-" * 9000 + "1", f"{HEADER}{' ' * 60000}"]


@pytest.mark.parametrize("header", [*SHAPES, *TEXTS], ids=itertools.count())
def test_array_with_a_wrong_header_is_refused(path, header):
    assert refusal(path, npz(x_train=npy_saying(header, DATA))).startswith("x_train: ")


def growth_and_refusal(path: Path, content: bytes) -> tuple[int, str]:
    """Bytes of memory that are taken at most while a dataset is read, and the line that refuses it."""
    path.write_bytes(content)
    tracemalloc.start()
    try:
        text = refusal(path)
        return tracemalloc.get_traced_memory()[1], text
    finally:
        tracemalloc.stop()


def black(*shape: int) -> bytes:
    """A dataset with black images for training, and labels that fit them."""
    return npz(zipfile.ZIP_DEFLATED, x_train=npy(np.zeros(shape, "u1")), y_train=npy(np.zeros(shape[0], int)))


def lying(content: bytes, size: int, claimed: int) -> bytes:
    """An archive that is wrong about an array's size, in its index and before the array."""
    assert content.count(size.to_bytes(4, "little")) >= 2
    return content.replace(size.to_bytes(4, "little"), claimed.to_bytes(4, "little"))


NAMES = HEADER | {"descr": "<U0", "shape": (20_000_000,)}  # fit in no bytes at all


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: black(HARMLESS_BYTES // 10**6 + 1, 1000, 1000), "expected images, not a zip bomb"),
        (lambda: lying(black(100, 1000, 1000), len(npy(np.zeros(0))) + 10**8, 100_000), "x_train: header says"),
        (lambda: npz(x_train=npy_saying(HEADER | {"shape": (10**6, 32, 32, 3)}, DATA)), "x_train: header says"),
        (lambda: npz(x_train=b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + DATA), "x_train: EOF"),
        (lambda: npz(class_names=npy_saying(NAMES)), "class_names: was <U0 (20000000,), expected different texts"),
    ],
)
def test_memory_stays_small_while_it_is_refused(path, make, problem):
    growth, text = growth_and_refusal(path, make())
    assert growth < 50_000_000
    assert problem in text


def test_packed_images_are_read_and_take_no_memory(path):
    growth, text = growth_and_refusal(path, black(100, 1000, 1000))
    assert growth < 50_000_000
    assert text.startswith("x_test: images (5, 4, 3)")  # x_train was read


def mutated(content: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """The content with some of its bytes replaced by others: more, fewer or as many."""
    for place, deleted, inserted in changes:
        at = place % (len(content) + 1)
        content = content[:at] + inserted + content[at + deleted :]
    return content


CHANGE = st.tuples(st.integers(0, 2**16), st.sampled_from([0, 1, 1, 2, 30, 10**6]), st.binary(max_size=2))
CHANGES = st.lists(CHANGE, min_size=1, max_size=4)
KEY = st.sampled_from(list(MEMBERS))


@pytest.mark.filterwarnings("ignore")  # numpy's, of what it reads in a header
@pytest.mark.parametrize(
    "contents",
    [
        st.builds(mutated, st.sampled_from([npz(), npz(zipfile.ZIP_DEFLATED)]), CHANGES),
        st.builds(lambda key, changes: npz(**{key: mutated(MEMBERS[key], changes)}), KEY, CHANGES),
    ],
)
@given(data=st.data())
@hypothesis_settings(
    max_examples=300, deadline=None, derandomize=True, database=None,
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
        x = np.asarray(x)
        assert (x.dtype, x.ndim, x.shape[1:]) == (np.uint8, 4, dataset.x_train.shape[1:])
        assert (y.dtype, y.shape) == (np.int64, (len(x),))
        assert 0 <= y.min() <= y.max() < len(dataset.class_names)
    assert all(type(name) is str and name.encode() for name in dataset.class_names)
    assert len(set(dataset.class_names)) == len(dataset.class_names)
    counted["fuzzed dataset files read"] += 1
