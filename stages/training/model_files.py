"""Models in ``.keras`` files: equal models in equal files, damaged files refused."""

import json
import re
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path

import keras

from stages.shared.errors import UserError, one_line
from stages.shared.files import HOW_TO_HEAL, write_whole


def load(path: Path) -> keras.Model:
    """Load a saved model without its loss, to be trained further; raises `UserError` if the file is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # from Python 3.13 on Keras reads weights whose checksum is wrong
                raise ValueError(f"{damaged}: wrong checksum")
        return keras.models.load_model(path, compile=False)
    except FileNotFoundError:
        raise UserError(f"{path}: missing, expected a model as `dvc repro` writes") from None
    except Exception as error:  # a damaged file makes zipfile, h5py or Keras raise nearly anything
        raise UserError(f"{path}: no model that Keras can load: {one_line(error)}; {HOW_TO_HEAL}") from None


def save(model: keras.Model, path: Path, class_names: list[str]) -> None:
    """Save a model for plain ``keras.models.load_model``; equal models make equal files.

    The names of the classes, in the order of the outputs, are in the file's ``metadata.json``, key ``class_names``.
    The date, and the memory addresses that Keras puts in as ``shared_object_id``, are replaced. The file has loss and
    metric, so that ``evaluate`` works, and, to be half as large, no state of the optimizer that trained it.
    """
    if isinstance(model, keras.Sequential):  # what is compiled is not the caller's
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
                new.writestr(zipfile.ZipInfo(name), _without_accidents(name, old.read(name), class_names))
    write_whole(path, rewritten.getbuffer())


def _without_accidents(name: str, content: bytes, class_names: list[str]) -> bytes:
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
