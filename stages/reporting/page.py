"""The numbers of the report, and the page that ``templates/report.md`` makes of them."""

import functools
import itertools
import json
import re
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from stages.reporting import published
from stages.reporting.results import MANY, Result, Results, hardest
from stages.reporting.statistics import accuracy_interval, mcnemar
from stages.settings import Settings
from stages.shared.halves import Half

LEVEL = 0.05  # of significance, for all comparisons together
IMBALANCED = 3  # times as many training images of a class as of another


def plain(text: object) -> str:
    """Text that Markdown shows as it is, whatever a class is called."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&$!])", r"\\\1", str(text))


def imbalance(half: Half) -> list[tuple[str, int]]:
    """The classes with the most and the fewest training images, if these differ by more than `IMBALANCED` times."""
    counts = np.bincount(half.train.y, minlength=len(half.class_names))
    extremes = [(half.class_names[i], int(counts[i])) for i in (counts.argmax(), counts.argmin())]
    return extremes if counts.max() > IMBALANCED * counts.min() else []


def comparison(first: Result, second: Result, level: float, params: Settings) -> dict[str, Any]:
    """Two fine-tuned models on the same test images; `better` is None if the difference is not significant.

    `differ` lists the settings in which their recipes differ, `trainable` left out. `held_back` says whether the
    numbers agree with the worse one being held back by its frozen layers.
    """
    test = mcnemar(first.correct, second.correct)
    better, worse = (first, second) if test.only_first > test.only_second else (second, first)
    ours, theirs = (params.finetune(r.stage).model_dump() for r in (better, worse))
    differ = [key for key, value in ours.items() if key != "trainable" and value != theirs[key]]
    fits_better = better.metrics["train_accuracy"] > worse.metrics["train_accuracy"]
    held_back = set(ours["trainable"]) > set(theirs["trainable"]) and fits_better
    significant = {"better": better, "worse": worse, "differ": differ, "held_back": held_back}
    return {"first": first, "second": second, "test": test, "better": None} | (significant if test.p < level else {})


def numbers(results: Results, params: Settings) -> dict[str, Any]:
    """Everything that the template shows."""
    pairs = list(itertools.combinations(results.tuned, 2))
    level = LEVEL / max(len(pairs), 1)  # Bonferroni
    defaults = Settings().by_key()
    set_ups: dict[str, list[str]] = {}
    for r in results.all:
        set_ups.setdefault(", ".join(f"{key} {value}" for key, value in r.record["set_up"].items()), []).append(r.stage)
    return {
        "source": results.source,
        "tuned": results.tuned,
        "params": params,
        "published": published.TABLE if results.on_the_notebooks_images else {},
        "interval": accuracy_interval,
        "many": MANY,
        "hardest": hardest,
        "imbalance": imbalance,
        "comparisons": [comparison(*pair, level, params) for pair in pairs],
        "level": level,
        "changed": {key: value for key, value in params.by_key().items() if defaults.get(key) != value},
        "set_ups": set_ups,
    }


def render(results: Results, params: Settings) -> str:
    """The whole report, Markdown."""
    environment = Environment(
        loader=PackageLoader("stages.reporting"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,  # Markdown; `plain` is its escape
    )  # fmt: skip
    environment.filters |= {"plain": plain, "json": functools.partial(json.dumps, ensure_ascii=False)}
    return environment.get_template("report.md").render(numbers(results, params))
