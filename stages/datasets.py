"""Where a dataset comes from: arrays on disk, or an archive that a pointer names and that is fetched once.

``python -m stages.datasets`` fetches the dataset of ``params.yaml``; exit code 3: it cannot be had.
"""

import hashlib
import os
import pickle
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import numpy as np
import pooch
import requests
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from stages import settings
from stages.arrays import Dataset, checked_dataset, read_dataset
from stages.settings import UserError, stop_on_user_error

TIMEOUT = (10, 30)  # seconds to connect; seconds without a byte
ATTEMPTS = 2  # per address


class Pointer(BaseModel):
    """A dataset's address: what to fetch, from where, and the hash that its bytes must have."""

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
        return urlsplit(self.urls[0]).path.rsplit("/", 1)[-1]


class Unavailable(UserError):
    """The dataset is in no known place and no address gives it."""


def read_pointer(path: Path) -> Pointer:
    """Read and check a pointer; raises `UserError` with one line."""
    raw = settings.read_yaml(path, "a pointer (.yaml) or arrays (.npz): data.path")
    try:
        return Pointer.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: {settings.one_line(error)}") from None


def dataset_name(path: Path) -> str:
    """What to call the dataset: a pointer's ``name``, or the stem of the arrays' file."""
    return read_pointer(path).name if path.suffix in (".yaml", ".yml") else path.stem


def load(path: Path) -> Dataset:
    """Read the dataset that `path` names, fetching it first where it is a pointer.

    Raises `UserError` (`Unavailable` where it cannot be had) with what was wrong and what was expected.
    """
    if path.suffix not in (".yaml", ".yml"):
        return read_dataset(path)
    pointer = read_pointer(path)
    archive = fetch(path, pointer)
    if pointer.format == "npz":
        return read_dataset(archive, pointer.class_names)
    return read_cifar10(archive, pointer.class_names)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_path(pointer: Pointer) -> Path:
    """Where the archive is kept, per user and outside any workspace, so that ``dvc exp run --temp`` finds it too."""
    return Path(pooch.os_cache("transfer-learning-pipeline")) / pointer.sha256[:16] / pointer.file_name


def keras_folder() -> Path:
    return Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "datasets"


def _local_copies(pointer_path: Path, pointer: Pointer) -> Iterator[Path]:
    """Files that may be the archive: the cache, Keras's own copies under their many names, beside the pointer."""
    yield cache_path(pointer)
    with suppress(OSError):  # no such folder
        copies = (path for path in keras_folder().iterdir() if path.name.startswith(pointer.name.lower()))
        yield from sorted(path for path in copies if path.is_file())
    yield pointer_path.parent / pointer.file_name


def fetch(pointer_path: Path, pointer: Pointer) -> Path:
    """Return the archive's path, every byte checked against the hash; download it where no copy is found.

    Raises `Unavailable` with everything that was tried, and what to do instead.
    """
    tried = []
    cached = cache_path(pointer)
    for copy in _local_copies(pointer_path, pointer):
        if not copy.is_file():
            tried.append(f"{copy}: not there")
        elif (found := _sha256(copy)) != pointer.sha256:
            tried.append(f"{copy}: other bytes (sha256 {found})")
        else:
            return _keep(copy, cached) if copy.parent == pointer_path.parent else copy
    tried.insert(-1, f"{keras_folder()}/{pointer.name.lower()}*: none with that hash")
    for url in pointer.urls:
        problem = _download(url, pointer.sha256, cached)
        if problem is None:
            return cached
        tried.append(f"{url}: {problem}")
        print(f"{tried[-1]}", file=sys.stderr)
    by_hand = pointer_path.parent / pointer.file_name
    raise Unavailable(
        "\n  ".join([f"{pointer_path}: {pointer.name} cannot be had. Tried:", *tried])
        + f"\nBy hand: put the archive (sha256 {pointer.sha256}) at {by_hand} and run again."
        "\nWithout it: the same pipeline on the built-in digits is `dvc exp run -S data.path=data/raw/digits.npz`"
    )


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


def _as_stored(response: requests.Response, **_) -> None:
    """Keep the body as it came: some servers call a .gz file's own packing an encoding of the transfer."""
    response.raw.headers.pop("Content-Encoding", None)


def _download(url: str, sha256: str, target: Path) -> str | None:
    """Fetch one address, to a temporary name until the hash fits; return what went wrong, or None."""
    pooch.get_logger().setLevel("WARNING")
    print(f"downloading {url}", file=sys.stderr)
    downloader = pooch.HTTPDownloader(
        timeout=TIMEOUT,
        progressbar=sys.stderr.isatty(),
        chunk_size=2**20,
        hooks={"response": _as_stored},
        headers={"Accept-Encoding": "identity"},
    )
    for attempt in range(ATTEMPTS):
        try:
            pooch.retrieve(url, f"sha256:{sha256}", fname=target.name, path=target.parent, downloader=downloader)
            return None
        except requests.HTTPError as error:
            return str(error.response.status_code)
        except requests.RequestException as error:
            problem = f"{type(error).__name__}, {attempt + 1} attempts"
        except ValueError:
            return "gave other bytes than the hash says"
        except OSError as error:
            raise UserError(f"{target}: {error.strerror or error}, expected room for the download") from None
    return problem


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles lists, numbers, text and numpy arrays, and refuses every other name."""

    _allowed: dict[str, Callable] = {  # noqa: RUF012
        "_reconstruct": np._core.multiarray._reconstruct,
        "ndarray": np.ndarray,
        "dtype": np.dtype,
    }

    def find_class(self, module: str, name: str):
        if module in ("numpy", "numpy.core.multiarray") and name in self._allowed:
            return self._allowed[name]
        raise pickle.UnpicklingError(f"refused to load {module}.{name}")


def read_cifar10(archive: Path, class_names: list[str]) -> Dataset:
    """Read the official ``cifar-10-python.tar.gz``, whose batches are pickles, without running code from it.

    The images are stored as rows of 3072 bytes: 1024 red, 1024 green, 1024 blue, each row by row
    (https://www.cs.toronto.edu/~kriz/cifar.html). Raises `UserError` when the archive is not laid out so.
    """
    batches = {}
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                name = Path(member.name).name
                if member.isfile() and (name.startswith("data_batch_") or name == "test_batch"):
                    batches[name] = _ArrayUnpickler(tar.extractfile(member), encoding="bytes").load()
        train = [batches[f"data_batch_{i}"] for i in range(1, 6)]
        arrays = {"class_names": np.array(class_names)}
        for part, parts in {"train": train, "test": [batches["test_batch"]]}.items():
            rows = np.concatenate([batch[b"data"] for batch in parts])
            arrays[f"x_{part}"] = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            arrays[f"y_{part}"] = np.concatenate([batch[b"labels"] for batch in parts])
    except Exception as error:  # damaged archives and pickles raise nearly anything
        problem = " ".join(str(error).split())
        raise UserError(f"{archive}: no CIFAR-10 archive: {type(error).__name__}: {problem}") from None
    return checked_dataset(archive, arrays)


@stop_on_user_error
def main() -> None:
    path = Path(settings.load().data.path)
    if path.suffix in (".yaml", ".yml"):
        try:
            fetch(path, read_pointer(path))
        except Unavailable as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(3)


if __name__ == "__main__":
    main()
