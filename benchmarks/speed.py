"""Time the notebook's code and the pipeline in turn: ``python benchmarks/speed.py CIFAR10.npz --rounds 10``.

Each round runs, one after the other and nothing beside it: the notebook's code (``notebook.py``, no seed), and `dvc
repro` in a fresh clone with an empty cache. A commit's first three rounds on a machine go on there with another
learning rate for `finetune_fc`, `dvc repro` with nothing to do, and after a change of ``report.py``; then run each fast
recipe in a fresh clone, the first round all of ``docs/recipes``. The rounds' seeds are 1, 2, ....

``speed.json`` keeps every round as soon as it ends, with its machine and commit: the command goes on after the last;
delete the file to start anew. Prints ratios to the notebook's code of the same round and peak memory, both of the last
round's commit and machine alone, and the accuracies of all rounds. Draws ``docs/speed.png``, accuracy against seconds
of training, and writes the accuracies of the notebook's code to ``stages/reporting/notebook_runs.csv``, for the report,
with those of ``pretrainings.py``.
``same_experiment.py`` compares the accuracies.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import cpuinfo
import matplotlib.pyplot as plt
import pandas as pd
import yaml

from stages.reporting.published import RUNS, TABLE, learned

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "benchmarks/speed.json"
PRETRAININGS = ROOT / "benchmarks/pretrainings.json"
RECIPES = sorted(ROOT.glob("docs/recipes/*.txt"))
FAST = [recipe for recipe in RECIPES if recipe.stem.startswith("fast")]
IN_FULL = 3  # rounds; the others run the notebook's code and the default recipe alone
NOTEBOOK, DEFAULT = "notebook's code", "default recipe"
DVC = [sys.executable, "-m", "dvc"]


@dataclass
class Round:
    """What one seed's runs took and gave: seconds and peak memory (GB) by what was run, metrics by recipe."""

    seed: int
    provenance: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, dict] = field(default_factory=dict)

    def run(self, name: str, command: list[str], folder: Path) -> str:
        """Run a command, note its seconds and its largest process's memory, and return the last line it printed."""
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, text=True, **streams)
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{' '.join(command)} failed:\n{output}")
        self.seconds[name], self.memory[name] = time.perf_counter() - start, usage.ru_maxrss / 1e6
        print(f"seed {self.seed}: {name}: {self.seconds[name]:.1f} s", file=sys.stderr, flush=True)
        return output.strip().splitlines()[-1]

    def recipe(self, name: str, command: list[str], data: Path, where: Path) -> Path:
        """Run everything in a fresh clone of what is committed, with this round's seed; returns the clone."""
        folder = where / name
        fresh_clone(folder, data, seed=self.seed)
        self.run(f"{name}, end to end", [*DVC, *command], folder)
        self.metrics[name] = json.loads((folder / "reports/metrics.json").read_text())
        return folder

    def everything(self, data: Path, where: Path, earlier: int) -> None:
        """Run it all, or a part if there are `earlier` rounds of the same commit and machine."""
        command = [sys.executable, str(ROOT / "benchmarks/notebook.py"), str(data)]
        self.metrics[NOTEBOOK] = json.loads(self.run(NOTEBOOK, command, where))
        folder = self.recipe(DEFAULT, ["repro"], data, where)
        for stage, result in self.metrics[NOTEBOOK].items():
            self.seconds[f"{stage}, training"] = self.metrics[DEFAULT][stage]["train_seconds"]
            self.seconds[f"{NOTEBOOK}: {stage}, training"] = result["train_seconds"]
        if earlier >= IN_FULL:
            return
        change = [*DVC, "exp", "run", "-S", "finetune_fc.learning_rate=0.002"]
        self.run("one parameter of finetune_fc changed", change, folder)
        self.run("nothing changed", [*DVC, "repro"], folder)
        report = folder / "stages/report.py"
        report.write_text(report.read_text() + "# changed\n")
        self.run("report.py changed", [*DVC, "repro"], folder)
        for recipe in FAST if earlier else RECIPES:
            self.recipe(f"{recipe.stem} recipe", ["exp", "run", *recipe.read_text().split()], data, where)


