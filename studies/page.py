"""Write a study's page, its charts and a table of all runs."""

import itertools
import json
import math
import subprocess
from pathlib import Path

import pandas as pd

from stages.reporting import figures
from stages.reporting.page import plain
from stages.settings import Settings
from stages.shared.files import write_whole
from studies import analysis, charts
from studies.plan import Changes, Choice, Plan, committed_settings


def percent(value: float, sign: bool = False) -> str:
    """A share in percent with one decimal, such as 61.5, or +61.5 with `sign`."""
    return f"{100 * value:{'+' if sign else ''}.1f}"


def interval(row: pd.Series, sign: bool = False) -> str:
    """The shares `low` and `high` of a row, such as "58.9 to 61.6"; "none" if they are NaN."""
    return "none" if pd.isna(row["low"]) else f"{percent(row['low'], sign)} to {percent(row['high'], sign)}"


def mean_and_spread(row: pd.Series) -> str:
    """The shares `mean` and, if there is one, `sd` of a row, such as "60.3 ± 1.2"."""
    return percent(row["mean"]) + ("" if pd.isna(row["sd"]) else f" ± {percent(row['sd'])}")


def number(value: float, digits: int) -> str:
    """A number with so many decimals; "none" for NaN."""
    return "none" if pd.isna(value) else f"{value:.{digits}f}"


def markdown(rows: list[dict]) -> str:
    """A Markdown table of cells by column heading."""
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def accuracies(summary: pd.DataFrame) -> str:
    """The table of `analysis.summary`: every model at every number of images."""
    return markdown(
        [
            {
                "model": plain(row["model"]),
                "images per class": f"{row['images']:,}",
                "test accuracy, %": mean_and_spread(row),
                "95% interval of the mean": interval(row),
                "seeds": f"{row['n']:.0f}",
            }
            for _, row in summary.reset_index().iterrows()
        ]
    )


