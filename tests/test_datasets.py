"""Where datasets come from: archives that are fetched, kept, checked and read, over HTTP on this machine alone."""

import os
import pickle
import pickletools
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import requests
import yaml

import archives
from archives import BATCHES, CLASS_NAMES, Server, call, cifar_archive, sha256, text
from repository import ROOT, default_params
from stages import datasets
from stages.arrays import Dataset
from stages.datasets import Unavailable, cache_path, dataset_name, load, read_pointer
from stages.settings import UserError

ARCHIVE = "cifar-10-python.tar.gz"
GOOD = cifar_archive()
TRAIN = [batch for batch in BATCHES if batch != "test_batch"]


@pytest.fixture(scope="module")
def shared_server():
    with archives.serving() as server:
        yield server


@pytest.fixture
def server(shared_server) -> Server:
    shared_server.answers.clear()
    shared_server.requests.clear()
    return shared_server


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Keep away from the user's cache, from Keras's folder, and from proxies."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def pointer(tmp_path):
    """Write a pointer and return its path; a key given as None is left out."""

    def write(*urls: str, content: bytes = GOOD, **changes) -> Path:
        path = tmp_path / "data" / "raw" / "cifar10.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        keys = {
            "name": "CIFAR-10",
            "urls": list(urls),
            "sha256": sha256(content),
            "format": "cifar10-python",
            "class_names": CLASS_NAMES,
        } | changes
        path.write_text(yaml.safe_dump({key: value for key, value in keys.items() if value is not None}))
        return path

    return write


