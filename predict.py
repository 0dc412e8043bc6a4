"""Classify pictures with a trained model: ``python predict.py models/finetune_fc.keras photo.jpg folder 'more/*.png'``.

A folder stands for all pictures in it; ``-`` reads paths from standard input, one per line. Unreadable pictures are
skipped and listed on standard error; the exit code is then 1.
"""

import stages  # noqa: F401, first: it checks that the packages are installed

# isort: split
import argparse
import base64
import glob
import io
import json
import sys
import zipfile
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment
from PIL import Image

from stages.images.pictures import SUFFIXES, read_in_parallel
from stages.shared.errors import UserError, one_line
from stages.shared.files import write_atomic
from stages.shared.program import program

BATCH = 500  # pictures
MAX_SHOWN = 1000  # pictures on the page, rows on the terminal
TEMPLATE = Path(__file__).with_name("tools") / "predictions.html"


class Prediction(NamedTuple):
    """A picture's path, its most likely classes with their probabilities, and its pixels as a data URI or empty."""

    picture: str
    classes: list[dict[str, Any]]
    image: str


def find_pictures(arguments: list[str]) -> list[Path]:
    """Return the files that the arguments name; raises `UserError` if there are none."""
    found: list[Path] = []
    for argument in arguments:
        if argument == "-":
            found += [Path(line.rstrip("\n")) for line in sys.stdin if line.strip()]
        elif Path(argument).is_dir():
            files = (path for path in Path(argument).rglob("*") if path.is_file() and path.name[0] != ".")
            found += sorted(path for path in files if path.suffix.lower() in SUFFIXES)
        elif Path(argument).exists() or not glob.has_magic(argument):
            found.append(Path(argument))
        else:
            found += [Path(path) for path in sorted(glob.glob(argument, recursive=True))]  # noqa: PTH207
    if not found:
        raise UserError(f"{one_line(' '.join(arguments))}: no pictures found, expected files, folders or patterns")
    return found


def read_class_names(model_file: Path) -> list[str]:
    """Read the class names from a model's file; raises `UserError` if there are none."""
    try:
        with zipfile.ZipFile(model_file) as archive:
            return json.loads(archive.read("metadata.json"))["class_names"]
    except OSError as error:
        raise UserError(f"{model_file}: {error.strerror}, expected a model as the stages save it") from None
    except (zipfile.BadZipFile, KeyError, ValueError):
        raise UserError(f"{model_file}: not a model of this pipeline: no .keras file with class names") from None


def predict(model_file: Path, paths: list[Path], top: int, page: bool) -> tuple[list[Prediction], list[str]]:
    """Classify pictures in batches, which bounds the memory.

    Returns each picture's `top` classes, with the pixels of the first pictures if `page` is set, and one line for each
    unreadable picture. Raises `UserError` if the model cannot be used.
    """
    from stages.training import model_files  # imports TensorFlow, which takes seconds

    names = np.array(read_class_names(model_file))
    model = model_files.load(model_file)
    height, width, channels = model.input_shape[1:]
    if channels not in (1, 3):
        raise UserError(f"{model_file}: takes images of {channels} channels, expected 1 or 3")
    found, failed = list[Prediction](), list[str]()
    pictures = zip(paths, read_in_parallel(paths, (height, width)), strict=True)
    while batch := list(islice(pictures, BATCH)):
        readable = [(str(path), picture.pixels) for path, picture in batch if not isinstance(picture, ValueError)]
        failed += [one_line(f"{path}: {error}") for path, error in batch if isinstance(error, ValueError)]
        if not readable:
            continue
        x = np.stack([pixels for _, pixels in readable])
        if channels == 1:
            x = np.stack([np.asarray(Image.fromarray(pixels).convert("L"))[..., None] for pixels in x])
        p = model.predict_on_batch(x).astype(float)
        best = np.argsort(-p, axis=1, kind="stable")[:, :top]
        for i, (path, pixels) in enumerate(readable):
            image = encode(pixels) if page and len(found) < MAX_SHOWN else ""
            classes = [{"class": str(names[label]), "probability": round(p[i, label], 6)} for label in best[i]]
            found.append(Prediction(path, classes, image))
    return found, failed


def encode(pixels: np.ndarray) -> str:
    """Encode a picture, uint8 (H, W, 3), as a data URI."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def as_table(found: list[Prediction]) -> pd.DataFrame:
    """Make a table with a row for each picture: columns picture, class 1, probability 1, class 2, ..."""
    table = pd.DataFrame({"picture": [prediction.picture for prediction in found]})
    for i in range(len(found[0].classes) if found else 0):
        for key in ("class", "probability"):
            table[f"{key} {i + 1}"] = [prediction.classes[i][key] for prediction in found]
    return table


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").replace("``", "`"))
    parser.add_argument("model", type=Path, help="a .keras file of this pipeline")
    parser.add_argument("pictures", nargs="+", help="files, folders, patterns, or - for a list on standard input")
    parser.add_argument("--top", type=int, default=3, metavar="K", help="number of classes to show (%(default)s)")
    for kind in ("csv", "json", "html"):
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"also write {kind.upper()}")
    return parser.parse_args()


@program
def main() -> None:
    """Find the pictures, classify them, print a table and write the files that the options name."""
    options = parse_arguments()
    if options.top < 1:
        raise UserError(f"--top: was {options.top}, expected at least 1")
    paths = find_pictures(options.pictures)
    found, failed = predict(options.model, paths, options.top, options.html is not None)
    table = as_table(found)
    if found:
        left = {"picture": f"{{:{table['picture'].str.len().max()}}}".format}
        print(table.to_string(index=False, max_rows=MAX_SHOWN, float_format="{:.3f}".format, formatters=left))
    if options.csv:
        write_atomic(options.csv, table.to_csv(index=False, float_format="%.6f").encode())
    if options.json:
        nested = [{"picture": picture, "predictions": classes} for picture, classes, _ in found]
        write_atomic(options.json, (json.dumps(nested, indent=2, ensure_ascii=False) + "\n").encode())
    if options.html:
        template = Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE.read_text())
        write_atomic(options.html, template.render(model=options.model, predictions=found).encode())
    for file in filter(None, (options.csv, options.json, options.html)):
        print(f"written: {file}")
    if failed:
        raise UserError("\n  ".join([f"{len(failed)} of {len(paths)} pictures cannot be read:", *failed]))


if __name__ == "__main__":
    main()
