"""Where the seconds of each stage go: ``python benchmarks/stage_times.py CIFAR10.npz``.

Runs the notebook's code (``notebook.py``) and the five stages with the committed settings, but one epoch each, every
one in a process of its own under Python's profiler, in a temporary folder, and prints the seconds of its parts.
"""

import argparse
import cProfile
import json
import os
import pstats
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parent.parent
# The functions whose time is that of a part; where one of them calls another, the outer one counts.
PARTS = {
    "import": [("<frozen importlib._bootstrap>", "_find_and_load")],
    "read": [("datasets.py", "load"), ("arrays.py", "read_npz"), ("notebook.py", "halves")],
    "features": [("training.py", "features")],
    "train, features included": [("training.py", "fit"), ("trainer.py", "fit")],
    "evaluate": [("network.py", "log_probabilities"), ("trainer.py", "evaluate")],
    "save": [("network.py", "save"), ("arrays.py", "write_npz"), ("report.py", "write_figures")],
    "look at the CPU": [("training.py", "_environment")],
}


def in_a_stage(started: str, program: str, *arguments: str) -> None:
    """Run a script or a module under the profiler; prints the seconds of its parts as JSON."""
    sys.argv = [program, *arguments]
    profile = cProfile.Profile()
    profile.enable()
    run = runpy.run_path if program.endswith(".py") else runpy.run_module
    run(program, run_name="__main__")
    profile.disable()
    spent = {(Path(file).name, name): row[3] for (file, _, name), row in pstats.Stats(profile).stats.items()}
    seconds = {part: max(spent.get(function, 0.0) for function in functions) for part, functions in PARTS.items()}
    print(json.dumps(seconds | {"whole process": time.time() - float(started)}))


def measured(folder: Path, program: str, *arguments: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--in-a-stage", str(time.time()), program, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    data = str(parser.parse_args().data.resolve())
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"]["path"] = data
    for section in (section for section in params.values() if isinstance(section, dict) and "epochs" in section):
        section["epochs"] = 1
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        notebook = str(ROOT / "benchmarks/notebook.py")
        rows["notebook's code, all of it"] = measured(folder, notebook, data, "--epochs", "1")
        for stage, entry in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
            program, *arguments = entry["cmd"].removeprefix("exec python -m ").split()
            rows[stage] = measured(folder, program, *arguments)
    print(pd.DataFrame(rows).round(1).to_markdown())


if __name__ == "__main__":
    in_a_stage(*sys.argv[2:]) if sys.argv[1:2] == ["--in-a-stage"] else main()
