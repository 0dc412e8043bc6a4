"""Compare the pipeline's accuracies with those of the notebook's code, seed by seed on the same images.

    dvc exp run --queue -S data.path=CIFAR10.npz -S 'seed=range(1,6)' && dvc queue start
    python benchmarks/compare_seeds.py

Reads every experiment of the current commit, and ``notebook_seeds.json`` beside this file: five runs of the notebook's
code on CIFAR-10's images from a JPEG copy. Prints mean, standard deviation, and Welch's and the exact permutation test.
"""

import json
from pathlib import Path

import dvc.api
import numpy as np
import pandas as pd
from scipy import stats

NOTEBOOK = Path(__file__).with_name("notebook_seeds.json")
MODELS = {"pretrain": "model_1", "finetune_output": "model_2", "finetune_fc": "model_3"}


def pipeline_accuracies() -> pd.DataFrame:
    """Test accuracies of the experiments of HEAD, one row a seed, one column a stage."""
    rows = {}
    for row in dvc.api.exp_show():
        accuracies = {stage: row.get(f"{stage}.test_accuracy") for stage in MODELS}
        if row["Experiment"] and all(isinstance(value, float) for value in accuracies.values()):
            rows[int(row["seed"])] = accuracies
    return pd.DataFrame.from_dict(rows, orient="index").sort_index()


def notebook_accuracies() -> pd.DataFrame:
    """The same of the notebook's code."""
    seeds = json.loads(NOTEBOOK.read_text())["seeds"]
    return pd.DataFrame(
        {
            stage: {int(seed): run[name]["test_accuracy"] for seed, run in seeds.items()}
            for stage, name in MODELS.items()
        }
    )


def mean_difference(first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray:
    return first.mean(axis=axis) - second.mean(axis=axis)


def main() -> None:
    ours, theirs = pipeline_accuracies(), notebook_accuracies()
    print(ours.round(4).to_markdown())
    rows = []
    for stage in MODELS:
        a, b = ours[stage].to_numpy(), theirs[stage].to_numpy()
        exact = stats.permutation_test((a, b), mean_difference, n_resamples=np.inf, vectorized=True)
        rows.append(
            {
                "model": stage,
                "pipeline": f"{a.mean():.4f} ± {a.std(ddof=1):.4f} (n = {len(a)})",
                "notebook's code": f"{b.mean():.4f} ± {b.std(ddof=1):.4f} (n = {len(b)})",
                "difference": f"{a.mean() - b.mean():+.4f}",
                "Welch p": f"{stats.ttest_ind(a, b, equal_var=False).pvalue:.2f}",
                "permutation p": f"{exact.pvalue:.2f}",
            }
        )
    print()
    print(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))


if __name__ == "__main__":
    main()
