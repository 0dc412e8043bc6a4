"""Write a study's page: ``study.md``, its figures and a table of all runs."""

import json
from functools import cache
from pathlib import Path

import dvc.api
import pandas as pd

from stages import figures as stage_figures
from stages.report import plain
from studies import analysis, figures
from studies.plan import Plan


def percent(value: float, sign: bool = False) -> str:
    return f"{100 * value:{'+' if sign else ''}.1f}"


def interval(row: pd.Series, sign: bool = False) -> str:
    return "none" if pd.isna(row["low"]) else f"{percent(row['low'], sign)} to {percent(row['high'], sign)}"


def markdown(rows: list[dict]) -> str:
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def accuracies(summary: pd.DataFrame) -> str:
    """Mean, standard deviation, interval and n of every model at every number of images."""
    return markdown(
        [
            {
                "model": plain(model),
                "images of each class": f"{images:,}",
                "test accuracy, %": f"{percent(row['mean'])} ± {percent(row['sd'])}",
                "95 % interval of the mean": interval(row),
                "seeds": f"{row['n']:.0f}",
            }
            for (model, images), row in summary.iterrows()
        ]
    )


def answer(table: pd.DataFrame) -> str:
    """The differences that answer one question; see `analysis.compare`."""
    return markdown(
        [
            {
                "images of each class": f"{row['images']:,.0f}",
                "difference, points": percent(row["difference"], sign=True),
                "95 % interval": interval(row, sign=True),
                "effect size d": f"{row['d']:.1f}",
                "seeds": f"{row['n']:.0f}",
                "p": f"{row['p']:.3f}",
                "adjusted p": f"{row['adjusted']:.3f}",
                "verdict": analysis.verdict(row),
            }
            for _, row in table.iterrows()
        ]
    )


def in_short(plan: Plan, answers: list[pd.DataFrame]) -> str:
    """One line for each question: where it is answered, and how."""
    lines = []
    for question, table in zip(plan.questions, answers, strict=True):
        by_verdict: dict[str, list[str]] = {}
        for _, row in table.iterrows():
            where = f"{row['images']:,.0f} ({percent(row['difference'], sign=True)})"
            by_verdict.setdefault(analysis.verdict(row), []).append(where)
        found = "; ".join(f"{verdict} with {', '.join(where)}" for verdict, where in by_verdict.items())
        lines.append(f"- {question.ask} {found or 'no runs'}.")
    return "\n".join(lines)


def choices(plan: Plan, table: pd.DataFrame) -> str:
    """What was chosen, on which images, and the test accuracy of the chosen one."""
    parts = []
    for choice in plan.choices:
        judged, held_out = analysis.choose(table, choice)
        chosen = judged.index[0]
        kind = "validation" if held_out else "test"
        rows = [
            {"candidate": plain(name), f"{kind} accuracy, %": f"{percent(row['mean'])} ± {percent(row['sd'])}"}
            for name, row in judged.iterrows()
        ]
        tested = analysis.summary(table[table["model"] == chosen]).loc[(chosen, choice.images_per_class)]
        verdict = (
            f"Chosen: **{plain(chosen)}**, on validation images alone. Its test accuracy, looked at once: "
            f"{percent(tested['mean'])} % (95 % interval {interval(tested)})."
            if held_out
            else f"**This choice was made on the test images**: the accuracy of {plain(chosen)} in this table is too "
            "good, as it is the best of several. Set `data.validation_fraction` to choose without looking at them."
        )
        heading = f"### {plain(choice.choose)}, {choice.images_per_class:,} images of each class"
        parts.append(f"{heading}\n\n{markdown(rows)}\n\n{verdict}")
    return "\n\n".join(parts)


@cache
def _record(experiment: str, stage: str) -> str:
    return json.dumps(json.loads(dvc.api.read(f"reports/record/{stage}.json", rev=experiment))["set_up"])


