"""What a study's experiments show: means with intervals, paired differences over seeds, gains by class."""

import itertools
from functools import cache
from io import StringIO

import dvc.api
import numpy as np
import pandas as pd
from dvc.exceptions import DvcException
from scipy import stats

from stages.shared.errors import UserError
from studies.plan import Choice, Plan, Question, experiment_name
from studies.repository import Experiment

EXACT = 2**16  # sign flips: all of them up to 16 seeds, this many at random beyond
LEVEL = 0.05  # of significance
SAME = 1e-9  # a spread below it is rounding error


def results(plan: Plan, study: str, done: dict[str, Experiment]) -> pd.DataFrame:
    """One row for each model, or choice that a question asks about, number of images and seed that has been run.

    Columns: model, images (per class), seed, experiment, rev, stage, accuracy (test), validation (accuracy; NaN if no
    images were held out), seconds (of training, including pretraining). Raises `UserError` if the report leaves out
    the stage of a model.
    """
    rows = []
    for (name, model), images, seed in itertools.product(plan.named_models.items(), plan.images_per_class, plan.seeds):
        experiment = experiment_name(study, model.run, images, seed)
        if experiment not in done:
            continue
        metrics = done[experiment].metrics
        if model.stage not in metrics:
            raise UserError(f"{experiment}: no {model.stage} in metrics.json, expected it in report's cmd in dvc.yaml")
        rows.append(
            {
                "model": name,
                "images": images,
                "seed": seed,
                "experiment": experiment,
                "rev": done[experiment].rev,
                "stage": model.stage,
                "accuracy": metrics[model.stage]["test_accuracy"],
                "validation": metrics[model.stage].get("validation_accuracy", np.nan),
                "seconds": sum(metrics[stage]["train_seconds"] for stage in {"pretrain", model.stage}),
            }
        )
    table = pd.DataFrame(rows)
    asked = [choice for choice in plan.choices if choice.choose in plan.asked]
    return pd.concat([table, *(_chosen(table, choice) for choice in asked)], ignore_index=True)


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Student's 95% confidence interval of the mean of `values`, float (n,); NaN for fewer than two."""
    if len(values) < 2:
        return np.nan, np.nan
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def summary(table: pd.DataFrame, column: str = "accuracy") -> pd.DataFrame:
    """A column's mean, sd, n, low and high (95% interval of the mean); index: model, number of images."""
    rows = {}
    for key, group in table.groupby(["model", "images"], sort=False)[column]:
        low, high = mean_interval(group.to_numpy())
        rows[key] = {"mean": group.mean(), "sd": group.std(), "n": len(group), "low": low, "high": high}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["model", "images"])


def _rounded_mean_difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    return np.mean(a - b, axis=axis).round(12)  # or flips that tie would differ in their last digit