def fresh_clone(folder: Path, data: Path, **settings: int) -> None:
    """Clone what is committed into the folder, to run on these images with these settings of the top level."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params |= settings
    params["data"]["path"] = str(data)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def provenance() -> dict[str, str]:
    """What the numbers depend on."""
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True)
    return {
        "commit": commit.strip(),
        "machine": f"{os.cpu_count()} cores, {cpuinfo.get_cpu_info()['brand_raw']}",
        "software": f"Python {platform.python_version()}, TensorFlow {version('tensorflow')}, Keras {version('keras')}",
    }


def kept_rounds() -> list[Round]:
    return [Round(**one) for one in json.loads(KEPT.read_text())] if KEPT.exists() else []


def alike(rounds: list[Round], provenance: dict[str, str]) -> list[Round]:
    """The rounds of one commit on one machine: only their times are compared."""
    return [one for one in rounds if one.provenance == provenance]


def ratios(rounds: pd.DataFrame) -> pd.DataFrame:
    """Every time as a ratio to the notebook's of the same round: of the same stage, or else of the whole."""
    rows = {}
    for name in rounds.columns[~rounds.columns.str.startswith(NOTEBOOK)]:
        whole = f"{NOTEBOOK}: {name}" if f"{NOTEBOOK}: {name}" in rounds else NOTEBOOK
        ratio = rounds[name] / rounds[whole]
        rows[name] = {
            "seconds, median": f"{rounds[name].median():.1f}",
            f"{NOTEBOOK}, seconds, median": f"{rounds[whole][rounds[name].notna()].median():.1f}",
            "ratio: minimum": f"{ratio.min():.3f}",
            "median": f"{ratio.median():.3f}",
            "maximum": f"{ratio.max():.3f}",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("what")


def results_table(rounds: list[Round]) -> pd.DataFrame:
    """One row for each round, recipe and model: its test accuracy, and the seconds of all training it takes.

    Column learned: whether the round's run of the recipe learned anything, see `published.learned`.
    """
    return pd.DataFrame(
        {
            "seed": one.seed,
            "recipe": recipe,
            "model": stage,
            "test accuracy": result["test_accuracy"],
            "learned": learned(run["pretrain"]["test_accuracy"]),
            "seconds": sum(run[name]["train_seconds"] for name in {"pretrain", stage}),
        }
        for one in rounds
        for recipe, run in one.metrics.items()
        for stage, result in run.items()
    )


def draw(results: pd.DataFrame, path: Path) -> None:
    """Accuracy against seconds of training for every model: each run a dot, the means with standard deviations."""
    models = results.groupby("model", sort=False)
    figure, axes = plt.subplots(1, len(models), figsize=(11, 3.8), layout="constrained")
    for ax, (model, runs) in zip(axes, models, strict=True):
        for i, (recipe, rows) in enumerate(runs.groupby("recipe", sort=False)):
            points, style = rows[["seconds", "test accuracy"]], {"color": f"C{i}"}
            ax.scatter(*points.to_numpy().T, s=14, alpha=0.5, **style)
            x_spread, y_spread = points.std().fillna(0)
            ax.errorbar(*points.mean(), y_spread, x_spread, fmt="o", capsize=3, label=recipe, **style)
        ax.set(title=model, xlabel="seconds of training, pretraining included", xlim=(0, None))
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(RECIPES) + 2)
    figure.savefig(path, dpi=110)


def tables(rounds: list[Round]) -> str:
    results = results_table(rounds).query("learned")
    accuracies = results.groupby(["recipe", "model"], sort=False)["test accuracy"]
    timed = alike(rounds, rounds[-1].provenance)
    return f"""Times, rounds: {len(timed)}; {described(timed)}

{ratios(pd.DataFrame([one.seconds for one in timed])).to_markdown(disable_numparse=True)}

Peak memory of the largest process, GB

{pd.DataFrame([one.memory for one in timed]).max().round(2).rename("GB").to_markdown()}

Test accuracies, mean and standard deviation over the runs of all {len(rounds)} rounds that learned anything;
{described(rounds)}

{accuracies.agg(["count", "mean", "std", "min", "max"]).round(4).reset_index().to_markdown(index=False)}
"""


def described(rounds: list[Round]) -> str:
    """Commits, machines and software of the rounds."""
    return "; ".join(", ".join(sorted({one.provenance[key] for one in rounds})) for key in rounds[0].provenance)


def kept_pairs() -> list[dict]:
    """What ``pretrainings.py`` left."""
    return json.loads(PRETRAININGS.read_text()) if PRETRAININGS.exists() else []


def pretrained_only(pair: dict) -> Round:
    """The notebook's code of a pair of ``pretrainings.py``: no fine-tunings, and no time to compare."""
    end = {"test_accuracy": pair[NOTEBOOK][-1], "train_seconds": math.nan}
    return Round(pair["seed"], pair["provenance"], metrics={NOTEBOOK: {"pretrain": end}})


def write_notebook_runs() -> None:
    """The accuracies of the notebook's code, with where they come from in the first line."""
    rounds = [*kept_rounds(), *map(pretrained_only, kept_pairs())]
    results = results_table(rounds).query("recipe == @NOTEBOOK")
    runs = results.pivot_table(index="seed", columns="model", values="test accuracy")
    said = f"# benchmarks/speed.py and pretrainings.py on CIFAR-10; {described(rounds)}\n"
    RUNS.write_text(said + runs[list(TABLE)].to_csv(index=False, float_format="%.4f"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    os.environ |= {"GIT_COMMITTER_NAME": "benchmark", "GIT_COMMITTER_EMAIL": "benchmark@localhost"}  # for experiments
    rounds = kept_rounds()
    while len(rounds) < options.rounds:
        with tempfile.TemporaryDirectory() as folder:
            one = Round(len(rounds) + 1, provenance())
            one.everything(options.data.resolve(), Path(folder), len(alike(rounds, one.provenance)))
        rounds.append(one)
        KEPT.write_text(json.dumps([asdict(one) for one in rounds], indent=1) + "\n")
    print(tables(rounds))
    draw(results_table(alike(rounds, rounds[-1].provenance)).query("learned"), ROOT / "docs/speed.png")
    if len(rounds) > 1:  # one has no spread
        write_notebook_runs()


if __name__ == "__main__":
    main()
