"""Is the default recipe the notebook's experiment? ``python benchmarks/same_experiment.py``, after ``speed.py``.

Compares the test accuracies of the default recipe with those of the notebook's code: both spreads, the difference with
its interval, whether the means are equivalent within a margin (two one-sided tests, Schuirmann 1987), and where the
notebook's published figures lie. All this of the runs that learned anything; the others are counted.
"""

import argparse
import math
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from scipy import stats
from speed import DEFAULT, KEPT, NOTEBOOK, described, kept_rounds, results_table

from stages.reporting.published import TABLE

MARGIN = 0.02


def runs_needed(spread: float) -> int:
    """How many runs of each side show equivalence with a power of 80 % if the means are equal."""
    return math.ceil(2 * ((stats.norm.ppf(0.95) + stats.norm.ppf(0.9)) * spread / MARGIN) ** 2)


def differ(ours: np.ndarray, theirs: np.ndarray, test: Callable) -> dict[str, str]:
    """The difference of the means, whether there is any, and whether it is below the margin, by a t-test of scipy's."""
    two_sided = test(ours, theirs)
    low, high = two_sided.confidence_interval(0.95)
    not_below = test(ours + MARGIN, theirs, alternative="greater")
    not_above = test(ours - MARGIN, theirs, alternative="less")
    equivalent = max(not_below.pvalue, not_above.pvalue)
    return {
        "difference, 95% interval": f"{ours.mean() - theirs.mean():+.4f} ({low:+.4f} to {high:+.4f})",
        "p": f"{two_sided.pvalue:.3f}",
        f"equivalent within {MARGIN}: p": f"{equivalent:.4f}" if equivalent >= 1e-4 else "< 0.0001",
    }


def compared(ours: np.ndarray, theirs: np.ndarray) -> dict[str, str]:
    spread = np.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / 2)
    return {
        "default recipe": f"{ours.mean():.4f} ± {ours.std(ddof=1):.4f}",
        "notebook's code": f"{theirs.mean():.4f} ± {theirs.std(ddof=1):.4f}",
        **differ(ours, theirs, partial(stats.ttest_ind, equal_var=False)),
        "runs needed of each": str(runs_needed(spread)),
    }


def placed(published: float, both: np.ndarray) -> dict[str, str]:
    """Where a published figure lies among the runs of both."""
    return {"published": f"{published:.4f}", "runs at or above it": f"{(both >= published).sum()} of {len(both)}"}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    if len(rounds := kept_rounds()) < 2:
        sys.exit(f"error: {KEPT}: {len(rounds)} rounds, expected at least 2: run python benchmarks/speed.py")
    runs = results_table(rounds)
    failed = runs[~runs["learned"]].groupby("recipe")["seed"].nunique()
    results = runs[runs["learned"]].set_index(["recipe", "model"])["test accuracy"]
    rows = {}
    for model, row in TABLE.items():
        ours, theirs = (results[recipe, model].to_numpy() for recipe in (DEFAULT, NOTEBOOK))
        rows[model] = compared(ours, theirs) | placed(row["test_accuracy"], np.concatenate([ours, theirs]))
    print(f"{len(rounds)} runs of each, in turn; {described(rounds)}")
    print(f"learned nothing, left out: {failed.to_dict() or 'none'}\n")
    print(pd.DataFrame.from_dict(rows, orient="index").rename_axis("model").to_markdown(disable_numparse=True))


if __name__ == "__main__":
    main()
