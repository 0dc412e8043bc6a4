"""Kill `dvc repro` repeatedly and check that the next one completes with the bytes of an undisturbed run.

    python benchmarks/kills.py [--kills 50] [--writes N] [--seed 0]

Works on fresh clones of the last commit, with MNIST and one epoch per stage. First it kills at random times, by
SIGKILL, SIGINT (Ctrl-C) and SIGTERM, up to three in a row; then before, halfway through and after the writing of every
output. It also emulates a full disk halfway through every output, which must end the stage with one line. Exit code 1,
and the clones are kept, if a byte differs, a finished stage runs again, an output is half-written, or dvc.lock or the
cache do not match the files. "Removed by hand" lists DVC's own files that a kill left unreadable.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import yaml
from reproduce import DVC, ROOT, STAGES, read_artifacts

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
MOMENTS = ("before", "half", "after", "full")
ATTEMPTS, WAIT = 12, 5  # signals sent until a process ends; seconds between them


class Clone:
    """A fresh clone in which `dvc repro` is killed; lists the kills, errors and files removed by hand."""

    def __init__(self, folder: Path, name: str):
        self.path = folder / name
        self.kills, self.errors, self.removed = [], [], []
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(self.path)], check=True)
        shutil.rmtree(self.path / "reports")  # results may be committed
        (self.path / "dvc.lock").unlink(missing_ok=True)
        params = yaml.safe_load((self.path / "params.yaml").read_text())
        params["data"]["path"] = "data/raw/mnist.npz"
        for section in params.values():
            if isinstance(section, dict) and "epochs" in section:
                section["epochs"] = 1
        (self.path / "params.yaml").write_text(yaml.safe_dump(params))
        own = {"HOME": str(folder), "DVC_SITE_CACHE_DIR": str(folder / "site")}
        self.environment = os.environ | own | {"PYTHONPATH": str(ROOT / "benchmarks/hook")}

    def repro(self, seconds: float | None = None, number: int = 0, write: str = "") -> tuple[int, str, list[str]]:
        """Run `dvc repro`; kill it by a signal after some seconds, or at a moment of writing, such as "half FILE".

        Returns its exit code, output and stages, and adds the kill to `kills` unless it came too late.
        """
        process = subprocess.Popen(
            [*DVC, "repro"], cwd=self.path, env=self.environment | {"DIE_WHILE_WRITING": write},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
            # A shell's background jobs ignore Ctrl-C, and their children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kills.append(f"{signal.Signals(number).name} +{seconds:.1f} s")
            output = end(process, number)
        moment, _, path = write.partition(" ")
        expected = f"error: {path}: No space left on device\n" if moment == "full" else "exited with -9"
        if write and expected in output and "Traceback" not in output:
            self.kills.append(write)
            if moment != "after" and (self.path / path).exists():
                self.errors.append(f"{path}: exists, though killed {moment} its writing")
        return process.returncode, output, re.findall(r"^Running stage '(\w+)'", output, re.MULTILINE)

    def outputs(self) -> dict[str, list[Path]]:
        """Read each finished stage's outputs from dvc.lock; empty if that file is missing or damaged."""
        try:
            stages = yaml.safe_load((self.path / "dvc.lock").read_text())["stages"]
            return {stage: [self.path / out["path"] for out in entry["outs"]] for stage, entry in stages.items()}
        except (OSError, yaml.YAMLError, KeyError, TypeError):
            return {}

    def writes(self) -> list[str]:
        """List all moments of writing each output, in the order of the stages."""
        outputs = self.outputs()
        paths = [path for stage in STAGES for path in outputs[stage]]
        files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
        return [f"{moment} {file.relative_to(self.path)}" for file in files for moment in MOMENTS]

    def remove_damaged(self) -> list[str]:
        """Remove DVC's own files that it cannot read, as a user has to."""
        damaged = [self.path / "dvc.lock"] if not self.outputs() else []
        rwlock = self.path / ".dvc/tmp/rwlock"
        try:
            json.loads(rwlock.read_text())
        except (FileNotFoundError, ValueError):
            damaged.append(rwlock)
        damaged += [run for run in self.path.glob(".dvc/cache/runs/*/*") if not any(run.iterdir())]
        damaged = [path for path in damaged if path.exists()]
        for path in damaged:
            path.rmdir() if path.is_dir() else path.unlink()
        return [str(path.relative_to(self.path)) for path in damaged]

    def survive(self, reference: dict[str, bytes], kills: list[dict]) -> None:
        """Run `dvc repro` with each of the kills, which are arguments of `repro`, let it complete, and check."""
        finished: set[str] = set()
        for kill in [*kills, {}]:
            before = len(self.kills)
            code, output, ran = self.repro(**kill)
            while code and len(self.kills) == before and (removed := self.remove_damaged()):
                self.removed += removed
                code, output, ran = self.repro(**kill)
            self.errors += [f"{stage}: finished and ran again" for stage in ran if stage in finished]
            finished |= set(self.outputs())
            results = read_artifacts(self.path)
            self.errors += [f"{path}: other bytes" for path in results if results[path] != reference.get(path)]
            if len(self.kills) == before:
                break
        self.errors += [f"`dvc repro` failed:\n{output}"] if code else []
        self.errors += [f"{stage}: dvc.lock does not match its files" for stage in self.repro()[2]]
        for path in self.path.glob(".dvc/cache/files/md5/??/[!.]*"):
            if hashlib.md5(path.read_bytes()).hexdigest() != path.parent.name + path.name.removesuffix(".dir"):
                self.errors.append(f"{path}: other bytes than its MD5")
        self.errors += [f"{path}: missing" for path in reference if path not in results]
        writes = [kill["write"] for kill in kills if "write" in kill]
        self.errors += [f"{write}: not killed" for write in writes if write not in self.kills]
        print(f"{self.path.name}: {', '.join(self.kills)}; {'; '.join(self.errors) or 'same bytes'}", flush=True)
        if not self.errors:
            shutil.rmtree(self.path)


