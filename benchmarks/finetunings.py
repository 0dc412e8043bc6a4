"""Do the pipeline and the notebook's code fine-tune alike? ``python benchmarks/finetunings.py CIFAR10.npz``.

``same_experiment.py`` found the pipeline's `finetune_fc` lower, over runs of which each had a pretraining of its own.
Here both fine-tune the last two layers of the same networks: the default recipe pretrains one with each of the seeds
201, 211, ..., and from each the pipeline, with that seed and the next two, and the notebook's code, without a seed,
fine-tune three times each; every training on one thread, two networks at a time. Compares the last epoch, which is what
both report, and the mean of the last five, network by network; networks that learned nothing, or of which a fine-tuning
did not, are left out. A second table sets the pipeline's means beside the whole runs of ``speed.py``.
``finetunings.json`` keeps every network's: the command resumes after the last.
"""

import argparse
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from pretrainings import history, notebook_curve, output
from same_experiment import differ
from scipy import stats
from speed import DEFAULT, DVC, NOTEBOOK, ROOT, fresh_clone, kept_rounds, provenance, results_table

from stages.reporting.published import learned

KEPT = ROOT / "benchmarks/finetunings.json"
STAGE = "finetune_fc"
FINE_TUNINGS = 3


def pipeline_curve(clone: Path, seed: int) -> list[float]:
    """Test accuracy after each epoch of fine-tuning the network that the clone has."""
    params = yaml.safe_load((clone / "params.yaml").read_text())
    (clone / "params.yaml").write_text(yaml.safe_dump(params | {"seed": seed}, sort_keys=False))
    output([*DVC, "repro", "--single-item", STAGE], clone)
    return history(clone, STAGE)


def fine_tuned(data: Path, seed: int) -> dict:
    """Pretrain a network, and fine-tune it several times with both."""
    made_with = provenance()
    curves: dict[str, list[list[float]]] = {DEFAULT: [], NOTEBOOK: []}
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        fresh_clone(clone, data, seed=seed, threads=1)
        output([*DVC, "repro", "pretrain"], clone)
        for again in range(FINE_TUNINGS):
            curves[DEFAULT].append(pipeline_curve(clone, seed + again))
            curves[NOTEBOOK].append(notebook_curve(data, "--pretrained", str(clone / "models/pretrain.keras")))
    return {"seed": seed, "provenance": made_with, **curves}


def compared(ours: np.ndarray, theirs: np.ndarray) -> dict[str, str]:
    """Compare the networks' means, in pairs."""
    means = {DEFAULT: f"{ours.mean():.4f}", NOTEBOOK: f"{theirs.mean():.4f}"}
    return means | differ(ours, theirs, stats.ttest_rel)


def tables(networks: list[dict]) -> str:
    curves = np.array([[network[recipe] for recipe in (DEFAULT, NOTEBOOK)] for network in networks])
    ours, theirs = curves[learned(curves[..., -1]).all(axis=(1, 2))].swapaxes(0, 1)
    last, of_theirs = ours[..., -1].mean(axis=1), theirs[..., -1].mean(axis=1)
    paired = {
        "last epoch": compared(last, of_theirs),
        "mean of the last five epochs": compared(ours[..., -5:].mean(axis=(1, 2)), theirs[..., -5:].mean(axis=(1, 2))),
    }
    runs = results_table(kept_rounds()).query(f"model == '{STAGE}' and learned").set_index("recipe")["test accuracy"]
    rounds, notebooks = runs[DEFAULT].to_numpy(), runs[NOTEBOOK].to_numpy()
    welch = partial(stats.ttest_ind, equal_var=False)
    whole = {
        f"these {len(last)} networks and {len(rounds)} runs of the pipeline": differ(last, rounds, welch),
        f"all {len(last) + len(rounds)} and {len(notebooks)} runs of the notebook's code": differ(
            np.concatenate([last, rounds]), notebooks, welch
        ),
    }
    names = {f"{STAGE}, {len(last)} networks": paired, f"{STAGE}, whole runs": whole}
    shown = [pd.DataFrame.from_dict(rows, orient="index").rename_axis(name) for name, rows in names.items()]
    return "\n\n".join(table.to_markdown(disable_numparse=True) for table in shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--networks", type=int, default=6, help="in all, those kept included")
    options = parser.parse_args()
    if options.networks < 2:
        parser.error("--networks: expected at least 2, one has no spread")
    networks = json.loads(KEPT.read_text()) if KEPT.exists() else []
    seeds = range(201 + 10 * len(networks), 201 + 10 * options.networks, 10)
    with ThreadPoolExecutor(2) as pool:
        for network in pool.map(partial(fine_tuned, options.data.resolve()), seeds):
            networks.append(network)
            KEPT.write_text(json.dumps(networks, indent=1) + "\n")
    print(tables(networks))


if __name__ == "__main__":
    main()
