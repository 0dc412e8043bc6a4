"""Time the notebook's code and the pipeline in turn: ``python benchmarks/speed.py CIFAR10.npz --rounds 3``.

Each round runs, one after the other and nothing beside it: the notebook's code (``notebook.py``); in a fresh clone with
an empty cache `dvc repro`; there `finetune_fc` with another learning rate; `dvc repro` with nothing to do; a changed
``report.py``; and in another fresh clone the fast recipe. Prints ratios to the notebook's code of the same round:
minimum, median and maximum over the rounds, and the largest peak memory; draws ``docs/speed.png``, accuracy against
seconds of training. Seeds are 1, 2, ... by round.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
FAST = ROOT / "docs/recipes/fast.txt"
BARS = {
    "default recipe, end to end": 0.80,
    "finetune_output, training": 0.45,
    "finetune_fc, training": 0.45,
    "one parameter of finetune_fc changed": 0.15,
    "nothing changed": 0.01,
    "fast recipe, end to end": 0.33,
}


def timed(command: list[str], folder: Path) -> tuple[float, float, str]:
    """Wall-clock seconds, the largest process's peak memory in GB, and what the command printed last."""
    environment = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    start = time.perf_counter()
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, cwd=folder, env=environment, text=True, **streams)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{output[-2000:]}")
    return seconds, usage.ru_maxrss / 1e6, output.strip().splitlines()[-1]


def clone(folder: Path, seed: int, data: Path) -> Path:
    """A fresh clone of what is committed, its data and seed set."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    params = folder / "params.yaml"
    text = params.read_text().replace("path: data/raw/cifar10.yaml", f"path: {data}")
    params.write_text(text.replace("seed: 1 ", f"seed: {seed} "))
    for key, value in {"user.name": "benchmark", "user.email": "benchmark@example.org"}.items():
        subprocess.run(["git", "config", key, value], cwd=folder, check=True)
    subprocess.run(["git", "commit", "--quiet", "--all", "--message", "Data and seed"], cwd=folder, check=True)
    return folder


def metrics(folder: Path) -> dict:
    return json.loads((folder / "reports/metrics.json").read_text())


def one_round(seed: int, data: Path, where: Path) -> tuple[dict, dict, dict]:
    """Seconds by what was run, peak memory in GB, and metrics by recipe and model."""
    dvc = [sys.executable, "-m", "dvc"]
    seconds, memory = {}, {}

    def step(name: str, command: list[str], folder: Path) -> str:
        seconds[name], memory[name], last = timed(command, folder)
        print(f"seed {seed}: {name}: {seconds[name]:.1f} s", file=sys.stderr, flush=True)
        return last

    script = str(ROOT / "benchmarks/notebook.py")
    notebook = json.loads(step("notebook", [sys.executable, script, str(data), "--seed", str(seed)], where))
    folder = clone(where / "default", seed, data)
    step("default recipe, end to end", [*dvc, "repro"], folder)
    default = metrics(folder)
    for stage, result in notebook.items():
        seconds[f"{stage}, training"] = default[stage]["train_seconds"]
        seconds[f"notebook: {stage}, training"] = result["train_seconds"]
    subprocess.run(["git", "add", "--all"], cwd=folder, check=True)
    subprocess.run(["git", "commit", "--quiet", "--message", "First run"], cwd=folder, check=True)
    change = [*dvc, "exp", "run", "-S", "finetune_fc.learning_rate=0.002"]
    step("one parameter of finetune_fc changed", change, folder)
    step("nothing changed", [*dvc, "repro"], folder)
    report = folder / "stages/report.py"
    report.write_text(report.read_text() + "# changed\n")
    step("report.py changed", [*dvc, "repro"], folder)
    folder = clone(where / "fast", seed, data)
    step("fast recipe, end to end", [*dvc, "exp", "run", *FAST.read_text().split()], folder)
    return seconds, memory, {"notebook's code": notebook, "default recipe": default, "fast recipe": metrics(folder)}


def ratios(rounds: pd.DataFrame) -> pd.DataFrame:
    """Every time as a ratio to the notebook's of the same round: of the same stage, or else of the whole."""
    rows = {}
    for name in rounds.columns:
        if not name.startswith("notebook"):
            whole = f"notebook: {name}" if f"notebook: {name}" in rounds else "notebook"
            ratio = rounds[name] / rounds[whole]
            rows[name] = {
                "seconds, median": f"{rounds[name].median():.1f}",
                "notebook's code, seconds, median": f"{rounds[whole].median():.1f}",
                "ratio: minimum": f"{ratio.min():.3f}",
                "median": f"{ratio.median():.3f}",
                "maximum": f"{ratio.max():.3f}",
                "bar": BARS.get(name, ""),
            }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("what")


def results_table(rounds: list[dict]) -> pd.DataFrame:
    """One row for each round, recipe and model: its test accuracy, and the seconds of all training it takes."""
    return pd.DataFrame(
        {
            "recipe": recipe,
            "model": stage,
            "test accuracy": result["test_accuracy"],
            "seconds": sum(run[name]["train_seconds"] for name in {"pretrain", stage}),
        }
        for results in rounds
        for recipe, run in results.items()
        for stage, result in run.items()
    )


def draw(results: pd.DataFrame, path: Path) -> None:
    """Accuracy against seconds of training for every model: each run a dot, the means with standard deviations."""
    models = list(results["model"].unique())
    figure, axes = plt.subplots(1, len(models), figsize=(11, 3.8), layout="constrained")
    for ax, model in zip(axes, models, strict=True):
        for i, (recipe, rows) in enumerate(results[results["model"] == model].groupby("recipe", sort=False)):
            points, style = rows[["seconds", "test accuracy"]], {"color": f"C{i}"}
            ax.scatter(*points.to_numpy().T, s=14, alpha=0.5, **style)
            x_spread, y_spread = points.std()
            ax.errorbar(*points.mean(), y_spread, x_spread, fmt="o", capsize=3, label=recipe, **style)
        ax.set(title=model, xlabel="seconds of training, pretraining included", xlim=(0, None))
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rounds = []
    for seed in range(1, options.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(one_round(seed, options.data.resolve(), Path(folder)))
    seconds, memory, results = zip(*rounds, strict=True)
    table = results_table(results)
    print(f"{options.rounds} rounds, {os.cpu_count()} cores\n")
    print(ratios(pd.DataFrame(seconds)).to_markdown(disable_numparse=True))
    print("\nPeak memory of the largest process, GB\n")
    print(pd.DataFrame(memory).max().round(2).rename("GB").to_markdown())
    print("\nTest accuracies, mean and standard deviation over the rounds\n")
    accuracies = table.groupby(["recipe", "model"], sort=False)["test accuracy"].agg(["mean", "std", "min"])
    print(accuracies.round(4).to_markdown())
    draw(table, ROOT / "docs/speed.png")


if __name__ == "__main__":
    main()
