"""Time the notebook's code and the pipeline in turn: ``python benchmarks/speed.py CIFAR10.npz --rounds 12``.

A round runs the notebook's code (``notebook.py``, no seed), then `dvc repro` in a fresh clone with an empty cache, then
that clone again with one changed setting, without a change and with a changed ``report.py``, and each recipe of
``docs/recipes`` for CIFAR-10 in a fresh clone. Nothing else should run meanwhile. The rounds' seeds are 1, 2, ....

``speed.json`` stores each finished round; the command resumes after the last one. Prints times and memory of the last
round's commit and machine, the accuracies of all rounds, and those of the notebook's code at the last commit as rows to
add by hand to ``stages/reporting/notebook_runs.csv``, which names its commits in the first line.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import yaml

from stages.reporting.notebook import has_learned
from stages.shared.machine import cpu

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "benchmarks/speed.json"
NOTEBOOK, DEFAULT = "notebook's code", "default recipe"
DVC = [sys.executable, "-m", "dvc"]


@dataclass
class Round:
    """Measurements with one seed: seconds and peak memory (GB) of each run, metrics of each recipe's models."""

    seed: int
    provenance: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, dict] = field(default_factory=dict)

    def run(self, name: str, command: list[str], folder: Path) -> str:
        """Run and measure a command; returns the last line of its output."""
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

    def run_recipe(self, name: str, command: list[str], data: Path, parent: Path) -> Path:
        """Run a DVC command in a fresh clone with this round's seed; returns the clone."""
        clone = clone_with({"seed": self.seed, "data.path": str(data)}, parent / name)
        self.run(f"{name}, end to end", [*DVC, *command], clone)
        self.metrics[name] = json.loads((clone / "reports/metrics.json").read_text())
        for stage, metrics in self.metrics[name].items():
            metrics["train_seconds"] = json.loads((clone / f"reports/timing/{stage}.json").read_text())["train_seconds"]
        return clone

    def run_all(self, data: Path, parent: Path) -> None:
        command = [sys.executable, str(ROOT / "benchmarks/notebook.py"), str(data)]
        self.metrics[NOTEBOOK] = json.loads(self.run(NOTEBOOK, command, parent))
        clone = self.run_recipe(DEFAULT, ["repro"], data, parent)
        for stage, metrics in self.metrics[NOTEBOOK].items():
            self.seconds[f"{stage}, training"] = self.metrics[DEFAULT][stage]["train_seconds"]
            self.seconds[f"{NOTEBOOK}: {stage}, training"] = metrics["train_seconds"]
        change = [*DVC, "exp", "run", "-S", "finetune_fc.learning_rate=0.002"]
        self.run("one parameter of finetune_fc changed", change, clone)
        self.run("nothing changed", [*DVC, "repro"], clone)
        report = clone / "stages/report.py"
        report.write_text(report.read_text() + "# changed\n")
        self.run("report.py changed", [*DVC, "repro"], clone)
        for name in ("fast", "fast-bfloat16", "longer"):  # photos.txt is for other images
            recipe = (ROOT / f"docs/recipes/{name}.txt").read_text()
            self.run_recipe(f"{name} recipe", ["exp", "run", *recipe.split()], data, parent)


def clone_with(settings: dict[str, object], clone: Path) -> Path:
    """Clone the last commit and change settings there, by dotted name; the controls are off. Returns the clone."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    params = yaml.safe_load((clone / "params.yaml").read_text())
    no_controls = {"finetune_output.control": False, "finetune_fc.control": False}  # others have none
    for name, value in (settings | no_controls).items():
        section, _, leaf = name.rpartition(".")
        (params[section] if section else params)[leaf] = value
    (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return clone


def provenance() -> dict[str, str]:
    """Return the commit, machine and software that the measurements depend on."""
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True)
    return {
        "commit": commit.strip(),
        "machine": f"{os.cpu_count()} cores, {cpu()[0]}",
        "software": f"Python {platform.python_version()}, TensorFlow {version('tensorflow')}, Keras {version('keras')}",
    }


def ratios(seconds: pd.DataFrame, other: str = NOTEBOOK) -> pd.DataFrame:
    """Divide each run's seconds by the other's of the same round: those of the same part, or else of all."""
    names = [name for name in seconds if not name.startswith(other)]
    reference = pd.DataFrame({name: seconds.get(f"{other}: {name}", seconds[other]) for name in names})
    ratio = seconds[names] / reference
    table = {"seconds": seconds[names].median(), other: reference.where(ratio.notna()).median()}
    table |= {f"ratio: {how}": ratio.agg(how) for how in ("min", "median", "max")}
    return pd.DataFrame(table).rename_axis("run")


def show(rounds: list[Round]) -> None:
    last = [one for one in rounds if one.provenance == rounds[-1].provenance]
    print(f"Times, rounds: {len(last)}; {', '.join(rounds[-1].provenance.values())}\n")
    times = ratios(pd.DataFrame([one.seconds for one in last]))
    print(times.to_markdown(floatfmt=("", ".1f", ".1f", ".3f", ".3f", ".3f")))
    print("\nPeak memory of the largest process, GB\n")
    print(pd.DataFrame([one.memory for one in last]).max().round(2).rename("GB").to_markdown())
    accuracies = pd.DataFrame(
        {f"{recipe}: {stage}": m["test_accuracy"] for recipe, run in one.metrics.items() for stage, m in run.items()}
        for one in rounds
    )
    print(f"\nTest accuracies of the models that learned anything, rounds: {len(rounds)}\n")
    print(accuracies.where(has_learned).agg(["count", "mean", "std", "min", "max"]).T.round(4).to_markdown())
    print("\nThe notebook's code, rows for stages/reporting/notebook_runs.csv\n")
    print(accuracies.filter(like=NOTEBOOK)[-len(last) :].to_csv(index=False, header=False, float_format="%.4f"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=10, help="total, those in speed.json included")
    options = parser.parse_args()
    os.environ |= {"GIT_COMMITTER_NAME": "benchmark", "GIT_COMMITTER_EMAIL": "benchmark@localhost"}  # for experiments
    rounds = [Round(**one) for one in json.loads(STORED.read_text())] if STORED.exists() else []
    while len(rounds) < options.rounds:
        rounds.append(Round(len(rounds) + 1, provenance()))
        with tempfile.TemporaryDirectory() as folder:
            rounds[-1].run_all(options.data.resolve(), Path(folder))
        STORED.write_text(json.dumps([asdict(one) for one in rounds], indent=1) + "\n")
    show(rounds)


if __name__ == "__main__":
    main()