def answer(table: pd.DataFrame) -> str:
    """The table of the differences that answer one question; see `analysis.compare_all`."""
    return markdown(
        [
            {
                "images per class": f"{row['images']:,.0f}",
                "difference, points": percent(row["difference"], sign=True),
                "95% interval": interval(row, sign=True),
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
    """One line for each question: its verdicts, and the numbers of images they hold for."""
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
    """For each choice and number of images: what was chosen, on which images, and the chosen model's test accuracy."""
    parts = []
    for choice, images in itertools.product(plan.choices, plan.images_per_class):
        judged, held_out = analysis.choose(table, choice, images)
        heading = f"### {plain(choice.choose)}, {images:,} images per class"
        if judged.empty:
            parts.append(f"{heading}\n\nNo seed has runs of all candidates.")
            continue
        kind = "validation" if held_out else "test"
        rows = [
            {"candidate": plain(name), f"{kind} accuracy, %": mean_and_spread(row), "seeds": f"{row['n']:.0f}"}
            for name, row in judged.iterrows()
        ]
        best = judged.index[0]
        tested = analysis.summary(table[table["model"] == best]).loc[(best, images)]
        parts.append(f"{heading}\n\n{markdown(rows)}\n\n{_verdict(plan, choice, best, tested, held_out)}")
    return "\n\n".join(parts)


def _verdict(plan: Plan, choice: Choice, chosen: str, tested: pd.Series, held_out: bool) -> str:
    if not held_out:
        return (
            "**This choice was made on the test images.** Picking the best of many test accuracies is optimistic: "
            f"expect less of {plain(chosen)} on new images. Hold out validation images with `data.validation_fraction`."
        )
    verdict = (
        f"Chosen on validation images alone: **{plain(chosen)}**. Its test accuracy: {percent(tested['mean'])}% "
        f"(95% interval {interval(tested)})."
    )
    if asked := " and ".join(sorted(set(choice.among) & plan.asked - {chosen})):
        verdict += f" Questions ask about {plain(asked)}: their test accuracies are above but played no part."
    return verdict


def _set_up(row: pd.Series) -> str:
    path = f"reports/record/{row['stage']}.json"
    return json.dumps(json.loads(analysis.read(path, row["experiment"], row["rev"]))["set_up"])


def mixed_set_ups(plan: Plan, table: pd.DataFrame, set_ups: pd.Series) -> list[str]:
    """A line for each question whose pairs of runs differ in CPU, threads or versions.

    `set_ups`: of the rows of `table`, see `analysis.results`.
    """
    of_run = pd.Series(set_ups.to_numpy(), index=pd.MultiIndex.from_frame(table[["model", "images", "seed"]]))
    lines = []
    for question in plan.questions:
        pairs = of_run[of_run.index.isin([question.first, question.second], level="model")]
        sizes = pairs.groupby(level=["images", "seed"]).agg(["nunique", "size"])
        if mixed := int((sizes["nunique"] > 1).sum()):
            lines.append(
                f"- **mixed set-ups** in {mixed} of {int((sizes['size'] == 2).sum())} pairs of the question "
                f"“{question.ask}”: a part of their differences may come from the machines"
            )
    return lines


def _settings(changes: Changes) -> str:
    return ", ".join(f"`{key}: {json.dumps(value, ensure_ascii=False)}`" for key, value in changes.items())


def what_was_run(plan: Plan, command: str, table: pd.DataFrame, failed: dict[str, str]) -> str:
    """A list of all that is needed to run the study again, and of the experiments that failed, with reasons."""
    rows = table.drop_duplicates("experiment")
    set_ups = table.apply(_set_up, axis="columns")
    tests = {len(analysis.predictions(row)) for _, row in rows.drop_duplicates("images").iterrows()}
    of_all = committed_settings() | plan.settings
    defaults = Settings().by_key()
    differ = {key: value for key, value in of_all.items() if defaults.get(key) != value}
    lines = [
        f"- {len(rows)} experiments of `{command}`, seeds {', '.join(map(str, plan.seeds))}",
        f"- code and settings: commit {last_change()}",
        f"- dataset: `{of_all['data.path']}`; test images: {', '.join(f'{n:,}' for n in sorted(tests))}",
        f"- settings of all runs that differ from the notebook's: {_settings(differ) or 'none'}",
    ]
    lines += [f"- with {images:,} images per class: {_settings(c)}" for images, c in plan.images_per_class.items()]
    lines += [f"- run {run}: {_settings(changes) or 'no other settings'}" for run, changes in plan.runs.items()]
    counts = set_ups.loc[rows.index].value_counts().sort_index()
    for set_up, count in counts.items():
        parts = ", ".join(f"{key} {value}" for key, value in json.loads(str(set_up)).items())
        lines.append(f"- set-up{f' of {count} experiments' * (len(counts) > 1)}: {parts}")
    lines += mixed_set_ups(plan, table, set_ups)
    lines += [f"- failed, not in the tables: `{name}`: {plain(reason)}" for name, reason in failed.items()]
    return "\n".join(lines)


def last_change() -> str:
    """The last commit that changed the pipeline, abbreviated: committing a page makes no other page."""
    command = ["git", "log", "-1", "--format=%h", "--", "dvc.yaml", "params.yaml", "stages"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def what_can_be_shown(answers: list[pd.DataFrame]) -> str:
    """How small p can get with so many seeds, and how many comparisons must reach that for any to be significant."""
    tested = pd.concat(answers).dropna(subset="p")
    if tested.empty:
        return "No comparison has two seeds, so none could be tested."
    smallest = 2 / 2 ** tested["n"].max()
    needed = math.floor(smallest * len(tested) / analysis.LEVEL) + 1
    text = f"With {tested['n'].max():.0f} seeds, p is at least {smallest:.2g}"
    if needed > len(tested):
        return f"{text}: too few seeds for any significant difference."
    return f"{text}: at least {needed} of the {len(tested)} comparisons must reach that for any to be significant."


def render(plan: Plan, command: str, table: pd.DataFrame, failed: dict[str, str], drawn: dict[str, str]) -> str:
    """The whole page, Markdown, without times, so that a rerun writes the same page.

    `command` asks for the page; `table` is that of `analysis.results`; `failed` has reasons by experiment; `drawn` has
    the charts' paths by name.
    """
    shown = analysis.shown(plan, table)
    answers = analysis.compare_all(table, plan.questions)
    asked = "\n\n".join(
        f"### {question.ask}\n\n{plain(question.second)} minus {plain(question.first)}:\n\n{answer(differences)}"
        for question, differences in zip(plan.questions, answers, strict=True)
    )
    folder = Path(drawn["accuracy_by_images"]).parent
    gains = "No question has runs of both models."
    if "class_gains" in drawn:
        gains = f"Gain in test accuracy with {max(plan.images_per_class):,} images per class, a dot for each seed:"
        gains += f"\n\n![gains by class]({drawn['class_gains']})"
    by_layers = ""
    if "accuracy_by_layers" in drawn:
        by_layers = f"## Accuracy by what is trained\n\n![test accuracy by layers]({drawn['accuracy_by_layers']})\n\n"
    chosen = f"\n## Choices\n\n{choices(plan, table)}\n" if plan.choices else ""
    return f"""# {plan.title}

{in_short(plan, answers)}

In brackets: the mean difference in test accuracy, in percentage points. "Inconclusive" does not mean that there is no
difference, only that these runs do not show one. All runs are tested on the same images: the results hold for other
seeds, not necessarily for other images.

{plain(plan.notes.strip())}

## Accuracy by number of training images

![test accuracy by number of images]({drawn["accuracy_by_images"]})

Bars and bands: 95% confidence intervals of the mean over seeds.

{accuracies(analysis.summary(shown))}

±: standard deviation over seeds.

{by_layers}## Questions

Comparisons are paired by seed. p: two-sided sign-flip test of the mean difference, exact up to 16 seeds.
Adjusted p: Benjamini-Hochberg over all comparisons, which limits the share of false positives among the verdicts.
{what_can_be_shown(answers)}
A difference is significant if the adjusted p is below {analysis.LEVEL} and the 95% interval (Student's t) excludes 0.
Effect size: Cohen's d of the paired differences, an overestimate if there are few seeds.

{asked}

## By class

{gains}
{chosen}
## Training time

Small dots are runs, large marks means; lines join them from the fewest images to the most. The seconds, listed in
`{folder}/runs.csv`, were measured when each model was trained and depend on what else the machine was doing.

![test accuracy by training time]({drawn["accuracy_by_time"]})

## What was run

{what_was_run(plan, command, table, failed)}

To write this page again: `{command}` (it runs only what is missing).
"""


def write(plan: Plan, command: str, table: pd.DataFrame, failed: dict[str, str]) -> Path:
    """Write the page, its charts and the table of runs; returns the page's path. Arguments as for `render`."""
    page = Path(plan.page)
    folder = page.with_suffix("")
    shown = analysis.shown(plan, table)
    summary = analysis.summary(shown)
    most = max(plan.images_per_class)
    gains = {question.ask: analysis.class_gains(table, question, most) for question in plan.questions}
    gains = {ask: of_seeds for ask, of_seeds in gains.items() if len(of_seeds)}
    drawn = {
        "accuracy_by_images": charts.accuracy_by_images(plan, summary),
        "accuracy_by_time": charts.accuracy_by_time(plan, shown),
    }
    if charts.of_layers(plan):
        drawn["accuracy_by_layers"] = charts.accuracy_by_layers(plan, summary)
    if gains:
        drawn["class_gains"] = charts.gains_by_class(gains)
    for name, figure in drawn.items():
        figures.save(figure, folder / f"{name}.png")
    write_whole(folder / "runs.csv", shown.drop(columns="rev").to_csv(index=False).encode())
    paths = {name: f"{folder.name}/{name}.png" for name in drawn}
    write_whole(page, render(plan, command, table, failed, paths).encode())
    return page
