"""Render the report: collect the template's variables, fill in ``templates/report.md``, convert that to HTML."""

import base64
import functools
import itertools
import json
import re
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markdown_it import MarkdownIt

from stages.reporting import notebook, quality
from stages.reporting.results import MANY, WANTED, WEAK, ModelResult, Results, hardest
from stages.reporting.statistics import paired_difference
from stages.settings import Settings
from stages.shared.files import REPORTS
from stages.shared.tasks import Task

LEVEL = 0.05  # of significance, for all comparisons together
IMBALANCED = 3  # times as many training images of a class as of another


def escape_markdown(text: object) -> str:
    """Escape text, such as a class's name, so that Markdown shows it unchanged."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&$!])", r"\\\1", str(text))


TEMPLATES = Environment(
    loader=PackageLoader("stages.reporting"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    keep_trailing_newline=True, autoescape=select_autoescape(["html"]),  # Markdown has `plain`
)  # fmt: skip
TEMPLATES.filters |= {"plain": escape_markdown, "json": functools.partial(json.dumps, ensure_ascii=False)}


def imbalance(task: Task) -> list[tuple[str, int]]:
    """Find the classes with the most and the fewest training images, if they differ by more than `IMBALANCED`."""
    counts = np.bincount(task.train.y, minlength=len(task.class_names))
    extremes = [(task.class_names[i], int(counts[i])) for i in (counts.argmax(), counts.argmin())]
    return extremes if counts.max() > IMBALANCED * counts.min() else []


def compare(first: ModelResult, second: ModelResult, level: float, params: Settings) -> dict[str, Any]:
    """Compare two fine-tuned models on the same test images; `better` is None if the difference is not significant.

    `differ` lists the settings in which their recipes differ, `trainable` left out. `held_back`: the numbers are
    consistent with the frozen layers of the worse one holding it back.
    """
    test = paired_difference(first.correct, second.correct)
    better, worse = (first, second) if test.only_first > test.only_second else (second, first)
    ours, theirs = (params.finetune(r.stage).model_dump() for r in (better, worse))
    differ = [key for key, value in ours.items() if key != "trainable" and value != theirs[key]]
    fits_better = better.metrics["train_accuracy"] > worse.metrics["train_accuracy"]
    held_back = set(ours["trainable"]) > set(theirs["trainable"]) and fits_better
    significant = {"better": better, "worse": worse, "differ": differ, "held_back": held_back}
    return {"first": first, "second": second, "test": test, "better": None} | (significant if test.p < level else {})


def render_markdown(results: Results, params: Settings, checked: dict, private: bool = False) -> str:
    """Render the whole report as Markdown; without images and names of pictures unless `private`: Git gets it.

    `checked`: see `quality.check`.
    """
    pairs = list(itertools.combinations(results.tuned, 2))
    level = LEVEL / max(len(pairs), 1)  # Bonferroni
    defaults = Settings().by_key()
    environments: dict[str, list[str]] = {}
    for r in results.all:
        described = ", ".join(f"{key} {value}" for key, value in r.record["environment"].items())
        environments.setdefault(described, []).append(r.stage)
    tasks = [(task.class_names, task.counts) for task in (results.source.task, results.tuned[0].task)]
    notebooks = [(names, notebook.COUNTS) for names in notebook.CLASSES]  # its classes of CIFAR-10, with all images
    variables = {
        "private": private,
        "source": results.source,
        "tuned": results.tuned,
        "params": params,
        "published": notebook.PUBLISHED if tasks == notebooks else {},
        "notebook": notebook,
        "many": MANY,
        "wanted": WANTED,
        "weak": WEAK,
        "checked": checked,
        "quality": quality,
        "hardest": hardest,
        "imbalance": imbalance,
        "comparisons": [compare(*pair, level, params) for pair in pairs],
        "level": level,
        "defaults": defaults,
        "changed": {key: value for key, value in params.by_key().items() if defaults.get(key) != value},
        "environments": environments,
    }
    return TEMPLATES.get_template("report.md").render(variables)


def render_html(results: Results, params: Settings, checked: dict) -> str:
    """Convert the report's Markdown to one HTML page with all figures inside."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(render_markdown(results, params, checked, private=True))
    sections: dict[str, str] = {}
    figures = {*REPORTS.glob("*.png"), *REPORTS.glob("figures/*.png")}
    for heading, text in itertools.pairwise(tokens):
        if heading.type == "heading_open" and heading.tag == "h2":
            name = re.sub(r"[^\w-]", "", text.content.lower().replace(" ", "-"))  # as GitHub names it
            heading.attrSet("id", name)
            sections[name] = text.content
    for image in (child for token in tokens for child in token.children or [] if child.type == "image"):
        file = REPORTS / str(image.attrs["src"])  # only the report's own figures are embedded
        content = base64.b64encode(file.read_bytes()).decode() if file in figures else ""
        image.attrSet("src", f"data:image/png;base64,{content}")
    curves = next(i for i, token in enumerate(tokens) if any(c.type == "image" for c in token.children or ())) - 1
    section = next((i for i, token in enumerate(tokens) if token.tag == "h2"), len(tokens))
    parts = (tokens[:curves], tokens[curves:section], tokens[section:])
    answer, overview, rest = (parser.renderer.render(part, parser.options, {}) for part in parts)
    variables = {"dataset": results.source.task.dataset, "models": results.all, "sections": sections, "answer": answer}
    variables |= {"overview": _interactive(overview), "rest": _interactive(rest)}
    return TEMPLATES.get_template("report.html").render(variables)


def _interactive(html: str) -> str:
    """Let wide tables scroll, and figures open large on a click, without JavaScript."""
    html = html.replace("<table>", '<div class="wide" tabindex="0"><table>').replace("</table>", "</table></div>")
    zoom = r'<label class="zoom"><input type="checkbox" aria-label="enlarge: \2"><span>\1</span></label>'
    return re.sub(r'(<img [^>]*alt="([^"]*)"[^>]*>)', zoom, html)
