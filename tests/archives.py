"""Small archives of the same layout as the official cifar-10-python.tar.gz, and a server that gives them.

The official batches were pickled by Python 2, which no newer Python writes: the opcodes are put together here.
"""

import contextlib
import gzip
import hashlib
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

CLASS_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
IMAGES = 4  # per batch
# The order of the members in the official archive is no order at all.
MEMBERS = ("data_batch_4", "readme.html", "test_batch", "data_batch_3", "batches.meta", "data_batch_2")
MEMBERS += ("data_batch_5", "data_batch_1")
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")


def pixel(image: int, y: int, x: int, channel: int) -> int:
    """A value that tells the image, the row, the column and the channel apart."""
    return (40 * image + 7 * y + x + 90 * channel) % 256


def images(batch: str) -> np.ndarray:
    """The images of a batch as they are to be read: uint8 (IMAGES, 32, 32, 3)."""
    numbers = first_image(batch) + np.arange(IMAGES)
    image, y, x, channel = np.ix_(numbers, range(32), range(32), range(3))
    return np.asarray(pixel(image, y, x, channel), dtype=np.uint8)


def labels(batch: str) -> list[int]:
    return [(3 * (first_image(batch) + i) + 1) % len(CLASS_NAMES) for i in range(IMAGES)]


def first_image(batch: str) -> int:
    return BATCHES.index(batch) * IMAGES


def rows(batch: str) -> bytes:
    """The same images as they are stored: each all red values row by row, then all green, then all blue."""
    numbers = range(first_image(batch), first_image(batch) + IMAGES)
    return bytes(pixel(i, y, x, c) for i in numbers for c in range(3) for y in range(32) for x in range(32))


def text(value: str) -> bytes:
    return b"U" + bytes([len(value)]) + value.encode("ascii")


def integer(value: int) -> bytes:
    return b"K" + bytes([value]) if value < 256 else b"M" + value.to_bytes(2, "little")


def list_of(items: list[bytes]) -> bytes:
    return b"](" + b"".join(items) + b"e"


def dict_of(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode("ascii")


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    return name(module, attribute) + b"(" + b"".join(arguments) + b"tR"


def array(content: bytes, columns: int) -> bytes:
    """A uint8 array of rows, as numpy's __reduce__ was pickled by Python 2."""
    empty = call("numpy.core.multiarray", "_reconstruct", name("numpy", "ndarray"), integer(0) + b"\x85", text("b"))
    shape = integer(len(content) // columns) + integer(columns) + b"\x86"
    dtype = call("numpy", "dtype", text("u1"), integer(0), integer(1))
    dtype += b"(" + integer(3) + text("|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + integer(0) + b"tb"
    data = b"T" + len(content).to_bytes(4, "little") + content
    return empty + b"(" + integer(1) + shape + dtype + b"\x89" + data + b"tb"


def python2_pickle(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def batch_pickle(batch: str, **changes: bytes) -> bytes:
    """One batch; `changes` replace its entries by other opcodes."""
    entries = {
        "batch_label": text(f"training {batch} of 5"),
        "labels": list_of([integer(label) for label in labels(batch)]),
        "data": array(rows(batch), 3072),
        "filenames": list_of([text(f"{batch}_{i}.png") for i in range(IMAGES)]),
    }
    return python2_pickle(dict_of(entries | changes))


def meta_pickle() -> bytes:
    entries = {
        "num_cases_per_batch": integer(IMAGES),
        "label_names": list_of([text(class_name) for class_name in CLASS_NAMES]),
        "num_vis": integer(3072),
    }
    return python2_pickle(dict_of(entries))


def cifar_archive(**changes: bytes | None) -> bytes:
    """The archive's bytes, the same at every call; `changes` replace members, None leaves one out."""
    contents = {batch: batch_pickle(batch) for batch in BATCHES}
    # What cannot be packed makes the archive long enough to break off on its way.
    filler = np.random.default_rng(0).bytes(100_000)
    contents |= {"batches.meta": meta_pickle(), "readme.html": filler} | changes
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        folder = tarfile.TarInfo("cifar-10-batches-py")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(folder)
        for member in MEMBERS:
            if (content := contents[member]) is not None:
                info = tarfile.TarInfo(f"cifar-10-batches-py/{member}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)  # the time of writing would change the bytes


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Server:
    """An HTTP server on this machine; every address answers with what it was given, and is counted."""

    def __init__(self, port: int):
        self.address = f"http://127.0.0.1:{port}"
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.requests: list[str] = []
        self.closing = threading.Event()

    def add(self, path: str, *answers: Callable[[BaseHTTPRequestHandler], None]) -> str:
        """Let an address give one answer after the other, the last one again and again; returns the address."""
        left = list(answers)
        self.answers[path] = lambda request: (left.pop(0) if len(left) > 1 else left[0])(request)
        return f"{self.address}/{path}"

    def requests_of(self, url: str) -> int:
        return self.requests.count(url.removeprefix(f"{self.address}/"))

    def content(self, content: bytes, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
        return self._answer(content, len(content), headers)

    def cut_off(self, content: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
        """Half of the content, then the end of the connection."""
        return self._answer(content[: len(content) // 2], len(content), {})

    def stalled(self, content: bytes, after: int) -> Callable[[BaseHTTPRequestHandler], None]:
        """Some bytes, then nothing, while the connection stays open."""

        def answer(request: BaseHTTPRequestHandler) -> None:
            if after:
                self._answer(content[:after], len(content), {})(request)
            self.closing.wait(60)

        return answer

    def error(self, status: int) -> Callable[[BaseHTTPRequestHandler], None]:
        return lambda request: request.send_error(status)

    @staticmethod
    def _answer(content: bytes, length: int, headers: dict[str, str]) -> Callable[[BaseHTTPRequestHandler], None]:
        def answer(request: BaseHTTPRequestHandler) -> None:
            request.send_response(200)
            for key, value in ({"Content_Length": str(length)} | headers).items():
                request.send_header(key.replace("_", "-"), value)
            request.end_headers()
            request.wfile.write(content)
            request.wfile.flush()

        return answer


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Run a `Server` on a free port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.removeprefix("/")
            server.requests.append(path)
            with contextlib.suppress(ConnectionError):  # the reader may give up earlier
                server.answers.get(path, server.error(404))(self)
            self.close_connection = True

        def log_message(self, *_):
            """Keep quiet."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(http.server_port)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        http.shutdown()
        http.server_close()
        thread.join()
