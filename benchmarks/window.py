"""How long an edit can still be recorded as if it had been there: from a stage's last look at its inputs to DVC's own.

DVC hashes a stage's inputs after the stage has ended (https://github.com/treeverse/dvc/issues/11058). Runs the light
stage `prepare` and the heavy `pretrain`, one epoch on the digits, in a temporary clone, some times each.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOOK = """
import os, sys, time
def note(what):
    with open(os.environ["NOTES"], "a") as file:
        file.write(f"{what} {time.monotonic()}\\n")
if sys.argv[:1] == ["-m"] and "DVC_STAGE" in os.environ:
    from stages.shared import inputs
    check = inputs.check_unchanged
    inputs.check_unchanged = lambda: (check(), note("checked"))
if "dvc" in sys.orig_argv:
    from dvc.stage import Stage
    save = Stage.save_deps
    Stage.save_deps = lambda stage, **options: (save(stage, **options), note("hashed"))[0]
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="window-") as folder:
        measure(Path(folder))


def measure(folder: Path) -> None:
    """Print what each stage leaves, in a clone in the folder."""
    clone, notes = folder / "clone", folder / "notes"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    (folder / "sitecustomize.py").write_text(HOOK)
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{clone}", "NOTES": str(notes)}
    params = clone / "params.yaml"
    digits = params.read_text().replace("data/raw/cifar10.yaml", "data/raw/digits.npz")
    params.write_text(digits.replace("epochs: 10", "epochs: 1"))
    for stage in ("prepare", "pretrain"):
        gaps = []
        for _ in range(10):
            notes.unlink(missing_ok=True)
            command = [sys.executable, "-m", "dvc", "repro", "--single-item", "--force", stage]
            subprocess.run(command, cwd=clone, env=environment, check=True, capture_output=True)
            times = dict(line.split() for line in notes.read_text().splitlines())
            gaps.append(1000 * (float(times["hashed"]) - float(times["checked"])))
        print(f"{stage}: {statistics.median(gaps):.0f} ms, {min(gaps):.0f} to {max(gaps):.0f}, of {len(gaps)}")


if __name__ == "__main__":
    main()
