"""Rerun the pipeline in a fresh clone and compare its artifacts with this workspace's: ``make reproduce``.

Prints for each artifact whether its bytes are equal; if some differ, also the differences in accuracy and environment.
Exit code 0: all are equal; 1: some differ; 2: there is nothing to compare. (`make` turns 1 into 2.)
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
STAGES = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
FOLDERS = ["data/prepared", "models", "reports/figures", *(f"reports/{stage}" for stage in STAGES)]
DVC = [sys.executable, "-m", "dvc"]


def read_artifacts(folder: Path) -> dict[str, bytes]:
    """Read every artifact, by its path."""
    files = [path for name in FOLDERS for path in sorted((folder / name).glob("[!.]*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def check_workspace() -> None:
    """Exit if the workspace's results cannot be compared."""
    status = ["git", "status", "--porcelain", "stages", "dvc.yaml"]
    if not any((ROOT / "models").glob("*.keras")):
        fail("there are no results to compare with: run `dvc repro` first")
    if changed := subprocess.run(status, cwd=ROOT, check=True, capture_output=True, text=True).stdout:
        fail(f"the clone would lack these changes, commit them first:\n{changed}")
    if subprocess.run([*DVC, "status", "--quiet"], cwd=ROOT, check=False).returncode:
        fail("the results do not belong to the current settings and code: run `dvc repro` first")


def fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def rerun(clone: Path) -> None:
    """Clone the last commit, copy the current settings and the data they name, and run every stage."""
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
    """Print the accuracies of each model and the differences in environment."""
    for name in [name for name in ours if name.endswith("record.json") and name in again]:
        first, second = json.loads(ours[name]), json.loads(again[name])
        print(f"{name}: accuracy {first['test_accuracy']:.4f}, rerun {second['test_accuracy']:.4f}")
        for key, value in first["environment"].items():
            if value != second["environment"][key]:
                print(f"  {key}: {value}, rerun {second['environment'][key]}")


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    check_workspace()
    with tempfile.TemporaryDirectory() as folder:
        try:
            rerun(Path(folder) / "clone")
        except subprocess.CalledProcessError as error:
            fail(f"the rerun failed: {' '.join(error.cmd)}")
        ours, again = read_artifacts(ROOT), read_artifacts(Path(folder) / "clone")
    equal = {name: ours.get(name) == again.get(name) for name in ours | again}
    for name, same in equal.items():
        print(f"{name:50} {'equal' if same else 'DIFFERS'}")
    print(f"artifacts equal to the byte: {sum(equal.values())} of {len(equal)}")
    if not all(equal.values()):
        explain(ours, again)
        sys.exit(1)


if __name__ == "__main__":
    main()
