"""Downloads: every byte is checked, each bad answer is followed by the next address, nothing half is left behind."""

import contextlib
import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml

from archives import CLASS_NAMES, cifar_archive, npz
from repository import ROOT
from stages import download, prepare
from stages.download import DownloadError
from stages.images.pointer import Pointer, fetch
from stages.images.source import load
from stages.settings import Data, Settings
from stages.shared.errors import UserError
from stages.shared.files import sha256

stop = threading.Event()
ARCHIVE = "cifar-10-python.tar.gz"
GOOD = gzip.compress(np.random.default_rng(0).bytes(100_000))
DEAD = f"http://127.0.0.1:1/{ARCHIVE}"  # nothing answers


def read_pointer(path: Path) -> Pointer:
    return download.read_pointer(path, Pointer, "a pointer")


class Server(ThreadingHTTPServer):
    """Each of its addresses gives its answers one after the other, the last one again and again."""

    def add(self, *answers):
        self.answers.append(list(answers))
        return f"http://127.0.0.1:{self.server_port}/{len(self.answers) - 1}/{ARCHIVE}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        number = int(self.path.split("/")[1])
        self.server.asked.append(number)
        answers = self.server.answers[number]
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *_):
        """Keep quiet."""


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as server:
        server.answers, server.asked = [], []
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        stop.clear()
        yield server
        stop.set()
        server.shutdown()


def gives(content: bytes, **headers: object):
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        for key, value in ({"Content_Length": len(content)} | headers).items():
            request.send_header(key.replace("_", "-"), str(value))
        request.end_headers()
        request.wfile.write(content)

    return answer


CUT_OFF = gives(GOOD[:5000], Content_Length=len(GOOD))


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Keep away from the user's cache, from Keras's folder, and from proxies; do not wait between attempts."""
    folders = {"HOME": tmp_path / "home", "XDG_CACHE_HOME": tmp_path / "cache", "KERAS_HOME": tmp_path / "keras"}
    for name, value in (folders | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(time, "sleep", lambda _: None)


@pytest.fixture
def write(tmp_path):
    """Write a pointer and return its path."""

    def write(*urls: str, content: bytes = GOOD, **changes: object) -> Path:
        keys = {"name": "CIFAR-10", "urls": list(urls), "sha256": sha256(content), "format": "cifar10-python"}
        path = tmp_path / "cifar10.yaml"
        path.write_text(yaml.safe_dump(keys | {"class_names": CLASS_NAMES} | changes))
        return path

    return write


@pytest.fixture
def cached(tmp_path):
    """The names of all files in the cache."""
    return lambda: [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "answers",
    # Some servers declare the archive's own compression as the transfer's encoding.
    [[gives(GOOD)], [CUT_OFF, gives(GOOD)], [gives(GOOD, Content_Encoding="gzip")]],
)
def test_archive_is_downloaded_once_from_the_first_address(server, write, cached, answers):
    path = write(server.add(*answers), server.add(gives(GOOD)))
    assert [fetch(path)[1].read_bytes() for _ in range(2)] == [GOOD, GOOD]
    assert server.asked == [0] * len(answers)
    assert cached() == [ARCHIVE]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (CUT_OFF, "ConnectionError, 2 attempts"),
        (lambda request: [CUT_OFF(request), request.rfile.read(1)], "ConnectionError, 2 attempts"),  # stalls
        (lambda request: request.rfile.read(1), "ReadTimeout, 2 attempts"),
        (gives(GOOD[:-1] + b"?"), "gave other bytes"),
        (lambda request: request.send_error(404), "404"),
        (lambda request: request.send_error(503), "503"),
    ],
)
def test_address_that_fails_is_told_and_the_next_one_used(server, write, cached, capsys, monkeypatch, answer, problem):
    monkeypatch.setattr(download, "TIMEOUT", (5, 1))
    bad = server.add(answer)
    path = write(bad, server.add(gives(GOOD)))
    damaged = download.cached(read_pointer(path))
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(GOOD[:-1000])
    start = time.monotonic()
    assert fetch(path)[1].read_bytes() == GOOD
    assert time.monotonic() - start < 15  # not 30 seconds in each attempt
    assert server.asked == [0] * (download.RETRIES + 1) + [1]
    assert cached() == [ARCHIVE]
    assert f"\n{bad}: {problem}" in capsys.readouterr().err


def gives_for_ever(pause: float):
    """An answer of which a part comes after each pause, in seconds."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        with contextlib.suppress(OSError):  # until nobody listens
            while not stop.wait(pause):
                request.wfile.write(bytes(10_000))

    return answer


@pytest.mark.parametrize(
    ("pause", "problem"),
    [(0, f"gives more than {len(GOOD)} bytes, the pointer's `size`"), (0.05, "gave .* bytes until the time was up")],
)
def test_download_is_bounded_in_bytes_and_time(server, write, cached, capsys, monkeypatch, pause, problem):
    monkeypatch.setattr(download, "DEADLINE", 2)
    bad = server.add(gives_for_ever(pause))
    assert fetch(write(bad, server.add(gives(GOOD)), size=len(GOOD) if not pause else 10**9))[1].read_bytes() == GOOD
    assert server.asked == [0, 1]
    assert re.search(f"\n{bad}: {problem}", capsys.readouterr().err)
    assert cached() == [ARCHIVE]


