"""Time and peak memory of each stage by number of images and of pixels: ``python benchmarks/scaling.py CIFAR10.npz``.

The training images are repeated, and all enlarged by repeating pixels: ``--sizes 1x1,16x1,8x3`` is the dataset itself,
16 times the images, and 8 times the images of 3 times the side. One epoch of training each. Memory is what a process
needs for itself, at its peak; pages of mapped files, which the system may take back at any time, are beside it. With
``--limit 2`` every stage runs in a control group that may have 2 GB, the page cache included (Linux, as root), and with
budgets in ``params.yaml`` to match; what files have in the page cache is dropped before each stage.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from stages.shared.npz import write_npz

ROOT = Path(__file__).resolve().parent.parent
STAGES = {
    "prepare": ["stages.prepare"],
    "pretrain": ["stages.pretrain"],
    "finetune_output": ["stages.finetune", "finetune_output"],
    "finetune_fc": ["stages.finetune", "finetune_fc"],
    "report": ["stages.report", "pretrain", "finetune_output", "finetune_fc"],
}
GROUP = Path("/sys/fs/cgroup/memory/transfer-scaling")  # version 1
if not GROUP.parent.exists():
    GROUP = Path("/sys/fs/cgroup/transfer-scaling")


@dataclass
class Enlarged:
    """Images `times` times, `side` times as high and wide; see `stages.shared.npz.Pieces`."""

    images: np.ndarray
    times: int
    side: int
    dtype = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        count, height, width, channels = self.images.shape
        return self.times * count, self.side * height, self.side * width, channels

    def pieces(self) -> Iterator[np.ndarray]:
        for _ in range(self.times):
            for start in range(0, len(self.images), 1000):
                yield self.images[start : start + 1000].repeat(self.side, axis=1).repeat(self.side, axis=2)


def resident(pid: int) -> tuple[float, float]:
    """GB in memory now: the process's own, and pages of files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kilobytes = {key: int(value.split()[0]) for key, value in (x.split(":") for x in lines if x.startswith("Rss"))}
    return (kilobytes.get("RssAnon", 0) + kilobytes.get("RssShmem", 0)) / 1e6, kilobytes.get("RssFile", 0) / 1e6


def drop_from_page_cache(folder: Path) -> None:
    os.sync()
    for path in folder.rglob("*.npz"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measured(program: list[str], folder: Path, limit: float | None) -> dict[str, float]:
    """Seconds of one stage, and its peaks in GB."""
    drop_from_page_cache(folder)
    if limit:
        GROUP.mkdir(exist_ok=True)
        file = GROUP / ("memory.limit_in_bytes" if "memory/" in str(GROUP) else "memory.max")
        file.write_text(str(int(limit * 1e9)))
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # this code, whichever clone is installed
    process = subprocess.Popen(
        [sys.executable, "-m", *program], cwd=folder, env=environment, stdout=subprocess.DEVNULL,
        preexec_fn=(lambda: (GROUP / "cgroup.procs").write_text(str(os.getpid()))) if limit else None,
    )  # fmt: skip
    peak = np.zeros(2)
    while process.poll() is None:
        peak = np.maximum(peak, resident(process.pid))
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"{' '.join(program)} failed: {process.returncode}")
    return {"seconds": time.perf_counter() - start, "GB": float(peak[0]), "GB of mapped files": float(peak[1])}


def one_size(arrays: dict[str, np.ndarray], times: int, side: int, options: argparse.Namespace) -> list[dict]:
    """Seconds and memory of every stage for one size."""
    with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=ROOT) as name:  # /tmp may be memory
        folder, data = Path(name), {}
        for part, repeated in (("train", times), ("test", 1)):
            data[f"x_{part}"] = Enlarged(arrays[f"x_{part}"], repeated, side)
            data[f"y_{part}"] = np.tile(arrays[f"y_{part}"], (repeated, *[1] * (arrays[f"y_{part}"].ndim - 1)))
        write_npz(folder / "data.npz", data)
        size = (folder / "data.npz").stat().st_size / 1e9
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        params["data"]["path"] = "data.npz"
        params["model"]["conv_filters"] = options.filters
        if options.limit:
            params["image_memory"] = params["feature_memory"] = int(options.limit * 1e9 / 4)
        for stage in ("pretrain", "finetune_output", "finetune_fc"):
            params[stage]["epochs"] = 1
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        (folder / "models").mkdir()
        shutil.copytree(ROOT / "data/raw", folder / "data/raw", ignore=shutil.ignore_patterns("*.npz", "*.py"))
        rows = []
        for stage, program in STAGES.items():
            cost = measured(program, folder, options.limit)
            timing = folder / f"reports/timing/{stage}.json"
            if timing.exists():
                images = times * len(arrays["x_train"]) / 2
                cost["images per second"] = images / json.loads(timing.read_text())["train_seconds"]
            rows.append({"stage": stage, "images": times, "side": side, "dataset, GB": size} | cost)
            print(f"{times}x images, {side}x side, {size:.1f} GB: {stage}: {cost}", file=sys.stderr, flush=True)
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--sizes", default="1x1,4x1,16x1,1x3,4x3,8x3", help="images x side")
    parser.add_argument("--filters", default="8,8", help="of the convolutions; few: what the images cost shows")
    parser.add_argument("--limit", type=float, metavar="GB")
    options = parser.parse_args()
    options.filters = [int(n) for n in options.filters.split(",")]
    with np.load(options.data) as file:
        arrays = {key: file[key] for key in ("x_train", "y_train", "x_test", "y_test")}
    sizes = [tuple(map(int, size.split("x"))) for size in options.sizes.split(",")]
    table = pd.DataFrame([row for times, side in sizes for row in one_size(arrays, times, side, options)])
    pixels = arrays["x_train"].shape[1] * table["side"]
    table["work"] = table["images"].astype(str) + "x images, " + pixels.astype(str) + " px, "
    table["work"] += table["dataset, GB"].map("{:.1f} GB".format)
    for column in ("seconds", "images per second", "GB", "GB of mapped files"):
        wide = table.pivot_table(index="work", columns="stage", values=column, sort=False)
        print(f"\n{column}\n\n{wide.round(2).to_markdown()}")


if __name__ == "__main__":
    main()
