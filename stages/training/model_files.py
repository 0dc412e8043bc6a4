"""Save and load models: equal models make equal ``.keras`` files, damaged files are refused."""

import json
import re
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path

import keras

from stages.shared.errors import UserError, one_line
from stages.shared.files import HOW_TO_RESTORE, write_atomic


def load(path: Path) -> keras.Model:
    """Load a saved model without its loss; raises `UserError` if the file is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # from Python 3.13 on Keras reads weights whose checksum is wrong
                raise ValueError(f"{damaged}: wrong checksum")
        return keras.models.load_model(path, compile=False)
    except FileNotFoundError:
        raise UserError(f"{path}: missing, expected a model as `dvc repro` writes") from None
    except Exception as error:  # a damaged file makes zipfile, h5py or Keras raise nearly anything
        raise UserError(f"{path}: no model that Keras can load: {one_line(error)}; {HOW_TO_RESTORE}") from None


def save(model: keras.Model, path: Path, class_names: list[str]) -> None:
    """Save a model for plain ``keras.models.load_model``; equal models make equal files.

    The file's ``metadata.json`` holds the class names, in the order of the outputs, under ``class_names``. The file has
    loss and metric, so that ``evaluate`` works, but no optimizer state, which would double its size.
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
                new.writestr(zipfile.ZipInfo(name), _normalise(name, old.read(name), class_names))
    write_atomic(path, rewritten.getbuffer())


def _normalise(name: str, content: bytes, class_names: list[str]) -> bytes:
    """Replace the date, and the memory addresses that Keras writes as ``shared_object_id``; add the class names."""
    if name == "metadata.json":
        ours = {"date_saved": "1980-01-01@00:00:00", "class_names": class_names}
        return json.dumps(json.loads(content) | ours).encode()
    if name == "config.json":
        number: dict[bytes, int] = {}
        return re.sub(
            rb'("shared_object_id": )(\d+)',
            lambda found: found[1] + b"%d" % number.setdefault(found[2], len(number)),
            content,
        )
    return content
