"""Time and peak memory of each stage by number of images and of pixels: ``python benchmarks/scaling.py CIFAR10.npz``.

The images are repeated 1, 2, 4 and 8 times, and enlarged to 64x64 and 96x96 pixels by repeating pixels; `pretrain` and
`finetune_fc` run one epoch of the committed recipe, so that cost is compared with work. Prints a table and draws
``docs/scaling.png``, a dotted line for cost in proportion to work. Memory is what a process needs for itself, at its
peak; what the system may take back at any time, pages of the temporary file that it maps, is listed beside it (Linux).
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
LEFT_OUT = "finetune_output"  # costs what finetune_fc costs, but for a layer of 8,256 weights
STAGES = {
    name: [word for word in stage["cmd"].removeprefix("exec python -m ").split() if word != LEFT_OUT]
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items()
    if name != LEFT_OUT
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


def measured(command: list[str], folder: Path) -> dict[str, float]:
    """Seconds of one process, and its peaks in GB."""
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    own = files = 0.0
    while process.poll() is None:
        now = resident(process.pid)
        own, files = max(own, now[0]), max(files, now[1])
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return {"seconds": time.perf_counter() - start, "GB": own, "GB of mapped files": files}


def one_size(arrays: dict[str, np.ndarray], times: int, side: int) -> list[dict]:
    """Seconds and memory of every stage for one size."""
    with tempfile.TemporaryDirectory(dir=ROOT) as name:  # /tmp may be memory
        folder = Path(name)
        np.savez(folder / "data.npz", **enlarged(arrays, times, side))
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        params["data"]["path"] = "data.npz"
        for stage in ("pretrain", "finetune_fc"):
            params[stage]["epochs"] = 1
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        (folder / "models").mkdir()
        rows = []
        for stage, command in STAGES.items():
            cost = measured([sys.executable, "-m", *command], folder)
            rows.append({"stage": stage, "images": times, "pixels": side * side} | cost)
            print(f"{times}x images, {32 * side} pixels: {stage}: {cost}", file=sys.stderr, flush=True)
        return rows


def draw(table: pd.DataFrame, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for ax, (column, unit) in zip(axes, (("seconds", "seconds"), ("GB", "peak memory, GB")), strict=True):
        for i, stage in enumerate(STAGES):
            for kind, line in (("images", "o-"), ("pixels", "s--")):
                other = "pixels" if kind == "images" else "images"
                rows = table[(table["stage"] == stage) & (table[other] == 1)]
                ax.plot(rows[kind], rows[column], line, color=f"C{i}", label=f"{stage}, more {kind}")
        first = table[(table["stage"] == "pretrain") & (table["images"] == 1) & (table["pixels"] == 1)][column].item()
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
    table["work"] = [f"{row.images}x images, {32 * int(row.pixels**0.5)} px" for row in table.itertuples()]
    for column in ("seconds", "GB", "GB of mapped files"):
        wide = table.pivot_table(index="work", columns="stage", values=column, sort=False)
        print(f"\n{column}\n\n{wide.round(2).to_markdown()}")
    draw(table, ROOT / "docs/scaling.png")


if __name__ == "__main__":
    main()
