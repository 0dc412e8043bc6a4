"""A pointer: a small YAML file that names a file, its hash and where to download it."""

import os
import re
import shutil
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, TypeVar
from urllib.parse import urlsplit

import pooch
import requests
import urllib3
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from tqdm import tqdm

from stages.settings import problems, read_yaml
from stages.shared.errors import UserError

TIMEOUT = (10, 30)  # seconds to connect; seconds without a byte
DEADLINE = 7200  # seconds for all addresses together
RETRIES = 1  # of each address


class Pointer(BaseModel):
    """A file: what to download, from where, and the hash that its bytes must have.

    A kind of file has an example of its pointer, a folder for it in Keras's own, and something that does without it.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    example: ClassVar[str]
    keras_folder: ClassVar[str]
    without: ClassVar[str]
    name: str = Field(min_length=1)
    urls: list[Annotated[str, Field(pattern=r"^https?://[^\s/]+/[^\s?#]*[^\s/?#](\?\S*)?$")]] = Field(min_length=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(10**10, ge=1)  # bytes at most

    @field_validator("urls")
    @classmethod
    def _have_a_file_name(cls, urls: list[str]) -> list[str]:
        for url in urls:
            try:
                name = urlsplit(url).path.rsplit("/", 1)[-1]
            except ValueError:
                name = ""
            if name in ("", ".", ".."):
                raise ValueError(f"was {url!r}, expected http://host/.../file")
        return urls

    @property
    def file_name(self) -> str:
        """The file's name, from the first address."""
        return urlsplit(self.urls[0]).path.rsplit("/", 1)[-1]


Kind = TypeVar("Kind", bound=Pointer)


class DownloadError(UserError):
    """The file is in no known place, and no address gives it."""


def read_pointer(path: Path, kind: type[Kind], expected: str) -> Kind:
    """Read and check a pointer of a kind; raises `UserError` with one line that says what was `expected`."""
    raw = read_yaml(path, expected)
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: {masked(problems(error, kind.example))}") from None


def masked(text: str) -> str:
    """The text without the passwords and tokens of the addresses in it."""
    return re.sub(r"(https?://[^\s?'\"]*\?)[^\s'\"]*", r"\1***", re.sub(r"//[^\s/?'\"]*@", "//***@", text))


def cached(pointer: Pointer) -> Path:
    """Where the file is kept, per user and outside any workspace, so that ``dvc exp run --temp`` finds it too."""
    return Path(pooch.os_cache("transfer-learning-pipeline")) / pointer.sha256[:16] / pointer.file_name


def fetch(path: Path, kind: type[Kind], expected: str) -> tuple[Kind, Path]:
    """Return the pointer at `path` and its file, every byte checked by hash; download it if there is no copy.

    Raises `DownloadError` with everything that was tried, and what to do instead; else see `read_pointer`.
    """
    pointer = read_pointer(path, kind, expected)
    kept, by_hand, tried = cached(pointer), path.parent / pointer.file_name, []
    for copy in (kept, *_keras_copies(pointer), by_hand):
        if not copy.is_file():
            tried.append(f"{copy}: not there")
        elif (found := pooch.file_hash(str(copy))) != pointer.sha256:
            tried.append(f"{copy}: other bytes (sha256 {found})")
        else:
            return pointer, _keep(copy, kept) if copy == by_hand else copy
    end = time.monotonic() + DEADLINE
    for left, url in zip(range(len(pointer.urls), 0, -1), pointer.urls, strict=True):
        now = time.monotonic()
        problem = _download(url, pointer, kept, now + max(0, end - now) / left)
        if problem is None:
            return pointer, kept
        tried.append(f"{masked(url)}: {problem}")
        print(tried[-1], file=sys.stderr)
    raise DownloadError(
        "\n  ".join([f"{path}: {pointer.name} cannot be downloaded. Tried:", *tried])
        + f"\nBy hand: put the file (sha256 {pointer.sha256}) at {by_hand} and run again."
        f"\nWithout it: {pointer.without}"
    )


def _keras_copies(pointer: Pointer) -> list[Path]:
    """Keras's own downloads, which have had many names."""
    folder = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / pointer.keras_folder
    found = {*folder.glob(f"{pointer.name.lower()}*"), folder / pointer.file_name}
    return sorted(path for path in found if path.is_file())


def _keep(copy: Path, cached: Path) -> Path:
    """Copy a checked file into the cache, for runs that do not see this workspace's untracked files."""
    unfinished = cached.with_name(f"{cached.name}.{os.getpid()}")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(copy, unfinished)
        unfinished.replace(cached)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        print(f"{cached}: {error.strerror}; using {copy}", file=sys.stderr)
        return copy
    return cached


class _GaveUp(Exception):
    """An address gives too much, or too slowly."""


def _get(pointer: Pointer, deadline: float, url: str, file: str, _: pooch.Pooch) -> None:
    """Write what an address gives to a file, as it is stored: some servers declare a .gz file's own compression."""
    with requests.get(url, stream=True, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"}) as response:
        response.raise_for_status()
        size = int(response.headers.get("Content-Length", 0)) or None
        with Path(file).open("wb") as out, tqdm(total=size, unit="B", unit_scale=True, disable=None) as progress:
            try:
                while part := response.raw.read1(2**20, decode_content=False):
                    progress.update(out.write(part))
                    if out.tell() > pointer.size:
                        raise _GaveUp(f"gives more than {pointer.size} bytes, the pointer's `size`")
                    if time.monotonic() > deadline:
                        raise _GaveUp(f"gave {out.tell()} bytes until the time was up")
            except urllib3.exceptions.HTTPError as error:
                raise requests.ConnectionError from error


def _download(url: str, pointer: Pointer, target: Path, deadline: float) -> str | None:
    """Download one address, under a temporary name until the hash fits; returns what went wrong, or None."""
    print(f"downloading {masked(url)}", file=sys.stderr)
    pooch.get_logger().setLevel("ERROR")
    # A kill -9 leaves a temporary file behind, which the next download removes once nobody can be writing it.
    for old in target.parent.glob("tmp*"):
        with suppress(OSError):  # another process's, done by now
            if old != target and old.stat().st_mtime < time.time() - DEADLINE:
                old.unlink()
    name = target.name
    store = pooch.create(target.parent, "", registry={name: pointer.sha256}, urls={name: url}, retry_if_failed=RETRIES)
    ended = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # not without cleaning up
    try:
        store.fetch(name, downloader=partial(_get, pointer, deadline))
    except _GaveUp as error:
        return str(error)
    except requests.HTTPError as error:
        return str(error.response.status_code if error.response is not None else error)
    except requests.RequestException as error:
        return f"{type(error).__name__}, {RETRIES + 1} attempts"
    except ValueError:
        return "gave other bytes than the hash says"
    except OSError as error:
        raise UserError(f"{target}: {error.strerror or error}, expected room for the download") from None
    finally:
        signal.signal(signal.SIGTERM, ended)
    return None