@pytest.fixture
def cached(tmp_path):
    """The names of all files in the cache."""
    return lambda: [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.fixture
def dead_url():
    """An address at which nothing answers."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    return f"http://127.0.0.1:{port}/{ARCHIVE}"


@pytest.fixture
def refused(server, pointer):
    """Serve an archive whose hash fits, and return the one line that refuses it."""

    def refusal(content: bytes) -> str:
        path = pointer(server.add(ARCHIVE, server.content(content)), content=content)
        with pytest.raises(UserError) as error:
            load(path)
        line = str(error.value)
        archive = cache_path(read_pointer(path))
        assert line.startswith(f"{archive}: ")
        assert len(line.splitlines()) == 1
        return line.removeprefix(f"{archive}: ")

    return refusal


def assert_is_the_archives(dataset: Dataset) -> None:
    assert dataset.x_train.dtype == dataset.x_test.dtype == np.uint8
    assert dataset.y_train.dtype == dataset.y_test.dtype == np.int64
    assert np.array_equal(dataset.x_train, np.concatenate([archives.images(batch) for batch in TRAIN]))
    assert np.array_equal(dataset.x_test, archives.images("test_batch"))
    assert dataset.y_train.tolist() == [label for batch in TRAIN for label in archives.labels(batch)]
    assert dataset.y_test.tolist() == archives.labels("test_batch")
    assert dataset.class_names == CLASS_NAMES


def test_archive_is_laid_out_as_the_official_one():
    batch = archives.batch_pickle("data_batch_1")
    opcodes = [opcode.name for opcode, _, _ in pickletools.genops(batch)]
    assert opcodes[0] == "PROTO"
    assert {"SHORT_BINSTRING", "BINSTRING", "GLOBAL", "REDUCE", "BUILD"} <= set(opcodes)
    assert not any("UNICODE" in opcode for opcode in opcodes)
    names = {argument for opcode, argument, _ in pickletools.genops(batch) if opcode.name == "GLOBAL"}
    assert names == {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}
    images = archives.images("data_batch_1")
    assert images.dtype == np.uint8
    for y, x, channel in ((0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1), (31, 30, 2)):
        stored = archives.rows("data_batch_1")[2 * 3072 + channel * 1024 + y * 32 + x]
        assert images[2, y, x, channel] == stored == archives.pixel(2, y, x, channel)


def test_fetched_archive_is_read_pixel_by_pixel(server, pointer, cached):
    url = server.add(ARCHIVE, server.content(GOOD))
    assert_is_the_archives(load(pointer(url)))
    assert server.requests_of(url) == 1
    assert cached() == [ARCHIVE]


def test_second_load_uses_the_cache(server, pointer):
    url = server.add(ARCHIVE, server.content(GOOD))
    path = pointer(url)
    first, second = load(path), load(path)
    assert server.requests_of(url) == 1
    assert np.array_equal(first.x_train, second.x_train)
    assert_is_the_archives(second)


def test_cache_is_outside_the_workspace_and_told_apart_by_hash(tmp_path, pointer, dead_url):
    one = cache_path(read_pointer(pointer(dead_url)))
    other = cache_path(read_pointer(pointer(dead_url, content=b"other")))
    assert one.is_relative_to(tmp_path / "cache")
    assert one.name == other.name == ARCHIVE
    assert one.parent != other.parent


def test_connection_that_ends_early_is_tried_again(server, pointer, cached):
    url = server.add(ARCHIVE, server.cut_off(GOOD), server.content(GOOD))
    assert_is_the_archives(load(pointer(url)))
    assert server.requests_of(url) == 2
    assert cached() == [ARCHIVE]


def bad_answers(server: Server) -> dict:
    return {
        "cut off": server.cut_off(GOOD),
        "wrong bytes": server.content(GOOD[:-1] + b"?"),
        "too long": server.content(GOOD + b"?"),
        "web page": server.content(b"<html>Try later</html>", Content_Type="text/html"),
        "nothing": server.content(b""),
        "not found": server.error(404),
        "overloaded": server.error(503),
        "closed at once": lambda _: None,
        "strange length": server.content(GOOD, Content_Length="many"),
    }


@pytest.mark.parametrize("kind", bad_answers(Server(0)))
def test_address_that_fails_is_told_and_the_next_one_used(server, pointer, cached, capsys, kind):
    bad = server.add(f"first/{ARCHIVE}", bad_answers(server)[kind])
    good = server.add(f"second/{ARCHIVE}", server.content(GOOD))
    assert_is_the_archives(load(pointer(bad, good)))
    assert server.requests_of(bad) >= 1
    assert server.requests_of(good) == 1
    assert cached() == [ARCHIVE]
    assert re.search(rf"^{re.escape(bad)}: .+$", capsys.readouterr().err, re.MULTILINE)


def test_address_where_nothing_answers_is_told_and_the_next_one_used(server, pointer, dead_url, cached, capsys):
    good = server.add(ARCHIVE, server.content(GOOD))
    assert_is_the_archives(load(pointer(dead_url, good)))
    assert cached() == [ARCHIVE]
    assert f"{dead_url}: " in capsys.readouterr().err


@pytest.mark.parametrize("after", [0, 5000])
def test_address_that_stalls_is_left_for_the_next_one(server, pointer, cached, monkeypatch, after):
    monkeypatch.setattr(datasets, "TIMEOUT", (5, 1))
    assert after < len(GOOD)
    stalled = server.add(f"first/{ARCHIVE}", server.stalled(GOOD, after))
    good = server.add(f"second/{ARCHIVE}", server.content(GOOD))
    assert_is_the_archives(load(pointer(stalled, good)))
    assert server.requests_of(stalled) == datasets.ATTEMPTS
    assert cached() == [ARCHIVE]


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip"])
def test_archive_is_kept_packed_where_the_server_calls_its_gzip_an_encoding(server, pointer, cached, encoding):
    url = server.add(ARCHIVE, server.content(GOOD, Content_Encoding=encoding))
    assert_is_the_archives(load(pointer(url)))
    assert cached() == [ARCHIVE]


def test_good_address_is_asked_alone(server, pointer):
    first = server.add(f"first/{ARCHIVE}", server.content(GOOD))
    second = server.add(f"second/{ARCHIVE}", server.content(GOOD))
    load(pointer(first, second))
    assert (server.requests_of(first), server.requests_of(second)) == (1, 0)


def test_message_tells_what_was_tried_and_what_to_do(server, pointer, dead_url, cached):
    urls = [server.add(f"{kind}/{ARCHIVE}".replace(" ", "_"), answer) for kind, answer in bad_answers(server).items()]
    path = pointer(*urls, dead_url)
    cache = cache_path(read_pointer(path))
    by_hand = path.parent / ARCHIVE
    by_hand.write_bytes(b"a web page, saved by mistake")
    with pytest.raises(Unavailable) as error:
        load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: CIFAR-10 cannot be had")
    for place in (*urls, dead_url, cache, by_hand):
        assert re.search(rf"^  {re.escape(str(place))}: .+$", message, re.MULTILINE)
    assert f"{urls[list(bad_answers(server)).index('not found')]}: 404" in message
    assert sha256(by_hand.read_bytes()) in message
    advice = message.partition("By hand")[2]
    assert str(by_hand) in advice
    assert sha256(GOOD) in advice
    assert "dvc exp run -S data.path=data/raw/digits.npz" in advice
    assert cached() == []


def test_message_names_keras_folder_though_it_holds_nothing(tmp_path, pointer, dead_url):
    with pytest.raises(Unavailable, match=re.escape(str(tmp_path / "keras" / "datasets"))):
        load(pointer(dead_url))


def test_damaged_file_in_the_cache_is_replaced(server, pointer, cached):
    url = server.add(ARCHIVE, server.content(GOOD))
    path = pointer(url)
    cache = cache_path(read_pointer(path))
    cache.parent.mkdir(parents=True)
    cache.write_bytes(GOOD[:-1000])
    assert_is_the_archives(load(path))
    assert cache.read_bytes() == GOOD
    assert cached() == [ARCHIVE]


@pytest.mark.parametrize("file_name", ["cifar-10-batches-py.tar.gz", "cifar-10-batches-py-target_archive"])
@pytest.mark.parametrize("folder", ["KERAS_HOME", "HOME"])
def test_kerass_copy_is_used(tmp_path, server, pointer, monkeypatch, folder, file_name):
    keras = tmp_path / "keras"
    if folder == "HOME":
        monkeypatch.delenv("KERAS_HOME")
        keras = tmp_path / "home" / ".keras"
    (keras / "datasets" / "cifar-10-batches-py").mkdir(parents=True)  # unpacked, beside the archive
    (keras / "datasets" / file_name).write_bytes(GOOD)
    assert_is_the_archives(load(pointer(server.add(ARCHIVE, server.content(GOOD)))))
    assert server.requests == []


def test_kerass_copy_with_other_bytes_is_not_used(tmp_path, server, pointer):
    copy = tmp_path / "keras" / "datasets" / "cifar-10-batches-py.tar.gz"
    copy.parent.mkdir(parents=True)
    other = cifar_archive(data_batch_1=archives.batch_pickle("data_batch_2"))
    copy.write_bytes(other)
    url = server.add(ARCHIVE, server.content(GOOD))
    assert_is_the_archives(load(pointer(url)))
    assert server.requests_of(url) == 1
    assert copy.read_bytes() == other


def test_archive_put_by_hand_is_used_and_kept(pointer, dead_url, cached):
    path = pointer(dead_url)
    by_hand = path.parent / ARCHIVE
    by_hand.write_bytes(GOOD)
    assert_is_the_archives(load(path))
    assert cached() == [ARCHIVE]
    by_hand.unlink()  # as a run elsewhere that does not see untracked files
    assert_is_the_archives(load(path))


def test_archive_put_by_hand_is_used_where_the_cache_cannot_be_written(tmp_path, pointer, dead_url, capsys):
    (tmp_path / "cache").write_text("a file in the folder's place")
    path = pointer(dead_url)
    (path.parent / ARCHIVE).write_bytes(GOOD)
    assert_is_the_archives(load(path))
    assert str(cache_path(read_pointer(path))) in capsys.readouterr().err


def test_copy_that_fails_leaves_nothing_in_the_cache(pointer, dead_url, cached, monkeypatch):
    def full_disk(source: Path, target: Path) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full_disk)
    path = pointer(dead_url)
    (path.parent / ARCHIVE).write_bytes(GOOD)
    assert_is_the_archives(load(path))
    assert cached() == []


def test_interrupted_download_leaves_nothing_in_the_cache(server, pointer, cached, monkeypatch):
    there = []

    def interrupted(self, chunk_size):
        yield GOOD[:chunk_size]
        there.extend(cached())
        raise KeyboardInterrupt

    monkeypatch.setattr(requests.Response, "iter_content", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(pointer(server.add(ARCHIVE, server.content(GOOD))))
    assert len(there) == 1
    assert there != [ARCHIVE]  # not under its name while it was unfinished
    assert cached() == []


def test_cache_that_cannot_be_written_is_told_in_one_line(tmp_path, server, pointer):
    (tmp_path / "cache").write_text("a file in the folder's place")
    path = pointer(server.add(ARCHIVE, server.content(GOOD)))
    with pytest.raises(UserError, match=rf"^{re.escape(str(cache_path(read_pointer(path))))}: [^\n]+$"):
        load(path)


@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("__builtin__", "eval"),
        ("builtins", "eval"),
        ("numpy", "fromfile"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.testing", "rundocs"),
    ],
)
def test_batch_that_names_anything_else_is_refused(refused, module, attribute):
    batch = archives.batch_pickle("data_batch_2", labels=call(module, attribute, text("x")))
    assert f"refused to load {module}.{attribute}" in refused(cifar_archive(data_batch_2=batch))


@pytest.mark.parametrize("member", ["data_batch_1", "test_batch"])
@pytest.mark.parametrize("kind", ["command", "file"])
def test_batch_that_would_act_is_refused_and_does_not(tmp_path, refused, member, kind):
    trap = tmp_path / "sprung"
    if kind == "command":
        act = call("os", "system", text(f'echo > "{trap}"'))
    else:
        act = call("numpy", "memmap", text(str(trap)), text("u1"), text("w+"), archives.integer(0), archives.integer(9))
    batch = archives.batch_pickle(member, batch_label=act)
    line = refused(cifar_archive(**{member: batch}))
    assert "refused to load" in line
    assert not trap.exists()
    pickle.loads(batch, encoding="latin-1")
    assert trap.exists()  # the trap works


@pytest.mark.parametrize("batch", BATCHES)
def test_archive_without_a_batch_is_refused(refused, batch):
    assert f"'{batch}'" in refused(cifar_archive(**{batch: None}))


def changed_batch(**changes: bytes) -> bytes:
    return cifar_archive(data_batch_3=archives.batch_pickle("data_batch_3", **changes))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"<html>not found</html>", id="web page"),
        pytest.param(b"", id="empty"),
        pytest.param(GOOD[: len(GOOD) // 2], id="half"),
        pytest.param(cifar_archive(data_batch_3=b""), id="empty batch"),
        pytest.param(cifar_archive(data_batch_3=archives.batch_pickle("data_batch_3")[:-500]), id="half a batch"),
        pytest.param(cifar_archive(data_batch_3=archives.python2_pickle(archives.list_of([]))), id="batch is a list"),
        pytest.param(changed_batch(data=text("none")), id="no images"),
        pytest.param(changed_batch(data=archives.array(archives.rows("data_batch_3"), 1024)), id="gray images"),
        pytest.param(
            changed_batch(data=archives.array(archives.rows("data_batch_3")[3072:], 3072)), id="image missing"
        ),
        pytest.param(changed_batch(labels=archives.list_of([archives.integer(1)])), id="labels missing"),
        pytest.param(changed_batch(labels=archives.list_of([archives.integer(10)] * 4)), id="no such class"),
        pytest.param(changed_batch(labels=archives.list_of([text("cat")] * 4)), id="labels are texts"),
    ],
)
def test_archive_that_is_laid_out_otherwise_is_refused(refused, content):
    assert len(refused(content)) > 10


def test_npz_is_fetched_and_read(server, pointer, tmp_path):
    arrays = {
        "x_train": archives.images("data_batch_1"),
        "y_train": np.array([0, 1, 1, 0]),
        "x_test": archives.images("test_batch"),
        "y_test": np.array([1, 0, 1, 1]),
    }
    np.savez(tmp_path / "arrays.npz", **arrays, class_names=np.array(["ant", "bee"]))
    content = (tmp_path / "arrays.npz").read_bytes()
    url = server.add("arrays.npz", server.content(content))
    dataset = load(pointer(url, content=content, format="npz", class_names=["ant", "bee"]))
    assert all(np.array_equal(getattr(dataset, key), array) for key, array in arrays.items())
    assert dataset.class_names == ["ant", "bee"]


def test_npz_without_class_names_gets_the_pointers(server, pointer, tmp_path):
    x, y = archives.images("data_batch_1"), np.array([0, 1, 1, 0])
    np.savez(tmp_path / "arrays.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    content = (tmp_path / "arrays.npz").read_bytes()
    url = server.add("arrays.npz", server.content(content))
    assert load(pointer(url, content=content, format="npz", class_names=["ant", "bee"])).class_names == ["ant", "bee"]


def test_npz_that_does_not_fit_is_refused(server, pointer):
    url = server.add("arrays.npz", server.content(b"text"))
    with pytest.raises(UserError, match=r"arrays\.npz: [^\n]*expected an \.npz file[^\n]*$"):
        load(pointer(url, content=b"text", format="npz"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(key, None) for key in ("name", "urls", "sha256", "format", "class_names")],
        ("name", 10),
        ("name", ""),
        ("urls", []),
        ("urls", "http://127.0.0.1/a.tar.gz"),
        ("urls", [7]),
        ("urls", ["127.0.0.1/a.tar.gz"]),
        ("urls", ["ftp://127.0.0.1/a.tar.gz"]),
        ("urls", ["file:///etc/hostname"]),
        ("urls", ["http://127.0.0.1/"]),
        ("urls", ["http://127.0.0.1"]),
        ("urls", ["http://127.0.0.1/a.tar.gz\n"]),
        ("urls", [" http://127.0.0.1/a.tar.gz"]),
        ("sha256", ""),
        ("sha256", sha256(GOOD)[1:]),
        ("sha256", sha256(GOOD).upper().replace("0", "A")),
        ("sha256", 7),
        ("format", "cifar100-python"),
        ("format", ["npz"]),
        ("class_names", ["airplane"]),
        ("class_names", "airplane"),
        ("class_names", [0, 1]),
        ("class_names", ["ant", "bee", "ant"]),
        ("class_names", ["ant", ""]),
        ("md5", "c58f30108f718f92721af3b95e74349a"),
    ],
)
def test_wrong_pointer_is_refused_in_one_line(server, pointer, key, value):
    url = server.add(ARCHIVE, server.content(GOOD))
    path = pointer(*[] if key == "urls" else [url], **{key: value})
    with pytest.raises(UserError) as error:
        load(path)
    line = str(error.value)
    assert re.match(rf"{re.escape(str(path))}: {key}(\.\d+)?: ", line)
    assert "expected" in line or "should" in line
    assert len(line.splitlines()) == 1
    assert server.requests == []


@pytest.mark.parametrize(
    "content",
    [b"", b"- urls\n", b"name", b"name: [1, 2", b"name: \xff", b"name: 2020-99-99", b"name: !!python/name:os.system"],
)
def test_file_that_is_no_pointer_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "cifar10.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: \w[^\n]+$"):
        load(path)


@pytest.mark.parametrize("file_name", ["none.yaml", "none.yml", "none.npz"])
def test_missing_dataset_is_refused_in_one_line(tmp_path, file_name):
    path = tmp_path / file_name
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: No such file or directory, expected [^\n]+$"):
        load(path)


def test_committed_pointer_is_right():
    pointer = read_pointer(ROOT / "data" / "raw" / "cifar10.yaml")
    assert pointer.file_name == ARCHIVE
    assert pointer.sha256 == "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
    assert "toronto.edu" in pointer.urls[-1]
    assert pointer.class_names == CLASS_NAMES


def test_file_is_called_by_the_addresss_path(pointer):
    path = pointer("https://example.org/records/1/files/arrays.npz?download=1")
    assert read_pointer(path).file_name == "arrays.npz"


def test_name_of_a_dataset(tmp_path, pointer, dead_url):
    path = pointer(dead_url, name="Ten Things")
    assert dataset_name(path) == "Ten Things"
    assert dataset_name(path.rename(path.with_suffix(".yml"))) == "Ten Things"
    assert dataset_name(tmp_path / "digits.npz") == "digits"


def run_datasets(folder: Path, path: Path) -> subprocess.CompletedProcess:
    """Run ``python -m stages.datasets`` in a folder whose settings name a dataset, with standard input closed."""
    params = default_params()
    params["data"]["path"] = str(path)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return subprocess.run(
        ["sh", "-c", 'exec "$0" -m stages.datasets <&-', sys.executable],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_program_fetches(tmp_path, server, pointer, cached):
    result = run_datasets(tmp_path, pointer(server.add(ARCHIVE, server.content(GOOD))))
    assert result.returncode == 0, result.stderr
    assert cached() == [ARCHIVE]
    assert server.requests == [ARCHIVE]


def test_program_ends_with_3_where_the_dataset_cannot_be_had(tmp_path, pointer, dead_url, cached):
    path = pointer(dead_url)
    result = run_datasets(tmp_path, path)
    assert result.returncode == 3
    assert f"error: {path}: CIFAR-10 cannot be had" in result.stderr
    assert str(path.parent / ARCHIVE) in result.stderr
    assert "data.path=data/raw/digits.npz" in result.stderr
    assert "Traceback" not in result.stderr
    assert cached() == []


def test_program_ends_with_1_where_the_pointer_is_wrong(tmp_path, pointer, dead_url):
    path = pointer(dead_url, sha256="none")
    result = run_datasets(tmp_path, path)
    assert result.returncode == 1
    assert re.fullmatch(rf"error: {re.escape(str(path))}: sha256: [^\n]+\n", result.stderr)
