"""Analyse a study's experiments: means with intervals, differences paired by seed, gains by class, choices."""

import itertools
from functools import cache
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
from dvc.exceptions import DvcException
from pandas.core.groupby import SeriesGroupBy
from scipy import stats

from stages.reporting.statistics import wilson_interval
from stages.shared.errors import UserError
from stages.shared.files import stage_folder
from studies.experiments import experiment_name
from studies.plan import Choice, Plan, Question
from studies.repository import Experiment, files_at

LEVEL = 0.05  # of significance


def results(plan: Plan, study: str, done: dict[str, Experiment], every: int | None = None) -> pd.DataFrame:
    """Collect one row for each model (and each choice in a question), number of images and seed.

    Columns: model, images (per class; `every` for all), seed, experiment, rev, stage, control (whether it is the
    stage's), accuracy (test), validation (accuracy; NaN without validation images), seconds (of training, including
    that of the model it starts from; NaN for controls).
    """
    rows, names = [], {name.rpartition("_")[0]: name for name in done}
    for (name, model), images, seed in itertools.product(plan.named_models.items(), plan.images_per_class, plan.seeds):
        if (experiment := names.get(experiment_name(study, model.run, images, seed))) is None:
            continue
        rev, metrics = done[experiment].rev, done[experiment].metrics
        measured = [metrics[model.stage][f"{part}_accuracy"] for part in ("test", "validation")]
        start = Path(plan.runs[model.run].get(f"{model.stage}.start", "pretrain")).stem
        measured.append(sum(metrics[s]["train_seconds"] for s in metrics if s in ("pretrain", start, model.stage)))
        if model.control:
            measured = [metrics[model.stage]["control_test_accuracy"], None, None]
        rows.append([name, images or every, seed, experiment, rev, model.stage, model.control, *measured])
    columns = ["model", "images", "seed", "experiment", "rev", "stage", "control", "accuracy", "validation", "seconds"]
    table = pd.DataFrame(rows, columns=columns).dropna(subset="accuracy")  # random features are their own control
    table = table.astype({"accuracy": float, "validation": float, "seconds": float})
    asked = [choice for choice in plan.choices if choice.choose in plan.asked]
    return pd.concat([table, *(_chosen_rows(table, choice) for choice in asked)], ignore_index=True)


def _intervals(groups: SeriesGroupBy, lowest: float) -> pd.DataFrame:
    """Compute mean, sd, n, low and high (Student's 95% interval of the mean, within `lowest` to 1; NaN if n is 1)."""
    table = groups.agg(mean="mean", sd="std", n="count")
    half = stats.t.ppf(0.975, table["n"] - 1) * table["sd"] / np.sqrt(table["n"])
    return table.assign(low=(table["mean"] - half).clip(lowest), high=(table["mean"] + half).clip(upper=1))


def summary(table: pd.DataFrame, column: str = "accuracy") -> pd.DataFrame:
    """Compute a column's mean, sd, n, low and high (95% interval of the mean) by model and number of images."""
    return _intervals(table.groupby(["model", "images"], sort=False)[column], 0)


