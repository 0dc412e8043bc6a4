"""Classify pictures with a trained model: ``python predict.py models/finetune_fc.keras photo.jpg folder 'more/*.png'``.

A folder stands for all files in it; ``-`` reads paths from standard input, one per line. Unreadable pictures are
skipped and listed on standard error; the exit code is then 1. Where a picture's folder is named like a class of the
model, its prediction is compared with that.
"""

import stages  # noqa: F401, first: it checks that the packages are installed

# isort: split
import argparse
import base64
import glob
import io
import json
import os
import sys
from itertools import islice
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pandas as pd
from jinja2 import Environment
from PIL import Image

from stages.images.folders import MAX_LISTED
from stages.images.listing import list_files, list_pictures
from stages.images.pictures import HOW, Picture, read_in_parallel
from stages.predictions import FORMAT, lowest_threshold, probability_columns
from stages.reporting.statistics import accuracy_interval
from stages.shared.errors import UserError, one_line, short_repr
from stages.shared.files import write_atomic
from stages.shared.program import program
from stages.training.model_files import Trained, load_trained

BATCH = 500  # pictures
MAX_SHOWN = 1000  # pictures on the page, rows on the terminal
TEMPLATE = Path(__file__).with_name("tools") / "predictions.html"
FORMATS = ("csv", "json", "html")
BEGINNINGS = (  # of the files that this program writes: it overwrites no others
    b"image,predicted,probability,", b"image,actual,predicted,probability,", b'[\n  {\n    "image": ', b"[]",
    b'<!doctype html>\n<html lang="en">\n<title>Predictions of ',
)  # fmt: skip


def find_pictures(arguments: list[str]) -> tuple[list[Path], dict[Path, str]]:
    """Return the files that the arguments name, and the labels of those in a folder with a list of pictures.

    Raises `UserError` if there are none, or one is a pipe or device.
    """
    found, labels = list[Path](), dict[Path, str]()
    for argument in arguments:
        if argument == "-":
            lines = sys.stdin.buffer if sys.stdin else ()  # None: closed
            found += [Path(os.fsdecode(line.rstrip(b"\r\n"))) for line in lines if line.strip()]
        elif Path(argument).is_dir():
            files = [argument / path for path in list_files(Path(argument))]
            if any(path.suffix.lower() == ".csv" and path.parent == Path(argument) for path in files):
                table = list_pictures(Path(argument))
                files = [argument / Path(path) for path in table["path"]]
                labels |= dict(zip(files, table["label"], strict=True))
            found += sorted(files)
        elif Path(argument).exists() or not glob.has_magic(argument):
            found.append(Path(argument))
        else:
            found += sorted(map(Path, glob.iglob(argument, recursive=True)))  # noqa: PTH207
    if not found:
        raise UserError(f"{one_line(' '.join(arguments))}: no pictures found, expected files, folders or patterns")
    if other := next((path for path in found if path.exists() and not path.is_file()), None):
        raise UserError(f"{one_line(other)}: not a regular file, expected a picture")
    return found, labels


def choose_threshold(trained: Trained, wanted: float) -> float:
    """Choose the lowest threshold that gave the `wanted` accuracy on the validation images; or raise `UserError`."""
    if not (validation := trained.metadata.get("validation")):
        expected = "expected a model trained with validation images: -S data.validation_fraction=0.1"
        raise UserError(f"--unsure: the model's file has no accuracies by threshold, {expected}")
    if (threshold := lowest_threshold(validation, wanted)) is None:
        best = f"{max(validation['accuracy']):.4f}, the best on the validation images"
        raise UserError(f"--unsure: was {wanted}, expected at most {best}")
    return threshold


def classify(trained: Trained, paths: list[Path], page: bool) -> tuple[list[Path], np.ndarray, list, list[str]]:
    """Classify pictures in batches, which bounds the memory.

    Returns the N readable ones, their probabilities, float32 (N, classes), the first ones as the model sees them, uint8
    (H, W, C), if `page` is set, and a line for each unreadable one. Raises `UserError` if the model takes no pictures.
    """
    shape = trained.model.input_shape
    if len(shape) != 4 or None in shape[1:] or shape[3] not in (1, 3):
        raise UserError(f"the model takes arrays of shape {shape}, expected images (None, height, width, 1 or 3)")
    read, images, failed = list[Path](), list[np.ndarray](), list[str]()
    p = [np.empty((0, len(trained.class_names)), np.float32)]
    fit = trained.metadata.get("fit", "crop")
    pictures = zip(paths, read_in_parallel(paths, shape[1:3], fit if fit in HOW else "crop"), strict=True)
    while batch := list(islice(pictures, BATCH)):
        failed += [one_line(f"{path}: {error}") for path, error in batch if not isinstance(error, Picture)]
        read += [path for path, picture in batch if isinstance(picture, Picture)]
        pixels = [Image.fromarray(picture.pixels) for _, picture in batch if isinstance(picture, Picture)]
        x = [np.asarray(one.convert("L" if shape[3] == 1 else "RGB")).reshape(shape[1:]) for one in pixels]
        images += x[: MAX_SHOWN - len(images)] if page else []
        if x:
            p.append(trained.model.predict_on_batch(np.stack(x)))
    return read, np.concatenate(p), images, failed


