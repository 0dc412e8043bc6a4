"""Time and peak memory of each stage by number of images and of pixels: ``python benchmarks/scaling.py CIFAR10.npz``.

The images are repeated 1, 2, 4 and 8 times, and enlarged to 2 and 3 times their side by repeating pixels; one epoch
of training each. Prints tables and draws ``docs/scaling.png``, with a dotted line for cost in proportion to work.
Memory is what a process needs for itself, at its peak; the pages of files that it maps, which the system may take back
at any time, are listed beside it (Linux).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parent.parent
SIZES = [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 3)]  # images times, side times
STAGES = {  # finetune_output costs what finetune_fc costs, but for a layer of 8,256 weights
    "prepare": ["stages.prepare"],
    "pretrain": ["stages.pretrain"],
    "finetune_fc": ["stages.finetune", "finetune_fc"],
    "report": ["stages.report", "pretrain", "finetune_fc"],
}


def enlarged(arrays: dict[str, np.ndarray], times: int, side: int) -> dict[str, np.ndarray]:
    """A dataset with each training image `times` times and every image `side` times as high and wide."""
    out = {}
    for key, array in arrays.items():
        repeated = np.repeat(array, times, axis=0) if key.endswith("_train") else array
        out[key] = repeated.repeat(side, axis=1).repeat(side, axis=2) if key.startswith("x_") else repeated
    return out


def resident(pid: int) -> tuple[float, float]:
    """GB in memory now: the process's own, and pages of files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kilobytes = {key: int(value.split()[0]) for key, value in (x.split(":") for x in lines if x.startswith("Rss"))}
    return (kilobytes.get("RssAnon", 0) + kilobytes.get("RssShmem", 0)) / 1e6, kilobytes.get("RssFile", 0) / 1e6


def measured(program: list[str], folder: Path) -> dict[str, float]:
    """Seconds of one stage, and its peaks in GB."""
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # this code, whichever clone is installed
    command = [sys.executable, "-m", *program]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    peak = np.zeros(2)
    while process.poll() is None:
        peak = np.maximum(peak, resident(process.pid))
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return {"seconds": time.perf_counter() - start, "GB": float(peak[0]), "GB of mapped files": float(peak[1])}


def one_size(arrays: dict[str, np.ndarray], times: int, side: int) -> list[dict]:
    """Seconds and memory of every stage for one size."""
    with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=ROOT) as name:  # /tmp may be memory
        folder = Path(name)
        np.savez(folder / "data.npz", **enlarged(arrays, times, side))
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        params["data"]["path"] = "data.npz"
        for stage in ("pretrain", "finetune_fc"):
            params[stage]["epochs"] = 1
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        (folder / "models").mkdir()
        rows = []
        for stage, program in STAGES.items():
            cost = measured(program, folder)
            rows.append({"stage": stage, "images": times, "side": side} | cost)
            print(f"{times}x images, {side}x side: {stage}: {cost}", file=sys.stderr, flush=True)
        return rows


def draw(table: pd.DataFrame, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for ax, (column, unit) in zip(axes, (("seconds", "seconds"), ("GB", "peak memory, GB")), strict=True):
        for i, (stage, rows) in enumerate(table.groupby("stage", sort=False)):
            more_images, more_pixels = rows[rows["side"] == 1], rows[rows["images"] == 1]
            ax.plot(more_images["images"], more_images[column], "o-", color=f"C{i}", label=f"{stage}, more images")
            ax.plot(more_pixels["side"] ** 2, more_pixels[column], "s--", color=f"C{i}", label=f"{stage}, more pixels")
        first = table[table["stage"] == "pretrain"][column].iloc[0]
        ax.plot([1, 9], [first, 9 * first], ":", color="black", label="in proportion to work")
        ax.set(xscale="log", yscale="log", xlabel="work, times CIFAR-10's", ylabel=unit)
        ax.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"], minor=False)
        ax.set_xticks([], minor=True)
        ax.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    with np.load(parser.parse_args().data) as file:
        arrays = {key: file[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    table = pd.DataFrame([row for times, side in SIZES for row in one_size(arrays, times, side)])
    pixels = arrays["x_train"].shape[1] * table["side"]
    table["work"] = table["images"].astype(str) + "x images, " + pixels.astype(str) + " px"
    for column in ("seconds", "GB", "GB of mapped files"):
        wide = table.pivot_table(index="work", columns="stage", values=column, sort=False)
        print(f"\n{column}\n\n{wide.round(2).to_markdown()}")
    draw(table, ROOT / "docs/scaling.png")


if __name__ == "__main__":
    main()