def what_was_run(plan: Plan, path: Path, table: pd.DataFrame, failed: dict[str, str]) -> str:
    rows = table.drop_duplicates("experiment")
    set_ups = {_record(row["experiment"], row["stage"]) for _, row in rows.iterrows()}
    tests = {len(analysis.predictions(row)) for _, row in rows.drop_duplicates("images").iterrows()}
    lines = [
        f"- plan: `{path.as_posix()}`; {len(rows)} experiments, seeds {', '.join(map(str, plan.seeds))}",
        f"- test images of the target classes: {', '.join(f'{n:,}' for n in sorted(tests))}",
        *[f"- {key}: `{json.dumps(value, ensure_ascii=False)}`" for key, value in plan.settings.items()],
    ]
    for set_up in sorted(set_ups):
        lines.append("- set-up: " + ", ".join(f"{key} {value}" for key, value in json.loads(set_up).items()))
    lines += [f"- failed, not in the tables: `{name}`: {plain(reason)}" for name, reason in failed.items()]
    return "\n".join(lines)


def text(plan: Plan, path: Path, table: pd.DataFrame, failed: dict[str, str], folder: str) -> str:
    """The whole page, Markdown; nothing in it is a time, so that a rerun writes the same page."""
    shown = analysis.shown(plan, table)
    answers = analysis.compare_all(table, plan.questions)
    asked = "\n\n".join(
        f"### {question.ask}\n\n{plain(question.second)} minus {plain(question.first)}:\n\n{answer(differences)}"
        for question, differences in zip(plan.questions, answers, strict=True)
    )
    seeds, tests = len(plan.seeds), sum(len(differences) for differences in answers)
    chosen = f"\n## Choices\n\n{choices(plan, table)}\n" if plan.choices else ""
    return f"""# {plan.title}

{in_short(plan, answers)}

In brackets: the mean difference in points of test accuracy. «Inconclusive» says that these runs show no difference, not
that there is none.

## Accuracy by number of training images

![test accuracy by number of images]({folder}/accuracy_by_images.png)

Bands are 95 % intervals of the mean over seeds.

{accuracies(analysis.summary(shown))}

± is the standard deviation over seeds.

## Questions

Models of the same seed are compared. p: exact sign-flip test of the mean difference, two-sided; with {seeds} seeds it
cannot be below {2 / 2**seeds:.2g}. Adjusted p: Benjamini and Hochberg, over all {tests} comparisons. A difference
counts where the adjusted p is below {analysis.LEVEL} and the 95 % interval (Student's) leaves out 0. Effect size:
Cohen's d of the paired differences.

{asked}

## By class

Gains in test accuracy with {max(plan.images_per_class):,} images of each class, a dot for each seed:

![gains by class]({folder}/class_gains.png)
{chosen}
## Training time

Every run a dot, the means a line from the fewest images to the most; the seconds are in `{folder}/runs.csv`.

![test accuracy by training time]({folder}/accuracy_by_time.png)

## What was run

{what_was_run(plan, path, table, failed)}

This page again, running what is missing, if anything: `python -m studies {path.as_posix()}`
"""


def write(plan: Plan, path: Path, table: pd.DataFrame, failed: dict[str, str]) -> Path:
    """Write the page, its figures and the runs; returns the page's path."""
    page = Path(plan.page)
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    shown = analysis.shown(plan, table)
    most = max(plan.images_per_class)
    gains = {question.ask: analysis.class_gains(table, question, most) for question in plan.questions}
    drawn = {
        "accuracy_by_images": figures.accuracy_by_images(plan, analysis.summary(shown)),
        "accuracy_by_time": figures.accuracy_by_time(plan, shown),
        "class_gains": figures.class_gains(gains),
    }
    for name, figure in drawn.items():
        stage_figures.save(figure, folder / f"{name}.png")
    shown.to_csv(folder / "runs.csv", index=False)
    page.write_text(text(plan, path, table, failed, folder.name), encoding="utf-8")
    return page
