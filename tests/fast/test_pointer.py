"""Downloads: every byte is verified, a bad address is followed by the next one, no partial file is left behind."""

import gzip
import re
import sys
import threading
import time
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

import numpy as np
import pooch
import pytest
import yaml

from archives import CLASS_NAMES, cifar_archive, npz
from stages import prepare
from stages.download import DownloadError
from stages.images.loading import DatasetPointer, find, load
from stages.settings import Data
from stages.shared.errors import UserError
from stages.shared.files import sha256

ARCHIVE = "cifar-10-python.tar.gz"
GOOD = gzip.compress(np.random.default_rng(0).bytes(100_000))
DEAD = f"http://127.0.0.1:1/{ARCHIVE}"  # nothing answers
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % len(GOOD)
BAD_ANSWERS = {
    "ChunkedEncodingError": HEAD + b"\r\n" + GOOD[:5000],  # cut off
    "ReadTimeout": b"",
    "gave other bytes": HEAD + b"\r\n" + GOOD[:-1] + b"?",
    "HTTP 404": b"HTTP/1.1 404 Not Found\r\n\r\n",
}
# Some servers declare a .gz file as encoded.
ANSWERS = BAD_ANSWERS | {"good": HEAD + b"Content-Encoding: gzip\r\n\r\n" + GOOD}


class Handler(StreamRequestHandler):
    def handle(self):
        name = list(ANSWERS)[int(self.rfile.readline().split(b"/")[1])]
        while self.rfile.readline() != b"\r\n":
            pass
        self.server.requests.append(name)
        self.wfile.write(ANSWERS[name])
        if name == "ReadTimeout":
            self.rfile.read()  # until the client gives up


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Start a server; replace the user's cache and Keras's folder, bypass proxies, do not wait between attempts."""
    folders = {"HOME": tmp_path / "home", "XDG_CACHE_HOME": tmp_path / "cache", "KERAS_HOME": tmp_path / "keras"}
    for name, value in (folders | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.requests = []
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


@pytest.fixture
def write(server, tmp_path):
    """Write a pointer, to names of `ANSWERS` or other addresses, and return its path."""
    addresses = {name: f"http://127.0.0.1:{server.server_address[1]}/{i}/{ARCHIVE}" for i, name in enumerate(ANSWERS)}

    def write(*urls: str, content: bytes = GOOD, **changes: object) -> Path:
        urls = [addresses.get(url, url) for url in urls]
        keys = {"name": "CIFAR-10", "urls": urls, "sha256": sha256(content), "format": "cifar10-python"}
        path = tmp_path / "cifar10.yaml"
        path.write_text(yaml.safe_dump(keys | {"class_names": CLASS_NAMES} | changes))
        return path

    return write


def test_bad_copies_and_addresses_are_all_listed_until_an_address_is_good(tmp_path, server, write, monkeypatch):
    get = pooch.HTTPDownloader
    monkeypatch.setattr(pooch, "HTTPDownloader", lambda timeout, **options: get(timeout=(5, 0.5), **options))
    path, by_hand = write(*BAD_ANSWERS, DEAD), tmp_path / ARCHIVE
    by_hand.write_bytes(b"a web page, saved by mistake")
    pointer = DatasetPointer.read(path, "a pointer")
    pointer.cached.parent.mkdir(parents=True)
    pointer.cached.write_bytes(GOOD[:-1000])
    with pytest.raises(DownloadError) as error:
        find(path)
    message, _, advice = str(error.value).partition("By hand")
    assert message.startswith(f"{path}: CIFAR-10 cannot be downloaded")
    tried = [f"{file}: other bytes (sha256 {sha256(file.read_bytes())})" for file in (pointer.cached, by_hand)]
    tried += [f"{url}: {problem}" for url, problem in zip(pointer.urls, [*BAD_ANSWERS, "ConnectionError"], strict=True)]
    assert [line for line in tried if f"\n  {line}" not in message] == []
    for text in (str(by_hand), sha256(GOOD), "dvc exp run -S data.path=data/raw/mnist.npz"):
        assert text in advice
    path = write("ReadTimeout", "gave other bytes", DEAD, "good", "HTTP 404")
    before = len(server.requests)
    assert [find(path)[1].read_bytes() for _ in range(2)] == [GOOD, GOOD]
    assert list(dict.fromkeys(server.requests[before:])) == ["ReadTimeout", "gave other bytes", "good"]
    assert [path.name for path in tmp_path.glob("cache/*/*/*")] == [ARCHIVE]


def test_copy_in_kerass_folder_is_found_by_the_beginning_of_its_name_which_is_no_pattern(tmp_path, write):
    copy, private = tmp_path / "keras/datasets/cifar-10-batches-py.tar.gz", tmp_path / "private/key.txt"
    for file in (copy, private):
        file.parent.mkdir(parents=True)
        file.write_bytes(GOOD)
    assert find(write(DEAD))[1] == copy
    for name in ("../../private/key", "*", str(private)):
        with pytest.raises(DownloadError) as error:
            find(write(DEAD, name=name))
        assert not re.search(rf"(?m)^  .*({private.name}|{copy.name})", str(error.value))


@pytest.mark.parametrize("url", ["http://[::1/x.npz", "http://host/x/..", "ftp://host/x.npz", "http://host"])
def test_address_without_a_file_is_refused(write, url):
    with pytest.raises(UserError, match=r"/cifar10.yaml: urls[^\n]*: was '(http|ftp)[^\n]*$"):
        find(write(url))


def test_passwords_and_tokens_are_not_shown(write, capsys):
    secret = "http://user:secret@127.0.0.1:1/x.npz?token=secret"
    with pytest.raises(DownloadError) as error:
        find(write(secret))
    with pytest.raises(UserError) as invalid:
        find(write(secret, "http://user:secret@[::1/x?token=secret"))
    shown = f"{error.value}{invalid.value}{capsys.readouterr().err}"
    assert "http://***@127.0.0.1:1/x.npz?***: ConnectionError" in shown
    assert "secret" not in shown


@pytest.mark.parametrize(
    ("kind", "content", "names"),
    [("cifar10-python", cifar_archive(), CLASS_NAMES), ("npz", npz(), ["ant", "bee", "cow"])],
)
def test_archive_saved_by_hand_is_read_in_its_format_and_cached(tmp_path, write, kind, content, names):
    path = write(DEAD, content=content, format=kind, name="Ten Things")
    (tmp_path / ARCHIVE).write_bytes(content)
    for _ in range(2):
        dataset = load(path, Data(), 1)
        assert (dataset.name, dataset.class_names) == ("Ten Things", names)
        (tmp_path / ARCHIVE).unlink(missing_ok=True)  # a run in another clone does not see untracked files
    assert [path.name for path in tmp_path.glob("cache/*/*/*")] == [ARCHIVE]


def test_failed_download_has_its_own_exit_code(write, params, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["prepare", "--fetch"])
    params(**{"data.path": str(write("HTTP 404"))})
    with pytest.raises(SystemExit, match=r"^3$"):  # `make run` then uses the built-in images
        prepare.main()


@pytest.mark.parametrize("key", ["data.source_classes", "data.target_classes"])
def test_unknown_class_is_refused_before_the_download(server, write, params, key):
    params(**{"data.path": str(write("good")), key: ["cat", "dog", "ship", "horse", "unicorn"]})
    with pytest.raises(SystemExit, match=rf"^error: params.yaml: {key}: was 'unicorn', expected a number below 10"):
        prepare.main()
    assert server.requests == []
