"""Compare the pipeline's accuracies with those of the notebook's code, several seeds each on the same images.

    dvc exp run --queue -S data.path=CIFAR10.npz -S 'seed=range(1,6)' && dvc queue start
    python benchmarks/compare_seeds.py

Reads the experiments of the current commit that have the notebook's settings, whatever their seed and images, and
``notebook_seeds.json``, runs of the notebook's code. Prints mean, standard deviation, and Welch's and the exact
permutation test.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from stages.settings import Settings
from studies import queue

NOTEBOOK = Path(__file__).with_name("notebook_seeds.json")
MODELS = {"pretrain": "model_1", "finetune_output": "model_2", "finetune_fc": "model_3"}


def pipeline_accuracies() -> pd.DataFrame:
    """Test accuracies of the experiments with the notebook's settings: a row per seed, a column per stage."""
    rows, images = {}, set()
    wanted = {key: value for key, value in Settings().by_key().items() if key not in ("seed", "data.path")}
    for experiment in queue.experiments().values():
        settings = experiment.settings
        if experiment.metrics and all(settings.get(key) == value for key, value in wanted.items()):
            rows[settings["seed"]] = {stage: experiment.metrics[stage]["test_accuracy"] for stage in MODELS}
            images.add(settings["data.path"])
    if len(images) != 1 or len(rows) < 2:
        found = f"experiments with the notebook's settings: seeds {sorted(rows)}, images {sorted(images)}"
        sys.exit(f"error: {found}; expected two seeds or more on the same images")
    return pd.DataFrame.from_dict(rows, orient="index").sort_index()


def notebook_accuracies() -> pd.DataFrame:
    seeds = json.loads(NOTEBOOK.read_text())["seeds"].values()
    return pd.DataFrame({stage: [run[name]["test_accuracy"] for run in seeds] for stage, name in MODELS.items()})


def compared(a: np.ndarray, b: np.ndarray) -> dict[str, str]:
    """The pipeline's accuracies `a` beside the notebook's code's, `b`."""
    exact = stats.permutation_test((a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis), n_resamples=np.inf)
    return {
        "pipeline": f"{a.mean():.4f} ± {a.std(ddof=1):.4f} (n = {len(a)})",
        "notebook's code": f"{b.mean():.4f} ± {b.std(ddof=1):.4f} (n = {len(b)})",
        "difference": f"{a.mean() - b.mean():+.4f}",
        "Welch p": f"{stats.ttest_ind(a, b, equal_var=False).pvalue:.2f}",
        "permutation p": f"{exact.pvalue:.2f}",
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    ours, theirs = pipeline_accuracies(), notebook_accuracies()
    rows = {stage: compared(ours[stage].to_numpy(), theirs[stage].to_numpy()) for stage in MODELS}
    print(ours.round(4).to_markdown(), end="\n\n")
    print(pd.DataFrame.from_dict(rows, orient="index").rename_axis("model").to_markdown(disable_numparse=True))


if __name__ == "__main__":
    main()
