"""Download the file of a pointer: a small YAML file with a name, addresses and a SHA-256."""

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Annotated, ClassVar, Self

import pooch
import requests
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.shared.errors import UserError, describe_all
from stages.shared.files import atomic_file
from stages.shared.yaml_files import read_yaml

FILE_URL = r"^https?://[^\s/\[\]]+/([^\s?#]*/)?[^\s/?#]*[^\s/?#.](\?\S*)?$"


class Pointer(BaseModel):
    """A file to download; subclasses name an example, Keras's folder for such files, and how to do without one."""

    model_config = ConfigDict(extra="forbid", strict=True)
    example: ClassVar[str]
    keras_folder: ClassVar[str]
    alternative: ClassVar[str]
    name: str = Field(min_length=1)
    urls: list[Annotated[str, Field(pattern=FILE_URL)]] = Field(min_length=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @property
    def cached(self) -> Path:
        """Return the file's place in the user's cache, which `dvc exp run --temp` finds, too."""
        file_name = self.urls[0].partition("?")[0].rsplit("/", 1)[-1]
        return Path(pooch.os_cache("transfer-learning-pipeline")) / self.sha256[:16] / file_name

    @classmethod
    def read(cls, path: Path, expected: str) -> Self:
        """Read a pointer; raises `UserError` with one line that says what was `expected`."""
        try:
            return cls.model_validate(read_yaml(path, expected))
        except ValidationError as error:
            raise UserError(f"{path}: {_masked(describe_all(error, cls.example))}") from None


class DownloadError(UserError):
    """No copy of the file was found, and no address provides it."""


def fetch(path: Path, pointer: Pointer) -> Path:
    """Return the file of the pointer at `path`, every byte verified; download it if there is no copy.

    Raises `DownloadError` with everything that was tried, and what to do instead.
    """
    target, tried = pointer.cached, [f"{path}: {pointer.name} cannot be downloaded. Tried:"]
    by_hand, keras = path.parent / target.name, Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    in_keras, beginning = keras / pointer.keras_folder / target.name, pointer.name.lower()
    others = [file for file in sorted(in_keras.parent.glob("*.*")) if file.name.lower().startswith(beginning)]
    for copy in dict.fromkeys((target, in_keras, *others, by_hand)):  # Keras has given a file other names
        found = pooch.file_hash(str(copy)) if copy.is_file() else None
        if found == pointer.sha256:
            if copy == by_hand:  # which another clone, as of `dvc exp run --temp`, does not see
                with copy.open("rb") as file, atomic_file(target) as cached:
                    shutil.copyfileobj(file, cached)
            return copy
        tried.append(f"{copy}: {f'other bytes (sha256 {found})' if found else 'not there'}")
    pooch.get_logger().setLevel("ERROR")
    # Some servers declare a .gz file's own compression as that of the transfer: unpacked, it would have other bytes.
    hooks = {"response": lambda response, **_: response.raw.headers.pop("Content-Encoding", None) and None}
    seconds = (10, 30)  # to connect, and without a byte
    get = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=seconds, hooks=hooks)
    for url in pointer.urls:
        print(f"downloading {_masked(url)}", file=sys.stderr)
        names = {"registry": {target.name: pointer.sha256}, "urls": {target.name: url}}
        try:
            return Path(pooch.create(target.parent, "", retry_if_failed=1, **names).fetch(target.name, downloader=get))
        except requests.RequestException as error:
            problem = type(error).__name__ if error.response is None else f"HTTP {error.response.status_code}"
        except ValueError:
            problem = "gave other bytes than the hash says"
        tried.append(f"{_masked(url)}: {problem}")
    advice = f"put the file (sha256 {pointer.sha256}) at {by_hand} and run again.\nWithout it: {pointer.alternative}"
    raise DownloadError("\n  ".join(tried) + f"\nBy hand: {advice}")


def _masked(text: str) -> str:
    """Mask passwords and tokens in addresses."""
    return re.sub(r"(https?://[^\s?'\"]*\?)[^\s'\"]*", r"\1***", re.sub(r"//[^\s/?'\"]*@", "//***@", text))
