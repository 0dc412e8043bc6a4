"""Arrays in .npz files: damaged or hostile files are refused in one line, run no code and take no memory."""

import io
import os
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from archives import ARRAYS, HEADER, MEMBERS, arrays_of, call, npy, npz, refusal
from stages.images.dataset import KEYS, read_dataset
from stages.shared import npz as npz_files
from stages.shared.errors import UserError
from stages.shared.npz import HARMLESS_BYTES, read_npz


@pytest.mark.parametrize("key", ["x_train", "y_test", "class_names"])
def test_python_objects_are_refused_and_never_unpickled(path, tmp_path, key):
    trap = tmp_path / "sprung"
    objects = npy(np.array([call(os.mkdir, str(trap))], dtype=object))
    assert refusal(path, npz(**{key: objects})).startswith(f"{key}: holds Python objects")
    assert not trap.exists()
    np.load(io.BytesIO(objects), allow_pickle=True)
    assert trap.exists()  # the trap works


def test_a_workspace_that_cannot_be_written_is_named_and_not_the_file(path, monkeypatch):
    monkeypatch.setattr(npz_files, "PREPARED", path)  # permissions do not bind root: a file where a folder should be
    path.write_bytes(npz(zipfile.ZIP_DEFLATED))
    with pytest.raises(UserError, match=f"^{path}: File exists$"):
        read_npz(path, ("x_train",), mapped=("x_train",))
    path.write_bytes(npz())
    assert read_npz(path, ("x_train",), mapped=("x_train",))["x_train"].shape == ARRAYS["x_train"].shape


def black(*shape: int) -> bytes:
    """Make a compressed dataset with black training images."""
    return npz(zipfile.ZIP_DEFLATED, x_train=npy(np.zeros(shape, "u1")), y_train=npy(np.zeros(shape[0], int)))


def with_header(header: dict | str, key: str = "x_train", data: bytes = ARRAYS["x_train"].tobytes()) -> bytes:
    """Make a dataset with an array whose header need not fit its data."""
    text = f"{header}\n".encode("latin-1")
    return npz(**{key: b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data})


SIZE = (10**8 + 128).to_bytes(4, "little")  # of 100 megapixels, in the archive's index and before the array
NAMES = HEADER | {"descr": "<U0", "shape": (20_000_000,)}  # of no bytes


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: black(HARMLESS_BYTES // 10**6 + 1, 1000, 1000), "expected images, not a zip bomb"),
        (lambda: black(100, 1000, 1000), "x_test: images (5, 4, 3), expected (1000, 1000, 1)"),  # x_train was read
        (lambda: black(100, 1000, 1000).replace(SIZE, b"\0\0\1\0"), "x_train: header says"),
        (lambda: with_header(HEADER | {"shape": (2**61 + 45, 8)}), "x_train: header says"),  # 360 in 64 bits
        (lambda: with_header(HEADER | {"shape": (-6, -5, 4, 3)}), "x_train: header says"),
        (lambda: with_header("(" * 5000), "x_train: "),
        (lambda: with_header(NAMES, "class_names", b""), "class_names: was <U0 (20000000,), expected different texts"),
    ],
)
def test_false_sizes_and_headers_are_refused_and_take_little_memory(path, make, problem):
    path.write_bytes(make())
    tracemalloc.start()
    try:
        assert problem in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


def mutated(content: bytes, place: int, deleted: int, inserted: bytes) -> bytes:
    at = place % len(content)
    return content[:at] + inserted + content[at + deleted :]


CHANGE = st.integers(0, 2**16), st.sampled_from([0, 1, 1, 2, 30, 10**6]), st.binary(max_size=2)
FILES = st.builds(mutated, st.sampled_from([npz(), npz(zipfile.ZIP_DEFLATED)]), *CHANGE)
MEMBER = st.sampled_from(list(MEMBERS))
CHECKSUMS_FIT = st.builds(lambda key, *change: npz(**{key: mutated(MEMBERS[key], *change)}), MEMBER, *CHANGE)


@pytest.mark.filterwarnings("ignore")  # numpy warns about some headers
@given(content=FILES.map(lambda content: (content, False)) | CHECKSUMS_FIT.map(lambda content: (content, True)))
@hypothesis_settings(
    max_examples=600, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_fuzzed_file_is_read_correctly_or_refused(path, content):
    content, checksums_fit = content
    path.write_bytes(content)
    try:
        dataset = read_dataset(path)
    except UserError as error:
        assert str(error).startswith(f"{path}: ")
        assert "\n" not in str(error)
        return
    assert checksums_fit or all(np.array_equal(arrays_of(dataset)[key], ARRAYS[key]) for key in KEYS)
    for x, y in ((part.x, part.y) for part in dataset.splits.values()):
        assert (np.asarray(x).dtype, x.shape[1:]) == (np.uint8, dataset.splits["train"].x.shape[1:])
        assert (y.dtype, y.shape) == (np.int64, np.asarray(x).shape[:1])
        assert 0 <= y.min() <= y.max() < len(set(dataset.class_names))
    assert all(type(name) is str and name.encode() for name in dataset.class_names)
