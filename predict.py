"""What a trained model sees in pictures: ``python predict.py models/finetune_fc.keras photo.jpg folder 'more/*.png'``.

A folder stands for all pictures in it; ``-`` reads paths from standard input, one a line. What cannot be read is named
on standard error and does not end the rest; the exit code is then 1.
"""

import stages  # noqa: F401, first: it refuses a Python without the packages

# isort: split
import argparse
import base64
import glob
import io
import json
import sys
import zipfile
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment
from PIL import Image

from stages.images.pictures import SUFFIXES, in_parallel
from stages.shared.errors import UserError, one_line
from stages.shared.files import write_whole
from stages.shared.program import program

BATCH = 500  # pictures
Ranked = tuple[str, list[tuple[str, float]]]  # a picture; its classes with their probabilities, the likeliest first
MOST_SHOWN = 1000  # pictures on the page, rows on the terminal
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Predictions of {{ model }}</title>
<style>
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
  body { max-width: 72rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
  h1 { font-size: 1.5rem; }
  ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1rem; padding: 0; }
  li { list-style: none; border: 1px solid #8884; border-radius: .6rem; padding: .6rem; }
  img { width: 100%; border-radius: .3rem; image-rendering: pixelated; }
  small { opacity: .75; }
  p { display: flex; justify-content: space-between; margin: .2rem 0; position: relative; padding: 0 .3rem; }
  p::before { content: ""; position: absolute; inset: 0 auto 0 0; width: var(--p); background: #4a8fe755; }
</style>
<h1>Predictions of {{ model }}</h1>
{% if left_out %}
<p>{{ left_out }} more pictures are in the table, not on this page.</p>
{% endif %}
<ol>
{% for image, (picture, classes) in rows %}
  <li><img src="{{ image }}" alt=""><small>{{ picture }}</small>
{% for name, probability in classes %}
{% set percent = '%.1f%%' | format(100 * probability) %}
    <p style="--p: {{ percent }}"><span>{{ name }}</span><span>{{ percent }}</span></p>
{% endfor %}
  </li>
{% endfor %}
</ol>
</html>
"""


def pictures(arguments: list[str]) -> list[Path]:
    """The files that arguments name; raises `UserError` if one names nothing."""
    found: list[Path] = []
    for argument in arguments:
        if argument == "-":
            found += [Path(line.rstrip("\n")) for line in sys.stdin if line.strip()]
        elif Path(argument).is_dir():
            there = (path for path in Path(argument).rglob("*") if path.is_file() and path.name[0] != ".")
            found += sorted(path for path in there if path.suffix.lower() in SUFFIXES)
        elif Path(argument).exists() or not glob.has_magic(argument):
            found.append(Path(argument))
        else:
            found += [Path(path) for path in sorted(glob.glob(argument, recursive=True))]  # noqa: PTH207
    if not found:
        raise UserError(f"{one_line(' '.join(arguments))}: no pictures there, expected files, folders or patterns")
    return found


def class_names(model_file: Path) -> list[str]:
    """The names that a stage put into a model's file; raises `UserError` if there are none."""
    try:
        with zipfile.ZipFile(model_file) as archive:
            return json.loads(archive.read("metadata.json"))["class_names"]
    except OSError as error:
        raise UserError(f"{model_file}: {error.strerror}, expected a model as the stages save") from None
    except (zipfile.BadZipFile, KeyError, ValueError):
        raise UserError(f"{model_file}: not a model of this pipeline: no .keras file with class names") from None


def predict(model_file: Path, paths: list[Path], top: int, page: bool) -> tuple[list[Ranked], list[str], list[str]]:
    """Predict pictures part by part, so that memory does not grow with their number.

    Returns each picture with its `top` classes and their probabilities, the first pictures as data URIs if `page` is
    set, and what could not be read, a line each. Raises `UserError` if the model's file does not fit.
    """
    from stages.training import model_files  # imports TensorFlow, which takes seconds

    names = np.array(class_names(model_file))
    model = model_files.load(model_file)
    height, width, channels = model.input_shape[1:]
    if channels not in (1, 3):
        raise UserError(f"{model_file}: takes images of {channels} channels, expected 1 or 3")
    found, shown, failed = list[Ranked](), list[str](), list[str]()
    read = zip(paths, in_parallel(paths, (height, width)), strict=True)
    while part := list(islice(read, BATCH)):
        good = [(path, picture.pixels) for path, picture in part if not isinstance(picture, ValueError)]
        failed += [one_line(f"{path}: {error}") for path, error in part if isinstance(error, ValueError)]
        if not good:
            continue
        x = np.stack([pixels for _, pixels in good])
        if channels == 1:
            x = np.stack([np.asarray(Image.fromarray(pixels).convert("L"))[..., None] for pixels in x])
        p = model.predict_on_batch(x).astype(float)
        best = np.argsort(-p, axis=1, kind="stable")[:, :top]
        for i, (path, pixels) in enumerate(good):
            found.append((str(path), [(str(names[label]), p[i, label]) for label in best[i]]))
            if page and len(shown) < MOST_SHOWN:
                shown.append(data_uri(pixels))
    return found, shown, failed


def as_table(found: list[Ranked]) -> pd.DataFrame:
    """One row a picture: columns picture, class 1, probability 1, class 2, ..."""
    numbers = range(1, 1 + max((len(ranked) for _, ranked in found), default=0))
    columns = ["picture", *(f"{what} {i}" for i in numbers for what in ("class", "probability"))]
    return pd.DataFrame([[picture, *chain.from_iterable(ranked)] for picture, ranked in found], columns=columns)


def data_uri(pixels: np.ndarray) -> str:
    """A picture, uint8 (H, W, 3), as an address that holds it."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def arguments() -> argparse.Namespace:
    """The command line, parsed."""
    description = (__doc__ or "").replace("``", "`")
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", type=Path, help="a .keras file of this pipeline")
    parser.add_argument("pictures", nargs="+", help="files, folders, patterns, or - for a list")
    parser.add_argument("--top", type=int, default=3, metavar="K", help="classes shown of each picture (3)")
    for kind in ("csv", "json", "html"):
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"write {kind.upper()}, too")
    return parser.parse_args()


@program
def main() -> None:
    """Read the pictures, predict, and write what was asked for."""
    options = arguments()
    if options.top < 1:
        raise UserError(f"--top: was {options.top}, expected at least 1")
    paths = pictures(options.pictures)
    found, shown, failed = predict(options.model, paths, options.top, options.html is not None)
    table = as_table(found)
    if found:
        left = {"picture": f"{{:{table['picture'].str.len().max()}}}".format}
        print(table.to_string(index=False, max_rows=MOST_SHOWN, float_format="{:.3f}".format, formatters=left))
    if options.csv:
        write_whole(options.csv, table.to_csv(index=False, float_format="%.6f").encode())
    if options.json:
        nested = [
            {"picture": picture, "predictions": [{"class": name, "probability": round(p, 6)} for name, p in ranked]}
            for picture, ranked in found
        ]
        write_whole(options.json, (json.dumps(nested, indent=2, ensure_ascii=False) + "\n").encode())
    if options.html:
        template = Environment(autoescape=True, trim_blocks=True).from_string(PAGE)
        rows = zip(shown, found, strict=False)  # the first ones
        page = template.render(model=options.model, rows=rows, left_out=len(found) - len(shown))
        write_whole(options.html, page.encode())
    for file in filter(None, (options.csv, options.json, options.html)):
        print(f"written: {file}")
    if failed:
        raise UserError("\n  ".join([f"{len(failed)} of {len(paths)} pictures cannot be read:", *failed]))


if __name__ == "__main__":
    main()
