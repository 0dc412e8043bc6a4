"""Do the pipeline and the notebook's code pretrain alike? ``python benchmarks/pretrainings.py CIFAR10.npz``.

``same_experiment.py`` compares the last epoch, whose test accuracy jumps from epoch to epoch. This compares the mean of
the last five, too, which jumps less, of pretrainings that ``speed.py`` has not seen: the notebook's code without a
seed, and the default recipe, two at a time, each on one thread. Prints both for every run, and Welch's tests of the
runs that learned anything.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import yaml
from scipy import stats
from speed import DEFAULT, DVC, NOTEBOOK, ROOT

from stages.reporting.published import learned

FIRST_SEED = 101
MEASURES = {"last epoch": slice(9, 10), "mean of epochs 6 to 10": slice(5, 10)}


def output(command: list[str], folder: Path) -> str:
    environment = os.environ | {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def notebooks(data: Path) -> list[float]:
    """Test accuracy after each epoch."""
    command = [sys.executable, str(ROOT / "benchmarks/notebook.py"), str(data), "--pretrain-only"]
    return [float(accuracy) for accuracy in re.findall(r" val_accuracy: (\S+)", output(command, ROOT))]


def pipelines(data: Path, seed: int) -> list[float]:
    """Test accuracy after each epoch."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        params = yaml.safe_load((clone / "params.yaml").read_text())
        params["seed"], params["threads"], params["data"]["path"] = seed, 1, str(data)
        (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        output([*DVC, "repro", "pretrain"], clone)
        return pd.read_csv(clone / "reports/history/pretrain.csv")["val_accuracy"].to_list()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=int, default=6, help="of each")
    options = parser.parse_args()
    data, seeds = options.data.resolve(), range(FIRST_SEED, FIRST_SEED + options.runs)
    with ThreadPoolExecutor(2) as pool:
        runs = [(recipe, run) for seed in seeds for recipe, run in (
            (NOTEBOOK, pool.submit(notebooks, data)), (DEFAULT, pool.submit(pipelines, data, seed)))]  # fmt: skip
        rows = []
        for recipe, run in runs:
            accuracies = run.result()
            rows.append({"recipe": recipe} | {name: pd.Series(accuracies)[of].mean() for name, of in MEASURES.items()})
            print(recipe, accuracies, file=sys.stderr, flush=True)
    runs = pd.DataFrame(rows)
    print(runs.round(4).to_markdown(index=False), "\n")
    runs = runs[runs["last epoch"].map(learned)]
    for name in MEASURES:
        ours, theirs = (runs.loc[runs["recipe"] == recipe, name] for recipe in (DEFAULT, NOTEBOOK))
        test = stats.ttest_ind(ours, theirs, equal_var=False)
        low, high = test.confidence_interval()
        means = f"{ours.mean():.4f} ± {ours.std():.4f} against {theirs.mean():.4f} ± {theirs.std():.4f}"
        print(f"{name}: {means}; difference {ours.mean() - theirs.mean():+.4f}", end=" ")
        print(f"({low:+.4f} to {high:+.4f}), p = {test.pvalue:.3f}")


if __name__ == "__main__":
    main()