def end(process: subprocess.Popen, number: int) -> str:
    """Signal a process group until no process holds its output open, and return the output."""
    for _ in range(ATTEMPTS):
        os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=WAIT)[0]
    raise TimeoutError(f"a process of `dvc repro` survived {ATTEMPTS} times {signal.Signals(number).name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="number of kills at random times")
    parser.add_argument("--writes", type=int, metavar="N", help="only the first N moments of writing")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, folder = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="kills-"))
    undisturbed, start = Clone(folder, "undisturbed"), time.monotonic()
    code, output, _ = undisturbed.repro()
    assert code == 0, output
    seconds, reference = time.monotonic() - start, read_artifacts(undisturbed.path)
    print(f"undisturbed: {seconds:.1f} s, {len(reference)} files", flush=True)

    clones: list[Clone] = []
    while (left := options.kills - sum(len(clone.kills) for clone in clones)) > 0:
        clones.append(Clone(folder, f"round-{len(clones) + 1}"))
        numbers = rng.sample(SIGNALS, min(len(SIGNALS), left))
        clones[-1].survive(reference, [{"seconds": rng.uniform(0, seconds), "number": number} for number in numbers])
    clones.append(Clone(folder, "writing"))
    clones[-1].survive(reference, [{"write": write} for write in undisturbed.writes()[: options.writes]])

    kinds = Counter(kill.split()[0] for clone in clones for kill in clone.kills)
    failed = [clone.path.name for clone in clones if clone.errors]
    removed = [path for clone in clones for path in clone.removed]
    print(f"kills: {dict(kinds)}; removed by hand: {removed or 'nothing'}; failed: {failed or 'none'} of {len(clones)}")
    if failed:
        sys.exit(f"kept: {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
