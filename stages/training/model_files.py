"""Save and load models: equal models make equal ``.keras`` files, damaged files are refused."""

import json
import re
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import keras

from stages.shared.errors import UserError, one_line, short_repr
from stages.shared.files import HOW_TO_RESTORE, MODELS, write_atomic
from stages.shared.npz import is_bomb

MAX_METADATA = 100_000_000  # bytes


class Trained(NamedTuple):
    """A model, its class names in the order of its outputs, and its file's ``metadata.json``."""

    model: keras.Model
    class_names: list[str]
    metadata: dict[str, Any]


def load(path: Path) -> keras.Model:
    """Load a saved model without its loss; raises `UserError` if the file is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            if is_bomb(path.stat().st_size, unpacked):
                raise ValueError(f"unpacks to {unpacked} bytes, a zip bomb")
            if damaged := archive.testzip():  # from Python 3.13 on Keras reads weights whose checksum is wrong
                raise ValueError(f"{damaged}: wrong checksum")
        return keras.models.load_model(path, compile=False)
    except FileNotFoundError:
        raise UserError(f"{path}: missing, expected a model as `dvc repro` writes") from None
    except Exception as error:  # a damaged file makes zipfile, h5py or Keras raise nearly anything
        remedy = f"; {HOW_TO_RESTORE}" if path.absolute().parent == MODELS.absolute() else ""
        version = one_line(_read_metadata(path).get("keras_version", keras.__version__))
        other = "" if version == keras.__version__ else f" (saved by Keras {version}, which it may need)"
        problem = f"no model that Keras {keras.__version__} can load{other}: {one_line(error)}"
        raise UserError(f"{path}: {problem}{remedy}") from None


def load_trained(path: Path) -> Trained:
    """Load a model of this pipeline and its class names; raises `UserError` if it cannot be loaded or has none."""
    model, metadata = load(path), _read_metadata(path)
    names: Any = metadata.get("class_names")
    valid = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    if not valid or model.output_shape != (None, len(set(names))) or len(set(names)) < len(names):
        expected = f"expected different texts, one for each output of the shape {model.output_shape}"
        raise UserError(f"{path}: class_names in its metadata: was {short_repr(names)}, {expected}")
    return Trained(model, names, metadata)


def read_class_names(path: Path) -> list[str]:
    """Read the class names from a model's file; a model from elsewhere has none."""
    names = _read_metadata(path).get("class_names")
    return names if isinstance(names, list) else []


def _read_metadata(path: Path) -> dict[str, Any]:
    """Read a model file's ``metadata.json``, empty if there is none."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("metadata.json") as file:
            return dict(json.loads(file.read(MAX_METADATA)))
    except Exception:  # as above
        return {}


def save(model: keras.Model, path: Path, class_names: list[str], **metadata: object) -> None:
    """Save a model for plain ``keras.models.load_model``; equal models make equal files.

    The file's ``metadata.json`` holds the class names, in the order of the outputs, under ``class_names``, and
    `metadata`. The file has loss and metric, so that ``evaluate`` works, but no optimizer state, which would double its
    size.
    """
    if isinstance(model, keras.Sequential):  # compile a copy, not the caller's model
        image = keras.Input(model.input_shape[1:], name="image")
        saved = keras.Sequential([image, *model.layers], name=model.name)
    else:
        saved = keras.Model(model.input, model.output, name=model.name)
    saved.compile(keras.optimizers.SGD(name="sgd"), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    rewritten = BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / path.name
        saved.save(file)
        with zipfile.ZipFile(file) as old, zipfile.ZipFile(rewritten, "w") as new:
            for name in sorted(old.namelist()):
                content = _normalise(name, old.read(name), {"class_names": class_names} | metadata)
                new.writestr(zipfile.ZipInfo(name), content)
    write_atomic(path, rewritten.getbuffer())


def _normalise(name: str, content: bytes, metadata: dict) -> bytes:
    """Replace the date, and the memory addresses that Keras writes as ``shared_object_id``; add `metadata`."""
    if name == "metadata.json":
        return json.dumps(json.loads(content) | {"date_saved": "1980-01-01@00:00:00"} | metadata).encode()
    if name == "config.json":
        number: dict[bytes, int] = {}
        return re.sub(
            rb'("shared_object_id": )(\d+)',
            lambda found: found[1] + b"%d" % number.setdefault(found[2], len(number)),
            content,
        )
    return content
