"""Compare the pipeline's accuracies with those of the notebook's code, seed by seed on the same images.

    dvc exp run --queue -S data.path=CIFAR10.npz -S 'seed=range(1,6)' && dvc queue start
    python benchmarks/compare_seeds.py

Reads the experiments of the current commit that have the notebook's settings, with `--fast` those of the fast recipe,
whatever their seed and images, and ``notebook_seeds.json`` beside this file: five runs of the notebook's code on
CIFAR-10's images from a JPEG copy. Prints mean, standard deviation, and Welch's and the exact permutation test.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from stages import notebook  # noqa: E402
from studies import queue  # noqa: E402

NOTEBOOK = ROOT / "benchmarks/notebook_seeds.json"
FAST = ROOT / "docs/recipes/fast.txt"
MODELS = {"pretrain": "model_1", "finetune_output": "model_2", "finetune_fc": "model_3"}


def wanted_settings(fast: bool) -> dict:
    """The notebook's settings, or the fast recipe's, without seed and images."""
    changes = FAST.read_text().split()[1::2] if fast else []
    recipe = {key: yaml.safe_load(value) for key, value in (change.split("=") for change in changes)}
    return {key: value for key, value in (notebook.SETTINGS | recipe).items() if key not in ("seed", "data.path")}


def pipeline_accuracies(wanted: dict) -> pd.DataFrame:
    """Test accuracies of the experiments of HEAD with the settings wanted, one row a seed, one column a stage."""
    rows, images = {}, set()
    for experiment in queue.experiments().values():
        settings = experiment.settings
        if experiment.metrics and all(settings[key] == value for key, value in wanted.items()):
            rows[settings["seed"]] = {stage: experiment.metrics[stage]["test_accuracy"] for stage in MODELS}
            images.add(settings["data.path"])
    if len(images) != 1 or len(rows) < 2:
        seeds = f"experiments with these settings: seeds {sorted(rows)}, images {sorted(images)}"
        sys.exit(f"error: {seeds}; expected two seeds or more on the same images")
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="experiments of the fast recipe, not of the notebook's")
    ours, theirs = pipeline_accuracies(wanted_settings(parser.parse_args().fast)), notebook_accuracies()
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
