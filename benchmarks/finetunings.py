"""Do the pipeline and the notebook's code fine-tune alike? ``python benchmarks/finetunings.py CIFAR10.npz``.

``same_experiment.py`` found the pipeline's `finetune_fc` lower, over runs of which each had a pretraining of its own.
Here both fine-tune the last two layers of the same networks: the default recipe pretrains one with each of the seeds
201, 211, ..., and from each the pipeline, with that seed and the next, and the notebook's code, without a seed,
fine-tune three times, all on one thread. Compares the last epoch, which is what both report, and the mean of the last
five, network by network. ``finetunings.json`` keeps every network's: the command resumes after the last.
"""

import argparse
import json
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from pretrainings import output
from same_experiment import MARGIN
from scipy import stats
from speed import DEFAULT, DVC, NOTEBOOK, ROOT, fresh_clone, provenance

KEPT = ROOT / "benchmarks/finetunings.json"
STAGE = "finetune_fc"
FINE_TUNINGS = 3


def notebook_curve(data: Path, pretrained: Path) -> list[float]:
    """Test accuracy after each epoch of fine-tuning a network."""
    command = [sys.executable, str(ROOT / "benchmarks/notebook.py"), str(data), "--pretrained", str(pretrained)]
    return [float(accuracy) for accuracy in re.findall(r" val_accuracy: (\S+)", output(command, ROOT))]


def pipeline_curve(clone: Path, seed: int) -> list[float]:
    """The same with the pipeline, of the network that the clone has."""
    params = yaml.safe_load((clone / "params.yaml").read_text())
    (clone / "params.yaml").write_text(yaml.safe_dump(params | {"seed": seed}, sort_keys=False))
    output([*DVC, "repro", "--single-item", STAGE], clone)
    return pd.read_csv(clone / f"reports/history/{STAGE}.csv")["val_accuracy"].round(4).to_list()


def fine_tuned(data: Path, seed: int) -> dict:
    """Pretrain a network, and fine-tune it several times with both."""
    curves: dict[str, list[list[float]]] = {DEFAULT: [], NOTEBOOK: []}
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        fresh_clone(clone, data, seed=seed, threads=1)
        output([*DVC, "repro", "pretrain"], clone)
        for again in range(FINE_TUNINGS):
            curves[DEFAULT].append(pipeline_curve(clone, seed + again))
            curves[NOTEBOOK].append(notebook_curve(data, clone / "models/pretrain.keras"))
    return {"seed": seed, "provenance": provenance(), **curves}


def compared(ours: np.ndarray, theirs: np.ndarray) -> dict[str, str]:
    """Compare the networks' means, in pairs."""
    difference = ours - theirs
    test = stats.ttest_1samp(difference, 0)
    low, high = test.confidence_interval(0.95)
    not_below = stats.ttest_1samp(difference, -MARGIN, alternative="greater")
    not_above = stats.ttest_1samp(difference, MARGIN, alternative="less")
    return {
        DEFAULT: f"{ours.mean():.4f}",
        NOTEBOOK: f"{theirs.mean():.4f}",
        "difference, 95% interval": f"{difference.mean():+.4f} ({low:+.4f} to {high:+.4f})",
        "p": f"{test.pvalue:.3f}",
        f"equivalent within {MARGIN}: p": f"{max(not_below.pvalue, not_above.pvalue):.4f}",
    }


def table(networks: list[dict]) -> str:
    ours, theirs = (np.array([network[recipe] for network in networks]) for recipe in (DEFAULT, NOTEBOOK))
    rows = {
        "last epoch": compared(*(curves[..., -1].mean(axis=1) for curves in (ours, theirs))),
        "mean of the last five epochs": compared(*(curves[..., -5:].mean(axis=(1, 2)) for curves in (ours, theirs))),
    }
    compared_both = pd.DataFrame.from_dict(rows, orient="index").rename_axis(f"test accuracy of {STAGE}")
    return compared_both.to_markdown(disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--networks", type=int, default=6)
    options = parser.parse_args()
    if options.networks < 2:
        parser.error("--networks: expected at least 2, one has no spread")
    networks = json.loads(KEPT.read_text()) if KEPT.exists() else []
    seeds = range(201 + 10 * len(networks), 201 + 10 * options.networks, 10)
    with ThreadPoolExecutor(2) as pool:
        for network in pool.map(partial(fine_tuned, options.data.resolve()), seeds):
            networks.append(network)
            KEPT.write_text(json.dumps(networks, indent=1) + "\n")
    print(f"networks: {len(networks)}, each fine-tuned {FINE_TUNINGS} times by both\n\n{table(networks)}")


if __name__ == "__main__":
    main()
