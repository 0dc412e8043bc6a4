"""Measure time and memory of each stage by the size of the dataset: ``python benchmarks/scaling.py CIFAR10.npz``.

Repeats the training images and enlarges all images by repeating pixels: ``--sizes 1x1,16x1,8x3`` is the dataset itself,
16 times the images, and 8 times the images with 3 times the side. Trains for one epoch. Memory is the peak of the
process's own, without mapped files. ``--limit 2`` runs every stage in a control group of 2 GB, page cache included
(Linux, as root). Each stage starts without the data in the page cache.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from stages.shared.arrays import LazyArray
from stages.shared.npz import write_npz

ROOT = Path(__file__).resolve().parent.parent
TRAINED = ("pretrain", "finetune_output", "finetune_fc")
CGROUP, LIMIT = Path("/sys/fs/cgroup/memory/transfer-scaling"), "memory.limit_in_bytes"  # version 1
if not CGROUP.parent.exists():
    CGROUP, LIMIT = Path("/sys/fs/cgroup/transfer-scaling"), "memory.max"


def enlarge(images: np.ndarray, times: int, side: int) -> LazyArray:
    """Repeat the images, and the pixels of each."""
    count, height, width, channels = images.shape
    repeated = LazyArray.of(images).take(np.tile(np.arange(count), times))
    shape = (side * height, side * width, channels)
    return repeated.map(lambda batch: batch.repeat(side, axis=1).repeat(side, axis=2), shape)


def write_inputs(
    folder: Path, arrays: dict[str, np.ndarray], times: int, side: int, options: argparse.Namespace
) -> None:
    """Write an enlarged dataset and the settings to train on it."""
    data: dict[str, np.ndarray | LazyArray] = {}
    for split, repeats in (("train", times), ("test", 1)):
        data[f"x_{split}"] = enlarge(arrays[f"x_{split}"], repeats, side)
        data[f"y_{split}"] = np.tile(arrays[f"y_{split}"].ravel(), repeats)
    write_npz(folder / "data.npz", data)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"]["path"] = "data.npz"
    params["model"]["conv_filters"] = [int(number) for number in options.filters.split(",")]
    for stage in TRAINED:
        params[stage]["epochs"] = 1
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    shutil.copytree(ROOT / "data/raw", folder / "data/raw", ignore=shutil.ignore_patterns("*.npz", "*.py"))


def resident(pid: int) -> float:
    """Return the GB of a process's own memory, without mapped files."""
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(int(kilobytes) for kilobytes in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+)", status)) / 1e6


def measure(command: list[str], folder: Path, limit: float | None) -> dict[str, float]:
    """Run a stage; returns its seconds and peak memory in GB."""
    os.sync()
    for path in folder.rglob("*.npz"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if limit:
        CGROUP.mkdir(exist_ok=True)
        (CGROUP / LIMIT).write_text(str(int(limit * 1e9)))
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=folder, stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT)},  # not the installed clone's code
        preexec_fn=(lambda: (CGROUP / "cgroup.procs").write_text(str(os.getpid()))) if limit else None,
    )  # fmt: skip
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed: {process.returncode}")
    return {"seconds": time.perf_counter() - start, "GB": peak}


def measure_size(arrays: dict[str, np.ndarray], times: int, side: int, options: argparse.Namespace) -> list[dict]:
    """Measure every stage on one dataset; returns a row for each."""
    rows = []
    with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=ROOT) as name:  # /tmp may be memory
        folder = Path(name)
        write_inputs(folder, arrays, times, side, options)
        size = (folder / "data.npz").stat().st_size / 1e9
        for stage in ("prepare", *TRAINED, "report"):
            command = ["stages.finetune", stage] if stage.startswith("finetune") else [f"stages.{stage}"]
            row = {"dataset": f"{times}x images, {side}x side, {size:.1f} GB", "stage": stage}
            row |= measure(command, folder, options.limit)
            if stage in TRAINED:
                seconds = json.loads((folder / f"reports/timing/{stage}.json").read_text())["train_seconds"]
                row["images per second"] = times * len(arrays["x_train"]) / 2 / seconds
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--sizes", default="1x1,4x1,16x1,1x3,4x3,8x3", help="factors of image count and side")
    parser.add_argument("--filters", default="8,8", help="filters of the convolutions; few, so that reading shows")
    parser.add_argument("--limit", type=float, metavar="GB")
    options = parser.parse_args()
    with np.load(options.data) as file:
        arrays = {key: file[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    sizes = [map(int, size.split("x")) for size in options.sizes.split(",")]
    table = pd.DataFrame([row for times, side in sizes for row in measure_size(arrays, times, side, options)])
    for column in ("seconds", "images per second", "GB"):
        wide = table.pivot_table(index="dataset", columns="stage", values=column, sort=False)
        print(f"\n{column}\n\n{wide.round(2).to_markdown()}")


if __name__ == "__main__":
    main()