def sign_flip_p(differences: pd.Series) -> float:
    """Compute the two-sided p of the sign-flip test that the mean of paired differences is 0; NaN for one pair.

    Exact up to 16 pairs, of more a random sample of 2**16 flips. p is at least 2 / 2**n (Fisher, 1935).
    """
    if len(differences) < 2:
        return np.nan
    test = stats.permutation_test(
        (differences.to_numpy(),),
        lambda values, axis: np.mean(values, axis=axis).round(12),  # otherwise ties would differ in their last digit
        permutation_type="samples", vectorized=True, n_resamples=2**16, rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(test.pvalue)


def compare(table: pd.DataFrame, question: Question) -> pd.DataFrame:
    """Compute the second model's accuracy minus the first's, paired by seed, for each number of images.

    Columns: images, difference (mean), sd, n, low, high (95% interval of the mean), d (Cohen's, of the differences), p
    (NaN for one seed). A number of images for which no seed has both models has no row.
    """
    accuracies = table.pivot_table(index=["images", "seed"], columns="model", values="accuracy")
    pairs = accuracies.reindex(columns=[question.first, question.second]).dropna()
    differences = (pairs[question.second] - pairs[question.first]).groupby("images")
    answer = _intervals(differences, -1).rename(columns={"mean": "difference"})
    answer["d"] = answer["difference"] / answer["sd"].where(answer["sd"] > 1e-9)  # below: a rounding error
    return answer.assign(p=differences.agg(sign_flip_p)).reset_index()


def compare_all(table: pd.DataFrame, questions: list[Question]) -> list[pd.DataFrame]:
    """Compare for each question; add `adjusted` (p over all of them, Benjamini and Hochberg, 1995) and `verdict`."""
    answers = [compare(table, question) for question in questions]
    p = pd.concat([answer["p"] for answer in answers]).dropna()
    adjusted = dict(zip(p, stats.false_discovery_control(p), strict=True))  # equal p have equal adjusted p
    answers = [answer.assign(adjusted=answer["p"].map(adjusted)) for answer in answers]
    for answer in answers:
        significant = (answer["adjusted"] < LEVEL) & ((answer["low"] > 0) | (answer["high"] < 0))
        better = np.where(answer["difference"] > 0, "**better**", "**worse**")
        answer["verdict"] = np.where(significant, better, "inconclusive")
    return answers


@cache
def read_output(experiment: str, rev: str, stage: str, name: str) -> str:
    """Read a file of a stage from an experiment; raise `UserError` if it is not in DVC's cache."""
    path = (stage_folder(stage) / name).as_posix()
    try:
        files, folder = files_at(rev)
        return files.read_text(folder + path, encoding="utf-8")
    except (OSError, DvcException):
        raise UserError(
            f"{experiment}: {path} is not in DVC's cache; `dvc exp remove {experiment}`, then run the study again"
        ) from None


def predictions(row: pd.Series) -> pd.DataFrame:
    """Read the test predictions of a row of `results`: columns actual, predicted, probability."""
    file = "control_predictions.csv" if row["control"] else "predictions.csv"
    text = read_output(row["experiment"], row["rev"], row["stage"], file)
    return pd.read_csv(StringIO(text), na_filter=False)


def class_gains(table: pd.DataFrame, question: Question, images: int) -> pd.DataFrame:
    """Compute the second model's test accuracy minus the first's, by seed and class: float (seeds, classes)."""
    found: dict[str, dict] = {question.first: {}, question.second: {}}
    for _, row in table[(table["images"] == images) & table["model"].isin(list(found))].iterrows():
        tested = predictions(row)
        correct = (tested["actual"] == tested["predicted"]).groupby(tested["actual"]).mean()
        found[row["model"]][row["seed"]] = correct
    first, second = found.values()
    gains = {seed: second[seed] - first[seed] for seed in first if seed in second}
    return pd.DataFrame.from_dict(gains, orient="index")


def choose(table: pd.DataFrame, choice: Choice, images: int) -> tuple[pd.DataFrame, bool]:
    """Rank a choice's candidates at one number of images, over the seeds that all of those with runs have.

    Returns a `summary` by model, the best first (empty if there is no such seed), and whether it is of validation
    accuracy; without validation images it is of test accuracy.
    """
    part, column = _candidates(table, choice, images)
    ranking = summary(part, column).droplevel("images")
    return ranking.sort_values("mean", ascending=False, kind="stable"), column == "validation"


def _candidates(table: pd.DataFrame, choice: Choice, images: int) -> tuple[pd.DataFrame, str]:
    """Return the rows to choose from, and the column to choose by."""
    part = table[(table["images"] == images) & table["model"].isin(choice.among)]
    part = part[part.groupby("seed")["model"].transform("nunique") == part["model"].nunique()]
    return part, "validation" if part["validation"].notna().all() else "accuracy"


def expected_accuracy(table: pd.DataFrame, choice: Choice, images: int) -> pd.DataFrame:
    """Estimate the test accuracy of what is chosen: mean, sd, n, low, high over seeds; chosen_on (a column); one row.

    Each seed chooses by its own validation images, as its test images may be another's validation images. With fewer
    than three seeds, the interval is Wilson's for the test images of one.
    """
    part, column = _candidates(table, choice, images)
    best = part.loc[part.groupby("seed")[column].idxmax()]
    estimate = _intervals(best.groupby("images")["accuracy"], 0)
    if len(best) in (1, 2):
        tests = len(predictions(best.iloc[0]))
        estimate[["low", "high"]] = wilson_interval(round(best["accuracy"].mean() * tests), tests)
    return estimate.assign(chosen_on=column)


def gain_of_doubling(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """Compute a model's gain in test accuracy from the last doubling of its images: mean, sd, n, low, high over seeds.

    Its most images are compared with the nearest number, `few`, that is at most half of them, and the gain is divided
    by the number of doublings between. One row; none without such runs.
    """
    accuracies = table[table["model"] == model].pivot_table(index="seed", columns="images", values="accuracy")
    numbers = [int(number) for number in accuracies.columns]
    few, most = max((n for n in numbers if n <= numbers[-1] / 2), default=numbers[-1]), numbers[-1]
    gains = ((accuracies[most] - accuracies[few]) / np.log2(most / few)).dropna()
    return _intervals(gains.groupby(lambda _: few), -1).rename_axis("few")


def _chosen_rows(table: pd.DataFrame, choice: Choice) -> pd.DataFrame:
    """Return the rows of the best candidate at each number of images, under the choice's name."""
    best = {images: choose(table, choice, images)[0].index[:1] for images in table["images"].unique()}
    rows = table[[model in best[n] for model, n in zip(table["model"], table["images"], strict=True)]]
    return rows.assign(model=choice.choose).sort_values("images", kind="stable")


def hide_rejected(plan: Plan, table: pd.DataFrame) -> pd.DataFrame:
    """Drop candidates that were rejected on validation images, unless a question is about them.

    The best of many test accuracies is optimistic, so theirs are not shown. The chosen model is shown once: under the
    choice's name if a question is about the choice, else under its own.
    """
    hidden = set()
    for choice, images in itertools.product(plan.choices, plan.images_per_class):
        ranking, validated = choose(table, choice, images)
        if validated and len(ranking):
            shown = choice.choose if choice.choose in plan.asked else ranking.index[0]
            hidden |= {(name, images) for name in set(choice.among) - plan.asked - {shown}}
    return table[[key not in hidden for key in zip(table["model"], table["images"], strict=True)]]
