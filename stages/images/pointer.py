"""A pointer: a small YAML file that names an archive, its hash and where to download it."""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import pooch
import requests
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from stages.settings import problems, read_yaml
from stages.shared.errors import UserError

TIMEOUT = (10, 30)  # seconds to connect; seconds without a byte
RETRIES = 1  # of each address


class Pointer(BaseModel):
    """An archive: what to download, from where, and the hash that its bytes must have."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = Field(min_length=1)
    urls: list[Annotated[str, Field(pattern=r"^https?://[^\s/]+/[^\s?#]*[^\s/?#](\?\S*)?$")]] = Field(min_length=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    format: Literal["cifar10-python", "npz"]
    class_names: list[Annotated[str, Field(min_length=1)]] = Field(min_length=2)

    @field_validator("class_names")
    @classmethod
    def _different(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError(f"was {names}, expected each name once")
        return names

    @property
    def file_name(self) -> str:
        """The archive's name, from the first address."""
        return urlsplit(self.urls[0]).path.rsplit("/", 1)[-1]


class DownloadError(UserError):
    """The archive is in no known place, and no address gives it."""


def read_pointer(path: Path) -> Pointer:
    """Read and check a pointer; raises `UserError` with one line."""
    raw = read_yaml(path, "a pointer (.yaml) or arrays (.npz): data.path")
    try:
        return Pointer.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: {problems(error, 'data/raw/cifar10.yaml')}") from None


def cached_archive(pointer: Pointer) -> Path:
    """Where the archive is kept, per user and outside any workspace, so that ``dvc exp run --temp`` finds it too."""
    return Path(pooch.os_cache("transfer-learning-pipeline")) / pointer.sha256[:16] / pointer.file_name


def fetch(path: Path) -> tuple[Pointer, Path]:
    """Return the pointer at `path` and its archive, every byte checked by hash; download it if there is no copy.

    Raises `DownloadError` with everything that was tried, and what to do instead.
    """
    pointer = read_pointer(path)
    cached, by_hand, tried = cached_archive(pointer), path.parent / pointer.file_name, []
    for copy in (cached, *_keras_copies(pointer), by_hand):
        if not copy.is_file():
            tried.append(f"{copy}: not there")
        elif (found := pooch.file_hash(str(copy))) != pointer.sha256:
            tried.append(f"{copy}: other bytes (sha256 {found})")
        else:
            return pointer, _keep(copy, cached) if copy == by_hand else copy
    for url in pointer.urls:
        problem = _download(url, pointer.sha256, cached)
        if problem is None:
            return pointer, cached
        tried.append(f"{url}: {problem}")
        print(tried[-1], file=sys.stderr)
    raise DownloadError(
        "\n  ".join([f"{path}: {pointer.name} cannot be downloaded. Tried:", *tried])
        + f"\nBy hand: put the archive (sha256 {pointer.sha256}) at {by_hand} and run again."
        "\nWithout it: `dvc exp run -S data.path=data/raw/digits.npz` runs the same pipeline on the built-in digits."
    )


def _keras_copies(pointer: Pointer) -> list[Path]:
    """Keras's own downloads, which have had many names."""
    folder = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "datasets"
    return sorted(path for path in folder.glob(f"{pointer.name.lower()}*") if path.is_file())


def _keep(copy: Path, cached: Path) -> Path:
    """Copy a checked archive into the cache, for runs that do not see this workspace's untracked files."""
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


def _as_stored(response: requests.Response, **_: Any) -> None:
    """Keep the body as it came: some servers declare a .gz file's own compression as the transfer's encoding."""
    response.raw.headers.pop("Content-Encoding", None)


def _download(url: str, sha256: str, target: Path) -> str | None:
    """Download one address, under a temporary name until the hash fits; returns what went wrong, or None."""
    print(f"downloading {url}", file=sys.stderr)
    pooch.get_logger().setLevel("ERROR")
    downloader = pooch.HTTPDownloader(
        timeout=TIMEOUT, progressbar=sys.stderr.isatty(), chunk_size=2**20, hooks={"response": _as_stored},
        headers={"Accept-Encoding": "identity"},
    )  # fmt: skip
    name = target.name
    store = pooch.create(target.parent, "", registry={name: sha256}, urls={name: url}, retry_if_failed=RETRIES)
    try:
        store.fetch(name, downloader=downloader)
    except requests.HTTPError as error:
        return str(error.response.status_code if error.response is not None else error)
    except requests.RequestException as error:
        return f"{type(error).__name__}, {RETRIES + 1} attempts"
    except ValueError:
        return "gave other bytes than the hash says"
    except OSError as error:
        raise UserError(f"{target}: {error.strerror or error}, expected room for the download") from None
    return None
