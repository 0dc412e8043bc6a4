"""Write a study's page, its charts and the table of its runs."""

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from stages.reporting import figures
from stages.reporting.page import escape_markdown
from stages.settings import Settings
from stages.shared.files import write_atomic
from studies import analysis, charts
from studies.experiments import training_command
from studies.plan import Choice, Plan, Question
from studies.repository import committed_settings, pipeline_commit


def smallest_p(answers: list[pd.DataFrame]) -> str:
    """Explain how small p can get with so many seeds, and how many comparisons must reach that to be significant."""
    tested = pd.concat(answers).dropna(subset="p")
    if tested.empty:
        return "No comparison has two seeds, so none could be tested."
    n = int(tested["n"].max())
    needed = math.floor(2 / 2**n * len(tested) / analysis.LEVEL) + 1
    more = f"at least {needed} of the {len(tested)} comparisons must reach that for any to be significant."
    if needed > len(tested):
        more = "too few seeds for any significant difference."
    return f"With {n} seeds, p is at least {2 / 2**n:.2g}: {more}"


def rank_choices(plan: Plan, table: pd.DataFrame) -> list[tuple[Choice, int, list[dict], bool, dict]]:
    """Return (choice, images, ranking, validated, the best candidate's test accuracy); see `analysis.choose`."""
    ranked, summary = [], analysis.summary(table)
    for choice, images in itertools.product(plan.choices, plan.images_per_class):
        ranking, validated = analysis.choose(table, choice, images)
        tested = summary.loc[(ranking.index[0], images)].to_dict() if len(ranking) else {}
        ranked.append((choice, images, _rows(ranking), validated, tested))
    return ranked


def _environment(row: pd.Series) -> str:
    record = json.loads(analysis.read_output(row["experiment"], row["rev"], row["stage"], "record.json"))
    return ", ".join(f"{key} {value}" for key, value in record["environment"].items())


def mixed_environments(plan: Plan, table: pd.DataFrame, environments: pd.Series) -> list[tuple[str, int, int]]:
    """Return (question, pairs from different environments, pairs) of the questions that have such pairs.

    `environments` are those of the rows of `table`, see `analysis.results`.
    """
    mixed = []
    for question in plan.questions:
        rows = table["model"].isin([question.first, question.second])
        pairs = environments[rows].groupby([table["images"], table["seed"]]).agg(["nunique", "size"])
        if different := int((pairs["nunique"] > 1).sum()):
            mixed.append((question.ask, different, int((pairs["size"] == 2).sum())))
    return mixed


def answer(plan: Plan, table: pd.DataFrame) -> dict[str, Any] | None:
    """Collect what the page says first: of the choice that is compared with a model; None without runs of it."""
    images, choice = max(plan.images_per_class), next((choice for choice in plan.choices if choice.against), None)
    if not choice or (ranking := analysis.choose(table, choice, images)[0]).empty:
        return None
    best = str(ranking.index[0])
    question = Question(ask="", first=str(choice.against), second=best)
    estimates = {
        "expected": analysis.expected_accuracy(table, choice, images),
        "gain": analysis.compare(table[table["images"] == images], question),
        "doubling": analysis.gain_of_doubling(table, best),
    }
    rows = {name: next(iter(_rows(estimate)), None) for name, estimate in estimates.items()}
    training = {"stage": plan.named_models[best].stage, "command": training_command(plan, best, images)}
    return rows | training | {"choice": choice, "images": images, "count": len(ranking), "best": best}


def describe_runs(plan: Plan, table: pd.DataFrame) -> dict[str, Any]:
    """Return everything that is needed to run the study again: commit, settings, dataset and environments."""
    settings, defaults = committed_settings() | plan.settings, Settings().by_key()
    experiments = table.drop_duplicates("experiment")
    environments = table.apply(_environment, axis="columns")
    test_sets = {tuple(analysis.predictions(row)["image"]) for _, row in experiments.drop_duplicates("seed").iterrows()}
    return {
        "count": len(experiments),
        "seeds": sorted(set(experiments["seed"])),
        "commit": pipeline_commit(),
        "datasets": [settings["data.path"], settings["data.target_path"]],
        "test_images": sorted({len(images) for images in test_sets}),
        "splits": len(test_sets),
        "changed": {key: value for key, value in settings.items() if defaults.get(key) != value},
        "environments": environments[experiments.index].value_counts().sort_index().to_dict(),
        "mixed_environments": mixed_environments(plan, table, environments),
    }


def _rows(table: pd.DataFrame) -> list[dict]:
    return table.reset_index().to_dict("records")


def code(text: object) -> str:
    """Return text as a Markdown code span, with a longer fence than its backticks."""
    fence = "`" * (1 + max(map(len, re.findall("`+", str(text))), default=0))
    return f"{fence} {text} {fence}" if len(fence) > 1 else f"`{text}`"


def render(plan: Plan, table: pd.DataFrame, **values: Any) -> str:
    """Render the page as Markdown, without times, so that a rerun writes the same page.

    `table` is from `analysis.results`. `values` are command, failed (reasons by experiment), left_out (experiments),
    too_few (numbers of images), charts (names) and runs (from `describe_runs`).
    """
    environment = Environment(
        loader=PackageLoader("studies"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"escape_markdown": escape_markdown, "code": code}
    environment.filters |= {"json": lambda v: json.dumps(v, ensure_ascii=False)}
    environment.tests["nan"] = math.isnan
    answers = analysis.compare_all(table, plan.questions)
    return environment.get_template("page.md").render(
        plan=plan,
        answer=answer(plan, table),
        answers=list(zip(plan.questions, map(_rows, answers), strict=True)),
        summary=_rows(analysis.summary(analysis.hide_rejected(plan, table))),
        choices=rank_choices(plan, table),
        smallest_p=smallest_p(answers),
        level=analysis.LEVEL,
        **values,
    )


def write(folder: Path, plan: Plan, table: pd.DataFrame, **values: Any) -> Path:
    """Write the page, its charts and ``runs.csv`` to a folder; return the page's path; for `values` see `render`."""
    visible = analysis.hide_rejected(plan, table)
    gains = {q.ask: analysis.class_gains(table, q, max(plan.images_per_class)) for q in plan.questions}
    drawn = charts.draw(plan, visible, {ask: by_class for ask, by_class in gains.items() if len(by_class)})
    for name, figure in drawn.items():
        figures.save(figure, folder / f"{name}.png")
    write_atomic(folder / "runs.csv", visible.drop(columns=["rev", "control"]).to_csv(index=False).encode())
    values |= {"charts": list(drawn), "runs": describe_runs(plan, table)}
    write_atomic(folder / "README.md", render(plan, table, **values).encode())
    return folder / "README.md"