def sign_flip_p(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p of the paired permutation test of the mean difference, which flips the signs of the differences.

    `first` and `second`: float (n,), paired. Exact up to 16 pairs. p is never below 2 / 2**n (Fisher, 1935).
    """
    test = stats.permutation_test(
        (second, first), _rounded_mean_difference, permutation_type="samples", vectorized=True,
        n_resamples=EXACT, rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(test.pvalue)


def compare(table: pd.DataFrame, question: Question) -> pd.DataFrame:
    """The second model minus the first, paired by seed, one row for each number of images.

    Columns: images, difference, low, high (95% interval of the mean difference), d (Cohen's, of the differences), n,
    p (NaN for fewer than two seeds). A number of images for which no seed has both models has no row.
    """
    rows = []
    for images, part in table.groupby("images", sort=False):
        wide = part.set_index(["seed", "model"])["accuracy"].unstack("model")  # noqa: PD010 - one value per cell
        pairs = wide.reindex(columns=[question.first, question.second]).dropna()
        first, second = pairs[question.first].to_numpy(), pairs[question.second].to_numpy()
        if not len(pairs):
            continue
        difference = second - first
        low, high = mean_interval(difference)
        spread = difference.std(ddof=1) if len(pairs) > 1 else 0.0
        rows.append(
            {
                "images": images,
                "difference": difference.mean(),
                "low": low,
                "high": high,
                "d": difference.mean() / spread if spread > SAME else np.nan,
                "n": len(pairs),
                "p": sign_flip_p(first, second) if len(pairs) > 1 else np.nan,
            }
        )
    return pd.DataFrame(rows, columns=["images", "difference", "low", "high", "d", "n", "p"])


def compare_all(table: pd.DataFrame, questions: list[Question]) -> list[pd.DataFrame]:
    """`compare` for every question, with a column `adjusted`: p over all of them (Benjamini and Hochberg, 1995)."""
    answers = [compare(table, question) for question in questions]
    p = np.concatenate([answer["p"].to_numpy(float) for answer in answers])
    adjusted, tested = np.full(len(p), np.nan), ~np.isnan(p)
    if tested.any():
        adjusted[tested] = stats.false_discovery_control(p[tested])
    parts = np.split(adjusted, np.cumsum([len(answer) for answer in answers])[:-1])
    return [answer.assign(adjusted=part) for answer, part in zip(answers, parts, strict=True)]


def verdict(row: pd.Series) -> str:
    """What a difference shows, in one word."""
    if np.isnan(row["adjusted"]) or row["adjusted"] >= LEVEL or row["low"] <= 0 <= row["high"]:
        return "inconclusive"
    return "**better**" if row["difference"] > 0 else "**worse**"


@cache
def read(path: str, experiment: str, rev: str) -> str:
    """A file that an experiment wrote, from Git or DVC's cache; raises `UserError` if it is gone."""
    try:
        return dvc.api.read(path, rev=rev, encoding="utf-8")
    except (OSError, DvcException):
        raise UserError(
            f"{experiment}: {path} is not in DVC's cache; `dvc exp remove {experiment}`, then run the study again"
        ) from None


def predictions(row: pd.Series) -> pd.DataFrame:
    """The predictions of a row of `results`: columns actual, predicted, probability, from DVC's cache."""
    text = read(f"reports/predictions/{row['stage']}.csv", row["experiment"], row["rev"])
    return pd.read_csv(StringIO(text), na_filter=False)


def class_gains(table: pd.DataFrame, question: Question, images: int) -> pd.DataFrame:
    """The second model's test accuracy minus the first's, by seed and class: float (seeds, classes)."""
    part = table[table["images"] == images].set_index(["model", "seed"]).sort_index()
    of_model = [{seed for name, seed in part.index if name == model} for model in (question.first, question.second)]
    seeds = sorted(of_model[0] & of_model[1])
    gains = {
        seed: _by_class(part.loc[(question.second, seed)]) - _by_class(part.loc[(question.first, seed)])
        for seed in seeds
    }
    return pd.DataFrame.from_dict(gains, orient="index")


def _by_class(row: pd.Series) -> pd.Series:
    table = predictions(row)
    return (table["actual"] == table["predicted"]).groupby(table["actual"], sort=False).mean().sort_index()


def choose(table: pd.DataFrame, choice: Choice, images: int) -> tuple[pd.DataFrame, bool]:
    """The candidates of a choice at one number of images, best first, and whether validation images judged them.

    Without validation images they are judged on the test images. Columns as in `summary`; index: models. Only seeds
    that all candidates have been run with count; empty if there are none.
    """
    part = table[(table["images"] == images) & table["model"].isin(choice.among)]
    there = part.groupby("seed")["model"].nunique()
    part = part[part["seed"].isin(there.index[there == len(choice.among)])]  # means over the same seeds
    if part.empty:
        return pd.DataFrame(), False
    held_out = bool(part["validation"].notna().all())
    judged = summary(part, "validation" if held_out else "accuracy").droplevel("images")
    return judged.sort_values("mean", ascending=False, kind="stable"), held_out


def _chosen(table: pd.DataFrame, choice: Choice) -> pd.DataFrame:
    """The rows of the best candidate at each number of images, under the choice's name."""
    best = {images: choose(table, choice, images)[0].index[:1] for images in table["images"].unique()}
    rows = table[[model in best[n] for model, n in zip(table["model"], table["images"], strict=True)]]
    return rows.assign(model=choice.choose).sort_values("images", kind="stable")


def shown(plan: Plan, table: pd.DataFrame) -> pd.DataFrame:
    """`table` without the candidates that were rejected on validation images, unless a question is about them.

    Picking the best of many test accuracies is optimistic, so theirs are not shown. Nor is the chosen one's under its
    own name if it is there under the choice's.
    """
    hidden = []
    for choice, images in itertools.product(plan.choices, plan.images_per_class):
        judged, held_out = choose(table, choice, images)
        if held_out:
            shown_as = choice.choose if choice.choose in plan.asked else judged.index[0]
            hidden += [(name, images) for name in set(choice.among) - plan.asked - {shown_as}]
    return table[[key not in hidden for key in zip(table["model"], table["images"], strict=True)]]
