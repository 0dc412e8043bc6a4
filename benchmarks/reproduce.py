"""Run the whole pipeline again in a fresh clone and compare every artifact with this workspace's: ``make reproduce``.

Prints, artifact by artifact, whether the bytes are equal. Where they are not, prints how the accuracies and the set-ups
differ. Exit code 0: all equal; 1: some differ; 2: there is nothing to compare. (`make` makes 2 of any that is not 0.)
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import yaml

HERE = Path.cwd()
EXACT = ("data/prepared/*.npz", "models/*.keras", "reports/history/*.csv", "reports/predictions/*.csv")
EXACT += ("reports/figures/*.png",)
SET_UP = "reports/record/*.json"


def artifacts(folder: Path, *patterns: str) -> list[str]:
    """The files below `folder` that match, hidden ones left out."""
    found = {path for pattern in patterns for path in folder.glob(pattern) if not path.name.startswith(".")}
    return sorted(path.relative_to(folder).as_posix() for path in found)


def rerun(clone: Path) -> None:
    """Clone what is committed here, take over the settings and their data, and run every stage."""
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(HERE), str(clone)], check=True)
    for name in ("params.yaml", yaml.safe_load((HERE / "params.yaml").read_text())["data"]["path"]):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        if not (clone / name).exists() or (clone / name).read_bytes() != (HERE / name).read_bytes():
            shutil.copyfile(HERE / name, clone / name)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "-m", "dvc", "repro", "--force"]
    subprocess.run(command, cwd=clone, env=os.environ | {"PATH": path}, stdout=sys.stderr, check=True)


def same_bytes(clone: Path) -> pd.DataFrame:
    """One row for each artifact of either place: equal, differs, or only in one of them."""
    rows = []
    for name in sorted({*artifacts(HERE, *EXACT, SET_UP), *artifacts(clone, *EXACT, SET_UP)}):
        pair = [folder / name for folder in (HERE, clone)]
        if not all(path.exists() for path in pair):
            verdict = "only here" if pair[0].exists() else "only in the rerun"
        else:
            verdict = "equal" if pair[0].read_bytes() == pair[1].read_bytes() else "DIFFERS"
        rows.append({"artifact": name, "bytes": verdict})
    return pd.DataFrame(rows)


def explain(clone: Path) -> None:
    """Print the accuracies and set-ups that differ."""
    for name in sorted(set(artifacts(HERE, SET_UP)) & set(artifacts(clone, SET_UP))):
        here, there = (json.loads((folder / name).read_text()) for folder in (HERE, clone))
        stage = Path(name).stem
        difference = there["test_accuracy"] - here["test_accuracy"]
        print(f"{stage}: accuracy {here['test_accuracy']:.4f}, rerun {there['test_accuracy']:.4f} ({difference:+.4f})")
        for key in here["set_up"]:
            if here["set_up"][key] != there["set_up"][key]:
                print(f"  {key}: {here['set_up'][key]}, rerun {there['set_up'][key]}")


def main() -> None:
    if not artifacts(HERE, SET_UP):
        print("error: no results here to compare with: run `dvc repro` first", file=sys.stderr)
        sys.exit(2)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "stages", "dvc.yaml"], check=True, capture_output=True, text=True
    ).stdout
    if changed:
        print(f"error: not committed, so not in a fresh clone:\n{changed}commit these first", file=sys.stderr)
        sys.exit(2)
    if subprocess.run([sys.executable, "-m", "dvc", "status", "--quiet"], check=False).returncode:
        print("error: the results here are not those of the settings and the code here: run `dvc repro` first",
              file=sys.stderr)  # fmt: skip
        sys.exit(2)
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        try:
            rerun(clone)
        except subprocess.CalledProcessError as error:
            print(f"error: the rerun failed: {' '.join(map(str, error.cmd))}", file=sys.stderr)
            sys.exit(2)
        table = same_bytes(clone)
        print(table.to_string(index=False))
        equal = int((table["bytes"] == "equal").sum())
        print(f"artifacts equal to the byte: {equal} of {len(table)}")
        if equal < len(table):
            explain(clone)
            sys.exit(1)


if __name__ == "__main__":
    main()
