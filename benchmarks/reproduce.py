"""Run the whole pipeline again in a fresh clone and compare every artifact with this workspace's: ``make reproduce``.

Prints for each artifact whether its bytes are equal. If they are not, prints how the accuracies and the set-ups differ.
Exit code 0: all equal; 1: some differ; 2: there is nothing to compare. (`make` turns any that is not 0 into 2.)
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parent.parent
DVC = [sys.executable, "-m", "dvc"]
FOLDERS = (
    "data/prepared", "models", "reports/history", "reports/predictions", "reports/gradcam", "reports/record",
    "reports/figures",
)  # fmt: skip


def artifacts(folder: Path) -> dict[str, bytes]:
    """The content of every artifact by its path."""
    found = [path for name in FOLDERS for path in sorted((folder / name).glob("*")) if path.name[0] != "."]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def refusal() -> str | None:
    """Why this workspace's results cannot be compared, and what to type."""
    if not any((ROOT / "models").glob("*.keras")):
        return "no results here to compare with: run `dvc repro` first"
    status = ["git", "status", "--porcelain", "stages", "dvc.yaml"]
    if changed := subprocess.run(status, cwd=ROOT, check=True, capture_output=True, text=True).stdout:
        return f"not committed, so not in a fresh clone:\n{changed}commit these first"
    if subprocess.run([*DVC, "status", "--quiet"], cwd=ROOT, check=False).returncode:
        return "the results here are not those of the settings and the code here: run `dvc repro` first"
    return None


def rerun(clone: Path) -> None:
    """Clone what is committed here, copy the settings and their data, and run every stage."""
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], check=True)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name in ("params.yaml", params["data"]["path"], params["data"]["target_path"], params["model"]["weights"]):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, clone / name, dirs_exist_ok=True)
        elif (clone / name).resolve() != (ROOT / name).resolve():
            shutil.copyfile(ROOT / name, clone / name)
    subprocess.run([*DVC, "repro", "--force"], cwd=clone, stdout=sys.stderr, check=True)


def explain(ours: dict[str, bytes], again: dict[str, bytes]) -> None:
    """Print the accuracies and set-ups that differ."""
    for name in [name for name in ours if name.startswith("reports/record/") and name in again]:
        first, second = json.loads(ours[name]), json.loads(again[name])
        difference = second["test_accuracy"] - first["test_accuracy"]
        print(f"{name}: accuracy {first['test_accuracy']:.4f}, rerun {second['test_accuracy']:.4f} ({difference:+.4f})")
        for key, value in first["set_up"].items():
            if value != second["set_up"][key]:
                print(f"  {key}: {value}, rerun {second['set_up'][key]}")


def main() -> int:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    if reason := refusal():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        try:
            rerun(Path(folder) / "clone")
        except subprocess.CalledProcessError as error:
            print(f"error: the rerun failed: {' '.join(error.cmd)}", file=sys.stderr)
            return 2
        ours, again = artifacts(ROOT), artifacts(Path(folder) / "clone")
    table = pd.Series({name: "equal" if ours.get(name) == again.get(name) else "DIFFERS" for name in ours | again})
    print(table.to_string())
    print(f"artifacts equal to the byte: {(table == 'equal').sum()} of {len(table)}")
    if (table == "equal").all():
        return 0
    explain(ours, again)
    return 1


if __name__ == "__main__":
    sys.exit(main())
