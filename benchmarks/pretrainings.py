"""Do the pipeline and the notebook's code pretrain alike? ``python benchmarks/pretrainings.py CIFAR10.npz --runs 7``.

``same_experiment.py`` compares the runs of ``speed.py``. This adds pairs of pretrainings: the notebook's code without a
seed beside the default recipe with seeds 101, 102, ..., each on one thread. It compares the last epoch, alone and with
the runs of ``speed.py``, and the mean of the last five, as test accuracy jumps from epoch to epoch. Runs that learned
nothing are left out. ``pretrainings.json`` keeps every pair: the command resumes after the last. The report gets the
notebook's, too, see ``speed.py``.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from same_experiment import compared
from speed import (
    DEFAULT,
    DVC,
    NOTEBOOK,
    PRETRAININGS,
    ROOT,
    fresh_clone,
    kept_pairs,
    kept_rounds,
    provenance,
    results_table,
    write_notebook_runs,
)

from stages.reporting.published import learned

FIRST_SEED = 101


def output(command: list[str], folder: Path) -> str:
    environment = os.environ | {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def notebook_curve(data: Path, *options: str) -> list[float]:
    """Test accuracy after each epoch."""
    command = [sys.executable, str(ROOT / "benchmarks/notebook.py"), str(data), *options]
    return [float(accuracy) for accuracy in re.findall(r" val_accuracy: (\S+)", output(command, ROOT))]


def history(clone: Path, stage: str) -> list[float]:
    """Test accuracy after each epoch of a stage that has run."""
    return pd.read_csv(clone / f"reports/history/{stage}.csv")["val_accuracy"].round(4).to_list()


def pipeline_curve(data: Path, seed: int) -> list[float]:
    """Test accuracy after each epoch."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        fresh_clone(clone, data, seed=seed, threads=1)
        output([*DVC, "repro", "pretrain"], clone)
        return history(clone, "pretrain")


def tables(pairs: list[dict]) -> str:
    runs = {recipe: np.array([pair[recipe] for pair in pairs]) for recipe in (DEFAULT, NOTEBOOK)}
    runs = {recipe: curves[learned(curves[:, -1])] for recipe, curves in runs.items()}
    timed = results_table(kept_rounds()).query("model == 'pretrain' and learned").set_index("recipe")["test accuracy"]
    what = {
        "last epoch": {recipe: curves[:, -1] for recipe, curves in runs.items()},
        "mean of the last five epochs": {recipe: curves[:, -5:].mean(axis=1) for recipe, curves in runs.items()},
        "last epoch, with the runs of speed.py": {
            recipe: np.concatenate([curves[:, -1], timed[recipe]]) for recipe, curves in runs.items()
        },
    }
    rows = {
        f"{name}: {len(both[DEFAULT])} and {len(both[NOTEBOOK])} runs": compared(both[DEFAULT], both[NOTEBOOK])
        for name, both in what.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("test accuracy of pretrain")
    return table.to_markdown(disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=int, default=7, help="of each")
    options = parser.parse_args()
    if options.runs < 2:
        parser.error("--runs: expected at least 2, one run has no spread")
    data, pairs = options.data.resolve(), kept_pairs()
    while len(pairs) < options.runs:
        seed = FIRST_SEED + len(pairs)
        with ThreadPoolExecutor(2) as pool:
            theirs, ours = pool.submit(notebook_curve, data, "--pretrain-only"), pool.submit(pipeline_curve, data, seed)
        pairs.append({"seed": seed, "provenance": provenance(), NOTEBOOK: theirs.result(), DEFAULT: ours.result()})
        PRETRAININGS.write_text(json.dumps(pairs, indent=1) + "\n")
    print(tables(pairs))
    write_notebook_runs()


if __name__ == "__main__":
    main()
