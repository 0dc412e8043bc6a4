"""Write a study's page: ``study.md``, its figures and a table of all runs."""

import json
import math
import subprocess
from pathlib import Path

import pandas as pd

from stages import figures as stage_figures
from stages import notebook
from stages.report import plain
from studies import analysis, figures
from studies.plan import Changes, Choice, Plan, committed_settings


def percent(value: float, sign: bool = False) -> str:
    return f"{100 * value:{'+' if sign else ''}.1f}"


def interval(row: pd.Series, sign: bool = False) -> str:
    return "none" if pd.isna(row["low"]) else f"{percent(row['low'], sign)} to {percent(row['high'], sign)}"


def mean_and_spread(row: pd.Series) -> str:
    return percent(row["mean"]) + ("" if pd.isna(row["sd"]) else f" ± {percent(row['sd'])}")


def number(value: float, digits: int) -> str:
    return "none" if pd.isna(value) else f"{value:.{digits}f}"


def markdown(rows: list[dict]) -> str:
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def accuracies(summary: pd.DataFrame) -> str:
    """Mean, standard deviation, interval and n of every model at every number of images."""
    return markdown(
        [
            {
                "model": plain(model),
                "images of each class": f"{images:,}",
                "test accuracy, %": mean_and_spread(row),
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
                "effect size d": number(row["d"], 1),
                "seeds": f"{row['n']:.0f}",
                "p": number(row["p"], 3),
                "adjusted p": number(row["adjusted"], 3),
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
        heading = f"### {plain(choice.choose)}, {choice.images_per_class:,} images of each class"
        if judged.empty:
            parts.append(f"{heading}\n\nNo seed has all the candidates' runs.")
            continue
        kind = "validation" if held_out else "test"
        rows = [
            {"candidate": plain(name), f"{kind} accuracy, %": mean_and_spread(row), "seeds": f"{row['n']:.0f}"}
            for name, row in judged.iterrows()
        ]
        tested = analysis.summary(table[table["model"] == judged.index[0]]).loc[
            (judged.index[0], choice.images_per_class)
        ]
        verdict = _verdict(plan, choice, judged.index[0], tested, held_out)
        parts.append(f"{heading}\n\n{markdown(rows)}\n\n{verdict}")
    return "\n\n".join(parts)


def _verdict(plan: Plan, choice: Choice, chosen: str, tested: pd.Series, held_out: bool) -> str:
    if not held_out:
        return (
            f"**This choice was made on the test images**: the accuracy of {plain(chosen)} in this table is too good, "
            "as it is the best of several. Set `data.validation_fraction` to choose without looking at them."
        )
    text = (
        f"Chosen: **{plain(chosen)}**, on validation images alone. Its test accuracy: {percent(tested['mean'])} % "
        f"(95 % interval {interval(tested)})."
    )
    seen = sorted(set(choice.among) & plan.asked - {chosen})
    if seen:
        text += f" The test accuracy of {plain(', '.join(seen))} is above as a question is about it; it chose nothing."
    return text


def _set_up(row: pd.Series) -> str:
    path = f"reports/record/{row['stage']}.json"
    return json.dumps(json.loads(analysis.read(path, row["experiment"], row["rev"]))["set_up"])


def _settings(changes: Changes) -> str:
    return ", ".join(f"`{key}: {json.dumps(value, ensure_ascii=False)}`" for key, value in changes.items())


def what_was_run(plan: Plan, command: str, table: pd.DataFrame, failed: dict[str, str]) -> str:
    rows = table.drop_duplicates("experiment")
    set_ups = {_set_up(row) for _, row in rows.iterrows()}
    tests = {len(analysis.predictions(row)) for _, row in rows.drop_duplicates("images").iterrows()}
    of_all = committed_settings() | plan.settings
    differ = {key: value for key, value in of_all.items() if notebook.SETTINGS.get(key) != value}
    lines = [
        f"- {len(rows)} experiments of `{command}`, seeds {', '.join(map(str, plan.seeds))}",
        f"- code and settings: those of commit {last_change()}",
        f"- dataset: `{of_all['data.path']}`; test images: {', '.join(f'{n:,}' for n in sorted(tests))}",
        f"- settings of all runs that differ from the notebook's: {_settings(differ) or 'none'}",
    ]
    lines += [f"- with {images:,} images of each class: {_settings(c)}" for images, c in plan.images_per_class.items()]
    lines += [f"- run {run}: {_settings(changes) or 'nothing else'}" for run, changes in plan.runs.items()]
    for set_up in sorted(set_ups):
        lines.append("- set-up: " + ", ".join(f"{key} {value}" for key, value in json.loads(set_up).items()))
    lines += [f"- failed, not in the tables: `{name}`: {plain(reason)}" for name, reason in failed.items()]
    return "\n".join(lines)


def last_change() -> str:
    """The last commit that changed the pipeline, shortened; committing a page does not change it."""
    command = ["git", "log", "-1", "--format=%h", "--", "dvc.yaml", "params.yaml", "stages"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def what_can_be_shown(answers: list[pd.DataFrame]) -> str:
    """How small p can get with so many seeds, and how many of so many comparisons must get there."""
    tested = pd.concat(answers).dropna(subset="p")
    if tested.empty:
        return "No comparison has two seeds: none could be tested."
    smallest = 2 / 2 ** tested["n"].max()
    needed = math.floor(smallest * len(tested) / analysis.LEVEL) + 1
    text = f"With {tested['n'].max():.0f} seeds p cannot be below {smallest:.2g}"
    if needed > len(tested):
        return f"{text}: too few seeds to show any difference."
    return f"{text}: of the {len(tested)} comparisons at least {needed} must get there for any to count."


def text(plan: Plan, command: str, table: pd.DataFrame, failed: dict[str, str], drawn: dict[str, str]) -> str:
    """The whole page, Markdown; nothing in it is a time, so that a rerun writes the same page.

    `drawn` has the figures' paths by name.
    """
    shown = analysis.shown(plan, table)
    answers = analysis.compare_all(table, plan.questions)
    asked = "\n\n".join(
        f"### {question.ask}\n\n{plain(question.second)} minus {plain(question.first)}:\n\n{answer(differences)}"
        for question, differences in zip(plan.questions, answers, strict=True)
    )
    folder = Path(drawn["accuracy_by_images"]).parent
    gains = "No question has both models' runs."
    if "class_gains" in drawn:
        gains = f"Gains in test accuracy with {max(plan.images_per_class):,} images of each class, a dot for each seed:"
        gains += f"\n\n![gains by class]({drawn['class_gains']})"
    chosen = f"\n## Choices\n\n{choices(plan, table)}\n" if plan.choices else ""
    return f"""# {plan.title}

{in_short(plan, answers)}

In brackets: the mean difference in points of test accuracy. «Inconclusive» says that these runs show no difference, not
that there is none. Every run is tested on the same test images: what is said here is about other seeds, not about other
images.

{plain(plan.notes.strip())}

## Accuracy by number of training images

![test accuracy by number of images]({drawn["accuracy_by_images"]})

Bands are 95 % intervals of the mean over seeds.

{accuracies(analysis.summary(shown))}

± is the standard deviation over seeds.

## Questions

Models of the same seed are compared. p: sign-flip test of the mean difference, two-sided and, up to 16 seeds, exact.
Adjusted p: Benjamini and Hochberg's over all comparisons, which holds down the share of false ones among the verdicts.
{what_can_be_shown(answers)}
A difference counts where the adjusted p is below {analysis.LEVEL} and the 95 % interval (Student's) leaves out 0.
Effect size: Cohen's d of the paired differences, which comes out too large from few seeds.

{asked}

## By class

{gains}
{chosen}
## Training time

Every run a dot, the means a line from the fewest images to the most; the seconds are in `{folder}/runs.csv`. They are
those of each training when it was run, whatever else the machine did then.

![test accuracy by training time]({drawn["accuracy_by_time"]})

## What was run

{what_was_run(plan, command, table, failed)}

This page again, running what is missing, if anything: `{command}`
"""


def write(plan: Plan, command: str, table: pd.DataFrame, failed: dict[str, str]) -> Path:
    """Write the page, its figures and the runs; returns the page's path. `command` is the one that asks for it."""
    page = Path(plan.page)
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    shown = analysis.shown(plan, table)
    most = max(plan.images_per_class)
    gains = {question.ask: analysis.class_gains(table, question, most) for question in plan.questions}
    gains = {ask: of_seeds for ask, of_seeds in gains.items() if len(of_seeds)}
    drawn = {
        "accuracy_by_images": figures.accuracy_by_images(plan, analysis.summary(shown)),
        "accuracy_by_time": figures.accuracy_by_time(plan, shown),
    }
    if gains:
        drawn["class_gains"] = figures.class_gains(gains)
    for name, figure in drawn.items():
        stage_figures.save(figure, folder / f"{name}.png")
    shown.drop(columns="rev").to_csv(folder / "runs.csv", index=False)
    paths = {name: f"{folder.name}/{name}.png" for name in drawn}
    page.write_text(text(plan, command, table, failed, paths), encoding="utf-8")
    return page