def encode(image: np.ndarray) -> str:
    """Encode an image, uint8 (H, W, 1 or 3), as a data URI."""
    content = io.BytesIO()
    Image.fromarray(image.repeat(3 // image.shape[2], axis=2)).save(content, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def describe(
    paths: list[Path], labels: dict[Path, str], p: np.ndarray, names: list[str], top: int, threshold: float
) -> list[dict[str, Any]]:
    """Describe predictions: image, actual (its label or its folder's class, or empty), predicted, state, `top` classes.

    The state is right, wrong, unsure (`predicted` is empty, then) or, if the actual class is unknown, empty.
    """
    records, class_of = [], {normalize("NFC", name): name for name in names}
    for path, row, best in zip(paths, p, np.argsort(-p, axis=1, kind="stable")[:, :top], strict=True):
        actual = class_of.get(normalize("NFC", labels.get(path, path.parent.name)), "")
        answer = names[best[0]] if round(float(row[best[0]]), 6) >= threshold else ""  # as it is rounded
        state = "unsure" if not answer else "" if not actual else "right" if answer == actual else "wrong"
        classes = [{"class": names[i], "probability": round(float(row[i]), 6)} for i in best]
        records.append({"image": str(path), "actual": actual, "predicted": answer, "state": state, "classes": classes})
    return records


def summarise(records: list[dict[str, Any]], threshold: float | None, metadata: dict[str, Any]) -> list[str]:
    """Say how accurate the model is, as far as classes or validation images tell, and how many pictures are unsure."""
    states, lines = [record["state"] for record in records], []
    if judged := [state == "right" for state in states if state in ("right", "wrong")]:
        low, high = accuracy_interval(np.array(judged))
        accuracy = f"accuracy {sum(judged) / len(judged):.1%} (95% interval {low:.1%} to {high:.1%})"
        lines.append(f"{accuracy}: {sum(judged)} of {len(judged)} pictures with a known class")
    if threshold is not None:
        lines.append(f"unsure: {states.count('unsure')} of {len(states)} pictures, probability below {threshold:.3f}")
    if validation := metadata.get("validation"):
        lines += [f"accuracy on {validation.get('images', 'all')} validation images: {validation['accuracy'][0]:.1%}"]
    return lines


def check_output(kind: str, path: Path) -> None:
    """Raise `UserError` unless the file has the suffix of its kind, and is new or written by this program."""
    if path.suffix.lower() != f".{kind}":
        raise UserError(f"--{kind}: was {short_repr(str(path))}, expected a file name that ends in .{kind}")
    if path.exists() and not (path.is_file() and path.read_bytes().startswith(BEGINNINGS)):
        raise UserError(f"--{kind}: {short_repr(str(path))} exists and is not from predict.py; expected another name")


@program
def main() -> None:
    """Find the pictures, classify them, write the files that the options name and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").replace("``", "`"))
    parser.add_argument("model", type=Path, help="a .keras file of this pipeline")
    parser.add_argument("pictures", nargs="+", help="files, folders, patterns, or - for a list on standard input")
    parser.add_argument("--top", type=int, default=3, metavar="K", help="number of classes to show (%(default)s)")
    unsure = "give no answer where the model is too unsure for this accuracy, say 0.95"
    parser.add_argument("--unsure", type=float, default=0, metavar="ACCURACY", help=unsure)
    for kind in FORMATS:
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"also write {kind.upper()}")
    options = parser.parse_args()
    if options.top < 1:
        raise UserError(f"--top: was {options.top}, expected at least 1")
    outputs = {kind: path for kind in FORMATS if (path := getattr(options, kind))}
    for kind, path in outputs.items():
        check_output(kind, path)
    paths, labels = find_pictures(options.pictures)
    trained = load_trained(options.model)
    threshold = choose_threshold(trained, options.unsure) if options.unsure else None
    read, p, images, failed = classify(trained, paths, "html" in outputs)
    records = describe(read, labels, p, trained.class_names, options.top, threshold or 0.0)
    summary, shown = summarise(records, threshold, trained.metadata), records[:MAX_SHOWN]
    outputs = outputs if read else {}  # no empty page over the last one
    for kind, path in outputs.items():
        if kind == "csv":  # the columns of the stages' predictions.csv
            columns = ["image", *(["actual"] if any(record["actual"] for record in records) else []), "predicted"]
            table = pd.DataFrame(records, columns=columns).assign(probability=p.max(axis=1))
            table = table.join(pd.DataFrame(p, columns=probability_columns(trained.class_names)))
            content = table.to_csv(index=False, float_format=FORMAT)
        elif kind == "json":
            content = json.dumps(records, indent=2, ensure_ascii=False) + "\n"
        else:
            page = Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE.read_text())
            pictures = list(zip(shown, map(encode, images), strict=True))
            content = page.render(model=options.model, summary=summary, pictures=pictures, all=len(records))
        write_atomic(path, content.encode(errors="backslashreplace"))  # names that are not UTF-8
    width = max((len(one_line(record["image"])) for record in shown), default=0)
    for record in shown:
        classes = ", ".join(f"{one['class']} {one['probability']:.3f}" for one in record["classes"])
        print(f"{one_line(record['image']):{width}}  {one_line(classes)}  {record['state']}".rstrip())
    rest = [f"and {len(records) - MAX_SHOWN} more"] if len(records) > MAX_SHOWN else []
    for line in (*rest, *summary, *(f"written: {one_line(path)}" for path in outputs.values())):
        print(line)
    if failed:
        more = [f"and {len(failed) - MAX_LISTED} more"] if len(failed) > MAX_LISTED else []
        head = f"{len(failed)} of {len(paths)} pictures cannot be read:"
        raise UserError("\n  ".join([head, *failed[:MAX_LISTED], *more]))


if __name__ == "__main__":
    main()