def test_a_download_that_is_ended_leaves_nothing_and_the_next_one_removes_what_a_kill_left(server, write, cached):
    path = write(server.add(gives_for_ever(0.05), gives(GOOD)))
    folder = download.cached(read_pointer(path)).parent
    params = Settings().model_dump() | {"data": Settings().data.model_dump() | {"path": str(path)}}
    (path.parent / "params.yaml").write_text(yaml.safe_dump(params))
    for number, left in ((signal.SIGTERM, 0), (signal.SIGKILL, 1)):
        server.answers[0].insert(0, server.answers[0][0])
        process = subprocess.Popen([sys.executable, "-m", "stages.prepare", "--fetch"], cwd=path.parent,
                                   env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)  # fmt: skip
        while not any(folder.glob("tmp*")):
            assert process.poll() is None
            threading.Event().wait(0.01)
        process.send_signal(number)
        assert process.wait() in (128 + number, -number)
        assert len(cached()) == left
    for old in folder.iterdir():
        os.utime(old, (0, 0))
    server.answers[0][:-1] = []
    fetch(path)
    assert cached() == [ARCHIVE]


@pytest.mark.parametrize("url", ["http://[::1/x.npz", "http://host/x/..", "ftp://host/x.npz", "http://host"])
def test_address_without_a_file_is_refused(write, url):
    with pytest.raises(UserError, match=r"/cifar10.yaml: urls[^\n]*: was 'http[^\n]*$|: was 'ftp[^\n]*$"):
        read_pointer(write(url))


def test_passwords_and_tokens_are_not_shown(write, capsys):
    secret = "http://user:secret@127.0.0.1:1/x.npz?token=secret"
    with pytest.raises(DownloadError) as error:
        fetch(write(secret))
    with pytest.raises(UserError) as invalid:
        read_pointer(write(secret, "http://user:secret@[::1/x?token=secret"))
    shown = f"{error.value}{invalid.value}{capsys.readouterr().err}"
    assert "http://***@127.0.0.1:1/x.npz?***: ConnectionError" in shown
    assert "secret" not in shown


def test_message_tells_all_that_was_tried_and_what_to_do(tmp_path, server, write, cached):
    urls = [server.add(lambda request: request.send_error(404)), server.add(gives(b"text")), DEAD]
    path = write(*urls)
    cache, by_hand = download.cached(read_pointer(path)), tmp_path / ARCHIVE
    by_hand.write_bytes(b"a web page, saved by mistake")
    other = f"other bytes (sha256 {sha256(by_hand.read_bytes())})"
    with pytest.raises(DownloadError) as error:
        fetch(path)
    message, _, advice = str(error.value).partition("By hand")
    assert message.startswith(f"{path}: CIFAR-10 cannot be downloaded")
    tried = [f"{cache}: not there", f"{by_hand}: {other}"]
    tried += [f"{urls[0]}: 404", f"{urls[1]}: gave other bytes", f"{DEAD}: ConnectionError"]
    assert [line for line in tried if f"\n  {line}" not in message] == []
    for text in (str(by_hand), sha256(GOOD), "dvc exp run -S data.path=data/raw/digits.npz"):
        assert text in advice
    assert cached() == []


@pytest.mark.parametrize(
    ("kind", "content", "names"),
    [("cifar10-python", cifar_archive(), CLASS_NAMES), ("npz", npz(), ["ant", "bee", "cow"])],
)
def test_archive_put_by_hand_is_read_as_the_pointer_says_and_kept(tmp_path, write, cached, kind, content, names):
    path = write(DEAD, content=content, format=kind, name="Ten Things")
    (tmp_path / ARCHIVE).write_bytes(content)
    for _ in range(2):
        name, dataset = load(path, Data(), 1)
        assert (name, dataset.class_names) == ("Ten Things", names)
        (tmp_path / ARCHIVE).unlink(missing_ok=True)  # as a run elsewhere that does not see untracked files
    assert cached() == [ARCHIVE]


def test_full_disk_is_told_in_one_line_and_leaves_nothing(tmp_path, server, write, cached, monkeypatch):
    def full_disk(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "move", full_disk)
    with pytest.raises(UserError, match=rf"/{ARCHIVE}: No space left on device, expected room for the download$"):
        fetch(write(server.add(gives(GOOD))))
    assert cached() == []


def test_prepare_fetches_and_its_exit_code_tells(server, write, cached, params, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare", "--fetch"])
    path = write(DEAD)
    params(**{"data.path": str(path)})
    with pytest.raises(SystemExit, match="3"):
        prepare.main()
    assert f"error: {path}: CIFAR-10 cannot be downloaded" in capsys.readouterr().err
    write(DEAD, sha256="none")
    with pytest.raises(SystemExit, match=rf"^error: {re.escape(str(path))}: sha256: [^\n]+$"):  # ends with 1
        prepare.main()
    write(server.add(gives(GOOD)))
    prepare.main()
    assert cached() == [ARCHIVE]
